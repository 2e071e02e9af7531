"""Section 18: the demo upstream, seen through the gateway as any other."""

import contextlib
import json
import unittest

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import running_gateway


def body_of(text, **fields):
    """A request whose newest user text is ``text``."""
    return json.dumps(dict({
        "model": "claude-demo-1", "max_tokens": 100,
        "messages": [{"role": "user", "content": text}]}, **fields)).encode("utf-8")


class DemoTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        context = running_gateway({"name": "demo"})
        cls.gateway = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)

    def ask(self, text, **fields):
        return support.exchange(self.gateway.port, "POST", "/v1/messages", [JSON_TYPE],
                                body_of(text, **fields))

    @contextlib.contextmanager
    def another_gateway(self):
        """A fault rests the demo's account, as any upstream's would: each has its own gateway."""
        with running_gateway({"name": "demo"}, retry={"max_wait_seconds": 0}) as gateway:
            self.gateway, usual = gateway, self.gateway
            yield
            self.gateway = usual

    def events(self, text, **fields):
        """(type, object) of each event of a streamed answer."""
        answer = self.ask(text, stream=True, **fields)
        self.assertEqual(answer.status, 200)
        return [(event.type, json.loads(event.data.decode("utf-8")))
                for event in gw.SseDecoder().feed(answer.body)]

    def test_echoes_and_says_what_it_is(self):
        answer = self.ask("Good morning").json()
        self.assertEqual((answer["type"], answer["role"], answer["model"], answer["stop_reason"]),
                         ("message", "assistant", "claude-demo-1", "end_turn"))
        text = answer["content"][0]["text"]
        self.assertIn("demo", text)
        self.assertIn("You said: Good morning", text)
        self.assertGreater(answer["usage"]["output_tokens"], 1)

    def test_stream_is_the_same_message_word_by_word(self):
        events = self.events("Good morning")
        types = [name for name, _ in events]
        self.assertEqual(types[:2] + types[-3:], [
            "message_start", "content_block_start", "content_block_stop", "message_delta",
            "message_stop"])
        words = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
        self.assertGreater(len(words), 5)
        self.assertEqual("".join(words), self.ask("Good morning").json()["content"][0]["text"])

    def test_newest_typed_text_counts(self):
        messages = [
            {"role": "user", "content": "first"}, {"role": "assistant", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>no"},
                                         {"type": "text", "text": "typed"}]},
            {"role": "system", "content": []}]
        text = self.ask("", messages=messages).json()["content"][0]["text"]
        self.assertTrue(text.endswith("You said: typed"), text)

    def test_thinking_where_asked(self):
        content = self.ask("hi", thinking={"type": "adaptive"}).json()["content"]
        self.assertEqual([block["type"] for block in content], ["thinking", "text"])
        self.assertTrue(content[0]["signature"])

    def test_tool_use_where_offered(self):
        text, tools = 'demo:tool Read {"path": "a b", "n": 1}', [{"name": "Read"}]
        answer = self.ask(text, tools=tools).json()
        self.assertEqual(answer["stop_reason"], "tool_use")
        self.assertEqual((answer["content"][-1]["name"], answer["content"][-1]["input"]),
                         ("Read", {"path": "a b", "n": 1}))
        parts = [data["delta"]["partial_json"]
                 for name, data in self.events(text, tools=tools)
                 if name == "content_block_delta" and "partial_json" in data["delta"]]
        self.assertEqual(json.loads("".join(parts)), {"path": "a b", "n": 1})
        self.assertEqual(self.ask(text).json()["stop_reason"], "end_turn")

    def test_faults_on_request(self):
        table = [("demo:429 5", 429), ("demo:529", 529), ("demo:500", 500), ("demo:401", 502),
                 ("demo:html", 502), ("demo:tool x {no", 200)]
        for text, status in table:
            with self.subTest(text), self.another_gateway():
                answer = self.ask(text)
                self.assertEqual(answer.status, status)
                if status == 429:
                    self.assertEqual(answer.header("retry-after"), "5")
        self.assertEqual(self.ask("demo:tool Read {no}", tools=[{"name": "Read"}]).status, 400)

    def test_faults_within_a_stream(self):
        for text, kind in (("demo:cut", "api_error"), ("demo:error", "overloaded_error")):
            with self.subTest(text), self.another_gateway():
                name, data = self.events(text)[-1]
                self.assertEqual((name, data["error"]["type"]), ("error", kind))

    def test_slow_waits_first(self):
        pauses = []
        demo = gw.DemoUpstream(gw.Secret("k"), pauses.append, lambda: "demo_1")
        for argument in ("2", "1e9", "9999", "soon"):
            request = gw.HttpRequest("POST", "/v1/messages", gw.Headers([("x-api-key", "k")]),
                                     lambda: body_of("demo:slow " + argument))
            self.assertEqual(demo.handle(request).status, 200)
        self.assertEqual(pauses, [2.0, 0.0, gw.DEMO_MAX_SLOW_SECONDS, 0.0])

    def test_counts_tokens_never_zero(self):
        answer = support.exchange(self.gateway.port, "POST", "/v1/messages/count_tokens",
                                  [JSON_TYPE], body_of("hi"))
        self.assertGreater(answer.json()["input_tokens"], 0)

    def test_serves_the_gateway_alone(self):
        """Its port is open to the whole machine: without the key it answers nothing."""
        demo = gw.DemoUpstream(gw.Secret("k"), lambda seconds: None, lambda: "demo_1")
        request = gw.HttpRequest("POST", "/v1/messages", gw.Headers([("x-api-key", "no")]),
                                 lambda: body_of("hi"))
        self.assertEqual(demo.handle(request).status, 401)

    def test_its_models_are_listed(self):
        answer = support.exchange(self.gateway.port, "GET", "/v1/models").json()
        self.assertEqual([model["id"] for model in answer["data"]],
                         ["claude-demo-1", "claude-demo-fast"])


if __name__ == "__main__":
    unittest.main()
