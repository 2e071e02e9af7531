"""Section 16: the walk of a request, end to end over real sockets and scripted upstreams."""

import json
import select
import threading
import unittest
import unittest.mock

import claude_gateway as gw
from tests import shim
from tests import support
from tests.running import ACCOUNT_KEY
from tests.running import CLIENT_KEY
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import quick_backoff
from tests.running import running_gateway
from tests.running import settings_for

KEYED = {"api_keys": [CLIENT_KEY]}
# For what one failed call looks like; what comes after it is test_16_attempts'.
ONE_CALL = {"max_attempts": 1}


def post(gateway, path="/v1/messages", body=MESSAGE, headers=()):
    """One POST on a connection of its own."""
    return support.exchange(gateway.port, "POST", path, [JSON_TYPE, *headers], body)


def get(gateway, path, headers=(), method="GET"):
    """One GET on a connection of its own."""
    return support.exchange(gateway.port, method, path, headers)


def events_of(response):
    """The events of a stream, as a client's decoder sees them."""
    return gw.SseDecoder().feed(response.body)


def only_record(gateway):
    """The one record; it is written when the answer has gone, so it may be awaited."""
    support.eventually(gateway.records, "the record")
    (record,) = gateway.records()
    return record


def failing(status, **headers):
    """A respond function: every request is refused with a status."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    body = support.error_body("api_error", "status %d" % status)
    return lambda request: support.json_response(body, status=status, headers=pairs)


class PathTest(unittest.TestCase):

    def test_prefix_and_doubled_version_are_left_out(self):
        table = {
            "/v1/messages": ("/v1/messages", False),
            "/claude_api/v1/messages": ("/v1/messages", False),
            "/v1/v1/messages": ("/v1/messages", True),
            "/claude_api/v1/v1/messages": ("/v1/messages", True),
            "/claude_api": ("/", False),
            "/claude_apis/v1/messages": ("/claude_apis/v1/messages", False),
            "/v1/v1/v1/messages": ("/v1/messages", True),
            # As many as a request line can hold.
            "/v1" * 5000 + "/messages": ("/v1/messages", True),
            # The probes of a client whose base URL ends in /v1.
            "/v1": ("/", True),
            "/v1/": ("/", True),
            "/v1/api/hello": ("/api/hello", True),
            "/claude_api/v1/v1/healthz": ("/healthz", True),
        }
        for path, expected in table.items():
            with self.subTest(path):
                self.assertEqual(gw.plain_path(path), expected)

    def test_every_route_has_a_handler(self):
        routes = [route for methods in gw.ROUTES.values() for route in methods.values()]
        for more in (gw.TELEMETRY_ROUTES, gw.PASSAGE_ROUTES, gw.MODEL_ROUTES):
            routes += more.values()
        for route in routes:
            self.assertTrue(callable(getattr(gw.Engine, route.handler)), route)

    def test_passage_takes_plain_paths_alone(self):
        good = ["/v1/files", "/v1/messages/batches/b_1/results", "/v1/files/%C3%A9%20x/content",
                "/v1/organizations/usage:report", "/v1/skills/"]
        bad = ["/v1/files/a%2Fb/content", "/v1/x%5c", "/v1/m%65ssages", "/v1/x%00", "/v1/x%2e",
               "/v1/messages//", "/api/event_logging/../../v1/organizations",
               "/api/event_logging/%2e%2e/x", "/v2/files", "/v1//files", "/v1/../admin", "/v1/./x", "/v1/a/..",
               "/v1/%2e%2e/admin", "/v1/a%2", "/v1/a b", "/admin", "/v1/a/../../x"]
        for path in good:
            self.assertIsNotNone(gw.find_routes(path), path)
        for path in bad:
            self.assertIsNone(gw.find_routes(path), path)


class KnownHeadTest(unittest.TestCase):
    """What follows from a client's head is worked out once, and no longer in force than it was."""

    def test_each_request_has_its_own_length_and_body(self):
        bodies = [MESSAGE.replace(b"hi", b"x" * count) for count in (1, 5000, 1)]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                with support.RawClient(gateway.port) as client:
                    for body in bodies:
                        client.request("POST", "/v1/messages", [
                            JSON_TYPE, ("x-api-key", CLIENT_KEY), ("X-Last", "1")], body)
                        self.assertEqual(client.read_response().status, 200)
                heads = gateway._running()._served.upstream_heads
                self.assertEqual(len(heads), 1)
            self.assertEqual([request.body for request in upstream.requests], bodies)
        self.assertEqual([request.header("content-length") for request in upstream.requests],
                         [str(len(body)) for body in bodies])
        self.assertEqual(len({str([pair for pair in request.headers
                                   if pair[0].lower() != "content-length"])
                              for request in upstream.requests}), 1)

    def test_a_reload_judges_anew(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                with support.RawClient(gateway.port) as client:
                    for keys, status in (([CLIENT_KEY], 200), (["another-key"], 401),
                                         (["another-key", CLIENT_KEY], 200)):
                        gateway.reload(gw.Config.from_dict(settings_for(
                            provider(upstream, accounts=("two",)), auth={"api_keys": keys})))
                        client.request("POST", "/v1/messages", [
                            JSON_TYPE, ("x-api-key", CLIENT_KEY)], MESSAGE)
                        self.assertEqual(client.read_response().status, status)
            self.assertEqual(len(upstream.requests), 2)

    def test_a_key_that_is_a_length_leaves_the_length(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth={"api_keys": ["0"]}) as gateway:
                self.assertEqual(200, post(gateway, headers=[("x-api-key", "0"), ("A", "0")]).status)
        self.assertEqual((upstream.requests[0].body, upstream.requests[0].header("a")),
                         (MESSAGE, None))

    def test_what_is_remembered_has_a_bound(self):
        with unittest.mock.patch.object(gw, "HEADS_KEPT", 3):
            with support.ScriptedUpstream() as upstream:
                with running_gateway(provider(upstream), auth=KEYED) as gateway:
                    served = gateway._running()._served
                    for number in range(8):
                        self.assertEqual(200, post(gateway, headers=[
                            ("x-api-key", CLIENT_KEY), ("X-Number", str(number))]).status)
                        self.assertLessEqual(len(served.upstream_heads), 3)
                        self.assertLessEqual(len(served._admissions), 3)
                    known = len(served.upstream_heads), len(served._admissions)
                    long = [("x-api-key", CLIENT_KEY), ("X-Long", "x" * gw.MAX_KEPT_HEAD_BYTES)]
                    self.assertEqual(post(gateway, headers=long).status, 200)
                    self.assertEqual((len(served.upstream_heads), len(served._admissions)), known)


class LocalAnswerTest(unittest.TestCase):
    """Section 4's routes that need no upstream."""

    def setUp(self):
        self.upstream = self.enter(support.ScriptedUpstream())

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def start(self, **settings):
        return self.enter(running_gateway(provider(self.upstream, models=["m-1", "a/b"]),
                                          **settings))

    def test_probes_and_health(self):
        gateway = self.start()
        for path in ("/healthz", "/health"):
            self.assertEqual(get(gateway, path).json(), {"status": "ok"})
        for path in ("/", "/api/hello", "/claude_api/"):
            with self.subTest(path):
                self.assertEqual(get(gateway, path).status, 200)
                head = get(gateway, path, method="HEAD")
                self.assertEqual((head.status, head.body), (200, b""))

    def test_unhealthy_when_nobody_could_serve(self):
        account = {"name": "off", "api_key": "k", "enabled": False}
        gateway = self.enter(running_gateway(
            {"name": "anthropic", "base_url": self.upstream.url, "accounts": [account]}))
        answer = get(gateway, "/health")
        self.assertEqual((answer.status, answer.json()["status"]), (503, "unhealthy"))
        self.assertEqual(get(gateway, "/healthz").status, 200)
        self.assertFalse(get(gateway, "/v1/providers").json()["data"][0]["active"])
        self.assertEqual(post(gateway).status, 502)

    def test_models_satisfy_both_families(self):
        gateway = self.start()
        answer = get(gateway, "/v1/models").json()
        self.assertEqual(answer["object"], "list")
        self.assertEqual([model["id"] for model in answer["data"]], ["m-1", "a/b"])
        self.assertEqual(set(answer["data"][0]), {
            "id", "object", "type", "owned_by", "provider", "created", "created_at",
            "display_name"})
        self.assertEqual((answer["has_more"], answer["first_id"], answer["last_id"]),
                         (False, "m-1", "a/b"))
        self.assertEqual(get(gateway, "/v1/models/claude").json(), answer)
        self.assertEqual(get(gateway, "/v1/models?limit=1").json()["has_more"], True)

    def test_one_model(self):
        gateway = self.start()
        self.assertEqual(get(gateway, "/v1/models/a%2Fb").json()["id"], "a/b")
        missing = get(gateway, "/v1/models/none")
        self.assertEqual((missing.status, missing.json()["error"]["type"]),
                         (404, "not_found_error"))

    def test_providers(self):
        gateway = self.start()
        self.assertEqual(get(gateway, "/v1/providers").json(), {"object": "list", "data": [{
            "name": "anthropic", "type": "anthropic", "base_url": self.upstream.url,
            "models": ["m-1", "a/b"], "active": True}]})

    def test_telemetry_stays_here(self):
        gateway = self.start()
        for path in ("/api/event_logging/batch", "/v1/api/event_logging/v2/batch"):
            self.assertEqual(post(gateway, path, b'{"events":[]}').status, 200)
        self.assertEqual(self.upstream.requests, [])

    def test_telemetry_forwarded_where_wanted(self):
        gateway = self.start(telemetry="forward")
        post(gateway, "/api/event_logging/batch", b'{"events":[]}')
        self.assertEqual(self.upstream.wait_requests(1)[0].target, "/api/event_logging/batch")

    def test_unknown_path_and_wrong_method(self):
        gateway = self.start()
        missing = get(gateway, "/nothing")
        self.assertEqual((missing.status, missing.json()["error"]["type"]),
                         (404, "not_found_error"))
        wrong = get(gateway, "/v1/messages")
        self.assertEqual((wrong.status, wrong.header("allow")), (405, "OPTIONS, POST"))
        self.assertEqual(wrong.header("x-should-retry"), "false")
        self.assertEqual(post(gateway, "/healthz").header("allow"), "GET, HEAD, OPTIONS")

    def test_ids_of_answers(self):
        gateway = self.start()
        given = get(gateway, "/healthz", [("X-Request-ID", "my-id-1")])
        self.assertEqual((given.header("x-request-id"), given.header("request-id")),
                         ("my-id-1", "my-id-1"))
        for odd in ("two words", "x" * 129, "caf\xe9"):
            answer = get(gateway, "/nothing", [("X-Request-ID", odd)])
            self.assertRegex(answer.header("x-request-id"), r"^req_[0-9a-f]{24}$")
            self.assertEqual(answer.json()["request_id"], answer.header("request-id"))


class AuthTest(unittest.TestCase):

    OPEN_PATHS = ("/healthz", "/health", "/", "/api/hello", "/v1/models", "/v1/models/claude",
                  "/v1/providers", "/v1/models/claude-opus-5-5")

    def test_every_form_of_a_key(self):
        table = [
            ("x-api-key", CLIENT_KEY, 200),
            ("Authorization", "Bearer " + CLIENT_KEY, 200),
            ("authorization", "bEaReR " + CLIENT_KEY, 200),
            ("Authorization", CLIENT_KEY, 200),
            ("x-goog-api-key", CLIENT_KEY, 200),
            ("Authorization", "Basic " + CLIENT_KEY, 401),
            ("x-api-key", CLIENT_KEY + "x", 401),
            ("x-api-key", CLIENT_KEY[:-1], 401),
            ("x-api-key", "", 401),
            ("x-api-key", "caf\xe9", 401),
        ]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                for name, value, status in table:
                    with self.subTest(name, value=value):
                        self.assertEqual(post(gateway, headers=[(name, value)]).status, status)
                in_query = post(gateway, "/v1/messages?key=%s&api_key=%s"
                                % (CLIENT_KEY, CLIENT_KEY))
                self.assertEqual(in_query.status, 401)
            for request in upstream.requests:
                self.assertNotIn(CLIENT_KEY.encode(), request.raw_head)

    def test_any_matching_header_is_enough(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                answer = post(gateway, headers=[("Authorization", "Bearer other"),
                                                ("x-api-key", CLIENT_KEY)])
            self.assertEqual(answer.status, 200)
            request = upstream.requests[0]
            self.assertEqual(request.all("x-api-key"), [ACCOUNT_KEY + "-work"])
            self.assertEqual(request.all("authorization"), [])

    def test_words_of_the_refusal(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                missing, wrong = post(gateway), post(gateway, headers=[("x-api-key", "no")])
        for answer, words in ((missing, "missing x-api-key header"), (wrong, "invalid x-api-key")):
            self.assertEqual(answer.status, 401)
            self.assertEqual(answer.json()["error"],
                             {"type": "authentication_error", "message": words})
            self.assertTrue(answer.header("www-authenticate").startswith("Bearer"))
            self.assertEqual(answer.header("x-should-retry"), "false")

    def test_modes(self):
        table = [
            ("off", self.OPEN_PATHS, 200, 200, 404),
            ("auto", self.OPEN_PATHS, 200, 401, 401),
            ("all_except_health", self.OPEN_PATHS, 200, 401, 401),
            ("strict", self.OPEN_PATHS, 401, 401, 401),
        ]
        for mode, paths, open_status, message_status, unknown_status in table:
            with support.ScriptedUpstream() as upstream, running_gateway(
                    provider(upstream, models=["claude-opus-5-5"]),
                    auth=dict(KEYED, mode=mode)) as gateway:
                for path in paths:
                    with self.subTest(mode, path=path):
                        self.assertEqual(get(gateway, path).status, open_status)
                with self.subTest(mode):
                    self.assertEqual(post(gateway).status, message_status)
                    self.assertEqual(get(gateway, "/unknown").status, unknown_status)

    def test_a_mode_that_needs_keys_without_any_refuses_all(self):
        for mode in ("all_except_health", "strict"):
            with support.ScriptedUpstream() as upstream:
                with running_gateway(provider(upstream), auth={"mode": mode}) as gateway:
                    self.assertEqual(post(gateway, headers=[("x-api-key", "any")]).status, 401)
                self.assertEqual(upstream.requests, [])

    def test_requests_per_minute_of_a_key(self):
        key = {"name": "slow", "key": CLIENT_KEY, "requests_per_minute": 2}
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth={"api_keys": [key]}) as gateway:
                answers = [post(gateway, headers=[("x-api-key", CLIENT_KEY)]) for _ in range(3)]
        self.assertEqual([answer.status for answer in answers], [200, 200, 429])
        self.assertEqual(answers[2].json()["error"]["type"], "rate_limit_error")
        self.assertTrue(1 <= int(answers[2].header("retry-after")) <= 60)


class TransparentTest(unittest.TestCase):
    """A provider without accounts: the client's own credential goes upstream."""

    def test_own_credential_goes_up_unchanged(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, ())) as gateway:
                answer = post(gateway, headers=[("Authorization", "Bearer own"),
                                                ("x-api-key", "own-2")])
            request = upstream.requests[0]
        self.assertEqual(answer.status, 200)
        self.assertEqual(request.header("authorization"), "Bearer own")
        self.assertEqual(request.header("x-api-key"), "own-2")

    def test_gateway_key_is_taken_out(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, ()), auth=KEYED) as gateway:
                post(gateway, headers=[("Authorization", "Bearer own"), ("x-api-key", CLIENT_KEY)])
                alone = post(gateway, headers=[("x-api-key", CLIENT_KEY)])
            self.assertEqual(len(upstream.requests), 1)
            request = upstream.requests[0]
        self.assertEqual((request.all("authorization"), request.all("x-api-key")),
                         (["Bearer own"], []))
        self.assertEqual(alone.status, 401)
        self.assertIn("no credential of its own", alone.json()["error"]["message"])

    def test_upstream_401_is_passed_on_as_it_is(self):
        body = support.error_body("authentication_error", "invalid x-api-key")
        answer = support.json_response(body, status=401)
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(provider(upstream, ())) as gateway:
                told = post(gateway, headers=[("x-api-key", "own")])
        self.assertEqual((told.status, told.json()), (401, body))


