"""README.md is true: its commands run, its configuration loads, its tables are complete.

Every fenced block, and every command or setting within a sentence, stands in one of the
tables below with the test that runs it; what is new fails until it has one.
"""

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

import claude_gateway as gw
from tests import running
from tests import shim
from tests import support

ROOT = support.PROJECT_DIRECTORY


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


README = read("README.md")


def blocks(language):
    """The fenced blocks of one language."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, README, re.DOTALL | re.MULTILINE)


def block(language, part):
    """The one fenced block of a language that holds a text."""
    (found,) = [text for text in blocks(language) if part in text]
    return found


HERE = "tests/test_readme.py"
SERVICE = "tests/test_readme_service.py"
BALANCERS = "tests/clients/client_balancers.py"
ENV = (HERE, "CommandTest.test_client_lines_are_what_env_prints")

# Language and first line of each fenced block -> the file and the test that run it.
BLOCKS = {
    ("sh", "python3 claude_gateway.py --port 8045"):
        (HERE, "CommandTest.test_the_run_command_serves_without_a_configuration"),
    ("sh", "python3 claude_gateway.py --port 8045 --demo"):
        (HERE, "CommandTest.test_demo_answers_the_curl_line"),
    ("sh", "python3 -m unittest discover -s tests -t ."):
        (HERE, "CommandTest.test_ci_runs_the_two_commands_as_written"),
    ("sh", "python3 claude_gateway.py --version --verbose"):
        (HERE, "CommandTest.test_the_three_sums_are_the_same"),
    ("sh", "bash tests/clients/install.sh"):
        (HERE, "CommandTest.test_ci_installs_and_runs_the_clients_as_written"),
    ("bash", "export ANTHROPIC_BASE_URL=http://127.0.0.1:8045"): ENV,
    ("fish", "set -gx ANTHROPIC_BASE_URL http://127.0.0.1:8045"): ENV,
    ("bat", "set ANTHROPIC_BASE_URL=http://127.0.0.1:8045"): ENV,
    ("powershell", "$env:ANTHROPIC_BASE_URL = 'http://127.0.0.1:8045'"): ENV,
    ("text", "client                       claude_gateway                        upstream"):
        (HERE, "PictureTest.test_a_request_goes_as_drawn"),
    ("text", "FAIL  port          127.0.0.1:8045 is held by process 4711, node"):
        (HERE, "ConfigurationTest.test_what_the_doctor_is_shown_to_print_is_what_it_prints"),
    ("text", "claude_gateway 0.1.0 at http://127.0.0.1:8045, up 1 h 2 min, 2 in flight"):
        (HERE, "PictureTest.test_status_prints_what_is_shown"),
    ("text", "claude_gateway 0.1.0"): (HERE, "PictureTest.test_the_dashboard_has_what_is_drawn"),
    ("json", "{"): (HERE, "ConfigurationTest.test_example_loads_and_means_what_it_says"),
    ("python", 'client = openai.OpenAI(base_url="http://127.0.0.1:8045/v1", api_key="a-gateway-key")'):
        ("tests/clients/client_openai.py", "ReadmeTest.test_its_example_is_answered"),
    ("python", "from claude_gateway import Config, Gateway"):
        (HERE, "CommandTest.test_python_example_runs"),
    ("python", "import json"): (HERE, "CommandTest.test_vendored_example_is_a_test_that_passes"),
    ("sh", "python3 -m tests.bench"): ("tests/test_bench.py", "BenchTest.test_every_measurement_has_a_row"),
    ("ini", "[Unit]"): (SERVICE, "SystemdTest.test_it_starts_reloads_and_stops"),
    ("xml", '<?xml version="1.0" encoding="UTF-8"?>'):
        (SERVICE, "LaunchdTest.test_it_runs_and_has_time_to_drain"),
    ("dockerfile", "FROM python:3-slim"): (SERVICE, "DockerTest.test_health_is_whether_it_answers"),
    ("powershell", "Register-ScheduledTask claude_gateway -Trigger "
                   "(New-ScheduledTaskTrigger -AtStartup) `"):
        (SERVICE, "WindowsTest.test_its_arguments_run"),
    ("nginx", "map $http_x_claude_code_session_id $conversation {"):
        (BALANCERS, "BalancerTests.test_three_are_replaced_under_load"),
    ("haproxy", "global"): (BALANCERS, "BalancerTests.test_three_are_replaced_under_load"),
}

# Programs whose command lines stand within sentences.
PROGRAMS = ("bash", "curl", "docker", "git", "http-check", "launchctl", "py", "python3", "set",
            "sha256sum", "shasum", "systemctl")

# Each of those -> what runs it, or why nothing can.
COMMANDS = {
    "python3 claude_gateway.py env": ENV,
    "python3 -m claude_gateway --port 8045": (HERE, "CommandTest.test_as_a_module_it_serves_as_well"),
    "python3 claude_gateway.py check": (HERE, "ConfigurationTest.test_the_example_passes_check"),
    "python3 claude_gateway.py [COMMAND] [OPTIONS]":
        ("tests/test_20_command_line.py", "ParserTest.test_every_command_has_its_function"),
    "python3 -m tests.test_11_simulation":
        ("tests/test_11_simulation.py", "SimulationTest.test_conversations_move_only_when_they_must"),
    "set server gateways/one state drain":
        (BALANCERS, "HaproxyTest.test_what_is_too_large_to_be_repeated_is_spared_by_a_drain"),
    "systemctl enable --now claude-gateway": "needs a systemd that runs",
    "systemctl reload": (SERVICE, "SystemdTest.test_it_starts_reloads_and_stops"),
    "launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/claude-gateway.plist": "needs macOS",
    "docker run -p 8045:8045 --stop-timeout 45 -e CLAUDE_GATEWAY_API_KEY -e WORK_KEY "
    "-v ./claude_gateway.json:/claude_gateway.json:ro IMAGE": "needs Docker",
    "http-check send hdr x-api-key KEY": "HAProxy's own, for a mode that the examples do not use",
    "py claude_gateway.py": "needs Windows",
    "shasum -a 256": "needs macOS",
}


def tests_of(path):
    """The tests that a file defines, as Class.method."""
    return {"%s.%s" % (top.name, part.name) for top in ast.parse(read(path)).body
            if isinstance(top, ast.ClassDef) for part in top.body
            if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")}


def sentences():
    """README.md without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)


