"""A program in a terminal: a pty with an emulator at the other end, which says what a person would see."""

import contextlib
import fcntl
import glob
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

from tests.clients import harness

COLUMNS, LINES = 100, 40


def emulator():
    """The module pyte, from the folder that install.sh made for it."""
    (packages,) = glob.glob(harness.installed("terminal", "lib", "python3*", "site-packages"))
    if packages not in sys.path:
        sys.path.append(packages)
    import pyte
    return pyte


def become_the_terminals_leader():
    """In the child: the pty on standard input becomes its controlling terminal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Runs a command; `wait_for` and `type` are what a person does at it."""

    def __init__(self, command, environment, folder):
        self.command = command
        self.environment = dict(environment, TERM="xterm-256color")
        self.folder = folder

    def __enter__(self):
        pyte = emulator()
        self._screen = pyte.Screen(COLUMNS, LINES)
        # Where the program asks its terminal something, that answers as if typed.
        self._screen.write_process_input = lambda text: self._write(text.encode("ascii"))
        self._stream = pyte.ByteStream(self._screen)
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            self.command, env=self.environment, cwd=self.folder, stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=become_the_terminals_leader)
        os.close(theirs)
        return self

    def __exit__(self, kind, error, trace):
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        os.close(self._end)

    def _write(self, data):
        while data:
            data = data[os.write(self._end, data):]

    def _draw_more(self, deadline, what):
        """Take in what the program writes; False when it has ended."""
        if not select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError("waited for %s before this screen:\n%s" % (what, self.text()))
        try:
            data = os.read(self._end, 65536)
        except OSError:
            return False  # what Linux says of a pty whose other side is closed
        self._stream.feed(data)
        return bool(data)

    def text(self):
        """The screen as it stands, without the blanks at the end of lines."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def wait_for(self, words):
        """Until the screen shows these words, however they came there."""
        deadline = time.monotonic() + harness.CLIENT_SECONDS
        while words not in self.text():
            if not self._draw_more(deadline, repr(words)):
                raise AssertionError("it ended without %r and with this screen:\n%s" % (words, self.text()))

    def type(self, words):
        """The keys one after the other, and the Enter key once they stand on the screen."""
        self._write(words.encode("utf-8"))
        self.wait_for(words)
        self._write(b"\r")

    def wait_for_the_end(self):
        """The exit code."""
        deadline = time.monotonic() + harness.CLIENT_SECONDS
        while self._draw_more(deadline, "the end"):
            continue
        return self._process.wait(harness.CLIENT_SECONDS)
