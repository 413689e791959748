"""Tests of aurora_rest: through real sockets, against the demo scheduler's real Thrift endpoint.

    python -m unittest test_aurora_rest        all tests (pytest runs them too)
    python test_aurora_rest.py --bench         benchmarks; see --bench --help
"""
import base64
import contextlib
import glob
import http.client
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
from unittest import mock

import aurora_rest
from aurora_rest import api

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = aurora_rest.BINARY
S = api.ScheduleStatus
U = api.JobUpdateStatus
EVALUATOR = aurora_rest.Evaluator()


def tearDownModule():
    EVALUATOR.close()


# --- helpers ------------------------------------------------------------------------------------------------------------

def wait_for(condition, seconds=20.0):
    """The first true value of condition(); fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("not in %g s: %s" % (seconds, condition))
        time.sleep(0.01)


class Answer:
    """An HTTP answer: status, headers (lower case), body, and the body as JSON."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def json(self):
        return json.loads(self.body.decode())

    def __repr__(self):
        return "%d %s" % (self.status, self.body[:400])


def ask(server, method, path, body=None, timeout=30, **headers):
    """One request on a connection of its own. Header names have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


def raw(server, data, half_close=False, timeout=10):
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


def statuses(data):
    """The status codes in a raw exchange."""
    return [int(each) for each in re.findall(rb"^HTTP/1\.1 (\d+)", data, re.MULTILINE)]


def source(name="hello", command="serve", extra="", role="www-data", environment="devel", kind="Service"):
    return ("p = Process(name='p', cmdline=%r)\n"
            "t = SequentialTask(processes=[p], resources=Resources(cpu=0.1, ram=32*MB, disk=32*MB))\n"
            "jobs = [%s(cluster='devcluster', role=%r, environment=%r, name=%r, task=t%s)]\n" % (
                command, kind, role, environment, name, ", " + extra if extra else ""))


def load(text, key="devcluster/www-data/devel/hello", **options):
    return aurora_rest.load_job(text, key, evaluator=EVALUATOR, **options)


def config(name="hello", command="serve", count=1, service=True, **changes):
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


def update_request(job, count=None, **settings):
    given = dict(updateGroupSize=1, maxPerInstanceFailures=0, maxFailedInstances=0, minWaitInInstanceRunningMs=1000,
                 rollbackOnFailure=True)
    given.update(settings)
    return api.JobUpdateRequest(taskConfig=job.taskConfig, instanceCount=count or job.instanceCount,
                                settings=api.JobUpdateSettings(**given), metadata=set())


class Serving(unittest.TestCase):
    """A server on a demo scheduler, for a class of tests. SPEED 0: time stands still until demo.advance."""
    SPEED = 0.0
    OPTIONS = {}

    @classmethod
    def setUpClass(cls):
        cls.lines = []
        cls.demo = aurora_rest.Demo(speed=cls.SPEED)
        cls.server = aurora_rest.Server(port=0, demo=cls.demo, evaluator=cls.evaluator(), log=cls.lines.append,
                                        **dict({"poll_interval": 0.05}, **cls.OPTIONS)).start()
        cls.scheduler = cls.server.service.clusters["devcluster"]
        cls.demo.advance(10)

    @classmethod
    def evaluator(cls):
        """The shared one: a server that stops closes its evaluator, which must not end the others'."""
        shared = aurora_rest.Evaluator.__new__(aurora_rest.Evaluator)
        shared.__dict__ = dict(EVALUATOR.__dict__)
        shared.close = lambda: None
        shared.evaluate = EVALUATOR.evaluate
        return shared

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(1.0)

    def ask(self, method, path, body=None, **headers):
        return ask(self.server, method, path, body, **headers)

    def good(self, method, path, body=None, status=200, **headers):
        answer = self.ask(method, path, body, **headers)
        self.assertEqual((answer.status, answer.json["status"]), (status, "success"), answer)
        return answer.json

    def bad(self, status, method, path, body=None, code=None, says=None, **headers):
        answer = self.ask(method, path, body, **headers)
        self.assertEqual(answer.status, status, answer)
        plain = answer.json
        self.assertEqual(plain["status"], "failure")
        self.assertTrue(plain["errors"] and all(isinstance(each, str) and each for each in plain["errors"]), plain)
        self.assertNotIn("Traceback", answer.body.decode())
        if code:
            self.assertEqual(plain["code"], code)
        if says:
            self.assertRegex(" ".join(plain["errors"]), says)
        return plain

    def states(self, name, active=True):
        """Names of the states of a job's tasks, by instance."""
        tasks = aurora_rest.query_tasks(self.scheduler, aurora_rest.Key("devcluster", "www-data", "devel", name))
        return [S.name_of(task["status"]) for task in tasks if aurora_rest.is_active(task) or not active]