def spans():
    """What stands between backquotes within sentences."""
    return re.findall(r"`([^`\n]+)`", sentences())


class CoverageTest(unittest.TestCase):

    def test_every_block_is_in_the_table_and_the_table_has_no_other(self):
        found = re.findall(r"^```(\w*)\n(.*)\n", re.sub(r"(?m)^```$", "", README), re.MULTILINE)
        self.assertEqual(README.count("\n```"), 2 * len(found))
        self.assertEqual(sorted(found), sorted(BLOCKS))

    def test_every_command_in_a_sentence_is_in_the_table(self):
        pattern = r"(?:%s) .+" % "|".join(map(re.escape, PROGRAMS))
        found = {span for span in spans() if re.fullmatch(pattern, span)}
        self.assertEqual(found, set(COMMANDS))

    def test_the_tests_that_are_named_exist(self):
        for path, name in [*BLOCKS.values(), *(row for row in COMMANDS.values()
                                               if not isinstance(row, str))]:
            with self.subTest(name):
                self.assertIn(name, tests_of(path))

    def test_every_setting_in_a_sentence_loads(self):
        """Objects are accounts; a key with its value stands where the tables have the key."""
        accounts = [span for span in spans() if span.startswith('{"')]
        settings = [span for span in spans() if re.match(r'"\w+": ', span)]
        self.assertGreaterEqual((len(accounts), len(settings)), (2, 4))
        for span in accounts:
            with self.subTest(span):
                self.load({"accounts": [json.loads(span)]}, {})
        paths = {row.path.split(".")[-1]: row.path for row in gw.SETTINGS}
        for span in settings:
            with self.subTest(span):
                ((key, value),) = json.loads("{%s}" % span).items()
                if key in {row.path for row in gw.PROVIDER_SETTINGS}:
                    self.load({key: value}, {})
                    continue
                for part in reversed(paths[key].split(".")):
                    value = {part: value}
                self.load({}, value)

    def load(self, provider, settings):
        raw = dict(settings, providers=[dict(provider, name="anthropic")])
        return gw.Config.from_dict(raw, {"WORK_KEY": "sample-work", "REFRESH": "sample-refresh"})

    def test_every_link_within_the_page_leads_somewhere(self):
        heads = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-")
                 for head in re.findall(r"^#+ (.+)$", sentences(), re.MULTILINE)}
        links = re.findall(r"\]\(#([^)]+)\)", README)
        self.assertGreater(len(links), 10)
        self.assertEqual(set(links) - heads, set())


