"""The whole gateway against mutated requests, JSON bodies and upstream answers.

A second or two as a rule; CLAUDE_GATEWAY_FUZZ_SECONDS makes it longer and takes
another seed each time.  What fails prints how to repeat it:
CLAUDE_GATEWAY_FUZZ_SEED=... CLAUDE_GATEWAY_FUZZ_CASE=... python3 -m tests.test_17_fuzz
"""

import collections
import contextlib
import gzip
import json
import os
import random
import sys
import threading
import time
import traceback
import unittest
import zlib

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import provider
from tests.running import settings_for
from tests.test_17_corpus import corpus

SECONDS = float(os.environ.get("CLAUDE_GATEWAY_FUZZ_SECONDS", "1.5"))
SEED = os.environ.get("CLAUDE_GATEWAY_FUZZ_SEED")
CASE = os.environ.get("CLAUDE_GATEWAY_FUZZ_CASE")
SETTLED_EVERY = 100
CONNECTIONS = 10 ** 6
TIMEOUTS = {"connect_seconds": 2, "first_byte_seconds": 0.5, "idle_seconds": 0.5,
            "client_seconds": 2, "keepalive_seconds": 2, "shutdown_seconds": 1}

# Stand for texts that json.dumps would not write.
RAW = {
    "@nan": "NaN", "@inf": "-Infinity", "@1e999": "1e999", "@digits": "9" * 5000,
    "@deep": "[" * 5000 + "]" * 5000, "@deeper": '{"a":' * 100000 + "1" + "}" * 100000,
    "@surrogate": '"\\ud800"', "@float": "1.50", "@zero": "-0", "@half": '{"a":',
    "@nul": '"\\u0000"', "@huge": '"' + "x" * 300000 + '"', "@twice": '{"type":"text","type":1}',
}
ODD_VALUES = [None, True, False, 0, -1, 1.5, 10 ** 30, "", " ", "x", "text", "tool_use", [], {},
              [None], [[]], {"type": None}, {"type": "text"}, {"type": "text", "text": 5},
              {"role": "user"}, {"type": "tool_use", "id": "a", "name": 1, "input": []},
              "\u2028", "\ud83d\ude00", "data:image/png;base64,AAAA", *RAW]
ODD_KEYS = ["type", "role", "content", "text", "id", "input", "cache_control", "thinking",
            "tool_calls", "function", "arguments", "", "model", "stream", "delta", "index"]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
MESSAGES_BODY = {
    "model": "claude-sonnet-4-5", "max_tokens": 30000, "stream": True, "temperature": 1,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"}, "metadata": {"user_id": "user_1_session_12345678"},
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [
            {"type": "text", "text": ""},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "b"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [
                {"type": "text", "text": "done"}]}]},
        {"role": "system", "content": "note"},
        {"role": "user", "content": "go on"}]}
