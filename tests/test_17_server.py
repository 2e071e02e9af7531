"""Section 17: the downstream side of the wire: framing, limits, keep-alive, stopping.

Requests as bytes, good and bad, are in test_17_corpus.py.
"""

import contextlib
import errno
import os
import queue
import selectors
import socket
import sys
import threading
import time
import unittest
import unittest.mock

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway

SHORT = gw.Timeouts(connect_seconds=5, first_byte_seconds=5, idle_seconds=5, client_seconds=5,
                    keepalive_seconds=5, shutdown_seconds=0)
SMALL = gw.Limits(body_bytes=1000, connections=50)


class Recorder:
    """An application that keeps what it was asked and answers with the body's length."""

    def __init__(self):
        self.requests = []
        self.refusals = []
        self.ends = []
        self.answer = None

    def handle(self, request):
        body = request.read_body()
        self.requests.append((request.method, request.target, body))
        response = self.answer() if self.answer else gw.HttpResponse(200, [], b"%d" % len(body))
        return response.then(self.ends.append)

    def refuse(self, error, request=None):
        self.refusals.append(error.status)
        return gw.HttpResponse(error.status, error.headers, error.message.encode(),
                               close_connection=error.close).then(self.ends.append)


@contextlib.contextmanager
def serving(application=None, timeouts=SHORT, limits=SMALL):
    """A DownstreamServer over an application, on a free port."""
    application = application or Recorder()
    server = gw.DownstreamServer(
        ("127.0.0.1", 0), gw.Application(application.handle, application.refuse), timeouts, limits,
        time.monotonic, time.time)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, application
    finally:
        server.shutdown()
        thread.join(support.WAIT_SECONDS)
        ended = server.close_connections(support.WAIT_SECONDS)
        server.server_close()
        if thread.is_alive() or not ended:
            raise AssertionError("the server did not end")


def sent(server, *pieces):
    """All answers to raw bytes, sent in these pieces, until the connection ends."""
    with support.RawClient(server.server_port) as client:
        answers = []
        try:
            for piece in pieces:
                client.send(piece)
            client.half_close()
            while True:
                answers.append(client.read_response())
        except (support.EndedEarly, ConnectionError):
            return answers  # how the loop ends


GET = b"GET /x HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\n"

# Too large, though well framed: refused, read away, and the connection goes on.
TOO_LARGE = {
    "large body": (POST + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001, 413),
    "large chunked body": (POST + b"Transfer-Encoding: chunked\r\n\r\n"
                           + b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512
                           + b"\r\n0\r\n\r\n", 413),
}


