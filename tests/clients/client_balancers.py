"""The README's nginx and HAProxy in front of three gateways: nothing is lost, doubled or held back.

Only addresses, ports and paths of the README's configurations are exchanged.
"""

import contextlib
import itertools
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import unittest

from tests import support
from tests.clients import harness

ADDRESSES = ("10.0.0.11", "10.0.0.12", "10.0.0.13")
# No multiple of three: taking turns must not look like staying.
CLIENT_KEYS = tuple("gw-test-key-%d" % number for number in range(10))
SESSION = "x-claude-code-session-id"
# What Claude Code sends is rarely small: HAProxy's own buffer of 16 KB would not hold it.
LARGE_PADDING = "x" * 300000
MAX_UPSTREAM_CONNECTIONS = 2000
ESTABLISHED = "01"  # in /proc/net/tcp


def read_readme():
    with open(os.path.join(support.PROJECT_DIRECTORY, "README.md"), encoding="utf-8") as file:
        return file.read()


def readme_block(language):
    """The one fenced block of a language."""
    (block,) = re.findall(r"^```%s\n(.*?)^```$" % language, read_readme(), re.DOTALL | re.MULTILINE)
    return block


def free_port():
    """A port below those that systems give to outgoing connections, so that none takes it meanwhile."""
    for port in random.sample(range(12000, 30000), 100):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue  # somebody's: the next one
            return port
    raise AssertionError("no free port among 100")


def replaced(text, changes):
    """``text`` with each key replaced by its value; each must stand in it."""
    for old, new in changes.items():
        if old not in text:
            raise AssertionError("the README's configuration holds no %r" % old)
        text = text.replace(old, new)
    return text


def question(text, stream, padding=""):
    """The body of a request, told from all others by its text."""
    content = [{"type": "text", "text": text}]
    if padding:
        content.insert(0, {"type": "text", "text": padding})
    return support.to_json({"model": "claude-opus-5-5", "max_tokens": 64, "stream": stream,
                            "messages": [{"role": "user", "content": content}]})


class EchoUpstream(support.ScriptedUpstream):
    """Answers each question with its text, and notes in ``ran`` which gateway brought which text.

    One that begins with "held" stops at its gate after the first delta, one with "silent"
    before the first content, one with "lost" before the answer, the first time.
    """

    def __init__(self):
        super().__init__(*[self.converse] * MAX_UPSTREAM_CONNECTIONS)
        self.gates = {}
        self.limited = set()
        self.ran = []

    def converse(self, connection):
        while True:
            request = connection.read_request(seconds=None)
            if request is None:
                return
            if request.method == "GET":
                self.list_results(connection)
            else:
                self.answer(connection, request)

    def list_results(self, connection):
        """Many small lines, which may be long in coming."""
        head = support.SSE_HEAD.replace(b"text/event-stream", b"application/x-jsonl")
        connection.send(head + support.chunk(b'{"custom_id":"one"}\n'))
        self.gates["held"].wait("the client to have the first line")
        connection.send(support.chunk(b'{"custom_id":"two"}\n') + support.LAST_CHUNK)

    def answer(self, connection, request):
        document = request.json()
        text = document["messages"][0]["content"][-1]["text"]
        # Each gateway has an account of its own.
        gateway = int(request.header("x-api-key").rsplit("-", 1)[1])
        self.ran.append((gateway, text))
        if text.startswith("lost") and [ran for _, ran in self.ran].count(text) == 1:
            self.gates["lost"].wait("the gateway to be killed")
        if gateway in self.limited:
            limit = support.error_body("rate_limit_error", "wait")
            connection.send(support.json_response(limit, 429, [("retry-after", "40")]))
        elif text.startswith("busy"):
            connection.send(support.json_response(support.error_body("api_error", "busy"), 503))
        elif not document["stream"]:
            connection.send(support.json_response(support.message(text), headers=self.head_of(text)))
        else:
            self.stream(connection, text)

    @staticmethod
    def head_of(text):
        return [("anthropic-long", "y" * 20000)] if text.startswith("long head") else []

    def stream(self, connection, text):
        events = support.stream_events(text)
        word = text.split()[0]
        gate = self.gates.get(word)
        at = {"held": 4, "silent": 1}.get(word, 0)
        connection.send(support.SSE_HEAD + b"".join(map(support.chunk, events[:at])))
        if at:
            gate.wait("the client to have seen what came so far")
        connection.send(b"".join(map(support.chunk, events[at:])) + support.LAST_CHUNK)