class HeaderTest(unittest.TestCase):

    def test_up(self):
        sent = [
            ("Accept", "application/json"), JSON_TYPE, ("User-Agent", "claude-cli/2 (x)"),
            ("X-Stainless-Lang", "js"), ("anthropic-beta", "a-1,b-2"),
            ("anthropic-version", "2026-10-21"), ("x-api-key", CLIENT_KEY), ("X-App", "cli"),
            ("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Cookie", "c=1"),
            ("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=x"), ("Proxy-Thing", "y"),
            ("Referer", "http://x/"), ("TE", "trailers"), ("Accept-Encoding", "gzip, br"),
        ]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED) as gateway:
                support.exchange(gateway.port, "POST", "/v1/messages?beta=true", sent, MESSAGE)
            request = upstream.requests[0]
        self.assertEqual(request.target, "/v1/messages?beta=true")
        self.assertEqual(request.body, MESSAGE)
        self.assertEqual(request.headers, [
            ("Host", "127.0.0.1:%d" % upstream.port),
            ("Accept", "application/json"), JSON_TYPE, ("User-Agent", "claude-cli/2 (x)"),
            ("X-Stainless-Lang", "js"), ("anthropic-beta", "a-1,b-2"),
            ("anthropic-version", "2026-10-21"), ("x-api-key", ACCOUNT_KEY + "-work"),
            ("X-App", "cli"), ("Accept-Encoding", "identity"),
            ("Content-Length", str(len(MESSAGE)))])

    def test_down(self):
        headers = [("request-id", "req_up"), ("retry-after", "7"), ("x-twice", "1"),
                   ("x-twice", "2"), ("set-cookie", "a=b"), ("connection", "keep-alive, x-hop"),
                   ("x-hop", "1"), ("anthropic-ratelimit-requests-remaining", "9"),
                   ("x-account-email", "someone@else.example")]
        answer = support.json_response(headers=headers)
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                told = post(gateway, headers=[("X-Request-ID", "mine")])
        self.assertEqual(told.header("request-id"), "req_up")
        self.assertEqual(told.header("x-request-id"), "mine")
        self.assertEqual((told.header("retry-after"), told.all("x-twice")), ("7", ["1", "2"]))
        self.assertEqual(told.header("anthropic-ratelimit-requests-remaining"), "9")
        self.assertEqual((told.all("set-cookie"), told.all("x-hop")), ([], []))
        self.assertEqual(told.all("x-account-email"), ["work"])
        self.assertEqual((told.header("x-gateway-provider"), told.header("x-gateway-attempts"),
                          told.header("x-mapped-model")), ("anthropic", "1", "claude-opus-5-5"))

    def test_credential_forms(self):
        table = [
            ({"api_key": "k"}, {}, [("x-api-key", "k")]),
            ({"api_key": "k"}, {"credential_header": "authorization"},
             [("authorization", "Bearer k")]),
            ({"auth_token": "t"}, {}, [("authorization", "Bearer t")]),
        ]
        for account, settings, expected in table:
            with self.subTest(str(account)), support.ScriptedUpstream() as upstream:
                chosen = dict(provider(upstream, **settings), accounts=[dict(account, name="a")])
                with running_gateway(chosen) as gateway:
                    post(gateway, headers=[("x-goog-api-key", "x"), ("x-api-key", "y")])
                request = upstream.requests[0]
                found = [(name.lower(), value) for name, value in request.headers
                         if name.lower() in gw.CREDENTIAL_HEADERS]
                self.assertEqual(found, expected)

    def test_betas_and_extra_headers_of_a_provider(self):
        settings = {"betas": {"add": ["claude-code-defaults"], "drop": ["drop-*"]},
                    "headers": {"X-Extra": "1", "user-agent": "mine"}}
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, **settings)) as gateway:
                post(gateway, headers=[("anthropic-beta", "test, drop-me"), ("User-Agent", "theirs")])
            request = upstream.requests[0]
        self.assertEqual(request.all("anthropic-beta"), [gw.CLAUDE_CODE_BETAS + ",test"])
        self.assertEqual((request.all("x-extra"), request.all("user-agent")), (["1"], ["mine"]))
        self.assertEqual(request.all("anthropic-version"), ["2023-06-01"])


