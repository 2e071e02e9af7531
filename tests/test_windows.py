"""What is otherwise on Windows, shown behind seams that a POSIX system can test.

The whole suite runs on such a system as ``python3 -m tests.shim -m unittest discover -s tests -t .``.
"""

import ast
import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import claude_gateway as gw
from tests import shim
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.support import GATEWAY_FILE
from tests.support import PROJECT_DIRECTORY
from tests.support import compiled_gateway

with open(GATEWAY_FILE, encoding="utf-8") as _file:
    SOURCE = _file.read()


class Seen:
    """A module of the library with some names otherwise, as the gateway's file sees it."""

    def __init__(self, module, **changes):
        self._module = module
        self.__dict__.update(changes)

    def __getattr__(self, name):
        return getattr(self._module, name)


def on_windows():
    """The gateway's file sees os.name and sys.platform of Windows."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(gw, "os", Seen(os, name="nt")))
    stack.enter_context(mock.patch.object(gw, "sys", Seen(sys, platform="win32")))
    return stack


class NamesTest(unittest.TestCase):
    """No name that only POSIX has is used as if it were everywhere."""

    NAMES = set(shim.NO_SIGNALS + shim.NO_SYSTEM + shim.NO_SOCKET + shim.NO_METHODS) | {
        "poll", "epoll", "kqueue", "SIGKILL", "SIGSTOP", "WNOHANG", "chown", "fchmod", "getpgid", "killpg",
        "lockf", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "set_blocking", "sysconf", "uname",
        "waitpid", "memfd_create", "CLOCK_MONOTONIC", "tzset"}
    # By function: those that stand in the branch for other systems.
    ALLOWED = {("kill_group", "killpg"), ("kill_group", "SIGKILL")}

    @classmethod
    def setUpClass(cls):
        cls.tree = ast.parse(SOURCE)

    @classmethod
    def tearDownClass(cls):
        del cls.tree  # hundreds of thousands of objects

    def test_names(self):
        modules = {"os", "signal", "socket", "select", "time", "subprocess"}
        found = set()
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                        named = node.value.id in modules or node.attr in shim.NO_METHODS
                        if named and node.attr in self.NAMES:
                            found.add((function.name, node.attr))
        self.assertEqual(found, self.ALLOWED)

    def test_modules(self):
        names = {alias.name for node in ast.walk(self.tree) if isinstance(node, ast.Import)
                 for alias in node.names}
        self.assertEqual(names & {"fcntl", "grp", "pwd", "resource", "termios"}, {"fcntl"})

    def test_files_are_opened_with_their_encoding(self):
        """Without it they are read in the code page of the machine."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open":
                modes = [argument.value for argument in node.args[1:2]]
                self.assertTrue("b" in "".join(modes) or "encoding" in {
                    keyword.arg for keyword in node.keywords}, "line %d" % node.lineno)