CHAT_BODY = {
    "model": "claude-sonnet-4-5", "max_completion_tokens": 100, "stream": True,
    "stream_options": {"include_usage": True}, "stop": ["a"], "reasoning_effort": "low",
    "temperature": 0.5, "parallel_tool_calls": False, "user": "u",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "hi"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": "go on"}]}

WORDS = [b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b"\r\n\r\n", b"0\r\n\r\n", b"chunked",
         b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: 99999\r\n",
         b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"HTTP/1.0", b"HTTP/1.1", b"-1",
         b"ffffffffffff", b"\xff\xfe", b"%00", b"//", b"HTTP/1.1 100 Continue\r\n\r\n",
         b"Host: h\r\n", b"data: ", b"event: error\n", b"{", b"}", b"\"", b"x" * 5000]


def mutated_bytes(chance, data, others):
    """Some bytes of it lost, doubled, changed, or taken from elsewhere."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        to = min(len(data), at + int(chance.expovariate(0.1)))
        act = chance.randrange(7)
        if act == 0:
            del data[at:to]
        elif act == 1:
            data[at:at] = data[at:to]
        elif act == 2:
            data[at:to] = chance.choice(WORDS)
        elif act == 3 and data:
            data[at % len(data)] = chance.randrange(256)
        elif act == 4:
            del data[at:]
        elif act == 5:
            data[at:at] = chance.choice(WORDS)
        else:
            other = chance.choice(others)
            cut = chance.randint(0, len(other))
            data[at:to] = other[cut:cut + 200]
    return bytes(data)


def places_in(value):
    """(container, key) of everything within a JSON value."""
    found, waiting = [], [value]
    while waiting:
        container = waiting.pop()
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, inner in pairs:
            found.append((container, key))
            if isinstance(inner, (dict, list)):
                waiting.append(inner)
    return found


def mutated_json(chance, value):
    """A JSON document with some of its values exchanged, moved, lost or doubled, as bytes."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(0, 5)):
        places = places_in(value)
        if not places:
            break
        container, key = chance.choice(places)
        act = chance.randrange(6)
        if act <= 1:
            container[key] = json.loads(json.dumps(chance.choice(ODD_VALUES)))
        elif act == 2:
            other, other_key = chance.choice(places)
            container[key] = json.loads(json.dumps(other[other_key]))
        elif act == 3:
            del container[key]
        elif act == 4 and isinstance(container, list):
            container.extend(json.loads(json.dumps(container[key:key + 1])) * chance.randint(1, 3))
        elif isinstance(container, dict):
            container[chance.choice(ODD_KEYS)] = container.pop(key)
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


def mutated_events(chance):
    """The body of a stream with events changed, lost, doubled or out of order."""
    events = chance.choice([support.stream_events("some words to say"),
                            support.tool_use_events("f", {"a": "b", "c": [1, 2, 3]})])
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(events))
        act = chance.randrange(5)
        if act == 0:
            del events[at]
        elif act == 1:
            events.insert(chance.randrange(len(events)), events[at])
        elif act == 2:
            begin = events[at].index(b"data: ") + 6 if b"data: " in events[at] else 0
            with contextlib.suppress(ValueError, RecursionError):
                events[at] = events[at][:begin] + mutated_json(
                    chance, json.loads(events[at][begin:].decode())) + b"\n\n"
        elif act == 3:
            events.insert(at, chance.choice([
                b": note\n\n", b"event: ping\ndata: {}\n\n", b"\r\n\r\n", b"data\n\n",
                support.sse_event(support.error_body("overloaded_error", "busy")),
                support.sse_event({"type": "unknown", "x": 1}), b"id: \xff\n\n"]))
        else:
            events[at] = mutated_bytes(chance, events[at], events)
        if not events:
            break
    return b"".join(events)


def mutated_answer(chance):
    """All bytes of an upstream's answer."""
    is_stream = chance.random() < 0.6
    if is_stream:
        body, kind = mutated_events(chance), "text/event-stream"
    else:
        body, kind = mutated_json(chance, support.message()), "application/json"
        if chance.random() < 0.3:
            body = mutated_json(chance, support.error_body("rate_limit_error", "slow down"))
    headers = [("Content-Type", kind if chance.random() < 0.9 else "text/html")]
    if chance.random() < 0.2:
        coding = chance.choice(["gzip", "deflate", "x-gzip", "br", "gzip, gzip", "identity"])
        headers.append(("Content-Encoding", coding))
        body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding, bytes)(body)
        if chance.random() < 0.3:
            body = mutated_bytes(chance, body, [body])
    headers += chance.sample(ODD_HEADERS, chance.choice([0, 0, 1, 3]))
    framing = chance.random()
    if framing < 0.4:
        headers.append(("Content-Length", str(len(body) + chance.choice([0, 0, 0, 1, -1]))))
    elif framing < 0.9:
        headers.append(("Transfer-Encoding", "chunked"))
        cut = chance.randint(0, len(body))
        body = b"".join(support.chunk(part) for part in (body[:cut], body[cut:]) if part)
        body += support.LAST_CHUNK if chance.random() < 0.9 else b""
    status = 200 if chance.random() < 0.6 else chance.choice(ODD_STATUSES)
    head = "\r\n".join(["HTTP/1.1 %d Word" % status] + ["%s: %s" % pair for pair in headers])
    data = head.encode("latin-1") + b"\r\n\r\n" + body
    data = b"HTTP/1.1 103 Early Hints\r\n\r\n" * chance.choice([0] * 9 + [1, 30]) + data
    return mutated_bytes(chance, data, [data, *WORDS]) if chance.random() < 0.5 else data


ODD_STATUSES = [100, 101, 199, 201, 204, 206, 301, 304, 307, 400, 401, 403, 404, 408, 413, 429,
                429, 499, 500, 502, 503, 520, 529, 529, 599, 600, 999]
