"""Section 17: what requests hold in memory is bounded, over all connections."""

import contextlib
import gc
import os
import selectors
import threading
import unittest
import unittest.mock

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.running import settings_for

try:
    import tracemalloc
except ImportError:
    tracemalloc = None  # PyPy has none

MIB = 1 << 20
PARALLEL = 64
LARGE_BYTES = 32 * MIB
# Eight bodies of 32 MiB in flight and as much again for parsing and joining them.
MOST_RESIDENT_BYTES = 1600 * MIB


def memory_of(pid, field):
    """VmRSS or VmHWM (the highest so far) of a process, in bytes."""
    with open("/proc/%d/status" % pid, encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no %s of process %d" % (field, pid))


def large_body(size, stream=False):
    """A message of exactly `size` bytes, as with a picture in it."""
    begin = b'{"model":"claude-opus-5-5","max_tokens":64,%b"messages":[{"role":"user","content":"' % (
        b'"stream":true,' if stream else b"")
    return begin + b"x" * (size - len(begin) - 4) + b'"}]}'


def post_in_pieces(client, body):
    """The answer to a POST of a client that stops sending once there is one."""
    client.request("POST", "/v1/messages", [JSON_TYPE, ("Content-Length", str(len(body)))])
    with selectors.DefaultSelector() as selector:
        selector.register(client.socket, selectors.EVENT_READ)
        for at in range(0, len(body), MIB):
            if selector.select(0):
                break
            client.send(body[at:at + MIB])
    return client.read_response()


class BudgetTest(unittest.TestCase):

    def setUp(self):
        self.budget = gw.BodyBudget()
        self.budget.limit_bytes = 10 * MIB

    def share(self, *counts):
        share = gw.BodyShare(self.budget)
        for count in counts:
            share.take(count)
        return share

    def test_beyond_it_a_503_that_says_when_to_come_back(self):
        self.share(6 * MIB)
        with self.assertRaises(gw.Unavailable) as caught:
            self.share(5 * MIB)
        self.assertEqual((caught.exception.status, caught.exception.close,
                          caught.exception.headers),
                         (503, True, (("retry-after", str(gw.BUSY_RETRY_SECONDS)),)))
        self.assertEqual(self.budget.held_bytes, 6 * MIB)

    def test_given_back_once(self):
        share = self.share(4 * MIB, 3 * MIB)
        share.give_back()
        share.give_back()
        self.assertEqual(self.budget.held_bytes, 0)
        self.share(10 * MIB)

    def test_small_ones_go_on_beside_large_ones(self):
        self.share(10 * MIB)
        for _ in range(gw.SPARE_BODY_BYTES // MIB):
            self.share(MIB)
        self.assertRaises(gw.Unavailable, self.share, MIB)

    def test_what_grows_large_is_no_small_one(self):
        self.share(10 * MIB)
        self.share(MIB)
        self.assertRaises(gw.Unavailable, self.share, MIB, 1)

    def test_one_that_is_larger_than_all_room_is_served_alone(self):
        share = self.share(6 * MIB, 50 * MIB)
        self.assertEqual(self.budget.held_bytes, 10 * MIB)
        self.assertRaises(gw.Unavailable, self.share, 2 * MIB)
        share.give_back()
        self.assertEqual(self.budget.held_bytes, 0)

    def test_a_told_length_takes_room_as_it_comes(self):
        share = self.share()
        share.begin(5 * MIB)
        self.assertEqual(self.budget.held_bytes, gw.FIRST_BODY_BYTES)
        share.arrive(gw.FIRST_BODY_BYTES)
        self.assertEqual(self.budget.held_bytes, gw.FIRST_BODY_BYTES)
        share.arrive(1)
        self.assertEqual(self.budget.held_bytes, 2 * gw.FIRST_BODY_BYTES)
        share.arrive(5 * MIB - gw.FIRST_BODY_BYTES - 1)
        self.assertEqual(self.budget.held_bytes, 5 * MIB)
        share.give_back()
        self.assertEqual(self.budget.held_bytes, 0)

    def test_a_told_length_begins_only_where_there_is_room_for_it(self):
        self.share(8 * MIB)
        self.assertRaises(gw.Unavailable, self.share().begin, 3 * MIB)
        self.share().begin(2 * MIB)

    def test_who_is_refused_makes_room_at_once(self):
        first, second = self.share(), self.share()
        first.begin(10 * MIB)
        second.begin(9 * MIB)
        first.arrive(4 * MIB)
        self.assertRaises(gw.Unavailable, second.arrive, 9 * MIB)
        first.arrive(6 * MIB)
        self.assertEqual(self.budget.held_bytes, 10 * MIB)

    def test_room_for_the_largest_body_that_is_allowed(self):
        with running_gateway({"name": "demo"}, limits={"body_bytes": 10 ** 9}) as gateway:
            self.assertEqual(gateway._servers[-1][0].bodies.limit_bytes, 10 ** 9)


class ParsedBytesTest(unittest.TestCase):

    @unittest.skipIf(gw.sys.implementation.name != "cpython", "measures CPython's objects")
    def test_no_bomb_is_underestimated_much(self):
        pieces = [b"[]", b"{}", b'{"a":1}', b"12345", b'"ab"', b"[1]", b'{ "a": [ ] }']
        for piece in pieces:
            with self.subTest(piece):
                data = b"[" + b",".join([piece] * 30000) + b"]"
                tracemalloc.start()
                try:
                    before = tracemalloc.get_traced_memory()[0]
                    kept = gw.json.loads(data)
                    used = tracemalloc.get_traced_memory()[0] - before
                finally:
                    tracemalloc.stop()
                self.assertEqual(len(kept), 30000)
                self.assertLess(used, 3 * (len(data) + gw.parsed_bytes(data)))

    def test_a_picture_and_code_cost_little(self):
        self.assertLess(gw.parsed_bytes(large_body(MIB)), 1000)
        code = "int main(void) {\n    for (;;) {\n        puts(\"x\");\n    }\n}\n" * 1000
        body = gw.json.dumps({"messages": [{"role": "user", "content": code}]}).encode()
        self.assertLess(gw.parsed_bytes(body), len(body))


class HeldTest(unittest.TestCase):

    def held_when(self, path, body, answers, seen):
        """(held_bytes, bytes traced) once `seen(upstream, client)`, for one open stream.

        Unless it `answers`, the upstream does so only after the look.
        """
        gate = support.Gate()

        def script(connection):
            connection.skip_body(connection.read_head())
            if not answers:
                gate.wait("the test to have looked")
            connection.send(support.SSE_HEAD + support.chunk(b"".join(
                support.stream_events()[:4])))
            gate.wait("the test to have looked")

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                bodies = gateway._servers[-1][0].bodies
                with support.RawClient(gateway.port) as client:
                    client.request("POST", path, [JSON_TYPE], body)
                    seen(upstream, client)
                    held = bodies.held_bytes
                    gc.collect()
                    tracing = tracemalloc and tracemalloc.is_tracing()
                    traced = tracemalloc.get_traced_memory()[0] if tracing else 0
                    gate.open()
                    if not answers:
                        client.read_head()
                        self.assertEqual(bodies.held_bytes, 0)
                support.eventually(lambda: bodies.held_bytes == 0, "the rest to be given back")
        return held, traced

    def test_reserved_while_an_answer_is_waited_for(self):
        body = large_body(2 * MIB, stream=True)
        for path in ("/v1/messages", "/v1/chat/completions"):
            with self.subTest(path):
                held, _ = self.held_when(path, body, False,
                                         lambda upstream, client: upstream.wait_requests(1))
                self.assertEqual(held, len(body))

    def test_a_bomb_reserves_what_it_takes(self):
        body = large_body(2 * MIB)[:-4] + b'"}],"x":[' + b"[]," * (MIB // 4) + b"[]]}"
        held, _ = self.held_when("/v1/messages", body, False,
                                 lambda upstream, client: upstream.wait_requests(1))
        self.assertEqual(held, gw.parsed_bytes(body))
        self.assertGreater(held, 2 * len(body))

    @unittest.skipUnless(tracemalloc, "needs tracemalloc")
    def test_nothing_of_a_large_request_stays_while_its_stream_lasts(self):
        body = large_body(4 * MIB, stream=True)
        for path in ("/v1/messages", "/v1/chat/completions"):
            with self.subTest(path):
                tracemalloc.start()
                try:
                    before = tracemalloc.get_traced_memory()[0]
                    held, traced = self.held_when(
                        path, body, True, lambda upstream, client: client.read_head())
                finally:
                    tracemalloc.stop()
                self.assertEqual(held, 0)
                self.assertLess(traced - before, 3 * MIB)

    def test_lengths_that_are_only_told_stop_nobody(self):
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(support.ScriptedUpstream())
            gateway = stack.enter_context(running_gateway(provider(upstream)))
            bodies = gateway._servers[-1][0].bodies
            lengths = [LARGE_BYTES] * 8 + [MIB] * 66
            for length in lengths:
                client = stack.enter_context(support.RawClient(gateway.port))
                client.request("POST", "/v1/messages",
                               [JSON_TYPE, ("Content-Length", str(length))])
                client.send(b"{")
            support.eventually(lambda: bodies.held_bytes == gw.FIRST_BODY_BYTES * len(lengths),
                               "all of them to have begun")
            for body in (MESSAGE, large_body(2 * MIB)):
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], body)
                self.assertEqual(answer.status, 200)

    def test_chunked_ones_reserve_as_they_come(self):
        piece = support.chunk(b"x" * 65536)
        with running_gateway({"name": "demo"}) as gateway:
            bodies = gateway._servers[-1][0].bodies
            with support.RawClient(gateway.port) as client:
                client.request("POST", "/v1/messages",
                               [JSON_TYPE, ("Transfer-Encoding", "chunked")])
                client.send(piece * 3)
                support.eventually(lambda: bodies.held_bytes == 3 * 65536, "the reservation")
                other = gw.BodyShare(bodies)
                other.take(bodies.limit_bytes - 3 * 65536)
                with unittest.mock.patch.object(gw, "SPARE_BODY_BYTES", 0):
                    client.send(piece)
                    answer = client.read_response()
        self.assertEqual((answer.status, answer.json()["error"]["type"],
                          answer.header("connection"), answer.header("retry-after")),
                         (503, "overloaded_error", "close", str(gw.BUSY_RETRY_SECONDS)))
        other.give_back()
        self.assertEqual(bodies.held_bytes, 0)


@unittest.skipUnless(os.path.exists("/proc/self/status"), "needs Linux' /proc")
class ProcessTest(unittest.TestCase):

    def test_64_bodies_of_32_mb_do_not_take_the_process_down(self):
        """What has no room is told so at once; ordinary requests go on; the rest completes."""
        gate = support.Gate()
        body = large_body(LARGE_BYTES)

        def script(connection):
            request = connection.read_head()
            while request is not None:
                large = int(request.header("content-length")) > MIB
                connection.skip_body(request)
                if large:
                    gate.wait("the others to be refused")
                connection.send(support.json_response())
                request = connection.read_head(seconds=None)

        with support.ScriptedUpstream(*[script] * 2 * PARALLEL) as upstream:
            with support.GatewayProcess(settings_for(provider(upstream))) as gateway:
                before = memory_of(gateway.process.pid, "VmRSS")
                answers, lock = [], threading.Lock()

                def ask():
                    with support.RawClient(gateway.port) as client:
                        answer = post_in_pieces(client, body)
                    with lock:
                        answers.append((answer.status, answer.header("retry-after")))

                threads = [threading.Thread(target=ask) for _ in range(PARALLEL)]
                for thread in threads:
                    thread.start()
                room = gw.MAX_HELD_BODY_BYTES // LARGE_BYTES
                support.eventually(lambda: len(answers) >= PARALLEL - room, "the refusals")
                ordinary = [support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                             MESSAGE).status for _ in range(20)]
                refused = list(answers)
                gate.open()
                for thread in threads:
                    thread.join(support.WAIT_SECONDS)
                most = memory_of(gateway.process.pid, "VmHWM")
                after = memory_of(gateway.process.pid, "VmRSS")
        print("\n64 x 32 MiB: %d served, %d refused; resident %d MiB before, %d at most, %d after"
              % (answers.count((200, None)), len(refused), before // MIB, most // MIB,
                 after // MIB))
        self.assertEqual(ordinary, [200] * 20)
        self.assertEqual(set(refused), {(503, str(gw.BUSY_RETRY_SECONDS))})
        self.assertEqual({status for status, _ in answers}, {200, 503})
        self.assertLess(most, MOST_RESIDENT_BYTES)


if __name__ == "__main__":
    unittest.main()
