"""Contract section 10, streams: what is held back, what moves on unseen, who is kept waiting."""

import json
import threading
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests import faulty
from tests import support
from tests.faulty import error
from tests.faulty import good_events
from tests.faulty import play
from tests.running import JSON_TYPE

START, CONTENT = good_events("a")[:2]
OVERLOADED = support.error_body("overloaded_error", "busy \u2026")
ERROR_EVENT = support.sse_event(OVERLOADED)
PING = gw.MESSAGES_DOOR.ping
# The head goes soon, and the first ping a little after it.
HOLD_SECONDS = 0.1
PING_SECONDS = 0.25
EARLY = {"stream": {"hold_seconds": HOLD_SECONDS, "ping_seconds": PING_SECONDS}}


def whole(name):
    """The bytes of an account's good stream."""
    return b"".join(good_events(name))


def is_silent(client, seconds=0.1):
    """Whether nothing comes for a while."""
    try:
        return not client._wire.buffer and not client._wire.fill("nothing", seconds)
    except support.TimedOut:
        return True


def rest_of(client):
    """What comes up to the end of the chunked body; None where it does not end properly."""
    pieces = []
    deadline = time.monotonic() + support.WAIT_SECONDS
    while True:
        if time.monotonic() > deadline:
            raise support.TimedOut("nothing but pings: %r" % pieces[-3:])
        piece = client.read_chunk()
        if not piece:
            return b"".join(pieces) if piece == b"" else None
        pieces.append(piece)


class HoldTest(unittest.TestCase):

    def behind_pings(self, body, began):
        """A body without the pings in front, which are no more than there was time for."""
        count = 0
        while body is not None and body.startswith(PING):
            body, count = body[len(PING):], count + 1
        self.assertLessEqual(count, (time.monotonic() - began) / PING_SECONDS)
        return body

    def assert_moved(self, told, name, attempts):
        self.assertEqual((told.status, told.complete, told.body), (200, True, whole(name)))
        self.assertEqual((told.header("x-account-email"), told.header("x-gateway-attempts")),
                         (name, str(attempts)))


