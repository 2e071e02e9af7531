"""Sections 21 and 25: help, shells, colours, init, status, the banner, interruption."""

import contextlib
import io
import json
import math
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import types
import unittest
import unittest.mock

import claude_gateway as gw
from tests import shim
from tests.running import running_gateway
from tests.support import Gate
from tests.support import GatewayProcess
from tests.support import ScriptedUpstream
from tests.support import WAIT_SECONDS
from tests.support import error_body
from tests.support import exchange
from tests.support import free_port
from tests.support import gateway_command
from tests.support import json_response
from tests.test_20_command_line import FolderTest
from tests.test_20_command_line import ON_WINDOWS

COMMANDS = ["check", "doctor", "env", "init", "selftest", "serve", "status"]


class Terminal(io.StringIO):
    """A stream that says that somebody looks on."""

    def isatty(self):
        return True


class HelpTest(FolderTest):

    def test_every_command_is_told_of_and_exists(self):
        self.assertEqual(sorted(gw.COMMANDS), COMMANDS)
        self.assertEqual(sorted(gw.COMMAND_TEXTS), COMMANDS)
        overview = self.command("--help").stdout
        for name, told in gw.COMMAND_TEXTS.items():
            self.assertRegex(overview, r"\n  %s +%s\n" % (name, re.escape(told.about)))

    def test_help_of_a_command_has_its_options_and_an_example(self):
        for name, told in gw.COMMAND_TEXTS.items():
            with self.subTest(name):
                result = self.inside(name, "--help")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn("usage: claude_gateway.py " + name, result.stdout)
                self.assertIn("claude_gateway.py %s" % name, result.stdout.split("examples:")[1])
                for flag in gw.OWN_OPTIONS:
                    self.assertEqual(flag in result.stdout, flag in told.options, flag)
                self.assertLessEqual(max(map(len, result.stdout.split("\n"))), 90)

    def test_every_example_can_be_parsed(self):
        for told in gw.COMMAND_TEXTS.values():
            for example in told.examples:
                if "claude_gateway.py" not in example:
                    with self.subTest(example):
                        gw.parse_options(example.split())

    def test_help_may_stand_first(self):
        self.assertEqual(self.inside("--help", "doctor").stdout,
                         self.inside("doctor", "-h").stdout)

    def test_an_option_of_another_command_is_wrong_usage(self):
        for arguments in (["check", "--json"], ["--offline"], ["status", "--shell", "cmd"],
                          ["env", "--quiet"], ["check", "other.json"]):
            with self.subTest(arguments):
                result = self.inside(*arguments)
                self.assertEqual((result.returncode, result.stdout), (2, ""))

    def test_a_wrong_line_is_told_without_its_values_and_controls(self):
        for argument, told in (("--apikey=MARKED", "--apikey=***"), ("--a\x1b[2J", "--a\\x1b[2J"),
                               ("--upstream_key=MARKED=", "--upstream_key=***")):
            result = self.inside("serve", argument)
            self.assertEqual((result.returncode, result.stderr.split("\n")[1]), (
                2, "claude_gateway.py: error: unrecognized arguments: " + told))

    def test_options_stand_anywhere(self):
        options = gw.parse_options(["--port", "9", "init", "--auth", "off", "a.json"])
        self.assertEqual((options.command, options.path, options.port), ("init", "a.json", 9))

    def test_no_output_needs_more_than_an_old_console(self):
        for arguments in (["--help"], ["doctor", "--help"], ["init"], ["selftest"],
                          ["doctor", "--offline"], ["check"], ["env"]):
            with self.subTest(arguments):
                result = subprocess.run(
                    gateway_command(*arguments), cwd=self.work, timeout=60,
                    env=self.environment(PYTHONIOENCODING="cp1252:strict"),
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                result.stdout.decode("cp1252")
                self.assertNotIn(b"Traceback", result.stderr)
                self.assertNotIn(b"\x1b", result.stdout, "no colours where nobody looks on")


@unittest.skipIf(ON_WINDOWS, "no such file names there")
class ControlsTest(FolderTest):
    """What stands in a configuration or a file's name cannot steer a terminal."""

    NAME = "own\x1b]0;x\x07\x9b.json"

    def test_check_init_and_the_banner(self):
        result = self.inside("init", self.NAME)
        self.assertEqual((result.returncode, self.controls(result)), (0, ""))
        path = self.write(self.NAME, {"port": 0, "providers": [{
            "name": "p", "base_url": "http://127.0.0.1:9", "accounts": [
                {"name": "a", "key_command": ["print\x1b[2J\x9b", "x"]}]}]})
        result = self.inside("check", "--config", self.NAME)
        self.assertEqual((result.returncode, self.controls(result)), (0, ""))
        self.assertIn("printed by print\\x1b[2J\\x9b\n", result.stdout)
        with GatewayProcess(args=["--config", path]) as gateway:
            gateway.stop()
        self.assertIn("printed by print\\x1b[2J\\x9b", gateway.output())
        self.assertNotRegex(gateway.output(), "[\x1b\x9b]")

    @staticmethod
    def controls(result):
        return "".join(re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stdout + result.stderr))


