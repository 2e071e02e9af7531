"""What the tests share: a scripted upstream, a raw HTTP client, clocks, gates.

Nothing here sleeps.  A test orders events with a Gate, and every wait ends
after WAIT_SECONDS with an AssertionError which says what was awaited.
"""

import atexit
import contextlib
import functools
import http.client
import io
import json
import os
import py_compile
import random
import re
import selectors
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import unittest.mock

import claude_gateway
from tests import shim

# The longest any single wait may take, in seconds.
WAIT_SECONDS = 10

# Joining threads may take a little longer than one wait, so that a script
# which is stuck reports what it awaited instead of "the thread did not end".
JOIN_SECONDS = WAIT_SECONDS + 5

# What a broken connection may be under TLS beside an OSError: PyPy 7.3 looks for the
# text of such an error and trips over its lack.
ERRORS_BELOW_TLS = (RuntimeError,) if sys.implementation.name == "pypy" else ()

LISTEN_QUEUE = 1024
RECEIVE_BYTES = 65536

TESTS_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
PROJECT_DIRECTORY = os.path.dirname(TESTS_DIRECTORY)
GATEWAY_FILE = os.path.join(PROJECT_DIRECTORY, "claude_gateway.py")


# ---------------------------------------------------------------- waiting


class TimedOut(AssertionError):
    """A bounded wait ran out; the message says what was awaited."""


class Gate:
    """A one-way gate between threads: closed at first, then open for good."""

    def __init__(self):
        self._event = threading.Event()

    @property
    def is_open(self):
        return self._event.is_set()

    def open(self):
        self._event.set()

    def wait(self, what=""):
        """Block until open; raise TimedOut naming `what` after WAIT_SECONDS."""
        if not self._event.wait(WAIT_SECONDS):
            raise TimedOut("waited %s s for the gate: %s" % (WAIT_SECONDS, what or "unnamed"))


def eventually(predicate, what):
    """Poll `predicate` until it is true; return its value, else raise TimedOut."""
    deadline = time.monotonic() + WAIT_SECONDS
    never, pause = threading.Event(), 0.0005
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimedOut("waited %s s for: %s" % (WAIT_SECONDS, what))
        never.wait(pause)
        # Most of it is true in a moment; what is not is looked at more seldom.
        pause = min(2 * pause, 0.01)


class FakeClock:
    """A clock which moves only when told to; all numbers are seconds."""

    def __init__(self, monotonic=1000.0, wall=1700000000.0):
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self._wall = wall
        self.sleeps = []

    def monotonic(self):
        with self._lock:
            return self._monotonic

    def time(self):
        with self._lock:
            return self._wall

    def sleep(self, seconds):
        """Record `seconds` in `sleeps` and advance by them at once."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        with self._lock:
            self.sleeps.append(seconds)
        self.advance(seconds)

    def advance(self, seconds):
        with self._lock:
            self._monotonic += seconds
            self._wall += seconds


def count_open_descriptors(pid=None):
    """The number of open descriptors of this process, or None if unknowable.

    With `pid` (Linux only) those of another process.
    """
    for directory in ("/proc/%s/fd" % (pid or "self"), None if pid else "/dev/fd"):
        if directory and os.path.isdir(directory):
            # Listing our own directory opens one descriptor, each time alike.
            return len(os.listdir(directory)) - (0 if pid else 1)
    return None


def free_port():
    """A port that is free, for where it must be known before it is used, or stay unused.

    From below those that systems give out by themselves (Linux from 32768 on, others
    from 49152): one of these would soon be another program's, such as a second suite's.
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue  # safe: another is taken
            return port
    raise AssertionError("no free port")


# ------------------------------------------------------- bytes on the wire


class EndedEarly(ConnectionError):
    """The other side left in the middle of a message."""


