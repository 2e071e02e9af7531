"""Section 16: /metrics, /gateway/status, /gateway/requests and the dashboard, over real sockets."""

import gc
import json
import unittest

import claude_gateway as gw
from tests import support
from tests.running import ACCOUNT_KEY
from tests.running import CLIENT_KEY
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.test_12_metrics import SAMPLE
from tests.test_16_engine import failing
from tests.test_16_engine import get
from tests.test_16_engine import post

LOOKS = ("/metrics", "/gateway/status", "/gateway/requests", "/dashboard")
HTML = [("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")]
KEYED = {"api_keys": [CLIENT_KEY]}


class PagesTest(unittest.TestCase):

    def start(self, respond=support.respond_with_message, accounts=("work",), **settings):
        self.upstream = self.enter(support.ScriptedUpstream(respond=respond))
        return self.enter(running_gateway(provider(self.upstream, accounts), **settings))

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def status_when(self, gateway, predicate, what):
        """The first snapshot that is as wanted: books are closed after the answer has gone."""
        def look():
            told = get(gateway, "/gateway/status").json()
            return told if predicate(told) else None
        return support.eventually(look, what)


class PathTest(PagesTest):

    def test_get_and_head_below_both_prefixes(self):
        gateway = self.start()
        for path in LOOKS:
            for prefix in ("", "/claude_api"):
                with self.subTest(prefix + path):
                    told = get(gateway, prefix + path)
                    self.assertEqual((told.status, told.header("cache-control"), told.header(
                        "x-content-type-options")), (200, "no-store", "nosniff"))
                    head = get(gateway, prefix + path, method="HEAD")
                    self.assertEqual((head.status, head.body), (200, b""))
                    self.assertEqual(get(gateway, prefix + path, method="POST").status, 405)

    def test_the_page(self):
        told = get(self.start(), "/dashboard")
        self.assertEqual(told.header("content-type"), "text/html; charset=utf-8")
        self.assertEqual(told.body, gw.DASHBOARD.encode("utf-8"))
        self.assertIn("default-src 'none'", told.header("content-security-policy"))
        self.assertEqual(told.header("referrer-policy"), "no-referrer")

    def test_a_browser_is_sent_to_it_and_nobody_else(self):
        gateway = self.start()
        for path, place in (("/", "/dashboard"), ("/claude_api/", "/claude_api/dashboard")):
            for method in ("GET", "HEAD"):
                told = get(gateway, path, HTML, method)
                self.assertEqual((told.status, told.header("location"), told.body), (303, place, b""))
        for accept in ([], [("Accept", "*/*")], [("Accept", "application/json")]):
            self.assertEqual(get(gateway, "/", accept).json()["status"], "ok")
        self.assertEqual(get(gateway, "/api/hello", HTML).status, 200)

    def test_keys(self):
        gateway = self.start(auth=KEYED)
        for path in LOOKS[:3]:
            self.assertEqual(get(gateway, path).status, 401, path)
            self.assertEqual(get(gateway, path, [("x-api-key", CLIENT_KEY)]).status, 200, path)
        self.assertEqual(get(gateway, "/dashboard").status, 200)
        self.assertEqual(get(gateway, "/", HTML).status, 303)

    def test_strict_asks_for_one_everywhere(self):
        gateway = self.start(auth=dict(KEYED, mode="strict"))
        for path in ("/", *LOOKS):
            self.assertEqual(get(gateway, path, HTML).status, 401, path)

    def test_other_sites_get_nothing(self):
        gateway = self.start()
        for path in LOOKS:
            self.assertEqual(get(gateway, path, [("Origin", "https://evil.example")]).status, 403)
            self.assertEqual(get(gateway, path, [("Sec-Fetch-Site", "cross-site")]).status, 403)
            self.assertEqual(get(gateway, path, [("Sec-Fetch-Site", "same-origin")]).status, 200)


