"""What checkers find without running anything: the oldest Python, systems that are not here, public types."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import claude_gateway as gw
from tests.clients import harness
from tests.support import GATEWAY_FILE

# The file is read once for each system; both ends of the Pythons have their turn.
READINGS = {"Linux": "3.14", "Windows": "3.8", "Darwin": "3.8"}
# pyright takes 5 to 10 s over the file, and CI's machines may be busy.
CHECK_SECONDS = 180
# A package that gives the public names on; what it has them from is private, as a vendored file is.
EXPORTING = "".join("from ._vendor.claude_gateway import %s as %s\n" % (name, name) for name in gw.__all__)


def checked(arguments, folder, **environment):
    """What pyright found, as JSON."""
    pyright = harness.installed("pyright", "node_modules", ".bin", "pyright")
    # Whatever virtual environment the tests run in is not the file's.
    done = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable] + arguments, cwd=folder,
        env=harness.bare_environment(folder, **environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=CHECK_SECONDS)
    if done.returncode not in (0, 1):
        raise AssertionError("pyright broke: %r" % done)
    return json.loads(done.stdout.decode("utf-8"))


def told(found):
    """The findings, a line each."""
    return ["%s:%d: %s" % (os.path.basename(one["file"]), one["range"]["start"]["line"] + 1, one["message"])
            for one in found["generalDiagnostics"]]


def write(folder, name, text=""):
    path = os.path.join(folder, *name.split("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class StaticCase(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def vendored(self, package):
        os.makedirs(os.path.join(self.folder, *package.split("/")))
        shutil.copy(GATEWAY_FILE, os.path.join(self.folder, *package.split("/")))


class OldestPythonTest(StaticCase):

    def vermin(self, path):
        done = subprocess.run(
            # tomllib is asked for where TOML is, and its lack is told to the user.
            [harness.installed("vermin", "bin", "vermin"), "--target=3.8-", "--violations", "--no-tips",
             "--exclude", "tomllib", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=CHECK_SECONDS)
        return done.returncode, done.stdout.decode("utf-8")

    def test_nothing_newer_than_3_8(self):
        code, text = self.vermin(GATEWAY_FILE)
        self.assertEqual(code, 0, text)
        self.assertRegex(text, r"Minimum required versions: 3\.[0-8]\n")

    def test_something_newer_would_be_seen(self):
        write(self.folder, "newer.py", "print('ab'.removeprefix('a'))\n")
        code, text = self.vermin(os.path.join(self.folder, "newer.py"))
        self.assertEqual(code, 1)
        self.assertIn("3.9", text)


class SystemsTest(StaticCase):

    def read(self, system):
        return checked(["--pythonplatform", system, "--pythonversion", READINGS[system], GATEWAY_FILE], self.folder)

    def test_no_finding_on_any_system(self):
        with concurrent.futures.ThreadPoolExecutor(2) as two:
            for system, found in zip(READINGS, two.map(self.read, READINGS)):
                with self.subTest(system):
                    self.assertEqual(found["summary"]["filesAnalyzed"], 1)
                    self.assertEqual(told(found), [])

    def test_a_name_that_one_system_lacks_would_be_seen(self):
        write(self.folder, "posix.py", "import signal\nprint(signal.SIGHUP)\n")
        lines = told(checked(["--pythonplatform", "Windows", "posix.py"], self.folder))
        self.assertEqual(len(lines), 1)
        self.assertIn("SIGHUP", lines[0])


class PublicTypesTest(StaticCase):

    def test_every_public_name_has_its_whole_type(self):
        self.vendored("shop/_vendor")
        write(self.folder, "shop/_vendor/__init__.py")
        write(self.folder, "shop/__init__.py", EXPORTING)
        write(self.folder, "shop/py.typed")
        found = checked(["--ignoreexternal", "--verifytypes", "shop"], self.folder, PYTHONPATH=self.folder)
        types = found["typeCompleteness"]
        self.assertEqual([symbol["name"] for symbol in types["symbols"] if not symbol["isTypeKnown"]], [])
        self.assertEqual((types["completenessScore"], types["exportedSymbolCounts"]["withKnownType"]),
                         (1, len(gw.__all__)))
        self.assertEqual((types["missingFunctionDocStringCount"], types["missingClassDocStringCount"]), (0, 0))

    def test_a_strict_program_over_them(self):
        self.vendored("shop/vendor")
        shutil.copy(harness.program("typed_consumer.py"), self.folder)
        found = checked(["typed_consumer.py"], self.folder)
        self.assertEqual(told(found), [])
        done = harness.run([sys.executable, "-W", "error", "typed_consumer.py"],
                           harness.bare_environment(self.folder, PYTHONDONTWRITEBYTECODE="1"), self.folder)
        self.assertEqual((done.code, done.text, done.err), (0, "ok", b""), done)

    def test_the_program_uses_every_public_name(self):
        with open(harness.program("typed_consumer.py"), encoding="utf-8") as file:
            text = file.read()
        names = [name for kind in (gw.Gateway, gw.Config, gw.ConfigError) for name in vars(kind)]
        names += [*gw.Config._fields, *vars(gw.Gateway(gw.Config.from_dict({}), environ={})), "problems"]
        wanted = {name for name in names if not name.startswith("_")}
        self.assertEqual([name for name in sorted(wanted) if ".%s" % name not in text], [])


if __name__ == "__main__":
    unittest.main()
