"""Slow clients by the hundred, readers that stop, SIGTERM under load, and a soak.

The soak lasts CLAUDE_GATEWAY_SOAK_SECONDS, 1.5 unless that is set.
"""

import collections
import contextlib
import os
import random
import selectors
import socket
import statistics
import threading
import time
import unittest
import unittest.mock

import claude_gateway as gw
from tests import faulty
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.running import settings_for
from tests.test_17_corpus import corpus

SOAK_SECONDS = float(os.environ.get("CLAUDE_GATEWAY_SOAK_SECONDS", "1.5"))
MIB = 1 << 20
SLOW_CLIENTS = 500
STREAMS = 50
HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n"


class SlowClientsTest(unittest.TestCase):

    def test_500_of_them_neither_stop_others_nor_outlive_their_timeout(self):
        """A byte a second each, half of them within the head, half within the body."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(unittest.mock.patch.object(gw, "DRAIN_SECONDS", 0.5))
            upstream = stack.enter_context(support.ScriptedUpstream())
            gateway = stack.enter_context(running_gateway(
                provider(upstream), timeouts={"client_seconds": 2, "shutdown_seconds": 0.2}))
            selector = stack.enter_context(contextlib.closing(selectors.DefaultSelector()))
            began = time.monotonic()
            for number in range(SLOW_CLIENTS):
                sock = stack.enter_context(socket.create_connection(
                    ("127.0.0.1", gateway.port), support.WAIT_SECONDS))
                sock.setblocking(False)
                sock.send(HEAD if number % 2 else HEAD[:20])
                selector.register(sock, selectors.EVENT_READ, bytearray())
            support.eventually(lambda: gateway.status()["connections"] == SLOW_CLIENTS,
                               "all to be accepted")
            waits, answers = self.drip(gateway, selector)
            support.eventually(lambda: gateway.status()["connections"] == 0,
                               "the connections of those who go on sending to end")
            lasted = time.monotonic() - began
            self.assertEqual([request.body for request in upstream.requests],
                             [MESSAGE] * len(waits))
        print("\n%d clients of a byte a second: gone after %.1f s; %d requests of others "
              "meanwhile, the median in %.0f ms, the slowest in %.0f ms" % (
                  SLOW_CLIENTS, lasted, len(waits), 1000 * statistics.median(waits),
                  1000 * max(waits)))
        self.assertEqual(collections.Counter(answers), {b"HTTP/1.1 408": SLOW_CLIENTS})
        self.assertLess(lasted, 8)
        self.assertLess(max(waits), 2)

    def drip(self, gateway, selector):
        """A byte a second to each until all have ended; others' requests all the while."""
        waits, answers, next_byte = [], [], time.monotonic() + 1
        deadline = time.monotonic() + support.WAIT_SECONDS
        while selector.get_map():
            if time.monotonic() > deadline:
                raise AssertionError("%d slow clients are left" % len(selector.get_map()))
            for key, _ in selector.select(0.01):
                with contextlib.suppress(ConnectionError):
                    data = key.fileobj.recv(65536)
                    key.data.extend(data)
                    if data:
                        continue
                answers.append(bytes(key.data[:12]))
                selector.unregister(key.fileobj)
            if time.monotonic() >= next_byte:
                next_byte += 1
                for key in list(selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"x")
            if len(waits) < 100:
                began = time.monotonic()
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                          MESSAGE)
                self.assertEqual(answer.status, 200)
                waits.append(time.monotonic() - began)
        return waits, answers

    def test_a_reader_that_stops_does_not_hold_its_upstream_call(self):
        ended = []

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"".join(
                support.stream_events()[:2])))
            event = support.chunk(support.sse_event({
                "type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": "x" * 65536}}))
            try:
                while True:
                    connection.send(event)
            except (OSError, AssertionError) as error:
                ended.append(error)

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream), timeouts={
                    "client_seconds": 0.5, "shutdown_seconds": 0.2}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    support.eventually(lambda: ended, "the upstream call to be closed")
                    self.assertIsInstance(ended[0], ConnectionError)
                    support.eventually(lambda: gateway.status()["leases"] == 0, "the lease")
                    self.assertEqual(gateway.records()[0]["ended"], "client_left")