class TerminalTest(unittest.TestCase):

    def test_who_gets_colours(self):
        table = [
            ("a terminal", Terminal(), {}, True),
            ("a file", io.StringIO(), {}, False),
            ("no stream", None, {}, False),
            ("NO_COLOR", Terminal(), {"NO_COLOR": "1"}, False),
            ("an empty NO_COLOR says nothing", Terminal(), {"NO_COLOR": ""}, True),
            ("a dumb one", Terminal(), {"TERM": "dumb"}, False),
        ]
        with unittest.mock.patch.object(gw.os, "name", "posix"):
            for name, stream, environ, wanted in table:
                with self.subTest(name):
                    self.assertIs(gw.can_colour(stream, environ), wanted)

    def test_a_closed_stream_is_no_terminal(self):
        stream = Terminal()
        stream.close()
        stream.isatty = io.StringIO.isatty.__get__(stream)
        self.assertFalse(gw.is_terminal(stream))

    def windows(self, taken):
        """Fakes of a Windows console that takes escape codes, or does not."""
        modes = []

        def set_mode(handle, mode):
            modes.append(mode)
            return taken

        kernel = types.SimpleNamespace(GetConsoleMode=lambda handle, mode: 1,
                                       SetConsoleMode=set_mode)
        import ctypes
        stream = Terminal()
        stream.fileno = lambda: 1
        with unittest.mock.patch.dict(sys.modules, msvcrt=types.SimpleNamespace(
                get_osfhandle=lambda number: 7)), unittest.mock.patch.object(
                ctypes, "windll", types.SimpleNamespace(kernel32=kernel), create=True), \
                unittest.mock.patch.object(gw.os, "name", "nt"):
            return gw.can_colour(stream, {}), modes

    @shim.needs("an import hook of the shim stands in for msvcrt")
    def test_windows_consoles_are_asked_to_take_them(self):
        self.assertEqual(self.windows(1), (True, [4]))
        self.assertEqual(self.windows(0), (False, [4]))

    def test_painted(self):
        self.assertEqual(gw.painted("ok", 5, False), "ok   ")
        self.assertEqual(gw.painted("FAIL", 5, True), "\x1b[31mFAIL \x1b[0m")

    def test_progress_is_one_line_that_goes(self):
        stream = Terminal()
        progress = gw.Progress(stream)
        for text in ("looking at a", "b\n", "", ""):
            progress.show(text)
        self.assertEqual(stream.getvalue(), "\rlooking at a\rb\\n" + " " * 9 + "\r" + " " * 3
                         + "\r")
        silent = io.StringIO()
        gw.Progress(silent).show("unseen")
        self.assertEqual(silent.getvalue(), "")

    def test_which_shell(self):
        table = [
            ({}, False, "bash"),
            ({"SHELL": "/usr/bin/fish"}, False, "fish"),
            ({"SHELL": "/usr/bin/pwsh"}, False, "powershell"),
            ({"SHELL": "/bin/zsh"}, False, "bash"),
            ({}, True, "powershell"),
            ({"PROMPT": "$P$G"}, True, "cmd"),
            ({"SHELL": "C:\\Git\\usr\\bin\\bash.exe", "MSYSTEM": "MINGW64"}, True, "bash"),
        ]
        for environ, is_windows, shell in table:
            with self.subTest(environ=environ, is_windows=is_windows):
                self.assertEqual(gw.detected_shell(environ, is_windows), shell)

    def test_durations(self):
        table = [(0, "0 s"), (0.2, "1 s"), (59.9, "59 s"), (60, "1 min"), (61, "1 min 1 s"),
                 (3600, "1 h"), (90000, "1 d 1 h"), (None, "?"), ("x", "?"), (True, "?")]
        for seconds, text in table:
            with self.subTest(seconds):
                self.assertEqual(gw.human_seconds(seconds), text)


