"""Section 20: commands, options, files and signals, mostly as processes of their own."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
import warnings

import claude_gateway as gw
from tests import shim
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.support import GATEWAY_FILE
from tests.support import Gate
from tests.support import GatewayProcess
from tests.support import RawClient
from tests.support import ScriptedUpstream
from tests.support import WAIT_SECONDS
from tests.support import compiled_gateway
from tests.support import error_body
from tests.support import eventually
from tests.support import exchange
from tests.support import free_port
from tests.support import gateway_command
from tests.support import run_inside
from tests.support import json_response

ON_WINDOWS = os.name == "nt"
ON_LINUX = sys.platform.startswith("linux")
OWN_PROVIDER = {"name": "own", "base_url": "https://own.example"}
# Draws a warning, and is good.
PLAIN_PROVIDER = {"name": "own", "base_url": "http://own.example"}


class FolderTest(unittest.TestCase):
    """An empty HOME, an empty working directory, and nothing of the tester's environment."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="gateway-test-")
        self.addCleanup(temporary.cleanup)
        self.root = os.path.realpath(temporary.name)
        self.home = os.path.join(self.root, "home")
        self.work = os.path.join(self.root, "work")
        os.mkdir(self.home)
        os.mkdir(self.work)

    def environment(self, **changes):
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        return dict(kept, HOME=self.home, **changes)

    def command(self, *arguments, stdout=subprocess.PIPE, **environ):
        """Run one command to its end; the result's streams are text."""
        return self.run_words(gateway_command(*arguments), stdout, **environ)

    def inside(self, *arguments, **environ):
        """As command, without a process."""
        return run_inside(arguments, self.work, self.environment(**environ))

    def run_words(self, words, stdout=subprocess.PIPE, **environ):
        return subprocess.run(words, cwd=self.work, env=self.environment(**environ),
                              stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
                              encoding=shim.console_encoding(), timeout=30)

    def write(self, name, content, mode=0o600):
        """A file of the working directory; dicts become JSON."""
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
        os.chmod(path, mode)
        return path

    def load(self, *arguments, **environ):
        """The configuration that a command line leads to, without a process."""
        return gw.load_config(gw.argument_parser().parse_args(arguments), environ)[0]

    @contextlib.contextmanager
    def serving(self, *prefix, constants=None, **popen):
        """``serve`` with unusual streams; gives (process, port) once it answers."""
        port = free_port()
        process = subprocess.Popen(
            [*prefix, *gateway_command("--port", str(port), constants=constants)], cwd=self.work,
            env=self.environment(), stdin=subprocess.DEVNULL, **popen)
        try:
            eventually(lambda: process.poll() is not None or self.answers(port),
                       "the gateway answers or ends")
            self.assertIsNone(process.poll(), "it ended at once")
            yield process, port
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(WAIT_SECONDS)

    def answers(self, port):
        try:
            return exchange(port, "GET", "/healthz").status == 200
        except (OSError, AssertionError):
            return False

    def end(self, process):
        process.terminate()
        return process.wait(WAIT_SECONDS)