class CommandTest(unittest.TestCase):

    def test_ci_runs_the_two_commands_as_written(self):
        run, test = blocks("sh")[0].strip(), block("sh", "discover -s tests -t .\n").strip()
        ci = read(os.path.join(".ci", "run"))
        self.assertIn('run_command="%s"' % run, ci)
        self.assertIn('test_command="%s"' % test, ci)

    def test_ci_installs_and_runs_the_clients_as_written(self):
        ci = re.sub(r"\\\n +", "", read(os.path.join(".ci", "run")))
        for line in block("sh", "install.sh").strip().split("\n"):
            with self.subTest(line):
                self.assertIn(line, ci)

    def test_the_run_command_serves_without_a_configuration(self):
        interpreter, script, *arguments = blocks("sh")[0].split()
        self.assertEqual((interpreter, script, arguments),
                         ("python3", "claude_gateway.py", ["--port", "8045"]))
        with support.GatewayProcess() as gateway:  # with --port 0
            self.assertEqual(support.exchange(gateway.port, "GET", "/healthz").status, 200)
            self.assertEqual(gateway.stop(), 0)

    def test_as_a_module_it_serves_as_well(self):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "claude_gateway", "--port", "0", "--demo"]
            with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  universal_newlines=True, env=dict(
                                      os.environ, HOME=folder, PYTHONPYCACHEPREFIX=folder)) as process:
                line = process.stdout.readline()
                process.terminate()
                process.communicate(timeout=30)
        self.assertRegex(line, r"listening on http://127\.0\.0\.1:\d+$")

    @unittest.skipIf(os.name == "nt", "the lines are for a POSIX shell")
    def test_the_three_sums_are_the_same(self):
        for tool in ("git", "sha256sum"):
            if not shutil.which(tool):
                self.skipTest("no %s here" % tool)
        with open(support.GATEWAY_FILE, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        with tempfile.TemporaryDirectory() as clone:
            shutil.copy(support.GATEWAY_FILE, clone)
            commit = ["git init -q", "git add .", "git -c user.name=t -c user.email=t@t.invalid "
                      "-c commit.gpgsign=false commit -q -m t"]
            lines = block("sh", "sha256sum").replace("python3 ", shlex.quote(sys.executable) + " ")
            result = subprocess.run(
                ["sh", "-e", "-c", "\n".join([*commit, lines])], cwd=clone, timeout=60, check=True,
                env={"HOME": clone, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.PIPE, universal_newlines=True)
        self.assertEqual(re.findall(r"\b[0-9a-f]{64}\b", result.stdout), [digest] * 3)

    def test_demo_answers_the_curl_line(self):
        _, line = block("sh", "curl").strip().split("\n")
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

    def test_the_example_passes_check(self):
        with tempfile.TemporaryDirectory() as folder:
            team = os.path.join(folder, "team_token")
            with open(team, "w", encoding="utf-8") as file:
                file.write("sample-team-token")
            example = block("json", "{").replace("/run/secrets/team_token", team.replace("\\", "/"))
            with open(os.path.join(folder, gw.CONFIG_NAME), "w", encoding="utf-8") as file:
                file.write(example)
            names = re.findall(r"\$\{(\w+)\}", example)
            kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
            result = subprocess.run(
                [sys.executable, support.GATEWAY_FILE, "check"], cwd=folder, timeout=30,
                env=dict(kept, HOME=folder, **{name: "sample-" + name for name in names}),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding=shim.console_encoding())
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("account team", result.stdout)

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
        example = block("text", "FAIL  port")
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


class PictureTest(unittest.TestCase):

    def test_a_request_goes_as_drawn(self):
        drawn = block("text", "work's key")
        events = support.stream_events("Hello")
        scripts = [support.json_response(support.error_body("rate_limit_error", "spent"), 429,
                                         [("retry-after", "300")]),
                   support.stream_response(events)]
        with support.ScriptedUpstream(respond=lambda request: scripts.pop(0)) as upstream, \
                running.running_gateway(running.provider(upstream, ("work", "team"))) as gateway:
            answer = support.exchange(gateway.port, "POST", "/v1/messages", [running.JSON_TYPE],
                                      running.STREAM_MESSAGE)
            first, second = upstream.requests
            status = support.exchange(gateway.port, "GET", "/gateway/status").json()
        self.assertEqual(first.header("x-api-key"), running.ACCOUNT_KEY + "-work")
        self.assertEqual(second.header("x-api-key"), running.ACCOUNT_KEY + "-team")
        self.assertEqual((first.body, second.body), (running.STREAM_MESSAGE,) * 2)
        self.assertEqual((answer.status, answer.body), (200, b"".join(events)))
        self.assertIn("X-Gateway-Attempts: " + answer.header("x-gateway-attempts"), drawn)
        work, team = status["accounts"]
        self.assertEqual((work["state"], team["state"]), ("cooling", "ready"))
        self.assertGreater(work["ready_in_seconds"], 240)
        self.assertLessEqual(work["ready_in_seconds"], 300)

    def test_status_prints_what_is_shown(self):
        totals = {"requests": 120, "errors": 1, "input_tokens": 5200, "output_tokens": 81000,
                  "cache_read_tokens": 2400000, "cache_write_tokens": 96000}
        rows = [{"provider": "anthropic", "account": "work", "enabled": True, "state": "cooling",
                 "ready_in_seconds": 252.0, "in_flight": 0, "last_error": "rate_limited"},
                {"provider": "anthropic", "account": "team", "enabled": True, "state": "ready",
                 "ready_in_seconds": 0.0, "in_flight": 2, "last_error": ""}]
        document = {"version": gw.__version__, "uptime_seconds": 3720, "in_flight": 2,
                    "accounts": rows, "totals": totals, "models": {"claude-opus-5-5": totals}}
        printed = "\n".join(gw.status_lines(document, "http://127.0.0.1:8045")) + "\n"
        self.assertEqual(block("text", "cache write"), printed)

    def test_the_dashboard_has_what_is_drawn(self):
        """Headings and column heads are the page's; figures and words of a state are samples."""
        drawn = block("text", "Under way\n")
        page = gw.DASHBOARD
        words = ["Under way", "Accounts ready", "Requests", "First byte", "Tokens out", "Tokens in",
                 "% from cache", "Accounts", "The last hour", "Time to first byte", "Tokens",
                 "Recent requests", "Age", "State", "Model", "Account", "Client", "In", "Out",
                 "Time", "Result", "From cache", "Took", "streaming", "cooling", "ready", "complete"]
        for word in words:
            with self.subTest(word):
                self.assertIn(word, drawn)
                self.assertRegex(page, r"[>\" ]%s[<\" ]" % re.escape(word))


class TroubleTest(unittest.TestCase):
    """What the gateway says itself is quoted in the last chapters as it says it."""

    CHAPTER = README[README.index("## When something is wrong"):README.index("## Verify the file")]

    def said(self, answer, status, kind):
        """The message of a gateway's own error."""
        self.assertEqual((answer.status, answer.json()["error"]["type"]), (status, kind))
        self.assertIsNone(answer.header("x-gateway-provider"))
        return answer.json()["error"]["message"]

    def ask(self, gateway, *headers, path="/v1/messages"):
        return support.exchange(gateway.port, "POST", path, [running.JSON_TYPE, *headers],
                                running.MESSAGE)

    def test_refusals(self):
        keys = {"auth": {"api_keys": [{"name": "laptop", "key": running.CLIENT_KEY,
                                       "requests_per_minute": 1}]}}
        ours = ("x-api-key", running.CLIENT_KEY)
        with support.ScriptedUpstream() as upstream:
            with running.running_gateway(running.provider(upstream, ()), **keys) as gateway:
                authentication = "authentication_error"
                told = [self.said(self.ask(gateway), 401, authentication),
                        self.said(self.ask(gateway, ("x-api-key", "other")), 401, authentication),
                        self.said(self.ask(gateway, ours), 401, authentication).split(" (")[0],
                        self.said(self.ask(gateway, ours), 429, "rate_limit_error")]
            with running.running_gateway(running.provider(upstream)) as gateway:
                path = self.said(self.ask(gateway, path="/api/v2/messages"), 404, "not_found_error")
                host = self.said(self.ask(gateway, ("Host", "pc.example")), 403, "permission_error")
                page = self.said(self.ask(gateway, ("Origin", "https://web.example")), 403,
                                 "permission_error")
        told += [path.split(":")[0], host.split(";")[0].replace("pc.example", "…"), page]
        for message in told:
            with self.subTest(message):
                self.assertIn("`%s`" % message if message in self.CHAPTER else message,
                              self.CHAPTER)

    def test_an_upstream_that_is_not_there(self):
        with socket.socket() as deaf:  # bound, so that nobody else listens there either
            deaf.bind(("127.0.0.1", 0))
            absent = {"name": "anthropic", "base_url": "http://127.0.0.1:%d" % deaf.getsockname()[1],
                      "accounts": [{"name": "work", "api_key": "sample-key"}]}
            with running.running_gateway(absent, retry={"max_attempts": 1}) as gateway:
                said = self.ask(gateway).json()["error"]["message"]
        self.assertIn("**502 `%s`**" % said.split(":")[0], self.CHAPTER)

    def test_a_credential_that_is_refused_names_the_account(self):
        refusal = support.json_response(support.error_body("authentication_error", "no"), 401)
        with support.ScriptedUpstream(respond=lambda request: refusal) as upstream, \
                running.running_gateway(running.provider(upstream)) as gateway:
            answer = self.ask(gateway)
        self.assertEqual(answer.status, 502)
        self.assertIn("work", answer.json()["error"]["message"])

    def test_a_key_of_the_client_that_the_upstream_refuses(self):
        refusal = support.json_response(
            support.error_body("authentication_error", "invalid x-api-key"), 401)
        with support.ScriptedUpstream(respond=lambda request: refusal) as upstream, \
                running.running_gateway(running.provider(upstream, ())) as gateway:
            answer = self.ask(gateway, ("x-api-key", "other"))
        self.assertEqual((answer.status, answer.header("x-gateway-provider")), (401, "anthropic"))


if __name__ == "__main__":
    unittest.main()
