"""Tests of aurora_rest: through real sockets, against the demo scheduler's real Thrift endpoint.

    python -m unittest test_aurora_rest        all tests (pytest runs them too)
    python test_aurora_rest.py --bench         benchmarks; see --bench --help
    python test_aurora_rest.py --mutants       breaks one behaviour after the other, and expects tests to see
    it
"""
import base64
import collections
import concurrent.futures
import contextlib
import glob
import gzip
import http.client
import http.server
import importlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import unittest
import urllib.parse
from functools import partial
from typing import Any, List
from unittest import mock

import aurora_rest
from aurora_rest import api

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = aurora_rest.BINARY
S = api.ScheduleStatus
U = api.JobUpdateStatus
EVALUATOR = aurora_rest.Evaluator()


def tearDownModule() -> None:
    EVALUATOR.close()


# --- helpers ------------------------------------------------------------------------------------------------

def matched(pattern: Any, text: Any, flags: Any = 0) -> Any:
    """Where a pattern is found; it has to be there."""
    found = re.search(pattern, text, flags)
    assert found is not None, (pattern, text)
    return found


def wait_for(condition: Any, seconds: Any = 20.0) -> Any:
    """The first true value of condition(); fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("not in %g s: %s" % (seconds, condition))
        time.sleep(0.01)


DESCRIPTION = json.loads(aurora_rest.openapi_text().decode())


def misfits(schema: Any, value: Any, where: Any = "answer") -> Any:
    """Where a value does not fit a JSON schema, of which the parts that the description uses are known."""
    if "$ref" in schema:
        target = DESCRIPTION
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        return misfits(target, value, where)
    if "anyOf" in schema:
        found = [list(misfits(each, value, where)) for each in schema["anyOf"]]
        return [] if not all(found) else found[0]
    kinds: Any = {"string": str, "boolean": bool, "null": type(None), "object": dict, "array": list,
             "integer": int,
             "number": (int, float)}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, kinds[each])
                          and (not isinstance(value, bool) or each == "boolean")
                          for each in wanted):
        return ["%s: %r is no %s" % (where, value, " or ".join(wanted))]
    wrong = []
    if "const" in schema and value != schema["const"]:
        wrong.append("%s: %r is not %s" % (where, value, schema["const"]))
    if "enum" in schema and value not in schema["enum"]:
        wrong.append("%s: %r is none of %s" % (where, value, schema["enum"]))
    if isinstance(value, list):
        for number, each in enumerate(value):
            wrong += misfits(schema.get("items", {}), each, "%s[%d]" % (where, number))
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        others = {} if others is True else others
        wrong += ["%s.%s is missing" % (where, name) for name in schema.get("required", ())
                  if name not in value]
        for name, each in value.items():
            inner = properties.get(name, others)
            # What nobody described is as wrong as what does not fit.
            wrong += ["%s.%s is not described" % (where, name)] if properties and name not in properties and (
                "additionalProperties" not in schema) else []
            wrong += misfits(inner, each, "%s.%s" % (where, name))
    return wrong


def undescribed(method: Any, path: Any, answer: Any) -> Any:
    """How an answer of the server departs from what the description says of its request."""
    try:
        routes, _ = aurora_rest._match(urllib.parse.unquote(path.partition("?")[0]))
    except aurora_rest.AuroraError:
        return []
    chosen = routes.get("GET" if method == "HEAD" else method)
    kind = answer.headers.get("content-type", "")
    if chosen is None or method == "HEAD" or not answer.body or not kind.startswith("application/json") or (
            "content-encoding" in answer.headers):
        return []
    described = DESCRIPTION["paths"][chosen.path.replace("{key}",
            "{cluster}/{role}/{environment}/{name}")][method.lower()]
    stated = described["responses"].get(str(answer.status))
    if stated is None and answer.status < 400:
        return ["%d is no answer of %s %s" % (answer.status, method, chosen.path)]
    schema = (stated or {}).get("content", {}).get("application/json", {}).get("schema", {
        "$ref": "#/components/schemas/Failure"})
    return misfits(schema, answer.json)


class Answer:
    """An HTTP answer: status, headers (lower case), body, and the body as JSON."""

    def __init__(self, status: Any, headers: Any, body: Any) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body.decode())

    def __repr__(self) -> Any:
        return "%d %s" % (self.status, self.body[:400])


def ask(server: Any, method: Any, path: Any, body: Any = None, timeout: Any = 30, **headers: Any) -> Any:
    """One request on a connection of its own. Header names have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name,
                                                value in headers.items()})
        answer = connection.getresponse()
        made = Answer(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()
    if isinstance(server, aurora_rest.Server):
        wrong = undescribed(method, path, made)
        if wrong:
            raise AssertionError("%s %s: %s\n%s" % (method, path, "; ".join(wrong[:5]), made))
    return made


def raw(server: Any, data: Any, half_close: Any = False, timeout: Any = 10) -> Any:
    """Send bytes as they are; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as sock:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        parts = []
        with contextlib.suppress(ConnectionError):
            while True:
                part = sock.recv(65536)
                if not part:
                    break
                parts.append(part)
        return b"".join(parts)


def statuses(data: Any) -> Any:
    """The status codes in a raw exchange."""
    return [int(each) for each in re.findall(rb"^HTTP/1\.1 (\d+)", data, re.MULTILINE)]


def source(name: Any = "hello", command: Any = "serve", extra: Any = "", role: Any = "www-data",
           environment: Any = "devel", kind: Any = "Service") -> Any:
    return ("p = Process(name='p', cmdline=%r)\n"
            "t = SequentialTask(processes=[p], resources=Resources(cpu=0.1, ram=32*MB, disk=32*MB))\n"
            "jobs = [%s(cluster='devcluster', role=%r, environment=%r, name=%r, task=t%s)]\n" % (
                command, kind, role, environment, name, ", " + extra if extra else ""))


def load(text: Any, key: Any = "devcluster/www-data/devel/hello", **options: Any) -> Any:
    return aurora_rest.load_job(text, key, **dict({"evaluator": EVALUATOR}, **options))


def config(name: Any = "hello", command: Any = "serve", count: Any = 1, service: Any = True,
           **changes: Any) -> Any:
    """A JobConfiguration for the demo, without a detour through pystachio."""
    key = api.JobKey(role="www-data", environment="devel", name=name)
    data = {"task": {"processes": [{"name": "p", "cmdline": command}]}}
    task = api.TaskConfig(
        job=key, owner=api.Identity(user="www-data"), isService=service, priority=0, maxTaskFailures=1,
        tier="preemptible", production=False, constraints=set(), metadata=set(), taskLinks={},
        resources={api.Resource(numCpus=0.1), api.Resource(ramMb=32), api.Resource(diskMb=32)},
        executorConfig=api.ExecutorConfig(name="AuroraExecutor", data=json.dumps(data)))
    for field, value in changes.items():
        setattr(task, field, value)
    return api.JobConfiguration(key=key, owner=task.owner, taskConfig=task, instanceCount=count)


def cron_config(name: Any) -> Any:
    return config(name, service=False).replace(cronSchedule="0 3 * * *", cronCollisionPolicy=0)


def update_request(job: Any, count: Any = None, **settings: Any) -> Any:
    given = dict(updateGroupSize=1, maxPerInstanceFailures=0, maxFailedInstances=0,
                 minWaitInInstanceRunningMs=1000,
                 rollbackOnFailure=True)
    given.update(settings)
    return api.JobUpdateRequest(taskConfig=job.taskConfig, instanceCount=count or job.instanceCount,
                                settings=api.JobUpdateSettings(**given), metadata=set())


LIMITS = {name: limit.default for name, limit in aurora_rest.LIMITS.items()}


class Serving(unittest.TestCase):
    """A server on a demo scheduler, for a class of tests. SPEED 0: time stands still until demo.advance."""
    SPEED = 0.0
    OPTIONS: Any = {}
    demo: Any
    server: Any
    scheduler: Any
    lines: Any

    @classmethod
    def setUpClass(cls) -> None:
        cls.lines = []
        cls.demo = aurora_rest.Demo(speed=cls.SPEED)
        cls.server = aurora_rest.Server(port=0, demo=cls.demo, evaluator=cls.evaluator(),
                                        log=cls.lines.append,
                                        **dict({"poll_interval": 0.05}, **cls.OPTIONS)).start()
        cls.scheduler = cls.server.service.clusters["devcluster"]
        cls.demo.advance(10)

    @classmethod
    def evaluator(cls) -> Any:
        """The shared one: a server that stops closes its evaluator, which must not end the others'."""
        shared: Any = aurora_rest.Evaluator.__new__(aurora_rest.Evaluator)
        shared.__dict__ = dict(EVALUATOR.__dict__)
        shared.close = lambda: None
        shared.evaluate = EVALUATOR.evaluate
        return shared

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.stop(1.0)

    def ask(self, method: Any, path: Any, body: Any = None, **headers: Any) -> Any:
        return ask(self.server, method, path, body, **headers)

    def good(self, method: Any, path: Any, body: Any = None, status: Any = 200, **headers: Any) -> Any:
        answer = self.ask(method, path, body, **headers)
        self.assertEqual((answer.status, answer.json["status"]), (status, "success"), answer)
        return answer.json

    def bad(self, status: Any, method: Any, path: Any, body: Any = None, code: Any = None, says: Any = None,
            **headers: Any) -> Any:
        answer = self.ask(method, path, body, **headers)
        self.assertEqual(answer.status, status, answer)
        plain = answer.json
        self.assertEqual(plain["status"], "failure")
        self.assertTrue(plain["errors"] and all(isinstance(each, str) and each for each in plain["errors"]),
                        plain)
        self.assertNotIn("Traceback", answer.body.decode())
        if code:
            self.assertEqual(plain["code"], code)
        if says:
            self.assertRegex(" ".join(plain["errors"]), says)
        return plain

    def states(self, name: Any, active: Any = True) -> Any:
        """Names of the states of a job's tasks, by instance."""
        tasks = aurora_rest.query_tasks(self.scheduler,
                                        aurora_rest.Key("devcluster", "www-data", "devel", name))
        return [S.name_of(task["status"]) for task in tasks if aurora_rest.is_active(task) or not active]


class FakeScheduler:
    """A real socket that misbehaves as told: `script` gets (socket, request body) for each request that
    arrives; it answers, and returns True to go on with the connection. Counts what arrived."""

    def __init__(self, script: Any, tls: Any = None) -> None:
        self.script = script
        self.tls = tls
        self.requests: Any = []
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.socket.getsockname()[1]
        self._open: Any = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: Any) -> None:
        with contextlib.suppress(OSError), self.tls.wrap_socket(sock,
                server_side=True) if self.tls else sock as sock:
            while True:
                data = b""
                while b"\r\n\r\n" not in data:
                    part = sock.recv(65536)
                    if not part:
                        return
                    data += part
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(matched(rb"Content-Length: (\d+)|$", head).group(1) or 0)
                while len(body) < length:
                    body += sock.recv(65536)
                self.requests.append((head, body))
                if not self.script(sock, body):
                    return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)      # ends a waiting accept
        self.socket.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class FakeZooKeeper:
    """A client of ZooKeeper as ZooKeeperLocator uses one. members: name → URL, None for what is no member; or
    what is raised instead."""

    def __init__(self, members: Any) -> None:
        self.members = members
        self.asked = self.started = self.stopped = 0
        self.hang: Any = None
        self._watch = lambda event: None

    def change(self, members: Any) -> None:
        self.members = members
        self._watch(None)

    def add_listener(self, listener: Any) -> None:
        self._listener = listener

    def start_async(self) -> Any:
        self.started += 1
        connected = threading.Event()
        connected.set()
        return connected

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        pass

    def get_children_async(self, path: Any, watch: Any) -> Any:
        self.asked += 1
        self._watch = watch
        return self._answer(lambda: list(self.members))

    def exists_async(self, path: Any, watch: Any) -> Any:
        return self._answer(lambda: None, True)

    def get_async(self, path: Any) -> Any:
        url = self.members[path.rpartition("/")[2]]
        end = urllib.parse.urlsplit(url or "")
        return self._answer(lambda: (b"odd" if url is None else json.dumps(
            {"serviceEndpoint": {"host": end.hostname, "port": end.port}}).encode(), None))

    def _answer(self, make: Any, always: Any = False) -> Any:
        def get(timeout: Any) -> Any:
            if self.hang:
                self.hang.wait(timeout)
            if isinstance(self.members, Exception) and not always:
                raise self.members
            return make()
        return type("Answer", (), {"get": staticmethod(get)})


def http_answer(status: Any, body: Any = b"", *headers: Any) -> Any:
    lines = ["HTTP/1.1 %d X" % status, "Content-Length: %d" % len(body)] + list(headers)
    return "\r\n".join(lines + ["", ""]).encode() + body


def thrift_answer(body: Any, code: Any = 1, result: Any = None, details: Any = ()) -> Any:
    """A 200 answer to the Thrift call in `body`."""
    name, sequence, _ = aurora_rest.decode_call(BINARY, body)
    response = api.Response(responseCode=code, result=result, serverInfo=api.ServerInfo(clusterName="fake"),
                            details=[api.ResponseDetail(message=text) for text in details])
    return http_answer(200, aurora_rest.encode_reply(BINARY, name, sequence, response))


def answering(make: Any) -> Any:
    """A script that answers every request with make(body)."""
    def script(sock: Any, body: Any) -> Any:
        sock.sendall(make(body))
        return True
    return script


def large_reply(filling: Any, end: Any = 0) -> Any:
    """The bytes of a getJobs reply of 600 kB."""
    jobs = [config("job", filling.decode() * 600000, 1), config("end", "x", end + 1)]
    return aurora_rest.encode_reply(BINARY, "getJobs", 0,
                                    api.Response(responseCode=1, details=[], result=api.Result(
        getJobsResult=api.GetJobsResult(configs=jobs))))


def tiers_answer(body: Any) -> Any:
    return thrift_answer(body, result=api.Result(getTierConfigResult=api.GetTierConfigResult.from_plain(
        aurora_rest.DEFAULT_TIERS)))


def certificate(folder: Any) -> Any:
    """Paths of a new certificate for localhost and its key."""
    cert, key = os.path.join(folder, "cert"), os.path.join(folder, "key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
                    "-days", "1",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True,
                    capture_output=True)
    return cert, key


def free_port() -> Any:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# --- 1. Thrift API ------------------------------------------------------------------------------------------

def filled(cls: Any, depth: Any = 0) -> Any:
    """An instance with every field set; one element a container, so that the order of sets says nothing."""
    made = cls()
    for name, kind in cls.fields.items():
        setattr(made, name, filled_value(kind, name, depth))
        if cls.is_union and getattr(made, name) is not None:
            break
    return made


def filled_value(kind: Any, name: Any, depth: Any) -> Any:
    if kind.kind == "struct":
        return filled(kind.ref, depth + 1) if depth < 12 else None
    if kind.kind == "enum":
        return sorted(kind.ref.names)[-1]
    if kind.kind == "list":
        return [filled_value(kind.items[0], name, depth)]
    if kind.kind == "set":
        return {filled_value(kind.items[0], name, depth)}
    if kind.kind == "map":
        return {"kéy": filled_value(kind.items[1], name, depth)}
    return {"bool": True, "i32": -7, "i64": 1 << 40, "double": 2.5, "string": "ü-" + name}[kind.kind]


class ThriftTest(unittest.TestCase):
    def test_structs_can_be_pickled(self) -> None:
        task = api.TaskConfig(job=api.JobKey(role="r", environment="e", name="n"), constraints={
            api.Constraint(name="host", constraint=api.TaskConstraint(limit=api.LimitConstraint(limit=1)))})
        self.assertEqual(pickle.loads(pickle.dumps(task)), task)

    def test_structs_in_a_set_are_told_apart_by_what_is_deep_in_them(self) -> None:
        one, other = config("a"), config("b")
        self.assertEqual((hash(one), one), (hash(config("a")), config("a")))
        self.assertNotEqual(hash(one), hash(other))
        self.assertEqual(len({hash(config("a", "run %d" % number)) for number in range(50)}), 50)
        self.assertEqual(hash(api.Attribute("rack", {"a"})), hash(api.Attribute("rack", {"b"})))
        self.assertEqual(len({api.Attribute("rack", {"a"}), api.Attribute("rack", {"b"})}), 2)

    def test_the_idl_holds_96_types_and_45_methods(self) -> None:
        self.assertEqual((len(api.type_names), len(api.method_names)), (96, 45))
        levels = [api.method(name).access for name in api.method_names]
        self.assertEqual([levels.count(each) for each in aurora_rest.LEVELS], [13, 0, 14, 18])
        self.assertIn("ipAddr", api.Resource.fields)

    def test_every_struct_survives_both_protocols_and_plain_json(self) -> None:
        for name in api.type_names:
            cls = getattr(api, name)
            if isinstance(cls, aurora_rest.Enum):
                continue
            value = filled(cls)
            for media in (BINARY, aurora_rest.TJSON):
                protocol = aurora_rest._protocol(media)
                value.write(protocol)
                again = cls()
                again.read(aurora_rest._protocol(media, protocol.trans.getvalue()))
                self.assertEqual(again, value)
            self.assertEqual(cls.from_plain(json.loads(json.dumps(value.to_plain()))), value)

    @unittest.skipUnless(shutil.which("thrift"), "needs the Thrift compiler: apt-get install thrift-compiler")
    def test_bytes_are_those_of_the_compilers_code(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "api.thrift"), "w", encoding="utf-8") as stream:
                stream.write(aurora_rest.IDL)
            subprocess.run(["thrift", "--gen", "py", "-o", folder, os.path.join(folder, "api.thrift")],
                           check=True)
            sys.path.insert(0, os.path.join(folder, "gen-py"))
            try:
                ttypes = importlib.import_module("aurora.ttypes")
            finally:
                del sys.path[0]
            for name in api.type_names:
                cls = getattr(api, name)
                if not isinstance(cls, aurora_rest.Enum):
                    self._compare(cls, ttypes)

    def _compare(self, cls: Any, ttypes: Any) -> None:
        value = filled(cls)
        theirs = self._translate(value, ttypes)
        for media in (BINARY, aurora_rest.TJSON):
            mine, other = aurora_rest._protocol(media), aurora_rest._protocol(media)
            mine._fast_encode = other._fast_encode = None
            value.write(mine)
            theirs.write(other)
            self.assertEqual(mine.trans.getvalue(), other.trans.getvalue(), cls)
            again = cls()
            again.read(aurora_rest._protocol(media, other.trans.getvalue()))
            self.assertEqual(again, value)

    def _translate(self, value: Any, ttypes: Any) -> Any:
        """Our struct as one of the compiler's classes, which cannot be put in a set: lists encode as sets
        do."""
        if isinstance(value, aurora_rest.ThriftStruct):
            cls = getattr(ttypes, type(value).__name__)
            return cls(**{f: self._translate(getattr(value, f), ttypes) for f in value.fields})
        if isinstance(value, (set, list)):
            return [self._translate(each, ttypes) for each in value]
        return value

    def test_a_projection_decodes_only_what_it_names_with_or_without_the_c_decoder(self) -> None:
        jobs = {config("a").replace(instanceCount=3), config("b")}
        response = api.Response(responseCode=1, details=[], result=api.Result(
            getJobsResult=api.GetJobsResult(configs=jobs)))
        wanted = {"www-data/devel/a", "www-data/devel/b"}
        for media in (BINARY, aurora_rest.TJSON):
            data = aurora_rest.encode_reply(media, "getJobs", 0, response)
            found = aurora_rest.decode_reply(media, "getJobs", data, aurora_rest.projection("job keys"))
            self.assertEqual(found["result"]["getJobsResult"]["configs"], wanted)

    def test_plain_json_errors_name_the_field(self) -> None:
        for plain, says in (
                ({"taskConfig": {"priority": "x"}}, "description.taskConfig.priority: expected an integer"),
                ({"taskConfig": {"priority": True}}, "description.taskConfig.priority: expected an integer"),
                ({"instanceCount": 1 << 31}, "description.instanceCount: does not fit into 32 bits"),
                ({"nonsense": 1}, "description.nonsense: unknown field"),
                ({"cronCollisionPolicy": "MAYBE"}, "description.cronCollisionPolicy: expected one of"),
                ({"taskConfig": {"resources": [{"numCpus": 1, "ramMb": 2}]}},
                 r"resources\[0\]: expected an object with one"),
                ({"key": []}, "description.key: expected an object")):
            with self.assertRaisesRegex(aurora_rest.PlainError, says):
                api.JobConfiguration.from_plain(plain, "description")

    def test_hostile_bytes_are_refused_as_bad_messages(self) -> None:
        good = aurora_rest.encode_reply(BINARY, "getJobs", 0, api.Response(responseCode=1))
        head = good[:good.index(b"\x0c")]
        for tail in (b"\x0c\0\0" + b"\x0c\0\x02" * 10000, b"\x0b\0\0" + struct.pack("!i", 2 ** 31 - 1),
                     b"\x0c\0\0\x0f\0\x06\x0c" + struct.pack("!i", 2 ** 31 - 1), b"", b"\x0c",
                     b"\x0c\0\0\x0f\0\x06\x0c" + struct.pack("!i", -5)):
            with self.assertRaises(aurora_rest.BadMessage):
                aurora_rest.decode_reply(BINARY, "getJobs", head + tail)
        for data in (b"", b"<html>", good[:-3], b"\x80\x01\0\x02" + b"\xff" * 40):
            with self.assertRaises(aurora_rest.BadMessage):
                aurora_rest.decode_reply(BINARY, "getJobs", data)


# --- 2. Scheduler -------------------------------------------------------------------------------------------

class SchedulerTest(unittest.TestCase):
    def test_a_late_answer_to_another_question_is_not_taken_for_this_one(self) -> None:
        """A proxy that sends an answer twice: the second one lies there when the next question comes."""
        late: Any = []

        def script(sock: Any, body: Any) -> bool:
            role = next(each for each in ("one", "two", "three") if each.encode() in body)
            made = thrift_answer(body,
                                 result=api.Result(getJobsResult=api.GetJobsResult(configs=[config(role)])))
            sock.sendall(late.pop() if late else made)
            late.append(made)
            return True
        with FakeScheduler(script) as fake:
            scheduler = aurora_rest.Scheduler(fake.url)
            self.addCleanup(scheduler.close)
            self.assertEqual(aurora_rest.list_jobs(scheduler, "one"), ["www-data/devel/one"])
            for role in ("two", "three"):
                with contextlib.suppress(aurora_rest.SchedulerUnreachable):
                    self.assertEqual(aurora_rest.list_jobs(scheduler, role), ["www-data/devel/" + role])

    def test_an_answer_that_lacks_what_it_has_to_have_is_no_answer(self) -> None:
        answers: Any = {
            b"getConfigSummary": api.Result(configSummaryResult=api.ConfigSummaryResult()),
            b"getJobSummary": api.Result(jobSummaryResult=api.JobSummaryResult(summaries={api.JobSummary()})),
            b"getTasksWithoutConfigs": api.Result(scheduleStatusResult=api.ScheduleStatusResult(
                tasks=[api.ScheduledTask(status=2)]))}

        def answer(body: bytes) -> Any:
            return thrift_answer(body, result=answers[body[8:8 + body[7]]])
        key = aurora_rest.Key("c", "r", "e", "n")
        with FakeScheduler(answering(answer)) as fake:
            scheduler = aurora_rest.Scheduler(fake.url)
            self.addCleanup(scheduler.close)
            works: Any = (lambda: aurora_rest.running_configs(scheduler, key),
                          lambda: aurora_rest.list_summaries(scheduler),
                          lambda: aurora_rest.query_tasks(scheduler, key),
                          lambda: aurora_rest.probe_hosts(scheduler, None, 95.0, 60.0, 1, 0.0))
            for work in works:
                with self.assertRaisesRegex(aurora_rest.BadAnswer, "lacks what it has to have"):
                    work()

    def scheduler(self, *urls: Any, **options: Any) -> Any:
        made = aurora_rest.Scheduler(list(urls), "fake",
                                     **dict({"timeout": 2.0, "retry_for": 0.5}, **options))
        self.addCleanup(made.close)
        return made

    def fake(self, script: Any) -> Any:
        made = FakeScheduler(script)
        self.addCleanup(made.close)
        return made

    def fails(self, error: Any, fake: Any, method: Any = "getTierConfigs", *arguments: Any,
              **options: Any) -> Any:
        scheduler = self.scheduler(fake.url if hasattr(fake, "url") else fake, **options)
        started = time.monotonic()
        with self.assertRaises(error) as caught:
            scheduler.call(method, *arguments)
        self.assertLess(time.monotonic() - started, 4.0)
        self.assertEqual((scheduler.semaphore.inside, scheduler.semaphore.waiting), (0, 0))
        return caught.exception

    def test_a_prune_that_matches_nothing_is_never_sent(self) -> None:
        demo = aurora_rest.Demo(speed=0)
        scheduler = self.scheduler(demo.start())
        self.addCleanup(demo.stop)
        demo.advance(5)
        running = len(demo._tasks)
        for query in (api.TaskQuery(role="nobody"), api.TaskQuery(),
                      api.TaskQuery(role="www-data", statuses={S.FAILED}), None):
            answer = scheduler.pruneTasks(query)
            self.assertIn("nothing was sent", answer.details[0].message)
        for limit in (0, -1):
            with self.assertRaises(aurora_rest.BadRequest):
                scheduler.pruneTasks(api.TaskQuery(limit=limit))
        with self.assertRaises(aurora_rest.BadRequest):
            scheduler.pruneTasks(api.TaskQuery(statuses={S.RUNNING}))
        self.assertEqual((len(demo._tasks), demo.calls["pruneTasks"]), (running, 0))
        scheduler.killTasks(api.JobKey(role="www-data", environment="prod", name="hello"), None, None)
        demo.advance(5)
        scheduler.pruneTasks(api.TaskQuery(role="www-data", limit=1))
        self.assertEqual((len(demo._tasks), demo.calls["pruneTasks"]), (running - 1, 1))
        demo.invoke("pruneTasks", api.method("pruneTasks").arguments(api.TaskQuery(role="nobody")))
        self.assertEqual(len(demo._tasks), 0)       # what Aurora itself does

    def test_an_empty_set_of_instances_is_never_sent(self) -> None:
        fake = self.fake(answering(thrift_answer))
        scheduler = self.scheduler(fake.url)
        key = aurora_rest.Key("c", "r", "e", "n")
        for write in (lambda: scheduler.killTasks(key.thrift, set(), None),
                      lambda: scheduler.killTasks(key.thrift, [], None),
                      lambda: scheduler.restartShards(key.thrift, set()),
                      lambda: scheduler.call("killTasks", instances=())):
            with self.assertRaisesRegex(aurora_rest.BadRequest, "empty set"):
                write()
        for size in (0, -1):
            operation = aurora_rest.Operation("kill", "k", "u")
            operation.run(lambda op, size=size: aurora_rest.batched_kill(  # type: ignore[misc]
                scheduler, key, [1, 2], size, 1.0, 0.01, operation=op))
            self.assertEqual(operation.state, "failed")
            options = aurora_rest.RestartOptions(batch_size=size)
            operation = aurora_rest.Operation("restart", "k", "u")
            operation.run(lambda op, options=options: aurora_rest.rolling_restart(  # type: ignore[misc]
                scheduler, key, [1, 2], options, op))
            self.assertEqual(operation.state, "failed")
        self.assertEqual(fake.requests, [])

    def test_credentials_go_only_to_schedulers_that_the_cluster_names(self) -> None:
        stranger = self.fake(answering(tiers_answer))
        named = self.fake(answering(lambda body: http_answer(307, b"", "Location: %s/api" % stranger.url)))
        with self.assertRaisesRegex(aurora_rest.BadAnswer, "none of the cluster's schedulers"):
            self.scheduler(named.url, authorization="Basic secret").getTierConfigs()
        with self.assertRaisesRegex(aurora_rest.BadAnswer, "none of the cluster's schedulers"):
            self.scheduler(named.url).call("getTierConfigs", authorization="Basic caller")
        self.assertEqual(stranger.requests, [])
        mixed = self.scheduler(named.url)
        mixed.getTierConfigs()          # without credentials there is nothing to lose
        self.assertIsNone(mixed.probe(2.0))
        asked = len(stranger.requests)
        for _ in range(2):              # but who is followed so is no leader for those who have some
            with self.assertRaisesRegex(aurora_rest.BadAnswer, "none of the cluster's schedulers"):
                mixed.call("getTierConfigs", authorization="Basic caller")
        self.assertEqual(len(stranger.requests), asked)
        by_host = self.scheduler(named.url, stranger.url, authorization={"127.0.0.1": "Basic one"}.get)
        by_host.getTierConfigs()
        self.assertIn(b"Authorization: Basic one", stranger.requests[-1][0])
        replaced = [named.url]
        moved = self.scheduler(locate=lambda seconds: replaced, authorization="Basic own")
        named.script = answering(tiers_answer)
        moved.getTierConfigs()
        replaced[:] = [stranger.url]
        moved.leadership.told(replaced)
        moved.getTierConfigs()          # ZooKeeper names another one now
        self.assertEqual(moved.leader, stranger.url)

    def test_the_doubt_of_any_attempt_is_told(self) -> None:
        def first_then(later: Any) -> Any:
            def script(sock: Any, body: Any) -> Any:
                if len(fake.requests) == 1:
                    return False            # took it, perhaps did it, and says nothing
                sock.sendall(later(body))
                return True
            fake = self.fake(script)
            return fake
        later = (lambda body: thrift_answer(body, api.ResponseCode.INVALID_REQUEST,
                                            details=["Not all shards are active."]),
                 lambda body: http_answer(503), lambda body: http_answer(401),
                 lambda body: thrift_answer(body, 6))
        for answer in later:
            with self.assertRaises(aurora_rest.AuroraError) as caught:
                self.scheduler(first_then(answer).url).restartShards(api.JobKey(), {1})
            self.assertEqual(caught.exception.details.get("done"), "unknown", caught.exception)
        nonsense = (lambda body: http_answer(200, b"<html>"), lambda body: http_answer(200, b""),
                    lambda body: http_answer(404),
                    lambda body: http_answer(500), lambda body: http_answer(502),
                    lambda body: thrift_answer(body, 99),
                    lambda body: http_answer(200, thrift_answer(body).split(b"\r\n\r\n", 1)[1][:-9]))
        for answer in nonsense:
            error = self.fails(aurora_rest.AuroraError, self.fake(answering(answer)), "killTasks",
                               api.JobKey(), None, None)
            self.assertEqual(error.details.get("done"), "unknown", error)
            self.assertIn("killTasks may still take effect", error.messages[-1])
        for answer in later[1:]:        # the scheduler says that nothing was done
            error = self.fails(aurora_rest.AuroraError, self.fake(answering(answer)), "killTasks",
                               api.JobKey(), None, None)
            self.assertNotIn("done", error.details)
        refused = self.fails(aurora_rest.AuroraError, self.fake(answering(later[0])), "killTasks",
                             api.JobKey(), None, None)
        self.assertNotIn("done", refused.details)
        nobody = self.fails(aurora_rest.SchedulerUnreachable, "http://127.0.0.1:%d" % free_port(),
                            "killTasks", api.JobKey())
        self.assertNotIn("done", nobody.details)

    def test_a_repeated_update_finds_its_own_before_it_says_unchanged(self) -> None:
        requests = []

        def script(sock: Any, body: Any) -> Any:
            name, _, protocol = aurora_rest.decode_call(BINARY, body)
            if name == "startJobUpdate":
                arguments = api.method(name).arguments()
                arguments.read(protocol)
                requests.append(arguments.request)
                if len(requests) == 1:
                    # did it, and its answer is lost; it is over before the second one comes
                    return False
                sock.sendall(thrift_answer(body, details=["Job is unchanged by proposed update."]))
                return True
            summary = api.JobUpdateSummary(key=api.JobUpdateKey(job=config().key, id="mine"),
                                           metadata=requests[0].metadata)
            sock.sendall(thrift_answer(body,
                    result=api.Result(getJobUpdateSummariesResult=api.GetJobUpdateSummariesResult(
                updateSummaries=[summary]))))
            return True
        fake = self.fake(script)
        settings = update_request(config()).settings
        job = aurora_rest.Job("c/www-data/devel/hello", config(), settings, [], [])
        self.assertEqual(aurora_rest.start_update(self.scheduler(fake.url), job).id, "mine")

    def test_an_error_without_a_message_is_an_error_in_projected_reads_too(self) -> None:
        fake = self.fake(answering(lambda body: thrift_answer(body, 2, details=[None])))
        with self.assertRaises(aurora_rest.SchedulerFailed):
            aurora_rest.list_jobs(self.scheduler(fake.url))

    def test_a_refusal_is_not_longer_than_can_be_read(self) -> None:
        fake = self.fake(answering(lambda body: thrift_answer(body, 0, details=["x" * 9000])))
        error = self.fails(aurora_rest.Refused, fake)
        self.assertRegex(error.messages[0], "^x{1000} … .8000 characters more.$")

    def test_interim_answers_and_trailers_are_passed_over(self) -> None:
        def script(sock: Any, body: Any) -> Any:
            reply = thrift_answer(body).split(b"\r\n\r\n", 1)[1]
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
                         b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\nX-Sum: "
                         b"1\r\nY: 2\r\n\r\n" % (
                             len(reply), reply))
            return True
        fake = self.fake(script)
        scheduler = self.scheduler(fake.url)
        for _ in range(2):
            scheduler.killTasks(api.JobKey(), None, None)
        self.assertEqual(fake.connections, 1)

    def test_an_outage_shorter_than_the_time_for_retries_is_not_seen_by_who_tried_before_it_ended(
        self) -> None:
        port = free_port()
        scheduler = self.scheduler("http://127.0.0.1:%d" % port, retry_for=5.0, timeout=10.0)
        outcomes = []

        def work() -> None:
            try:
                outcomes.append(scheduler.getTierConfigs() and "OK")
            except aurora_rest.AuroraError as error:
                outcomes.append(error.code)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        wait_for(lambda: scheduler.network.circuit_breaks)
        with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable,
                                    "127.0.0.1:%d failed . times in a row, at last with: .*refused" % port):
            scheduler.getTierConfigs()      # who comes now fails at once, and is told why
        demo = aurora_rest.Demo(samples=False)
        demo.start(port)
        self.addCleanup(demo.stop)
        for each in threads:
            each.join()
        self.assertEqual(outcomes, ["OK"] * 4)

    def test_the_circuit_opens_for_a_leader_that_is_dead_behind_a_follower(self) -> None:
        dead = "http://127.0.0.1:%d" % free_port()
        follower = self.fake(answering(lambda body: http_answer(307, b"", "Location: %s/api" % dead)))
        scheduler = self.scheduler(follower.url, retry_for=0.0)
        for _ in range(8):
            with self.assertRaises(aurora_rest.SchedulerUnreachable):
                scheduler.getTierConfigs()
        self.assertGreater(scheduler.network.circuit_breaks, 0)

    def locator(self, client: Any, **cluster: Any) -> Any:
        return aurora_rest.ZooKeeperLocator(aurora_rest.Cluster(**dict(
            {"name": "west", "zk": "zk:1", "zk_path": "/s"}, **cluster)), lambda cluster: client)

    def test_the_leader_that_zookeeper_names_is_followed_with_one_session(self) -> None:
        leaders = [self.fake(answering(tiers_answer)) for _ in range(2)]
        client = FakeZooKeeper({"member_1": leaders[0].url, "odd": "x", "member_0": None})
        scheduler = self.scheduler(locate=self.locator(client))
        for _ in range(3):
            scheduler.getTierConfigs()
        self.assertEqual((scheduler.leader, client.asked), (leaders[0].url, 1))
        client.change({"member_2": leaders[1].url})
        wait_for(lambda: scheduler.state()["schedulers"] == [leaders[1].url])
        scheduler.getTierConfigs()
        self.assertEqual((scheduler.leader, len(leaders[0].requests), client.started), (leaders[1].url, 3, 1))
        client.change({})
        wait_for(lambda: scheduler.state()["schedulers"] == [])
        self.assertEqual(self.fails_with(aurora_rest.NoLeader, scheduler).retry_after, 5)
        self.assertIsNone(scheduler.state()["leader"])
        scheduler.close()
        wait_for(lambda: client.stopped)

    def test_without_zookeeper_the_last_leader_goes_on(self) -> None:
        leader = self.fake(answering(tiers_answer))
        client = FakeZooKeeper({"member_1": leader.url})
        scheduler = self.scheduler(locate=self.locator(client))
        scheduler.getTierConfigs()
        client.change(RuntimeError(""))
        wait_for(lambda: "RuntimeError" in (scheduler.state()["zookeeper"] or ""))
        scheduler.leadership.forget()
        scheduler.getTierConfigs()
        self.assertEqual(scheduler.state()["leader"], leader.url)
        client.change({"member_1": leader.url})
        wait_for(lambda: scheduler.state()["zookeeper"] is None)

    def test_what_becomes_of_the_leader_the_circuit_and_zookeeper_is_told(self) -> None:
        leaders = [self.fake(answering(tiers_answer)) for _ in range(2)]
        client = FakeZooKeeper({"member_1": leaders[0].url})
        scheduler = self.scheduler(locate=self.locator(client), retry_for=0.0)
        told: Any = []
        scheduler.tell_to(told.append)
        scheduler.getTierConfigs()
        client.change({"member_1": leaders[1].url})
        wait_for(lambda: scheduler.leadership.named[0]
                 and str(scheduler.leadership.named[0]) == leaders[1].url)
        scheduler.getTierConfigs()
        self.assertEqual([str(each) for each in told], [
            "leader cluster=fake leader=%s before=-" % leaders[0].url,
            "leader cluster=fake leader=%s before=%s" % (leaders[1].url, leaders[0].url)])
        del told[:]
        client.change(RuntimeError("gone"))
        wait_for(lambda: told)
        self.assertEqual((told[0].name, told[0].fields["state"]), ("zookeeper", "lost"))
        client.change({"member_1": leaders[1].url})
        wait_for(lambda: len(told) > 1)
        self.assertEqual(told[1].fields["state"], "back")
        del told[:]
        leaders[1].script = lambda sock, body: False
        for _ in range(5):
            with self.assertRaises(aurora_rest.AuroraError):
                scheduler.call("createJob", config())
        leaders[1].script = answering(tiers_answer)
        wait_for(lambda: scheduler.probe(1.0) is None)
        self.assertEqual([(each.name, each.fields["state"]) for each in told],
                         [("circuit", "open"), ("circuit", "closed")])

    def test_members_that_are_none_are_passed_over(self) -> None:
        leader = self.fake(answering(tiers_answer))
        ends: Any = [{"host": "a:b", "port": 8081}, {"host": "1:2:3", "port": 1},
                     {"host": "h", "port": 1e999},
                     {"host": "h", "port": 0}, {"host": "h"}, None]
        for end in ends:
            self.assertIsNone(aurora_rest.member_url(json.dumps({"serviceEndpoint": end}).encode()), end)
        self.assertEqual(aurora_rest.member_url(b'{"serviceEndpoint": {"host": "::1", "port": 2}}'),
                         "http://[::1]:2")
        client = FakeZooKeeper({"member_1": leader.url})
        locator = self.locator(client)
        scheduler = self.scheduler(locate=locator)
        scheduler.getTierConfigs()
        locator.moved = mock.Mock(side_effect=ValueError("odd"))        # whatever it is, it goes on
        client.change({"member_1": leader.url})
        wait_for(lambda: "odd" in (scheduler.state()["zookeeper"] or ""))
        locator.moved = lambda urls: None
        client.change({"member_1": leader.url})
        wait_for(lambda: scheduler.state()["zookeeper"] is None)

    def test_a_znode_that_is_missing_or_may_not_be_read_says_so(self) -> None:
        for kind, says in (("NoNodeError", "there is no znode /s; is it the cluster's scheduler_zk_path"),
                           ("NoAuthError", "the znode /s may not be read"), ("Weird", "Weird$")):
            client = FakeZooKeeper(type(kind, (Exception,), {})())
            scheduler = self.scheduler(locate=self.locator(client))
            self.assertRegex(str(self.fails_with(aurora_rest.SchedulerUnreachable, scheduler)), says)
            self.assertRegex(scheduler.state()["error"], "^SCHEDULER_UNREACHABLE: .*" + says)
            scheduler.close()

    def fails_with(self, error: Any, scheduler: Any) -> Any:
        with self.assertRaises(error) as caught:
            scheduler.getTierConfigs()
        return caught.exception

    def test_a_look_up_lasts_no_longer_than_the_call_and_many_share_it(self) -> None:
        client = FakeZooKeeper({})
        client.hang = threading.Event()
        self.addCleanup(client.hang.set)
        scheduler = self.scheduler(locate=self.locator(client), timeout=0.3, parallel=8)
        errors = []
        threads = [threading.Thread(target=lambda: errors.append(type(self.fails_with(
            aurora_rest.AuroraError, scheduler)).__name__)) for _ in range(8)]
        started = time.monotonic()
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual((errors, client.asked), (["SchedulerTimeout"] * 8, 1))
        self.assertLess(time.monotonic() - started, 5)

    def test_a_prune_waits_for_another_no_longer_than_its_time(self) -> None:
        fake = self.fake(answering(thrift_answer))
        scheduler = self.scheduler(fake.url, timeout=0.2)
        with aurora_rest.locked("prune", id(scheduler)), self.assertRaises(aurora_rest.Overloaded):
            scheduler.pruneTasks(api.TaskQuery())
        self.assertEqual(fake.requests, [])

    def test_odd_members_of_the_schedulers_group_are_passed_over(self) -> None:
        def member(**more: Any) -> Any:
            return json.dumps(dict({"serviceEndpoint": {"host": "sched", "port": 8081}}, **more)).encode()
        for data, url in ((member(), "http://sched:8081"), (b"garbage", None), (b"[]", None), (b"null", None),
                          (b"\xff", None),
                          (member(additionalEndpoints={"https": {"host": "s", "port": 1}}), "https://s:1"),
                          (member(additionalEndpoints={"http": {"host": "::1", "port": 80}}),
                           "http://[::1]:80"),
                          (member(serviceEndpoint={"host": "a b", "port": 1}), None),
                          (member(serviceEndpoint={}), None),
                          (member(serviceEndpoint={"host": "s", "port": "8081"}), "http://s:8081"),
                          (b"[" * 100000, None),
                          (member(serviceEndpoint={"host": "s", "port": 0}), None)):
            self.assertEqual(aurora_rest.member_url(data), url, data[:80])

    def test_a_caller_with_his_share_is_passed_over(self) -> None:
        semaphore = aurora_rest.Semaphore(2, 10, share=1)
        semaphore.enter(1, "loud")
        with self.assertRaises(aurora_rest.Overloaded):
            semaphore.enter(0.01, "loud")
        order = []

        def come(who: Any) -> None:
            semaphore.enter(10, who)
            order.append(who)
        loud = threading.Thread(target=come, args=("loud",))
        loud.start()
        wait_for(lambda: semaphore.waiting == 1)
        semaphore.enter(1, "calm")          # past the one who waits for his own share
        semaphore.leave("calm")
        self.assertEqual(order, [])
        semaphore.leave("loud")
        loud.join()
        semaphore.leave("loud")
        self.assertEqual((order, semaphore.inside, semaphore.waiting), (["loud"], 0, 0))

    def test_a_caller_that_is_interrupted_leaves_neither_turn_nor_slot(self) -> None:
        semaphore = aurora_rest.Semaphore(1, 10)
        semaphore.enter(1)
        lock = mock.Mock()
        lock.acquire.side_effect = [True, KeyboardInterrupt]
        with mock.patch.object(aurora_rest, "Lock",
                               return_value=lock), self.assertRaises(KeyboardInterrupt):
            semaphore.enter(1)
        semaphore.leave()
        self.assertEqual((semaphore.inside, semaphore.waiting), (0, 0))

    def test_a_connection_is_used_again(self) -> None:
        fake = self.fake(answering(tiers_answer))
        scheduler = self.scheduler(fake.url)
        for _ in range(5):
            self.assertEqual(scheduler.getTierConfigs().serverInfo.clusterName, "fake")
        self.assertEqual((fake.connections, len(fake.requests)), (1, 5))

    def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(self) -> None:
        fake = self.fake(lambda sock, body: sock.sendall(tiers_answer(body)))
        scheduler = self.scheduler(fake.url)
        for _ in range(3):
            scheduler.getTierConfigs()
        self.assertEqual(len(fake.requests), 3)

    def test_redirects_are_followed_with_body_and_credentials_and_the_leader_remembered(self) -> None:
        leader = self.fake(answering(tiers_answer))
        other = self.fake(answering(lambda body: http_answer(307, b"", "Location: %s/api" % leader.url)))
        scheduler = self.scheduler(other.url, leader.url, authorization="Basic c2VjcmV0")
        scheduler.getTierConfigs()
        scheduler.getTierConfigs()
        self.assertEqual((len(other.requests), len(leader.requests)), (1, 2))
        self.assertTrue(all(b"Authorization: Basic c2VjcmV0" in head for head, _ in leader.requests))
        self.assertEqual(scheduler.leader, leader.url)

    def test_a_page_is_that_of_the_leader_beside_its_thrift_endpoint(self) -> None:
        leader = self.fake(answering(lambda body: http_answer(200, b'[{"hostname": "h"}]')))
        other = self.fake(answering(lambda body: http_answer(307, b"", "Location: %s/offers" % leader.url)))
        scheduler = self.scheduler(other.url, leader.url, authorization="Basic c2VjcmV0")
        for _ in range(2):
            self.assertEqual(scheduler.call("/offers"), [{"hostname": "h"}])
        self.assertEqual((len(other.requests), scheduler.leader), (1, leader.url))
        head, body = leader.requests[-1]
        self.assertTrue(head.startswith(b"GET /offers HTTP/1.1\r\n"), head)
        self.assertIn(b"Authorization: Basic c2VjcmV0", head)
        self.assertFalse(b"Content-" in head or body)
        self.assertEqual(self.scheduler(leader.url + "/aurora/api").call("/offers"), [{"hostname": "h"}])
        self.assertTrue(leader.requests[-1][0].startswith(b"GET /aurora/offers "))

    def test_certificates_that_cannot_be_read_any_more_are_told_as_what_keeps_it_from_the_scheduler(self
            ) -> None:
        with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable, "gone.pem: No such file"):
            self.scheduler("https://127.0.0.1:1", ca_file="/gone.pem").getTierConfigs()

    def test_a_page_that_is_not_json_is_a_bad_answer(self) -> None:
        for answer in http_answer(200, b"<html>"), http_answer(200, b"\xff"), http_answer(404, b"{}"):
            scheduler = self.scheduler(self.fake(answering(lambda body, answer=answer: answer)).url)
            with self.assertRaisesRegex(aurora_rest.BadAnswer, "/offers"):
                scheduler.call("/offers")

    def test_a_leader_that_fails_is_forgotten(self) -> None:
        second = self.fake(answering(tiers_answer))
        first = self.fake(answering(tiers_answer))
        scheduler = self.scheduler(first.url, second.url)
        scheduler.getTierConfigs()
        first.close()
        scheduler.getTierConfigs()
        self.assertEqual(len(second.requests), 1)

    def test_another_scheduler_is_asked_when_one_has_no_leader(self) -> None:
        first = self.fake(answering(lambda body: http_answer(503)))
        second = self.fake(answering(tiers_answer))
        scheduler = self.scheduler(first.url, second.url)
        for _ in range(2):
            scheduler.getTierConfigs()
        self.assertEqual((len(first.requests), scheduler.leader), (1, second.url))

    def test_redirects_that_lead_nowhere_are_bad_answers(self) -> None:
        loop = self.fake(lambda sock, body: sock.sendall(http_answer(307, b"", "Location: /api")) or True)
        self.fails(aurora_rest.BadAnswer, loop)
        nowhere = self.fake(answering(lambda body: http_answer(307, b"", "Location: gopher://x")))
        self.fails(aurora_rest.BadAnswer, nowhere)

    def speaks_only_tjson(self, before_415: Any = lambda: None) -> Any:
        def script(sock: Any, body: Any) -> Any:
            if body[:1] == b"\x80":
                before_415()
                sock.sendall(http_answer(415))
                return True
            name, sequence, _ = aurora_rest.decode_call(aurora_rest.TJSON, body)
            sock.sendall(http_answer(200, aurora_rest.encode_reply(
                aurora_rest.TJSON, name, sequence, api.Response(responseCode=1, details=[], result=api.Result(
                    getTierConfigResult=api.GetTierConfigResult.from_plain(aurora_rest.DEFAULT_TIERS))))))
            return True
        return self.fake(script)

    def test_http_failures_become_their_own_errors(self) -> None:
        for status, error, code in ((401, aurora_rest.Unauthorized, 401), (403, aurora_rest.AuthFailed, 403),
                                    (500, aurora_rest.BadAnswer, 502),
                                    (502, aurora_rest.SchedulerUnreachable, 502),
                                    (503, aurora_rest.NoLeader, 503)):
            fake = self.fake(answering(lambda body, status=status: http_answer(status, b"<html>no</html>")))
            self.assertEqual(self.fails(error, fake).http, code)

    def test_response_codes_become_their_own_errors(self) -> None:
        for name, error, code in (("INVALID_REQUEST", aurora_rest.Refused, 422),
                                  ("ERROR", aurora_rest.SchedulerFailed, 502),
                                  ("AUTH_FAILED", aurora_rest.AuthFailed, 403),
                                  ("JOB_UPDATING_ERROR", aurora_rest.JobUpdating, 409),
                                  ("ERROR_TRANSIENT", aurora_rest.SchedulerTransient, 503)):
            fake = self.fake(answering(lambda body, name=name: thrift_answer(
                body, api.ResponseCode.values[name], details=["because"])))
            failure = self.fails(error, fake)
            self.assertEqual((failure.http, failure.messages, failure.code), (code, ["because"], name))

    def test_answers_that_are_none_are_bad_answers_or_unreachable(self) -> None:
        for data, error in (
                (http_answer(200, b"<html>hello</html>"), aurora_rest.BadAnswer),
                (http_answer(200, b""), aurora_rest.BadAnswer),
                (b"garbage\r\n\r\n", aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
                 aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
                 aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                 aurora_rest.SchedulerUnreachable),
                (b"X" * 100000, aurora_rest.SchedulerUnreachable)):
            fake = self.fake(lambda sock, body, data=data: sock.sendall(data))
            self.assertEqual(self.fails(error, fake).http, 502)
        empty = aurora_rest.encode_reply(BINARY, "getTierConfigs", 0,
                                         api.Response(responseCode=1, details=[]))
        fake = self.fake(lambda sock, body: sock.sendall(http_answer(200, empty)))
        self.assertRegex(str(self.fails(aurora_rest.BadAnswer, fake)), "OK and no getTierConfigResult")

    def test_a_chunked_answer_is_read(self) -> None:
        def script(sock: Any, body: Any) -> Any:
            whole = tiers_answer(body).partition(b"\r\n\r\n")[2]
            chunks = b"".join(b"%x;x=y\r\n%s\r\n" % (len(whole[i:i + 7]), whole[i:i + 7])
                              for i in range(0, len(whole), 7))
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
            return True
        self.assertEqual(self.scheduler(self.fake(script).url).getTierConfigs().serverInfo.clusterName,
                         "fake")

    def test_an_answer_that_ends_with_the_connection_is_read(self) -> None:
        def script(sock: Any, body: Any) -> None:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + tiers_answer(body).partition(b"\r\n\r\n")[2])
        scheduler = self.scheduler(self.fake(script).url)
        for _ in range(2):
            self.assertEqual(scheduler.getTierConfigs().serverInfo.clusterName, "fake")

    def test_a_reply_that_is_known_is_neither_stored_nor_decoded_again(self) -> None:
        replies = [large_reply(b"a"), large_reply(b"a"), large_reply(b"b"), large_reply(b"b", 1),
                   large_reply(b"b", 1)]
        given = iter(replies)
        fake = self.fake(answering(lambda body: http_answer(200, next(given))))
        scheduler = self.scheduler(fake.url)
        ask = scheduler.prepare("getJobs", "r")
        known = []
        for reply, same in zip(replies, (False, True, False, False, True)):
            got, response = scheduler.ask(ask)
            self.assertEqual(got, reply)
            self.assertEqual((response is None, bool(ask.known) and got is ask.known.reply), (same, same))
            self.assertEqual(scheduler.decode(ask, got).responseCode, 1)
            ask = ask._replace(known=aurora_rest.Known(got))
            known.append(got)
        self.assertIs(known[0], known[1])

    def test_a_reply_that_differs_anywhere_is_taken_whole(self) -> None:
        reply = large_reply(b"a")
        for at in [0, 1, 500, 65535, 65536, 70000, 1 << 18, (1 << 18) + 1, len(reply) - 1]:
            for known in (reply[:at] + bytes([reply[at] ^ 1]) + reply[at + 1:], reply[:at], reply + b"x",
                          b""):
                fake = self.fake(answering(lambda body: http_answer(200, reply)))
                got, response = self.scheduler(fake.url).ask(aurora_rest.Scheduler.prepare(
                    "getJobs")._replace(
                    known=aurora_rest.Known(known)))
                self.assertEqual(got, reply)
                self.assertEqual(response.responseCode, 1)

    def test_a_reply_in_chunks_or_until_the_end_is_compared_too(self) -> None:
        reply, other = large_reply(b"a"), large_reply(b"b")
        chunked = {cut: b"".join(b"%x\r\n%s\r\n" % (len(part), part)
                                 for part in (reply[i:i + cut] for i in range(0, len(reply), cut)))
                   for cut in (50000, 1 << 20)}
        forms = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + each + b"0\r\n\r\n"
                 for each in chunked.values()]
        for data in forms + [b"HTTP/1.1 200 OK\r\n\r\n" + reply]:
            scheduler = self.scheduler(self.fake(lambda sock, body, data=data: sock.sendall(data)).url)
            ask = scheduler.prepare("getJobs")
            for known in (reply, reply[:-1], reply + b"x", reply[:-1] + b"x", other, b""):
                lent = aurora_rest.Known(known)
                got, response = scheduler.ask(ask._replace(known=lent))
                self.assertEqual((got == reply, got is known, response is None),
                                 (True, known is reply, known is reply))
                self.assertEqual(lent.reply, known if known is reply else b"")

    def test_an_empty_answer_is_never_the_known_reply(self) -> None:
        reply = large_reply(b"a")
        answers = iter([http_answer(503, b"no leader"), http_answer(200, b""), http_answer(200, b"")])
        scheduler = self.scheduler(self.fake(answering(lambda body: next(answers))).url, retry_for=5.0)
        for known in (reply, b""):
            with self.assertRaises(aurora_rest.BadAnswer):
                scheduler.ask(scheduler.prepare("getJobs")._replace(known=aurora_rest.Known(known)))

    def test_a_known_reply_with_another_status_is_no_answer(self) -> None:
        reply = large_reply(b"a")
        fake = self.fake(answering(lambda body: http_answer(500, reply)))
        scheduler = self.scheduler(fake.url)
        with self.assertRaises(aurora_rest.BadAnswer):
            scheduler.ask(scheduler.prepare("getJobs")._replace(known=aurora_rest.Known(reply)))

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_a_scheduler_behind_tls_is_asked(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            reply = large_reply(b"a")
            fake = FakeScheduler(answering(lambda body: http_answer(200, reply)), context)
            self.addCleanup(fake.close)
            url = fake.url.replace("http://127.0.0.1", "https://localhost")
            scheduler = self.scheduler(url, ca_file=cert)
            ask = scheduler.prepare("getJobs", "x" * (1 << 20))
            got, _ = scheduler.ask(ask)
            self.assertEqual(got, reply)
            self.assertIs(scheduler.ask(ask._replace(known=aurora_rest.Known(got)))[0], got)
            self.assertEqual(fake.connections, 1)
            self.assertIn("certificate", self.fails(aurora_rest.SchedulerUnreachable, url).messages[0])
            wordy = FakeScheduler(answering(lambda body: http_answer(200, reply) +
                                            http_answer(200, b"left over")), context)
            self.addCleanup(wordy.close)
            scheduler = self.scheduler(wordy.url.replace("http://127.0.0.1", "https://localhost"),
                                       ca_file=cert)
            self.assertEqual([scheduler.ask(ask)[0] == reply for _ in range(2)], [True, True])
            # what is left over in one is no answer to the next call
            self.assertEqual(wordy.connections, 2)
            silent = FakeScheduler(lambda sock, body: threading.Event().wait(2), context)
            self.addCleanup(silent.close)
            with self.assertRaises(aurora_rest.SchedulerTimeout):
                self.scheduler(silent.url.replace("http://127.0.0.1", "https://localhost"), ca_file=cert,
                               timeout=0.5).getJobs("x")

    def test_nobody_listening_is_unreachable(self) -> None:
        failure = self.fails(aurora_rest.SchedulerUnreachable, "http://127.0.0.1:%d" % free_port())
        self.assertEqual(failure.http, 502)

    def test_a_scheduler_that_hangs_or_trickles_is_a_timeout_within_the_deadline(self) -> None:
        hanging = self.fake(lambda sock, body: threading.Event().wait(3))

        def trickle(sock: Any, body: Any) -> None:
            with contextlib.suppress(OSError):
                for byte in tiers_answer(body):
                    sock.sendall(bytes([byte]))
                    time.sleep(0.05)
        for fake in (hanging, self.fake(trickle)):
            self.assertEqual(self.fails(aurora_rest.SchedulerTimeout, fake, timeout=0.5).http, 504)

    def test_a_write_whose_bytes_may_have_arrived_is_not_sent_twice(self) -> None:
        for method, arguments, times in (
                ("killTasks", (api.JobKey(), None, None), 1), ("createJob", (config(),), 1),
                ("setQuota", ("x", api.ResourceAggregate()), 1), ("getJobs", ("x",), 3),
                ("restartShards", (api.JobKey(), {1}), 3),
                ("startJobUpdate", (update_request(config()), None), 3)):
            fake = self.fake(lambda sock, body: False)      # takes the request, closes
            error = self.fails(aurora_rest.SchedulerUnreachable, fake, method, *arguments, retry_for=0.6,
                               timeout=10.0)
            self.assertEqual(len(fake.requests), times, method)
            write = method != "getJobs"
            self.assertEqual((error.details.get("done"), "may still take effect" in str(error)),
                             ("unknown" if write else None, write))

    def test_transient_errors_are_retried_for_writes_too(self) -> None:
        def script(sock: Any, body: Any) -> Any:
            code = "ERROR_TRANSIENT" if len(fake.requests) < 3 else "OK"
            sock.sendall(thrift_answer(body, api.ResponseCode.values[code]))
            return True
        fake = self.fake(script)
        self.scheduler(fake.url, retry_for=5.0).killTasks(api.JobKey(role="r"), None, None)
        self.assertEqual(len(fake.requests), 3)

    def test_proxies_of_the_environment_are_not_used(self) -> None:
        fake = self.fake(answering(tiers_answer))
        with mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1",
                                          "HTTP_PROXY": "http://127.0.0.1:1"}):
            self.scheduler(fake.url).getTierConfigs()

    def test_a_dead_scheduler_opens_the_circuit_and_a_live_one_closes_it(self) -> None:
        port = free_port()
        scheduler = self.scheduler("http://127.0.0.1:%d" % port, retry_for=0.0)
        for _ in range(aurora_rest.Circuit.AFTER):
            with self.assertRaises(aurora_rest.SchedulerUnreachable):
                scheduler.getTierConfigs()
        with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable, "in a row"):
            scheduler.getTierConfigs()
        demo = aurora_rest.Demo(samples=False)
        demo.start(port)
        self.addCleanup(demo.stop)

        def works() -> Any:
            with contextlib.suppress(aurora_rest.SchedulerUnreachable):
                return scheduler.getTierConfigs()
        wait_for(works)
        scheduler.getTierConfigs()

    def test_the_gate_lets_so_many_in_and_the_others_in_their_order(self) -> None:
        gate = aurora_rest.Semaphore(2, 3)
        gate.enter(1)
        gate.enter(1)
        order = []

        def come(number: Any) -> None:
            gate.enter(10)
            order.append(number)
        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=come, args=(number,)))
            threads[-1].start()
            wait_for(lambda number=number: gate.waiting == number + 1)
        with self.assertRaises(aurora_rest.Overloaded):
            gate.enter(1)
        for number in range(3):
            gate.leave()
            wait_for(lambda number=number: len(order) == number + 1)
        self.assertEqual(order, [0, 1, 2])
        gate.leave()
        gate.leave()
        self.assertEqual(gate.inside, 0)
        gate.enter(1)
        gate.enter(1)
        with self.assertRaises(aurora_rest.Overloaded):
            gate.enter(0.01)
        self.assertEqual(gate.waiting, 0)

    def test_a_thousand_calls_of_many_threads_leave_pool_and_gate_whole(self) -> None:
        demo = aurora_rest.Demo()
        scheduler = self.scheduler(demo.start(), parallel=3)
        self.addCleanup(demo.stop)
        most = []

        def work() -> None:
            for _ in range(50):
                self.assertTrue(aurora_rest.list_jobs(scheduler, "www-data"))
                most.append(scheduler.semaphore.inside)
        threads = [threading.Thread(target=work) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(len(most), 1000)
        self.assertLessEqual(max(most), 3)
        self.assertEqual((scheduler.semaphore.inside, scheduler.semaphore.waiting), (0, 0))
        self.assertLessEqual(sum(map(len, scheduler.network._idle.values())), 3)

    def test_clusters_json_is_read_and_its_defects_are_told(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clusters.json")

            def written(value: Any) -> Any:
                with open(path, "w", encoding="utf-8") as stream:
                    json.dump(value, stream)
                return aurora_rest.read_clusters(path)
            found = written([{"name": "a", "scheduler_uri": "http://x:1"},
                             {"name": "b", "zk": "z1,z2", "zk_port": 9,
                                                                            "scheduler_zk_path": "/s"}])
            self.assertEqual(found[0].urls, ("http://x:1",))
            self.assertEqual((found[1].zk, found[1].zk_path), ("z1:9,z2:9", "/s"))
            self.assertEqual(written({"any": {"name": "a", "zk": "z"}, "other": {"x": 1}})[0].name, "a")
            bad: Any = ("x", ["x"], [{"name": 1}], [{"name": "a"}], [{"name": "a", "scheduler_uri": "ftp://x"}])
            for wrong in bad:
                with self.assertRaises(ValueError):
                    written(wrong)
            written([{"name": "here", "scheduler_uri": "http://127.0.0.1:1"}])
            with mock.patch.dict(os.environ, {"AURORA_CONFIG_ROOT": folder, "HOME": folder}):
                self.assertEqual([c.name for c in aurora_rest.default_clusters()], ["here"])
            with mock.patch.dict(os.environ, {"AURORA_CONFIG_ROOT": folder + "/no", "HOME": folder}):
                self.assertEqual(aurora_rest.default_clusters()[0].urls, ("http://127.0.0.1:8081",))

    def test_clusters_json_tells_zookeeper_before_a_url_and_what_credentials_are_for(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clusters.json")

            def read(**entry: Any) -> Any:
                with open(path, "w", encoding="utf-8") as stream:
                    json.dump([dict(entry, name="west")], stream)
                return aurora_rest.read_clusters(path)[0]
            both = read(zk="a,b:3", zk_port=99, scheduler_uri="http://x", auth_mechanism="BASIC")
            self.assertEqual((both.zk, both.urls, both.basic), ("a:99,b:3", (), True))
            self.assertFalse(read(scheduler_uri="http://x", auth_mechanism="UNAUTHENTICATED").basic)
            for given, wanted in (("a,b:3/x/y", "a:2181,b:3/x/y"), ("[::1]", "[::1]:2181"),
                                  ("::1, [fe80::2]:7", "[::1]:2181,[fe80::2]:7")):
                self.assertEqual(read(zk=given).zk, wanted)
            for port in (99999, [1], "x", -1):
                with self.assertRaisesRegex(ValueError, "zk_port"):
                    read(zk="a", zk_port=port)

    def test_each_cluster_has_its_own_credentials(self) -> None:
        Cluster = aurora_rest.Cluster
        clusters = [Cluster("west", ("http://127.0.0.1:1",), basic=True),
                    Cluster("east", ("http://localhost:2",)),
                    Cluster("far", zk="zk:1", basic=True)]
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, ".netrc"), "w", encoding="utf-8") as stream:
                stream.write("machine 127.0.0.1 login root password sesame\nmachine sched login f password "
                             "g\ndefault login d password e\n")
            os.chmod(stream.name, 0o600)
            secret = os.path.join(folder, "secret")
            with open(secret, "w", encoding="utf-8") as stream:
                stream.write("u:p\n")

            def found(*given: Any, among: Any = clusters) -> Any:
                options = aurora_rest.parse_command_line(["--scheduler-auth=" + each for each in given], {})
                aurora_rest._from_netrc.cache_clear()
                return [aurora_rest.own_credentials(options, among)(each) for each in among]

            def basic(text: Any) -> Any:
                return "Basic " + base64.b64encode(text.encode()).decode()
            with mock.patch.dict(os.environ, {"HOME": folder}):
                west, east, far = found()
                self.assertEqual((west("127.0.0.1"), west("localhost"), east),
                                 (basic("root:sesame"), None, None))
                self.assertEqual((far("sched"), far("elsewhere")), (basic("f:g"), None))
                self.assertEqual(found("east=" + secret)[1:2], [basic("u:p")])
                self.assertEqual(found(secret, among=clusters[1:2]), [basic("u:p")])
                for wrong in (secret, "nowhere=" + secret, "east=/nonexistent"):
                    with self.assertRaises(aurora_rest.UsageError):
                        found(wrong)
                with mock.patch.dict(os.environ, {"AURORA_REST_SCHEDULER_CREDENTIALS": "a:b"}):
                    self.assertEqual(found(among=clusters[1:2]), [basic("a:b")])
                    with self.assertRaises(aurora_rest.UsageError):
                        found()

    def test_a_connection_under_way_keeps_its_certificates_while_they_are_read_again(self) -> None:
        network = aurora_rest.Scheduler("https://127.0.0.1:1").network

        class Racing(type(network)):        # type: ignore[misc]
            """Another thread lets go of the context as soon as this one has looked at it."""
            found = iter(["the context", None, None])
            _context = property(lambda self: next(self.found))
        network.__class__ = Racing
        self.assertEqual(network._tls(), "the context")

    def test_zookeeper_without_kazoo_says_what_to_install(self) -> None:
        with mock.patch.dict(sys.modules, {"kazoo": None, "kazoo.client": None}):
            locate = aurora_rest.ZooKeeperLocator(aurora_rest.Cluster("far", zk="zk:2181", zk_path="/s"))
            with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable,
                                        "pip install kazoo.*--scheduler far=URL"), aurora_rest.Scheduler(
                                            locate=locate) as scheduler:
                scheduler.getTierConfigs()

    def test_a_cluster_without_a_name_takes_its_schedulers(self) -> None:
        port = free_port()
        clusters = aurora_rest.Clusters([aurora_rest.Cluster(None, ("http://127.0.0.1:%d" % each,))
                                         for each in (1, port)],
                                        lambda c: aurora_rest.Scheduler(list(c.urls), retry_for=0.0))
        with self.assertRaises(aurora_rest.SchedulerUnreachable):
            clusters["west"]
        demo = aurora_rest.Demo("west")
        demo.start(port)
        self.addCleanup(demo.stop)
        self.assertEqual(clusters["west"].getTierConfigs().serverInfo.clusterName, "west")
        self.assertEqual(clusters.names(), ["west"])
        with self.assertRaises(aurora_rest.SchedulerUnreachable):       # it may be the other
            clusters["east"]
        del clusters._nameless[0]
        with self.assertRaisesRegex(aurora_rest.NotFound, "unknown cluster east; known: west"):
            clusters["east"]


# --- 3. Job configuration -----------------------------------------------------------------------------------

ZOOKEEPER = "/usr/share/java/zookeeper.jar"


@unittest.skipUnless(shutil.which("java") and os.path.exists(ZOOKEEPER) and importlib.util.find_spec("kazoo"),
                     "needs kazoo, and ZooKeeper as Debian's package zookeeper has it")
class ZooKeeperTest(unittest.TestCase):
    """A real ZooKeeper."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.port = free_port()
        path = os.path.join(self.folder, "zoo.cfg")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("tickTime=300\ndataDir=%s/data\nclientPort=%d\nadmin.enableServer=false\n"
                         "clientPortAddress=127.0.0.1\n4lw.commands.whitelist=*\n" % (self.folder, self.port))
        self.zookeeper: Any = None
        self.addCleanup(self.stop)
        self.start()
        logging = importlib.import_module("logging")
        logger = logging.getLogger("kazoo")
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
        kazoo = importlib.import_module("kazoo.client")
        self.client = kazoo.KazooClient(hosts="127.0.0.1:%d" % self.port)
        self.client.start(timeout=30)
        self.addCleanup(lambda: (self.client.stop(), self.client.close()))
        self.client.ensure_path("/chroot/aurora/scheduler")

    def start(self) -> None:
        self.zookeeper = subprocess.Popen(
            ["java", "-Xmx64m", "-cp", "/usr/share/java/*",
             "org.apache.zookeeper.server.quorum.QuorumPeerMain", os.path.join(self.folder, "zoo.cfg")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: b"Mode" in self.said(b"srvr"), 60)

    def stop(self) -> None:
        self.zookeeper.kill()
        self.zookeeper.wait()

    def said(self, word: Any) -> Any:
        data = b""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(word)
            while True:
                part = sock.recv(65536)
                if not part:
                    break
                data += part
        return data

    def advertise(self, demo: Any) -> Any:
        end = urllib.parse.urlsplit(demo)
        return self.client.create("/chroot/aurora/scheduler/member_", json.dumps(
            {"serviceEndpoint": {"host": end.hostname, "port": end.port}, "status": "ALIVE"}).encode(),
            ephemeral=True, sequence=True)

    def test_leaders_are_followed_and_the_last_one_goes_on_without_zookeeper(self) -> None:
        demos = [aurora_rest.Demo("devcluster") for _ in range(2)]
        urls = [demo.start() for demo in demos]
        self.addCleanup(lambda: collections.deque(map(aurora_rest.Demo.stop, demos), 0))
        server = aurora_rest.Server(port=0, evaluator=Serving.evaluator(), clusters=[aurora_rest.Cluster(
            "devcluster", zk="127.0.0.1:1,127.0.0.1:%d/chroot" % self.port, zk_path="/aurora/scheduler")],
            scheduler={"retry_for": 0.5}).start()
        self.addCleanup(server.stop, 1.0)
        jobs = "/alpha/jobs/devcluster/www-data"
        empty = ask(server, "GET", jobs)
        self.assertEqual((empty.status, empty.json["code"], empty.headers["retry-after"]),
                         (503, "NO_LEADER", "5"))
        self.client.create("/chroot/aurora/scheduler/member_odd", b"odd")
        first = self.advertise(urls[0])

        def told() -> Any:
            return ask(server, "GET", "/alpha/clusters").json["clusters"]["devcluster"]

        def leader() -> Any:
            return ask(server, "GET", jobs).status == 200 and told()["leader"]
        self.assertEqual(wait_for(leader), urls[0])
        sessions = len(re.findall(rb"sid=0x", self.said(b"cons")))
        self.client.delete(first)
        self.advertise(urls[1])
        moved = time.monotonic()
        wait_for(lambda: leader() == urls[1])
        self.assertLess(time.monotonic() - moved, 1.0)
        self.assertEqual(len(re.findall(rb"sid=0x", self.said(b"cons"))), sessions)
        self.stop()
        wait_for(lambda: told()["zookeeper"])
        self.assertEqual((ask(server, "GET", jobs).status, leader()), (200, urls[1]))
        self.start()
        wait_for(lambda: not told()["zookeeper"], 60)

    def test_a_group_that_is_missing_or_forbidden_says_so(self) -> None:
        security = importlib.import_module("kazoo.security")
        self.client.create("/closed", acl=[security.make_digest_acl("a", "b", all=True)])
        for path, says in (("/nowhere", "there is no znode /nowhere"),
                           ("/closed", "/closed may not be read")):
            with aurora_rest.Scheduler(retry_for=0.1, locate=aurora_rest.ZooKeeperLocator(aurora_rest.Cluster(
                    "c", zk="127.0.0.1:%d" % self.port, zk_path=path))) as scheduler:
                with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable, says):
                    scheduler.getTierConfigs()
                if path == "/nowhere":
                    self.client.create(path)
                    wait_for(lambda scheduler=scheduler: not scheduler.state()["zookeeper"])


class ConfigTest(unittest.TestCase):
    def refused(self, text: Any, says: Any, **options: Any) -> Any:
        with self.assertRaisesRegex(aurora_rest.InvalidConfig, says) as caught:
            load(text, **options)
        self.assertNotIn("Traceback", str(caught.exception))
        return caught.exception

    def test_hello_world_becomes_a_job_configuration(self) -> None:
        job = load(source(extra="instances=2"))
        plain = job.configuration.to_plain()
        self.assertEqual(plain["key"], {"role": "www-data", "environment": "devel", "name": "hello"})
        self.assertEqual((plain["instanceCount"], plain["cronCollisionPolicy"]), (2, "KILL_EXISTING"))
        task = plain["taskConfig"]
        self.assertEqual(task["resources"], [{"diskMb": 32}, {"numCpus": 0.1}, {"ramMb": 32}])
        self.assertEqual((task["tier"], task["production"], task["isService"]), ("preemptible", False, True))
        self.assertEqual((task["container"], task["taskLinks"]), ({"mesos": {}}, {}))
        data = json.loads(task["executorConfig"]["data"])
        self.assertEqual((data["tier"], data["production"]), ("preemptible", False))
        self.assertNotIn("instances", data)
        self.assertNotIn("update_config", data)
        self.assertEqual(data["task"]["constraints"], [{"order": ["p"]}])
        self.assertEqual(job.settings.to_plain(), {
            "updateGroupSize": 1, "maxPerInstanceFailures": 0, "maxFailedInstances": 0, "slaAware": False,
            "minWaitInInstanceRunningMs": 45000, "rollbackOnFailure": True, "waitForBatchCompletion": False,
            "updateStrategy": {"queueStrategy": {"groupSize": 1}}})

    def test_tier_and_production_follow_one_another(self) -> None:
        for extra, tier, production in (("production=True", "preferred", True),
                                        ("tier='revocable'", "revocable", False),
                                        ("tier='preferred'", "preferred", True), ("", "preemptible", False)):
            task = load(source(extra=extra)).configuration.taskConfig
            self.assertEqual((task.tier, task.production), (tier, production))
            self.assertEqual(json.loads(task.executorConfig.data)["production"], production)

    def test_references_are_bound_or_stay_for_the_executor(self) -> None:
        text = source(command="{{mesos.instance}} {{mesos.hostname}} {{thermos.ports[http]}} "
                              "{{thermos.task_id}} "
                      "{{mesos.role}} {{mesos.cluster}} {{thermos.user}} {{mine}}")
        job = load(text, bindings={"mine": "1"})
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        self.assertEqual(data["task"]["processes"][0]["cmdline"],
                         "{{mesos.instance}} {{mesos.hostname}} {{thermos.ports[http]}} {{thermos.task_id}} "
                         "www-data devcluster www-data 1")
        self.assertIn(api.Resource(namedPort="http"), job.configuration.taskConfig.resources)
        self.refused(text, "mine")

    def test_update_settings_follow_the_strategy(self) -> None:
        for settings, strategy, size, wait in (
                ("batch_size=3", {"queueStrategy": {"groupSize": 3}}, 3, False),
                ("batch_size=3, wait_for_batch_completion=True",
                 {"batchStrategy": {"groupSize": 3, "autopauseAfterBatch": False}}, 3, True),
                ("update_strategy=QueueUpdateStrategy(batch_size=4)", {"queueStrategy": {"groupSize": 4}}, 4,
                 False),
                ("update_strategy=BatchUpdateStrategy(batch_size=2, autopause_after_batch=True)",
                 {"batchStrategy": {"groupSize": 2, "autopauseAfterBatch": True}}, 2, True),
                ("update_strategy=VariableBatchUpdateStrategy(batch_sizes=[1, 2])",
                 {"varBatchStrategy": {"groupSizes": [1, 2], "autopauseAfterBatch": False}}, 1, False)):
            plain = load(source(extra="instances=9, update_config=UpdateConfig(%s)" %
                                settings)).settings.to_plain()
            self.assertEqual((plain["updateStrategy"], plain["updateGroupSize"],
                              plain["waitForBatchCompletion"]),
                             (strategy, size, wait))
        job = load(source(extra="update_config=UpdateConfig(batch_size=2, "
                                "update_strategy=QueueUpdateStrategy())"))
        self.assertRegex(job.problems[0], "Ambiguous")
        job = load(source(extra="update_config=UpdateConfig(watch_secs=3000000)"))
        self.assertRegex(job.problems[0], "minWaitInInstanceRunningMs")
        self.assertEqual((job.configuration.instanceCount, job.settings), (1, None))
        with self.assertRaises(aurora_rest.InvalidConfig):
            job.update_request()

    def test_instances_of_an_update_are_merged_into_ranges(self) -> None:
        ranges = load(source()).update_request([5, 1, 2, 3, 9, 8]).settings.updateOnlyTheseInstances
        self.assertEqual(sorted((r.first, r.last) for r in ranges), [(1, 3), (5, 5), (8, 9)])
        self.assertEqual(aurora_rest.from_ranges(ranges), [1, 2, 3, 5, 8, 9])

    def test_what_the_client_refuses_is_refused(self) -> None:
        for extra, says in (
                ("update_config=UpdateConfig(max_total_failures=1)", "max_total_failures"),
                ("update_config=UpdateConfig(watch_secs=-1)", "watch_secs"),
                ("health_check_config=HealthCheckConfig(interval_secs=-1)", "interval_secs"),
                ("announce=Announcer(portmap={'http': 80})", "static ports"),
                ("announce=Announcer(portmap={'a': 'b', 'b': 'a'})", "cycle"),
                ("instances=100, constraints={'dedicated': 'www-data/x'}", "2%"),
                ("cron_schedule='* * * * *', cron_collision_policy='X'", "cron_collision_policy"),
                ("constraints={'a': 'limit:x'}", "limit"), ("colour='red'", "colour"),
                ("instances='many'", "many"),
                ("container=Container()", "docker"), ("priority='{{x}}'", "x"),
                ("contact='{{nowhere}}'", "nowhere")):
            self.refused(source(extra=extra), says)
        self.refused("jobs = []", "No job defined")
        self.refused("x = 1", "No job defined")
        self.refused("jobs = [1]", "jobs holds a int")
        self.refused(source("other"), "Could not find job .*Candidates are: devcluster/www-data/devel/other")
        self.refused(source() + "jobs = jobs * 2", "Multiple jobs match")
        self.refused(source().replace("processes=[p]",
                                      "processes=[p], constraints=order(p, 'ghost')").replace(
            "SequentialTask", "Task"), "Invalid process dependencies")

    def test_errors_say_file_line_and_all_that_is_wrong(self) -> None:
        self.assertEqual(self.refused("jobs = [\nJub()]", "Jub").messages,
                         ["job.aurora, line 2: name 'Jub' is not defined"])
        self.assertRegex(self.refused("a = 1\nb = (", "line 2").messages[0], r"^job\.aurora, line 2: ")
        text = ("jobs = [Job(cluster='devcluster', role='www-data', environment='devel', name='hello', "
                "task=Task(name='t', processes=[Process(name='web'), Process(cmdline='x')], "
                "resources=Resources(cpu=1)))]")
        self.assertEqual(sorted(self.refused(text, "is required").messages), [
            "hello.task.processes[0].cmdline is required", "hello.task.processes[1].name is required",
            "hello.task.resources.disk is required", "hello.task.resources.ram is required"])

    def test_errors_name_job_field_and_place(self) -> None:
        made = source().replace("cmdline=", "max_failures='three', cmdline=")
        self.assertEqual(self.refused(made, "three").messages, [
            "job.aurora, line 1: hello.task.processes[0].max_failures: 'three' is not a whole number"])
        for extra, says in (
                ("update_config=UpdateConfig(batch_size='q')", "hello.update_config.batch_size: 'q' is not a "
                                                               "whole number"),
                ("production='perhaps'", "hello.production: 'perhaps' is not true or false"),
                ("container='docker'", "hello.container: 'docker' is not one of Container, Docker, Mesos"),
                ("instances='{{nothing}}'", "hello.instances: '{{nothing}}' is not a whole number"),
                ("health_check_config=HealthCheckConfig(interval_secs='{{x}}').bind(x='y')",
                 "hello.health_check_config.interval_secs: 'y' is not a number"),
                ("update_config={'batch_sizee': 1}", "update_config.batch_sizee: UpdateConfig has no such "
                                                     "field; it has batch_size, "),
                ("announce=3", "announce: expected names and values, got 3"),
                ("constraints={'host': 'limit:k'}", "hello: constraint host: limit:k"),
                ("cron_collision_policy='MAYBE'", "hello: cron_collision_policy must be one of")):
            self.assertIn(says, self.refused(source(extra=extra), "").messages[0])
        self.refused(source().replace("processes=[p]", "processes=p"),
                     "processes: expected a list, got Process")
        self.refused(source().replace("task=t", "task=t(resources=Empty)"),
                     "hello.task.resources is required")
        job = {"cluster": "devcluster", "role": "www-data", "environment": "devel", "name": "hello", "task": {
            "processes": [{"name": "p", "cmdlne": "x"}]}}
        self.refused(json.dumps(job), "^task.processes.cmdlne: Process has no such field", is_json=True)
        self.refused("raise AttributeError('Unknown schema attribute x')", "Unknown schema attribute x")
        self.refused("class E(KeyError):\n  def __str__(self): raise SystemExit(1)\nraise E('x')", "E$")
        many = "[%s]" % ", ".join("Process(name='p', cmdline='x', max_failures='three')" for _ in range(99))
        self.assertEqual(len(self.refused(source().replace("[p]", many).replace("Sequential", ""),
                                          "").messages),
                         20)

    def test_a_tier_that_the_cluster_does_not_have_is_warned_of(self) -> None:
        self.assertEqual(load(source(extra="tier='gold'")).warnings, [
            "hello.tier: 'gold' is no tier of this cluster: preemptible, preferred, revocable"])
        self.assertEqual(load(source(extra="tier='preferred'")).warnings, [])

    def test_ordinary_idioms_work(self) -> None:
        text = ("import json, math, re, hashlib, itertools, getpass, collections, time, random, string\nfrom "
                "functools import partial\nclass Profile(Struct):\n  size = Default(Integer, 2)\nclass "
                "Plain(object):\n  def __init__(self, x): self.x = x\n  def double(self): return self.x * "
                "2\ndef make(n, **kw):\n  try:\n    return Process(name='p%d' % n, **kw)\n  except "
                "ValueError as e:\n    raise\nps = [make(n, cmdline='{0}-{who}-{0!r}'.format(n, "
                "who=getpass.getuser())) for n in range(3) if n]\nps += [Process(name=f'{x}', cmdline='%s' % "
                "Plain(4).double()) for x in sorted({'a', 'b'})]\nhalf = 5\nhalf /= 2\nassert half == 2 and "
                "hashlib.md5('x') and time.strptime('1', '%d') and {1: 2}.keys()[0] == 1\nassert range(2) + "
                "[5] == [0, 1, 5] and map(str, [1]) == ['1']\ntype = 3\nassert type == 3\nassert 5 / 2 == 2 "
                "and {'a': 1}.has_key('a') and list({'a': 1}.iteritems()) == [('a', 1)]\ntotal = "
                "sum(map(lambda x: x ** 2, xrange(4)))\nwhile total > 10: total -= 1\njobs = "
                "[Job(cluster='devcluster', role='www-data', environment='devel', name='hello', "
                "instances=total - 8,\n  task=SequentialTask(processes=ps, resources=Resources(cpu=1, ram=GB "
                "/ 4, disk=GB))).bind(p=Profile())]")
        job = load(text)
        self.assertEqual(job.configuration.instanceCount, 2)
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        self.assertEqual([p["cmdline"] for p in data["task"]["processes"]],
                         ["1-www-data-1", "2-www-data-2", "8", "8"])

    def test_helpers_combine_tasks(self) -> None:
        text = ("a, b = Process(name='a', cmdline='1'), Process(name='b', cmdline='2')\nta = "
                "Task(processes=[a], resources=Resources(cpu=1, ram=GB, disk=GB), finalization_wait=5)\ntb = "
                "Task(name='tb', processes=[b], resources=Resources(cpu=2, ram=MB, disk=2*GB), "
                "finalization_wait=7)\nopts = java_options('a', {'b': 23}) + '|' + python_options('a', "
                "boo='foo')\ndef job(n, t): return Job(cluster='devcluster', role='www-data', "
                "environment='devel', name=n, task=t, contact=opts)\njobs = [job('hello', combine_tasks(ta, "
                "tb)), job('concat', concat_tasks(ta, tb)),\n        job('simple', SimpleTask('x', 'true'))]")
        combined = load(text).configuration
        task = json.loads(combined.taskConfig.executorConfig.data)["task"]
        self.assertEqual(task["resources"], {"cpu": 3.0, "ram": (1 << 30) + (1 << 20), "disk": 3 << 30,
                                             "gpu": 0})
        self.assertEqual((task["finalization_wait"], sorted(p["name"] for p in task["processes"])),
                         (7, ["a", "b"]))
        self.assertEqual(combined.taskConfig.contactEmail, "-a -b 23|-a --boo foo")
        task = json.loads(load(text,
                "devcluster/www-data/devel/concat").configuration.taskConfig.executorConfig.data)["task"]
        self.assertEqual((task["resources"]["cpu"], task["finalization_wait"]), (2.0, 12))
        self.assertEqual(task["constraints"], [{"order": ["a", "b"]}])

    def test_files_include_one_another_by_relative_path(self) -> None:
        files = {"root.aurora": "include('sub/one.aurora')\njobs = [make('hello')]",
                 "sub/one.aurora": "include('two.aurora')\ninclude('../three.aurora')",
                 "sub/two.aurora": source().replace("jobs = [", "template = (").replace(")]\n", "))\n"),
                 "three.aurora": "def make(n): return template(name=n)"}
        self.assertEqual(load(files).configuration.key.name, "hello")
        for path in ("/etc/passwd", "../x", "sub/../../x", "no.aurora"):
            self.refused({"root.aurora": "include(%r)" % path}, "root.aurora, line 1: include")
        self.refused({"a.aurora": "include('a.aurora')"}, "without end|recursive")

    def test_the_include_root_adds_site_files_and_nothing_else(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "site"))
            with open(os.path.join(folder, "site", "base.aurora"), "w", encoding="utf-8") as stream:
                stream.write(source())
            with open(os.path.join(folder, "secret"), "w", encoding="utf-8") as stream:
                stream.write("x = 1")
            os.symlink(os.path.join(folder, "secret"), os.path.join(folder, "site", "link.aurora"))
            evaluator = aurora_rest.Evaluator(include_root=os.path.join(folder, "site"))
            try:
                job = aurora_rest.load_job("include('base.aurora')", "devcluster/www-data/devel/hello",
                                           evaluator=evaluator)
                self.assertEqual(job.configuration.key.name, "hello")
                for path in ("link.aurora", "../secret", "none.aurora"):
                    with self.assertRaisesRegex(aurora_rest.InvalidConfig, "include"):
                        aurora_rest.load_job("include(%r)" % path, "devcluster/www-data/devel/hello",
                                             evaluator=evaluator)
            finally:
                evaluator.close()

    def test_what_asks_the_server_is_evaluated_once(self) -> None:
        key = "devcluster/www-data/devel/hello"
        with tempfile.TemporaryDirectory() as folder:
            for name in ("a", "b", "many"):
                with open(os.path.join(folder, name), "w", encoding="utf-8") as stream:
                    stream.write("N = [1]")
            evaluator = aurora_rest.Evaluator(most=1, include_root=folder)
            self.addCleanup(evaluator.close)
            said = []
            real = aurora_rest._Questions.reply

            def reply(self: Any, question: Any) -> Any:
                said.append(question)
                return real(self, question)
            text = "include('a')\ninclude('b')\ninclude('a')\nprint(len(N))\n" + source()
            with mock.patch.object(aurora_rest._Questions, "reply", reply):
                aurora_rest.load_job(text, key, evaluator=evaluator)
            self.assertEqual([each.get("include") for each in said], ["a", "b", None])
            for text in ("for n in range(99):\n  try: include('no%d' % n)\n  except ValueError: pass",
                         "include('x' * 4097)"):
                with self.assertRaisesRegex(aurora_rest.InvalidConfig, "more than 64 files|4096 characters"):
                    aurora_rest.load_job(text, key, evaluator=evaluator)
            self.assertEqual(evaluator.processes, 1)
            aurora_rest.load_job(source(), key, evaluator=evaluator)

    def test_json_jobs_are_read(self) -> None:
        plain = {"cluster": "devcluster", "role": "www-data", "environment": "devel", "name": "hello",
                 "service": True,
                 "task": {"processes": [{"name": "p", "cmdline": "x"}],
                          "resources": {"cpu": 1, "ram": 1 << 27, "disk": 1 << 27}}}
        for text in (json.dumps(plain), json.dumps({"jobs": [plain]})):
            self.assertTrue(load(text, is_json=True).configuration.taskConfig.isService)
        self.refused("jobs = []", "not JSON, as its content type says", is_json=True)
        self.refused("a = 1 b = 2", "--data-binary")
        for text in ("[]", "{", '{"jobs": 3}', '{"jobs": [{"colour": 1}]}', "null"):
            self.refused(text, "", is_json=True)

    def test_images_are_resolved_by_the_clusters_registry(self) -> None:
        def script(handler: Any) -> None:
            handler.send_response(200 if "/v2/lib/app/manifests/" in handler.path else 404)
            handler.send_header("Docker-Content-Digest", "sha256:abc")
            handler.end_headers()
        registry = http.server.HTTPServer(("127.0.0.1", 0),
                                          type("Registry", (http.server.BaseHTTPRequestHandler,), {
            "do_HEAD": script, "log_message": lambda *_: None}))
        threading.Thread(target=registry.serve_forever, daemon=True).start()
        self.addCleanup(registry.server_close)
        self.addCleanup(registry.shutdown)
        url = "http://127.0.0.1:%d" % registry.server_port
        text = source(extra="container=Docker(image='{{docker.image[%s][9]}}')")
        job = load(text % "lib/app", docker_registry=url)
        self.assertEqual(job.configuration.taskConfig.container.docker.image,
                         "127.0.0.1:%d/lib/app@sha256:abc" % registry.server_port)
        self.refused(text % "lib/none", "docker registry .* answers HTTP 404", docker_registry=url)
        self.refused(text % "lib/app", "docker registry .* cannot be asked",
                     docker_registry="http://127.0.0.1:%d" % free_port())

    def test_running_text_and_owner_are_kept_where_the_meaning_is_the_same(self) -> None:
        job = load(source())
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        text = json.dumps(dict(reversed(list(data.items()))), indent=1)
        running = job.configuration.taskConfig.replace(
            owner=api.Identity(user="somebody"), executorConfig=api.ExecutorConfig(name="AuroraExecutor",
                    data=text))
        self.assertNotEqual(running, job.configuration.taskConfig)
        self.assertEqual(aurora_rest.align(job, [(running, [0])]).configuration.taskConfig, running)
        changed = load(source(command="other"))
        aligned = aurora_rest.align(changed, [(running, [0])]).configuration.taskConfig
        self.assertEqual(aligned.owner.user, "somebody")
        self.assertIn("other", aligned.executorConfig.data)

    def test_attacks_are_refused_and_the_next_request_is_served(self) -> None:
        attacks = [
            "import os\nos.system('true')", "from os import system", "import subprocess", "import ctypes",
            "import socket", "import pickle",
            "__import__('os').system('true')", "open('/etc/passwd')", "eval('1')",
            "exec('import subprocess')", "compile('1', '', 'exec')",
            "().__class__.__mro__[1].__subclasses__()", "'{0.__globals__}'.format(order)",
            "'{0.__class__}'.format_map({})",
            "f = '{0.__class__}'.format\nf(1)", "x = f'{order.__globals__}'", "(x for x in ()).gi_frame",
            "def f(): yield\nf().gi_frame.f_back", "type(1).__subclasses__()", "type('X', (), {})",
            "getattr(order, '__glo' + 'bals__')",
            "setattr(order, 'x', 1)", "vars(order)", "globals()['__builtins__']", "locals()['__builtins__']",
            "dir()", "breakpoint()", "input()",
            "@staticmethod.__class__\ndef f(): pass", "class X(object, metaclass=Struct): pass",
            "class X(Struct.__class__): pass", "class X(object):\n  def __reduce__(self): return 1",
            "try:\n  1 / 0\nexcept Exception as e:\n  e.__traceback__.tb_frame", "order.func_globals",
            "Process.check = None", "json = 1\nimport json\njson.codecs",
            "import random\nrandom._os.system('true')",
            "import re\nre.enum.sys", "import string\nstring.Formatter()", "with open('x') as f: pass",
            "async def f(): pass", "del Process.get", "raise SystemExit", "import sys\nsys.exit()", "exit()",
            "'' . format . __self__", "match ():\n  case object(__class__=c): pass",
            "def f():\n  global __builtins__",
            "match order:\n  case {**__builtins__}: pass", "Struct.__init_subclass__()",
            "from pystachio import sys", "from math import __loader__",
            "def g(): yield\nf = lambda self: self.gi_frame", "[self.f_back for self in ()]",
            "if (self := g):\n  self.tb_frame",
            "class A(object):\n  self = order\n  x = self.func_code",
            "class A(object):\n  def f(self): return self.mro()",
            "class A(object):\n  def f(self): return self.gi_code", "self = order\nself._x",
            "self = order\nself.x = 1",
            "class A(Struct):\n  def f(self): return self._schema_data",
            "class A(Struct):\n  def f(self): return self.TYPEMAP",
            "class A(object):\n  def f(self): self.TYPEMAP = 1",
            "class A(object):\n  def f(self): self.__dict__",
            "class A(object):\n  def f(this):\n    self = this\n    return self._x",
            "def f(self): return self._x",
            "class A(object):\n  def f(self): return self.format_map({})",
            "class A(object):\n  def f(self): return self._values",
            "class A(object):\n  def f(self): return lambda: self.cr_frame",
            "{k: self.ag_frame for k, self in ()}",
            # A method is given what it should not have; its `self` is not an object of its class.
            "class A(object):\n  def f(self): return self._into\nA.f(globals())",
            "class A(object):\n  def f(self, o):\n    self = o\n    return self._into\nA().f(globals())",
            "class A(object):\n  def f(self, o):\n    self = o\n    self.check = len\nA().f(Process)",
            "class A(object):\n  def f(self, o):\n    for self in [o]: self.check = len\nA().f(Process)",
            "class A(object):\n  def f(self, o):\n    self = o\n    del self.check\nA().f(Process)",
            "class A(object):\n  def f(self, o):\n    self = o\n    self.x += 1\nA().f(Process)",
            "class A(object):\n  def f(self, o):\n    self = o\n    self.x /= 1\nA().f(Process)",
            "class A(object):\n  def f(self): return (lambda self: self._made)(hashlib.md5())\n"
            "import hashlib\nA().f()",
            "import copy\nmemo = {}\ncopy.deepcopy(include, memo)", "class A[T]: pass",
            "type X = int", "def f[T](): pass", "import simplejson", "try: import simplejson\nfinally: pass"]
        for attack in attacks:
            with self.subTest(attack=attack):
                self.refused(attack + "\n" + source(), "")
        self.assertEqual(load(source()).configuration.key.name, "hello")

    def test_nothing_that_source_has_leads_to_the_evaluator(self) -> None:
        """A method would lead to its object, and what _Older writes reads some attributes only."""
        evaluation = aurora_rest._Evaluation(aurora_rest._schema(), {
            "files": {}, "key": "c/r/devel/n".split("/"), "env": [], "trusted": False}, dict)
        names = dict(evaluation.environment["__builtins__"], **evaluation.environment)
        for module in ("sys", "os", "getpass", "copy"):
            names.update(vars(evaluation._import(module)))
        names["write"] = evaluation._import("sys").stdout.write
        owners = [name for name, each in names.items()
                  if isinstance(getattr(each, "__self__", None), aurora_rest._Evaluation)]
        self.assertEqual(owners, [])
        self.assertNotIn("__builtins__", aurora_rest._schema())
        with self.assertRaises(AttributeError):
            names["__attribute__"](len, "__self__")

    def test_plans_that_no_task_can_follow_are_refused(self) -> None:
        def refused(task: str, says: str) -> None:
            text = ("a, b, c = [Process(name=n, cmdline='x') for n in 'abc']\n"
                    "R = Resources(cpu=1.0, ram=1*GB, disk=1*GB)\n"
                    "jobs = [Job(cluster='devcluster', role='www-data', environment='devel', name='hello', "
                    "task=%s)]\n" % task)
            with self.subTest(task=task), self.assertRaisesRegex(aurora_rest.InvalidConfig, says):
                load(text)
        some = "Task(name='t', resources=R, processes=[%s], constraints=%s)"
        for processes, constraints, says in (
                ("a, b, c", "order(a, b) + order(b, c, a)", "Cycles detected in the task schedule!"),
                ("a, b(daemon=True)", "order(b, a)", "process a may not depend upon daemon process b"),
                ("a, b(ephemeral=True)", "order(b, a)", "a may not depend upon ephemeral process b"),
                ("a, b(final=True)", "order(a, b)", "mixes final and other ones: a, b"),
                ("a", "order('a', 'z')", "An order names unknown processes.*: a, z"),
                ("a", "[Constraint()]", "a Constraint without order"),
                ("a", "order(7)", "Unknown value for process order: 7"),
                ("a(name='x/y')", "[]", "Invalid process name: x/y"),
                ("a(cmdline='{{thermos.ports.http}}')", "[]",
                 "Process 'a': a port is written {{thermos.ports.name.}}"),
                ("a(cmdline='{{nobody}}')", "[]", "unbound refs: {{nobody}}")):
            refused(some % (processes, constraints), says)
        refused("SequentialTask(name='t', resources=R, processes=[a, b], constraints=order(a, b))",
                "existing constraints")
        refused("Task(name='t', processes=[a], resources=R(cpu=float('inf')))", "must all be positive")
        refused("Task(name=java_options(7), processes=[a], resources=R)", "unexpected argument to render_op")

    def test_an_answer_of_more_values_than_a_job_has_is_not_read(self) -> None:
        forged = b'{"errors":[' + b"{}," * 300000 + b"1]}"
        forged = struct.pack("!I", len(forged)) + forged
        worker = aurora_rest._Worker(aurora_rest.ConfigLimits())
        self.addCleanup(worker.close)
        with mock.patch.object(aurora_rest, "load_json", side_effect=AssertionError):
            ours, theirs = socket.socketpair()
            given, kept = socket.socketpair()
            socket.send_fds(ours, [b"x"], [given.fileno()]) if hasattr(socket, "send_fds") else ours.sendmsg(
                [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", given.fileno()))])
            given.close()

            def write() -> None:
                kept.sendall(forged)
                kept.close()
            writer = threading.Thread(target=write)
            writer.start()
            real, worker.control = worker.control, theirs
            try:
                self.assertEqual(worker.ask(b"{}", lambda said: None)["errors"], [
                    "the configuration makes more values than a job has"])
            finally:
                worker.control = real
                writer.join()
                for each in (ours, theirs):
                    each.close()

    def test_methods_may_have_private_names(self) -> None:
        text = ("class Counter(object):\n  def __init__(self): self._n = 1; self.m = 2\n"
                "  def both(self):\n    def inner(): return self._n + self.m\n    return inner()\n")
        self.assertEqual(load(text + source(extra="instances=Counter().both()")).configuration.instanceCount,
                         3)

    def isolated_by(self, *layers: Any, **options: Any) -> Any:
        evaluator = aurora_rest.Evaluator(**options)
        self.addCleanup(evaluator.close)
        worker = aurora_rest._Worker(evaluator.limits)
        worker.isolation = list(layers)
        evaluator._idle = [worker]
        evaluator._reserving = True
        return evaluator

    def test_source_is_not_evaluated_where_nothing_shuts_it_in(self) -> None:
        for layers in ((), ("namespaces",), ("empty root", "no capabilities"), ("landlock",),
                       ("namespaces", "empty root")):
            with self.assertRaisesRegex(aurora_rest.IsolationUnavailable, "--trust-configs") as caught:
                load(source(), evaluator=self.isolated_by(*layers))
            self.assertEqual((caught.exception.http, caught.exception.code), (503, "ISOLATION_UNAVAILABLE"))
            load(source(), evaluator=self.isolated_by(*layers, trusted=True))
        for enough in (["system call filter"], ["namespaces", "empty root", "no capabilities"]):
            load(source(), evaluator=self.isolated_by(*enough))

    def test_the_filter_knows_its_machines(self) -> None:
        for machine, pointer, name in (("x86_64", 8, "x86_64"), ("x86_64", 4, "i386"), ("i686", 4, "i386"),
                                       ("armv7l", 4, "armv7"),
                                       ("aarch64", 4, "armv7"), ("ppc64le", 8, "ppc64le"),
                                       ("riscv64", 8, "riscv64")):
            with mock.patch.object(os, "uname", return_value=mock.Mock(machine=machine)), \
                    mock.patch.object(struct, "calcsize", return_value=pointer):
                self.assertEqual(aurora_rest._machine(), name)
            self.assertIn(name, aurora_rest._SECCOMP)
        for name, (abi, calls) in aurora_rest._SECCOMP.items():
            self.assertEqual(list(calls), sorted(set(calls)), name)
            self.assertTrue(abi & 0xC0000000 and 25 < len(calls) < 45, name)

    @unittest.skipUnless(sys.platform.startswith("linux"), "shut in by Linux's means")
    def test_the_layers_are_found_out_and_told(self) -> None:
        layers = EVALUATOR.look()
        self.assertTrue(aurora_rest.isolates(layers), layers)
        self.assertLessEqual(set(layers), set(aurora_rest.LAYERS))

    def test_an_evaluator_that_cannot_start_says_why(self) -> None:
        with mock.patch.object(aurora_rest, "_THIS_FILE", "/nonexistent/aurora_rest.py"), \
                self.assertRaisesRegex(aurora_rest.AuroraError, "does not start: .*nonexistent"):
            aurora_rest._Worker(aurora_rest.ConfigLimits())

    def test_a_caller_with_endless_loops_leaves_an_evaluator_to_others(self) -> None:
        evaluator = aurora_rest.Evaluator(2, aurora_rest.ConfigLimits(cpu_seconds=1, wall_seconds=2.0))
        self.addCleanup(evaluator.close)
        loops = [threading.Thread(target=lambda: self.assertRaises(
            aurora_rest.AuroraError, load, "while True: pass", evaluator=evaluator, caller="loud"))
            for _ in range(3)]
        for each in loops:
            each.start()
        wait_for(lambda: evaluator._semaphore.waiting == 2)
        load(source(), evaluator=evaluator, caller="calm")
        for each in loops:
            each.join()
        self.assertEqual((evaluator._semaphore.inside, evaluator._semaphore.waiting), (0, 0))

    def test_an_include_that_failed_leaves_the_next_one_where_it_was(self) -> None:
        catching = "try:\n  include('d/bad.aurora')\nexcept Exception: pass\ninclude('x.aurora')\n"
        files = {"a.aurora": catching + source(extra="instances=N"),
                 "d/bad.aurora": "1 / 0", "x.aurora": "N = 1", "d/x.aurora": "N = 2"}
        self.assertEqual(load(files).configuration.instanceCount, 1)

    def test_the_name_of_an_include_is_bounded(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluator = aurora_rest.Evaluator(include_root=folder)
            self.addCleanup(evaluator.close)
            with self.assertRaisesRegex(aurora_rest.InvalidConfig, "at most 4096 characters"):
                load("include('d/' + 'x' * 20000000)\n", evaluator=evaluator)

    def test_numbers_of_a_million_digits_are_refused_and_not_reckoned(self) -> None:
        digits = "1" * 5000000          # on Python 3.8 int() of them takes minutes
        for text in ('{"a": %s}' % digits, "[" * 100000, "NaN"):
            with self.assertRaises(ValueError):
                aurora_rest.load_json(text)
        self.assertEqual(aurora_rest.load_json('{"a": %s}' % ("1" * 300)), {"a": int("1" * 300)})
        mine, theirs = config().taskConfig, config().taskConfig
        mine.executorConfig = api.ExecutorConfig(name="AuroraExecutor", data="[%s]" % digits)
        theirs.executorConfig = api.ExecutorConfig(name="AuroraExecutor", data="[%s ]" % digits)
        self.assertFalse(aurora_rest.same_meaning(mine, theirs))

    def test_attacks_on_the_limits_end_within_them(self) -> None:
        evaluator = aurora_rest.Evaluator(limits=aurora_rest.ConfigLimits(cpu_seconds=1, wall_seconds=3.0))
        self.addCleanup(evaluator.close)
        attacks = ["while True: pass", "x = 10**10**10", "x = 'a' * 10**11", "x = [0] * (50 << 20)",
                   "x = list(range(10**9))",
                   "def f(): return f()\nf()", "x = " + "(" * 5000 + ")" * 5000, "x = " + "[" * 90 +
                   "]" * 90 + "\n" + "-" * 100000 + "1",
                   "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
                   "x = '{{x}}{{x}}'\n"
                    "c = Process(name='{{a}}', cmdline='').bind(a='{{a}}{{a}}').name().get()",
                   "def f(n):\n  while True: n = [n]\nf(1)", "print('x' * 10**6 * 10**3)"]
        for attack in attacks:
            with self.subTest(attack=attack[:60]):
                started = time.monotonic()
                with self.assertRaises(aurora_rest.InvalidConfig) as caught:
                    aurora_rest.load_job(attack + "\n" + "jobs = []", "c/r/devel/n", evaluator=evaluator)
                self.assertTrue(caught.exception.messages)
                self.assertLess(time.monotonic() - started, 8.0)
        job = aurora_rest.load_job(source(), "devcluster/www-data/devel/hello", evaluator=evaluator)
        self.assertEqual(job.configuration.key.name, "hello")

    @unittest.skipUnless(sys.platform.startswith("linux"), "the second line of defence is Linux's")
    def test_trusted_source_still_has_no_file_network_process_or_environment(self) -> None:
        evaluator = aurora_rest.Evaluator(trusted=True,
                                          limits=aurora_rest.ConfigLimits(cpu_seconds=1, wall_seconds=3.0))
        self.addCleanup(evaluator.close)
        aurora_rest.load_job("import sys\n" + source(), "devcluster/www-data/devel/hello",
                             evaluator=evaluator)
        for attack in ("open('/etc/passwd')", "import os\nos.listdir('/')", "import socket\nsocket.socket()",
                       "import os\nos.fork()", "import os\nos.kill(os.getppid(), 9)\nassert 0",
                       "import os\nassert os.environ",
                       "import os, signal\nos.killpg(0, 9)\nassert 0",
                       "import os\nos.execv('/bin/true', ['true'])",
                       "import os\nos.open('/proc/self/mem', os.O_RDWR)",
                       "import os\nfor fd in range(256):\n  try: os.write(fd, b'{\"job\": {}}')\n  except "
                       "OSError: pass\nos._exit(0)"):
            with self.subTest(attack=attack), self.assertRaises(aurora_rest.InvalidConfig):
                aurora_rest.load_job(attack + "\n" + source(), "devcluster/www-data/devel/hello",
                                     evaluator=evaluator)
        aurora_rest.load_job(source(), "devcluster/www-data/devel/hello", evaluator=evaluator)

    def test_a_source_that_hangs_up_or_answers_early_holds_up_nobody(self) -> None:
        evaluator = aurora_rest.Evaluator(1, trusted=True, limits=aurora_rest.ConfigLimits(wall_seconds=30.0))
        self.addCleanup(evaluator.close)
        load(source(), evaluator=evaluator)
        started = time.monotonic()
        forged = ("for fd in range(3, 64):\n  try: os.write(fd, b'{\"errors\": [\"early\"]}')\n  except "
                  "OSError: pass\n")
        for attack in ("", forged):
            with self.assertRaises(aurora_rest.InvalidConfig):
                load("import os, time\n" + attack + "os.closerange(3, 64)\ntime.sleep(20)\n" + source(),
                     evaluator=evaluator)
            load(source(), evaluator=evaluator)
        self.assertLess(time.monotonic() - started, 10)

    def test_the_quickened_pystachio_finds_what_pystachio_finds(self) -> None:
        texts = ["{{x}}", "{{role}}-{{&x}}", "{{self.name}}{{super.name}}",
                 "{{mesos.instance}}{{thermos.ports[a]}}", "{{y}}", "{{{{x}}}}",
                 "{{n}}", "{{self.contact}}", "{{super.super.name}}", "plain"]
        tail = ["", "jobs = [j.bind(x='{{role}}', y='{{x}}') for j in jobs]",
                "jobs = [j(task=j.task()(name='{{x}}')).bind(x='q') for j in jobs]",
                "jobs = [j(instances='{{n}}', priority='1').bind(n=2) for j in jobs]",
                "jobs = [jobs[0](contact='{{name}}', constraints={'{{x}}': '{{x}}'})]",
                "t = jobs[0].task(); print(t.get(), t.check().ok(), t == t(), t.processes()[0].name(), '1' "
                "in t.processes()); jobs = jobs * 1",
                "t = jobs[0].task().bind(z='1'); j = jobs[0](task=t)\nprint(j.task()(name='{{z}}').name(), "
                "(j % {}).task()(name='{{z}}').name(), j.interpolate()[0].task()(name='{{z}}').name())",
                "j = jobs[0](task=jobs[0].task()(processes=[p.bind(z='1') for p in "
                "jobs[0].task().processes()]))\n"
                "print((j % {}).task().processes()[0](cmdline='{{z}}').cmdline(), "
                "j.task()(name='{{z}}').processes()[0](name='{{z}}').name())",
                "jobs = [jobs[0](instances='x')]",
                "jobs = [jobs[0](task=jobs[0].task()(resources=Resources(cpu='{{n}}', ram=1, disk='2')))]"]
        requests = [{"files": {"job.aurora": source(command=text,
                extra="health_check_config=HealthCheckConfig(interval_secs=%r)" % (
            "{{n}}" if "n" in text else 7)) + end}, "key": ["devcluster", "www-data", "devel", "hello"],
            "bindings": bindings}
            for text in texts for end in tail for bindings in ([], [["x", "1"], ["n", "3"]])]
        program = ("import json, sys; sys.path[:0] = [%r]; import aurora_rest as a\nif sys.argv[1] == "
                   "'stock': a._quicken_pystachio = lambda: None\n[__import__(a._RENAMED.get(name, name)) "
                   "for name, given in a._MODULES.items() if given != '*']\nschema = a._schema()\n"
                   "for each in json.load(sys.stdin):\n    print(json.dumps(a._Evaluation(schema, "
                   "dict(a._WARM_UP, tiers=a.DEFAULT_TIERS, **each), dict).run(), sort_keys=True))" % HERE)
        runs = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, kind], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True,
                                 env=dict(os.environ, PYTHONHASHSEED="1")) for kind in ("stock", "quick")]
        stock, quick = (each.communicate(json.dumps(requests))[0].split("\n") for each in runs)
        self.assertEqual(len(stock), len(requests) + 1)
        self.assertGreater(sum('"job"' in line for line in stock), 40)
        for request, expected, found in zip(requests, stock, quick):
            self.assertEqual(expected, found, request)

    def test_a_forged_result_for_another_job_is_refused(self) -> None:
        forged = {"job": {"key": {"role": "root", "environment": "prod", "name": "x"}, "instanceCount": 1,
                          "taskConfig": {"job": {"role": "root", "environment": "prod", "name": "x"}}},
                          "warnings": []}
        for answer in (forged, {"job": 1}, {}, {"job": {"key": 3}}, {"job": {"instanceCount": "1"}}):
            with mock.patch.object(EVALUATOR, "_ask", return_value=answer), \
                    self.assertRaises(aurora_rest.InvalidConfig):
                load(source())

    def test_an_evaluator_that_was_killed_is_replaced(self) -> None:
        load(source())
        with EVALUATOR._lock:
            victims = list(EVALUATOR._idle)
        for each in victims:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
        for _ in range(len(victims) + 1):
            self.assertEqual(load(source()).configuration.key.name, "hello")


def find_python2() -> Any:
    for each in glob.glob(os.path.expanduser("~/.pyenv/versions/2.7*/bin/python2.7")) + [shutil.which(
        "python2.7")]:
        if each and subprocess.run([each, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return each
    return None


PYTHON2 = find_python2()


def python2(program: Any, text: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.py")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("# coding: utf-8\n" + program)
        return subprocess.run([PYTHON2, path], input=text, stdout=subprocess.PIPE, check=True, text=True,
                              env={"LC_ALL": "C"}).stdout


def expression(rng: Any, depth: Any = 0) -> Any:
    """One that Python 2 and 3 write alike."""
    if depth > 3 or rng.random() < 0.3:
        return rng.choice(["x", "y.z", "12", "0", "1.5", "0x1F", "1e3", "'a'", '"b\\n"', "'''c\nd'''",
                           "r'\\d'", "None", "f(1, *a, **k)", "[]"])
    inner = partial(expression, rng, depth + 1)
    return rng.choice(["(%s + %s)", "[%s, %s]", "{%s: %s}", "(%s if 1 else %s)", "(lambda a, b=%s: %s)",
                       "x[%s:%s]", "f(%s, k=%s)",
                       "(%s and not %s)", "[%s for i in %s if i]", "(%s == %s)", "(%s,\n  %s)",
                       "(%s # c\n, %s)"]) % (inner(), inner())


def python3_source(rng: Any) -> Any:
    """Statements that Python 3 reads, and that mean the same in Python 2 where that has them."""
    lines = ["import json"]
    for _ in range(rng.randint(3, 12)):
        value = expression(rng)
        lines.append(rng.choice([
            "x = %s", "x += %s; y = 1", "if %s: pass", "for i in %s:\n    x = i\nelse:\n    pass",
            "def f(a, *, b=2, **k):\n    return %s",
            "print(%s)", "print('a', %s, sep='', end='')", "x: int = %s", "s = f'{x!r:>{y}} {z}' + str(%s)",
            "try:\n    x = %s\nexcept (A, B) as e:\n    raise",
            "raise X(%s) from None", "assert %s, 'm'", "@deco\ndef g(a: int = 1) -> str:\n    nonlocal_ = %s",
            "class C(object):\n    a = %s",
            "while %s:\n    break", "x = y = %s  # print x, 0755", "lambda a, b: %s", "del x[%s]",
            "return_ = (yield_) = %s"]) % value)
    return "\n".join(lines) + "\n"


def python2_source(rng: Any) -> Any:
    """Statements as Python 2 writes them, some of them wrong."""
    lines: Any = []
    for _ in range(rng.randint(1, 5)):
        value = rng.choice([expression(rng), "0755", "10L", "`x`", "ur'\\u0041'", "'\\U&'", "1 <> 2",
                            "lambda (a, b), c: a", "08"])
        lines.append(rng.choice([
            "print %s", "print %s,", "print >>f, %s", "print >>f", "print", "if x: print %s; print",
            "print (%s), 1", "print('%%s') %% (%s)",
            "exec %s", "exec %s in d", "exec 'x' in d, {'k': %s}", "raise X, %s", "raise X, %s, t",
            "try: pass\nexcept X, e: print %s",
            "def f((a, b), c=%s): return a", "def f(a, (b, (c, d))=(1, %s)):\n    print a", "x = %s",
            "async = %s", "def g(await=1): return %s",
            "class A: x = %s", "for x in %s: print x,", "if 1:\n        x = %s\n\ty = 2",
            "x = lambda (a, b)=%s: a"]).replace(
                "%s", value).replace("%%", "%"))
    return "\n".join(lines) + "\n"


class Python2Test(Serving):
    """What a source means to Python 2.7, on which the client runs. The values are those of CPython 2.7.18."""

    def said(self, lines: Any, show: Any = "X", **options: Any) -> Any:
        """What `show` is after the lines, as the command line of a job."""
        text = "%s\nRESULT = '%%s' %% (%s,)\n" % (lines, show) + source().replace("'serve'", "RESULT")
        data = load(text, **options).configuration.taskConfig.executorConfig.data
        return json.loads(data)["task"]["processes"][0]["cmdline"]

    def refused(self, text: Any, says: Any, **options: Any) -> Any:
        with self.assertRaisesRegex(aurora_rest.InvalidConfig, says) as caught:
            load(text + "\n" + source(), **options)
        return caught.exception

    def table(self, rows: Any) -> None:
        for lines, show, expected in rows:
            with self.subTest(lines=lines, show=show):
                self.assertEqual(self.said(lines, show), expected)

    def test_syntax(self) -> None:
        self.table((
            ("try: int('z')\nexcept (KeyError, ValueError), e: X = e.message[:7]", "X + repr(e)[:10]",
             "invalidValueError"),
            ("try: raise ValueError, ('a', 'b')\nexcept ValueError, e: pass", "e", "('a', 'b')"),
            ("try: raise KeyError('k'), None\nexcept KeyError, e: pass", "e", "'k'"),
            ("", "(0755, 10L, 0xFFL, 00, 0o17, 1 <> 2, `1, 'a'`)",
             "(493, 10, 255, 0, 15, True, \"(1, 'a')\")"),
            ("", r"ur'\u0041\n'", "A\\n"), ("", r"ur'\'x'", "\\'x"),
            ("", r"'s/x/\U&/ \u0041 \N{DASH}' + '\\u0041' + u'\u0041' + '\x41'",
             "s/x/\\U&/ \\u0041 \\N{DASH}\\u0041AA"),
            ("from __future__ import unicode_literals", r"'\u0041'", "A"),
            ("", r"'caf\xc3\xa9' == 'café'", "True"),
            ("exec 'X = 1'\nexec 'Y = X + 1' in globals()\nd = {'z': 5}\nexec 'w = z' in d", "X + Y + d['w']",
             "8"),
            ("def f((a, (b, c)), d=(1, 2)): return a, b, c, d\nX = f((1, (2, 3)))", "X", "(1, 2, 3, (1, 2))"),
            ("X = map(lambda (k, v), n=1: k * v + n, [(1, 2), (3, 4)])", "X", "[3, 13]"),
            ("", "[a in b for a in 1, 2 for b in [[1], [3]] if a]", "[True, False, False, False]"),
            ("if True:\n        a = 'x'\n\tb = 'y'", "a + b", "xy"),
            ("def run(async=False, await=1): return async, await\nnonlocal = 3",
             "run(async=True) + (nonlocal,)", "(True, 1, 3)"),
            ("X = {'print': 1}['print']\ndef f(x, *, y=2): return x + y", "f'{X}' + str(f(1))", "13")))

    def test_exec_reads_and_writes_the_locals_it_is_given(self) -> None:
        self.table((
            ("d = {}\nexec 'b = a * 2' in {'a': 4}, d", "d", "{'b': 8}"),
            ("d = {'a': 1}\nexec 'b = a + c' in {'a': 4, 'c': 2}, d", "sorted(d.items())",
             "[('a', 1), ('b', 3)]")))

    def test_keywords_come_into_a_dict_as_they_lie_on_the_stack(self) -> None:
        # these three fall upon one place of the table: the first that comes takes it
        self.table((
            ("", "dict(a2=1, b=2).keys()", "['b', 'a2']"), ("", "dict(b=2, a2=1).keys()", "['a2', 'b']"),
            ("X = {}\nX.update(a2=1, b=2)", "X", "{'b': 2, 'a2': 1}"),
            ("X = {}\nX.update(a2=1, b=2, **{'z': 0})", "X", "{'z': 0, 'b': 2, 'a2': 1}"),
            ("from collections import defaultdict as d\nX = d(int, b=2, a2=1)", "X.keys()", "['b', 'a2']"),
            ("from collections import defaultdict\nX = defaultdict(int, a2=1, b=2)", "X.keys()",
             "['b', 'a2']"),
            ("X = {}\nX['a2'] = 1\nX['b'] = 2", "X", "{'a2': 1, 'b': 2}")))

    def test_numbers_as_text_in_other_bases(self) -> None:
        self.table((
            ("from functools import partial", "partial(int, base=2)('101')", "5"),
            ("", "int(x='7') + long('12', base=8)", "17"),
            ("", "(oct(8), oct(0), oct(2**65), '%#o' % 2**65)",
             "('010', '0', '04000000000000000000000L', '04000000000000000000000')"),
            ("", "'%x %X %o' % (2.5, 255.9, 8.0)", "2 FF 10"),
            ("try: X = oct(None)\nexcept TypeError: X = 'no'", "X", "no")))

    def test_jobs_may_come_from_a_generator(self) -> None:
        text = source().replace("jobs = [", "jobs = (each for each in [").rstrip().rstrip("]") + "])"
        self.assertEqual(load(text).configuration.instanceCount, load(source()).configuration.instanceCount)

    def test_print(self) -> None:
        text = ("import sys, StringIO\nprint 'a', 1\nprint 'b',\nprint 'c'\nprint\nprint ('x'), 'y'\nprint "
                "('%s') % 1; print -1\nif 1: print [1][0]\nelse: print 2\nprint >>sys.stderr, 'e', 0.1 + "
                "0.2\nprint('k', 2, sep='-', end=None)\nprint 1e11 # c\no = StringIO.StringIO()\nprint >>o, "
                "'in'\nprint o.getvalue()\nprint 'not', \\\n  'done',")
        error = self.refused(text + "\nraise ValueError, 'stop'", "stop")
        self.assertEqual(error.details["output"], [
            "a 1", "b c", "", "x y", "1", "-1", "1", "e 0.3", "k-2", "1e+11", "in", "", "not done "])

    def test_more_of_the_language_and_its_modules(self) -> None:
        self.table((
            ("import random\nrandom.seed(7)",
             "(random.sample(range(10), 4), random.sample(range(1000), 3), random.sample('abc', 3))",
             "([3, 1, 5, 0], [535, 365, 57], ['b', 'a', 'c'])"),
            ("import random\nrandom.seed('x')",
             "(random.expovariate(2.0), random.randrange(3, 30, 5), random.randint(1, 6), "
             "random.choice('abc'))", "(0.38585858845845133, 18, 5, 'b')"),
            ("import random\nr = random.Random(3)\nx = range(6)\nr.shuffle(x)",
             "(x, r.uniform(1, 2), r.randrange(10 ** 20))",
             "([0, 4, 3, 5, 2, 1], 1.065528859239813, 78571213365132106840L)"),
            ("import random\ntry: random.sample([1], 2)\nexcept ValueError, e: X = str(e)", "X",
             "sample larger than population"),
            ("import random\ntry: random.randrange(0)\nexcept ValueError, e: X = str(e)", "X",
             "empty range for randrange()"),
            ("import random\nrandom.seed(1)", "random.sample({1: 2, 3: 4, 5: 6}, 2)", "[1, 3]"),
            ("import random\nrandom.seed(5)\nx = range(20)\nrandom.shuffle(x)", "x",
             "[19, 4, 5, 17, 2, 10, 8, 3, 1, 9, 7, 15, 6, 0, 13, 11, 16, 18, 14, 12]"),
            ("s = set('abcdefgh')\ns.intersection_update('aceg')", "(sorted(s), s, s.pop(), len(s))",
             "(['a', 'c', 'e', 'g'], set(['c', 'e', 'g']), 'a', 3)"),
            ("s = set(range(20))\ns.difference_update([1, 2], (3,))", "s",
             "set([0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19])"),
            ("s = set(range(40))\ns.difference_update(range(30))\ns.add('x')\ns.add('y')", "s",
             "set([30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 'y', 'x'])"),
            ("s = set('hello')\ns.symmetric_difference_update('help')", "s", "set(['p', 'o'])"),
            ("s = set('hello world')\ns -= set('ol')\ns |= set('xyz')\ns &= set('hexyz')\ns ^= " "set('hq')",
             "s", "set(['e', 'q', 'y', 'x', 'z'])"),
            ("s = set([1, 2])\ns.clear()\ns.add('b')\ns.add('a')",
             "(s, set(), frozenset(), frozenset('ab'))",
             "(set(['a', 'b']), set([]), frozenset([]), frozenset(['a', 'b']))"),
            ("a = frozenset('abc')",
             "(a | set('d'), a & set('ab'), a - set('a'), a ^ set('ad'), a.union('xy', 'z'), a.copy() "
             "is a)", "(frozenset(['a', 'c', 'b', 'd']), frozenset(['a', 'b']), frozenset(['c', 'b']), "
             "frozenset(['c', 'b', 'd']), frozenset(['a', 'c', 'b', 'y', 'x', 'z']), True)"),
            ("a = set('abc')", "(a.union('xy'), a.intersection('ab', 'bc'), a.difference('a', 'b'), "
             "a.symmetric_difference('cd'), a.copy())",
             "(set(['a', 'x', 'c', 'b', 'y']), set(['b']), set(['c']), set(['a', 'b', 'd']), "
             "set(['a', 'c', 'b']))"),
            ("try: set().pop()\nexcept KeyError, e: X = str(e)", "X", "'pop from an empty set'"),
            ("try: {}.popitem()\nexcept KeyError, e: X = str(e)", "X", "'popitem(): dictionary is empty'"),
            ("", "dict.fromkeys(['web', 'app', 'db', 'cache', 'queue'], 1)",
             "{'queue': 1, 'web': 1, 'app': 1, 'cache': 1, 'db': 1}"),
            ("", "(dict.fromkeys('spam'), dict.fromkeys(set(['x', 'y', 'zebra']), 0), dict.fromkeys((c "
             "for c in 'eggs'), 2))",
             "({'a': None, 'p': None, 's': None, 'm': None}, {'y': 0, 'x': 0, 'zebra': 0}, {'s': 2, "
             "'e': 2, 'g': 2})"),
            ("d = dict(a=1, b=2, c=3)\nd.clear()\nd['z'] = 1\nd['y'] = 2", "d", "{'y': 2, 'z': 1}"),
            ("d = dict(a=1, bb=2, ccc=3)\nX = []\nwhile d: X.append(d.popitem())", "X",
             "[('a', 1), ('ccc', 3), ('bb', 2)]"),
            ("import copy\nd = copy.deepcopy({'a': [1, {'b': 2}], 'zz': set([1])})", "d",
             "{'a': [1, {'b': 2}], 'zz': set([1])}"),
            ("d = {'a': 1, 'b': 2}",
             "(d.viewkeys(), d.viewvalues(), d.viewitems()) if 0 else (d.keys(), d.values(), "
             "d.items(), d.iteritems().next())", "(['a', 'b'], [1, 2], [('a', 1), ('b', 2)], ('a', 1))"),
            ("from collections import OrderedDict",
             "(OrderedDict(), OrderedDict([('b', 1), ('a', 2)]), dict(OrderedDict([('b', 1), ('a', "
             "2)])))", "(OrderedDict(), OrderedDict([('b', 1), ('a', 2)]), {'a': 2, 'b': 1})"),
            ("X = []\nfor f, v in (('%s %s', (1,)), ('%s', (1, 2)), ('%(a)s', 3), ('%', 1), ('%d', "
             "'x'), ('%q', 1), ('%(a)s', (1,))):\n  try: X.append(f % v)\n  except (TypeError, "
             "ValueError, KeyError), e: X.append(e.__class__.__name__)", "X",
             "['TypeError', 'TypeError', 'TypeError', 'ValueError', 'TypeError', 'ValueError', "
             "'TypeError']"),
            ("", "('100%%' % (), '%5.1f|%-5s|%05d|%+d|%x|%#o|%#x|%c|%r' % (2.25, 'ab', 42, 7, 255, 8, "
             "255, 'z', u'q'))", "('100%', \"  2.2|ab   |00042|+7|ff|010|0xff|z|u'q'\")"),
            ("", "('%*d|%.*f' % (5, 42, 2, 3.14159), '%(a)s %(b)05.1f %%' % {'a': 1, 'b': 2.5})",
             "('   42|3.14', '1 002.5 %')"),
            ("", "('a\\\\n'.decode('string_escape'), 'x'.decode('ascii'), "
             "'caf\\xc3\\xa9'.decode('utf-8').encode('utf-8'))", "('a\\n', u'x', 'caf\\xc3\\xa9')"),
            ("import string",
             "('abcabc'.translate(string.maketrans('ab', 'xy')), 'abc'.translate(None, 'b'), "
             "u'abc'.translate({97: u'z'}))", "('xycxyc', 'ac', u'zbc')"),
            ("", "(float('1e3'), float(' 2 '), float('inf'), round(1e300), round(2.5, -400), round(1.5, "
             "400), float(3))", "(1000.0, 2.0, inf, 1e+300, 0.0, 1.5, 3.0)"),
            ("", "(hash(1.5), hash(0.1), hash(1e100), hash(float('inf')), hash(-float('inf')), hash(2.0), "
             "hash(-1), hash(2**70), hash((1, 'a', 2.5)))",
             "(1610645504, 2576882278, -5970202163673034167, 314159, -271828, 2, -2, 64, "
             "-7878324146350308376)"),
            ("", "(hash(''), hash('a'), hash('abc'), hash(u'abc'), hash(None) is not None, hash(True), "
             "hash(()), hash(frozenset([1, 2])))",
             "(0, 12416037344, 1453079729188098211, 1453079729188098211, True, 1, 3527539, "
             "-1834016341293975159)"),
            ("", "(cmp([1, 2], [1, 3]), cmp((1,), (1, 2)), cmp({'a': 1}, {'a': 2}), cmp({'a': 1}, {'b': "
             "1}), cmp({}, {1: 1}), cmp('a', 1), cmp(None, 0), cmp(1, 2.5))",
             "(-1, -1, -1, -1, -1, 1, -1, -1)"),
            ("", "(sorted([3, 'a', None, 2.5, u'b', (1,), [1]]), 1 < 'a', None < 1, [] > {}, max('a', 1), "
             "min([1], (1,)))", "([None, 2.5, 3, [1], 'a', (1,), u'b'], True, True, True, 'a', [1])"),
            ("", "({'a': 1} < {'a': 2}, {'b': 1} < {'a': 2}, {1: 2} == {1: 2.0}, [1, 'a'] < [1, 2])",
             "(True, False, True, False)"),
            ("class A(object):\n  def __init__(self): self.x = 1\n  def name(self): return "
             "self.__class__.__name__",
             "(A().name(), type(A()).__name__, A.__name__, getattr(A(), 'x'), getattr(A(), 'y', "
             "'no'), hasattr(A(), 'z'))", "('A', 'A', 'A', 1, 'no', False)"),
            ("class A:\n  x = [1, 2]\na = A()\ndef f(): return a\nf().x[0] += 5\ndef g(): return 0\n"
             "f().x[g()] *= 2", "(A.x, a.x)", "([12, 2], [12, 2])"),
            ("d = {'k': [1]}\ndef k(): return 'k'\nd[k()] += [2]\nd[k()][0] -= 7", "d", "{'k': [-6, 2]}"),
            ("", "({c: ord(c) for c in 'hello'}, {c for c in 'hello'}, {'x', 'yy', 'zzz'}, [c for c in "
             "{'b': 1, 'a': 2}])",
             "({'h': 104, 'e': 101, 'l': 108, 'o': 111}, set(['h', 'e', 'l', 'o']), set(['yy', 'x', "
             "'zzz']), ['a', 'b'])"),
            ("", "(dict([('b', 1), ('a', 2)], c=3), dict({'x': 1}, y=2), {'a': 1, 'b': 2, 'a': 3})",
             "({'a': 2, 'c': 3, 'b': 1}, {'y': 2, 'x': 1}, {'a': 3, 'b': 2})"),
            ("import json",
             "(json.dumps({'b': 1, 'a': [1.0, None, True, u'x']}), json.dumps({'b': 1, 'a': 2}, "
             "indent=2), json.dumps([1, 2], separators=(',', ':')), json.loads('{\"z\": 1, \"a\": "
             "[1.5]}'))",
             "('{\"a\": [1.0, null, true, \"x\"], \"b\": 1}', '{\\n  \"a\": 2, \\n  \"b\": 1\\n}', "
             "'[1,2]', {u'a': [1.5], u'z': 1})"),
            ("import sys\nsys.stdout.writelines(['a', 'b'])\nsys.stdout.flush()", "sys.version_info[:2]",
             "(2, 7)"),
            ("import math",
             "(math.log(8, 2), math.sqrt(2), math.pi, math.factorial(20), math.fsum([.1] * 10), "
             "math.trunc(2.7), math.hypot(3, 4))",
             "(3.0, 1.4142135623730951, 3.141592653589793, 2432902008176640000, 1.0, 2, 5.0)"),
            ("", "(repr(0.1), str(0.1), repr(1e16), str(1e16), repr(1e22), repr(-0.0), str(1.0), "
             "repr(100.0), repr(1/3.0))",
             "('0.1', '0.1', '1e+16', '1e+16', '1e+22', '-0.0', '1.0', '100.0', '0.3333333333333333')"),
            ("", "(map(None, [1, 2], 'ab'), zip('ab', [1]), filter(None, [0, 1, '']), filter(lambda c: c "
             "!= 'b', 'abc'), reduce(lambda a, b: a * b, [1, 2, 3], 4), apply(max, (1, 2)))",
             "([(1, 'a'), (2, 'b')], [('a', 1)], [1], 'ac', 24, 2)"),
            ("", "('a,b,,c'.split(','), ' a b '.split(), 'abc'.find('c'), 'aXbX'.replace('X', '-', 1), "
             "'abc'.partition('b'), 'a-b-c'.rsplit('-', 1), 'abc'.center(7, '*'), 'x'.zfill(3), "
             "'Ab'.swapcase())",
             "(['a', 'b', '', 'c'], ['a', 'b'], 2, 'a-bX', ('a', 'b', 'c'), ['a-b', 'c'], '**abc**', "
             "'00x', 'aB')"),
            ("", "('{0} {1!r} {a:>4}|{b:.2f}'.format(1, 'x', a='y', b=2.0), '{:,}'.format(1234567), "
             "'{:%}'.format(0.25), '{0[k]} {1.real}'.format({'k': 1}, 2))",
             "(\"1 'x'    y|2.00\", '1,234,567', '25.000000%', '1 2')"),
            ("", "(unicode('x'), u'\\xe9', [u'\\xe9', 'x'], u'a' + 'b', 'a' == u'a', str(u'abc'), "
             "isinstance(u'x', basestring), unicode(1.5))",
             "(u'x', u'\\xe9', [u'\\xe9', 'x'], u'ab', True, 'abc', True, u'1.5')"),
            ("X = []\ntry:\n  try: raise KeyError('a')\n  finally: X.append('f')\nexcept (KeyError, "
             "ValueError), e: X.append(repr(e))\nelse: X.append('no')", "X", "['f', \"KeyError('a',)\"]"),
            ("def f(a, b=2, *c, **d): return (a, b, c, sorted(d.items()))",
             "(f(1), f(1, 3, 4, x=5), f(*[1, 2, 3], **{'z': 0}))",
             "((1, 2, (), []), (1, 3, (4,), [('x', 5)]), (1, 2, (3,), [('z', 0)]))"),
            ("def gen(n):\n  for i in range(n): yield i * i\ng = gen(3)",
             "(g.next(), list(g), sum(gen(4)), [x for x in gen(3) if x], any(gen(1)), all(gen(2)))",
             "(0, [1, 4], 14, [1, 4], False, False)"),
            ("import itertools, operator",
             "(list(itertools.imap(operator.add, [1, 2], [3, 4])), list(itertools.izip('ab', 'cd')), "
             "list(itertools.chain('a', 'b')), list(itertools.ifilter(None, [0, 2])), "
             "list(itertools.islice('abcdef', 1, 4)), [(k, list(g)) for k, g in "
             "itertools.groupby('aab')])",
             "([4, 6], [('a', 'c'), ('b', 'd')], ['a', 'b'], [2], ['b', 'c', 'd'], [('a', ['a', "
             "'a']), ('b', ['b'])])"),
            ("import re",
             "(re.sub(r'(\\d+)', r'<\\1>', 'a1b22'), re.findall('[a-z]', 'a1b'), re.match('(?P<x>a)', "
             "'ab').group('x'), re.split('[,;]', 'a,b;c'), re.escape('a.b'), re.compile('x', "
             "re.I).search('aX').start())", "('a<1>b<22>', ['a', 'b'], 'a', ['a', 'b', 'c'], 'a\\\\.b', 1)"),
            ("import hashlib, base64, binascii, zlib",
             "(hashlib.md5('a').hexdigest(), hashlib.sha1('a').hexdigest()[:8], "
             "base64.b64encode('hi'), binascii.hexlify('hi'), zlib.crc32('hello'), "
             "base64.b64decode('aGk='))",
             "('0cc175b9c0f1b6a831c399e269772661', '86f7e437', 'aGk=', '6869', 907060870, 'hi')"),
            ("import os.path",
             "(os.path.join('a', '/b'), os.path.join('a', 'b'), os.path.basename('/x/y.z'), "
             "os.path.splitext('a.b.c'), os.path.dirname('/x/y'), os.path.normpath('a/../b/./c'))",
             "('/b', 'a/b', 'y.z', ('a.b', '.c'), '/x', 'b/c')"),
            ("import string",
             "(string.Template('$a ${b} $$').substitute(a=1, b=2), string.letters, string.digits, "
             "string.join(['a', 'b'], '-'), string.upper('x'), string.capwords('ab cd'), "
             "string.zfill('1', 3))",
             "('1 2 $', 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ', '0123456789', 'a-b', "
             "'X', 'Ab Cd', '001')"),
            ("import textwrap", "(textwrap.dedent('  a\\n  b'), textwrap.fill('aaa bbb ccc', 7))",
             "('a\\nb', 'aaa bbb\\nccc')"),
            ("import urllib",
             "(urllib.quote('a b/c~'), urllib.quote_plus('a b&c'), urllib.unquote('a%20b'), "
             "urllib.urlencode([('a', 1), ('b', 'x y')]), urllib.urlencode({'k': [1, 2]}, True))",
             "('a%20b/c%7E', 'a+b%26c', 'a b', 'a=1&b=x+y', 'k=1&k=2')"),
            ("import functools",
             "(functools.partial(int, base=2)('101'), functools.reduce(lambda a, b: a + b, 'abc'))",
             "(5, 'abc')"),
            ("import time", "(time.strftime('%Y', time.gmtime(0)), time.gmtime(86400)[:3])",
             "('1970', (1970, 1, 2))"),
            ("", "(oct(64), hex(255), bin(5), chr(65), unichr(233), ord('a'), abs(-2), pow(2, 10, 1000), "
             "coerce(1, 2.0), callable(len), bool([]), 1 if [] else 2)",
             "('0100', '0xff', '0b101', 'A', u'\\xe9', 97, 2, 24, (1.0, 2.0), True, False, 2)"),
            ("", "('abc'[::-1], 'abc'[5:], [1, 2, 3][-2:], (1, 2)[0], 'a' in 'cab', 3 not in [1], not 1, "
             "1 and 2, 0 or 'x', 1 < 2 < 3, 1 == 1.0 == True)",
             "('cba', '', [2, 3], 1, True, True, False, 2, 'x', True, True)"),
            ("x = [3, 1, 2]\nx.sort()\ny = ['b', 'A', 'c']\ny.sort(key=str.lower, reverse=True)\nz = "
             "[1, 2, 3]\nz.sort(lambda a, b: cmp(b, a))\ndel z[0]\nz.insert(0, 9)\nz.extend('q')",
             "(x, y, z, z.index(9), z.count('q'), z.pop(), sorted('bca', cmp=lambda a, b: cmp(b, a)))",
             "([1, 2, 3], ['c', 'b', 'A'], [9, 2, 1], 0, 1, 'q', ['c', 'b', 'a'])"),
            ("a, (b, c) = 1, (2, 3)\nx = y = []\nx.append(1)\na += b\nassert a == 3, 'no'", "(a, b, c, y)",
             "(3, 2, 3, [1])"),
            ("class B(object):\n  @property\n  def p(self): return 7\n  @staticmethod\n  def s(x): "
             "return x + 1\n  @classmethod\n  def c(cls): return cls.__name__\n  def __str__(self): "
             "return 'bee'\n  def __getitem__(self, k): return k * 2\n  def __len__(self): return 3\n"
             "class C(B):\n  def s2(self): return super(C, self).p",
             "(B().p, B.s(1), C.c(), str(B()), '%s' % B(), B()['x'], len(B()), C().s2(), "
             "isinstance(C(), B), issubclass(C, B))", "(7, 2, 'C', 'bee', 'bee', 'xx', 3, 7, True, True)"),
            ("l = lambda (a, b), c=1: a + b + c\ndef f(x, (y, z)): return x, y, z",
             "(l((1, 2)), f(1, (2, 3)))", "(4, (1, 2, 3))"),
            ("import zlib", "(zlib.crc32('hello'), zlib.crc32('www-data/prod'), zlib.adler32('hello'), "
             "zlib.crc32('b', zlib.crc32('www-data/prod')))",
             "(907060870, -457460447, 103547413, 1026769938)"),
            ("import random\nr = random.Random(3)",
             "(r.randrange(10 ** 20), r.randrange(5, 10 ** 30, 7), r.randrange(-10, -10 ** 20, -3))",
             "(84719271504320872445L, 322138906904164525610262135383L, -56068951629167703745L)")))

    def test_numbers_and_text(self) -> None:
        self.table((
            ("", "(str(0.1 + 0.2), '%s' % (1/3.0), '{}|{:>6}'.format(2/3.0, 3.0), [0.1 + 0.2])",
             "('0.3', '0.333333333333', '0.666666666667|   3.0', [0.30000000000000004])"),
            ("", "' '.join(map(str, [1e11, 1e15, 123456789.123456789, -0.0, 100000.0, 99999999999.0, 1e-5]))",
             "1e+11 1e+15 123456789.123 -0.0 100000.0 99999999999.0 1e-05"),
            ("", "(round(2.5), round(-0.5), round(2.25, 1), round(2.675, 2), round(25, -1), int(round(2.5)))",
             "(3.0, -1.0, 2.3, 2.67, 30.0, 3)"),
            ("", "(sum([0.1] * 10), sum([1, 2.5], 3))", "(0.9999999999999999, 6.5)"),
            ("import math",
             "(math.floor(7.9), math.ceil(7.1), oct(8), oct(0), hex(2**70), 7 / 2, -7 / 2, 2**63)",
             "(7.0, 8.0, '010', '0', '0x400000000000000000L', 3, -4, 9223372036854775808L)"),
            ("d = {'a': 7}\nd['a'] /= 2\ns = '%s!'\ns %= 0.1 + 0.2", "(d, s)", "({'a': 3}, '0.3!')"),
            ("", "(5 > None, '10' > 5, [] < '', (1,) > 'x', 1 < 'a' < (1,), max([1, None]), cmp([1, 'a'], "
                 "[1, 2]), cmp({1: 2}, {1: 3}))",
             "(True, True, True, True, True, 1, 1, -1)"),
            ("", "sorted([3, 'a', None, 1.5, (1,), [2], u'b'])", "[None, 1.5, 3, [2], 'a', (1,), u'b']"),
            ("n = ['b', 'aa', 'c']\nn.sort(cmp=lambda a, b: cmp(len(b), len(a)))",
             "n + sorted('ba', lambda a, b: cmp(b, a))", "['aa', 'b', 'c', 'b', 'a']"),
            ("", "(apply(max, (1, 2)), intern('x'), unichr(97), coerce(1, 2.0), map(None, [1, 2], [3]), "
                 "zip('ab', [1]))",
             "(2, 'x', u'a', (1.0, 2.0), [(1, 3), (2, None)], [('a', 1)])"),
            ("", "(filter(str.isdigit, 'a1'), filter(None, (0, 1)), map(lambda a, b: b, [1], [2, 3]))",
             "('1', (1,), [2, 3])"),
            ("it = iter('ab')\nY = [z for z in range(3)]\nclass E(Exception): pass",
             "(it.next(), z, E('m').message, E.__name__)",
             "('a', 2, 'm', 'E')"),
            ("def g():\n  [y for y in 'abc']\n  return y", "(g(), g.func_name, E if 0 else 1)",
             "('c', 'g', 1)"),
            ("import string",
             "(string.join(['a', 'b'], '-'), string.letters[:2], 'hello'.translate(string.maketrans('el', "
             "'ip')))",
             "('a-b', 'ab', 'hippo')"),
            ("import itertools as i",
             "(list(i.izip('ab', (1, 2))), list(i.izip_longest([1], [2, 3])), list(i.imap(None, [1], [2])))",
             "([('a', 1), ('b', 2)], [(1, 2), (None, 3)], [(1, 2)])"),
            ("import random\nrandom.seed(11)\nl = range(10)\nX = random.random(), random.randint(1, 10000), "
             "random.choice('abcdef')",
             "'%s %s %s' % X", "0.45237955351 5598 f"),
            ("import random\nrandom.seed('probe')", "(random.randint(1, 1000), random.randrange(2, 20, 3))",
             "(144, 11)"),
            ("import json\nx = json.loads('[\"a\", {\"k\": 1}]')",
             "(x, isinstance(x[0], str), isinstance(x[0], unicode), type('a') is str)",
             "([u'a', {u'k': 1}], False, True, True)"),
            ("class A:\n  def __cmp__(self, o): return -1\n  def __nonzero__(self): return False\n  def "
             "__unicode__(self): return u'u'",
             "(A() < A(), bool(A()), unicode(A()), repr('é'), repr(u'é'), set([1]), ValueError('a'))",
             "(True, False, u'u', \"'\\\\xc3\\\\xa9'\", \"u'\\\\xe9'\", set([1]), ValueError('a',))")))
        job = load(source(command="{{x}} {{y}}") + "jobs = [j.bind(x=0.1 * 3, y=Float(1.0)) for j in jobs]\n")
        self.assertIn('"cmdline": "0.3 1.0"', job.configuration.taskConfig.executorConfig.data)

    def test_order(self) -> None:
        self.table((
            ("import json", "json.dumps({'zone': 'n', 'app': 'probe', 'tier': 'gold', 'host': 'h1'})",
             '{"tier": "gold", "app": "probe", "host": "h1", "zone": "n"}'),
            ("", "','.join(set(['north', 'south', 'east', 'west', 'centre']))",
             "west,east,north,south,centre"),
            ("", "({3, 11, 19}, {19, 11, 3}, frozenset('hello'))",
             "(set([11, 19, 3]), set([11, 3, 19]), frozenset(['h', 'e', 'l', 'o']))"),
            ("def f(**kw): return kw.keys()", "(f(zone=1, app=2, tier=3, host=4), dict(a=1, i=2, q=3, y=4))",
             "(['tier', 'app', 'host', 'zone'], {'y': 4, 'q': 3, 'i': 2, 'a': 1})"),
            ("", "(hash('probe'), hash(-1), hash(2**63), hash(1.5), hash((1, 'a')), hash(frozenset([1, 2, "
                 "3])), hash(''))",
             "(-1221833637537758197, -2, -9223372036854775808, 1610645504, 3703129313087942906, "
             "-7699079583225461316, 0)"),
            ("d = {}\nfor k in 'qwertyuiop': d[k] = 1\ndel d['q'], d['w']\nd['zz'] = 2",
             "(d.keys(), d.popitem())",
             "(['e', 'i', 'o', 'p', 'r', 'u', 't', 'zz', 'y'], ('e', 1))")))
        job = load("a = [Task(name=n, processes=[Process(name=n, cmdline='do ' + n)]) for n in ('pack', "
                   "'sync', 'tail')]\n" + source() +
                   "jobs = [j(task=Tasks.combine(t, *a)) for j in jobs]")
        data = job.configuration.taskConfig.executorConfig.data
        self.assertEqual(re.findall('"cmdline": "([^"]*)"', data), ["do pack", "do tail", "serve", "do sync"])
        self.assertTrue(data.startswith('{"environment": "devel", '), data[:100])
        self.assertEqual([load(source(extra="contact=','.join(set('abcdef'))")).configuration
                          for _ in range(3)][1:],
                         [load(source(extra="contact='a,c,b,e,d,f'")).configuration] * 2)

    def test_order_of_processes_has_no_meaning(self) -> None:
        def made(names: Any, constraints: Any) -> Any:
            text = json.dumps({"task": {"processes": [{"name": n} for n in names],
                                        "constraints": constraints}})
            return config().taskConfig.replace(executorConfig=api.ExecutorConfig(name="AuroraExecutor",
                    data=text))
        orders = [{"order": ["a", "b"]}, {"order": ["b", "c"]}]
        self.assertTrue(aurora_rest.same_meaning(made("abc", orders), made("cab", orders[::-1])))
        self.assertFalse(aurora_rest.same_meaning(made("abc", orders), made("abd", orders)))
        ids = {aurora_rest._config_id(made(names, orders)) for names in ("abc", "cab", "abd")}
        self.assertEqual(len(ids), 2)
        self.assertFalse(aurora_rest.same_meaning(made("abc", orders),
                                                  made("abc", [{"order": ["b", "a"]}, orders[1]])))

    def test_modules(self) -> None:
        self.table((
            ("import os",
             "(os.environ.get('X', 'q'), os.getenv('USER'), os.path.join('/a', 'b'), os.sep, 'X' in "
             "os.environ)",
             "('q', 'www-data', '/a/b', '/', False)"),
            ("import os.path, sys\nfrom os.path import basename as b",
             "(os.path.splitext('a.b'), b('x/y'), sys.maxint, sys.version_info[:2])",
             "(('a', '.b'), 'y', 9223372036854775807, (2, 7))"),
            ("import base64, urllib, urlparse, pipes, hashlib, md5",
             "(base64.b64encode('moon'), urllib.quote('a b~/'), pipes.quote('a b'))",
             "('bW9vbg==', 'a%20b%7E/', \"'a b'\")"),
            ("import md5, hashlib\nh = hashlib.md5()\nh.update('v1')",
             "(md5.new('v1').hexdigest() == h.hexdigest(), hashlib.new('sha1', 'a').hexdigest()[:4])",
             "(True, '86f7')"),
            ("import urllib, urlparse",
             "(urllib.urlencode({'zone': 'x y', 'b': 0.1 + 0.2}), urlparse.urlparse('http://h:1/p').netloc)",
             "('b=0.3&zone=x+y', 'h:1')"),
            ("import operator as o, decimal, fractions, struct, uuid, types, contextlib",
             "(o.itemgetter(1)('ab'), o.attrgetter('real')(3), decimal.Decimal('1.1') + 1, "
             "struct.unpack('<H', 'ab'))",
             "('b', 3, Decimal('2.1'), (25185,))"),
            ("import types, collections\nd = collections.defaultdict(list)\nd['b'].append(1)",
             "(isinstance('a', types.StringTypes), d, collections.Counter('aab').most_common(1))",
             "(True, defaultdict(<type 'list'>, {'b': [1]}), [('a', 2)])")))
        self.assertEqual(self.said("import os\nX = os.environ['STAGE']", env={"STAGE": "test"}), "test")
        self.refused("import os\nos.environ['STAGE']", "line 2: .*env=STAGE=VALUE")
        self.refused("import sys\nsys.exit('too many')", "too many")
        self.refused("import socket", "line 1, column 1: .*mesos.hostname")
        self.refused("import os\nos.listdir('.')", "os.listdir is not available")

    def test_includes(self) -> None:
        files = {"root.aurora": "include('../../template/base.aurora')\n" + source(extra="instances=N"),
                 "base.aurora": "N = 3"}
        self.assertEqual(load(files).configuration.instanceCount, 3)
        with self.assertRaisesRegex(aurora_rest.InvalidConfig, "filename=template/base.aurora"):
            load(dict({"root.aurora": files["root.aurora"]},
                      **{"a/base.aurora": "N = 1", "b/base.aurora": "N = 2"}))

    @staticmethod
    def tar(files: Any, **special: Any) -> Any:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                for field, value in special.items():
                    setattr(member, field, value)
                archive.addfile(member, io.BytesIO(data))
        return packed.getvalue()

    def bad_tars(self) -> Any:
        """Tars that lie, or ask for more than they hold, and what is said of them."""
        def header(name: Any, size: Any, kind: Any, data: Any = b"") -> Any:
            member = tarfile.TarInfo(name)
            member.size, member.type = size, kind
            return member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
        end, one = bytes(1024), header("a", 1, b"0", b"x")
        yield header("a", 0, b"0") + header("b", -1024, b"0") + end, "number"
        yield header("a", 1 << 40, b"0") + end, "in the middle|number"
        yield one, "its end is missing"
        yield one[:100], "no tar"
        yield bytes([one[0] ^ 1]) + one[1:] + end, "damaged"
        yield header("x", 6, b"x", b"999999") + one + end, "cannot be read"
        yield header("x", 4, b"x", b"0 a=") + one + end, "cannot be read"
        yield header("x", 11, b"x", b"11 size=-1\n") + one + end, "number"
        yield header("x", 2 << 20, b"g", bytes(2 << 20)) + one + end, "larger than 1 MB"
        yield header("x", 22, b"x", b"22 GNU.sparse.major=1\n") + one + end, "no plain file"

    def test_paths_of_every_format_of_tar_are_read(self) -> None:
        long = "/".join(["folder%02d" % n for n in range(18)]) + "/caf\u00e9.aurora"
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w", format=form, pax_headers={"comment": "c"}) as archive:
                folder = tarfile.TarInfo("folder00")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
                for name in (long, "b.aurora"):
                    member = tarfile.TarInfo(name)
                    member.size = 600
                    archive.addfile(member, io.BytesIO(b"n" * 600))
            self.assertEqual(aurora_rest.parse_tar(packed.getvalue()),
                             {long: b"n" * 600, "b.aurora": b"n" * 600}, form)

    def test_environment_and_folders_come_with_a_request(self) -> None:
        inspect = JOB + "hello/inspect"
        text = "import os\n" + source(command="x").replace("'x'", "os.environ['STAGE'] + os.environ['USER']")
        answer = self.good("POST", inspect + "?env=STAGE=a%3Db&env=X=1", text)
        self.assertIn('"cmdline": "a=bwww-data"',
                      json.dumps(answer["job"]["taskConfig"]["executorConfig"]["data"]))
        self.bad(400, "POST", inspect, text, says="env=STAGE=VALUE")
        self.bad(400, "POST", inspect + "?env=STAGE", text, says="env=STAGE: expected NAME=VALUE")
        files = {"./deploy/x/root.aurora": b"include('../../template/base.aurora')\n" +
                 source(extra="instances=N").encode(),
                 "./template/base.aurora": b"N = 3", "./logo.png": b"\xff\xfe\x00"}
        body = self.tar(files)
        for data, headers in ((body, {}), (gzip.compress(body), {}),
                              (gzip.compress(body), {"Content_Encoding": "gzip"})):
            answer = self.good("POST", inspect + "?file=deploy/x/root.aurora", data,
                               Content_Type="application/x-tar", **headers)
            self.assertEqual(answer["job"]["instanceCount"], 3)
        for data, query, says in (
                (body, "", "file= has to name"), (body, "?file=nowhere", "no such file"),
                (body[:700], "?file=a", "."), (b"x" * 2000, "?file=a", "tar"),
                (self.tar({"../a": b""}), "?file=a", "outside"),
                (self.tar({"/a": b""}), "?file=a", "outside"),
                (self.tar({"a/" * 40 + "b": b""}), "?file=b", "deep"),
                (self.tar({"a": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "?file=a", "links"),
                (self.tar({"a": b""}, type=tarfile.LNKTYPE, linkname="b"), "?file=a", "links"),
                (self.tar({"a": b""}, type=tarfile.CHRTYPE), "?file=a", "links"),
                (self.tar({"a": b""}, type=tarfile.FIFOTYPE), "?file=a", "links"),
                (self.tar({"a": b""}, type=tarfile.GNUTYPE_SPARSE), "?file=a", "."),
                (self.tar({"f%d" % n: b"" for n in range(400)}), "?file=f1", "more than 300")):
            self.bad(400, "POST", inspect + query, data, says=says, Content_Type="application/x-tar")
        for data, says in self.bad_tars():
            self.bad(400, "POST", inspect + "?file=a", data, says=says, Content_Type="application/x-tar")
        boundary = "BB"
        parts = "".join('--BB\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n' %
                        pair for pair in (
            ("base.aurora", "N = 2"), ("root.aurora",
                                       files["./deploy/x/root.aurora"].decode()))) + "--BB--\r\n"
        answer = self.good("POST", inspect + "?file=root.aurora", parts,
                           Content_Type="multipart/form-data; boundary=" + boundary)
        self.assertEqual(answer["job"]["instanceCount"], 2)

    def test_what_is_called_in_a_target_is_called_once(self) -> None:
        self.table((
            ("n = []\ndef f():\n  n.append(1)\n  return 'k'\nd = {'k': 7}\nd[f()] /= 2\nd[f()] %= 2",
             "(d, len(n))", "({'k': 1}, 2)"),
            ("class A(object): x = 7\nn = []\ndef f():\n  n.append(1)\n  return n\nf()[0] /= 2", "n",
             "[0]"),
            ("def g():\n  d = {'k': {'l': 9}}\n  d['k'][str('l')] /= 2\n  return d", "g()",
             "{'k': {'l': 4}}")))

    def test_names_that_leak_are_seen_by_functions_too(self) -> None:
        self.table((
            ("def f():\n  [x for x in range(3)]\n  def g(): return x\n  return g()", "f()", "2"),
            ("def g(): return y\n[y for y in range(4)]", "g()", "3"),
            ("[z for z in range(5)]\nclass A(object):\n  def m(self): return z", "A().m()", "4"),
            ("", "sorted(k for k in globals().copy() if k in ('jobs', 'GB'))", "['GB']")))

    def test_an_import_that_may_fail_fails_when_it_is_run(self) -> None:
        self.table((
            ("try:\n  import simplejson as json\nexcept ImportError:\n  import json", "json.dumps([1])",
             "[1]"),
            ("try:\n  from yaml import load\nexcept (KeyError, ImportError), e:\n  X = 'none'", "X", "none")))

    def test_text_filled_into_unicode_is_asked_for_as_unicode(self) -> None:
        self.table((
            ("class P(object):\n  def __unicode__(self): return u'u'\n  def __str__(self): return 's'",
             "(u'%s' % P(), '%s' % P(), u'%s %s' % (1.5, None))", "(u'u', 's', u'1.5 None')"),))

    def test_deep_nesting_is_refused(self) -> None:
        self.refused("x = " + "[" * 150 + "]" * 150, "nested brackets")

    def test_bytes(self) -> None:
        self.table((
            ("import json\nn = json.loads('{\"n\": \"probe\"}')['n'].encode('utf-8')",
             "('go ' + n, type(n) is str)", "('go probe', True)"),
            ("", "('abc'.encode('hex'), '616263'.decode('hex'), 'YQ==\\n'.decode('base64'), b'x' + 'y', "
                 "'a'.decode('utf-8'))",
             "('616263', 'abc', 'a', 'xy', u'a')")))
        self.refused("X = 1\nimport hashlib\ndef f(): return hashlib.md5('a').digest()\n" +
                     source(extra="contact=f()") + "jobs2 = jobs\n" +
                     source("hello").replace("'serve'", "f()") + "raise ValueError(1)", "1")

    def test_built_in_names(self) -> None:
        self.table((
            ("zone = 'n'", "'{zone}'.format(**vars()) + '%(zone)s' % globals() + '%(zone)s' % locals()",
             "nnn"),
            ("def f(a):\n  b = 2\n  return '%(a)s%(b)s' % locals()\nglobals()['made'] = 5", "(f(1), made)",
             "('12', 5)"),
            ("", "(getattr('GO', 'lower')(), getattr('a', 'no', 3), hasattr('a', 'upper'), hasattr('a', "
                 "'__iter__'), type(1).__name__)",
             "('go', 3, True, False, 'int')"),
            ("def loud(n):\n  return lambda f: lambda: f() * n\n@loud(2)\ndef say(): return 'go'", "say()",
             "gogo")))
        self.refused("X = 1\nwith open('x') as f: pass", "line 2, column 1: .*bind= or send several files")
        self.refused("x = 1_0", "1_0 is not a number; write 10 .column 5")
        for extra in ("priority='1_0'", "instances='1_0'",
                      "health_check_config=HealthCheckConfig(interval_secs='1_0.5')"):
            with self.assertRaisesRegex(aurora_rest.InvalidConfig, "1_0"):
                load(source(extra=extra))

    def test_hooks_are_named_in_a_warning(self) -> None:
        text = "class Tag(object):\n  def pre_create_job(self, config): return True\nhooks = [Tag()]\n"
        self.assertEqual(load(text + source()).warnings, [])
        self.assertRegex(load(text + source(extra="enable_hooks=True")).warnings[0],
                         r"hooks are not run .*Tag\.pre_create_job")

    def test_what_is_new_leads_nowhere(self) -> None:
        attacks = [
            "getattr(order, 'func_globals')", "class S(str): pass\nS.format('{0.__globals__}', order)",
            "class S(str):\n  def f(self): return super(S, self).format(order)\nS('{0.__globals__}').f()",
            "str.format('{0.__globals__}', order)", "getattr('{0.__globals__}', 'format')(order)",
            "map('{0.__globals__}'.format, [order])",
            "import operator\noperator.attrgetter('__globals__')(order)",
            "import operator\noperator.methodcaller('format', order)('{0.__class__}')",
            "globals()['__builtins__']", "locals()['__builtins__']", "vars()['__builtins__']", "vars(order)",
            "vars(Process)",
            "class K(str):\n  def startswith(self, p): return False\nglobals()[K('__builtins__')] = "
            "{}\nexec 'X = 1' in 5",
            "exec 'import subprocess'", "exec '().__class__'", "exec 'X = open' in {'__builtins__': {}}",
            "exec '__builtins__' in {}",
            "def f((__builtins__, b)): pass", "def f((\uff3f\uff3fbuiltins\uff3f\uff3f, b)): pass",
            "type(type(1))('Y', (object,), {})",
            "import types\ntypes.FunctionType(1, 2)", "type(order)(1, {})", "import sys\nsys.modules",
            "import sys\nsys.exit.im_self",
            "import os\nos.system('true')", "import os.path\nos.path.os",
            "import os.path as p\np.genericpath", "import urllib\nurllib.request",
            "import uuid\nuuid.os", "import decimal\ndecimal.sys", "@order.__globals__.get\ndef f(): pass",
            "print >>order.__globals__, 1",
            "raise order.__globals__, 1", "`order.__globals__`", "(lambda (a, b): a.__globals__)((order, 1))",
            "order.__init__.__globals__",
            "await = __import__", "getattr(int, ':make')",
            "try: 1/0\nexcept Exception, e: pass\ngetattr(e, '__traceback__')"]
        for attack in attacks:
            with self.subTest(attack=attack):
                self.refused(attack, "")

    def test_a_source_that_python_3_reads_alike_is_left_alone(self) -> None:
        rng = random.Random(16)
        for _ in range(300):
            text = python3_source(rng)
            self.assertEqual(aurora_rest._Reading(text).text, text)

    def test_the_reading_of_broken_source_ends(self) -> None:
        rng = random.Random(3)
        bits = ["(", ")", "[", "]", "`", "print ", "exec ", "raise ", "except ", "lambda ", "def ", ":", ",",
                ";", "\n", " in ", " for ", '"', '\"\"\"',
                "'", "\\", ">>", "0", "L", "async ", "\t", "#", "ur'", "x"]
        for _ in range(3000):
            with contextlib.suppress(SyntaxError):
                aurora_rest._Reading("".join(rng.choice(bits) for _ in range(rng.randint(1, 25))))

    @unittest.skipUnless(PYTHON2, "there is no Python 2.7")
    def test_what_python_2_compiles_is_read(self) -> None:
        rng = random.Random(61)
        texts = [python2_source(rng) for _ in range(300)]
        program = ("import json, sys\nfor text in json.load(sys.stdin):\n  try: "
                   "compile(text.encode('utf-8'), 'x', 'exec'); print 1\n  except SyntaxError: print 0\n")
        verdicts = python2(program, json.dumps(texts)).split()
        self.assertGreater(verdicts.count("1"), 200)
        for text, verdict in zip(texts, verdicts):
            with self.subTest(text=text):
                try:
                    compile(aurora_rest._Reading(text).text, "x", "exec")
                    read = "1"
                except SyntaxError:
                    read = "0"
                self.assertLessEqual(verdict, read)

    @unittest.skipUnless(PYTHON2, "there is no Python 2.7")
    def test_order_and_text_are_those_of_python_2(self) -> None:
        rng = random.Random(27)

        def key() -> Any:
            return rng.choice([repr(rng.randint(-20, 60)),
                               repr("".join(rng.choice("abcdef_") for _ in range(rng.randint(1, 6)))),
                               "(%d, 'x')" % rng.randint(0, 9), repr(rng.random() * 10),
                               repr(rng.randint(-2 ** 80, 2 ** 80))])
        lines = ["out, d, s = [], {}, set()"]
        for _ in range(150):
            keys = [key() for _ in range(rng.randint(1, 12))]
            pairs = ", ".join("%s: %d" % (each, number) for number, each in enumerate(keys))
            lines += [rng.choice([
                "d = {%s}" % pairs, "d.update({%s})" % pairs, "d = dict(d)", "s = {%s}" % ", ".join(keys),
                "s |= set(d)",
                "s ^= set([%s])" % ", ".join(keys), "s = s & set(d)",
                "\n".join("d.pop(%s, None)" % each for each in keys),
                "\n".join("s.add(%s); d[%s] = 1" % (each, each) for each in keys),
                "if d: out.append(repr(d.popitem()))",
                "out.append('%%s %%s' %% (%r, round(%r, %d)))" %
                (rng.uniform(-1e3, 1e12), rng.uniform(-10, 10), rng.randint(0, 4))])]
            lines.append("out.append('%s %s %s' % (d, s, hash(frozenset(s))))")
        text = "\n".join(lines)
        expected = python2(text + "\nprint '\\n'.join(out)", "")
        evaluation = aurora_rest._Evaluation(
            {}, dict(aurora_rest._WARM_UP, tiers=aurora_rest.DEFAULT_TIERS), dict)
        evaluation._execute("x", text)
        self.assertEqual("\n".join(evaluation.environment["out"]) + "\n", expected)


# --- 4. Operations ------------------------------------------------------------------------------------------

class OperationsTest(unittest.TestCase):
    @staticmethod
    def task(instance: Any, state: Any, identity: Any, *events: Any) -> Any:
        return {"assignedTask": {"instanceId": instance, "taskId": identity}, "status": S.values[state],
                "taskEvents": [{"timestamp": n, "status": 0, "message": text} for n,
                               text in enumerate(events)]}

    def test_running_is_judged_by_the_youngest_task_of_each_instance(self) -> None:
        judge = aurora_rest.judge_running
        restarted = [self.task(1, "KILLED", "a"), self.task(1, "RUNNING", "b"), self.task(4, "RUNNING", "c")]
        # with a gap in the numbers, and during a restart
        self.assertTrue(judge(restarted, [1, 4]).reached)
        self.assertTrue(judge(restarted, None, count=2).reached)
        self.assertIsNone(judge(restarted[:1] + [self.task(1, "PENDING", "b")], [1]).reached)
        self.assertEqual(judge(restarted, [1, 4, 5])[:4], (None, 2, 0, 3))
        failed = [self.task(0, "FAILED", "a", "x", "boom"), self.task(0, "RUNNING", "b")]
        self.assertEqual(judge(failed, [0])[:1] + judge(failed, [0])[4:6], (
            False, "instance 0 ended as FAILED: boom", "TASKS_FAILED"))
        self.assertTrue(judge(failed, [0], strict=False).reached)
        self.assertTrue(judge(failed, [0], known={"a"}).reached)
        self.assertIs(judge([self.task(0, "KILLED", "a", "Killed by x")], [0], strict=False).reached, False)
        self.assertTrue(judge([self.task(0, "FINISHED", "a")], [0]).reached)

    def test_what_is_left_is_what_keeps_a_job_from_being_gone(self) -> None:
        tasks = [self.task(0, "KILLING", "a"), self.task(1, "KILLED", "b"), self.task(2, "RUNNING", "c")]
        self.assertEqual(aurora_rest.judge_gone(tasks, [0, 1])[:3], (None, 1, 0))
        self.assertTrue(aurora_rest.judge_gone(tasks, [1]).reached)
        self.assertIsNone(aurora_rest.judge_gone(tasks).reached)

    def test_a_lock_is_held_by_one_and_forgotten_when_nobody_wants_it(self) -> None:
        locks, inside, most = aurora_rest.Locks(), [], []

        def work() -> None:
            for _ in range(200):
                with locks("job", 1):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        with locks("a"), locks("b"), self.assertRaises(aurora_rest.Overloaded), locks("a", seconds=0.01):
            pass
        self.assertEqual((max(most), len(most), locks._held), (1, 800, {}))

    def test_changes_of_a_scheduler_that_hangs_do_not_take_the_threads_of_the_others(self) -> None:
        locks = aurora_rest.Locks(most=3)
        refused = []

        def come() -> None:
            try:
                with locks("job", seconds=0.5):
                    pass
            except aurora_rest.Overloaded as error:
                refused.append(str(error))
        with locks("job"):
            threads = [threading.Thread(target=come) for _ in range(9)]
            for each in threads:
                each.start()
            wait_for(lambda: len(refused) == 6)
            with locks("other"):
                pass
            for each in threads:
                each.join()
        self.assertEqual((len(refused), locks._held), (9, {}))

    def test_an_operation_without_a_thread_is_refused_before_anything_is_done(self) -> None:
        operations = aurora_rest.Operations(running=2)
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            for _ in range(5):
                with self.assertRaisesRegex(aurora_rest.Overloaded, "no thread"):
                    operations.take()
        slots = [operations.take(), operations.take()]
        with self.assertRaises(aurora_rest.Overloaded):
            operations.take()
        slots[0].put(None)
        wait_for(lambda: operations._slots._value == 1)
        done = []
        operations.start(aurora_rest.Operation("k", "key", "u"), lambda op: done.append(1), slots[1])
        wait_for(lambda: done and operations._slots._value == 2)
        self.assertEqual(len(operations.all()), 1)

    def test_a_failover_between_two_batches_is_waited_for(self) -> None:
        calls = []

        class Scheduler:
            def call(self, method: Any, *arguments: Any, **named: Any) -> Any:
                calls.append(method)
                if method == "killTasks" and calls.count("killTasks") < 3:
                    raise aurora_rest.NoLeader("no leader")
                return {}
        scheduler: Any = Scheduler()
        operation = aurora_rest.Operation("kill", "k", "u")
        stop: Any = operation._stop
        stop.wait = lambda seconds: False
        operation.run(lambda op: aurora_rest.batched_kill(scheduler, "c/r/e/n", [0], 1, 30.0, 0.0,
                                                          operation=op))
        self.assertEqual((operation.state, calls.count("killTasks")), ("succeeded", 3), operation.errors)

    def test_a_write_without_an_answer_is_a_step_and_is_not_repeated(self) -> None:
        calls = []

        class Scheduler:
            def call(self, method: Any, *arguments: Any, **named: Any) -> None:
                calls.append(method)
                error = aurora_rest.SchedulerTimeout("late")
                error.doubt(method)
                raise error
        scheduler: Any = Scheduler()
        operation = aurora_rest.Operation("kill", "k", "u")
        operation.run(lambda op: aurora_rest.batched_kill(scheduler, "c/r/e/n", [0, 1], 2, 9.0, 0.0,
                                                          operation=op))
        self.assertEqual((operation.state, calls, operation.result["done"]),
                         ("failed", ["killTasks"], "unknown"))
        self.assertEqual(operation.steps[-1]["instances"], [0, 1])

    def test_instances_are_numbers_and_ranges_and_nothing_else(self) -> None:
        self.assertEqual(aurora_rest.parse_instances(["1,3-5", "0"]), [0, 1, 3, 4, 5])
        self.assertEqual(aurora_rest.parse_instances(["0-3999"]), list(range(4000)))
        for text in ("", ",", "1,", "3-1", "-1", "abc", "1-", "1--2", "1.5", "1-99999999", "4000", "0-4000",
                     "1 2", "٣", "1;2", "0x1",
                     "1" * 30):
            with self.subTest(text=text), self.assertRaises(aurora_rest.BadRequest):
                aurora_rest.parse_instances([text])

    def test_an_update_of_which_no_answer_tells_is_in_doubt(self) -> None:
        class Lost:
            """What Scheduler tells where the first answer to startJobUpdate is lost, and then all others."""
            def call(self, method: str, *_: Any, **__: Any) -> None:
                if method != "startJobUpdate":
                    raise aurora_rest.SchedulerUnreachable("it broke off")
                refused = aurora_rest.Refused("An active update already exists")
                refused.response = api.Response(result=api.Result(
                    startJobUpdateResult=api.StartJobUpdateResult(key=api.JobUpdateKey(id="u"))))
                refused.sent = True
                raise refused
        scheduler: Any = Lost()
        with self.assertRaises(aurora_rest.SchedulerUnreachable) as caught:
            aurora_rest.start_update(scheduler, load(source()))
        self.assertEqual(caught.exception.details, {"done": "unknown"})

    def test_a_cron_jobs_template_is_compared_with_its_active_tasks(self) -> None:
        def job(command: str) -> Any:
            return load(source(command=command, extra="cron_schedule='0 1 * * *', instances=3", kind="Job"))

        def plan(command: str, *running: Any) -> Any:
            groups = [(job(each).configuration.taskConfig, numbers) for each, numbers in running]
            told = aurora_rest.plan_update(self.nobody(), job(command), (), groups)
            return [told[name] for name in ("add", "remove", "update", "unchanged")], told["changes"]
        self.assertEqual(plan("a"), ([[0, 1, 2], [], [], []], []))
        sets, changes = plan("a", ("a", [0]), ("b", [2, 7]))
        self.assertEqual(sets, [[1], [], [2, 7], [0]])
        self.assertEqual([each["instances"] for each in changes], [[2, 7]])
        self.assertIn("cmdline", json.dumps(changes))

    @staticmethod
    def nobody() -> Any:
        return aurora_rest.Scheduler("http://127.0.0.1:1")

    def test_field_changes_name_path_old_and_new(self) -> None:
        old = {"a": 1, "b": {"c": [1], "same": 0}, "executorConfig": {"data": {"x": 1, "y": 2}}}
        new = {"a": 2, "b": {"c": [2], "same": 0}, "executorConfig": {"data": {"y": 2, "x": 3}}, "d": 4}
        self.assertEqual(aurora_rest.field_changes(old, new), [
            {"path": "a", "old": 1, "new": 2}, {"path": "b.c", "old": [1], "new": [2]},
            {"path": "d", "old": None, "new": 4},
            {"path": "executorConfig.data.x", "old": 1, "new": 3}])

    def test_sla_figures_follow_the_clients_formulas(self) -> None:
        def task(seconds: Any, status: Any = "RUNNING") -> Any:
            return {"status": S.values[status], "taskEvents": [
                {"timestamp": 1000 * (1000 - seconds), "status": S.RUNNING},
                {"timestamp": 10 ** 6, "status": S.RUNNING}]}
        ups = aurora_rest.uptimes([task(100), task(200), task(300), task(400), task(999, "FAILED"),
                                   {"status": S.RUNNING}], 1000)
        self.assertEqual(ups, [100, 200, 300, 400])
        self.assertEqual([aurora_rest.job_uptime(ups, p) for p in (0, 25, 50, 75, 99, 100)],
                         [400, 300, 200, 100, 100, 0])
        self.assertEqual([aurora_rest.up_count(ups, s) for s in (0, 200, 201, 500)], [100.0, 75.0, 50.0, 0.0])
        self.assertEqual((aurora_rest.job_uptime([], 50), aurora_rest.up_count([], 1)), (0, 0.0))

    def test_operations_are_bounded_and_the_oldest_ended_forgotten(self) -> None:
        operations = aurora_rest.Operations(running=2, kept=3)
        release = threading.Event()
        first = [operations.start(aurora_rest.Operation("x", "k", "u"), lambda op: release.wait(10))
                 for _ in range(2)]
        with self.assertRaises(aurora_rest.Overloaded):
            operations.start(aurora_rest.Operation("x", "k", "u"), lambda op: None)
        release.set()
        wait_for(lambda: not operations.running)
        for _ in range(5):
            operations.start(aurora_rest.Operation("x", "k", "u"), lambda op: None)
            wait_for(lambda: not operations.running)
        self.assertLessEqual(len(operations.all()), 4)
        with self.assertRaises(aurora_rest.NotFound):
            operations[first[0].id]

    def test_an_operation_ends_as_what_its_work_came_to(self) -> None:
        def fail(op: Any) -> None:
            raise aurora_rest.Refused("no quota")

        def cancel(op: Any) -> None:
            op.stop("cancelled")
            op.pause(10)

        def crash(op: Any) -> None:
            raise ZeroDivisionError
        for work, state, says in ((lambda op: None, "succeeded", ""), (fail, "failed", "no quota"),
                                  (cancel, "cancelled", ""),
                                  (crash, "failed", "internal error: ZeroDivisionError")):
            operation = aurora_rest.Operation("x", "k", "u")
            operation.run(work)
            self.assertEqual((operation.state, "".join(operation.errors)), (state, says))
            self.assertIsNotNone(operation.ended)


class RestartTest(Serving):
    """Operations against a demo whose time runs fast."""
    SPEED = 40.0

    def create(self, name: Any, count: Any = 3, command: Any = "serve") -> Any:
        self.scheduler.createJob(config(name, command, count))
        wait_for(lambda: self.states(name) == ["RUNNING"] * count)
        return aurora_rest.Key("devcluster", "www-data", "devel", name)

    def restart(self, key: Any, instances: Any = (), **options: Any) -> Any:
        operation = aurora_rest.Operation("restart", str(key), "u")
        given = dict({"watch_secs": 0.1, "poll_secs": 0.02, "time_limit": 10.0}, **options)
        operation.run(lambda op: aurora_rest.rolling_restart(self.scheduler, key, instances,
                                                             aurora_rest.RestartOptions(**given), op))
        return operation

    def test_scripts_wait_for_instances_and_updates(self) -> None:
        key = self.create("awaited", 2)
        fast: Any = {"poll_secs": 0.02, "time_limit": 9.0}
        self.assertEqual(aurora_rest.wait_until_running(self.scheduler, key, **fast).done, 2)
        with self.assertRaisesRegex(aurora_rest.NotFound, "no active instance 2, 9"):
            aurora_rest.active_instances(self.scheduler, key, (1, 2, 9))
        with self.assertRaisesRegex(aurora_rest.Unprocessable, "0 of 2 .*after 0 s"):
            aurora_rest.wait_until_running(self.scheduler, key, known=self.ids(key).values(),
                                           poll_secs=0.02, time_limit=0.0)
        job = load(source("awaited", "v2", "instances=2, update_config=UpdateConfig(watch_secs=0)"), key)
        started = aurora_rest.start_update(self.scheduler, job)
        self.assertEqual(aurora_rest.wait_for_update(
            self.scheduler, key, started.id, **fast).result["state"], "ROLLED_FORWARD")
        bad = load(source("awaited", "exit 1", "instances=2, update_config=UpdateConfig(watch_secs=1)"), key)
        started = aurora_rest.start_update(self.scheduler, bad)
        with self.assertRaisesRegex(aurora_rest.Unprocessable, "ROLLED_BACK"):
            aurora_rest.wait_for_update(self.scheduler, key, started.id, **fast)
        for wanted, like, error in ((4001, None, "0 to 4000"), (-1, None, "0 to 4000"),
                                    (3, 9, "no active instance 9")):
            with self.assertRaisesRegex(aurora_rest.Failure, error):
                aurora_rest.change_instances(self.scheduler, key, wanted, like)
        aurora_rest.batched_kill(self.scheduler, key, [0, 1], 2, **fast)
        with self.assertRaisesRegex(aurora_rest.NotFound, "no active instances"):
            aurora_rest.change_instances(self.scheduler, key, 3)

    def ids(self, key: Any) -> Any:
        return {t["assignedTask"]["instanceId"]: t["assignedTask"]["taskId"] for t in aurora_rest.query_tasks(
            self.scheduler, key, (), api.ACTIVE_STATES)}

    def test_a_rolling_restart_replaces_every_task_batch_by_batch(self) -> None:
        key = self.create("rolling")
        before = self.ids(key)
        operation = self.restart(key, batch_size=2)
        self.assertEqual((operation.state, operation.done, operation.failed), ("succeeded", 3, 0),
                         operation.errors)
        after = self.ids(key)
        self.assertTrue(all(before[n] != after[n] for n in before))
        batches = [step["instances"] for step in operation.steps if step["text"] == "restarted"]
        self.assertEqual(batches, [[0, 1], [2]])

    def test_an_instance_that_never_runs_ends_at_the_time_limit_as_a_failure(self) -> None:
        key = self.create("stuck", 2)
        with self.demo._lock:
            for host in self.demo.hosts.values():
                host.mode = api.MaintenanceMode.DRAINED
        try:
            operation = self.restart(key, time_limit=0.3)
        finally:
            with self.demo._lock:
                for host in self.demo.hosts.values():
                    host.mode = api.MaintenanceMode.NONE
                self.demo._schedule_soon()
        self.assertEqual((operation.state, operation.done), ("failed", 0))
        self.assertRegex(operation.errors[0], "1 instances failed to restart, 0 may; .*time limit")

    def test_a_second_restart_of_a_job_is_refused_and_names_the_first(self) -> None:
        key = self.create("twice", 2)
        path = "/alpha/job/%s/restart?watch_secs=500" % str(key)
        first = self.good("PUT", path, status=202)["operation"]["id"]
        for query in ("", "&dry_run=1", "&shards=1", "&force=0"):
            refused = self.bad(409, "PUT", path + query, code="OPERATION_RUNNING", says=first + ".*force=1")
            self.assertEqual(refused["operation"]["id"], first)
        operations = self.server.service.operations
        second = self.good("PUT", path + "&force=1", status=202)["operation"]["id"]
        running = [each.state for each in operations.all() if each.key == str(key)]
        self.assertEqual(running, ["running", "running"])
        # each has one place, also while those of other tests end
        wait_for(lambda: operations._slots._value == self.server.service.limits["operations"] - sum(
            each.state == "running" for each in operations.all()))
        other = self.create("beside", 1)
        third = self.good("PUT", "/alpha/job/%s/restart?watch_secs=0&wait=20" % str(other))
        self.assertTrue(third["reached"])
        for each in (first, second):
            self.good("DELETE", "/alpha/operations/" + each, status=202)
            self.good("GET", "/alpha/operations/%s?wait=10" % each)
        self.assertTrue(self.good("PUT", "/alpha/job/%s/restart?watch_secs=0&wait=20" % str(key))["reached"])

    def test_who_comes_second_is_refused_before_anything_and_takes_no_place(self) -> None:
        operations = aurora_rest.Operations(2)

        def start(kind: Any, **more: Any) -> Any:
            return operations.start(aurora_rest.Operation(kind, "k"), lambda op: op.pause(30), **more)
        first = start("restart", alone=True)
        for _ in range(3):
            with self.assertRaises(aurora_rest.Conflict):
                start("restart", alone=True)
            wait_for(lambda: operations._slots._value == 1)
        second = start("kill", alone=True)
        for each in (first, second):
            each.stop()
        wait_for(lambda: operations._slots._value == 2)
        start("restart", alone=True).stop()

    def test_of_many_restarts_at_once_one_begins(self) -> None:
        key = self.create("rush", 1)
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.ask(
            "PUT", "/alpha/job/%s/restart?watch_secs=500" % str(key)))) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(sorted(each.status for each in answers), [202] + [409] * 7)
        begun = next(each.json["operation"]["id"] for each in answers if each.status == 202)
        self.good("DELETE", "/alpha/operations/" + begun, status=202)
        self.good("GET", "/alpha/operations/%s?wait=10" % begun)

    def test_failures_within_the_limits_are_tolerated_and_counted(self) -> None:
        key = self.create("flaky", 2, "sleep 30; exit 1")
        operation = self.restart(key, [0], watch_secs=3.0, max_total_failures=0, max_per_instance_failures=0)
        self.assertEqual(operation.state, "failed")
        self.assertRegex(operation.errors[0], "did not keep running")

    def test_a_restart_that_is_cancelled_stops_between_steps(self) -> None:
        key = self.create("cancelled", 3)
        operation = aurora_rest.Operation("restart", str(key), "u")

        def look() -> None:
            if operation.done:
                operation.stop()
        operation.listen(look)
        operation.run(lambda op: aurora_rest.rolling_restart(self.scheduler, key, [],
                                                             aurora_rest.RestartOptions(
            watch_secs=0.05, poll_secs=0.02), op))
        self.assertEqual((operation.state, operation.done), ("cancelled", 1))

    def test_a_leader_change_in_the_middle_is_survived(self) -> None:
        key = self.create("failover", 3)
        operation = aurora_rest.Operation("restart", str(key), "u")

        def flip() -> None:
            self.demo.leaderless = True
            threading.Timer(0.3, lambda: setattr(self.demo, "leaderless", False)).start()
        seen: Any = []

        def look() -> None:
            if not seen and operation.done == 1:
                seen.append(1)
                flip()
        operation.listen(look)
        patient = aurora_rest.Scheduler(self.demo.url, "devcluster", retry_for=5.0)
        self.addCleanup(patient.close)
        operation.run(lambda op: aurora_rest.rolling_restart(patient, key, [], aurora_rest.RestartOptions(
            watch_secs=0.05, poll_secs=0.02), op))
        self.assertEqual((operation.state, operation.done), ("succeeded", 3), operation.errors)

    def test_waits_tell_whether_they_were_reached(self) -> None:
        path = "/alpha/job/devcluster/www-data/devel/awaited"
        good = self.good("PUT", path + "?wait=20", source("awaited"), 201)
        self.assertTrue(good["reached"])
        self.assertEqual(good["progress"], {"done": 1, "failed": 0, "active": 0, "total": 1})
        update = self.good("PUT", path + "/update?wait=20",
                           source("awaited", "other", "instances=2, update_config="
                                                                 "UpdateConfig(watch_secs=1)"))
        self.assertTrue(update["reached"], update)
        self.assertEqual(self.good("GET", path + "/update")["update"]["state"], "ROLLED_FORWARD")
        broken = self.bad(409, "PUT", path + "/update?wait=20", source("awaited", "exit 1", "instances=2"),
                          "ROLLED_BACK",
                          "ROLLED_BACK: Latest failure: instance 0 exited")
        self.assertIs(broken["reached"], False)
        self.assertTrue(self.good("PUT", path + "/restart?wait=20&watch_secs=0&shards=1")["reached"])
        self.assertTrue(self.good("DELETE", path + "?wait=20")["reached"])
        # despite its history
        self.assertTrue(self.good("PUT", path + "?wait=20", source("awaited"), 201)["reached"])
        failing = self.bad(409, "PUT", "/alpha/job/devcluster/www-data/devel/failing?wait=20",
                           source("failing", "exit 1", kind="Job"), "TASKS_FAILED",
                           "instance 0 ended as FAILED")
        self.assertEqual((failing["reached"], [(each["instance"], each["state"])
                                               for each in failing["endings"]]),
                         (False, [(0, "FAILED")]))
        late = self.good("PUT", "/alpha/job/devcluster/www-data/devel/late?wait=0.3",
                         source("late", extra="instances=1").replace(
            "cpu=0.1", "cpu=1000"), 202)
        self.assertEqual((late["reached"], late["why"]),
                         (False, "0 of 1 run; instance 0 is PENDING: Insufficient: CPU"))

    def test_waiting_ends_with_gaps_and_during_restarts(self) -> None:
        key = str(self.create("gaps", 3))
        self.good("DELETE", "/alpha/job/%s?shards=0&wait=20" % key)
        path = "/alpha/job/%s/wait" % key
        self.assertEqual(self.good("POST", path + "?wait=20")["progress"],
                         {"done": 2, "failed": 0, "active": 0, "total": 2})
        self.assertTrue(self.good("POST", path + "?count=2&wait=20")["reached"])
        self.good("PUT", "/alpha/job/%s/restart?batch_size=all&watch_secs=0" % key, status=202)
        self.assertTrue(self.good("POST", path + "?until=running&wait=20")["reached"])
        self.assertEqual(self.good("POST", path + "?count=3&wait=0.3", status=202)["why"], "2 of 3 run")
        self.good("DELETE", "/alpha/job/%s" % key)
        # it is dying already
        self.assertTrue(self.good("DELETE", "/alpha/job/%s?wait=20" % key)["reached"])
        self.assertTrue(self.good("POST", path + "?until=gone&wait=20")["reached"])
        self.bad(404, "DELETE", "/alpha/job/%s?wait=20" % key)

    def test_waits_share_one_look_take_no_operation_and_end_with_their_callers(self) -> None:
        key = str(self.create("shared", 1))
        path = "/alpha/job/%s/wait?until=gone&wait=60" % key
        service = self.server.service
        operations = len(service.operations.all())
        socks = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(30)]
        for sock in socks:
            sock.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        wait_for(lambda: service.waits.all == 30
                 and any(poll.waiters == 30 for poll in list(service.watched._polls.values())))
        polls = [poll for name, poll in service.watched._polls.items() if name[0] == "outcome"
                 and poll.waiters]
        self.assertEqual([(poll.waiters, len(service.operations.all())) for poll in polls],
                         [(30, operations)])
        for sock in socks[1:]:
            sock.close()
        wait_for(lambda: service.waits.all == 1)
        self.good("DELETE", "/alpha/job/%s" % key)
        self.assertEqual(statuses(socks[0].recv(65536)), [200])
        socks[0].close()
        wait_for(lambda: not service.waits.all and polls[0].ended)

    def test_what_can_refuse_is_asked_before_the_effect(self) -> None:
        key = str(self.create("full", 1))
        path = "/alpha/job/%s" % key
        service = self.server.service
        with mock.patch.object(service.waits, "most", 0):
            for method, what, body in (("PUT", "/alpha/job/devcluster/www-data/devel/never?wait=1",
                                        source("never")),
                                       ("POST", path + "/instances?count=1&wait=1", None),
                                       ("PUT", path + "/scale?instances=5&wait=1", None),
                                       ("DELETE", path + "?wait=1", None),
                                       ("PUT", path + "/update?wait=1", source("full", "other"))):
                self.bad(503, method, what, body, "OVERLOADED", Idempotency_Key="before")
        taken = []
        with contextlib.suppress(aurora_rest.Overloaded):
            while True:
                taken.append(service.operations.take())
        self.bad(503, "POST", "/alpha/maintenance/devcluster/demo-06/drain", code="OVERLOADED")
        self.bad(503, "POST", "/alpha/maintenance/devcluster/demo-06/sla-drain", code="OVERLOADED")
        self.bad(503, "PUT", path + "/restart", code="OVERLOADED")
        self.bad(503, "DELETE", path + "?batch_size=1", code="OVERLOADED")
        self.good("PUT", path + "/restart?dry_run=1")
        for each in taken:
            each.put(None)
        self.assertEqual(self.good("GET", "/alpha/maintenance/devcluster/demo-06")["hosts"],
                         [{"host": "demo-06", "mode": "NONE"}])
        self.assertEqual(self.states("full"), ["RUNNING"])
        self.bad(404, "GET", "/alpha/job/devcluster/www-data/devel/never")
        wait_for(lambda: service.operations._slots._value == service.operations.limit)

    def test_a_caller_has_a_share_of_the_waits(self) -> None:
        with mock.patch.multiple(self.server.service.waits, most=8, share=2):
            places = [self.server.service.waits.take("loud") for _ in range(2)]
            with self.assertRaises(aurora_rest.Overloaded):
                self.server.service.waits.take("loud")
            places.append(self.server.service.waits.take("calm"))
            for give in places + places:
                give()
        self.assertFalse(self.server.service.waits.all)

    def test_callers_at_once_scale_to_what_they_say(self) -> None:
        key = str(self.create("scaled", 2))
        answers: Any = []

        def at_once(count: Any, *request: Any) -> None:
            threads = [threading.Thread(target=lambda: answers.append(self.ask(*request)))
                       for _ in range(count)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        send, writes, second = aurora_rest.Session.call, itertools.count(1), threading.Event()

        def slowly(session: Any, method: Any, *arguments: Any, **options: Any) -> Any:
            if method == "addInstances" and next(writes) == 1:
                second.wait(2)      # who may read and add beside the first is given the time
            elif method == "addInstances":
                second.set()
            return send(session, method, *arguments, **options)
        with mock.patch.object(aurora_rest.Session, "call", slowly):
            at_once(4, "PUT", "/alpha/job/%s/scale?instances=6" % key)
        wait_for(lambda: self.states("scaled") == ["RUNNING"] * 6)
        self.assertEqual(sorted(len(each.json["added"]) for each in answers), [0, 0, 0, 4])
        del answers[:]
        at_once(4, "POST", "/alpha/job/%s/instances?count=1" % key)
        self.assertEqual(sorted(number for each in answers for number in each.json["added"]), [6, 7, 8, 9])
        before = self.good("GET", "/alpha/quota/devcluster/nobody")["quota"]["cpu"]
        self.good("PUT", "/alpha/quota/devcluster/nobody", '{"cpu": 1, "ram_mb": 1, "disk_mb": 1}')
        for _ in range(10):
            at_once(1, "PUT", "/alpha/quota/devcluster/nobody?increase=1", '{"cpu": 1}')
        at_once(10, "PUT", "/alpha/quota/devcluster/nobody?increase=1", '{"cpu": 1}')
        self.assertEqual((before, self.good("GET", "/alpha/quota/devcluster/nobody")["quota"]["cpu"]),
                         (0, 21))

    def test_instances_that_are_dying_do_not_count(self) -> None:
        key = str(self.create("dying", 3))
        path = "/alpha/job/%s" % key
        # a graceful shutdown that takes its time
        with mock.patch.object(aurora_rest.Demo, "KILL", 3600.0):
            self.assertEqual(self.good("PUT", path + "/scale?instances=0", status=202)["killed"], [0, 1, 2])
            self.assertEqual(self.good("PUT", path + "/scale?instances=2", status=202)["added"], [3, 4])
            wait_for(lambda: self.states("dying").count("RUNNING") == 2)
            self.good("DELETE", path + "?shards=3")
            self.assertTrue(self.good("PUT", path + "/scale?instances=1")["unchanged"])
            restart = self.good("PUT", path + "/restart?dry_run=1")
            self.assertEqual(restart["would"]["batches"], [[4]])
            self.good("DELETE", path)
            self.bad(404, "PUT", path + "/restart")

    def test_a_batched_kill_is_an_operation(self) -> None:
        self.create("many", 4)
        answer = self.ask("DELETE",
                          "/alpha/job/devcluster/www-data/devel/many?batch_size=2&shards=0-2&wait=20")
        self.assertEqual((answer.status, answer.json["reached"]), (200, True))
        operation = answer.json["operation"]
        self.assertEqual((operation["state"], operation["progress"]),
                         ("succeeded", {"done": 3, "failed": 0, "active": 0, "total": 3}))
        self.assertEqual(answer.headers["location"], "/alpha/operations/" + operation["id"])
        self.assertEqual(self.states("many"), ["RUNNING"])

    def test_hosts_are_drained_as_an_operation(self) -> None:
        key = self.create("drained", 2)
        host = aurora_rest.query_tasks(self.scheduler, key, [0],
                                       api.ACTIVE_STATES)[0]["assignedTask"]["slaveHost"]
        answer = self.ask("POST", "/alpha/maintenance/devcluster/%s/drain?wait=20" % host)
        self.assertEqual((answer.status, answer.json["operation"]["state"]), (200, "succeeded"), answer)
        self.assertEqual((answer.json["reached"], answer.json["hosts"]),
                         (True, [{"host": host, "mode": "DRAINED"}]))
        self.assertEqual(self.good("GET", "/alpha/maintenance/devcluster/" + host)["hosts"],
                         [{"host": host, "mode": "DRAINED"}])
        wait_for(lambda: self.states("drained") == ["RUNNING"] * 2)
        tasks = aurora_rest.query_tasks(self.scheduler, key, (), api.ACTIVE_STATES)
        self.assertNotIn(host, [task["assignedTask"]["slaveHost"] for task in tasks])
        self.good("DELETE", "/alpha/maintenance/devcluster/" + host)


# --- 5. HTTP ------------------------------------------------------------------------------------------------

JOB = "/alpha/job/devcluster/www-data/devel/"


class OriginalEndpointsTest(Serving):
    """The seven endpoints, to the letter."""

    def test_version(self) -> None:
        self.assertEqual(self.good("GET", "/alpha/version"),
                         {"status": "success", "version": aurora_rest.__version__})

    def test_list(self) -> None:
        for path in ("/alpha/jobs/devcluster/www-data", "/alpha/job/devcluster/www-data"):
            answer = self.good("GET", path + "?name=[hw]e[lb]*")
            self.assertEqual(answer, {"status": "success", "key": "devcluster/www-data", "count": 2, "jobs": {
                "1": "devcluster/www-data/devel/web", "2": "devcluster/www-data/prod/hello"}})
        self.assertEqual(self.good("GET", "/alpha/jobs/devcluster/nobody")["count"], 0)

    def test_create_update_cancel_restart_kill(self) -> None:
        key = "devcluster/www-data/devel/seven"
        expected = {"status": "success", "key": key, "count": 1, "job": key}
        for prefix in ("/alpha/job/", "/alpha/jobs/"):
            path = prefix + key
            self.assertEqual(self.good("PUT", path, source("seven"), 201), expected)
            self.bad(409, "PUT", path, source("seven"), "JOB_EXISTS", "already exists")
            self.demo.advance(5)
            unchanged = self.good("PUT", path + "/update", source("seven"))
            self.assertEqual((unchanged["unchanged"], unchanged["job"]), (True, key))
            update = self.good("PUT", path + "/update?shards=0", source("seven", "other"), 202)
            self.assertEqual(set(update) - set(expected), {"update"})
            conflict = self.bad(409, "PUT", path + "/update", source("seven", "third"), "UPDATE_IN_PROGRESS")
            self.assertEqual(conflict["update"], update["update"])
            for method, what in (("PUT", "/restart"), ("DELETE", ""), ("PUT", "/scale?instances=3"),
                                 ("POST", "/instances")):
                refused = self.bad(409, method, path + what, code="JOB_UPDATING_ERROR")
                self.assertEqual(refused["update"]["id"], update["update"]["id"], what)
            self.assertEqual(self.good("DELETE", path + "/update", status=202)["job"], key)
            self.bad(404, "DELETE", path + "/update", says="no active update")
            self.demo.advance(400)
            # The update was aborted while the old task was being killed, so the instance is gone for good.
            self.bad(404, "PUT", path + "/restart")
            self.good("PUT", path, source("seven"), 201)
            self.demo.advance(5)
            restart = self.ask("PUT", path + "/restart?shards=0&watch_secs=0&time_limit=1")
            self.assertEqual((restart.status, restart.json["job"]), (202, key))
            self.assertEqual(restart.headers["location"], "/alpha/operations/" +
                             restart.json["operation"]["id"])
            self.good("GET", restart.headers["location"] + "?wait=10")
            self.assertEqual(self.good("DELETE", path + "?shards=0"), dict(expected, killed=[0]))
            self.demo.advance(5)
            self.bad(404, "DELETE", path)
            place = restart.headers["location"]
            self.ask("DELETE", place)
            wait_for(lambda: self.good("GET", place)["operation"]["state"] != "running")

    def test_wrong_instances_never_reach_the_scheduler(self) -> None:
        writes = ("killTasks", "restartShards", "startJobUpdate")
        before = collections_of(self.demo.calls, *writes)
        for text in ("3-1", "", "-1", "abc", "1-99999999", "1,,2", "4000"):
            for method, path in (("DELETE", JOB + "x"), ("PUT", JOB + "x/restart"),
                                 ("PUT", JOB + "x/update")):
                self.bad(400, method, "%s?shards=%s" % (path, text), source() if "update" in path else None,
                         "BAD_REQUEST")
            self.bad(400, "DELETE", JOB + "x?instances=" + text)
        self.bad(400, "DELETE", JOB + "x?shard=1", says="unknown parameter shard")
        self.assertEqual(collections_of(self.demo.calls, *writes), before)

    def test_wrong_bodies_are_told_apart(self) -> None:
        cron = source("cron", extra="cron_schedule='* * * * *'", kind="Job")
        self.bad(422, "PUT", JOB + "cron", cron, says="PUT /alpha/cron/devcluster/www-data/devel/cron")
        self.bad(422, "PUT", JOB + "cron/update", cron, says="/alpha/cron")
        self.bad(422, "PUT", "/alpha/cron/devcluster/www-data/devel/hello", source(), says="/alpha/job")
        self.bad(400, "PUT", JOB + "x", "", "INVALID_CONFIG")
        self.bad(400, "PUT", JOB + "x", "import sys\nsys.exit()", "INVALID_CONFIG")
        self.bad(400, "PUT", JOB + "x", source("y"), "INVALID_CONFIG",
                 "Candidates are: devcluster/www-data/devel/y")
        self.bad(400, "PUT", JOB + "x", b"\xff\xfe", "INVALID_CONFIG", "UTF-8")
        self.bad(400, "PUT", JOB + "x", "{", "INVALID_CONFIG", Content_Type="application/json")
        self.bad(415, "PUT", JOB + "x", "x", Content_Encoding="br")
        self.bad(422, "PUT", "/alpha/job/devcluster/www-data/qa/x", source("x", environment="qa"),
                 "INVALID_REQUEST",
                 "environment qa doesn't match")
        self.bad(422, "PUT", JOB + "big", source("big", extra="tier='preferred', instances=4000"),
                 "INVALID_REQUEST", "quota")

    def test_bodies_in_all_their_forms(self) -> None:
        plain = {"cluster": "devcluster", "role": "www-data", "environment": "devel", "name": "forms",
                 "task": {"processes": [{"name": "p", "cmdline": "x"}],
                          "resources": {"cpu": 1, "ram": 1 << 27, "disk": 1 << 27}}}
        boundary = "XX"
        parts = "".join('--XX\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n' %
                        pair for pair in (
            ("a.aurora", "include('b.aurora')"), ("b.aurora", source("forms")))) + "--XX--\r\n"
        inspect = JOB + "forms/inspect"
        for body, headers in ((source("forms"), {"Content_Type": "application/x-www-form-urlencoded"}),
                              (source("forms"), {}),
                              (json.dumps(plain), {"Content_Type": "application/json; charset=utf-8"}),
                              (parts, {"Content_Type": "multipart/form-data; boundary=" + boundary}),
                              (__import__("gzip").compress(source("forms").encode()),
                               {"Content_Encoding": "gzip"})):
            self.assertEqual(self.good("POST", inspect, body, **headers)["job"]["key"]["name"], "forms")
        bound = self.good("POST", inspect + "?bind=c=a%3Db&bind=d=1", source("forms", "{{c}} {{d}}"))
        self.assertIn("a=b 1", json.dumps(bound["job"]["taskConfig"]["executorConfig"]["data"]))
        for kind, body in (("multipart/form-data", parts), ("multipart/form-data; boundary=YY", parts),
                           ("multipart/form-data; boundary=XX", parts.replace("b.aurora\"", "../b\""))):
            self.bad(400, "POST", inspect, body, Content_Type=kind)


class RoutesTest(Serving):
    """What the other routes do."""

    def create(self, name: Any, count: Any = 1, **options: Any) -> Any:
        self.scheduler.createJob(config(name, count=count, **options))
        self.demo.advance(3)
        return JOB + name

    def test_status_shows_tasks_with_their_events(self) -> None:
        path = self.create("status", 2)
        answer = self.good("GET", path)
        self.assertEqual((answer["count"], answer["stats"], answer["cron"], answer["update"]),
                         (2, {"RUNNING": 2}, None, None))
        task = answer["tasks"]["active"][1]
        self.assertEqual((task["instance"], task["state"]), (1, "RUNNING"))
        self.assertEqual([event["state"] for event in task["events"]],
                         ["PENDING", "ASSIGNED", "STARTING", "RUNNING"])
        self.assertTrue(task["host"].startswith("demo-"))
        self.bad(404, "GET", JOB + "nonesuch")
        self.assertEqual(self.good("GET", path + "/tasks?state=running&shards=1")["count"], 1)
        self.assertEqual(self.good("GET", path + "/tasks?state=terminal")["count"], 0)
        self.bad(400, "GET", path + "/tasks?state=nonsense")

    def test_lists_filter_and_page_in_a_stable_order(self) -> None:
        for name in ("list-c", "list-a", "list-b"):
            self.create(name)
        self.assertEqual(list(self.good("GET",
                "/alpha/jobs/devcluster/www-data/devel?name=list-*&limit=2")["jobs"].values()),
                         ["devcluster/www-data/devel/list-a", "devcluster/www-data/devel/list-b"])
        page = self.good("GET", "/alpha/jobs/devcluster?role=www-*&name=list-*&limit=2&offset=2")
        self.assertEqual((page["count"], page["total"], page["jobs"]),
                         (1, 3, {"1": "devcluster/www-data/devel/list-c"}))
        detail = self.good("GET", "/alpha/jobs/devcluster/www-data?name=list-a&detail=1")["jobs"]["1"]
        self.assertEqual((detail["key"], detail["active"], detail["service"]),
                         ("devcluster/www-data/devel/list-a", 1, True))
        found = self.good("GET", "/alpha/clusters")["clusters"]["devcluster"]
        self.assertEqual([found[each] for each in ("leader", "place", "schedulers", "circuit", "zookeeper")],
                         [self.demo.url, self.demo.url, [self.demo.url], "closed", None])
        self.assertLess(abs(found["answered"] - time.time() * 1000), 60000)
        self.assertIn("batch", self.good("GET", "/alpha/roles/devcluster")["roles"])
        self.assertEqual(self.good("GET", "/alpha/tiers/devcluster")["default"], "preemptible")

    def test_config_and_if_match_guard_an_update(self) -> None:
        path = self.create("guarded")
        etag = self.ask("GET", path + "/config").headers["etag"]
        text = source("guarded", "changed")
        stale = self.bad(412, "PUT", path + "/update", text, If_Match='"nonsense"')
        self.assertEqual(stale["etag"], etag)
        self.good("PUT", path + "/update", text, 202, If_Match=etag)
        self.demo.advance(120)
        self.bad(412, "PUT", path + "/update", text + "\n", If_Match=etag)

    def test_diff_and_dry_run_tell_what_would_change_and_change_nothing(self) -> None:
        path = self.create("planned", 3)
        text = source("planned", "other", "instances=4")
        plan = self.good("POST", path + "/diff", text)
        self.assertEqual((plan["add"], plan["remove"], plan["update"], plan["unchanged"]),
                         ([3], [], [0, 1, 2], []))
        self.assertEqual(plan["changes"][0]["instances"], [0, 1, 2])
        fields = {each["path"]: (each["old"], each["new"]) for each in plan["changes"][0]["fields"]}
        self.assertEqual(fields["executorConfig.data.task.processes[p].cmdline"], ("serve", "other"), fields)
        before = collections_of(self.demo.calls, "startJobUpdate", "killTasks", "restartShards", "createJob",
                                "addInstances")
        for method, what, body in (("PUT", "/update", text), ("DELETE", "", None), ("PUT", "/restart", None),
                                   ("PUT", "/scale?instances=1", None), ("POST", "/instances?count=2", None)):
            would = self.good(method, path + what + ("&" if "?" in what else "?") + "dry_run=1", body)
            self.assertTrue(would["dry_run"] and would["would"], would)
        self.good("PUT", JOB + "fresh?dry_run=1", source("fresh"))
        self.assertEqual(before, collections_of(self.demo.calls, "startJobUpdate", "killTasks",
                                                "restartShards", "createJob",
                                                "addInstances"))

    def test_an_unchanged_job_of_the_old_client_is_not_rolled(self) -> None:
        job = load(source("old", extra="announce=Announcer(), constraints={'rack': 'limit:9'}"), JOB[11:] +
                   "old").configuration
        data = json.loads(job.taskConfig.executorConfig.data)
        text = json.dumps(dict(sorted(data.items(), reverse=True)), separators=(" , ", " : "))
        owner = api.Identity(user="python2")
        self.scheduler.createJob(job.replace(owner=owner, taskConfig=job.taskConfig.replace(
            owner=owner, executorConfig=api.ExecutorConfig(name="AuroraExecutor", data=text))))
        self.demo.advance(3)
        answer = self.good("PUT", JOB + "old/update",
                           source("old", extra="announce=Announcer(), constraints={'rack': 'limit:9'}"))
        self.assertTrue(answer["unchanged"])
        changed = self.good("PUT", JOB + "old/update", source("old", "v2", "announce=Announcer()"), 202)
        details = aurora_rest.update_details(self.scheduler, aurora_rest.Key(*(JOB[11:] + "old").split("/")),
                                             changed["update"]["id"])
        self.assertEqual(details.update.instructions.desiredState.task.owner.user, "python2")

    def test_scale_adds_like_one_or_kills_the_highest(self) -> None:
        path = self.create("scaled", 2)
        self.assertEqual(self.good("PUT", path + "/scale?instances=4", status=202)["added"], [2, 3])
        self.demo.advance(3)
        self.assertEqual(self.good("PUT", path + "/scale?instances=1", status=202)["killed"], [1, 2, 3])
        self.demo.advance(3)
        self.assertTrue(self.good("PUT", path + "/scale?instances=1")["unchanged"])
        self.assertEqual(self.good("POST", path + "/instances?count=2&like=0", status=201)["added"], [1, 2])
        self.bad(404, "POST", path + "/instances?like=77")
        self.bad(400, "PUT", path + "/scale")

    def test_updates_are_steered_and_their_history_kept(self) -> None:
        path = self.create("steered", 3)
        update = self.good("PUT", path + "/update", source("steered", "v2", "instances=3"), 202)["update"]
        for verb, state in (("pause", "ROLL_FORWARD_PAUSED"), ("resume", "ROLLING_FORWARD"),
                            ("rollback", "ROLLING_BACK"),
                            ("abort", "ABORTED")):
            told = self.good("POST", "%s/update/%s?message=why" % (path, verb), status=202)["update"]
            self.assertEqual((told["id"], told["state"]), (update["id"], state))
            shown = self.good("GET", path + "/update?detail=1")["update"]
            self.assertEqual((shown["id"], shown["state"]), (update["id"], state))
            self.assertRegex(shown["events"][-1]["message"], r"^why \(request \S+\)$")
        self.bad(404, "POST", path + "/update/pause")
        self.assertEqual(self.good("GET", path + "/updates?status=inactive")["updates"][0]["state"],
                         "ABORTED")
        self.assertEqual(self.good("GET", path + "/updates/" + update["id"])["update"]["progress"]["total"],
                         3)
        self.bad(404, "GET", path + "/updates/unknown")
        self.assertTrue(self.good("GET", "/alpha/updates/devcluster/www-data?status=all&limit=1")["count"])

    def test_cron_jobs_are_scheduled_shown_started_and_removed(self) -> None:
        path = "/alpha/cron/devcluster/www-data/devel/nightly"
        text = source("nightly", "sleep 5", "cron_schedule='30 4 * * *'", kind="Job")
        self.good("PUT", path, text, 201)
        shown = self.good("GET", path)
        self.assertEqual(shown["cron"]["schedule"], "30 4 * * *")
        self.assertEqual(time.gmtime(shown["cron"]["next_run"] / 1000)[3:6], (4, 30, 0))
        self.assertEqual(self.good("GET", JOB + "nightly")["cron"]["schedule"], "30 4 * * *")
        self.assertEqual(self.good("GET", "/alpha/cron/devcluster/www-data?name=night*")["count"], 1)
        self.good("POST", path + "/start", status=202)
        self.demo.advance(2)
        self.assertEqual(self.states("nightly"), ["RUNNING"])
        self.good("DELETE", path)
        for method, what in (("DELETE", ""), ("GET", ""), ("POST", "/start")):
            self.bad(404, method, path + what)
        self.demo.advance(60)
        self.bad(422, "PUT", path, source("nightly", extra="cron_schedule='nonsense'", kind="Job"),
                 says="Invalid cron schedule")

    def test_quota_is_set_raised_and_shown(self) -> None:
        path = "/alpha/quota/devcluster/quotarole"
        self.good("PUT", path, json.dumps({"cpu": 4, "ram_mb": 1024, "disk_mb": 2048}))
        self.good("PUT", path + "?increase=1", json.dumps({"cpu": 1.5}))
        self.assertEqual(self.good("GET", path)["quota"], {"cpu": 5.5, "ram_mb": 1024, "disk_mb": 2048})
        for body in ("{}", "[]", '{"cpu": "x"}', '{"cpu": 1, "gpu": 2}', '{"cpu": NaN}',
                     '{"cpu": 1, "cpu": 2}'):
            self.bad(400, "PUT", path, body)
        self.bad(422, "PUT", path, json.dumps({"cpu": -1, "ram_mb": 1, "disk_mb": 1}))

    def test_pending_reasons_name_constraint_or_resource(self) -> None:
        rack = api.Constraint(name="rack",
                constraint=api.TaskConstraint(value=api.ValueConstraint(negated=False, values={"x"})))
        path = self.create("homeless", constraints={rack})
        self.assertEqual(self.good("GET", path + "/pending")["pending"][0]["reasons"],
                         [{"kind": "Constraint not satisfied", "what": "rack"}])
        path = self.create("huge", resources={api.Resource(numCpus=999.0), api.Resource(ramMb=1),
                                              api.Resource(diskMb=1)})
        self.assertEqual(self.good("GET", path + "/pending")["pending"][0]["reasons"],
                         [{"kind": "Insufficient", "what": "CPU"}])

    def test_a_parameter_that_a_call_needs_is_asked_for_as_its_description_says(self) -> None:
        path = self.create("needy", 1)
        task = self.good("GET", path)["tasks"]["active"][0]["id"]
        described = self.ask("GET", "/openapi.json").json["paths"]
        job = "/alpha/job/{cluster}/{role}/{environment}/{name}"
        for method, each, template, name in (
                ("PUT", path + "/scale", job + "/scale", "instances"),
                ("POST", path + "/rollback", job + "/rollback", "to"),
                ("PUT", "/alpha/tasks/devcluster/%s/state" % task, "/alpha/tasks/{cluster}/{task}/state",
                 "to_state"),
                ("GET", path + "/instances/0/files/content",
                 job + "/instances/{instance}/files/content", "path")):
            self.bad(400, method, each, says="^%s= is needed: " % name)
            rows = described[template][method.lower()]["parameters"]
            self.assertEqual([row["name"] for row in rows if row["in"] == "query" and row["required"]],
                             [name])

    def test_requests_that_mean_nothing_are_refused_in_words(self) -> None:
        path = self.create("strict", 1)
        multipart = {"Content_Type": "multipart/form-data; boundary=b"}
        for method, each, body, headers, status, says in (
                ("GET", "?pretty=perhaps", None, {}, 400, "1 or 0"),
                ("GET", "?logs=1&logs=0", None, {}, 400, "logs is given twice"),
                ("GET", "?wait=3601", None, {}, 400, "wait=3601: at most 3600 seconds"),
                ("PUT", "", b"--b--\r\n", multipart, 400, "."),
                ("PUT", "", b"a\0b", {}, 400, "NUL characters"),
                ("PUT", "", b"\xff", {}, 400, "not UTF-8"),
                ("PUT", "/restart?batch_size=0", None, {}, 400, "batch_size"),
                ("PUT", "/scale?instances=2&like=7", None, {}, 404, "no active instance 7")):
            with self.subTest(query=each, body=body):
                self.bad(status, method, path + each, body, says=says, **headers)
        self.bad(415, "PUT", "/alpha/quota/devcluster/www-data", "{}", says="application/json",
                 Content_Type="text/plain")
        self.bad(404, "GET", JOB + "nobody/config")
        self.good("DELETE", path)
        self.demo.advance(10)
        self.bad(404, "GET", path + "/config", says="no active instances")
        self.bad(404, "PUT", path + "/scale?instances=2", says="no active instances")
        self.bad(404, "POST", path + "/update/pause", says="no active update")

    def test_who_waits_for_a_change_gets_what_runs_then_time_and_again(self) -> None:
        path = self.create("changing", 3) + "/config"
        etag = self.ask("GET", path).headers["etag"]
        for left in (2, 1):
            found: List[Any] = []
            waiter = threading.Thread(target=lambda tag=etag, into=found: into.append(
                self.ask("GET", path + "?wait=20", If_None_Match=tag)))
            waiter.start()
            wait_for(lambda: self.server.service.watched.count)
            self.scheduler.killTasks(config("changing").key, {left})
            self.demo.advance(10)
            waiter.join()
            for answer in (found[0], self.ask("GET", path)):
                self.assertEqual((answer.status, answer.json["configs"][0]["instances"]),
                                 (200, list(range(left))))
            etag = found[0].headers["etag"]
            wait_for(lambda: not self.server.service.watched.count)

    def test_sla_figures_are_served(self) -> None:
        path = self.create("sla", 2)
        key = path.replace("/alpha/job/", "/alpha/sla/")
        self.assertEqual(set(self.good("GET", key + "/uptime?percentile=50,90")["uptime"]), {"50", "90"})
        self.assertEqual(self.good("GET", key + "/up-count?duration=0s&duration=1d")["up_count"],
                         {"0": 100.0, "86400": 0.0})
        self.assertTrue(self.good("GET", "/alpha/maintenance/devcluster/demo-01/safe")["safe"])
        for query, policy in (("count_up=3&duration=1m", ("countSlaPolicy", 3, 60)),
                              ("", ("percentageSlaPolicy", 95.0, 1800)),
                              ("percentage=90", ("percentageSlaPolicy", 90.0, 1800))):
            would = self.good("POST", "/alpha/maintenance/devcluster/demo-01/sla-drain?dry_run=1&" +
                              query)["would"]["arguments"]
            (kind, rule), = would["defaultSlaPolicy"].items()
            self.assertEqual((kind, rule.get("count", rule.get("percentage")), rule["durationSecs"]), policy)
            self.assertEqual(would["timeoutSecs"], 604800)
        self.assertIn("demo-01", [each["host"] for each in self.good("GET",
                "/alpha/maintenance/devcluster")["hosts"]])

    def test_hosts_whose_loss_takes_a_job_below_its_sla_are_told_and_not_drained(self) -> None:
        self.good("PUT", "/alpha/quota/devcluster/www-data?increase=1",
                  json.dumps({"cpu": 9, "ram_mb": 9999, "disk_mb": 9999}))
        key = self.create("precious", 3, tier="preferred").replace("/alpha/job/", "")
        self.create("cheap", 3)
        tasks = self.good("GET", JOB + "precious")["tasks"]["active"]
        host = tasks[0]["host"]
        here = [each["host"] for each in tasks].count(host)
        path, share = "/alpha/maintenance/devcluster/" + host, round(100.0 * (3 - here) / 3, 2)
        some = "duration=0&min_instances=3&percentage="
        told = self.good("GET", path + "/safe?%s%s" % (some, share + 1))
        self.assertEqual((told["safe"], told["hosts"][0]["jobs"]),
                         (False, [{"job": key, "percentage": share, "safe": False}]))
        # just enough; too young; too small to count
        for query, safe in ((some + str(int(share)), True),
                            ("duration=1h&min_instances=3&percentage=1", False), ("duration=0", True)):
            self.assertEqual(self.good("GET", path + "/safe?" + query)["safe"], safe, query)
        everywhere = self.good("GET", "/alpha/maintenance/devcluster?%s%s" % (some, share + 1))["hosts"]
        self.assertNotIn(host, [each["host"] for each in everywhere])
        refused = self.bad(409, "POST", "%s/drain?%s%s" % (path, some, share + 1), code="SLA_UNSAFE")
        self.assertEqual([dict(each, mode="NONE") for each in refused["hosts"]], told["hosts"])
        self.assertEqual(self.good("GET", path)["hosts"], [{"host": host, "mode": "NONE"}])
        self.good("POST", "%s/drain?%s%s&force=1" % (path, some, share + 1), status=202)
        self.good("DELETE", path)

    def test_maintenance_backup_recovery_and_the_rest_of_an_operators_day(self) -> None:
        hosts = "/alpha/maintenance/devcluster/demo-06"
        self.assertEqual(self.good("PUT", hosts)["hosts"], [{"host": "demo-06", "mode": "SCHEDULED"}])
        self.bad(404, "GET", hosts + ",unknown", says="no host unknown$")
        self.good("DELETE", hosts)
        self.bad(404, "GET", "/alpha/maintenance/devcluster/unknown")
        self.good("POST", "/alpha/backups/devcluster", status=202)
        backup = self.good("GET", "/alpha/backups/devcluster")["backups"][-1]
        self.bad(404, "POST", "/alpha/recovery/devcluster/nonesuch/stage")
        self.bad(409, "GET", "/alpha/recovery/devcluster/tasks")
        self.good("POST", "/alpha/recovery/devcluster/%s/stage" % backup, status=202)
        self.bad(409, "POST", "/alpha/recovery/devcluster/%s/stage" % backup)
        self.assertTrue(self.good("GET", "/alpha/recovery/devcluster/tasks?role=batch")["count"])
        self.bad(400, "DELETE", "/alpha/recovery/devcluster/tasks")
        self.bad(400, "DELETE", "/alpha/tasks/devcluster", says="all ended tasks are deleted; say force=1")
        self.good("DELETE", "/alpha/tasks/devcluster?force=1")
        self.good("DELETE", "/alpha/recovery/devcluster/tasks?role=batch")
        self.assertEqual(self.good("GET", "/alpha/recovery/devcluster/tasks?role=batch")["count"], 0)
        self.good("DELETE", "/alpha/recovery/devcluster")
        self.good("POST", "/alpha/snapshot/devcluster", status=202)
        self.good("POST", "/alpha/reconcile/devcluster?kind=explicit&batch=10", status=202)
        self.good("POST", "/alpha/reconcile/devcluster", status=202)
        task = self.good("GET", "/alpha/tasks/devcluster?role=batch&state=active&limit=1")["tasks"][0]["id"]
        self.good("PUT", "/alpha/tasks/devcluster/%s/state?to_state=LOST" % task, status=202)
        self.assertEqual(self.good("GET", "/alpha/tasks/devcluster?role=batch&state=lost")["count"], 1)
        self.good("DELETE", "/alpha/tasks/devcluster?role=batch&state=lost")
        self.bad(400, "DELETE", "/alpha/tasks/devcluster?state=running")
        self.assertEqual(self.good("GET", "/alpha/tasks/devcluster?role=batch&state=lost")["count"], 0)
        self.bad(404, "PUT", "/alpha/tasks/devcluster/unknown/state?to_state=LOST")

    def test_tasks_are_found_and_deleted_by_their_ids(self) -> None:
        ids = [each["id"] for each in self.good("GET", "/alpha/tasks/devcluster?role=www-data")["tasks"]][:2]
        found = self.good("GET", "/alpha/tasks/devcluster?id=%s&id=%s" % tuple(ids))["tasks"]
        self.assertEqual([each["id"] for each in found], ids)
        self.assertEqual(self.good("GET", "/alpha/tasks/devcluster?id=none")["count"], 0)
        one = "/alpha/recovery/devcluster/tasks?id=" + ids[0]
        self.good("POST", "/alpha/backups/devcluster", status=202)
        backup = self.good("GET", "/alpha/backups/devcluster")["backups"][-1]
        self.good("POST", "/alpha/recovery/devcluster/%s/stage" % backup, status=202)
        self.addCleanup(self.good, "DELETE", "/alpha/recovery/devcluster")
        staged = self.good("GET", "/alpha/recovery/devcluster/tasks?limit=10000")["count"]
        self.good("DELETE", one)
        self.assertEqual(self.good("GET", one)["count"], 0)
        left = self.good("GET", "/alpha/recovery/devcluster/tasks?limit=10000")["count"]
        self.assertEqual(left, staged - 1)

    def test_no_request_brings_the_scheduler_to_delete_everything(self) -> None:
        before = self.good("GET", "/alpha/tasks/devcluster?limit=10000")["count"]
        self.assertIn("nothing was sent", self.good("DELETE",
                                                    "/alpha/tasks/devcluster?role=nobody")["messages"][0])
        self.assertTrue(self.good("DELETE",
                                  "/alpha/tasks/devcluster?role=nobody&dry_run=1")["would"]["nothing"])
        for query in ('{"role": "nobody"}', '{"role": "nobody", "statuses": ["FAILED"]}',
                      '{"taskIds": ["x"]}'):
            self.good("POST", "/alpha/rpc/devcluster/pruneTasks", '{"query": %s}' % query)
        self.bad(400, "POST", "/alpha/rpc/devcluster/pruneTasks", '{"query": {"limit": 0}}',
                 says="delete all")
        failed = self.bad(502, "POST", "/alpha/rpc/devcluster/pruneTasks",
                          '{"query": {"jobKeys": [{"role": "x"}]}}')
        self.assertEqual(failed["response"]["responseCode"], "ERROR")
        self.bad(400, "DELETE", "/alpha/tasks/devcluster?limit=0")
        self.assertEqual(self.good("GET", "/alpha/tasks/devcluster?limit=10000")["count"], before)

    def test_a_filter_that_is_empty_is_refused(self) -> None:
        for method, path in (("GET", "/alpha/tasks/devcluster?role="),
                             ("DELETE", "/alpha/tasks/devcluster?role=%20"),
                             ("DELETE", "/alpha/recovery/devcluster/tasks?role="),
                             ("GET", "/alpha/jobs/devcluster?name="),
                             ("GET", "/alpha/jobs/devcluster?role=%09"),
                             ("DELETE", "/alpha/tasks/devcluster?host="),
                             ("DELETE", "/alpha/tasks/devcluster?id="),
                             ("GET", "/alpha/updates/devcluster?user="), ("DELETE", JOB + "x?shards="),
                             ("GET", "/alpha/tasks/devcluster?state="), ("PUT", JOB + "x/scale?instances=")):
            self.bad(400, method, path, says="is empty")

    def test_a_configuration_with_two_names_is_refused(self) -> None:
        job = config("twice")
        job.key = api.JobKey(role="www-data", environment="devel", name="other")
        for method, parameter in (("createJob", "description"), ("scheduleCronJob", "description"),
                                  ("replaceCronTemplate", "config")):
            self.bad(400, "POST", "/alpha/rpc/devcluster/" + method, json.dumps({parameter: job.to_plain()}),
                     says="different jobs")
        self.bad(400, "POST", "/alpha/rpc/devcluster/killTasks", "{}", says="needs a job key")

    def test_the_tasks_of_a_cluster_come_in_pieces(self) -> None:
        self.create("pieces", 5)
        path = "/alpha/tasks/devcluster?role=www-data&name=pieces"
        with mock.patch.dict(self.server.service.limits, {"tasks": 3}):
            first = self.good("GET", path)
            self.assertEqual((first["count"], first["next"]), (3, 3))
            rest = self.good("GET", path + "&offset=3")
            self.assertEqual((rest["count"], "next" in rest), (2, False))
            self.assertEqual(len({task["id"] for task in first["tasks"] + rest["tasks"]}), 5)
            self.bad(400, "GET", path + "&limit=4", says="at most 3")

    def test_lists_with_and_without_details_have_the_same_jobs(self) -> None:
        self.scheduler.createJob(config("ended", "true", service=False))
        self.demo.advance(30)
        plain, detailed = (self.good("GET", "/alpha/jobs/devcluster" + query)["jobs"]
                           for query in ("", "?detail=1"))
        self.assertEqual(list(plain.values()), [job["key"] for job in detailed.values()])

    def test_a_forced_state_that_is_ignored_is_told(self) -> None:
        self.create("forced")
        task = self.good("GET", JOB + "forced")["tasks"]["active"][0]["id"]
        ignored = self.good("PUT", "/alpha/tasks/devcluster/%s/state?to_state=PENDING" % task, status=202)
        self.assertEqual((ignored["forced"], ignored["state"]), (False, "RUNNING"))
        done = self.good("PUT", "/alpha/tasks/devcluster/%s/state?to_state=LOST" % task, status=202)
        self.assertEqual((done["forced"], done["state"]), (True, "LOST"))

    def test_an_idempotency_key_is_settled_by_whether_a_write_was_sent(self) -> None:
        path = self.create("settled")
        service = self.server.service
        kept, under_way = len(service.idempotency.answers._kept), service.idempotency._under_way
        # nothing is sent by a dry run, a refusal of ours, a read that fails before the write
        for _ in range(2):
            self.assertNotIn("idempotency-replayed",
                             self.ask("POST", path + "/instances?dry_run=1", Idempotency_Key="d").headers)
            self.assertNotIn("idempotency-replayed",
                             self.ask("POST", path + "/instances?like=9", Idempotency_Key="e").headers)
        self.assertEqual((len(service.idempotency.answers._kept), under_way), (kept, {}))
        self.demo.leaderless = True
        self.addCleanup(setattr, self.demo, "leaderless", False)
        with mock.patch.object(self.scheduler, "retry_for", 0.0):
            self.bad(503, "POST", path + "/instances", Idempotency_Key="f")
        self.demo.leaderless = False
        self.good("POST", path + "/instances", status=201, Idempotency_Key="f")
        first, again = (self.ask("DELETE", path + "?shards=0", Idempotency_Key="g") for _ in range(2))
        self.assertEqual((first.status, again.headers.get("idempotency-replayed"), again.body),
                         (200, "true", first.body))
        with mock.patch.object(aurora_rest, "messages_of", side_effect=KeyError("x")):     # after the write
            first = self.bad(500, "DELETE", path, says="an internal error", Idempotency_Key="h")
        again = self.ask("DELETE", path, Idempotency_Key="h")
        self.assertEqual((again.status, again.json), (500, first))
        self.assertEqual("/alpha/job/" + first["key"], path)

    def test_a_wait_with_an_idempotency_key_keeps_its_place_and_lets_go_when_it_is_over(self) -> None:
        path = self.create("keyed")
        service = self.server.service
        sock = socket.create_connection(("127.0.0.1", self.server.port))
        sock.sendall(("DELETE %s?wait=30 HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: w\r\n\r\n" %
                      path).encode())
        wait_for(lambda: self.states("keyed") == ["KILLING"]
                 and any(c.waiting for c in list(self.server.http.connections)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        wait_for(lambda: not any(c.waiting for c in list(self.server.http.connections)))
        # what comes of it is to be kept
        self.assertEqual((service.waits.all, len(service.idempotency._under_way)), (1, 1))
        self.demo.advance(5)
        wait_for(lambda: not service.waits.all and not service.idempotency._under_way)
        wait_for(lambda: not any("Later.expire" in repr(each[2])
                                 for each in list(self.server.http.loop._timers)))
        self.assertEqual(self.ask("DELETE", path + "?wait=30",
                                  Idempotency_Key="w").headers.get("idempotency-replayed"), "true")

    def test_answers_for_idempotency_keys_are_bounded_in_bytes_and_those_under_way_are_kept(self) -> None:
        path = self.create("bounded")
        service = self.server.service
        answers = service.idempotency.answers
        with mock.patch.multiple(answers, room=5000, most=100):
            for number in range(20):
                self.good("POST", path + "/instances", status=201, Idempotency_Key="b%d" % number)
            self.assertTrue(answers.size <= 5000 and len(answers._kept) < 20)
        self.assertEqual(answers.size, sum(each.size for each, _ in answers._kept.values()))
        waiting = [threading.Thread(target=lambda: self.ask("DELETE", path + "?wait=20",
                                                            Idempotency_Key="slow"))]
        waiting[0].start()
        wait_for(lambda: service.idempotency._under_way and set(self.states("bounded")) == {"KILLING"})
        with mock.patch.multiple(answers, room=0, most=0):
            self.bad(400, "PUT", "/alpha/quota/devcluster/x?increase=1", '{"ram_mb": 0.5}',
                     Idempotency_Key="other")
            self.assertEqual(len(service.idempotency._under_way), 1)
        self.demo.advance(5)
        waiting[0].join()
        self.assertEqual(self.ask("DELETE", path + "?wait=20",
                                  Idempotency_Key="slow").headers.get("idempotency-replayed"), "true")

    def test_globs_are_matched_in_linear_time(self) -> None:
        self.create("a" * 60)
        stars = "*".join("a" * 60) + "X"        # on Python 3.8 a regular expression takes years for it
        self.assertEqual(self.good("GET", "/alpha/jobs/devcluster?name=" + stars)["count"], 0)
        self.assertEqual(self.good("GET", "/alpha/jobs/devcluster?role=www*&name=*a*a?a*")["count"], 1)
        self.bad(400, "GET", "/alpha/jobs/devcluster?name=" + "a" * 256, says="255")
        # no range: older Pythons refuse it, newer match nothing
        for odd in ("%5Bz-a%5D", "*%5Bz-a%5D*", "%5Ba--%5D*?*"):
            self.assertIn(self.ask("GET", "/alpha/jobs/devcluster?role=" + odd).status, (200, 400))
        for pattern, text, matches in (("a*b*c", "abc", True), ("a*b*c", "aXbYc", True),
                                       ("a*b*c", "acb", False), ("**", "", True),
                                       ("*[0-9]*x?", "ab3cxy", True), ("*[!0-9]*[!a]", "1a", False),
                                       ("*.*.*", "a.b.c", True),
                                       ("*a*", "", False), ("?*?*?", "ab", False), ("*[[]*]*", "a[b]c", True),
                                       ("x*y*", "xzy", True)):
            self.assertEqual(aurora_rest.glob(pattern)(text), matches, (pattern, text))

    def test_every_thrift_method_is_a_request(self) -> None:
        for name in api.method_names:
            answer = self.ask("POST", "/alpha/rpc/devcluster/" + name, "{}")
            self.assertIn(answer.status, (200, 400, 404, 422, 502), (name, answer))
            if answer.status != 200:
                self.assertIn(answer.json["code"], ("ERROR", "INVALID_REQUEST", "BAD_REQUEST"),
                              (name, answer))
        answer = self.good("POST", "/alpha/rpc/devcluster/getJobs", '{"ownerRole": "batch"}')
        self.assertEqual(answer["response"]["responseCode"], "OK")
        self.assertTrue(answer["response"]["result"]["getJobsResult"]["configs"])
        self.bad(404, "POST", "/alpha/rpc/devcluster/nonsense", "{}")
        self.bad(400, "POST", "/alpha/rpc/devcluster/createJob",
                 '{"description": {"taskConfig": {"priority": "x"}}}',
                 says=r"description\.taskConfig\.priority: expected an integer")
        self.bad(400, "POST", "/alpha/rpc/devcluster/killTasks",
                 '{"job": {"role": "r", "environment": "e", "name": "n"}, "instances": []}', says="empty set")
        for body in ("[", "[]", '{"x": 1}', "[" * 100000):
            self.bad(400, "POST", "/alpha/rpc/devcluster/getJobs", body)

    def test_who_waits_for_the_first_request_with_his_key_is_told_that_the_server_stops(self) -> None:
        demo = aurora_rest.Demo(speed=0)
        with aurora_rest.Server(port=0, demo=demo, evaluator=self.evaluator()) as server:
            scheduler = server.service.clusters["devcluster"]
            scheduler.createJob(config("stops"))
            demo.advance(9)
            answers: List[Any] = []
            threads = [threading.Thread(target=lambda: answers.append(ask(
                server, "POST", JOB + "stops/instances?wait=60", Idempotency_Key="k").status))
                for _ in range(2)]
            for each in threads:
                each.start()
            under_way = server.service.idempotency._under_way
            wait_for(lambda: any(len(once._listeners) for once in list(under_way.values())))
            wait_for(lambda: server.service.waits.all == 1)
            server.stop(5.0)
            for each in threads:
                each.join()
        self.assertIn(202, answers)
        self.assertLessEqual(set(answers), {202, 503})

    def test_an_idempotency_key_makes_a_write_happen_once(self) -> None:
        path = self.create("once")
        first = self.ask("POST", path + "/instances?count=1", Idempotency_Key="k1")
        again = self.ask("POST", path + "/instances?count=1", Idempotency_Key="k1")
        self.assertEqual((first.status, again.status, first.body), (201, 201, again.body))
        self.assertEqual(again.headers["idempotency-replayed"], "true")
        self.bad(422, "POST", path + "/instances?count=2", code="IDEMPOTENCY_KEY_REUSED",
                 Idempotency_Key="k1")
        self.demo.advance(3)
        self.assertEqual(len(self.states("once")), 2)
        failed = [self.ask("PUT", JOB + "once", source("once"), Idempotency_Key="k2") for _ in range(2)]
        self.assertEqual([(f.status, f.json["code"]) for f in failed], [(409, "JOB_EXISTS")] * 2)
        answers: Any = []
        body = json.dumps({"key": {"jobKey": {"role": "www-data", "environment": "devel", "name": "once"},
                                   "instanceId": 0},
                           "count": 1})
        threads = [threading.Thread(target=lambda: answers.append(self.ask(
            "POST", "/alpha/rpc/devcluster/addInstances", body, Idempotency_Key="k3"))) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual([a.status for a in answers], [200] * 8)
        self.demo.advance(3)
        self.assertEqual(len(self.states("once")), 3)

    def test_reads_revalidate_and_wait_for_a_change(self) -> None:
        path = self.create("watched")
        etag = self.ask("GET", path).headers["etag"]
        unchanged = self.ask("GET", path, If_None_Match=etag)
        self.assertEqual((unchanged.status, unchanged.body), (304, b""))
        self.assertEqual(self.ask("GET", path + "?wait=0.2", If_None_Match=etag).status, 304)
        answers: Any = []
        waiting = [threading.Thread(target=lambda: answers.append(self.ask("GET", path + "?wait=20",
                If_None_Match=etag)))
                   for _ in range(5)]
        for each in waiting:
            each.start()
        wait_for(lambda: self.server.service.watched.count == 5)
        self.scheduler.killTasks(config("watched").key, None, None)
        for each in waiting:
            each.join()
        self.assertEqual({a.status for a in answers}, {200})
        self.assertEqual({a.json["tasks"]["active"][0]["state"] for a in answers}, {"KILLING"})
        wait_for(lambda: self.server.service.watched.count == 0)

    def repeats(self) -> Any:
        return int(matched(r"repeated_answers_total (\d+)",
                             self.ask("GET", "/metrics").body.decode()).group(1))

    def test_the_same_replies_make_the_same_answer_without_being_decoded(self) -> None:
        path = self.create("same", 2)
        self.scheduler.scheduleCronJob(cron_config("same-cron"))
        reads = ["/alpha/roles/devcluster", "/alpha/tiers/devcluster", "/alpha/jobs/devcluster?name=same*",
                 "/alpha/jobs/devcluster/www-data",
                 "/alpha/jobs/devcluster/www-data?detail=1", "/alpha/jobs/devcluster/www-data/devel", path,
                 path + "/tasks?shards=1",
                 path + "/config", path + "/pending", path + "/updates", "/alpha/updates/devcluster",
                 "/alpha/updates/devcluster/www-data",
                 "/alpha/cron/devcluster/www-data/devel/same-cron", "/alpha/cron/devcluster",
                 "/alpha/quota/devcluster/www-data",
                 "/alpha/maintenance/devcluster/demo-01", "/alpha/tasks/devcluster?role=www-data"]
        for read in reads:
            first, calls, before = self.ask("GET", read), dict(self.demo.calls), self.repeats()
            self.assertEqual(first.status, 200, read)
            with mock.patch.object(aurora_rest, "decode_reply", side_effect=AssertionError("decoded")):
                again = self.ask("GET", read)
            self.assertEqual((again.status, again.body, again.headers["etag"]),
                             (200, first.body, first.headers["etag"]), read)
            self.assertEqual(self.repeats(), before + 1, read)
            # asked all the same
            self.assertGreater(sum(self.demo.calls.values()), sum(calls.values()), read)

    def test_a_reply_that_changed_makes_another_answer_and_nothing_is_asked_twice(self) -> None:
        path = self.create("changing")
        self.scheduler.startJobUpdate(update_request(config("changing", "other", 2)), None)
        for change in (lambda: self.demo.advance(1),
                       lambda: self.scheduler.pauseJobUpdate(self.update_key(path), None), lambda: None,
                       lambda: self.scheduler.abortJobUpdate(self.update_key(path), None),
                       lambda: self.scheduler.killTasks(config("changing").key, None, None),
                       lambda: self.demo.advance(60)):
            change()
            before = collections_of(self.demo.calls, "getTasksWithoutConfigs", "getJobUpdateDetails")
            answer = self.ask("GET", path)
            after = collections_of(self.demo.calls, "getTasksWithoutConfigs", "getJobUpdateDetails")
            self.assertEqual([b - a for a, b in zip(before, after)], [1, 1])
            self.server.service.memory.forget(0)
            fresh = self.ask("GET", path)
            self.assertEqual((answer.status, answer.body), (fresh.status, fresh.body))

    def update_key(self, path: Any) -> Any:
        update = self.good("GET", path + "/update")["update"]
        return api.JobUpdateKey(job=config(path.rsplit("/", 1)[1]).key, id=update["id"])

    def test_refused_parameters_are_named_as_they_were_given(self) -> None:
        path = self.create("named")
        self.bad(400, "PUT", path + "/scale?instances=x", says="^instances=x: expected a whole number$")
        self.bad(400, "PUT", path + "/scale?instances=5000", says="^instances=5000: expected 0 to 4000$")
        self.bad(400, "GET", path + "?wait=-1", says="^wait=-1: expected a time in seconds, or such as 30s")
        self.bad(400, "PUT", path + "/restart", code="BAD_REQUEST", says="Idempotency-Key",
                 Idempotency_Key="")

    def test_operations_are_listed_shown_and_cancelled(self) -> None:
        path = self.create("long")
        operation = self.good("PUT", path + "/restart?watch_secs=500", status=202)["operation"]["id"]
        self.assertIn(operation, [o["id"] for o in self.good("GET", "/alpha/operations")["operations"]])
        self.good("DELETE", "/alpha/operations/" + operation, status=202)
        ended = self.good("GET", "/alpha/operations/%s?wait=10" % operation)["operation"]
        self.assertEqual(ended["state"], "cancelled")
        self.bad(409, "DELETE", "/alpha/operations/" + operation, code="OPERATION_ENDED")
        self.bad(404, "GET", "/alpha/operations/unknown")


class OutcomeTest(Serving):
    """What writes answer is what happened, and what does not exist is not there."""
    SPEED = 20.0

    def create(self, name: Any, count: Any = 1, command: Any = "serve", **changes: Any) -> Any:
        self.scheduler.createJob(config(name, command, count, **changes))
        wait_for(lambda: self.states(name).count("RUNNING") == count)
        return JOB + name

    def test_the_outcome_is_in_the_status(self) -> None:
        path = JOB + "deploy"
        created = self.good("PUT", path, source("deploy", extra="instances=2"), 201,
                            Prefer="respond-async, wait=20")
        self.assertEqual((created["reached"], created["progress"]["done"]), (True, 2))
        with mock.patch.object(self.demo, "RUN", 60.0):
            late = self.good("POST", path + "/instances?count=1&wait=0.2s", status=202)
        self.assertEqual((late["reached"], late["added"]), (False, [2]))
        self.assertIn("0 of 1 run", late["why"])
        broken = self.bad(409, "PUT", path + "/update?wait=1m", source("deploy", "exit 1", "instances=3"),
                          "ROLLED_BACK",
                          "instance 0 exited")
        self.assertEqual((broken["reached"], broken["update"]["state"], broken["endings"][0]["message"]),
                         (False, "ROLLED_BACK", "Task failed."))
        self.assertTrue(self.good("PUT", path + "/scale?instances=1&wait=20")["reached"])
        restarted = self.good("PUT", path + "/restart?wait=20&watch_secs=0")
        self.assertEqual((restarted["reached"], restarted["instances"], restarted["progress"]["done"]),
                         (True, [0], 1))
        killed = self.good("DELETE", path + "?batch_size=1&wait=20")
        self.assertEqual((killed["reached"], killed["killed"]), (True, [0]))
        self.bad(409, "PUT", JOB + "fails?wait=20", source("fails", "exit 3", kind="Job"), "TASKS_FAILED",
                 "ended as FAILED")

    def test_a_restart_that_fails_tells_how_its_tasks_stand(self) -> None:
        path = self.create("restless", 1)
        with mock.patch.object(self.demo, "RUN", 3600.0):
            failed = self.bad(409, "PUT", path + "/restart?wait=20&watch_secs=0&time_limit=1s", None,
                              "TASKS_FAILED", "time limit")
        self.assertEqual([(each["instance"], each["state"]) for each in failed["endings"]], [(0, "STARTING")])
        self.assertEqual(failed["operation"]["state"], "failed")

    def test_cron_runs_and_rollbacks_are_waited_for(self) -> None:
        self.good("PUT", "/alpha/cron/devcluster/www-data/devel/night", source(
            "night", "sleep 1", "cron_schedule='0 3 * * *', instances=2", kind="Job"), 201)
        self.good("PUT", "/alpha/cron/devcluster/www-data/devel/night", source(
            "night", "sleep 1", "cron_schedule='0 4 * * *', instances=2", kind="Job"), 200)
        self.assertEqual(self.good("GET", "/alpha/cron/devcluster/www-data/devel/night")["cron"]["schedule"],
                         "0 4 * * *")
        for path in ("/www-data?name=ni*", "?role=www-*&name=night"):
            self.assertEqual([each["key"] for each in self.good("GET", "/alpha/cron/devcluster" + path)
                              ["jobs"].values()], ["devcluster/www-data/devel/night"])
        self.assertEqual(self.good("GET", "/alpha/cron/devcluster?role=nobody")["count"], 0)
        run = self.good("POST", "/alpha/cron/devcluster/www-data/devel/night/start?wait=30")
        self.assertEqual((run["reached"], run["progress"]["done"]), (True, 2))
        path = self.create("back", 2)
        update = self.good("PUT", path + "/update",
                           source("back", "other", "instances=2, update_config=UpdateConfig("
                                                           "watch_secs=60)"), 202)["update"]
        wait_for(lambda: self.good("GET", path + "/update")["update"]["instances"].get("updating"))
        back = self.good("POST", path + "/updates/%s/rollback?wait=30" % update["id"])
        self.assertEqual((back["reached"], back["update"]["state"]), (True, "ROLLED_BACK"))
        self.bad(409, "POST", path + "/updates/%s/pause" % update["id"], code="UPDATE_ENDED",
                 says="ended as ROLLED_BACK")
        ended = self.bad(409, "POST", path + "/update/wait", code="ROLLED_BACK")       # after the end, too
        self.assertEqual(ended["update"]["id"], update["id"])
        self.bad(409, "POST", path + "/updates/%s/wait" % update["id"], code="ROLLED_BACK")
        self.bad(404, "POST", path + "/updates/nonesuch/abort")

    def test_an_update_that_pauses_itself_ends_the_wait(self) -> None:
        path = self.create("batches", 2)
        paused = self.good("PUT", path + "/update?wait=1m",
                           source("batches", "other", "instances=2, update_config=UpdateConfig("
                           "watch_secs=1, update_strategy=BatchUpdateStrategy(batch_size=1, "
                           "autopause_after_batch=True))"), 202)
        self.assertIn("ROLL_FORWARD_PAUSED: Update auto paused", paused["why"])
        self.good("POST", path + "/update/resume?message=go", status=202)
        self.good("POST", path + "/update/pause?message=lunch", status=202)
        waiting = self.good("POST", path + "/update/wait?wait=0.5", status=202)
        self.assertRegex(waiting["why"], "PAUSED by .*: lunch")

    def test_pending_tasks_say_why_everywhere(self) -> None:
        big = {api.Resource(numCpus=999.0), api.Resource(ramMb=1), api.Resource(diskMb=1)}
        self.scheduler.createJob(config("huge", resources=big))
        wait_for(lambda: self.good("GET", JOB + "huge")["tasks"]["active"][0].get("pending"))
        self.assertEqual(self.good("GET", JOB + "huge")["tasks"]["active"][0]["pending"], "Insufficient: CPU")
        self.assertEqual(self.good("GET", JOB + "huge/tasks")["tasks"][0]["pending"], "Insufficient: CPU")
        self.assertIn("Insufficient: CPU", self.good("POST", JOB + "huge/wait?wait=0.5", status=202)["why"])

    def test_what_does_not_exist_is_404_with_the_nearest_names(self) -> None:
        self.create("there")
        for method, path in (("GET", JOB + "ther"), ("GET", JOB + "ther/pending"),
                             ("GET", JOB + "ther/tasks"), ("GET", JOB + "ther/config"),
                             ("GET", JOB + "ther/events"), ("GET", JOB + "ther/updates"),
                             ("GET", JOB + "ther/update"),
                             ("GET", "/alpha/sla/devcluster/www-data/devel/ther/uptime"),
                             ("POST", JOB + "ther/wait"),
                             ("GET", "/alpha/sla/devcluster/www-data/devel/ther/up-count"),
                             ("DELETE", JOB + "ther"),
                             ("DELETE", JOB + "ther?dry_run=1")):
            self.bad(404, method, path, says="did you mean devcluster/www-data/devel/there")
        for method, path in (("GET", ""), ("GET", "/safe"), ("PUT", ""), ("DELETE", ""), ("POST", "/drain"),
                             ("POST", "/sla-drain"),
                             ("POST", "/drain?dry_run=1")):
            told = self.bad(404, method, "/alpha/maintenance/devcluster/demo-01,demo-O1" + path)
            self.assertRegex(told["errors"][0], "^there is no host demo-O1(; did you mean .*)?$")
        self.assertEqual(self.good("GET", "/alpha/maintenance/devcluster/demo-01")["hosts"][0]["mode"],
                         "NONE")
        self.bad(404, "GET", "/alpha/jobs/devclustr", says="known: devcluster")
        self.bad(404, "POST", "/alpha/rpc/devcluster/getJobz", "{}", says="did you mean getJobs")
        self.bad(404, "GET", "/alpha/clusters/", says="without the slash")
        self.assertEqual(self.good("GET", "/alpha/jobs/devcluster/nobody")["count"], 0)     # any role exists

    def test_if_match_holds_on_every_write(self) -> None:
        path, quota = self.create("held", 2), "/alpha/quota/devcluster/held"
        for method, what, body in (("DELETE", "", None), ("PUT", "/restart", None),
                                   ("PUT", "/scale?instances=1", None),
                                   ("POST", "/instances", None), ("PUT", "/update", source("held", "x"))):
            self.bad(412, method, path + what, body, If_Match='"old"')
        self.assertEqual(self.states("held"), ["RUNNING"] * 2)
        tag = self.ask("GET", path + "/config").headers["etag"]
        self.good("PUT", path + "/scale?instances=1", status=202, If_Match=tag)
        amounts = '{"cpu": 1, "ram_mb": 1, "disk_mb": 1}'
        tag = self.ask("GET", quota).headers["etag"]
        self.good("PUT", quota, amounts, If_Match=tag)
        self.bad(412, "PUT", quota, amounts, If_Match=tag)
        host = "/alpha/maintenance/devcluster/demo-05"
        tag = self.ask("GET", host).headers["etag"]
        self.good("PUT", host, If_Match='"x", %s' % tag)
        self.bad(412, "POST", host + "/drain", If_Match=tag)
        self.good("DELETE", host, If_Match="*")
        self.bad(412, "POST", "/alpha/backups/devcluster", If_Match="*",
                 says="nothing that this changes has an ETag")
        self.bad(412, "PUT", JOB + "absent", source("absent"), If_Match="*")
        cron = "/alpha/cron/devcluster/www-data/devel/held-cron"
        text = source("held-cron", "sleep 1", "cron_schedule='0 4 * * *'", kind="Job")
        self.bad(412, "PUT", cron, text, If_Match="*")
        self.good("PUT", cron, text, 201)
        self.bad(412, "DELETE", cron, If_Match='"old"')
        self.bad(412, "DELETE", cron, If_Match="W/" + self.ask("GET", cron).headers["etag"])
        self.good("DELETE", cron, If_Match=self.ask("GET", cron).headers["etag"])

    def test_conditions_hold_once_and_against_others_too(self) -> None:
        path, quota = self.create("once-held", 3), "/alpha/quota/devcluster/once-held"
        tag = self.ask("GET", path + "/config").headers["etag"]
        with_key = {"If_Match": tag, "Idempotency_Key": "conditional"}
        self.good("PUT", path + "/scale?instances=2", status=202, **with_key)
        self.demo.advance(5)
        again = self.ask("PUT", path + "/scale?instances=2", **with_key)       # what it says was done before
        self.assertEqual((again.status, again.headers["idempotency-replayed"]), (202, "true"))
        self.good("PUT", quota, '{"cpu": 1, "ram_mb": 1, "disk_mb": 1}')
        for _ in range(4):
            tag = self.ask("GET", quota).headers["etag"]
            answers: List[Any] = []
            threads = [threading.Thread(target=lambda tag=tag, into=answers: into.append(self.ask(
                "PUT", quota + "?increase=1", '{"cpu": 1}', If_Match=tag).status)) for _ in range(2)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            self.assertEqual(sorted(answers), [200, 412])
        cron = "/alpha/cron/devcluster/www-data/devel/none-match"
        text = source("none-match", "sleep 1", "cron_schedule='0 4 * * *'", kind="Job")
        self.good("PUT", cron, text, 201, If_None_Match="*")
        self.bad(412, "PUT", cron, text, If_None_Match="*", says="must not be")
        self.bad(412, "PUT", cron, text, If_None_Match=self.ask("GET", cron).headers["etag"])
        self.good("PUT", cron, text, If_None_Match='"old"')
        self.good("PUT", JOB + "brand-new", source("brand-new"), 201, If_None_Match="*")
        self.bad(409, "PUT", JOB + "brand-new", source("brand-new"), If_None_Match="*", code="JOB_EXISTS")

    def test_the_etag_of_an_indented_answer_is_as_good_as_the_other(self) -> None:
        path = self.create("indented", 2)
        etag = self.ask("GET", path + "/config?pretty=1").headers["etag"]
        self.assertEqual(self.ask("GET", path + "/config?pretty=1", If_None_Match=etag).status, 304)
        self.good("PUT", path + "/scale?instances=1", status=202, If_Match=etag)

    def test_a_job_without_executor_data_is_told_as_it_is(self) -> None:
        job = config("nodata")
        job.taskConfig.executorConfig.data = None
        self.scheduler.createJob(job)
        executor = self.good("GET", JOB + "nodata/config")["configs"][0]["config"]["executorConfig"]
        self.assertEqual(executor, {"name": "AuroraExecutor"})
        self.good("GET", JOB + "nodata/history")

    def test_a_call_by_rpc_for_a_job_that_is_updated_is_refused_as_the_scheduler_says(self) -> None:
        path = self.create("rpc-busy", 1)
        self.good("PUT", path + "/update", source("rpc-busy", "other"), 202)
        body = json.dumps({"job": {"role": "www-data", "environment": "devel", "name": "rpc-busy"}})
        self.bad(409, "POST", "/alpha/rpc/devcluster/killTasks", body, code="JOB_UPDATING_ERROR")
        self.good("DELETE", path + "/update", status=202)

    def test_of_many_names_only_some_are_compared(self) -> None:
        sizes = []

        def close(name: str, among: Any) -> Any:
            sizes.append(len(among))
            return among[:1]
        with mock.patch("difflib.get_close_matches", close):
            error = aurora_rest.no_such("host", "host-0500x", ["host-%04d" % n for n in range(5000)])
        self.assertEqual((sizes, str(error)), ([100], "there is no host host-0500x; did you mean host-0451?"))
        self.assertIn("did you mean host-0500 or ", str(aurora_rest.no_such(
            "host", "host-0500x", ["host-%04d" % n for n in range(5000)])))

    def test_a_wait_of_no_time_looks_once(self) -> None:
        path = self.create("looked-at", 1)
        told = self.good("POST", path + "/wait?until=gone&wait=0", status=202)
        self.assertIs(told["reached"], False)
        self.assertIs(self.good("POST", path + "/wait?wait=0")["reached"], True)
        self.good("PUT", path + "/update", source("looked-at", "other"), 202)
        told = self.good("POST", path + "/update/wait", status=202, Prefer="wait=0")
        self.assertIs(told["reached"], False)
        self.good("DELETE", path + "/update", status=202)
        self.bad(409, "POST", path + "/update/wait?wait=0", code="ABORTED")

    def test_a_scheduler_that_answers_nonsense_is_told_as_that(self) -> None:
        path = self.create("nonsense", 1)
        for name, method, each in (("_truth", "GET", "/alpha/tiers/devcluster"),
                                   ("instances_of", "PUT", path + "/scale?instances=2"),
                                   ("as_hosts", "GET", "/alpha/maintenance/devcluster/demo-01/safe")):
            with mock.patch.object(aurora_rest, name, side_effect=TypeError("odd")):
                self.bad(502, method, each, code="SCHEDULER_BAD_ANSWER")

    def test_instances_that_cannot_be_read_back_are_all_waited_for(self) -> None:
        path, add = self.create("unread", 1), aurora_rest._add_like

        def unread(*given: Any) -> None:
            add(*given)
        with mock.patch.object(aurora_rest, "_add_like", unread):
            told = self.good("PUT", path + "/scale?instances=4&wait=20")
        self.assertEqual((told["added"], told["reached"], told["progress"]["done"]), (None, True, 3))

    def test_lists_filter_alike_and_lead_to_their_next_page(self) -> None:
        docker = api.Container(mesos=api.MesosContainer(image=api.Image(docker=api.DockerImage(name="nginx",
                tag="1.2"))))
        self.create("red", metadata={api.Metadata(key="team", value="red")})
        self.create("blue", metadata={api.Metadata(key="team", value="blue")}, container=docker)
        base = "/alpha/jobs/devcluster/www-data?environment=devel"
        for query, names in (("&metadata=team=r*", ["red"]), ("&metadata=team=*", ["blue", "red"]),
                             ("&image=nginx:*", ["blue"]),
                             ("&tier=preempt*&name=bl*", ["blue"]), ("&tier=preferred", []),
                             ("&has=failed&name=red", []),
                             ("&has=active&name=[br]??*&metadata=team=*", ["blue", "red"])):
            found = self.good("GET", base + query)["jobs"].values()
            self.assertEqual([key.rsplit("/", 1)[1] for key in found], names, query)
        everywhere = self.good("GET", "/alpha/jobs?cluster=dev*&role=www-data&name=red&detail=1")["jobs"]["1"]
        self.assertEqual((everywhere["key"], everywhere["instances"], everywhere["cron"]), (
            "devcluster/www-data/devel/red", 1, None))
        self.assertEqual(self.good("GET", "/alpha/jobs?cluster=other")["count"], 0)
        self.assertEqual(self.good("GET", "/alpha/tasks/devcluster?name=bl*&host=demo-*")["count"], 1)
        self.assertEqual(self.good("GET", JOB + "blue/tasks?host=demo-*")["count"], 1)
        self.bad(400, "DELETE", "/alpha/tasks/devcluster?name=bl*", says="pattern")
        first = self.ask("GET", base + "&limit=1")
        self.assertEqual((first.json["count"], first.json["total"] > 1), (1, True))
        follow = matched(r'^<(.*)>; rel="next"$', first.headers["link"]).group(1)
        self.assertNotEqual(self.good("GET", follow)["jobs"]["1"], first.json["jobs"]["1"])
        self.assertNotIn("link", self.ask("GET", base + "&offset=1&limit=1000").headers)
        self.assertIn(b'\n  "status": "success"', self.ask("GET", base + "&pretty=1").body)
        self.assertIn(b'\n  "status": "failure"', self.ask("GET", JOB + "nope?pretty=TRUE").body)

    def test_a_list_of_all_clusters_names_those_that_did_not_answer(self) -> None:
        server = aurora_rest.Server(port=0, clusters={"alive": self.demo.url, "dead": "http://127.0.0.1:1"},
                                    evaluator=self.evaluator(), scheduler={"retry_for": 0.1}).start()
        self.addCleanup(server.stop, 1.0)
        answer = ask(server, "GET", "/alpha/jobs?role=batch").json
        self.assertEqual((answer["jobs"]["1"].split("/")[:2], list(answer["unanswered"])),
                         (["alive", "batch"], ["dead"]))
        self.assertEqual(answer["unanswered"]["dead"]["code"], "SCHEDULER_UNREACHABLE")

    def test_bodies_that_are_no_configuration_are_told_what_they_look_like(self) -> None:
        for body, says in (('{"name": "x"}', "looks like JSON, which takes Content-Type"),
                           ("hello.aurora", "--data-binary @hello.aurora"),
                           ("# licence " + source().replace("\n", ""), "-d drops line ends")):
            self.bad(400, "PUT", JOB + "x", body, "INVALID_CONFIG", says)

    def test_no_parameter_is_taken_and_dropped(self) -> None:
        path = self.create("strict")
        for method, what in (("PUT", "/restart?message=x"), ("POST", "/instances?message=x"),
                             ("GET", "/pending?percentile=1")):
            self.bad(400, method, path + what, says="unknown parameter")
        self.bad(400, "POST", "/alpha/reconcile/devcluster?batch=3", says="kind=explicit")
        added = self.good("PUT", path + "/scale?instances=2&message=why", status=202)
        self.assertIn("message= was not sent", added["warnings"][0])

    def test_one_thing_has_one_shape(self) -> None:
        path = self.create("shape", 2)
        self.good("PUT", path + "/update", source("shape", "other", "instances=2"), 202)
        shown = self.good("GET", path)["update"]
        for other in (self.good("GET", path + "/update")["update"],
                      self.good("GET", path + "/updates")["updates"][0],
                      self.good("GET", path + "/updates/" + shown["id"])["update"],
                      self.bad(409, "DELETE", path, code="JOB_UPDATING_ERROR")["update"],
                      self.bad(409, "PUT", path + "/update", source("shape", "third"),
                               "UPDATE_IN_PROGRESS")["update"]):
            self.assertEqual((set(other), other["id"], other["job"]),
                             (set(shown), shown["id"], path[len("/alpha/job/"):]))
        whole = self.good("GET", path + "/update?detail=1")["update"]
        self.assertEqual(whole["after"]["config"]["executorConfig"]["data"]["task"]["processes"][0][
            "cmdline"], "other")
        self.good("DELETE", path + "/update", status=202)
        task = self.good("GET", path)["tasks"]["active"][0]
        other = self.good("GET", "/alpha/tasks/devcluster?name=shape&state=active")["tasks"][0]
        self.assertEqual((set(task), other["job"]), (set(other), path[len("/alpha/job/"):]))
        operation = self.good("PUT", path + "/restart?watch_secs=0&wait=20")["operation"]
        self.assertTrue(all(isinstance(time_, int) and time_ > 1e12 for time_ in (
            operation["started"], operation["ended"], operation["steps"][0]["time"])))

    def test_refused_writes_leave_an_audit_line(self) -> None:
        del self.lines[:]
        self.bad(400, "PUT", JOB + "x?nonsense=1", source())
        self.bad(415, "PUT", JOB + "x", "x", Content_Encoding="br")
        audit = [line for line in self.lines if line.startswith("audit ")]
        self.assertEqual([matched(r"did=(\S+) .*outcome=(\S+)", line).groups() for line in audit], [
            ("create_job", "BAD_REQUEST"), ("create_job", "UNSUPPORTED_MEDIA_TYPE")])

    def test_scripts_have_it_in_one_call(self) -> None:
        key = self.create("script", 2)[len("/alpha/job/"):]
        steps = [step["text"] for step in aurora_rest.begin(aurora_rest.rolling_restart, self.scheduler, key,
                                                            (),
                                                            aurora_rest.RestartOptions(watch_secs=0,
                                                                    poll_secs=0.05))]
        self.assertEqual(steps, ["restarted", "healthy"] * 2)
        with self.assertRaises(aurora_rest.AuroraError) as failed:
            list(aurora_rest.begin(aurora_rest.wait_until_gone, self.scheduler, key, (), 0.1, 0.05))
        self.assertEqual(failed.exception.code, "NOT_REACHED")
        events = aurora_rest.watch(self.scheduler, key, 0.05)
        kind, plain = next(events)
        self.assertEqual((kind, plain["job"]), ("task", key))
        self.assertIn("killTasks", dir(self.scheduler))
        self.assertIn("instances", __import__("inspect").signature(self.scheduler.killTasks).parameters)
        with self.assertRaisesRegex(AttributeError, "did you mean getJobs"):
            self.scheduler.getJobz()
        with self.assertRaises(aurora_rest.JobExists) as exists:
            self.scheduler.createJob(load(source("script"), JOB[len("/alpha/job/"):] +
                                          "script").configuration)
        self.assertEqual((exists.exception.code, exists.exception.http), ("JOB_EXISTS", 409))


def collections_of(counter: Any, *names: Any) -> Any:
    return [counter[name] for name in names]


class Events:
    """A reader of a text/event-stream."""

    def __init__(self, server: Any, path: Any, **headers: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        self.connection.request("GET", path, headers={name.replace("_", "-"): value for name,
                                                      value in headers.items()})
        self.answer = self.connection.getresponse()

    def next(self) -> Any:
        """(id, event, data) of the next event."""
        fields: Any = {}
        deadline = time.monotonic() + 20
        while True:
            if time.monotonic() > deadline:
                raise AssertionError("no event in 20 s")
            line = self.answer.fp.readline().decode().rstrip("\n")
            if not line and "data" in fields:
                return fields.get("id"), fields["event"], json.loads(fields["data"])
            if not line and not self.answer.fp.peek(1):
                raise EOFError
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value

    def close(self) -> None:
        self.connection.close()
        self.answer.close()


class EventsTest(Serving):
    def events(self, path: Any, **headers: Any) -> Any:
        made = Events(self.server, path, **headers)
        self.addCleanup(made.close)
        return made

    def test_a_jobs_events_arrive_with_ids_and_can_be_resumed(self) -> None:
        self.scheduler.createJob(config("streamed"))
        self.demo.advance(3)
        stream = self.events(JOB + "streamed/events")
        self.assertEqual(stream.answer.headers["Content-Type"], "text/event-stream")
        first, kind, data = stream.next()
        self.assertEqual((kind, data["state"], data["instance"]), ("task", "RUNNING", 0))
        self.scheduler.restartShards(config("streamed").key, {0})
        seen = [stream.next()]
        self.assertEqual(seen[0][2]["state"], "RESTARTING")
        self.demo.advance(3)
        seen += [stream.next() for _ in range(5)]
        self.assertEqual([each[2]["state"] for each in seen],
                         ["RESTARTING", "KILLED", "PENDING", "ASSIGNED", "STARTING", "RUNNING"])
        resumed = self.events(JOB + "streamed/events", Last_Event_ID=seen[2][0])
        self.assertEqual([resumed.next()[0] for _ in range(3)], [each[0] for each in seen[3:]])
        lost = self.events(JOB + "streamed/events", Last_Event_ID="0000-7")
        self.assertEqual(lost.next()[1], "gap")
        self.assertNotEqual(first, seen[0][0])

    def test_an_updates_events_arrive(self) -> None:
        self.scheduler.createJob(config("updated"))
        self.demo.advance(3)
        stream = self.events(JOB + "updated/events")
        stream.next()
        self.scheduler.startJobUpdate(update_request(config("updated", "other")), "because")
        kinds = set()
        while "instance" not in kinds or "update" not in kinds:
            _, kind, data = stream.next()
            kinds.add(kind)
            if kind == "update":
                self.assertEqual((data["state"], data["message"]), ("ROLLING_FORWARD", "because"))
        one = self.events(JOB + "updated/updates/%s/events" % data["update"])
        self.assertEqual([one.next()[1:] for _ in range(2)][0][1]["state"], "ROLLING_FORWARD")
        self.bad(404, "GET", JOB + "updated/updates/unknown/events")
        self.scheduler.abortJobUpdate(api.JobUpdateKey(job=config("updated").key, id=data["update"]), None)
        while True:
            _, kind, data = one.next()
            if kind == "update":
                self.assertEqual(data["state"], "ABORTED")
                break

    def test_a_newcomer_is_told_how_things_stand_and_not_the_history(self) -> None:
        self.scheduler.createJob(config("stands", count=2))
        self.demo.advance(3)
        first = self.events(JOB + "stands/events")
        for _ in range(2):
            first.next()
        for _ in range(2):
            self.scheduler.restartShards(config("stands").key, {0, 1})
            self.demo.advance(5)
        seen = [first.next() for _ in range(24)]
        newcomer = self.events(JOB + "stands/events")
        standing: Any = []
        while not standing or standing[-1][0] is None:
            standing.append(newcomer.next())
        self.assertEqual(sorted((each[2]["instance"], each[2]["state"]) for each in standing),
                         [(0, "KILLED"), (0, "KILLED"), (0, "RUNNING"), (1, "KILLED"), (1, "KILLED"),
                          (1, "RUNNING")])
        self.assertEqual(standing[-1][0], seen[-1][0])      # and goes on where the others are
        self.scheduler.killTasks(config("stands").key, {1}, None)
        self.assertEqual(newcomer.next(), first.next())

    def test_a_gap_is_followed_by_how_things_stand(self) -> None:
        self.scheduler.createJob(config("gapped"))
        self.demo.advance(3)
        with mock.patch.object(aurora_rest.Events, "KEPT", 4):
            watcher = self.events(JOB + "gapped/events")
            first = watcher.next()
            self.scheduler.restartShards(config("gapped").key, {0})
            self.demo.advance(5)
            poll = next(p for name, p in self.server.service.watched._polls.items() if name[:1] == ("job",)
                        and name[1].name == "gapped")
            wait_for(lambda: poll._number >= 7)
            late = self.events(JOB + "gapped/events", Last_Event_ID=first[0])
            self.assertEqual(late.next()[1], "gap")
            self.assertEqual({late.next()[2]["state"] for _ in range(2)}, {"KILLED", "RUNNING"})

    def test_an_active_update_behind_many_that_ended_is_told_once(self) -> None:
        def summary(name: Any, status: Any, modified: Any) -> Any:
            key = api.JobUpdateKey(job=api.JobKey(role="r", environment="e", name=name), id=name)
            return api.JobUpdateSummary(key=key, state=api.JobUpdateState(
                status=status, createdTimestampMs=1, lastModifiedTimestampMs=modified))

        class Stub:
            updates = {"old": [summary("old", U.ROLL_FORWARD_PAUSED, 10),
                               [(U.ROLLING_FORWARD, 5), (U.ROLL_FORWARD_PAUSED, 10)]]}

            def call(self, method: Any, *arguments: Any, **named: Any) -> Any:
                query = arguments[-1]
                found = [pair for pair in self.updates.values()
                         if (not query.updateStatuses or pair[0].state.status in
                         query.updateStatuses) and (query.key is None or pair[0].key == query.key)]
                found.sort(key=lambda pair: -pair[0].state.lastModifiedTimestampMs)
                if method == "getJobUpdateSummaries":
                    page = [pair[0] for pair in found][query.offset or 0:][:query.limit]
                    return api.Response(result=api.Result(
                        getJobUpdateSummariesResult=api.GetJobUpdateSummariesResult(
                        updateSummaries=page)))
                details = [api.JobUpdateDetails(update=api.JobUpdate(summary=pair[0]), instanceEvents=[],
                                                updateEvents=[
                    api.JobUpdateEvent(status=status, timestampMs=when) for status, when in pair[1]])
                    for pair in found]
                return api.Response(result=api.Result(getJobUpdateDetailsResult=api.GetJobUpdateDetailsResult(
                    detailsList=details)))
        stub = Stub()
        for number in range(150):
            name = "ended%d" % number
            stub.updates[name] = [summary(name, U.ABORTED, 100 + number), [(U.ABORTED, 100 + number)]]
        changes = aurora_rest.TaskChanges(stub, "c", None, lambda: api.JobUpdateQuery(role="r"))
        told = [[(name, plain["update"], plain["state"]) for name, plain in changes()] for _ in range(2)]
        self.assertEqual(told, [[("update", "old", "ROLL_FORWARD_PAUSED")], []])
        stub.updates["old"] = [summary("old", U.ROLLED_FORWARD, 999), stub.updates["old"][1] +
                               [(U.ROLLED_FORWARD, 999)]]
        self.assertEqual([plain["state"] for _, plain in changes()], ["ROLLED_FORWARD"])

    def test_a_newcomer_in_the_middle_of_a_look_is_told_nothing_twice(self) -> None:
        class Changes:
            standing = [("task", {"state": "S1"})]

            def __call__(self) -> Any:
                return []
        changes = Changes()
        events = aurora_rest.Events(None, changes, 1.0)
        events.note([("task", {"state": "S1"})])
        events.note([("task", {"state": "S2"})])
        changes.standing = [("task", {"state": "S3"})]       # looked, and not noted yet
        data, mark = events.since(None)
        self.assertNotIn(b"S3", data)
        events.note([("task", {"state": "S3"})])
        self.assertEqual(events.since(mark)[0].count(b"S3"), 1)

    def test_a_role_is_told_every_end_of_an_update_and_of_a_task(self) -> None:
        self.scheduler.createJob(config("roled"))
        self.demo.advance(3)
        stream = self.events("/alpha/events/devcluster/www-data")
        while stream.next()[2]["job"] != "devcluster/www-data/devel/roled":
            pass
        wait_for(lambda: any(name[0] == "role" and poll.asked for name,
                             poll in self.server.service.watched._polls.items()))
        with self.demo._lock:       # begins and ends between two looks
            self.demo.invoke("startJobUpdate", api.method("startJobUpdate").arguments(
                update_request(config("roled", "other"), minWaitInInstanceRunningMs=0), "quick"))
            self.demo.advance(60)
        states = []
        while "ROLLED_FORWARD" not in states:
            _, kind, data = stream.next()
            self.assertEqual(data["job"], "devcluster/www-data/devel/roled")
            states += [data["state"]] if kind == "update" else []
        self.assertEqual(states, ["ROLLING_FORWARD", "ROLLED_FORWARD"])
        self.scheduler.killTasks(config("roled").key, None, None)
        self.demo.advance(5)
        self.scheduler.pruneTasks(api.TaskQuery(role="www-data", jobName="roled"))
        while True:
            data = stream.next()[2]
            if data.get("state") == "DELETED":
                self.assertEqual(data["job"], "devcluster/www-data/devel/roled")
                break

    def test_many_watchers_cost_one_poll(self) -> None:
        self.scheduler.createJob(config("popular"))
        self.demo.advance(3)
        streams = [self.events(JOB + "popular/events") for _ in range(40)]
        for each in streams:
            self.assertEqual(each.next()[2]["state"], "RUNNING")
        channel = next(c for k, c in self.server.service.watched._polls.items() if k[0] == "job"
                       and k[1].name == "popular")
        self.assertEqual(channel.waiters, 40)
        before, started = self.demo.calls["getTasksWithoutConfigs"], time.monotonic()
        wait_for(lambda: self.demo.calls["getTasksWithoutConfigs"] >= before + 5)
        polls = (time.monotonic() - started) / 0.05
        self.assertLess(self.demo.calls["getTasksWithoutConfigs"] - before, 2 * polls + 10)
        self.scheduler.killTasks(config("popular").key, None, None)
        for each in streams:
            self.assertEqual(each.next()[2]["state"], "KILLING")
        for each in streams:
            each.close()
        wait_for(lambda: channel.waiters == 0)

    def test_a_role_and_an_operation_have_events(self) -> None:
        stream = self.events("/alpha/events/devcluster/batch")
        self.assertTrue(stream.next()[2]["job"].startswith("devcluster/batch/"))
        operation = self.good("PUT", "/alpha/job/devcluster/batch/prod/indexer/restart?watch_secs=500",
                              status=202)["operation"]
        watched = self.events("/alpha/operations/%s/events" % operation["id"])
        kinds = {watched.next()[1] for _ in range(2)}
        self.assertEqual(kinds, {"step", "state"})
        self.good("DELETE", "/alpha/operations/" + operation["id"], status=202)
        while True:
            _, kind, data = watched.next()
            if kind == "state":
                self.assertEqual(data["state"], "cancelled")
                break

    def test_a_stream_that_is_silent_is_kept_alive(self) -> None:
        self.scheduler.createJob(config("silent"))
        with mock.patch.object(aurora_rest.HttpServer, "BEAT", 1), socket.create_connection((
                "127.0.0.1", self.server.port), timeout=20) as sock:
            sock.sendall(b"GET %ssilent/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % JOB.encode())
            data = b""
            while b": heartbeat\n\n" not in data:
                data += sock.recv(4096)

    def test_streams_beyond_the_limit_are_refused(self) -> None:
        with mock.patch.dict(self.server.service.limits, {"watchers": 0}):
            self.bad(503, "GET", JOB + "streamed/events", code="OVERLOADED")


class Trail(List[Any]):
    """An audit trail in memory; `broken`: it takes nothing."""
    broken = False

    def __call__(self, event: Any) -> Any:
        if not self.broken:
            self.append(event)
        return not self.broken

    def of(self, name: Any, **fields: Any) -> Any:
        """The fields of the events of that name that have these."""
        return [each.fields for each in self if each.name == name and all(
            each.fields.get(field) == value for field, value in fields.items())]


class EventsOfManyTest(EventsTest):
    """The same where the jobs that are watched are many."""
    few: Any

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.few = mock.patch.object(aurora_rest.Lookout, "FEW", 0)
        cls.few.start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.few.stop()
        super().tearDownClass()

    def looked(self, count: Any = 3) -> Any:
        """What is asked of the scheduler in so many looks of the lookout."""
        looks, before = [], collections.Counter(self.demo.calls)
        look = aurora_rest.Lookout.look

        def counting(lookout: Any) -> Any:
            looks.append(lookout)
            return look(lookout)
        with mock.patch.object(aurora_rest.Lookout, "look", counting):
            for lookout in self.server.service.lookouts._polls.values():
                lookout.ask = partial(counting, lookout)
            wait_for(lambda: len(looks) >= count)
        return {name: number / len(looks) for name, number in
                (collections.Counter(self.demo.calls) - before).items()}

    def test_many_jobs_cost_two_questions_and_nobody_costs_none(self) -> None:
        names = ["many%02d" % number for number in range(20)]
        for name in names:
            self.scheduler.createJob(config(name))
        self.demo.advance(5)
        streams = [self.events(JOB + name + "/events") for name in names]
        last = [stream.next()[0] for stream in streams]
        polls = self.server.service.watched._polls

        def settled() -> Any:
            return all(not poll._looking and poll.listening for key, poll in list(polls.items())
                       if key[0] == "job" and key[1].name in names)
        wait_for(lambda: settled() and sum(self.looked().values()) < 4)
        self.scheduler.killTasks(config(names[7]).key, {0}, None)
        self.assertEqual(streams[7].next()[2]["state"], "KILLING")
        for stream in streams:
            stream.close()
        wait_for(lambda: all(poll.resting for key, poll in list(polls.items()) if key[0] == "job"))
        wait_for(lambda: all(poll.ended for poll in self.server.service.lookouts._polls.values()))
        before = sum(self.demo.calls.values())
        time.sleep(0.3)
        self.assertEqual(sum(self.demo.calls.values()), before)
        self.demo.advance(5)        # who comes back is told what happened meanwhile, and nothing old as new
        again = self.events(JOB + names[7] + "/events", Last_Event_ID=last[7])
        self.assertEqual([again.next()[2]["state"] for _ in range(2)], ["KILLING", "KILLED"])

    def test_who_leaves_and_comes_again_is_looked_at_again(self) -> None:
        names = ["www-data/devel/" + each for each in ("one", "two")]
        for each in names:
            self.scheduler.createJob(config(each.rpartition("/")[2]))
        self.demo.advance(5)
        lookout = aurora_rest.Lookout(None, self.scheduler, None, 1.0)
        listeners: Any = [lambda: None, lambda: 1]
        for pair in zip(names, listeners):
            self.assertTrue(lookout.heed(*pair))
        self.assertEqual([lookout.look() for _ in range(2)], [set(names), set()])
        lookout.forget(listeners[1])
        self.assertEqual(lookout.look(), set())
        lookout.heed(names[1], listeners[1])
        self.assertEqual([lookout.look() for _ in range(2)], [{names[1]}, set()])
        self.scheduler.killTasks(config("one").key, {0}, None)
        self.assertEqual(lookout.look(), {names[0]})
        self.scheduler.startJobUpdate(load(source("two", "other"), "devcluster/" + names[1]).update_request(
            None, "u"), None)
        self.assertIn(names[1], lookout.look())

    def test_more_new_updates_than_are_read_mean_that_all_jobs_are_looked_at(self) -> None:
        for each in ("many-a", "many-b"):
            self.scheduler.createJob(config(each))
        lookout = aurora_rest.Lookout(None, self.scheduler, None, 1.0)
        keep: Any = lambda: None
        lookout.heed("www-data/devel/many-a", keep)
        lookout.look()
        lookout.look()
        with mock.patch.object(aurora_rest.Lookout, "LATEST", 1):
            for command in ("first", "second"):
                self.scheduler.startJobUpdate(load(source("many-b", command), JOB[len("/alpha/job/"):] +
                                                   "many-b"
                                                   ).update_request(None, command), None)
                self.assertEqual(lookout.look(), {"www-data/devel/many-a"})
                self.demo.advance(200)

    def test_a_look_that_fails_is_taken_again(self) -> None:
        self.scheduler.createJob(config("failing"))
        self.demo.advance(3)
        stream = self.events(JOB + "failing/events")
        stream.next()
        failure, turn = aurora_rest.SchedulerFailed("no"), aurora_rest.TaskChanges.__call__
        calls = []

        def failing(changes: Any) -> Any:
            calls.append(changes)
            if len(calls) < 3:
                raise failure
            return turn(changes)
        poll = next(poll for key, poll in self.server.service.watched._polls.items()
                    if key[0] == "job" and key[1].name == "failing")
        wait_for(lambda: poll.listening and not poll._looking)
        poll.ask = partial(failing, poll.changes)
        self.scheduler.killTasks(config("failing").key, {0}, None)
        self.assertEqual([stream.next()[1:][0] for _ in range(2)], ["error", "task"])


class AuditTest(Serving):
    """What the log and the audit trail say."""
    SPEED = 40.0

    def setUp(self) -> None:
        self.trail = self.server.service.record = Trail()
        self.addCleanup(setattr, self.server.service, "audit_required", False)

    def create(self, name: Any, count: Any = 2) -> Any:
        self.scheduler.createJob(config(name, count=count))
        wait_for(lambda: self.states(name) == ["RUNNING"] * count)
        return JOB + name

    def test_a_line_reads_as_it_was_written(self) -> None:
        event = aurora_rest.Event("access", id="a-1", user='Al "x" Ice', peer=None, instances=[1, 2], ms=1.5,
                                  path="/é\u2028\n", empty="", dash="-", whole=True, none=[])
        self.assertEqual(event, 'access id=a-1 user="Al \\"x\\" Ice" peer=- instances=1,2 ms=1.5 '
                         'path="/\\u00e9\\u2028\\n" empty="" dash="-" whole=true none=-')
        plain = json.loads(aurora_rest.log_line(event, True, 0))
        self.assertEqual((plain["event"], plain["level"], plain["user"], plain["peer"], plain["instances"]),
                         ("access", "info", 'Al "x" Ice', None, [1, 2]))
        self.assertEqual(json.loads(aurora_rest.log_line("hint", True, 0))["message"], "hint")
        self.assertEqual(aurora_rest.log_line(event, False, 0).count("\n"), 1)

    def test_every_write_leaves_its_line_whatever_it_holds_and_however_it_is_called(self) -> None:
        path = self.create("lined", 1)
        for depth in (300, 900, 5000):
            for method, each in (("DELETE", path), ("PUT", "/alpha/quota/devcluster/lined"),
                                 ("POST", "/alpha/rpc/devcluster/killTasks")):
                self.bad(400, method, each, "[" * depth + "]" * depth, X_Request_Id="deep")
        self.assertEqual(len(self.trail.of("audit", id="deep")), 9)
        with token_server() as (server, token):
            server.service.record = trail = Trail()
            refused = ask(server, "POST", "/alpha/rpc/devcluster/killTasks", "{}",
                          Authorization="Bearer " + token["rita"])
            self.assertEqual((refused.status, [each["outcome"] for each in trail.of("audit")]),
                             (403, ["FORBIDDEN"]))
            for method in ("killTasks", "nothing"):
                self.assertEqual(ask(server, "POST", "/alpha/rpc/devcluster/" + method, "{}").status, 401)
            self.assertEqual([each["outcome"] for each in trail.of("audit")], ["FORBIDDEN", "UNAUTHORIZED"])

    def test_a_write_leaves_what_was_asked_and_what_was_answered(self) -> None:
        path = self.create("trail", 3)
        self.good("DELETE", path + "?shards=1&message=too%20many", X_Request_Id="mine-1")
        found, = self.trail.of("audit", id="mine-1")
        self.assertEqual((found["user"], found["did"], found["key"], found["asked"],
                          found["status"], found["outcome"], found["killed"]),
                         ("anonymous", "kill_job", path[len("/alpha/job/"):],
                          {"shards": "1", "message": "too many"}, 200, "done", [1]))
        self.assertTrue(found["peer"].startswith("127."))
        body = json.dumps({"ownerRole": "a", "quota": {"resources": []}})
        self.ask("POST", "/alpha/rpc/devcluster/setQuota", body)
        self.assertEqual(self.trail.of("audit", did="post_rpc")[0]["body"], body)
        self.good("PUT", JOB + "hash?dry_run=1", source("hash"))
        found, = self.trail.of("audit", did="create_job")
        self.assertEqual((found["outcome"], found["dry_run"], found["config"]),
                         ("dry run", True, aurora_rest._digest(source("hash").encode())))

    def test_what_was_denied_and_what_was_replayed_leave_lines_too(self) -> None:
        path = self.create("again", 1)
        for _ in range(2):
            self.good("PUT", path + "/scale?instances=2", status=202, Idempotency_Key="k1")
        self.assertEqual([each.get("replayed") for each in self.trail.of("audit", did="scale_job")],
                         [None, True])
        self.bad(403, "DELETE", path, Origin="http://evil.example")
        self.bad(400, "DELETE", path + "?shard=1")
        self.assertEqual([(each["status"], each["outcome"])
                          for each in self.trail.of("audit", did="kill_job")],
                         [(403, "FORBIDDEN"), (400, "BAD_REQUEST")])

    def test_an_operation_leaves_a_line_when_it_ends(self) -> None:
        path = self.create("ends")
        plain = self.good("PUT", path + "/restart?watch_secs=0", status=202, X_Request_Id="op-1")["operation"]
        self.good("GET", "/alpha/operations/%s?wait=20" % plain["id"])
        ended = wait_for(lambda: self.trail.of("operation", id=plain["id"]))
        self.assertEqual([(each["ended"], each["instances"], each["request"], each["done"])
                          for each in ended], [("succeeded", [0, 1], "op-1", 2)])
        self.assertEqual(self.trail.of("audit", id="op-1")[0]["operation"], plain["id"])

    def test_what_is_waited_for_leaves_a_line_when_it_is_known_or_the_caller_goes(self) -> None:
        path = self.create("waited")
        self.good("PUT", path + "/update?wait=20", source("waited", "other", "instances=2"), 200,
                  X_Request_Id="up-1")
        self.assertEqual(self.trail.of("audit", id="up-1")[0]["outcome"], "waiting")
        outcome, = self.trail.of("outcome", id="up-1")
        self.assertEqual((outcome["status"], outcome["outcome"], outcome["reached"]), (200, "done", True))
        with socket.create_connection(("127.0.0.1", self.server.port)) as sock:
            sock.sendall(b"PUT %s/restart?watch_secs=500&wait=60 HTTP/1.1\r\nHost: localhost\r\n"
                         b"X-Request-Id: left-1\r\nContent-Length: 0\r\n\r\n" % path.encode())
            wait_for(lambda: self.trail.of("audit", id="left-1"))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        outcome, = wait_for(lambda: self.trail.of("outcome", id="left-1"))
        self.assertEqual((outcome["status"], outcome["outcome"]), (None, "the caller left"))
        # an end, and it still reads
        with socket.create_connection(("127.0.0.1", self.server.port)) as sock:
            sock.sendall(b"PUT %s/restart?watch_secs=500&wait=60&force=1 HTTP/1.1\r\nHost: localhost\r\n"
                         b"X-Request-Id: left-2\r\nContent-Length: 0\r\n\r\n" % path.encode())
            wait_for(lambda: self.trail.of("audit", id="left-2"))
            sock.shutdown(socket.SHUT_WR)
            self.assertTrue(sock.recv(65536).startswith(b"HTTP/1.1 202"))
        outcome, = wait_for(lambda: self.trail.of("outcome", id="left-2"))
        self.assertEqual((outcome["status"], outcome["reached"], outcome["left"]),
                         (202, False, "the caller sent an end"))
        for operation in self.server.service.operations.all():
            operation.stop()

    def test_nothing_is_sent_where_the_trail_has_to_have_it_and_cannot(self) -> None:
        path = self.create("required")
        self.server.service.audit_required = True
        self.good("DELETE", path + "?shards=0", X_Request_Id="sent-1")
        self.assertEqual([each.name for each in self.trail if each.fields.get("id") == "sent-1"],
                         ["sending", "audit"])
        self.assertIn('"instances": [0]', self.trail.of("sending")[0]["arguments"])
        self.trail.broken = True
        before = self.demo.calls["killTasks"]
        self.bad(503, "DELETE", path, code="AUDIT_UNAVAILABLE")
        operation = self.good("PUT", path + "/restart?watch_secs=0&shards=1", status=202)["operation"]["id"]
        ended = self.good("GET", "/alpha/operations/%s?wait=20" % operation)["operation"]
        self.assertEqual((ended["state"], ended["result"]["code"]), ("failed", "AUDIT_UNAVAILABLE"))
        self.assertEqual(self.demo.calls["killTasks"], before)
        self.assertGreater(float(matched(r"^aurora_rest_audit_lines_lost_total (\d+)", self.ask(
            "GET", "/metrics").body.decode(), re.MULTILINE).group(1)), 2)

    def test_no_configuration_and_no_binding_stands_in_the_trail(self) -> None:
        self.server.service.audit_required = True
        self.good("PUT", JOB + "secret?bind=pw=hunter2", source("secret", "export PW=hunter2"), 201)
        wrapped = config("secret2", "export PW=hunter2").to_plain()
        self.good("POST", "/alpha/rpc/devcluster/createJob", json.dumps({"description": wrapped}))
        text = " ".join(map(str, self.trail))
        self.assertNotIn("hunter2", text)
        self.assertIn("secret2", text)
        self.assertEqual(self.trail.of("audit", did="create_job")[0]["asked"], {"bind": "pw=…"})

    def test_nothing_hides_what_was_asked_from_the_trail(self) -> None:
        self.create("padded")
        asked = {"job": {"role": "www-data", "environment": "devel", "name": "padded"}, "instances": [0],
                 "message": "x" * 9000}
        self.server.service.audit_required = True
        self.good("POST", "/alpha/rpc/devcluster/killTasks", " " * 9000 + json.dumps(asked),
                  X_Request_Id="hid-1")
        for name, field in (("sending", "arguments"), ("audit", "body")):
            found, = self.trail.of(name, id="hid-1")
            self.assertIn('"name": "padded"', found[field])
            self.assertLess(len(found[field]), 1000)
            self.assertRegex(found[field + "_hash"], "^sha256:[0-9a-f]{64}$")
        self.server.service.record = None       # as before --audit-log is given
        self.bad(503, "DELETE", JOB + "padded", code="AUDIT_UNAVAILABLE")

    def test_a_trail_that_was_removed_is_none(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "audit")
            trail = aurora_rest.AuditFile(path)
            self.assertTrue(trail(aurora_rest.Event("audit")))
            os.unlink(path)
            self.assertFalse(trail(aurora_rest.Event("audit")))
            trail.reopen()
            self.assertTrue(trail(aurora_rest.Event("audit")))

    def test_the_request_id_goes_to_the_scheduler_and_into_its_messages(self) -> None:
        with FakeScheduler(answering(tiers_answer)) as fake, aurora_rest.Server(
                port=0, clusters={"devcluster": fake.url}, evaluator=self.evaluator()) as server:
            for number in ("r-1", "r-2"):
                ask(server, "GET", "/alpha/tiers/devcluster", X_Request_Id=number)
                self.assertIn(b"\r\nX-Request-Id: %s" % number.encode(), fake.requests[-1][0])
        path = self.create("told", 1)
        self.good("DELETE", path + "?message=why", X_Request_Id="msg-1")
        wait_for(lambda: not self.states("told"))
        task, = self.good("GET", path)["tasks"]["inactive"]
        self.assertTrue([each for each in task["events"] if "why (request msg-1)" in (each["message"] or "")],
                        task)

    def test_a_stream_leaves_a_line_at_its_end(self) -> None:
        path = self.create("streams", 1)
        stream = Events(self.server, path + "/events", X_Request_Id="stream-1")
        stream.next()
        stream.close()
        line = wait_for(lambda: [each for each in self.lines if each.startswith("stream id=stream-1")])[0]
        self.assertEqual(line.fields["ended"], "the caller left")
        self.assertGreater(line.fields["bytes"], 100)

    def test_the_file_is_appended_to_and_opened_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "audit")
            trail = aurora_rest.AuditFile(path)
            self.assertTrue(trail(aurora_rest.Event("audit", id=1)))
            os.rename(path, path + ".1")
            self.assertTrue(trail(aurora_rest.Event("audit", id=2)))
            trail.reopen()
            self.assertTrue(trail(aurora_rest.Event("audit", id=3)))
            ids = [[matched(r"id=(\d)", line).group(1) for line in open(each, encoding="utf-8")]
                   for each in (path + ".1", path)]
            self.assertEqual(ids, [["1", "2"], ["3"]])
            os.close(trail._file)
            self.assertFalse(trail(aurora_rest.Event("audit", id=4)))
            pipe = os.path.join(folder, "pipe")
            os.mkfifo(pipe)
            with self.assertRaises(OSError):
                aurora_rest.AuditFile(pipe)
        if os.path.exists("/dev/full"):
            self.assertFalse(aurora_rest.AuditFile("/dev/full")(aurora_rest.Event("audit", id=5)))


class BigFile:
    """A file of any size that takes no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        return bytes(end - first)


class LogsTest(Serving):
    """Logs and files of tasks, through the demo's observer."""
    OPTIONS = {"poll_interval": 0.02}

    def setUp(self) -> None:
        self.watcher = self.demo.observer
        self.reader = self.server.service.observer
        self.files = dict(self.watcher.files)

        def restore() -> None:
            self.watcher.garbage, self.watcher.slow, self.watcher.purge = None, 0.0, 7 * 86400.0
            self.watcher.rotate, self.watcher.files, self.watcher.agent_authorization = (1 << 20,
                                                                                         5), self.files, None
            self.reader.agent_port, self.reader.agent_authorization, self.reader.framework = 0, None, None
            self.reader.timeout, self.reader.port = 10.0, 1338
            self.watcher.start()
        self.addCleanup(restore)

    def job(self, name: Any, *processes: Any, count: Any = 1, service: Any = True, seconds: Any = 10,
            **task: Any) -> Any:
        """A job whose task has these processes, (name, command line, further fields); its path."""
        made = config(name, count=count, service=service)
        data = {"task": dict(task,
                             processes=[dict({"name": each[0], "cmdline": each[1]},
                                             **dict(each[2:3] and each[2]))
                                              for each in processes])}
        made.taskConfig.executorConfig.data = json.dumps(data)
        self.scheduler.createJob(made)
        self.demo.advance(seconds)
        return JOB + name

    def task(self, name: Any, instance: Any = 0) -> Any:
        key = ("www-data", "devel", name)
        return self.demo._active[key].get(instance) or list(self.demo._jobs[key].values())[-1]

    def stream(self, path: Any, **headers: Any) -> Any:
        made = Events(self.server, path, Accept="text/event-stream", **headers)
        self.addCleanup(made.close)
        return made

    def text(self, path: Any) -> Any:
        """A followed log as text: a function that gives the next line."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        self.addCleanup(connection.close)
        connection.request("GET", path)
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        return lambda: answer.readline().decode()

    def observed(self, path: Any, method: Any = "GET", **headers: Any) -> Any:
        return ask(self.watcher, method, path, **headers)

    def test_the_demos_observer_answers_as_the_real_one(self) -> None:
        self.job("quirks", ("p", "echo one; echo 'a<b>&c'; sleep 9999"), ("q", "exit 3", {"daemon": True}),
                 seconds=12)
        task = self.task("quirks")
        one, name = task.id, "/%s/p/0/stdout" % task.id
        self.watcher.files = dict(self.files, **{"cut": b"abc\xc3\xbc", "a b<i>.txt": b"x", "empty": b"",
                                                 "secret": False})
        failed = self.observed("/j/process/%s/q/0" % one).json
        self.assertEqual((failed["state"], "return_code" in failed, "stop_time" in failed),
                         ("FAILED", False, False))
        for path, status, body in (
                ("/health", 200, "^OK$"), ("/j/task_id_count", 200, '"all"'),
                ("/j/task_ids/all/0/1", 200, '"num": 1'),
                ("/j/task_ids/some", 500, "<html>"), ("/j/task_ids/all/x", 500, "<html>"),
                ("/j/task", 200, "^{}$"),
                ("/j/task/" + one, 200, '"user": "www-data"'), ("/j/task/none", 500, "<html>"),
                ("/j/task?task_id=%s,none" % one, 500, "<html>"), ("/j/process/" + one, 200, "^{}$"),
                ("/j/process/%s/none" % one, 200, "^{}$"), ("/j/process/none/p", 200, "^{}$"),
                ("/j/process/%s/p/99" % one, 200, "^{}$"), ("/j/process/%s/p/x" % one, 500, "<html>"),
                ("/j/process/%s/p/-9" % one, 500, "<html>"),
                ("/j/process/%s/q/-1" % one, 200, '"process_run": 2'),
                ("/j/processes?task_id=none", 200, '^{"none": {}}$'),
                ("/j/processes?task_ids=" + one, 200, "^{}$"),
                ("/j/processes?task_id=" + one, 200, '"process_run": 2'),
                ("/logdata" + name, 200, '^{"offset": 11, "length": 0}$'),
                ("/logdata" + name + "?offset=4", 200, '"length": 7, "data": "a&lt;b&gt;&amp;c'),
                ("/logdata" + name + "?offset=99", 200, '^{"offset": 99, "length": 0}$'),
                ("/logdata" + name + "?offset=-2", 500, "<html>"),
                ("/logdata" + name + "?offset=x", 200, "^{}$"),
                ("/logdata/%s/none/0/stdout" % one, 500, "<html>"), ("/logdata/none/p/0/stdout", 200, "^{}$"),
                ("/logdata/%s/p/-1/stdout" % one, 200, "11"), ("/logdata/%s/p/x/stdout" % one, 500, "<html>"),
                ("/filedata/%s/cut?offset=0&length=4" % one, 200, r"abc\\ufffd"),
                ("/filedata/%s/none" % one, 200, "^{}$"),
                ("/filedata/%s/data/gr%%C3%%BCn.txt" % one, 500, "<html>"), ("/vars.json", 200, "{"),
                ("/task/none", 404, "<html>"), ("/process/none/p", 404, "<html>"),
                ("/rawtask/none", 404, "<html>"),
                ("/browse/none", 404, "<html>"), ("/browse/%s/cut" % one, 500, "<html>"),
                ("/file/none/x", 200, "<html>"),
                ("/browse/" + one, 200,
                 r"-rw-r--r--   1   www-data       1000          1 Nov 25 13:53 <a href='/file/%s/./a b<i>"
                 r".txt'>a b<i>.txt</a> <a href='/download/" % one),
                 ("/browse/%s/data" % one, 200, "'>..</a>"),
                ("/download/%s/data" % one, 404, "<html>"), ("/download/none/x", 404, "<html>"),
                ("/download/%s/../x" % one, 404, "<html>"), ("/download/%s/outside" % one, 404, "<html>"),
                ("/download/%s/../sandbox2/x" % one, 403, "<html>"),
                ("/download/%s/secret" % one, 403, "<html>"),
                ("/download/%s/data/gr%%C3%%BCn.txt" % one, 500, "<html>"),
                ("/download/%s/cut" % one, 200, "abcü")):
            answer = self.observed(path)
            self.assertEqual(answer.status, status, (path, answer))
            self.assertRegex(answer.body.decode().strip(), body, path)
        ranges: Any = (("bytes=1-2", 206, b"bc", "bytes 1-2/5"),
                       ("bytes=3-", 206, b"\xc3\xbc", "bytes 3-4/5"),
                       ("bytes=-1", 206, b"\xbc", "bytes 4-4/5"),
                       ("bytes=0-0,2-3", 206, b"a", "bytes 0-0/5"),
                       ("bytes=5-", 416, None, None))
        for asked, status, body, said in ranges:
            answer = self.observed("/download/%s/cut" % one, Range=asked)
            self.assertEqual((answer.status, answer.headers.get("content-range")), (status, said))
            self.assertIn(body, (answer.body, None))
        self.assertEqual(self.observed("/download/%s/empty" % one, Range="bytes=0-9").status, 416)
        self.assertEqual(self.observed("/download/%s/cut" % one, If_Modified_Since="x").status, 304)
        self.assertEqual(self.observed("/download/%s/cut" % one, "HEAD").headers["content-length"], "5")
        self.assertEqual(self.observed("/health", "POST").status, 405)
        self.scheduler.killTasks(config("quirks").key, None, None)
        self.demo.advance(5)
        killed = self.observed("/j/process/%s/p" % one).json
        self.assertEqual((killed["state"], killed["return_code"], "used" in killed), ("KILLED", -15, False))
        self.assertEqual(self.observed("/j/task/" + one).json[one]["resource_consumption"]["status"], "None")
        self.demo.advance(8 * 3600)
        self.watcher.purge = 3600.0
        self.assertEqual([self.observed(path % one).status
                          for path in ("/task/%s", "/j/task/%s", "/download/%s/cut")], [404, 500, 404])

    def test_processes_with_their_runs(self) -> None:
        path = self.job("procs", ("web", "serve"), ("setup", "echo done"),
                        ("again", "exit 1", {"daemon": True}),
                        ("later", "sleep 1"), seconds=14, max_failures=3) + "/instances/0/processes"
        plain = self.good("GET", path + "?runs=1")
        self.assertEqual((plain["count"], plain["task"]["host"][:5], plain["task"]["state"]),
                         (4, "demo-", "RUNNING"))
        found = {each["name"]: each for each in plain["processes"]}
        self.assertEqual(list(found), ["web", "setup", "again", "later"])
        self.assertEqual([(found[name]["state"], found[name]["return_code"]) for name in ("web", "setup")],
                         [("RUNNING", None), ("SUCCESS", 0)])
        self.assertEqual((found["again"]["state"], found["again"]["return_code"], found["again"]["run"]),
                         ("FAILED", None, 2))
        self.assertEqual([each["run"] for each in found["again"]["runs"]], [0, 1, 2])
        self.assertTrue(isinstance(found["web"]["started"], int) and found["web"]["cmdline"] == "serve"
                        and found["web"]["used"]["cpu"])
        first = plain["task"]["id"]
        self.scheduler.restartShards(config("procs").key, {0})
        self.demo.advance(10)
        self.assertNotEqual(self.good("GET", path)["task"]["id"], first)
        self.assertEqual(self.good("GET", path + "?task=" + first)["processes"][0]["state"], "KILLED")
        self.bad(404, "GET", path + "?task=" + self.task("quirks").id
                 if ("www-data", "devel", "quirks") in self.demo._jobs else path + "?task=x",
                 says="no task")
        self.bad(404, "GET", path.replace("/0/", "/7/"), says="no task on a host")
        self.bad(400, "GET", path.replace("/0/", "/x/"))

    def test_a_log_is_read_from_its_end_or_in_parts(self) -> None:
        lines = "".join("echo line %d; " % number for number in range(250))
        path = self.job("read",
                        ("p q-ü", lines + "echo ünd >&2; sleep 9999")) + "/instances/0/logs"
        log = path + "/p%20q-%C3%BC"
        self.assertEqual(self.ask("GET", path).status,
                         502)         # the observer cannot: its name is not ASCII
        self.reader.agent_port = 5051
        self.assertEqual(self.ask("GET", log).body.count(b"\n"), 100)
        errors = "echo ünd >&2; echo a\rb >&2; sleep 9999"
        path = self.job("read2", ("p", lines + errors)) + "/instances/0/logs"
        answer = self.ask("GET", path)
        whole = "".join("line %d\n" % number for number in range(250)).encode()
        self.assertEqual(answer.body, b"".join(whole.splitlines(True)[-100:]))
        self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")
        numbers = [int(answer.headers["x-log-" + name]) for name in ("run", "offset", "next", "size", "left")]
        self.assertEqual(numbers, [0, len(whole) - len(answer.body), len(whole), len(whole), 0])
        self.assertEqual(answer.headers["x-log-task"], self.task("read2").id)
        for query, expected in (("tail=2", b"line 248\nline 249\n"), ("tail=0", b""),
                                ("offset=0&length=7", whole[:7]),
                                ("offset=-9", b"line 249\n"), ("offset=99999", b""), ("tail=1000", whole),
                                ("grep=e+13&tail=3",
                                 b"line 137\nline 138\nline 139\n"), ("offset=0&grep=9&length=20", b""),
                                ("stream=stderr&grep=b", b"a\rb\n"),
                                ("stream=stderr&grep=b&offset=0", b"a\rb\n"),
                                ("stream=stderr", "ünd\na\rb\n".encode()),
                                ("stream=stderr&offset=0&length=1", b"\xc3"),
                                ("run=0&tail=1", b"line 249\n"), ("run=-1&tail=1", b"line 249\n")):
            answer = self.ask("GET", path + "?" + query)
            self.assertEqual((answer.status, answer.body), (200, expected), query)
        self.assertEqual(self.ask("GET", path + "?offset=3&length=4").headers["x-log-left"],
                         str(len(whole) - 7))
        for query in ("tail=1&offset=1", "length=5", "stream=x", "tail=-1", "length=0", "offset=x", "grep=",
                      "source=x", "unknown=1",
                      "follow=1&length=1&offset=0"):
            self.bad(400, "GET", path + "?" + query)
        self.bad(404, "GET", path + "/none", says="it has begun p")
        self.bad(404, "GET", path + "?run=3", says="runs 0 to 0")
        two = self.job("two", ("a", "echo a; sleep 99"), ("b", "echo b; sleep 99")) + "/instances/0/logs"
        self.bad(400, "GET", two, says="a, b; say which")
        self.assertEqual(self.ask("GET", two + "/b").body, b"b\n")
        self.assertEqual(self.ask("HEAD", two + "/b").status, 200)

    def test_cut_characters_are_held_back_until_they_are_whole(self) -> None:
        for data, whole in ((b"", 0), (b"a", 1), (b"a\xc3", 1), (b"a\xc3\xbc", 3), (b"\xe2\x82", 0),
                            (b"\xe2\x82\xac", 3), (b"x\xf0\x9f\x98", 1),
                            (b"\xf0\x9f\x98\x80", 4), (b"\x80\x80\x80\x80", 4), (b"\xff", 0)):
            self.assertEqual(aurora_rest.whole_characters(data), whole, data)
        path = self.job("cut", ("p", "echo üüü; sleep 9999")) + "/instances/0/logs"
        answer = self.ask("GET", path + "?offset=0&length=3")
        self.assertEqual((answer.body, answer.headers["x-log-next"]), ("ü".encode(), "2"))

    def test_followed_as_text_a_log_ends_with_its_task(self) -> None:
        path = self.job("text", ("p", "echo one; sleep 20; echo two; sleep 30"),
                        service=False) + "/instances/0/logs?follow=1"
        line = self.text(path)
        self.assertEqual(line(), "one\n")
        self.demo.advance(20)
        self.assertEqual(line(), "two\n")
        self.demo.advance(40)
        self.assertRegex(line(), "^--- end .*ended as FINISHED")
        self.assertEqual(line(), "")
        data = raw(self.server, ("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path).encode())
        self.assertIn(b"Transfer-Encoding: chunked", data)
        self.assertTrue(data.endswith(b"\r\n0\r\n\r\n"), data[-50:])
        old = raw(self.server, ("GET %s HTTP/1.0\r\n\r\n" % path).encode())
        self.assertNotIn(b"chunked", old)
        self.assertIn(b"\r\n\r\none\ntwo\n--- end", old)

    def test_following_goes_on_over_rotations_runs_and_tasks_and_resumes_exactly(self) -> None:
        self.watcher.rotate = (130, 5)
        path = self.job("turns", ("p", "serve"), seconds=6) + "/instances/0/logs?follow=1"
        stream = self.stream(path + "&offset=0")
        seen, text, lines = [], stream.next()[2]["text"], 1
        self.assertEqual(text, "serve: started\n")
        text = ""
        for more in range(24):          # rotated every seventh line, more than once between looks
            self.demo.advance(10 * (1 + 2 * more % 29))
            lines += 1 + 2 * more % 29
            while text.count("\n") < lines - 1:
                seen.append(stream.next())
                text += seen[-1][2].get("text", "")
        self.assertEqual(text,
                         "".join("serve: running, %d\n" % (number + 1) for number in range(text.count("\n"))))
        self.assertIn("rotated", [name for _, name, _ in seen])
        self.assertEqual([name for _, name, _ in seen if name == "gap"], [])
        at = [index for index, each in enumerate(seen) if each[1] == "log"][-3]
        again = self.stream(path, Last_Event_ID=seen[at][0])
        rest = [each[2]["text"] for each in seen[at + 1:] if each[1] == "log"]
        got = ""
        while len(got) < len("".join(rest)):
            _, name, data = again.next()
            got += data["text"] if name == "log" else ""
        self.assertEqual(got, "".join(rest))
        self.scheduler.restartShards(config("turns").key, {0})
        self.demo.advance(8)
        names: Any = []
        while names[-1:] != ["task"]:
            _, name, data = stream.next()
            names.append(name)
        self.assertEqual((data["task"], data["host"][:5]), (self.task("turns").id, "demo-"))
        self.assertEqual(stream.next()[2]["text"], "serve: started\n")
        self.scheduler.killTasks(config("turns").key, None, None)
        self.demo.advance(8)
        while name != "end":
            _, name, data = stream.next()
        self.assertIn("KILLED", data["reason"])
        self.assertFalse(stream.answer.fp.read())

    def test_a_rotation_between_two_reads_loses_no_line(self) -> None:
        self.watcher.rotate = (130, 5)
        path = self.job("between", ("p", "serve"), seconds=6) + "/instances/0/logs?follow=1"
        observer, armed = self.server.service.observer, threading.Event()
        real = observer.read

        def read(spot: Any, name: str, start: int, length: int, *more: Any) -> Any:
            if armed.is_set() and (start, length) == (0, aurora_rest._CHUNK):
                armed.clear()
                self.demo.advance(70)       # the file that is to be read is another one by now
            return real(spot, name, start, length, *more)
        with mock.patch.object(observer, "read", read):
            stream = self.stream(path + "&offset=0")
            text = stream.next()[2]["text"]
            armed.set()
            self.demo.advance(80)
            while armed.is_set() or text.count("\n") < 16:
                text += stream.next()[2].get("text", "")
        self.assertEqual(text, "serve: started\n" + "".join(
            "serve: running, %d\n" % (number + 1) for number in range(text.count("\n") - 1)))

    def test_following_tells_of_a_new_run(self) -> None:
        path = self.job("runs", ("p", "echo go; exit 1", {"daemon": True}), ("q", "serve"),
                        seconds=6) + "/instances/0/logs/p?follow=1"
        stream = self.stream(path)
        self.assertEqual([(name, data["run"]) for _, name, data in [stream.next()]], [("log", 1)])
        self.demo.advance(10)
        seen = [stream.next()[1:] for _ in range(4)]
        self.assertEqual([(name, data["run"]) for name, data in seen],
                         [("run", 2), ("log", 2), ("run", 3), ("log", 3)])
        self.assertEqual(seen[1][1]["text"], "go\n")
        errors = self.text(path + "&stream=stderr&run=0")
        self.assertIn("fatal", errors())
        self.assertRegex(errors(), "^--- run ")

    def test_many_instances_are_followed_at_once_and_grep_filters(self) -> None:
        path = self.job("many", ("p", "echo one; while true; do echo tick; echo tock; sleep 10; done"),
                        count=5, seconds=8)
        answer = self.ask("GET", path + "/logs/p?shards=1,3&tail=2")
        self.assertEqual(set(answer.body.decode().splitlines()),
                         {"%d: %s" % (n, text) for n in (1, 3) for text in ("tick", "tock")})
        line = self.text(path + "/logs/p?follow=1&tail=1&grep=tock")
        self.assertEqual({line() for _ in range(5)}, {"%d: tock\n" % n for n in range(5)})
        stream = self.stream(path + "/logs/p?follow=1&tail=1&shards=2,4")
        self.assertEqual({data["text"] for _, _, data in [stream.next() for _ in range(2)]}, {"tock\n"})
        self.demo.advance(10)
        self.assertEqual({line() for _ in range(5)}, {"%d: tock\n" % n for n in range(5)})
        seen = [stream.next() for _ in range(2)]
        self.assertEqual({data["instance"] for _, _, data in seen}, {2, 4})
        self.assertEqual({data["text"] for _, _, data in seen}, {"tick\ntock\n"})
        self.bad(404, "GET", JOB + "nonesuch/logs/p")
        self.bad(404, "GET", path + "/logs/p?shards=9")
        with mock.patch.object(aurora_rest, "_FOLLOWED", 4):
            self.bad(400, "GET", path + "/logs/p?follow=1", says="at most 4")
        self.assertIn("has begun no process none", self.ask("GET", path + "/logs/none").body.decode())

    def test_two_hundred_followers_cost_one_poll(self) -> None:
        path = self.job("popular2",
                        ("p",
                         "while true; do echo tick; sleep 10; done")) + "/instances/0/logs?follow=1&tail=1"
        streams = [self.stream(path) for _ in range(60)]
        for each in streams:
            self.assertEqual(each.next()[2]["text"], "tick\n")
        feed = next(p for k, p in self.server.service.watched._polls.items() if k[0] == "log"
                    and k[1].name == "popular2")
        wait_for(lambda: feed.waiters == 60)
        def asked() -> Any:
            return sum(self.task("popular2").id in each for each, _ in list(self.watcher.requests))
        before, started = asked(), time.monotonic()
        wait_for(lambda: asked() > before + 20)
        self.assertLess(asked() - before, 1.5 * (time.monotonic() - started) / 0.02 + 10)
        self.demo.advance(10)
        self.assertEqual({each.next()[2]["text"] for each in streams}, {"tick\n"})
        for each in streams:
            each.close()
        wait_for(lambda: feed.waiters == 0)

    def test_a_slow_follower_falls_behind_and_misses_nothing(self) -> None:
        path = self.job("slow", ("p", "while true; do echo 0123456789; sleep 1; done")) + "/instances/0/logs"
        key = aurora_rest.Key("devcluster", "www-data", "devel", "slow")
        with mock.patch.object(aurora_rest.Feed, "ROOM", 3000):
            stream = self.stream(path + "?follow=1&tail=1")
            first = stream.next()
            feed = next(p for k, p in self.server.service.watched._polls.items() if k[0] == "log"
                        and k[1] == key)
            text = first[2]["text"]
            follower = aurora_rest.Follower(feed, 1, None, lambda: None)
            self.addCleanup(follower.leave)
            wait_for(lambda: follower.take() or follower.live)
            for _ in range(8):
                before = feed.number
                self.demo.advance(5)
                wait_for(lambda before=before: feed.number > before)
            self.assertIsNone(feed.after(follower.number))
            got: Any = []
            while len(b"".join(entry.data for entry in got)) < 40 * 11:
                got += wait_for(follower.take)
            self.assertEqual(b"".join(entry.data for entry in got), b"0123456789\n" * 40)
            while len(text) < 41 * 11:
                text += stream.next()[2]["text"]
            self.assertEqual(text, "0123456789\n" * 41)

    def test_files_are_listed_whatever_their_names(self) -> None:
        path = self.job("files", ("p", "serve")) + "/instances/0/files"
        odd = ["a b<i>.txt", "x'>y<b>", "gr\xfcn", "..."]
        self.watcher.files = dict({"d/" + name: b"12" for name in odd},
                                  **{"d/new\nline": b"", "d/sub/f": b"", "top": b"1"})
        plain = self.good("GET", path + "?path=d")
        self.assertEqual(sorted(each["name"] for each in plain["entries"] if each["type"] == "file"),
                         sorted(odd))
        self.assertEqual([(each["type"], each["size"]) for each in plain["entries"]
                          if each["name"] in ("sub", "...")],
                         [("file", 2), ("directory", 4096)])
        self.assertEqual((plain["unreadable_lines"], plain["path"], plain["count"]), (4, "d", 5))
        self.assertEqual({each["name"] for each in self.good("GET", path + "?path=./")["entries"]},
                         {".logs", "d", "top"})
        self.assertEqual([each["name"] for each in self.good("GET", path + "?path=.logs//p/.")["entries"]],
                         ["0"])
        self.bad(404, "GET", path + "?path=none", says="no directory")
        self.bad(400, "GET", path + "?path=top", says="is a file")
        asked = [each for each, _ in list(self.watcher.requests) if self.task("files").id in each]
        for bad in ("..", "d/../x", "/etc/passwd", "a%00b", "a%5Cb", "a/..", "x" * 4097):
            self.bad(400, "GET", path + "?path=" + bad)
            self.bad(400, "GET", path + "/content?path=" + bad)
        self.bad(400, "GET", path + "/content")
        self.assertEqual([each for each, _ in list(self.watcher.requests) if self.task("files").id in each],
                         asked)

    def test_a_file_of_any_size_is_streamed_in_ranges(self) -> None:
        path = self.job("content", ("p", "serve")) + "/instances/0/files/content?path="
        data = bytes(range(256)) * 10000
        self.watcher.files = {"a b": data, "empty": b"", "x/ü.bin": b"u", "outside": None,
                              "secret": False}
        answer = self.ask("GET", path + "a%20b")
        self.assertEqual((answer.status, answer.body == data, answer.headers["content-length"]),
                         (200, True, str(len(data))))
        self.assertEqual([answer.headers[name]
                          for name in ("content-type", "content-disposition", "x-content-type-options")],
                         ["application/octet-stream", "attachment; filename*=UTF-8''a%20b", "nosniff"])
        for asked, status, first, end in (("bytes=0-9", 206, 0, 10),
                                          ("bytes=2559990-", 206, 2559990, 2560000),
                                          ("bytes=-5", 206, 2559995,
                                          2560000), ("bytes=5-99999999", 206, 5, 2560000),
                                          ("bytes=9-5", 200, 0, 2560000),
                                          ("bytes=0-1,3-4", 200, 0, 2560000), ("lines=1-2", 200, 0, 2560000)):
            answer = self.ask("GET", path + "a%20b", Range=asked)
            self.assertEqual((answer.status, answer.body == data[first:end]), (status, True), asked)
            self.assertEqual(answer.headers.get("content-range"),
                             None if status == 200 else "bytes %d-%d/2560000" % (first, end - 1))
        refused = self.ask("GET", path + "a%20b", Range="bytes=2560000-")
        self.assertEqual((refused.status, refused.headers["content-range"], refused.json["code"]),
                         (416, "bytes */2560000", "RANGE_NOT_SATISFIABLE"))
        head = self.ask("HEAD", path + "a%20b", Range="bytes=0-9")
        self.assertEqual((head.status, head.body, head.headers["content-length"]), (200, b"", str(len(data))))
        self.assertEqual(self.ask("GET", path + "empty").body, b"")
        self.bad(404, "GET", path + "none")
        self.bad(404, "GET", path + "x")
        self.bad(404, "GET", path + "outside")
        self.bad(404, "GET", path + ".")
        self.bad(403, "GET", path + "secret", code="FILE_NOT_READABLE")
        self.bad(502, "GET", path + "x/%C3%BC.bin", code="NAME_NOT_ASCII", says="--agent-port")

    def test_a_slow_caller_slows_the_source_and_a_file_that_shrinks_is_cut(self) -> None:
        path = self.job("large", ("p", "serve")) + "/instances/0/files/content?path=big"
        self.watcher.files = {"big": BigFile(64 << 20)}
        request = ("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.sendall(request)
            self.assertTrue(sock.recv(100))
            known = -1
            while known != len(self.watcher.requests):      # it stops asking
                known = len(self.watcher.requests)
                time.sleep(0.05)
            self.assertLess(sum("big" in each for each, _ in self.watcher.requests), 20)
            self.assertEqual(self.reader.slots.inside, 0)   # and holds nothing
            self.watcher.files = {"big": b"short"}
            size = 0
            while True:
                part = sock.recv(1 << 20)
                if not part:
                    break
                size += len(part)
        self.assertLess(size, 64 << 20)
        wait_for(lambda: any("was cut at byte" in line for line in self.lines))

    def test_what_failed_is_told_where_people_look(self) -> None:
        path = self.job("broken", ("p", "echo fine; sleep 6; false"), service=False, seconds=5)
        self.assertNotIn("failure", self.good("GET", path))
        waiting = []
        thread = threading.Thread(
            target=lambda: waiting.append(self.ask("PUT", JOB + "broken2?wait=20", source(
            "broken2", "echo fine; exit 3", kind="Job"))))
        thread.start()
        wait_for(lambda: ("www-data", "devel", "broken2") in self.demo._jobs)
        self.demo.advance(20)
        thread.join()
        failure = waiting[0].json["last_words"]
        self.assertEqual((waiting[0].status, failure["process"], failure["stderr"]), (409, "p", [
            "fatal: exit 3: the command failed, status 3"]))
        self.assertEqual(self.ask("GET", failure["logs"]).body,
                         b"fatal: exit 3: the command failed, status 3\n")
        failure = self.good("GET", path)["last_words"]
        self.assertEqual((failure["process"], failure["instance"], len(failure["stderr"])), ("p", 0, 1))
        self.assertNotIn("failure", self.good("GET", path + "?logs=0"))
        self.assertEqual(self.good("GET", path)["last_words"]["task"],
                         failure["task"])        # no answer is remembered
        self.good("GET", failure["processes"])
        self.watcher.slow = 5.0
        started = time.monotonic()
        self.assertIn("errors", self.good("GET", path)["last_words"])
        self.assertLess(time.monotonic() - started, 3.0)
        self.watcher.slow = 0.0
        wait_for(lambda: not self.reader.slots.inside)
        task = self.task("broken")
        self.watcher._sandbox(task.id).files[".logs/p/0/stderr"] = bytearray(b"x" * 100 + b"\n") * 100
        failure = self.good("GET", path)["last_words"]
        self.assertEqual(len(failure["stderr"]), 20)

    def test_a_log_goes_on_at_another_host_where_the_first_does_not_answer_any_more(self) -> None:
        self.job("moved", ("p", "echo hi; sleep 9999"))
        key, old, ask_ = config("moved").key, self.task("moved").id, self.reader.ask

        def deaf(spot: Any, *more: Any, **named: Any) -> Any:
            if spot.id == old:
                raise aurora_rest.ObserverUnreachable("the host is on fire")
            return ask_(spot, *more, **named)
        told = aurora_rest.follow_log(self.scheduler, "devcluster/www-data/devel/moved", 0, "p",
                                      observer=self.reader, interval=0.01)
        self.assertEqual(next(told).data, b"hi\n")
        with mock.patch.object(self.reader, "ask", deaf):
            for _ in range(12):     # it may come back
                self.assertEqual(next(told).name, "unreachable")
            self.scheduler.restartShards(key, {0})
            self.demo.advance(30)
            entries = list(itertools.takewhile(lambda each: each.name != "log", told))
            after = [each for each in entries if each.name != "unreachable"]
            self.assertEqual([each.name for each in after], ["gap", "task"])
            self.assertIn("did not answer before the task ended", after[0].plain["reason"])
            self.assertEqual(after[0].plain["task"], old)
            self.assertEqual(getattr(after[1].after, "task", None), self.task("moved").id)

    def test_bad_weather_has_an_answer_that_says_what_to_do(self) -> None:
        path = self.job("weather", ("p", "echo hi; sleep 9999"),
                        ("c", "echo console; sleep 9999", {"logger": {"destination": "console"}}),
                        ("n", "sleep 9999", {"logger": {"destination": "none"}}), seconds=10) + "/instances/0"
        log, task = path + "/logs/p", self.task("weather")
        self.bad(404, "GET", path + "/logs/c", code="LOG_ELSEWHERE", says="--agent-port")
        self.bad(404, "GET", path + "/logs/n", code="LOG_ELSEWHERE", says="none")
        self.watcher.garbage = b"\x00\xff<html>"
        for each in ("/processes", "/logs/p", "/files", "/files/content?path=x"):
            self.bad(502, "GET", path + each, code="OBSERVER_BAD_ANSWER")
        self.watcher.garbage = b'{"%s": 7}' % task.id.encode()
        self.bad(502, "GET", log, code="OBSERVER_BAD_ANSWER")
        self.watcher.garbage = json.dumps({task.id: {"p": {"process_run": "x", "start_time": {}}}}).encode()
        self.assertEqual(self.good("GET", path + "/processes")["processes"][0]["started"], None)
        self.watcher.garbage, self.watcher.slow, self.reader.timeout = None, 0.5, 0.1
        self.bad(504, "GET", log, code="OBSERVER_TIMEOUT")
        self.watcher.slow, self.reader.timeout = 0.0, 10.0
        stream = self.stream(log + "?follow=1")
        self.assertEqual(stream.next()[2]["text"], "hi\n")
        self.watcher.stop()
        self.bad(502, "GET", log, code="OBSERVER_UNREACHABLE", says="demo-0.:1338")
        _, name, data = stream.next()
        self.assertEqual((name, data["code"][:9]), ("unreachable", "OBSERVER_"))
        self.watcher.start()
        self.scheduler.restartShards(config("weather").key, {0})
        self.demo.advance(2)
        self.demo.observer.delay = 1000.0
        self.assertEqual(self.ask("GET", log).headers["retry-after"], "5")
        self.bad(404, "GET", log, code="TASK_TOO_YOUNG")
        self.demo.observer.delay = 5.0
        self.demo.advance(10)
        self.assertEqual(self.ask("GET", log).body, b"hi\n")
        self.assertEqual(stream.next()[1], "task")
        self.watcher.purge = 60.0
        self.demo.advance(100)
        for each in ("/processes", "/logs/p", "/files", "/files/content?path=x"):
            self.bad(410, "GET", path + each + ("&" if "?" in each else "?") + "task=" + task.id,
                     code="SANDBOX_GONE")
        self.task("weather").config = self.task("weather").config.replace(
            executorConfig=api.ExecutorConfig(name="Own", data="{}"))
        self.bad(404, "GET", path + "/logs", code="LOG_ELSEWHERE", says="another executor")
        self.reader.port = 0
        self.bad(404, "GET", path + "/logs", says="--observer-port")

    def test_two_connections_a_host_and_so_many_in_all(self) -> None:
        self.job("busy", ("p", "echo hi; sleep 9999"))
        task = self.task("busy")
        where = "%s:1338" % task.host.name
        reader = aurora_rest.Observer(total=3, timeout=0.2)
        reader.places = self.reader.places
        spot = aurora_rest.Spot("devcluster", 0, task.id, task.host.name, "RUNNING", False, 0, False, True)
        reader.slots.enter(1, where)
        self.assertEqual(list(reader.processes(spot)), ["p"])
        for taken in ((where,), ("another", "more")):
            for each in taken:
                reader.slots.enter(1, each)
            with self.assertRaises(aurora_rest.Overloaded) as caught:
                reader.processes(spot)
            self.assertEqual((caught.exception.http, caught.exception.retry_after), (503, 1))
            reader.slots.leave(where)

    def test_the_mesos_agent_is_the_second_source(self) -> None:
        self.reader.agent_port = 5051
        path = self.job("agent", ("p", "echo hi; sleep 9999"),
                        ("c", "echo console; sleep 9999", {"logger": {"destination": "console"}}))
        path += "/instances/0"
        answer = self.ask("GET", path + "/logs/c")
        self.assertEqual((answer.headers["x-log-source"], answer.body),
                         ("agent", b"executor: starting task\nconsole\n"))
        self.assertEqual(self.ask("GET", path + "/logs?source=agent&tail=1").body, b"console\n")
        self.assertEqual(self.ask("GET", path + "/logs/p?source=agent").body, b"hi\n")
        self.assertEqual(self.good("GET", path + "/files?source=agent")["entries"][0]["modified"],
                         1795000000000)
        data = bytes(range(256)) * 600
        self.watcher.files = {"any": data, "gr\xfcn": b"u"}
        self.assertEqual(self.ask("GET", path + "/files/content?source=agent&path=sandbox/any").body, data)
        self.assertEqual(self.ask("GET", path + "/files/content?path=gr%C3%BCn").body, b"u")
        line = self.text(path + "/logs/c?follow=1&tail=1")
        self.assertEqual(line(), "console\n")
        self.bad(404, "GET", path + "/files/content?source=agent&path=none")
        self.reader._roots.clear()
        self.watcher.agent_authorization = self.reader.agent_authorization = "Basic eDp5"
        self.assertEqual(self.ask("GET", path + "/logs?source=agent&tail=1").status, 200)
        self.reader._roots.clear()
        self.reader.agent_authorization = None
        self.bad(502, "GET", path + "/logs?source=agent", says="--agent-auth FILE .* --agent-framework ID")
        self.watcher.agent_authorization, self.reader.framework = None, "demo"
        self.assertEqual(self.ask("GET", path + "/logs?source=agent&tail=1").body, b"console\n")
        self.task("agent").config = self.task("agent").config.replace(
            executorConfig=api.ExecutorConfig(name="Own", data="{}"))
        self.assertIn(b"executor", self.ask("GET", path + "/logs").body)

    def test_nothing_of_the_caller_reaches_the_observer(self) -> None:
        path = self.job("safe", ("p", "echo hi; sleep 9999")) + "/instances/0"
        self.watcher.requests.clear()
        for each in ("/processes?runs=1", "/logs", "/files", "/files/content?path=README.txt",
                     "/logs?follow=1&tail=0"):
            Events(self.server, path + each, Authorization="Bearer secret", Cookie="a=b",
                   X_Secret="c").close()
        for asked, headers in list(self.watcher.requests):
            self.assertLessEqual(set(headers), {"host", "connection", "user-agent", "range"})
            self.assertEqual(headers["connection"], "close")
            self.assertFalse(asked.startswith(("/logdata", "/filedata")), asked)
        spot = aurora_rest.Spot("c", 0, "t", "127.0.0.1", "RUNNING", False, 0, False, True)
        with mock.patch.dict(os.environ,
                             {"http_proxy": "http://127.0.0.1:9",
                              "HTTP_PROXY": "http://127.0.0.1:9"}), FakeScheduler(
                None) as other:
            other.script = lambda sock, body: sock.sendall(http_answer(302, b"",
                                                                       "Location: http://127.0.0.1:1/"))
            with mock.patch.object(FakeScheduler, "_serve", lambda fake,
                                   sock: (sock.recv(9999), fake.script(sock, b""), sock.close())):
                reader = aurora_rest.Observer(int(other.url.rpartition(":")[2]))
                with self.assertRaises(aurora_rest.ObserverBadAnswer):
                    reader.processes(spot)
        reader = aurora_rest.Observer(1, networks=["10.0.0.0/8", "fd00::/8"])
        with self.assertRaises(aurora_rest.Forbidden):
            reader.processes(spot)
        self.assertEqual(reader._address("c", "10.1.2.3", 1), ("10.1.2.3", 1))
        for host in ("a b", "a\r\nb", "a/b", "", "a@b", "ü"):
            with self.assertRaises(aurora_rest.ObserverBadAnswer):
                reader._address("c", host, 1)

    def test_logs_take_a_level_of_their_own_and_leave_an_audit_line(self) -> None:
        self.job("level", ("p", "echo fine; sleep 2; false"), service=False)
        secrets, lines = {}, ["# levels"]
        for text in ("reader:read:*", "viewer:logs:www-*", "other:logs:batch", "writer:write:www-data"):
            token, line = aurora_rest.new_token(text)
            secrets[text.split(":")[0]] = token
            lines.append(line)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "tokens"), "w", encoding="utf-8") as stream:
                stream.write("\n".join(lines))
            access = aurora_rest.Access(aurora_rest.Tokens(os.path.join(folder, "tokens")), anonymous=False)
        told: Any = []
        with mock.patch.object(self.server.service, "access", access), mock.patch.object(self.server.service,
                                                                                         "log", told.append):
            for what in ("/instances/0/logs", "/instances/0/files",
                         "/instances/0/files/content?path=README.txt",
                         "/instances/0/processes", "/logs/p?follow=1&tail=1"):
                found = [self.ask("GET", JOB + "level" + what, Authorization="Bearer " + secrets[who]).status
                         for who in ("reader", "viewer", "other", "writer")]
                self.assertEqual(found, [403, 200, 403, 200], what)
            self.assertEqual(self.ask("DELETE", JOB + "level",
                                      Authorization="Bearer " + secrets["viewer"]).status, 403)
            shown = ["last_words" in self.ask("GET", JOB + "level", Authorization="Bearer " +
                                              secrets[who]).json
                     for who in ("reader", "viewer", "other", "writer")]
            self.assertEqual(shown, [False, True, False, True])
            self.assertEqual(self.ask("GET", JOB + "level/instances/0/logs").status, 401)
        audits = [line for line in told if line.startswith("audit")]
        served = [line for line in audits if line.endswith("status=200 outcome=done")]
        self.assertEqual((len(audits), len(served)), (22, 10))      # those refused, too
        self.assertRegex(served[0],
                         "user=viewer .*did=get_only_log method=GET path=/alpha/job/devcluster/www-data/"
                         "devel/level/instances/0/logs .*outcome=done")
        self.assertTrue(any("files/content " in line and "README.txt" in line for line in audits))

    def test_scripts_read_follow_and_list(self) -> None:
        path = self.job("script", ("p", "echo one; sleep 20; echo two; sleep 5"),
                        service=False)[len("/alpha/job/"):]
        with mock.patch.object(time, "time", self.demo.clock.now):
            piece = aurora_rest.read_log(self.scheduler, path, 0, "p", observer=self.reader)
            self.assertEqual((piece.data, piece.next, piece.size), (b"one\n", 4, 4))
            self.assertEqual(aurora_rest.read_log(self.scheduler, path, 0, observer=self.reader, offset=1,
                                                  length=2).data, b"ne")
            entries = []
            for entry in aurora_rest.follow_log(self.scheduler, path, 0, observer=self.reader, interval=0.01):
                entries.append(entry.data)
                self.demo.advance(20)
            self.assertEqual(entries, [b"one\n", b"two\n"])
            names = {each["name"]
                     for each in aurora_rest.list_files(self.scheduler, path, 0, observer=self.reader)}
            self.assertIn(".logs", names)
            data = b"".join(aurora_rest.open_file(self.scheduler, path, 0, ".logs/p/0/stdout",
                                                  observer=self.reader))
            self.assertEqual(data, b"one\ntwo\n")
            with self.assertRaises(aurora_rest.NotFound):
                aurora_rest.read_log(self.scheduler, path, 5, observer=self.reader)

    def test_options_make_the_observer(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "auth")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write("me:secret\n")

            def made(*arguments: Any) -> Any:
                return aurora_rest.make_observer(aurora_rest.parse_command_line(arguments, {}))
            reader = made("--observer-port", "1339", "--observer-network", "10.0.0.0/8", "--observer-network",
                          "192.168.0.0/16",
                          "--agent-port", "5051", "--agent-auth", path)
            self.assertEqual((reader.port, reader.agent_port, len(reader.networks),
                              reader.agent_authorization),
                             (1339, 5051, 2, "Basic bWU6c2VjcmV0"))
            self.assertEqual(made().port, 1338)
            for bad in (("--observer-network", "10.0.0.1/8"), ("--agent-auth", folder + "/none"),
                        ("--observer-ca", folder + "/none"),
                        ("--agent-framework", "a/b"), ("--observer-port", "65536"),
                        ("--agent-port", "65536")):
                with self.assertRaises(aurora_rest.UsageError):
                    made(*bad)


class ParserTest(unittest.TestCase):
    """What is a request, by RFC 9110 and 9112, and what is not."""

    def test_of_a_body_in_chunks_what_has_arrived_is_what_is_held(self) -> None:
        limits = {name: limit.default for name, limit in aurora_rest.LIMITS.items()}
        incoming = aurora_rest.Incoming(limits, aurora_rest.parse_head)
        incoming.buffer += b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\nabc"
        self.assertIsNone((incoming.next() or (0, 1))[1])
        self.assertIsNone(incoming.next())
        self.assertEqual(incoming.held, 3)

    def test_a_target_that_names_no_host_is_refused(self) -> None:
        for target in (b"http:///path", b"http://", b"http://?a"):
            head = aurora_rest.parse_head(b"GET %b HTTP/1.1\r\nHost: x" % target)
            with self.assertRaises(aurora_rest.BadRequest):
                aurora_rest.Request(head, b"", "127.0.0.1", "1")

    def test_a_field_that_is_given_twice_and_equal_is_harmless(self) -> None:
        def parse(*lines: Any) -> Any:
            return aurora_rest.parse_head(b"\r\n".join((b"POST /api HTTP/1.1", b"Host: x") + lines)).headers
        thrift = b"Content-Type: application/x-thrift"
        self.assertEqual(parse(thrift, thrift)["content-type"], "application/x-thrift")
        self.assertEqual(parse(b"Accept: a", b"Accept: a")["accept"], "a, a")
        for lines in ((thrift, b"Content-Type: text/plain"), (b"Content-Length: 1",) * 2, (b"Host: x",),
                      (b"Authorization: a",
                      b"Authorization: b"), (b"Transfer-Encoding: chunked",) * 2,
                      (b"Content-Length: 1", b"Transfer-Encoding: chunked")):
            with self.assertRaises(aurora_rest.BadRequest):
                parse(*lines)

    def test_numbers_are_bounded_whatever_the_python(self) -> None:
        self.assertEqual(aurora_rest.load_json("9" * 400), int("9" * 400))
        for text in ("9" * 401, '{"a": [-%s]}' % ("1" * 500), "NaN", "[" * 100000):
            with self.assertRaises(ValueError):
                aurora_rest.load_json(text)

    def test_a_files_name_does_not_reach_outside(self) -> None:
        for name in ("../b", "a/../../b", "/etc/b", "..", "a\\..\\..\\b"):
            body = (b'--X\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n'
                    b'1\r\n--X--\r\n' % name.encode())
            with self.assertRaises(aurora_rest.BadRequest, msg=name):
                aurora_rest.parse_multipart(body, "X")

    def test_a_wait_that_was_to_end_before_anybody_said_how_to_send_ends(self) -> None:
        sent: Any = []
        later = aurora_rest.Later(aurora_rest.Source(), 9.0, lambda: None, lambda: aurora_rest.Response(202))
        later.expire()
        later.start(sent.append)
        self.assertEqual([each.status for each in sent], [202])

    def test_a_budget_is_for_all_and_a_quarter_of_it_for_one(self) -> None:
        budget = aurora_rest.Budget(100, 10)
        self.assertEqual([budget.add("a", 25), budget.add("a", 1), budget.add("a", -1),
                          budget.add("b", 20, 6)],
                         ["", "caller", "", "caller"])
        self.assertEqual([budget.add(each, 25) for each in "cd"], ["", ""])
        self.assertEqual(budget.add("e", 6), "all")
        for each, held in (("a", 25), ("b", 20), ("c", 25), ("d", 25), ("e", 6)):
            budget.add(each, -held)
        self.assertEqual((budget.all, dict(budget.by_caller)), (0, {}))

    def test_codings_are_weighed(self) -> None:
        for header, zipped in (("gzip", True), ("*;q=0, gzip", True), ("gzip;q=0, *", False), ("*", True),
                               ("br", False), ("", False),
                               ("GZIP;q=0.5", True), ("*;q=0", False)):
            self.assertEqual(aurora_rest._accepts_gzip(header), zipped, header)

    def test_parameters_of_header_fields_are_read_in_one_pass(self) -> None:
        for text, parameters in (("a; b=c", {"b": "c"}), ('a; B="c; d=e" ; f=g', {"b": "c; d=e", "f": "g"}),
                                 ('a;b="c\\"d"', {"b": 'c"d'}), ('a;b="open', {"b": "open"}),
                                 ("a;;=;b", {"": ""}),
                                 ('a; b="C:\\d"', {"b": "C:\\d"}), ("a; b = c ", {"b": "c"})):
            self.assertEqual(aurora_rest.parse_content_type(text)[1], parameters, text)
        # Each of these took a regular expression minutes, by the square of its length.
        for text in ("x;" + "a" * 3000000, "x;" + "a;" * 1000000, 'x;a="' + "b" * 3000000, "x;" +
                     "=" * 3000000, "x;" + '"' * 1000000):
            self.assertEqual(aurora_rest.parse_content_type(text)[0], "x")

    def test_a_multipart_body_is_read_in_one_pass(self) -> None:
        def body(*heads: Any) -> Any:
            return b"".join(b"--B\r\n%s\r\n\r\ncontent\r\n" % head for head in heads) + b"--B--\r\n"
        named = b'Content-Disposition: form-data; name="f"; filename="%s"'
        self.assertEqual(aurora_rest.parse_multipart(body(named % b"a/b.aurora",
                b"X: y\r\ncontent-disposition:form-data;name=c"), "B"),
                         {"a/b.aurora": b"content", "c": b"content"})
        long = b"content-disposition:" + b" filename" * 400000
        for heads in ((long,), (b"x" * 4000000,), (b"content-disposition: form-data",), (named % b"../x",),
                      (named % b"a",) * 2,
                      (named % b"a",) * 301):
            with self.assertRaises(aurora_rest.BadRequest):
                aurora_rest.parse_multipart(body(*heads), "B")

    def test_a_gzip_body_is_all_of_its_members(self) -> None:
        import gzip
        one, two = gzip.compress(b"one "), gzip.compress(b"two")
        self.assertEqual(aurora_rest.gunzip(one + two, 100), b"one two")
        for data in (one + b"garbage", one[:-1], b"", b"x", one + two[:5]):
            with self.assertRaises(aurora_rest.BadRequest):
                aurora_rest.gunzip(data, 100)
        for data in (gzip.compress(b"\0" * 1000), gzip.compress(b"\0" * 60) * 2):
            with self.assertRaises(aurora_rest.BodyTooLarge):
                aurora_rest.gunzip(data, 100)

    def test_heads_that_two_readers_could_read_differently_are_refused(self) -> None:
        good = b"GET / HTTP/1.1\r\nHost: x"
        self.assertEqual(aurora_rest.parse_head(good).headers, {"host": "x"})
        for head, status in (
                (b"", 400), (b"GET /", 400), (b"GET  / HTTP/1.1\r\nHost: x", 400), (b"GET / HTTP/1.1", 400),
                (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y", 400), (b"GET / HTTP/1.1\r\nHost: x y", 400),
                (b"GET / HTTP/2.0\r\nHost: x", 505), (b"GET / http/1.1\r\nHost: x", 400),
                (b"G@T / HTTP/1.1\r\nHost: x", 400),
                (b"GET /\x00 HTTP/1.1\r\nHost: x", 400), (b"GET /\xff HTTP/1.1\r\nHost: x", 400),
                (b"GET /#a HTTP/1.1\r\nHost: x", 400),
                (good + b"\r\nContent-Length: 1\r\nContent-Length: 1", 400),
                (good + b"\r\nContent-Length: 1, 1", 400),
                (good + b"\r\nContent-Length: +1", 400), (good + b"\r\nContent-Length: -1", 400),
                (good + b"\r\nContent-Length: 0x1", 400),
                (good + b"\r\nContent-Length: 9999999999999999999", 400),
                (good + b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
                (good + b"\r\nTransfer-Encoding: gzip, chunked", 501),
                (good + b"\r\nTransfer-Encoding: xchunked", 501),
                (good + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
                (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked", 400), (good + b"\r\nA : b", 400),
                (good + b"\r\n A: b", 400),
                (good + b"\r\nA: b\r\n\tfolded", 400), (good + b"\r\nnocolon", 400), (good + b"\r\n: b", 400),
                (good + b"\r\nA: b\x00c", 400), (good + b"\nA: b", 400), (good + b"\r\nA: b\rX: y", 400),
                (good + b"\r\nA: b" * 101, 431),
                (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x", 414)):
            with self.subTest(head=head[:80]):
                with self.assertRaises(aurora_rest.AuroraError) as caught:
                    aurora_rest.parse_head(head)
                self.assertEqual(caught.exception.http, status)

    def test_keep_alive_follows_version_and_connection(self) -> None:
        for line, connection, kept in ((b"1.1", b"", True), (b"1.1", b"\r\nConnection: foo, Close", False),
                                       (b"1.0", b"", False),
                                       (b"1.0", b"\r\nConnection: keep-alive", True)):
            head = aurora_rest.parse_head(b"GET / HTTP/" + line + b"\r\nHost: x" + connection)
            self.assertEqual(head.keep_alive, kept)

    def test_a_chunked_body_is_decoded_however_it_is_cut(self) -> None:
        data = b"4;a=b\r\nWiki\r\n5 ;x\r\npedia\r\n0\r\nTrailer: x\r\n\r\nNEXT"
        for size in (1, 2, 3, 7, len(data)):
            body, buffer, done = aurora_rest.ChunkedBody(100), bytearray(), False
            for i in range(0, len(data), size):
                buffer += data[i:i + size]
                done = done or body.feed(buffer)
            self.assertTrue(done)
            self.assertEqual((b"".join(body.parts), bytes(buffer)), (b"Wikipedia", b"NEXT"))

    def test_chunks_that_are_none_are_refused(self) -> None:
        for data, error in ((b"x\r\n", 400), (b"-1\r\n", 400), (b"+1\r\n", 400), (b"0x1\r\n", 400),
                            (b"1\r\nabcd", 400), (b"1\nab", 400),
                            (b"\r\n", 400), (b"1;\x00\r\n", 400), (b"f" * 16 + b"\r\n", 400),
                            (b"65\r\n", 413), (b"1" * 2000, 400),
                            (b"1\r\na\r\n" * 2000, 400),
                            (b"0\r\n" + b"A: b\r\n" * 3000, 400), (b" 1\r\n", 400)):
            with self.subTest(data=data[:40]), self.assertRaises(aurora_rest.AuroraError) as caught:
                aurora_rest.ChunkedBody(100 if error == 413 else 10000).feed(bytearray(data))
            self.assertEqual(caught.exception.http, error)


ROOM_APP = """
class Echo(App):
    def __init__(self):
        self.told, self.source, self.ends = [], Source(), []
        self.threads, self.far, self.patience, self.go_on = {}, {}, 10, threading.Event()

    def prepare(self, request):
        request.share = request.path if request.path in ("/slow", "/light/shared") else None

    def admit(self, request):
        if request.path == "/forbidden":
            raise Forbidden("not you")

    def is_quick(self, request):
        return request.path == "/quick"

    def is_light(self, request):
        return request.path.startswith("/light/")

    def handle(self, request):
        self.threads[request.path] = threading.get_ident()
        if request.path.startswith("/light/"):
            sock, poll = self.far[request.path], select.poll()
            poll.register(sock, select.POLLIN)
            ready = wait_ready(sock, poll, EVENT_READ, time.monotonic() + self.patience)
            data = sock.recv(10) if ready else b"late"
            if data == b"long":
                let_go()
                self.go_on.wait(10)
            return Response(200, {"data": data.decode()})
        if request.path == "/later":
            return Later(self.source, 0.2, lambda: None, lambda: Response(200, {"late": True}))
        if request.path == "/held":
            self.go_on.wait(10)
            return Later(self.source, 600, lambda: None, lambda: Response(200, {"late": True}))
        if request.path == "/large":
            return Response(200, body=LARGE)
        if request.path in ("/file", "/tail"):
            head = Response(200, body=b"", headers=[("Content-Length", str(len(LARGE)))])
            return Download(head, self.source, lambda at: (LARGE[at:at + 65536] or None, at + 65536), 0,
                            finite=request.path == "/file")
        if request.path == "/stream":
            hello = event_bytes("1", "hello", {})
            return Stream(self.source, lambda mark: (b"", mark) if mark else (hello, 1))
        if request.path == "/defect":
            raise KeyError("a defect")
        return Response(200, {"path": request.path, "size": len(request.body), "query": request.query})

    def finished(self, request, peer, response, size):
        self.told.append(response.status)

    def ended(self, request, size, left):
        self.ends.append((request.path, left))


LARGE = bytes(range(256)) * 65536
"""


class RoomTest(unittest.TestCase):
    """The HTTP room by itself, cut out of the file: it needs nothing of Aurora."""
    room: Any

    @classmethod
    def setUpClass(cls) -> None:
        with open(os.path.join(HERE, "aurora_rest.py"), encoding="utf-8") as stream:
            text = stream.read()
        imports = text[text.index("from __future__"):text.index("\ntry:\n    from thrift")]
        room = text[text.index("# 1. HTTP\n"):text.index("# 2. Thrift API\n")]
        assert not re.search("aurora|thrift|scheduler|cluster", room.replace("knows nothing of Aurora", ""),
                             re.IGNORECASE)
        cls.room = type(sys)("http_room")
        sys.modules["http_room"] = cls.room
        exec(compile(imports + room + ROOM_APP, "http_room.py", "exec"), cls.room.__dict__)
        vars(cls.room)["AuroraError"] = cls.room.Failure     # as the tests of the whole file call it

    @classmethod
    def tearDownClass(cls) -> None:
        del sys.modules["http_room"]

    def serve(self, sock: Any = None, tls: Any = None, **limits: Any) -> Any:
        server = self.room.HttpServer(("127.0.0.1", 0), self.room.Echo(),
                                      dict({"header_time": 0.5, "idle_time": 0.5}, **limits), tls, sock)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for each in (server.server_close, partial(thread.join, 10), server.shutdown):
            self.addCleanup(each)
        return server

    def test_it_passes_the_tests_of_the_parser(self) -> None:
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(ParserTest)
        result = unittest.TestResult()
        with mock.patch.object(sys.modules[__name__], "aurora_rest", self.room):
            suite.run(result)
        self.assertEqual((result.failures, result.errors), ([], []))
        self.assertGreater(result.testsRun, 6)

    def test_it_serves_all_sockets_that_it_is_given(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            door = socket.socket(socket.AF_UNIX)
            door.bind(os.path.join(folder, "door"))
            door.listen()
            server = self.serve(sock=[socket.create_server(("127.0.0.1", 0)), door])
            self.assertEqual(ask(server, "GET", "/quick").status, 200)
            for expected in (True, False):
                with socket.socket(socket.AF_UNIX) as caller, contextlib.suppress(ConnectionError):
                    caller.connect(door.getsockname() if expected else os.path.join(folder, "door"))
                    caller.sendall(b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = b"".join(iter(lambda: caller.recv(4096), b""))
                    self.assertEqual(answer.startswith(b"HTTP/1.1 200"), expected)
                server.drain(1.0)

    def test_it_serves_requests_waits_and_streams(self) -> None:
        server = self.serve()
        self.assertEqual(ask(server, "PUT", "/a?b=%20c", b"12345").json,
                         {"path": "/a", "size": 5, "query": [["b", " c"]]})
        self.assertEqual(ask(server, "GET", "/quick").status, 200)
        self.assertEqual(ask(server, "GET", "/later").json, {"late": True})
        self.assertEqual(Events(server, "/stream").next(), ("1", "hello", {}))
        self.assertEqual((ask(server, "GET", "/defect").status, ask(server, "GET", "/a").status), (500, 200))
        self.assertEqual(server.app.told, [200, 200, 200, 200, 500, 200])

    def light(self, server: Any, name: str) -> Any:
        """(who asked for light work that has begun, the socket that it waits for)."""
        near, server.app.far[name] = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(server.app.far[name].close)
        caller = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.addCleanup(caller.close)
        caller.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % name.encode())
        wait_for(lambda: name in server.app.threads)
        return caller, near

    def said(self, caller: Any) -> Any:
        return json.loads(caller.recv(65536).partition(b"\r\n\r\n")[2])["data"]

    def test_the_thread_that_waits_with_light_work_reads_on(self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        threads = server.app.threads
        first, far = self.light(server, "/light/1")
        self.assertEqual(ask(server, "GET", "/quick").status, 200)
        second, other = self.light(server, "/light/2")
        self.assertEqual(ask(server, "GET", "/slow").status, 200)
        other.sendall(b"2")
        self.assertEqual(self.said(second), "2")        # it came later, and waits for nobody
        far.sendall(b"1")
        self.assertEqual(self.said(first), "1")
        self.assertEqual(threads["/light/1"], threads["/quick"])
        self.assertNotIn(threads["/light/1"], (threads["/light/2"], threads["/slow"]))
        third, far = self.light(server, "/light/3")     # it leads as before
        far.sendall(b"3")
        self.assertEqual((self.said(third), threads["/light/3"]), ("3", threads["/light/1"]))

    def test_light_work_that_turns_out_long_lets_another_thread_read(self) -> None:
        server = self.serve(threads=1, header_time=5, idle_time=30)
        self.addCleanup(server.app.go_on.set)
        caller, far = self.light(server, "/light/1")
        far.sendall(b"long")
        self.assertEqual(ask(server, "GET", "/quick").status, 200)
        self.assertNotEqual(server.app.threads["/quick"], server.app.threads["/light/1"])
        server.app.go_on.set()
        self.assertEqual(self.said(caller), "long")
        self.assertEqual(ask(server, "GET", "/slow").status, 200)

    def test_light_work_waits_no_longer_than_it_may_nor_than_the_server_serves(self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        server.app.patience = 0.2
        caller, _ = self.light(server, "/light/1")
        self.assertEqual(self.said(caller), "late")
        server.app.patience = 1000
        self.light(server, "/light/2")
        server.shutdown()
        self.assertTrue(server.workers.ended.is_set())
        self.assertEqual(server.failure, "")

    def test_light_work_that_is_held_meanwhile_runs_at_once(self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        first, far = self.light(server, "/light/shared")
        second = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.addCleanup(second.close)
        second.sendall(b"GET /light/shared HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_for(lambda: server._pending)
        server.loop.soon(server.loop._timers.clear)     # so that none wakes it
        self.assertEqual(ask(server, "GET", "/quick").status, 200)
        far.sendall(b"1")
        self.assertEqual(self.said(first), "1")
        far.sendall(b"2")
        self.assertEqual(self.said(second), "2")

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_over_tls_large_answers_arrive_whole_and_refusals_at_all(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(cert, key)
            context = ssl.create_default_context(cafile=cert)
            server = self.serve(tls=tls, header_time=5, idle_time=30, connections=1)

            def get(path: bytes, sock: Any) -> Any:
                with context.wrap_socket(sock, server_hostname="localhost") as caller:
                    caller.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % path)
                    return b"".join(iter(partial(caller.recv, 1 << 18), b""))
            for _ in range(3):
                sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                self.assertEqual(get(b"/large", sock).partition(b"\r\n\r\n")[2], self.room.LARGE)
                wait_for(lambda: not server.connections)
            first = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            self.addCleanup(first.close)
            second = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            wait_for(lambda: server.refusals["overloaded"])         # before it has shaken hands
            self.assertEqual(statuses(get(b"/quick", second)), [503])

    def test_no_more_connections_are_open_than_may_be(self) -> None:
        server = self.serve(header_time=5, idle_time=30, connections=4)
        callers = []
        for _ in range(20):
            caller = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            self.addCleanup(caller.close)
            caller.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
            callers.append(statuses(caller.recv(4096)))
        self.assertEqual(callers, [[200]] * 4 + [[503]] * 16)

    def test_a_download_comes_to_its_end_while_the_server_stops_and_where_the_caller_has_said_all(
            self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        callers = {}
        for path in (b"/file", b"/tail"):
            callers[path] = caller = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            self.addCleanup(caller.close)
            caller.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            self.assertTrue(caller.recv(4096))
        callers[b"/file"].shutdown(socket.SHUT_WR)
        drained = []
        draining = threading.Thread(target=lambda: drained.append(server.drain(10)))
        draining.start()
        wait_for(lambda: server.closed_to_new)
        sizes = {path: sum(map(len, iter(partial(caller.recv, 1 << 18), b"")))
                 for path, caller in callers.items()}
        draining.join()
        whole = len(self.room.LARGE)
        self.assertEqual((sizes[b"/file"] > whole - 4096, sizes[b"/tail"] < whole - 65536, drained),
                         (True, True, [True]))

    def test_who_leaves_before_his_wait_begins_is_told_of(self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        caller = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        caller.sendall(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_for(lambda: "/held" in server.app.threads)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.close()
        wait_for(lambda: not server.connections)
        server.app.go_on.set()
        wait_for(lambda: server.app.ends)
        self.assertEqual(server.app.ends, [("/held", True)])
        wait_for(lambda: all(timer[0] < time.monotonic() + 60 or timer[2] is None
                             for timer in list(server.loop._timers)))

    def test_it_reads_the_wire_however_it_is_cut(self) -> None:
        server = self.serve(header_time=5)
        data = (b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                b"GET /y HTTP/1.0\r\n\r\n")
        for cut in range(1, len(data)):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(data[:cut])
                sock.sendall(data[cut:])
                self.assertEqual(statuses(b"".join(iter(partial(sock.recv, 65536), b""))),
                                 [200, 200])

    def test_what_had_arrived_before_it_drains_is_answered(self) -> None:
        server = self.serve(header_time=5, idle_time=30)
        kept = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        request = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
        kept.sendall(request)
        self.assertEqual(statuses(kept.recv(65536)), [200])
        half = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        half.sendall(request[:20])
        wait_for(lambda: any(c.incoming.buffer for c in list(server.connections)))
        server.loop.soon(time.sleep, 0.3)       # the thread that reads is busy, while they arrive
        kept.sendall(request)
        fresh = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        fresh.sendall(request)
        drained, closed = [], []
        name = half.getsockname()       # of whose request more is still to come
        waiting = next(each for each in server.connections if each.socket.getpeername() == name)
        take = waiting.on_event

        def on_event(mask: int) -> None:
            closed.append(server.closed_to_new)
            take(mask)
        waiting.on_event = on_event
        draining = threading.Thread(target=lambda: drained.append(server.drain(5)))
        draining.start()
        wait_for(lambda: server.closed_to_new)
        self.assertEqual(closed[:1], [False])
        half.sendall(request[20:])
        for sock in (kept, fresh, half):
            self.assertEqual(statuses(b"".join(iter(partial(sock.recv, 65536), b""))), [200])
            sock.close()
        draining.join()
        self.assertEqual(drained, [True])

    def test_it_refuses_with_its_own_answers(self) -> None:
        server = self.serve(url=50, headers=300, body=10, bodies=20, header_count=5)
        for data, status in ((b"nonsense\r\n\r\n", 400),
                             (b"GET /" + b"x" * 99 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
                             (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 400 + b"\r\n\r\n", 431),
                             (b"GET / HTTP/2.0\r\n\r\n", 505),
                             (b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n", 413),
                             (b"GET / HT", 408),
                             (b"PUT /forbidden HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", 403),
                             (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", 417),
                             (b"GET / HTTP/1.1\r\n\r\n", 400)):
            self.assertEqual(statuses(raw(server, data)), [status], data[:60])
        for more in (b"", b"Content-Length: 3\r\n"):      # who asked for too much is known all the same
            answer = raw(server, b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: x\r\nX-Request-Id: mine\r\n" + more +
                         b"\r\n")
            self.assertEqual((statuses(answer), b"\r\nX-Request-Id: mine\r\n" in answer), ([417], True))
        self.assertEqual(statuses(raw(server, b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")), [200])
        wait_for(lambda: not server.connections and not server.bodies.all)


class WireTest(Serving):
    """Requests as bytes."""

    def test_requests_on_one_connection_are_answered_in_their_order(self) -> None:
        one = b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        listing = b"GET /alpha/jobs/devcluster/www-data HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        data = raw(self.server, one + listing + b"\r\n" + one + listing + last)
        self.assertEqual(statuses(data), [200] * 5)
        self.assertEqual(re.findall(rb'"(version|count)"', data),
                         [b"version", b"count", b"version", b"count", b"version"])

    def test_a_request_that_comes_byte_by_byte_is_answered(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = (b"POST %sx/inspect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
                     b"Connection: close\r\n\r\nx=1" % JOB.encode())
            for byte in asked:
                sock.sendall(bytes([byte]))
            self.assertTrue(sock.recv(65536).startswith(b"HTTP/1.1 400 "))

    def test_a_head_is_read_wherever_the_network_cuts_it(self) -> None:
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n\r\n"
        for first in range(1, len(head) - 1):
            for second in (first + 1, first + 2, first + 3):
                incoming: Any = aurora_rest.Incoming(LIMITS, aurora_rest.parse_head)
                for part in (head[:first], head[first:second]):
                    incoming.buffer += part
                    self.assertIsNone(incoming.next() if second < len(head) else None)
                incoming.buffer += head[second:]
                self.assertEqual(incoming.next()[0].target, "/health")
        for bad in (b"\nGET / HTTP/1.1", b"GET / HTTP/1.1\nHost: x", b"GET / HTTP/1.1\r\nA: b\n"):
            incoming = aurora_rest.Incoming(LIMITS, aurora_rest.parse_head)
            with self.assertRaises(aurora_rest.BadRequest):
                for byte in bad:
                    incoming.buffer += bytes([byte])
                    incoming.next()

    def test_header_fields_have_a_limit_of_their_own(self) -> None:
        for size, status in ((32000, 200), (33000, 431), (50000, 431)):
            data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: %s\r\n\r\n" % (
                b"x" * size)
            self.assertEqual(statuses(raw(self.server, data)), [status])

    def test_malformed_requests_get_their_status_and_the_connection_closes(self) -> None:
        for data, status in ((b"GARBAGE\r\n\r\n", 400), (b"GET / HTTP/1.1\nHost: x\n\n", 400),
                             (b"GET /alpha/version HTTP/1.1\r\n\r\n", 400),
                             (b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
                              413),
                             (b"PUT %sx HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
                              b"chunked\r\n\r\nzz\r\n" % JOB.encode(), 400),
                             (b"GET /" + b"x" * 50000, 414),
                             (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 50000, 431),
                             (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
                             (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400)):
            with self.subTest(data=data[:50]):
                answer = raw(self.server, data + b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertEqual(statuses(answer), [status])
                self.assertIn(b"Connection: close", answer)
        self.good("GET", "/alpha/version")

    def test_paths_are_decoded_and_checked_and_their_dots_never_resolved(self) -> None:
        for path, status in (("/alpha/jobs/devcluster/%77ww-data", 200), ("/alpha/vers%69on", 200),
                             ("/alpha%2Fversion", 404), ("/alpha/%2e%2E/alpha/version", 404),
                             ("/alpha/%%376ersion", 404), ("/alpha/jobs/devcluster/%2577", 400),
                             ("/alpha/jobs/devcluster/www%2Fdata", 400),
                             ("/alpha/jobs/devcluster/..", 400), ("/alpha/jobs/devcluster/%2e%2e", 400),
                             ("/alpha/jobs/devcluster/a%00b", 400),
                             ("/alpha/jobs/devcluster/a%0d%0ab", 400), ("/alpha/jobs/devcluster/%zz", 400),
                             ("/alpha/jobs/devcluster/%ff", 400),
                             ("/alpha/jobs/devcluster/" + "a" * 300, 400), ("/alpha/../alpha/version", 404),
                             ("/alpha/version/", 404),
                             ("//alpha/version", 404), ("/alpha/jobs/devcluster/a%20b", 400),
                             ("/alpha/version?%zz", 400),
                             ("/alpha/version?a=%ff", 400), ("http://localhost/alpha/version", 200),
                             ("gopher://x/", 400), ("*", 404)):
            with self.subTest(path=path):
                data = raw(self.server, ("GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" %
                                         path).encode())
                self.assertEqual(statuses(data), [status], data)
                self.assertNotIn(b"Traceback", data)

    def test_a_refusal_is_told_whatever_the_query_is(self) -> None:
        for data, status in ((b"GET /alpha/jobs/devcluster/www-data?pretty=%zz HTTP/1.1\r\n", 400),
                             (b"PUT /alpha/job/devcluster/a/b/c?pretty=%zz HTTP/1.1\r\nExpect: x\r\n", 417),
                             (b"PUT /alpha/job/devcluster/a/b/c?pretty=%zz HTTP/1.1\r\nContent-Length: "
                              b"99999999999\r\n", 413)):
            data += b"Host: localhost\r\nConnection: close\r\n\r\n"
            self.assertEqual(statuses(raw(self.server, data)), [status], data)

    def test_http_1_0_closes_unless_asked_to_stay(self) -> None:
        self.assertIn(b"Connection: close", raw(self.server, b"GET /alpha/version HTTP/1.0\r\n\r\n"))
        data = raw(self.server,
                b"GET /alpha/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /alpha/version "
                b"HTTP/1.0\r\n\r\n")
        self.assertEqual(statuses(data), [200, 200])

    def test_head_and_options_work_where_get_does(self) -> None:
        get, head = self.ask("GET", "/alpha/version"), self.ask("HEAD", "/alpha/version")
        self.assertEqual((head.status, head.body, head.headers["content-length"]),
                         (200, b"", get.headers["content-length"]))
        options = self.ask("OPTIONS", JOB + "x")
        self.assertEqual((options.status, options.headers["allow"]), (204, "DELETE, GET, HEAD, OPTIONS, PUT"))
        wrong = self.ask("POST", "/alpha/version")
        self.assertEqual((wrong.status, wrong.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
        self.assertEqual([self.ask(m, "/alpha/version").status for m in ("PATCH", "TRACE", "FROB")],
                         [405, 405, 501])

    def test_a_body_is_asked_for_with_100_continue(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as sock:
            body = source("x").encode()
            sock.sendall(b"POST %sx/inspect HTTP/1.1\r\nHost: localhost\r\nExpect: "
                         b"100-continue\r\nContent-Length: %d\r\n"
                         b"Connection: close\r\n\r\n" % (JOB.encode(), len(body)))
            self.assertEqual(sock.recv(25), b"HTTP/1.1 100 Continue\r\n\r\n")
            sock.sendall(body)
            self.assertTrue(sock.recv(65536).startswith(b"HTTP/1.1 200 OK"))

    def test_a_half_closed_socket_still_gets_its_answer(self) -> None:
        for path in ("/alpha/version", "/alpha/jobs/devcluster/www-data"):
            data = raw(self.server, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode(),
                       half_close=True)
            self.assertEqual(statuses(data), [200])

    def test_answers_are_compressed_when_asked_for_and_worth_it(self) -> None:
        plain, small = self.ask("GET", "/openapi.json"), self.ask("GET", "/alpha/version",
                Accept_Encoding="gzip")
        packed = self.ask("GET", "/openapi.json", Accept_Encoding="br;q=1, gzip")
        self.assertEqual(packed.headers["content-encoding"], "gzip")
        self.assertEqual(__import__("gzip").decompress(packed.body), plain.body)
        self.assertNotIn("content-encoding", small.headers)
        self.assertNotIn("content-encoding", self.ask("GET", "/openapi.json",
                                                      Accept_Encoding="gzip;q=0").headers)

    def test_an_answer_has_its_own_head_in_each_of_its_forms(self) -> None:
        path = "/alpha/jobs/devcluster/www-data?detail=1"
        for _ in range(40):
            self.scheduler.createJob(config("form-%d" % _))
        etag = self.ask("GET", path).headers["etag"]
        packed = etag[:-1] + '-gzip"'
        forms = [("GET", {}, 200, etag), ("GET", {"Accept_Encoding": "gzip"}, 200, packed),
                 ("HEAD", {}, 200, etag),
                 ("HEAD", {"Accept_Encoding": "gzip"}, 200, packed),
                 ("GET", {"If_None_Match": etag}, 304, etag),
                 ("GET", {"If_None_Match": "W/%s, \"x\"" % etag}, 304, etag),
                 ("GET", {"If_None_Match": '"x"'}, 200, etag),
                 ("GET", {"If_None_Match": packed, "Accept_Encoding": "gzip"}, 304, packed),
                 ("GET", {"Connection": "close"}, 200, etag),
                 ("HEAD", {"If_None_Match": "*", "Connection": "close"}, 304, etag)]
        size: Any = {}
        for method, headers, status, tag in forms * 2:
            answer = self.ask(method, path, **headers)
            self.assertEqual((answer.status, answer.headers["etag"], answer.headers["vary"]),
                             (status, tag, "Accept-Encoding"))
            self.assertEqual(answer.headers.get("connection"), headers.get("Connection"))
            self.assertEqual("content-encoding" in answer.headers, status == 200 and tag == packed)
            self.assertEqual("content-length" in answer.headers, status == 200)
            self.assertEqual(bool(answer.body), status == 200 and method == "GET")
            if status == 200:
                self.assertEqual(size.setdefault(tag, answer.headers["content-length"]),
                                 answer.headers["content-length"])
                self.assertIn(len(answer.body), (0, int(size[tag])))
        old = raw(self.server, b"GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET %s HTTP/1.0\r\n\r\n" %
                  ((path.encode(),) * 2))
        self.assertEqual((statuses(old), old.count(b"Connection: keep-alive"),
                          old.count(b"Connection: close")), ([200, 200], 1, 1))

    def test_a_request_id_is_taken_or_made_returned_and_logged(self) -> None:
        self.assertEqual(self.ask("GET", "/alpha/version", X_Request_Id="mine-1").headers["x-request-id"],
                         "mine-1")
        wait_for(lambda: any("id=mine-1 " in line and "route=get_version status=200" in line
                             for line in list(self.lines)))
        self.assertRegex(self.ask("GET", "/alpha/version", X_Request_Id="a b").headers["x-request-id"],
                         r"^[\w-]+$")

    def test_large_bodies_and_answers_pass_whole(self) -> None:
        comment = "#" + "x" * (3 << 20) + "\n"
        self.good("POST", JOB + "hello/inspect", comment + source())
        self.bad(413, "POST", JOB + "hello/inspect", "#" + "x" * (9 << 20))

    def test_a_connection_that_resets_leaves_no_trace(self) -> None:
        for _ in range(20):
            sock = socket.create_connection(("127.0.0.1", self.server.port))
            sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.good("GET", "/alpha/version")
        self.assertFalse([line for line in self.lines if line.startswith("error")])

    def test_the_host_in_an_absolute_target_goes_before_the_field(self) -> None:
        for target, host, status in (("http://evil.example/alpha/version", "localhost", 421),
                                     ("http://localhost/alpha/version", "evil.example", 200)):
            answer = raw(self.server, ("GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" % (target, host)).encode())
            self.assertEqual(statuses(answer), [status], target)

    def test_foreign_hosts_and_origins_are_refused(self) -> None:
        self.bad(421, "GET", "/alpha/clusters", Host="evil.example")
        self.good("GET", "/alpha/clusters", Host="localhost.:80")
        self.bad(403, "PUT", JOB + "x", source("x"), Origin="http://evil.example")
        self.bad(403, "DELETE", JOB + "x", Origin="null")
        self.good("GET", "/alpha/clusters", Origin="http://evil.example")
        same = "http://127.0.0.1:%d" % self.server.port
        self.bad(404, "DELETE", JOB + "nonesuch", Origin=same)

    def test_the_page_has_security_headers(self) -> None:
        page = self.ask("GET", "/")
        self.assertEqual((page.status, page.headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("frame-ancestors 'none'", page.headers["content-security-policy"])
        self.assertEqual(page.headers["x-content-type-options"], "nosniff")
        self.assertEqual(self.ask("GET", "/page.js").headers["content-type"],
                         "text/javascript; charset=utf-8")

    def test_a_read_that_begins_after_a_write_was_answered_sees_it(self) -> None:
        stop, problems = threading.Event(), []

        def read(path: Any) -> None:
            while not stop.is_set():
                ask(self.server, "GET", path)
        self.scheduler.createJob(config("fresh", count=30))
        role, job = "/alpha/jobs/devcluster/www-data", JOB + "fresh"
        readers = [threading.Thread(target=read, args=(path,)) for path in (role, job, job + "/tasks")
                   for _ in range(3)]
        for each in readers:
            each.start()
        try:
            for number in range(25):
                self.scheduler.createJob(config("fresh-%d" % number))
                if "devcluster/www-data/devel/fresh-%d" % number not in self.good("GET",
                        role)["jobs"].values():
                    problems.append(("created", number))
                etag = self.ask("GET", job).headers["etag"]
                self.scheduler.killTasks(config("fresh").key, {number}, None)
                answer = self.ask("GET", job, If_None_Match=etag)
                if answer.status != 200 or number in [t["instance"] for t in answer.json["tasks"]["active"]]:
                    problems.append(("killed", number))
                if number in [t["instance"] for t in self.good("GET", job + "/tasks?state=active")["tasks"]]:
                    problems.append(("listed", number))
        finally:
            stop.set()
            for each in readers:
                each.join()
        self.assertEqual(problems, [])

    def test_identical_reads_that_wait_together_share_one_call(self) -> None:
        before = self.demo.calls["getJobs"]
        with self.demo._lock:       # the demo answers nobody for a while
            threads = [threading.Thread(target=ask,
                    args=(self.server, "GET", "/alpha/jobs/devcluster/batch")) for _ in range(20)]
            for each in threads:
                each.start()
            wait_for(lambda: sum(c.busy for c in list(self.server.http.connections)) >= 20)
        for each in threads:
            each.join()
        self.assertLessEqual(self.demo.calls["getJobs"] - before, 3)

    def test_objects_and_thrift_structs_have_names_of_their_own(self) -> None:
        self.assertFalse(set(aurora_rest._objects()) & set(api.type_names))
        for name, schema in DESCRIPTION["components"]["schemas"].items():
            for field, inner in schema.get("properties", {}).items():
                self.assertTrue(inner.get("description") or schema["description"].startswith("Thrift"),
                                (name, field))
        for path, methods in DESCRIPTION["paths"].items():
            for operation in methods.values():
                for each in operation["parameters"]:
                    self.assertTrue(each["description"], (path, each))
                    if "example" in each:
                        self.assertEqual(misfits(each["schema"], each["example"]), [], (path, each))

    def test_openapi_describes_every_route(self) -> None:
        document = self.ask("GET", "/openapi.json").json
        self.assertEqual(document["openapi"], "3.1.0")
        described = {(method.upper(), path) for path, methods in document["paths"].items()
                     for method in methods}
        expected = {(r.method, r.path.replace("{key}", "{cluster}/{role}/{environment}/{name}"))
                    for r in aurora_rest.ROUTES}
        self.assertEqual(described, expected)
        names = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
        self.assertEqual(len(names), len(set(names)))
        for methods in document["paths"].values():
            for operation in methods.values():
                self.assertRegex(operation["summary"], r"^[A-Z].*[^.]\.$")      # a whole sentence
                self.assertTrue(operation["responses"])

    def test_metrics_are_in_prometheus_text_format(self) -> None:
        self.ask("GET", "/alpha/jobs/devcluster/www-data")
        self.ask("GET", '/alpha/jobs/no"such/x')
        text = self.ask("GET", "/metrics").body.decode()
        sample = re.compile(r'[a-z_]+(\{[a-z_]+="(\\.|[^"\\])*"(,[a-z_]+="(\\.|[^"\\])*")*\})? '
                            r'[0-9.e+-]+(inf)?')
        for line in text.strip().split("\n"):
            self.assertTrue(line.startswith("# ") or sample.fullmatch(line), line)
        self.assertRegex(text,
                r'aurora_rest_http_requests_total\{route="list_role_jobs",method="GET",code="200"\} [1-9]')
        self.assertRegex(text,
                r'aurora_rest_scheduler_calls_total\{cluster="devcluster",method="getJobs",outcome="OK"\} '
                r'[1-9]')
        with contextlib.suppress(ImportError):
            parser = importlib.import_module("prometheus_client.parser")
            self.assertGreater(len(list(parser.text_string_to_metric_families(text))), 15)


class ProxyTest(Serving):
    """Behind proxies that are trusted, and others."""

    def setUp(self) -> None:
        self.server.http.proxies = aurora_rest.Proxies(["127.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"])
        self.addCleanup(setattr, self.server.http, "proxies", aurora_rest.Proxies())

    def seen(self, **headers: Any) -> Any:
        """(the status of a write, whom the log says it came from)."""
        number = "seen-%d" % len(self.lines)
        answer = self.ask("DELETE", JOB + "none", X_Request_Id=number, **headers)
        access = [each.fields for each in self.lines if each.name == "access" and each.fields["id"] == number]
        return answer.status, access[0]["peer"]

    def test_of_the_addresses_the_last_that_is_no_trusted_proxys_counts(self) -> None:
        self.server.service.access = self.server.service.access._replace(decided=True)
        self.addCleanup(setattr, self.server.service, "access", aurora_rest.Access())
        for headers, peer in (({"X_Forwarded_For": "6.6.6.6, 192.0.2.1, 10.1.1.1"}, "192.0.2.1"),
                              ({"X_Forwarded_For": "10.2.2.2"}, "10.2.2.2"),
                              ({"X_Forwarded_For": "192.0.2.1:4711"}, "192.0.2.1"),
                              ({"X_Forwarded_For": "192.0.2.9, unknown"}, "127.0.0.1"), ({}, "127.0.0.1"),
                              ({"Forwarded": 'for="[2001:db9::7]:80";proto=https, for=10.0.0.1'},
                               "2001:db9::7"),
                              ({"Forwarded": "For=192.0.2.3", "X_Forwarded_For": "9.9.9.9"}, "192.0.2.3"),
                              ({"Forwarded": "for=_hidden;by=x"}, "127.0.0.1"),
                              ({"Forwarded": ";=,"}, "127.0.0.1")):
            self.assertEqual(self.seen(**headers), (404, peer), headers)
        self.server.http.proxies = aurora_rest.Proxies(["10.0.0.0/8"])
        self.assertEqual(self.seen(X_Forwarded_For="192.0.2.1"), (404, "127.0.0.1"))

    def test_scheme_and_host_are_those_that_the_caller_used(self) -> None:
        self.server.service.hosts = frozenset(["jobs.example"])
        self.server.service.access = aurora_rest.Access(decided=True)
        self.addCleanup(setattr, self.server.service, "hosts", frozenset())
        self.addCleanup(setattr, self.server.service, "access", aurora_rest.Access())
        for headers, status in (({"X_Forwarded_Host": "jobs.example"}, 404),
                                ({"X_Forwarded_Host": "evil"}, 421),
                                ({"Forwarded": "for=192.0.2.1;host=jobs.example;proto=https"}, 404)):
            self.assertEqual(self.ask("DELETE", JOB + "none", Origin="https://jobs.example",
                                      **headers).status, status)

    def test_links_have_the_prefix_that_callers_see(self) -> None:
        for number in range(3):
            with contextlib.suppress(aurora_rest.AuroraError):
                self.scheduler.createJob(config("link-%d" % number))
        jobs = "/alpha/jobs/devcluster/www-data?limit=1"
        link = self.ask("GET", jobs, X_Forwarded_Prefix="/a/b").headers["link"]
        self.assertTrue(link.startswith("</a/b/alpha/jobs/devcluster/www-data?"), link)
        self.assertTrue(self.ask("GET", jobs).headers["link"].startswith("</alpha/"))
        link = self.ask("GET", jobs, X_Forwarded_Prefix="//evil/\\").headers["link"]
        self.assertTrue(link.startswith("</alpha/"), link)
        self.server.http.proxies = aurora_rest.Proxies([], "/base/")
        self.assertTrue(self.ask("GET", "/base" + jobs).headers["link"].startswith("</base/alpha/"))
        described = json.loads(self.ask("GET", "/base/openapi.json").body)
        self.assertEqual(described["servers"], [{"url": "/base/"}])
        described = json.loads(self.ask("GET", "/openapi.json", X_Forwarded_Prefix="/x").body)
        self.assertEqual(described["servers"], [{"url": "/base/"}])
        moved = self.ask("GET", "/base")
        self.assertEqual((moved.status, moved.headers["location"]), (308, "/base/"))
        self.assertIn(b"<html", self.ask("GET", "/base/").body)
        self.assertEqual(self.ask("GET", "/basement/alpha/version").status, 404)

    def test_an_anonymous_server_on_loopback_refuses_writes_through_a_proxy(self) -> None:
        self.server.http.proxies = aurora_rest.Proxies([])
        for header in ("X_Forwarded_For", "Forwarded", "Via", "X_Real_IP"):
            self.bad(403, "DELETE", JOB + "none", says="a proxy passes this on.*--allow-anonymous",
                     **{header: "1.2.3.4"})
            self.bad(403, "POST", "/alpha/rpc/devcluster/killTasks", "{}", says="a proxy passes this on",
                     **{header: "1.2.3.4"})
            self.good("GET", "/alpha/jobs/devcluster/www-data", **{header: "1.2.3.4"})
        self.bad(404, "DELETE", JOB + "none")

    def proxied(self, header: Any, rest: Any = b"") -> Any:
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as sock:
            data = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(header + b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n"
                             b"X-Request-Id: %s\r\nConnection: close\r\n\r\n" % rest)
                while True:
                    part = sock.recv(65536)
                    if not part:
                        break
                    data += part
            return statuses(data)

    def test_a_trusted_proxy_may_speak_the_proxy_protocol(self) -> None:
        two = b"\r\n\r\n\0\r\nQUIT\n"
        four = socket.inet_aton("192.0.2.7") + socket.inet_aton("127.0.0.1") + b"\0\1\0\2"
        six = socket.inet_pton(socket.AF_INET6, "2001:db9::9") * 2 + b"\0\1\0\2"
        for number, (header, peer) in enumerate((
                (b"PROXY TCP4 192.0.2.5 127.0.0.1 4711 80\r\n", "192.0.2.5"),
                (b"PROXY TCP6 2001:db9::5 ::1 4711 80\r\n", "2001:db9::5"),
                (b"PROXY UNKNOWN\r\n", "unknown"), (b"PROXY UNKNOWN ff ff 1 2\r\n", "unknown"),
                (two + b"\x21\0\0\0", "unknown"), (two + b"\x21\x31\0\xd8" + b"x" * 216, "unknown"),
                (two + b"\x21\x11\0\x0c" + four, "192.0.2.7"),
                (two + b"\x21\x11\0\x10" + four + b"\x04\0\x01x", "192.0.2.7"),
                (two + b"\x21\x21\0\x24" + six, "2001:db9::9"),
                (two + b"\x20\0\0\0", "127.0.0.1"), (b"", "127.0.0.1"))):
            name = "proxy-%d" % number
            self.assertEqual(self.proxied(header, name.encode()), [200], header)
            line = wait_for(lambda name=name: [each.fields for each in self.lines if each.name == "access"
                                               and each.fields["id"] == name])[0]
            self.assertEqual(line["peer"], peer)
        before = self.server.http.refusals["proxy"]
        broken = (b"PROXY TCP4 x y 1 2\r\n", b"PROXY TCP4 1.1.1.1\r\n", b"PROXY \xff\r\n",
                  two + b"\x21\x11\0\x04abcd", two + b"\x31\x11\0\x0c" + four)
        for header in broken:
            self.assertEqual(self.proxied(header), [], header)
        self.assertEqual(self.server.http.refusals["proxy"], before + len(broken))
        self.server.http.proxies = aurora_rest.Proxies([])
        self.assertEqual(self.proxied(b"PROXY TCP4 192.0.2.5 127.0.0.1 4711 80\r\n"), [400])

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_the_proxy_header_comes_before_tls(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            lines: Any = []
            server = aurora_rest.Server(port=0, demo=aurora_rest.Demo(speed=0), log=lines.append,
                                        evaluator=self.evaluator(),
                                        tls=aurora_rest.make_tls(cert, key))
            server.http.proxies = aurora_rest.Proxies(["127.0.0.1"])
            with server:
                context = ssl.create_default_context(cafile=cert)
                for header, peer in ((b"PROXY TCP4 192.0.2.5 127.0.0.1 4711 80\r\n", "192.0.2.5"),
                                     (b"", "127.0.0.1")):
                    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
                        sock.sendall(header)
                        with context.wrap_socket(sock, server_hostname="localhost") as tls:
                            tls.sendall(b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\nConnection: close"
                                        b"\r\n\r\n")
                            self.assertIn(b"200 OK", tls.recv(65536))
                    self.assertEqual(wait_for(lambda: [each for each in lines if each.name == "access"])[-1]
                                     .fields["peer"], peer)
                    del lines[:]

    def test_whom_the_proxy_protocol_does_not_name_is_not_the_proxy(self) -> None:
        for header, status in ((b"PROXY UNKNOWN\r\n", 421),
                               (b"PROXY TCP4 192.0.2.5 127.0.0.1 4711 80\r\n", 421),
                               (b"", 200)):
            with socket.create_connection(("127.0.0.1", self.server.port), 10) as sock:
                sock.sendall(header + b"GET /alpha/version HTTP/1.1\r\nHost: evil.example\r\n"
                             b"X-Forwarded-Host: localhost\r\nConnection: close\r\n\r\n")
                self.assertEqual(statuses(b"".join(iter(lambda: sock.recv(65536), b""))), [status], header)

    def test_writes_of_whom_any_proxy_passes_on_are_refused(self) -> None:
        path = JOB + "none"
        self.bad(403, "DELETE", path)       # a trusted proxy may be what asks
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.5 127.0.0.1 4711 80\r\nDELETE %s HTTP/1.1\r\nHost: "
                         b"localhost\r\n"
                         b"Connection: close\r\n\r\n" % path.encode())
            self.assertEqual(statuses(b"".join(iter(lambda: sock.recv(65536), b""))), [403])
        self.server.http.proxies = aurora_rest.Proxies()
        self.bad(404, "DELETE", path)
        for name in ("X_Forwarded_Proto", "X_Forwarded_Prefix", "Via"):
            self.bad(403, "DELETE", path, **{name: "x"})

    def test_of_many_words_of_proxies_the_last_count(self) -> None:
        self.assertEqual(len(aurora_rest.parse_forwarded({"forwarded": "for=a," * 30000})),
                         aurora_rest.MAX_HOPS)
        said = aurora_rest.parse_forwarded({"x-forwarded-for": "1.1.1.1, 10.0.0.1",
                                            "x-forwarded-proto": "https"})
        self.assertEqual(said, [{"for": "1.1.1.1", "proto": "https"}, {"for": "10.0.0.1", "proto": "https"}])

    def test_before_it_stops_it_is_not_ready_for_a_while_and_works_on(self) -> None:
        server = aurora_rest.Server(port=0, demo=aurora_rest.Demo(speed=0),
                                    evaluator=self.evaluator()).start()
        wait_for(lambda: ask(server, "GET", "/ready").status == 200)
        server.drain_delay = 3.0
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_for(lambda: ask(server, "GET", "/ready").status == 503)
        self.assertEqual(ask(server, "DELETE", JOB + "none").status, 404)
        self.assertEqual(ask(server, "GET", "/health").status, 200)
        stopping.join()
        with self.assertRaises(OSError):
            ask(server, "GET", "/health")


class AccessTest(unittest.TestCase):
    """Tokens, forwarded credentials, CORS."""

    def serve(self, demo: Any = None, **options: Any) -> Any:
        self.lines: Any = []
        server = aurora_rest.Server(port=0, demo=demo or aurora_rest.Demo(speed=0),
                                    evaluator=Serving.evaluator(),
                                    log=self.lines.append, **options).start()
        self.addCleanup(server.stop, 1.0)
        return server

    def tokens(self, *lines: Any) -> Any:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "tokens")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("# a comment\n" + "\n".join(lines) + "\n")
        return aurora_rest.Tokens(path)

    def test_a_writer_of_one_role_is_held_to_it_in_every_argument(self) -> None:
        secrets, lines = {}, []
        for text in ("bob:write:a-*", "ops:admin:a-*", "boss:admin:*"):
            token, line = aurora_rest.new_token(text)
            secrets[text.split(":")[0]] = token
            lines.append(line)
        server = self.serve(access=aurora_rest.Access(self.tokens(*lines), anonymous=False))

        def status(who: Any, method: Any, **body: Any) -> Any:
            return ask(server, "POST", "/alpha/rpc/devcluster/" + method, json.dumps(body),
                       Authorization="Bearer " + secrets[who]).status
        mine = {"role": "a-b", "environment": "prod", "name": "x"}
        theirs = dict(mine, role="www-data")
        job = config().to_plain()
        for key, task, expected in ((mine, mine, 200), (theirs, theirs, 403), (mine, theirs, 400),
                                    (theirs, mine, 400)):
            made = dict(job, key=key, taskConfig=dict(job["taskConfig"], job=task))
            self.assertEqual(status("bob", "createJob", description=made), expected, (key, task))
        request = update_request(config()).to_plain()
        self.assertEqual(status("bob", "startJobUpdate", request=request), 403)
        self.assertEqual(status("bob", "addInstances", key={"jobKey": theirs, "instanceId": 0}, count=1), 403)
        self.assertEqual(status("bob", "pauseJobUpdate", key={"job": theirs, "id": "x"}), 403)
        self.assertEqual(status("bob", "killTasks", job=theirs), 403)
        for query, expected in (({"role": "a-b"}, 200), ({"jobKeys": [mine]}, 200), ({}, 403),
                                ({"role": " "}, 403),
                                ({"jobKeys": [mine, theirs]}, 403),
                                ({"role": "a-b", "jobKeys": [theirs]}, 403), ({"taskIds": ["x"]}, 403)):
            self.assertEqual(status("ops", "pruneTasks", query=query), expected, query)
            self.assertEqual(status("boss", "pruneTasks", query=query), 200)
        self.assertEqual([status("ops", "setQuota", ownerRole=role, quota={"resources": []})
                          for role in ("a-b", "www-data")], [502, 403])
        self.assertEqual(status("ops", "snapshot"), 403)

    def test_an_operation_is_cancelled_with_what_it_took_to_begin_it(self) -> None:
        secrets, lines = {}, []
        for text in ("writer:write:*", "hosts:write:demo-*", "www:write:www-data", "batch:write:batch",
                     "boss:admin"):
            token, line = aurora_rest.new_token(text)
            secrets[text.split(":")[0]] = token
            lines.append(line)
        server = self.serve(access=aurora_rest.Access(self.tokens(*lines), anonymous=False))
        server.demo.advance(5)

        def status(who: Any, method: Any, path: Any) -> Any:
            answer = ask(server, method, path, Authorization="Bearer " + secrets[who])
            return answer.status if method == "DELETE" else answer.json["operation"]["id"]
        path = "/alpha/operations/" + status("boss", "POST",
                                             "/alpha/maintenance/devcluster/demo-01/drain?force=1")
        self.assertEqual([status(who, "DELETE", path + query) for who in ("writer", "hosts", "www")
                          for query in ("", "?dry_run=1")],
                         [403] * 6)
        self.assertEqual(status("boss", "DELETE", path), 202)
        path = "/alpha/operations/" + status("www", "PUT",
                "/alpha/job/devcluster/www-data/prod/hello/restart?watch_secs=500")
        self.assertEqual([status(who, "DELETE", path) for who in ("batch", "hosts", "writer")],
                         [403, 403, 202])

    def test_the_server_tells_operators_how_near_each_limit_is(self) -> None:
        token, line = aurora_rest.new_token("boss:admin")
        reader, other = aurora_rest.new_token("r:read")
        server = self.serve(access=aurora_rest.Access(self.tokens(line, other), anonymous=False))
        self.assertEqual(ask(server, "GET", "/alpha/server", Authorization="Bearer " + reader).status, 403)
        plain = ask(server, "GET", "/alpha/server", Authorization="Bearer " + token).json
        self.assertEqual(plain["version"], aurora_rest.__version__)
        limits = plain["limits"]
        self.assertEqual(limits["connections"], {"used": 1.0, "limit": LIMITS["connections"]})
        self.assertEqual(limits["calls to devcluster"], {"used": 0, "limit": 4})
        self.assertLessEqual({"threads", "queue", "bodies", "unsent", "watchers", "waits", "operations",
                              "remembered", "idempotency_keys", "evaluators"}, set(limits))
        with contextlib.closing(Events(server, "/alpha/events/devcluster/www-data",
                                       Authorization="Bearer " + token)) as stream:
            stream.next()
            now = ask(server, "GET", "/alpha/server", Authorization="Bearer " + token).json["limits"]
            self.assertEqual(now["watchers"]["used"], 1)
        both = self.serve(access=aurora_rest.Access(self.tokens(line), forward=True))
        for given, status in (("Basic YTpi", 403), ("Bearer " + token, 200)):
            self.assertEqual(ask(both, "GET", "/alpha/server", Authorization=given).status, status)

    def test_nothing_is_evaluated_from_what_anothers_credentials_fetched(self) -> None:
        demo = aurora_rest.Demo(speed=0, users={"alice": ("pw", "*")})
        server = self.serve(demo, access=aurora_rest.Access(forward=True))

        def status(password: Any, method: Any, path: Any) -> Any:
            credentials = base64.b64encode(("alice:" + password).encode()).decode()
            return ask(server, method, path, source(), Authorization="Basic " + credentials).status
        for method, path in (("POST", JOB + "hello/inspect"), ("PUT", JOB + "hello?dry_run=1")):
            self.assertEqual([status(password, method, path) for password in ("pw", "wrong", "pw")],
                             [200, 401, 200])

    def test_tokens_carry_a_level_and_roles(self) -> None:
        secrets = {}
        lines: Any = []
        for name, level, roles in (("reader", "read", "*"), ("writer", "write", "www-*,batch"),
                                   ("boss", "admin", "*")):
            secrets[name], line = aurora_rest.new_token("%s:%s:%s" % (name, level, roles))
            lines.append(line)
            self.assertNotIn(secrets[name], line)
        server = self.serve(access=aurora_rest.Access(self.tokens(*lines), anonymous=False))

        def status(who: Any, method: Any, path: Any, body: Any = None) -> Any:
            headers = {"Authorization": "Bearer " + secrets.get(who, who)} if who else {}
            return ask(server, method, path, body, **headers).status
        self.assertEqual(status("", "GET", "/alpha/clusters"), 401)
        self.assertEqual(status("wrong", "GET", "/alpha/clusters"), 401)
        self.assertEqual([status("", "GET", p) for p in ("/alpha/version", "/health", "/metrics", "/")],
                         [200] * 4)
        self.assertEqual(status("reader", "GET", "/alpha/jobs/devcluster/www-data"), 200)
        self.assertEqual(status("reader", "PUT", JOB + "hello", source()), 403)
        self.assertEqual(status("writer", "PUT", JOB + "hello", source()), 201)
        self.assertEqual(status("writer", "DELETE", "/alpha/job/devcluster/other/devel/x"), 403)
        self.assertEqual(status("writer", "POST", "/alpha/backups/devcluster"), 403)
        self.assertEqual(status("boss", "POST", "/alpha/backups/devcluster"), 202)
        self.assertEqual(status("reader", "POST", "/alpha/rpc/devcluster/getJobs", "{}"), 200)
        self.assertEqual(status("reader", "POST", "/alpha/rpc/devcluster/snapshot", "{}"), 403)
        kill = '{"job": {"role": "other", "environment": "devel", "name": "x"}}'
        self.assertEqual(status("writer", "POST", "/alpha/rpc/devcluster/killTasks", kill), 403)
        self.assertEqual(status("writer", "POST", "/alpha/rpc/devcluster/killTasks",
                                kill.replace("other", "batch")), 200)
        basic = base64.b64encode(("any:" + secrets["boss"]).encode()).decode()
        self.assertEqual(ask(server, "GET", "/alpha/clusters", Authorization="Basic " + basic).status, 200)
        audit = [line for line in self.lines if line.startswith("audit") and "did=create_job" in line]
        self.assertRegex(audit[-1], "user=writer .*did=create_job method=PUT path=/alpha/job/devcluster/"
                         "www-data/devel/hello key=devcluster/www-data/devel/hello "
                         "config=sha256:[0-9a-f]{64} status=201 outcome=done")
        for secret in secrets.values():
            self.assertFalse([line for line in self.lines if secret in line])

    def test_a_refusal_says_what_credentials_are_wanted(self) -> None:
        server = self.serve(access=aurora_rest.Access(self.tokens(aurora_rest.new_token("a:read")[1]),
                                                      anonymous=False))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !!"}):
            answer = ask(server, "GET", "/alpha/clusters", **headers)
            self.assertEqual((answer.status, answer.headers["www-authenticate"]),
                             (401, 'Bearer realm="aurora_rest"'))

    def test_what_makes_two_reads_the_same_is_who_asks_too(self) -> None:
        service = self.serve().service
        shares = []
        for line in (b"", b"\r\nAuthorization: Bearer a", b"\r\nAuthorization: Bearer b",
                     b"\r\nOrigin: http://x"):
            request = aurora_rest.Request(aurora_rest.parse_head(
                b"GET /alpha/jobs/devcluster HTTP/1.1\r\nHost: localhost" + line), b"", "peer", "id")
            service.prepare(request)
            shares.append(request.share)
        self.assertEqual((len(set(shares)), None in shares), (4, False))

    def test_the_callers_name_reaches_the_schedulers_audit_trail(self) -> None:
        token, line = aurora_rest.new_token("alice:write")
        server = self.serve(access=aurora_rest.Access(self.tokens(line), anonymous=False))
        server.demo.advance(5)
        answer = ask(server, "DELETE", "/alpha/job/devcluster/www-data/prod/hello?message=cleanup",
                     Authorization="Bearer " + token)
        self.assertEqual(answer.status, 200)
        tasks = server.service.clusters["devcluster"].getTasksStatus(api.TaskQuery(role="www-data",
                jobName="hello"))
        self.assertIn("cleanup (by alice, request ",
                      tasks.result.scheduleStatusResult.tasks[0].taskEvents[-1].message)

    def test_a_token_ends_with_its_day(self) -> None:
        token = aurora_rest.hash_token("t")
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400))
        today = time.strftime("%Y-%m-%d", time.gmtime())
        self.assertIsNone(self.tokens("a read * %s until=%s" % (token, day)).named(token))
        self.assertEqual(self.tokens("a read * %s until=%s" % (token, today)).named(token).name, "a")
        for wrong in ("until=2026-13-01", "until=soon", "till=2026-01-01"):
            with self.assertRaisesRegex(ValueError, "line 2"):
                self.tokens("a read * %s %s" % (token, wrong))

    def test_whom_a_trusted_proxy_names_is_who_its_line_says(self) -> None:
        tokens = self.tokens("alice write www-* user", "* read * user")
        server = self.serve(access=aurora_rest.Access(tokens, anonymous=False, user_header="x-user"))
        server.http.proxies = aurora_rest.Proxies(["127.0.0.1"])

        def me(**headers: Any) -> Any:
            return ask(server, "GET", "/alpha/me", **headers)
        found = me(X_User="alice").json
        self.assertEqual((found["name"], found["level"], found["by"]), ("alice", "write", "proxy"))
        found = me(X_User="Bob B").json
        self.assertEqual((found["name"], found["level"]), ("Bob%20B", "read"))
        names = {me(X_User=each).json["name"] for each in ("a/b", "a_b", "x" * 70, "x" * 71)}
        self.assertEqual(len(names), 4)
        self.assertEqual(me().status, 401)
        self.assertEqual(ask(server, "DELETE", JOB + "x", X_User="Bob B").status, 403)
        self.assertEqual(ask(server, "DELETE", JOB + "x", X_User="alice").status, 404)
        server.http.proxies = aurora_rest.Proxies([])
        self.assertEqual(me(X_User="alice").status, 401)
        server = self.serve(access=aurora_rest.Access(self.tokens("alice write * user"), anonymous=False,
                                                      user_header="x-user"))
        server.http.proxies = aurora_rest.Proxies(["127.0.0.1"])
        self.assertEqual(ask(server, "GET", "/alpha/me", X_User="bob").status, 401)

    def test_a_line_that_has_ended_or_is_written_beyond_ascii_is_the_users_own(self) -> None:
        server = self.serve(access=aurora_rest.Access(self.tokens(
            "bob read none user until=2020-01-01", "zo\xeb read none user", "* write * user"),
            anonymous=False,
            user_header="x-user"))
        server.http.proxies = aurora_rest.Proxies(["127.0.0.1"])
        for given, status, level in (("bob", 401, None), ("zo\xc3\xab", 200, "read"), ("amy", 200, "write")):
            answer = ask(server, "GET", "/alpha/me", X_User=given)
            self.assertEqual((answer.status, answer.json.get("level")), (status, level))

    def test_a_proxys_own_certificate_is_nobody(self) -> None:
        access = aurora_rest.Access(self.tokens("alice read * user", "watch read * CN=watch"), False, False,
                                    True,
                                    user_header="x-user")
        request = aurora_rest.Request(aurora_rest.parse_head(b"GET /alpha/me HTTP/1.1\r\nHost: localhost"),
                                      b"",
                                      "127.0.0.1", "i")
        request.trusted, request.certificate = True, ("CN=proxy",)
        with self.assertRaisesRegex(aurora_rest.Unauthorized, "the proxy names no user"):
            access.user(request)
        request.certificate = ("CN=watch",)
        self.assertEqual(access.user(request).name, "watch")

    def test_an_idempotency_key_is_one_users(self) -> None:
        server = self.serve(access=aurora_rest.Access(self.tokens("a_b write www-data user",
                "a/b write other user"),
                                                      anonymous=False, user_header="x-user"))
        server.http.proxies = aurora_rest.Proxies(["127.0.0.1"])
        for user, status in (("a_b", 200), ("a/b", 403)):
            answer = ask(server, "POST", "/alpha/rpc/devcluster/restartShards", json.dumps(
                {"job": {"role": "www-data", "environment": "prod", "name": "hello"}, "shardIds": [0]}),
                X_User=user, Idempotency_Key="one")
            self.assertEqual(answer.status, status, answer)

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_a_certificate_is_who_its_line_says(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            with open(cert, encoding="ascii") as stream:
                tls = aurora_rest.make_tls(cert, key, stream.read())

            def me(tokens: Any) -> Any:
                server = self.serve(tls=tls, access=aurora_rest.Access(tokens, anonymous=False,
                                                                       client_certificates=True))
                context = ssl.create_default_context(cafile=cert)
                context.load_cert_chain(cert, key)
                connection = http.client.HTTPSConnection("localhost", server.port, context=context,
                                                         timeout=10)
                connection.request("GET", "/alpha/me")
                answer = connection.getresponse()
                plain = json.loads(answer.read())
                connection.close()
                return (answer.status, plain.get("name"), plain.get("level"), plain.get("by"))
            self.assertEqual(me(None), (200, "localhost", "admin", "certificate"))
            for mark in ("CN=localhost", "DNS=localhost"):
                self.assertEqual(me(self.tokens("ci write www-* " + mark)),
                                 (200, "ci", "write", "certificate"))
            self.assertEqual(me(self.tokens("ci write * URI=spiffe://x/y"))[0], 401)
            left = aurora_rest.certificate_expiry(cert) - time.time()
            self.assertTrue(86400 - 600 < left <= 86400, left)

    def test_streams_of_who_may_no_longer_read_end(self) -> None:
        (gone, _), (stays, line) = (aurora_rest.new_token(each) for each in ("a:read", "b:read"))
        tokens = self.tokens("a read * " + aurora_rest.hash_token(gone), line)
        server = self.serve(access=aurora_rest.Access(tokens, anonymous=False))
        streams = [Events(server, "/alpha/events/devcluster/www-data", Authorization="Bearer " + each)
                   for each in (gone, stays)]
        for each in streams:
            self.addCleanup(each.close)
            each.next()
        with open(tokens.path, "w", encoding="utf-8") as stream:
            stream.write(line)
        tokens.load()
        self.lines.clear()
        aurora_rest.end_unwelcome(server.http)
        with self.assertRaises(EOFError):
            while True:
                streams[0].next()
        ended, = wait_for(lambda: [each for each in self.lines if each.name == "stream"])
        self.assertEqual((ended.fields["user"], ended.fields["ended"]), ("a", "access has ended"))
        self.assertEqual(ask(server, "PUT", JOB + "more", source("more"), Authorization="Bearer " + stays
                             ).status, 403)
        server.demo.invoke("createJob", api.method("createJob").arguments(config("more")))
        wait_for(lambda: streams[1].next()[2].get("job", "").endswith("/more"))

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make certificates")
    def test_a_certificate_that_is_revoked_lets_nobody_in(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            def openssl(*words: str) -> None:
                subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)
            cert, key = certificate(folder)
            conf = ("[ca]", "default_ca=c", "[c]", "database=index", "crlnumber=number", "serial=number",
                    "default_md=sha256", "default_days=1", "default_crl_days=1", "policy=p",
                    "new_certs_dir=.",
                    "[p]", "commonName=supplied", "")
            for name, text in (("index", ""), ("number", "01"), ("conf", "\n".join(conf))):
                with open(os.path.join(folder, name), "w", encoding="ascii") as stream:
                    stream.write(text)
            ca = ("ca", "-config", "conf", "-batch", "-cert", "cert", "-keyfile", "key")
            for name in ("good", "bad"):
                openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", name + ".key", "-out", name +
                        ".csr",
                        "-subj", "/CN=" + name)
                openssl(*ca, "-in", name + ".csr", "-out", name + ".crt")
            openssl(*ca, "-revoke", "bad.crt")
            openssl(*ca, "-gencrl", "-out", "crl")
            with open(cert, encoding="ascii") as stream:
                tls_text = stream.read()
            tls = aurora_rest.make_tls(cert, key, tls_text, os.path.join(folder, "crl"))
            server = self.serve(tls=tls, access=aurora_rest.Access(None, False, False, True))
            for name, served in (("good", True), ("bad", False)):
                context = ssl.create_default_context(cafile=cert)
                context.load_cert_chain(*(os.path.join(folder, name + each) for each in (".crt", ".key")))
                connection = http.client.HTTPSConnection("localhost", server.port, context=context,
                                                         timeout=10)
                self.addCleanup(connection.close)
                try:
                    connection.request("GET", "/alpha/me")
                    answer = connection.getresponse()
                    found = answer.status == 200 and bool(answer.read())
                except OSError:
                    found = False
                self.assertEqual(found, served, name)
                if served:      # other certificates count now: the connection ends with its next answer
                    server.http.tls = aurora_rest.make_tls(cert, key, tls_text, os.path.join(folder, "crl"))
                    connection.request("GET", "/alpha/me")
                    self.assertEqual(connection.getresponse().getheader("Connection"), "close")
            for path, says in (("/nowhere", "--client-crl=/nowhere"), (cert, "certificates in it")):
                with self.assertRaisesRegex(aurora_rest.UsageError, says):
                    aurora_rest.make_tls(cert, key, "", path)

    def test_a_tokens_file_that_is_wrong_names_its_line(self) -> None:
        for line in ("x", "a read *", "a nonsense * sha256:" + "0" * 64, "a read * 123"):
            with self.assertRaisesRegex(ValueError, "line 2"):
                self.tokens(line)
        token = aurora_rest.hash_token("t")
        tokens = self.tokens("a read * " + token)
        self.assertEqual(tokens.named(token).name, "a")
        with open(tokens.path, "w", encoding="utf-8") as stream:
            stream.write("broken")
        with self.assertRaises(ValueError):
            tokens.load()
        self.assertEqual(tokens.named(token).name, "a")

    def test_forwarded_credentials_let_the_scheduler_decide(self) -> None:
        demo = aurora_rest.Demo(speed=0, users={"alice": ("pw", "www-*"), "root": ("pw", "*")})
        server = self.serve(demo, access=aurora_rest.Access(forward=True))

        def status(who: Any, method: Any, path: Any, body: Any = None) -> Any:
            headers = {"Authorization": "Basic " +
                       base64.b64encode(("%s:pw" % who).encode()).decode()} if who else {}
            return ask(server, method, path, body, **headers)
        self.assertEqual(status("", "GET", "/alpha/jobs/devcluster/www-data").status, 200)
        self.assertEqual(status("alice", "GET", "/alpha/jobs/devcluster/www-data").status, 200)
        # each has asked as himself
        self.assertEqual(len({question[2] for question in server.service.memory._kept}), 2)
        missing = status("", "PUT", JOB + "hello", source())
        self.assertEqual((missing.status, missing.headers["www-authenticate"]),
                         (401, 'BASIC realm="Apache Aurora Scheduler"'))
        self.assertEqual(status("mallory", "PUT", JOB + "hello", source()).status, 401)
        self.assertEqual(status("alice", "PUT", JOB + "hello", source()).status, 201)
        denied = status("alice", "DELETE", "/alpha/job/devcluster/batch/prod/indexer")
        self.assertEqual((denied.status, denied.json["code"]), (403, "AUTH_FAILED"))
        self.assertEqual(status("alice", "POST", "/alpha/snapshot/devcluster").status, 403)
        self.assertEqual(status("root", "POST", "/alpha/snapshot/devcluster").status, 202)
        demo.advance(5)
        started = status("alice", "PUT", JOB + "hello/restart?watch_secs=500")
        path = "/alpha/operations/" + started.json["operation"]["id"]
        self.assertEqual([status(who, "DELETE", path).status for who in ("", "mallory", "root", "alice")],
                         [401, 403, 403, 202])
        picky = FakeScheduler(answering(lambda body: http_answer(401)))
        self.addCleanup(picky.close)
        other = aurora_rest.Server(port=0, clusters={"c": picky.url}, evaluator=Serving.evaluator()).start()
        self.addCleanup(other.stop, 0.5)
        self.assertEqual(ask(other, "GET", "/ready").status, 200)       # it answers, whoever may ask

    def test_cors_opens_named_origins(self) -> None:
        server = self.serve(cors=["https://dash.example"])
        preflight = ask(server, "OPTIONS", JOB + "x", Origin="https://dash.example",
                        Access_Control_Request_Method="DELETE")
        self.assertEqual((preflight.status, preflight.headers["access-control-allow-origin"]),
                         (204, "https://dash.example"))
        self.assertEqual(ask(server, "DELETE", JOB + "nonesuch", Origin="https://dash.example").status, 404)
        self.assertEqual(ask(server, "DELETE", JOB + "nonesuch", Origin="https://other.example").status, 403)
        self.assertNotIn("access-control-allow-origin",
                         ask(server, "GET", "/alpha/clusters", Origin="https://other.example").headers)

    def test_who_may_listen_where(self) -> None:
        def check(*arguments: Any) -> None:
            aurora_rest.check_options(aurora_rest.parse_command_line(arguments, {}))
        check("--host=127.0.0.1")
        check("--host=0.0.0.0", "--allow-anonymous")
        for arguments in (("--host=0.0.0.0",), ("--host=::",), ("--executor=external",),
                          ("--application=tornado",), ("--parallel=0",),
                          ("--port=70000",), ("--scheduler=x",), ("--scheduler=x=ftp://y",),
                          ("--tls-key=x",)):
            with self.assertRaises(aurora_rest.UsageError):
                check(*arguments)
        wrong: Any = ((["--nonsense"], {}), (["--port=x"], {}), ([], {"AURORA_REST_PORT": "x"}))
        for arguments, environment in wrong:
            with self.assertRaises(aurora_rest.UsageError):
                aurora_rest.parse_command_line(arguments, environment)
        with self.assertRaisesRegex(aurora_rest.UsageError, "no option --prot; did you mean --port"):
            aurora_rest.parse_command_line(["--prot=1"], {})

    def test_what_an_option_names_and_cannot_be_used_is_told_as_its_fault(self) -> None:
        for option in ("tokens", "clusters", "scheduler-ca", "client-ca", "observer-ca", "agent-auth",
                       "scheduler-auth", "include-root"):
            options = aurora_rest.parse_command_line(
                ["--port=0", "--%s=/nowhere" % option] + (
                    ["--scheduler=a=http://127.0.0.1:9"] if option != "clusters" else []), {})
            with self.subTest(option), self.assertRaisesRegex(aurora_rest.UsageError,
                                                              "^--%s=/nowhere" % option):
                aurora_rest.make_server(options, aurora_rest.Log())
        with tempfile.NamedTemporaryFile("w") as stream:
            stream.write('[{"x": 1}]')
            stream.flush()
            with self.assertRaisesRegex(aurora_rest.UsageError, "^--clusters=.*: it names no cluster"):
                aurora_rest.make_server(aurora_rest.parse_command_line(
                    ["--port=0", "--clusters=" + stream.name], {}), aurora_rest.Log())


# --- 6. Server ----------------------------------------------------------------------------------------------

class LimitsTest(unittest.TestCase):
    def serve(self, **limits: Any) -> Any:
        given = dict({"header_time": 0.5, "idle_time": 0.5, "send_time": 1}, **limits)
        server = aurora_rest.Server(port=0, demo=aurora_rest.Demo(speed=0), evaluator=Serving.evaluator(),
                                    limits=given).start()
        self.addCleanup(server.stop, 0.5)
        return server

    def test_a_slow_head_is_408_and_an_idle_connection_closed(self) -> None:
        server = self.serve()
        started = time.monotonic()
        self.assertEqual(statuses(raw(server, b"GET /alpha/version HTT")), [408])
        self.assertEqual(statuses(raw(server, b"")), [])
        self.assertEqual(statuses(raw(server, b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n\r\n")),
                         [200])
        self.assertLess(time.monotonic() - started, 8)

    def test_a_slow_body_is_408(self) -> None:
        server = self.serve(body_rate=1e9)
        server.http.GRACE = 0.2
        data = raw(server, b"PUT %sx HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc" %
                   JOB.encode())
        self.assertEqual(statuses(data), [408])

    def test_a_body_that_trickles_is_408(self) -> None:
        server = self.serve(body_rate=1e9)
        server.http.GRACE = 0.5
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            sock.sendall(b"PUT %sx HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" % JOB.encode())
            sock.settimeout(0.2)
            answer = b""
            for _ in range(90):         # each byte gives it new time
                with contextlib.suppress(socket.timeout):
                    sock.sendall(b"x")
                    answer = sock.recv(4096)
                if answer:
                    break
        self.assertEqual(statuses(answer), [408])

    def test_idle_connections_make_room_for_others(self) -> None:
        server = self.serve(connections=3, idle_time=60)
        idle = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(3)]
        for each in idle:
            each.request("GET", "/health")
            each.getresponse().read()
        self.assertEqual(ask(server, "GET", "/health").status, 200)
        self.assertEqual(server.http.refusals["idle"], 1)
        # the one that was idle for longest
        with self.assertRaises((http.client.HTTPException, OSError)):
            idle[0].request("GET", "/health")
            idle[0].getresponse()

    def test_bodies_are_counted_as_they_arrive_and_a_caller_has_a_share(self) -> None:
        server = self.serve(bodies=40000, body=10000, header_time=30, idle_time=30)
        head = b"PUT %sx HTTP/1.1\r\nHost: localhost\r\n" % JOB.encode()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
        for number, each in enumerate(held):        # announced: 300 kB; arrived: some bytes each
            each.sendall(head + (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n" if number % 2 else
                                 b"Content-Length: 9000\r\n\r\nx"))
        wait_for(lambda: server.http.bodies.all >= 30)
        self.assertLess(server.http.bodies.all, 1000)
        self.assertEqual(ask(server, "POST", JOB + "hello/inspect", source()).status, 200)
        held[0].sendall(b"y" * 8000)
        wait_for(lambda: server.http.bodies.all > 8000)
        # over the caller's quarter
        self.assertEqual(statuses(raw(server, head + b"Content-Length: 5000\r\n\r\n")), [503])
        for each in held:
            each.close()
        wait_for(lambda: not server.http.bodies.all and not server.http.bodies.by_caller)

    def test_a_body_counts_until_its_request_is_answered(self) -> None:
        server = self.serve()
        with server.demo._lock:
            sock = socket.create_connection(("127.0.0.1", server.port))
            self.addCleanup(sock.close)
            body = json.dumps({"ownerRole": "x" * 5000}).encode()
            sock.sendall(b"POST /alpha/rpc/devcluster/getJobs HTTP/1.1\r\nHost: "
                         b"localhost\r\nContent-Length: %d\r\n\r\n" % len(
                body) + body)
            wait_for(lambda: any(c.busy for c in list(server.http.connections)))
            self.assertGreaterEqual(server.http.bodies.all, 5000)
        self.assertEqual(statuses(sock.recv(65536)), [200])
        wait_for(lambda: not server.http.bodies.all)

    def test_answers_that_nobody_takes_are_bounded_all_together(self) -> None:
        server = self.serve(unsent=20000, send_time=60)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                sock.sendall(request * 150)     # 150 answers of 190 kB
        wait_for(lambda: server.http.refusals["unsent"])
        wait_for(lambda: server.http.unsent.all <= 20000)
        for sock in socks:
            sock.close()
        wait_for(lambda: server.http.unsent.all == 0)

    def test_who_takes_nothing_at_first_has_his_grace_too(self) -> None:
        server = self.serve()
        with socket.create_connection(("127.0.0.1", server.port)):
            connection = wait_for(lambda: next(iter(server.http.connections), None))
            real, connection.socket = connection.socket, mock.Mock()
            connection.socket.send.side_effect = BlockingIOError
            connection.push(b"x" * 100)
            connection.look(time.monotonic() + 0.5)
            self.assertFalse(connection.closed)
            connection.socket = real
        wait_for(lambda: not server.http.connections)

    def test_a_caller_who_takes_his_answer_too_slowly_is_dropped(self) -> None:
        server = self.serve(send_rate=1e9, send_time=60)
        server.http.GRACE = 0.3
        sock = socket.create_connection(("127.0.0.1", server.port))
        self.addCleanup(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 60)
        wait_for(lambda: server.http.unsent.all)
        wait_for(lambda: not server.http.connections)

    def test_no_request_waits_longer_than_its_limit_where_no_thread_can_be_started(self) -> None:
        server = self.serve(queue_time=0.3, threads=4)
        ask(server, "GET", "/alpha/version")
        wait_for(lambda: server.http.workers._idle <= 1)
        with mock.patch.object(server.http.workers, "_add", return_value=False), server.demo._lock:
            hanging = [threading.Thread(target=ask,
                    args=(server, "GET", "/alpha/jobs/devcluster/role%d" % n)) for n in range(6)]
            for each in hanging:
                each.start()
            answer = ask(server, "GET", "/alpha/jobs/devcluster/late")
            self.assertEqual((answer.status, answer.json["errors"]),
                             (503, ["no thread was free in time; try again"]))
            self.assertEqual(ask(server, "GET", "/health").status, 200)
        for each in hanging:
            each.join()
        self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/late").status, 200)
        self.assertEqual(server.http._queued, {})

    def test_a_thread_that_cannot_be_started_is_told(self) -> None:
        lines: Any = []
        server = aurora_rest.Server(port=0, demo=aurora_rest.Demo(speed=0), evaluator=Serving.evaluator(),
                                    log=lines.append,
                                    limits={"queue_time": 1.0}).start()
        self.addCleanup(server.stop, 0.5)
        ask(server, "GET", "/alpha/version")
        start = threading.Thread.start

        def refuse(thread: Any) -> None:
            if thread.name == "http-worker":
                raise RuntimeError("can't start new thread")
            start(thread)
        demo: Any = server.demo
        with mock.patch.object(threading.Thread, "start", refuse), demo._lock:
            waiting = threading.Thread(target=ask, args=(server, "GET", "/alpha/jobs/devcluster/x"))
            waiting.start()
            wait_for(lambda: any("no thread can be started" in line for line in lines))
        waiting.join()
        self.assertGreater(server.http.refusals["threads"], 0)

    def test_a_read_with_a_body_or_a_hidden_wait_harms_nobody_who_asks_the_same(self) -> None:
        server = self.serve()
        path = "/alpha/jobs/devcluster/www-data"
        etag = ask(server, "GET", path).headers["etag"]
        with server.demo._lock:
            answers: Any = []
            requests = [(path, {"body": "x"}), (path, {}), (path + "?w%61it=0.3", {"If_None_Match": etag}),
                        (path + "?w%61it=0.3", {"If_None_Match": etag})] * 5
            threads = [threading.Thread(target=lambda path=path,
                                        more=more: answers.append((bool(more.get("body")), "?" in path, ask(
                server, "GET", path, **more).status))) for path, more in requests]
            for each in threads:
                each.start()
            wait_for(lambda: len(answers) == 5 and sum(c.busy for c in list(server.http.connections)) == 15)
        for each in threads:
            each.join()
        self.assertEqual(sorted(answers), sorted([(True, False, 400), (False, False, 200), (False, True, 304),
                                                  (False, True, 304)] * 5))

    def test_ready_is_known_within_a_second_whatever_the_clusters_and_however_busy_the_slots(self) -> None:
        hang = FakeScheduler(lambda sock, body: threading.Event().wait(2))
        self.addCleanup(hang.close)
        good = FakeScheduler(answering(tiers_answer))
        self.addCleanup(good.close)
        clusters: Any = dict({"dead%d" % n: hang.url for n in range(6)}, good=good.url)
        server = aurora_rest.Server(port=0, clusters=clusters, evaluator=Serving.evaluator(),
                                    scheduler={"parallel": 1}).start()
        self.addCleanup(server.stop, 0.5)
        scheduler = server.service.clusters["good"]
        scheduler.semaphore.enter(1)
        started = time.monotonic()
        answer = ask(server, "GET", "/ready")
        self.assertLess(time.monotonic() - started, 2.5)
        scheduler.semaphore.leave()
        self.assertEqual((answer.status, answer.json["clusters"]["good"]["ready"],
                          answer.json["clusters"]["dead1"]["ready"]),
                         (200, True, False))
        asked = len(good.requests)
        for _ in range(20):
            ask(server, "GET", "/ready")
        self.assertLessEqual(len(good.requests) - asked, 20)

    def test_connections_beyond_the_limit_get_503_and_the_others_live(self) -> None:
        server = self.serve(connections=3, idle_time=30)
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        wait_for(lambda: len(server.http.connections) == 3)
        self.assertEqual(statuses(raw(server, b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n\r\n")),
                         [503])
        for each in held:
            each.sendall(b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertTrue(each.recv(4096).startswith(b"HTTP/1.1 200"))
            each.close()
        wait_for(lambda: not server.http.connections)

    def test_a_full_queue_is_503_and_health_still_answers(self) -> None:
        server = self.serve(threads=1, queue=2)
        answers: Any = []
        with server.demo._lock:
            threads = [threading.Thread(target=lambda n=n: answers.append(ask(
                server, "GET", "/alpha/jobs/devcluster/role%d" % n).status)) for n in range(8)]
            for each in threads:
                each.start()
            wait_for(lambda: 4 <= answers.count(503) == server.http.refusals["queue"])
            self.assertEqual(ask(server, "GET", "/health").status, 200)
        for each in threads:
            each.join()
        self.assertEqual(set(answers), {200, 503})
        self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/www-data").status, 200)

    def test_many_requests_on_one_connection_leave_room_for_others(self) -> None:
        server = self.serve()
        turns: Any = []
        soon = server.http.loop.soon

        def noted(function: Any, *more: Any) -> Any:
            turns.append(function.__name__)
            return soon(function, *more)
        with mock.patch.object(server.http.loop, "soon", noted):
            data = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 99 +
                       b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        self.assertEqual(statuses(data), [200] * 100)
        self.assertGreaterEqual(turns.count("advance"), 10)

    def test_who_is_idle_is_let_go_when_it_drains_and_no_write_is_begun(self) -> None:
        server = self.serve(idle_time=60)
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        idle.request("GET", "/health")
        idle.getresponse().read()
        wait_for(lambda: not any(c.busy for c in list(server.http.connections)))
        with server.demo._lock:
            busy = threading.Thread(target=ask, args=(server, "GET", "/alpha/jobs/devcluster/www-data"))
            busy.start()
            wait_for(lambda: any(c.busy for c in list(server.http.connections)))
            drain = threading.Thread(target=server.http.drain, args=(20.0,))
            drain.start()
            self.assertEqual(idle.sock.recv(100), b"")
            self.assertTrue(drain.is_alive())
        busy.join()
        drain.join()
        with self.assertRaises(aurora_rest.ShuttingDown):
            request = aurora_rest.Request(aurora_rest.parse_head(b"PUT %sx HTTP/1.1\r\nHost: localhost" %
                    JOB.encode()), b"", "127.0.0.1", "i")
            server.service.prepare(request)
            server.service.answer(request, request.route)

    def test_the_server_stops_although_a_handler_hangs(self) -> None:
        server = self.serve(threads=2)
        with server.demo._lock:
            sock = socket.create_connection(("127.0.0.1", server.port))
            self.addCleanup(sock.close)
            sock.sendall(b"GET /alpha/jobs/devcluster/www-data HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: any(c.busy for c in list(server.http.connections)))
            started = time.monotonic()
            server.http.shutdown()
            self.assertLess(time.monotonic() - started, 5)
        self.assertEqual(sock.recv(100), b"")

    def test_what_is_remembered_is_bounded_and_the_least_used_forgotten(self) -> None:
        self.addCleanup(setattr, aurora_rest.Kept, "OVERHEAD", aurora_rest.Kept.OVERHEAD)
        aurora_rest.Kept.OVERHEAD = 0
        memory = aurora_rest.Memory(1000)
        ask = aurora_rest.Scheduler.prepare("getJobs")

        def keep(question: Any, size: Any) -> None:
            asks = [ask._replace(message=b"", known=aurora_rest.Known(b"x" * size))]
            memory.keep(question, aurora_rest.Kept((), asks, aurora_rest.Response(204, body=b"")))
        for question in "abc":
            keep(question, 300)
        taken = memory.take("a")
        self.assertEqual((list(memory._kept), memory.size), (["b", "c"], 900))
        memory.free(taken.size)
        memory.keep("a", taken)
        keep("d", 300)
        self.assertEqual((list(memory._kept), memory.size), (["c", "a", "d"], 900))
        keep("a", 400)
        self.assertEqual((list(memory._kept), memory.size), (["c", "d", "a"], 1000))
        keep("c", 2000)     # larger than all there is: not kept, and nor is what was there
        self.assertEqual((list(memory._kept), memory.size), (["d", "a"], 700))
        memory.forget(60)
        self.assertEqual(memory.size, 700)
        memory.forget(0)
        self.assertEqual((memory.size, memory.take("a")), (0, None))

    def test_what_is_being_worked_on_is_counted_and_makes_room_for_itself(self) -> None:
        memory = aurora_rest.Memory(1000)
        kept = type("Kept", (), {"size": 400})
        memory.keep("a", kept)
        memory.keep("b", kept)
        self.assertTrue(memory.claim(500))
        self.assertEqual((list(memory._kept), memory.size), (["b"], 900))
        self.assertIs(memory.take("b"), kept)
        self.assertEqual((memory.claim(200), memory.size), (False, 900))
        memory.free(900)
        self.assertEqual((memory.claim(1000), memory.size), (True, 1000))

    def test_of_many_different_large_replies_few_are_held(self) -> None:
        held: Any = collections.Counter()
        most: Any = []
        reply, all_there = large_reply(b"x"), threading.Event()

        def answer(body: Any) -> Any:
            if body[8:15] != b"getJobs":
                return tiers_answer(body)
            return http_answer(200, reply)
        decode = aurora_rest.Scheduler.decode

        def counting(scheduler: Any, ask: Any, body: Any) -> Any:
            held["now"] += 1
            most.append(held["now"])
            all_there.wait(0.05)
            found = decode(scheduler, ask, body)
            held["now"] -= 1
            return found
        with FakeScheduler(answering(answer)) as fake, mock.patch.object(aurora_rest.Scheduler, "decode",
                                                                        counting):
            server = aurora_rest.Server(port=0, clusters={"fake": fake.url}, scheduler={"parallel": 2},
                                        limits={"remembered": 2 * len(reply)}).start()
            self.addCleanup(server.stop, 0.5)
            memory: Any = server.service.memory
            sizes: Any = []
            claim = memory.claim

            def claimed(size: int) -> bool:
                fits = claim(size)
                sizes.append(memory.size)
                return bool(fits)
            memory.claim = claimed
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda number: ask(
                    server, "GET", "/alpha/jobs/fake/role%d" % (number % 16)).status, range(48)))
            self.assertEqual(set(answers), {200})
            self.assertLessEqual(max(most), 2)
            self.assertLessEqual(max(sizes), 2 * len(reply))
            self.assertEqual(memory.size, sum(kept.size for kept, _ in memory._kept.values()))

    def test_many_small_answers_are_bounded_too(self) -> None:
        server = self.serve(remembered=100000)
        for number in range(60):
            ask(server, "GET", "/alpha/jobs/devcluster/nobody?name=%d%s" % (number, "x" * 5000))
        self.assertLess(len(server.service.memory._kept), 10)
        self.assertLessEqual(server.service.memory.size, 100000)

    def test_what_is_gone_is_404_also_where_its_answer_was_remembered(self) -> None:
        server = self.serve()
        scheduler = server.service.clusters["devcluster"]
        scheduler.createJob(config("gone"))
        server.demo.advance(5)
        update = scheduler.startJobUpdate(update_request(config("gone", "other")),
                                          None).result.startJobUpdateResult.key.id
        path = JOB + "gone/updates/" + update
        server.demo.advance(120)
        self.assertEqual([ask(server, "GET", path).status for _ in range(2)], [200, 200])
        refusal = aurora_rest._Refusal("Invalid update")
        # as some schedulers say it
        with mock.patch.object(aurora_rest.Demo, "getJobUpdateDetails", side_effect=refusal):
            self.assertEqual([ask(server, "GET", path).status for _ in range(2)], [404, 404])
        self.assertEqual(ask(server, "GET", path).status, 200)
        with server.demo._lock:
            server.demo._updates.clear()
        self.assertEqual([ask(server, "GET", path).status for _ in range(2)], [404, 404])

    def test_a_remembered_answer_takes_no_more_than_is_counted(self) -> None:
        answer = aurora_rest.Response(200, {"status": "success", "x": list(range(1000))})
        kept = aurora_rest.Kept(("q",), [], answer)
        self.assertIsNone(answer.plain)
        self.assertGreater(kept.size, len(answer.body) + len(answer.compressed))

    def test_somebody_reads_on_whichever_thread_just_took_something(self) -> None:
        server = self.serve(threads=1)
        taken, go_on, through, held = (threading.Event() for _ in range(4))
        self.addCleanup(go_on.set)
        real, first = server.http.workers.queue, through.set

        # a queue whose takers are held up before they can say that they are idle no more
        class SlowToSay:
            def put(self, item: Any) -> None:
                real.put(item)

            def qsize(self) -> Any:
                return real.qsize()

            def get(self, timeout: Any) -> Any:
                item = real.get(timeout=timeout)
                if all(item is not each for each in (None, aurora_rest._LEAD, first)):
                    taken.set()
                    go_on.wait(5)
                return item
        ask(server, "GET", "/alpha/jobs/devcluster/www-data")
        server.http.workers.queue = SlowToSay()
        real.put(first)     # for whoever waits in the other queue, or in this one by now
        with server.http.workers._lock:
            server.http.workers._queued += 1
        self.assertTrue(through.wait(5))
        server.http.run_in_worker(lambda: held.wait(5))
        self.addCleanup(held.set)
        self.assertTrue(taken.wait(5))
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            with server.demo._lock:
                sock.sendall(b"GET /alpha/jobs/devcluster/batch HTTP/1.1\r\nHost: localhost\r\n\r\n")
                wait_for(lambda: any(c.busy for c in list(server.http.connections)))
                self.assertEqual(ask(server, "GET", "/health", timeout=3).status, 200)
            go_on.set()
            held.set()
            self.assertTrue(sock.recv(100).startswith(b"HTTP/1.1 200"))

    def test_a_list_larger_than_the_memory_is_answered_all_the_same(self) -> None:
        server = self.serve(remembered=0)
        for _ in range(3):
            self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/www-data").json["count"], 2)
        self.assertEqual(server.service.memory.size, 0)

    def test_a_body_is_refused_before_it_is_held(self) -> None:
        server = self.serve(bodies=1000)
        for line, status in ((b"PUT /nope", 404), (b"PUT /alpha/version", 405),
                             (b"PUT %sx" % JOB.encode(), 503)):
            data = raw(server, line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
            self.assertEqual(statuses(data), [status])
        self.assertEqual(ask(server, "POST", JOB + "hello/inspect", source()).status, 200)
        wait_for(lambda: not server.http.bodies.all and not server.http.bodies.by_caller)

    def test_no_wake_up_of_the_reading_thread_is_lost(self) -> None:
        server = self.serve()

        def work() -> None:
            for _ in range(60):
                ask(server, "GET", "/alpha/jobs/devcluster/www-data")
        threads = [threading.Thread(target=work) for _ in range(12)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        done = threading.Event()
        for _ in range(3):
            done.clear()
            server.http.loop._timers[:] = [aurora_rest.Timer((when + 3600, serial, function)) for when,
                                           serial, function in server.http.loop._timers]
            server.http.loop.soon(done.set)     # no timer will wake it; only this
            self.assertTrue(done.wait(10))

    def test_a_reader_that_does_not_read_is_dropped(self) -> None:
        server = self.serve()
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                sock.settimeout(3)
                sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
            wait_for(lambda: not server.http.connections)

    def test_idle_connections_cost_no_thread(self) -> None:
        server = self.serve(idle_time=60, header_time=60)
        before = threading.active_count()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        for each in held:
            each.sendall(b"GET /alpha/ver")
        wait_for(lambda: len(server.http.connections) >= 300)
        self.assertLessEqual(threading.active_count(), before + 2)
        self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/www-data").status, 200)
        for each in held:
            each.close()

    def test_hostile_streams_and_head_do_not_leak_watchers(self) -> None:
        server = self.serve()
        server.demo.advance(5)
        path = "/alpha/job/devcluster/www-data/prod/hello/events"
        for _ in range(5):
            self.assertEqual(ask(server, "HEAD", path).status, 200)
        stream = Events(server, path)
        epoch = stream.next()[0].split("-")[0]
        for mark in ("\u00b2", "9" * 5000, "-1", "x"):
            data = raw_event = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            data.sendall(("GET %s HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: %s-%s\r\n\r\n" % (
                path, epoch, mark)).encode("latin-1"))
            self.assertTrue(data.recv(100).startswith(b"HTTP/1.1 200"))
            raw_event.close()
        stream.close()
        wait_for(lambda: server.service.watched.count == 0)

    def test_a_repeated_request_is_answered_although_the_first_caller_was_reset(self) -> None:
        demo = aurora_rest.Demo(speed=20)
        server = aurora_rest.Server(port=0, demo=demo, evaluator=Serving.evaluator(),
                                    poll_interval=0.05).start()
        self.addCleanup(server.stop, 0.5)
        wait_for(lambda: ask(server, "GET",
                             "/alpha/job/devcluster/www-data/prod/hello").json["stats"] == {"RUNNING": 2})
        path = "/alpha/job/devcluster/www-data/prod/hello/restart?shards=0&watch_secs=0.3&wait=20"
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.sendall(("PUT %s HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: z\r\n\r\n" % path).encode())
        wait_for(lambda: server.service.operations.running)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        again = ask(server, "PUT", path, Idempotency_Key="z")
        self.assertEqual((again.status, again.json["reached"], again.headers["idempotency-replayed"]),
                         (200, True, "true"))
        self.assertEqual(len(server.service.operations.all()), 1)

    def test_waiting_reads_that_are_the_same_are_all_answered(self) -> None:
        server = self.serve()
        server.demo.advance(5)
        path = "/alpha/job/devcluster/www-data/prod/hello/config"
        etag = ask(server, "GET", path).headers["etag"]
        answers: Any = []
        threads = [threading.Thread(target=lambda: answers.append(ask(server, "GET", path + "?wait=0.5",
                If_None_Match=etag).status))
                   for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(answers, [304] * 20)


class FaultTest(unittest.TestCase):
    """What callers get while the scheduler misbehaves, and that all is well afterwards."""

    def test_every_fault_has_its_code_within_its_deadline(self) -> None:
        def reset(sock: Any, body: Any) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def hang(sock: Any, body: Any) -> None:
            threading.Event().wait(2)
        faults = (
            (reset, 502), (lambda sock, body: None, 502), (hang, 504),
            (answering(lambda body: http_answer(500, b"<html>")), 502),
            (answering(lambda body: http_answer(503, b"<html>")), 503),
            (answering(lambda body: http_answer(401)), 401),
            (answering(lambda body: http_answer(403)), 403),
            (answering(lambda body: http_answer(200, b"<html>hi</html>")), 502),
            (answering(lambda body: http_answer(200, tiers_answer(body)[-40:-20])), 502),
            (answering(lambda body: thrift_answer(body, 6)), 503),
            (answering(lambda body: thrift_answer(body, 2)), 502),
            (answering(lambda body: http_answer(200, b"\x80\x01\0\x02\0\0\0\x07getJobs\0\0\0\0" +
                                                b"\x0c\0\x02" * 20000)), 502))
        for script, status in faults:
            with FakeScheduler(script) as fake, aurora_rest.Server(
                    port=0, clusters={"far": fake.url}, evaluator=Serving.evaluator(),
                    scheduler={"timeout": 1.0, "retry_for": 0.3}) as server:
                started = time.monotonic()
                answer = ask(server, "GET", "/alpha/jobs/far/www-data")
                self.assertEqual((answer.status, answer.json["status"]), (status, "failure"), answer)
                kill = ask(server, "DELETE", "/alpha/job/far/www-data/devel/x")
                self.assertEqual(kill.status, status, kill)
                self.assertLess(time.monotonic() - started, 5)
                self.assertLessEqual(sum(b"killTasks" in body for _, body in fake.requests), 4
                                     if status == 503 else 1, status)
                gate = server.service.clusters["far"].semaphore
                self.assertEqual((gate.inside, gate.waiting), (0, 0))
                self.assertEqual(ask(server, "GET", "/health").status, 200)
                if status != 401 and status != 403:
                    self.assertEqual(ask(server, "GET", "/ready").status, 503)
                server.stop(0.2)

    def test_the_server_starts_without_a_scheduler_and_recovers_when_one_appears(self) -> None:
        port = free_port()
        with aurora_rest.Server(port=0, clusters=[aurora_rest.Cluster(None, ("http://127.0.0.1:%d" % port,))],
                                evaluator=Serving.evaluator(), scheduler={"retry_for": 0.0}) as server:
            self.assertEqual(ask(server, "GET", "/alpha/jobs/late/www-data").status, 502)
            self.assertEqual(ask(server, "GET", "/ready").status, 503)
            demo = aurora_rest.Demo("late", speed=0)
            demo.start(port)
            self.addCleanup(demo.stop)
            wait_for(lambda: ask(server, "GET", "/alpha/jobs/late/www-data").status == 200)
            self.assertEqual(ask(server, "GET", "/ready").json["clusters"]["late"]["ready"], True)
            missing = ask(server, "GET", "/alpha/jobs/early/www-data")
            self.assertEqual((missing.status, missing.json["errors"]),
                             (404, ["unknown cluster early; known: late"]))

    def test_a_scheduler_that_comes_back_without_a_leader_closes_the_circuit(self) -> None:
        leaderless = [True]
        with FakeScheduler(answering(lambda body: http_answer(503) if leaderless[0]
                                     else tiers_answer(body))) as fake:
            scheduler = aurora_rest.Scheduler(fake.url, retry_for=0.0)
            scheduler.network.circuit(scheduler.leadership.named[0]).failures = 10
            with self.assertRaises(aurora_rest.NoLeader):
                scheduler.getTierConfigs()
            leaderless[0] = False
            scheduler.getTierConfigs()

    def test_mutated_requests_and_answers_bring_nothing_down(self) -> None:
        """Seeded; AURORA_REST_FUZZ=N multiplies the numbers."""
        import random
        chance = random.Random(20)
        times = int(os.environ.get("AURORA_REST_FUZZ", "1"))
        seeds = [b"GET /alpha/jobs/devcluster/www-data?limit=1 HTTP/1.1\r\nHost: "
                 b"localhost\r\nAccept-Encoding: gzip\r\n\r\n",
                 b"PUT /alpha/job/devcluster/www-data/devel/x?shards=1-3 HTTP/1.1\r\nHost: "
                 b"localhost\r\nContent-Length: 5\r\n\r\nabcde",
                 b"POST /alpha/rpc/devcluster/getJobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
                 b"chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
        pieces = [b"\r\n", b"\n", b"\0", b" ", b":", b"%", b"chunked", b"Content-Length: 3\r\n", b"\xff",
                  b"9" * 30, b"HTTP/1.1", b"/",
                  b"Expect: 100-continue\r\n", b"wait=0.01&", b"If-None-Match: *\r\n"]

        def mutated(data: Any) -> Any:
            data = bytearray(data)
            for _ in range(chance.randint(1, 6)):
                at = chance.randrange(len(data) + 1)
                kind = chance.random()
                if kind < 0.4:
                    data[at:at + chance.randint(0, 4)] = chance.choice(pieces)
                elif kind < 0.7 and at < len(data):
                    data[at] = chance.randrange(256)
                else:
                    del data[at:at + chance.randint(1, 20)]
            return bytes(data)
        lines: Any = []
        with aurora_rest.Server(port=0, demo=aurora_rest.Demo(speed=0), evaluator=Serving.evaluator(),
                                log=lines.append) as server:
            for _ in range(25 * times):
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
                    with contextlib.suppress(OSError):
                        sock.sendall(b"".join(mutated(chance.choice(seeds)) for _ in range(40)))
                        sock.shutdown(socket.SHUT_WR)
                        data = b""
                        while True:
                            part = sock.recv(65536)
                            if not part:
                                break
                            data += part
                        self.assertNotIn(500, statuses(data))
            self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/www-data").status, 200)
        self.assertFalse([line for line in lines if line.startswith("error") or "status=500" in line])
        good = aurora_rest.encode_reply(BINARY, "getJobs", 0, api.Response(
            responseCode=1, details=[],
            result=api.Result(getJobsResult=api.GetJobsResult(configs={config().replace()}))))
        for _ in range(2000 * times):
            data = mutated(good)
            for wanted in (None, aurora_rest.projection("job keys")):
                with contextlib.suppress(aurora_rest.BadMessage):
                    aurora_rest.decode_reply(BINARY, "getJobs", data, wanted)


class ProcessTest(unittest.TestCase):
    """The command line as a process."""

    def start(self, *arguments: Any, **environment: Any) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AURORA_")}
        process: Any = subprocess.Popen([sys.executable, os.path.join(HERE, "aurora_rest.py"), *arguments],
                                   stderr=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, env=dict(clean, **environment))
        for each in (process.stderr.close, process.stdout.close, process.wait, process.kill):
            self.addCleanup(each)
        return process

    def serve(self, *arguments: Any, **environment: Any) -> Any:
        """(the process, something with a port, the lines it logged until it served)."""
        process = self.start("--port=0", *arguments, **environment)
        lines: Any = []
        while not lines or " serving " not in lines[-1]:
            line = process.stderr.readline()
            self.assertTrue(line, lines)
            lines.append(line)
        made = type("Running", (), {})()
        made.port = int(matched(r"://\S+:(\d+)", lines[-1]).group(1))
        return process, made, lines

    def test_as_a_module_it_is_compiled_once(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            environment = dict(os.environ, PYTHONPYCACHEPREFIX=folder)
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            written = []
            for _ in range(2):
                done = subprocess.run([sys.executable, "-m", "aurora_rest", "--version"], cwd=HERE,
                                      env=environment, stdout=subprocess.PIPE, text=True, check=True)
                self.assertEqual(done.stdout.split()[0], "aurora_rest")
                made, = glob.glob(os.path.join(folder, "**", "aurora_rest.*.pyc"), recursive=True)
                written.append(os.stat(made).st_mtime_ns)
            self.assertEqual(written[0], written[1])


    def test_the_original_command_line_serves_and_sigterm_ends_it_with_0(self) -> None:
        process, server, _ = self.serve("--executor=internal", "--application=thread", "--parallel=4",
                                        "--demo")
        self.assertEqual(ask(server, "GET", "/alpha/jobs/devcluster/www-data").json["count"], 2)
        self.assertEqual(ask(server, "PUT", JOB + "hello", source()).status, 201)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(15), 0)
        self.assertIn("stopped", process.stderr.read())

    def test_stopping_lets_requests_finish_ends_streams_and_tells_of_operations(self) -> None:
        process, server, _ = self.serve("--demo", "--poll-interval=0.1")
        wait_for(lambda: ask(server, "GET",
                             "/alpha/job/devcluster/www-data/prod/hello").json["stats"] == {"RUNNING": 2})
        operation = ask(server, "PUT",
                        "/alpha/job/devcluster/www-data/prod/hello/restart?watch_secs=100&wait=1&shards=0")
        self.assertEqual((operation.status, operation.json["reached"]), (202, False))
        stream = Events(server, "/alpha/job/devcluster/www-data/prod/hello/events")
        stream.next()
        again = "/alpha/job/devcluster/www-data/prod/hello/restart?watch_secs=100&force=1"
        self.assertEqual(ask(server, "PUT", again).status, 202)
        process.send_signal(signal.SIGTERM)
        kinds: Any = []
        with contextlib.suppress(EOFError):
            while True:
                kinds.append(stream.next()[1])
        self.assertEqual(kinds[-1], "end")
        self.assertEqual(process.wait(20), 0)
        self.assertRegex(process.stderr.read(),
                         r"operation id=\S+ kind=restart key=devcluster/www-data/prod/hello .*"
                         r"ended=interrupted done=0 failed=0 total=2")
        stream.close()

    def test_options_that_cannot_be_followed_are_one_line_and_exit_2(self) -> None:
        for arguments in (("--executor=mesos",), ("--application=tornado",), ("--host=0.0.0.0",),
                          ("--nonsense",), ("--port=x",),
                          ("--tokens=/nonexistent",), ("--clusters=/nonexistent",), ("--demo=a b",),
                          ("--parallel=0",)):
            process = self.start(*arguments)
            out, err = process.communicate(timeout=20)
            self.assertEqual((process.returncode, out, err.count("\n")), (2, "", 1), (arguments, err))
            self.assertNotIn("Traceback", err)

    def test_a_port_in_use_is_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            process = self.start("--demo", "--port=%d" % taken.getsockname()[1])
            _, err = process.communicate(timeout=20)
            other = self.start("--demo", "--port=0", "--demo-port=%d" % taken.getsockname()[1])
            _, demo_err = other.communicate(timeout=20)
        self.assertEqual((process.returncode, err.count("\n")), (2, 1), err)
        self.assertIn("Address already in use", err)
        self.assertEqual((other.returncode, demo_err.count("\n")), (2, 1), demo_err)
        self.assertRegex(demo_err, "the demo scheduler cannot listen on --demo-port=.*Address already in use")

    @unittest.skipUnless(hasattr(os, "sched_getaffinity"), "Linux only")
    def test_it_keeps_to_one_processor_and_its_evaluators_do_not(self) -> None:
        known = sorted(os.sched_getaffinity(0))
        process, server, _ = self.serve("--demo", "--quiet", "--cpu", str(known[-1]))
        self.assertEqual(ask(server, "POST", JOB + "hello/inspect", source()).status, 200)
        children: Any = []
        for thread in os.listdir("/proc/%d/task" % process.pid):
            self.assertEqual(os.sched_getaffinity(int(thread)), {known[-1]})
            with open("/proc/%d/task/%s/children" % (process.pid, thread), encoding="ascii") as stream:
                children += stream.read().split()
        self.assertTrue(children)
        # one that has just started says so itself
        wait_for(lambda: all(sorted(os.sched_getaffinity(int(child))) == known for child in children))
        refused = self.start("--demo", "--cpu", "4711")
        self.assertIn("--cpu=4711: one of auto, all, ", refused.stderr.read())
        self.assertEqual(refused.wait(20), 2)

    @unittest.skipUnless(hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1,
                         "Linux with two processors only")
    def test_all_its_threads_move_to_the_processor_with_clearly_more_room(self) -> None:
        code = """
            import aurora_rest, os, threading
            known, leave = aurora_rest.processors(), threading.Event()
            affinity = aurora_rest.Affinity("auto")
            affinity.begin()
            for _ in range(5):
                threading.Thread(target=leave.wait, daemon=True).start()

            def where():
                return {tuple(os.sched_getaffinity(int(one))) for one in os.listdir("/proc/self/task")}
            here = affinity.cpu
            there = next(each for each in known if each != here)
            assert where() == {(here,)}, where()
            for own, idle, wanted in (
                    (0.5, {here: 0.0, there: 0.7}, here),       # what it took itself is room, too
                    (0.5, {here: 0.0, there: 0.8}, there), (0.5, {here: 0.5, there: 0.9}, here),
                    (0.2, {here: 0.1, there: 0.6}, there), (0.9, {}, here), (0.9, {there: 1.0}, here)):
                assert affinity.roomiest(here, own, idle) == wanted, (own, idle)
            figures = [{here: 100.0, there: 100.0}, {here: 100.0, there: 1e6}]
            aurora_rest._idle_times = lambda: figures.pop(0)
            affinity.WORKS = -1.0
            while figures:
                affinity._due = 0.0
                affinity.look()
            assert (affinity.cpu, where()) == (there, {(there,)}), (affinity.cpu, where())
            affinity.WORKS, affinity._due = 2.0, 0.0
            affinity.look()         # who does nothing does not even look
            leave.set()
            assert aurora_rest.Affinity("all").cpu is None
            """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE,
                              text=True, cwd=HERE)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    @unittest.skipUnless(hasattr(os, "sched_getaffinity"), "Linux only")
    def test_it_runs_on_one_processor_unless_told_otherwise_and_says_which(self) -> None:
        known = sorted(os.sched_getaffinity(0))
        for options, wanted in (((), 1), (("--cpu", "all"), len(known))):
            process, _, lines = self.serve("--demo", *options)
            self.assertEqual(len(os.sched_getaffinity(process.pid)), wanted)
            one = re.search(r" cpu=(\d+)", lines[-1])
            self.assertEqual(one is not None, wanted == 1 < len(known))
            if one:
                self.assertEqual(os.sched_getaffinity(process.pid), {int(one.group(1))})

    def test_options_come_from_the_environment_too(self) -> None:
        _, server, _ = self.serve(AURORA_REST_DEMO="moon", AURORA_REST_QUIET="1", AURORA_REST_DEMO_JOBS="3")
        self.assertEqual(ask(server, "GET", "/alpha/jobs/moon/load-000").json["count"], 3)

    def write(self, text: Any) -> Any:
        """The path of a new file that holds the text."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "aurora.ini")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        return path

    def lines_until(self, process: Any, text: Any) -> Any:
        """The lines that the process logs, up to the one that holds the text."""
        lines = [""]
        while text not in lines[-1]:
            line = process.stderr.readline()
            self.assertTrue(line, lines)
            lines.append(line)
        return lines

    def test_the_command_line_comes_before_the_environment_and_that_before_the_file(self) -> None:
        path = self.write("; mine\n[clusters]\nscheduler = a=http://a:1\n    b=http://b:1\n# more\n"
                          "[serving]\nparallel = 7\nquiet\nretry-for = 1.5\ndemo\n")
        options = aurora_rest.parse_command_line(
            ["--config", path, "--parallel=9"], {"AURORA_REST_PARALLEL": "8", "AURORA_REST_RETRY_FOR": "2"})
        self.assertEqual((options.parallel, options.retry_for, options.quiet, options.demo,
                          options.scheduler), (9, 2.0, True, "devcluster", ["a=http://a:1", "b=http://b:1"]))
        self.assertEqual([options.origins[each] for each in ("parallel", "retry-for", "quiet", "port")],
                         ["command", "environment", "file", "default"])
        with open(self.write(aurora_rest.config_text(options)), encoding="utf-8") as printed:
            again = aurora_rest.parse_command_line([], {"AURORA_REST_CONFIG": printed.name})
        for option in aurora_rest.OPTIONS:
            if option.group != "commands":
                self.assertEqual(getattr(again, option.dest), getattr(options, option.dest), option.name)

    def test_every_option_is_read_from_the_file_and_the_environment(self) -> None:
        for option in aurora_rest.OPTIONS:
            if option.group == "commands":
                continue
            text = {bool: "yes", int: "17", float: "17.5"}.get(option.kind, "word")
            wanted = ["word"] if option.kind is list else {"yes": True}.get(text) or (
                option.kind(text) if option.kind in (int, float) else text)
            variable = "AURORA_REST_" + option.name.upper().replace("-", "_")
            path = self.write("%s = %s" % (option.name, text))
            both: Any = ([], {variable: text}), (["--config=" + path], {})
            for given in both:
                self.assertEqual(getattr(aurora_rest.parse_command_line(*given), option.dest), wanted, given)

    def test_a_name_that_is_no_option_is_told_with_the_nearest(self) -> None:
        for text, says in (("prot = 1", "line 1: there is no option prot; did you mean port"),
                           ("\nport = 1\nport = 2", "line 3: port is given twice"),
                           ("port = x", "line 1: port: expected a number"),
                           ("port", "port: it needs a value"),
                           ("config = y", "config is for the command line")):
            with self.assertRaisesRegex(aurora_rest.UsageError, says):
                aurora_rest.parse_command_line(["--config", self.write(text)], {})
        with self.assertRaisesRegex(aurora_rest.UsageError, "AURORA_REST_TOKNES: .* did you mean tokens"):
            aurora_rest.parse_command_line([], {"AURORA_REST_TOKNES": "x"})

    def test_check_says_what_would_be_served_and_listens_nowhere(self) -> None:
        path = self.write("scheduler = west=http://w:8081\nport = 1\nhost = ::\nallow-anonymous = yes")
        done = self.start("--check", "--config", path)
        out, err = done.communicate(timeout=20)
        self.assertEqual((done.returncode, err), (0, ""))
        for text in ("would serve http://[::]:1", "cluster west: http://w:8081",
                     "anonymous callers may do all", "--port=1 (file)"):
            self.assertIn(text, out)
        for bad in (("--tokens=/nonexistent",), ("--config=/nonexistent",), ("--tls-cert=" + path,),
                    ("--audit-log=/nonexistent/x",), ("--cpu=4711",),
                    ("--host=999.1.1.1", "--allow-anonymous"), ("--client-ca=" + path, "--tls-cert=" + path)):
            done = self.start("--check", "--demo", *bad)
            self.assertEqual((done.communicate(timeout=20)[1].count("\n"), done.returncode), (1, 2), bad)
        done = self.start("--print-config", "--config", path)
        self.assertIn("\nport = 1\n# host = 127.0.0.1\n".replace("# host = 127.0.0.1", "host = ::"),
                      done.communicate(timeout=20)[0])

    def test_sighup_puts_in_force_what_can_change_and_says_what_did(self) -> None:
        token, line = aurora_rest.new_token("a:read")
        tokens, path = self.write(line), self.write("timeout = 20\nparallel = 4\n")
        process, server, _ = self.serve("--demo", "--config", path, "--tokens", tokens)
        boss, second = aurora_rest.new_token("boss:admin")
        with open(tokens, "w", encoding="utf-8") as stream:
            stream.write(second)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("timeout = 7\nparallel = 5\n")
        process.send_signal(signal.SIGHUP)
        told = "".join(self.lines_until(process, " reloaded changed="))
        for text in ("timeout=7", "+boss", "-a", "parallel=5 takes a restart; 4 is still in force"):
            self.assertIn(text, told)
        options = ask(server, "GET", "/alpha/server", Authorization="Bearer " + boss).json["options"]
        self.assertEqual([options[each] for each in ("timeout", "parallel", "demo")], [
            {"value": 7.0, "from": "file"}, {"value": 4, "from": "file"},
            {"value": "devcluster", "from": "command"}])
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("timeot = 7")
        process.send_signal(signal.SIGHUP)
        told = "".join(self.lines_until(process, " reloaded changed="))
        self.assertIn("settings not reloaded", told)
        self.assertIn("reloaded changed=- ", told)

    @contextlib.contextmanager
    def activated(self, doors: Any, *arguments: str) -> Any:
        """A server that systemd has given these listening sockets."""
        begin = ("import os, sys; os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))\n"
                 "for at, given in enumerate(sys.argv[2:4]): os.dup2(int(given), 100 + at)\n"
                 "for at in (0, 1): os.dup2(100 + at, 3 + at)\n"
                 "os.execv(sys.executable, [sys.executable, sys.argv[1], '--demo', *sys.argv[4:]])")
        process = subprocess.Popen(
            [sys.executable, "-c", begin, os.path.join(HERE, "aurora_rest.py"),
             *(str(each.fileno()) for each in doors), *arguments],
            pass_fds=[each.fileno() for each in doors], stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            self.assertEqual(process.wait(20), 0)

    def test_all_sockets_that_systemd_passes_are_served(self) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as port, (
                socket.socket(socket.AF_UNIX)) as door:
            door.bind(os.path.join(folder, "door"))
            door.listen()
            with self.activated((port, door)), socket.create_connection(port.getsockname(), 20) as first, (
                    socket.socket(socket.AF_UNIX)) as second:
                second.connect(door.getsockname())
                for each in (first, second):
                    each.settimeout(20)
                    each.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    self.assertEqual(each.recv(12), b"HTTP/1.1 200")

    def test_one_socket_beyond_loopback_makes_a_server_that_others_may_name(self) -> None:
        with socket.create_server(("0.0.0.0", 0)) as wide, socket.create_server(("127.0.0.1", 0)) as narrow:
            for doors in ((wide, narrow), (narrow, wide)):
                with self.activated(doors, "--host=0.0.0.0", "--allow-anonymous"), (
                        socket.create_connection(("127.0.0.1", wide.getsockname()[1]), 20)) as caller:
                    caller.settimeout(20)
                    caller.sendall(b"GET /alpha/version HTTP/1.1\r\nHost: other.example\r\n\r\n")
                    self.assertEqual(caller.recv(12), b"HTTP/1.1 200")

    def test_less_is_logged_where_less_is_wanted(self) -> None:
        path = self.write("log-level = info")
        process, server, _ = self.serve("--demo", "--config", path)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("log-level = warning\nparallel = 9")
        process.send_signal(signal.SIGHUP)
        self.lines_until(process, "--parallel=9 takes a restart")
        ask(server, "PUT", JOB + "x?nonsense=1", source())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.communicate(timeout=20)[1], "")
        with self.assertRaisesRegex(aurora_rest.UsageError, "--log-level=loud: one of info, warning, error"):
            aurora_rest.check_options(aurora_rest.parse_command_line(["--log-level=loud"], {}))

    def test_sigusr1_logs_how_things_stand(self) -> None:
        process, server, _ = self.serve("--demo")
        path = "/alpha/job/devcluster/www-data/prod/hello"
        wait_for(lambda: ask(server, "GET", path).json["stats"] == {"RUNNING": 2})
        operation = ask(server, "PUT", path + "/restart?watch_secs=100").json["operation"]["id"]
        process.send_signal(signal.SIGUSR1)
        told = "".join(self.lines_until(process, "state operation="))
        self.assertRegex(told, r"state uptime=\d+ .*connections=\d+/4096 .*operations=1/100 "
                         r".*threads=\d+/128")
        self.assertIn(operation, told)
        self.assertIn("http-worker", told)

    def test_the_log_is_json_where_it_is_asked_for_and_the_audit_log_is_opened_again(self) -> None:
        audit = self.write("")
        process = self.start("--port=0", "--demo", "--log-format=json", "--audit-log", audit)
        line = next(each for each in map(json.loads, iter(process.stderr.readline, ""))
                    if each["event"] == "serving")
        server = type("Running", (), {"port": int(line["url"].rpartition(":")[2])})()
        self.assertEqual((line["level"], line["clusters"]), ("info", ["devcluster"]))
        self.assertTrue(line["schedulers"][0].startswith("http://127.0.0.1:"))
        self.assertEqual(line["page"], line["url"] + "/")
        self.assertEqual(ask(server, "PUT", JOB + "hello", source(), X_Request_Id="j-1").status, 201)
        with open(audit, encoding="utf-8") as stream:
            found = json.loads(stream.read())
        self.assertEqual((found["event"], found["id"], found["outcome"]), ("audit", "j-1", "done"))
        os.rename(audit, audit + ".1")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: os.path.exists(audit))
        self.assertEqual(ask(server, "DELETE", JOB + "hello").status, 200)
        with open(audit, encoding="utf-8") as stream:
            self.assertEqual(json.loads(stream.read())["did"], "kill_job")
        process.send_signal(signal.SIGTERM)
        events = [json.loads(each)["event"] for each in process.communicate(timeout=20)[1].splitlines()]
        self.assertEqual(events[-1], "stopped")
        self.assertLessEqual({"access", "audit", "reloaded"}, set(events))

    def test_version_help_and_new_token(self) -> None:
        process = self.start("--version")
        self.assertEqual(process.communicate(timeout=20)[0], "aurora_rest %s\n" % aurora_rest.__version__)
        out = self.start("--help").communicate(timeout=20)[0]
        for option in aurora_rest.OPTIONS:
            self.assertIn("--" + option.name, out)
        out = self.start("--new-token=bob:read").communicate(timeout=20)[0]
        token, line = matched(r"\n  (\S+)\n.*\n  (.*)\n", out).groups()
        self.assertEqual(line, "bob read * " + aurora_rest.hash_token(token))

    def test_a_log_that_nobody_reads_stops_neither_requests_nor_signals(self) -> None:
        source_end, target_end = os.pipe()
        self.addCleanup(os.close, source_end)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen([sys.executable, os.path.join(HERE, "aurora_rest.py"), "--demo",
                                    "--port=%d" % port],
                                   stderr=target_end, stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        os.close(target_end)
        server = type("Running", (), {"port": port})()

        def answers() -> Any:
            with contextlib.suppress(OSError):
                return ask(server, "GET", "/health").status == 200
        wait_for(answers)
        padding = "x" * 7000
        for _ in range(1500):       # ten times what a pipe and the log's own room hold
            self.assertEqual(statuses(raw(server,
                    b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %s\r\n"
                                          b"Connection: close\r\n\r\n" % padding[:128].encode())), [200])
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 0)

    def test_lines_that_are_lost_are_counted_and_told(self) -> None:
        class Stalled:
            def __init__(self) -> None:
                self.go, self.text = threading.Event(), ""

            def write(self, text: Any) -> None:
                self.go.wait(20)
                self.text += text

            def flush(self) -> None:
                pass
        stream = Stalled()
        log = aurora_rest.Log(stream)
        log.ROOM = 2000
        for number in range(100):
            log("line %d %s" % (number, "x" * 40))
        self.assertFalse(log.flush(0.01))
        lost = log.lost
        self.assertGreater(lost, 50)
        stream.go.set()
        log("after")
        self.assertTrue(log.flush(10))
        wait_for(lambda: "%d log lines were lost" % lost in stream.text)
        made: Any = []      # a line that is made when it is written, by the thread that writes
        log.later(lambda word: made.append(threading.current_thread().name) or "made " + word, "later")
        self.assertTrue(log.flush(10))
        def broken_line() -> str:
            raise TypeError("no text")
        log("before")
        log.later(broken_line)      # costs itself alone
        log("behind")
        self.assertTrue(log.flush(10))
        self.assertRegex(stream.text, "before\n.*a line of the log cannot be made: TypeError.*\n.*behind\n$")
        log.least = 1
        log.later(lambda: "made never")
        self.assertTrue(log.flush(10))
        self.assertEqual((made, re.findall("made .*", stream.text)), (["log"], ["made later"]))
        for broken in (None, open(os.devnull)):     # closed before the start; not for writing
            log = aurora_rest.Log(broken)
            log.stream = broken
            log("nobody hears")
            wait_for(lambda log=log: log.lost == 1)
            if broken:
                broken.close()

    def test_it_serves_with_a_closed_standard_error(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = "exec %s %s --demo --port=%d 2>&-" % (sys.executable, os.path.join(HERE, "aurora_rest.py"),
                                                        port)
        process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        server = type("Running", (), {"port": port})()

        def answers() -> Any:
            with contextlib.suppress(OSError):
                return ask(server, "PUT", JOB + "hello", source()).status == 201
        wait_for(answers)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(15), 0)

    def test_a_loop_that_dies_ends_the_process_with_a_reason(self) -> None:
        code = ("import sys, aurora_rest\ndef turn(*_): raise OSError('select failed')\naurora_rest._greet "
                "= lambda server, cpu, log: setattr(aurora_rest.Loop, 'turn', turn) or "
                "server.http.loop.soon(print)\nsys.exit(aurora_rest.main(['--demo', '--port=0']))\n")
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True,
                              timeout=30)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("select failed", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_an_error_of_ours_at_the_start_is_one_line(self) -> None:
        code = ("import sys, aurora_rest\ndef broken(*_): raise KeyError('x')\naurora_rest._supervise = "
                "broken\nsys.exit(aurora_rest.main(['--demo', '--port=0', '--quiet']))\n")
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True,
                              timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "error error=\"KeyError: 'x'\" at=\"line")

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_a_reload_that_fails_leaves_all_as_it_was_and_each_part_for_itself(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            old, new = os.path.join(folder, "old"), os.path.join(folder, "new")
            os.mkdir(old)
            os.mkdir(new)
            certificate(old)
            certificate(new)
            live = {}
            for part in ("cert", "key"):
                live[part] = os.path.join(folder, part)
                shutil.copy(os.path.join(old, part), live[part])
            tokens = os.path.join(folder, "tokens")
            open(tokens, "w").close()
            secret = self.write("a:b")
            process, server, lines = self.serve(
                "--demo", "--tls-cert", live["cert"], "--tls-key", live["key"], "--tokens", tokens,
                "--scheduler", "other=http://127.0.0.1:1", "--scheduler-auth", "other=" + secret)

            def trusted(which: Any) -> Any:
                context = ssl.create_default_context(cafile=os.path.join(which, "cert"))
                connection = http.client.HTTPSConnection("localhost", server.port, context=context,
                                                         timeout=10)
                try:
                    connection.request("GET", "/alpha/version")
                    return connection.getresponse().status == 200
                except ssl.SSLError:
                    return False
                finally:
                    connection.close()

            def reloaded() -> Any:
                process.send_signal(signal.SIGHUP)
                while " reloaded " not in lines[-1]:
                    lines.append(process.stderr.readline())
                return lines.pop().partition(" failed=")[0]
            self.assertTrue(trusted(old))
            # renewed, and its key is not there yet
            shutil.copy(os.path.join(new, "cert"), live["cert"])
            token, line = aurora_rest.new_token("a:read")
            with open(tokens, "w", encoding="utf-8") as stream:
                stream.write(line)
            told = reloaded()
            self.assertNotIn("certificate", told)
            self.assertIn("credentials", told.partition(" same=")[2])
            self.assertIn("certificate not reloaded", "".join(lines))
            self.assertTrue(trusted(old))
            shutil.copy(os.path.join(new, "key"), live["key"])
            with open(tokens, "w", encoding="utf-8") as stream:
                stream.write("broken")
            with open(secret, "w", encoding="utf-8") as stream:
                stream.write("a:c")
            last = reloaded()
            self.assertIn("credentials (new)", last.partition(" same=")[0])
            self.assertTrue("certificate" in last and "tokens" not in last, last)
            self.assertTrue(trusted(new) and not trusted(old))

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_tls_ends_with_close_notify(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            _, server, _ = self.serve("--demo", "--tls-cert", cert, "--tls-key", key)
            context = ssl.create_default_context(cafile=cert)
            for request in (b"GET /alpha/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                            b"nonsense\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", server.port)) as sock, context.wrap_socket(
                        sock, server_hostname="localhost", suppress_ragged_eofs=False) as tls:
                    tls.sendall(request)
                    data = b""
                    while True:
                        part = tls.recv(65536)      # raises SSLEOFError where the end is only a cut
                        if not part:
                            break
                        data += part
                    self.assertTrue(data.startswith(b"HTTP/1.1 "))

    def test_sighup_reloads_tokens(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "tokens")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write("")
            process, server, _ = self.serve("--demo", "--tokens", path)
            token, line = aurora_rest.new_token("a:read")
            self.assertEqual(ask(server, "GET", "/alpha/clusters", Authorization="Bearer " + token).status,
                             401)
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(line)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: ask(server, "GET", "/alpha/clusters", Authorization="Bearer " +
                                 token).status == 200)

    def test_systemd_is_told_and_its_socket_used(self) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX,
                socket.SOCK_DGRAM) as told:
            told.bind(os.path.join(folder, "notify"))
            told.settimeout(20)
            process, _, _ = self.serve("--demo", NOTIFY_SOCKET=os.path.join(folder, "notify"),
                                       WATCHDOG_USEC="200000")
            self.assertEqual([told.recv(100), told.recv(100)], [b"READY=1", b"WATCHDOG=1"])
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(15), 0)

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_https_is_served(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            _, server, _ = self.serve("--demo", "--tls-cert", cert, "--tls-key", key)
            context = ssl.create_default_context(cafile=cert)
            connection = http.client.HTTPSConnection("localhost", server.port, context=context, timeout=10)
            for path in ("/alpha/version", "/openapi.json", "/alpha/jobs/devcluster/www-data"):
                connection.request("GET", path)
                self.assertEqual(connection.getresponse().read()[:1], b"{")
            connection.close()
            # not TLS: closed, and the server lives
            plain = raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertNotIn(b"HTTP/1.1 200", plain)

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_who_has_no_certificate_is_not_served_where_one_is_wanted(self) -> None:
        import ssl
        with tempfile.TemporaryDirectory() as folder:
            cert, key = certificate(folder)
            ca = os.path.join(folder, "ca")
            with open(cert, encoding="ascii") as stream, open(ca, "w", encoding="utf-8") as authorities:
                authorities.write("# K\xf6ln\n" + stream.read())
            process, server, _ = self.serve("--demo", "--tls-cert", cert, "--tls-key", key, "--client-ca", ca)
            with open(ca, "a", encoding="utf-8") as authorities:
                authorities.write("# \xd6\n")
            process.send_signal(signal.SIGHUP)
            self.assertIn("failed=-", self.lines_until(process, " reloaded ")[-1])
            for own in (False, True):
                context = ssl.create_default_context(cafile=cert)
                if own:
                    context.load_cert_chain(cert, key)
                connection = http.client.HTTPSConnection("localhost", server.port, context=context,
                                                         timeout=10)
                try:
                    connection.request("GET", "/alpha/jobs/devcluster/www-data")
                    served = connection.getresponse().status == 200
                except OSError:
                    served = False
                self.assertEqual(served, own)
                connection.close()


# --- 7. Demo scheduler --------------------------------------------------------------------------------------

class DemoTest(unittest.TestCase):
    """Aurora's behaviour, with a clock turned by hand."""

    def setUp(self) -> None:
        self.demo = aurora_rest.Demo(speed=0, samples=False)

    def call(self, name: Any, *arguments: Any) -> Any:
        response = self.demo.invoke(name, api.method(name).arguments(*arguments))
        return response

    def ok(self, name: Any, *arguments: Any) -> Any:
        response = self.call(name, *arguments)
        self.assertEqual(response.responseCode, api.ResponseCode.OK, response)
        return response.result

    def refused(self, code: Any, text: Any, name: Any, *arguments: Any) -> None:
        response = self.call(name, *arguments)
        self.assertEqual(api.ResponseCode.name_of(response.responseCode), code, response)
        if text is not None:
            self.assertIn(text, response.details[0].message or "")

    def tasks(self, name: Any = "hello", **query: Any) -> Any:
        found = self.ok("getTasksStatus", api.TaskQuery(jobName=name, **query)).scheduleStatusResult.tasks
        return sorted(found, key=lambda t: (t.assignedTask.instanceId, t.taskEvents[0].timestamp,
                                            -len(t.taskEvents)))

    def states(self, name: Any = "hello", **query: Any) -> Any:
        return [S.name_of(task.status) for task in self.tasks(name, **query)]

    def create(self, name: Any = "hello", count: Any = 1, **changes: Any) -> None:
        self.ok("createJob", config(name, count=count, **changes))
        self.demo.advance(2)

    def events(self, task: Any) -> Any:
        return [(S.name_of(event.status), event.message) for event in task.taskEvents]

    def update(self, job: Any, count: Any = None, **settings: Any) -> Any:
        result = self.ok("startJobUpdate", update_request(job, count, **settings), "go")
        return result.startJobUpdateResult.key

    def details(self, key: Any) -> Any:
        return self.ok("getJobUpdateDetails", None,
                       api.JobUpdateQuery(key=key)).getJobUpdateDetailsResult.detailsList[0]

    def status(self, key: Any) -> Any:
        return U.name_of(self.details(key).update.summary.state.status)

    def actions(self, key: Any) -> Any:
        return [(event.instanceId, api.JobUpdateAction.name_of(event.action))
                for event in self.details(key).instanceEvents]

    def test_docker_and_revocable_offers_are_there_only_where_the_cluster_has_them(self) -> None:
        docker = api.Container(docker=api.DockerContainer(image="x"))
        text = "This scheduler is not configured to allow the container type DOCKER"
        self.refused("INVALID_REQUEST", text, "createJob", config(container=docker))
        parameters = api.Container(docker=api.DockerContainer(image="x",
                parameters=[api.DockerParameter(name="a", value="b")]))
        self.refused("INVALID_REQUEST", "configured to disallow Docker parameters.", "createJob",
                     config(container=parameters))
        self.create("spare", tier="revocable")
        self.assertEqual(self.states("spare"), ["PENDING"])
        reasons = self.ok("getPendingReason", api.TaskQuery(jobName="spare")).getPendingReasonResult.reasons
        self.assertEqual({each.reason for each in reasons}, {"Insufficient: CPU"})
        self.demo = aurora_rest.Demo(speed=0, samples=False, docker=True, revocable=True)
        self.create("boxed", container=docker)
        self.create("spare", tier="revocable")
        self.assertEqual(self.states("boxed") + self.states("spare"), ["RUNNING"] * 2)
        self.refused("INVALID_REQUEST", "disallow Docker parameters", "createJob",
                     config("p", container=parameters))

    def test_what_fits_nowhere_waits_for_its_back_off(self) -> None:
        hosts = api.Hosts(hostNames=set(self.demo.hosts))
        self.ok("drainHosts", hosts)
        self.create("patient")
        self.demo.advance(60)
        self.assertEqual(self.states("patient"), ["PENDING"])
        self.ok("endMaintenance", hosts)
        self.demo.advance(0.9)
        self.assertEqual(self.states("patient"), ["PENDING"])       # room is no reason to look
        self.demo.advance(65)
        self.assertEqual(self.states("patient"), ["RUNNING"])

    def test_forty_tasks_a_second_are_launched(self) -> None:
        self.ok("createJob", config("many", count=100))
        self.demo.advance(1)
        waiting = self.states("many").count("PENDING")
        self.assertTrue(45 <= waiting <= 75, waiting)
        self.demo.advance(3)
        self.assertEqual(self.states("many").count("RUNNING"), 100)

    def test_thrifts_go_client_is_understood(self) -> None:
        url = self.demo.start()
        self.addCleanup(self.demo.stop)
        body = aurora_rest.encode_message(aurora_rest.TJSON, "getTierConfigs", 1, 7,
                                          api.method("getTierConfigs").arguments())
        head = ("POST /api HTTP/1.1\r\nHost: localhost\r\nAccept: "
                "application/vnd.apache.thrift.json\r\nConnection: close\r\n"
                "Content-Type: application/x-thrift\r\nContent-Type: "
                "application/x-thrift\r\nContent-Length: %d\r\n\r\n" % len(body))
        server = type("Running", (), {"port": int(url.rsplit(":", 1)[1])})()
        self.assertEqual(statuses(raw(server, head.encode() + body)), [200])

    def test_a_blank_role_finds_the_tasks_of_every_role(self) -> None:
        self.create("blank")
        self.ok("scheduleCronJob", cron_config("later"))
        for role in ("", " "):
            self.assertEqual({job.key.name for job in self.ok("getJobs", role).getJobsResult.configs},
                             {"blank"})
            self.assertEqual({each.job.key.name for each in self.ok("getJobSummary",
                    role).jobSummaryResult.summaries}, {"blank"})
        self.assertEqual({job.key.name for job in self.ok("getJobs", None).getJobsResult.configs},
                         {"blank", "later"})

    def test_what_is_due_and_fails_is_nobodys_call(self) -> None:
        job = cron_config("odd")
        # its tasks collide at the second run
        job.key = api.JobKey(role="www-data", environment="devel", name="other")
        job.cronSchedule = "* * * * *"
        self.ok("scheduleCronJob", job)
        for _ in range(4):
            self.demo.advance(60)
            self.ok("getTierConfigs")

    def test_a_committed_recovery_takes_the_scheduler_away_for_a_moment(self) -> None:
        self.ok("performBackup")
        backup = next(iter(self.ok("listBackups").listBackupsResult.backups))
        self.ok("stageRecovery", backup)
        self.ok("commitRecovery")
        self.assertTrue(self.demo.away)
        self.demo.advance(5)
        self.assertFalse(self.demo.away)

    def test_a_task_runs_and_its_replacement_follows_its_end(self) -> None:
        self.create()
        task = self.tasks()[0]
        self.assertEqual(self.events(task), [
            ("PENDING", None), ("ASSIGNED", None), ("STARTING", None),
            ("RUNNING", "No health-check defined, task is assumed healthy.")])
        self.assertRegex(task.assignedTask.taskId, r"^www-data-devel-hello-0-[0-9a-f-]{36}$")
        self.ok("restartShards", config().key, {0})
        self.demo.advance(2)
        old, new = self.tasks()
        self.assertEqual(self.events(old)[-2:], [("RESTARTING", "Restarted by UNSECURE"),
                                                 ("KILLED", "Instructed to kill task.")])
        self.assertEqual((self.events(new)[0], new.ancestorId),
                         (("PENDING", "Rescheduled"), old.assignedTask.taskId))

    def test_a_pending_task_that_is_killed_disappears(self) -> None:
        self.create(constraints={api.Constraint(name="rack", constraint=api.TaskConstraint(
            value=api.ValueConstraint(negated=False, values={"nowhere"})))})
        self.assertEqual(self.states(), ["PENDING"])
        self.ok("killTasks", config().key, None, "bye")
        self.assertEqual(self.states(), [])
        self.assertEqual(self.call("killTasks", config().key, None, None).details[0].message,
                         "No tasks to kill.")

    def test_failures_are_counted_and_retried_within_max_task_failures(self) -> None:
        job = config(command="exit 1", service=False, maxTaskFailures=2)
        self.ok("createJob", job)
        self.demo.advance(2)
        self.assertEqual((self.states(), self.tasks()[1].failureCount), (["FAILED", "FAILED"], 2))
        self.ok("createJob", config("batch", "sleep 10", service=False))
        self.demo.advance(5)
        self.assertEqual(self.states("batch"), ["RUNNING"])
        self.demo.advance(10)
        self.assertEqual(self.states("batch"), ["FINISHED"])

    def test_a_service_that_flaps_is_throttled_but_for_the_first_time(self) -> None:
        self.ok("createJob", config(command="sleep 1; exit 1"))
        self.demo.advance(600)
        tasks = self.tasks()
        first = [self.events(task)[0] for task in tasks]
        self.assertEqual(first[:2], [("PENDING", None), ("PENDING", "Rescheduled")])
        self.assertRegex(first[2][1], r"^Rescheduled, penalized for \d+ ms for flapping$")
        self.assertGreaterEqual(int(matched(r"\d+", first[2][1]).group()), 30000)

    def test_a_task_stuck_in_a_transient_state_is_lost_and_rescheduled(self) -> None:
        self.create()
        task = self.tasks()[0].assignedTask.taskId
        self.ok("forceTaskState", task, S.LOST)
        self.assertEqual(self.states(), ["LOST", "PENDING"])
        self.assertEqual(self.events(self.tasks()[0])[-1], ("LOST", "Transition forced by UNSECURE"))

    def test_a_partitioned_task_is_lost_after_its_delay(self) -> None:
        self.create(partitionPolicy=api.PartitionPolicy(reschedule=True, delaySecs=100))
        task = self.tasks()[0].assignedTask.taskId
        for status in ("PARTITIONED", "RUNNING", "PARTITIONED"):
            self.ok("forceTaskState", task, S.values[status])
            self.demo.advance(10)
        self.demo.advance(80)
        self.assertEqual(self.states(), ["PARTITIONED"])
        self.demo.advance(20)
        self.assertEqual(self.states()[0], "LOST")
        self.assertEqual(self.tasks()[0].timesPartitioned, 2)

    def test_history_is_pruned_after_two_days(self) -> None:
        self.create()
        self.ok("killTasks", config().key, None, None)
        self.demo.advance(100)
        self.assertEqual(self.states(), ["KILLED"])
        self.demo.advance(2 * 86400)
        self.assertEqual(self.states(), [])

    def test_constraints_and_capacity_decide_where_tasks_go(self) -> None:
        limit = {api.Constraint(name="host",
                                constraint=api.TaskConstraint(limit=api.LimitConstraint(limit=1)))}
        self.create("spread", 7, constraints=limit)
        hosts = [task.assignedTask.slaveHost for task in self.tasks("spread") if task.status == S.RUNNING]
        self.assertEqual((len(hosts), len(set(hosts))), (6, 6))
        reasons = self.ok("getPendingReason", api.TaskQuery(jobName="spread")).getPendingReasonResult.reasons
        self.assertEqual([r.reason for r in reasons], ["Limit not satisfied: host"])
        self.create("apart", 2, constraints={api.Constraint(name="rack", constraint=api.TaskConstraint(
            value=api.ValueConstraint(negated=True, values={"rack-a", "rack-b"})))})
        self.assertTrue(all(self.demo.hosts[t.assignedTask.slaveHost].attributes["rack"] == {"rack-c"}
                            for t in self.tasks("apart")))
        self.create("web", constraints={api.Constraint(name="dedicated", constraint=api.TaskConstraint(
            value=api.ValueConstraint(negated=False, values={"www-data/web"})))})
        self.assertEqual(self.tasks("web")[0].assignedTask.slaveHost, "demo-dedicated")
        self.create("huge", resources={api.Resource(numCpus=99.0), api.Resource(ramMb=1 << 30),
                                       api.Resource(diskMb=1)})
        reasons = self.ok("getPendingReason", api.TaskQuery(jobName="huge")).getPendingReasonResult.reasons
        self.assertEqual({r.reason for r in reasons}, {"Insufficient: RAM,Insufficient: CPU"})

    def test_an_update_rolls_in_order_create_update_kill(self) -> None:
        self.create(count=3)
        key = self.update(config(command="v2", count=2), updateGroupSize=1)
        self.demo.advance(60)
        self.assertEqual(self.status(key), "ROLLED_FORWARD")
        self.assertEqual([i for i, action in self.actions(key) if action == "INSTANCE_UPDATING"], [0, 1, 2])
        self.assertEqual(self.states(statuses=set(api.ACTIVE_STATES)), ["RUNNING"] * 2)
        killed = [t for t in self.tasks() if t.status == S.KILLED][0]
        self.assertEqual(killed.taskEvents[-2].message, "Killed for job update " + key.id)

    def test_a_failing_update_rolls_back_or_stops(self) -> None:
        self.create(count=2)
        back = self.update(config(command="exit 1", count=2))
        self.demo.advance(60)
        details = self.details(back)
        self.assertEqual([(U.name_of(e.status), e.message) for e in details.updateEvents], [
            ("ROLLING_FORWARD", "go"), ("ROLLING_BACK", "Latest failure: instance 0 exited."),
            ("ROLLED_BACK", None)])
        self.assertEqual(self.actions(back), [(0, "INSTANCE_UPDATING"), (0, "INSTANCE_UPDATE_FAILED"),
                                              (0, "INSTANCE_ROLLING_BACK"),
                                              (0, "INSTANCE_ROLLED_BACK")])
        stopped = self.update(config(command="exit 1", count=2), rollbackOnFailure=False)
        self.demo.advance(60)
        self.assertEqual(self.status(stopped), "FAILED")
        tolerant = self.update(config(command="exit 1", count=2), maxPerInstanceFailures=1,
                               maxFailedInstances=2)
        self.demo.advance(600)
        self.assertEqual(self.status(tolerant), "ROLLED_FORWARD")

    def test_strategies_group_instances(self) -> None:
        for strategy, groups in (
                (api.JobUpdateStrategy(queueStrategy=api.QueueJobUpdateStrategy(groupSize=2)), [2]),
                (api.JobUpdateStrategy(batchStrategy=api.BatchJobUpdateStrategy(groupSize=3,
                        autopauseAfterBatch=False)), [3]),
                (api.JobUpdateStrategy(varBatchStrategy=api.VariableBatchJobUpdateStrategy(groupSizes=[1, 2],
                        autopauseAfterBatch=False)),
                 [1, 2])):
            name = "group%d" % groups[0]
            self.create(name, 5)
            key = self.update(config(name, "v2", 5), updateStrategy=strategy)
            started = [len([1 for _, a in self.actions(key) if a == "INSTANCE_UPDATING"])]
            self.assertEqual(started, groups[:1])
            self.demo.advance(120)
            self.assertEqual(self.status(key), "ROLLED_FORWARD")

    def test_batches_of_several_sizes_go_back_the_way_they_came(self) -> None:
        self.create("back", 6)
        strategy = api.JobUpdateStrategy(varBatchStrategy=api.VariableBatchJobUpdateStrategy(
            groupSizes=[1, 2], autopauseAfterBatch=False))
        key = self.update(config("back", "v2", 6), updateStrategy=strategy, minWaitInInstanceRunningMs=60000)
        self.demo.advance(70)       # one is done, two are under way
        self.ok("rollbackJobUpdate", key, None)
        self.demo.advance(0.1)
        update = self.demo._updates[key.id]
        update.total_idle = None
        update.states = {number: "IDLE" for number in range(6)}
        update.counts = collections.Counter({"IDLE": 6})
        sizes = []
        while update.counts["IDLE"]:
            group = update.next_group()
            sizes.append(len(group))
            for number in group:
                update.set_state(number, "SUCCEEDED")
        self.assertEqual(sizes, [1, 2, 2, 1])

    def test_backups_are_forgotten_some_time(self) -> None:
        for _ in range(50):
            self.ok("performBackup")
            self.demo.advance(60)
        self.assertEqual(len(self.ok("listBackups").listBackupsResult.backups), 48)

    def test_autopause_pauses_between_batches(self) -> None:
        self.create(count=3)
        strategy = api.JobUpdateStrategy(batchStrategy=api.BatchJobUpdateStrategy(groupSize=2,
                autopauseAfterBatch=True))
        key = self.update(config(command="v2", count=3), updateStrategy=strategy)
        self.demo.advance(60)
        self.assertEqual((self.status(key), self.details(key).updateEvents[-1].message),
                         ("ROLL_FORWARD_PAUSED", "Update auto paused"))
        self.ok("resumeJobUpdate", key, None)
        self.demo.advance(60)
        self.assertEqual(self.status(key), "ROLLED_FORWARD")

    def test_pulses_hold_an_update(self) -> None:
        self.create()
        key = self.update(config(command="v2"), blockIfNoPulsesAfterMs=60000)
        self.demo.advance(300)
        self.assertEqual(self.status(key), "ROLL_FORWARD_AWAITING_PULSE")
        self.assertEqual(self.ok("pulseJobUpdate", key).pulseJobUpdateResult.status,
                         api.JobUpdatePulseStatus.OK)
        self.demo.advance(10)
        self.assertEqual(self.status(key), "ROLLED_FORWARD")
        self.assertEqual(self.ok("pulseJobUpdate", key).pulseJobUpdateResult.status,
                         api.JobUpdatePulseStatus.FINISHED)

    def test_updates_are_steered_by_the_state_machine(self) -> None:
        self.create(count=2)
        key = self.update(config(command="v2", count=2))
        self.refused("JOB_UPDATING_ERROR", "Job is currently updating", "killTasks", config().key, None, None)
        self.refused("JOB_UPDATING_ERROR", "Job is currently updating", "addInstances",
                     api.InstanceKey(config().key, 0), 1)
        self.refused("INVALID_REQUEST", "An active update already exists", "startJobUpdate",
                     update_request(config(command="v3", count=2)), None)
        self.ok("pauseJobUpdate", key, None)
        self.demo.advance(300)
        self.assertEqual(self.status(key), "ROLL_FORWARD_PAUSED")
        self.ok("pauseJobUpdate", key, None)
        self.ok("rollbackJobUpdate", key, None)
        self.demo.advance(60)
        self.assertEqual(self.status(key), "ROLLED_BACK")
        self.refused("INVALID_REQUEST", "Cannot transition update from ROLLED_BACK to ABORTED",
                     "abortJobUpdate", key, None)
        self.refused("INVALID_REQUEST", "Cannot transition update from ROLLED_BACK to null", "pauseJobUpdate",
                     key, None)
        self.refused("INVALID_REQUEST", "Update does not exist", "resumeJobUpdate",
                     api.JobUpdateKey(job=config().key, id="x"), None)
        same = self.call("startJobUpdate", update_request(config(count=2)), None)
        self.assertEqual((same.result, same.details[0].message),
                         (None, "Job is unchanged by proposed update."))

    def test_an_update_of_some_instances_leaves_the_others(self) -> None:
        self.create(count=3)
        key = self.update(config(command="v2", count=3),
                          updateOnlyTheseInstances={api.Range(first=1, last=1)})
        self.demo.advance(60)
        self.assertEqual({i for i, _ in self.actions(key)}, {1})
        self.refused("INVALID_REQUEST", "irrelevant", "startJobUpdate", update_request(
            config(command="v3", count=3), updateOnlyTheseInstances={api.Range(first=9, last=9)}), None)
        self.refused("ERROR", "Invalid range", "startJobUpdate", update_request(
            config(command="v3", count=3), updateOnlyTheseInstances={api.Range(first=1, last=0)}), None)

    def test_cron_jobs_run_at_their_time_by_their_policy(self) -> None:
        job = config("cron", "sleep 5000", service=False)
        self.ok("scheduleCronJob", job.replace(cronSchedule="*/5 * * * *",
                                               cronCollisionPolicy=api.CronCollisionPolicy.CANCEL_NEW))
        self.demo.advance(301)
        self.assertEqual(len(self.states("cron")), 1)
        self.ok("startCronJob", job.key)
        self.demo.advance(5)
        self.assertEqual(len(self.states("cron")), 1)
        self.ok("scheduleCronJob", job.replace(cronSchedule="0 0 1 1 *",
                                               cronCollisionPolicy=api.CronCollisionPolicy.KILL_EXISTING))
        self.ok("startCronJob", job.key)
        self.demo.advance(10)
        self.assertEqual([t.taskEvents[-2].message for t in self.tasks("cron") if t.status == S.KILLED],
                         ["Killed by cronScheduler"])
        self.assertEqual(self.states("cron", statuses=set(api.ACTIVE_STATES)), ["RUNNING"])
        for schedule, text in (("x", "Invalid cron schedule: x"), ("* * * * 7", "Invalid"),
                               ("* * 1 * 1", "Invalid"), ("* * * *", "Invalid"),
                               ("", "empty cron schedule"), ("0 0 30 2 *", "never fire")):
            self.refused("INVALID_REQUEST", text, "scheduleCronJob",
                         config("c2", service=False).replace(cronSchedule=schedule))
        self.refused("INVALID_REQUEST", "RUN_OVERLAP", "scheduleCronJob", config("c2", service=False).replace(
            cronSchedule="* * * * *", cronCollisionPolicy=api.CronCollisionPolicy.RUN_OVERLAP))
        self.refused("INVALID_REQUEST", "No cron job found for www-data/devel/c3", "replaceCronTemplate",
                     config("c3", service=False).replace(cronSchedule="* * * * *"))
        self.assertEqual(self.call("descheduleCronJob", config("c3").key).details[0].message,
                         "Job www-data/devel/c3 is not scheduled with cron")

    def test_crontab_finds_the_next_time(self) -> None:
        start = 1700000000      # 2023-11-14 22:13:20 GMT, a Tuesday
        for text, expected in (("* * * * *", "2023-11-14 22:14"), ("0 4 * * *", "2023-11-15 04:00"),
                               ("30 1 * * MON-FRI", "2023-11-15 01:30"),
                               ("0 0 1 JAN *", "2024-01-01 00:00"), ("0 0 29 2 *", "2024-02-29 00:00"),
                               ("5-20/15 22 * * *", "2023-11-14 22:20")):
            self.assertEqual(time.strftime("%Y-%m-%d %H:%M",
                    time.gmtime(aurora_rest.Crontab(text).next(start))), expected, text)

    def test_quota_is_checked_for_production_jobs(self) -> None:
        self.ok("setQuota", "www-data", api.ResourceAggregate(resources={
            api.Resource(numCpus=1.0), api.Resource(ramMb=1024), api.Resource(diskMb=1024)}))
        prod = config("prod", count=11, tier="preferred")
        self.refused("INVALID_REQUEST", "Insufficient resource quota: CPU quota exceeded by 0.10 core(s)",
                     "createJob", prod)
        self.ok("createJob", prod.replace(instanceCount=10))
        self.ok("createJob", config("other", count=50))
        result = self.ok("getQuota", "www-data").getQuotaResult
        self.assertIn(api.Resource(ramMb=320), result.prodSharedConsumption.resources)
        self.assertIn(api.Resource(ramMb=1600), result.nonProdSharedConsumption.resources)
        self.refused("INVALID_REQUEST", "is less then current prod reservation", "setQuota", "www-data",
                     api.ResourceAggregate(
            resources={api.Resource(numCpus=0.5), api.Resource(ramMb=1024), api.Resource(diskMb=1024)}))
        self.refused("ERROR", "Quota resources must be exactly", "setQuota", "x",
                     api.ResourceAggregate(resources={api.Resource(ramMb=1)}))

    def test_refusals_have_aurora_s_texts(self) -> None:
        key = api.JobKey(role="www-data", environment="qa", name="x")
        some = config().taskConfig.resources

        def dedicated(**rule: Any) -> Any:
            return api.Constraint(name="dedicated", constraint=api.TaskConstraint(**rule))
        for job, text in (
                (config().replace(taskConfig=None), "Job configuration must have taskConfig set."),
                (config().replace(instanceCount=0), "Instance count must be positive."),
                (config().replace(instanceCount=4001),
                 "Instance count must be between 1 and 4000 inclusive."),
                (config().replace(key=key),
                 "Job environment qa doesn't match: ^(prod|devel|test|staging\\d*)$"),
                (config().replace(key=api.JobKey(role="a b", environment="devel", name="x")),
                 "Job key IJobKey{role=a b, environment=devel, name=x} is invalid."),
                (config(tier="x"), "Invalid tier 'x' in TaskConfig."),
                (config(tier="a b"), "Tier contains illegal characters: a b"),
                (config().replace(owner=api.Identity(user="a b")), "Job user contains illegal characters"),
                (config(job=key.replace(role="")), "Job key IJobKey{role=, environment=qa, name=x} is"),
                (config(executorConfig=None), "Configuration may not be null."),
                (config(executorConfig=api.ExecutorConfig()), "Executor name may not be left unset."),
                (config(executorConfig=api.ExecutorConfig(name="x")),
                 "Configuration for executor 'x' doesn't exist."),
                (config(executorConfig=None, container=api.Container(docker=api.DockerContainer(image="x"))),
                 "configured to require an executor for Docker-based tasks."),
                (config(container=api.Container(docker=api.DockerContainer())),
                 "A container must specify an image."),
                (config(constraints={dedicated(limit=api.LimitConstraint(limit=1))}),
                 "A dedicated constraint must be of value type."),
                (config(constraints={dedicated(value=api.ValueConstraint(values={"a", "b"}))}),
                 "A dedicated constraint must have exactly one value"),
                (config(constraints={dedicated(value=api.ValueConstraint(values={"other/x"}))}),
                 "Only other may use hosts dedicated for that role."),
                (config(resources={*some, api.Resource(numGpus=1)}), "GPU resource support is disabled"),
                (config(mesosFetcherUris={api.MesosFetcherURI(value="x")}), "Mesos Fetcher for individual"),
                (config(container=api.Container(mesos=api.MesosContainer(volumes=[api.Volume()]))),
                 "configured to disallow container volumes."),
                (config(resources={api.Resource(numCpus=1.0)}), "ram_mb must be greater than 0.0"),
                (config(resources={api.Resource(numCpus=1.0), api.Resource(numCpus=2.0)}),
                 "Multiple resource values are not supported for CPU"),
                (config().replace(cronSchedule="* * * * *"),
                 "A service task may not be run on a cron schedule"),
                (config(service=False).replace(cronSchedule="* * * * *"),
                 "Cron jobs may only be created/updated by calling scheduleCronJob.")):
            self.refused("INVALID_REQUEST", text, "createJob", job)
        self.create()
        self.refused("INVALID_REQUEST", "Job www-data/devel/hello already exists", "createJob", config())
        self.refused("INVALID_REQUEST", "Not all requested shards are active.", "restartShards", config().key,
                     {7})
        self.refused("INVALID_REQUEST", "No active task found for a given instance ID.", "addInstances",
                     api.InstanceKey(config().key, 9), 1)
        self.refused("ERROR", "Argument cannot be blank", "restartShards", config().key, set())
        self.refused("ERROR", None, "killTasks", api.JobKey(role="a b"), None, None)
        self.refused("INVALID_REQUEST", "Updates are not supported for non-service tasks.", "startJobUpdate",
                     update_request(config(service=False)), None)
        self.refused("INVALID_REQUEST", "Update results in no instance being modified.", "startJobUpdate",
                     update_request(config(), updateGroupSize=0), None)
        self.refused("ERROR", "Tasks in non-terminal state cannot be pruned.", "pruneTasks",
                     api.TaskQuery(statuses={S.RUNNING}))
        self.refused("ERROR", "limit is negative", "pruneTasks", api.TaskQuery(limit=-1))
        self.refused("ERROR", None, "createJob", config(constraints={api.Constraint(name="x")}))
        self.refused("INVALID_REQUEST", "Invalid configuration: Invalid tier 'x'", "populateJobConfig",
                     config(tier="x"))
        self.refused("INVALID_REQUEST", "Batch size must be greater than zero.",
                     "triggerExplicitTaskReconciliation", api.ExplicitReconciliationSettings(batchSize=0))
        lost = api.JobUpdateKey(job=config().key, id="x")
        self.refused("INVALID_REQUEST", "Invalid update: ", "getJobUpdateDetails", lost, None)
        self.refused("ERROR", "Either key or query must be set.", "getJobUpdateDetails", None, None)
        result = self.call("getJobUpdateDetails", self.update(config(command="new")), None)
        self.assertTrue(result.result.getJobUpdateDetailsResult.details)
        self.assertIn("key argument is deprecated", result.details[0].message)

    def test_updates_are_refused_with_aurora_s_texts(self) -> None:
        self.create()
        job = config(command="new")

        def var(*sizes: int) -> Any:
            batches = api.VariableBatchJobUpdateStrategy(groupSizes=list(sizes))
            return api.JobUpdateStrategy(varBatchStrategy=batches)
        for settings, text in (
                ({"updateStrategy": var(1, 0)}, "All update group sizes must be positive."),
                ({"updateStrategy": api.JobUpdateStrategy()}, "Update strategy provided is unknown."),
                ({"maxPerInstanceFailures": -1}, "maxPerInstanceFailures must be non-negative."),
                ({"maxFailedInstances": -1}, "maxFailedInstances must be non-negative."),
                ({"maxPerInstanceFailures": 20001}, "Your update allows too many failures to occur"),
                ({"minWaitInInstanceRunningMs": -1}, "minWaitInInstanceRunningMs must be non-negative."),
                ({"blockIfNoPulsesAfterMs": -1}, "blockIfNoPulsesAfterMs must be positive."),
                ({"slaAware": True}, "slaAware is true, but no task slaPolicy is specified.")):
            self.refused("INVALID_REQUEST", text, "startJobUpdate", update_request(job, **settings), None)
        self.refused("INVALID_REQUEST", "between 1 and 4000", "startJobUpdate",
                     update_request(job, count=4001), None)
        self.refused("ERROR", "Invalid range: [0..-1)", "startJobUpdate", update_request(job, count=-1), None)
        self.refused("ERROR", "-1", "getJobUpdateSummaries", api.JobUpdateQuery(offset=-1))
        cron = cron_config("tick")
        self.ok("scheduleCronJob", cron)
        self.refused("INVALID_REQUEST", "Cron jobs are not supported.", "getJobUpdateDiff",
                     update_request(cron))
        self.refused("INVALID_REQUEST", "created/updated by calling scheduleCronJob.", "startJobUpdate",
                     update_request(config("tick")), None)

    def test_sla_policies_are_checked_and_an_update_waits_for_them(self) -> None:
        def policy(seconds: int = 60, **rule: Any) -> Any:
            (kind, value), = rule.items()
            made = {"count": lambda: api.SlaPolicy(countSlaPolicy=api.CountSlaPolicy(value, seconds)),
                    "percentage": lambda: api.SlaPolicy(
                        percentageSlaPolicy=api.PercentageSlaPolicy(value, seconds)),
                    "coordinator": lambda: api.SlaPolicy(
                        coordinatorSlaPolicy=api.CoordinatorSlaPolicy(value))}
            return made[kind]()
        self.ok("setQuota", "www-data", api.ResourceAggregate(resources={
            api.Resource(numCpus=100.0), api.Resource(ramMb=102400), api.Resource(diskMb=102400)}))
        for tier, count, rule, text in (
                ("preemptible", 20, policy(count=1), "Tier 'preemptible' does not support SlaPolicy."),
                ("preferred", 19, policy(count=1), "Job with fewer than 20 instances cannot have"),
                ("preferred", 20, policy(count=20), "count=20 will not allow any instances to be killed"),
                ("preferred", 20, policy(percentage=96.0), "Must be less than 95.0"),
                ("preferred", 20, policy(7201, percentage=90.0),
                 "PercentageSlaPolicy: durationSecs=7201 must be less than"),
                ("preferred", 20, policy(7201, count=1), "CountSlaPolicy: durationSecs=7201")):
            self.refused("INVALID_REQUEST", text, "createJob", config(count=count, tier=tier, slaPolicy=rule))
        self.ok("createJob", config("asks", count=1, tier="preferred", slaPolicy=policy(coordinator="x")))
        self.create(count=20, tier="preferred", slaPolicy=policy(count=19))
        key = self.update(config(command="new", count=20, tier="preferred", slaPolicy=policy(count=19)),
                          slaAware=True, updateGroupSize=2)
        self.demo.advance(1)        # nobody has been up for a minute
        texts = [event.message for event in self.details(key).instanceEvents]
        self.assertEqual(set(texts), {None, "Checking SLA before continuing."})
        self.assertEqual(self.states(), ["RUNNING"] * 20)
        self.demo.advance(61)
        texts = [event.message for event in self.details(key).instanceEvents]
        self.assertEqual(texts.count("SLA check passed, continuing."), 1)       # the second waits for it
        self.demo.advance(3600)
        self.assertEqual(self.status(key), "ROLLED_FORWARD")

    def test_hosts_are_drained_with_regard_to_slas(self) -> None:
        policy = api.SlaPolicy(percentageSlaPolicy=api.PercentageSlaPolicy(percentage=90.0, durationSecs=60))
        self.ok("setQuota", "www-data", api.ResourceAggregate(resources={
            api.Resource(numCpus=100.0), api.Resource(ramMb=102400), api.Resource(diskMb=102400)}))
        self.create(count=20, tier="preferred")
        self.demo.advance(100)
        task = next(iter(self.demo._tasks.values()))
        for percentage, allowed in ((94.0, True), (95.0, True), (96.0, True), (100.0, True)):
            strict = api.SlaPolicy(percentageSlaPolicy=api.PercentageSlaPolicy(percentage=percentage,
                    durationSecs=60))
            # one may always go
            self.assertEqual(self.demo._sla_allows(task, strict), allowed, percentage)
        other = [each for each in self.demo._tasks.values() if each is not task][0]
        with mock.patch.object(other, "status", S.RESTARTING):
            self.assertFalse(self.demo._sla_allows(task,
                                                   policy.replace(percentageSlaPolicy=api.PercentageSlaPolicy(
                percentage=95.0, durationSecs=60))))
        self.demo.advance(100)
        host = self.tasks()[0].assignedTask.slaveHost
        hosts = api.Hosts(hostNames={host, "unknown"})
        statuses_ = self.ok("slaDrainHosts", hosts, policy, 3600).drainHostsResult.statuses
        self.assertEqual([(s.host, s.mode) for s in statuses_], [(host, api.MaintenanceMode.DRAINING)])
        self.demo.advance(61)
        draining = sum(t.status == S.DRAINING for t in self.tasks())
        self.assertLessEqual(draining, 2)
        self.demo.advance(4000)
        mode = self.ok("maintenanceStatus", hosts).maintenanceStatusResult.statuses
        self.assertEqual([s.mode for s in mode], [api.MaintenanceMode.DRAINED])
        self.assertNotIn(host, [t.assignedTask.slaveHost
                                for t in self.tasks(statuses=set(api.ACTIVE_STATES))])
        self.ok("endMaintenance", hosts)

    def test_a_recovery_brings_back_what_was_and_nothing_runs_twice(self) -> None:
        self.create(count=2)
        key = self.update(config(command="v2", count=2))
        self.demo.advance(1)
        self.ok("performBackup")
        backup = next(iter(self.ok("listBackups").listBackupsResult.backups))
        self.demo.advance(60)
        self.ok("killTasks", config().key, None, None)
        self.demo.advance(60)
        self.refused("ERROR", "No backup loaded.", "commitRecovery")
        self.ok("stageRecovery", backup)
        self.refused("ERROR", "Another backup is already loaded.", "stageRecovery", backup)
        self.assertTrue(self.ok("queryRecovery", api.TaskQuery()).queryRecoveryResult.tasks)
        self.ok("commitRecovery")
        self.demo.advance(120)
        self.assertEqual(self.states(statuses=set(api.ACTIVE_STATES)), ["RUNNING"] * 2)
        self.assertEqual(self.status(key), "ROLLED_FORWARD")

    def test_the_wire_negotiates_as_auroras_does(self) -> None:
        url = self.demo.start()
        self.addCleanup(self.demo.stop)
        made = type("Running", (), {"port": int(url.rsplit(":", 1)[1])})
        calls = {media: aurora_rest.encode_message(media, "getTierConfigs", 1, 7,
                                                   api.method("getTierConfigs").arguments())
                 for media in (BINARY, aurora_rest.TJSON)}
        for kind, accept, answered in ((BINARY, BINARY, BINARY), (BINARY, None, aurora_rest.TJSON),
                                       (aurora_rest.TJSON, BINARY, BINARY),
                                       ("application/json", "*/*", aurora_rest.TJSON),
                                       (None, None, aurora_rest.TJSON),
                                       ("application/x-thrift", None, aurora_rest.TJSON)):
            headers = {name: value for name, value in (("Content_Type", kind), ("Accept", accept)) if value}
            answer = ask(made, "POST", "/api", calls[BINARY if kind == BINARY else aurora_rest.TJSON],
                         **headers)
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, answered))
            reply = aurora_rest.decode_reply(answered, "getTierConfigs", answer.body)
            self.assertEqual(reply.result.getTierConfigResult.defaultTierName, "preemptible")
        for kind in ("application/json; charset=utf-8", "text/plain"):
            self.assertEqual(ask(made, "POST", "/api", b"x", Content_Type=kind).status, 415)
        unknown = aurora_rest.encode_message(BINARY, "nonsense", 1, 0,
                                             api.method("getTierConfigs").arguments())
        answer = ask(made, "POST", "/api", unknown, Content_Type=BINARY, Accept=BINARY)
        with self.assertRaisesRegex(aurora_rest.BadMessage, "Invalid method name: 'nonsense'"):
            aurora_rest.decode_reply(BINARY, "nonsense", answer.body)
        self.assertEqual(ask(made, "POST", "/apibeta/getJobs", "{}").json["responseCode"], "OK")
        self.assertEqual(ask(made, "POST", "/apibeta/nonsense", "{}").status, 404)
        self.assertEqual(ask(made, "POST", "/apibeta/getJobs", "[").status, 400)
        self.assertEqual([ask(made, "GET", path).status
                for path in ("/health", "/vars", "/vars.json", "/leaderhealth", "/offers", "/nope")],
                         [200, 200, 200, 200, 200, 404])
        self.demo.redirect = "http://127.0.0.1:1"
        self.assertEqual((ask(made, "POST", "/api", b"").status, ask(made, "GET", "/leaderhealth").status),
                         (307, 503))

    def test_a_hundred_clients_keep_it_consistent(self) -> None:
        self.demo.clock.speed = 50.0
        url = self.demo.start()
        self.addCleanup(self.demo.stop)
        self.create("shared", 5)
        problems = []

        def client(number: Any) -> None:
            scheduler = aurora_rest.Scheduler(url, parallel=2)
            for step in range(6):
                try:
                    if (number + step) % 4 == 0:
                        scheduler.killTasks(config("shared").key, {step}, None)
                    elif (number + step) % 4 == 1:
                        scheduler.startJobUpdate(update_request(config("shared", "v%d" % number, 5)), None)
                    elif (number + step) % 4 == 2:
                        scheduler.restartShards(config("shared").key, {step % 5})
                    else:
                        scheduler.createJob(config("shared", count=5))
                except (aurora_rest.Refused, aurora_rest.JobUpdating):
                    pass
                except Exception as error:
                    problems.append(repr(error))
            scheduler.close()
        threads = [threading.Thread(target=client, args=(number,)) for number in range(100)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(problems, [])
        active = [task.assignedTask.instanceId for task in self.tasks("shared",
                statuses=set(api.ACTIVE_STATES))]
        self.assertEqual(len(active), len(set(active)))
        running = self.ok("getJobUpdateSummaries", api.JobUpdateQuery(
            updateStatuses=set(api.ACTIVE_JOB_UPDATE_STATES))).getJobUpdateSummariesResult.updateSummaries
        self.assertLessEqual(len(running), 1)

    def test_filled_with_jobs_a_list_of_one_role_stays_small(self) -> None:
        demo = aurora_rest.Demo(speed=0, jobs=200, samples=False)
        self.assertEqual(len(demo._tasks), 2000)
        found = demo.invoke("getJobs",
                            api.method("getJobs").arguments("load-001")).result.getJobsResult.configs
        self.assertEqual(len(found), 50)


# --- README -------------------------------------------------------------------------------------------------

def options_table() -> Any:
    """The README's table of options, from the options."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for option in aurora_rest.OPTIONS:
        default = "" if option.default in (None, False, []) else "`%s`" % option.default
        shown = "--" + option.name + (" " + option.metavar if option.metavar else "")
        lines.append("| `%s` | %s | %s |" % (shown.replace("|", "\\|"), default,
                                             option.help.replace("|", "\\|")))
    return "\n".join(lines)


def metrics_table(metrics: Any) -> Any:
    """The README's table of metrics, from the metrics."""
    rows = [(name, labels, text) for name, (_, text, labels, _) in metrics._families.items()]
    rows += [(name, (), text) for name, _, text, _ in metrics.gauges]
    return "\n".join(["| metric | meaning |", "|---|---|"] + ["| `%s`%s | %s |" % (
        name, " by " + ", ".join(labels) if labels else "", text) for name, labels, text in sorted(rows)])


class PageApiTest(Serving):
    """What the page asks that nothing else did."""
    K = "/alpha/job/devcluster/www-data/devel/"

    def create(self, name: Any, **more: Any) -> None:
        self.demo.createJob(config(name, **more))
        self.demo.advance(30)

    def update(self, name: Any, text: Any, message: Any = None) -> Any:
        more = "?message=" + message if message else ""
        answer = self.good("PUT", self.K + name + "/update" + more, text, status=202,
                           content_type="text/plain")
        self.demo.advance(300)
        return answer["update"]["id"]

    def source(self, name: Any, command: Any, count: Any = 1) -> Any:
        return source(name, command, "instances=%d, update_config=UpdateConfig(watch_secs=5, batch_size=5)" %
                      count)

    def history(self, name: Any) -> Any:
        return self.good("GET", self.K + name + "/history")["versions"]

    def test_who_am_i(self) -> None:
        me = self.good("GET", "/alpha/me")
        self.assertEqual((me["name"], me["level"], me["roles"], me["by"]),
                         ("anonymous", "admin", ["*"], "nobody"))
        with token_server() as (server, token):
            told = ask(server, "GET", "/alpha/me", Authorization="Bearer " + token["alice"]).json
            self.assertEqual((told["name"], told["level"], told["roles"], told["by"]),
                             ("alice", "write", ["www-*"], "token"))
            self.assertEqual(ask(server, "GET", "/alpha/me").status, 401)
            self.assertEqual(ask(server, "GET", "/alpha/me", Authorization="Bearer nobody").status, 401)
        access = aurora_rest.Access(None, True, False)
        with aurora_rest.Server(port=0, demo=True, access=access, evaluator=self.evaluator()) as server:
            basic = "Basic " + base64.b64encode(b"bob:secret").decode()
            told = ask(server, "GET", "/alpha/me", Authorization=basic).json
            self.assertEqual((told["name"], told["by"]), ("bob", "scheduler"))

    def test_brief_tasks_have_their_last_event(self) -> None:
        self.create("brief", count=2)
        whole = self.good("GET", self.K + "brief/tasks")["tasks"]
        brief = self.good("GET", self.K + "brief/tasks?brief=1")["tasks"]
        self.assertEqual(brief, [dict(task, events=task["events"][-1:]) for task in whole])
        self.assertGreater(len(whole[0]["events"]), 1)

    def test_what_waits_in_a_cluster_and_why(self) -> None:
        hungry = config("hungry", count=2).taskConfig.replace(
            resources={api.Resource(numCpus=900.0), api.Resource(ramMb=32), api.Resource(diskMb=32)})
        self.demo.createJob(api.JobConfiguration(key=hungry.job, owner=hungry.owner, taskConfig=hungry,
                                                 instanceCount=2))
        self.demo.advance(30)
        told = self.good("GET", "/alpha/pending/devcluster?role=www-*")
        mine = [each for each in told["pending"] if each["job"].endswith("/hungry")]
        self.assertEqual([each["instance"] for each in mine], [0, 1])
        self.assertEqual((mine[0]["state"], mine[0]["since"] > 0), ("PENDING", True))
        self.assertIn("CPU", mine[0]["reason"])
        one = self.ask("GET", "/alpha/pending/devcluster?limit=1")
        self.assertEqual((len(one.json["pending"]), one.json["total"]), (1, told["total"]))
        self.assertIn("offset=1", one.headers["link"])
        self.assertEqual(self.good("GET", "/alpha/pending/devcluster?role=nobody")["pending"], [])

    def test_hosts_of_a_cluster(self) -> None:
        self.create("placed", count=3)
        told = self.good("GET", "/alpha/hosts/devcluster")
        task = self.good("GET", self.K + "placed/tasks")["tasks"][0]
        host = next(each for each in told["hosts"] if each["host"] == task["host"])
        self.assertEqual(host["mode"], "NONE")
        self.assertEqual(sum(each["tasks"] for each in told["hosts"]), len(self.good(
            "GET", "/alpha/tasks/devcluster?state=live&limit=1000")["tasks"]))
        self.good("PUT", "/alpha/maintenance/devcluster/" + host["host"])
        found = self.good("GET", "/alpha/hosts/devcluster?host=%s*" % host["host"])["hosts"]
        self.assertEqual([(each["host"], each["mode"]) for each in found], [(host["host"], "SCHEDULED")])
        self.good("DELETE", "/alpha/maintenance/devcluster/" + host["host"])
        self.assertEqual(self.good("GET", "/alpha/hosts/devcluster?host=none-*&host=nohost")["hosts"], [])

    def test_hosts_without_tasks_are_told_with_what_is_offered_there(self) -> None:
        told = self.good("GET", "/alpha/hosts/devcluster")
        self.assertEqual({each["host"] for each in told["hosts"]}, set(self.demo.hosts))
        self.assertNotIn("warnings", told)
        for each in told["hosts"]:
            host = self.demo.hosts[each["host"]]
            self.assertEqual({name: set(values) for name, values in each["attributes"].items()},
                             host.attributes)
            self.assertEqual(list(each["free"].values()),
                             [total - used for total, used in zip(host.total, host.used)])

    def test_hosts_of_maintenance_are_told_where_none_of_their_offers_is_held(self) -> None:
        gone = next(name for name, host in self.demo.hosts.items() if not host.tasks)
        self.good("PUT", "/alpha/maintenance/devcluster/" + gone)
        self.addCleanup(self.good, "DELETE", "/alpha/maintenance/devcluster/" + gone)
        with mock.patch.object(aurora_rest.DemoApp, "_offer", staticmethod(lambda host: {
                "hostname": "elsewhere", "attributes": [], "resources": []})):
            told = {each["host"]: each for each in self.good("GET", "/alpha/hosts/devcluster")["hosts"]}
        self.assertEqual(told[gone], {"host": gone, "tasks": 0, "mode": "SCHEDULED"})
        self.assertIn("elsewhere", told)

    def test_where_the_leader_shows_no_offers_the_hosts_with_tasks_are_told_and_what_lacks(self) -> None:
        self.create("placed2")
        hidden = aurora_rest.Response(404, body=b"no", content_type="text/plain")
        strange = aurora_rest.Response(200, [{"host": "not Aurora's"}])
        for page in hidden, strange:
            with mock.patch.object(aurora_rest.DemoApp, "_page", lambda app, request, page=page: page):
                told = self.good("GET", "/alpha/hosts/devcluster")
            self.assertIn("/offers", told["warnings"][0])
            self.assertTrue(told["hosts"])
            self.assertTrue(all(each["tasks"] and "free" not in each for each in told["hosts"]))
        leader = self.good("GET", "/alpha/clusters")["clusters"]["devcluster"]
        self.assertIsNone(leader["error"], "a page that is not shown is no trouble of the scheduler's")

    def test_events_without_how_things_stand(self) -> None:
        self.create("quiet")
        for path in (self.K + "quiet/events", "/alpha/events/devcluster/www-data",
                     "/alpha/events/devcluster"):
            with contextlib.closing(Events(self.server, path + "?snapshot=0")) as stream, contextlib.closing(
                    Events(self.server, path)) as whole:
                while not whole.next()[2].get("job", "").endswith("/quiet"):
                    pass
                self.good("DELETE", self.K + "quiet?shards=0")
                self.demo.advance(30)
                _, name, plain = stream.next()
                self.assertEqual((name, plain["state"]), ("task", "KILLING"), path)
                self.assertTrue(plain["job"].endswith("/quiet"))
            self.demo.advance(30)
            if path != "/alpha/events/devcluster":
                self.create("quiet")

    def test_history_and_the_way_back(self) -> None:
        self.create("back", count=2)
        self.update("back", self.source("back", "second", 2), "release+2")
        second = self.good("GET", self.K + "back/update")["update"]["id"]
        versions = self.history("back")
        self.assertEqual([each["running"] for each in versions], [[0, 1], []])
        self.assertEqual(versions[0]["update"], second)
        self.assertRegex(versions[0]["message"], r"^release 2 \(request \S+\)$")
        self.assertEqual(versions[1]["config"]["executorConfig"]["data"]["task"]["processes"][0]["cmdline"],
                         "serve")
        first = versions[1]["id"]
        self.assertRegex(first, "^[0-9a-f]{12}$")
        path = self.K + "back/rollback?to=" + first
        dry = self.good("POST", path + "&dry_run=1")
        plan = dry["would"]["plan"]
        self.assertEqual((plan["update"], plan["add"], plan["remove"]), ([0, 1], [], []))
        self.assertEqual([(each["path"], each["old"], each["new"]) for each in plan["changes"][0]["fields"]
                          if each["path"].endswith("cmdline")][0][1:], ("second", "serve"))
        self.assertEqual(self.good("GET", self.K + "back/update")["update"]["id"], second)
        etag = self.ask("GET", self.K + "back/config").headers["etag"]
        self.bad(412, "POST", path, If_Match='"stale"')
        started = self.good("POST", path + "&message=too+slow", status=202, If_Match=etag)
        self.assertRegex(started["update"]["message"], r"^too slow \(request \S+\)$")
        self.demo.advance(300)
        self.assertEqual([(each["id"], each["running"]) for each in self.history("back")],
                         [(first, [0, 1]), (versions[0]["id"], [])])
        same = self.good("POST", path)
        self.assertEqual((same["unchanged"], "update" in same), (True, False))

    def test_rollback_is_waited_for(self) -> None:
        self.create("waited", count=1)
        self.update("waited", self.source("waited", "second"))
        first = self.history("waited")[1]["id"]
        timer = threading.Timer(0.3, self.demo.advance, (300,))
        timer.start()
        told = self.good("POST", self.K + "waited/rollback?wait=20&to=" + first)
        self.assertEqual((told["reached"], told["update"]["state"]), (True, "ROLLED_FORWARD"))

    def test_what_cannot_be_gone_back_to(self) -> None:
        self.create("odd")
        self.bad(400, "POST", self.K + "odd/rollback", says="history")
        self.bad(404, "POST", self.K + "odd/rollback?to=" + "0" * 12, says="no configuration")
        self.bad(404, "GET", self.K + "od/history")
        self.bad(404, "POST", self.K + "od/rollback?to=" + "0" * 12)

    def test_a_job_that_is_gone_comes_back(self) -> None:
        self.create("gone", count=2)
        self.good("DELETE", self.K + "gone")
        self.demo.advance(60)
        versions = self.history("gone")
        self.assertEqual([each["running"] for each in versions], [[]])
        self.assertEqual(len(versions), 1)

    def test_the_page_may_be_off_or_only_read(self) -> None:
        for page, status in (("full", 200), ("read", 200), ("off", 404)):
            with aurora_rest.Server(port=0, demo=True, page=page, evaluator=self.evaluator()) as server:
                answers = [ask(server, "GET", path) for path in ("/", "/page.css", "/page.js")]
                self.assertEqual([each.status for each in answers], [status] * 3)
                self.assertEqual(b'data-page="%s"' % page.encode() in answers[0].body, page != "off")
        with self.assertRaises(aurora_rest.UsageError):
            aurora_rest.check_options(aurora_rest.parse_command_line(["--page", "some"], {}))


@contextlib.contextmanager
def token_server(**options: Any) -> Any:
    """(a server that wants tokens, its tokens by name): alice may write to www-*, rita may read."""
    token = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens")
        with open(path, "w") as stream:
            for each in ("alice:write:www-*", "rita:read", "root:admin"):
                secret, line = aurora_rest.new_token(each)
                token[each.split(":")[0]] = secret
                stream.write(line + "\n")
        access = aurora_rest.Access(aurora_rest.Tokens(path), False, False)
        options = dict({"demo": True, "evaluator": Serving.evaluator()}, **options)
        with aurora_rest.Server(port=0, access=access, **options) as server:
            yield server, token


RAW, ZIPPED = 78 << 10, 30 << 10        # bytes that the page may have, as it is and compressed
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """A browser without a window, which is told what to do over the DevTools protocol."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.process: Any = subprocess.Popen(
            [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage",
             "--remote-debugging-port=0", "--user-data-dir=" + self.folder.name, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if "DevTools listening on" in line)
        self.port = int(matched(r":(\d+)/", line).group(1))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        with contextlib.suppress(OSError):
            self.folder.cleanup()


class Tab:
    """A tab: a WebSocket (RFC 6455) on which methods are called and events arrive."""

    def __init__(self, chromium: Any, width: Any = 1400, height: Any = 900) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", chromium.port, timeout=30)
        connection.request("PUT", "/json/new?about:blank")
        address = json.loads(connection.getresponse().read())["webSocketDebuggerUrl"]
        connection.close()
        self.sock = socket.create_connection(("127.0.0.1", chromium.port), timeout=30)
        self.sock.sendall(("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: "
                           "Upgrade\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (
                               address[address.index("/devtools"):],
                               base64.b64encode(b"x" * 16).decode())).encode())
        self.stream = self.sock.makefile("rb")
        while self.stream.readline() != b"\r\n":
            pass
        self.number = 0
        self.events: Any = []
        for method in ("Page.enable", "Runtime.enable", "Log.enable", "Network.enable"):
            self.call(method)
        self.size(width, height)

    def call(self, method: Any, **params: Any) -> Any:
        self.number += 1
        data = json.dumps({"id": self.number, "method": method, "params": params}).encode()
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0xFE, size) if size < (
            1 << 16) else struct.pack(">BQ", 0xFF, size)
        # the mask is zero, which leaves it as it is
        self.sock.sendall(b"\x81" + length + b"\0\0\0\0" + data)
        while True:
            told = self._read()
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    def _read(self) -> Any:
        data, last = b"", False
        while not last:
            head = self.stream.read(2)
            last, length = bool(head[0] & 0x80), head[1] & 0x7f
            if length > 125:
                length = int.from_bytes(self.stream.read(2 if length == 126 else 8), "big")
            data += self.stream.read(length)
        return json.loads(data)

    def js(self, code: Any) -> Any:
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, code: Any, seconds: Any = 10.0) -> None:
        """Wait for something to be true."""
        end = time.monotonic() + seconds
        while True:
            if self.js("!!(%s)" % code):
                return
            assert time.monotonic() < end, "%s never came; the page says: %s" % (code,
                    self.js("document.body.innerText")[:1500])
            time.sleep(0.03)

    def open(self, server: Any, place: Any = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=server.url + "/" + place)
        self.until("document.readyState == 'complete' && (document.querySelector('dialog') || "
                   "document.querySelector('h1') && !document.querySelector('.loading'))")

    def click(self, text: Any, within: Any = "body") -> None:
        self.until("!!(window.found = [...document.querySelectorAll(%s)].find(e => "
                   "e.textContent.trim().startsWith(%s) && "
                   "!e.disabled))" % (json.dumps("%s :is(button, a, summary)" % within), json.dumps(text)))
        self.js("found.click()")

    def type(self, field: Any, text: Any) -> None:
        self.js("(e => { e.focus(); e.value = %s; e.dispatchEvent(new Event('input')) "
                "})(document.querySelector(%s))" % (
            json.dumps(text), json.dumps(field)))

    def press(self, key: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=key if len(key) == 1
                      else "",
                      windowsVirtualKeyCode=9 if key == "Tab" else 0)

    def text(self, selector: Any = "body") -> Any:
        return self.js("document.querySelector(%s)?.innerText ?? ''" % json.dumps(selector))

    def rows(self) -> Any:
        """The cells' texts of the rows in sight."""
        return self.js("[...document.querySelectorAll('tr[data-i]')].map(r => [...r.cells].map(c => "
                       "c.innerText.trim()))")

    def size(self, width: Any, height: Any = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=False)

    def wrong(self) -> Any:
        """What the browser complained of: exceptions, violations of the policy."""
        self.js("1")
        return [json.dumps(each["params"])[:600] for each in self.events
                if each["method"] == "Runtime.exceptionThrown" or
                each["method"] == "Log.entryAdded"
                and "Content Security Policy" in each["params"]["entry"]["text"] or
                each["method"] == "Page.javascriptDialogOpening"]

    def requests(self) -> Any:
        self.js("1")
        return [each["params"]["request"] for each in self.events
                if each["method"] == "Network.requestWillBeSent"]


@unittest.skipUnless(CHROMIUM,
        "needs chromium, chromium-browser or google-chrome on the PATH: the page is tested in a browser")
class PageTest(Serving):
    chromium: Any
    KEY = "devcluster/www-data/devel/"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.chromium = Chromium()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.chromium.close()
        super().tearDownClass()

    def tab(self, place: Any = "", server: Any = None, **options: Any) -> Any:
        tab = Tab(self.chromium, **options)
        self.addCleanup(tab.sock.close)
        self.addCleanup(tab.stream.close)
        self.addCleanup(lambda: self.assertEqual(tab.wrong(), []))
        tab.open(server or self.server, place)
        return tab

    def create(self, name: Any, count: Any = 1, **more: Any) -> Any:
        self.demo.createJob(config(name, count=count, **more))
        self.demo.advance(30)
        return "#/" + self.KEY + name

    def sent(self, tab: Any, method: Any) -> Any:
        return [each for each in tab.requests() if each["method"] == method]

    def test_size_policy_and_nothing_foreign(self) -> None:
        tab = self.tab(self.create("small", 3))
        tab.until("document.querySelectorAll('tr[data-i]').length == 3")
        answers = [self.ask("GET", path) for path in ("/", "/page.css", "/page.js")]
        self.assertLess(len(answers[0].body), 2048)
        self.assertLessEqual(sum(len(each.body) for each in answers), RAW)
        self.assertLessEqual(sum(len(gzip.compress(each.body, 5)) for each in answers), ZIPPED)
        policy = answers[0].headers["content-security-policy"]
        self.assertIn("require-trusted-types-for 'script'", policy)
        self.assertNotIn("unsafe", policy)
        self.assertTrue(all(each["url"].startswith(self.server.url) or each["url"] == "about:blank"
                            for each in tab.requests()))
        for path in ("", "/jobs", "/hosts", "/cron", "/pending", "/operations", "/tiers", "/www-data",
                     "/deploy",
                     "/www-data/devel/small/0", "/www-data/devel/small/deploy",
                     "/www-data/devel/small?tab=config",
                     "/www-data/devel/small?tab=updates", "/www-data/devel/small?tab=sla"):
            tab.js("location.hash = '#/devcluster%s'" % path)
            tab.until("!document.querySelector('.loading, main [role=alert]')")
        self.assertTrue(all(each["url"].startswith(self.server.url) or each["url"] == "about:blank"
                            for each in tab.requests()))

    def test_what_others_wrote_is_text(self) -> None:
        evil = "<img src=x onerror=alert(1)>"
        place = self.create("evil", metadata={api.Metadata(key="note", value=evil)})
        self.good("PUT", "/alpha/job/" + self.KEY + "evil/update?message=" + urllib.parse.quote(evil), source(
            "evil", evil), status=202, content_type="text/plain")
        tab = self.tab(place)
        tab.until("document.querySelector('.panel')?.innerText.includes(%s)" % json.dumps(evil))
        for more in ("?tab=config", "?tab=updates", "/update/" + self.good(
                "GET", "/alpha/job/" + self.KEY + "evil/update")["update"]["id"]):
            tab.js("location.hash = %s" % json.dumps(place + more))
            tab.until("document.querySelector('main').innerText.includes(%s)" % json.dumps(evil))
        self.assertEqual(tab.js("document.images.length"), 0)
        self.demo.advance(300)

    def test_everything_seen_is_a_permalink(self) -> None:
        place = self.create("perma", 12)
        self.good("DELETE", "/alpha/job/" + self.KEY + "perma?shards=3,5")
        tab = self.tab(place)
        tab.until("document.querySelectorAll('tr[data-i]').length == 12")
        tab.click("Killing" if "Killing" in tab.text() else "Running", ".chips")
        tab.click("Instance", "thead")
        tab.click("Instance", "thead")
        tab.type("[type=search]", "1")
        tab.until("!location.hash.includes('open') && location.hash.includes('q=1')")
        rows = tab.rows()
        self.assertTrue(rows)
        other = self.tab(tab.js("location.hash"))
        other.until("document.querySelectorAll('tr[data-i]').length == %d" % len(rows))
        self.assertEqual([row[:3] for row in other.rows()], [row[:3] for row in rows])
        tab.click("Config", ".tabs")
        tab.until("document.querySelector('[aria-current=page][href*=config]')")
        tab.js("history.back()")
        tab.until("document.querySelectorAll('tr[data-i]').length == %d" % len(rows))
        for odd in ("#%", "#" + self.KEY + "perma", "#/devcluster/nobody/x/y", "#/nowhere"):
            tab.js("location.hash = %s" % json.dumps(odd))
            tab.until("!document.querySelector('.loading')")

    def test_live_and_a_server_that_is_gone(self) -> None:
        demo = aurora_rest.Demo(speed=1.0)
        first = aurora_rest.Server(port=0, demo=demo, evaluator=self.evaluator(), poll_interval=0.2).start()
        tab = self.tab("#/devcluster/www-data/prod/hello", first)
        tab.until("document.querySelectorAll('tr[data-i]').length == 2")
        tab.js("window.here = 1")
        before = tab.js("document.querySelector('tr[data-k=\"0\"] time').dateTime")
        ask(first, "DELETE", "/alpha/job/devcluster/www-data/prod/hello?shards=0")
        tab.until("document.querySelector('tr[data-k=\"0\"] time').dateTime != '%s'" % before, 2.0)
        with mock.patch.object(demo, "stop"):
            first.stop(0.1)
        tab.until("document.querySelector('.fresh').innerText.includes('Reconnecting')", 2.5)
        tab.until("document.querySelector('#notice').innerText.includes('ago')")
        self.assertEqual(len(tab.rows()), 2)
        self.assertTrue(tab.js("[...document.querySelectorAll('.head button')].every(b => b.disabled)"))
        second = aurora_rest.Server(port=first.port, clusters={"devcluster": demo.url},
                                    evaluator=self.evaluator(),
                                    poll_interval=0.2).start()
        self.addCleanup(demo.stop)
        self.addCleanup(second.stop, 0.1)
        tab.until("document.querySelector('.fresh').innerText.includes('Live')", 8)
        tab.until("document.querySelectorAll('tr[data-i]').length == 2")
        self.assertEqual(tab.js("window.here"), 1)

    def test_ten_thousand_instances(self) -> None:
        task = config("many").taskConfig
        with self.demo._lock:
            for number in range(10000):
                made = self.demo._new_task(task, number)
                made.status = S.RUNNING
                made.events = [(self.demo._ms - 5000 + i, state, None) for i, state in enumerate((
                    S.PENDING, S.ASSIGNED, S.STARTING, S.RUNNING))]
                made.host = next(iter(self.demo.hosts.values()))
                self.demo._note_active(made)
        tab = self.tab()
        tab.js("""window.long = []
            new PerformanceObserver(l => l.getEntries().forEach(e => long.push(e.duration))).observe(
              {entryTypes: ['longtask']}); window.began = performance.now()
            location.hash = '#/%smany'""" % self.KEY)
        tab.until("!!document.querySelector('tr[data-i]') && (window.first ||= performance.now() - began)")
        tab.until("document.querySelector('[aria-current=page] .count')?.innerText.trim() == '10\\u202f000'",
                  30)
        first = tab.js("first")
        time.sleep(1)
        tab.js("long.length = 0")
        spent = min(max(tab.js("""(() => {
            const began = performance.now(), box = document.querySelector('[type=search]')
            box.value = '%s'; box.dispatchEvent(new Event('input')); document.body.offsetHeight
            return performance.now() - began })()""" % text) for text in ("9", "99", "999", "9999", ""))
            for _ in range(3))
        tab.js("scrollTo(0, document.body.scrollHeight)")
        tab.until("document.querySelector('tr[data-k=\"9999\"]')")
        nodes, heap = tab.js("document.querySelectorAll('*').length"), tab.call("Runtime.getHeapUsage")[
            "usedSize"] >> 20
        longest = tab.js("Math.max(0, ...long)")
        sys.stderr.write("\n10,000 instances: first rows %.0f ms, filter %.0f ms a key, %d nodes, longest "
                         "task %.0f ms, heap %d MB\n"
                         % (first, spent, nodes, longest, heap))
        self.assertLessEqual(nodes, 1500)
        self.assertLess(heap, 100)
        with self.demo._lock:
            self.demo._active.pop(next(key for key in self.demo._active if key[2] == "many"))

    def test_actions_say_what_they_send(self) -> None:
        place = self.create("acted", 3)
        tab = self.tab(place)
        tab.click("Restart…", ".head")
        tab.until("document.querySelector('dialog')?.open")
        tab.click("Cancel", "dialog")
        tab.until("!document.querySelector('dialog')")
        self.assertEqual(self.sent(tab, "PUT"), [])
        tab.click("Kill…", ".head")
        self.assertEqual(tab.text("dialog pre"), "DELETE /alpha/job/%sacted" % self.KEY)
        self.assertTrue(tab.js("document.querySelector('dialog [type=submit]').disabled"))
        tab.click("Dry run", "dialog")
        tab.until("document.querySelector('dialog').innerText.includes('Nothing was sent')")
        self.assertEqual(self.states("acted"), ["RUNNING"] * 3)
        tab.js("document.querySelector('dialog').close()")
        tab.until("!document.querySelector('dialog')")
        tab.js("document.querySelectorAll('tbody [type=checkbox]')[1].click()")
        tab.click("Kill…", ".tools")
        tab.type("dialog [placeholder=Optional]", "too slow")
        shown = tab.text("dialog pre")
        tab.js("(b => { b.click(); b.click() })(document.querySelector('dialog [type=submit]'))")
        tab.until("!document.querySelector('dialog')")
        sent = [each for each in self.sent(tab, "DELETE") if "dry_run" not in each["url"]]
        self.assertEqual(len(sent), 1)
        self.assertEqual(shown, "DELETE " + sent[0]["url"][len(self.server.url):])
        self.assertIn("shards=1&message=too+slow", shown)
        self.assertIn("Idempotency-Key", sent[0]["headers"])
        tab.click("Restart…", ".head")
        tab.type("dialog [type=number]", "3")
        tab.until("!!document.querySelector('dialog')")
        tab.type("dialog label:last-of-type input", "acted")
        tab.js("document.querySelector('dialog [type=submit]').click()")
        tab.until("document.querySelector('#tray').innerText.includes('Restart')")

    def test_who_may_only_read_is_offered_nothing(self) -> None:
        place = "#/devcluster/www-data/prod/hello"
        with token_server() as (server, token):
            for name, count in (("rita", 0), ("alice", 3)):
                tab = self.tab(place, server)
                self.log_in(tab, token[name])
                tab.until("document.querySelectorAll('tr[data-i]').length == 2")
                tab.until("document.querySelectorAll('.head button').length == %d" % count)
                tab.js("location.hash = '#/devcluster/batch/prod/indexer'")     # not alice's role
                tab.until("document.querySelectorAll('tr[data-i]').length == 3")
                self.assertEqual(tab.js("document.querySelectorAll('.head button').length"), 0)
        with aurora_rest.Server(port=0, demo=True, page="read", evaluator=self.evaluator()) as server:
            tab = self.tab(place, server)
            tab.until("document.querySelectorAll('tr[data-i]').length == 2")
            self.assertEqual(tab.js("document.querySelectorAll('.head button').length"), 0)

    def log_in(self, tab: Any, token: Any, keep: Any = False) -> None:
        tab.until("!!document.querySelector('dialog [type=password]')")
        tab.type("dialog [type=password]", token)
        if keep:
            tab.js("document.querySelector('dialog [type=checkbox]').click()")
        tab.click("Log in", "dialog")

    def test_login_keeps_the_token_to_itself(self) -> None:
        with token_server() as (server, token):
            tab = self.tab("", server)
            self.log_in(tab, "wrong")
            tab.until("document.querySelector('dialog').innerText.includes('not known')")
            self.log_in(tab, token["alice"], keep=True)
            tab.until("document.querySelector('#top').innerText.includes('alice')")
            tab.until("!!document.querySelector('.cols')")
            self.assertEqual(tab.js("[location.href, ...Object.values(localStorage), "
                                    "document.cookie].some(x => x.includes('%s'))"
                                    % token["alice"]), False)
            history = tab.call("Page.getNavigationHistory")["entries"]
            self.assertFalse([each for each in history if token["alice"] in each["url"]])
            self.assertFalse([each for each in tab.requests() if token["alice"] in each["url"]])
            tab.call("Page.reload")
            tab.until("document.querySelector('#top')?.innerText.includes('alice')")
            tab.click("alice", "#top")
            tab.click("Log out", "dialog")
            tab.until("!!document.querySelector('dialog [type=password]')")
            self.assertEqual(tab.js("sessionStorage.getItem('auth')"), "")

    def test_logs(self) -> None:
        rotate, self.demo.observer.rotate = self.demo.observer.rotate, (60000, 3)
        self.addCleanup(setattr, self.demo.observer, "rotate", rotate)
        place = self.create("logs", 2, command="while true; do echo %s; sleep 1; done" % ("ä€" * 200))
        tab = self.tab(place + "?tab=logs")
        shown = "[...document.querySelectorAll('.log p')].map(e => e.innerText).join('')"
        tab.until(shown + ".length")
        tab.until("document.querySelector('.logs').innerText.match(/\\d+ lines?, /)")
        for _ in range(30):
            self.demo.advance(100)
            tab.until(shown + ".includes('Rotated') || document.querySelector('.log').scrollTop > 0")
        self.assertLessEqual(tab.js("Number(document.querySelector('.logs > :last-child').innerText"
                                    ".replace(/\\D.*/, ''))"), 5000)
        self.assertLess(tab.js("document.querySelectorAll('*').length"), 1500)
        self.assertEqual(tab.js(shown + ".includes('\\ufffd')"), False)
        self.assertTrue(tab.js("(e => e.scrollHeight - e.scrollTop - e.clientHeight < 30)("
                               "document.querySelector('.log'))"))
        tab.js("document.querySelector('.log').scrollTop = 0")
        tab.until("location.hash.includes('at=')")
        self.demo.advance(3)
        tab.until("document.querySelector('.logs .main')?.innerText.includes('new line')")
        tab.js("document.querySelector('.logs .main').click()")
        tab.until("!location.hash.includes('at=')")
        tab.type(".logs [type=search]", "nowhere")      # what is left are the marks
        tab.until("document.querySelectorAll('.log p:not(.dim)').length == 0")
        self.good("PUT", "/alpha/job/" + self.KEY + "logs/restart?shards=0", status=202)
        wait_for(lambda: self.demo.advance(5) or tab.js(
            "document.querySelector('.log').innerText.includes('Task www-data-devel-logs-0')"))
        tab.type(".logs [type=search]", "ä€")
        tab.until("document.querySelectorAll('.log p:not(.dim)').length > 0")

    def test_logs_of_many_are_not_told_twice(self) -> None:
        place = self.create("many-logs", 2, command="echo once")
        tab = self.tab(place + "?tab=logs&i=0-1")
        lines = "document.querySelectorAll('.log p:not(.dim)').length"
        tab.until(lines + " == 2")
        self.assertEqual(tab.js("[...document.querySelectorAll('.log b')].map(e => e.innerText)"
                                ".sort().join()"), "0,1")
        for state in ("Paused", "Live"):
            tab.click("Paused" if state == "Live" else "Live", "#top")
            tab.until("document.querySelector('.fresh').innerText.includes('%s')" % state)
        wait_for(lambda: sum("/logs/" in each["url"] for each in tab.requests()) == 2)
        self.demo.advance(5)
        self.assertEqual(tab.js(lines), 2)

    def test_output_and_errors_are_shown_in_one_view_told_apart_by_a_word(self) -> None:
        tab = self.tab(self.create("twofold", 1, command="echo said; echo wrong >&2") + "?tab=logs")
        tab.click("both", ".logs")
        tab.until("document.querySelectorAll('.log p:not(.dim)').length == 2")
        self.assertEqual(tab.js("[...document.querySelectorAll('.log p:not(.dim)')].map(e => e.innerText"
                                ".replace(/\\s/g, '')).sort().join()"), "errwrong,outsaid")
        self.assertTrue(tab.js("location.hash.includes('stream=both')"))
        tab.click("stderr", ".logs")
        tab.until("document.querySelectorAll('.log p:not(.dim)').length == 1")
        self.assertEqual(tab.js("document.querySelector('.log p:not(.dim)').innerText.trim()"), "wrong")

    def test_the_agent_is_asked_instead_of_the_observer(self) -> None:
        tab = self.tab(self.create("by-agent", 1, command="echo said") + "?tab=logs")
        tab.until("document.querySelector('.log p:not(.dim)')?.innerText.includes('said')")
        tab.click("From the agent", ".logs")
        # it has none here, and says what it takes
        tab.until("document.querySelector('.log')?.innerText.includes('--agent-port names its port')")
        self.assertTrue(any(re.search(r"/instances/0/logs\?.*&source=agent&", each["url"])
                            for each in tab.requests()))
        tab.click("From the agent", ".logs")
        tab.until("document.querySelector('.log p:not(.dim)')?.innerText.includes('said')")

    def test_processes_and_files_of_an_instance(self) -> None:
        tab = self.tab(self.create("filed", 1, command="echo written") + "/0")
        tab.click(".logs", "main")
        tab.click("p/", "main")
        tab.click("0/", "main")
        tab.until("location.hash.includes('path=.logs%2Fp%2F0')")
        with tempfile.TemporaryDirectory() as folder:
            tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
            tab.click("stdout", "main")
            wait_for(lambda: os.path.exists(os.path.join(folder, "stdout")))
            with open(os.path.join(folder, "stdout"), encoding="utf-8") as stream:
                self.assertEqual(stream.read(), "written\n")
        tab.click("p", "main table")
        tab.until("document.querySelector('.log')?.innerText.includes('written')")

    def test_what_failed_tells_its_last_words_and_an_instance_its_processes_and_files(self) -> None:
        self.demo.createJob(config("ill", command="echo broken >&2; exit 1"))
        self.demo.advance(30)
        tab = self.tab("#/" + self.KEY + "ill")
        tab.until("document.querySelector('[aria-label=\"Last words\"]')?.innerText.includes('broken')", 20)
        tab.call("Page.navigate", url=self.server.url + "/#/devcluster/www-data/prod/hello/0")
        tab.until("[...document.querySelectorAll('h2')].some(e => e.innerText == 'Files')")
        self.assertIn("Running", tab.text("main"))
        tab.click("data/")
        tab.until("document.querySelector('main').innerText.includes('Files: data')")
        tab.until("document.querySelector('main').innerText.includes('a b.csv')")

    @unittest.skipUnless(os.environ.get("AXE"), "needs AXE, the path of axe-core's axe.min.js")
    def test_axe_finds_nothing_serious(self) -> None:
        with open(os.environ["AXE"], encoding="utf-8") as stream:
            axe = stream.read()
        self.create("sound", 12)
        for scheme, width in (("light", 1400), ("dark", 390)):
            tab = self.tab(width=width)
            tab.call("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.js(axe + "; 0")
            for place in ("", "/jobs", "/hosts", "/pending", "/cron", "/operations", "/tiers", "/www-data",
                          "/deploy", "/www-data/devel/sound", "/www-data/devel/sound?open=1",
                          "/www-data/devel/sound?tab=config", "/www-data/devel/sound?tab=updates",
                          "/www-data/devel/sound?tab=sla", "/www-data/devel/sound?tab=logs",
                          "/www-data/devel/sound/1", "/www-data/devel/sound/deploy"):
                tab.js("document.querySelector('h1').remove(); location.hash = '#/devcluster%s'" % place)
                tab.until("!!document.querySelector('h1')")
                found = tab.js("""axe.run().then(r => r.violations.filter(v => ['serious',
                    'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes[0].html.slice(0, 200)))""")
                self.assertEqual(found, [], (scheme, place))

    def test_the_way_back(self) -> None:
        place = self.create("return", 2)
        self.good("PUT", "/alpha/job/" + self.KEY + "return/update", source(
            "return", "second", "instances=2, update_config=UpdateConfig(watch_secs=1)"), status=202,
            content_type="text/plain")
        self.demo.advance(300)
        tab = self.tab(place + "?tab=updates")
        tab.until("document.querySelectorAll('tr[data-i]').length == 3")
        first = self.good("GET", "/alpha/job/" + self.KEY + "return/history")["versions"][1]["id"]
        tab.js("document.querySelector('tr[data-k=\"%s\"] button').click()" % first)
        tab.until("document.querySelector('.diff').innerText.includes('second')")
        page_says = tab.js("[...document.querySelectorAll('.diff dt')].map(e => e.innerText)")
        tab.js("document.querySelector('tr[data-k=\"%s\"] td:last-child button').click()" % first)
        tab.click("Dry run", "dialog")
        tab.until("document.querySelector('dialog .diff')?.innerText.includes('second')")
        self.assertEqual(tab.js("[...document.querySelectorAll('dialog .diff dt')].map(e => e.innerText)"),
                         page_says)
        tab.js("document.querySelector('dialog [type=submit]').click()")
        tab.until("location.hash.includes('/update/') && !!document.querySelector('.grid')")
        self.demo.advance(300)
        tab.until("document.querySelector('.facts').innerText.includes('Rolled forward')")
        self.assertEqual(self.good("GET", "/alpha/job/" + self.KEY + "return/history")["versions"][0]["id"],
                         first)

    def test_deploy_plans_asks_and_watches(self) -> None:
        self.create("shipped", 2)
        tab = self.tab("#/" + self.KEY + "shipped/deploy")
        tab.js("document.querySelector('textarea').focus()")
        for letter in "# a":
            tab.call("Input.insertText", text=letter)
        self.assertEqual(tab.js("document.activeElement.value"), "# a")
        tab.type("textarea", source("shipped", "anew", "instances=2"))
        tab.click("Read")
        tab.until("document.querySelector('.diff')?.innerText.includes('anew')", 20)
        tab.click("Start update…")
        tab.until("document.querySelector('dialog')?.innerText.includes('If-Match')")
        self.assertEqual(self.sent(tab, "PUT"), [])
        tab.js("document.querySelector('dialog [type=submit]').click()")
        tab.until("location.hash.includes('/update/') && !!document.querySelector('.grid')", 20)
        self.assertEqual(tab.js("document.querySelector('.grid').getAttribute('aria-valuemax')"), "1")
        self.demo.advance(300)

    def test_it_can_be_used_without_eyes_colours_or_a_mouse(self) -> None:
        tab = self.tab(self.create("plain", 30))
        tab.until("document.querySelectorAll('tr[data-i]').length > 10")
        reached = set()
        for _ in range(25):
            tab.press("Tab")
            reached.add(tab.js("(e => e.innerText || e.ariaLabel || e.placeholder || "
                               "e.nodeName)(document.activeElement)"))
            self.assertNotEqual(tab.js("getComputedStyle(document.activeElement).outlineStyle"), "none")
        self.assertTrue({"Overview", "Restart…", "Kill…"} <= {each.split("\n")[0] for each in reached},
                        reached)
        self.assertEqual(tab.js("[...document.querySelectorAll('tr[data-i] .st')].every(e => "
                                "e.querySelector('svg') && e.innerText)"), True)
        self.assertEqual(tab.js("[...document.querySelectorAll('input, select, textarea')].filter(e => "
                                "!e.ariaLabel && !e.closest('label')).length"), 0)
        self.assertEqual(tab.js("document.querySelectorAll('h1').length"), 1)
        tab.js("document.activeElement.blur()")
        tab.press("j")
        tab.until("document.activeElement.closest('tr')?.dataset.i == '0'")
        tab.press("j")
        tab.until("document.activeElement.closest('tr')?.dataset.i == '1'")
        tab.press("x")
        tab.until("document.querySelector('.tools').innerText.includes('1 selected')")
        tab.press("/")
        tab.until("document.activeElement.role == 'combobox' || document.activeElement.getAttribute('role') "
                  "== 'combobox'")
        tab.type("dialog input", "plain")
        tab.until("document.querySelectorAll('[role=option]').length > 0")
        tab.js("document.querySelector('dialog').close()")
        tab.size(320, 800)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
        for place in ("", "/jobs", "/hosts", "/pending", "/cron", "/operations", "/www-data",
                      "/www-data/devel/plain",
                      "/www-data/devel/plain?open=1", "/www-data/devel/plain?tab=config",
                      "/www-data/devel/plain?tab=updates",
                      "/www-data/devel/plain/1", "/deploy"):
            tab.js("location.hash = '#/devcluster%s'" % place)
            time.sleep(0.3)
            tab.until("!document.querySelector('.loading')")
            self.assertLessEqual(tab.js("document.documentElement.scrollWidth"), 320, place)

    def test_one_cluster_that_is_down_does_not_hide_the_others(self) -> None:
        server = aurora_rest.Server(port=0, demo="up", clusters={"down": "http://127.0.0.1:1"},
                                    evaluator=self.evaluator(),
                                    scheduler={"retry_for": 0.2}).start()
        self.addCleanup(server.stop, 0.1)
        tab = self.tab("#/up", server)
        tab.until("document.querySelector('main').innerText.includes('www-data')")
        self.assertEqual(tab.js("[...document.querySelector('#top select').options].map(o => "
                                "o.value).sort().join()"), "down,up")
        tab.js("location.hash = '#/down'")
        tab.until("document.querySelector('main [role=alert]')?.innerText.includes('127.0.0.1:1')", 15)
        tab.js("location.hash = '#/up/www-data'")
        tab.until("document.querySelectorAll('tr[data-i]').length == 2")


class ReadmeTest(Serving):
    readme: str
    SPEED = 20.0

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as stream:
            cls.readme = stream.read()

    def test_the_table_of_options_is_that_of_the_code(self) -> None:
        shown = matched(r"<!-- options -->\n(.*?)\n<!-- /options -->", self.readme, re.DOTALL).group(1)
        self.assertEqual(shown, options_table())

    def test_the_table_of_metrics_is_that_of_the_code(self) -> None:
        shown = matched(r"<!-- metrics -->\n(.*?)\n<!-- /metrics -->", self.readme, re.DOTALL).group(1)
        self.assertEqual(shown, metrics_table(self.server.service.metrics))

    def alert_rules(self) -> Any:
        return matched(r"```yaml\n(groups:.*?)```", self.readme, re.DOTALL).group(1)

    def test_alerts_ask_for_metrics_that_there_are(self) -> None:
        self.ask("GET", "/alpha/jobs/devcluster/www-data")
        self.ask("GET", "/alpha/nothing")
        text = self.ask("GET", "/metrics").body.decode()
        text += "aurora_rest_tls_certificate_expiry_time_seconds "
        rules = self.alert_rules()
        self.assertEqual(rules.count("alert:"), 10)
        for name in set(re.findall(r"\b(?:aurora_rest|process)_\w+", rules)):
            self.assertRegex(text, r"(?m)\b%s[ {]" % name)

    @unittest.skipUnless(shutil.which("promtool"), "needs promtool, of Debian's package prometheus")
    def test_promtool_takes_the_alerts_and_the_metrics(self) -> None:
        self.ask("GET", "/alpha/jobs/devcluster/www-data")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rules.yml")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(self.alert_rules())
            done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
            self.assertEqual((done.returncode, "10 rules found" in done.stdout), (0, True), done)
        text = self.ask("GET", "/metrics").body.decode()
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "needs systemd-analyze")
    def test_the_systemd_unit_is_one_and_is_hardened(self) -> None:
        unit = matched(r"```ini\n(\[Unit\].*?)```", self.readme, re.DOTALL).group(1)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "aurora-rest.service")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(unit.replace("/opt/aurora_rest/.venv/bin/python", sys.executable))
            done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=25", path],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout[-300:] + done.stderr)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True,
                                  text=True)
            self.assertEqual([line for line in done.stderr.splitlines() if "aurora-rest.service" in line], [])

    def test_the_proxies_recipes_name_what_this_server_reads(self) -> None:
        for header in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Prefix"):
            self.assertIn(header, self.readme)

    def test_every_request_in_the_table_of_commands_is_a_route(self) -> None:
        rows = re.findall(r"^\| (?:`aurora|force).*?\| (.*) \|$", self.readme, re.MULTILINE)
        self.assertGreater(len(rows), 25)
        methods = set()
        for row in rows:
            for code in re.findall(r"`([^`]*)`", row):
                match = re.match(r"(GET|PUT|POST|DELETE) (/\S+)", code)
                if match:
                    path = match.group(2).split("?")[0].replace("/K", "/c/r/e/n").replace("/C", "/c")
                    found, _ = aurora_rest._match("/alpha" + path)
                    self.assertIn(match.group(1), found, code)
                    methods.add(match.group(1))
        self.assertEqual(len(methods), 4)

    @unittest.skipUnless(shutil.which("curl") and shutil.which("bash"), "needs curl")
    def test_the_examples_work_as_they_stand(self) -> None:
        self.paste("bash", "-c")

    @unittest.skipUnless(shutil.which("curl") and shutil.which("zsh"), "needs curl and zsh")
    def test_the_examples_work_in_zsh(self) -> None:
        """Read as at its prompt, where a # begins no comment."""
        self.paste("zsh", "-f", "+o", "interactivecomments", "-c")

    def paste(self, *shell: Any) -> None:
        """Each example in the README; none may answer a failure but those that say so."""
        section = self.readme.split("## API by example")[1].split("### In a pipeline")[0]
        blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
        self.assertEqual([line for line in "".join(blocks).splitlines() if re.search(r"(^|\s)#", line)], [])
        script = "\n".join(blocks)
        script = script.replace("localhost:8888", "localhost:%d" % self.server.port).replace("--max-time 3",
                "--max-time 0.5")
        self.ask("DELETE", JOB + "hello_world?wait=20")
        failures = []
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*shell, script], cwd=folder, capture_output=True, text=True, timeout=120)
        for line in done.stdout.splitlines():
            if line.startswith('{"status"') and '"failure"' in line[:30]:
                failures.append(json.loads(line)["errors"])
        self.assertEqual(failures, [
            ["the update ended as ROLLED_BACK: Latest failure: instance 0 exited.; instance 0 ended as "
             "FAILED: Task failed."],
            ["no active update of job devcluster/www-data/devel/hello_world"]], done.stdout[-3000:])
        self.assertIn('"reached": true', done.stdout)
        self.assertGreater(done.stdout.count('"status": "success"'), 25)

    def test_openapi_is_valid(self) -> None:
        validator = importlib.util.find_spec("openapi_spec_validator")
        if validator is None:
            self.skipTest("needs the package openapi-spec-validator")
        importlib.import_module("openapi_spec_validator").validate(json.loads(aurora_rest.openapi_text()))

    def test_the_tree_holds_what_it_may(self) -> None:
        allowed = {"aurora_rest.py", "test_aurora_rest.py", "README.md", "LICENSE", "__pycache__"}
        found = {os.path.basename(path) for path in glob.glob(os.path.join(HERE, "*"))}
        self.assertLessEqual({each for each in found if not each.endswith(".aurora")} - {"bin"}, allowed)


# --- mutations: python test_aurora_rest.py --mutants --------------------------------------------------------
# Each breaks one behaviour in a copy of the file; the tests named have to fail then. (what is broken, the
# text, what takes its place, tests.) Blanks and line ends in the text do not count, so that a line may be
# broken elsewhere.

MUTANTS = [
    # 1. HTTP
    ("credentials of two callers are joined", 'if framing or key in _SINGLE_FIELDS and text != headers[key]:',
     'if framing:', "ParserTest"),
    ("HTTP/1.0 keeps alive by itself", '(version == 1 or "keep-alive" in options)', 'True', "ParserTest"),
    ("a length and chunks go together",
     'if "content-length" in headers: raise BadRequest("content-length and transfer',
     'if False: raise BadRequest("content-length and transfer', "ParserTest"),
    ("# is allowed in a target", 'or b"#" in target', '', "ParserTest"),
    ("chunk sizes may be signed", 'rb"([0-9A-Fa-f]{1,15})', 'rb"([+\\-0-9A-Fa-f]{1,15})', "ParserTest"),
    ("a chunked body has no limit",
     'if self.size > self.limit: '
     'raise BodyTooLarge("the body is larger than %d bytes" % self.limit) if size:',
     'if size:', "ParserTest"),
    ("only the first member of gzip is read", 'data = decoder.unused_data', 'data = b""', "ParserTest"),
    ("file names may climb", 'reaches_outside(path) or "\\0" in path',
     '"\\0" in path', "ParserTest"),
    ("numbers of any length", 'if len(digits) > MAX_DIGITS:', 'if False:', "ParserTest"),
    ("weak tags hold for If-Match", 'any((weak or not mark) and', 'any((True or not mark) and',
     "WireTest RoutesTest OutcomeTest"),
    ("a Later answers although nothing is ready", 'answer = self.ready() if self._sink else None',
     'answer = self.otherwise() if self._sink else None',
     "RestartTest.test_waits_tell_whether_they_were_reached"),
    ("an expiry before the start is lost", 'self._late = True       # first',
     'self._late = False       # first', "ParserTest"),
    ("listeners are not forgotten",
     'left = self._listeners.pop(listener, self) is self or bool(self._listeners)', 'left = True',
     "LimitsTest.test_hostile_streams_and_head_do_not_leak_watchers RestartTest EventsTest"),
    ("a poll never ends", 'self.ended = self.resting and started - self._left >= self.linger',
     'self.ended = False', "RestartTest"),
    ("a gap is not told", 'gap = event_bytes("", "gap"', 'event_bytes("", "gap"', "EventsTest"),
    ("a newcomer gets the history",
     'mark = oldest if self._found is None else (self._stand(), 0, self._number)', 'mark = oldest',
     "EventsTest"),
    ("streams have no heartbeat", 'connection.push(waiting.beat)', 'pass', "EventsTest"),
    ("what is held is not freed at the close", 'self.count(0) waiting, self.waiting', 'waiting, self.waiting',
     "LimitsTest"),
    ("a caller has no share of bodies", 'else "caller" if mine + wanted > self.share else ""', 'else ""',
     "LimitsTest"),
    ("unread answers are not bounded",
     'self.server.refusals["unsent"] += 1 self.server.loop.soon(self.close)', 'pass', "LimitsTest"),
    ("a slow reader is kept", 'late = late or self.taken < self.server.limits["send_rate"]',
     'late = late and self.taken < self.server.limits["send_rate"]', "LimitsTest"),
    ("a slow body is kept", 'late = late or seconds > self.server.GRACE and incoming.held',
     'late = late and seconds > self.server.GRACE and incoming.held', "LimitsTest"),
    ("waiting for a thread has no limit",
     'late = [run for run in self._queued if now - run.since > self.limits["queue_time"]]', 'late = []',
     "LimitsTest"),
    ("work that turns out long keeps the lead", 'workers.pass_on()', 'pass', "RoomTest"),
    ("the queue has no limit", 'if self.workers.queue.qsize() >= self.limits["queue"]:', 'if False:',
     "LimitsTest"),
    ("connections have no limit",
     'while len(self.connections) > self.limits["connections"]:', 'while False:',
     "LimitsTest"),
    ("a read joins one that has begun", 'self._pending.pop(run.share, None)', 'pass', "WireTest"),
    ("many requests at once leave no room for others", 'if turn >= 8:', 'if turn >= 8000000:', "LimitsTest"),
    ("a drain keeps idle connections",
     'if not connection.engaged: connection.close()', 'pass', "LimitsTest"),
    ("a drain leaves those who wait",  'self.workers.put(waiting.expire)', 'pass', "ProcessTest"),
    ("TLS ends without a word", 'with suppress(OSError, ValueError): unwrap()', 'pass',
     "ProcessTest"),
    ("a dead loop is no failure", 'self.failure = self.workers.failure or', 'self.failure = "" and',
     "ProcessTest"),
    # 2. Thrift API
    ("32 bits may be more", 'if not -(1 << _INTEGER_BITS[kind]) <= value < 1 << _INTEGER_BITS[kind]:',
     'if False:', "ThriftTest"),
    ("a union may have two fields", 'if cls.is_union and len(value) != 1:', 'if False:', "ThriftTest"),
    # 3. Scheduler
    ("the semaphore lets one more in", 'if not self._free or who is not None',
     'if self._free < -1 or who is not None', "SchedulerTest"),
    ("a caller with his share holds up the others",
     'if self._grant(turn[1]): self._line.remove(turn) turn[0].release()',
     'if not self._grant(turn[1]): return\n'
     '            self._line.remove(turn)\n            turn[0].release()',
     "SchedulerTest"),
    ("the circuit never opens", 'if self.failures >= self.AFTER: self.open_until',
     'if False:\n                self.open_until', "SchedulerTest FaultTest"),
    ("writes are sent twice", '(repeatable or not broken.sent)', '(True or not broken.sent)',
     "SchedulerTest"),
    ("the doubt of an attempt is forgotten", 'failure.sent = sent raise failure from None',
     'raise failure from None', "SchedulerTest"),
    ("credentials go anywhere", 'if authorization and not self.leadership.names(location):', 'if False:',
     "SchedulerTest"),
    ("a prune of nothing is sent", 'if not found: return None return scheduler.prepare("pruneTasks"',
     'return scheduler.prepare("pruneTasks"', "SchedulerTest RoutesTest"),
    ("an empty set of instances is sent",
     'if field and getattr(made, field) is not None and not getattr(made, field):', 'if False:',
     "SchedulerTest"),
    ("an OK without its result is one", 'if field and part(part(response', 'if False and part(part(response',
     "SchedulerTest"),
    # 4. Job configuration
    ("private names are allowed", 'if _REFUSED_ATTRIBUTE.fullmatch(node.attr) and not own and not special:',
     'if False:', "ConfigTest"),
    ("source is evaluated where nothing shuts it in",
     'if not self.trusted and not isolates(worker.isolation):', 'if False:', "ConfigTest"),
    ("a forged result passes",
     'if job.key != wanted or job.taskConfig is None or job.taskConfig.job != wanted:', 'if False:',
     "ConfigTest"),
    ("equal meaning is no equality", 'task[field] = sorted(task[field], key=_sorted_json)', 'pass',
     "Python2Test"),
    # 5. Operations
    ("a dry run sends", 'if self.dry_run: left', 'if False:\n            left', "RoutesTest"),
    ("no one asks whether he may", 'self.permit(ask.method, ask.arguments)', 'pass', "AccessTest"),
    ("two callers scale at once",
     'with locked("instances", key): active, staying = _active_and_staying(scheduler, key) if',
     'if True:\n        active, staying = _active_and_staying(scheduler, key)\n        if',
     "RestartTest.test_callers_at_once_scale_to_what_they_say"),
    ("the dying are counted",
     'instances_of(task for task in tasks if task["status"] != ScheduleStatus.KILLING)',
     'instances_of(tasks)', "RestartTest"),
    ("a slot is taken after the effect",
     'call.slot = None if call.get("dry_run") else self.operations.take()', 'call.slot = None',
     "RestartTest"),
    ("a restart watches nobody", 'elif now - since >= options.watch_secs:', 'elif True:', "RestartTest"),
    ("failures are not counted", 'run.failed += 1 if run.failed', 'if run.failed', "RestartTest"),
    ("killed by others is running",
     'ended += [task for task in latest.values() if task["status"] in (*_FAILED, ScheduleStatus.KILLED)]', '',
     "OperationsTest RestartTest"),
    ("an update that pauses itself is waited for", 'paused and not last.user)', 'False)', "OutcomeTest"),
    # 6. Service
    ("wrong instances mean all", 'if name not in known: raise BadRequest("unknown parameter',
     'if name not in known: continue\n            if False: raise BadRequest("unknown parameter',
     "OriginalEndpointsTest RoutesTest"),
    ("an empty filter is none", 'if not all(each.strip() for each in values):', 'if False:', "RoutesTest"),
    ("callers share answers whatever their credentials",
     'return (request.path, _lasting_query(request), headers.get("authorization"), headers.get("host")',
     'return (request.path, _lasting_query(request), headers.get("host")', "AccessTest"),
    ("If-Match is passed over", 'with locked("if-match", self.key_of(call.request)):\n'
     '                    self._hold(call, chosen)', 'if True:', "OutcomeTest"),
    ("writes are taken while it stops", 'if self.draining and chosen.method in _WRITES:', 'if False:',
     "LimitsTest"),
    ("a key is settled by the status", 'if call.sent: self.answers', 'if True:\n                self.answers',
     "RoutesTest"),
    ("two different requests with one key are one", 'if first.asked != asked:', 'if False:', "RoutesTest"),
    ("a wait for an outcome has no share", 'if self.add(caller, 1): self',
     'if self.add(caller, 1) == "all":\n            self', "RestartTest"),
    ("what was asked before the caller came is new", 'if poll.asked <= began:', 'if poll.answer is None:',
     "RestartTest OutcomeTest"),
    ("a 401 says nothing of what it wants",
     'raise Unauthorized("the token is not known here", headers=_CHALLENGE)',
     'raise Unauthorized("the token is not known here")', "AccessTest"),
    ("count_up is passed over", 'elif "count_up" in call.params:', 'elif False:',
     "RoutesTest.test_sla_figures_are_served"),
    ("an unknown host is safe", 'if unknown: tasks', 'if False:\n        tasks', "OutcomeTest"),
    ("refused writes leave no line",
     'self.audit(request, response.code or "done", response.status, response)',
     'pass', "OutcomeTest AuditTest"),
    ("a second restart runs beside the first", 'if alone: try:', 'if False:\n                try:',
     "RestartTest.test_who_comes_second_is_refused_before_anything_and_takes_no_place"),
    ("a write is sent without its line", 'if not self.audit_required: return', 'return', "AuditTest"),
    ("a proxy opens a server that asks nobody", 'if level != "read" and nobody and (', 'if False and (',
     "ProxyTest"),
    ("who is not named is the proxy", '"unknown" if words[1] == "UNKNOWN"', 'None if words[1] == "UNKNOWN"',
     "ProxyTest"),
    ("the proxy's certificate is a user", 'if self.user_header and request.trusted: # it is',
     'if False: # it is', "AccessTest"),
    ("one user's key is another's", 'quote(given, safe="@")', 'quote(given, safe="@").replace("%2F", "_")',
     "AccessTest"),
    ("padding hides a job from the trail", 'return _shortened(value, 200)', 'return value', "AuditTest"),
    ("streams go on for whom nothing is allowed any more",
     'if waiter is not None and (connection.tls', 'if False and (connection.tls', "AccessTest"),
    ("revoked certificates are let in", 'context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN', 'pass',
     "AccessTest"),
    ("a job that comes again is forgotten", 'if before.get(whole.message) == hash(reply): return {}',
     'if hash(reply): return {}', "EventsOfManyTest"),
    ("the first address counts", 'for each in reversed(said):', 'for each in said:', "ProxyTest"),
    ("tokens never end", 'lines = [user if time.time() < until else None', 'lines = [user', "AccessTest"),
    ("any certificate is let in", 'if self.tokens and self.tokens.maps_certificates:', 'if False:',
     "AccessTest"),
    ("an unknown name in the file is passed over", 'if option.name == name: return option', 'return option',
     "ProcessTest.test_a_name_that_is_no_option_is_told_with_the_nearest"),
    # 7. Demo
    ("SLAs always allow", 'return up / total * 100 >= percentage', 'return True', "DemoTest"),
    ("backups are kept for ever", 'for old in sorted(self._backups)[:-48]:', 'for old in ():', "DemoTest"),
    ("batches go the wrong way back", 'return idle[:left % sizes[-1] or sizes[-1]]', 'return idle[:sizes[0]]',
     "DemoTest"),
    # 8. Server
    ("a reload leaves the certificate",
     'server.http.tls = fresh', 'pass',
     "ProcessTest"),
    ("client certificates are not wanted", 'context.verify_mode = ssl.CERT_REQUIRED', 'pass',
     "ProcessTest AccessTest"),
    ("netrc is passed over", 'if entry: return "Basic "', 'if False: return "Basic "', "SchedulerTest"),
    ("a line that was to be made later is made for nobody",
     "line = made if isinstance(made, str) else made()", 'line = made if isinstance(made, str) else ""',
     "ProcessTest"),
    ("a busy processor is not left", "room[best] > room[here] + self.MORE", "False", "ProcessTest"),
    ("the log waits for its reader", 'if self._size + size > self.ROOM or not self._running():',
     'if not self._running():', "ProcessTest"),
]


def _mutated(source: Any, old: Any, new: Any) -> Any:
    """The source with the one place of `old`, however its blanks fall, changed."""
    pattern = r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", old)))
    found = list(re.finditer(pattern, source))
    if len(found) != 1:
        raise SystemExit("%d places, not one, have the text: %s" % (len(found), old))
    made = source[:found[0].start()] + new + source[found[0].end():]
    compile(made, "mutant", "exec")
    return made


def _mutants_main(arguments: Any) -> Any:
    """Break one behaviour after the other; exit with 1 where the tests named do not see it."""
    with open(os.path.join(HERE, "aurora_rest.py"), encoding="utf-8") as stream:
        source = stream.read()
    wanted = [each for each in MUTANTS if not arguments or any(text in each[0] for text in arguments)]
    mutants = [(each[0], _mutated(source, each[1], each[2]), each[3].split()) for each in wanted]
    survivors, lock, started = [], threading.Lock(), time.monotonic()

    def work() -> None:
        while True:
            with lock:
                if not mutants:
                    return
                text, mutant, names = mutants.pop(0)
            with tempfile.TemporaryDirectory() as folder:
                for each in ("test_aurora_rest.py", "README.md"):
                    shutil.copy(os.path.join(HERE, each), folder)
                with open(os.path.join(folder, "aurora_rest.py"), "w", encoding="utf-8") as stream:
                    stream.write(mutant)
                try:
                    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "unittest", "-f", *(
                        "test_aurora_rest." + each for each in names)], cwd=folder, capture_output=True,
                        timeout=150)
                    killed = done.returncode != 0
                except subprocess.TimeoutExpired:
                    killed = True
            with lock:
                print("%-8s %s" % ("killed" if killed else "SURVIVED", text), flush=True)
                survivors.extend([] if killed else [text])
    threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    print("%d mutations, %d survived, %.0f s" % (len(wanted), len(survivors), time.monotonic() - started))
    return 1 if survivors else 0


# --- benchmarks: python test_aurora_rest.py --bench ---------------------------------------------------------

def _pre_encoded(jobs: Any, tasks: Any = 0, variant: Any = 0) -> Any:
    """The bytes of a getJobs answer with `jobs` jobs of real size, and of a getTasksWithoutConfigs answer.
    Those of two variants differ at their end."""
    padding = "x" * 2000
    configs = [config("job-%05d" % number, "serve " + padding, 3) for number in range(jobs - 1)]
    configs.append(config("job-last", "serve " + padding, 3 + variant))
    listing = api.Response(responseCode=1, details=[],
                           serverInfo=api.ServerInfo(clusterName="bench", statsUrlPrefix=""),
                           result=api.Result(getJobsResult=api.GetJobsResult(configs=configs)))
    bare = config("job").taskConfig.replace(executorConfig=api.ExecutorConfig(name="AuroraExecutor"))
    states = [api.ScheduledTask(
        assignedTask=api.AssignedTask(taskId="www-data-devel-job-%d-%s" % (i, "0" * 36), slaveId="agent-%d" %
                                      i, slaveHost="host-%d" % i,
                                      task=bare, assignedPorts={"http": 31000 + i}, instanceId=i),
        status=S.RUNNING, failureCount=variant, timesPartitioned=0,
        taskEvents=[api.TaskEvent(timestamp=1700000000000 + j, status=s, scheduler="scheduler") for j,
                    s in enumerate((0, 9, 1, 2))])
        for i in range(tasks)]
    status = api.Response(responseCode=1, details=[], result=api.Result(
        scheduleStatusResult=api.ScheduleStatusResult(tasks=states)))
    return {b"getJobs": aurora_rest.encode_reply(BINARY, "getJobs", 0, listing),
            b"getTasksWithoutConfigs": aurora_rest.encode_reply(BINARY, "getTasksWithoutConfigs", 0, status)}


class _BenchScheduler(aurora_rest.App):
    """Answers from bytes made beforehand, with those of each of `variants` in turn; what it has not is asked
    of a demo. delay: seconds each call takes."""

    def __init__(self, variants: Any, delay: Any = 0.0) -> None:
        self.answers = {name: itertools.cycle([aurora_rest.Response(200, body=each[name],
                content_type=BINARY) for each in variants])
                        for name in variants[0]}
        self.delay = delay
        self.demo = aurora_rest.DemoApp(aurora_rest.Demo("bench"))

    def is_quick(self, request: Any) -> Any:
        return not self.delay

    def handle(self, request: Any) -> Any:
        if self.delay:
            time.sleep(self.delay)
        size = struct.unpack("!i", request.body[4:8])[0]
        answers = self.answers.get(request.body[8:8 + size])
        return next(answers) if answers else self.demo.handle(request)


def _bench_scheduler_main(jobs: Any, tasks: Any, delay: Any, variants: Any) -> None:
    app = _BenchScheduler([_pre_encoded(int(jobs), int(tasks), each) for each in range(int(variants))],
                          float(delay))
    server = aurora_rest.HttpServer(("127.0.0.1", 0), app, {"threads": 64})
    print(server.port, flush=True)
    server.serve_forever()


def _plain_main(kind: Any) -> None:
    """(c): a plain ThreadingHTTPServer with HTTP/1.1 and TCP_NODELAY that answers a constant."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            body = b'{"status": "success", "version": "1.0.0"}\n'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def _rest_main(*arguments: Any) -> None:
    os.chdir(HERE)
    os.execv(sys.executable, [sys.executable, "-m", "aurora_rest", "--port", "0", *arguments])


def _direct_main(port: Any, kind: Any, seconds: Any) -> None:
    """(a) direct: the same Thrift call in a loop over one kept connection, decoded whole into structs that
    hash by identity, the least that generated ones can do to be in a set; (b) floor: the same bytes,
    undecoded."""
    import resource
    for struct_class in (getattr(api, each) for each in api.type_names):
        if isinstance(struct_class, type):
            setattr(struct_class, "__hash__", object.__hash__)      # noqa: B010
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name, arguments = ("getJobs", ("www-data",)) if "list" in kind else ("getTasksWithoutConfigs",
            (api.TaskQuery(
        jobKeys={api.JobKey(role="www-data", environment="devel", name="job")}),))
    message = aurora_rest.encode_message(BINARY, name, 1, 0, api.method(name).arguments(*arguments))
    headers = {"Content-Type": BINARY, "Accept": BINARY}
    times = []
    deadline = time.perf_counter() + float(seconds)
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        connection.request("POST", "/api", message, headers)
        body = connection.getresponse().read()
        if "floor" not in kind:
            aurora_rest.decode_reply(BINARY, name, body)
        times.append(time.perf_counter() - started)
    print(json.dumps({"rate": len(times) / sum(times), "median": sorted(times)[len(times) // 2],
                      "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


def _pair_main(port: Any, path: Any, etag: Any, seconds: Any, pid: Any) -> None:
    """One connection that asks for the same without and with If-None-Match, a hundred times each in turn, so
    that drift touches both: the median time of each, and the processor time that the server (pid) took for
    one."""
    sock = socket.create_connection(("127.0.0.1", int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def processor() -> Any:
        total = 0
        for each in glob.glob("/proc/%s/task/*/schedstat" % pid):
            with open(each, encoding="ascii") as stream:
                total += int(stream.read().split()[0])
        return total
    clock = time.perf_counter
    kinds: Any = []
    for extra in ("", "If-None-Match: %s\r\n" % etag):
        request = ("GET %s HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: pair\r\n%s\r\n" %
                   (path, extra)).encode()
        sock.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(1 << 20)
        length = re.search(rb"Content-Length: (\d+)", data)
        size = data.index(b"\r\n\r\n") + 4 + (int(length.group(1)) if length else 0)
        while len(data) < size:
            data += sock.recv(1 << 20)
        kinds.append((request, size, [], []))
    deadline = clock() + float(seconds)
    while clock() < deadline:
        for request, size, times, costs in kinds:
            used = processor()
            for _ in range(100):
                started = clock()
                sock.sendall(request)
                have = 0
                while have < size:
                    have += len(sock.recv(1 << 20))
                times.append(clock() - started)
            costs.append((processor() - used) / 1e5)
    (full, same), (full_cost, same_cost) = (
        [sorted(kind[which])[len(kind[which]) // 2] for kind in kinds] for which in (2, 3))
    print(json.dumps({"full_us": full * 1e6, "same_us": same * 1e6, "cost": same_cost / full_cost,
                      "full_cost_us": full_cost,
                      "same_cost_us": same_cost, "full_bytes": kinds[0][1], "same_bytes": kinds[1][1]}),
                      flush=True)


def _load_main(port: Any, path: Any, connections: Any, seconds: Any, *headers: Any) -> None:
    """A load generator: keeps one request under way on each connection, from one thread."""
    import select
    extra = "".join(each + "\r\n" for each in headers)
    requests = [("GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (each, extra)).encode()
                for each in path.split("|")]
    poll = select.epoll()
    socks: Any = {}
    for number in range(int(connections)):
        sock = socket.create_connection(("127.0.0.1", int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock.fileno(), select.EPOLLIN)
        socks[sock.fileno()] = [sock, requests[number % len(requests)], 0.0, b"", -1]
    clock, times, failures = time.perf_counter, [], 0
    started = clock()
    for each in socks.values():
        each[2] = clock()
        each[0].sendall(each[1])
    deadline = started + float(seconds)
    while clock() < deadline:
        for number, _ in poll.poll(1):
            each = socks[number]
            data = each[0].recv(1 << 20)
            if not data:
                raise SystemExit("the server closed a connection")
            if each[3]:
                data = each[3] + data
            if each[4] != len(data):        # not as long as the one before: look
                head, blank, _ = data.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                whole = len(head) + 4 + (int(length.group(1)) if length else 0)
                if not blank or len(data) < whole:
                    each[3] = data
                    continue
                each[4] = whole
            failures += data[9:12] not in (b"200", b"304")
            now = clock()
            times.append(now - each[2])
            each[2], each[3] = now, b""
            each[0].sendall(each[1])
    elapsed = clock() - started
    times.sort()
    print(json.dumps({"rate": len(times) / elapsed, "median": times[len(times) // 2],
                      "p99": times[int(len(times) * 0.99)],
                      "mean": sum(times) / len(times), "failures": failures}), flush=True)


class Bench:
    """Runs each measure in processes of its own and prints ratios."""
    HELPER = (sys.executable, "-m", "test_aurora_rest", "--bench-role")     # as a module: compiled once

    def __init__(self, quick: Any) -> None:
        self.seconds = 0.4 if quick else 3.0
        self.settle = 0.5 if quick else 1.0     # of the time that a measure gives things to come to rest
        self.rounds = 1 if quick else 5
        self.rows: Any = []
        self.processes: Any = []

    def start(self, role: Any, *arguments: Any) -> Any:
        """A helper process, and the port that it prints or logs. What it logs goes into a file. "logged" is
        the server as it is by default, "rest" without access log."""
        log = tempfile.TemporaryFile("a+")      # has no name: gone when the process is
        more = ["--quiet"] * (role == "rest")
        process: Any = subprocess.Popen(
            [*self.HELPER, role.replace("logged", "rest"), *map(str, arguments), *more], cwd=HERE,
            stdout=subprocess.PIPE, stderr=log, text=True)
        self.processes.append(process)
        if role not in ("rest", "logged"):
            return process, int(process.stdout.readline())

        def serves() -> Any:
            log.seek(0)
            found = re.search(r" serving url=\S+?:(\d+)", log.read())
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            return found
        return process, int(wait_for(serves).group(1))

    def run(self, role: Any, *arguments: Any) -> Any:
        """What a role prints, in a child of its own: forked, since to import all this takes longer than a
        short measure."""
        source, target = os.pipe()
        child = os.fork()
        if not child:
            try:
                sys.stdout = os.fdopen(target, "w")
                ROLES[role](*map(str, arguments))
                sys.stdout.flush()
                os._exit(0)
            finally:
                os._exit(1)
        os.close(target)
        with os.fdopen(source) as stream:
            said = stream.read()
        if os.waitpid(child, 0)[1]:
            raise SystemExit("%s ended without a result" % role)
        return json.loads(said)

    def stop(self, *processes: Any) -> None:
        for each in processes:
            each.kill()
            each.wait()

    def row(self, work: Any, text: Any, target: Any, figures: Any) -> None:
        """Print what `text` makes of the figures; --json has the figures too."""
        self.rows.append({"work": work, "measured": text % figures, "target": target, "figures": figures})
        print("%-62s %-62s %s" % (work, text % figures, target), flush=True)

    def median(self, measure: Any) -> Any:
        """Of each figure in what measure() returns, the median of all rounds."""
        rounds = [measure() for _ in range(self.rounds)]
        return {name: sorted(each[name] for each in rounds)[len(rounds) // 2] for name in rounds[0]}

    def all(self) -> None:
        print("%-62s %-62s %s" % ("work", "measured (median of %d)" % self.rounds, "target"))
        self.version()
        self.start_and_memory()
        self.lists()
        self.status()
        self.gate()
        self.configurations()
        self.watchers()
        self.memory_of_many_lists()
        self.streams_of_many_jobs()
        self.different()
        self.logging()
        self.changing_tasks()
        self.waits()

    def version(self) -> None:
        plain, plain_port = self.start("plain", "x")
        rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:1")

        def measure() -> Any:
            ours = self.run("load", port, "/alpha/version", 16, self.seconds)["rate"]
            theirs = self.run("load", plain_port, "/alpha/version", 16, self.seconds)["rate"]
            at64 = self.run("load", port, "/alpha/version", 64, self.seconds)
            return {"ratio": ours / theirs, "ours": ours, "theirs": theirs, "p99_ms": at64["p99"] * 1e3,
                    "spread": at64["p99"] / at64["median"]}
        found = self.median(measure)
        self.row("GET /alpha/version, 16 connections",
                 "%(ratio).2f x plain (%(ours).0f/s beside %(theirs).0f/s)", ">= 3 x plain", found)
        self.row("  p99 at 64 connections", "%(spread).1f x median (%(p99_ms).2f ms)", "<= 10 x median",
                 found)
        self.stop(plain, rest)

    def start_and_memory(self) -> None:
        def measure() -> Any:
            port, started = free_port(), time.perf_counter()
            rest = subprocess.Popen([sys.executable, "-m", "aurora_rest", "--quiet",
                                     "--port", str(port), "--scheduler",
                                     "bench=http://127.0.0.1:1"], stderr=subprocess.DEVNULL, cwd=HERE)
            self.processes.append(rest)
            answered = b""
            while b" 200 " not in answered:
                with contextlib.suppress(OSError):
                    answered = raw(type("Running", (), {"port": port}),
                                   b"GET /alpha/version HTTP/1.0\r\n\r\n")
            seconds = time.perf_counter() - started
            time.sleep(1.5)     # it gives memory back a second after its start
            memory = self.memory(rest)
            self.stop(rest)
            return {"seconds": seconds, "memory": memory}
        self.row("start to first answer; resident", "%(seconds).2f s; %(memory).0f MB", "<= 0.25 s; <= 35 MB",
                 self.median(measure))

    @staticmethod
    def memory(process: Any) -> Any:
        with open("/proc/%d/statm" % process.pid, encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    @staticmethod
    def processor(process: Any) -> Any:
        with open("/proc/%d/stat" % process.pid, encoding="ascii") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    LIST_TARGETS = {(3, 1): ">= 0.6 x direct", (100, 1): ">= 1.5 x direct, >= 0.5 x floor",
                    (100, 16): ">= 4 x direct",
                    (100, 64): ">= 4 x direct", (5000, 1): ">= 1.5 x direct"}

    def lists(self) -> None:
        for jobs in (3, 100, 5000):
            self.list(jobs, [number for size, number in self.LIST_TARGETS if size == jobs])
        for jobs in (3, 100, 5000):
            self.list(jobs, [1], variants=2)

    def list(self, jobs: Any, connections: Any, variants: Any = 1) -> None:
        """A list of so many jobs; variants=2: the scheduler never gives the reply that it gave just
        before."""
        scheduler, scheduler_port = self.start("scheduler", jobs, 0, 0, variants)
        rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)
        path = "/alpha/jobs/bench/www-data"
        work = "list of %d jobs" % jobs + (", each reply another" if variants > 1 else "")
        etag = ask(type("Running", (), {"port": port}), "GET", path).headers["etag"]

        def measure() -> Any:
            found = {"direct": self.run("direct", scheduler_port, "list", self.seconds)["rate"],
                     "floor": self.run("direct", scheduler_port, "list floor", self.seconds)["rate"]}
            for number in connections:
                ours = self.run("load", port, path, number, self.seconds)["rate"]
                found.update({"rate %d" % number: ours, "by direct %d" % number: ours / found["direct"],
                              "by floor %d" % number: ours / found["floor"]})
            if variants == 1:
                found.update(self.run("pair", port, path, etag, self.seconds, rest.pid))
            return found
        found = self.median(measure)
        found["memory"] = self.memory(rest)
        for number in connections:
            self.row("%s, %d connection%s" % (work, number, "s" * (number > 1)),
                     "%(by direct N).2f x direct, %(by floor N).2f x floor (%(rate N).0f/s; direct "
                     "%(direct).0f/s)".replace("N", str(number)),
                     self.LIST_TARGETS[jobs, number], found)
        if variants == 1:
            self.row("  not modified; memory",
                     "%(cost).3f x the processor time, %(same_us).0f of %(full_us).0f us, "
                     "%(same_bytes)d of %(full_bytes)d bytes; %(memory).0f MB", "< 1; < 80 MB", found)
        else:
            self.row("  memory", "%(memory).0f MB", "< 80 MB", found)
        self.stop(scheduler, rest)

    def memory_of_many_lists(self) -> None:
        scheduler, scheduler_port = self.start("scheduler", 5000, 0, 0, 1)
        rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)
        time.sleep(1.5)
        deadline, most = time.perf_counter() + 4.0 * self.settle, []

        def client(number: Any) -> None:
            while time.perf_counter() < deadline:
                assert ask(type("Running", (), {"port": port}), "GET",
                           "/alpha/jobs/bench/role%d" % number).status == 200
                most.append(self.memory(rest))
        threads = [threading.Thread(target=client, args=(number,)) for number in range(64)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        time.sleep(2)
        self.row("64 different lists of 5,000 jobs", "%(peak).0f MB; %(after).0f MB after 2 s",
                 "<= 150 MB; <= 90 MB", {"peak": max(most), "after": self.memory(rest)})
        self.stop(scheduler, rest)

    def streams_of_many_jobs(self) -> None:
        demo = aurora_rest.Demo(jobs=1000)
        url = demo.start()
        rest, port = self.start("rest", "--scheduler", "devcluster=" + url)
        sockets = []
        for key in aurora_rest.list_jobs(aurora_rest.Scheduler(url))[:1000]:
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET /alpha/job/devcluster/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" %
                         key.encode())
            sockets.append(sock)

        def rates() -> Any:
            calls, used, started = sum(demo.calls.values()), self.processor(rest), time.perf_counter()
            time.sleep(5 * self.settle)
            seconds = time.perf_counter() - started
            return (sum(demo.calls.values()) - calls) / seconds, (self.processor(rest) - used) / seconds * 100
        time.sleep(15 * self.settle)
        calls, core = rates()
        for sock in sockets:
            sock.close()
        time.sleep(2)
        self.row("1,000 event streams of 1,000 jobs",
                 "%(calls).0f calls/s; %(core).1f %% of a core; then %(left).1f calls/s for nobody",
                 "<= 20/s; <= 15 %; 0", {"calls": calls, "core": core, "left": rates()[0]})
        self.stop(rest)
        demo.stop()

    def different(self) -> None:
        """Lists that nobody else asks for, beside the same list for all, at 16 connections."""
        for variants, work in ((1, "16 different lists of 100 jobs"), (2, "  the same, each reply another")):
            scheduler, scheduler_port = self.start("scheduler", 100, 0, 0, variants)
            rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)
            many = "|".join("/alpha/jobs/bench/role%d" % number for number in range(16))

            def measure() -> Any:
                one, more = (self.run("load", port, path, 16, self.seconds)["rate"]
                             for path in ("/alpha/jobs/bench/role0", many))
                return {"ratio": more / one, "more": more, "one": one}
            self.row(work, "%(ratio).2f x the same list (%(more).0f/s; %(one).0f/s)", "",
                     self.median(measure))
            self.stop(scheduler, rest)

    def logging(self) -> None:
        """The access log, which is on by default, beside --quiet."""
        scheduler, scheduler_port = self.start("scheduler", 100, 0, 0, 1)
        ports = [self.start(role, "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)
                 for role in ("logged", "rest")]

        def measure() -> Any:
            rates = [self.run("load", port, "/alpha/jobs/bench/www-data", 16, self.seconds)["rate"]
                     for _, port in ports]
            return {"ratio": rates[0] / rates[1], "logging": rates[0], "quiet": rates[1]}
        self.row("list of 100 jobs, 16 connections, with its log",
                 "%(ratio).2f x --quiet (%(logging).0f/s; %(quiet).0f/s)", ">= 0.9", self.median(measure))
        self.stop(scheduler, *(process for process, _ in ports))

    def changing_tasks(self) -> None:
        scheduler, scheduler_port = self.start("scheduler", 3, 10000, 0, 2)
        rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)
        self.row("status of a job with 10,000 tasks, each reply another", "%(median).0f ms", "<= 60 ms",
                 self.median(lambda: {"median": 1000 * self.run(
                     "load", port, "/alpha/job/bench/www-data/devel/job", 1,
                     max(2.0, self.seconds))["median"]}))
        self.stop(scheduler, rest)

    def waits(self) -> None:
        demo = aurora_rest.Demo()
        url = demo.start()
        rest, port = self.start("rest", "--scheduler", "devcluster=" + url)

        def threads() -> int:
            return len(os.listdir("/proc/%d/task" % rest.pid))
        time.sleep(2)
        before, sockets = threads(), []
        for _ in range(1000):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"POST /alpha/job/devcluster/www-data/prod/hello/wait?until=gone&wait=60 "
                         b"HTTP/1.1\r\n"
                         b"Host: localhost\r\nContent-Length: 0\r\n\r\n")
            sockets.append(sock)
        # threads that were needed for so many at once are gone
        time.sleep(aurora_rest.Workers.IDLE + 1)
        calls, started = sum(demo.calls.values()), time.perf_counter()
        time.sleep(5 * self.settle)
        self.row("1,000 waits of one job", "%(calls).1f calls/s; %(threads)d threads more", "<= 1/s; < 20", {
            "calls": (sum(demo.calls.values()) - calls) / (time.perf_counter() - started),
            "threads": threads() - before})
        for sock in sockets:
            sock.close()
        self.stop(rest)
        demo.stop()

    def status(self) -> None:
        for variants, work in ((1, "status of a job with 1,000 tasks"),
                               (2, "  the same, each reply another")):
            scheduler, scheduler_port = self.start("scheduler", 3, 1000, 0, variants)
            rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port)

            def measure() -> Any:
                ours = self.run("load", port, "/alpha/job/bench/www-data/devel/job", 1, self.seconds)["rate"]
                direct = self.run("direct", scheduler_port, "status", self.seconds)["rate"]
                return {"ratio": ours / direct, "ours": ours, "direct": direct, "memory": self.memory(rest)}
            self.row(work, "%(ratio).2f x direct (%(ours).0f/s; direct %(direct).0f/s); %(memory).0f MB",
                     ">= 0.8 x direct",
                     self.median(measure))
            self.stop(scheduler, rest)

    def gate(self) -> None:
        scheduler, scheduler_port = self.start("scheduler", 3, 0, 0.05, 1)
        rest, port = self.start("rest", "--scheduler", "bench=http://127.0.0.1:%d" % scheduler_port,
                                "--parallel", "4")
        paths = "|".join("/alpha/jobs/bench/role%d" % number for number in range(64))

        def measure() -> Any:
            found = self.run("load", port, paths, 64, 3.0 * self.settle)
            return {"share": found["rate"] / 80.0, "spread": found["p99"] / found["mean"]}
        self.row("--parallel 4, 64 clients, 50 ms a call",
                 "%(share).2f of 4 / 50 ms; p99 %(spread).1f x mean", "0.9 to 1.1; <= 3 x mean",
                 self.median(measure))
        self.stop(scheduler, rest)

    def configurations(self) -> None:
        names = itertools.count()

        def client(port: Any, create: Any, times: Any, count: Any) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for _ in range(count):
                name = "bench-%d" % next(names)
                request = ("PUT", JOB + name, source(name)) if create else ("POST", JOB + "hello/inspect",
                        source("hello"))
                started = time.perf_counter()
                connection.request(*request)
                assert connection.getresponse().read().startswith(b'{"status": "success"')
                times.append(time.perf_counter() - started)
            connection.close()

        def measure(create: Any) -> Any:
            # a new one each time: a full demo cluster takes its time to schedule
            rest, port = self.start("rest", "--demo")
            found: Any = {}
            count = 160 if self.rounds == 1 else 480
            first: Any = []
            client(port, False, first, 1)
            client(port, False, [], 20)
            for number in (1, 4, 16):
                times: Any = []
                started = time.perf_counter()
                threads = [threading.Thread(target=client, args=(port, create, times, count // number // 2))
                           for _ in range(number)]
                for each in threads:
                    each.start()
                for each in threads:
                    each.join()
                found["rate %d" % number] = len(times) / (time.perf_counter() - started)
                found["median %d" % number] = sorted(times)[len(times) // 2] * 1e3
                found["p99 %d" % number] = sorted(times)[int(len(times) * 0.99)] * 1e3
            self.stop(rest)
            return dict(found, first=first[0] * 1e3)
        for create, work in ((False, "inspect of hello_world"), (True, "create of hello_world")):
            self.row(work, "median %(median 1).1f ms at 1; %(rate 4).0f, %(rate 16).0f/s at 4, 16; p99 "
                     "%(p99 16).0f ms at 16; first %(first).0f ms", ">= 300/s; p99 <= 60 ms; first <= 60 ms",
                     self.median(partial(measure, create)))
        rest, port = self.start("rest", "--demo")
        running = type("Running", (), {"port": port})
        big = source("hello") + "jobs = [jobs[0](name='j%d' % i) for i in range(500)]"
        assert ask(running, "POST", JOB + "hello/inspect", source("hello")).status == 200
        started = time.perf_counter()
        assert ask(running, "POST", JOB + "j77/inspect", big).status == 200
        self.row("inspect of a file with 500 jobs", "%(seconds).2f s", "< 2 s",
                 {"seconds": time.perf_counter() - started})
        self.stop(rest)

    def watchers(self) -> None:
        demo = aurora_rest.Demo()
        url = demo.start()
        rest, port = self.start("rest", "--scheduler", "devcluster=" + url)
        sockets = []
        for _ in range(1000):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET /alpha/job/devcluster/www-data/prod/hello/events HTTP/1.1\r\nHost: "
                         b"localhost\r\n\r\n")
            sockets.append(sock)

        time.sleep(3 * self.settle)
        for sock in sockets:
            sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while sock.recv(65536):
                    pass
        calls, used, started = demo.calls["getTasksWithoutConfigs"], self.processor(rest), time.perf_counter()
        time.sleep(5 * self.settle)
        seconds = time.perf_counter() - started
        polls, share = (demo.calls["getTasksWithoutConfigs"] - calls) / seconds, (
            self.processor(rest) - used) / seconds
        import selectors
        selector = selectors.DefaultSelector()
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        demo.invoke("restartShards", api.method("restartShards").arguments(
            api.JobKey(role="www-data", environment="prod", name="hello"), {0}))
        arrived: Any = []
        deadline = time.perf_counter() + 10
        while len(arrived) < 1000 and time.perf_counter() < deadline:
            for key, _ in selector.select(0.1):
                ready: Any = key.fileobj
                if b"RESTARTING" in ready.recv(65536):
                    arrived.append(time.perf_counter())
                    selector.unregister(key.fileobj)
        self.row("1,000 event streams of one job",
                 "%(polls).1f polls/s; %(core).1f %% of a core; %(reached)d reached within %(ms).0f ms",
                 "1/s; < 5 %; 1000 within 250 ms",
                 {"polls": polls, "core": share * 100, "reached": len(arrived),
                                                    "ms": (arrived[-1] - arrived[0]) * 1e3 if arrived
                                                    else -1.0})
        for sock in sockets:
            sock.close()
        self.stop(rest)
        demo.stop()


def bench_main(arguments: Any) -> None:
    import argparse
    parser = argparse.ArgumentParser(prog="test_aurora_rest.py --bench")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")
    parser.add_argument("--only", metavar="NAME",
            help="one of: version, start_and_memory, lists, status, gate, configurations, watchers, "
                 "memory_of_many_lists, streams_of_many_jobs, different, logging, changing_tasks, waits")
    options = parser.parse_args(arguments)
    bench = Bench(options.quick)
    try:
        getattr(bench, options.only or "all")()
    finally:
        bench.stop(*bench.processes)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(bench.rows, stream, indent=1)


ROLES: Any = {"scheduler": _bench_scheduler_main, "plain": _plain_main, "rest": _rest_main,
              "direct": _direct_main, "load": _load_main, "pair": _pair_main}

if __name__ == "__main__":
    if "--bench-role" in sys.argv:
        at = sys.argv.index("--bench-role")
        ROLES[sys.argv[at + 1]](*sys.argv[at + 2:])
    elif "--bench" in sys.argv:
        bench_main([each for each in sys.argv[1:] if each != "--bench"])
    elif "--mutants" in sys.argv:
        sys.exit(_mutants_main([each for each in sys.argv[1:] if each != "--mutants"]))
    else:
        unittest.main()
