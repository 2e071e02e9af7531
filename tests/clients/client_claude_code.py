"""Claude Code's command line in print mode, through the gateway."""

import json
import os
import unittest

from tests.clients import harness
from tests.support import stream_events
from tests.support import stream_response
from tests.support import tool_use_events

HELLO = stream_response(stream_events("Hello from upstream"))
NOTE = "the note says 4711"


class ClaudeCodeTest(harness.ClientTest):
    def setUp(self):
        super().setUp()
        self.claude = harness.ClaudeCode(self.folder)

    def assert_printed(self, finished, text):
        self.assertEqual(0, finished.code, finished)
        self.assertEqual(text, finished.text, finished)

    def assert_prints_the_answer(self, base_url, credentials):
        """One prompt, one request at the upstream, the upstream's words on standard output."""
        finished = self.claude.run(base_url, credentials)
        self.assert_printed(finished, "Hello from upstream")
        self.assertEqual(["/v1/messages?beta=true"], [r.target for r in self.upstream.requests])

    def test_api_key(self):
        gateway = self.gateway_before(HELLO)
        self.assert_prints_the_answer(gateway, harness.api_key(harness.GATEWAY_KEY))
        self.assert_only_the_account_was_shown()

    def test_auth_token(self):
        gateway = self.gateway_before(HELLO)
        self.assert_prints_the_answer(gateway, harness.auth_token(harness.GATEWAY_KEY))
        self.assert_only_the_account_was_shown()

    def test_both_credentials(self):
        """The client then sends both headers; one of them being ours is enough."""
        gateway = self.gateway_before(HELLO)
        credentials = dict(harness.api_key("sk-of-another-place"), **harness.auth_token(harness.GATEWAY_KEY))
        self.assert_prints_the_answer(gateway, credentials)
        self.assert_only_the_account_was_shown()

    def test_transparent_gateway_hands_on_the_own_credential(self):
        gateway = self.transparent_gateway_before(HELLO)
        self.assert_prints_the_answer(gateway, harness.api_key("sk-my-own"))
        self.assertEqual([("x-api-key", "sk-my-own")], harness.credentials_in(self.upstream.requests[0]))

    def test_transparent_gateway_hands_on_the_own_token(self):
        gateway = self.transparent_gateway_before(HELLO)
        self.assert_prints_the_answer(gateway, harness.auth_token("my-own-token"))
        self.assertEqual([("authorization", "Bearer my-own-token")],
                         harness.credentials_in(self.upstream.requests[0]))

    def test_base_url_with_the_antigravity_suffix(self):
        gateway = self.gateway_before(HELLO)
        self.assert_prints_the_answer(gateway + "/claude_api", harness.api_key(harness.GATEWAY_KEY))
        self.assert_only_the_account_was_shown()

    def test_base_url_that_names_the_version_already(self):
        gateway = self.gateway_before(HELLO)
        self.assert_prints_the_answer(gateway + "/v1", harness.api_key(harness.GATEWAY_KEY))
        self.assert_only_the_account_was_shown()

    def test_wrong_key_ends_at_once(self):
        """The client repeats a 401 for three minutes unless x-should-retry tells it not to."""
        gateway = self.gateway_before()
        finished = self.claude.run(gateway, harness.api_key("sk-wrong"))
        self.assertNotEqual(0, finished.code, finished)
        self.assertIn("Invalid API key", finished.text, finished)
        self.assertEqual([], self.upstream.requests)

    def test_tool_round(self):
        self.claude.files["note.txt"] = NOTE
        note = os.path.join(self.claude.work, "note.txt")
        call = stream_response(tool_use_events("Read", {"file_path": note}, "toolu_note"))
        gateway = self.gateway_before(call, stream_response(stream_events("I read the note")))
        finished = self.claude.run(gateway, harness.api_key(harness.GATEWAY_KEY), "What does the note say?")
        self.assert_printed(finished, "I read the note")
        self.assertEqual(2, len(self.upstream.requests))
        self.assert_only_the_account_was_shown()
        self.assert_answers_the_call(self.upstream.requests[1].json())

    def test_stream_that_breaks_is_asked_for_again(self):
        """After an error in the middle of the text the client asks once more, for fewer tokens and without a
        stream; the gateway asks the upstream for one all the same, since the answer may be long."""
        gateway = self.gateway_before(harness.begun_stream(), HELLO)
        finished = self.claude.run(gateway, harness.api_key(harness.GATEWAY_KEY))
        self.assert_printed(finished, "Hello from upstream")
        first, second = (request.json() for request in self.upstream.requests)
        self.assertEqual((True, True), (first["stream"], second["stream"]))
        self.assertLess(second["max_tokens"], first["max_tokens"])
        self.assertEqual(first["messages"], second["messages"])
        self.assert_only_the_account_was_shown()

    def test_429_is_waited_for_unseen(self):
        gateway = self.gateway_before(harness.too_many(1), HELLO)
        self.assert_printed(self.claude.run(gateway, harness.api_key(harness.GATEWAY_KEY)), "Hello from upstream")
        self.assert_one_request(("work", 429), ("work", 200))

    def test_429_moves_on_to_the_second_account(self):
        gateway = self.gateway_with_two_accounts_before(harness.too_many(3600), HELLO)
        self.assert_printed(self.claude.run(gateway, harness.api_key(harness.GATEWAY_KEY)), "Hello from upstream")
        self.assert_one_request(("work", 429), ("spare", 200))
        shown = [harness.credentials_in(request) for request in self.upstream.requests]
        self.assertEqual([[("x-api-key", harness.UPSTREAM_KEY)], [("x-api-key", harness.SPARE_KEY)]], shown)

    def assert_answers_the_call(self, asked):
        call, result = asked["messages"][-2:]
        self.assertEqual(("assistant", "user"), (call["role"], result["role"]))
        self.assertEqual(["toolu_note"], [b["id"] for b in call["content"] if b["type"] == "tool_use"])
        results = [b for b in result["content"] if b["type"] == "tool_result"]
        self.assertEqual(["toolu_note"], [b["tool_use_id"] for b in results])
        self.assertIn(NOTE, json.dumps(results))


if __name__ == "__main__":
    unittest.main()
