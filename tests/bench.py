"""How fast the gateway is on this machine: what it adds to asking the upstream directly.

    python3 -m tests.bench              about 30 s
    python3 -m tests.bench --seconds 60 --rounds 5
    python3 -m tests.bench --quick      2 s, to see that it works

Three processes on loopback, beside this one, which only waits for them: a tiny
upstream with answers made beforehand, the gateway as a user would start it (mode
strict, one client key, three accounts, sticky), and a load client.  Both ends are raw
sockets and one selector each.  Every measurement is taken directly and through the
gateway right after one another, in each of several rounds with a gateway started
anew; the table shows the medians of the rounds.

    one request at a time   a message of 1 KB over one kept connection
    requests/s              the same, each connection asking again when it is answered
    delay of an event       from the upstream's write to the client's read; the event
                            carries the time (one clock for all processes); the
                            first third, while all streams begin at once, is left out
    short streams/s         20 events that the upstream writes at once, on 16 connections
    request of 200 KB, 1 MB a conversation of that size, answered with 1 KB
    start to the first 200  from starting the interpreter to an answer of the upstream
    memory                  resident; where /proc is
    leaving                 from the client's close to when the upstream sees its own

How far to trust it: the processes share the machine's cores, so on few cores the rates
are those of all three together, and a real upstream, which is elsewhere, leaves the
gateway more.  Absolute figures move by tens of percent from run to run and with
whatever else runs; direct and through hold against each other.  The p99 of a short run
is a few samples.  TLS, distance and the model's own seconds are not in it.
"""

import argparse
import collections
import contextlib
import heapq
import itertools
import json
import os
import platform
import random
import re
import secrets
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

GATEWAY_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                            "claude_gateway.py")
WAIT_SECONDS = 20
READ_BYTES = 262144
ACCOUNTS = 3
SHORT_EVENTS = 20
LEAVINGS = 5
LAST_CHUNK = b"\r\n0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# What the upstream shall answer, told in the first message: events, milliseconds between.
PLAN = re.compile(rb"plan-(\d+)-(\d+)")
STAMP = re.compile(rb"@(\d+)@")

# perf_counter is the machine's steady clock on Linux, macOS and Windows, the same in all
# processes; monotonic moves in steps of 15 ms on Windows before Python 3.13.
now_ns = time.perf_counter_ns


def tuned(sock):
    """A connected socket that sends small pieces at once and never waits for good."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(WAIT_SECONDS)
    return sock


# ---------------------------------------------------------------- the upstream


def event(data):
    """One event as bytes."""
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), json.dumps(data).encode())


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer_head(content_type, framing):
    """A head with what Anthropic's API tells; framing is a whole header line."""
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    lines = ["HTTP/1.1 200 OK", "Content-Type: " + content_type, framing,
             "request-id: req_bench", "anthropic-organization-id: org-bench"]
    for kind, limit in (("requests", 4000), ("input-tokens", 400000), ("output-tokens", 80000)):
        lines += ["anthropic-ratelimit-%s-%s" % (kind, line) for line in (
            "limit: %d" % limit, "remaining: %d" % (limit - 1), "reset: " + reset)]
    return "\r\n".join(lines + ["", ""]).encode()


class Answers:
    """What the upstream sends, made once."""

    def __init__(self):
        message = {"id": "msg_bench", "type": "message", "role": "assistant",
                   "model": "claude-bench-1", "content": [{"type": "text", "text": "x" * 760}],
                   "stop_reason": "end_turn", "stop_sequence": None,
                   "usage": {"input_tokens": 25, "output_tokens": 190}}
        body = json.dumps(message).encode()
        self.whole = answer_head("application/json", "Content-Length: %d" % len(body)) + body
        self.opening = answer_head("text/event-stream", "Transfer-Encoding: chunked") + chunk(
            event({"type": "message_start",
                   "message": dict(message, content=[], stop_reason=None)})
            + event({"type": "content_block_start", "index": 0,
                     "content_block": {"type": "text", "text": ""}}))
        self.ending = chunk(
            event({"type": "content_block_stop", "index": 0})
            + event({"type": "message_delta", "usage": {"output_tokens": 190},
                     "delta": {"stop_reason": "end_turn", "stop_sequence": None}})
            + event({"type": "message_stop"})) + LAST_CHUNK[2:]
        self.short = self.opening + self.delta("word ") * SHORT_EVENTS + self.ending

    @staticmethod
    def delta(text):
        return chunk(event({"type": "content_block_delta", "index": 0,
                            "delta": {"type": "text_delta", "text": text}}))

    def stamped(self):
        """An event that carries the time at which it is made."""
        return self.delta("@%d@" % now_ns())


