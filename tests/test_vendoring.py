"""The file inside another package: its tests start and stop gateways and find the process unchanged."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import claude_gateway as gw
from tests import support

# What a process has only one of.  Nobody's code may find it changed because a gateway ran.
STATE = '''\
"""Everything of the process that is everybody's, as comparable values."""

import atexit
import gc
import locale
import logging
import os
import random
import signal
import socket
import ssl
import sys
import threading
import urllib.request
import warnings


def handlers():
    """Every signal's handler; Windows and tests have fewer signals."""
    return {int(number): signal.getsignal(number) for number in signal.valid_signals()}


def loggers():
    return {name: (getattr(logger, "level", None), list(getattr(logger, "handlers", ())))
            for name, logger in [("", logging.getLogger()), *logging.root.manager.loggerDict.items()]}


def descriptors():
    """The open files, where the system tells them."""
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []


def snapshot():
    return {
        "threads": set(threading.enumerate()),
        "threads' bounds": (threading.stack_size(), sys.getswitchinterval(), sys.getrecursionlimit()),
        "signals": handlers(),
        "logging": loggers(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "standard files": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile(), sys.displayhook),
        "exit": getattr(atexit, "_ncallbacks", int)(),  # PyPy does not count them
        "collector": (gc.isenabled(), getattr(gc, "get_threshold", tuple)()),
        "locale": locale.setlocale(locale.LC_ALL),
        "random": random.getstate(),
        "digits": getattr(sys, "get_int_max_str_digits", int)(),
        "sockets": (socket.getdefaulttimeout(), socket.socket),
        "opener": urllib.request._opener,
        "tls": ssl._create_default_https_context,
        "descriptors": descriptors(),
    }
'''

# As somebody would write it who has dropped the file into a package.
DESK = '''\
import json
import threading
import unittest
import urllib.request

from shop.tests.state import snapshot
from shop.vendor.claude_gateway import Config
from shop.vendor.claude_gateway import ConfigError
from shop.vendor.claude_gateway import Gateway

DEMO = {"port": 0, "providers": [{"name": "demo"}]}
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(gateway, **more):
    body = dict({"model": "claude-demo-1", "max_tokens": 64,
                 "messages": [{"role": "user", "content": "Hello"}]}, **more)
    request = urllib.request.Request(gateway.url + "/v1/messages", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=20) as response:
        return response.read().decode("utf-8")


class DeskTest(unittest.TestCase):

    # Of a process that has not run a gateway yet: what the first one changes counts, too.
    before = snapshot()

    def tearDown(self):
        after = snapshot()
        for name in sorted(self.before):
            self.assertEqual(after[name], self.before[name], name)

    def check(self, gateway):
        self.assertRegex(gateway.url, "^http://127[.]0[.]0[.]1:[1-9][0-9]*$")
        self.assertTrue(gateway.url.endswith(":%d" % gateway.port))
        self.assertIn("You said: Hello", json.loads(ask(gateway))["content"][0]["text"])
        self.assertIn("message_stop", ask(gateway, stream=True))

    def test_twice(self):
        for _ in range(2):
            with Gateway(Config.from_dict(DEMO)) as gateway:
                self.check(gateway)

    def test_the_same_one_again(self):
        gateway = Gateway(Config.from_dict(DEMO))
        for _ in range(2):
            with gateway:
                self.check(gateway)
            gateway.stop()  # once more does nothing

    def test_two_beside_each_other(self):
        with Gateway(Config.from_dict(DEMO)) as one, Gateway(Config.from_dict(DEMO)) as other:
            self.assertNotEqual(one.port, other.port)
            self.check(one)
            self.check(other)

    def test_in_a_thread(self):
        """Whatever a main thread alone may do, such as signals, is not done."""
        failed = []

        def run():
            try:
                with Gateway(Config.from_dict(DEMO)) as gateway:
                    self.check(gateway)
            except BaseException as error:
                failed.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
        self.assertEqual((failed, thread.is_alive()), ([], False))

    def test_a_test_that_fails_inside(self):
        with self.assertRaises(ZeroDivisionError):
            with Gateway(Config.from_dict(DEMO)) as gateway:
                self.check(gateway)
                1 / 0

    def test_one_that_cannot_start(self):
        with Gateway(Config.from_dict(DEMO)) as gateway:
            with self.assertRaises(OSError):
                Gateway(Config.from_dict(dict(DEMO, port=gateway.port))).start()
            with self.assertRaises(RuntimeError):
                gateway.start()
        with self.assertRaises(ConfigError) as caught:
            Config.from_dict({"prot": 1})
        self.assertEqual(len(caught.exception.problems), 1)

    def test_one_that_is_dropped_unstarted(self):
        Gateway(Config.from_dict(DEMO)).stop()

    def test_its_log_goes_where_it_is_sent(self):
        lines = []
        with Gateway(Config.from_dict(DEMO), lines.append) as gateway:
            self.check(gateway)
            gateway.note("info", "a note")
        self.assertTrue(any("a note" in line for line in lines), lines)