class BeforeContentTest(HoldTest):

    def test_head_and_message_start_wait_for_content(self):
        gates = [support.Gate(), support.Gate()]

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START) + support.chunk(PING))
            gates[0].wait("the client to have seen nothing")
            connection.send(support.chunk(CONTENT))
            gates[1].wait("the client to have the first content")
            connection.send(support.chunk(b"".join(good_events("a")[2:])) + support.LAST_CHUNK)
            return True

        with play({"a": [act]}) as played, played.client() as client:
            played.upstream.wait_requests(1)
            self.assertTrue(is_silent(client))
            gates[0].open()
            told = client.read_head()
            self.assertEqual((told.status, told.header("request-id")), (200, support.REQUEST_ID))
            self.assertEqual(client.read_chunk(), START + PING + CONTENT)
            gates[1].open()
            self.assertEqual(rest_of(client), b"".join(good_events("a")[2:]))

    def test_head_and_first_events_are_a_packet_and_last_events_and_end_another(self):
        gate, sends, send = support.Gate(), [], gw.ClientConnection.send

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            gate.wait("the client to have the first content")
            connection.send(support.chunk(b"".join(good_events("a")[2:])) + support.LAST_CHUNK)
            return True

        def recorded(client, data, seconds):
            sends.append(data)
            send(client, data, seconds)

        with mock.patch.object(gw.ClientConnection, "send", recorded):
            with play({"a": [act]}) as played, played.client() as client:
                client.read_head()
                self.assertEqual(client.read_chunk(), START + CONTENT)
                gate.open()
                self.assertEqual(rest_of(client), b"".join(good_events("a")[2:]))
        self.assertEqual(len(sends), 2)
        self.assertTrue(sends[1].endswith(support.LAST_CHUNK))

    def test_moves_on_unseen(self):
        table = {
            "error at once": faulty.stream_of([ERROR_EVENT]),
            "error after the start": faulty.stream_of([START, PING, ERROR_EVENT]),
            "clean end": faulty.stream_of([START]),
            "cut": faulty.cut(faulty.stream_of([START, PING], b"")),
            "cut in an event": faulty.cut(faulty.stream_of([START, CONTENT[:-1]], b"")),
            "empty": faulty.cut(support.SSE_HEAD),
            "empty, clean": support.SSE_HEAD + support.LAST_CHUNK,
            "JSON error in a stream's place": error(529),
        }
        for name, fault in table.items():
            with self.subTest(name), play({"a": [fault], "b": []}) as played:
                self.assert_moved(played.post(stream=True), "b", 2)
                self.assertEqual(played.asked(), ["a", "b"])
                # As a 5xx, the first in a row: it does not rest.
                self.assert_moved(played.post(stream=True), "a", 1)
                self.assertEqual([attempt["case"] for attempt in
                                  played.records(2)[0]["attempts"]], ["failing", "answered"])

    def test_a_429_event_rests_the_account(self):
        limited = support.sse_event(support.error_body("rate_limit_error", "slow"))
        with play({"a": [faulty.stream_of([START, limited])], "b": []}) as played:
            self.assert_moved(played.post(stream=True), "b", 2)
            self.assert_moved(played.post(stream=True), "b", 1)

    def test_error_of_the_only_account_has_the_status_of_its_type(self):
        for kind, status in gw.STATUS_OF_TYPE.items():
            if status in (401, 403):
                continue  # it blames the account: see below
            body = support.error_body(kind, "words \u00e9")
            answer = faulty.stream_of([START, support.sse_event(body)])
            with self.subTest(kind), play({"a": [answer]}, retry={"max_attempts": 1,
                                                                  "max_wait_seconds": 0}) as played:
                told = played.post(stream=True)
                self.assertEqual((told.status, told.json()), (status, body))
                self.assertEqual(told.header("request-id"), support.REQUEST_ID)
                self.assertTrue(told.header("content-type").startswith("application/json"))
                self.assertEqual(told.header("x-account-email"), "a")
                self.assertEqual(told.header("retry-after"), "5" if status == 429 else None)

    def test_refusal_as_an_event_puts_the_account_out(self):
        body = support.error_body("authentication_error", "invalid x-api-key")
        with play({"a": [faulty.stream_of([support.sse_event(body)])]}) as played:
            told = played.post(stream=True)
            self.assertEqual((told.status, told.json()["error"]["type"]), (502, "api_error"))
            self.assertEqual(played.post().status, 502)
            self.assertEqual(played.asked(), ["a"])

    def test_complete_though_empty_is_an_answer(self):
        events = [START, support.sse_event({"type": "message_stop"})]
        with play({"a": [faulty.stream_of(events)], "b": []}) as played:
            told = played.post(stream=True)
            self.assertEqual((told.status, told.complete, told.body), (200, True, b"".join(events)))
            self.assertEqual(played.asked(), ["a"])
            self.assertEqual(played.records(1)[0]["ended"], "complete")

    def test_bounds_let_it_go(self):
        events = [START] + [PING] * (gw.MAX_HELD_EVENTS - 1)
        filler = b": " + b"x" * 8190 + b"\n\n"
        for name, data in (("64 events", b"".join(events)),
                           ("1 MiB", START + filler * (gw.MAX_HELD_BYTES // len(filler) + 1))):
            gate = support.Gate()

            def act(connection, request):
                connection.send(support.SSE_HEAD + support.chunk(data))
                gate.wait("the client to have the head")
                connection.send(support.chunk(whole("a")[len(START):]) + support.LAST_CHUNK)
                return True

            with self.subTest(name), play({"a": [act]}) as played, played.client() as client:
                self.assertEqual(client.read_head().status, 200)
                gate.open()
                self.assertEqual(rest_of(client), data + whole("a")[len(START):])

    def test_bound_counts_what_came_where_a_chat_client_gets_nothing_of_it(self):
        filler = b": " + b"x" * 8190 + b"\n\n"
        for count, asked in ((gw.MAX_HELD_BYTES // len(filler) - 1, ["a", "b"]),
                             (gw.MAX_HELD_BYTES // len(filler) + 1, ["a"])):
            answer = faulty.stream_of([START, filler * count], b"")
            with self.subTest(count), play({"a": [faulty.cut(answer)], "b": []}) as played:
                told = played.post(stream=True, path="/v1/chat/completions")
                self.assertEqual((told.status, played.asked()), (200, asked))

    def test_one_event_less_is_held(self):
        data = START + PING * (gw.MAX_HELD_EVENTS - 2)
        answer = faulty.stream_of([data, ERROR_EVENT])
        with play({"a": [faulty.cut(faulty.stream_of([data], b""))], "b": []}) as played:
            self.assert_moved(played.post(stream=True), "b", 2)
        with play({"a": [answer], "b": []}) as played:
            self.assertIn(played.post(stream=True).header("x-account-email"), ("a", "b"))

    def test_without_a_hold(self):
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START))
            gate.wait("the client to have message_start")
            return False

        with play({"a": [act], "b": []}, stream={"hold_seconds": 0}) as played:
            with played.client() as client:
                self.assertEqual((client.read_head().status, client.read_chunk()), (200, START))
                gate.open()
                self.assertEqual(rest_of(client).count(b"event: error"), 1)
            self.assertEqual(played.asked(), ["a"])

    def test_json_client_gets_no_early_head(self):
        gate = support.Gate()

        def act(connection, request):
            gate.wait("the hold to be over")
            return faulty.good(connection, request)

        with play({"a": [act]}, stream={"hold_seconds": 0.05, "ping_seconds": 1}) as played:
            with support.RawClient(played.gateway.port) as client:
                client.request("POST", "/v1/messages", [JSON_TYPE], faulty.message_body())
                played.upstream.wait_requests(1)
                self.assertTrue(is_silent(client, 0.15))
                gate.open()
                self.assertEqual(client.read_response().json(), support.message("from a"))


class EarlyHeadTest(HoldTest):

    def holding(self, then, data=START):
        """An act that sends the beginning of a stream, and at a gate what `then` says."""
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + (support.chunk(data) if data else b""))
            gate.wait("the client to have a ping")
            return then(connection, request)

        return gate, act

    def read_early_head(self, client):
        told = client.read_head()
        self.assertEqual((told.status, told.header("content-type")), (200, "text/event-stream"))
        self.assertEqual((told.header("cache-control"), told.header("x-accel-buffering")),
                         ("no-cache, no-transform", "no"))
        self.assertRegex(told.header("x-request-id"), "^req_[0-9a-f]{24}$")
        self.assertEqual(told.header("request-id"), told.header("x-request-id"))
        return told

    def test_pings_then_the_second_account_unseen(self):
        for then in (faulty.close, faulty.reset, lambda connection, request: bool(
                connection.send(support.chunk(ERROR_EVENT) + support.LAST_CHUNK) or 1)):
            gate, act = self.holding(then)
            began = time.monotonic()
            with play({"a": [act], "b": []}, **EARLY) as played, played.client() as client:
                self.read_early_head(client)
                self.assertTrue(HOLD_SECONDS <= time.monotonic() - began < 1)
                self.assertEqual(client.read_chunk(), PING)
                self.assertTrue(HOLD_SECONDS + PING_SECONDS <= time.monotonic() - began < 2)
                gate.open()
                self.assertEqual(self.behind_pings(rest_of(client), began), whole("b"))
                (record,) = played.records(1)
                self.assertEqual((record["status"], record["ended"], record["account"],
                                  len(record["attempts"])), (200, "complete", "b", 2))
                # The connection serves another request.
                client.request("GET", "/healthz")
                self.assertEqual(client.read_response().status, 200)

    def test_pings_in_every_silence_while_the_upstream_pings(self):
        """An upstream's own pings are held: the client lives on ours."""
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START))
            for _ in range(100):
                if not gate.is_open:
                    connection.send(support.chunk(b": ping\n\n"))
                    gate._event.wait(0.1)
            connection.send(support.chunk(whole("a")[len(START):]) + support.LAST_CHUNK)
            return True

        began = time.monotonic()
        with play({"a": [act]}, **EARLY) as played, played.client() as client:
            self.read_early_head(client)
            self.assertEqual([client.read_chunk() for _ in range(2)], [PING, PING])
            gate.open()
            body = self.behind_pings(rest_of(client), began)
            self.assertEqual(body.replace(b": ping\n\n", b""), whole("a"))

    def test_waiting_for_a_429_with_pings(self):
        limited = error(429, "rate_limit_error", "slow", retry_after="0.8")
        began = time.monotonic()
        with play({"a": [limited]}, **EARLY) as played, played.client() as client:
            self.read_early_head(client)
            self.assertEqual(client.read_chunk(), PING)
            self.assertEqual(self.behind_pings(rest_of(client), began), whole("a"))
            self.assertEqual(played.asked(), ["a", "a"])

    def test_all_failing_is_one_error_event(self):
        refusal = error(529, "overloaded_error", "really busy \u00e9")
        faults = {
            "upstream's refusal": ([refusal], json.loads(faulty.body_of(refusal).decode())),
            "upstream's event": ([faulty.stream_of([START, ERROR_EVENT])], OVERLOADED),
            "a passed on refusal": ([error(400, "invalid_request_error", "no")], support.error_body(
                "invalid_request_error", "no")),
            "ours": ([faulty.close], None),
            "no stream": ([support.json_response()], None),
        }
        for name, ([fault], expected) in faults.items():
            gate, began = support.Gate(), time.monotonic()

            def act(connection, request):
                gate.wait("the client to have the head")
                if callable(fault):
                    return fault(connection, request)
                connection.send(fault)
                return True

            with self.subTest(name), play({"a": [act]}, retry={"max_attempts": 1},
                                          **EARLY) as played, played.client() as client:
                told = self.read_early_head(client)
                gate.open()
                (event,) = gw.SseDecoder().feed(self.behind_pings(rest_of(client), began))
                value = json.loads(event.data.decode())
                self.assertEqual((event.type, value["type"]), ("error", "error"))
                if expected is not None:
                    self.assertEqual(value, expected)
                else:
                    self.assertEqual(value["error"]["type"], "api_error")
                    self.assertEqual(value["request_id"], told.header("request-id"))
                client.request("GET", "/healthz")
                self.assertEqual(client.read_response().json(), {"status": "ok"})
                record = played.records(1)[0]
                self.assertEqual((record["status"], record["ended"]), (200, "upstream_broke"))
                self.assertTrue(record["error"])
                self.assertEqual(played.settled()["leases"], 0)

    def test_break_after_content_behind_pings(self):
        def then(connection, request):
            connection.send(support.chunk(CONTENT))
            return False

        gate, act = self.holding(then)
        began = time.monotonic()
        with play({"a": [act], "b": []}, **EARLY) as played, played.client() as client:
            self.read_early_head(client)
            self.assertEqual(client.read_chunk(), PING)
            gate.open()
            body = self.behind_pings(rest_of(client), began)
            self.assertTrue(body.startswith(START + CONTENT), body)
            self.assertEqual([event.type for event in gw.SseDecoder().feed(body)][2:], ["error"])
            self.assertEqual(played.asked(), ["a"])

    def test_http_1_0(self):
        for fails in (False, True):
            gate, act = self.holding(faulty.close)
            began = time.monotonic()
            answers = {"a": [act]} if fails else {"a": [act], "b": []}
            with self.subTest(fails=fails), play(answers, retry={"max_attempts": 1 if fails else 2},
                                                 **EARLY) as played:
                with support.RawClient(played.gateway.port) as client:
                    body = faulty.message_body(stream=True)
                    client.send(b"POST /v1/messages HTTP/1.0\r\nHost: localhost\r\n"
                                b"Connection: keep-alive\r\n"
                                b"Content-Length: %d\r\n\r\n" % len(body) + body)
                    told = self.read_early_head(client)
                    self.assertEqual((told.header("transfer-encoding"), told.header("connection"),
                                      told.header("content-length")), (None, "close", None))
                    gate.open()
                    client.read_body(told)
                    self.assertTrue(told.complete)
                    body = self.behind_pings(told.body, began)
                    if fails:
                        self.assertEqual([event.type for event in gw.SseDecoder().feed(body)],
                                         ["error"])
                    else:
                        self.assertEqual(body, whole("b"))


class LeavingTest(HoldTest):
    """The client leaves while it is kept waiting."""

    def assert_left(self, played, began, asked):
        """Nothing is left of the request within a second, and nobody else was asked for it."""
        support.eventually(lambda: played.gateway.records(), "the record")
        (record,) = played.gateway.records()
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(record["ended"], "client_left")
        self.assertEqual(played.settled()["leases"], 0)
        self.assertEqual(played.asked(), asked)

    def leave(self, client, how):
        began = time.monotonic()
        getattr(client, how)()
        return began

    def test_during_the_hold_and_during_pings(self):
        for pings in (0, 1):
            for how in ("close", "reset"):
                closed = support.Gate()

                def act(connection, request):
                    connection.send(support.SSE_HEAD + support.chunk(START))
                    connection.wait_closed("the gateway to close the call")
                    closed.open()
                    return False

                with self.subTest(how, pings=pings), play(
                        {"a": [act], "b": []}, **(EARLY if pings else {})) as played:
                    client = played.client()
                    played.upstream.wait_requests(1)
                    if pings:
                        self.assertEqual(client.read_head().status, 200)
                        self.assertEqual(client.read_chunk(), PING)
                    began = self.leave(client, how)
                    closed.wait("the upstream call to be closed")
                    self.assert_left(played, began, ["a"])
                    # It was the client's doing: the account is as it was.
                    self.assert_moved(played.post(stream=True), "a", 1)

    def test_during_a_pause_between_attempts(self):
        limited = error(429, "rate_limit_error", "slow", retry_after="20")
        for settings in ({}, EARLY):
            for how in ("close", "reset"):
                with self.subTest(how, early=bool(settings)), play(
                        {"a": [limited]}, **settings) as played:
                    client = played.client()
                    played.upstream.wait_requests(1)
                    support.eventually(lambda: played.gateway.status()["leases"] == 0, "the pause")
                    if settings:
                        self.assertEqual(client.read_head().status, 200)
                    self.assert_left(played, self.leave(client, how), ["a"])


class StoppingTest(HoldTest):
    """The gateway stops while a client is kept waiting."""

    def stopped(self, played, client):
        """The seconds that stopping took."""
        began = time.monotonic()
        thread = threading.Thread(target=played.gateway.stop)
        thread.start()
        return began, thread

    def check(self, answers, ready, **settings):
        """What the client gets; `ready` waits until it is kept waiting."""
        asked = time.monotonic()
        with play(answers, **settings) as played, played.client() as client:
            played.upstream.wait_requests(1)
            early = settings.get("stream")
            if early:
                self.assertEqual(client.read_head().status, 200)
            ready(played)
            began, thread = self.stopped(played, client)
            if early:
                (event,) = gw.SseDecoder().feed(self.behind_pings(rest_of(client), asked))
                self.assertEqual(event.type, "error")
                value = json.loads(event.data.decode())
            else:
                told = client.read_response()
                self.assertEqual(told.status, 503)
                value = told.json()
            thread.join(support.JOIN_SECONDS)
            self.assertLess(time.monotonic() - began, 3)
            self.assertEqual((value["type"], value["error"]["type"]), ("error", "overloaded_error"))
            self.assertIn("shutting down", value["error"]["message"])

    def test_during_a_pause(self):
        limited = error(429, "rate_limit_error", "slow", retry_after="20")
        for settings in ({}, EARLY):
            with self.subTest(early=bool(settings)):
                self.check({"a": [limited]}, lambda played: support.eventually(
                    lambda: played.gateway.status()["leases"] == 0, "the pause"), **settings)

    def test_during_a_hold(self):
        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START))
            return faulty.silent(connection, request)

        for settings in ({}, EARLY):
            with self.subTest(early=bool(settings)):
                self.check({"a": [act], "b": []}, lambda played: None, **settings)

    def test_before_the_upstreams_head(self):
        with mock.patch.object(gw, "DRAIN_SECONDS", 3.0):
            self.check({"a": [faulty.silent], "b": []}, lambda played: None)


if __name__ == "__main__":
    unittest.main()
