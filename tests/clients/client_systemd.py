"""systemd's own judgement of the README's unit, without a systemd that runs."""

import os
import subprocess
import sys
import tempfile
import unittest

from tests import support
from tests.clients import harness
from tests.test_readme import blocks

# Of 100, in tenths of what systemd calls its exposure level; below 5.0 it says "OK".
MOST_EXPOSED = 40


class SystemdTest(unittest.TestCase):

    def analyze(self, *arguments):
        """The exit code of systemd-analyze and all it says, about the unit on this machine's paths."""
        program = harness.on_path("systemd-analyze")
        (unit,) = blocks("ini")
        for path, here in (("/usr/bin/python3", sys.executable),
                           ("/opt/claude_gateway/claude_gateway.py", support.GATEWAY_FILE)):
            self.assertIn(path, unit)
            unit = unit.replace(path, here)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "claude-gateway.service")
            with open(path, "w", encoding="utf-8") as file:
                file.write(unit)
            done = subprocess.run([program, *arguments, path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=harness.CLIENT_SECONDS, universal_newlines=True)
        return done.returncode, done.stdout

    def test_it_is_valid_to_the_last_word(self):
        self.assertEqual((0, ""), self.analyze("verify"))

    def test_little_is_exposed(self):
        code, said = self.analyze("security", "--offline=yes", "--threshold=%d" % MOST_EXPOSED)
        self.assertEqual(0, code, said)


if __name__ == "__main__":
    unittest.main()
