"""Contract section 11 over real sockets: the OpenAI door on the engine that both doors share."""

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
from tests.running import ACCOUNT_KEY
from tests.running import CLIENT_KEY
from tests.running import JSON_TYPE
from tests.running import provider
from tests.running import quick_backoff
from tests.running import running_gateway

PATH = "/v1/chat/completions"
MODEL = "claude-opus-5-5"
OLD = "claude-haiku-4-5"
USER = [{"role": "user", "content": "hi"}]
PING = gw.PING_COMMENT
DONE = gw.CHAT_DONE
START, CONTENT = good_events("a")[:2]
ERROR_EVENT = support.sse_event(support.error_body("overloaded_error", "busy \u2026"))
# The head goes soon, and the first ping one second after it.
EARLY = {"stream": {"hold_seconds": 0.1, "ping_seconds": 0.25}}
NO_WAIT = {"retry": {"max_wait_seconds": 0}}
STREAM_TYPE = "text/event-stream; charset=utf-8"
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}]


def chat_body(stream=False, **fields):
    body = {"model": MODEL, "messages": USER}
    if stream:
        body["stream"] = True
    return support.to_json(dict(body, **fields))


def post(played, stream=False, headers=(), path=PATH, **fields):
    """The answer to one chat request on a connection of its own."""
    return support.exchange(played.gateway.port, "POST", path, [JSON_TYPE, *headers],
                            chat_body(stream, **fields))


def post_bytes(played, body, headers=()):
    return support.exchange(played.gateway.port, "POST", PATH, [JSON_TYPE, *headers], body)


def client_of(played, **fields):
    """A client that has asked for a stream and read nothing."""
    client = support.RawClient(played.gateway.port)
    client.request("POST", PATH, [JSON_TYPE], chat_body(True, **fields))
    return client


def rest_of(client):
    """What comes up to the end of the chunked body; None where it does not end properly."""
    pieces = []
    while True:
        piece = client.read_chunk()
        if not piece:
            return b"".join(pieces) if piece == b"" else None
        pieces.append(piece)


def frames_of(data):
    """The objects in a chat stream, "[DONE]" as that string; comments are left out."""
    found = []
    for block in data.decode("utf-8").split("\n\n")[:-1]:
        if not block.startswith(":"):
            assert block.startswith("data: ") and "\n" not in block, block
            found.append(block[6:] if block == "data: [DONE]" else json.loads(block[6:]))
    assert data.endswith(b"\n\n"), data
    return found


def text_of(frames):
    return "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames
                   if isinstance(frame, dict) and frame.get("choices"))


def event(kind, **members):
    return support.sse_event(dict({"type": kind}, **members))


def block_events(index, block, *deltas):
    return [event("content_block_start", index=index, content_block=block),
            *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
            event("content_block_stop", index=index)]


def ending(stop_reason, **usage):
    return [event("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None},
                  usage=dict({"output_tokens": 7}, **usage)), event("message_stop")]


def thinking_call(tool_id="toolu_1", signature="c2lnbmVk"):
    """A stream that thinks, signs it and calls a tool."""
    return faulty.stream_of([
        START,
        *block_events(0, {"type": "thinking", "thinking": "", "signature": ""},
                      {"type": "thinking_delta", "thinking": "Where?"},
                      {"type": "signature_delta", "signature": signature}),
        *block_events(1, {"type": "tool_use", "id": tool_id, "name": "look", "input": {}},
                      {"type": "input_json_delta", "partial_json": '{"city": "Rome"}'}),
        *ending("tool_use")])