class BadRequestTest(unittest.TestCase):

    def test_clear_errors_and_nothing_goes_upstream(self):
        table = [
            (b"{", "invalid JSON"), (b"", "invalid JSON"), (b"[]", "not a JSON object"),
            (b"\xff\xfe{}", "not UTF-8"), (b"{}", "Missing required field: model"),
            (b'{"model":"m"}', "Missing required field: messages"),
            (b'{"messages":[{}]}', "Missing required field: model"),
            (b'{"model":"","messages":[{}]}', "model: "),
            (b'{"model":"m","messages":{}}', "messages: "),
            (b'{"model":"m","messages":[]}', "messages: "),
            (b'{"model":"m","messages":[1]}', "messages.0: "),
            (b'{"model":"m","model":"n","messages":[{}]}', "stands twice"),
            (b'{"model":"m","messages":[{}],"x":NaN}', "NaN is not JSON"),
            (b'{"model":"m","messages":[{}],"x":' + b"9" * 4301 + b"}", "4300 digits"),
            (b'{"model":"m","messages":' + b"[" * 100000 + b"]" * 100000 + b"}", "nested too deeply"),
        ]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for body, words in table:
                    with self.subTest(body[:60]):
                        answer = post(gateway, body=body)
                        self.assertEqual((answer.status, answer.json()["error"]["type"]),
                                         (400, "invalid_request_error"))
                        self.assertIn(words, answer.json()["error"]["message"])
                        self.assertEqual(answer.header("x-should-retry"), "false")
                self.assertEqual(post(gateway).status, 200)
            self.assertEqual(len(upstream.requests), 1)

    def test_odd_but_possible_bodies_pass_byte_for_byte(self):
        bodies = [
            b' {"model" : "m",\r\n"messages":[{"role":"system","content":[]}],"x":1.50,"y":1e2 } ',
            b'{"messages":[{"a":"\\ud800"}],"model":"m","n":123456789012345678901234567890}',
            '{"model":"m\u00e9","messages":[{"content":"\u4f60\\u4f60\u2028"}]}'.encode("utf-8"),
        ]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for body in bodies:
                    self.assertEqual(post(gateway, body=body).status, 200, body)
            self.assertEqual([request.body for request in upstream.requests], bodies)