class Upstream:
    """Serves all connections in one thread: a selector, and a heap of events to come."""

    def __init__(self):
        self.answers = Answers()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.received = {}
        # Streams under way: socket -> [events left, seconds between]; and when each is due.
        self.streams = {}
        self.due = []
        self.numbers = itertools.count()
        # When clients left within a stream, and who waits to be told.
        self.left = collections.deque()
        self.asking = collections.deque()

    def serve(self):
        """Until the process is ended."""
        while True:
            wait = max(0.0, self.due[0][0] - time.perf_counter()) if self.due else None
            for key, _ in self.selector.select(wait):
                if key.fileobj is self.listener:
                    self.accept()
                else:
                    self.read(key.fileobj)
            while self.due and self.due[0][0] <= time.perf_counter():
                self.go_on(heapq.heappop(self.due)[2])

    def accept(self):
        sock = tuned(self.listener.accept()[0])
        self.received[sock] = b""
        self.selector.register(sock, selectors.EVENT_READ)

    def read(self, sock):
        try:
            data = sock.recv(READ_BYTES)
        except OSError:
            data = b""  # A reset is a client that left, too.
        if not data:
            self.close(sock)
            return
        data = self.received[sock] + data
        head = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, head) if head >= 0 else None
        if head < 0 or length and len(data) < head + 4 + int(length.group(1)):
            self.received[sock] = data
            return
        self.received[sock] = b""
        self.answer(sock, data)

    def close(self, sock):
        if self.streams.pop(sock, None):
            self.left.append(now_ns())
            self.tell()
        self.selector.unregister(sock)
        del self.received[sock]
        sock.close()

    def answer(self, sock, request):
        if request.startswith(b"GET /left"):
            self.asking.append(sock)
            self.tell()
            return
        events, pause = map(int, PLAN.search(request).groups())
        if not events:
            sock.sendall(self.answers.whole)
        elif not pause:
            sock.sendall(self.answers.short)
        else:
            sock.sendall(self.answers.opening)
            self.streams[sock] = [events, pause / 1000]
            # Streams that begin together shall not stay in step.
            self.plan(sock, random.random() * pause / 1000)

    def tell(self):
        while self.left and self.asking:
            body = b"%d" % self.left.popleft()
            self.asking.popleft().sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def plan(self, sock, seconds):
        heapq.heappush(self.due, (time.perf_counter() + seconds, next(self.numbers), sock))

    def go_on(self, sock):
        """The next event of a stream, or its end."""
        state = self.streams.get(sock)
        if state is None:
            return  # The client left while this was planned.
        try:
            if state[0]:
                state[0] -= 1
                sock.sendall(self.answers.stamped())
                self.plan(sock, state[1])
            else:
                del self.streams[sock]
                sock.sendall(self.answers.ending)
        except OSError:
            self.close(sock)


def serve_upstream():
    """The process of the upstream: tells its port, and ends when its standard input does."""
    upstream = Upstream()
    print(upstream.listener.getsockname()[1], flush=True)

    def end_with_the_bench():
        sys.stdin.read()
        os._exit(0)
    threading.Thread(target=end_with_the_bench, daemon=True).start()
    upstream.serve()


# ---------------------------------------------------------------- the load


