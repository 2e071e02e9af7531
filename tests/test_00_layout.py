"""The file reads from the ground up: map, banners, downward-only names, sizes."""

import ast
import functools
import os
import re
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATH = os.path.join(ROOT, "claude_gateway.py")
BANNER = re.compile(r"^# ---- (\d+)\. (.+?) -+$", re.MULTILINE)
MAP_LINE = re.compile(r"^    (\d+) +(\S.*?)  +\S", re.MULTILINE)

with open(PATH, encoding="utf-8") as _file:
    SOURCE = _file.read()
LINES = SOURCE.split("\n")
TREE = None  # below


def setUpModule():
    global TREE
    TREE = ast.parse(SOURCE)


def tearDownModule():
    """Lets go of 330,000 objects: each full collection of garbage would look at them."""
    global TREE
    TREE = None


@functools.lru_cache(maxsize=None)
def sections():
    """(first line, number, title) of every banner, in order."""
    return [(SOURCE.count("\n", 0, match.start()) + 1, int(match.group(1)), match.group(2))
            for match in BANNER.finditer(SOURCE)]


def section_of(line):
    """The position of the section that a line stands in, -1 before the first."""
    starts = [start for start, _, _ in sections()]
    return sum(1 for start in starts if start <= line) - 1


def module_names():
    """Where each name of the module is defined, as line numbers."""
    found = {}
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.setdefault(node.name, node.lineno)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, node.lineno)
    return found


def names_used():
    """(name, line) of every name that is looked up, also within string annotations."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id, node.lineno


class MapTest(unittest.TestCase):

    def test_map_and_banners_are_the_same_list(self):
        listed = [(int(number), title) for number, title in MAP_LINE.findall(ast.get_docstring(
            TREE, clean=False))]
        self.assertGreater(len(listed), 10)
        self.assertEqual(listed, [(number, title) for _, number, title in sections()])

    def test_numbers_rise(self):
        numbers = [number for _, number, _ in sections()]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_banners_have_one_width(self):
        self.assertEqual({len(match.group(0)) for match in BANNER.finditer(SOURCE)}, {80})


class OneLawTest(unittest.TestCase):

    def test_a_section_names_only_what_stands_above_it(self):
        defined = module_names()
        upward = ["line %d names %s of line %d" % (line, name, defined[name])
                  for name, line in names_used()
                  if name in defined and section_of(defined[name]) > section_of(line)]
        self.assertEqual(upward, [])

    def test_every_name_is_defined_once(self):
        """A second definition would take the first one's place everywhere, unseen."""
        names = [node.name for node in TREE.body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names += [name.id for node in TREE.body if isinstance(node, (ast.Assign, ast.AnnAssign))
                  for name in (node.targets if isinstance(node, ast.Assign) else [node.target])
                  if isinstance(name, ast.Name)]
        self.assertEqual([name for name in sorted(set(names)) if names.count(name) > 1], [])

    def test_protocol_sections_touch_no_socket(self):
        numbers = {number for _, number, _ in sections()}
        io_sections = {13, 17, 20, 22, 23, 24, 25} & numbers
        users = {sections()[section_of(line)][1] for name, line in names_used()
                 if name in ("socket", "select", "selectors", "ssl") and section_of(line) >= 0}
        self.assertEqual(users - io_sections, set())


class SizeTest(unittest.TestCase):

    def functions(self):
        return [node for node in ast.walk(TREE)
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    def test_no_function_is_longer_than_a_screen(self):
        long = [node.name for node in self.functions() if node.end_lineno - node.lineno + 1 > 60]
        self.assertEqual(long, [])

    def test_functions_are_short_as_a_rule(self):
        sizes = sorted(self.code_lines(node) for node in self.functions())
        self.assertLessEqual(sizes[len(sizes) // 2], 8)
        self.assertLessEqual(sizes[len(sizes) * 9 // 10], 28)

    def code_lines(self, node):
        """Lines of a function without docstring, comments and blank ones."""
        text = [line.strip() for line in LINES[node.lineno - 1:node.end_lineno]]
        docstring = (ast.get_docstring(node) or "").count("\n") + 1 if ast.get_docstring(node) else 0
        return sum(1 for line in text if line and not line.startswith("#")) - docstring

    def test_public_things_are_documented(self):
        bare = [node.name for node in ast.walk(TREE)
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_") and node.col_offset in (0, 4)
                and not ast.get_docstring(node)]
        nested = {inner.name for outer in self.functions() for inner in ast.walk(outer)
                  if isinstance(inner, ast.FunctionDef) and inner is not outer}
        self.assertEqual([name for name in bare if name not in nested], [])


class ImportTest(unittest.TestCase):

    def imports(self):
        return [node for node in TREE.body if isinstance(node, (ast.Import, ast.ImportFrom))]

    def test_one_import_a_line_sorted(self):
        plain = [node.names[0].name for node in self.imports() if isinstance(node, ast.Import)]
        self.assertEqual(plain, sorted(plain))
        self.assertTrue(all(len(node.names) == 1 for node in self.imports()))

    def test_every_import_is_used(self):
        used = {name for name, _ in names_used()}
        annotations = " ".join(re.findall(r"(?::|->) *[^\n]+", SOURCE))
        idle = [node.names[0].name for node in self.imports()
                if getattr(node, "module", "") != "__future__"
                and node.names[0].name.split(".")[0] not in used
                and node.names[0].name not in annotations]
        self.assertEqual(idle, [])

    def test_standard_library_only(self):
        if not hasattr(sys, "stdlib_module_names"):
            self.skipTest("sys.stdlib_module_names came with Python 3.10")
        modules = {name.name.split(".")[0] for node in ast.walk(TREE)
                   if isinstance(node, ast.Import) for name in node.names}
        modules |= {(node.module or "").split(".")[0] for node in ast.walk(TREE)
                    if isinstance(node, ast.ImportFrom)}
        # TOML is read where there is a reader, from Python 3.11 on.
        self.assertEqual(modules - set(sys.stdlib_module_names) - {"tomllib"}, set())

    def test_importing_starts_nothing(self):
        """No thread, no look at the environment, no socket, nothing printed."""
        program = (
            "import os, socket, sys, threading\n"
            "import http.server, ssl, subprocess, urllib.request\n"  # what the library itself does first
            "class Closed(dict):\n"
            "    def fail(self, *a): raise AssertionError('environment read')\n"
            "    __getitem__ = get = items = keys = __iter__ = __contains__ = fail\n"
            "os.environ = Closed()\n"
            "def fail(*a, **k): raise AssertionError('socket opened')\n"
            "socket.socket.__init__ = fail\n"
            "from claude_gateway import Config, Gateway\n"
            "assert threading.active_count() == 1\n")
        result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual((result.returncode, result.stdout), (0, b""))


class TreeTest(unittest.TestCase):

    def test_top_level_holds_what_the_user_fixed(self):
        allowed = {"claude_gateway.py", "README.md", "tests", "LICENSE"}
        present = {name for name in os.listdir(ROOT)
                   if not name.startswith(".") and name != "__pycache__"}
        self.assertEqual(present - allowed, set())

    def test_tests_do_not_sleep(self):
        sleepers = []
        for folder, _, names in os.walk(os.path.join(ROOT, "tests")):
            for name in names:
                if name.endswith(".py"):
                    with open(os.path.join(folder, name), encoding="utf-8") as file:
                        if re.search(r"time\.sleep" + r"\(", file.read()):
                            sleepers.append(name)
        self.assertEqual(sleepers, [])




if __name__ == "__main__":
    unittest.main()