class Fleet:
    """Three gateways as processes, each on a port that its successor takes over."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.ports = [free_port() for _ in ADDRESSES]
        self.gateways = [None for _ in ADDRESSES]
        self.names = itertools.count()

    def config(self, number, name="work"):
        account = {"name": name, "api_key": "account-key-%d" % number}
        return {
            "auth": {"api_keys": list(CLIENT_KEYS)},
            "providers": [{"name": "anthropic", "base_url": self.upstream.url, "accounts": [account]}],
            "stream": {"hold_seconds": 0.1, "ping_seconds": 1},
            "retry": {"max_wait_seconds": 0},
        }

    def start(self, number):
        process = support.GatewayProcess(self.config(number), ["--port", str(self.ports[number])])
        self.gateways[number] = process.__enter__()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            for number in range(len(ADDRESSES)):
                self.start(number)
                stack.callback(self.end, number)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.__exit__(*error)

    def end(self, number):
        if self.gateways[number] is not None:
            gateway, self.gateways[number] = self.gateways[number], None
            gateway.__exit__(None, None, None)

    def forget_limits(self):
        """Accounts of another name have no past."""
        for number, gateway in enumerate(self.gateways):
            name = "work-%d" % next(self.names)
            with open(gateway.config_file, "wb") as file:
                file.write(support.to_json(self.config(number, name)))
            gateway.process.send_signal(signal.SIGHUP)
            path, headers = "/gateway/status", [("x-api-key", CLIENT_KEYS[0])]
            support.eventually(lambda: name.encode() in support.exchange(
                self.ports[number], "GET", path, headers).body, "the new configuration")

    def kill(self, number):
        self.gateways[number].process.kill()
        self.wait_ended(number)

    def begin_drain(self, number):
        self.gateways[number].process.send_signal(signal.SIGTERM)

    def wait_ended(self, number):
        """Its exit code, once it has drained."""
        self.gateways[number].process.wait(support.WAIT_SECONDS)
        code = self.gateways[number].stop()
        self.end(number)
        return code

    def status(self, number):
        return support.exchange(self.ports[number], "GET", "/health").status


class Balancer:
    """A balancer as a process; ``lines`` is what it said so far."""

    def __init__(self, arguments, port):
        self.arguments = arguments
        self.port = port
        self.lines = []

    def __enter__(self):
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            support.eventually(self._listens, "%s to listen" % self.arguments[0])
        except BaseException:
            self.__exit__(None, None, None)
            raise AssertionError("%s does not run: %s" % (self.arguments[0], self.text()))
        return self

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.decode("utf-8", "replace"))

    def _listens(self):
        if self.process.poll() is not None:
            raise AssertionError("it has ended")
        with contextlib.suppress(ConnectionRefusedError):
            support.RawClient(self.port).close()
            return True
        return False

    def text(self):
        return "".join(self.lines)

    def __exit__(self, *error):
        # Quickly: both have children, and nothing of theirs is under way any more.
        self.process.terminate()
        try:
            self.process.wait(support.WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join(support.WAIT_SECONDS)
        self.process.stderr.close()


class Caller(threading.Thread):
    """A client that asks one thing after the other and takes no excuse; ``faults`` says what it was refused."""

    def __init__(self, test, name, keeps):
        super().__init__(name=name, daemon=True)
        self.test = test
        self.keeps = keeps
        self.enough = threading.Event()
        self.texts = []
        self.done = 0
        self.faults = []

    def run(self):
        client = None
        for number in itertools.count():
            if self.enough.is_set() or self.faults:
                break
            try:
                client = client or self.test.client()
                answer = self.ask(client, number)
            except (OSError, AssertionError) as error:
                self.faults.append("%s %d: %r" % (self.name, number, error))
                break
            if not self.keeps or answer.has_token("connection", "close"):
                client.close()
                client = None
        if client:
            client.close()

    def ask(self, client, number):
        """By turns a stream and a message, small and large, and a list of models."""
        text, mark = "%s %d" % (self.name, number), b"message_stop" if number % 2 else self.name.encode()
        headers = self.test.headers(self.name + str(number % 7))
        if number % 8 == 2:
            mark = b"object"
            client.request("GET", "/v1/models", headers)
        else:
            padding = LARGE_PADDING if number % 8 > 5 else ""
            client.request("POST", "/v1/messages", headers, question(text, bool(number % 2), padding))
        answer = client.read_response()
        if answer.status != 200 or not answer.complete or mark not in answer.body:
            self.faults.append("%s: %r" % (text, answer))
        self.done += 1
        if mark != b"object":
            self.texts.append(text)
        return answer


class BalancerTests:
    """What holds for both."""

    @classmethod
    def setUpClass(cls):
        """One fleet for all tests of a class: three interpreters take a second to start."""
        cls.folder = os.path.realpath(tempfile.mkdtemp(prefix="claude_gateway_balancer_"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.port = free_port()
        tls = support.make_tls_material(cls.folder)
        cls.context = tls.client_context()
        cls.upstream = cls.entered(EchoUpstream())
        cls.fleet = cls.entered(Fleet(cls.upstream))
        cls.balancer = cls.entered(Balancer(cls.command(tls), cls.port))
        cls.said_at_first = cls.balancer.text()

    @classmethod
    def entered(cls, context):
        value = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)
        return value

    @classmethod
    def addresses(cls):
        return {"%s:8045" % address: "127.0.0.1:%d" % port for address, port in zip(ADDRESSES, cls.fleet.ports)}

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def setUp(self):
        self.gates = self.upstream.gates = {word: support.Gate() for word in ("held", "silent", "lost")}
        for gate in self.gates.values():
            self.addCleanup(gate.open)
        self.upstream.ran = []
        self.wait_for_checks("UP")

    def wait_for_checks(self, status):
        """Until a balancer that has checks knows that all gateways are so."""

    # -- asking

    def client(self):
        return support.RawClient(self.port, context=self.context)

    def headers(self, session, key=CLIENT_KEYS[0]):
        named = [(SESSION, session)] if session else []
        return [("x-api-key", key), ("content-type", "application/json"), ("accept-encoding", "gzip"), *named]

    def ask(self, text, session="", key=CLIENT_KEYS[0], stream=False, path="/v1/messages", padding="", more=()):
        with self.client() as client:
            client.request("POST", path, [*self.headers(session, key), *more], question(text, stream, padding))
            return client.read_response()

    def begin(self, text, session, mark):
        """A stream that has been read as far as ``mark``: its client, its answer, what came."""
        client = self.client()
        self.addCleanup(client.close)
        client.request("POST", "/v1/messages", self.headers(session), question(text, True))
        answer = client.read_head()
        self.assertEqual(200, answer.status)
        came = b""
        while mark not in came:
            came += client.read_chunk() or self.fail("it ended after %r" % came)
        return client, came

    def gateway_that_got(self, text):
        (gateway,) = [gateway for gateway, ran in self.upstream.ran if ran == text]
        return gateway

    def session_of(self, number):
        """A conversation that is sent to this gateway."""
        for session in map("session-{}".format, itertools.count()):
            text = "where %d" % len(self.upstream.ran)
            self.assertEqual(200, self.ask(text, session).status)
            if self.gateway_that_got(text) == number:
                return session

    # -- tests

    def test_the_configuration_draws_no_warning(self):
        self.assertNotRegex(self.said_at_first.lower(), "warn|alert|emerg")

    def test_a_conversation_stays_with_one_gateway(self):
        homes = {}
        with self.client() as client:
            for turn, number in itertools.product(range(2), range(40)):
                text = "turn %d of %d" % (turn, number)
                client.request("POST", "/v1/messages", self.headers("s-%d" % number), question(text, False))
                self.assertEqual(200, client.read_response().status)
                homes.setdefault(number, set()).add(self.gateway_that_got(text))
        self.assertEqual({1}, {len(home) for home in homes.values()})
        self.assertEqual({0, 1, 2}, set.union(*homes.values()))

    def test_who_names_no_conversation_stays_by_its_key(self):
        homes = {}
        for turn, key in itertools.product(range(2), CLIENT_KEYS):
            text = "turn %d of %s" % (turn, key)
            self.assertEqual(200, self.ask(text, key=key).status)
            homes.setdefault(key, set()).add(self.gateway_that_got(text))
        self.assertEqual({1}, {len(home) for home in homes.values()})
        self.assertGreater(len(set.union(*homes.values())), 1)

    def test_a_stream_is_not_held_back(self):
        client, came = self.begin("held one two", "s", b"content_block_delta")
        self.assertNotIn(b"message_stop", came)
        self.gates["held"].open()
        came += b"".join(iter(client.read_chunk, b""))
        self.assertEqual(b"".join(support.stream_events("held one two")), came)

    def test_results_are_not_held_back(self):
        with self.client() as client:
            client.request("GET", "/v1/messages/batches/one/results", self.headers(""))
            self.assertEqual(200, client.read_head().status)
            self.assertEqual(b'{"custom_id":"one"}\n', client.read_chunk())
            self.gates["held"].open()
            self.assertEqual(b'{"custom_id":"two"}\n', client.read_chunk())

    def test_connections_to_gateways_are_kept(self):
        kept = []
        for number in range(2):
            self.assertEqual(200, self.ask("hello %d" % number, "s").status)
            port = self.fleet.ports[self.gateway_that_got("hello %d" % number)]
            kept.append(support.eventually(lambda: peers_of(port), "a connection that stays"))
        self.assertTrue(kept[0] & kept[1], kept)

    def test_pings_come_while_the_upstream_is_silent(self):
        client, came = self.begin("silent one", "s", b"event: ping")
        self.assertNotIn(b"content_block_start", came)
        self.gates["silent"].open()
        self.assertIn(b"message_stop", b"".join(iter(client.read_chunk, b"")))

    def test_a_client_that_leaves_ends_the_upstream_call(self):
        client, _ = self.begin("held one two", "s", b"content_block_delta")
        request = self.upstream.requests[-1]
        client.close()
        connection = self.upstream.connections[request.connection]
        self.addCleanup(self.gates["held"].open)
        self.assertTrue(support.eventually(lambda: connection_ended(connection), "the upstream call to end"))

    def test_large_requests_and_large_heads_pass(self):
        padding = "x" * 8000000
        self.assertEqual(200, self.ask("large", padding=padding).status)
        self.assertEqual(padding, self.upstream.requests[-1].json()["messages"][0]["content"][0]["text"])
        self.assertEqual(200, self.ask("long", more=[("anthropic-long", "x" * 15000)]).status)
        answer = self.ask("long head")
        self.assertEqual((200, 20000), (answer.status, len(answer.header("anthropic-long"))))

    def test_what_is_too_large_is_refused_by_the_gateway(self):
        answer = self.ask("too large", padding="x" * 33554432)
        self.assertEqual((413, "request_too_large"), (answer.status, answer.json()["error"]["type"]))

    def test_what_must_not_be_done_twice_is_not_asked_again(self):
        """A gateway dies over it: nobody knows whether it was done.  A message is worth asking again."""
        for path, status, times in (("/v1/messages/batches", 502, 1), ("/v1/messages", 200, 2)):
            with self.subTest(path), self.client() as client:
                text, session = "lost %s" % path, self.session_of(0)
                client.request("POST", path, self.headers(session), question(text, False))
                support.eventually(lambda: (0, text) in self.upstream.ran, "the request upstream")
                self.fleet.kill(0)
                self.assertEqual(status, client.read_response().status)
                self.assertEqual(times, [ran for _, ran in self.upstream.ran].count(text))
                self.fleet.start(0)
                self.wait_for_checks("UP")

    def test_an_upstream_that_is_busy_takes_no_gateway_out(self):
        self.addCleanup(self.fleet.forget_limits)
        for number in range(4):
            answer = self.ask("busy %d" % number)
            self.assertEqual((503, "busy"), (answer.status, answer.json()["error"]["message"]))
        self.assertEqual(200, self.ask("as ever").status)

    def test_when_all_accounts_are_exhausted_a_gateway_tells_for_how_long(self):
        self.addCleanup(self.fleet.forget_limits)
        self.upstream.limited = {0, 1, 2}
        body = question("too much", False)
        for number, port in enumerate(self.fleet.ports):
            self.assertEqual(429, support.exchange(port, "POST", "/v1/messages", self.headers(""), body).status)
            self.assertEqual(503, self.fleet.status(number))
        self.wait_for_checks("DOWN")
        answer = self.ask("too much")
        self.assertEqual(429, answer.status)
        self.assertIn(int(answer.header("retry-after")), range(1, 41))
        self.upstream.limited = set()

    def test_three_are_replaced_under_load(self):
        callers = [Caller(self, "caller-%d" % number, number % 2 > 0) for number in range(4)]
        for caller in callers:
            caller.start()
        try:
            self.replace_with_a_stream_under_way(0, callers)
            self.replace(1)
            self.replace(2)
        finally:
            for caller in callers:
                caller.enough.set()
            for caller in callers:
                caller.join(support.JOIN_SECONDS)
        self.assertEqual([], [fault for caller in callers for fault in caller.faults])
        ran = [text for _, text in self.upstream.ran]
        load = sorted(text for text in ran if text.startswith("caller"))
        self.assertEqual(sorted(text for caller in callers for text in caller.texts), load)
        self.assertEqual(1, ran.count("held one two"))
        print("\n%s: %d requests while three gateways were replaced: none lost, none done twice"
              % (self.NAME, sum(caller.done for caller in callers)))

    def replace_with_a_stream_under_way(self, number, callers):
        """What a draining gateway has begun it ends; what comes meanwhile goes elsewhere."""
        session = self.session_of(number)
        client, came = self.begin("held one two", session, b"content_block_delta")
        self.fleet.begin_drain(number)
        support.eventually(lambda: self.fleet.status(number) == 503, "the gateway to drain")
        self.assertEqual(200, self.ask("moved on", session).status)
        self.assertNotEqual(number, self.gateway_that_got("moved on"))
        counts = [caller.done for caller in callers]
        support.eventually(lambda: all(caller.done > count + 10 or caller.faults
                                       for caller, count in zip(callers, counts)), "the load to go on")
        self.gates["held"].open()
        came += b"".join(iter(client.read_chunk, b""))
        self.assertEqual(b"".join(support.stream_events("held one two")), came)
        self.restart(number)

    def replace(self, number):
        self.fleet.begin_drain(number)
        self.restart(number)

    def restart(self, number):
        self.assertEqual(0, self.fleet.wait_ended(number))
        seen = len(self.upstream.ran)
        self.fleet.start(number)
        support.eventually(lambda: any(gateway == number for gateway, _ in self.upstream.ran[seen:]),
                           "the new gateway to serve")


def peers_of(port):
    """The ports of whoever is connected to a port of ours."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in list(file)[1:]]
    return {row[2] for row in rows if row[1].endswith(":%04X" % port) and row[3] == ESTABLISHED}