ODD_HEADERS = [
    ("Retry-After", value) for value in ("-5", "soon", "nan", "inf", "9" * 400, "0.5", "1e9",
                                         "Wed, 21 Oct 2065 07:28:00 GMT", "")
] + [
    ("anthropic-ratelimit-requests-remaining", "0"), ("anthropic-ratelimit-requests-reset", "x"),
    ("anthropic-ratelimit-unified-status", "rejected"), ("x-should-retry", "false"),
    ("x-should-retry", "true"), ("Connection", "close, content-type"), ("Location", "http://h/"),
    ("Set-Cookie", "a=b"), ("request-id", "\xe9"), ("Transfer-Encoding", "gzip"),
    ("Content-Length", "7"), ("Content-Length", "x"), ("A", "b" * 70000), ("Trailer", "x"),
    ("anthropic-ratelimit-unified-reset", "9" * 30), ("Date", "yesterday"),
]


class OddUpstream(support.ScriptedUpstream):
    """Answers every request with what `answer(request)` gives and then closes."""

    def __init__(self):
        super().__init__(*[self.run] * CONNECTIONS)
        self.answer = None

    def run(self, connection):
        request = connection.read_request(seconds=None)
        while request is not None:
            if self.answer is not None:
                with contextlib.suppress(ConnectionError):
                    connection.send(self.answer)
                return
            is_stream = b'"stream":true' in request.body.replace(b" ", b"")
            connection.send(support.stream_response(support.stream_events()) if is_stream
                            else support.json_response())
            request = connection.read_request(seconds=None)


class Fuzz:
    """Cases by number: each one depends on the seed and its number alone."""

    def __init__(self, seed, upstream, log):
        self.seed = seed
        self.upstream = upstream
        self.log = log
        self.counts = collections.Counter()
        self.statuses = collections.Counter()
        self.samples = [data for kind in ("valid", "invalid") for _, _, data in corpus(kind)]
        self.number = 0
        self.gateway = None

    def config(self):
        return gw.Config.from_dict(settings_for(
            provider(self.upstream, ("a%d" % self.number, "b%d" % self.number),
                     sanitize=("strict", "off", {})[self.number % 3] or {}),
            timeouts=TIMEOUTS, retry={"max_attempts": 2, "max_wait_seconds": 0},
            stream={"hold_seconds": 0.2, "ping_seconds": 1},
            limits={"body_bytes": 2 ** 20}, log={"level": "debug"}))

    def run(self, number):
        """One case.  Raises AssertionError."""
        self.number = number
        chance = random.Random("%s:%d" % (self.seed, number))
        kind = chance.choice(["request", "request", "json", "json", "answer", "answer"])
        self.counts[kind] += 1
        self.upstream.answer = None
        if number % 3 == 0:
            self.gateway.reload(self.config())
        getattr(self, kind)(chance)
        if number % SETTLED_EVERY == 0:
            self.check_settled()
        faults = [line for line in self.log if "internal error" in line or "Traceback" in line]
        del self.log[:]
        if faults:
            raise AssertionError("in the log: %s" % faults)
        malformed = [error for error in self.upstream.errors if type(error) is AssertionError]
        if malformed:
            raise AssertionError("the upstream was sent nonsense: %s" % malformed)

    def check_settled(self):
        def nothing():
            status = self.gateway.status()
            return not any(status[name] for name in (
                "connections", "requests", "leases", "upstream_active"))

        try:
            support.eventually(nothing, "nothing to be under way")
        except AssertionError as error:
            stacks = [frame for thread, frame in sys._current_frames().items()]
            raise AssertionError("%s: %s\n%s" % (error, self.gateway.status(), "\n".join(
                "".join(traceback.format_stack(frame)[-4:]) for frame in stacks))) from None
        held = self.gateway._servers[-1][0].bodies.held_bytes
        if held:
            raise AssertionError("%d bytes are still held" % held)

    def judge(self, answer):
        self.statuses[answer.status] += 1
        if answer.status == 500 and b"internal error" in answer.body:
            raise AssertionError("a 500: %r %s" % (answer.body, self.log))
        if answer.status < 200 or answer.status > 599:
            raise AssertionError("status %d" % answer.status)

    def request(self, chance):
        """Bytes of a request, changed; then whatever comes until the connection ends."""
        data = mutated_bytes(chance, chance.choice(self.samples), self.samples)
        with support.RawClient(self.gateway.port) as client:
            try:
                if chance.random() < 0.2:
                    cut = chance.randint(0, len(data))
                    client.send(data[:cut])
                    data = data[cut:]
                client.send(data)
                client.half_close()
                while True:
                    self.judge(client.read_response())
            except (support.EndedEarly, ConnectionError):
                return  # how the loop ends

    def json(self, chance):
        """A body, changed, at either door."""
        path = chance.choice(["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions",
                              "/v1/chat/completions", "/v1/v1/messages?beta=true"])
        base = CHAT_BODY if "chat" in path else MESSAGES_BODY
        body = mutated_json(chance, dict(base, stream=chance.random() < 0.5))
        if chance.random() < 0.2:
            body = mutated_bytes(chance, body, [body])
        self.ask(path, body)

    def answer(self, chance):
        """An upstream's answer, changed, to a good request at either door."""
        path = chance.choice(["/v1/messages", "/v1/messages", "/v1/messages/count_tokens",
                              "/v1/chat/completions", "/v1/files"])
        base = dict(CHAT_BODY if "chat" in path else MESSAGES_BODY, stream=chance.random() < 0.7)
        self.upstream.answer = mutated_answer(chance)
        self.ask(path, json.dumps(base, separators=(",", ":")).encode())

    def ask(self, path, body):
        with support.RawClient(self.gateway.port) as client:
            try:
                client.request("POST", path, [JSON_TYPE, ("Connection", "close")], body)
            except ConnectionError:
                pass  # safe: refused before its end; what it says is read below
            try:
                answer = client.read_response()
            except (support.EndedEarly, ConnectionError) as error:
                raise AssertionError("no answer: %s" % error) from error
        self.judge(answer)
        if answer.complete and answer.status == 200 and "event-stream" in (
                answer.header("content-type") or "") and not answer.header("content-encoding"):
            self.check_ended(path, answer.body)

    def check_ended(self, path, body):
        """A stream of messages that looks whole says how it ended."""
        if "chat" in path:
            if not body.endswith(b"data: [DONE]\n\n"):
                raise AssertionError("a stream without [DONE]: %r" % body[-200:])
        elif path == "/v1/messages":
            types = {event.type for event in gw.SseDecoder().feed(body)}
            if not types & {"message_stop", "error"}:
                raise AssertionError("a stream that only looks whole: %r" % body[-200:])


