"""The OpenAI SDKs, through the gateway's chat completions: Python and TypeScript, old and current."""

import json
import os
import re
import unittest

from tests.clients import harness
from tests.support import GATEWAY_FILE
from tests.support import GatewayProcess
from tests.support import error_body
from tests.support import json_response
from tests.support import message
from tests.support import sse_event
from tests.support import stream_events
from tests.support import stream_response

README = os.path.join(os.path.dirname(GATEWAY_FILE), "README.md")
MODEL = "claude-opus-5-5"
CITIES = [("toolu_rome", '{"city": "Rome"}'), ("toolu_oslo", '{"city": "Oslo"}')]
THOUGHT = {"type": "thinking", "thinking": "Two cities.", "signature": "c2lnbmVk"}

# Status, type and words of the upstream; class, type and code that the SDK shows. The upstream's 529 is 503 here.
REFUSALS = [
    (400, "invalid_request_error", "prompt is too long: 9 > 8", "BadRequestError", "invalid_request_error", "context_length_exceeded"),
    (401, "authentication_error", "invalid x-api-key", "AuthenticationError", "authentication_error", "invalid_api_key"),
    (403, "permission_error", "not for you", "PermissionDeniedError", "permission_error", None),
    (404, "not_found_error", "model: claude-opus-5-5", "NotFoundError", "invalid_request_error", "model_not_found"),
    (409, "conflict_error", "twice at once", "ConflictError", "invalid_request_error", None),
    (422, "invalid_request_error", "unprocessable", "UnprocessableEntityError", "invalid_request_error", None),
    (429, "rate_limit_error", "slow down", "RateLimitError", "rate_limit_error", "rate_limit_exceeded"),
    (500, "api_error", "internal", "InternalServerError", "server_error", None),
    (529, "overloaded_error", "overloaded", "InternalServerError", "server_error", "overloaded"),
]


def block_events(index, block, *deltas):
    begun = {"type": "content_block_start", "index": index, "content_block": block}
    middle = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [begun, *middle, {"type": "content_block_stop", "index": index}]