def connection_ended(connection):
    """Whether the peer of a connection that is not read just now has left, in order or by a reset."""
    readable, _, _ = select.select([connection.socket], [], [], 0)
    try:
        return bool(readable) and connection.socket.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:
        return True


class NginxTest(BalancerTests, unittest.TestCase):

    NAME = "nginx"
    AROUND = """
        daemon off;
        pid FOLDER/nginx.pid;
        events { worker_connections 1024; }
        http {
            access_log off;
            client_body_temp_path FOLDER/bodies;
            proxy_temp_path FOLDER/answers;
            fastcgi_temp_path FOLDER/fastcgi;
            uwsgi_temp_path FOLDER/uwsgi;
            scgi_temp_path FOLDER/scgi;
            # As many have it.
            gzip on;
            gzip_types *;
            include FOLDER/claude.conf;
        }
    """

    @classmethod
    def command(cls, tls):
        program = harness.on_path(cls.NAME)
        cls.write("claude.conf", replaced(readme_block(cls.NAME), dict(cls.addresses(), **{
            "listen 443 ": "listen 127.0.0.1:%d " % cls.port,
            "/etc/ssl/claude.pem": tls.cert_file,
            "/etc/ssl/claude.key": tls.key_file,
        })))
        path = cls.write("nginx.conf", cls.AROUND.replace("FOLDER", cls.folder))
        return [program, "-p", cls.folder, "-c", path, "-e", "stderr"]