class TerminatedTest(unittest.TestCase):

    @unittest.skipIf(os.name == "nt", "Windows has no SIGTERM that a process could handle")
    def test_every_stream_completes_or_ends_in_an_error_event(self):
        """Half of the streams could end in the time that they get, half could not."""
        gate, events = support.Gate(), support.stream_events("some words of an answer")

        def script(connection):
            with contextlib.suppress(ConnectionError):
                connection.read_request()
                connection.send(support.SSE_HEAD + support.chunk(b"".join(events[:4])))
                if connection.number % 2:
                    connection.wait_closed("the gateway to give up")
                    return
                gate.wait("SIGTERM")
                connection.send(support.chunk(b"".join(events[4:])) + support.LAST_CHUNK)
                connection.wait_closed("the gateway to end")

        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(support.ScriptedUpstream(*[script] * STREAMS))
            gateway = stack.enter_context(support.GatewayProcess(settings_for(
                provider(upstream), timeouts={"shutdown_seconds": 1.5})))
            clients = []
            for _ in range(STREAMS):
                client = stack.enter_context(support.RawClient(gateway.port))
                client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                self.assertEqual(client.read_head().status, 200)
                clients.append(client)
            began = time.monotonic()
            gateway.process.terminate()
            gate.open()
            ends = collections.Counter()
            for client in clients:
                last = gw.SseDecoder().feed(b"".join(iter(client.read_chunk, b"")))[-1]
                ends[last.type] += 1
                if last.type == "error":
                    self.assertIn(b"overloaded_error", last.data)
            gateway.process.wait(support.WAIT_SECONDS)
            lasted = time.monotonic() - began
            self.assertEqual((gateway.returncode, gateway.stderr_text().count("Traceback")),
                             (0, 0))
        print("\nSIGTERM with %d streams under way: ended after %.1f s: %s"
              % (STREAMS, lasted, dict(ends)))
        self.assertEqual(ends, {"message_stop": STREAMS // 2, "error": STREAMS // 2})
        self.assertLess(lasted, 1.5 + gw.DRAIN_SECONDS)


class MixedUpstream(faulty.FaultyUpstream):
    """Good answers for the most part, else one of the faults."""

    FAULTS = [
        faulty.error(529, "overloaded_error"), faulty.error(500), faulty.error(404),
        faulty.error(429, "rate_limit_error", retry_after="0"), faulty.error(400),
        faulty.close, faulty.reset, faulty.cut(b"HTTP/1.1 200 OK\r\nContent-Le"),
        faulty.cut(support.stream_response(support.stream_events())[:-150]),
        support.json_response(b"<html>", headers=[("Content-Type", "text/html")]),
        support.json_response(b"x" * 300000),
    ]

    def __init__(self, seed):
        super().__init__({})
        self._chance = random.Random(seed)

    def next_act(self, request):
        with self._answers_lock:
            if len(self.requests) > 1000:
                del self.requests[:-10], self.errors[:]
            return self._chance.choice(self.FAULTS) if self._chance.random() < 0.2 else faulty.good


@unittest.skipUnless(os.path.exists("/proc/self/statm"), "needs Linux' /proc")
class SoakTest(unittest.TestCase):

    WORKERS = 4

    def test_nothing_grows_under_good_and_bad_traffic(self):
        self.invalid = [data for _, status, data in corpus("invalid") if status != 408]
        self.statuses, self.deaths = collections.Counter(), []
        with MixedUpstream(1) as upstream:
            names = ["a%d" % number for number in range(8)]
            with support.GatewayProcess(settings_for(
                    provider(upstream, names), retry={"max_wait_seconds": 1},
                    log={"level": "debug"}, timeouts={"keepalive_seconds": 0.5})) as gateway:
                self.traffic(gateway, min(1.5, SOAK_SECONDS))  # warm-up: pools, caches, the ring of records
                before = self.measured(gateway)
                resident = self.traffic(gateway, SOAK_SECONDS)
                after = self.measured(gateway)
                text = gateway.stderr_text()
        half = len(resident) // 2
        first, second = statistics.median(resident[:half]), statistics.median(resident[half:])
        print("\nsoak of %.0f s: %d answers %s; resident %.1f MiB in the first half, %.1f in the "
              "second, %.1f at most; threads %d -> %d, descriptors %d -> %d" % (
                  SOAK_SECONDS, sum(self.statuses.values()), dict(sorted(self.statuses.items())),
                  first / MIB, second / MIB, max(resident) / MIB, before[0], after[0],
                  before[1], after[1]), flush=True)
        faults = [line for line in text.split("\n") if "internal error" in line]
        self.assertEqual((self.deaths, faults), ([], []))
        self.assertEqual((text.count("Traceback"), text.count("internal error")), (0, 0))
        self.assertLess(second - first, 8 * MIB + first * SOAK_SECONDS / 6000)
        self.assertLessEqual(after[0], before[0] + 2)
        self.assertLessEqual(after[1], before[1] + 8)

    def measured(self, gateway):
        """(threads, descriptors) once the idle connections have been closed."""
        def threads():
            return len(os.listdir("/proc/%d/task" % gateway.process.pid))

        support.eventually(lambda: threads() <= 4, "the connections' threads to end")
        return threads(), support.count_open_descriptors(gateway.process.pid)

    def traffic(self, gateway, seconds):
        """Mixed requests for so long; gives the resident bytes, every tenth of a second."""
        until = time.monotonic() + seconds
        workers = [threading.Thread(target=self.work, args=(gateway.port, number, until))
                   for number in range(self.WORKERS)]
        for worker in workers:
            worker.start()
        resident, never = [], threading.Event()
        while any(worker.is_alive() for worker in workers):
            never.wait(0.1)
            with open("/proc/%d/statm" % gateway.process.pid, encoding="ascii") as file:
                resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            if time.monotonic() > until + support.JOIN_SECONDS:
                raise AssertionError("a client hangs")
        return resident

    def work(self, port, number, until):
        chance = random.Random("%d:%s" % (number, until))
        try:
            while time.monotonic() < until:
                chance.choice([self.ask, self.ask, self.ask, self.leave, self.nonsense,
                               self.keep_alive])(port, chance)
        except AssertionError as error:
            self.deaths.append(repr(error))

    def note(self, answer):
        self.statuses[answer.status] += 1
        if answer.status == 500 and b"internal" in answer.body:
            raise AssertionError(repr(answer))

    def ask(self, port, chance):
        path = chance.choice(["/v1/messages", "/v1/messages", "/v1/messages/count_tokens",
                              "/v1/chat/completions", "/v1/files", "/v1/models"])
        body = faulty.message_body("word " * chance.choice([1, 10, 10000]),
                                   chance.random() < 0.5)
        self.note(support.exchange(port, "POST", path, [JSON_TYPE], body))

    def leave(self, port, chance):
        """Leaves early: with a body half sent, before the head, or within the stream."""
        with support.RawClient(port) as client:
            if chance.random() < 0.3:
                client.send(HEAD + b"x" * 100)
                return
            client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
            if chance.random() < 0.5:
                client.read_head()
            if chance.random() < 0.5:
                client.reset()

    def nonsense(self, port, chance):
        with support.RawClient(port) as client:
            with contextlib.suppress(ConnectionError):
                client.send(chance.choice(self.invalid))
                self.note(client.read_response())

    def keep_alive(self, port, chance):
        with support.RawClient(port) as client:
            for _ in range(chance.randint(2, 10)):
                client.request("GET", chance.choice(["/healthz", "/v1/providers", "/nothing"]))
                answer = client.read_response()
                self.note(answer)
                if answer.header("connection") == "close":
                    return


if __name__ == "__main__":
    unittest.main()
