"""The benchmark runs, fills its table with plausible figures, and leaves nothing behind."""

import contextlib
import io
import os
import re
import subprocess
import sys
import unittest
import unittest.mock

from tests import bench

# What no machine that runs this suite goes below or above; times in ms, memory in MB.
PLAUSIBLE = {"/s": (10, 1e6), "ms": (0.001, 20000), "MB": (5, 2000)}
HAS_PROC = os.path.exists("/proc/self/status")


class RecordedProcess(subprocess.Popen):
    """Remembers each process that was started."""

    started = []

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.started.append(self)


def value(cell):
    """A cell of the table -> (number, unit)."""
    number, unit = re.match(r"([\d,]+(?:\.\d+)?) ?(/s|ms|MB)$", cell).groups()
    return float(number.replace(",", "")), unit


class BenchTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.output = io.StringIO()
        RecordedProcess.started = []
        with unittest.mock.patch.object(bench.subprocess, "Popen", RecordedProcess), \
                contextlib.redirect_stdout(cls.output):
            bench.main(["--quick"])
        cls.rows = [[cell.strip() for cell in line.strip("|").split("|")]
                    for line in cls.output.getvalue().splitlines() if line.startswith("|")][2:]

    def test_every_measurement_has_a_row(self):
        names = " ".join(row[0] for row in self.rows)
        for name in ("one request at a time", "requests/s, 16", "requests/s, 64", "1 stream, p99",
                     "100 streams, p50", "short streams/s", "200 KB", "1 MB", "first 200",
                     "client leaves", bench.FIRST_MEMORY):
            with self.subTest(name):
                self.assertIn(name, names)

    def test_figures_are_plausible(self):
        for what, direct, through, added in self.rows:
            with self.subTest(what):
                if what.startswith("memory") and not HAS_PROC:
                    self.assertEqual(through, "not known without /proc")
                    continue
                alone = what.startswith("memory") or what == bench.START
                self.assertEqual((direct == "", added == ""), (alone, alone))
                for cell in (through,) if alone else (direct, through):
                    number, unit = value(cell)
                    least, most = PLAUSIBLE[unit]
                    self.assertTrue(least <= number <= most, cell)

    def test_processes_are_gone(self):
        # Python 3.8's platform starts a uname of its own.
        ours = [child for child in RecordedProcess.started if child.args[0] == sys.executable]
        self.assertEqual(len(ours), 3)
        for child in ours:
            self.assertIsNotNone(child.returncode, child.args)

    def test_output_holds_no_key(self):
        self.assertNotRegex(self.output.getvalue(), r"[A-Za-z0-9_-]{30,}")

    def test_a_request_that_fails_ends_it_with_the_reason(self):
        """Else refusals, which are quick, would count as a fast gateway."""
        with bench.process(bench.__file__, "--role", "load") as child:
            load = bench.Load(child, 0, "key")
            with bench.socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            with self.assertRaisesRegex(RuntimeError, "Error"):
                load.ask(port, plan=(0, 0), connections=1, seconds=0.01)


class TableTest(unittest.TestCase):

    def test_times_are_added_and_rates_are_shares(self):
        self.assertEqual(bench.table({"request": (0.5, 2.0), "requests/s": (1000, 250)})[2:], [
            "| request | 0.50 ms | 2.00 ms | +1.50 ms |",
            "| requests/s | 1,000/s | 250/s | 25 % |"])

    def test_what_could_not_be_measured_is_said(self):
        self.assertEqual(bench.table({bench.FIRST_MEMORY: (None, None)})[2:], [
            "| memory, after the first 200 |  | not known without /proc |  |"])

    def test_percentiles(self):
        self.assertEqual(bench.percentile(range(1, 201), 0.99), 199)
        self.assertEqual(bench.percentile([7], 0.99), 7)


if __name__ == "__main__":
    unittest.main()