class FramingTest(unittest.TestCase):

    def test_too_large_is_refused_and_read_away(self):
        for name, (data, status) in TOO_LARGE.items():
            with self.subTest(name), serving() as (server, application):
                answers = sent(server, data + GET + b"\r\n")
                self.assertEqual([answer.status for answer in answers], [status, 200])
                self.assertEqual(len(application.requests), 1)

    def test_a_body_of_just_the_limit_is_served(self):
        with serving() as (server, application):
            (answer,) = sent(server, POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
        self.assertEqual((answer.status, answer.body), (200, b"1000"))

    def test_answers_come_in_order(self):
        with serving() as (server, application):
            many = b"".join(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
                            for size in range(20))
            self.assertEqual([answer.body for answer in sent(server, many)],
                             [b"%d" % size for size in range(20)])


class TurnsTest(unittest.TestCase):

    def setUp(self):
        self.turns = gw.Turns()
        self.turns._wanted = True
        self.waits = []

    def taken(self):
        """What take gives while the gates of those who wait open for nobody."""
        waits = self.waits

        class Shut(gw.Waiter):
            def __init__(self, came_at):
                super().__init__(came_at)
                self.gate = unittest.mock.Mock()
                self.gate.acquire = lambda timeout: bool(waits.append(timeout))

        with unittest.mock.patch.object(gw, "Waiter", Shut):
            return self.turns.take()

    def sleeper(self):
        """A thread that waits; gives the function that tells what it got."""
        got = queue.Queue()
        count = len(self.turns._waiting)
        threading.Thread(target=lambda: got.put(self.turns.take()), daemon=True).start()
        support.eventually(lambda: len(self.turns._waiting) > count, "a thread that waits")
        return lambda: got.get(timeout=10)

    def test_one_that_is_stuck_is_waited_for_once(self):
        """Not at each read of each client: streams would go at 20 events a second."""
        self.assertTrue(self.taken())
        for _ in range(5):
            self.assertFalse(self.taken())
        self.assertEqual(self.waits, [gw.TURN_SECONDS])
        self.assertEqual(len(self.turns._waiting), 0)

    def test_the_first_who_finds_it_stuck_tells_all(self):
        """And the others sleep on meanwhile: a thousand would have nothing else to do."""
        self.assertTrue(self.turns.take())
        with unittest.mock.patch.object(gw, "TURN_SECONDS", 0.2), \
                unittest.mock.patch.object(gw, "CROWD_SECONDS", 60):
            sleepers = [self.sleeper() for _ in range(5)]
            self.assertEqual([sleeper() for sleeper in sleepers], [False] * 5)
        self.assertEqual(len(self.turns._waiting), 0)
        self.assertFalse(self.turns.take())
        self.turns.end()
        self.assertTrue(self.turns.take())

    def test_after_its_end_turns_are_waited_for_again(self):
        self.assertTrue(self.taken())
        self.assertFalse(self.taken())
        self.turns.end()
        self.assertTrue(self.taken())
        self.assertFalse(self.taken())
        self.assertEqual(self.waits, [gw.TURN_SECONDS] * 2)

    def test_who_waits_has_it_when_it_ends(self):
        self.assertTrue(self.turns.take())
        with unittest.mock.patch.multiple(gw, TURN_SECONDS=60, CROWD_SECONDS=60):
            got = self.sleeper()
            self.turns.end()
            self.assertTrue(got())
        self.turns.end()
        self.assertTrue(self.turns.take())

    def test_nobody_is_passed_for_ever(self):
        """Who works and asks again at once may pass the sleepers so often and no more."""
        self.assertTrue(self.turns.take())
        with unittest.mock.patch.multiple(gw, TURN_SECONDS=60, CROWD_SECONDS=60):
            sleepers = [self.sleeper() for _ in range(3)]
            first = self.turns._waiting[0]
            passes = 0
            # Its gate stays shut, as if it were slow to wake.
            with unittest.mock.patch.object(first, "gate", threading.Lock()):
                while not first.given:
                    self.turns.end()
                    if not first.given:
                        self.assertTrue(self.turns.take())
                        passes += 1
            self.assertEqual(passes, gw.MAX_PASSES * 3)
            first.gate.release()
            self.assertTrue(sleepers[0]())
            for sleeper in sleepers[1:]:
                self.turns.end()
                self.assertTrue(sleeper())
        self.assertEqual(len(self.turns._waiting), 0)

    def test_many_threads_each_alone_in_its_turn(self):
        inside, most, done = [], [], queue.Queue()

        def work():
            for _ in range(300):
                if self.turns.take():
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    self.turns.end()
            done.put(True)

        with unittest.mock.patch.multiple(gw, TURN_SECONDS=60, CROWD_SECONDS=60):
            for _ in range(16):
                threading.Thread(target=work, daemon=True).start()
            for _ in range(16):
                done.get(timeout=60)
        self.assertEqual(max(most), 1)
        self.assertEqual(len(most), 16 * 300)


class SpareTest(unittest.TestCase):

    def test_a_silent_spare_connection_has_one_span_and_no_second_one(self):
        limits, span = SMALL._replace(connections=1), 0.8
        with serving(limits=limits) as (server, application), \
                unittest.mock.patch.object(gw, "SPARE_HEAD_SECONDS", span):
            with support.RawClient(server.server_port) as first:
                first.send(GET + b"\r\n")
                self.assertEqual(first.read_response().status, 200)
                with support.RawClient(server.server_port) as silent:
                    began = time.monotonic()
                    self.assertEqual(silent.read_response().status, 503)
                    self.assertLess(time.monotonic() - began, 2 * span)


class BodyTest(unittest.TestCase):

    def test_continue_only_when_the_body_is_wanted(self):
        head = POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        with serving() as (server, _), support.RawClient(server.server_port) as client:
            client.send(head)
            self.assertEqual(client.read_head().status, 100)
            client.send(b"abc")
            self.assertEqual(client.read_response().body, b"3")

    def test_refused_before_the_body_was_sent(self):
        """The final status comes instead of 100, and the connection closes."""
        class Refuser(Recorder):
            def handle(self, request):
                return self.refuse(gw.RequestError(401, "no"))

        with serving(Refuser()) as (server, _), support.RawClient(server.server_port) as client:
            client.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            answer = client.read_response()
            self.assertEqual((answer.status, answer.interim, answer.header("connection")),
                             (401, [], "close"))

    def test_small_unread_body_is_drained_and_the_connection_kept(self):
        class Ignorer(Recorder):
            def handle(self, request):
                self.requests.append(request.target)
                return gw.HttpResponse(401, [], b"no")

        data = POST + b"Content-Length: 500\r\n\r\n" + GET.replace(b"/x", b"/smuggled") * 30
        with serving(Ignorer()) as (server, application):
            data = data[:data.index(b"\r\n\r\n") + 4 + 500]
            answers = sent(server, data + GET + b"\r\n")
        self.assertEqual([answer.status for answer in answers], [401, 401])
        self.assertEqual(application.requests, ["/x", "/x"])

    def test_refusal_of_a_large_body_arrives(self):
        """A client that is still sending 20 MB gets its 413, not a reset."""
        with serving() as (server, _):
            with support.RawClient(server.server_port) as client:
                client.send(POST + b"Content-Length: 20000000\r\n\r\n")
                client.send(b"x" * 20000000)
                self.assertEqual(client.read_response().status, 413)

    def test_refusal_does_not_wait_for_the_body(self):
        class Refuser(Recorder):
            def handle(self, request):
                return self.refuse(gw.RequestError(401, "no"))

        with serving(Refuser()) as (server, _), support.RawClient(server.server_port) as client:
            client.send(POST + b"Content-Length: 500\r\n\r\n")
            self.assertEqual(client.read_response().status, 401)
            client.send(b"x" * 500 + GET + b"\r\n")
            self.assertEqual(client.read_response().status, 401)

    def test_dripping_body_is_a_408(self):
        with serving(timeouts=SHORT._replace(client_seconds=0.2)) as (server, _):
            with support.RawClient(server.server_port) as client:
                client.send(POST + b"Content-Length: 1000\r\n\r\n")
                self.drip(client, b"x" * 999)
                self.assertEqual(client.read_response().status, 408)

    def drip(self, client, data):
        """A byte every 20 ms until there is an answer."""
        with selectors.DefaultSelector() as selector:
            selector.register(client.socket, selectors.EVENT_READ)
            for byte in data:
                if selector.select(0.02):
                    return
                client.send(bytes([byte]))

    def test_blank_lines_in_front_are_bounded(self):
        with serving() as (server, _):
            answers = sent(server, b"\r\n" * 10000 + GET + b"\r\n")
            self.assertEqual([answer.status for answer in answers], [400])

    def test_silent_body_is_a_408(self):
        with serving(timeouts=SHORT._replace(client_seconds=0.1)) as (server, _):
            with support.RawClient(server.server_port) as client:
                client.send(POST + b"Content-Length: 3\r\n\r\na")
                self.assertEqual(client.read_response().status, 408)

    def test_dripping_head_is_a_408(self):
        with serving(timeouts=SHORT._replace(client_seconds=0.2)) as (server, _):
            with support.RawClient(server.server_port) as client:
                self.drip(client, GET + b"A: " + b"x" * 1000)
                self.assertEqual(client.read_response().status, 408)

    def test_client_that_leaves_within_its_body(self):
        with serving() as (server, application):
            with support.RawClient(server.server_port) as client:
                client.send(POST + b"Content-Length: 3\r\n\r\na")
            support.eventually(lambda: server.counts()["connections"] == 0, "the thread to end")
            self.assertEqual(application.requests, [])


class AnswerTest(unittest.TestCase):

    def test_head_has_no_body(self):
        with serving() as (server, _):
            answer = support.exchange(server.server_port, "HEAD", "/x")
        self.assertEqual((answer.header("content-length"), answer.body), ("1", b""))

    def test_keep_alive(self):
        table = [
            (GET + b"\r\n", None), (GET + b"Connection: close\r\n\r\n", "close"),
            (b"GET /x HTTP/1.0\r\n\r\n", "close"),
            (b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
        ]
        for data, expected in table:
            with self.subTest(data), serving() as (server, _):
                with support.RawClient(server.server_port) as client:
                    client.send(data)
                    self.assertEqual(client.read_response().header("connection"), expected)
                    self.assertEqual(client.at_eof(0.1), expected == "close")

    def test_idle_connection_is_closed_after_keepalive_seconds(self):
        with serving(timeouts=SHORT._replace(keepalive_seconds=0.1)) as (server, _):
            with support.RawClient(server.server_port) as client:
                client.send(GET + b"\r\n")
                client.read_response()
                self.assertTrue(client.at_eof())

    def test_stream_is_chunked_or_close_delimited(self):
        application = Recorder()
        application.answer = lambda: gw.HttpResponse(200, [], iter([b"ab", b"c"]))
        with serving(application) as (server, _):
            (chunked,) = sent(server, GET + b"Connection: close\r\n\r\n")
            (plain,) = sent(server, b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        self.assertEqual((chunked.chunks, chunked.complete), ([b"ab", b"c"], True))
        self.assertEqual((plain.body, plain.header("connection")), (b"abc", "close"))

    def test_what_is_there_already_goes_down_at_once(self):
        table = {
            (False, False, False): [b"head", b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"],
            (True, False, True): [b"head2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n"],
            (True, True, True): [b"head2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"],
        }
        application, send = Recorder(), gw.ClientConnection.send
        for there, packets in table.items():
            answer, sends = gw.HttpResponse(200, [], iter([b"ab", b"c"])), []
            answer.ready = iter(there).__next__
            application.answer = lambda answer=answer: answer

            def recorded(client, data, seconds, sends=sends):
                sends.append(data)
                send(client, data, seconds)

            with self.subTest(there), unittest.mock.patch.object(gw.ClientConnection, "send", recorded):
                with serving(application) as (server, _):
                    (told,) = sent(server, GET + b"Connection: close\r\n\r\n")
                head = sends[0].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                self.assertEqual([sends[0].replace(head, b"head")] + sends[1:], packets)
                self.assertEqual((told.body, told.complete), (b"abc", True))

    def test_body_that_breaks_never_looks_whole(self):
        def breaks():
            yield b"ab"
            raise gw.UpstreamBroke("gone")

        table = [("chunked", None, GET), ("length", 5, GET), ("1.0", None, b"GET /x HTTP/1.0\r\n")]
        for name, length, head in table:
            application = Recorder()
            application.answer = lambda: gw.HttpResponse(200, [], breaks(), length)
            with self.subTest(name), serving(application) as (server, _):
                with support.RawClient(server.server_port) as client:
                    client.send(head + b"\r\n")
                    self.assertFalse(client.read_response().complete)
                support.eventually(lambda: application.ends, "the books to be closed")
                self.assertEqual(application.ends, ["upstream_broke"])

    def test_values_that_would_split_the_answer_are_left_out(self):
        application = Recorder()
        application.answer = lambda: gw.HttpResponse(
            200, [("X-A", "a\r\nX-Evil: 1"), ("X B", "c"), ("X-C", "ok"), ("X-D", "\0")], b"")
        with serving(application) as (server, _):
            answer = support.exchange(server.server_port, "GET", "/x")
        self.assertEqual((answer.all("x-evil"), answer.all("x-c"), answer.all("x-d")),
                         ([], ["ok"], []))

    def test_reader_that_stops_is_dropped(self):
        application = Recorder()
        application.answer = lambda: gw.HttpResponse(200, [], iter([b"x" * 65536] * 1000))
        timeouts = SHORT._replace(client_seconds=0.2)
        with serving(application, timeouts) as (server, _):
            with support.RawClient(server.server_port) as client:
                client.send(GET + b"\r\n")
                support.eventually(lambda: application.ends, "the writer to give up")
        self.assertEqual(application.ends, ["client_left"])

    def test_date_is_sent_once(self):
        with serving() as (server, _):
            answer = support.exchange(server.server_port, "GET", "/x")
        self.assertRegex(answer.header("date"), r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")


class ServerTest(unittest.TestCase):

    def test_connections_above_the_limit_get_a_503(self):
        with serving(limits=SMALL._replace(connections=2)) as (server, application), \
                unittest.mock.patch.object(gw, "SPARE_HEAD_SECONDS", 0.5):
            with support.RawClient(server.server_port) as one:
                with support.RawClient(server.server_port) as two:
                    for client in (one, two):
                        client.send(GET + b"\r\n")
                        self.assertEqual(client.read_response().status, 200)
                    for data in (GET + b"\r\n", b"GET", b""):
                        with self.subTest(data):
                            self.check_turned_away(server, data)
                    health = support.exchange(server.server_port, "GET", "/claude_api/healthz")
                    self.assertEqual((health.status, health.header("connection")), (200, "close"))
                    self.assertEqual(len(application.requests), 3)
                support.eventually(lambda: server.counts()["connections"] == 1, "one to end")
                answer = support.exchange(server.server_port, "GET", "/x")
                self.assertEqual(answer.status, 200)

    def check_turned_away(self, server, data):
        with support.RawClient(server.server_port) as client:
            client.send(data)
            answer = client.read_response()
            self.assertEqual((answer.status, answer.header("connection")), (503, "close"))
            self.assertGreater(int(answer.header("retry-after")), 0)
            self.assertTrue(client.at_eof())

    def test_far_above_the_limit_nothing_is_read(self):
        """503 at once, to a client that has not sent a byte."""
        with contextlib.ExitStack() as stack:
            server, application = stack.enter_context(serving(
                limits=SMALL._replace(connections=1)))
            stack.enter_context(unittest.mock.patch.object(gw, "SPARE_HEAD_SECONDS", 30))
            for _ in range(1 + gw.SPARE_CONNECTIONS):
                stack.enter_context(support.RawClient(server.server_port))
            support.eventually(lambda: server.counts()["connections"] == 1 + gw.SPARE_CONNECTIONS,
                               "all to be accepted")
            self.check_turned_away(server, b"")

    def test_out_of_descriptors_or_memory_pauses_instead_of_spinning(self):
        for code in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            with self.subTest(errno.errorcode[code]), serving() as (server, _):
                pauses = []
                server._stopping = type("Pause", (), {
                    "wait": lambda self, seconds: pauses.append(seconds),
                    "is_set": lambda self: False, "set": lambda self: None})()
                real, server.socket = server.socket, type("Full", (), {
                    "accept": lambda self: (_ for _ in ()).throw(OSError(code, "full"))})()
                with self.assertRaises(OSError):
                    server.get_request()
                server.socket = real
                server._stopping = threading.Event()
                self.assertEqual(pauses, [gw.ACCEPT_PAUSE_SECONDS])

    def test_ipv6_loopback(self):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("this machine has no IPv6 loopback")
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), host="::1") as gateway:
                self.assertTrue(gateway.url.startswith("http://[::1]:"))
                answer = support.exchange(gateway.port, "GET", "/healthz",
                                          [("Host", "[::1]")], host="::1")
        self.assertEqual(answer.status, 200)

    def test_fault_in_a_thread_leaves_no_traceback(self):
        class Broken(Recorder):
            def handle(self, request):
                raise KeyError("a fault")

        with serving(Broken()) as (server, application):
            with support.RawClient(server.server_port) as client:
                client.send(GET + b"\r\n")
                self.assertTrue(client.at_eof())
            support.eventually(lambda: application.refusals, "the fault to be told")
        self.assertEqual(application.refusals, [500])


class StopTest(unittest.TestCase):

    def test_draining_answers_503_and_lets_the_rest_finish(self):
        gate, events = support.Gate(), support.stream_events()

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(events[0] + events[1]))
            gate.wait("the gateway to be draining")
            connection.send(b"".join(map(support.chunk, events[2:])) + support.LAST_CHUNK)

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream),
                                 timeouts={"shutdown_seconds": 10}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    client.read_head()
                    stopper = threading.Thread(target=gateway.stop)
                    stopper.start()
                    support.eventually(lambda: self.status(gateway, "/health") == 503, "draining")
                    refused = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                               MESSAGE)
                    self.assertEqual((refused.status, refused.json()["error"]["type"],
                                      refused.header("connection")),
                                     (503, "overloaded_error", "close"))
                    self.assertEqual(self.status(gateway, "/healthz"), 200)
                    gate.open()
                    body = b"".join(iter(client.read_chunk, b""))
                    self.assertEqual(body, b"".join(events))
                    stopper.join(support.WAIT_SECONDS)
                    self.assertFalse(stopper.is_alive())
            with self.assertRaises(OSError):
                support.RawClient(gateway.port)

    def status(self, gateway, path):
        return support.exchange(gateway.port, "GET", path).status

    def test_half_a_head_holds_nothing_up(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream),
                                 timeouts={"shutdown_seconds": 8}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.send(b"GET / HT")
                    support.eventually(lambda: gateway.status()["connections"], "the connection")
                    began = time.monotonic()
                    gateway.stop()
        self.assertLess(time.monotonic() - began, 5)

    def test_who_waits_to_be_accepted_is_answered_and_then_nobody_connects(self):
        """Closing a listener resets its queue: a balancer could not tell whether that was done."""
        with serving() as (server, application):
            server.shutdown()
            support.eventually(lambda: server.socket.fileno() < 0, "the listener to be closed")
            with self.assertRaises(ConnectionRefusedError):
                support.RawClient(server.server_port)
        application = Recorder()
        server = gw.DownstreamServer(
            ("127.0.0.1", 0), gw.Application(application.handle, application.refuse), SHORT, SMALL,
            time.monotonic, time.time)
        with support.RawClient(server.server_port) as client:
            client.send(GET + b"Connection: close\r\n\r\n")
            server.shutdown()
            server.serve_forever()  # accepts nothing as long as it serves
            self.assertEqual(client.read_response().status, 200)
        self.assertTrue(server.close_connections(support.WAIT_SECONDS))
        server.server_close()

    def test_what_has_come_before_the_end_is_answered(self):
        """Ending the connections takes no answer away, nor (on Linux) a request that is here."""
        asked, told, gate = support.Gate(), support.Gate(), support.Gate()
        application = Recorder()
        shut = socket.socket.shutdown

        def answer():
            asked.open()
            gate.wait("the connections to be told")
            return gw.HttpResponse(200, [], b"in time")

        def shutdown(sock, how):
            shut(sock, how)
            told.open()

        application.answer = answer
        with serving(application) as (server, _), support.RawClient(server.server_port) as client:
            client.send((GET + b"\r\n") * 2)
            asked.wait("the first request")
            closing = threading.Thread(target=server.close_connections,
                                       args=(support.WAIT_SECONDS,))
            with unittest.mock.patch.object(gw, "LAST_ANSWER_SECONDS", support.WAIT_SECONDS):
                with unittest.mock.patch.object(socket.socket, "shutdown", shutdown):
                    closing.start()
                    told.wait("the connection to be shut")
                gate.open()
                for _ in range(2 if sys.platform.startswith("linux") else 1):
                    self.assertEqual(client.read_response().body, b"in time")
                self.assertTrue(client.at_eof())
                closing.join(support.WAIT_SECONDS)

    def test_nothing_new_is_asked_of_an_upstream_when_time_is_up(self):
        def script(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 529 Busy\r\nContent-Length: 99\r\n\r\n")
            connection.wait_closed("the gateway to end the call")

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream, ("a", "b")),
                                 timeouts={"shutdown_seconds": 0.05}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    upstream.wait_requests(1)
                    gateway.stop()
                    self.assertEqual(client.read_response().status, 503)
            self.assertEqual(len(upstream.requests), 1)

    def test_gateway_can_be_started_once_at_a_time_and_again(self):
        gateway = gw.Gateway(gw.Config.from_dict({"port": 0, "providers": [{"name": "demo"}]}))
        for _ in range(2):
            with gateway:
                with self.assertRaises(RuntimeError):
                    gateway.start()
                self.assertEqual(support.exchange(gateway.port, "GET", "/healthz").status, 200)
        gateway.stop()  # a second one does nothing

    def test_what_does_not_finish_ends_in_an_error_event(self):
        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"".join(
                support.stream_events()[:2])))
            connection.wait_closed("the gateway to end the call")

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream),
                                 timeouts={"shutdown_seconds": 0.1}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    client.read_head()
                    client.read_chunk()
                    gateway.stop()
                    last = gw.SseDecoder().feed(b"".join(iter(client.read_chunk, b"")))
        self.assertEqual([event.type for event in last], ["error"])
        self.assertIn(b"overloaded_error", last[0].data)

    def test_started_and_stopped_twice_in_one_process_leaves_nothing(self):
        threads_before = threading.active_count()
        descriptors_before = support.count_open_descriptors()
        for _ in range(2):
            with running_gateway({"name": "demo"}) as gateway:
                with support.RawClient(gateway.port) as client:  # an idle one must not hold it up
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    self.assertEqual(client.read_response().status, 200)
        self.assertEqual(threading.active_count(), threads_before)
        self.assertEqual(support.count_open_descriptors(), descriptors_before)


class MemoryTest(unittest.TestCase):

    @unittest.skipUnless(os.path.exists("/proc/self/statm"), "needs Linux' /proc")
    def test_slow_reader_does_not_fill_the_memory(self):
        """Back-pressure: 200 MB offered to a client that reads nothing stay upstream."""
        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD)
            try:
                for _ in range(200):
                    connection.send(support.chunk(b"x" * (1 << 20)))
            except (OSError, AssertionError):
                return  # stopped by the full socket, or told to end: what is wanted

        timeouts = {"client_seconds": 0.5, "shutdown_seconds": 0.1}
        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream), timeouts=timeouts) as gateway:
                with support.RawClient(gateway.port) as client:
                    before = self.resident_bytes()
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    support.eventually(lambda: gateway.records(), "the reader to be dropped")
                    self.assertLess(self.resident_bytes() - before, 64 << 20)

    def resident_bytes(self):
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    unittest.main()