@contextlib.contextmanager
def no_thread_may_die(found):
    """Appends what ends a thread of the gateway's to `found`."""
    real = threading.excepthook
    threading.excepthook = lambda hook: found.append(hook.exc_value)
    try:
        yield
    finally:
        threading.excepthook = real


def run(seconds, seed, only=None):
    """Runs cases for so long, or one; gives the Fuzz.  Raises AssertionError."""
    log, deaths = [], []
    threads, descriptors = threading.active_count(), support.count_open_descriptors()
    with no_thread_may_die(deaths), OddUpstream() as upstream:
        fuzz = Fuzz(seed, upstream, log)
        fuzz.gateway = gw.Gateway(fuzz.config(), log.append, {})
        with fuzz.gateway:
            until = time.monotonic() + seconds
            for number in [only] if only is not None else range(10 ** 9):
                if number != only and time.monotonic() > until:
                    break
                try:
                    fuzz.run(number)
                    if deaths:
                        raise AssertionError("a thread ended with %r" % deaths[0])
                except AssertionError as error:
                    raise AssertionError(
                        "%s\nrepeat it: CLAUDE_GATEWAY_FUZZ_SEED=%s CLAUDE_GATEWAY_FUZZ_CASE=%d "
                        "python3 -m tests.test_17_fuzz" % (error, seed, number)) from error
                if number % 1000 == 0:
                    # What the scripted upstream remembers is not the gateway's.
                    del upstream.requests[:], upstream.errors[:]
            fuzz.check_settled()
    support.eventually(lambda: threading.active_count() <= threads, "all threads to end")
    support.eventually(lambda: support.count_open_descriptors() == descriptors,
                       "all descriptors to be closed")
    print("\nfuzz: seed %s, %d cases (%s) in %.0f s; answers %s" % (
        seed, sum(fuzz.counts.values()),
        ", ".join("%s %d" % pair for pair in sorted(fuzz.counts.items())), seconds,
        ", ".join("%d: %d" % pair for pair in sorted(fuzz.statuses.items()))), flush=True)
    return fuzz


class FuzzTest(unittest.TestCase):

    def test_no_500_no_traceback_no_hang_and_nothing_left(self):
        seed = SEED
        if seed is None:
            seed = "1" if "CLAUDE_GATEWAY_FUZZ_SECONDS" not in os.environ else str(
                int.from_bytes(os.urandom(4), "big"))
        fuzz = run(SECONDS, seed, None if CASE is None else int(CASE))
        if CASE is None:
            self.assertGreater(min(fuzz.counts[kind] for kind in ("request", "json", "answer")), 5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