def conversation(plan, size):
    """A request's body of about size bytes: turns of 2 KB, the plan in the first."""
    line = 'def f(x):\n    return "%s"  # as it was\n' % ("y" * 40)
    turns = [{"role": "user", "content": "plan-%d-%d " % tuple(plan) + "z" * 400}]
    for number in range(size // 4000):
        turns.append({"role": "assistant", "content": line * 24})
        turns.append({"role": "user", "content": "%d\n" % number + line * 24})
    return {"model": "claude-bench-1", "max_tokens": 1024, "messages": turns,
            "system": [{"type": "text", "text": "You are a benchmark."}]}


def request_bytes(spec, number):
    """The request of connection `number`, with the headers of a client like Claude Code."""
    body = conversation(spec["plan"], spec.get("size", 0))
    body["metadata"] = {"user_id": "user-%d" % number}
    if spec["plan"][0]:
        body["stream"] = True
    data = json.dumps(body).encode()
    lines = ["POST /v1/messages HTTP/1.1", "Host: 127.0.0.1:%d" % spec["port"],
             "x-api-key: " + spec["key"], "Content-Type: application/json",
             "Accept: application/json", "User-Agent: bench/1.0", "anthropic-version: 2023-06-01",
             "anthropic-beta: interleaved-thinking-2025-05-14", "x-app: cli",
             "X-Stainless-Lang: js", "X-Stainless-Retry-Count: 0", "X-Stainless-Timeout: 600",
             "Accept-Encoding: identity", "Connection: keep-alive",
             "Content-Length: %d" % len(data), "", ""]
    return "\r\n".join(lines).encode() + data


class Client:
    """One kept connection: sends its request, and knows when the answer is complete."""

    def __init__(self, spec, number=0):
        self.request = request_bytes(spec, number)
        self.sock = tuned(socket.create_connection(("127.0.0.1", spec["port"]), WAIT_SECONDS))
        self.answer = b""
        self.began = 0
        self.stamps_seen = 0

    def send(self, request=None):
        self.answer = b""
        self.stamps_seen = 0
        self.began = now_ns()
        self.sock.sendall(request or self.request)

    def receive(self, delays):
        """Read once, add each new event's delay in ms; whether the answer is complete."""
        data = self.sock.recv(READ_BYTES)
        read_at = now_ns()
        if not data:
            raise ConnectionError("closed within an answer: %r" % self.answer[-200:])
        self.answer += data
        for match in STAMP.finditer(self.answer, self.stamps_seen):
            delays.append((read_at - int(match.group(1))) / 1e6)
            self.stamps_seen = match.end()
        return self.is_complete()

    def is_complete(self):
        head = self.answer.find(b"\r\n\r\n")
        if head < 0:
            return False
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("answered with %r" % self.answer[:500])
        length = LENGTH.search(self.answer, 0, head)
        if length:
            return len(self.answer) >= head + 4 + int(length.group(1))
        return self.answer.endswith(LAST_CHUNK)

    def finish(self):
        while not self.receive([]):
            continue
        return self.answer


def drive(spec):
    """Let connections ask, each again when answered, for some seconds or `each` times.

    Gives the requests' times and the events' delays in ms, and the requests a second.
    """
    times, delays = [], []
    clients = [Client(spec, number) for number in range(spec["connections"])]
    each = spec.get("each", sys.maxsize)
    left = dict.fromkeys(clients, each)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for client in clients:
            stack.enter_context(client.sock)
            selector.register(client.sock, selectors.EVENT_READ, client)
        began = time.perf_counter()
        for client in clients:
            client.send()
        while left:
            ready = selector.select(WAIT_SECONDS)
            if not ready:
                raise ConnectionError("no answer within %d s" % WAIT_SECONDS)
            for key, _ in ready:
                client = key.data
                if not client.receive(delays):
                    continue
                times.append((now_ns() - client.began) / 1e6)
                left[client] -= 1
                if left[client] and time.perf_counter() - began < spec["seconds"]:
                    client.send()
                else:
                    del left[client]
        took = time.perf_counter() - began
    return {"times": times, "delays": delays, "rate": len(times) / took}


def leave(spec):
    """Leave streams after their first event; ms until the upstream sees it, of each."""
    delays = []
    for number in range(spec["each"]):
        client = Client(spec, number)
        seen = []
        client.send()
        while not seen:
            client.receive(seen)
        left_at = now_ns()
        client.sock.close()
        control = Client(dict(spec, port=spec["upstream"]))
        with control.sock:
            control.send(b"GET /left HTTP/1.1\r\nHost: upstream\r\n\r\n")
            told = control.finish()
        delays.append((int(told.rpartition(b"\r\n")[2]) - left_at) / 1e6)
    return {"delays": delays}


def serve_load():
    """The process of the load: a specification a line in, its figures a line out."""
    for line in sys.stdin:
        spec = json.loads(line)
        try:
            figures = leave(spec) if spec.get("leave") else drive(spec)
        except (OSError, ValueError) as error:
            figures = {"fault": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(figures), flush=True)


# ---------------------------------------------------------------- the processes


@contextlib.contextmanager
def process(*arguments):
    """A Python process with pipes for input and output, ended with the block."""
    environ = {name: value for name, value in os.environ.items()
               if not name.startswith("CLAUDE_GATEWAY_") and not name.lower().endswith("_proxy")}
    child = subprocess.Popen([sys.executable, *arguments], env=environ, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, encoding="utf-8",
                             # The gateway writes as its console would have it; ports are ASCII.
                             errors="replace")
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdin.close()
        child.stdout.close()


class Load:
    """The load process, and what it needs to know to ask."""

    def __init__(self, child, upstream_port, key):
        self.child = child
        self.upstream_port = upstream_port
        self.key = key

    def ask(self, port, **spec):
        """The figures of one measurement; raises RuntimeError when a request failed."""
        spec.update(port=port, key=self.key, upstream=self.upstream_port)
        self.child.stdin.write(json.dumps(spec) + "\n")
        self.child.stdin.flush()
        figures = json.loads(self.child.stdout.readline() or '{"fault": "the load ended"}')
        if "fault" in figures:
            raise RuntimeError(figures["fault"])
        return figures


def configuration(upstream_port, key):
    """The gateway's, with keys that live as long as this run."""
    return {
        "port": 0,
        "auth": {"mode": "strict", "api_keys": [key]},
        "providers": [{
            "name": "bench", "base_url": "http://127.0.0.1:%d" % upstream_port,
            "accounts": [{"name": "account-%d" % number, "api_key": secrets.token_urlsafe(24)}
                         for number in range(ACCOUNTS)]}],
        "routing": {"sticky": True},
        "timeouts": {"shutdown_seconds": 1},
        "log": {"level": "error"},
    }


def told_port(child):
    """The port in the line with which the gateway says where it listens."""
    for line in child.stdout:
        found = re.search(r"listening on http://[^ ]*:(\d+)", line)
        if found:
            return int(found.group(1))
    raise RuntimeError("the gateway ended before it listened")


def resident_megabytes(pid):
    """What a process holds in memory, or None where there is no /proc."""
    try:
        with open("/proc/%d/status" % pid, encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read()).group(1)) / 1024
    except OSError:
        return None