def second_round(tool_id="toolu_1"):
    """The messages of the round after `thinking_call`, as a plain client has them."""
    return [*USER, {"role": "assistant", "content": None, "tool_calls": [{
        "id": tool_id, "type": "function",
        "function": {"name": "look", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": tool_id, "content": "sunny"}]


class ChatTest(unittest.TestCase):

    def assert_served(self, told, name, attempts=1, stream=False):
        self.assertEqual((told.status, told.complete), (200, True), told)
        if stream:
            self.assert_whole(told.body, "from %s" % name)
        else:
            choice = told.json()["choices"][0]
            self.assertEqual((choice["message"]["content"], choice["finish_reason"]),
                             ("from %s" % name, "stop"))
        self.assertEqual((told.header("x-account-email"), told.header("x-gateway-attempts")),
                         (name, str(attempts)))

    def assert_whole(self, body, text):
        frames = frames_of(body)
        self.assertEqual(frames[-1], "[DONE]")
        self.assertEqual(text_of(frames), text)
        self.assertEqual([frame["choices"][0]["finish_reason"] for frame in frames[:-1]
                          if frame["choices"]][-1], "stop")
        roles = [frame for frame in frames[:-1] if frame["choices"]
                 and "role" in frame["choices"][0]["delta"]]
        self.assertEqual(roles, frames[:1])

    def assert_error(self, told, status, kind, code=None, param=None, *words):
        self.assertEqual(told.status, status, told)
        self.assertTrue(told.header("content-type").startswith("application/json"))
        self.assertEqual(list(told.json()), ["error"])
        value = told.json()["error"]
        self.assertEqual(sorted(value), ["code", "message", "param", "type"])
        self.assertEqual((value["type"], value["code"], value["param"]), (kind, code, param))
        self.assertTrue(value["message"])
        for word in words:
            self.assertIn(word, value["message"])
        self.assertTrue(told.header("x-request-id"))

    def assert_error_frame(self, body, kind, *words):
        """The stream ends in one error frame and [DONE], and never looks complete."""
        frames = frames_of(body)
        self.assertEqual([frame for frame in frames[:-1] if "error" in frame], frames[-2:-1])
        self.assertEqual(frames[-1], "[DONE]")
        value = frames[-2]["error"]
        self.assertEqual((sorted(value), value["type"]),
                         (["code", "message", "param", "type"], kind))
        for word in words:
            self.assertIn(word, value["message"])
        self.assertFalse([frame for frame in frames[:-2]
                          if frame["choices"] and frame["choices"][0]["finish_reason"]])

    def quick_backoff(self):
        patch = quick_backoff()
        patch.start()
        self.addCleanup(patch.stop)


class AnswerTest(ChatTest):

    def test_whole_answer(self):
        with play({"a": []}) as played:
            told = post(played, seed=7, verbosity="low")
            self.assert_served(told, "a")
            value = told.json()
            self.assertEqual((value["object"], value["model"], value["system_fingerprint"]),
                             ("chat.completion", MODEL, None))
            self.assertRegex(value["id"], "^chatcmpl-[0-9a-f]{24}$")
            self.assertLess(abs(value["created"] - time.time()), 5)
            self.assertEqual(value["usage"]["total_tokens"], 12)
            self.assertEqual(told.all("content-type"), ["application/json"])
            self.assertEqual(told.header("x-gateway-ignored"), "seed, verbosity")
            self.assertEqual((told.header("x-mapped-model"), told.header("x-gateway-provider")),
                             (MODEL, "anthropic"))
            self.assertEqual(told.header("content-length"), str(len(told.body)))

    def test_stream(self):
        with play({"a": []}) as played:
            told = post(played, True, seed=7)
            self.assert_served(told, "a", stream=True)
            self.assertEqual(told.all("content-type"), [STREAM_TYPE])
            self.assertEqual((told.header("cache-control"), told.header("x-accel-buffering")),
                             ("no-cache, no-transform", "no"))
            self.assertEqual(told.header("x-gateway-ignored"), "seed")
            frames = frames_of(told.body)[:-1]
            self.assertEqual(len({(frame["id"], frame["created"], frame["model"])
                                  for frame in frames}), 1)
            self.assertNotIn("usage", frames[-1])
            told = post(played, True, stream_options={"include_usage": True})
            self.assertEqual(frames_of(told.body)[-2]["choices"], [])
            self.assertEqual(frames_of(told.body)[-2]["usage"]["completion_tokens"], 2)

    def test_ids(self):
        """Theirs is request-id, ours X-Request-ID, which OpenAI's SDKs read."""
        with play({"a": []}) as played:
            for stream in (False, True):
                told = post(played, stream, headers=[("X-Request-ID", "mine")])
                self.assertEqual((told.header("x-request-id"), told.header("request-id")),
                                 ("mine", support.REQUEST_ID))
            told = post_bytes(played, b"{")
            self.assertEqual(told.header("x-request-id"), told.header("request-id"))

    def test_rate_limits_translated(self):
        headers = [("anthropic-ratelimit-requests-limit", "50"),
                   ("anthropic-ratelimit-requests-remaining", "49"),
                   ("anthropic-ratelimit-requests-reset", time.strftime(
                       "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3000))),
                   ("anthropic-ratelimit-tokens-limit", "9000"),
                   ("anthropic-ratelimit-tokens-remaining", "0")]
        lines = "".join("%s: %s\r\n" % pair for pair in headers).encode("ascii")
        whole = support.stream_response(good_events("a"))
        answer = whole.replace(b"\r\n", b"\r\n" + lines, 1)
        refusal = error(400, "invalid_request_error", "no", **dict(headers))
        for stream in (False, True):
            with self.subTest(stream=stream), play({"a": [answer, refusal]}) as played:
                for _ in range(2):
                    told = post(played, stream)
                    self.assertEqual(
                        [told.header("x-ratelimit-" + name) for name in (
                            "limit-requests", "remaining-requests", "limit-tokens",
                            "remaining-tokens")], ["50", "49", "9000", "0"])
                    self.assertRegex(told.header("x-ratelimit-reset-requests"), "^(49|50)m")
                    self.assertEqual(told.header("anthropic-ratelimit-tokens-limit"), "9000")

    def test_path_in_every_form(self):
        with play({"a": []}) as played:
            for path in ("/claude_api/v1/chat/completions", "/v1/v1/chat/completions",
                         "/v1/chat/completions/", "/v1/chat/completions?api-version=1"):
                with self.subTest(path):
                    self.assert_served(post(played, path=path), "a")
                    self.assert_served(post(played, True, path=path), "a", stream=True)
                    told = support.exchange(played.gateway.port, "POST", path, [JSON_TYPE], b"{")
                    self.assert_error(told, 400, "invalid_request_error")
            self.assertEqual({request.target for request in played.upstream.requests},
                             {"/v1/messages"})


class UpstreamSideTest(ChatTest):
    """What is sent up."""

    HEADERS = [("OpenAI-Organization", "org-1"), ("OpenAI-Project", "proj-1"),
               ("User-Agent", "OpenAI/Python 3.52.0"), ("Anthropic-Beta", "b-2, b-3"),
               ("X-Stainless-Lang", "python"), ("Cookie", "a=b")]

    def sent(self, played, number=-1):
        return played.upstream.requests[number]

    def test_body_and_headers(self):
        with play({"a": []}, {"betas": {"add": ["b-1"], "drop": ["b-3"]}}) as played:
            for stream in (False, True):
                post(played, stream, headers=self.HEADERS, path=PATH + "?user=1",
                     messages=[{"role": "system", "content": "Be brief."}, *USER],
                     temperature=0.5, max_completion_tokens=99)
                sent = self.sent(played)
                self.assertEqual((sent.method, sent.target), ("POST", "/v1/messages"))
                self.assertEqual(sent.json(), {
                    "model": MODEL, "max_tokens": 99,
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                    "system": [{"type": "text", "text": "Be brief."}],
                    "thinking": {"type": "adaptive", "display": "summarized"}, "cache_control": {"type": "ephemeral"}, "stream": True})
                self.assertEqual(sent.header("anthropic-version"), "2023-06-01")
                self.assertEqual(sent.header("anthropic-beta"), "b-1,b-2")
                self.assertEqual(sent.all("x-api-key"), [ACCOUNT_KEY + "-a"])
                self.assertEqual(sent.all("content-length"), [str(len(sent.body))])
                self.assertEqual(sent.header("content-type"), "application/json")
                names = {name.lower() for name, _ in sent.headers}
                self.assertFalse([name for name in names if name.startswith("openai-")])
                self.assertFalse(names & {"authorization", "cookie"})
                self.assertEqual(sent.header("user-agent"), "OpenAI/Python 3.52.0")

    def test_version_and_keys(self):
        """The client's version stays; its gateway key never leaves."""
        keys = {"auth": {"mode": "strict", "api_keys": [CLIENT_KEY]}}
        with play({"a": []}, **keys) as played:
            post(played, headers=[("Authorization", "Bearer " + CLIENT_KEY),
                                  ("anthropic-version", "2026-10-21")])
            sent = self.sent(played)
            self.assertEqual(sent.header("anthropic-version"), "2026-10-21")
            self.assertNotIn(CLIENT_KEY.encode("ascii"), sent.raw_head)

    def test_files_need_their_beta(self):
        part = {"type": "file", "file": {"file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}}
        with play({"a": []}) as played:
            post(played, messages=[{"role": "user", "content": [part]}],
                 headers=[("anthropic-beta", "b-2")])
            self.assertEqual(self.sent(played).header("anthropic-beta"),
                             "files-api-2025-04-14,b-2")

    def test_mapped_model_has_its_own_rules(self):
        """An alias is no Claude by its name: what is sent is what the model behind it takes."""
        settings = {"model_map": {"gpt-4o": MODEL, "gpt-old": OLD, "claude-opus-4-1": "GLM-4.7"}}
        with play({"a": []}, settings) as played:
            told = post(played, model="gpt-4o", temperature=0.7)
            self.assertEqual((told.json()["model"], told.header("x-mapped-model"),
                              told.header("x-gateway-ignored")), ("gpt-4o", MODEL, "temperature"))
            body = self.sent(played).json()
            self.assertEqual((body["model"], body["max_tokens"], body["thinking"]["type"]),
                             (MODEL, 128000, "adaptive"))
            self.assertNotIn("temperature", body)
            self.assertIn("model", played.records(1)[0]["edits"])
            post(played, model="gpt-old", temperature=0.7)
            body = self.sent(played).json()
            self.assertEqual((body["model"], body["max_tokens"], body["temperature"]),
                             (OLD, 64000, 0.7))
            told = post(played, True, model="gpt-old-thinking", max_completion_tokens=5000)
            body = self.sent(played).json()
            self.assertEqual((body["model"], body["thinking"]),
                             (OLD, {"type": "enabled", "budget_tokens": 4000}))
            self.assertEqual(frames_of(told.body)[0]["model"], "gpt-old-thinking")

    def test_each_provider_gets_what_its_model_takes(self):
        """One alias, two providers: the fall-back to the second is translated for it."""
        with faulty.FaultyUpstream({"a": [error(529)]}) as upstream:
            one = provider(upstream, ("a",), name="one", model_map={"best": MODEL})
            two = provider(upstream, ("b",), name="two", model_map={"best": OLD})
            with running_gateway(one, two, routing={"sticky": False}) as gateway:
                played = faulty.Play(upstream, gateway)
                told = post(played, model="best", temperature=0.5)
                self.assert_served(told, "b", 2)
                self.assertIsNone(told.header("x-gateway-ignored"))
                first, second = [request.json() for request in upstream.requests]
                self.assertEqual((first["model"], first["max_tokens"], "temperature" in first),
                                 (MODEL, 128000, False))
                self.assertEqual((second["model"], second["max_tokens"], second["temperature"]),
                                 (OLD, 64000, 0.5))

    def test_thinking_suffix(self):
        with play({"a": []}) as played:
            for asked, sent, thinking in (
                    (MODEL + "-thinking", MODEL, {"type": "adaptive", "display": "summarized"}),
                    (OLD + "-thinking", OLD, {"type": "enabled", "budget_tokens": 8000})):
                told = post(played, model=asked, max_completion_tokens=10000)
                self.assertEqual((told.json()["model"], told.header("x-mapped-model")),
                                 (asked, sent))
                body = self.sent(played).json()
                self.assertEqual((body["model"], body["thinking"]), (sent, thinking))

    def test_routing_by_model(self):
        with faulty.FaultyUpstream({}) as upstream:
            one = provider(upstream, ("a",), name="one")
            two = provider(upstream, ("b",), name="two", default_model="GLM-4.7")
            routing = {"sticky": False, "models": {"glm-*": "two"}, "background_model": "small"}
            with running_gateway(one, two, routing=routing) as gateway:
                played = faulty.Play(upstream, gateway)
                self.assert_served(post(played), "a")
                told = post(played, model="glm-best", reasoning_effort="high")
                self.assert_served(told, "b")
                self.assertEqual((told.header("x-mapped-model"), told.header("x-gateway-ignored")),
                                 ("GLM-4.7", "reasoning_effort"))
                self.assertEqual(set(self.sent(played).json()),
                                 {"model", "max_tokens", "messages", "stream"})
                # Words of Claude Code's own background tasks mean nothing here.
                told = post(played, max_tokens=100, messages=[
                    {"role": "system", "content": "Summarize this coding conversation in under 50 "
                     "characters."}, *USER])
                self.assertEqual(self.sent(played).json()["model"], MODEL)

    def test_sanitizing_is_each_providers(self):
        """A result without its call is a text; marks go where a provider takes none."""
        messages = [{"role": "user", "content": [{
            "type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{
                "id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
            {"role": "user", "content": "never mind"}]
        for setting, marked, answered in (("off", True, False), ("strict", False, True)):
            with self.subTest(setting), play({"a": []}, {"sanitize": setting}) as played:
                self.assert_served(post(played, messages=messages, tools=TOOLS), "a")
                sent = self.sent(played)
                self.assertEqual((b"cache_control" in sent.body, b"tool_result" in sent.body),
                                 (marked, answered))
                self.assertEqual("tool_pairs" in played.records(1)[0]["edits"], answered)

    def test_large_request_is_not_kept(self):
        """A stream lasts for minutes: its conversation must not stay in memory."""
        gate, held = support.Gate(), []
        real = gw.ChatBody.__init__

        def noting(body, exchange, *more):
            real(body, exchange, *more)
            held.append(exchange)

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            gate.wait("the test to have looked")
            return False

        with mock.patch.object(gw.ChatBody, "__init__", noting), play({"a": [act]}) as played:
            with client_of(played, messages=[{"role": "user", "content": "word " * 9000}]) as client:
                client.read_head()
                (exchange,) = held
                self.assertEqual((exchange.body, exchange.readings), (None, {}))
                self.assertNotIn("word word", repr(vars(exchange.door)))
                gate.open()

    def test_warm_up_text_is_a_text_like_any_other(self):
        """Contract section 7 is for Claude Code, which speaks the other door."""
        with play({"a": []}) as played:
            told = post(played, messages=[{"role": "user", "content": "Warmup"}])
            self.assert_served(told, "a")
            self.assertIsNone(told.header("x-warmup-intercepted"))
            self.assertEqual(played.records(1)[0]["route"], "chat_completions")


class RefusedHereTest(ChatTest):
    """Errors of ours: OpenAI's shape, and nothing goes upstream."""

    def test_before_the_body(self):
        keys = {"auth": {"mode": "strict", "api_keys": [CLIENT_KEY]}}
        with play({"a": []}, **keys) as played:
            told = post(played)
            self.assert_error(told, 401, "authentication_error", "invalid_api_key", None, "missing")
            self.assertEqual(told.header("x-should-retry"), "false")
            self.assertTrue(told.header("www-authenticate"))
            told = post(played, headers=[("Authorization", "Bearer nobody")])
            self.assert_error(told, 401, "authentication_error", "invalid_api_key", None, "invalid")
            told = post(played, headers=[("Sec-Fetch-Site", "cross-site"),
                                         ("Origin", "https://evil.example")])
            self.assert_error(told, 403, "permission_error")
            key = [("Authorization", "Bearer " + CLIENT_KEY)]
            for method in ("GET", "PUT", "DELETE"):
                told = support.exchange(played.gateway.port, method, PATH, key)
                self.assert_error(told, 405, "invalid_request_error")
                self.assertEqual(told.header("allow"), "OPTIONS, POST")
            with support.RawClient(played.gateway.port) as client:
                client.send(("POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n"
                             % (PATH, CLIENT_KEY)).encode("ascii"))
                self.assert_error(client.read_response(), 411, "invalid_request_error")
            told = post(played, headers=[*key, ("Expect", "magic")])
            self.assert_error(told, 417, "invalid_request_error")
            self.assertEqual(played.asked(), [])

    def test_limits(self):
        keys = {"auth": {"mode": "strict", "api_keys": [
            {"name": "one", "key": CLIENT_KEY, "requests_per_minute": 2}]}}
        with play({"a": []}, limits={"body_bytes": 2000}, **keys) as played:
            key = [("Authorization", "Bearer " + CLIENT_KEY)]
            told = post(played, headers=key, messages=[{"role": "user", "content": "x" * 2000}])
            self.assert_error(told, 413, "invalid_request_error", "request_too_large")
            self.assert_served(post(played, headers=key), "a")
            told = post(played, headers=key)
            self.assert_error(told, 429, "rate_limit_error", "rate_limit_exceeded", None, "one")
            self.assertGreaterEqual(int(told.header("retry-after")), 1)

    def test_bodies(self):
        deep = b'{"model":"m","messages":' + b"[" * 3000 + b"]" * 3000 + b"}"
        for body in (b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", deep,
                     b'{"model":"m","model":"n","messages":[]}',
                     b'{"model":"m","messages":' + b"1" * 5000 + b"}"):
            with self.subTest(body[:30]), play({"a": []}) as played:
                told = post_bytes(played, body)
                self.assertEqual((told.status, list(told.json())), (400, ["error"]))
                self.assertEqual(told.json()["error"]["type"], "invalid_request_error")
                self.assertEqual(told.header("x-should-retry"), "false")
                self.assertEqual(played.asked(), [])

    def test_fields(self):
        table = [
            ({"messages": None}, "messages", "missing_required_parameter"),
            ({"model": None}, "model", "missing_required_parameter"),
            ({"messages": "hi"}, "messages", "invalid_type"),
            ({"n": 2}, "n", "unsupported_value"),
            ({"stream": "yes"}, "stream", "invalid_type"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
                "url": "http://x.example/a.png"}}]}]}, "messages[0].content[0].image_url.url",
             "invalid_value"),
            ({"messages": [*USER, {"role": "wizard"}]}, "messages[1].role", "invalid_value"),
        ]
        with play({"a": []}) as played:
            for fields, param, code in table:
                with self.subTest(param):
                    told = post_bytes(played, support.to_json(
                        dict({"model": MODEL, "messages": USER}, **fields)))
                    self.assert_error(told, 400, "invalid_request_error", code, param, param)
                    self.assertEqual(told.header("x-should-retry"), "false")
            self.assertEqual(played.asked(), [])
            self.assertEqual({record["ended"] for record in played.records(len(table))},
                             {"refused"})

    def test_nobody_can_serve(self):
        nowhere = {"name": "one", "base_url": support.ScriptedUpstream.absent().url,
                   "accounts": [{"name": "a", "api_key": "key-a"}]}
        with faulty.FaultyUpstream({}) as upstream, running_gateway(
                nowhere, retry={"max_attempts": 1}) as gateway:
            told = post(faulty.Play(upstream, gateway))
            self.assert_error(told, 502, "server_error", None, None, "one/a")
        with play({}, accounts=()) as played:
            told = post(played)
            self.assert_error(told, 401, "authentication_error", "invalid_api_key", None,
                              "no account")
        limited = error(429, "rate_limit_error", "slow", retry_after="700")
        with play({"a": [limited]}, **NO_WAIT) as played:
            for _ in range(2):
                told = post(played)
                self.assert_error(told, 429, "rate_limit_error", "rate_limit_exceeded")
                self.assertEqual(told.all("retry-after"), ["700"])
            self.assertEqual(played.asked(), ["a"])
        with play({"a": [faulty.silent]},
                  timeouts={"first_byte_seconds": 0.1, "shutdown_seconds": 0.2}) as played:
            self.assert_error(post(played), 504, "server_error", "timeout", None, "anthropic/a")

    def test_draining(self):
        with play({"a": []}) as played:
            played.gateway._engine.draining = True
            told = post(played)
            self.assert_error(told, 503, "server_error", "overloaded", None, "shutting down")
            self.assertEqual(told.header("connection"), "close")

    def test_a_fault_of_ours(self):
        with play({"a": []}) as played, mock.patch.object(gw, "translate_chat", lambda *rest: 1 / 0):
            self.assert_error(post(played), 500, "server_error", None, None, "internal error")


class UpstreamErrorTest(ChatTest):

    CREDIT = "Your credit balance is too low to access the Anthropic API."

    def test_mapped(self):
        table = [
            (400, "invalid_request_error", "no good", 400, "invalid_request_error", None),
            (400, "invalid_request_error", "prompt is too long: 9 > 8", 400,
             "invalid_request_error", "context_length_exceeded"),
            (404, "not_found_error", "model: x", 404, "invalid_request_error", "model_not_found"),
            (404, "not_found_error", "nothing there", 404, "invalid_request_error", None),
            (409, "conflict_error", "twice", 409, "invalid_request_error", None),
            (413, "request_too_large", "big", 413, "invalid_request_error", "request_too_large"),
            (422, "invalid_request_error", "odd", 422, "invalid_request_error", None),
            (500, "api_error", "internal", 500, "server_error", None),
            (504, "timeout_error", "late", 504, "server_error", "timeout"),
            (529, "overloaded_error", "busy", 503, "server_error", "overloaded"),
        ]
        for status, kind, words, expected, told_kind, code in table:
            answer = error(status, kind, words, x_odd="1")
            for stream in (False, True):
                with self.subTest(words, stream=stream), play(
                        {"a": [answer]}, retry={"max_attempts": 1}) as played:
                    told = post(played, stream)
                    self.assert_error(told, expected, told_kind, code, None, words)
                    self.assertEqual((told.header("x-odd"), told.header("request-id")),
                                     ("1", support.REQUEST_ID))
                    self.assertEqual(told.all("content-length"), [str(len(told.body))])
                    self.assertEqual(told.header("x-account-email"), "a")
                    self.assertEqual(played.records(1)[0]["status"], expected)

    def test_an_event_before_content_is_the_same_error(self):
        for stream in (False, True):
            for answer in ([ERROR_EVENT], [START, ERROR_EVENT], [START, CONTENT, ERROR_EVENT]):
                if stream and CONTENT in answer:
                    continue
                with self.subTest(len(answer), stream=stream), play(
                        {"a": [faulty.stream_of(answer)]}, retry={"max_attempts": 1}) as played:
                    told = post(played, stream)
                    self.assert_error(told, 503, "server_error", "overloaded", None, "busy \u2026")

    def test_credit(self):
        for answer in (error(400, "invalid_request_error", self.CREDIT, x_should_retry="true"),
                       error(429, "billing_error", "no more"), error(402, "billing_error", "pay")):
            with self.subTest(answer[:12]), play({"a": [answer]}) as played:
                told = post(played)
                self.assert_error(told, 402, "insufficient_quota", "insufficient_quota")
                self.assertEqual(told.all("x-should-retry"), ["false"])

    def test_refused_account_is_named(self):
        with play({"a": [error(401, "authentication_error", "invalid x-api-key")]}) as played:
            told = post(played)
            self.assert_error(told, 502, "server_error", None, None, "anthropic/a")
            self.assertEqual(told.header("x-should-retry"), "false")

    def test_what_is_no_message(self):
        """A 200 whose body is something else: no answer is made of it."""
        table = {
            "html": support.json_response(b"<html>busy</html>",
                                          headers=[("content-type", "text/html")]),
            "empty": support.json_response(b""),
            "cut": faulty.cut(support.json_response()[:-9]),
            "another object": support.json_response({"code": 500, "msg": "busy", "success": False}),
            "an error": support.json_response(support.error_body("overloaded_error", "busy")),
            "content is no list": support.json_response({"type": "message", "content": "x"}),
        }
        for name, answer in table.items():
            for stream in (False, True):
                with self.subTest(name, stream=stream), play(
                        {"a": [answer], "b": []}) as played:
                    self.assert_served(post(played, stream), "b", 2, stream)

    def test_upstream_that_ignores_stream(self):
        """Its whole message is an answer for who wants no stream, else a fault."""
        answer = support.json_response(support.message("whole"))
        with play({"a": [answer]}) as played:
            told = post(played)
            self.assertEqual((told.status, told.header("content-type")), (200, "application/json"))
            self.assertEqual(told.json()["choices"][0]["message"]["content"], "whole")
            self.assertEqual(told.json()["usage"]["completion_tokens"], 5)
            record = played.records(1)[0]
            self.assertEqual((record["stop_reason"], record["output_tokens"]), ("end_turn", 5))
        with play({"a": [answer], "b": []}) as played:
            self.assert_served(post(played, True), "b", 2, True)

    def test_secrets_are_masked(self):
        secret = ACCOUNT_KEY + "-a"
        events = support.stream_events("key %s." % secret)
        for answer in (error(400, "invalid_request_error", "bad key %s" % secret),
                       faulty.stream_of(events)):
            for stream in (False, True):
                with self.subTest(stream=stream), play({"a": [answer]}) as played:
                    told = post(played, stream)
                    self.assertNotIn(secret.encode("ascii"), told.raw_head + told.body)
                    self.assertIn(b"*" * len(secret), told.body)


class AttemptsTest(ChatTest):

    def test_rotation(self):
        """What the first account meets: the second serves, and who is asked next time."""
        table = {
            "closed": (faulty.close, "b"),
            "reset": (faulty.reset, "b"),
            "429": (error(429, "rate_limit_error", "slow", retry_after="60"), "b"),
            "credit": (error(429, "billing_error", "no more"), "b"),
            "529": (error(529), "a"),
            "500": (error(500), "a"),
            "401": (error(401), "b"),
            "403": (error(403), "b"),
            "error event": (faulty.stream_of([START, ERROR_EVENT]), "a"),
            "clean end": (faulty.stream_of([START]), "a"),
            "cut in an event": (faulty.cut(faulty.stream_of([START, CONTENT[:-1]], b"")), "a"),
            "empty": (faulty.cut(support.SSE_HEAD), "a"),
        }
        for name, (fault, then) in table.items():
            for stream in (False, True):
                with self.subTest(name, stream=stream), play({"a": [fault], "b": []}) as played:
                    self.assert_served(post(played, stream), "b", 2, stream)
                    self.assert_served(post(played, stream), then, 1, stream)
                    self.assertEqual(played.asked(), ["a", "b", then])
                    self.assertEqual(played.settled()["leases"], 0)

    def test_the_only_one_is_asked_again(self):
        self.quick_backoff()
        for fault in (error(529), faulty.close, faulty.stream_of([START]),
                      error(429, retry_after="0.1")):
            for stream in (False, True):
                with self.subTest(str(fault)[:40], stream=stream), play({"a": [fault]}) as played:
                    self.assert_served(post(played, stream), "a", 2, stream)

    def test_a_broken_stream_of_a_whole_answer_moves_on(self):
        """It has shown nothing yet, however far it came."""
        body = [START, CONTENT, *good_events("a")[2:4]]
        for name, fault in (("cut", faulty.cut(faulty.stream_of(body, b""))),
                            ("clean end", faulty.stream_of(body)),
                            ("error", faulty.stream_of([*body, ERROR_EVENT]))):
            with self.subTest(name), play({"a": [fault], "b": []}) as played:
                self.assert_served(post(played), "b", 2)
            with self.subTest(name), play({"a": [fault]}, retry={"max_attempts": 1}) as played:
                told = post(played)
                self.assertEqual((told.status, list(told.json())),
                                 (503 if name == "error" else 502, ["error"]))

    def test_complete_however_the_connection_ends(self):
        """What ends behind message_stop was whole, and nobody waits for that end."""
        whole = faulty.stream_of(good_events("a"), b"")
        gate = support.Gate()

        def lingers(connection, request):
            connection.send(whole)
            gate.wait("the client to have its answer")
            return False

        for stream in (False, True):
            with self.subTest("cut", stream=stream), play(
                    {"a": [faulty.cut(whole)], "b": []}) as played:
                self.assert_served(post(played, stream), "a", 1, stream)
                self.assertEqual(played.records(1)[0]["ended"], "complete")
        with play({"a": [lingers], "b": []}) as played, client_of(played) as client:
            client.read_head()
            body = b""
            while not body.endswith(DONE):
                body += client.read_chunk()
            gate.open()
            self.assertEqual(rest_of(client), b"")
            self.assert_whole(body, "from a")

    def test_sticky(self):
        routing = {"sticky": True, "strategy": "round_robin"}
        with play({"a": [], "b": [], "c": []}, routing=routing) as played:
            texts = ["first", "second", "third"]
            turn = [[{"role": "user", "content": text}] for text in texts]
            names = [post(played, messages=messages).header("x-account-email") for messages in turn]
            self.assertEqual(sorted(names), ["a", "b", "c"])
            for messages, name in zip(turn, names):
                longer = [*messages, {"role": "assistant", "content": "from " + name},
                          {"role": "user", "content": "more"}]
                for stream in (False, True):
                    told = post(played, stream, messages=longer)
                    self.assertEqual(told.header("x-account-email"), name)

    def test_record(self):
        with play({"a": [error(529)], "b": []}) as played:
            post(played, True, model=MODEL + "-thinking")
            (record,) = played.records(1)
            self.assertEqual(
                [record[name] for name in ("route", "model", "mapped_model", "provider", "account",
                                           "status", "stop_reason", "ended")],
                ["chat_completions", MODEL + "-thinking", MODEL, "anthropic", "b", 200, "end_turn",
                 "complete"])
            self.assertEqual([attempt["case"] for attempt in record["attempts"]],
                             ["failing", "answered"])
            self.assertIn("thinking_suffix", record["edits"])
            self.assertEqual((record["input_tokens"], record["output_tokens"]), (10, 2))
            self.assertGreater(record["bytes_in"], 50)
            self.assertGreater(record["bytes_out"], 200)
            post(played)
            self.assertEqual(played.records(2)[1]["output_tokens"], 2)
            self.assertEqual(played.settled()["leases"], 0)


class HoldTest(ChatTest):

    def test_nothing_goes_before_content(self):
        gates = [support.Gate(), support.Gate()]

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START))
            gates[0].wait("the client to have seen nothing")
            connection.send(support.chunk(CONTENT + good_events("a")[3]))
            gates[1].wait("the client to have the first content")
            connection.send(support.chunk(b"".join(good_events("a")[4:])) + support.LAST_CHUNK)
            return True

        with play({"a": [act]}) as played, client_of(played) as client:
            played.upstream.wait_requests(1)
            with self.assertRaises(support.TimedOut):
                client._wire.fill("nothing", 0.1)
            gates[0].open()
            self.assertEqual(client.read_head().status, 200)
            first = client.read_chunk()
            self.assertEqual(text_of(frames_of(first)), "from")
            gates[1].open()
            self.assert_whole(first + rest_of(client), "from a")

    def early(self, client):
        told = client.read_head()
        self.assertEqual((told.status, told.header("content-type"),
                          told.header("cache-control")), (200, STREAM_TYPE,
                                                          "no-cache, no-transform"))
        self.assertEqual(told.header("x-gateway-ignored"), "seed")
        self.assertTrue(told.header("x-request-id"))

    def holding(self, then):
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START))
            gate.wait("the client to have a ping")
            return then(connection, request)

        return gate, act

    def test_pings_then_the_second_account_unseen(self):
        for then in (faulty.close, lambda connection, request: bool(
                connection.send(support.chunk(ERROR_EVENT) + support.LAST_CHUNK) or 1)):
            gate, act = self.holding(then)
            with play({"a": [act], "b": []}, **EARLY) as played, client_of(
                    played, seed=1) as client:
                self.early(client)
                self.assertEqual(client.read_chunk(), PING)
                gate.open()
                self.assert_whole(rest_of(client), "from b")
                record = played.records(1)[0]
                self.assertEqual((record["account"], record["ended"], len(record["attempts"])),
                                 ("b", "complete", 2))
                client.request("GET", "/healthz")
                self.assertEqual(client.read_response().status, 200)

    def test_error_frame_behind_an_early_head(self):
        faults = {
            "upstream's refusal": (error(529, "overloaded_error", "busy"), "server_error", "busy"),
            "a passed on refusal": (error(400, "invalid_request_error", "no way"),
                                    "invalid_request_error", "no way"),
            "credit": (error(429, "billing_error", "no more"), "insufficient_quota", "no more"),
            "an event": (faulty.stream_of([START, ERROR_EVENT]), "server_error", "busy"),
            "ours": (faulty.close, "server_error", "anthropic/a"),
            "no stream": (support.json_response(), "server_error", "without the stream"),
        }
        for name, (fault, kind, words) in faults.items():
            gate = support.Gate()

            def act(connection, request):
                gate.wait("the client to have the head")
                if callable(fault):
                    return fault(connection, request)
                connection.send(fault)
                return True

            with self.subTest(name), play(
                    {"a": [act]}, retry={"max_attempts": 1},
                    stream={"hold_seconds": 0.05, "ping_seconds": 5}) as played, client_of(
                        played, seed=1) as client:
                self.early(client)
                gate.open()
                self.assert_error_frame(rest_of(client), kind, words)
                client.request("GET", "/healthz")
                self.assertEqual(client.read_response().json(), {"status": "ok"})
                record = played.records(1)[0]
                self.assertEqual((record["status"], record["ended"]), (200, "upstream_broke"))
                self.assertEqual(played.settled()["leases"], 0)

    def test_pings_of_the_upstream_keep_the_client_alive(self):
        """While the model thinks unseen there is nothing else to send."""
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            connection.send(support.chunk(event("ping")))
            gate.wait("the client to have the ping")
            connection.send(support.chunk(b"".join(good_events("a")[2:])) + support.LAST_CHUNK)
            return True

        with play({"a": [act]}) as played, client_of(played) as client:
            client.read_head()
            body = b""
            while PING not in body:
                body += client.read_chunk()
            gate.open()
            self.assert_whole(body + rest_of(client), "from a")

    def test_input_that_is_kept_back_keeps_the_client_alive(self):
        """A custom tool is called with the text that its JSON holds, once that has come."""
        gates = [support.Gate(), support.Gate()]
        block = {"type": "tool_use", "id": "t1", "name": "patch", "input": {}}
        begun, piece, stop = block_events(0, block, {
            "type": "input_json_delta", "partial_json": '{"input": "x"}'})

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + begun))
            gates[0].wait("the client to have the call")
            connection.send(support.chunk(piece))
            gates[1].wait("the client to have a comment")
            connection.send(support.chunk(stop + b"".join(ending("tool_use"))) + support.LAST_CHUNK)
            return True

        tools = [{"type": "custom", "custom": {"name": "patch"}}]
        with play({"a": [act]}) as played, client_of(played, tools=tools) as client:
            client.read_head()
            client.read_chunk()
            gates[0].open()
            self.assertEqual(client.read_chunk(), PING)
            gates[1].open()
            frames = frames_of(rest_of(client))
            self.assertEqual(frames[-2]["choices"][0]["finish_reason"], "tool_calls")

    def test_break_after_content_is_one_error_frame(self):
        content = [START, CONTENT, good_events("a")[3]]
        for name, fault, kind in (
                ("cut", faulty.cut(faulty.stream_of(content, b"")), "server_error"),
                ("cut in an event", faulty.cut(faulty.stream_of(
                    [*content, good_events("a")[4][:-5]], b"")), "server_error"),
                ("clean end", faulty.stream_of(content), "server_error"),
                ("event", faulty.stream_of([*content, ERROR_EVENT]), "server_error"),
                ("no JSON", faulty.stream_of([*content, b"event: content_block_delta\ndata: {\n\n",
                                              *good_events("a")[4:]]), "server_error")):
            with self.subTest(name), play({"a": [fault], "b": []}) as played:
                told = post(played, True)
                self.assertEqual((told.status, told.complete), (200, True))
                self.assert_error_frame(told.body, kind)
                self.assertEqual(text_of(frames_of(told.body)), "from")
                record = played.records(1)[0]
                self.assertEqual((record["ended"], bool(record["error"])), ("upstream_broke", True))
                self.assertEqual(played.asked(), ["a"])
                self.assertEqual(played.settled()["leases"], 0)

    def test_what_makes_no_sense_before_content_moves_on(self):
        for broken in (b"event: message_start\ndata: {\n\n", b"event: message_delta\ndata: 1\n\n"):
            fault = faulty.stream_of([broken, *good_events("a")[1:]])
            for stream in (False, True):
                with self.subTest(broken, stream=stream), play({"a": [fault], "b": []}) as played:
                    self.assert_served(post(played, stream), "b", 2, stream)

    def test_silence_ends_in_an_error_frame(self):
        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            return faulty.silent(connection, request)

        with play({"a": [act]}, timeouts={"idle_seconds": 0.1, "shutdown_seconds": 0.2}) as played:
            self.assert_error_frame(post(played, True).body, "server_error")

    def test_stop_while_streaming(self):
        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            return faulty.silent(connection, request)

        with play({"a": [act]}) as played, client_of(played) as client:
            client.read_head()
            thread = threading.Thread(target=played.gateway.stop)
            thread.start()
            self.assert_error_frame(rest_of(client), "server_error", "shutting down")
            thread.join(support.JOIN_SECONDS)

    def test_client_that_leaves_closes_the_upstream(self):
        for when in ("hold", "stream", "whole"):
            closed = support.Gate()

            def act(connection, request):
                connection.send(support.SSE_HEAD + support.chunk(
                    START if when == "hold" else START + CONTENT))
                connection.wait_closed("the gateway to close the call")
                closed.open()
                return False

            with self.subTest(when), play({"a": [act], "b": []}) as played:
                client = support.RawClient(played.gateway.port)
                client.request("POST", PATH, [JSON_TYPE], chat_body(when != "whole"))
                played.upstream.wait_requests(1)
                if when == "stream":
                    client.read_head()
                    client.read_chunk()
                began = time.monotonic()
                client.close()
                closed.wait("the upstream call to be closed")
                (record,) = played.records(1)
                self.assertLess(time.monotonic() - began, 1)
                self.assertEqual(record["ended"], "client_left")
                self.assertEqual(played.settled()["leases"], 0)
                self.assert_served(post(played), "a")

    def test_reload_while_streaming(self):
        gate = support.Gate()

        def act(connection, request):
            connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
            gate.wait("the reload")
            connection.send(support.chunk(b"".join(good_events("a")[2:])) + support.LAST_CHUNK)
            return True

        with play({"a": [act]}) as played, client_of(played, seed=1) as client:
            client.read_head()
            upstream = played.upstream
            settings = {"port": 0, "providers": [provider(
                upstream, ("z",), model_map={MODEL: "another"})]}
            played.gateway.reload(gw.Config.from_dict(settings))
            gate.open()
            self.assert_whole(rest_of(client), "from a")
            told = post(played)
            self.assertEqual((told.header("x-account-email"), told.header("x-mapped-model"),
                              told.json()["model"]), ("z", "another", MODEL))
            self.assertEqual(played.settled()["leases"], 0)


