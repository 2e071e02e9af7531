"""Contract section 9, row by row: what goes upstream, what the client gets, what comes after."""

import concurrent.futures
import contextlib
import email.utils
import json
import os
import tempfile
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests import faulty
from tests import support
from tests.faulty import body_of
from tests.faulty import error
from tests.faulty import good
from tests.faulty import play
from tests.running import ACCOUNT_KEY
from tests.running import provider
from tests.running import quick_backoff
from tests.running import running_gateway

HTML = support.json_response(b"<html>busy</html>", headers=[("content-type", "text/html")])
EMPTY = support.json_response(b"")
CUT_JSON = faulty.cut(support.json_response()[:-9])
UNKNOWN_MODEL = error(404, "not_found_error", "model: claude-opus-5-5")
SIGNATURE = error(400, "invalid_request_error",
                  "messages.1.content.0: Invalid `signature` in `thinking` block")
# The rests of an account are not waited for: what comes down then shows at once.
NO_WAIT = {"retry": {"max_wait_seconds": 0}}


class AttemptsTest(unittest.TestCase):

    def assert_served(self, told, name, attempts):
        self.assertEqual((told.status, told.complete), (200, True))
        self.assertEqual(told.json(), support.message("from %s" % name))
        self.assertEqual((told.header("x-account-email"), told.header("x-gateway-attempts"),
                          told.header("request-id")), (name, str(attempts), support.REQUEST_ID))

    def assert_passed_on(self, told, answer, attempts=1):
        """An upstream's refusal as it came: status, body and the headers that tell."""
        status = int(answer.split(b" ", 2)[1])
        self.assertEqual((told.status, told.body), (status, body_of(answer)))
        self.assertEqual(told.header("request-id"), support.REQUEST_ID)
        self.assertEqual(told.header("x-gateway-attempts"), str(attempts))

    def assert_ours(self, told, status, kind, *words):
        value = told.json()
        self.assertEqual((told.status, value["type"], value["error"]["type"]),
                         (status, "error", kind))
        self.assertEqual(value["request_id"], told.header("request-id"))
        for word in words:
            self.assertIn(word, value["error"]["message"])

    def quick_backoff(self):
        patch = quick_backoff()
        patch.start()
        self.addCleanup(patch.stop)


