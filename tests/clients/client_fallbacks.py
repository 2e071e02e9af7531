"""When it does not go smoothly: broken streams, 429s and odd base URLs, with the SDKs of both vendors."""

import unittest

from tests.clients import harness
from tests.support import json_response
from tests.support import message
from tests.support import stream_events
from tests.support import stream_response


class Sdk:
    """An SDK's program with what the tests need to know of it."""

    def __init__(self, name, program, credentials, answer):
        self.name = name
        self.program = program
        self.credentials = credentials(harness.GATEWAY_KEY)
        self.answer = answer

    def says(self, text):
        """The upstream's answer to a request without a stream; OpenAI's door asks for one all the same."""
        return self.answer(text)

    def told(self, gateway, case="create"):
        return self.program.told(gateway, self.credentials, case)


def says_in_json(text):
    return json_response(message(text))


def says_in_events(text):
    return stream_response(stream_events(text))


class FallbackTest(harness.ClientTest):

    def anthropic_sdk(self, name):
        make = harness.typescript_sdk if "typescript" in name else harness.python_sdk
        return Sdk(name, make(self.folder, name), harness.api_key, says_in_json)

    def openai_sdk(self, name):
        make = harness.openai_typescript_sdk if "typescript" in name else harness.openai_python_sdk
        return Sdk(name, make(self.folder, name), harness.openai_key, says_in_events)

    def current(self):
        return [self.anthropic_sdk("sdk-python-current"), self.anthropic_sdk("sdk-typescript"),
                self.openai_sdk("openai-python-current"), self.openai_sdk("openai-typescript")]

    def old(self):
        return [self.anthropic_sdk("sdk-python-old"), self.anthropic_sdk("sdk-typescript-old"),
                self.openai_sdk("openai-python-old"), self.openai_sdk("openai-typescript-old")]

    def assert_text(self, told, text):
        self.assertNotIn("error", told)
        self.assertEqual(text, told["text"])

    def retry_counts(self):
        return [request.header("x-stainless-retry-count") for request in self.upstream.requests]

    def test_the_same_client_goes_on_after_a_broken_stream(self):
        sdks = self.old() + self.current()
        answers = [answer for sdk in sdks for answer in (harness.begun_stream(), sdk.says("whole"))]
        gateway = self.gateway_before(*answers)
        for count, sdk in enumerate(sdks, 1):
            with self.subTest(sdk.name):
                told = sdk.told(gateway, "broken_stream_then_create")
                self.assertEqual(harness.BEGUN_PIECES, told["pieces"])
                self.assertIn("Error", told.get("raised", "nothing"))
                self.assert_text(told, "whole")
                self.assertEqual(2 * count, len(self.upstream.requests))

    def test_429_is_waited_for_unseen(self):
        for sdk in self.old():
            with self.subTest(sdk.name):
                gateway = self.gateway_before(harness.too_many(1), sdk.says("waited"))
                self.assert_text(sdk.told(gateway), "waited")
                self.assert_one_request(("work", 429), ("work", 200))

    def test_429_moves_on_to_the_second_account(self):
        for sdk in self.current()[1:]:
            with self.subTest(sdk.name):
                gateway = self.gateway_with_two_accounts_before(harness.too_many(3600), sdk.says("moved on"))
                self.assert_text(sdk.told(gateway), "moved on")
                self.assert_one_request(("work", 429), ("spare", 200))

    def test_429_that_the_gateway_does_not_wait_for_is_retried_by_the_sdk(self):
        for sdk in (self.old()[0], self.current()[1]):
            with self.subTest(sdk.name):
                gateway = self.gateway_before(
                    harness.too_many(1), sdk.says("came back"), retry={"max_wait_seconds": 0})
                self.assert_text(sdk.told(gateway), "came back")
                self.assertEqual(["0", "1"], self.retry_counts())

    def test_base_urls(self):
        """OpenAI's SDKs get /v1 behind each of these from the harness."""
        runs = [(sdk, end) for end in ("/claude_api", "/v1") for sdk in self.old()]
        gateway = self.gateway_before(*(sdk.says("found") for sdk, _ in runs))
        for sdk, end in runs:
            with self.subTest(sdk.name, end=end):
                self.assert_text(sdk.told(gateway + end), "found")
        self.assertEqual({"/v1/messages"}, {request.target for request in self.upstream.requests})
        self.assert_only_the_account_was_shown()


if __name__ == "__main__":
    unittest.main()