if __name__ == "__main__":
    unittest.main()
'''


class PackageTest(unittest.TestCase):

    def package(self, folder, **files):
        """A package ``shop`` with the file in ``shop/vendor`` and ``files`` in ``shop/tests``."""
        for name in ("shop", "shop/vendor", "shop/tests"):
            os.mkdir(os.path.join(folder, name))
            with open(os.path.join(folder, name, "__init__.py"), "w", encoding="utf-8"):
                pass
        shutil.copy(support.GATEWAY_FILE, os.path.join(folder, "shop", "vendor"))
        for name, text in files.items():
            with open(os.path.join(folder, "shop", "tests", name + ".py"), "w", encoding="utf-8") as file:
                file.write(text)

    def test_tests_of_a_package_start_and_stop_it(self):
        with tempfile.TemporaryDirectory() as folder:
            self.package(folder, state=STATE, test_desk=DESK)
            done = subprocess.run(
                [sys.executable, "-W", "error", "-m", "unittest", "shop.tests.test_desk"], cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
            self.assertEqual((done.returncode, done.stdout), (0, b""), done.stderr.decode("utf-8", "replace"))
            # Nothing but the runner's own lines: no warning, no traceback of a thread.
            self.assertRegex(done.stderr.decode("utf-8"), r"\A\.+\s+-+\s+Ran [0-9]+ tests in [0-9.]+s\s+OK\s*\Z")
            left = sorted(os.path.relpath(os.path.join(where, name), folder)
                          for where, _, names in os.walk(folder) for name in names)
            self.assertEqual([name for name in left if not name.startswith("shop")], [])


def public_names(kind):
    return [name for name in vars(kind) if not name.startswith("_")]


class PublicNamesTest(unittest.TestCase):
    """What ``__all__`` promises is told, in the file and in README.md."""

    def test_what_is_public(self):
        self.assertEqual(gw.__all__, ["Config", "ConfigError", "Gateway"])

    def test_each_says_what_it_is(self):
        for kind in (gw.Config, gw.ConfigError, gw.Gateway):
            self.assertGreater(len(inspect.getdoc(kind)), 40, kind)
        for name in public_names(gw.Gateway):
            with self.subTest(name):
                self.assertTrue(inspect.getdoc(getattr(gw.Gateway, name)))
        self.assertIn("Raises ConfigError", gw.Config.from_dict.__doc__)
        for name in ("OSError", "ConfigError", "RuntimeError"):
            self.assertIn(name, gw.Gateway.start.__doc__)

    def test_records_are_told_with_every_key(self):
        told = set(re.findall("``([a-z_]+)``", gw.Gateway.records.__doc__))
        self.assertEqual(set(gw.RequestRecord.FIELDS) - told, set())

    def test_counts_and_accounts_are_told_with_every_key(self):
        with gw.Gateway(gw.Config.from_dict({"port": 0, "providers": [{"name": "demo"}]}), environ={}) as gateway:
            for tell, rows in ((gw.Gateway.status, [gateway.status()]), (gw.Gateway.accounts, gateway.accounts())):
                for row in rows:
                    told = set(re.findall("``([a-z_]+)``", tell.__doc__))
                    self.assertEqual(set(row) - told, set())

    def test_what_needs_a_running_one_says_so(self):
        gateway = gw.Gateway(gw.Config.from_dict({}), environ={})
        for call in (gateway.status, gateway.accounts, gateway.local_answers, gateway.records,
                     lambda: gateway.reload(gateway.config)):
            with self.assertRaisesRegex(RuntimeError, "does not run"):
                call()

    def test_readme_has_them(self):
        with open(os.path.join(support.PROJECT_DIRECTORY, "README.md"), encoding="utf-8") as file:
            chapter = file.read().split("\n## Vendoring\n")[1].split("\n## ")[0]
        words = set(re.findall(r"\w+", chapter))
        instance = {name for name in vars(gw.Gateway(gw.Config.from_dict({}))) if not name.startswith("_")}
        wanted = {*gw.__all__, *public_names(gw.Gateway), *instance, "from_dict", "problems",
                  *inspect.signature(gw.Config.from_dict).parameters,
                  *inspect.signature(gw.Gateway).parameters}
        self.assertEqual(wanted - words, set())


if __name__ == "__main__":
    unittest.main()