class GatewayTest(unittest.TestCase):

    def test_starts_stops_and_leaves_nothing(self):
        config = gw.Config.from_dict({"port": 0, "providers": [{"name": "demo"}]})
        gateway = gw.Gateway(config, environ={})
        with gateway:
            self.assertEqual(gateway.url, "http://127.0.0.1:%d" % gateway.port)
            self.assertEqual(exchange(gateway.port, "GET", "/healthz").status, 200)
            port = gateway.port
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)

    def test_stopping_twice_is_once(self):
        with gw.Gateway(gw.Config.from_dict({"port": 0}), environ={}) as gateway:
            gateway.stop()
            gateway.stop()

    def test_a_taken_port_is_an_os_error_and_leaves_nothing(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port = taken.getsockname()[1]
            config = gw.Config.from_dict({"port": port, "providers": [{"name": "demo"}]})
            gateway = gw.Gateway(config, environ={})
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", ResourceWarning)
                with self.assertRaises(OSError):
                    gateway.start()
            self.assertEqual([str(warning.message) for warning in told], [])
            gateway.stop()


class ParserTest(unittest.TestCase):

    def flags(self):
        return {flag for action in gw.argument_parser()._actions for flag in action.option_strings}

    def test_options_are_those_of_the_contract(self):
        contract = {"--host", "--port", "--config", "--api-key", "--auth", "--upstream",
                    "--upstream-key", "--demo", "--log-level", "--log-format", "--quiet",
                    "--version", "--shell"}
        self.assertEqual(contract - self.flags(), set())

    def test_every_flag_of_the_settings_table_exists(self):
        named = {flag for row in gw.SETTINGS for flag in row.flag.split(", ") if flag}
        self.assertEqual(named - self.flags(), set())

    def test_every_command_has_its_function(self):
        self.assertEqual(set(gw.COMMANDS) & {"check", "env", "serve"}, {"check", "env", "serve"})


class WrongUsageTest(FolderTest):

    def test_is_exit_2_on_standard_error(self):
        table = [
            ("unknown command", ["bogus"]),
            ("two commands", ["check", "serve"]),
            ("unknown option", ["--bogus"]),
            ("port not a number", ["--port", "http"]),
            ("unknown auth mode", ["--auth", "open"]),
            ("unknown shell", ["env", "--shell", "tcsh"]),
            ("option without its value", ["--config"]),
            ("verbose without version", ["--verbose"]),
            ("verbose serve", ["serve", "--demo", "--verbose"]),
        ]
        for name, arguments in table:
            with self.subTest(name):
                result = self.inside(*arguments)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertIn("claude_gateway.py: error:", result.stderr)

    def test_of_a_process(self):
        result = self.command("bogus")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertEqual(result.stderr, self.inside("bogus").stderr)

    def test_version(self):
        """Of the file itself too: the other tests run its bytecode."""
        for file in (GATEWAY_FILE, compiled_gateway()):
            result = self.run_words([sys.executable, file, "--version"])
            self.assertEqual((result.returncode, result.stdout, result.stderr),
                             (0, "claude_gateway %s\n" % gw.__version__, ""))

    def test_version_told_at_length(self):
        with open(GATEWAY_FILE, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        expected = [
            "claude_gateway " + gw.__version__,
            "python %s %s (%s)" % (platform.python_implementation(), platform.python_version(),
                                   sys.executable),
            "platform " + platform.platform(),
            "file " + os.path.abspath(GATEWAY_FILE),
            "sha256 " + digest,
        ]
        for arguments in (["--version", "--verbose"], ["--verbose", "--version"],
                          ["check", "--verbose", "--version"]):
            with self.subTest(arguments=arguments):
                result = self.run_words([sys.executable, GATEWAY_FILE, *arguments])
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertEqual(result.stdout.splitlines(), expected)

    def test_version_is_told_where_the_file_has_gone(self):
        with unittest.mock.patch.object(gw, "__file__", os.path.join(self.work, "gone.py")):
            self.assertEqual(gw.version_lines(True)[-1], "sha256 unknown: No such file or directory")

    def test_help_names_every_option(self):
        result = self.command("--help")
        self.assertEqual(result.returncode, 0)
        for flag in ("--config", "--upstream-key", "--demo", "--quiet"):
            self.assertIn(flag, result.stdout)


class FindConfigFileTest(FolderTest):

    def used(self, *arguments, **environ):
        """The file that ``check`` says it used."""
        return self.inside("check", *arguments, **environ).stdout.split("\n")[0]

    @unittest.skipIf(ON_WINDOWS, "the folder there is APPDATA")
    def test_each_place_gives_way_to_the_ones_before(self):
        """All five exist at first; the winner is removed each time."""
        xdg = os.path.join(self.work, "xdg")
        places = [
            (["--config", "option.json"], {}, "option.json"),
            ([], {"CLAUDE_GATEWAY_CONFIG": "variable.json"}, "variable.json"),
            ([], {}, os.path.join(".", "claude_gateway.json")),
            ([], {}, os.path.join(xdg, "claude_gateway", "config.json")),
        ]
        for _, _, path in places:
            self.write(path, {})
        for number, (arguments, environ, path) in enumerate(places):
            with self.subTest(path):
                later = {key: value for _, more, _ in places[number:] for key, value in
                         more.items()}
                found = self.used(*arguments, XDG_CONFIG_HOME=xdg, **dict(later, **environ))
                self.assertEqual(found, "configuration: " + path)
            os.remove(os.path.join(self.work, path))
        self.assertEqual(self.used(XDG_CONFIG_HOME=xdg), "configuration: none (defaults)")

    @unittest.skipIf(ON_WINDOWS, "the folder there is APPDATA")
    def test_home_without_xdg(self):
        path = self.write(os.path.join(self.home, ".config", "claude_gateway", "config.json"), {})
        self.assertEqual(self.used(), "configuration: " + path)

    @unittest.skipIf(ON_WINDOWS, "the folder there is APPDATA")
    def test_without_a_home_the_working_folder_is_not_one(self):
        self.assertIsNone(gw.find_config_file(None, {}))
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        self.write(os.path.join(".config", "claude_gateway", "config.json"), {})
        os.chdir(self.work)
        self.assertIsNone(gw.find_config_file(None, {}))

    def test_a_named_file_must_exist(self):
        for arguments, environ in ((["--config", "no.json"], {}),
                                   ([], {"CLAUDE_GATEWAY_CONFIG": "no.json"})):
            with self.subTest(arguments=arguments):
                result = self.inside("check", *arguments, **environ)
                self.assertEqual((result.returncode, result.stdout, result.stderr),
                                 (2, "", "claude_gateway: no.json: No such file or directory\n"))


class ReadConfigFileTest(FolderTest):

    def faults(self, path):
        with self.assertRaises(gw.ConfigError) as raised:
            self.load("--config", path)
        return raised.exception.problems

    def test_faults_name_the_file_in_one_line(self):
        table = [
            ("not JSON", b'{"port": 1,}', "line 1 column"),
            ("empty", b"", ""),
            ("key stands twice", b'{"port": 1, "port": 2}', 'the key "port" stands twice'),
            ("key within stands twice", b'{"log": {"level": "info", "level": "info"}}',
             'the key "level" stands twice'),
            ("not UTF-8", b'{"host": "\xff"}', "decode"),
            ("a list", b"[]", "must hold an object"),
            ("null", b"null", "must hold an object"),
            ("deep", b"[" * 200000, ""),
        ]
        for name, content, hint in table:
            with self.subTest(name):
                path = self.write("c.json", content)
                problem, = self.faults(path)
                self.assertTrue(problem.startswith(path + ": "), problem)
                self.assertIn(hint, problem)
                self.assertNotIn("\n", problem)

    def test_a_folder_is_no_file(self):
        self.assertEqual(len(self.faults(self.work)), 1)

    def test_unreadable_file(self):
        path = self.write("c.json", {}, mode=0)
        # Root reads everything, so the refusal is the library's word here.
        refusal = PermissionError(errno.EACCES, "Permission denied")
        with unittest.mock.patch("builtins.open", side_effect=refusal):
            self.assertEqual(self.faults(path), [path + ": Permission denied"])

    def test_byte_order_mark_and_windows_line_ends(self):
        path = self.write("c.json", b'\xef\xbb\xbf{\r\n"port": 9001\r\n}\r\n')
        self.assertEqual(self.load("--config", path).port, 9001)

    def test_toml_where_the_interpreter_has_it(self):
        path = self.write("c.toml", 'port = 9001\n[[providers]]\nname = "zai"\n')
        if sys.version_info < (3, 11):
            self.assertEqual(self.faults(path),
                             [path + ": TOML needs Python 3.11 or newer; use JSON"])
            return
        config = self.load("--config", path)
        self.assertEqual((config.port, config.providers[0].name), (9001, "zai"))

    @unittest.skipIf(sys.version_info < (3, 11), "no tomllib")
    def test_toml_faults(self):
        for text in ("port = ", "port = 1\nport = 2\n"):
            with self.subTest(text):
                path = self.write("c.toml", text)
                self.assertTrue(self.faults(path)[0].startswith(path + ": "))

    def test_strings_of_the_file_are_interpolated(self):
        self.write("key", "from-file\n")
        path = self.write("c.json", {"auth": {"api_keys": [
            "${KEY}", "${file:%s}" % os.path.join(self.work, "key").replace("\\", "/")]}})
        keys = self.load("--config", path, KEY="from-env").auth.api_keys
        self.assertEqual([key.key.reveal() for key in keys], ["from-env", "from-file"])


class OpenFileTest(FolderTest):
    """A file that holds secrets and is readable by others draws a warning (contract 3)."""

    WITH_KEY = {"auth": {"api_keys": ["k-in-the-file"]}}
    WITH_ACCOUNT = {"providers": [dict(OWN_PROVIDER, accounts=[{"name": "a", "api_key": "k"}])]}

    WITH_TOKEN = {"providers": [dict(OWN_PROVIDER, accounts=[{"name": "a", "token": {
        "token_url": "https://issuer.example", "client_id": "abc", "refresh_token": "r",
        "store": "t.json"}}])]}
    WITH_COMMAND = {"providers": [dict(OWN_PROVIDER, accounts=[
        {"name": "a", "key_command": "print-my-key"}])]}

    def warns(self, content, mode, *arguments, **environ):
        path = self.write("c.json", content, mode)
        return ["%s: holds secrets and is readable by others; chmod 600 it" % path] == [
            warning for warning in self.load("--config", path, *arguments, **environ).warnings]

    @unittest.skipIf(ON_WINDOWS, "no such bits there")
    def test_which_files_warn(self):
        table = [
            ("key, others", self.WITH_KEY, 0o604, True),
            ("key, group", self.WITH_KEY, 0o640, True),
            ("account, all", self.WITH_ACCOUNT, 0o644, True),
            ("refresh token, all", self.WITH_TOKEN, 0o644, True),
            ("command, all", self.WITH_COMMAND, 0o644, False),
            ("key, owner", self.WITH_KEY, 0o600, False),
            ("no secret", {"port": 9001}, 0o644, False),
        ]
        for name, content, mode, warns in table:
            with self.subTest(name):
                self.assertIs(self.warns(content, mode), warns)

    @unittest.skipIf(ON_WINDOWS, "no such bits there")
    def test_a_secret_that_is_elsewhere_does_not_count(self):
        self.assertFalse(self.warns({"port": 9001}, 0o644, "--api-key", "k"), "an option")
        self.assertFalse(self.warns({"auth": {"api_keys": ["${KEY}"]}}, 0o644, KEY="k"),
                         "a variable that the file only names")

    @unittest.skipIf(ON_WINDOWS, "no such bits there")
    def test_check_tells(self):
        path = self.write("c.json", self.WITH_KEY, 0o644)
        result = self.inside("check", "--config", path)
        self.assertEqual(result.returncode, 0)
        self.assertIn("warning: %s: holds secrets" % path, result.stdout + result.stderr)


class SecretOptionTest(FolderTest):

    def test_where_a_secret_may_come_from(self):
        path = self.write("key", "from-file\n")
        table = [
            ("itself", "plain", "plain"),
            ("variable", "env:KEY", "from-env"),
            ("file", "file:" + path, "from-file"),
            ("dollars are characters", "a$KEY$b", "a$KEY$b"),
        ]
        for name, text, secret in table:
            with self.subTest(name):
                config = self.load("--api-key", text, "--upstream-key", text, KEY="from-env")
                self.assertEqual(config.auth.api_keys[0].key.reveal(), secret)
                self.assertEqual(config.providers[0].accounts[0].secret.reveal(), secret)

    def test_faults_name_the_option(self):
        for option in ("--api-key", "--upstream-key"):
            for text, problem in (("env:NO", "the environment has no NO"),
                                  ("file:/no/such", "cannot read /no/such "
                                                    "(No such file or directory)")):
                with self.subTest(option=option, text=text):
                    result = self.inside("check", option, text)
                    self.assertEqual((result.returncode, result.stderr),
                                     (2, "claude_gateway: %s: %s\n" % (option, problem)))

    def test_an_empty_one_is_no_key_and_warns(self):
        config = self.load("--api-key", "env:KEY", KEY="")
        self.assertEqual((config.auth.api_keys, config.auth_mode, len(config.warnings)),
                         ((), "off", 1))


class PrecedenceTest(FolderTest):

    FILE = {
        "host": "127.0.0.2", "port": 9001, "auth": {"mode": "strict", "api_keys": ["file-key"]},
        "log": {"level": "error", "format": "json"},
        "providers": [dict(OWN_PROVIDER, accounts=[{"name": "a", "api_key": "file-account"}])],
    }
    ENVIRONMENT = {
        "CLAUDE_GATEWAY_API_KEY": "env-key, env-key-2",
        "CLAUDE_GATEWAY_UPSTREAM": "https://env.example",
        "CLAUDE_GATEWAY_UPSTREAM_KEY": "env-account",
    }
    OPTIONS = ["--host", "127.0.0.3", "--port", "9002", "--auth", "off", "--api-key", "opt-key",
               "--upstream", "https://opt.example", "--upstream-key", "opt-account",
               "--upstream-key", "opt-account-2", "--log-level", "debug", "--log-format", "text"]

    def summary(self, config):
        return {
            "listen": (config.host, config.port),
            "mode": config.auth.mode,
            "keys": [key.key.reveal() for key in config.auth.api_keys],
            "log": tuple(config.log),
            "upstream": [str(row.base_url) for row in config.providers],
            "accounts": [row.secret.reveal() for row in config.providers[0].accounts],
        }

    def test_options_then_environment_then_file_then_defaults(self):
        default = {"listen": ("127.0.0.1", 8045), "mode": "auto", "keys": [],
                   "log": ("info", "text"), "upstream": ["https://api.anthropic.com"],
                   "accounts": []}
        file = {"listen": ("127.0.0.2", 9001), "mode": "strict", "keys": ["file-key"],
                "log": ("error", "json"), "upstream": ["https://own.example"],
                "accounts": ["file-account"]}
        env = {"keys": ["env-key", "env-key-2"], "upstream": ["https://env.example"],
               "accounts": ["env-account"]}
        options = {"listen": ("127.0.0.3", 9002), "mode": "off", "keys": ["opt-key"],
                   "log": ("debug", "text"), "upstream": ["https://opt.example"],
                   "accounts": ["opt-account", "opt-account-2"]}
        path = ["--config", self.write("c.json", self.FILE)]
        nothing = ["--config", self.write("empty.json", {})]
        table = [
            ("nothing", nothing, {}, default),
            ("file", path, {}, file),
            ("environment", nothing, self.ENVIRONMENT, dict(default, **env)),
            ("file and environment", path, self.ENVIRONMENT, dict(file, **env)),
            ("file and options", path + self.OPTIONS, {}, options),
            ("all", path + self.OPTIONS, self.ENVIRONMENT, options),
        ]
        for name, arguments, environ, expected in table:
            with self.subTest(name):
                self.assertEqual(self.summary(self.load(*arguments, **environ)), expected)

    def test_an_option_leaves_its_neighbours_alone(self):
        path = self.write("c.json", self.FILE)
        summary = self.summary(self.load("--config", path, "--log-level", "debug",
                                         "--auth", "off"))
        self.assertEqual((summary["log"], summary["mode"], summary["keys"]),
                         (("debug", "json"), "off", ["file-key"]))

    def test_the_same_through_a_process(self):
        path = self.write("c.json", self.FILE)
        result = self.command("check", "--config", path, *self.OPTIONS, **self.ENVIRONMENT)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for line in ("host = \"127.0.0.3\"", "port = 9002", "auth.mode = \"off\"",
                     "log.level = \"debug\"", "provider anthropic: https://opt.example"):
            self.assertIn(line + "\n", result.stdout)

    def test_demo_takes_the_place_of_every_upstream(self):
        config = self.load("--config", self.write("c.json", self.FILE), "--demo",
                           **self.ENVIRONMENT)
        self.assertEqual([row.name for row in config.providers], ["demo"])

    def test_an_option_does_not_hide_a_fault_of_the_file(self):
        for settings, option in (({"auth": "open"}, ["--auth", "off"]),
                                 ({"log": "debug"}, ["--log-level", "info"])):
            with self.subTest(settings=settings):
                with self.assertRaises(gw.ConfigError):
                    self.load("--config", self.write("c.json", settings), *option)

    def test_variables_of_the_client_are_never_read(self):
        """They usually point at the gateway itself."""
        client = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8045", "ANTHROPIC_API_KEY": "MARKED",
                  "ANTHROPIC_AUTH_TOKEN": "MARKED", "ANTHROPIC_MODEL": "MARKED"}
        with_them = self.command("check", **client)
        self.assertEqual(with_them.stdout, self.inside("check").stdout)
        self.assertEqual((with_them.returncode, with_them.stderr), (0, ""))


class StartupFaultTest(FolderTest):

    def fault(self, *arguments):
        return gw.startup_fault(self.load(*arguments))

    def test_open_to_others_without_a_key(self):
        table = [
            (["--host", "0.0.0.0"], True),
            (["--host", "::"], True),
            (["--host", "192.0.2.1"], True),
            (["--host", "0.0.0.0", "--api-key", ""], True),
            (["--host", "0.0.0.0", "--api-key", "k"], False),
            (["--host", "0.0.0.0", "--auth", "off"], False),
            # These start and refuse everything: contract section 5.
            (["--host", "0.0.0.0", "--auth", "strict"], False),
            (["--host", "0.0.0.0", "--auth", "all_except_health"], False),
            (["--host", "localhost"], False),
        ]
        for arguments, refused in table:
            with self.subTest(arguments=arguments):
                fault = self.fault(*arguments)
                self.assertEqual(bool(fault), refused, fault)
                if refused:
                    self.assertIn("--api-key", fault)
                    self.assertIn("--auth off", fault)

    def test_an_upstream_that_is_the_gateway_itself(self):
        table = [
            ("127.0.0.1", "http://127.0.0.1:9001", True),
            ("127.0.0.1", "http://localhost:9001/claude_api", True),
            ("localhost", "http://127.0.0.1:9001", True),
            ("::1", "http://[::1]:9001", True),
            ("0.0.0.0", "http://127.0.0.1:9001", True),
            # To connect to the address that means all is to connect to this machine.
            ("127.0.0.1", "http://0.0.0.0:9001", True),
            ("192.0.2.1", "http://192.0.2.1:9001", True),
            ("gateway.example", "http://Gateway.Example:9001", True),
            ("127.0.0.1", "http://127.0.0.1:9002", False),
            ("127.0.0.1", "http://192.0.2.1:9001", False),
            ("192.0.2.1", "http://192.0.2.2:9001", False),
            # Another server, on the loopback address that the gateway does not listen on.
            ("192.0.2.1", "http://127.0.0.1:9001", False),
        ]
        for host, upstream, itself in table:
            with self.subTest(host=host, upstream=upstream):
                fault = self.fault("--host", host, "--port", "9001", "--api-key", "k",
                                   "--upstream", upstream)
                self.assertEqual("is this gateway itself" in fault, itself)

    def test_serve_and_check_refuse_with_exit_2(self):
        table = [
            (["--host", "0.0.0.0"], "add --api-key"),
            (["--port", "9001", "--upstream", "http://127.0.0.1:9001"], "itself"),
        ]
        for arguments, hint in table:
            for command, run in (("serve", self.command), ("check", self.inside)):
                with self.subTest(command=command, arguments=arguments):
                    result = run(command, *arguments)
                    self.assertEqual(result.returncode, 2)
                    self.assertEqual(result.stderr.count("\n"), 1)
                    self.assertIn(hint, result.stderr)


class CheckTest(FolderTest):

    def test_good(self):
        path = self.write("claude_gateway.json", {"providers": [
            dict(OWN_PROVIDER, accounts=[{"name": "work", "api_key": "k"}]),
            {"name": "zai", "enabled": False}]})
        result = self.command("check")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        lines = result.stdout.split("\n")
        self.assertEqual(lines[0], "configuration: ." + path[len(self.work):])
        for line in ("auth: off", "provider own: https://own.example",
                     "  account work: x-api-key …",
                     "provider zai: https://api.z.ai/api/anthropic (disabled)",
                     "timeouts.idle_seconds = 300", "routing.models = {}"):
            self.assertIn(line, lines)
        self.assertEqual(lines[-2:], ["good", ""])

    def test_every_plain_setting_is_shown(self):
        lines = self.inside("check").stdout.split("\n")
        for row in gw.SETTINGS:
            if row.path not in ("providers", "auth.api_keys"):
                with self.subTest(row.path):
                    shown = [line for line in lines if line.startswith(row.path + " = ")]
                    self.assertEqual(len(shown), 1)

    def test_bad_has_a_line_a_problem(self):
        self.write("claude_gateway.json", {"hots": 1, "port": "x", "providers": [
            dict(OWN_PROVIDER, accounts=[{"name": "a", "api_key": "${UNSET}"}])]})
        result = self.inside("check")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertEqual(sorted(result.stderr.splitlines()), [
            "claude_gateway: hots: unknown key; did you mean host?",
            "claude_gateway: port: must be a whole number, not a string",
            "claude_gateway: providers[0].accounts[0].api_key: the environment has no UNSET",
        ])

    def test_a_problem_stays_one_line_whatever_the_key(self):
        """A file from elsewhere must not write into the terminal either."""
        self.write("claude_gateway.json", {"a\nb\x1b[2J": 1})
        result = self.inside("check")
        self.assertEqual(result.returncode, 2)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        self.assertNotIn("\x1b", result.stderr)

    def test_a_warning_is_told_and_is_good(self):
        self.write("claude_gateway.json", {"providers": [PLAIN_PROVIDER]})
        result = self.inside("check")
        self.assertEqual(result.returncode, 0)
        self.assertIn("warning: providers[0].base_url: plain http",
                      result.stdout + result.stderr)

    def test_a_renewed_account_is_shown_by_where_it_comes_from(self):
        self.write("claude_gateway.json", {"providers": [dict(OWN_PROVIDER, accounts=[
            {"name": "vault", "key_command": "print-my-key --token MARKED"},
            {"name": "issued", "token": {
                "token_url": "https://issuer.example/oauth/token?key=MARKED", "client_id": "abc",
                "refresh_token": "MARKED", "client_secret": "MARKED", "store": "t.json"}}])]})
        result = self.inside("check")
        self.assertEqual(result.returncode, 0)
        self.assertIn("account vault: x-api-key printed by print-my-key\n", result.stdout)
        self.assertIn("account issued: Authorization granted by "
                      "https://issuer.example/oauth/token\n", result.stdout)
        self.assertNotIn("MARKED", result.stdout + result.stderr)

    def test_a_relative_store_lies_beside_the_file_that_names_it(self):
        folder = os.path.join(self.work, "elsewhere")
        absolute = os.path.join(self.home, "t.json")
        grant = {"token_url": "https://issuer.example", "client_id": "abc", "refresh_token": "r"}
        path = self.write(os.path.join("elsewhere", "own.json"), {"providers": [
            dict(OWN_PROVIDER, accounts=[{"name": "a", "token": dict(grant, store="t.json")},
                                         {"name": "b", "token": dict(grant, store=absolute)},
                                         {"name": "c", "api_key": "k"}])]})
        accounts = self.load("--config", path).providers[0].accounts
        self.assertEqual([account.source and account.source.store for account in accounts],
                         [os.path.join(folder, "t.json"), absolute, None])

    def test_no_secret_is_shown(self):
        """MARKED stands in front of the four characters that a mask may show."""
        long = "sk-ant-MARKED-0123456789-tail"
        self.write("token", long)
        self.write("claude_gateway.json", {
            "auth": {"api_keys": [long, {"name": "n", "key": "MARKED"}, "${KEY}"]},
            "providers": [dict(OWN_PROVIDER, proxy="http://me:MARKED@p.example:1", accounts=[
                {"name": "a", "api_key": long}, {"name": "b", "auth_token": "${file:token}"}])]})
        for arguments in (["check"], ["env"], ["check", "--upstream-key", long, "--api-key", long],
                          ["check", "--host", "0.0.0.0", "--port", "x"]):
            with self.subTest(arguments=arguments):
                result = self.inside(*arguments, KEY=long)
                self.assertNotIn("MARKED", result.stdout + result.stderr)

    def test_output_that_cannot_show_a_mask(self):
        result = self.command("check", "--api-key", "k", PYTHONIOENCODING="ascii")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("auth: all_except_health; keys: key-1 (?)", result.stdout)

    @unittest.skipIf(ON_WINDOWS, "pipes end otherwise there")
    def test_nobody_reads_its_output(self):
        """As with ``check | head -1``: no traceback, no other exit code."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            result = self.command("check", stdout=writer)
        finally:
            os.close(writer)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


class EnvTest(FolderTest):

    def test_every_shell(self):
        url, key = "http://127.0.0.1:9001", "YOUR-GATEWAY-KEY"
        table = {
            "bash": "export ANTHROPIC_BASE_URL=%s\nexport ANTHROPIC_AUTH_TOKEN=%s\n",
            "fish": "set -gx ANTHROPIC_BASE_URL %s\nset -gx ANTHROPIC_AUTH_TOKEN %s\n",
            "cmd": "set ANTHROPIC_BASE_URL=%s\nset ANTHROPIC_AUTH_TOKEN=%s\n",
            "powershell": "$env:ANTHROPIC_BASE_URL = '%s'\n$env:ANTHROPIC_AUTH_TOKEN = '%s'\n",
        }
        for shell, lines in table.items():
            with self.subTest(shell):
                result = self.inside("env", "--shell", shell, "--port", "9001", "--api-key", "k")
                self.assertEqual((result.returncode, result.stdout, result.stderr),
                                 (0, lines % (url, key), ""))

    def test_json_is_the_env_block_of_the_clients_settings(self):
        result = self.command("env", "--shell", "json", "--port", "9001", "--api-key", "k")
        self.assertEqual(json.loads(result.stdout), {"env": {
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9001",
            "ANTHROPIC_AUTH_TOKEN": "YOUR-GATEWAY-KEY"}})

    @unittest.skipIf(ON_WINDOWS or shutil.which("bash") is None, "no bash")
    def test_bash_takes_the_lines(self):
        lines = self.command("env", "--host", "::1", "--port", "9001").stdout
        shown = subprocess.run(["bash", "-c", lines + 'printf %s "$ANTHROPIC_BASE_URL"'],
                               stdout=subprocess.PIPE, encoding="utf-8", timeout=30)
        self.assertEqual(shown.stdout, "http://[::1]:9001")

    def test_address_that_a_client_can_reach(self):
        table = [
            ([], "http://127.0.0.1:8045"),
            (["--host", "0.0.0.0", "--auth", "off"], "http://127.0.0.1:8045"),
            (["--host", "::", "--auth", "off"], "http://[::1]:8045"),
            (["--host", "192.0.2.1", "--auth", "off"], "http://192.0.2.1:8045"),
        ]
        for arguments, url in table:
            with self.subTest(url):
                config = self.load(*arguments)
                self.assertEqual(gw.reachable_url(config), url)

    def test_without_keys_no_token_is_asked_for(self):
        self.assertNotIn("TOKEN", gw.client_lines("bash", "http://127.0.0.1:8045", False))

    def test_a_bad_configuration_is_exit_2(self):
        self.write("claude_gateway.json", {"port": "x"})
        self.assertEqual(self.inside("env").returncode, 2)


class ServeTest(FolderTest):

    def test_says_where_it_listens_and_what_to_copy(self):
        config = {"providers": [dict(OWN_PROVIDER, accounts=[{"name": "work", "api_key": "k"}])]}
        with GatewayProcess(config) as gateway:
            self.assertNotEqual(gateway.port, 0)
            self.assertEqual(exchange(gateway.port, "GET", "/healthz").status, 200)
            self.assertEqual(gateway.stop(), 0)
            text = "\n".join(gateway.stdout_lines)
        self.assertEqual(gateway.stdout_lines[0],
                         "claude_gateway %s listening on %s" % (gw.__version__, gateway.url))
        for part in ("auth: off", "provider own: https://own.example", "  account work: ",
                     "ANTHROPIC_BASE_URL=http://127.0.0.1:%d" % gateway.port):
            self.assertIn(part, text)

    def test_quiet_says_one_line(self):
        with GatewayProcess(args=["--quiet", "--demo"]) as gateway:
            gateway.stop()
        self.assertEqual(gateway.stdout_lines,
                         ["claude_gateway %s listening on %s" % (gw.__version__, gateway.url)])

    def test_serve_may_be_said_and_options_stand_anywhere(self):
        with GatewayProcess(args=["serve", "--demo"]) as gateway:
            self.assertEqual(exchange(gateway.port, "GET", "/healthz").status, 200)

    @unittest.skipUnless(os.path.exists("/proc/self/task") and hasattr(os, "sched_getaffinity"),
                         "threads keep to no core here")
    def test_its_threads_keep_to_one_core_and_the_process_may_use_all(self):
        allowed = os.sched_getaffinity(0)
        with GatewayProcess(args=["--demo"]) as gateway:
            with socket.create_connection(("127.0.0.1", gateway.port), WAIT_SECONDS) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertTrue(client.recv(1))
                process = gateway.process.pid
                cores = {int(thread): os.sched_getaffinity(int(thread))
                         for thread in os.listdir("/proc/%d/task" % process)}
        self.assertEqual(cores.pop(process), allowed)
        self.assertGreaterEqual(len(cores), 2)  # who accepts, and who serves this client
        serving = [own for own in cores.values() if len(own) == 1]
        self.assertGreaterEqual(len(serving), 2)
        self.assertEqual(len(set(map(tuple, serving))), 1)

    def test_where_no_core_is_told_or_may_be_chosen_it_serves_all_the_same(self):
        for name, fault in (("own_core", {"return_value": None}),
                            ("own_core", {"return_value": 1 << 20})):
            with unittest.mock.patch.object(gw, name, **fault), gw.one_core():
                pass
        if hasattr(os, "sched_getaffinity"):
            for name in ("sched_getaffinity", "sched_setaffinity"):
                with unittest.mock.patch.object(os, name, side_effect=PermissionError(1, "no")), \
                        gw.one_core():
                    pass
            before = os.sched_getaffinity(0)
            with unittest.mock.patch.object(os, "sched_setaffinity",
                                            side_effect=[None, PermissionError(1, "no")]), \
                    gw.one_core():
                pass
            with gw.one_core():
                self.assertEqual(len(os.sched_getaffinity(0)), 1)
            self.assertEqual(os.sched_getaffinity(0), before)

    def test_no_secret_is_shown(self):
        secret = "sk-ant-MARKED-0123456789-tail"
        config = {"auth": {"api_keys": [secret]}, "log": {"level": "debug"}, "providers": [
            dict(OWN_PROVIDER, base_url="http://127.0.0.1:1",
                 accounts=[{"name": "a", "api_key": secret}])]}
        with GatewayProcess(config, constants={"BACKOFF_SECONDS": 0.02}) as gateway:
            body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
            for path in ("/v1/messages", "/v1/other", "/nowhere"):
                answer = exchange(gateway.port, "POST", path, [("x-api-key", secret)], body)
                self.assertNotIn(b"MARKED", answer.body)
            gateway.stop()
            self.assertNotIn("MARKED", gateway.output())

    def test_warnings_are_lines_of_the_log(self):
        """Who reads the log as JSON must be able to read every line of it."""
        settings = {"providers": [PLAIN_PROVIDER], "log": {"format": "json"}}
        with GatewayProcess(settings) as gateway:
            exchange(gateway.port, "GET", "/nowhere")
            gateway.stop()
            lines = gateway.stderr_text().splitlines()
        self.assertIn("plain http", "".join(lines))
        for line in lines:
            with self.subTest(line):
                self.assertIsInstance(json.loads(line), dict)

    def test_threads_that_wait_for_the_interpreter_do_not_ask_every_5_ms(self):
        """A thousand that did were busy with that alone; only serve may set it for a process."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with unittest.mock.patch.multiple(gw, settle_memory=unittest.mock.DEFAULT,
                                              Signals=unittest.mock.DEFAULT), \
                    unittest.mock.patch.object(sys, "setswitchinterval") as setting:
                result = self.inside("--demo", "--port", str(taken.getsockname()[1]))
        self.assertEqual(result.returncode, 1)
        setting.assert_called_once_with(gw.SWITCH_SECONDS)

    def test_port_in_use_is_one_plain_line(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen(1)
            port = holder.getsockname()[1]
            result = self.command("--port", str(port))
        self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")), (1, "", 1))
        self.assertIn("127.0.0.1:%d: " % port, result.stderr)
        self.assertIn("choose another with --port", result.stderr)
        if ON_LINUX:
            self.assertIn("held by process %d, " % os.getpid(), result.stderr)

    def test_an_address_that_cannot_be_had_is_one_plain_line(self):
        table = [
            ("of another machine", "192.0.2.1"),
            ("no such name", "no-such-host.invalid"),
            ("no name at all", "a..b"),
            ("too long a label", "a" * 64 + ".example"),
        ]
        for name, host in table:
            with self.subTest(name):
                result = self.command("--port", "0", "--auth", "off", "--host", host)
                self.assertIn(result.returncode, (1, 2))
                self.assertEqual((result.stdout, result.stderr.count("\n")), ("", 1))


class ReloadTest(FolderTest):
    """A new configuration while the gateway serves."""

    def settings(self, upstream, *accounts, **more):
        return dict({"port": 0, "providers": [provider(upstream, accounts)]}, **more)

    def post(self, port):
        return exchange(port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)

    def used(self, upstream):
        return [request.header("x-api-key").rsplit("-", 1)[1] for request in upstream.requests]

    def refusing(self, *names):
        """A respond function that refuses some accounts for five minutes."""
        limited = json_response(error_body("rate_limit_error", "no"), 429, [("retry-after", "300")])
        return lambda request: (limited if request.header("x-api-key").endswith(names)
                                else json_response())

    def test_accounts_that_remain_keep_their_state(self):
        with ScriptedUpstream(respond=self.refusing("-a")) as upstream:
            with running_gateway(provider(upstream, ("a", "b"))) as gateway:
                self.post(gateway.port)
                gateway.reload(gw.Config.from_dict(self.settings(upstream, "a", "c")))
                self.assertEqual(self.post(gateway.port).header("x-account-email"), "c")
                self.assertEqual([row["state"] for row in gateway.accounts()],
                                 ["cooling", "ready"])
            self.assertEqual(self.used(upstream), ["a", "b", "c"])

    def test_an_account_with_a_new_key_begins_anew(self):
        with ScriptedUpstream(respond=self.refusing("-a")) as upstream:
            loose = {"sticky": False}  # else the conversation would stay on b
            with running_gateway(provider(upstream, ("a", "b")), routing=loose) as gateway:
                self.post(gateway.port)
                settings = self.settings(upstream, "a", "b", routing=loose)
                settings["providers"][0]["accounts"][0]["api_key"] = "another-key-for-tests"
                gateway.reload(gw.Config.from_dict(settings))
                self.assertEqual(self.post(gateway.port).header("x-account-email"), "a")

    def test_who_is_out_is_asked_again_after_any_change(self):
        refused = json_response(error_body("authentication_error", "no"), 401)
        answers = [refused, json_response()]
        with ScriptedUpstream(respond=lambda request: answers.pop(0)) as upstream:
            with running_gateway(provider(upstream, ("a",))) as gateway:
                self.assertEqual([self.post(gateway.port).status for _ in range(2)], [502, 502])
                self.assertEqual(gateway.accounts()[0]["state"], "out")
                gateway.reload(gw.Config.from_dict(self.settings(upstream, "a")))
                self.assertEqual(self.post(gateway.port).status, 200)

    def test_requests_under_way_are_not_disturbed(self):
        gate = Gate()

        def script(connection):
            connection.read_request()
            gate.wait("the reload")
            connection.send(json_response())

        with ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream, ("a",))) as gateway:
                with RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    upstream.wait_requests(1)
                    gateway.reload(gw.Config.from_dict({"auth": {"api_keys": ["k"]},
                                                        "providers": [{"name": "demo"}]}))
                    gate.open()
                    self.assertEqual(client.read_response().header("x-account-email"), "a")
                self.assertEqual(self.post(gateway.port).status, 401)
                eventually(lambda: gateway.status()["leases"] == 0, "the lease")

    def test_what_needs_a_restart_is_said_and_bounds_are_taken_over(self):
        lines = []
        with running_gateway({"name": "demo"}, write=lines.append) as gateway:
            notes = gateway.reload(gw.Config.from_dict(
                {"port": 1, "limits": {"body_bytes": 1024}, "providers": [{"name": "demo"}]}))
            self.assertEqual(len(notes), 1)
            self.assertIn("port: 1 needs a restart", notes[0])
            self.assertIn(notes[0], "".join(lines))
            self.assertEqual(self.post(gateway.port).status, 200)
            big = exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], b" " * 2000)
            self.assertEqual(big.status, 413)

    def test_a_configuration_that_must_not_be_served_changes_nothing(self):
        with running_gateway({"name": "demo"}) as gateway:
            with self.assertRaises(gw.ConfigError):
                gateway.reload(gw.Config.from_dict({"host": "0.0.0.0"}))
            self.assertEqual(self.post(gateway.port).status, 200)

    def changed_while_running(self, tell, **constants):
        """Serves account a from a file, then b; ``tell`` makes the process notice."""
        with ScriptedUpstream() as upstream:
            path = self.write("claude_gateway.json", self.settings(upstream, "a"))
            with GatewayProcess(args=["--config", path, "--port", "0"],
                                constants=constants) as gateway:
                self.assertEqual(self.post(gateway.port).header("x-account-email"), "a")
                with open(path, "w", encoding="utf-8") as file:
                    file.write('{"port": 0, "providers": [{"name": ')
                tell(gateway)
                eventually(lambda: "not reloaded" in gateway.stderr_text(), "the fault to be told")
                self.assertEqual(self.post(gateway.port).header("x-account-email"), "a")
                self.write("claude_gateway.json", self.settings(upstream, "b"))
                tell(gateway)
                eventually(lambda: "configuration reloaded" in gateway.stderr_text(), "the reload")
                self.assertEqual(self.post(gateway.port).header("x-account-email"), "b")
                self.assertEqual(gateway.stop(), 0)

    def test_a_changed_file_is_read(self):
        self.changed_while_running(lambda gateway: None, FILE_LOOK_SECONDS=0.1)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "this system has no SIGHUP")
    def test_sighup_reads_it(self):
        self.changed_while_running(lambda gateway: gateway.process.send_signal(signal.SIGHUP))

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "this system has no SIGHUP")
    def test_sighup_where_the_folder_is_gone_that_it_was_started_from(self):
        with GatewayProcess(args=["--demo"]) as gateway:
            os.rmdir(gateway.directory)
            try:
                gateway.process.send_signal(signal.SIGHUP)
                eventually(lambda: "configuration reloaded" in gateway.stderr_text()
                           or gateway.returncode is not None, "the reload")
                self.assertEqual(self.post(gateway.port).status, 200)
                self.assertEqual(gateway.stop(), 0)
            finally:
                os.mkdir(gateway.directory)

    def test_a_file_that_goes_while_it_is_read_is_told(self):
        lines = []
        options = gw.parse_options(["--config", self.write("a.json", {"providers": []})])
        with running_gateway({"name": "demo"}, write=lines.append) as gateway:
            gone = FileNotFoundError(errno.ENOENT, "gone")
            with unittest.mock.patch.object(gw, "file_is_open", side_effect=gone):
                gw.reload_configuration(gateway, options, {})
        self.assertIn("configuration not reloaded: gone", "".join(lines).lower())