class ModelTest(unittest.TestCase):

    def test_mapped_model_is_spliced_in(self):
        body = b'{ "messages" : [{"n":1.50}], "model" :"claude-opus-5-5" , "z":"\\u00e9"}'
        settings = {"model_map": {"claude-opus-*": "GLM-4.7"}}
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, **settings)) as gateway:
                answer = post(gateway, body=body)
            sent = upstream.requests[0].body
        self.assertEqual(sent, body.replace(b'"claude-opus-5-5"', b'"GLM-4.7"'))
        self.assertEqual(answer.header("x-mapped-model"), "GLM-4.7")

    def test_route_by_model(self):
        with support.ScriptedUpstream() as first, support.ScriptedUpstream() as second:
            providers = [provider(first), provider(second, name="zai", models=["GLM-4.7"])]
            with running_gateway(*providers, routing={"models": {"glm-*": "zai"}}) as gateway:
                for model in ("glm-9", "GLM-4.7", "claude-opus-5-5"):
                    post(gateway, body=MESSAGE.replace(b"claude-opus-5-5", model.encode()))
            self.assertEqual((len(first.requests), len(second.requests)), (1, 2))


class PassageTest(unittest.TestCase):
    """Other /v1 paths go to the first provider as they are."""

    def test_any_method_and_body(self):
        table = [("GET", "/v1/files?limit=3", b""), ("DELETE", "/v1/files/f_1", b""),
                 ("POST", "/v1/files", b"--x\r\nnot json \xff"), ("PUT", "/v1/things/1", b"z"),
                 ("POST", "/v1/messages/batches/b_1/cancel", b"")]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for method, path, body in table:
                    self.assertEqual(
                        support.exchange(gateway.port, method, path, [], body).status, 200)
            seen = [(request.method, request.target, request.body)
                    for request in upstream.requests]
            self.assertEqual(seen, table)
            self.assertIsNone(upstream.requests[0].header("content-length"))
            self.assertEqual(upstream.requests[4].header("content-length"), "0")

    def test_large_answer_comes_as_it_is(self):
        data = bytes(range(256)) * 40000
        answer = support.json_response(data, headers=[("content-type", "application/x-jsonl")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                told = get(gateway, "/v1/messages/batches/b/results")
        self.assertEqual((told.body, told.complete), (data, True))
        self.assertEqual(told.header("content-length"), str(len(data)))

    def test_cut_answer_never_looks_whole(self):
        table = {
            "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        }
        for name, data in table.items():
            def script(connection):
                connection.read_request()
                connection.send(data)

            with self.subTest(name), support.ScriptedUpstream(script) as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    told = get(gateway, "/v1/files/f/content")
                    self.assertFalse(told.complete)
                    self.assertEqual(only_record(gateway)["ended"], "upstream_broke")

    def test_head(self):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                told = get(gateway, "/v1/files/f", method="HEAD")
        self.assertEqual((told.status, told.header("content-length"), told.body), (200, "77", b""))


class StreamTest(unittest.TestCase):

    def test_bytes_and_chunks_are_the_upstreams(self):
        events = support.stream_events("Hello \u4f60 world")
        with support.ScriptedUpstream(
                respond=lambda request: support.stream_response(events)) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                told = post(gateway, body=STREAM_MESSAGE)
                record = only_record(gateway)
        self.assertEqual((told.status, told.complete, told.body), (200, True, b"".join(events)))
        self.assertEqual(told.header("transfer-encoding"), "chunked")
        self.assertEqual(told.header("cache-control"), "no-cache, no-transform")
        self.assertEqual(told.header("x-accel-buffering"), "no")
        self.assertEqual((record["input_tokens"], record["output_tokens"], record["stop_reason"],
                          record["ended"]), (10, 3, "end_turn", "complete"))

    def test_first_content_arrives_while_the_next_event_is_held_back(self):
        gate, events = support.Gate(), support.stream_events()
        events[:2] = [events[0] + events[1]]  # message_start waits for the first content

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(events[0]))
            gate.wait("the client to have the first event")
            connection.send(b"".join(map(support.chunk, events[1:])) + support.LAST_CHUNK)
            connection.serve()

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    head = client.read_head()
                    self.assertEqual((head.status, client.read_chunk()), (200, events[0]))
                    gate.open()
                    rest = b"".join(iter(client.read_chunk, b""))
        self.assertEqual(rest, b"".join(events[1:]))

    def test_one_write_per_upstream_read(self):
        """Each piece that the upstream sends is one chunk downstream, however it is cut."""
        events = support.stream_events()
        data = b"".join(events[2:])
        pieces = [events[0] + events[1]]
        pieces += [data[at:at + 50] for at in range(0, len(data), 50)]
        gates = [support.Gate() for _ in pieces]

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD)
            for piece, gate in zip(pieces, gates):
                connection.send(support.chunk(piece))
                gate.wait("the client to have the piece before")
            connection.send(support.LAST_CHUNK)
            connection.serve()

        # Without an account: the mask of its key may hold back a last character
        # that the key begins with.
        own = [JSON_TYPE, ("x-api-key", "own")]
        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream, ())) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", own, STREAM_MESSAGE)
                    client.read_head()
                    for piece, gate in zip(pieces, gates):
                        self.assertEqual(client.read_chunk(), piece)
                        gate.open()
                    self.assertEqual(client.read_chunk(), b"")

    def test_to_http_1_0_without_chunks(self):
        events = support.stream_events()
        with support.ScriptedUpstream(
                respond=lambda request: support.stream_response(events)) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.send(b"POST /v1/messages HTTP/1.0\r\nHost: localhost\r\n"
                                b"Content-Length: %d\r\n\r\n"
                                % len(STREAM_MESSAGE) + STREAM_MESSAGE)
                    told = client.read_response()
        self.assertIsNone(told.header("transfer-encoding"))
        self.assertEqual((told.body, told.complete, told.header("connection")),
                         (b"".join(events), True, "close"))

    def test_client_that_leaves_ends_a_silent_upstream_call(self):
        closed = []

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"".join(
                support.stream_events()[:2])))
            closed.append(connection.wait_closed("the gateway to close the call"))

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                client = support.RawClient(gateway.port)
                client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                client.read_head()
                client.read_chunk()
                client.close()
                support.eventually(lambda: closed, "the upstream to be told")
                support.eventually(lambda: gateway.status()["leases"] == 0, "the lease to return")
                self.assertEqual(only_record(gateway)["ended"], "client_left")

    def test_client_that_leaves_before_the_head(self):
        closed = []

        def script(connection):
            connection.read_request()
            closed.append(connection.wait_closed("the gateway to close the call"))

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                client = support.RawClient(gateway.port)
                client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                upstream.wait_requests(1)
                client.close()
                support.eventually(lambda: closed, "the upstream to be told")
                record = only_record(gateway)
                self.assertEqual(record["ended"], "client_left")
                self.assertEqual(record["attempts"][0]["outcome"], "client_left")
                self.assertEqual(gateway.status()["leases"], 0)


