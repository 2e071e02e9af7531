"""The Anthropic SDKs, through the gateway: Python and TypeScript, old and current."""

import unittest

from tests.clients import harness
from tests.support import LAST_CHUNK
from tests.support import json_response
from tests.support import message
from tests.support import stream_events
from tests.support import stream_response

REFUSAL = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "max_tokens: 64 > 32, which is the maximum"},
    "request_id": "req_of_the_upstream",
}


class SdkTests:
    """What every SDK must get; the names of the errors are the same in all of them."""

    def sdk(self):
        """The program to run; the classes below say whose."""
        raise NotImplementedError

    def setUp(self):
        super().setUp()
        self.program = self.sdk()

    def told_through_gateway(self, case, *answers, key=harness.GATEWAY_KEY):
        return self.program.told(self.gateway_before(*answers), harness.api_key(key), case)

    def assert_message(self, told, text):
        self.assertNotIn("error", told)
        self.assertEqual((text, "end_turn"), (told["text"], told["stop_reason"]))
        self.assertEqual(1, len(self.upstream.requests))
        self.assert_only_the_account_was_shown()

    def assert_streamed(self, told, text):
        self.assert_message(told, text)
        self.assertEqual(text, "".join(told["pieces"]))

    def assert_raised_after_the_first_pieces(self, told):
        """The text so far was seen, then an error; never a message that looks complete."""
        self.assertEqual(harness.BEGUN_PIECES, told["pieces"])
        self.assertIn("error", told)
        self.assertNotIn("text", told)
        self.assertEqual(1, len(self.upstream.requests))

    def test_create(self):
        told = self.told_through_gateway("create", json_response(message("Grüße \N{WAVING HAND SIGN}")))
        self.assert_message(told, "Grüße \N{WAVING HAND SIGN}")

    def test_stream(self):
        told = self.told_through_gateway("stream", stream_response(stream_events("Grüße aus der Ferne")))
        self.assert_streamed(told, "Grüße aus der Ferne")

    def test_auth_token(self):
        gateway = self.gateway_before(json_response(message("Hello")))
        told = self.program.told(gateway, harness.auth_token(harness.GATEWAY_KEY), "create")
        self.assert_message(told, "Hello")

    def test_count_tokens(self):
        told = self.told_through_gateway("count_tokens", json_response({"input_tokens": 4711}))
        self.assertEqual(4711, told.get("input_tokens"), told)
        self.assertEqual(["/v1/messages/count_tokens"], [r.target for r in self.upstream.requests])
        self.assert_only_the_account_was_shown()

    def test_models(self):
        told = self.told_through_gateway("models")
        self.assertEqual([harness.LISTED_MODEL], told.get("ids"), told)
        self.assertEqual([], self.upstream.requests)

    def test_refusal_of_the_upstream_arrives_as_it_is(self):
        told = self.told_through_gateway("create", json_response(REFUSAL, status=400))
        self.assertEqual("BadRequestError", told["error"]["class"])
        self.assertEqual((400, REFUSAL), (told["error"]["status"], told["error"]["body"]))
        self.assertEqual(1, len(self.upstream.requests))

    def test_wrong_gateway_key(self):
        told = self.told_through_gateway("create", key="sk-wrong")
        self.assertEqual(("AuthenticationError", 401), (told["error"]["class"], told["error"]["status"]))
        self.assertEqual("authentication_error", told["error"]["body"]["error"]["type"])
        self.assertEqual([], self.upstream.requests)

    def test_stream_cut_in_the_middle_of_the_text(self):
        told = self.told_through_gateway("stream", harness.begun_stream())
        self.assert_raised_after_the_first_pieces(told)

    def test_stream_that_stops_short_but_ends_cleanly(self):
        """Asked directly, the Python SDK takes this for a whole message; the gateway knows better."""
        told = self.told_through_gateway("stream", harness.begun_stream() + LAST_CHUNK)
        self.assert_raised_after_the_first_pieces(told)


class PythonSdkTests(SdkTests):
    """The Python SDKs have a second, asynchronous client with another transport."""

    name = None

    def sdk(self):
        return harness.python_sdk(self.folder, self.name)

    def test_async_create(self):
        told = self.told_through_gateway("async_create", json_response(message("Hello")))
        self.assert_message(told, "Hello")

    def test_async_stream(self):
        told = self.told_through_gateway("async_stream", stream_response(stream_events("Hello from afar")))
        self.assert_streamed(told, "Hello from afar")

    def test_async_stream_cut_in_the_middle_of_the_text(self):
        told = self.told_through_gateway("async_stream", harness.begun_stream())
        self.assert_raised_after_the_first_pieces(told)


class PythonOldTest(PythonSdkTests, harness.ClientTest):
    name = "sdk-python-old"


class Python0125Test(PythonSdkTests, harness.ClientTest):
    name = "sdk-python-0.125"


class PythonCurrentTest(PythonSdkTests, harness.ClientTest):
    name = "sdk-python-current"


class TypeScriptOldTest(SdkTests, harness.ClientTest):
    """It goes through node-fetch, whose connections and streams are others than those of Node's own fetch."""

    def sdk(self):
        return harness.typescript_sdk(self.folder, "sdk-typescript-old")


class TypeScriptTest(SdkTests, harness.ClientTest):
    def sdk(self):
        return harness.typescript_sdk(self.folder)


if __name__ == "__main__":
    unittest.main()