class StatusTest(PagesTest):

    def test_what_a_finished_request_leaves(self):
        gateway = self.start()
        post(gateway)
        told = self.status_when(gateway, lambda told: told["records"] == 1, "the record")
        self.assertEqual((told["version"], told["in_flight"], told["live"]), (gw.__version__, 0, []))
        (account,) = told["accounts"]
        self.assertEqual((account["provider"], account["account"], account["state"],
                          account["cooldown_ends"], account["totals"]["requests"]),
                         ("anthropic", "work", "ready", None, 1))
        self.assertEqual(told["history"]["requests"][-2:].count(1), 1)
        (totals,) = told["models"].values()
        self.assertEqual((totals["requests"], totals["errors"]), (1, 0))
        self.assertGreater(totals["output_tokens"], 0)

    def test_a_cooling_account(self):
        gateway = self.start(failing(429, retry_after="90"), ("work", "team"))
        post(gateway)
        told = self.status_when(gateway, lambda told: told["records"] == 1, "the record")
        for account in told["accounts"]:
            self.assertEqual((account["state"], account["last_error"]), ("cooling", "rate_limited"))
            self.assertTrue(80 < account["ready_in_seconds"] <= 90)
            self.assertRegex(account["cooldown_ends"], r"^20..-..-..T")
        text = get(gateway, "/metrics").body.decode("utf-8")
        self.assertIn('claude_gateway_account_ready{account="anthropic/work"} 0\n', text)

    def test_no_secret_is_told(self):
        gateway = self.start(failing(401), auth=KEYED)
        key = [("x-api-key", CLIENT_KEY)]
        post(gateway, headers=key)
        told = b"".join(get(gateway, path, key).body for path in LOOKS)
        self.assertNotIn(CLIENT_KEY.encode(), told)
        self.assertNotIn(ACCOUNT_KEY.encode(), told)

    def test_a_stream_from_its_begin_to_its_end(self):
        begun, go = support.Gate(), support.Gate()
        events = support.stream_events("Once upon a time")

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD)
            begun.open()
            go.wait("the test to have seen it held")
            connection.send(b"".join(map(support.chunk, events[:5])))
            more.wait("the test to have seen it stream")
            connection.send(b"".join(map(support.chunk, events[5:])) + support.LAST_CHUNK)

        more = support.Gate()
        self.upstream = self.enter(support.ScriptedUpstream(script))
        gateway = self.enter(running_gateway(provider(self.upstream)))
        with support.RawClient(gateway.port) as client:
            client.request("POST", "/v1/messages", [("Content-Type", "application/json"),
                                                    ("X-Request-ID", "seen-alive")], STREAM_MESSAGE)
            begun.wait("the upstream to be asked")
            held = self.status_when(gateway, lambda told: told["live"] and told["live"][0][
                "state"] == "held", "the held stream")
            self.assertEqual(held["in_flight"], 1)
            (live,) = held["live"]
            self.assertEqual((live["id"], live["account"], live["route"]),
                             ("seen-alive", "work", "messages"))
            self.assertIn(b"claude_gateway_in_flight 1\n", get(gateway, "/metrics").body)
            go.open()
            streaming = self.status_when(gateway, lambda told: told["live"] and told["live"][0][
                "state"] == "streaming" and told["live"][0]["bytes_out"], "the stream")
            self.assertGreater(streaming["live"][0]["input_tokens"], 0)
            more.open()
            self.assertEqual(client.read_response().status, 200)
            self.status_when(gateway, lambda told: not told["live"] and told["records"] == 1, "its end")

    def test_a_client_that_leaves_is_alive_no_more(self):
        asked, never = support.Gate(), support.Gate()

        def script(connection):
            connection.read_request()
            asked.open()
            connection.wait_closed("the gateway to leave")
            never.open()

        self.upstream = self.enter(support.ScriptedUpstream(script))
        gateway = self.enter(running_gateway(provider(self.upstream)))
        with support.RawClient(gateway.port) as client:
            client.request("POST", "/v1/messages", [("Content-Type", "application/json")], MESSAGE)
            asked.wait("the upstream to be asked")
            self.status_when(gateway, lambda told: told["live"] and told["live"][0][
                "state"] == "waiting", "the request")
        never.wait("the upstream call to be closed")
        self.status_when(gateway, lambda told: not told["live"], "its end")
        self.assertIn(b'requests_total{route="messages",provider="",account="",status="none"} 1\n',
                      get(gateway, "/metrics").body)

    def test_transparent_provider(self):
        self.upstream = self.enter(support.ScriptedUpstream())
        gateway = self.enter(running_gateway({"name": "anthropic", "base_url": self.upstream.url}))
        post(gateway, headers=[("x-api-key", "client-own-key")])
        told = self.status_when(gateway, lambda told: told["records"] == 1, "the record")
        self.assertEqual(told["accounts"], [])
        self.assertEqual(told["providers"][0]["own_credentials"]["requests"], 1)
        self.assertNotIn("client-own-key", json.dumps(told))

    def test_a_reload_keeps_the_counters(self):
        gateway = self.start()
        post(gateway)
        before = self.status_when(gateway, lambda told: told["records"] == 1, "the record")
        settings = {"port": 0, "providers": [provider(self.upstream, ("other",))]}
        gateway.reload(gw.Config.from_dict(settings))
        after = get(gateway, "/gateway/status").json()
        self.assertEqual((after["totals"], after["models"]), (before["totals"], before["models"]))
        self.assertEqual([account["account"] for account in after["accounts"]], ["other"])
        self.assertIn(b'account_ready{account="anthropic/other"} 1\n', get(gateway, "/metrics").body)


