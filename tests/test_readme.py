"""README.md is true: its commands run, its configuration loads, its tables are complete."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

import claude_gateway as gw
from tests import support

ROOT = support.PROJECT_DIRECTORY


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


README = read("README.md")


def blocks(language):
    """The fenced blocks of one language."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, README, re.DOTALL | re.MULTILINE)


class CommandTest(unittest.TestCase):

    def test_ci_runs_the_two_commands_as_written(self):
        run, test = blocks("sh")[0].strip(), blocks("sh")[2].strip()
        ci = read(os.path.join(".ci", "run"))
        self.assertIn('run_command="%s"' % run, ci)
        self.assertIn('test_command="%s"' % test, ci)

    def test_demo_answers_the_curl_line(self):
        _, line = blocks("sh")[1].strip().split("\n")
        words = shlex.split(line)
        body = words[words.index("-d") + 1]
        path = words[2][len("http://127.0.0.1:8045"):]
        with support.GatewayProcess(args=["--demo"], python=sys.executable) as gateway:
            answer = support.exchange(gateway.port, "POST", path,
                                      [("content-type", "application/json")], body.encode())
            self.assertEqual(answer.status, 200)
            self.assertIn("You said: Hello", answer.json()["content"][0]["text"])
            self.assertEqual(gateway.stop(), 0)
            self.assertNotIn("Traceback", gateway.stderr_text())

    def test_client_lines_are_what_env_prints(self):
        table = {"bash": "bash", "fish": "fish", "bat": "cmd", "powershell": "powershell"}
        for language, shell in table.items():
            with self.subTest(shell), tempfile.TemporaryDirectory() as empty:
                result = subprocess.run(
                    support.gateway_command("env", "--shell", shell),
                    cwd=empty, env={"HOME": empty, "PATH": os.environ["PATH"]}, timeout=30,
                    stdout=subprocess.PIPE, check=True, universal_newlines=True)
                self.assertEqual(result.stdout, blocks(language)[0])

    def test_python_example_runs(self):
        # The others: one is for who has OpenAI's SDK (tests/clients runs it), one for a package.
        (example,) = [block for block in blocks("python") if "from claude_gateway" in block]
        result = subprocess.run([sys.executable, "-c", example], cwd=ROOT, timeout=30,
                                stdout=subprocess.PIPE, check=True, universal_newlines=True)
        self.assertRegex(result.stdout, r"^http://127\.0\.0\.1:\d+\n$")

    def test_vendored_example_is_a_test_that_passes(self):
        (example,) = [block for block in blocks("python") if "vendor.claude_gateway" in block]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("yourapp", os.path.join("yourapp", "vendor")):
                os.mkdir(os.path.join(folder, name))
            shutil.copy(support.GATEWAY_FILE, os.path.join(folder, "yourapp", "vendor"))
            with open(os.path.join(folder, "test_answer.py"), "w", encoding="utf-8") as file:
                file.write(example)
            result = subprocess.run(
                [sys.executable, "-W", "error", "-m", "unittest", "test_answer"], cwd=folder, timeout=60,
                env={"HOME": folder, "PATH": os.environ["PATH"]}, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, universal_newlines=True)
            self.assertRegex(result.stdout, r"^\.\n-+\nRan 1 test in [0-9.]+s\n\nOK\n$")


class ConfigurationTest(unittest.TestCase):

    def load(self, example):
        environ = {name: "sample-%s" % name.lower().replace("_", "-")
                   for name in re.findall(r"\$\{(\w+)\}", example)}
        return gw.Config.from_dict(json.loads(example), environ, lambda path: "sample-from-file")

    def test_example_loads_and_means_what_it_says(self):
        (example,) = blocks("json")
        config = self.load(example)
        self.assertEqual(config.warnings, ())
        self.assertEqual([key.name for key in config.auth.api_keys], ["key-1", "laptop"])
        anthropic, zai = config.providers
        self.assertEqual([account.name for account in anthropic.accounts], ["work", "team"])
        self.assertEqual(anthropic.accounts[1].credentials(),
                         [("Authorization", "Bearer sample-from-file")])
        self.assertEqual(str(zai.base_url), "https://api.z.ai/api/anthropic")
        self.assertEqual(zai.upstream_model("claude-opus-5-5"), "GLM-4.7")

    def test_every_setting_is_in_the_tables(self):
        for rows in (gw.SETTINGS, gw.PROVIDER_SETTINGS):
            for row in rows:
                default = "" if row.default in (None, (), {}) else "`%s`" % json.dumps(row.default)
                line = "| `%s` | %s | %s |" % (row.path, default, row.about)
                with self.subTest(row.path):
                    self.assertIn(line, README)

    def test_nothing_is_in_the_tables_that_is_no_setting(self):
        known = {row.path for rows in (gw.SETTINGS, gw.PROVIDER_SETTINGS) for row in rows}
        listed = set(re.findall(r"^\| `([a-z_.]+)` \| [^|]* \| [^|]+ \|$", README, re.MULTILINE))
        self.assertEqual(listed - known, set())

    def test_every_option_variable_preset_and_mode_is_named(self):
        options = [option for action in gw.argument_parser()._actions
                   for option in action.option_strings if option not in ("-h", "--help")]
        self.assertGreater(len(options), 10)
        variables = [name.strip() for row in gw.SETTINGS for name in row.env.split(",") if name]
        for word in [*options, *variables, *gw.PRESETS, "all_except_health", "strict"]:
            with self.subTest(word):
                self.assertIn(word, README)

    def test_every_command_is_in_the_table(self):
        for name, told in gw.COMMAND_TEXTS.items():
            with self.subTest(name):
                self.assertIn("| `%s` | %s | " % (name, told.about), README)

    def test_what_the_doctor_is_shown_to_print_is_what_it_prints(self):
        (example,) = blocks("text")
        config = gw.Config.from_dict({})
        findings = [
            *gw.judge_port("127.0.0.1", 8045, "in use", "process 4711, node", False),
            *gw.judge_proxies({"HTTP_PROXY": "http://proxy.example"}, "127.0.0.1", 8045),
            gw.judge_credential("anthropic/work", 401,
                                "authentication_error: invalid x-api-key", "api_key"),
            *gw.judge_base_url("http://127.0.0.1:8045/v1", config),
        ]
        shown = [line for finding in findings
                 for line in gw.finding_lines(finding, gw.SHELLS["bash"], False)]
        self.assertEqual(example, "\n".join(shown) + "\n")

    def test_every_account_setting_is_named(self):
        for rows in (gw.ACCOUNT_SETTINGS, gw.TOKEN_SETTINGS, gw.CLIENT_KEY_SETTINGS,
                     gw.SANITIZE_SETTINGS):
            for row in rows:
                with self.subTest(row.path):
                    self.assertRegex(README, r'[`"]%s[`"]' % row.path)

    def test_every_route_is_named(self):
        for path in gw.ROUTES:
            with self.subTest(path):
                self.assertIn("`%s`" % path, README.replace(
                    "`POST ", "`").replace("`GET ", "`").replace("`HEAD` or `GET ", "`"))


if __name__ == "__main__":
    unittest.main()
