"""What attacks on long sessions have found: one test for each fault."""

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

import claude_gateway as gw
from claude_gateway import Config
from claude_gateway import Gateway
from tests import support
from tests.running import ACCOUNT_KEY
from tests.running import CLIENT_KEY
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.running import settings_for

STREAM_HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
               b"Connection: close\r\n\r\n")
START = support.stream_events()[0]


class HoldTest(unittest.TestCase):

    def test_head_that_goes_before_its_body_tells_no_length(self):
        gate = support.Gate()

        def slow_then_cut(connection):
            connection.read_request()
            connection.send(STREAM_HEAD + START)
            gate.wait("the client to have the head")
            connection.close()

        with support.ScriptedUpstream(slow_then_cut, lambda connection: connection.serve()) as upstream:
            upstream.respond = lambda request: support.stream_response(support.stream_events())
            with running_gateway(provider(upstream, accounts=("a", "b")),
                                 stream={"hold_seconds": 0.1, "ping_seconds": 1}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    answer = client.read_head()
                    gate.open()
                    client.read_body(answer)
                    self.assertIsNone(answer.header("content-length"))
                    self.assertEqual(answer.header("transfer-encoding"), "chunked")
                    self.assertTrue(answer.complete)
                    self.assertEqual(answer.body, b"".join(support.stream_events()))
                    client.request("GET", "/healthz")
                    self.assertEqual(client.read_response().json(), {"status": "ok"})


class DeletedFileTest(unittest.TestCase):

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "no SIGHUP here")
    def test_a_found_file_that_is_gone_changes_nothing(self):
        with support.ScriptedUpstream() as upstream, tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "claude_gateway"))
            path = os.path.join(folder, "claude_gateway", "config.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"auth": {"api_keys": [CLIENT_KEY]},
                           "providers": [provider(upstream)]}, file)
            with support.GatewayProcess(env={"XDG_CONFIG_HOME": folder,
                                             "APPDATA": folder}) as gateway:
                os.unlink(path)
                gateway.process.send_signal(signal.SIGHUP)
                support.eventually(lambda: "reloaded" in gateway.stderr_text(), "the reload")
                self.assertIn("configuration not reloaded", gateway.stderr_text())
                for headers, status in (([], 401), ([("x-api-key", CLIENT_KEY)], 200)):
                    answer = support.exchange(gateway.port, "POST", "/v1/messages",
                                              [JSON_TYPE, *headers], MESSAGE)
                    self.assertEqual(answer.status, status)


class ReloadTest(unittest.TestCase):

    def test_a_request_with_the_old_key_says_nothing_of_the_new_one(self):
        old_key, new_key = "old-key-for-tests-xx", "new-key-for-tests-xx"
        gate = support.Gate()

        def respond(request):
            if request.header("x-api-key") == new_key:
                return support.json_response(support.message())
            if len(upstream.requests) == 1:
                gate.wait("the reload")
                return support.json_response(support.error_body("overloaded_error", "x"), 529)
            return support.json_response(support.error_body("authentication_error", "x"), 401)

        def configuration(key):
            return Config.from_dict(settings_for(
                dict(provider(upstream), accounts=[{"name": "a", "api_key": key}])))

        with support.ScriptedUpstream(respond=respond) as upstream:
            with Gateway(configuration(old_key), None, {}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    upstream.wait_requests(1)
                    gateway.reload(configuration(new_key))
                    gate.open()
                    self.assertEqual(client.read_response().status, 529)
                self.assertEqual(len(upstream.requests), 2)
                self.assertEqual(gateway.accounts()[0]["state"], "ready")
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                self.assertEqual(answer.status, 200)


class ProbeTest(unittest.TestCase):

    def test_a_failure_during_the_probe_does_not_leave_it_open_for_ever(self):
        clock = support.FakeClock()
        row = Config.from_dict({"providers": [
            {"name": "anthropic", "accounts": [{"name": "a", "api_key": "k"}]}]}).providers[0]
        pool = gw.AccountPool(clock.monotonic, lambda: 0.5)
        wanted = gw.Attempts(pool, "failover", gw.Retry(3, 30.0), gw.candidates(row, ""))

        def lease():
            clock.advance(1)
            return pool.acquire(wanted, "failover")

        def fail(call, status, ready_in=None):
            clock.advance(1)
            outcome = gw.Outcome("answer", status, ready_in=ready_in)
            pool.release(call, wanted, gw.decide(outcome), outcome)

        first, second = lease(), lease()
        fail(first, 500)
        long_one = lease()
        fail(second, 429, 7200.0)
        clock.advance(gw.MAX_REST_SECONDS)
        probe = lease()
        self.assertTrue(probe.is_probe)
        fail(long_one, 500)
        pool.answered(probe, wanted, whole=True)
        clock.advance(600)
        self.assertIsInstance(pool.acquire(wanted, "failover"), gw.Lease)


class RetryAfterTest(unittest.TestCase):

    def test_a_final_429_keeps_its_wait_where_no_account_rests(self):
        headers = [("retry-after", "1800"), ("x-should-retry", "false")]
        body = support.error_body("rate_limit_error", "x")
        for accounts, path in (((), "/v1/messages"), (("a",), "/v1/messages"),
                               (("a",), "/v1/messages/count_tokens"), (("a",), "/v1/files")):
            with self.subTest(path=path, accounts=accounts), support.ScriptedUpstream(
                    respond=lambda request: support.json_response(body, 429, headers)) as upstream:
                with running_gateway(provider(upstream, accounts)) as gateway:
                    answer = support.exchange(gateway.port, "POST", path,
                                              [JSON_TYPE, ("x-api-key", "own-key")], MESSAGE)
                    self.assertEqual((answer.status, answer.header("retry-after")), (429, "1800"))


class NobodyReadyTest(unittest.TestCase):

    def test_an_account_that_goes_out_meanwhile_is_no_fault_of_ours(self):
        headers = [("retry-after", "1800")]
        body = support.error_body("rate_limit_error", "x")
        with support.ScriptedUpstream(
                respond=lambda request: support.json_response(body, 429, headers)) as upstream:
            with running_gateway(provider(upstream), retry={"max_wait_seconds": 0}) as gateway:
                def ask():
                    return support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                            MESSAGE)
                self.assertEqual(ask().status, 429)
                with mock.patch.object(gw.Attempts, "ready_in", side_effect=[9.0, math.inf]):
                    self.assertEqual(ask().status, 429)