class ShimTest(unittest.TestCase):
    """A gateway as a process of its own, on a system without those parts."""

    def run_without_posix(self, *arguments):
        return subprocess.run([sys.executable, "-m", "tests.shim"] + list(arguments), timeout=60,
                              cwd=PROJECT_DIRECTORY, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_what_it_takes_away(self):
        done = self.run_without_posix("-c", (
            "import os, select, selectors, signal, socket, subprocess, sys\n"
            "there = [n for m, names in ((select, ['poll', 'epoll']), (signal, ['SIGHUP']),\n"
            "         (os, ['fork', 'pidfd_open']),\n"
            "         (socket, ['SO_REUSEPORT'])) for n in names if hasattr(m, n)]\n"
            "print(there, sys.stdout.encoding, sys.stdout.errors, selectors.DefaultSelector.__name__)\n"
            "sys.stdout.flush()\n"
            "subprocess.check_call([sys.executable, '-c', 'import select; select.poll'])\n"))
        self.assertIn(b"[] cp1252 strict SelectSelector", done.stdout)
        self.assertIn(b"AttributeError", done.stderr)

    def test_what_it_refuses(self):
        with tempfile.TemporaryDirectory() as folder:
            done = self.run_without_posix("-W", "error", "-c", (
                "import os, sys\n"
                "import claude_gateway as gw\n"
                "fcntl, msvcrt = gw.locking_modules()\n"
                "print('locks by', fcntl, msvcrt.__name__)\n"
                "def refused(call, *paths):\n"
                "    try: call(*paths)\n"
                "    except OSError as error: print(call.__name__.split('_')[1], type(error).__name__)\n"
                "one, two = (os.path.join(sys.argv[1], name) for name in ('one', 'two'))\n"
                "for path in (one, two): open(path, 'w', encoding='utf-8').close()\n"
                "refused(os.rename, one, two)\n"
                "with open(two, encoding='utf-8'): refused(os.replace, one, two); refused(os.remove, two)\n"
                "os.replace(one, two)\n"
                "print(os.listdir(sys.argv[1]))\n"), folder)
        self.assertEqual((done.stdout.split(b"\n"), done.stderr), ([
            b"locks by None msvcrt", b"rename FileExistsError", b"replace PermissionError",
            b"remove PermissionError", b"['two']", b""], b""))

    def test_a_gateway_there(self):
        program = (
            "import http.client, json, sys\n"
            "from tests.support import GatewayProcess\n"
            "with GatewayProcess(args=['--demo']) as gateway:\n"
            "    c = http.client.HTTPConnection(gateway.host, gateway.port, timeout=10)\n"
            "    c.request('POST', '/v1/messages', json.dumps({'model': 'claude-demo-1', 'max_tokens': 9,\n"
            "        'stream': True, 'messages': [{'role': 'user', 'content': 'hi'}]}))\n"
            "    assert b'message_stop' in c.getresponse().read()\n"
            "    assert gateway.stop() == 0 and 'Traceback' not in gateway.stderr_text()\n"
            "print('served')\n")
        done = self.run_without_posix("-c", program)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"served\n", b""),
                         done.stderr.decode("cp1252"))

    def test_a_console_that_lacks_letters(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "\u0142.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write('{"providers": [{"name": "own", "base_url": "https://own.example", '
                           '"owner": "\u2192 \u00fc", "models": ["\u0142\u00f3d\u017a"]}], "x\u0142": 1}')
            for arguments in (["check", "--config", path], ["env", "--config", path], ["--help"]):
                with self.subTest(arguments[0]):
                    done = self.run_without_posix(compiled_gateway(), *arguments)
                    self.assertNotIn(b"Traceback", done.stderr)
                    self.assertNotEqual(done.stdout + done.stderr, b"")
                    (done.stdout + done.stderr).decode("cp1252")


