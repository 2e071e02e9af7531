"""Claude Code as people use it: in a terminal, turn after turn, through the gateway."""

import json
import os
import unittest

from tests.clients import harness
from tests.clients import terminal
from tests.support import LAST_CHUNK
from tests.support import SSE_HEAD
from tests.support import Gate
from tests.support import chunk
from tests.support import stream_events
from tests.support import stream_response


def says(text):
    return stream_response(stream_events(text))


class TerminalTest(harness.ClientTest):
    def setUp(self):
        super().setUp()
        self.claude = harness.ClaudeCode(self.folder)

    def started(self, gateway, credentials, *options):
        """Claude Code in a terminal, asked by nobody for its theme, its key or whether the folder is trusted."""
        self.claude.start_afresh()
        answered = {
            "projects": {self.claude.work: {"hasTrustDialogAccepted": True}},
            "customApiKeyResponses": {"approved": [harness.GATEWAY_KEY], "rejected": []},
        }
        with open(os.path.join(self.claude.home, ".claude.json"), "w") as settings:
            json.dump(dict(self.claude.SETTINGS, **answered), settings)
        environment = self.claude.environment(gateway, credentials)
        return self.entered(terminal.Terminal([self.claude.path, *options], environment, self.claude.work))

    def assert_exits(self, screen):
        screen.type("/exit")
        self.assertEqual(0, screen.wait_for_the_end())

    def prompts(self):
        """What the person had said by the time of each request."""
        typed = []
        for request in self.upstream.requests:
            users = [turn["content"] for turn in request.json()["messages"] if turn["role"] == "user"]
            typed.append([text if isinstance(text, str) else text[-1].get("text") for text in users])
        return typed

    def test_two_turns(self):
        gateway = self.gateway_before(says("Hello from upstream"), says("And again from there"))
        screen = self.started(gateway, harness.api_key(harness.GATEWAY_KEY))
        screen.wait_for("❯")
        screen.type("What do you say?")
        screen.wait_for("● Hello from upstream")
        screen.type("And what else?")
        screen.wait_for("● And again from there")
        self.assert_exits(screen)
        self.assertEqual([["What do you say?"], ["What do you say?", "And what else?"]], self.prompts())
        self.assert_only_the_account_was_shown()

    def test_text_is_drawn_as_it_comes(self):
        """The upstream's second half waits until the first stands on the screen."""
        drawn = Gate()
        events = stream_events("The first line.\n\nThe second line.")
        first, second = b"".join(events[:-5]), b"".join(events[-5:])

        def script(connection):
            connection.read_request()
            connection.send(SSE_HEAD + chunk(first))
            drawn.wait("the first half to be drawn")
            connection.send(chunk(second) + LAST_CHUNK)

        screen = self.started(self.gateway_before(script=script), harness.auth_token(harness.GATEWAY_KEY))
        screen.wait_for("❯")
        screen.type("What do you say?")
        screen.wait_for("● The first line.")
        self.assertNotIn("The second line.", screen.text())
        drawn.open()
        screen.wait_for("The second line.")
        self.assert_exits(screen)

    def test_session_goes_on_after_a_broken_stream_and_a_429(self):
        gateway = self.gateway_before(
            harness.begun_stream(), says("Whole at last"), harness.too_many(1), says("Not too many any more"))
        screen = self.started(gateway, harness.api_key(harness.GATEWAY_KEY))
        screen.wait_for("❯")
        screen.type("Tell me a story.")
        screen.wait_for("● Whole at last")
        screen.type("Tell me more.")
        screen.wait_for("● Not too many any more")
        self.assert_exits(screen)
        self.assertNotIn("".join(harness.BEGUN_PIECES), screen.text())
        self.assertEqual([["Tell me a story."]] * 2 + [["Tell me a story.", "Tell me more."]] * 2, self.prompts())


if __name__ == "__main__":
    unittest.main()