class FileWatchTest(FolderTest):

    def test_tells_once_when_the_file_rests(self):
        path = self.write("a.json", {})
        watch = gw.FileWatch(path)
        self.assertFalse(watch.changed())
        self.write("a.json", {"port": 1})
        self.assertEqual([watch.changed() for _ in range(3)], [False, True, False])
        os.remove(path)
        self.assertEqual([watch.changed() for _ in range(2)], [False, False])
        self.write("a.json", {"port": 22})
        self.assertEqual([watch.changed() for _ in range(3)], [False, True, False])

    def test_one_that_is_being_written_is_waited_for(self):
        path = self.write("a.json", {})
        watch = gw.FileWatch(path)
        for count in range(1, 4):
            self.write("a.json", {"port": 10 ** count})
            self.assertFalse(watch.changed())
        self.assertTrue(watch.changed())


@unittest.skipIf(ON_WINDOWS, "signals are not sent there")
class StopTest(FolderTest):

    def test_either_signal_ends_it_well(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), GatewayProcess(args=["--demo"]) as gateway:
                gateway.process.send_signal(number)
                gateway.process.wait(WAIT_SECONDS)
                gateway.stop()
                self.assertEqual((gateway.returncode, gateway.stderr_text()), (0, ""))

    @shim.needs("pthread_kill")
    @unittest.skipUnless(ON_LINUX, "needs /proc to see that the main thread is blocked")
    def test_a_signal_ends_the_wait_whichever_thread_takes_it(self):
        """The system may hand it to any thread, or to the main one just before it blocks."""
        program = (
            "import claude_gateway as gw, signal, threading\n"
            "signals = gw.Signals()\n"
            "def take():\n"
            "    asleep = 0\n"
            "    while asleep < 200:\n"  # in a row: it may also sleep a moment for the GIL
            "        with open('/proc/self/task/%d/stat' % threading.main_thread().native_id) as f:\n"
            "            asleep = asleep + 1 if f.read().split(') ')[1][0] == 'S' else 0\n"
            "    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
            "threading.Thread(target=take, daemon=True).start()\n"
            "assert signals.next() == 'stop'\n")
        result = subprocess.run([sys.executable, "-c", program], timeout=WAIT_SECONDS,
                                cwd=os.path.dirname(GATEWAY_FILE), env=self.environment(),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual((result.returncode, result.stdout), (0, b""))

    def test_idle_connections_do_not_hold_it(self):
        with GatewayProcess() as gateway:
            with socket.create_connection((gateway.host, gateway.port), WAIT_SECONDS):
                self.assertEqual(gateway.stop(), 0)

    def test_nobody_reads_standard_output(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(os.devnull, "wb") as nowhere:
            with self.serving(stdout=writer, stderr=nowhere) as (process, port):
                os.close(writer)
                self.assertTrue(self.answers(port))
                self.assertEqual(self.end(process), 0)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            with self.serving(stdout=full, stderr=full) as (process, port):
                self.assertTrue(self.answers(port))
                self.assertEqual(self.end(process), 0)

    def test_no_streams_at_all(self):
        closed = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-']
        with self.serving(*closed) as (process, port):
            self.assertEqual(exchange(port, "GET", "/nowhere").status, 404)
            self.assertEqual(self.end(process), 0)

    def test_a_terminal_that_takes_nothing(self):
        """The log's thread hangs in a write for good; the process must end all the same."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        os.set_blocking(writer, True)
        with self.serving(stdout=subprocess.DEVNULL, stderr=writer,
                          constants={"LOG_FLUSH_SECONDS": 0.2}) as (process, port):
            os.close(writer)
            for _ in range(3):
                self.assertEqual(exchange(port, "GET", "/nowhere").status, 404)
            self.assertEqual(self.end(process), 0)


if __name__ == "__main__":
    unittest.main()