class PollerTest(unittest.TestCase):
    """select in the place of poll, through the whole gateway."""

    def setUp(self):
        for name, value in (("new_poller", gw.SelectPoller), ("POLL_LEFT", 0)):
            patch = mock.patch.object(gw, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_served(self):
        with support.ScriptedUpstream() as upstream, running_gateway(provider(upstream)) as gateway:
            answer = support.exchange(gateway.port, "POST", "/v1/messages", [JSON_TYPE], MESSAGE)
            self.assertEqual(answer.status, 200)

    def test_a_client_that_leaves_is_seen(self):
        left = support.Gate()

        def script(connection):
            connection.read_request()
            connection.wait_closed("the gateway to close the call")
            left.open()

        with support.ScriptedUpstream(script) as upstream:
            with running_gateway(provider(upstream)) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                    upstream.wait_requests(1)
                left.wait("the call to end")


class LockTest(unittest.TestCase):

    def test_msvcrt_locks_where_there_is_no_fcntl(self):
        done = []
        held = []

        def locking(descriptor, mode, count):
            if mode == "try" and held:
                raise PermissionError(errno.EACCES, "Permission denied")
            done.append((mode, count))
            held[:] = ["it"] if mode == "try" else []

        msvcrt = types.ModuleType("msvcrt")
        msvcrt.LK_NBLCK, msvcrt.LK_UNLCK, msvcrt.locking = "try", "give back", locking
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch.object(gw, "locking_modules", lambda: (None, msvcrt)):
            first, second = (gw.FileLock(os.path.join(folder, "lock")) for _ in range(2))
            self.assertTrue(first.try_acquire())
            self.assertFalse(second.try_acquire())
            second.close()
            first.close()
        self.assertEqual(done, [("try", 1), ("give back", 1)])

    @unittest.skipIf(shim.is_here(), "an import hook of the shim stands in for this")
    def test_which_there_is(self):
        msvcrt = types.ModuleType("msvcrt")
        with mock.patch.dict(sys.modules, {"fcntl": None, "msvcrt": msvcrt}):
            self.assertEqual(gw.locking_modules(), (None, msvcrt))


class CommandTest(unittest.TestCase):

    def test_a_tree_of_processes_is_ended(self):
        """taskkill takes what the command started along; the command itself ends anyway."""
        asked = []
        with on_windows(), subprocess.Popen(
                [sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            with mock.patch.object(gw, "subprocess", Seen(
                    subprocess, run=lambda words, **more: asked.append(words))):
                gw.kill_group(process)
            self.assertIsNotNone(process.returncode)
        self.assertEqual(asked, [["taskkill", "/F", "/T", "/PID", str(process.pid)]])

    def test_without_taskkill_the_command_ends_all_the_same(self):
        def missing(words, **more):
            raise FileNotFoundError(errno.ENOENT, "no such program")

        with on_windows(), subprocess.Popen(
                [sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            with mock.patch.object(gw, "subprocess", Seen(subprocess, run=missing)):
                gw.kill_group(process)
            self.assertIsNotNone(process.returncode)


class PathTest(unittest.TestCase):

    def test_the_configuration_is_looked_for_in_appdata(self):
        with tempfile.TemporaryDirectory() as folder, on_windows():
            path = os.path.join(folder, "claude_gateway", "config.json")
            os.makedirs(os.path.dirname(path))
            with open(path, "w", encoding="utf-8") as file:
                file.write("{}")
            self.assertEqual(gw.find_config_file(None, {"APPDATA": folder, "HOME": "/nowhere"}), path)
            self.assertIsNone(gw.find_config_file(None, {"HOME": folder}))

    def test_modes_say_nothing_there(self):
        with tempfile.NamedTemporaryFile() as file:
            os.chmod(file.name, 0o644)
            with on_windows():
                self.assertFalse(gw.file_is_open(file.name))


class SocketTest(unittest.TestCase):

    def test_the_port_is_taken_for_ourselves_alone(self):
        """SO_REUSEADDR would let a second process share it there (gh-85307)."""
        taken = []

        class Recorded:
            def setsockopt(self, *option):
                taken.append(option)

            def setblocking(self, how):
                pass

        server = gw.DownstreamServer.__new__(gw.DownstreamServer)
        server.socket, server.server_address = Recorded(), ("127.0.0.1", 1)
        with on_windows(), mock.patch.object(
                gw, "socket", Seen(socket, SO_EXCLUSIVEADDRUSE="alone")), mock.patch.object(
                gw.socketserver.TCPServer, "server_bind"):
            server.server_bind()
        self.assertEqual(taken, [(socket.SOL_SOCKET, "alone", 1)])

    def test_errors_have_words(self):
        self.assertEqual(gw.socket_error_text(errno.ECONNREFUSED), os.strerror(errno.ECONNREFUSED))
        with mock.patch.object(socket, "errorTab", {10061: "Connection refused."}, create=True):
            self.assertEqual(gw.socket_error_text(10061), "Connection refused")

    def test_a_port_that_windows_denies(self):
        hint = "; choose another with --port"
        self.assertEqual(gw.taken_port(PermissionError(errno.EACCES, "denied"), 0), hint)
        self.assertEqual(gw.taken_port(OSError(errno.EADDRNOTAVAIL, "no such address"), 0), "")


class SignalTest(unittest.TestCase):

    def test_ctrl_break_ends_it_and_there_is_no_hangup(self):
        program = (
            "import signal\n"
            "del signal.SIGHUP\n"
            "signal.SIGBREAK = signal.SIGUSR1\n"
            "import claude_gateway as gw\n"
            "signals = gw.Signals()\n"
            "signal.raise_signal(signal.SIGBREAK)\n"
            "print(signals.next(10))\n")
        if shim.is_here():
            self.skipTest("needs POSIX: a signal to stand for Ctrl-Break")
        done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_DIRECTORY, timeout=30,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual((done.returncode, done.stdout), (0, b"stop\n"))


if __name__ == "__main__":
    unittest.main()