class CutTest(ChatTest):
    """Account a breaks after every 7th byte, in three ways by turns; b is whole."""

    def test_complete_answer_of_the_second_or_an_honest_end(self):
        events = support.stream_events("Hi")
        body, content = b"".join(events), len(events[0] + events[1])
        stop = body.index(b"event: message_stop") + len(b"event: message_stop\ndata: ")
        current = {}

        def act(connection, request):
            at, how = current["at"], current["how"]
            connection.send(support.SSE_HEAD + (support.chunk(body[:at]) if at else b""))
            if how == "clean":
                connection.send(support.LAST_CHUNK)
                return True
            if how == "reset":
                connection.reset()
            return False

        with play({"a": [], "b": []}, retry={"max_attempts": 2}) as played:
            played.upstream.next_act = lambda request: (
                act if faulty.account_of(request) == "a" else faulty.good)
            for number, at in enumerate(range(0, len(body) + 7, 7)):
                for stream in (False, True):
                    current.update(at=min(at, len(body)), how=("close", "clean", "reset")[number % 3])
                    played.settled()
                    for state in played.gateway._engine.accounts._states.values():
                        state.__init__()
                    with self.subTest(dict(current), stream=stream):
                        self.check(post(played, stream), current, stream, content, stop)
            self.assertEqual(played.settled()["leases"], 0)

    def check(self, told, cut, stream, content, stop):
        self.assertEqual((told.status, told.complete), (200, True))
        if told.header("x-account-email") == "b":
            self.assert_served(told, "b", 2, stream)
            self.assertTrue(not stream or cut["at"] < content or cut["how"] == "reset")
        elif not stream:
            self.assertEqual(told.json()["choices"][0]["message"]["content"], "Hi")
            self.assertGreater(cut["at"], stop)
        elif cut["at"] > stop and "error" not in frames_of(told.body)[-2]:
            self.assert_whole(told.body, "Hi")
        else:
            self.assert_error_frame(told.body, "server_error")
            self.assertGreaterEqual(cut["at"], content)