class StickyTest(unittest.TestCase):

    def test_a_token_count_that_went_elsewhere_moves_no_conversation(self):
        def respond(request):
            if "count_tokens" not in request.target:
                return support.json_response(support.message())
            if request.header("x-api-key").endswith("-a"):
                return support.json_response(support.error_body("rate_limit_error", "x"), 429)
            return support.json_response({"input_tokens": 3})

        with support.ScriptedUpstream(respond=respond) as upstream:
            with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                accounts = []
                for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages"):
                    answer = support.exchange(gateway.port, "POST", path, [JSON_TYPE], MESSAGE)
                    accounts.append(answer.header("x-account-email"))
                self.assertEqual(accounts, ["a", "b", "a"])


class CountTest(unittest.TestCase):

    def test_no_token_count_for_a_model_is_not_no_such_model(self):
        def respond(request):
            if "count_tokens" in request.target:
                error = support.error_body("not_found_error", "no token count for this model")
                return support.json_response(error, 404)
            return support.json_response(support.message())

        with support.ScriptedUpstream(respond=respond) as first, support.ScriptedUpstream() as second:
            with running_gateway(provider(first), dict(provider(second), name="other"),
                                 routing={"models": {"*": ["anthropic", "other"]}}) as gateway:
                for path in ("/v1/messages/count_tokens", "/v1/messages"):
                    answer = support.exchange(gateway.port, "POST", path, [JSON_TYPE], MESSAGE)
                self.assertEqual(answer.header("x-gateway-provider"), "anthropic")


class RenewalTest(unittest.TestCase):

    def test_a_renewal_that_fails_for_the_moment_does_not_put_the_account_out(self):
        """The issuer hiccups just when the upstream has refused the token."""
        good = {"access_token": "access-2-for-tests", "expires_in": 3600}
        grants = [(200, {"access_token": "access-1-for-tests", "expires_in": 3600}), (503, {}),
                  (200, good)]

        def respond(request):
            if request.header("authorization") == "Bearer " + good["access_token"]:
                return support.json_response(support.message())
            return support.json_response(support.error_body("authentication_error", "x"), 401)

        def grant(request):
            status, fields = grants.pop(0)
            return support.json_response(fields, status)

        with support.ScriptedUpstream(respond=respond) as upstream, support.ScriptedUpstream(
                respond=grant) as issuer, tempfile.TemporaryDirectory() as folder:
            row = {"name": "a", "token": {
                "token_url": issuer.url + "/token", "client_id": "c", "refresh_token": "r",
                "store": os.path.join(folder, "tokens.json")}}
            with running_gateway(dict(provider(upstream), accounts=[row]),
                                 retry={"max_wait_seconds": 0}) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                self.assertEqual(answer.status, 502)
                account, = gateway.accounts()
                self.assertEqual((account["state"], account["last_error"]),
                                 ("cooling", "credential"))
                self.assertLessEqual(account["ready_in_seconds"], 5)
                self.assertEqual(len(upstream.requests), 1)