class HaproxyTest(BalancerTests, unittest.TestCase):

    NAME = "haproxy"
    # As Debian's own file begins, which the README's is added to.
    AROUND = """
        global
            stats socket FOLDER/admin.sock mode 660 level admin
    """

    @classmethod
    def command(cls, tls):
        program = harness.on_path(cls.NAME)
        with open(tls.cert_file) as certificate, open(tls.key_file) as key:
            pem = cls.write("claude.pem", certificate.read() + key.read())
        added = replaced(readme_block(cls.NAME), dict(cls.addresses(), **{
            "bind :443 ": "bind 127.0.0.1:%d " % cls.port,
            "/etc/haproxy/claude.pem": pem,
        }))
        path = cls.write("haproxy.cfg", cls.AROUND.replace("FOLDER", cls.folder) + added)
        return [program, "-db", "-f", path]

    def admin(self, command):
        """What the admin socket answers."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.path.join(self.folder, "admin.sock"))
            sock.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def wait_for_checks(self, status):
        def reached():
            rows = [line.split(",") for line in self.admin("show stat").splitlines()]
            return [row[17] for row in rows if row[0] == "gateways" and row[1] != "BACKEND"] == [status] * 3
        support.eventually(reached, "all gateways to be %s" % status)

    def test_what_is_too_large_to_be_repeated_is_spared_by_a_drain(self):
        """Beyond tune.bufsize HAProxy cannot ask again, so it is told in time."""
        session = self.session_of(0)
        client, came = self.begin("held one two", session, b"content_block_delta")
        self.admin("set server gateways/one state drain")
        self.assertEqual(200, self.ask("elsewhere", session, padding="x" * 3000000).status)
        self.assertNotEqual(0, self.gateway_that_got("elsewhere"))
        self.gates["held"].open()
        self.assertIn(b"message_stop", b"".join(iter(client.read_chunk, b"")))
        self.admin("set server gateways/one state ready")
        self.assertEqual(200, self.ask("back", session).status)
        self.assertEqual(0, self.gateway_that_got("back"))


if __name__ == "__main__":
    unittest.main()