class ToolLoopTest(ChatTest):

    def content(self, played, number=-1, turn=1):
        return played.upstream.requests[number].json()["messages"][turn]["content"]

    def test_signatures_come_back(self):
        for stream in (False, True):
            with self.subTest(stream=stream), play({"a": [thinking_call()]}) as played:
                told = post(played, stream, tools=TOOLS)
                self.assertIn(b'"tool_calls"', told.body)
                self.assertNotIn(b"c2lnbmVk", told.body)
                self.assert_served(post(played, stream, tools=TOOLS, messages=second_round()),
                                   "a", 1, stream)
                self.assertEqual(self.content(played), [
                    {"type": "thinking", "thinking": "Where?", "signature": "c2lnbmVk"},
                    {"type": "tool_use", "id": "toolu_1", "name": "look",
                     "input": {"city": "Rome"}}])

    def test_known_as_soon_as_the_call_is(self):
        """A client may go on, and leave, at the finish_reason."""
        gate = support.Gate()

        def act(connection, request):
            connection.send(thinking_call()[:-len(support.LAST_CHUNK)])
            gate.wait("the second round")
            return False

        with play({"a": [act]}) as played, client_of(played, tools=TOOLS) as client:
            client.read_head()
            body = b""
            while b'"finish_reason":"tool_calls"' not in body:
                body += client.read_chunk()
            self.assertEqual(post(played, tools=TOOLS, messages=second_round()).status, 200)
            self.assertEqual(self.content(played)[0]["type"], "thinking")
            gate.open()

    def test_a_miss_works_all_the_same(self):
        """Another gateway, or this one after a restart."""
        for model in (MODEL, OLD, OLD + "-thinking"):
            with self.subTest(model), play({"a": []}) as played:
                told = post(played, model=model, tools=TOOLS, messages=second_round(),
                            reasoning_effort="high")
                self.assert_served(told, "a")
                self.assertEqual([block["type"] for block in self.content(played)], ["tool_use"])
                thinking = played.upstream.requests[0].json().get("thinking", {})
                self.assertEqual(thinking.get("type"), "adaptive" if model == MODEL else None)

    def test_refused_signature_is_mended(self):
        refusal = error(400, "invalid_request_error",
                        "messages.1.content.0: Invalid `signature` in `thinking` block")
        with play({"a": [thinking_call(), refusal]}) as played:
            post(played, tools=TOOLS)
            self.assert_served(post(played, tools=TOOLS, messages=second_round()), "a", 2)
            self.assertEqual([block["type"] for block in self.content(played)], ["tool_use"])
            self.assertIn("thinking_signature", played.records(2)[1]["edits"])

    def test_its_bound_holds_whatever_a_block_has(self):
        """An upstream may hang anything on its blocks; only texts are kept, and counted."""
        memory = gw.ToolMemory(max_calls=100, max_chars=10000)
        for number in range(1000):
            memory.remember(["t%d" % number], [{
                "type": "thinking", "thinking": "", "signature": "s", "more": [["x"] * 1000],
                "name%d" % number * 10: None, "note": "n" * 100}])
        kept = [memory.recall("t%d" % number) for number in range(1000)]
        size = sum(len(str(blocks)) for blocks in kept if blocks)
        self.assertTrue(5000 < size < 20000, size)
        self.assertEqual(kept[-1][0]["note"], "n" * 100)

    def test_clients_do_not_share_it(self):
        """Some vendors number their calls: two clients may hold one id."""
        keys = {"auth": {"mode": "strict", "api_keys": [
            {"name": name, "key": CLIENT_KEY + name} for name in ("one", "two")]}}
        one, two = ([("Authorization", "Bearer " + CLIENT_KEY + name)] for name in ("one", "two"))
        for stream in (False, True):
            with self.subTest(stream=stream), play({"a": [thinking_call()]}, **keys) as played:
                post(played, stream, tools=TOOLS, headers=one)
                for headers, kinds in ((two, ["tool_use"]), (one, ["thinking", "tool_use"])):
                    post(played, tools=TOOLS, messages=second_round(), headers=headers)
                    self.assertEqual([block["type"] for block in self.content(played)], kinds)


