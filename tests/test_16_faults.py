"""Streams cut after every byte with a second account, and fifty clients against mixed faults."""

import json
import os
import random
import threading
import unittest
from unittest import mock

import claude_gateway as gw
from tests import faulty
from tests import support
from tests.faulty import play

IS_LONG = os.environ.get("CLAUDE_GATEWAY_LONG") == "1"


def types_of(body):
    return [event.type for event in gw.SseDecoder().feed(body)]


class CutTest(unittest.TestCase):
    """Account a breaks after every byte, in three ways by turns; b is whole."""

    def test_complete_answer_of_the_second_or_an_honest_end(self):
        events = support.stream_events("Hi")
        body, content = b"".join(events), len(events[0] + events[1])
        stop = body.index(b"event: message_stop")
        self.moved = self.broke = self.complete = 0
        current = {}

        def next_act(request):
            if faulty.account_of(request) != "a":
                return faulty.good
            self.asked += 1
            return act

        def act(connection, request):
            at, how = current["at"], current["how"]
            connection.send(support.SSE_HEAD + (support.chunk(body[:at]) if at else b""))
            if how == "clean":
                connection.send(support.LAST_CHUNK)
                return True
            if how == "reset":
                connection.reset()
            return False

        for how_first in range(3):
            with play({"a": [], "b": []}, retry={"max_attempts": 2}) as played:
                played.upstream.next_act, self.asked = next_act, 0
                for at in range(how_first, len(body) + 1, 3):
                    current.update(at=at, how=("close", "clean", "reset")[(at // 3 + how_first) % 3])
                    # Each time as if nothing had happened before.
                    for state in played.gateway._engine.accounts._states.values():
                        state.__init__()
                    told = played.post(stream=True)
                    with self.subTest(dict(current)):
                        self.check(told, played, current, body, content, stop)
        if __name__ == "__main__":
            print("%d cuts: %d moved on unseen, %d ended in an error event, %d complete"
                  % (self.moved + self.broke + self.complete, self.moved, self.broke, self.complete))

    def check(self, told, played, cut, body, content, stop):
        at, how = cut["at"], cut["how"]
        types = types_of(told.body)
        self.assertEqual((told.status, told.complete), (200, True))
        self.assertEqual(types.count("message_start"), 1)
        played.settled()
        support.eventually(lambda: played.gateway._engine.records.numbered(1)[0] == self.asked,
                           "the one record")
        record = played.gateway.records(1)[0]
        if told.header("x-account-email") == "b":
            self.moved += 1
            self.assertEqual(told.body, b"".join(faulty.good_events("b")))
            self.assertEqual(record["ended"], "complete")
            # A reset takes along what was not read yet.
            self.assertTrue(at < content or how == "reset")
        elif types[-1] == "message_stop":
            self.complete += 1
            self.assertEqual((told.body[:at], record["ended"]), (body[:at], "complete"))
            self.assertGreater(at, stop)
        else:
            self.broke += 1
            same = next((index for index, pair in enumerate(zip(told.body, body))
                         if pair[0] != pair[1]), min(len(told.body), len(body)))
            # The mask of the key may hold back a last letter that the key begins with.
            self.assertGreaterEqual(same, content if how == "reset" else at - 1)
            self.assertEqual((types.count("error"), types[-1]), (1, "error"))
            self.assertNotIn("message_stop", types)
            self.assertEqual(record["ended"], "upstream_broke")
            self.assertGreaterEqual(at, content)


class StormTest(unittest.TestCase):
    """A fifth of all calls fail, in mixed ways, under fifty clients."""

    CLIENTS = 50
    TURNS = 200 if IS_LONG else 10
    # Accounts that were at their limit would be asked four times a second, by fifty clients.
    RAMP_STEP_SECONDS = gw.RAMP_STEP_SECONDS if IS_LONG else 0.01
    MAX_ATTEMPTS = 3
    KINDS = ("429", "529", "500", "close", "reset", "html", "event", "cut", "slow")

    def setUp(self):
        self.lock = threading.Lock()
        self.chance = random.Random(20261121)
        self.calls = {}
        self.faults = dict.fromkeys(self.KINDS, 0)
        self.outcomes = {"complete": 0, "error status": 0, "error event": 0}
        self.problems = []

    def next_act(self, request):
        mark = request.json()["messages"][0]["content"]
        with self.lock:
            number = self.calls[mark] = self.calls.get(mark, 0) + 1
            kind = self.chance.choice(self.KINDS) if self.chance.random() < 0.2 else ""
            if kind:
                self.faults[kind] += 1
        text = "%s call %d" % (mark, number)
        stream = faulty.is_stream(request)
        whole = (support.stream_response(support.stream_events(text)) if stream
                 else support.json_response(support.message(text)))
        if kind == "slow":
            return lambda connection, request: (
                threading.Event().wait(0.1), connection.send(whole)) and True
        if kind in ("close", "reset"):
            return getattr(faulty, kind)
        if kind == "event" and stream:
            start = support.stream_events(text)[0]
            return faulty.stream_of([start, support.sse_event(
                support.error_body("overloaded_error", "busy"))])
        if kind == "cut":
            return faulty.cut(whole[:-40] if not stream else faulty.stream_of(
                support.stream_events(text)[:4], b""))
        return {"429": faulty.error(429, "rate_limit_error", retry_after="0.2"),
                "529": faulty.error(529, "overloaded_error"), "500": faulty.error(500),
                "event": faulty.error(503),
                "html": support.json_response(b"<html>")}.get(kind, whole)

    def test_every_request_ends_honestly_and_nothing_is_left(self):
        names = ["a%d" % index for index in range(10)]
        retry = {"max_attempts": self.MAX_ATTEMPTS, "max_wait_seconds": 2}
        with play(dict.fromkeys(names, ()), retry=retry,
                  routing={"strategy": "least_loaded", "sticky": False}) as played, \
                mock.patch.object(gw, "RAMP_STEP_SECONDS", self.RAMP_STEP_SECONDS):
            played.upstream.next_act = self.next_act
            support.exchange(played.gateway.port, "GET", "/healthz")
            support.eventually(lambda: not played.gateway.status()["connections"], "a quiet start")
            before = threading.active_count()
            descriptors = support.count_open_descriptors()
            threads = [threading.Thread(target=self.client, args=(played, number))
                       for number in range(self.CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(self.TURNS + support.JOIN_SECONDS)
            requests = sum(self.outcomes.values())
            self.assertEqual((self.problems, requests), ([], self.CLIENTS * self.TURNS))
            status = played.settled()
            support.eventually(lambda: not played.gateway.status()["connections"], "the end")
            records = played.gateway.records()
            self.assertEqual(len(records), min(requests, gw.RECORDS_KEPT))
            # Idle upstream connections stay: a thread of the upstream each, and two ends.
            idle = status["upstream_idle"]
            support.eventually(lambda: threading.active_count() <= before + idle, "the threads")
            if descriptors is not None:
                support.eventually(lambda: support.count_open_descriptors()
                                   <= descriptors + 2 * idle, "the descriptors")
        attempts = max(len(record["attempts"]) for record in records)
        self.assertLessEqual(attempts, self.MAX_ATTEMPTS)
        # A stale connection's replacement is one call more (contract section 9).
        most = max(self.calls.values())
        self.assertLessEqual(most, self.MAX_ATTEMPTS + 1)
        # All kinds came, and most requests never noticed.
        self.assertTrue(all(self.faults.values()), self.faults)
        self.assertGreater(self.outcomes["complete"], 0.8 * requests)
        if __name__ == "__main__":
            print("%d requests, %d calls (at most %d a request), faults %r, outcomes %r"
                  % (requests, sum(self.calls.values()), most, self.faults, self.outcomes))

    def client(self, played, number):
        try:
            for turn in range(1, self.TURNS + 1):
                mark, stream = "mark-%d-%d" % (number, turn), turn % 2 == 0
                told = played.post(text=mark, stream=stream)
                outcome = self.judged(told, mark, stream)
                with self.lock:
                    self.outcomes[outcome] += 1
        except Exception as error:  # told by the assertion on problems
            self.problems.append(repr(error))

    def judged(self, told, mark, stream):
        if not told.complete:
            raise AssertionError("%s: incomplete %r" % (mark, told))
        if told.status >= 400:
            assert told.json()["type"] == "error", told
            return "error status"
        if not stream:
            text = told.json()["content"][0]["text"]
            assert text.startswith(mark + " call "), (mark, text)
            return "complete"
        events = gw.SseDecoder().feed(told.body)
        types = [event.type for event in events]
        assert types.count("message_start") == 1, (mark, types)
        assert types.count("error") + types.count("message_stop") == 1, (mark, types)
        text = "".join(json.loads(event.data.decode())["delta"]["text"] for event in events
                       if event.type == "content_block_delta")
        if types[-1] == "error":
            # The beginning of one call's text, never a piece of another's.
            assert (mark + " call 9").startswith(text[:-1] if text else ""), (mark, text)
            return "error event"
        assert types[-1] == "message_stop", (mark, types)
        assert text == "%s call %s" % (mark, text[-1]), (mark, text)
        return "complete"


if __name__ == "__main__":
    unittest.main()