class FakeScheduler:
    """A real socket that misbehaves as told: `script` gets (socket, request body) for each request that arrives; it
    answers, and returns True to go on with the connection. Counts what arrived."""

    def __init__(self, script):
        self.script = script
        self.requests = []
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.socket.getsockname()[1]
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with contextlib.suppress(OSError), sock:
            while True:
                data = b""
                while b"\r\n\r\n" not in data:
                    part = sock.recv(65536)
                    if not part:
                        return
                    data += part
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(re.search(rb"Content-Length: (\d+)", head).group(1))
                while len(body) < length:
                    body += sock.recv(65536)
                self.requests.append((head, body))
                if not self.script(sock, body):
                    return

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)      # ends a waiting accept
        self.socket.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def http_answer(status, body=b"", *headers):
    lines = ["HTTP/1.1 %d X" % status, "Content-Length: %d" % len(body)] + list(headers)
    return "\r\n".join(lines + ["", ""]).encode() + body


def thrift_answer(body, code=1, result=None, details=()):
    """A 200 answer to the Thrift call in `body`."""
    name, sequence, _ = aurora_rest.decode_call(BINARY, body)
    response = api.Response(responseCode=code, result=result, serverInfo=api.ServerInfo(clusterName="fake"),
                            details=[api.ResponseDetail(message=text) for text in details])
    return http_answer(200, aurora_rest.encode_reply(BINARY, name, sequence, response))


def answering(make):
    """A script that answers every request with make(body)."""
    def script(sock, body):
        sock.sendall(make(body))
        return True
    return script


def tiers_answer(body):
    return thrift_answer(body, result=api.Result(getTierConfigResult=api.GetTierConfigResult.from_plain(
        aurora_rest.DEFAULT_TIERS)))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# --- 1. Thrift API ------------------------------------------------------------------------------------------------------

def filled(cls, depth=0):
    """An instance with every field set; one element a container, so that the order of sets says nothing."""
    made = cls()
    for name, kind in cls.fields.items():
        setattr(made, name, filled_value(kind, name, depth))
        if cls.is_union and getattr(made, name) is not None:
            break
    return made


def filled_value(kind, name, depth):
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
    def test_the_idl_holds_96_types_and_45_methods(self):
        self.assertEqual((len(api.type_names), len(api.method_names)), (96, 45))
        levels = [api.method(name).access for name in api.method_names]
        self.assertEqual([levels.count(each) for each in aurora_rest.LEVELS], [13, 14, 18])
        self.assertIn("ipAddr", api.Resource.fields)

    def test_every_struct_survives_both_protocols_and_plain_json(self):
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
    def test_bytes_are_those_of_the_compilers_code(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "api.thrift"), "w", encoding="utf-8") as stream:
                stream.write(aurora_rest.IDL)
            subprocess.run(["thrift", "--gen", "py", "-o", folder, os.path.join(folder, "api.thrift")], check=True)
            sys.path.insert(0, os.path.join(folder, "gen-py"))
            try:
                ttypes = importlib.import_module("aurora.ttypes")
            finally:
                del sys.path[0]
            for name in api.type_names:
                cls = getattr(api, name)
                if not isinstance(cls, aurora_rest.Enum):
                    self._compare(cls, ttypes)

    def _compare(self, cls, ttypes):
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

    def _translate(self, value, ttypes):
        """Our struct as one of the compiler's classes, which cannot be put in a set: lists encode as sets do."""
        if isinstance(value, aurora_rest.ThriftStruct):
            cls = getattr(ttypes, type(value).__name__)
            return cls(**{f: self._translate(getattr(value, f), ttypes) for f in value.fields})
        if isinstance(value, (set, list)):
            return [self._translate(each, ttypes) for each in value]
        return value

    def test_a_projection_decodes_only_what_it_names_with_or_without_the_c_decoder(self):
        jobs = {config("a").replace(instanceCount=3), config("b")}
        response = api.Response(responseCode=1, details=[], result=api.Result(
            getJobsResult=api.GetJobsResult(configs=jobs)))
        wanted = {"www-data/devel/a", "www-data/devel/b"}
        for media in (BINARY, aurora_rest.TJSON):
            data = aurora_rest.encode_reply(media, "getJobs", 0, response)
            found = aurora_rest.decode_reply(media, "getJobs", data, aurora_rest.projection("job keys"))
            self.assertEqual(found["result"]["getJobsResult"]["configs"], wanted)

    def test_plain_json_errors_name_the_field(self):
        for plain, says in (
                ({"taskConfig": {"priority": "x"}}, "description.taskConfig.priority: expected an integer"),
                ({"taskConfig": {"priority": True}}, "description.taskConfig.priority: expected an integer"),
                ({"instanceCount": 1 << 31}, "description.instanceCount: does not fit into 32 bits"),
                ({"nonsense": 1}, "description.nonsense: unknown field"),
                ({"cronCollisionPolicy": "MAYBE"}, "description.cronCollisionPolicy: expected one of"),
                ({"taskConfig": {"resources": [{"numCpus": 1, "ramMb": 2}]}}, r"resources\[0\]: expected an object with one"),
                ({"key": []}, "description.key: expected an object")):
            with self.assertRaisesRegex(aurora_rest.PlainError, says):
                api.JobConfiguration.from_plain(plain, "description")

    def test_hostile_bytes_are_refused_as_bad_messages(self):
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