class TransparentTest(ChatTest):

    def test_credentials(self):
        """API keys go where they are taken; Anthropic's OAuth tokens stay Bearer."""
        table = [
            ([("Authorization", "Bearer sk-ant-api03-x")], ["sk-ant-api03-x"], []),
            ([("Authorization", "sk-ant-api03-x")], ["sk-ant-api03-x"], []),
            ([("Authorization", "Bearer sk-ant-oat01-x")], [], ["Bearer sk-ant-oat01-x"]),
            ([("x-api-key", "sk-ant-api03-x")], ["sk-ant-api03-x"], []),
            ([("Authorization", "Bearer same-key"), ("x-api-key", "same-key")], ["same-key"], []),
        ]
        with play({}, accounts=()) as played:
            for headers, keys, bearers in table:
                for stream in (False, True):
                    with self.subTest(str(headers), stream=stream):
                        told = post(played, stream, headers=headers)
                        self.assertEqual((told.status, told.header("x-account-email")), (200, None))
                        sent = played.upstream.requests[-1]
                        self.assertEqual((sent.all("x-api-key"), sent.all("authorization")),
                                         (keys, bearers))

    def test_refusals_are_the_clients_own(self):
        for status, kind in ((401, "authentication_error"), (403, "permission_error")):
            with play({"own": [error(status, kind, "invalid x-api-key")] * 2},
                      accounts=()) as played:
                for stream in (False, True):
                    told = post(played, stream, headers=[("Authorization", "Bearer own")])
                    self.assert_error(told, status, kind,
                                      "invalid_api_key" if status == 401 else None)