class Wire:
    """A buffered, bounded reader over one socket.

    `ended` is None, "eof" or "reset" once the other side has left.  Over TLS
    some Pythons (3.10 and 3.11 at least) report RST as an end of file, so
    there a test must take either.
    """

    def __init__(self, sock):
        self.socket = sock
        self.buffer = bytearray()
        self.ended = None

    def fill(self, what, seconds=WAIT_SECONDS):
        """Receive something into `buffer`: True, or False when `ended`."""
        if self.ended:
            return False
        try:
            self.socket.settimeout(seconds)
            data = self.socket.recv(RECEIVE_BYTES)
        except socket.timeout:
            raise TimedOut("waited %s s for %s; have %r" % (seconds, what, bytes(self.buffer[-200:])))
        except (ConnectionError, ssl.SSLEOFError, *ERRORS_BELOW_TLS):
            self.ended = "reset"
            return False
        if not data:
            self.ended = "eof"
        self.buffer += data
        return bool(data)

    def _fill_or_raise(self, what):
        if not self.fill(what):
            raise EndedEarly("%s instead of %s; have %r" % (self.ended, what, bytes(self.buffer[-200:])))

    def take(self, count):
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def exactly(self, count, what):
        while len(self.buffer) < count:
            self._fill_or_raise(what)
        return self.take(count)

    def until(self, mark, what):
        """The bytes up to and including `mark`."""
        while mark not in self.buffer:
            self._fill_or_raise(what)
        return self.take(self.buffer.index(mark) + len(mark))

    def chunk(self):
        """The payload of the next HTTP chunk; b"" once past the terminator."""
        line = self.until(b"\r\n", "a chunk size")[:-2]
        digits = line.split(b";")[0].strip()
        if not re.match(rb"[0-9A-Fa-f]+\Z", digits):
            raise AssertionError("malformed chunk size line: %r" % line)
        size = int(digits, 16)
        if size == 0:
            while self.until(b"\r\n", "the end of the trailers") != b"\r\n":
                continue
            return b""
        data = self.exactly(size + 2, "a chunk of %d bytes" % size)
        if data[-2:] != b"\r\n":
            raise AssertionError("a chunk of %d bytes ends with %r" % (size, data[-2:]))
        return data[:-2]

    def send(self, data):
        try:
            self.socket.settimeout(WAIT_SECONDS)
            self.socket.sendall(data)
        except socket.timeout:
            raise TimedOut("waited %s s to send %d bytes" % (WAIT_SECONDS, len(data)))


def prepare_socket(sock):
    """Small pieces must leave at once, or a test of splits tests nothing."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(WAIT_SECONDS)


def reset_socket(sock):
    """Close with RST, which is what SO_LINGER with a time of zero means."""
    layout = "hh" if os.name == "nt" else "ii"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(layout, 1, 0))
    sock.close()


def shut_down(sock, how):
    """Shut the TCP connection down, below TLS where there is any.

    SSLSocket.shutdown would drop the TLS state under a thread which reads.
    """
    try:
        socket.socket.shutdown(sock, how)
    except OSError:
        # Safe: the socket is closed or the peer is gone, so nothing is left
        # to shut down and whoever reads from it has been woken already.
        pass


def say_goodbye(sock):
    """Send the TLS close_notify, without waiting for the other side's."""
    if not isinstance(sock, ssl.SSLSocket):
        return
    try:
        sock.settimeout(0)
        sock.unwrap()
    except (OSError, ValueError, *ERRORS_BELOW_TLS):
        # Safe: SSLWantReadError means sent and not answered; any other error
        # means that there is no one left to say goodbye to.
        pass


def close_in_order(sock):
    """Close with FIN: drain what has arrived, or the kernel would send RST."""
    say_goodbye(sock)
    shut_down(sock, socket.SHUT_WR)
    try:
        sock.settimeout(0)
        while socket.socket.recv(sock, RECEIVE_BYTES):
            continue
    except (OSError, ValueError):
        # Safe: nothing more to drain, or the connection is gone; SSLSocket
        # objects of some versions raise ValueError once unwrapped.
        pass
    sock.close()