class IssuerTest(unittest.TestCase):

    def check(self, status, body):
        gw.check_granted("a", gw.Answer(status, gw.Headers(), gw.json_object(body) or {}), 0.0)

    def test_an_error_of_null_beside_a_token_is_none(self):
        self.check(200, b'{"access_token": "t", "error": null}')
        self.check(200, b'{"access_token": "t", "error": false, "token_type": "Bearer"}')

    def test_what_is_not_the_issuers_word_refuses_nothing(self):
        for status in (400, 401):
            for body in (b"<html>log in</html>", b""):
                with self.assertRaises(gw.CredentialError) as raised:
                    self.check(status, body)
                self.assertIs(type(raised.exception), gw.CredentialError)
            with self.assertRaises(gw.CredentialRefused):
                self.check(status, b'{"message": "no"}')


class CommandTest(unittest.TestCase):

    @unittest.skipUnless(hasattr(os, "setsid"), "no sessions here")
    def test_a_child_that_keeps_the_pipe_costs_no_thread_and_no_descriptor(self):
        script = ("import os, select\nif os.fork() == 0:\n    os.setsid()\n"
                  "    select.select([], [], [], 20)\n"
                  "    os._exit(0)\nprint('key')")
        command = gw.KeyCommand((sys.executable, "-c", script), 60.0)
        before = support.count_open_descriptors()
        with mock.patch.object(gw, "COMMAND_SECONDS", 0.5):
            with self.assertRaises(gw.CredentialError):
                gw.printed_key(command, "a", time.monotonic, threading.Event())
        support.eventually(
            lambda: "key-command" not in [thread.name for thread in threading.enumerate()],
            "the reader to end")
        self.assertLessEqual(support.count_open_descriptors(), before)


class ReloadFaultTest(unittest.TestCase):

    def test_what_must_not_be_served_where_it_listens_is_refused(self):
        with support.ScriptedUpstream() as upstream:
            settings = settings_for(provider(upstream), host="0.0.0.0", auth={"api_keys": ["k"]})
            with Gateway(Config.from_dict(settings), None, {}) as gateway:
                itself = dict(provider(upstream), base_url="http://127.0.0.1:%d" % gateway.port)
                keyed = {"auth": {"api_keys": ["k"]}}
                for changed, words in ((settings_for(itself, **keyed), "this gateway itself"),
                                       (settings_for(provider(upstream)), "no key")):
                    with self.assertRaisesRegex(gw.ConfigError, words):
                        gateway.reload(Config.from_dict(changed))


class TrickleTest(unittest.TestCase):

    def test_a_refusal_that_trickles_holds_nobody_for_ever(self):
        over = support.Gate()

        def trickle(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 400 Bad\r\nContent-Length: 100000\r\n\r\n")
            tick = threading.Event()
            with contextlib.suppress(OSError):
                while not over.is_open:
                    connection.send(b" ")
                    tick.wait(0.05)

        with support.ScriptedUpstream(trickle) as upstream:
            with running_gateway(provider(upstream), retry={"max_attempts": 1}, timeouts={
                    "idle_seconds": 0.3, "shutdown_seconds": 0.2}) as gateway:
                try:
                    answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                              MESSAGE)
                finally:
                    over.open()
                self.assertEqual(answer.status, 504)


class NoMessageTest(unittest.TestCase):

    def test_a_200_whose_json_is_no_message_moves_on(self):
        bodies = [support.error_body("overloaded_error", "busy"),
                  {"code": 500, "msg": "internal", "success": False}, {}]
        for body in bodies:
            with self.subTest(body):
                answers = [support.json_response(body), support.json_response(support.message())]
                with support.ScriptedUpstream(respond=lambda request: answers.pop(0)) as upstream:
                    with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                        answer = support.exchange(gateway.port, "POST", "/v1/messages",
                                                  [JSON_TYPE], MESSAGE)
                        self.assertEqual((answer.status, answer.header("x-account-email")),
                                         (200, "b"))

    def test_alone_it_is_told_as_what_it_is(self):
        body = support.error_body("overloaded_error", "busy")
        with support.ScriptedUpstream(
                respond=lambda request: support.json_response(body)) as upstream:
            with running_gateway(provider(upstream), retry={"max_attempts": 1}) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                self.assertEqual((answer.status, answer.json()["error"]["type"]),
                                 (529, "overloaded_error"))


