#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["thrift>=0.20", "pystachio>=0.8.10"]
# ///
# Licensed under the Apache License, Version 2.0; see LICENSE or https://www.apache.org/licenses/LICENSE-2.0
"""Apache Aurora over plain HTTP: one file to copy onto a scheduler host and run.

    python3 aurora_rest.py --demo                                serve a simulated cluster, no Aurora needed
    python3 aurora_rest.py --scheduler prod=http://sched:8081    serve a real one
    python3 aurora_rest.py --help                                every option

or to import:

    import aurora_rest
    with aurora_rest.Server(port=0, demo=True) as server:        # serves in the background
        print(server.url)
    aurora = aurora_rest.Scheduler("http://scheduler:8081")      # the Thrift client alone
    aurora.getJobs("www-data")                                   # any of the 45 methods; Thrift structs back
    job = aurora_rest.load_job(source, "devcluster/www-data/prod/hello")

The file is read from top to bottom; each room, opened by a banner, uses only the rooms above it.
"""
from __future__ import annotations

import argparse
import ast
import base64
import bisect
import collections
import contextlib
import copy
import errno
import fnmatch
import gc
import gzip
import hashlib
import heapq
import hmac
import http.server
import io
import itertools
import json
import math
import os
import random
import re
import secrets
import select
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
import uuid
import zlib
from functools import lru_cache, partial, wraps
from queue import Empty as QueueEmpty
from queue import SimpleQueue
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
)

try:
    from thrift.protocol.TBase import TFrozenBase
    from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
    from thrift.protocol.TJSONProtocol import TJSONProtocol
    from thrift.Thrift import TApplicationException, TException, TMessageType, TType
    from thrift.transport.TTransport import TMemoryBuffer
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit("aurora_rest.py needs the packages thrift and pystachio (%s): pip install thrift pystachio" %
             missing)

__version__ = "1.0.0"
Json = Dict[str, Any]       # a JSON object
__all__ = [
    "Server", "Scheduler", "Evaluator", "Demo", "AuroraError", "Job", "Key", "Operation", "RestartOptions",
    "api", "load_job",
    "list_jobs", "query_tasks", "start_update", "plan_update", "add_like", "change_instances", "begin",
    "rolling_restart",
    "batched_kill", "wait_until_running", "wait_until_gone", "wait_for_update", "wait_until_drained", "watch",
    "__version__"]

# ============================================================================================================
# 1. HTTP
#
# Requests, responses, waiting, limits, and the server that gives them to an application (`App`). Uses the
# standard library alone, and knows nothing of Aurora: who needs an HTTP server for another purpose may cut
# this room out.
#
# The path of a request: `HttpServer._accept` makes a Connection, which is the Channel of a socket besides.
# The thread that leads the Workers turns the Loop, which calls `on_input` when bytes come. `advance` takes
# from `Incoming` what is whole: first the head, of which `HttpServer.request` makes a Request (`App.prepare`
# finds its route) and `App.admit` says whether a body is taken at all; then head and body. `dispatch` answers
# at once what is quick; else it joins the Run of the same read that has not begun, or makes one, which the
# leading thread runs itself while another one leads. `App.handle` gives a Response; or a Later, which listens
# to a Source until it is ready or the time is up; or a Stream of what changes in one. `Connection.answer` has
# `HttpServer.encode` make the bytes, tells `App.finished`, and `push` gives them to the network; what that
# does not take at once the Loop sends later. Where a request is refused before it is one, `refuse` answers.
# ============================================================================================================


# --- errors -------------------------------------------------------------------------------------------------


class Failure(Exception):
    """A failure with the HTTP status and the `code` callers get. `failure` makes the kinds there are.

    messages: sentences for the caller; details: further fields of the answer; headers: further headers of it;
    retry_after: seconds after which it may be different; response: what another server refused with, where it
    is its refusal; sent: bytes of a call to it may have taken effect, and no readable answer tells whether
    they did.
    """
    code = "INTERNAL"
    http = 500
    retry_after = 0
    harmless = False        # although it is another server's answer: nothing was done there
    response: Any = None
    sent = False

    def __init__(self, *messages: str, http: Optional[int] = None, code: Optional[str] = None,
                 retry_after: int = 0,
                 headers: Iterable[Tuple[str, str]] = (), **details: Any) -> None:
        super().__init__("; ".join(messages))
        self.messages = list(messages)
        self.http = http or type(self).http
        self.code = code or type(self).code
        self.headers = list(headers)
        self.retry_after = retry_after or type(self).retry_after
        self.details = details

    def doubt(self, method: str) -> None:
        """Say that a write may have been done all the same: in words, and in a field for programs."""
        last = self.messages[-1] if self.messages else "failed"
        self.messages[-1:] = ["%s; the %s may still take effect" % (last, method)]
        self.args = ("; ".join(self.messages),)
        self.details["done"] = "unknown"


def failure(code: str, http: int, text: str, retry_after: int = 0, harmless: bool = False) -> type[Failure]:
    """A row of the table of failures: a class to raise and to catch, with what `Failure` says of all of its
    kind."""
    return type(code.title().replace("_", ""), (Failure,), {
        "__doc__": text, "__module__": __name__, "code": code, "http": http, "retry_after": retry_after,
        "harmless": harmless})


BadRequest = failure("BAD_REQUEST", 400, "The request itself is malformed.")
Unauthorized = failure("UNAUTHORIZED", 401, "No credentials, or wrong ones.")
Forbidden = failure("FORBIDDEN", 403, "The caller may not do this.")
NotFound = failure("NOT_FOUND", 404, "There is nothing of that name, or at that path.")
MethodNotAllowed = failure("METHOD_NOT_ALLOWED", 405, "The path is known, with other methods.")
RequestTimeout = failure("REQUEST_TIMEOUT", 408, "The request did not arrive in time.")
Conflict = failure("CONFLICT", 409, "It does not fit how things stand.")
PreconditionFailed = failure("PRECONDITION_FAILED", 412, "The thing is not as If-Match says.")
BodyTooLarge = failure("BODY_TOO_LARGE", 413, "The request body is over the limit.")
UriTooLong = failure("URI_TOO_LONG", 414, "The request target is over the limit.")
UnsupportedMedia = failure("UNSUPPORTED_MEDIA_TYPE", 415,
                           "A content type or encoding that is not understood.")
ExpectationFailed = failure("EXPECTATION_FAILED", 417, "An Expect header other than 100-continue.")
Misdirected = failure("MISDIRECTED_REQUEST", 421, "A Host header that is not this server's.")
Unprocessable = failure("UNPROCESSABLE", 422, "Well-formed, but this request cannot do it.")
TooManyHeaders = failure("HEADERS_TOO_LARGE", 431, "Header fields over the limit.")
NotImplementedHere = failure("NOT_IMPLEMENTED", 501,
                             "A transfer coding or method that is not implemented here.")
Overloaded = failure("OVERLOADED", 503, "Too many requests in flight or waiting here.", retry_after=1)
ShuttingDown = failure("SHUTTING_DOWN", 503, "The server is stopping.", retry_after=5)
HttpVersion = failure("HTTP_VERSION_NOT_SUPPORTED", 505, "An HTTP version that is not spoken here.")


# --- limits -------------------------------------------------------------------------------------------------


class Limit(NamedTuple):
    """One limit: its default, the unit of its option, what happens over it, and the least that makes
    sense."""
    default: float
    unit: str
    help: str
    least: float = 0


LIMITS: Dict[str, Limit] = {
    "connections": Limit(4096, "connections", "open connections; further ones get 503", least=1),
    "threads": Limit(128, "threads", "threads that handle requests", least=1),
    "queue": Limit(1000, "requests", "requests waiting for a thread; further ones get 503", least=1),
    "queue_time": Limit(10, "seconds", "time a request may wait for a thread; then 503"),
    "url": Limit(8192, "bytes", "length of a request target; over it 414", least=64),
    "headers": Limit(32768, "bytes", "size of all header fields; over it 431", least=256),
    "header_count": Limit(100, "fields", "number of header fields; over it 431", least=1),
    "body": Limit(8 << 20, "bytes", "size of a request body; over it 413"),
    "bodies": Limit(512 << 20, "bytes",
                    "request bodies received and not answered yet, a quarter of them for one caller; "
                    "further ones get 503"),
    "unsent": Limit(256 << 20, "bytes",
                    "of answers that callers have not taken yet, a quarter of them for one caller; over "
                    "it the connection is closed"),
    "send_rate": Limit(1024, "bytes/s",
                       "least speed at which an answer is taken, after 10 s of grace; below it the "
                       "connection is closed"),
    "header_time": Limit(10, "seconds", "time to send the request head; then 408"),
    "body_rate": Limit(1024, "bytes/s", "least speed of a request body, after 10 s of grace; below it 408"),
    "send_time": Limit(30, "seconds",
                       "time without progress in sending an answer; then the connection is closed"),
    "idle_time": Limit(75, "seconds", "time an idle connection is kept"),
}


REASONS = {status.value: status.phrase for status in http.HTTPStatus}
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
JSON_TYPE = "application/json"
# Text from outside meets only linear work. Patterns: each is matched as a whole or from a known place, no two
# neighbouring repeats take the same character, and none that is searched for begins with a repeat. That is so
# for those here (single characters, or whole fields), request targets and chunk sizes, quality values and
# ETags ("[^"]*" ends at the next quote), identifiers, instances, numbers, durations and hosts in paths and
# parameters; of other servers' answers for status lines, chunk sizes, hosts and challenges (whose names begin
# at a word's edge). What would not be is done by hand: `parse_parameters` and `parse_multipart` go through
# once, `glob` takes one step a character, `load_json` reads no number of more than MAX_DIGITS digits. A
# configuration's own patterns run in its own process.
_SINGLE_FIELDS = frozenset(["content-type", "authorization", "expect", "idempotency-key", "origin"])
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n")
_BAD_TARGET = re.compile(rb"[^\x21-\x7e]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~]*)(:\d*)?")
_REQUEST_ID = re.compile(r"[\w\-.:]{1,128}", re.ASCII)


# --- requests, responses and what is in them ----------------------------------------------------------------


class Head(NamedTuple):
    """The parsed head of a request. length: -1 for a chunked body."""
    method: str
    target: str
    version: int                # 0 or 1: the minor version
    headers: Dict[str, str]
    length: int
    keep_alive: bool
    expects: bool


def parse_head(data: bytes, header_count: int = 100, url: int = 8192) -> Head:
    """A request's head, without the blank line that ends it, by RFC 9112. Raises the Failure it deserves;
    anything that two implementations could read differently is refused."""
    lines = data.split(b"\r\n")
    if b"\n" in data.replace(b"\r\n", b"") or b"\r" in data.replace(b"\r\n", b""):
        raise BadRequest("a line of the request head does not end with CRLF")
    words = lines[0].split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]):
        raise BadRequest("the request line is not: METHOD target HTTP/1.1")
    if len(words[1]) > url:
        raise UriTooLong("the request target is longer than %d bytes" % url)
    if not re.fullmatch(rb"HTTP/\d\.\d", words[2]):
        raise BadRequest("the request line does not end with an HTTP version")
    if not words[2].startswith(b"HTTP/1."):
        raise HttpVersion("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if not words[1] or _BAD_TARGET.search(words[1]) or b"#" in words[1]:
        raise BadRequest("the request target has characters that must be percent-encoded")
    if len(lines) - 1 > header_count:
        raise TooManyHeaders("more than %d header fields" % header_count)
    version = 1 if words[2] != b"HTTP/1.0" else 0
    headers: Dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest("a header field is not: name: value (folded lines and blanks before the colon "
                             "are refused)")
        value = value.strip(b" \t")
        if _BAD_VALUE.search(value):
            raise BadRequest("a header value has control characters")
        key, text = name.decode("ascii").lower(), value.decode("latin-1")
        if key in headers:
            # Which of two counts, two readers could see differently; but where they are equal (some clients
            # send their Content-Type twice) only for the fields that say where a request ends and whom it is
            # for.
            framing = key in ("host", "content-length", "transfer-encoding")
            if framing or key in _SINGLE_FIELDS and text != headers[key]:
                raise BadRequest("the header field %s is given twice" % key)
            text = text if key in _SINGLE_FIELDS else headers[key] + ", " + text
        headers[key] = text
    host = headers.get("host")
    if host is None and version == 1:
        raise BadRequest("the header field host is missing")
    if host is not None and not _HOST.fullmatch(host):
        raise BadRequest("the header field host is not a host and port")
    length = 0
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if "content-length" in headers:
            raise BadRequest("content-length and transfer-encoding exclude each other")
        if version == 0:
            raise BadRequest("HTTP/1.0 has no transfer-encoding")
        if coding.lower() != "chunked":
            raise NotImplementedHere("the only transfer-encoding understood is chunked")
        length = -1
    elif "content-length" in headers:
        text = headers["content-length"]
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BadRequest("content-length is not a number")
        length = int(text)
    options = [each.strip().lower() for each in headers.get("connection", "").split(",")]
    keep_alive = "close" not in options and (version == 1 or "keep-alive" in options)
    expect = headers.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise ExpectationFailed("the only expectation understood is 100-continue")
    return Head(words[0].decode("ascii"), words[1].decode("ascii"), version, headers, length, keep_alive,
                expect is not None and version == 1)


class ChunkedBody:
    """Decodes a chunked body from a growing buffer. Chunk extensions are skipped, trailers dropped, both
    bounded. take: called with each part, which `parts` keeps by default."""
    MAX_LINE = 1024

    def __init__(self, limit: int, take: Optional[Callable[[bytes], None]] = None) -> None:
        self.limit = limit
        self.parts: List[bytes] = []
        self.take = take or self.parts.append
        self.size = 0
        self.count = 0
        self.left = -1          # bytes left of this chunk; -1: a chunk header is due
        self.trailers: Optional[int] = None     # bytes of trailers seen, once the last chunk was

    def feed(self, buffer: bytearray) -> bool:
        """Take what is whole from `buffer`; True when the body is complete. Raises BadRequest,
        BodyTooLarge."""
        while True:
            if self.left > 0:
                part = bytes(memoryview(buffer)[:self.left])
                if not part:
                    return False
                del buffer[:len(part)]
                self.take(part)
                self.left -= len(part)
            elif self.left == 0:
                if len(buffer) < 2:
                    return False
                if buffer[:2] != b"\r\n":
                    raise BadRequest("a chunk is longer than its size says")
                del buffer[:2]
                self.left = -1
            else:
                end = buffer.find(b"\r\n")
                if end < 0 or end > self.MAX_LINE:
                    if len(buffer) > self.MAX_LINE:
                        raise BadRequest("a chunk header or trailer is too long")
                    if b"\n" in buffer:
                        raise BadRequest("a chunk header does not end with CRLF")
                    return False
                line = bytes(buffer[:end])
                del buffer[:end + 2]
                if b"\n" in line or b"\r" in line or b"\0" in line:
                    raise BadRequest("a chunk header does not end with CRLF")
                if self.trailers is not None:
                    self.trailers += end
                    if not line:
                        return True
                    if self.trailers > 8192:
                        raise BadRequest("too many trailers")
                    continue
                match = re.fullmatch(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?", line)
                if not match:
                    raise BadRequest("a chunk size is not a hexadecimal number")
                size = int(match.group(1), 16)
                self.size += size
                self.count += 1
                if self.count > 1024 + self.size // 16:
                    raise BadRequest("the body is cut into too many small chunks")
                if self.size > self.limit:
                    raise BodyTooLarge("the body is larger than %d bytes" % self.limit)
                if size:
                    self.left = size
                else:
                    self.trailers = 0


class Request:
    """One request, as a handler sees it."""
    __slots__ = ("head", "method", "path", "raw_query", "headers", "body", "peer", "id", "started", "secure",
                 "user",
                 "route", "args", "_query", "authorization", "share", "certificate", "caller", "audited")

    def __init__(self, head: Head, body: bytes, peer: str, request_id: str, secure: bool = False) -> None:
        self.head = head
        self.method = head.method
        target = head.target
        if not target.startswith("/") and target != "*":
            match = re.match(r"https?://([^/?]*)(.*)", target, re.IGNORECASE)
            if not match:
                raise BadRequest("the request target is neither a path nor an http URL")
            target = match.group(2) if match.group(2).startswith("/") else "/" + match.group(2)
            head.headers["host"] = match.group(1)       # RFC 9112, 3.2.2: it goes before the field
        self.path, _, self.raw_query = target.partition("?")
        self.headers = head.headers
        self.body = body
        self.peer = peer
        self.id = request_id
        self.started = time.monotonic()
        self.secure = secure
        self.user: Any = None
        self.route: Any = None
        self.args: Dict[str, str] = {}
        self.authorization: Optional[str] = None
        self.certificate: Optional[str] = None
        # whose share of what is limited it takes: the peer's, until it is known who asks
        self.caller = peer
        self.share: Any = None
        self.audited = False        # the audit trail has a line of it
        self._query: Optional[List[Tuple[str, str]]] = None

    @property
    def query(self) -> List[Tuple[str, str]]:
        """The query's names and values, decoded. Raises BadRequest."""
        if self._query is None:
            self._query = [(decode_percent(name, True), decode_percent(value, True)) for name, _, value in
                           (pair.partition("=") for pair in self.raw_query.split("&") if pair)]
        return self._query


def decode_percent(text: str, plus: bool = False) -> str:
    """Percent-decoded text. Raises BadRequest for what is not UTF-8 or not an encoding."""
    if "%" not in text and "+" not in text:
        return text
    if _BAD_PERCENT.search(text):
        raise BadRequest("%r is not percent-encoded correctly" % text[:200])
    try:
        return urllib.parse.unquote(text.replace("+", " ") if plus else text, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("%r is not UTF-8" % text[:200]) from None


class Response:
    """An answer: status, body and headers; the body may be plain JSON, encoded when first needed."""
    __slots__ = ("status", "_plain", "_body", "headers", "content_type", "_etag", "_gzip", "close", "code",
                 "heads")

    def __init__(self, status: int = 200, plain: Any = None, body: Optional[bytes] = None,
                 content_type: str = JSON_TYPE, headers: Iterable[Tuple[str, str]] = (), close: bool = False,
                 etag: Optional[str] = None, code: str = "") -> None:
        self.status = status
        self._plain = plain
        self._body = body
        self.content_type = content_type
        self.headers = list(headers)
        self.close = close
        self.code = code
        self._etag = etag
        self._gzip: Optional[bytes] = None
        # by the form of the answer: its header fields, made when first sent
        self.heads: Dict[Any, bytes] = {}

    @property
    def plain(self) -> Any:
        return self._plain

    @property
    def body(self) -> bytes:
        if self._body is None:
            self._body = (json.dumps(self._plain) + "\n").encode() if self._plain is not None else b""
        return self._body

    def settle(self) -> None:
        """Make the body, and let go of the larger thing that it is made from."""
        self._body, self._plain = self.body, None

    @property
    def etag(self) -> str:
        """A strong validator: a hash of the body."""
        if self._etag is None:
            self._etag = '"%s"' % hashlib.blake2b(self.body, digest_size=12).hexdigest()
        return self._etag

    @property
    def compressed(self) -> bytes:
        if self._gzip is None:
            self._gzip = gzip.compress(self.body, 5, mtime=0)       # the same bytes for the same ETag
        return self._gzip


def etag_matches(header: str, etag: str, weak: bool = True) -> bool:
    """Whether an If-Match or If-None-Match header names the ETag, or that of its gzip form. weak: W/ tags
    count too."""
    if header == etag or header.strip() == "*":
        return True
    found = re.findall(r'(W/)?("[^"]*")', header)
    return any((weak or not mark) and tag.replace('-gzip"', '"') == etag for mark, tag in found)


def error_response(error: Failure, key: Optional[str] = None) -> Response:
    """The JSON answer for a failure, as DESIGN says: status, key, code, errors, count and the error's own
    details."""
    plain: Json = {"status": "failure"}
    if key:
        plain["key"] = key
    plain.update(code=error.code, errors=error.messages or [type(error).__doc__ or "failed"], count=0)
    plain.update((name, value) for name, value in error.details.items() if value is not None)
    after = [("Retry-After", str(error.retry_after))] if error.retry_after else []
    return Response(error.http, plain, headers=error.headers + after, code=error.code)


# of a whole number in JSON: Python reads and writes longer ones in quadratic time
MAX_DIGITS = 400


def load_json(text: str, pairs: Optional[Callable[[List[Tuple[str, Any]]], Any]] = None) -> Any:
    """JSON that a stranger wrote: no NaN, no number of thousands of digits. Raises ValueError, for deep
    nesting too."""
    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ValueError("a number has more than %d digits" % MAX_DIGITS)
        return int(digits)

    def constant(name: str) -> Any:
        raise ValueError("%s is not JSON" % name)
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no name twice, and as `load_json` wants it. Raises BadRequest."""
    def pairs(items: List[Tuple[str, Any]]) -> Json:
        made = dict(items)
        if len(made) < len(items):
            raise ValueError("a name occurs twice in one object")
        return made
    try:
        return load_json(data.decode("utf-8"), pairs)
    except ValueError as error:
        raise BadRequest("the body is not JSON: %s" % error) from None


def gunzip(data: bytes, limit: int) -> bytes:
    """What a gzip body holds, in all its members (RFC 1952 2.2). Raises BadRequest, BodyTooLarge."""
    parts: List[bytes] = []
    size = 0
    while data or not parts:
        decoder = zlib.decompressobj(31)
        try:
            parts.append(decoder.decompress(data, limit + 1 - size))
        except zlib.error:
            raise BadRequest("the body is not gzip, as its content encoding says") from None
        size += len(parts[-1])
        if size > limit:
            raise BodyTooLarge("the body is larger than %d bytes" % limit)
        if not decoder.eof:
            raise BadRequest("the gzip body is not whole")
        if len(parts) > 100:
            raise BadRequest("the gzip body has more than 100 members")
        data = decoder.unused_data
    return b"".join(parts)


def parse_parameters(text: str) -> List[Tuple[str, str]]:
    """The `; name=value` of a header field, names in lower case, values without their quotes. What is none is
    passed over. One step a character: a regular expression that looks for names would begin anew at each
    letter."""
    found = []
    position = 0
    while position < len(text):
        end = text.find(";", position)
        end = len(text) if end < 0 else end
        equals = text.find("=", position, end)
        if equals >= 0:
            start = equals + 1
            while start < len(text) and text[start] in " \t":
                start += 1
            if text[start:start + 1] == '"':
                value, end = _quoted(text, start + 1)
                end = text.find(";", end)
                end = len(text) if end < 0 else end
            else:
                value = text[start:end].strip()
            found.append((text[position:equals].strip().lower(), value))
        position = end + 1
    return found


def _quoted(text: str, start: int) -> Tuple[str, int]:
    """(a quoted string from behind its first quote, where it ends)."""
    parts = []
    while start < len(text) and text[start] != '"':
        if text[start] == "\\" and text[start + 1:start + 2] == '"':      # browsers escape only the quote
            start += 1
        parts.append(text[start])
        start += 1
    return "".join(parts), start


def parse_content_type(text: str) -> Tuple[str, Dict[str, str]]:
    """Media type and parameters, names in lower case."""
    kind, _, rest = text.partition(";")
    return kind.strip().lower(), dict(parse_parameters(rest))


def parse_multipart(data: bytes, boundary: str) -> Dict[str, bytes]:
    """The files of a multipart/form-data body by name, in their order. Raises BadRequest."""
    if not boundary or len(boundary) > 200:
        raise BadRequest("multipart/form-data needs a boundary")
    mark = b"--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + data).split(b"\r\n" + mark, 302)
    if len(parts) > 302:
        raise BadRequest("more than 300 files")
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise BadRequest("the multipart body does not end with its boundary")
    files: Dict[str, bytes] = {}
    for part in parts[1:-1]:
        name, content = _part_of(part)
        path = os.path.normpath(name.replace("\\", "/"))
        if path.startswith(("/", "../")) or path == ".." or "\0" in path:
            raise BadRequest("the file name %r reaches outside" % name[:80])
        if path in files:
            raise BadRequest("the file %r is sent twice" % name[:80])
        files[path] = content
    return files


TAR_TYPES = ("application/x-tar", "application/tar", "application/x-gtar", "application/x-tgz")
MAX_DEPTH = 32          # of folders in a tar


def parse_tar(data: bytes) -> Dict[str, bytes]:
    """The files of a tar by path, without those that are no text. Raises BadRequest."""
    files: Dict[str, bytes] = {}
    for count, (name, content) in enumerate(_tar_members(data)):
        path = os.path.normpath(name)
        if path.startswith(("/", "../")) or path == ".." or path.count("/") > MAX_DEPTH:
            raise BadRequest("the path %r of the tar reaches outside, or too deep" % name[:80])
        if count >= 2000 or len(files) > 300:
            raise BadRequest("more than 300 files")
        with contextlib.suppress(UnicodeDecodeError):
            if content is not None and "\0" not in content.decode("utf-8-sig"):
                files[path] = content
    return files


def _tar_members(data: bytes) -> Iterator[Tuple[str, Optional[bytes]]]:
    """(path, content) of each file in a tar, (path, None) of each folder.

    Of the formats' many headers only those for long paths and sizes count. They are read here, since tarfile
    spends on some headers more time and memory than their length warrants. Whatever a header says, the next
    one stands behind it."""
    place, told = 0, 0
    more: Dict[str, bytes] = {}
    while data[place:place + 512].strip(b"\0"):
        header = data[place:place + 512]
        kind = header[156:157]
        checked = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if len(header) < 512 or _octal(header[148:156]) != checked:
            raise BadRequest("this is no tar, or one that is damaged at byte %d" % place)
        size = _octal(more.pop("size", header[124:136])) if kind not in b"xgLK" else _octal(header[124:136])
        content = data[place + 512:place + 512 + size]
        place += 512 + (size + 511) // 512 * 512
        if len(content) < size:
            raise BadRequest("the tar ends in the middle of a file")
        if kind in b"xgLK":
            told += size
            if told > 1 << 20:
                raise BadRequest("the headers of the tar are larger than 1 MB")
            more.update(_pax_records(content) if kind == b"x" else {"path": content} if kind == b"L" else {})
            continue
        name = header[345:500].rstrip(b"\0") + b"/" if header[257:263] == b"ustar\0" and header[345] else b""
        name = more.pop("path", name + header[:100]).partition(b"\0")[0]
        text = name.decode("utf-8", "replace")
        folder = kind == b"5" or kind == b"\0" and name.endswith(b"/")
        if kind not in b"\x0005" or "GNU.sparse" in more:
            raise BadRequest("%r in the tar is no plain file: links and devices are refused" % text[:80])
        more = {}
        yield text, None if folder else content
    if place >= len(data):
        raise BadRequest("the tar is not whole: its end is missing")


def _octal(field: bytes) -> int:
    """A number of a tar's header. Raises BadRequest."""
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{0,12}", text):
        raise BadRequest("the tar has a number that is none: %r" % text[:20])
    return int(text or b"0", 8)


def _pax_records(content: bytes) -> Dict[str, bytes]:
    """path, size (in octal, as in other headers) and whether the file is sparse, of a pax header: records
    of the form `LENGTH KEY=VALUE\\n`. Raises BadRequest."""
    found, place = {}, 0
    while place < len(content):
        digits = content[place:place + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 1 < length <= len(content) - place:
            raise BadRequest("the tar has a header that cannot be read")
        key, _, value = content[place + len(digits) + 1:place + length - 1].partition(b"=")
        place += length
        if key == b"path":
            found["path"] = value
        elif key == b"size":
            found["size"] = b"%o" % int(value) if re.fullmatch(rb"\d{1,10}", value) else value
        elif key.startswith(b"GNU.sparse"):
            found["GNU.sparse"] = value
    return found


def root_first(files: Dict[str, bytes], root: Optional[str], must: bool) -> Dict[str, bytes]:
    """The files with the one named `root` in front; where it must be named, it may be missing only if there
    is but one. Raises BadRequest."""
    if root is None and must and len(files) != 1:
        raise BadRequest("file= has to name the file of the tar that is the job's: %s" % ", ".join(
            sorted(files)[:50]))
    if root is None:
        return files
    path = os.path.normpath(root)
    if path not in files:
        raise BadRequest("file=%s: no such file among those sent: %s" % (
            root[:200], ", ".join(sorted(files)[:50])))
    return dict([(path, files[path])], **files)


def _part_of(part: bytes) -> Tuple[str, bytes]:
    """(the file name, or else the field's, of a part of a multipart body; its content)."""
    end = part.find(b"\r\n\r\n", 0, 8192)
    for line in part[:max(0, end)].split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            named = dict(parse_parameters(value.partition(b";")[2].decode("utf-8", "replace")))
            name = named.get("filename") or named.get("name")
            if name:
                return name, part[end + 4:]
    raise BadRequest("a part of the multipart body has no file name")


# --- waiting ------------------------------------------------------------------------------------------------


class Source:
    """Something that changes, and those who want to know. From any thread; no lock is held while a listener
    runs, and one that asks how things stand after `listen` and after each call misses nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()       # guards _listeners, and what subclasses say
        self._listeners: Dict[Callable[[], None], None] = {}

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have `listener` called after every change. False where nothing will change any more."""
        with self._lock:
            self._listeners[listener] = None
        return True

    def forget(self, listener: Callable[[], None]) -> None:
        with self._lock:
            left = self._listeners.pop(listener, self) is self or bool(self._listeners)
        if not left:
            self.deserted()

    def deserted(self) -> None:
        """Called when the last listener has gone."""

    def changed(self) -> None:
        """Call all listeners; a defect in one is raised when the others have been called."""
        defect: Optional[Exception] = None
        for each in tuple(self._listeners):
            try:
                each()
            except Exception as error:
                defect = error
        if defect is not None:
            raise defect


class Later:
    """An answer that one caller waits for without holding a thread. It is what `ready` returns after a change
    of the source, or `otherwise` when the time is up, the server stops or the caller has said all; or none,
    when he goes. Both are called in whichever thread that happens in, and must not block. ended: called when
    the wait is over."""

    def __init__(self, source: Source, seconds: float, ready: Callable[[], Optional[Response]],
                 otherwise: Callable[[], Response], ended: Callable[[], None] = lambda: None) -> None:
        self.source = source
        self.seconds = seconds
        self.ready = ready
        self.otherwise = otherwise
        self.ended = ended
        self._send: Optional[Callable[[Response], None]] = None
        self._late = False                  # it was to end, perhaps before anybody had said how to send
        self._once = threading.Lock()       # taken by what ends the wait
        self.listening = source.listen(self.look)

    def start(self, send: Callable[[Response], None]) -> None:
        """How to send the answer; sent at once where it is ready."""
        self._send = send
        self.look()
        if self._late:
            self.expire()

    def look(self) -> None:
        answer = self.ready() if self._send else None
        if answer is not None:
            self._end(lambda: answer)

    def expire(self) -> None:
        self._late = True       # first: `start` looks at it after it has set _send
        if self._send is not None:
            self._end(self.otherwise)

    def gone(self) -> None:
        self._end(None)

    def _end(self, answer: Optional[Callable[[], Optional[Response]]]) -> None:
        if self._once.acquire(blocking=False):
            self.source.forget(self.look)
            self.ended()
            if answer is not None and self._send is not None:
                self._send(answer())    # type: ignore[arg-type]

    def again(self) -> Later:
        """The same wait for somebody else. What is to be done when it is over is done when both are."""
        first_over, ended = threading.Lock(), self.ended

        def over() -> None:
            if not first_over.acquire(blocking=False):
                ended()
        self.ended = over
        return Later(self.source, self.seconds, self.ready, self.otherwise, over)


class Stream:
    """A text/event-stream of what changes in a source. since: from a mark, the bytes that are new and the
    mark after them, nothing if nothing is, None at the end of all; it is asked only when the network took all
    there was, so a slow caller holds one piece.

    `look` is called by whoever has news: the source's thread, or a worker when the network took all. One
    thread at a time asks and sends; one that comes meanwhile does not wait for it, it has it look once
    more. So `gone` and `expire` return at once, although what `since` asks may take its time."""
    head = Response(200, body=b"", content_type="text/event-stream",
                    headers=[("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")], close=True)
    opening = b": welcome\nretry: 2000\n\n"
    beat = b": heartbeat\n\n"        # what keeps it alive while there is no news
    stopping = b'event: end\ndata: {"reason": "the server is stopping"}\n\n'
    ending = b""

    def __init__(self, source: Source, since: Callable[[Any], Tuple[Optional[bytes], Any]],
                 mark: Any = None) -> None:
        self.source = source
        self.since = since
        self.mark = mark                    # touched by who holds _turn
        self._sink: Any = None
        self._lock = threading.Lock()       # guards _sink: nothing is sent behind the end
        self._turn = threading.Lock()       # held by who asks and sends
        self._again = False
        self._late = False
        self._once = threading.Lock()       # taken by what ends the stream
        self.listening = source.listen(self.look)

    def start(self, sink: Any) -> None:
        """sink: `full`, whether the network still has to take something; `push`, to send bytes; `finish`, to
        end."""
        with self._lock:
            self._sink = sink
            if self.opening:
                sink.push(self.opening)
        self.look()
        if self._late:
            self.expire()

    def look(self) -> None:
        """Send what is new. Called after changes, and when the sink is no longer full."""
        self._again = True      # first: who holds the turn looks at it after it has let go
        while self._again and self._turn.acquire(blocking=False):
            try:
                self._again = False
                over = self._send()
            finally:
                self._turn.release()
            if over:
                self._end(self.ending)

    def _send(self) -> bool:
        """Send until the sink is full or there is nothing more; True at the end of all."""
        while True:
            sink = self._sink
            if sink is None or sink.full:
                return False
            data, self.mark = self.since(self.mark)
            if not data:
                return data is None
            with self._lock:
                if self._sink is not None:
                    sink.push(self.framed(data))

    def framed(self, data: bytes) -> bytes:
        """The bytes as they go out."""
        return data

    def expire(self) -> None:
        self._late = True
        if self._sink is not None:
            self._end(self.stopping)

    def gone(self) -> None:
        self._end(b"")

    def _end(self, last: bytes) -> None:
        if self._once.acquire(blocking=False):
            self.source.forget(self.look)
            with self._lock:
                sink, self._sink = self._sink, None
            if sink is not None:
                if last:
                    sink.push(last)
                sink.finish()


class Download(Stream):
    """A body of any length, never held in memory: `since` gives its pieces, None at the end. head: the
    answer's status and fields. With a Content-Length among them a body that ends early is seen to be cut;
    without one it is sent in chunks (chunked; not to HTTP/1.0), and what the caller does not see is the
    last chunk."""
    opening = beat = stopping = b""

    def __init__(self, head: Response, source: Source, since: Callable[[Any], Tuple[Optional[bytes], Any]],
                 mark: Any = None, chunked: bool = False) -> None:
        super().__init__(source, since, mark)
        head.close = True
        self.head = head
        self.chunked = chunked
        if chunked:
            head.headers.append(("Transfer-Encoding", "chunked"))
            self.ending = b"0\r\n\r\n"

    def framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data


class Poll(Source):
    """A question asked again and again while somebody listens for its answer, however many they are.

    ask: called in a worker every `interval` seconds. It ends `linger` seconds after the last listener went.
    delayed: who begins to watch has just asked himself, so that the first question comes after an interval.
    """

    def __init__(self, runner: Any, ask: Callable[[], Any], interval: float, linger: float = 0.0,
                 delayed: bool = False) -> None:
        super().__init__()
        self.delayed = delayed
        self.runner = runner
        self.ask = ask
        self.interval = interval
        self.linger = linger
        self.answer: Any = None             # the latest, or the Failure
        self.asked = 0.0                    # when that was asked
        self.ended = False                  # nobody listened; guarded by _lock as _listeners is
        self._left = time.monotonic()

    @property
    def waiters(self) -> int:
        return len(self._listeners)

    def listen(self, listener: Callable[[], None]) -> bool:
        with self._lock:
            if not self.ended:
                self._listeners[listener] = None
            return not self.ended

    def deserted(self) -> None:
        self._left = time.monotonic()

    def start(self, seconds: float = 0.0) -> None:
        self.runner.call_later(seconds, partial(self.runner.run_in_worker, self._turn))

    def _turn(self) -> None:
        started = time.monotonic()
        with self._lock:
            self.ended = not self._listeners and started - self._left >= self.linger
        if self.ended:
            return
        try:
            answer = self.ask()
        except Failure as error:
            answer = error
        # a defect, or an answer of no known shape: the watchers are told, and it polls on
        except Exception as error:
            answer = Failure("the answer cannot be read: %s" % type(error).__name__, http=502,
                             code="BAD_ANSWER")
        try:
            self.answer, self.asked = answer, started
            self.note(answer)
            self.changed()
        finally:
            self.start(max(0.0, self.interval - (time.monotonic() - started)))

    def note(self, answer: Any) -> None:
        """Called with each answer before the listeners are."""


def event_bytes(event_id: str, name: str, plain: Any) -> bytes:
    """An event of a text/event-stream; without an id the caller keeps the one it has."""
    return ("%sevent: %s\ndata: %s\n\n" % ("id: %s\n" % event_id if event_id else "", name,
                                           json.dumps(plain))).encode()


class Events(Poll):
    """A Poll whose answers are the events that are new: numbered, the last ones kept so that a caller can
    resume.

    ask: called for the new events, (name, plain); its `standing` tells how things stand, as (time, name,
    plain).
    """
    KEPT = 2000
    PIECE = 256         # events given at once
    NEXT = "next"

    def __init__(self, runner: Any, ask: Any, interval: float) -> None:
        super().__init__(runner, ask, interval, linger=30.0)
        self.changes = ask
        self.epoch = secrets.token_hex(4)
        self._number = 0                    # of the latest event; guarded by _lock as all that follows
        self._history: Deque[bytes] = collections.deque(maxlen=self.KEPT)
        self._first: Optional[int] = None   # how many events the first look told: how things stood then
        # how things stand after the latest event, once that is known
        self._found: Optional[List[Any]] = None
        self._failing = False
        self._standing: Tuple[int, List[bytes]] = (-1, [])      # how things stood after so many events

    def mark(self, last_id: str, whole: bool = True) -> Any:
        """Where a caller that has this Last-Event-ID goes on; None: with how things stand; NEXT: with what
        comes next, where he does not want the whole."""
        epoch, _, number = last_id.partition("-")
        if not last_id:
            with self._lock:
                return None if whole else self.NEXT if self._first is None else self._number
        return int(number) if epoch == self.epoch and re.fullmatch(r"\d{1,15}", number, re.ASCII) else -1

    def since(self, mark: Any) -> Tuple[bytes, Any]:
        """What follows a mark, a piece of it, and the mark after that. A mark is the number of the last event
        told; or, while a caller is told how things stand, (those pieces, how many were told, the event that
        they stand after)."""
        with self._lock:
            if self._first is None:
                return b"", mark
            mark = max(self._first, 0) if mark == self.NEXT else mark
            oldest, gap = self._number - len(self._history), b""
            if isinstance(mark, int) and not oldest <= mark <= self._number:
                gap = event_bytes("", "gap", {"reason": "the events in between are not known any more"})
                mark = None
            if mark is None and self._number == self._first <= self.KEPT:
                mark = 0            # nothing has happened since the first look
            elif mark is None:
                mark = oldest if self._found is None else (self._stand(), 0, self._number)
            if isinstance(mark, tuple):
                pieces, told, number = mark
                told += self.PIECE
                data = gap + b"".join(pieces[told - self.PIECE:told])
                mark = (pieces, told, number) if told < len(pieces) else number
                if data:
                    return data, mark
            fresh = list(itertools.islice(reversed(self._history), self._number - mark))[::-1][:self.PIECE]
            return gap + b"".join(fresh), mark + len(fresh)

    def _stand(self) -> List[bytes]:
        """How things stand, as events; only the last has an id, so that one who loses the middle is told all
        again."""
        number, pieces = self._standing
        if number != self._number:
            found = self._found or []
            pieces = [event_bytes("" if left else "%s-%d" % (self.epoch, self._number), name, plain)
                      for left, (_, name, plain) in zip(range(len(found) - 1, -1, -1), found)]
            self._standing = (self._number, pieces)
        return pieces

    def note(self, answer: Any) -> None:
        if isinstance(answer, Failure):
            failing, answer = self._failing, [("error", {"code": answer.code, "errors": answer.messages})]
            self._failing = True
            if failing:
                return
        else:
            self._failing = False
        with self._lock:
            for name, plain in answer:
                self._number += 1
                self._history.append(event_bytes("%s-%d" % (self.epoch, self._number), name, plain))
            if not self._failing:
                self._found = self.changes.standing
            if self._first is None and not self._failing:
                self._first = self._number
            elif self._first is None:
                self._first = -1        # an error came first: who comes next is told how things stand


# --- the server ---------------------------------------------------------------------------------------------


class Budget:
    """Bytes held for callers: at most `most` for all together, and a quarter of that, or `least`, for one of
    them; so that one who takes much takes it from himself. For any thread; _lock guards all and by_caller."""

    def __init__(self, most: float, least: float = 0) -> None:
        self.most = most
        self.share = max(most / 4, least)
        self.all = 0.0
        self.by_caller: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, caller: str, more: int, wanted: int = 0) -> str:
        """Count more bytes, or fewer; which bound they and what is `wanted` besides go over: "", "all" or
        "caller"."""
        with self._lock:
            self.all += more
            self.by_caller[caller] += more
            mine = self.by_caller[caller]
            if not mine:
                del self.by_caller[caller]
            return "all" if self.all + wanted > self.most else "caller" if mine + wanted > self.share else ""


class App:
    """What a server serves. Subclasses answer; an exception that any of these lets out is a defect."""

    def prepare(self, request: Request) -> None:
        """Called in the reading thread before anything else: find the route, set `share`."""

    def admit(self, request: Request) -> None:
        """Called with a prepared request whose body is still to come; raises the Failure it gets if it is not
        taken."""

    def is_quick(self, request: Request) -> bool:
        """Whether `handle` neither blocks nor takes long, so that the reading thread may call it."""
        return False

    def handle(self, request: Request) -> Union[Response, Later, Stream]:
        raise NotImplementedError

    def refuse(self, error: Failure, request: Optional[Request] = None) -> Response:
        """The answer to what is no request, or cannot be taken."""
        return error_response(error)

    def warn(self, text: str) -> None:
        """Called with what an operator should know."""

    def broken(self, error: Exception) -> None:
        """Called for an exception that is a defect of ours, to be logged."""

    def dress(self, request: Request, response: Response) -> Response:
        """The answer in the form that the request wants."""
        return response

    def extra_headers(self, request: Request) -> Sequence[Tuple[str, str]]:
        """Header fields for any answer to this request."""
        return ()

    def finished(self, request: Optional[Request], peer: str, response: Response, size: int) -> None:
        """Called when an answer was handed to the network, for the log and the metrics."""


def waits_for(error: OSError, plain: int) -> int:
    """What a non-blocking socket that raised this has to wait for: a poll mask, `plain` unless TLS says
    otherwise, or 0 where the error is one. TLS may have to write to read, and to read to write."""
    if isinstance(error, (BlockingIOError, InterruptedError)):
        return plain
    return {"SSLWantReadError": select.POLLIN, "SSLWantWriteError": select.POLLOUT}.get(type(error).__name__,
            0)


def _reason(error: BaseException) -> str:
    """An OS or TLS error in the words callers know."""
    if isinstance(error, socket.timeout):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "line %d" % trace.tb_lineno if trace else "?"


class Timer(list):      # type: ignore[type-arg]
    """[when, serial, function]: a function that is to be called once."""

    def cancel(self) -> None:
        self[2] = None      # and lets go of what it would have been about


class Loop:
    """What a thread does that waits for all sockets: `turn` is one wait with the calls that follow. One
    thread at a time turns it, that which `own`ed it last; `soon`, `later` and `stop` are for all threads, the
    rest for that one alone."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call           # how to call what may fail
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._woken = False
        self._soon: Deque[Tuple[Callable[..., None], Tuple[Any, ...]]] = collections.deque()
        self._timers: List[Timer] = []
        self._serial = itertools.count()
        self._thread = 0            # the one that turns it, 0 while that passes from one to another
        self.stopping = False
        self.turned = time.monotonic()
        for each in (self._wake_in, self._wake_out):
            each.setblocking(False)
        self.watch(self._wake_in, 0, selectors.EVENT_READ, self._drain_wakes)

    def soon(self, function: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((function, arguments))
        if threading.get_ident() != self._thread:
            self._wake()

    def later(self, seconds: float, function: Callable[[], None]) -> Timer:
        timer = Timer((time.monotonic() + seconds, next(self._serial), function))
        if threading.get_ident() == self._thread:
            heapq.heappush(self._timers, timer)
        else:
            self.soon(heapq.heappush, self._timers, timer)
        return timer

    def stop(self) -> None:
        self.stopping = True
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):
                self._wake_out.send(b"\0")

    def _drain_wakes(self, mask: int) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.recv(4096)
        # only now: a byte written in between would be taken while the flag says it is there
        self._woken = False

    def own(self, thread: int) -> None:
        self._thread = thread

    def turn(self) -> None:
        timers = self._timers
        timeout = 0.0 if self._soon else max(0.0, timers[0][0] - time.monotonic()) if timers else None
        for key, mask in self._selector.select(timeout):
            self._call(key.data, mask)
        for _ in range(len(self._soon)):
            function, arguments = self._soon.popleft()
            self._call(function, *arguments)
        now = time.monotonic()
        while timers and (timers[0][0] <= now or timers[0][2] is None):
            function = heapq.heappop(timers)[2]
            if function is not None:
                self._call(function)

    def watch(self, sock: Any, before: int, mask: int, on_event: Callable[[int], None]) -> None:
        """Which events of a socket to wait for, and which those were before."""
        with contextlib.suppress(KeyError, ValueError, OSError):
            if not before:
                self._selector.register(sock, mask, on_event)
            elif not mask:
                self._selector.unregister(sock)
            else:
                self._selector.modify(sock, mask, on_event)

    def prune(self) -> None:
        """Let go of timers that were cancelled, where they are many."""
        alive = [each for each in self._timers if each[2] is not None]
        if 2 * len(alive) < len(self._timers):
            self._timers[:] = alive
            heapq.heapify(self._timers)

    def close(self) -> None:
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

_LEAD = object()        # in the queue of Workers: whoever takes it turns the loop


class Workers:
    """Threads that run what is put into a queue. One of them leads: it turns the loop, and what the loop
    holds for it it runs itself while an idle thread leads: so a request waits for no other thread to wake up.
    `hold` is for the leader."""

    def __init__(self, loop: Loop, most: float, call: Callable[..., Any]) -> None:
        self.loop = loop
        self.most = most
        self._call = call
        self._held: Optional[Callable[[], None]] = None     # touched by the leader alone
        self.ended = threading.Event()      # nobody leads any more
        self.failure = ""                   # why, where it was not told to end
        self.queue: SimpleQueue[Any] = SimpleQueue()        # None: end
        self._lock = threading.Lock()   # guards threads, _idle, _queued
        self.threads = 0
        self.refused = 0                # threads that could not be started
        self._idle = 0
        self._queued = 0                # in the queue, or just taken by a thread that still counts as idle

    def put(self, work: Any) -> None:
        with self._lock:
            self._put(work)
            if self._queued > self._idle:
                self._add()

    def hold(self, work: Callable[[], None]) -> None:
        if self._held is None:
            self._held = work
        else:
            self.put(work)

    def end(self) -> None:
        for _ in range(self.threads):
            self.queue.put(None)

    def _put(self, work: Any) -> None:
        self._queued += 1
        self.queue.put(work)

    def _add(self) -> bool:
        """One more thread, if there may be one: work has `most`, and one leads. With the lock held."""
        if self.threads > self.most:
            return False
        try:
            threading.Thread(target=self._work, name="http-worker", daemon=True).start()
        except RuntimeError:        # no more threads to be had: those there are go on
            self.refused += 1
            return False
        self.threads += 1
        return True

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work: Any = None
            with contextlib.suppress(QueueEmpty):
                work = self.queue.get(timeout=30)
            with self._lock:
                self._idle -= 1
                self._queued -= work is not None
                if work is None and self._queued and not self.loop.stopping:
                    continue
                if work is None:
                    self.threads -= 1
                    return
                if self._queued > self._idle:
                    self._add()
            if work is _LEAD:
                work = self._lead()
            if work is not None:
                self._call(work)

    def _lead(self) -> Optional[Callable[[], None]]:
        """Turn the loop until there is something to run while another thread turns it. None at the end of
        all."""
        passed = False
        self.loop.own(threading.get_ident())
        try:
            while not self.loop.stopping:
                self.loop.turn()
                if self._held is not None:
                    work, self._held = self._held, None
                    with self._lock:
                        passed = self._queued < self._idle or self._add()
                        if passed:
                            self.loop.own(0)
                            self._put(_LEAD)
                    if passed:
                        return work
                    self.put(work)
            return None
        except Exception as error:
            self.failure = "%s: %s at %s" % (type(error).__name__, error, _place(error))
            return None
        finally:
            if not passed:
                self.ended.set()


class Incoming:
    """What arrives on a connection, made into requests. It has no socket, no clock and no thread: bytes go in
    by `feed`, `next` takes out what is whole; when it raises, what follows in the stream cannot be
    trusted."""
    __slots__ = ("_limits", "_parse", "buffer", "head", "_chunks", "_scanned")

    def __init__(self, limits: Dict[str, float], parse: Callable[[bytes], Head]) -> None:
        self._limits = limits
        self._parse = parse
        self.buffer = bytearray()       # received and not yet taken
        self.head: Optional[Head] = None            # of the request whose body is still to come
        self._chunks: Optional[ChunkedBody] = None
        self._scanned = 0               # bytes of the buffer in which no end of a head was found

    def feed(self, data: bytes) -> None:
        self.buffer += data

    @property
    def held(self) -> int:
        """Bytes of the body that is arriving."""
        return 0 if self.head is None else len(self.buffer) + (self._chunks.size if self._chunks else 0)

    def next(self) -> Optional[Tuple[Head, Optional[bytes]]]:
        """The next request's head and body; before that, once, its head and None where it has a body, so that
        it can be refused before that is held. None: more has to be fed."""
        head = self.head
        if head is None:
            head = self._take_head()
            if head is None or not head.length:
                return None if head is None else (head, b"")
            self.head = head
            self._chunks = ChunkedBody(int(self._limits["body"])) if head.length < 0 else None
            return head, None
        if self._chunks is not None:
            if not self._chunks.feed(self.buffer):
                return None
            body = b"".join(self._chunks.parts)
        elif len(self.buffer) < head.length:
            return None
        else:
            body = bytes(self.buffer[:head.length])
            del self.buffer[:head.length]
        self.head = self._chunks = None
        return head, body

    def _take_head(self) -> Optional[Head]:
        buffer, limits = self.buffer, self._limits
        while buffer[:2] == b"\r\n":
            del buffer[:2]
        start = max(0, self._scanned - 3)
        end = buffer.find(b"\r\n\r\n", start)
        if end < 0 or end > limits["headers"] + limits["url"]:
            if len(buffer) > limits["headers"] + limits["url"]:
                first = buffer.find(b"\r\n")
                if first < 0 or first > limits["url"] + 32:
                    raise UriTooLong("the request target is longer than %d bytes" % limits["url"])
                raise TooManyHeaders("the header fields are larger than %d bytes" % limits["headers"])
            if _BARE_LINE_END.search(buffer, start):
                raise BadRequest("a line of the request head does not end with CRLF")
            self._scanned = len(buffer)
            return None
        raw = bytes(buffer[:end])
        del buffer[:end + 4]
        self._scanned = 0
        if end - raw.find(b"\r\n") - 2 > limits["headers"] and b"\r\n" in raw:
            raise TooManyHeaders("the header fields are larger than %d bytes" % limits["headers"])
        return self._parse(raw)


def head_parser(limits: Dict[str, float]) -> Callable[[bytes], Head]:
    """parse_head with these limits. Heads repeat on kept-alive connections: the latest are remembered, but
    for those with credentials."""
    parse = partial(parse_head, header_count=int(limits["header_count"]), url=int(limits["url"]))
    known = lru_cache(maxsize=256)(parse)
    return lambda raw: (parse if b"authorization" in raw.lower() else known)(raw)


class Run:
    """One run of the app's handler, for all that asked for the same before it began. callers: guarded by the
    server's _lock until it begins, when nobody joins any more."""
    __slots__ = ("request", "since", "callers")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since = request.started
        self.callers: List[Tuple[Connection, Request]] = []


class Channel:
    """A caller's socket, which never blocks: what the network does not take at once waits in `out`. In the
    loop's thread: all that begins with on_, close, linger. In any: push."""
    __slots__ = ("server", "socket", "peer", "lock", "out", "deadline", "since", "busy", "ended", "closing",
                 "done",
                 "lingering", "closed", "mask", "handshaking", "unsent", "taker", "taken_since", "taken",
                 "answered",
                 "incoming")

    def __init__(self, server: HttpServer, sock: Any, peer: str) -> None:
        self.server = server
        self.socket = sock
        self.peer = peer
        # guards the socket, out, busy, closing and closed: any thread may send
        self.lock = threading.Lock()
        self.incoming = Incoming(server.limits, server.parse)
        self.busy = False               # a request is being answered
        self.out = bytearray()          # of the answer, what the network did not take yet
        self.deadline = time.monotonic() + server.limits["header_time"]
        self.since = 0.0                # when the request began to arrive
        self.unsent = 0                 # bytes of out that are counted
        self.taker = peer               # whose share they are counted in
        self.taken_since = 0.0          # when the network last had taken all, and what it took since then
        self.taken = 0
        self.answered = False           # once: it is no newcomer whose first request is still to come
        self.ended = False              # the caller sends nothing more
        self.closing = False            # nothing more is read: close when all is sent
        self.done = False               # the last bytes of the answer are among those sent or in out
        self.lingering = False          # answered and shut down; what still comes is thrown away
        self.closed = False
        self.mask = 0
        self.handshaking = server.tls is not None
        self.interest(selectors.EVENT_READ)

    def on_input(self) -> None:
        """Called when bytes have come, or their end."""
        raise NotImplementedError

    def on_sent(self) -> None:
        """Called when the network took something, or the state of the answer changed."""
        raise NotImplementedError

    def on_answered(self) -> None:
        """Called, with the lock held, when the last byte of an answer is with the network."""

    def on_close(self) -> None:
        """Called when the socket is closed."""

    def interest(self, mask: int) -> None:
        """Which events of the socket to wait for."""
        if not self.closed and mask != self.mask:
            self.server.loop.watch(self.socket, self.mask, mask, self.on_event)
            self.mask = mask

    def on_event(self, mask: int) -> None:
        if self.handshaking:
            self._shake_hands()
            return
        if mask & selectors.EVENT_WRITE:
            self.push(b"")
        if mask & selectors.EVENT_READ and not self.closed:
            self.on_input()

    def _shake_hands(self) -> None:
        import ssl
        try:
            with self.lock:
                self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.interest(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self.interest(selectors.EVENT_WRITE)
        except (OSError, ValueError):
            self.server.refusals["tls"] += 1
            self.close()
        else:
            self.handshaking = False
            self.interest(selectors.EVENT_READ)
            self.on_input()

    @property
    def full(self) -> bool:
        """Whether the network still has to take something."""
        return bool(self.out) or self.closed

    def push(self, data: bytes, close: bool = False, done: bool = False) -> None:
        """Give bytes to the network, and keep what it does not take for the loop. done: the answer is
        whole."""
        with self.lock:
            if self.closed:
                return
            self.closing |= close
            self.done |= done
            now = time.monotonic()
            if self.out:
                self.out += data
                data = b""
            else:
                self.taken_since, self.taken = now, 0
                self.deadline = now + self.server.limits["send_time"]
            try:
                if self.out:
                    sent = self.socket.send(memoryview(self.out)[:1 << 18])
                    del self.out[:sent]
                    self.taken += sent
                elif data:
                    sent = self.socket.send(data)
                    if sent < len(data):
                        self.out += memoryview(data)[sent:]
                self.deadline = now + self.server.limits["send_time"]
            except OSError as error:
                if not waits_for(error, select.POLLOUT):
                    self.server.loop.soon(self.close)
                    return
                self.out += data
            left = bool(self.out)
            if left or self.unsent:
                self._count_unsent()
            if self.done and not left:
                self.busy = self.done = False
                self.answered = True
                self.deadline = now + self.server.limits["idle_time"]
                self.on_answered()
        busy = left or self.mask & selectors.EVENT_WRITE or self.incoming.buffer
        if busy or self.closing or self.ended or not self.mask:
            self.server.loop.soon(self.on_sent)

    def _count_unsent(self) -> None:
        """Count what the network has not taken, and close where that is more than may wait. With the lock
        held."""
        held, self.unsent = self.unsent, len(self.out)
        if self.server.unsent.add(self.taker, self.unsent - held) and self.unsent > held:
            self.server.refusals["unsent"] += 1
            self.server.loop.soon(self.close)

    def linger(self) -> None:
        """Close so that the answer arrives even where the caller is still sending: wait for its end for a
        moment."""
        if self.ended or self.lingering:
            self.close()
            return
        self.lingering = True
        self.deadline = time.monotonic() + self.server.LINGER
        self.busy = False
        self.incoming.buffer.clear()
        self._say_goodbye()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            self.close()

    def _say_goodbye(self) -> None:
        """TLS's close_notify, so that the caller knows an end from a cut (RFC 8446 6.1); its own is not
        waited for."""
        unwrap = getattr(self.socket, "unwrap", None)
        if unwrap is not None and not self.handshaking:
            with contextlib.suppress(OSError, ValueError):
                unwrap()

    def close(self) -> None:
        with self.lock:
            if self.closed:
                return
            self.interest(0)
            self.closed = True
            if not self.lingering and not self.out:
                self._say_goodbye()
            with contextlib.suppress(OSError):
                self.socket.close()
        self.server.unsent.add(self.taker, -self.unsent)
        self.unsent = 0
        self.server.connections.discard(self)       # type: ignore[arg-type]
        self.on_close()


class Connection(Channel):
    """One caller. In the loop's thread: all that begins with on_, advance, close, linger, look. In any:
    respond, push.

    A caller is `busy` from the first byte of a request to the last of its answer. Who makes it unbusy looks
    at the buffer afterwards, and who fills the buffer looks at busy afterwards: so what was received is never
    left lying.
    """
    __slots__ = ("request", "reserved", "counted_for", "waiting", "timer")

    def __init__(self, server: HttpServer, sock: Any, peer: str) -> None:
        self.request: Optional[Request] = None      # the one whose body is arriving
        self.reserved = 0               # bytes counted for the body that is arriving, until it is answered
        self.counted_for = ""           # whose share they are counted in
        self.waiting: Any = None        # the Later or Stream that the caller waits on
        self.timer: Optional[Timer] = None
        super().__init__(server, sock, peer)

    def on_input(self) -> None:
        try:
            with self.lock:
                data = self.socket.recv(65536)
                while data and self.server.tls is not None and self.socket.pending():
                    data += self.socket.recv(65536)
        except OSError as error:
            if not waits_for(error, select.POLLIN):
                self.close()
            return
        if not data:
            self.on_end()
        elif not self.lingering and not self.closing:
            self.incoming.feed(data)
            if not self.busy:
                self.advance()
            elif len(self.incoming.buffer) > 65536:
                self.interest(self.mask & ~selectors.EVENT_READ)

    def on_end(self) -> None:
        """The caller has said all, or is gone; waiting, it gets now what there is to say."""
        self.ended = True
        if not self.busy and not self.out or isinstance(self.waiting, Stream):
            self.close()
            return
        self.interest(self.mask & ~selectors.EVENT_READ)
        waiting = self.waiting
        if waiting is not None:
            self.server.workers.put(waiting.expire)

    def advance(self) -> None:
        """Take the requests that are whole."""
        try:
            for turn in itertools.count():
                if self.busy or self.closed or self.closing:
                    return
                if turn >= 8:       # a caller that sends many requests at once leaves room for the others
                    self.server.loop.soon(self.advance)
                    return
                found = self.incoming.next()
                if found is None:
                    self._need_more()
                    return
                if found[1] is None:
                    self._admit(found[0])
                    continue
                request, self.request = self.request or self.server.request(self, found[0]), None
                request.body = found[1]
                self.since = 0.0
                self.busy = True
                self.server.dispatch(self, request)
                if not self.incoming.buffer and not self.busy and not self.ended:
                    return
        except Failure as error:
            self.refuse(error)

    def _need_more(self) -> None:
        now, limits, incoming = time.monotonic(), self.server.limits, self.incoming
        if self.ended:
            self.close()
        elif incoming.head is not None:
            self.count(incoming.held)
            self.deadline = now + self.server.GRACE
        elif incoming.buffer and not self.since:
            self.since = now
            self.deadline = now + limits["header_time"]

    def _admit(self, head: Head) -> None:
        """Whether to take a body at all: before any of it is held. Raises the Failure that the request
        gets."""
        self.since = time.monotonic()
        self.request = self.server.request(self, head)
        if head.length > self.server.limits["body"]:
            raise BodyTooLarge("the body is larger than %d bytes" % self.server.limits["body"])
        self.server.app.admit(self.request)
        self.count(self.incoming.held, max(0, head.length))
        if head.expects and not self.incoming.buffer:
            self.push(b"HTTP/1.1 100 Continue\r\n\r\n")

    def count(self, held: int, wanted: int = 0) -> None:
        """Count the bytes that this request's body takes towards those of all, and of its caller. Raises
        Overloaded."""
        caller = self.counted_for or (self.request.caller if self.request else self.peer)
        over = self.server.bodies.add(caller, held - self.reserved, max(0, wanted - held))
        self.counted_for, self.reserved = caller if held else "", held
        if over and (held or wanted):
            raise Overloaded("too many request bodies are under way%s; try again" % (
                " of this caller" if over == "caller" else ""))

    def refuse(self, error: Failure) -> None:
        """Answer what is no request or cannot be taken, and close: what follows in the stream cannot be
        trusted."""
        self.server.refusals[error.code.lower()] += 1
        request, self.request = self.request, None
        self.busy = True
        self.incoming = Incoming(self.server.limits, self.server.parse)
        self.respond(request, self.server.app.refuse(error, request), True)

    def answer(self, request: Request, answer: Union[Response, Later, Stream]) -> None:
        """Give the answer, or have it given when it comes."""
        if isinstance(answer, Response):
            self.respond(request, answer)
            return
        self.waiting = answer
        if isinstance(answer, Stream):
            data = self.server.encode(request, answer.head, stream=True)
            self.server.app.finished(request, self.peer, answer.head, 0)
            self.push(data)
            if request.method == "HEAD":
                answer.gone()
                self.finish()
            else:
                answer.start(self)
        else:
            self.timer = self.server.loop.later(answer.seconds,
                                                partial(self.server.workers.put, answer.expire))
            answer.start(partial(self.respond, request))
        # What happened while the answer was made, and found nobody waiting:
        if self.closed:
            answer.gone()
        elif self.server.draining:
            answer.expire()
        elif self.ended:
            self.server.loop.soon(self.on_end)

    def respond(self, request: Optional[Request], response: Response, close: bool = False) -> None:
        self.waiting = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        close = close or response.close or self.server.draining
        close = close or request is None or not request.head.keep_alive
        if request is not None and not self.unsent:
            self.taker = request.caller
        if request is not None:
            response = self.server.app.dress(request, response)
        data = self.server.encode(request, response, close)
        self.server.app.finished(request, self.peer, response, len(data))
        self.push(data, close, done=True)

    def finish(self) -> None:
        """The end of a stream."""
        self.waiting = None
        self.push(b"", close=True, done=True)

    def on_sent(self) -> None:
        if self.closed:
            return
        reading = 0 if self.ended else selectors.EVENT_READ
        self.interest(reading | selectors.EVENT_WRITE if self.out else reading)
        if self.out:
            return
        waiting = self.waiting
        if isinstance(waiting, Stream):
            self.server.workers.put(waiting.look)
        if self.closing and not self.waiting:
            self.linger()
        elif not self.busy:
            self.advance()

    def on_answered(self) -> None:
        if self.reserved:
            self.server.loop.soon(self.count, 0)

    def on_close(self) -> None:
        self.count(0)
        waiting, self.waiting = self.waiting, None
        if self.timer is not None:
            self.timer.cancel()
        if waiting is not None:
            waiting.gone()

    def look(self, now: float) -> None:
        """End what ran out of time."""
        if not self.out and (self.waiting is not None or self.busy):
            return
        incoming, late = self.incoming, now > self.deadline
        if incoming.head is not None and not self.out:
            seconds = now - self.since
            late = late or seconds > self.server.GRACE and incoming.held < self.server.limits[
                "body_rate"] * seconds
        if self.out and now - self.taken_since > self.server.GRACE:
            late = late or self.taken < self.server.limits["send_rate"] * (now - self.taken_since)
        if late and not (self.busy or self.out or self.lingering or self.handshaking) and (incoming.buffer
                or incoming.head):
            self.refuse(RequestTimeout("the request did not arrive in time"))
        elif late:
            self.close()


class HttpServer(http.server.ThreadingHTTPServer):
    """A ThreadingHTTPServer whose threads take requests instead of connections: Workers turn a Loop, which
    reads requests from Connections; identical reads that wait together are one Run.

    Of ThreadingHTTPServer it has the listening socket (how it is bound, listened on, closed),
    `serve_forever`, `shutdown` and its place in the eyes of who embeds it. It has no use for a request
    handler class, `handle_request`, `process_request` and `poll_interval`, and serves once.

    address: host and port; app: what it serves; limits: changes to LIMITS; tls: an ssl.SSLContext, or None;
    sock: a listening socket to use instead of opening one.
    """
    request_queue_size = 1024
    allow_reuse_address = True
    GRACE = 10.0        # seconds before the least body speed is asked for
    LINGER = 2.0
    BEAT = 15           # seconds between the comments that keep streams alive

    def __init__(self, address: Tuple[str, int], app: App, limits: Optional[Dict[str, float]] = None,
                 tls: Any = None,
                 sock: Optional[socket.socket] = None) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.app = app
        self.limits = dict({name: limit.default for name, limit in LIMITS.items()}, **(limits or {}))
        self.tls = tls
        self.parse = head_parser(self.limits)
        self.draining = False
        self.closed_to_new = False          # while draining: all that had arrived has been taken
        self.connections: Set[Connection] = set()
        self.refusals: collections.Counter[str] = collections.Counter()
        self.bodies = Budget(self.limits["bodies"], self.limits["body"])    # received, and not answered yet
        self.unsent = Budget(self.limits["unsent"])         # answered, and not taken by the network yet
        self.loop = Loop(self._call)
        self.workers = Workers(self.loop, self.limits["threads"], self._call)
        self._ids = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._stopped = threading.Event()
        self._stopped.set()
        self.failure = ""                   # why it serves no more, where nobody stopped it
        self._sweeps = 0
        self._lock = threading.Lock()   # guards _pending, _running, _queued
        self._pending: Dict[Any, Run] = {}
        self._running: Set[Any] = set()
        self._queued: Dict[Run, None] = {}      # not begun yet, the oldest first
        try:
            super().__init__(address, http.server.BaseHTTPRequestHandler, bind_and_activate=sock is None)
        except OSError:
            self.loop.close()
            raise
        if sock is not None:
            self.socket.close()
            self.socket = sock
            self.server_address = sock.getsockname()

    @property
    def port(self) -> int:
        return int(self.server_address[1]) if isinstance(self.server_address, tuple) else 0

    @property
    def swept(self) -> float:
        return self.loop.turned

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        self.loop.soon(function, *arguments)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        return self.loop.later(seconds, function)

    def run_in_worker(self, function: Callable[[], None]) -> None:
        self.workers.put(function)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function; a defect in it costs the connection that it is about, and never the server."""
        try:
            function(*arguments)
        except Exception as error:
            self.app.broken(error)
            owner = getattr(function, "__self__", None)
            if isinstance(owner, Connection):
                self.loop.soon(owner.close)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until `shutdown`."""
        self._stopped.clear()
        self.socket.setblocking(False)
        self._listen()
        self.loop.later(1.0, self._sweep)
        self.workers.put(_LEAD)
        if not self.workers.threads:
            self.workers.failure = "no thread could be started"
            self.workers.ended.set()
        try:
            self.workers.ended.wait()
            if not self.loop.stopping:
                self.failure = self.workers.failure or "the thread that reads requests ended"
                self.app.warn("serving no more: " + self.failure)
        finally:
            self.loop.stop()
            self.workers.ended.wait(10)
            for connection in list(self.connections):
                connection.close()
            self.workers.end()
            self._stopped.set()

    def shutdown(self) -> None:
        """Stop `serve_forever` at once, and wait for it."""
        self.loop.stop()
        self._stopped.wait(10)

    def server_close(self) -> None:
        super().server_close()
        self.loop.close()

    def drain(self, seconds: float) -> bool:
        """Stop listening, let the requests under way finish for at most `seconds`, stop. True if all were
        finished."""
        # first: who begins to wait from now on sees it, and who waits already is seen here
        self.draining = True
        self.loop.soon(self._stop_listening)
        for waiting in [connection.waiting for connection in list(self.connections)]:
            if waiting is not None:
                self.workers.put(waiting.expire)

        def left() -> bool:
            return not self.closed_to_new or any(c.busy or c.out or c.request or c.incoming.buffer
                                                 for c in list(self.connections))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and left():
            time.sleep(0.02)
        finished = not left()
        self.shutdown()
        return finished

    def _stop_listening(self) -> None:
        """Take what has arrived already, and nothing that comes later."""
        known = -1
        while len(self.connections) > known and not self.closed_to_new:
            known = len(self.connections)
            self._accept(selectors.EVENT_READ)
        self.loop.watch(self.socket, 1, 0, self._accept)
        self.socket.close()
        self.closed_to_new = True
        for connection in list(self.connections):
            if not connection.busy and not connection.handshaking:
                connection.on_input()
        for connection in list(self.connections):
            if not (connection.busy or connection.out or connection.incoming.buffer or connection.request):
                connection.close()

    def _listen(self) -> None:
        if not self.draining:
            self.loop.watch(self.socket, 0, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        for _ in range(64):
            try:
                sock, address = self.socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # Out of descriptors: the callers wait in the backlog for a moment.
                    self.refusals["descriptors"] += 1
                    self.loop.watch(self.socket, 1, 0, self._accept)
                    self.loop.later(0.1, self._listen)
                return
            try:
                sock.setblocking(False)
                if sock.family != getattr(socket, "AF_UNIX", None):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls is not None:
                    sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:
                sock.close()
                continue
            connection = Connection(self, sock, str(address[0]) if address else "local")
            self.connections.add(connection)
            if len(self.connections) > self.limits["connections"] and not self._evict():
                self.refusals["connections"] += 1
                connection.refuse(Overloaded("too many connections are open"))

    def _evict(self) -> bool:
        """Close the connection that has been idle for longest, so that idle ones keep nobody out. False where
        none is."""
        idle = [each for each in self.connections if each.answered and not (
            each.busy or each.out or each.handshaking or each.incoming.buffer or each.incoming.head)]
        if not idle:
            return False
        self.refusals["idle"] += 1
        min(idle, key=lambda each: each.deadline).close()
        return True

    def request(self, connection: Connection, head: Head) -> Request:
        """The request of a head, with its route and its id."""
        given = head.headers.get("x-request-id", "")
        request = Request(head, b"", connection.peer, given if given and _REQUEST_ID.fullmatch(given) else
                          "%s-%x" % (self._prefix, next(self._ids)), self.tls is not None)
        if self.tls is not None:
            request.certificate = _certificate_name(connection.socket)
        self.app.prepare(request)
        return request

    def dispatch(self, connection: Connection, request: Request) -> None:
        """In the loop's thread: answer a request at once, or have a worker do it."""
        app = self.app
        if app.is_quick(request):
            connection.answer(request, self._handle(request))
            return
        if self.workers.queue.qsize() >= self.limits["queue"]:
            self.refusals["queue"] += 1
            connection.answer(request, app.refuse(Overloaded("%d requests are waiting already; try again" %
                                                             self.limits[
                "queue"]), request))
            return
        key = request.share
        with self._lock:
            known = self._pending.get(key) if key is not None else None
            run = known or Run(request)
            run.callers.append((connection, request))
            if known is not None:
                return
            if key is not None:
                self._pending[key] = run
                if key in self._running:
                    return      # begun when the run under way has ended: that began before this request
            self._queued[run] = None
        self.workers.hold(partial(self._run, run))

    def _run(self, run: Run) -> None:
        key = run.request.share
        with self._lock:
            if self._queued.pop(run, self) is self:
                return      # it waited for too long, and was told so
            if key is not None:
                # From here on nobody joins: what is read now was not asked for after it was read.
                self._pending.pop(key, None)
                self._running.add(key)
        answer = self._handle(run.request)
        if key is not None:
            with self._lock:
                self._running.discard(key)
                following = self._pending.get(key)
                if following is not None:
                    following.since = time.monotonic()
                    self._queued[following] = None
            if following is not None:
                self.workers.put(partial(self._run, following))
        self._give(run, answer)

    def _end_late_runs(self, now: float) -> None:
        """Answer those that no thread has taken in time. Here, since where no thread can be started none
        would do it."""
        with self._lock:
            late = [run for run in self._queued if now - run.since > self.limits["queue_time"]]
            for run in late:
                del self._queued[run]       # whoever takes it out makes its answer
                if self._pending.get(run.request.share) is run:
                    del self._pending[run.request.share]
        for run in late:
            self.refusals["queue_time"] += 1
            self._give(run, self.app.refuse(Overloaded("no thread was free in time; try again"), run.request))

    def _handle(self, request: Request) -> Union[Response, Later, Stream]:
        try:
            return self.app.handle(request)
        except Exception as error:
            self.app.broken(error)
            return self.app.refuse(Failure("an internal error"), request)

    def _give(self, run: Run, answer: Union[Response, Later, Stream]) -> None:
        """Answer all that the run was for."""
        for connection, request in run.callers:
            request.user = run.request.user
            if isinstance(answer, Later) and request is not run.request:
                answer = answer.again()     # a wait answers one caller
            self._call(connection.answer, request, answer)

    def encode(self, request: Optional[Request], response: Response, close: bool = False,
               stream: bool = False) -> bytes:
        """The bytes of an answer to this request: not modified, compressed, without body as it asks."""
        body = b"" if stream else response.body
        tagged = same = zipped = False
        extra: Sequence[Tuple[str, str]] = ()
        version = 1
        if request is not None:
            headers, version, extra = request.headers, request.head.version, self.app.extra_headers(request)
            tagged = response.status == 200 and request.method in ("GET", "HEAD") and not stream
            zipped = len(body) >= 1024 and _accepts_gzip(headers.get("accept-encoding", ""))
            same = tagged and "if-none-match" in headers and etag_matches(headers["if-none-match"],
                    response.etag)
        form = (tagged, same, zipped, close, version)
        head = response.heads.get(form)
        if head is None or extra:
            head = _header_fields(response, extra, stream, *form)
            if not extra:
                response.heads[form] = head
        if same or request is not None and request.method == "HEAD":
            body = b""
        elif zipped:
            body = response.compressed
        mark = b"X-Request-Id: %s\r\n\r\n" % request.id.encode() if request is not None else b"\r\n"
        return b"".join((_start_of_answer(304 if same else response.status, int(time.time())), head, mark,
                         body))

    def _sweep(self) -> None:
        """Once a second: end what ran out of time, keep streams alive."""
        self.loop.turned = now = time.monotonic()
        self.loop.later(1.0, self._sweep)
        self.loop.prune()
        self._end_late_runs(now)
        if self.workers.refused:
            self.app.warn("no thread can be started; those there are go on with what waits")
            self.refusals["threads"] += self.workers.refused
            self.workers.refused = 0
        self._sweeps += 1
        for connection in list(self.connections):
            connection.look(now)
            waiting = connection.waiting if self._sweeps % self.BEAT == 0 and not connection.full else None
            if isinstance(waiting, Stream) and waiting.beat:
                connection.push(waiting.beat)

    def figures(self) -> Dict[str, float]:
        """What the metrics tell of this server."""
        return {"connections": len(self.connections), "threads": self.workers.threads,
                "queued": self.workers.queue.qsize(),
                "in_flight": sum(c.busy and c.waiting is None for c in list(self.connections)),
                "watchers": sum(c.waiting is not None for c in list(self.connections)),
                "bodies": self.bodies.all, "unsent": self.unsent.all}


def _header_fields(response: Response, extra: Sequence[Tuple[str, str]], stream: bool, tagged: bool,
                   same: bool,
                   zipped: bool, close: bool, version: int) -> bytes:
    """The header fields that are the same for every answer of this form."""
    bodiless = same or response.status == 204
    lines = ""
    if tagged:      # the compressed form is another representation
        lines += "ETag: %s\r\nCache-Control: no-cache\r\n" % (response.etag[:-1] + '-gzip"' if zipped
                                                              else response.etag)
    if zipped and not same:
        lines += "Content-Encoding: gzip\r\n"
    if len(response.body) >= 1024:
        lines += "Vary: Accept-Encoding\r\n"
    for name, value in itertools.chain(response.headers, extra):
        lines += "%s: %s\r\n" % (name, re.sub(r"[\x00-\x1f\x7f]", " ", value))
    if close or stream:
        lines += "Connection: close\r\n"
    elif version == 0:
        lines += "Connection: keep-alive\r\n"
    if not stream and not bodiless:
        lines += "Content-Length: %d\r\n" % len(response.compressed if zipped else response.body)
    if not bodiless:
        lines += "Content-Type: %s\r\n" % response.content_type
    return lines.encode("latin-1", "replace")


@lru_cache(maxsize=64)
def _start_of_answer(status: int, seconds: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\nDate: %s\r\n" % (status, REASONS[status].encode(),
                                                _http_date(seconds).encode())


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> str:
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    t = time.gmtime(seconds)
    return "%s, %02d %s %d %02d:%02d:%02d GMT" % (days[t.tm_wday], t.tm_mday, months[t.tm_mon - 1], t.tm_year,
                                                  t.tm_hour, t.tm_min, t.tm_sec)


@lru_cache(maxsize=64)
def _accepts_gzip(header: str) -> bool:
    named = {coding.strip(): not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", quality)
             for coding, _, quality in (each.partition(";") for each in header.lower().split(","))}
    return named.get("gzip", named.get("*", False))


def _certificate_name(sock: Any) -> Optional[str]:
    """The common name in the caller's verified certificate."""
    subject = (sock.getpeercert() or {}).get("subject", ())
    return next((value for part in subject for name, value in part if name == "commonName"), None)


# ============================================================================================================
# 2. Thrift API
#
# Aurora's whole interface, written once as Thrift IDL, turned on first use into struct classes; to and from
# plain JSON (field names, enums by name, unions as one-key objects, sets as sorted arrays, unset fields left
# out). Touches nothing.
# ============================================================================================================

IDL = """\
namespace py aurora

enum ResponseCode { INVALID_REQUEST = 0, OK = 1, ERROR = 2, WARNING = 3, AUTH_FAILED = 4,
  JOB_UPDATING_ERROR = 5,
  ERROR_TRANSIENT = 6 }
enum MaintenanceMode { NONE = 1, SCHEDULED = 2, DRAINING = 3, DRAINED = 4 }
enum Mode { RW = 1, RO = 2 }
enum CronCollisionPolicy { KILL_EXISTING = 0, CANCEL_NEW = 1, RUN_OVERLAP = 2 }
enum ScheduleStatus { INIT = 11, THROTTLED = 16, PENDING = 0, ASSIGNED = 9, STARTING = 1, RUNNING = 2,
  FINISHED = 3, PREEMPTING = 13, RESTARTING = 12, DRAINING = 17, FAILED = 4, KILLED = 5, KILLING = 6,
    LOST = 7,
  PARTITIONED = 18 }
enum JobUpdateStatus { ROLLING_FORWARD = 0, ROLLING_BACK = 1, ROLL_FORWARD_PAUSED = 2, ROLL_BACK_PAUSED = 3,
  ROLLED_FORWARD = 4, ROLLED_BACK = 5, ABORTED = 6, ERROR = 7, FAILED = 8, ROLL_FORWARD_AWAITING_PULSE = 9,
  ROLL_BACK_AWAITING_PULSE = 10 }
enum JobUpdateAction { INSTANCE_UPDATED = 1, INSTANCE_ROLLED_BACK = 2, INSTANCE_UPDATING = 3,
  INSTANCE_ROLLING_BACK = 4, INSTANCE_UPDATE_FAILED = 5, INSTANCE_ROLLBACK_FAILED = 6 }
enum JobUpdatePulseStatus { OK = 1, FINISHED = 2 }

struct Identity { 2: string user }
struct Attribute { 1: string name, 2: set<string> values }
struct HostAttributes { 1: string host, 2: set<Attribute> attributes, 3: MaintenanceMode mode,
  4: string slaveId }
struct ValueConstraint { 1: bool negated, 2: set<string> values }
struct LimitConstraint { 1: i32 limit }
union TaskConstraint { 1: ValueConstraint value, 2: LimitConstraint limit }
struct Constraint { 1: string name, 2: TaskConstraint constraint }
struct Package { 1: string role, 2: string name, 3: i32 version }
struct Metadata { 1: string key, 2: string value }
struct JobKey { 1: string role, 2: string environment, 3: string name }
union LockKey { 1: JobKey job }
struct Lock { 1: LockKey key, 2: string token, 3: string user, 4: i64 timestampMs, 5: string message }
struct InstanceKey { 1: JobKey jobKey, 2: i32 instanceId }
struct MesosFetcherURI { 1: string value, 2: bool extract, 3: bool cache, 4: string outputFile }
struct ExecutorConfig { 1: string name, 2: string data }
struct Volume { 1: string containerPath, 2: string hostPath, 3: Mode mode }
struct DockerImage { 1: string name, 2: string tag }
struct AppcImage { 1: string name, 2: string imageId }
union Image { 1: DockerImage docker, 2: AppcImage appc }
struct MesosContainer { 1: Image image, 2: list<Volume> volumes }
struct DockerParameter { 1: string name, 2: string value }
struct DockerContainer { 1: string image, 2: list<DockerParameter> parameters }
struct PartitionPolicy { 1: bool reschedule, 2: i64 delaySecs }
struct PercentageSlaPolicy { 1: double percentage, 2: i64 durationSecs }
struct CountSlaPolicy { 1: i64 count, 2: i64 durationSecs }
struct CoordinatorSlaPolicy { 1: string coordinatorUrl, 2: string statusKey }
union Container { 1: MesosContainer mesos, 2: DockerContainer docker }
union Resource { 1: double numCpus, 2: i64 ramMb, 3: i64 diskMb, 4: string namedPort, 5: i64 numGpus,
  6: i64 ipAddr }
union SlaPolicy { 1: PercentageSlaPolicy percentageSlaPolicy, 2: CountSlaPolicy countSlaPolicy,
  3: CoordinatorSlaPolicy coordinatorSlaPolicy }
struct TaskConfig { 7: bool isService, 11: i32 priority, 13: i32 maxTaskFailures, 17: Identity owner,
  18: bool production, 20: set<Constraint> constraints, 22: map<string,string> taskLinks,
  23: string contactEmail, 25: ExecutorConfig executorConfig, 27: set<Metadata> metadata, 28: JobKey job,
  29: Container container, 30: string tier, 32: set<Resource> resources,
  33: set<MesosFetcherURI> mesosFetcherUris, 34: PartitionPolicy partitionPolicy, 35: SlaPolicy slaPolicy }
struct ResourceAggregate { 4: set<Resource> resources }
struct JobConfiguration { 4: string cronSchedule, 5: CronCollisionPolicy cronCollisionPolicy,
  6: TaskConfig taskConfig, 7: Identity owner, 8: i32 instanceCount, 9: JobKey key }
struct JobStats { 1: i32 activeTaskCount, 2: i32 finishedTaskCount, 3: i32 failedTaskCount,
  4: i32 pendingTaskCount }
struct JobSummary { 1: JobConfiguration job, 2: JobStats stats, 3: i64 nextCronRunMs }
struct Range { 1: i32 first, 2: i32 last }
struct ConfigGroup { 1: TaskConfig config, 3: set<Range> instances }
struct ConfigSummary { 1: JobKey key, 2: set<ConfigGroup> groups }
struct PopulateJobResult { 2: TaskConfig taskConfig }
struct GetQuotaResult { 1: ResourceAggregate quota, 2: ResourceAggregate prodSharedConsumption,
  3: ResourceAggregate nonProdSharedConsumption, 4: ResourceAggregate prodDedicatedConsumption,
  5: ResourceAggregate nonProdDedicatedConsumption }
struct TaskEvent { 1: i64 timestamp, 2: ScheduleStatus status, 3: string message, 4: string scheduler }
struct AssignedTask { 1: string taskId, 2: string slaveId, 3: string slaveHost, 4: TaskConfig task,
  5: map<string,i32> assignedPorts, 6: i32 instanceId }
struct ScheduledTask { 1: AssignedTask assignedTask, 2: ScheduleStatus status, 3: i32 failureCount,
  4: list<TaskEvent> taskEvents, 5: string ancestorId, 6: i32 timesPartitioned }
struct ScheduleStatusResult { 1: list<ScheduledTask> tasks }
struct GetJobsResult { 1: set<JobConfiguration> configs }
struct TaskQuery { 2: string jobName, 4: set<string> taskIds, 5: set<ScheduleStatus> statuses,
  7: set<i32> instanceIds, 9: string environment, 10: set<string> slaveHosts, 11: set<JobKey> jobKeys,
  12: i32 offset, 13: i32 limit, 14: string role }
struct HostStatus { 1: string host, 2: MaintenanceMode mode }
struct RoleSummary { 1: string role, 2: i32 jobCount, 3: i32 cronJobCount }
struct Hosts { 1: set<string> hostNames }
struct PendingReason { 1: string taskId, 2: string reason }
struct JobUpdateKey { 1: JobKey job, 2: string id }
struct QueueJobUpdateStrategy { 1: i32 groupSize }
struct BatchJobUpdateStrategy { 1: i32 groupSize, 2: bool autopauseAfterBatch }
struct VariableBatchJobUpdateStrategy { 1: list<i32> groupSizes, 2: bool autopauseAfterBatch }
union JobUpdateStrategy { 1: QueueJobUpdateStrategy queueStrategy, 2: BatchJobUpdateStrategy batchStrategy,
  3: VariableBatchJobUpdateStrategy varBatchStrategy }
struct JobUpdateSettings { 1: i32 updateGroupSize, 2: i32 maxPerInstanceFailures, 3: i32 maxFailedInstances,
  5: i32 minWaitInInstanceRunningMs, 6: bool rollbackOnFailure, 7: set<Range> updateOnlyTheseInstances,
  8: bool waitForBatchCompletion, 9: i32 blockIfNoPulsesAfterMs, 10: bool slaAware,
  11: JobUpdateStrategy updateStrategy }
struct JobUpdateEvent { 1: JobUpdateStatus status, 2: i64 timestampMs, 3: string user, 4: string message }
struct JobInstanceUpdateEvent { 1: i32 instanceId, 2: i64 timestampMs, 3: JobUpdateAction action,
  4: string message }
struct InstanceTaskConfig { 1: TaskConfig task, 2: set<Range> instances }
struct JobUpdateState { 1: JobUpdateStatus status, 2: i64 createdTimestampMs, 3: i64 lastModifiedTimestampMs }
struct JobUpdateSummary { 3: string user, 4: JobUpdateState state, 5: JobUpdateKey key,
  6: set<Metadata> metadata }
struct JobUpdateInstructions { 1: set<InstanceTaskConfig> initialState, 2: InstanceTaskConfig desiredState,
  3: JobUpdateSettings settings }
struct JobUpdate { 1: JobUpdateSummary summary, 2: JobUpdateInstructions instructions }
struct JobUpdateDetails { 1: JobUpdate update, 2: list<JobUpdateEvent> updateEvents,
  3: list<JobInstanceUpdateEvent> instanceEvents }
struct JobUpdateRequest { 1: TaskConfig taskConfig, 2: i32 instanceCount, 3: JobUpdateSettings settings,
  4: set<Metadata> metadata }
struct JobUpdateQuery { 2: string role, 3: JobKey jobKey, 4: string user,
  5: set<JobUpdateStatus> updateStatuses,
  6: i32 offset, 7: i32 limit, 8: JobUpdateKey key }
struct HostMaintenanceRequest { 1: string host, 2: SlaPolicy defaultSlaPolicy, 3: i64 timeoutSecs,
  4: i64 createdTimestampMs }
struct ListBackupsResult { 1: set<string> backups }
struct StartMaintenanceResult { 1: set<HostStatus> statuses }
struct DrainHostsResult { 1: set<HostStatus> statuses }
struct QueryRecoveryResult { 1: set<ScheduledTask> tasks }
struct MaintenanceStatusResult { 1: set<HostStatus> statuses }
struct EndMaintenanceResult { 1: set<HostStatus> statuses }
struct RoleSummaryResult { 1: set<RoleSummary> summaries }
struct JobSummaryResult { 1: set<JobSummary> summaries }
struct ConfigSummaryResult { 1: ConfigSummary summary }
struct GetPendingReasonResult { 1: set<PendingReason> reasons }
struct StartJobUpdateResult { 1: JobUpdateKey key, 2: JobUpdateSummary updateSummary }
struct GetJobUpdateSummariesResult { 1: list<JobUpdateSummary> updateSummaries }
struct GetJobUpdateDetailsResult { 1: JobUpdateDetails details, 2: list<JobUpdateDetails> detailsList }
struct PulseJobUpdateResult { 1: JobUpdatePulseStatus status }
struct GetJobUpdateDiffResult { 1: set<ConfigGroup> add, 2: set<ConfigGroup> remove,
  3: set<ConfigGroup> update,
  4: set<ConfigGroup> unchanged }
struct TierConfig { 1: string name, 2: map<string,string> settings }
struct GetTierConfigResult { 1: string defaultTierName, 2: set<TierConfig> tiers }
struct ServerInfo { 1: string clusterName, 3: string statsUrlPrefix }
struct ResponseDetail { 1: string message }
union Result { 1: PopulateJobResult populateJobResult, 3: ScheduleStatusResult scheduleStatusResult,
  4: GetJobsResult getJobsResult, 5: GetQuotaResult getQuotaResult, 6: ListBackupsResult listBackupsResult,
  7: StartMaintenanceResult startMaintenanceResult, 8: DrainHostsResult drainHostsResult,
  9: QueryRecoveryResult queryRecoveryResult, 10: MaintenanceStatusResult maintenanceStatusResult,
  11: EndMaintenanceResult endMaintenanceResult, 17: RoleSummaryResult roleSummaryResult,
  18: JobSummaryResult jobSummaryResult, 20: ConfigSummaryResult configSummaryResult,
  21: GetPendingReasonResult getPendingReasonResult, 22: StartJobUpdateResult startJobUpdateResult,
  23: GetJobUpdateSummariesResult getJobUpdateSummariesResult,
  24: GetJobUpdateDetailsResult getJobUpdateDetailsResult, 25: PulseJobUpdateResult pulseJobUpdateResult,
  26: GetJobUpdateDiffResult getJobUpdateDiffResult, 27: GetTierConfigResult getTierConfigResult }
struct Response { 1: ResponseCode responseCode, 3: Result result, 5: ServerInfo serverInfo,
  6: list<ResponseDetail> details }
struct ExplicitReconciliationSettings { 1: i32 batchSize }

const set<ScheduleStatus> ACTIVE_STATES = [ScheduleStatus.ASSIGNED, ScheduleStatus.DRAINING,
  ScheduleStatus.KILLING, ScheduleStatus.PENDING, ScheduleStatus.PREEMPTING, ScheduleStatus.RESTARTING,
  ScheduleStatus.RUNNING, ScheduleStatus.STARTING, ScheduleStatus.PARTITIONED, ScheduleStatus.THROTTLED]
const set<ScheduleStatus> SLAVE_ASSIGNED_STATES = [ScheduleStatus.ASSIGNED, ScheduleStatus.DRAINING,
  ScheduleStatus.KILLING, ScheduleStatus.PREEMPTING, ScheduleStatus.RESTARTING, ScheduleStatus.RUNNING,
  ScheduleStatus.PARTITIONED, ScheduleStatus.STARTING]
const set<ScheduleStatus> LIVE_STATES = [ScheduleStatus.KILLING, ScheduleStatus.PREEMPTING,
  ScheduleStatus.RESTARTING, ScheduleStatus.DRAINING, ScheduleStatus.PARTITIONED, ScheduleStatus.RUNNING]
const set<ScheduleStatus> TERMINAL_STATES = [ScheduleStatus.FAILED, ScheduleStatus.FINISHED,
  ScheduleStatus.KILLED, ScheduleStatus.LOST]
const set<JobUpdateStatus> ACTIVE_JOB_UPDATE_STATES = [JobUpdateStatus.ROLLING_FORWARD,
  JobUpdateStatus.ROLLING_BACK, JobUpdateStatus.ROLL_FORWARD_PAUSED, JobUpdateStatus.ROLL_BACK_PAUSED,
  JobUpdateStatus.ROLL_FORWARD_AWAITING_PULSE, JobUpdateStatus.ROLL_BACK_AWAITING_PULSE]
const set<JobUpdateStatus> AWAITNG_PULSE_JOB_UPDATE_STATES = [JobUpdateStatus.ROLL_FORWARD_AWAITING_PULSE,
  JobUpdateStatus.ROLL_BACK_AWAITING_PULSE]

service ReadOnlyScheduler {
  Response getRoleSummary()
  Response getJobSummary(1: string role)
  Response getTasksStatus(1: TaskQuery query)
  Response getTasksWithoutConfigs(1: TaskQuery query)
  Response getPendingReason(1: TaskQuery query)
  Response getConfigSummary(1: JobKey job)
  Response getJobs(1: string ownerRole)
  Response getQuota(1: string ownerRole)
  Response populateJobConfig(1: JobConfiguration description)
  Response getJobUpdateSummaries(1: JobUpdateQuery jobUpdateQuery)
  Response getJobUpdateDetails(1: JobUpdateKey key, 2: JobUpdateQuery query)
  Response getJobUpdateDiff(1: JobUpdateRequest request)
  Response getTierConfigs()
}
service AuroraSchedulerManager extends ReadOnlyScheduler {
  Response createJob(1: JobConfiguration description)
  Response scheduleCronJob(1: JobConfiguration description)
  Response descheduleCronJob(4: JobKey job)
  Response startCronJob(4: JobKey job)
  Response restartShards(5: JobKey job, 3: set<i32> shardIds)
  Response killTasks(4: JobKey job, 5: set<i32> instances, 6: string message)
  Response addInstances(3: InstanceKey key, 4: i32 count)
  Response replaceCronTemplate(1: JobConfiguration config)
  Response startJobUpdate(1: JobUpdateRequest request, 3: string message)
  Response pauseJobUpdate(1: JobUpdateKey key, 3: string message)
  Response resumeJobUpdate(1: JobUpdateKey key, 3: string message)
  Response abortJobUpdate(1: JobUpdateKey key, 3: string message)
  Response rollbackJobUpdate(1: JobUpdateKey key, 2: string message)
  Response pulseJobUpdate(1: JobUpdateKey key)
}
service AuroraAdmin extends AuroraSchedulerManager {
  Response setQuota(1: string ownerRole, 2: ResourceAggregate quota)
  Response forceTaskState(1: string taskId, 2: ScheduleStatus status)
  Response performBackup()
  Response listBackups()
  Response stageRecovery(1: string backupId)
  Response queryRecovery(1: TaskQuery query)
  Response deleteRecoveryTasks(1: TaskQuery query)
  Response commitRecovery()
  Response unloadRecovery()
  Response startMaintenance(1: Hosts hosts)
  Response drainHosts(1: Hosts hosts)
  Response maintenanceStatus(1: Hosts hosts)
  Response endMaintenance(1: Hosts hosts)
  Response slaDrainHosts(1: Hosts hosts, 2: SlaPolicy defaultSlaPolicy, 3: i64 timeoutSecs)
  Response snapshot()
  Response triggerExplicitTaskReconciliation(1: ExplicitReconciliationSettings settings)
  Response triggerImplicitTaskReconciliation()
  Response pruneTasks(1: TaskQuery query)
}
"""

IDENTIFIER = re.compile(r"[\w\-.]+", re.ASCII)      # GOOD_IDENTIFIER_PATTERN; always used with fullmatch
MAX_IDENTIFIER = 255
EXECUTOR_NAME = "AuroraExecutor"
_INTEGER_BITS = {"i32": 31, "i64": 63}
_TTYPES = {"bool": TType.BOOL, "i32": TType.I32, "i64": TType.I64, "double": TType.DOUBLE,
           "string": TType.STRING,
           "enum": TType.I32, "struct": TType.STRUCT, "list": TType.LIST, "set": TType.SET, "map": TType.MAP}
_JSON_NAMES = {"bool": "true or false", "i32": "an integer", "i64": "an integer", "double": "a number",
               "string": "a string", "struct": "an object", "list": "an array", "set": "an array",
               "map": "an object"}


class PlainError(ValueError):
    """A plain JSON value does not fit its Thrift type; the text names the path to it."""


class Enum:
    """A Thrift enum: members are attributes holding integers; `values` and `names` map both ways."""

    def __init__(self, name: str, values: Dict[str, int]) -> None:
        self.name = name
        self.values = values
        self.names = {number: member for member, number in values.items()}

    def __getattr__(self, member: str) -> int:
        try:
            return self.__dict__["values"][member]
        except KeyError:
            raise AttributeError(member) from None

    def name_of(self, number: Optional[int]) -> str:
        """The member's name, or the number as text where this API version has no name for it."""
        return self.names.get(number, str(number))      # type: ignore[arg-type]


class Type(NamedTuple):
    """A field's type. kind: a key of _TTYPES; ref: the Enum or struct class; items: element types of a
    container."""
    kind: str
    ref: Any = None
    items: Tuple[Type, ...] = ()

    def spec_args(self) -> Any:
        """The type-arguments entry of this type in a `thrift_spec`."""
        if self.kind == "string":
            return "UTF8"
        if self.kind == "struct":
            return [self.ref, self.ref.thrift_spec]
        if self.kind == "map":
            key, value = self.items
            return (_TTYPES[key.kind], key.spec_args(), _TTYPES[value.kind], value.spec_args(), False)
        if self.items:
            return (_TTYPES[self.items[0].kind], self.items[0].spec_args(), False)
        return None

    def to_plain(self, value: Any) -> Any:
        """A Thrift value of this type as plain JSON."""
        kind = self.kind
        if kind == "enum":
            return self.ref.name_of(value)
        if kind == "struct":
            return value.to_plain()
        if kind == "list":
            item = self.items[0]
            return list(value) if item.kind == "string" else [item.to_plain(each) for each in value]
        if kind == "set":
            item = self.items[0]
            if item.kind in ("struct", "enum"):
                plain = [item.to_plain(each) for each in value]
                return sorted(plain, key=_sort_key)
            return sorted(value)
        if kind == "map":
            return {each: value[each] for each in sorted(value)}
        return value

    def from_plain(self, value: Any, path: str) -> Any:
        """The Thrift value that plain JSON stands for. Raises PlainError naming `path`."""
        kind = self.kind
        if kind == "struct":
            return self.ref.from_plain(value, path)
        if kind == "enum":
            number = self.ref.values.get(value) if isinstance(value, str) else value
            if isinstance(number, bool) or not isinstance(number, int) or number not in self.ref.names:
                raise PlainError("%s: expected one of %s" % (path, ", ".join(sorted(self.ref.values))))
            return number
        if kind in ("list", "set") and isinstance(value, list):
            made = [self.items[0].from_plain(each, "%s[%d]" % (path, i)) for i, each in enumerate(value)]
            return set(made) if kind == "set" else made
        if kind == "map" and isinstance(value, dict):
            return {key: self.items[1].from_plain(each, "%s.%s" % (path, key)) for key, each in value.items()}
        if kind in _INTEGER_BITS and isinstance(value, int) and not isinstance(value, bool):
            if not -(1 << _INTEGER_BITS[kind]) <= value < 1 << _INTEGER_BITS[kind]:
                raise PlainError("%s: does not fit into %s bits" % (path, _INTEGER_BITS[kind] + 1))
            return value
        if kind == "double" and isinstance(value, (int, float)) and not isinstance(value, bool):
            if not abs(value) <= sys.float_info.max:
                raise PlainError("%s: expected a finite number" % path)
            return float(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "string" and path.endswith("executorConfig.data") and isinstance(value, (dict, list)):
            return json.dumps(value, sort_keys=True)        # it may be shown as what it holds
        if kind == "string" and isinstance(value, str):
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise PlainError("%s: has half a character (a lone surrogate)" % path) from None
            return value
        raise PlainError("%s: expected %s" % (path, _JSON_NAMES[kind]))


def _sort_key(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)


class ThriftStruct:
    """The base of all struct and union classes; compares by value. Hashes by all but containers, so do not
    change an instance while a set holds it."""
    __slots__ = ()
    thrift_spec: Tuple[Any, ...] = ()
    fields: Dict[str, Type] = {}
    is_union = False

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and all(getattr(self, f) == getattr(other, f) for f in self.fields)

    def __repr__(self) -> str:
        shown = ["%s=%r" % (f, getattr(self, f)) for f in self.fields if getattr(self, f) is not None]
        return "%s(%s)" % (type(self).__name__, ", ".join(shown))

    def __deepcopy__(self, memo: Any) -> ThriftStruct:
        return type(self)(**{f: copy.deepcopy(getattr(self, f), memo) for f in self.fields})

    def replace(self, **changes: Any) -> Any:
        """A shallow copy with some fields changed. Raises TypeError for what is no field."""
        return type(self)(**dict({f: getattr(self, f) for f in self.fields}, **changes))

    def read(self, protocol: Any) -> None:
        """Fill this struct from a Thrift protocol object."""
        if protocol._fast_decode is not None:
            protocol._fast_decode(self, protocol, [type(self), self.thrift_spec])
        else:
            protocol.readStruct(self, self.thrift_spec)

    def write(self, protocol: Any) -> None:
        """Write this struct to a Thrift protocol object."""
        if protocol._fast_encode is not None:
            protocol.trans.write(protocol._fast_encode(self, [type(self), self.thrift_spec]))
        else:
            protocol.writeStruct(self, self.thrift_spec)

    def to_plain(self) -> Json:
        """This struct as plain JSON."""
        plain = {}
        for name, kind in self.fields.items():
            value = getattr(self, name)
            if value is not None:
                plain[name] = kind.to_plain(value)
        return plain

    @classmethod
    def from_plain(cls, value: Any, path: str = "") -> Any:
        """A struct from plain JSON. Raises PlainError, which names the field that does not fit."""
        if not isinstance(value, dict):
            raise PlainError("%s: expected an object" % (path or cls.__name__))
        if cls.is_union and len(value) != 1:
            raise PlainError("%s: expected an object with one key of %s" %
                             (path or cls.__name__, ", ".join(cls.fields)))
        made = cls()
        prefix = path + "." if path else ""
        for name, each in value.items():
            if name not in cls.fields:
                raise PlainError("%s%s: unknown field; known are %s" % (prefix, name, ", ".join(cls.fields)))
            if each is not None:
                setattr(made, name, cls.fields[name].from_plain(each, prefix + name))
        return made


class Method(NamedTuple):
    """One Thrift method: its arguments as a struct class, its access level by the service that declares it,
    and whether it changes anything."""
    name: str
    arguments: Any
    access: str
    writes: bool


class Api:
    """The interface that an IDL text describes: types as attributes (`api.JobKey`, `api.ScheduleStatus`),
    constants likewise, `methods` by name. Struct classes are built when first asked for."""
    ACCESS = {"ReadOnlyScheduler": "read", "AuroraSchedulerManager": "write", "AuroraAdmin": "admin"}
    ADMIN_READS = ("listBackups", "queryRecovery", "maintenanceStatus")
    _DECLARATION = re.compile(r"(enum|struct|union|service|const \S+) (\w+)(?: extends (\w+))?(?: = "
                              r")?\s*([{\[])"
                              r"([^}\]]*)[}\]]")
    _FIELD = re.compile(r"(\d+): (\w+(?:<[\w,]+>)?) (\w+)")

    def __init__(self, idl: str) -> None:
        self._structs: Dict[str, Tuple[str, List[JobTuple]]] = {}
        self._enums: Dict[str, Enum] = {}
        self._signatures: Dict[str, Tuple[str, str]] = {}
        for keyword, name, _, _, body in self._DECLARATION.findall(idl):
            if keyword == "enum":
                self._enums[name] = Enum(name, {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", body)})
            elif keyword == "service":
                for method, arguments in re.findall(r"Response (\w+)\(([^)]*)\)", body):
                    self._signatures[method] = (self.ACCESS[name], arguments)
            elif keyword in ("struct", "union"):
                self._structs[name] = (keyword, self._FIELD.findall(body))
            else:
                setattr(self, name, frozenset(getattr(self._enums[enum], member)
                                              for enum, member in re.findall(r"(\w+)\.(\w+)", body)))
        self.type_names = list(self._enums) + list(self._structs)
        self.method_names = list(self._signatures)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):        # asked before there is anything: by copy, by pickle
            raise AttributeError(name)
        if name in self._enums:
            made: Any = self._enums[name]
        elif name in self._structs:
            kind, fields = self._structs[name]
            made = self._build(name, fields, kind == "union")
        else:
            raise AttributeError("the Aurora API has no type %s" % name)
        setattr(self, name, made)
        return made

    def _type(self, text: str) -> Type:
        outer, _, inner = text.partition("<")
        if inner:
            return Type(outer, None, tuple(self._type(each) for each in inner[:-1].split(",")))
        if text in _TTYPES:
            return Type(text)
        return Type("enum", self._enums[text]) if text in self._enums else Type("struct", getattr(self, text))

    def _build(self, name: str, fields: List[JobTuple], is_union: bool) -> Any:
        types = {field: self._type(kind) for _, kind, field in fields}
        spec: List[Any] = [None] * (1 + max([int(number) for number, _, _ in fields], default=-1))
        for number, _, field in fields:
            spec[int(number)] = (int(number), _TTYPES[types[field].kind], field, types[field].spec_args(),
                                 None)
        # An __init__ with named arguments: the C decoder calls it once for every nested struct, and the hash
        # for each in a set.
        namespace: Json = {}
        body = "; ".join("self.%s = %s" % (field, field) for field in types) or "pass"
        single = [field for field, kind in types.items() if not kind.items]
        exec("def __init__(self%s): %s\ndef __hash__(self): return hash((%s))" % (
            "".join(", %s=None" % field for field in types), body,
            "".join("self.%s, " % field for field in single)), namespace)
        return type(name, (ThriftStruct,), {
            "__slots__": tuple(types), "__init__": namespace["__init__"],
            "__hash__": namespace["__hash__"], "thrift_spec": tuple(spec),
            "fields": types,
            "is_union": is_union, "__module__": __name__, "__doc__": "Thrift %s." % name})

    def signature(self, name: str) -> Tuple[str, List[Tuple[str, str]]]:
        """(access level, (name, type) of the parameters) of a method."""
        access, arguments = self._signatures[name]
        return access, [(field, kind) for _, kind, field in self._FIELD.findall(arguments)]

    @lru_cache(maxsize=None)
    def method(self, name: str) -> Method:
        """The method of that name. Raises KeyError."""
        access, arguments = self._signatures[name]
        return Method(name, self._build(name + "_args", self._FIELD.findall(arguments), False), access,
                      access != "read" and name not in self.ADMIN_READS)


api = Api(IDL)


class Plain(dict, TFrozenBase):       # type: ignore[type-arg]
    """A struct decoded straight into a JSON object; hashes by identity so that a decoded set can hold it.

    TFrozenBase is how the C decoder is told to call a class with the fields as arguments."""
    __hash__ = object.__hash__      # type: ignore[assignment]


class Projection:
    """Decodes only what `shape` names of a Thrift type; the C decoder skips the rest without making objects.

    shape: True for all of a value (structs become Plain objects, enums stay numbers), or a dict from field
    name to shape; under the key None a TFrozenBase subclass that makes the result from the fields, instead of
    Plain.
    """

    def __init__(self, kind: Type, shape: Any) -> None:
        self.kind = kind
        self.shape = shape
        self.arguments = self._arguments(kind, shape)

    def _arguments(self, kind: Type, shape: Any) -> Any:
        if kind.kind == "struct":
            make = shape.get(None, Plain) if isinstance(shape, dict) else Plain
            spec: List[Any] = [None] * len(kind.ref.thrift_spec)
            for entry in kind.ref.thrift_spec:
                if entry and (shape is True or entry[2] in shape):
                    inner = True if shape is True else shape[entry[2]]
                    spec[entry[0]] = entry[:3] + (self._arguments(kind.ref.fields[entry[2]], inner), None)
            return [make, tuple(spec)]
        if kind.kind in ("list", "set"):
            return (_TTYPES[kind.items[0].kind], self._arguments(kind.items[0], shape), False)
        return kind.spec_args()

    def apply(self, value: Any) -> Any:
        """The same from a fully decoded value, for protocols that have no C decoder."""
        return self._apply(self.kind, self.shape, value)

    def _apply(self, kind: Type, shape: Any, value: Any) -> Any:
        if kind.kind == "struct":
            make = shape.get(None, Plain) if isinstance(shape, dict) else Plain
            named = kind.ref.fields if shape is True else [name for name in shape if name is not None]
            taken = {name: self._apply(kind.ref.fields[name], True if shape is True else shape[name],
                                       getattr(value, name)) for name in named
                                       if getattr(value, name) is not None}
            return make(**taken)
        if kind.kind in ("list", "set"):
            made = [self._apply(kind.items[0], shape, each) for each in value]
            return set(made) if kind.kind == "set" else made
        return value


class Reply:
    """What a method call returns on the wire: field 0 of the result struct."""
    __slots__ = ("success",)

    def __init__(self) -> None:
        self.success: Any = None


BINARY = "application/vnd.apache.thrift.binary"
TJSON = "application/vnd.apache.thrift.json"
MAX_CONTAINER = 1 << 22     # elements of one decoded container; a length beyond is a hostile or broken answer


def _protocol(media: str, data: Optional[bytes] = None) -> Any:
    transport = TMemoryBuffer(data)
    if media != BINARY:
        return TJSONProtocol(transport)
    protocol = TBinaryProtocolAccelerated(transport, container_length_limit=MAX_CONTAINER)
    if data is not None:
        protocol.string_length_limit = max(1, len(data))
    return protocol


def encode_message(media: str, name: str, kind: int, sequence: int, body: ThriftStruct) -> bytes:
    """A whole Thrift message. media: BINARY or TJSON; kind: a TMessageType."""
    protocol = _protocol(media)
    protocol.writeMessageBegin(name, kind, sequence)
    body.write(protocol)
    protocol.writeMessageEnd()
    return protocol.trans.getvalue()


def encode_reply(media: str, name: str, sequence: int, response: ThriftStruct) -> bytes:
    """A reply message that carries `response`."""
    protocol = _protocol(media)
    protocol.writeMessageBegin(name, TMessageType.REPLY, sequence)
    protocol.writeStructBegin("result")
    protocol.writeFieldBegin("success", TType.STRUCT, 0)
    response.write(protocol)
    protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()
    protocol.writeMessageEnd()
    return protocol.trans.getvalue()


class BadMessage(ValueError):
    """Bytes that are no Thrift message, or not the one expected."""


_DECODE_ERRORS = (TException, EOFError, ValueError, OverflowError, MemoryError, TypeError, KeyError,
                  IndexError,
                  RecursionError, struct.error)


def decode_call(media: str, data: bytes) -> Tuple[str, int, Any]:
    """(method name, sequence id, protocol placed at the arguments) of a call message. Raises BadMessage."""
    try:
        protocol = _protocol(media, data)
        name, kind, sequence = protocol.readMessageBegin()
    except _DECODE_ERRORS as error:
        raise BadMessage("not a Thrift message: %s" % (str(error) or type(error).__name__)) from None
    if kind not in (TMessageType.CALL, TMessageType.ONEWAY):
        raise BadMessage("not a Thrift call")
    return name, sequence, protocol


def decode_reply(media: str, name: str, data: bytes, projection: Optional[Projection] = None) -> Any:
    """The Response in a reply message, whole or what `projection` names of it. Raises BadMessage."""
    try:
        protocol = _protocol(media, data)
        answered, kind, _ = protocol.readMessageBegin()
        if kind == TMessageType.EXCEPTION:
            problem = TApplicationException()
            problem.read(protocol)
            raise BadMessage("the scheduler does not know or cannot run %s: %s" % (name, problem.message))
        if kind != TMessageType.REPLY or answered != name:
            raise BadMessage("an answer to %r where one to %r was due" % (answered, name))
        reply = Reply()
        fast = protocol._fast_decode
        whole = [api.Response, api.Response.thrift_spec]
        spec = ((0, TType.STRUCT, "success", projection.arguments if fast and projection else whole, None),)
        if fast:
            fast(reply, protocol, [Reply, spec])
        else:
            protocol.readStruct(reply, spec)
            if projection and reply.success is not None:
                reply.success = projection.apply(reply.success)
    except BadMessage:
        raise
    except _DECODE_ERRORS as error:
        raise BadMessage("not a Thrift answer: %s" % (str(error) or type(error).__name__)) from None
    if reply.success is None:
        raise BadMessage("an answer without a Response")
    return reply.success


# ============================================================================================================
# 3. Scheduler
#
# A client for one cluster: pooled keep-alive connections, leader following, deadlines, retries, a circuit
# breaker, a fair semaphore that caps simultaneous calls; and where the schedulers of the known clusters are.
# Uses rooms 1 and 2.
# ============================================================================================================


AuroraError = Failure       # what all failures of this file are; by this name scripts catch them


InvalidConfig = failure("INVALID_CONFIG", 400, "The job configuration does not load or does not validate.")
AuthFailed = failure("AUTH_FAILED", 403, "The scheduler's own authorization denies it.", harmless=True)
JobUpdating = failure("JOB_UPDATING_ERROR", 409,
                      "An update of the job is active; Aurora refuses other changes meanwhile.")
Refused = failure("INVALID_REQUEST", 422,
                  "The scheduler refuses what was asked: validation, quota, a bad transition.")
SchedulerFailed = failure("ERROR", 502, "The scheduler answered ERROR: an exception inside it.")
BadAnswer = failure("SCHEDULER_BAD_ANSWER", 502, "The scheduler's answer is not one.")
SchedulerUnreachable = failure("SCHEDULER_UNREACHABLE", 502,
                               "No connection to the scheduler, or it broke off.")
IsolationUnavailable = failure("ISOLATION_UNAVAILABLE", 503,
                               "This machine has nothing to shut a configuration in with.")
SchedulerTransient = failure("ERROR_TRANSIENT", 503,
                             "The scheduler's storage is not ready; the call had no effect.", 1, True)
NoLeader = failure("NO_LEADER", 503, "No scheduler is leading.", retry_after=5)
SchedulerTimeout = failure("SCHEDULER_TIMEOUT", 504,
                           "The scheduler did not answer in time; a write may still take effect.")


# What a Response's code means for the caller; OK is no error, WARNING is unused by the scheduler and taken as
# OK.
_RESPONSE_ERRORS = {"INVALID_REQUEST": Refused, "ERROR": SchedulerFailed, "AUTH_FAILED": AuthFailed,
                    "JOB_UPDATING_ERROR": JobUpdating, "ERROR_TRANSIENT": SchedulerTransient}

# The field of a Response's result that holds what a method returns; the others return nothing, or not always.
_RESULTS = {"getRoleSummary": "roleSummaryResult", "getJobSummary": "jobSummaryResult",
            "getTasksStatus": "scheduleStatusResult", "getTasksWithoutConfigs": "scheduleStatusResult",
            "getPendingReason": "getPendingReasonResult", "getConfigSummary": "configSummaryResult",
            "getJobs": "getJobsResult", "getQuota": "getQuotaResult",
            "populateJobConfig": "populateJobResult",
            "getJobUpdateSummaries": "getJobUpdateSummariesResult",
            "getJobUpdateDetails": "getJobUpdateDetailsResult",
            "getJobUpdateDiff": "getJobUpdateDiffResult", "getTierConfigs": "getTierConfigResult",
            "pulseJobUpdate": "pulseJobUpdateResult", "listBackups": "listBackupsResult",
            "queryRecovery": "queryRecoveryResult", "startMaintenance": "startMaintenanceResult",
            "drainHosts": "drainHostsResult", "slaDrainHosts": "drainHostsResult",
            "maintenanceStatus": "maintenanceStatusResult", "endMaintenance": "endMaintenanceResult"}

# Methods that may be sent again although the first sending may have arrived: reads, and two writes that are
# idempotent (SchedulerProxy in apache/aurora, src/main/python/apache/aurora/client/api/scheduler_client.py).
_REPEATABLE_WRITES = frozenset(["startJobUpdate", "restartShards"])


class Semaphore:
    """Lets at most `slots` callers in at once; others wait in the order they came, at most `most_waiting` of
    them.

    Fair, unlike threading.Semaphore, where one who comes just when a slot gets free overtakes all that wait:
    under load the unlucky ones would wait until their time is up. share: how many slots one caller, `who`,
    may hold; one that has them is passed over by those behind him. All methods are for any thread; _lock
    guards _free, _held and _line.
    """

    def __init__(self, slots: int, most_waiting: int, what: str = "scheduler call",
                 share: Optional[int] = None) -> None:
        self.what = what
        self.slots = slots
        self.most_waiting = most_waiting
        self.share = share
        self._lock = threading.Lock()
        self._free = slots
        self._held: collections.Counter[Any] = collections.Counter()
        self._line: Deque[Tuple[Any, Any]] = collections.deque()

    @property
    def waiting(self) -> int:
        """How many are in the line."""
        return len(self._line)

    @property
    def inside(self) -> int:
        """How many slots are taken."""
        return self.slots - self._free

    def enter(self, seconds: float, who: Any = None) -> None:
        """Take a slot, waiting for at most `seconds`. Raises Overloaded."""
        with self._lock:
            if self._grant(who):
                return
            if len(self._line) >= self.most_waiting:
                raise Overloaded("%d %ss are under way and %d wait; try again" % (
                    self.slots, self.what, self.most_waiting))
            turn = (threading.Lock(), who)
            turn[0].acquire()
            self._line.append(turn)
        try:
            if turn[0].acquire(timeout=max(0.0, seconds)):
                return
        # a signal's handler may raise here: neither the turn nor a slot may stay behind
        except BaseException:
            if not self._withdraw(turn):
                self.leave(who)
            raise
        if self._withdraw(turn):
            raise Overloaded("no %s ended within %.1f s to make room for another" % (self.what, seconds))

    def leave(self, who: Any = None) -> None:
        """Give the slot back, or to the first in the line that may have it."""
        with self._lock:
            self._free += 1
            if who is not None:
                self._held[who] -= 1
                if not self._held[who]:
                    del self._held[who]
            for turn in tuple(self._line) if self._line else ():
                if not self._free:
                    return
                if self._grant(turn[1]):
                    self._line.remove(turn)
                    turn[0].release()

    def _grant(self, who: Any) -> bool:
        """Whether the caller gets a slot now. With the lock held; nobody who could have one is in the line
        then."""
        if not self._free or who is not None and self.share is not None and self._held[who] >= self.share:
            return False
        self._free -= 1
        if who is not None:
            self._held[who] += 1
        return True

    def _withdraw(self, turn: Any) -> bool:
        """Take a turn out of the line; False where it has just been given a slot."""
        with self._lock:
            if turn not in self._line:
                return False
            self._line.remove(turn)
            return True


class Locks:
    """A lock for each name in use. One read-then-write of a job or a role at a time in this process: what two
    callers read at once, both would add to. `most` may wait in all, so that one scheduler that hangs does not
    take the threads of the others. _lock guards _known, which holds a name only while somebody has or wants
    it, and _waiting.
    """

    def __init__(self, most: int = 32) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._known: Dict[Any, List[Any]] = {}
        self._waiting = 0

    @contextlib.contextmanager
    def __call__(self, *name: Any, seconds: float = 20.0) -> Iterator[None]:
        """Hold the lock of that name. Raises Overloaded where others have it for so long, or too many
        wait."""
        with self._lock:
            entry = self._known.setdefault(name, [Semaphore(1, self.most, "change of the same"), 0])
            waits = entry[1] > 0
            if waits and self._waiting >= self.most:
                raise Overloaded("%d changes wait for others of the same; try again" % self.most,
                                 retry_after=5)
            entry[1] += 1
            self._waiting += waits
        taken = False
        try:
            try:
                entry[0].enter(seconds)
                taken = True
            finally:
                with self._lock:
                    self._waiting -= waits
            yield
        finally:
            if taken:
                entry[0].leave()
            with self._lock:
                entry[1] -= 1
                if not entry[1]:
                    del self._known[name]


locked = Locks()


class Circuit:
    """The circuit breaker of one place where a scheduler listens: after some failures in a row calls fail at
    once, so that a dead scheduler costs neither threads nor slots. About every second one call is let through
    as a probe, and the first answer of any kind closes the circuit. A call that already failed there while
    its time for retries runs waits for that moment instead of failing; so an outage that is shorter than the
    time for retries is not seen by who came before it. For any thread; _lock guards all fields but cause.
    """
    AFTER = 5               # failures in a row before it opens
    SECONDS = (0.5, 1.0)    # how long it stays open at first, and at most

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        self.open_until = 0.0
        self.probing = False
        self.cause = ""         # of the last failure

    @property
    def left(self) -> float:
        """Seconds until the next probe; 0 while calls may go."""
        if self.failures < self.AFTER:
            return 0.0
        return max(0.05 if self.probing else 0.0, self.open_until - time.monotonic())

    def enter(self) -> Tuple[bool, bool]:
        """Before a call: whether it may go now, and whether it is the probe."""
        if self.failures < self.AFTER:
            return True, False
        with self._lock:
            if self.left:
                return False, False
            self.probing = self.failures >= self.AFTER
            return True, self.probing

    def answered(self) -> None:
        """Somebody answers there, whatever the answer."""
        if self.failures or self.probing:
            with self._lock:
                self.failures, self.probing = 0, False

    def failed(self, cause: str) -> bool:
        """Count a failure; True where that opens the circuit, or keeps it open."""
        with self._lock:
            self.failures += 1
            self.probing = False
            self.cause = cause
            if self.failures >= self.AFTER:
                first, most = self.SECONDS
                self.open_until = time.monotonic() + min(most,
                                                         first * 2.0 ** min(8, self.failures - self.AFTER))
            return self.failures >= self.AFTER


class _Broken(Exception):
    """The connection failed. sent: request bytes may have arrived; late: it failed by running out of time;
    after: not even tried, since the circuit is open for so many seconds more."""

    def __init__(self, text: str, sent: bool, late: bool = False, after: float = 0.0) -> None:
        super().__init__(text)
        self.sent = sent
        self.late = late
        self.after = after


class _Location(NamedTuple):
    """Where a scheduler listens: the parts of its URL, and the path of its Thrift endpoint."""
    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> _Location:
        """Raises ValueError for anything but an http or https URL."""
        parts = urllib.parse.urlsplit(url if "//" in url else "http://" + url)
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
            raise ValueError("not an http or https URL: %r" % url)
        if parts.username is not None or parts.port == 0:
            raise ValueError("a scheduler's URL has no credentials in it, and no port 0: %s" % parts.hostname)
        secure = parts.scheme == "https"
        path = parts.path if parts.path.rstrip("/").endswith("/api") else urllib.parse.urljoin(parts.path
                or "/", "api")
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80), path.rstrip("/"))

    def __str__(self) -> str:
        host = "[%s]" % self.host if ":" in self.host else self.host
        return "%s://%s:%d" % ("https" if self.secure else "http", host, self.port)


class Known:
    """The last reply to a call that is made again. Its owner lends it to that one call, which empties it when
    another reply comes, so that two large ones are not held at once."""
    __slots__ = ("reply",)

    def __init__(self, reply: bytes) -> None:
        self.reply = reply


class _Body:
    """A body that arrives in parts. As long as they are those of the known reply they are compared instead of
    stored; what is stored is there once, never in parts and as a whole at the same time."""

    def __init__(self, known: Optional[Known], limit: int) -> None:
        self.known = known
        self.limit = limit
        self.size = 0
        self._stored = io.BytesIO()

    def add(self, part: Union[bytes, memoryview]) -> None:
        """Raises _Broken where the body gets larger than the limit."""
        known, size = self.known, self.size
        self.size += len(part)
        if self.size > self.limit:
            raise _Broken("an answer over the limit of %d bytes" % self.limit, True)
        if known is not None:
            if known.reply.startswith(part, size):
                return
            self._part_ways(known, size)
        self._stored.write(part)

    def _part_ways(self, known: Known, size: int) -> None:
        self._stored.write(memoryview(known.reply)[:size])
        known.reply = b""
        self.known = None

    def whole(self) -> bytes:
        """All of it: the very object that is known, if it is the same."""
        if self.known is not None:
            if len(self.known.reply) == self.size:
                return self.known.reply
            self._part_ways(self.known, self.size)
        return self._stored.getvalue()


class _Wire:
    """One connection to a scheduler. Not for several threads at once."""
    MAX_HEAD = 65536
    PIECE = 1 << 18         # bytes asked of the network at once

    def __init__(self, location: _Location, seconds: float, context: Any, name: str = "") -> None:
        try:
            self.socket = socket.create_connection((location.host, location.port),
                                                   timeout=max(0.001, seconds))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname=name or location.host)
            self.socket.setblocking(False)
            self._buffer: Optional[memoryview] = None
            self._poll = select.poll()
            self._poll.register(self.socket, select.POLLIN)
        except (OSError, ValueError) as error:
            raise _Broken("%s: %s" % (location, _reason(error)), False,
                          isinstance(error, socket.timeout)) from None
        self.since = time.monotonic()

    def alive(self) -> bool:
        """Whether an idle connection is still open and silent."""
        self._poll.modify(self.socket, select.POLLIN)
        return not self._poll.poll(0) and not getattr(self.socket, "pending", int)()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def exchange(self, request: bytes, deadline: float, limit: int,
                 known: Optional[Known] = None) -> Tuple[int, Dict[bytes, bytes], bytes, bool]:
        """Send a request; (status, headers, body, whether the connection can be used again). Raises _Broken.

        known: a body that may come again; if it does, that very object is returned, and no other was made of
        it."""
        sent = False
        try:
            if time.monotonic() > deadline:
                raise socket.timeout("timed out")
            sent = True
            self._send(request, deadline)
            rest, words = b"", [b"", b"100"]
            while words[1][:1] == b"1":         # 100, 103: the answer itself is still to come
                head, rest = self._next_head(rest, deadline)
                lines = head.split(b"\r\n")
                words = lines[0].split(None, 2)
                if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not re.fullmatch(rb"\d{3}",
                        words[1]):
                    raise _Broken("an answer that is not HTTP", True)
            headers = {}
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                headers[name.strip().lower()] = value.strip()
            status = int(words[1])
            reusable = words[0] != b"HTTP/1.0" and headers.get(b"connection", b"").lower() != b"close"
            if status in (204, 304):
                return status, headers, b"", reusable
            body = _Body(known, limit)
            if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
                self._chunked(bytearray(rest), body, deadline)
                return status, headers, body.whole(), reusable
            length = headers.get(b"content-length")
            if length is None:
                self._rest(rest, body, deadline)
                return status, headers, body.whole(), False
            if not length.isdigit() or len(length) > 18:
                raise _Broken("a Content-Length that is no number", True)
            size = int(length)
            if size > limit:
                raise _Broken("an answer of %d bytes, over the limit of %d" % (size, limit), True)
            if len(rest) > size:
                raise _Broken("more bytes than announced", True)
            body.add(rest)
            while body.size < size:
                body.add(self._something(self._next(deadline, size - body.size)))
            return status, headers, body.whole(), reusable
        except (OSError, ValueError) as error:
            raise _Broken(_reason(error), sent, isinstance(error, socket.timeout)) from None

    def _next_head(self, data: bytes, deadline: float) -> Tuple[bytes, bytes]:
        """(a head, what came after it), after what has come already."""
        while b"\r\n\r\n" not in data:
            if len(data) > self.MAX_HEAD:
                raise _Broken("an endless header", True)
            data += self._receive(deadline)
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, rest

    def _wait(self, mask: int, deadline: float) -> None:
        """Wait until the network is ready. Raises socket.timeout."""
        self._poll.modify(self.socket, mask)
        if not self._poll.poll(max(0.0, (deadline - time.monotonic()) * 1000)):
            raise socket.timeout("timed out")

    def _when_ready(self, function: Callable[[Any], Any], argument: Any, mask: int, deadline: float) -> Any:
        """What a function of the socket returns, when it does not block any more. Raises socket.timeout."""
        while True:
            if time.monotonic() > deadline:     # a trickle is always ready
                raise socket.timeout("timed out")
            try:
                return function(argument)
            except OSError as error:
                waited = waits_for(error, mask)
                if not waited:
                    raise
                self._wait(waited, deadline)

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            left = left[self._when_ready(self.socket.send, left, select.POLLOUT, deadline):]

    def _receive(self, deadline: float, most: int = 65536) -> bytes:
        return self._something(self._when_ready(self.socket.recv, most, select.POLLIN, deadline))

    def _next(self, deadline: float, most: int) -> memoryview:
        """What comes next, in a buffer that the next call writes over; nothing at the end of the
        connection."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(self.PIECE))
        return self._buffer[:self._when_ready(self.socket.recv_into, self._buffer[:most], select.POLLIN,
                                              deadline)]

    @staticmethod
    def _something(received: Any) -> Any:
        if not received:
            raise _Broken("the connection was closed before the answer was whole", True)
        return received

    def _rest(self, data: bytes, body: _Body, deadline: float) -> None:
        """A body that ends with the connection."""
        body.add(data)
        while True:
            part = self._next(deadline, self.PIECE)
            if not part:
                return
            body.add(part)

    def _chunked(self, buffer: bytearray, body: _Body, deadline: float) -> None:
        chunks = ChunkedBody(body.limit, body.add)
        try:
            while not chunks.feed(buffer):
                buffer += self._receive(deadline, self.PIECE)
        except Failure as error:
            raise _Broken("its chunked answer is none: %s" % error, True) from None


class Ask(NamedTuple):
    """A call: what goes to the scheduler and what is wanted of the reply. projection: only these parts of the
    Response; authorization: instead of the scheduler's own; known: the reply to the last such call, if the
    caller remembers it."""
    method: Method
    arguments: Any
    message: bytes              # the call in the binary protocol
    projection: Optional[Projection] = None
    authorization: Optional[str] = None
    known: Optional[Known] = None


class _Network:
    """The way to the schedulers of a cluster: by location the idle connections, the circuit, the heads of
    requests. For any thread; _lock guards _idle, _circuits and _heads."""
    IDLE_SECONDS = 30.0

    def __init__(self, connect_timeout: float, max_answer: int, most_idle: int,
                 ca_file: Optional[str]) -> None:
        self.connect_timeout = connect_timeout
        self.max_answer = max_answer
        self.most_idle = most_idle          # connections kept for one location
        self.ca_file = ca_file
        self.circuit_breaks = 0
        self._lock = threading.Lock()
        self._idle: Dict[_Location, List[_Wire]] = {}
        self._circuits: Dict[_Location, Circuit] = {}
        self._heads: Dict[Tuple[_Location, Optional[str]], bytes] = {}
        self._context: Any = None

    def close(self) -> None:
        """Close the idle connections, and forget the certificates to trust and the heads with credentials."""
        with self._lock:
            wires = [wire for pool in self._idle.values() for wire in pool]
            self._idle.clear()
            self._heads.clear()
            self._context = None
        for wire in wires:
            wire.close()

    def circuit(self, location: _Location) -> Circuit:
        known = self._circuits.get(location)
        if known is not None:
            return known
        with self._lock:
            if len(self._circuits) > 64:        # redirects may have led anywhere
                self._circuits.clear()
            return self._circuits.setdefault(location, Circuit())

    def open(self, location: _Location) -> _Broken:
        """What a call meets where the circuit is open."""
        circuit = self.circuit(location)
        return _Broken("%s failed %d times in a row, at last with: %s; it is tried again in %.1f s" % (
            location, circuit.failures, circuit.cause, circuit.left), False, after=max(0.05, circuit.left))

    def exchange(self, location: _Location, request: bytes, deadline: float,
                  known: Optional[Known], named: bytes = b"") -> Tuple[int, Dict[bytes, bytes], bytes]:
        """(status, fields, body) of the answer. named: how a Thrift message that answers has to go on after
        its first eight bytes: with the method's name and the call's number, or none."""
        circuit = self.circuit(location)
        may_go, probes = circuit.enter()
        if not may_go:
            raise self.open(location)
        wire: Optional[_Wire] = None
        usable = False
        try:
            wire = self._take(location, deadline)
            status, headers, body, usable = wire.exchange(request, deadline, self.max_answer, known)
            circuit.answered()
            at = 8 + len(named)
            if body[8:at - 4] == named[:-4] and body[at - 4:at] not in (named[-4:], bytes(4)):
                usable = False
                raise _Broken("an answer to another call", True)
            return status, headers, body
        except _Broken as broken:
            self.circuit_breaks += circuit.failed(str(broken))
            raise
        finally:
            if probes:
                circuit.probing = False     # also where something else went wrong: the next caller tries
            if wire is not None and usable:
                self._give_back(location, wire)
            elif wire is not None:
                wire.close()

    def head(self, location: _Location, authorization: Optional[str]) -> bytes:
        """The request head up to the value of Content-Length."""
        key = (location, authorization)
        head = self._heads.get(key)
        if head is None:
            lines = ["POST %s HTTP/1.1" % location.path, "Host: " + str(location).split("//")[1],
                     "User-Agent: aurora_rest/" + __version__, "Content-Type: " + BINARY, "Accept: " + BINARY]
            if authorization:
                lines.append("Authorization: " + authorization)
            head = "\r\n".join(lines + ["Content-Length: "]).encode("latin-1", "replace")
            with self._lock:
                if len(self._heads) >= 64:
                    self._heads.clear()
                self._heads[key] = head
        return head

    def _take(self, location: _Location, deadline: float) -> _Wire:
        while True:
            with self._lock:
                pool = self._idle.get(location)
                wire = pool.pop() if pool else None
            if wire is None:
                seconds = min(self.connect_timeout, deadline - time.monotonic())
                return _Wire(location, seconds, self._tls() if location.secure else None)
            if time.monotonic() - wire.since < self.IDLE_SECONDS and wire.alive():
                return wire
            wire.close()

    def _give_back(self, location: _Location, wire: _Wire) -> None:
        wire.since = time.monotonic()
        with self._lock:
            pool = self._idle.setdefault(location, [])
            if len(pool) < self.most_idle:
                pool.append(wire)
                return
        wire.close()

    def _tls(self) -> Any:
        if self._context is None:
            import ssl
            self._context = ssl.create_default_context(cafile=self.ca_file)
        return self._context


class Scheduler:
    """One cluster's scheduler, called over Thrift; every method of the Aurora API is a method here.

    A call returns the Thrift Response and raises an AuroraError for everything but OK. Safe for many threads.

    url: where it listens, or several such (all schedulers of the cluster); timeout: seconds for one call, all
    attempts included; parallel: simultaneous calls; authorization: the Authorization header sent with every
    call, or a function that gives that for a host; locate: called for the URLs, with the seconds it may take,
    when they are not fixed (ZooKeeper); ca_file: certificates to trust for https. Credentials go only where
    these URLs point.

    How a call is tried again: a failure before anything was sent, and the scheduler's own word that nothing
    was done, is tried again for any call; after bytes went out only reads are, and the two writes that are
    harmless twice. Attempts go on for `retry_for` seconds, with pauses that grow to a second. What is told in
    the end speaks for all attempts: where any of them may have taken effect, the error says so (`sent`).
    """
    MAX_HOPS = 5

    def __init__(self, url: Union[str, Sequence[str]] = "http://127.0.0.1:8081", name: Optional[str] = None,
                 *,
                 timeout: float = 20.0, connect_timeout: float = 3.0, retry_for: float = 3.0,
                 parallel: int = 4,
                 most_waiting: int = 1000, max_answer: int = 256 << 20,
                 authorization: Union[None, str, Callable[[str], Optional[str]]] = None,
                 locate: Optional[Callable[[float], Sequence[str]]] = None,
                 ca_file: Optional[str] = None) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        self.name = name
        self.timeout = timeout
        self.retry_for = retry_for
        self.authorization = authorization
        self.semaphore = Semaphore(parallel, most_waiting)
        self.network = _Network(connect_timeout, max_answer, parallel, ca_file)
        self.leader: Optional[str] = None
        self.observe: Callable[[str, str, float], None] = lambda method, outcome, seconds: None
        self.retries = self.leader_changes = 0
        self._locate = locate
        self.answered = -math.inf           # when a scheduler last answered a call
        self._lock = threading.Lock()       # guards _leading and _named
        self._leading: Optional[_Location] = None
        # all that are the cluster's own
        self._named = [_Location.parse(each) for each in urls] if not locate else []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        import difflib
        near = difflib.get_close_matches(method, api.method_names, 2)
        raise AttributeError("the Aurora API has no method %s%s" % (
            method, "; did you mean %s?" % " or ".join(near) if near else ""))

    def close(self) -> None:
        """Close the idle connections."""
        self.network.close()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def call(self, method: str, *arguments: Any, projection: Optional[Projection] = None,
             authorization: Optional[str] = None, timeout: Optional[float] = None, **named: Any) -> Any:
        """Call a Thrift method with its arguments in declared order or by name; returns the Response if it is
        OK.

        projection: decode only these parts of the Response; authorization: instead of the scheduler's own.
        Raises the AuroraError that the Response's code or the failure stands for.
        """
        return self.ask(self.prepare(method, *arguments, projection=projection, authorization=authorization,
                                     **named),
                        timeout)[1]

    def _locate_now(self, seconds: float) -> None:
        found = [_Location.parse(url) for url in self._locate(seconds)] if self._locate else []
        with self._lock:
            self._named = found

    @staticmethod
    def prepare(method: str, *arguments: Any, projection: Optional[Projection] = None,
                authorization: Optional[str] = None, **named: Any) -> Ask:
        """The Ask that `call` with these arguments makes. Raises BadRequest for an empty set of instances: to
        killTasks it means all instances."""
        declared = api.method(method)
        made = declared.arguments(*arguments, **named)
        field = {"killTasks": "instances", "restartShards": "shardIds"}.get(method)
        if field and getattr(made, field) is not None and not getattr(made, field):
            meaning = ("means all instances to the scheduler; leave it out to mean that"
                       if method == "killTasks" else
                       "names no instance to restart")
            raise BadRequest("%s: an empty set %s" % (field, meaning))
        message = encode_message(BINARY, method, TMessageType.CALL, 0, made)
        # Its number is the question's own: an equal question has an equal reply, and a late reply to another
        # one is known for what it is.
        at = 8 + len(method)
        message = message[:at] + struct.pack("!I", zlib.crc32(message) >> 1) + message[at + 4:]
        return Ask(declared, made, message, projection, authorization)

    def ask(self, ask: Ask, timeout: Optional[float] = None) -> Tuple[bytes, Any]:
        """(the reply's bytes, the Response), raising what `call` does. Where the bytes are those of
        `ask.known` it is these which are returned, and None for the Response: it was OK, and `decode` gives
        it again."""
        started = time.monotonic()
        deadline = started + (self.timeout if timeout is None else timeout)
        outcome = "OK"
        try:
            if ask.method.name != "pruneTasks":
                found = self._repeat(ask, deadline)
                self.answered = time.monotonic()
                return found
            with locked("prune", id(self), seconds=deadline - time.monotonic()):     # one at a time
                left = narrowed(self, ask, deadline - time.monotonic())
                if left is None:
                    return b"", api.Response(responseCode=api.ResponseCode.OK, details=[
                        api.ResponseDetail(message="No ended task matches; nothing was sent.")])
                return self._repeat(left, deadline)
        except AuroraError as error:
            outcome = error.code
            if error.response is not None and error.http < 500:
                self.answered = time.monotonic()
            if error.sent and ask.method.writes:
                error.doubt(ask.method.name)
            raise
        finally:
            self.observe(ask.method.name, outcome, time.monotonic() - started)

    def probe(self, seconds: float) -> Optional[AuroraError]:
        """Ask, beside the semaphore and without retries, whether a scheduler leads and answers; what is wrong
        if not."""
        ask = self.prepare("getTierConfigs")
        try:
            self.decode(ask, self._post(ask, time.monotonic() + seconds))
        except (Unauthorized, AuthFailed):
            pass            # it answers; who may ask is between callers and it
        except _Broken as broken:
            return self._told(broken)
        except AuroraError as error:
            return error
        self.answered = time.monotonic()
        return None

    def _repeat(self, ask: Ask, deadline: float) -> Tuple[bytes, Any]:
        """Attempt a call until it is answered or its time for retries is over."""
        method = ask.method
        repeatable = not method.writes or method.name in _REPEATABLE_WRITES
        give_up = min(deadline, time.monotonic() + self.retry_for)
        sent = False            # by any attempt so far
        for attempt in itertools.count():
            after = 0.0
            try:
                return self._attempt(ask, deadline)
            except _Broken as broken:
                sent = sent or broken.sent
                failure = self._told(broken)
                again = not broken.late and (repeatable or not broken.sent) and (attempt > 0
                        or not broken.after)
                after = broken.after
            except AuroraError as error:
                sent = sent or error.sent
                failure = error
                again = isinstance(error, (SchedulerTransient, NoLeader))
            pause = after or min(1.0, 0.05 * 4.0 ** min(attempt, 4)) * random.uniform(0.75, 1.25)
            if not again or time.monotonic() + pause >= give_up:
                failure.sent = sent
                raise failure from None
            self.retries += 1
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _told(self, broken: _Broken) -> AuroraError:
        """A failed attempt as the caller's error."""
        where = "the scheduler of cluster %s" % self.name if self.name else "the scheduler"
        if broken.late:
            return SchedulerTimeout("%s did not answer in time (%s)" % (where, broken))
        after = max(1, math.ceil(broken.after)) if broken.after else 0
        return SchedulerUnreachable("%s cannot be reached or broke off: %s" % (where, broken),
                                    retry_after=after)

    def _attempt(self, ask: Ask, deadline: float) -> Tuple[bytes, Any]:
        # Looked at before the semaphore, so that a dead scheduler does not fill the line.
        leading = self._leading
        first = [leading] if leading else self._named
        if first and all(self.network.circuit(each).left for each in first):
            raise self.network.open(first[0])
        self.semaphore.enter(deadline - time.monotonic())
        try:
            body = self._post(ask, deadline)
            # one that was emptied is no reply
            same = ask.known is not None and body and body is ask.known.reply
            # in the slot: no more replies than there are slots wait for the processor
            return body, None if same else self.decode(ask, body)
        finally:
            self.semaphore.leave()

    def decode(self, ask: Ask, body: bytes) -> Any:
        """The Response in a reply to `ask`. Raises the AuroraError that it stands for if it is not OK."""
        method, projection = ask.method, ask.projection
        try:
            response = decode_reply(BINARY, method.name, body, projection)
        except BadMessage as error:
            raise self._unreadable("the scheduler's answer to %s cannot be read: %s" %
                                   (method.name, error)) from None
        code = response.get("responseCode") if projection else response.responseCode
        if code in (api.ResponseCode.OK, api.ResponseCode.WARNING):
            field = _RESULTS.get(method.name)
            result = response.get("result", {}) if projection else response.result
            if field and (field not in result if projection else getattr(result, field, None) is None):
                raise self._unreadable("the scheduler answered %s with OK and no %s" % (method.name, field))
            return response
        details = (response.get("details") if projection else response.details) or []
        texts = [(each.get("message") if projection else each.message) for each in details]
        name = api.ResponseCode.name_of(code)
        failure = _RESPONSE_ERRORS.get(name, SchedulerFailed)(
            *([_shortened(text) for text in texts if text]
              or ["the scheduler answered %s to %s" % (name, method.name)]))
        failure.response = response
        failure.sent = name not in _RESPONSE_ERRORS       # a code that nobody knows tells nothing
        raise failure

    @staticmethod
    def _unreadable(text: str) -> Failure:
        error = BadAnswer(text)
        error.sent = True
        return error

    def _post(self, ask: Ask, deadline: float) -> bytes:
        """One POST of the call to the leader, following redirects; the body of the 200 answer. Where the
        cluster's schedulers listen is looked up only when no leader is known, or the one that is fails."""
        leading = self._leading
        leading = leading if leading in self._named else None
        failure: Optional[Exception] = None
        for candidate in itertools.chain([leading] if leading else [], self._others(leading, deadline)):
            try:
                return self._follow(candidate, ask, deadline)
            except NoLeader as error:       # the call had no effect there; another may know of a leader
                failure = error
            except _Broken as broken:
                if broken.sent or broken.late and time.monotonic() >= deadline:
                    self._forget_leader()
                    raise
                failure = broken
            self._forget_leader()
        raise failure or NoLeader("no scheduler of cluster %s is advertised at the moment" % self.name)

    def _others(self, leading: Optional[_Location], deadline: float) -> Iterator[_Location]:
        """The schedulers beside the leader; a generator, so that ZooKeeper is asked when it comes to that."""
        if self._locate:
            self._locate_now(deadline - time.monotonic())
        with self._lock:
            found = list(self._named)
        yield from (each for each in found if each != leading)

    def _follow(self, location: _Location, ask: Ask, deadline: float) -> bytes:
        method = ask.method
        for _ in range(self.MAX_HOPS + 1):
            authorization = self._credentials(ask, location)
            # here, where they would be sent, whatever led there
            if authorization and not self._is_named(location):
                raise BadAnswer("the scheduler redirects to %s, which is none of the cluster's schedulers "
                                "that are known "
                                "here; credentials are not sent there (name it in --scheduler or "
                                "clusters.json)" % (
                                    str(location)))
            request = self.network.head(location,
                                        authorization) + b"%d\r\n\r\n" % len(ask.message) + ask.message
            status, headers, body = self.network.exchange(
                location, request, deadline, ask.known, ask.message[8:12 + len(method.name)])
            if status == 200:
                self._succeeded(location)
                return body
            if status in (301, 302, 307, 308):
                location = self._redirect(location, headers, ask)
                continue
            if status == 401:
                challenge = headers.get(b"www-authenticate", b"Basic").decode("latin-1")
                raise Unauthorized("the scheduler wants credentials for %s" % method.name,
                                   headers=[("WWW-Authenticate", challenge)])
            if status == 403:
                raise AuthFailed("the scheduler forbids %s" % method.name)
            if status == 503:
                raise NoLeader("no scheduler of the cluster is leading at the moment")
            if status in (502, 504):        # of a load balancer: its scheduler failed, perhaps in the middle
                raise _Broken("HTTP %d" % status, True)
            raise self._unreadable("the scheduler answered HTTP %d to %s" % (status, method.name))
        raise BadAnswer("the schedulers redirect in a circle; none of them says it is leading")

    def _credentials(self, ask: Ask, location: _Location) -> Optional[str]:
        """The Authorization of a call at a place: the caller's, else the cluster's own for that host."""
        if ask.authorization is not None:
            return ask.authorization
        own = self.authorization
        return own(location.host) if callable(own) else own

    def _redirect(self, location: _Location, headers: Dict[bytes, bytes], ask: Ask) -> _Location:
        """Where a redirect leads. Raises BadAnswer where it is no URL, or credentials would go from https to
        http."""
        text = headers.get(b"location", b"").decode("latin-1")
        try:
            target = _Location.parse(urllib.parse.urljoin(str(location) + location.path, text))
        except ValueError:
            raise BadAnswer("the scheduler redirects to %r, which is no URL" % text[:200]) from None
        if location.secure and not target.secure and self._credentials(ask, target):
            raise BadAnswer("the scheduler redirects from https to http; credentials are not sent there")
        return target

    def _is_named(self, location: _Location) -> bool:
        """Whether the cluster's entry, or ZooKeeper, names a scheduler at this host and port."""
        with self._lock:
            return any((each.host, each.port) == (location.host, location.port) for each in self._named)

    def reload(self, ca_file: Optional[str], authorization: Union[None, str,
            Callable[[str], Optional[str]]]) -> None:
        """Use other certificates to trust, and other credentials, from the next connection and call on."""
        self.network.ca_file, self.authorization = ca_file, authorization
        self._forget_leader()
        self.network.close()

    def _succeeded(self, location: _Location) -> None:
        if self._leading == location or location not in self._named:     # a stranger is asked anew each time
            return
        with self._lock:
            changed = self._leading != location
            self._leading = location
        if changed:
            self.leader_changes += bool(self.leader and self.leader != str(location))
            self.leader = str(location)

    def _forget_leader(self) -> None:
        with self._lock:
            self._leading = None


def narrowed(scheduler: Scheduler, ask: Ask, timeout: Optional[float] = None) -> Optional[Ask]:
    """A pruneTasks that names the tasks it is to delete, None where there is none; any other call as it is.

    A query that matches nothing makes Aurora delete *every* task of the cluster, running ones too: with no
    ids StateManagerImpl.deleteTasks asks for all there is. So it is looked first, and sent by the ids that
    were found. What remains is that somebody else deletes all of these between the look and the call.
    """
    if ask.method.name != "pruneTasks":
        return ask
    query = ask.arguments.query or api.TaskQuery()
    if query.limit is not None and query.limit < 1:
        raise BadRequest("limit=%d: a prune of no task would make the scheduler delete all" % query.limit)
    if query.statuses and query.statuses & api.ACTIVE_STATES:
        raise BadRequest("only ended tasks can be pruned: %s" % ", ".join(
            sorted(api.ScheduleStatus.name_of(each) for each in api.TERMINAL_STATES)))
    look = query.replace(statuses=query.statuses or set(api.TERMINAL_STATES), offset=None)
    ids = Projection(Type("struct", api.Response), {"responseCode": True, "details": True, "result": {
        "scheduleStatusResult": {"tasks": {"assignedTask": {"taskId": True}}}}})
    response = scheduler.ask(scheduler.prepare(
        "getTasksWithoutConfigs", look, projection=ids, authorization=ask.authorization), timeout)[1]
    tasks = response["result"]["scheduleStatusResult"].get("tasks", ())
    found = {task.get("assignedTask", {}).get("taskId") for task in tasks} - {None, ""}
    if not found:
        return None
    return scheduler.prepare("pruneTasks", api.TaskQuery(taskIds=found, statuses=look.statuses),
                             projection=ask.projection, authorization=ask.authorization)


def _declare_methods() -> None:
    """Give Scheduler the API's methods, with their parameters for `help`, completion and
    `inspect.signature`."""
    source = []
    for name in api.method_names:
        access, fields = api.signature(name)
        source.append(
            "def %s(self%s, **options: 'projection, authorization, timeout') -> 'Response':\n"
            "    'Thrift %s, for which the scheduler wants %s access. As `call`.'\n    return self.call(%r, "
            "%s**options)\n" % (
                name, "".join(", %s: %r = None" % pair for pair in fields), name, access, name,
                "".join(field + ", " for field, _ in fields)))
    namespace: Json = {}
    exec("".join(source), namespace)
    for name in api.method_names:
        setattr(Scheduler, name, namespace[name])


_declare_methods()


def _shortened(text: str, most: int = 1000) -> str:
    """A refusal may carry a whole JobConfiguration: its beginning tells what it is about."""
    return text if len(text) <= most else "%s … (%d characters more)" % (text[:most], len(text) - most)


def messages_of(response: Any) -> List[str]:
    """The messages that a Response carries."""
    return [each.message for each in response.details or [] if each.message]


class Cluster(NamedTuple):
    """One entry of clusters.json, or of --scheduler. zk: "" when the scheduler's URL is fixed; basic: its
    entry says that the schedulers want Basic credentials."""
    name: Optional[str]
    urls: Tuple[str, ...] = ()
    zk: str = ""
    zk_path: str = ""
    basic: bool = False
    docker_registry: str = "https://registry-1.docker.io"


CLUSTER_FILES = (os.path.join("$AURORA_CONFIG_ROOT", "clusters.json"), "~/.aurora/clusters.json")


def read_clusters(path: str) -> List[Cluster]:
    """The clusters of a clusters.json file. Raises ValueError or OSError."""
    with open(path, encoding="utf-8") as stream:
        try:
            entries = json.load(stream)
        except ValueError as error:
            raise ValueError("%s is not JSON: %s" % (path, error)) from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str)
                                                for e in entries):
        raise ValueError("%s: expected a list of objects with a name each" % path)
    found = []
    for entry in entries:
        if not all(isinstance(entry.get(field) or "", str)
                   for field in ("scheduler_uri", "zk", "scheduler_zk_path",
                                                                         "docker_registry",
                                                                         "auth_mechanism")):
            raise ValueError("%s: cluster %s has a field that is not text" % (path, entry["name"]))
        port = str(entry.get("zk_port") or 2181)
        if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
            raise ValueError("%s: cluster %s has a zk_port that is none: %s" %
                             (path, entry["name"], port[:80]))
        made = Cluster(entry["name"], docker_registry=entry.get("docker_registry")
                       or Cluster(None).docker_registry,
                       basic=(entry.get("auth_mechanism") or "").upper() == "BASIC")
        if entry.get("zk"):     # before scheduler_uri, as for the aurora client
            hosts = ["%s:%s" % (host.strip(), port) if ":" not in host else host.strip()
                     for host in entry["zk"].split(",")]
            made = made._replace(zk=",".join(hosts), zk_path=entry.get("scheduler_zk_path")
                                 or "/aurora/scheduler")
        elif entry.get("scheduler_uri"):
            _Location.parse(entry["scheduler_uri"])
            made = made._replace(urls=(entry["scheduler_uri"],))
        else:
            raise ValueError("%s: cluster %s has neither scheduler_uri nor zk" % (path, entry["name"]))
        found.append(made)
    return found


def default_clusters() -> List[Cluster]:
    """The clusters of the files where the aurora client looks, else the scheduler on this host, its name
    unknown yet."""
    root = os.environ.get("AURORA_CONFIG_ROOT") or "/etc/aurora"
    found: Dict[Optional[str], Cluster] = {}
    for pattern in CLUSTER_FILES:
        path = os.path.expanduser(pattern.replace("$AURORA_CONFIG_ROOT", root))
        if os.path.isfile(path):
            found.update((cluster.name, cluster) for cluster in read_clusters(path))
    return list(found.values()) or [Cluster(None, ("http://127.0.0.1:8081",))]


class ZooKeeperLocator:
    """Where the schedulers of a cluster listen, as ZooKeeper tells it.

    A call waits for as long as its caller has, for a look-up in a thread of its own; there is one at a time,
    however many wait. The last answer is kept: while ZooKeeper is away it is given after a second, so that a
    leader that is known to nobody else is still found. A look-up that ended less than a second ago is not
    made again, and one that has not ended in fifteen is given up. _lock guards all fields.
    """
    FRESH = 1.0
    GIVE_UP = 15.0

    def __init__(self, cluster: Cluster, ask: Optional[Callable[[Cluster], List[str]]] = None) -> None:
        self.cluster = cluster
        self._ask = ask or _ask_zookeeper
        self._lock = threading.Lock()
        self._urls: List[str] = []
        self._failure: Optional[AuroraError] = None
        self._looked = self._began = -math.inf
        self._under_way: Optional[threading.Event] = None

    def __call__(self, seconds: float) -> Sequence[str]:
        """The URLs; none where no scheduler is advertised. Raises AuroraError."""
        with self._lock:
            known = bool(self._urls)
            now = time.monotonic()
            if now - self._looked > self.FRESH and (self._under_way is None
                                                    or now - self._began > self.GIVE_UP):
                self._under_way, self._began = threading.Event(), now
                try:
                    threading.Thread(target=self._look, args=(self._under_way,), name="zookeeper",
                                     daemon=True).start()
                except RuntimeError:
                    self._under_way = None
                    raise Overloaded("no thread could be started to ask ZooKeeper") from None
            under_way = self._under_way
        late = under_way is not None and not under_way.wait(max(0.0, min(1.0, seconds) if known else seconds))
        with self._lock:
            if self._urls or not late and self._failure is None:
                return list(self._urls)
            raise self._failure or SchedulerTimeout("ZooKeeper %s did not tell in time where cluster %s is" %
                                                    (
                self.cluster.zk, self.cluster.name))

    def _look(self, under_way: threading.Event) -> None:
        urls, failure = None, None
        try:
            urls = self._ask(self.cluster)
        except AuroraError as error:
            failure = error
        except Exception as error:      # kazoo raises its own classes and those of its handlers
            failure = SchedulerUnreachable("ZooKeeper %s does not tell where cluster %s is: %s" % (
                self.cluster.zk, self.cluster.name, str(error) or type(error).__name__))
        with self._lock:
            if under_way is self._under_way:        # else it was given up, and what it says is old
                if urls is not None:
                    self._urls = urls
                self._failure = failure
                self._looked = time.monotonic()
                self._under_way = None
        under_way.set()


def _ask_zookeeper(cluster: Cluster) -> List[str]:
    try:
        from kazoo.client import KazooClient  # type: ignore[import-not-found, unused-ignore]
        from kazoo.exceptions import NoNodeError  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise SchedulerUnreachable(
            "cluster %s is found through ZooKeeper (%s), which needs the package kazoo: pip install kazoo; "
            "or give its "
            "scheduler_uri in clusters.json, or --scheduler %s=URL" %
            (cluster.name, cluster.zk, cluster.name)) from None
    client = KazooClient(hosts=cluster.zk, timeout=5.0, read_only=True)
    try:
        client.start(timeout=5)
        urls = []
        for member in sorted(client.get_children(cluster.zk_path)):
            if member.startswith("member_"):
                with contextlib.suppress(NoNodeError):      # gone since the list was made
                    url = member_url(client.get("%s/%s" % (cluster.zk_path, member))[0])
                    urls += [url] if url else []
        return urls
    finally:
        with contextlib.suppress(Exception):
            client.stop()
            client.close()


def member_url(data: bytes) -> Optional[str]:
    """Where a member of the schedulers' group listens; None for what is no member: as Aurora's own monitor
    (CuratorServiceGroupMonitor), that is passed over."""
    try:
        plain = json.loads(data.decode("utf-8"))
        ends = plain.get("additionalEndpoints") or {}
        scheme = "https" if "https" in ends else "http"
        end = ends.get(scheme) or plain["serviceEndpoint"]
        host, port = str(end["host"]), int(end["port"])
        if not re.fullmatch(r"[\w.\-:]+", host, re.ASCII) or not 0 < port < 65536:
            return None
        return str(_Location(scheme == "https", host, port, ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class Clusters:
    """The known clusters and a Scheduler for each. A cluster without a name takes the one its scheduler
    tells.

    make: builds the Scheduler of a Cluster.
    """

    def __init__(self, clusters: Iterable[Cluster], make: Callable[[Cluster], Scheduler]) -> None:
        self._lock = threading.Lock()       # guards _known and _nameless
        self._known: Dict[str, Tuple[Cluster, Scheduler]] = {}
        self._nameless: List[Tuple[Cluster, Scheduler]] = []
        for cluster in clusters:
            pair = (cluster, make(cluster))
            if cluster.name is None:
                self._nameless.append(pair)
            else:
                self._known[cluster.name] = pair

    def names(self) -> List[str]:
        """The names known now; asks schedulers that have not told theirs yet, and leaves out those that do
        not answer."""
        with contextlib.suppress(AuroraError):
            self._learn()
        return sorted(self._known)

    def pairs(self) -> List[Tuple[Cluster, Scheduler]]:
        """All clusters with their schedulers, named or not."""
        with self._lock:
            return list(self._known.values()) + self._nameless

    def schedulers(self) -> List[Scheduler]:
        """All schedulers, named or not."""
        return [pair[1] for pair in self.pairs()]

    def _learn(self) -> None:
        for pair in list(self._nameless):
            cluster, scheduler = pair
            response = scheduler.call("getTierConfigs")
            name = (response.serverInfo and response.serverInfo.clusterName) or "default"
            with self._lock:
                if pair in self._nameless:
                    self._nameless.remove(pair)
                    scheduler.name = name
                    self._known.setdefault(name, (cluster._replace(name=name), scheduler))

    def pair(self, name: str) -> Tuple[Cluster, Scheduler]:
        """The cluster of that name and its scheduler. Raises NotFound, which names those there are."""
        if name not in self._known and self._nameless:
            self._learn()
        try:
            return self._known[name]
        except KeyError:
            raise NotFound("unknown cluster %s; known: %s" %
                           (name, ", ".join(sorted(self._known)) or "none")) from None

    def __getitem__(self, name: str) -> Scheduler:
        return self.pair(name)[1]


# ============================================================================================================
# 4. Job configuration
#
# The Aurora schema in pystachio, the isolated evaluation of `.aurora` source, conversion to JobConfiguration
# and update settings. The code between "child" banners runs in an evaluator process of its own, never in the
# server. Uses rooms 1 to 3.
# ============================================================================================================


class ConfigLimits(NamedTuple):
    """What evaluating one configuration may take."""
    cpu_seconds: int = 5
    wall_seconds: float = 8.0
    memory_bytes: int = 512 << 20
    source_bytes: int = 4 << 20     # all files of one configuration together
    output_bytes: int = 4 << 20
    includes: int = 64              # files taken from --include-root by one configuration
    images: int = 32                # docker image references resolved for one configuration


MAX_TASKS_PER_JOB = 4000            # ConfigurationManager: -max_tasks_per_job
MIN_PULSE_SECONDS = 60              # py/client/api/updater_util.py
MAX_INCLUDE_NAME = 4096
MAX_VALUES = 200000                 # objects and lists in a configuration's result
UPDATE_ID_METADATA = "org.apache.aurora.client.update_id"

# --- child: the schema --------------------------------------------------------------------------------------
# Names, types and defaults are those of py/config/schema/base.py and apache/thermos/config/schema_base.py.


@lru_cache(maxsize=1)
def _stachio() -> Any:
    """What of pystachio's the quickening changes and asks for."""
    import types

    from pystachio import Empty, base, basic, composite, container, naming, typing
    return types.SimpleNamespace(
        Empty=Empty, Environment=base.Environment, Simple=basic.SimpleObject, Struct=composite.Structural,
        List=container.ListContainer, Map=container.MapContainer, Namable=naming.Namable, Ref=naming.Ref,
        frozendict=naming.frozendict, TypeCheck=typing.TypeCheck)


def _lazy_scopes() -> Callable[[Any], Any]:
    """A struct's `scopes` that are built only when something wants to see them."""
    given = _stachio()
    Empty, Environment, Namable, Ref = given.Empty, given.Environment, given.Namable, given.Ref

    class Fields(Environment):  # type: ignore[misc,valid-type]
        """A struct's own fields as a scope."""
        __slots__ = ("fields",)

        def __init__(self, fields: Any) -> None:
            self.fields = fields

        @property
        def _table(self) -> Dict[Any, Any]:
            return {Ref.from_address(name): value for name, value in self.fields.items()
                    if value is not Empty}

        def find(self, ref: Any) -> Any:
            first = ref.components()[0]
            value = self.fields.get(first.value, Empty) if isinstance(first, Ref.Dereference) else Empty
            if value is Empty:
                raise Namable.NotFound(self, ref)
            if len(ref.components()) == 1:
                return value
            if not isinstance(value, Namable):
                raise Namable.NotFound(self, ref)
            return found_in(value, ref.rest(), self, ref)

    class Under(Environment):  # type: ignore[misc,valid-type]
        """Another scope under a name."""
        __slots__ = ("name", "scope")

        def __init__(self, name: str, scope: Any) -> None:
            self.name = name
            self.scope = scope

        @property
        def _table(self) -> Dict[Any, Any]:
            return Environment({self.name: self.scope})._table

        def find(self, ref: Any) -> Any:
            first = ref.components()[0]
            if first.value != self.name or not isinstance(first, Ref.Dereference):
                raise Namable.NotFound(self, ref)
            if len(ref.components()) > 1:
                return found_in(self.scope, ref.rest(), self, ref)
            if isinstance(self.scope, Environment):
                raise Namable.NotFound(self, ref)
            return self.scope

    def found_in(scope: Any, rest: Any, asked: Any, ref: Any) -> Any:
        try:
            return scope.find(rest)
        except Namable.Error:
            raise Namable.NotFound(asked, ref) from None

    def scopes(self: Any) -> Any:
        fields = Fields(self._schema_data)
        return (Under("self", fields), fields) + self._scopes + tuple(Under("super", scope)
                for scope in self._scopes)
    return scopes


def _copier(attribute: str) -> Callable[[Any], Any]:
    """A copy that takes the parts over instead of checking them again."""
    def dup(self: Any) -> Any:
        made = object.__new__(type(self))
        value = getattr(self, attribute)
        setattr(made, attribute, _stachio().frozendict(value) if attribute == "_schema_data" else value)
        made._scopes = ()
        return made
    return dup


def _literal(self: Any) -> bool:
    return not isinstance(self._value, str) or "{{" not in self._value


def _closed(value: Any) -> bool:
    """Whether nothing in a value is left to interpolate, and all is of the right types: found out once for
    each."""
    given = _stachio()
    if isinstance(value, given.Simple):
        try:
            return _literal(value) and type(value.coerce(value._value)) is type(value._value)
        except ValueError:
            return False
    known = value.__dict__.get("_closed")
    if known is None:       # a copy does not have it, and finds out anew from its parts
        parts: Iterable[Any] = ()
        known = True
        if isinstance(value, given.Struct):
            parts = value._schema_data.values()
        elif isinstance(value, given.List):
            parts = value._values
        elif isinstance(value, given.Map):
            parts = itertools.chain.from_iterable(value._map)
        else:
            known = False
        # What has scopes of its own loses them in interpolation.
        known = value._closed = known and all(each is given.Empty or _closed(each) and (
            isinstance(each, given.Simple) or not each._scopes) for each in parts)
    return bool(known)


def _bare(value: Any) -> Any:
    return value.dup() if value._scopes else value


def _quicken_structs() -> None:
    given = _stachio()
    Empty, Structural = given.Empty, given.Struct

    def interpolate_struct(self: Any) -> Any:
        if _closed(self):
            return _bare(self), []
        unbound: Set[Any] = set()
        data, around = {}, self.scopes()
        for name, value in self._schema_data.items():
            if value is not Empty and _closed(value):
                value = _bare(value)
            elif value is not Empty:
                found, left = value.in_scope(*around).interpolate()
                unbound.update(left)
                # A Choice comes back as what was chosen, and is wrapped again; all else is of the type it
                # was.
                value = found if type(found) is type(value) else self._process_schema_attribute(name, found)
            data[name] = value
        made = object.__new__(type(self))
        made._schema_data, made._scopes = given.frozendict(data), ()
        return made, list(unbound)

    def interpolate_key(self: Any, name: str) -> Any:
        value = self._schema_data[name]
        return _bare(value) if value is not Empty and _closed(value) else keyed(self, name)

    def check_struct(self: Any) -> Any:
        if not _closed(self):
            return checked(self)
        if "_checked" not in self.__dict__:
            self._checked = checked(self)
        return self._checked

    def checked(self: Any) -> Any:
        around = self.scopes()
        for name, signature in self.TYPEMAP.items():
            value = self._schema_data[name]
            if value is not Empty:
                found = (value if _closed(value) else value.in_scope(*around)).check()
                if not found.ok():
                    return given.TypeCheck.failure("%s[%s] failed: %s" %
                                                   (type(self).__name__, name, found.message()))
            elif signature.required:
                return given.TypeCheck.failure("%s[%s] is required." % (type(self).__name__, name))
        return given.TypeCheck.success()
    keyed = Structural.interpolate_key
    Structural.interpolate_key, Structural.check = interpolate_key, check_struct
    Structural.scopes, Structural.interpolate = _lazy_scopes(), interpolate_struct


def _quicken_pystachio() -> None:
    """Make pystachio six times as fast without changing what it finds.

    Looking up one field builds an Environment of all fields, then the same again under `self`, then all outer
    scopes again under `super`, each time as a new dictionary of references. Here these three are built only
    when something wants to see the dictionary; a look-up goes straight to the field. Likewise a copy of a
    struct, list or map takes the parts over instead of checking again what was checked when they were first
    put in, as does interpolation, and text without {{ is not searched for templates. Most of a job is closed,
    which is to say that nothing in it is left to interpolate: that it is so, and whether it is of the right
    types, is found out once for each object; no scope changes it.
    """
    given = _stachio()
    scoped, interpolated = given.Simple.in_scope, given.Simple.interpolate

    def in_scope(self: Any, *arguments: Any, **named: Any) -> Any:
        return self if _literal(self) else scoped(self, *arguments, **named)

    def interpolate(self: Any) -> Any:
        if not _literal(self):
            return interpolated(self)
        coerced = self.coerce(self._value)
        if type(coerced) is type(self._value):
            return self, []
        made = self.copy()
        made._value = coerced
        return made, []

    def interpolator(original: Any) -> Any:
        return lambda self: (_bare(self), []) if _closed(self) else original(self)
    given.Simple.in_scope, given.Simple.interpolate = in_scope, interpolate
    for container in (given.List, given.Map):
        container.interpolate = interpolator(container.interpolate)
    given.Struct.dup, given.List.dup, given.Map.dup = map(_copier, ("_schema_data", "_values", "_map"))
    _quicken_structs()


SCHEMA = """
struct ThermosContext { ports: Map(String, Integer); task_id: String; user: String }
struct Resources { cpu: Float!; ram: Integer!; disk: Integer!; gpu: Integer = 0 }
struct Constraint { order: List(String) }
struct RotatePolicy { log_size: Integer = 100 * MB; backups: Integer = 5 }
LoggerDestination = Enum("file", "console", "both", "none")
LoggerMode = Enum("standard", "rotate")
struct Logger { destination: LoggerDestination = LoggerDestination("file");
  mode: LoggerMode = LoggerMode("standard");
  rotate: RotatePolicy }
struct Process { cmdline: String!; name: String!; resources: Resources; max_failures: Integer = 1;
  daemon: Boolean = False;
  ephemeral: Boolean = False; min_duration: Integer = 5; final: Boolean = False; logger: Logger = Empty }
struct Task { name: String = "{{processes[0].name}}"; processes: List(Process);
  constraints: List(Constraint) = [];
  resources: Resources; max_failures: Integer = 1; max_concurrency: Integer = 0;
    finalization_wait: Integer = 30;
  user: String }
struct MesosContext { instance: Integer!; hostname: String! }
struct QueueUpdateStrategy { batch_size: Integer = 1 }
struct BatchUpdateStrategy { batch_size: Integer = 1; autopause_after_batch: Boolean = False }
struct VariableBatchUpdateStrategy { batch_sizes: List(Integer)!; autopause_after_batch: Boolean = False }
struct UpdateConfig { batch_size: Integer = 1; watch_secs: Integer = 45; max_per_shard_failures: Integer = 0;
  max_total_failures: Integer = 0; rollback_on_failure: Boolean = True;
    wait_for_batch_completion: Boolean = False;
  pulse_interval_secs: Integer; sla_aware: Boolean = False;
  update_strategy: Choice([QueueUpdateStrategy, BatchUpdateStrategy, VariableBatchUpdateStrategy]) }
struct HttpHealthChecker { endpoint: String = "/health"; expected_response: String = "ok";
  expected_response_code: Integer = 0 }
struct ShellHealthChecker { shell_command: String! }
struct HealthCheckerConfig { http: HttpHealthChecker; shell: ShellHealthChecker }
DefaultHealthChecker = HealthCheckerConfig(http=HttpHealthChecker())
struct HealthCheckConfig { health_checker: HealthCheckerConfig = DefaultHealthChecker;
  initial_interval_secs: Float = 15.0;
  interval_secs: Float = 10.0; max_consecutive_failures: Integer = 0; min_consecutive_successes: Integer = 1;
  timeout_secs: Float = 1.0 }
struct HttpLifecycleConfig { port: String = "health"; graceful_shutdown_endpoint: String = "/quitquitquit";
  shutdown_endpoint: String = "/abortabortabort"; graceful_shutdown_wait_secs: Integer = 5;
  shutdown_wait_secs: Integer = 5 }
struct LifecycleConfig { http: HttpLifecycleConfig }
DisableLifecycle = LifecycleConfig()
DefaultLifecycleConfig = LifecycleConfig(http=HttpLifecycleConfig())
struct Announcer { primary_port: String = "http"; portmap: Map(String,
  String) = {"aurora": "{{primary_port}}"};
  zk_path: String }
struct MesosTaskInstance { task: Task!; instance: Integer!; role: String!; announce: Announcer;
  environment: String!;
  health_check_config: HealthCheckConfig = HealthCheckConfig(); lifecycle: LifecycleConfig }
struct Parameter { name: String!; value: String! }
struct Docker { image: String!; parameters: List(Parameter) = [] }
struct AppcImage { name: String!; image_id: String! }
struct DockerImage { name: String!; tag: String! }
Mode = Enum("RO", "RW")
struct Volume { container_path: String!; host_path: String!; mode: Mode! }
struct Mesos { image: Choice([AppcImage, DockerImage]); volumes: List(Volume) = [] }
struct Container { docker: Docker }
struct PartitionPolicy { reschedule: Boolean = True; delay_secs: Integer = 0 }
struct Metadata { key: String!; value: String! }
struct ExecutorConfig { name: String = AURORA_EXECUTOR_NAME; data: String = "" }
struct PercentageSlaPolicy { percentage: Float!; duration_secs: Integer! }
struct CountSlaPolicy { count: Integer!; duration_secs: Integer! }
struct CoordinatorSlaPolicy { coordinator_url: String!; status_key: String = "drain" }
struct MesosJob { name: String = "{{task.name}}"; role: String!; contact: String; cluster: String!;
  environment: String!;
  instances: Integer = 1; task: Task!; announce: Announcer; tier: String; cron_schedule: String;
  cron_collision_policy: String = "KILL_EXISTING"; update_config: UpdateConfig = UpdateConfig();
  constraints: Map(String, String); metadata: List(Metadata) = []; service: Boolean = False;
  max_task_failures: Integer = 1; production: Boolean = False; priority: Integer = 0;
  health_check_config: HealthCheckConfig = HealthCheckConfig();
    lifecycle: LifecycleConfig = DefaultLifecycleConfig;
  task_links: Map(String, String); executor_config: ExecutorConfig = ExecutorConfig();
    enable_hooks: Boolean = False;
  partition_policy: PartitionPolicy; sla_policy: Choice([CoordinatorSlaPolicy, CountSlaPolicy,
    PercentageSlaPolicy]);
  container: Choice([Container, Docker, Mesos]) }
Job = MesosJob
Service = Job(service=True)
"""


def _declare(names: Json) -> None:
    """Adds what SCHEMA declares to pystachio's names. A type with ! is required; after = stands the
    default."""
    from pystachio import Default, Required, Struct
    for struct_name, body, name, value in re.findall(r"^struct (\w+) {(.+?)}$|^(\w+) = ([^\n]+)$", SCHEMA,
                                                     re.M | re.S):
        if name:
            names[name] = eval(value, names)
            continue
        fields = {}
        for field in body.split(";"):
            field_name, _, rest = field.strip().partition(": ")
            kind, _, default = rest.partition(" = ")
            made = eval(kind.rstrip("! "), names)
            fields[field_name] = Default(made, eval(default,
                    names)) if default else Required(made) if "!" in kind else made
        names[struct_name] = type(Struct)(struct_name, (Struct,), fields)


def _unit_helpers(names: Json) -> Tuple[Any, Callable[..., Any], Callable[..., List[Any]]]:
    """Units of apache/thermos/config/schema_helpers.py: what it accepts and returns is the same."""
    from pystachio import Empty
    Resources = names["Resources"]

    def amount(value: Any) -> Any:
        return 0 if value is Empty else value.get()

    def fold_resources(how: Callable[..., Any], *resources: Any) -> Any:
        given = [Resources() if each is Empty else each for each in resources]
        return Resources(**{unit: how([amount(getattr(each, unit)()) for each in given] + [0])
                            for unit in ("cpu", "ram", "disk", "gpu")})

    def merged(tasks: Sequence[Any], field: str) -> List[Any]:
        return list(_Set(each for task in tasks for each in getattr(task, field)()))

    class Units:
        """Sums and maxima of resources and waits; merges of processes and constraints."""
        safe_get = staticmethod(amount)
        optional_resources = staticmethod(lambda resources: Resources() if resources is Empty else resources)
        resources_sum = staticmethod(lambda *resources: fold_resources(_sum, *resources))
        resources_max = staticmethod(lambda resources: fold_resources(max, *resources))
        finalization_wait_sum = staticmethod(lambda waits: sum(amount(each) for each in waits))
        finalization_wait_max = staticmethod(lambda waits: max([0] + [amount(each) for each in waits]))
        processes_merge = staticmethod(lambda tasks: merged(tasks, "processes"))
        constraints_merge = staticmethod(lambda tasks: merged(tasks, "constraints"))
    return Units, fold_resources, merged


def _task_helpers(names: Json, Units: Any, fold_resources: Callable[..., Any],
                  merged: Callable[..., List[Any]]) -> Json:
    """The helpers of the same file for processes and tasks."""
    from pystachio import Empty
    from pystachio import List as ListOf
    Resources, Task, Process, Constraint = (names[n] for n in ("Resources", "Task", "Process", "Constraint"))

    class Processes:
        """Ordering of processes."""
        @staticmethod
        def order(*processes: Any) -> List[Any]:
            for each in processes:
                if not isinstance(each, (str, Process)):
                    raise ValueError("Unknown value for process order: %r" % (each,))
            return [Constraint(order=[each.name() if isinstance(each, Process) else each
                                      for each in processes])]

    class Tasks:
        """Tasks made of tasks."""
        SIMPLE_CPU, SIMPLE_RAM, SIMPLE_DISK = 1.0, names["GB"], names["GB"]

        @staticmethod
        def combine(*tasks: Any, **fields: Any) -> Any:
            if not tasks:
                return Task()
            return tasks[-1](processes=merged(tasks, "processes"))(
                resources=fold_resources(_sum, *[task.resources() for task in tasks]),
                constraints=merged(tasks, "constraints"),
                finalization_wait=Units.finalization_wait_max(task.finalization_wait() for task in tasks),
                **fields)

        @staticmethod
        def concat(*tasks: Any, **fields: Any) -> Any:
            if not tasks:
                return Task()
            constraints = merged(tasks, "constraints")
            for before, after in zip(tasks, tasks[1:]):
                constraints += [one for first in before.processes() for second in after.processes()
                                if first != second for one in Processes.order(first, second)]
            return tasks[-1](processes=merged(tasks, "processes"))(
                resources=fold_resources(max, *[task.resources() for task in tasks]), constraints=constraints,
                finalization_wait=Units.finalization_wait_sum(task.finalization_wait() for task in tasks),
                **fields)

        @staticmethod
        def simple(name: Any, command: Any) -> Any:
            return Task(name=name, processes=[Process(name=name, cmdline=command)],
                        resources=Resources(cpu=Tasks.SIMPLE_CPU, ram=Tasks.SIMPLE_RAM,
                                            disk=Tasks.SIMPLE_DISK))

        @staticmethod
        def sequential(task: Any) -> Any:
            if task.constraints() is not Empty and task.constraints() != ListOf(Constraint)([]):
                raise ValueError("Cannot turn a Task with existing constraints into a SequentialTask!")
            return task if task.processes() is Empty else task(constraints=Processes.order(*task.processes()))

    def SimpleTask(name: Any, command: Any) -> Any:
        return Tasks.simple(name, command)

    def SequentialTask(*arguments: Any, **fields: Any) -> Any:
        return Tasks.sequential(Task(*arguments, **fields))
    return {"Units": Units, "Processes": Processes, "Tasks": Tasks, "SimpleTask": SimpleTask,
            "SequentialTask": SequentialTask,
            "order": Processes.order, "combine_tasks": Tasks.combine, "concat_tasks": Tasks.concat}


def _options(long_prefix: str, *given: Any, **named: Any) -> str:
    pairs: List[Tuple[str, Any]] = []
    for each in given:
        if isinstance(each, str):
            pairs.append((each, None))
        elif isinstance(each, dict):
            pairs.extend(each.items())
        else:
            raise ValueError("Got an unexpected argument to render_options: %r" % (each,))
    shown = []
    for option, value in pairs + [(name, named[name]) for name in _order(_order(named))]:
        option = ("-" if len(option) == 1 else long_prefix) + option
        shown.append("%s %s" % (option, _str(value)) if value else option)
    return " ".join(shown)


class _Options:
    """Command-line arguments from names and values."""
    render_options = staticmethod(lambda short, long, *given,
                                  **named: _options(long, *given, **named).split())
    java = staticmethod(partial(_options, "-"))
    python = staticmethod(partial(_options, "--"))


def _schema() -> Json:
    """The names a configuration sees: pystachio's, the Aurora schema's, the helpers' and the unit
    constants."""
    # pystachio would import it, slowly, for nothing.
    sys.modules.setdefault("pkg_resources", None)   # type: ignore[arg-type]
    import pystachio
    _age_pystachio()
    _quicken_pystachio()
    names = {name: getattr(pystachio, name) for name in pystachio.__dict__ if name[0].isupper()}
    units = dict(zip(("BYTES", "KB", "MB", "GB", "TB"), (1024 ** power for power in range(5))))
    names.update(units, AURORA_EXECUTOR_NAME=EXECUTOR_NAME)
    _declare(names)
    names.update(_task_helpers(names, *_unit_helpers(names)))
    names.update(units, Options=_Options, java_options=_Options.java, python_options=_Options.python,
                 AURORA_EXECUTOR_NAME=EXECUTOR_NAME)
    names.pop("__builtins__", None)
    return names


# --- child: Python 2 ----------------------------------------------------------------------------------------
# The client runs on Python 2.7, and what it makes of a source is what the source means. So a source is read
# as Python 2 in three steps: `_Reading` turns what only Python 2 writes into Python 3, token by token;
# `_Syntax` refuses what may not be said; `_Older` then makes calls of helpers out of what both can write
# but mean otherwise. The rest of this part is those helpers: order, text, comparison, types and modules as
# 2.7 has them. Facts are those of CPython 2.7.18 on 64 bits. Text and bytes are one type here: bytes are
# text that stands for its UTF-8, and what is not UTF-8 is in it as lone surrogates.

_WORD = (1 << 64) - 1
_MOST = (1 << 63) - 1
_OBJECT: Any = object
_EXCEPTION: Any = BaseException
_REMOVED = (0, None)        # a place in a _Table that was taken


def _signed(number: int) -> int:
    number &= _WORD
    return number - (1 << 64) if number > _MOST else number


def _hash_number(value: Any) -> int:
    if isinstance(value, float):
        if math.isinf(value) or math.isnan(value):
            return 0 if math.isnan(value) else 314159 if value > 0 else -271828
        if value != int(value):
            part, exponent = math.frexp(value)
            high = int(part * 2147483648.0)
            return high + int((part * 2147483648.0 - high) * 2147483648.0) + (exponent << 15)
        value = int(value)
    if -_MOST - 1 <= value <= _MOST:
        return int(value)
    made, left = 0, abs(value)
    for shift in range((left.bit_length() - 1) // 30 * 30, -1, -30):
        made = ((made << 30 | made >> 34) & _WORD) + (left >> shift & 0x3FFFFFFF)
        made = (made & _WORD) + (made >> 64)
    return _signed(made if value > 0 else -made)


def _hash(value: Any) -> int:
    """hash() of Python 2, which has no random part. Where that goes by addresses it is 0."""
    made = 0x345678
    if isinstance(value, str):
        codes = [ord(each) for each in value] if isinstance(value, _Unicode) else list(_bytes(value))
        made = codes[0] << 7 if codes else 0
        for code in codes:
            made = (1000003 * made ^ code) & _WORD
        made ^= len(codes)
    elif isinstance(value, (int, float)):
        made = _hash_number(value)
    elif isinstance(value, tuple):
        factor = 1000003
        for place, each in enumerate(value):
            made = (made ^ _hash(each)) * factor & _WORD
            factor += 82520 + 2 * (len(value) - place - 1)
        made += 97531
    elif isinstance(value, frozenset):
        made = 1927868237 * (len(value) + 1)
        for each in value:
            made ^= (_hash(each) ^ (_hash(each) << 16) ^ 89869747) * 3644798167
        made = made * 69069 + 907133923
    elif type(value).__name__ == "frozendict":
        made = _hash(_as_unicode(tuple((key, value[key]) for key in sorted(value))))
    elif _is_pystachio(value):
        made = _hash(_as_unicode(value._value if hasattr(value, "coerce") else value.get()))
    else:
        made = 0 if type(value).__hash__ is _OBJECT.__hash__ else hash(value)
    return _signed(made) if _signed(made) != -1 else -2


def _is_pystachio(value: Any) -> bool:
    return any(each.__module__ == "pystachio.base" for each in type(value).__mro__)


class _Table:
    """Where the keys of a dict or set of Python 2 stand: open addressing in a list whose length is a power of
    two, of which at most two thirds are taken. The order of the keys is that of their places, which comes of
    their hashes and of what was put in and taken out before."""

    def __init__(self, least: int = 0) -> None:
        self.used = self.fill = self.finger = 0
        self.places: List[Any] = [None] * 8
        if least > 5:
            self.resize(least)

    def put(self, key: Any, made: Optional[int] = None) -> None:
        """A key that is not in it yet."""
        made = _hash(key) if made is None else made
        places, mask = self.places, len(self.places) - 1
        place, rest, free = made & mask, made & _WORD, -1
        while places[place & mask] is not None:
            if places[place & mask] is _REMOVED and free < 0:
                free = place & mask
            place = place * 5 + rest + 1 & _WORD
            rest >>= 5
        self.fill += free < 0
        self.used += 1
        places[place & mask if free < 0 else free] = (made, key)

    def add(self, key: Any) -> None:
        self.put(key)
        if self.fill * 3 >= len(self.places) * 2:
            self.resize(self.used * (2 if self.used > 50000 else 4))

    def resize(self, least: int) -> None:
        size = 8
        while size <= least:
            size *= 2
        if size == len(self.places) == 8 and self.fill == self.used:
            return
        entries = self.entries()
        self.places = [None] * size
        self.used = self.fill = 0
        for made, key in entries:
            self.put(key, made)

    def reserve(self, more: int) -> None:
        """Before as many keys are put at once."""
        if (self.fill + more) * 3 >= len(self.places) * 2:
            self.resize((self.used + more) * 2)

    def remove(self, key: Any) -> None:
        made = _hash(key)
        for place, entry in enumerate(self.places):
            if entry is not None and entry is not _REMOVED and entry[0] == made and entry[1] == key:
                self.places[place] = _REMOVED
                self.used -= 1
                return

    def first(self) -> Any:
        """What popitem() and pop() take."""
        place = 0
        if self.places[0] is None or self.places[0] is _REMOVED:
            place = self.finger if 1 <= self.finger < len(self.places) else 1
            while self.places[place] is None or self.places[place] is _REMOVED:
                place = place + 1 if place + 1 < len(self.places) else 1
        self.finger = place + 1
        return self.places[place][1]

    def entries(self) -> List[Tuple[int, Any]]:
        return [each for each in self.places if each is not None and each is not _REMOVED]

    def keys(self) -> List[Any]:
        return [each[1] for each in self.entries()]


def _order(keys: Iterable[Any]) -> List[Any]:
    """Different keys in the order in which a dict has them that they were put into one after the other."""
    table = _Table()
    for key in keys:
        table.add(key)
    return table.keys()


@lru_cache(maxsize=256)
def _order_in_data(keys: Tuple[Any, ...]) -> List[Any]:
    return _order(map(_as_unicode, keys))       # those of the schema's structs come again and again


def _reordered(plain: Any) -> Any:
    """Plain values with the order of dicts that json.dumps() of the client writes."""
    if isinstance(plain, dict):
        return {key: _reordered(plain[key]) for key in _order_in_data(tuple(plain))}
    return [_reordered(each) for each in plain] if isinstance(plain, (list, tuple)) else plain


class _Kind(type):
    """The class of what stands for a type of Python 2: ":make" is what calling it does, ":test" what
    isinstance() finds. What is derived from one has neither."""

    def __call__(cls, *given: Any, **named: Any) -> Any:
        make = cls.__dict__.get(":make", partial(type.__call__, cls))
        return make(*given, **named)

    def __instancecheck__(cls, value: Any) -> bool:
        test = cls.__dict__.get(":test", partial(type.__instancecheck__, cls))
        return bool(test(value))

    def __repr__(cls) -> str:
        return "<type '%s'>" % cls.__name__


class _Dict(Dict[Any, Any], metaclass=_Kind):       # type: ignore[misc]
    """dict, with the order of Python 2. A dict remembers what was put in since; only what is taken out, and
    what puts in several at once, has to tell the table."""
    _table: Any = None

    def __init__(self, *given: Any, **named: Any) -> None:
        self.update(*given, **named)

    @classmethod
    def fromkeys(cls, keys: Any, value: Any = None) -> Any:
        made = cls()
        bulk = isinstance(keys, (set, frozenset, dict))
        made._table = _Table(len(keys) // 2 * 3 if bulk else 0)
        for key in keys:
            if bulk:
                made._table.put(key)
            dict.__setitem__(made, key, value)
        return made

    def _known(self) -> _Table:
        if self._table is None:
            self._table = _Table()
        for key in itertools.islice(dict.__iter__(self), self._table.used, None):
            self._table.add(key)
        return self._table

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known().keys())

    def keys(self) -> Any:
        return self._known().keys()

    def values(self) -> Any:
        return [dict.__getitem__(self, key) for key in self]

    def items(self) -> Any:
        return [(key, dict.__getitem__(self, key)) for key in self]

    def __delitem__(self, key: Any) -> None:
        table = self._known()
        dict.__delitem__(self, key)
        table.remove(key)

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self:
            return dict.pop(self, key, *default)
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> Tuple[Any, Any]:
        if not self:
            raise KeyError("popitem(): dictionary is empty")
        key = self._known().first()
        return key, self.pop(key)

    def clear(self) -> None:
        dict.clear(self)
        self._table = None

    def update(self, *given: Any, **named: Any) -> None:
        for each in given + ((_Dict(named.items()),) if named else ()):
            if isinstance(each, dict):
                table = self._known()
                table.reserve(len(each))
                for key in each:
                    if key not in self:
                        table.put(key)
                    dict.__setitem__(self, key, dict.__getitem__(each, key))
            else:
                if hasattr(each, "keys"):
                    each = [(key, each[key]) for key in each.keys()]
                for key, value in each:
                    dict.__setitem__(self, key, value)

    def copy(self) -> Any:
        made = type(self)(self.default_factory) if isinstance(self, _Default) else type(self)()
        made.update(self)
        return made

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Any:
        made = self.copy()
        for key in made:
            made[key] = copy.deepcopy(made[key], memo)
        return made

    def __repr__(self) -> str:
        return _repr(self)


setattr(_Dict, ":test", lambda value: isinstance(value, dict))      # noqa: B010


class _Default(_Dict, collections.defaultdict):     # type: ignore[type-arg, misc]
    """collections.defaultdict."""

    def __init__(self, factory: Any = None, *given: Any, **named: Any) -> None:
        collections.defaultdict.__init__(self, factory)
        self.update(*given, **named)


class _Counter(_Dict, collections.Counter):     # type: ignore[type-arg, misc]
    """collections.Counter."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.update(*given, **named)

    def update(self, *given: Any, **named: Any) -> None:
        for each in given + ((_Dict(named.items()),) if named else ()):
            for key, count in each.items() if isinstance(each, dict) else ((key, 1) for key in each):
                self[key] = self.get(key, 0) + count

    def most_common(self, most: Optional[int] = None) -> List[Tuple[Any, int]]:
        return sorted(self.items(), key=lambda pair: pair[1], reverse=True)[:most]


def _display(*pairs: Tuple[Any, Any]) -> Any:
    """{a: b, …}"""
    made = _Dict()
    made._table = _Table(len(pairs))
    for key, value in pairs:
        dict.__setitem__(made, key, value)
    return made


class _Unordered:
    """The order of Python 2 for sets: what set and frozenset have in common."""
    _table: Any

    def __iter__(self) -> Iterator[Any]:
        return iter(self._table.keys())

    def __repr__(self) -> str:
        return _repr(self)

    def copy(self: Any) -> Any:
        return type(self)(self)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    def union(self: Any, *others: Any) -> Any:
        made = _Set(self)
        made.update(*others)
        return self._like(made)

    def _like(self: Any, made: Any) -> Any:
        """What was made of it, in its own type."""
        return made if isinstance(self, _Set) else _FrozenSet(made, made._table)

    def intersection(self: Any, *others: Any) -> Any:
        made: Any = self
        for other in others:
            small, large = other, made
            if isinstance(other, (set, frozenset)) and len(other) > len(made):
                small, large = made, other
            made = _Set([each for each in small if each in large])
        return self._like(made if others else _Set(self))

    def difference(self: Any, *others: Any) -> Any:
        taken = [each if isinstance(each, (set, frozenset, dict)) else _Set(each) for each in others]
        return self._like(_Set([each for each in self if not any(each in other for other in taken)]))

    def symmetric_difference(self: Any, other: Any) -> Any:
        made = _Set(other)
        for each in self:
            if each in made:
                made.remove(each)
            else:
                made.add(each)
        return self._like(made)

    __or__, __and__, __sub__, __xor__ = union, intersection, difference, symmetric_difference


class _Set(_Unordered, set):        # type: ignore[type-arg, misc]
    """set."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._table = _Table()
        set.__init__(self)
        self.update(items)

    def update(self, *others: Any) -> None:
        for other in others:
            bulk = isinstance(other, (set, frozenset, dict))
            if bulk:
                self._table.reserve(len(other))
            for each in other:
                if each not in self:
                    set.add(self, each)
                    (self._table.put if bulk else self._table.add)(each)

    def add(self, item: Any) -> None:
        self.update((item,))

    def remove(self, item: Any) -> None:
        set.remove(self, item)
        self._table.remove(item)

    def discard(self, item: Any) -> None:
        if item in self:
            self.remove(item)

    def pop(self) -> Any:
        if not self:
            raise KeyError("pop from an empty set")
        item = self._table.first()
        self.remove(item)
        return item

    def clear(self) -> None:
        set.clear(self)
        self._table = _Table()

    def difference_update(self, *others: Any) -> Any:
        for each in itertools.chain.from_iterable(others):
            self.discard(each)
        if (self._table.fill - self._table.used) * 5 >= len(self._table.places) - 1:
            self._table.resize(self._table.used * 4)
        return self

    def intersection_update(self, *others: Any) -> Any:
        made = self.intersection(*others)
        set.intersection_update(self, made)
        self._table = made._table
        return self

    def symmetric_difference_update(self, other: Any) -> Any:
        for each in other if isinstance(other, (set, frozenset, dict)) else _Set(other):
            (self.discard if each in self else self.add)(each)
        return self

    def __ior__(self, other: Any) -> Any:       # type: ignore[override, misc]
        self.update(other)
        return self

    __isub__, __iand__, __ixor__ = difference_update, intersection_update, symmetric_difference_update


class _FrozenSet(_Unordered, frozenset):        # type: ignore[type-arg, misc]
    """frozenset."""

    def __new__(cls, items: Iterable[Any] = (), table: Optional[_Table] = None) -> Any:
        if type(items) is cls:
            return items
        known = _Set(items) if table is None else items
        made = frozenset.__new__(cls, known)
        made._table = table or known._table     # type: ignore[attr-defined]
        return made


def _bytes(text: Any) -> Any:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _text_of(data: Any) -> Any:
    return data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data


class _Unicode(str):
    """unicode. What comes of one is one; not so of str.join(), where only isinstance() could tell."""

    def __new__(cls, value: Any = "", encoding: str = "", errors: str = "strict") -> Any:
        if not isinstance(value, str):
            value = value.__unicode__() if hasattr(type(value), "__unicode__") else _str(value)
        return str.__new__(cls, value)

    def __repr__(self) -> str:
        return "u" + _quoted_text(self, map(ord, self))

    def __str__(self) -> Any:
        return self

    def __add__(self, other: str) -> Any:
        return _Unicode(str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Any:
        return _Unicode(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __iter__(self) -> Iterator[Any]:
        return map(_Unicode, str.__iter__(self))


def _keeps(name: str) -> Callable[..., Any]:
    method = getattr(str, name)
    return lambda self, *arguments: _as_unicode(method(self, *arguments))


def _as_unicode(value: Any) -> Any:
    """Text, and that in lists and tuples, as unicode."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_as_unicode, value))
    return _Unicode(value) if isinstance(value, str) else value


for _name in ("capitalize center expandtabs join ljust lower lstrip partition replace rjust rpartition "
              "rsplit rstrip split splitlines strip swapcase title translate upper zfill __getitem__ __mul__ "
              "__rmul__").split():
    setattr(_Unicode, _name, _keeps(_name))


def _quoted_text(text: str, codes: Iterable[int]) -> str:
    quote = '"' if "'" in text and '"' not in text else "'"
    shown = {ord("\\"): "\\\\", ord(quote): "\\" + quote, 9: "\\t", 10: "\\n", 13: "\\r"}
    made = [shown.get(code) or (chr(code) if 32 <= code < 127 else "\\x%02x" % code if code < 256 else
                                "\\u%04x" % code if code < 65536 else "\\U%08x" % code) for code in codes]
    return quote + "".join(made) + quote


_DICT_REPRS: Tuple[Any, ...] = (dict.__repr__, _Dict.__repr__)


def _repr(value: Any) -> str:
    """repr() of Python 2."""
    kind: Any = type(value)
    if kind is str:
        return _quoted_text(value, _bytes(value))
    if kind is int and not -_MOST - 1 <= value <= _MOST:
        return "%dL" % value
    if isinstance(value, collections.OrderedDict):
        return "OrderedDict(%s)" % (_repr(list(value.items())) if value else "")
    if kind is list:
        return "[%s]" % ", ".join(map(_repr, value))
    if kind is tuple:
        return "(%s%s)" % (", ".join(map(_repr, value)), "," if len(value) == 1 else "")
    if isinstance(value, dict) and kind.__repr__ in _DICT_REPRS:
        shown = "{%s}" % ", ".join("%s: %s" % (_repr(key), _repr(value[key])) for key in value)
        if isinstance(value, _Default):
            return "defaultdict(%s, %s)" % (_repr(value.default_factory), shown)
        return "Counter(%s)" % shown if isinstance(value, _Counter) else shown
    if isinstance(value, _Unordered):
        return "%s([%s])" % ("set" if isinstance(value, _Set) else "frozenset", ", ".join(map(_repr, value)))
    if isinstance(value, BaseException) and kind.__repr__ is _EXCEPTION.__repr__:
        return kind.__name__ + _repr(value.args)
    own = isinstance(value, type) and value.__module__ in ("builtins", __name__)
    return "<type '%s'>" % value.__name__ if own else repr(value)


def _str(value: Any) -> Any:
    """str() of Python 2: floats with twelve digits. Unicode stays what it is."""
    if isinstance(value, str):
        return value
    if type(value) is float:
        text = "%.12g" % value
        digits = text.lstrip("-")
        if len(digits) == 12 and digits.isdigit():      # Python 2 leaves a place for the .0
            return re.sub(r"\.?0*e", "e", "%.11e" % value)
        return text if re.search("[.en]", text) else text + ".0"
    if isinstance(value, (list, tuple, dict, _Unordered)) and type(value).__str__ is _OBJECT.__str__:
        return _repr(value)
    if isinstance(value, BaseException) and type(value).__str__ is _EXCEPTION.__str__:
        return _str(value.args[0]) if len(value.args) == 1 else _repr(value.args) if value.args else ""
    return _repr(value) if isinstance(value, type) else str(value)


def _plain_str(value: Any = "") -> str:
    return str.__str__(_str(value))


_CONVERSION = re.compile(
    r"%(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?([-+ #0]*)(\*|\d+)?(\.(?:\*|\d*))?[hlL]?(.)", re.S)


def _modulo(left: Any, right: Any) -> Any:
    """left % right: text is filled in with what Python 2 writes for each value."""
    if not isinstance(left, str):
        return left % right
    named = hasattr(type(right), "__getitem__") and not isinstance(right, (str, tuple))
    queue = list(right) if isinstance(right, tuple) else [right]
    marked = isinstance(left, _Unicode)
    parts, place = [], 0

    def following() -> Any:
        if not queue:
            raise TypeError("not enough arguments for format string")
        return queue.pop(0)
    for found in _CONVERSION.finditer(left):
        key, flags, width, precision, kind = found.groups()
        parts.append(str.__getitem__(left, slice(place, found.start())))
        place = found.end()
        if kind == "%":
            parts.append("%")
            continue
        width = str(following()) if width == "*" else width
        precision = ".%d" % following() if precision == ".*" else precision
        if key is not None and not named:
            raise TypeError("format requires a mapping")
        value = right[key] if key is not None else following()
        if kind in "sr":
            value = _repr(value) if kind == "r" else _Unicode(value) if marked else _str(value)
            marked = marked or isinstance(value, _Unicode)
        elif kind == "o" and "#" in flags and isinstance(value, int):
            value, kind, flags = _oct(value), "s", flags.replace("#", "")
        parts.append(("%" + flags + (width or "") + (precision or "") + kind.replace("r", "s")) % (value,))
    rest = str.__getitem__(left, slice(place, None))
    if "%" in rest:
        raise ValueError("incomplete format")
    if queue and not named:
        raise TypeError("not all arguments converted during string formatting")
    return (_Unicode if marked else str)("".join(parts) + rest)


def _format_value(value: Any, how: str = "") -> str:
    """format() of Python 2."""
    if type(value) is float and re.fullmatch(r"(.?[<>=^])?0?\d*", how, re.S):
        return format(_str(value), how if not how or re.match(r".?[<>^]", how, re.S) else ">" + how)
    if not how or type(value).__format__ is _OBJECT.__format__:
        return format(_str(value), how)
    return format(value, how)


def _safe_format(template: Any, *arguments: Any, **named: Any) -> str:
    """str.format without access to attributes that source may not name."""
    import string

    class Guarded(string.Formatter):
        def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
            for part in re.split(r"[.\[\]]", field_name)[1:]:
                if _REFUSED_ATTRIBUTE.fullmatch(part):
                    raise ValueError("the attribute %s is not allowed in a format" % part)
            return super().get_field(field_name, args, kwargs)

        def convert_field(self, value: Any, conversion: Any) -> Any:
            return {"r": _repr, "s": _str}.get(conversion, lambda value: value)(value)

        def format_field(self, value: Any, format_spec: str) -> Any:
            return _format_value(value, format_spec)

    if not isinstance(template, str):
        raise TypeError("only text has format()")
    return type(template)(Guarded().vformat(template, arguments, named))


# Comparison. What has no order of its own goes by the name of its type, after None and numbers.

_ORDERS: Dict[str, Callable[[Any, Any], Any]] = {
    "Lt": lambda a, b: a < b, "LtE": lambda a, b: a <= b, "Gt": lambda a, b: a > b,
    "GtE": lambda a, b: a >= b, "Eq": lambda a, b: a == b, "NotEq": lambda a, b: a != b,
    "Is": lambda a, b: a is b, "IsNot": lambda a, b: a is not b,
    "In": lambda a, b: a in b, "NotIn": lambda a, b: a not in b}


def _compare(left: Any, right: Any) -> int:
    """cmp()"""
    with contextlib.suppress(TypeError):
        return 0 if left == right else -1 if left < right else 1 if left > right else _by_kind(left, right)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and type(left) is type(right):
        return next((found for found in map(_compare, left, right) if found), _compare(len(left), len(right)))
    if isinstance(left, dict) and isinstance(right, dict):
        if len(left) != len(right):
            return _compare(len(left), len(right))
        missing = object()
        unlike = [_sorted(key for key in a if b.get(key, missing) != a[key])[0]
                  for a, b in ((left, right), (right, left))]
        return _compare(*unlike) or _compare(left[unlike[0]], right[unlike[0]])
    return _by_kind(left, right)


def _by_kind(left: Any, right: Any) -> int:
    def place(value: Any) -> Tuple[int, str]:
        number = isinstance(value, (int, float, complex))
        return (0 if value is None else 1 if number else 2, "" if number else _type(value).__name__)
    first, second = place(left), place(right)
    if first == second:
        # As in Python 2, where it is not the same each time either.
        first, second = (id(left), ""), (id(right), "")
    return (first > second) - (first < second)


def _ordered(names: str, *values: Any) -> Any:
    """a < b <= c …"""
    made: Any = True
    for name, left, right in zip(names.split(), values, values[1:]):
        try:
            made = _ORDERS[name](left, right)
        except TypeError:
            if name not in ("Lt", "LtE", "Gt", "GtE"):
                raise
            made = _ORDERS[name](_compare(left, right), 0)
        if not made:
            break
    return made


def _key_of(cmp: Any, key: Any) -> Any:
    import functools
    ordered = functools.cmp_to_key(cmp or _compare)
    return lambda each: ordered(key(each) if key else each)


def _sorted(items: Iterable[Any], cmp: Any = None, key: Any = None, reverse: bool = False) -> List[Any]:
    given = list(items)
    if not cmp:
        with contextlib.suppress(TypeError):
            return sorted(given, key=key, reverse=bool(reverse))
    return sorted(given, key=_key_of(cmp, key), reverse=bool(reverse))


def _sort(items: List[Any], cmp: Any = None, key: Any = None, reverse: bool = False) -> None:
    items[:] = _sorted(items, cmp, key, reverse)


def _extreme(native: Callable[..., Any]) -> Callable[..., Any]:
    def found(*given: Any, **named: Any) -> Any:
        items = list(given[0]) if len(given) == 1 else given
        try:
            return native(items, **named)
        except TypeError:
            return native(items, **dict(named, key=_key_of(None, named.get("key"))))
    return found


# Numbers.

def _number_text(value: Any, name: str) -> Any:
    """What int() and float() take: Python 3 would take 1_0 too, and other digits than 0 to 9."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        raise ValueError("invalid literal for %s: %s" % (name, _repr(value)))
    return value


def _int(value: Any = 0, *base: int) -> int:
    if isinstance(value, str) and base and base[0] in (0, 8) and re.fullmatch(r"\s*[-+]?0[0-7]+\s*", value):
        base = (8,)
    return int(_number_text(value, "int() with base 10"), *base)


def _long(value: Any = 0, *base: int) -> int:
    return _int(value.strip().rstrip("lL") if isinstance(value, str) else value, *base)


def _float(value: Any = 0.0) -> float:
    return float(_number_text(value, "float()"))


def _round(number: Any, places: int = 0) -> float:
    """Half away from zero, and a float."""
    import decimal
    number = float(number)
    if math.isinf(number) or math.isnan(number) or abs(places) > 320:
        return 0.0 if places < -320 else number
    with decimal.localcontext() as context:
        context.prec = 800
        return float(decimal.Decimal(number).quantize(decimal.Decimal(1).scaleb(-places),
                                                      decimal.ROUND_HALF_UP))


def _oct(number: int) -> str:
    return oct(number).replace("0o", "0") if number else "0"


def _hex(number: int) -> str:
    return hex(number) + ("" if -_MOST - 1 <= number <= _MOST else "L")


def _divide(left: Any, right: Any) -> Any:
    whole = isinstance(left, int) and isinstance(right, int)
    return left // right if whole else left / right


# Functions.

def _map(work: Any, *lists: Any) -> List[Any]:
    if len(lists) == 1:
        return list(lists[0]) if work is None else [work(each) for each in lists[0]]
    rows = itertools.zip_longest(*lists)
    return list(rows) if work is None else [work(*row) for row in rows]


def _filter(test: Any, items: Any) -> Any:
    kept = [each for each in items if (each if test is None else test(each))]
    if isinstance(items, str):
        return type(items)("".join(kept))
    return tuple(kept) if isinstance(items, tuple) else kept


def _sum(items: Iterable[Any], start: Any = 0) -> Any:
    """One after the other: sum() of Python 3.12 on has other last digits."""
    for each in items:
        start = start + each
    return start


def _raised(kind: Any, value: Any = None, trace: Any = None) -> Any:
    """raise kind, value"""
    if not isinstance(kind, type) or value is not None and isinstance(value, kind):
        return value if isinstance(kind, type) else kind
    return kind(*value) if isinstance(value, tuple) else kind() if value is None else kind(value)


def _keywords(named: Json) -> Any:
    """What a function has as **named."""
    return _Dict(named.items())


def _encode(text: Any, encoding: str = "utf-8", errors: str = "strict") -> Any:
    name = encoding.lower().replace("-", "_")
    if name in _OF_BYTES:
        return _text_of(_OF_BYTES[name][0](_bytes(text)))
    if name == "string_escape":
        return _quoted_text("", _bytes(text))[1:-1]
    return _text_of(text.encode(name, "surrogateescape" if "utf" in name and errors == "strict" else errors))


def _decode(text: Any, encoding: str = "utf-8", errors: str = "strict") -> Any:
    name = encoding.lower().replace("-", "_")
    if name in _OF_BYTES:
        return _text_of(_OF_BYTES[name][1](_bytes(text)))
    made = _bytes(text).decode(name.replace("string", "unicode"), errors)
    return made if name == "string_escape" else _Unicode(made)


def _rot13(data: bytes) -> bytes:
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    turned = letters[13:26] + letters[:13] + letters[39:] + letters[26:39]
    return data.translate(bytes.maketrans(letters, turned))


_OF_BYTES: Dict[str, Tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "hex": (lambda data: data.hex().encode(), lambda data: bytes.fromhex(data.decode())),
    "base64": (base64.encodebytes, base64.decodebytes), "rot13": (_rot13, _rot13)}


def _translate(text: Any, table: Any, without: str = "") -> Any:
    if table is None or isinstance(table, str):
        kept = [each for each in text if each not in without]
        return type(text)("".join(table[ord(each)] if table and ord(each) < len(table) else each
                                  for each in kept))
    return text.translate(table)


# Types, and what is known of a value.

def _kind(name: str, base: Any, make: Any, test: Any) -> Any:
    return _Kind(name, (base,), {":make": make, ":test": test, "__module__": "__builtin__"})


def _type(value: Any) -> Any:
    """type(), which gives no way to make functions, modules, frames or classes."""
    made = type(value)
    if made in _STANDING:
        return _STANDING[made] if made is not int or isinstance(value, _INT) else _LONG
    if isinstance(value, type):
        return _TYPE
    if made.__module__ == "config" or isinstance(value, BaseException) or _is_pystachio(value):
        return made
    if made not in _OPAQUE:
        _OPAQUE[made] = _opaque(made)
    return _OPAQUE[made]


_OPAQUE: Dict[Any, Any] = {}


def _opaque(real: Any) -> Any:
    """A type that can be compared and named, and nothing else."""
    def make(*_: Any, **__: Any) -> Any:
        raise TypeError("cannot create '%s' instances" % real.__name__)
    return _kind(real.__name__, object, make, lambda value: isinstance(value, real))


_TYPE = _kind("type", object, _type, lambda value: isinstance(value, type))
_STR = _kind("str", str, _plain_str, lambda value: isinstance(value, str) and not isinstance(value, _Unicode))
_INT = _kind("int", int, _int, lambda value: isinstance(value, int) and -_MOST - 1 <= value <= _MOST)
_LONG = _kind("long", int, _long, lambda value: isinstance(value, int) and not -_MOST - 1 <= value <= _MOST)
_FLOAT = _kind("float", float, _float, lambda value: isinstance(value, float))
_Unicode.__name__, _Dict.__name__, _Set.__name__, _FrozenSet.__name__ = "unicode", "dict", "set", "frozenset"
_STANDING: Dict[Any, Any] = {str: _STR, int: _INT, float: _FLOAT, dict: _Dict, set: _Set,
                             frozenset: _FrozenSet}
_STANDING.update((each, each) for each in (list, tuple, bool, complex, type(None), _Unicode, _Dict, _Set,
                                           _FrozenSet, collections.OrderedDict, _Default, _Counter))


def _listing(name: str) -> Callable[[Any], Any]:
    def listed(mapping: Any) -> Any:
        made = getattr(mapping, name)()
        return list(made) if isinstance(made, (collections.abc.KeysView, collections.abc.ValuesView,
                                               collections.abc.ItemsView)) else made
    return listed


_MAPPINGS = (dict, collections.ChainMap)
# Attributes that Python 3 does not have, or has with another meaning: whose, and what is called instead.
_OLDER: Dict[str, Tuple[Any, Callable[..., Any]]] = {
    "format": (str, _safe_format), "encode": (str, _encode), "decode": (str, _decode),
    "translate": (str, _translate), "sort": (list, _sort),
    "has_key": (_MAPPINGS, lambda mapping, key: key in mapping)}
for _name in ("keys", "values", "items"):
    _OLDER[_name] = (_MAPPINGS, _listing(_name))
    _OLDER["iter" + _name] = (_MAPPINGS, lambda mapping, name=_name: iter(getattr(mapping, name)()))
    _OLDER["view" + _name] = _OLDER[_name]
_OLDER_PLAIN = {"message": "args", "func_name": "__name__", "__name__": "__name__", "func_doc": "__doc__",
                "next": "__next__"}


def _attribute(value: Any, name: str) -> Any:
    """value.name, where that is one of those above."""
    kinds, work = _OLDER.get(name, ((), len))
    own = (value if isinstance(value, type) else type(value)).__module__ == "config"
    if isinstance(value, type) and kinds and issubclass(value, kinds) and not own:
        return work
    if isinstance(value, kinds) and not own:
        return partial(work, value)
    if name in _OLDER_PLAIN and (name.startswith("__") or not hasattr(value, name)):
        found = getattr(value, _OLDER_PLAIN[name])
        return found if name != "message" else found[0] if len(found) == 1 else ""
    found = getattr(value, name)
    raw: Any = str.format
    if name == "format" and (found is raw or isinstance(getattr(found, "__self__", None), str)):
        # However it was come by: through a class of the source's own, or super().
        return _safe_format if found is raw else partial(_safe_format, found.__self__)
    return found


def _older_attribute(value: Any, name: str) -> Any:
    """What `_Older` writes for value.name. It is for those names only."""
    if name not in _OLDER and name not in _OLDER_PLAIN:
        raise AttributeError(name)
    return _attribute(value, name)


def _getattr(value: Any, name: Any, *default: Any) -> Any:
    """getattr() for the names that source may write behind a dot."""
    text = str.__str__(name)
    if not text.isidentifier() or _REFUSED_ATTRIBUTE.fullmatch(text) and text not in _OLDER_PLAIN:
        raise TypeError("the attribute %s is not allowed in a configuration" % text)
    try:
        return _attribute(value, text)
    except AttributeError:
        if not default:
            raise
        return default[0]


def _hasattr(value: Any, name: Any) -> bool:
    text = str.__str__(name)
    if text in ("__iter__", "__len__", "__getitem__", "__call__", "__contains__"):
        return hasattr(value, text) and not (text == "__iter__" and isinstance(value, str))
    refused = _REFUSED_ATTRIBUTE.fullmatch(text) and text not in _OLDER_PLAIN
    return not refused and _getattr(value, text, _opaque) is not _opaque


def _rich(cmp: Callable[[Any, Any], int]) -> Any:
    """The six comparisons of a class with __cmp__."""
    return [lambda self, other, name=name: _ORDERS[name](cmp(self, other), 0) for name in list(_ORDERS)[:6]]


class _Names(_Dict):        # type: ignore[misc]
    """globals(): what source puts in becomes a name of it."""
    _into: Optional[Json] = None

    def __init__(self, given: Json, into: Optional[Json] = None) -> None:
        _Dict.__init__(self, [pair for pair in given.items() if pair[0][:2] != "__" and pair[0][:1] != ":"])
        self._into = into

    def __setitem__(self, name: Any, value: Any) -> None:
        _Dict.__setitem__(self, name, value)
        text = str.__str__(name) if isinstance(name, str) else "__"
        if self._into is not None and not text.startswith("__"):
            self._into[text] = value

    def update(self, *given: Any, **named: Any) -> None:
        for name, value in _Dict(*given, **named).items():
            self[name] = value

    def copy(self) -> Any:
        return _Dict(self)


def _own(value: Any) -> Any:
    """An object that may be changed, and whose private attributes may be read: one of a class of the source's
    own."""
    if type(value).__module__ != "config":
        raise TypeError("%s is not an object of a class of the configuration's own" % _type(value).__name__)
    return value


def _vars(names: Json, *given: Any) -> Any:
    """vars() and locals()"""
    return _Names(_own(given[0]).__dict__ if given else names)


_REPLACED = {       # of the built-in names, and those that _Reading and _Older write
    "cmp": _compare, "sorted": _sorted, "min": _extreme(min), "max": _extreme(max), "int": _INT,
    "long": _LONG, "float": _FLOAT, "str": _STR, "bytes": _STR, "unicode": _Unicode, "basestring": str,
    "dict": _Dict, "set": _Set, "frozenset": _FrozenSet, "type": _TYPE, "round": _round, "oct": _oct,
    "hex": _hex, "repr": _repr, "repr_": _repr, "raised_": _raised, "hash": _hash, "map": _map,
    "filter": _filter, "sum": _sum, "zip": lambda *lists: list(zip(*lists)),
    "range": lambda *bounds: list(range(*bounds)), "xrange": range,
    "apply": lambda work, given=(), named={}: work(*given, **named),
    "intern": lambda text: text, "unichr": lambda code: _Unicode(chr(code)), "format": _format_value,
    "coerce": lambda a, b: (float(a), float(b)) if float in (type(a), type(b)) else (a, b),
    "getattr": _getattr, "hasattr": _hasattr, "StandardError": Exception,
    "__divide__": _divide, "__modulo__": _modulo, "__ordered__": _ordered, "__attribute__": _older_attribute,
    "__type__": _type, "__display__": _display, "__dict_of__": _Dict, "__set_of__": _Set, "__rich__": _rich,
    "__unicode__": _Unicode, "__keywords__": _keywords, "__hashed__": object.__hash__, "__vars__": _vars,
    "__own__": _own}


# Modules. What one gives in the place of what Python 3 has, or in addition.

class _Digest:
    """A hash of hashlib that takes and gives text."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.digest_size, self.block_size, self.name = made.digest_size, made.block_size, made.name

    def update(self, text: Any) -> None:
        self._made.update(_bytes(text))

    def digest(self) -> Any:
        return _text_of(self._made.digest())

    def hexdigest(self) -> Any:
        return self._made.hexdigest()

    def copy(self) -> Any:
        return _Digest(self._made.copy())


def _hashed(kind: str, text: Any = "") -> _Digest:
    return _Digest(hashlib.new(kind, _bytes(text)))


def _of_bytes(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function of bytes as one of text."""
    def worked(*given: Any, **named: Any) -> Any:
        made = work(*map(_bytes, given), **named)
        return tuple(map(_text_of, made)) if isinstance(made, tuple) else _text_of(made)
    return worked


def _dumps(value: Any, *given: Any, **named: Any) -> str:
    named.pop("encoding", None)
    if named.get("indent") is not None:
        named.setdefault("separators", (", ", ": "))
    return json.dumps(value, *given, **named)


def _loads(text: Any, *given: Any, **named: Any) -> Any:
    named.pop("encoding", None)
    if not {"object_hook", "object_pairs_hook", "cls"} & set(named):
        named["object_pairs_hook"] = lambda pairs: _Dict(map(_as_unicode, pairs))
    return _as_unicode(json.loads(text, **named))


def _randomness() -> Json:
    """Python 2's way from the same Mersenne twister to other numbers."""
    class Random(random.Random):
        def seed(self, a: Any = None, version: int = 2) -> None:
            super().seed(a if a is None or isinstance(a, int) else _hash(a) & _WORD)

        def randrange(self, start: int, stop: Any = None, step: int = 1) -> int:
            first, end = (0, start) if stop is None else (start, stop)
            count = len(range(first, end, step))
            if count <= 0:
                raise ValueError("empty range for randrange()")
            return first + step * (int(self.random() * count) if count < 1 << 53 else self.getrandbits(
                count.bit_length() + 1) % count)

        def randint(self, a: int, b: int) -> int:
            return self.randrange(a, b + 1)

        def choice(self, seq: Any) -> Any:
            return seq[int(self.random() * len(seq))]

        def shuffle(self, x: Any, random: Any = None) -> None:
            for last in reversed(range(1, len(x))):
                other = int((random or self.random)() * (last + 1))
                x[last], x[other] = x[other], x[last]

        def sample(self, population: Any, k: int) -> List[Any]:
            pool, size = list(population), len(population)
            if not 0 <= k <= size:
                raise ValueError("sample larger than population")
            few = 21 + (4 ** math.ceil(math.log(k * 3, 4)) if k > 5 else 0)
            if size <= few or hasattr(population, "keys"):
                made = []
                for taken in range(k):
                    place = int(self.random() * (size - taken))
                    made.append(pool[place])
                    pool[place] = pool[size - taken - 1]
                return made
            places: Dict[int, None] = {}
            while len(places) < k:
                places[int(self.random() * size)] = None
            return [pool[place] for place in places]

        def expovariate(self, lambd: float) -> float:
            return -math.log(1.0 - self.random()) / lambd
    shared = Random()
    return dict({name: getattr(shared, name) for name in _MODULES["random"].split() if name != "Random"},
                Random=Random)


def _string_functions() -> Json:
    made: Json = {name: getattr(str, name) for name in (
        "split rsplit splitlines lower upper strip lstrip rstrip replace find rfind index rindex "
        "count capitalize swapcase ljust rjust center zfill expandtabs").split()}

    def maketrans(old: str, new: str) -> str:
        return "".join(map(chr, range(256))).translate(str.maketrans(old, new))
    lower, upper = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def join(words: Any, sep: str = " ") -> str:
        return sep.join(words)
    made.update(join=join, joinfields=join, splitfields=made["split"], letters=lower + upper, lowercase=lower,
                uppercase=upper, maketrans=maketrans, translate=_translate, atoi=_int,
                atol=_long, atof=_float)
    return made


def _quote_path(text: Any, safe: str = "/") -> str:
    return "".join(part if part == "~" and "~" in safe else "%7E" if part == "~"
                   else urllib.parse.quote(_bytes(part), safe)
                   for part in re.split("(~)", text))


def _quote_plus(text: Any, safe: str = "") -> str:
    return _quote_path(_plain_str(text), safe + " ").replace(" ", "+")


def _urlencode(query: Any, doseq: Any = 0) -> str:
    pairs = query.items() if hasattr(query, "items") else query
    return "&".join("%s=%s" % (_quote_plus(name), _quote_plus(each)) for name, value in pairs for each in (
        value if doseq and isinstance(value, (list, tuple)) else [value]))


def _attributes(path: str) -> Callable[[Any], Any]:
    def found(value: Any) -> Any:
        for name in path.split("."):
            value = _getattr(value, name)
        return value
    return found


def _replacements(name: str) -> Json:
    """What a module gives that Python 3's of that name, or of its new name, does not."""
    made: Json
    module: Any = sys.modules.get(_RENAMED.get(name, name))
    if name == "json":
        return {"dumps": _dumps, "loads": _loads}
    if name == "math":
        return {"floor": lambda number: float(math.floor(number)),
                "ceil": lambda number: float(math.ceil(number))}
    if name == "collections":
        return {"defaultdict": _Default, "Counter": _Counter}
    if name in ("hashlib", "md5", "sha"):
        made = {each: partial(_hashed, each) for each in _MODULES["hashlib"].split()}
        old = partial(_hashed, "sha1" if name == "sha" else "md5")
        return dict(made, new=_hashed) if name == "hashlib" else {"new": old, name: old}
    if name in ("base64", "binascii", "struct"):
        made = {each: _of_bytes(getattr(module, each)) for each in _MODULES[name].split()}
        if name == "base64":
            made.update(encodestring=_of_bytes(module.encodebytes),
                        decodestring=_of_bytes(module.decodebytes))
        return made
    if name == "random":
        return _randomness()
    if name == "string":
        return _string_functions()
    if name == "itertools":
        return {"izip": zip, "imap": lambda work, *lists: zip(*lists) if work is None else map(work, *lists),
                "ifilter": filter, "ifilterfalse": itertools.filterfalse,
                "izip_longest": itertools.zip_longest}
    if name == "fractions":
        return {"gcd": math.gcd}
    if name == "copy":      # without the memo, which would show what it went through
        return {"deepcopy": lambda value: copy.deepcopy(value)}
    if name == "functools":
        return {"wraps": lambda like, *_: lambda work: work}
    if name == "contextlib":
        return {"contextmanager": lambda work: work}
    if name == "operator":
        return dict({short: lambda a, b, long=long: _ordered(long, a, b) for short, long in (
            ("lt", "Lt"), ("le", "LtE"), ("gt", "Gt"), ("ge", "GtE"))}, div=_divide, mod=_modulo,
            attrgetter=lambda *paths: _attributes(paths[0]) if len(paths) == 1 else lambda value: tuple(
                _attributes(path)(value) for path in paths),
            methodcaller=lambda name, *given, **named: lambda value: _getattr(value, name)(*given, **named))
    if name == "urllib":
        return {"quote": _quote_path, "quote_plus": _quote_plus, "urlencode": _urlencode}
    if name == "pipes":
        return {"quote": __import__("shlex").quote}
    if name == "types":
        made = {kind + "Type": each for kind, each in (
            ("String", _STR), ("Unicode", _Unicode), ("Int", _INT), ("Long", _LONG), ("Float", _FLOAT),
            ("Boolean", bool), ("List", list), ("Tuple", tuple), ("Dict", _Dict), ("None", type(None)),
            ("Type", _TYPE), ("Class", _TYPE), ("Function", _type(_type)), ("Lambda", _type(_type)),
            ("BuiltinFunction", _type(len)), ("Generator", _type(None for _ in "")), ("Object", object))}
        return dict(made, StringTypes=(_STR, _Unicode))
    return {}


class _Unset(KeyError):
    """os.environ has no such name."""


class _Environ(_Dict):      # type: ignore[misc]
    """os.environ: what the request gives."""

    def __missing__(self, name: Any) -> Any:
        raise _Unset("os.environ has no %s; the request gives it with env=%s=VALUE" % (name, name))


class _Stream:
    """sys.stdout and sys.stderr."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def flush(self) -> None:
        pass

    def writelines(self, lines: Iterable[str]) -> None:
        for each in lines:
            self.write(each)


def _system(name: str, evaluation: Any) -> Json:
    """os, os.path, sys, getpass: what the request says, and constants."""
    role = evaluation.request["key"][1]
    if name == "getpass":
        return {"getuser": lambda: role}
    if name == "sys":
        version_info = collections.namedtuple("version_info", "major minor micro releaselevel serial")
        stream = _Stream(_apart(evaluation._write))
        return {"maxint": _MOST, "maxsize": _MOST, "maxunicode": 0x10FFFF,
                "version_info": version_info(2, 7, 18, "final", 0), "version": "2.7.18",
                "hexversion": 0x020712F0, "platform": "linux2", "byteorder": "little",
                "argv": ["aurora"], "stdout": stream, "stderr": stream, "exit": _apart(evaluation._exit),
                "getdefaultencoding": lambda: "ascii"}
    environ = evaluation.environ

    def expanded(text: str) -> str:
        return re.sub(r"\$(?:(\w+)|\{([^}]*)\})", lambda found: environ.get(
            found.group(1) or found.group(2), found.group()), text)
    path = _Namespace(dict({each: getattr(os.path, each) for each in (
        "join basename dirname split splitext normpath isabs commonprefix normcase sep pardir "
        "curdir extsep").split()}, expandvars=expanded), "os.path")
    if name == "os.path":
        return path.__dict__
    return {"environ": environ, "getenv": environ.get, "path": path, "sep": "/", "linesep": "\n",
            "pathsep": ":", "curdir": ".", "pardir": "..", "extsep": ".", "name": "posix",
            "devnull": "/dev/null"}


# Syntax: first token by token, then by the tree.

_PIECES = re.compile(r'''
    (?P<space>[ \t\f]+|\\\r?\n) | (?P<comment>\#[^\r\n]*) | (?P<line>\r?\n|\r)
  | (?P<text>(?:[uU][rR]?|[bB][rR]?|[rR][bBfF]?|[fF][rR]?)?
             (?:"{3}(?:[^"\\]|\\.|"(?!""))*"{3}|'{3}(?:[^'\\]|\\.|'(?!''))*'{3}
             |"(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*'))
  | (?P<number>0[xX][0-9a-fA-F_]+[lL]?|0[oObB][0-7_]+[lL]?
             |(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?[\d_]+)?[jJlL]?)
  | (?P<name>[^\W\d]\w*) | (?P<sign><>|>>=?|<<=?|\*\*=?|//=?|[-+*/%&|^=!<>:]=|->|.)''', re.X | re.S)
_HEADS = frozenset("if elif else while for try except finally def class with".split())
_HIGH = re.compile(r"((?:\\x[89a-fA-F][0-9a-fA-F]|\\[23][0-7][0-7])+)|\\(.)", re.S)
# In names U+FF41 is the letter a, but not in keywords.
_RENAMED_NAMES = {"async": "\uff41sync", "await": "\uff41wait", "nonlocal": "nonloc\uff41l"}


MAX_BRACKETS = 100      # within one another


class _Reading:
    """Python 2 source as Python 3 source with the same lines. What the two write alike stays as it is.

    text: what came of it; tuples: the text of tuple parameters by the names that stand in their places."""

    def __init__(self, source: str) -> None:
        self.pieces: List[List[str]] = [[found.lastgroup or "", found.group()]
                                        for found in _PIECES.finditer(source)]
        self.tuples: Dict[str, str] = {}
        future = " ".join(re.findall(r"\bfrom[ \t]+__future__[ \t]+import[ \t]*(\([^)]*\)|[^\n;#]*)", source))
        self.future = set(re.findall(r"\w+", future))
        leading = re.findall(r"(?m)^[ \t]+(?=[^\s#])", source)
        self.mixed = any("\t" in each for each in leading) and any(" " in each for each in leading)
        self.ticks = 0
        self.loops = ["name", "for"] in self.pieces
        self.read()
        self.text = "".join(text for _, text in self.pieces)

    def read(self) -> None:
        depth, start, head = 0, -1, False
        lambdas: List[Tuple[int, int]] = []
        lists: List[int] = []
        for place, piece in enumerate(self.pieces):
            kind, text = piece
            if kind in ("space", "comment"):
                if self.mixed and start < 0 and (place == 0 or self.pieces[place - 1][0] == "line"):
                    piece[1] = text.expandtabs(8)
                continue
            if kind == "line":
                if depth == 0 and start >= 0:
                    self.statement(start, place)
                    start = -1
                continue
            if start < 0:
                start, head, lambdas = place, text in _HEADS, []
            if kind == "sign" and text in "([{":
                depth += 1
                if depth > MAX_BRACKETS:
                    raise self.wrong(place, "too many nested brackets")
                if text == "[":
                    lists.append(place)
            elif kind == "sign" and text in ")]}":
                depth -= 1
                if text == "]":
                    self.listing(lists.pop() if lists else start, place)
            elif text == "lambda":
                lambdas.append((depth, place))
            elif text == ":" and lambdas and lambdas[-1][0] == depth:
                self.parameters(lambdas.pop()[1], place)
            elif depth == 0 and text == (":" if head else ";"):
                self.statement(start, place)
                start = -1
            self.piece(piece, place, start)
        if start >= 0:
            self.statement(start, len(self.pieces))

    def listing(self, start: int, end: int) -> None:
        """[x for x in 1, 2] has a tuple without brackets."""
        places = self.solid(start + 1, end) if self.loops else []
        loop = min(self.outer(places, "for") + [end])
        words = [each for each in self.outer(places, "in") if each > loop]
        if not words or not self.outer(places, ","):
            return
        first = words[0]
        rest = [each for each in places if each > first]
        last = min([each for word in ("for", "if") for each in self.outer(rest, word)] + [end])
        if self.outer([each for each in rest if each < last], ","):
            self.pieces[first][1] += " ("
            self.pieces[max(each for each in rest if each < last)][1] += ")"

    def solid(self, start: int, end: int) -> List[int]:
        """The places of what is no space."""
        spaces = ("space", "comment", "line")
        return [place for place in range(start, end) if self.pieces[place][0] not in spaces]

    def outer(self, places: Sequence[int], wanted: str) -> List[int]:
        """Where in `places` a text stands outside of all brackets."""
        depth, found = 0, []
        for place in places:
            text = self.pieces[place][1]
            depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
            if text == wanted and depth == 0:
                found.append(place)
        return found

    def piece(self, piece: List[str], place: int, start: int) -> None:
        kind, text = piece
        if kind == "number":
            if "_" in text:
                raise self.wrong(place, "%s is not a number; write %s" % (text, text.replace("_", "")))
            whole = text.rstrip("lL")
            piece[1] = "0o" + whole if re.fullmatch(r"0[0-7]+", whole) and whole.strip("0") else whole
        elif text == "<>":
            piece[1] = "!="
        elif text == "`":
            self.ticks += 1
            piece[1] = "repr_((" if self.ticks % 2 else "))"
        elif kind == "text":
            piece[1] = self.literal(text)
        elif text in _RENAMED_NAMES:
            kind, after = next((each for each in self.pieces[place + 1:] if each[0] != "space"), ["", ""])
            own = (after in ("def", "for", "with") if text == "async" else kind in ("name", "text", "number")
                   and after not in ("if", "else", "for", "in", "is", "not", "and", "or"))
            if not own:
                piece[1] = _RENAMED_NAMES[text]

    def literal(self, text: str) -> str:
        """A string. Escapes that only text knows are none in bytes; bytes that are UTF-8 stand for it."""
        prefix = text[:len(text) - len(text.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))]
        kind, body = prefix.lower(), text[len(prefix):]
        if "\\" not in body or "f" in kind:
            return body if kind == "b" and not body.isascii() else "u" + body if kind == "ur" else text
        if kind == "ur":
            def raw(found: Any) -> str:
                run, more = found.group(1), found.group(2) or ""
                if more and len(run) % 2:
                    return (run if more in "'\"" else run[1:]) * 2 + "\\" + more
                return run * 2 + more
            return "u" + re.sub(r"(\\+)(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[\"'])?", raw, body)
        if kind not in ("", "b") or kind == "" and "unicode_literals" in self.future:
            return text

        def older(found: Any) -> str:
            if found.group(1) and kind == "":
                raw = bytes(int(one, 16) if one else int(two, 8) for one, two in re.findall(
                    r"\\x(..)|\\(\d\d\d)", found.group(1)))
                with contextlib.suppress(UnicodeDecodeError):
                    return "".join("\\u%04x" % ord(each) if each < "\U00010000" else "\\U%08x" % ord(each)
                                   for each in raw.decode())
            return ("\\" if found.group(2) and found.group(2) in "uUN" else "") + found.group()
        changed = _HIGH.sub(older, body)
        return changed if kind == "b" and not body.isascii() else prefix + changed

    def wrong(self, place: int, text: str) -> SyntaxError:
        before = "".join(each[1] for each in self.pieces[:place])
        error = SyntaxError(text)
        error.lineno = before.count("\n") + 1
        error.offset = len(before) - before.rfind("\n")
        return error

    def statement(self, start: int, end: int) -> None:
        """A simple statement, or the head of another one."""
        places = self.solid(start, end)
        if not places:
            return
        word, rest = self.pieces[places[0]], places[1:]
        first = self.pieces[rest[0]][1] if rest else ""
        commas = self.outer(rest, ",")
        if word[1] == "def" and len(rest) > 1:
            self.parameters(rest[0], rest[-1])
        elif word[1] == "except" and commas and not self.outer(rest, "as"):
            self.pieces[commas[0]][1] = " as "
        elif word[1] == "raise" and commas:
            self.call("raise raised_(", places)
        elif word[1] in ("print", "exec") and not (word[1] == "print" and "print_function" in self.future):
            whole = first == "(" and self.pieces[rest[-1]][1] == ")" and self.outer(rest, ")") == rest[-1:]
            if whole or first in ("=", ".", ",", ")", ":") or len(first) == 2 and first[1] == "=":
                return
            if word[1] == "exec":
                for place in self.outer(rest, "in")[:1]:
                    self.pieces[place][1] = ","
                self.call("exec(", places)
                return
            if first == ">>":
                self.pieces[rest[0]][1] = ""
            self.call("print_to_(" if first == ">>" else "print(", places,
                      bool(rest) and commas[-1:] == rest[-1:])

    def call(self, opening: str, places: Sequence[int], comma: bool = False) -> None:
        self.pieces[places[0]][1] = opening
        kind, text = (self.pieces[places[0] + 1:] or [["", ""]])[0]
        if len(places) > 1 and kind == "space" and "\n" not in text:
            self.pieces[places[0] + 1][1] = ""
        self.pieces[places[-1]][1] += " end=' ')" if comma else ")"

    def parameters(self, start: int, end: int) -> None:
        """Names in the place of those parameters that are tuples."""
        places = self.solid(start, end + 1)
        opening = 1 if self.pieces[places[0]][1] == "lambda" else 2
        index = opening
        while index < len(places):
            before, here = self.pieces[places[index - 1]][1], self.pieces[places[index]][1]
            if here in ("(", "[", "{"):
                depth, last = 0, index
                while last < len(places):
                    text = self.pieces[places[last]][1]
                    depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
                    if depth == 0:
                        break
                    last += 1
                last = min(last, len(places) - 1)
                whole = "".join(self.pieces[each][1] for each in places[index:last + 1])
                if here == "(" and (before == "," or index == opening) and re.fullmatch(
                        r"[\w,()]+", whole, re.A) and "__" not in whole:
                    name = "tuple_%d_" % len(self.tuples)
                    self.tuples[name] = whole
                    self.pieces[places[index]][1] = name
                    for each in places[index + 1:last + 1]:
                        self.pieces[each][1] = ""
                index = last
            index += 1


class _Older(ast.NodeTransformer):
    """Calls of helpers, in a tree that was checked, where Python 2 means something else by the same words."""

    def __init__(self, reading: _Reading, trusted: bool) -> None:
        self.reading = reading
        self.trusted = trusted
        self.leaking: Dict[int, Set[str]] = {}

    def visit(self, node: ast.AST) -> Any:
        made = super().visit(node)
        for each in made if isinstance(made, list) else [made]:
            if each is not node and hasattr(node, "lineno"):
                ast.copy_location(each, node)
        return made

    def call(self, name: str, *arguments: ast.expr) -> ast.Call:
        return ast.Call(_load(name), list(arguments), [])

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bytes):
            return ast.Constant(_text_of(node.value))
        marked = getattr(node, "kind", None) == "u" or "unicode_literals" in self.reading.future
        return self.call("__unicode__", node) if marked and isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        node.values = [each if isinstance(each, ast.Constant) else self.visit(each) for each in node.values]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        names = [type(each).__name__ for each in node.ops]
        if not {"Lt", "LtE", "Gt", "GtE"} & set(names):
            return node
        return self.call("__ordered__", ast.Constant(" ".join(names)), node.left, *node.comparators)

    def reckoned(self, operator: ast.operator, left: ast.expr, right: ast.expr) -> Optional[ast.Call]:
        if isinstance(operator, ast.Mod):
            return self.call("__modulo__", left, right)
        if isinstance(operator, ast.Div) and "division" not in self.reading.future:
            return self.call("__divide__", left, right)
        return None

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self.reckoned(node.op, node.left, node.right) or node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        if not isinstance(node.op, (ast.Div, ast.Mod)):
            return self.generic_visit(node)
        before: List[ast.stmt] = []     # what is called in the target is called once
        for field in ("value", "slice"):
            holder: Any = node.target
            part: Any = getattr(holder, field, None)
            if type(part).__name__ == "Index":      # until Python 3.8
                holder, field, part = part, "value", part.value
            kinds = {type(each) for each in ast.walk(part)} if isinstance(part, ast.expr) else set()
            if ast.Call in kinds and ast.Slice not in kinds:
                name = ":%d" % len(before)
                before.append(ast.Assign([_store(name)], self.visit(part)))
                setattr(holder, field, _load(name))
        left = copy.deepcopy(node.target)
        left.ctx = ast.Load()
        value = self.reckoned(node.op, self.visit(left), self.visit(node.value))
        target = self.visit(node.target)
        return before + [ast.AugAssign(target, node.op, node.value) if value is None
                         else ast.Assign([target], value)]

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        inner = node.value.attr if isinstance(node.value, ast.Attribute) else ""
        if isinstance(node.ctx, ast.Load) and (inner, node.attr) == ("__class__", "__name__"):
            value: Any = node.value
            kind = self.call("__type__", self.visit(value.value))
            return self.call("__attribute__", kind, ast.Constant("__name__"))
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and (node.attr in _OLDER or node.attr in _OLDER_PLAIN):
            return self.call("__attribute__", node.value, ast.Constant(node.attr))
        if not self.trusted and (not isinstance(node.ctx, ast.Load) or _OWN_ATTRIBUTE.fullmatch(node.attr)):
            node.value = self.call("__own__", node.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        if any(key is None for key in node.keys):
            return self.call("__dict_of__", node)
        return self.call("__display__", *[ast.Tuple([key or value, value], ast.Load())
                                          for key, value in zip(node.keys, node.values)])

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        return self.call("__set_of__", ast.List(node.elts, ast.Load()))

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        self.generic_visit(node)
        return self.call("__dict_of__", ast.GeneratorExp(ast.Tuple([node.key, node.value], ast.Load()),
                                                         node.generators))

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        self.generic_visit(node)
        return self.call("__set_of__", ast.GeneratorExp(node.elt, node.generators))

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """A variable that is asked for afterwards is set outside too."""
        leaking = self.leaking.get(id(node), set())
        self.generic_visit(node)
        for each in node.generators:
            told = [name for name in ast.walk(each.target) if isinstance(name, ast.Name)
                    and name.id in leaking]
            names = [name.id for name in told]
            for name in told:
                name.id = ":" + name.id
            if names:
                kept: List[ast.expr] = [ast.NamedExpr(_store(name), _load(":" + name)) for name in names]
                each.ifs.insert(0, ast.Tuple(kept, ast.Load()))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "dict":      # the last is put in first
            node.keywords.sort(key=lambda each: each.arg is not None)
            stars = sum(each.arg is None for each in node.keywords)
            node.keywords[stars:] = reversed(node.keywords[stars:])
        elif name in ("vars", "locals"):
            return self.call("__vars__", self.call("__locals__"), *node.args)
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.look_for_leaks(node)
        return self.generic_visit(node)

    def look_for_leaks(self, scope: ast.AST) -> None:
        """Finds the variables of list comprehensions that their scope uses behind them."""
        if not self.reading.loops:
            return
        found: List[Tuple[Any, Set[str]]] = []
        last: Dict[str, Tuple[float, int]] = {}     # where a name is used; a function may be called later

        def look(node: ast.AST, inner: Set[str]) -> None:
            if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
                last.update((name.id, (math.inf, 0)) for name in ast.walk(node) if isinstance(name, ast.Name))
                return
            if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
                targets = {name.id for each in node.generators for name in ast.walk(each.target)
                           if isinstance(name, ast.Name)}
                if isinstance(node, ast.ListComp) and not inner:
                    found.append((node, targets))
                inner = inner | targets
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in inner:
                last[node.id] = max(last.get(node.id, (0, 0)), (node.lineno, node.col_offset))
            for child in ast.iter_child_nodes(node):
                look(child, inner)
        for child in ast.iter_child_nodes(scope):
            look(child, set())
        for node, targets in found:
            place = (node.lineno, node.col_offset)
            self.leaking[id(node)] = {name for name in targets if last.get(name, place) > place}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.look_for_leaks(node)
        self.generic_visit(node)
        arguments = node.args
        lines: List[ast.stmt] = [self.unpacked(each.arg) for each in arguments.args
                                 if each.arg in self.reading.tuples]
        if arguments.kwarg is not None:
            name = arguments.kwarg.arg
            lines.append(ast.Assign([_store(name)], self.call("__keywords__", _load(name))))
        node.body[:0] = lines
        return node

    def unpacked(self, name: str) -> ast.Assign:
        made = ast.parse(self.reading.tuples[name] + " = " + name).body[0]
        assert isinstance(made, ast.Assign)
        return made

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.generic_visit(node)
        for each in node.args.args:
            if each.arg in self.reading.tuples:
                made = self.unpacked(each.arg)
                loop = ast.comprehension(made.targets[0], ast.List([made.value], ast.Load()), [], 0)
                node.body = ast.Subscript(ast.ListComp(node.body, [loop]), _index(0), ast.Load())
        if node.args.kwarg is not None:
            name = node.args.kwarg.arg
            told = self.call("__keywords__", _load(name))
            loop = ast.comprehension(_store(name), ast.List([told], ast.Load()), [], 0)
            node.body = ast.Subscript(ast.ListComp(node.body, [loop]), _index(0), ast.Load())
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        for old, new in (("next", "__next__"), ("__nonzero__", "__bool__"), ("__div__", "__truediv__")):
            if old in own and new not in own:
                node.body.append(ast.Assign([_store(new)], _load(old)))
        if "__cmp__" in own:
            names = [_store("__%s__" % name) for name in "lt le gt ge eq ne".split()]
            made = self.call("__rich__", _load("__cmp__"))
            node.body.append(ast.Assign([ast.Tuple(names, ast.Store())], made))
        if own & {"__cmp__", "__eq__"} and "__hash__" not in own:
            node.body.append(ast.Assign([_store("__hash__")], _load("__hashed__")))
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        """The name lives on."""
        self.generic_visit(node)
        if node.name:
            node.body.insert(0, ast.Assign([_store(node.name)], _load(":" + node.name)))
            node.name = ":" + node.name
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.Pass() if node.module == "__future__" else node


def _load(name: str) -> Any:
    return ast.Name(name, ast.Load())


def _store(name: str) -> Any:
    return ast.Name(name, ast.Store())


def _index(number: int) -> Any:
    made: Any = ast.Constant(number)
    return made if sys.version_info >= (3, 9) else ast.Index(made)


def _age_pystachio() -> None:
    """Floats as text, numbers in text, and the order of fields, as pystachio has them on Python 2."""
    from pystachio import base, basic, composite

    def wrap(value: Any) -> Any:
        return _plain_str(value) if isinstance(value, float) else wrapped(value)

    def number(kind: Any) -> Any:
        original = kind.coerce.__func__

        def coerce(cls: Any, value: Any) -> Any:
            try:
                return original(cls, _number_text(value, cls.__name__))
            except ValueError:
                raise cls.CoercionError(value, cls) from None
        return classmethod(coerce)

    def parameters(attributes: Json) -> Any:
        own = {name: value for name, value in attributes.items() if name not in (
            "__qualname__", "__firstlineno__", "__static_attributes__", "__classcell__")}
        own.setdefault("__module__", "")
        return found({name: own[name] for name in _order(sorted(own, key=lambda name: name != "__module__"))})

    def create(type_dict: Any, name: Any, fields: Any, **more: Any) -> Any:
        known = dict(fields)
        return created(type_dict, name, tuple((field, known[field]) for field in _order(_order(known))),
                       **more)
    wrapped, found, created = (base.Environment.wrap, composite.StructMetaclass.attributes_to_parameters,
                               composite.StructFactory.create)
    base.Environment.wrap = staticmethod(wrap)
    composite.StructMetaclass.attributes_to_parameters = staticmethod(parameters)
    composite.StructFactory.create = staticmethod(create)
    text = basic.String.coerce.__func__
    basic.String.coerce = classmethod(lambda cls, value: text(
        cls, _plain_str(value) if isinstance(value, float) else value))
    basic.Integer.coerce, basic.Float.coerce = number(basic.Integer), number(basic.Float)
    basic.SimpleObject.__str__ = lambda self: _plain_str(self.interpolate()[0]._value)


# --- child: what source may say -----------------------------------------------------------------------------

_MODULES = {    # what an import gives; anything else of the module is not there
    "json": "dumps loads JSONDecodeError",
    "math": "ceil floor sqrt log log2 log10 exp pow fabs fmod gcd hypot isinf isnan trunc sin cos tan pi "
            "e inf nan acos asin atan atan2 sinh cosh tanh degrees radians factorial copysign frexp ldexp "
            "modf fsum log1p expm1",
    "re": "compile match search fullmatch sub subn split findall finditer escape error I IGNORECASE M "
          "MULTILINE S DOTALL "
          "X VERBOSE A ASCII U UNICODE",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits octdigits punctuation "
              "printable whitespace "
              "capwords Template",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle "
                 "dropwhile filterfalse "
                 "groupby islice permutations product repeat starmap takewhile tee zip_longest",
    "functools": "partial reduce cmp_to_key",
    "contextlib": "",
    "operator": "add sub mul truediv floordiv neg pos abs and_ or_ xor invert lshift rshift not_ truth "
                "is_ is_not eq ne pow contains concat countOf indexOf getitem itemgetter",
    "base64": "b64encode b64decode standard_b64encode standard_b64decode urlsafe_b64encode "
              "urlsafe_b64decode b32encode b32decode b16encode b16decode",
    "binascii": "hexlify unhexlify b2a_hex a2b_hex b2a_base64 a2b_base64",
    "struct": "pack unpack calcsize",
    "decimal": "Decimal ROUND_CEILING ROUND_DOWN ROUND_FLOOR ROUND_HALF_DOWN ROUND_HALF_EVEN "
               "ROUND_HALF_UP ROUND_UP InvalidOperation DivisionByZero",
    "fractions": "Fraction gcd",
    "uuid": "UUID uuid3 uuid4 uuid5 NAMESPACE_DNS NAMESPACE_URL NAMESPACE_OID NAMESPACE_X500",
    "fnmatch": "fnmatch fnmatchcase filter",
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "shlex": "split",
    "types": "",
    "os": "", "os.path": "", "sys": "",
    "collections": "OrderedDict defaultdict namedtuple Counter deque ChainMap",
    "copy": "copy deepcopy",
    "datetime": "datetime date time timedelta timezone MINYEAR MAXYEAR",
    "hashlib": "md5 sha1 sha224 sha256 sha384 sha512 blake2b blake2s new",
    "textwrap": "dedent indent fill wrap shorten",
    "time": "time gmtime localtime mktime strftime strptime asctime ctime",
    "random": "random randint randrange choice choices sample shuffle uniform seed gauss normalvariate "
              "expovariate triangular getrandbits Random",
    "getpass": "getuser",
    "pystachio": "*", "apache.aurora.config.schema.base": "*", "apache.thermos.config.schema": "*",
    "apache.thermos.config.schema_base": "*", "apache.thermos.config.schema_helpers": "*",
    "pystachio.config": "*", "__future__": "*",
}
# Modules that Python 3 has under another name, or no more: what they are there, what they give.
_RENAMED = {"urllib": "urllib.parse", "urlparse": "urllib.parse", "StringIO": "io", "cStringIO": "io",
            "pipes": "re", "md5": "hashlib",
            "sha": "hashlib"}
_RENAMED_GIVE = {"urllib": "unquote unquote_plus", "StringIO": "StringIO", "cStringIO": "StringIO",
                 "urlparse": "urlparse urlsplit urlunparse urlunsplit urljoin urldefrag parse_qs parse_qsl"}
_INSTEAD = {    # what to write for what is refused
    "socket": "its host would be the server's; write the name, or {{mesos.hostname}} for the task's",
    "subprocess": "no command can be run here; give its output with bind=NAME=VALUE",
    "open": "files cannot be read here; use bind= or send several files",
    "eval": "write the expression itself",
    "input": "nobody can be asked here; use bind=NAME=VALUE", "setattr": "make a new object",
    "dir": "name the attributes"}
_INSTEAD.update(file=_INSTEAD["open"], raw_input=_INSTEAD["input"], execfile="use include()",
                reload="use include()",
                urllib2=_INSTEAD["subprocess"].replace("command can be run", "address can be read"),
                commands=_INSTEAD["subprocess"])
_BUILTINS = (
    "abs all any ascii bin bool bytes callable chr complex dict divmod enumerate filter float frozenset "
    "hash hex int "
    "isinstance issubclass iter len list map max min next object oct ord pow range repr reversed round set "
    "slice sorted "
    "str sum super tuple zip property staticmethod classmethod NotImplemented Ellipsis ArithmeticError "
    "AssertionError "
    "AttributeError Exception IndexError KeyError LookupError NameError NotImplementedError OverflowError "
    "RuntimeError "
    "StopIteration TypeError UnicodeError UnicodeDecodeError UnicodeEncodeError ValueError "
    "ZeroDivisionError IOError OSError ImportError SystemExit EnvironmentError FloatingPointError "
    "EOFError").split()
_SPECIAL_METHODS = frozenset(
    "__init__ __str__ __repr__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __len__ __getitem__ __iter__ "
    "__next__ __contains__ __call__ __add__ __radd__ __sub__ __mul__ __mod__ __bool__ __doc__ __name__ "
    "__file__ __nonzero__ __cmp__ __div__ __unicode__ __hash__ __setitem__".split())
# Attributes that lead out of a value: to frames, code, tracebacks, classes, pystachio's insides. Refused
# whatever the name in front of the dot; `self._name` in a method is a name of the source's own class, unless
# pystachio has one like it.
_REFUSED_ATTRIBUTE = re.compile(
    r"_.*|(gi|cr|ag|tb|co|func|im)_.*|mro|"
    r"f_(back|builtins|code|generator|globals|lasti|lineno|locals|trace\w*)|"
    r"format_map|with_traceback|TYPEMAP|TYPE_PARAMETERS|CHOICES|json_load|json_dump|dump|load_file")
_OWN_ATTRIBUTE = re.compile(r"_[^_]\w*")
_REFUSED_NODES = {
    "AsyncFunctionDef": "async functions", "AsyncFor": "async loops", "AsyncWith": "async with",
    "Await": "await",
    "With": "with statements", "Match": "match statements", "TypeAlias": "type statements",
    "TypeVar": "type parameters", "ParamSpec": "type parameters", "TypeVarTuple": "type parameters"}


class _NotAllowed(Exception):
    """Source says what it may not."""

    def __init__(self, node: ast.AST, what: str, instead: str = "") -> None:
        super().__init__("line %d, column %d: %s not allowed in a configuration%s" % (
            getattr(node, "lineno", 0), getattr(node, "col_offset", 0) + 1, what, "; " + instead if instead
            else ""))


class _Syntax(ast.NodeVisitor):
    """Refuses what a configuration has no business with."""

    def __init__(self, tree: ast.AST) -> None:
        self.in_class = self.in_method = False
        self.bound: Set[str] = set()        # names the source gives itself
        self.tried: Set[ast.AST] = set()    # imports whose failure the source expects
        for node in ast.walk(tree):
            for field in ("name", "arg", "asname"):
                self.bound.add(getattr(node, field, None) or "")
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.bound.add(node.id)

    def refuse(self, node: ast.AST, what: str, instead: str = "") -> None:
        raise _NotAllowed(node, what, instead)

    def generic_visit(self, node: ast.AST) -> None:
        refused = _REFUSED_NODES.get(type(node).__name__)
        if refused:
            self.refuse(node, refused + " are", _INSTEAD["open"] if isinstance(node, ast.With) else "")
        names = [getattr(node, field, None) for field in ("name", "attr", "id", "arg", "asname")]
        for name in names + list(getattr(node, "names", ())):
            if isinstance(name, str) and name.startswith("__") and name not in _SPECIAL_METHODS:
                self.refuse(node, "the name %s is" % name)
        super().generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        builtin = node.id in _NOT_PROVIDED and node.id not in self.bound and not node.id.startswith("__")
        if builtin and isinstance(node.ctx, ast.Load):
            self.refuse(node, "%s is" % node.id, _INSTEAD.get(node.id, ""))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        mine = self.in_method and isinstance(node.value, ast.Name) and node.value.id == "self"
        own = mine and bool(_OWN_ATTRIBUTE.fullmatch(node.attr)) and node.attr not in _pystachio_privates()
        special = node.attr in _SPECIAL_METHODS - {"__name__"} and isinstance(node.value, ast.Call)
        if isinstance(node.ctx, ast.Load) and node.attr in _OLDER_PLAIN:
            if isinstance(node.value, ast.Attribute) and node.value.attr == "__class__":
                self.visit(node.value.value)
                return
        elif node.attr == "__init__" and isinstance(node.value, ast.Name):
            pass
        elif _REFUSED_ATTRIBUTE.fullmatch(node.attr) and not own and not special:
            self.refuse(node, "the attribute %s is" % node.attr)
        if not isinstance(node.ctx, ast.Load) and not mine:
            self.refuse(node, "changing the attributes of objects is",
                        "make a new one, as job(name=value) does")
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if node.keywords:
            self.refuse(node, "metaclasses and class keywords are")
        for base in node.bases:
            if not isinstance(base, ast.Name):
                self.refuse(node, "a base class that is not a plain name is")
        self._visit_body(node, True, False)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        first = (node.args.args or [None])[0]       # type: ignore[list-item]
        self._visit_body(node, False, self.in_method or self.in_class and first is not None
                         and first.arg == "self")

    def _visit_body(self, node: Any, in_class: bool, in_method: bool) -> None:
        """Of a class or function. A function within a method may speak of the method's self."""
        before = self.in_class, self.in_method
        self.in_class, self.in_method = in_class, in_method
        try:
            self.generic_visit(node)
        finally:
            self.in_class, self.in_method = before

    def visit_Try(self, node: ast.Try) -> None:
        caught = {getattr(name, "id", "") for each in node.handlers for name in ast.walk(each)}
        if "ImportError" in caught:
            self.tried.update(each for each in node.body if isinstance(each, (ast.Import, ast.ImportFrom)))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names if node not in self.tried else ():
            known = alias.name in _MODULES or alias.name in _RENAMED
            if not known or "." in alias.name and not alias.asname and alias.name != "os.path":
                self.refuse(node, "importing %s is" % alias.name, _INSTEAD.get(alias.name, ""))
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        unknown = node.level or node.module not in _MODULES and node.module not in _RENAMED
        if unknown and node not in self.tried:
            self.refuse(node, "importing from %s is" % (node.module or "here"), _INSTEAD.get(node.module
                or "", ""))
        self.generic_visit(node)


@lru_cache(maxsize=1)
def _pystachio_privates() -> Set[str]:
    """The private attributes of pystachio's classes and their instances, as its source writes them."""
    import inspect

    import pystachio.base
    import pystachio.basic
    import pystachio.choice
    import pystachio.composite
    import pystachio.container
    found: Set[str] = set()
    for module in (pystachio.base, pystachio.basic, pystachio.choice, pystachio.composite,
                   pystachio.container):
        found.update(re.findall(r"\b_[a-zA-Z]\w*", inspect.getsource(module)))
    return found


_ALL_BUILTINS = frozenset(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
_PROVIDED = frozenset(_BUILTINS) | frozenset(_REPLACED) | {"print", "True", "False", "None", "exec", "vars",
                                                           "locals", "globals"}
_NOT_PROVIDED = (_ALL_BUILTINS | frozenset(_INSTEAD)) - _PROVIDED


class _Namespace:
    """What `import` of a permitted module gives: some of its names."""

    def __init__(self, names: Json, module: str = "") -> None:
        self.__dict__.update(names)
        self.__dict__["__name__"] = module

    def __getattr__(self, name: str) -> Any:
        raise AttributeError("%s.%s is not available in a configuration" % (self.__dict__["__name__"], name))


def _apart(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does what the method does. Source may have it: a method would lead to its object."""
    return lambda *given, **named: method(*given, **named)


class _Evaluation:
    """One configuration in the evaluator's forked process: from source to the plain answer.

    request: the server's message (see Evaluator.evaluate); ask: put a question to the server, for what only
    it can fetch. Errors are ConfigProblem; each text is for the user.
    """

    def __init__(self, schema: Json, request: Json, ask: Callable[[Json], Json]) -> None:
        self.schema = schema
        self.request = request
        self.ask = ask
        self.files: Dict[str, str] = request["files"]
        self.shared: Dict[str, str] = {}        # files of the include root
        self.printed: List[str] = []
        self.unfinished = ""        # a line that print has begun
        self.modules: Dict[str, _Namespace] = {}
        self.environ = _Environ([("USER", request["key"][1]), ("LOGNAME", request["key"][1])])
        self.environ.update(_Dict(request["env"]))
        self.depth: List[str] = []
        self.environment = self._environment()

    def _environment(self) -> Json:
        builtins: Any = __builtins__
        available = builtins if isinstance(builtins, dict) else vars(builtins)
        provided = {name: available[name] for name in _BUILTINS}
        if self.request["trusted"]:
            provided = dict(available)
            os.environ.update(self.request["env"])
        provided.update(
            _REPLACED, __build_class__=available["__build_class__"], __locals__=available["locals"],
            __import__=_apart(self._import), print_to_=_apart(self._print_to),
            print=_apart(self._print), exec=_apart(self._exec), reduce=__import__("functools").reduce,
            globals=lambda: _Names(self.environment, self.environment))
        return dict(self.schema, __builtins__=provided, __name__="config", include=_apart(self._include))

    def _print(self, *values: Any, **options: Any) -> None:
        text = _plain_str(options.get("sep", " ")).join(map(_plain_str, values)) + _plain_str(
            options.get("end", "\n"))
        self._print_to(options["file"], text, end="") if options.get("file") is not None else self._write(
            text)

    def _print_to(self, stream: Any, *values: Any, **options: Any) -> None:
        """print >>stream, …"""
        if stream is None:
            self._print(*values, **options)
        else:
            stream.write(" ".join(map(_plain_str, values)) + options.get("end", "\n"))

    def _write(self, text: str) -> None:
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        for line in lines:
            if sum(map(len, self.printed)) < 10000:
                self.printed.append(line[:2000])
        self.unfinished = self.unfinished[:2000]

    def _exit(self, status: Any = None) -> None:
        raise SystemExit(status)

    def _exec(self, source: Any, names: Any = None, _local: Any = None) -> None:
        """exec source in names"""
        if not isinstance(source, str):
            raise TypeError("exec takes text")
        code = self._compiled("<exec>", source)
        if names is None:
            exec(code, self.environment)
            return
        around = dict(names, __builtins__=self.environment["__builtins__"], __name__="config")
        exec(code, around)
        names.update({name: value for name, value in around.items() if not name.startswith("__")})

    def _import(self, name: str, _globals: Any = None, _locals: Any = None, wanted: Any = (),
                level: int = 0) -> Any:
        trusted = self.request["trusted"] and name not in _RENAMED
        if name == "_strptime" or trusted and _MODULES.get(name, "*") != "*":
            return __import__(name, None, None, wanted or (), 0)
        if name not in _MODULES and trusted:
            return __import__(name, None, None, wanted, 0)
        if name not in _MODULES and name not in _RENAMED or level:
            raise ImportError("importing %s is not allowed in a configuration" % name)
        if name == "os.path" and not wanted:
            name = "os"
        if name not in self.modules:
            self.modules[name] = self._module(name)
        made = self.modules[name]
        for each in wanted or ():
            if each != "*":
                getattr(made, each)
        return made

    def _module(self, name: str) -> _Namespace:
        if _MODULES.get(name) == "*":
            made = _Namespace({k: v for k, v in self.schema.items() if not k.startswith("_")}, name)
            made.__dict__["__all__"] = [k for k in self.schema if not k.startswith("_")]
            return made
        if name in ("os", "os.path", "sys", "getpass"):
            return _Namespace(_system(name, self), name)
        module = sys.modules[_RENAMED.get(name, name)]
        given = _RENAMED_GIVE.get(name, _MODULES.get(name, "")).split()
        return _Namespace(dict({each: getattr(module, each) for each in given if hasattr(module, each)},
                               **_replacements(name)), name)

    def _include(self, name: Any) -> None:
        if not isinstance(name, str) or len(name) > MAX_INCLUDE_NAME:
            raise ValueError("include() takes the name of a file, of at most %d characters" %
                             MAX_INCLUDE_NAME)
        base = os.path.dirname(self.depth[-1]) if self.depth else ""
        path = os.path.normpath(os.path.join(base, name))
        if path not in self.files and path not in self.shared:
            outside = path.startswith(("/", "../")) or path == ".."
            text = self.ask({"include": path})["text"] if self.request[
                "include_root"] and not outside else None
            alike = [each for each in self.files if os.path.basename(each) == os.path.basename(path)]
            if text is not None:
                self.shared[path] = text
            elif len(alike) != 1:
                raise ValueError(
                    "include(%r) %s: %s; each file can be sent with its path: -F 'f=@%s;filename=%s'" % (
                    name, "reaches outside the uploaded files" if outside
                    else "finds no such file among those sent",
                    ", ".join(sorted(self.files)), os.path.basename(path), path.lstrip("./") or "PATH"))
            else:
                path = alike[0]
        if len(self.depth) > 50:
            raise ValueError("include(%r): files include one another without end" % name)
        self._execute(path, self.files.get(path, self.shared.get(path, "")))

    def _execute(self, path: str, source: str) -> None:
        code = self._compiled(path, source)
        self.depth.append(path)
        try:
            exec(code, self.environment)
        finally:
            self.depth.pop()

    def _compiled(self, path: str, source: str) -> Any:
        try:
            reading = _Reading(source)
            try:
                tree = ast.parse(reading.text, path)
            except SyntaxError as error:
                try:
                    tree = ast.parse(source, path)
                except SyntaxError:
                    raise error from None
        except SyntaxError as error:
            error.filename = path
            raise
        if not self.request["trusted"]:
            try:
                _Syntax(tree).visit(tree)
            except _NotAllowed as error:
                raise ConfigProblem("%s, %s" % (path, error)) from None
        tree = _Older(reading, self.request["trusted"]).visit(tree)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def run(self) -> Json:
        """The answer: `job` and `update`, or `errors`."""
        try:
            answer = self._answer()
        except ConfigProblem as problem:
            answer = {"errors": list(problem.args)}
        except SyntaxError as error:
            text = "%s, line %s: %s (column %s)" % (error.filename, error.lineno, error.msg, error.offset)
            if len(self.files[self.request["root"]].splitlines()) == 1:
                text += " (the source is one single line: curl -d drops line ends, --data-binary keeps them)"
            answer = {"errors": [text]}
        except SystemExit as error:
            answer = {"errors": [self._where() + "the configuration ended the program" + (
                ": %s" % error.code if isinstance(error.code, str) else "")]}
        except RecursionError:
            answer = {"errors": [self._where() + "nested or recursive without end"]}
        except MemoryError:
            answer = {"errors": ["the configuration needs more memory than it may have"]}
        except BaseException as error:      # a configuration may raise anything
            answer = {"errors": [self._where() + _wording(error)]}
        if self.unfinished:
            self.printed.append(self.unfinished)
        if self.printed:
            answer["output"] = self.printed
        return answer

    def _where(self) -> str:
        """File and line of the failure, as far as the user's own files go."""
        trace, place = sys.exc_info()[2], ""
        while trace is not None:
            path = trace.tb_frame.f_code.co_filename
            if path in self.files or path in self.shared:
                place = "%s, line %d: " % (path, trace.tb_lineno)
            trace = trace.tb_next
        return place

    def _answer(self) -> Json:
        root = self.request["root"]
        if self.request["json"]:
            self._load_json(self.files[root])
        else:
            self._execute(root, self.files[root])
        conversion = _Conversion(self.schema, self.request, self.ask)
        answer = conversion.convert(self.environment.get("jobs", []))
        answer["warnings"] += self._hook_warnings() if conversion.hooked else []
        return answer

    def _hook_warnings(self) -> List[str]:
        """Which of the source's hooks would run in the client."""
        given = self.environment.get("hooks", [])
        names = ["%s.%s" % (type(each).__name__, name) for each in (given if isinstance(given, (list, tuple))
            else [])
                 for name in dir(type(each)) if re.fullmatch("(pre|post|err)_.*|generic_hook", name)]
        return ["hooks are not run here, so that nothing of what they check or change counts: %s" % ", ".join(
            names)] if names else []

    def _load_json(self, text: str) -> None:
        try:
            parsed = json.loads(text, object_pairs_hook=_Dict)
        except ValueError as error:
            raise ConfigProblem("the body is not JSON, as its content type says: %s; .aurora source goes "
                                "under any other "
                                "content type" % error) from None
        if not isinstance(parsed, dict):
            raise ConfigProblem("a JSON job is an object, or an object with a list under jobs")
        jobs = parsed["jobs"] if "jobs" in parsed else [parsed]
        self.environment["jobs"] = [self.schema["Job"](job) for job in jobs]


class ConfigProblem(Exception):
    """What is wrong with a configuration: one sentence for each problem."""


def _wording(error: BaseException) -> str:
    """An exception raised while a configuration ran, in the words of its author."""
    if isinstance(error, _Unset):
        return str(error.args[0])
    if isinstance(error, KeyError):
        return "there is no key %s" % error
    if type(error).__name__ == "InvalidRefError":
        return "not a reference: {{%s}}" % str(error).replace("Badly formed address ", "").lstrip(".")
    if type(error).__name__ == "IsNotMappingError":
        return "expected names and values, got %r" % (error.args[0] if error.args else "",)
    try:
        text = str(error)
    except Exception:       # its own __str__ fails
        text = ""
    return text if text and isinstance(error, (ValueError, AttributeError, NameError, TypeError)) else \
        "%s: %s" % (type(error).__name__, text) if text else type(error).__name__


_STRATEGIES = {"QueueUpdateStrategy": "queueStrategy", "BatchUpdateStrategy": "batchStrategy",
               "VariableBatchUpdateStrategy": "varBatchStrategy"}
# TaskConfig fields that are job fields under another name.
_TASK_FIELDS = {"production": "production", "isService": "service", "maxTaskFailures": "max_task_failures",
                "priority": "priority", "contactEmail": "contact", "tier": "tier"}
# JobUpdateSettings fields that are UpdateConfig fields under another name.
_SETTING_FIELDS = {"maxPerInstanceFailures": "max_per_shard_failures",
                   "maxFailedInstances": "max_total_failures",
                   "rollbackOnFailure": "rollback_on_failure", "slaAware": "sla_aware"}


def _camel(plain: Any) -> Any:
    """Plain values with the API's names: aB for a_b."""
    if isinstance(plain, dict):
        return {re.sub("_(.)", lambda found: found.group(1).upper(), name): _camel(each) for name,
                each in plain.items()}
    return [_camel(each) for each in plain] if isinstance(plain, (list, tuple)) else plain


class _Conversion:
    """Picks the job and converts it as the aurora client does: py/config/__init__.py (picking, bindings,
    ports), py/client/config.py (checks), py/config/thrift.py (conversion), py/client/cli/context.py (tiers).

    A job is interpolated once for the checks and once, with its tier, for the conversion; both read plain
    values."""

    def __init__(self, schema: Json, request: Json, ask: Callable[[Json], Json]) -> None:
        from pystachio import Empty, Environment, Ref
        self.schema = schema
        self.request = request
        self.ask = ask
        self.empty = Empty
        self.environment = Environment
        self.ref = Ref.from_address
        self.subscope = Ref.subscope
        self.hooked = False

    def convert(self, jobs: Any) -> Json:
        """Plain job, update settings, warnings. Raises ConfigProblem."""
        job = self.pick(jobs)
        self.require(job)
        job, made = self.bind_images(job.bind({self.ref("mesos.role"): "{{role}}",
                                               self.ref("mesos.cluster"): "{{cluster}}",
                                               self.ref("thermos.user"): "{{role}}"}))
        plain = made.get()
        self.hooked = plain["enable_hooks"] is True
        ports = self.ports(made, plain)
        warnings = _check_client_rules(plain, ports)
        self.check_types(job)
        job = self.fill_tier(job, plain)
        made, open_refs = (job % self.environment(mesos=self.schema["MesosContext"]())).interpolate()
        answer = {"job": _without_none(self.job_configuration(made, made.get(), open_refs, ports)),
                  "warnings": warnings}
        try:
            answer["update"] = _without_none(self.update_settings(made, made.get()["update_config"]))
        except ConfigProblem as problem:
            answer["update_errors"] = list(problem.args)
        return answer

    # picking

    def pick(self, jobs: Any) -> Any:
        job_type = self.schema["Job"]
        if isinstance(jobs, job_type):
            raise ConfigProblem("jobs must be a list of jobs: jobs = [...]")
        if not isinstance(jobs, (list, tuple)) or not jobs:
            raise ConfigProblem("No job defined in this config! Assign a list of jobs to the name jobs.")
        for each in jobs:
            if not isinstance(each, job_type):
                raise ConfigProblem("jobs holds a %s where a Job was expected" % type(each).__name__)
        bindings = self.bindings()
        bound = [job.bind(*bindings) if bindings else job for job in jobs]
        cluster, role, environment, name = self.request["key"]
        found = [job for job in bound if str(job.cluster()) == cluster and str(job.role()) == role
                 and str(job.environment()) == environment and str(job.name()) == name]
        if len(found) == 1:
            return found[0]
        lines = ["Multiple jobs match, please disambiguate by specifying a job key." if found else
                 "Could not find job %s" % "/".join(self.request["key"])]
        shown = [[str(getattr(job, field)()) if getattr(job, field)() is not self.empty else "{MISSING}"
                  for field in ("cluster", "role", "environment", "name")] for job in bound[:100]]
        for parts in shown:
            if not found and "{MISSING}" in parts[:3]:
                field = ("cluster", "role", "environment")[parts.index("{MISSING}")]
                lines.append("Job %s does not specify its %s" % ("/".join(parts), field))
        lines.append("Candidates are: " + ", ".join("/".join(parts) for parts in shown))
        raise ConfigProblem(*lines)

    def bindings(self) -> List[Dict[Any, str]]:
        made = []
        for name, value in self.request["bindings"]:
            try:
                made.append({self.ref(name): value})
            except Exception:       # Ref.InvalidRefError, and whatever else pystachio says to a bad name
                raise ConfigProblem("Could not parse binding parameter %s=%s" % (name, value)) from None
        return made

    def require(self, job: Any) -> None:
        missing = [field.capitalize() for field in ("cluster", "task", "role")
                   if not getattr(job, "has_" + field)()]
        if not missing and not job.task().has_processes():
            missing = ["Processes"]
        if missing:
            raise ConfigProblem(*['%s required for job "%s"' % (field, job.name()) for field in missing])

    def bind_images(self, job: Any) -> Tuple[Any, Any]:
        """The job with its images' digests bound, and the same interpolated."""
        made, refs = job.interpolate()
        wanted = {}
        for ref in refs:
            match = re.fullmatch(r"docker\.image\[([^\]]+)\]\[([^\]]+)\]", ref.address())
            if match:
                wanted[ref] = match.groups()
        if wanted:
            found = self.ask({"images": list(wanted.values())})["images"]
            job = job.bind(dict(zip(wanted, found)))
            made = job.interpolate()[0]
        return job, made

    # types

    def ports(self, job: Any, plain: Any) -> Set[str]:
        """Names of the ports that the scheduler has to allocate."""
        scope = self.ref("thermos.ports")
        referenced: Set[str] = set()
        for process in job.task().processes():
            for ref in process.interpolate()[1]:
                name = self.subscope(scope, ref)
                if name is not None:
                    if not name.is_index():
                        raise ConfigProblem("Process %r: a port is written {{thermos.ports[name]}}" %
                                            str(process.name()))
                    referenced.add(name.action().value)
        portmap = _resolve_ports(plain["announce"]["portmap"] if "announce" in plain else {})
        resolved = set(portmap.values()) | {portmap.get(port, port) for port in referenced}
        return {port for port in resolved if not isinstance(port, int)}

    def check_types(self, job: Any) -> None:
        try:
            check = job.check()
        except AttributeError:      # pystachio's Choice, where a value fits no alternative
            raise ConfigProblem(*(list(self.problems(job, ()))
                                  or ["a field has a value of the wrong type"])) from None
        if not check.ok():
            raise ConfigProblem(*(list(self.problems(job, ())) or [check.message()]))

    def problems(self, thing: Any, scopes: Tuple[Any, ...]) -> Iterator[str]:
        """Each field of a struct, and of what it holds, that is missing or of a wrong type."""
        thing = thing.in_scope(*scopes) if scopes else thing
        if hasattr(thing, "CHOICES"):
            with contextlib.suppress(ValueError):
                yield from self.problems(thing.unwrap(), ())
            return
        if hasattr(thing, "TYPEMAP"):
            named = thing._schema_data.get("name", self.empty)
            label = type(thing).__name__.replace("MesosJob", "Job")
            if named is not self.empty:
                label += " '%s'" % named.in_scope(*thing.scopes())
            for field, signature in thing.TYPEMAP.items():
                value = thing._schema_data[field]
                if value is self.empty:
                    if signature.required:
                        yield "%s: %s is required" % (label, field)
                    continue
                value = value.in_scope(*thing.scopes())
                try:
                    check = value.check()
                    if check.ok():
                        continue
                    text = check.message()
                except AttributeError:
                    text = "fits none of its alternatives"
                inner = list(self.problems(value, ()))
                yield from inner or ["%s: %s: %s" % (label, field, text)]
        elif hasattr(thing, "_values"):
            for value in thing._values:
                if not value.in_scope(*thing.scopes()).check().ok():
                    yield from self.problems(value, thing.scopes())

    def fill_tier(self, job: Any, plain: Any) -> Any:
        """tier by production, or production by tier, as getTierConfigs defines them."""
        tiers = self.request["tiers"]
        preemptible = {t["name"]: _truth(t["settings"]["preemptible"]) for t in tiers["tiers"]}
        if "tier" in plain:
            return job(production=not preemptible[plain["tier"]]) if plain["tier"] in preemptible else job
        return job(tier=next((t["name"] for t in tiers["tiers"]
                              if preemptible[t["name"]] != plain["production"]
                              and not _truth(t["settings"]["revocable"])), tiers["defaultTierName"]))

    # conversion: `made` is the interpolated job, `plain` its values

    def job_configuration(self, made: Any, plain: Any, open_refs: Sequence[Any], ports: Set[str]) -> Json:
        key = {field: plain[field] for field in ("role", "environment", "name")}
        for field, value in key.items():
            if not IDENTIFIER.fullmatch(value):
                raise ConfigProblem("Invalid %s '%s'" % (field, value))
        task: Json = {name: plain.get(field) for name, field in _TASK_FIELDS.items()}
        task.update(job=key, taskLinks={}, metadata=_camel(plain["metadata"]),
                    resources=_resources(plain["task"], ports),
                    constraints=_constraints(plain.get("constraints", {})),
                    container=self.container(made.container()))
        if "partition_policy" in plain:
            task["partitionPolicy"] = _camel(plain["partition_policy"])
        if made.has_sla_policy():
            kind = type(made.sla_policy().unwrap()).__name__
            task["slaPolicy"] = {kind[0].lower() + kind[1:]: _camel(plain["sla_policy"])}
        policy = plain["cron_collision_policy"].upper()
        if policy not in api.CronCollisionPolicy.values:
            raise ConfigProblem("cron_collision_policy must be one of %s, not %s" % (
                ", ".join(api.CronCollisionPolicy.values), policy))
        task["executorConfig"] = self.executor(made, plain, open_refs)
        return {"key": key, "cronSchedule": plain.get("cron_schedule"), "cronCollisionPolicy": policy,
                "taskConfig": task, "instanceCount": plain["instances"]}

    def container(self, container: Any) -> Json:
        if container is self.empty:
            return {"mesos": {}}
        chosen = container.unwrap()
        if type(chosen).__name__ == "Container":        # the deprecated wrapper of a Docker
            chosen = chosen.docker()
            if chosen is self.empty:
                raise ConfigProblem("a Container must set docker")
        plain = _camel(chosen.interpolate()[0].get())
        if type(chosen).__name__ == "Docker":
            return {"docker": plain}
        for volume in plain["volumes"]:
            volume["mode"] = volume["mode"].upper()
        if "image" in plain:
            appc = type(chosen.image().unwrap()).__name__ == "AppcImage"
            plain["image"] = {"appc" if appc else "docker": plain["image"]}
        return {"mesos": plain}

    def executor(self, made: Any, plain: Any, open_refs: Sequence[Any]) -> Dict[str, str]:
        # A made-up instance lets the whole of the task be checked.
        checked = made.bind(mesos={"instance": 31337, "hostname": ""})
        self.check_task(checked.task())
        if not checked.check().ok():
            raise ConfigProblem("Job not fully specified: %s" % checked.check().message())
        ports = self.ref("thermos.ports")
        bound_later = [self.ref(name) for name in ("thermos.task_id", "mesos.instance", "mesos.hostname")]
        unbound = [str(ref) for ref in open_refs if ref not in bound_later
                   and self.subscope(ports, ref) is None]
        if unbound:
            raise ConfigProblem("Config contains unbound variables: %s" % " ".join(sorted(unbound)))
        if plain["executor_config"]["name"] != EXECUTOR_NAME:
            return dict(plain["executor_config"])
        # once more, for {{&x}}
        sent = made(update_config=self.empty, instances=self.empty).interpolate()[0].get()
        try:
            data = json.dumps(_reordered(sent), allow_nan=False)
        except ValueError:
            raise ConfigProblem("a number in the configuration is infinite or not a number") from None
        if re.search(r"(?<!\\ud[89ab]..)\\ud[c-f]", data):
            raise ConfigProblem("a text in the configuration is no UTF-8")
        return {"name": EXECUTOR_NAME, "data": data}

    def check_task(self, task: Any) -> None:
        """apache/thermos/config/loader.py: process names, types, the order of processes, references."""
        plain = task.get()
        for process in plain["processes"]:
            if not re.match(r"^[^./][^/]*$", process["name"]):
                raise ConfigProblem("Invalid process name: %s" % process["name"])
        check = task.check()
        if not check.ok():
            raise ConfigProblem("Failed to fully evaluate task: %s" % check.message())
        for final in (False, True):
            _check_order(plain, final)
        scope = self.ref("thermos.ports")
        names = [self.subscope(scope, ref) for ref in task.interpolate()[1]]
        ports = {name.action().value: 31337 for name in names if name is not None}
        context = self.schema["ThermosContext"](task_id="task", user="user", ports=ports)
        left = (task % {"thermos": context}).interpolate()[1]
        if left:
            raise ConfigProblem("Task is invalid: Unexpected unbound refs: %s. Make sure you are not "
                                "nesting template "
                                "variables." % " ".join(sorted(map(str, left))))

    def update_settings(self, made: Any, plain: Any) -> Json:
        """py/client/api/updater_util.py; an explicit queue or batch strategy does what that file means to
        do."""
        batch, wait, pulse = plain["batch_size"], plain["wait_for_batch_completion"], plain.get(
            "pulse_interval_secs")
        strategy = plain.get("update_strategy")
        problems = []
        if batch <= 0:
            problems.append("Batch size should be greater than 0")
        if pulse is not None and pulse < MIN_PULSE_SECONDS:
            problems.append("Pulse interval seconds must be at least %d seconds." % MIN_PULSE_SECONDS)
        if strategy is not None and (wait or batch > 1):
            problems.append("Ambiguous update configuration: an update strategy cannot be combined with %s; "
                            "set the "
                            "size inside the strategy" %
                            ("wait_for_batch_completion" if wait else "batch_size"))
        if problems:
            raise ConfigProblem(*problems)
        if strategy is None:
            kind = "BatchUpdateStrategy" if wait else "QueueUpdateStrategy"
            strategy = {"batch_size": batch,
                        "autopause_after_batch": False} if wait else {"batch_size": batch}
        else:
            kind = type(made.update_config().update_strategy().unwrap()).__name__
            batch, wait = strategy.get("batch_size", batch), kind == "BatchUpdateStrategy"
        return dict({name: plain[field] for name, field in _SETTING_FIELDS.items()},
                    updateGroupSize=batch, waitForBatchCompletion=wait,
                    minWaitInInstanceRunningMs=plain["watch_secs"] * 1000,
                    blockIfNoPulsesAfterMs=pulse * 1000 if pulse else None,
                    updateStrategy={_STRATEGIES[kind]: {name.replace("batchSize", "groupSize"): each
                                                        for name, each in _camel(strategy).items()}})


def _check_client_rules(job: Any, ports: Set[str]) -> List[str]:
    """The warnings of py/client/config.py. Raises ConfigProblem."""
    size = _number(job, "instances")
    update, health = job["update_config"], job["health_check_config"]
    failures = _number(update, "max_total_failures")
    dedicated = "dedicated" in job.get("constraints", ())
    problems, warnings = [], []
    if size <= 0:
        problems.append("instances must be at least 1, not %d" % size)
    elif failures >= size:
        problems.append("max_total_failures in update_config must be less than the number of instances: "
                        "with %d "
                        "instances at most %d" % (size, size - 1))
    elif dedicated and failures < math.floor(size * 0.02):
        problems.append("a dedicated job must set max_total_failures in update_config to at least 2%% "
                        "of its "
                        "instances: with %d instances at least %d" % (size, math.floor(size * 0.02)))
    for holder, field in ((update, "watch_secs"), (health, "max_consecutive_failures"),
                          (health, "min_consecutive_successes"), (health, "initial_interval_secs"),
                          (health, "interval_secs")):
        value = _number(holder, field)
        if value < 0:
            problems.append("Invalid value (%s) specified for %s. Value cannot be less than 0." %
                            (value, field))
    if "announce" in job:
        primary, portmap = job["announce"]["primary_port"], job["announce"]["portmap"]
        if primary not in ports and primary not in portmap:
            warnings.append("the announcer's primary port %s is bound by no process: use "
                            "{{thermos.ports[%s]}} in "
                            "one" % (primary, primary))
        if not dedicated and any(_is_integer(port) for port in portmap.values()):
            problems.append("Job must be dedicated in order to specify static ports!")
    if job["production"] is True and "tier" not in job:
        warnings.append("the attribute production is deprecated; use tier")
    if problems:
        raise ConfigProblem(*problems)
    return warnings


def _number(holder: Any, field: str) -> Any:
    value = holder.get(field)
    if not isinstance(value, (int, float)):
        raise ConfigProblem("%s has no value" % field if value is None else "%s: %r is not a number" %
                            (field, value))
    return value


def _constraints(given: Dict[str, str]) -> List[Json]:
    made = []
    for name, value in sorted(given.items()):
        if value.startswith("limit:"):
            if not _is_integer(value[6:]):
                raise ConfigProblem("constraint %s: %s is not a valid limit, which is a whole number" %
                                    (name, value))
            constraint: Json = {"limit": {"limit": int(value[6:])}}
        else:
            negated = value.startswith("!")
            constraint = {"value": {"negated": negated, "values": sorted(set(value[negated:].split(",")))}}
        made.append({"name": name, "constraint": constraint})
    return made


def _resources(task: Any, ports: Set[str]) -> List[Json]:
    if "resources" not in task:
        raise ConfigProblem("Task must specify resources!")
    cpu, ram, disk, gpu = (task["resources"][unit] for unit in ("cpu", "ram", "disk", "gpu"))
    if ram == 0 or disk == 0:
        raise ConfigProblem("Must specify ram and disk resources, got ram:%r disk:%r" % (ram, disk))
    ram, disk = ram >> 20, disk >> 20
    if not 0 < cpu < math.inf or ram <= 0 or disk <= 0:
        raise ConfigProblem("cpu, ram and disk must all be positive, ram and disk at least 1 MB: cpu:%r "
                            "ramMb:%r "
                            "diskMb:%r" % (cpu, ram, disk))
    return ([{"numCpus": cpu}, {"ramMb": ram}, {"diskMb": disk}] +
            [{"namedPort": port} for port in sorted(ports)]
            + ([{"numGpus": gpu}] if gpu else []))


def _is_integer(text: Any) -> bool:
    return isinstance(text, int) or re.fullmatch(r"\s*[-+]?[0-9]+\s*", str(text)) is not None


def _truth(text: Any) -> bool:
    return str(text).lower() in ("true", "1")


def _without_none(value: Any) -> Any:
    """Plain JSON without the fields that have no value."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _resolve_ports(portmap: Json) -> Json:
    """A portmap with every alias followed to its end. Raises ConfigProblem for a cycle."""
    ports: Dict[Any, Any] = {name: int(port) if _is_integer(port) else port for name, port in portmap.items()}
    resolved: Json = {}
    for name in ports:
        port, seen = ports[name], {name}
        while port in ports:
            if port in seen:
                raise ConfigProblem("Found cycle in portmap!")
            seen.add(port)
            port = ports[port]
        resolved[name] = port
    return resolved


def _check_order(task: Any, final: bool) -> None:
    """apache/thermos/common/planner.py: the ordering constraints name processes of one kind and have no
    cycle."""
    processes = {p["name"]: p for p in task["processes"] if p["final"] is final}
    before: Dict[str, Set[str]] = {name: set() for name in processes}
    for constraint in task["constraints"]:
        if "order" not in constraint:
            raise ConfigProblem("Task has invalid plan: a Constraint without order")
        order = constraint["order"]
        known = set(order) <= set(processes)
        if known == set(order).isdisjoint(processes):
            raise ConfigProblem("Task has invalid plan: Invalid process dependencies! An order names "
                                "unknown processes, "
                                "or mixes final and other ones: %s" % ", ".join(order))
        for first, second in zip(order, order[1:]) if known else ():
            if processes[first]["daemon"]:
                raise ConfigProblem(
                    "Task has invalid plan: process %s may not depend upon daemon process %s" % (
                    second, first))
            if processes[first]["ephemeral"] and not processes[second]["ephemeral"]:
                raise ConfigProblem("Task has invalid plan: process %s may not depend upon ephemeral "
                                    "process %s" % (
                    second, first))
            before[second].add(first)
    left = dict(before)
    while left:
        ready = [name for name, needs in left.items() if not needs & set(left)]
        if not ready:
            raise ConfigProblem("Task has invalid plan: Cycles detected in the task schedule!")
        for name in ready:
            del left[name]


# --- child: the evaluator process ---------------------------------------------------------------------------

# mounts, UTS, IPC, PIDs, network
_CLONE_FLAGS = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
_CLONE_NEWUSER = 0x10000000
_NOBODY = 65534
# System calls an evaluation may make, by machine, after the number by which the kernel knows its ABI
# (linux/audit.h): read, write, close, poll, select, mmap, munmap, mremap, mprotect, madvise, brk, signal
# masks and handlers, clocks, futex, getpid, gettid, getrusage, sched_yield, getrandom, rseq, exit. Numbers
# from the kernel's own headers, 6.1.
_GENERIC_CALLS = (57, 63, 64, 72, 73, 93, 94, 98, 99, 113, 114, 124, 132, 134, 135, 139, 165, 169, 172, 178,
                  214, 215, 216,
                  222, 226, 233, 278, 293)
_SECCOMP = {
    "x86_64": (0xC000003E, (0, 1, 3, 7, 9, 10, 11, 12, 13, 14, 15, 23, 24, 25, 28, 39, 60, 96, 98, 131, 186,
                            201, 202, 228,
                            229, 231, 270, 271, 318, 334)),
    "aarch64": (0xC00000B7, _GENERIC_CALLS),
    "riscv64": (0xC00000F3, _GENERIC_CALLS),
    "ppc64le": (0xC0000015, (1, 3, 4, 6, 13, 20, 45, 77, 78, 82, 90, 91, 125, 142, 158, 163, 167, 172, 173,
                             174, 185, 205,
                             207, 221, 234, 246, 247, 280, 281, 300, 359, 387)),
    "s390x": (0x80000016, (1, 3, 4, 6, 20, 45, 77, 78, 90, 91, 119, 125, 142, 158, 163, 168, 173, 174, 175,
                           186, 219, 236,
                           238, 248, 260, 261, 301, 302, 304, 349, 383)),
    "i386": (0x40000003, (1, 3, 4, 6, 13, 20, 45, 77, 78, 82, 90, 91, 119, 125, 142, 158, 163, 168, 173, 174,
                          175, 186, 192,
                          219, 224, 240, 252, 265, 266, 308, 309, 311, 355, 386, 403, 406, 413, 414, 422)),
    "armv7": (0x40000028, (1, 3, 4, 6, 20, 45, 77, 78, 91, 119, 125, 142, 158, 163, 168, 173, 174, 175, 186,
                           192, 220, 224,
                           # cacheflush
                           240, 248, 263, 264, 335, 336, 338, 384, 398, 403, 406, 413, 414, 422, 0xF0002)),
}
LAYERS = ("namespaces", "empty root", "user nobody", "no capabilities", "landlock", "system call filter")


def isolates(layers: Iterable[str]) -> bool:
    """Whether these layers shut a configuration in: from files, network and other processes. An empty root
    alone does not: who has the capabilities of a namespace of his own leaves it again."""
    return "system call filter" in layers or {"namespaces", "empty root", "no capabilities"} <= set(layers)


def _machine() -> str:
    """The name in _SECCOMP of what this process runs as, which may be 32 bits on a kernel of 64."""
    name = os.uname().machine if sys.platform.startswith("linux") else ""
    if struct.calcsize("P") == 4:
        name = {"x86_64": "i386", "aarch64": "armv7"}.get(name, name)
    return "i386" if re.fullmatch(r"i[3-6]86", name) else "armv7" if re.fullmatch(r"armv[678]\w*",
            name) else name


def _libc() -> Any:
    import ctypes
    return ctypes.CDLL(None, use_errno=True)


def _enter_namespaces() -> List[str]:
    """Leave the machine's users, mounts, processes and network, where the kernel allows. Forks: the caller
    goes on as the first process of the new namespaces."""
    if not sys.platform.startswith("linux"):
        return []
    libc, user, group = _libc(), os.geteuid(), os.getegid()
    done = []
    if libc.unshare(_CLONE_FLAGS | (0 if user == 0 else _CLONE_NEWUSER)) == 0:
        done.append("namespaces")
        if user != 0:
            with contextlib.suppress(OSError):
                for path, text in (("setgroups", "deny"), ("uid_map", "%d %d 1" % (_NOBODY, user)),
                                   ("gid_map", "%d %d 1" % (_NOBODY, group))):
                    with open("/proc/self/" + path, "w", encoding="ascii") as stream:
                        stream.write(text)
        child = os.fork()
        if child:
            # The outer process only waits, and ends as its child does.
            with contextlib.suppress(OSError, ChildProcessError):
                os.waitpid(child, 0)
            os._exit(0)
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)      # PR_SET_PDEATHSIG
    return done


def _enter_empty_root(layers: List[str]) -> List[str]:
    """Make an empty directory the root, where permitted: no file has a name from here on. In a mount
    namespace of one's own that is a new file system, which takes no place on any disk; else a directory that
    is already deleted."""
    if "namespaces" in layers:
        libc, here = _libc(), b"/proc" if os.path.isdir("/proc") else b"/"
        # MS_REC, MS_PRIVATE; read-only, no suid, devices, programs
        private, empty = 1 << 14 | 1 << 18, 1 | 2 | 4 | 8
        if libc.mount(b"none", b"/", None, private, None) == 0 and libc.mount(b"none", here, b"tmpfs", empty,
                None) == 0:
            with contextlib.suppress(OSError):
                os.chdir(here)
                os.chroot(".")
                os.chdir("/")
                return ["empty root"]
    with contextlib.suppress(OSError):
        import tempfile
        folder = tempfile.mkdtemp(prefix="aurora_rest-")
        os.chdir(folder)
        os.rmdir(folder)
        os.chroot(".")
        return ["empty root"]
    return []


def _drop_privileges() -> List[str]:
    done = []
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            done.append("user nobody")
    return done


def _drop_capabilities() -> List[str]:
    """Give up what root may, here or in a namespace of one's own: from mounting on."""
    if not sys.platform.startswith("linux"):
        return []
    libc = _libc()
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)         # PR_CAPBSET_DROP
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)      # _LINUX_CAPABILITY_VERSION_3, this thread
    return ["no capabilities"] if libc.capset(header, none) == 0 else []


def _shut_out_of_files() -> List[str]:
    """Landlock, where the kernel has it: no file and, on newer ones, no network can be opened from here on.
    The numbers of its calls are those of all machines (Linux, include/uapi/linux/landlock.h)."""
    if not sys.platform.startswith("linux"):
        return []
    import ctypes
    libc = _libc()
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return []
    files = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    rules = struct.pack("QQ", files, 3) if version >= 4 else struct.pack("Q", files)
    ruleset = libc.syscall(444, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return []
    # NO_NEW_PRIVS; landlock_restrict_self
    taken = libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return ["landlock"] if taken else []


def _forbid_system_calls() -> bool:
    """Let this process and its children make only the calls in _SECCOMP; others fail with EPERM."""
    known = _SECCOMP.get(_machine())
    if known is None:
        return False
    import ctypes
    machine, allowed = known
    # another ABI: kill
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
    code += [(0x15, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    code += [(0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    head = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(program)))
    libc = _libc()
    # NO_NEW_PRIVS, SECCOMP
    return bool(libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, head, 0, 0) == 0)


def _limit_resources(limits: ConfigLimits) -> None:
    import resource
    for name, value in (("CPU", limits.cpu_seconds), ("AS", limits.memory_bytes), ("FSIZE", 0), ("NOFILE", 0),
                        ("NPROC", 0), ("CORE", 0)):
        which = getattr(resource, "RLIMIT_" + name, None)
        if which is not None:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(which, (value, value + (name == "CPU")))


def _read_exactly(source: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(source, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view):]


# What server and child say to each other: a length in four bytes, then JSON.

def _frame(message: Json) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("!I", len(data)) + data


def _read_frame(source: int) -> Json:
    size, = struct.unpack("!I", _read_exactly(source, 4))
    message: Json = json.loads(_read_exactly(source, size))
    return message


# What an evaluator without work evaluates, so that its pages are its own and its caches filled before there
# is some.
_WARM_UP = {"files": {"job.aurora": "jobs = [Service(cluster='c', role='r', environment='devel', name='n', "
                                    "instances=2, "
                                    "task=SequentialTask(processes=[Process(name='p', "
                                    "cmdline='{{thermos.ports[http]}}')],"
                                    " resources=Resources(cpu=1, ram=GB, disk=GB)), announce=Announcer())]"},
            "root": "job.aurora", "json": False, "key": ["c", "r", "devel", "n"], "bindings": [],
            "trusted": False, "include_root": False, "env": []}


def _warm_up(schema: Json) -> None:
    _Evaluation(schema, dict(_WARM_UP, tiers=DEFAULT_TIERS), lambda question: {}).run()


def _send_descriptor(control: socket.socket, descriptor: int) -> None:
    control.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))])


def _receive_descriptor(control: socket.socket) -> int:
    """The descriptor that the other side sends. Raises OSError when it is gone."""
    _, messages, _, _ = control.recvmsg(1, socket.CMSG_SPACE(struct.calcsize("i")))
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return int(struct.unpack("i", data[:struct.calcsize("i")])[0])
    raise OSError("the evaluator ended")


def _evaluator_main(limits: ConfigLimits) -> None:
    """The evaluator process: descriptor 0 is a socket to the server.

    Forks itself for every request, ahead of it, so that nothing one source does is seen by the next. The
    server gets a socket of its own to each fork: no request and no answer ever passes through the memory that
    is forked again.
    """
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, control.fileno())
    os.closerange(control.fileno() + 1, 1024)
    os.environ.clear()
    for name in [each for each in _MODULES if _MODULES[each] != "*"] + list(_RENAMED.values()):
        __import__(name)
    for name in ("unicodedata", "_strptime", "encodings.idna", "string", "ctypes", "resource", "tempfile"):
        __import__(name)
    for name in ("unicode_escape", "latin_1", "ascii", "cp1252", "utf_8_sig"):
        "".encode(name)
    schema = _schema()
    _pystachio_privates()
    shown = _enter_namespaces()
    shown += _enter_empty_root(shown) + _drop_privileges() + _drop_capabilities() + _shut_out_of_files()
    if sys.platform.startswith("linux"):
        _libc().prctl(4, 0, 0, 0, 0)        # PR_SET_DUMPABLE: no other process of the user looks in
    probe = os.fork()
    if not probe:
        os._exit(0 if _forbid_system_calls() else 1)
    if os.waitpid(probe, 0)[1] == 0:
        shown.append("system call filter")
    _warm_up(schema)
    gc.collect()
    gc.freeze()
    hello = json.dumps(shown).encode()
    control.sendall(struct.pack("!I", len(hello)) + hello)
    with contextlib.suppress(OSError):
        while _serve_one(schema, limits, control, "system call filter" in shown):
            pass
    os._exit(0)


def _serve_one(schema: Json, limits: ConfigLimits, control: socket.socket, filtered: bool) -> bool:
    """Fork for one request, pass the server its socket, and, when the server has what came through it, the
    child's exit status. False to stop."""
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            for descriptor in (control.fileno(), there.fileno()):
                os.close(descriptor)
            _evaluate_one(schema, limits, here.fileno(), filtered)
        finally:
            os._exit(0)
    here.close()
    _send_descriptor(control, there.fileno())
    there.close()
    goes_on = False
    with contextlib.suppress(OSError):
        goes_on = bool(control.recv(1))     # nothing: the server has hung up
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)      # it has closed its socket, so it ends or pretends to
    status = os.waitpid(child, 0)[1]
    if goes_on:
        control.sendall(struct.pack("!I", status))
    return goes_on


def _evaluate_one(schema: Json, limits: ConfigLimits, channel: int, filtered: bool) -> None:
    """In the forked child: shut in, warm up if nothing comes within moments, evaluate one request, answer.
    filtered: the system call filter was announced, so that nothing is done without it."""
    _limit_resources(limits)
    if not _forbid_system_calls() and filtered:
        os._exit(1)
    gc.disable()
    if not select.select([channel], [], [], 0.001)[0]:
        _warm_up(schema)

    def ask(question: Json) -> Json:
        _write_all(channel, _frame(question))
        return _read_frame(channel)
    answer = _Evaluation(schema, _read_frame(channel), ask).run()
    _write_all(channel, _frame(answer))
    os.close(channel)       # the end of the process closes it too, but milliseconds later


_THIS_FILE = os.path.abspath(__file__)      # Python takes __file__ away when a script has come to its end

# --- the server's side --------------------------------------------------------------------------------------

class _Worker:
    """One evaluator process and the sockets to it. Not for several threads at once."""

    def __init__(self, limits: ConfigLimits, seconds: float = 30.0) -> None:
        import subprocess
        here, there = socket.socketpair()
        boot = (
            "import sys; sys.path[:] = %r; import importlib.util as u; "
            "s = u.spec_from_file_location('aurora_rest', %r); "
                "m = u.module_from_spec(s); sys.modules['aurora_rest'] = m; s.loader.exec_module(m); "
                "m._evaluator_main(m.ConfigLimits(*%r))" % ([p for p in sys.path if p], _THIS_FILE,
                                                            tuple(limits)))
        try:
            self.process = subprocess.Popen([sys.executable, "-s", "-c", boot], stdin=there.fileno(),
                                            env=dict({"PYTHONHASHSEED": "0"}, **(
                                                {"PYTHONPYCACHEPREFIX": sys.pycache_prefix}
                                                if sys.pycache_prefix else {})),
                                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                            start_new_session=True)
        except OSError as error:
            here.close()
            raise AuroraError("the configuration evaluator does not start: %s" % _reason(error)) from None
        finally:
            there.close()
        self.limits = limits
        self.control = here
        self.since = time.monotonic()
        self.closed = False
        self._owed = False      # the status of the last child is still to be read
        try:
            here.settimeout(seconds)
            size, = struct.unpack("!I", self._exactly(4))
            self.isolation: List[str] = json.loads(self._exactly(size))
        except (OSError, ValueError) as error:
            self.close()
            raise AuroraError("the configuration evaluator does not start: %s" % (
                self._last_words() or _reason(error))) from None
        finally:
            if self.process.stderr is not None:
                self.process.stderr.close()

    def _last_words(self) -> str:
        """What a process that has ended wrote last."""
        if self.process.stderr is None:
            return ""
        lines = self.process.stderr.read(1 << 16).decode("utf-8", "replace").split("\n")
        return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")

    def ask(self, message: bytes, reply: Callable[[Json], Optional[Json]]) -> Json:
        """The answer to one request, after what `reply` replies to the questions before it. Raises OSError
        when the process is gone, which is of no use then, and what `reply` raises. A source that goes over
        the limits takes the process with it."""
        self.control.settimeout(self.limits.wall_seconds)
        if self._owed:
            self._exactly(4)
        self._owed = False
        answer, problem = None, ""
        try:
            with socket.socket(fileno=_receive_descriptor(self.control)) as channel:
                answer, problem = self._converse(channel, message, reply)
        finally:
            if not problem:
                self.control.sendall(b"\n")
                self._owed = True
        if problem:
            self.close()
            return {"errors": [problem]}
        if answer is not None:
            return answer
        self.control.settimeout(10.0)
        status, = struct.unpack("!I", self._exactly(4))
        self._owed = False
        if not status:
            return {"errors": ["the configuration ended without a result"]}
        if status & 0x7F == signal.SIGXCPU:
            return {"errors": ["the configuration took more than %d seconds of processor time" %
                               self.limits.cpu_seconds]}
        return {"errors": ["the configuration needs more memory, or nests deeper, than it may"]}

    def _converse(self, channel: socket.socket, message: bytes,
                  reply: Callable[[Json], Optional[Json]]) -> Tuple[Optional[Json], str]:
        """(the answer, None where the child ended without one; which limit it went over). What the server
        takes for its replies is not the source's time."""
        limits = self.limits
        deadline = time.monotonic() + limits.wall_seconds
        try:
            channel.settimeout(limits.wall_seconds)
            channel.sendall(message)
            while True:
                answer = self._heard(channel, deadline)
                asked = time.monotonic()
                replied = reply(answer)
                if replied is None:
                    return answer, ""
                deadline += time.monotonic() - asked
                channel.sendall(_frame(replied))
        except socket.timeout:
            return None, "the configuration took longer than %g seconds" % limits.wall_seconds
        except OverflowError as error:
            return None, str(error)
        except (OSError, ValueError):       # the child ended early; its status says why
            return None, ""

    def _heard(self, channel: socket.socket, deadline: float) -> Json:
        """What the child says next. Raises OSError when it has ended, OverflowError when it says too much,
        ValueError when that is no object: a stranger's program may have written it."""
        data, end = bytearray(), 4
        while len(data) < end:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
            part = channel.recv(min(1 << 20, end - len(data)))
            if not part:
                raise OSError("the evaluation ended")
            data += part
            if len(data) == 4:
                end += struct.unpack("!I", data)[0]
            if end > self.limits.output_bytes:
                raise OverflowError("the configuration makes more than %d MB" %
                                    (self.limits.output_bytes >> 20))
        del data[:4]
        if data.count(b"{") + data.count(b"[") > MAX_VALUES:
            raise OverflowError("the configuration makes more values than a job has")
        said = load_json(data.decode("utf-8"))
        if not isinstance(said, dict):
            raise ValueError("no object")
        return said

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.control.recv(size - len(data))
            if not part:
                raise OSError("the evaluator ended")
            data += part
        return data

    def close(self) -> None:
        self.closed = True
        self.control.close()
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _texts(value: Any) -> List[str]:
    """What of a value is a list of sentences: at most a hundred, each cut at 2,000 characters."""
    return [each[:2000] for each in value[:100] if isinstance(each, str)] if isinstance(value, list) else []


class _Questions:
    """What the child may ask while it evaluates one configuration: files of the include root, images'
    digests."""

    def __init__(self, limits: ConfigLimits, include_root: Optional[str], docker_registry: str) -> None:
        self.limits = limits
        self.include_root = include_root
        self.docker_registry = docker_registry
        self.includes = self.images = 0     # how many were asked for
        self.ends = time.monotonic() + 2 * limits.wall_seconds

    def reply(self, said: Json) -> Optional[Json]:
        """The reply to a question; None to what is none, which is the child's answer. A stranger's program
        may have written it. Raises InvalidConfig."""
        path, images = said.get("include"), said.get("images")
        if isinstance(path, str) and self.include_root:
            self.includes += 1
            if self.includes > self.limits.includes:
                raise InvalidConfig("more than %d files included" % self.limits.includes)
            return {"text": self._included(self.include_root, path)}
        if not isinstance(images, list) or not images or not all(
                isinstance(pair, list) and [type(each) for each in pair] == [str, str] for pair in images):
            return None
        self.images += len(images)
        if self.images > self.limits.images:
            raise InvalidConfig("more than %d docker images to resolve" % self.limits.images)
        return {"images": [self._resolved(*pair) for pair in images]}

    def _included(self, root: str, path: str) -> Optional[str]:
        if len(path) > MAX_INCLUDE_NAME:
            raise InvalidConfig("the name of an included file has more than %d characters" % MAX_INCLUDE_NAME)
        try:
            full = os.path.realpath(os.path.join(root, path))
            if os.path.commonpath([full, root]) != root:
                raise OSError("outside of the include root")
            if not os.path.isfile(full) or os.path.getsize(full) > self.limits.source_bytes:
                raise OSError("too large")
            with open(full, encoding="utf-8") as stream:
                return stream.read()
        except (OSError, ValueError):
            return None

    def _resolved(self, name: str, tag: str) -> str:
        if time.monotonic() > self.ends:
            raise InvalidConfig("the configuration took longer than %g seconds" %
                                (2 * self.limits.wall_seconds))
        return resolve_image(self.docker_registry, name, tag)


class Evaluator:
    """A pool of evaluator processes: grows with demand to `most`, shrinks to none when idle. A caller has all
    but one of them at the most, so that one who sends endless loops holds up only himself.

    isolation: the layers that shut a configuration in, once a process has started; where they do not, source
    is refused unless it is `trusted`.
    """
    IDLE_SECONDS = 300.0

    def __init__(self, most: int = 4, limits: ConfigLimits = ConfigLimits(), trusted: bool = False,
                 include_root: Optional[str] = None) -> None:
        self.limits = limits
        self.trusted = trusted
        self.include_root = os.path.realpath(include_root) if include_root else None
        self.isolation: Optional[List[str]] = None
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._semaphore = Semaphore(most, 200, "configuration evaluation", max(1, most - 1))
        self._lock = threading.Lock()       # guards _idle, _reserving, _closed
        self._idle: List[_Worker] = []
        self._reserving = False
        self._closed = False

    def evaluate(self, files: Dict[str, str], key: Sequence[str], *, is_json: bool = False,
                 bindings: Sequence[Tuple[str, str]] = (), tiers: Optional[Json] = None,
                 docker_registry: str = "", caller: Optional[str] = None,
                 env: Sequence[Tuple[str, str]] = ()) -> Json:
        """The plain answer for the job `key` (cluster, role, environment, name) in `files`, of which the
        first is the root: `job`, `warnings`, and `update` or `update_errors`. Raises InvalidConfig."""
        if sum(len(text.encode("utf-8", "replace")) for text in files.values()) > self.limits.source_bytes:
            raise BodyTooLarge("the configuration is larger than %d bytes" % self.limits.source_bytes)
        questions = _Questions(self.limits, self.include_root, docker_registry)
        answer = self._ask({
            "files": files, "root": next(iter(files)), "json": is_json, "key": list(key),
            "bindings": list(bindings), "tiers": tiers or DEFAULT_TIERS, "trusted": self.trusted,
            "include_root": bool(self.include_root), "env": list(env)}, questions.reply, caller)
        errors, output = _texts(answer.get("errors")), _texts(answer.get("output"))
        self.outcomes["refused" if "errors" in answer else "accepted"] += 1
        if "errors" in answer:
            raise InvalidConfig(*(errors or ["the configuration cannot be evaluated"]), output=output or None)
        return answer

    def look(self) -> List[str]:
        """The layers of isolation, found out by starting a process where none has been yet. Raises
        AuroraError."""
        if self.isolation is None:
            worker, fresh = self._take()
            self._keep(worker)
        return self.isolation or []

    def _ask(self, request: Json, reply: Callable[[Json], Optional[Json]], caller: Optional[str]) -> Json:
        self._semaphore.enter(self.limits.wall_seconds, caller)
        try:
            message = _frame(request)       # only now: those in the line hold their sources once
            while True:
                worker, fresh = self._take()
                if not self.trusted and not isolates(worker.isolation):
                    self._keep(worker)
                    raise IsolationUnavailable(
                        "configurations are not evaluated here: this machine has neither the system call "
                        "filter nor "
                        "namespaces with an empty root to shut them in (there is: %s); --trust-configs "
                        "evaluates them "
                        "nevertheless" % (", ".join(worker.isolation) or "nothing"))
                try:
                    answer = worker.ask(message, reply)
                    break
                except InvalidConfig:       # what `reply` refuses
                    self._keep(worker)
                    raise
                except (OSError, struct.error):
                    worker.close()
                    if fresh:       # one that was idle may have been killed since
                        self.outcomes["crashed"] += 1
                        raise InvalidConfig("the configuration brought its evaluator down") from None
            self._keep(worker)
            return answer
        finally:
            self._semaphore.leave(caller)

    def _keep(self, worker: _Worker) -> None:
        """Have a process ready for the next request, unless it is of no use or there are enough."""
        worker.since = time.monotonic()
        with self._lock:
            keep = not worker.closed and not self._closed and len(self._idle) < self._semaphore.slots
            if keep:
                self._idle.append(worker)
        if not keep and not worker.closed:
            worker.close()

    def _take(self) -> Tuple[_Worker, bool]:
        """(a process, whether it is new). Takes the one that has been idle for longest, which has forked
        ahead by now; keeps two in reserve."""
        with self._lock:
            worker = self._idle.pop(0) if self._idle else None
            room = len(self._idle) + self._semaphore.inside < self._semaphore.slots
            reserve = len(self._idle) < 2 and room and not self._reserving
            self._reserving |= reserve
        if reserve:
            try:
                threading.Thread(target=self._add_reserve, name="evaluator-reserve", daemon=True).start()
            except RuntimeError:        # no thread to be had: then without a reserve
                with self._lock:
                    self._reserving = False
        if worker is not None:
            return worker, False
        worker = _Worker(self.limits)
        self.isolation = worker.isolation
        return worker, True

    def _add_reserve(self) -> None:
        worker = None
        with contextlib.suppress(AuroraError, OSError):
            worker = _Worker(self.limits)
        with self._lock:
            self._reserving = False
            if worker is not None and not self._closed:
                self._idle.append(worker)
                return
        if worker is not None:
            worker.close()

    @property
    def processes(self) -> int:
        return len(self._idle) + self._semaphore.inside

    def close(self) -> None:
        """Stop all processes; there will be no more evaluations."""
        self._closed = True
        self.shrink(everything=True)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def shrink(self, everything: bool = False) -> None:
        """Stop the processes that have been idle for long, or all idle ones."""
        with self._lock:
            now = time.monotonic()
            old = [w for w in self._idle if everything or now - w.since > self.IDLE_SECONDS]
            self._idle = [w for w in self._idle if w not in old]
        for worker in old:
            worker.close()


# What getTierConfigs answers with the scheduler's default tiers (j/../resources/.../tiers.json).
DEFAULT_TIERS: Json = {"defaultTierName": "preemptible", "tiers": [
    {"name": "preferred", "settings": {"preemptible": "false", "revocable": "false"}},
    {"name": "preemptible", "settings": {"preemptible": "true", "revocable": "false"}},
    {"name": "revocable", "settings": {"preemptible": "true", "revocable": "true"}}]}


def resolve_image(registry: str, name: str, tag: str) -> str:
    """The image with the digest that a Docker registry (v2) gives for its tag. Raises InvalidConfig.
    As py/client/docker/docker_client.py."""
    import http.client
    import urllib.error
    import urllib.request
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if not registry:
        raise InvalidConfig("no docker registry is known that would resolve %s:%s" % (name[:80], tag[:80]))
    named = len(name) < 256 and re.fullmatch(r"[a-z0-9]+((?:[./]|__?|-+)[a-z0-9]+)*", name)
    if not named or not re.fullmatch(r"\w[\w.\-]{0,127}", tag):
        raise InvalidConfig("%s:%s is not the name and tag of a docker image" % (name[:80], tag[:80]))

    def head(url: str, token: str) -> Any:
        request = urllib.request.Request(url, method="HEAD", headers={
            "Accept": "application/vnd.docker.distribution.manifest.v2+json"})
        if token:
            request.add_header("Authorization", "Bearer " + token)
        return opener.open(request, timeout=10)

    def grant(challenge: str) -> str:
        fields = dict(re.findall(r'\b(\w+)="([^"]*)"', challenge[:4096]))
        realm = fields.pop("realm", "")
        if not challenge.lower().startswith("bearer") or not realm.startswith(("http://", "https://")):
            raise InvalidConfig("the docker registry %s asks for credentials that cannot be given" % registry)
        with opener.open(realm + "?" + urllib.parse.urlencode(fields), timeout=10) as answer:
            return str(json.loads(answer.read(1 << 20)).get("token", ""))

    url, token = "%s/v2/%s/manifests/%s" % (registry.rstrip("/"), name, tag), ""
    for attempt in (1, 2):
        try:
            with head(url, token) as answer:
                digest = answer.headers.get("Docker-Content-Digest")
            if not digest:
                raise InvalidConfig("the docker registry %s gives no digest for %s:%s" %
                                    (registry, name, tag))
            prefix = "" if registry.rstrip("/") == Cluster(None).docker_registry else urllib.parse.urlsplit(
                registry).netloc + "/"
            return "%s%s@%s" % (prefix, name, digest)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != 401 or attempt == 2:
                raise InvalidConfig("the docker registry %s answers HTTP %d for %s:%s" % (
                    registry, error.code, name, tag)) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise InvalidConfig("the docker registry %s cannot be asked for %s:%s: %s" % (
                registry, name, tag, getattr(error, "reason", None) or error)) from None
        try:
            token = grant(challenge)
        except (OSError, ValueError) as error:
            raise InvalidConfig("the docker registry %s gives no token: %s" % (registry, error)) from None
    raise AssertionError("unreachable")


class Job(NamedTuple):
    """A job as it would be sent. configuration: api.JobConfiguration; settings: api.JobUpdateSettings, or
    None where `problems` says why it cannot be updated with this configuration; warnings: sentences for the
    user."""
    key: str
    configuration: Any
    settings: Any
    problems: List[str]
    warnings: List[str]

    @property
    def is_cron(self) -> bool:
        return bool(self.configuration.cronSchedule)

    def update_request(self, instances: Sequence[int] = (), update_id: str = "") -> Any:
        """The api.JobUpdateRequest for startJobUpdate, limited to `instances` if there are any. Raises
        InvalidConfig."""
        if self.settings is None:
            raise InvalidConfig(*self.problems)
        check_instance_count(self.configuration.instanceCount)
        return api.JobUpdateRequest(
            taskConfig=self.configuration.taskConfig, instanceCount=self.configuration.instanceCount,
            settings=self.settings.replace(updateOnlyTheseInstances=to_ranges(instances) if instances
                                           else None),
            metadata={api.Metadata(key=UPDATE_ID_METADATA, value=update_id or str(uuid.uuid4()))})


def check_instance_count(count: int) -> None:
    """Raises Refused, as the scheduler would, before sets of that size are made."""
    if not 0 < count <= MAX_TASKS_PER_JOB:
        raise Refused("Instance count must be between 1 and %d inclusive." % MAX_TASKS_PER_JOB)


def to_ranges(instances: Iterable[int]) -> Set[Any]:
    """Instance numbers as the fewest api.Range."""
    ranges: List[List[int]] = []
    for each in sorted(set(instances)):
        if ranges and each == ranges[-1][1] + 1:
            ranges[-1][1] = each
        else:
            ranges.append([each, each])
    return {api.Range(first=first, last=last) for first, last in ranges}


def from_ranges(ranges: Optional[Iterable[Any]]) -> List[int]:
    """The instance numbers in a set of api.Range, sorted. Raises ValueError for ranges larger than any
    job."""
    if any(each.last - each.first > 10 * MAX_TASKS_PER_JOB for each in ranges or ()):
        raise ValueError("a range of instances is larger than any job")
    return sorted({number for each in ranges or () for number in range(each.first, each.last + 1)})


def _significant(value: Any) -> Any:
    """Plain JSON without what the scheduler fills in where nothing was sent: false, 0, and empty values."""
    if isinstance(value, dict):
        kept = {name: _significant(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each or each == {}
                and name in ("mesos", "docker")}
    return [_significant(each) for each in value] if isinstance(value, list) else value


def same_meaning(mine: Any, running: Any) -> bool:
    """Whether two TaskConfigs describe the same task: like equality, but executor data that is JSON compares
    as what it means, in which processes go by their names and constraints in no order; the owner, and what
    the scheduler itself fills in (links to ports among it), do not count."""
    def meaning(text: str) -> Any:
        plain = load_json(text)
        task = plain.get("task") if isinstance(plain, dict) else None
        for field in ("processes", "constraints"):
            if isinstance(task, dict) and isinstance(task.get(field), list):
                task[field] = sorted(task[field], key=lambda each: json.dumps(each, sort_keys=True))
        return plain

    def rest(config: Any) -> Any:
        return _significant(config.replace(
            executorConfig=None, owner=None, taskLinks=config.taskLinks if mine.taskLinks
            else None).to_plain())
    if rest(mine) != rest(running):
        return False
    ours, theirs = mine.executorConfig, running.executorConfig
    if ours is None or theirs is None or ours.name != theirs.name:
        return bool(ours == theirs)
    try:
        return bool(meaning(ours.data) == meaning(theirs.data))
    except (TypeError, ValueError):
        return bool(ours.data == theirs.data)


_default_evaluator: List[Evaluator] = []


def load_job(source: Union[str, Dict[str, str]], key: str, *, user: Optional[str] = None,
             is_json: bool = False,
             bindings: Union[Dict[str, str], Sequence[Tuple[str, str]]] = (), tiers: Optional[Json] = None,
             docker_registry: str = Cluster(None).docker_registry, evaluator: Optional[Evaluator] = None,
             caller: Optional[str] = None, env: Union[Dict[str, str], Sequence[Tuple[str, str]]] = ()) -> Job:
    """The job `key` (cluster/role/environment/name) that `source` describes, converted for the scheduler.

    source: `.aurora` text, or texts by file name of which the first is the root; bindings: values for
    {{names}}; env: for os.environ; tiers: plain getTierConfigs, Aurora's defaults else; user: the job's
    owner, its role else; caller: whose share of the evaluators it takes.
    Raises InvalidConfig with every problem found.
    """
    if evaluator is None:
        with locked("default evaluator"):
            if not _default_evaluator:
                _default_evaluator.append(Evaluator(2))
        evaluator = _default_evaluator[0]
    parts = Key.of(key)
    files = {"job.aurora": source} if isinstance(source, str) else source
    if not isinstance(files, dict) or not files:
        raise InvalidConfig("the source has to be text, or texts by file name of which the first is the root")
    pairs, given = (list(each.items()) if isinstance(each, dict) else list(each) for each in (bindings, env))
    answer = evaluator.evaluate(files, parts, is_json=is_json, bindings=pairs, tiers=tiers,
                                docker_registry=docker_registry, caller=caller, env=given)
    # The evaluator ran a stranger's program: what it says is held to the API's types, and to the key asked
    # for.
    try:
        job = api.JobConfiguration.from_plain(answer.get("job"), "job")
        settings = None if answer.get("update") is None else api.JobUpdateSettings.from_plain(answer[
            "update"], "update")
        wanted = api.JobKey(role=parts[1], environment=parts[2], name=parts[3])
        if job.key != wanted or job.taskConfig is None or job.taskConfig.job != wanted:
            raise PlainError("job: not the key that was asked for")
        if job.instanceCount is None:
            raise PlainError("job.instanceCount: missing")
        texts = [_texts(answer.get(field)) for field in ("update_errors", "warnings")]
    except (PlainError, AttributeError, TypeError) as error:
        raise InvalidConfig("the configuration's result does not fit the scheduler's API: %s" %
                            error) from None
    job.owner = job.taskConfig.owner = api.Identity(user=user or parts[1])
    return Job(key, job, settings, texts[0], texts[1])


# ============================================================================================================
# 5. Operations
#
# What a Python script can call: list, create, kill, restart, update, scale, drain, wait, SLA. Each takes a
# Scheduler; long ones take an Operation, report to it and stop between steps when it is cancelled. Nothing
# here knows of HTTP. Uses rooms 2 to 4, and of room 1 what waits and fails.
# ============================================================================================================


class Key(NamedTuple):
    """A job key with its cluster."""
    cluster: str
    role: str
    environment: str
    name: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def of(cls, key: Union[str, Key]) -> Key:
        """A key from cluster/role/environment/name. Raises BadRequest."""
        parts = key.split("/") if isinstance(key, str) else key
        if len(parts) != 4:
            raise BadRequest("a job key is cluster/role/environment/name, not %r" % (key,))
        return cls(*parts)

    @property
    def thrift(self) -> Any:
        """The api.JobKey."""
        return api.JobKey(role=self.role, environment=self.environment, name=self.name)


class DryRun(Exception):
    """The write call that would have been made, if there is one, and what is known of its effect."""

    def __init__(self, method: Optional[str], arguments: Any, **more: Any) -> None:
        super().__init__(method)
        self.would = dict(more, call=method, arguments=arguments.to_plain()) if method else more


def named_roles(value: Any) -> List[Optional[str]]:
    """The role of every job key, quota and query in a call's arguments; None for a query of all roles'
    tasks."""
    if isinstance(value, api.JobKey):
        return [value.role]
    if isinstance(value, (list, set, frozenset)):
        return [role for each in value for role in named_roles(each)]
    if not isinstance(value, ThriftStruct):
        return []
    roles = [role for field in value.fields for role in named_roles(getattr(value, field))]
    if "ownerRole" in value.fields:
        roles.append(value.ownerRole)       # type: ignore[attr-defined]
    if isinstance(value, (api.TaskQuery, api.JobUpdateQuery)):
        role = (value.role or "").strip()   # blank: no filter, to the scheduler
        roles += [role] if role else [] if roles else [None]
    return roles


def check_one_name(value: Any) -> None:
    """Raises BadRequest where a JobConfiguration names two jobs: Aurora judges by `key`, and makes tasks of
    the other."""
    if isinstance(value,
            api.JobConfiguration) and value.taskConfig is not None and value.taskConfig.job != value.key:
        raise BadRequest("key and taskConfig.job name different jobs")
    for field in value.fields if isinstance(value, ThriftStruct) else ():
        check_one_name(getattr(value, field))


class Session:
    """A scheduler as one caller uses it in one run: with his credentials, dry or not; for one thread at a
    time.

    The one door for writes. Before one is sent, `permit` is asked whether the caller may do this to all that
    its arguments name; a dry run ends there. `sent` tells whether any may have reached the scheduler.
    """

    def __init__(self, scheduler: Any, authorization: Optional[str] = None, dry_run: bool = False,
                 permit: Callable[[Method, Any], None] = lambda method, arguments: None) -> None:
        self.scheduler = scheduler
        self.authorization = authorization
        self.dry_run = dry_run
        self.permit = permit
        self.notes: Json = {}     # what a dry run tells besides the call
        self.sent = False

    def call(self, method: str, *arguments: Any, projection: Optional[Projection] = None,
             timeout: Optional[float] = None, **named: Any) -> Any:
        """As Scheduler.call. Raises DryRun instead of sending a write in a dry run."""
        ask = self.scheduler.prepare(method, *arguments, projection=projection,
                                     authorization=self.authorization, **named)
        if not ask.method.writes:
            return self.scheduler.ask(ask, timeout)[1]
        check_one_name(ask.arguments)
        self.permit(ask.method, ask.arguments)
        if self.dry_run:
            left = narrowed(self.scheduler, ask, timeout)
            raise DryRun(method, (left or ask).arguments,
                         **dict(self.notes, **({} if left else {"nothing": True})))
        try:
            reply, response = self.scheduler.ask(ask, timeout)
        except AuroraError as error:
            self.sent = self.sent or error.sent or error.response is not None and not error.harmless
            raise
        self.sent = self.sent or bool(reply)
        return response


def parse_instances(texts: Iterable[str]) -> List[int]:
    """The sorted instance numbers in texts such as "1,3-5". Raises BadRequest for anything that could be read
    as something else: the scheduler takes an empty set for all instances, so it must never arise by
    accident."""
    found: Set[int] = set()
    for text in texts:
        for part in text.split(","):
            match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
            if not match:
                raise BadRequest("instances are numbers and ranges such as 1,3-5; %r is neither" % part)
            first, last = int(match.group(1)), int(match.group(2) or match.group(1))
            if last < first:
                raise BadRequest("the range %s is reversed" % part)
            if last >= MAX_TASKS_PER_JOB:
                raise BadRequest("instance %d: a job has at most %d instances, numbered from 0" % (
                    last, MAX_TASKS_PER_JOB))
            found.update(range(first, last + 1))
    return sorted(found)


class _KeyText(TFrozenBase):
    """role/environment/name, made straight from the wire."""
    def __new__(cls, role: str = "", environment: str = "", name: str = "") -> Any:
        return role + "/" + environment + "/" + name


class _OnlyKey(TFrozenBase):
    """A JobConfiguration of which just the key is wanted."""
    def __new__(cls, key: Any = None) -> Any:
        return key


_STRING_KEY = {"role": True, "environment": True, "name": True, None: _KeyText}
_MESSAGES = {"responseCode": True, "details": True}


@lru_cache(maxsize=None)
def projection(name: str) -> Projection:
    """The named projection of a Response; made on first use."""
    assigned = {"taskId": True, "slaveHost": True, "instanceId": True}
    events = {"status": True, "taskEvents": True, "failureCount": True, "ancestorId": True,
              "timesPartitioned": True}
    summary = {"tier": True, "isService": True}
    shapes: Json = {
        "job keys": {"getJobsResult": {"configs": {"key": _STRING_KEY, None: _OnlyKey}}},
        "tasks": {"scheduleStatusResult": {"tasks": dict(events, assignedTask=dict(
            assigned, assignedPorts=True, task=summary))}},
        "task changes": {"scheduleStatusResult": {"tasks": {
            "assignedTask": dict(assigned, task={"job": _STRING_KEY}), "status": True, "taskEvents": True}}},
        "log tasks": {"scheduleStatusResult": {"tasks": {
            "assignedTask": dict(assigned, task={"executorConfig": {"name": True}}),
            "status": True, "taskEvents": {"timestamp": True}}}},
        "sla tasks": {"scheduleStatusResult": {"tasks": {
            "assignedTask": {"slaveHost": True, "task": {"job": _STRING_KEY, "production": True}},
            "status": True, "taskEvents": {"timestamp": True, "status": True}}}},
        "task states": {"scheduleStatusResult": {"tasks": {"assignedTask": assigned, "status": True}}},
        "hosts": {"scheduleStatusResult": {"tasks": {"assignedTask": {"slaveHost": True}}}},
        "summaries": {"jobSummaryResult": {"summaries": {
            "job": {"key": _STRING_KEY, "cronSchedule": True, "cronCollisionPolicy": True,
                    "instanceCount": True,
                    "taskConfig": summary},
            "stats": True, "nextCronRunMs": True}}},
        "described summaries": {"jobSummaryResult": {"summaries": {
            "job": {"key": _STRING_KEY, "cronSchedule": True, "cronCollisionPolicy": True,
                    "instanceCount": True,
                    "taskConfig": dict(summary, metadata=True, container=True)},
            "stats": True, "nextCronRunMs": True}}},
    }
    for name_, method in (("cluster tasks", "scheduleStatusResult"),
                          ("recovery tasks", "queryRecoveryResult")):
        shapes[name_] = {method: {"tasks": dict(events, assignedTask=dict(
            assigned, assignedPorts=True, task=dict(summary, job=_STRING_KEY)))}}
    return Projection(Type("struct", api.Response), dict(_MESSAGES, result=shapes[name]))


_Work = TypeVar("_Work", bound=Callable[..., Any])


def reading(work: _Work) -> _Work:
    """A function that reads what a scheduler answered: where that lacks what it has to have, it is no answer.
    Raises BadAnswer then."""
    def read(*given: Any, **named: Any) -> Any:
        try:
            return work(*given, **named)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadAnswer("the scheduler's answer lacks what it has to have: %s: %s" % (
                type(error).__name__, error)) from error
    made: Any = wraps(work)(read)
    return made


@reading
def list_jobs(scheduler: Scheduler, role: Optional[str] = None) -> List[str]:
    """The keys role/environment/name of a role's jobs, or of all, sorted."""
    response = scheduler.call("getJobs", role, projection=projection("job keys"))
    return sorted(response.get("result", {}).get("getJobsResult", {}).get("configs", ()))


@reading
def list_summaries(scheduler: Scheduler, role: Optional[str] = None, fields: str = "summaries") -> List[Any]:
    """The plain summaries of a role's jobs, or of all, sorted by key: job (key as text), stats,
    nextCronRunMs."""
    response = scheduler.call("getJobSummary", role, projection=projection(fields))
    found = response.get("result", {}).get("jobSummaryResult", {}).get("summaries", ())
    return sorted(found, key=lambda each: each["job"]["key"])


@reading
def query_tasks(scheduler: Scheduler, key: Key, instances: Sequence[int] = (),
                statuses: Optional[Iterable[int]] = None,
                fields: str = "tasks", reasons: bool = False) -> List[Any]:
    """The plain tasks of a job, sorted by instance and age; statuses are numbers. fields: a projection's
    name; reasons: with the scheduler's `reason` why, in each that waits for a host."""
    query = api.TaskQuery(jobKeys={key.thrift}, instanceIds=set(instances) or None,
                          statuses=set(statuses) if statuses else None)
    response = scheduler.call("getTasksWithoutConfigs", query, projection=projection(fields))
    tasks = response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", [])
    for task in tasks:
        task["assignedTask"].setdefault("instanceId", 0)
    if reasons and any(task["status"] == api.ScheduleStatus.PENDING for task in tasks):
        known = pending_reasons(scheduler, api.TaskQuery(jobKeys={key.thrift}))
        for task in tasks:
            task["reason"] = known.get(task["assignedTask"]["taskId"])
    return sorted(tasks, key=lambda t: (t["assignedTask"]["instanceId"], _first_event(t),
                                        t["assignedTask"]["taskId"]))


def pending_reasons(scheduler: Scheduler, query: Any) -> Dict[str, str]:
    """Why each pending task that an api.TaskQuery finds waits, by task id."""
    found = scheduler.call("getPendingReason", query).result.getPendingReasonResult.reasons or ()
    return {each.taskId: each.reason or "" for each in found}


def _first_event(task: Any) -> int:
    return min((event["timestamp"] for event in task.get("taskEvents", ())), default=0)


def is_active(task: Any) -> bool:
    """Whether a plain task is in an active state."""
    return task["status"] in api.ACTIVE_STATES


def instances_of(tasks: Iterable[Any]) -> List[int]:
    """The sorted instance numbers of plain tasks."""
    return sorted({task["assignedTask"]["instanceId"] for task in tasks})


def last_words(task: Any) -> Json:
    """How a plain task ended: instance, id, state, host, and the message of its last event."""
    assigned = task["assignedTask"]
    events = sorted(task.get("taskEvents", ()), key=lambda event: event["timestamp"])
    return {"instance": assigned["instanceId"], "id": assigned["taskId"], "host": assigned.get("slaveHost"),
            "state": api.ScheduleStatus.name_of(task["status"]), "message": events[-1].get("message")
            if events else None}


def active_instances(scheduler: Scheduler, key: Key, instances: Sequence[int] = ()) -> Dict[int, Any]:
    """The active plain tasks of a job by instance, without those that are being killed. Raises NotFound where
    there is none at all, and where one of `instances` is not active."""
    tasks = {task["assignedTask"]["instanceId"]: task
             for task in query_tasks(scheduler, key, instances, api.ACTIVE_STATES, "task states")
             if task["status"] != api.ScheduleStatus.KILLING}
    missing = [each for each in instances if each not in tasks]
    if missing:
        raise NotFound("job %s has no active instance %s" % (key, ", ".join(map(str, missing))))
    if not tasks:
        raise NotFound("job %s has no active instances" % (key,))
    return tasks


@reading
def running_configs(scheduler: Scheduler, key: Key) -> List[Tuple[Any, List[int]]]:
    """(TaskConfig, instances) of each configuration that active instances of a job have, largest group
    first."""
    response = scheduler.call("getConfigSummary", key.thrift)
    groups = response.result.configSummaryResult.summary.groups or ()
    pairs = [(group.config, from_ranges(group.instances)) for group in groups]
    return sorted(pairs, key=lambda pair: (-len(pair[1]), pair[1]))


def align(job: Job, running: Sequence[Tuple[Any, List[int]]]) -> Job:
    """The job with the running configuration's own text and owner where both mean the same: the scheduler
    compares the text of executor data and the owner, and would restart every instance for a difference
    without meaning."""
    configuration = job.configuration
    for config, _ in running:
        if same_meaning(configuration.taskConfig, config):
            return job._replace(configuration=configuration.replace(taskConfig=config))
    if running:
        owner = running[0][0].owner
        task = configuration.taskConfig.replace(owner=owner)
        return job._replace(configuration=configuration.replace(taskConfig=task, owner=owner))
    return job


class UpdateStarted(NamedTuple):
    """What startJobUpdate led to. id: "" where nothing was to change."""
    id: str
    messages: List[str]


def start_update(scheduler: Scheduler, job: Job, instances: Sequence[int] = (),
                 message: Optional[str] = None) -> UpdateStarted:
    """Start a rolling update to `job`. Raises Conflict, with the update under `update`, while one is in
    progress."""
    update_id = str(uuid.uuid4())
    request = job.update_request(instances, update_id)
    try:
        response = scheduler.call("startJobUpdate", request, message)
    except Refused as conflict:
        result = conflict.response.result
        if result is None or result.startJobUpdateResult is None:
            raise
        mine = _own_update(scheduler, job, update_id)
        if mine:
            return UpdateStarted(mine, [])
        shown = None
        with contextlib.suppress(AuroraError):
            key = Key.of(job.key)
            shown = plain_update(key.cluster, update_details(scheduler, key,
                                                             result.startJobUpdateResult.key.id))
        raise Conflict(*(conflict.messages or ["an update of the job is in progress"]),
                       code="UPDATE_IN_PROGRESS",
                       update=shown) from None
    started = response.result.startJobUpdateResult if response.result else None
    if started and started.key:
        return UpdateStarted(started.key.id, messages_of(response))
    return UpdateStarted(_own_update(scheduler, job, update_id), messages_of(response))


def _own_update(scheduler: Scheduler, job: Job, update_id: str) -> str:
    """The scheduler's id of the update that this process started under `update_id`, "" if there is none:
    startJobUpdate is sent again when its answer is lost, and the second answer speaks of what the first
    sending led to."""
    mine = api.Metadata(key=UPDATE_ID_METADATA, value=update_id)
    for summary in update_summaries(scheduler, api.JobUpdateQuery(jobKey=job.configuration.key, limit=10)):
        if mine in (summary.metadata or ()):
            return str(summary.key.id)
    return ""


def update_summaries(scheduler: Scheduler, query: Any) -> List[Any]:
    """The api.JobUpdateSummary of each update that an api.JobUpdateQuery finds, the one modified last
    first."""
    response = scheduler.call("getJobUpdateSummaries", query)
    return list(response.result.getJobUpdateSummariesResult.updateSummaries or [])


def active_update(scheduler: Scheduler, key: Key) -> Any:
    """The api.JobUpdateSummary of the update in progress. Raises NotFound."""
    found = update_summaries(scheduler, api.JobUpdateQuery(
        jobKey=key.thrift, updateStatuses=set(api.ACTIVE_JOB_UPDATE_STATES)))
    if not found:
        raise NotFound("no active update of job %s" % (key,))
    return found[0]


def find_updates(scheduler: Scheduler, query: Any) -> List[Any]:
    """The api.JobUpdateDetails of each update that an api.JobUpdateQuery finds, the one modified last
    first."""
    return list(scheduler.call("getJobUpdateDetails", None,
                               query).result.getJobUpdateDetailsResult.detailsList or ())


def update_details(scheduler: Scheduler, key: Key, update_id: str) -> Any:
    """The api.JobUpdateDetails of one update. Raises NotFound."""
    refusal: List[str] = []
    try:
        found = find_updates(scheduler, api.JobUpdateQuery(key=api.JobUpdateKey(job=key.thrift,
                id=update_id)))
    except Refused as refused:
        found, refusal = [], refused.messages
    if not found:
        raise NotFound("no update %s of job %s" % (update_id, key), *refusal)
    return found[0]


_INSTANCE_STATES = {"INSTANCE_UPDATED": "updated", "INSTANCE_ROLLED_BACK": "rolled_back",
                    "INSTANCE_UPDATING": "updating",
                    "INSTANCE_ROLLING_BACK": "rolling_back", "INSTANCE_UPDATE_FAILED": "failed",
                    "INSTANCE_ROLLBACK_FAILED": "failed"}


def update_instances(details: Any) -> Dict[str, List[int]]:
    """The instances of an update by how far each is: updated, updating, rolled_back, rolling_back, failed,
    waiting."""
    instructions = details.update.instructions
    wanted = set(from_ranges(instructions.desiredState.instances)) if instructions.desiredState else set()
    for config in instructions.initialState or ():
        wanted.update(from_ranges(config.instances))
    only = from_ranges(instructions.settings.updateOnlyTheseInstances) if instructions.settings else []
    state = {number: "waiting" for number in (wanted & set(only) if only else wanted)}
    for event in sorted(details.instanceEvents or [], key=lambda e: e.timestampMs):
        state[event.instanceId] = _INSTANCE_STATES.get(api.JobUpdateAction.name_of(event.action), "waiting")
    found: Dict[str, List[int]] = {}
    for number in sorted(state):
        found.setdefault(state[number], []).append(number)
    return found


def update_progress(details: Any) -> Dict[str, int]:
    """How far an update is, from its details: how many instances in all, done, failed, under way."""
    counts = {name: len(numbers) for name, numbers in update_instances(details).items()}
    return {"total": sum(counts.values()), "done": counts.get("updated", 0) + counts.get("rolled_back", 0),
            "failed": counts.get("failed", 0), "active": counts.get("updating", 0) +
            counts.get("rolling_back", 0)}


def plain_config(config: Any) -> Json:
    """A TaskConfig or JobConfiguration as plain JSON, with the executor's data as the object that it
    holds."""
    plain: Json = config.to_plain()
    executor = plain.get("taskConfig", plain).get("executorConfig", {})
    with contextlib.suppress(ValueError, TypeError):
        executor["data"] = load_json(executor["data"])
    return plain


@reading
def plain_update(cluster: str, details: Any, whole: bool = False) -> Json:
    """An update's api.JobUpdateDetails as callers see it; whole: with settings, configurations and all
    events."""
    summary, events = details.update.summary, details.updateEvents or []
    state, job = summary.state, summary.key.job
    said = [event.message for event in events if event.message]
    plain: Json = {
        "id": summary.key.id, "job": "/".join((cluster, job.role, job.environment, job.name)),
        "user": summary.user,
        "state": api.JobUpdateStatus.name_of(state.status), "created": state.createdTimestampMs,
        "modified": state.lastModifiedTimestampMs, "message": said[-1] if said else None,
        "progress": update_progress(details), "instances": update_instances(details),
        "metadata": {each.key: each.value for each in sorted(summary.metadata or (), key=lambda m: m.key
                                                             or "")}}
    if not whole:
        return plain
    instructions = details.update.instructions
    desired = instructions.desiredState
    groups = sorted(((from_ranges(each.instances), each.task) for each in instructions.initialState or ()),
                    key=lambda pair: pair[0])
    plain.update(
        settings=instructions.settings.to_plain() if instructions.settings else None,
        before=[{"instances": numbers, "config": plain_config(config)} for numbers, config in groups],
        after={"instances": from_ranges(desired.instances), "config": plain_config(desired.task)} if desired
        else None,
        events=[{"state": api.JobUpdateStatus.name_of(each.status), "time": each.timestampMs,
                 "user": each.user,
                 "message": each.message} for each in events],
        instance_events=[{"instance": each.instanceId, "action": api.JobUpdateAction.name_of(each.action),
                          "time": each.timestampMs, "message": each.message}
                          for each in details.instanceEvents or ()])
    return plain


class UpdateLook(NamedTuple):
    """An update as somebody sees it who waits for its end. details: api.JobUpdateDetails; reasons: why tasks
    of its job are pending; endings: how its instances ended that failed, where it came to no good end."""
    details: Any
    reasons: Sequence[str] = ()
    endings: Sequence[Json] = ()


def look_at_update(scheduler: Scheduler, key: Key, update_id: str) -> UpdateLook:
    """One update, and what is told of its tasks. Raises NotFound."""
    details = update_details(scheduler, key, update_id)
    status = details.update.summary.state.status
    with contextlib.suppress(AuroraError):      # what is said besides must not fail the wait
        if status in api.ACTIVE_JOB_UPDATE_STATES:
            reasons = pending_reasons(scheduler, api.TaskQuery(jobKeys={key.thrift}))
            return UpdateLook(details, sorted(set(reasons.values())))
        actions = (api.JobUpdateAction.INSTANCE_UPDATE_FAILED, api.JobUpdateAction.INSTANCE_ROLLBACK_FAILED)
        failed = {event.instanceId for event in details.instanceEvents or () if event.action in actions}
        if failed and status != api.JobUpdateStatus.ROLLED_FORWARD:
            tasks = query_tasks(scheduler, key, sorted(failed), api.TERMINAL_STATES)
            latest = {task["assignedTask"]["instanceId"]: task for task in tasks
                      if task["status"] in (api.ScheduleStatus.FAILED, api.ScheduleStatus.LOST)}
            return UpdateLook(details, (), [last_words(latest[number]) for number in sorted(latest)])
    return UpdateLook(details)


def add_like(scheduler: Scheduler, key: Key, count: int, like: Optional[int] = None) -> Optional[List[int]]:
    """Add `count` instances that are like one of the job's, the lowest by default. Which were added, as read
    back; None where that could not be read. Raises NotFound."""
    with locked("instances", key):
        return _add_like(scheduler, key, _all_active(scheduler, key), count, like)


def _all_active(scheduler: Scheduler, key: Key) -> List[Any]:
    """The active plain tasks, those that are being killed too. Raises NotFound where there is none."""
    tasks = query_tasks(scheduler, key, (), api.ACTIVE_STATES, "task states")
    if not tasks:
        raise NotFound("job %s has no active instances" % (key,))
    return tasks


def _staying(tasks: Iterable[Any]) -> List[int]:
    """The instances of active tasks that are not being killed."""
    return instances_of(task for task in tasks if task["status"] != api.ScheduleStatus.KILLING)


def _add_like(scheduler: Scheduler, key: Key, tasks: Sequence[Any], count: int,
              like: Optional[int]) -> Optional[List[int]]:
    numbers = _staying(tasks) or sorted(task["assignedTask"]["instanceId"] for task in tasks)
    if like is not None and like not in numbers:
        raise NotFound("job %s has no active instance %d to copy" % (key, like))
    source = api.InstanceKey(jobKey=key.thrift, instanceId=numbers[0] if like is None else like)
    scheduler.call("addInstances", source, count)
    before = {task["assignedTask"]["taskId"] for task in tasks}
    try:
        after = query_tasks(scheduler, key, (), api.ACTIVE_STATES, "task states")
    except AuroraError:
        return None     # it was done; only which numbers they have is not known
    return sorted({task["assignedTask"]["instanceId"] for task in after
                   if task["assignedTask"]["taskId"] not in before}
                  - {task["assignedTask"]["instanceId"] for task in tasks})


def change_instances(scheduler: Scheduler, key: Key, wanted: int, like: Optional[int] = None,
                     message: Optional[str] = None) -> Dict[str, Optional[List[int]]]:
    """Add instances that are like one of the job's, or kill those with the highest numbers, until it has
    `wanted` that are not being killed already. Returns which were added or killed; None for what could not be
    read back."""
    if wanted > MAX_TASKS_PER_JOB or wanted < 0:
        raise BadRequest("a job has 0 to %d instances" % MAX_TASKS_PER_JOB)
    with locked("instances", key):
        tasks = _all_active(scheduler, key)
        staying = _staying(tasks)
        if like is not None and like not in staying:
            raise NotFound("job %s has no active instance %d to copy" % (key, like))
        if wanted > len(staying):
            added = _add_like(scheduler, key, tasks, wanted - len(staying), like)
            return {"added": added, "killed": []}
        surplus = staying[wanted:]
        if surplus:
            scheduler.call("killTasks", key.thrift, set(surplus), message)
        return {"added": [], "killed": surplus}


def _by_name(items: Any) -> Optional[Json]:
    """The objects of a list by what names them: their name or key, or the one field of a union. None where
    none does."""
    if not isinstance(items, list) or not items or not all(isinstance(each, dict) for each in items):
        return None
    names = [each.get("name") or each.get("key") or (next(iter(each)) if len(each) == 1 else "")
             for each in items]
    return dict(zip(names, items)) if all(isinstance(name, str) and name for name in names) and (
        len(set(names)) == len(names)) else None


def field_changes(old: Any, new: Any, path: str = "") -> List[Json]:
    """Field by field how plain JSON `new` differs from `old`: path, old, new. Objects in lists are told apart
    by their names (`processes[hello].cmdline`)."""
    changes: List[Json] = []
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            changes += field_changes(old.get(name), new.get(name), "%s.%s" % (path, name) if path else name)
        return changes
    before, after = _by_name(old), _by_name(new)
    if before is not None and after is not None:
        for name in sorted(set(before) | set(after)):
            changes += field_changes(before.get(name), after.get(name), "%s[%s]" % (path, name))
        return changes or ([] if list(before) == list(after)
                           else [{"path": path, "old": list(before), "new": list(after)}])
    # unset and empty mean the same
    same = old == new or (old in (None, [], {}) and new in (None, [], {}))
    return [] if same else [{"path": path, "old": old, "new": new}]


def plan_update(scheduler: Scheduler, job: Job, instances: Sequence[int],
                running: Sequence[Tuple[Any, List[int]]]) -> Json:
    """What an update to `job` would add, remove, change (with the fields, old and new) and leave. A cron job
    has no update: its template is compared with the active tasks."""
    if job.is_cron:
        check_instance_count(job.configuration.instanceCount)
        everything = list(range(job.configuration.instanceCount))
        now = {number: config for config, numbers in running for number in numbers}
        sets: Dict[str, List[Tuple[Any, List[int]]]] = {"add": [], "remove": [], "update": [],
                                                        "unchanged": []}
        for config, numbers in running:
            same = "unchanged" if same_meaning(job.configuration.taskConfig, config) else "update"
            sets[same].append((config, numbers))
        sets["add"] = [(job.configuration.taskConfig, [n for n in everything if n not in now])]
    else:
        response = scheduler.call("getJobUpdateDiff", job.update_request(instances))
        result = response.result.getJobUpdateDiffResult
        sets = {name: [(group.config, from_ranges(group.instances)) for group in getattr(result, name) or ()]
                for name in ("add", "remove", "update", "unchanged")}
    new = plain_config(job.configuration.taskConfig)
    plan: Json = {}
    for name, groups in sets.items():
        plan[name] = sorted(number for _, numbers in groups for number in numbers)
    plan["changes"] = [{"instances": numbers, "fields": field_changes(plain_config(config), new)}
                       for config, numbers in sorted(sets["update"], key=lambda pair: pair[1]) if numbers]
    return plan


# --- SLA: py/client/api/sla.py ------------------------------------------------------------------------------

SLA_DURATIONS = (60, 600, 3600, 43200, 604800)
SLA_PERCENTILES = (99.0, 95.0, 90.0, 85.0, 75.0, 60.0, 50.0, 30.0, 10.0)


def uptimes(tasks: Iterable[Any], now: float) -> List[int]:
    """Seconds that each live plain task has been up, counted from its first RUNNING event."""
    found = []
    for task in tasks:
        if task["status"] in api.LIVE_STATES:
            running = [event["timestamp"] for event in task.get("taskEvents", ())
                       if event.get("status") == api.ScheduleStatus.RUNNING]
            if running:
                found.append(max(0, int(now - min(running) / 1000.0)))
    return found


def job_uptime(ups: Sequence[int], percentile: float) -> int:
    """The uptime that `percentile` percent of the instances have at least."""
    index = len(ups) - int(percentile / 100.0 * len(ups)) - 1
    return sorted(ups)[index] if 0 <= index < len(ups) else 0


def up_count(ups: Sequence[int], seconds: float) -> float:
    """Percent of the instances that have been up for at least `seconds`."""
    return 100.0 * sum(up >= seconds for up in ups) / len(ups) if ups else 0.0


@reading
def probe_hosts(scheduler: Scheduler, hosts: Optional[Sequence[str]], percentage: float, seconds: float,
                min_instances: int, now: float,
                together: bool = True) -> List[Json]:
    """For every job on `hosts`, or on any host, whether it keeps `percentage` of its instances up for
    `seconds` when they go, all together or each alone; only production jobs of at least `min_instances`
    count, as in aurora_admin. For each host: jobs, each with its figures."""
    def ask(**query: Any) -> List[Any]:
        response = scheduler.call("getTasksWithoutConfigs",
                                  api.TaskQuery(statuses=set(api.LIVE_STATES), **query),
                                  projection=projection("sla tasks"))
        return list(response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", ()))
    tasks = ask(slaveHosts=set(hosts)) if hosts is not None else ask()
    on_host: Dict[str, Set[str]] = {host: set() for host in hosts or ()}
    for task in tasks:
        config = task["assignedTask"]["task"]
        jobs = on_host.setdefault(task["assignedTask"].get("slaveHost", ""), set())
        if config.get("production"):
            jobs.add(config["job"])
    keys = {job for jobs in on_host.values() for job in jobs}
    if hosts is not None:
        tasks = ask(jobKeys={api.JobKey(**dict(zip(Key._fields[1:], key.split("/"))))
                             for key in keys}) if keys else []
    by_job: Dict[str, List[Any]] = {}
    for task in tasks:
        by_job.setdefault(task["assignedTask"]["task"]["job"], []).append(task)
    found = []
    for host in on_host:
        leaving = set(hosts or ()) if together and hosts is not None else {host}
        judged = []
        for key in sorted(on_host[host]):
            everything = uptimes(by_job.get(key, ()), now)
            if not everything or len(everything) < min_instances:
                continue
            staying = uptimes([t for t in by_job[key] if t["assignedTask"].get("slaveHost") not in leaving],
                              now)
            after = 100.0 * sum(up >= seconds for up in staying) / len(everything)
            judged.append({"job": key, "percentage": round(after, 2), "safe": after >= percentage})
        found.append({"host": host, "safe": all(job["safe"] for job in judged), "jobs": judged})
    return found


# --- long-running work --------------------------------------------------------------------------------------


class Cancelled(Exception):
    """The operation was told to stop."""


class Operation(Source):
    """A long-running piece of work: its state, progress, steps with their times, outcome. Safe for many
    threads. Iterating over it gives the steps as they come, and raises in the end what it failed with. Times
    are milliseconds since 1970."""
    MAX_STEPS = 500

    def __init__(self, kind: str = "script", key: str = "", user: str = "", total: int = 0,
                 owner: Optional[str] = None) -> None:
        super().__init__()
        self.id = str(uuid.uuid4())
        self.kind = kind
        self.key = key
        self.user = user
        # who alone may cancel it, where `user` is only what somebody says of himself
        self.owner = owner
        # level and role that began it: what cancelling takes
        self.needs: Tuple[str, Optional[str]] = ("write", None)
        self.state = "running"          # then succeeded, failed, cancelled or interrupted
        self.started = int(time.time() * 1000)
        self.ended: Optional[int] = None
        self.done = self.failed = 0
        self.total = total
        self.failure: Optional[Exception] = None
        self.errors: List[str] = []
        self.result: Json = {}
        self.steps: Deque[Json] = collections.deque(maxlen=self.MAX_STEPS)
        self.stepped = 0                # steps noted so far, those forgotten too
        self.on_step: Callable[[Operation, Json], None] = lambda operation, step: None
        self._stop = threading.Event()
        self._stop_as = ""

    def step(self, text: str, **fields: Any) -> None:
        """Note one thing that was done or seen."""
        noted = dict(fields, time=int(time.time() * 1000), text=text)
        self.steps.append(noted)
        self.stepped += 1
        self.on_step(self, noted)
        self.changed()

    def pause(self, seconds: float) -> None:
        """Wait, and raise Cancelled as soon as the operation is to stop."""
        if self._stop.wait(seconds):
            raise Cancelled(self._stop_as)

    def stop(self, state: str = "cancelled") -> bool:
        """Ask it to stop before its next step. False where it has ended already."""
        with self._lock:
            if self.state != "running":
                return False
            self._stop_as = state
        self._stop.set()
        return True

    def run(self, work: Callable[[Operation], Any]) -> None:
        """Do the work and note how it ended. `work` raises AuroraError for a failure."""
        state = "succeeded"
        try:
            self.pause(0)
            work(self)
        except Cancelled as stopped:
            state, self.failure = str(stopped), stopped
        except AuroraError as error:
            # told to stop while a call failed: then it stopped
            state, self.failure = self._stop_as if self._stop.is_set() else "failed", error
            self.errors += error.messages
            self.result.setdefault("code", error.code)
            self.result.update(error.details)
        except Exception as error:      # a defect here must not leave the operation running for ever
            state, self.failure = "failed", error
            self.errors.append("internal error: %s" % type(error).__name__)
        with self._lock:
            self.state = state
            self.ended = int(time.time() * 1000)
        self.changed()

    def __iter__(self) -> Iterator[Json]:
        woken, told, running = threading.Event(), 0, True
        self.listen(woken.set)
        try:
            while running:
                woken.clear()
                running = self.state == "running"
                stepped, steps = self.stepped, list(self.steps)
                yield from steps[len(steps) - min(stepped - told, len(steps)):]
                told = stepped
                if running:
                    woken.wait()
        finally:
            self.forget(woken.set)
        if self.failure is not None:
            raise self.failure

    def polls(self, ask: Callable[[], Any], seconds: float, pause: float) -> Iterator[Tuple[Any, bool]]:
        """Ask again and again: (the answer, whether the time is over). A scheduler that fails over is waited
        for; a write is asked again only if nothing of it was sent. Raises Cancelled, and what it met last
        where the time is over."""
        deadline = time.monotonic() + seconds
        told = False
        while True:
            self.pause(0)
            try:
                answer = ask()
            except (SchedulerUnreachable, SchedulerTransient, NoLeader, SchedulerTimeout,
                    Overloaded) as error:
                if time.monotonic() >= deadline or "done" in error.details:
                    raise
                if not told:
                    self.step("the scheduler does not answer; waiting for it", error=str(error))
                told = True
                self.pause(1.0)
                continue
            told = False
            yield answer, time.monotonic() >= deadline
            self.pause(pause)

    def to_plain(self) -> Json:
        """As callers see it."""
        return {"id": self.id, "kind": self.kind, "key": self.key, "user": self.user, "state": self.state,
                "started": self.started, "ended": self.ended,
                "progress": {"done": self.done, "failed": self.failed, "total": self.total,
                             "active": max(0, self.total - self.done - self.failed)},
                "steps": list(self.steps), "errors": list(self.errors), "result": dict(self.result)}


def begin(work: Callable[..., Any], *arguments: Any, **named: Any) -> Operation:
    """Run one of the long functions of this room in a thread of its own: `for step in begin(rolling_restart,
    scheduler, key)`. The Operation tells how it goes; its `stop` ends it between two steps."""
    operation = Operation(work.__name__)
    threading.Thread(target=operation.run, name="operation", daemon=True, args=(
        lambda own: work(*arguments, operation=own, **named),)).start()
    return operation


class _Slot:
    """A place among the running operations, with a thread that waits for the work. Taken before anything has
    an effect, so that what was done is never followed by "too many operations". `begin` or `give`, once, by
    who took it."""

    def __init__(self, run: Callable[[_Slot], None]) -> None:
        self.operation: Optional[Operation] = None
        self.work: Callable[[Operation], Any] = lambda operation: None
        self._go = threading.Event()
        self._run = run
        threading.Thread(target=self._wait, name="operation", daemon=True).start()

    def begin(self, operation: Operation, work: Callable[[Operation], Any]) -> None:
        """Do the work."""
        self.operation, self.work = operation, work
        self._go.set()

    def give(self) -> None:
        """There is none to do."""
        self._go.set()

    def _wait(self) -> None:
        self._go.wait()
        self._run(self)


class Operations:
    """The operations of this process: at most `running` at a time, the last `kept` remembered. _lock guards
    _all."""

    def __init__(self, running: int = 100, kept: int = 1000) -> None:
        self.limit = running
        self.kept = kept
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(running)
        self._all: collections.OrderedDict[str, Operation] = collections.OrderedDict()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.log: Callable[[str], None] = lambda line: None

    def take(self) -> _Slot:
        """A place, with its thread, before anything has an effect. Raises Overloaded."""
        if not self._slots.acquire(blocking=False):
            raise Overloaded("%d operations are running; try again" % self.limit, retry_after=5)
        try:
            return _Slot(self._run)
        except RuntimeError:
            self._slots.release()
            raise Overloaded("no thread could be started for the operation; try again",
                             retry_after=5) from None

    def start(self, operation: Operation, work: Callable[[Operation], Any],
              slot: Optional[_Slot] = None, alone: bool = False) -> Operation:
        """Run `work` in the place that was taken, or in a new one. Raises Overloaded; where it is to be
        alone, Conflict while another one of its kind and key runs here."""
        slot = slot or self.take()
        operation.on_step = self._log_step
        with self._lock:
            others = [each for each in self._all.values() if alone and each.state == "running" and
                      (each.kind, each.key) == (operation.kind, operation.key)]
            if not others:
                self._all[operation.id] = operation
            ended = [each.id for each in self._all.values() if each.state != "running"]
            for old in ended[:max(0, len(self._all) - self.kept)]:
                del self._all[old]
        if others:
            slot.give()
            raise Conflict("a %s of %s is under way, operation %s; force=1 begins another beside it" % (
                operation.kind, operation.key, others[0].id), code="OPERATION_UNDER_WAY",
                operation=others[0].to_plain())
        slot.begin(operation, work)
        return operation

    def _log_step(self, operation: Operation, step: Json) -> None:
        self.log("operation id=%s kind=%s key=%s step=%s instances=%s" % (
            operation.id, operation.kind, operation.key, json.dumps(step["text"][:200]),
            ",".join(map(str, step.get("instances", ())))[:200] or "-"))

    def _run(self, slot: _Slot) -> None:
        operation = slot.operation
        try:
            if operation is not None:
                operation.run(slot.work)
                self.outcomes[operation.kind + " " + operation.state] += 1
                self.log("operation id=%s kind=%s key=%s user=%s ended=%s done=%d failed=%d total=%d" % (
                    operation.id, operation.kind, operation.key, operation.user, operation.state,
                    operation.done,
                    operation.failed, operation.total))
                if operation.failure is not None and not isinstance(operation.failure,
                        (AuroraError, Cancelled)):
                    self.log("error operation=%s %s: %s at %s" %
                             (operation.id, type(operation.failure).__name__,
                                                                  operation.failure,
                                                                  _place(operation.failure)))
        finally:
            self._slots.release()

    def __getitem__(self, operation_id: str) -> Operation:
        with self._lock:
            if operation_id in self._all:
                return self._all[operation_id]
        raise NotFound("no operation %s; they are kept while this server runs, the last %d of them" % (
            operation_id, self.kept))

    def all(self) -> List[Operation]:
        """Newest first."""
        with self._lock:
            return list(self._all.values())[::-1]

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(each.state == "running" for each in self.all())

    def interrupt(self, seconds: float) -> None:
        """Stop all, and wait for them to note what was done."""
        for each in self.all():
            each.stop("interrupted")
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)


class Verdict(NamedTuple):
    """How far something is that is waited for. reached: None while it is under way, False where it cannot be
    any more; text: why not, or not yet; code: what kind of failure; fields: further ones for a step or an
    answer; stuck: it is under way, but nothing more will happen by itself."""
    reached: Optional[bool]
    done: int = 0
    failed: int = 0
    total: int = 0
    text: str = ""
    code: str = ""
    fields: Json = {}
    stuck: bool = False

    @property
    def progress(self) -> Dict[str, int]:
        """As callers see it."""
        return {"done": self.done, "failed": self.failed, "total": self.total,
                "active": max(0, self.total - self.done - self.failed)}


def judge_gone(tasks: Iterable[Any], instances: Sequence[int] = ()) -> Verdict:
    """Whether none of the instances (all if none are named) is active any more."""
    left = instances_of(task for task in tasks if is_active(task)
                        and (not instances or task["assignedTask"]["instanceId"] in instances))
    text = "instances %s have not ended" % ", ".join(map(str, left[:20])) if left else ""
    return Verdict(None if left else True, max(0, len(instances) - len(left)), 0, len(instances) or len(left),
                   text)


def judge_running(tasks: Iterable[Any], instances: Optional[Sequence[int]], known: Iterable[str] = (),
                  count: int = 0,
                  strict: bool = True) -> Verdict:
    """Whether the instances ran: the youngest task of each runs or has finished. instances: None for any
    `count` of them; known: ids of tasks that are older than what is waited for, and do not count; strict: a
    task that failed or was lost is a failure although another takes its place."""
    status = api.ScheduleStatus
    fresh = [task for task in tasks if task["assignedTask"]["taskId"] not in known
             and (instances is None or task["assignedTask"]["instanceId"] in instances)]
    # sorted by age: the youngest stays
    latest = {task["assignedTask"]["instanceId"]: task for task in fresh}
    ran = [number for number, task in latest.items() if task["status"] in (status.RUNNING, status.FINISHED)]
    ended = [task for task in (fresh if strict else ()) if task["status"] in (status.FAILED, status.LOST)]
    ended += [task for task in latest.values() if task["status"] in (status.FAILED, status.LOST,
            status.KILLED)]
    bad = {task["assignedTask"]["instanceId"]: last_words(task) for task in ended}
    total = count if instances is None else len(instances)
    if bad and (instances is not None or len(latest) - len(bad) < count):
        endings = [bad[number] for number in sorted(bad)]
        return Verdict(False, len(ran), len(bad), total, _told(endings[0]), "TASKS_FAILED",
                       {"endings": endings})
    waiting = ["instance %d is %s%s" % (number, status.name_of(task["status"]), ": " + task["reason"]
                                        if task.get(
        "reason") else "") for number, task in sorted(latest.items()) if number not in ran]
    return Verdict(True if len(ran) >= total else None, len(ran), len(bad), total,
                   "; ".join(["%d of %d run" % (len(ran), total)] + waiting[:3]))


def _told(ending: Json) -> str:
    message = ": " + ending["message"] if ending["message"] else ""
    return "instance %d ended as %s%s" % (ending["instance"], ending["state"], message)


def judge_update(look: UpdateLook, wanted: str = "ROLLED_FORWARD") -> Verdict:
    """Whether the update ended as it was wanted to; any other end is a failure with its reason. One that
    paused itself is stuck: its last event is nobody's."""
    details, updates = look.details, api.JobUpdateStatus
    status = details.update.summary.state.status
    name, progress = updates.name_of(status), update_progress(details)
    counts, fields = (progress["done"], progress["failed"], progress["total"]), {"state": name}
    last = details.updateEvents[-1] if details.updateEvents else api.JobUpdateEvent()
    said = ": " + last.message if last.message else ""
    if status in api.ACTIVE_JOB_UPDATE_STATES:
        paused = status in (updates.ROLL_FORWARD_PAUSED, updates.ROLL_BACK_PAUSED)
        by = " by %s" % last.user if paused and last.user else ""
        text = "; ".join(["the update is %s%s%s" % (name, by, said)] + list(look.reasons[:3]))
        return Verdict(None, *counts, text, "", fields, paused and not last.user)
    if name == wanted:
        return Verdict(True, *counts, name, "", fields)
    text = "the update ended as %s%s" % (name, said or _said_before(details))
    if look.endings:
        text += "; " + _told(look.endings[0])
    code = name if name in ("ROLLED_BACK", "ABORTED", "ROLLED_FORWARD") else "UPDATE_FAILED"
    return Verdict(False, *counts, text, code, dict(fields, endings=list(look.endings)))


def _said_before(details: Any) -> str:
    """The last message in an update's events: an end often has none of its own."""
    said = [event.message for event in details.updateEvents or () if event.message]
    return ": " + said[-1] if said else ""


def judge_drained(response: Any, hosts: Sequence[str]) -> Verdict:
    """Whether all hosts are DRAINED, by a maintenanceStatus Response."""
    modes = {each.host: each.mode for each in response.result.maintenanceStatusResult.statuses or ()}
    left = sorted(host for host in hosts if modes.get(host) != api.MaintenanceMode.DRAINED)
    shown = [{"host": host, "mode": api.MaintenanceMode.name_of(modes[host])} for host in sorted(hosts)
             if host in modes]
    return Verdict(None if left else True, len(hosts) - len(left), 0, len(hosts),
                   "%s not drained" % ", ".join(left) if left else "drained", "", {"hosts": shown})


def await_verdict(operation: Optional[Operation], ask: Callable[[], Any], judge: Callable[[Any], Verdict],
                  time_limit: float, poll_secs: float) -> Operation:
    """Ask until the judge finds it reached. Raises Unprocessable where it cannot be, or is not after
    time_limit seconds."""
    operation = operation or Operation()
    seen: Any = None
    for answer, late in operation.polls(ask, time_limit, poll_secs):
        verdict = judge(answer)
        operation.done, operation.failed, operation.total = verdict.done, verdict.failed, verdict.total
        operation.result.update(verdict.fields)
        if verdict[:5] != seen:
            seen = verdict[:5]
            operation.step(verdict.text or "done", done=verdict.done, failed=verdict.failed)
        if verdict.reached:
            return operation
        if verdict.reached is False:
            raise Unprocessable(verdict.text, code=verdict.code)
        if verdict.stuck:
            raise Unprocessable(verdict.text, code="UPDATE_PAUSED")
        if late:
            raise Unprocessable("%s after %g s" % (verdict.text, time_limit), code="NOT_REACHED")
    raise AssertionError("unreachable")


_NOT_PLACED = (api.ScheduleStatus.PENDING, api.ScheduleStatus.THROTTLED)


class RestartOptions(NamedTuple):
    """batch_size: instances at once; watch_secs: how long a new task has to run; time_limit: seconds for one
    batch."""
    batch_size: int = 1
    watch_secs: float = 30.0
    max_per_instance_failures: int = 0
    max_total_failures: int = 0
    time_limit: float = 600.0
    poll_secs: float = 3.0


def rolling_restart(scheduler: Scheduler, key: Union[str, Key], instances: Sequence[int] = (),
                    options: RestartOptions = RestartOptions(),
                    operation: Optional[Operation] = None) -> Operation:
    """Restart instances batch by batch; one succeeds when its new task ran for watch_secs under one task id.

    Instances that fail are tried again until they failed more than max_per_instance_failures times; more than
    max_total_failures such instances end the restart as a failure, as does a batch that exceeds its time
    limit.
    """
    if options.batch_size < 1:
        raise BadRequest("batch_size=%d: at least 1" % options.batch_size)
    job, run = Key.of(key), operation or Operation("restart", str(key))
    waiting = collections.deque(sorted(instances or active_instances(scheduler, job, ())))
    run.total = len(waiting)
    failures: collections.Counter[int] = collections.Counter()

    def restart(batch: Sequence[int]) -> Dict[int, str]:
        # The scheduler leaves alone what waits for a host; such a task is watched as it is.
        before = {n: "" if t["status"] in _NOT_PLACED else t["assignedTask"]["taskId"] for n, t in
                  active_instances(scheduler, job, batch).items()}
        scheduler.call("restartShards", job.thrift, set(batch))
        return before
    while waiting:
        batch = [waiting.popleft() for _ in range(min(options.batch_size, len(waiting)))]
        before, _ = next(run.polls(lambda: _noting_doubt(run, batch, restart), options.time_limit, 0.0))
        run.step("restarted", instances=batch)
        for instance, problem in _watch_batch(run, scheduler, job, before, options).items():
            if not problem:
                run.done += 1
                run.step("healthy", instances=[instance])
                continue
            failures[instance] += 1
            run.step(problem, instances=[instance])
            if failures[instance] <= options.max_per_instance_failures:
                waiting.append(instance)
                continue
            run.failed += 1
            if run.failed > options.max_total_failures:
                raise Unprocessable("%d instances failed to restart, %d may; the last: instance %d: %s" % (
                    run.failed, options.max_total_failures, instance, problem), code="TASKS_FAILED",
                    endings=_endings(scheduler, job, failures))
    return run


def _endings(scheduler: Scheduler, key: Key, instances: Iterable[int]) -> List[Json]:
    """How the youngest task of each instance stands that a restart gave up; nothing where that cannot be
    read."""
    with contextlib.suppress(AuroraError):
        latest = {task["assignedTask"]["instanceId"]: task
                  for task in query_tasks(scheduler, key, sorted(instances), reasons=True)}
        return [dict(last_words(task), **({"message": task["reason"]} if task.get("reason") else {}))
                for _, task in sorted(latest.items())]
    return []


def _noting_doubt(operation: Operation, batch: Sequence[int], write: Callable[[Sequence[int]], Any]) -> Any:
    """What a write to a batch returns; a step tells of one that may have been done without an answer."""
    try:
        return write(batch)
    except AuroraError as error:
        if "done" in error.details:
            operation.step("no answer; it may have been done", instances=list(batch), error=str(error))
        raise


def _watch_batch(operation: Operation, scheduler: Scheduler, key: Key, before: Dict[int, str],
                 options: RestartOptions) -> Dict[int, str]:
    """For every instance "" once its new task ran for watch_secs, else what went wrong."""
    outcome: Dict[int, str] = {}
    watched: Dict[int, Tuple[str, float]] = {}      # instance: (task id, when first seen running)
    for tasks, late in operation.polls(lambda: query_tasks(
            scheduler, key, sorted(before), api.ACTIVE_STATES, "task states"), options.time_limit,
            options.poll_secs):
        now = time.monotonic()
        current = {task["assignedTask"]["instanceId"]: task for task in tasks}
        for instance in set(before) - set(outcome):
            task = current.get(instance)
            task_id = task["assignedTask"]["taskId"] if task else None
            running = task is not None and task["status"] == api.ScheduleStatus.RUNNING
            if instance in watched:
                seen_id, since = watched[instance]
                if task_id != seen_id or not running:
                    outcome[instance] = "the new task did not keep running for %g s" % options.watch_secs
                elif now - since >= options.watch_secs:
                    outcome[instance] = ""
            elif running and task_id != before[instance]:
                watched[instance] = (str(task_id), now)
                if not options.watch_secs:
                    outcome[instance] = ""
            if instance not in outcome and late:
                outcome[
                    instance] = "not running and watched within the time limit of %g s" % options.time_limit
        if len(outcome) >= len(before):
            break
    return outcome


def batched_kill(scheduler: Scheduler, key: Union[str, Key], instances: Sequence[int], batch_size: int = 1,
                 time_limit: float = 254.0, poll_secs: float = 1.0, message: Optional[str] = None,
                 operation: Optional[Operation] = None) -> Operation:
    """Kill instances batch by batch, each once the one before is gone."""
    if batch_size < 1:
        raise BadRequest("batch_size=%d: at least 1" % batch_size)
    job, run = Key.of(key), operation or Operation("kill", str(key))
    waiting = sorted(instances)
    run.total = len(waiting)

    def kill(batch: Sequence[int]) -> None:
        scheduler.call("killTasks", job.thrift, set(batch), message)
    while waiting:
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        next(run.polls(lambda: _noting_doubt(run, batch, kill), time_limit, 0.0))
        run.step("killed", instances=batch)
        for left, late in run.polls(lambda: query_tasks(
                scheduler, job, batch, api.ACTIVE_STATES, "task states"), time_limit, poll_secs):
            verdict = judge_gone(left, batch)
            if verdict.reached:
                break
            if late:
                raise Unprocessable("%s after %g s" % (verdict.text, time_limit), code="NOT_REACHED")
        run.done += len(batch)
        run.changed()
    return run


def wait_until_gone(scheduler: Scheduler, key: Union[str, Key], instances: Sequence[int] = (),
                    time_limit: float = 600.0,
                    poll_secs: float = 1.0, operation: Optional[Operation] = None) -> Operation:
    """Wait until none of the instances (all if none are named) is active. Raises Unprocessable after
    time_limit seconds."""
    job = Key.of(key)
    return await_verdict(operation, lambda: query_tasks(scheduler, job, instances, api.ACTIVE_STATES,
                                                        "task states"),
                         lambda tasks: judge_gone(tasks, instances), time_limit, poll_secs)


def wait_until_running(scheduler: Scheduler, key: Union[str, Key], instances: Sequence[int] = (),
                       known: Iterable[str] = (),
                       time_limit: float = 600.0, poll_secs: float = 1.0,
                       operation: Optional[Operation] = None) -> Operation:
    """Wait until the instances (those that are active if none are named) ran; one that failed or was lost
    first is a failure. A task that finished counts. known: ids of tasks that are older than what is waited
    for, and do not count."""
    job = Key.of(key)
    wanted = list(instances) or sorted(active_instances(scheduler, job))
    return await_verdict(operation, lambda: query_tasks(scheduler, job, wanted, reasons=True),
                         lambda tasks: judge_running(tasks, wanted, known), time_limit, poll_secs)


def wait_for_update(scheduler: Scheduler, key: Union[str, Key], update_id: str, time_limit: float = 600.0,
                    poll_secs: float = 1.0, operation: Optional[Operation] = None) -> Operation:
    """Wait until the update ended; anything but ROLLED_FORWARD is a failure with its reason."""
    job = Key.of(key)
    return await_verdict(operation, lambda: look_at_update(scheduler, job, update_id), judge_update,
                         time_limit, poll_secs)


def wait_until_drained(scheduler: Scheduler, hosts: Sequence[str], time_limit: float = 600.0,
                       poll_secs: float = 1.0,
                       operation: Optional[Operation] = None) -> Operation:
    """Wait until all hosts are DRAINED."""
    return await_verdict(operation, lambda: scheduler.call("maintenanceStatus",
                                                           api.Hosts(hostNames=set(hosts))),
                         lambda response: judge_drained(response, hosts), time_limit, poll_secs)


# --- watching -----------------------------------------------------------------------------------------------


class TaskChanges:
    """What is new in the tasks and updates of a job or a role, or in one update, since the last look.

    query: makes the TaskQuery, or None for no tasks; updates: makes the JobUpdateQuery of the updates that
    count; history: the first look tells all there was, instead of the latest. standing: after each look how
    things stand, (milliseconds, name, plain event) in order of time. Called by one thread at a time; standing
    is replaced, never changed.

    An update is looked at with its events while it is active, and once more after it was changed for the last
    time: the summaries, newest change first, tell which. So the end of an update is told however soon it
    comes.
    """
    PAGE = 100

    def __init__(self, scheduler: Any, cluster: str, query: Optional[Callable[[], Any]],
                 updates: Callable[[], Any],
                 history: bool = False) -> None:
        self.scheduler = scheduler
        self.cluster = cluster
        self.query = query
        self.updates = updates
        self.history = history
        self.standing: List[Tuple[int, str, Any]] = []
        # task id: (events told, time of the last one, the last one)
        self._tasks: Dict[str, Tuple[int, int, Any]] = {}
        # update id: (status and instance events told, what
        self._updates: Dict[str, Tuple[int, int, Any, Any]] = {}
        # its summary said, its last status event); newest change seen
        self._newest = -1
        self._first = not history

    def __call__(self) -> List[Tuple[str, Any]]:
        """The events since the last call, in order of time. Raises AuroraError; nothing is taken as told
        then."""
        events, tasks = self._task_events(self.query()) if self.query else ([], {})
        more, updates, newest = self._update_events()
        events = sorted(events + more, key=lambda event: event[0])
        # told only now: all reads were answered
        self._tasks, self._updates, self._newest = tasks, updates, newest
        self._first = False
        if events and self.history:
            self.standing = self.standing + events
        elif events:
            self.standing = sorted(
                [(last["time"], "task", last) for _, _, last in tasks.values() if last] +
                [(last["time"], "update", last) for _, _, _, last in updates.values() if last],
                key=lambda each: each[0])
        return [(name, plain) for _, name, plain in events]

    def _task_events(self, query: Any) -> Tuple[List[Tuple[int, str, Any]], Dict[str, Tuple[int, int, Any]]]:
        response = self.scheduler.call("getTasksWithoutConfigs", query, projection=projection("task changes"))
        events: List[Tuple[int, str, Any]] = []
        seen: Dict[str, Tuple[int, int, Any]] = {}
        for task in response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", ()):
            assigned = task["assignedTask"]
            identity, instance = assigned["taskId"], assigned.get("instanceId", 0)
            told, last, plain = self._tasks.get(identity, (0, -1, None))
            history = task.get("taskEvents", [])
            newest = max([event["timestamp"] for event in history], default=last)
            # Two events may share a millisecond, so they are counted; a flapping partition makes a history
            # shorter.
            whole = len(history) >= told and (not told or history[told - 1]["timestamp"] == last)
            fresh = history[told:] if whole else [event for event in history if event["timestamp"] > last]
            for event in fresh[-1:] if self._first else fresh:
                plain = {"id": identity, "instance": instance, "job": "%s/%s" %
                         (self.cluster, assigned["task"]["job"]),
                         "state": api.ScheduleStatus.name_of(event["status"]), "time": event["timestamp"],
                         "message": event.get("message"), "host": assigned.get("slaveHost")}
                events.append((event["timestamp"], "task", plain))
            seen[identity] = (len(history), newest, plain)
        now = int(time.time() * 1000)
        for identity in set(self._tasks) - set(seen):
            last_one = self._tasks[identity][2] or {}
            events.append((now, "task", {"id": identity, "instance": last_one.get("instance"),
                                         "job": last_one.get("job"),
                                         "state": "DELETED", "time": now}))
        return events, seen

    def _changed_updates(self) -> Tuple[List[Any], Dict[str, Tuple[int, int, Any, Any]], int]:
        """(summaries of the updates to look at, what is known of those that stay as they are, the newest
        change)."""
        query = self.updates()
        look: List[Any] = []
        kept: Dict[str, Tuple[int, int, Any, Any]] = {}
        newest = self._newest
        for offset in itertools.count(0, self.PAGE):
            page = update_summaries(self.scheduler, query.replace(limit=self.PAGE, offset=offset))
            fresh = False
            for position, summary in enumerate(page):
                state = summary.state
                said, modified = (state.status,
                                  state.lastModifiedTimestampMs), state.lastModifiedTimestampMs or 0
                known = self._updates.get(summary.key.id)
                active = state.status in api.ACTIVE_JOB_UPDATE_STATES
                newest = max(newest, modified)
                latest_of_job = self._first and query.jobKey is not None and not offset + position
                if active or self.history or latest_of_job or (known[2] != said if known else
                                                               not self._first and modified >= self._newest):
                    look.append(summary)
                    fresh = True
                else:
                    kept[summary.key.id] = known or (0, 0, said, None)
            if len(page) < self.PAGE or not fresh:
                break
        # active ones may be older than all that was read
        if len(page) == self.PAGE and query.jobKey is None:
            active_ones = query.replace(updateStatuses=set(api.ACTIVE_JOB_UPDATE_STATES))
            read = {summary.key.id for summary in look}
            look += [each for each in update_summaries(self.scheduler, active_ones)
                     if each.key.id not in read]
        return look, kept, newest

    def _update_events(self) -> Tuple[List[Tuple[int, str, Any]], Dict[str, Tuple[int, int, Any, Any]], int]:
        look, seen, newest = self._changed_updates()
        # only the last update of a job, and what is active, stands
        if self.query is None or len(seen) > 1:
            seen = {each: known[:3] + (None,) for each, known in seen.items()}
        events: List[Tuple[int, str, Any]] = []
        for summary in look:
            query = api.JobUpdateQuery(key=summary.key)
            response = self.scheduler.call("getJobUpdateDetails", None, query)
            for details in response.result.getJobUpdateDetailsResult.detailsList or ():
                seen[summary.key.id] = self._events_of(details, events)
        return events, seen, newest

    def _events_of(self, details: Any, events: List[Tuple[int, str, Any]]) -> Tuple[int, int, Any, Any]:
        """Add an update's new events; what is known of it then."""
        key, state = details.update.summary.key, details.update.summary.state
        shared = {"update": key.id, "job": "/".join((self.cluster, key.job.role, key.job.environment,
                                                     key.job.name))}
        statuses, steps = details.updateEvents or [], details.instanceEvents or []
        told_statuses, told_steps, _, last = self._updates.get(key.id, (0, 0, None, None))
        fresh = statuses[told_statuses:]
        for event in fresh[-1:] if self._first else fresh:
            last = dict(shared, state=api.JobUpdateStatus.name_of(event.status), time=event.timestampMs,
                        user=event.user,
                        message=event.message)
            events.append((event.timestampMs, "update", last))
        for event in () if self._first else steps[told_steps:]:
            events.append((event.timestampMs, "instance", dict(
                shared, instance=event.instanceId, time=event.timestampMs,
                action=api.JobUpdateAction.name_of(event.action), message=event.message)))
        return len(statuses), len(steps), (state.status, state.lastModifiedTimestampMs), last


def changes_of(scheduler: Any, key: Key) -> TaskChanges:
    """What is new in a job's tasks and updates."""
    return TaskChanges(scheduler, key.cluster, lambda: api.TaskQuery(jobKeys={key.thrift}),
                       lambda: api.JobUpdateQuery(jobKey=key.thrift))


def watch(scheduler: Scheduler, key: Union[str, Key], seconds: float = 1.0) -> Iterator[Tuple[str, Json]]:
    """The events of a job, (task, update or instance, what happened), as a look every `seconds` finds them;
    first how things stand. Goes on until its caller stops it. Raises what the scheduler fails with."""
    changes = changes_of(scheduler, Key.of(key))
    while True:
        yield from changes()
        time.sleep(seconds)


# --- logs and files: the observer and the agent -------------------------------------------------------------
#
# What a task wrote lies in its sandbox on its host. There a Thermos observer reads it to whoever asks, over
# plain HTTP and without asking who he is: so who may ask is decided here, and what is asked is made here. The
# host is that of a task that was just read from the cluster's scheduler; the path is taken apart and put
# together again; nothing of the caller's goes along. Bytes come from /download alone, in ranges: /logdata
# follows a link that a task put in place of its log to any file of the host. An observer has ten threads, and
# an idle connection holds one for ten seconds: each request has a connection of its own, two a host at a
# time, and none is held while a caller is slow.
#
# The Mesos agent of the host is the second source, for what the observer does not have: what executors
# themselves wrote, processes that log to the console, tasks of other executors.


ObserverUnreachable = failure("OBSERVER_UNREACHABLE", 502,
                              "No connection to the observer or agent of a host.")
ObserverBadAnswer = failure("OBSERVER_BAD_ANSWER", 502,
                            "What the observer or agent of a host answered is no answer.")
ObserverTimeout = failure("OBSERVER_TIMEOUT", 504, "The observer or agent of a host did not answer in time.")
SandboxGone = failure("SANDBOX_GONE", 410, "The sandbox of an ended task was collected.")
TaskTooYoung = failure("TASK_TOO_YOUNG", 404, "The observer does not know the task yet.")
LogElsewhere = failure("LOG_ELSEWHERE", 404, "The observer does not have what the task wrote.")
RangeNotSatisfiable = failure("RANGE_NOT_SATISFIABLE", 416, "The range begins behind the end of the file.")


_NO_JSON = "what the %s of %s answered is not the JSON it should be"
_ENDED_RUNS = frozenset(["SUCCESS", "KILLED", "FAILED", "LOST"])
_YOUNG_MS = 30000           # how long after a task's last change its observer may not have seen it
_OVERLAP = 64               # bytes read again before those that are new, to see that the file is the same
_CHUNK = 1 << 18            # bytes at once


class Spot(NamedTuple):
    """A task as what it wrote is looked for: host is "" while it has none; since: its last change, in
    milliseconds."""
    cluster: str
    instance: int
    id: str
    host: str
    state: str
    ended: bool
    since: int
    young: bool
    thermos: bool


class Output(NamedTuple):
    """One log: of a run of a process of a task, or, without a process, of its executor. path: in the
    sandbox, or with `agent` in the executor's folder; final: nothing will be added."""
    spot: Spot
    process: str
    run: int
    stream: str
    path: str
    agent: bool = False
    final: bool = False


class LogPiece(NamedTuple):
    """A part of a log: its bytes, which begin at `offset`; where to go on; how large the log is."""
    output: Output
    offset: int
    next: int
    size: int
    data: bytes


class Position(NamedTuple):
    """A place in what an instance wrote. check: of the bytes before it, None where they are not known."""
    task: str
    run: int
    offset: int
    check: Optional[int] = None

    def __str__(self) -> str:
        return "%s:%d:%d:%s" % (self.task, self.run, self.offset,
                                "-" if self.check is None else "%x" % self.check)

    @classmethod
    def parse(cls, text: str) -> Optional[Position]:
        """The same from its text; None where it is none."""
        found = re.fullmatch(r"([\w\-.]{1,255}):(\d{1,9}):(\d{1,18}):([0-9a-f]{1,8}|-)", text, re.ASCII)
        if not found:
            return None
        task, run, offset, check = found.groups()
        return cls(task, int(run), int(offset), None if check == "-" else int(check, 16))


class Entry(NamedTuple):
    """Something to tell a follower: of a `log` its data, else an event of that name; where he is after it."""
    name: str
    plain: Json
    after: Optional[Position] = None
    data: bytes = b""


def find_tasks(scheduler: Any, key: Key, instances: Sequence[int] = (),
               clock: Callable[[], float] = time.time) -> List[Spot]:
    """The tasks of a job that its scheduler knows, by instance, the oldest first."""
    found = []
    for task in query_tasks(scheduler, key, instances, None, "log tasks"):
        assigned = task["assignedTask"]
        since = max((event["timestamp"] for event in task.get("taskEvents", ())), default=0)
        executor = assigned.get("task", {}).get("executorConfig", {}).get("name")
        found.append(Spot(key.cluster, assigned["instanceId"], assigned["taskId"],
                          assigned.get("slaveHost") or "",
                          api.ScheduleStatus.name_of(task["status"]), not is_active(task), since,
                          clock() * 1000 - since < _YOUNG_MS, executor == EXECUTOR_NAME))
    return found


def choose_task(spots: Sequence[Spot], key: Key, instance: int, task: Optional[str] = None) -> Spot:
    """The task of that id, or the latest that has a host. Raises NotFound."""
    placed = [spot for spot in spots if spot.host and task in (None, spot.id)]
    if placed:
        return placed[-1]
    if task is not None:
        raise NotFound("instance %d of job %s has no task %s on a host; the scheduler knows of it: %s" % (
            instance, key, task[:255], ", ".join(spot.id for spot in spots if spot.host) or "none"))
    raise NotFound("instance %d of job %s has no task on a host%s" % (
        instance, key, "; /pending says what it waits for" if spots else ""))


def clean_path(text: str) -> str:
    """A path in a sandbox, taken apart and put together again. Raises BadRequest for one that could lead
    out of it."""
    if len(text) > 4096 or text.startswith("/") or re.search(r"[\x00\\]", text) or ".." in text.split("/"):
        raise BadRequest("path=%s: expected a path in the sandbox such as a/b, without .. and \\" % text[:80])
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def _figure(value: Any) -> Any:
    """What another server says is a number; None where it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _milliseconds(seconds: Any) -> Optional[int]:
    return None if _figure(seconds) is None else int(seconds * 1000)


def _run_number(run: Any) -> int:
    number = run.get("process_run") if isinstance(run, dict) else None
    return number if isinstance(number, int) and 0 <= number < 1 << 30 else 0


class Observer:
    """Where logs and files are read: the Thermos observers and Mesos agents of all hosts.

    port: of observers, 0 for none; networks: only hosts in these; ca_file: observers are behind TLS, and
    these certificates are trusted; agent_port, agent_authorization, framework: of Mesos agents, 0 for
    none, with the Authorization they want, and the id of Aurora's framework where /state may not be read;
    places: cluster → address and port where its hosts are reached instead, for a simulated one. For any
    thread; all that changes is `slots`, which guards itself, and _roots, whose items are put and taken
    whole.
    """
    LISTING = 4 << 20       # bytes of a listing or a JSON answer
    STATE = 32 << 20        # of an agent's state

    def __init__(self, port: int = 1338, *, networks: Sequence[str] = (), ca_file: Optional[str] = None,
                 agent_port: int = 0, agent_authorization: Optional[str] = None,
                 framework: Optional[str] = None,
                 connect_timeout: float = 2.0, timeout: float = 10.0, per_host: int = 2,
                 total: int = 32) -> None:
        import ipaddress
        self.port = port
        self.networks = [ipaddress.ip_network(each) for each in networks]
        self.context: Any = None
        if ca_file:
            import ssl
            self.context = ssl.create_default_context(cafile=ca_file)
        self.agent_port = agent_port
        self.agent_authorization = agent_authorization
        self.framework = framework
        self.connect_timeout = connect_timeout
        self.timeout = timeout
        self.deadline = math.inf
        self.slots = Semaphore(total, 4 * total, "request to observer", share=per_host)
        self.places: Dict[str, Tuple[str, int]] = {}
        self._roots: Dict[str, str] = {}        # task id: its executor's folder, as the agent names it

    def within(self, seconds: float) -> Observer:
        """The same, with so much time for all that is asked of it."""
        hurried = copy.copy(self)
        hurried.deadline = time.monotonic() + seconds
        return hurried

    # one request

    def _address(self, cluster: str, host: str, port: int) -> Tuple[str, int]:
        """Where to connect to. With networks it is the very address that was looked at."""
        if cluster in self.places:
            return self.places[cluster]
        if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,255}|[0-9A-Fa-f:.]{2,45}", host):
            raise ObserverBadAnswer("the scheduler names a host that is none: %r" % host[:80])
        if not self.networks:
            return host, port
        import ipaddress
        try:
            known = [str(each[4][0]).partition("%")[0]
                     for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise ObserverUnreachable("the host %s has no address: %s" % (host, _reason(error))) from None
        for address in known:
            if any(ipaddress.ip_address(address) in network for network in self.networks):
                return address, port
        raise Forbidden("the host %s is in none of the networks that --observer-network names" % host,
                        code="HOST_NOT_ALLOWED")

    def ask(self, spot: Spot, target: str, agent: bool = False, span: str = "",
            limit: int = LISTING) -> Tuple[int, Dict[bytes, bytes], bytes]:
        """(status, headers, body) of a GET. span: the Range to ask for."""
        port = self.agent_port if agent else self.port
        what, option = ("agent", "--agent-port") if agent else ("observer", "--observer-port")
        if not port:
            raise LogElsewhere("it takes the %s of the host; %s names its port" % (what, option))
        where = "%s:%d" % ("[%s]" % spot.host if ":" in spot.host else spot.host, port)
        deadline = min(self.deadline, time.monotonic() + self.timeout)
        lines = ["GET %s HTTP/1.1" % target, "Host: " + where, "Connection: close", "User-Agent: aurora_rest"]
        lines += ["Range: bytes=" + span] if span else []
        if agent and self.agent_authorization:
            lines.append("Authorization: " + self.agent_authorization)
        context = None if agent else self.context
        self.slots.enter(max(0.0, deadline - time.monotonic()), where)
        try:
            location = _Location(context is not None, *self._address(spot.cluster, spot.host, port), "")
            wire = _Wire(location, min(self.connect_timeout, deadline - time.monotonic()), context, spot.host)
            try:
                return wire.exchange("\r\n".join(lines + ["", ""]).encode("ascii"), deadline, limit)[:3]
            finally:
                wire.close()
        except _Broken as error:
            kind = ObserverTimeout if error.late else ObserverBadAnswer if error.sent else ObserverUnreachable
            raise kind("the %s at %s: %s; whether it runs there can be seen with curl http://%s/%s" % (
                what, where, error, where, "health")) from None
        finally:
            self.slots.leave(where)

    def _json(self, spot: Spot, target: str, kind: Any = dict, agent: bool = False,
              limit: int = LISTING) -> Any:
        status, _, body = self.ask(spot, target, agent, limit=limit)
        what = "agent" if agent else "observer"
        if agent and status in (401, 403):
            spared = ", --agent-framework ID spares asking for its state" if "/state" in target else ""
            raise ObserverBadAnswer("the agent of %s refuses to answer; --agent-auth FILE gives credentials%s"
                                    % (spot.host, spared))
        if agent and status == 404:
            raise NotFound("the agent of %s has no such file" % spot.host)
        if status != 200:
            raise ObserverBadAnswer("the %s of %s answered %d" % (what, spot.host, status))
        try:
            # The agent's strings are bytes of any kind: those that are no UTF-8 come through as lone
            # surrogates.
            found = json.loads(body.decode("utf-8", "surrogateescape"), strict=False)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, kind):
            raise ObserverBadAnswer(_NO_JSON % (what, spot.host))
        return found

    # tasks and processes

    def unknown(self, spot: Spot) -> AuroraError:
        """The failure where the observer does not know the task."""
        if not spot.thermos:
            return LogElsewhere("task %s is of another executor than %s, and no observer has its output; "
                                "with --agent-port the Mesos agent gives it: source=agent" % (
                                    spot.id, EXECUTOR_NAME))
        if spot.young:
            return TaskTooYoung("the observer of %s does not know task %s yet; it looks every 5 s" % (
                spot.host, spot.id), retry_after=5)
        if spot.ended:
            return SandboxGone("the sandbox of task %s on %s was collected" % (spot.id, spot.host))
        return LogElsewhere("the observer of %s does not know task %s; its --mesos-root may be another" % (
            spot.host, spot.id))

    def processes(self, spot: Spot) -> Json:
        """The latest run of each process that was begun. This question alone never gets 500 for a task
        that is unknown."""
        runs = self._json(spot, "/j/processes?task_id=" + urllib.parse.quote(spot.id, "")).get(spot.id)
        if not runs:
            raise self.unknown(spot)
        if not isinstance(runs, dict):
            raise ObserverBadAnswer(_NO_JSON % ("observer", spot.host))
        return {name: run if isinstance(run, dict) else {} for name, run in runs.items()}

    def task(self, spot: Spot) -> Json:
        """The task with its configuration."""
        status, _, _ = answer = self.ask(spot, "/j/task/" + urllib.parse.quote(spot.id, ""))
        if status == 500:
            self.processes(spot)        # raises where the task is unknown, which is what 500 means most often
        with contextlib.suppress(ValueError):
            found = json.loads(answer[2].decode("utf-8", "replace")).get(spot.id) if status == 200 else None
            if isinstance(found, dict):
                return found
        raise ObserverBadAnswer(_NO_JSON % ("observer", spot.host))

    # files

    def read(self, spot: Spot, path: str, start: int, length: int,
             agent: bool = False) -> Tuple[bytes, int, int]:
        """(bytes, where they begin, size of the file). start: -1 for the last ones. A bounded range of a
        file that grows is exact; where a file shrinks meanwhile the answer is cut, and it is asked again."""
        read = self._from_agent if agent else self._from_observer
        for left in (2, 1, 0):
            try:
                return read(spot, path, start, length)
            except ObserverBadAnswer:
                if not left:
                    raise
        raise AssertionError

    def _from_observer(self, spot: Spot, path: str, start: int, length: int) -> Tuple[bytes, int, int]:
        span = "%d-%d" % (start, start + length - 1) if start >= 0 else "-%d" % length
        status, headers, body = self.ask(spot, "/download/%s/%s" % (
            urllib.parse.quote(spot.id, ""), urllib.parse.quote(path)), span=span, limit=length + 65536)
        if status == 206:
            said = re.fullmatch(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})",
                                headers.get(b"content-range", b""))
            first, last, size = map(int, said.groups()) if said else (-1, 0, 0)
            if len(body) == last - first + 1 and first >= 0 and start in (-1, first):
                return body, first, size
        elif status == 200 and b"content-disposition" in headers:       # ranges are not known there
            first = max(0, len(body) - length) if start < 0 else start
            return body[first:first + length], first, len(body)
        elif status == 416:     # which does not say the size
            return b"", max(0, start), self._from_observer(spot, path, 0, 1)[2] if start > 0 else 0
        elif status == 404:
            self.processes(spot)        # raises where the whole task is unknown
            raise NotFound("there is no file %s in the sandbox of task %s" % (path, spot.id))
        elif status == 403:
            raise Forbidden("%s leads out of the sandbox, or may not be read" % path,
                            code="FILE_NOT_READABLE")
        elif status == 500 and not path.isascii():
            if self.agent_port:
                return self._from_agent(spot, "sandbox/" + path, start, length)
            raise ObserverBadAnswer("the observer of %s cannot give files whose names are not ASCII; the "
                                    "Mesos agent can: --agent-port" % spot.host, code="NAME_NOT_ASCII")
        raise ObserverBadAnswer("the observer of %s answered %d, or not with the range asked for" % (
            spot.host, status))

    def _from_agent(self, spot: Spot, path: str, start: int, length: int) -> Tuple[bytes, int, int]:
        def ask(offset: int, most: int) -> Any:
            return self._json(spot, "/files/read?path=%s&offset=%d&length=%d" % (
                urllib.parse.quote(self.root(spot) + "/" + path), offset, most), agent=True)
        size = int(_figure(ask(-1, -1).get("offset")) or 0)
        first = max(0, size - length) if start < 0 else start
        parts: List[bytes] = []
        at, end = first, min(size, first + length)
        while at < end:
            text = str(ask(at, min(65536, end - at)).get("data", ""))
            parts.append(text.encode("utf-8", "surrogateescape")[:end - at])
            at += len(parts[-1])
            if not parts[-1]:
                raise ObserverBadAnswer("the file on %s shrank while it was read" % spot.host)
        return b"".join(parts), first, size

    def root(self, spot: Spot) -> str:
        """The folder of the task's executor, as the agent names it."""
        if spot.id not in self._roots:
            found = next(self._executors(spot), None)
            if found is None:
                kind = TaskTooYoung if spot.young else SandboxGone
                raise kind("the agent of %s does not know task %s%s" % (
                    spot.host, spot.id, " yet" if spot.young else " any more"))
            if len(self._roots) > 10000:
                self._roots.clear()
            self._roots[spot.id] = found
        return self._roots[spot.id]

    def _executors(self, spot: Spot) -> Iterator[str]:
        if self.framework:
            for name in ("thermos-" + spot.id, spot.id):
                root = "/frameworks/%s/executors/%s/runs/latest" % (self.framework, name)
                with contextlib.suppress(NotFound):
                    self._json(spot, "/files/browse?path=" + urllib.parse.quote(root), list, True)
                    yield root
            return
        state = self._json(spot, "/state", dict, True, self.STATE)
        try:
            for framework in state.get("frameworks", []) + state.get("completed_frameworks", []):
                for executor in framework.get("executors", []) + framework.get("completed_executors", []):
                    if executor["id"].endswith(spot.id):
                        yield str(executor["directory"])
        except (AttributeError, KeyError, TypeError):
            raise ObserverBadAnswer(_NO_JSON % ("agent", spot.host)) from None

    def listing(self, spot: Spot, path: str, agent: bool = False) -> Tuple[List[Json], int]:
        """(what a directory holds, how many lines of it could not be read)."""
        if agent:
            return self._agent_listing(spot, path), 0
        parts = [urllib.parse.quote(each) for each in (spot.id, path) if each]
        status, _, body = self.ask(spot, "/browse/" + "/".join(parts))
        if status == 404:
            self.processes(spot)
            raise NotFound("there is no directory %s in the sandbox of task %s" % (path, spot.id))
        if status == 500 and path:
            self._from_observer(spot, path, 0, 1)
            raise BadRequest("%s is a file; files/content?path= gives it" % path)
        before, pre, rest = body.decode("utf-8", "replace").partition("<pre>")
        if status != 200 or not pre:
            raise ObserverBadAnswer("what the observer of %s answered is no listing" % spot.host)
        lines = [line for line in rest.rpartition("</pre>")[0].split("\n") if line.strip()]
        found = [_listed_file(line, spot.id, path) for line in lines]
        entries = [each for each in found if each is not None and each["name"] != ".."]
        return entries, sum(each is None for each in found)

    def _agent_listing(self, spot: Spot, path: str) -> List[Json]:
        folder = "%s/%s" % (self.root(spot), path) if path else self.root(spot)
        found = []
        for each in self._json(spot, "/files/browse?path=" + urllib.parse.quote(folder), list, True):
            with contextlib.suppress(AttributeError, TypeError):
                mode = str(each.get("mode"))
                found.append({"name": each.get("path").rpartition("/")[2],
                              "type": "directory" if mode[:1] == "d" else "file", "mode": mode,
                              "size": _figure(each.get("size")), "owner": each.get("uid"),
                              "group": each.get("gid"), "modified": _milliseconds(each.get("mtime"))})
        return found


_LISTED = re.compile(
    r"([ds-][rwx-]{9}) +\d+ +(\S+) +(\S+) +(\d+) (\w{3} [ \d]\d [ \d:]{5}) <a href='/(browse|file)/")


def _listed_file(line: str, task: str, path: str) -> Optional[Json]:
    """An entry from its line of a listing; None where the line cannot be read. Names stand there as they
    are, with quotes and tags in them: the line has to be, to the letter, the one that a name makes which
    is as long as its rest leaves room for."""
    found = _LISTED.match(line)
    if not found:
        return None
    mode, owner, group, size, modified, kind = found.groups()
    for folder in ("%s/%s/" % (task, path or "."), task + "/"):
        before, after = "%s%%s'>%%s</a>" % folder.replace("%", "%%"), ""
        if kind == "file":
            after = " <a href='/download/%s%%s'><font size=1>dl</font></a>" % folder.replace("%", "%%")
        form, names = before + after, 3 if after else 2
        length, extra = divmod(len(line) - found.end() - len(form % (("",) * names)), names)
        name = line[found.end() + len(folder):][:max(0, length)]
        if name and not extra and line[found.end():] == form % ((name,) * names) and "/" not in name:
            return {"name": name, "type": {"d": "directory", "s": "socket"}.get(mode[0], "file"),
                    "mode": mode,
                    "size": int(size), "owner": owner, "group": group, "modified_text": modified}
    return None


def _run_of(name: str, run: Any) -> Json:
    """A run of a process as callers see it. What exit status a failed one had the observer does not tell."""
    status = _figure(run.get("return_code"))
    return {"name": name, "state": str(run.get("state") or "WAITING"),
            "run": _run_number(run) if run else None,
            "started": _milliseconds(run.get("start_time")), "stopped": _milliseconds(run.get("stop_time")),
            "return_code": 0 if status is None and run.get("state") == "SUCCESS" else status,
            "used": run.get("used")}


def _configured(task: Json) -> List[Json]:
    """The processes of a task as it is configured."""
    config: Any = task.get("task")
    found = config.get("processes") if isinstance(config, dict) else None
    found = found if isinstance(found, list) else []
    return [each for each in found if isinstance(each, dict) and "name" in each]


def list_processes(observer: Observer, spot: Spot, runs: bool = False) -> Json:
    """The task and its processes, in the order of its configuration. runs: with all runs of each, at a
    request a run."""
    task, latest = observer.task(spot), observer.processes(spot)
    configured = {each["name"]: each for each in _configured(task)}
    processes = []
    for name in dict.fromkeys(list(configured) + sorted(latest)):
        told, run = configured.get(name, {}), latest.get(name, {})
        made = dict(_run_of(name, run), cmdline=told.get("cmdline"), logger=told.get("logger"))
        if runs and run:
            base = "/j/process/%s/%s/" % (urllib.parse.quote(spot.id, ""), urllib.parse.quote(name, ""))
            earlier = [observer._json(spot, base + str(number))
                       for number in range(min(100, _run_number(run)))]
            made["runs"] = [_run_of(name, each) for each in earlier + [run]]
        processes.append(made)
    return {"task": {"id": spot.id, "instance": spot.instance, "host": spot.host, "state": spot.state,
                     "observed_state": task.get("state"), "user": task.get("user"),
                     "ports": task.get("ports") or {},
                     "launched": _milliseconds(task.get("launch_timestamp")),
                     "used": task.get("resource_consumption")},
            "processes": processes}


def find_output(observer: Observer, spot: Spot, process: Optional[str] = None, stream: str = "stdout",
                run: int = -1,
                agent: bool = False) -> Output:
    """The log of a process; without a name, of the only one. run: -1 for the latest. agent: from the
    Mesos agent, and without a name what the executor itself wrote."""
    if (agent or not spot.thermos and observer.agent_port) and process is None:
        return Output(spot, "", 0, stream, stream, True)
    known: Json = {}
    if agent:
        found = [str(each["name"])
                 for each in observer.listing(spot, "sandbox/.logs/" + str(process), True)[0]]
        latest = max((int(each) for each in found if each.isdigit()), default=-1)
    else:
        known = observer.processes(spot)
        if process is None and len(known) != 1:
            raise BadRequest("the task has the processes %s; say which: logs/NAME" % ", ".join(sorted(known)))
        process = next(iter(known)) if process is None else process
        if process not in known:
            raise NotFound("task %s has begun no process %s; it has begun %s" %
                           (spot.id, process, ", ".join(sorted(known))))
        latest = _run_number(known[process])
    number = latest + 1 + run if run < 0 else run
    if not 0 <= number <= latest:
        raise NotFound("the process %s has the runs 0 to %d" % (process, latest))
    state = known.get(str(process), {}).get("state")
    return _run_output(Output(spot, str(process), 0, stream, "", agent), number,
                       number < latest or state in _ENDED_RUNS)


def _run_output(output: Output, run: int, final: bool = False) -> Output:
    """The log of another run; what an executor wrote has none."""
    path = output.stream
    if output.process:
        path = "%s.logs/%s/%d/%s" % ("sandbox/" if output.agent else "", output.process, run, output.stream)
    return output._replace(run=run, path=path, final=final)


def open_output(observer: Observer, output: Output) -> Tuple[Output, int, int]:
    """(the log, its size, the check of its end); that of the console where the process logs there. Raises
    LogElsewhere."""
    try:
        data, _, size = observer.read(output.spot, output.path, -1, _OVERLAP, output.agent)
        return output, size, zlib.crc32(data)
    except NotFound:
        if output.agent:
            raise
    configured = _configured(observer.task(output.spot))
    logger = next((each.get("logger") for each in configured if each["name"] == output.process), None)
    destination = logger.get("destination") if isinstance(logger, dict) else None
    if destination != "none" and observer.agent_port:
        return open_output(observer, Output(output.spot, "", 0, output.stream, output.stream, True))
    raise LogElsewhere({
        "none": "the process %s logs nothing: the destination of its logger is none",
        "console": "the process %s logs to the console, which the Mesos agent has: --agent-port"}.get(
            str(destination),
            "the process %s has no such log; where executors log to the console the Mesos agent "
            "has it: --agent-port") % output.process)


def whole_characters(data: bytes) -> int:
    """How many of the bytes there are without a character of UTF-8 that is cut at the end."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return len(data) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(data)
        if byte < 0x80:
            break
    return len(data)


def _matching(lines: Iterable[bytes], grep: Optional[bytes]) -> List[bytes]:
    return [line for line in lines if grep is None or grep in line]


def read_tail(observer: Observer, output: Output, lines: int, grep: Optional[bytes] = None,
              until: Optional[int] = None) -> LogPiece:
    """The last lines, or of those that hold `grep` the last; within the last MiB, or eight. until: of
    what is before that."""
    spot, path, agent = output.spot, output.path, output.agent
    if until is None:
        data, start, size = observer.read(spot, path, -1, 65536, agent)
    else:
        start = max(0, until - 65536)
        data, start, size = observer.read(spot, path, start, max(1, until - start), agent)
        data = data[:max(0, until - start)]
    end = start + len(data)
    most = (8 if grep else 1) << 20
    while start and len(data) < most and len(_matching(data.split(b"\n")[1:], grep)) <= lines:
        more, start, _ = observer.read(spot, path, max(0, start - 262144), min(262144, start), agent)
        data = more + data
    parts = data.splitlines(True) if b"\r" not in data else re.findall(rb"[^\n]*\n|[^\n]+", data)
    chosen = _matching(parts[1:] if start and len(parts) > 1 else parts, grep)
    chosen = chosen[-lines:] if lines else []
    text = b"".join(chosen)
    return LogPiece(output, start if grep else end - len(text), end, size, text)


def read_piece(observer: Observer, output: Output, tail: int = 100, offset: Optional[int] = None,
               length: int = _CHUNK, grep: Optional[str] = None) -> LogPiece:
    """A part of a log: its last lines, or from an offset, which counts from the end where it is negative.
    It ends with a whole character, where more is to come."""
    wanted = grep.encode() if grep else None
    if offset is None:
        piece = read_tail(observer, output, tail, wanted)
    else:
        start = offset
        if start < 0:
            start = max(0, open_output(observer, output)[1] + offset)
        data, start, size = observer.read(output.spot, output.path, start, length, output.agent)
        piece = LogPiece(output, start, start + len(data), size, data)
    if not output.final or piece.next < piece.size:
        whole = whole_characters(piece.data)
        if whole:
            piece = piece._replace(data=piece.data[:whole], next=piece.next - len(piece.data) + whole)
    if wanted and offset is not None:
        piece = piece._replace(data=b"".join(_matching(piece.data.splitlines(True), wanted)))
    return piece


def _log_entry(output: Output, offset: int, data: bytes, after: Position) -> Entry:
    plain = {"instance": output.spot.instance, "task": output.spot.id, "run": output.run, "offset": offset,
             "length": len(data), "text": data.decode("utf-8", "replace")}
    return Entry("log", plain, after, data)


class Cursor:
    """Where somebody is in what a process of an instance writes, and how he goes on. For one thread at a
    time.

    One request a step: a range that begins some bytes before the place. Where those are what they were, what
    follows is new. Where they are not, or the file is shorter, the log was rotated: the place is looked for
    in stdout.1, stdout.2 and so on, which are read to their ends, down to the new file. When nothing comes it
    is asked whether the process has a later run, or the instance another task; what they write follows. It is
    over when the task has ended, everything was told and nothing can take its place. Lines are told when they
    are whole, or did not grow between two steps.

    find: the instance's tasks, from its scheduler; output: None, to find it first; fixed: of this task
    alone.
    """
    QUIET = 5           # steps without news before it is asked what became of the run; of the task, ten times

    def __init__(self, observer: Observer, find: Callable[[], List[Spot]], key: Key, instance: int,
                 process: Optional[str], stream: str, output: Optional[Output] = None, offset: int = 0,
                 check: Optional[int] = None, fixed: bool = False) -> None:
        self.observer = observer
        self.find = find
        self.key = key
        self.instance = instance
        self.process = process
        self.stream = stream
        self.output = output
        self.offset = offset
        self.check = check
        self.fixed = fixed
        self.over = ""              # why nothing more will come
        self._behind = 0            # the number of the rotated file that is being read
        self._seen = -1             # size of the file when an unfinished line was seen
        self._quiet = 0
        self._failed = 0            # steps in a row without an answer

    @property
    def position(self) -> Position:
        spot = self.output.spot if self.output else None
        return Position(spot.id if spot else "", self.output.run if self.output else 0, self.offset,
                        self.check)

    @property
    def file(self) -> Optional[Output]:
        """The log as it is called now that it may be rotated."""
        name = ".%d" % self._behind if self._behind else ""
        return self.output._replace(path=self.output.path + name) if self.output else None

    def step(self, until: Optional[int] = None) -> List[Entry]:
        """What is new. until: not beyond this offset. Raises AuroraError where nobody answers for now."""
        if self.over:
            return []
        try:
            entries = self._news(until) if self.output is not None else self._open()
        except (ObserverUnreachable, ObserverTimeout, ObserverBadAnswer):
            self._failed += 1
            entries = self._leave() if self._failed % self.QUIET == 0 and self.output is not None else []
            if not entries:
                raise
        except AuroraError as error:
            if error.http >= 500 or isinstance(error, TaskTooYoung):
                raise
            self.over = "; ".join(error.messages)
            return []
        self._failed = 0
        return entries

    def _open(self) -> List[Entry]:
        spot = choose_task(self.find(), self.key, self.instance)
        self.output, self.offset, self.check = open_output(self.observer, find_output(
            self.observer, spot, self.process, self.stream))
        return []

    def _news(self, until: Optional[int] = None) -> List[Entry]:
        entries: List[Entry] = []
        with contextlib.suppress(NotFound, SandboxGone, TaskTooYoung, LogElsewhere):
            # What these mean here: nothing was written yet, or nothing more will be.
            entries = self._move_on() if self._quiet % self.QUIET == 1 and until is None else self._read(
                until)
        self._quiet = 0 if entries else self._quiet + 1
        return entries

    def _read(self, until: Optional[int]) -> List[Entry]:
        output = self.output
        assert output is not None
        overlap = min(_OVERLAP, self.offset)
        for number in range(self._behind, 100):
            try:
                data, _, size = self._part(number, self.offset - overlap, overlap + _CHUNK)
            except NotFound:
                if not number:
                    raise
                break
            if size >= self.offset and (self.check is None or zlib.crc32(data[:overlap]) == self.check):
                self._behind = number
                entries = self._tell(output, data, overlap, size, until)
                return entries if entries or not number else self._next_file(output)
        self.offset, self.check, self._behind = 0, None, max(0, number - 1)       # the oldest that is there
        return [self._event("gap", reason="what was written in between is not there any more")]

    def _part(self, number: int, start: int, length: int) -> Tuple[bytes, int, int]:
        assert self.output is not None
        path = self.output.path + (".%d" % number if number else "")
        return self.observer.read(self.output.spot, path, start, length, self.output.agent)

    def _next_file(self, output: Output) -> List[Entry]:
        """From the end of a rotated file to the next. Only once there is something in it: at the
        beginning of an empty one nothing would tell it from the one that comes after."""
        data, _, size = self._part(self._behind - 1, 0, _CHUNK)
        rotated, here = self._event("rotated"), (self.offset, self.check, self._behind)
        self.offset, self.check, self._behind = 0, None, self._behind - 1
        entries = self._tell(output, data, 0, size, None)
        if not entries:
            self.offset, self.check, self._behind = here
            return []
        return [rotated] + entries

    def _tell(self, output: Output, data: bytes, overlap: int, size: int,
              until: Optional[int]) -> List[Entry]:
        new = data[overlap:] if until is None else data[overlap:][:max(0, until - self.offset)]
        last = output.final or self._behind > 0
        end = new.rfind(b"\n") + 1
        if until is not None and self.offset + len(new) == until:
            end = len(new)
        elif not end and (last or len(new) >= _CHUNK or self._seen == size):
            end = len(new) if last and len(new) < _CHUNK else whole_characters(new) or len(new)
        self._seen = size
        if end:
            began = self.offset
            self.check = zlib.crc32(data[:overlap + end][-_OVERLAP:])
            self.offset += end
            return [_log_entry(output, began, new[:end], self.position)]
        return []

    def _event(self, name: str, **fields: Any) -> Entry:
        position = self.position
        return Entry(name, dict(instance=self.instance, task=position.task, run=position.run, **fields),
                     position)

    def _move_on(self) -> List[Entry]:
        """When nothing comes: a later run, a later task, or the end."""
        output = self.output
        assert output is not None
        known: Json = {}
        gone = output.agent
        if not gone:
            try:
                known = self.observer.processes(output.spot)
            except TaskTooYoung:
                return []
            except (SandboxGone, LogElsewhere):
                gone = True
        latest = _run_number(known.get(output.process))
        ended = latest > output.run or known.get(output.process, {}).get("state") in _ENDED_RUNS
        if not (ended or gone or self._quiet % (10 * self.QUIET) == 9 * self.QUIET + 1):
            return []
        if ended and not output.final:
            self.output = output = output._replace(final=True)
            entries = self._read(None)      # an unfinished line
            if entries:
                return entries
        if latest > output.run:
            return self._go_to(_run_output(output, output.run + 1, latest > output.run + 1), "run")
        return self._other_task(gone)

    def _other_task(self, gone: bool) -> List[Entry]:
        output = self.output
        assert output is not None
        spots = self.find()
        mine = next((spot for spot in spots if spot.id == output.spot.id), None)
        later = [] if self.fixed else [spot for spot in spots if spot.id != output.spot.id and (
            spot.since >= output.spot.since if mine is None else spots.index(spot) > spots.index(mine))]
        if mine is not None and not mine.ended and not later:
            return []
        if not output.final:                # first what is left of this one
            self.output = output._replace(final=True)
            entries = [] if gone and not output.agent else self._read(None)
            if entries:
                return entries
        if later and not later[0].host:
            return []                       # it waits for a host
        if later:
            return self._go_to(_run_output(output._replace(spot=later[0]), 0), "task")
        self.over = "task %s %s" % (output.spot.id, "is gone" if mine is None else "ended as " + mine.state)
        return []

    def _go_to(self, output: Output, name: str) -> List[Entry]:
        self.output, self.offset, self.check = output, 0, None
        self._behind = self._quiet = 0
        spot = output.spot
        return [self._event(name, **({"host": spot.host, "state": spot.state} if name == "task" else {}))]

    def _leave(self) -> List[Entry]:
        """Where the host does not answer: whether the instance is on another one by now."""
        output = self.output
        assert output is not None
        entries = self._other_task(True)
        if entries and self.output is not None and self.output.spot.id != output.spot.id:
            reason = "%s did not answer before the task ended" % output.spot.host
            return [Entry("gap",
                          {"instance": self.instance, "task": output.spot.id, "reason": reason})] + entries
        self.over = ""                      # it may come back, with what is left
        return []


class Feed(Poll):
    """One cursor for all that follow the same: one request a second, however many they are. The latest
    entries are kept, ROOM bytes of them. Its turns run one after another in workers; _lock guards what is
    kept, and `at`: where that ends."""
    ROOM = 1 << 18

    def __init__(self, runner: Any, cursor: Cursor, interval: float) -> None:
        super().__init__(runner, cursor.step, interval, linger=5.0)
        self.cursor = cursor
        self.number = 0                 # of entries so far
        self.over = ""
        self.at: Tuple[Optional[Output], Position] = (cursor.output, cursor.position)
        self._entries: Deque[Entry] = collections.deque()
        self._size = 0
        self._failing = False

    def note(self, answer: Any) -> None:
        if isinstance(answer, Failure):
            failing, self._failing = self._failing, True
            answer = [] if failing else [Entry("unreachable", {
                "instance": self.cursor.instance, "retry": int(self.interval * 1000), "code": answer.code,
                "errors": answer.messages})]
        else:
            self._failing = False
        with self._lock:
            for each in answer:
                self.number += 1
                self._entries.append(each)
                self._size += len(each.data) + 1024
            while self._size > self.ROOM and len(self._entries) > 1:
                self._size -= len(self._entries.popleft().data) + 1024
            self.over = self.cursor.over
            self.at = (self.cursor.file, self.cursor.position)

    def snapshot(self) -> Tuple[int, Optional[Output], Position]:
        """How many entries there were, and where that is."""
        with self._lock:
            return (self.number,) + self.at

    def after(self, number: int) -> Optional[List[Entry]]:
        """The entries after so many, some of them; None where they are not kept any more."""
        with self._lock:
            skipped = number - (self.number - len(self._entries))
            return None if skipped < 0 else list(itertools.islice(self._entries, skipped, skipped + 16))


class Follower:
    """One caller's place in a feed. He begins with the last lines before the feed's place, or at a place
    of his own; who is behind what the feed keeps goes on with a cursor of his own until he has caught up.
    `take` is called by one thread at a time and does not block; `catch_up` is what takes its time, in a
    worker, and while it runs `take` gives nothing."""

    def __init__(self, feed: Feed, tail: int, grep: Optional[bytes], changed: Callable[[], None],
                 position: Optional[Position] = None, once: bool = False) -> None:
        self.feed = feed
        self.tail = tail
        self.grep = grep
        self.position = position            # where he is
        self.number = feed.number           # the entries of the feed that he knows, while he is `live`
        self.live = False
        self.once = once                    # the last lines are all he wants
        self.ended = False
        self._changed = changed
        self._cursor: Optional[Cursor] = None
        self._pending: List[Entry] = []
        self._busy = False
        self.listening = feed.listen(changed)

    def leave(self) -> None:
        self.feed.forget(self._changed)

    def take(self) -> List[Entry]:
        """The next entries; none when there are none, or they are being read."""
        if self._busy or self.ended:
            return []
        entries, self._pending = self._pending, []
        self.ended = self.once and self.live
        if entries or self.ended:
            return entries
        if self.live or self.feed.at[0] is None:
            found = self.feed.after(self.number)
            if found:
                self.number += len(found)
                self.position = found[-1].after or self.position
                self.ended = self.once
                return found
            if found is None:
                self.live, self._cursor = False, None
            elif self.feed.over and self.number == self.feed.number:
                self.ended = True
                return [Entry("end", {"instance": self.feed.cursor.instance, "reason": self.feed.over})]
            else:
                return []
        self._busy = True
        self.feed.runner.run_in_worker(self.catch_up)
        return []

    def catch_up(self) -> None:
        entries: List[Entry] = []
        try:
            entries = self._catch_up()
        except AuroraError as error:
            if error.http < 500:            # else the feed's next turn, or the one after, brings it
                entries = [Entry("gap", {"instance": self.feed.cursor.instance, "reason": str(error)})]
                self.number, self.live = self.feed.number, True
        self._pending = entries
        self._busy = False
        if entries or self.live:
            self._changed()

    def _catch_up(self) -> List[Entry]:
        number, output, place = self.feed.snapshot()
        if output is None:
            return []
        if self.position is None:
            piece = read_tail(self.feed.cursor.observer, output, self.tail, self.grep, place.offset)
            self.number, self.live, self.position = number, True, place
            return [_log_entry(output, piece.offset, piece.data, place)] if piece.data else []
        cursor = self._cursor = self._cursor or self._own(output, self.position)
        entries: List[Entry] = []
        if not self._met(cursor, place):
            before = cursor.position
            ahead = before[:2] == place[:2] and before.offset < place.offset
            entries = cursor.step(place.offset if ahead else None)
        if self._met(cursor, place):
            self.number, self.live, self._cursor = number, True, None
        self.position = cursor.position
        return entries

    @staticmethod
    def _met(cursor: Cursor, place: Position) -> bool:
        here = cursor.position
        same = None in (here.check, place.check) or here.check == place.check
        return bool(cursor.over) or here[:3] == place[:3] and same

    def _own(self, output: Output, position: Position) -> Cursor:
        """A cursor at a place. Raises NotFound where nobody knows its task."""
        feed = self.feed.cursor
        spot = choose_task(feed.find(), feed.key, feed.instance, position.task)
        mine = _run_output(output._replace(spot=spot), position.run)
        return Cursor(feed.observer, feed.find, feed.key, feed.instance, feed.process, feed.stream, mine,
                      position.offset,
                      position.check, feed.fixed)


def _found(scheduler: Any, key: Union[str, Key], instance: int,
           task: Optional[str] = None) -> Tuple[Key, Spot]:
    named = Key(*key.split("/")) if isinstance(key, str) else key
    return named, choose_task(find_tasks(scheduler, named, [instance]), named, instance, task)


def read_log(scheduler: Any, key: Union[str, Key], instance: int, process: Optional[str] = None,
             stream: str = "stdout",
             *, observer: Optional[Observer] = None, task: Optional[str] = None, run: int = -1,
             source: str = "observer", **part: Any) -> LogPiece:
    """A part of a log, for scripts; without more the last 100 lines. part: tail, offset, length, grep."""
    observer = observer or Observer()
    output = find_output(observer, _found(scheduler, key, instance, task)[1], process, stream, run,
                         source == "agent")
    return read_piece(observer, open_output(observer, output)[0], **part)


def follow_log(scheduler: Any, key: Union[str, Key], instance: int, process: Optional[str] = None,
               stream: str = "stdout",
               *, observer: Optional[Observer] = None, tail: int = 100,
               interval: float = 1.0) -> Iterator[Entry]:
    """What an instance's process writes, as it comes, over rotations, runs and tasks, until nothing more
    can come."""
    observer = observer or Observer()
    named, spot = _found(scheduler, key, instance)
    output, size, check = open_output(observer, find_output(observer, spot, process, stream))
    cursor = Cursor(observer, lambda: find_tasks(scheduler, named, [instance]), named, instance, process,
                    stream, output,
                    size, check)
    piece = read_tail(observer, output, tail, None, size)
    yield _log_entry(output, piece.offset, piece.data, cursor.position)
    while not cursor.over:
        try:
            entries = cursor.step()
        except AuroraError as error:
            entries = []
            yield Entry("unreachable", {"code": error.code, "errors": error.messages})
        yield from entries
        if not entries and not cursor.over:
            time.sleep(interval)


def list_files(scheduler: Any, key: Union[str, Key], instance: int, path: str = "", *,
               observer: Optional[Observer] = None,
               task: Optional[str] = None) -> List[Json]:
    """What a directory of the sandbox holds, for scripts."""
    return (observer or Observer()).listing(_found(scheduler, key, instance, task)[1], clean_path(path))[0]


def open_file(scheduler: Any, key: Union[str, Key], instance: int, path: str, *,
              observer: Optional[Observer] = None,
              task: Optional[str] = None) -> Iterator[bytes]:
    """The bytes of a file of the sandbox, in pieces, for scripts."""
    observer = observer or Observer()
    spot, path = _found(scheduler, key, instance, task)[1], clean_path(path)
    at = 0
    while True:
        data, _, size = observer.read(spot, path, at, _CHUNK)
        at += len(data)
        if data:
            yield data
        if not data or at >= size:
            return


def words_of_failure(observer: Observer, spots: Sequence[Spot], key: Key,
               patient: bool = False) -> Optional[Json]:
    """The end of what the process that failed wrote to stderr, of the task that failed last: at most 20
    lines, 4 KiB and two seconds. patient: wait that long for an observer that does not know the task yet.
    None where no task failed."""
    failed = [spot for spot in spots if spot.state == "FAILED" and spot.host]
    if not failed:
        return None
    spot = max(failed, key=lambda each: each.since)
    base = "/alpha/job/%s/instances/%d" % (key, spot.instance)
    found: Json = {"instance": spot.instance, "task": spot.id, "host": spot.host,
                             "failed": spot.since,
                             "processes": "%s/processes?task=%s" % (base, spot.id)}
    hurried = observer.within(2.0)
    while True:
        try:
            runs = hurried.processes(spot)
            process = max(runs, key=lambda name: (runs[name].get("state") == "FAILED",
                                                  _figure(runs[name].get("start_time")) or 0))
            found.update(process=process, run=_run_number(runs[process]),
                         logs="%s/logs/%s?stream=stderr&task=%s" % (
                base, urllib.parse.quote(process, ""), spot.id))
            output = find_output(hurried, spot, process, "stderr")
            data = hurried.read(spot, output.path, -1, 4096)[0]
            found["stderr"] = data.decode("utf-8", "replace").splitlines()[-20:]
        except TaskTooYoung as error:
            if patient and time.monotonic() + 0.3 < hurried.deadline:
                time.sleep(0.3)
                continue
            found["errors"] = error.messages
        except AuroraError as error:
            found["errors"] = error.messages
        return found


# ============================================================================================================
# 6. Service
#
# The route table with its handlers, who may, watching, answers remembered, idempotency, metrics, the OpenAPI
# description: an App of room 1. Uses rooms 1 to 5.
# ============================================================================================================


LIMITS.update({
    "tasks": Limit(10000, "tasks", "tasks of a cluster in one answer, and the default for limit="),
    "answer": Limit(256 << 20, "bytes", "size of a scheduler's answer; over it 502", least=1024),
    "watchers": Limit(2000, "streams", "event streams and blocking reads at once; further ones get 503"),
    "waits": Limit(4000, "callers",
                   "callers that wait for an outcome, a quarter of them for one caller; further ones get "
                   "503 before anything is done"),
    "wait": Limit(3600, "seconds", "longest wait="),
    "operations": Limit(100, "operations", "operations running at once; further ones get 503"),
    "kept_operations": Limit(1000, "operations", "ended operations that are remembered"),
    "remembered": Limit(32 << 20, "bytes",
                        "replies of schedulers, remembered with the answers that were made from them; "
                        "the least used are forgotten first"),
    "idempotency_keys": Limit(10000, "keys", "remembered Idempotency-Keys; the oldest are forgotten first"),
    "idempotency_bytes": Limit(32 << 20, "bytes",
                               "answers remembered for them; the oldest are forgotten first"),
})


@lru_cache(maxsize=256)
def glob(pattern: str) -> Callable[[str], bool]:
    """Whether a text matches a shell pattern, in time linear in the text whatever the pattern.

    A pattern with several stars becomes a set of positions, the bits of one number, that each character moves
    on (Shift-And); a regular expression would try all ways to share a text among the stars, on Python 3.8 in
    exponential time. With at most one star there is nothing to share. Raises BadRequest for a pattern longer
    than any name.
    """
    if len(pattern) > 255:
        raise BadRequest("a pattern has at most 255 characters")
    try:
        return _matcher(pattern)
    except re.error as error:
        raise BadRequest("%r is not a pattern: %s" % (pattern[:80], error)) from None


def _matcher(pattern: str) -> Callable[[str], bool]:
    pattern = re.sub(r"\*+", "*", pattern)
    if pattern == "*":
        return lambda text: True
    if pattern.count("*") < 2:
        match = re.compile(fnmatch.translate(pattern)).match
        return lambda text: match(text) is not None
    tokens = re.findall(r"\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    stays = 0           # bit i: a star stands before token i, so that any character may pass there
    wanted: List[Callable[[str], Any]] = []
    for token in tokens:
        if token == "*":
            stays |= 1 << len(wanted)
        else:
            wanted.append(re.compile(fnmatch.translate(token)).match)
    moves: Dict[str, int] = {}

    def matches(text: str) -> bool:
        here = 1
        for character in text:
            if character not in moves:
                if len(moves) > 1024:
                    moves.clear()
                moves[character] = sum(1 << i for i, match in enumerate(wanted) if match(character))
            here = (here & moves[character]) << 1 | here & stays
            if not here:
                return False
        return bool(here >> len(wanted))
    return matches


# --- metrics ------------------------------------------------------------------------------------------------

class Histogram:
    """Counts of durations by upper bound, in seconds."""
    BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.BOUNDS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """Counters, histograms and gauges in the Prometheus text format. `gauges` are functions asked when it is
    written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()       # guards _families and _answered
        self._answered: Dict[Tuple[str, str, int], Any] = {}
        self._families: Dict[str, Tuple[str, str, Tuple[str, ...], Dict[Tuple[str, ...], Any]]] = {}
        self.gauges: List[Tuple[str, str, str, Callable[[], Iterable[Tuple[Dict[str, str], float]]]]] = []

    def declare(self, name: str, kind: str, text: str, *labels: str) -> None:
        # A counter without labels is there from the start, so that its first event is an increase.
        self._families[name] = (kind, text, labels, {} if labels or kind != "counter" else {(): 0})

    def gauge(self, name: str, text: str, read: Callable[[], Any]) -> None:
        """A figure, or some with labels, read when it is asked for; a counter where its name ends with
        _total."""
        def samples() -> Iterable[Tuple[Dict[str, str], float]]:
            found = read()
            return [({}, found)] if isinstance(found, (int, float)) else found
        self.gauges.append((name, "counter" if name.endswith("_total") else "gauge", text, samples))

    def count(self, name: str, *values: str, by: int = 1) -> None:
        samples = self._families[name][3]
        with self._lock:
            samples[values] = samples.get(values, 0) + by

    def observe(self, name: str, seconds: float, *values: str) -> None:
        samples = self._families[name][3]
        with self._lock:
            histogram = samples.get(values)
            if histogram is None:
                histogram = samples[values] = Histogram()
            histogram.observe(seconds)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request: the two families that every request touches, with one look-up and one
        lock."""
        with self._lock:
            entry = self._answered.get((route, method, status))
            if entry is None:
                counts = self._families["aurora_rest_http_requests_total"][3]
                durations = self._families["aurora_rest_http_request_duration_seconds"][3]
                entry = self._answered[route, method, status] = (
                    counts, (route, method, str(status)), durations.setdefault((route,), Histogram()))
            counts, values, histogram = entry
            counts[values] = counts.get(values, 0) + 1
            histogram.observe(seconds)

    def text(self) -> str:
        """All of them, in the text format 0.0.4."""
        lines = []
        with self._lock:
            families = [(name, kind, text, labels, dict(samples)) for name, (kind, text, labels, samples)
                        in self._families.items()]
        for name, kind, text, labels, samples in families:
            lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
            for values, sample in sorted(samples.items()):
                pairs = list(zip(labels, values))
                if kind != "histogram":
                    lines.append("%s%s %d" % (name, _labels(pairs), sample))
                    continue
                total = 0
                for bound, number in zip(list(map(str, Histogram.BOUNDS)) + ["+Inf"], sample.counts):
                    total += number
                    lines.append("%s_bucket%s %d" % (name, _labels(pairs + [("le", bound)]), total))
                lines.append("%s_sum%s %.6f" % (name, _labels(pairs), sample.sum))
                lines.append("%s_count%s %d" % (name, _labels(pairs), total))
        for name, kind, text, read in self.gauges:
            lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
            for shown, value in read():
                lines.append("%s%s %s" % (name, _labels(sorted(shown.items())), repr(float(value))))
        return "\n".join(lines) + "\n"


def _labels(pairs: Sequence[Tuple[str, str]]) -> str:
    if not pairs:
        return ""
    quoted = [(name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name,
              value in pairs]
    return "{" + ",".join('%s="%s"' % pair for pair in quoted) + "}"


def process_figures() -> Dict[str, float]:
    """Resident bytes, open descriptors, processor seconds, threads of this process."""
    times = os.times()
    figures = {"process_cpu_seconds_total": times.user + times.system,
               "aurora_rest_threads": float(threading.active_count())}
    with contextlib.suppress(OSError, ValueError, IndexError):
        figures["process_open_fds"] = float(len(os.listdir("/proc/self/fd")))
        with open("/proc/self/statm", encoding="ascii") as stream:
            figures["process_resident_memory_bytes"] = float(stream.read().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE")
    return figures


# --- who may ------------------------------------------------------------------------------------------------

LEVELS = ("read", "logs", "write", "admin")


class User(NamedTuple):
    """Who asks: a name for the audit trail, an access level, and patterns of the roles it may change."""
    name: str
    level: str
    roles: Tuple[str, ...] = ("*",)
    known: bool = True

    def may(self, level: str, role: Optional[str]) -> bool:
        if LEVELS.index(self.level) < LEVELS.index(level):
            return False
        if level == "read" or "*" in self.roles:
            return True
        return role is not None and any(glob(pattern)(role) for pattern in self.roles)


ANONYMOUS = User("anonymous", "admin", known=False)


def hash_token(token: str) -> str:
    """How a token is stored. Tokens are 32 random bytes: one pass of SHA-256 is enough to make guessing
    hopeless."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of a file: one a line, `NAME LEVEL ROLES sha256:HASH`, ROLES being patterns joined by
    commas."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._entries: List[Tuple[str, User]] = []
        self.load()

    def load(self) -> None:
        """Read the file. Raises ValueError naming the line, or OSError; the tokens read before stay then."""
        entries = []
        with open(self.path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                words = line.split()
                if not words or words[0].startswith("#"):
                    continue
                if len(words) != 4 or words[1] not in LEVELS or not re.fullmatch(r"sha256:[0-9a-f]{64}",
                        words[3]):
                    raise ValueError("%s, line %d: expected NAME read|logs|write|admin ROLES sha256:HASH" % (
                        self.path, number))
                roles = tuple(words[2].split(","))
                for role in roles:
                    try:
                        glob(role)
                    except BadRequest as error:
                        raise ValueError("%s, line %d: %s" % (self.path, number, error)) from None
                entries.append((words[3], User(words[0], words[1], roles)))
        self._entries = entries

    def find(self, token: str) -> Optional[User]:
        hashed, found = hash_token(token), None
        for stored, user in self._entries:      # all of them, so that time tells nothing
            if hmac.compare_digest(stored, hashed):
                found = user
        return found


class Access(NamedTuple):
    """How callers are known. tokens: Bearer tokens; forward: their Authorization goes to the scheduler, which
    decides."""
    tokens: Optional[Tokens] = None
    forward: bool = False
    anonymous: bool = True
    client_certificates: bool = False

    def user(self, request: Request) -> User:
        """Who asks. Raises Unauthorized."""
        given = request.headers.get("authorization", "")
        scheme, _, secret = given.partition(" ")
        if self.tokens and scheme.lower() in ("bearer", "basic"):
            token = secret.strip()
            if scheme.lower() == "basic":
                try:
                    token = base64.b64decode(token, validate=True).decode().partition(":")[2]
                except ValueError:
                    token = ""
            user = self.tokens.find(token)
            if user is not None:
                return user
            if not self.forward:
                raise Unauthorized("the token is not known here", headers=self.challenge())
        if self.client_certificates and request.certificate:
            return User(re.sub(r"[^\w\-.@]", "_", request.certificate)[:64], "admin")
        if self.forward:
            request.authorization = given       # "": none, and never the server's own instead
            name = "forwarded"
            if scheme.lower() == "basic":
                with contextlib.suppress(ValueError):
                    name = base64.b64decode(secret.strip(), validate=True).decode("utf-8",
                            "replace").partition(":")[0]
            return User(re.sub(r"[^\w\-.@]", "_", name)[:64] or "forwarded", "admin", known=bool(given))
        if self.anonymous:
            return ANONYMOUS
        raise Unauthorized("credentials are needed: Authorization: Bearer TOKEN", headers=self.challenge())

    @staticmethod
    def challenge() -> List[Tuple[str, str]]:
        return [("WWW-Authenticate", 'Bearer realm="aurora_rest"')]


# --- parameters ---------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a value in the query is: how its text is read and how OpenAPI describes it, in one, so that both
    agree. read raises ValueError with what was expected; join: makes one value of several, where it may be
    repeated."""
    read: Callable[[str], Any]
    schema: Json
    join: Optional[Callable[[List[Any]], Any]] = None


def _bounded(kind: str, expected: str, pattern: str, convert: Callable[[str], Any], least: float,
             most: float) -> Kind:
    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(expected)
        value = convert(text)
        if not least <= value <= most:
            raise ValueError("%.15g to %.15g" % (least, most))
        return value
    return Kind(read, {"type": kind, "minimum": least, "maximum": most})


def integer(least: int, most: int) -> Kind:
    """A whole number."""
    return _bounded("integer", "a whole number", r"-?\d{1,18}", int, least, most)


def number(least: float, most: float) -> Kind:
    """A number."""
    return _bounded("number", "a number", r"-?\d{1,18}(\.\d{1,18})?([eE][+-]?\d{1,2})?", float, least, most)


_DURATION = r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?"


def duration(least: float = 0.0, most: float = 1e9) -> Kind:
    """Seconds: 90, 1m30s, 2h, 7d."""
    def read(text: str) -> float:
        match = re.fullmatch(_DURATION, text, re.ASCII)
        if not match or not text:
            raise ValueError("a time in seconds, or such as 30s, 1m30s, 2h, 7d")
        seconds = sum(float(part) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1)) if part)
        if not least <= seconds <= most:
            raise ValueError("%.15g to %.15g seconds" % (least, most))
        return seconds
    return Kind(read, {"type": "string", "pattern": "^%s$" % _DURATION.replace("?:", ""), "minLength": 1})


def choice(*words: str) -> Kind:
    """One of some words."""
    def read(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text
    return Kind(read, {"type": "string", "enum": list(words)})


def members(enum: Enum, groups: Dict[str, Tuple[str, ...]]) -> Kind:
    """Members of a Thrift enum by name, or by a word that stands for several; the set of their numbers."""
    known = sorted(groups) + sorted(enum.values)

    def read(text: str) -> Set[int]:
        found: Set[int] = set()
        for each in map(str.strip, text.split(",")):
            named = (each,) if each in enum.values else groups.get(each.lower(), (each.upper(),))
            if named[0] not in enum.values:
                raise ValueError("one of " + ", ".join(known))
            found.update(enum.values[member] for member in named)
        return found
    # A generator makes an identifier of each: those that differ only in case would be twins.
    shown = [each for each in known if each.upper() not in enum.values or each in enum.values]
    return Kind(read, {"type": "string", "enum": shown}, lambda found: set().union(*found))


def listed(kind: Kind) -> Kind:
    """Several of a kind: repeated, or with commas between."""
    return kind._replace(read=lambda text: [kind.read(part.strip()) for part in text.split(",")],
                         join=lambda found: [each for part in found for each in part])


def _read_flag(text: str) -> bool:
    if text.lower() not in ("1", "true", "0", "false"):
        raise ValueError("1 or 0")
    return text.lower() in ("1", "true")


def _read_pair(text: str) -> Tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError("NAME=VALUE")
    return name, value


def _read_glob(text: str) -> str:
    glob(text)
    return text


def _names(enum: Enum, numbers: Iterable[int]) -> Tuple[str, ...]:
    return tuple(enum.names[each] for each in numbers)


FLAG = Kind(_read_flag, {"type": "boolean"})
TEXT = Kind(str, {"type": "string", "minLength": 1})
GLOB = Kind(_read_glob, {"type": "string", "minLength": 1, "maxLength": 255})
GLOBS = GLOB._replace(join=list)
PAIRS = Kind(_read_pair, {"type": "string", "pattern": "^[^=]+=", "minLength": 1}, list)
INSTANCES = Kind(lambda text: parse_instances([text]),
                 {"type": "string", "pattern": r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$"},
                 lambda found: sorted({each for part in found for each in part}))
STATES = members(api.ScheduleStatus, {
    "active": _names(api.ScheduleStatus, api.ACTIVE_STATES),
    "live": _names(api.ScheduleStatus, api.LIVE_STATES),
    "terminal": _names(api.ScheduleStatus, api.TERMINAL_STATES)})
UPDATE_STATES = members(api.JobUpdateStatus, {
    "active": _names(api.JobUpdateStatus, api.ACTIVE_JOB_UPDATE_STATES),
    "all": tuple(api.JobUpdateStatus.values),
    "inactive": ("ROLLED_FORWARD", "ROLLED_BACK", "ABORTED", "ERROR", "FAILED"),
    "blocked": _names(api.JobUpdateStatus, api.AWAITNG_PULSE_JOB_UPDATE_STATES),
    "failed": ("ERROR", "FAILED", "ROLLED_BACK"), "unsuccessful": ("ERROR", "FAILED", "ROLLED_BACK"),
    "paused": ("ROLL_FORWARD_PAUSED", "ROLL_BACK_PAUSED"),
    "succeeded": ("ROLLED_FORWARD",)})
ENDED = Enum("ScheduleStatus", {name: number for name, number in api.ScheduleStatus.values.items()
                                if number in api.TERMINAL_STATES})
BATCH = Kind(lambda text: text if text == "all" else integer(1, 999999).read(text),
             {"type": "string", "pattern": r"^(all|[1-9]\d{0,5})$"})


class Param(NamedTuple):
    """A query parameter: what kind of value it has, and what it means."""
    kind: Kind
    help: str
    example: Any = None


# By the name in a route's row. `name:row` there has another row than that of its name.
PARAMS: Dict[str, Param] = {
    "shards": Param(INSTANCES, "instances: 1,3-5; repeatable; all if absent", "0-2"),
    "instances": Param(INSTANCES, "the same as shards", "0,2"),
    "bind": Param(PAIRS, "NAME=VALUE for {{NAME}} in the configuration; repeatable", "version=2"),
    "env": Param(PAIRS, "NAME=VALUE for os.environ in the configuration; repeatable", "STAGE=test"),
    "file": Param(TEXT, "which of several files is the job's; the first if absent", "deploy/job.aurora"),
    "message": Param(TEXT, "a sentence for the scheduler's audit trail"),
    "wait": Param(duration(),
                  "how long to wait for the outcome, an hour at the most, or with If-None-Match for a "
                  "change; Prefer: wait=N is the same", "30"),
    "dry_run": Param(FLAG, "do everything but the scheduler's write call, and tell what it would be"),
    "pretty": Param(FLAG, "indent the answer"),
    "limit": Param(integer(1, 1 << 30), "how many at the most"),
    "offset": Param(integer(0, 1 << 30), "how many to leave out first"),
    "detail": Param(FLAG, "with all there is to tell of each"),
    "byte": Param(integer(-(1 << 53), 1 << 53),
                  "the byte to begin at; counted from the end where it is negative"),
    "length": Param(integer(1, 1 << 20), "bytes at the most"),
    "tail": Param(integer(0, 100000), "the last lines, so many"),
    "follow": Param(FLAG, "go on with what is written from now on"),
    "grep": Param(TEXT, "only lines that hold this text"),
    "stream": Param(choice("stdout", "stderr"), "which log; stdout if absent"),
    "run": Param(integer(-100, 1 << 20), "which run of the process; -1, the latest, if absent"),
    "runs": Param(FLAG, "with all runs of each process"),
    "task": Param(TEXT, "the id of a task of the instance, instead of its latest"),
    "source": Param(choice("observer", "agent"),
                    "agent: from the Mesos agent, where what executors wrote is"),
    "path": Param(TEXT, "a path in the sandbox", ".logs"),
    "logs": Param(FLAG, "0: without the last lines that a failed process wrote"),
    "cluster": Param(GLOB, "only these clusters; a glob", "dev*"),
    "role": Param(GLOB, "only these roles; a glob", "www-*"),
    "environment": Param(GLOB, "only these environments; a glob", "prod"),
    "name": Param(GLOB, "only these names; a glob", "hello*"),
    "host": Param(GLOBS, "only on these hosts; a glob; repeatable", "demo-*"),
    "tier": Param(GLOB, "only of these tiers; a glob", "preferred"),
    "metadata": Param(PAIRS, "only with this metadata, KEY=VALUE, the value a glob; repeatable", "team=*"),
    "image": Param(GLOB, "only with a container image of this name, with its tag if it has one; a glob",
                   "nginx:*"),
    "state": Param(STATES, "only in this state; repeatable; active, live and terminal stand for several",
                   "RUNNING"),
    "exact_role": Param(TEXT, "only this role", "www-data"),
    "exact_environment": Param(TEXT, "only this environment", "prod"),
    "exact_name": Param(TEXT, "only this name", "hello"),
    "exact_host": Param(TEXT._replace(join=list), "only on this host; repeatable", "demo-01"),
    "ended_state": Param(members(ENDED, {"terminal": tuple(ENDED.values)}), "only in this state; repeatable",
                         "FAILED"),
    "has": Param(choice("active", "pending", "finished", "failed"), "only jobs that have such tasks"),
    "status": Param(UPDATE_STATES, "only updates in this state; repeatable; active, paused, unsuccessful, "
                    "succeeded … stand for several", "active"),
    "user": Param(GLOB, "only those started by these users; a glob"),
    "batch_size": Param(BATCH, "instances at once, 1 if absent; all for all", "1"),
    "watch_secs": Param(duration(0, 86400), "how long a new task has to run; 30 s if absent", "30"),
    "max_per_instance_failures": Param(integer(0, 1000),
                                       "failures that one instance may have; none if absent"),
    "max_total_failures": Param(integer(0, MAX_TASKS_PER_JOB), "instances that may fail; none if absent"),
    "time_limit": Param(duration(1, 604800), "how long one batch, or what is waited for, may take", "10m"),
    "count": Param(integer(1, MAX_TASKS_PER_JOB), "how many instances; 1 if absent", 2),
    "size": Param(integer(0, MAX_TASKS_PER_JOB), "how many instances the job is to have", 3),
    "like": Param(integer(0, MAX_TASKS_PER_JOB - 1), "the instance whose configuration new ones get"),
    "percentile": Param(listed(number(0, 100)), "percent of the instances; repeatable", 95.0),
    "durations": Param(listed(duration()), "how long they have been up; repeatable", "10m"),
    "percentage": Param(number(0, 100), "percent of the instances that stay up; 95 if absent"),
    "duration": Param(duration(), "how long they have to be up; 30 min if absent", "30m"),
    "min_instances": Param(integer(1, MAX_TASKS_PER_JOB), "smaller jobs do not count; 20 if absent"),
    "count_up": Param(integer(0, MAX_TASKS_PER_JOB), "instances that stay up, instead of a percentage"),
    "coordinator": Param(TEXT, "the URL of a coordinator that decides, instead of a percentage"),
    "timeout": Param(duration(0, 1 << 31), "after which time hosts are drained whatever the SLA", "7d"),
    "kind": Param(choice("implicit", "explicit"), "which reconciliation; implicit if absent"),
    "batch": Param(integer(1, 1 << 30), "tasks at once"),
    "until": Param(choice("running", "gone"), "what to wait for; running if absent"),
    "to_state": Param(choice(*api.ScheduleStatus.values), "the state to force"),
    "increase": Param(FLAG, "add to the quota instead of replacing it"),
    "force": Param(FLAG, "do it although a check speaks against it"),
    "brief": Param(FLAG, "of the events only the last"),
    "snapshot": Param(FLAG, "0: only what happens from now on, without how things stand"),
    "version": Param(Kind(str, {"type": "string", "pattern": "^[0-9a-f]{12}$"}),
                     "the id of a configuration in history"),
}


def read_param(name: str, kind: Kind, values: Sequence[str]) -> Any:
    """The parameter's value from its texts in the query. Raises BadRequest."""
    if not all(each.strip() for each in values):
        raise BadRequest("%s= is empty; to leave it out means all" % name)
    if len(values) > 1 and kind.join is None:
        raise BadRequest("the parameter %s is given twice" % name)
    found = []
    for text in values:
        try:
            found.append(kind.read(text))
        except ValueError as error:
            raise BadRequest("%s=%s: expected %s" % (name, text[:80], error)) from None
    return kind.join(found) if kind.join else found[0]


# --- what answers hold --------------------------------------------------------------------------------------
# One line a field: its name, with ? where it may be absent; its type; what it is. Types: string, integer,
# number, boolean, object; time, in milliseconds since 1970; =Enum, the names of a Thrift enum; =a,b these
# words; another object of this table, or a Thrift struct, whose names differ; [T] a list, {T} an object of
# such values by name, T|U either, T? that or null. An object in parentheses lends its fields. Durations are
# seconds, jobs cluster/role/environment/name.

OBJECTS = """
Failure: what every failure answers
 status =failure: always so
 code string: which failure it is, for programs
 errors [string]: what was wrong and what to do, in sentences
 count? integer: 0
 key? string: the job, role, cluster or hosts that the path names
 job? string: the job
 done? =unknown: always so, where the bytes of a write went out and no readable answer came
 reached? boolean: false, where it was waited for
 progress? Progress: how far it had come
 endings? [Ending]: how the tasks ended that failed
 last_words? LastWords: what a process wrote before it failed
 instances? [integer]: the instances it is about
 added? [integer]?: the instances that were added
 killed? [integer]: the instances that are killed
 operation? Operation: the operation that failed
 update? Update?: the update that is in the way, or came to no good end
 hosts? [Host]: the hosts that are in the way
 etag? string: the ETag that there is now
 output? [string]: what the configuration printed
 state? =JobUpdateStatus: the state that the update came to
 response? Response: what the scheduler answered, for rpc
 clusters? {ReadyCluster}: by name, why each does not answer
 isolation? [string]?: what shuts configurations in
Success: what every other answer has
 status =success: always so
 key? string: the job, role, cluster or hosts that the path names
 count? integer: how many things the answer holds
Written(Success): a write was done, or would be
 dry_run? boolean: true where nothing was sent
 would? object: the call that would be made, with what is known of its effect
 warnings? [string]: what is worth knowing
 messages? [string]: what the scheduler said besides
JobWritten(Written): a write to a job
 job? string: the job
 unchanged? boolean: true where there was nothing to do
 instances? [integer]: the instances it is about
 added? [integer]?: the instances that were added, null where that could not be read
 killed? [integer]: the instances that are killed
 update? Update: the update it is about
 operation? Operation: what goes on here
 pulse? =JobUpdatePulseStatus: what the scheduler says to a pulse
 reached? boolean: where it was waited for: whether it came
 progress? Progress: how far it is
 why? string: why it is not there yet
 state? =JobUpdateStatus: the update's state
 hosts? [Host]: the hosts
Progress: how far something is, in instances or hosts
 done integer: there
 failed integer: will not get there
 active integer: on the way, or waiting
 total integer: in all
Ending: how a task ended
 instance integer: its instance
 id string: its id
 state =ScheduleStatus: its state
 host string?: where it ran
 message string?: what its last event says
Event: something that happened to a task
 time time: when
 state =ScheduleStatus: the state it came to
 message string?: what was said of it
Task: one run of an instance
 id string: the scheduler's id for it
 job string: its job
 instance integer: its number
 state =ScheduleStatus: its state
 host string?: where it runs, once it was placed
 ports {integer}: its ports by name
 failures integer: how often it and those it replaces failed
 ancestor string?: the task that it replaces
 pending? string: why it waits for a host
 events [Event]: what happened to it
Cron: when a cron job runs
 schedule string: in crontab's form
 next_run time?: when it runs next
 instances integer: how many instances a run has
 collision_policy =CronCollisionPolicy: what happens where the last run still goes on
Job: a job in brief
 key string: the job
 instances integer: how many tasks are active or pending
 active integer: tasks that are active
 pending integer: tasks that wait for a host
 finished integer: ended tasks that finished or were killed, as far as they are remembered
 failed integer: ended tasks that failed or were lost, likewise
 tier string?: its tier
 service boolean: whether it is started again when it ends
 cron Cron?: when it runs, for a cron job
JobList(Success): jobs, numbered from 1
 jobs {string|Job}: by number, the key of each, or with detail=1 the Job
 total? integer: how many there are without limit and offset
 unanswered? {Unanswered}: the clusters that did not answer
CronList(Success): cron jobs, numbered from 1
 jobs {Job}: by number
 total? integer: how many there are without limit and offset
Unanswered: why something is not told
 code string: which failure
 errors [string]: in words
JobStatus(Success): a job with its tasks
 job string: the job
 instances integer: how many tasks are active or pending
 active integer: tasks that are active
 pending integer: tasks that wait for a host
 finished integer: ended tasks that finished or were killed
 failed integer: ended tasks that failed or were lost
 tier string?: its tier
 service boolean: whether it is started again when it ends
 cron Cron?: when it runs, for a cron job
 stats {integer}: tasks by state
 last_words? LastWords: what a process wrote before it failed
 update Update?: the update in progress
 tasks TasksByLife: its tasks
TasksByLife: a job's tasks
 active [Task]: those that are alive
 inactive [Task]: those that have ended
TaskList(Success): tasks
 tasks [Task]: each
 total? integer: how many there are without limit and offset
 next? integer: the offset of what follows
ConfigOfInstances: instances that share a configuration
 instances [integer]: which
 config TaskConfig: the configuration
ConfigList(Success): a job's configurations
 configs [ConfigOfInstances]: by instances
Waiting: why a task waits
 id string: the task
 instance? integer: its instance
 reason string: in the scheduler's words
 reasons [Reason]: the same, taken apart
Reason: one of its reasons
 kind string: Insufficient, Constraint not satisfied, …
 what string?: of what
PendingList(Success): tasks that wait
 pending [Waiting]: each
WaitingTask: a task that waits for a host
 id string: its id
 job string: its job
 instance integer: its number
 state =ScheduleStatus: its state
 since integer?: since when it waits
 reason string: why, in the scheduler's words
WaitingList(Success): tasks that wait
 pending [WaitingTask]: each
 total integer: how many there are
Me(Success): who asks
 name string: what this server calls the caller
 level string: read, write or admin
 roles [string]: patterns of the roles that the caller may change
 by string: how that is known: token, certificate, scheduler (which judges the credentials) or nobody
ServerState(Success): how this server is
 version string: its version
 python string: Python's
 started time: when it was started
 uptime number: the seconds since then
 options object: the options in force, by name; none where a program started it
 limits {LimitState}: by name, what bounds it
 figures {number}: of its process
LimitState: a limit
 limit number: the most
 unit string: of what
 used? number: how much of it is in use, where that is an amount
HistoryEntry: a configuration that a job has had
 id string: a short hash of what it means
 when integer?: when it was last begun, if that is known
 user string?: who began it
 message string?: what was said then
 update string?: the id of the update that brought it
 running [integer]: the instances that have it now
 config TaskConfig: the configuration
History(Success): configurations
 versions [HistoryEntry]: each, the one begun last first
 total integer: how many there are
UptimeAnswer(Success): uptimes
 uptime {integer}: by percentile, the seconds that so many percent of the instances have been up at least
UpCountAnswer(Success): who is up
 up_count {number}: by seconds, percent of the instances that have been up for so long
Inspected(Success): a job as it would be sent
 job JobConfiguration: the job
 update? JobUpdateSettings: the settings of its updates
 update_errors? [string]: why it cannot be updated with this
 warnings [string]: what is worth knowing
 cron? Cron?: when it would run
LastWords: what a process wrote before it failed
 instance integer: its instance
 task string: its task
 host string: where that ran
 failed time: when
 processes string: the path of its processes
 process? string: the process that failed
 run? integer: its run
 logs? string: the path of its log
 stderr? [string]: the last lines of it
 errors? [string]: why there is no more
ProcessList(Success): the processes of a task
 task ObservedTask: the task
 processes [Process]: each, in the order of the configuration
ObservedTask: a task as its observer sees it
 id string: its id
 instance integer: its instance
 host string: where it runs or ran
 state string: its state, by the scheduler
 observed_state string?: its state, by the observer
 user string?: the user that it runs as
 ports {integer}: its ports by name
 launched time?: when it was launched
 used object?: what it uses
Process: a process of a task
 name string: its name
 state string?: how its latest run is
 run integer?: which that is
 started time?: when that began
 stopped time?: when it ended, where that is known
 return_code integer?: of that run, where it can be known; negative: the signal that ended it
 used object?: what it uses
 cmdline string?: its command line
 logger any: where its output goes, null where that is not configured
 runs? [object]: all its runs
FileList(Success): what a directory of a sandbox holds
 task string: the task
 host string: where it ran
 path string: the directory
 entries [File]: each
 unreadable_lines integer: how many could not be read
File: a file of a sandbox
 name string: its name
 type =file,directory,socket: what it is
 mode string: who may what
 size integer?: its bytes
 owner string?: whose it is
 group string?: of which group
 modified? time?: when it was last changed
 modified_text? string: the same as the observer writes it, in its host's time, where it tells no more
FieldChange: a field that differs
 path string: where it is; objects in lists are told apart by their names
 old any: what it was
 new any: what it would be
ChangedGroup: what instances would change
 instances [integer]: which
 fields [FieldChange]: what would change
Plan(Success): what an update would do
 job string: the job
 add [integer]: instances that would be new
 remove [integer]: instances that would go
 update [integer]: instances that would be replaced
 unchanged [integer]: instances that would stay
 changes [ChangedGroup]: what the replaced would change
UpdateEvent: something that happened to an update
 state =JobUpdateStatus: the state it came to
 time time: when
 user string?: by whom
 message string?: what was said
InstanceEvent: something that an update did to an instance
 instance integer: which
 action =JobUpdateAction: what
 time time: when
 message string?: what was said
Update: a rolling update
 id string: its id
 job string: its job
 user string?: who started it
 state =JobUpdateStatus: its state
 created time?: when it was started
 modified time?: when something last happened
 message string?: what was last said
 progress Progress: how far it is
 instances {[integer]}: the instances by how far each is
 metadata {string?}: what was given with it
 settings? JobUpdateSettings?: how it rolls (with detail=1, as the rest)
 before? [ConfigOfInstances]: the configurations before
 after? ConfigOfInstances?: the configuration after
 events? [UpdateEvent]: what happened to it
 instance_events? [InstanceEvent]: what it did
UpdateAnswer(Success): an update
 job string: the job
 update Update: the update
UpdateList(Success): updates, the one changed last first
 updates [Update]: each
 next? integer: the offset of what follows
Step: something that an operation did or saw
 time time: when
 text string: what
 instances? [integer]: with which instances
 done? integer: how many are done
 failed? integer: how many failed
 error? string: what went wrong
Operation: long work of this server
 id string: its id
 kind =drain,kill,restart: what it does
 key string: the job or hosts
 user string: who began it
 state =running,succeeded,failed,cancelled,interrupted: how it is, or came out
 started time: when
 ended time?: when
 progress Progress: how far it is
 steps [Step]: what it did
 errors [string]: what went wrong
 result object: what came of it
OperationAnswer(Success): an operation
 operation Operation: the operation
OperationWritten(Written): an operation
 operation? Operation: the operation
OperationList(Success): operations, the newest first
 operations [Operation]: each
 total integer: how many there are
CronAnswer(Success): a cron job
 job string: the job
 cron Cron?: when it runs
 config JobConfiguration: what it runs
Amounts: resources
 cpu number: cores
 ram_mb number: MB of memory
 disk_mb number: MB of disk
QuotaAnswer(Success): a role's quota
 quota Amounts: what production jobs that are not dedicated may take
 consumption Consumption: what is taken
Consumption: what a role takes
 production Amounts: production jobs
 other Amounts: other jobs
 production_dedicated Amounts: production jobs on dedicated hosts
 other_dedicated Amounts: other jobs on dedicated hosts
QuotaWritten(Written): a role's quota
 quota? Amounts: what was set
HostJob: what a job would keep without a host
 job string: the job
 percentage number: percent of its instances that would stay up
 safe boolean: whether that is enough
Host: a host
 host string: its name
 mode? =MaintenanceMode: whether it is in maintenance
 tasks? integer: how many tasks are there
 safe? boolean: whether it could go
 jobs? [HostJob]: what that would do to jobs
HostList(Success): hosts
 hosts [Host]: each
 total? integer: how many there are
 safe? boolean: whether all of them could go
HostsWritten(Written): hosts
 hosts? [Host]: each
Cluster: a cluster
 leader string?: where its leader was last seen
 urls [string]: where its schedulers are looked for; none where ZooKeeper tells
ClusterList(Success): the known clusters
 clusters {Cluster}: by name
Role: a role
 jobs integer: how many jobs it has
 cron integer: how many of them are cron jobs
RoleList(Success): roles
 roles {Role}: by name
Tier: a tier
 preemptible boolean: whether its tasks may be preempted
 revocable boolean: whether its tasks may be revoked
TierList(Success): tiers
 default string: which is taken where none is named
 tiers {Tier}: by name
BackupList(Success): backups
 backups [string]: their ids
StateForced(Written): a task's state
 state? string?: what it is now, null where the task is gone
 forced? boolean: whether it came to that state
RpcAnswer(Written): what the scheduler answered
 response? Response: as it came
Version(Success): the version
 version string: of this service
Health(Success): alive
 version string: of this service
 uptime integer: seconds since its start
ReadyCluster: whether a cluster's scheduler answers
 ready boolean: whether it does
 leader? string?: where
 code? string: why not
 errors? [string]: the same in words
Ready(Success): able to work
 clusters {ReadyCluster}: by name, whether each answers
 isolation [string]?: what shuts configurations in
"""


@lru_cache(maxsize=1)
def _objects() -> Dict[str, Tuple[str, List[Tuple[str, bool, str, str]]]]:
    """name → (what it is, its fields as (name, whether it may be absent, type, what it is))."""
    found: Dict[str, Tuple[str, List[Tuple[str, bool, str, str]]]] = {}
    for line in OBJECTS.strip().split("\n"):
        head, _, text = line.partition(": ")
        if not line.startswith(" "):
            name, _, parent = head.rstrip(")").partition("(")
            found[name] = (text, list(found[parent][1]) if parent else [])
            continue
        field, kind = head.split()
        known = found[name][1]
        known[:] = [each for each in known if each[0] != field.rstrip("?")]
        known.append((field.rstrip("?"), field.endswith("?"), kind, text))
    return found


class Schemas:
    """The schemas that a description refers to, made when they are first named."""

    def __init__(self) -> None:
        self.made: Json = {}

    def ref(self, name: str) -> Json:
        """A reference to an object of the table, or to a Thrift struct."""
        if name not in self.made:
            self.made[name] = {}
            thrift = None if name in _objects() else getattr(api, name)
            self.made[name] = self._object(name) if thrift is None else {
                "type": "string", "enum": sorted(thrift.values), "description": "Thrift %s" %
                name} if isinstance(
                    thrift, Enum) else self._struct(thrift)
        return {"$ref": "#/components/schemas/" + name}

    def of(self, kind: str) -> Json:
        """The schema of a type as the table writes it."""
        if kind.endswith("?"):
            inner = self.of(kind[:-1])
            if isinstance(inner.get("type"), str) and "enum" not in inner:
                return dict(inner, type=[inner["type"], "null"])
            return {"anyOf": [inner, {"type": "null"}]}
        if kind[0] in "[{":
            name = "items" if kind[0] == "[" else "additionalProperties"
            return {"type": "array" if kind[0] == "[" else "object", name: self.of(kind[1:-1])}
        if "|" in kind:
            return {"anyOf": [self.of(each) for each in kind.split("|")]}
        if kind[0] == "=" and kind[1].isupper():
            return self.ref(kind[1:])
        if kind[0] == "=":
            words = kind[1:].split(",")
            return {"type": "string", "const": words[0]} if len(words) == 1 else {"type": "string",
                    "enum": words}
        known: Json = {"any": {}, "object": {"type": "object", "additionalProperties": True},
                       "time": {"type": "integer", "format": "int64"}}
        return dict(known.get(kind) or {"type": kind}) if kind.islower() and kind != "any" else (
            {} if kind == "any" else self.ref(kind))

    def _object(self, name: str) -> Json:
        text, fields = _objects()[name]
        fields = [(field, absent, kind, what + ", in milliseconds since 1970" if "time" in kind else what)
                  for field, absent, kind, what in fields]
        return {"type": "object", "description": text,
                "required": [field for field, absent, _, _ in fields if not absent],
                "properties": {field: dict(self.of(kind), description=what) for field, _, kind,
                               what in fields}}

    def _struct(self, struct: Any) -> Json:
        """A Thrift struct in plain JSON: no field has to be there. executorConfig.data is shown as what it
        holds."""
        fields = {name: self._thrift(kind) for name, kind in struct.fields.items()}
        if struct is api.ExecutorConfig:
            fields["data"] = {"description": "what the executor gets, as the object it holds"}
        bounds: Json = {"minProperties": 1, "maxProperties": 1} if struct.is_union else {}
        if struct.__name__.lower() in fields:       # generators make one name of both
            bounds["title"] = "Thrift" + struct.__name__
        return dict({"type": "object", "description": "Thrift %s, in plain JSON" % struct.__name__,
                     "properties": fields},
                    **bounds)

    def _thrift(self, kind: Type) -> Json:
        if kind.kind == "struct":
            return self.ref(kind.ref.__name__)
        if kind.kind == "enum":
            return self.ref(kind.ref.name)
        if kind.kind == "map":
            return {"type": "object", "additionalProperties": self._thrift(kind.items[1])}
        if kind.items:
            return {"type": "array", "items": self._thrift(kind.items[0])}
        return {"type": {"bool": "boolean", "double": "number", "string": "string"}.get(kind.kind, "integer")}


# --- the route table ----------------------------------------------------------------------------------------


class Route(NamedTuple):
    """One row of the route table, which is all that there is to know of a request.

    path: a template, {key} for cluster, role, environment and name; name: what metrics, log and OpenAPI call
    it; access: the level a caller needs; params: names in the query → rows of PARAMS; body: "" or what kind
    of body it takes; answers: status → what it says; gives: the object in OBJECTS that it answers, or the
    media type where that is not JSON; remembered: the answer follows from the request and the scheduler's
    replies alone, so that the same replies make the same answer; quick: it neither blocks nor takes long, so
    that the reading thread may make it; operates: it starts an operation, always ("always") or with the
    parameter of that name; judges: the handler itself looks who may, since the path does not tell; guards:
    the reads whose ETags If-Match may name.
    """
    method: str
    path: str
    handler: Callable[[Call], Any]
    name: str
    summary: str
    group: str
    access: str
    params: Dict[str, str]
    body: str
    answers: Dict[int, str]
    gives: str
    remembered: bool
    quick: bool
    operates: str
    judges: bool
    guards: Tuple[str, ...]

    @property
    def is_stream(self) -> bool:
        """Whether it answers with events."""
        return self.gives == "text/event-stream"

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.method in _WRITES and (self.access != "read" or self.judges)

    @property
    def leaves_a_line(self) -> bool:
        """Whether the audit trail has a line of each such request: of writes, and of who reads what may be
        secret."""
        return self.access == "logs" or self.writes


ROUTES: List[Route] = []
_GROUPS = {"run": "create, kill, cron", "watch": "what there is, and what happens",
           "change": "updates, scale",
           "fix": "restart, abort, roll back",
           "operate": "quota, maintenance, backups, tasks of a cluster, any call",
           "server": "this server itself"}
# path parameters that are not identifiers
_SEGMENTS = {"hosts": r"[\w\-.:]+(,[\w\-.:]+)*", "instance": r"\d{1,4}",
             "process": r"[^./\x00][^/\x00]*"}
_PATH_PARAMS = {"cluster": ("the cluster", "devcluster"), "role": ("the role", "www-data"),
                "environment": ("the environment", "prod"), "name": ("the job's name", "hello"),
                "hosts": ("names of hosts, with commas between", "demo-01"),
                "task": ("the id of a task", None),
                "instance": ("the number of an instance", "0"), "process": ("the name of a process", "hello"),
                "backup": ("the id of a backup", None), "method": ("a method of the Thrift API", None),
                "id": ("the id of the update or operation", None)}
_WRITES = ("PUT", "POST", "DELETE")
_JOB_GUARDS = ("get_config", "get_job")


def route(method: str, path: str, group: str, access: str = "", params: str = "", body: str = "",
          gives: str = "Written",
          remembered: bool = False, quick: bool = False, operates: str = "", judges: bool = False,
          name: str = "",
          summary: str = "", guards: Sequence[str] = (), **answers: str) -> Callable[[Any], Any]:
    """Put a handler into the route table. answers: status code, after an `a`, → what it says."""
    level = access or ("read" if method == "GET" else "write")
    named = params.split()
    if method in _WRITES and level != "read":
        named.append("dry_run")
    elif method == "GET" and path.startswith("/alpha/") and gives != "text/event-stream" and level != "logs":
        named.append("wait")
    if "wait" in named and method != "GET" and "{key}" in path:
        named.append("logs")
    if "/" not in gives:
        named.append("pretty")
    rows = {query: row or query for query, _, row in (each.partition(":") for each in named)}
    assert group in _GROUPS and set(rows.values()) <= set(PARAMS)

    def put(handler: Callable[[Call], Any]) -> Callable[[Call], Any]:
        ROUTES.append(Route(method, path, handler, name or handler.__name__,
                            summary or (handler.__doc__ or "").strip().split("\n")[0], group, level, rows,
                            body,
                            {int(code[1:]): text for code, text in answers.items()} or {200: "done"}, gives,
                            remembered,
                            quick, operates, judges, tuple(guards)))
        return handler
    return put


@lru_cache(maxsize=None)
def _routes_by_name(count: int) -> Dict[str, Route]:
    return {each.name: each for each in ROUTES[:count]}


@lru_cache(maxsize=None)
def _patterns(count: int) -> List[Tuple[Any, Dict[str, Route]]]:
    """(compiled path, method → route) of the first `count` routes, made once when the table is complete."""
    made: Dict[str, Tuple[Any, Dict[str, Route]]] = {}
    for each in ROUTES[:count]:
        text = each.path.replace("{key}", "{cluster}/{role}/{environment}/{name}")
        text = re.sub(r"^/alpha/jobs?\b", "/alpha/jobs?", text)
        text = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text.replace(".", r"\."))
        made.setdefault(text, (re.compile(text), {}))[1][each.method] = each
    # Words before placeholders, so that /updates is not taken for the name of an environment.
    return sorted(made.values(), key=lambda pair: pair[0].pattern.count("("))


@lru_cache(maxsize=2048)
def _match(path: str) -> Tuple[Dict[str, Route], Dict[str, str]]:
    """(method → route, path arguments) for a path. Raises NotFound, BadRequest."""
    for pattern, methods in _patterns(len(ROUTES)):
        found = pattern.fullmatch(path)
        if found:
            arguments = {name: decode_percent(text) for name, text in found.groupdict().items()}
            for name, text in arguments.items():
                if not re.fullmatch(_SEGMENTS.get(name, IDENTIFIER.pattern), text, re.ASCII) or text in (".",
                        "..") or (
                        len(text) > MAX_IDENTIFIER and name != "hosts"):
                    raise BadRequest("%r is not a valid %s: letters, digits, _ - . and at most %d of them" % (
                        text[:80], name, MAX_IDENTIFIER))
            return methods, arguments
    if len(path) > 1 and path.endswith("/") and any(each.fullmatch(path.rstrip("/")) for each,
                                                    _ in _patterns(len(ROUTES))):
        raise NotFound("there is nothing at this path; it is there without the slash at the end")
    raise NotFound("there is nothing at this path; /openapi.json describes what there is")


def no_such(what: str, name: str, known: Iterable[str]) -> Failure:
    """The NotFound for a name that is not among those known, with the nearest of them."""
    import difflib
    near = difflib.get_close_matches(name, list(known), 3, 0.6)
    return NotFound("there is no %s %s%s" % (what, name, "; did you mean %s?" % " or ".join(near) if near
                                             else ""))


# --- answers remembered -------------------------------------------------------------------------------------


class Kept:
    """A remembered read's answer, and what the scheduler was asked for it with the replies; its size in
    bytes."""
    OVERHEAD = 4096     # about what the objects take, however short the texts in them

    __slots__ = ("asks", "answer", "size")

    def __init__(self, question: Iterable[Optional[str]], asks: Sequence[Ask], answer: Response) -> None:
        self.asks = asks
        self.answer = answer
        answer.settle()
        texts = 2 * sum(len(each or "") for each in question)
        replies = sum(len(ask.known.reply) + 2 * len(ask.message) for ask in asks if ask.known)
        # twice: it may be compressed, too
        self.size = self.OVERHEAD + texts + replies + 2 * len(answer.body)


class Memory:
    """Things with a `size` by what was asked, `room` bytes and `most` of them; the least used are forgotten
    first.

    What is taken out to be used is counted until it is kept again or its bytes are freed; and who makes
    something to keep claims its bytes while he holds them. So all that is held, here and by those who work
    on it, is in the account."""

    def __init__(self, room: float, most: float = math.inf) -> None:
        self.room = room
        self.most = most
        self.size = 0
        self._lock = threading.Lock()       # guards size and _kept
        self._kept: collections.OrderedDict[Any, Tuple[Any, float]] = collections.OrderedDict()

    def take(self, question: Any) -> Any:
        """What is kept, for the caller to keep again or to free: while one run asks with it, no other
        does."""
        with self._lock:
            return self._kept.pop(question, (None, 0.0))[0]

    def claim(self, size: int) -> bool:
        """Count bytes, and let go of what was used least to make room; False where there is none."""
        with self._lock:
            while self.size + size > self.room and self._kept:
                self._drop(next(iter(self._kept)))
            fits = self.size + size <= self.room
            self.size += size if fits else 0
            return fits

    def free(self, size: int) -> None:
        """Count bytes no more that were claimed or taken."""
        with self._lock:
            self.size -= size

    def look(self, question: Any) -> Any:
        """What is kept, and stays where it is; None if nothing is."""
        with self._lock:
            return self._kept.get(question, (None, 0.0))[0]

    def keep(self, question: Any, kept: Any) -> None:
        """Keep it as the one used last."""
        with self._lock:
            self._drop(question)
            if kept.size <= self.room:
                self._kept[question] = (kept, time.monotonic())
                self.size += kept.size
            while self._kept and (self.size > self.room or len(self._kept) > self.most):
                self._drop(next(iter(self._kept)))

    def forget(self, seconds: float) -> None:
        """Let go of what was kept more than so many seconds ago."""
        with self._lock:
            before = time.monotonic() - seconds
            while self._kept and next(iter(self._kept.values()))[1] < before:
                self._drop(next(iter(self._kept)))

    def _drop(self, question: Any) -> Any:
        kept, _ = self._kept.pop(question, (None, 0.0))
        self.size -= kept.size if kept else 0
        return kept


class Replay:
    """A scheduler as one run of a remembered handler sees it: notes what is asked with the replies; what came
    before the run began, Responses or AuroraErrors, is not asked for again, if the run asks for the same in
    the same order."""

    def __init__(self, scheduler: Scheduler, memory: Memory, authorization: Optional[str] = None) -> None:
        self.scheduler = scheduler
        self.memory = memory
        self.authorization = authorization
        self.asked: List[Ask] = []
        self.failed = False     # something that was asked got no reply, or one that there is no room for
        self.claimed = 0        # bytes of replies
        self._given: Deque[Tuple[Ask, bytes, Any]] = collections.deque()

    def repeats(self, asks: Iterable[Ask]) -> bool:
        """Ask again what the last run asked; whether all replies are those of then."""
        for ask in asks:
            reply, response = self._outcome(ask)
            self._given.append((ask, reply, response))
            if response is not None:
                return False
        return True

    def _outcome(self, ask: Ask) -> Tuple[bytes, Any]:
        """What Scheduler.ask returns, or no bytes and the AuroraError that it raises. A new reply is held on
        to only where the memory has room for it."""
        try:
            reply, response = self.scheduler.ask(ask)
        except AuroraError as error:
            return b"", error
        if response is None:
            return reply, None
        if not self.memory.claim(len(reply)):
            self.failed = True
            return b"", response
        self.claimed += len(reply)
        return reply, response

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """As Session.call, for reads."""
        ask = self.scheduler.prepare(method, *arguments, authorization=self.authorization, **named)
        if self._given and self._given[0][0]._replace(known=None) == ask:
            _, reply, response = self._given.popleft()
            response = self.scheduler.decode(ask, reply) if response is None else response
        else:
            self._given.clear()
            reply, response = self._outcome(ask)
        if isinstance(response, AuroraError):
            self.failed = True
            raise response
        self.asked.append(ask._replace(known=Known(reply)))
        return response


class Once(Source):
    """What a request with an Idempotency-Key asked, and its answer, for those that come again."""

    def __init__(self, asked: bytes) -> None:
        super().__init__()
        self.asked = asked
        self.answer: Optional[Response] = None

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return 1024 + (len(self.answer.body) if self.answer else 0)

    def replayed(self) -> Optional[Response]:
        """The answer again, marked as such; None while there is none."""
        kept = self.answer
        return kept and Response(kept.status, kept.plain, kept.body, kept.content_type,
                                 kept.headers + [("Idempotency-Replayed", "true")], code=kept.code)


class Idempotency:
    """A write with an Idempotency-Key is done once. The first request runs; one that comes meanwhile waits
    for its answer, one that comes later gets it again, for a day. One question settles a key when its run
    ends: may a write of it have reached a scheduler? If not the key is free. Those under way are never
    forgotten. _lock guards _under_way."""
    SECONDS = 86400.0

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answers = Memory(0)        # the limits are looked at when something is to be kept
        self._lock = threading.Lock()
        self._under_way: Dict[Any, Once] = {}

    def run(self, given: str, call: Call, run: Callable[[], Any]) -> Union[Response, Later, Stream]:
        """What `run` answers, or what it answered before. Raises what `run` does, BadRequest,
        Unprocessable."""
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", given):
            raise BadRequest("an Idempotency-Key has 1 to 255 visible characters")
        request = call.request
        slot = (request.user.name, request.headers.get("authorization"), given)
        asked = hashlib.sha256("\0".join((request.method, request.path, request.raw_query,
                                          request.headers.get(
            "content-type", ""))).encode() + b"\0" + request.body).digest()
        mine = Once(asked)
        self.answers.forget(self.SECONDS)
        with self._lock:
            first: Once = self.answers.look(slot) or self._under_way.setdefault(slot, mine)
        if first.asked != asked:
            raise Unprocessable("this Idempotency-Key was used for another request",
                                code="IDEMPOTENCY_KEY_REUSED")
        if first is not mine:
            return Later(first, self.service.limits["wait"], first.replayed, lambda: self.service.refuse(
                Conflict("the first request with this Idempotency-Key is still under way")))
        settle = partial(self._settle, slot, mine, call)
        try:
            answer = run()
        except AuroraError as error:
            settle(self.service.refuse(error, request))
            raise
        except Exception:
            settle(self.service.refuse(AuroraError("an internal error")))
            raise
        if isinstance(answer, Later):
            self._await(answer.again(), settle)     # here too: the first caller may go before it comes
        else:
            settle(answer)
        return answer

    def _settle(self, slot: Any, mine: Once, call: Call, response: Response) -> None:
        response.settle()
        mine.answer = response
        with self._lock:
            self._under_way.pop(slot, None)
            if call.sent:
                limits = self.service.limits
                self.answers.room, self.answers.most = limits["idempotency_bytes"], limits["idempotency_keys"]
                self.answers.keep(slot, mine)
        mine.changed()

    def _await(self, twin: Later, settle: Callable[[Response], None]) -> None:
        runner = self.service.runner
        timer = runner.call_later(twin.seconds, partial(runner.run_in_worker, twin.expire))

        def end(response: Response) -> None:
            timer.cancel()
            settle(response)
        twin.start(end)


# --- one request --------------------------------------------------------------------------------------------


class Call:
    """One request on its way through a handler: its typed parameters, its scheduler, its job."""

    def __init__(self, service: Service, request: Request) -> None:
        self.service = service
        self.request = request
        self.args = request.args
        self.params: Json = {}
        self.replay: Optional[Replay] = None
        self.slot: Optional[_Slot] = None               # for an operation, taken and not used yet
        # among those who wait: what gives it back, until it is used
        self.place: Optional[Callable[[], None]] = None
        self.began = False                              # an operation
        self._session: Optional[Session] = None
        self._running: Optional[List[Tuple[Any, List[int]]]] = None

    def read_params(self) -> None:
        """Check and convert the query. Raises BadRequest: a misspelt shards= must not mean all instances."""
        known = self.request.route.params
        given: Dict[str, List[str]] = {}
        for name, value in self.request.query:
            given.setdefault(name, []).append(value)
        if "wait" in known and "wait" not in given:
            prefers = re.search(r"\bwait=(\d{1,9})\b", self.request.headers.get("prefer", "")[:1024])
            if prefers:
                given["wait"] = [prefers.group(1)]
        for name, values in given.items():
            if name not in known:
                raise BadRequest("unknown parameter %s; this call knows %s" % (
                    name[:80], ", ".join(sorted(known)) or "none"))
            self.params[known[name]] = read_param(name, PARAMS[known[name]].kind, values)
        if "wait" in self.params and self.params["wait"] > self.service.limits["wait"]:
            raise BadRequest("wait=%g: at most %g seconds" %
                             (self.params["wait"], self.service.limits["wait"]))

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter's value, by the name of its row."""
        return self.params.get(name, default)

    @property
    def shards(self) -> List[int]:
        """The instances that the query names; none where it names none."""
        return sorted(set(self.params.get("shards", [])) | set(self.params.get("instances", [])))

    @property
    def user(self) -> User:
        """Who asks."""
        return self.request.user

    @property
    def scheduler(self) -> Any:
        """The cluster's Scheduler for this caller, or its Replay."""
        return self.replay or self.session

    @property
    def session(self) -> Session:
        """The door to the cluster's scheduler, with the caller's credentials."""
        if self._session is None:
            self._session = Session(self.service.clusters[self.args["cluster"]], self.auth,
                                    bool(self.get("dry_run")),
                                    self._permit)
        return self._session

    def _permit(self, method: Method, arguments: Any) -> None:
        """Whether the caller may make this write. Raises Forbidden, BadRequest."""
        roles: List[Optional[str]] = list(named_roles(arguments))
        if not roles and method.access == "write":
            raise BadRequest("%s needs a job key" % method.name)
        for role in dict.fromkeys(roles or [None]):
            self.service.require(self.user, method.access, role)

    @property
    def sent(self) -> bool:
        """Whether a write may have reached a scheduler, or will by an operation that began."""
        return self.began or self._session is not None and self._session.sent

    @property
    def notes(self) -> Json:
        """What a dry run is to tell besides the call."""
        return self.session.notes

    @property
    def key(self) -> Key:
        """The job that the path names."""
        return Key(*(self.args[name] for name in Key._fields))

    @property
    def auth(self) -> Optional[str]:
        """The caller's credentials for the scheduler, where they are passed on."""
        return self.request.authorization

    @property
    def message(self) -> Optional[str]:
        """The caller's message for the scheduler's audit trail, with the caller's name where it is known."""
        given = self.get("message")
        if not self.user.known:
            return given
        return "%s (%s)" % (given, self.user.name) if given else "by " + self.user.name

    def read(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The Response of a read."""
        return self.scheduler.call(method, *arguments, **named)

    write = read

    def intend(self, method: str, *arguments: Any) -> None:
        """Make the first of an operation's calls where the caller asked for a dry run, which ends there."""
        if self.get("dry_run"):
            self.session.call(method, *arguments)

    @property
    def running(self) -> List[Tuple[Any, List[int]]]:
        """The configurations of the job's active instances, read once: what If-Match was held to is what is
        compared."""
        if self._running is None:
            self._running = running_configs(self.scheduler, self.key)
        return self._running

    def success(self, status: int = 200, headers: Iterable[Tuple[str, str]] = (), **fields: Any) -> Response:
        """An answer: status and key, and these fields."""
        key = self.service.key_of(self.request)
        return Response(status, dict({"status": "success", "key": key} if key else {"status": "success"},
                                     **fields),
                        headers=headers)

    def job_success(self, status: int, headers: Iterable[Tuple[str, str]] = (), **fields: Any) -> Response:
        """The body that the original calls on one job share."""
        return self.success(status, headers, **dict({"count": 1, "job": str(self.key)}, **fields))

    def page(self, items: Sequence[Any], most: Optional[int] = None) -> Tuple[Sequence[Any],
            List[Tuple[str, str]]]:
        """(those that offset= and limit=, by default `most`, leave; a Link to the next page if there is
        one)."""
        start = self.get("offset", 0)
        end = start + self.get("limit", most or len(items) or 1)
        return items[start:end], self.link(end) if end < len(items) else []

    def link(self, offset: int) -> List[Tuple[str, str]]:
        """The header field that leads to the next page."""
        query = [(name, value) for name, value in self.request.query
                 if name != "offset"] + [("offset", str(offset))]
        return [("Link", '<%s?%s>; rel="next"' % (self.request.path, urllib.parse.urlencode(query)))]

    def files(self) -> Tuple[Dict[str, str], bool]:
        """The configuration files in the body, the first the root; whether it is a JSON job. Raises
        BadRequest."""
        request = self.request
        body = request.body
        coding = request.headers.get("content-encoding", "identity").lower()
        if coding in ("gzip", "x-gzip"):
            body = gunzip(body, int(self.service.limits["body"]))
        elif coding != "identity":
            raise UnsupportedMedia("the content encoding %s is not understood; gzip is" % coding)
        kind, options = parse_content_type(request.headers.get("content-type", ""))
        if kind == "multipart/form-data":
            files = parse_multipart(body, options.get("boundary", ""))
            if not files:
                raise BadRequest("the multipart body holds no file")
        elif not body:
            raise InvalidConfig("the body is empty; it has to be an .aurora file, or a JSON job as "
                                "application/json")
        elif kind in TAR_TYPES:
            files = parse_tar(gunzip(body, int(self.service.limits["body"])) if body[:2] == b"\x1f\x8b"
                              else body)
        else:
            files = {"job.json" if kind == JSON_TYPE else "job.aurora": body}
        files = root_first(files, self.get("file"), kind in TAR_TYPES)
        texts = {}
        for name, data in files.items():
            try:
                texts[name] = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise InvalidConfig("%s is not UTF-8" % name) from None
            if "\0" in texts[name]:
                raise InvalidConfig("%s has NUL characters" % name)
        return texts, kind == JSON_TYPE or next(iter(files)).endswith(".json")

    def job(self) -> Job:
        """The job that the body describes, for the key in the URL. Raises InvalidConfig."""
        files, is_json = self.files()
        cluster = self.service.clusters.pair(self.args["cluster"])[0]
        user = self.user.name if self.user.known else None
        try:
            return load_job(files, str(self.key), user=user, is_json=is_json, bindings=self.get("bind", []),
                            tiers=self.service.tiers(self.service.clusters[self.args["cluster"]], self.auth),
                            docker_registry=cluster.docker_registry, evaluator=self.service.evaluator,
                            caller=self.request.caller, env=self.get("env", []))
        except InvalidConfig as error:
            hint = "" if is_json else _misread(next(iter(files.values())))
            raise InvalidConfig(*error.messages, *([hint] if hint else []), **error.details) from None

    def json_body(self) -> Any:
        """The body as JSON. Raises BadRequest, UnsupportedMedia."""
        kind, _ = parse_content_type(self.request.headers.get("content-type", JSON_TYPE))
        if kind not in (JSON_TYPE,
                        "application/x-www-form-urlencoded") or "content-encoding" in self.request.headers:
            raise UnsupportedMedia("the body has to be application/json")
        return parse_json(self.request.body) if self.request.body.strip() else {}

    def start(self, kind: str, total: int, work: Callable[[Operation], Any],
              alone: bool = False) -> Operation:
        """Begin an operation in the place that was taken before the handler ran."""
        key = str(self.key) if "name" in self.args else "/".join(self.args.values())
        slot, self.slot = self.slot, None
        operation = Operation(kind, key, self.user.name, total, self.owner)
        operation.needs = (self.request.route.access, self.args.get("role"))
        started = self.service.operations.start(operation, work, slot, alone)
        self.began = True
        return started

    @property
    def owner(self) -> Optional[str]:
        """A hash of the forwarded credentials, which only the scheduler can check; None where users are known
        here."""
        return hash_token(self.auth) if self.auth is not None else None

    def await_operation(self, operation: Operation, answer: Callable[[], Response]) -> Union[Response, Later]:
        """`answer` now, or, where the caller waits, when the operation has ended or the time is up."""
        seconds = self.get("wait")
        if not seconds or operation.state != "running":
            return answer()
        def ready() -> Optional[Response]:
            return answer() if operation.state != "running" else None
        return Later(operation, seconds, with_last_words(self, operation, ready), answer, self.take_place())

    def take_place(self) -> Callable[[], None]:
        """The place among those who wait that was taken for this call, or a new one; as what gives it
        back."""
        place, self.place = self.place, None
        return place or self.service.waits.take(self.request.caller)

    def told(self, status: int, verdict: Verdict, headers: Iterable[Tuple[str, str]],
             fields: Json) -> Response:
        """The answer to a write that was waited for: `status` or 200 where it is reached, 202 where it is
        under way, 409 where it cannot be reached any more. No 5xx, which `curl --retry` would repeat."""
        more = dict(fields, reached=bool(verdict.reached), progress=verdict.progress, **verdict.fields)
        if verdict.reached is False:
            return self.service.refuse(Conflict(verdict.text, code=verdict.code, **more), self.request)
        if "name" in self.args:
            more = dict({"count": 1, "job": str(self.key)}, **more)
        if verdict.reached is None:
            return self.success(202, headers, **dict(more, why=verdict.text))
        return self.success(201 if status == 201 else 200, headers, **more)

    def operated(self, operation: Operation, tell: Callable[[], Json] = lambda: {},
                 **fields: Any) -> Union[Response, Later]:
        """The answer to a call that began an operation. tell: further fields, as they are when it is
        answered."""
        headers = [("Location", "/alpha/operations/" + operation.id)]

        def answer() -> Response:
            more = dict(fields, operation=operation.to_plain(), **tell())
            if not self.get("wait"):
                return self.success(202, headers,
                        **more) if "name" not in self.args else self.job_success(202, headers, **more)
            state, steps = operation.state, list(operation.steps)
            text = "; ".join(operation.errors) or (steps[-1]["text"] if steps else "not begun yet")
            known = {"endings": operation.result["endings"]} if "endings" in operation.result else {}
            return self.told(202, Verdict(
                {"running": None, "succeeded": True}.get(state, False), operation.done, operation.failed,
                operation.total,
                text if operation.errors or state == "running" else "the operation was " + state,
                operation.result.get("code") or "OPERATION_" + state.upper(), known), headers, more)
        return self.await_operation(operation, answer)

    def outcome(self, status: int, watched: Any, ask: Callable[[], Any], judge: Callable[[Any], Verdict],
                headers: Iterable[Tuple[str, str]] = (), tell: Callable[[Any], Json] = lambda answer: {},
                **fields: Any) -> Union[Response, Later]:
        """The answer to a write, after what comes of it where the caller waits.

        watched: names what is asked; all that wait for the same share one question a period. tell: further
        fields from what was last answered."""
        seconds = self.get("wait")
        if not seconds:
            return self.job_success(status, headers, **fields)
        began = time.monotonic()
        latest = Verdict(None, text="not known yet")

        def ready_after(poll: Poll) -> Callable[[], Optional[Response]]:
            def ready() -> Optional[Response]:
                nonlocal latest
                answer = poll.answer
                if poll.asked <= began or answer is None:
                    return None         # what was asked before this caller came is older
                if isinstance(answer, AuroraError):
                    latest = latest._replace(text="; ".join(answer.messages))
                    return self.service.refuse(answer, self.request) if answer.http < 500 else None
                latest = judge(answer)
                fields.update(tell(answer))
                return self.told(status, latest, headers,
                                 fields) if latest.reached is not None or latest.stuck else None
            return ready
        place = self.take_place()
        made: Later = self.service.watched.watch(
            ("outcome", self.args["cluster"], watched, self.auth), lambda: Poll(
                self.service.runner, ask, self.service.poll_interval),
            lambda poll: Later(poll, seconds, with_last_words(self, poll, ready_after(poll)),
                               lambda: self.told(status, latest, headers, fields), place), counted=False)
        return made


def _misread(body: str) -> str:
    """What a body that is no configuration looks like."""
    text = body.strip()
    if text[:1] in "{[" and text[-1:] in "}]":
        return "the body looks like JSON, which takes Content-Type: application/json"
    if re.fullmatch(r"@?[\w./~\-]{1,255}\.(aurora|json)", text, re.ASCII):
        return "the body looks like the name of a file; curl sends the file with --data-binary @%s" % (
            text.lstrip("@"))
    if "\n" not in text and len(text) > 60:
        return "the body is one single line: curl -d drops line ends, --data-binary keeps them"
    return ""


# --- the service --------------------------------------------------------------------------------------------


class Readiness(Source):
    """Whether schedulers answer, for /ready: asked beside the semaphores, all at once, each in a thread of
    its own, so that neither busy slots nor dead clusters hold up the answer; a scheduler that has just
    answered anybody is not asked. From any thread; _lock guards _states and _asking."""
    FRESH = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._states: Dict[Scheduler, Tuple[float, Optional[Failure]]] = {}
        self._asking: Set[Scheduler] = set()

    def look(self, schedulers: Iterable[Scheduler]) -> None:
        """Begin to ask those of which nothing new is known."""
        for scheduler in schedulers:
            with self._lock:
                if scheduler in self._asking or time.monotonic() - self._known(scheduler)[0] < self.FRESH:
                    continue
                self._asking.add(scheduler)
            try:
                threading.Thread(target=self._ask, args=(scheduler,), name="readiness", daemon=True).start()
            except RuntimeError:
                self._note(scheduler, Overloaded("no thread could be started to ask"))

    def _ask(self, scheduler: Scheduler) -> None:
        try:
            problem = scheduler.probe(5.0)
        except Exception as error:      # a defect of ours is no readiness
            problem = AuroraError("an internal error: %s" % type(error).__name__)
        self._note(scheduler, problem)

    def _note(self, scheduler: Scheduler, problem: Optional[Failure]) -> None:
        with self._lock:
            self._states[scheduler] = (time.monotonic(), problem)
            self._asking.discard(scheduler)
        self.changed()

    def _known(self, scheduler: Scheduler) -> Tuple[float, Optional[Failure]]:
        """When a scheduler was last heard of, by us or by any caller, and what was wrong with it. With the
        lock held."""
        when, problem = self._states.get(scheduler, (-math.inf, None))
        return (scheduler.answered, None) if scheduler.answered >= when else (when, problem)

    def state(self, scheduler: Scheduler) -> Optional[Json]:
        """What is known of a scheduler; None while it is being asked and nothing new is."""
        with self._lock:
            when, problem = self._known(scheduler)
            asking = scheduler in self._asking
        if time.monotonic() - when > self.FRESH + 1.0:
            return None if asking else {"ready": False, "code": "NOT_READY", "errors": ["not asked yet"]}
        if problem is not None:
            return {"ready": False, "code": problem.code, "errors": problem.messages}
        return {"ready": True, "leader": scheduler.leader}


class Waits:
    """Places for those who wait for an outcome, a quarter of them for one caller. _lock guards _taken."""

    def __init__(self, limits: Dict[str, float]) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._taken: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        """How many are taken."""
        return sum(self._taken.values())

    def take(self, caller: str) -> Callable[[], None]:
        """A place; what gives it back, once. Raises Overloaded."""
        most = int(self.limits["waits"])
        share = max(1, most // 4)
        with self._lock:
            if self.count >= most or self._taken[caller] >= share:
                raise Overloaded("%d callers wait for an outcome already, %d may; %d for one caller" % (
                    self.count, most, share), retry_after=10)
            self._taken[caller] += 1
        given = threading.Lock()

        def give() -> None:
            if given.acquire(blocking=False):
                with self._lock:
                    self._taken[caller] -= 1
                    if not self._taken[caller]:
                        del self._taken[caller]
        return give


class Watched:
    """What is watched, each thing by one Poll however many watch it. For any thread; _lock guards _polls."""

    def __init__(self, limits: Dict[str, float]) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._polls: Dict[Any, Poll] = {}

    @property
    def count(self) -> int:
        """How many watch."""
        return sum(each.waiters for each in list(self._polls.values()))

    def watch(self, key: Any, make: Callable[[], Any], use: Callable[[Any], Any],
              counted: bool = True) -> Any:
        """What `use` makes of the poll of a watched thing, and listens to it; `make` makes the poll on first
        use. counted: it takes a place among the watchers. Raises Overloaded."""
        if counted and self.count >= self.limits["watchers"]:
            raise Overloaded("%d streams are open already" % self.limits["watchers"], retry_after=10)
        with self._lock:
            found: Any = self._polls.get(key)
            used = use(found) if found is not None else None
            if used is None or not used.listening:      # there is none, or it has just ended
                self._polls = {k: p for k, p in self._polls.items() if not p.ended}
                found = self._polls[key] = make()
                used = use(found)
                found.start(found.interval if found.delayed else 0.0)
            return used


class Reception(App):
    """What happens to a request before its handler and after it: its route, who asks and whether he may, how
    a failure looks, the lines that it leaves in the log.

    cors: origins that may write; hosts: further names of a server on loopback.
    """

    def __init__(self, access: Access, log: Callable[[str], None], access_log: bool, cors: Sequence[str],
                 hosts: Sequence[str], loopback: bool) -> None:
        self.access = access
        self.log = log
        self.access_log = access_log
        self.cors = frozenset(cors)
        self.hosts = frozenset(each.lower() for each in hosts)
        self.loopback = loopback
        self._last_host = ""            # one that was looked at and found good
        self.metrics = Metrics()

    def prepare(self, request: Request) -> None:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            routes, arguments = _match(request.path)
            request.args = arguments
            if method == "OPTIONS":
                request.route = routes
                return
            chosen = routes.get(method)
            if chosen is None:
                if method not in METHODS + ("PATCH", "TRACE", "CONNECT"):
                    raise NotImplementedHere("the method %s is not implemented" % method)
                raise MethodNotAllowed("%s is not possible here; possible: %s" % (method, _allowed(routes)),
                                       headers=[("Allow", _allowed(routes))])
            request.route = chosen
        except AuroraError as error:
            request.route = error
            if method == "OPTIONS" and request.path == "*":
                request.route = {each: None for each in ("GET", "PUT", "POST", "DELETE")}
            return
        plain = not chosen.is_stream and not request.head.length
        if plain and chosen.method == "GET" and chosen.access == "read":
            with contextlib.suppress(BadRequest):
                if all(name != "wait" for name, _ in request.query) and "prefer" not in request.headers:
                    request.share = self._question(request, request.raw_query)

    @staticmethod
    def _question(request: Request, query: str) -> Tuple[Any, ...]:
        """What makes two reads the same: they get the same answer. For reads without a body, which could
        differ."""
        headers = request.headers
        return (request.path, query, headers.get("authorization"), headers.get("host"), headers.get("origin"),
                request.certificate)

    def admit(self, request: Request) -> None:
        if isinstance(request.route, AuroraError):
            raise request.route
        self._check_origin(request)
        if isinstance(request.route, Route):
            self._identify(request, request.route)

    def is_quick(self, request: Request) -> bool:
        return not isinstance(request.route, Route) or request.route.quick

    def _check_origin(self, request: Request) -> None:
        """Browsers send foreign pages' writes with an Origin, and rebound names with a foreign Host."""
        host = request.headers.get("host", "")
        if "origin" not in request.headers and host == self._last_host:
            return
        name = re.sub(r":\d*$", "", host).lower()
        if self.loopback and host and name not in ("localhost", "127.0.0.1",
                                                   "[::1]") and name not in self.hosts:
            raise Misdirected("the host %r is not this server's; --host-name NAME adds one" % host[:80])
        self._last_host = host
        origin = request.headers.get("origin")
        if origin is None or request.method in ("GET", "HEAD", "OPTIONS") or origin in self.cors:
            return
        if origin not in ("http://" + host, "https://" + host):
            raise Forbidden("requests from the origin %r may not change anything here; --cors ORIGIN allows "
                            "one" %
                            origin[:80])

    def _identify(self, request: Request, chosen: Route) -> str:
        """Who asks, and whether they may; the level that it takes. Raises Unauthorized, Forbidden."""
        if not chosen.path.startswith("/alpha/") or chosen.name == "get_version":
            request.user = ANONYMOUS
            return "read"
        request.user = self.access.user(request)
        # a forwarded name is only what somebody says of himself
        if request.user.known and request.authorization is None:
            request.caller = "user " + request.user.name
        if not chosen.judges:
            self.require(request.user, chosen.access, request.args.get("role"))
            return chosen.access
        level = self.rpc_access(request.args["method"]) if "method" in request.args else chosen.access
        self.require(request.user._replace(roles=("*",)), level, None)
        return level

    @staticmethod
    def require(user: User, level: str, role: Optional[str]) -> None:
        """Raises Forbidden where the user may not act at that level on that role."""
        if not user.may(level, role):
            raise Forbidden("%s may not do this: it needs %s access%s" % (
                user.name, level, " to " + ("role " + role if role else "all roles") if level != "read"
                else ""))

    @staticmethod
    def rpc_access(method: str) -> str:
        """The level that a Thrift method takes. Raises NotFound."""
        try:
            return api.method(method).access
        except KeyError:
            raise no_such("Thrift method", method, api.method_names) from None

    @staticmethod
    def key_of(request: Request) -> Optional[str]:
        """The job, role, cluster or hosts that a request's path names."""
        return "/".join(text for name, text in request.args.items() if name != "id") or None

    def refuse(self, error: Failure, request: Optional[Request] = None) -> Response:
        return error_response(error, self.key_of(request) if request is not None else None)

    def dress(self, request: Request, response: Response) -> Response:
        if "pretty" not in request.raw_query or response.content_type != JSON_TYPE or not response.body or (
                not any(name == "pretty" and value in ("1", "true") for name, value in request.query)):
            return response
        plain = json.loads(response.body.decode())
        return Response(response.status, body=(json.dumps(plain, indent=2) + "\n").encode(),
                        headers=response.headers,
                        close=response.close, code=response.code)

    def warn(self, text: str) -> None:
        self.log("warning: " + text)

    def broken(self, error: Exception, request_id: str = "-") -> None:
        self.log("error id=%s %s: %s at %s" % (request_id, type(error).__name__, error, _place(error)))

    def extra_headers(self, request: Request) -> Sequence[Tuple[str, str]]:
        origin = request.headers.get("origin")
        if origin is None or origin not in self.cors:
            return (("Vary", "Origin"),) if self.cors else ()
        return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"),
                ("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, DELETE"),
                ("Access-Control-Max-Age", "600"),
                ("Access-Control-Allow-Headers",
                 "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, "
                 "Last-Event-ID, Prefer, X-Request-Id"),
                ("Access-Control-Expose-Headers",
                 "ETag, Idempotency-Replayed, Link, Location, Retry-After, X-Request-Id, "
                 "X-Log-Left, X-Log-Next, X-Log-Offset, X-Log-Run, X-Log-Size, X-Log-Source, X-Log-Task"))

    def audit(self, request: Request, outcome: Any, shards: Sequence[int] = ()) -> None:
        """The line that every write leaves, one that is refused too."""
        request.audited = True
        self.log("audit id=%s user=%s peer=%s did=%s path=%s shards=%s key=%s outcome=%s" % (
            request.id, request.user.name if request.user else "-", request.peer, request.route.name,
            (request.head.target if request.route.access == "logs" else request.path)[:512],
            ",".join(map(str, shards))[:200] or "-", self.key_of(request) or "-", outcome))

    def finished(self, request: Optional[Request], peer: str, response: Response, size: int) -> None:
        chosen = request.route if request and isinstance(request.route, Route) else None
        named = chosen.name if chosen else "-"
        method = request.method if request and request.method in METHODS else "-"
        seconds = time.monotonic() - request.started if request else 0.0
        self.metrics.answered(named, method, response.status, seconds)
        if response.status >= 400 and response.code:
            self.metrics.count("aurora_rest_refused_total", response.code)
        if request and chosen and chosen.access != "read" and not request.audited and chosen.leaves_a_line:
            self.audit(request, response.code or response.status)
        if self.access_log:
            user = request.user.name if request and request.user else "-"
            path = request.path if request else "-"
            self.log("access id=%s peer=%s user=%s %s %s route=%s status=%d bytes=%d ms=%.1f" % (
                request.id if request else "-", peer, user, method, path[:512], named, response.status, size,
                seconds * 1000))


class Service(Reception):
    """All that handlers share: clusters, evaluator, operations, watchers, limits, who may do what.

    A request goes through `answer`, which reads from top to bottom: who asks and whether he may, stopping,
    parameters, body, If-Match; then, once for an Idempotency-Key, `run`: places that it needs, the handler or
    what is remembered; and a read that waits for a change. runner: the HttpServer, for its timers and
    threads; set when there is one.
    """

    def __init__(self, clusters: Clusters, evaluator: Evaluator, access: Access = Access(),
                 limits: Optional[Dict[str, float]] = None, log: Callable[[str], None] = lambda line: None,
                 poll_interval: float = 1.0, cors: Sequence[str] = (), hosts: Sequence[str] = (),
                 loopback: bool = True, access_log: bool = True, observer: Optional[Observer] = None,
                 page: str = "full") -> None:
        super().__init__(access, log, access_log, cors, hosts, loopback)
        self.page = page                # what the page at / may do: full, read, or off for no page
        self.clusters = clusters
        self.evaluator = evaluator
        self.observer = observer or Observer()
        self.limits = dict({name: limit.default for name, limit in LIMITS.items()}, **(limits or {}))
        self.poll_interval = poll_interval
        self.clock: Callable[[], float] = time.time     # the schedulers' clock, for uptimes
        self.started = time.time()
        self.operations = Operations(int(self.limits["operations"]), int(self.limits["kept_operations"]))
        self.operations.log = log
        self.runner: Any = None
        self.readiness = Readiness()
        self.waits = Waits(self.limits)
        self.watched = Watched(self.limits)
        self.memory = Memory(self.limits["remembered"])
        self.idempotency = Idempotency(self)
        self.lost_lines: Callable[[], int] = lambda: 0      # of the log
        self.options: Json = {}         # those of the command line, where that started it
        self._lock = threading.Lock()       # guards _tiers
        self._tiers: collections.OrderedDict[Any, Tuple[float, Json]] = collections.OrderedDict()
        declare_metrics(self)
        for scheduler in clusters.schedulers():
            scheduler.observe = partial(self._observe_call, scheduler)

    def used(self) -> Dict[str, float]:
        """How much is in use of each limit that is an amount."""
        figures = self.runner.figures() if self.runner else {}
        used: Dict[str, float] = {name: figures[name] for name in (
            "connections", "threads", "bodies", "unsent") if name in figures}
        return dict(used, queue=figures.get("queued", 0), watchers=self.watched.count, waits=self.waits.count,
                    operations=self.operations.running, kept_operations=len(self.operations.all()),
                    remembered=self.memory.size, idempotency_bytes=self.idempotency.answers.size)

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        return bool(self.runner and self.runner.draining)

    def handle(self, request: Request) -> Union[Response, Later, Stream]:
        chosen = request.route
        try:
            if isinstance(chosen, AuroraError):
                raise chosen
            self._check_origin(request)
            if isinstance(chosen, dict):
                return Response(204, body=b"", headers=[("Allow", _allowed(chosen))])
            return self.answer(request, chosen)
        except AuroraError as error:
            return self.refuse(error, request)
        except Exception as error:      # a defect of ours: one line, and no traceback to the caller
            self.broken(error, request.id)
            return self.refuse(AuroraError("an internal error; the log has more under the request id"),
                               request)

    def answer(self, request: Request, chosen: Route) -> Union[Response, Later, Stream]:
        """The answer to a request for a route. Raises AuroraError."""
        level = self._identify(request, chosen)
        if self.draining and chosen.method in _WRITES:
            raise ShuttingDown("this server is stopping; try another")
        call = Call(self, request)
        call.read_params()
        if request.body and not chosen.body:
            raise BadRequest("this call takes no body")
        if "if-match" in request.headers and chosen.writes:
            self._hold(call, chosen, request.headers["if-match"])
        given = request.headers.get("idempotency-key")
        if given is not None and chosen.method in _WRITES and level != "read":
            return self.idempotency.run(given, call, lambda: self.run(call, chosen, level))
        answer = self.run(call, chosen, level)
        etag = request.headers.get("if-none-match")
        if chosen.method == "GET" and call.get("wait") and etag and isinstance(answer, Response) and (
                answer.status == 200 and etag_matches(etag, answer.etag)):
            return self._block(request, call, chosen, answer)
        return answer

    def _hold(self, call: Call, chosen: Route, wanted: str) -> None:
        """If-Match: the thing has to be as one of its reads told it. Raises PreconditionFailed (RFC 9110
        13.1.1)."""
        if not chosen.guards:
            raise PreconditionFailed("nothing that this changes has an ETag, so that If-Match cannot hold")
        etag = None
        for name in chosen.guards:
            with contextlib.suppress(NotFound):
                found = _routes_by_name(len(ROUTES))[name].handler(call).etag
                etag = etag or found
                if etag_matches(wanted, found, weak=False):
                    return
        raise PreconditionFailed("it is no longer as If-Match says", etag=etag)

    def run(self, call: Call, chosen: Route, level: str = "read") -> Union[Response, Later, Stream]:
        """What the handler answers, with the places that it needs, and a line in the audit trail for a
        write."""
        outcome: Any = "failed"
        try:
            # What can refuse is asked before the handler does anything.
            if chosen.operates == "always" or chosen.operates and chosen.operates in call.params:
                call.slot = None if call.get("dry_run") else self.operations.take()
            if chosen.method != "GET" and call.get("wait"):
                call.place = self.waits.take(call.request.caller)
            answer = self._remembered(call, chosen) if chosen.remembered else chosen.handler(call)
            outcome = answer.status if isinstance(answer, Response) else 200 if isinstance(answer,
                    Stream) else "waiting"
            return answer
        except DryRun as dry:
            outcome = "dry run"
            return call.success(200, dry_run=True, would=dry.would)
        except AuroraError as error:
            outcome = error.code
            if isinstance(error, JobUpdating) and "update" not in error.details:
                with contextlib.suppress(AuroraError):
                    door: Any = call.session
                    active = active_update(door, call.key).key.id
                    error.details["update"] = plain_update(call.key.cluster,
                                                           update_details(door, call.key, active))
            raise
        finally:
            if call.slot:
                call.slot.give()
            if call.place:
                call.place()
            if chosen.leaves_a_line and level != "read":
                self.audit(call.request, outcome, call.shards)

    def _remembered(self, call: Call, chosen: Route) -> Response:
        """The answer to a read that is remembered. The scheduler is asked every time; where it replies to all
        that the last run asked with the bytes that it replied then, the answer is that of the last run, and
        nothing is decoded."""
        question = (call.request.path, self._lasting_query(call.request), call.auth)
        kept = self.memory.take(question)
        replay = Replay(self.clusters[call.args["cluster"]], self.memory, call.auth)
        held = kept.size if kept else 0
        try:
            if kept and replay.repeats(kept.asks):
                self.metrics.count("aurora_rest_repeated_answers_total")
                answer: Response = kept.answer
            else:
                call.replay = replay
                answer = chosen.handler(call)
                kept = None if replay.failed else Kept(question, replay.asked, answer)
        finally:
            call.replay = None
            self.memory.free(held + replay.claimed)
        if kept:
            self.memory.keep(question, kept)
        return answer

    @staticmethod
    def _lasting_query(request: Request) -> str:
        """The query without what only says how long to wait."""
        query = request.raw_query
        return "&".join(pair for pair in query.split("&")
                        if not pair.startswith("wait=")) if "wait=" in query else query

    def _block(self, request: Request, call: Call, chosen: Route, answer: Response) -> Later:
        """A read that waits for a change: all that ask for the same wait on one poll."""
        now = time.monotonic()

        def wait(poll: Poll) -> Later:
            def ready() -> Optional[Response]:
                # what was asked before this caller came is older
                found = poll.answer if poll.asked > now else None
                if isinstance(found, AuroraError) and found.http < 500:
                    found = self.refuse(found, request)    # the thing itself is gone: a change too
                return found if isinstance(found,
                        Response) and found.status < 500 and found.etag != answer.etag else None
            return Later(poll, call.get("wait"), ready, lambda: answer)
        made: Later = self.watched.watch(self._question(request, self._lasting_query(request)), lambda: Poll(
            self.runner, lambda: self.run(call, chosen), self.poll_interval, delayed=True), wait)
        return made

    def stream(self, call: Call, key: Any, make: Callable[[], TaskChanges]) -> Stream:
        """The events of a watched thing, after the caller's Last-Event-ID."""
        last, whole = call.request.headers.get("last-event-id", ""), call.get("snapshot", True)
        made: Stream = self.watched.watch(
            (*key, call.auth), lambda: Events(self.runner, make(), self.poll_interval),
            lambda events: Stream(events, events.since, events.mark(last, whole)))
        return made

    def tiers(self, scheduler: Scheduler, authorization: Optional[str] = None) -> Json:
        """The scheduler's tiers as plain JSON, asked for at most every thirty seconds."""
        asked = (scheduler, authorization)      # by credentials: an answer to one caller is none to another
        with self._lock:
            known = self._tiers.get(asked)
        if known is None or time.monotonic() - known[0] > 30:
            response = scheduler.call("getTierConfigs", authorization=authorization)
            plain = response.result.getTierConfigResult.to_plain()
            # In Aurora's own order of preference: preemptible last among those that match is what its client
            # picks.
            order = ("preferred", "preemptible", "revocable")
            plain["tiers"].sort(key=lambda tier: order.index(tier["name"]) if tier["name"] in order else 3)
            known = (time.monotonic(), plain)
            with self._lock:
                self._tiers[asked] = known
                if len(self._tiers) > 256:
                    self._tiers.popitem(last=False)
        return known[1]

    def beat(self) -> None:
        """Every fifteen seconds: let idle evaluators and what is no longer asked for go."""
        self.runner.call_later(15.0, self.beat)
        self.memory.forget(300.0)
        self.runner.run_in_worker(self.evaluator.shrink)

    def _observe_call(self, scheduler: Scheduler, method: str, outcome: str, seconds: float) -> None:
        self.metrics.count("aurora_rest_scheduler_calls_total", scheduler.name or "", method, outcome)
        self.metrics.observe("aurora_rest_scheduler_call_duration_seconds", seconds, scheduler.name or "")


def _allowed(routes: Iterable[str]) -> str:
    methods = set(routes) | {"OPTIONS"} | ({"HEAD"} if "GET" in routes else set())
    return ", ".join(sorted(methods))


def declare_metrics(service: Service) -> None:
    """The metrics there are: those that are counted, and those that are read when they are asked for."""
    metrics = service.metrics
    for name, kind, text, *labels in (
            ("http_requests_total", "counter", "HTTP requests answered.", "route", "method", "code"),
            ("http_request_duration_seconds", "histogram", "Time to answer a request.", "route"),
            ("refused_total", "counter", "Requests refused, by reason.", "reason"),
            ("repeated_answers_total", "counter", "Reads whose replies were the remembered ones."),
            ("scheduler_calls_total", "counter", "Thrift calls.", "cluster", "method", "outcome"),
            ("scheduler_call_duration_seconds", "histogram", "Time of a Thrift call.", "cluster")):
        metrics.declare("aurora_rest_" + name, kind, text, *labels)

    def server(name: str) -> Callable[[], float]:
        return lambda: service.runner.figures()[name] if service.runner else 0.0

    def by_cluster(figure: Callable[[Scheduler], float]) -> Callable[[], Any]:
        return lambda: [({"cluster": each.name or ""}, figure(each))
                        for each in service.clusters.schedulers()]

    def by_reason(label: str, counts: Callable[[], Dict[str, int]]) -> Callable[[], Any]:
        return lambda: [({label: each}, count) for each, count in sorted(counts().items())]
    read: List[Tuple[str, str, Callable[[], Any]]] = [
        ("info", "The version.", lambda: [({"version": __version__}, 1)]),
        ("in_flight_requests", "Requests being handled.", server("in_flight")),
        ("queued_requests", "Requests waiting for a thread.", server("queued")),
        ("connections", "Open connections.", server("connections")),
        ("watchers", "Event streams and blocking reads.", lambda: service.watched.count),
        ("waits", "Callers that wait for an outcome.", lambda: service.waits.count),
        ("log_lines_lost_total", "Log lines that nobody read in time.", lambda: service.lost_lines()),
        ("evaluator_isolation", "Layers that shut configurations in, once one was evaluated.", lambda: [
            ({"layer": each}, float(each in (service.evaluator.isolation or ()))) for each in LAYERS]),
        ("operations_running", "Operations running.", lambda: service.operations.running),
        ("operations_total", "Operations ended, by kind and outcome.", lambda: [
            (dict(zip(("kind", "outcome"), each.rsplit(" ", 1))), count)
            for each, count in sorted(service.operations.outcomes.items())]),
        ("config_evaluations_total", "Configurations evaluated, by outcome.",
         by_reason("outcome", lambda: service.evaluator.outcomes)),
        ("evaluator_processes", "Evaluator processes.", lambda: service.evaluator.processes),
        ("scheduler_waiting_calls", "Thrift calls waiting for a slot.",
         by_cluster(lambda each: each.semaphore.waiting)),
        ("remembered_bytes", "Replies remembered, with their answers.", lambda: service.memory.size),
        ("scheduler_retries_total", "Thrift calls sent again.", by_cluster(lambda each: each.retries)),
        ("scheduler_leader_changes_total", "Changes of the leader.",
         by_cluster(lambda each: each.leader_changes)),
        ("scheduler_circuit_breaks_total", "Times the circuit was opened.",
         by_cluster(lambda each: each.network.circuit_breaks)),
        ("refused_connections_total", "Requests and connections refused by the server, by reason.",
         by_reason("reason", lambda: service.runner.refusals if service.runner else {}))]
    for name, text, figure in read:
        metrics.gauge("aurora_rest_" + name, text, figure)
    for name in process_figures():
        metrics.gauge(name, "Of this process.", partial(lambda name: process_figures().get(name, 0.0), name))
    metrics.gauge("process_start_time_seconds", "When this process started, in Unix time.",
                  lambda: service.started)


# --- handlers: server ---------------------------------------------------------------------------------------


@route("GET", "/alpha/version", "server", quick=True, gives="Version", a200="the version")
def get_version(call: Call) -> Any:
    """The version of this service."""
    return _version_response()


@lru_cache(maxsize=1)
def _version_response() -> Response:
    return Response(200, {"status": "success", "version": __version__})


@route("GET", "/health", "server", quick=True, gives="Health", a200="alive")
def get_health(call: Call) -> Any:
    """Whether this process answers; says nothing about schedulers."""
    return call.success(version=__version__, uptime=int(time.time() - call.service.started))


@route("GET", "/ready", "server", quick=True, gives="Ready",
       a200="every cluster has a leader that answers, or at least one where there are several",
       a503="stopping, or no scheduler answers")
def get_ready(call: Call) -> Any:
    """Whether this server can do its work: which clusters have a leader that answers. Known within a
    second."""
    service = call.service
    if service.draining:
        raise ShuttingDown("this server is stopping")
    schedulers = service.clusters.schedulers()
    service.readiness.look(schedulers)

    def answer(states: Sequence[Optional[Json]]) -> Response:
        late = {"ready": False, "code": "SCHEDULER_TIMEOUT", "errors": ["no answer within a second"]}
        clusters = {each.name or "default": state or late for each, state in zip(schedulers, states)}
        isolation = service.evaluator.isolation
        if not any(state["ready"] for state in clusters.values()):
            return service.refuse(NoLeader("no scheduler answers", code="NOT_READY", clusters=clusters,
                                           isolation=isolation))
        return call.success(clusters=clusters, isolation=isolation)

    def found() -> List[Optional[Json]]:
        return [service.readiness.state(each) for each in schedulers]

    def ready() -> Optional[Response]:
        states = found()
        return answer(states) if all(states) else None
    return Later(service.readiness, 0.8, ready, lambda: answer(found()))


@route("GET", "/metrics", "server", quick=True, gives="text/plain", a200="Prometheus text format")
def get_metrics(call: Call) -> Any:
    """Counters, histograms and gauges for Prometheus."""
    return Response(200, body=call.service.metrics.text().encode(),
                    content_type="text/plain; version=0.0.4; charset=utf-8")


@route("GET", "/openapi.json", "server", quick=True, gives=JSON_TYPE, a200="OpenAPI 3.1")
def get_openapi(call: Call) -> Any:
    """This API's description, made from the route table."""
    return _openapi_response()


@route("GET", "/alpha/clusters", "watch", gives="ClusterList", a200="clusters")
def list_clusters(call: Call) -> Any:
    """The known clusters, and the leader of each as last seen."""
    names = call.service.clusters.names()
    urls = {scheduler: list(cluster.urls) for cluster, scheduler in call.service.clusters.pairs()}
    schedulers = {name: call.service.clusters[name] for name in names}
    clusters = {name: {"leader": each.leader, "urls": urls[each]} for name, each in schedulers.items()}
    return call.success(count=len(clusters), clusters=clusters)


@route("GET", "/alpha/roles/{cluster}", "watch", remembered=True, gives="RoleList",
       a200="roles with job counts")
def list_roles(call: Call) -> Any:
    """The roles of a cluster with their numbers of jobs and cron jobs."""
    summaries = call.read("getRoleSummary").result.roleSummaryResult.summaries or ()
    roles = {each.role: {"jobs": each.jobCount, "cron": each.cronJobCount}
             for each in sorted(summaries, key=lambda each: each.role)}
    return call.success(count=len(roles), roles=roles)


@route("GET", "/alpha/tiers/{cluster}", "watch", remembered=True, gives="TierList", a200="tiers")
def list_tiers(call: Call) -> Any:
    """The tiers of a cluster and which is the default."""
    result = call.read("getTierConfigs").result.getTierConfigResult
    tiers = {each.name: {name: each.settings.get(name, "").lower() == "true"
                         for name in ("preemptible", "revocable")}
             for each in sorted(result.tiers, key=lambda each: each.name)}
    return call.success(count=len(tiers), default=result.defaultTierName, tiers=tiers)


# --- handlers: watch ----------------------------------------------------------------------------------------


def _matches(key: str, globs: Dict[str, Callable[[str], bool]]) -> bool:
    """Whether role/environment/name matches the globs that there are for its parts."""
    return all(is_wanted(part) for part, is_wanted in zip(key.split("/"), (
        globs.get(name, bool) for name in Key._fields[1:])))


def _wanted(call: Call, cluster: str, summary: Any) -> bool:
    """Whether a job's summary passes the filters tier=, has=, metadata= and image=."""
    plain, config = _summary(cluster, summary), summary["job"].get("taskConfig", {})
    if call.get("tier") and not glob(call.get("tier"))(plain["tier"]
            or "") or call.get("has") and not plain[call.get("has")]:
        return False
    known = {each["key"]: each.get("value", "") for each in config.get("metadata", ())}
    if not all(name in known and glob(value)(known[name]) for name, value in call.get("metadata", ())):
        return False
    return not call.get("image") or glob(call.get("image"))(_image(config.get("container", {})))


def _image(container: Any) -> str:
    """The image of a plain container, with its tag or id; "" for none."""
    image = container.get("docker", {}).get("image") or container.get("mesos", {}).get("image", {})
    if isinstance(image, str):
        return image
    image = image.get("docker") or image.get("appc") or {}
    return ":".join(filter(None, (image.get("name"), image.get("tag") or image.get("imageId"))))


_JOB_FILTERS = " tier has metadata image limit offset detail"


def _jobs_of(call: Call, scheduler: Any, cluster: str, role: Optional[str]) -> List[Any]:
    """The jobs of a cluster that pass the filters: keys, or with detail=1 Jobs."""
    named = {name: call.args.get(name) or call.get(name) for name in Key._fields[1:]}
    globs = {name: glob(pattern) for name, pattern in named.items() if pattern
             and not (name == "role" and role)}
    described = {"metadata", "image"} & set(call.params)
    if not described and not {"detail", "tier", "has"} & set(call.params):
        found = list_jobs(scheduler, role)
        return ["%s/%s" % (cluster, key) for key in found if not globs or _matches(key, globs)]
    summaries = [each for each in list_summaries(scheduler, role, "described summaries" if described
                                                 else "summaries")
                 # Those that the list without details has, too: getJobSummary also tells of jobs that have
                 # ended.
                 if each["job"].get("cronSchedule") or each.get("stats", {}).get("activeTaskCount")
                 or each.get("stats", {}).get("pendingTaskCount")]
    summaries = [each for each in summaries if (not globs or _matches(each["job"]["key"], globs))
                 and _wanted(call, cluster, each)]
    return [_summary(cluster, each) if call.get("detail") else "%s/%s" % (cluster, each["job"]["key"])
            for each in summaries]


def _job_list(call: Call, found: Sequence[Any], **fields: Any) -> Response:
    """A list of jobs, cut to size; numbered from 1 as the original does."""
    shown, headers = call.page(found)
    if len(shown) != len(found):
        fields["total"] = len(found)
    return call.success(200, headers, count=len(shown), jobs=dict(zip(map(str, itertools.count(1)), shown)),
                        **fields)


def _summary(cluster: str, summary: Any) -> Json:
    """A job in brief, as callers see it."""
    job, stats = summary["job"], summary.get("stats", {})
    config = job.get("taskConfig", {})
    active, pending = stats.get("activeTaskCount", 0), stats.get("pendingTaskCount", 0)
    return {"key": "%s/%s" % (cluster, job["key"]), "instances": active + pending, "active": active,
            "pending": pending,
            "finished": stats.get("finishedTaskCount", 0), "failed": stats.get("failedTaskCount", 0),
            "tier": config.get("tier"), "service": config.get("isService", False), "cron": _cron(summary)}


def _cron(summary: Any) -> Optional[Json]:
    """When a job runs by itself, from its summary; None if it is no cron job."""
    job = summary["job"]
    if not job.get("cronSchedule"):
        return None
    policy = api.CronCollisionPolicy.name_of(job.get("cronCollisionPolicy") or 0)
    return {"schedule": job["cronSchedule"], "next_run": summary.get("nextCronRunMs"),
            "instances": job.get("instanceCount", 0), "collision_policy": policy}


@route("GET", "/alpha/jobs/{cluster}/{role}", "watch", remembered=True, params="environment name" +
       _JOB_FILTERS,
       gives="JobList", a200="job keys")
def list_role_jobs(call: Call) -> Any:
    """List the jobs of a role."""
    return _job_list(call, _jobs_of(call, call.scheduler, call.args["cluster"], call.args["role"]))


@route("GET", "/alpha/jobs/{cluster}", "watch", remembered=True, params="role environment name" +
       _JOB_FILTERS,
       gives="JobList", a200="job keys")
def list_cluster_jobs(call: Call) -> Any:
    """List the jobs of a cluster, or those whose role, environment and name match."""
    return _job_list(call, _jobs_of(call, call.scheduler, call.args["cluster"], None))


@route("GET", "/alpha/jobs/{cluster}/{role}/{environment}", "watch", remembered=True, params="name" +
       _JOB_FILTERS,
       gives="JobList", a200="job keys")
def list_environment_jobs(call: Call) -> Any:
    """List the jobs of a role in one environment."""
    return _job_list(call, _jobs_of(call, call.scheduler, call.args["cluster"], call.args["role"]))


@route("GET", "/alpha/jobs", "watch", params="cluster role environment name" + _JOB_FILTERS, gives="JobList",
       a200="job keys, and the clusters that did not answer")
def list_all_jobs(call: Call) -> Any:
    """List the jobs of all clusters, or of those whose name matches."""
    service = call.service
    names = [name for name in service.clusters.names() if glob(call.get("cluster", "*"))(name)]
    found: Dict[str, List[Any]] = {}
    unanswered: Dict[str, Json] = {}

    def look(name: str) -> None:
        try:
            found[name] = _jobs_of(call, Session(service.clusters[name], call.auth), name, None)
        except AuroraError as error:
            unanswered[name] = {"code": error.code, "errors": error.messages}
    threads = [threading.Thread(target=look, args=(name,), name="cluster", daemon=True) for name in names[1:]]
    try:
        for each in threads:
            each.start()
    except RuntimeError:
        raise Overloaded("no thread could be started to ask the clusters") from None
    for name in names[:1]:
        look(name)
    for each in threads:
        each.join()
    return _job_list(call, [job for name in names for job in found.get(name, ())],
                     **_some(unanswered=unanswered))


@reading
def _plain_task(cluster: str, job: str, task: Any) -> Json:
    """A plain task as callers see it."""
    assigned, names = task["assignedTask"], api.ScheduleStatus.names
    plain = {"id": assigned["taskId"], "job": job or "%s/%s" % (cluster, assigned["task"]["job"]),
             "instance": assigned.get("instanceId", 0),
             "state": names.get(task["status"], str(task["status"])),
             "host": assigned.get("slaveHost"), "ports": assigned.get("assignedPorts") or {},
             "failures": task.get("failureCount", 0), "ancestor": task.get("ancestorId"),
             "events": [{"time": event["timestamp"],
                         "state": names.get(event["status"], str(event["status"])),
                         "message": event.get("message")} for event in task.get("taskEvents", ())]}
    if task.get("reason"):
        plain["pending"] = task["reason"]
    return plain


def _cron_of(call: Call) -> Optional[Json]:
    """When the job runs, if it is a cron job."""
    wanted = "/".join(call.key[1:])
    return next((_cron(each) for each in list_summaries(call.scheduler, call.key.role)
                 if each["job"]["key"] == wanted), None)


def _require_job(call: Call) -> None:
    """Raises NotFound, with the nearest names, where the scheduler knows neither tasks nor template nor
    updates of the job."""
    key = call.key
    query = api.TaskQuery(jobKeys={key.thrift}, limit=1)
    response = call.read("getTasksWithoutConfigs", query, projection=projection("task states"))
    if not response.get("result", {}).get("scheduleStatusResult",
                                          {}).get("tasks") and _cron_of(call) is None and (
            not update_summaries(call.scheduler, api.JobUpdateQuery(jobKey=key.thrift, limit=1))):
        raise _no_job(call)


def _no_job(call: Call) -> Failure:
    key = call.key
    known = ["%s/%s" % (key.cluster, each) for each in list_jobs(call.scheduler, key.role)]
    return no_such("job", str(key), known)


@route("GET", "/alpha/job/{key}", "watch", remembered=True, params="logs", gives="JobStatus",
       a200="the job's tasks, statistics, cron schedule and active update")
def get_job(call: Call) -> Any:
    """Status of a job: its tasks by instance, with host, state and events; statistics; cron; the update in
    progress."""
    key, states = str(call.key), api.ScheduleStatus
    found = query_tasks(call.scheduler, call.key, reasons=True)
    configs = [task["assignedTask"].get("task", {}) for task in found[-1:]]
    service = any(config.get("isService", False) for config in configs)
    # a service is no cron job: only others cost a look at the role's templates
    cron = None if service else _cron_of(call)
    updates = find_updates(call.scheduler, api.JobUpdateQuery(
        jobKey=call.key.thrift, updateStatuses=set(api.ACTIVE_JOB_UPDATE_STATES)))
    if not found and cron is None and not updates:
        raise _no_job(call)
    counts = collections.Counter(task["status"] for task in found)
    waiting = sum(counts[each] for each in (states.INIT, *_NOT_PLACED))
    active = [_plain_task("", key, task) for task in found if is_active(task)]
    ended = [_plain_task("", key, task) for task in found if not is_active(task)]
    failing = failing_instances(found)
    words = failure_of(call, failing) if failing and call.get("logs", True) else {}
    if failing and call.get("logs", True) and call.replay:
        call.replay.failed = True       # it follows from more than the scheduler's replies, and from who asks
    return call.success(
        count=len(active), job=key, instances=len(active), active=len(active) - waiting, pending=waiting,
        finished=counts[states.FINISHED] + counts[states.KILLED], failed=counts[states.FAILED] +
        counts[states.LOST],
        tier=next((config.get("tier") for config in configs), None), service=service,
        stats={states.name_of(each): count for each,
               count in sorted(counts.items(), key=lambda pair: states.name_of(pair[0]))},
        cron=cron, update=plain_update(call.key.cluster, updates[0]) if updates else None,
        tasks={"active": active, "inactive": ended}, **words)


@route("GET", "/alpha/job/{key}/tasks", "watch", remembered=True,
       params="shards instances state host brief limit offset", gives="TaskList", a200="tasks")
def list_tasks(call: Call) -> Any:
    """The tasks of a job, filtered by instance, state and host."""
    found = query_tasks(call.scheduler, call.key, call.shards, call.get("state"), reasons=True)
    if not found:
        _require_job(call)
    if call.get("brief"):
        found = [dict(task, taskEvents=task.get("taskEvents", [])[-1:]) for task in found]
    tasks = [_plain_task("", str(call.key), task) for task in found]
    if call.get("host"):
        tasks = [task for task in tasks if any(glob(each)(task["host"] or "") for each in call.get("host"))]
    shown, headers = call.page(tasks)
    return call.success(200, headers, count=len(shown), total=len(tasks), tasks=shown)


@route("GET", "/alpha/job/{key}/config", "watch", remembered=True, gives="ConfigList",
       a200="configurations with their instances")
def get_config(call: Call) -> Any:
    """The running configuration, by instances that share it. Its ETag goes into If-Match of a write to the
    job."""
    if not call.running:
        _require_job(call)
        raise NotFound("job %s has no active instances" % (call.key,))
    groups = sorted(call.running, key=lambda pair: pair[1])
    return call.success(count=len(groups), configs=[
        {"instances": numbers, "config": plain_config(config)} for config, numbers in groups])


@route("GET", "/alpha/job/{key}/pending", "watch", remembered=True, params="limit offset",
       gives="PendingList",
       a200="reasons by task")
def list_pending(call: Call) -> Any:
    """Why tasks of the job are pending: which constraint or resource, per task."""
    reasons = pending_reasons(call.scheduler, api.TaskQuery(jobKeys={call.key.thrift}))
    if not reasons:
        _require_job(call)
    found = [{"id": task, "reason": reason, "reasons": [
        {"kind": kind, "what": what or None} for kind, _, what in (
            part.partition(": ") for part in reason.split(",") if part)]} for task,
            reason in sorted(reasons.items())]
    shown, headers = call.page(found)
    return call.success(200, headers, count=len(shown), pending=shown)


@route("GET", "/alpha/job/{key}/events", "watch", params="snapshot", gives="text/event-stream",
       a200="task, instance and update events")
def watch_job(call: Call) -> Any:
    """Events of a job as they happen: task, update, instance; resumes at Last-Event-ID."""
    _require_job(call)
    return call.service.stream(call, ("job", call.key), lambda: changes_of(call.scheduler, call.key))


@route("GET", "/alpha/events/{cluster}/{role}", "watch", params="snapshot", gives="text/event-stream",
       a200="task, instance and update events")
def watch_role(call: Call) -> Any:
    """Events of all jobs of a role as they happen."""
    cluster, role = call.args["cluster"], call.args["role"]
    return call.service.stream(call, ("role", cluster, role), lambda: TaskChanges(
        call.scheduler, cluster, lambda: api.TaskQuery(role=role), lambda: api.JobUpdateQuery(role=role)))


def _uptimes(call: Call) -> List[int]:
    tasks = query_tasks(call.scheduler, call.key, (), api.LIVE_STATES)
    if not tasks:
        _require_job(call)
    return uptimes(tasks, call.service.clock())


@route("GET", "/alpha/sla/{key}/uptime", "watch", params="percentile", gives="UptimeAnswer", a200="uptimes")
def get_uptime(call: Call) -> Any:
    """Uptime that a percentile of the instances reaches, by the aurora client's formula."""
    ups = _uptimes(call)
    return call.success(count=len(ups), uptime={
        "%g" % each: job_uptime(ups, each) for each in call.get("percentile") or SLA_PERCENTILES})


@route("GET", "/alpha/sla/{key}/up-count", "watch", params="duration:durations", gives="UpCountAnswer",
       a200="percentages")
def get_up_count(call: Call) -> Any:
    """Percent of the instances that have been up for a time, by the aurora client's formula."""
    ups = _uptimes(call)
    return call.success(count=len(ups), up_count={
        "%g" % each: round(up_count(ups, each), 2) for each in call.get("durations") or SLA_DURATIONS})


# --- handlers: logs and files -------------------------------------------------------------------------------
#
# Who follows gets events where he says Accept: text/event-stream, else text as it comes (curl -N). All that
# follow the same share a Feed. What takes its time is read in workers, piece by piece when the network took
# the last one, and holds no connection to an observer in between.

_FOLLOWED = 50          # instances that are followed at once


def _spot(call: Call) -> Spot:
    instance = int(call.args["instance"])
    return choose_task(find_tasks(call.session, call.key, [instance], call.service.clock), call.key, instance,
                       call.get("task"))


@route("GET", "/alpha/job/{key}/instances/{instance}/processes", "watch", "logs", "task runs",
       gives="ProcessList",
       a200="the task and its processes", a410="the sandbox was collected")
def get_processes(call: Call) -> Any:
    """The processes of an instance's task: state, run, times, exit status where it can be known, command
    line."""
    found = list_processes(call.service.observer, _spot(call), bool(call.get("runs")))
    return call.success(count=len(found["processes"]), **found)


class Follow(Source):
    """What one caller follows, one instance or many, as one source for one Stream, which calls `since`
    one thread at a time. named: each line says which instance it is of."""
    PIECE = 1 << 18

    def __init__(self, grep: Optional[str], events: bool, named: bool) -> None:
        super().__init__()
        self.grep = grep.encode() if grep else None
        self.events = events
        self.named = named
        self.followers: List[Follower] = []

    def deserted(self) -> None:
        for each in self.followers:
            each.leave()

    def since(self, mark: Any) -> Tuple[Optional[bytes], Any]:
        """The next piece of all; None when all have ended."""
        while True:
            entries: List[Entry] = []
            size = 0
            for each in self.followers:
                found = each.take() if size < self.PIECE else []
                entries += found
                size += sum(len(entry.data) for entry in found)
            if not entries:
                return None if all(each.ended for each in self.followers) else b"", mark
            data = b"".join(map(self._shown, entries))
            if data:
                return data, mark

    def _shown(self, entry: Entry) -> bytes:
        data, plain = entry.data, entry.plain
        if self.grep is not None and entry.name == "log":
            data = b"".join(line for line in data.splitlines(True) if self.grep in line)
            if not data:
                return b""
            plain = dict(plain, text=data.decode("utf-8", "replace"))
        if self.events:
            return event_bytes(str(entry.after) if entry.after else "", entry.name, plain)
        if entry.name != "log":
            said = " ".join("%s=%s" % pair for pair in sorted(plain.items()))
            return ("--- %s %s\n" % (entry.name, said)).encode()
        return _named_lines(data, plain["instance"]) if self.named else data


def _named_lines(data: bytes, instance: int) -> bytes:
    lines = data.splitlines(True)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return b"".join(b"%d: %b" % (instance, line) for line in lines)


def _text(body: bytes, *headers: Tuple[str, str]) -> Response:
    return Response(200, body=body, content_type="text/plain; charset=utf-8",
                    headers=[("X-Content-Type-Options", "nosniff"), *headers])


def _follow(call: Call,
            wanted: Sequence[Tuple[int, Optional[Output], int, Optional[int], Optional[Position]]],
            tail: int, named: bool) -> Stream:
    """A stream of what these instances write: (number, log or None where it is to be found, its size and
    check, where the caller goes on)."""
    service, key = call.service, call.key
    stream, fixed, auth = call.get("stream", "stdout"), "task" in call.params, call.auth
    scheduler = service.clusters[key.cluster]
    once = not call.get("follow")
    events = not once and "text/event-stream" in call.request.headers.get("accept", "")
    follow = Follow(call.get("grep"), events, named)

    def make(number: int, output: Optional[Output], size: int, check: Optional[int]) -> Feed:
        def find() -> List[Spot]:
            return find_tasks(Session(scheduler, auth), key, [number], service.clock)
        return Feed(service.runner,
                    Cursor(service.observer, find, key, number, call.args.get("process"), stream, output,
                                           size, check, fixed), service.poll_interval)
    try:
        for number, output, size, check, position in wanted:
            process = output.process if output else call.args.get("process")
            watched = ("log", key, number, process, stream, call.get("task"), call.get("run", -1),
                       call.get("source"), auth)
            use = partial(Follower, tail=tail, grep=follow.grep, changed=follow.changed, position=position,
                          once=once)
            follow.followers.append(service.watched.watch(watched, partial(make, number, output, size, check),
                                                          use))
    except AuroraError:
        follow.deserted()
        raise
    if events:
        return Stream(follow, follow.since)
    return Download(_text(b"", ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")), follow,
                    follow.since, chunked=call.request.head.version > 0)


def _log(call: Call) -> Any:
    observer, tail, offset = call.service.observer, call.get("tail", 100), call.get("byte")
    if "tail" in call.params and offset is not None:
        raise BadRequest("tail= and offset= exclude each other")
    if "length" in call.params and (offset is None or call.get("follow")):
        raise BadRequest("length= goes with offset=, and not with follow=")
    spot = _spot(call)
    output, size, check = open_output(observer, find_output(
        observer, spot, call.args.get("process"), call.get("stream", "stdout"), call.get("run", -1),
        call.get("source") == "agent"))
    if call.get("follow"):
        position = Position.parse(call.request.headers.get("last-event-id", ""))
        if position is None and offset is not None:
            position = Position(spot.id, output.run, offset if offset >= 0 else max(0, size + offset))
        return _follow(call, [(spot.instance, output, size, check, position)], tail, False)
    piece = read_piece(observer, output, tail, offset, call.get("length", _CHUNK), call.get("grep"))
    shown = (("Task", spot.id), ("Run", output.run), ("Offset", piece.offset), ("Next", piece.next),
             ("Size", piece.size),
             ("Left", max(0, piece.size - piece.next)), ("Source", "agent" if output.agent else "observer"))
    return _text(piece.data, *(("X-Log-" + name, str(value)) for name, value in shown))


_LOG_PARAMS = "task stream run tail offset:byte length follow grep source"


@route("GET", "/alpha/job/{key}/instances/{instance}/logs/{process}", "watch", "logs", _LOG_PARAMS,
       gives="text/plain",
       a200="the end of the log, or a part of it; X-Log-Next says where to go on",
       a410="the sandbox was collected")
def get_log(call: Call) -> Any:
    """What a process of an instance's task wrote; with follow=1 as it comes, over rotations, runs and
    tasks."""
    return _log(call)


@route("GET", "/alpha/job/{key}/instances/{instance}/logs", "watch", "logs", _LOG_PARAMS, gives="text/plain",
       a200="the end of the log, or a part of it; X-Log-Next says where to go on",
       a410="the sandbox was collected")
def get_only_log(call: Call) -> Any:
    """The same where the task has one process; with source=agent what the executor itself wrote."""
    return _log(call)


@route("GET", "/alpha/job/{key}/logs/{process}", "watch", "logs", "shards instances stream tail follow grep",
       gives="text/plain",
       a200="the ends of the logs, each line with its instance")
def get_job_log(call: Call) -> Any:
    """What a process of many instances wrote; with follow=1 as it comes."""
    key, tail = call.key, call.get("tail", 10)
    spots = find_tasks(call.session, key, call.shards, call.service.clock)
    numbers = sorted({spot.instance for spot in spots if call.shards or not spot.ended}
                     or {spot.instance for spot in spots})
    if not numbers:
        raise NotFound("there is no job %s, or no such instance of it" % (key,))
    if len(numbers) > _FOLLOWED:
        raise BadRequest("the job has %d instances; shards= says which, at most %d" %
                         (len(numbers), _FOLLOWED))
    last = Position.parse(call.request.headers.get("last-event-id", ""))
    of = next((spot.instance for spot in spots if last and spot.id == last.task), None)
    return _follow(call, [(number, None, 0, None, last if number == of else None) for number in numbers],
                   tail, True)


@route("GET", "/alpha/job/{key}/instances/{instance}/files", "watch", "logs", "task path source",
       gives="FileList",
       a200="what the directory holds", a410="the sandbox was collected")
def get_files(call: Call) -> Any:
    """List a directory of the sandbox of an instance's task."""
    path, spot = clean_path(call.get("path", "")), _spot(call)
    entries, unreadable = call.service.observer.listing(spot, path, call.get("source") == "agent")
    return call.success(count=len(entries), task=spot.id, host=spot.host, path=path, entries=entries,
                        unreadable_lines=unreadable)


def _range(header: str, size: int) -> Optional[Tuple[int, int]]:
    """(first byte, the one behind the last) of a Range header; None where it asks for none that is
    understood."""
    found = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", header)
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


@route("GET", "/alpha/job/{key}/instances/{instance}/files/content", "watch", "logs", "task path source",
       gives="application/octet-stream", a200="the file", a206="the range of it that was asked for",
       a410="the sandbox was collected",
       a416="the range begins behind the end of the file")
def get_file(call: Call) -> Any:
    """A file of the sandbox, of any size; with Range a part of it."""
    observer, path = call.service.observer, clean_path(call.get("path", ""))
    agent = call.get("source") == "agent"
    if not path:
        raise BadRequest("path= says which file; files?path= lists a directory")
    spot = _spot(call)
    size = observer.read(spot, path, 0, 1, agent)[2]
    given = call.request.headers.get("range", "")
    asked = _range(given, size) if "if-range" not in call.request.headers else None
    first, end = asked or (0, size)
    if asked and first >= end:
        raise RangeNotSatisfiable("%s has %d bytes" % (path, size),
                                  headers=[("Content-Range", "bytes */%d" % size)])
    name = path.rpartition("/")[2]
    headers = [("Content-Length", str(end - first)), ("Accept-Ranges", "bytes"),
               ("Cache-Control", "no-store"),
               ("X-Content-Type-Options", "nosniff"), ("X-Log-Task", spot.id),
               ("Content-Disposition", "attachment; filename*=UTF-8''" + urllib.parse.quote(name, ""))]
    if asked:
        headers.append(("Content-Range", "bytes %d-%d/%d" % (first, end - 1, size)))

    def since(at: int) -> Tuple[Optional[bytes], int]:
        if at >= end:
            return None, at
        try:
            data = observer.read(spot, path, at, min(_CHUNK, end - at), agent)[0]
            if not data:
                raise ObserverBadAnswer("it shrank")
        except AuroraError as error:
            call.service.log("warning: id=%s %s was cut at byte %d: %s" % (call.request.id, path[:255], at,
                                                                           error))
            return None, at     # the caller sees it by the length
        return data, at + len(data)
    head = Response(206 if asked else 200, body=b"", content_type="application/octet-stream", headers=headers)
    return Download(head, Source(), since, first)


def failing_instances(tasks: Iterable[Any]) -> List[int]:
    """The instances whose last task failed, and that do not run; of plain tasks, sorted by age."""
    failing: Set[int] = set()
    for task in tasks:
        if task["status"] == api.ScheduleStatus.FAILED:
            failing.add(task["assignedTask"]["instanceId"])
        elif task["status"] not in _NOT_PLACED:
            failing.discard(task["assignedTask"]["instanceId"])
    return sorted(failing)


def failure_of(call: Call, instances: Sequence[int], patient: bool = False) -> Json:
    """`failure`, as a field of an answer: the end of what the process wrote that failed last; nothing
    where none did, the caller does not want it (logs=0) or may not see it."""
    observer = call.service.observer
    if not call.get("logs", True) or not observer.port or not call.user.may("logs", call.args.get("role")):
        return {}
    session = Session(call.service.clusters[call.args["cluster"]], call.auth)
    try:
        spots = find_tasks(session, call.key, instances, call.service.clock)
        found = words_of_failure(observer, spots, call.key, patient)
    except AuroraError as error:
        found = {"errors": error.messages}
    return {"last_words": found} if found else {}


def with_last_words(call: Call, source: Source,
                    ready: Callable[[], Optional[Response]]) -> Callable[[], Optional[Response]]:
    """`ready` of a wait, such that the answer to a failure tells the last words of what failed. They are
    read in a worker while the caller waits on, since `ready` must not block."""
    once, held = threading.Lock(), []

    def fetch(answer: Response) -> None:
        plain = dict(answer.plain)
        try:
            plain.update(failure_of(call, [each["instance"] for each in plain.get("endings") or ()], True))
        finally:
            held.append(Response(answer.status, plain, headers=answer.headers, code=answer.code))
            source.changed()

    def look() -> Optional[Response]:
        answer = held[0] if held else ready()
        if held or answer is None or answer.status != 409 or "name" not in call.args:
            return answer
        if once.acquire(blocking=False):
            call.service.runner.run_in_worker(partial(fetch, answer))
        return None
    return look


# --- handlers: run and change -------------------------------------------------------------------------------


def _job_exists(refused: Failure) -> Failure:
    """What a refused createJob or scheduleCronJob means."""
    if any("already exists" in text for text in refused.messages):
        return Conflict(*refused.messages, code="JOB_EXISTS")
    return refused


@route("PUT", "/alpha/job/{key}", "run", params="bind env file wait", body="config", gives="JobWritten",
       a201="created",
       a202="created; not all run yet", a409="it exists; or, where it was waited for, tasks failed")
def create_job(call: Call) -> Any:
    """Create a job from the .aurora file, or JSON job, in the body."""
    job = call.job()
    if job.is_cron:
        raise Unprocessable("%s is a cron job; schedule it with PUT /alpha/cron/%s" % (call.key, call.key))
    call.notes["job"] = plain_config(job.configuration)
    known = _known_tasks(call)
    try:
        call.write("createJob", job.configuration)
    except Refused as refused:
        raise _job_exists(refused) from None
    return _awaiting(call, 201, range(job.configuration.instanceCount), known, **_some(warnings=job.warnings))


def _some(**fields: Any) -> Any:
    """The fields that are not empty."""
    return {name: value for name, value in fields.items() if value}


def _known_tasks(call: Call) -> Set[str]:
    """Ids of the tasks there are already, where the caller will wait for new ones."""
    if not call.get("wait") or call.get("dry_run"):
        return set()
    return {task["assignedTask"]["taskId"] for task in query_tasks(
        call.scheduler, call.key, (), None, "task states")}


def _awaiting(call: Call, status: int, wanted: Optional[Sequence[int]], known: Set[str], count: int = 0,
              strict: bool = True, **fields: Any) -> Union[Response, Later]:
    """The answer to a write after which the wanted instances are to run, or any `count`."""
    return call.outcome(status, ("tasks", call.key),
                        lambda: query_tasks(call.scheduler, call.key, reasons=True),
                        lambda tasks: judge_running(tasks, wanted, known, count, strict), **fields)


def _dying(call: Call, instances: Sequence[int]) -> List[Any]:
    return query_tasks(call.scheduler, call.key, instances, api.ACTIVE_STATES, "task states")


@route("POST", "/alpha/job/{key}/inspect", "run", access="read", params="bind env file shards instances",
       body="config",
       gives="Inspected", a200="the job as it would be sent")
def inspect_job(call: Call) -> Any:
    """Evaluate and validate the body: the JobConfiguration and JobUpdateSettings as they would be sent;
    nothing is."""
    job = call.job()
    plain = plain_config(job.configuration)
    fields: Json = {"job": plain, "warnings": job.warnings}
    if job.settings is not None:
        fields["update"] = job.update_request(call.shards).settings.to_plain()
    else:
        fields["update_errors"] = job.problems
    if job.is_cron:
        fields["cron"] = {"schedule": plain["cronSchedule"], "next_run": None,
                          "instances": plain["instanceCount"],
                          "collision_policy": plain["cronCollisionPolicy"]}
    return call.success(count=1, **fields)


@route("POST", "/alpha/job/{key}/diff", "change", access="read", params="bind env file shards instances",
       body="config",
       gives="Plan", a200="what an update would do")
def diff_job(call: Call) -> Any:
    """What an update with this body would add, remove, change and leave: instances, and fields old and
    new."""
    plan = plan_update(call.scheduler, align(call.job(), call.running), call.shards, call.running)
    return call.success(count=sum(len(plan[name]) for name in ("add", "remove", "update")), job=str(call.key),
                        **plan)


@route("PUT", "/alpha/job/{key}/update", "change", params="shards instances bind env file message wait",
       body="config",
       gives="JobWritten", guards=_JOB_GUARDS, a202="started",
       a200="unchanged: nothing to update; or, where it was waited for, rolled forward",
       a409="one is in progress; or, where it was waited for, it did not roll forward")
def start_job_update(call: Call) -> Any:
    """Start a rolling update to the body's configuration, of the named instances or all."""
    job = align(call.job(), call.running)
    if job.is_cron:
        raise Unprocessable("%s is a cron job; replace it with PUT /alpha/cron/%s" % (call.key, call.key))
    if call.get("dry_run"):
        call.notes["plan"] = plan_update(call.scheduler, job, call.shards, call.running)
    call.intend("startJobUpdate", job.update_request(call.shards), call.message)
    started = start_update(call.scheduler, job, call.shards, call.message)
    if not started.id:
        return call.job_success(200, unchanged=True, messages=started.messages)
    return _awaiting_update(call, 202, started.id, **_some(warnings=job.warnings))


def _awaiting_update(call: Call, status: int, update_id: str, wanted: str = "ROLLED_FORWARD",
                     **fields: Any) -> Union[Response, Later]:
    """The answer to a write after which an update is to end as wanted."""
    def tell(look: UpdateLook) -> Json:
        return {"update": plain_update(call.key.cluster, look.details)}
    if not call.get("wait"):
        with contextlib.suppress(AuroraError):      # it was started; what it looks like is a favour
            fields.update(tell(UpdateLook(update_details(call.scheduler, call.key, update_id))))
    return call.outcome(status, ("update", call.key, update_id), lambda: look_at_update(
        call.scheduler, call.key, update_id), lambda look: judge_update(look, wanted),
        [("Location", "/alpha/job/%s/updates/%s" % (call.key, update_id))], tell, **fields)


def _chosen_update(call: Call) -> Any:
    """The api.JobUpdateSummary of the update that the path names, or of the one in progress. Raises NotFound;
    Conflict where the one that is named has ended."""
    if "id" not in call.args:
        return active_update(call.scheduler, call.key)
    details = update_details(call.scheduler, call.key, call.args["id"])
    summary = details.update.summary
    if summary.state.status not in api.ACTIVE_JOB_UPDATE_STATES:
        raise Conflict("the update %s has ended as %s" %
                       (call.args["id"], api.JobUpdateStatus.name_of(summary.state.status)),
                       code="UPDATE_ENDED", update=plain_update(call.key.cluster, details))
    return summary


def _steering(verb: str) -> Callable[[Call], Any]:
    """The handler that pauses, resumes, aborts, rolls back or pulses an update."""
    def steer(call: Call) -> Any:
        summary = _chosen_update(call)
        response = call.write(verb + "JobUpdate", summary.key, *([] if verb == "pulse" else [call.message]))
        fields: Json = {}
        if verb == "pulse":
            fields["pulse"] = api.JobUpdatePulseStatus.name_of(response.result.pulseJobUpdateResult.status)
        return _awaiting_update(call, 202, summary.key.id, "ROLLED_BACK", **fields)
    return steer


def _steering_routes() -> None:
    for verb, group, done, does in (
            ("pause", "change", "paused", "Pause"), ("resume", "change", "resumed", "Resume"),
            ("abort", "fix", "aborted", "Abort, leaving instances as they are,"),
            ("rollback", "fix", "rolling back", "Roll back"),
            ("pulse", "change", "pulsed", "Send a pulse, for which it waits, to")):
        for path, name, which in (("update", "%s_update", "the update in progress"),
                                  ("updates/{id}", "%s_one_update", "the update of this id")):
            answers: Any = {"a202": done, "a200": "rolled back"} if verb == "rollback" else {"a202": done}
            route("POST", "/alpha/job/{key}/%s/%s" % (path, verb), group, gives="JobWritten",
                  guards=_JOB_GUARDS,
                  params={"rollback": "message wait", "pulse": ""}.get(verb, "message"), name=name % verb,
                  summary="%s %s." % (does, which), **answers)(_steering(verb))
    route("DELETE", "/alpha/job/{key}/update", "fix", params="message", gives="JobWritten",
          guards=_JOB_GUARDS,
          name="cancel_job_update",
          summary="Cancel (abort) the update in progress; instances stay as they are.",
          a202="aborted")(_steering("abort"))


_steering_routes()


def _one_update(call: Call, update_id: str) -> Response:
    details = update_details(call.scheduler, call.key, update_id)
    return call.success(count=1, job=str(call.key), update=plain_update(
        call.key.cluster, details, bool(call.get("detail"))))


def _latest_update(call: Call) -> str:
    """The id of the update in progress, else of the latest one. Raises NotFound."""
    found = update_summaries(call.scheduler, api.JobUpdateQuery(jobKey=call.key.thrift))
    if not found:
        _require_job(call)
        raise NotFound("job %s has had no update" % (call.key,))
    active = [each for each in found if each.state.status in api.ACTIVE_JOB_UPDATE_STATES]
    return str((active or found)[0].key.id)


@route("GET", "/alpha/job/{key}/update", "watch", remembered=True, params="detail", gives="UpdateAnswer",
       a200="the update and how far it is")
def get_update(call: Call) -> Any:
    """The update in progress, else the latest one, and how far it is; detail=1 with configurations and
    events."""
    return _one_update(call, _latest_update(call))


@route("GET", "/alpha/job/{key}/updates/{id}", "watch", remembered=True, params="detail",
       gives="UpdateAnswer",
       a200="the update")
def get_one_update(call: Call) -> Any:
    """One update and how far it is; detail=1 with configurations and all its events."""
    return _one_update(call, call.args["id"])


_UPDATE_FILTERS = "status user limit offset detail"


def _update_list(call: Call, **query: Any) -> Response:
    """Updates, the one changed last first: a hundred, or limit= of them."""
    start, limit, user = call.get("offset", 0), call.get("limit", 100), call.get("user")
    narrow = not user or not re.search(r"[*?\[]", user)      # what the scheduler can pick out itself
    found = find_updates(call.scheduler, api.JobUpdateQuery(
        updateStatuses=call.get("status"), user=user if narrow else None, limit=limit + 1 if narrow else None,
        offset=start if narrow else None, **query))
    if not narrow:
        found = [each for each in found if glob(user)(each.update.summary.user or "")][start:]
    if not found and "name" in call.args:
        _require_job(call)
    more = len(found) > limit
    updates = [plain_update(call.args["cluster"], each, bool(call.get("detail"))) for each in found[:limit]]
    return call.success(200, call.link(start + limit) if more else [], count=len(updates), updates=updates,
                        **({"next": start + limit} if more else {}))


@route("GET", "/alpha/job/{key}/updates", "watch", remembered=True, params=_UPDATE_FILTERS,
       gives="UpdateList",
       a200="updates")
def list_updates(call: Call) -> Any:
    """The updates a job has had."""
    return _update_list(call, jobKey=call.key.thrift)


@route("GET", "/alpha/updates/{cluster}", "watch", remembered=True, params=_UPDATE_FILTERS,
       gives="UpdateList",
       a200="updates")
def list_cluster_updates(call: Call) -> Any:
    """The updates of all jobs of a cluster."""
    return _update_list(call)


@route("GET", "/alpha/updates/{cluster}/{role}", "watch", remembered=True, params=_UPDATE_FILTERS,
       gives="UpdateList",
       a200="updates")
def list_role_updates(call: Call) -> Any:
    """The updates of a role's jobs."""
    return _update_list(call, role=call.args["role"])


@route("GET", "/alpha/job/{key}/updates/{id}/events", "watch", gives="text/event-stream",
       a200="update and instance events")
def watch_update(call: Call) -> Any:
    """Events of one update from its beginning, and as they happen."""
    key, update_id = call.key, call.args["id"]
    update_details(call.scheduler, key, update_id)
    return call.service.stream(call, ("update", key, update_id), lambda: TaskChanges(
        call.scheduler, key.cluster, None,
        lambda: api.JobUpdateQuery(key=api.JobUpdateKey(job=key.thrift, id=update_id)), history=True))


@route("PUT", "/alpha/job/{key}/restart", "fix",
       params="shards instances batch_size watch_secs max_per_instance_failures "
       "max_total_failures time_limit force wait", operates="always", gives="JobWritten", guards=_JOB_GUARDS,
       a202="restarting", a200="waited for, and restarted",
       a409="being updated, or restarted already; or, where it was waited for, it failed")
def restart_job(call: Call) -> Any:
    """Restart instances, rolling: batch by batch, each watched. batch_size=all restarts all at once. While a
    restart of the job is under way here, another one is refused unless force=1."""
    _check_not_updating(call)
    active = sorted(active_instances(call.scheduler, call.key, call.shards))
    size = _batch_size(call, active)
    options = RestartOptions(size, call.get("watch_secs", 30.0), call.get("max_per_instance_failures", 0),
                             call.get("max_total_failures", 0), call.get("time_limit", 600.0),
                             min(3.0, call.service.poll_interval))
    call.intend("restartShards", call.key.thrift, set(active[:size]))
    return call.operated(call.start("restart", len(active), lambda op: rolling_restart(
        call.scheduler, call.key, active, options, op), not call.get("force")), instances=active)


def _batch_size(call: Call, instances: Sequence[int]) -> int:
    """How many instances at once; a dry run is told the batches."""
    size: Any = call.get("batch_size", 1)
    size = max(1, len(instances)) if size == "all" else size
    call.notes["batches"] = [instances[i:i + size] for i in range(0, len(instances), size)]
    return int(size)


def _check_not_updating(call: Call) -> None:
    """Say at once what the scheduler would say to an operation's first step."""
    found = find_updates(call.scheduler, api.JobUpdateQuery(
        jobKey=call.key.thrift, updateStatuses=set(api.ACTIVE_JOB_UPDATE_STATES)))
    if found:
        raise JobUpdating("Job is currently updating", update=plain_update(call.key.cluster, found[0]))


@route("DELETE", "/alpha/job/{key}", "run", params="shards instances batch_size time_limit message wait",
       operates="batch_size", gives="JobWritten", guards=_JOB_GUARDS, a200="killed",
       a202="being killed in batches, or not gone when the time was up", a409="being updated")
def kill_job(call: Call) -> Any:
    """Kill the named instances, or the whole job."""
    if "batch_size" in call.params:
        return _kill_in_batches(call)
    shards, active = call.shards, instances_of(_dying(call, call.shards))
    if not active:
        _require_job(call)
        raise NotFound("job %s has no %s" % (call.key, "such active instances" if shards
                                             else "active instances"))
    call.notes["instances"] = active
    # What is being killed already is waited for, too; the scheduler says then that there is nothing to kill.
    messages = messages_of(call.write("killTasks", call.key.thrift, set(shards) or None, call.message))
    return call.outcome(200, ("active", call.key, tuple(shards)), lambda: _dying(call, shards),
                        lambda tasks: judge_gone(tasks, active), killed=active,
                        **_some(messages=messages))


def _kill_in_batches(call: Call) -> Union[Response, Later]:
    _check_not_updating(call)
    active = sorted(active_instances(call.scheduler, call.key, call.shards))
    size = _batch_size(call, active)
    call.intend("killTasks", call.key.thrift, set(active[:size]), call.message)
    return call.operated(call.start("kill", len(active), lambda op: batched_kill(
        call.scheduler, call.key, active, size, call.get("time_limit", 254.0), call.service.poll_interval,
        call.message, op)), killed=active)


@route("POST", "/alpha/job/{key}/wait", "watch", access="read", params="until shards instances count wait",
       gives="JobWritten", a200="reached", a202="not reached when the time was up",
       a409="cannot be reached any more")
def wait_for_job(call: Call) -> Any:
    """Wait until a job runs (until=running, of which count=N or shards=… instances), or until it is gone
    (until=gone)."""
    call.params.setdefault("wait", 60.0)
    shards, count = call.shards, call.get("count")
    _require_job(call)
    if call.get("until", "running") == "gone":
        return call.outcome(200, ("tasks", call.key),
                            lambda: query_tasks(call.scheduler, call.key, reasons=True),
                            lambda tasks: judge_gone(tasks, shards))
    wanted: Optional[Sequence[int]] = shards or None
    if not shards and not count:
        wanted = sorted(active_instances(call.scheduler, call.key, ()))
    ended = {task["assignedTask"]["taskId"] for task in query_tasks(
        call.scheduler, call.key, (), api.TERMINAL_STATES, "task states")}
    return _awaiting(call, 200, wanted, ended, count or 0, False)


def _wait_for_update(call: Call) -> Any:
    call.params.setdefault("wait", 60.0)
    return _awaiting_update(call, 200, call.args.get("id") or _latest_update(call))


for _path, _named, _which in (("update", "wait_for_active_update",
                               "the update in progress, or the latest one,"),
                              ("updates/{id}", "wait_for_one_update", "the update of this id")):
    route("POST", "/alpha/job/{key}/%s/wait" % _path, "watch", access="read", params="wait",
          gives="JobWritten",
          name=_named, summary="Wait until %s has ended; anything but ROLLED_FORWARD is a failure." % _which,
          a200="rolled forward", a202="under way when the time was up, or paused by itself",
          a409="ended otherwise")(_wait_for_update)


@route("POST", "/alpha/job/{key}/instances", "change", params="count like wait", gives="JobWritten",
       guards=_JOB_GUARDS,
       a201="added", a202="added; not all run yet",
       a409="being updated; or, where it was waited for, tasks failed")
def add_instances(call: Call) -> Any:
    """Add instances that are like one of the job's, the one with the lowest number by default."""
    count, known = call.get("count", 1), _known_tasks(call)
    added = add_like(call.scheduler, call.key, count, call.get("like"))
    return _awaiting(call, 201, added or None, known, count, added=added)


@route("PUT", "/alpha/job/{key}/scale", "change", params="instances:size like message wait",
       gives="JobWritten",
       guards=_JOB_GUARDS, a202="scaling", a200="as it is already; or, where it was waited for, scaled",
       a409="being updated; or, where it was waited for, tasks failed")
def scale_job(call: Call) -> Any:
    """Scale to N instances: adds some like one of the job's, or kills those with the highest numbers."""
    if "size" not in call.params:
        raise BadRequest("scale needs instances=N")
    wanted, known = call.get("size"), _known_tasks(call)
    call.notes["instances"] = wanted
    changed = change_instances(call.scheduler, call.key, wanted, call.get("like"), call.message)
    added, killed = changed["added"], changed["killed"]
    if call.get("dry_run"):     # a dry run that gets here had no call to make
        raise DryRun(None, None, nothing=True, **call.notes)
    if killed:
        return call.outcome(202, ("active", call.key, ()), lambda: _dying(call, ()), lambda tasks: judge_gone(
            tasks, killed), added=[], killed=killed)
    if added == []:
        return call.job_success(200, unchanged=True, added=[], killed=[])
    unsaid = ["message= was not sent: the scheduler takes none where instances are added"] if call.get(
        "message") else []
    return _awaiting(call, 202, added or None, known, len(added or ()) or 1, added=added, killed=[],
                     **_some(warnings=unsaid))


# --- handlers: cron -----------------------------------------------------------------------------------------


@route("PUT", "/alpha/cron/{key}", "run", params="bind env file", body="config", gives="JobWritten",
       guards=["get_cron"],
       a201="scheduled", a409="a job of this name that is no cron job runs")
def schedule_cron(call: Call) -> Any:
    """Schedule the body's cron job, or replace the one scheduled under this key."""
    job = call.job()
    if not job.is_cron:
        raise Unprocessable("%s has no cron_schedule; create it with PUT /alpha/job/%s" %
                            (call.key, call.key))
    call.notes["job"] = plain_config(job.configuration)
    try:
        call.write("scheduleCronJob", job.configuration)
    except Refused as refused:
        raise _job_exists(refused) from None
    return call.job_success(201, **_some(warnings=job.warnings))


def _template(call: Call) -> Any:
    """The api.JobConfiguration of the cron job. Raises NotFound."""
    jobs = call.read("getJobs", call.key.role).result.getJobsResult.configs or ()
    found = [each for each in jobs if each.key == call.key.thrift and each.cronSchedule]
    if not found:
        raise no_such("cron job", str(call.key), ["/".join((call.key.cluster, each.key.role,
                                                            each.key.environment,
                                                            each.key.name)) for each in jobs
                                                            if each.cronSchedule])
    return found[0]


@route("GET", "/alpha/cron/{key}", "watch", remembered=True, gives="CronAnswer", a200="the cron job")
def get_cron(call: Call) -> Any:
    """A cron job: its schedule, next run and configuration."""
    template = _template(call)
    return call.success(count=1, job=str(call.key), cron=_cron_of(call), config=plain_config(template))


@route("DELETE", "/alpha/cron/{key}", "run", gives="JobWritten", guards=["get_cron"], a200="descheduled")
def deschedule_cron(call: Call) -> Any:
    """Remove a cron job; runs under way go on."""
    _template(call)
    messages = messages_of(call.write("descheduleCronJob", call.key.thrift))
    if messages:
        raise NotFound("there is no cron job %s" % (call.key,), *messages)
    return call.job_success(200)


@route("POST", "/alpha/cron/{key}/start", "run", params="wait", gives="JobWritten", guards=["get_cron"],
       a202="started",
       a200="waited for, and its tasks run or have finished", a409="where it was waited for: tasks failed")
def start_cron(call: Call) -> Any:
    """Start a run of a cron job now."""
    template, known = _template(call), _known_tasks(call)
    call.write("startCronJob", call.key.thrift)
    return _awaiting(call, 202, None, known, template.instanceCount or 1)


@route("GET", "/alpha/cron/{cluster}/{role}", "watch", remembered=True,
       params="environment name limit offset",
       gives="CronList", a200="cron jobs")
def list_cron(call: Call) -> Any:
    """The cron jobs of a role with their schedules and next runs."""
    globs = {name: glob(call.get(name)) for name in ("environment", "name") if call.get(name)}
    return _job_list(call, [_summary(call.args["cluster"], each)
                            for each in list_summaries(call.scheduler, call.args["role"])
                            if each["job"].get("cronSchedule") and _matches(each["job"]["key"], globs)])


# --- handlers: operate --------------------------------------------------------------------------------------

_QUOTA_FIELDS = {"cpu": "numCpus", "ram_mb": "ramMb", "disk_mb": "diskMb"}


def _amounts(aggregate: Any) -> Dict[str, float]:
    made: Dict[str, float] = {name: 0 for name in _QUOTA_FIELDS}
    for resource in (aggregate.resources if aggregate else None) or ():
        for name, field in _QUOTA_FIELDS.items():
            made[name] += getattr(resource, field) or 0
    return made


@route("GET", "/alpha/quota/{cluster}/{role}", "operate", remembered=True, gives="QuotaAnswer",
       a200="quota and consumption")
def get_quota(call: Call) -> Any:
    """A role's quota, and what its production and other jobs consume."""
    result = call.read("getQuota", call.args["role"]).result.getQuotaResult
    return call.success(quota=_amounts(result.quota), consumption={
        "production": _amounts(result.prodSharedConsumption),
        "other": _amounts(result.nonProdSharedConsumption),
        "production_dedicated": _amounts(result.prodDedicatedConsumption),
        "other_dedicated": _amounts(result.nonProdDedicatedConsumption)})


@route("PUT", "/alpha/quota/{cluster}/{role}", "operate", access="admin", params="increase", body="quota",
       gives="QuotaWritten", guards=["get_quota"], a200="set")
def set_quota(call: Call) -> Any:
    """Set a role's quota from {"cpu": cores, "ram_mb": MB, "disk_mb": MB}; increase=1 adds to it, naming any
    of them."""
    given = call.json_body()
    if not isinstance(given, dict) or set(given) - set(_QUOTA_FIELDS) or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1 << 62
            for v in given.values()):
        raise BadRequest("the body has to be an object of numbers: %s" % ", ".join(_QUOTA_FIELDS))
    with locked("quota", call.args["cluster"], call.args["role"]):
        return _set_quota(call, given)


def _set_quota(call: Call, given: Json) -> Response:
    if call.get("increase"):
        now = _amounts(call.read("getQuota", call.args["role"]).result.getQuotaResult.quota)
        given = {name: now[name] + given.get(name, 0) for name in _QUOTA_FIELDS}
    if any(given.get(name, 0) != int(given.get(name, 0)) for name in ("ram_mb", "disk_mb")):
        raise BadRequest("ram_mb and disk_mb are whole numbers")
    missing = sorted(set(_QUOTA_FIELDS) - set(given))
    if missing:
        raise BadRequest("%s missing; increase=1 adds to the quota there is" % ", ".join(missing))
    call.write("setQuota", call.args["role"], api.ResourceAggregate(resources={
        api.Resource(numCpus=float(given["cpu"])), api.Resource(ramMb=int(given["ram_mb"])),
        api.Resource(diskMb=int(given["disk_mb"]))}))
    return call.success(quota=given)


def _hosts(call: Call) -> List[str]:
    names = call.args["hosts"].split(",")
    if not all(names):
        raise BadRequest("hosts are names joined by commas")
    return list(dict.fromkeys(names))


def _known_hosts(call: Call) -> Dict[str, str]:
    """The modes of the hosts that the path names. Raises NotFound, which says which are not known, before
    anything is done."""
    hosts = _hosts(call)
    response = call.read("maintenanceStatus", api.Hosts(hostNames=set(hosts)))
    modes = {each.host: api.MaintenanceMode.name_of(each.mode)
             for each in response.result.maintenanceStatusResult.statuses or ()}
    unknown = [host for host in hosts if host not in modes]
    if unknown:
        query = api.TaskQuery(statuses=set(api.LIVE_STATES), limit=20000)
        tasks = call.read("getTasksWithoutConfigs", query, projection=projection("hosts"))
        seen = {each["assignedTask"].get("slaveHost", "") for each in tasks.get("result", {}).get(
            "scheduleStatusResult", {}).get("tasks", ())}
        raise NotFound(*[str(no_such("host", host, seen)) for host in unknown])
    return modes


def _host_list(call: Call, statuses: Any) -> List[Json]:
    return [{"host": each.host, "mode": api.MaintenanceMode.name_of(each.mode)}
            for each in sorted(statuses or (), key=lambda each: each.host)]


@route("GET", "/alpha/maintenance/{cluster}/{hosts}", "operate", access="read", remembered=True,
       gives="HostList",
       a200="maintenance modes")
def get_maintenance(call: Call) -> Any:
    """The maintenance mode of hosts."""
    modes = _known_hosts(call)
    return call.success(count=len(modes), hosts=[{"host": host, "mode": mode} for host,
                                                 mode in sorted(modes.items())])


def _maintaining(method: str) -> Callable[[Call], Any]:
    """The handler that begins or ends the maintenance of hosts."""
    def maintain(call: Call) -> Any:
        _known_hosts(call)
        result = call.write(method, api.Hosts(hostNames=set(_hosts(call)))).result
        hosts = _host_list(call, getattr(result, _RESULTS[method]).statuses)
        return call.success(count=len(hosts), hosts=hosts)
    return maintain


for _verb, _named, _method, _done, _does in (
        ("PUT", "start_maintenance", "startMaintenance", "scheduled for maintenance",
         "Put hosts into maintenance (host_deactivate): new tasks go elsewhere if they can."),
        ("DELETE", "end_maintenance", "endMaintenance", "maintenance ended",
         "End the maintenance of hosts (host_activate).")):
    route(_verb, "/alpha/maintenance/{cluster}/{hosts}", "operate", access="admin", gives="HostsWritten",
          name=_named,
          guards=["get_maintenance"], summary=_does, a200=_done)(_maintaining(_method))


def _probed(call: Call, hosts: Optional[Sequence[str]]) -> List[Json]:
    """What would become of jobs without these hosts, or without each one of all."""
    cluster = call.args["cluster"]
    found = probe_hosts(call.scheduler, hosts, call.get("percentage", 95.0), call.get("duration", 1800.0),
                        call.get("min_instances", 20), call.service.clock(), together=hosts is not None)
    return [dict(host, jobs=[dict(job, job="%s/%s" % (cluster, job["job"])) for job in host["jobs"]])
            for host in sorted(found, key=lambda each: each["host"])]


@route("POST", "/alpha/maintenance/{cluster}/{hosts}/drain", "operate", access="admin", operates="always",
       params="percentage duration min_instances force time_limit wait", gives="JobWritten",
       guards=["get_maintenance"],
       a202="draining", a200="waited for, and drained",
       a409="jobs would fall below; or, where it was waited for, not drained")
def drain(call: Call) -> Any:
    """Drain hosts (host_drain): checks first that jobs keep 95 % of their instances up for 30 min; force=1
    does not."""
    _known_hosts(call)
    hosts = _hosts(call)
    if not call.get("force"):
        probed = _probed(call, hosts)
        if not all(each["safe"] for each in probed):
            raise Conflict(
                "draining these hosts would take jobs below their SLA; force=1 drains nevertheless",
                           code="SLA_UNSAFE", hosts=probed)
    response = call.write("drainHosts", api.Hosts(hostNames=set(hosts)))
    return _draining(call, response.result.drainHostsResult.statuses, 300.0)


def _draining(call: Call, statuses: Any, time_limit: float) -> Union[Response, Later]:
    hosts = _host_list(call, statuses)
    names, limit = [each["host"] for each in hosts], call.get("time_limit", time_limit)
    operation = call.start("drain", len(names), lambda op: wait_until_drained(
        call.scheduler, names, limit, call.service.poll_interval, op))
    return call.operated(operation, lambda: {"count": len(hosts),
                                             "hosts": operation.result.get("hosts", hosts)})


@route("POST", "/alpha/maintenance/{cluster}/{hosts}/sla-drain", "operate", access="admin", operates="always",
       params="percentage duration count_up coordinator timeout time_limit wait", gives="JobWritten",
       guards=["get_maintenance"], a202="draining", a200="waited for, and drained",
       a409="where it was waited for: not drained")
def sla_drain(call: Call) -> Any:
    """Drain hosts as far as SLAs allow (sla_host_drain): jobs' own, else 95 % up for 30 min; forced after 7
    days."""
    _known_hosts(call)
    seconds = int(call.get("duration", 1800))
    if call.get("coordinator"):
        policy = api.SlaPolicy(coordinatorSlaPolicy=api.CoordinatorSlaPolicy(
            coordinatorUrl=call.get("coordinator"), statusKey="drain"))
    elif "count_up" in call.params:
        policy = api.SlaPolicy(countSlaPolicy=api.CountSlaPolicy(count=call.get("count_up"),
                durationSecs=seconds))
    else:
        policy = api.SlaPolicy(percentageSlaPolicy=api.PercentageSlaPolicy(
            percentage=call.get("percentage", 95.0), durationSecs=seconds))
    timeout = int(call.get("timeout", 7 * 86400))
    response = call.write("slaDrainHosts", api.Hosts(hostNames=set(_hosts(call))), policy, timeout)
    return _draining(call, response.result.drainHostsResult.statuses, timeout + 600.0)


@route("GET", "/alpha/maintenance/{cluster}/{hosts}/safe", "operate", access="read",
       params="percentage duration min_instances", gives="HostList", a200="whether each host may go")
def probe(call: Call) -> Any:
    """Whether hosts can be drained with jobs staying above their SLA (sla_probe_hosts)."""
    modes = _known_hosts(call)
    probed = [dict(each, mode=modes[each["host"]]) for each in _probed(call, _hosts(call))]
    return call.success(count=len(probed), safe=all(each["safe"] for each in probed), hosts=probed)


@route("GET", "/alpha/maintenance/{cluster}", "operate", access="read",
       params="percentage duration min_instances host limit offset", gives="HostList",
       a200="hosts that may go")
def list_safe_hosts(call: Call) -> Any:
    """The hosts with tasks that could be drained one at a time with jobs staying above their SLA
    (sla_list_safe_domain)."""
    probed = [each for each in _probed(call, None) if not call.get("host") or any(
        glob(pattern)(each["host"]) for pattern in call.get("host"))]
    shown, headers = call.page([each for each in probed if each["safe"]])
    return call.success(200, headers, count=len(shown), total=len(probed), hosts=shown)


@route("GET", "/alpha/backups/{cluster}", "operate", access="admin", gives="BackupList", a200="backups")
def list_backups(call: Call) -> Any:
    """The scheduler's backups."""
    backups = sorted(call.read("listBackups").result.listBackupsResult.backups or ())
    return call.success(count=len(backups), backups=backups)


_QUERY_PARAMS = "role environment name shards instances state host"


_EXACT_PARAMS = ("role:exact_role environment:exact_environment name:exact_name host:exact_host shards "
                 "instances "
                 "state:%s")


def _task_query(call: Call, exact: bool = True) -> Any:
    """The TaskQuery of the parameters. exact: where tasks are deleted, which takes no patterns; else what is
    a glob is left to `_passes`."""
    prefix = "exact_" if exact else ""
    given = {name: call.get(prefix + name) for name in ("role", "environment", "name", "host")}
    for name, text in given.items():
        if text and re.search(r"[*?\[]", "".join(text)):
            if exact:
                raise BadRequest("%s: a pattern is not possible here, where tasks are deleted; name them" %
                                 "".join(text)[:80])
            given[name] = None
    return api.TaskQuery(role=given["role"], environment=given["environment"], jobName=given["name"],
                         slaveHosts=set(given["host"] or ()) or None, instanceIds=set(call.shards) or None,
                         statuses=call.get("ended_state") or call.get("state"))


def _passes(call: Call, task: Any) -> bool:
    """Whether a plain task matches the globs among the parameters."""
    globs = {name: glob(call.get(name)) for name in ("role", "environment", "name") if call.get(name)}
    host = task["assignedTask"].get("slaveHost") or ""
    return _matches(task["assignedTask"]["task"]["job"], globs) and (
        not call.get("host") or any(glob(each)(host) for each in call.get("host")))


def _task_list(call: Call, found: Sequence[Any], start: int, limit: int) -> Response:
    """The first of the tasks that were found from `start` on, and where to go on if there are more."""
    more = len(found) > limit
    tasks = sorted((_plain_task(call.args["cluster"], "", each) for each in found[:limit]),
                   key=lambda task: task["id"])
    return call.success(200, call.link(start + limit) if more else [], count=len(tasks), tasks=tasks,
                        **({"next": start + limit} if more else {}))


def _task_limit(call: Call) -> int:
    most = int(call.service.limits["tasks"])
    limit: int = call.get("limit", min(1000, most))
    if limit > most:
        raise BadRequest("limit=%d: at most %d tasks in one answer; offset= goes on" % (limit, most))
    return limit


@route("GET", "/alpha/tasks/{cluster}", "operate", access="read", remembered=True, params=_QUERY_PARAMS +
       " limit offset",
       gives="TaskList", a200="tasks")
def query_cluster_tasks(call: Call) -> Any:
    """Tasks of a cluster by role, environment, name, instance, state and host (aurora_admin query): a
    thousand, or limit= of them; `next` is the offset of what follows."""
    start, limit = call.get("offset", 0), _task_limit(call)
    query = _task_query(call, exact=False)
    globs = any(re.search(r"[*?\[]", "".join(call.get(name) or ""))
                for name in ("role", "environment", "name", "host"))
    if not globs:
        query = query.replace(limit=limit + 1, offset=start)
    response = call.read("getTasksWithoutConfigs", query, projection=projection("cluster tasks"))
    found = response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", [])
    if globs:
        found = sorted((task for task in found if _passes(call, task)),
                       key=lambda task: task["assignedTask"]["taskId"])[start:]
    return _task_list(call, found, start, limit)


@route("DELETE", "/alpha/tasks/{cluster}", "operate", access="admin", params=_EXACT_PARAMS % "ended_state" +
       " limit",
       a200="pruned")
def prune_tasks(call: Call) -> Any:
    """Delete ended tasks from the scheduler's history; all of them where no filter is given. They are looked
    for first, and deleted by their ids: a prune that matched nothing would make the scheduler delete every
    task of the cluster."""
    response = call.write("pruneTasks", _task_query(call).replace(limit=call.get("limit")))
    return call.success(messages=messages_of(response))


def _recovery(call: Call, work: Callable[[], Any]) -> Any:
    """What the scheduler answers with ERROR for a recovery that is not staged, or staged twice, is the
    caller's."""
    try:
        return work()
    except SchedulerFailed as error:
        if any("does not exist" in text for text in error.messages):
            raise NotFound(*error.messages) from None
        if any("backup" in text.lower() for text in error.messages):
            raise Conflict(*error.messages, code="RECOVERY") from None
        raise


def _plainly(method: str, status: int) -> Callable[[Call], Any]:
    """The handler that makes one call of AuroraAdmin, with a backup where the path names one."""
    def call_it(call: Call) -> Any:
        _recovery(call, lambda: call.write(method, *([call.args["backup"]] if "backup" in call.args else [])))
        return call.success(status)
    return call_it


def _plain_routes() -> None:
    for verb, path, name, method, status, done, does in (
            ("POST", "backups/{cluster}", "make_backup", "performBackup", 202, "made",
             "Have the scheduler write a backup now."),
            ("POST", "snapshot/{cluster}", "make_snapshot", "snapshot", 202, "made",
             "Have the scheduler write a snapshot of its storage now."),
            ("POST", "recovery/{cluster}/{backup}/stage", "stage_recovery", "stageRecovery", 202, "staged",
             "Load a backup beside the running state, to be looked at and then committed."),
            ("POST", "recovery/{cluster}/commit", "commit_recovery", "commitRecovery", 202, "committed",
             "Replace the scheduler's state by the staged backup; the scheduler restarts."),
            ("DELETE", "recovery/{cluster}", "unload_recovery", "unloadRecovery", 200, "unloaded",
             "Forget the staged backup.")):
        answers: Any = {"a%d" % status: done}
        route(verb, "/alpha/" + path, "operate", access="admin", name=name, summary=does,
              **answers)(_plainly(method, status))


_plain_routes()


@route("GET", "/alpha/recovery/{cluster}/tasks", "operate", access="admin", params=_QUERY_PARAMS +
       " limit offset",
       gives="TaskList", a200="tasks", a409="no backup is staged")
def query_recovery(call: Call) -> Any:
    """The tasks of the staged backup: a thousand, or limit= of them; `next` is the offset of what follows."""
    start, limit = call.get("offset", 0), _task_limit(call)
    response = _recovery(call, lambda: call.read("queryRecovery", _task_query(call, exact=False),
                                                 projection=projection("recovery tasks")))
    tasks = [task for task in response.get("result", {}).get("queryRecoveryResult", {}).get("tasks", ())
             if _passes(call, task)]
    return _task_list(call, sorted(tasks, key=lambda task: task["assignedTask"]["taskId"])[start:], start,
                      limit)


@route("DELETE", "/alpha/recovery/{cluster}/tasks", "operate", access="admin", params=_EXACT_PARAMS %
       "state" + " force",
       a200="deleted", a409="no backup is staged")
def delete_recovery_tasks(call: Call) -> Any:
    """Delete tasks from the staged backup; force=1 where no filter is given, which deletes all."""
    if not set(call.params) - {"dry_run", "pretty", "force"} and not call.get("force"):
        raise BadRequest("without a filter all staged tasks are deleted; say force=1 if you mean it")
    _recovery(call, lambda: call.write("deleteRecoveryTasks", _task_query(call)))
    return call.success()


@route("POST", "/alpha/reconcile/{cluster}", "operate", access="admin", params="kind batch", a202="triggered")
def reconcile(call: Call) -> Any:
    """Reconcile the scheduler's tasks with Mesos: kind=implicit (the default) or explicit, batch=N tasks at
    once."""
    if call.get("kind", "implicit") == "explicit":
        call.write("triggerExplicitTaskReconciliation",
                   api.ExplicitReconciliationSettings(batchSize=call.get("batch")))
    elif "batch" in call.params:
        raise BadRequest("batch= is for kind=explicit")
    else:
        call.write("triggerImplicitTaskReconciliation")
    return call.success(202)


@route("PUT", "/alpha/tasks/{cluster}/{task}/state", "operate", access="admin", params="to_state",
       gives="StateForced",
       a202="forced")
def force_state(call: Call) -> Any:
    """Force a task into a state; the scheduler ignores what is no legal transition."""
    if "to_state" not in call.params:
        raise BadRequest("which state? to_state=LOST for instance")
    found = call.read("getTasksWithoutConfigs", api.TaskQuery(taskIds={call.args["task"]}))
    before = found.result.scheduleStatusResult.tasks
    if not before:
        raise NotFound("there is no task %s" % call.args["task"])
    wanted = api.ScheduleStatus.values[call.get("to_state")]
    call.write("forceTaskState", call.args["task"], wanted)
    fields: Json = {}
    with contextlib.suppress(AuroraError):      # Aurora says OK to what it ignores, so it is looked
        after = call.read("getTasksWithoutConfigs", api.TaskQuery(taskIds={call.args["task"]}))
        tasks = after.result.scheduleStatusResult.tasks or []
        fields["state"] = api.ScheduleStatus.name_of(tasks[0].status) if tasks else None
        told = len(before[0].taskEvents or ())
        fields["forced"] = not tasks or any(event.status == wanted
                                            for event in (tasks[0].taskEvents or [])[told:])
    return call.success(202, **fields)


@route("POST", "/alpha/rpc/{cluster}/{method}", "operate", access="read", params="dry_run", body="json",
       judges=True,
       gives="RpcAnswer", a200="the whole Response")
def post_rpc(call: Call) -> Any:
    """Call any of the Thrift methods: a JSON object keyed by its parameters' names; the whole Response comes
    back."""
    method = api.method(call.args["method"])
    given = call.json_body()
    try:
        arguments = method.arguments.from_plain(given)
    except PlainError as error:
        raise BadRequest(str(error)) from None
    try:
        response = call.scheduler.call(method.name,
                                       *[getattr(arguments, field) for field in arguments.fields])
    except AuroraError as error:
        if error.response is not None:
            error.details["response"] = error.response.to_plain() if isinstance(error.response,
                    ThriftStruct) else {
                "responseCode": api.ResponseCode.name_of(error.response["responseCode"]),
                "details": [{"message": text} for text in error.messages]}
        raise
    return call.success(response=response.to_plain())


@route("GET", "/alpha/operations", "watch", access="read", params="limit offset", gives="OperationList",
       a200="operations, newest first")
def list_operations(call: Call) -> Any:
    """The operations of this server, running and ended, newest first."""
    found = call.service.operations.all()
    shown, headers = call.page(found, 100)
    return call.success(200, headers, count=len(shown), total=len(found),
                        operations=[each.to_plain() for each in shown])


@route("GET", "/alpha/operations/{id}", "watch", gives="OperationAnswer", a200="the operation")
def get_operation(call: Call) -> Any:
    """An operation: state, progress, steps with their times, outcome. wait= waits for its end."""
    operation = call.service.operations[call.args["id"]]
    return call.await_operation(operation, lambda: call.success(key=operation.key,
                                                                operation=operation.to_plain()))


@route("DELETE", "/alpha/operations/{id}", "fix", judges=True, gives="OperationWritten",
       a202="will stop before its next step", a409="it has ended already")
def cancel_operation(call: Call) -> Any:
    """Cancel an operation between two of its steps."""
    operation = call.service.operations[call.args["id"]]
    if call.service.access.forward and not call.user.known:
        raise Unauthorized("cancelling an operation takes credentials",
                           headers=[("WWW-Authenticate", "Basic")])
    if call.owner is not None and call.owner != operation.owner:
        raise Forbidden("an operation is cancelled with the credentials that it was started with")
    call.service.require(call.user, *operation.needs)
    if operation.state != "running" or not call.get("dry_run") and not operation.stop():
        raise Conflict("the operation has ended already: %s" % operation.state, code="OPERATION_ENDED")
    if call.get("dry_run"):
        raise DryRun(None, None, cancel=operation.id)
    return call.success(202, key=operation.key, operation=operation.to_plain())


@route("GET", "/alpha/operations/{id}/events", "watch", gives="text/event-stream",
       a200="step and state events")
def watch_operation(call: Call) -> Any:
    """Events of an operation as they happen."""
    operation = call.service.operations[call.args["id"]]

    def since(mark: Tuple[int, str]) -> Tuple[bytes, Tuple[int, str]]:
        told, state = mark
        stepped, steps, now = operation.stepped, list(operation.steps), operation.state
        fresh = min(stepped - told, len(steps))
        events: List[Tuple[str, Any]] = []
        if fresh < stepped - told:
            events.append(("gap", {"reason": "%d steps are not known any more" % (stepped - told - fresh)}))
        events += [("step", step) for step in steps[len(steps) - fresh:]]
        if now != state:
            events.append(("state", {name: value for name, value in operation.to_plain().items()
                                     if name != "steps"}))
        return b"".join(event_bytes("%s-%d" % (operation.id, stepped), *each) for each in events), (stepped,
                now)
    last = re.fullmatch(re.escape(operation.id) + r"-(\d{1,9})",
                        call.request.headers.get("last-event-id", ""), re.ASCII)
    return Stream(operation, since, (int(last.group(1)) if last else 0, ""))


# --- handlers: what the page asks ---------------------------------------------------------------------------


@route("GET", "/alpha/me", "server", quick=True, gives="Me", a200="who asks")
def get_me(call: Call) -> Any:
    """Who the caller is to this server, and what he may do."""
    user = call.user
    by = "nobody" if not user.known else "certificate" if user.name == call.request.certificate else "token"
    return call.success(name=user.name, level=user.level, roles=list(user.roles),
                        by="scheduler" if call.auth is not None else by)


@route("GET", "/alpha/server", "server", access="admin", quick=True, gives="ServerState",
       a200="how this server is")
def get_server(call: Call) -> Any:
    """How this server is: the options in force, its limits and how near each is."""
    service, used = call.service, call.service.used()
    limits = {name: dict({"limit": service.limits[name], "unit": limit.unit},
                         **({"used": used[name]} if name in used else {})) for name, limit in LIMITS.items()}
    return call.success(
        version=__version__, python=sys.version.split()[0], started=int(service.started * 1000),
        uptime=round(time.time() - service.started, 3), options=service.options, limits=limits,
        figures=process_figures())


@route("GET", "/alpha/pending/{cluster}", "watch", remembered=True, params="role limit offset",
       gives="WaitingList", a200="tasks that wait, the one that has waited longest first")
def list_waiting(call: Call) -> Any:
    """The tasks of a cluster that wait for a host, and why."""
    query = api.TaskQuery(statuses=set(_NOT_PLACED))
    response = call.read("getTasksWithoutConfigs", query, projection=projection("cluster tasks"))
    tasks = response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", [])
    known = pending_reasons(call.scheduler, api.TaskQuery()) if tasks else {}
    wanted = glob(call.get("role", "*"))
    found: List[Json] = []
    for task in tasks:
        plain = _plain_task(call.args["cluster"], "", task)
        last = plain["events"][-1] if plain["events"] else {}
        if wanted(plain["job"].split("/")[1]):
            found.append({name: plain[name] for name in ("id", "job", "instance", "state")})
            reason = known.get(plain["id"]) or last.get("message") or ""
            found[-1].update(since=last.get("time"), reason=reason)
    found.sort(key=lambda each: (each["since"] or 0, each["id"]))
    shown, headers = call.page(found)
    return call.success(200, headers, count=len(shown), total=len(found), pending=shown)


@route("GET", "/alpha/hosts/{cluster}", "watch", remembered=True, params="host limit offset",
       gives="HostList", a200="hosts by name")
def list_hosts(call: Call) -> Any:
    """The hosts on which tasks are, and those that host= names in full: how many tasks, and the mode."""
    states = api.ScheduleStatus
    query = api.TaskQuery(statuses=set(api.LIVE_STATES) | {states.ASSIGNED, states.STARTING})
    response = call.read("getTasksWithoutConfigs", query, projection=projection("hosts"))
    tasks = response.get("result", {}).get("scheduleStatusResult", {}).get("tasks", ())
    counts = collections.Counter(task["assignedTask"].get("slaveHost") for task in tasks)
    wanted = call.get("host") or ["*"]
    modes = _modes(call, [each for each in wanted if each not in counts and not re.search(r"[*?\[]", each)])
    globs = [glob(each) for each in wanted]
    names = sorted({host for host in counts if host and any(fits(host) for fits in globs)} | set(modes))
    shown, headers = call.page(names)
    modes.update(_modes(call, [host for host in shown if host in counts]))
    return call.success(200, headers, count=len(shown), total=len(names), hosts=[
        dict({"host": host, "tasks": counts[host]}, **_some(mode=modes.get(host))) for host in shown])


def _modes(call: Call, hosts: Sequence[str]) -> Dict[str, str]:
    """The mode of each of the hosts that the scheduler knows."""
    if not hosts:
        return {}
    result = call.read("maintenanceStatus", api.Hosts(hostNames=set(hosts))).result.maintenanceStatusResult
    return {each.host: api.MaintenanceMode.name_of(each.mode) for each in result.statuses or ()}


@route("GET", "/alpha/events/{cluster}", "watch", params="snapshot", gives="text/event-stream",
       a200="task, instance and update events")
def watch_cluster(call: Call) -> Any:
    """Events of all jobs of a cluster as they happen."""
    cluster = call.args["cluster"]
    return call.service.stream(call, ("cluster", cluster), lambda: TaskChanges(
        call.scheduler, cluster, api.TaskQuery, api.JobUpdateQuery))


class Version(NamedTuple):
    """A configuration that a job has had. when: it was last begun, if known; instances: how many had it."""
    config: Any
    when: Optional[int]
    user: Optional[str]
    message: Optional[str]
    update: Optional[str]
    instances: int
    settings: Any = None


def _config_id(config: Any) -> str:
    """A short hash of what a configuration means: equal for what `same_meaning` takes for the same."""
    data: Any = config.executorConfig.data if config.executorConfig else None
    with contextlib.suppress(TypeError, ValueError):
        data = load_json(data)
    name = config.executorConfig.name if config.executorConfig else None
    plain = _significant(config.replace(executorConfig=None, owner=None, taskLinks=None).to_plain())
    return hashlib.sha256(json.dumps([plain, name, data], sort_keys=True).encode()).hexdigest()[:12]


_ENDED_READ = 200       # ended tasks that are looked at for configurations: each comes with its own
# Those of the aurora client, where the job has had no update whose settings could be taken.
_ROLLBACK_SETTINGS = api.JobUpdateSettings(
    updateGroupSize=1, maxPerInstanceFailures=0, maxFailedInstances=0, minWaitInInstanceRunningMs=45000,
    rollbackOnFailure=True, updateOnlyTheseInstances=set(), waitForBatchCompletion=False)


def _versions(call: Call) -> Dict[str, Version]:
    """The configurations that the scheduler still knows of a job, by id, the one begun last first."""
    found: Dict[str, Version] = {}

    def note(version: Version) -> None:
        identity = _config_id(version.config)
        known = found.get(identity)
        if known is None or (version.when or 0) > (known.when or 0):
            found[identity] = version
    for details in find_updates(call.scheduler, api.JobUpdateQuery(jobKey=call.key.thrift)):
        update, instructions = details.update.summary, details.update.instructions
        said = next((each.message for each in details.updateEvents or () if each.message), None)
        desired, settings = instructions.desiredState, instructions.settings
        if desired:
            note(Version(desired.task, update.state.createdTimestampMs, update.user, said, update.key.id,
                         len(from_ranges(desired.instances)), settings))
        for each in instructions.initialState or ():
            note(Version(each.task, None, None, None, None, len(from_ranges(each.instances)), settings))
    for config, numbers in call.running:
        note(Version(config, None, None, None, None, len(numbers)))
    query = api.TaskQuery(jobKeys={call.key.thrift}, statuses=set(api.TERMINAL_STATES), limit=_ENDED_READ)
    ended = call.read("getTasksStatus", query).result.scheduleStatusResult.tasks or ()
    for task in ended:
        first = min((event.timestamp for event in task.taskEvents or ()), default=None)
        version = found.get(_config_id(task.assignedTask.task))
        if version is None or version.update is None:       # an update tells who; a task only when
            note(Version(task.assignedTask.task, first, None, None, None, 1))
    return dict(sorted(found.items(), key=lambda pair: pair[1].when or 0, reverse=True))


@route("GET", "/alpha/job/{key}/history", "watch", remembered=True, params="limit offset", gives="History",
       a200="configurations, the one begun last first")
def list_history(call: Call) -> Any:
    """The configurations that the scheduler still knows of a job, from updates and tasks: for rollback."""
    versions = _versions(call)
    if not versions:
        _require_job(call)
    running: Dict[str, List[int]] = {}
    for config, numbers in call.running:
        running.setdefault(_config_id(config), []).extend(numbers)
    shown, headers = call.page(list(versions.items()))
    return call.success(200, headers, count=len(shown), total=len(versions), versions=[
        {"id": identity, "when": each.when, "user": each.user, "message": each.message, "update": each.update,
         "running": sorted(running.get(identity, ())), "config": plain_config(each.config)}
        for identity, each in shown])


@route("POST", "/alpha/job/{key}/rollback", "change", params="to:version message wait", gives="JobWritten",
       guards=_JOB_GUARDS, a202="started",
       a200="unchanged: it runs that already; or, where it was waited for, rolled forward",
       a409="an update is in progress; or, where it was waited for, it did not roll forward")
def rollback_job(call: Call) -> Any:
    """Start a rolling update to a configuration that the job has had, of history, without any file."""
    if "version" not in call.params:
        raise BadRequest("rollback needs to=ID; GET /alpha/job/%s/history lists them" % (call.key,))
    versions = _versions(call)
    if not versions:
        _require_job(call)
    version = versions.get(call.get("version"))
    if version is None:
        raise no_such("configuration", call.get("version"), versions)
    if not version.config.isService and _cron_of(call) is not None:
        raise Unprocessable("%s is a cron job; replace it with PUT /alpha/cron/%s" % (call.key, call.key))
    if call.running and {_config_id(config) for config, _ in call.running} == {call.get("version")}:
        said = "all instances have this configuration already"
        return call.job_success(200, unchanged=True, messages=[said])
    known = [each.settings for each in (version, *versions.values()) if each.settings]
    settings = known[0] if known else _ROLLBACK_SETTINGS
    count = sum(len(numbers) for _, numbers in call.running) or version.instances
    configuration = api.JobConfiguration(key=call.key.thrift, owner=version.config.owner,
                                         taskConfig=version.config, instanceCount=count)
    job = align(Job(str(call.key), configuration, settings, [], []), call.running)
    if call.get("dry_run"):
        call.notes["plan"] = plan_update(call.scheduler, job, (), call.running)
    message = call.message or "back to %s" % call.get("version")
    call.intend("startJobUpdate", job.update_request(), message)
    started = start_update(call.scheduler, job, (), message)
    if not started.id:
        return call.job_success(200, unchanged=True, messages=started.messages)
    return _awaiting_update(call, 202, started.id)


# --- OpenAPI ------------------------------------------------------------------------------------------------

_BODIES: Dict[str, Json] = {
    "quota": {"type": "object", "additionalProperties": False, "minProperties": 1,
              "description": "all three, unless increase=1 says that they are added", "properties": {
                  name: {"type": "number", "description": text} for name, text in (
                      ("cpu", "cores"), ("ram_mb", "MB of memory"), ("disk_mb", "MB of disk"))},
              "example": {"cpu": 64, "ram_mb": 131072, "disk_mb": 524288}},
    "json": {"type": "object", "additionalProperties": True, "description": "the method's arguments by name"}}
_EXAMPLE = ("jobs = [Service(cluster='devcluster', role='www-data', environment='devel', name='hello', "
            "task=SimpleTask('hello', 'while true; do echo hello; sleep 10; done'))]\n")


def _request_body(body: str) -> Json:
    """What a call takes: a configuration in one of its forms, or JSON."""
    if body != "config":
        return {"required": body == "quota", "content": {JSON_TYPE: {"schema": _BODIES[body]}}}
    source = {"schema": {"type": "string", "description": "an .aurora file"}, "example": _EXAMPLE}
    files = {"type": "object", "required": ["file"], "properties": {"file": {
        "type": "array", "items": {"type": "string", "format": "binary"},
        "description": "the first is the root"}}}
    return {"required": True, "content": {
        "text/plain": source, "application/octet-stream": {"schema": {
            "type": "string", "format": "binary", "description": "the same"}},
        TAR_TYPES[0]: {"schema": {"type": "string", "format": "binary", "description": "a folder"}},
        JSON_TYPE: {"schema": {"type": "object", "additionalProperties": True,
                               "description": "a JSON job, as aurora --read-json takes"}},
        "multipart/form-data": {"schema": files}}}


def _parameters(each: Route, path: str) -> List[Json]:
    found: List[Json] = []
    for name in re.findall(r"\{(\w+)\}", path):
        schema: Json = {"type": "string", "pattern": "^%s$" % _SEGMENTS.get(name, IDENTIFIER.pattern).replace(
            r"\w", "A-Za-z0-9_"), "maxLength": 4096 if name == "hosts" else MAX_IDENTIFIER}
        if name == "method":
            schema = {"type": "string", "enum": list(api.method_names)}
        text, example = _PATH_PARAMS[name]
        found.append(dict({"name": name, "in": "path", "required": True, "description": text,
                           "schema": schema},
                          **_some(example=example)))
    for name, row in each.params.items():
        param = PARAMS[row]
        many = param.kind.join is not None
        required = row in ("size", "to_state", "version")
        shown: Json = {"name": name, "in": "query", "required": required, "description": param.help,
                       "schema": {"type": "array", "items": param.kind.schema} if many else param.kind.schema}
        if param.example is not None:
            shown["example"] = [param.example] if many else param.example
        found.append(shown)
    for name, text, there in (
            ("If-None-Match", "an ETag: 304 where it is still that", each.method == "GET"
             and not each.is_stream),
            ("Last-Event-ID", "the id of the last event that arrived", each.is_stream),
            ("Prefer", "wait=N, as the parameter", "wait" in each.params),
            ("Idempotency-Key", "a write with it is done once", each.writes),
            ("If-Match", "an ETag that the thing must still have, else 412", bool(each.guards))):
        if there:
            found.append({"name": name, "in": "header", "required": False, "description": text, "schema": {
                "type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"}
                if name == "Idempotency-Key" else {"type": "string", "minLength": 1}})
    return found


def _openapi_operation(each: Route, path: str, schemas: Schemas) -> Json:
    answers: Json = {}
    stated = dict(each.answers)
    if each.writes and each.access != "read":
        stated.setdefault(200, "with dry_run=1: what would be done")
    for status, text in stated.items():
        if status >= 400:
            content = {JSON_TYPE: {"schema": schemas.ref("Failure")}}
        elif "/" in each.gives:
            content = {each.gives: {"schema": {"type": "object", "additionalProperties": True}
                                    if each.gives == JSON_TYPE else {
                "type": "string"}}}
        else:
            content = {JSON_TYPE: {"schema": schemas.ref(each.gives)}}
        told = [("ETag", "what If-None-Match and If-Match take", status == 200 and each.method == "GET"),
                ("Location", "what was begun", status == 202
                 and (each.operates or "{id}" in each.path or "update" in each.path)),
                ("Link", 'rel="next": the next page', status == 200 and "offset" in each.params)]
        answers[str(status)] = dict({"description": text, "content": content}, **_some(headers={
            name: {"description": text, "schema": {"type": "string"}} for name, text, there in told
            if there}))
    if each.method == "GET" and not each.is_stream:
        answers["304"] = {"description": "not modified"}
    answers["default"] = {"$ref": "#/components/responses/Failure"}
    made: Json = {"operationId": each.name, "summary": each.summary, "tags": [each.group],
                  "responses": answers,
                  "description": "Needs %s access." % each.access, "parameters": _parameters(each, path)}
    if each.body:
        made["requestBody"] = _request_body(each.body)
    return made


@lru_cache(maxsize=1)
def _openapi_response() -> Response:
    return Response(200, body=openapi_text())       # one, so that it is hashed and compressed once


@lru_cache(maxsize=1)
def openapi_text() -> bytes:
    """The OpenAPI 3.1 description of the route table, as JSON."""
    paths: Dict[str, Json] = {}
    schemas = Schemas()
    for each in ROUTES:
        path = each.path.replace("{key}", "{cluster}/{role}/{environment}/{name}")
        paths.setdefault(path, {})[each.method.lower()] = _openapi_operation(each, path, schemas)
    failure = {"description": "it was refused, or failed: `code` says why", "content": {JSON_TYPE: {
        "schema": schemas.ref("Failure"),
        "example": {"status": "failure", "code": "NOT_FOUND", "errors": ["there is no job …"],
                    "count": 0}}}}
    return json.dumps({
        "openapi": "3.1.0", "info": {"title": "aurora_rest", "version": __version__,
                                     "summary": "Apache Aurora over plain HTTP",
                                     "description": "Times are milliseconds since 1970, durations seconds; "
                                                    "a job is "
                                     "cluster/role/environment/name. A client that reads whole bodies is of "
                                     "no use for "
                                     "text/event-stream.",
                                     "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}], "tags": [{"name": name, "description": text}
                                             for name, text in _GROUPS.items()], "paths": paths,
        "security": [{}, {"token": []}, {"basic": []}],
        "components": {"schemas": schemas.made, "responses": {"Failure": failure}, "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "a token of --tokens"},
            "basic": {"type": "http", "scheme": "basic",
                      "description": "the token as password; or, with --forward-auth, "
                      "the scheduler's own credentials"}}}}).encode()


# ============================================================================================================
# 7. Demo scheduler
#
# A simulated Aurora scheduler behind a real Thrift /api: tasks, updates, cron, quota, maintenance, backups as
# Aurora does them, in memory. Time passes when somebody looks: every call first does what was due since the
# last one, so nothing runs in the background and tests can turn the clock by hand. Uses rooms 1 to 6. j/ in
# the comments is src/main/java/org/apache/aurora/scheduler.
# ============================================================================================================

JobTuple = Tuple[str, str, str]         # a job's role, environment and name
_S = api.ScheduleStatus
_U = api.JobUpdateStatus
_ACTED = "ASSIGNED STARTING RUNNING"
_FROM_ACTED = "FINISHED FAILED RESTARTING DRAINING KILLED KILLING LOST PREEMPTING"
_LEAVING = "FINISHED FAILED KILLING KILLED LOST PARTITIONED"
_TRANSITIONS = {_S.values[name]: frozenset(_S.values[each] for each in targets.split()) for name, targets in {
    # j/state/TaskStateMachine.java. KILLING of a task that waits deletes it.
    "INIT": "PENDING THROTTLED", "THROTTLED": "PENDING KILLING", "PENDING": "ASSIGNED KILLING",
    "ASSIGNED": "STARTING RUNNING " + _FROM_ACTED, "STARTING": "RUNNING PARTITIONED " + _FROM_ACTED,
    "RUNNING": "PARTITIONED " + _FROM_ACTED,
    "PARTITIONED": "LOST FAILED FINISHED RUNNING ASSIGNED STARTING RESTARTING DRAINING PREEMPTING KILLING",
    "RESTARTING": _LEAVING, "DRAINING": _LEAVING, "PREEMPTING": _LEAVING,
    "KILLING": "FINISHED FAILED KILLED LOST PARTITIONED",
    "FINISHED": "", "FAILED": "", "KILLED": "", "LOST": ""}.items()}
_TIMED = frozenset([_S.ASSIGNED, _S.KILLING, _S.RESTARTING, _S.PREEMPTING, _S.DRAINING])
_EXECUTOR_TEXTS = {_S.KILLED: "Instructed to kill task.", _S.FINISHED: "Task finished.",
                   _S.FAILED: "Task failed."}
_BEING_REPLACED = frozenset([_S.RESTARTING, _S.DRAINING, _S.PREEMPTING])
_WAITING = frozenset([_S.PENDING, _S.THROTTLED])
_PENDING_STATS = frozenset([_S.INIT, _S.PENDING, _S.THROTTLED])
_ROLLING = frozenset([_U.ROLLING_FORWARD, _U.ROLLING_BACK])
_BACKWARDS = frozenset([_U.ROLLING_BACK, _U.ROLL_BACK_PAUSED, _U.ROLL_BACK_AWAITING_PULSE])
_UPDATE_TRANSITIONS = {_U.values[name]: frozenset(_U.values[each] for each in targets.split()) for name,
                       targets in {
    # j/updater/JobUpdateStateMachine.java
    "ROLLING_FORWARD": "ROLLING_BACK ROLL_FORWARD_PAUSED ROLL_FORWARD_AWAITING_PULSE ROLLED_FORWARD ABORTED "
                       "ERROR FAILED",
    "ROLLING_BACK": "ROLL_BACK_PAUSED ROLL_BACK_AWAITING_PULSE ROLLED_BACK ABORTED ERROR FAILED",
    "ROLL_FORWARD_PAUSED": "ROLLING_BACK ROLLING_FORWARD ROLL_FORWARD_AWAITING_PULSE ABORTED ERROR",
    "ROLL_BACK_PAUSED": "ROLLING_BACK ROLL_BACK_AWAITING_PULSE ABORTED ERROR",
    "ROLL_FORWARD_AWAITING_PULSE": "ROLLING_BACK ROLLING_FORWARD ROLL_FORWARD_PAUSED ABORTED ERROR",
    "ROLL_BACK_AWAITING_PULSE": "ROLLING_BACK ROLL_BACK_PAUSED ABORTED ERROR"}.items()}


class DemoClock:
    """The demo's time. speed: its seconds for one of ours; 0 stands still until `advance` is called."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._start = time.time()
        self._real = time.monotonic()
        self._turned = 0.0

    def now(self) -> float:
        return self._start + self._turned + (time.monotonic() - self._real) * self.speed

    def advance(self, seconds: float) -> None:
        self._turned += seconds


class _Refusal(Exception):
    """A response code other than OK, with its message; None where Aurora sends none. result: what goes with
    it."""

    def __init__(self, message: Optional[str], code: str = "INVALID_REQUEST", result: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.result = result


class DemoTask:
    """One task. events: (milliseconds, status, message); key: role, environment, name."""
    __slots__ = ("id", "key", "instance", "config", "status", "events", "failures", "ancestor", "host",
                 "ports",
                 "partitions", "vetoes")

    def __init__(self, task_id: str, key: JobTuple, instance: int, config: Any) -> None:
        self.id = task_id
        self.key = key
        self.instance = instance
        self.config = config
        self.status: int = _S.INIT
        self.events: List[Tuple[int, int, Optional[str]]] = []
        self.failures = 0
        self.ancestor: Optional[str] = None
        self.host: Optional[DemoHost] = None
        self.ports: Dict[str, int] = {}
        self.partitions = 0
        self.vetoes = ""

    @property
    def active(self) -> bool:
        return self.status in api.ACTIVE_STATES

    def was(self, status: int) -> bool:
        return any(event[1] == status for event in self.events)

    def duplicate(self) -> DemoTask:
        made = DemoTask(self.id, self.key, self.instance, self.config)
        for name in self.__slots__[4:]:
            setattr(made, name, getattr(self, name))
        made.events, made.ports = list(self.events), dict(self.ports)
        return made


class DemoHost:
    """A machine of the demo cluster: resources in cores and MB, attributes, maintenance."""

    def __init__(self, name: str, number: int, cpu: float, ram: int, disk: int,
                 attributes: Dict[str, Set[str]]) -> None:
        self.name = name
        self.slave_id = "demo-agent-%d" % number
        self.total = (cpu, ram, disk)
        self.used = [0.0, 0.0, 0.0]
        self.attributes = attributes
        self.mode: int = api.MaintenanceMode.NONE
        self.drain: Optional[Tuple[Any, float]] = None      # SLA policy, and until when it counts
        self.tasks: Dict[str, DemoTask] = {}


class DemoUpdate:
    """One job update and, while it rolls, the state of its instances."""

    def __init__(self, key: JobTuple, user: str, request: Any, initial: Dict[int, Any],
                 desired: Set[int]) -> None:
        self.key = key
        self.id = str(uuid.uuid4())
        self.user = user
        self.metadata = set(request.metadata or ())
        self.config = request.taskConfig
        self.settings = request.settings
        self.initial = initial
        self.desired = desired
        self.status = -1
        self.events: List[Any] = []
        self.instance_events: List[Any] = []
        self.recorded: Set[Tuple[int, int]] = set()
        self.last_pulse = 0.0
        self.seen: Set[int] = set()
        self.states: Dict[int, str] = {}
        self.counts: collections.Counter[str] = collections.Counter()   # of the states
        self.failures: collections.Counter[int] = collections.Counter()
        self.total_idle: Optional[int] = None
        self.generation = 0

    def set_state(self, instance: int, state: str) -> None:
        self.counts[self.states[instance]] -= 1
        self.counts[state] += 1
        self.states[instance] = state

    def duplicate(self) -> DemoUpdate:
        made = copy.copy(self)
        made.counts = self.counts.copy()
        made.events, made.instance_events = list(self.events), list(self.instance_events)
        made.recorded, made.seen, made.failures = set(self.recorded), set(self.seen), self.failures.copy()
        made.states = dict(self.states)
        return made

    @property
    def forward(self) -> bool:
        return self.status not in _BACKWARDS

    @property
    def instances(self) -> Set[int]:
        return set(self.initial) | self.desired

    def wanted(self, instance: int) -> Any:
        """The TaskConfig the instance is to have, None where it is to go."""
        if self.forward:
            return self.config if instance in self.desired else None
        return self.initial.get(instance)

    def order(self, instance: int) -> Tuple[int, int]:
        kind = 1 if instance not in self.initial else 2 if instance in self.desired else 3
        return (kind, instance)

    def job_key(self) -> Any:
        return api.JobKey(role=self.key[0], environment=self.key[1], name=self.key[2])

    def update_key(self) -> Any:
        return api.JobUpdateKey(job=self.job_key(), id=self.id)

    @property
    def modified(self) -> int:
        return max([self.events[-1].timestampMs] + [event.timestampMs for event in self.instance_events[-1:]])

    def summary(self, with_state: bool = True) -> Any:
        state = api.JobUpdateState(status=self.status, createdTimestampMs=self.events[0].timestampMs,
                                   lastModifiedTimestampMs=self.modified) if with_state else None
        return api.JobUpdateSummary(user=self.user, state=state, key=self.update_key(),
                                    metadata=self.metadata)

    def details(self) -> Any:
        groups: List[Tuple[Any, List[int]]] = []
        for instance, config in sorted(self.initial.items()):
            _group(groups, config, instance)
        desired = api.InstanceTaskConfig(task=self.config,
                                         instances=to_ranges(self.desired)) if self.desired else None
        instructions = api.JobUpdateInstructions(
            initialState={api.InstanceTaskConfig(task=config, instances=to_ranges(numbers))
                          for config, numbers in groups}, desiredState=desired, settings=self.settings)
        return api.JobUpdateDetails(
            update=api.JobUpdate(summary=self.summary(), instructions=instructions),
            updateEvents=list(self.events), instanceEvents=list(self.instance_events))

    def next_group(self) -> List[int]:
        """The instances to work on next: j/updater/strategy."""
        working = self.counts["WORKING"]
        strategy = self.settings.updateStrategy
        queue = strategy.queueStrategy
        if working and (queue is None or working >= queue.groupSize):
            return []
        idle = sorted((i for i, state in self.states.items() if state == "IDLE"), key=self.order,
                      reverse=not self.forward) if self.counts["IDLE"] else []
        if queue is not None:
            return idle[:queue.groupSize - working]
        if strategy.batchStrategy is not None:
            return idle[:strategy.batchStrategy.groupSize]
        sizes = strategy.varBatchStrategy.groupSizes
        if self.total_idle is None:
            self.total_idle = len(idle)
        if self.forward:
            done, reached = self.total_idle - len(idle), 0
            for size in sizes:
                reached += size
                if reached > done:
                    return idle[:size]
            return idle[:sizes[-1]]
        left = len(idle)
        for size in sizes:
            if left <= size:
                return idle[:left]
            left -= size
        return idle[:left % sizes[-1] or sizes[-1]]

    @property
    def autopause(self) -> bool:
        strategy = self.settings.updateStrategy
        chosen = strategy.batchStrategy or strategy.varBatchStrategy
        return bool(chosen and chosen.autopauseAfterBatch)


def _group(groups: List[Tuple[Any, List[int]]], config: Any, instance: int) -> None:
    for known, numbers in groups:
        if known is config or known == config:
            numbers.append(instance)
            return
    groups.append((config, [instance]))


def amounts(config: Any) -> Tuple[float, float, float]:
    """cores, MB of memory, MB of disk of a TaskConfig."""
    found = [0.0, 0.0, 0.0]
    for each in config.resources or ():
        for i, value in enumerate((each.numCpus, each.ramMb, each.diskMb)):
            found[i] += value or 0
    return found[0], found[1], found[2]


def _aggregate(values: Sequence[float]) -> Any:
    return api.ResourceAggregate(resources={
        api.Resource(numCpus=float(values[0])), api.Resource(ramMb=int(values[1])),
        api.Resource(diskMb=int(values[2]))})


RESOURCE_NAMES = (("CPU", "core(s)", 16.0), ("RAM", "MB", 24576.0), ("disk", "MB", 460800.0))


class Crontab:
    """A cron schedule as j/../common/CrontabEntry reads it: five fields, no names for whole schedules, 0 is
    Sunday. Raises ValueError."""
    _FIELDS = ((0, 59, ()), (0, 23, ()), (1, 31, ()),
               (1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
               (0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")))

    def __init__(self, text: str) -> None:
        if not re.fullmatch(r"\S+(\s+\S+){4}", text):
            raise ValueError(text)
        self.minutes, self.hours, self.days, self.months, self.weekdays = (
            self._field(field, *bounds) for field, bounds in zip(text.split(), self._FIELDS))
        if len(self.days) < 31 and len(self.weekdays) < 7:
            raise ValueError(text)

    @staticmethod
    def _field(text: str, least: int, most: int, names: Sequence[str]) -> List[int]:
        for number, name in enumerate(names):
            text = re.sub(name, str(number + least), text, flags=re.IGNORECASE)
        found: Set[int] = set()
        for part in filter(None, text.split(",")):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part, re.ASCII)
            if not match:
                raise ValueError(part)
            first = int(match.group(1)) if match.group(1) else least
            last = int(match.group(2)) if match.group(2) else most if not match.group(1) else first
            step = int(match.group(3)) if match.group(3) else 1
            single = match.group(1) and not match.group(2)
            ranged = match.group(2) and match.group(3) and step >= last
            if (single and match.group(3)) or not least <= first <= last <= most or step <= 0 or ranged:
                raise ValueError(part)
            found.update(range(first, last + 1, step))
        if not found:
            raise ValueError(text)
        return sorted(found)

    def next(self, after: float) -> Optional[float]:
        """The next time after `after` (seconds, GMT), None if there is none in the next five years."""
        start = int(after) // 60 * 60 + 60
        day = start // 86400
        for offset in range(366 * 5):
            parts = time.gmtime((day + offset) * 86400)
            if parts.tm_mon in self.months and parts.tm_mday in self.days and (
                    parts.tm_wday + 1) % 7 in self.weekdays:
                for hour in self.hours:
                    for minute in self.minutes:
                        moment = (day + offset) * 86400 + hour * 3600 + minute * 60
                        if moment >= start:
                            return float(moment)
        return None


_QUICK_COMMANDS = frozenset(
    "echo true : cd export mkdir ls date cat printf test touch rm cp mv chmod set ln".split())


@lru_cache(maxsize=1024)
def command_fate(command: str) -> Tuple[Optional[float], bool]:
    """How a demo process with this command lives: (seconds until it ends, or None if it runs on; whether it
    fails).

    `exit N`, `false` and `true` do what they say, `sleep N` takes N seconds, a few harmless commands take
    none, loops and any other program run on. Statements are separated by ; && || or lines.
    """
    seconds, failed = 0.0, False
    for statement in re.split(r";|&&|\|\||\n", command):
        words = statement.split()
        if not words:
            continue
        if words[0] == "sleep" and len(words) > 1:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", words[1])
            if not match:
                return None, False
            seconds += float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
            failed = False
        elif words[0] == "exit":
            return seconds, len(words) > 1 and words[1] != "0"
        elif words[0] == "false":
            failed = True
        elif words[0] in _QUICK_COMMANDS:
            failed = False
        else:
            return None, False
    return seconds, failed


def task_fate(config: Any) -> Tuple[Optional[float], bool]:
    """The same for a whole task: its processes one after the other where they are ordered, else side by side.
    A service of which no process ends by sleep, exit or false runs on."""
    try:
        data = json.loads(config.executorConfig.data)
        processes = [p for p in data["task"]["processes"] if not p.get("final")]
        ordered = bool(data["task"].get("constraints"))
        commands = [str(p["cmdline"]) for p in processes if not p.get("daemon") and not p.get("ephemeral")]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, False
    if config.isService and not any(re.search(r"\b(sleep|exit|false)\b", each) for each in commands):
        return None, False
    total = 0.0
    longest: Optional[float] = 0.0
    for command in commands:
        seconds, failed = command_fate(command)
        if failed:
            return (total if ordered else 0.0) + (seconds or 0.0), True
        if seconds is None:
            longest = None
            if ordered:
                return None, False
        else:
            total += seconds
            longest = None if longest is None else max(longest, seconds)
    return (total if ordered else longest), False


class _DemoTime:
    """The demo's time: what is due, and the work that changes post. A subclass is a layer on top, down to
    Demo. Everything happens with _lock held, which guards all that the layers have."""

    def __init__(self, speed: float) -> None:
        self.clock = DemoClock(speed)
        self._lock = threading.RLock()
        self._now = self.clock.now()
        self._due: List[Tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._posts: Deque[Callable[[], None]] = collections.deque()
        self._settling = False
        self._random = random.Random(7)
        self._user = "UNSECURE"         # who makes the call under way

    def advance(self, seconds: float) -> None:
        """Turn the clock and do what falls due."""
        with self._lock:
            self.clock.advance(seconds)
            self._catch_up()

    def _catch_up(self) -> None:
        now = self.clock.now()
        while self._due and self._due[0][0] <= now:
            moment, _, work = heapq.heappop(self._due)
            self._now = max(self._now, moment)
            # Aurora logs what goes wrong in work that is due; it is nobody's call.
            with contextlib.suppress(_Refusal, ValueError):
                work()
                self._settle()
        self._now = max(self._now, now)

    def _after(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._now + seconds, next(self._serial), work))

    def _settle(self) -> None:
        """Tell the updater of the changes in the order they were posted, those that it causes too."""
        if self._settling:
            return
        self._settling = True
        try:
            while self._posts:
                self._posts.popleft()()
        finally:
            self._settling = False

    @property
    def _ms(self) -> int:
        return int(self._now * 1000)

    @staticmethod
    def _not_blank(text: Any) -> None:
        if not text or isinstance(text, str) and not text.strip():
            raise ValueError("Argument cannot be blank")


class _DemoTasks(_DemoTime):
    """The tasks, by job and role, and their states: j/state/StateManagerImpl.java, TaskStateMachine.java."""
    SCHEDULE, START, RUN, END, KILL = 0.05, 0.15, 0.3, 0.2, 0.4     # seconds that steps of a task's life take
    STATE_TIMEOUT = 300.0           # -transient_task_state_timeout
    FLAPPING_THRESHOLD = 300.0      # -flapping_task_threshold
    PENALTY = (30.0, 300.0)         # -initial_flapping_task_delay, -max_flapping_task_delay
    HISTORY = (172800.0, 3600.0, 100)   # -history_prune_threshold, -history_min_retention_threshold, per job

    def __init__(self, speed: float) -> None:
        super().__init__(speed)
        self._tasks: Dict[str, DemoTask] = {}
        self._jobs: Dict[JobTuple, Dict[str, DemoTask]] = {}
        self._active: Dict[JobTuple, Dict[int, DemoTask]] = {}      # of a job, by instance
        self._ended: Dict[JobTuple, Deque[DemoTask]] = {}           # of a job, the oldest first
        self._roles: Dict[str, Set[JobTuple]] = {}
        self._cron: Dict[JobTuple, Any] = {}
        self._pending: Dict[str, DemoTask] = {}
        self._interned: Dict[JobTuple, List[Any]] = {}

    def _schedule_soon(self, seconds: Optional[float] = None) -> None:
        """Called when a task waits for a host."""
        raise NotImplementedError

    def _post(self, task: DemoTask, status: Optional[int]) -> None:
        """Called with each change, None where the task is deleted."""
        raise NotImplementedError

    def _intern(self, config: Any) -> Any:
        """The one object for configurations of a job that are equal."""
        known = self._interned.setdefault(_tuple(config.job), [])
        for each in known:
            if each is config or each == config:
                return each
        known.append(config)
        if len(known) > 50:
            used = {id(task.config) for task in self._jobs.get(_tuple(config.job), {}).values()}
            known[:] = [each for each in known if id(each) in used or each is config]
        return config

    def _insert(self, config: Any, instances: Iterable[int]) -> None:
        key = _tuple(config.job)
        config = self._intern(config)
        numbers = sorted(instances)
        taken = set(self._active.get(key, ()))
        if not numbers:
            raise ValueError("Argument cannot be blank")
        if taken & set(numbers):
            raise ValueError("Instance ID collision detected.")
        for number in numbers:
            self._change(self._new_task(config, number), _S.PENDING)

    def _new_task(self, config: Any, instance: int) -> DemoTask:
        key = _tuple(config.job)
        task_id = re.sub(r"[^\w-]", "-", "%s-%d-%s" %
                         ("-".join(key), instance, uuid.UUID(int=self._random.getrandbits(128),
                                                                                          version=4)))
        task = DemoTask(task_id, key, instance, config)
        self._store(task)
        return task

    def _store(self, task: DemoTask) -> None:
        self._tasks[task.id] = task
        self._jobs.setdefault(task.key, {})[task.id] = task
        self._roles.setdefault(task.key[0], set()).add(task.key)
        self._note_active(task)

    def _note_active(self, task: DemoTask) -> None:
        active = self._active.setdefault(task.key, {})
        if task.active:
            active[task.instance] = task
        elif active.get(task.instance) is task:
            del active[task.instance]

    def _delete(self, task: DemoTask) -> None:
        if self._tasks.get(task.id) is not task:
            return      # a timer of a task that a recovery replaced
        self._tasks.pop(task.id)
        self._pending.pop(task.id, None)
        if self._active.get(task.key, {}).get(task.instance) is task:
            del self._active[task.key][task.instance]
        job = self._jobs.get(task.key, {})
        job.pop(task.id, None)
        if not job:
            self._jobs.pop(task.key, None)
            self._active.pop(task.key, None)
            self._ended.pop(task.key, None)
            self._interned.pop(task.key, None)
            if task.key not in self._cron:
                self._roles.get(task.key[0], set()).discard(task.key)
                if not self._roles.get(task.key[0]):
                    self._roles.pop(task.key[0], None)

    def _change(self, task: DemoTask, status: int, message: Optional[str] = None) -> bool:
        """A state change with its side effects. False where it is no change or not allowed; then nothing
        happens."""
        if self._tasks.get(task.id) is not task or status == task.status or (
                status not in _TRANSITIONS.get(task.status, ())):
            return False
        old = task.status
        if old in _WAITING and status == _S.KILLING:
            self._delete(task)
            self._post(task, None)
            return True
        if status == _S.FAILED and old not in _BEING_REPLACED and old != _S.KILLING:
            task.failures += 1
        self._save(task, status, message)
        if self._is_rescheduled(task, old, status):
            self._reschedule(task)
        if status == _S.PARTITIONED and (old in _BEING_REPLACED or old == _S.KILLING) or (
                old == _S.PARTITIONED and status in _BEING_REPLACED | {_S.KILLING}):
            self._change(task, _S.LOST, "Action performed on partitioned task, marking as LOST.")
        self._act_on(task, old, status)
        self._post(task, status)
        return True

    def _save(self, task: DemoTask, status: int, message: Optional[str]) -> None:
        if status == _S.PARTITIONED:
            task.partitions += 1
            if len(task.events) >= 3 and task.events[-2][1] == _S.PARTITIONED and (
                    task.events[-3][1] == task.events[-1][1]):
                del task.events[-2:]
        task.status = status
        task.events.append((self._ms, status, message))
        self._note_active(task)

    @staticmethod
    def _is_rescheduled(task: DemoTask, old: int, status: int) -> bool:
        if old == _S.KILLING:
            return False
        if old in _BEING_REPLACED:
            return status in (_S.FINISHED, _S.FAILED, _S.KILLED, _S.LOST)
        if status == _S.FINISHED:
            return bool(task.config.isService) and old != _S.PARTITIONED
        if status == _S.FAILED:
            most = task.config.maxTaskFailures or 0
            return bool(task.config.isService) or most == -1 or task.failures < most
        if status == _S.LOST and old == _S.PARTITIONED:
            return not task.was(_S.KILLING)
        return status in (_S.KILLED, _S.LOST)

    def _reschedule(self, task: DemoTask) -> None:
        penalty = self._penalty(task)
        replacement = self._new_task(task.config, task.instance)
        replacement.failures, replacement.ancestor = task.failures, task.id
        if not penalty:
            self._change(replacement, _S.PENDING, "Rescheduled")
            return
        self._change(replacement, _S.THROTTLED,
                     "Rescheduled, penalized for %d ms for flapping" % (penalty * 1000))

        def release() -> None:
            if replacement.status == _S.THROTTLED:
                self._change(replacement, _S.PENDING)
        self._after(self._penalty(replacement), release)

    def _penalty(self, task: DemoTask) -> float:
        """j/scheduling/RescheduleCalculator.java: grows with each ancestor in a row that ended soon after it
        started."""
        penalty = 0.0
        ancestor = self._tasks.get(task.ancestor or "")
        least, most = self.PENALTY
        while ancestor is not None and self._flapped(ancestor):
            half = penalty or least
            longer = min(most, half + self._random.random() * half)
            if longer == penalty:
                break
            penalty = longer
            ancestor = self._tasks.get(ancestor.ancestor or "")
        return penalty

    def _flapped(self, task: DemoTask) -> bool:
        if any(event[1] in (_S.RESTARTING, _S.KILLING, _S.DRAINING) for event in task.events):
            return False
        active = [event[0] for event in task.events if event[1] in api.ACTIVE_STATES]
        return bool(active) and task.events[-1][0] - active[-1] < self.FLAPPING_THRESHOLD * 1000

    def _act_on(self, task: DemoTask, old: int, status: int) -> None:
        """What the cluster does about a task's new state."""
        mark = task.events[-1]

        def later(seconds: float, status: int, message: Optional[str] = None) -> None:
            def move() -> None:
                if task.events[-1] is mark:
                    self._change(task, status, message or _EXECUTOR_TEXTS.get(status))
            self._after(seconds, move)
        if status == _S.PENDING:
            self._pending[task.id] = task
            self._schedule_soon()
        elif status == _S.ASSIGNED:
            later(self.START, _S.STARTING)
        elif status == _S.STARTING:
            later(self.RUN, _S.RUNNING, "Task is healthy." if "health" in task.ports else
                  "No health-check defined, task is assumed healthy.")
        elif status == _S.RUNNING:
            seconds, failed = task_fate(task.config)
            if seconds is not None:
                since = min(moment for moment, each, _ in task.events if each == _S.RUNNING) / 1000.0
                later(max(0.0, seconds + self.END - (self._now - since)), _S.FAILED if failed
                      else _S.FINISHED)
        elif status in _BEING_REPLACED or status == _S.KILLING:
            later(self.KILL, _S.KILLED)
        elif status == _S.PARTITIONED:
            policy = task.config.partitionPolicy
            if policy is None or policy.reschedule is not False:
                later(float(policy.delaySecs or 0) if policy else 0.0, _S.LOST,
                      "Task partitioned for too long.")
        elif status == _S.THROTTLED and old == status:
            later(self._penalty(task), _S.PENDING)
        elif status in api.TERMINAL_STATES:
            self._release(task)
            self._prune_history(task)
        if status in _TIMED:
            later(self.STATE_TIMEOUT, _S.LOST, "Task timed out")

    def _release(self, task: DemoTask) -> None:
        host = task.host
        if host is None or task.id not in host.tasks:
            return
        del host.tasks[task.id]
        for i, amount in enumerate(amounts(task.config)):
            host.used[i] -= amount
        if host.mode == api.MaintenanceMode.DRAINING and not any(t.active for t in host.tasks.values()):
            host.mode, host.drain = api.MaintenanceMode.DRAINED, None

    def _prune_history(self, task: DemoTask) -> None:
        """j/pruning/TaskHistoryPruner.java"""
        longest, shortest, most = self.HISTORY
        self._after(longest, lambda: self._delete(task) if not task.active else None)
        ended = self._ended.setdefault(task.key, collections.deque())
        ended.append(task)
        surplus = len(self._jobs[task.key]) - len(self._active[task.key]) - most
        while surplus > 0 and self._ms - ended[0].events[-1][0] >= shortest * 1000:
            oldest = ended.popleft()
            surplus -= self._tasks.get(oldest.id) is oldest
            self._delete(oldest)


class _DemoHosts(_DemoTasks):
    """The hosts: where tasks go (j/filter/SchedulingFilterImpl.java), and maintenance."""
    SCHEDULE_PENALTY = (1.0, 60.0)  # -initial_schedule_penalty, -max_schedule_penalty
    ATTEMPTS = (10, 0.25)           # -max_schedule_attempts_per_sec=40: so many in so many seconds
    SLA = (20, 7200)                # -min_required_instances_for_sla_check, -max_sla_duration_secs

    def __init__(self, speed: float, jobs: int, revocable: bool) -> None:
        super().__init__(speed)
        self.revocable = revocable
        self._schedule_at: Optional[float] = None
        # by id of a TaskConfig: it, its back-off, until when
        self._groups: Dict[int, Tuple[Any, float, float]] = {}
        self.hosts: Dict[str, DemoHost] = {}
        for number in range(max(6, jobs // 100)):
            self._add_host("demo-%02d" % (number + 1), 16.0 if not jobs else 256.0,
                           65536 << (4 if jobs else 0),
                           1 << 20 << (4 if jobs else 0), {"rack": {"rack-%s" % "abc"[number % 3]}})
        self._add_host("demo-dedicated", 16.0, 65536, 1 << 20,
                       {"rack": {"rack-a"}, "dedicated": {"www-data/web"}})

    def _add_host(self, name: str, cpu: float, ram: int, disk: int, attributes: Dict[str, Set[str]]) -> None:
        self.hosts[name] = DemoHost(name, len(self.hosts) + 1, cpu, ram, disk, dict(attributes, host={name}))

    def _schedule_soon(self, seconds: Optional[float] = None) -> None:
        moment = self._now + (self.SCHEDULE if seconds is None else seconds)
        if self._pending and (self._schedule_at is None or moment < self._schedule_at):
            self._schedule_at = moment
            self._after(moment - self._now, self._schedule)

    def _schedule(self) -> None:
        """j/scheduling/TaskGroups.java: tasks of one configuration are tried together; where they fit nowhere
        they are tried again after a back-off that grows, and not when room is made. So many attempts a
        second, in all."""
        if self._schedule_at is None or self._now < self._schedule_at - 1e-6:
            return          # another look comes sooner
        self._schedule_at = None
        attempts, pause = self.ATTEMPTS
        first, most = self.SCHEDULE_PENALTY
        groups, self._groups = self._groups, {}
        for task in list(self._pending.values()):
            if task.status != _S.PENDING:
                self._pending.pop(task.id, None)
                continue
            which = id(task.config)
            config, penalty, until = self._groups.get(which) or groups.get(which) or (task.config, 0.0, 0.0)
            if until <= self._now and attempts:
                attempts -= 1
                veto = self._place(task)
                half = penalty or first
                penalty = 0.0 if veto is None else min(most, half + self._random.random() * half)
                until = self._now + penalty if penalty else 0.0
                if veto is not None:
                    for each in self._pending.values():
                        if each.config is task.config:
                            each.vetoes = veto
            self._groups[which] = (config, penalty, until)
        waits = [max(pause, until - self._now) if until <= self._now else until - self._now
                 for _, _, until in (self._groups[id(task.config)] for task in self._pending.values())]
        if waits:
            self._schedule_soon(min(waits))

    def _place(self, task: DemoTask) -> Optional[str]:
        """Assign the task to a host; why not, where none takes it."""
        best: Optional[Tuple[float, str]] = None
        for host in sorted(self.hosts.values(), key=lambda h: h.mode):
            veto = self._veto(task, host)
            if veto is None:
                self._assign(task, host)
                return None
            if best is None or veto[0] < best[0]:
                best = veto
        return best[1] if best else ""

    def _assign(self, task: DemoTask, host: DemoHost) -> None:
        self._pending.pop(task.id, None)
        task.vetoes = ""
        task.host = host
        host.tasks[task.id] = task
        for i, amount in enumerate(amounts(task.config)):
            host.used[i] += amount
        for each in sorted(task.config.resources or (), key=lambda r: r.namedPort or ""):
            if each.namedPort is not None:
                task.ports[each.namedPort] = self._random.choice(sorted(set(range(31000, 32000)) - {
                    port for other in host.tasks.values() for port in other.ports.values()}))
        self._change(task, _S.ASSIGNED)

    def _veto(self, task: DemoTask, host: DemoHost) -> Optional[Tuple[float, str]]:
        """Why the task cannot run on the host, with a score that is lower the nearer it is; None if it
        can."""
        constraints = sorted(task.config.constraints or (),
                             key=lambda c: (c.constraint.value is None, c.name))
        if "dedicated" in host.attributes and all(each.name != "dedicated" for each in constraints):
            return 1e6, "Host is dedicated"
        if host.mode == api.MaintenanceMode.DRAINING:
            return 1e5, "Host draining for maintenance"
        if host.mode == api.MaintenanceMode.DRAINED:
            return 1e5, "Host drained for maintenance"
        for each in constraints:
            values = host.attributes.get(each.name, set())
            rule = each.constraint
            if rule.value is not None:
                if bool(rule.value.negated) == bool(values & set(rule.value.values or ())):
                    return 1e4, "Constraint not satisfied: " + each.name
                continue
            if not values:
                return 1e4, "Constraint not satisfied: " + each.name
            for value in values:
                count = sum(t.status in api.SLAVE_ASSIGNED_STATES and t.host is not None and
                            value in t.host.attributes.get(each.name, ())
                            for t in self._jobs[task.key].values())
                if count >= (rule.limit.limit or 0):
                    return 1e4, "Limit not satisfied: " + each.name
        if task.config.tier == "revocable" and not self.revocable:
            return 1000.0, "Insufficient: CPU"      # of which no offer has revocable ones
        lacking, score = [], 0.0
        for (name, _, span), need, total, used in zip(RESOURCE_NAMES, amounts(task.config), host.total,
                                                      host.used):
            if need > total - used + 1e-9:
                lacking.append("Insufficient: " + name)
                score += min(1000.0, 1000 * (need - (total - used)) // span)
        order = ("Insufficient: RAM", "Insufficient: disk", "Insufficient: CPU")
        return (score, ",".join(sorted(lacking, key=order.index))) if lacking else None

    def _sla_allows(self, task: DemoTask, policy: Any) -> bool:
        """j/sla/SlaManager.java: whether the task may go. A coordinator is not asked by the demo; it always
        agrees."""
        if policy.coordinatorSlaPolicy is not None or task.status not in api.SLAVE_ASSIGNED_STATES:
            return True
        active = list(self._active.get(task.key, {}).values())
        total = len(active)
        if not task.config.production or total < self.SLA[0]:
            return True
        rule = policy.percentageSlaPolicy or policy.countSlaPolicy
        up = sum(each.status == _S.RUNNING and each is not task and
                 self._ms - each.events[-1][0] > (rule.durationSecs or 0) * 1000 for each in active)
        if policy.countSlaPolicy is not None:
            return up >= min(rule.count, total - 1)
        percentage = rule.percentage if int((1 - rule.percentage / 100) * total) >= 1 else (
            total - 1) / total * 100
        return up / total * 100 >= percentage

    def _known_hosts(self, hosts: Any) -> List[DemoHost]:
        return [self.hosts[name] for name in sorted(hosts.hostNames) if name in self.hosts]

    @staticmethod
    def _statuses(hosts: Iterable[DemoHost]) -> Set[Any]:
        return {api.HostStatus(host=host.name, mode=host.mode) for host in hosts}

    def startMaintenance(self, hosts: Any) -> Any:
        found = self._known_hosts(hosts)
        for host in found:
            host.mode = api.MaintenanceMode.SCHEDULED
        return api.Result(startMaintenanceResult=api.StartMaintenanceResult(statuses=self._statuses(
            found))), None

    def drainHosts(self, hosts: Any) -> Any:
        found = self._known_hosts(hosts)
        for host in found:
            host.mode, host.drain = api.MaintenanceMode.DRAINING, (None, self._now)
            self._drain(host)
        return api.Result(drainHostsResult=api.DrainHostsResult(statuses=self._statuses(found))), None

    def slaDrainHosts(self, hosts: Any, defaultSlaPolicy: Any, timeoutSecs: int) -> Any:
        found = self._known_hosts(hosts)
        for host in found:
            host.mode = api.MaintenanceMode.DRAINING
            host.drain = (defaultSlaPolicy, self._now + (timeoutSecs or 0))
            tick = 60.0 - (self._now - self.clock._start) % 60.0        # the scheduler looks each minute
            self._after(tick, partial(self._poll_drain, host, host.drain))
        return api.Result(drainHostsResult=api.DrainHostsResult(statuses=self._statuses(found))), None

    def _poll_drain(self, host: DemoHost, drain: Any) -> None:
        if host.drain is drain and host.mode == api.MaintenanceMode.DRAINING:
            self._drain(host)
            if host.mode == api.MaintenanceMode.DRAINING:
                self._after(60.0, partial(self._poll_drain, host, drain))

    def _drain(self, host: DemoHost) -> None:
        """j/maintenance/MaintenanceController.java: drain the host's tasks as far as their SLA allows."""
        assert host.drain is not None
        default, until = host.drain
        for task in list(host.tasks.values()):
            policy = task.config.slaPolicy or default
            if policy is None or self._now > until or self._sla_allows(task, policy):
                self._change(task, _S.DRAINING, "Draining machine for maintenance.")
        if not any(task.active for task in host.tasks.values()):
            host.mode, host.drain = api.MaintenanceMode.DRAINED, None
        elif default is None and any(t.status not in (_S.DRAINING, _S.KILLING) for t in host.tasks.values()):
            self._after(60.0, partial(self._poll_drain, host, host.drain))

    def maintenanceStatus(self, hosts: Any) -> Any:
        return api.Result(maintenanceStatusResult=api.MaintenanceStatusResult(
            statuses=self._statuses(self._known_hosts(hosts)))), None

    def endMaintenance(self, hosts: Any) -> Any:
        found = self._known_hosts(hosts)
        for host in found:
            host.mode, host.drain = api.MaintenanceMode.NONE, None
        return api.Result(endMaintenanceResult=api.EndMaintenanceResult(statuses=self._statuses(found))), None


class _DemoUpdater(_DemoHosts):
    """The updates that roll: j/updater."""
    UPDATE_HISTORY = (10, 30 * 86400.0)

    def __init__(self, speed: float, jobs: int, revocable: bool) -> None:
        super().__init__(speed, jobs, revocable)
        self._updates: Dict[str, DemoUpdate] = {}
        self._rolling: Dict[JobTuple, DemoUpdate] = {}      # the active update of a job

    def _post(self, task: DemoTask, status: Optional[int]) -> None:
        update = self._rolling.get(task.key)
        if update is not None and update.status in _ROLLING and task.instance in update.instances:
            def tell() -> None:
                if status is None:
                    self._evaluate(update, {task.instance: None})
                elif task.status == status:
                    self._evaluate(update, {task.instance: task})
            self._posts.append(tell)

    def _set_update(self, update: DemoUpdate, status: int, message: Optional[str] = None,
                    user: Optional[str] = None) -> None:
        update.status = status
        update.events.append(api.JobUpdateEvent(status=status, timestampMs=self._ms, user=user,
                                                message=message))
        update.generation += 1
        if status in _ROLLING:
            self._start_rolling(update)
        elif status not in api.ACTIVE_JOB_UPDATE_STATES:
            self._rolling.pop(update.key, None)
            self._prune_updates(update.key)

    def _start_rolling(self, update: DemoUpdate) -> None:
        update.states = {instance: "IDLE" for instance in update.instances}
        update.counts = collections.Counter({"IDLE": len(update.states)})
        update.failures.clear()
        update.total_idle = None
        self._posts.append(lambda: self._evaluate(update, {}))

    def _prune_updates(self, key: JobTuple) -> None:
        most, longest = self.UPDATE_HISTORY
        ended = sorted((u for u in self._updates.values() if u.key == key and
                        u.status not in api.ACTIVE_JOB_UPDATE_STATES), key=lambda u: -u.events[0].timestampMs)
        for position, each in enumerate(ended):
            if position >= most or self._ms - each.events[0].timestampMs > longest * 1000:
                del self._updates[each.id]

    def _active_task(self, key: JobTuple, instance: int) -> Optional[DemoTask]:
        return self._active.get(key, {}).get(instance)

    def _pulse_expired(self, update: DemoUpdate) -> bool:
        limit = update.settings.blockIfNoPulsesAfterMs or 0
        return limit > 0 and (self._now - update.last_pulse) * 1000 >= limit

    def _evaluate(self, update: DemoUpdate, changed: Dict[int, Optional[DemoTask]]) -> None:
        """One step of OneWayJobUpdater: judge the instances that changed, start the next ones, note what
        happened."""
        if update.status not in _ROLLING or self._rolling.get(update.key) is not update:
            return
        forward = update.forward
        if self._pulse_expired(update):
            self._set_update(update, _U.ROLL_FORWARD_AWAITING_PULSE if forward
                             else _U.ROLL_BACK_AWAITING_PULSE,
                             "Pulses from external service have timed out.")
            return
        effects: Dict[int, List[str]] = {}
        actions: Dict[int, str] = {}
        failed: List[int] = []

        def judge(instance: int, task: Optional[DemoTask]) -> None:
            verdict = self._judge(update, instance, task)
            if verdict in ("SUCCEEDED", "FAILED"):
                update.set_state(instance, verdict)
                effects.setdefault(instance, []).append(verdict)
            else:
                actions[instance] = verdict
            if verdict == "FAILED":
                failed.append(instance)

        for instance, task in changed.items():
            if update.states.get(instance) == "WORKING":
                judge(instance, task)
        while self._overall(update) == "WORKING":
            was_working = update.counts["WORKING"] > 0
            group = update.next_group()
            for instance in group:
                update.set_state(instance, "WORKING")
                effects.setdefault(instance, []).append("WORKING")
                judge(instance, self._active_task(update.key, instance))
            if was_working or not group or any(instance in actions for instance in group):
                break
        overall = self._overall(update)
        if forward and update.autopause and self._autopauses(update, overall, set(effects) | set(actions)):
            self._set_update(update, _U.ROLL_FORWARD_PAUSED, "Update auto paused")
            self._record(update, forward, {i: e for i, e in effects.items() if e[-1] != "WORKING"})
            return
        self._record(update, forward, effects)
        if overall == "SUCCEEDED":
            self._set_update(update, _U.ROLLED_FORWARD if forward else _U.ROLLED_BACK)
        elif overall == "FAILED":
            back = forward and update.settings.rollbackOnFailure is not False
            self._set_update(update, _U.ROLLING_BACK if back else _U.FAILED,
                             "Latest failure: instance %d exited." % (failed[0] if failed else 0))
        else:
            for instance, action in actions.items():
                self._perform(update, instance, action)

    @staticmethod
    def _overall(update: DemoUpdate) -> str:
        if update.counts["FAILED"] > (update.settings.maxFailedInstances or 0):
            return "FAILED"
        return "WORKING" if update.counts["WORKING"] or update.counts["IDLE"] else "SUCCEEDED"

    def _judge(self, update: DemoUpdate, instance: int, task: Optional[DemoTask]) -> str:
        """StateEvaluator: SUCCEEDED, FAILED, or what to do: watch, wait, kill, add."""
        wanted = update.wanted(instance)
        present = task is not None and not (task.status != _S.KILLING and task.was(_S.KILLING))
        if task is None or not present:
            return "add" if wanted is not None else "SUCCEEDED"
        if wanted is None or not (task.config is wanted or task.config == wanted):
            return "kill" if task.active and task.status != _S.KILLING else "wait"
        if task.status == _S.RUNNING:
            wait = update.settings.minWaitInInstanceRunningMs or 0
            return "SUCCEEDED" if self._ms - task.events[-1][0] >= wait else "watch"
        if task.status in api.TERMINAL_STATES:
            update.failures[instance] += 1
            return "FAILED" if update.failures[instance] > (update.settings.maxPerInstanceFailures
                                                            or 0) else "wait"
        return "wait"

    @staticmethod
    def _autopauses(update: DemoUpdate, overall: str, touched: Set[int]) -> bool:
        if not update.seen:
            update.seen = touched
            return False
        if overall == "SUCCEEDED":
            update.seen = set()
            return False
        fresh = touched - update.seen
        update.seen |= touched
        return bool(fresh)

    def _record(self, update: DemoUpdate, forward: bool, effects: Dict[int, List[str]]) -> None:
        action = api.JobUpdateAction
        names = ({"WORKING": action.INSTANCE_UPDATING, "SUCCEEDED": action.INSTANCE_UPDATED,
                  "FAILED": action.INSTANCE_UPDATE_FAILED} if forward else
                 {"WORKING": action.INSTANCE_ROLLING_BACK, "SUCCEEDED": action.INSTANCE_ROLLED_BACK,
                  "FAILED": action.INSTANCE_ROLLBACK_FAILED})
        for instance, states in effects.items():
            if states == ["WORKING", "SUCCEEDED"] and not any(
                    (instance, action) in update.recorded for action in names.values()):
                continue        # it was as wanted already
            for state in states:
                if (instance, names[state]) not in update.recorded:
                    update.recorded.add((instance, names[state]))
                    self._instance_event(update, instance, names[state])

    def _instance_event(self, update: DemoUpdate, instance: int, action: int,
                        message: Optional[str] = None) -> None:
        update.instance_events.append(api.JobInstanceUpdateEvent(
            instanceId=instance, timestampMs=self._ms, action=action, message=message))

    def _perform(self, update: DemoUpdate, instance: int, action: str) -> None:
        if action == "kill":
            self._update_kill(update, instance, update.generation)
        elif action == "add":
            if self._active_task(update.key, instance) is None:
                self._insert(update.wanted(instance), [instance])
        elif action == "watch":
            generation = update.generation
            self._after((update.settings.minWaitInInstanceRunningMs or 0) / 1000.0 + 0.001,
                        lambda: self._posts.append(
                lambda: self._evaluate(update, {instance: self._active_task(update.key, instance)})
                if update.generation == generation else None))

    def _update_kill(self, update: DemoUpdate, instance: int, generation: int) -> None:
        task = self._active_task(update.key, instance)
        if task is None or update.generation != generation:
            return
        policy = (update.config if update.forward else update.initial.get(instance, update.config)).slaPolicy
        if update.settings.slaAware and policy is not None:
            action = (api.JobUpdateAction.INSTANCE_UPDATING if update.forward else
                      api.JobUpdateAction.INSTANCE_ROLLING_BACK)
            if (instance, -1) not in update.recorded:
                update.recorded.add((instance, -1))
                self._instance_event(update, instance, action, "Checking SLA before continuing.")
            if not self._sla_allows(task, policy):
                self._after(60.0, lambda: self._update_kill(update, instance, generation))
                return
            self._instance_event(update, instance, action, "SLA check passed, continuing.")
        self._change(task, _S.KILLING, "Killed for job update " + update.id)


class _DemoChecks(_DemoUpdater):
    """What is refused: j/configuration/ConfigurationManager.java, j/quota/QuotaManager.java."""
    ENVIRONMENTS = re.compile(r"prod|devel|test|staging\d*")

    def __init__(self, speed: float, jobs: int, revocable: bool, docker: bool) -> None:
        super().__init__(speed, jobs, revocable)
        self.docker = docker
        self._quotas: Dict[str, Tuple[float, float, float]] = {}

    def _checked_job(self, job: Any) -> Any:
        """The JobConfiguration with its task normalised. Raises _Refusal."""
        if job.taskConfig is None:
            raise _Refusal("Job configuration must have taskConfig set.")
        if (job.instanceCount or 0) <= 0:
            raise _Refusal("Instance count must be positive.")
        if not _is_key(job.key):
            raise _Refusal("Job key %s is invalid." % _java_key(job.key))
        if not self.ENVIRONMENTS.fullmatch(job.key.environment):
            raise _Refusal("Job environment %s doesn't match: ^(prod|devel|test|staging\\d*)$" %
                           job.key.environment)
        if job.owner is not None and not _is_identifier(job.owner.user):
            raise _Refusal("Job user contains illegal characters: %s" % job.owner.user)
        job = job.replace(taskConfig=self._checked_task(job.taskConfig, job.instanceCount))
        if job.cronSchedule and job.taskConfig.isService:
            raise _Refusal("A service task may not be run on a cron schedule: " + _java(job))
        return job

    def _checked_task(self, task: Any, count: int) -> Any:
        tiers = {tier["name"]: tier["settings"] for tier in DEFAULT_TIERS["tiers"]}
        if task.tier is not None and not _is_identifier(task.tier):
            raise _Refusal("Tier contains illegal characters: " + task.tier)
        tier = task.tier if task.tier is not None else str(DEFAULT_TIERS["defaultTierName"])
        if tier not in tiers:
            raise _Refusal("Invalid tier '%s' in TaskConfig." % tier)
        production = tiers[tier]["preemptible"] == "false" and tiers[tier]["revocable"] == "false"
        if not _is_key(task.job):
            raise _Refusal("Job key %s is invalid." % _java_key(task.job))
        container = task.container or api.Container(mesos=api.MesosContainer())
        if container.mesos is not None:
            container = api.Container(mesos=container.mesos.replace(volumes=container.mesos.volumes or []))
        if task.executorConfig is None and container.docker is None:
            raise _Refusal("Configuration may not be null.")
        if task.executorConfig is not None and task.executorConfig.name is None:
            raise _Refusal("Executor name may not be left unset.")
        if task.executorConfig is not None and task.executorConfig.name != EXECUTOR_NAME:
            raise _Refusal("Configuration for executor '%s' doesn't exist." % task.executorConfig.name)
        if any(each.constraint is None or each.constraint.value is None and each.constraint.limit is None
               for each in task.constraints or ()):
            raise _Refusal(None, "ERROR")       # a union without a field is none in Java
        self._check_dedicated(task)
        if container.docker is not None:
            if container.docker.image is None:
                raise _Refusal("A container must specify an image.")
            if container.docker.parameters:
                raise _Refusal("This scheduler is configured to disallow Docker parameters.")
            if task.executorConfig is None:
                raise _Refusal("This scheduler is configured to require an executor for Docker-based tasks.")
            if not self.docker:
                raise _Refusal("This scheduler is not configured to allow the container type DOCKER")
        self._check_resources(task)
        if task.slaPolicy is not None:
            self._check_sla(task.slaPolicy, tier, production, count)
        links = dict(task.taskLinks or {})
        if not links:
            ports = {each.namedPort for each in task.resources if each.namedPort in ("health", "http")}
            links = {port: "http://%%host%%:%%port:%s%%" % port for port in ports}
        policy = task.partitionPolicy
        return task.replace(
            tier=tier, production=production, container=container, taskLinks=links,
            isService=bool(task.isService),
            priority=task.priority or 0, maxTaskFailures=task.maxTaskFailures or 0,
            constraints=set(task.constraints or ()), metadata=set(task.metadata or ()),
            mesosFetcherUris=set(task.mesosFetcherUris or ()),
            partitionPolicy=policy and policy.replace(delaySecs=policy.delaySecs or 0))

    @staticmethod
    def _check_dedicated(task: Any) -> None:
        dedicated = next((each for each in task.constraints or () if each.name == "dedicated"), None)
        if dedicated is None:
            return
        if dedicated.constraint.value is None:
            raise _Refusal("A dedicated constraint must be of value type.")
        values = dedicated.constraint.value.values or ()
        if len(values) != 1:
            raise _Refusal("A dedicated constraint must have exactly one value")
        role = next(iter(values)).split("/")[0]
        if role not in ("*", task.job.role):
            raise _Refusal("Only %s may use hosts dedicated for that role." % role)

    @staticmethod
    def _check_resources(task: Any) -> None:
        counts: collections.Counter[str] = collections.Counter()
        for each in task.resources or ():
            for field, name in (("numCpus", "CPU"), ("numGpus", "GPU"), ("ramMb", "RAM"), ("diskMb", "disk")):
                counts[name] += getattr(each, field) is not None
        doubled = [name for name in ("CPU", "GPU", "RAM", "disk") if counts[name] > 1]
        if doubled:
            raise _Refusal("Multiple resource values are not supported for " + ", ".join(doubled))
        for field, value in zip(("num_cpus", "ram_mb", "disk_mb"), amounts(task)):
            if value <= 0:
                raise _Refusal("%s must be greater than 0.0" % field)
        if counts["GPU"]:
            raise _Refusal("GPU resource support is disabled in this cluster.")
        if task.mesosFetcherUris:
            raise _Refusal("Mesos Fetcher for individual jobs is disabled in this cluster.")
        mesos = task.container.mesos if task.container else None
        if mesos is not None and mesos.volumes:
            raise _Refusal("This scheduler is configured to disallow container volumes.")

    def _check_sla(self, policy: Any, tier: str, production: bool, count: int) -> None:
        if not production:
            raise _Refusal("Tier '%s' does not support SlaPolicy." % tier)
        if policy.coordinatorSlaPolicy is not None:
            return
        if count < self.SLA[0]:
            raise _Refusal("Job with fewer than %d instances cannot have Percentage/Count SlaPolicy." %
                           self.SLA[0])
        rule, name = (policy.countSlaPolicy,
                      "Count") if policy.countSlaPolicy else (policy.percentageSlaPolicy,
                                                                                    "Percentage")
        if policy.countSlaPolicy and count - rule.count < 1:
            raise _Refusal("Current CountSlaPolicy: count=%d will not allow any instances to be killed. "
                           "Must be less than "
                           "instanceCount=%d." % (rule.count, count))
        if not policy.countSlaPolicy and count - count * rule.percentage / 100 < 1:
            raise _Refusal("Current PercentageSlaPolicy: percentage=%f will not allow any instances to be "
                           "killed. Must be "
                           "less than %f." % (rule.percentage, (count - 1) / count * 100))
        if (rule.durationSecs or 0) > self.SLA[1]:
            raise _Refusal("%sSlaPolicy: durationSecs=%d must be less than cluster-wide maximum of %d secs." %
                           (
                name, rule.durationSecs, self.SLA[1]))

    def _check_limits(self, total: int, lacking: Sequence[float]) -> None:
        """The number of tasks, then quota. lacking: what is missing of each resource, if positive."""
        if not 0 < total <= MAX_TASKS_PER_JOB:
            raise _Refusal("Instance count must be between 1 and %d inclusive." % MAX_TASKS_PER_JOB)
        texts = ["%s quota exceeded by %.2f %s" % (name, value, unit)
                 for (name, unit, _), value in zip(RESOURCE_NAMES, lacking) if value > 1e-9]
        if texts:
            raise _Refusal("Insufficient resource quota: " + "; ".join(texts))

    def _lacking(self, role: str, extra: Sequence[float], update: Optional[DemoUpdate] = None) -> List[float]:
        have = self._quotas.get(role, (0.0, 0.0, 0.0))
        used = self._consumption(role, True, False, update)
        return [used[i] + extra[i] - have[i] for i in range(3)]

    def _extra(self, config: Any, count: int) -> List[float]:
        """What `count` more instances lack of their role's quota: nothing if they need none."""
        if not config.production or _is_dedicated(config):
            return [0.0, 0.0, 0.0]
        return self._lacking(config.job.role, [each * count for each in amounts(config)])

    def _consumption(self, role: str, production: bool, dedicated: bool,
                     update: Optional[DemoUpdate] = None) -> List[float]:
        def counts(config: Any) -> bool:
            return bool(config.production) is production and _is_dedicated(config) is dedicated

        def total(pairs: Iterable[Tuple[Any, int]]) -> List[float]:
            found = [0.0, 0.0, 0.0]
            for config, number in pairs:
                if counts(config):
                    found = [f + a * number for f, a in zip(found, amounts(config))]
            return found
        updates = {u.key: u for u in self._rolling.values() if u.key[0] == role}
        if update is not None:
            updates[update.key] = update
        parts = []
        for key in self._roles.get(role, set()) | set(updates):
            tasks = list(self._active.get(key, {}).values())
            template, changing = self._cron.get(key), updates.get(key)
            if template is not None:
                parts.append([max(pair) for pair in zip(total([(template.taskConfig,
                                                                template.instanceCount)]),
                                                        total((t.config, 1) for t in tasks))])
                continue
            if changing is not None:
                parts.append([max(pair) for pair in zip(total((c, 1) for c in changing.initial.values()),
                                                        total([(changing.config, len(changing.desired))]))])
            parts.append(total((t.config, 1) for t in tasks
                               if changing is None or t.instance not in changing.instances))
        return [sum(part[i] for part in parts) for i in range(3)]

    def _check_not_updating(self, key: JobTuple) -> None:
        if key in self._rolling:
            raise _Refusal("Job is currently updating", "JOB_UPDATING_ERROR")

    def _valid(self, key: Any) -> JobTuple:
        """The key as a tuple. Aurora fails without a message for an invalid one."""
        if not _is_key(key):
            raise _Refusal(None, "ERROR")
        return _tuple(key)


class _DemoReads(_DemoChecks):
    """ReadOnlyScheduler, but for updates."""

    def __init__(self, name: str, speed: float, jobs: int, revocable: bool, docker: bool) -> None:
        super().__init__(speed, jobs, revocable, docker)
        self.name = name
        # by id of a TaskConfig: it, and it without executor data
        self._bare: Dict[int, Tuple[Any, Any]] = {}

    def _matching(self, query: Any, among: Optional[Iterable[DemoTask]] = None) -> List[DemoTask]:
        """The tasks that a query finds, of all that are stored or of those given."""
        keys: Optional[Set[JobTuple]] = None
        if query.jobKeys:
            for each in query.jobKeys:
                if not query.taskIds and not _is_key(each):
                    raise ValueError("Invalid job key format: %s" % _java_key(each))
            keys = {_tuple(each) for each in query.jobKeys}
        role = (query.role or "").strip() or None
        if among is not None:
            candidates = among
        elif query.taskIds:
            candidates = [self._tasks[i] for i in sorted(query.taskIds) if i in self._tasks]
        elif keys is not None:
            candidates = [t for key in sorted(keys) for t in self._jobs.get(key, {}).values()]
        elif role is not None:
            candidates = [t for key in sorted(self._roles.get(role, ()))
                          for t in self._jobs.get(key, {}).values()]
        else:
            candidates = list(self._tasks.values())
        return [t for t in candidates
                if (not query.taskIds or t.id in query.taskIds)
                and (keys is None or t.key in keys) and (role is None or t.key[0] == role)
                and (query.environment is None or t.key[1] == query.environment)
                and (query.jobName is None or t.key[2] == query.jobName)
                and (not query.statuses or t.status in query.statuses)
                and (not query.instanceIds or t.instance in query.instanceIds)
                and (not query.slaveHosts or (t.host is not None and t.host.name in query.slaveHosts))]

    @staticmethod
    def _page(found: List[Any], query: Any) -> List[Any]:
        if (query.offset or 0) > 0:
            found = found[query.offset:]
        return found[:query.limit] if (query.limit or 0) > 0 else found

    def _scheduled(self, task: DemoTask, bare: bool = False) -> Any:
        """The ScheduledTask; bare: without executor data."""
        config = task.config
        if bare and config.executorConfig is not None:
            known = self._bare.get(id(config))
            if known is None or known[0] is not config:
                if len(self._bare) > 200000:
                    self._bare.clear()
                known = (config,
                         config.replace(executorConfig=api.ExecutorConfig(name=config.executorConfig.name)))
                self._bare[id(config)] = known
            config = known[1]
        return api.ScheduledTask(
            assignedTask=api.AssignedTask(
                taskId=task.id, task=config, instanceId=task.instance, assignedPorts=task.ports,
                slaveId=task.host.slave_id if task.host else None, slaveHost=task.host.name if task.host
                else None),
            status=task.status, failureCount=task.failures, ancestorId=task.ancestor,
            timesPartitioned=task.partitions,
            taskEvents=[api.TaskEvent(timestamp=moment, status=status, message=message,
                                      scheduler="demo-scheduler")
                        for moment, status, message in task.events])

    def getTasksStatus(self, query: Any) -> Any:
        tasks = [self._scheduled(task) for task in self._page(self._matching(query), query)]
        return api.Result(scheduleStatusResult=api.ScheduleStatusResult(tasks=tasks)), None

    def getTasksWithoutConfigs(self, query: Any) -> Any:
        tasks = [self._scheduled(task, True) for task in self._page(self._matching(query), query)]
        return api.Result(scheduleStatusResult=api.ScheduleStatusResult(tasks=tasks)), None

    def getPendingReason(self, query: Any) -> Any:
        for field, text in (("slaveHosts", "SlaveHosts are"), ("statuses", "Statuses is")):
            if getattr(query, field):
                raise _Refusal("%s not supported in %s" % (text, _java(query)))
        found = self._page(self._matching(query.replace(statuses={_S.PENDING})), query)
        return api.Result(getPendingReasonResult=api.GetPendingReasonResult(
            reasons={api.PendingReason(taskId=task.id, reason=task.vetoes) for task in found})), None

    def getConfigSummary(self, job: Any) -> Any:
        key = self._valid(job)
        groups: List[Tuple[Any, List[int]]] = []
        for task in self._active.get(key, {}).values():
            _group(groups, task.config, task.instance)
        summary = api.ConfigSummary(key=job, groups={
            api.ConfigGroup(config=config, instances=to_ranges(numbers)) for config, numbers in groups})
        return api.Result(configSummaryResult=api.ConfigSummaryResult(summary=summary)), None

    def getRoleSummary(self) -> Any:
        found = {api.RoleSummary(role=role, jobCount=sum(key in self._jobs for key in keys),
                                 cronJobCount=sum(key in self._cron for key in keys))
                 for role, keys in self._roles.items()}
        return api.Result(roleSummaryResult=api.RoleSummaryResult(summaries=found)), None

    def _role_keys(self, role: Optional[str]) -> List[JobTuple]:
        """The jobs of a role; a blank one is any, as to j/storage/TaskStore.queryFilter."""
        return [key for each in ([role] if role and role.strip() else list(self._roles))
                for key in self._roles.get(each, ())]

    def _latest_config(self, tasks: Iterable[DemoTask]) -> Any:
        return max(tasks, key=lambda t: (t.active, t.events[-1][0])).config

    def _template(self, key: JobTuple, role: Optional[str]) -> Any:
        """A cron job's template, which a blank role does not find."""
        return self._cron.get(key) if role is None or role.strip() else None

    def getJobSummary(self, role: Optional[str]) -> Any:
        found = set()
        for key in self._role_keys(role):
            tasks = list(self._jobs.get(key, {}).values())
            if not tasks and self._template(key, role) is None:
                continue
            counts = collections.Counter(
                "pending" if t.status in _PENDING_STATS else "finished"
                if t.status in (_S.KILLED, _S.FINISHED) else
                "failed" if t.status in (_S.LOST, _S.FAILED) else "active" for t in tasks)
            job, run = self._template(key, role), None
            if job is not None:
                moment = Crontab(job.cronSchedule).next(self._now)
                run = int(moment * 1000) if moment else None
            else:
                config = self._latest_config(tasks)
                job = api.JobConfiguration(key=config.job, owner=config.owner, taskConfig=config,
                                           instanceCount=len(tasks))
            stats = api.JobStats(activeTaskCount=counts["active"], finishedTaskCount=counts["finished"],
                                 failedTaskCount=counts["failed"], pendingTaskCount=counts["pending"])
            found.add(api.JobSummary(job=job, stats=stats, nextCronRunMs=run))
        return api.Result(jobSummaryResult=api.JobSummaryResult(summaries=found)), None

    def getJobs(self, ownerRole: Optional[str]) -> Any:
        found = set()
        for key in self._role_keys(ownerRole):
            job = self._template(key, ownerRole)
            active = list(self._active.get(key, {}).values())
            if job is None and active:
                config = self._latest_config(active)
                job = api.JobConfiguration(key=config.job, owner=config.owner, taskConfig=config,
                                           instanceCount=len(active))
            if job is not None:
                found.add(job)
        return api.Result(getJobsResult=api.GetJobsResult(configs=found)), None

    def getQuota(self, ownerRole: str) -> Any:
        self._not_blank(ownerRole)
        shown = [_aggregate(self._consumption(ownerRole, production, dedicated))
                 for dedicated in (False, True) for production in (True, False)]
        return api.Result(getQuotaResult=api.GetQuotaResult(
            quota=_aggregate(self._quotas.get(ownerRole, (0.0, 0.0, 0.0))), prodSharedConsumption=shown[0],
            nonProdSharedConsumption=shown[1], prodDedicatedConsumption=shown[2],
            nonProdDedicatedConsumption=shown[3])), None

    def populateJobConfig(self, description: Any) -> Any:
        try:
            job = self._checked_job(description)
        except _Refusal as refusal:
            raise _Refusal("Invalid configuration: %s" % refusal.message) from None
        return api.Result(populateJobResult=api.PopulateJobResult(taskConfig=job.taskConfig)), None

    def getTierConfigs(self) -> Any:
        tiers = {api.TierConfig.from_plain(tier) for tier in DEFAULT_TIERS["tiers"]}
        return api.Result(getTierConfigResult=api.GetTierConfigResult(
            defaultTierName=DEFAULT_TIERS["defaultTierName"], tiers=tiers)), None


class _DemoUpdates(_DemoReads):
    """The calls for updates."""
    MAX_FAILURES = 20000

    def _matching_updates(self, query: Any) -> List[DemoUpdate]:
        if (query.offset or 0) < 0:
            raise ValueError("-1")
        found = [u for u in self._updates.values()
                 if (query.role is None or u.key[0] == query.role)
                 and (query.jobKey is None or u.key == _tuple(query.jobKey))
                 and (query.user is None or u.user == query.user)
                 and (not query.updateStatuses or u.status in query.updateStatuses)
                 and (query.key is None or (u.id == query.key.id and u.key == _tuple(query.key.job)))]
        found.sort(key=lambda u: -u.modified)
        return self._page(found, query)

    def getJobUpdateSummaries(self, jobUpdateQuery: Any) -> Any:
        return api.Result(getJobUpdateSummariesResult=api.GetJobUpdateSummariesResult(
            updateSummaries=[u.summary() for u in self._matching_updates(jobUpdateQuery)])), None

    def getJobUpdateDetails(self, key: Any, query: Any) -> Any:
        if query is not None:
            return api.Result(getJobUpdateDetailsResult=api.GetJobUpdateDetailsResult(
                detailsList=[u.details() for u in self._matching_updates(query)])), None
        if key is None:
            raise _Refusal("Either key or query must be set.", "ERROR")
        found = self._updates.get(key.id)
        if found is None or found.key != _tuple(key.job):
            raise _Refusal("Invalid update: %s" % _java_update_key(key))
        return (api.Result(getJobUpdateDetailsResult=api.GetJobUpdateDetailsResult(details=found.details())),
                "The key argument is deprecated, use the query argument instead")

    def _difference(self, request: Any) -> Tuple[Dict[int, Any], Dict[int, Any], Set[int]]:
        """(current configurations by instance, those to be replaced or removed, instances to get the new
        one)."""
        for each in request.settings.updateOnlyTheseInstances or ():
            if each.last < each.first:
                raise ValueError("Invalid range: [%d..%d]" % (each.first, each.last))
        key = _tuple(request.taskConfig.job)
        current = {instance: task.config for instance, task in self._active.get(key, {}).items()}
        if (request.instanceCount or 0) < 0:
            raise ValueError("Invalid range: [0..%d)" % request.instanceCount)
        if request.instanceCount > MAX_TASKS_PER_JOB:
            self._check_limits(request.instanceCount, (0.0, 0.0, 0.0))
        wanted = set(range(request.instanceCount or 0))
        same = {i for i in wanted & set(current) if current[i] == request.taskConfig}
        replaced = {i: config for i, config in current.items() if i not in same}
        return current, replaced, wanted - same

    def getJobUpdateDiff(self, request: Any) -> Any:
        config = self._intern(self._checked_task(request.taskConfig, request.instanceCount or 0))
        request = request.replace(taskConfig=config)
        if _tuple(config.job) in self._cron:
            raise _Refusal("Cron jobs are not supported.")
        current, replaced, desired = self._difference(request)
        scope = set(from_ranges(request.settings.updateOnlyTheseInstances))
        if scope:
            replaced = {i: c for i, c in replaced.items() if i in scope}
            desired &= scope

        def groups(instances: Iterable[int]) -> Set[Any]:
            found: List[Tuple[Any, List[int]]] = []
            for each in sorted(instances):
                _group(found, current.get(each, config), each)
            return {api.ConfigGroup(config=c, instances=to_ranges(numbers)) for c, numbers in found}
        return api.Result(getJobUpdateDiffResult=api.GetJobUpdateDiffResult(
            add=groups(desired - set(replaced)), remove=groups(set(replaced) - desired),
            update=groups(set(replaced) & desired),
            unchanged=groups(set(current) - set(replaced) - desired))), None

    def startJobUpdate(self, request: Any, message: Optional[str]) -> Any:
        if not request.taskConfig.isService:
            raise _Refusal("Updates are not supported for non-service tasks.")
        settings = self._checked_settings(request)
        config = self._intern(self._checked_task(request.taskConfig, request.instanceCount or 0))
        request = request.replace(taskConfig=config, settings=settings)
        key = _tuple(config.job)
        if key in self._cron:
            raise _Refusal("Cron jobs may only be created/updated by calling scheduleCronJob.")
        current, replaced, desired = self._difference(request)
        scope = set(from_ranges(settings.updateOnlyTheseInstances))
        if scope:
            strangers = sorted(scope - set(current) - set(range(request.instanceCount)))
            if strangers:
                raise _Refusal("The update request attempted to update specific instances, but some are "
                               "irrelevant to "
                               "the update and current job state: %s" % strangers)
            replaced = {i: c for i, c in replaced.items() if i in scope}
            desired &= scope
        if not replaced and not desired:
            return None, "Job is unchanged by proposed update."
        update = DemoUpdate(key, self._user, request, replaced, desired)
        lacking = [0.0, 0.0, 0.0]
        if desired and config.production and not _is_dedicated(config):
            lacking = self._lacking(key[0], (0.0, 0.0, 0.0), update)
        self._check_limits(request.instanceCount or 0, lacking)
        active = self._rolling.get(key)
        if active is not None:
            raise _Refusal(
                "An active update already exists for this job, please terminate it before starting another. "
                "Active "
                "updates are those in states [%s]" % ", ".join(_U.name_of(each) for each in (
                    _U.ROLLING_FORWARD, _U.ROLLING_BACK, _U.ROLL_FORWARD_PAUSED, _U.ROLL_BACK_PAUSED,
                    _U.ROLL_FORWARD_AWAITING_PULSE, _U.ROLL_BACK_AWAITING_PULSE)),
                result=api.Result(startJobUpdateResult=api.StartJobUpdateResult(
                    key=active.update_key(), updateSummary=active.summary())))
        self._updates[update.id] = self._rolling[key] = update
        self._set_update(update, _U.ROLL_FORWARD_AWAITING_PULSE if settings.blockIfNoPulsesAfterMs else
                         _U.ROLLING_FORWARD, message, self._user)
        return api.Result(startJobUpdateResult=api.StartJobUpdateResult(
            key=update.update_key(), updateSummary=update.summary(with_state=False))), None

    def _checked_settings(self, request: Any) -> Any:
        settings = request.settings
        strategy = settings.updateStrategy
        if strategy is None:
            size = settings.updateGroupSize or 0
            strategy = (api.JobUpdateStrategy(batchStrategy=api.BatchJobUpdateStrategy(
                groupSize=size, autopauseAfterBatch=False)) if settings.waitForBatchCompletion else
                api.JobUpdateStrategy(queueStrategy=api.QueueJobUpdateStrategy(groupSize=size)))
        if strategy.varBatchStrategy is not None:
            sizes = strategy.varBatchStrategy.groupSizes
            if any(size <= 0 for size in sizes):
                raise _Refusal("All update group sizes must be positive.")
            total = sum(sizes)
        elif strategy.queueStrategy is None and strategy.batchStrategy is None:
            raise _Refusal("Update strategy provided is unknown.")
        else:
            total = (strategy.queueStrategy or strategy.batchStrategy).groupSize or 0
        if total <= 0:
            raise _Refusal("Update results in no instance being modified.")
        if (settings.maxPerInstanceFailures or 0) < 0:
            raise _Refusal("maxPerInstanceFailures must be non-negative.")
        if (settings.maxFailedInstances or 0) < 0:
            raise _Refusal("maxFailedInstances must be non-negative.")
        if (settings.maxPerInstanceFailures or 0) * (request.instanceCount or 0) > self.MAX_FAILURES:
            raise _Refusal("Your update allows too many failures to occur, consider decreasing the "
                           "per-instance failures "
                           "or maxFailedInstances.")
        if (settings.minWaitInInstanceRunningMs or 0) < 0:
            raise _Refusal("minWaitInInstanceRunningMs must be non-negative.")
        if (settings.blockIfNoPulsesAfterMs or 0) < 0:
            raise _Refusal("blockIfNoPulsesAfterMs must be positive.")
        if settings.slaAware and request.taskConfig.slaPolicy is None:
            raise _Refusal("slaAware is true, but no task slaPolicy is specified.")
        return settings.replace(updateStrategy=strategy,
                                blockIfNoPulsesAfterMs=settings.blockIfNoPulsesAfterMs or 0,
                                slaAware=bool(settings.slaAware),
                                updateOnlyTheseInstances=settings.updateOnlyTheseInstances or set())

    def _steer(self, key: Any, target: Dict[int, int], message: Optional[str], colon: str = "") -> Any:
        """Move an update to the state that `target` has for its current one."""
        self._valid(key.job)
        update = self._updates.get(key.id)
        if update is None or update.key != _tuple(key.job):
            raise _Refusal("Update does not exist%s %s" % (colon, _java_update_key(key)))
        wanted = target.get(update.status)
        if wanted == update.status:
            return None
        if wanted is None or wanted not in _UPDATE_TRANSITIONS.get(update.status, ()):
            raise _Refusal("Cannot transition update from %s to %s" % (
                _U.name_of(update.status), "null" if wanted is None else _U.name_of(wanted)))
        self._set_update(update, wanted, message, self._user)
        return None

    def pauseJobUpdate(self, key: Any, message: Optional[str]) -> Any:
        forward, back = _U.ROLL_FORWARD_PAUSED, _U.ROLL_BACK_PAUSED
        return self._steer(key, {_U.ROLLING_FORWARD: forward, _U.ROLL_FORWARD_AWAITING_PULSE: forward,
                                 forward: forward,
                                 _U.ROLLING_BACK: back, _U.ROLL_BACK_AWAITING_PULSE: back, back: back},
                                 message)

    def resumeJobUpdate(self, key: Any, message: Optional[str]) -> Any:
        update = self._updates.get(key.id)
        if update is not None and self._pulse_expired(update):
            forward, back = _U.ROLL_FORWARD_AWAITING_PULSE, _U.ROLL_BACK_AWAITING_PULSE
        else:
            forward, back = _U.ROLLING_FORWARD, _U.ROLLING_BACK
        return self._steer(key, {_U.ROLL_FORWARD_PAUSED: forward, forward: forward, _U.ROLL_BACK_PAUSED: back,
                                 back: back}, message, ":")

    def abortJobUpdate(self, key: Any, message: Optional[str]) -> Any:
        return self._steer(key, {status: _U.ABORTED for status in _U.names}, message)

    def rollbackJobUpdate(self, key: Any, message: Optional[str]) -> Any:
        return self._steer(key, {status: _U.ROLLING_BACK for status in _U.names}, message)

    def pulseJobUpdate(self, key: Any) -> Any:
        self._valid(key.job)
        self._not_blank(key.id)
        update = self._updates.get(key.id)
        status = api.JobUpdatePulseStatus.FINISHED
        if update is not None and update.key == _tuple(
            key.job) and update.settings.blockIfNoPulsesAfterMs and (
                update.status in api.ACTIVE_JOB_UPDATE_STATES):
            status = api.JobUpdatePulseStatus.OK
            update.last_pulse = self._now
            resumed = {_U.ROLL_FORWARD_AWAITING_PULSE: _U.ROLLING_FORWARD,
                       _U.ROLL_BACK_AWAITING_PULSE: _U.ROLLING_BACK}.get(update.status)
            if resumed is not None:
                self._set_update(update, resumed)
        return api.Result(pulseJobUpdateResult=api.PulseJobUpdateResult(status=status)), None


class _DemoJobs(_DemoUpdates):
    """The calls that change jobs, those of cron (j/cron/quartz/AuroraCronJob.java) among them."""

    def __init__(self, name: str, speed: float, jobs: int, revocable: bool, docker: bool) -> None:
        super().__init__(name, speed, jobs, revocable, docker)
        self._cron_waiting: Set[JobTuple] = set()
        self._cron_runs: collections.Counter[JobTuple] = collections.Counter()

    def createJob(self, description: Any) -> Any:
        job = self._checked_job(description)
        key = _tuple(job.key)
        if job.cronSchedule is not None:
            raise _Refusal("Cron jobs may only be created/updated by calling scheduleCronJob.")
        self._check_not_updating(key)
        if key in self._cron or self._active.get(key):
            raise _Refusal("Job %s already exists" % "/".join(key))
        self._check_limits(job.instanceCount, self._extra(job.taskConfig, job.instanceCount))
        self._insert(job.taskConfig, range(job.instanceCount))

    def killTasks(self, job: Any, instances: Any, message: Optional[str]) -> Any:
        key = self._valid(job)
        self._check_not_updating(key)
        text = "Killed by %s%s" % (self._user, "" if message is None else ".\n" + message)
        killed = [self._change(task, _S.KILLING, text) for task in list(self._active.get(key, {}).values())
                  if not instances or task.instance in instances]
        return None if any(killed) else (None, "No tasks to kill.")

    def restartShards(self, job: Any, shardIds: Any) -> Any:
        key = self._valid(job)
        if not shardIds:
            raise ValueError("Argument cannot be blank")
        self._check_not_updating(key)
        tasks = [t for t in self._active.get(key, {}).values() if t.instance in shardIds]
        if len(tasks) != len(shardIds):
            raise _Refusal("Not all requested shards are active.")
        for task in tasks:
            self._change(task, _S.RESTARTING, "Restarted by " + self._user)

    def addInstances(self, key: Any, count: int) -> Any:
        job = self._valid(key.jobKey)
        if (count or 0) <= 0:
            raise _Refusal("Instance count must be positive.")
        if job in self._cron:
            raise _Refusal("Instances may not be added to cron jobs.")
        self._check_not_updating(job)
        active = self._active.get(job, {})
        if key.instanceId not in active:
            raise _Refusal("No active task found for a given instance ID.")
        config = active[key.instanceId].config
        self._check_limits(len(active) + count, self._extra(config, count))
        self._insert(config, range(max(active) + 1, max(active) + 1 + count))

    def _set_cron(self, description: Any, only_replace: bool) -> None:
        key = self._valid(description.key)
        job = self._checked_job(description)
        text = "/".join(key)
        if job.cronSchedule is None:
            raise _Refusal("Job %s has no cron schedule" % text)
        self._check_not_updating(key)
        lacking = [0.0, 0.0, 0.0]
        if job.taskConfig.production:
            old = self._cron.get(key)
            before = [a * old.instanceCount for a in amounts(old.taskConfig)] if old else [0.0, 0.0, 0.0]
            lacking = self._lacking(key[0], [a * job.instanceCount - b
                                             for a, b in zip(amounts(job.taskConfig), before)])
        self._check_limits(job.instanceCount, lacking)
        exists = key in self._cron
        if not exists and not only_replace and self._active.get(key):
            raise _Refusal("Job %s already exists" % text)
        if not job.cronSchedule:
            raise _Refusal("Job has an empty cron schedule.")
        try:
            schedule = Crontab(job.cronSchedule)
        except ValueError:
            raise _Refusal("Invalid cron schedule: " + job.cronSchedule) from None
        if job.cronCollisionPolicy == api.CronCollisionPolicy.RUN_OVERLAP:
            raise _Refusal("The RUN_OVERLAP collision policy has been removed (AURORA-38).")
        if only_replace and not exists:
            raise _Refusal("No cron job found for %s." % text)
        self._cron[key] = job.replace(taskConfig=self._intern(job.taskConfig))
        self._roles.setdefault(key[0], set()).add(key)
        self._cron_runs[key] += 1
        # only Quartz finds that out, when the template is stored already
        if schedule.next(self._now) is None:
            raise _Refusal("org.quartz.SchedulerException: Based on configured schedule, the given trigger "
                           "'DEFAULT.6da64b5bd2ee-%s' will never fire." % uuid.uuid4())
        self._await_cron(key, schedule, self._cron_runs[key])

    def _await_cron(self, key: JobTuple, schedule: Crontab, run: int) -> None:
        moment = schedule.next(self._now)
        if moment is None:
            return

        def fire() -> None:
            if key in self._cron and self._cron_runs[key] == run:
                self._trigger_cron(key)
                self._await_cron(key, schedule, run)
        self._after(moment - self._now, fire)

    def _trigger_cron(self, key: JobTuple) -> None:
        """j/cron/quartz/AuroraCronJob.java"""
        template = self._cron.get(key)
        if template is None or key in self._cron_waiting:       # a trigger while the old tasks end is ignored
            return
        active = list(self._active.get(key, {}).values())
        if not active:
            self._insert(template.taskConfig, range(template.instanceCount))
            return
        if template.cronCollisionPolicy not in (None, api.CronCollisionPolicy.KILL_EXISTING):
            return
        self._cron_waiting.add(key)
        for task in active:
            self._change(task, _S.KILLING, "Killed by cronScheduler")

        def again(pause: float) -> None:
            if any(t.active for t in active if t.id in self._tasks):
                # -cron_start_initial_backoff, -…_max_backoff
                longer = min(60.0, pause + self._random.random() * pause)
                self._after(longer, lambda: again(longer))
                return
            self._cron_waiting.discard(key)
            if not self._active.get(key):
                self._insert(template.taskConfig, range(template.instanceCount))
        self._after(0.0, lambda: again(5.0))

    def scheduleCronJob(self, description: Any) -> Any:
        self._set_cron(description, False)

    def replaceCronTemplate(self, config: Any) -> Any:
        self._set_cron(config, True)

    def descheduleCronJob(self, job: Any) -> Any:
        key = self._valid(job)
        self._check_not_updating(key)
        if self._cron.pop(key, None) is None:
            return None, "Job %s is not scheduled with cron" % "/".join(key)
        self._cron_runs[key] += 1
        if key not in self._jobs:
            self._roles[key[0]].discard(key)
            if not self._roles[key[0]]:
                del self._roles[key[0]]
        return None

    def startCronJob(self, job: Any) -> Any:
        key = self._valid(job)
        if key not in self._cron:
            raise _Refusal("Failed to start cron job - No cron job found for %s." % "/".join(key))
        # it answers before the job's thread runs
        self._after(self.SCHEDULE, lambda: self._trigger_cron(key))


class _DemoAdmin(_DemoJobs):
    """The calls of AuroraAdmin, but for maintenance."""
    RESTART = 2.0                   # seconds that the scheduler is away after it committed a recovery

    def __init__(self, name: str, speed: float, jobs: int, revocable: bool, docker: bool) -> None:
        super().__init__(name, speed, jobs, revocable, docker)
        self._backups: Json = {}
        self._staged: Optional[Dict[str, DemoTask]] = None
        self._back_at = 0.0         # when the scheduler is there again after a recovery

    def setQuota(self, ownerRole: str, quota: Any) -> Any:
        self._not_blank(ownerRole)
        resources = quota.resources
        if len(resources) > 3:
            raise ValueError("Too many resource values in quota.")
        found = [[getattr(each, field) for each in resources if getattr(each, field) is not None]
                 for field in ("numCpus", "ramMb", "diskMb")]
        if any(len(values) != 1 for values in found):
            raise ValueError("Quota resources must be exactly: [CPUS, RAM_MB, DISK_MB]")
        values = tuple(float(each[0]) for each in found)
        shown = "IResourceAggregate{resources=[%s]}" % ", ".join(
            "IResource{setField=%s, value=%s}" % pair for pair in zip(
                ("NUM_CPUS", "RAM_MB", "DISK_MB"), (values[0], int(values[1]), int(values[2]))))
        if min(values) < 0:
            raise _Refusal("Negative values in: " + shown)
        used = self._consumption(ownerRole, True, False)
        if any(value < need - 1e-9 for value, need in zip(values, used)):
            raise _Refusal("Quota: %s is less then current prod reservation: "
                           "ResourceBag{resourceVectors={CPUS=%s, "
                           "RAM_MB=%s, DISK_MB=%s}}" % (shown, *used))
        self._quotas[ownerRole] = values        # type: ignore[assignment]

    def forceTaskState(self, taskId: str, status: int) -> Any:
        self._not_blank(taskId)
        if status is None:
            raise _Refusal(None, "ERROR")
        task = self._tasks.get(taskId)
        if task is not None:
            self._change(task, status, "Transition forced by " + self._user)

    def performBackup(self) -> Any:
        name = "scheduler-backup-" + time.strftime("%Y-%m-%d-%H-%M", time.localtime(self._now))
        self._backups[name] = ({task.id: task.duplicate() for task in self._tasks.values()}, dict(self._cron),
                               dict(self._quotas), [update.duplicate() for update in self._updates.values()])
        for old in sorted(self._backups)[:-48]:
            del self._backups[old]

    def listBackups(self) -> Any:
        return api.Result(listBackupsResult=api.ListBackupsResult(backups=set(self._backups))), None

    def stageRecovery(self, backupId: str) -> Any:
        if backupId is None:
            raise _Refusal(None, "ERROR")
        if backupId not in self._backups:
            raise ValueError("Backup /var/lib/aurora/backups/%s does not exist." % backupId)
        if self._staged is not None:
            raise ValueError("Another backup is already loaded.")
        tasks, self._staged_cron, self._staged_quotas, self._staged_updates = self._backups[backupId]
        self._staged = {each.id: each.duplicate() for each in tasks.values()}

    def _staged_tasks(self) -> Dict[str, DemoTask]:
        if self._staged is None:
            raise ValueError("No backup loaded.")
        return self._staged

    def _staged_matching(self, query: Any) -> List[DemoTask]:
        if query is None:
            raise _Refusal(None, "ERROR")
        staged = self._staged_tasks()
        return self._matching(query, staged.values())

    def queryRecovery(self, query: Any) -> Any:
        return api.Result(queryRecoveryResult=api.QueryRecoveryResult(
            tasks={self._scheduled(task) for task in self._staged_matching(query)})), None

    def deleteRecoveryTasks(self, query: Any) -> Any:
        for task in self._staged_matching(query):
            del self._staged_tasks()[task.id]

    def commitRecovery(self) -> Any:
        """Aurora shuts down then, and whoever starts it again starts it from what was staged: for a moment
        nobody leads."""
        staged = self._staged_tasks()
        for task in list(self._tasks.values()):
            self._release(task)
            self._delete(task)
        self._cron, self._quotas = dict(self._staged_cron), dict(self._staged_quotas)
        self._updates = {each.id: each.duplicate() for each in self._staged_updates}
        self._rolling = {each.key: each for each in self._updates.values()
                         if each.status in api.ACTIVE_JOB_UPDATE_STATES}
        self._roles = {}
        for task in staged.values():
            self._store(task)
            if task.active and task.host is not None:
                task.host.tasks[task.id] = task
                for i, amount in enumerate(amounts(task.config)):
                    task.host.used[i] += amount
            self._act_on(task, task.status, task.status)
        for key, schedule in self._cron.items():
            self._roles.setdefault(key[0], set()).add(key)
            self._cron_runs[key] += 1
            self._await_cron(key, Crontab(schedule.cronSchedule), self._cron_runs[key])
        for update in self._rolling.values():
            if update.status in _ROLLING:
                self._start_rolling(update)
        self._staged = None
        self._back_at = self._now + self.RESTART

    def unloadRecovery(self) -> Any:
        self._staged = None

    def snapshot(self) -> Any:
        return None

    def triggerExplicitTaskReconciliation(self, settings: Any) -> Any:
        if settings.batchSize is not None and settings.batchSize <= 0:
            raise _Refusal("Batch size must be greater than zero.")

    def triggerImplicitTaskReconciliation(self) -> Any:
        return None

    def pruneTasks(self, query: Any) -> Any:
        if any(status in api.ACTIVE_STATES for status in query.statuses or ()):
            raise ValueError("Tasks in non-terminal state cannot be pruned.")
        if query.statuses is None:
            query = query.replace(statuses=set(api.TERMINAL_STATES))
        found = self._matching(query)
        if query.limit is not None:
            if query.limit < 0:
                raise ValueError("limit is negative")
            found = found[:query.limit]
        # As j/state/StateManagerImpl.deleteTasks: with no ids its query matches every task, running ones too.
        for task in found or list(self._tasks.values()):
            if task.host is not None:
                self._release(task)
            self._delete(task)


class Demo(_DemoAdmin):
    """The simulated scheduler. Its Thrift methods are methods of their own names; `invoke` calls one as the
    wire does.

    name: the cluster's; speed: of its clock; jobs: how many to fill it with for load tests (ten instances
    each); samples: start with a few sample jobs; users: name → (password, role pattern), to want Basic
    credentials for writes; docker: Docker containers may be used (-allowed_container_types); revocable: there
    are offers for revocable tasks.
    """

    def __init__(self, name: str = "devcluster", speed: float = 1.0, jobs: int = 0, samples: bool = True,
                 users: Optional[Dict[str, Tuple[str, str]]] = None, docker: bool = False,
                 revocable: bool = False) -> None:
        super().__init__(name, speed, jobs, revocable, docker)
        self.users = users
        self.redirect: Optional[str] = None     # another leader's URL: answer 307
        self.leaderless = False                 # answer 503
        self.calls: collections.Counter[str] = collections.Counter()
        self.observer = DemoObserver(self)      # serves once it is started
        self.url = ""           # where it serves, once it does
        if samples:
            self._add_samples()
        if jobs:
            self._fill(jobs)

    def invoke(self, name: str, arguments: Any, user: str = "UNSECURE") -> Any:
        """Call a Thrift method with its arguments struct; the Response. Never raises for what a caller can
        cause."""
        with self._lock:
            self.calls[name] += 1
            self._catch_up()
            self._user = user
            values = [getattr(arguments, field) for field in arguments.fields]
            try:
                result, message = getattr(self, name)(*values) or (None, None)
                response = api.Response(responseCode=api.ResponseCode.OK, result=result, details=[
                    api.ResponseDetail(message=message)] if message else [])
            except _Refusal as refusal:
                response = api.Response(responseCode=api.ResponseCode.values[refusal.code],
                                        result=refusal.result,
                                        details=[api.ResponseDetail(message=refusal.message)])
            except Exception as error:
                # What is an exception inside Aurora's handlers is one inside these.
                text = str(error) if isinstance(error, ValueError) else None
                response = api.Response(responseCode=api.ResponseCode.ERROR,
                                        details=[api.ResponseDetail(message=text)])
            self._settle()
            response.serverInfo = api.ServerInfo(clusterName=self.name, statsUrlPrefix="")
            return response

    def authenticate(self, method: Method, arguments: Any, header: str) -> Tuple[Optional[str],
            Optional[Any]]:
        """(the user, None), or (None, the denial); (None, None) where credentials are missing."""
        if self.users is None:
            return "UNSECURE", None
        name, role = "UNSECURE", ""
        if header.lower().startswith("basic "):
            with contextlib.suppress(ValueError):
                name, _, password = base64.b64decode(header[6:]).decode().partition(":")
                known, role = self.users.get(name, ("", ""))
                if not known or not hmac.compare_digest(known.encode(), password.encode()):
                    return None, None       # wrong ones are refused on a read, too
        if method.access == "read":
            return name, None
        if not role:
            return None, None
        key = _named_key(arguments)
        if method.access == "admin" and role != "*" or key is not None and not fnmatch.fnmatchcase(key.role
                or "", role):
            text = ("Subject %s lacks permission UnscopedRpcPermission{domain=thrift.AuroraAdmin, rpc=%s}" % (
                name, method.name) if key is None else
                "Subject %s is not permitted to JobScopedRpcPermission{rpc=%s, permittedJob=%s}." % (
                    name, method.name, _java_key(key)))
            return None, api.Response(responseCode=api.ResponseCode.AUTH_FAILED,
                                      details=[api.ResponseDetail(message=text)])
        return name, None

    def start(self, port: int = 0) -> str:
        """Serve on a loopback port in a thread of its own, if it does not yet; the URL."""
        if self.url:
            return self.url
        self.server = HttpServer(("127.0.0.1", port), DemoApp(self))
        self._thread = threading.Thread(target=self.server.serve_forever, name="demo-scheduler", daemon=True)
        self._thread.start()
        self.url = "http://127.0.0.1:%d" % self.server.port
        return self.url

    @property
    def away(self) -> bool:
        """Whether nobody leads: as it was told, or since it restarts."""
        return self.leaderless or self.clock.now() < self._back_at

    def stop(self) -> None:
        """Serve no more."""
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> Demo:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _sample_task(self, role: str, environment: str, name: str, command: str, service: bool = True,
                     cpu: float = 0.5, ram: int = 128, disk: int = 128, padding: int = 0) -> Any:
        key = api.JobKey(role=role, environment=environment, name=name)
        data = {"cluster": self.name, "role": role, "environment": environment, "name": name,
                "service": service,
                "task": {"name": name, "processes": [{"name": name, "cmdline": command, "max_failures": 1}],
                         "resources": {"cpu": cpu, "ram": ram << 20, "disk": disk << 20}}}
        if padding:
            data["metadata"] = [{"key": "padding", "value": "x" * padding}]
        return api.TaskConfig(
            job=key, owner=api.Identity(user=role), isService=service, priority=0, maxTaskFailures=1,
            tier="preemptible",
            resources={api.Resource(numCpus=cpu), api.Resource(ramMb=ram), api.Resource(diskMb=disk)},
            executorConfig=api.ExecutorConfig(name=EXECUTOR_NAME, data=json.dumps(data, sort_keys=True)))

    def _add_samples(self) -> None:
        self._user = "demo"
        self._quotas["www-data"] = (32.0, 65536.0, 262144.0)
        for role, environment, name, count, command in (
                ("www-data", "prod", "hello", 2, "while true; do echo hello; sleep 10; done"),
                ("www-data", "devel", "web", 1, "python3 -m http.server {{thermos.ports[http]}}"),
                ("batch", "prod", "indexer", 3, "indexer --forever")):
            config = self._sample_task(role, environment, name, command)
            self.createJob(api.JobConfiguration(key=config.job, owner=config.owner, taskConfig=config,
                                                instanceCount=count))
        config = self._sample_task("batch", "prod", "report", "sleep 30", service=False)
        self.scheduleCronJob(api.JobConfiguration(
            key=config.job, owner=config.owner, taskConfig=config, instanceCount=1, cronSchedule="0 4 * * *",
            cronCollisionPolicy=api.CronCollisionPolicy.KILL_EXISTING))
        self._settle()

    def _fill(self, jobs: int) -> None:
        """Running jobs of ten instances each, fifty jobs a role, without waiting for their life to pass."""
        hosts = [host for host in self.hosts.values() if "dedicated" not in host.attributes]
        start = self._ms - 3600000
        numbers = itertools.count()
        for job in range(jobs):
            config = self._checked_task(self._sample_task("load-%03d" % (job // 50), "prod", "job-%05d" % job,
                                                          "serve",
                                                          cpu=0.01, ram=1, disk=1, padding=1500), 10)
            for instance in range(10):
                task = self._new_task(config, instance)
                task.status = _S.RUNNING
                self._note_active(task)
                task.events = [(start, _S.PENDING, None), (start + 100, _S.ASSIGNED, None),
                               (start + 300, _S.STARTING, None), (start + 600, _S.RUNNING, None)]
                task.host = hosts[next(numbers) % len(hosts)]
                task.host.tasks[task.id] = task
                for i, amount in enumerate(amounts(config)):
                    task.host.used[i] += amount


def _tuple(key: Any) -> JobTuple:
    return (key.role, key.environment, key.name)


def _is_identifier(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MAX_IDENTIFIER and bool(IDENTIFIER.fullmatch(text))


def _is_key(key: Any) -> bool:
    return key is not None and all(_is_identifier(each) for each in _tuple(key))


def _is_dedicated(config: Any) -> bool:
    return any(each.name == "dedicated" for each in config.constraints or ())


def _java(value: Any, kind: Optional[Type] = None) -> str:
    """A struct as Thrift's Java classes print it."""
    if isinstance(value, ThriftStruct) and value.is_union:
        return "<%s %s>" % (type(value).__name__, ", ".join(
            "%s:%s" % (name, _java(getattr(value, name), kind)) for name, kind in value.fields.items()
            if getattr(value, name) is not None))
    if isinstance(value, ThriftStruct):
        return "%s(%s)" % (type(value).__name__, ", ".join(
            "%s:%s" % (name, _java(getattr(value, name), kind)) for name, kind in value.fields.items()
            if getattr(value, name) is not None))
    if isinstance(value, (list, set, frozenset)) and kind is not None:
        return "[%s]" % ", ".join(sorted(_java(each, kind.items[0]) for each in value))
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s=%s" % pair for pair in sorted(value.items()))
    if kind is not None and kind.kind == "enum":
        return str(kind.ref.name_of(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _java_key(key: Any) -> str:
    return "null" if key is None else "IJobKey{role=%s, environment=%s, name=%s}" % tuple(
        "null" if each is None else each for each in _tuple(key))


def _java_update_key(key: Any) -> str:
    return "IJobUpdateKey{job=%s, id=%s}" % (_java_key(key.job), key.id)


def _named_key(arguments: Any) -> Any:
    """The api.JobKey that a call's arguments name, as the scheduler's own authorization looks it up; None
    without."""
    for field in arguments.fields:
        for path in ((), ("key",), ("jobKey",), ("job",), ("taskConfig", "job")):
            found = getattr(arguments, field)
            for step in path:
                found = getattr(found, step, None)
            if isinstance(found, api.JobKey):
                return found
    return None


class DemoApp(App):
    """The demo scheduler's HTTP side: /api, /apibeta and what else clients ask a scheduler for."""
    _READ_TYPES = {"": TJSON, "application/x-thrift": TJSON, "application/json": TJSON, TJSON: TJSON,
                   BINARY: BINARY,
                   TJSON + "; charset=utf-8": TJSON}
    _LEADER_PATHS = ("/agents", "/api", "/cron", "/maintenance", "/mname", "/offers", "/pendingtasks",
                     "/quotas", "/slaves",
                     "/state", "/tiers", "/utilization", "/scheduler", "/updates")

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    def is_quick(self, request: Request) -> bool:
        return True

    def handle(self, request: Request) -> Response:
        demo = self.demo
        if request.path.startswith(self._LEADER_PATHS) and "bypass-leader-redirect" not in request.headers:
            if demo.away:
                return Response(503,
                                body=b"<html><head><title>Aurora</title></head><body><h2>No Leader Found</h2>"
                                b"</body></html>", content_type="text/html")
            if demo.redirect:
                target = demo.redirect + request.path + ("?" + request.raw_query if request.raw_query else "")
                return Response(307, body=b"", content_type="text/plain", headers=[("Location", target)])
        if request.path == "/api":
            return self._thrift(request)
        if request.path.startswith("/apibeta/"):
            return self._plain(request, request.path[9:])
        return self._page(request)

    def _thrift(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").lower()
        media = self._READ_TYPES.get(kind)
        if media is None:
            return Response(415, body=("Unsupported Content-Type: " +
                                       request.headers["content-type"]).encode(),
                            content_type="text/plain")
        answer_media = BINARY if request.headers.get("accept",
                                                     "").split(",")[0].strip().lower() == BINARY else TJSON
        try:
            name, sequence, protocol = decode_call(media, request.body)
            if name not in api.method_names:
                return self._unknown_method(name, sequence, answer_media)
            method = api.method(name)
            arguments = method.arguments()
            arguments.read(protocol)
        except (BadMessage, *_DECODE_ERRORS):
            return Response(500, body=b"not Thrift\n", content_type="text/plain")
        response = self._authorized(request, method, arguments)
        if isinstance(response, Response):
            return response
        return Response(200, body=encode_reply(answer_media, name, sequence, response),
                        content_type=answer_media)

    def _authorized(self, request: Request, method: Method, arguments: Any) -> Any:
        """The Thrift Response, or the HTTP answer that wants credentials."""
        user, denial = self.demo.authenticate(method, arguments, request.headers.get("authorization", ""))
        if denial is not None:
            return denial
        if user is None:
            return Response(401, body=b"", content_type="text/plain",
                            headers=[("WWW-Authenticate", 'BASIC realm="Apache Aurora Scheduler"')])
        return self.demo.invoke(method.name, arguments, user)

    @staticmethod
    def _unknown_method(name: str, sequence: int, media: str) -> Response:
        protocol = _protocol(media)
        protocol.writeMessageBegin(name, TMessageType.EXCEPTION, sequence)
        TApplicationException(TApplicationException.UNKNOWN_METHOD, "Invalid method name: '%s'" %
                              name).write(protocol)
        protocol.writeMessageEnd()
        return Response(200, body=protocol.trans.getvalue(), content_type=media)

    def _plain(self, request: Request, name: str) -> Response:
        def problem(status: int, text: str) -> Response:
            return Response(status, {"responseCode": "ERROR", "details": [{"message": text}]})
        if name not in api.method_names:
            return problem(404, "Method %s does not exist." % name)
        try:
            given = json.loads(request.body.decode("utf-8")) if request.body.strip() else {}
        except (ValueError, RecursionError):
            return problem(400, "Request must be valid JSON")
        if not isinstance(given, dict):
            return problem(400, "Request data must be a JSON object of method parameters.")
        method = api.method(name)
        try:
            arguments = method.arguments.from_plain({k: v for k, v in given.items()
                                                     if k in method.arguments.fields})
        except PlainError as error:
            return problem(400, "Failed to parse parameter %s" % error)
        response = self._authorized(request, method, arguments)
        return response if isinstance(response, Response) else Response(200, response.to_plain())

    def _page(self, request: Request) -> Response:
        demo, path = self.demo, request.path

        def text(body: str, status: int = 200) -> Response:
            return Response(status, body=body.encode(), content_type="text/plain")
        if path == "/health":
            return text("OK\n")
        if path == "/leaderhealth":
            lines = {200: "200: This is the leading scheduler.",
                     503: "503: Another instance is the leading scheduler.",
                     502: "502: There is no leading scheduler or the leader is unknown."}
            status = 502 if demo.away else 503 if demo.redirect else 200
            return text("Current status: %s\n\nThe response codes are:\n%s" % (
                lines[status].split(": ", 1)[1], "\n".join(lines.values())), status)
        with demo._lock:
            demo._catch_up()
            figures = {"framework_registered": 1, "scheduler_lifecycle_ACTIVE": 1,
                       "jvm_uptime_secs": int(demo._now - demo.clock._start)}
            figures.update({"scheduler_thrift_%s_events" % name: count for name, count in demo.calls.items()})
            states = collections.Counter(task.status for task in demo._tasks.values())
            figures.update({"task_store_" + status: states[number] for status, number in _S.values.items()})
            if path == "/vars":
                return text("\n".join(sorted("%s %s" % pair for pair in figures.items())))
            if path == "/vars.json":
                return Response(200, figures)
            if path == "/offers":
                return Response(200, [self._offer(host) for host in demo.hosts.values()])
            if path == "/services":
                return Response(200, [{"name": "SchedulerLifecycle", "state": "RUNNING"}])
            if path == "/maintenance":
                modes = api.MaintenanceMode
                return Response(200, {
                    "DRAINED": sorted(h.name for h in demo.hosts.values() if h.mode == modes.DRAINED),
                    "SCHEDULED": sorted(h.name for h in demo.hosts.values() if h.mode == modes.SCHEDULED),
                    "DRAINING": {h.name: sorted(h.tasks) for h in demo.hosts.values()
                                 if h.mode == modes.DRAINING}})
            if path == "/quotas":
                return Response(200, {role: {"cpu_cores": q[0], "ram_mb": int(q[1]), "disk_mb": int(q[2])}
                                      for role, q in demo._quotas.items()})
            if path == "/tiers":
                return Response(200, {"default": DEFAULT_TIERS["defaultTierName"], "tiers": {
                    tier["name"]: {name: value == "true" for name, value in tier["settings"].items()}
                    for tier in DEFAULT_TIERS["tiers"]}})
            if path == "/cron":
                return Response(200, {"scheduled": {"/".join(key): job.cronSchedule
                                                    for key, job in demo._cron.items()}})
        return text("the demo scheduler has no page %s\n" % path, 404)

    @staticmethod
    def _offer(host: DemoHost) -> Json:
        free = [total - used for total, used in zip(host.total, host.used)]
        return {"id": {"value": "offer-" + host.slave_id}, "framework_id": {"value": "demo"},
                "agent_id": {"value": host.slave_id}, "hostname": host.name,
                "resources": [{"name": name, "type": "SCALAR", "scalar": {"value": value}, "role": "*"}
                              for name, value in zip(("cpus", "mem", "disk"), free)] + [
                    {"name": "ports", "type": "RANGES", "role": "*",
                     "ranges": {"range": [{"begin": 31000, "end": 32000}]}}],
                "attributes": [{"name": name, "type": "TEXT", "text": {"value": value}}
                               for name, values in sorted(host.attributes.items())
                               for value in sorted(values)]}


# --- the demo's observer ------------------------------------------------------------------------------------
#
# What tasks write is worked out when somebody looks, from their command lines and the demo's clock: nothing
# runs, and the scheduler's side knows nothing of it. The observer's answers are those of the real one, its
# odd ones too; so are those of the Mesos agent, which listens at the same port.


def command_lines(command: str) -> Iterator[Tuple[float, str, str]]:
    """What a demo process writes: (second, stream, line). `echo`, `printf` and `print` say what they say,
    with >&2 to stderr; the body of a loop is said again and again; what fails says so; any other program
    tells every ten seconds that it runs."""
    now = 0.0
    head, loop, rest = command.partition(" do ")
    statements = [re.split(r";|&&|\|\||\n", head), re.split(r";|&&|\|\||\n", rest.partition("done")[0])]
    for part in itertools.chain([statements[0]], itertools.repeat(statements[1]) if loop else ()):
        before = now
        for statement in part:
            words = statement.split() or [":"]
            stream = "stderr" if ">&2" in statement else "stdout"
            said = re.sub(r"1?>&2", "", statement).strip()
            if words[0] in ("echo", "printf"):
                yield now, stream, said.partition(" ")[2].strip("\"'")
            elif "print(" in statement:
                yield now, stream, said.partition("print(")[2].partition(")")[0].strip("\"'")
            elif words[0] == "false" or words[0] == "exit" and words[1:] not in ([], ["0"]):
                status = (words + ["1"])[1]
                yield now, "stderr", "fatal: %s: the command failed, status %s" % (said, status)
            elif words[0] not in _QUICK_COMMANDS | {"sleep", "exit", "while", "for"}:
                for number in itertools.count():
                    told = "running, %d" % number if number else "started"
                    yield now + 10.0 * number, "stdout", "%s: %s" % (words[0], told)
            now += (command_fate(statement)[0] or 0.0) if words[0] == "sleep" else 0.0
        now += 1.0 if loop and now == before and part is statements[1] else 0.0


class DemoSandbox:
    """What one demo task wrote so far; used under the demo's lock."""

    def __init__(self, task: DemoTask, rotate: Tuple[int, int]) -> None:
        self.task = task
        self.rotate = rotate
        try:
            self.config = json.loads(task.config.executorConfig.data)["task"]
            self.processes = [each for each in self.config["processes"] if "name" in each]
        except (AttributeError, KeyError, TypeError, ValueError):
            self.config, self.processes = {}, []
        started = [event[0] for event in task.events if event[1] in (_S.STARTING, _S.RUNNING)]
        self.begin = started[0] / 1000.0 if started else math.inf
        self.files: Dict[str, bytearray] = {}
        self.console = {"stdout": bytearray(b"executor: starting task\n"), "stderr": bytearray()}
        self._writing: Dict[Tuple[str, int], List[Any]] = {}

    @property
    def end(self) -> Optional[float]:
        return None if self.task.active else self.task.events[-1][0] / 1000.0

    def runs(self, now: float) -> Dict[str, List[Json]]:
        """All runs of each process so far, as the observer tells them; what they wrote until then is
        written."""
        found: Dict[str, List[Json]] = {}
        start, until = self.begin, now if self.end is None else min(now, self.end)
        for process in self.processes:
            seconds, failed = command_fate(str(process.get("cmdline", "")))
            again = bool(process.get("daemon")) or failed and int(process.get("max_failures", 1)) != 1
            for number in range(100 if again and seconds is not None else 1):
                began = start + number * max(seconds or 0.0, 5.0)
                if began > until:
                    break
                run: Json = {"process_name": process["name"], "process_run": number,
                                       "start_time": began}
                over = seconds is not None and began + seconds <= until
                if over and failed:
                    run["state"] = "FAILED"             # and neither when nor how, as in the real one
                elif over:
                    run.update(state="SUCCESS", stop_time=began + (seconds or 0.0))
                elif self.end is not None and now >= self.end:
                    run.update(state="KILLED", stop_time=self.end, return_code=-15)
                else:
                    run.update(state="RUNNING", used=self.sample(True))
                self._write(process, number,
                            (began + seconds if over and seconds is not None else until) - began)
                found.setdefault(process["name"], []).append(run)
            if self.config.get("constraints"):
                start = math.inf if seconds is None else start + seconds
        return found

    @staticmethod
    def sample(running: bool) -> Json:
        """What the observer measures; nothing of a task that ended."""
        zero = dict.fromkeys(("cpu", "ram", "rss", "vms", "disk", "user", "system", "threads"), 0)
        busy = dict(zero, cpu=0.25, ram=1 << 24, rss=1 << 24, vms=1 << 26, disk=1 << 20, user=1.5, system=0.5,
                    threads=1)
        return dict(busy, nice=0, status="sleeping") if running else dict(zero, nice=None, status="None")

    def _write(self, process: Json, run: int, seconds: float) -> None:
        logger = process.get("logger") or {}
        destination = logger.get("destination", "file")
        size, backups = self.rotate
        if logger.get("rotate"):
            size, backups = int(logger["rotate"]["log_size"]), int(logger["rotate"]["backups"])
        key = (process["name"], run)
        if key not in self._writing:
            lines = command_lines(str(process.get("cmdline", "")))
            self._writing[key] = [lines, next(lines, None)]
            for stream in ("stdout", "stderr") if destination in ("file", "both") else ():
                self.files[".logs/%s/%d/%s" % (key + (stream,))] = bytearray()
        state = self._writing[key]
        while state[1] is not None and state[1][0] <= seconds:
            _, stream, line = state[1]
            state[1] = next(state[0], None)
            path, data = ".logs/%s/%d/%s" % (key + (stream,)), (line + "\n").encode()
            if destination in ("console", "both"):
                self.console[stream] += data
            if path in self.files:
                self.files[path] += data
                if len(self.files[path]) >= size:
                    for number in range(backups, 0, -1):
                        older = self.files.pop(path + (".%d" % (number - 1) if number > 1 else ""), None)
                        if older is not None:
                            self.files["%s.%d" % (path, number)] = older
                    self.files[path] = bytearray()


class DemoFile:
    """A file of any size that takes no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        return bytes(end - first)


class DemoObserver(App):
    """The Thermos observer and Mesos agent of all the demo's hosts, on a port of its own.

    Switches: slow, seconds that each answer takes; garbage, what it answers instead; `stop` and `start`,
    to be down; delay and purge, seconds until a task is seen and after which an ended one is collected;
    rotate, (bytes of a log, how many older ones are kept). files: what lies in every sandbox; None is a link
    that leads out of it, False what may not be read. requests: what was asked.
    """

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.slow = 0.0
        self.garbage: Optional[bytes] = None
        self.delay = 5.0
        self.purge = 7 * 86400.0
        self.rotate = (1 << 20, 5)
        self.agent_authorization: Optional[str] = None
        self.files: Json = {"README.txt": b"A file of the demo.\n", "data/a b.csv": b"1,2\n3,4\n",
                                      "data/gr\xfcn.txt": "gr\xfcn\n".encode(), "outside": None}
        self.requests: Deque[Tuple[str, Dict[str, str]]] = collections.deque(maxlen=10000)
        self.server: Optional[HttpServer] = None
        self.port = 0
        self._sandboxes: Dict[str, DemoSandbox] = {}        # guarded by the demo's lock

    def start(self) -> Tuple[str, int]:
        """Serve on a loopback port, always the same one; where that is."""
        if self.server is None:
            self.server = HttpServer(("127.0.0.1", self.port), self)
            self.port = self.server.port
            threading.Thread(target=self.server.serve_forever, name="demo-observer", daemon=True).start()
        return "127.0.0.1", self.port

    def stop(self) -> None:
        """Serve no more."""
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def handle(self, request: Request) -> Response:
        self.requests.append((request.path, request.headers))
        time.sleep(self.slow)
        if self.garbage is not None:
            return Response(200, body=self.garbage, content_type="text/html")
        if request.method not in ("GET", "HEAD"):
            return self._html(405)
        first, *rest = decode_percent(request.path).split("/")[1:]
        answer = getattr(self, "_page_" + first.replace(".", "_"), None)
        try:
            with self.demo._lock:
                self.demo._catch_up()
                found = answer(rest, request) if answer else self._html(404)
        except Exception:       # as one is in the real observer
            return self._html(500)
        if isinstance(found, Response):
            return found
        return Response(200, found) if isinstance(found, (dict, list)) else self._html(200, str(found))

    @staticmethod
    def _html(status: int, text: str = "") -> Response:
        return Response(status, body=("<html><body>%s</body></html>" % (text or "Error %d" % status)).encode(
            "utf-8", "surrogateescape"), content_type="text/html; charset=UTF-8")

    def _sandbox(self, task_id: str, agent: bool = False) -> Optional[DemoSandbox]:
        """That of a task that is known, with all it wrote until now. The agent knows those of other
        executors, too."""
        task, now = self.demo._tasks.get(task_id), self.demo.clock.now()
        executor = task.config.executorConfig if task else None
        if task is None or task.host is None or not agent and (executor is None
                                                               or executor.name != EXECUTOR_NAME):
            return None
        if len(self._sandboxes) > 1000:
            self._sandboxes.clear()
        made = self._sandboxes.get(task_id)
        if made is None or made.begin == math.inf:
            made = self._sandboxes[task_id] = DemoSandbox(task, self.rotate)
        seen = now // self.delay * self.delay if self.delay else now        # when it last looked for new ones
        if made.begin > seen or made.end is not None and now > made.end + self.purge:
            return None
        made.runs(now)
        return made

    def _runs(self, task_id: str) -> Dict[str, List[Json]]:
        sandbox = self._sandbox(task_id)
        return sandbox.runs(self.demo.clock.now()) if sandbox else {}

    def _tree(self, task_id: str) -> Optional[Json]:
        sandbox = self._sandbox(task_id)
        return dict(self.files, **sandbox.files) if sandbox else None

    # JSON

    def _page_j(self, parts: List[str], request: Request) -> Any:
        kind, rest = parts[0], parts[1:]
        if kind in ("task_ids", "task_id_count"):
            known = [each for each in list(self.demo._tasks) if self._sandbox(each)]
            groups = {"all": known, "active": [each for each in known if self.demo._tasks[each].active],
                      "finished": [each for each in known if not self.demo._tasks[each].active]}
            if kind == "task_id_count":
                return {name: len(each) for name, each in groups.items()}
            which, offset, number = (rest + ["all", "0", "20"][len(rest):])[:3]
            shown = groups[which][::-1][int(offset):][:int(number)]
            return {"type": which, "offset": int(offset), "num": int(number),
                    "task_count": len(groups[which]),
                    "tasks": [dict(self._task(each), task_id=each) for each in shown]}
        ids = rest[:1] or [each for each in dict(request.query).get("task_id", "").split(",") if each]
        if kind == "task":
            return {each: self._task(each) for each in ids}
        if kind == "processes":
            return {each: {name: runs[-1] for name, runs in self._runs(each).items()} for each in ids}
        found = self._runs(ids[0]).get(rest[1], []) if len(rest) > 1 else []
        at = int(rest[2]) if len(rest) > 2 else -1
        return found[at] if found and at < len(found) else {}

    def _task(self, task_id: str) -> Json:
        sandbox = self._sandbox(task_id)
        if sandbox is None:
            raise KeyError(task_id)
        task, runs = sandbox.task, self._runs(task_id)
        groups: Dict[str,
                     List[str]] = {each: [] for each in ("waiting", "running", "success", "failed", "killed")}
        for name, each in runs.items():
            groups[each[-1]["state"].lower()].append(name)
        ended = _S.name_of(task.status).replace("FINISHED", "SUCCESS")
        return {"task_id": task_id, "name": task.key[2], "user": task.key[0],
                "state": "ACTIVE" if task.active else ended,
                "launch_timestamp": int(sandbox.begin), "state_timestamp": int(sandbox.end or sandbox.begin),
                "ports": dict(task.ports), "resource_consumption": sandbox.sample(task.active),
                "processes": groups,
                "task": sandbox.config}

    @staticmethod
    def _chunk(data: Any, request: Request) -> Json:
        query = dict(request.query)
        try:
            offset, length = int(query.get("offset", -1)), int(query.get("length", -1))
        except ValueError:
            return {}
        if data is None:
            return {}
        if offset < -1:
            raise ValueError("a seek before the beginning")
        offset = len(data) if offset == -1 else offset
        part = bytes(data[offset:] if length < 0 else data[offset:offset + length])
        text = part.decode("utf-8", "replace").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return dict({"offset": offset, "length": len(part)}, **({"data": text} if part else {}))

    def _page_logdata(self, parts: List[str], request: Request) -> Any:
        task_id, name, run, kind = parts
        runs = self._runs(task_id)
        number = int(run)
        if runs and name not in runs:
            raise KeyError(name)
        number = len(runs[name]) - 1 if runs and number == -1 else number
        return self._chunk((self._tree(task_id) or {}).get(".logs/%s/%d/%s" % (name, number, kind)), request)

    def _page_filedata(self, parts: List[str], request: Request) -> Any:
        path = "/".join(parts[1:])
        if not path.isascii():
            raise ValueError(path)
        return self._chunk((self._tree(parts[0]) or {}).get(path), request)

    # pages and bytes

    def _page_health(self, parts: List[str], request: Request) -> Any:
        return Response(200, body=b"OK", content_type="text/plain")

    def _page_vars_json(self, parts: List[str], request: Request) -> Any:
        return {"observer.tasks": len(self._sandboxes)}

    def _page_main(self, parts: List[str], request: Request) -> Any:
        return " ".join(each for each in list(self.demo._tasks) if self._sandbox(each))

    _page_ = _page_main

    def _page_task(self, parts: List[str], request: Request) -> Any:
        return "task " + parts[0] if self._sandbox(parts[0]) else self._html(404)

    _page_process = _page_rawtask = _page_logs = _page_task

    def _page_file(self, parts: List[str], request: Request) -> Any:
        return "file"

    def _page_browse(self, parts: List[str], request: Request) -> Any:
        task_id, path = parts[0], "/".join(parts[1:])
        tree = self._tree(task_id)
        if tree is None:
            return self._html(404)
        if path in tree:
            raise OSError("not a directory")
        entries: Dict[str, Optional[int]] = {} if not path else {"..": None}
        for each in tree:
            if each.startswith(path + "/" if path else ""):
                name, deeper, _ = each[len(path) + 1 if path else 0:].partition("/")
                entries[name] = None if deeper else len(tree[each] or b"")
        if not any(name != ".." for name in entries):
            return self._html(404)
        lines = []
        for name, size in sorted(entries.items()):
            href = "%s/%s/%s" % (task_id, path or ".", name)
            mode = "drwxr-xr-x" if size is None else "-rw-r--r--"
            link = "<a href='/%s/%s'>%s</a>" % ("browse" if size is None else "file", href, name)
            more = "" if size is None else " <a href='/download/%s'><font size=1>dl</font></a>" % href
            lines.append("%s %3d %10s %10s %10d %s %s%s" % (
                mode, 1, self.demo._tasks[task_id].key[0], 1000, 4096 if size is None else size,
                "Nov 25 13:53",
                link, more))
        return "<strong> path </strong> %s <pre>\n\n%s\n    </pre>" % (path or ".", "\n".join(lines))

    def _page_download(self, parts: List[str], request: Request) -> Any:
        path, tree = os.path.normpath("/".join(parts[1:])), self._tree(parts[0])
        if tree is None:
            return self._html(404)
        if path.startswith("../sandbox") or tree.get(path) is False:
            return self._html(403)
        if tree.get(path) is None:
            return self._html(404)
        if not path.isascii():
            raise ValueError(path)
        data = tree[path]
        headers = [("Last-Modified", "Wed, 25 Nov 2026 13:53:00 GMT"), ("Content-Disposition", "attachment")]
        if request.headers.get("if-modified-since"):
            return Response(304, body=b"", headers=headers)
        asked = _range(request.headers.get("range", "").partition(",")[0], len(data))
        if asked and asked[0] >= asked[1]:
            return self._html(416)
        headers += [("Content-Range",
                     "bytes %d-%d/%d" % (asked[0], asked[1] - 1, len(data)))] if asked else []
        return Response(206 if asked else 200, body=bytes(data[slice(*asked)] if asked else data[:]),
                        headers=headers,
                        content_type="application/octet-stream")

    # the Mesos agent

    def _page_state(self, parts: List[str], request: Request) -> Any:
        if self.agent_authorization not in (None, request.headers.get("authorization")):
            return self._html(401)
        executors = [{"id": "thermos-" + each, "directory": "/mesos/" + each}
                     for each in list(self.demo._tasks)]
        return {"frameworks": [{"id": "demo", "executors": executors}], "completed_frameworks": []}

    def _page_files(self, parts: List[str], request: Request) -> Any:
        if self.agent_authorization not in (None, request.headers.get("authorization")):
            return self._html(401)
        query = dict(request.query)
        path = re.sub(r"^/frameworks/demo/executors/thermos-([^/]+)/runs/latest", r"/mesos/\1", query["path"])
        _, _, task_id, rest = (path + "/").split("/", 3)
        rest, sandbox = rest.rstrip("/"), self._sandbox(task_id, True)
        if sandbox is None:
            return self._html(404)
        files = dict({"sandbox/" + name: data for name, data in dict(self.files, **sandbox.files).items()},
                     **sandbox.console)
        if parts == ["read"]:
            if rest not in files:
                return self._html(404)
            offset, length = int(query.get("offset", -1)), min(65536,
                                                               int(query.get("length", -1)) % (1 << 62))
            if offset == -1:
                return {"data": "", "offset": len(files[rest])}
            part = bytes(files[rest][offset:offset + length]).decode("utf-8", "surrogateescape")
            text = json.dumps(part, ensure_ascii=False)
            return Response(200, body=('{"data":%s,"offset":%d}' % (text, offset)).encode("utf-8",
                                                                                          "surrogateescape"))
        below = rest + "/" if rest else ""
        inside = [name[len(below):].split("/") for name in files if name.startswith(below)]
        return [{"path": "%s/%s" % (path.rstrip("/"), name),
                 "mode": "drwxr-xr-x" if [name] not in inside else "-rw-r--r--", "nlink": 1,
                 "uid": "www-data", "gid": "www-data", "size": 0, "mtime": 1795000000}
                for name in sorted({each[0] for each in inside})] or self._html(404)


# ============================================================================================================
# 8. Web page, server object and command line
#
# The page at /, the Server that scripts embed, and the command line that starts one. Uses all rooms.
# ============================================================================================================

PAGE = """\
<!doctype html>
<html lang="en" data-page="full" data-logs="no">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Aurora</title>
<link rel="stylesheet" href="page.css">
<script type="module" src="page.js"></script>
<body>
<a class="skip" href="#main">Skip to content</a>
<header id="top" class="row"></header>
<div id="notice"></div>
<main id="main" tabindex="-1"><noscript>This page needs JavaScript. The data is at /alpha.</noscript></main>
<section id="tray" aria-label="Operations" hidden></section>
<div id="say" class="vh" role="status" aria-live="polite"></div>
"""

PAGE_STYLE = r"""
/* Type    12 label, 13 text, 15 section, 20 title; weights 400 500 600; lines of 20, title 28.
   Space   4 8 12 16 24 32. Row 32, control 28 (narrow: 36).
   Colour  ink, dim, link, states: 4.5:1 on bg, raised, sunken and tints, light and dark; edge: 3:1.
           Hue for trouble, progress, links, focus; healthy is quiet. */
:root {
  color-scheme: light dark;
  --t1: .75rem; --t2: .8125rem; --t3: .9375rem; --t4: 1.25rem;
  --1: .25rem; --2: .5rem; --3: .75rem; --4: 1rem; --5: 1.5rem; --6: 2rem;
  --ctl: 1.75rem; --bar: 3rem; --r: .375rem;
  --bg: light-dark(#fcfcfb, #121316); --raised: light-dark(#fff, #1a1c20);
  --sunken: light-dark(#f4f4f2, #1e2025);
  --ink: light-dark(#1b1c1f, #e8e9eb); --dim: light-dark(#5d6067, #a0a5ad);
  --edge: light-dark(#888b91, #71767f);
  --rule: light-dark(#e4e4e0, #2b2e34); --line: 1px solid var(--rule); --link: light-dark(#2353c4, #8db2ff);
  --ok: light-dark(#1c6e40, #63c58d); --go: light-dark(#0b6584, #62bfdc);
  --wait: light-dark(#85560a, #dcae56);
  --bad: light-dark(#b4231f, #ff8b80); --lost: light-dark(#74389f, #cba3f2);
}
*, ::before, ::after { box-sizing: border-box; margin: 0; padding: 0 }
html { scroll-padding: 6rem 0 4rem }
body {
  min-height: 100dvh; display: flex; flex-direction: column; background: var(--bg); color: var(--ink);
  font: var(--t2)/1.25rem system-ui, sans-serif; font-variant-numeric: tabular-nums
}
h1, .at { font-size: var(--t4); line-height: 1.75rem; overflow-wrap: anywhere } h2 { font-size: var(--t3) }
h1, h2, b { font-weight: 600 }
.lab, th, dt, label, kbd { font-size: var(--t1); font-weight: 500; color: var(--dim) }
ul, ol { list-style: none } [hidden] { display: none !important }
a { color: inherit; text-decoration: none; &:hover { text-decoration: underline } }
.link { color: var(--link) }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
[tabindex="-1"] { outline: 0 } nav a { outline-offset: -2px }
.vh, .skip:not(:focus) { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%) }
.dim, .off, .count, .at nav { color: var(--dim); font-weight: 400 } .sep { flex: 1 }
.row, .chips, .facts { display: flex; flex-wrap: wrap; align-items: center; gap: var(--2) }
.legend { gap: var(--1) var(--4) }
.stack, .panel, dialog[open], form { display: grid; gap: var(--3); align-content: start; min-width: 0 }
.far { gap: var(--6) } .stack > * { min-width: 0 } dd { overflow-wrap: anywhere }

/* Controls */
button, .btn, input, select, textarea {
  min-height: var(--ctl); padding: 0 var(--2); border: var(--line); border-radius: var(--r);
  background: var(--raised); color: inherit; font: inherit; max-width: 100%
}
button, .btn {
  display: inline-flex; align-items: center; gap: var(--1); padding: 0 var(--3); font-weight: 500;
  white-space: nowrap;
  &:hover { background: var(--sunken); text-decoration: none }
}
button:disabled { color: var(--dim); background: none }
input, textarea { border-color: var(--edge); &::placeholder { color: var(--dim); opacity: 1 } }
[type=checkbox] { min-height: 0; padding: 0; width: 1rem; height: 1rem; accent-color: var(--ink);
  vertical-align: middle }
.main:not(:disabled) {
  background: var(--ink); border-color: var(--ink); color: var(--bg); &:hover { background: var(--dim) }
  &.bad { background: var(--bad); border-color: var(--bad); color: var(--bg) }
}
.quiet, .bare { border-color: transparent; background: none; padding: 0 var(--2) }
.bare { padding: 0; font-weight: inherit; min-height: 1.5rem }
.chips { gap: var(--1); button { padding: 0 var(--2); font-weight: 400 } }
[aria-pressed=true] { border-color: var(--ink); background: var(--sunken) }
pre, kbd, textarea, .mono, .log, .diff dd {
  font: var(--t1)/1.25rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-variant-ligatures: none
}
kbd { border: var(--line); border-radius: 4px; padding: 0 var(--1) }

/* States */
.g { width: .75rem; height: .75rem; flex: none }
.line { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round }
.full { fill: currentColor }
.st {
  display: inline-flex; align-items: center; gap: var(--2); font-weight: 500; white-space: nowrap;
  vertical-align: top
}
.ok { color: var(--ok); > span { color: var(--ink); font-weight: 400 } }
.go { color: var(--go) } .wait { color: var(--wait) } .fail, .bad:enabled { color: var(--bad) }
.lost { color: var(--lost) }
.bar { display: block; width: 100%; height: .375rem; margin: var(--1) 0 }
.rest { color: var(--rule) } .w, .used { color: var(--edge) }
:is(.bar, .grid) .ok { color: color-mix(in srgb, var(--ok) 74%, var(--bg)) }

/* Frame */
#top {
  position: sticky; top: 0; z-index: 2; flex-wrap: nowrap; min-height: var(--bar); padding: 0 var(--5);
  background: var(--bg); border-bottom: var(--line)
}
#top nav, .tabs {
  display: flex; gap: 1.25rem; margin: 0 var(--3); overflow-x: auto; white-space: nowrap;
  scrollbar-width: none;
  a:not(:hover, [aria-current]) { color: var(--dim) } [aria-current] { font-weight: 500 }
  a { padding: var(--1) 0 }
}
.find { width: 14rem; padding: 0 var(--2); color: var(--dim); font-weight: 400 }
.fresh { min-width: 6.5rem }
#notice .row { padding: var(--2) var(--5) }
main { flex: 1; min-height: 0; min-width: 0; padding: var(--5) }
.head { margin-bottom: var(--4) }
.facts { gap: var(--2) var(--6); margin-bottom: var(--5); .bar { width: 10rem } }
.tabs { margin: 0 0 var(--3); border-bottom: var(--line) }
.tabs a { padding: var(--2) 0; font-weight: 500 } .tabs [aria-current] { box-shadow: inset 0 -2px var(--ink) }
.tools { margin-bottom: var(--2); > [type=search] { width: 16rem } > input { width: 6rem } }
.many { columns: 20rem; a { display: inline-block; line-height: 1.5rem } }
.panel, .log, #tray > * { border: var(--line); border-radius: var(--r); background: var(--raised);
  padding: var(--3) var(--4) }
.panel + nav { margin-top: var(--4) } .detail + section { margin-top: var(--5) }
.cols, .detail { display: grid; grid-template-columns: minmax(0, 1fr); gap: var(--6) }
.old :is(.panel, td) { border-bottom-style: dashed }
#tray {
  position: fixed; right: var(--5); bottom: var(--4); z-index: 3; width: 22rem; max-width: calc(100% - 2rem);
  display: grid; gap: var(--2)
}
#tray > * { border-color: var(--edge) }

/* Tables */
table { width: 100%; border-collapse: collapse; table-layout: fixed }
th, td {
  height: 2rem; padding: 0 var(--5) 0 0; border-bottom: var(--line); text-align: left; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis;
  &:last-child { padding-right: var(--2) } &:has([type=checkbox]) { padding-left: var(--2) }
}
.num { text-align: right } i { font-style: normal }
td i { display: inline-block; width: 1.75rem; text-align: left }
.w0 { width: 2.5rem } .w1 { width: 6rem } .w2 { width: 8.5rem } .w3 { width: 13.5rem } .w4 { width: 20rem }
thead th { position: sticky; top: var(--bar); z-index: 1; background: var(--bg) }
tbody tr:is(:hover, :focus-within, .on, .more) { background: var(--sunken) }
.on td { border-color: var(--sunken) }
.gap td { padding: 0; border: 0 } tr.gap:hover { background: none }
td:has(.turn) { padding-left: 2px; overflow: visible }
.turn { color: var(--dim) } [aria-expanded=true] .turn { transform: rotate(90deg) }
.more > td { padding: var(--2) var(--4) var(--4) 2.5rem; white-space: normal; height: auto;
  text-overflow: clip }
.events, .pairs {
  display: grid; grid-template-columns: auto auto minmax(0, 1fr); align-items: start; gap: 0 var(--4);
  overflow-wrap: anywhere; li { display: contents }
  div { display: contents }
}
.pairs { grid-template-columns: auto minmax(0, 1fr); gap: var(--1) var(--4) }

/* Parts */
.diff { display: grid; gap: var(--2);
  dd { padding: 0 var(--2); overflow-wrap: anywhere; white-space: pre-wrap } }
.add { background: color-mix(in srgb, var(--ok) 12%, var(--bg)); &::before { content: '+ ' } }
.del, #notice .row { background: color-mix(in srgb, var(--bad) 10%, var(--bg)) }
.del::before { content: '− ' }
body:has(.log) { height: 100dvh; :is(main, .view) { display: flex; flex-direction: column }
  .view { flex: 1; min-height: 0 } .facts, .panel { display: none } }
.logs { display: flex; flex-direction: column; flex: 1; min-height: 0 }
.log {
  flex: 1; min-height: 12rem; overflow: auto; margin-bottom: var(--2);
  p { display: flex; white-space: pre; min-height: 1.25rem; height: 1.25rem }
  b { flex: 0 0 4.5rem; &:empty { display: none } }
  &.wrap p { height: auto; white-space: pre-wrap; overflow-wrap: anywhere }
}
.grid { display: block; .line { fill: none; stroke-width: 1.6 }
  text { fill: var(--dim); font-size: var(--t1) } .x { color: var(--bg) } }

/* Dialogs */
dialog {
  margin: auto; width: 36rem; max-width: calc(100% - 2rem); padding: var(--5); border: var(--line);
  border-radius: .5rem; background: var(--raised); color: var(--ink); &::backdrop { background: #0006 }
}
label > :is(input:not([type=checkbox]), select) {
  display: block; width: 100%; margin-top: var(--1); color: var(--ink); font-size: var(--t2)
}
textarea { height: 26rem; padding: var(--3); width: 100% }
pre { word-break: break-all; white-space: pre-wrap }
dialog pre { max-height: 14rem; overflow: auto }
.palette {
  margin-top: 12vh; padding: var(--2); #hits { max-height: 55vh; overflow: auto }
  [role=option], .lab { padding: 6px var(--2); border-radius: var(--r); overflow-wrap: anywhere }
  [aria-selected=true] { background: var(--sunken) }
}

@media (width >= 64rem) {
  .cols { grid-template-columns: minmax(0, 1fr) 20rem } .half { grid-template-columns: 1fr 1fr }
  .detail { grid-template-columns: 5fr 4fr 3fr }
}
@media (width >= 48rem) {
  :is(.more, .panel) .diff > div { display: grid; grid-template-columns: 15rem minmax(0, 1fr);
    dt { grid-row: 1 / 3 } }
}
@media (width < 48rem) {
  :root { --ctl: 2.25rem; --bar: 0 }
  #top, #notice .row { position: static; flex-wrap: wrap; gap: var(--1); padding: var(--1) var(--4) }
  #top nav { order: 1; width: 100%; margin: 0 } .find { width: auto; flex: 1 } .fresh { min-width: 0 }
  #top select { width: 6.5rem } #top > button:last-child { max-width: 5.5rem; overflow: hidden }
  .row > :is(button, .btn) { padding: 0 var(--2) }
  kbd, .opt, .flow thead, #top time { display: none }
  main { padding: var(--2) var(--4) var(--4) } .head { margin-bottom: var(--2) }
  .facts { gap: var(--1) var(--5); margin-bottom: var(--3) }
  .tools > [type=search] { flex: 1 0 100% }
  .chips { flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none }
  .flow, .flow tbody { display: block }
  .flow tr { display: flex; flex-wrap: wrap; align-items: center; gap: 0 var(--3); padding: var(--2) 0;
    border-bottom: var(--line) }
  .flow tr[data-i] { height: 4rem; overflow: hidden }
  .flow:has(.wide.msg, .wide ~ .msg) tr[data-i] { height: 5.25rem }
  .flow td { height: auto; padding: 0; border: 0 }
  .flow :is(.msg, .wide) { order: 1; width: 100% }
  .flow .num:not(.opt) { margin-left: auto; ~ .num { margin: 0 } } .flow .more td { width: 100% }
  .flow .gap { padding: 0; border: 0 } dialog { padding: var(--4) } #tray { right: var(--4) }
  .events { gap: 0 var(--2) }
}
@media (forced-colors: active) {
  [aria-pressed=true], [aria-selected=true], [aria-current] { outline: 2px solid Highlight;
    outline-offset: -2px }
}
"""

PAGE_SCRIPT = r"""
/* ---- Elements: made anew, then morphed into those shown, so that focus, clicks and scrolling stay ---- */
const fire = e => e.currentTarget.on[e.type]?.(e)
const flat = kids => kids.flat(9).filter(k => k && k !== true)
const make = ns => (tag, props, ...kids) => {
  const e = document.createElementNS(ns, tag)
  for (const [k, v] of Object.entries(props || {})) {
    if (typeof v == 'function') { (e.on ||= {})[k] = v; e.addEventListener(k, fire) }
    else if (v != null && v !== false && v !== '') e.setAttribute(k, v === true ? '' : v)
  }
  e.append(...flat(kids))
  return e
}
const h = make('http://www.w3.org/1999/xhtml'), s = make('http://www.w3.org/2000/svg')
const $ = q => document.querySelector(q)
const like = (a, b) => a.nodeName == b.nodeName && a.dataset?.k == b.dataset?.k && !a.own && !b.own
function morph(a, b) {
  if (a.nodeType == 3) { if (a.data != b.data) a.data = b.data; return }
  for (const {name} of [...a.attributes]) if (!b.hasAttribute(name)) a.removeAttribute(name)
  for (const {name, value} of b.attributes) if (a.getAttribute(name) != value) a.setAttribute(name, value)
  for (const k in b.on) if (!a.on?.[k]) a.addEventListener(k, fire)
  a.on = b.on
  if (a.type == 'checkbox') a.checked = b.checked
  fill(a, ...b.childNodes)
  if (a.nodeName == 'SELECT') a.value = b.value
}
// Gives an element these children. What is `own` keeps itself; what has a key moves with it.
function fill(el, ...kids) {
  const keyed = new Map([...el.children].map(c => [c.dataset.k, c]))
  kids = flat(kids)
  kids.forEach((kid, i) => {
    if (!kid.nodeType) kid = document.createTextNode(kid)
    const now = el.childNodes[i], old = kid.dataset?.k ? keyed.get(kid.dataset.k) : now
    if (now === kid) return
    if (!old || !like(old, kid)) { el.insertBefore(kid, now || null); return }
    morph(old, kid)
    if (old != now) el.insertBefore(old, now)
  })
  while (el.childNodes.length > kids.length) el.lastChild.remove()
}

/* ---- States: glyph + word + colour. A glyph is [stroke, fill] on a 12 × 12 field. ---- */
const ring = 'M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z'
const G = {
  disc: ['', ring], half: [ring, 'M6 1.5a4.5 4.5 0 0 1 0 9z'], ring: [ring],
    clock: [ring + 'M6 3.75V6l1.75 1'],
  cross: ['M2.25 2.25l7.5 7.5M9.75 2.25l-7.5 7.5'], slash: [ring + 'M3 9l6-6'],
  ask: ['M3.6 4.1a2.4 2.4 0 1 1 3.7 2C6.4 6.7 6 7.1 6 8M6 10.6v.01'], check: ['M1.75 6.5l3 3L10.25 3'],
  pause: ['M4 2v8M8 2v8'], fwd: ['', 'M2.5 1.25l8 4.75-8 4.75z'], back: ['', 'M9.5 1.25l-8 4.75 8 4.75z'],
  undo: ['M4.5 1.75L2 4.25l2.5 2.5M2 4.25h5.25a2.9 2.9 0 0 1 0 5.8H4.5'],
  down: ['M6 1.75v8M2.75 6.5L6 9.75 9.25 6.5'], open: ['M4 2.25L8 6 4 9.75'],
}
const glyph = (name, cls = '') => s('svg', {class: 'g ' + cls, viewBox: '0 0 12 12', 'aria-hidden': 'true'},
  G[name].map((d, i) => d && s('path', {d, class: i ? 'full' : 'line'})))
// The worst first, which is how tasks are sorted.
const STATE = Object.fromEntries(`FAILED cross fail, LOST ask lost, PARTITIONED ask lost,
THROTTLED clock wait, PENDING ring wait, INIT ring wait, PREEMPTING half go, KILLING half go,
  RESTARTING half go, DRAINING down go,
ASSIGNED half go, STARTING half go, RUNNING disc ok, KILLED slash off, FINISHED check off, ERROR cross fail,
ROLLING_FORWARD fwd go, ROLLING_BACK back wait, ROLL_FORWARD_PAUSED pause wait, ROLL_BACK_PAUSED pause wait,
ROLL_FORWARD_AWAITING_PULSE clock wait, ROLL_BACK_AWAITING_PULSE clock wait, ROLLED_FORWARD check ok,
ROLLED_BACK undo wait, ABORTED slash off, updated disc ok, rolled_back undo wait, updating half go,
rolling_back half wait, failed cross fail, waiting ring off, running half go, succeeded check ok,
cancelled slash off, interrupted slash wait, NONE disc ok, SCHEDULED pause wait,
  DRAINED down off`.split(/,\s/).map(
  (x, i) => [x.split(' ')[0], [...x.split(' ').slice(1), i]]))
const rank = x => STATE[x]?.[2] ?? 99
const WORDS = {NONE: 'In service', SCHEDULED: 'Deactivated'}
const word = x => WORDS[x] || x.replace(/^ROLL_\w+?_/, '').toLowerCase().replace(/_/g, ' ').replace(/^./,
  c => c.toUpperCase())
const state = (x, text = word(x)) => {
  const [icon, cls] = STATE[x] || ['ask', 'off']
  return h('span', {class: 'st ' + cls}, glyph(icon), h('span', null, text))
}

/* ---- Settings, numbers, times ---- */
const kept = (k, v) => {        // in sessionStorage, where there is one
  try { return v == null ? sessionStorage.getItem(k) || '' : sessionStorage.setItem(k, v) } catch {
    return '' }
}
const PAGE = document.documentElement.dataset
const S = {auth: kept('auth'), local: kept('local'), quiet: kept('quiet'), read: kept('read'), me: null,
  clusters: [],
  paused: false, down: 0, sick: '', seen: Date.now(), skew: 0, streams: 0, tries: 0, ops: [],
    shown: new Set()}
const now = () => Date.now() + S.skew
const num = n => Number(n).toLocaleString('en').replace(/,/g, '\u202f')
const some = (n, one) => `${num(n)} ${one}${n == 1 ? '' : 's'}`
const stamp = (t, local = S.local) => local ?
  new Date(t).toLocaleString('sv') : new Date(t).toISOString().replace('T', ' ').slice(0, 19)
const parts = ms => {
  const [n, unit] = ms < 6e4 ? [ms / 1e3, 's'] : ms < 36e5 ? [ms / 6e4, 'min'] : ms < 1728e5 ? [ms / 36e5,
    'h'] : [ms / 864e5, 'd']
  return [Math.max(0, Math.floor(n)) + ' ', unit]
}
const took = ms => parts(ms).join('')
const time = (t, props, ...text) => t ? h('time', {datetime: new Date(t).toISOString(), title: stamp(t,
  '') + ' UTC', ...props}, ...text) : ''
const age = (t, cls) => { const [n, unit] = parts(now() - t); return time(t, {'data-t': t, class: cls}, n,
  h('i', null, unit)) }
const at = t => time(t, null, now() - t > 864e5 ? stamp(t).slice(0, 10) : stamp(t).slice(11))
const mb = n => n >= 1024 ? +(n / 1024).toFixed(1) + ' GiB' : num(n) + ' MiB'
const ranges = list => {        // 0-3,7: as the API takes instances
  const out = []
  for (const n of [...list].sort((a, b) => a - b)) out.at(-1)?.[1] == n - 1 ?
    out.at(-1)[1] = n : out.push([n, n])
  return out.map(([a, b]) => a == b ? a : a + '-' + b).join()
}
const say = text => { $('#say').textContent = text }

/* ---- Small parts ---- */
const button = (text, click, cls, more) => h('button', {type: 'button', class: cls, click, ...more}, text)
const link = (href, text, cls) => h('a', {href, class: cls}, text)
const toggle = (text, on, click, cls) => button(text, click, cls, {'aria-pressed': String(!!on)})
const plain = (...text) => h('p', {class: 'dim'}, ...text)
const row = (...kids) => h('div', {class: 'row'}, ...kids)
const gap = () => h('span', {class: 'sep'})
const lab = text => h('h2', {class: 'lab'}, text)
const section = (name, ...kids) => h('section', {class: 'stack'}, h('h2', null, name), ...kids)
const bar = (total, ...pieces) => {
  let x = 0
  return s('svg', {class: 'bar', viewBox: `0 0 ${total || 1} 6`, preserveAspectRatio: 'none',
    'aria-hidden': 'true'},
    [...pieces, ['rest', total]].map(([cls, n]) => {
      const width = Math.max(0, Math.min(n, total - x) - total / 400)
      x += n
      return s('rect', {class: cls, fill: 'currentColor', x: x - n, width, height: 6})
    }))
}
const pairs = (list, cls = 'pairs') => h('dl', {class: cls}, list.map(x => x &&
  h('div', {class: x[0][0] == '*' && 'opt'},
  h('dt', null, x[0].replace?.('*', '') ?? x[0]), h('dd', null, ...x.slice(1)))))
const facts = (...list) => pairs(list, 'facts')
const title = (path, text) => h('div', {class: 'at row'}, path[0] && h('nav', {'aria-label': 'Path'},
  path.map(([name, href]) => [link(href, name), ' / '])), h('h1', {tabindex: -1}, text))
const oops = e => h('div', {role: 'alert', class: 'stack'}, h('p', {class: 'st fail'}, glyph('cross'),
  h('span', null, e.code || 'Error')),
  (e.errors || [e.message]).map(t => h('p', null, t)))
const show = x => typeof x == 'string' ? x : JSON.stringify(x)
const words = x => !x || typeof x != 'object' ? String(x) : Array.isArray(x) ? x.map(words).join(', ') :
  Object.entries(x).map(([k, y]) => k + ' ' + words(y)).join(' ')
const changes = fields => fields[0] ? h('dl', {class: 'diff'}, fields.map(x => h('div', null, h('dt', null,
  x.path),
  [['del', 'was ', x.old], ['add', 'becomes ', x.new]].map(([cls, said, value]) => value != null &&
    h('dd', {class: cls}, h('span', {class: 'vh'}, said), show(value)))))) : plain('No field differs.')
const named = x => Array.isArray(x) && x[0]?.constructor == Object ? Object.fromEntries(x.map((y, i) =>
  [y.name ?? y.key ?? (Object.keys(y).length == 1 ? Object.keys(y)[0] : i), y])) : x?.constructor == Object ?
    x : null
const blank = x => x == null || typeof x == 'object' &&
  !Object.keys(x).length     // unset and empty mean the same
// The same that POST diff tells, for two configurations that are here already.
function differences(a, b, path = '') {
  const [x, y] = [named(a), named(b)]
  if (!x || !y) return JSON.stringify(a) == JSON.stringify(b) || blank(a) && blank(b) ? [] : [{path, old: a,
    new: b}]
  return [...new Set([...Object.keys(x), ...Object.keys(y)])].sort().flatMap(k =>
    differences(x[k], y[k], a == x ? path && path + '.' + k || k : `${path}[${k}]`))
}

/* ---- Place: the hash is the view and its filters ---- */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?')
  const clean = x => { try { return decodeURIComponent(x) } catch { return x } }
  return {path: path.split('/').filter(Boolean).map(clean), q: new URLSearchParams(query || '')}
}
function put(key, value) {
  const {path, q} = place()
  value ? q.set(key, value) : q.delete(key)
  history.replaceState(null, '', `#/${path.join('/')}${String(q) && '?' + q}`)
}
const arg = (key, otherwise = '') => place().q.get(key) || otherwise
const flip = key => put(key, arg(key) ? '' : '1')

/* ---- The server ---- */
class Refused extends Error {
  constructor(status, told) {
    super(told.errors?.[0] || 'The answer was ' + status)
    Object.assign(this, {status, code: told.code || 'HTTP ' + status, errors: told.errors})
  }
}
const sent = more => ({...S.auth && {Authorization: S.auth}, ...more})
async function request(method, path, {body, headers, signal, quiet} = {}) {
  let answer, told
  try {
    answer = await fetch(path, {method, body, signal, headers: sent({Accept: 'application/json',
      ...headers})})
    told = await answer.json().catch(e => { if (answer.ok) throw e; return {} })
  } catch (e) {
    if (signal?.aborted) throw e
    beat()
    throw new Refused(0, {code: 'UNREACHABLE', errors: ['The server does not answer.']})
  }
  met(answer)
  if (answer.ok) return Object.assign(told, {etag: answer.headers.get('ETag')})
  if (answer.status == 401 && !quiet) login(told.errors?.[0])
  throw new Refused(answer.status, told)
}
const url = (...words) => 'alpha/' + words.map(encodeURIComponent).join('/')
// Something came from the server: it is there, and its clock tells ours.
function met(answer) {
  const date = Date.parse(answer.headers.get('Date'))
  S.seen = Date.now()
  if (date && Math.abs(date - S.seen) > 3e3) S.skew = date - S.seen
  if (S.down) { S.down = S.tries = 0; wake() }
}
async function beat() {
  if (beat.busy || document.hidden) return
  beat.busy = true
  clearTimeout(beat.timer)
  try { met(await fetch('alpha/version', {signal: AbortSignal.timeout(1800), cache: 'no-store'})) } catch {
    if (!S.down) say('The server does not answer')
    S.down ||= S.seen
    S.tries++
  }
  beat.busy = false
  beat.timer = setTimeout(beat, S.down ? Math.min(3e4, 500 * 2 ** S.tries) : S.streams ? 15e3 : 2e3)
  frame()
  if (S.down) V?.draw()
}
const bus = new EventTarget(), resting = () => S.paused || document.hidden
function wake() { bus.dispatchEvent(new Event('wake')); V?.again() }
// Events of a path until the view closes: by fetch, since EventSource takes no header. It goes on where it
// was cut, or says `refused`. Returns when it is open.
function follow(v, path, on) {
  let id = '', wait = 1e3, cut
  v.signal.addEventListener('abort', () => cut?.abort())
  v.cuts.push(() => cut?.abort())
  const pause = ms => new Promise(done => { bus.addEventListener('wake', done, {once: true}); ms &&
    setTimeout(done, ms) })
  const once = async ready => {
    cut = new AbortController()
    const answer = await fetch(path, {signal: cut.signal, headers: sent({Accept: 'text/event-stream',
      ...id && {'Last-Event-ID': id}})})
    if (!answer.ok) throw new Refused(answer.status, await answer.json())
    met(answer)
    ready()
    wait = 1e3
    const reader = answer.body.getReader(),
      text = new TextDecoder()    // a character may be split between two pieces
    let left = '', name
    S.streams++
    try {
      for (let piece; !(piece = await reader.read()).done;) {
        S.seen = Date.now()
        const all = (left + text.decode(piece.value, {stream: true})).split('\n')
        left = all.pop()
        for (const line of all) {
          if (line.startsWith('id: ')) id = line.slice(4)
          if (line.startsWith('event: ')) name = line.slice(7)
          if (line.startsWith('data: ') && !v.signal.aborted) on(name, JSON.parse(line.slice(6)))
        }
      }
    } finally { S.streams-- }
  }
  const run = async ready => {
    while (!v.signal.aborted) {
      if (resting()) { await pause(); continue }
      const error = await once(ready).catch(e => e)
      if (v.signal.aborted) return
      if (error?.status) { on('refused', error); if (error.status < 500 && error.status != 429) return }
      if (!resting()) { beat(); await pause(wait) }
      wait = Math.min(3e4, wait * 2)
    }
  }
  return new Promise(run)
}

/* ---- Who may ---- */
const LEVELS = ['read', 'write', 'admin']
const globbed = (pattern, text) => RegExp('^' + pattern.replace(/[.+^$]/g, '\\$&').replace(/\*/g,
  '.*').replace(/\?/g, '.') + '$').test(text)
const may = (level, role) => PAGE.page == 'full' && !S.read && S.me &&
  LEVELS.indexOf(S.me.level) >= LEVELS.indexOf(level) &&
  (S.me.roles.includes('*') || role && S.me.roles.some(p => globbed(p, role)))

/* ---- Views: one at a time; load() fetches, draw() shows what was fetched ---- */
let V
class View {
  constructor() {
    this.ctl = new AbortController()
    this.cuts = []
    Object.assign(this, place(), {signal: this.ctl.signal, draw() {}})
    this.base = '#/' + this.path.join('/')
    this.api = url('job', ...this.path.slice(0, 4))
  }
  get(path) { return request('GET', path, {signal: this.signal}) }
  // What may be absent, or refused.
  maybe(path) { return this.get(path).catch(e => { if (!e.status || e.status >= 500) throw e }) }
  follow(path, on) { return follow(this, path, on) }
  // Loads and draws; never twice at a time, and the more rarely the longer it takes.
  async again(wait = 0) {
    if (this.signal.aborted || this.ready && resting()) return
    if (this.busy || wait) {
      this.timer ||= setTimeout(() => { this.timer = 0; this.again() }, Math.max(wait, 3 * (this.took ||
        100)))
      return
    }
    const began = Date.now()
    this.busy = true
    try {
      await this.load()
      S.sick = ''
      this.ready = true
    } catch (e) {
      if (this.signal.aborted) return
      if (this.ready) S.sick = e.message
      else fill(this.node, title([], 'Aurora'), oops(e), row(button('Try again', () => this.again()),
        link('#/', 'Overview', 'btn')))
      if (!e.status || e.status > 499) setTimeout(() => this.again(), 4e3)
    }
    this.busy = false
    this.took = Date.now() - began
    if (this.ready && !this.signal.aborted) this.draw()
    frame()
  }
  every(ms) { const t = setInterval(() => this.again(), ms); this.signal.addEventListener('abort', () =>
    clearInterval(t)) }
}
// At most four times a second.
function calm(draw) {
  let timer = 0
  return () => { timer ||= setTimeout(() => { timer = 0; draw() }, 250) }
}

const NAV = ['Overview', 'Jobs', 'Hosts', 'Cron', 'Pending', 'Operations']
const cluster = () => place().path[0] || S.clusters[0] || ''
const off = () => S.down || S.sick || V.locked
function frame() {
  const c = cluster(), {path} = place(), busy = S.ops.filter(o => o.state == 'running').length
  const here = path[1] ? NAV.find(n => n.toLowerCase() == path[1]) || 'Jobs' : 'Overview'
  const [icon, cls, text] = S.paused ? ['pause', 'wait', 'Paused'] : S.down ? ['cross', 'fail',
    'Reconnecting'] :
    S.sick ? ['cross', 'fail', 'Old'] : ['disc', 'ok', 'Live']
  fill($('#top'), h('b', {class: 'opt'}, link('#/' + c, 'Aurora')),
    h('select', {'aria-label': 'Cluster', change: e => { location.hash = '#/' + e.target.value }},
      S.clusters.map(x => h('option', {value: x, selected: x == c}, x))),
    h('nav', {'aria-label': 'Cluster'}, NAV.map(n =>
      h('a', {href: `#/${c}${n == NAV[0] ? '' : '/' + n.toLowerCase()}`,
      'aria-current': n == here && 'page'}, n, n == NAV[5] && busy && h('span', {class: 'count'},
        ' ' + busy)))), gap(),
    button(['Search', gap(), h('kbd', null, '/')], palette, 'find', {'aria-keyshortcuts': '/'}),
    button([glyph(icon), h('span', null, text), !S.paused && age(S.seen + S.skew, 'count')], pause,
      'quiet fresh st ' + cls,
      {'aria-keyshortcuts': 'p', title: `Press to ${S.paused ? 'go on' : 'pause'} (p)`}),
    button(!S.me ? 'Log in' : S.me.by == 'nobody' ? 'Anonymous' : S.me.name, () => S.me ? about() : login(),
      'quiet'))
  document.body.classList.toggle('old', !!(S.down || S.sick))
  fill($('#notice'), (S.down || S.sick) && h('div', {role: 'alert', class: 'row'}, h('span',
    {class: 'st fail'}, glyph('cross'),
    S.down ? 'The server does not answer' : 'Not up to date'), S.down ? h('span', null, 'Shown as of ',
    at(S.down + S.skew), ', ', age(S.down + S.skew), ' ago. Actions are off.') : S.sick, gap(),
  button('Try now', () => { beat(); V.again() })))
}
function pause() {
  S.paused = !S.paused
  S.paused ? V.cuts.forEach(cut => cut()) : wake()
  say(S.paused ? 'Paused' : 'Live')
  frame()
}

/* ---- Lists: only the rows in sight are in the document ---- */
// o: name, cols [id, text, class], key(r), cells(r), by {id: value(r)}, hay(r) for the filter, more(r): what
// an open row shows, picked: Set of keys, filter(): a test of rows, empty: what is said where there is none.
function list(v, o) {
  const width = o.cols.length + (o.picked ? 1 : 0), head = h('tr', {role: 'row'}), open = new Map()
  const body = h('tbody', {role: 'rowgroup'}), node = h('table', {class: 'flow', role: 'table'},
    h('caption', {class: 'vh'}, o.name), h('thead', {role: 'rowgroup'}, head), body)
  const pad = [0, 1].map(() => h('tr', {class: 'gap', 'aria-hidden': 'true'}, h('td', {colspan: width})))
  let all = [], rows = [], high = 32, focus = -1
  node.own = pad[0].own = pad[1].own = true
  arg('open').split(',').forEach(k => k && open.set(k, 0))
  const key = r => String(o.key(r)), value = id => o.by?.[id] || (r => r[id])
  function draw() {
    const text = arg('q').toLowerCase(), by = arg('sort', o.sort || o.cols[0][0]), sign = by[0] == '-' ?
      -1 : 1
    const id = by.replace('-', ''), of = value(id), fits = o.filter?.() || (() => true)
    if (all.by != by) {
      all = all.map(r => [of(r), r]).sort(([a], [b]) => a === b ? 0 : a == null || a === '' ? 1 :
        b == null || b === '' ? -1 : a < b ? -sign : sign).map(x => x[1])
      all.by = by
    }
    rows = all.filter(r => (!text || (r.hay ||= o.hay(r).toLowerCase()).includes(text)) && fits(r))
    node.setAttribute('aria-rowcount', rows.length + 1)
    fill(head, o.picked && h('th', {class: 'w0', role: 'columnheader'}, h('input', {type: 'checkbox',
      'aria-label': 'Select all that match',
      checked: !!rows[0] && rows.every(r => o.picked.has(key(r))),
      change: e => { o.picked.clear(); if (e.target.checked) rows.forEach(r => o.picked.add(key(r)));
        v.draw() }})),
    o.cols.map(([col, name, cls]) => h('th', {class: cls, role: 'columnheader', 'aria-sort': col == id ?
      sign > 0 ? 'ascending' : 'descending' : null},
      name ? button(name + (col == id ? sign > 0 ? ' ↑' : ' ↓' : ''), () => { put('sort', by == col ?
        '-' + col : col); draw() }, 'bare') :
        h('span', {class: 'vh'}, 'Actions'))))
    paint()
  }
  function one(r, i) {
    const k = key(r), on = open.has(k), cells = o.cells(r)
    const turn = () => { on ? open.delete(k) : open.set(k, 0); put('open', [...open.keys()].join()); paint() }
    if (o.more) cells[0] = button([glyph('open', 'turn'), cells[0]], turn, 'bare',
      {'aria-expanded': String(on)})
    return [h('tr', {role: 'row', class: on && 'on', 'data-k': k, 'data-i': i, 'aria-rowindex': i + 2},
      o.picked && h('td', {role: 'cell'}, h('input', {type: 'checkbox',
      'aria-label': 'Select ' + k, checked: o.picked.has(k), change: () => { o.picked.delete(k) ||
        o.picked.add(k); v.draw() }})),
    cells.map((c, n) => h('td', {role: 'cell', class: o.cols[n][2]?.replace(/\bw\d/, ''),
      title: c?.length > 20 && c}, c))),
    on && h('tr', {role: 'row', class: 'more', 'data-k': k + '+'}, h('td', {role: 'cell', colspan: width},
      o.more(r)))]
  }
  function paint() {
    if (!rows.length) {
      return fill(body, h('tr', null, h('td', {colspan: width, class: 'msg'}, all.length ? ['None matches. ',
        button('Clear the filter',
        () => { put('q'); put('state'); route() }, 'bare link')] : o.empty || 'There is none.')))
    }
    const opened = [...open].map(([k, tall]) => [rows.findIndex(r => key(r) == k), tall]).filter(x =>
      x[0] >= 0)
    const y = i => i * high + opened.reduce((sum, [j, tall]) => sum + (j < i ? tall : 0), 0)
    const top = -body.getBoundingClientRect().top
    let first = Math.max(0, Math.min(rows.length - 1, Math.floor(top / high) - 6)), last = first
    while (first && y(first) > top - 6 * high) first--
    while (last < rows.length && y(last) < top + innerHeight + 6 * high) last++
    pad[0].firstChild.style.height = y(first) + 'px'
    pad[1].firstChild.style.height = y(rows.length) - y(last) + 'px'
    fill(body, first && pad[0], rows.slice(first, last).map((r, i) => one(r, first + i)),
      last < rows.length && pad[1])
    const tall = body.querySelector('[data-i]').offsetHeight || high, wrong = tall != high
    high = tall
    for (const tr of body.querySelectorAll('.more')) open.set(tr.dataset.k.slice(0, -1), tr.offsetHeight)
    if (wrong) paint()
  }
  function step(n) {       // j and k
    focus = Math.max(0, Math.min(rows.length - 1,
      Number(document.activeElement.closest('[data-i]')?.dataset.i ?? focus) + n))
    const y = body.getBoundingClientRect().top + focus * high
    if (y < 99 || y > innerHeight - 99) scrollBy(0, y - innerHeight / 2)
    paint()
    body.querySelector(`[data-i="${focus}"] :is(td button, a)`)?.focus({preventScroll: true})
  }
  for (const kind of ['scroll', 'resize']) addEventListener(kind, () => requestAnimationFrame(paint),
    {signal: v.signal})
  v.list = {node, draw, step, set(x) { all = [...x]; draw() }, get rows() { return rows }}
  return v.list
}
const search = (text, draw) => h('input', {type: 'search', placeholder: text, 'aria-label': text,
  value: arg('q'),
  input: e => { put('q', e.target.value); draw() }})

/* ---- Dialogs ---- */
const labelled = (text, field) => h('label', null, text, field)
const ticked = (field, text) => h('label', {class: 'row'}, field, text)
function dialog(cls, name, ...kids) {
  if ($('dialog[open]')) return
  const back = document.activeElement
  const d = h('dialog', {class: cls, 'aria-label': name, close() { d.remove(); back.focus() }, click(e) {
    if (e.target == d) d.close() }},
    h('h2', null, name), ...kids)
  document.body.append(d)
  d.showModal()
  return d
}
const close = e => $('dialog')?.close(), cancel = () => button('Cancel', close)
// Ask before anything is sent: the exact request, a message, a dry run; what is large has to be named.
function act({name, text, verb, bad, method, path, query, fields = [], message, body, headers, type, done}) {
  const key = [...crypto.getRandomValues(new Uint8Array(12))].map(x => x.toString(16).padStart(2,
    '0')).join('')
  const field = props => h('input', {autocomplete: 'off', input: refresh, ...props})
  const inputs = fields.map(f => [f, field({type: 'number', min: 0, value: f.value})]), typed = type &&
    field()
  if (message) inputs.push([{id: 'message', text: 'Message for the audit trail'},
    field({placeholder: 'Optional'})])
  const go = h('button', {type: 'submit', class: 'main ' + (bad ? 'bad' : '')}, verb),
    dry = button('Dry run', () => send(1))
  const line = h('pre'), same = h('pre'), result = h('div', {class: 'stack'}), all = {...headers,
    'Idempotency-Key': key}
  let busy = false
  const target = trial => {
    const q = new URLSearchParams()
    for (const [k, x] of [...Object.entries(query || {}), ...inputs.map(([f, e]) => [f.id, e.value]),
      ['dry_run', trial]]) if (x) q.append(k, x)
    return path + (String(q) && '?' + q).replace(/%2C/g, ',')
  }
  function refresh() {
    const to = target()
    const full = new URL(to, document.baseURI)
    line.replaceChildren(h('b', null, method), ' ' + full.pathname + full.search)
    same.textContent = [`curl -X ${method}`, S.auth && `-H 'Authorization: ${S.auth.split(' ')[0]} …'`,
      ...Object.entries(all).map(
      ([k, x]) => `-H '${k}: ${x}'`), body && '--data-binary @FILE', `'${full}'`].filter(Boolean).join(' ')
    dry.disabled = busy || !!S.down
    go.disabled = dry.disabled || type && typed.value != type
  }
  async function send(trial) {
    if (busy || !trial && go.disabled) return
    busy = true
    refresh()
    try {
      const told = await request(method, target(trial), {body, headers: trial ? headers : all})
      if (trial) fill(result, ...tried(told))
      else {
        d.close()
        say(told.unchanged ? 'Nothing to change' : verb + ': done')
        if (told.operation) { S.shown.add(told.operation.id); operations() }
        done?.(told)
        V.again(200)
      }
    } catch (e) { fill(result, oops(e)) }
    busy = false
    refresh()
  }
  const d = dialog('', name, h('p', null, text), h('form', {submit(e) { e.preventDefault(); send() }},
    h('div', {class: 'panel'}, lab('Request'), line, row(lab('The same with curl'), gap(),
      button('Copy', () => navigator.clipboard.writeText(same.textContent), 'bare')), same),
    inputs.map(([f, e]) => labelled(f.text, e)), type && h('label', null, 'Type ', h('b', null, type),
      ' to confirm', typed),
    row(dry, gap(), cancel(), go), result))
  ;(typed || inputs[0]?.[1] || go).focus()
  refresh()
}
function tried(a) {
  const says = a.unchanged || a.would.nothing ? 'nothing would change' : 'it would be done'
  return [h('p', {class: 'st ok'}, glyph('check'), h('span', null, `Dry run: ${says}. Nothing was sent.`)),
    a.would?.plan && planned(a.would.plan), h('pre', null, JSON.stringify(a.would || a, null, 1))]
}
const planned = p => [h('ul', {class: 'row legend'}, [['add', p.add], ['remove', p.remove], ['change',
  p.update], ['leave', p.unchanged]].map(
  ([k, n]) => h('li', {class: !n[0] && 'dim'}, h('b', null, num(n.length)), ' to ' + k))),
p.changes.map(c => h('div', null, lab('Instances ' + ranges(c.instances)), changes(c.fields)))]

function login(why = 'With a token; with a name and password where the scheduler asks for them.') {
  const name = h('input', {autocomplete: 'username'}), secret = h('input', {type: 'password',
    autocomplete: 'off', required: true})
  const stay = h('input', {type: 'checkbox'}), result = h('div')
  dialog('', 'Log in', h('form', {async submit(e) {
    e.preventDefault()
    const before = S.auth, bytes = new TextEncoder().encode(name.value + ':' + secret.value)
    S.auth = name.value ? 'Basic ' + btoa(String.fromCharCode(...bytes)) : 'Bearer ' + secret.value.trim()
    try {
      await request('GET', 'alpha/me', {quiet: true})
      kept('auth', stay.checked ? S.auth : '')
      close()
      start()
    } catch (e) {
      S.auth = before
      fill(result, oops(e))
    }
  }}, h('p', null, why), labelled('Name, where it is no token', name), labelled('Token or password', secret),
    result,
  ticked(stay, 'Keep until this tab closes'), plain('It stays in this page and is sent only to this server.'),
  row(gap(), cancel(), h('button', {type: 'submit', class: 'main'}, 'Log in'))))
  secret.focus()
}
function about() {
  const box = (key, text) => ticked(h('input', {type: 'checkbox', checked: S[key], change(e) {
    kept(key, S[key] = e.target.checked ? '1' : '')
    V.draw()
  }}), text)
  dialog('', S.me.name, pairs([['May', `${S.me.level}, roles ${S.me.roles.join(', ')}`], ['Known by',
    S.me.by]]), box('read', 'Read only (r)'),
    box('local', 'Local times instead of UTC'), box('quiet', 'No single-letter keys'),
      pairs(Object.entries({'/': 'search', 'j k': 'next, previous row', x: 'select',
      'l c u': 'logs, config, updates', 'g h': 'overview', p: 'pause', '?': 'this'}).map(([k, t]) => [k, t])),
    row(button(S.auth ? 'Log out' : 'Log in', () => { close(); if (S.auth) { kept('auth', S.auth = '');
      start() } else login() }), gap(), button('Close', close)))
}

/* ---- Search: names are fetched when it opens ---- */
async function palette() {
  const c = cluster(), hits = h('div', {id: 'hits', role: 'listbox', 'aria-label': 'Found'})
  let all = [], found = [], at = 0
  const open = x => { close(); location.hash = x[2] }
  const box = h('input', {role: 'combobox', autocomplete: 'off', 'aria-label': 'Search',
    'aria-expanded': 'true', 'aria-controls': 'hits',
    placeholder: 'Job, role, host or task', input() { at = 0; draw() }, keydown(e) {
      const step = {ArrowDown: 1, ArrowUp: -1}[e.key]
      if (step) { e.preventDefault(); at = (at + step + found.length) % found.length || 0; draw() }
      if (e.key == 'Enter' && found[at]) { e.preventDefault(); open(found[at]) }
    }})
  function draw() {
    const text = box.value.trim().toLowerCase(), hit = x => x[1].toLowerCase().includes(text)
    // A task's id is role-environment-name-instance-uuid.
    const tasks = all.flatMap(x => text.startsWith(x[3] + '-') ?
      [['Task', x[1] + '/' + parseInt(text.slice(x[3].length + 1)),
      x[2] + '/' + parseInt(text.slice(x[3].length + 1))]] : [])
    found = [...tasks, ...all.filter(hit)].slice(0, 50)
    fill(hits, found.map((x, i) => h('div', {role: 'option', id: 'hit' + i, class: 'row',
      'aria-selected': String(i == at), click() { open(x) }},
      h('span', null, x[1]), gap(), h('span', {class: 'dim'}, x[0]))), !found[0] && plain('Nothing found.'))
    box.setAttribute('aria-activedescendant', 'hit' + at)
    $('#hit' + at)?.scrollIntoView({block: 'nearest'})
  }
  if (!dialog('palette', 'Search', box, hits)) return
  box.focus()
  const told = await Promise.all(['jobs', 'hosts'].map(x => request('GET', url(x, c)))).catch(e => fill(hits,
    oops(e)))
  if (!told) return
  const jobs = Object.values(told[0].jobs).map(k => k.split('/').slice(1))
  all = [...new Set(jobs.map(k => k[0]))].map(r => ['Role', r, `#/${c}/${r}`]).concat(jobs.map(k =>
    ['Job', k.join('/'), `#/${c}/${k.join('/')}`, k.join('-').toLowerCase()]),
    told[1].hosts.map(x => ['Host', x.host, `#/${c}/hosts?q=${x.host}&open=${x.host}`]))
  draw()
}

/* ---- Operations of this server; a tray for those that were begun here ---- */
async function operations() {
  clearTimeout(operations.timer)
  if (S.me && !resting() && !S.down) S.ops = (await request('GET', 'alpha/operations',
    {quiet: true}).catch(() => S)).operations || S.ops
  const mine = S.ops.filter(o => S.shown.has(o.id))
  $('#tray').hidden = !mine[0]
  fill($('#tray'), mine.map(o => h('div', {'data-k': o.id}, work(o), row(gap(), stopper(o), button('Close',
    () => { S.shown.delete(o.id); operations() })))))
  frame()
  operations.timer = setTimeout(operations, S.ops.some(o => o.state == 'running') ? 1e3 : 15e3)
}
const count = p => h('span', {class: 'dim num'}, `${num(p.done)} of ${num(p.total)}`)
const progress = p => bar(p.total, ['ok', p.done], ['fail', p.failed], ['go', p.active])
const keyed = key => link('#/' + (key.split('/')[3] ? key : key.split('/')[0] + '/hosts'),
  key.split('/').slice(1).join('/'))
const work = o => h('div', null, row(state(o.state, `${word(o.kind)}: ${word(o.state).toLowerCase()}`),
  gap(), count(o.progress)), keyed(o.key), progress(o.progress),
  plain(o.errors[0] || o.steps.at(-1)?.text))
const stopper = o => o.state == 'running' && may('write', '') && button('Cancel…', () =>
  act({name: `Cancel the ${o.kind} of ${o.key}?`, verb: 'Cancel it',
  text: 'It stops before its next step; what is done stays done.', method: 'DELETE', path: url('operations',
    o.id), done: operations}))

/* ---- Tasks ---- */
const last = t => t.events.at(-1) || {}
const oneOf = t => link(`#/${t.job}/${t.instance}`, t.job.split('/').slice(1).join('/') + ' ' + t.instance)
const hostly = (v, x) => x && link(`#/${v.path[0]}/hosts?q=${x}&open=${x}`, x)
const events = (list, time, text) => h('ol', {class: 'events'}, list.map(e => h('li', null, time(e),
  e.state ? state(e.state) : h('span'), plain(text(e)))))
// What is known of one instance: the events of its task, its earlier runs, what can be done to it.
function detail(v, tasks, more) {
  const [t, ...old] = tasks, base = '#/' + v.path.slice(0, 4).join('/'), i = t.instance
  return h('div', {class: 'detail'}, h('div', null, lab('Events'), events(t.events, e => at(e.time), e =>
    e.message || '')),
    h('div', null, lab('Earlier runs'), old[0] ? events(old.slice(0, 9), e => age(last(e).time), e =>
      [e.host, last(e).message].filter(Boolean).join(': ')) : plain('None known')),
    h('div', {class: 'stack'}, h('div', null, lab('Task'), h('p', {class: 'mono'}, t.id),
      Object.entries(t.ports).map(([k, n]) => [link(`http://${t.host}:${n}/`, `${k} ${n}`, 'link'), ' '])),
      row(link(`${base}?tab=logs&i=${i}`, 'Logs', 'btn'), more && link(`${base}/${i}`, 'Instance', 'btn'),
        may('write', v.path[1]) && ['restart', 'kill'].map(x => button(word(x) + '…', () => killOrRestart(v,
        x, [i]), x == 'kill' && 'bad',
          {disabled: !!off()})))))
}
const newest = list => list.sort((a, b) => (last(b).time || 0) - (last(a).time || 0))
// Its name has to be typed where the whole job, production or many instances are meant.
const grave = (path, n, all) => all || n > 10 || /^(prod|stag)/.test(path[2]) ? path[3] : ''
function killOrRestart(v, what, ids, all) {
  const n = some(ids.length, 'instance'), kill = what == 'kill', name = v.path[3]
  act({name: `${word(what)} ${all ? 'all ' : ''}${n} of ${name}?`, verb: `${word(what)} ${n}`, bad: kill,
    message: kill, type: grave(v.path, ids.length, all),
    text: !kill ? 'One batch after another; it stops when an instance does not come back.' : all ?
      'The job ends and leaves the cluster.' : 'The other instances go on.',
    method: kill ? 'DELETE' : 'PUT', path: v.api + (kill ? '' : '/restart'), query: !all &&
      {shards: ranges(ids)}, fields: kill ? [] : [{id: 'batch_size', text: 'Instances at once', value: 1}]})
}

/* ---- Job ---- */
const head = (v, name, ...actions) => h('div', {class: 'row head'}, title(v.path.slice(1, Math.min(4,
  v.path.length - 1)).map((p, i) => [p, '#/' + v.path.slice(0, i + 2).join('/')]), name),
  gap(), h('div', {class: 'row', role: 'group', 'aria-label': 'Actions'}, actions))
const isActive = u => /^ROLL(ING|_)/.test(u.state)
const nextRun = c => time(c.next_run, {title: stamp(c.next_run, '') + ' UTC; here ' + stamp(c.next_run, 1)},
  stamp(c.next_run).slice(0, 16), !S.local && ' UTC')
function steer(u) {
  const key = u.job.split('/'), one = (verb, text, says, type) => button(text + '…', () =>
    act({name: `${text} the update of ${key[3]}?`, text: says, verb: text, bad: verb == 'abort',
    message: verb != 'pulse',
    method: 'POST', path: url('job', ...key, 'updates', u.id, verb), type: type && grave(key,
      u.progress.total)}), verb == 'abort' ? 'bad' : '', {disabled: !!(S.down || S.sick)})
  return isActive(u) && may('write', key[1]) && [/PULSE/.test(u.state) && one('pulse', 'Pulse',
    'It goes on until it waits for the next pulse.'),
    /PAUSED/.test(u.state) ? one('resume', 'Resume', 'It goes on where it stopped.') : one('pause', 'Pause',
      'What is under way is finished; nothing more begins.'),
    /FORWARD/.test(u.state) && one('rollback', 'Roll back',
      'Instances that were updated go back to what they were.', 1), one('abort', 'Abort',
      'Instances stay as they are now, old and new.', 1)]
}
const legend = u => h('ul', {class: 'row legend'}, Object.entries(u.instances).map(([x, list]) =>
  h('li', null, state(x, `${num(list.length)} ${word(x).toLowerCase()}`))))
const cronActions = (v, key, disabled) => [button('Start now…', () => act({name: `Start ${key[3]} now?`,
  text: 'A run beside its schedule.', verb: 'Start', method: 'POST', path: url('cron', ...key, 'start')}),
  '', {disabled}),
  button('Deschedule…', () => act({name: `Deschedule ${key[3]}?`,
    text: 'It runs no more; a run that goes on is not ended.', verb: 'Deschedule', bad: true,
    method: 'DELETE', path: url('cron', ...key), type: key[3]}), 'bad', {disabled})]
const TABS = {tasks: ['Tasks', taskTab], logs: ['Logs', logTab], config: ['Config', configTab],
  updates: ['Updates', updateTab], sla: ['SLA', slaTab]}
function jobView(v) {
  const [c, role, , name] = v.path, tab = TABS[arg('tab')] ? arg('tab') : 'tasks',
    tasks = v.tasks = new Map(), part = TABS[tab][1](v), soon = calm(() => v.draw())
  const take = list => list.forEach(t => {      // of an instance's tasks the newest counts
    const e = last(t), old = tasks.get(t.instance)
    if (!old || old.id == t.id || old.since <= e.time) tasks.set(t.instance, {ports: {},
      failures: old?.failures, ...t, i: t.instance, since: e.time, message: t.pending || e.message})
  })
  let config, job, u, quota, died
  v.load = async () => {
    v.open ||= v.follow(v.api + '/events?snapshot=0', (kind, e) => {
      if (kind == 'task' && e.state != 'DELETED') {
        take([{...e, events: [e]}])
        soon()
        if (e.state == 'PENDING') v.again(2e3)      // for the reason
      }
      else if (kind == 'error') { S.sick = e.errors[0]; frame() }
      else if (kind != 'task') v.again(500)
    })
    await Promise.race([v.open, new Promise(done => setTimeout(done, 300))])
    const rest = [v.api + '/config', `${url('jobs', c, role, v.path[2])}?detail=1&name=${name}`,
      v.api + '/updates?limit=1', url('quota', c, role)].map(x => v.maybe(x))
    rest.forEach(x => x.catch(() => {}))
    // The first rows of a large job come at once, as the scheduler itself cuts them.
    const few = `${url('tasks', c)}?role=${role}&environment=${v.path[2]}&name=${name}&limit=200`
    if (!v.ready) v.maybe(few).then(t => {
      if (!v.ready && t?.count == 200) { take(t.tasks); v.draw() }
    }, () => {})
    const all = await v.get(v.api + '/tasks?brief=1')
    tasks.clear()
    take(all.tasks)
    if (!v.ready) v.draw()
    ;[config, job, u, quota] = await Promise.all(rest)
    v.config = config?.configs || []
    job = Object.values(job?.jobs || {})[0]
    u = u?.updates[0]
    v.locked = u && isActive(u)
    const ill = [...tasks.values()].some(t => rank(t.state) < 4)
    died = ill && tasks.size < 500 && tab == 'tasks' && (await v.maybe(v.api))?.last_words
    await part.load?.()
  }
  v.draw = () => {
    const rows = [...tasks.values()], ids = rows.filter(t => rank(t.state) < 13 &&
      rank(t.state) > 2).map(t => t.i), bad = rows.filter(t => rank(t.state) < 3).length
    const up = rows.filter(t => t.state == 'RUNNING').length
    const one = v.config?.[0]?.config, amount = k => one.resources.find(x => k in x)?.[k], disabled = !!off()
    fill(v.node, head(v, name, may('write', role) && [disabled && h('span', {class: 'dim'}, S.down ||
      S.sick ? 'Off until it answers' : 'Locked while an update is active'), job?.cron && cronActions(v,
      v.path, disabled),
      ids[0] != null && [button('Restart…', () => killOrRestart(v, 'restart', ids, 1), '', {disabled}),
        button('Scale…', () => act({name: `Scale ${name}`, verb: 'Scale', message: true, type: grave(v.path,
        ids.length), method: 'PUT',
        text: 'New instances are like the first; those with the highest numbers go.', path: v.api + '/scale',
          fields: [{id: 'instances', text: 'Instances', value: ids.length}]}), '', {disabled}),
      button('Kill…', () => killOrRestart(v, 'kill', ids, 1), 'bad', {disabled})], disabled ||
        link(v.base + '/deploy', 'Deploy…', 'btn main')]),
    facts(['Instances', `${num(up)} of ${num(ids.length)} running`, bad && h('span', {class: 'fail'},
      `, ${bad} failing`)], job && ['*Kind', job.cron ? 'Cron' : job.service ? 'Service' : 'Job',
      ', ' + job.tier],
      one && ['*Each', `${amount('numCpus')} CPU, ${mb(amount('ramMb'))} RAM, ${mb(amount('diskMb'))} disk`],
        quota && ['*Quota of ' + role,
        `${+quota.consumption.production.cpu.toFixed(1)} of ${num(quota.quota.cpu)} CPU`],
      job?.cron && ['Schedule', job.cron.schedule, ', next ', nextRun(job.cron)], u && ['*Last update',
        age(u.modified), ` ago${u.user ? ' by ' + u.user : ''}, ${word(u.state).toLowerCase()}`]),
    v.locked && h('section', {class: 'panel', 'aria-label': 'Active update'}, row(state(u.state),
      count(u.progress), h('span', {class: 'dim'}, [u.message, u.user].filter(Boolean).join(', by '), ', ',
      age(u.created)), gap(), steer(u), link(`${v.base}/update/${u.id}`, 'Details', 'btn')),
      progress(u.progress), h('div', {class: 'opt'}, legend(u))), died && h('section', {class: 'panel stack',
      'aria-label': 'Last words'}, row(h('b', null, `Instance ${died.instance} failed`), plain([died.process,
      died.host].filter(Boolean).join(' on '), ', ', age(died.failed), ' ago'), gap(), died.process &&
      link(`${v.base}?tab=logs&i=${died.instance}&stream=stderr&process=${died.process}`, 'Log', 'btn')),
      h('pre', null, (died.stderr || died.errors || ['It wrote nothing.']).join('\n'))),
      h('nav', {class: 'tabs',
        'aria-label': 'Parts of the job'}, Object.keys(TABS).map(x => h('a', {href: `${v.base}?tab=${x}`,
        'aria-current': x == tab && 'page'}, TABS[x][0],
      x == 'tasks' && h('span', {class: 'count'}, ' ' + num(rows.length))))), part.draw(rows))
  }
  v.every(6e4)
}
function taskTab(v) {
  const known = new Map(), picked = new Set()
  const l = list(v, {name: 'Tasks, the newest of each instance', key: t => t.i, sort: 'state', picked,
    hay: t => `${t.i} ${t.host} ${t.message}`, filter: (x = arg('state')) => t => !x || t.state == x,
    empty: 'The job has no tasks.',
    cols: [['i', 'Instance', 'w1'], ['state', 'State', 'w2'], ['since', 'Since', 'num w1'], ['host', 'Host',
      'opt w3'], ['failures', 'Failures', 'num opt w1'], ['message', 'Message', 'msg']],
    by: {state: t => rank(t.state) * 1e4 + t.i, since: t => -t.since}, cells: t => [String(t.i),
      state(t.state), age(t.since), hostly(v, t.host), num(t.failures || 0), t.message], more: t => {
      const mark = t.id + t.state
      if (known.get(t.i)?.mark != mark) {
        known.set(t.i, {mark, tasks: known.get(t.i)?.tasks})
        v.get(`${v.api}/tasks?shards=${t.i}`).then(a => { known.set(t.i, {mark, tasks: newest(a.tasks)});
          l.draw() }, () => {})
      }
      return known.get(t.i).tasks ? detail(v, known.get(t.i).tasks, 1) : plain('…')
    }}), box = search('Filter instance, host, message', () => { l.draw(); soon() }), soon = calm(() =>
      v.draw())
  return {draw(rows) {
    const counts = {}, want = arg('state'), ids = [...picked].map(Number), turn = x =>
      { put('state', want == x ? '' : x); v.draw() }, n = x => h('span', {class: 'count'}, ' ' + num(x))
    rows.forEach(t => { counts[t.state] = (counts[t.state] || 0) + 1 })
    l.set(rows)
    return h('div', null, h('div', {class: 'row tools'}, box, h('div', {class: 'chips', role: 'group',
      'aria-label': 'State'}, toggle(['All', n(rows.length)], !want, () => turn('')),
      Object.keys(counts).sort((a, b) => rank(a) - rank(b)).map(
      x => toggle([state(x), n(counts[x])], want == x, () => turn(x)))), gap(),
        l.rows.length < rows.length && plain(num(l.rows.length), ' of ', num(rows.length)), ids[0] != null &&
        may('write', v.path[1]) && [h('b', null, num(ids.length), ' selected'),
      ['restart', 'kill'].map(x => button(word(x) + '…', () => killOrRestart(v, x, ids), x == 'kill' &&
        'bad', {disabled: off()}))]), l.node)
  }}
}
const processes = c => (c.executorConfig?.data?.task?.processes || []).map(p => h('div', null,
  lab('Process ' + p.name), h('pre', {class: 'panel'}, p.cmdline)))
const config = c => [pairs(Object.entries(c).map(([k, x]) => k != 'executorConfig' && k != 'job' &&
  words(x) && [k, words(x)])), processes(c), h('details', null, h('summary', null, 'As JSON'), h('pre', null,
  JSON.stringify(c, null, 1)))]
function configTab(v) {
  const pick = (k, otherwise) => h('select', {'aria-label': 'Group', change: e => { put(k, e.target.value);
    v.draw() }}, v.config.map((g, i) => h('option', {value: i, selected: i == arg(k, otherwise)},
    ranges(g.instances))))
  return {draw: () => v.config && h('div', {class: 'stack far'}, v.config[1] && section('Compare',
    row(pick('a', 0), 'with', pick('b', 1)), changes(differences(v.config[arg('a', 0)].config,
    v.config[arg('b', 1)].config))),
    v.config.map(g => section('Instances ' + ranges(g.instances), config(g.config))), !v.config[0] &&
      plain('No instance is active.'))}
}
function updateTab(v) {
  let known = [], updates = []
  const l = list(v, {name: 'Configurations, the newest first', key: x => x.id, sort: '-when', hay: x =>
    `${x.id} ${x.user} ${x.message}`, cols: [['id', 'Configuration', 'w3 mono'], ['when', 'Begun', 'num w1'],
    ['user', 'By', 'opt w2'], ['message', 'Message', 'msg'], ['runs', 'Runs', 'num opt w1'],
    ['', '', 'num w3']],
    by: {runs: x => x.running.length}, cells: x => [x.id, age(x.when), x.user, x.message,
      num(x.running.length), may('write', v.path[1]) && button('Roll back to this…', () =>
      act({name: `Roll ${v.path[3]} back to ${x.id}?`, verb: 'Roll back',
      text: 'Starts an update to this configuration, as gently as the last update.', message: true,
        method: 'POST', path: v.api + '/rollback', query: {to: x.id}, type: grave(v.path, v.tasks.size),
        done: a => { if (a.update) location.hash = `${v.base}/update/${a.update.id}` }}), 'bare link',
        {disabled: !!off()})],
    more: x => v.config[0] ? [lab('From what runs now'), changes(differences(v.config[0].config,
      x.config))] : config(x.config)}), u = updateList(v)
  return {async load() { [known, updates] = await Promise.all([v.maybe(v.api + '/history'),
    v.maybe(v.api + '/updates')]) }, draw() {
    l.set(known?.versions || [])
    u.set(updates?.updates || [])
    return h('div', {class: 'stack far'}, section('Configurations', l.node), section('Updates', u.node))
  }}
}
const updateList = v => list(v, {name: 'Updates', key: u => u.id, sort: '-created', hay: u =>
  u.job + u.message, cols: [['id', 'Update', 'w2'], ['state', 'Status', 'w3'], ['n', 'Instances',
  'num opt w2'], ['user', 'By', 'opt w2'], ['message', 'Message', 'msg'], ['created', 'Started', 'num w1']],
  cells: u => [link(`#/${u.job}/update/${u.id}`, u.id.slice(0, 8), 'link mono'), state(u.state),
    count(u.progress), u.user, u.message, age(u.created)]})
function slaTab(v) {
  let up, many
  const sla = url('sla', ...v.path)
  return {async load() { [up, many] = await Promise.all([v.maybe(sla + '/uptime'),
    v.maybe(sla + '/up-count')]) }, draw: () => up && h('div', {class: 'cols half'},
    section('Uptime', pairs(Object.entries(up.uptime).map(([p, x]) => [p + ' % of the instances',
      'have been up for ' + took(x * 1e3)]))), section('Up for so long',
      pairs(Object.entries(many.up_count).map(([x, p]) => [took(x * 1e3), p + ' %',
      bar(100, ['used', p])]))))}
}

// A link would not carry the token. What is large is not held: curl gets it.
async function download(path, name, size = 0) {
  const answer = size < 5e7 && await fetch(path, {headers: sent()})
  if (!answer?.ok) return dialog('', name, plain(answer ? 'It is not to be had: HTTP ' + answer.status :
    'It is larger than 50 MB; curl gets it:'), h('pre', {class: 'panel'},
    `curl -O -J '${new URL(path, document.baseURI)}'`), row(gap(), button('Close', close)))
  const href = URL.createObjectURL(await answer.blob())
  h('a', {href, download: name}).click()
  URL.revokeObjectURL(href)
}

/* ---- Logs: a ring of lines, of which those in sight are in the document ---- */
function logTab(v) {
  if (PAGE.logs != 'yes') return {draw: () => plain('This server does not offer logs.')}
  const lines = [], left = {}, ids = arg('i', '0').split(',').filter(x => /^\d+$/.test(x)),
    stream = arg('stream', 'stdout'), soon = calm(() => paint())
  const at = k => ['go', 'lost', 'wait', 'ok'][ids.indexOf(String(k)) % 4]
  const view = h('div', {class: 'log', role: 'log', 'aria-live': 'off', 'aria-label': 'Lines', tabindex: 0,
    scroll() { stick = view.scrollHeight - view.scrollTop - view.clientHeight < 30; if (stick) fresh = 0;
    soon() }})
  let size = 0, stick = true, fresh = 0, names = [], process, seen = lines
  view.own = true
  const add = (i, text, mark) => {
    lines.push({i, text, mark})
    size += text.length
    if (!stick) fresh++
    while (lines.length > 5e3 || size > 2e6) size -= lines.shift().text.length
  }
  function paint() {
    const q = arg('q').toLowerCase(), wrap = arg('wrap'), n = Math.ceil(view.clientHeight / 20) + 20
    let test = x => x.text.toLowerCase().includes(q)
    if (q && arg('regex')) try { const re = RegExp(arg('q'), 'i'); test = x => re.test(x.text) } catch {
      /* not finished yet */ }
    seen = lines.filter(x => x.mark || test(x))
    const end = wrap || stick ? seen.length : Math.min(seen.length, Math.floor(view.scrollTop / 20) + n),
      begin = Math.max(0, end - (wrap ? 400 : 2 * n))
    const pad = k => { const e = h('div'); e.style.height = (wrap ? 0 : k * 20) + 'px'; return e }
    view.classList.toggle('wrap', !!wrap)
    view.replaceChildren(pad(begin), ...seen.slice(begin, end).map(x => h('p', {class: x.mark && 'dim'},
      h('b', {class: at(x.i)}, x.mark ? '—' : ids[1] && String(x.i)), h('span', null, x.text))),
      pad(seen.length - end))
    if (stick) view.scrollTop = 1e9
    v.draw()
  }
  function on(kind, e) {
    const k = e.instance ?? ids[0]
    if (kind == 'log') {
      const all = ((left[k] || '') + e.text).split('\n')
      left[k] = all.pop()
      all.forEach(x => add(k, x))
    } else add(k, [word(kind), e.reason, e.errors, e.run != null && 'run ' + e.run,
      e.task].flat().filter(Boolean).join(' '), 1)
    soon()
  }
  const where = () => ids[1] ?
    `${v.api}/logs/${process}?shards=${ids}&` : `${v.api}/instances/${ids[0]}/logs/${process}?`
  const other = (k, x) => { put(k, x); route() }, box = search('Filter lines', () => paint())
  const save = () => download(where() + `stream=${stream}&tail=100000`,
    `${v.path[3]}-${ids}-${process}.${stream}`)
  return {async load() {
    if (process) return
    names = (await v.get(`${v.api}/instances/${ids[0]}/processes`)).processes.map(p => p.name)
    process = names.includes(arg('process')) ? arg('process') : names[0]
    v.follow(where() + `stream=${stream}&tail=200&follow=1`, on)
  }, draw: () => h('div', {class: 'logs'}, h('div', {class: 'row tools'}, h('select',
    {'aria-label': 'Process', change(e) { other('process', e.target.value) }}, names.map(x => h('option',
    {value: x, selected: x == process}, x))),
    h('div', {class: 'chips'}, ['stdout', 'stderr'].map(x => toggle(x, stream == x, () => other('stream',
      x)))), h('input', {'aria-label': 'Instances', title: 'Instances, as 0,2,5', value: ids.join(),
      change(e) { other('i', e.target.value) }}), box,
    toggle('Regex', arg('regex'), () => { flip('regex'); paint() }, 'opt'), toggle('Wrap', arg('wrap'), () =>
      { flip('wrap'); paint() }), toggle('Follow', stick, () => { stick = !stick; paint() }),
      button('Download', save, 'opt')), view,
  row(plain(`${num(seen.length)} of ${num(lines.length)} lines; 5\u202f000 are kept`), gap(), fresh &&
    button(`${num(fresh)} new lines ↓`, () => { stick = true; paint() }, 'main')))}
}

/* ---- Deploy: a file, what it would change, then the question ---- */
function deployView(v) {
  const role = v.path[1], job = v.path.slice(0, 4), key = h('input', {'aria-label': 'Job',
    value: job.slice(1, 4).join('/'), placeholder: 'role/environment/name'})
  const text = h('textarea', {'aria-label': 'Configuration', spellcheck: 'false', input() { plan = null;
    v.draw() }}), bind = h('input', {'aria-label': 'Bindings',
    placeholder: 'Bindings: NAME=VALUE NAME=VALUE', input() { plan = null }})
  const pick = h('input', {type: 'file', multiple: true, hidden: true, change(e) { take(e.target.files) }})
  let files = [], plan, found, etag, wrong
  text.own = key.own = bind.own = pick.own = true
  async function take(list) {
    files = [...list]
    text.value = files[0] ? await files[0].text() : ''
    read()
  }
  const body = () => { if (!files[1]) return text.value; const form = new FormData(); files.forEach(f =>
    form.append('file', f)); return form }
  const type = () => files[1] ? {} : {'Content-Type': /^\s*\{/.test(text.value) ?
    'application/json' : 'text/plain'}
  const query = () => { const q = new URLSearchParams(); bind.value.split(/\s+/).forEach(x => x &&
    q.append('bind', x)); return q }
  async function read() {
    plan = found = wrong = etag = null
    v.api = url('job', v.path[0], ...key.value.split('/'))
    const ask = what => request('POST', `${v.api}/${what}?${query()}`, {body: body(), headers: type()})
    try {
      found = await ask('inspect')
      etag = (await v.maybe(v.api + '/config'))?.etag
      if (etag) plan = await ask('diff')
    } catch (e) { wrong = e }
    v.draw()
  }
  function go() {
    const name = key.value.split('/')[2], path = [v.path[0], ...key.value.split('/')], cron = found.cron,
      n = found.job.instanceCount || 1, q = String(query())
    act({name: `${cron ? 'Schedule' : plan ? 'Update' : 'Create'} ${name}?`, verb: cron ? 'Schedule' : plan ?
      'Start update' : 'Create', text: plan ?
      'Refused (412) if the job has changed since the plan was made.' : `With ${some(n, 'instance')}.`,
      message: !!plan && !cron,
      method: 'PUT', path: (cron ? url('cron', ...path) : v.api + (plan ? '/update' : '')) + (q && '?' + q),
        body: body(), headers: {...type(), ...etag && !cron && {'If-Match': etag}}, type: grave(path, n),
      done: a => { location.hash = '#/' + path.join('/') + (a.update ? '/update/' + a.update.id : '') }})
  }
  for (const kind of ['dragover', 'drop']) addEventListener(kind, e => { e.preventDefault();
    if (kind == 'drop') take(e.dataTransfer.files) }, {signal: v.signal})
  v.load = async () => {}
  v.draw = () => fill(v.node, head(v, 'Deploy'), h('div', {class: 'cols half'}, h('div', {class: 'stack'},
    row(key, bind, gap(), button('Choose file…', () => pick.click()), pick), text,
    plain('Drop a .aurora file anywhere, or paste. Nothing goes to the scheduler yet.')),
    h('div', {class: 'stack'}, row(h('h2', null, 'Plan'), gap(), button('Read', read)), wrong && oops(wrong),
      plan ? planned(plan) : found && [plain(found.cron ?
      'Its schedule would be set.' : 'The job would be new.'), config(found.job.taskConfig)],
      found?.warnings.map(x => plain(x)), found?.update_errors?.map(x => plain(x)),
      !found && !wrong && plain('What would change is shown here.'), found && may('write', role || '') &&
        row(gap(), button(plan ? 'Start update…' : 'Create…', go, 'main', {disabled: !!S.down || plan &&
        !(plan.add[0] ?? plan.remove[0] ?? plan.update[0] ?? false) && plan.count == 0})))))
}

/* ---- Update: a square an instance ---- */
function updateView(v) {
  const id = v.path[5], host = h('div')
  let u, chosen = Number(arg('i')), of
  host.own = true
  v.api += '/updates/' + id
  v.load = async () => {
    v.open ||= v.follow(v.api + '/events', () => v.again(500))
    u = (await v.get(v.api + '?detail=1')).update
    of = new Map(Object.entries(u.instances).flatMap(([x, list]) => list.map(i => [i, x])))
  }
  addEventListener('resize', () => v.draw(), {signal: v.signal})
  const pick = i => { const all = [...of.keys()]; chosen = all[Math.max(0, Math.min(all.length - 1, i))];
    put('i', String(chosen)); v.draw() }
  function grid() {
    const all = [...of.keys()].sort((a, b) => a - b), n = all.length, wide = (host.clientWidth || 740) - 36,
      size = n > 200 ? 14 : 28, cols = Math.max(10, Math.floor(wide / size / 10) * 10), d = {},
      side = size - (n > 200 ? 3 : 6)
    const box = (x, y, w, t = w) => `M${x} ${y}h${w}v${t}h-${w}z`, add = (k, path) =>
      { d[k] = (d[k] || '') + path }
    all.forEach((i, j) => {
      const x = 36 + j % cols * size, y = 3 + Math.floor(j / cols) * size, [icon, cls] = STATE[of.get(i)],
        m = side * .3
      add(icon == 'ring' ? 'w' : icon == 'half' ? cls + ' line' : cls, icon == 'ring' ?
        box(x + side / 2 - 2.5, y + side / 2 - 2.5, 5) : box(x, y, side))
      if (icon == 'half') add(cls, box(x, y + side / 2, side, side / 2))
      const l = side - 2 * m
      if (icon == 'cross') add('x line', `M${x + m} ${y + m}l${l} ${l}M${x + m + l} ${y + m}l-${l} ${l}`)
    })
    const j = Math.max(0, all.indexOf(chosen)), lines = Math.ceil(n / cols)
    fill(host, s('svg', {class: 'grid', width: 36 + cols * size, height: lines * size + 6, tabindex: 0,
      role: 'slider', 'aria-label': 'Instance', 'aria-valuemin': 0, 'aria-valuemax': n - 1,
      'aria-valuenow': j, 'aria-valuetext': `instance ${all[j]}: ${word(of.get(all[j]))}`,
      keydown(e) { const go = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: cols, ArrowUp: -cols, Home: -n,
        End: n}[e.key]; if (go) { e.preventDefault(); pick(j + go) } },
      click(e) { const b = e.currentTarget.getBoundingClientRect(),
        x = Math.floor((e.clientX - b.x - 36) / size), y = Math.floor((e.clientY - b.y) / size);
        if (x >= 0 && x < cols && y * cols + x < n) pick(y * cols + x) }},
    Array.from({length: lines}, (_, r) => s('text', {x: 0, y: r * size + side / 2 + 7},
      String(all[r * cols]))), Object.entries(d).map(([cls, path]) => s('path', {class: cls, d: path,
      fill: 'currentColor'})),
    s('path', {class: 'line', d: box(33.5 + j % cols * size, .5 + Math.floor(j / cols) * size, side + 5)})))
    return all[j]
  }
  v.draw = () => {
    const i = grid(), group = u.before.find(g => g.instances.includes(i)) || u.before[0],
      mine = u.instance_events.filter(e => e.instance == i), p = u.settings || {}
    fill(v.node, head(v, u.message || 'Update ' + id.slice(0, 8), steer(u)),
      facts(['Status', state(u.state)], ['Instances', count(u.progress)], u.user && ['*By', u.user],
      ['Started', age(u.created), ' ago'], !isActive(u) && ['Took', took(u.modified - u.created)],
      ['*Id', id.slice(0, 8)]),
      h('div', {class: 'cols'}, h('div', {class: 'stack far'}, section('Instances', legend(u), host),
        section('History', events(u.events.toReversed(), e => at(e.time), e => [e.message,
        e.user].filter(Boolean).join(', by ')))),
        h('div', {class: 'stack far'}, section('Instance ' + i, state(of.get(i)), h('ol', {class: 'pairs'},
          mine.map(e => h('li', null, at(e.time), h('span', null, word(e.action.replace('INSTANCE_', '')),
          e.message && ': ' + e.message)))), row(link('#/' + u.job + '/' + i, 'Instance', 'btn'),
          link(`#/${u.job}?tab=logs&i=${i}`, 'Logs', 'btn'))),
          section('Settings', pairs([['At once', show(p.updateGroupSize)], ['Watch time',
            took(p.minWaitInInstanceRunningMs || 0)], ['Failures of one', show(p.maxPerInstanceFailures)],
            ['Failures in all', show(p.maxFailedInstances)], ['On failure', p.rollbackOnFailure ?
            'Roll back' : 'Stop'], ['SLA-aware', p.slaAware ? 'Yes' : 'No']].filter(x => x[1]))),
          section('Changes', group && u.after ? changes(differences(group.config,
            u.after.config)) : plain('All instances are new, or go.')))))
  }
}
/* ---- Instance ---- */
function instanceView(v) {
  const [c, , , , i] = v.path, inside = `${v.api}/instances/${i}`, dir = arg('dir')
  let tasks, near, run, files, lack
  v.load = async () => {
    v.open ||= v.follow(v.api + '/events?snapshot=0', (kind, e) => { if (e.instance == i) v.again(300) })
    tasks = newest((await v.get(`${v.api}/tasks?shards=${i}`)).tasks)
    near = tasks[0]?.host &&
      (await v.maybe(`${url('tasks', c)}?host=${tasks[0].host}&state=RUNNING&limit=100`))?.tasks
    v.locked = (await v.maybe(v.api + '/updates?limit=1'))?.updates.some(isActive)
    if (near && PAGE.logs == 'yes') try {
      run = (await v.get(inside + '/processes')).processes
      files = (await v.get(`${inside}/files${dir && '?path=' + encodeURIComponent(dir)}`)).entries
      lack = ''
    } catch (e) { lack = e.message }
  }
  const log = p => link(`#/${v.path.slice(0, 4).join('/')}?tab=logs&i=${i}&process=${p.name}`, p.name, 'link')
  const at = path => v.base + '?' + new URLSearchParams({dir: path})
  const file = e => { const path = dir ? dir + '/' + e.name : e.name; return e.type == 'directory' ?
    link(at(path), e.name + '/', 'link') : button(e.name, () =>
      download(`${inside}/files/content?path=${encodeURIComponent(path)}`, e.name, e.size), 'bare link') }
  v.draw = () => fill(v.node, head(v, 'Instance ' + i), tasks[0] ? [facts(['State', state(tasks[0].state)],
    ['Since', age(last(tasks[0]).time)], ['Host', hostly(v, tasks[0].host)], tasks[0].pending &&
    ['Why', tasks[0].pending]), h('div', {class: 'stack far'}, detail(v, tasks),
    lack && section('Sandbox', plain(lack)),
    run && h('div', {class: 'cols half'}, section('Processes', pairs(run.map(p => [log(p), [word(p.state ||
      'waiting'), p.run && 'run ' + p.run, p.return_code != null && 'exit ' + p.return_code].filter(
      Boolean).join(', '), p.started ? [', ', age(p.stopped || p.started), p.stopped ? ' since its end' :
      ' so far'] : '']))), files && section('Files' + (dir && ' in ' + dir), pairs([dir &&
      [link(at(dir.split('/').slice(0, -1).join('/')), '..', 'link'), ''],
      ...files.map(e => [file(e), e.size != null && num(e.size) + ' B'])]))),
    near?.[1] && h('section', null, h('h2', null, 'On the same host'), h('div', {class: 'many'},
      near.filter(t => t.id != tasks[0].id).sort((a, b) => a.job.localeCompare(b.job) ||
      a.instance - b.instance).map(t => h('p', null, oneOf(t))))))] : plain('There is no such instance.'))
}

/* ---- Cluster ---- */
function overview(v) {
  const c = v.path[0]
  let jobs, updates, waiting, failed, roles, ops
  v.load = async () => {
    [jobs, updates, waiting, failed, roles] = await Promise.all([v.get(url('jobs', c) + '?detail=1'),
      v.get(url('updates', c) + '?status=active'), v.get(url('pending', c)), v.get(url('tasks',
      c) + '?state=FAILED,LOST&limit=1000'), v.get(url('roles', c))])
  }
  v.every(5e3)
  v.draw = () => {
    const eyes = new Map(), all = Object.values(jobs.jobs), sum = {}
    const note = (x, job, since, why) => { const k = x + job, old = eyes.get(k); eyes.set(k,
      {x, job, n: (old?.n || 0) + 1, since: old && x[0] != 'F' ? Math.min(old.since,
      since) : Math.max(old?.since || 0, since), why: why || old?.why}) }
    failed.tasks.forEach(t => { if (now() - last(t).time < 36e5) note(t.state, t.job, last(t).time,
      last(t).message) })
    waiting.pending.forEach(t => note(t.state, t.job, t.since, t.reason))
    all.forEach(j => { const r = sum[j.key.split('/')[1]] ||= [0, 0]; r[0] += j.active; r[1] += j.pending })
    const worst = [...eyes.values()].sort((a, b) => rank(a.x) - rank(b.x) || b.since - a.since),
      busy = S.ops.filter(o => o.state == 'running')
    fill(v.node, head(v, c, may('write', '') && link(`#/${c}/deploy`, 'Deploy…', 'btn main')),
      facts(['Jobs', num(all.length)], ['Tasks', num(all.reduce((n, j) => n + j.instances, 0))], ['Waiting',
      num(waiting.total)], ['', link(`#/${c}/tiers`, 'Tiers', 'link')]), h('div', {class: 'cols'},
      h('div', {class: 'stack far'},
      section('Needs attention', flow('What needs attention, the worst first', [['State', 'w2'],
        ['Job', 'w4 wide'], ['Tasks', 'num opt w1'], ['Why', 'msg'], ['For', 'num w1']], worst.slice(0,
        50).map(e => [state(e.x), keyed(e.job), num(e.n), e.why, age(e.since)]),
        'Nothing waits, and nothing has failed within an hour.')),
      section('Roles', flow('Roles', [['Role', 'w3'], ['Jobs', 'num opt'], ['Cron', 'num opt'], ['Active',
        'num'], ['Pending', 'num']], Object.entries(roles.roles).map(([r, x]) => [link(`#/${c}/${r}`, r),
        num(x.jobs), num(x.cron), num(sum[r]?.[0] || 0), sum[r]?.[1] ? state('PENDING',
        num(sum[r][1])) : '0'])))),
    h('div', {class: 'stack far'}, section('Updates in progress', updates.updates.map(u => h('div', null,
      row(state(u.state), gap(), count(u.progress)), link(`#/${u.job}/update/${u.id}`,
      u.job.split('/').slice(1).join('/')), progress(u.progress), plain(u.message))), !updates.count &&
      plain('None')),
      section('Operations', busy.map(work), !busy[0] && plain('None')))))
  }
}
// A table of few rows, drawn whole.
const flow = (name, cols, rows, empty) => rows[0] ? h('table', {class: 'flow', role: 'table'}, h('caption',
  {class: 'vh'}, name), h('thead', {role: 'rowgroup'}, h('tr', {role: 'row'}, cols.map(([text, cls]) =>
  h('th', {class: cls, scope: 'col', role: 'columnheader'}, text)))),
  h('tbody', {role: 'rowgroup'}, rows.map(cells => h('tr', {role: 'row'}, cells.map((x, i) =>
    h('td', {class: cols[i][1]?.replace(/\bw\d/, ''), role: 'cell', title: x?.length > 20 && x},
    x)))))) : plain(empty)
// What has a title, a filter and one list.
function listView(v, name, path, pick, o, above) {
  let all = []
  const l = list(v, o), box = search('Filter', () => v.draw())
  v.load = async () => { all = pick(await v.get(path.call ? path() : path)); above && await above.load() }
  v.draw = () => { l.set(all); fill(v.node, head(v, name, o.picked?.size && o.actions?.([...o.picked])),
    above && above.draw(), h('div', {class: 'row tools'}, box, gap(), plain(l.rows.length < all.length &&
    num(l.rows.length) + ' of ', num(all.length))), l.node) }
  v.every(5e3)
}
function jobsView(v, cron) {
  const [c, role, env] = v.path, own = role && role != 'jobs' && !cron, path = own ? url('jobs',
    ...v.path) : url('jobs', c)
  let quota
  const amounts = {cpu: 'CPU', ram_mb: 'RAM', disk_mb: 'Disk'}, text = (k, n) => k == 'cpu' ?
    +n.toFixed(1) + '' : mb(n)
  const above = own && {async load() { quota = await v.maybe(url('quota', c, role)) }, draw: () => quota &&
    facts(...Object.entries(amounts).map(([k, name]) => ['Quota, ' + name,
    text(k, quota.consumption.production[k]), ' of ', text(k, quota.quota[k]), bar(quota.quota[k],
    ['used', quota.consumption.production[k]])]),
    may('admin', '') && ['', button('Set quota…', () => ask())])}
  const ask = () => {
    const fields = Object.keys(amounts).map(k => [k, h('input', {type: 'number', value: quota.quota[k]})])
    dialog('', 'Quota of ' + role, h('form', {submit(e) { e.preventDefault(); close();
      act({name: `Set the quota of ${role}?`, verb: 'Set quota',
      text: JSON.stringify(Object.fromEntries(fields.map(([k, e]) => [k, +e.value]))), method: 'PUT',
      path: url('quota', c, role), headers: {'Content-Type': 'application/json'},
      body: JSON.stringify(Object.fromEntries(fields.map(([k, e]) => [k, +e.value])))}) }},
      fields.map(([k, e]) => labelled(k, e)), row(gap(), cancel(), h('button', {class: 'main'}, 'Next'))))
  }
  listView(v, cron ? 'Cron' : own ? v.path.at(-1) : 'Jobs', path + '?detail=1', a =>
    Object.values(a.jobs).filter(j => !cron || j.cron), {name: 'Jobs', key: j => j.key, sort: 'key',
    hay: j => j.key, by: {next: j => j.cron?.next_run, kind: j => j.cron ? 'Cron' : j.service ?
    'Service' : 'Job'},
    cols: [['key', 'Job', cron ? 'w4 wide' : 'wide'], ...cron ? [['schedule', 'Schedule', 'w2'],
      ['next', 'Next run', 'w3'], ['', '', 'num']] : [['kind', 'Kind', 'opt w1'], ['tier', 'Tier', 'opt w2'],
      ['active', 'Active', 'num w1'], ['pending', 'Pending', 'num w1'], ['failed', 'Failed', 'num opt w1'],
      ['next', 'Next run', 'opt w3']]],
    cells: j => { const k = j.key.split('/'), cells = [link('#/' + j.key,
      (own ? k.slice(2) : k.slice(1)).join('/'))]; return cells.concat(cron ? [j.cron.schedule,
      nextRun(j.cron), may('write', k[1]) && row(gap(), cronActions(v, k, !!off()))] : [j.cron ?
      'Cron' : j.service ? 'Service' : 'Job', j.tier, num(j.active), j.pending ? state('PENDING',
      num(j.pending)) : '0', num(j.failed), j.cron && nextRun(j.cron)]) }}, above)
  if (own) { v.every = () => {}; v.follow(url('events', c, role) + '?snapshot=0', () => v.again(1e3)) }
}
function hostsView(v) {
  const c = v.path[0], picked = new Set(), known = new Map(), where = x => url('maintenance', c, x.join())
  const does = (text, says, method, path, bad) => button(text + '…', () =>
    act({name: `${text} ${some(picked.size, 'host')}?`, text: says, verb: text, method,
    path: where([...picked]) + path, bad, type: bad && c}), bad && 'bad', {disabled: !!off()})
  // A host that is named whole is told of also where it has no tasks.
  const path = () => url('hosts', c) + (arg('q') && '?host=*&host=' + encodeURIComponent(arg('q')))
  listView(v, 'Hosts', path, a => a.hosts, {name: 'Hosts', key: x => x.host, hay: x => x.host, picked,
    sort: 'host', cols: [['host', 'Host', 'w4'], ['mode', 'Mode', 'w3'], ['tasks', 'Tasks', 'num w1'],
    ['', '', '']], by: {mode: x => -rank(x.mode || 'NONE')}, cells: x => [x.host, state(x.mode || 'NONE'),
    num(x.tasks), ''],
    actions: () => may('admin', '') && [h('b', null, num(picked.size), ' selected'), does('Deactivate',
      'New tasks go elsewhere if they can.', 'PUT', ''), does('Drain',
      'Tasks are moved away; refused where a job would fall below its SLA.', 'POST', '/drain', true),
      does('Activate', 'Tasks may come again.', 'DELETE', '')],
    more: x => {
      const mark = x.tasks + (x.mode || '')
      if (known.get(x.host)?.mark != mark) { known.set(x.host, {mark});
        v.get(`${url('tasks', c)}?host=${x.host}&state=active&limit=200`).then(a => { known.set(x.host,
        {mark, tasks: a.tasks}); v.draw() }) }
      return h('div', {class: 'many'}, known.get(x.host).tasks?.map(t => h('p', {class: 'row'},
        state(t.state), oneOf(t))))
    }})
}
const pendingView = v => listView(v, 'Pending', url('pending', v.path[0]), a => a.pending,
  {name: 'Tasks that wait', key: t => t.id, sort: 'since', hay: t => t.job + t.reason,
  empty: 'No task waits for a host.', cols: [['state', 'State', 'w2'], ['job', 'Instance', 'w4 wide'],
  ['since', 'For', 'num w1'], ['reason', 'Why', 'msg']],
  cells: t => [state(t.state), oneOf(t), age(t.since), t.reason]})
const operationsView = v => listView(v, 'Operations', 'alpha/operations', a => a.operations,
  {name: 'Operations', key: o => o.id, sort: '-started', hay: o => o.key + o.kind + o.user,
  empty: 'This server has run none since it was started.', cols: [['kind', 'Operation', 'w2'], ['state',
  'State', 'w2'], ['key', 'Of', 'wide'], ['n', 'Done', 'num w2'], ['user', 'By', 'opt w2'], ['started',
  'Began', 'num w1'], ['', '', 'num w2']],
  cells: o => [word(o.kind), state(o.state), keyed(o.key), count(o.progress), o.user, age(o.started),
    stopper(o)], more: o => [events(o.steps, e => at(e.time), e => e.text), o.errors.map(x =>
    h('p', {class: 'fail'}, x))]})
const tiersView = v => listView(v, 'Tiers', url('tiers', v.path[0]), a => Object.entries(a.tiers).map(([name,
  t]) => ({name, ...t, chosen: name == a.default})), {name: 'Tiers', key: t => t.name, hay: t => t.name,
  cols: [['name', 'Tier', 'w3'], ['preemptible', 'Preemptible'], ['revocable', 'Revocable'], ['chosen',
  'Default']],
  cells: t => [t.name, ...[t.preemptible, t.revocable, t.chosen].map(x => x ? 'Yes' : 'No')]})

/* ---- Route ---- */
const PLACES = {jobs: v => jobsView(v), hosts: hostsView, cron: v => jobsView(v, 1), pending: pendingView,
  operations: operationsView, tiers: tiersView, deploy: deployView}
function route(moved) {
  V?.ctl.abort()
  clearTimeout(V?.timer)
  const {path} = place(), v = V = new View()
  if (!path[0] && S.clusters[0]) { location.replace('#/' + S.clusters[0]); return }
  v.node = h('div', {class: 'view'})
  $('#main').replaceChildren(v.node)
  const view = !path[1] ? overview : path[4] == 'update' && path[5] ? updateView : path[4] == 'deploy' ?
    deployView : path[4] ? instanceView : path[3] ? jobView : PLACES[path[1]] || jobsView
  S.sick = ''
  view(v)
  const draw = v.draw
  v.draw = () => { if (V == v && (v.ready || view == jobView)) { draw(); titled(moved); moved = false } }
  document.title = [path.at(-1), 'Aurora'].join(' · ')
  frame()
  v.again()
}
function titled(moved) {
  const h1 = $('h1')
  document.title = [h1?.textContent, arg('tab'), 'Aurora'].filter(Boolean).join(' · ')
  if (moved) h1?.focus({preventScroll: true})
}
async function start() {
  try {
    S.me = await request('GET', 'alpha/me')
    S.clusters = Object.keys((await request('GET', 'alpha/clusters')).clusters)
  } catch (e) {
    S.me = null
    if (!e.status) setTimeout(start, 2e3)
    fill($('#main'), h('div', {class: 'stack'}, h('h1', null, 'Aurora'), oops(e)))
    frame()
    return
  }
  route()
  operations()
}

/* ---- Keys ---- */
const KEYS = {'/': palette, '?': () => S.me && about(), j: () => V.list?.step(1), k: () => V.list?.step(-1),
  p: pause, x: () => document.activeElement.closest('tr')?.querySelector('[type=checkbox]')?.click(),
  r() { kept('read', S.read = S.read ? '' : '1'); V.draw(); frame() },
    h() { if (KEYS.before == 'g') location.hash = '#/' + cluster() }}
for (const [k, tab] of [['l', 'logs'], ['c', 'config'], ['u', 'updates'], ['t', 'tasks']]) KEYS[k] = () =>
  { if (V.path[3]) location.hash = `#/${V.path.slice(0, 4).join('/')}?tab=${tab}` }
addEventListener('keydown', e => {
  if (e.key == 'k' && (e.ctrlKey || e.metaKey)) { e.preventDefault(); palette(); return }
  if (e.ctrlKey || e.metaKey || e.altKey || S.quiet || $('dialog') ||
    /INPUT|TEXTAREA|SELECT/.test(e.target.tagName)) return
  if (e.key == 'Escape') history.back()
  if (Object.hasOwn(KEYS, e.key) && KEYS[e.key].call) { e.preventDefault(); KEYS[e.key]() }
  KEYS.before = e.key
})
addEventListener('hashchange', () => route(true))
document.addEventListener('visibilitychange', () => { if (document.hidden) V?.cuts.forEach(cut => cut());
  else { wake(); beat(); operations() } })
$('.skip').addEventListener('click', e => { e.preventDefault(); $('#main').focus() })
setInterval(() => document.querySelectorAll('time[data-t]').forEach(e => {
  const [n, unit] = parts(now() - (e.closest('.fresh') ? S.seen + S.skew : e.dataset.t))
  e.firstChild.data = n
  e.lastChild.textContent = unit
}), 1e3)
beat()
start()
"""

_PAGE_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                "require-trusted-types-for 'script'")
_PAGE_HEADERS = [
    ("Content-Security-Policy", _PAGE_POLICY), ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin")]


@lru_cache(maxsize=8)
def _page_text(text: str, kind: str) -> Response:
    """A text of the page as it is sent: without indentation and comments, which only readers of this file
    need."""
    text = re.sub(r"\n *(?://.*|/\* -.*)?(?=\n)|(?<=\n) +", "", text.lstrip("\n"))
    return Response(200, body=text.encode(), content_type=kind + "; charset=utf-8", headers=_PAGE_HEADERS)


def _page(call: Call, text: str, kind: str) -> Response:
    if call.service.page == "off":
        raise NotFound("there is no page here: --page=off")
    return _page_text(text, kind)


@route("GET", "/", "server", quick=True, gives="text/html", a200="the page")
def get_page(call: Call) -> Any:
    """The page: jobs, updates, logs and hosts, live, with what the caller may do to them."""
    logs = any(each.path.endswith("/processes") for each in ROUTES)
    text = PAGE.replace("full", call.service.page).replace('"no"', '"yes"' if logs else '"no"')
    return _page(call, text, "text/html")


@route("GET", "/page.css", "server", quick=True, gives="text/css", a200="the page's style")
def get_page_style(call: Call) -> Any:
    """The style of the page."""
    return _page(call, PAGE_STYLE, "text/css")


@route("GET", "/page.js", "server", quick=True, gives="text/javascript", a200="the page's script")
def get_page_script(call: Call) -> Any:
    """The script of the page."""
    return _page(call, PAGE_SCRIPT, "text/javascript")


class Log:
    """Lines to a stream, each with the time; a line never has control characters in it.

    Who logs never waits for who reads: lines go into a queue, and a thread of its own writes what has
    gathered. Where nobody reads, or the disk is full, the queue fills up and further lines are counted
    instead of kept; how many were lost is the next line that gets through. For any thread; _lock guards
    _lines, _size, lost and _told.
    """
    ROOM = 4 << 20          # characters that may wait

    def __init__(self, stream: Any = None) -> None:
        # None where it was closed before the start
        self.stream = stream if stream is not None else sys.stderr
        self.lost = 0
        self._told = 0
        self._lock = threading.Lock()
        self._lines: List[str] = []
        self._size = 0
        self._some = threading.Event()
        self._empty = threading.Event()
        self._empty.set()
        self._thread: Optional[threading.Thread] = None

    def __call__(self, line: str) -> None:
        clean = re.sub(r"[\x00-\x1f\x7f]", "?", line)
        now = time.time()
        text = "%s.%03dZ %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), now % 1 * 1000, clean)
        with self._lock:
            if self._size + len(text) > self.ROOM or not self._running():
                self.lost += 1
                return
            self._lines.append(text)
            self._size += len(text)
            self._empty.clear()
        if not self._some.is_set():
            self._some.set()

    def _running(self) -> bool:
        if self._thread is None:
            try:
                thread = threading.Thread(target=self._write, name="log", daemon=True)
                thread.start()
                self._thread = thread
            except RuntimeError:
                return False
        return True

    def flush(self, seconds: float = 1.0) -> bool:
        """Wait until all that was logged is written; False where nobody takes it in time."""
        return self._empty.wait(seconds)

    def _write(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            with self._lock:
                lines, self._lines, lost = self._lines, [], self.lost - self._told
                self._told = self.lost
            if lost:
                lines.append("warning: %d log lines were lost, as nobody took them in time\n" % lost)
            written = False
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self.stream.write("".join(lines))
                self.stream.flush()
                written = True
            with self._lock:
                self.lost += 0 if written else len(lines)
                self._told += 0 if written else len(lines)
                self._size = sum(map(len, self._lines))
                if not self._lines:
                    self._empty.set()


class Server:
    """A whole aurora_rest in a script: serves in the background from `start` (or `with`) to `stop`.

    clusters: name → URL or URLs, or a list of Cluster; what the command line finds without options if None.
    demo: also run a simulated scheduler, as cluster `devcluster`, or under the name given, or the Demo given.
    port: 0 for any free one. credentials: gives the Authorization for a cluster's scheduler, as Scheduler
    takes it. Further keywords are those of Service, HttpServer (tls, sock), Evaluator (evaluator) and
    Scheduler (scheduler: a dict of its options).
    """

    def __init__(self, port: int = 8888, host: str = "127.0.0.1", *, demo: Union[bool, str, Demo] = False,
                 clusters: Union[None, Dict[str, Union[str, Sequence[str]]], Sequence[Cluster]] = None,
                 scheduler: Optional[Json] = None, evaluator: Optional[Evaluator] = None,
                 access: Access = Access(), limits: Optional[Dict[str, float]] = None, tls: Any = None,
                 sock: Optional[socket.socket] = None, drain_timeout: float = 10.0,
                 log: Callable[[str], None] = lambda line: None,
                 credentials: Optional[Callable[[Cluster], Any]] = None, **service: Any) -> None:
        self.demo: Optional[Demo] = None
        self.drain_timeout = drain_timeout
        options = dict(scheduler or {})
        limit = dict(limits or {})
        if "answer" in limit:
            options.setdefault("max_answer", int(limit["answer"]))
        known: List[Cluster] = []
        if isinstance(clusters, dict):
            known = [Cluster(name, (urls,) if isinstance(urls, str) else tuple(urls)) for name,
                     urls in clusters.items()]
        elif clusters is not None:
            known = list(clusters)
        elif not demo:
            known = default_clusters()
        if demo:
            self.demo = demo if isinstance(demo, Demo) else Demo(demo if isinstance(demo, str)
                    else "devcluster")
            known.append(Cluster(self.demo.name, (self.demo.start(),)))

        # One cluster whose scheduler hangs must not take the threads that the others need.
        threads = int(limit.get("threads", LIMITS["threads"].default))
        options.setdefault("most_waiting", threads // 2 if len(known) > 1 else threads)

        def make(cluster: Cluster) -> Scheduler:
            own = {"authorization": credentials(cluster)} if credentials else {}
            return Scheduler(list(cluster.urls), cluster.name,
                             locate=ZooKeeperLocator(cluster) if cluster.zk else None, **dict(options, **own))
        loopback = host in ("127.0.0.1", "::1", "localhost")
        self.service = Service(Clusters(known, make), evaluator or Evaluator(), access, limit, log,
                               loopback=service.pop("loopback", loopback), **service)
        try:
            self.http = HttpServer((host, port), self.service, limit, tls, sock)
        except OSError:
            if evaluator is None:
                self.service.evaluator.close()
            if self.demo is not None and self.demo is not demo:
                self.demo.stop()
            raise
        self.service.runner = self.http
        self.service.lost_lines = lambda: getattr(log, "lost", 0)
        self.clusters = {scheduler: cluster for cluster, scheduler in self.service.clusters.pairs()}
        if self.demo is not None:
            self.service.clock = self.demo.clock.now
            self.service.observer.places[self.demo.name] = self.demo.observer.start()
        scheme = "https" if tls else "http"
        shown = "[%s]" % host if ":" in host else host
        self.url = "%s://%s:%d" % (scheme, shown if shown != "0.0.0.0" else "127.0.0.1", self.http.port)
        self._thread: Optional[threading.Thread] = None

    @property
    def port(self) -> int:
        return self.http.port

    def start(self) -> Server:
        """Serve in the background."""
        self.http.call_later(15.0, self.service.beat)
        self._thread = threading.Thread(target=self.http.serve_forever, name="http", daemon=True)
        self._thread.start()
        return self

    def stop(self, drain_timeout: Optional[float] = None) -> None:
        """Not ready any more; stop listening; let requests finish; interrupt operations; close."""
        self.http.draining = True
        self.service.operations.interrupt(2.0)
        if self._thread is not None:
            self.http.drain(self.drain_timeout if drain_timeout is None else drain_timeout)
        self.http.server_close()
        self.service.evaluator.close()
        for scheduler in self.service.clusters.schedulers():
            scheduler.close()
        if self.demo is not None:
            self.demo.stop()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()


class _Option(NamedTuple):
    """A command-line option; also read from AURORA_REST_ and its name in capitals."""
    name: str
    group: str
    help: str
    default: Any = None
    kind: Any = str
    metavar: Optional[str] = None
    many: bool = False
    least: float = 0


OPTIONS = [
    _Option("config", "file", "read options from FILE, too: lines NAME = VALUE, as --print-config writes "
            "them; the command line and the environment go before it", None, str, "FILE"),
    _Option("print-config", "file", "print the options in force as such a file, and exit", False, bool),
    _Option("check", "file", "say what would be served, and exit: 0, or 2 where it cannot be", False, bool),
    _Option("port", "serving", "port to listen on", 8888, int, "PORT"),
    _Option("host", "serving", "address to listen on; beyond loopback it takes --tokens, --forward-auth, "
            "--client-ca or --allow-anonymous", "127.0.0.1", str, "ADDRESS"),
    _Option("executor", "serving", "how the scheduler is called; internal: direct Thrift calls", "internal"),
    _Option("application", "serving", "kind of server; thread", "thread"),
    _Option("parallel", "serving", "simultaneous calls to one cluster's scheduler", 4, int, "N", least=1),
    _Option("drain-timeout", "serving", "seconds that requests may finish in when asked to stop", 10.0, float,
            "SECONDS"),
    _Option("poll-interval", "serving", "seconds between looks at a watched job", 1.0, float, "SECONDS",
            least=0.01),
    _Option("quiet", "serving", "no access log", False, bool),
    _Option("page", "serving", "the page at /: full, read (it offers no actions) or off", "full", str,
            "WHICH"),
    _Option("scheduler", "clusters", "a cluster and where its schedulers listen; repeatable", [], str,
            "NAME=URL[,URL…]",
            True),
    _Option("clusters", "clusters", "a clusters.json; default: where the aurora client looks", None, str,
            "FILE"),
    _Option("timeout", "clusters", "seconds for a scheduler call, attempts included", 20.0, float, "SECONDS",
            least=0.01),
    _Option("connect-timeout", "clusters", "seconds to connect to a scheduler", 3.0, float, "SECONDS",
            least=0.01),
    _Option("retry-for", "clusters", "seconds during which a call that failed harmlessly is tried again", 3.0,
            float,
            "SECONDS"),
    _Option("scheduler-auth", "clusters",
            "file with USER:PASSWORD for the schedulers of a cluster, repeatable; FILE alone "
            "where there is one cluster; default: ~/.netrc, by host, where clusters.json says BASIC", [], str,
            "[NAME=]FILE", True),
    _Option("scheduler-ca", "clusters", "certificates to trust for https schedulers", None, str, "FILE"),
    _Option("observer-port", "logs",
            "port of the Thermos observers, which have logs and files of tasks; 0 for none", 1338, int,
            "PORT"),
    _Option("observer-network", "logs",
            "a network that hosts of tasks have to be in; repeatable; any if absent", [], str,
            "CIDR", True),
    _Option("observer-ca", "logs", "observers are reached by https; certificates to trust for it", None, str,
            "FILE"),
    _Option("agent-port", "logs",
            "port of the Mesos agents, for console logs and tasks of other executors; often 5051", 0,
            int, "PORT"),
    _Option("agent-auth", "logs", "file with USER:PASSWORD for them", None, str, "FILE"),
    _Option("agent-framework", "logs",
            "the id of Aurora's framework, where the state of agents may not be read", None, str,
            "ID"),
    _Option("demo", "demo", "run a simulated scheduler as cluster NAME (devcluster)", None, "demo", "NAME"),
    _Option("demo-port", "demo", "port of the simulated scheduler; 0 for any", 0, int, "PORT"),
    _Option("demo-speed", "demo", "how many times as fast its time runs", 1.0, float, "N"),
    _Option("demo-docker", "demo", "let it take Docker containers, as -allowed_container_types does", False,
            bool),
    _Option("demo-revocable", "demo", "let it have offers for revocable tasks", False, bool),
    _Option("demo-jobs", "demo", "fill it with N jobs of ten instances each", 0, int, "N"),
    _Option("tokens", "access", "file of tokens: NAME LEVEL ROLES HASH a line; reloaded on SIGHUP", None, str,
            "FILE"),
    _Option("new-token", "access", "print a new token and its line for --tokens, and exit", None, str,
            "NAME:LEVEL[:ROLES]"),
    _Option("forward-auth", "access", "pass callers' Authorization on; the scheduler decides", False, bool),
    _Option("allow-anonymous", "access", "listen beyond loopback with no credentials asked for", False, bool),
    _Option("cors", "access", "an origin whose pages may read and write; repeatable", [], str, "ORIGIN",
            True),
    _Option("host-name", "access", "a further Host header to accept on loopback; repeatable", [], str, "NAME",
            True),
    _Option("tls-cert", "access", "certificate chain to serve https with; reloaded on SIGHUP", None, str,
            "FILE"),
    _Option("tls-key", "access", "its private key", None, str, "FILE"),
    _Option("client-ca", "access", "want client certificates signed by this", None, str, "FILE"),
    _Option("include-root", "configuration", "folder of shared files that configurations may include()", None,
            str, "DIR"),
    _Option("config-workers", "configuration", "evaluator processes at the most", 4, int, "N", least=1),
    _Option("trust-configs", "configuration",
            "do not check what configurations say, and evaluate them also where they "
            "cannot be shut in; the limits stay", False, bool),
    _Option("config-cpu", "configuration", "processor seconds for one configuration", 5, int, "SECONDS",
            least=1),
    _Option("config-memory", "configuration", "MB of memory for one configuration", 512, int, "MB",
            least=128),
] + [_Option("limit-" + name.replace("_", "-"), "limits", "%s (%s)" % (limit.help, limit.unit),
             int(limit.default) if limit.default == int(limit.default) else limit.default, float, "N",
             least=limit.least)
     for name, limit in LIMITS.items()]


class UsageError(Exception):
    """The command line cannot be followed; the text is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message)


def parse_command_line(arguments: Sequence[str], environment: Dict[str, str]) -> argparse.Namespace:
    """The options, from the command line, or else from AURORA_REST_… variables, or else from the file that
    --config names. Raises UsageError."""
    given = {}          # name → its text, where that stands
    for option in OPTIONS:
        variable = "AURORA_REST_" + option.name.upper().replace("-", "_")
        if variable in environment:
            given[option.name] = environment[variable], variable
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", default=given.get("config", (None, ""))[0])
    path = early.parse_known_args(list(arguments))[0].config
    given = dict(_read_options(path) if path else {}, **given)
    parser = _Parser(prog="aurora_rest.py", description="Apache Aurora over plain HTTP.", allow_abbrev=False,
                     epilog="Every option can be given as an environment variable too: AURORA_REST_PORT for "
                            "--port.")
    parser.add_argument("--version", action="version", version="aurora_rest " + __version__)
    groups: Json = {}
    for option in OPTIONS:
        group = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
        groups[option.group] = group
        kind, shown = option.kind, "" if option.default in (None, False, []) else " (default: %s)" % (
            option.default)
        named: Json = {"help": (option.help + shown).replace("%", "%%"), "default": _default(option, given)}
        if kind is bool:
            named.update(action="store_true")
        elif kind == "demo":
            named.update(nargs="?", const="devcluster", metavar="NAME")
        elif option.many:       # argparse would add to a default
            named.update(action="append", metavar=option.metavar, default=None)
        else:
            named.update(type=kind, metavar=option.metavar)
        group.add_argument("--" + option.name, **named)
    options = parser.parse_args(list(arguments))
    for option in OPTIONS:
        if option.many and getattr(options, option.name.replace("-", "_")) is None:
            setattr(options, option.name.replace("-", "_"), _default(option, given))
    return options


def _read_options(path: str) -> Dict[str, Tuple[str, str]]:
    """name → (text, where it stands), of a file of options. Raises UsageError."""
    import configparser
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#", ";"))
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        parser.read_string(text if re.match(r"\s*([#;].*\s*)*\[", text) else "[options]\n" + text, path)
    except (OSError, ValueError, configparser.Error) as error:
        raise UsageError("--config=%s: %s" % (path, str(error).replace("\n", " "))) from None
    known = [option.name for option in OPTIONS]
    found = {}
    for section in parser.sections():
        for name, value in parser.items(section):
            if name not in known or name == "config":
                raise UsageError("%s: %s" % (path, no_such("option", name, known)))
            found[name] = value, "%s: %s" % (path, name)
    return found


def _default(option: _Option, given: Dict[str, Tuple[str, str]]) -> Any:
    """What an option is where the command line does not say it. Raises UsageError."""
    if option.name not in given:
        return option.default
    text, where = given[option.name]
    if option.many:
        return text.split()
    if option.kind is bool:
        if text.lower() not in ("1", "true", "yes", "0", "false", "no", ""):
            raise UsageError("%s: expected 1 or 0" % where)
        return text.lower() in ("1", "true", "yes")
    try:
        return option.kind(text) if option.kind in (int, float) else text
    except ValueError:
        raise UsageError("%s: expected a number, not %r" % (where, text)) from None


def options_in_force(options: argparse.Namespace) -> Json:
    """The options by name, without those that are not set. None of them is a secret: secrets are in files."""
    values = {option.name: getattr(options, option.name.replace("-", "_")) for option in OPTIONS
              if option.group != "file" and option.name != "new-token"}
    return {name: value for name, value in values.items() if value not in (None, False, [])}


def _config_text(options: argparse.Namespace) -> str:
    """The options in force as a file for --config."""
    return "".join("%s = %s\n" % (name, "\n    ".join(value) if isinstance(value, list) else
                                  1 if value is True else value)
                   for name, value in options_in_force(options).items())


def check_options(options: argparse.Namespace) -> None:
    """What options mean together. Raises UsageError."""
    for name, known in (("executor", "internal"), ("application", "thread")):
        if getattr(options, name) != known:
            raise UsageError("--%s=%s is not supported; %s is" % (name, getattr(options, name), known))
    if options.page not in ("full", "read", "off"):
        raise UsageError("--page=%s: full, read or off" % options.page)
    for option in OPTIONS:
        value = getattr(options, option.name.replace("-", "_"))
        if option.kind in (int, float) and not (math.isfinite(value) and value >= option.least):
            raise UsageError("--%s=%g: at least %g" % (option.name, value, option.least))
    if not 0 <= options.port <= 65535:
        raise UsageError("--port=%d: 0 to 65535" % options.port)
    if bool(options.tls_key) > bool(options.tls_cert):
        raise UsageError("--tls-key needs --tls-cert")
    if options.allow_anonymous and (options.tokens or options.forward_auth):
        raise UsageError("--allow-anonymous is for a server without --tokens and --forward-auth")
    if options.client_ca and not options.tls_cert:
        raise UsageError("--client-ca needs --tls-cert")
    decided = options.tokens or options.forward_auth or options.client_ca or options.allow_anonymous
    if options.host not in ("127.0.0.1", "::1", "localhost") and not decided:
        raise UsageError("--host=%s would let anyone who reaches it change jobs; add --tokens FILE, "
                         "--forward-auth, "
                         "--client-ca FILE, or --allow-anonymous if that is what you want" % options.host)
    for each in options.scheduler:
        name, equals, urls = each.partition("=")
        if not equals or not IDENTIFIER.fullmatch(name) or not urls:
            raise UsageError("--scheduler=%s: expected NAME=URL[,URL…]" % each)
        for url in urls.split(","):
            try:
                _Location.parse(url)
            except ValueError as error:
                raise UsageError("--scheduler=%s: %s" % (each, error)) from None


def new_token(text: str) -> Tuple[str, str]:
    """(a new token, its line for the tokens file) for NAME:LEVEL[:ROLES]. Raises UsageError."""
    name, _, rest = text.partition(":")
    level, _, roles = rest.partition(":")
    if not IDENTIFIER.fullmatch(name) or level not in LEVELS or re.search(r"\s", roles):
        raise UsageError("--new-token=%s: expected NAME:read|logs|write|admin[:ROLE,ROLE…]" % text)
    token = secrets.token_urlsafe(32)
    return token, "%s %s %s %s" % (name, level, roles or "*", hash_token(token))


def own_credentials(options: argparse.Namespace, clusters: Sequence[Cluster]) -> Callable[[Cluster], Any]:
    """What gives a cluster's own Authorization: a header from its file or the environment; or, where
    clusters.json says BASIC, a function that finds that of a host in netrc. Never from the command line,
    which everybody on the machine can read. Raises UsageError, OSError."""
    names = {cluster.name for cluster in clusters}
    texts: Dict[Optional[str], str] = {}
    for each in options.scheduler_auth:
        name, equals, path = each.partition("=")
        if equals and name in names:
            texts[name] = _read_file("scheduler-auth", path)
        elif len(clusters) == 1:
            texts[clusters[0].name] = _read_file("scheduler-auth", each)
        else:
            raise UsageError("--scheduler-auth=%s: say for which cluster: NAME=FILE, with a name of %s" % (
                each, ", ".join(sorted(map(str, names))) or "none"))
    given = os.environ.get("AURORA_REST_SCHEDULER_CREDENTIALS")
    if given and not texts:
        if len(clusters) != 1:
            raise UsageError("AURORA_REST_SCHEDULER_CREDENTIALS is for one cluster; there are %d: use "
                             "--scheduler-auth "
                             "NAME=FILE" % len(clusters))
        texts[clusters[0].name] = given
    headers = {cluster_name: _basic(text, "the schedulers'") for cluster_name, text in texts.items()}

    def find(cluster: Cluster) -> Any:
        return headers.get(cluster.name) or (_from_netrc if cluster.basic else None)
    return find


def _basic(text: str, whose: str) -> str:
    """The Authorization of USER:PASSWORD. Raises UsageError."""
    if ":" not in text:
        raise UsageError("%s credentials have to be USER:PASSWORD" % whose)
    return "Basic " + base64.b64encode(text.strip().encode()).decode()


def make_observer(options: argparse.Namespace) -> Observer:
    """Where logs and files are read, as the options say. Raises UsageError."""
    auth = _basic(_read_file("agent-auth", options.agent_auth), "the agents'") if options.agent_auth else None
    if max(options.observer_port, options.agent_port) > 65535:
        raise UsageError("--observer-port and --agent-port: 0 to 65535")
    if options.agent_framework and not IDENTIFIER.fullmatch(options.agent_framework):
        raise UsageError("--agent-framework=%s is no id" % options.agent_framework)
    try:
        return Observer(options.observer_port, networks=options.observer_network, ca_file=options.observer_ca,
                        agent_port=options.agent_port, agent_authorization=auth,
                        framework=options.agent_framework)
    except ValueError as error:
        raise UsageError("--observer-network: %s" % error) from None
    except OSError as error:
        raise UsageError("--observer-ca=%s cannot be used: %s" % (options.observer_ca, error)) from None


@lru_cache(maxsize=64)
def _from_netrc(host: str) -> Optional[str]:
    """The Authorization for a host in ~/.netrc."""
    import netrc
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        # Its "default" entry is for whom no entry names, and so for anybody: not taken.
        entry = netrc.netrc().hosts.get(host)
        if entry:
            return "Basic " + base64.b64encode(("%s:%s" % (entry[0], entry[2])).encode()).decode()
    return None


def _read_file(option: str, path: str) -> str:
    """A small text file that an option names. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read(1 << 20)
    except (OSError, ValueError) as error:
        raise UsageError("--%s=%s cannot be read: %s" % (option, path, _reason(error))) from None


def make_tls(cert: Optional[str], key: Optional[str], client_ca: str = "") -> Any:
    """A new ssl.SSLContext for serving, or None. client_ca: certificates, in PEM, one of which callers' must
    be signed by. Raises UsageError."""
    if not cert:
        return None
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise UsageError("--tls-cert=%s and --tls-key=%s cannot be used: %s" % (cert, key, error)) from None
    if client_ca:
        try:
            context.load_verify_locations(cadata=client_ca)
        except (OSError, ValueError) as error:
            raise UsageError("--client-ca cannot be used: %s" % error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def make_server(options: argparse.Namespace, log: Log) -> Server:
    """The server that the options describe. Raises UsageError."""
    clusters: List[Cluster] = []
    try:
        for each in options.scheduler:
            name, _, urls = each.partition("=")
            clusters.append(Cluster(name, tuple(urls.split(","))))
        if options.clusters:
            clusters += read_clusters(options.clusters)
        elif not clusters and options.demo is None:
            clusters = default_clusters()
        tokens = Tokens(options.tokens) if options.tokens else None
        credentials = own_credentials(options, clusters)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    names = [cluster.name for cluster in clusters] + ([options.demo] if options.demo is not None else [])
    if len(set(names)) < len(names):
        raise UsageError("two clusters have the same name: %s" % ", ".join(map(str, names)))
    if options.demo is not None and not IDENTIFIER.fullmatch(options.demo):
        raise UsageError("--demo=%s is no name for a cluster" % options.demo)
    if options.scheduler_ca and not os.path.isfile(options.scheduler_ca):
        raise UsageError("--scheduler-ca=%s is no file" % options.scheduler_ca)
    if options.include_root and not os.path.isdir(options.include_root):
        raise UsageError("--include-root=%s is no folder" % options.include_root)
    access = Access(tokens, options.forward_auth, anonymous=not (tokens or options.forward_auth
            or options.client_ca)
                    or options.allow_anonymous, client_certificates=bool(options.client_ca))
    limits = {name: getattr(options, "limit_" + name) for name in LIMITS}
    evaluator = Evaluator(options.config_workers, ConfigLimits(
        cpu_seconds=options.config_cpu, wall_seconds=options.config_cpu + 3.0,
        memory_bytes=options.config_memory << 20),
        options.trust_configs, options.include_root)
    options.client_ca_text = _read_file("client-ca", options.client_ca) if options.client_ca else ""
    tls = make_tls(options.tls_cert, options.tls_key, options.client_ca_text)
    activated = _activated_socket()
    if activated is not None and activated.family in (socket.AF_INET, socket.AF_INET6):
        options.host = activated.getsockname()[0]
        check_options(options)
    demo: Union[bool, Demo] = False
    if options.demo is not None:
        demo = Demo(options.demo, options.demo_speed, options.demo_jobs, docker=options.demo_docker,
                    revocable=options.demo_revocable)
        try:
            demo.start(options.demo_port)
        except (OSError, OverflowError) as error:
            raise UsageError("the demo scheduler cannot listen on --demo-port=%d: %s" % (
                options.demo_port, _reason(error))) from None
    try:
        server = Server(
            options.port, options.host, demo=demo, clusters=clusters, evaluator=evaluator, access=access,
            limits=limits,
            tls=tls, sock=activated, credentials=credentials, drain_timeout=options.drain_timeout, log=log,
            poll_interval=options.poll_interval, cors=options.cors, hosts=options.host_name,
            access_log=not options.quiet, page=options.page, observer=make_observer(options), scheduler=dict(
                timeout=options.timeout, connect_timeout=options.connect_timeout, retry_for=options.retry_for,
                parallel=options.parallel, ca_file=options.scheduler_ca))
    except OSError as error:
        raise UsageError("cannot listen on --host=%s --port=%d: %s" %
                         (options.host, options.port, _reason(error))) from None
    server.service.options = options_in_force(options)
    return server


def _activated_socket() -> Optional[socket.socket]:
    """The listening socket that systemd passes, if it does (sd_listen_fds)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    return socket.socket(fileno=3)


def notify_systemd(state: str) -> None:
    """Tell systemd, if it listens (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())


def _raise_descriptor_limit() -> int:
    """As many descriptors as this process may have; how many that is."""
    try:
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65536 if hard == resource.RLIM_INFINITY else hard
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return max(soft, wanted)
    except (ImportError, OSError, ValueError):
        return 1024


# Memory. All threads take it from one pool, as they run one at a time anyway: glibc would give each its own,
# and large replies would leave their room behind in every one. What is large has pages of its own, which are
# given back with it; what lies between small things is given back once a second, where there is much of it.
_LARGE = 1 << 20
_MUCH = 16 << 20


def _share_memory() -> None:
    """To be called before there are threads."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        libc = _libc()
        libc.mallopt(-8, 1)             # M_ARENA_MAX
        libc.mallopt(-3, _LARGE)        # M_MMAP_THRESHOLD


def _settle_memory(least: float) -> float:
    """Give back memory where the process has much more than the `least` it had; what that is then. The first
    time, with 0: what is left lives as long as the process, so the garbage collector need not look at it
    again."""
    if not least:
        gc.collect()
        gc.freeze()
    if _resident() > least + _MUCH:
        with contextlib.suppress(ImportError, OSError, AttributeError):
            _libc().malloc_trim(0)
    return least or _resident()


def _resident() -> float:
    return process_figures().get("process_resident_memory_bytes", 1.0)


def _greet(server: Server, log: Log) -> None:
    demo = server.demo
    names = server.service.clusters._known
    unnamed = len(server.service.clusters.schedulers()) - len(names)
    log("serving %s for %s" % (server.url, ", ".join(sorted(names)) or "the scheduler on this host"
                               if not unnamed else
                               "the scheduler on this host"))
    if demo is not None:
        log("demo scheduler at %s; try:" % demo.url)
        for line in ("curl -s %s/alpha/jobs/%s/www-data", "curl -s %s/alpha/job/%s/www-data/prod/hello",
                     "curl -s -X PUT '%s/alpha/job/%s/www-data/prod/hello/restart?shards=0&watch_secs=5'",
                     "curl -sN %s/alpha/job/%s/www-data/prod/hello/events",
                     "curl -sN '%s/alpha/job/%s/www-data/prod/hello/instances/0/logs?follow=1'"):
            log("  " + line % (server.url, demo.name))
        return

    def look() -> None:
        for scheduler in server.service.clusters.schedulers():
            try:
                scheduler.call("getTierConfigs", timeout=5.0)
            except AuroraError as error:
                log("warning: %s; it is tried again with every request" % error)
    _aside(look, "look-for-schedulers", log)


def _look_at_isolation(server: Server, log: Log) -> None:
    evaluator = server.service.evaluator
    try:
        layers = evaluator.look()
    except (AuroraError, OSError) as error:
        log("warning: %s" % error)
        return
    log("configurations are shut in by: %s" % (", ".join(layers) or "nothing"))
    if not isolates(layers):
        log("warning: %s" % ("configurations can reach what this process can, as --trust-configs allows"
                             if evaluator.trusted
                             else "configurations are refused: this machine has neither the system call "
                                  "filter nor "
                             "namespaces with an empty root to shut them in"))


def _aside(work: Callable[[], None], name: str, log: Log) -> None:
    """Do something in a thread of its own that the server can do without."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        log("warning: %s: %s" % (name, error))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line until it is asked to stop; the exit status. In the main thread only."""
    for standard in (0, 1, 2):      # one that was closed must not become a socket that others write to
        try:
            os.fstat(standard)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    log = Log()
    try:
        begun = _begin(sys.argv[1:] if arguments is None else arguments, log)
        return begun if isinstance(begun, int) else _supervise(*begun)
    except Exception as error:      # a defect: told in one line, too
        log("error %s: %s at %s" % (type(error).__name__, error, _place(error)))
        return 1
    finally:
        log.flush()


def _begin(arguments: Sequence[str], log: Log) -> Union[int, Tuple[Server, argparse.Namespace, Log, int]]:
    """Start what the command line says: what `_supervise` takes, or an exit status."""
    try:
        options = parse_command_line(arguments, dict(os.environ))
        if options.new_token:
            token, line = new_token(options.new_token)
            print("token (give it to its owner; it is stored nowhere):\n  %s" % token)
            print("line for the tokens file:\n  %s" % line)
            return 0
        check_options(options)
        if options.print_config:
            print(_config_text(options), end="")
            return 0
        if options.check:
            return _check(options, log)
        _share_memory()
        descriptors = _raise_descriptor_limit()
        options.limit_connections = min(options.limit_connections, max(16, descriptors - 150))
        server = make_server(options, log)
    except UsageError as error:
        if sys.stderr is not None:
            print("aurora_rest.py: %s" % error, file=sys.stderr)
        return 2
    source, target = os.pipe()
    os.set_blocking(target, False)
    signal.set_wakeup_fd(target, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda received, frame: None)     # its number arrives through the pipe
    server.start()
    _greet(server, log)
    _aside(lambda: _look_at_isolation(server, log), "look-at-isolation", log)
    notify_systemd("READY=1")
    return server, options, log, source


def _check(options: argparse.Namespace, log: Log) -> int:
    """Make what would be served, on a port that nobody else wants, say what it is, and end it."""
    at = "%s://%s:%d" % ("https" if options.tls_cert else "http", options.host, options.port)
    options.port = options.demo_port = 0
    server = make_server(options, log)
    access = server.service.access
    try:
        print("would serve %s" % at)
        for scheduler, cluster in server.clusters.items():
            print("cluster %s: %s%s" % (cluster.name or "of the scheduler's own name", ", ".join(
                cluster.urls) or "%s%s in ZooKeeper" % (cluster.zk, cluster.zk_path),
                ", with credentials" if scheduler.authorization else ""))
        print("callers: %s" % ("anonymous" if access.anonymous else ", ".join(
            name for name, there in (("tokens", access.tokens), ("credentials for the scheduler",
                                     access.forward), ("client certificates", options.client_ca)) if there)))
    finally:
        server.stop()
    return 0


def _next_signal(source: int, seconds: Optional[float]) -> Optional[int]:
    return os.read(source, 1)[0] if select.select([source], [], [], seconds)[0] else None


def _supervise(server: Server, options: argparse.Namespace, log: Log, signals: int) -> int:
    """Wait for signals and do as they say; the exit status."""
    interval = os.environ.get("WATCHDOG_USEC", "")
    pause = float(interval) / 2e6 if interval.isdigit() and int(interval) else None
    least = 0.0
    while True:
        wish = _next_signal(signals, min(pause or 1.0, 1.0))
        least = _settle_memory(least)
        if server.http.failure:
            log("error the server has ended: %s" % server.http.failure)
            return 1
        if wish is None:
            if time.monotonic() - server.http.swept < 10:
                notify_systemd("WATCHDOG=1")
        elif wish == signal.SIGHUP:
            _reload(server, options, log)
        elif wish == signal.SIGUSR1:
            service = server.service
            log("state " + " ".join("%s=%d/%d" % (name, used, service.limits[name])
                                    for name, used in service.used().items()))
        else:
            break
    def hurry() -> None:
        while _next_signal(signals, None) == signal.SIGHUP:
            pass
        os._exit(1)     # asked twice: at once
    _aside(hurry, "hurry", log)
    notify_systemd("STOPPING=1")
    log("stopping; %d operations are running" % server.service.operations.running)
    server.stop()
    for operation in server.service.operations.all():
        if operation.state == "interrupted":
            log("operation id=%s kind=%s key=%s interrupted: %d of %d done" % (
                operation.id, operation.kind, operation.key, operation.done, operation.total))
    log("stopped")
    return 0


def _reload(server: Server, options: argparse.Namespace, log: Log) -> None:
    """Read again what may have changed, each for itself: what cannot be read or used stays as it was,
    whole."""
    def tokens() -> None:
        if server.service.access.tokens:
            server.service.access.tokens.load()

    def client_ca() -> None:
        text = _read_file("client-ca", options.client_ca) if options.client_ca else ""
        if text == options.client_ca_text:
            return
        import ssl
        # raises for what is none
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
        options.client_ca_text = text
        # added at once, also where the certificate cannot be read just now
        if server.http.tls is not None:
            server.http.tls.load_verify_locations(cadata=text)

    def certificate() -> None:
        if server.http.tls is not None:     # a new context: a half-loaded one would refuse every handshake
            server.http.tls = make_tls(options.tls_cert, options.tls_key, options.client_ca_text)

    def scheduler_ca() -> None:
        if options.scheduler_ca:
            import ssl
            ssl.create_default_context(cafile=options.scheduler_ca)
            for scheduler in server.clusters:
                scheduler.reload(options.scheduler_ca, scheduler.authorization)

    def credentials() -> None:
        _from_netrc.cache_clear()
        demo = [] if server.demo is None else [server.demo.name]
        find = own_credentials(options, [each for each in server.clusters.values() if each.name not in demo])
        for scheduler, cluster in server.clusters.items():
            scheduler.reload(options.scheduler_ca, find(cluster))
    done = []
    for part in (tokens, client_ca, certificate, scheduler_ca, credentials):
        name = part.__name__.replace("_", " ")
        try:
            part()
            done.append(name)
        except (OSError, ValueError, UsageError) as error:
            log("warning: %s not reloaded: %s" % (name, error))
    log("reloaded %s" % ", ".join(done))


if __name__ == "__main__":
    sys.modules.setdefault("aurora_rest", sys.modules[__name__])
    sys.exit(main())