def parse_head(raw):
    """`raw` head bytes -> (start line, [(name, value)]), strict about syntax."""
    lines = raw.decode("latin-1").split("\r\n")
    if any("\n" in line or "\r" in line for line in lines):
        raise AssertionError("a bare CR or LF in a head: %r" % raw)
    headers = []
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or not re.match(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", name):
            raise AssertionError("malformed header line %r" % line)
        headers.append((name, value.strip(" \t")))
    return lines[0], headers


class Headers:
    """Look-ups shared by requests and responses over `self.headers`."""

    headers = ()
    body = b""

    def header(self, name):
        """The first value of header `name` in any letter case, or None."""
        values = self.all(name)
        return values[0] if values else None

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def has_token(self, name, token):
        """Whether the comma-separated header `name` lists `token`."""
        listed = ",".join(self.all(name)).lower().split(",")
        return token.lower() in [item.strip() for item in listed]

    def json(self):
        return json.loads(self.body.decode("utf-8"))


class RecordedRequest(Headers):
    """One request as the upstream saw it.

    method, target, version: str; headers: [(name, value)] as sent, latin-1;
    body: bytes, without chunked framing; chunks: [bytes] or None when the
    body was not chunked; connection: number from 0; raw_head: bytes.
    """

    def __init__(self, raw_head, connection):
        self.raw_head = raw_head
        self.connection = connection
        start, self.headers = parse_head(raw_head)
        parts = start.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            raise AssertionError("malformed request line %r" % start)
        self.method, self.target, self.version = parts
        self.body = b""
        self.chunks = None

    def __repr__(self):
        return "<RecordedRequest %s %s on connection %d>" % (self.method, self.target, self.connection)


class RawResponse(Headers):
    """One response as a client saw it.

    status: int; reason, version: str; headers: [(name, value)]; body: bytes;
    chunks: [bytes], one per HTTP chunk; complete: whether the framing ended
    as it promised; interim: the 1xx RawResponses which came before.
    """

    def __init__(self, raw_head):
        self.raw_head = raw_head
        start, self.headers = parse_head(raw_head)
        found = re.match(r"(HTTP/\d\.\d) (\d{3})(?: (.*))?\Z", start)
        if not found:
            raise AssertionError("malformed status line %r" % start)
        self.version = found.group(1)
        self.status = int(found.group(2))
        self.reason = found.group(3) or ""
        self.body = b""
        self.chunks = []
        self.complete = False
        self.interim = []

    def __repr__(self):
        return "<RawResponse %d %r complete=%s>" % (self.status, self.body[:200], self.complete)


# --------------------------------------------------------------- upstream


class Connection:
    """The upstream's end of one accepted connection, as given to a script.

    number: from 0; socket: the (TLS) socket; closed: whether this side closed
    it; closed_by_peer: None, "eof" or "reset" as far as reading has noticed.
    """

    def __init__(self, upstream, number, sock):
        self.upstream = upstream
        self.number = number
        self.socket = sock
        self.closed = False
        self.handshaken = upstream.tls is None
        self._wire = Wire(sock)
        self._lock = threading.Lock()
        self._idle = False
        self._stopping = False

    @property
    def closed_by_peer(self):
        return self._wire.ended

    def shake_hands(self, context):
        """Become a TLS connection; runs in the connection's own thread."""
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._wire.socket = self.socket
        self.socket.do_handshake()
        self.handshaken = True

    def read_request(self, seconds=WAIT_SECONDS):
        """The next whole RecordedRequest, or None when no more will come."""
        request = self._receive_head(seconds)
        if request is not None:
            self.read_body(request)
            self.upstream.record(request)
        return request

    def read_head(self, seconds=WAIT_SECONDS):
        """As read_request, but records at once and leaves the body unread."""
        request = self._receive_head(seconds)
        if request is not None:
            self.upstream.record(request)
        return request

    def _receive_head(self, seconds):
        if not self._wire.buffer and not self._wait_for_first_byte(seconds):
            return None
        return RecordedRequest(self._wire.until(b"\r\n\r\n", "a request head"), self.number)

    def _wait_for_first_byte(self, seconds):
        with self._lock:
            if self._stopping:
                return False
            self._idle = True
        try:
            return self._wire.fill("a request on connection %d" % self.number, seconds)
        finally:
            with self._lock:
                self._idle = False

    def read_body(self, request):
        """Read the body which belongs to `request` into it and return it."""
        length = request.header("content-length")
        coding = request.header("transfer-encoding")
        if length is not None and coding is not None:
            raise AssertionError("both Content-Length and Transfer-Encoding: %r" % request.raw_head)
        if coding is not None:
            if coding.lower() != "chunked":
                raise AssertionError("unexpected Transfer-Encoding %r" % coding)
            request.chunks = list(iter(self._wire.chunk, b""))
            request.body = b"".join(request.chunks)
        elif length is not None:
            if len(request.all("content-length")) > 1 or not re.match(r"[0-9]+\Z", length):
                raise AssertionError("bad Content-Length: %r" % request.raw_head)
            request.body = self._wire.exactly(int(length), "a body of %s bytes" % length)
        return request.body

    def skip_body(self, request):
        """Read a body of known length and keep nothing of it: large ones by the dozen."""
        left = int(request.header("content-length"))
        while left:
            if not self._wire.buffer:
                self._wire._fill_or_raise("the rest of a body")
            left -= len(self._wire.take(left))

    def send(self, data):
        self._wire.send(data)

    def half_close(self):
        """Send FIN, go on reading."""
        say_goodbye(self.socket)
        shut_down(self.socket, socket.SHUT_WR)

    def close(self):
        """Close in order: TLS close_notify where there is TLS, then FIN."""
        if not self.closed:
            self.closed = True
            close_in_order(self.socket)

    def close_without_notify(self):
        """FIN without the TLS close_notify: what a cut TLS stream looks like."""
        if not self.closed:
            self.closed = True
            shut_down(self.socket, socket.SHUT_WR)
            self.socket.close()

    def reset(self):
        if not self.closed:
            self.closed = True
            reset_socket(self.socket)

    def wait_closed(self, what=""):
        """Block until the other side closes; return "eof" or "reset"."""
        deadline = time.monotonic() + WAIT_SECONDS
        awaited = "the peer to close connection %d: %s" % (self.number, what)
        while self._wire.fill(awaited, max(0.001, deadline - time.monotonic())):
            continue
        return self._wire.ended

    def serve(self):
        """Answer requests with the upstream's `respond` until one side closes."""
        while True:
            # Unbounded on purpose: an idle keep-alive connection is no
            # failure, and ScriptedUpstream.__exit__ wakes this read.
            request = self.read_request(seconds=None)
            if request is None:
                return
            response = self.upstream.respond(request)
            self.send(response)
            if closes_connection(request, response):
                return

    def stop(self, at_once):
        """End a wait for the next request; with `at_once` any reading."""
        with self._lock:
            self._stopping = True
            if self._idle or at_once:
                shut_down(self.socket, socket.SHUT_RDWR)


def closes_connection(request, response):
    """Whether a connection ends after `response` (bytes) to `request`."""
    head = RawResponse(response[: response.index(b"\r\n\r\n") + 4])
    framed = head.header("content-length") is not None or head.header("transfer-encoding") is not None
    bodiless = request.method == "HEAD" or head.status in (204, 304)
    asked = request.has_token("connection", "close") or head.has_token("connection", "close")
    return asked or request.version == "HTTP/1.0" or not (framed or bodiless)


def respond_with_message(request):
    """The default answer: an Anthropic message as JSON."""
    return json_response()


class ScriptedUpstream:
    """A loopback upstream: the n-th connection runs the n-th script.

    A script is `script(connection)`; its connection is closed when it
    returns.  Connections beyond the scripts run `connection.serve()`, which
    calls `respond(request) -> bytes of a whole HTTP response`.
    """

    def __init__(self, *scripts, respond=None, tls=None, host="127.0.0.1"):
        self.scripts = scripts
        self.respond = respond or respond_with_message
        self.tls = tls
        self.host = host
        self.requests = []
        self.connections = []
        self.handshakes_count = 0
        # Every exception of a connection's thread, peers which left included.
        self.errors = []
        self._failures = []
        self._threads = []
        self._open = 0
        self._changed = threading.Condition()

    # -- what a test reads

    @property
    def url(self):
        host = "[%s]" % self.host if ":" in self.host else self.host
        return "%s://%s:%d" % ("https" if self.tls else "http", host, self.port)

    @property
    def connections_count(self):
        """How many connections were accepted so far."""
        return len(self.connections)

    @property
    def open_connections_count(self):
        """How many connections have a running script or serve loop."""
        return self._open

    @classmethod
    def absent(cls):
        """One that is not there: nobody listens on its port."""
        upstream = cls()
        upstream.port = free_port()
        return upstream

    def wait_requests(self, count):
        """A copy of `requests` once there are at least `count` of them."""
        return self._wait_list(self.requests, count, "requests")

    def wait_connections(self, count):
        """The Connections once at least `count` were accepted."""
        return self._wait_list(self.connections, count, "connections")

    def _wait_list(self, items, count, name):
        with self._changed:
            if not self._changed.wait_for(lambda: len(items) >= count, WAIT_SECONDS):
                text = "waited %s s for %d %s, have %d: %r; errors: %r"
                raise TimedOut(text % (WAIT_SECONDS, count, name, len(items), items, self.errors))
            return list(items)

    def record(self, request):
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    # -- running

    def __enter__(self):
        self._context = self.tls.server_context() if self.tls else None
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((self.host, 0))
        self._listener.listen(LISTEN_QUEUE)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        # A byte on this pair ends the accept loop; closing a listener which
        # another thread waits for would not wake that thread.
        self._wake, self._woken = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept_all, name="upstream-accept", daemon=True)
        self._accepting.start()
        return self

    def _accept_all(self):
        with contextlib.closing(selectors.DefaultSelector()) as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    return
                self._accept_one()

    def _accept_one(self):
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            # Safe: the peer left between the queue and this accept.
            return
        with self._changed:
            connection = Connection(self, len(self.connections), sock)
            name = "upstream-%d" % connection.number
            thread = threading.Thread(target=self._run, args=(connection,), name=name, daemon=True)
            self.connections.append(connection)
            self._threads.append(thread)
            self._open += 1
            self._changed.notify_all()
        thread.start()

    def _run(self, connection):
        try:
            prepare_socket(connection.socket)
            self._run_script(connection)
        except Exception as error:
            self._note_error(connection, error)
        finally:
            connection.close()
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _run_script(self, connection):
        if self._context is not None:
            connection.shake_hands(self._context)
            with self._changed:
                self.handshakes_count += 1
                self._changed.notify_all()
        if connection.number < len(self.scripts):
            self.scripts[connection.number](connection)
        else:
            connection.serve()

    def _note_error(self, connection, error):
        """Keep `error`; it fails the test unless the peer just left."""
        left = isinstance(error, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, *ERRORS_BELOW_TLS))
        refused = isinstance(error, (ssl.SSLError, socket.timeout)) and not connection.handshaken
        with self._changed:
            self.errors.append(error)
            if not (left or refused):
                lines = traceback.format_exception(type(error), error, error.__traceback__)
                self._failures.append("upstream connection %d:\n%s" % (connection.number, "".join(lines)))
            self._changed.notify_all()

    def __exit__(self, kind, error, trace):
        """Close all; fail for a failed script or a thread which does not end.

        After a clean test body scripts may finish (each of their waits is
        bounded); only waits for a next request end.  After a failure all
        reading ends, so that the failure is reported soon.
        """
        self._wake.send(b"x")
        stuck = self._join([self._accepting])
        for sock in (self._listener, self._wake, self._woken):
            sock.close()
        for connection in list(self.connections):
            connection.stop(at_once=kind is not None)
        stuck += self._join(self._threads)
        if stuck:
            raise AssertionError("upstream threads did not end: %s\n%s" % (stuck, "".join(self._failures)))
        if self._failures:
            # Not `from`: the test body's own exception stays visible above.
            raise AssertionError(self._failures[0])

    @staticmethod
    def _join(threads):
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]