class LateBytesTest(unittest.TestCase):
    """Bytes behind the request must not hide that the client has left."""

    @shim.needs("POLLRDHUP")
    @unittest.skipUnless(hasattr(select, "POLLRDHUP"), "only Linux tells (POLLRDHUP), and PyPy has no name for it")
    def test_leaving_behind_stray_bytes_is_seen(self):
        for how in ("close", "reset"):
            closed = []

            def script(connection):
                connection.read_request()
                closed.append(connection.wait_closed("the gateway to close the call"))

            with self.subTest(how), support.ScriptedUpstream(script) as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    client = support.RawClient(gateway.port)
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    upstream.wait_requests(1)
                    client.send(b"\r\n")
                    threading.Event().wait(0.05)  # so that the stray bytes are seen first
                    getattr(client, how)()
                    support.eventually(lambda: closed, "the upstream to be told")


class CutStreamTest(unittest.TestCase):
    """The upstream breaks after every byte of a short stream."""

    def setUp(self):
        events = support.stream_events("Hi")
        self.body = b"".join(events)
        self.content = len(events[0] + events[1])
        self.stop = self.body.index(b"event: message_stop")
        upstream = self.enter(support.ScriptedUpstream(*[self.script] * 1000))
        self.gateway = self.enter(running_gateway(provider(upstream), retry=ONE_CALL))
        self.asked = 0

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def script(self, connection):
        if connection.read_request(seconds=None) is None:
            return
        at, how = self.cut
        body = self.body[:at]
        connection.send(support.SSE_HEAD + (support.chunk(body) if body else b""))
        if how == "clean":
            connection.send(support.LAST_CHUNK)
        elif how == "reset":
            connection.reset()

    def cut_answer(self, at, how):
        """What a client gets when the upstream breaks after byte ``at`` of the body."""
        self.cut, self.asked = (at, how), self.asked + 1
        told = post(self.gateway, body=STREAM_MESSAGE)
        support.eventually(lambda: self.gateway.status()["leases"] == 0, "the lease")
        self.assertEqual(self.gateway.status()["upstream_active"], 0)
        support.eventually(lambda: self.gateway._engine.records.numbered(1)[0] >= self.asked,
                           "the record")
        (record,) = self.gateway.records(1)
        self.assertEqual((record["id"], self.gateway._engine.records.numbered(1)[0]),
                         (told.header("x-request-id"), self.asked))
        # The next time as if nothing had happened before.
        for state in self.gateway._engine.accounts._states.values():
            state.__init__()
        return told, record

    def test_before_content_it_is_a_plain_error(self):
        for at in range(0, self.content):
            how = ("close", "clean", "reset")[at % 3]
            with self.subTest(at=at, how=how):
                told, record = self.cut_answer(at, how)
                self.assertEqual((told.status, told.json()["error"]["type"]), (502, "api_error"))
                self.assertEqual(record["attempts"][0]["case"], "failing")

    def test_ends_in_one_error_event_wherever_it_is_cut(self):
        ways = ("close", "clean", "reset")
        for at in range(self.content, self.stop):
            how = ways[at % 3]
            with self.subTest(at=at, how=how):
                told, record = self.cut_answer(at, how)
                self.assertEqual((told.status, told.complete), (200, True))
                self.assertEqual(record["ended"], "upstream_broke")
                self.check_events(told, at)

    def check_events(self, told, at):
        whole = [event for event in gw.SseDecoder().feed(self.body[:at])]
        events = events_of(told)
        self.assertEqual([event.type for event in events].count("error"), 1)
        self.assertEqual(events[-1].type, "error")
        error = json.loads(events[-1].data.decode())
        self.assertEqual((error["type"], error["error"]["type"]), ("error", "api_error"))
        # Between what was whole and the error at most the half event, as a ping.
        self.assertEqual(events[:len(whole)], whole)
        self.assertIn([event.type for event in events[len(whole):-1]], ([], ["ping"]))
        self.assertNotIn("message_stop", [event.type for event in events])

    def test_complete_message_is_complete_however_the_connection_ends(self):
        for how in ("close", "clean", "reset"):
            with self.subTest(how):
                told, record = self.cut_answer(len(self.body), how)
                self.assertEqual((told.body, told.complete), (self.body, True))
                self.assertEqual(record["ended"], "complete")

    def test_silence_ends_in_a_timeout_error_event(self):
        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(self.body[:self.content]))
            connection.wait_closed("the gateway to give up")

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream), timeouts={"idle_seconds": 0.1}) as gateway:
                told = post(gateway, body=STREAM_MESSAGE)
        self.assertEqual(json.loads(events_of(told)[-1].data.decode())["error"]["type"],
                         "timeout_error")

    def test_length_told_for_a_stream_is_not_believed(self):
        """An error event behind it would be taken for the next answer."""
        for told_length in (len(self.body[:self.content]), 1000):
            def script(connection):
                connection.read_request()
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                                b"Content-Length: %d\r\n\r\n" % told_length + self.body[:self.content])

            with support.ScriptedUpstream(script) as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    with support.RawClient(gateway.port) as client:
                        client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                        told = client.read_response()
                        client.request("GET", "/healthz")
                        self.assertEqual(client.read_response().json(), {"status": "ok"})
            self.assertIsNone(told.header("content-length"))
            self.assertEqual(events_of(told)[-1].type, "error")

    def test_nothing_is_added_to_what_is_no_stream_of_ours(self):
        coded = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" \
                b"Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n"
        table = {
            "error status": support.json_response({"e": 1}, status=400, headers=[
                ("content-type", "text/event-stream")]),
            "unknown coding": coded + support.chunk(b"\x01\x02") + support.LAST_CHUNK,
        }
        for name, answer in table.items():
            with self.subTest(name):
                with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
                    with running_gateway(provider(upstream)) as gateway:
                        self.assertNotIn(b"event: error", post(gateway, body=STREAM_MESSAGE).body)

    def test_error_event_of_the_upstream_is_the_end(self):
        """It is passed on as it is, and nothing is added to it."""
        body = self.body[:self.content] + support.sse_event(
            dict(support.error_body("overloaded_error", "busy"), type="error"))
        answer = support.stream_response([body])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                told = post(gateway, body=STREAM_MESSAGE)
        self.assertEqual(told.body, body)