class HostileClientTest(ChatTest):
    """Every field with every wrong type through the real door: never a 500."""

    VALUES = [None, True, 0, -1, 1.5, 10 ** 400, "", "x", "\ud800", "a\r\nb: c", [], [[]], [None], [1],
              ["x"], [{}], {}, {"type": None}, {"type": []}, {"type": {}}, {"type": "x"},
              {"x": [{"x": "y"}]}]
    SHAPES = [
        {"role": "user", "content": []},
        {"role": "assistant", "content": "x", "refusal": "y"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {
            "name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {
            "name": "f", "input": ""}}], "thinking_blocks": [{"type": "thinking"}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "function", "name": "f", "content": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]},
        {"role": "user", "content": [{"type": "file", "file": {
            "file_data": "data:text/plain;base64,eA==", "filename": "f", "file_id": "x"}}]},
        {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
    ]

    def bodies(self):
        fields = {name: 1 for name in [*gw.CHAT_FIELDS, *gw.SILENT_FIELDS, *gw.NEUTRAL_VALUES]}
        for name in sorted(fields):
            for value in self.VALUES:
                yield dict({"model": MODEL, "messages": USER}, **{name: value})
        for shape in self.SHAPES:
            for body in replaced(shape, self.VALUES):
                yield {"model": OLD, "messages": [*USER, body]}
        for tool in (TOOLS[0], {"type": "custom", "custom": {"name": "c"}}, {"name": "f",
                     "input_schema": {}}):
            for body in replaced(tool, self.VALUES):
                yield {"model": MODEL, "messages": USER, "tools": [body]}

    def test_never_a_500(self):
        bodies = [support.json.dumps(body).encode("ascii") for body in self.bodies()]
        counts = {}
        with play({"a": []}) as played, support.RawClient(played.gateway.port) as client:
            for body in bodies:
                client.request("POST", PATH, [JSON_TYPE], body)
                told = client.read_response()
                counts[told.status] = counts.get(told.status, 0) + 1
                if told.status == 400:
                    value = told.json()["error"]
                    self.assertTrue(value["param"] or "JSON" in value["message"], (body, value))
                    continue
                self.assertEqual(told.status, 200, (body, told.body))
            self.assertGreater(min(counts.values()), 100, counts)
            self.assertEqual(played.settled()["leases"], 0)

    def test_names_never_break_a_header(self):
        with play({"a": []}) as played:
            for model in ("a\r\nx-evil: 1", "caf\u00e9", "\u4f60\u597d", "a\x00b", "\ud800", " ", "x" * 512):
                with self.subTest(model):
                    body = json.dumps({"model": model, "messages": USER, "x\r\ny": 1, "z": 1}).encode()
                    told = post_bytes(played, body)
                    self.assertEqual((told.status, told.header("x-evil")), (200, None))
                    self.assertEqual(told.header("x-gateway-ignored"), "z")
                    self.assertEqual(told.json()["model"], model)