# -------------------------------------------------------------------- TLS


OPENSSL_CONFIG = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = %(names)s
"""
# What Python 3.13 wants of a certificate, and many a company's CA leaves out.
OLDER_OPENSSL_CONFIG = re.sub("(?m)^(keyUsage|subjectKeyIdentifier|authorityKeyIdentifier) = .*\n", "",
                              OPENSSL_CONFIG).replace("critical, CA:TRUE", "CA:TRUE")


class TlsMaterial:
    """Paths of a throw-away CA and of a server certificate with its key."""

    def __init__(self, ca_file, cert_file, key_file):
        self.ca_file = ca_file
        self.cert_file = cert_file
        self.key_file = key_file

    def server_context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def client_context(self):
        """A verifying client context which trusts the throw-away CA alone."""
        return ssl.create_default_context(cafile=self.ca_file)


def make_tls_material(directory, names="DNS:localhost, IP:127.0.0.1", config=OPENSSL_CONFIG):
    """Make a CA and a certificate for `names` in `directory`.

    Raises unittest.SkipTest where there is no openssl program.
    """
    program = shutil.which("openssl")
    if program is None:
        raise unittest.SkipTest("the openssl program is needed to make certificates")
    path = {name: os.path.join(directory, name) for name in (
        "openssl.cnf", "ca.key", "ca.pem", "server.key", "server.csr", "server.pem")}
    with open(path["openssl.cnf"], "w", encoding="ascii") as file:
        file.write(config % {"names": names})
    # To make a pair of RSA keys takes a second, of these nothing.
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
               "-nodes", "-sha256", "-config", path["openssl.cnf"]]
    run_openssl(program, "req", "-x509", *new_key, "-keyout", path["ca.key"], "-out", path["ca.pem"],
                "-days", "2", "-subj", "/CN=Throw-away test CA", "-extensions", "ca")
    run_openssl(program, "req", "-new", *new_key, "-keyout", path["server.key"],
                "-out", path["server.csr"], "-subj", "/CN=localhost")
    run_openssl(program, "x509", "-req", "-in", path["server.csr"], "-out", path["server.pem"],
                "-CA", path["ca.pem"], "-CAkey", path["ca.key"], "-set_serial", "2", "-days", "2",
                "-sha256", "-extfile", path["openssl.cnf"], "-extensions", "server")
    return TlsMaterial(path["ca.pem"], path["server.pem"], path["server.key"])


def run_openssl(program, *arguments):
    done = subprocess.run([program] + list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=6 * WAIT_SECONDS)
    if done.returncode != 0:
        raise AssertionError("openssl %s failed:\n%s" % (arguments[0], done.stdout.decode("utf-8", "replace")))


# -------------------------------------------------------------- responses


REQUEST_ID = "req_upstream_1"
LAST_CHUNK = b"0\r\n\r\n"
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"request-id: req_upstream_1\r\n"
    b"transfer-encoding: chunked\r\n"
    b"\r\n"
)


def to_json(obj):
    """Compact UTF-8 JSON bytes; letters beyond ASCII stay unescaped."""
    return json.dumps(obj, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def json_response(obj=None, status=200, headers=()):
    """A whole response with Content-Length; `obj` defaults to `message()`.

    `obj` as bytes is sent as is.  A header in `headers`, [(name, value)],
    replaces the default one of the same name.
    """
    body = obj if isinstance(obj, bytes) else to_json(message() if obj is None else obj)
    given = [name.lower() for name, _ in headers]
    defaults = [("content-type", "application/json"), ("request-id", REQUEST_ID),
                ("content-length", str(len(body)))]
    lines = ["HTTP/1.1 %d %s" % (status, http.client.responses.get(status, "Unknown"))]
    lines += ["%s: %s" % pair for pair in defaults if pair[0] not in given]
    lines += ["%s: %s" % (name, value) for name, value in headers]
    return "\r\n".join(lines + ["", ""]).encode("latin-1") + body


def message(text="Hello", model="claude-opus-5-5"):
    """An Anthropic message with one text block, as a dict."""
    return {
        "id": "msg_upstream_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def error_body(type, message):
    """An Anthropic error, as a dict."""
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": REQUEST_ID}


def sse_event(data):
    """One whole SSE event as bytes, named after the "type" of dict `data`."""
    return b"event: " + data["type"].encode("ascii") + b"\ndata: " + to_json(data) + b"\n\n"


def one_block_events(model, block, deltas, stop_reason):
    """The events of a streamed message with one content block."""
    start = message(model=model)
    start.update(content=[], stop_reason=None, usage={"input_tokens": 10, "output_tokens": 1})
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
    ]
    events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    events += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            "usage": {"output_tokens": len(deltas)},
        },
        {"type": "message_stop"},
    ]
    return [sse_event(event) for event in events]


def stream_events(text="Hello world", model="claude-opus-5-5"):
    """[bytes], each one SSE event; one delta per word, which join to `text`."""
    words = re.findall(r"\s*\S+|\s+\Z", text)
    deltas = [{"type": "text_delta", "text": word} for word in words]
    return one_block_events(model, {"type": "text", "text": ""}, deltas, "end_turn")


def tool_use_events(name, input, tool_id="toolu_1", model="claude-opus-5-5"):
    """[bytes], each one SSE event, of a message which calls one tool.

    The first piece of the input is empty, as the real API sends it.
    """
    text = to_json(input).decode("utf-8")
    pieces = [""] + [text[at:at + 7] for at in range(0, len(text), 7)]
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    block = {"type": "tool_use", "id": tool_id, "name": name, "input": {}}
    return one_block_events(model, block, deltas, "tool_use")


def chunk(data):
    """`data`, which must not be empty, as one HTTP chunk."""
    if not data:
        raise ValueError("an empty chunk would end the body; send LAST_CHUNK for that")
    return b"%x\r\n" % len(data) + data + b"\r\n"


def stream_response(events):
    """A whole chunked response, one HTTP chunk for each of `events`."""
    return SSE_HEAD + b"".join(chunk(event) for event in events) + LAST_CHUNK


def every_split(data):
    """Yield lists of pieces: whole, every two pieces, byte by byte."""
    yield [data]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
    if len(data) > 2:
        yield [data[at:at + 1] for at in range(len(data))]


# ----------------------------------------------------------------- client


class RawClient:
    """A client connection which shows exactly what comes over the wire.

    `context`: an ssl.SSLContext to speak TLS, or None.
    """

    def __init__(self, port, host="127.0.0.1", context=None):
        self.host = host
        self.port = port
        sock = socket.create_connection((host, port), WAIT_SECONDS)
        prepare_socket(sock)
        try:
            self.socket = context.wrap_socket(sock, server_hostname=host) if context else sock
        except Exception:
            sock.close()
            raise
        self._wire = Wire(self.socket)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    @property
    def ended_by(self):
        """None, "eof" or "reset" as far as reading has noticed."""
        return self._wire.ended

    def send(self, data):
        self._wire.send(data)

    def request(self, method, path, headers=(), body=b""):
        """Write one request; adds Host and Content-Length unless given."""
        given = [name.lower() for name, _ in headers]
        lines = ["%s %s HTTP/1.1" % (method, path)]
        if "host" not in given:
            lines.append("Host: %s:%d" % (self.host, self.port))
        lines += ["%s: %s" % (name, value) for name, value in headers]
        needs_length = body or method in ("POST", "PUT", "PATCH")
        if needs_length and not {"content-length", "transfer-encoding"} & set(given):
            lines.append("Content-Length: %d" % len(body))
        self.send("\r\n".join(lines + ["", ""]).encode("latin-1") + body)

    def read_head(self):
        """The head of the next response, a 1xx one included, without body."""
        return RawResponse(self._wire.until(b"\r\n\r\n", "a response head"))

    def read_response(self, head_request=False):
        """The next whole final response; 1xx ones go to its `interim`."""
        interim = []
        response = self.read_head()
        while 100 <= response.status < 200 and response.status != 101:
            interim.append(response)
            response = self.read_head()
        response.interim = interim
        return self.read_body(response, head_request)

    def read_body(self, response, head_request=False):
        """Read the body (or what is left of it) into `response`; return it."""
        length = response.header("content-length")
        if head_request or response.status < 200 or response.status in (204, 304):
            response.complete = True
        elif response.header("transfer-encoding") is not None:
            self._read_chunked(response)
        elif length is not None:
            self._read_bytes(response, int(length))
        else:
            self._read_to_end(response)
        return response

    def _read_chunked(self, response):
        data = self.read_chunk()
        while data:
            response.chunks.append(data)
            data = self.read_chunk()
        response.body = b"".join(response.chunks)
        response.complete = data == b""

    def _read_bytes(self, response, length):
        while len(self._wire.buffer) < length and self._wire.fill("a body of %d bytes" % length):
            continue
        response.body = self._wire.take(length)
        response.complete = len(response.body) == length

    def _read_to_end(self, response):
        while self._wire.fill("the end of a body without length"):
            continue
        response.body = self._wire.take(len(self._wire.buffer))
        response.complete = self._wire.ended == "eof"

    def read_chunk(self):
        """The next chunk's payload, b"" at the terminator, None if it ended.

        A chunk cut short counts as ended; `ended_by` says how.
        """
        try:
            return self._wire.chunk()
        except EndedEarly:
            return None

    def at_eof(self, seconds=WAIT_SECONDS):
        """Whether the connection ends (FIN or RST), and nothing else comes, within `seconds`."""
        if self._wire.buffer:
            return False
        try:
            return not self._wire.fill("the end of the connection", seconds)
        except TimedOut:
            # Safe: the caller asserts on the answer, which is "still open".
            return False

    def half_close(self):
        """Send FIN, go on reading."""
        shut_down(self.socket, socket.SHUT_WR)

    def close(self):
        close_in_order(self.socket)

    def reset(self):
        reset_socket(self.socket)


def exchange(port, method, path, headers=(), body=b"", host="127.0.0.1"):
    """One request with Connection: close -> RawResponse."""
    headers = list(headers)
    if "connection" not in [name.lower() for name, _ in headers]:
        headers.append(("Connection", "close"))
    with RawClient(port, host) as client:
        try:
            client.request(method, path, headers, body)
        except ConnectionError:
            # Safe: a server may answer and close before it has read all of a
            # request; if it has not answered, reading below fails loudly.
            pass
        return client.read_response(head_request=method == "HEAD")


# ---------------------------------------------------------------- process


@functools.lru_cache(maxsize=None)
def compiled_gateway():
    """The path of a claude_gateway.py that holds the bytecode of the real one.

    Python runs it as it runs the source, `__main__` and tracebacks alike, but
    need not compile 16,000 lines at each start, which is most of its time.
    """
    if sys.implementation.name != "cpython":
        return GATEWAY_FILE
    folder = tempfile.mkdtemp(prefix="gateway-compiled-")
    atexit.register(shutil.rmtree, folder)
    path = os.path.join(folder, os.path.basename(GATEWAY_FILE))
    return py_compile.compile(GATEWAY_FILE, path, GATEWAY_FILE, doraise=True)


# Lets `import claude_gateway` find the bytecode.
IMPORTED = """\
import importlib.machinery, importlib.util, sys
spec = importlib.util.spec_from_loader(
    "claude_gateway", importlib.machinery.{loader}("claude_gateway", {path!r}))