class InitTest(FolderTest):

    def test_init_then_check_then_serve_needs_no_edit(self):
        result = self.command("init")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        check = self.command("check")
        self.assertEqual((check.returncode, check.stderr), (0, ""))
        self.assertTrue(check.stdout.startswith("configuration: ./claude_gateway.json\n"
                                                .replace("./", "." + os.sep)))
        self.assertNotIn("warning", check.stdout)
        path = os.path.join(self.work, "claude_gateway.json")
        with GatewayProcess(args=["--config", path]) as gateway:
            self.assertEqual(exchange(gateway.port, "GET", "/healthz").status, 200)

    def test_with_a_key_in_the_environment_alone(self):
        self.command("init")
        with ScriptedUpstream() as upstream:
            path = os.path.join(self.work, "claude_gateway.json")
            with GatewayProcess(args=["--config", path, "--upstream", upstream.url],
                                env={"CLAUDE_GATEWAY_UPSTREAM_KEY": "my-key"}) as gateway:
                body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"a"}]}'
                self.assertEqual(exchange(gateway.port, "POST", "/v1/messages", [], body).status,
                                 200)
            self.assertEqual(upstream.requests[0].header("x-api-key"), "my-key")

    def test_it_means_what_the_defaults_mean(self):
        self.inside("init")
        self.assertEqual(self.load("--config", os.path.join(self.work, "claude_gateway.json")),
                         gw.Config.from_dict({}))

    def test_every_setting_is_written_or_pointed_to(self):
        told = self.inside("init").stdout
        with open(os.path.join(self.work, "claude_gateway.json"), encoding="utf-8") as file:
            settings = json.load(file)
        for row in gw.SETTINGS:
            with self.subTest(row.path):
                value = settings
                for name in row.path.split("."):
                    value = value[name]
        provider = settings["providers"][0]
        tables = {"a provider": gw.PROVIDER_SETTINGS, "its sanitize": gw.SANITIZE_SETTINGS,
                  "an account": gw.ACCOUNT_SETTINGS, "an account's token": gw.TOKEN_SETTINGS,
                  "one of auth.api_keys": gw.CLIENT_KEY_SETTINGS}
        for title, rows in tables.items():
            line, = re.findall(r"^  %s: (.*)$" % re.escape(title), told, re.MULTILINE)
            for row in rows:
                with self.subTest(title=title, name=row.path):
                    written = title == "a provider" and row.path.split(".")[0] in provider
                    self.assertTrue(written or row.path in line.split(", "))

    def test_options_are_written_secrets_are_not(self):
        result = self.inside("init", "other.json", "--port", "9000", "--log-level", "debug",
                              "--upstream-key", "MARKED", "--api-key", "MARKED")
        self.assertEqual(result.returncode, 0)
        with open(os.path.join(self.work, "other.json"), encoding="utf-8") as file:
            text = file.read()
        settings = json.loads(text)
        self.assertEqual((settings["port"], settings["log"]["level"]), (9000, "debug"))
        self.assertNotIn("MARKED", text + result.stdout)
        self.assertIn("python3 claude_gateway.py check --config other.json\n", result.stdout)

    def test_the_upstream_is_written(self):
        self.assertEqual(self.inside("init", "--upstream", "https://own.example/api").returncode, 0)
        result = self.inside("check")
        self.assertEqual(result.returncode, 0)
        self.assertIn("\nprovider anthropic: https://own.example/api\n", result.stdout)

    def test_what_check_would_refuse_is_not_written(self):
        for words in (["--port", "99999"], ["--host", ""], ["--upstream", "own.example"]):
            with self.subTest(words):
                result = self.inside("init", *words)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertNotIn("Traceback", result.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.work, "claude_gateway.json")))

    @unittest.skipIf(ON_WINDOWS, "no such bits there")
    def test_the_owner_alone_may_read_it(self):
        self.inside("init")
        mode = os.stat(os.path.join(self.work, "claude_gateway.json")).st_mode
        self.assertEqual(stat.S_IMODE(mode), 0o600)

    def test_an_existing_file_is_never_touched(self):
        path = self.write("claude_gateway.json", "mine")
        result = self.inside("init")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (
            1, "", "claude_gateway: claude_gateway.json exists already; nothing was written\n"))
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "mine")

    @unittest.skipIf(ON_WINDOWS, "links need rights there")
    def test_nor_what_a_dangling_link_points_to(self):
        os.symlink("elsewhere.json", os.path.join(self.work, "claude_gateway.json"))
        self.assertEqual(self.inside("init").returncode, 1)
        self.assertFalse(os.path.exists(os.path.join(self.work, "elsewhere.json")))

    def test_faults_are_one_line(self):
        for name, code in (("no/such/folder.json", 1), ("a.toml", 2)):
            with self.subTest(name):
                result = self.inside("init", name)
                self.assertEqual((result.returncode, result.stdout), (code, ""))
                self.assertEqual(result.stderr.count("\n"), 1)

    def test_half_a_file_is_not_left(self):
        path = os.path.join(self.work, "a.json")
        full = OSError(28, "No space left on device")
        with unittest.mock.patch.object(gw.os, "write", side_effect=[1, full]):
            with self.assertRaises(OSError):
                gw.write_new_file(path, b"{}")
        self.assertFalse(os.path.exists(path))