def replaced(shape, values):
    """Copies of a JSON value with each of its members in turn another value."""
    if isinstance(shape, (dict, list)):
        keys = list(shape) if isinstance(shape, dict) else range(len(shape))
        for key in keys:
            for inner in [*values, *replaced(shape[key], values)]:
                copy = dict(shape) if isinstance(shape, dict) else list(shape)
                copy[key] = inner
                yield copy


class BrokenUpstreamTest(ChatTest):
    """Streams that make little sense: an honest end, and the same one whole and streamed."""

    TEXT = {"type": "text", "text": ""}
    TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}

    def told(self, events, **fields):
        """The texts of the streamed answer and of the whole one, or None where it is an error."""
        found = []
        for stream in (True, False):
            with play({"a": [faulty.stream_of(events)]}, retry={"max_attempts": 1}) as played:
                told = post(played, stream, **fields)
                self.assertNotIn(b"internal error", told.body)
                self.assertTrue(told.complete)
                frames = frames_of(told.body) if stream and told.status == 200 else []
                if told.status != 200 or frames and "error" in frames[-2]:
                    found.append(None)
                elif stream:
                    self.assertEqual(frames[-1], "[DONE]")
                    calls = [frame["choices"][0]["delta"].get("tool_calls") for frame in frames[:-1]]
                    arguments = "".join(call[0]["function"]["arguments"] for call in calls if call)
                    found.append((text_of(frames), arguments))
                else:
                    message = told.json()["choices"][0]["message"]
                    arguments = "".join(call["function"]["arguments"]
                                        for call in message.get("tool_calls", ()))
                    found.append((message["content"] or "", arguments))
                self.assertEqual(played.settled()["leases"], 0)
        return found

    def test_table(self):
        def text(index, words):
            return event("content_block_delta", index=index,
                         delta={"type": "text_delta", "text": words})

        def piece(index, words):
            return event("content_block_delta", index=index,
                         delta={"type": "input_json_delta", "partial_json": words})

        def begin(index, block):
            return event("content_block_start", index=index, content_block=block)

        end = ending("end_turn")
        odd = [event("ping"), event("future", x=1), b": note\n\n", b"data: {\n\n",
               b"event: what\ndata: [1]\n\n", b"id: 7\n\n"]
        table = {
            "odd events": ([START, *odd, *block_events(0, self.TEXT), *odd, *end], ("", "")),
            "delta without start": ([START, begin(0, self.TEXT), text(0, "a"), piece(5, "{}"),
                                     text(6, "b"), *end], ("a", "")),
            "duplicate index": ([START, *block_events(0, self.TEXT), begin(0, self.TEXT),
                                 text(0, "b"), *end], ("b", "")),
            "tool without a piece": ([START, begin(0, self.TOOL), *ending("tool_use")],
                                     ("", "{}")),
            "wrong delta for a block": ([START, begin(0, self.TOOL), text(0, "x"), piece(0, "{}"),
                                         *ending("tool_use")], ("", "{}")),
            "indices of other types": ([START, begin("0", self.TEXT), text(None, "x"),
                                        begin(True, self.TEXT), *end], ("", "")),
            "huge index": ([START, begin(10 ** 9, self.TEXT), text(10 ** 9, "a"), *end], ("a", "")),
            "negative index": ([START, begin(-1, self.TEXT), text(-1, "a"), *end], ("a", "")),
            "two starts of the message": ([START, START, *block_events(0, self.TEXT), *end],
                                          ("", "")),
            "behind the end": ([START, *block_events(0, self.TEXT), *end, ERROR_EVENT], ("", "")),
            "huge text": ([START, begin(0, self.TEXT), text(0, "x" * 2000000), *end],
                          ("x" * 2000000, "")),
            "error without words": ([START, begin(0, self.TEXT), b"event: error\ndata: {}\n\n"],
                                    None),
            "error that is no JSON": ([START, begin(0, self.TEXT), b"event: error\ndata: x\n\n"],
                                      None),
            "no end": ([START, begin(0, self.TEXT), text(0, "a")], None),
        }
        for name, (events, expected) in table.items():
            with self.subTest(name):
                self.assertEqual(self.told(events), [expected, expected])

    def test_an_event_too_large_to_read(self):
        """Nothing of it can be told: never an end that looks good."""
        events = [START, *block_events(0, self.TEXT, {"type": "text_delta", "text": "x" * 5000}),
                  *ending("end_turn")]
        with mock.patch.object(gw, "MAX_SSE_EVENT_BYTES", 4000), mock.patch.object(
                gw.SseDecoder.__init__, "__defaults__", (4000,)):
            self.assertEqual(self.told(events), [None, None])
            with play({"a": [faulty.stream_of(events)], "b": []}) as played:
                self.assert_served(post(played, True), "b", 2, True)
            gate = support.Gate()

            def act(connection, request):
                connection.send(support.SSE_HEAD + support.chunk(START + CONTENT))
                gate.wait("the client to have content")
                connection.send(support.chunk(b"".join(events[2:])) + support.LAST_CHUNK)
                return True

            with play({"a": [act]}) as played, client_of(played) as client:
                client.read_head()
                gate.open()
                self.assert_error_frame(rest_of(client), "server_error", "larger than")
                self.assertEqual(played.records(1)[0]["ended"], "upstream_broke")