def weather_calls():
    """A streamed answer that thinks, says something, and asks for the weather in two cities at once."""
    start = dict(message(), content=[], stop_reason=None)
    start["usage"] = {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 1}
    events = [{"type": "message_start", "message": start}]
    events += block_events(0, {"type": "thinking", "thinking": "", "signature": ""},
                           {"type": "thinking_delta", "thinking": THOUGHT["thinking"]},
                           {"type": "signature_delta", "signature": THOUGHT["signature"]})
    events += block_events(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "I look."})
    for index, (tool_id, text) in enumerate(CITIES, 2):
        block = {"type": "tool_use", "id": tool_id, "name": "get_weather", "input": {}}
        pieces = ["", text[:5], text[5:]]
        events += block_events(index, block, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))
    events += [{"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                "usage": {"output_tokens": 40}}, {"type": "message_stop"}]
    return stream_response([sse_event(event) for event in events])


def says(text):
    return stream_response(stream_events(text))


class OpenAiTests:
    """What every SDK must get."""

    def sdk(self, **environment):
        """The program to run; the classes below say whose."""
        raise NotImplementedError

    def told_through_gateway(self, case, *answers, key=harness.GATEWAY_KEY, **environment):
        return self.sdk(**environment).told(self.gateway_before(*answers), harness.openai_key(key), case)

    def assert_completion(self, told, text, finish_reason="stop"):
        self.assertNotIn("error", told)
        self.assertEqual((text, finish_reason), (told["text"], told["finish_reason"]))
        self.assert_only_the_account_was_shown()

    def body(self, number=0):
        """A request's body as the upstream saw it; the upstream side is always a stream."""
        request = self.upstream.requests[number]
        body = json.loads(request.body.decode("utf-8"))
        self.assertEqual(("/v1/messages", True, MODEL), (request.target, body["stream"], body["model"]))
        return body

    def test_create(self):
        told = self.told_through_gateway("create", says("Grüße \N{WAVING HAND SIGN}"))
        self.assert_completion(told, "Grüße \N{WAVING HAND SIGN}")
        self.assertEqual(("chat.completion", MODEL), (told["object"], told["model"]))
        self.assertTrue(told["id"].startswith("chatcmpl-"), told)
        self.assertEqual({"prompt": 10, "completion": 2, "total": 12, "cached": 0}, told["usage"])
        body = self.body()
        self.assertIn("Be brief.", json.dumps(body["system"]))
        self.assertEqual((["user"], 64), ([turn["role"] for turn in body["messages"]], body["max_tokens"]))

    def test_stream(self):
        told = self.told_through_gateway("stream", says("Grüße aus der Ferne"))
        self.assert_completion(told, "Grüße aus der Ferne")
        self.assertEqual(["Grüße", " aus", " der", " Ferne"], told["pieces"])
        self.assertEqual((1, None), (len(told["ids"]), told["usage"]))

    def test_stream_with_usage(self):
        told = self.told_through_gateway("stream_usage", says("Grüße aus der Ferne"))
        self.assert_completion(told, "Grüße aus der Ferne")
        self.assertEqual({"prompt": 10, "completion": 4, "total": 14, "cached": 0}, told["usage"])

    def test_the_helper_that_collects_a_stream(self):
        told = self.told_through_gateway("stream_helper", says("Grüße aus der Ferne"))
        self.assert_completion(told, "Grüße aus der Ferne")
        self.assertEqual("Grüße aus der Ferne", "".join(told["pieces"]))

    def test_tools_over_two_rounds(self):
        told = self.told_through_gateway("tools", weather_calls(), says("Sunny."))
        first = told.get("first")
        self.assertEqual(("I look.", "tool_calls", "Two cities."),
                         (first["text"], first["finish_reason"], first["reasoning"]), told)
        self.assertEqual([[tool_id, "function", "get_weather", json.loads(text)] for tool_id, text in CITIES],
                         [call[:3] + [json.loads(call[3])] for call in first["calls"]])
        self.assertEqual({"prompt": 10, "completion": 40, "total": 50, "cached": 7}, first["usage"])
        self.assert_completion(told, "Sunny.")
        self.assertEqual(["get_weather"], [tool["name"] for tool in self.body()["tools"]])
        self.assert_second_round(self.body(1)["messages"])

    def assert_second_round(self, messages):
        """The calls and their results are where the Messages API wants them, the signed thinking in front."""
        self.assertEqual(["user", "assistant", "user"], [turn["role"] for turn in messages])
        self.assertEqual(["thinking", "text", "tool_use", "tool_use"], [block["type"] for block in messages[1]["content"]])
        self.assertEqual(THOUGHT, messages[1]["content"][0])
        self.assertEqual([(tool_id, json.loads(text)) for tool_id, text in CITIES],
                         [(block["id"], block["input"]) for block in messages[1]["content"][2:]])
        self.assertEqual([("tool_result", tool_id) for tool_id, _ in CITIES],
                         [(block["type"], block["tool_use_id"]) for block in messages[2]["content"]])
        self.assertIn("sunny in Oslo", json.dumps(messages[2]))

    def test_parallel_tools_in_a_stream(self):
        told = self.told_through_gateway("stream_tools", weather_calls())
        self.assert_completion(told, "I look.", "tool_calls")
        self.assertEqual([[tool_id, "function", "get_weather", text] for tool_id, text in CITIES], told["calls"])
        self.assertEqual("Two cities.", told["reasoning"])

    def test_image(self):
        told = self.told_through_gateway("image", says("A pixel."))
        self.assert_completion(told, "A pixel.")
        text, image = self.body()["messages"][0]["content"]
        self.assertEqual(("text", "image"), (text["type"], image["type"]))
        self.assertEqual(("base64", "image/png"), (image["source"]["type"], image["source"]["media_type"]))

    def test_pdf(self):
        told = self.told_through_gateway("pdf", says("Nothing."))
        self.assert_completion(told, "Nothing.")
        file = self.body()["messages"][0]["content"][0]
        self.assertEqual(("document", "application/pdf"), (file["type"], file["source"]["media_type"]))

    def test_parse(self):
        told = self.told_through_gateway("parse", says('{"colour": "blue", "numbers": [1, 2]}'))
        self.assertEqual({"colour": "blue", "numbers": [1, 2]}, told.get("parsed"), told)
        self.assertEqual("json_schema", self.body()["output_config"]["format"]["type"])

    def test_two_choices_are_refused(self):
        told = self.told_through_gateway("two_choices")
        error = told["error"]
        self.assertEqual(("BadRequestError", 400, "n", "unsupported_value"),
                         (error["class"], error["status"], error["param"], error["code"]))
        self.assertEqual([], self.upstream.requests)

    def test_wrong_gateway_key(self):
        error = self.told_through_gateway("create", key="sk-wrong")["error"]
        self.assertEqual(("AuthenticationError", 401, "invalid_api_key"), (error["class"], error["status"], error["code"]))
        self.assertEqual([], self.upstream.requests)

    def test_every_refusal_raises_its_class(self):
        """With the client's own credential, what an upstream says is passed on as it is, and rests nobody."""
        answers = [json_response(error_body(kind, words), status=status, headers=[("x-should-retry", "false")])
                   for status, kind, words, *_ in REFUSALS]
        gateway = self.transparent_gateway_before(*answers)
        told = self.sdk(ERRORS_COUNT=str(len(REFUSALS))).told(gateway, harness.openai_key(harness.UPSTREAM_KEY), "errors")
        expected = [[name, 503 if status == 529 else status, kind, code]
                    for status, _, _, name, kind, code in REFUSALS]
        self.assertEqual(expected, [[error and error[key] for key in ("class", "status", "type", "code")]
                                    for error in told["raised"]])
        for error, (_, _, words, *_) in zip(told["raised"], REFUSALS):
            self.assertIn(words, error["message"])
            self.assertTrue(error["request_id"], error)
        self.assertEqual(len(REFUSALS), len(self.upstream.requests))

    def assert_raised_after_the_first_pieces(self, told):
        """The text so far was seen, then an error; never an answer that looks complete."""
        self.assertEqual(harness.BEGUN_PIECES, told["pieces"])
        self.assertEqual("APIError", told["error"]["class"])
        self.assertIsNone(told["finish_reason"])

    def test_stream_cut_in_the_middle_of_the_text(self):
        self.assert_raised_after_the_first_pieces(self.told_through_gateway("stream", harness.begun_stream()))

    def test_error_event_in_the_middle_of_the_text(self):
        error = sse_event(error_body("overloaded_error", "busy"))
        told = self.told_through_gateway("stream", stream_response([*stream_events("Once upon a time")[:5], error]))
        self.assert_raised_after_the_first_pieces(told)
        self.assertEqual(("server_error", "overloaded"), (told["error"]["type"], told["error"]["code"]))

    def test_models(self):
        told = self.told_through_gateway("models")
        self.assertEqual([harness.LISTED_MODEL], told.get("ids"), told)
        self.assertEqual((told["ids"], ["str"]), (told["retrieved"], told["owners"]))
        self.assertEqual([], self.upstream.requests)

    def test_unknown_model(self):
        error = self.told_through_gateway("unknown_model")["error"]
        self.assertEqual(("NotFoundError", 404), (error["class"], error["status"]))

    def test_the_demo_answers(self):
        gateway = self.entered(GatewayProcess(args=["--demo"])).url
        for case in ("create", "stream_usage"):
            told = self.sdk().told(gateway, harness.openai_key("any"), case)
            self.assertNotIn("error", told)
            self.assertIn("demo upstream", told["text"])
            self.assertEqual("stop", told["finish_reason"])


class OpenAiPythonTests(OpenAiTests):
    """The Python SDKs have a second, asynchronous client with another transport."""

    name = None

    def sdk(self, **environment):
        return harness.openai_python_sdk(self.folder, self.name, **environment)

    def test_async_create(self):
        self.assert_completion(self.told_through_gateway("async_create", says("Hello")), "Hello")

    def test_async_stream(self):
        told = self.told_through_gateway("async_stream", says("Hello from afar"))
        self.assert_completion(told, "Hello from afar")

    def test_async_stream_cut_in_the_middle_of_the_text(self):
        told = self.told_through_gateway("async_stream", harness.begun_stream())
        self.assert_raised_after_the_first_pieces(told)


class OneListTest(harness.ClientTest):
    """What OpenAI's SDKs read in the list of models is in test_models above."""

    def test_the_sdks_of_the_other_vendor_read_the_same(self):
        gateway = self.gateway_before()
        told = harness.openai_python_sdk(self.folder, "openai-python-old").told(
            gateway, harness.openai_key(harness.GATEWAY_KEY), "models")
        others = [harness.python_sdk(self.folder, name) for name in ("sdk-python-old", "sdk-python-current")]
        others += [harness.typescript_sdk(self.folder, name) for name in ("sdk-typescript-old", "sdk-typescript")]
        for other in others:
            seen = other.told(gateway, harness.api_key(harness.GATEWAY_KEY), "retrieve_models")
            self.assertEqual((told["ids"], told["retrieved"]), (seen.get("ids"), seen.get("ids")), seen)


class ReadmeTest(harness.ClientTest):

    def test_its_example_is_answered(self):
        with open(README, encoding="utf-8") as file:
            example = re.search(r"```python\n(client = openai.*?)```", file.read(), re.DOTALL).group(1)
        url = self.gateway_before(says("Hello"))
        example = example.replace("http://127.0.0.1:8045", url).replace("a-gateway-key", harness.GATEWAY_KEY)
        lines = example.strip().split("\n")
        program = "\n".join(["import openai", *lines[:-1], "print((%s).choices[0].message.content)" % lines[-1]])
        interpreter = harness.installed("openai-python-current", "bin", "python")
        finished = harness.run([interpreter, "-c", program], harness.bare_environment(self.folder), self.folder)
        self.assertEqual((0, "Hello"), (finished.code, finished.text))


class OpenAiPythonOldTest(OpenAiPythonTests, harness.ClientTest):
    name = "openai-python-old"


class OpenAiPythonCurrentTest(OpenAiPythonTests, harness.ClientTest):
    name = "openai-python-current"


class OpenAiTypeScriptOldTest(OpenAiTests, harness.ClientTest):
    def sdk(self, **environment):
        return harness.openai_typescript_sdk(self.folder, "openai-typescript-old", **environment)


class OpenAiTypeScriptTest(OpenAiTests, harness.ClientTest):
    def sdk(self, **environment):
        return harness.openai_typescript_sdk(self.folder, **environment)


if __name__ == "__main__":
    unittest.main()