STATUS = {
    "version": "1.2.3", "uptime_seconds": 3725.5, "in_flight": 2,
    "accounts": [
        {"provider": "anthropic", "account": "work", "state": "ready", "ready_in_seconds": 0.0,
         "in_flight": 2, "last_error": "", "limits": {}},
        {"provider": "zai", "account": "zai-1", "state": "cooling", "ready_in_seconds": 72.3,
         "in_flight": 0, "last_error": "429\x1b[2J", "limits": {}}],
    "totals": {"requests": 7, "errors": 1, "input_tokens": 900, "cache_read_tokens": 12345},
    "models": {"claude-opus-5-5": {"requests": 7, "errors": 1, "input_tokens": 900,
                                   "cache_read_tokens": 12345}},
}


class StatusTest(FolderTest):

    def status(self, response, *arguments):
        with ScriptedUpstream(respond=lambda request: response) as upstream:
            port = upstream.url.rsplit(":", 1)[1]
            result = self.inside("status", "--port", port, *arguments)
            return result, upstream.requests, upstream.url

    def test_table(self):
        result, requests, url = self.status(json_response(STATUS))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(requests[0].target, "/gateway/status")
        self.assertEqual(result.stdout, """\
claude_gateway 1.2.3 at %s, up 1 h 2 min, 2 in flight

provider   account  state    ready in    in flight  last error
anthropic  work     ready    now         2          -
zai        zai-1    cooling  1 min 12 s  0          429\\x1b[2J

model            requests  errors  input  cache read
claude-opus-5-5  7         1       900    12345
all              7         1       900    12345
""" % url)

    def test_json_is_what_the_gateway_said(self):
        result, _, _ = self.status(json_response(STATUS), "--json")
        self.assertEqual(json.loads(result.stdout), STATUS)

    def test_the_key_is_sent_and_never_shown(self):
        result, requests, _ = self.status(json_response(STATUS), "--api-key", "MARKED")
        self.assertEqual(requests[0].header("x-api-key"), "MARKED")
        self.assertNotIn("MARKED", result.stdout + result.stderr)

    def test_faults_are_one_plain_line_and_exit_1(self):
        table = [
            ("key", json_response(error_body("authentication_error", "x"), 401), "--api-key"),
            ("older", json_response(error_body("not_found_error", "x"), 404), "no /gateway/status"),
            ("another program", json_response(b"<html>"), "is no gateway"),
            ("a list", json_response(b"[]"), "is no gateway"),
            ("deep", json_response(b"[" * 100000), "is no gateway"),
            ("JSON of others", json_response({"status": "ok"}), "is no gateway"),
            ("nearly", json_response({"version": "1", "accounts": 5}), "is no gateway"),
            ("broken", json_response({}, 500), "is no gateway"),
        ]
        for name, response, part in table:
            with self.subTest(name):
                result, _, _ = self.status(response)
                self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")),
                                 (1, "", 1))
                self.assertIn(part, result.stderr)

    def test_what_does_not_speak_http_is_told_so(self):
        def greet(connection):
            connection.read_request()
            connection.send(b"220 mail.example ESMTP\r\n")

        with ScriptedUpstream(greet) as upstream:
            result = self.inside("status", "--port", upstream.url.rsplit(":", 1)[1])
        self.assertEqual((result.returncode, result.stderr.count("\n")), (1, 1))
        self.assertIn("does not speak http", result.stderr)

    def test_an_answer_byte_by_byte_does_not_hold_it(self):
        def drip(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 200 OK\r\n")
            left = threading.Event()
            with contextlib.suppress(OSError):
                while not left.wait(0.05):  # slower than a busy loop, within any socket's limit
                    connection.send(b"X")

        with ScriptedUpstream(drip) as upstream:
            with self.assertRaisesRegex(OSError, "timed out"):
                gw.fetch(upstream.url, "/gateway/status", [], 0.3)

    def test_a_reset_after_the_limit_is_a_limit_too(self):
        """The other side was sending as we hung up."""
        def hang(connection):
            connection.read_request()
            connection.wait_closed("the limit")

        def broken(response):
            self.assertTrue(over.wait(10))
            raise ConnectionResetError(104, "Connection reset by peer")

        over = threading.Event()
        shutdown = socket.socket.shutdown

        def ended(sock, how):
            shutdown(sock, how)
            over.set()

        with ScriptedUpstream(hang) as upstream:
            with unittest.mock.patch("http.client.HTTPResponse.begin", broken), \
                    unittest.mock.patch.object(socket.socket, "shutdown", ended):
                with self.assertRaisesRegex(OSError, "timed out"):
                    gw.fetch(upstream.url, "/gateway/status", [], 0.1)

    def test_none_runs(self):
        port = free_port()
        result = self.command("status", "--port", str(port))
        self.assertEqual((result.returncode, result.stdout, result.stderr), (1, "", (
            "claude_gateway: no gateway answers at http://127.0.0.1:%d (connection refused); "
            "--host and --port say where else to ask\n" % port)))

    def test_proxies_are_passed_by(self):
        port = free_port()
        result = self.command("status", "--port", str(port), HTTP_PROXY="http://192.0.2.1:9",
                              http_proxy="http://192.0.2.1:9")
        self.assertIn("connection refused", result.stderr)

    @unittest.skipUnless("/gateway/status" in gw.ROUTES, "this version has no such route")
    def test_a_running_gateway(self):
        with running_gateway({"name": "demo"}, auth={"api_keys": ["k"]}) as gateway:
            result = self.command("status", "--port", str(gateway.port), "--api-key", "k")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("demo", result.stdout)

    def test_anything_a_snapshot_may_hold_is_shown_without_a_fault(self):
        for document in ({}, {"accounts": None, "totals": 3}, {"in_flight": [{}, {}]},
                         {"totals": {"a": {}, "b": {"c": 1}, "d": "e"}},
                         {"totals": {"a": 1}, "models": {"m": 3, "n": {"b": 2}}},
                         {"accounts": [{}, 3, {"enabled": False}]}, {"accounts": 5},
                         {"uptime_seconds": math.inf, "accounts": [{"ready_in_seconds":
                                                                     math.nan}]}):
            with self.subTest(document):
                self.assertTrue(gw.status_lines(document, "http://127.0.0.1:1"))


class BannerTest(unittest.TestCase):

    def banner(self, shell="bash", quiet=False, **settings):
        config = gw.Config.from_dict(dict({"port": 0}, **settings))
        with gw.Gateway(config, environ={}) as gateway:
            return gateway.url, gw.banner_lines(gateway, config, "a.json", quiet, shell)

    def test_lines(self):
        url, lines = self.banner(
            auth={"api_keys": [{"name": "laptop", "key": "gw-MARKED-0123456789-tail"}]},
            providers=[{"name": "own", "base_url": "https://own.example", "accounts": [
                {"name": "work", "api_key": "sk-MARKED-0123456789-tail"}]}])
        wanted = [
            "claude_gateway %s listening on %s" % (gw.__version__, url),
            "configuration: a.json",
            "auth: all_except_health; keys: laptop (…tail)",
            "provider own: https://own.example",
            "  account work: x-api-key …tail",
            "point a client here (other shells: claude_gateway.py env --shell NAME):",
            "  export ANTHROPIC_BASE_URL=" + url,
            "  export ANTHROPIC_AUTH_TOKEN=YOUR-GATEWAY-KEY",
        ]
        if "/dashboard" in gw.ROUTES:
            wanted.append("dashboard: %s/dashboard (asks for a key)" % url)
        self.assertEqual(lines, wanted)

    def test_the_dashboard_is_named_once_there_is_one(self):
        with unittest.mock.patch.dict(gw.ROUTES, {"/dashboard": {}}):
            url, lines = self.banner(providers=[{"name": "demo"}])
        self.assertEqual(lines[-1], "dashboard: %s/dashboard" % url)

    def test_other_shells_and_quiet(self):
        url, lines = self.banner("powershell", providers=[{"name": "demo"}])
        self.assertIn("  $env:ANTHROPIC_BASE_URL = '%s'" % url, lines)
        self.assertEqual(len(self.banner(quiet=True)[1]), 1)


class InterruptTest(FolderTest):

    @unittest.skipIf(ON_WINDOWS, "signals are not sent there")
    def test_a_command_interrupted_is_130(self):
        gate = Gate()

        def script(connection):
            connection.read_request()
            gate.open()
            connection.wait_closed("the command's end")

        # A shell has those that it starts with & ignore it, and they all whom they start.
        self.addCleanup(signal.signal, signal.SIGINT,
                        signal.signal(signal.SIGINT, signal.default_int_handler))
        with ScriptedUpstream(script) as upstream:
            process = subprocess.Popen(
                gateway_command("status", "--port", upstream.url.rsplit(":", 1)[1]),
                cwd=self.work, env=self.environment(),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            gate.wait("the command to ask")
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=WAIT_SECONDS)
        self.assertEqual((process.returncode, output, errors), (130, b"", b""))


if __name__ == "__main__":
    unittest.main()