class FreedTest(PagesTest):

    def test_an_ended_stream_is_freed_without_the_collector(self):
        """What shows it while it lives must not close a circle."""
        gateway = self.start(lambda request: support.stream_response(support.stream_events("Hi")))
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(3):
            post(gateway, body=STREAM_MESSAGE)
        kinds = (gw.Exchange, gw.LiveRequest, gw.RelayBody, gw.HttpRequest, gw.DownstreamHandler)
        support.eventually(lambda: len(gateway.records()) == 3 and not any(
            isinstance(thing, kinds) for thing in gc.get_objects()), "the requests to be freed")


class RequestsTest(PagesTest):

    def test_newest_first_up_to_the_limit(self):
        gateway = self.start()
        for count, name in enumerate("abc", 1):
            post(gateway, headers=[("X-Request-ID", name)])
            # Its books are closed after its answer, and so perhaps after those of the next one.
            self.status_when(gateway, lambda told: told["records"] == count, "the record")
        for query, ids in (("", "cba"), ("?limit=2", "cb"), ("?limit=1000", "cba")):
            told = get(gateway, "/gateway/requests" + query).json()
            self.assertEqual("".join(record["id"] for record in told["requests"]), ids)
            self.assertEqual(told["records"], 3)
        self.assertEqual(tuple(told["requests"][0]), gw.RequestRecord.FIELDS)

    def test_bad_limits(self):
        gateway = self.start()
        for limit in ("0", "1001", "-1", "x", "", "1e2", "99999", "%31%30%30%30%30"):
            with self.subTest(limit):
                told = get(gateway, "/gateway/requests?limit=" + limit)
                self.assertEqual((told.status, told.json()["error"]["type"]),
                                 (400, "invalid_request_error"))

    def test_attempts_of_a_rotated_request(self):
        answers = [support.json_response(support.error_body("overloaded_error", "x"), 529)]
        gateway = self.start(lambda request: answers.pop() if answers else
                             support.respond_with_message(request), ("work", "team"))
        post(gateway)
        support.eventually(gateway.records, "the record")
        (record,) = get(gateway, "/gateway/requests").json()["requests"]
        self.assertEqual([(attempt["account"], attempt["case"]) for attempt in record["attempts"]],
                         [("work", "failing"), ("team", "answered")])

    def test_looks_leave_no_records(self):
        gateway = self.start()
        for path in LOOKS:
            get(gateway, path)
        self.assertEqual(get(gateway, "/gateway/requests").json()["records"], 0)


class MetricsTest(PagesTest):

    def test_all_names_of_the_contract(self):
        gateway = self.start()
        post(gateway)
        self.status_when(gateway, lambda told: told["records"] == 1, "the record")
        support.eventually(gateway.local_answers, "the count of that look")
        told = get(gateway, "/metrics")
        self.assertEqual(told.header("content-type"), "text/plain; version=0.0.4; charset=utf-8")
        text = told.body.decode("utf-8")
        for name in ("requests_total", "upstream_attempts_total", "tokens_total", "in_flight",
                     "time_to_first_byte_seconds_bucket", "request_seconds_sum", "account_ready",
                     "local_answers_total"):
            self.assertIn("\nclaude_gateway_%s" % name, text)
        for line in text.split("\n")[:-1]:
            self.assertTrue(line.startswith("# ") or SAMPLE.fullmatch(line), line)


if __name__ == "__main__":
    unittest.main()