class CutJsonTest(unittest.TestCase):

    def test_cut_answer_is_an_error_after_every_byte(self):
        answer = support.json_response(support.message("Hi"))
        head_end = answer.index(b"\r\n\r\n") + 4
        for at in list(range(0, head_end, 7)) + list(range(head_end, len(answer), 11)):
            def script(connection):
                connection.read_request()
                if at:
                    connection.send(answer[:at])

            with self.subTest(at=at), support.ScriptedUpstream(script) as upstream:
                with running_gateway(provider(upstream), retry=ONE_CALL) as gateway:
                    told = post(gateway)
                    self.assertEqual(gateway.status()["leases"], 0)
                self.assertEqual((told.status, told.json()["error"]["type"]), (502, "api_error"))

    def test_200_that_is_no_message(self):
        table = {
            "html": support.json_response(b"<html>", headers=[("content-type", "text/html")]),
            "empty": support.json_response(b""),
            "list": support.json_response(b"[]"),
            "cut JSON until close": b"HTTP/1.0 200 OK\r\n\r\n{\"type\":\"mess",
            "204": b"HTTP/1.1 204 No Content\r\n\r\n",
            "202": support.json_response(b"<html>", status=202),
        }
        for name, answer in table.items():
            with self.subTest(name):
                with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
                    with running_gateway(provider(upstream)) as gateway, quick_backoff():
                        self.assertEqual(post(gateway).status, 502)


class RotationTest(unittest.TestCase):
    """Several accounts, tried in order."""

    def accounts_used(self, upstream):
        return [request.header("x-api-key")[len(ACCOUNT_KEY) + 1:] for request in upstream.requests]

    def served(self, *faults, accounts=("a", "b", "c"), **settings):
        """The answer, and the accounts asked, where the first calls meet these faults."""
        remaining = list(faults)

        def script(connection):
            request = connection.read_request()
            while request is not None:
                fault = remaining.pop(0) if remaining else None
                if fault == "close":
                    return
                if fault == "reset":
                    connection.reset()
                    return
                connection.send(fault(request) if fault else support.json_response())
                request = connection.read_request()

        with support.ScriptedUpstream(*[script] * 4) as upstream:
            with running_gateway(provider(upstream, accounts), **settings) as gateway:
                told = post(gateway)
                return told, self.accounts_used(upstream), only_record(gateway)

    def test_next_account_when_one_fails_before_any_byte(self):
        faults = {
            "close": "close", "reset": "reset", "429": failing(429), "500": failing(500),
            "529": failing(529), "401": failing(401), "403": failing(403),
            "html": lambda request: support.json_response(b"<html>"),
        }
        for name, fault in faults.items():
            with self.subTest(name):
                told, used, record = self.served(fault)
                self.assertEqual((told.status, used), (200, ["a", "b"]))
                self.assertEqual(told.header("x-account-email"), "b")
                self.assertEqual(told.header("x-gateway-attempts"), "2")
                self.assertEqual([attempt["account"] for attempt in record["attempts"]], ["a", "b"])

    def test_other_4xx_are_passed_on_unmodified(self):
        for status in (400, 404, 413, 422):
            with self.subTest(status):
                told, used, _ = self.served(failing(status))
                self.assertEqual((told.status, used), (status, ["a"]))
                self.assertEqual(told.json(), support.error_body("api_error", "status %d" % status))

    def test_never_more_than_max_attempts(self):
        told, used, _ = self.served(*[failing(529)] * 5, accounts=("a", "b", "c", "d"))
        self.assertEqual((told.status, used), (529, ["a", "b", "c"]))
        told, used, _ = self.served(*[failing(529)] * 5, retry={"max_attempts": 1})
        self.assertEqual((told.status, used), (529, ["a"]))

    def test_best_answer_when_all_fail(self):
        table = [
            ([failing(529), failing(429), failing(500)], 429),
            (["close", failing(529), failing(500)], 500),
            ([failing(401), failing(529), failing(403)], 529),
            (["close", "close", "close"], 502),
            ([failing(401), failing(403), failing(401)], 502),
        ]
        for index, (faults, status) in enumerate(table):
            with self.subTest(index):
                told, _, _ = self.served(*faults)
                self.assertEqual(told.status, status)
                self.assertEqual(told.header("x-gateway-attempts"), "3")

    def test_refused_accounts_are_named(self):
        told, _, _ = self.served(failing(401), accounts=("team",))
        self.assertEqual((told.status, told.json()["error"]["type"]), (502, "api_error"))
        self.assertIn("anthropic/team", told.json()["error"]["message"])
        self.assertEqual(told.header("x-should-retry"), "false")

    def test_upstream_that_says_no_retry_ends_the_attempts(self):
        told, used, _ = self.served(failing(529, x_should_retry="false"))
        self.assertEqual((told.status, used), (529, ["a"]))

    def test_request_that_must_not_be_done_twice_is_not(self):
        """A batch that was perhaps created is not created again on the next account."""
        for fault, status, used in (("close", 502, ["a"]), (failing(500), 500, ["a"]),
                                    (failing(429), 200, ["a", "b"]),
                                    (failing(401), 200, ["a", "b"])):
            with self.subTest(str(fault)), self.faulty_upstream(fault) as upstream:
                with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                    told = post(gateway, "/v1/messages/batches", b"{}")
                self.assertEqual((told.status, self.accounts_used(upstream)), (status, used))

    def faulty_upstream(self, fault):
        def script(connection):
            request = connection.read_request()
            if fault != "close":
                connection.send(fault(request))
                connection.serve()

        return support.ScriptedUpstream(script)

    def test_closed_later_than_a_stale_one_would_be_is_not_sent_again(self):
        """A pooled connection that took the request and then closed: it may have been billed."""
        saved, gw.STALE_SECONDS = gw.STALE_SECONDS, 0.0
        self.addCleanup(setattr, gw, "STALE_SECONDS", saved)

        def script(connection):
            connection.read_request()
            connection.send(support.json_response())
            connection.read_request()

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream), retry=ONE_CALL) as gateway:
                self.assertEqual([post(gateway).status for _ in range(2)], [200, 502])
            self.assertEqual(len(upstream.requests), 2)

    def test_one_resend_a_request_however_many_stale_connections(self):
        def script(connection):
            connection.read_request()
            connection.send(support.json_response())
            if connection.read_request() is not None:
                connection.reset()

        with support.ScriptedUpstream(*[script] * 3, respond=failing(529)) as upstream:
            with running_gateway(provider(upstream, ("a", "b", "c"))) as gateway:
                gate = threading.Barrier(3)
                warm = [threading.Thread(target=lambda: (gate.wait(10), post(gateway)))
                        for _ in range(3)]
                for thread in warm:
                    thread.start()
                for thread in warm:
                    thread.join(support.WAIT_SECONDS)
                before = len(upstream.requests)
                self.assertEqual(post(gateway).status, 529)
                self.assertLessEqual(len(upstream.requests) - before, 4)

    def test_error_body_that_never_ends_does_not_hold_up_the_next_account(self):
        saved, gw.ERROR_BODY_SECONDS = gw.ERROR_BODY_SECONDS, 0.1
        self.addCleanup(setattr, gw, "ERROR_BODY_SECONDS", saved)

        def silent(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 429 Slow down\r\nRetry-After: 7\r\n"
                            b"Content-Length: 99\r\n\r\n{")
            connection.wait_closed("the gateway to give up")

        with support.ScriptedUpstream(silent) as upstream:
            with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                self.assertEqual(post(gateway).status, 200)
        with support.ScriptedUpstream(silent) as upstream:
            with running_gateway(provider(upstream, ("a",)), retry=ONE_CALL) as gateway:
                told = post(gateway)
        self.assertEqual((told.status, told.header("retry-after"), told.json()["error"]["type"]),
                         (429, "7", "rate_limit_error"))

    def test_redirect_goes_to_nobody(self):
        moved = support.json_response({}, status=307, headers=[("location", "http://evil.example")])
        with support.ScriptedUpstream(respond=lambda request: moved) as upstream:
            with running_gateway(provider(upstream)) as gateway, quick_backoff():
                for told in (post(gateway), get(gateway, "/v1/files")):
                    self.assertEqual((told.status, told.all("location")), (502, []))

    def test_upstream_that_is_down(self):
        upstream = support.ScriptedUpstream.absent()
        with running_gateway(provider(upstream)) as gateway, quick_backoff():
            told = post(gateway)
            self.assertEqual(told.status, 502)
            self.assertIn("upstream connection failed: connection refused",
                          told.json()["error"]["message"])
            self.assertEqual(told.json()["request_id"], told.header("x-request-id"))
            self.assertEqual(get(gateway, "/healthz").status, 200)

    def test_no_head_in_time_is_a_504(self):
        def silent(connection):
            connection.read_request()
            connection.wait_closed("the gateway to give up")

        with support.ScriptedUpstream(silent) as upstream:
            with running_gateway(provider(upstream),
                                 timeouts={"first_byte_seconds": 0.1}) as gateway:
                told = post(gateway)
        self.assertEqual((told.status, told.json()["error"]["type"]), (504, "timeout_error"))

    def test_next_provider_after_the_accounts_of_the_first(self):
        with support.ScriptedUpstream(respond=failing(503)) as first:
            with support.ScriptedUpstream() as second:
                providers = [provider(first, ("a", "b")), provider(second, ("z",), name="other")]
                with running_gateway(*providers) as gateway:
                    told = post(gateway, body=MESSAGE.replace(b"claude-opus-5-5", b"unlisted"))
        self.assertEqual((told.status, told.header("x-gateway-provider")), (200, "other"))
        self.assertEqual(self.accounts_used(first), ["a", "b"])