class UnreachedTest(AttemptsTest):

    def test_closed_or_reset_before_any_byte(self):
        for act in (faulty.close, faulty.reset):
            with self.subTest(act.__name__), play({"a": [act], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)
                self.assertEqual(played.asked(), ["a", "b"])
                # It rests for 5 s: the other one is asked first.
                self.assert_served(played.post(), "b", 1)
                self.assertEqual(played.asked(), ["b"])
                self.assertEqual([attempt["case"] for attempt in
                                  played.records(2)[0]["attempts"]], ["closed", "answered"])

    def test_the_only_one_is_asked_again(self):
        self.quick_backoff()
        with play({"a": [faulty.close]}) as played:
            self.assert_served(played.post(), "a", 2)
            self.assertEqual(played.asked(), ["a", "a"])

    def test_a_stale_connection_is_replaced_and_not_counted(self):
        with play({"a": [good, faulty.close]}) as played:
            self.assert_served(played.post(), "a", 1)
            self.assert_served(played.post(), "a", 1)
            self.assertEqual(played.asked(), ["a", "a", "a"])
            self.assertEqual(len(played.records(2)[1]["attempts"]), 1)

    def test_connection_name_and_tls(self):
        closed = support.ScriptedUpstream.absent()

        def no_such_host(host, *rest):
            if host == "nowhere.invalid":
                raise gw.socket.gaierror(-2, "Name or service not known")
            return real(host, *rest)

        real = gw.socket.getaddrinfo
        def no_tls(connection):
            connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with faulty.FaultyUpstream({}) as upstream, support.ScriptedUpstream(no_tls) as plain:
            for name, url in (("refused", closed.url), ("name", "http://nowhere.invalid"),
                              ("tls", plain.url.replace("http:", "https:"))):
                first = {"name": "one", "base_url": url,
                         "accounts": [{"name": "a", "api_key": "key-a"}]}
                second = provider(upstream, ("b",), name="two")
                with self.subTest(name), running_gateway(first, second) as gateway, \
                        mock.patch.object(gw.socket, "getaddrinfo", no_such_host):
                    played = faulty.Play(upstream, gateway)
                    played.asked()
                    self.assert_served(played.post(), "b", 2)
                    self.assert_served(played.post(), "b", 1)
                    self.assertEqual(played.asked(), ["b", "b"])
                    (attempt, _) = played.records(2)[0]["attempts"]
                    self.assertEqual(attempt["case"], "unreached")

    def test_nobody_reached_is_a_502(self):
        self.quick_backoff()
        with play({"a": [faulty.close] * 3}) as played:
            told = played.post()
            self.assert_ours(told, 502, "api_error", "anthropic/a")
            self.assertEqual(told.header("x-gateway-attempts"), "3")
            self.assertIsNone(told.header("x-should-retry"))
            self.assertEqual(played.asked(), ["a", "a", "a"])


class SilentTest(AttemptsTest):

    QUICK = {"timeouts": {"first_byte_seconds": 0.1, "shutdown_seconds": 0.2}}

    def test_next_and_rests(self):
        with play({"a": [faulty.silent], "b": []}, **self.QUICK) as played:
            self.assert_served(played.post(), "b", 2)
            self.assert_served(played.post(), "b", 1)
            self.assertEqual(played.asked(), ["a", "b", "b"])

    def test_the_only_one_is_not_asked_twice(self):
        with play({"a": [faulty.silent]}, **self.QUICK) as played:
            self.assert_ours(played.post(), 504, "timeout_error", "anthropic/a")
            self.assertEqual(played.asked(), ["a"])


class RateLimitedTest(AttemptsTest):

    def limited(self, **headers):
        return error(429, "rate_limit_error", "slow down", **headers)

    def test_short_rest_is_waited_for_and_the_same_account_serves(self):
        def ask(seconds):
            with play({"a": [self.limited(retry_after=seconds)]}) as played:
                began = time.monotonic()
                told = played.post()
                return told, played.asked(), time.monotonic() - began

        times = ("0.2", "0.6", "1")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for seconds, (told, asked, took) in zip(times, pool.map(ask, times)):
                with self.subTest(seconds):
                    self.assert_served(told, "a", 2)
                    self.assertEqual(asked, ["a", "a"])
                    self.assertTrue(float(seconds) <= took < float(seconds) + 1, took)

    def test_waits_for_whoever_is_ready_first(self):
        answers = {"a": [self.limited(retry_after="60")], "b": [self.limited(retry_after="0.2")]}
        with play(answers) as played:
            self.assert_served(played.post(), "b", 3)
            self.assertEqual(played.asked(), ["a", "b", "b"])

    def test_told_longer_than_one_waits(self):
        """61 s to 10 min are told as 60; the next request does not go upstream."""
        for told, expected in (("7", "7"), ("60", "60"), ("61", "60"), ("600", "60"),
                               ("700", "700"), ("1500.5", "1501"), ("7200", "1800")):
            answer = self.limited(retry_after=told)
            with self.subTest(told), play(
                    {"a": [answer]}, retry={"max_wait_seconds": 5}) as played:
                first = played.post()
                self.assert_passed_on(first, answer)
                self.assertEqual(first.all("retry-after"), [expected])
                self.assertIsNone(first.header("x-should-retry"))
                second = played.post()
                self.assert_ours(second, 429, "rate_limit_error", "anthropic/a", "rate_limited")
                self.assertEqual(second.all("retry-after"), [expected])
                self.assertEqual(played.asked(), ["a"])

    def test_every_way_to_tell_it(self):
        now = int(time.time())
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now + 1000))
        table = {
            "retry-after date": {"retry_after": email.utils.formatdate(now + 1000, usegmt=True)},
            "retry-after-ms": {"retry_after_ms": "1000000"},
            "rfc 3339": {"anthropic_ratelimit_requests_remaining": "0",
                         "anthropic_ratelimit_requests_reset": moment + "Z"},
            "rfc 3339 with a zone": {"anthropic_ratelimit_tokens_remaining": "0",
                                     "anthropic_ratelimit_tokens_reset": moment + "+00:00"},
            "unix": {"anthropic_ratelimit_unified_status": "rejected",
                     "anthropic_ratelimit_unified_reset": str(now + 1000)},
        }
        for name, headers in table.items():
            with self.subTest(name), play({"a": [self.limited(**headers)], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)
                self.assert_served(played.post(), "b", 1)
                self.assertEqual(played.asked(), ["a", "b", "b"])
            with self.subTest(name), play({"a": [self.limited(**headers)]}) as played:
                self.assertTrue(990 <= int(played.post().header("retry-after")) <= 1000)

    def test_untold(self):
        with play({"a": [self.limited()]}, **NO_WAIT) as played:
            first, second = played.post(), played.post()
            self.assert_passed_on(first, self.limited())
            self.assert_ours(second, 429, "rate_limit_error")
            self.assertEqual((first.header("retry-after"), second.header("retry-after")), ("5", "5"))
            self.assertEqual(played.asked(), ["a"])

    def test_soonest_of_all_is_told(self):
        answers = {"a": [self.limited(retry_after="7")], "b": [self.limited(retry_after="1200")]}
        with play(answers, **NO_WAIT) as played:
            told = played.post()
            self.assert_passed_on(told, self.limited(), 2)
            self.assertEqual(told.all("retry-after"), ["7"])
            self.assertEqual(played.post().header("retry-after"), "7")
            self.assertEqual(played.asked(), ["a", "b"])

    def test_a_transparent_one_is_told_what_the_upstream_said(self):
        for headers in ({}, {"x_should_retry": "false"}):
            answer = self.limited(retry_after="700", **headers)
            with self.subTest(str(headers)), play({"own": [answer, answer]}, accounts=()) as played:
                for _ in range(2):
                    told = played.post(headers=[("x-api-key", "own")])
                    self.assert_passed_on(told, answer)
                    self.assertEqual(told.header("retry-after"), "700")
                self.assertEqual(played.asked(), ["own", "own"])

    def test_count_tokens_does_not_rest_the_account_for_messages(self):
        answer = self.limited(retry_after="50")
        with play({"a": [answer]}, **NO_WAIT) as played:
            told = played.post(path="/v1/messages/count_tokens")
            self.assert_passed_on(told, answer)
            self.assertEqual(told.header("retry-after"), "50")
            self.assert_served(played.post(), "a", 1)

    def test_all_waits_of_a_request_together_are_bounded(self):
        answer = self.limited(retry_after="0.3")
        with play({"a": [answer] * 5}, retry={"max_wait_seconds": 0.5, "max_attempts": 5}) as played:
            self.assert_passed_on(played.post(), answer, 2)
            self.assertEqual(played.asked(), ["a", "a"])

    def test_one_request_then_more_after_recovery(self):
        """The ramp: 250 ms between them."""
        with play({"a": [self.limited(retry_after="0.2")]}) as played:
            played.post()
            began = time.monotonic()
            self.assert_served(played.post(), "a", 1)
            self.assertGreater(time.monotonic() - began, 0.1)


class CreditTest(AttemptsTest):

    WORDS = "Your credit balance is too low to access the Anthropic API."
    ANSWERS = {
        "429": error(429, "billing_error", "no more"),
        "400": error(400, "invalid_request_error", WORDS, x_should_retry="true"),
        "403": error(403, "permission_error", WORDS),
        "402": error(402, "billing_error", "pay", x_should_retry="false"),
    }

    def test_next(self):
        for name, answer in self.ANSWERS.items():
            with self.subTest(name), play({"a": [answer], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)
                self.assert_served(played.post(), "b", 1)
                self.assertEqual(played.asked(), ["a", "b", "b"])

    def test_nobody_left(self):
        for name, answer in self.ANSWERS.items():
            with self.subTest(name), play({"a": [answer]}) as played:
                told = played.post()
                self.assert_passed_on(told, answer)
                self.assertEqual(told.all("x-should-retry"), ["false"])
                second = played.post()
                self.assert_ours(second, 429, "rate_limit_error", "anthropic/a", "credit")
                self.assertEqual(second.header("retry-after"), "1800")
                self.assertEqual(played.asked(), ["a"])

    def test_any_other_failure_tells_the_client_more(self):
        busy = error(529, "overloaded_error", "busy")
        with play({"a": [busy], "b": [self.ANSWERS["400"]]},
                  retry={"max_attempts": 2}) as played:
            told = played.post()
            self.assert_passed_on(told, busy, 2)
            self.assertIsNone(told.header("x-should-retry"))


class FailingTest(AttemptsTest):

    STATUSES = (529, 503, 502, 504, 500, 408, 520, 521, 522, 523, 524)

    def test_next_and_the_first_in_a_row_costs_nothing(self):
        for status in self.STATUSES:
            with self.subTest(status), play({"a": [error(status)], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)
                self.assert_served(played.post(), "a", 1)
                self.assertEqual(played.asked(), ["a", "b", "a"])

    def test_the_second_in_a_row_rests(self):
        with play({"a": [error(500), error(529)], "b": []}) as played:
            for attempts in (2, 2, 1):
                self.assert_served(played.post(), "b", attempts)
            self.assertEqual(played.asked(), ["a", "b", "a", "b", "b"])

    def test_the_only_one_is_asked_again_after_a_while(self):
        """0.5 s and 1 s with full jitter: here with the jitter at its most."""
        with mock.patch.object(gw.random.Random, "random", lambda self: 0.4):
            with play({"a": [error(529), error(529)]}) as played:
                began = time.monotonic()
                told = played.post()
                took = time.monotonic() - began
                self.assert_served(told, "a", 3)
                self.assertTrue(0.6 <= took < 1.5, took)
                self.assertEqual(played.asked(), ["a", "a", "a"])

    def test_the_only_one_is_asked_though_it_cools(self):
        self.quick_backoff()
        last = error(529, "overloaded_error", "still busy")
        with play({"a": [error(500), error(503), last]}) as played:
            self.assert_passed_on(played.post(), last, 3)
            began = time.monotonic()
            self.assert_served(played.post(), "a", 1)
            self.assertLess(time.monotonic() - began, 1)

    def test_others_are_tried_before_the_same_one_again(self):
        # Halves of a backoff that doubles with every failure of an account: in turn.
        with mock.patch.object(gw.random.Random, "random", lambda self: 0.5):
            with play({"a": [error(529)] * 2, "b": [error(500)] * 2},
                      retry={"max_attempts": 4}) as played:
                self.assert_passed_on(played.post(), error(500), 4)
                self.assertEqual(played.asked(), ["a", "b", "a", "b"])
            with play({"a": [error(529)], "b": [error(500)]}, retry={"max_attempts": 3}) as played:
                self.assert_served(played.post(), "a", 3)
                self.assertEqual(played.asked(), ["a", "b", "a"])

    def test_one_not_yet_tried_goes_first_though_the_others_could_be_asked_again(self):
        """The first one's backoff is over before the third is asked for the first time."""
        with mock.patch.object(gw.random.Random, "random", lambda self: 0.0):
            with play({"a": [error(529)], "b": [error(529)], "c": []}) as played:
                self.assert_served(played.post(), "c", 3)
                self.assertEqual(played.asked(), ["a", "b", "c"])
            with play({"a": [faulty.close], "b": [good, error(529)]}) as played:
                self.assert_served(played.post(), "b", 2)
                # The first one only seems to fail: better than the same again.
                self.assert_served(played.post(), "a", 2)
                self.assertEqual(played.asked(), ["a", "b", "b", "a"])

    def test_no_message_in_a_200(self):
        self.quick_backoff()
        for name, fault in (("html", HTML), ("empty", EMPTY), ("cut", CUT_JSON)):
            for stream in (False, True):
                with self.subTest(name, stream=stream):
                    with play({"a": [fault], "b": []}) as played:
                        told = played.post(stream=stream)
                        self.assertEqual((told.status, told.header("x-account-email")), (200, "b"))
                        self.assertEqual(played.post().header("x-account-email"), "a")
                        self.assertEqual(played.asked(), ["a", "b", "a"])
            with self.subTest(name), play({"a": [fault] * 3}) as played:
                self.assert_ours(played.post(), 502, "api_error", "anthropic/a")
                self.assertEqual(played.asked(), ["a", "a", "a"])

    def test_stream_that_breaks_after_content_counts_against_the_account(self):
        broken = faulty.stream_of(faulty.good_events("a")[:3])
        with play({"a": [broken, broken], "b": []}) as played:
            for _ in range(2):
                told = played.post(stream=True)
                self.assertEqual((told.status, told.body.count(b"event: error")), (200, 1))
                played.settled()
            self.assert_served(played.post(), "b", 1)
            self.assertEqual(played.asked(), ["a", "a", "b"])

    def test_collected_stream_that_breaks_goes_on_to_the_next(self):
        events = faulty.good_events("a")
        overloaded = support.sse_event(support.error_body("overloaded_error", "busy"))
        for name, fault in (("cut", faulty.cut(faulty.stream_of(events[:4], b""))),
                            ("clean end", faulty.stream_of(events[:4])),
                            ("error", faulty.stream_of(events[:4] + [overloaded]))):
            with self.subTest(name), play({"a": [fault], "b": []},
                                          stream={"collect": "always"}) as played:
                told = played.post()
                self.assertEqual((told.status, told.header("x-account-email")), (200, "b"))
                self.assertEqual(told.json()["content"], [{"type": "text", "text": "from b"}])
                self.assertEqual(played.asked(), ["a", "b"])


class RefusedTest(AttemptsTest):

    REFUSALS = {401: error(401, "authentication_error", "invalid x-api-key"),
                403: error(403, "permission_error", "not yours")}

    def test_next_and_out(self):
        for status, answer in self.REFUSALS.items():
            with self.subTest(status), play({"a": [answer], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)
                self.assert_served(played.post(), "b", 1)
                self.assertEqual(played.asked(), ["a", "b", "b"])

    def test_all_out(self):
        for status, answer in self.REFUSALS.items():
            with self.subTest(status), play({"a": [answer], "b": [answer]}) as played:
                first, second = played.post(), played.post()
                self.assert_ours(first, 502, "api_error", "credential", "anthropic/b")
                self.assert_ours(second, 502, "api_error", "anthropic/a", "anthropic/b")
                for told in (first, second):
                    self.assertEqual(told.header("x-should-retry"), "false")
                self.assertEqual(played.asked(), ["a", "b"])

    def test_one_out_and_the_other_resting_is_a_429(self):
        """Repeating helps there, after a while."""
        resting = error(429, "rate_limit_error", "slow", retry_after="40")
        with play({"a": [self.REFUSALS[401]], "b": [resting]}, **NO_WAIT) as played:
            told = played.post()
            self.assert_passed_on(told, resting, 2)
            second = played.post()
            self.assert_ours(second, 429, "rate_limit_error", "anthropic/b")
            for answer in (told, second):
                self.assertEqual(answer.header("retry-after"), "40")
                self.assertIsNone(answer.header("x-should-retry"))
            self.assertEqual(played.asked(), ["a", "b"])

    def test_a_transparent_one_is_passed_on(self):
        for status, answer in self.REFUSALS.items():
            with self.subTest(status), play({"own": [answer]}, accounts=()) as played:
                told = played.post(headers=[("x-api-key", "own")])
                self.assert_passed_on(told, answer)
                self.assertEqual((told.header("x-should-retry"), told.header("x-account-email")),
                                 (None, None))
                self.assertEqual(played.post(headers=[("x-api-key", "own")]).status, 200)
                self.assertEqual(played.asked(), ["own", "own"])


class UnknownModelTest(AttemptsTest):

    @contextlib.contextmanager
    def two(self, first, second, **settings):
        """Two providers with two accounts and one; each names itself."""
        with faulty.FaultyUpstream(dict(first, **second)) as upstream:
            providers = [provider(upstream, tuple(first), name="one"),
                         provider(upstream, tuple(second), name="two")]
            with running_gateway(*providers, **dict({"routing": {"sticky": False}}, **settings)) as gateway:
                yield faulty.Play(upstream, gateway)

    def test_the_next_provider_and_from_then_on_at_once(self):
        with self.two({"a": [UNKNOWN_MODEL], "b": []}, {"z": []}) as played:
            told = played.post()
            self.assert_served(told, "z", 2)
            self.assertEqual(told.header("x-gateway-provider"), "two")
            self.assertEqual(played.asked(), ["a", "z"])
            self.assert_served(played.post(text="new"), "z", 1)
            self.assert_served(played.post(text="new", model="other"), "a", 1)
            self.assertEqual(played.asked(), ["z", "a"])

    def test_no_other_provider(self):
        with play({"a": [UNKNOWN_MODEL], "b": []}) as played:
            self.assert_passed_on(played.post(), UNKNOWN_MODEL)
            self.assertEqual(played.asked(), ["a"])
            self.assert_served(played.post(), "a", 1)

    def test_ranks_above_a_momentary_error(self):
        busy = error(529, "overloaded_error")
        with self.two({"a": [UNKNOWN_MODEL]}, {"z": [busy, busy]},
                      retry={"max_attempts": 2}) as played:
            self.assert_passed_on(played.post(), UNKNOWN_MODEL, 2)

    def test_another_404_is_passed_on(self):
        answer = error(404, "not_found_error", "no such thing")
        with self.two({"a": [answer]}, {"z": []}) as played:
            self.assert_passed_on(played.post(), answer)
            self.assertEqual(played.asked(), ["a"])


class SignatureTest(AttemptsTest):

    FIELDS = {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2lnbmF0dXJl" * 20},
                {"type": "text", "text": "hello"}]},
            {"role": "user", "content": "more"}],
    }

    def test_claude_code_gets_it_as_it_is(self):
        with play({"a": [SIGNATURE], "b": []}) as played:
            told = played.post(headers=[("User-Agent", "claude-cli/2.1.0 (external, cli)")],
                               **self.FIELDS)
            self.assert_passed_on(told, SIGNATURE)
            self.assertEqual(played.asked(), ["a"])

    def test_others_are_mended_once_on_the_same_account(self):
        for answers, check in (([SIGNATURE], lambda told: self.assert_served(told, "a", 2)),
                               ([SIGNATURE] * 2,
                                lambda told: self.assert_passed_on(told, SIGNATURE, 2))):
            with play({"a": answers, "b": []}) as played:
                check(played.post(headers=[("User-Agent", "python/1")], **self.FIELDS))
                self.assertEqual(played.asked(), ["a", "a"])
                sent, mended = [request.json() for request in played.upstream.requests]
                self.assertEqual(sent["messages"], self.FIELDS["messages"])
                self.assertEqual(mended["messages"][1]["content"],
                                 [{"type": "text", "text": "hello"}])
                self.assertIn("thinking_signature", played.records(1)[0]["edits"])

    def test_mending_is_a_call_like_any_other(self):
        with play({"a": [SIGNATURE]}, retry={"max_attempts": 1}) as played:
            self.assert_passed_on(played.post(**self.FIELDS), SIGNATURE)
            self.assertEqual(played.asked(), ["a"])


class PassedOnTest(AttemptsTest):

    def test_other_4xx(self):
        for status in (400, 405, 409, 413, 415, 418, 422, 451):
            answer = error(status, "invalid_request_error", "n\u00f6 %d" % status, x_odd="1")
            with self.subTest(status), play({"a": [answer], "b": []}) as played:
                told = played.post()
                self.assert_passed_on(told, answer)
                self.assertEqual((told.header("x-odd"), told.header("x-should-retry")), ("1", None))
                self.assert_served(played.post(), "a", 1)
                self.assertEqual(played.asked(), ["a", "a"])

    def test_should_not_retry_ends_the_attempts(self):
        for status in (429, 529, 500):
            answer = error(status, x_should_retry="false", retry_after="9")
            with self.subTest(status), play({"a": [answer], "b": []}) as played:
                told = played.post()
                self.assert_passed_on(told, answer)
                self.assertEqual(told.all("x-should-retry"), ["false"])
                self.assertEqual(played.asked(), ["a"])
                # 429 rests the account all the same.
                self.assert_served(played.post(), "b" if status == 429 else "a", 1)

    def test_should_not_retry_of_one_account_says_nothing_of_the_next(self):
        for answer in (error(401, x_should_retry="false"),
                       error(429, "billing_error", x_should_retry="false")):
            with play({"a": [answer], "b": []}) as played:
                self.assert_served(played.post(), "b", 2)


class BestAnswerTest(AttemptsTest):

    LIMITED = error(429, "rate_limit_error", "wait", retry_after="900")
    BUSY = error(529, "overloaded_error", "busy")
    FAULT = error(500, "api_error", "fault")

    def test_what_goes_down_when_all_fail(self):
        refused = error(401)
        table = [
            ((self.LIMITED, self.BUSY, self.FAULT), self.LIMITED),
            ((self.FAULT, self.LIMITED, HTML), self.LIMITED),
            ((self.FAULT, self.BUSY, CUT_JSON), self.BUSY),
            ((self.BUSY, refused, self.FAULT), self.FAULT),
            ((self.BUSY, HTML, refused), self.BUSY),
        ]
        for index, (faults, best) in enumerate(table):
            answers = {name: [fault] for name, fault in zip("abc", faults)}
            with self.subTest(index), play(answers) as played:
                told = played.post()
                self.assert_passed_on(told, best, 3)
                self.assertEqual(told.header("x-account-email"), "abc"[faults.index(best)])
                self.assertEqual(played.asked(), ["a", "b", "c"])

    def test_last_429(self):
        last = error(429, "rate_limit_error", "the last", retry_after="20")
        with play({"a": [self.LIMITED], "b": [last]}, **NO_WAIT) as played:
            self.assert_passed_on(played.post(), last, 2)

    def test_ours_where_no_upstream_said_anything(self):
        with play({"a": [faulty.close], "b": [HTML]}, retry={"max_attempts": 2}) as played:
            self.assert_ours(played.post(), 502, "api_error", "anthropic/b")
        with play({"a": [error(401)], "b": [HTML]}, retry={"max_attempts": 2}) as played:
            told = played.post()
            self.assert_ours(told, 502, "api_error", "anthropic/b")
            self.assertIsNone(told.header("x-should-retry"))


class OwnLimitsTest(AttemptsTest):
    """What an account's settings allow."""

    @contextlib.contextmanager
    def limited(self, upstream, first, second=False, **settings):
        accounts = [dict({"name": "a", "api_key": ACCOUNT_KEY + "-a"}, **first)]
        accounts += [{"name": "b", "api_key": ACCOUNT_KEY + "-b"}] if second else []
        with upstream, running_gateway(dict(provider(upstream), accounts=accounts),
                                       **dict({"routing": {"sticky": False}}, **settings)) as gateway:
            yield faulty.Play(upstream, gateway)

    def test_requests_per_minute(self):
        settings = {"requests_per_minute": 2}
        with self.limited(faulty.FaultyUpstream({}), settings, True) as played:
            for name in ("a", "a", "b"):
                self.assert_served(played.post(), name, 1)
        with self.limited(faulty.FaultyUpstream({}), settings) as played:
            self.assertEqual([played.post().status for _ in range(2)], [200, 200])
            told = played.post()
            self.assert_ours(told, 429, "rate_limit_error", "anthropic/a", "at its limit")
            self.assertEqual(told.header("retry-after"), "60")
            self.assertEqual(played.asked(), ["a", "a"])

    def test_max_concurrent(self):
        gate = support.Gate()

        def slow(connection, request):
            gate.wait("the second request to be under way")
            return good(connection, request)

        settings = {"max_concurrent": 1}
        for second in (True, False):
            gate.__init__()
            upstream = faulty.FaultyUpstream({"a": [slow]})
            with self.subTest(second=second), self.limited(upstream, settings, second) as played:
                with played.client() as first:
                    upstream.wait_requests(1)
                    if second:
                        self.assert_served(played.post(), "b", 1)
                        gate.open()
                        self.assertEqual(first.read_response().header("x-account-email"), "a")
                        continue
                    with played.client() as other:
                        support.eventually(lambda: played.gateway.status()["requests"] == 2,
                                           "the second request")
                        self.assertEqual(played.gateway.status()["leases"], 1)
                        gate.open()
                        for client in (first, other):
                            self.assertEqual(client.read_response().status, 200)
                    self.assertEqual(played.asked(), ["a", "a"])


# Prints key-1, key-2 …: one byte of a file for every run.
COUNTING = ("import os, sys\n"
            "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
            "os.write(fd, b'x')\n"
            "print('the-printed-key-%d' % os.fstat(fd).st_size)\n")


class RenewedTest(AttemptsTest):
    """Accounts whose credential can be had again."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="gateway-test-")
        self.addCleanup(temporary.cleanup)
        self.folder = os.path.realpath(temporary.name)

    @contextlib.contextmanager
    def playing(self, answers, account, **settings):
        """The account `mine`, and behind it `b` with a key."""
        accounts = [dict(account, name="mine"), {"name": "b", "api_key": ACCOUNT_KEY + "-b"}]
        with faulty.FaultyUpstream(answers) as upstream:
            chosen = dict(provider(upstream), accounts=accounts)
            with running_gateway(chosen, **dict({"routing": {"sticky": False}}, **settings)) as gateway:
                yield faulty.Play(upstream, gateway)

    def command(self, program=COUNTING):
        return {"key_command": [*support.quick_python(), "-c", program,
                                os.path.join(self.folder, "runs")]}

    def runs(self):
        return os.path.getsize(os.path.join(self.folder, "runs"))

    def assert_mine(self, told, attempts):
        self.assertEqual((told.status, told.header("x-account-email"),
                          told.header("x-gateway-attempts")), (200, "mine", str(attempts)))

    def test_command_is_run_again_once_and_the_same_account_serves(self):
        with self.playing({"the-printed-key-1": [good, error(401)]}, self.command()) as played:
            self.assert_mine(played.post(), 1)
            self.assert_mine(played.post(), 2)
            self.assert_mine(played.post(), 1)
            self.assertEqual(played.asked(), [
                "the-printed-key-1"] * 2 + ["the-printed-key-2"] * 2)
            self.assertEqual(self.runs(), 2)
            # A record is written behind its answer: the next one may overtake it.
            self.assertIn(["refused", "answered"], [
                [attempt["case"] for attempt in record["attempts"]]
                for record in played.records(3)])

    def test_refused_twice_is_out(self):
        answers = {"the-printed-key-1": [error(401)], "the-printed-key-2": [error(401)]}
        with self.playing(answers, self.command()) as played:
            self.assert_served(played.post(), "b", 3)
            self.assert_served(played.post(), "b", 1)
            self.assertEqual(played.asked(), [
                "the-printed-key-1", "the-printed-key-2", "b", "b"])
            self.assertEqual(self.runs(), 2)

    def test_renewing_is_a_call_like_any_other(self):
        with self.playing({"the-printed-key-1": [error(401)]}, self.command(),
                          retry={"max_attempts": 1}) as played:
            # No call is left for the other account, which a repetition would reach.
            told = played.post()
            self.assert_ours(told, 429, "rate_limit_error")
            self.assertEqual(told.header("retry-after"), "1")
            self.assertEqual(played.asked(), ["the-printed-key-1"])
            self.assert_served(played.post(), "b", 1)

    def test_command_that_fails(self):
        lines = []
        account = self.command("import sys; sys.exit(3)")
        with self.playing({}, account, write=lines.append) as played:
            # No call was made with it.
            self.assert_served(played.post(), "b", 1)
            self.assertEqual([(attempt["account"], attempt["case"]) for attempt in
                              played.records(1)[0]["attempts"]],
                             [("mine", "credential"), ("b", "answered")])
            self.assert_served(played.post(), "b", 1)
            self.assertEqual(played.asked(), ["b", "b"])
        self.assertTrue(any("anthropic/mine" in line for line in lines), lines)

    def test_token_of_an_issuer(self):
        issued = []

        def issue(request):
            issued.append(request.body)
            return support.json_response({
                "access_token": "the-access-token-%d" % len(issued), "token_type": "bearer",
                "refresh_token": "refresh-%d" % len(issued), "expires_in": 3600})

        answers = {"Bearer the-access-token-1": [good, error(401)]}
        with support.ScriptedUpstream(respond=issue) as issuer:
            account = {"token": {
                "token_url": issuer.url + "/token", "client_id": "abc", "refresh_token": "refresh-0",
                "store": os.path.join(self.folder, "tokens.json")}}
            with self.playing(answers, account) as played:
                self.assert_mine(played.post(), 1)
                self.assert_mine(played.post(), 2)
                self.assert_mine(played.post(), 1)
                self.assertEqual(played.asked(), ["Bearer the-access-token-1"] * 2
                                 + ["Bearer the-access-token-2"] * 2)
            self.assertEqual([b"refresh-0" in body for body in issued], [True, False])
            self.assertIn(b"refresh-1", issued[1])

    def test_issuer_that_refuses(self):
        def refuse(request):
            return support.json_response({"error": "invalid_grant"}, status=400)

        with support.ScriptedUpstream(respond=refuse) as issuer:
            account = {"token": {
                "token_url": issuer.url + "/token", "client_id": "abc", "refresh_token": "refresh-0",
                "store": os.path.join(self.folder, "tokens.json")}}
            with self.playing({}, account) as played:
                self.assert_served(played.post(), "b", 1)
                self.assert_served(played.post(), "b", 1)
                self.assertEqual(played.asked(), ["b", "b"])
            self.assertEqual(len(issuer.requests), 1)


if __name__ == "__main__":
    unittest.main()
