"""A POSIX system with what Windows lacks taken away.

    python3 -m tests.shim -m unittest discover -s tests -t .

runs Python so, and all it starts by ``sys.executable`` as well.  What goes: ``poll`` and its kin,
``fork``, the signals and socket options of POSIX, sockets of the file system, ``fcntl`` (in its
place an ``msvcrt`` that can lock); ``rename`` does not overwrite, files that are open can be neither
replaced nor removed, folders cannot be opened, and the console is cp1252 and strict.

What the library's own modules need of it stays theirs: only this project's see neither ``fcntl``
nor folders.  ``os.name`` stays "posix", since the library would take it at its word.
"""

import builtins
import errno
import locale
import os
import select
import selectors
import shlex
import shutil
import signal
import socket
import sys
import types
import unittest

# How those that were started so know it, and what starts further ones.
MARK = "CLAUDE_GATEWAY_TESTS_SHIM"

NO_SIGNALS = ("SIGHUP SIGUSR1 SIGUSR2 SIGQUIT SIGALRM SIGPIPE SIGCHLD alarm pause pthread_kill "
              "pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo").split()
NO_SYSTEM = "fork forkpty getuid geteuid getgid getegid mkfifo pidfd_open setsid sendfile writev readv".split()
NO_SOCKET = "AF_UNIX MSG_DONTWAIT MSG_NOSIGNAL SO_REUSEPORT TCP_CORK TCP_USER_TIMEOUT TCP_QUICKACK".split()
NO_METHODS = "sendmsg recvmsg recvmsg_into sendmsg_afalg".split()


def is_here():
    """Whether this process runs without those parts."""
    return MARK in os.environ or hasattr(sys, "claude_gateway_tests_shim")


def console_encoding():
    """What a started Python writes to a pipe in."""
    if is_here():
        return "cp1252"
    return locale.getpreferredencoding(False) if os.name == "nt" else "utf-8"


def needs(what):
    """Skips a test under the shim, with the reason printed."""
    return unittest.skipIf(is_here(), "needs POSIX: %s" % what)


def is_ours(frame):
    """Whether the code of a frame is the gateway's or a test's."""
    name = frame.f_globals.get("__name__", "")
    file = frame.f_globals.get("__file__") or ""
    return name == "claude_gateway" or name.startswith("tests.") or file.endswith("claude_gateway.py")


def take_away():
    """Make this process such a system.  Before other imports: they look what there is."""
    sys.claude_gateway_tests_shim = True
    if sys.implementation.name == "pypy":
        import _ssl  # noqa: F401 - made of poll there, which stays its own
    for module, names in ((signal, NO_SIGNALS), (os, NO_SYSTEM), (socket, NO_SOCKET),
                          (select, [name for name in vars(select) if "poll" in name.lower()])):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    # Imported by socket, so before this.
    for name in ("DevpollSelector", "EpollSelector", "KqueueSelector", "PollSelector"):
        if hasattr(selectors, name):
            delattr(selectors, name)
    selectors.DefaultSelector = selectors.SelectSelector
    # What it found as it was imported.
    shutil._USE_CP_SENDFILE = False
    for name in NO_METHODS:
        setattr(socket.socket, name, property(lambda self: missing_method()))
    socket.socketpair = socket_pair
    refuse_modules()
    refuse_files()


def missing_method():
    """As if a socket had no such method."""
    raise AttributeError("Windows has no such method")


def socket_pair(family=None, kind=socket.SOCK_STREAM, protocol=0):
    """Two connected sockets, through loopback as the library does it on Windows."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.create_connection(listener.getsockname())
        other, address = listener.accept()
        # Another program may have come in between.
        assert address == one.getsockname()
    return one, other


def refuse_modules():
    """No fcntl for us; an msvcrt that can lock, which the library must not see."""
    import fcntl
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.LK_UNLCK, msvcrt.LK_NBLCK = 0, 2

    def locking(descriptor, mode, count):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN if mode == msvcrt.LK_UNLCK
                        else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    msvcrt.locking = locking
    imported = builtins.__import__

    def import_for_us(name, *more, **named):
        if name in ("fcntl", "resource", "termios", "pwd", "grp", "msvcrt") and is_ours(sys._getframe(1)):
            if name != "msvcrt":
                raise ModuleNotFoundError("No module named %r" % name, name=name)
            return msvcrt
        return imported(name, *more, **named)

    builtins.__import__ = import_for_us


def refuse_files():
    """rename, replace, remove and open with the refusals of Windows."""
    rename, replace, remove, opened = os.rename, os.replace, os.remove, os.open

    def strict_rename(source, target, **more):
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
        refuse_open(source)
        rename(source, target, **more)

    def strict_replace(source, target, **more):
        refuse_open(source)
        refuse_open(target)
        replace(source, target, **more)

    def strict_remove(path, **more):
        if not more:
            refuse_open(path)
        remove(path, **more)

    def strict_open(path, *arguments, **more):
        if is_ours(sys._getframe(1)) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *arguments, **more)

    os.rename, os.replace, os.open = strict_rename, strict_replace, strict_open
    os.remove = os.unlink = strict_remove


def refuse_open(path):
    """Raises PermissionError where this process has a file open (known on Linux alone)."""
    folder = "/proc/self/fd"
    wanted = os.path.realpath(path)
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            held = os.readlink(os.path.join(folder, name))
        except OSError:
            continue  # the descriptor of the listing itself
        if held == wanted:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


# ---------------------------------------------------------------- starting

CUSTOM = """\
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("posix_shim", {file!r})
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)
shim.take_away()
sys.executable = os.path.join({folder!r}, "python")
"""

WRAPPER = """\
#!/bin/sh
PYTHONPATH={folder} PYTHONIOENCODING="${{PYTHONIOENCODING:-cp1252:strict}}" {mark}=1 exec {python} "$@"
"""


def main(arguments):
    """Run Python so; its exit code."""
    import subprocess
    import tempfile
    with tempfile.TemporaryDirectory(prefix="gateway-shim-") as folder:
        with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
            file.write(CUSTOM.format(file=os.path.abspath(__file__), folder=folder))
        wrapper = os.path.join(folder, "python")
        with open(wrapper, "w", encoding="utf-8") as file:
            file.write(WRAPPER.format(folder=shlex.quote(folder), mark=MARK,
                                      python=shlex.quote(sys.executable)))
        os.chmod(wrapper, 0o700)
        return subprocess.call([wrapper] + arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