class SecretTest(unittest.TestCase):

    def test_account_key_quoted_by_an_upstream_is_cut_out(self):
        def quotes(request):
            key = request.header("x-api-key")
            body = support.error_body("invalid_request_error", "your key " + key)
            return support.json_response(body, status=400, headers=[("x-echo", key)])

        lines = []
        with support.ScriptedUpstream(respond=quotes) as upstream:
            with running_gateway(provider(upstream), write=lines.append,
                                 log={"level": "debug"}) as gateway:
                told = post(gateway)
        self.assertIn("your key ****", told.json()["error"]["message"])
        self.assertNotIn(ACCOUNT_KEY, str(told.headers) + "".join(lines))

    def test_account_key_is_masked_in_streams_however_it_is_cut(self):
        key = ACCOUNT_KEY + "-work"
        text = b"".join(support.stream_events()[:2]) + (
            b"event: error\ndata: {\"error\": \"" + key.encode() + b" acc\"}\n\n")
        start = len(text) - 100
        for pieces in list(support.every_split(text[start:]))[::7]:
            answer = support.stream_response([text[:start] + pieces[0], *pieces[1:]])
            answer = answer.replace(b"request-id: req", b"x-echo: " + key.encode() + b"\r\nx: y")
            with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    told = post(gateway, body=STREAM_MESSAGE)
            self.assertNotIn(key, told.body.decode() + str(told.headers))
            self.assertEqual(len(told.body), len(text))
            self.assertTrue(told.body.endswith(b'* acc"}\n\n'))

    def test_clean_bytes_pass_at_once_and_unchanged(self):
        mask = gw.KeyMask("sk-ant-" + "x" * 20)
        self.assertEqual(mask.feed(b"risk-an"), b"ri")
        self.assertEqual(mask.feed(b"alysis "), b"sk-analysis ")
        self.assertEqual((mask.feed(b"ask"), mask.close(), mask.close()), (b"a", b"sk", b""))

    def test_short_keys_are_words_and_stay(self):
        """Local servers take any key; "ollama" must not vanish from every answer."""
        accounts = [{"name": "local", "auth_token": "ollama"}]
        answer = support.json_response(support.message("about ollama"))
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with running_gateway(dict(provider(upstream), accounts=accounts)) as gateway:
                self.assertEqual(post(gateway).json()["content"][0]["text"], "about ollama")

    def test_gateway_key_leaves_by_no_other_way(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, ()), auth=KEYED) as gateway:
                post(gateway, "/v1/messages?a=1&key=%s&b=2" % CLIENT_KEY, headers=[
                    ("x-api-key", CLIENT_KEY), ("api-key", CLIENT_KEY),
                    ("x-goog-api-key", "Bearer " + CLIENT_KEY), ("Authorization", "Bearer own")])
            (request,) = upstream.requests
        self.assertNotIn(CLIENT_KEY.encode(), request.raw_head)
        self.assertEqual((request.target, request.header("authorization")),
                         ("/v1/messages?a=1&b=2", "Bearer own"))

    def test_methods_that_would_show_a_key_are_refused(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                self.assertEqual(get(gateway, "/v1/files", method="TRACE").status, 405)
            self.assertEqual(upstream.requests, [])

    def test_client_credential_is_shown_to_one_vendor_alone(self):
        with support.ScriptedUpstream(respond=failing(503)) as first:
            with support.ScriptedUpstream() as second:
                providers = [provider(first, ()), provider(second, (), name="other")]
                with running_gateway(*providers) as gateway, quick_backoff():
                    told = post(gateway, headers=[("x-api-key", "own")],
                                body=MESSAGE.replace(b"claude-opus-5-5", b"unlisted"))
                self.assertEqual((told.status, second.requests), (503, []))


class ParallelTest(unittest.TestCase):

    def test_two_hundred_slow_streams_complete_and_leave_nothing(self):
        count, gate = 200, support.Gate()

        def script(connection):
            request = connection.read_request()
            mark = request.json()["messages"][0]["content"]
            events = support.stream_events("%s and %s" % (mark, mark))
            # Told to close, the gateway keeps no idle connection: the count is exact.
            head = support.SSE_HEAD.replace(b"request-id", b"connection: close\r\nrequest-id")
            connection.send(head + support.chunk(events[0]))
            gate.wait("all streams to be under way")
            connection.send(b"".join(map(support.chunk, events[1:])) + support.LAST_CHUNK)

        texts, faults = {}, []

        def run(index, port):
            try:
                body = STREAM_MESSAGE.replace(b'"hi"', b'"mark-%d"' % index)
                told = support.exchange(port, "POST", "/v1/messages", [JSON_TYPE], body)
                deltas = [json.loads(event.data.decode())["delta"]["text"]
                          for event in events_of(told) if event.type == "content_block_delta"]
                texts[index] = "".join(deltas) if told.complete else None
            except Exception as error:  # told by the assertion below
                faults.append(error)

        with support.ScriptedUpstream(*[script] * count) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                # One answer first: its accept loop runs then, with its descriptors.
                get(gateway, "/healthz")
                support.eventually(lambda: gateway.status()["connections"] == 0, "a quiet start")
                threads_before = threading.active_count()
                descriptors_before = support.count_open_descriptors()
                threads = [threading.Thread(target=run, args=(index, gateway.port))
                           for index in range(count)]
                for thread in threads:
                    thread.start()
                upstream.wait_requests(count)
                self.assertEqual(gateway.status()["requests"], count)
                gate.open()
                for thread in threads:
                    thread.join(support.WAIT_SECONDS)
                support.eventually(lambda: threading.active_count() <= threads_before,
                                   "the threads to end")
                support.eventually(
                    lambda: support.count_open_descriptors() in (None, descriptors_before),
                    "the descriptors to be closed")
                self.assertEqual(gateway.status(), {
                    "connections": 0, "requests": 0, "leases": 0, "upstream_active": 0,
                    "upstream_idle": 0})
        self.assertEqual(faults, [])
        self.assertEqual(texts, {index: "mark-%d and mark-%d" % (index, index)
                                 for index in range(count)})


class GuardTest(unittest.TestCase):

    def test_pages_of_the_browser(self):
        listed = ("Origin", "https://app.example")
        table = [
            ([], 200), ([("Host", "localhost:1")], 200), ([("Host", "[::1]:99")], 200),
            ([("Host", "evil.example")], 403), ([("Host", "127.0.0.1.evil.example")], 403),
            ([("Origin", "https://evil.example")], 403), ([("Origin", "null")], 403),
            ([listed], 200), ([("Sec-Fetch-Site", "cross-site")], 403),
            ([listed, ("Sec-Fetch-Site", "cross-site")], 200), ([("Sec-Fetch-Mode", "cors")], 200),
        ]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), cors_origins=[listed[1]]) as gateway:
                for headers, status in table:
                    with self.subTest(str(headers)):
                        told = post(gateway, headers=headers)
                        self.assertEqual(told.status, status)
                        allowed = [listed[1]] if listed in headers else []
                        self.assertEqual(told.all("access-control-allow-origin"), allowed)

    def test_our_own_page_may_ask(self):
        """No CORS header: a browser needs none for the page's own origin."""
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for name, origin, status in (
                        ("localhost", "localhost", 200), ("127.0.0.1", "127.0.0.1", 200),
                        ("127.0.0.1", "localhost", 403), ("evil.example", "evil.example", 403)):
                    with self.subTest(name, origin=origin):
                        told = post(gateway, headers=[
                            ("Host", "%s:%d" % (name, gateway.port)),
                            ("Origin", "http://%s:%d" % (origin, gateway.port))])
                        self.assertEqual(told.status, status)
                        self.assertEqual(told.all("access-control-allow-origin"), [])
                self.assertEqual(len(upstream.requests), 2)

    def test_links_of_other_sites_lead_to_pages_alone(self):
        led = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"),
               ("Sec-Fetch-Dest", "document")]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                statuses = [get(gateway, path, led).status
                            for path in ("/", "/v1/models", "/v1/files", "/nowhere")]
                self.assertEqual(upstream.requests, [])
        self.assertEqual(statuses, [200, 403, 403, 403])

    def test_preflight(self):
        headers = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")]
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream), auth=KEYED,
                                 cors_origins=["https://app.example"]) as gateway:
                told = get(gateway, "/v1/messages", headers, method="OPTIONS")
                other = get(gateway, "/v1/messages", [
                    ("Origin", "https://x.example"), ("Access-Control-Request-Method", "POST"),
                    ("Access-Control-Request-Private-Network", "true")], method="OPTIONS")
        self.assertEqual((told.status, told.header("access-control-allow-origin")),
                         (204, "https://app.example"))
        self.assertEqual(told.header("access-control-allow-methods"), "POST")
        self.assertEqual(other.status, 403)
        self.assertEqual([name for name, _ in told.headers if "private-network" in name.lower()], [])
        self.assertEqual([name for name, _ in other.headers if name.lower().startswith("access-")], [])