class GrowingTest(ChatTest):
    """Prompt caches hang on the prefix: what is sent of turn n begins what is sent of n + 1."""

    IMAGE = ("data:image/jpg;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
             "YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")

    def turns(self):
        for number in range(6):
            yield [{"role": "user", "content": [
                {"type": "text", "text": "look %d" % number},
                {"type": "image_url", "image_url": {"url": self.IMAGE}}]}]
            calls = [{"id": "functions.look:%d" % index, "type": "function", "function": {
                "name": "look", "arguments": '{"n": %d.50}' % number}} for index in range(2)]
            yield [{"role": "assistant", "content": "I look.", "tool_calls": calls},
                   *({"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
                     for call in calls)]
            yield [{"role": "assistant", "content": "It is sunny."}]

    def test_messages_are_a_prefix_byte_for_byte(self):
        messages, before = [{"role": "system", "content": "Be brief."}], None
        with play({"a": []}) as played:
            for turn in self.turns():
                messages += turn
                if turn[-1]["role"] == "assistant":
                    continue
                post(played, messages=messages, tools=TOOLS)
                sent = played.upstream.requests[-1].body
                start = sent.index(b'"messages":[') + len(b'"messages":[')
                head, rest = sent[:start], sent[start:]
                parts = rest[:rest.index(b'],"tools"')]
                tail = rest[len(parts):]
                if before is not None:
                    self.assertEqual((head, tail), before[:2])
                    self.assertTrue(parts.startswith(before[2]), (parts, before[2]))
                before = head, tail, parts


if __name__ == "__main__":
    unittest.main()
