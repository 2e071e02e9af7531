"""Section 16: what requests become on their way up, and what is answered here."""

import json
import unittest
import unittest.mock

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway


def post(gateway, body=MESSAGE, path="/v1/messages", headers=()):
    """One POST on a connection of its own; ``body`` bytes, or a value to be spelled."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
    return support.exchange(gateway.port, "POST", path, [JSON_TYPE, *headers], data)


def saying(words, **more):
    """A request whose one user message says something."""
    return dict({"model": "claude-opus-5-5", "max_tokens": 64,
                 "messages": [{"role": "user", "content": words}]}, **more)


def record_of(gateway):
    """The newest record, which is written when the answer has gone."""
    support.eventually(gateway.records, "the record")
    return gateway.records()[0]


class RequestCase(unittest.TestCase):

    def sent(self, body, headers=(), answer=None, settings=None, path="/v1/messages", **chosen):
        """(the body that reached the upstream as a value, answer, record) of one request."""
        respond = (lambda request: answer) if answer is not None else None
        with support.ScriptedUpstream(respond=respond) as upstream:
            with running_gateway(provider(upstream, **chosen), **(settings or {})) as gateway:
                told = post(gateway, body, path, headers)
                record = record_of(gateway)
            requests = upstream.requests
        self.requests = requests
        return json.loads(requests[-1].body.decode()) if requests else None, told, record


class SanitizeTest(RequestCase):

    DIRTY = {"model": "m", "messages": [
        {"role": "user", "content": [{"type": "text", "text": " "}, {"type": "text", "text": "a"}]},
        {"role": "user", "content": "b"}]}

    def test_profiles_of_presets(self):
        a, b = {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
        table = [
            ({}, [[a], "b"], ["empty_text"]),
            ({"preset": "zai"}, [[a, b]], ["empty_text", "merge_roles"]),
            ({"sanitize": "off"}, [self.DIRTY["messages"][0]["content"], "b"], []),
            ({"sanitize": {"empty_text": False, "merge_roles": True}},
             [[*self.DIRTY["messages"][0]["content"], b]], ["merge_roles"]),
        ]
        for chosen, contents, edits in table:
            with self.subTest(str(chosen)):
                body, _, record = self.sent(self.DIRTY, **chosen)
                self.assertEqual([message["content"] for message in body["messages"]], contents)
                self.assertEqual(record["edits"], edits)

    def test_refused_fields_go_with_their_betas(self):
        settings = {"preset": "ollama", "sanitize": "strict"}
        body, _, record = self.sent(saying("hi", metadata={"user_id": "x"}), **settings)
        self.assertNotIn("metadata", body)
        self.assertEqual(record["edits"], ["unknown_fields"])
        config = gw.Config.from_dict({"providers": [dict(settings, name="x")]})
        upstream = config.providers[0]._replace(refused_fields=("mcp_servers",))
        document = gw.parse_message_request(json.dumps(saying("hi", mcp_servers=[])).encode())
        ready = gw.prepared(document.spelled, document.values, upstream,
                            gw.spoken_model(upstream, document.values["model"]), "never")
        self.assertEqual((ready.drop_betas, b"mcp" in ready.body), (("mcp-client-*",), False))

    def test_wrong_settings_are_named(self):
        table = [({"sanitize": "hard"}, "providers[0].sanitize: "),
                 ({"sanitize": {"thinking": "all"}}, "providers[0].sanitize.thinking: "),
                 ({"sanitize": {"empty": True}}, "providers[0].sanitize.empty: unknown key"),
                 ({"sanitize": {"tool_pairs": "on"}}, "providers[0].sanitize.tool_pairs: ")]
        for chosen, words in table:
            with self.subTest(str(chosen)), self.assertRaises(gw.ConfigError) as caught:
                gw.Config.from_dict({"providers": [dict(chosen, name="anthropic")]})
            self.assertTrue(caught.exception.problems[0].startswith(words), caught.exception)


class WarmupTest(RequestCase):

    def test_answered_here_as_json(self):
        body, told, record = self.sent(saying("Warmup"))
        self.assertIsNone(body)
        self.assertEqual(told.header("x-warmup-intercepted"), "true")
        message = told.json()
        self.assertTrue(message["id"].startswith("msg_warmup_"))
        self.assertEqual((message["model"], message["content"], message["usage"]),
                         ("claude-opus-5-5", [{"type": "text", "text": "OK"}],
                          {"input_tokens": 1, "output_tokens": 1}))
        self.assertEqual((record["route"], record["saved_tokens"] > 0), ("warmup", True))

    def test_counted_with_what_it_saved(self):
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for _ in range(2):
                    post(gateway, saying("Warmup"))
                support.eventually(lambda: len(gateway.records()) == 2, "the records")
                count, tokens = gateway.local_answers()["warmup"]
        self.assertEqual((count, tokens > 2), (2, True))

    def test_answered_here_as_six_events(self):
        _, told, _ = self.sent(saying("Warmup", stream=True))
        self.assertEqual(told.header("content-type"), "text/event-stream")
        self.assertEqual(len(gw.SseDecoder().feed(told.body)), 6)

    def test_goes_up_where_wanted_or_counted(self):
        body, told, _ = self.sent(saying("Warmup"), settings={"warmup": "forward"})
        self.assertEqual((body["messages"][0]["content"], told.status), ("Warmup", 200))
        answer = support.json_response({"input_tokens": 9})
        body, told, _ = self.sent(saying("Warmup"), answer=answer,
                                  path="/v1/messages/count_tokens")
        self.assertEqual(told.json(), {"input_tokens": 9})


class ModelTest(RequestCase):

    def test_thinking_suffix(self):
        body, told, record = self.sent(saying("hi", model="claude-opus-4-5-thinking",
                                              max_tokens=2000, temperature=0.5))
        self.assertEqual((body["model"], body["thinking"], "temperature" in body),
                         ("claude-opus-4-5", {"type": "enabled", "budget_tokens": 1600}, False))
        self.assertEqual(record["edits"], ["thinking_suffix", "model"])
        self.assertEqual(told.header("x-mapped-model"), "claude-opus-4-5")

    def test_suffix_of_a_listed_id_is_its_name(self):
        listed = ["claude-opus-4-5-thinking"]
        body, _, record = self.sent(saying("hi", model=listed[0]), models=listed)
        self.assertEqual((body["model"], record["edits"]), (listed[0], []))

    def test_thinking_is_asked_of_the_model_that_answers(self):
        table = [
            ({"claude-sonnet-4-5": "claude-opus-5-5"}, "claude-sonnet-4-5", {"type": "adaptive"}),
            ({"claude-opus-*": "claude-sonnet-4-5"}, "claude-opus-5-5",
             {"type": "enabled", "budget_tokens": 1024}),
            ({"fast": "claude-opus-5-5"}, "fast", {"type": "adaptive"}),
            ({"claude-*": "glm-4.6"}, "claude-opus-5", {"type": "adaptive"}),
        ]
        for model_map, model, thinking in table:
            with self.subTest(model):
                body, _, _ = self.sent(saying("hi", model=model + "-thinking", max_tokens=1100),
                                       model_map=model_map)
                self.assertEqual(body["thinking"], thinking)

    def test_suffix_then_map(self):
        body, _, _ = self.sent(saying("hi", model="claude-opus-5-thinking"),
                               model_map={"claude-opus-*": "big", "*-thinking-x": "no"})
        self.assertEqual(body["model"], "big")

    def test_default_model_for_unknown_ids(self):
        for model, expected in (("gpt-5", "m-1"), ("m-2", "m-2")):
            body, _, _ = self.sent(saying("hi", model=model), models=["m-1", "m-2"],
                                   default_model="m-1")
            self.assertEqual(body["model"], expected)

    def test_background_tasks_have_their_model(self):
        path = support.os.path.join(support.TESTS_DIRECTORY, "data", "background",
                                    "bg-title-2.1.329.json")
        with open(path, encoding="utf-8") as file:
            title = json.load(file)["body"]
        settings = {"routing": {"background_model": "claude-haiku-5-5"}}
        body, _, record = self.sent(title, settings=settings)
        self.assertEqual(body, dict(title, model="claude-haiku-5-5"))
        self.assertIn("background_model", record["edits"])
        body, _, record = self.sent(saying("Summarize this"), settings=settings)
        self.assertEqual((body["model"], record["edits"]), ("claude-opus-5-5", []))


class CollectTest(RequestCase):

    STREAM = support.stream_response(support.stream_events("Hello big world"))

    def test_long_answers_are_streamed_and_collected(self):
        body, told, record = self.sent(saying("hi", max_tokens=21334), answer=self.STREAM)
        self.assertIs(body["stream"], True)
        self.assertEqual(told.header("content-type"), "application/json")
        message = told.json()
        self.assertEqual((message["type"], message["content"], message["stop_reason"]),
                         ("message", [{"type": "text", "text": "Hello big world"}], "end_turn"))
        self.assertEqual((record["edits"], record["output_tokens"]), (["collect"], 3))

    def test_setting(self):
        table = [("auto", {"max_tokens": 21333}, None), ("never", {"max_tokens": 99999}, None),
                 ("always", {}, True), ("always", {"stream": True}, True), ("auto", {}, None)]
        for setting, more, stream in table:
            with self.subTest(setting, **more):
                answer = self.STREAM if stream else support.json_response()
                body, told, _ = self.sent(saying("hi", **more), answer=answer,
                                          settings={"stream": {"collect": setting}})
                self.assertEqual((body.get("stream"), told.status), (stream, 200))

    def test_broken_stream_is_never_a_cut_message(self):
        events = support.stream_events("Hello")
        failing = support.sse_event(dict(support.error_body("overloaded_error", "busy"),
                                         type="error"))
        table = {"cut": (support.stream_response(events[:-1]), 502),
                 "error": (support.stream_response([*events[:3], failing]), 529)}
        for name, (answer, status) in table.items():
            with self.subTest(name):
                _, told, _ = self.sent(saying("hi"), answer=answer, accounts=("a", "b"),
                                       settings={"stream": {"collect": "always"}})
                # Both accounts, and the first of them once more.
                self.assertEqual((told.status, len(self.requests)), (status, 3))

    def test_error_event_is_an_answer_of_its_type(self):
        """Claude Code compacts at "prompt is too long", and must see it as the 400 that it is."""
        said = dict(support.error_body("invalid_request_error", "prompt is too long: 5 > 4"),
                    type="error")
        answer = support.stream_response([support.sse_event(said)])
        _, told, record = self.sent(saying("hi"), answer=answer, accounts=("a", "b"),
                                    settings={"stream": {"collect": "always"}})
        self.assertEqual((told.status, told.json(), len(self.requests)), (400, said, 1))
        self.assertEqual(told.header("x-gateway-provider"), "anthropic")

    def test_an_upstream_that_does_not_stream_is_fine(self):
        _, told, _ = self.sent(saying("hi"), answer=support.json_response(),
                               settings={"stream": {"collect": "always"}})
        self.assertEqual(told.json(), support.message())


class CountTest(RequestCase):

    PATH = "/v1/messages/count_tokens"

    def test_upstreams_count(self):
        _, told, _ = self.sent(saying("hi"), answer=support.json_response({"input_tokens": 12}),
                               path=self.PATH)
        self.assertEqual((told.json(), told.header("x-gateway-estimated")),
                         ({"input_tokens": 12}, None))

    def test_estimate_where_it_has_none(self):
        for status in (404, 405, 501):
            answer = support.json_response({"error": "no such path"}, status=status)
            _, told, _ = self.sent(saying("hi there"), answer=answer, path=self.PATH)
            self.assertEqual((told.status, told.header("x-gateway-estimated")), (200, "true"))
            self.assertGreater(told.json()["input_tokens"], 0)

    def test_a_count_that_is_none_is_not_passed_on(self):
        for answer in ({"input_tokens": 0}, {}, {"input_tokens": "9"}):
            with self.subTest(str(answer)):
                _, told, _ = self.sent(saying("hi"), answer=support.json_response(answer),
                                       path=self.PATH)
                self.assertEqual(told.header("x-gateway-estimated"), "true")
        error = {"error": {"message": "Invalid URL (POST /count_tokens)", "model": None}}
        _, told, _ = self.sent(saying("hi"), answer=support.json_response(error, status=404),
                               path=self.PATH)
        self.assertEqual(told.header("x-gateway-estimated"), "true")

    def test_a_stream_instead_of_a_count_holds_no_lease(self):
        with support.ScriptedUpstream(respond=lambda request: support.stream_response(
                support.stream_events())) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for text in ("hi", "word " * 10000):
                    told = support.exchange(gateway.port, "POST", self.PATH, [JSON_TYPE],
                                            json.dumps(saying(text)).encode())
                    self.assertEqual((told.status, told.header("x-gateway-estimated")),
                                     (200, "true"))
                    counts = gateway.status()
                    self.assertEqual((counts["leases"], counts["upstream_active"]), (0, 0))

    def test_odd_usage_neither_teaches_nor_loses_the_record(self):
        for tokens in (10 ** 400, -5, True, "9"):
            message = dict(support.message(), usage={"input_tokens": tokens})
            with self.subTest(str(tokens)[:9]):
                _, told, record = self.sent(saying("hi"), answer=support.json_response(message))
                self.assertEqual((told.status, record["input_tokens"], record["ended"]),
                                 (200, 0, "complete"))

    def test_unknown_model_is_the_upstreams_word(self):
        answer = support.json_response(support.error_body("not_found_error", "model: m"), status=404)
        _, told, _ = self.sent(saying("hi"), answer=answer, path=self.PATH)
        self.assertEqual(told.status, 404)

    def test_estimate_where_the_provider_says_so(self):
        body, told, _ = self.sent(saying("hi"), path=self.PATH, count_tokens="estimate")
        self.assertIsNone(body)
        self.assertEqual(told.header("x-gateway-estimated"), "true")

    def test_estimate_follows_what_upstreams_count(self):
        answers = [support.json_response({"input_tokens": 400})] * 30
        gone = support.json_response({}, status=404)
        respond = lambda request: answers.pop() if answers else gone
        with support.ScriptedUpstream(respond=respond) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for _ in range(30):
                    message = support.message()
                    message["usage"] = {"input_tokens": 60, "output_tokens": 1}
                    answers[-1] = support.json_response(message)
                    self.assertEqual(post(gateway, saying("word " * 20)).status, 200)
                del answers[:]
                support.eventually(lambda: len(gateway.records()) == 30, "the records")
                told = post(gateway, saying("word " * 20), self.PATH)
        self.assertLess(abs(told.json()["input_tokens"] - 60), 8)


class SignatureTest(RequestCase):

    BODY = saying("hi", messages=[
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "bad"},
            {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"}])
    REFUSED = support.json_response(support.error_body(
        "invalid_request_error", "messages.1.content.0: Invalid `signature` in `thinking` block"),
        status=400)

    def run_with(self, **headers):
        def respond(request):
            return self.REFUSED if b'"thinking"' in request.body else support.json_response()

        with support.ScriptedUpstream(respond=respond) as upstream:
            with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                told = post(gateway, self.BODY, headers=list(headers.items()))
                record = record_of(gateway)
                self.assertEqual(gateway.status()["leases"], 0)
        return told, record, upstream.requests

    def test_thinking_goes_and_the_same_account_is_asked_once_more(self):
        told, record, requests = self.run_with()
        self.assertEqual((told.status, len(requests)), (200, 2))
        self.assertEqual(requests[1].json()["messages"][1]["content"],
                         [{"type": "text", "text": "b"}])
        self.assertEqual(requests[0].header("x-api-key"), requests[1].header("x-api-key"))
        self.assertIn("thinking_signature", record["edits"])
        self.assertEqual(told.header("x-gateway-attempts"), "2")

    def test_claude_code_mends_it_itself(self):
        told, _, requests = self.run_with(**{"User-Agent": "claude-cli/2.1.329 (external, cli)"})
        self.assertEqual((told.status, len(requests)), (400, 1))

    def test_nothing_to_leave_out_is_nothing_to_repair(self):
        with support.ScriptedUpstream(respond=lambda request: self.REFUSED) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                self.assertEqual(post(gateway, saying("hi")).status, 400)
                self.assertEqual(record_of(gateway)["edits"], [])
            self.assertEqual(len(upstream.requests), 1)

    def test_repair_counts_as_an_attempt(self):
        def respond(request):
            if b'"thinking"' in request.body:
                return self.REFUSED
            return support.json_response({}, status=529)

        with support.ScriptedUpstream(respond=respond) as upstream:
            with running_gateway(provider(upstream, ("a", "b", "c"))) as gateway:
                self.assertEqual(post(gateway, self.BODY).status, 529)
            self.assertEqual(len(upstream.requests), 3)

    def test_once_only(self):
        with support.ScriptedUpstream(respond=lambda request: self.REFUSED) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                self.assertEqual(post(gateway, self.BODY).status, 400)
            self.assertEqual(len(upstream.requests), 2)


class DepthTest(RequestCase):

    def test_no_depth_is_a_500(self):
        """Near the limit a body parses, but is too deep to be spelled anew from a deeper stack."""
        statuses = set()
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream, sanitize="strict")) as gateway:
                for depth in list(range(900, 1000, 3)) + [5000]:
                    deep = b"[" * depth + b"]" * depth
                    body = (b'{"model":"m","messages":[{"role":"user","content":['
                            b'{"type":"text","text":" "},{"type":"text","text":"a"},'
                            b'{"type":"tool_use","id":"t","input":%b}]}]}' % deep)
                    statuses.add(post(gateway, body).status)
        self.assertLessEqual(statuses, {200, 400})

    def test_keys_that_stand_twice_within(self):
        blank, word = b'{"type":"text","text":" "}', b'{"type":"text","text":"z"}'
        for first in (b"5", b"[%b,%b,%b]" % (word, word, word)):
            body = (b'{"model":"m","messages":[{"role":"user","content":%b,"content":[%b,%b]}]}'
                    % (first, blank, word))
            sent, told, _ = self.sent(body)
            self.assertEqual((told.status, sent["messages"][0]["content"]),
                             (200, [{"type": "text", "text": "z"}]))


class ChatTest(unittest.TestCase):

    def test_odd_blocks_are_empty_and_what_has_none_is_no_message(self):
        """What an upstream sends instead of a stream may be any JSON."""
        for content in (True, 5, "text", None, {"type": "text"}, [1, None], [{"type": []}]):
            answer = support.json_response(dict(support.message(), content=content))
            with self.subTest(content=content):
                with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
                    with running_gateway(provider(upstream), retry={"max_attempts": 1}) as gateway:
                        told = support.exchange(gateway.port, "POST", "/v1/chat/completions",
                                                [JSON_TYPE], json.dumps(saying("hi")).encode())
                self.assertEqual(told.status, 200 if isinstance(content, list) else 502)
                if told.status == 200:
                    self.assertEqual(told.json()["choices"][0]["message"]["content"], "")


class CleanTest(unittest.TestCase):

    def test_large_request_is_not_kept_while_its_stream_lasts(self):
        """A thousand agents stream for minutes; their conversations must not stay in memory."""
        gate, held = support.Gate(), []
        real = gw.RelayBody.__init__

        def noting(body, exchange, *more):
            real(body, exchange, *more)
            held.append(exchange)

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"".join(
                support.stream_events()[:2])))
            gate.wait("the test to have looked")

        with unittest.mock.patch.object(gw.RelayBody, "__init__", noting):
            with support.ScriptedUpstream(script) as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    with support.RawClient(gateway.port) as client:
                        client.request("POST", "/v1/messages", [JSON_TYPE], json.dumps(
                            saying("word " * 20000, stream=True)).encode())
                        client.read_head()
                        self.assertEqual([exchange.body for exchange in held], [None])
                        gate.open()

    def test_clean_bodies_leave_byte_for_byte(self):
        bodies = [STREAM_MESSAGE, b' {"messages":[{"role":"user","content":"x\\u00e9"}] ,"model":"m" }']
        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                for body in bodies:
                    post(gateway, body)
            self.assertEqual([request.body for request in upstream.requests], bodies)


if __name__ == "__main__":
    unittest.main()
