"""A warm-up is answered by the gateway itself, and every SDK takes the answer for a message."""

import unittest

from tests.clients import harness


class WarmupTest(harness.ClientTest):

    def programs(self):
        for name in ("sdk-python-old", "sdk-python-0.125", "sdk-python-current"):
            yield name, harness.python_sdk(self.folder, name)
        yield "sdk-typescript", harness.typescript_sdk(self.folder)

    def test_json_and_six_events(self):
        base_url = self.gateway_before()
        for name, program in self.programs():
            program.environment = dict(program.environment, QUESTION_TEXT="Warmup")
            for case in ("create", "stream"):
                with self.subTest(name, case=case):
                    told = program.told(base_url, harness.api_key(harness.GATEWAY_KEY), case)
                    self.assertEqual((told.get("text"), told.get("stop_reason")), ("OK", "end_turn"))
                    self.assertTrue(told["id"].startswith("msg_warmup_"), told)
        self.assertEqual(self.upstream.requests, [])


if __name__ == "__main__":
    unittest.main()