class ManyEventsTest(unittest.TestCase):

    def test_pings_before_content_give_up_nothing(self):
        ping = gw.encode_sse_event("ping", {"type": "ping"})

        def pings_then_cut(connection):
            connection.read_request()
            connection.send(STREAM_HEAD + START + ping * (gw.MAX_HELD_EVENTS + 6))
            connection.close()

        with support.ScriptedUpstream(pings_then_cut, lambda connection: connection.serve()) as upstream:
            upstream.respond = lambda request: support.stream_response(support.stream_events())
            with running_gateway(provider(upstream, accounts=("a", "b"))) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                          STREAM_MESSAGE)
                self.assertEqual(answer.status, 200)
                self.assertEqual(answer.body.replace(ping, b""), b"".join(
                    support.stream_events()).replace(ping, b""))
                self.assertEqual(len(upstream.requests), 2)


class NoJsonErrorTest(unittest.TestCase):

    def test_infinity_in_an_error_event_goes_to_no_client(self):
        event = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","v":1e999}}\n\n'

        def respond(request):
            gate.wait("the client to have a head, or to want none")
            return support.stream_response([event])

        for hold_seconds, status in ((20, 529), (0.05, 200)):
            gate = support.Gate()
            with self.subTest(status), support.ScriptedUpstream(respond=respond) as upstream:
                with running_gateway(provider(upstream), retry={"max_attempts": 1},
                                     stream={"hold_seconds": hold_seconds}) as gateway:
                    with support.RawClient(gateway.port) as client:
                        client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                        if status == 529:
                            gate.open()
                        answer = client.read_head()
                        gate.open()
                        client.read_body(answer)
                    self.assertEqual(answer.status, status)
                    self.assertIn(b"overloaded_error", answer.body)
                    self.assertNotIn(b"Infinity", answer.body)


class QuotedKeyTest(unittest.TestCase):

    def test_a_key_that_an_upstream_quotes_is_in_no_record(self):
        def respond(request):
            key = request.header("x-api-key")
            events = b"".join(support.stream_events()).replace(b"end_turn", key.encode("ascii"))
            headers = [("anthropic-ratelimit-tokens-status", key)]
            if b"stream" in request.body:
                return support.stream_response([events])
            return support.json_response(dict(support.message(), stop_reason=key), 200, headers)

        lines = []
        with support.ScriptedUpstream(respond=respond) as upstream:
            for collect in ("never", "always"):
                with running_gateway(provider(upstream), write=lines.append,
                                     log={"format": "json"}, stream={"collect": collect}) as gateway:
                    answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                              MESSAGE)
                    self.assertEqual(answer.status, 200)
                    support.eventually(gateway.records, "the record")
                    shown = json.dumps([gateway.records(), gateway.accounts()])
                self.assertNotIn(ACCOUNT_KEY, shown + "".join(lines))


class WordsTest(unittest.TestCase):

    def test_who_refused_is_told(self):
        with support.ScriptedUpstream() as upstream, support.ScriptedUpstream(
                respond=lambda request: support.json_response({"error": "invalid_grant"}, 400)
                ) as issuer, tempfile.TemporaryDirectory() as folder:
            row = {"name": "a", "token": {
                "token_url": issuer.url + "/token", "client_id": "c", "refresh_token": "r",
                "store": os.path.join(folder, "tokens.json")}}
            with running_gateway(dict(provider(upstream), accounts=[row])) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                self.assertEqual((answer.status, answer.header("x-should-retry")), (502, "false"))
                self.assertIn("the token issuer refused", answer.json()["error"]["message"])
                self.assertEqual(upstream.requests, [])

    def test_an_account_that_was_not_asked_is_not_said_to_rest(self):
        body = support.error_body("authentication_error", "x")
        with support.ScriptedUpstream(
                respond=lambda request: support.json_response(body, 401)) as upstream:
            with running_gateway(provider(upstream, ("a", "b", "c", "d"))) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                self.assertEqual((answer.status, answer.header("retry-after")), (429, "1"))
                self.assertIn("no attempt is left: anthropic/d (ready)",
                              answer.json()["error"]["message"])


class PastResetTest(unittest.TestCase):

    def test_a_429_that_is_over_by_our_clock_rests_all_the_same(self):
        for told in ("Wed, 01 Jan 2020 00:00:00 GMT", "2020-01-01T00:00:00Z", "1700000000",
                     "1000000000000", "0"):
            def respond(request, told=told):
                if request.header("x-api-key").endswith("-b"):
                    return support.json_response(support.message())
                body = support.error_body("rate_limit_error", "x")
                return support.json_response(body, 429, [("retry-after", told)])

            with self.subTest(told), support.ScriptedUpstream(respond=respond) as upstream:
                with running_gateway(provider(upstream, ("a", "b")),
                                     routing={"sticky": False}) as gateway:
                    for _ in range(5):
                        support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    self.assertEqual(len(upstream.requests), 6)


if __name__ == "__main__":
    unittest.main()