class InternalErrorTest(unittest.TestCase):

    def test_a_fault_of_ours_is_told_without_its_values(self):
        lines = []
        log = gw.Log(lines.append, lambda: 0.0)
        clock = support.FakeClock()
        transport = gw.Transport(clock.monotonic)
        self.addCleanup(transport.close)
        renewal = gw.Renewal(transport.send, transport.pause, clock.monotonic, clock.time, log)
        engine = gw.Engine(gw.Config.from_dict({}), transport, log, clock.monotonic, clock.time,
                           lambda: "req_1", lambda: 0.5, renewal)

        def broken():
            raise RuntimeError("value sk-secret")

        headers = gw.Headers([("Host", "localhost"), ("Content-Length", "5")])
        request = gw.HttpRequest("POST", "/v1/messages", headers, broken)
        told = engine.handle(request)
        told.close()
        self.assertEqual(told.status, 500)
        self.assertIn(b"internal error of the gateway", told.body)
        self.assertIn("RuntimeError at broken", lines[0])
        self.assertNotIn("sk-secret", "".join(lines) + told.body.decode())
        self.assertEqual(len(engine.records.newest(10)), 1)


class BeatTest(unittest.TestCase):

    def test_a_client_beats_while_it_waits_and_no_longer(self):
        """A connection serves others after it: nothing of a request may stay there."""
        clock, beats, sent = support.FakeClock(), [], []

        def send(call):
            beats.append(call.watch.beat())
            clock.advance(beats[0] if len(beats) > 1 else 0.0)
            beats.append(call.watch.beat())
            raise gw.UpstreamUnreached("nobody there")

        def begin(head):
            sent.append(head.status)
            return sent.append

        engine = gw.Engine(
            gw.Config.from_dict({"auth": {"mode": "off"}, "retry": {"max_attempts": 1}, "providers": [
                {"name": "p", "base_url": "http://127.0.0.1:9",
                 "accounts": [{"name": "a", "api_key": ACCOUNT_KEY}]}]}),
            unittest.mock.Mock(send=send), gw.Log(lambda line: None, clock.time),
            clock.monotonic, clock.time, lambda: "req_1", lambda: 0.5, unittest.mock.Mock())
        peer = gw.Watch()
        headers = gw.Headers([("Host", "localhost"), ("Content-Length", "5")])
        for statuses in ([], [200]):
            with self.subTest(statuses=statuses):
                engine.handle(gw.HttpRequest("POST", "/v1/messages", headers,
                                             lambda: STREAM_MESSAGE, peer, begin)).close()
                self.assertEqual((sent, peer.beat), (statuses, None))
        settings = engine.config.stream
        self.assertEqual(beats, [settings.hold_seconds, settings.hold_seconds,
                                 settings.hold_seconds, settings.ping_seconds])


if __name__ == "__main__":
    unittest.main()