# ---------------------------------------------------------------- the measurements


def percentile(values, share):
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(name, values):
    return {name + ", p50": statistics.median(values), name + ", p99": percentile(values, 0.99)}


def one_at_a_time(load, port, seconds):
    figures = load.ask(port, plan=(0, 0), connections=1, seconds=seconds)
    return spread("one request at a time", figures["times"])


def rate_of(connections):
    def measure(load, port, seconds):
        figures = load.ask(port, plan=(0, 0), connections=connections, seconds=seconds)
        return {"requests/s, %d connections" % connections: figures["rate"]}
    return measure


def delay_of(streams, pause_ms):
    def measure(load, port, seconds):
        events = max(3, int(2 * seconds * 1000 / pause_ms))
        figures = load.ask(port, plan=(events, pause_ms), connections=streams, each=1,
                           seconds=seconds)
        if len(figures["delays"]) != events * streams:
            raise RuntimeError("events were lost")
        noun = "1 stream" if streams == 1 else "%d streams" % streams
        # While all streams begin at once the first events wait for that: not this row's matter.
        return spread("delay of an event, " + noun, figures["delays"][events * streams // 3:])
    return measure


def short_streams(load, port, seconds):
    figures = load.ask(port, plan=(SHORT_EVENTS, 0), connections=16, seconds=seconds)
    return {"short streams/s, 16 connections": figures["rate"]}


def size_of(name, size):
    def measure(load, port, seconds):
        figures = load.ask(port, plan=(0, 0), connections=1, seconds=seconds, size=size)
        return {"request of %s, p50" % name: statistics.median(figures["times"])}
    return measure


def leaving(load, port, _):
    figures = load.ask(port, plan=(1000, 20), leave=True, each=LEAVINGS)
    return {"client leaves, upstream sees it": statistics.median(figures["delays"])}


MEASURES = (one_at_a_time, rate_of(16), rate_of(64), delay_of(1, 5), delay_of(100, 50),
            short_streams, size_of("200 KB", 200000), size_of("1 MB", 1000000), leaving)
START = "start to the first 200"
FIRST_MEMORY = "memory, after the first 200"
LAST_MEMORY = "memory, after the load"


def one_round(load, config_file, seconds):
    """Every measurement on a gateway started anew: {what: (direct or None, through)}."""
    found = {}
    began = now_ns()
    with process(GATEWAY_FILE, "--config", config_file) as gateway:
        port = told_port(gateway)
        load.ask(port, plan=(0, 0), connections=1, each=1, seconds=1)
        found[START] = None, (now_ns() - began) / 1e6
        found[FIRST_MEMORY] = None, resident_megabytes(gateway.pid)
        load.ask(port, plan=(0, 0), connections=16, seconds=seconds)  # Warms it up.
        for measure in MEASURES:
            direct = measure(load, load.upstream_port, seconds)
            through = measure(load, port, seconds)
            found.update((what, (direct[what], through[what])) for what in direct)
        found[LAST_MEMORY] = None, resident_megabytes(gateway.pid)
    return found


def measure_all(seconds, rounds):
    """The medians of some rounds, about `seconds` in all: {what: (direct, through)}."""
    slice_seconds = seconds / rounds / (2 * len(MEASURES) + 1)
    key = secrets.token_urlsafe(24)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-"))
        upstream = stack.enter_context(process(os.path.abspath(__file__), "--role", "upstream"))
        child = stack.enter_context(process(os.path.abspath(__file__), "--role", "load"))
        load = Load(child, int(upstream.stdout.readline()), key)
        config_file = os.path.join(folder, "config.json")
        with open(os.open(config_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(configuration(load.upstream_port, key), file)
        found = [one_round(load, config_file, slice_seconds) for _ in range(rounds)]
    return {what: tuple(middle(one[what][side] for one in found) for side in (0, 1))
            for what in found[0]}


def middle(values):
    """The median, or None of what could not be measured."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# ---------------------------------------------------------------- the table


def unit_of(what):
    return "/s" if "/s" in what else " MB" if what.startswith("memory") else " ms"


def shown(value, unit):
    """A number with its unit, in about three figures."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return "{:,.{}f}{}".format(value, digits, unit)


def compared(direct, through, unit):
    """What the gateway adds to a time; which share of a rate it leaves."""
    if direct is None or through is None:
        return ""
    return "%.0f %%" % (100 * through / direct) if unit == "/s" else (
        ("+" if through > direct else "") + shown(through - direct, unit))


def table(figures):
    """The lines of a Markdown table."""
    lines = ["| what | direct | through the gateway | added, or share left |", "|---|---|---|---|"]
    for what, (direct, through) in figures.items():
        unit = unit_of(what)
        lines.append("| %s | %s | %s | %s |" % (
            what, shown(direct, unit), shown(through, unit) or "not known without /proc",
            compared(direct, through, unit)))
    return lines


def machine():
    """The interpreter and the cores, in one line."""
    return "%s %s, %s %s, %s cores" % (
        platform.python_implementation(), platform.python_version(), platform.system(),
        platform.machine(), os.cpu_count())


def main(arguments=None):
    """Measure and print, or be one of the processes."""
    parser = argparse.ArgumentParser(description="What the gateway adds on this machine.")
    parser.add_argument("--seconds", type=float, default=25, help="in all, about (25, and 5 for the starts)")
    parser.add_argument("--rounds", type=int, default=5, help="whose medians are shown (5)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second")
    parser.add_argument("--role", choices=("upstream", "load"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        (serve_upstream if options.role == "upstream" else serve_load)()
        return
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
    print("%s\n" % machine(), flush=True)
    print("\n".join(table(measure_all(options.seconds, options.rounds))))


if __name__ == "__main__":
    main()
