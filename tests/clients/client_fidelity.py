"""What reaches the upstream is what the client would have sent it directly.

Each client asks the same upstream twice directly and once through the gateway. The two direct runs show
that the client repeats itself to the byte; without that, the comparison with the third would prove nothing.
"""

import os
import unittest

from tests.clients import harness
from tests.support import json_response
from tests.support import message
from tests.support import stream_events
from tests.support import stream_response
from tests.support import tool_use_events

HELLO = stream_response(stream_events("Hello"))


class Comparison(harness.ClientTest):
    def assert_came_through_the_gateway(self, arrived):
        """No client asks for this by itself."""
        self.assertEqual(["identity"], arrived.all("accept-encoding"))


class FidelityTest(Comparison):
    def runs(self, run, *answers):
        """The requests of two direct runs and of one through the gateway."""
        gateway = self.gateway_before(*(answers * 3))
        upstream_key = harness.api_key(harness.UPSTREAM_KEY)
        gateway_key = harness.api_key(harness.GATEWAY_KEY)
        first = self.recorded(run, self.upstream.url, upstream_key)
        second = self.recorded(run, self.upstream.url, upstream_key)
        self.assertEqual(len(answers), len(first))
        self.assertEqual(list(map(harness.said, first)), list(map(harness.said, second)))
        return first, self.recorded(run, gateway, gateway_key)

    def recorded(self, run, base_url, credentials):
        before = len(self.upstream.requests)
        finished = run(base_url, credentials)
        self.assertEqual(0, finished.code, finished)
        return self.upstream.requests[before:]

    def assert_faithful(self, run, *answers):
        direct, relayed = self.runs(run, *answers)
        self.assertEqual(len(direct), len(relayed))
        for sent, arrived in zip(direct, relayed):
            self.assert_same(sent, arrived)

    def assert_same(self, sent, arrived):
        self.assertEqual(sent.body, arrived.body)
        self.assertEqual((sent.method, sent.target), (arrived.method, arrived.target))
        self.assertEqual(harness.end_to_end(sent), harness.end_to_end(arrived))
        self.assertEqual([str(len(sent.body))], arrived.all("content-length"))
        self.assert_came_through_the_gateway(arrived)
        self.assertEqual([("x-api-key", harness.UPSTREAM_KEY)], harness.credentials_in(arrived))

    def test_claude_code(self):
        self.assert_faithful(harness.ClaudeCode(self.folder).run, HELLO)

    def test_claude_code_with_a_tool_round(self):
        claude = harness.ClaudeCode(self.folder)
        claude.files["note.txt"] = "the note says 4711"
        note = os.path.join(claude.work, "note.txt")
        call = stream_response(tool_use_events("Read", {"file_path": note}, "toolu_note"))
        self.assert_faithful(claude.run, call, stream_response(stream_events("I read the note")))

    def assert_program_is_faithful(self, sdk):
        for case, answer in (
            ("create", json_response(message("Hello"))),
            ("stream", HELLO),
            ("count_tokens", json_response({"input_tokens": 7})),
        ):
            with self.subTest(case):
                self.assert_faithful(lambda base_url, key: sdk.run(base_url, key, case), answer)

    def test_python_old(self):
        self.assert_program_is_faithful(harness.python_sdk(self.folder, "sdk-python-old"))

    def test_python_0125(self):
        self.assert_program_is_faithful(harness.python_sdk(self.folder, "sdk-python-0.125"))

    def test_python_current(self):
        self.assert_program_is_faithful(harness.python_sdk(self.folder, "sdk-python-current"))

    def test_typescript(self):
        self.assert_program_is_faithful(harness.typescript_sdk(self.folder))

    def test_curl(self):
        curl = harness.on_path("curl")
        environment = harness.bare_environment(self.folder)
        # Spaces, an escape and an unknown field: bytes that a parse and a dump would not give back.
        body = '{"model":"claude-opus-5-5",  "max_tokens":64, "x":1.0, "messages":[{"role":"user","content":"h\\u00e9"}]}'

        def run(base_url, credentials):
            key = "x-api-key: %s" % credentials["ANTHROPIC_API_KEY"]
            headers = ["-H", key, "-H", "anthropic-version: 2023-06-01", "-H", "Content-Type: application/json"]
            command = [curl, "-sS", "--max-time", "20", base_url + "/v1/messages?beta=true"]
            return harness.run(command + headers + ["-d", body], environment, self.folder)

        self.assert_faithful(run, json_response(message("Hello")))


class TransparentFidelityTest(Comparison):
    """Without accounts even the credential arrives in the place and the spelling the client gave it."""

    def assert_faithful(self, run, credentials, answer):
        gateway = self.transparent_gateway_before(answer, answer)
        for base_url in (self.upstream.url, gateway):
            finished = run(base_url, credentials)
            self.assertEqual(0, finished.code, finished)
        sent, arrived = self.upstream.requests
        self.assertEqual(sent.body, arrived.body)
        self.assertEqual(harness.end_to_end(sent, credentials=True), harness.end_to_end(arrived, credentials=True))
        self.assertNotEqual([], harness.credentials_in(arrived))
        self.assert_came_through_the_gateway(arrived)

    def test_claude_code_with_api_key(self):
        run = harness.ClaudeCode(self.folder).run
        self.assert_faithful(run, harness.api_key("sk-my-own"), HELLO)

    def test_claude_code_with_token(self):
        run = harness.ClaudeCode(self.folder).run
        self.assert_faithful(run, harness.auth_token("my-own-token"), HELLO)

    def test_python_current(self):
        run = harness.python_sdk(self.folder, "sdk-python-current").run
        self.assert_faithful(run, harness.api_key("sk-my-own"), json_response(message("Hello")))

    def test_typescript(self):
        run = harness.typescript_sdk(self.folder).run
        self.assert_faithful(run, harness.api_key("sk-my-own"), json_response(message("Hello")))


if __name__ == "__main__":
    unittest.main()