# --- 2. Scheduler -------------------------------------------------------------------------------------------------------

class SchedulerTest(unittest.TestCase):
    def scheduler(self, *urls, **options):
        made = aurora_rest.Scheduler(list(urls), "fake", **dict({"timeout": 2.0, "retry_for": 0.5}, **options))
        self.addCleanup(made.close)
        return made

    def fake(self, script):
        made = FakeScheduler(script)
        self.addCleanup(made.close)
        return made

    def fails(self, error, fake, method="getTierConfigs", *arguments, **options):
        scheduler = self.scheduler(fake.url if hasattr(fake, "url") else fake, **options)
        started = time.monotonic()
        with self.assertRaises(error) as caught:
            scheduler.call(method, *arguments)
        self.assertLess(time.monotonic() - started, 4.0)
        self.assertEqual((scheduler.gate.inside, scheduler.gate.waiting), (0, 0))
        return caught.exception

    def test_a_connection_is_used_again(self):
        fake = self.fake(answering(tiers_answer))
        scheduler = self.scheduler(fake.url)
        for _ in range(5):
            self.assertEqual(scheduler.getTierConfigs().serverInfo.clusterName, "fake")
        self.assertEqual((fake.connections, len(fake.requests)), (1, 5))

    def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(self):
        fake = self.fake(lambda sock, body: sock.sendall(tiers_answer(body)))
        scheduler = self.scheduler(fake.url)
        for _ in range(3):
            scheduler.getTierConfigs()
        self.assertEqual(len(fake.requests), 3)

    def test_redirects_are_followed_with_body_and_credentials_and_the_leader_remembered(self):
        leader = self.fake(answering(tiers_answer))
        other = self.fake(answering(lambda body: http_answer(307, b"", "Location: %s/api" % leader.url)))
        scheduler = self.scheduler(other.url, authorization="Basic c2VjcmV0")
        scheduler.getTierConfigs()
        scheduler.getTierConfigs()
        self.assertEqual((len(other.requests), len(leader.requests)), (1, 2))
        self.assertTrue(all(b"Authorization: Basic c2VjcmV0" in head for head, _ in leader.requests))
        self.assertEqual(scheduler.leader, leader.url)

    def test_a_leader_that_fails_is_forgotten(self):
        second = self.fake(answering(tiers_answer))
        first = self.fake(answering(tiers_answer))
        scheduler = self.scheduler(first.url, second.url)
        scheduler.getTierConfigs()
        first.close()
        scheduler.getTierConfigs()
        self.assertEqual(len(second.requests), 1)

    def test_redirects_that_lead_nowhere_are_bad_answers(self):
        loop = self.fake(lambda sock, body: sock.sendall(http_answer(307, b"", "Location: /api")) or True)
        self.fails(aurora_rest.BadAnswer, loop)
        nowhere = self.fake(answering(lambda body: http_answer(307, b"", "Location: gopher://x")))
        self.fails(aurora_rest.BadAnswer, nowhere)

    def test_415_falls_back_to_tjson_and_remembers(self):
        def script(sock, body):
            if body[:1] == b"\x80":
                sock.sendall(http_answer(415))
                return True
            name, sequence, _ = aurora_rest.decode_call(aurora_rest.TJSON, body)
            sock.sendall(http_answer(200, aurora_rest.encode_reply(
                aurora_rest.TJSON, name, sequence, api.Response(responseCode=1, details=[]))))
            return True
        fake = self.fake(script)
        scheduler = self.scheduler(fake.url)
        scheduler.getTierConfigs()
        scheduler.getTierConfigs()
        self.assertEqual([body[:1] == b"\x80" for _, body in fake.requests], [True, False, False])

    def test_http_failures_become_their_own_errors(self):
        for status, error, code in ((401, aurora_rest.Unauthorized, 401), (403, aurora_rest.AuthFailed, 403),
                                    (500, aurora_rest.BadAnswer, 502), (502, aurora_rest.BadAnswer, 502),
                                    (503, aurora_rest.NoLeader, 503)):
            fake = self.fake(answering(lambda body, status=status: http_answer(status, b"<html>no</html>")))
            self.assertEqual(self.fails(error, fake).http, code)

    def test_response_codes_become_their_own_errors(self):
        for name, error, code in (("INVALID_REQUEST", aurora_rest.Refused, 422), ("ERROR", aurora_rest.SchedulerFailed, 502),
                                  ("AUTH_FAILED", aurora_rest.AuthFailed, 403), ("JOB_UPDATING_ERROR", aurora_rest.JobUpdating, 409),
                                  ("ERROR_TRANSIENT", aurora_rest.SchedulerTransient, 503)):
            fake = self.fake(answering(lambda body, name=name: thrift_answer(
                body, api.ResponseCode.values[name], details=["because"])))
            failure = self.fails(error, fake)
            self.assertEqual((failure.http, failure.messages, failure.code), (code, ["because"], name))

    def test_answers_that_are_none_are_bad_answers_or_unreachable(self):
        for data, error in (
                (http_answer(200, b"<html>hello</html>"), aurora_rest.BadAnswer),
                (http_answer(200, b""), aurora_rest.BadAnswer),
                (b"garbage\r\n\r\n", aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", aurora_rest.SchedulerUnreachable),
                (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", aurora_rest.SchedulerUnreachable),
                (b"X" * 100000, aurora_rest.SchedulerUnreachable)):
            fake = self.fake(lambda sock, body, data=data: sock.sendall(data))
            self.assertEqual(self.fails(error, fake).http, 502)

    def test_a_chunked_answer_is_read(self):
        def script(sock, body):
            whole = tiers_answer(body).partition(b"\r\n\r\n")[2]
            chunks = b"".join(b"%x;x=y\r\n%s\r\n" % (len(whole[i:i + 7]), whole[i:i + 7]) for i in range(0, len(whole), 7))
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
            return True
        self.assertEqual(self.scheduler(self.fake(script).url).getTierConfigs().serverInfo.clusterName, "fake")

    def test_nobody_listening_is_unreachable(self):
        failure = self.fails(aurora_rest.SchedulerUnreachable, "http://127.0.0.1:%d" % free_port())
        self.assertEqual(failure.http, 502)

    def test_a_scheduler_that_hangs_or_trickles_is_a_timeout_within_the_deadline(self):
        hanging = self.fake(lambda sock, body: threading.Event().wait(3))

        def trickle(sock, body):
            with contextlib.suppress(OSError):
                for byte in tiers_answer(body):
                    sock.sendall(bytes([byte]))
                    time.sleep(0.05)
        for fake in (hanging, self.fake(trickle)):
            self.assertEqual(self.fails(aurora_rest.SchedulerTimeout, fake, timeout=0.5).http, 504)

    def test_a_write_whose_bytes_may_have_arrived_is_not_sent_twice(self):
        for method, arguments, times in (
                ("killTasks", (api.JobKey(), None, None), 1), ("createJob", (config(),), 1),
                ("setQuota", ("x", api.ResourceAggregate()), 1), ("getJobs", ("x",), 4),
                ("restartShards", (api.JobKey(), {1}), 4), ("startJobUpdate", (update_request(config()), None), 4)):
            fake = self.fake(lambda sock, body: False)      # takes the request, closes
            self.fails(aurora_rest.SchedulerUnreachable, fake, method, *arguments, retry_for=10.0, timeout=10.0)
            self.assertEqual(len(fake.requests), times, method)

    def test_transient_errors_are_retried_for_writes_too(self):
        def script(sock, body):
            code = "ERROR_TRANSIENT" if len(fake.requests) < 3 else "OK"
            sock.sendall(thrift_answer(body, api.ResponseCode.values[code]))
            return True
        fake = self.fake(script)
        self.scheduler(fake.url, retry_for=5.0).killTasks(api.JobKey(role="r"), None, None)
        self.assertEqual(len(fake.requests), 3)

    def test_proxies_of_the_environment_are_not_used(self):
        fake = self.fake(answering(tiers_answer))
        with mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}):
            self.scheduler(fake.url).getTierConfigs()

    def test_a_dead_scheduler_opens_the_circuit_and_a_live_one_closes_it(self):
        port = free_port()
        scheduler = self.scheduler("http://127.0.0.1:%d" % port, retry_for=0.0)
        scheduler.BREAK_SECONDS = (0.2, 0.2)
        for _ in range(scheduler.BREAK_AFTER):
            with self.assertRaises(aurora_rest.SchedulerUnreachable):
                scheduler.getTierConfigs()
        with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable, "in a row"):
            scheduler.getTierConfigs()
        demo = aurora_rest.Demo(samples=False)
        demo.start(port)
        self.addCleanup(demo.stop)

        def works():
            with contextlib.suppress(aurora_rest.SchedulerUnreachable):
                return scheduler.getTierConfigs()
        wait_for(works)
        scheduler.getTierConfigs()

    def test_the_gate_lets_so_many_in_and_the_others_in_their_order(self):
        gate = aurora_rest.Gate(2, 3)
        gate.enter(1)
        gate.enter(1)
        order = []

        def come(number):
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

    def test_a_thousand_calls_of_many_threads_leave_pool_and_gate_whole(self):
        demo = aurora_rest.Demo()
        scheduler = self.scheduler(demo.start(), parallel=3)
        self.addCleanup(demo.stop)
        most = []

        def work():
            for _ in range(50):
                self.assertTrue(aurora_rest.list_jobs(scheduler, "www-data"))
                most.append(scheduler.gate.inside)
        threads = [threading.Thread(target=work) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(len(most), 1000)
        self.assertLessEqual(max(most), 3)
        self.assertEqual((scheduler.gate.inside, scheduler.gate.waiting), (0, 0))
        self.assertLessEqual(sum(map(len, scheduler._idle.values())), 3)

    def test_clusters_json_is_read_and_its_defects_are_told(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clusters.json")

            def written(value):
                with open(path, "w", encoding="utf-8") as stream:
                    json.dump(value, stream)
                return aurora_rest.read_clusters(path)
            found = written([{"name": "a", "scheduler_uri": "http://x:1"}, {"name": "b", "zk": "z1,z2", "zk_port": 9,
                                                                            "scheduler_zk_path": "/s"}])
            self.assertEqual(found[0].urls, ("http://x:1",))
            self.assertEqual((found[1].zk, found[1].zk_path), ("z1:9,z2:9", "/s"))
            for wrong in ({}, [{"x": 1}], [{"name": "a"}], [{"name": "a", "scheduler_uri": "ftp://x"}]):
                with self.assertRaises(ValueError):
                    written(wrong)
            written([{"name": "here", "scheduler_uri": "http://127.0.0.1:1"}])
            with mock.patch.dict(os.environ, {"AURORA_CONFIG_ROOT": folder, "HOME": folder}):
                self.assertEqual([c.name for c in aurora_rest.default_clusters()], ["here"])
            with mock.patch.dict(os.environ, {"AURORA_CONFIG_ROOT": folder + "/no", "HOME": folder}):
                self.assertEqual(aurora_rest.default_clusters()[0].urls, ("http://127.0.0.1:8081",))

    def test_zookeeper_without_kazoo_says_what_to_install(self):
        with mock.patch.dict(sys.modules, {"kazoo": None, "kazoo.client": None}):
            locate = aurora_rest.zookeeper_locator(aurora_rest.Cluster("far", zk="zk:2181", zk_path="/s"))
            with self.assertRaisesRegex(aurora_rest.SchedulerUnreachable, "pip install kazoo.*--scheduler far=URL"):
                aurora_rest.Scheduler(locate=locate).getTierConfigs()

    def test_a_cluster_without_a_name_takes_its_schedulers(self):
        port = free_port()
        clusters = aurora_rest.Clusters([aurora_rest.Cluster(None, ("http://127.0.0.1:%d" % port,))],
                                        lambda c: aurora_rest.Scheduler(list(c.urls), retry_for=0.0))
        with self.assertRaises(aurora_rest.SchedulerUnreachable):
            clusters["west"]
        demo = aurora_rest.Demo("west")
        demo.start(port)
        self.addCleanup(demo.stop)
        self.assertEqual(clusters["west"].getTierConfigs().serverInfo.clusterName, "west")
        with self.assertRaisesRegex(aurora_rest.NotFound, "unknown cluster east; known: west"):
            clusters["east"]


# --- 3. Job configuration -----------------------------------------------------------------------------------------------

class ConfigTest(unittest.TestCase):
    def refused(self, text, says, **options):
        with self.assertRaisesRegex(aurora_rest.InvalidConfig, says) as caught:
            load(text, **options)
        self.assertNotIn("Traceback", str(caught.exception))
        return caught.exception

    def test_hello_world_becomes_a_job_configuration(self):
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

    def test_tier_and_production_follow_one_another(self):
        for extra, tier, production in (("production=True", "preferred", True), ("tier='revocable'", "revocable", False),
                                        ("tier='preferred'", "preferred", True), ("", "preemptible", False)):
            task = load(source(extra=extra)).configuration.taskConfig
            self.assertEqual((task.tier, task.production), (tier, production))
            self.assertEqual(json.loads(task.executorConfig.data)["production"], production)

    def test_references_are_bound_or_stay_for_the_executor(self):
        text = source(command="{{mesos.instance}} {{mesos.hostname}} {{thermos.ports[http]}} {{thermos.task_id}} "
                      "{{mesos.role}} {{mesos.cluster}} {{thermos.user}} {{mine}}")
        job = load(text, bindings={"mine": "1"})
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        self.assertEqual(data["task"]["processes"][0]["cmdline"],
                         "{{mesos.instance}} {{mesos.hostname}} {{thermos.ports[http]}} {{thermos.task_id}} www-data "
                         "devcluster www-data 1")
        self.assertIn(api.Resource(namedPort="http"), job.configuration.taskConfig.resources)
        self.refused(text, "mine")

    def test_update_settings_follow_the_strategy(self):
        for settings, strategy, size, wait in (
                ("batch_size=3", {"queueStrategy": {"groupSize": 3}}, 3, False),
                ("batch_size=3, wait_for_batch_completion=True",
                 {"batchStrategy": {"groupSize": 3, "autopauseAfterBatch": False}}, 3, True),
                ("update_strategy=QueueUpdateStrategy(batch_size=4)", {"queueStrategy": {"groupSize": 4}}, 4, False),
                ("update_strategy=BatchUpdateStrategy(batch_size=2, autopause_after_batch=True)",
                 {"batchStrategy": {"groupSize": 2, "autopauseAfterBatch": True}}, 2, True),
                ("update_strategy=VariableBatchUpdateStrategy(batch_sizes=[1, 2])",
                 {"varBatchStrategy": {"groupSizes": [1, 2], "autopauseAfterBatch": False}}, 1, False)):
            plain = load(source(extra="instances=9, update_config=UpdateConfig(%s)" % settings)).settings.to_plain()
            self.assertEqual((plain["updateStrategy"], plain["updateGroupSize"], plain["waitForBatchCompletion"]),
                             (strategy, size, wait))
        job = load(source(extra="update_config=UpdateConfig(batch_size=2, update_strategy=QueueUpdateStrategy())"))
        self.assertRegex(job.problems[0], "Ambiguous")
        with self.assertRaises(aurora_rest.InvalidConfig):
            job.update_request()

    def test_instances_of_an_update_are_merged_into_ranges(self):
        ranges = load(source()).update_request([5, 1, 2, 3, 9, 8]).settings.updateOnlyTheseInstances
        self.assertEqual(sorted((r.first, r.last) for r in ranges), [(1, 3), (5, 5), (8, 9)])
        self.assertEqual(aurora_rest.from_ranges(ranges), [1, 2, 3, 5, 8, 9])

    def test_what_the_client_refuses_is_refused(self):
        for extra, says in (
                ("update_config=UpdateConfig(max_total_failures=1)", "max_total_failures"),
                ("update_config=UpdateConfig(watch_secs=-1)", "watch_secs"),
                ("health_check_config=HealthCheckConfig(interval_secs=-1)", "interval_secs"),
                ("announce=Announcer(portmap={'http': 80})", "static ports"),
                ("announce=Announcer(portmap={'a': 'b', 'b': 'a'})", "cycle"),
                ("instances=100, constraints={'dedicated': 'www-data/x'}", "2%"),
                ("cron_schedule='* * * * *', cron_collision_policy='X'", "cron_collision_policy"),
                ("constraints={'a': 'limit:x'}", "limit"), ("colour='red'", "colour"), ("instances='many'", "many"),
                ("container=Container()", "docker"), ("priority='{{x}}'", "x"), ("contact='{{nowhere}}'", "nowhere")):
            self.refused(source(extra=extra), says)
        self.refused("jobs = []", "No job defined")
        self.refused("x = 1", "No job defined")
        self.refused("jobs = [1]", "jobs holds a int")
        self.refused(source("other"), "Could not find job .*Candidates are: devcluster/www-data/devel/other")
        self.refused(source() + "jobs = jobs * 2", "Multiple jobs match")
        self.refused(source().replace("processes=[p]", "processes=[p], constraints=order(p, 'ghost')").replace(
            "SequentialTask", "Task"), "Invalid process dependencies")

    def test_errors_say_file_line_and_all_that_is_wrong(self):
        self.assertEqual(self.refused("jobs = [\nJub()]", "Jub").messages, ["job.aurora, line 2: name 'Jub' is not defined"])
        self.assertRegex(self.refused("a = 1\nb = (", "line 2").messages[0], r"^job\.aurora, line 2: ")
        text = ("jobs = [Job(cluster='devcluster', role='www-data', environment='devel', name='hello', task=Task("
                "name='t', processes=[Process(name='web'), Process(cmdline='x')], resources=Resources(cpu=1)))]")
        self.assertEqual(sorted(self.refused(text, "web").messages), [
            "Process 'web': cmdline is required", "Process: name is required", "Resources: disk is required",
            "Resources: ram is required"])

    def test_ordinary_idioms_work(self):
        text = ("import json, math, re, hashlib, itertools, getpass, collections, time, random, string\n"
                "from functools import partial\n"
                "class Profile(Struct):\n  size = Default(Integer, 2)\n"
                "class Plain(object):\n  def __init__(self, x): self.x = x\n  def double(self): return self.x * 2\n"
                "def make(n, **kw):\n  try:\n    return Process(name='p%d' % n, **kw)\n  except ValueError as e:\n    raise\n"
                "ps = [make(n, cmdline='{0}-{who}-{0!r}'.format(n, who=getpass.getuser())) for n in range(3) if n]\n"
                "ps += [Process(name=f'{x}', cmdline='%s' % Plain(4).double()) for x in sorted({'a', 'b'})]\n"
                "assert 5 / 2 == 2 and {'a': 1}.has_key('a') and list({'a': 1}.iteritems()) == [('a', 1)]\n"
                "total = sum(map(lambda x: x ** 2, xrange(4)))\n"
                "while total > 10: total -= 1\n"
                "jobs = [Job(cluster='devcluster', role='www-data', environment='devel', name='hello', instances=total - 8,\n"
                "  task=SequentialTask(processes=ps, resources=Resources(cpu=1, ram=GB / 4, disk=GB))).bind(p=Profile())]")
        job = load(text)
        self.assertEqual(job.configuration.instanceCount, 2)
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        self.assertEqual([p["cmdline"] for p in data["task"]["processes"]],
                         ["1-www-data-1", "2-www-data-2", "8", "8"])

    def test_helpers_combine_tasks(self):
        text = ("a, b = Process(name='a', cmdline='1'), Process(name='b', cmdline='2')\n"
                "ta = Task(processes=[a], resources=Resources(cpu=1, ram=GB, disk=GB), finalization_wait=5)\n"
                "tb = Task(name='tb', processes=[b], resources=Resources(cpu=2, ram=MB, disk=2*GB), finalization_wait=7)\n"
                "opts = java_options('a', {'b': 23}) + '|' + python_options('a', boo='foo')\n"
                "def job(n, t): return Job(cluster='devcluster', role='www-data', environment='devel', name=n, task=t, contact=opts)\n"
                "jobs = [job('hello', combine_tasks(ta, tb)), job('concat', concat_tasks(ta, tb)),\n"
                "        job('simple', SimpleTask('x', 'true'))]")
        combined = load(text).configuration
        task = json.loads(combined.taskConfig.executorConfig.data)["task"]
        self.assertEqual(task["resources"], {"cpu": 3.0, "ram": (1 << 30) + (1 << 20), "disk": 3 << 30, "gpu": 0})
        self.assertEqual((task["finalization_wait"], sorted(p["name"] for p in task["processes"])), (7, ["a", "b"]))
        self.assertEqual(combined.taskConfig.contactEmail, "-a -b 23|-a --boo foo")
        task = json.loads(load(text, "devcluster/www-data/devel/concat").configuration.taskConfig.executorConfig.data)["task"]
        self.assertEqual((task["resources"]["cpu"], task["finalization_wait"]), (2.0, 12))
        self.assertEqual(task["constraints"], [{"order": ["a", "b"]}])

    def test_files_include_one_another_by_relative_path(self):
        files = {"root.aurora": "include('sub/one.aurora')\njobs = [make('hello')]",
                 "sub/one.aurora": "include('two.aurora')\ninclude('../three.aurora')",
                 "sub/two.aurora": source().replace("jobs = [", "template = (").replace(")]\n", "))\n"),
                 "three.aurora": "def make(n): return template(name=n)"}
        self.assertEqual(load(files).configuration.key.name, "hello")
        for path in ("/etc/passwd", "../x", "sub/../../x", "no.aurora"):
            self.refused({"root.aurora": "include(%r)" % path}, "root.aurora, line 1: include")
        self.refused({"a.aurora": "include('a.aurora')"}, "without end|recursive")

    def test_the_include_root_adds_site_files_and_nothing_else(self):
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "site"))
            with open(os.path.join(folder, "site", "base.aurora"), "w", encoding="utf-8") as stream:
                stream.write(source())
            with open(os.path.join(folder, "secret"), "w", encoding="utf-8") as stream:
                stream.write("x = 1")
            os.symlink(os.path.join(folder, "secret"), os.path.join(folder, "site", "link.aurora"))
            evaluator = aurora_rest.Evaluator(include_root=os.path.join(folder, "site"))
            try:
                job = aurora_rest.load_job("include('base.aurora')", "devcluster/www-data/devel/hello", evaluator=evaluator)
                self.assertEqual(job.configuration.key.name, "hello")
                for path in ("link.aurora", "../secret", "none.aurora"):
                    with self.assertRaisesRegex(aurora_rest.InvalidConfig, "include"):
                        aurora_rest.load_job("include(%r)" % path, "devcluster/www-data/devel/hello", evaluator=evaluator)
            finally:
                evaluator.close()

    def test_json_jobs_are_read(self):
        plain = {"cluster": "devcluster", "role": "www-data", "environment": "devel", "name": "hello", "service": True,
                 "task": {"processes": [{"name": "p", "cmdline": "x"}],
                          "resources": {"cpu": 1, "ram": 1 << 27, "disk": 1 << 27}}}
        for text in (json.dumps(plain), json.dumps({"jobs": [plain]})):
            self.assertTrue(load(text, is_json=True).configuration.taskConfig.isService)
        for text in ("[]", "{", '{"jobs": 3}', '{"jobs": [{"colour": 1}]}', "null"):
            self.refused(text, "", is_json=True)

    def test_images_are_resolved_by_the_clusters_registry(self):
        def script(handler):
            handler.send_response(200 if "/v2/lib/app/manifests/" in handler.path else 404)
            handler.send_header("Docker-Content-Digest", "sha256:abc")
            handler.end_headers()
        registry = http.server.HTTPServer(("127.0.0.1", 0), type("Registry", (http.server.BaseHTTPRequestHandler,), {
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

    def test_running_text_and_owner_are_kept_where_the_meaning_is_the_same(self):
        job = load(source())
        data = json.loads(job.configuration.taskConfig.executorConfig.data)
        text = json.dumps(dict(reversed(list(data.items()))), indent=1)
        running = job.configuration.taskConfig.replace(
            owner=api.Identity(user="somebody"), executorConfig=api.ExecutorConfig(name="AuroraExecutor", data=text))
        self.assertNotEqual(running, job.configuration.taskConfig)
        self.assertEqual(aurora_rest.align(job, [(running, [0])]).configuration.taskConfig, running)
        changed = load(source(command="other"))
        aligned = aurora_rest.align(changed, [(running, [0])]).configuration.taskConfig
        self.assertEqual(aligned.owner.user, "somebody")
        self.assertIn("other", aligned.executorConfig.data)

    def test_attacks_are_refused_and_the_next_request_is_served(self):
        attacks = [
            "import os", "from os import system", "import subprocess", "import ctypes", "import socket", "import pickle",
            "__import__('os').system('true')", "open('/etc/passwd')", "eval('1')", "exec('1')", "compile('1', '', 'exec')",
            "().__class__.__mro__[1].__subclasses__()", "'{0.__globals__}'.format(order)", "'{0.__class__}'.format_map({})",
            "f = '{0.__class__}'.format\nf(1)", "x = f'{order.__globals__}'", "(x for x in ()).gi_frame",
            "def f(): yield\nf().gi_frame.f_back", "type(1)", "type('X', (), {})", "getattr(order, '__glo' + 'bals__')",
            "setattr(order, 'x', 1)", "vars(order)", "globals()", "locals()", "dir()", "breakpoint()", "input()",
            "@staticmethod.__class__\ndef f(): pass", "class X(object, metaclass=Struct): pass",
            "class X(Struct.__class__): pass", "class X(object):\n  def __reduce__(self): return 1",
            "try:\n  1 / 0\nexcept Exception as e:\n  e.__traceback__.tb_frame", "order.func_globals",
            "Process.check = None", "json = 1\nimport json\njson.codecs", "import random\nrandom._os.system('true')",
            "import re\nre.enum.sys", "import string\nstring.Formatter()", "with open('x') as f: pass",
            "async def f(): pass", "del Process.get", "raise SystemExit", "import sys\nsys.exit()", "exit()",
            "'' . format . __self__", "match ():\n  case object(__class__=c): pass", "def f():\n  global __builtins__",
            "match order:\n  case {**__builtins__}: pass", "Struct.__init_subclass__()", "from pystachio import sys", "from math import __loader__"]
        for attack in attacks:
            with self.subTest(attack=attack):
                self.refused(attack + "\n" + source(), "")
        self.assertEqual(load(source()).configuration.key.name, "hello")

    def test_attacks_on_the_limits_end_within_them(self):
        evaluator = aurora_rest.Evaluator(limits=aurora_rest.ConfigLimits(cpu_seconds=1, wall_seconds=3.0))
        self.addCleanup(evaluator.close)
        attacks = ["while True: pass", "x = 10**10**10", "x = 'a' * 10**11", "x = [0] * (50 << 20)", "x = list(range(10**9))",
                   "def f(): return f()\nf()", "x = " + "(" * 5000 + ")" * 5000, "x = " + "[" * 90 + "]" * 90 + "\n" + "-" * 100000 + "1",
                   "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "x = '{{x}}{{x}}'\nc = Process(name='{{a}}', cmdline='').bind(a='{{a}}{{a}}').name().get()",
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
    def test_trusted_source_still_has_no_file_network_process_or_environment(self):
        evaluator = aurora_rest.Evaluator(trusted=True, limits=aurora_rest.ConfigLimits(cpu_seconds=1, wall_seconds=3.0))
        self.addCleanup(evaluator.close)
        aurora_rest.load_job("import sys\n" + source(), "devcluster/www-data/devel/hello", evaluator=evaluator)
        for attack in ("open('/etc/passwd')", "import os\nos.listdir('/')", "import socket\nsocket.socket()",
                       "import os\nos.fork()", "import os\nos.kill(os.getppid(), 9)\nassert 0", "import os\nassert os.environ",
                       "import os, signal\nos.killpg(0, 9)\nassert 0", "import os\nos.execv('/bin/true', ['true'])",
                       "import os\nos.open('/proc/self/mem', os.O_RDWR)",
                       "import os\nfor fd in range(256):\n  try: os.write(fd, b'{\"job\": {}}')\n  except OSError: pass\nos._exit(0)"):
            with self.subTest(attack=attack), self.assertRaises(aurora_rest.InvalidConfig):
                aurora_rest.load_job(attack + "\n" + source(), "devcluster/www-data/devel/hello", evaluator=evaluator)
        aurora_rest.load_job(source(), "devcluster/www-data/devel/hello", evaluator=evaluator)

    def test_a_forged_result_for_another_job_is_refused(self):
        forged = {"job": {"key": {"role": "root", "environment": "prod", "name": "x"}, "instanceCount": 1,
                          "taskConfig": {"job": {"role": "root", "environment": "prod", "name": "x"}}}, "warnings": []}
        for answer in (forged, {"job": 1}, {}, {"job": {"key": 3}}, {"job": {"instanceCount": "1"}}):
            with mock.patch.object(EVALUATOR, "_ask", return_value=answer), \
                    self.assertRaises(aurora_rest.InvalidConfig):
                load(source())

    def test_an_evaluator_that_was_killed_is_replaced(self):
        load(source())
        with EVALUATOR._lock:
            victims = list(EVALUATOR._idle)
        for each in victims:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
        for _ in range(len(victims) + 1):
            self.assertEqual(load(source()).configuration.key.name, "hello")