sys.modules["claude_gateway"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["claude_gateway"])
"""
# The last lines of claude_gateway.py, with some of its constants changed before.
WITH_CONSTANTS = """\
import os, claude_gateway as gateway
for name, value in {constants!r}.items():
    assert isinstance(getattr(gateway, name), type(value))
    setattr(gateway, name, value)
os._exit(gateway.main())
"""


def gateway_command(*arguments, constants=None):
    """The words that run claude_gateway.py as a process.

    constants: {name: value} of what is shorter there than users have it.
    """
    if constants:
        return importing_command(WITH_CONSTANTS.format(constants=constants), *arguments)
    return [*quick_python(), compiled_gateway(), *arguments]


def importing_command(program, *arguments):
    """The words that run a Python program which imports claude_gateway."""
    path = compiled_gateway()
    loader = "SourceFileLoader" if path == GATEWAY_FILE else "SourcelessFileLoader"
    program = IMPORTED.format(loader=loader, path=path) + program
    return [*quick_python(), "-c", program, *arguments]


def quick_python():
    """The words that run this Python: CPython without `site`, where the shim is not in there.

    What installed packages do at each start may take half of its time.
    """
    quick = sys.implementation.name == "cpython" and not shim.is_here()
    return [sys.executable, "-S"] if quick else [sys.executable]


def run_inside(arguments, folder, environ):
    """A command to its end inside this process, as if started in `folder` with `environ`.

    For tests of what it says and writes: a process of its own takes fifty times as
    long.  Gives a subprocess.CompletedProcess; its streams are text.
    """
    here, encoding = os.getcwd(), shim.console_encoding()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), \
                unittest.mock.patch.dict(os.environ, environ, clear=True):
            try:
                code = claude_gateway.main(list(arguments))
            except SystemExit as error:  # argparse; code is None where all is well
                code = error.code or 0
    finally:
        os.chdir(here)
    for stream in streams:
        stream.flush()
    written = [stream.buffer.getvalue().decode(encoding).replace(os.linesep, "\n")
               for stream in streams]
    return subprocess.CompletedProcess(arguments, code, *written)


class GatewayProcess:
    """claude_gateway.py as a process of its own, on a free port.

    config: dict for --config, or None for no such option; args: further
    arguments; env: further environment over PATH, SYSTEMROOT, HOME, TMPDIR;
    python: another interpreter, which then reads the source; constants: as for
    gateway_command.
    Attributes once entered: url, host, port, directory (HOME and the working
    directory), config_file, process, stdout_lines, returncode.
    """

    LISTENING = re.compile(r"listening on (http://(\S+):(\d+))")

    def __init__(self, config=None, args=(), env=None, python=None, constants=None):
        self.config = config
        self.args = list(args)
        self.env = dict(env or {})
        self.words = [python, GATEWAY_FILE] if python else gateway_command(constants=constants)
        self.url = self.host = self.port = None
        self.directory = self.config_file = self.process = None
        self.stdout_lines = []
        self._stderr = []
        self._listening = False
        self._settled = threading.Event()

    @property
    def returncode(self):
        """None while the process runs."""
        return self.process.poll()

    def stderr_text(self):
        """What the process has written to stderr so far."""
        return "".join(self._stderr)

    def output(self):
        """Both streams so far, for a failure's message."""
        return "stdout:\n%s\nstderr:\n%s" % ("\n".join(self.stdout_lines), self.stderr_text())

    def __enter__(self):
        self._temporary = tempfile.TemporaryDirectory(prefix="gateway-test-")
        self.directory = os.path.realpath(self._temporary.name)
        try:
            self._start()
            self._wait_listening()
        except BaseException:
            self._kill()
            self._temporary.cleanup()
            raise
        return self

    def _start(self):
        command = [*self.words, "--port", "0"]
        if self.config is not None:
            self.config_file = os.path.join(self.directory, "gateway-test.json")
            descriptor = os.open(self.config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(to_json(self.config))
            command += ["--config", self.config_file]
        self.process = subprocess.Popen(
            command + self.args, cwd=self.directory, env=self._environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._drains = [
            threading.Thread(target=self._drain_stdout, name="gateway-stdout", daemon=True),
            threading.Thread(target=self._drain_stderr, name="gateway-stderr", daemon=True),
        ]
        for thread in self._drains:
            thread.start()

    def _environment(self):
        env = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        env["HOME"] = env["TMPDIR"] = self.directory
        if os.name == "nt":
            # There these two stand for HOME and TMPDIR.
            env["USERPROFILE"] = env["TEMP"] = self.directory
        env.update(self.env)
        return env

    def _drain_stdout(self):
        with self.process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self.stdout_lines.append(line)
                found = self.LISTENING.search(line)
                if found and not self._listening:
                    self.url = found.group(1)
                    self.host = found.group(2).strip("[]")
                    self.port = int(found.group(3))
                    self._listening = True
                    self._settled.set()
        self._settled.set()

    def _drain_stderr(self):
        with self.process.stderr as stream:
            for raw in stream:
                self._stderr.append(raw.decode("utf-8", "replace"))

    def _wait_listening(self):
        in_time = self._settled.wait(WAIT_SECONDS)
        if self._listening:
            return
        self._kill()
        how = "ended with status %s" % self.process.returncode if in_time else "was silent for %s s" % WAIT_SECONDS
        raise AssertionError("the gateway %s before it listened\n%s" % (how, self.output()))

    def _kill(self):
        if self.process is not None:
            if self.process.poll() is None and not self._settled.is_set():
                self.process.kill()
            # Whoever called is about to raise; only no process must stay behind.
            self._wait_or_kill()

    def _wait_or_kill(self):
        """Whether the process ended in time by itself; it has ended afterwards."""
        in_time = True
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            in_time = False
            self.process.kill()
            self.process.wait(WAIT_SECONDS)
        self._join_drains()
        return in_time

    def _join_drains(self):
        for thread in self._drains:
            thread.join(WAIT_SECONDS)
            if thread.is_alive():
                raise AssertionError("%s stays open after the gateway ended" % thread.name)

    def stop(self):
        """SIGTERM, then a bounded wait; return the process's return code."""
        if self.process.poll() is None:
            self.process.terminate()
        if not self._wait_or_kill():
            raise AssertionError("the gateway did not end %s s after SIGTERM\n%s" % (WAIT_SECONDS, self.output()))
        return self.process.returncode

    def __exit__(self, kind, error, trace):
        try:
            self.stop()
        finally:
            if kind is not None and not issubclass(kind, unittest.SkipTest):
                # What the gateway said is the first thing to look at.
                sys.stderr.write("\n--- gateway output ---\n%s\n" % self.output())
            self._temporary.cleanup()
