#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""claude_gateway: one file between Anthropic clients and the upstreams that serve them.

Run it, then point a client at it::

    python3 claude_gateway.py --port 8045
    ANTHROPIC_BASE_URL=http://127.0.0.1:8045 claude

It authenticates clients, keeps their sessions up over the accounts it was given,
and relays answers and event streams byte for byte as they come.  Python 3.8 and newer,
standard library only.  ``from claude_gateway import Gateway, Config`` starts no
thread, reads no environment and opens no socket.

The map.  A section names only what stands above it (tests/test_00_layout.py
holds the map, the banners and that law); protocol code takes bytes or values
and returns values; sockets live in 13 and 17; section 20 builds the real clocks,
openers and servers, and what stands below it is the program around them.

    1  Limits and constants      every bound with its unit, reason and precedent
    2  Errors                    whose fault, in which phase, and what the client is told
    3  Values                    headers, requests, responses, events, usage, secrets
    4  HTTP message rules        heads, framing, body decoders, header rules, credentials, guard
    5  Server-sent events        decoder and encoder, any split of the bytes
    6  JSON documents            values with their spans, so that an edit splices
    7  Anthropic messages        validation, answers, what a stream tells, the collector
    8  Requests on their way up  sanitizing rules, warm-up, models, the token estimate
    9  Configuration             one table of settings; presets; the frozen Config
    10 Retry policy              outcome in, decision out, as data
    11 Accounts                  states, strategies, conversations, leases, one request's attempts
    12 Records, metrics, log     one record a request, one line a record, counters, who is alive
    13 Upstream transport        urllib.request opener with our own pooling handler
    14 Credential renewal        key commands and refresh grants, one at a time an account
    15 OpenAI door               chat completions up; chunks, completions and errors down
    16 Engine                    routes, the walk of one request, attempts, the relay
    17 Downstream server         ThreadingHTTPServer: framing, limits, one write per chunk
    18 Demo upstream             honest streams without a key or a network
    19 Dashboard page            one constant: HTML, style and script, and the fence around it
    20 Gateway                   the composed whole; which configurations it refuses to serve
    21 Options and files         the command line's words, the file, what people read
    22 Doctor                    everything between a client and an answer, a finding a line
    23 Self-test                 an upstream, gateways and clients to try the contract with
    24 Clauses                   the contract, a small function each
    25 Command line              serve, check, doctor, env, init, status, selftest

One request::

    client bytes
      | 17  head, framing plan (4)                     -> HttpRequest (3)
      |     a head that was seen before is looked up, and what follows from it:
     16 Engine.handle: id, route, guard, credentials (Admission) -> answered here, or
      |     body under its limit, JSON (6), validation (7), warm-up (8), candidates (11, Routed);
      |     model, thinking and sanitizing (8): the bytes for each provider are
      |     fixed before the first call
      v
     16 attempt loop: Attempts.step() (11) gives a lease, a wait, or the end
      |  credential in force (14), its head (UpstreamHead), transport.send(call) (13)
      |  a stream is held until its first content; the client gets pings meanwhile
      |  decision = decide(outcome) (10): relay, next, once more, give up
      v  the commit point: after it nothing is tried again
     16 RelayBody: bytes as they come; the tracker (7) looks on; a stream that
      |  breaks ends in one error event
      |  close(), exactly once: upstream closed or pooled, lease released,
      v  record observed (12)
     17 one write per chunk, the end with the last; a client that left closes the upstream call

Laws: a clean body leaves byte for byte as it came; every loop and buffer has a
bound from section 1; a gateway key never leaves and an account's key never
reaches a client or a log; errors say whose fault it was and in which phase.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import codecs
import collections
import contextlib
import datetime
import email.utils
import errno
import fnmatch
import gc
import hashlib
import hmac
import http.server
import ipaddress
import json
import math
import operator
import os
import platform
import random
import re
import select
import selectors
import shlex
import signal
import socket
import socketserver
import ssl
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import urllib.request
import weakref
import zlib
from functools import lru_cache
from functools import partial
from itertools import compress
from itertools import repeat
from typing import Any
from typing import Callable
from typing import Container
from typing import Dict
from typing import Iterable
from typing import Iterator
from typing import Mapping
from typing import NamedTuple
from typing import NoReturn
from typing import Optional
from typing import Sequence
from typing import Tuple
from typing import Union

__all__ = ["Config", "ConfigError", "Gateway"]
__version__ = "0.1.0"


# ---- 1. Limits and constants -------------------------------------------------

# Heads.  nginx takes request lines of 8 KiB and 32 KiB of headers, http.client
# 64 KiB a line; Claude Code's head is about 2 KiB.
MAX_REQUEST_LINE_BYTES = 16 * 1024
MAX_HEADERS_COUNT = 100
MAX_HEAD_BYTES = 64 * 1024
# Header lines that are remembered with what they say, and whole heads of requests, of
# which a client has a handful; longer heads leave none.
HEADER_LINES_KEPT = 1024
HEADS_KEPT = 512
MAX_KEPT_HEAD_BYTES = 4 * 1024
# Lists of the names in answers: an upstream has a few.
NAME_LISTS_KEPT = 64
# Upstreams behind several proxies send more than clients do; http.client
# refuses the 101st header, which real answers have reached.
MAX_RESPONSE_HEAD_BYTES = 256 * 1024
MAX_RESPONSE_HEADERS_COUNT = 400
# 1xx answers before the final one; an endless row of them once hung http.client
# (gh-150743).
MAX_INTERIM_RESPONSES = 16

# Chunked framing.  A size line is a few hex digits; extensions are legal and
# unused.  Sixteen digits would overflow what a peer can mean.
MAX_CHUNK_LINE_BYTES = 256
MAX_CHUNK_SIZE_DIGITS = 12
MAX_TRAILER_BYTES = 8 * 1024

# One socket read.  64 KiB is a default socket buffer's worth: larger reads gain
# nothing measurable, smaller ones cost a call per event burst.
READ_BYTES = 64 * 1024
# What is sent at once, and what a client must take within client_seconds.
SEND_BYTES = 256 * 1024

# A message as JSON is collected before it goes down, so that a broken one can be
# a 502.  The largest messages are a few MB; what is above this is refused.
MAX_COLLECTED_BYTES = 64 * 1024 * 1024
# An upstream's error body is kept while other accounts are tried.
MAX_ERROR_BODY_BYTES = 1024 * 1024
# How long such an error body may take: the next account is waiting meanwhile.
ERROR_BODY_SECONDS = 3.0
# All of a message has come, only the end of its body has not: awaited no longer, so
# that the connection can serve again, but nobody waits for it.
END_SECONDS = 1.0
# What one step of decompression may put out; a bomb then costs time, not memory.
MAX_INFLATED_STEP_BYTES = 1024 * 1024

# One event that the stream tracker assembles; larger ones pass, unobserved.
MAX_SSE_EVENT_BYTES = 32 * 1024 * 1024

# Documents above this are read through a window of so many bytes; those beyond ASCII, of
# which each character may take two bytes or four, from the smaller size on.  1 MB takes a
# sixth longer for it (3.4 -> 3.9 ms, and 3.4 times its memory for 4.9), 10 MB a tenth less.
LARGE_JSON_BYTES = 2 * 1024 * 1024
WIDE_JSON_BYTES = 512 * 1024
JSON_WINDOW_BYTES = 64 * 1024
# With less than this ahead the window moves on: most values are smaller, and one that is
# cut is read twice, and json counts the lines before it, for an error that nobody sees.
JSON_EDGE_CHARS = 16 * 1024
# What the window is not for: many small values, looked at so often, and a value that fills
# most of a document: each look at one has three times the text before it.
LEAST_WINDOW_VALUE_CHARS = 128
WINDOW_VALUES = 1024
JSON_WINDOW_LOOKS = 5
# What an edit keeps of a document is copied at once if it is smaller than this.
MIN_VIEW_BYTES = 256

# CPython refuses int() above 4,300 digits (CVE-2020-10735); older ones take
# quadratic time instead.
MAX_NUMERAL_DIGITS = 4300

# Schemas and tool inputs of the OpenAI door; OpenAI takes schemas of 10 levels.
MAX_CHAT_DEPTH = 100
# As many as MAX_NUMERAL_DIGITS have.
MAX_CHAT_NUMBER_BITS = 14284
# Fields without a meaning upstream that a header names.
MAX_IGNORED_NAMES = 32

# Idle upstream connections.  Origins and balancers close theirs after 60 s and
# more as a rule; those that close earlier are noticed before reuse.
POOL_IDLE_SECONDS = 55.0
POOL_IDLE_PER_ORIGIN = 128
# A pooled connection that the upstream had closed fails within a round trip; one
# that fails later has taken the request, which must not be sent twice for that.
STALE_SECONDS = 2.0

# After an early answer (401, 413 …) the rest of the body is read and thrown
# away, since closing with unread input resets the connection and the client
# would never see the answer (RFC 9112 section 9.6).
MAX_DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 5.0
# What has come before the end has its answer within this; only who reads none takes longer.
LAST_ANSWER_SECONDS = 0.5
# An unread body this small is drained and the connection kept.
MAX_KEPT_DRAIN_BYTES = 256 * 1024
# A body may take client_seconds, and a second more for each of these: a byte now
# and then would hold a thread for ever.
MIN_BODY_BYTES_PER_SECOND = 1024
# Blank lines in front of a request (RFC 9112 section 2.2 wants one tolerated).
MAX_BLANK_LINES = 2

# Request bodies that all connections together may have in memory: eight of the
# largest, which take 1.1 GB while they are parsed and sent (measured).  What would
# go above it is told to come back, before it is read.
MAX_HELD_BODY_BYTES = 256 * 1024 * 1024
# Small bodies go on while large ones fill that: Claude Code's are 0.1 to 1 MiB.
SMALL_BODY_BYTES = 1024 * 1024
SPARE_BODY_BYTES = 64 * 1024 * 1024
# A body of a told length gets its room bit by bit: this at first, then as much again as
# has come.  Lengths that are only told would fill the room with nothing.
FIRST_BODY_BYTES = 64 * 1024
# What is refused for want of room is told to come back after this: a body of 32 MB
# is read and sent within a second or two.
BUSY_RETRY_SECONDS = 2

# Connections above limits.connections whose head is still read, in this time, so
# that /healthz is answered: a gateway that is busy is not dead.
SPARE_CONNECTIONS = 32
SPARE_HEAD_SECONDS = 1.0
HEALTH_PATHS = ("/health", "/healthz")

# Waiting connections that the kernel may queue; the default of 5 loses clients
# at 64 in parallel.  The kernel caps it at net.core.somaxconn.
LISTEN_BACKLOG = 1024
# So long threads wait for one that has the turn and does not end it: it may be stuck.
TURN_SECONDS = 0.05
# And so long those who are not the first of them.
CROWD_SECONDS = 1.0
# So often, for each of those who wait, may others go before the first of them.
MAX_PASSES = 2
# So often who waits for the interpreter asks for it anew.  With Python's own 5 ms a thousand
# threads that wait at once leave no time for anything else: their events came 17 s late.
SWITCH_SECONDS = 0.05
# A pause where the process is out of descriptors, so that accept() does not spin.
ACCEPT_PAUSE_SECONDS = 0.1
OUT_OF_DESCRIPTORS = frozenset([errno.EMFILE, errno.ENFILE])
OUT_OF_ROOM = OUT_OF_DESCRIPTORS | {errno.ENOBUFS, errno.ENOMEM}
# How long the last bytes may take when the process ends.
LOG_FLUSH_SECONDS = 2.0

# Accounts, numbers of contract section 9.  An upstream that says "in a week" is
# asked again after half an hour: limits have been lifted before their time.
MAX_REST_SECONDS = 1800.0
MODEL_UNKNOWN_SECONDS = 12 * 3600.0
MAX_UNKNOWN_MODELS = 1000
# Models whose providers and accounts are known by name, and accounts whose state is.
MAX_ROUTED_MODELS = 256
MAX_CANDIDATES_KEPT = 4096
RAMP_SECONDS = 30.0
RAMP_STEP_SECONDS = 0.25
BACKOFF_SECONDS = 0.5
# Those that only seem to fail are asked at once where nobody else is ready so soon.
RATHER_WAIT_SECONDS = 1.0
# How often one who waits for a free slot, or for the end of a probe, looks again.
SLOT_LOOK_SECONDS = 0.05
PROBE_LOOK_SECONDS = 0.25
STICKY_SECONDS = 3600.0
# Conversations whose account is remembered: some 300 bytes each, two a conversation.
MAX_CONVERSATIONS = 20000
# Names of limits that one answer may tell; Anthropic has eight.
MAX_LIMITS_COUNT = 16
# Signed thinking that waits for the result of its tool calls: a few KB a call.
MAX_REMEMBERED_CALLS = 2000
MAX_REMEMBERED_CHARS = 32 * 1024 * 1024
# After so many events the head of a held stream goes down, as after hold_seconds; at so
# many bytes all of it is let go.  They are far above what comes before the first content
# (message_start is 500 bytes), and bound what a broken upstream costs.
MAX_HELD_EVENTS = 64
MAX_HELD_BYTES = 1024 * 1024

# A key command may ask a vault or wait for a person's keychain; AWS's
# credential_process and kubectl's exec plugins print one short document, too.
COMMAND_SECONDS = 30.0
MAX_COMMAND_OUTPUT_BYTES = 64 * 1024
# How long a killed command is waited for: only the kernel can hold it longer.
COMMAND_KILL_SECONDS = 2.0
# Contract section 5: a token is renewed this long before it expires; one that
# lives shorter than twice that, at half of its life.
RENEWAL_MARGIN_SECONDS = 300.0
# After a failed renewal the next one, while the old token still holds.
RENEWAL_RETRY_SECONDS = 10.0
# A renewal that gave the refused credential again is not repeated sooner: many
# requests learn of one refusal within moments of each other.
RENEWAL_SAME_SECONDS = 5.0
# How often those who wait for a renewal look at their client, and at its end.
RENEWAL_SLICE_SECONDS = 0.05
# The lock of a store is held over one call to the issuer; several accounts may
# queue for it.
STORE_LOCK_SECONDS = 60.0
# One call to the issuer: until its response head, and then for its body.
ISSUER_HEAD_SECONDS = 20.0
ISSUER_BODY_SECONDS = 10.0
MAX_ISSUER_BYTES = 1024 * 1024
# The longest that anybody waits for a renewal: above what one can take.
RENEWAL_SECONDS = 120.0
# RFC 6749 section 5.1 leaves out expires_in as it likes: then an hour is usual.
ASSUMED_TOKEN_SECONDS = 3600.0
MAX_TOKEN_SECONDS = 400.0 * 86400
# An access token travels in one header line.
MAX_TOKEN_CHARS = 16 * 1024
# A store has a few KiB a grant; refused tokens are remembered by their hashes.
MAX_STORE_BYTES = 4 * 1024 * 1024
MAX_STORED_GRANTS = 100
MAX_REMEMBERED_REFUSALS = 100
MAX_REFUSED_PER_ACCOUNT = 8
# A store that a virus scanner has open cannot be replaced on Windows just then.
STORE_REPLACE_TRIES = 5
# How long stopping waits for renewals: those that ask nobody end within a slice.
RENEWAL_CLOSE_SECONDS = 3.0

RECORDS_KEPT = 1000
REQUESTS_SHOWN_DEFAULT = 100
# What the metrics may be split into: far more than a configuration names, and far
# less than a client could make up.  What is beyond is counted as "other".
MAX_SERIES_COUNT = 1000
MAX_MODELS_COUNTED = 100
# Records that are kept before they are counted together: 0.1 ms of work.
MAX_UNCOUNTED = 50
HISTORY_MINUTES = 60
# A snapshot shows the oldest; the others are told as a number.
MAX_LIVE_SHOWN = 100
LOG_QUEUE_LINES = 10000
# Lines that come within this of the last one written are written together.
LOG_PAUSE_SECONDS = 0.05
MAX_CLIENT_REQUEST_ID = 128
# The longest id known has 40; it goes into records, log lines and a header.
MAX_MODEL_CHARS = 512
MAX_TOLD_CHARS = 100
# Counts above it are no counts; they would overflow what is computed from them.
MAX_USAGE_TOKENS = 10 ** 12
# Requests above it do not calibrate the token estimate: it takes 0.5 s a MB.
MAX_CALIBRATED_BYTES = 16 * 1024
# Shorter credentials (local servers take any word) would be found in honest text.
MIN_MASKED_CHARS = 16
MAX_REMEMBERED_NOTICES = 100
# An error names no more accounts than a line can hold.
MAX_NAMED_ACCOUNTS = 8
MODELS_PAGE_DEFAULT = 1000

ANTHROPIC_VERSION = "2023-06-01"
CLAUDE_CODE_BETAS = (
    "claude-code-20250219,oauth-2025-04-20,"
    "interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14"
)
CLAUDE_CODE_BETAS_NAME = "claude-code-defaults"

# RFC 9110 section 7.6.1, and Proxy-Connection, which old clients still send.
HOP_BY_HOP = frozenset([
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
])
# Where a client may put its key; a gateway key in any of them is never passed on.
CREDENTIAL_HEADERS = frozenset([
    "x-api-key",
    "authorization",
    "x-goog-api-key",
])
# Never sent upstream: they describe the client's way to us, or are for us alone.
NOT_UPSTREAM = HOP_BY_HOP | frozenset([
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "origin",
    "referer",
])
NOT_UPSTREAM_PREFIXES = ("x-forwarded-", "proxy-")
# Never sent downstream: framing is ours, and an upstream's cookies are not the
# client's business.
NOT_DOWNSTREAM = HOP_BY_HOP | frozenset([
    "content-length",
    "set-cookie",
    "set-cookie2",
])
# Whose pages may read an answer is ours to say.
NOT_DOWNSTREAM_PREFIXES = ("access-control-",)
# Ours, whatever an upstream (perhaps another gateway) says.
OWN_HEADERS = frozenset([
    "x-account-email",
    "x-gateway-attempts",
    "x-gateway-provider",
    "x-mapped-model",
    "x-request-id",
])

LOOPBACK_NAMES = frozenset(["127.0.0.1", "localhost", "::1"])

REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    529: "Overloaded",
}

assert MAX_REQUEST_LINE_BYTES < MAX_HEAD_BYTES <= READ_BYTES <= MAX_RESPONSE_HEAD_BYTES
assert MAX_KEPT_DRAIN_BYTES <= MAX_DRAIN_BYTES
assert MAX_ERROR_BODY_BYTES <= MAX_COLLECTED_BYTES
assert STORE_LOCK_SECONDS + ISSUER_HEAD_SECONDS + ISSUER_BODY_SECONDS < RENEWAL_SECONDS
assert COMMAND_SECONDS + COMMAND_KILL_SECONDS < RENEWAL_SECONDS


# ---- 2. Errors ---------------------------------------------------------------

# The type that Anthropic's API gives to a status (platform.claude.com, errors).
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "request_too_large",
    414: "invalid_request_error",
    417: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

# The status of an error that comes as an event: the API's own for its type.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

# Repeating such a request cannot help; Claude Code would try it eleven times in
# three minutes if it were not told (clients.md, section 6).
NEVER_RETRIED = frozenset([400, 401, 403, 404, 405, 411, 413, 414, 417, 431])


class GatewayError(Exception):
    """An answer of ours that is an error; never raised itself.

    ``status`` is the HTTP status, ``headers`` are extra pairs for the answer,
    ``close`` says that the connection's framing can no longer be trusted.
    """

    status = 500

    def __init__(
        self,
        message: str,
        headers: Sequence[tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.headers = tuple(headers)
        self.close = close

    @property
    def type(self) -> str:
        """The error type that Anthropic's API gives to this status."""
        return ERROR_TYPES.get(self.status, "api_error")


class RequestError(GatewayError):
    """The client's fault, found before anything went upstream."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Sequence[tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message, headers, close)
        self.status = status


class Unavailable(GatewayError):
    """Ours: draining, more connections than the limit, or no room for the body."""

    status = 503


def busy(what: str) -> Unavailable:
    """The refusal of what there is no room for now; the connection closes after it."""
    return Unavailable(what, [("retry-after", str(BUSY_RETRY_SECONDS))], close=True)


class NoUsableAccount(GatewayError):
    """Ours: the configuration has nobody who could serve this request."""

    status = 502


class NobodyReady(GatewayError):
    """Ours: those who could serve this request rest, longer than it may wait."""

    status = 429


class UpstreamError(GatewayError):
    """The upstream's fault; never raised itself.  ``kind`` is the outcome's name."""

    status = 502
    kind = "upstream_error"
    # Seconds that whoever failed asked to wait, where it did.
    retry_after: Optional[float] = None


class UpstreamUnreached(UpstreamError):
    """Name resolution, TCP or TLS failed: the request was surely not received."""

    kind = "unreached"


class UpstreamClosed(UpstreamError):
    """Closed before the first byte of an answer: it may have been received."""

    kind = "closed"


class UpstreamSilent(UpstreamError):
    """No response head in time: it may have been received."""

    status = 504
    kind = "silent"


class UpstreamMalformed(UpstreamError):
    """An answer that is not HTTP, or not what was asked for."""

    kind = "malformed"


class UpstreamBroke(UpstreamError):
    """The answer began and did not end well."""

    kind = "broke"


class UpstreamStalled(UpstreamBroke):
    """The answer began and then nothing came for ``timeouts.idle_seconds``."""

    status = 504
    kind = "stalled"


class ShuttingDown(UpstreamError):
    """We ended the upstream call because the process stops."""

    status = 503
    kind = "shutdown"


class CredentialError(UpstreamError):
    """An account's credential could not be had just now: a command, or an issuer, failed.

    ``retry_after`` is how many seconds the issuer asked to be left alone, or None.
    The message names account and phase: no key, no token, no output.
    """

    kind = "credential"

    def __init__(self, message: str, retry_after: Optional[float] = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CredentialRefused(CredentialError):
    """The issuer will not renew: somebody has to sign in, or to mend the configuration."""

    kind = "credential_refused"


class ClientGone(Exception):
    """The client left: nobody is there to be told anything."""


class ConfigError(Exception):
    """The configuration is wrong; ``problems`` has one line per fault, with its path."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: list[str] = list(problems)


def anthropic_error(error_type: str, message: str, request_id: str) -> dict:
    """The body of every error of ours, in the shape of Anthropic's API.

    >>> anthropic_error("api_error", "no", "req_1")["error"]
    {'type': 'api_error', 'message': 'no'}
    """
    return {
        "type": "error",
        "error": {"type": error_type, "message": message},
        "request_id": request_id,
    }


# ---- 3. Values ---------------------------------------------------------------


class Secret:
    """A credential whose text never shows by accident.

    ``reveal()`` gives it; ``str`` and ``repr`` give a mask, which keeps the last
    four characters of a long one so that people can tell their keys apart.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The credential itself: for a header to be sent, and nothing else."""
        return self._text

    def __str__(self) -> str:
        return "…" + self._text[-4:] if len(self._text) >= 20 else "…"

    def __repr__(self) -> str:
        return "Secret(%s)" % self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            encode_lossless(self._text), encode_lossless(other._text))

    def __hash__(self) -> int:
        return hash(self._text)


def encode_lossless(text: str) -> bytes:
    """UTF-8 for any str: ``hmac.compare_digest`` raises on non-ASCII strings."""
    return text.encode("utf-8", "surrogatepass")


class Known(Dict[Any, Any]):
    """What a function gives, by what it was given; emptied where it would hold more.

    Looked up by subscript: lru_cache takes three times as long, to put what it finds in
    front, and where threads run side by side (CPython 3.13t) waits for itself.
    """

    def __init__(self, make: Callable[[Any], Any], limit_count: int) -> None:
        super().__init__()
        self._make, self._limit_count = make, limit_count

    def __missing__(self, key: Any) -> Any:
        if len(self) >= self._limit_count:
            self.clear()
        self[key] = value = self._make(key)
        return value


# The halves of a header pair, to look at many pairs without a line of Python for each.
NAME_OF, VALUE_OF = operator.itemgetter(0), operator.itemgetter(1)


def name_list(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int], bool]:
    """Header names in lower case, where each stands first, and whether none stands twice."""
    keys = tuple(map(str.lower, names))
    places = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1)))
    return keys, places, len(places) == len(keys)


# An upstream answers with the same names as a rule: 2 us less for fifteen of them.
known_name_list = Known(name_list, NAME_LISTS_KEPT).__getitem__


class Headers:
    """An ordered list of (name, value) pairs, duplicates and letter case kept.

    ``keys`` are the names in lower case, one for each pair.  ``head_bytes`` is the length
    of the head that they came in, if any: the names of a long one are not remembered.

    >>> Headers([("A", "1"), ("a", "2")]).all("a")
    ['1', '2']
    """

    __slots__ = ("pairs", "keys", "_places", "_differ")

    def __init__(self, pairs: Iterable[tuple[str, str]] = (),
                 head_bytes: int = MAX_HEAD_BYTES) -> None:
        self.pairs = pairs = list(pairs)
        names = known_name_list if head_bytes <= MAX_KEPT_HEAD_BYTES else name_list
        self.keys, self._places, self._differ = names(tuple(map(NAME_OF, pairs)))

    def get(self, name: str, default: str = "") -> str:
        """The first value of a header; ``name`` in lower case."""
        # Not dict.get, which waits for itself where threads run side by side (CPython
        # 3.13t): all requests look into the same few of these.
        return self.pairs[self._places[name]][1] if name in self._places else default

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order; ``name`` in lower case."""
        if self._differ:
            return [self.pairs[self._places[name]][1]] if name in self._places else []
        return [value for key, (_, value) in zip(self.keys, self.pairs) if key == name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def line(self, name: str) -> str:
        """All values of a header as one list; "" without it."""
        if name not in self._places:
            return ""
        return self.pairs[self._places[name]][1] if self._differ else ",".join(self.all(name))

    def tokens(self, name: str) -> list[str]:
        """The comma-separated members of all lines of a header, trimmed, not empty."""
        return list(filter(None, map(str.strip, self.line(name).split(","))))


class Watch:
    """Who waits for an answer; the transport looks at it while it waits itself.

    This one is nobody in particular: it never leaves.
    """

    def fileno(self) -> int:
        """The descriptor that becomes readable when the client leaves, or -1."""
        return -1

    def gone(self) -> bool:
        """Whether the client has left, looked up without waiting."""
        return False

    # Does what is due while one waits, and gives the seconds until something is due again;
    # None where nothing is.  Set by who keeps the client waiting (section 16's Heartbeat).
    beat: Optional[Callable[[], float]] = None

    def rest(self, wait: Callable[[Any], Any], argument: Any) -> Any:
        """What a call gives that only waits: others may work meanwhile."""
        return wait(argument)


class HttpRequest:
    """One request of a client.

    ``target`` is the request target as it was sent; ``read_body`` gives the whole
    body as bytes, under the server's limit, and may be called once; it raises
    RequestError.  ``peer`` is watched while an upstream is waited for.
    ``let_go`` tells the server that the body is no longer held in memory.
    ``begin_answer``, where there is one, sends the head of an answer before its
    body is known and gives what sends pieces of it; the answer that is then
    returned is written without its head.  ``headers`` and ``kind`` are those of its
    Head: a Content-Length in them says nothing, since other requests share them.
    """

    __slots__ = ("method", "target", "headers", "read_body", "peer", "begin_answer", "let_go",
                 "kind")

    def __init__(
        self,
        method: str,
        target: str,
        headers: Headers,
        read_body: Callable[[], bytes] = bytes,
        peer: Watch = Watch(),
        begin_answer: Optional[Callable[[HttpResponse], Callable[[bytes], None]]] = None,
        let_go: Callable[[], None] = lambda: None,
        kind: Optional[object] = None,
    ) -> None:
        self.kind = kind
        self.method = method
        self.target = target
        self.let_go = let_go
        self.begin_answer = begin_answer
        self.headers = headers
        self.read_body = read_body
        self.peer = peer

    @property
    def path(self) -> str:
        """The target before its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the target's question mark."""
        return self.target.partition("?")[2]


class HttpResponse:
    """One answer: ``body`` is bytes, or an iterable of non-empty chunks.

    ``length`` is the body's length in bytes where it is known.  An iterable that
    raises UpstreamError ends the connection without a proper end of the body.
    ``close(ended)`` is called exactly once by whoever wrote the answer; ``ended``
    is "" when all of it was written.  ``ready`` says that the next chunk, or the end,
    is there already: it then goes down together with what is before it.
    """

    __slots__ = ("status", "headers", "body", "length", "close_connection", "ready", "_on_close")

    def __init__(
        self,
        status: int,
        headers: Sequence[tuple[str, str]] = (),
        body: Union[bytes, Iterable[bytes]] = b"",
        length: Optional[int] = None,
        on_close: Optional[Callable[[str], None]] = None,
        close_connection: bool = False,
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body
        self.length = len(body) if isinstance(body, bytes) else length
        self.close_connection = close_connection
        self.ready: Callable[[], Any] = bool  # which says False
        self._on_close: tuple[Callable[[str], None], ...] = (
            () if on_close is None else (on_close,))

    def close(self, ended: str = "") -> None:
        """End the books of this answer; later calls do nothing."""
        on_close, self._on_close = self._on_close, ()
        for call in on_close:
            call(ended)

    def then(self, on_close: Callable[[str], None]) -> HttpResponse:
        """The same answer with ``on_close`` called after what is already to be called."""
        self._on_close += (on_close,)
        return self


def json_response(
    status: int,
    value: Any,
    headers: Sequence[tuple[str, str]] = (),
    close_connection: bool = False,
) -> HttpResponse:
    """An answer of ours: compact JSON, ASCII only, so that any client can read it."""
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    pairs = [("Content-Type", "application/json")]
    pairs.extend(headers)
    return HttpResponse(status, pairs, body, close_connection=close_connection)


class SseEvent(NamedTuple):
    """One event: ``type`` ("message" where the stream named none) and ``data``."""

    type: str
    data: bytes


class Outcome(NamedTuple):
    """What came of one upstream call: what the retry policy and the accounts look at.

    ``kind`` is "answer" for a response head, else the UpstreamError's kind;
    ``status`` is the answer's, 0 without one; ``final`` is the upstream's
    ``x-should-retry: false``; ``transparent`` means the client's own credential;
    ``repeatable`` is false for a request that must not be done twice.  ``says`` is
    what an error body is about (:func:`error_topic`), ``ready_in`` the seconds
    that the upstream asks to wait, ``limits`` what it told of them (ToldLimits), if anything.
    """

    kind: str
    status: int = 0
    final: bool = False
    transparent: bool = False
    repeatable: bool = True
    says: str = ""
    ready_in: Optional[float] = None
    limits: Any = None


class Usage:
    """Token counts of one answer, as the upstream gave them; 0 where it gave none."""

    # The class's, so that one is made without a line of Python.
    input = output = cache_read = cache_write = 0

    def update(self, usage: Any) -> None:
        """Take over what a ``usage`` object says; counts are cumulative (later wins)."""
        if not isinstance(usage, dict):
            return
        get = usage.get  # spelled out: a loop takes half as long again; True is no count
        if type(count := get("input_tokens")) is int and 0 <= count <= MAX_USAGE_TOKENS:
            self.input = count
        if type(count := get("output_tokens")) is int and 0 <= count <= MAX_USAGE_TOKENS:
            self.output = count
        if type(count := get("cache_read_input_tokens")) is int and 0 <= count <= MAX_USAGE_TOKENS:
            self.cache_read = count
        if type(count := get("cache_creation_input_tokens")) is int and 0 <= count <= MAX_USAGE_TOKENS:
            self.cache_write = count

    def add(self, other: Usage) -> None:
        """Count another one's tokens, too."""
        self.input += other.input
        self.output += other.output
        self.cache_read += other.cache_read
        self.cache_write += other.cache_write


def remember(known: dict, key: Any, value: Any, limit_count: int) -> None:
    """Keep what follows from a key in a dict that is emptied where it would hold more."""
    if len(known) >= limit_count:
        known.clear()
    known[key] = value


# ---- 4. HTTP message rules ---------------------------------------------------

# RFC 9110 section 5.6.2 (token), RFC 9112 sections 3 and 5: a single space
# between the three parts of a request line, no space before a header's colon,
# no folding, no control characters; anything else is a way to smuggle.
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S+) HTTP/1\.([01])")
STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
BAD_IN_HEAD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
BAD_IN_TARGET = re.compile(r"[^\x21-\x7e]|[#\\]")
MAX_LENGTH_DIGITS = 18
CONTENT_LENGTH = re.compile(r"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?"
                        % MAX_CHUNK_SIZE_DIGITS)
# A number as chunk sizes are written, as a rule.
PLAIN_CHUNK_SIZE = b"%x".__mod__
VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,%d}" % MAX_CLIENT_REQUEST_ID)
HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/@?#\s]*)(?::([0-9]{1,5}))?")
# Where a response head's blank line ends; bare LF as a line end is tolerated there.
HEAD_END = re.compile(rb"\n\r?\n")
# Content-Length as clients write it; other spellings are read as any header is.
LENGTH_NAMES = (b"\r\nContent-Length: ", b"\r\ncontent-length: ", b"\r\nContent-length: ",
                b"\r\ncontent-Length: ")


def wants_close(version: int, headers: Headers) -> bool:
    """Whether the sender of this head ends the connection after its message."""
    options = list_members(headers.line("connection"))
    return "close" in options if version else "keep-alive" not in options


def list_members(text: str) -> tuple[str, ...]:
    """The members of a list, in lower case."""
    return tuple(filter(None, map(str.strip, text.lower().split(","))))


class Head:
    """A parsed request head; ``version`` is the minor one, 0 or 1.

    ``closes`` says that its sender ends the connection after it, ``expects`` that it waits
    for a word before its body.  ``kind`` is one object for all heads that differ in their
    Content-Length at most: what follows from one of them follows from all.  None for one
    that is not remembered.  ``before`` and ``after`` are the bytes around that length where
    it alone frames the body; else they are empty.
    """

    __slots__ = ("method", "target", "version", "headers", "closes", "expects", "kind", "before",
                 "after")

    def __init__(self, method: str, target: str, version: int, headers: Headers) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.closes = wants_close(version, headers)
        self.expects = "expect" in headers
        self.kind: Optional[object] = None
        self.before = self.after = b""


# In the place of one that has not come, or could not be read.
NO_HEAD = Head("-", "-", 1, Headers())


class StatusHead:
    """A parsed response head; ``version`` is the minor one, 0 or 1."""

    __slots__ = ("version", "status", "headers")

    def __init__(self, version: int, status: int, headers: Headers) -> None:
        self.version, self.status, self.headers = version, status, headers


def parse_header_line(line: str) -> tuple[str, str]:
    """A header line, without its line end, as a pair.  Raises ValueError.

    >>> parse_header_line("Accept:  */* ")
    ('Accept', '*/*')
    """
    name, colon, value = line.partition(":")
    if not colon or TOKEN.fullmatch(name) is None:
        raise ValueError("malformed header line")
    value = value.strip(" \t")
    if BAD_IN_HEAD.search(value):
        raise ValueError("control character in a header value")
    return name, value


# Nearly all lines of a client are those of its last request: 1 us instead of 8 for
# twenty of them, on a cold cache three times as much.
known_header_line = Known(parse_header_line, HEADER_LINES_KEPT).__getitem__


def parse_header_lines(lines: Sequence[str],
                       head_bytes: int = MAX_HEAD_BYTES) -> list[tuple[str, str]]:
    """The lines of a head of so many bytes, without their ends, as pairs.  Raises ValueError."""
    # What is kept has a bound in bytes, too.
    parse = known_header_line if head_bytes <= MAX_KEPT_HEAD_BYTES else parse_header_line
    return list(map(parse, lines))


def parse_request_head(data: bytes, last: Head = NO_HEAD) -> tuple[Head, Optional[int]]:
    """A request head, up to and with its blank line, and the length of the body where that
    alone frames it; ``last`` is the one before on the connection.  Raises RequestError.

    A client says the same in each request but for its body's length: the head around
    that is parsed once and then looked up, and what follows from it by its kind (a fifth
    of a request's time).  Its headers are shared, so that they have "" for the length.
    """
    digits = data[len(last.before):len(data) - len(last.after)]
    if (digits.isdigit() and len(digits) <= MAX_LENGTH_DIGITS
            and data.startswith(last.before) and data.endswith(last.after)):
        return last, int(digits)  # no search and no hash of all of it (1 % of a request)
    if len(data) > MAX_KEPT_HEAD_BYTES:
        return parse_whole_head(data), None
    # From the end, since clients put it last: a fifth of a regular expression's time.
    at = data.rfind(b"ength: ") + 7
    end = data.find(b"\r\n", at, at + MAX_LENGTH_DIGITS + 2)
    digits = data[at:end]
    if data[at - 18:at] not in LENGTH_NAMES or not digits.isdigit():
        return known_head(data), None
    head = known_head(data[:at], data[end:])
    if not head.before:
        return parse_whole_head(data), None  # framed in a second way, too
    return head, int(digits)


@lru_cache(maxsize=HEADS_KEPT)
def known_head(before: bytes, after: bytes = b"") -> Head:
    """A head that is remembered; in two parts where a length is left out between them."""
    head = parse_whole_head(before + after)
    head.kind = object()
    if after and head.headers.keys.count("content-length") == 1 and (
            "transfer-encoding" not in head.headers):
        head.before, head.after = before, after
    return head


def parse_whole_head(data: bytes) -> Head:
    """A request head, none of it remembered.  Raises RequestError.

    http.server leaves this to the email parser, which folds lines, accepts bare
    CR and drops whatever follows a line without a colon (gh-114782).
    """
    text = data.decode("latin-1")
    lines = text[:-4].split("\r\n")
    if len(lines[0]) > MAX_REQUEST_LINE_BYTES:
        raise RequestError(414, "request line longer than %d bytes" % MAX_REQUEST_LINE_BYTES,
                           close=True)
    match = REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise RequestError(400, "malformed request line", close=True)
    method, target, minor = match.groups()
    if BAD_IN_TARGET.search(target) or not (target.startswith("/") or target == "*"):
        raise RequestError(400, "the request target must be a path", close=True)
    if len(lines) - 1 > MAX_HEADERS_COUNT:
        raise RequestError(431, "more than %d headers" % MAX_HEADERS_COUNT, close=True)
    try:
        headers = Headers(parse_header_lines(lines[1:], len(data)))
    except ValueError as error:
        raise RequestError(400, str(error), close=True) from None
    hosts = headers.all("host")
    if len(hosts) > 1 or (minor == "1" and not hosts):
        raise RequestError(400, "exactly one Host header is needed", close=True)
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise RequestError(400, "malformed Host header", close=True)
    return Head(method, target, int(minor), headers)


def split_response_head(data: bytes, start: int = 0) -> Optional[tuple[StatusHead, bytes]]:
    """The head of an answer and what is behind it; None where its end is not there.

    There is none before ``start``.  Raises UpstreamMalformed.
    """
    end = data.find(b"\r\n\r\n", start)
    if end >= 0:
        # As a rule.  A line feed alone, which might end the head earlier, is in no good line.
        try:
            lines = data[:end].decode("latin-1").split("\r\n")
            return parse_response_lines(lines, end), data[end + 4:]
        except UpstreamMalformed:
            pass
    match = HEAD_END.search(data, start)
    return match and (parse_response_head(data[:match.end()]), data[match.end():])


def parse_response_head(data: bytes) -> StatusHead:
    """A response head, up to and with its blank line.  Raises UpstreamMalformed.

    Bare LF as a line end is tolerated here, as every client tolerates it.
    """
    first, *lines = [line.rstrip("\r") for line in data.decode("latin-1").split("\n")]
    return parse_response_lines([first, *filter(None, lines)], len(data))


def parse_response_lines(lines: Sequence[str], head_bytes: int) -> StatusHead:
    """The lines of a response head.  Raises UpstreamMalformed."""
    version, status = known_status_line(lines[0])
    if len(lines) - 1 > MAX_RESPONSE_HEADERS_COUNT:
        raise UpstreamMalformed("upstream sent more than %d headers" % MAX_RESPONSE_HEADERS_COUNT)
    try:
        pairs = parse_header_lines(lines[1:], head_bytes)
    except ValueError as error:
        raise UpstreamMalformed("upstream sent a %s" % error) from None
    return StatusHead(version, status, Headers(pairs, head_bytes))


def parse_status_line(line: str) -> tuple[int, int]:
    """The minor version and the status.  Raises UpstreamMalformed."""
    match = STATUS_LINE.fullmatch(line)
    if match is None:
        raise UpstreamMalformed("upstream sent something that is not HTTP")
    return int(match.group(1)), int(match.group(2))


known_status_line = Known(parse_status_line, 4).__getitem__  # one may be long


def encode_head(start_line: str, pairs: Iterable[tuple[str, str]]) -> bytes:
    """A head as bytes."""
    return header_lines(pairs, start_line + "\r\n", "\r\n")


def header_lines(pairs: Iterable[tuple[str, str]], before: str = "", behind: str = "") -> bytes:
    """Headers as lines.  A name or value that could break it out of its line is left out."""
    text = "".join([before, *map(HEADER_TEXTS.__getitem__, pairs), behind])
    if len(text) > MAX_KEPT_HEAD_BYTES:
        HEADER_TEXTS.clear()  # what is kept has a bound in bytes, too
    return text.encode("latin-1", "replace")


def header_text(pair: tuple[str, str]) -> str:
    """A header as its line; "" for one that somebody could read as something else."""
    name, value = pair
    if TOKEN.fullmatch(name) is None or BAD_IN_HEAD.search(value):
        return ""
    return "%s: %s\r\n" % pair


HEADER_TEXTS = Known(header_text, HEADER_LINES_KEPT)


def encode_chunk(data: bytes) -> bytes:
    """One chunk; never of nothing, since that would read as the end of the body."""
    assert data, "an empty chunk ends the body"
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
LAST_LINES = LAST_CHUNK.split(b"\r\n")


@lru_cache(maxsize=2)
def http_date(seconds: int) -> str:
    """The Date header's form (RFC 9110 section 5.6.7), in English whatever the locale.

    >>> http_date(784111777)
    'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    now = time.gmtime(seconds)
    return "%s, %02d %s %04d %02d:%02d:%02d GMT" % (
        ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[now.tm_wday], now.tm_mday,
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov",
         "Dec")[now.tm_mon - 1], now.tm_year, now.tm_hour, now.tm_min, now.tm_sec)


def framed_head(response: HttpResponse, head: Head, keep: bool,
                wall_clock: Callable[[], float]) -> bytes:
    """An answer's head with its framing: the one place where downstream heads are made."""
    status, pairs, ours = response.status, response.headers, ""
    if "date" not in map(str.lower, map(NAME_OF, pairs)):
        ours = "Date: %s\r\n" % http_date(int(wall_clock()))
    if status not in (204, 304):
        if response.length is not None:
            ours += "Content-Length: %d\r\n" % response.length
        elif head.version == 1:
            ours += "Transfer-Encoding: chunked\r\n"
    if not keep:
        ours += "Connection: close\r\n"
    elif head.version == 0:
        ours += "Connection: keep-alive\r\n"
    return header_lines(pairs, STATUS_LINES[status], ours + "\r\n")


def status_line(status: int) -> str:
    """The first line of an answer's head."""
    return "HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, "Status"))


STATUS_LINES = Known(status_line, 64)


class NoBody:
    """The body of an answer that has none, or of a request that announced none."""

    done = True
    excess = b""

    def feed(self, data: bytes) -> bytes:
        """Everything fed belongs to the next message."""
        self.excess += data
        return b""

    def feed_eof(self) -> None:
        """An end of the connection is fine."""


# In the place of a request's body while nothing is known of it.
NO_BODY = NoBody()


class LengthBody:
    """A body of a known number of bytes."""

    __slots__ = ("remaining", "done", "excess")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0
        self.excess = b""

    def feed(self, data: bytes) -> bytes:
        """The part of ``data`` that belongs to the body; the rest is in ``excess``."""
        remaining = self.remaining - len(data)
        if remaining < 0:
            self.excess += data[remaining:]
            data, remaining = data[:remaining], 0
        self.remaining = remaining
        self.done = remaining == 0
        return data

    def feed_eof(self) -> None:
        """Raises EOFError where bytes are missing; http.client is silent here (gh-115997)."""
        if not self.done:
            raise EOFError("%d bytes short" % self.remaining)


class UntilCloseBody:
    """An answer's body that ends with the connection (HTTP/1.0): its end proves nothing."""

    def __init__(self) -> None:
        self.done = False
        self.excess = b""

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data

    def feed_eof(self) -> None:
        """The regular end."""
        self.done = True


class ChunkedBody:
    """RFC 9112 section 7.1, strict: hex digits, CRLF, bounded lines and trailers.

    ``feed`` returns payload and raises ValueError; bytes after the end are in
    ``excess``.  Trailers are dropped.

    >>> ChunkedBody().feed(b"3\\r\\nabc\\r\\n0\\r\\n\\r\\n")
    b'abc'
    """

    # What is looked at for each event is the object's own: what stands in the class costs
    # CPython a look at both.
    excess = b""
    _at = 0
    _remaining = 0
    _trailer_bytes = 0

    def __init__(self) -> None:
        self.done = False
        self._pending = b""
        # Whether a size line comes next, and all that is pending begins with it.
        self._between = True

    def feed(self, data: bytes) -> bytes:
        """The payload in ``data``, which may begin and end anywhere."""
        if self._between and not self._pending:
            # As a rule a read of an event stream is a chunk (0.3 us instead of 5 in steps).
            size, _, rest = data.partition(b"\r\n")
            payload = rest[:-2]
            if payload and size == PLAIN_CHUNK_SIZE(len(payload)) and rest.endswith(b"\r\n"):
                return payload
        pieces: list[bytes] = []
        if self._pending:
            data, self._pending = self._pending + data, b""
        if self._between:
            data = self._whole_chunks(data, pieces)
        if data:
            self._pending, self._at = data, 0
            while self._at < len(self._pending) and not self.done and self._step(self, pieces):
                # Once more behind the rest of a cut chunk, not after each: that would be quadratic.
                if self._between and len(pieces) < 2:
                    self._pending = self._whole_chunks(self._pending[self._at:], pieces)
                    self._at = 0
            self._pending = self._pending[self._at:]
            if self.done:
                self.excess, self._pending = self.excess + self._pending, b""
        return b"".join(pieces)

    def feed_eof(self) -> None:
        """Raises EOFError unless the last chunk and the trailers have been seen."""
        if not self.done:
            raise EOFError("no last chunk")

    def _whole_chunks(self, data: bytes, pieces: list[bytes]) -> bytes:
        """Take the chunks that are all there at once, where lines and chunks are the same.

        No payload of theirs has a line end of two bytes, each size is its payload's: what
        is not so, all in all, is left to the steps (0.2 us a chunk instead of 5).
        """
        lines = data.split(b"\r\n")
        payloads = lines[1:-1:2]
        if not all(payloads):
            del payloads[payloads.index(b""):]
        count = 2 * len(payloads)
        if lines[:count:2] != list(map(PLAIN_CHUNK_SIZE, map(len, payloads))):
            return data
        pieces += payloads
        rest = lines[count:]
        if rest == LAST_LINES:
            self.done, self._between = True, False
            return b""
        return b"\r\n".join(rest)

    # Each step uses what is pending from `_at` on, and says whether the next one
    # may be tried.

    def _line(self, limit: int) -> Optional[bytes]:
        """The next CRLF line out of what is pending, or None when it is not all there."""
        end = self._pending.find(b"\n", self._at, self._at + limit + 1)
        if end < 0:
            if len(self._pending) - self._at > limit:
                raise ValueError("chunk line longer than %d bytes" % limit)
            return None
        line = self._pending[self._at:end]
        self._at = end + 1
        if not line.endswith(b"\r"):
            raise ValueError("chunk line without CRLF")
        return line[:-1]

    def _size_line(self, pieces: list[bytes]) -> bool:
        line = self._line(MAX_CHUNK_LINE_BYTES)
        if line is None:
            return False
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ValueError("malformed chunk size")
        self._between = False
        self._remaining = int(match.group(1), 16)
        self._step = ChunkedBody._data if self._remaining else ChunkedBody._trailer
        return True

    def _data(self, pieces: list[bytes]) -> bool:
        piece = self._pending[self._at:self._at + self._remaining]
        if piece:
            pieces.append(piece)
            self._at += len(piece)
            self._remaining -= len(piece)
        if self._remaining:
            return False
        self._step = ChunkedBody._data_end
        return True

    def _data_end(self, pieces: list[bytes]) -> bool:
        end = self._pending[self._at:self._at + 2]
        if not b"\r\n".startswith(end):
            raise ValueError("chunk longer than its size")
        if len(end) < 2:
            return False
        self._at += 2
        self._between = True
        self._step = ChunkedBody._size_line
        return True

    def _trailer(self, pieces: list[bytes]) -> bool:
        line = self._line(MAX_TRAILER_BYTES)
        if line is None:
            return False
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise ValueError("trailers longer than %d bytes" % MAX_TRAILER_BYTES)
        if line:
            parse_header_line(line.decode("latin-1"))
            return True
        self.done = True
        return False

    # Functions and no methods, which would close a circle.
    _step: Callable[[Any, list[bytes]], bool] = staticmethod(_size_line)


BodyDecoder = Union[NoBody, LengthBody, UntilCloseBody, ChunkedBody]


def content_length(headers: Headers) -> Optional[int]:
    """The announced length, or None.  Raises ValueError unless it is one plain number.

    ``int()`` would also take ``+5``, ``5_0`` and digits of other scripts.
    """
    values = headers.all("content-length")
    if not values:
        return None
    if len(values) > 1 or CONTENT_LENGTH.fullmatch(values[0]) is None:
        raise ValueError("malformed Content-Length")
    return int(values[0])


def request_body_decoder(head: Head) -> BodyDecoder:
    """How a request's body is framed (RFC 9112 section 6).  Raises RequestError.

    What two parsers could read in two ways is refused, and the connection with it.
    """
    codings = head.headers.all("transfer-encoding")
    try:
        length = content_length(head.headers)
    except ValueError as error:
        raise RequestError(400, str(error), close=True) from None
    if codings:
        if length is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding", close=True)
        if head.version == 0 or [coding.lower() for coding in codings] != ["chunked"]:
            raise RequestError(400, "unsupported Transfer-Encoding", close=True)
        return ChunkedBody()
    if length is not None:
        return LengthBody(length)
    return NoBody()


def told_length(headers: Headers) -> Optional[int]:
    """The Content-Length of an answer to HEAD, which frames nothing; None for a malformed one."""
    try:
        return content_length(headers)
    except ValueError:
        return None


class Inflater:
    """Undoes gzip or deflate in bounded steps, so that a bomb costs no memory."""

    def __init__(self, coding: str) -> None:
        # Some servers send raw deflate where zlib's wrapping is due.
        self._raw_allowed = coding == "deflate"
        self._engine = zlib.decompressobj(47)  # gzip or zlib, by the header
        self._begun = False
        self._first = b""
        self.waiting = b""

    CODINGS = ("gzip", "x-gzip", "deflate")

    def feed(self, data: bytes) -> bytes:
        """Up to MAX_INFLATED_STEP_BYTES; what is left waits in ``waiting``.  Raises ValueError."""
        data = self.waiting + data
        self.waiting = b""
        if not self._begun and len(data) == 1:
            # One byte does not tell raw deflate from zlib's wrapping.
            self._first, data = data, b""
            self._begun = True
            return b""
        data, self._first = self._first + data, b""
        self._begun = True
        if self._engine.eof and data:
            # A gzip file may have several members, one after the other.
            self._engine = zlib.decompressobj(47)
        try:
            result = self._engine.decompress(data, MAX_INFLATED_STEP_BYTES)
        except zlib.error as error:
            if not self._raw_allowed:
                raise ValueError("bad compressed data: %s" % error) from None
            self._raw_allowed = False
            self._engine = zlib.decompressobj(-15)
            return self.feed(data)
        self._raw_allowed = False
        self.waiting = self._engine.unconsumed_tail or self._engine.unused_data
        return result

    def feed_eof(self) -> None:
        """Raises EOFError where the compressed data have no end."""
        if self._begun and not self._engine.eof:
            raise EOFError("compressed data are cut")


# -- header sets up and down

NO_NAMES: frozenset[str] = frozenset()


def lower_names(pairs: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The names of headers, in lower case."""
    return frozenset(name.lower() for name, _ in pairs)


def named_by_connection(connection: str) -> frozenset[str]:
    """The header names that a Connection header's value makes hop-by-hop (RFC 9110 section 7.6.1).

    Less those that are so anyway: "keep-alive" is in most answers, and nothing is left.
    """
    return frozenset(list_members(connection)) - HOP_BY_HOP


def upstream_headers(
    headers: Headers,
    host: str,
    body_length: Optional[int],
    credentials: Sequence[tuple[str, str]],
    betas: BetaRule,
    extra: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """The headers that go upstream, in the client's order and spelling.

    What must differ is replaced in its place: Host, the body's length, the
    credential, Accept-Encoding (an event stream is to be read as it comes).
    ``credentials`` are the pairs to send; ``extra`` are the provider's own
    headers, which win.  Order as contract section 5.
    """
    dropped = named_by_connection(headers.line("connection"))
    # What takes the place of a header; nothing of it, once it has been sent.
    replaced: dict[str, Optional[tuple[str, str]]] = {
        "host": ("Host", host), "accept-encoding": ("Accept-Encoding", "identity")}
    if body_length is not None:
        replaced["content-length"] = ("Content-Length", str(body_length))
    merged_betas = merge_betas(headers, betas)
    if merged_betas is not None:
        replaced["anthropic-beta"] = ("anthropic-beta", merged_betas) if merged_betas else None
    if "anthropic-version" not in headers or "anthropic-version" in dropped:
        replaced["anthropic-version"] = ("anthropic-version", ANTHROPIC_VERSION)
    result: list[tuple[str, str]] = []
    unsent = list(credentials)
    for key, pair in zip(headers.keys, headers.pairs):
        if key in replaced:
            new = replaced[key]
            if new is not None:
                result.append((pair[0], new[1]))
                replaced[key] = None
        elif key in CREDENTIAL_HEADERS:
            # The client's own keep their places; an account's takes the first.
            if pair in unsent:
                result.append(pair)
                unsent.remove(pair)
            elif unsent and unsent[0] not in headers.pairs:
                result.append(unsent.pop(0))
        elif goes_upstream(key) and key not in dropped:
            result.append(pair)
    result.extend(unsent)
    result.extend(pair for pair in replaced.values() if pair is not None)
    if extra:
        result = pairs_without(result, lower_names(extra)) + list(extra)
    return result


def goes_upstream(key: str) -> bool:
    """Whether a client's header with this name, in lower case, goes up as it is."""
    return key not in NOT_UPSTREAM and not key.startswith(NOT_UPSTREAM_PREFIXES)


def goes_downstream(key: str) -> bool:
    """Whether an upstream's header with this name, in lower case, goes down."""
    return not (key in NOT_DOWNSTREAM or key in OWN_HEADERS
                or key.startswith(NOT_DOWNSTREAM_PREFIXES))


class NamePicker:
    """Picks headers by their names, of which ``picks`` tells.

    The answers of an upstream differ in their values: which places are picked is asked
    once for each list of names (4 us an answer).

    Here as in other dicts that threads share, with keys that they make, ``get`` is not
    used: CPython 3.13 without the interpreter's lock then waits for itself (16 clients:
    785 us a request instead of 332).
    """

    def __init__(self, picks: Callable[[str], Any]) -> None:
        self._picks = picks
        self._known: dict[tuple[Any, ...], list[Any]] = {}

    def __call__(self, headers: Headers, less: frozenset[str] = NO_NAMES,
                 connection: str = "") -> list[tuple[str, str]]:
        """Its headers of an answer, without those of the names in ``less`` and ``connection``."""
        key = headers.keys, less, connection
        try:
            places = self._known[key]
        except KeyError:
            places = self._places(*key)  # the first with these names
        return list(compress(headers.pairs, places))

    def _places(self, names: tuple[str, ...], less: frozenset[str], connection: str) -> list[Any]:
        left_out = less | named_by_connection(connection)
        places = [name not in left_out and self._picks(name) for name in names]
        # What is kept has a bound in bytes, too.
        if sum(map(len, (*names, *less, connection))) <= MAX_KEPT_HEAD_BYTES:
            remember(self._known, (names, less, connection), places, NAME_LISTS_KEPT)
        return places


going_downstream = NamePicker(goes_downstream)


def downstream_headers(headers: Headers, decoded: bool,
                       less: frozenset[str] = NO_NAMES, secret: str = "") -> list[tuple[str, str]]:
    """The upstream's end-to-end headers, duplicates kept, less what is ours, and ``less``.

    ``decoded`` says that the body's Content-Encoding has been undone; ``secret``, the
    account's key, is masked.
    """
    pairs = going_downstream(headers, less | {"content-encoding"} if decoded else less,
                             headers.line("connection"))
    if secret and secret in "\n".join(map(VALUE_OF, pairs)):
        pairs = [(name, value.replace(secret, "*" * len(secret))) for name, value in pairs]
    return pairs


def pairs_without(
    pairs: Iterable[tuple[str, str]],
    names: Container[str],
) -> list[tuple[str, str]]:
    """Header pairs less those of some names, which are in lower case."""
    return [pair for pair in pairs if pair[0].lower() not in names]


EVENT_STREAM = re.compile(r"\s*text/event-stream\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)
telling_framing = NamePicker(frozenset((
    "connection", "content-encoding", "content-type", "transfer-encoding")).__contains__)


class Framing:
    """What a response head says of its body, but for the length, and of the connection.

    ``body`` makes what takes the body; None where a length may frame it (RFC 9112
    section 6.3).  ``coding`` is its Content-Encoding or "", ``inflates`` whether we can
    undo it.  Raises UpstreamMalformed.
    """

    __slots__ = ("body", "closes", "coding", "inflates", "is_event_stream", "is_head")

    def __init__(self, is_head: bool, version: int, status: int, *pairs: tuple[str, str]) -> None:
        headers = Headers(pairs)
        codings = list_members(headers.line("transfer-encoding"))
        self.body: Optional[Callable[[], BodyDecoder]] = ChunkedBody if codings else None
        if is_head or status in (204, 304):
            self.body = NoBody
        elif codings and codings != ("chunked",):
            raise UpstreamMalformed("upstream sent an unsupported Transfer-Encoding")
        self.closes = wants_close(version, headers)
        self.coding = headers.get("content-encoding").lower()
        self.inflates = self.coding in Inflater.CODINGS
        self.is_event_stream = EVENT_STREAM.fullmatch(headers.get("content-type")) is not None
        self.is_head = is_head


KNOWN_FRAMINGS: dict[tuple[Any, ...], Framing] = {}


def framing_of(method: str, head: StatusHead) -> Framing:
    """The framing of an answer: the same for most of an upstream's (3 us less)."""
    pairs = telling_framing(head.headers)
    key = method == "HEAD", head.version, head.status, *pairs
    try:
        return KNOWN_FRAMINGS[key]
    except KeyError:
        framing = Framing(*key)
    if sum(len(name) + len(value) for name, value in pairs) <= MAX_KEPT_HEAD_BYTES:
        remember(KNOWN_FRAMINGS, key, framing, NAME_LISTS_KEPT)
    return framing


def sized_body(headers: Headers) -> BodyDecoder:
    """What takes a body whose length frames it, if anything does.  Raises UpstreamMalformed."""
    try:
        length = content_length(headers)
    except ValueError:
        raise UpstreamMalformed("upstream sent a malformed Content-Length") from None
    return UntilCloseBody() if length is None else LengthBody(length)


class BetaRule(NamedTuple):
    """A provider's ``betas``: tokens to add, and globs of tokens to drop."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def merge_betas(headers: Headers, rule: BetaRule) -> Optional[str]:
    """The anthropic-beta value to send; "" for none; None where the client's line stays.

    >>> merge_betas(Headers([("anthropic-beta", "b, a")]), BetaRule(add=("a",)))
    'a,b'
    """
    if "anthropic-beta" not in headers and not rule.add:
        return None
    tokens = headers.tokens("anthropic-beta")
    wanted = [token for token in dict.fromkeys(list(rule.add) + tokens)
              if not any(fnmatch.fnmatchcase(token, glob) for glob in rule.drop)]
    if wanted == tokens and len(headers.all("anthropic-beta")) <= 1:
        return None
    return ",".join(wanted)


# -- when to come back

RFC_3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?"
                      r"(?:[Zz]|([+-])(\d\d):?(\d\d))", re.ASCII)
DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{0,9})?")
# Numbers above it are unix times, not lengths: 31 years; above the second, in ms.
UNIX_TIME_FROM = 1e9
UNIX_MILLISECONDS_FROM = 1e12


def told_seconds(text: str, wall_now: float) -> Optional[float]:
    """Seconds from now of a moment or a length as upstreams write it, or None.

    Takes seconds with decimals, unix times, HTTP dates and RFC 3339; what is past is 0.

    >>> told_seconds("1.5", 0.0), told_seconds("2023-11-14T22:13:30Z", 1700000000.0)
    (1.5, 10.0)
    """
    text = text.strip()
    if DECIMAL.fullmatch(text):
        value = float(text)
        if value >= UNIX_MILLISECONDS_FROM:
            value /= 1000
        return max(0.0, value - wall_now) if value >= UNIX_TIME_FROM else value
    moment = parse_moment(text)
    return None if moment is None else max(0.0, moment - wall_now)


@lru_cache(maxsize=64)
def parse_moment(text: str) -> Optional[float]:
    """An HTTP date or RFC 3339 as unix seconds, or None; a limit's reset stands for minutes."""
    match = RFC_3339.fullmatch(text)
    try:
        if match is not None:
            moment = datetime.datetime(*map(int, match.groups()[:6]), tzinfo=datetime.timezone.utc)
            sign, hours, minutes = match.groups()[6:]
            if sign:
                offset = datetime.timedelta(hours=int(hours), minutes=int(minutes))
                moment = moment - offset if sign == "+" else moment + offset
        else:
            moment = email.utils.parsedate_to_datetime(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.timezone.utc)
        return moment.timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None  # no moment at all, which upstreams do send ("soon", "-5", "nan")


def retry_after_seconds(headers: Headers, wall_now: float) -> Optional[float]:
    """What ``retry-after`` (or the SDKs' ``retry-after-ms``) asks for, or None."""
    milliseconds = headers.get("retry-after-ms").strip()
    if DECIMAL.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    return told_seconds(headers.get("retry-after"), wall_now)


class RateLimit(NamedTuple):
    """One limit as an upstream tells it; None for what it did not say.

    ``reset_in`` is in seconds from the answer that told it.
    """

    limit: Optional[float] = None
    remaining: Optional[float] = None
    reset_in: Optional[float] = None
    status: str = ""

    @property
    def rejected(self) -> bool:
        """Whether the upstream says that it takes nothing until the reset."""
        return self.status == "rejected"

    def as_dict(self, age_seconds: float) -> dict:
        """For people: what is known of it, the reset in seconds from now."""
        told = {"limit": self.limit, "remaining": self.remaining, "status": self.status or None,
                "resets_in_seconds": None if self.reset_in is None else
                round(max(0.0, self.reset_in - age_seconds), 3)}
        return {name: value for name, value in told.items() if value is not None}


LIMIT_HEADER = re.compile(
    r"anthropic-ratelimit-([a-z0-9_-]{1,40})-(limit|remaining|reset|status)")
telling_limits = NamePicker(LIMIT_HEADER.fullmatch)
LIMIT_STATUS = re.compile("[a-z_]{1,30}")
UNIFIED_LIMIT = "unified"
# Paid use beyond a subscription: while it is allowed, a rejected limit rejects nothing.
OVERAGE_LIMIT = "unified-overage"


def rate_limits(headers: Headers, wall_now: float) -> dict[str, RateLimit]:
    """The limits that an answer's ``anthropic-ratelimit-*`` headers tell, by name.

    The names are requests, tokens, input-tokens, output-tokens, and for
    subscriptions unified, unified-5h, unified-7d, unified-overage.
    """
    told: dict[str, dict[str, Any]] = {}
    for key, (_, value) in zip(headers.keys, headers.pairs):
        match = LIMIT_HEADER.fullmatch(key)
        if match is None:
            continue
        name, member = match.groups()
        if name not in told and len(told) >= MAX_LIMITS_COUNT:
            continue
        known = told.setdefault(name, {})
        if member == "reset":
            known["reset_in"] = told_seconds(value, wall_now)
        elif member == "status":
            # A word such as allowed_warning; it is shown, so that nothing else is kept.
            word = LIMIT_STATUS.fullmatch(value.lower())
            known["status"] = word.group() if word else ""
        elif DECIMAL.fullmatch(value):
            known[member] = float(value)
    return {name: RateLimit(**members) for name, members in told.items()}


def used_up(limits: Mapping[str, RateLimit]) -> list[RateLimit]:
    """The limits that leave nothing; a window of the unified limit is not one by itself."""
    paid = limits.get(OVERAGE_LIMIT, RateLimit()).status.startswith("allowed")
    return [limit for name, limit in limits.items()
            if not name.startswith(UNIFIED_LIMIT + "-")
            and (limit.rejected and not paid or limit.remaining == 0)]


class ToldLimits:
    """The lines in which an answer tells of its account's limits, and when it came.

    They are worked out once somebody asks (20 us): that is who looks at an account,
    and the next call where something may be used up, which one look tells.
    """

    _found: Optional[dict[str, RateLimit]] = None

    def __init__(self, pairs: list[tuple[str, str]], wall_now: float) -> None:
        self._pairs, self._wall_now = pairs, wall_now
        text = "\n" + "\n".join(map(VALUE_OF, pairs))
        # A remaining count of 0, or the status "rejected": what can, and little else.
        self.may_be_used_up = "\n0" in text or "\nr" in text or "\nR" in text
        if len(text) + 70 * len(pairs) > MAX_KEPT_HEAD_BYTES:  # names have up to 70
            self.by_name()  # what is kept has a bound in bytes, too

    def by_name(self) -> dict[str, RateLimit]:
        """What :func:`rate_limits` makes of them."""
        if self._found is None:
            self._found = rate_limits(Headers(self._pairs), self._wall_now)
            self._pairs = []
        return self._found

    def used_up(self) -> Sequence[RateLimit]:
        """The limits that leave nothing."""
        return used_up(self.by_name()) if self.may_be_used_up else ()


def told_limits(headers: Headers, wall_now: float) -> Optional[ToldLimits]:
    """What an answer tells of limits, None for nothing."""
    pairs = telling_limits(headers)
    return ToldLimits(pairs, wall_now) if pairs else None


def told_wait(headers: Headers, limits: Optional[ToldLimits], wall_now: float) -> Optional[float]:
    """How long an answer asks to wait: ``retry-after``, else the limits' resets, else None.

    Of several resets the latest of those that are used up counts, else the soonest.
    """
    told = retry_after_seconds(headers, wall_now)
    if told is not None:
        return told
    if limits is None:
        return None
    resets = [limit.reset_in for limit in limits.used_up() if limit.reset_in is not None]
    if resets:
        return max(resets)
    return min((limit.reset_in for limit in limits.by_name().values()
                if limit.reset_in is not None), default=None)


def retry_after_text(seconds: float) -> str:
    """The ``retry-after`` that goes down: whole seconds, at least 1.

    61 s to 10 min are told as 60: Claude Code comes back after 60 s and gives up
    at once above (clients.md, section 6).

    >>> [retry_after_text(seconds) for seconds in (0.0, 1.2, 61.0, 600.0, 601.0)]
    ['1', '2', '60', '60', '601']
    """
    whole = max(1, math.ceil(seconds))
    return "60" if 60 < whole <= 600 else str(whole)


# -- credentials


def presented_credentials(headers: Headers) -> list[tuple[str, str, str]]:
    """What a client offers as (header name as sent, its value, the credential in it).

    ``Authorization`` counts as ``Bearer KEY`` with the scheme in any case, or as
    a bare key; other schemes are not keys (their credential is "").  An empty
    header offers nothing.
    """
    return [(name, value, bearer_credential(value) if key == "authorization" else value)
            for key, (name, value) in zip(headers.keys, headers.pairs)
            if key in CREDENTIAL_HEADERS and value]


def bearer_credential(value: str) -> str:
    """The key in an Authorization value, or "".

    >>> bearer_credential("bearer k"), bearer_credential("k"), bearer_credential("Basic k")
    ('k', 'k', '')
    """
    scheme, space, rest = value.partition(" ")
    if not space:
        return "" if scheme.lower() in ("bearer", "basic") else scheme
    rest = rest.strip()
    return rest if scheme.lower() == "bearer" and " " not in rest else ""


class KeyRing:
    """The keys that clients may present; looked up in constant time over all of them.

    Digests are compared, so that neither a key's length nor its first differing
    byte can be measured.
    """

    def __init__(self, keys: Sequence[tuple[str, Secret]]) -> None:
        self._digests = [(name, self._digest(key.reveal())) for name, key in keys]

    @staticmethod
    def _digest(text: str) -> bytes:
        return hashlib.sha256(encode_lossless(text)).digest()

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, credential: str) -> Optional[str]:
        """The name of the key that ``credential`` is, or None."""
        offered = self._digest(credential)
        found = None
        for name, digest in self._digests:
            if hmac.compare_digest(offered, digest):
                found = name
        return found if credential else None


# -- the browser guard


def split_host(value: str) -> tuple[str, Optional[int]]:
    """A Host value as (name in lower case, without brackets; port or None)."""
    match = HOST.fullmatch(value)
    if match is None:
        return value.lower(), None
    name, port = match.groups()
    return name.strip("[]").lower(), int(port) if port else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback.

    >>> is_loopback("127.0.0.2"), is_loopback("[::1]"), is_loopback("127.evil.example")
    (True, True, False)
    """
    name = host.strip("[]").lower().rstrip(".")
    return name in LOOPBACK_NAMES or re.fullmatch(r"127(\.[0-9]{1,3}){3}", name) is not None


def is_address(host: str) -> bool:
    """Whether a host is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_own_origin(origin: str, host_header: str) -> bool:
    """Whether a page of ``origin`` asks the very host and port that it came from.

    >>> is_own_origin("http://localhost:8045", "LOCALHOST:8045")
    True
    >>> is_own_origin("http://localhost:3000", "localhost:8045")
    False
    """
    scheme, _, rest = origin.partition("://")
    usual_port = {"http": 80, "https": 443}.get(scheme.lower())
    name, port = split_host(rest)
    host, host_port = split_host(host_header)
    return (usual_port is not None and name != ""
            and (name, port or usual_port) == (host, host_port or usual_port))


def is_navigation(headers: Headers) -> bool:
    """Whether the user is led to a page of ours, in the place of the one that leads there."""
    return (headers.get("sec-fetch-mode").lower() == "navigate"
            and headers.get("sec-fetch-dest").lower() == "document")


def browser_refusal(
    headers: Headers,
    auth_off: bool,
    cors_origins: Sequence[str],
    allowed_hosts: Sequence[str],
    is_page: bool = False,
) -> str:
    """Why a request that a web page may have made is refused, or "".

    Any page in the user's browser can reach a local port; DNS rebinding even
    makes it the page's own origin.  So without keys the Host must be ours, and
    an Origin must be listed, or be that of our own pages: the Host itself, where
    that is ours and no name that was rebound.  Without an Origin the mark of
    another site (to browsers another local port is the same site) is refused,
    but for a link to one of our pages (``is_page``), which the other site cannot
    see.  ``Sec-Fetch-Mode`` alone says nothing: Node's own fetch sends it.
    """
    host, _ = split_host(headers.get("host"))
    allowed = [split_host(name)[0] for name in allowed_hosts]
    is_ours = is_loopback(host) or host in allowed
    if auth_off and not is_ours:
        return "host %s is not allowed; add it to allowed_hosts" % json.dumps(host)
    origin = headers.get("origin")
    if origin:
        # An address cannot be rebound, so where keys are asked for it is as good as a
        # listed name: a gateway of the local network is opened by its address.
        own = is_ours or not auth_off and is_address(host)
        if origin in cors_origins or own and is_own_origin(origin, headers.get("host")):
            return ""
        return "this origin is not in cors_origins"
    if headers.get("sec-fetch-site").lower() not in ("cross-site", "same-site"):
        return ""
    return "" if is_page and is_navigation(headers) else "cross-site requests are refused"


def cors_headers(origin: str, exposed: Sequence[str]) -> list[tuple[str, str]]:
    """Exact CORS for an answer to one listed origin; ``exposed`` are its header names."""
    return [("Access-Control-Allow-Origin", origin), ("Vary", "Origin"),
            ("Access-Control-Expose-Headers", ", ".join(dict.fromkeys(exposed)))]


def is_preflight(headers: Headers) -> bool:
    """Whether an OPTIONS is a browser's question before a request; it carries no key."""
    return "origin" in headers and "access-control-request-method" in headers


def preflight_headers(headers: Headers) -> list[tuple[str, str]]:
    """The answer to a listed origin's preflight: what it asked for, and no more."""
    pairs = [("Access-Control-Allow-Origin", headers.get("origin")), ("Vary", "Origin"),
             ("Access-Control-Max-Age", "600")]
    method = headers.get("access-control-request-method")
    if TOKEN.fullmatch(method):
        pairs.append(("Access-Control-Allow-Methods", method))
    names = [name for name in headers.tokens("access-control-request-headers")
             if TOKEN.fullmatch(name)]
    if names:
        pairs.append(("Access-Control-Allow-Headers", ", ".join(names)))
    return pairs


# ---- 5. Server-sent events ---------------------------------------------------

CR, LF = b"\r\n"
# An event as it is sent as a rule: its type, its data.
PLAIN_EVENT = re.compile(rb"event: ?([^\n]*)\ndata: ?([^\n]*)")


class SseDecoder:
    """Event stream bytes to events (WHATWG HTML section 9.2), any split, linear time.

    Fragments of an unfinished event are joined once.  An event larger than
    ``max_event_bytes`` ends the decoding: ``overflowed`` is then true and nothing
    more comes out, while whoever relays the bytes goes on undisturbed.
    """

    overflowed = False
    at_start = True  # a byte order mark may come
    _fragments_bytes = 0

    def __init__(self, max_event_bytes: int = MAX_SSE_EVENT_BYTES) -> None:
        # Whether bytes without a CR may be read as they are: an event begins with them.
        self.is_between = True
        # The last byte that was fed, where it means something: it is CR, or an event is open.
        self._last = LF
        self._max_event_bytes = max_event_bytes
        self._fragments: list[bytes] = []

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that ``data`` completes."""
        return self.events(self.text(data))

    def text(self, data: bytes) -> bytes:
        """What ``data`` completes, from where an event begins and with LF alone, or b""."""
        if not data or self.is_between and CR not in data:
            return data
        last, self._last = self._last, data[-1]
        if last == CR or CR in data:
            data = with_line_feeds(data, last == CR)
        if self.overflowed:
            return b""
        crosses = self._fragments and data.startswith(b"\n") and (
            self._fragments[-1].endswith(b"\n"))
        if not crosses and data.find(b"\n\n") < 0:
            if data:
                self._keep(data)
            return b""
        if self._fragments:
            data = b"".join([*self._fragments, data])
            self._fragments, self._fragments_bytes = [], 0
        self.is_between = self._last != CR
        return data

    def events(self, text: bytes) -> list[SseEvent]:
        """The events of what ``text`` gave; what comes behind the last one is kept."""
        return list(filter(None, map(parse_event, self.blocks(text))))

    def blocks(self, text: bytes) -> list[bytes]:
        """The same, each event as its text: to be parsed, or not."""
        if self.at_start and text.find(b"\n\n") >= 0:
            self.at_start, text = False, text[3 * text.startswith(b"\xef\xbb\xbf"):]
        *blocks, rest = text.split(b"\n\n")
        # Counted with the LF of its last line, as it is in fragments: the bound must
        # not hang on where the reads end.
        if len(text) >= self._max_event_bytes:
            for index, block in enumerate(blocks):
                if len(block) >= self._max_event_bytes:
                    blocks, rest = blocks[:index], text  # which is more than is kept
                    break
        if rest:
            self._keep(rest)
        return blocks

    def between_events(self) -> bytes:
        """What to send after a cut so that the next event begins clean; "" as a rule.

        A half event that has gone down cannot be taken back.  It is closed as a
        ``ping``, which every client of the Messages API skips without reading
        its data; the last ``event`` line of an event wins.
        """
        if not self._fragments and not self.overflowed:
            return b""
        # After a lone CR our LF completes a CRLF: the line is then ended, too.
        return (b"" if self._last == LF else b"\n") + b"event: ping\n\n"

    def _keep(self, fragment: bytes) -> None:
        self.is_between = False
        if self._last != CR:
            self._last = fragment[-1]
        self._fragments.append(fragment)
        self._fragments_bytes += len(fragment)
        if self._fragments_bytes > self._max_event_bytes:
            self.overflowed = True
            self._fragments = []


def parse_event(block: bytes) -> Optional[SseEvent]:
    """The event that the text before a blank line is; None without data, as for a comment."""
    plain = PLAIN_EVENT.fullmatch(block)
    if plain is not None:
        return SseEvent(plain.group(1).decode("utf-8", "replace") or "message", plain.group(2))
    event_type = b""
    data = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event_type = value
    if not data:
        return None
    return SseEvent(event_type.decode("utf-8", "replace") or "message", b"\n".join(data))


def with_line_feeds(data: bytes, follows_cr: bool) -> bytes:
    """CR and CRLF become LF, also where a read ended between the two (``follows_cr``)."""
    if follows_cr and data.startswith(b"\n"):
        data = data[1:]
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def encode_sse_event(event_type: str, value: Any) -> bytes:
    """One event with a JSON object as its data; JSON escapes every line break.

    >>> encode_sse_event("ping", {"type": "ping"})
    b'event: ping\\ndata: {"type":"ping"}\\n\\n'
    """
    data = json.dumps(value, separators=(",", ":"))
    return ("event: %s\ndata: %s\n\n" % (event_type, data)).encode("ascii")


# ---- 6. JSON documents -------------------------------------------------------


def _bounded(numeral: str) -> str:
    # The cheap look first: a sign, a point and an exponent's letter are no digits.
    if len(numeral) > MAX_NUMERAL_DIGITS and sum(map(str.isdigit, numeral)) > MAX_NUMERAL_DIGITS:
        raise ValueError("a number has more than %d digits" % MAX_NUMERAL_DIGITS)
    return numeral


def _bounded_int(numeral: str) -> int:
    return int(numeral if len(numeral) <= MAX_NUMERAL_DIGITS else _bounded(numeral))


def _bounded_float(numeral: str) -> float:
    return float(_bounded(numeral))


def _no_constant(name: str) -> float:
    raise ValueError("%s is not JSON" % name)


JSON_DECODER = json.JSONDecoder(
    parse_int=_bounded_int,
    parse_float=_bounded_float,
    parse_constant=_no_constant,
)
# A value at a place of a text, and where it ends; raw_decode without its own step.
scan_json: Callable[[str, int], tuple[Any, int]] = getattr(JSON_DECODER, "scan_once")
scan_short_json: Callable[[str, int], tuple[Any, int]] = getattr(
    json.JSONDecoder(parse_constant=_no_constant), "scan_once")
JSON_SPACE = re.compile(r"[ \t\n\r]*")


def json_space(text: str, at: int) -> int:
    """Where the white space at ``at`` ends; it may be none."""
    match = JSON_SPACE.match(text, at)
    return at if match is None else match.end()


OBJECT_START = re.compile(rb'\{["} \t\r\n]')
NO_SIGNS = bytes(set(range(256)) - set(b"{[,"))


def parsed_bytes(data: bytes) -> int:
    """Roughly what parsing adds to a document's own size: 3 bytes can make an object of 72.

    Code within strings costs little here: a quote or a line end in it is escaped.
    """
    objects = lists = commas = 0
    # A MB of a conversation takes 0.7 ms; counting each sign in all of it took 3.  Piece by
    # piece, for what is found is listed.
    for at in range(0, len(data), READ_BYTES):
        signs = data[at:at + READ_BYTES].translate(None, NO_SIGNS)
        lists += signs.count(b"[")
        commas += signs.count(b",")
        if b"{" in signs:
            objects += len(OBJECT_START.findall(data, at, at + READ_BYTES))
    return 240 * objects + 64 * lists + 32 * commas


# A member of an object, or an element of a list with None for its key: the key, and where
# the value's text begins and ends.
JsonPart = Tuple[Optional[str], int, int]
# What stands before the first value and before each other one, and the end: a key without
# escapes costs one look.  The group of a list, its key, never takes part.
MEMBER = r'%s[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*'
JSON_OBJECT = (re.compile(MEMBER % r"\{"), re.compile(MEMBER % r"[ \t\n\r]*,"),
               re.compile(r"[ \t\n\r]*\}"))
JSON_LIST = (re.compile(r"\[[ \t\n\r]*(?![\] \t\n\r])((?!))?"),
             re.compile(r"[ \t\n\r]*,[ \t\n\r]*((?!))?"), re.compile(r"[ \t\n\r]*\]"))


def json_members(text: str, at: int) -> tuple[dict, list[int], int]:
    """The object that begins at ``at``, where each of its values ends, and where it does.

    The same for a list, but for its elements.  Decoded at C speed; where values begin is
    found when it is asked for (:func:`json_parts`), which is seldom.  Raises ValueError.
    """
    opening, comma, closing = JSON_OBJECT if text[at] == "{" else JSON_LIST
    values: dict[Optional[str], Any] = {}
    ends: list[int] = []
    match, end = opening.match(text, at), at + 1
    try:
        while True:
            while match is not None:
                values[match[1]], end = scan_json(text, match.end())
                ends.append(end)
                match = comma.match(text, end)
            match = closing.match(text, end)
            if match is not None:
                return values, ends, match.end()
            end = json_space(text, end)
            if ends and text[end:end + 1] != ",":
                raise ValueError("a comma is missing at character %d" % end)
            key, start = json_key(text, end + 1 if ends else end)
            values[key], end = scan_json(text, start)
            ends.append(end)
            match = comma.match(text, end)
    except StopIteration as error:
        raise json.JSONDecodeError("Expecting value", text, error.value) from None


def json_parts(text: str, at: int, ends: Iterable[int]) -> list[JsonPart]:
    """The parts of an object or list that has been read.

    Of ``text`` each character is a byte of the document (:func:`byte_text`).
    """
    before, comma, _ = JSON_OBJECT if text[at] == "{" else JSON_LIST
    parts: list[JsonPart] = []
    last = at
    for end in ends:
        match = before.match(text, last)
        if match is not None:
            key, start = match[1], match.end()
        else:
            key, start = json_key(text, json_space(text, last) + 1)
        if key and not key.isascii():
            spelled = text[last:start].encode("latin-1").decode("utf-8")
            key, _ = json_key(spelled, json_space(spelled, 0) + 1)
        parts.append((key, start, end))
        before, last = comma, end
    return parts


def byte_text(data: bytes) -> str:
    """A document as text of a character for each byte, which costs a byte each.

    JSON's own signs are ASCII, and no other character has a byte of these in UTF-8: only
    strings read differently.
    """
    return data.decode("latin-1")


def byte_places(data: bytes, places: Sequence[int]) -> Sequence[int]:
    """Rising places in a document's text as places in its bytes; linear, piece by piece."""
    if data.isascii():
        return places
    found: list[int] = []
    # Of the piece at hand: how many characters stand before it, up to which of its own they
    # have been counted, where that is, and where the piece ends.
    text, chars, done, at, end = "", 0, 0, 0, 0
    for place in places:
        while place > chars + len(text):
            chars, done, at = chars + len(text), 0, end
            end = min(at + READ_BYTES, len(data))
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1  # within a character
            text = data[at:end].decode("utf-8")
        at += len(text[done:place - chars].encode("utf-8"))
        done = place - chars
        found.append(at)
    return found


def json_key(text: str, at: int) -> tuple[str, int]:
    """The key of an object's member that begins at ``at``, and where its value does."""
    start = json_space(text, at)
    if text[start:start + 1] != '"':
        raise ValueError("a key is missing at character %d" % start)
    key, end = JSON_DECODER.raw_decode(text, start)
    colon = json_space(text, end)
    if text[colon:colon + 1] != ":":
        raise ValueError("a colon is missing at character %d" % colon)
    return key, json_space(text, colon + 1)


def whole_json_object(data: bytes) -> tuple[dict, list[int], int, int]:
    """A document's object, where its values end, and where in the text it begins and ends.

    Raises ValueError.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    at = 0
    if text[:1] != "{":
        at = json_space(text, 0)
        if text[at:at + 1] != "{":
            raise ValueError("the body is not a JSON object")
    try:
        values, ends, end = json_members(text, at)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if end != len(text) and json_space(text, end) != len(text):
        raise ValueError("something follows the JSON object")
    return values, ends, at, end


class JsonWindow:
    """A large document read through a window: of its text only so much is decoded at a time.

    One sign beyond Latin-1 makes two or four bytes of each character of a text, and
    values beside it as much again: 10 MB took 58 with their own, and so they take 30.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read_bytes = self._passed_chars = self._at = self._count = 0
        self._text = ""

    @property
    def place(self) -> int:
        """Where in the text it reads on."""
        return self._passed_chars + self._at

    @property
    def ended(self) -> bool:
        """Whether all of the document has been read."""
        return self._at == len(self._text) and not self._more()

    def _more(self) -> bool:
        """Have at least twice the text ahead; False at the end.  Raises ValueError (no UTF-8)."""
        begin = self._read_bytes
        if begin >= len(self._data):
            return False
        rest = self._text[self._at:]
        end = begin + max(JSON_WINDOW_BYTES, 2 * len(rest))
        self._text = rest + self._decoder.decode(self._data[begin:end], end >= len(self._data))
        self._passed_chars += self._at
        self._at, self._read_bytes = 0, end
        return True

    def take(self, pattern: re.Pattern[str]) -> Optional[re.Match[str]]:
        """Read what a pattern matches, if it does: a key or white space, not too long."""
        # At the edge of the window it may go on.
        while len(self._text) - self._at < JSON_EDGE_CHARS and self._more():
            pass
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def value(self) -> Any:
        """Read one value, of a few windows at most.  Raises StopIteration, ValueError."""
        self._count += 1
        if not self._count % WINDOW_VALUES and (
                self.place < self._count * LEAST_WINDOW_VALUE_CHARS):
            # The window's own steps would be the most: five times the time.
            raise ValueError("many small values")
        for _ in range(JSON_WINDOW_LOOKS):
            try:
                value, end = scan_json(self._text, self._at)
            except (StopIteration, ValueError):
                if not self._more():
                    raise
                continue
            # A numeral at the edge of the window may have more digits.
            if end < len(self._text) or not self._more():
                self._at = end
                return value
        raise ValueError("a value larger than the window, or a broken one")

    def elements(self) -> Optional[list]:
        """Read a list that is not empty, one value after the other; None for anything else."""
        opening, comma, closing = JSON_LIST
        if self.take(opening) is None:
            return None
        found = [self.value()]
        while self.take(comma) is not None:
            found.append(self.value())
        if self.take(closing) is None:
            raise ValueError("a comma is missing")
        return found


def large_json_object(data: bytes) -> Optional[tuple[dict, list[int], int, int]]:
    """The same as whole_json_object with less memory; None for what is to be read as a whole.

    That is what is not quite as programs write it, and what is broken: the words for it
    are found there.
    """
    window = JsonWindow(data)
    opening, comma, closing = JSON_OBJECT
    values: dict[str, Any] = {}
    ends: list[int] = []
    try:
        match = window.take(opening)
        while match is not None:
            value = window.elements()
            values[match[1]] = window.value() if value is None else value
            ends.append(window.place)
            match = window.take(comma)
        if window.take(closing) is None:
            return None
        end = window.place
        window.take(JSON_SPACE)
        return (values, ends, 0, end) if ends and window.ended else None
    except (StopIteration, ValueError, RecursionError):
        return None


class Edited(Dict[str, Any]):
    """A changed copy of an object of a document.

    ``origin`` is the object it was made of: the members that stay are spelled as
    they were, with the digits of their numbers, their escapes and spacing.
    """

    __slots__ = ("origin",)

    def __init__(self, origin: dict, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.origin: dict = origin.origin if isinstance(origin, Edited) else origin


def edited(origin: dict, **changes: Any) -> Edited:
    """An object with some members changed or added."""
    return Edited(origin, dict(origin, **changes))


def without(origin: dict, *names: str) -> Edited:
    """An object without some members."""
    return Edited(origin, {key: value for key, value in origin.items() if key not in names})


def plain_json(value: Any) -> bytes:
    """A value as compact JSON, ASCII only: lone surrogates pass as escapes."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class JsonDocument:
    """A JSON object, parsed, with the place where each top-level value ends.

    An edit is spliced into its bytes, of which all else are kept.  Linear in the size of the
    document.

    >>> document = JsonDocument(b'{"n": 1.50, "model":"a"}')
    >>> document.spelled(dict(document.values, model="b"))
    b'{"n": 1.50, "model":"b"}'
    """

    __slots__ = ("data", "values", "_ends", "_at", "_end")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError for what is not a JSON object in UTF-8, or has a key twice.

        A key that stands twice is refused: we would look at one value and the
        upstream might take the other.
        """
        self.data = data
        large = None
        if len(data) > WIDE_JSON_BYTES and (len(data) > LARGE_JSON_BYTES or not data.isascii()):
            large = large_json_object(data)
        # All top-level values: not to be changed, nor what is in it.
        self.values: dict[str, Any]
        # The places are those of characters, but only white space stands before the first.
        self.values, self._ends, self._at, self._end = large or whole_json_object(data)
        if len(self.values) < len(self._ends):
            counts = collections.Counter(
                key or "" for key, _, _ in self.parts(byte_text(data))[0])
            raise ValueError("the key %s stands twice" % json.dumps(
                next(key for key in counts if counts[key] > 1)[:40]))

    def parts(self, text: str) -> tuple[list[JsonPart], int]:
        """The places of the top-level values in its :func:`byte_text`, and its end."""
        *ends, end = byte_places(self.data, [*self._ends, self._end])
        return json_parts(text, self._at, ends), end

    def spelled(self, values: Mapping[str, Any]) -> bytes:
        """The bytes of the document with these top-level values and no others.

        Objects and lists that are the document's own keep their bytes; of an
        :class:`Edited` object the members that stay do; the rest is spelled anew.
        """
        own = self.values
        if values is own or list(values) == list(own) and all(
                map(operator.is_, values.values(), own.values())):
            return self.data
        speller = Speller(self.data)
        parts, end = self.parts(speller.text)
        changed = [key for key, new in values.items()
                   if isinstance(new, (dict, list)) and new is not own.get(key)]
        if changed:  # else only a model or a number, in which nothing of ours can be
            speller.note(own, self._at, parts)
        for key in changed:
            if isinstance(own.get(key), list) and isinstance(values[key], list):
                speller.place_elements(own[key], values[key])
        speller.splice(own, values, self._at, parts)
        return speller.written(self.data[:self._at], self.data[end:])


def is_same(new: Any, old: Any) -> bool:
    """Whether a value is the document's own; scalars by their JSON text (1 is not 1.0 or true)."""
    if new is old:
        return True
    if isinstance(new, (dict, list)) or isinstance(old, (dict, list)):
        return False
    return type(new) is type(old) and new == old


NOT_COPIED = (-1, 0, 0)


class Speller:
    """Writes edited values of a document, pointing at the bytes of what did not change."""

    def __init__(self, data: bytes) -> None:
        # Kept until all is written.
        self.text = byte_text(data)
        self._data, self._view = data, memoryview(data)
        self._pieces: list[Union[bytes, memoryview]] = []
        # Of the last piece of the document: how many pieces there were with it, where it
        # begins, and where it ends.
        self._copied = NOT_COPIED
        # id() of an object or list of the document to where it begins.  The
        # document keeps them alive meanwhile, so that no id is given twice.
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        # The parts of what begins at a place, decoded once.
        self._parts: dict[int, list[JsonPart]] = {}

    def written(self, before: bytes, after: bytes) -> bytes:
        """All that was written, between these; of which there may be 32 MB: it is copied once."""
        self.text = ""  # it takes as much as what is joined
        return b"".join([before, *self._pieces, after])

    def place(self, value: Any, start: int) -> list[JsonPart]:
        """Note where the parts of an object or list of the document stand; and give them."""
        known, text = self._parts.get(start), self.text
        return known or self.note(value, start, json_parts(text, start, json_members(text, start)[1]))

    def note(self, value: Any, start: int, parts: list[JsonPart]) -> list[JsonPart]:
        """The same where the parts are known."""
        self._starts[id(value)] = start
        self._parts[start] = parts
        for index, (key, begins, ends) in enumerate(parts):
            below = value[index] if key is None else value[key]
            if isinstance(below, (dict, list)):
                self._starts[id(below)], self._ends[id(below)] = begins, ends
        return parts

    def place_elements(self, old: list, new: list) -> None:
        """Note the blocks of those messages that are not simply kept: they may have moved."""
        kept = {id(value) for value in new}
        self.place(old, self._starts[id(old)])
        for message in old:
            if id(message) in kept or not isinstance(message, dict):
                continue
            self.place(message, self._starts[id(message)])
            for below in message.values():
                if isinstance(below, list):
                    self.place(below, self._starts[id(below)])

    def spell(self, value: Any) -> None:
        """Write a value."""
        end = self._ends.get(id(value))
        if end is not None:
            self._keep(self._starts[id(value)], end)
        elif isinstance(value, Edited) and id(value.origin) in self._starts:
            start, before = self._starts[id(value.origin)], len(self._pieces)
            self.splice(value.origin, value, start, self.place(value.origin, start))
            self._join(before)
        elif isinstance(value, dict):
            self._within(b"{", b"}", ((b"%b:" % plain_json(key), below)
                                      for key, below in value.items()))
        elif isinstance(value, list):
            self._within(b"[", b"]", ((b"", below) for below in value))
        else:
            self._pieces.append(plain_json(value))

    def _keep(self, start: int, end: int) -> None:
        """Write a value of the document, with its own comma if one is wanted."""
        if self._pieces[-1] == b"," and self.text[start - 1] == ",":
            self._pieces.pop()
            start -= 1
        self._copy(start, end)

    def _copy(self, begin: int, end: int) -> None:
        """Write what stands at these places, as one piece with the last where they touch."""
        count, first, last = self._copied
        if last == begin and count == len(self._pieces):
            self._pieces.pop()
            begin = first
        # A view takes 184 bytes itself, of which there may be a hundred thousands.
        whole = self._data if end - begin < MIN_VIEW_BYTES else self._view
        self._pieces.append(whole[begin:end])
        self._copied = len(self._pieces), begin, end

    def _join(self, begin: int) -> None:
        """Make one piece of those from ``begin`` on if they are small: each takes 33 bytes, too."""
        pieces = self._pieces[begin:]
        if all(type(piece) is bytes for piece in pieces):
            self._pieces[begin:] = [b"".join(pieces)]
            self._copied = NOT_COPIED  # it is no piece of its own any more

    def _within(self, opening: bytes, closing: bytes, parts: Iterable[tuple[bytes, Any]]) -> None:
        """Write what stands before each value, and the value, within brackets."""
        pieces = self._pieces
        pieces.append(opening)
        comma = b""
        for before, value in parts:
            if comma or before:
                pieces.append(comma + before)
            self.spell(value)
            comma = b","
        pieces.append(closing)

    def splice(self, origin: dict, value: Mapping[str, Any], at: int,
               parts: Sequence[JsonPart]) -> None:
        """Write a changed object with the bytes of its origin where its members are the origin's."""
        text, pieces, last = self.text, self._pieces, at
        # Of a key that stands twice the last one counts, as it does in the value.
        places = {}
        for key, start, end in parts:
            first, last = last + 1, end if text[end] in ",}" else json_space(text, end)
            places[key] = first, start, end, last
        sign = "{"
        for key, (first, start, end, last) in places.items():
            if key not in value:
                continue
            if text[first - 1] == sign:
                first -= 1
            else:
                pieces.append(sign.encode("ascii"))
            new, old, sign = value[key], origin[key], ","
            if new is old or is_same(new, old):
                self._copy(first, last)
                continue
            if isinstance(old, list):
                self.place(old, start)
            self._copy(first, start)
            self.spell(new)
            if end < last:
                self._copy(end, last)
        for key, new in value.items():
            if key not in places:
                pieces.append(b"%b%b:" % (sign.encode("ascii"), plain_json(key)))
                self.spell(new)
                sign = ","
        pieces.append(b"{}" if sign == "{" else b"}")


# ---- 7. Anthropic messages ---------------------------------------------------


def parse_message_request(body: bytes) -> JsonDocument:
    """A body of /v1/messages, parsed and validated; the rest is the upstream's to judge.

    Raises RequestError(400) in the words of contract section 6.
    """
    try:
        document = JsonDocument(body)
    except ValueError as error:
        raise RequestError(400, "invalid JSON: %s" % error) from None
    try:
        model, messages = document.values["model"], document.values["messages"]
    except KeyError as error:
        raise RequestError(400, "Missing required field: %s" % error.args) from None
    if not isinstance(model, str) or not model:
        raise RequestError(400, "model: must be a non-empty string")
    if len(model) > MAX_MODEL_CHARS:
        raise RequestError(400, "model: longer than %d characters" % MAX_MODEL_CHARS)
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages: must be a non-empty list")
    if set(map(type, messages)) != {dict}:
        index = next(index for index, message in enumerate(messages)
                     if not isinstance(message, dict))
        raise RequestError(400, "messages.%d: must be an object" % index)
    return document


# json.loads would ask for its options, and look for spaces with two expressions: a third more.
scan_answer: Callable[[str, int], tuple[Any, int]] = getattr(json.JSONDecoder(), "scan_once")


def json_object(body: bytes) -> Optional[dict]:
    """The JSON object that a whole answer is, or None: a cut one does not parse."""
    try:
        text = body.decode("utf-8").strip(" \t\n\r")
        value, end = scan_answer(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and end == len(text) else None


def event_object(data: bytes) -> Optional[dict]:
    """The JSON object that an event's data is, or None; within the bounds of a request's."""
    try:
        text = data.decode("utf-8", "replace").strip(" \t\n\r")
        # So short a text holds no numeral that is too long (1 us less for each number).
        value, end = (scan_short_json if len(text) <= MAX_NUMERAL_DIGITS else scan_json)(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and end == len(text) else None


def checked_answer(body: bytes) -> dict:
    """The object in the body of a 2xx: anything else is a log-in page, or cut.

    Raises UpstreamMalformed.
    """
    value = json_object(body)
    if value is None:
        raise UpstreamMalformed("upstream answered with something that is not a message")
    return value


# How upstreams say that an account has no credit left: Anthropic's two texts, and
# those of OpenRouter, DeepSeek, OpenAI and Moonshot (providers.md).
CREDIT_USED_UP = re.compile(
    r"credit balance is too low|reached your specified (?:api |workspace )?(?:api )?usage limits?"
    r"|insufficient[ _](?:credits?|balance|funds|quota)|exceeded your current quota"
    r"|out of credits?|requires more credits", re.IGNORECASE)


def error_topic(status: int, body: bytes) -> str:
    """What an error body is about, where that changes what follows: credit, model, signature.

    >>> error_topic(404, b'{"error": {"type": "not_found_error", "message": "model: x"}}')
    'model'
    """
    error = (json_object(body) or {}).get("error")
    kind, message = "", error
    if isinstance(error, dict):
        kind, message = error.get("type"), error.get("message")
    text = message if isinstance(message, str) else ""
    if status == 402 or status in (400, 403, 429) and (
            kind == "billing_error" or CREDIT_USED_UP.search(text)):
        return "credit"
    if status == 404 and "model" in text.lower():
        return "model"
    # Looked for in all of the body: others wrap the vendor's text in their own.
    if status == 400 and b"signature" in body.lower() and b"thinking" in body.lower():
        return "signature"
    return ""


# Events that tell the record nothing: nine of ten.
SKIPPED_TYPES = b"content_block_delta", b"content_block_stop", b"ping"
SKIPPED_STARTS = tuple(b"event:%b%b\ndata:" % (space, name)
                       for name in SKIPPED_TYPES for space in (b" ", b""))
# One that tells more, its type and its data, and a run of others, of which a block's start
# and the message's end say all by their names: three lines each, as they are sent as a
# rule; 0.1 us an event instead of 0.6.  The bounds hold memory down: what is larger, or
# more, is found by other ways.
PLAIN_EVENTS: Callable[[bytes, int], Any] = re.compile(
    rb"(?:event: ?(message_(?:start|delta)|error)\ndata: ?([^\n]{0,%d})\n\n|)"
    rb"(?:event: ?(?:%b|(content_block_start)|(message_stop))\ndata:[^\n]{0,%d}\n\n){0,1000}"
    % (READ_BYTES, b"|".join(SKIPPED_TYPES), READ_BYTES)).match


class StreamTracker:
    """Looks on while a message stream passes; keeps what the record wants to know.

    Observation never disturbs the relay: what does not parse is passed over.
    ``complete`` is true once ``message_stop`` or an ``error`` event has passed:
    without one of them the end of a stream is a cut, however clean it looks.
    """

    stop_reason = ""
    error_type = ""
    # The error event, as it came.
    error: Optional[dict] = None

    def __init__(self) -> None:
        self.events_count = 0
        self.complete = self.content_started = False
        self.usage = Usage()
        self.decoder = SseDecoder()

    @property
    def blind(self) -> bool:
        """Whether an event was too large to be followed: the end then proves itself."""
        return self.decoder.overflowed

    def feed(self, data: bytes) -> None:
        """Look at the next bytes of the stream."""
        decoder = self.decoder
        if CR in data or not decoder.is_between:
            data = decoder.text(data)
        at, size = 0, len(data)
        while at < size:
            found, last = PLAIN_EVENTS(data, at), at
            at = found.end()
            if found.lastindex is not None:
                kind, value, started, stopped = found.groups()
                if started is not None:
                    self.content_started = True
                if stopped is not None:
                    self.complete = True
                if kind is not None:
                    self._look_at(kind, value)
            elif at == last:
                break  # written in another way, such as a comment: block by block from there
        self.events_count += data.count(b"\n", 0, at) // 3
        if at < size:
            decoder.at_start = decoder.at_start and not self.events_count
            for block in decoder.blocks(data[at:]):
                if block.startswith(SKIPPED_STARTS) and block.find(b"\nevent") < 0:
                    self.events_count += 1  # a twentieth of what it takes to parse it
                    continue
                event = parse_event(block)
                if event is not None:
                    self.look(event)

    def look(self, event: SseEvent) -> None:
        """Look at one event."""
        self.events_count += 1
        self._look_at(event.type.encode("utf-8"), event.data)

    def _look_at(self, kind: bytes, data: bytes) -> None:
        if kind == b"message_start":
            message = (event_object(data) or {}).get("message")
            self.usage.update(message.get("usage") if isinstance(message, dict) else None)
        elif kind == b"message_delta":
            value = event_object(data) or {}
            self.usage.update(value.get("usage"))
            delta = value.get("delta")
            reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            if isinstance(reason, str):
                self.stop_reason = reason[:MAX_TOLD_CHARS]
        elif kind == b"content_block_start":
            self.content_started = True
        elif kind == b"message_stop":
            self.complete = True
        elif kind == b"error":
            self.complete, self.error = True, event_object(data) or {}
            error = self.error.get("error")
            kind_told = error.get("type") if isinstance(error, dict) else None
            self.error_type = kind_told[:MAX_TOLD_CHARS] if isinstance(kind_told, str) else "error"


class CollectedBlock:
    """One content block while its deltas come; strings are joined once, at the end.

    >>> block = CollectedBlock({"type": "text", "text": ""})
    >>> for word in ("Hel", "lo"):
    ...     block.feed({"type": "text_delta", "text": word})
    >>> block.value()
    {'type': 'text', 'text': 'Hello'}
    """

    # A tool's input that is no JSON, or only the beginning of some, goes under this
    # key, as Anthropic's page on fine-grained tool streaming advises.  The members
    # that are whole, which is what the SDK keeps, would look like a whole call.
    INVALID_INPUT = "INVALID_JSON"

    __slots__ = ("_members", "_fragments", "_input")

    def __init__(self, start: dict) -> None:
        self._members = dict(start)
        self._fragments: dict[str, list[str]] = {}
        self._input: Optional[list[str]] = None

    def feed(self, delta: dict) -> None:
        """Take in the ``delta`` of one content_block_delta, of whatever type."""
        kind = delta.get("type")
        take = DELTAS.get(kind) if isinstance(kind, str) else None
        if take is not None:
            take(self, delta)
            return
        for name, value in delta.items():
            if name != "type":
                self.add(name, value)

    def add(self, name: str, value: Any) -> None:
        """The rule for what has none of its own: strings append, lists extend, the rest is set.

        Null erases nothing.
        """
        if value is None:
            self._members.setdefault(name, None)
        elif isinstance(value, str):
            if name not in self._fragments:
                begun = self._members.get(name)
                self._fragments[name] = [begun] if isinstance(begun, str) else []
            self._fragments[name].append(value)
        elif isinstance(value, list):
            begun = self._members.get(name)
            self.set(name, begun if isinstance(begun, list) else [])
            self._members[name].extend(value)
        else:
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """A member that comes whole: the last one wins."""
        self._fragments.pop(name, None)
        self._members[name] = value

    def add_input(self, text: Any) -> None:
        """A piece of the JSON text of a tool's input."""
        if self._input is None:
            self._input = []
        if isinstance(text, str):
            self._input.append(text)

    def value(self) -> dict:
        """The block as it stands in a message that was not streamed."""
        value = dict(self._members)
        value.update((name, "".join(texts)) for name, texts in self._fragments.items())
        if self._input is not None:
            text = "".join(self._input)
            if text.strip():
                value["input"] = self._parsed(text)
            # A tool without arguments sends one empty piece, or none.
            value.setdefault("input", {})
        return value

    def _parsed(self, text: str) -> Any:
        try:
            return JSON_DECODER.decode(text)
        except (ValueError, RecursionError):
            return {self.INVALID_INPUT: text}


def add_text(block: CollectedBlock, delta: dict) -> None:
    """{"text": "..."} is a piece of the block's ``text``."""
    if isinstance(delta.get("text"), str):
        block.add("text", delta["text"])


def add_thinking(block: CollectedBlock, delta: dict) -> None:
    """{"thinking": "..."} is a piece of ``thinking``; a count beside it tells of progress only."""
    if isinstance(delta.get("thinking"), str):
        block.add("thinking", delta["thinking"])


def add_citation(block: CollectedBlock, delta: dict) -> None:
    """{"citation": {...}} is one more element of the block's ``citations``."""
    if isinstance(delta.get("citation"), dict):
        block.add("citations", [delta["citation"]])


def add_input_json(block: CollectedBlock, delta: dict) -> None:
    """{"partial_json": "..."} is a piece of a text, not of the block."""
    block.add_input(delta.get("partial_json"))


def set_signature(block: CollectedBlock, delta: dict) -> None:
    """A signature comes whole; every SDK lets the last one win."""
    if isinstance(delta.get("signature"), str):
        block.set("signature", delta["signature"])


def set_compaction(block: CollectedBlock, delta: dict) -> None:
    """A compaction's ``content`` and ``encrypted_content`` come whole, and may be null."""
    for name, value in delta.items():
        if name != "type":
            block.set(name, value)


# What the API's deltas add to a block, and no more: thinking_delta has an
# ``estimated_tokens`` that is no member of a block, and a client that sent it back
# would get a 400.  Deltas that are not known here follow CollectedBlock.add.
DELTAS: Mapping[str, Callable[[CollectedBlock, dict], None]] = {
    "citations_delta": add_citation,
    "compaction_delta": set_compaction,
    "input_json_delta": add_input_json,
    "signature_delta": set_signature,
    "text_delta": add_text,
    "thinking_delta": add_thinking,
}


def overlay(under: dict, above: Any, left_out: Iterable[str] = ()) -> None:
    """Put the members of an object over those of another; null never erases a value.

    >>> usage = {"input_tokens": 7, "output_tokens": 1}
    >>> overlay(usage, {"input_tokens": None, "output_tokens": 9})
    >>> usage
    {'input_tokens': 7, 'output_tokens': 9}
    """
    if not isinstance(above, dict):
        return
    for name, value in above.items():
        if name not in left_out and (value is not None or name not in under):
            under[name] = value


class MessageCollector:
    """A message stream to the message that a request without ``stream`` is answered with.

    Everything survives, also what is not known here: members of message_start,
    blocks and deltas of any type, what message_delta adds.  Values of wrong types
    are passed over.  A known event that is no JSON object at all is an
    UpstreamMalformed: a message without it would be a cut one.

    >>> collector = MessageCollector()
    >>> for event in (
    ...     {"type": "message_start", "message": {"id": "msg_1", "content": []}},
    ...     {"type": "content_block_start", "index": 0,
    ...      "content_block": {"type": "text", "text": ""}},
    ...     {"type": "content_block_delta", "index": 0,
    ...      "delta": {"type": "text_delta", "text": "Hello"}},
    ...     {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    ...     {"type": "message_stop"},
    ... ):
    ...     collector.feed(encode_sse_event(event["type"], event))
    >>> collector.message()
    {'id': 'msg_1', 'content': [{'type': 'text', 'text': 'Hello'}], 'stop_reason': 'end_turn'}
    """

    # What of a message_delta and of its ``delta`` is no member of the message.
    NOT_OF_MESSAGE = frozenset(["content", "delta", "type", "usage"])

    def __init__(self) -> None:
        self.complete = False
        self.error: Optional[dict] = None
        self._message: Optional[dict] = None
        # An index may be left out or used twice: all blocks stay, the deltas go
        # to the one that was started last.
        self._blocks: list[tuple[int, CollectedBlock]] = []
        self._started: dict[int, CollectedBlock] = {}
        self._collected_bytes = 0
        self._decoder = SseDecoder()

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the stream.  Raises UpstreamMalformed."""
        for event in self._decoder.feed(data):
            if self.complete or self.error is not None:
                return  # what trails behind the end is nobody's
            take = self.TAKERS.get(event.type)
            if take is not None:
                self._count(event)
                take(self, self._parsed(event))
        if self._decoder.overflowed and not self.complete and self.error is None:
            raise UpstreamMalformed("an event of the upstream's stream is larger than %d bytes"
                                    % MAX_SSE_EVENT_BYTES)

    def message(self) -> dict:
        """The whole message.  Raises UpstreamBroke where the stream did not end well."""
        if not self.complete:
            raise UpstreamBroke("the upstream's stream ended before its message did")
        if self._message is None:
            raise UpstreamMalformed("the upstream's stream had no message_start")
        begun = self._message.get("content")
        content = list(begun) if isinstance(begun, list) else []
        in_order = sorted(self._blocks, key=lambda started: started[0])
        content.extend(block.value() for _, block in in_order)
        return dict(self._message, content=content)

    def _count(self, event: SseEvent) -> None:
        # The bytes of events and not of text: their overhead bounds the number of
        # the fragments, which cost more than their letters.
        self._collected_bytes += len(event.data)
        if self._collected_bytes > MAX_COLLECTED_BYTES:
            raise UpstreamMalformed("the upstream's stream is larger than %d bytes"
                                    % MAX_COLLECTED_BYTES)

    def _parsed(self, event: SseEvent) -> dict:
        if event.type == "message_stop":
            return {}  # its name says it all, and the tracker asks no more of it
        value = event_object(event.data)
        if value is not None:
            return value
        if event.type == "error":
            return {"type": "error"}
        raise UpstreamMalformed("a %s event of the upstream's stream is not a JSON object"
                                % event.type)

    def _take_message_start(self, value: dict) -> None:
        if self._message is None and isinstance(value.get("message"), dict):
            self._message = value["message"]

    def _take_block_start(self, value: dict) -> None:
        index, block = value.get("index"), value.get("content_block")
        if self._message is None or type(index) is not int or not isinstance(block, dict):
            return
        self._started[index] = CollectedBlock(block)
        self._blocks.append((index, self._started[index]))
        # A fallback block names the model that took over: an answer that is not
        # streamed has that model's name on it, and so has the SDK's.
        served_by = block.get("to") if block.get("type") == "fallback" else None
        if isinstance(served_by, dict) and isinstance(served_by.get("model"), str):
            self._message["model"] = served_by["model"]

    def _take_block_delta(self, value: dict) -> None:
        index, delta = value.get("index"), value.get("delta")
        if type(index) is int and index in self._started and isinstance(delta, dict):
            self._started[index].feed(delta)

    def _take_message_delta(self, value: dict) -> None:
        if self._message is None:
            return
        overlay(self._message, value, self.NOT_OF_MESSAGE)
        overlay(self._message, value.get("delta"), self.NOT_OF_MESSAGE)
        if isinstance(value.get("usage"), dict):
            # Counts are cumulative: the last one is the total.
            begun = self._message.get("usage")
            self._message["usage"] = begun if isinstance(begun, dict) else {}
            overlay(self._message["usage"], value["usage"])

    def _take_message_stop(self, value: dict) -> None:
        self.complete = True

    def _take_error(self, value: dict) -> None:
        self.error = value

    TAKERS: Mapping[str, Callable[[Any, dict], None]] = {
        "message_start": _take_message_start,
        "content_block_start": _take_block_start,
        "content_block_delta": _take_block_delta,
        "message_delta": _take_message_delta,
        "message_stop": _take_message_stop,
        "error": _take_error,
    }


def model_listing(model_id: str, owner: str, provider: str) -> dict:
    """One model in a shape that both SDK families take.

    The time is the date in the id where it has one, else the epoch, which is
    what Anthropic's API says for an unknown date.
    """
    created = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    match = re.search(r"-(20[0-9]{6})\b", model_id)
    if match:
        try:
            created = datetime.datetime.strptime(match.group(1) + "+0000", "%Y%m%d%z")
        except ValueError:
            pass  # eight digits that are no date: the epoch says "unknown" then
    return {
        "id": model_id,
        "object": "model",
        "type": "model",
        "owned_by": owner,
        "provider": provider,
        "created": int(created.timestamp()),
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "display_name": display_name(model_id),
    }


def display_name(model_id: str) -> str:
    """A name to show for a model id.

    >>> display_name("claude-opus-4-5-20251101")
    'Claude Opus 4.5'
    """
    words = re.sub(r"-20[0-9]{6}\b", "", model_id).split("-")
    name = " ".join(word if word[:1].isdigit() else word[:1].upper() + word[1:]
                    for word in words)
    return re.sub(r"(?<=\d) (?=\d)", ".", name)


def page_of_models(models: Sequence[dict], query: str) -> dict:
    """The list answer of GET /v1/models; ``limit``, ``after_id``, ``before_id`` honoured.

    Raises RequestError(400) for a limit that is not a number from 1 to 1000.
    """
    asked = dict(urllib.parse.parse_qsl(query))
    limit_text = asked.get("limit", str(MODELS_PAGE_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,4}", limit_text) or not 1 <= int(limit_text) <= 1000:
        raise RequestError(400, "limit: must be a number from 1 to 1000")
    limit = int(limit_text)
    ids = [model["id"] for model in models]
    if asked.get("before_id") in ids:
        before = list(models[:ids.index(asked["before_id"])])
        page, more = before[-limit:], len(before) > limit
    else:
        start = ids.index(asked["after_id"]) + 1 if asked.get("after_id") in ids else 0
        page, more = list(models[start:start + limit]), len(models) > start + limit
    return {
        "object": "list",
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


# ---- 8. Requests on their way up ---------------------------------------------

# -- sanitizing
#
# Contract section 6.  A body is a dict of the document's top-level values; a rule
# takes it and its setting and gives the same dict where there is nothing to do,
# else a changed copy that shares whatever did not change (section 6 spells only
# the rest).  Each rule is pure and idempotent and decides from what stands before
# and directly behind: so the edit of a conversation is a beginning of the edit of
# the same conversation a turn later, and prompt caches and signed thinking stay
# valid.  (Marks of cache_control do not count in that; clients move them.)

NOTE_INTERRUPTED = "The call was interrupted: it has no result."
NOTE_THINKING = "(thinking left out)"
NOTE_DOUBLE_RESULT = "(second result of one call left out)"
NOTE_SYSTEM = "[System note]"
MAX_CACHE_MARKS = 4
THINKING_TYPES = ("thinking", "redacted_thinking")
RESULT_TYPES = ("tool_result", "mcp_tool_result")
ROLES = ("user", "assistant", "system")

Body = Dict[str, Any]


def mapped_list(items: list, change: Callable[[Any], Any]) -> list:
    """A list with each item changed; None drops one.  The same list if nothing changed."""
    for index, item in enumerate(items):
        new = change(item)
        if new is not item:
            break
    else:
        return items  # as a rule: then nothing has been built
    changed = items[:index] + [new] + [change(item) for item in items[index + 1:]]
    # A null that stood there is not understood, and so stays.
    return [new for new, old in zip(changed, items) if new is not None or old is None]


def is_message(message: Any) -> bool:
    """Whether rules may look into it: a known role, and content that is a string or a list."""
    if not isinstance(message, dict):
        return False
    role = message.get("role")
    return (isinstance(role, str) and role in ROLES
            and isinstance(message.get("content"), (str, list)))


def with_messages(body: Body, messages: list) -> Body:
    """A body with other messages; the same one if they are the same, or none would be left."""
    if messages is body.get("messages") or not messages:
        return body
    return dict(body, messages=messages)


def blocks_of(message: Mapping[str, Any]) -> list:
    """A message's content as blocks: a string is one text block."""
    content = message.get("content")
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def block_type(block: Any) -> Optional[str]:
    """The type of a block, None for what is none."""
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else None


def changed_blocks(message: dict, change: Callable[[Any], Any]) -> dict:
    """A message with each block of its content changed; the same one if nothing changed."""
    if not isinstance(message["content"], list):
        return message
    content = mapped_list(message["content"], change)
    return message if content is message["content"] else edited(message, content=content)


def each_message(body: Body, change: Callable[[dict], Optional[dict]]) -> Body:
    """A body with each message that is understood changed; None drops one."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    return with_messages(body, mapped_list(
        messages, lambda message: change(message) if is_message(message) else message))


def text_block(text: str) -> dict:
    """A text block of ours."""
    return {"type": "text", "text": text}


def is_blank_text(block: Any) -> bool:
    """Whether a block is a text block without a visible character."""
    if not isinstance(block, dict) or block.get("type") != "text":
        return False
    text = block.get("text")
    # Not strip(): that would copy every long text.
    return isinstance(text, str) and (not text or text.isspace())


# system_messages


def rule_system_messages(body: Body, setting: str) -> Body:
    """``user``: a message of role system becomes a user's, marked, in its place."""
    if setting != "user":
        return body
    return each_message(body, system_as_user)


def system_as_user(message: dict) -> Optional[dict]:
    """A system message as a user's; one without content (it sets the effort) goes."""
    if message["role"] != "system":
        return message
    blocks = [block for block in blocks_of(message) if not is_blank_text(block)]
    if not blocks:
        return None
    return {"role": "user", "content": [text_block(NOTE_SYSTEM), *blocks]}


# thinking


def rule_thinking(body: Body, setting: str) -> Body:
    """``unsigned``: thinking without a signature goes; ``drop``: all thinking goes."""
    if setting not in ("unsigned", "drop"):
        return body

    def keeps(block: Any) -> bool:
        if block_type(block) not in THINKING_TYPES:
            return True
        if setting == "drop":
            return False
        return block["type"] == "redacted_thinking" or bool(block.get("signature"))

    def change(message: dict) -> dict:
        if message["role"] != "assistant":
            return message
        left = changed_blocks(message, lambda block: block if keeps(block) else None)
        if left is not message and not left["content"]:
            # Going altogether, it would make neighbours of the user's turns
            # around it, which change when the next one comes.
            return edited(message, content=[text_block(NOTE_THINKING)])
        return left

    return each_message(body, change)


# empty_text


def rule_empty_text(body: Body, setting: bool) -> Body:
    """Blank text blocks go, also out of tool results; so does a message left empty."""
    if not setting:
        return body
    system = body.get("system")
    if isinstance(system, list):
        left = mapped_list(system, unless_blank)
        if left is not system:
            body = dict(body, system=left) if left else without_keys(body, "system")
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    return with_messages(body, mapped_list(messages, lambda message: (
        without_blank_text(message) if is_message(message) else message)))


def without_keys(body: Body, *names: str) -> Body:
    """A body without some of its members."""
    return {key: value for key, value in body.items() if key not in names}


def unless_blank(block: Any) -> Any:
    """A block, or None if it is blank text; blank text within a tool result goes, too."""
    if is_blank_text(block):
        return None
    if block_type(block) == "tool_result" and isinstance(block.get("content"), list):
        content = mapped_list(block["content"], unless_blank)
        return block if content is block["content"] else edited(block, content=content)
    return block


def without_blank_text(message: dict) -> Optional[dict]:
    """A message without blank text; None where nothing is left of it.

    A system message with no content stays: it is allowed anywhere, to set the
    effort.  A message with calls or results is never empty, so no pair breaks.
    """
    if isinstance(message["content"], str):
        left, empty = message, not message["content"].strip()
    else:
        left = changed_blocks(message, unless_blank)
        empty = not left["content"]
    if not empty:
        return left
    if message["role"] == "system" and (left is message or "output_config" in message):
        return left
    return None


# merge_roles


def rule_merge_roles(body: Body, setting: bool) -> Body:
    """Neighbours of one role become one message; those that carry more keys stay apart."""
    messages = body.get("messages")
    if not setting or not isinstance(messages, list):
        return body
    runs: list[list] = []
    for message in messages:
        if runs and may_merge(runs[-1][-1], message):
            runs[-1].append(message)
        else:
            runs.append([message])
    if len(runs) == len(messages):
        return body
    return with_messages(body, [run[0] if len(run) == 1 else merged_run(run) for run in runs])


def may_merge(first: Any, second: Any) -> bool:
    """Whether two neighbours are of one role, user or assistant, with content alone."""
    return (is_message(first) and is_message(second) and first["role"] == second["role"]
            and first["role"] != "system" and set(first) == set(second) == {"role", "content"})


def merged_run(run: list) -> dict:
    """Strings join with a blank line, else the blocks in order, tool results first.

    Each run once, not two by two: that would be quadratic.
    """
    strings = 0
    while strings < len(run) and isinstance(run[strings]["content"], str):
        strings += 1
    words = "\n\n".join(message["content"] for message in run[:strings])
    if strings == len(run):
        return edited(run[0], content=words)
    blocks = [text_block(words)] if strings else []
    for message in run[strings:]:
        blocks.extend(blocks_of(message))
    return edited(run[0], content=results_first(blocks))


def results_first(blocks: list) -> list:
    """Blocks with the tool results in front; the same list if they are there already."""
    results = [block for block in blocks if block_type(block) == "tool_result"]
    rest = [block for block in blocks if block_type(block) != "tool_result"]
    ordered = results + rest
    return blocks if all(new is old for new, old in zip(ordered, blocks)) else ordered


# tool_pairs


def rule_tool_pairs(body: Body, setting: bool) -> Body:
    """Every call has its result in the next turn, and every result its call.

    Neighbours of one role are one turn, as the API takes them.  A missing result
    is added as an error in front of the next turn; a result without its call
    becomes text; a second result of one call goes.  The calls of a turn that
    nothing follows are still open and left alone.
    """
    messages = body.get("messages")
    if not setting or not isinstance(messages, list):
        return body
    repaired: list = []
    answered: set[str] = set()
    open_calls: list[str] = []
    behind_calls = 0
    for role, turn in turns_of(messages):
        if role not in ("user", "assistant"):
            # A system message may stand between; what is not understood is left alone.
            repaired.extend(turn)
            continue
        if role == "user":
            turn = paired_turn(turn, open_calls, answered)
        elif open_calls:
            repaired.insert(behind_calls, {"role": "user", "content": missing_results(open_calls)})
        answered.update(open_calls)
        open_calls = calls_of(turn) if role == "assistant" else []
        repaired.extend(turn)
        behind_calls = len(repaired)
    same = len(repaired) == len(messages) and all(
        new is old for new, old in zip(repaired, messages))
    return with_messages(body, messages if same else repaired)


def turns_of(messages: list) -> Iterator[tuple[str, list]]:
    """Runs of neighbours of one role, with it; what is not understood stands alone, as ""."""
    turn: list = []
    turn_role = ""
    for message in messages:
        role = message["role"] if is_message(message) else ""
        if turn and (role != turn_role or not role):
            yield turn_role, turn
            turn = []
        turn.append(message)
        turn_role = role
    if turn:
        yield turn_role, turn


def calls_of(turn: list) -> list[str]:
    """The ids of an assistant turn's tool_use blocks, in order, each once."""
    found = []
    for message in turn:
        if isinstance(message["content"], list):
            found.extend(block["id"] for block in message["content"]
                         if block_type(block) == "tool_use" and isinstance(block.get("id"), str))
    return list(dict.fromkeys(found))


def paired_turn(turn: list, open_calls: Sequence[str], answered: set[str]) -> list:
    """A user turn whose results are those of ``open_calls``, each once, none missing."""
    seen: set[str] = set()
    wanted = frozenset(open_calls)

    def paired(block: Any) -> Any:
        if block_type(block) != "tool_result" or not isinstance(block.get("tool_use_id"), str):
            return block
        call = block["tool_use_id"]
        if call in wanted and call not in seen:
            seen.add(call)
            return block
        if call in seen or call in answered:
            return None
        return result_as_text(block)

    repaired = [message_without_strays(message, paired) for message in turn]
    missing = [call for call in open_calls if call not in seen]
    if missing:
        first = repaired[0]
        content = missing_results(missing) + blocks_of(first)
        repaired[0] = edited(first, content=results_first(content))
    return repaired


def message_without_strays(message: dict, paired: Callable[[Any], Any]) -> dict:
    """A user message with its results paired, in front of its other blocks."""
    left = changed_blocks(message, paired)
    content = left["content"]
    if not isinstance(content, list):
        return left
    if not content and message["content"]:
        return edited(message, content=[text_block(NOTE_DOUBLE_RESULT)])
    ordered = results_first(content)
    return left if ordered is content else edited(left, content=ordered)


def missing_results(calls: Sequence[str]) -> list:
    """Error results for calls that were interrupted."""
    return [{"type": "tool_result", "tool_use_id": call, "content": NOTE_INTERRUPTED,
             "is_error": True} for call in calls]


def result_as_text(block: dict) -> dict:
    """A tool result whose call is not there, as a text block; what it shows besides is named."""
    content = block.get("content")
    if isinstance(content, str):
        content = [text_block(content)]
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts
             if block_type(part) == "text" and isinstance(part.get("text"), str)]
    others = ["(%s)" % block_type(part) for part in parts if block_type(part) != "text"]
    told = "[Result of the tool call %s]" % block["tool_use_id"]
    return text_block("\n".join([told, *texts, *others]))


# cache_control


def rule_cache_control(body: Body, setting: str) -> Body:
    """``keep``: goes only where it is always refused; ``strip``: goes everywhere."""
    if setting == "strip":
        return strip_marks(body)
    marked = marked_places(body)
    refused = [block for block in marked if refuses_mark(block)]
    rest = [block for block in marked if not refuses_mark(block)]
    automatic = 1 if isinstance(body.get("cache_control"), dict) else 0
    surplus = len(rest) + automatic - MAX_CACHE_MARKS
    # The earliest of the messages go first, tools and system last.
    doomed = {id(block) for block in refused + rest[:max(0, surplus)]}
    if not doomed:
        return body
    return each_marked(body, lambda block: (
        without(block, "cache_control") if id(block) in doomed else block))


def refuses_mark(block: dict) -> bool:
    """Whether a mark is always refused on a block: on thinking and on empty text."""
    return block_type(block) in THINKING_TYPES or is_blank_text(block)


def strip_marks(body: Body) -> Body:
    """A body without any mark; never inside tool inputs or schemas."""
    def unmarked(value: Any) -> Any:
        marked = isinstance(value, dict) and "cache_control" in value
        return without(value, "cache_control") if marked else value

    body = each_marked(body, unmarked)
    body = each_message(body, unmarked)
    return without_keys(body, "cache_control") if "cache_control" in body else body


def each_marked(body: Body, change: Callable[[Any], Any]) -> Body:
    """A body with every block changed that may bear a mark: tools, system, content, results."""
    for key in ("tools", "system"):
        if isinstance(body.get(key), list):
            items = mapped_list(body[key], change)
            if items is not body[key]:
                body = dict(body, **{key: items})

    def deep(block: Any) -> Any:
        block = change(block)
        if block_type(block) in RESULT_TYPES and isinstance(block.get("content"), list):
            content = mapped_list(block["content"], change)
            if content is not block["content"]:
                return edited(block, content=content)
        return block

    return each_message(body, lambda message: changed_blocks(message, deep))


def marked_places(body: Body) -> list:
    """Everything that bears a mark, in the order in which marks are given up."""
    found: list = []
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if is_message(message) and isinstance(message["content"], list):
            for block in message["content"]:
                if block_type(block) in RESULT_TYPES:
                    note_marks(block.get("content"), found)
                if isinstance(block, dict) and block.get("cache_control") is not None:
                    found.append(block)
    note_marks(body.get("system"), found)
    note_marks(body.get("tools"), found)
    return found


def note_marks(items: Any, found: list) -> None:
    """Add those of a list's objects that bear a mark."""
    if isinstance(items, list):
        found.extend(item for item in items
                     if isinstance(item, dict) and item.get("cache_control") is not None)


# The order matters: what one rule leaves behind the next ones may pair or join, and
# a stray result must be text before a merge puts results in front.
SANITIZE_RULES: Mapping[str, Callable[[Body, Any], Body]] = {
    "system_messages": rule_system_messages,
    "thinking": rule_thinking,
    "empty_text": rule_empty_text,
    "tool_pairs": rule_tool_pairs,
    "cache_control": rule_cache_control,
    "merge_roles": rule_merge_roles,
}
# What a setting may be; a boolean where there is no list.
SANITIZE_CHOICES: Mapping[str, tuple[str, ...]] = {
    "system_messages": ("keep", "user"),
    "thinking": ("keep", "unsigned", "drop"),
    "cache_control": ("keep", "strip"),
}
# Contract section 6: the columns "native" and "others", and the two words.
SANITIZE_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "native": {
        "system_messages": "keep",
        "thinking": "keep",
        "empty_text": True,
        "merge_roles": False,
        "tool_pairs": True,
        "cache_control": "keep",
        "unknown_fields": False,
    },
    "others": {
        "system_messages": "keep",
        "thinking": "unsigned",
        "empty_text": True,
        "merge_roles": True,
        "tool_pairs": True,
        "cache_control": "keep",
        "unknown_fields": False,
    },
    "strict": {
        "system_messages": "user",
        "thinking": "unsigned",
        "empty_text": True,
        "merge_roles": True,
        "tool_pairs": True,
        "cache_control": "strip",
        "unknown_fields": True,
    },
    "off": {
        "system_messages": "keep",
        "thinking": "keep",
        "empty_text": False,
        "merge_roles": False,
        "tool_pairs": False,
        "cache_control": None,
        "unknown_fields": False,
    },
}


def is_clean(body: Body, profile: Mapping[str, Any]) -> bool:
    """Whether surely no rule finds anything to do, from one look at every block.

    It errs on the safe side: what is odd in any way is left to the rules.  Most bodies
    are clean, and the rules' own walks took 0.8 ms of a conversation of 1 MB, this one 0.2.
    """
    try:
        marks = marks_of_clean_turns(body["messages"], profile)
        if "system" in body and isinstance(body["system"], list):
            marks += marks_of_clean_blocks(body["system"])
        if "tools" in body and isinstance(body["tools"], list):
            marks += sum(map(operator.contains, body["tools"], repeat("cache_control")))
    except (AttributeError, LookupError, TypeError):
        return False
    if "cache_control" in body:
        marks += 1
    return marks <= (0 if profile["cache_control"] == "strip" else MAX_CACHE_MARKS)


def marks_of_clean_turns(messages: list, profile: Mapping[str, Any]) -> int:
    """How many marks messages bear.  Raises where a rule may find something to do."""
    roles = ROLES[:2] if profile["system_messages"] == "user" else ROLES  # the system is last
    merges, marks, last = profile["merge_roles"], 0, None
    open_calls: set[str] = set()
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in roles or merges and role == last or not content:
            raise LookupError("a role or a message")
        last = role
        if "cache_control" in message:
            marks += 1
        if not isinstance(content, str):
            marks += marks_of_clean_content(content, role, open_calls, profile["thinking"])
        elif content.isspace() or open_calls and role != "system":
            raise LookupError("blank text, or calls without results")
    return marks


def marks_of_clean_content(blocks: list, role: str, open_calls: set[str], thinking: str) -> int:
    """The same for a message's blocks, whose calls and results come and go in ``open_calls``."""
    if open_calls and role == "assistant":
        raise LookupError("calls without results")
    marks, is_front = 0, role == "user"
    for block in blocks:
        kind = block["type"]
        if kind == "tool_result" and role == "user":
            if not is_front:
                raise LookupError("a result behind other blocks")
            open_calls.remove(block["tool_use_id"])
        else:
            is_front = False
        if kind == "text":
            if not block["text"] or block["text"].isspace():
                raise LookupError("blank text")
        elif kind == "tool_use":
            if role == "assistant":
                open_calls.add(block["id"])
        elif kind in RESULT_TYPES:
            if isinstance(block.get("content"), list):
                marks += marks_of_clean_blocks(block["content"])
        elif kind in THINKING_TYPES and (
                "cache_control" in block or thinking == "drop"
                or thinking == "unsigned" and kind == "thinking" and not block.get("signature")):
            raise LookupError("thinking")
        if "cache_control" in block:
            marks += 1
    if open_calls and role == "user":
        raise LookupError("calls without results")
    return marks


def marks_of_clean_blocks(blocks: list) -> int:
    """The same for the blocks of the system prompt and of a tool's result."""
    marks = 0
    for block in blocks:
        kind = block["type"]
        if kind in RESULT_TYPES or kind in THINKING_TYPES or kind == "text" and (
                not block["text"] or block["text"].isspace()):
            raise LookupError("thinking, blank text, or what may hold some")
        if "cache_control" in block:
            marks += 1
    return marks


def sanitized(body: Body, profile: Mapping[str, Any]) -> tuple[Body, list[str]]:
    """A body after all rules, and the names of those that changed it."""
    edits: list[str] = []
    for name, rule in SANITIZE_RULES.items():
        if profile[name] is None:
            continue
        after = rule(body, profile[name])
        if after is not body:
            edits.append(name)
            body = after
    return body, edits


# -- warm-up


REMINDER = ("<system-reminder>", "</system-reminder>")


def is_warmup(messages: Sequence[Any]) -> bool:
    """Whether the newest message is the user's and says ``Warmup`` and nothing else.

    Blocks that are reminders as a whole do not count; anything but text does.
    """
    newest = messages[-1]
    content = newest.get("content")
    if isinstance(content, str):
        return content.strip() == "Warmup" and newest.get("role") == "user"
    if not isinstance(content, list) or newest.get("role") != "user":
        return False
    texts = []
    for block in content:
        if block_type(block) != "text" or not isinstance(block.get("text"), str):
            return False
        text = block["text"].strip()
        one_reminder = text.startswith(REMINDER[0]) and (
            text.find(REMINDER[1]) == len(text) - len(REMINDER[1]))
        if not one_reminder:
            texts.append(text)
    return texts == ["Warmup"]


def warmup_message(model: str, message_id: str) -> dict:
    """The answer to a warm-up: what it wanted was a connection and a cache, not words."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [text_block("OK")],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def message_events(message: Mapping[str, Any]) -> list[bytes]:
    """A message of one text block as the six events of its stream."""
    start = dict(message, content=[], stop_reason=None,
                 usage=dict(message["usage"], output_tokens=0))
    delta = {"type": "text_delta", "text": message["content"][0]["text"]}
    events = events_of_blocks(start, [(text_block(""), [delta])], message["stop_reason"],
                              message["usage"]["output_tokens"])
    return [encode_sse_event(event["type"], event) for event in events]


def events_of_blocks(
    start: Mapping[str, Any],
    blocks: Sequence[tuple[dict, list[dict]]],
    stop_reason: str,
    output_tokens: int,
) -> list[dict]:
    """The events of a stream of ours: a message's start, its blocks with their deltas, its end."""
    events: list[dict] = [{"type": "message_start", "message": start}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.extend({"type": "content_block_delta", "index": index, "delta": delta}
                      for delta in deltas)
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "usage": {"output_tokens": output_tokens},
                   "delta": {"stop_reason": stop_reason, "stop_sequence": None}})
    events.append({"type": "message_stop"})
    return events


# -- conversations

SESSION_HEADER = "x-claude-code-session-id"
SESSION_IN_USER_ID = re.compile(r"_session_([0-9A-Za-z-]{8,64})$")


def conversation_key(body: Body) -> Union[str, int]:
    """What stays the same while a conversation grows (contract section 9), if no head tells.

    Claude Code's session in ``metadata.user_id``; else a number, the hash of what begins
    the conversation.  It stays in this process, whose own hash serves: SHA-256 of all the
    text as one took 15 us more, to write the number down 0.3.
    """
    if "metadata" in body:
        metadata = body["metadata"]
        user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
        if isinstance(user_id, str) and "session" in user_id:
            found = session_of_user(user_id)
            if isinstance(found, str) and VISIBLE_ASCII.fullmatch(found):
                return found
    first = None
    for message in body["messages"]:
        if message.get("role") == "user":
            first = message.get("content")
            break
    opening = body.get("system"), first
    try:
        try:
            return hash(opening)
        except TypeError:  # not strings both
            return hash(tuple(map(bare_content, opening)))
    except RecursionError:
        return ""  # nested as deep as may be: no conversation that a person holds


def session_of_user(user_id: str) -> Any:
    """The session in a user id: old versions of Claude Code append it, newer ones write JSON."""
    if user_id.lstrip().startswith("{"):
        return (json_object(user_id.encode("utf-8", "replace")) or {}).get("session_id")
    match = SESSION_IN_USER_ID.search(user_id)
    return match.group(1) if match else None


def bare_content(content: Any) -> Any:
    """Content for its hash: each block bare; one block of text is the string that it is."""
    if not isinstance(content, list):
        return repr(content) if isinstance(content, dict) else content
    blocks = tuple(map(bare_block, content))
    return blocks[0] if len(blocks) == 1 else blocks


def bare_block(block: Any) -> Any:
    """A block without its cache mark, which moves: its text, or all of it in one order."""
    if isinstance(block, dict):
        block = without_keys(block, "cache_control")
        if len(block) == 2 and block.get("type") == "text" and isinstance(block.get("text"), str):
            return block["text"]
    return (repr(with_sorted_members(block)),)


def with_sorted_members(value: Any) -> Any:
    """A value whose objects' members stand in one order, as pairs."""
    if isinstance(value, dict):
        return sorted((key, with_sorted_members(below)) for key, below in value.items())
    return [with_sorted_members(below) for below in value] if isinstance(value, list) else value


# -- background tasks

# How the prompt of each task of Claude Code begins, seen in 1.0.128 to 2.1.329
# (tests/data/background).  Left out on purpose: the check of a command for
# injections, whose answer decides a permission.
BACKGROUND_PROMPTS = (
    "You are naming a coding session so the user can pick it out",
    "Generate a concise, sentence-case title (3-7 words) that",
    "Generate a short kebab-case name (2-4 words) that captures",
    "Analyze if this message indicates a new conversation topic.",
    "You are analyzing output from a bash command to determine if",
    "Extract any file paths that this command reads or modifies.",
    "Summarize this coding conversation in under 50 characters.",
    "Write a short summary label describing what these tool calls",
)
ATTRIBUTION_START = "x-anthropic-billing-header: cc_version="
CLAUDE_CODE_IDENTITY = "You are Claude Code, Anthropic's official CLI for Claude."
CLAUDE_CODE_USER = re.compile(r"user_[0-9a-f]{64}_account_[0-9a-f-]*_session_[0-9a-f-]{36}")


def is_background_task(body: Body) -> bool:
    """Whether a request is surely one of Claude Code's small tasks: a title, a topic, a label.

    Its words alone do not tell: it must have Claude Code's user id, no tools, no
    thinking, one prompt behind the identity, and a single turn.
    """
    thinking = body.get("thinking")
    off = thinking is None or isinstance(thinking, dict) and thinking.get("type") == "disabled"
    if body.get("tools") or body.get("tool_choice") or not off:
        return False
    metadata = body.get("metadata")
    if not is_claude_code_user(metadata.get("user_id") if isinstance(metadata, dict) else None):
        return False
    return is_single_turn(body["messages"]) and system_prompt_of(body).startswith(BACKGROUND_PROMPTS)


def is_claude_code_user(user_id: Any) -> bool:
    """Whether ``metadata.user_id`` has the form that Claude Code gives it."""
    if not isinstance(user_id, str):
        return False
    if CLAUDE_CODE_USER.fullmatch(user_id):
        return True
    try:
        value = json.loads(user_id)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "device_id" in value and "session_id" in value


def is_single_turn(messages: Sequence[Any]) -> bool:
    """One user message, and at most the opening brace of the answer behind it."""
    if not all(map(is_message, messages)):
        return False
    roles = [message["role"] for message in messages]
    brace = roles == ["user", "assistant"] and blocks_of(messages[1]) == [text_block("{")]
    return roles == ["user"] or brace


def system_prompt_of(body: Body) -> str:
    """The one prompt behind Claude Code's attribution and identity, or ""."""
    system = body.get("system")
    texts = [block.get("text") if isinstance(block, dict) else None
             for block in system] if isinstance(system, list) else []
    if texts and isinstance(texts[0], str) and texts[0].startswith(ATTRIBUTION_START):
        texts = texts[1:]
    if texts and texts[0] == CLAUDE_CODE_IDENTITY:
        texts = texts[1:]
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else ""


# -- models


THINKING_SUFFIX = "-thinking"
# openai-mapping.md 5.1: the first that think at all, the last that take a budget,
# and the last that take sampling parameters beside it or refuse a forced tool.
FIRST_THINKING = (3, 7)
LAST_WITH_BUDGET = (4, 5)
LAST_WITH_SAMPLING = (4, 6)
MIN_BUDGET_TOKENS = 1024
MAX_BUDGET_TOKENS = 32000
SAMPLING_FIELDS = ("temperature", "top_p", "top_k")


def without_suffix(model: str) -> str:
    """An id without the suffix, whosever it is; the id itself where it has none."""
    return model[:-len(THINKING_SUFFIX)] if model.endswith(THINKING_SUFFIX) else model


def split_thinking(model: str) -> tuple[str, bool]:
    """An id without the suffix that asks for thinking, and whether it had it.

    Only of Claude's ids: others (kimi-k2-thinking) are called so.
    """
    stem = without_suffix(model)
    if stem == model or model_generation(stem) is None:
        return model, False
    return stem, True


def with_thinking(body: Body, model: str) -> Body:
    """A body that asks for thinking in the way of a model's generation.

    A client's own ``thinking`` wins; a forced tool keeps thinking off where the
    two are refused together, and so does what refuses a budget.
    """
    generation = model_generation(model)
    if generation is None or generation < FIRST_THINKING or "thinking" in body:
        return body
    choice = body.get("tool_choice")
    forced = isinstance(choice, dict) and choice.get("type") in ("any", "tool")
    if forced and generation <= LAST_WITH_SAMPLING:
        return body
    if generation <= LAST_WITH_BUDGET and refuses_budget(body):
        return body
    if generation <= LAST_WITH_SAMPLING:
        body = without_keys(body, *SAMPLING_FIELDS)
    if generation > LAST_WITH_BUDGET:
        return dict(body, thinking={"type": "adaptive"})
    return with_budget(body)


def refuses_budget(body: Body) -> bool:
    """Whether manual thinking would be refused: beside a prefill, within a tool loop that
    began without thinking, or where no answer is wanted (openai-mapping.md 5.2)."""
    messages = body["messages"] if isinstance(body.get("messages"), list) else []
    if body.get("max_tokens") == 0:
        return True
    if not messages or not is_message(messages[-1]):
        return False
    if messages[-1]["role"] == "assistant":
        return True
    answers = any(block_type(block) == "tool_result" for block in blocks_of(messages[-1]))
    before = next((message for message in reversed(messages)
                   if is_message(message) and message["role"] == "assistant"), None)
    return answers and before is not None and not any(
        block_type(block) in THINKING_TYPES for block in blocks_of(before))


def with_budget(body: Body) -> Body:
    """A body with a thinking budget of 80 % of max_tokens, which is raised to hold it."""
    asked = body.get("max_tokens")
    limit = asked if isinstance(asked, int) and not isinstance(asked, bool) else 0
    budget = min(max(limit * 4 // 5, MIN_BUDGET_TOKENS), MAX_BUDGET_TOKENS)
    body = dict(body, thinking={"type": "enabled", "budget_tokens": budget})
    return dict(body, max_tokens=budget + limit) if 0 < limit <= budget else body


# -- the token estimate


# There is no public tokenizer for Claude 3 and later; what
# follows counts weighted lexical pieces.  Against the old public Claude 2
# tokenizer it errs by -13..+11 % on prose, code and markup of many languages, by
# up to +27 % on pure Chinese and -23 % on base64 in short lines.  Too much is the
# safe side: clients use the number to decide when to compact a conversation.

# A run of letters this long, without a break, is encoded data as a rule.
MIN_ENCODED_RUN_CHARS = 200
# Random base64 by the same tokenizer: 1.41.  Hex has 1.7, so it comes out high.
ENCODED_CHARS_PER_TOKEN = 1.4
# Blocks in blocks: a tool_result's content is the deepest that the API knows (2);
# what lies deeper counts by its JSON text.
MAX_BLOCK_DEPTH = 8
# How much of a JPEG is searched for its size: EXIF and colour profiles come first,
# in segments of up to 64 KiB.
MAX_JPEG_HEAD_CHARS = 256 * 1024
MAX_JPEG_SEGMENTS = 200
# The API takes documents of up to 32 MB and 600 pages.
MAX_PDF_CHARS = 44 * 1024 * 1024
MAX_PDF_PAGES = 600
MAX_CALIBRATED_MODELS = 100

# One piece a match; the last group that took part says what it is.  The groups of
# a word are its first 6 letters and then steps of 4, so that a hump of camelCase
# is one match.  No group can run back over more than it has taken, and a hump is
# cut after 18 letters: the time is linear for any text.
TEXT_PIECES = re.compile(r"""
    [ ]?(?: ([A-Z]?[a-z]{1,6}) (?: ([a-z]{1,4}) (?: ([a-z]{1,4}) ([a-z]{1,4})? )? )?
          | ([A-Z]{1,6}(?![a-z]))
          | ([0-9]{1,2}) )
    | (\n[ \t\r\n]*)
    | ([ \t]{2,})
    | ([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])
    | ([\uac00-\ud7a3])
    | ([^\x20-\x7e\n\r\t])
    | ([!-/:-@\[-`{-~])\12*
""", re.VERBOSE)
# Tokens of Claude 2's tokenizer for each group; fitted on 44 texts, not derived.
PIECE_WEIGHTS = (
    0.0,   # no group: does not happen
    1.0,   # a hump of up to 6 letters
    2.0,   # of up to 10
    3.0,   # of up to 14
    4.0,   # of up to 18
    1.0,   # up to 6 capitals
    1.0,   # up to 2 digits
    0.9,   # a line break with the indent that follows
    0.6,   # other runs of blanks; a single one belongs to its word
    1.0,   # a Chinese or Japanese character
    1.1,   # a Hangul syllable
    1.2,   # any other character outside ASCII
    0.75,  # a run of one punctuation character: a few join into one token
)
# The look back keeps a run that is too short from being tried at each character.
ENCODED_RUN = re.compile(
    r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{%d,}={0,2}" % MIN_ENCODED_RUN_CHARS)
# Rulers ("-----") and rows of one letter are long runs, too, but cost few tokens.
# Random base64 without a digit in its first 200 characters has odds of 1 to 10^14.
ENCODED_SIGNS = (re.compile("[0-9]"), re.compile("[A-Za-z]"))

# What the weights above are multiplied by.  The step from Claude 2 to 3 is a guess;
# 4.7 brought a tokenizer with about 30 % more tokens for the same text (Anthropic's
# migration guide).  Other vendors' tokenizers are not known; calibration tells.
NEW_TOKENIZER = (4, 7)
TEXT_FACTORS = {
    "new": 1.40,
    "old": 1.10,
    "other": 1.00,
}

# (generation from which on, with tool_choice auto or none, with any or tool): the
# system prompt of the tool feature in tokens, newest first (Anthropic's table).
TOOL_PROMPT_TOKENS = (
    ((5, 0), 354, 474),
    ((4, 8), 290, 410),
    ((4, 7), 675, 804),
    ((4, 6), 497, 589),
    ((4, 5), 496, 588),
    ((0, 0), 313, 315),
)
FORCED_TOOL_CHOICES = frozenset(["any", "tool"])

REQUEST_TOKENS = 3
MESSAGE_TOKENS = 4
TOOL_TOKENS = 12
TOOL_USE_TOKENS = 12
TOOL_RESULT_TOKENS = 10
# A signature, or a sealed search result, stands for text that we cannot see.
SEALED_CHARS_PER_TOKEN = 4
# Anthropic: 1,500 to 3,000 tokens of text a page, and the page as an image.
PDF_PAGE_TOKENS = 2500 + 1600
PDF_BYTES_PER_PAGE = 50 * 1000
# A PDF behind a URL or a file id: a guess, nothing can be known here.
UNKNOWN_PDF_PAGES = 5
PDF_PAGE = re.compile(rb"/Type\s{0,8}/Page(?!s)")

# One token for a patch of 28x28 pixels, after scaling down to the tier.
IMAGE_PATCH_PIXELS = 28


class ImageTier(NamedTuple):
    """What a generation of models makes of an image; ``unknown`` is the flat number."""

    max_edge_pixels: int
    max_tokens: int
    unknown_tokens: int


IMAGE_TIERS = {
    "new": ImageTier(2576, 4784, 4784),
    "old": ImageTier(1568, 1568, 1600),
    "other": ImageTier(1568, 1568, 1600),
}

CLAUDE_NAME = re.compile(r"(?:^|[^a-z])claude(?![a-z])")
# "claude-3-7-sonnet", "claude-v2", "claude-instant-1-2", "claude-opus-4-5"; what
# has three digits and more is a date.
CLAUDE_GENERATION = re.compile(
    r"claude-(?:v|instant-v?|(?:opus|sonnet|haiku|fable|mythos)-)?"
    r"([0-9]{1,2})(?:-([0-9]{1,2}))?(?![0-9])")
NEWEST_GENERATION = (99, 0)


def model_generation(model: str) -> Optional[tuple[int, int]]:
    """(major, minor) of a Claude model id; None for a model of another vendor.

    A Claude id that says no known family and version counts as the newest.

    >>> model_generation("us.anthropic.claude-sonnet-4-5-20250929-v1:0")
    (4, 5)
    """
    name = model.lower().replace(".", "-")
    if not CLAUDE_NAME.search(name):
        return None
    match = CLAUDE_GENERATION.search(name)
    if match is None:
        return NEWEST_GENERATION
    return int(match.group(1)), int(match.group(2) or 0)


def token_class(generation: Optional[tuple[int, int]]) -> str:
    """The key of TEXT_FACTORS and IMAGE_TIERS: "new", "old" or "other"."""
    if generation is None:
        return "other"
    return "new" if generation >= NEW_TOKENIZER else "old"


def text_weight(text: str) -> float:
    """Tokens of a text by Claude 2's measure, before the model's factor.

    >>> text_weight("getUserName(42);")  # get User Name ( 42 ) ;
    6.25
    """
    weight, at = 0.0, 0
    if len(text) >= MIN_ENCODED_RUN_CHARS:
        for run in ENCODED_RUN.finditer(text):
            end = run.start() + MIN_ENCODED_RUN_CHARS
            if all(sign.search(text, run.start(), end) for sign in ENCODED_SIGNS):
                weight += pieces_weight(text, at, run.start())
                weight += (run.end() - run.start()) / ENCODED_CHARS_PER_TOKEN
                at = run.end()
    return weight + pieces_weight(text, at, len(text))


def pieces_weight(text: str, start: int, end: int) -> float:
    """The weight of the lexical pieces of ``text[start:end]``, in one pass."""
    kinds = collections.Counter(
        piece.lastindex for piece in TEXT_PIECES.finditer(text, start, end))
    return sum(PIECE_WEIGHTS[kind or 0] * count for kind, count in kinds.items())


def json_text(value: Any) -> str:
    """Compact JSON of any value; "" for what cannot be written (too deep, no JSON)."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return ""


def decode_base64_head(text: str, chars: int) -> bytes:
    """The bytes that the first ``chars`` characters stand for; b"" where they are none.

    >>> decode_base64_head("R0lGODlhAQABAAAA", 8)
    b'GIF89a'
    """
    packed = text[:chars].encode("ascii", "ignore").translate(None, b" \t\r\n")
    try:
        return base64.b64decode(packed[:len(packed) // 4 * 4])
    except ValueError:
        return b""


def _png_size(head: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def _gif_size(head: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def _webp_size(head: bytes) -> tuple[int, int]:
    # RFC 9649: the three kinds of first chunk keep the size in three ways.
    kind = head[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(head[24:27], "little") + 1,
                int.from_bytes(head[27:30], "little") + 1)
    if kind == b"VP8L":
        bits, = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(head: bytes) -> tuple[int, int]:
    # Segments up to the frame header (SOF0 to SOF15, which the tables DHT, JPG and
    # DAC interrupt); their lengths count their own two bytes.
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker, length = struct.unpack_from(">HH", head, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        # A fill byte in front of a marker (0xFFFF) is passed over alone.
        at += 1 if marker == 0xFFFF else 2 + length
    return 0, 0


# (where the signature stands, the signature, the reader, base64 characters it needs)
IMAGE_READERS = (
    (0, b"\x89PNG\r\n\x1a\n", _png_size, 64),
    (0, b"GIF8", _gif_size, 64),
    (8, b"WEBP", _webp_size, 64),
    (0, b"\xff\xd8\xff", _jpeg_size, MAX_JPEG_HEAD_CHARS),
)


def image_size(data: str) -> Optional[tuple[int, int]]:
    """(width, height) in pixels from the head of a base64 image; None if unreadable.

    >>> image_size("R0lGODlhAQACAAAA")
    (1, 2)
    """
    head = decode_base64_head(data, 64)
    for at, signature, reader, chars in IMAGE_READERS:
        if head[at:at + len(signature)] == signature:
            try:
                width, height = reader(decode_base64_head(data, chars))
            except struct.error:
                return None  # cut short
            return (width, height) if width and height else None
    return None


def image_tokens(width: int, height: int, tier: ImageTier) -> int:
    """Tokens of an image: its patches once it is scaled down to the tier.

    >>> image_tokens(1920, 1080, IMAGE_TIERS["new"]), image_tokens(1920, 1080, IMAGE_TIERS["old"])
    (2691, 1560)
    """
    scale = min(1.0, tier.max_edge_pixels / max(width, height))
    across = -(-width * scale // IMAGE_PATCH_PIXELS)
    down = -(-height * scale // IMAGE_PATCH_PIXELS)
    if across * down <= tier.max_tokens:
        return int(across * down)
    # Scaled further, until it fits: the most patches that a whole number of columns,
    # or of rows, of that shape gives.  At most 92 of either, by the edge above.
    fitting = [columns * -(-columns * height // width) for columns in range(1, int(across))]
    fitting += [rows * -(-rows * width // height) for rows in range(1, int(down))]
    return max((count for count in fitting if count <= tier.max_tokens), default=tier.max_tokens)


def pdf_pages(data: str) -> int:
    """Pages of a PDF in base64; at least 1.

    Page objects are counted; a file whose objects are all compressed shows none,
    and its size has to do.
    """
    content = decode_base64_head(data, MAX_PDF_CHARS)
    pages = len(PDF_PAGE.findall(content)) or -(-len(data) * 3 // 4 // PDF_BYTES_PER_PAGE)
    return max(1, min(pages, MAX_PDF_PAGES))


class TokenTally:
    """Adds up one request.

    ``weight`` is text by Claude 2's measure, which the model's factor applies to;
    ``flat`` is what is known in tokens of the model itself.
    """

    def __init__(self, generation: Optional[tuple[int, int]]) -> None:
        self.generation = generation
        self.weight = 0.0
        self.flat = 0.0
        self._class = token_class(generation)

    def total(self) -> int:
        """The whole number of tokens, rounded up."""
        return int(-(-(self.weight * TEXT_FACTORS[self._class] + self.flat) // 1))

    def add(self, value: Any) -> None:
        """Any value where a text is expected: other things count by their JSON text."""
        if value is not None:
            self.weight += text_weight(value if isinstance(value, str) else json_text(value))

    def add_content(self, content: Any, depth: int = 0) -> None:
        """What ``system`` and ``content`` may be: a string or a list of blocks."""
        if isinstance(content, list) and depth < MAX_BLOCK_DEPTH:
            for block in content:
                self._add_block(block, depth + 1)
        else:
            self.add(content)

    def add_message(self, message: Any) -> None:
        """One turn, with what frames it."""
        self.flat += MESSAGE_TOKENS
        if isinstance(message, dict):
            self.add_content(message.get("content"))
        else:
            self.add(message)

    def add_tools(self, tools: Any, tool_choice: Any) -> None:
        """The tools' definitions, and the system prompt that the API puts before them."""
        if not isinstance(tools, list):
            self.add(tools)
        elif tools:
            self.flat += self._tool_prompt_tokens(tool_choice)
            for tool in tools:
                self.flat += TOOL_TOKENS
                self.add(tool)

    def _tool_prompt_tokens(self, tool_choice: Any) -> int:
        if self.generation is None:
            return 0  # other vendors' templates are not known; calibration finds out
        kind = tool_choice.get("type") if isinstance(tool_choice, dict) else None
        forced = isinstance(kind, str) and kind in FORCED_TOOL_CHOICES
        return next((any_tool if forced else auto for since, auto, any_tool in TOOL_PROMPT_TOKENS
                     if self.generation >= since), 0)

    def _add_block(self, block: Any, depth: int) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        reader = self.BLOCKS.get(kind) if isinstance(kind, str) else None
        if reader is None:
            self.add(block)
        else:
            reader(self, block, depth)

    def _add_text(self, block: dict, depth: int) -> None:
        # Citations beside the text are not charged for (Anthropic's citations page).
        self.add(block.get("text"))

    def _add_thinking(self, block: dict, depth: int) -> None:
        # With its display omitted the text is empty and the signature holds it all.
        if block.get("thinking"):
            self.add(block.get("thinking"))
        else:
            self._add_sealed(block.get("signature"))

    def _add_redacted(self, block: dict, depth: int) -> None:
        self._add_sealed(block.get("data"))

    def _add_sealed(self, sealed: Any) -> None:
        if isinstance(sealed, str):
            self.flat += len(sealed) / SEALED_CHARS_PER_TOKEN

    def _add_tool_use(self, block: dict, depth: int) -> None:
        self.flat += TOOL_USE_TOKENS
        self.add(block.get("name"))
        self.add(block.get("input"))

    def _add_tool_result(self, block: dict, depth: int) -> None:
        self.flat += TOOL_RESULT_TOKENS
        self.add_content(block.get("content"), depth)

    def _add_search_result(self, block: dict, depth: int) -> None:
        for key in ("title", "source", "url"):
            self.add(block.get(key))
        self.add_content(block.get("content"), depth)
        self._add_sealed(block.get("encrypted_content"))

    def _add_image(self, block: dict, depth: int) -> None:
        source = block.get("source")
        data = source.get("data") if isinstance(source, dict) else None
        size = image_size(data) if isinstance(data, str) else None
        tier = IMAGE_TIERS[self._class]
        self.flat += tier.unknown_tokens if size is None else image_tokens(*size, tier)

    def _add_document(self, block: dict, depth: int) -> None:
        self.add(block.get("title"))
        self.add(block.get("context"))
        source = block.get("source")
        if not isinstance(source, dict):
            self.add(source)
            return
        kind, data = source.get("type"), source.get("data")
        if kind == "text":
            self.add(data)
        elif kind == "content":
            self.add_content(source.get("content"), depth)
        elif isinstance(data, str):
            self.flat += pdf_pages(data) * PDF_PAGE_TOKENS
        else:
            self.flat += UNKNOWN_PDF_PAGES * PDF_PAGE_TOKENS

    BLOCKS = {
        "document": _add_document,
        "image": _add_image,
        "mcp_tool_result": _add_tool_result,
        "mcp_tool_use": _add_tool_use,
        "redacted_thinking": _add_redacted,
        "search_result": _add_search_result,
        "server_tool_use": _add_tool_use,
        "text": _add_text,
        "thinking": _add_thinking,
        "tool_result": _add_tool_result,
        "tool_use": _add_tool_use,
        "web_search_result": _add_search_result,
        "web_search_tool_result": _add_tool_result,
    }


def estimate_tokens(values: Mapping[str, Any]) -> int:
    """Input tokens of a request to /v1/messages or count_tokens; at least 1.

    Linear in the size of the request; nothing in it can make it raise.

    >>> estimate_tokens({"model": "claude-sonnet-4-5", "system": "You are a scientist",
    ...                  "messages": [{"role": "user", "content": "Hello, Claude"}]})
    16
    """
    model = values.get("model")
    tally = TokenTally(model_generation(model) if isinstance(model, str) else None)
    tally.flat += REQUEST_TOKENS
    tally.add_content(values.get("system"))
    tally.add_tools(values.get("tools"), values.get("tool_choice"))
    # The schema of a structured answer is put before the model like a tool's.
    output = values.get("output_config")
    tally.add(output.get("format") if isinstance(output, dict) else None)
    tally.add(values.get("output_format"))
    messages = values.get("messages")
    for message in messages if isinstance(messages, list) else [messages]:
        tally.add_message(message)
    return tally.total()


class TokenCalibration:
    """How far the estimate is off for each model, learnt from real usage.

    ``real`` is all input of an answer: input_tokens and what was read from and
    written to the cache.  ``estimated`` is always estimate_tokens's number, never
    one that ``apply`` has corrected: the ratio would chase itself.
    """

    # The weight of a new observation.  Before the fifth it is an equal share, with
    # the estimate itself as the first: one odd request does not bend the number,
    # and a handful of them is enough.
    NEW_WEIGHT = 0.2
    # What is further off is no tokenizer's difference (a cache, a proxy's own
    # prompt, a count of something else).
    LEAST, MOST = 0.5, 2.0
    # An estimate is a tenth of what a small request costs, a third where its code has not
    # run just now: after a model's first ones one in ten seconds does.
    FIRST_COUNT, PAUSE_SECONDS = 20, 10.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # model -> (ratio, observations), the one observed last at the end.
        self._ratios: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()
        # When one more observation is worth its estimate; read without the lock.
        self.due = 0.0

    def observe(self, model: str, estimated: int, real: int, now: float = 0.0) -> None:
        """Take note of an estimate and what the upstream counted for the same request."""
        if estimated <= 0 or real <= 0:
            return  # an upstream that counts nothing says 0
        sample = min(max(real / estimated, self.LEAST), self.MOST)
        with self._lock:
            ratio, seen = self._ratios.pop(model, (1.0, 0))
            weight = max(self.NEW_WEIGHT, 1 / (seen + 2))
            self._ratios[model] = (ratio + weight * (sample - ratio), seen + 1)
            self.due = now if seen + 1 < self.FIRST_COUNT else now + self.PAUSE_SECONDS
            if len(self._ratios) > MAX_CALIBRATED_MODELS:
                self._ratios.popitem(last=False)

    def apply(self, model: str, estimated: int) -> int:
        """The estimate, corrected by what this model's answers have shown; at least 1."""
        with self._lock:
            ratio, _ = self._ratios.get(model, (1.0, 0))
        return max(1, round(estimated * ratio))


# ---- 9. Configuration --------------------------------------------------------


class Problems:
    """Collects every fault of a configuration with its path, and what is only odd."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._paths: set[str] = set()
        self._settled: list[str] = []

    def error(self, path: str, message: str) -> None:
        """A fault: the configuration cannot be used.  The first of a path is enough:
        what follows from it would only hide the others."""
        if path not in self._paths and not path.startswith(tuple(self._settled)):
            self._paths.add(path)
            self.errors.append("%s: %s" % (path, message))

    def settled(self, path: str) -> None:
        """What a path holds is not to be looked into: its fault has been told."""
        self._settled.append(path + ".")

    def has(self, path: str) -> bool:
        """Whether a path, or one within it, is at fault already."""
        return any(known == path or known.startswith((path + ".", path + "["))
                   for known in self._paths)

    def told(self, path: str) -> bool:
        """Whether a path itself is at fault."""
        return path in self._paths

    def warn(self, path: str, message: str) -> None:
        """Usable, but probably not what was meant."""
        self.warnings.append("%s: %s" % (path, message))


# A reader takes (value, path, problems) and gives the value to use; a fault is
# reported to `problems` and the return value then does not matter.
Reader = Callable[[Any, str, Problems], Any]


def described(value: Any) -> str:
    """A value for an error line, by its JSON type only: it might be a secret."""
    names = ((bool, "a boolean"), (str, "a string"), (int, "a number"), (float, "a number"),
             (list, "a list"), (dict, "an object"), (type(None), "null"))
    return next((name for kind, name in names if isinstance(value, kind)), "something else")


def read_text(value: Any, path: str, problems: Problems) -> str:
    """A non-empty string."""
    if not isinstance(value, str):
        problems.error(path, "must be a string, not %s" % described(value))
        return ""
    if not value.strip():
        problems.error(path, "must not be empty")
    elif BAD_IN_HEAD.search(value):
        problems.error(path, "must not hold control characters")
    return value


def read_header_text(value: Any, path: str, problems: Problems) -> str:
    """A string that will travel in a header, whose bytes are Latin-1."""
    text = read_text(value, path, problems)
    if any(ord(char) > 255 for char in text):
        problems.error(path, "must be Latin-1, since it is sent in a header")
    return text


def read_secret(value: Any, path: str, problems: Problems) -> Secret:
    """A credential: visible ASCII, since it travels in a header."""
    text = read_text(value, path, problems).strip()
    if text and not re.fullmatch(r"[\x21-\x7e]+", text):
        problems.error(path, "must be visible ASCII without spaces")
    return Secret(text)


def read_boolean(value: Any, path: str, problems: Problems) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        problems.error(path, "must be true or false, not %s" % described(value))
    return bool(value)


def number(low: float, high: float, whole: bool = False) -> Reader:
    """A reader of numbers from ``low`` to ``high``."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            problems.error(path, "must be a %snumber, not %s"
                           % ("whole " if whole else "", described(value)))
            return low
        if not low <= value <= high:
            problems.error(path, "must be from %s to %s" % (plain_number(low), plain_number(high)))
        return value

    return read


def plain_number(value: float) -> str:
    """A number as people write it: 2147483648, not 2.14748e+09."""
    return str(int(value)) if value == int(value) else str(value)


class Choice:
    """A reader of one of a few words, its ``names``."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, value: Any, path: str, problems: Problems) -> Any:
        """The word; a fault where it is none of them."""
        if value not in self.names:
            problems.error(path, "must be one of %s%s"
                           % (", ".join(self.names), nearest(value, self.names)))
        return value


def list_of(reader: Reader) -> Reader:
    """A reader of lists."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, list):
            problems.error(path, "must be a list, not %s" % described(value))
            return ()
        return tuple(reader(item, "%s[%d]" % (path, index), problems)
                     for index, item in enumerate(value))

    return read


def map_of(reader: Reader) -> Reader:
    """A reader of objects with free keys."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            problems.error(path, "must be an object, not %s" % described(value))
            return {}
        return {key: reader(item, "%s.%s" % (path, key), problems)
                for key, item in value.items()}

    return read


def nullable(reader: Reader) -> Reader:
    """A reader that lets null through."""
    return lambda value, path, problems: (
        None if value is None else reader(value, path, problems))


def text_or_list(value: Any, path: str, problems: Problems) -> tuple[str, ...]:
    """One string, or a list of them."""
    if isinstance(value, str):
        return (read_text(value, path, problems),)
    return list_of(read_text)(value, path, problems)


def read_header_map(value: Any, path: str, problems: Problems) -> tuple[tuple[str, Secret], ...]:
    """Extra headers; names must be tokens, and not the ones that we set ourselves.

    What stands in them may be a key to something.
    """
    pairs = map_of(read_header_text)(value, path, problems)
    refused = HOP_BY_HOP | CREDENTIAL_HEADERS | {"host", "content-length"}
    for name in pairs:
        if TOKEN.fullmatch(name) is None:
            problems.error("%s.%s" % (path, name), "is not a header name")
        elif name.lower() in refused:
            problems.error("%s.%s" % (path, name), "is set by the gateway")
    return tuple((name, Secret(text)) for name, text in pairs.items())


def read_origin(value: Any, path: str, problems: Problems) -> str:
    """An origin as browsers send it: scheme, host, port, no path."""
    text = read_text(value, path, problems)
    if text and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", text):
        problems.error(path, "must be an origin such as https://app.example (never *)")
    return text


def literal_count(glob: str) -> int:
    """How many characters of a glob stand for themselves; a set stands for none."""
    return len(re.sub(r"\[!?\]?[^\]]*\]|[*?]", "", glob))


class BaseUrl(NamedTuple):
    """Where an upstream is: ``prefix`` is the path in front of /v1, without a last slash."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """The Host header's value: the port only where it is not the scheme's own."""
        host = "[%s]" % self.host if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else "%s:%d" % (host, self.port)

    @property
    @lru_cache(maxsize=256)  # asked at each call, for audit hooks
    def origin(self) -> str:
        """Scheme, host and port, as one would write it."""
        return "%s://%s" % (self.scheme, self.authority)

    def __str__(self) -> str:
        return self.origin + self.prefix


def read_url_parts(value: Any, path: str, problems: Problems) -> Any:
    """What urlsplit makes of an http or https URL without a user; None with its fault told."""
    text = read_text(value, path, problems)
    try:
        parts = urllib.parse.urlsplit(text)
        host = parts.hostname or ""
        host.encode("idna")
        parts.port  # the property raises where it is none
    except ValueError:
        # Without the exception's words: they quote parts that may be secret.
        problems.error(path, "is not a URL (its host or its port is malformed)")
        return None
    if parts.scheme not in ("http", "https") or not host:
        problems.error(path, "must begin with https:// or http:// and name a host")
        return None
    return parts


def address_of(parts: Any, prefix: str) -> BaseUrl:
    """Where a URL's parts point; ``prefix`` is the path to keep."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return BaseUrl(parts.scheme, parts.hostname, port, prefix)


NOWHERE = BaseUrl("http", "invalid", 80, "")


def read_url(value: Any, path: str, problems: Problems) -> BaseUrl:
    """A base URL: http or https, no user, query or fragment; parsed once, here."""
    parts = read_url_parts(value, path, problems)
    if parts is None:
        return NOWHERE
    if parts.username is not None or parts.query or parts.fragment:
        problems.error(path, "must not hold a user, a query or a fragment")
    if BAD_IN_TARGET.search(value):
        problems.error(path, "must be visible ASCII")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        problems.warn(path, "plain http: prompts and credentials travel unencrypted")
    prefix = parts.path.rstrip("/")
    found = re.fullmatch(r"(.*?)/+v1(/messages)?", prefix)
    if found:
        # People copy the URL with its version; the paths we append have one.
        problems.warn(path, "ends in /v1, which the gateway appends itself; left out")
        prefix = found.group(1).rstrip("/")
    return address_of(parts, prefix)


class TokenUrl(NamedTuple):
    """Where an issuer grants tokens; ``target`` is path and query, which may hold a key."""

    base: BaseUrl
    target: str

    def __repr__(self) -> str:
        return "TokenUrl(%s)" % str(self)

    def __str__(self) -> str:
        return self.base.origin + self.target.partition("?")[0]


def read_token_url(value: Any, path: str, problems: Problems) -> TokenUrl:
    """A token endpoint: a query is its own business, plain http is for loopback only."""
    parts = read_url_parts(value, path, problems)
    if parts is None:
        return TokenUrl(NOWHERE, "/")
    if parts.username is not None or parts.fragment:
        problems.error(path, "must not hold a user or a fragment")
    if BAD_IN_TARGET.search(value):
        problems.error(path, "must be visible ASCII")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        problems.error(path, "must be https, since a refresh token is sent there")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return TokenUrl(address_of(parts, ""), target)


class ProxyAddress(NamedTuple):
    """An HTTP proxy; ``authorization`` is its Proxy-Authorization value, or None."""

    host: str
    port: int
    authorization: Optional[Secret]

    def __str__(self) -> str:
        return "http://%s:%d" % (self.host, self.port)


def parse_proxy(text: str) -> ProxyAddress:
    """``http://user:password@host:port``; scheme, user and port may be left out.

    Raises ValueError.  A proxy that is itself reached over TLS is not supported.
    """
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else "http://" + text)
        port = parts.port or 80
        (parts.hostname or "").encode("idna")
    except ValueError:
        # Without the exception's words: they may quote the password.
        raise ValueError("the proxy's host or port is malformed") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("a proxy must be http://HOST:PORT")
    authorization = None
    if parts.username is not None:
        pair = "%s:%s" % (urllib.parse.unquote(parts.username),
                          urllib.parse.unquote(parts.password or ""))
        token = base64.b64encode(encode_lossless(pair)).decode("ascii")
        authorization = Secret("Basic " + token)
    return ProxyAddress(parts.hostname, port, authorization)


def read_proxy(value: Any, path: str, problems: Problems) -> Optional[ProxyAddress]:
    """A proxy's URL."""
    text = read_text(value, path, problems)
    try:
        return parse_proxy(text)
    except ValueError as error:
        problems.error(path, str(error))
        return None


class KeyCommand(NamedTuple):
    """A command that prints the key; its words may hold secrets, so that repr has the first."""

    words: tuple[str, ...]
    ttl_seconds: float

    def __str__(self) -> str:
        return self.words[0]

    def __repr__(self) -> str:
        return "KeyCommand(%r, …)" % str(self)


def read_command(value: Any, path: str, problems: Problems) -> tuple[str, ...]:
    """A command: a list of words, or a string split into them; no shell ever sees it."""
    if isinstance(value, str):
        try:
            words = split_command(value, os.name == "nt")
        except ValueError:
            problems.error(path, "has a quote that is not closed")
            return ()
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = value
    else:
        problems.error(path, "must be a string or a list of strings")
        return ()
    if not (words and words[0].strip()):
        problems.error(path, "must not be empty")
    if any("\0" in word for word in words):
        problems.error(path, "must not hold NUL")
    return tuple(words)


def split_command(text: str, is_windows: bool) -> list[str]:
    """A command's words as a shell would split them.  Raises ValueError.

    On Windows a backslash is a part of paths, not an escape.

    >>> split_command('"C:\\\\my tools\\\\key.exe" -n work', True)
    ['C:\\\\my tools\\\\key.exe', '-n', 'work']
    """
    if not is_windows:
        return shlex.split(text)
    words = shlex.split(text, posix=False)
    return [word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
            for word in words]


class TokenGrant(NamedTuple):
    """A refresh grant (RFC 6749 section 6); ``store`` is the file where it lives on."""

    token_url: TokenUrl
    client_id: str
    refresh_token: Secret
    store: str
    client_secret: Optional[Secret]
    scope: Optional[str]

    def __str__(self) -> str:
        return str(self.token_url)


class Setting(NamedTuple):
    """One row of a settings table; ``path`` is dotted, ``read`` parses the value.

    ``flag`` and ``env`` are its command line option and environment variable.
    """

    path: str
    read: Reader
    default: Any
    about: str
    flag: str = ""
    env: str = ""


CLIENT_KEY_SETTINGS = (
    Setting("name", read_text, None, "how the key is called in logs"),
    Setting("key", read_secret, None, "what the client presents"),
    Setting("requests_per_minute", number(1, 1e6), None, "above it the client gets 429"),
)

ACCOUNT_SETTINGS = (
    Setting("name", read_header_text, None, "told to clients as X-Account-Email, and in logs"),
    Setting("api_key", read_secret, None, "sent in the provider's credential_header"),
    Setting("auth_token", read_secret, None, "sent as Authorization: Bearer"),
    Setting("key_command", read_command, None, "a command that prints the key"),
    Setting("key_ttl_seconds", number(1, 1e7), 300, "how long its output holds"),
    Setting("token", lambda value, path, problems: read_grant(value, path, problems), None,
            "an OAuth refresh grant"),
    Setting("priority", number(-1e6, 1e6), 0, "lower goes first"),
    Setting("weight", number(0.001, 1e6), 1, "share under the strategy weighted"),
    Setting("requests_per_minute", number(1, 1e6), None, "it is never asked more often"),
    Setting("max_concurrent", number(1, 1e6, whole=True), None, "never more at once"),
    Setting("models", list_of(read_text), (), "globs of the ids it may serve; none means all"),
    Setting("enabled", read_boolean, True, "false takes it out"),
)

TOKEN_SETTINGS = (
    Setting("token_url", read_token_url, None, "the issuer's token endpoint"),
    Setting("client_id", read_text, None, "who the issuer takes the gateway for"),
    Setting("refresh_token", read_secret, None, "the first one; the store has its successors"),
    Setting("store", read_text, None, "a file for what the issuer gives"),
    Setting("client_secret", read_secret, None, "where the issuer gave one"),
    Setting("scope", read_text, None, "what to ask for; the issuer's default otherwise"),
)

SANITIZE_SETTINGS = tuple(
    Setting(name, Choice(*SANITIZE_CHOICES[name]) if name in SANITIZE_CHOICES else read_boolean,
            None, "see the table of rules")
    for name in SANITIZE_PROFILES["native"])

PROVIDER_SETTINGS = (
    Setting("name", read_header_text, None, "told to clients as X-Gateway-Provider"),
    Setting("preset", read_text, None, "known defaults; the name's own where there is one"),
    Setting("type", Choice("anthropic"), "anthropic", "the protocol it speaks"),
    Setting("base_url", read_url, None, "what stands in front of /v1/messages"),
    Setting("owned_by", read_text, None, "the owner in model lists"),
    Setting("models", list_of(read_text), None, "ids to list; they inform, they never refuse"),
    Setting("model_map", map_of(read_text), {}, "client's id or glob to the upstream's id"),
    Setting("default_model", read_text, None, "for ids that the provider does not know"),
    Setting("credential_header", Choice("x-api-key", "authorization"), None,
            "where api_key is sent"),
    Setting("betas.add", list_of(read_text), (), "anthropic-beta tokens to add"),
    Setting("betas.drop", list_of(read_text), (), "globs of anthropic-beta tokens to drop"),
    Setting("headers", read_header_map, (), "extra headers for the upstream"),
    Setting("sanitize", lambda value, path, problems: read_sanitize(value, path, problems), {},
            "repairs of the body: off, strict, or an object of rules"),
    Setting("count_tokens", Choice("upstream", "estimate"), "upstream", "who counts tokens"),
    Setting("proxy", read_proxy, None, "an HTTP proxy for this provider alone"),
    Setting("ca_file", read_text, None, "certificates trusted beside the system's"),
    Setting("priority", number(-1e6, 1e6), 0, "lower goes first"),
    Setting("weight", number(0.001, 1e6), 1, "share under the strategy weighted"),
    Setting("enabled", read_boolean, True, "false takes it out"),
    Setting("accounts", lambda value, path, problems: read_accounts(value, path, problems), (),
            "whose credentials are used; none passes the client's own on"),
)

SETTINGS = (
    Setting("host", read_text, "127.0.0.1", "address to listen on", flag="--host"),
    Setting("port", number(0, 65535, whole=True), 8045, "port to listen on; 0 takes any free one",
            flag="--port"),
    Setting("auth.mode", Choice("auto", "off", "all_except_health", "strict"), "auto",
            "who needs a key", flag="--auth"),
    Setting("auth.api_keys", lambda value, path, problems: read_client_keys(value, path, problems),
            (), "keys that clients present", flag="--api-key", env="CLAUDE_GATEWAY_API_KEY"),
    Setting("providers", lambda value, path, problems: read_providers(value, path, problems), (),
            "the upstreams; none means anthropic without accounts",
            flag="--upstream, --upstream-key",
            env="CLAUDE_GATEWAY_UPSTREAM, CLAUDE_GATEWAY_UPSTREAM_KEY"),
    Setting("routing.strategy",
            Choice("failover", "round_robin", "weighted", "shuffle", "least_loaded"), "failover",
            "how accounts of one priority are chosen"),
    Setting("routing.models", map_of(text_or_list), {},
            "glob of model ids to a provider or a list"),
    Setting("routing.sticky", read_boolean, True, "a conversation stays on its account"),
    Setting("routing.background_model", nullable(read_text), None,
            "for Claude Code's titles, topics and summaries"),
    Setting("retry.max_attempts", number(1, 10, whole=True), 3, "upstream calls per request"),
    Setting("retry.max_wait_seconds", number(0, 600), 30, "for an account, all waits of one request together"),
    Setting("timeouts.connect_seconds", number(0.1, 300), 10, "TCP and TLS together"),
    Setting("timeouts.first_byte_seconds", number(0.1, 3600), 120, "until the response head"),
    Setting("timeouts.idle_seconds", number(0.1, 3600), 300, "silence within an answer"),
    Setting("timeouts.client_seconds", number(0.1, 3600), 60, "for a client's head, body, reads"),
    Setting("timeouts.keepalive_seconds", number(0.1, 3600), 75, "idle client connections"),
    Setting("timeouts.shutdown_seconds", number(0, 3600), 30, "for requests when stopping"),
    Setting("limits.body_bytes", number(1024, 1 << 31, whole=True), 33554432, "request bodies"),
    Setting("limits.connections", number(1, 100000, whole=True), 2048, "client connections"),
    Setting("stream.hold_seconds", number(0, 300), 20, "a stream's head waits for its first content; 0 is never"),
    Setting("stream.ping_seconds", number(1, 300), 15, "silence between pings after that"),
    Setting("stream.collect", Choice("auto", "always", "never"), "auto",
            "ask for a stream where the client wants none, and collect it"),
    Setting("warmup", Choice("intercept", "forward"), "intercept", "warm-up requests"),
    Setting("telemetry", Choice("drop", "forward"), "drop", "client telemetry"),
    Setting("log.level", Choice("debug", "info", "warning", "error"), "info", "what is logged",
            flag="--log-level"),
    Setting("log.format", Choice("text", "json"), "text", "how it is logged",
            flag="--log-format"),
    Setting("cors_origins", list_of(read_origin), (), "web pages that may call"),
    Setting("allowed_hosts", list_of(read_text), (), "Host names allowed without keys"),
)


def nearest(name: Any, known: Sequence[str]) -> str:
    """A hint for a word that is not known: "; did you mean ...?", or nothing."""
    import difflib  # only where a configuration is wrong
    close = ([word for word in known if word.startswith("%s_" % name)]
             or difflib.get_close_matches(str(name), known, 1, 0.5))
    return "; did you mean %s?" % close[0] if close else ""


def read_table(rows: Sequence[Setting], value: Any, path: str, problems: Problems) -> dict:
    """An object by a settings table: every row's value by its last name, groups nested.

    Keys that no row names are faults with the nearest known key.
    """
    if not isinstance(value, dict):
        problems.error(path or "configuration", "must be an object, not %s" % described(value))
        problems.settled(path)
        value = {}
    names = list(dict.fromkeys(row.path.split(".")[0] for row in rows))
    for key in value:
        if key not in names:
            hint = nearest(key, names) or "; known are %s" % ", ".join(names)
            problems.error(joined(path, str(key)), "unknown key" + hint)
    result = {}
    for name in names:
        group = [row._replace(path=row.path[len(name) + 1:]) for row in rows
                 if row.path.startswith(name + ".")]
        if group:
            result[name] = read_table(group, value.get(name, {}), joined(path, name), problems)
            continue
        row = next(row for row in rows if row.path == name)
        result[name] = row.default
        if name in value:
            result[name] = row.read(value[name], joined(path, name), problems)
    return result


def joined(path: str, name: str) -> str:
    """A path one level deeper."""
    return "%s.%s" % (path, name) if path else name


class ClientKey(NamedTuple):
    """A key that clients present; ``requests_per_minute`` is None for no limit."""

    name: str
    key: Secret
    requests_per_minute: Optional[float]


class Account(NamedTuple):
    """Whose credential goes upstream.  ``header`` is the pair's name, ``secret`` its key.

    Where there is a ``source``, the secret is empty and comes from section 14.
    """

    name: str
    header: str
    secret: Secret
    priority: float
    weight: float
    requests_per_minute: Optional[float]
    max_concurrent: Optional[int]
    models: tuple[str, ...]
    enabled: bool
    source: Union[KeyCommand, TokenGrant, None] = None

    def credentials(self, secret: Optional[Secret] = None) -> list[tuple[str, str]]:
        """The header to send; with ``secret`` for one that was had since."""
        key = (secret or self.secret).reveal()
        return [(self.header, "Bearer " + key if self.header == "Authorization" else key)]


class Provider(NamedTuple):
    """An upstream and its accounts; without accounts the client's credential is used."""

    name: str
    preset: Optional[str]
    type: str
    base_url: BaseUrl
    owned_by: str
    models: tuple[str, ...]
    model_map: Mapping[str, str]
    default_model: Optional[str]
    credential_header: str
    betas: BetaRule
    headers: tuple[tuple[str, Secret], ...]
    sanitize: Mapping[str, Any]
    refused_fields: tuple[str, ...]
    count_tokens: str
    proxy: Optional[ProxyAddress]
    ca_file: Optional[str]
    priority: float
    weight: float
    enabled: bool
    accounts: tuple[Account, ...]

    def mapped(self, model: str) -> Optional[str]:
        """The upstream's id for a client's, where model_map has one: exact beats glob,
        the glob with most literal characters beats the rest."""
        if model in self.model_map:
            return self.model_map[model]
        globs = [glob for glob in self.model_map if fnmatch.fnmatchcase(model, glob)]
        if not globs:
            return None
        return self.model_map[max(globs, key=literal_count)]

    def knows(self, model: str) -> bool:
        """Whether it lists or maps an id."""
        return model in self.models or self.mapped(model) is not None

    def upstream_model(self, model: str) -> str:
        """The id to send upstream: mapped, else the default for ids it does not list."""
        mapped = self.mapped(model)
        if mapped is not None:
            return mapped
        return model if model in self.models else self.default_model or model


class Auth(NamedTuple):
    """Who needs a key, and which there are."""

    mode: str
    api_keys: tuple[ClientKey, ...]


class Routing(NamedTuple):
    """Which provider serves a model."""

    strategy: str
    models: Mapping[str, tuple[str, ...]]
    sticky: bool
    background_model: Optional[str]


class Retry(NamedTuple):
    """Bounds on what one request may cost."""

    max_attempts: int
    max_wait_seconds: float


class Timeouts(NamedTuple):
    """All in seconds."""

    connect_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    client_seconds: float
    keepalive_seconds: float
    shutdown_seconds: float


class Limits(NamedTuple):
    """What a client may send and hold."""

    body_bytes: int
    connections: int


class Streaming(NamedTuple):
    """The hold and the collection of streams."""

    hold_seconds: float
    ping_seconds: float
    collect: str


class LogSettings(NamedTuple):
    """What is logged, and how."""

    level: str
    format: str


# The preset's default where a key of the provider is not set.  base_url None:
# the user must give one.  Sources: contract section 3 and providers.md, rows
# with a mark other than [M]; ids of the anthropic row: openai-mapping.md 5.1.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "anthropic": {
        "base_url": "https://api.anthropic.com",
        "owned_by": "anthropic",
        "credential_header": "x-api-key",
        "models": (
            "claude-opus-5-5",
            "claude-sonnet-5-5",
            "claude-haiku-5-5",
            "claude-fable-5-2",
            "claude-opus-5",
            "claude-sonnet-5",
            "claude-opus-4-8",
            "claude-opus-4-7",
            "claude-opus-4-6",
            "claude-sonnet-4-6",
            "claude-opus-4-5-20251101",
            "claude-haiku-4-5-20251001",
            "claude-sonnet-4-5-20250929",
        ),
    },
    "zai": {
        "base_url": "https://api.z.ai/api/anthropic",
        "owned_by": "zhipu",
        "credential_header": "authorization",
        "models": ("GLM-4.7", "GLM-4.5-Air"),
    },
    "deepseek": {
        "base_url": "https://api.deepseek.com/anthropic",
        "credential_header": "x-api-key",
    },
    "moonshot": {
        "base_url": "https://api.moonshot.ai/anthropic",
        "credential_header": "authorization",
    },
    "minimax": {
        "base_url": "https://api.minimax.io/anthropic",
        "credential_header": "x-api-key",
        # Wants its thinking blocks back as they were.
        "sanitize": {"thinking": "keep"},
    },
    # Its base URL holds the workspace and the region; the user must give it.
    "qwen": {
        "credential_header": "x-api-key",
        "sanitize": {"system_messages": "user"},
    },
    "openrouter": {
        "base_url": "https://openrouter.ai/api",
        "credential_header": "authorization",
    },
    "vercel": {
        "base_url": "https://ai-gateway.vercel.sh",
        "credential_header": "x-api-key",
    },
    "fireworks": {
        "base_url": "https://api.fireworks.ai/inference",
        "credential_header": "authorization",
    },
    "ollama": {
        "base_url": "http://localhost:11434",
        "credential_header": "authorization",
        "refused_fields": ("metadata", "tool_choice"),
    },
    "lmstudio": {
        "base_url": "http://localhost:1234",
        "credential_header": "authorization",
    },
    "vllm": {
        "base_url": "http://localhost:8000",
        "credential_header": "authorization",
    },
    "sglang": {
        "base_url": "http://localhost:30000",
        "credential_header": "authorization",
    },
    "llamacpp": {
        "base_url": "http://localhost:8080",
        "credential_header": "authorization",
    },
    # Its address is known only once it runs; section 20 puts it in.
    "demo": {
        "base_url": "http://127.0.0.1:9",
        "owned_by": "claude_gateway",
        "credential_header": "x-api-key",
        "models": ("claude-demo-1", "claude-demo-fast"),
    },
}
DEMO = "demo"


def read_sanitize(value: Any, path: str, problems: Problems) -> Any:
    """``sanitize``: "off", "strict", or an object of rules (contract section 6)."""
    if value in ("off", "strict"):
        return value
    if not isinstance(value, dict):
        problems.error(path, "must be off, strict, or an object of rules")
        return {}
    return read_table(SANITIZE_SETTINGS, value, path, problems)


def sanitize_profile(setting: Any, preset_name: Optional[str],
                     preset: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a provider's bodies go through: the profile, the preset's, then the user's word."""
    if isinstance(setting, str):
        return SANITIZE_PROFILES[setting]
    base = SANITIZE_PROFILES["native" if preset_name == "anthropic" else "others"]
    chosen = {name: value for name, value in setting.items() if value is not None}
    return dict(base, **dict(preset.get("sanitize", {}), **chosen))


def read_client_keys(value: Any, path: str, problems: Problems) -> tuple[ClientKey, ...]:
    """``auth.api_keys``: strings, or objects with a name.  Empty strings are no keys."""
    if not isinstance(value, list):
        problems.error(path, "must be a list, not %s" % described(value))
        return ()
    keys = []
    for index, item in enumerate(value):
        at = "%s[%d]" % (path, index)
        key = item.get("key") if isinstance(item, dict) else item
        if isinstance(key, str) and not key.strip():
            problems.warn(at, "an empty string is no key; left out")
            continue
        if isinstance(item, str):
            keys.append(ClientKey("key-%d" % (index + 1), read_secret(item, at, problems), None))
            continue
        read = read_table(CLIENT_KEY_SETTINGS, item, at, problems)
        if read["key"] is None:
            problems.error(at + ".key", "is missing")
            continue
        read["name"] = read["name"] or "key-%d" % (index + 1)
        keys.append(ClientKey(**read))
    refuse_doubles([key.name for key in keys], path, problems)
    return tuple(keys)


def refuse_doubles(names: Sequence[str], path: str, problems: Problems) -> None:
    """Names tell things apart in logs and metrics: each may stand once."""
    for name, times in collections.Counter(names).items():
        if times > 1:
            problems.error(path, "the name %s stands %d times" % (json.dumps(name), times))


def read_accounts(value: Any, path: str, problems: Problems) -> tuple[dict, ...]:
    """``accounts``: each with a name and exactly one credential."""
    rows = list_of(lambda item, at, found: read_table(ACCOUNT_SETTINGS, item, at, found))(
        value, path, problems)
    for index, row in enumerate(rows):
        at = "%s[%d]" % (path, index)
        item = value[index] if isinstance(value[index], dict) else {}
        kinds = [kind for kind in ("api_key", "auth_token", "key_command", "token")
                 if kind in item]
        if len(kinds) > 1 or not (kinds or problems.has(at)):
            problems.error(at, "needs exactly one of api_key, auth_token, key_command, token")
        if "key_ttl_seconds" in item and "key_command" not in item:
            problems.error(at + ".key_ttl_seconds", "means something beside key_command only")
        row["name"] = row["name"] or "account-%d" % (index + 1)
    refuse_doubles([row["name"] for row in rows], path, problems)
    return rows


def read_grant(value: Any, path: str, problems: Problems) -> TokenGrant:
    """``token``: what is asked of which issuer, and where its answers are kept."""
    row = read_table(TOKEN_SETTINGS, value, path, problems)
    for name in ("token_url", "client_id", "refresh_token", "store"):
        if row[name] is None:
            problems.error(joined(path, name), "is missing")
    return TokenGrant(**row)


def read_providers(value: Any, path: str, problems: Problems) -> tuple[Provider, ...]:
    """``providers``: each with its preset's defaults filled in."""
    rows = list_of(lambda item, at, found: read_provider(item, at, found))(value, path, problems)
    refuse_doubles([row.name for row in rows], path, problems)
    if not problems.has(path):
        # Names may hold slashes: "a/b" and "c" would be told as "a" and "b/c" are.
        refuse_doubles(["%s/%s" % (row.name, account.name) for row in rows
                        for account in row.accounts], path, problems)
    return rows


def read_provider(value: Any, path: str, problems: Problems) -> Provider:
    """One provider.  The preset is the one named, else the one of the provider's name."""
    row = read_table(PROVIDER_SETTINGS, value, path, problems)
    if row["name"] is None:
        row["name"] = row["preset"] or "unnamed"
        if row["preset"] is None:
            problems.error(path + ".name", "is missing")
    preset_name = row["preset"] or (row["name"] if row["name"] in PRESETS else None)
    if row["preset"] is not None and row["preset"] not in PRESETS:
        problems.error(path + ".preset", "is not known%s; there are %s"
                       % (nearest(row["preset"], list(PRESETS)), ", ".join(PRESETS)))
    preset = PRESETS.get(preset_name or "", {})
    if row["base_url"] is None:
        if "base_url" not in preset and not problems.has(path + ".preset"):
            problems.error(path + ".base_url", "is missing (no preset of that name has one)")
        row["base_url"] = read_url(preset.get("base_url", "http://127.0.0.1:9"),
                                   path + ".base_url", Problems())
    row["preset"] = preset_name
    row["owned_by"] = row["owned_by"] or preset.get("owned_by", row["name"])
    row["models"] = row["models"] if row["models"] is not None else preset.get("models", ())
    header = row["credential_header"] or preset.get("credential_header", "x-api-key")
    row["credential_header"] = header
    row["betas"] = read_betas(row["betas"])
    row["sanitize"] = sanitize_profile(row["sanitize"], preset_name, preset)
    row["refused_fields"] = preset.get("refused_fields", ())
    row["accounts"] = tuple(build_account(account, header) for account in row["accounts"])
    return Provider(**row)


def read_betas(betas: Mapping[str, Sequence[str]]) -> BetaRule:
    """``betas``, with the name of Claude Code's list spelled out."""
    add: list[str] = []
    for token in betas["add"]:
        add.extend(CLAUDE_CODE_BETAS.split(",") if token == CLAUDE_CODE_BETAS_NAME else [token])
    return BetaRule(tuple(add), tuple(betas["drop"]))


def build_account(row: dict, credential_header: str) -> Account:
    """An account of its settings: which header, which secret or where it comes from."""
    is_key = any(row.get(name) is not None for name in ("api_key", "key_command"))
    bearer = not is_key or credential_header == "authorization"
    source = row.get("token")
    if row.get("key_command") is not None:
        source = KeyCommand(row["key_command"], row["key_ttl_seconds"])
    secret = row["api_key"] or row["auth_token"] or Secret("")
    left_out = ("api_key", "auth_token", "key_command", "key_ttl_seconds", "token")
    rest = {key: value for key, value in row.items() if key not in left_out}
    return Account(header="Authorization" if bearer else "x-api-key", secret=secret,
                   source=source, **rest)


class Config(NamedTuple):
    """What the gateway was told, checked and frozen.

    Made by :meth:`from_dict`, which takes the shape of the configuration file
    (README.md, Configure); ``Config.from_dict({})`` is the default one.  Durations are
    seconds, sizes bytes.  ``warnings`` has a line for each thing that is legal and
    probably not meant.
    """

    host: str
    port: int
    auth: Auth
    providers: tuple[Provider, ...]
    routing: Routing
    retry: Retry
    timeouts: Timeouts
    limits: Limits
    stream: Streaming
    warmup: str
    telemetry: str
    log: LogSettings
    cors_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(
        cls,
        settings: Mapping[str, Any],
        environ: Mapping[str, str] = {},
        read_file: Optional[Callable[[str], str]] = None,
        overrides: Mapping[str, Any] = {},
    ) -> Config:
        """Check and freeze.  Raises ConfigError with every fault and its path.

        ``settings`` is what a configuration file would hold, as dicts, lists, strings
        and numbers.  Strings may hold ``${NAME}``, ``${NAME:-default}`` (looked up in
        ``environ``, nowhere else) and ``${file:PATH}`` (``read_file(path)`` gives the
        text or raises OSError; without it there are no files).  ``overrides`` are laid
        over the settings and taken as they are.
        """
        problems = Problems()
        resolved = Interpolation(environ, read_file).resolve(dict(settings), "", problems)
        row = read_table(SETTINGS, overlaid(resolved, overrides), "", problems)
        row["providers"] = row["providers"] or (read_provider({"name": "anthropic"}, "", problems),)
        names = [provider.name for provider in row["providers"]]
        for glob, wanted in row["routing"]["models"].items():
            for name in wanted:
                at = "routing.models.%s" % glob
                if name not in names and not (problems.has(at) or problems.told("providers")):
                    problems.error(at, "no provider is called %s%s"
                                   % (json.dumps(name), nearest(name, names)))
        if problems.errors:
            raise ConfigError(problems.errors)
        for name, group in (("auth", Auth), ("routing", Routing), ("retry", Retry),
                            ("timeouts", Timeouts), ("limits", Limits), ("stream", Streaming),
                            ("log", LogSettings)):
            row[name] = group(**row[name])
        return cls(warnings=tuple(problems.warnings), **row)

    @property
    def auth_mode(self) -> str:
        """The mode in force: ``auto`` resolved by keys and address."""
        if self.auth.mode != "auto":
            return self.auth.mode
        open_to_others = not is_loopback(self.host)
        return "all_except_health" if self.auth.api_keys or open_to_others else "off"


def overlaid(settings: Any, overrides: Mapping[str, Any]) -> dict:
    """Settings with others laid over them, groups member by member."""
    result = dict(settings) if isinstance(settings, dict) else {}
    for name, value in overrides.items():
        if not isinstance(value, dict):
            result[name] = value
        elif isinstance(result.get(name, {}), dict):
            result[name] = overlaid(result.get(name), value)
        # else the group in the file is at fault, and is to be told as such
    return result


class Interpolation:
    """Replaces ``${NAME}``, ``${NAME:-default}`` and ``${file:PATH}`` in strings."""

    PATTERN = re.compile(r"\$\{([^}]*)\}")
    MAX_DEPTH = 20

    def __init__(
        self,
        environ: Mapping[str, str],
        read_file: Optional[Callable[[str], str]],
    ) -> None:
        self._environ = environ
        self._read_file = read_file

    def resolve(self, value: Any, path: str, problems: Problems, depth: int = 0) -> Any:
        """The value with every string in it resolved; unset names are faults."""
        if isinstance(value, str):
            return self.PATTERN.sub(lambda match: self._one(match, path, problems), value)
        if depth >= self.MAX_DEPTH:
            problems.error(path, "is nested too deeply")
            return None
        if isinstance(value, list):
            return [self.resolve(item, "%s[%d]" % (path, index), problems, depth + 1)
                    for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.resolve(item, joined(path, str(key)), problems, depth + 1)
                    for key, item in value.items()}
        return value

    def _one(self, match: Any, path: str, problems: Problems) -> str:
        if match.group(1).startswith("file:"):
            return self._file(match.group(1)[5:], path, problems)
        name, has_default, default = match.group(1).partition(":-")
        found = self._environ.get(name)
        if has_default and not found:
            return default
        if found is None:
            problems.error(path, "the environment has no %s" % name)
            return "unset"
        return found

    def _file(self, name: str, path: str, problems: Problems) -> str:
        if self._read_file is None:
            problems.error(path, "files cannot be read here")
            return "unset"
        try:
            return self._read_file(name).strip()
        except (OSError, ValueError) as error:
            problems.error(path, "cannot read %s (%s)" % (name, reason_of(error)))
            return "unset"


def reason_of(error: BaseException) -> str:
    """What an exception of the operating system says, without its repr and numbers."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ---- 10. Retry policy --------------------------------------------------------


class Cooldown(NamedTuple):
    """How long an account rests after a failure; seconds.

    ``first`` doubles with every failure of the case in a row, up to ``ceiling``;
    the ``free`` first ones cost nothing.  ``told``: the upstream's own word goes
    before it.  ``hard``: it surely would not serve until then; without it the
    account is only asked after those that are ready.  ``out``: the credential is
    refused, so nobody waits for it.
    """

    first: float
    ceiling: float
    free: int = 0
    told: bool = False
    hard: bool = False
    out: bool = False

    def seconds(self, in_a_row: int) -> float:
        """The rest after so many failures in a row.

        >>> rest = Cooldown(2, 60, free=1); [rest.seconds(count) for count in (1, 2, 3, 9)]
        [0.0, 2.0, 4.0, 60.0]
        """
        doublings = in_a_row - self.free - 1
        if doublings < 0:
            return 0.0
        return float(min(self.first * 2.0 ** min(doublings, 30), self.ceiling))


class Decision(NamedTuple):
    """What follows from an outcome: for the request (``action``) and for the account.

    ``relay`` gives the client this answer; ``next`` goes to the next candidate;
    ``next_provider`` to one of another provider; ``mend`` asks once more with a
    mended body; ``give_up`` ends.  ``again``: where nobody else is left the same
    account may be asked again soon.  ``blame``: the credential is at fault, and
    the client is told so instead of being shown a 401 that it would take for its
    own.  ``hopeless``: the client's repeating it cannot help.
    """

    case: str
    action: str
    cooldown: Optional[Cooldown] = None
    again: bool = False
    blame: bool = False
    hopeless: bool = False


class Case(NamedTuple):
    """One row of the table: an outcome fits by its kind or status, and by what it says."""

    name: str
    fits: frozenset
    action: str
    cooldown: Optional[Cooldown] = None
    says: str = ""
    again: bool = False
    blame: bool = False
    hopeless: bool = False
    # Surely not done: even what must not be done twice may go to another account.
    not_done: bool = False
    about: str = ""


# Contract section 9; the first row that fits counts.  Numbers are statuses of
# answers, words are the kinds of what was none.  402 is how others than Anthropic
# say billing_error.
CASES = (
    Case("unreached", frozenset(["unreached"]), "next", Cooldown(5, 300), again=True,
         not_done=True, about="name, connection or TLS failed"),
    Case("closed", frozenset(["closed"]), "next", Cooldown(5, 300), again=True,
         about="closed before the first byte of an answer"),
    Case("silent", frozenset(["silent"]), "next", Cooldown(30, 30),
         about="no response head within timeouts.first_byte_seconds"),
    Case("credit", frozenset([400, 402, 403, 429]), "next",
         Cooldown(MAX_REST_SECONDS, MAX_REST_SECONDS, hard=True), says="credit", hopeless=True,
         not_done=True, about="the account's credit is used up"),
    Case("rate_limited", frozenset([429]), "next", Cooldown(5, 300, told=True, hard=True),
         not_done=True, about="over the account's limits"),
    Case("failing", frozenset([529, 503]), "next", Cooldown(2, 60, free=1), again=True,
         not_done=True, about="overloaded"),
    Case("failing", frozenset([408, 500, 502, 504, 520, 521, 522, 523, 524, "broke", "malformed",
                               "stalled"]),
         "next", Cooldown(2, 60, free=1), again=True,
         about="server errors, no message in a 200, a stream that breaks"),
    Case("refused", frozenset([401, 403]), "next",
         Cooldown(MAX_REST_SECONDS, MAX_REST_SECONDS, hard=True, out=True), blame=True,
         hopeless=True, not_done=True, about="the credential is refused"),
    Case("credential", frozenset(["credential"]), "next", Cooldown(5, 300, told=True, hard=True),
         not_done=True, about="the account's key could not be renewed"),
    Case("refused", frozenset(["credential_refused"]), "next",
         Cooldown(MAX_REST_SECONDS, MAX_REST_SECONDS, hard=True, out=True), blame=True,
         hopeless=True, not_done=True, about="the refresh token is refused"),
    Case("unknown_model", frozenset([404]), "next_provider", says="model", not_done=True,
         about="the provider does not know the model"),
    Case("signature", frozenset([400]), "mend", says="signature",
         about="a thinking block's signature is refused"),
    Case("shutdown", frozenset(["shutdown"]), "give_up", about="the gateway stops"),
    Case("client_left", frozenset(["client_left"]), "give_up", about="nobody is there to be told"),
)
ANSWERED = Case("answered", frozenset(), "relay", about="everything else")
RELAYED = Decision(ANSWERED.name, ANSWERED.action)
# The rows by what they fit, in the table's order.
CASES_OF: Mapping[Any, Sequence[Case]] = {
    what: [case for case in CASES if what in case.fits]
    for what in frozenset().union(*(case.fits for case in CASES))}
# Answers that are about the request: they prove that the account works.
PROVING_CASES = frozenset(["answered", "signature", "unknown_model"])


def case_of(outcome: Outcome) -> Case:
    """The row that an outcome falls under."""
    what = outcome.status if outcome.kind == "answer" else outcome.kind
    for case in CASES_OF.get(what, ()):
        if case.says in ("", outcome.says):
            return case
    return ANSWERED


def decide(outcome: Outcome) -> Decision:
    """Outcome in, decision out; pure.  The attempt loop (16) acts on it.

    ``x-should-retry: false`` ends the attempts, but not on a refused credential
    or a used-up credit: there the upstream speaks of one account, and the next
    has another.  A client's own credential has no account that could rest.
    """
    case = case_of(outcome)
    if case is ANSWERED:
        return RELAYED
    action = case.action
    if action in ("next", "next_provider"):
        must_stop = (not outcome.repeatable and not case.not_done
                     or outcome.final and not (case.blame or case.hopeless)
                     or outcome.transparent and case.blame)
        if must_stop:
            action = "relay" if outcome.kind == "answer" else "give_up"
    return Decision(case.name, action, None if outcome.transparent else case.cooldown,
                    case.again, case.blame and not outcome.transparent, case.hopeless)


def policy_lines() -> list[str]:
    """The table for people, a line each: what happens, how the account rests, what follows."""
    lines = []
    for case in (*CASES, ANSWERED):
        fits = ", ".join(sorted(map(str, case.fits))) or "-"
        rest, follows = "-", case.action
        if case.cooldown is not None:
            first, ceiling = case.cooldown.first, case.cooldown.ceiling
            rest = "%g s" % first + (" doubling to %g s" % ceiling if ceiling > first else "")
            rest = ("as told, else " if case.cooldown.told else "") + rest
            rest += ", not after the first" if case.cooldown.free else ""
        follows += ", or the same again" if case.again else ""
        lines.append("%s (%s): %s; account rests: %s; then: %s"
                     % (case.name, fits, case.about, rest, follows))
    return lines


# ---- 11. Accounts ------------------------------------------------------------


def candidate_providers(config: Config, model: str) -> list[Provider]:
    """Which providers may serve a model, in order (contract section 8).

    A routing.models glob (the most literal one) names them, and nothing else is
    tried: their place in it is then their priority.  Else those that list or map
    the id; else all, by priority and order.
    """
    enabled = sorted((provider for provider in config.providers if provider.enabled),
                     key=lambda provider: provider.priority)
    globs = [glob for glob in config.routing.models if fnmatch.fnmatchcase(model, glob)]
    if globs:
        best = max(globs, key=lambda glob: (glob == model, literal_count(glob)))
        by_name = {provider.name: provider for provider in enabled}
        return [by_name[name]._replace(priority=place)
                for place, name in enumerate(config.routing.models[best]) if name in by_name]
    stem = without_suffix(model)
    return [provider for provider in enabled
            if provider.knows(model) or provider.knows(stem)] or enabled


class Candidate:
    """Who might be asked; ``account`` None is the client's own credential.

    ``key`` tells it from all others, ``name`` is how logs and errors call it.  The
    lowest ``tier`` goes first, a strategy chooses within one; ``weight`` is its share.
    ``per_minute`` and ``at_once`` are its settings' bounds, if any; ``sourced`` is the
    account if its key comes from section 14.
    """

    __slots__ = ("provider", "account", "secret", "sourced", "key", "name", "tier", "weight",
                 "per_minute", "at_once")

    def __init__(self, provider: Provider, account: Optional[Account]) -> None:
        self.provider = provider
        self.account = account
        self.secret = account.secret if account else None
        self.sourced = account if account and account.source is not None else None
        self.key = provider.name, account.name if account else ""
        self.name = "/".join(filter(None, self.key))
        self.tier = provider.priority, account.priority if account else 0.0
        self.weight = provider.weight * (account.weight if account else 1.0)
        self.per_minute = account.requests_per_minute if account else None
        self.at_once = account.max_concurrent if account else None


def candidates(provider: Provider, model: str) -> list[Candidate]:
    """The accounts of a provider that may serve a model, by priority, then order."""
    if not provider.accounts:
        return [Candidate(provider, None)]
    accounts = [account for account in provider.accounts
                if account.enabled and serves_model(account, model)]
    return [Candidate(provider, account)
            for account in sorted(accounts, key=lambda account: account.priority)]


def serves_model(account: Account, model: str) -> bool:
    """Whether an account's globs allow a model; no globs, or no model, allow all."""
    if not account.models or not model:
        return True
    return any(fnmatch.fnmatchcase(model, glob) for glob in account.models)


# May be asked at once: the seconds of AccountState.delay.
READY = 0.0, 0.0


class AccountState:
    """What is known of one account; changed under the pool's lock alone.  Times are monotonic.

    Its ``name`` at a moment is ready, cooling or out; the moves between them:

        ready    a failure          cooling  (hard or soft, see Cooldown), or out
        cooling  its time is over   ready, at first few requests (the ramp), or
                                    for one probe where the rest was only guessed
        out      its time is over   ready for one probe
        any      an answer          ready, unless a later failure rests it still
        any      a new credential   ready

    It is ``troubled`` from a failure, or a limit that is used up, until nothing below is
    left of it: a healthy one is not asked for each of them (100 bytecodes a request).
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.troubled = False
        self.hard_until = self.soft_until = -math.inf
        self.out = False
        # The end of the rest is a guess: one request finds out, the others wait.
        self.wants_probe = self.probing = False
        self.failed_at = -math.inf
        self.in_a_row: dict[str, int] = {}
        self.ramp_from = -math.inf
        self.ramp_started = 0
        self.starts: collections.deque[float] = collections.deque()
        # Where it stands in the strategy weighted (stride scheduling).
        self.turn = 0.0
        # As the newest answer told them, and when that came.
        self.limits: Optional[ToldLimits] = None
        self.limits_told = -math.inf
        self.last_error = ""

    def name(self, now: float) -> str:
        """ready, cooling or out."""
        if now < self.hard_until:
            return "out" if self.out else "cooling"
        return "cooling" if now < self.soft_until else "ready"

    def held_seconds(self, candidate: Candidate, now: float) -> float:
        """How long its own settings keep it from one more request; 0 for not at all."""
        held, per_minute = 0.0, candidate.per_minute
        if candidate.at_once is not None and self.in_flight >= candidate.at_once:
            held = SLOT_LOOK_SECONDS
        if per_minute is not None:
            while self.starts and self.starts[0] <= now - 60.0:
                self.starts.popleft()
            if len(self.starts) + 1 > per_minute:
                held = max(held, self.starts[0] + 60.0 - now)
        return held

    def delay(self, candidate: Candidate, now: float) -> tuple[float, float]:
        """Seconds until it may be asked, and how many one would rather wait for another."""
        if not self.troubled and candidate.at_once is None and candidate.per_minute is None:
            return READY
        wait = rank = 0.0
        if now < self.hard_until:
            if self.out:
                return math.inf, 0.0
            wait = self.hard_until - now
        elif self.probing:
            wait = PROBE_LOOK_SECONDS
        wait = max(wait, self.held_seconds(candidate, now))
        since = now - self.ramp_from
        if 0 <= since < RAMP_SECONDS and self.ramp_started > since / RAMP_STEP_SECONDS:
            wait = max(wait, self.ramp_started * RAMP_STEP_SECONDS - since)
        # Nobody knows how long it waits for calls to end.
        if self.probing or candidate.at_once is not None and self.in_flight >= candidate.at_once:
            rank = RATHER_WAIT_SECONDS
        elif now < self.soft_until:
            rank = min(self.soft_until - now, RATHER_WAIT_SECONDS)
        self.troubled = bool(
            self.out or self.wants_probe or self.probing or self.in_a_row or self.last_error
            or now < max(self.hard_until, self.soft_until, self.ramp_from + RAMP_SECONDS))
        return wait, rank

    def start(self, now: float) -> bool:
        """One more request begins on a troubled one; whether it is the probe."""
        if now >= self.ramp_from:
            self.ramp_started += 1
        is_probe = self.wants_probe and now >= self.hard_until
        self.probing = self.probing or is_probe
        return is_probe

    def rest(self, decision: Decision, told: Optional[float], began: float, now: float) -> float:
        """Apply a failure's cooldown; the seconds of it.

        Calls that began before the last failure was known belong to it: fifty
        that fail together are one failure, not fifty in a row.
        """
        cooldown = decision.cooldown
        assert cooldown is not None
        self.troubled = True
        if began > self.failed_at:  # equal is within a tick: Windows' are 16 ms
            self.failed_at = now
            self.in_a_row[decision.case] = self.in_a_row.get(decision.case, 0) + 1
        seconds = cooldown.seconds(self.in_a_row.get(decision.case, 1))
        guessed = cooldown.hard and cooldown.first >= MAX_REST_SECONDS
        if cooldown.told and told:  # a moment that has passed is no help: its clock is not ours
            seconds, guessed = min(told, MAX_REST_SECONDS), told > MAX_REST_SECONDS
        if seconds <= 0:
            return 0.0
        if cooldown.hard and now + seconds >= self.hard_until:
            self.hard_until = now + seconds
            self.out, self.wants_probe = cooldown.out, guessed
        elif not cooldown.hard:
            self.soft_until = max(self.soft_until, now + seconds)
        self.ramp_from, self.ramp_started = max(self.hard_until, self.soft_until), 0
        return seconds

    def answered(self, began: float, is_probe: bool, whole: bool, now: float) -> None:
        """It serves, unless the call began before the last failure.

        What was in a row is over once an answer is whole: streams that all break
        are failures in a row.
        """
        if is_probe:
            self.probing = False  # whatever it has shown, the next may find out
        if began < self.failed_at:
            return
        if whole:
            self.in_a_row.clear()
        self.soft_until = min(self.soft_until, now)
        self.last_error = ""
        if is_probe:
            self.wants_probe = self.out = False
            self.ramp_from, self.ramp_started = now, 1
        elif self.ramp_from > now:
            # It has recovered before its time, so the ramp begins now and not then.
            self.ramp_from, self.ramp_started = max(self.hard_until, now), 1

    def learn(self, limits: Optional[ToldLimits], now: float) -> None:
        """Keep what an answer told of the limits; what is used up rests, softly."""
        if limits is None:
            return
        self.limits, self.limits_told = limits, now
        if not limits.may_be_used_up:
            return
        used = limits.used_up()
        resets = [limit.reset_in for limit in used if limit.reset_in is not None]
        if resets and max(resets) > 0:
            self.troubled = True
            until = now + min(max(resets), MAX_REST_SECONDS)
            if any(limit.rejected for limit in used):
                self.hard_until = max(self.hard_until, until)
            self.soft_until = max(self.soft_until, until)
            self.ramp_from, self.ramp_started = max(self.hard_until, self.soft_until), 0

    def as_dict(self, now: float) -> dict:
        """For people: seconds are from now."""
        until = max(self.hard_until, self.soft_until)
        limits = self.limits.by_name() if self.limits is not None else {}
        return {
            "state": self.name(now),
            "ready_in_seconds": round(max(0.0, until - now), 3),
            "in_flight": self.in_flight,
            "last_error": self.last_error,
            "limits": {name: limit.as_dict(now - self.limits_told)
                       for name, limit in limits.items()},
        }


class Lease:
    """The right to one upstream call; given back once by ``AccountPool.release``.

    ``secret`` is the account's credential in force, None for the client's own.
    """

    __slots__ = ("candidate", "provider", "account", "secret", "began", "state", "is_probe")

    def __init__(self, candidate: Candidate, began: float, state: AccountState,
                 is_probe: bool) -> None:
        self.candidate = candidate
        # Members and no properties: they are asked for some ten times a request.
        self.provider = candidate.provider
        self.account = candidate.account
        self.secret = candidate.secret
        self.began = began
        self.state = state
        self.is_probe = is_probe

    @property
    def name(self) -> str:
        """How logs and errors call its account."""
        return self.candidate.name

    def credentials(self) -> list[tuple[str, str]]:
        """The header to send; none for the client's own."""
        if self.account is None or self.secret is None:
            return []
        return self.account.credentials(self.secret)


class StatesFound(Dict[Candidate, AccountState]):
    """The states of those who have been asked for: hashing a credential costs 5 us.

    Each client's own credential has its own limits: nothing is known of it.
    """

    def __init__(self, states: dict[tuple[Any, ...], AccountState]) -> None:
        super().__init__()
        self._states = states

    def __missing__(self, candidate: Candidate) -> AccountState:
        if candidate.account is None:
            return AccountState()
        state = self._states.setdefault(state_key(candidate), AccountState())
        remember(self, candidate, state, MAX_CANDIDATES_KEPT)
        return state


class AccountPool:
    """Who may be asked next, and how all accounts are.  One lock; nothing blocks under it."""

    def __init__(self, monotonic: Callable[[], float], chance: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self.chance = chance
        self._lock = threading.Lock()
        # By account and credential: a request from before a reload has the old key.
        self._states: dict[tuple[Any, ...], AccountState] = {}
        self._state_of = StatesFound(self._states)
        self._leases_count = 0
        self._turn = 0.0
        # Conversation -> model, None for any -> (candidate's key, last use); the oldest go.
        self._sticky: collections.OrderedDict[
            Union[str, int], dict[Optional[str], tuple[Any, float]]] = collections.OrderedDict()
        self._noted_count = 0
        # (provider, upstream's model id) -> until when it is known not to know it.
        self._unknown_models: dict[tuple[str, str], float] = {}

    # -- choosing

    def acquire(
        self,
        wanted: Attempts,
        strategy: str,
        again_at: Mapping[tuple[str, str], float] = {},
    ) -> Union[Lease, float]:
        """The best candidate now, else the seconds until one may be asked (inf: never).

        ``again_at`` are those that the request has tried: from when on, on the
        monotonic clock, each may be asked again (inf: not any more).  Who is
        ready goes first: the conversation's own account, then as the strategy
        says.  Who only seems to fail is better than waiting, and than one of those
        that the request has tried.
        """
        now = self.monotonic()
        with self._lock:
            eligible = wanted.candidates
            if self._unknown_models:
                eligible = self._eligible(eligible, wanted.models, now)
            own = self._own(wanted, eligible, again_at, now) if wanted.session else None
            if own is not None:
                return self._taken(own, strategy, now)
            ready: list[Candidate] = []
            later: list[tuple[float, float, int, Candidate]] = []
            for place, candidate in enumerate(eligible):
                wait, rank = self._delay(candidate, again_at, now)
                if wait <= 0 and rank <= 0:
                    ready.append(candidate)
                elif wait < math.inf:
                    later.append((max(wait, rank), wait, place, candidate))
            if ready:
                return self._taken(self._best(ready, strategy), strategy, now)
            if not later:
                return math.inf
            _, wait, _, candidate = min(later)
            return self._taken(candidate, strategy, now) if wait <= 0 else wait

    def _delay(self, candidate: Candidate, again_at: Mapping[tuple[str, str], float],
               now: float) -> tuple[float, float]:
        """Seconds until it may be asked, and how many one would rather wait for another."""
        wait, rank = self._state_of[candidate].delay(candidate, now)
        if again_at and candidate.key in again_at and wait < math.inf:
            return max(wait, again_at[candidate.key] - now), 2 * RATHER_WAIT_SECONDS
        return wait, rank

    def _own(self, wanted: Attempts, eligible: Sequence[Candidate],
             again_at: Mapping[tuple[str, str], float], now: float) -> Optional[Candidate]:
        """The account that the conversation had, if it is ready: then nobody else is looked at.

        For a model that is new in it, any that it had.
        """
        session, sticky = wanted.session, self._sticky
        if session not in sticky:
            return None
        noted = sticky[session]
        bound, since = noted[wanted.model if wanted.model in noted else None]
        if now - since >= STICKY_SECONDS:
            bound, since = noted[None]
            if now - since >= STICKY_SECONDS:
                return None
        for candidate in eligible:
            if candidate.key == bound:
                is_ready = bound not in again_at and (
                    self._state_of[candidate].delay(candidate, now) == READY)
                return candidate if is_ready else None
        return None

    def _best(self, ready: Sequence[Candidate], strategy: str) -> Candidate:
        """What the strategy says within the first tier."""
        first = min(candidate.tier for candidate in ready)
        tier = [candidate for candidate in ready if candidate.tier == first]
        return min(tier, key=lambda candidate: self._order(candidate, strategy))

    def _order(self, candidate: Candidate, strategy: str) -> tuple[float, float]:
        """What the best of a tier has least of."""
        if strategy == "failover":
            return 0.0, 0.0
        if strategy == "shuffle":
            return self.chance(), 0.0
        state = self._state_of[candidate]
        turn = max(state.turn, self._turn)
        if strategy == "least_loaded":
            return state.in_flight / candidate.weight, turn
        # By where a request would begin: by its end, who has waited would always be
        # behind a heavier one, since its turn moves on with the others'.
        return turn, -candidate.weight

    def _taken(self, candidate: Candidate, strategy: str, now: float) -> Lease:
        state, turn = self._state_of[candidate], self._turn
        self._leases_count += 1
        state.in_flight += 1
        # Who has rested does not catch up: its turn is at least the others'.
        if state.turn > turn:
            self._turn = turn = state.turn
        # How far one request moves it back (stride scheduling).
        state.turn = turn + (1.0 / candidate.weight if strategy == "weighted" else 1.0)
        if candidate.per_minute is not None:
            state.starts.append(now)
        return Lease(candidate, now, state, state.troubled and state.start(now))

    def _eligible(self, among: Sequence[Candidate], models: Mapping[str, str],
                  now: float) -> Sequence[Candidate]:
        """Those whose provider knows the model as far as is known; all where none does."""
        unknown = self._unknown_models
        return [candidate for candidate in among
                if now >= unknown.get((candidate.provider.name, models.get(
                    candidate.provider.name, "")), -math.inf)] or among

    # -- conversations

    def _bind(self, wanted: Attempts, candidate: Candidate, now: float) -> None:
        session, sticky = wanted.session, self._sticky
        if session in sticky:
            sticky.move_to_end(session)
        else:
            sticky[session] = {}
            self._noted_count += 1
        noted = sticky[session]
        is_new = wanted.model not in noted
        noted[wanted.model] = noted[None] = candidate.key, now
        if is_new:
            self._noted_count += 1
            while self._noted_count > MAX_CONVERSATIONS:
                self._noted_count -= len(sticky.popitem(last=False)[1])

    # -- what came of it

    def answered(self, lease: Lease, wanted: Attempts, limits: Optional[ToldLimits] = None,
                 whole: bool = False) -> None:
        """The account serves this request, with a ``whole`` answer or with a stream, which is
        ``completed`` later.  The conversation stays with it."""
        now = self.monotonic()
        with self._lock:
            if self._unknown_models:
                model = wanted.models.get(lease.provider.name, "")
                self._unknown_models.pop((lease.provider.name, model), None)
            if wanted.paces:
                state = lease.state
                if wanted.session:
                    self._bind(wanted, lease.candidate, now)
                if state.troubled:
                    self._proved(lease, whole, now)
                state.learn(limits, now)
            if whole:
                self._back(lease)

    @staticmethod
    def _proved(lease: Lease, whole: bool, now: float) -> None:
        """The account works, whatever the upstream thinks of the request."""
        lease.state.answered(lease.began, lease.is_probe, whole, now)
        lease.is_probe = False

    def completed(self, lease: Lease, wanted: Attempts) -> None:
        """A stream has ended well: only now its account's failures in a row are over."""
        with self._lock:
            state = lease.state
            if state.troubled and wanted.paces and lease.began >= state.failed_at:
                state.in_a_row.clear()
            self._back(lease)

    def _back(self, lease: Lease) -> None:
        """The call is over."""
        state = lease.state
        assert state.in_flight > 0, "released more often than taken"
        state.in_flight -= 1
        self._leases_count -= 1
        if lease.is_probe:
            state.probing = False

    def again(self, lease: Lease) -> None:
        """The same lease makes one more call."""
        now = self.monotonic()
        with self._lock:
            lease.began = now
            if lease.candidate.per_minute is not None:
                lease.state.starts.append(now)

    def release(
        self,
        lease: Lease,
        wanted: Attempts,
        decision: Optional[Decision] = None,
        outcome: Optional[Outcome] = None,
    ) -> float:
        """The call is over; the seconds that its account rests now.

        Without a decision it tells nothing: the client left.
        """
        now = self.monotonic()
        with self._lock:
            state = lease.state
            self._back(lease)
            if decision is None or outcome is None:
                return 0.0
            if decision.case == "unknown_model" and wanted.paces:
                self._exclude(lease, wanted, now)
            if wanted.paces:
                if decision.case in PROVING_CASES:
                    self._proved(lease, True, now)
                state.learn(outcome.limits, now)
            if decision.cooldown is None or not (wanted.paces or decision.case != "rate_limited"):
                return 0.0
            state.last_error = decision.case
            return state.rest(decision, outcome.ready_in, lease.began, now)

    def _exclude(self, lease: Lease, wanted: Attempts, now: float) -> None:
        model = wanted.models.get(lease.provider.name, "")
        if not model or lease.account is None:
            return
        self._unknown_models.pop((lease.provider.name, model), None)
        self._unknown_models[lease.provider.name, model] = now + MODEL_UNKNOWN_SECONDS
        while len(self._unknown_models) > MAX_UNKNOWN_MODELS:
            self._unknown_models.pop(next(iter(self._unknown_models)))

    # -- looking

    def ready_in(self, among: Sequence[Candidate], models: Mapping[str, str],
                 again_at: Mapping[tuple[str, str], float]) -> float:
        """Seconds until one of some candidates may be asked; inf where none will be."""
        now = self.monotonic()
        with self._lock:
            return min((self._delay(candidate, again_at, now)[0]
                        for candidate in self._eligible(among, models, now)), default=math.inf)

    def could_serve(self, provider: Provider) -> bool:
        """Whether a provider has anybody who could serve now."""
        now = self.monotonic()
        if not provider.enabled:
            return False
        with self._lock:
            return any(candidate.account is None or now >= self._state_of[candidate].hard_until
                       for candidate in candidates(provider, ""))

    def snapshot(self, candidate: Candidate) -> dict:
        """How an account is, for people (AccountState.as_dict)."""
        now = self.monotonic()
        with self._lock:
            return self._state_of[candidate].as_dict(now)

    def in_flight(self) -> int:
        """How many leases are out."""
        with self._lock:
            return self._leases_count

    def retain(self, after: Sequence[Provider]) -> None:
        """A new configuration: accounts that remain keep their state, but none stays out."""
        kept = [state_key(candidate) for provider in after for candidate in configured(provider)]
        now = self.monotonic()
        with self._lock:
            self._states = {key: self._states[key] for key in kept if key in self._states}
            self._state_of = StatesFound(self._states)
            self._unknown_models.clear()
            for state in self._states.values():
                if state.out:
                    state.out, state.hard_until = False, -math.inf
                    state.wants_probe = False
                    state.ramp_from, state.ramp_started = now, 0


def configured(provider: Provider) -> list[Candidate]:
    """All accounts of a provider, enabled or not."""
    return [Candidate(provider, account) for account in provider.accounts]


def state_key(candidate: Candidate) -> tuple[Any, ...]:
    """Whose state it is: an account that is asked at one place with one credential."""
    account = candidate.account
    assert account is not None
    return candidate.key, candidate.provider.base_url, account.header, account.secret, account.source


class Attempts:
    """The calls that one request makes, as values: who, when, whether once more.

    What it wants of the pool: ``session`` is the conversation's key, "" for none;
    ``models`` are the ids that each provider would be sent; ``paces``: its 429s speak for the
    account and its 404s for the model (token counting and other paths have limits of their own).

    No I/O: the engine (16) makes the calls and the waits, and the simulation in
    tests/test_11_simulation.py does without either.  ``step()`` gives a Lease to call
    with, or the seconds to wait, or None when it is over; a call that did not serve
    ``failed`` and gives its lease back, any other is released by who relays it.
    """

    calls_count = 0
    waited_seconds = _renewing_seconds = 0.0
    _over = False
    # Each failure makes new ones: most requests have none.
    _again_at: dict[tuple[str, str], float] = {}
    _failures: dict[tuple[str, str], int] = {}
    _hopeless: frozenset[tuple[str, str]] = frozenset()

    def __init__(self, pool: AccountPool, strategy: str, retry: Retry,
                 candidates: Sequence[Candidate], session: Union[str, int] = "", model: str = "",
                 models: Mapping[str, str] = {}, paces: bool = True) -> None:
        self.candidates = candidates
        self.session = session
        self.model = model
        self.models = models
        self.paces = paces
        self._pool = pool
        self._strategy = strategy
        self._retry = retry

    def step(self) -> Union[Lease, float, None]:
        """What to do now: call with a lease, wait so many seconds, or nothing any more."""
        if self._over or self.calls_count >= self._retry.max_attempts:
            return None
        found = self._pool.acquire(self, self._strategy, self._again_at)
        if isinstance(found, Lease):
            self.calls_count += 1
            return found
        if self.waited_seconds + found > self._retry.max_wait_seconds:
            return None
        self.waited_seconds += found
        return found

    def may_repeat(self) -> bool:
        """Whether one more call may be made with the lease in hand."""
        return self.calls_count < self._retry.max_attempts

    def repeated(self, lease: Lease) -> None:
        """One more call is made with it."""
        self.calls_count += 1
        self._pool.again(lease)

    def not_made(self, seconds: float) -> None:
        """There was no credential to make the call with: that was no call, but took a while.

        As long as one hanging command may take, then no other account is tried.
        """
        self.calls_count -= 1
        self._renewing_seconds += seconds
        self._over = self._renewing_seconds >= COMMAND_SECONDS

    def failed(self, lease: Lease, decision: Decision, outcome: Outcome) -> float:
        """A call did not serve: gives the lease back; the seconds that its account rests."""
        key, now = lease.candidate.key, self._pool.monotonic()
        rests = self._pool.release(lease, self, decision, outcome)
        count = self._failures.get(key, 0) + 1
        self._failures = {**self._failures, key: count}
        again_at = math.inf
        if decision.case == "rate_limited":
            case = case_of(outcome)
            assert case.cooldown is not None
            told = outcome.ready_in
            own = told or case.cooldown.seconds(count)
            again_at = now + max(rests, min(own, MAX_REST_SECONDS))
        elif decision.again:
            # Full jitter, so that clients which failed together do not come back so.
            again_at = now + self._pool.chance() * BACKOFF_SECONDS * 2 ** (count - 1)
        self._again_at = {**self._again_at, key: again_at}
        if decision.hopeless:
            self._hopeless |= {key}
        if decision.action == "next_provider":
            self._again_at.update(
                (candidate.key, math.inf) for candidate in self.candidates
                if candidate.provider.name == lease.provider.name)
        self._over = self._over or decision.action == "give_up"
        return rests

    def ready_in(self, hopeful: bool = False) -> float:
        """Seconds until a new request like this may be served; inf for never.

        ``hopeful`` leaves those out that have just failed beyond hope.
        """
        among = [candidate for candidate in self.candidates
                 if not hopeful or candidate.key not in self._hopeless]
        return self._pool.ready_in(among, self.models, {
            key: at for key, at in self._again_at.items() if at < math.inf})


class RequestRates:
    """How many requests each client key made in the last minute; one lock."""

    WINDOW_SECONDS = 60.0

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._times: dict[str, collections.deque[float]] = {}

    def admit(self, key: ClientKey) -> float:
        """0 where the request may go, else the seconds until one may."""
        if key.requests_per_minute is None:
            return 0.0
        now = self._monotonic()
        with self._lock:
            times = self._times.setdefault(key.name, collections.deque())
            while times and times[0] <= now - self.WINDOW_SECONDS:
                times.popleft()
            if len(times) >= key.requests_per_minute:
                return times[0] + self.WINDOW_SECONDS - now
            times.append(now)
            return 0.0


# ---- 12. Records, metrics, log -----------------------------------------------

LOG_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Routes (section 16) of those who only look, at the gateway or whether it is there.
QUIET_ROUTES = frozenset([
    "dashboard", "healthz", "health", "metrics", "probe", "requests", "status"])


def escape_controls(text: str) -> str:
    """A text for one log line: control characters (C0, DEL, C1, line separators) escaped.

    >>> escape_controls("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode("ascii")
        for char in text)


class Attempt(NamedTuple):
    """One upstream call in a record; ``seconds`` until its outcome was known.

    ``case`` is the policy's name for it; ``began_seconds`` are from the request's start.
    """

    provider: str
    account: str
    outcome: str
    status: int
    seconds: float
    case: str = ""
    began_seconds: float = 0.0


class RequestRecord:
    """What is known of one request when it has ended; never a body, never a key.

    Times are seconds; ``started`` is wall-clock, the rest are durations.
    ``ended`` is complete, upstream_broke, client_left, or refused.
    """

    FIELDS = (
        "id",
        "time",
        "key",
        "method",
        "route",
        "model",
        "mapped_model",
        "provider",
        "account",
        "attempts",
        "edits",
        "status",
        "error",
        "stop_reason",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "first_byte_seconds",
        "seconds",
        "bytes_in",
        "bytes_out",
        "saved_tokens",
        "ended",
    )

    # What stays so of most requests is the class's: a third of the work to make one.
    key = route = model = mapped_model = provider = account = error = stop_reason = ""
    status = bytes_in = bytes_out = 0
    seconds = 0.0
    first_byte_seconds: Optional[float] = None
    # What an answer of ours kept from being sent, estimated.
    saved_tokens = 0
    ended = "complete"

    def __init__(self, request_id: str, method: str, started: float) -> None:
        self.id = request_id
        self.method = method
        self.started = started
        self.attempts: list[tuple] = []  # as Attempt has them; 0.3 us less than to make one
        self.edits: Sequence[str] = ()
        self.usage = Usage()

    def as_dict(self) -> dict:
        """The record as JSON; the keys of FIELDS, in their order."""
        computed = {
            "time": utc_text(self.started),
            "attempts": [dict(attempt._asdict(), seconds=round(attempt.seconds, 6),
                              began_seconds=round(attempt.began_seconds, 6))
                         for attempt in map(Attempt._make, self.attempts)],
            "edits": list(self.edits),
            "input_tokens": self.usage.input,
            "output_tokens": self.usage.output,
            "cache_read_tokens": self.usage.cache_read,
            "cache_write_tokens": self.usage.cache_write,
            "seconds": round(self.seconds, 6),
        }
        if self.first_byte_seconds is not None:
            computed["first_byte_seconds"] = round(self.first_byte_seconds, 6)
        return {name: computed[name] if name in computed else getattr(self, name)
                for name in self.FIELDS}

    def as_text(self) -> str:
        """The record as one line for people."""
        words = [self.id, self.method, self.route or "-", str(self.status or "-")]
        if self.model:
            changed = self.mapped_model not in ("", self.model)
            words.append(self.model + (" -> " + self.mapped_model if changed else ""))
        if self.provider:
            words.append(self.provider + ("/" + self.account if self.account else ""))
        if len(self.attempts) > 1:
            words.append("tried " + ", ".join(
                "%s/%s %s" % (attempt.provider, attempt.account, attempt.status or attempt.outcome)
                for attempt in map(Attempt._make, self.attempts)))
        if self.usage.input or self.usage.output:
            words.append("%d in %d out" % (self.usage.input, self.usage.output))
        words.append("%.3f s" % self.seconds)
        if self.ended != "complete":
            words.append(self.ended)
        if self.error:
            words.append("(%s)" % self.error)
        return " ".join(words)


def utc_text(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 with milliseconds.

    >>> utc_text(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    return "%s.%03dZ" % (utc_second(math.floor(seconds)), int(seconds * 1000) % 1000)


@lru_cache(maxsize=2)
def utc_second(seconds: int) -> str:
    """The same without a fraction: each line of the log asks for it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def shown_on(stream: Any, text: str) -> str:
    """A text with what a stream's encoding cannot show replaced (old Windows consoles)."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


class LineWriter:
    """Writes lines in a thread of its own, so that a slow terminal slows nobody.

    To wake that thread costs more than a line (60 us a request, a fifth of it): after
    it has written it rests for LOG_PAUSE_SECONDS, and is not woken before.
    A full disk or a closed pipe loses lines, never requests; so does a reader
    that is more than LOG_QUEUE_LINES behind.  How many were lost is said in the
    next line that goes through.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lines: collections.deque[str] = collections.deque()
        self._changed = threading.Condition()
        self._asleep = self._closing = False
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Queue one line, without its line end."""
        with self._changed:
            if self._closing or len(self._lines) >= LOG_QUEUE_LINES:
                self._lost += 1
                return
            self._lines.append(line)
            if self._asleep:
                self._asleep = False
                self._changed.notify()

    def close(self) -> None:
        """Write what is queued, as far as LOG_FLUSH_SECONDS allow."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LOG_FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closing:
                    self._asleep = True
                    self._changed.wait()
                if not self._lines:
                    return
                lines, lost = list(self._lines), self._lost
                self._lines.clear()
                self._lost = 0
            told = ["(%d log lines lost)" % lost] if lost else []
            try:
                self._stream.write(shown_on(self._stream, "\n".join(told + lines) + "\n"))
                self._stream.flush()
            except (OSError, ValueError, AttributeError):
                # Safe: a closed pipe or a full disk costs these lines and no more;
                # a process that was started without a stream has None in its place.
                with self._changed:
                    self._lost += lost + len(lines)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, LOG_PAUSE_SECONDS)


class Log:
    """Levels and formats of log lines; ``write`` takes one finished line."""

    def __init__(
        self,
        write: Callable[[str], None],
        wall_clock: Callable[[], float],
        settings: LogSettings = LogSettings("info", "text"),
    ) -> None:
        self._write = write
        self._wall_clock = wall_clock
        self._once: set[str] = set()
        self.configure(settings)

    def configure(self, settings: LogSettings) -> None:
        """Level and format of the lines from now on."""
        self._threshold = LOG_LEVELS[settings.level]
        self._json = settings.format == "json"

    def message(self, level: str, text: str) -> None:
        """One line about the gateway itself."""
        self._emit(level, lambda: text, lambda: {"message": text})

    def once(self, level: str, text: str) -> None:
        """The same, but each text a single time (of the first MAX_REMEMBERED_NOTICES)."""
        if text not in self._once and len(self._once) < MAX_REMEMBERED_NOTICES:
            self._once.add(text)
            self.message(level, text)

    def record(self, record: RequestRecord) -> None:
        """One line about a request: probes are of interest to debuggers only."""
        if self._threshold > LOG_LEVELS["warning"]:
            return
        level = "info" if record.provider or record.status >= 400 else "debug"
        if record.ended == "upstream_broke" or record.status >= 500:
            level = "warning"
        self._emit(level, record.as_text, record.as_dict)

    def _emit(self, level: str, text: Callable[[], str], fields: Callable[[], dict]) -> None:
        if LOG_LEVELS[level] < self._threshold:
            return
        stamp = utc_text(self._wall_clock())
        if not self._json:
            self._write("%s %s %s" % (stamp, level, escape_controls(text())))
            return
        self._write(json.dumps(dict({"time": stamp, "level": level}, **fields())))


def frames_of(error: BaseException) -> str:
    """Where an exception came from: its type and the lines, none of the values."""
    frames = traceback.extract_tb(error.__traceback__)
    return "%s at %s" % (type(error).__name__,
                         " < ".join("%s:%d" % (frame.name, frame.lineno or 0)
                                    for frame in reversed(frames)))


class RecordRing:
    """The newest records; also counts what was answered here, by kind.

    A probe or a look at the gateway that went well is counted and not kept: one
    a second would have pushed out all else in a quarter of an hour.
    """

    def __init__(self, size: int = RECORDS_KEPT) -> None:
        self._lock = threading.Lock()
        self._records: collections.deque[RequestRecord] = collections.deque(maxlen=size)
        self._seen_count = 0
        self._local_answers: dict[str, tuple[int, int]] = {}

    def observe(self, records: Iterable[RequestRecord]) -> None:
        """Keep records, the oldest first."""
        with self._lock:
            for record in records:
                if record.provider or not is_quiet(record):
                    self._records.append(record)
                    self._seen_count += 1
                # Without a status nothing was answered: the client had left before.
                if not record.provider and record.status and not record.error:
                    kind = record.route or "none"  # as the metrics name it
                    count, tokens = self._local_answers.get(kind, (0, 0))
                    self._local_answers[kind] = (count + 1, tokens + record.saved_tokens)

    @property
    def seen_count(self) -> int:
        """How many records there have been: the number of the newest."""
        return self._seen_count

    def newest(self, limit: int) -> list[RequestRecord]:
        """Up to ``limit`` records, the newest first."""
        return self.numbered(limit)[1]

    def numbered(self, limit: int) -> tuple[int, list[RequestRecord]]:
        """The number of the newest, and the newest records; each is one below the one before."""
        with self._lock:
            return self._seen_count, list(self._records)[::-1][:limit]

    def local_answers(self) -> dict[str, tuple[int, int]]:
        """What was answered without an upstream, by route: (requests, tokens saved)."""
        with self._lock:
            return dict(self._local_answers)


# -- metrics

# Upper bounds of the buckets, seconds.  A first token takes 0.3 to 10 s; whole
# answers go on for minutes, and after ten of them most connections are cut.
FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 90.0, 180.0, 300.0, 600.0)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The statuses that HTTP names, and those that are told of upstreams beside them.
COUNTED_STATUSES = frozenset([*http.HTTPStatus, 499, *range(520, 528), 529])
OTHER = "other"


class Histogram:
    """How often values fell below which bound; ``counts`` has one more for those above all.

    A bound belongs to the bucket below it, as Prometheus has it.
    """

    __slots__ = ("bounds", "counts", "total", "maximum")

    def __init__(self, bounds: Sequence[float], values: Sequence[float] = ()) -> None:
        self.bounds = bounds
        ordered = sorted(values)
        up_to = [*map(partial(bisect.bisect_right, ordered), bounds), len(ordered)]
        self.counts = list(map(operator.sub, up_to, [0, *up_to]))
        self.total = sum(values, 0.0)
        self.maximum = max(values, default=0.0)

    def add(self, other: Histogram) -> None:
        """Count all values of one with the same bounds."""
        self.counts = list(map(operator.add, self.counts, other.counts))
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, share: float) -> Optional[float]:
        """The value that a share of all is below: about, by its place in its bucket.

        >>> times = Histogram((1.0, 2.0), (0.5, 1.5, 1.6, 1.7))
        >>> times.quantile(0.25), round(times.quantile(0.5), 3)
        (1.0, 1.233)
        """
        wanted, below, lower = share * sum(self.counts), 0, 0.0
        for count, upper in zip(self.counts, (*self.bounds, math.inf)):
            upper = min(upper, self.maximum)
            if count and below + count >= wanted:
                return lower + (upper - lower) * (wanted - below) / count
            below, lower = below + count, upper
        return None


class Totals:
    """What some requests made together."""

    __slots__ = ("requests", "errors", "tokens")

    def __init__(self, requests: int = 0, errors: int = 0) -> None:
        self.requests = requests
        self.errors = errors
        self.tokens = Usage()

    def add(self, other: Totals) -> None:
        """Count what others made."""
        self.requests += other.requests
        self.errors += other.errors
        self.tokens.add(other.tokens)

    def as_dict(self) -> dict:
        """For people."""
        return {"requests": self.requests, "errors": self.errors, **token_counts(self.tokens)}


def token_counts(usage: Usage) -> dict[str, int]:
    """Tokens under the names that records have."""
    return {"input_tokens": usage.input, "output_tokens": usage.output,
            "cache_read_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write}


class Minute:
    """One minute of the history; ``number`` counts minutes on the monotonic clock."""

    __slots__ = ("number", "totals", "first_byte")

    def __init__(self, number: int) -> None:
        self.number = number
        self.totals = Totals()
        self.first_byte = Histogram(FIRST_BYTE_BUCKETS)

    def as_row(self) -> tuple:
        """Its values in the order of HISTORY_COLUMNS."""
        tokens = self.totals.tokens
        p50, p95 = self.first_byte.quantile(0.5), self.first_byte.quantile(0.95)
        return (self.totals.requests, self.totals.errors, tokens.input, tokens.output,
                tokens.cache_read, tokens.cache_write,
                None if p50 is None else round(p50, 3), None if p95 is None else round(p95, 3))


HISTORY_COLUMNS = ("requests", "errors", "input_tokens", "output_tokens", "cache_read_tokens",
                   "cache_write_tokens", "first_byte_p50", "first_byte_p95")


class Kind(NamedTuple):
    """What the figures tell requests apart by; ``cases`` are their attempts'."""

    minute: float
    cases: tuple[str, ...]
    route: str
    provider: str
    account: str
    status: int
    ended: str
    mapped_model: str
    asked_model: str

    @property
    def model(self) -> str:
        """The one that was sent up, if any was."""
        return self.mapped_model or self.asked_model

    @property
    def failed(self) -> bool:
        """Whether they failed; those whose client left did not."""
        return self.status >= 400 or self.ended == "upstream_broke"


# What of a record is in its kind, behind the minute and the cases.
KIND_OF = operator.attrgetter("route", "provider", "account", "status", "ended",
                              "mapped_model", "model")
CASE_OF = operator.itemgetter(Attempt._fields.index("case"))
RECORD_OF = operator.itemgetter(1)
# What is added up: the tokens, and how long it took.
FIGURES_OF = operator.attrgetter("usage.input", "usage.output", "usage.cache_read",
                                 "usage.cache_write", "seconds", "first_byte_seconds")


def is_quiet(request: Union[RequestRecord, Kind]) -> bool:
    """Whether it was a probe, or a look at the gateway, that went well."""
    return request.status < 400 and request.route in QUIET_ROUTES


def bounded_key(table: Mapping[Any, Any], key: Any, other: Any, limit: int) -> Any:
    """A key that a table has or may still take, else the key of all others."""
    return key if key in table or len(table) < limit else other


class Metrics:
    """Counts of finished requests: totals for Prometheus, minutes for the plots.

    A finished request is only taken note of, so that its connection's next one does not
    wait; they are added up (``_fold``) and shown to ``keep`` for whoever asks, and where
    they become many: all of a kind together, half of the steps.  A reload keeps all of it.
    """

    def __init__(self, keep: Callable[[Iterable[RequestRecord]], Any] = bool) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._uncounted: collections.deque[tuple[float, RequestRecord]] = collections.deque()
        self._requests: dict[tuple[str, str, str, str], int] = {}
        self._attempts: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._models: dict[str, Totals] = {}
        self._accounts: dict[tuple[str, str], Totals] = {}
        self._totals = Totals()
        self._first_byte = Histogram(FIRST_BYTE_BUCKETS)
        self._seconds = Histogram(REQUEST_BUCKETS)
        self._minutes = [Minute(-1)] * HISTORY_MINUTES

    def observe(self, record: RequestRecord, now: float) -> None:
        """Count one finished request; ``now`` is monotonic."""
        self._uncounted.append((now, record))
        if len(self._uncounted) >= MAX_UNCOUNTED:
            self.settle()

    def settle(self) -> None:
        """Count, and give to be kept, all that has ended."""
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        """Add up what has ended since the last time, for one thread at a time."""
        by_kind: dict[Any, list[tuple[Any, ...]]] = {}
        ended = list(map(collections.deque.popleft,
                         repeat(self._uncounted, len(self._uncounted))))
        self._keep(map(RECORD_OF, ended))
        for now, record in ended:
            key = (now // 60, tuple(map(CASE_OF, record.attempts))) + KIND_OF(record)
            if key not in by_kind:
                kind = Kind(*key)
                # What failed before a model was known is not the model's.
                if kind.cases and not kind.failed and kind.model not in self._models:
                    self._add_all(by_kind)
                by_kind[kind] = []  # which is found by the bare tuple, too
            by_kind[key].append(FIGURES_OF(record))
        self._add_all(by_kind)

    def _add_all(self, by_kind: dict[Any, list[tuple[Any, ...]]]) -> None:
        for kind, figures in by_kind.items():
            self._add(kind, figures)
        by_kind.clear()

    def _add(self, kind: Kind, figures: Sequence[tuple[Any, ...]]) -> None:
        count = len(figures)
        status = str(kind.status) if kind.status in COUNTED_STATUSES else (
            OTHER if kind.status else "none")
        route = kind.route or "none"
        key = bounded_key(self._requests, (route, kind.provider, kind.account, status),
                          (route, OTHER, OTHER, status), MAX_SERIES_COUNT)
        self._requests[key] = self._requests.get(key, 0) + count
        if is_quiet(kind):
            return
        self._ended[kind.ended] = self._ended.get(kind.ended, 0) + count
        for case in kind.cases:
            self._attempts[case] = self._attempts.get(case, 0) + count
        number = int(kind.minute)
        minute = self._minutes[number % HISTORY_MINUTES]
        if minute.number != number:
            minute = self._minutes[number % HISTORY_MINUTES] = Minute(number)
        *counts, seconds, first_byte = zip(*figures)
        totals = Totals(count, count if kind.failed else 0)
        tokens = totals.tokens
        tokens.input, tokens.output, tokens.cache_read, tokens.cache_write = map(sum, counts)
        minute.totals.add(totals)
        self._totals.add(totals)
        if not kind.cases:
            return
        self._seconds.add(Histogram(REQUEST_BUCKETS, seconds))
        first = Histogram(FIRST_BYTE_BUCKETS, [value for value in first_byte if value is not None])
        self._first_byte.add(first)
        minute.first_byte.add(first)
        account = bounded_key(self._accounts, (kind.provider, kind.account), (OTHER, OTHER),
                              MAX_SERIES_COUNT)
        self._accounts.setdefault(account, Totals()).add(totals)
        # A name that only ever failed is a client's, not a model's.
        model = bounded_key(self._models, kind.model, OTHER,
                            0 if kind.failed else MAX_MODELS_COUNTED)
        self._models.setdefault(model or OTHER, Totals()).add(totals)

    def totals(self) -> dict:
        """Everything since the start."""
        with self._lock:
            self._fold()
            return self._totals.as_dict()

    def of_account(self, provider: str, account: str) -> dict:
        """What one account answered since the start."""
        with self._lock:
            self._fold()
            return self._accounts.get((provider, account), Totals()).as_dict()

    def of_models(self) -> dict[str, dict]:
        """The same by the model that was sent up."""
        with self._lock:
            self._fold()
            return {model: totals.as_dict() for model, totals in sorted(self._models.items())}

    def history(self, now: float) -> dict[str, list]:
        """The last hour, a list a column, its minutes oldest first; the last is under way."""
        last = int(now // 60)
        nothing = Minute(-1)
        with self._lock:
            self._fold()
            rows = []
            for number in range(last - HISTORY_MINUTES + 1, last + 1):
                minute = self._minutes[number % HISTORY_MINUTES]
                rows.append((minute if minute.number == number else nothing).as_row())
        return {name: list(values) for name, values in zip(HISTORY_COLUMNS, zip(*rows))}

    def text(self, gauges: Gauges) -> bytes:
        """All of it in Prometheus' text format (version 0.0.4)."""
        with self._lock:
            self._fold()
            tokens = token_counts(self._totals.tokens)
            families = [
                metric_family("requests_total", "counter", "Requests that have ended.", [
                    ("", dict(zip(("route", "provider", "account", "status"), key)), value)
                    for key, value in sorted(self._requests.items())]),
                metric_family("requests_ended_total", "counter",
                              "Requests that have ended, without probes, by how.",
                              by_label("ended", self._ended)),
                metric_family("upstream_attempts_total", "counter",
                              "Calls of upstreams by what came of them.",
                              by_label("outcome", self._attempts)),
                metric_family("tokens_total", "counter", "Tokens as upstreams counted them.", [
                    ("", {"kind": name[:-len("_tokens")]}, value)
                    for name, value in tokens.items()]),
                histogram_family("time_to_first_byte_seconds",
                                 "From a request to the first content of its answer.",
                                 self._first_byte),
                histogram_family("request_seconds",
                                 "From a request to the end of its answer, if it went upstream.",
                                 self._seconds),
            ]
        return "".join([*families, *gauges.families()]).encode("utf-8")


class Gauges(NamedTuple):
    """What the metrics tell of this moment, and what others count."""

    version: str
    uptime_seconds: float
    in_flight: int
    # "provider/account" -> whether it could serve now
    ready: Mapping[str, bool]
    # RecordRing.local_answers
    local_answers: Mapping[str, tuple[int, int]]

    def families(self) -> list[str]:
        """The families of these."""
        local = sorted(self.local_answers.items())
        return [
            metric_family("in_flight", "gauge", "Requests under way, without probes.",
                          [("", {}, self.in_flight)]),
            metric_family("account_ready", "gauge", "Whether an account could serve now.",
                          by_label("account", {name: int(ready)
                                               for name, ready in self.ready.items()})),
            metric_family("local_answers_total", "counter", "Requests answered without an upstream.",
                          by_label("kind", {kind: count for kind, (count, _) in local})),
            metric_family("saved_tokens_total", "counter",
                          "Tokens that local answers kept from being sent, estimated.",
                          by_label("kind", {kind: tokens for kind, (_, tokens) in local if tokens})),
            metric_family("uptime_seconds", "gauge", "Since the gateway started.",
                          [("", {}, round(self.uptime_seconds, 3))]),
            metric_family("info", "gauge", "The version of the gateway.",
                          [("", {"version": self.version}, 1)]),
        ]


def by_label(label: str, values: Mapping[str, float]) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a family with one label."""
    return [("", {label: name}, value) for name, value in sorted(values.items())]


LABEL_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


def metric_family(name: str, kind: str, about: str,
                  samples: Sequence[tuple[str, Mapping[str, str], float]]) -> str:
    """One family: HELP, TYPE, and a line a sample (suffix of the name, labels, value).

    >>> print(metric_family("up", "gauge", "Is it?", [("", {"who": 'a"b'}, 1)]), end="")
    # HELP claude_gateway_up Is it?
    # TYPE claude_gateway_up gauge
    claude_gateway_up{who="a\\"b"} 1
    """
    full = "claude_gateway_" + name
    lines = ["# HELP %s %s" % (full, about), "# TYPE %s %s" % (full, kind)]
    for suffix, labels, value in samples:
        pairs = ",".join('%s="%s"' % (label, text.translate(LABEL_ESCAPES))
                         for label, text in labels.items())
        lines.append("%s%s%s %s" % (full, suffix, "{%s}" % pairs if pairs else "", value))
    return "\n".join(lines) + "\n"


def histogram_family(name: str, about: str, histogram: Histogram) -> str:
    """A histogram as its cumulative buckets, its sum and its count."""
    samples: list[tuple[str, Mapping[str, str], float]] = []
    below = 0
    for bound, count in zip((*histogram.bounds, math.inf), histogram.counts):
        below += count
        told = "+Inf" if bound == math.inf else repr(bound)
        samples.append(("_bucket", {"le": told}, below))
    samples += [("_sum", {}, round(histogram.total, 6)), ("_count", {}, below)]
    return metric_family(name, "histogram", about, samples)


# -- who is alive

# What an event of a stream is beside its text, which has four characters a token.
EVENT_FRAME_BYTES = 113


def guessed_output_tokens(bytes_count: int, events_count: int) -> int:
    """About how many tokens a stream has brought: upstreams count them at its end."""
    return max(0, bytes_count - events_count * EVENT_FRAME_BYTES) // 4


class LiveRequest:
    """A request under way.  Its thread alone writes, by plain assignments; others look.

    ``stage`` is reading (its body), waiting (for an upstream's answer), queued
    (until an account is ready), held (its first content is awaited) or streaming.
    """

    # Given by Alive once it is looked at; ids are the clients', and two may be the same.
    number = 0
    stage = "reading"
    # Who is being asked: a provider and its account.
    asked: tuple[str, str] = "", ""
    tokens_so_far: Optional[Callable[[], dict[str, int]]] = None

    def __init__(self, record: RequestRecord, began: float) -> None:
        self.record = record
        self.began = began

    def as_dict(self, now: float) -> dict:
        """For people."""
        record, told = self.record, self.tokens_so_far
        return {
            "number": self.number,
            "id": record.id,
            "age_seconds": round(max(0.0, now - self.began), 3),
            "state": self.stage,
            "key": record.key,
            "route": record.route,
            "model": record.model,
            "provider": self.asked[0],
            "account": self.asked[1],
            # The one under way is noted once it has come to something.
            "attempt": len(record.attempts) + (self.stage in ("waiting", "held")),
            "bytes_out": record.bytes_out,
            **(told() if told is not None else {}),
        }


class Alive(Dict[LiveRequest, None]):
    """The requests under way, oldest first.

    One comes and goes in a single step of the dict's; the lock is for those who look.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbered_count = 0

    def end(self, live: LiveRequest) -> None:
        """It has ended.  What it would be asked leads back to it: a circle to be cut."""
        live.tokens_so_far = None
        self.pop(live, None)

    def requests(self) -> list[LiveRequest]:
        """Those that are no probes and no looks at the gateway."""
        with self._lock:
            requests = list(self.copy())
            for live in requests:
                if not live.number:
                    live.number = self._numbered_count = self._numbered_count + 1
        return [live for live in requests if live.record.route not in QUIET_ROUTES]


# ---- 13. Upstream transport --------------------------------------------------

POLL_READ = getattr(select, "POLLIN", 0x001)
POLL_WRITE = getattr(select, "POLLOUT", 0x004)
# Told by Linux alone: the peer has sent its FIN, also behind unread bytes.
POLL_LEFT = getattr(select, "POLLRDHUP", 0)
# Reported whether asked for or not; a connection in this state is over.
POLL_OVER = (POLL_LEFT | getattr(select, "POLLERR", 0) | getattr(select, "POLLHUP", 0)
             | getattr(select, "POLLNVAL", 0))


class SelectPoller:
    """The part of select.poll that we use, for Windows, which has none."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, descriptor: int, events: int) -> None:
        """Wait for ``events`` of a descriptor; also changes what was registered."""
        self._events[descriptor] = events

    modify = register

    def poll(self, milliseconds: Optional[float]) -> list[tuple[int, int]]:
        """(descriptor, events) pairs; a failed connect counts as writable."""
        readers = [fd for fd, events in self._events.items() if events & POLL_READ]
        writers = [fd for fd, events in self._events.items() if events & POLL_WRITE]
        seconds = None if milliseconds is None else milliseconds / 1000
        ready = select.select(readers, writers, writers, seconds)
        found = [(fd, POLL_READ) for fd in ready[0]]
        return found + [(fd, POLL_WRITE) for fd in set(ready[1]) | set(ready[2])]


new_poller: Callable[[], Any] = getattr(select, "poll", SelectPoller)

# A socket that takes, or gives, no more for now.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
NOBODY = Watch()


# A proxy's "authentication required" (RFC 9110 section 15.5.8).
PROXY_WANTS_PASSWORD = 407
# OpenSSL's X509_V_ERR_ codes for a chain that ends at nobody we know: mostly a
# company's proxy that signs anew.
UNKNOWN_CA_CODES = frozenset([18, 19, 20, 21])
UNKNOWN_CA_HELP = ("; if a proxy of yours signs it, name the file of its CA in SSL_CERT_FILE "
                   "or as ca_file of the provider")


class Destination:
    """Where connections go, and so what may share one.

    ``idle`` are those that wait there.  ``by_url`` says that a proxy reads the heads that
    we send: it is told whole URLs, and who asks, with the ``last`` bytes of each head.
    """

    __slots__ = ("scheme", "host", "port", "proxy", "ca_file", "idle", "by_url", "last")

    def __init__(self, scheme: str, host: str, port: int, proxy: Optional[ProxyAddress],
                 ca_file: Optional[str]) -> None:
        self.scheme, self.host, self.port = scheme, host, port
        self.proxy, self.ca_file = proxy, ca_file
        self.idle: list[Wire] = []
        self.by_url = proxy is not None and scheme == "http"
        self.last = b"\r\n"
        if self.by_url and proxy is not None and proxy.authorization is not None:
            asks = header_lines([("Proxy-Authorization", proxy.authorization.reveal())])
            self.last = asks + self.last


class UpstreamHead:
    """What calls have in common that differ in their bodies alone.

    ``lines`` and ``after`` are header lines around the length of the body, which is not
    told where there are none after it.  The first of these calls notes ``destination``,
    and what it sends ``before`` the length.
    """

    __slots__ = ("method", "provider", "target", "url", "lines", "before", "after", "destination")

    def __init__(self, method: str, provider: Provider, target: str, lines: bytes,
                 after: bytes = b"") -> None:
        self.method, self.provider, self.target = method, provider, target
        self.url = provider.base_url.origin + target
        self.lines, self.before, self.after = lines, b"", after
        self.destination: Optional[Destination] = None


class UpstreamCall:
    """One request to an upstream.

    To an OpenerDirector it is a request: it has the members that ``open`` looks at.
    urllib.request.Request would take the URL apart once more (25 us) and keep headers
    in a dict that changes names and loses duplicates; ours travel beside it, as do
    the body, the time limits and the client to watch.
    """

    # What ``open`` may look at of a Request, besides the members below; no body for it.
    data: Optional[bytes] = None
    headers: Mapping[str, str] = {}
    # Whether a stale pooled connection may still be replaced, at the cost of
    # sending once more; the handler takes it back when it does.
    may_resend = True

    def __init__(self, head: UpstreamHead, body: Optional[bytes], timeouts: Timeouts,
                 watch: Watch = Watch()) -> None:
        self.type = head.provider.base_url.scheme
        self.full_url = head.url
        self.head = head
        self.body = body or b""
        self.timeouts = timeouts
        self.watch = watch

    def get_method(self) -> str:
        """The method, as audit hooks are told it beside the URL."""
        return self.head.method


class Wire:
    """One connection to an upstream: non-blocking, waited for together with the client.

    Whoever waits for an upstream waits for the client's leaving in the same
    poll, so no second thread is needed and nothing runs on for nobody.  Raises
    ClientGone from any wait; other errors of the operating system pass through.
    """

    destination: Destination  # told by who connects it

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.reused = self.cancelled = self.is_tls = False
        # When it became idle, or was taken to be used again.
        self.since = 0.0
        self.half_sent = False
        self.unread = b""
        self._monotonic = monotonic
        self._descriptor = sock.fileno()
        # What a poll gives where our bytes have come, and nothing of the client.
        self._usual = [(self._descriptor, POLL_READ)]
        self._watched: Optional[int] = None
        self.attach(NOBODY)

    def attach(self, watch: Watch) -> None:
        """Whom to watch from now on."""
        self.watch = watch
        watched = watch.fileno()
        if watched == self._watched:
            return  # as a rule: a client and its connection find each other again
        self._watched, self._armed_for = watched, POLL_READ
        self._poller = poller = new_poller()
        self._poll = poller.poll
        poller.register(self._descriptor, POLL_READ)
        if watched >= 0:
            poller.register(watched, POLL_READ | POLL_LEFT)

    def wait(self, events: int, seconds: float) -> bool:
        """Whether one of ``events`` came within ``seconds``.  Raises ClientGone."""
        watch = self.watch
        if events != self._armed_for:
            self._poller.modify(self._descriptor, events)
            self._armed_for = events
        deadline = self._monotonic() + seconds
        while True:
            beat = watch.beat
            pause = seconds if beat is None else min(seconds, beat())
            ready = watch.rest(self._poll, pause * 1000 if pause > 0 else 0)
            if ready == self._usual:
                return True
            seconds = deadline - self._monotonic()
            found = self._is_among(ready)
            if found or seconds <= 0:
                return found

    def _is_among(self, ready: Iterable[tuple[int, int]]) -> bool:
        """Whether our bytes are what a poll tells of.  Raises ClientGone."""
        found = False
        for descriptor, flags in ready:
            if descriptor == self._descriptor:
                found = True
            elif flags & POLL_OVER or self.watch.gone():
                raise ClientGone()
            else:
                # Bytes of a next request: readable for good, so that only a
                # hang-up can still be seen.
                self._poller.modify(descriptor, POLL_LEFT)
                self._watched = None
        return found

    def send(self, data: bytes, seconds: float) -> bool:
        """Send all; ``seconds`` bound each stop.  False when an answer came before the end.

        Raises OSError (TimeoutError for a stop that was too long), ClientGone.
        """
        self.half_sent = True
        # A view, so that nothing large is copied; most is sent at once and needs none.
        view: Any = data if len(data) <= SEND_BYTES else memoryview(data)
        while True:
            try:
                sent = self.sock.send(view[:SEND_BYTES])
                if sent == len(view):
                    self.half_sent = False
                    return True
                view = memoryview(view)[sent:]
                continue
            except WOULD_BLOCK:
                # The upstream takes no more for now: it may be answering already.
                if not self.wait(POLL_READ | POLL_WRITE, seconds):
                    raise socket.timeout("sending stopped") from None
            if self._answers_early():
                return False

    def _answers_early(self) -> bool:
        """Whether a final answer has begun to come; what was read of it is kept."""
        try:
            data = self.sock.recv(READ_BYTES)
        except WOULD_BLOCK:
            return False
        if not data:
            raise ConnectionResetError("closed while the request was being sent")
        self.unread += data
        # What could never be a head is for its reader to refuse, too: it would fill the memory.
        return (len(self.unread) > MAX_RESPONSE_HEAD_BYTES
                or begins_final_answer(self.unread))

    def receive(self, seconds: float) -> bytes:
        """What there is, or comes within ``seconds``; b"" at the end of the connection.

        Raises OSError (TimeoutError for silence), ClientGone.
        """
        if self.unread:
            data, self.unread = self.unread, b""
            return data
        if not self.is_tls:
            if not self.wait(POLL_READ, seconds):
                raise socket.timeout("silence")
            try:
                return self.sock.recv(READ_BYTES)
            except BlockingIOError:
                pass  # woken for nothing, which Linux does for a bad checksum
        deadline = self._monotonic() + seconds
        while True:
            try:
                # TLS may hold decoded bytes that no poll shows: look first.
                return self.sock.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                events = POLL_READ
            except ssl.SSLWantWriteError:
                events = POLL_WRITE
            if not self.wait(events, deadline - self._monotonic()):
                raise socket.timeout("silence")

    def is_alive(self) -> bool:
        """Whether an idle connection can be used: nothing has come, not even its end."""
        try:
            # A read that finds nothing raises (0.9 us more).  TLS may hold what no poll shows.
            if not self.is_tls and not self._poll(0):
                return True
        except (OSError, ValueError):
            pass  # select() of a client's socket that was closed since: only a read can tell
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def cancel(self) -> None:
        """Wake the thread that waits on this wire, from another one; it sees the end."""
        self.cancelled = True
        try:
            # Not SSLSocket.shutdown, which would take the TLS layer away under
            # the reading thread.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass  # not connected (any more): nothing is left to wake

    def close(self) -> None:
        """Close the connection, whatever state it is in.

        With half a request sent it is reset: an orderly close would go on
        sending the rest to an upstream that nobody listens to any more.
        """
        if self.half_sent:
            reset_on_close(self.sock)
        self.sock.close()


def begins_final_answer(data: bytes) -> bool:
    """Whether bytes of an upstream hold more than interim (1xx) answers, or too many of those.

    >>> begins_final_answer(b"HTTP/1.1 102 Processing\\r\\n\\r\\n")
    False
    """
    for _ in range(MAX_INTERIM_RESPONSES):
        if not data.startswith(b"HTTP/1.1 1"):
            return not b"HTTP/1.1 1".startswith(data)
        end = HEAD_END.search(data)
        if end is None:
            return False
        data = data[end.end():]
    return True


def reset_on_close(sock: socket.socket) -> None:
    """Make the coming close of a socket a reset."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
    except OSError:
        pass  # already gone: its end is bad enough


class Pauses:
    """Waits that end early when the client leaves or the process stops; no busy looking.

    ``stop`` makes one end of a socket pair readable for good, which wakes all.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._woken, self._waker = socket.socketpair()

    def wait(self, seconds: float, watch: Watch) -> None:
        """Let the time pass, and ``watch`` beat.  Raises ClientGone, ShuttingDown."""
        poller = new_poller()
        own, client = self._woken.fileno(), watch.fileno()
        if own < 0:
            raise ShuttingDown("the gateway is shutting down")
        poller.register(own, POLL_READ)
        if client >= 0:
            poller.register(client, POLL_READ | POLL_LEFT)
        deadline = self._monotonic() + seconds
        while True:
            remaining = deadline - self._monotonic()
            if remaining <= 0:
                return
            beat = watch.beat
            pause = remaining if beat is None else min(remaining, beat())
            ready = watch.rest(poller.poll, pause * 1000)
            for descriptor, flags in ready:
                if descriptor == own:
                    raise ShuttingDown("the gateway is shutting down")
                if flags & POLL_OVER or watch.gone():
                    raise ClientGone()
                # Bytes of a next request: only a hang-up can still be seen.
                poller.modify(descriptor, POLL_LEFT)

    def stop(self) -> None:
        """End all pauses, and those to come."""
        try:
            self._waker.send(b"x")
        except OSError:
            pass  # closed already: whoever pauses then sees that

    def close(self) -> None:
        """Close the pair, when nobody pauses any more."""
        self._waker.close()
        self._woken.close()


class ConnectionPool:
    """All wires: the idle ones by destination, the latest used first, and the ``active`` ones.

    There is no lock: each look at a list, set or dict is one step of Python's, and a wire
    is whose ``pop`` gave it.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._destinations: dict[tuple[Any, ...], Destination] = {}
        self.active: set[Wire] = set()
        self.cancelled = self._closed = False

    def destination(self, *parts: Any) -> Destination:
        """The Destination of these parts: there is one."""
        return self._destinations.setdefault(parts, Destination(*parts))

    def take(self, destination: Destination) -> Optional[Wire]:
        """A wire that seems alive, now at work, or None."""
        try:
            while True:
                wire, now = destination.idle.pop(), self._monotonic()
                # However short it was idle: what came behind an answer would be taken for
                # the next one's, which may be somebody else's.
                if now - wire.since < POOL_IDLE_SECONDS and wire.is_alive():
                    wire.since, wire.reused = now, True
                    self.begin(wire)
                    return wire
                wire.close()
        except IndexError:
            return None

    def begin(self, wire: Wire) -> None:
        """From now on ``cancel_all`` ends what this wire waits for."""
        self.active.add(wire)
        if self.cancelled:
            wire.cancel()

    def end(self, wire: Wire, keep: bool) -> None:
        """Keep a wire whose last answer was read to its end, else close it; old ones make room."""
        self.active.discard(wire)
        # Where an answer came early, the rest of our body is owed.
        if not keep or wire.cancelled or wire.half_sent:
            wire.close()
            return
        wire.since = now = self._monotonic()
        wire.watch = NOBODY
        idle = wire.destination.idle
        idle.append(wire)
        # A lone one is this, or will be looked at when it is taken.
        if len(idle) > 1 or self._closed:
            self._make_room(idle, now)

    def _make_room(self, idle: list[Wire], now: float) -> None:
        try:
            while (self._closed or len(idle) > POOL_IDLE_PER_ORIGIN
                   or now - idle[0].since >= POOL_IDLE_SECONDS):
                idle.pop(0).close()
        except IndexError:
            pass  # others have taken the rest

    def cancel_all(self) -> None:
        """End every call under way; each raises ShuttingDown in its own thread.

        Without a lock: the mark is set, then the wires are looked at; who begins adds its
        wire, and then looks at the mark.
        """
        self.cancelled = True
        for wire in self.active.copy():
            wire.cancel()

    def count(self) -> int:
        """How many wires are idle."""
        return sum(len(destination.idle) for destination in self._destinations.copy().values())

    def close(self) -> None:
        """Close all idle wires, and those that come back later."""
        self._closed = True
        for destination in self._destinations.copy().values():
            self._make_room(destination.idle, 0.0)


class UpstreamResponse:
    """An upstream's answer: ``status``, ``headers``, and the body by ``read``.

    ``framing`` is what its head says of that.
    ``decoded`` says that a Content-Encoding has been undone, ``readable`` that the body
    comes out as text that we could add to.  ``close`` returns the connection to the pool
    where the body was read to its end, else closes it, which is what tells the upstream
    to stop.
    """

    decoded, readable = False, True
    # Whether all of the body has been read: the next ``read`` can only tell that, or a fault.
    at_end = False

    def __init__(
        self,
        call: UpstreamCall,
        head: StatusHead,
        framing: Framing,
        wire: Wire,
        release: Callable[[Wire, bool], None],
    ) -> None:
        self.status = head.status
        self.headers = headers = head.headers
        self.framing = framing
        self._body = sized_body(headers) if framing.body is None else framing.body()
        self._keep = not framing.closes
        self._idle_seconds = call.timeouts.idle_seconds
        self._wire: Optional[Wire] = wire
        self._release = release
        if framing.coding:
            self.readable = framing.coding == "identity"

    @property
    def length(self) -> Optional[int]:
        """The body's length in bytes where the head tells it; for HEAD what GET would give."""
        if isinstance(self._body, LengthBody) and not self.decoded:
            return self._body.remaining
        return told_length(self.headers) if self.framing.is_head else None

    def read(self, seconds: Optional[float] = None) -> bytes:
        """The next bytes of the body as one read gave them; b"" after a proper end.

        ``seconds`` bound the wait for them (``timeouts.idle_seconds``).  Raises
        UpstreamBroke, UpstreamStalled, ShuttingDown, ClientGone.
        """
        body = self._body
        while not body.done:
            assert self._wire is not None, "read after close"
            try:
                data = self._wire.receive(self._idle_seconds if seconds is None else seconds)
                payload = body.feed(data) if data else self._cut()
            except (OSError, EOFError, ValueError) as error:
                raise self._broken(error) from error
            if payload:
                if body.done:
                    self.at_end = True
                    self.close()
                return payload
        self.at_end = True
        self.close()
        return b""

    def _cut(self) -> bytes:
        """What the end of the connection gives.  Raises EOFError where more was due."""
        self._body.feed_eof()
        self._keep = False
        return b""

    def _broken(self, error: Exception) -> UpstreamError:
        if self._wire is not None and self._wire.cancelled:
            return ShuttingDown("the gateway is shutting down")
        if isinstance(error, socket.timeout):
            return UpstreamStalled("upstream sent nothing for %g s" % self._idle_seconds)
        return UpstreamBroke("upstream broke off: %s" % reason_of(error))

    def close(self) -> None:
        """Give the connection back or close it; later calls do nothing."""
        wire, self._wire = self._wire, None
        if wire is not None:
            body = self._body
            self._release(wire, self._keep and body.done and not body.excess and not wire.unread)


class InflatedResponse(UpstreamResponse):
    """One whose body came compressed, and is read as what it was."""

    decoded = True

    def __init__(self, call: UpstreamCall, head: StatusHead, framing: Framing, wire: Wire,
                 release: Callable[[Wire, bool], None]) -> None:
        super().__init__(call, head, framing, wire, release)
        self._inflater = Inflater(framing.coding)
        self.readable = True

    def read(self, seconds: Optional[float] = None) -> bytes:
        """The next bytes, in bounded steps (UpstreamResponse.read)."""
        inflater, payload = self._inflater, b""
        try:
            while not payload:
                data = b"" if inflater.waiting else super().read(seconds)
                if not data and not inflater.waiting:
                    if not isinstance(self._body, NoBody):
                        inflater.feed_eof()
                    return b""
                payload = inflater.feed(data)
        except (EOFError, ValueError) as error:
            raise UpstreamBroke("upstream broke off: %s" % error) from error
        self.at_end = False  # for what waits in the inflater, and its end
        return payload


class StaleConnection(Exception):
    """A pooled connection that the upstream had closed: nothing of an answer came."""


class PoolingHandler(urllib.request.BaseHandler):
    """urllib.request's handler for http and https: pooled, bounded, cancellable.

    What leaves it is UpstreamError or ClientGone: the exceptions of sockets and
    TLS are translated here and in the functions below.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        choose_proxy: Callable[[BaseUrl], Optional[ProxyAddress]],
        ca_files: Sequence[str],
    ) -> None:
        self.pool = ConnectionPool(monotonic)
        self._monotonic = monotonic
        # Once for each address: a system's own list of exceptions may ask the resolver.
        self._choose_proxy = lru_cache()(choose_proxy)
        self._ca_files = tuple(ca_files)
        self._lock = threading.Lock()
        self._contexts: dict[Optional[str], ssl.SSLContext] = {}

    def default_open(self, call: UpstreamCall) -> UpstreamResponse:
        """Called by the opener, first of all and for any URL: ours are http and https."""
        destination = call.head.destination or self._destination(call.head)
        if self.pool.cancelled:
            raise ShuttingDown("the gateway is shutting down")
        wire = self.pool.take(destination) if call.may_resend else None
        if wire is not None:
            try:
                return self._exchange(call, wire)
            except StaleConnection:
                call.may_resend = False  # one fresh connection, not counted as an attempt
        return self._exchange(call, self._connect(call, destination))

    def _destination(self, head: UpstreamHead) -> Destination:
        """Where the calls with this head go."""
        provider, base = head.provider, head.provider.base_url
        found = self.pool.destination(
            base.scheme, base.host, base.port, provider.proxy or self._choose_proxy(base),
            provider.ca_file)
        start = "%s %s HTTP/1.1\r\n" % (head.method, head.url if found.by_url else head.target)
        head.before = start.encode("latin-1", "replace") + head.lines
        head.destination = found
        return found

    # -- one exchange on a connection

    def _exchange(self, call: UpstreamCall, wire: Wire) -> UpstreamResponse:
        """Send, and read the response head.  Raises StaleConnection on a reused wire."""
        timeouts, broken, head, body = call.timeouts, None, call.head, call.body
        # No large body is copied.
        first, rest = (body, b"") if len(body) <= READ_BYTES else (b"", body)
        try:
            wire.attach(call.watch)
            try:
                if wire.send(b"%b%b%b%b%b" % (
                        head.before, b"%d" % len(body) if head.after else b"", head.after,
                        wire.destination.last, first), timeouts.idle_seconds) and rest:
                    wire.send(rest, timeouts.idle_seconds)
            except OSError as error:
                # An upstream that answers early and closes (413, 401) makes sending
                # fail before its answer is read: look for the answer first.
                broken = error
            try:
                answer, wire.unread = read_response_head(
                    wire, timeouts.first_byte_seconds, self._monotonic)
            except UpstreamError as error:
                self._refine(error, wire, broken)
                raise
            if (answer.status == PROXY_WANTS_PASSWORD and wire.destination.by_url
                    and (proxy := wire.destination.proxy) is not None):
                # It answers in the upstream's place: that says nothing of an account.
                raise UpstreamUnreached(refused_by_proxy(proxy, answer.status))
            framing = framing_of(head.method, answer)
            kind = InflatedResponse if framing.inflates else UpstreamResponse
            return kind(call, answer, framing, wire, self.pool.end)
        except BaseException:
            self.pool.end(wire, False)
            raise

    def _refine(self, error: UpstreamError, wire: Wire, broken: Optional[OSError]) -> None:
        """Raise what says more than that no answer came."""
        if wire.cancelled:
            raise ShuttingDown("the gateway is shutting down") from error
        # Nothing came back: only then may a reused connection be replaced.
        soon = self._monotonic() - wire.since < STALE_SECONDS
        if wire.reused and soon and isinstance(error, UpstreamClosed):
            raise StaleConnection() from error
        if broken is not None and isinstance(error, UpstreamClosed):
            raise UpstreamClosed("upstream closed while the request was being sent: %s"
                                 % reason_of(broken)) from error

    # -- connecting

    def _connect(self, call: UpstreamCall, destination: Destination) -> Wire:
        """A new connection, through the proxy and TLS where there are such."""
        deadline = self._monotonic() + call.timeouts.connect_seconds
        near = destination.proxy or destination
        try:
            wire = self._tcp(near.host, near.port, call.watch, deadline)
        except (OSError, UnicodeError) as error:
            if isinstance(error, socket.gaierror):
                check_descriptors()  # the resolver needs some, and says nothing of it
            # UnicodeError: a name that cannot be one, such as "a..b".
            # Who refused must be told: one's own proxy is mended elsewhere than an upstream.
            whose = "proxy %s: " % (destination.proxy,) if destination.proxy else ""
            raise UpstreamUnreached("upstream connection failed: %s%s"
                                    % (whose, connect_reason(error, near.host))) from error
        wire.destination = destination
        self.pool.begin(wire)
        try:
            if destination.scheme == "https":
                if destination.proxy is not None:
                    self._tunnel(wire, destination, deadline)
                self._tls(wire, destination, deadline)
            return wire
        except (OSError, UpstreamError) as error:
            self.pool.end(wire, False)
            if wire.cancelled:
                raise ShuttingDown("the gateway is shutting down") from error
            if isinstance(error, UpstreamError):
                raise
            unknown_ca = getattr(error, "verify_code", None) in UNKNOWN_CA_CODES
            raise UpstreamUnreached("upstream connection failed: %s%s" % (
                connect_reason(error, destination.host),
                UNKNOWN_CA_HELP if unknown_ca else "")) from error
        except BaseException:
            self.pool.end(wire, False)
            raise

    def _tcp(self, host: str, port: int, watch: Watch, deadline: float) -> Wire:
        """The first address that answers; each gets its share of what time is left."""
        addresses = watch.rest(partial(socket.getaddrinfo, host, port, 0), socket.SOCK_STREAM)
        failure: OSError = OSError("no address")
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            share = (deadline - self._monotonic()) / (len(addresses) - index)
            try:
                wire = Wire(socket.socket(family, kind, protocol), self._monotonic)
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    # No account's fault, and none would do better.
                    raise out_of_descriptors() from error
                failure = error  # a family that this machine does not have
                continue
            wire.attach(watch)
            try:
                start_connecting(wire, address, max(0.0, share))
                return wire
            except OSError as error:
                wire.close()
                failure = error
            except BaseException:
                wire.close()
                raise
        raise failure

    def _tunnel(self, wire: Wire, destination: Destination, deadline: float) -> None:
        """CONNECT through an HTTP proxy (RFC 9110 section 9.3.6)."""
        assert destination.proxy is not None
        authority = "%s:%d" % ("[%s]" % destination.host if ":" in destination.host
                               else destination.host, destination.port)
        pairs = [("Host", authority)]
        if destination.proxy.authorization is not None:
            pairs.append(("Proxy-Authorization", destination.proxy.authorization.reveal()))
        wire.send(encode_head("CONNECT %s HTTP/1.1" % authority, pairs),
                  deadline - self._monotonic())
        try:
            head, rest = read_response_head(wire, deadline - self._monotonic(), self._monotonic)
        except UpstreamError as error:
            raise UpstreamUnreached("upstream connection failed: proxy %s: %s"
                                    % (destination.proxy, error)) from error
        if head.status // 100 != 2 or rest:
            raise UpstreamUnreached(refused_by_proxy(destination.proxy, head.status))

    def _tls(self, wire: Wire, destination: Destination, deadline: float) -> None:
        wire.sock = self._context(destination.ca_file).wrap_socket(
            wire.sock, server_hostname=destination.host, do_handshake_on_connect=False)
        wire.is_tls = True
        while True:
            try:
                wire.sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                events = POLL_READ
            except ssl.SSLWantWriteError:
                events = POLL_WRITE
            if not wire.wait(events, deadline - self._monotonic()):
                raise socket.timeout("TLS handshake timed out")

    def _context(self, ca_file: Optional[str]) -> ssl.SSLContext:
        """One context per ca_file, made when first needed: loading costs 30 ms."""
        with self._lock:
            context = self._contexts.get(ca_file)
        if context is None:
            try:
                context = tls_context(self._ca_files + ((ca_file,) if ca_file else ()))
            finally:
                # Certificates that cannot be opened are left out without a word: a
                # context without them must not be kept.
                check_descriptors()
            with self._lock:
                context = self._contexts.setdefault(ca_file, context)
        return context


def out_of_descriptors() -> Unavailable:
    """The refusal of what needs a file descriptor where none is left."""
    return busy("the gateway is out of file descriptors")


def check_descriptors() -> None:
    """Raises Unavailable where the process has no two descriptors left."""
    opened: list[int] = []
    try:
        for _ in range(2):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno in OUT_OF_DESCRIPTORS:
            raise out_of_descriptors() from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


class PyPySocket(ssl.SSLSocket):
    """TLS where an error of the system below it comes as a RuntimeError (PyPy 7.3 over
    OpenSSL 3 looks for a text that such errors lack): here it is the OSError it should be."""

    def send(self, data: Any, flags: int = 0) -> int:
        """As SSLSocket."""
        return self._told(super().send, data, flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As SSLSocket."""
        return self._told(super().recv, buflen, flags)

    def do_handshake(self, block: bool = False) -> None:
        """As SSLSocket."""
        self._told(super().do_handshake, block)

    def _told(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise ConnectionResetError("broken below TLS") from error


def tls_context(ca_files: Sequence[str]) -> ssl.SSLContext:
    """A verifying context that trusts the system's certificates and ``ca_files``.  Raises OSError.

    OpenSSL takes SSL_CERT_FILE instead of its own store; people who set it for a
    corporate CA want both, so the compiled-in store is loaded beside it.  From 3.13
    on Python also asks for extensions that such CAs often lack and Node and curl do
    without; who names one has to get through with every Python.
    """
    context = ssl.create_default_context()
    if sys.implementation.name == "pypy":
        context.sslsocket_class = PyPySocket
    context.set_alpn_protocols(["http/1.1"])
    if ca_files:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        store = ssl.get_default_verify_paths()
        if os.path.exists(store.openssl_cafile):
            context.load_verify_locations(cafile=store.openssl_cafile)
        for path in ca_files:
            try:
                context.load_verify_locations(cafile=path)
            except OSError as error:
                raise OSError("cannot load the certificates in %s: %s"
                              % (path, reason_of(error))) from error
    return context


def socket_error_text(code: int) -> str:
    """What an error number of a socket means; strerror knows none of those of Windows."""
    return getattr(socket, "errorTab", {}).get(code, "").rstrip(".") or os.strerror(code)


def start_connecting(wire: Wire, address: Any, seconds: float) -> None:
    """Connect within ``seconds``.  Raises OSError, ClientGone."""
    code = wire.sock.connect_ex(address)
    if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
        raise OSError(code, socket_error_text(code))
    if code and not wire.wait(POLL_WRITE, seconds):
        raise socket.timeout("connect timed out")
    code = wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, socket_error_text(code))
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def refused_by_proxy(proxy: ProxyAddress, status: int) -> str:
    """What to tell of a proxy that does not let a call through."""
    words = "upstream connection failed: proxy %s refused the connection with status %d" % (
        proxy, status)
    if status not in (PROXY_WANTS_PASSWORD, 401):  # tinyproxy says 401 of a wrong password
        return words
    return words + (": the user or password is wrong" if proxy.authorization else
                    ": give it a user and password, as http://USER:PASSWORD@HOST:PORT")


def connect_reason(error: Union[OSError, UnicodeError], host: str) -> str:
    """Why a connection could not be made, for an error message."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "cannot resolve %s" % host
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the certificate of %s is not trusted (%s)" % (host, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return "TLS with %s failed (%s)" % (host, error.reason or "handshake")
    if isinstance(error, socket.timeout):
        return "%s did not answer in time" % host
    return error.strerror.lower() if error.strerror else reason_of(error)


def read_response_head(
    wire: Wire,
    seconds: float,
    monotonic: Callable[[], float],
) -> tuple[StatusHead, bytes]:
    """The final response head and the bytes behind it; interim (1xx) ones are passed over.

    ``seconds`` bound all of it together.  Raises UpstreamError, ClientGone.
    """
    remaining, deadline = seconds, monotonic() + seconds
    data, seam, interim_count = b"", 0, 0
    while True:
        try:
            more = wire.receive(remaining)
        except socket.timeout:
            raise UpstreamSilent("upstream sent no response head in %g s" % seconds) from None
        except OSError as error:
            raise closed_early(data, reason_of(error)) from error
        if not more:
            raise closed_early(data, "connection closed")
        data += more
        found = split_response_head(data, seam)
        while found is not None:
            head, data = found
            if head.status >= 200:
                return found
            if head.status == 101:
                raise UpstreamMalformed("upstream switched protocols unasked")
            interim_count += 1
            if interim_count == MAX_INTERIM_RESPONSES:
                raise UpstreamMalformed("upstream sent more than %d interim responses"
                                        % MAX_INTERIM_RESPONSES)
            found = split_response_head(data)
        if len(data) > MAX_RESPONSE_HEAD_BYTES:
            raise UpstreamMalformed("upstream sent a response head of more than %d bytes"
                                    % MAX_RESPONSE_HEAD_BYTES)
        # Only the seam can hold a new end: a head in one-byte reads stays linear.
        remaining, seam = deadline - monotonic(), max(0, len(data) - 3)


def closed_early(data: bytes, reason: str) -> UpstreamError:
    """The error for a connection that ended before its response head did."""
    if data:
        return UpstreamMalformed("upstream broke off within its response head: %s" % reason)
    return UpstreamClosed("upstream closed the connection without an answer: %s" % reason)


class Transport:
    """Sends calls through an OpenerDirector that holds our handler alone.

    The default opener would follow redirects with the credentials in hand, read
    proxies for loopback addresses and never reuse a connection.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        choose_proxy: Callable[[BaseUrl], Optional[ProxyAddress]] = lambda base_url: None,
        ca_files: Sequence[str] = (),
    ) -> None:
        self._handler = PoolingHandler(monotonic, choose_proxy, ca_files)
        self._pauses = Pauses(monotonic)
        opener = urllib.request.OpenerDirector()
        opener.add_handler(self._handler)
        # The answer, read up to its head.  Raises UpstreamError, ClientGone.  To be closed.
        self.send: Callable[[UpstreamCall], UpstreamResponse] = opener.open  # pyright: ignore

    def pause(self, seconds: float, watch: Watch) -> None:
        """Wait between two calls.  Raises ClientGone, ShuttingDown."""
        self._pauses.wait(seconds, watch)

    def connections(self) -> dict[str, int]:
        """How many upstream connections are ``active`` and ``idle``."""
        return {"active": len(self._handler.pool.active), "idle": self._handler.pool.count()}

    def cancel_all(self) -> None:
        """End every call and every pause under way with ShuttingDown."""
        self._handler.pool.cancel_all()
        self._pauses.stop()

    def close(self) -> None:
        """Close what is idle; what is under way closes itself."""
        self._handler.pool.close()
        self._pauses.close()


def read_at_most(
    upstream: UpstreamResponse,
    limit_bytes: int,
    seconds: Optional[float] = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> bytes:
    """A whole body.  Raises UpstreamError, also for one above the limit; ClientGone.

    ``seconds`` bound all of it; without them each silence has its own bound.
    """
    pieces: list[bytes] = []
    total = 0
    deadline = None if seconds is None else monotonic() + seconds
    while True:
        piece = upstream.read(None if deadline is None else max(0.0, deadline - monotonic()))
        total += len(piece)
        if total > limit_bytes:
            raise UpstreamMalformed("upstream sent more than %d bytes" % limit_bytes)
        pieces.append(piece)
        if not piece or upstream.at_end:
            return b"".join(pieces)


# ---- 14. Credential renewal --------------------------------------------------


class Gained(NamedTuple):
    """What a renewal gave.  ``seconds`` is how long it holds, ``margin_seconds`` how long
    before its end the next renewal is due."""

    secret: Secret
    seconds: float
    margin_seconds: float


class Run:
    """One renewal under way.  Who needs it waits for ``done``, then looks at
    ``failure``, which makes an error of its own for each of them, or at ``secret``."""

    __slots__ = ("done", "secret", "failure")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.secret = Secret("")
        self.failure: Optional[Callable[[], UpstreamError]] = None


class Unsaved(NamedTuple):
    """A refresh token that could not be stored; ``behind`` is the hash of the stored one."""

    behind: str
    refresh_token: Secret


class Standing:
    """What is known of one account's credential.  Times are the monotonic clock's.

    Renewal's lock guards it; ``unsaved`` belongs to the one run there can be.
    """

    __slots__ = ("secret", "due", "expires", "refused", "not_before", "quiet_until",
                 "same_until", "run", "unsaved")

    def __init__(self) -> None:
        self.secret: Optional[Secret] = None
        self.due = 0.0
        self.expires = 0.0
        # Credentials that the upstream refused: not to be used, nor to be taken from a store.
        self.refused: collections.deque[Secret] = collections.deque(maxlen=MAX_REFUSED_PER_ACCOUNT)
        self.not_before = 0.0
        self.quiet_until = 0.0
        self.same_until = 0.0
        self.run: Optional[Run] = None
        self.unsaved: Optional[Unsaved] = None

    def usable(self, now: float) -> Optional[Secret]:
        """The credential to send now, or None."""
        fresh = self.secret is not None and now < self.expires
        return self.secret if fresh and self.secret not in self.refused else None

    def settle(self, gained: Gained, now: float) -> None:
        """Take over what a renewal gave."""
        if gained.secret in self.refused:
            self.same_until = now + RENEWAL_SAME_SECONDS
            self.refused.clear()  # there is no other, so that one is tried again
        self.secret = gained.secret
        self.expires = now + gained.seconds
        self.due = self.expires - gained.margin_seconds
        self.quiet_until = 0.0


# -- key commands

# A session (on Windows a group) of its own, so that what a command starts ends with it
# and a Ctrl-C in our terminal does not reach it.
APART_FLAGS = (getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
               | getattr(subprocess, "CREATE_NO_WINDOW", 0))


def printed_key(
    command: KeyCommand,
    who: str,
    monotonic: Callable[[], float],
    stopping: threading.Event,
) -> Secret:
    """Run a command for the key that it prints.  Raises CredentialError, ShuttingDown.

    Nothing of what it prints is told: it may be a key with a warning around it.
    """
    try:
        process = subprocess.Popen(
            command.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True, creationflags=APART_FLAGS)
    except OSError as error:
        raise CredentialError("%s: its key_command could not be started (%s)"
                              % (who, reason_of(error))) from None
    let_use_all_cores(process.pid)
    output = output_of(process, monotonic, stopping)
    if output is None:
        if stopping.is_set():
            raise ShuttingDown("the gateway is shutting down")
        raise CredentialError("%s: its key_command took longer than %g s and was killed"
                              % (who, COMMAND_SECONDS))
    if len(output) > MAX_COMMAND_OUTPUT_BYTES:
        raise CredentialError("%s: its key_command printed more than %d bytes"
                              % (who, MAX_COMMAND_OUTPUT_BYTES))
    if process.returncode != 0:
        raise CredentialError("%s: its key_command ended with exit code %d"
                              % (who, process.returncode))
    key = output.strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", key):
        raise CredentialError("%s: its key_command printed %s" % (
            who, "something else than one line of visible ASCII" if key else "nothing"))
    return Secret(key.decode("ascii"))


def let_use_all_cores(child: int) -> None:
    """A process that we start may use all that ours may: our threads' one core is not for it."""
    if sys.platform == "linux" and hasattr(os, "sched_setaffinity"):
        try:
            # Our process's number is its first thread's, which keeps to no core.
            os.sched_setaffinity(child, os.sched_getaffinity(os.getpid()))
        except OSError:
            pass  # safe: it has ended already, or is only slower


def output_of(
    process: subprocess.Popen[bytes],
    monotonic: Callable[[], float],
    stopping: threading.Event,
) -> Optional[bytes]:
    """What a process prints until it ends; None where it was killed, at its limit or ours.

    It is not asked whether it has ended before its output has: until then it is
    not reaped, and the number of its group belongs to nobody else.
    """
    pieces: list[bytes] = []
    over = threading.Event()
    reader = threading.Thread(target=read_output, args=(process.stdout, pieces, over), daemon=True,
                              name="key-command")
    deadline = monotonic() + COMMAND_SECONDS
    ended = False
    try:
        reader.start()
        while not (ended or stopping.is_set()) and monotonic() < deadline:
            reader.join(RENEWAL_SLICE_SECONDS)
            if not reader.is_alive():
                ended = process.poll() is not None
                if not ended:
                    stopping.wait(RENEWAL_SLICE_SECONDS)
    finally:
        over.set()
        if not ended:
            kill_group(process)
    return b"".join(pieces) if ended else None


def read_output(stream: Any, pieces: list[bytes], over: threading.Event) -> None:
    """Read a pipe to its end or one byte beyond the limit, and close it.

    What has left the group of the command outlives it, and may hold the pipe for
    ever: then ``over`` ends the reading (not on Windows, whose pipes cannot be polled).
    """
    poller, left_bytes = new_poller(), MAX_COMMAND_OUTPUT_BYTES + 1
    poller.register(stream.fileno(), POLL_READ)
    with stream:
        while left_bytes > 0 and not over.is_set():
            if os.name != "nt" and not poller.poll(RENEWAL_SLICE_SECONDS * 1000):
                continue
            piece = os.read(stream.fileno(), left_bytes)
            if not piece:
                return
            pieces.append(piece)
            left_bytes -= len(piece)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started; waits COMMAND_KILL_SECONDS for its end at most."""
    try:
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=COMMAND_KILL_SECONDS)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (OSError, subprocess.SubprocessError):
        # Safe: the group has ended, or cannot be ended as such; the process is next.
        pass
    try:
        process.kill()
        process.wait(COMMAND_KILL_SECONDS)
    except (OSError, subprocess.SubprocessError):
        # Safe: it is another user's by now, or held by the kernel; nobody waits for it.
        pass


# -- what issuers grant

# RFC 6749 section 5.2; what an issuer says beside these is not repeated, since it might
# quote a token.
GRANT_ERRORS = frozenset([
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "unauthorized_client",
    "unsupported_grant_type",
])
# Said with status 400 by some, though nothing is wrong with the grant.
MOMENTARY_GRANT_ERRORS = frozenset(["server_error", "slow_down", "temporarily_unavailable"])
# The other time limits of Timeouts are for clients.
ISSUER_TIMEOUTS = Timeouts(10.0, ISSUER_HEAD_SECONDS, ISSUER_BODY_SECONDS, 1.0, 1.0, 1.0)
ISSUER_SILENCES = {
    "closed": "closed the connection without an answer",
    "silent": "did not answer in time",
    "stalled": "did not finish its answer in time",
}


class Answer(NamedTuple):
    """An issuer's answer: ``fields`` is its JSON object, empty where it is none."""

    status: int
    headers: Headers
    fields: Mapping[str, Any]


def fingerprint(text: str) -> str:
    """What stands for a secret in places where only the same one is to be recognised."""
    return hashlib.sha256(encode_lossless(text)).hexdigest()


def grant_form(grant: TokenGrant, refresh_token: Secret) -> str:
    """The body of a refresh request (RFC 6749 section 6)."""
    pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.reveal()),
             ("client_id", grant.client_id)]
    if grant.client_secret is not None:
        pairs.append(("client_secret", grant.client_secret.reveal()))
    if grant.scope is not None:
        pairs.append(("scope", grant.scope))
    return urllib.parse.urlencode(pairs)


def grant_call(provider: Provider, grant: TokenGrant, form: str) -> UpstreamCall:
    """The call to an issuer, by the provider's proxy and certificates.

    It goes on a connection of its own: one from the pool may be found closed after
    it has taken the request, and would be replaced by sending the token again.  An
    issuer on loopback is never asked through a proxy, which would read the token.
    """
    body = form.encode("ascii")
    base = grant.token_url.base
    headers = [
        ("Host", base.authority),
        ("User-Agent", "claude_gateway/" + __version__),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Length", str(len(body))),
    ]
    issuer = provider._replace(
        base_url=base, proxy=None if is_loopback(base.host) else provider.proxy)
    head = UpstreamHead("POST", issuer, grant.token_url.target, header_lines(headers))
    call = UpstreamCall(head, body, ISSUER_TIMEOUTS)
    call.may_resend = False
    return call


def issuer_fault(who: str, error: UpstreamError) -> CredentialError:
    """An issuer that could not be asked.  Only what was said before the token was sent is
    repeated: the rest might quote it."""
    said = "could not be reached: %s" % error if isinstance(error, UpstreamUnreached) else (
        ISSUER_SILENCES.get(error.kind, "gave an answer that could not be read"))
    return CredentialError("%s: the token issuer %s" % (who, said))


def check_granted(who: str, answer: Answer, wall_now: float) -> None:
    """Pass an answer that grants a token.  Raises CredentialError, CredentialRefused."""
    error = answer.fields.get("error")
    code = error if isinstance(error, str) else ""  # some say "error": null beside a token
    said = " (%s)" % code if code in GRANT_ERRORS else ""
    # Some say it with status 200 (GitHub's does).  A 400 that is no JSON object is not the
    # issuer's word: a proxy's, or a log-in page's, must not cost the token for good.
    refused = answer.status in (400, 401) and bool(answer.fields) or (
        answer.status == 200 and bool(code))
    if refused and code not in MOMENTARY_GRANT_ERRORS:
        raise CredentialRefused("%s: the token issuer refused to renew it%s: sign in anew, or "
                                "mend its token settings" % (who, said))
    if answer.status != 200:
        told = retry_after_seconds(answer.headers, wall_now)
        raise CredentialError("%s: the token issuer answered with status %d"
                              % (who, answer.status),
                              None if told is None else min(told, MAX_REST_SECONDS))
    token_type = answer.fields.get("token_type", "bearer")
    if not (isinstance(token_type, str) and token_type.lower() == "bearer"
            and is_token(answer.fields.get("access_token"))):
        raise CredentialError("%s: the token issuer's answer holds no bearer token" % who)


def is_token(value: Any) -> bool:
    """Whether a value could be sent in a header."""
    return (isinstance(value, str) and len(value) <= MAX_TOKEN_CHARS
            and re.fullmatch(r"[\x21-\x7e]+", value) is not None)


def told_lifetime(value: Any) -> float:
    """``expires_in`` as seconds, a number or a numeric string; an hour where it is neither."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}(\.[0-9]{0,10})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return ASSUMED_TOKEN_SECONDS
    return float(min(value, MAX_TOKEN_SECONDS))


def margin_of(lifetime_seconds: float) -> float:
    """How long before its end a token of some lifetime is to be renewed."""
    return min(RENEWAL_MARGIN_SECONDS, lifetime_seconds / 2)


# -- where grants outlive the process


class StoredGrant(NamedTuple):
    """What became of one configured refresh token; times are the wall clock's."""

    account: str
    refresh_token: Secret
    access_token: Secret
    granted_at: float
    expires_at: float

    def gained(self, wall_now: float) -> Gained:
        """The access token, with what is left of it: a clock set back adds nothing."""
        lifetime = min(max(0.0, self.expires_at - self.granted_at), MAX_TOKEN_SECONDS)
        return Gained(self.access_token, min(self.expires_at - wall_now, lifetime),
                      margin_of(lifetime))

    def as_row(self) -> dict:
        """The same for JSON, secrets revealed."""
        return dict(self._asdict(), refresh_token=self.refresh_token.reveal(),
                    access_token=self.access_token.reveal())


def stored_grant(account: str, answer: Mapping[str, Any], used: Secret,
                 wall_now: float) -> StoredGrant:
    """What an issuer granted; without a new refresh token the one just used stays."""
    given = answer.get("refresh_token", "")
    return StoredGrant(account, Secret(given) if is_token(given) else used,
                       Secret(answer["access_token"]), wall_now,
                       wall_now + told_lifetime(answer.get("expires_in")))


def parse_stored_grant(row: Any) -> Optional[StoredGrant]:
    """A row of a store; None where somebody has changed it into something else."""
    if not isinstance(row, dict):
        return None
    times = [row.get(name, -1) for name in ("granted_at", "expires_at")]
    texts = [row.get(name, "") for name in ("refresh_token", "access_token")]
    if not (all(is_token(text) for text in texts) and all(
            isinstance(value, (int, float)) and 0 <= value < 1e12 for value in times)):
        return None
    return StoredGrant(str(row.get("account")), Secret(texts[0]), Secret(texts[1]), *times)


class StoreContent:
    """What a store holds: grants by the fingerprint of the configured refresh token that
    they descend from (another one configured finds nothing), and what was refused.

    ``sound`` is false where the file could not be read: then it is not written either.
    """

    def __init__(self) -> None:
        self.grants: dict[str, StoredGrant] = {}
        self.refused: list[str] = []
        self.sound = True

    @classmethod
    def parse(cls, data: bytes) -> StoreContent:
        """Raises ValueError for what is no store."""
        content = cls()
        if not data:
            return content
        value = json_object(data)
        if value is None or not isinstance(value.get("grants"), dict) or not isinstance(
                value.get("refused"), list):
            raise ValueError("it is not a store of tokens")
        for lineage, row in value["grants"].items():
            grant = parse_stored_grant(row)
            if grant is not None:
                content.grants[lineage] = grant
        content.refused = [mark for mark in value["refused"] if isinstance(mark, str)]
        return content

    def encode(self) -> bytes:
        """As JSON, the newest MAX_STORED_GRANTS and MAX_REMEMBERED_REFUSALS."""
        newest = sorted(self.grants.items(), key=lambda item: item[1].granted_at)
        rows = {lineage: grant.as_row() for lineage, grant in newest[-MAX_STORED_GRANTS:]}
        kept = {"grants": rows, "refused": self.refused[-MAX_REMEMBERED_REFUSALS:]}
        return json.dumps(kept, indent=1).encode("ascii")


def load_store(path: str) -> StoreContent:
    """The content of a store; empty where there is no file.  Raises OSError, ValueError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_STORE_BYTES + 1)
    except FileNotFoundError:
        return StoreContent()
    if len(data) > MAX_STORE_BYTES:
        raise ValueError("it has more than %d bytes" % MAX_STORE_BYTES)
    return StoreContent.parse(data)


def save_store(path: str, content: StoreContent, wait: Callable[[float], Any]) -> None:
    """Replace a store as a whole, readable by its owner alone.  Raises OSError.

    The bytes are on the disk before the name points to them: a crash leaves the
    old content or the new one.
    """
    beside = "%s.%s.tmp" % (path, os.urandom(8).hex())
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        replace_file(beside, path, wait)
    except BaseException:
        with contextlib.suppress(OSError):  # it is gone, or the folder cannot be written
            os.unlink(beside)
        raise
    sync_folder(os.path.dirname(path))


def replace_file(source: str, target: str, wait: Callable[[float], Any]) -> None:
    """os.replace, tried again where the target is open just then (on Windows)."""
    for tries_left in range(STORE_REPLACE_TRIES - 1, -1, -1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not tries_left:
                raise
            wait(RENEWAL_SLICE_SECONDS)


def sync_folder(folder: str) -> None:
    """Put a new name on the disk as well, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):  # safe: a name lost in a power cut was the old content's
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def locking_modules() -> tuple[Any, Any]:
    """What locks files: (fcntl, None), or (None, msvcrt) on Windows."""
    try:
        import fcntl
    except ImportError:
        import msvcrt
        return None, msvcrt
    return fcntl, None


class FileLock:
    """An exclusive lock between processes, on a file of its own; it ends with its holder.

    The file stays: removing it would let two processes lock two files of one name.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._fcntl, self._msvcrt = locking_modules()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._held = False

    def try_acquire(self) -> bool:
        """Take the lock unless another has it.  Raises OSError where files cannot be locked."""
        try:
            self._lock()
        except (BlockingIOError, PermissionError):
            return False
        self._held = True
        return True

    def _lock(self) -> None:
        if self._msvcrt is not None:
            self._msvcrt.locking(self._descriptor, self._msvcrt.LK_NBLCK, 1)
        else:
            self._fcntl.flock(self._descriptor, self._fcntl.LOCK_EX | self._fcntl.LOCK_NB)

    def close(self) -> None:
        """Give the lock back; closing alone may take Windows a while."""
        try:
            if self._held and self._msvcrt is not None:
                self._msvcrt.locking(self._descriptor, self._msvcrt.LK_UNLCK, 1)
        finally:
            os.close(self._descriptor)


# -- renewing


class Issuers:
    """Renews tokens by refresh grants: asks, stores, then gives.

    All of it happens under the store's lock: whoever comes second finds what the
    first has got, in this process and in others.
    """

    def __init__(
        self,
        send: Callable[[UpstreamCall], UpstreamResponse],
        monotonic: Callable[[], float],
        wall_clock: Callable[[], float],
        log: Log,
        stopping: threading.Event,
    ) -> None:
        self._send = send
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._log = log
        self._stopping = stopping
        self._lock = threading.Lock()
        self._store_locks: dict[str, threading.Lock] = {}
        self._refused: collections.deque[str] = collections.deque(maxlen=MAX_REMEMBERED_REFUSALS)

    def renew(self, provider: Provider, account: Account, standing: Standing) -> Gained:
        """A token other than the standing's own.  Raises CredentialError, ShuttingDown."""
        assert isinstance(account.source, TokenGrant)
        grant, who = account.source, "account %s" % account.name
        path = os.path.realpath(grant.store)
        with self._holding(who, path):
            content = self._load(who, path)
            lineage = fingerprint(grant.refresh_token.reveal())
            stored = content.grants.get(lineage)
            refresh_token = stored.refresh_token if stored is not None else grant.refresh_token
            mark = fingerprint(refresh_token.reveal())
            if standing.unsaved is not None and standing.unsaved.behind == mark:
                # The store is behind what we know: it could not be written.
                refresh_token = standing.unsaved.refresh_token
            elif stored is not None:
                taken = stored.gained(self._wall_clock())
                if taken.seconds > 0 and taken.secret != standing.secret and (
                        taken.secret not in standing.refused):
                    return taken
            answer = self._granted(who, path, content, provider, grant, refresh_token)
            new = stored_grant("%s/%s" % (provider.name, account.name), answer, refresh_token,
                               self._wall_clock())
            # Stored before it is used; without a disk it is served all the same.
            content.grants[lineage] = new
            saved = self._save(who, path, content)
            standing.unsaved = None if saved else Unsaved(mark, new.refresh_token)
            return new.gained(new.granted_at)

    def _granted(self, who: str, path: str, content: StoreContent, provider: Provider,
                 grant: TokenGrant, refresh_token: Secret) -> Mapping[str, Any]:
        """Ask the issuer, unless it has refused the very same before."""
        form = grant_form(grant, refresh_token)
        token_mark = fingerprint(refresh_token.reveal())
        # A wrong client_secret says nothing of the token: then the request is remembered.
        form_mark = fingerprint("%s %s" % (grant.token_url.base.origin, form))
        with self._lock:
            known = {*self._refused, *content.refused}
        if token_mark in known or form_mark in known:
            raise CredentialRefused("%s: the token issuer has refused this refresh token before: "
                                    "sign in anew" % who)
        answer = self._ask(who, grant_call(provider, grant, form))
        try:
            check_granted(who, answer, self._wall_clock())
        except CredentialRefused:
            mark = token_mark if answer.fields.get("error") == "invalid_grant" else form_mark
            with self._lock:
                self._refused.append(mark)
            content.refused.append(mark)
            self._save(who, path, content)
            raise
        return answer.fields

    def _ask(self, who: str, call: UpstreamCall) -> Answer:
        try:
            response = self._send(call)
            try:
                body = read_at_most(response, MAX_ISSUER_BYTES, ISSUER_BODY_SECONDS,
                                    self._monotonic)
            finally:
                response.close()
        except ShuttingDown:
            raise
        except UpstreamError as error:
            raise issuer_fault(who, error) from None
        return Answer(response.status, response.headers, json_object(body) or {})

    # -- the store

    def _load(self, who: str, path: str) -> StoreContent:
        try:
            return load_store(path)
        except (OSError, ValueError) as error:
            self._log.once("warning", "%s: its token store %s cannot be read (%s); what the issuer "
                           "gives is kept in memory alone" % (who, path, reason_of(error)))
        content = StoreContent()
        content.sound = False
        return content

    def _save(self, who: str, path: str, content: StoreContent) -> bool:
        if not content.sound:
            return False
        try:
            save_store(path, content, self._stopping.wait)
            return True
        except OSError as error:
            self._log.once("warning", "%s: its token store %s cannot be written (%s); what the "
                           "issuer gives is kept in memory alone" % (who, path, reason_of(error)))
            return False

    @contextlib.contextmanager
    def _holding(self, who: str, path: str) -> Iterator[None]:
        """Alone with a store, among our threads and among processes."""
        deadline = self._monotonic() + STORE_LOCK_SECONDS
        with self._lock:
            ours = self._store_locks.setdefault(path, threading.Lock())
        self._until(who, deadline, lambda: ours.acquire(False))
        try:
            with contextlib.ExitStack() as held:
                try:
                    lock = FileLock(path + ".lock")
                    held.callback(lock.close)
                    self._until(who, deadline, lock.try_acquire)
                except (OSError, ImportError) as error:
                    # A folder that cannot be written, a file system without locks.
                    self._log.once("warning", "%s: its token store %s cannot be locked (%s); let "
                                   "no other gateway use it" % (who, path, reason_of(error)))
                yield
        finally:
            ours.release()

    def _until(self, who: str, deadline: float, has_it: Callable[[], bool]) -> None:
        while not has_it():
            if self._stopping.wait(RENEWAL_SLICE_SECONDS):
                raise ShuttingDown("the gateway is shutting down")
            if self._monotonic() >= deadline:
                raise CredentialError("%s: its token store has been locked by another process "
                                      "for %g s" % (who, STORE_LOCK_SECONDS))


class Renewal:
    """Current credentials of accounts that renew theirs; one renewal at a time per account.

    A renewal runs in a thread of its own, so that a client which leaves does not
    end it for the others.  ``pause`` waits some seconds for one client; it raises
    ClientGone and ShuttingDown.
    """

    def __init__(
        self,
        send: Callable[[UpstreamCall], UpstreamResponse],
        pause: Callable[[float, Watch], None],
        monotonic: Callable[[], float],
        wall_clock: Callable[[], float],
        log: Log,
    ) -> None:
        self._pause = pause
        self._monotonic = monotonic
        self._log = log
        self._stopping = threading.Event()
        self._issuers = Issuers(send, monotonic, wall_clock, log, self._stopping)
        self._lock = threading.Lock()
        self._standings: dict[tuple[Any, ...], Standing] = {}
        self._threads: set[threading.Thread] = set()

    def secret(self, provider: Provider, account: Account, watch: Watch) -> Secret:
        """The credential to send now.  Raises CredentialError, ClientGone, ShuttingDown.

        A token that is to expire soon is given and renewed meanwhile.
        """
        if account.source is None:
            return account.secret
        with self._lock:
            standing = self._standing(provider, account)
            now = self._monotonic()
            current = standing.usable(now)
            if current is not None and (now < max(standing.due, standing.quiet_until)
                                        or self._stopping.is_set()):
                return current
            run, thread = self._begin(provider, account, standing, now)
        self._start(run, thread, standing, account)
        return current if current is not None else self._result(run, account, watch)

    def renewed(self, provider: Provider, account: Account, refused: Secret,
                watch: Watch) -> Optional[Secret]:
        """After an upstream's 401 or 403: a credential other than ``refused``, or None.

        At once where somebody has renewed it already; None for a static account
        and where the renewal gave the same key again.  Raises as ``secret``.
        """
        if account.source is None:
            return None
        with self._lock:
            standing = self._standing(provider, account)
            now = self._monotonic()
            current = standing.usable(now)
            if current is not None and current != refused:
                return current
            if current is not None and now < standing.same_until:
                return None
            if refused not in standing.refused:
                standing.refused.append(refused)
            run, thread = self._begin(provider, account, standing, now)
        self._start(run, thread, standing, account)
        secret = self._result(run, account, watch)
        return None if secret == refused else secret

    def retain(self, accounts: Iterable[tuple[str, Account]]) -> None:
        """Forget what is known of accounts other than these (provider's name, account)."""
        kept = {(name, account.name, account.source) for name, account in accounts}
        with self._lock:
            self._standings = {key: standing for key, standing in self._standings.items()
                               if key in kept}

    def close(self) -> None:
        """End commands, let no renewal start, and wait for the threads under a bound."""
        with self._lock:
            self._stopping.set()
            threads = list(self._threads)
        deadline = self._monotonic() + RENEWAL_CLOSE_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - self._monotonic()))

    # -- under the lock

    def _standing(self, provider: Provider, account: Account) -> Standing:
        """By the source as well: requests of an older configuration have their own."""
        return self._standings.setdefault((provider.name, account.name, account.source),
                                          Standing())

    def _begin(self, provider: Provider, account: Account, standing: Standing,
               now: float) -> tuple[Run, Optional[threading.Thread]]:
        """The renewal under way, or a new one with its thread, which is to be started."""
        if standing.run is not None:
            return standing.run, None
        if self._stopping.is_set():
            raise ShuttingDown("the gateway is shutting down")
        if now < standing.not_before:
            raise CredentialError("account %s: the token issuer wants to be asked later"
                                  % account.name, standing.not_before - now)
        run = standing.run = Run()
        thread = threading.Thread(target=self._run, args=(provider, account, standing, run),
                                  name="renewal", daemon=True)
        self._threads.add(thread)
        return run, thread

    # -- in whatever thread needs a credential

    def _start(self, run: Run, thread: Optional[threading.Thread], standing: Standing,
               account: Account) -> None:
        if thread is None:
            return
        try:
            thread.start()
        except RuntimeError:
            failure = partial(CredentialError, "account %s: no thread could be started to renew it"
                              % account.name)
            self._end(run, standing, failure, thread)

    def _result(self, run: Run, account: Account, watch: Watch) -> Secret:
        deadline = self._monotonic() + RENEWAL_SECONDS
        while not run.done.is_set():
            if self._monotonic() >= deadline:
                raise CredentialError("account %s: renewing it took longer than %g s"
                                      % (account.name, RENEWAL_SECONDS))
            self._pause(RENEWAL_SLICE_SECONDS, watch)
        if run.failure is not None:
            raise run.failure()
        return run.secret

    # -- in the renewal's thread

    def _run(self, provider: Provider, account: Account, standing: Standing, run: Run) -> None:
        failure: Optional[Callable[[], UpstreamError]] = None
        try:
            gained = self._gain(provider, account, standing)
            run.secret = gained.secret
            with self._lock:
                standing.settle(gained, self._monotonic())
            self._log.message("debug", "account %s: credential renewed, holds for %d s"
                              % (account.name, gained.seconds))
        except CredentialError as error:
            self._log.message("warning", error.message)
            failure = partial(type(error), error.message, error.retry_after)
        except ShuttingDown as error:
            failure = partial(ShuttingDown, error.message)
        except Exception as error:
            # Nothing else is to come out of here; should it, nobody may wait for ever.
            self._log.message("error", "account %s: renewing failed: %s"
                              % (account.name, frames_of(error)))
            failure = partial(CredentialError, "account %s: renewing it failed (%s)"
                              % (account.name, type(error).__name__))
        finally:
            self._end(run, standing, failure, threading.current_thread())

    def _gain(self, provider: Provider, account: Account, standing: Standing) -> Gained:
        if self._stopping.is_set():
            raise ShuttingDown("the gateway is shutting down")
        if not isinstance(account.source, KeyCommand):
            return self._issuers.renew(provider, account, standing)
        key = printed_key(account.source, "account %s" % account.name, self._monotonic,
                          self._stopping)
        return Gained(key, account.source.ttl_seconds, 0.0)

    def _end(self, run: Run, standing: Standing,
             failure: Optional[Callable[[], UpstreamError]], thread: threading.Thread) -> None:
        with self._lock:
            if failure is not None:
                now = self._monotonic()
                told = getattr(failure(), "retry_after", None) or 0.0
                standing.not_before = now + told
                standing.quiet_until = now + max(told, RENEWAL_RETRY_SECONDS)
            run.failure = failure
            standing.run = None
            self._threads.discard(thread)
        run.done.set()


# ---- 15. OpenAI door ---------------------------------------------------------

# -- the request
#
# Contract section 11, openai-mapping.md 2 to 5.  A body of /v1/chat/completions is
# read in two steps: each field is parsed by itself (CHAT_FIELDS, with the tables of
# roles and parts below it), then a draft of the Messages body is put together by the
# rules of the model.  What is read is a function of what stands before it: the
# system prompt, tools and messages of a turn are beginnings of those a turn later,
# so that prompt caches and signed thinking stay valid.  Nothing is copied deeply:
# texts, schemas and encoded files are the client's own objects.

NOTE_FIRST_TURN = "."
NOTE_CONTINUE = "Continue."
NOTE_JSON_OBJECT = "Answer with one JSON object and nothing else: no prose, no code fence."
NOTE_JSON_SCHEMA = ("Answer with JSON that is valid against the following schema, and nothing "
                    "else: no prose, no code fence.\n")
NOTE_CALL_ANY = "Answer by calling one of the tools."
NOTE_CALL_TOOL = "Answer by calling the tool %s."
JSON_TOOL = "json_response"
JSON_TOOL_DESCRIPTION = "Takes the answer: call it once, with the whole answer as its input."
FILES_BETA = "files-api-2025-04-14"

CHAT_TYPES = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "an integer",
    list: "a list",
    str: "a string",
}


class ChatError(RequestError):
    """A field of a chat request that cannot be served.

    ``param`` is its path as OpenAI writes it (``messages[2].content[0].type``) and
    ``code`` one of OpenAI's words; ``reason`` is the message without the path.
    """

    def __init__(self, reason: str, param: str = "", code: str = "invalid_value") -> None:
        super().__init__(400, "%s: %s" % (param, reason) if param else reason)
        self.reason = reason
        self.param = param
        self.code = code

    def within(self, place: str) -> ChatError:
        """The same error, seen from the outside of ``place``.

        >>> ChatError("must be a string", "text").within("content[0]").param
        'content[0].text'
        """
        dot = "." if place and self.param and not self.param.startswith("[") else ""
        return ChatError(self.reason, place + dot + self.param, self.code)


class ChatRequest(NamedTuple):
    """A chat request as a Messages body.

    ``body`` always asks for a stream; ``stream`` and ``include_usage`` are what the
    client asked for.  ``ignored`` names fields without a meaning upstream, ``betas``
    what the body needs in ``anthropic-beta``.  ``json_tool`` is the name of the tool
    whose input is the answer's text, where a schema has to be had that way, else "".
    ``custom_tools`` are called with a text instead of JSON; ``legacy`` means that the
    client knows ``function_call`` and no ``tool_calls``.
    """

    body: Body
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    betas: tuple[str, ...]
    json_tool: str
    custom_tools: tuple[str, ...] = ()
    legacy: bool = False


def expected(value: Any, kind: type, param: str = "") -> Any:
    """A value, if it is of a type: numbers are ``float``, and a boolean is no number."""
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) and kind is not bool:
        raise ChatError("must be %s" % CHAT_TYPES[kind], param, "invalid_type")
    return value


def optional(values: Mapping[str, Any], name: str, kind: type) -> Any:
    """A member of an object; None where it is absent or null."""
    value = values.get(name)
    return None if value is None else expected(value, kind, name)


def required(values: Mapping[str, Any], name: str, kind: type = str) -> Any:
    """A member of an object that must be there, and not the empty string."""
    value = optional(values, name, kind)
    if value is None or value == "":
        raise ChatError("must be given", name, "missing_required_parameter")
    return value


def parsed_within(place: str, parse: Callable[[Any], Any], value: Any) -> Any:
    """What a parser makes of a value; its errors tell the place."""
    try:
        return parse(value)
    except ChatError as error:
        raise error.within(place) from None


def parsed_items(items: Any, parse: Callable[[Any], Any]) -> list:
    """What a parser makes of each item of a list; its errors tell the index."""
    found: list = []
    try:
        for item in expected(items, list):
            found.append(parse(item))
    except ChatError as error:
        raise error.within("[%d]" % len(found) if isinstance(items, list) else "") from None
    return found


def parsed_choice(table: Mapping[str, Any], value: Any) -> Any:
    """What a table has for a word; other words are told which there are."""
    if expected(value, str) not in table:
        raise ChatError("must be one of %s" % ", ".join(sorted(table)))
    return table[value]


def checked_json(value: dict) -> dict:
    """An object that is passed on as it is: one that can be written, and not too deep.

    Python reads 1e999 as infinity, for which JSON has no word.
    """
    below: list = [(value, 0)]
    while below:
        outer, depth = below.pop()
        if depth >= MAX_CHAT_DEPTH:
            raise ChatError("nested too deeply")
        for item in outer.values() if isinstance(outer, dict) else outer:
            if isinstance(item, (dict, list)):
                below.append((item, depth + 1))
            elif isinstance(item, float) and not math.isfinite(item) or (
                    isinstance(item, int) and item.bit_length() > MAX_CHAT_NUMBER_BITS):
                raise ChatError("a number is too large")
    return value


# Memory of signed thinking


class ToolMemory:
    """The signed thinking in front of tool calls, which no OpenAI client sends back.

    From the id of a call to the thinking blocks of its turn; those least lately used
    are forgotten at the bounds.  Ids of different clients are told apart by whoever
    gives them (a prefix).

    >>> memory = ToolMemory()
    >>> memory.remember(["t1"], [{"type": "redacted_thinking", "data": "x"}])
    >>> memory.recall("t1"), memory.recall("t2")
    ([{'type': 'redacted_thinking', 'data': 'x'}], None)
    """

    def __init__(
        self,
        max_calls: int = MAX_REMEMBERED_CALLS,
        max_chars: int = MAX_REMEMBERED_CHARS,
    ) -> None:
        self._max_calls = max_calls
        self._max_chars = max_chars
        self._lock = threading.Lock()
        # call id -> (blocks, characters), the one used last at the end.
        self._known: collections.OrderedDict[str, tuple[tuple[dict, ...], int]] = (
            collections.OrderedDict())
        self._chars = 0

    def remember(self, tool_ids: Sequence[str], blocks: Sequence[dict]) -> None:
        """Keep a turn's thinking blocks under the ids of its calls; what is no thinking is not."""
        # Texts, and no lists or objects, which would need a bound of their own.
        kept = tuple({name: value for name, value in block.items()
                      if value is None or isinstance(value, (bool, int, str))}
                     for block in blocks if block_type(block) in THINKING_TYPES)
        chars = sum(len(name) + len(value) if isinstance(value, str) else len(name) + 8
                    for block in kept for name, value in block.items())
        if not kept or chars > self._max_chars:
            return
        with self._lock:
            for tool_id in tool_ids:
                self._forget(tool_id)
                self._known[tool_id] = kept, chars + len(tool_id)
                self._chars += chars + len(tool_id)
            while len(self._known) > self._max_calls or self._chars > self._max_chars:
                self._forget(next(iter(self._known)))

    def recall(self, tool_id: str) -> Optional[list[dict]]:
        """The blocks that are known for a call, not to be changed; or None."""
        with self._lock:
            known = self._known.get(tool_id)
            if known is None:
                return None
            self._known.move_to_end(tool_id)
            return list(known[0])

    def _forget(self, tool_id: str) -> None:
        _, chars = self._known.pop(tool_id, ((), 0))
        self._chars -= chars


# Content parts


# What a data URL begins with, RFC 2397: the type, parameters, and the data.
DATA_URL = re.compile(r"data:([^;,]{0,100})((?:;[^;,]{0,100}){0,8}),", re.IGNORECASE)
# The first bytes tell what a file is; 24 characters of base64 are enough for all.
FILE_HEAD_CHARS = 24
FILE_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"%PDF-", "application/pdf"),
)
IMAGE_TYPES = frozenset(["image/png", "image/jpeg", "image/gif", "image/webp"])
PDF_TYPE = "application/pdf"
TEXT_FILE_TYPE = re.compile(
    r"text/.*|application/(?:.*\+)?(?:json|xml|yaml|x-yaml|javascript|x-ndjson|markdown|toml|sql)",
    re.DOTALL)
# Ids of Anthropic's Files API; OpenAI's have a hyphen.
FILE_ID = re.compile(r"file_[A-Za-z0-9]{1,100}")
MAX_TITLE_CHARS = 255
# OpenAI's breakpoints live 30 minutes or longer; Anthropic knows 5 minutes and an hour.
BREAKPOINT_TTLS = {"30m": "1h", "1h": "1h", "12h": "1h", "24h": "1h"}


def file_type(data: str) -> str:
    """The media type that the first bytes of a base64 file tell, or "".

    >>> file_type("JVBERi0xLjcK")
    'application/pdf'
    """
    head = decode_base64_head(data, FILE_HEAD_CHARS)
    return next((media_type for at, signature, media_type in FILE_SIGNATURES
                 if head[at:at + len(signature)] == signature), "")


def split_data_url(url: str) -> Optional[tuple[str, bool, str]]:
    """(media type, whether the data is base64, the data) of a data URL; else None.

    >>> split_data_url("data:Image/JPG;base64,AAAA")
    ('image/jpeg', True, 'AAAA')
    """
    match = DATA_URL.match(url)
    if match is None:
        return None
    encoded = match.group(2).lower().endswith(";base64")
    media_type = match.group(1).strip().lower()
    if media_type == "image/jpg":
        media_type = "image/jpeg"
    return media_type, encoded, url[match.end():]


def is_https(url: str) -> bool:
    """Whether the upstream may fetch a file from here; the gateway fetches nothing itself."""
    return url[:8].lower() == "https://"


def base64_block(kind: str, media_type: str, data: str) -> dict:
    """An image or document block with its file in it."""
    if not data:
        raise ChatError("the file is empty")
    if "\n" in data or "\r" in data or " " in data:
        data = "".join(data.split())  # as MIME breaks it; the API does not take that
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}


def url_block(kind: str, url: str) -> dict:
    """An image or document block whose file the upstream fetches."""
    return {"type": kind, "source": {"type": "url", "url": url}}


def image_block(url: str) -> dict:
    """An image; its type is what its first bytes say, since a wrong one is refused.

    >>> image_block("data:image/png;base64,R0lGODlhAQAB")["source"]["media_type"]
    'image/gif'
    """
    split = split_data_url(url)
    if split is None:
        if is_https(url):
            return url_block("image", url)
        raise ChatError("must be an https URL or a data URL")
    declared, encoded, data = split
    if not encoded:
        raise ChatError("the data URL must be in base64")
    media_type = file_type(data) or declared
    if media_type not in IMAGE_TYPES:
        raise ChatError("%s is no image that the model takes (PNG, JPEG, GIF, WebP)"
                        % json.dumps(media_type))
    return base64_block("image", media_type, data)


def file_block(data: str) -> Optional[dict]:
    """A document or image from ``file_data``; None for a text file without a text."""
    if is_https(data):
        return url_block("document", data)
    declared, encoded, data = split_data_url(data) or ("", True, data)
    if TEXT_FILE_TYPE.fullmatch(declared):
        return text_document(decoded_text(data) if encoded else urllib.parse.unquote(data))
    found = file_type(data) if encoded else ""
    if found in IMAGE_TYPES:
        return base64_block("image", found, data)
    if encoded and PDF_TYPE in (found, declared):
        return base64_block("document", PDF_TYPE, data)
    raise ChatError("files of type %s cannot be passed on: images, PDF and text can"
                    % json.dumps(declared or "unknown"))


def decoded_text(data: str) -> str:
    """The text of a base64 text file."""
    try:
        return base64.b64decode(data).decode("utf-8-sig")
    except ValueError:
        raise ChatError("must be base64 of a text in UTF-8") from None


def text_document(text: str) -> Optional[dict]:
    """A document block of a text, None for a blank one."""
    if not text or text.isspace():
        return None
    return {"type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": text}}


def cache_mark(part: Mapping[str, Any]) -> Optional[dict]:
    """The ``cache_control`` that a part, a message or a tool asks for.

    >>> cache_mark({"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}})
    {'type': 'ephemeral', 'ttl': '1h'}
    """
    if "cache_control" not in part and "prompt_cache_breakpoint" not in part:
        return None  # as a rule, and asked of every part
    mark = optional(part, "cache_control", dict)
    if mark is not None:
        return parsed_within("cache_control", checked_json, mark)
    point = optional(part, "prompt_cache_breakpoint", dict)
    if point is None:
        return None
    ttl = point.get("ttl")
    lasting = BREAKPOINT_TTLS.get(ttl) if isinstance(ttl, str) else None
    return {"type": "ephemeral", "ttl": lasting} if lasting else {"type": "ephemeral"}


# Tool calls


LEGAL_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
ILLEGAL_IN_ID = re.compile(r"[^A-Za-z0-9_-]")
# Room for the hash behind a shortened id.
KEPT_ID_CHARS = 96


def legal_id(raw: str) -> str:
    """An id as the API takes it; one that has to be changed stays told apart by a hash.

    >>> legal_id("toolu_01"), legal_id("functions.f:0")
    ('toolu_01', 'functions_f_0_d6bdd4de')
    """
    if LEGAL_ID.fullmatch(raw):
        return raw
    digest = hashlib.sha256(encode_lossless(raw)).hexdigest()[:8]
    return "%s_%s" % (ILLEGAL_IN_ID.sub("_", raw[:KEPT_ID_CHARS]), digest)


def parse_arguments(arguments: Any) -> dict:
    """The input of a call from its JSON text; what is no JSON object is kept as a text.

    >>> parse_arguments('{"a": 1}'), parse_arguments(""), parse_arguments("oops")
    ({'a': 1}, {}, {'_arguments': 'oops'})
    """
    if arguments is None:
        return {}
    if isinstance(arguments, dict):
        return checked_json(arguments)
    text = expected(arguments, str)
    if not text or text.isspace():
        return {}
    try:
        value = JSON_DECODER.decode(text)
        if isinstance(value, dict):
            return checked_json(value)
    except (ValueError, RecursionError, ChatError):
        pass
    return {"_arguments": text}


class ChatCall(NamedTuple):
    """A tool call of the history: its id as the client has it, the tool's name, its input."""

    id: str
    name: str
    input: dict


def parse_function_call(call: Any, call_id: str) -> ChatCall:
    """A call as ``function`` of a tool call and the old ``function_call`` spell it."""
    name = required(expected(call, dict), "name")
    return ChatCall(call_id, name, parsed_within("arguments", parse_arguments,
                                                 call.get("arguments")))


def parse_tool_call(call: Any) -> ChatCall:
    """One of an assistant's ``tool_calls``."""
    call_id = required(expected(call, dict), "id")
    kind = call.get("type")
    if kind is None or kind == "function":
        return parsed_within("function", lambda spec: parse_function_call(spec, call_id),
                             required(call, "function", dict))
    if kind != "custom":
        raise ChatError("must be function or custom", "type")
    spec = required(call, "custom", dict)
    name = parsed_within("custom", lambda spec: required(spec, "name"), spec)
    text = parsed_within("custom", lambda spec: optional(spec, "input", str), spec)
    return ChatCall(call_id, name, {"input": text or ""})


def signed_thinking(message: Mapping[str, Any]) -> list:
    """The thinking blocks that a client sent back with their signatures.

    LiteLLM's ``thinking_blocks``, else OpenRouter's ``reasoning_details``; what has
    no signature is left out, since it would be refused.
    """
    if "thinking_blocks" not in message and "reasoning_details" not in message:
        return []
    blocks = []
    for block in optional(message, "thinking_blocks", list) or ():
        if isinstance(block, dict):
            blocks.append(signed_block(block.get("type"), block.get("thinking"),
                                       block.get("signature"), block.get("data")))
    if any(blocks):
        return [block for block in blocks if block]
    for detail in optional(message, "reasoning_details", list) or ():
        # What another vendor's model sealed nobody else can read.
        if not isinstance(detail, dict):
            continue
        kind, sealed_by = detail.get("type"), detail.get("format")
        if isinstance(kind, str) and (sealed_by is None or isinstance(sealed_by, str) and (
                sealed_by.startswith("anthropic"))):
            blocks.append(signed_block(DETAIL_TYPES.get(kind), detail.get("text"),
                                       detail.get("signature"), detail.get("data")))
    return [block for block in blocks if block]


DETAIL_TYPES = {"reasoning.text": "thinking", "reasoning.encrypted": "redacted_thinking"}


def signed_block(kind: Any, text: Any, signature: Any, data: Any) -> Optional[dict]:
    """A thinking block with just the members that it has, None for an unsigned one."""
    if kind == "thinking" and isinstance(signature, str) and signature:
        words = text if isinstance(text, str) else ""
        return {"type": "thinking", "thinking": words, "signature": signature}
    if kind == "redacted_thinking" and isinstance(data, str) and data:
        return {"type": "redacted_thinking", "data": data}
    return None


# The conversation


class ChatTurn:
    """One turn under construction: tool results go in front of what else it has."""

    __slots__ = ("role", "results", "blocks")

    def __init__(self, role: str) -> None:
        self.role = role
        self.results: list[dict] = []
        self.blocks: list[dict] = []

    def message(self) -> dict:
        """The turn as a message of the API; always blocks, so that it can only grow."""
        content = self.results + self.blocks if self.results else self.blocks
        return {"role": self.role, "content": content}


class ChatHistory:
    """Reads ``messages`` one by one into system blocks and turns.

    Neighbours of one role become one turn; system messages are hoisted from
    wherever they stand, those of the beginning apart from later ones.
    """

    def __init__(self, remembered: Callable[[str], Optional[Sequence[dict]]]) -> None:
        self.system: list[dict] = []
        self.later_system: list[dict] = []
        self.turns: list[ChatTurn] = []
        # Tools that were called, in order; field names without a meaning; betas needed.
        self.tool_names: dict[str, None] = {}
        self.ignored: set[str] = set()
        self.betas: set[str] = set()
        self.marked = False
        self._remembered = remembered
        self._position = -1
        self._used_ids: set[str] = set()
        self._repeats: dict[str, int] = {}
        # Of the last assistant turn: client's id -> the calls that wait for a result.
        self._open: dict[str, collections.deque[str]] = {}
        # Old functions: the id made up for the last call of a name.
        self._function_ids: dict[str, str] = {}

    def read(self, message: Any) -> None:
        """Take the next message.  Raises ChatError."""
        self._position += 1
        role = message.get("role") if isinstance(message, dict) else None
        reader = self.ROLES.get(role) if isinstance(role, str) else None
        if reader is None:
            required(expected(message, dict), "role")
            raise ChatError("must be one of %s" % ", ".join(sorted(self.ROLES)), "role")
        reader(self, message)

    def _turn(self, role: str) -> ChatTurn:
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(ChatTurn(role))
            if role == "assistant":
                self._open.clear()
        return self.turns[-1]

    def _blocks(self, message: dict, parts: Mapping[str, Callable[[Any, dict], Any]]) -> list:
        """The blocks of a message's content; blank texts are left out."""
        content = message.get("content")
        if content is None:
            return []
        if isinstance(content, str):
            blocks = [] if not content or content.isspace() else [text_block(content)]
        elif isinstance(content, list):
            read = partial(self._part, parts)
            blocks = [block for block in parsed_within("content", partial(
                parsed_items, parse=read), content) if block is not None]
        else:
            raise ChatError("must be a string or a list of parts", "content", "invalid_type")
        return blocks

    def _part(self, parts: Mapping[str, Callable[[Any, dict], Any]], part: Any) -> Optional[dict]:
        kind = expected(part, dict).get("type")
        reader = parts.get(kind) if isinstance(kind, str) else None
        if reader is None:
            raise ChatError("must be one of %s here" % ", ".join(sorted(parts)), "type")
        block = reader(self, part)
        if block is None or is_blank_text(block):
            return None
        self._mark([block], part)
        return block

    def _mark(self, blocks: list, source: dict) -> None:
        mark = cache_mark(source)
        if mark is not None:
            self.marked = True
            for block in blocks:
                block["cache_control"] = mark

    # Parts

    def _text_part(self, part: dict) -> dict:
        return text_block(optional(part, "text", str) or "")

    def _refusal_part(self, part: dict) -> dict:
        return text_block(optional(part, "refusal", str) or "")

    def _image_part(self, part: dict) -> dict:
        image = part.get("image_url")
        if isinstance(image, str):
            return parsed_within("image_url", image_block, image)
        image = required(part, "image_url", dict)
        url = parsed_within("image_url", lambda image: required(image, "url"), image)
        return parsed_within("image_url.url", image_block, url)

    def _file_part(self, part: dict) -> Optional[dict]:
        return parsed_within("file", self._file, required(part, "file", dict))

    def _file(self, file: dict) -> Optional[dict]:
        name, known = optional(file, "filename", str), optional(file, "file_id", str)
        data = optional(file, "file_data", str)
        url = optional(file, "file_url", str)
        if data:
            block = parsed_within("file_data", file_block, data)
        elif url:
            if not is_https(url):
                raise ChatError("must be an https URL", "file_url")
            block = url_block("document", url)
        elif not known:
            raise ChatError("must be given", "file_data", "missing_required_parameter")
        elif not FILE_ID.fullmatch(known):
            raise ChatError("no such file: send file_data instead", "file_id")
        else:
            self.betas.add(FILES_BETA)
            block = {"type": "document", "source": {"type": "file", "file_id": known}}
        if block is not None and block["type"] == "document" and name and not name.isspace():
            block["title"] = name[:MAX_TITLE_CHARS]
        return block

    def _audio_part(self, part: dict) -> None:
        self.ignored.add("input_audio")

    # Roles

    def _read_system(self, message: dict) -> None:
        blocks = self._blocks(message, self.TEXT_PARTS)
        self._mark(blocks[-1:], message)
        (self.later_system if self.turns else self.system).extend(blocks)

    def _read_user(self, message: dict) -> None:
        blocks = self._blocks(message, self.PARTS)
        self._mark(blocks[-1:], message)
        if blocks:
            self._turn("user").blocks.extend(blocks)
        elif any(block_type(part) == "input_audio" for part in message.get("content") or ()):
            raise ChatError("the model takes no audio", "content", "unsupported_value")

    def _read_assistant(self, message: dict) -> None:
        texts = self._blocks(message, self.TEXT_PARTS)
        refusal = optional(message, "refusal", str)
        if not texts and refusal and not refusal.isspace():
            texts = [text_block(refusal)]
        calls = self._calls(message)
        given = signed_thinking(message)
        if not texts and not calls:
            return
        self._mark(texts[-1:], message)
        blocks = self._turn("assistant").blocks
        blocks.extend(given)
        before, behind = self._with_thinking(calls, bool(given)) if calls else ([], [])
        blocks.extend(before + texts + behind)

    def _calls(self, message: dict) -> list[ChatCall]:
        calls = message.get("tool_calls")
        calls = [] if calls is None else parsed_within(
            "tool_calls", partial(parsed_items, parse=parse_tool_call), calls)
        old = optional(message, "function_call", dict)
        if old is not None:
            call_id = "call_%d" % self._position
            call = parsed_within("function_call",
                                 lambda call: parse_function_call(call, call_id), old)
            self._function_ids[call.name] = call_id
            calls.append(call)
        return calls

    def _with_thinking(self, calls: Sequence[ChatCall], given: bool) -> tuple[list, list]:
        """Tool calls as blocks, and the remembered thinking: in front of the text the first,
        in front of its call what came between calls."""
        before: list[dict] = []
        behind: list[dict] = []
        last: list[dict] = []
        for call in calls:
            thinking = [] if given else list(self._remembered(call.id) or ())
            if thinking and thinking != last:
                (behind if behind else before).extend(thinking)
                last = thinking
            behind.append({"type": "tool_use", "id": self._new_id(call.id), "name": call.name,
                           "input": call.input})
            self.tool_names[call.name] = None
        return before, behind

    def _new_id(self, raw: str) -> str:
        """A legal id for a call.  Some models number their calls anew in each turn, and the
        API takes an id once: later ones get a number."""
        legal = unique = legal_id(raw)
        while unique in self._used_ids:
            self._repeats[legal] = self._repeats.get(legal, 1) + 1
            unique = "%s_%d" % (legal, self._repeats[legal])
        self._used_ids.add(unique)
        self._open.setdefault(raw, collections.deque()).append(unique)
        return unique

    def _read_tool(self, message: dict) -> None:
        self._add_result(message, required(message, "tool_call_id"))

    def _read_function(self, message: dict) -> None:
        unknown = "call_%d" % self._position
        self._add_result(message, self._function_ids.get(required(message, "name"), unknown))

    def _add_result(self, message: dict, raw: str) -> None:
        result: dict = {"type": "tool_result", "tool_use_id": self._answered_id(raw)}
        content = self._blocks(message, self.PARTS)
        if content:
            # A text is sent as one; marks stand on the result, where they were meant.
            plain = isinstance(message["content"], str)
            result["content"] = message["content"] if plain else content
        self._mark([result], message)
        self._turn("user").results.append(result)

    def _answered_id(self, raw: str) -> str:
        """The call that a result belongs to: of several with one id, the first unanswered."""
        waiting = self._open.get(raw)
        if waiting is None:
            return legal_id(raw)  # what has no call is made a text later (section 8)
        return waiting.popleft() if len(waiting) > 1 else waiting[0]

    TEXT_PARTS = {
        "refusal": _refusal_part,
        "text": _text_part,
    }
    PARTS = dict(
        TEXT_PARTS,
        file=_file_part,
        image_url=_image_part,
        input_audio=_audio_part,
    )
    ROLES = {
        "assistant": _read_assistant,
        "developer": _read_system,
        "function": _read_function,
        "system": _read_system,
        "tool": _read_tool,
        "user": _read_user,
    }


# Schemas


# What structured outputs refuse is told the model in words (openai-mapping.md 2.1).
TOLD_KEYWORDS = frozenset([
    "contains", "dependentRequired", "dependentSchemas", "else", "exclusiveMaximum",
    "exclusiveMinimum", "if", "maxContains", "maxItems", "maxLength", "maxProperties",
    "maximum", "minContains", "minLength", "minProperties", "minimum", "multipleOf", "not",
    "patternProperties", "prefixItems", "propertyNames", "then", "unevaluatedProperties",
    "uniqueItems",
])
DROPPED_KEYWORDS = frozenset(["$comment", "$id", "$schema"])
STRING_FORMATS = frozenset([
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
])
# Keywords whose value is a schema, a list of them, or an object of them.
SCHEMA_LISTS = frozenset(["allOf", "anyOf"])
SCHEMA_MAPS = frozenset(["$defs", "definitions", "properties"])


def trimmed_schema(schema: Any) -> Any:
    """A schema as structured outputs take it: closed objects, the rest told in words.

    >>> trimmed_schema({"type": "string", "minLength": 3, "description": "A name."})
    {'type': 'string', 'description': 'A name.\\n\\n{minLength: 3}'}
    """
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    told = []
    for key, value in schema.items():
        key = "anyOf" if key == "oneOf" and "anyOf" not in schema else key
        if key in DROPPED_KEYWORDS:
            continue
        if is_refused_keyword(key, value):
            told.append("%s: %s" % (key, json_text(value)))
        else:
            kept[key] = trimmed_keyword(key, value)
    kinds = schema.get("type")
    if "properties" in schema or kinds == "object" or isinstance(kinds, list) and "object" in kinds:
        kept["additionalProperties"] = False
    if told:
        words = kept.get("description")
        note = "{%s}" % ", ".join(told)
        kept["description"] = "%s\n\n%s" % (words, note) if words else note
    return kept


def is_refused_keyword(key: str, value: Any) -> bool:
    """Whether structured outputs refuse a keyword of a schema with this value."""
    if key == "format":
        return not isinstance(value, str) or value not in STRING_FORMATS
    if key == "minItems":
        return value not in (0, 1)
    if key == "additionalProperties":
        return not isinstance(value, bool)
    return key in TOLD_KEYWORDS or key == "oneOf"


def trimmed_keyword(key: str, value: Any) -> Any:
    """The value of a keyword with the schemas in it trimmed."""
    if key in SCHEMA_MAPS and isinstance(value, dict):
        return {name: trimmed_schema(below) for name, below in value.items()}
    if key in SCHEMA_LISTS and isinstance(value, list):
        return [trimmed_schema(below) for below in value]
    return trimmed_schema(value) if key == "items" else value


def is_free_object(schema: Mapping[str, Any]) -> bool:
    """Whether a schema takes any object: closed, it would take only the empty one."""
    says_more = any(key in schema for key in (
        "$ref", "allOf", "anyOf", "const", "enum", "oneOf"))
    return (schema.get("type", "object") == "object" and not schema.get("properties")
            and not says_more)


# The fields, each by itself


EFFORTS = ("low", "medium", "high", "xhigh", "max")
# "none" switches thinking off.
EFFORT_WORDS = dict({effort: effort for effort in EFFORTS}, none="none", minimal="low")
EFFORT_BUDGETS = {"low": 2048, "medium": 8192, "high": 16384, "xhigh": 32000, "max": 32000}
# A budget given for a model that takes none: (at least, effort).
BUDGET_EFFORTS = ((8192, "xhigh"), (4096, "high"), (2048, "medium"), (1, "low"))
ANTHROPIC_TOOL_TYPE = re.compile(r"[a-z_]{1,60}_20[0-9]{6}")
CUSTOM_TOOL_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}
CHOICE_WORDS = {
    "any": "any",
    "auto": "auto",
    "none": "none",
    "required": "any",
}
# The API takes 256 characters, and neither e-mail addresses nor telephone numbers.
MAX_USER_ID_CHARS = 256
PERSONAL_ID = re.compile(r"[^@]+@[^@]+|\+?[0-9 ().-]{7,}")


class ChatTool(NamedTuple):
    """One tool as the API takes it, and what the client said of it besides."""

    tool: dict
    strict: bool = False
    custom: bool = False


class ChatChoice(NamedTuple):
    """What may be called: ``type`` as the API has it; ``allowed`` where tools are picked."""

    type: str
    name: str = ""
    allowed: Optional[list] = None


class ChatFormat(NamedTuple):
    """What the answer must be: "json_object" or "json_schema" (then with the schema)."""

    type: str
    schema: dict = {}
    description: str = ""


def parse_tokens(value: Any) -> int:
    """A number of tokens, at least 1."""
    if not 1 <= expected(value, int) <= MAX_USAGE_TOKENS:
        raise ChatError("must be between 1 and %d" % MAX_USAGE_TOKENS)
    return value


def parse_number(most: float, value: Any) -> float:
    """A number from 0 to ``most``."""
    if not 0 <= expected(value, float) <= most:
        raise ChatError("must be between 0 and %d" % most)
    return value


def parse_model(value: Any) -> str:
    """The name of a model."""
    if not 0 < len(expected(value, str)) <= MAX_MODEL_CHARS:
        raise ChatError("must be a string of 1 to %d characters" % MAX_MODEL_CHARS)
    return value


def parse_count(value: Any) -> None:
    """``n``: there is only ever one answer."""
    if expected(value, int) != 1:
        raise ChatError("only one choice can be had", "", "unsupported_value")


def parse_modalities(value: Any) -> list:
    """``modalities``: the answer is a text."""
    if expected(value, list) and "text" not in value:
        raise ChatError("the model answers with text", "", "unsupported_value")
    return value


def parse_stop(value: Any) -> list:
    """Stop sequences; blank ones would be refused and are left out."""
    stops = [value] if isinstance(value, str) else parsed_items(
        value, lambda stop: expected(stop, str))
    return [stop for stop in stops if stop and not stop.isspace()]


def parse_object(value: Any) -> dict:
    """An object that a client who knows the API gives as it is."""
    return checked_json(expected(value, dict))


def parse_thinking(value: Any) -> dict:
    """A raw ``thinking``, with its type and its budget as the API has them."""
    required(parse_object(value), "type")
    if value["type"] == "enabled":
        parsed_within("budget_tokens", parse_tokens, value.get("budget_tokens"))
    return value


def parse_output_config(value: Any) -> dict:
    """A raw ``output_config``."""
    optional(parse_object(value), "effort", str)
    return value


def parse_stream_options(value: Any) -> dict:
    """``stream_options``, of which one counts."""
    optional(expected(value, dict), "include_usage", bool)
    return value


def parse_user(value: Any) -> str:
    """An end user's id; what may be a person's address or number goes as its hash.

    >>> parse_user("u-17"), parse_user("ann@example.com")[:8]
    ('u-17', '71d4f55f')
    """
    text = expected(value, str).strip()
    if len(text) <= MAX_USER_ID_CHARS and not PERSONAL_ID.fullmatch(text):
        return text
    return hashlib.sha256(encode_lossless(text)).hexdigest()


def parse_reasoning(value: Any) -> dict:
    """OpenRouter's ``reasoning``: effort, max_tokens, enabled, exclude."""
    for name, kind in (("max_tokens", int), ("enabled", bool), ("exclude", bool)):
        optional(expected(value, dict), name, kind)
    effort = value.get("effort")
    if effort is not None:
        effort = parsed_within("effort", partial(parsed_choice, EFFORT_WORDS), effort)
    budget = value.get("max_tokens")
    if budget:
        parsed_within("max_tokens", parse_tokens, budget)
    if budget == 0 or value.get("enabled") is False:
        effort = "none"
    return dict(value, effort=effort or "", max_tokens=budget or 0)


def parse_tool(tool: Any) -> ChatTool:
    """One of ``tools``: a function, a custom tool, or one of the API's own, which passes."""
    kind = optional(expected(tool, dict), "type", str)
    if "input_schema" in tool or kind and ANTHROPIC_TOOL_TYPE.fullmatch(kind):
        required(tool, "name")
        return ChatTool(checked_json(tool))
    if kind == "custom":
        spec = optional(tool, "custom", dict)
        return (parsed_within("custom", partial(parse_custom, tool), spec) if spec is not None
                else parse_custom(tool, tool))
    if kind not in (None, "function"):
        raise ChatError("must be function or custom", "type")
    spec = optional(tool, "function", dict)
    return (parsed_within("function", partial(parse_function, tool), spec) if spec is not None
            else parse_function(tool, tool))


def described_tool(tool: Mapping[str, Any], spec: Mapping[str, Any], schema: dict) -> dict:
    """A tool with name, description and schema, and the mark that the client put on it."""
    made: dict = {"name": required(spec, "name")}
    description = optional(spec, "description", str)
    if description:
        made["description"] = description
    made["input_schema"] = schema
    mark = cache_mark(tool) or cache_mark(spec)
    return dict(made, cache_control=mark) if mark else made


def parse_function(tool: Mapping[str, Any], spec: Mapping[str, Any]) -> ChatTool:
    """A function; one without parameters takes the empty object."""
    schema = optional(spec, "parameters", dict)
    if not schema:
        schema = {"type": "object", "properties": {}}
    elif "type" not in schema:
        schema = dict(schema, type="object")
    parsed_within("parameters", checked_json, schema)
    return ChatTool(described_tool(tool, spec, schema), bool(optional(spec, "strict", bool)))


def parse_custom(tool: Mapping[str, Any], spec: Mapping[str, Any]) -> ChatTool:
    """A tool that is called with a text: an object with that text alone."""
    return ChatTool(described_tool(tool, spec, CUSTOM_TOOL_SCHEMA), custom=True)


def parse_legacy_function(spec: Any) -> ChatTool:
    """One of the old ``functions``."""
    return parse_function({}, expected(spec, dict))


def parse_tool_choice(value: Any) -> ChatChoice:
    """``tool_choice`` and the old ``function_call``: a word, or an object that names a tool."""
    if isinstance(value, str):
        return ChatChoice(parsed_choice(CHOICE_WORDS, value))
    kind = optional(expected(value, dict), "type", str)
    if kind == "allowed_tools":
        return parse_allowed_tools(value)
    if kind in CHOICE_WORDS:
        return ChatChoice(CHOICE_WORDS[kind])
    return ChatChoice("tool", parse_tool_name(value))


def parse_tool_name(value: Any) -> str:
    """The name in ``{"type": "function", "function": {"name"}}``, also flat or of a custom tool."""
    for key in ("function", "custom"):
        spec = optional(expected(value, dict), key, dict)
        if spec is not None:
            return parsed_within(key, lambda spec: required(spec, "name"), spec)
    return required(value, "name")


def parse_allowed_tools(value: dict) -> ChatChoice:
    """A choice among some of the tools."""
    spec = optional(value, "allowed_tools", dict)
    if spec is not None:
        return parsed_within("allowed_tools", parse_allowed_tools, spec)
    mode = parsed_within("mode", partial(parsed_choice, CHOICE_WORDS), value.get("mode", "auto"))
    names = parsed_within("tools", partial(parsed_items, parse=parse_tool_name),
                          value.get("tools"))
    return ChatChoice(mode, allowed=names)


def parse_format(value: Any) -> Optional[ChatFormat]:
    """``response_format``; None for a plain text."""
    kind = required(expected(value, dict), "type")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ChatError("must be one of json_object, json_schema, text", "type")
    if kind == "json_object":
        return ChatFormat(kind)
    spec = required(value, "json_schema", dict)
    return parsed_within("json_schema", parse_json_schema, spec)


def parse_json_schema(spec: Any) -> ChatFormat:
    """The schema of an answer; one that takes any object is no more than "json_object"."""
    schema = optional(spec, "schema", dict) or {}
    parsed_within("schema", checked_json, schema)
    if is_free_object(schema):
        return ChatFormat("json_object")
    return ChatFormat("json_schema", schema, optional(spec, "description", str) or "")


# What is understood, and its parser.  "messages" is read by ChatHistory.
CHAT_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "model": parse_model,
    "max_completion_tokens": parse_tokens,
    "max_tokens": parse_tokens,
    "stop": parse_stop,
    "temperature": partial(parse_number, 2),
    "top_p": partial(parse_number, 1),
    "top_k": parse_tokens,
    "n": parse_count,
    "stream": lambda value: expected(value, bool),
    "stream_options": parse_stream_options,
    "tools": partial(parsed_items, parse=parse_tool),
    "functions": partial(parsed_items, parse=parse_legacy_function),
    "tool_choice": parse_tool_choice,
    "function_call": parse_tool_choice,
    "parallel_tool_calls": lambda value: expected(value, bool),
    "response_format": parse_format,
    "reasoning_effort": partial(parsed_choice, EFFORT_WORDS),
    "reasoning": parse_reasoning,
    "thinking": parse_thinking,
    "output_config": parse_output_config,
    "safety_identifier": parse_user,
    "user": parse_user,
    "modalities": parse_modalities,
}
# Nothing is lost where these are left out, or stand at such a value.
SILENT_FIELDS = frozenset([
    "messages", "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
])
NEUTRAL_VALUES = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "presence_penalty": 0,
    "service_tier": "auto",
    "store": False,
    "temperature": 1,
    "top_logprobs": 0,
    "top_p": 1,
}
# A field's name that can stand in a header.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def is_neutral(name: str, value: Any) -> bool:
    """Whether nothing is lost by leaving out a field with this value; true is not 1 here."""
    neutral = NEUTRAL_VALUES.get(name)
    return neutral == value and isinstance(neutral, bool) == isinstance(value, bool)


def parse_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every field that is understood and not null, parsed.  Raises ChatError."""
    for name in ("model", "messages"):
        if values.get(name) is None:
            raise ChatError("must be given", name, "missing_required_parameter")
    return {name: parsed_within(name, parse, values[name]) for name, parse in CHAT_FIELDS.items()
            if values.get(name) is not None}


# The rules of models


class ModelRules(NamedTuple):
    """What a model takes (openai-mapping.md 5.1).

    ``thinking`` is "adaptive", "budget", "either", or "" where nothing is to be said of
    it; ``off`` the type that switches it off, "" where leaving it out does and "effort"
    where nothing does; ``unasked`` models think when nothing is said.
    """

    thinking: str = ""
    off: str = ""
    unasked: bool = False
    efforts: tuple[str, ...] = ()
    sampling: bool = True
    prefill: bool = True
    forced: bool = True
    structured: bool = False
    # Asked for where the client names no limit, and the most that the model gives.
    default_tokens: int = 8192
    most_tokens: int = 32000


OTHER_RULES = ModelRules()
RULES_3_7 = ModelRules(thinking="budget")
RULES_4_5 = RULES_3_7._replace(structured=True, default_tokens=64000, most_tokens=64000)
RULES_4_6 = RULES_4_5._replace(
    thinking="either", efforts=("low", "medium", "high", "max"), prefill=False,
    default_tokens=128000, most_tokens=128000)
RULES_4_7 = RULES_4_6._replace(thinking="adaptive", efforts=EFFORTS, sampling=False)
RULES_5 = RULES_4_7._replace(off="disabled", unasked=True)
RULES_ALWAYS = RULES_5._replace(off="effort")
RULES_SONNET_5_5 = RULES_5._replace(off="between_tools", forced=False)
RULES_NEWEST = RULES_ALWAYS._replace(forced=False)
# (family, "" for any; since which generation; rules), the first that fits.
MODEL_RULES = (
    ("", (5, 6), RULES_NEWEST),
    ("opus", (5, 5), RULES_NEWEST),
    ("sonnet", (5, 5), RULES_SONNET_5_5),
    ("fable", (5, 1), RULES_NEWEST),
    ("mythos", (5, 1), RULES_NEWEST),
    ("fable", (0, 0), RULES_ALWAYS),
    ("mythos", (0, 0), RULES_ALWAYS),
    ("", (5, 0), RULES_5),
    ("", (4, 7), RULES_4_7),
    ("", (4, 6), RULES_4_6),
    ("", (4, 5), RULES_4_5),
    ("", FIRST_THINKING, RULES_3_7),
    ("", (0, 0), OTHER_RULES),
)
# Both together are refused from here on.
ONE_SAMPLING_FIELD = (4, 0)


def model_rules(model: str) -> ModelRules:
    """The rules of a model, from its id alone; an unknown Claude is taken for the newest.

    >>> model_rules("claude-opus-5-5").forced, model_rules("claude-haiku-4-5").thinking
    (False, 'budget')
    """
    generation = model_generation(model)
    if generation is None:
        return OTHER_RULES
    name = model.lower()
    return next(rules for family, since, rules in MODEL_RULES
                if family in name and generation >= since)


def fitted_effort(effort: str, efforts: Sequence[str]) -> str:
    """The highest effort of a model that is not above the one asked for.

    >>> fitted_effort("xhigh", ("low", "medium", "high", "max"))
    'high'
    """
    below = EFFORTS[:EFFORTS.index(effort) + 1]
    return next((known for known in reversed(below) if known in efforts), "")


def budget_effort(budget: int) -> str:
    """The effort that stands for a budget on a model that takes none; "" for none."""
    return next((effort for least, effort in BUDGET_EFFORTS if budget >= least), "")


# The draft


class ChatWish(NamedTuple):
    """What a client wants of thinking: "on", "off" or "" where it says nothing.

    ``budget`` is 0 and ``effort`` "" where none is named; ``raw`` is its own object.
    """

    mode: str
    effort: str = ""
    budget: int = 0
    display: str = "summarized"
    raw: Optional[dict] = None


def thinking_wish(asked: Mapping[str, Any], suffixed: bool) -> ChatWish:
    """The wish in raw ``thinking``, which wins, ``reasoning_effort``, ``reasoning``, a suffix."""
    reasoning = asked.get("reasoning", {})
    effort = asked.get("reasoning_effort") or reasoning.get("effort", "")
    display = "omitted" if reasoning.get("exclude") else "summarized"
    raw = asked.get("thinking")
    if raw is not None:
        named = "" if effort == "none" else effort
        mode = "off" if raw["type"] in ("disabled", "between_tools") else "on"
        budget = raw["budget_tokens"] if raw["type"] == "enabled" else 0
        return ChatWish(mode, named, budget, display, raw)
    if effort == "none":
        return ChatWish("off")
    budget = reasoning.get("max_tokens", 0)
    wanted = effort or budget or suffixed or reasoning.get("enabled")
    return ChatWish("on" if wanted else "", effort, budget, display)


class ChatDraft:
    """Puts the Messages body together from parsed fields, by the rules of the model.

    Each step adds its members to ``body``; what cannot be said is named in
    ``ignored``, or said to the model in ``notes``.
    """

    def __init__(self, asked: Mapping[str, Any], history: ChatHistory, model: str) -> None:
        self.asked = asked
        self.history = history
        self.model, self.suffixed = split_thinking(model)
        self.rules = model_rules(self.model)
        self.generation = model_generation(self.model)
        self.body: Body = {"model": asked["model"], "max_tokens": self._max_tokens()}
        self.tools: list[ChatTool] = asked.get("tools", []) + asked.get("functions", [])
        self.legacy = bool(asked.get("functions")) and not asked.get("tools")
        self.choice: ChatChoice = asked.get("tool_choice") or asked.get(
            "function_call") or ChatChoice("")
        self.ignored = set(history.ignored)
        self.notes: list[str] = []
        self.json_tool = ""

    def _max_tokens(self) -> int:
        return self.asked.get("max_completion_tokens") or self.asked.get(
            "max_tokens") or self.rules.default_tokens

    @property
    def forces(self) -> bool:
        """Whether the model must call a tool."""
        return self.choice.type in FORCED_TOOL_CHOICES

    def drop(self, *names: str) -> None:
        """Name the fields among these that were given and have no effect."""
        self.ignored.update(name for name in names if name in self.asked)

    # Messages

    def add_messages(self) -> None:
        """The turns, with the first a user's, and the last where the model wants that."""
        history = self.history
        messages = [turn.message() for turn in history.turns]
        if not messages:
            # Only a system prompt: it is what there is to answer.
            blocks = history.system + history.later_system
            history.system, history.later_system = [], []
            messages = [{"role": "user", "content": blocks}]
            if not blocks:
                raise ChatError("there is nothing in them to answer", "messages")
        if messages[0]["role"] == "assistant":
            messages.insert(0, {"role": "user", "content": [text_block(NOTE_FIRST_TURN)]})
        if messages[-1]["role"] == "assistant":
            content = messages[-1]["content"]
            calls = any(block["type"] == "tool_use" for block in content)
            if self.rules.prefill and not calls:
                # The end of a prefill must not be blank.
                content[-1]["text"] = content[-1]["text"].rstrip()
            else:
                messages.append({"role": "user", "content": [text_block(NOTE_CONTINUE)]})
        self.body["messages"] = messages

    def add_system(self) -> None:
        """The system prompt.  Notes stand before later messages, so that it can only grow."""
        history = self.history
        blocks = history.system + [text_block(note) for note in self.notes] + history.later_system
        if blocks:
            self.body["system"] = blocks

    # Tools

    def add_tools(self) -> None:
        """The tools and what may be called; a history with calls cannot do without them."""
        if not self.tools:
            if self.forces or self.choice.allowed is not None:
                raise ChatError("there are no tools to choose from", self._choice_field())
            self.choice = ChatChoice("none" if self.history.tool_names else "")
            self.tools = [ChatTool({"name": name, "input_schema": {"type": "object"}})
                          for name in self.history.tool_names]
        self._check_choice()
        if self.forces and not self.rules.forced:
            named = self.choice.type == "tool"
            self.notes.append(NOTE_CALL_TOOL % self.choice.name if named else NOTE_CALL_ANY)
            self.choice = ChatChoice("auto")
            self.drop("tool_choice", "function_call")

    def _choice_field(self) -> str:
        return "tool_choice" if "tool_choice" in self.asked else "function_call"

    def _check_choice(self) -> None:
        names = {tool.tool["name"] for tool in self.tools}
        if self.choice.type == "tool" and self.choice.name not in names:
            raise ChatError("names a tool that is not there", self._choice_field())
        if self.choice.allowed is not None:
            allowed = names & set(self.choice.allowed)
            if not allowed:
                raise ChatError("names no tool that is there", "tool_choice.allowed_tools.tools")
            self.tools = [tool for tool in self.tools if tool.tool["name"] in allowed]

    def add_tool_members(self) -> None:
        """``tools`` and ``tool_choice`` once all is known that takes part in them."""
        if not self.tools:
            return
        self.body["tools"] = [self._spelled_tool(tool) for tool in self.tools]
        choice: dict = {"type": self.choice.type or "auto"}
        if self.choice.type == "tool":
            choice["name"] = self.choice.name
        takes_answer = self.choice.type == "tool" and self.choice.name == self.json_tool
        single = (self.asked.get("parallel_tool_calls") is False or self.legacy or takes_answer)
        if single and self.choice.type != "none":
            choice["disable_parallel_tool_use"] = True
        if self.choice.type or single:
            self.body["tool_choice"] = choice

    def _spelled_tool(self, tool: ChatTool) -> dict:
        if not tool.strict or not self.rules.structured:
            return tool.tool
        return dict(tool.tool, input_schema=trimmed_schema(tool.tool["input_schema"]), strict=True)

    # The answer's format

    def add_format(self) -> None:
        """Structured output where the model has it, else a tool that takes the answer."""
        wanted: Optional[ChatFormat] = self.asked.get("response_format")
        if wanted is None:
            return
        if wanted.type == "json_object":
            self.notes.append(NOTE_JSON_OBJECT)
        elif self.rules.structured:
            schema = trimmed_schema(wanted.schema)
            self._configure("format", {"type": "json_schema", "schema": schema})
        elif self.forces or wanted.schema.get("type", "object") != "object":
            self.notes.append(NOTE_JSON_SCHEMA + json_text(wanted.schema))
        else:
            self._add_json_tool(wanted)

    def _add_json_tool(self, wanted: ChatFormat) -> None:
        names = {tool.tool["name"] for tool in self.tools}
        name = JSON_TOOL
        while name in names:
            name += "_"
        schema = wanted.schema if "type" in wanted.schema else dict(wanted.schema, type="object")
        # Beside other tools any of them may come first; the answer is the last call.
        others = self.tools and self.choice.type != "none"
        self.tools = self.tools + [ChatTool({
            "name": name,
            "description": wanted.description or JSON_TOOL_DESCRIPTION,
            "input_schema": schema,
        })]
        self.choice = ChatChoice("any") if others else ChatChoice("tool", name)
        self.json_tool = name

    def _configure(self, key: str, value: Any) -> None:
        """Set a member of ``output_config`` that the client did not set itself."""
        config = self.body.get("output_config", self.asked.get("output_config", {}))
        self.body["output_config"] = dict({key: value}, **config)

    # Thinking

    def add_thinking(self) -> None:
        """``thinking`` and effort (openai-mapping.md 5.3), where model and request take it."""
        if "output_config" in self.asked:
            self.body.setdefault("output_config", self.asked["output_config"])
        wish = thinking_wish(self.asked, self.suffixed)
        if not self.rules.thinking:
            self._pass_thinking(wish)
        elif wish.mode == "on":
            self._think(wish)
        elif wish.mode == "off":
            self._think_not(wish)
        elif self.rules.unasked:
            self.body["thinking"] = {"type": "adaptive", "display": wish.display}
        self._withdraw_thinking()

    def _pass_thinking(self, wish: ChatWish) -> None:
        """Of another vendor's model nothing is known: a raw object passes, all else does not."""
        if wish.raw is not None and self.generation is None:
            self.body["thinking"] = wish.raw
        else:
            self.drop("thinking")
        if wish.mode != "off":
            self.drop("reasoning_effort", "reasoning")

    def _think(self, wish: ChatWish) -> None:
        adaptive = self.rules.thinking == "adaptive"
        if self.rules.thinking == "budget" and not wish.effort and not wish.budget:
            self.body = with_thinking(self.body, self.model)  # contract section 8
        elif self.rules.thinking == "budget" or wish.budget and not adaptive:
            self._think_within(wish)
        else:
            given = wish.raw is not None and wish.raw["type"] != "enabled"
            self.body["thinking"] = wish.raw if given else {
                "type": "adaptive", "display": wish.display}
            effort = wish.effort or budget_effort(wish.budget)
            if effort:
                self._configure("effort", fitted_effort(effort, self.rules.efforts))

    def _think_within(self, wish: ChatWish) -> None:
        """A budget.  The old ``max_tokens`` meant the visible answer alone, so that it adds."""
        budget = wish.budget or EFFORT_BUDGETS[wish.effort]
        total = self.body["max_tokens"]
        if "max_tokens" in self.asked and "max_completion_tokens" not in self.asked:
            wanted = total + budget
            total = max(total, min(wanted, self.rules.most_tokens))
            budget = budget if total == wanted else min(budget, total - MIN_BUDGET_TOKENS)
        else:
            budget = min(budget, total - MIN_BUDGET_TOKENS)
        if budget < MIN_BUDGET_TOKENS:
            if not self.suffixed:
                return
            budget, total = MIN_BUDGET_TOKENS, 2 * MIN_BUDGET_TOKENS
        thinking = wish.raw if wish.raw and wish.raw["type"] == "enabled" else {"type": "enabled"}
        self.body["thinking"] = dict(thinking, budget_tokens=budget)
        self.body["max_tokens"] = total

    def _think_not(self, wish: ChatWish) -> None:
        # Beside a suffix it is said aloud, or section 8 would switch thinking on.
        kind = self.rules.off or ("disabled" if self.suffixed else "")
        if kind == "effort":
            self._configure("effort", "low")
        elif kind:
            given = wish.raw is not None and wish.raw["type"] == kind
            self.body["thinking"] = wish.raw if given else {"type": kind}
            config = self.body.get("output_config", {})
            if config.get("effort") in ("xhigh", "max"):
                self.body["output_config"] = dict(config, effort="high")

    def _withdraw_thinking(self) -> None:
        """Thinking goes where it would be refused: beside a forced tool, and with a budget
        in a tool loop whose signed thinking is no longer known."""
        kind = self.body.get("thinking", {}).get("type")
        old = self.generation is not None and self.generation <= LAST_WITH_SAMPLING
        if old and kind is not None and kind != "disabled" and (
                self.forces or kind == "enabled" and refuses_budget(self.body)):
            self.body = without_keys(self.body, "thinking")
        if old and "thinking" not in self.body and thinking_wish(self.asked, False).mode == "on":
            self.drop("reasoning_effort", "reasoning", "thinking")

    # The rest

    def add_sampling(self) -> None:
        """Temperature and the like, where the model takes them; up to 4.6 not while thinking."""
        thinks = self.body.get("thinking", {}).get("type") in ("adaptive", "enabled")
        generation = self.generation
        known = generation is not None
        taken = {name: self.asked[name] for name in SAMPLING_FIELDS if name in self.asked}
        if not self.rules.sampling or known and thinks:
            keeps_top_p = self.rules.sampling and taken.get("top_p", 0) >= 0.95
            taken = {"top_p": taken["top_p"]} if keeps_top_p else {}
        elif known and generation >= ONE_SAMPLING_FIELD and "temperature" in taken:
            taken.pop("top_p", None)
        if "temperature" in taken:
            taken["temperature"] = min(taken["temperature"], 1)
        self.body.update(taken)
        self.drop(*(name for name in SAMPLING_FIELDS
                    if name not in taken and not is_neutral(name, self.asked.get(name))))

    def add_rest(self, caches: bool) -> None:
        """Stop sequences, the user, automatic caching, the stream."""
        if self.asked.get("stop"):
            self.body["stop_sequences"] = self.asked["stop"]
        user = self.asked.get("safety_identifier") or self.asked.get("user")
        if user:
            self.body["metadata"] = {"user_id": user}
        marked = self.history.marked or any("cache_control" in tool.tool for tool in self.tools)
        if caches and not marked:
            self.body["cache_control"] = {"type": "ephemeral"}
        self.body["stream"] = True

    def ignored_names(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of all that had no effect: sorted, fit for a header, not too many."""
        unknown = {name for name, value in values.items()
                   if value is not None and name not in SILENT_FIELDS
                   and (name not in CHAT_FIELDS or name == "modalities")
                   and not is_neutral(name, value)}
        names = sorted(name for name in unknown | self.ignored if PLAIN_NAME.fullmatch(name))
        return tuple(names[:MAX_IGNORED_NAMES])


def translate_chat(
    values: Mapping[str, Any],
    remembered: Callable[[str], Optional[Sequence[dict]]] = lambda tool_id: None,
    model: str = "",
    caches: bool = False,
) -> ChatRequest:
    """A body of /v1/chat/completions as one of /v1/messages.  Raises ChatError.

    ``remembered`` gives the signed thinking in front of a tool call, if it is known.
    ``model`` is the id whose rules hold, with its ``-thinking`` suffix if that is
    wanted, where the client's own is another name for it; the body has the client's.
    ``caches``: the upstream knows automatic caching, used where the client marked nothing.

    >>> translate_chat({"model": "claude-haiku-4-5", "messages": [
    ...     {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    ...     "temperature": 1.5, "seed": 7}) == ChatRequest(
    ...     {"model": "claude-haiku-4-5", "max_tokens": 64000,
    ...      "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    ...      "system": [{"type": "text", "text": "Be brief."}], "temperature": 1,
    ...      "stream": True},
    ...     stream=False, include_usage=False, ignored=("seed",), betas=(), json_tool="")
    True
    """
    asked = parse_fields(values)
    history = ChatHistory(remembered)
    parsed_within("messages", partial(parsed_items, parse=history.read), values["messages"])
    draft = ChatDraft(asked, history, model or asked["model"])
    draft.add_messages()
    draft.add_tools()
    draft.add_format()
    draft.add_tool_members()
    draft.add_system()
    draft.add_thinking()
    draft.add_sampling()
    draft.add_rest(caches)
    return ChatRequest(
        body=draft.body,
        stream=asked.get("stream", False),
        include_usage=bool(asked.get("stream_options", {}).get("include_usage")),
        ignored=draft.ignored_names(values),
        betas=tuple(sorted(history.betas)),
        json_tool=draft.json_tool,
        custom_tools=tuple(tool.tool["name"] for tool in draft.tools if tool.custom),
        legacy=draft.legacy,
    )


# -- answers

REFUSED = "The model refused to go on with this request."

FINISH_REASONS = {
    "end_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "refusal": "content_filter",
    "stop_sequence": "stop",
}

# Compact and ASCII, as json.dumps does it, without building an encoder each time.
CHAT_JSON = json.JSONEncoder(separators=(",", ":")).encode


def finish_reason(stop_reason: Any, has_calls: bool) -> str:
    """Why an answer ended, in OpenAI's words; ``has_calls``: tool calls are in it.

    A reason not known here says nothing about calls, and a call that is not
    announced would never be made.

    >>> finish_reason("end_turn", False), finish_reason("tool_use", True)
    ('stop', 'tool_calls')
    """
    if isinstance(stop_reason, str) and stop_reason in FINISH_REASONS:
        return FINISH_REASONS[stop_reason]
    return "tool_calls" if has_calls else "stop"


def refusal_text(stop_details: Any) -> str:
    """What a refusal says of itself, or a fixed sentence."""
    told = stop_details.get("explanation") if isinstance(stop_details, dict) else None
    return told if isinstance(told, str) and told else REFUSED


def chat_usage(usage: Any) -> dict:
    """Token counts in OpenAI's shape: there the prompt holds what was read from a cache.

    An answer made in several rounds (a compaction, a fallback) lists them as
    ``iterations``, and the counts beside that list are then not the sum.

    >>> chat_usage({"input_tokens": 2, "cache_read_input_tokens": 5, "output_tokens": 3})[
    ...     "prompt_tokens"]
    7
    """
    usage = usage if isinstance(usage, dict) else {}
    listed = usage.get("iterations")
    rounds = [entry for entry in listed if isinstance(entry, dict)] if isinstance(
        listed, list) else []
    counts = [Usage() for _ in rounds or [usage]]
    for count, entry in zip(counts, rounds or [usage]):
        count.update(entry)
    read, written = (sum(count.cache_read for count in counts),
                     sum(count.cache_write for count in counts))
    prompt = sum(count.input for count in counts) + read + written
    completion = sum(count.output for count in counts)
    reasoning = sum(map(thinking_tokens, rounds)) or thinking_tokens(usage)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def thinking_tokens(usage: Mapping[str, Any]) -> int:
    """How many of the output tokens were thinking, 0 where that is not told."""
    details = usage.get("output_tokens_details")
    told = Usage()
    if isinstance(details, dict):
        told.update({"output_tokens": details.get("thinking_tokens")})
    return told.output


def is_signed(block: Mapping[str, Any]) -> bool:
    """Whether a thinking block can be given back to the one who made it."""
    key = {"thinking": "signature", "redacted_thinking": "data"}.get(block_type(block) or "", "")
    return isinstance(block.get(key), str) and bool(block[key])


def arguments_text(value: Any) -> str:
    """A tool's whole input as the text that OpenAI calls its arguments.

    What was no JSON when it was collected (:class:`CollectedBlock`) comes out as it was.

    >>> arguments_text({"a": [1]}), arguments_text(None)
    ('{"a":[1]}', '{}')
    """
    if isinstance(value, dict) and list(value) == [CollectedBlock.INVALID_INPUT]:
        text = value[CollectedBlock.INVALID_INPUT]
        if isinstance(text, str):
            return text
    return "{}" if value is None else json_text(value) or "{}"


def custom_input(arguments: str) -> str:
    """What a custom tool gets: the one string in the arguments that stand for it."""
    value = json_object(arguments.encode("utf-8", "replace"))
    text = (value or {}).get("input")
    return text if isinstance(text, str) else arguments


class CallShape(NamedTuple):
    """How tool calls go down, which is the request's to say.

    ``json_tool`` is the tool whose input is the answer's text (a ``response_format``
    for models that have none), ``custom`` the names of tools that take bare text,
    ``old`` says that the request had ``functions``: one call, in another place.
    """

    json_tool: str = ""
    custom: Container[str] = frozenset()
    old: bool = False

    @property
    def finish(self) -> str:
        """The finish_reason of an answer that calls."""
        return "function_call" if self.old else "tool_calls"


def begun_call(block: Mapping[str, Any], shape: CallShape, index: int, completion_id: str) -> dict:
    """Index, id, name and kind of the call in a tool_use block; a missing id is made up.

    Tool results name their call by that id, so it has to be there, and the same
    however the answer went down.
    """
    call_id, name = block.get("id"), block.get("name")
    name = name if isinstance(name, str) else ""
    if not isinstance(call_id, str) or not call_id:
        call_id = "call_%s_%d" % (completion_id, index)
    return {"index": index, "id": call_id, "name": name, "is_custom": name in shape.custom}


def call_delta(call: Mapping[str, Any], shape: CallShape, is_first: bool) -> dict:
    """The delta of a tool call with nothing in it yet: the first one names the call.

    >>> call_delta({"index": 0, "is_custom": False}, CallShape(), False)
    {'tool_calls': [{'index': 0, 'function': {'arguments': ''}}]}
    """
    if shape.old:
        named = {"name": call["name"]} if is_first else {}
        return {"function_call": dict(named, arguments="")}
    kind, place = ("custom", "input") if call["is_custom"] else ("function", "arguments")
    said = {"name": call["name"], place: ""} if is_first else {place: ""}
    named = {"id": call["id"], "type": kind} if is_first else {}
    return {"tool_calls": [{"index": call["index"], **named, kind: said}]}


def texts_of(blocks: Sequence[dict], kind: str, member: str) -> list[str]:
    """What the blocks of one type say, without those that say nothing."""
    return [block[member] for block in blocks
            if block_type(block) == kind and isinstance(block.get(member), str) and block[member]]


FENCED = re.compile(r"\s*```(?:json|JSON)?[ \t]*\r?\n(.*?)\r?\n?```\s*", re.DOTALL)


def without_fence(text: str) -> str:
    """JSON without the Markdown fence that models like to put around it.

    >>> without_fence("```json\\n{}\\n```")
    '{}'
    """
    match = FENCED.fullmatch(text)
    return match.group(1) if match else text


def chat_parts(blocks: Sequence[dict], shape: CallShape,
               completion_id: str) -> tuple[str, list[dict]]:
    """The text of an answer and its tool calls; the first use of the json_tool is the text."""
    text = "".join(texts_of(blocks, "text", "text"))
    calls: list[dict] = []
    is_answered = False
    for block in blocks:
        if block_type(block) != "tool_use":
            continue
        call = begun_call(block, shape, len(calls), completion_id)
        arguments = arguments_text(block.get("input"))
        if call["name"] and call["name"] == shape.json_tool:
            text, is_answered = text if is_answered else arguments, True
        elif call["is_custom"] and not shape.old:
            calls.append({"id": call["id"], "type": "custom", "custom": {
                "name": call["name"], "input": custom_input(arguments)}})
        else:
            calls.append({"id": call["id"], "type": "function", "function": {
                "name": call["name"], "arguments": arguments}})
    return text, calls


def chat_completion(message: Mapping[str, Any], completion_id: str, created: int, model: str,
                    json_tool: str = "", custom_tools: Container[str] = frozenset(),
                    old_functions: bool = False, json_object_only: bool = False) -> dict:
    """A whole message as one chat.completion object.

    ``json_object_only``: JSON was asked for, so a fence around it goes.

    >>> message = {"content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
    >>> chat_completion(message, "chatcmpl-1", 0, "m")["choices"][0]["message"]
    {'role': 'assistant', 'content': 'Hi', 'refusal': None}
    """
    shape = CallShape(json_tool, custom_tools, old_functions)
    listed = message.get("content")
    blocks = [block for block in listed if isinstance(block, dict)] if isinstance(
        listed, list) else []
    text, calls = chat_parts(blocks, shape, completion_id)
    reason = message.get("stop_reason")
    refusal = refusal_text(message.get("stop_details")) if reason == "refusal" else None
    content = without_fence(text) if json_object_only else text
    answer: dict[str, Any] = {
        "role": "assistant", "content": None if calls and not text else content,
        "refusal": refusal}
    thoughts = texts_of(blocks, "thinking", "thinking")
    if thoughts:
        answer["reasoning_content"] = "\n\n".join(thoughts)
    finish = finish_reason(reason, bool(calls))
    if calls and old_functions:
        answer["function_call"] = calls[0]["function"]
    elif calls:
        answer["tool_calls"] = calls
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": answer, "logprobs": None,
                     "finish_reason": shape.finish if finish == "tool_calls" else finish}],
        "usage": chat_usage(message.get("usage")),
        "system_fingerprint": None,
    }


# -- errors

# Anthropic's types to OpenAI's ``type`` and ``code``.  The SDKs take the class of
# what they raise from the status, and show these two.
OPENAI_ERRORS: Mapping[str, tuple[str, Optional[str]]] = {
    "api_error": ("server_error", None),
    "authentication_error": ("authentication_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "conflict_error": ("invalid_request_error", None),
    "invalid_request_error": ("invalid_request_error", None),
    "not_found_error": ("invalid_request_error", None),
    "overloaded_error": ("server_error", "overloaded"),
    "permission_error": ("permission_error", None),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "timeout_error": ("server_error", "timeout"),
}
# Clients that shorten a conversation when it is too long look for this code.
TOO_LONG = re.compile(
    r"prompt is too long|exceeds? (?:the )?(?:model's )?context|maximum context length"
    r"|context[ _](?:length|window)[ _]exceed", re.IGNORECASE)


def told_message(value: Mapping[str, Any]) -> str:
    """The words of an error: Anthropic's and OpenAI's place for them, then others'."""
    error = value.get("error")
    places = [error.get("message") if isinstance(error, dict) else error,
              value.get("message"), value.get("detail")]
    return next((text for text in places if isinstance(text, str) and text), "")


def openai_status(status: int) -> int:
    """529 is Anthropic's own; many OpenAI clients retry 503 and do not know it."""
    return 503 if status == 529 else status


def openai_error(status: int, error_type: str, message: str, param: Optional[str] = None,
                 code: Optional[str] = None) -> dict:
    """An error in OpenAI's shape; ``error_type`` is Anthropic's, or already OpenAI's.

    >>> openai_error(529, "overloaded_error", "busy")["error"]["type"]
    'server_error'
    """
    usual = "server_error" if status >= 500 else "invalid_request_error"
    kind, usual_code = OPENAI_ERRORS.get(error_type, (error_type or usual, None))
    if status == 402 or status in (400, 403, 429) and CREDIT_USED_UP.search(message):
        kind, usual_code = OPENAI_ERRORS["billing_error"]
    elif status in (400, 413) and TOO_LONG.search(message):
        usual_code = "context_length_exceeded"
    elif status == 404 and "model" in message.lower():
        usual_code = "model_not_found"
    elif kind == "server_error" and status < 500:
        kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param,
                      "code": usual_code if code is None else code}}


def openai_error_of(status: int, body: bytes) -> dict:
    """The error in an upstream's body, whoever's shape it has, in OpenAI's; its words stay."""
    value: Any = json_object(body) or {}
    error = value.get("error")
    error = error if isinstance(error, dict) else {}
    told = {name: error[name] for name in ("type", "param", "code")
            if isinstance(error.get(name), str) and error[name]}
    message = told_message(value) or "upstream answered with status %d" % status
    return openai_error(status, told.get("type") or ERROR_TYPES.get(status, ""), message,
                        told.get("param"), told.get("code"))


# -- limits


def openai_duration(seconds: float) -> str:
    """A length of time as OpenAI's headers write it: Go's durations.

    >>> [openai_duration(seconds) for seconds in (0.0, 0.25, 12.0, 360.0, 3661.2)]
    ['0s', '250ms', '12s', '6m0s', '1h1m2s']
    """
    if 0 < seconds < 1:
        return "%dms" % max(1, math.ceil(seconds * 1000))
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    spelt = "%dh" % hours if hours else ""
    return spelt + ("%dm" % minutes if hours or minutes else "") + "%ds" % rest


def openai_rate_headers(limits: Mapping[str, RateLimit]) -> list[tuple[str, str]]:
    """``x-ratelimit-*`` pairs for what an upstream told of its limits (:func:`rate_limits`)."""
    pairs = []
    for name in ("requests", "tokens"):
        known = limits.get(name, RateLimit())
        for member, value in (("limit", known.limit), ("remaining", known.remaining)):
            if value is not None:
                pairs.append(("x-ratelimit-%s-%s" % (member, name), "%d" % value))
        if known.reset_in is not None:
            pairs.append(("x-ratelimit-reset-" + name, openai_duration(known.reset_in)))
    return pairs


# -- chunks

# The event stream of a chat answer has no names of events, only data; comments are
# skipped by both SDK families, so a comment is what keeps the connection alive.
PING_COMMENT = b": ping\n\n"
CHAT_DONE = b"data: [DONE]\n\n"


class CallFrames:
    """One tool call while the pieces of its arguments come.

    ``head`` and ``tail`` are the bytes around a piece; ``own`` is the input that its
    block began with, which holds where no piece comes.  ``is_custom`` pieces are
    JSON around the text that is wanted: they go down at the end, as that text.
    """

    __slots__ = ("_head", "_tail", "_own", "_said", "_kept")

    def __init__(self, head: bytes, tail: bytes, own: Any, is_custom: bool) -> None:
        self._head = head
        self._tail = tail
        self._own = own
        self._said = False
        self._kept: Optional[list[str]] = [] if is_custom else None

    def feed(self, delta: dict) -> bytes:
        """The frame of one input_json_delta."""
        piece = delta.get("partial_json")
        if delta.get("type") != "input_json_delta" or not isinstance(piece, str) or not piece:
            return b""
        if not self._said:
            self._said = not piece.isspace()
        if self._kept is not None:
            self._kept.append(piece)
            return b""
        return self._frame(piece)

    def close(self) -> bytes:
        """The frame that is due at the end of the block, if any."""
        text = "" if self._said else arguments_text(self._own)
        if self._kept is not None:
            text = custom_input(text or "".join(self._kept))
        return self._frame(text) if text else b""

    def _frame(self, text: str) -> bytes:
        return self._head + CHAT_JSON(text).encode("ascii") + self._tail


class ChatStream:
    """Message stream events in, chat.completion.chunk frames out.

    Once ``message_stop`` or an error has passed ``complete`` is true, and ``feed``
    gives nothing any more: ``finish()`` then gives the end.  Where the stream ends
    without that, ``error()`` does.  To call one after the other, or twice, is safe:
    the end is said once, and ``[DONE]`` is the last of it, as OpenAI's own is.
    ``failure`` is the error event, where one came.  A known event that is no JSON
    is an error, too: what lacks a piece must not look whole.

    >>> chat = ChatStream("chatcmpl-1", 0, "m", False)
    >>> _ = chat.feed(SseEvent("message_start", b'{"message": {}}'))
    >>> data = b'{"index":0,"content_block":{"type":"text"}}'
    >>> _ = chat.feed(SseEvent("content_block_start", data))
    >>> data = b'{"index":0,"delta":{"type":"text_delta","text":"Hi"}}'
    >>> json.loads(chat.feed(SseEvent("content_block_delta", data))[5:])["choices"][0]["delta"]
    {'content': 'Hi'}
    """

    NAME_SAYS_ALL = frozenset(["error", "message_stop"])

    def __init__(self, completion_id: str, created: int, model: str, include_usage: bool,
                 json_tool: str = "", custom_tools: Container[str] = frozenset(),
                 old_functions: bool = False) -> None:
        self.complete = False
        self.content_started = False
        self.failure: Optional[dict] = None
        self.stop_reason = ""
        self.usage = Usage()
        self.tool_ids: list[str] = []
        self._shape = CallShape(json_tool, custom_tools, old_functions)
        self._ended = False
        self._begun = False
        self._fed_bytes = 0
        self._completion_id = completion_id
        self._include_usage = include_usage
        self._told_usage: dict = {}
        self._stop_details: Any = None
        self._blocks: dict[int, Callable[[dict], bytes]] = {}
        self._calls: dict[int, CallFrames] = {}
        self._calls_count = 0
        self._thinking: list[CollectedBlock] = []
        self._thought_last: Optional[CollectedBlock] = None
        # Text beside the answer of a json_tool would spoil it: kept until the end,
        # and None once that answer has begun.
        self._kept_text: Optional[list[str]] = []
        self._prepare(completion_id, created, model)

    def _prepare(self, completion_id: str, created: int, model: str) -> None:
        """The bytes that are the same in every frame."""
        begin = {"id": completion_id, "object": "chat.completion.chunk", "created": created,
                 "model": model, "system_fingerprint": None}
        self._begin = b"data: " + CHAT_JSON(begin).encode("ascii")[:-1]
        usage = b',"usage":null' if self._include_usage else b""
        self._head = self._begin + b',"choices":[{"index":0,"delta":'
        self._end = b"}]" + usage + b"}\n\n"
        self._tail = b',"logprobs":null,"finish_reason":null' + self._end
        self._text_head = self._head + b'{"content":'
        self._text_tail = b"}" + self._tail
        self._thinking_head = self._head + b'{"reasoning_content":'

    @property
    def thinking_blocks(self) -> list[dict]:
        """The signed thinking blocks so far, to be given back with the calls' results."""
        return [value for value in (block.value() for block in self._thinking)
                if is_signed(value)]

    def feed(self, event: SseEvent) -> bytes:
        """The frames of one event; b"" for none."""
        take = self.TAKERS.get(event.type)
        if take is None or self.complete:
            return b""
        # Thinking and custom calls are kept: what came bounds what is kept.
        self._fed_bytes += len(event.data)
        if self._fed_bytes > MAX_COLLECTED_BYTES:
            return self._broken("the upstream's stream is larger than %d bytes"
                                % MAX_COLLECTED_BYTES)
        value = event_object(event.data)
        if value is None and event.type not in self.NAME_SAYS_ALL:
            return self._broken("a %s event of the upstream's stream is not a JSON object"
                                % event.type)
        return take(self, value or {})

    def finish(self) -> bytes:
        """What ends a complete stream: the usage where it was asked for, ``[DONE]``."""
        if self._ended or not self.complete:
            return b""
        self._ended = True
        if not self._include_usage:
            return CHAT_DONE
        usage = CHAT_JSON(chat_usage(self._told_usage)).encode("ascii")
        return self._begin + b',"choices":[],"usage":' + usage + b"}\n\n" + CHAT_DONE

    def error(self, status: int, error_type: str, message: str) -> bytes:
        """The frames that end a broken stream; of a whole one, those that end it well."""
        if self.complete:
            return self.finish()
        self.complete = self._ended = True
        body = openai_error(status, error_type, message)
        return b"data: " + CHAT_JSON(body).encode("ascii") + b"\n\n" + CHAT_DONE

    def _broken(self, message: str) -> bytes:
        return self._take_error({"type": "error",
                                 "error": {"type": "api_error", "message": message}})

    def _delta(self, delta: dict) -> bytes:
        return self._head + CHAT_JSON(delta).encode("ascii") + self._tail

    def _role(self) -> bytes:
        """The first frame says who speaks, and no other does."""
        if self._begun:
            return b""
        self._begun = True
        return self._delta({"role": "assistant", "content": ""})

    def _take_message_start(self, value: dict) -> bytes:
        message = value.get("message")
        if isinstance(message, dict) and not self._begun:
            self._take_usage(message.get("usage"))
        return self._role()

    def _take_usage(self, usage: Any) -> None:
        """Counts are cumulative: what comes replaces what was."""
        overlay(self._told_usage, usage)
        self.usage.update(usage)

    def _take_block_start(self, value: dict) -> bytes:
        self.content_started = True
        index, block = value.get("index"), value.get("content_block")
        if type(index) is not int or not isinstance(block, dict):
            return b""
        role, closed = self._role(), self._close_call(index)
        self._blocks.pop(index, None)
        kind = block_type(block)
        if kind == "text":
            self._blocks[index] = self._text_delta
            return role + closed + self._text_delta(dict(block, type="text_delta"))
        if kind in ("thinking", "redacted_thinking"):
            return role + closed + self._start_thinking(index, block)
        if kind == "tool_use":
            return role + closed + self._start_call(index, block)
        return role + closed

    def _take_block_delta(self, value: dict) -> bytes:
        index, delta = value.get("index"), value.get("delta")
        take = self._blocks.get(index) if type(index) is int else None
        return take(delta) if take is not None and isinstance(delta, dict) else b""

    def _text_delta(self, delta: dict) -> bytes:
        text = delta.get("text")
        if delta.get("type") != "text_delta" or not isinstance(text, str) or not text:
            return b""
        if self._shape.json_tool:
            if self._kept_text is not None:
                self._kept_text.append(text)
            return b""
        return self._text_head + CHAT_JSON(text).encode("ascii") + self._text_tail

    def _start_thinking(self, index: int, block: dict) -> bytes:
        thought = CollectedBlock(block)
        self._thinking.append(thought)
        if block_type(block) != "thinking":
            return b""
        self._blocks[index] = partial(self._thinking_delta, thought)
        return self._thinking_text(thought, block.get("thinking"))

    def _thinking_delta(self, thought: CollectedBlock, delta: dict) -> bytes:
        thought.feed(delta)
        if delta.get("type") != "thinking_delta":
            return b""
        return self._thinking_text(thought, delta.get("thinking"))

    def _thinking_text(self, thought: CollectedBlock, text: Any) -> bytes:
        """A piece of thinking; between the thoughts of two blocks is an empty line."""
        if not isinstance(text, str) or not text:
            return b""
        if thought is not self._thought_last:
            text = text if self._thought_last is None else "\n\n" + text
            self._thought_last = thought
        return self._thinking_head + CHAT_JSON(text).encode("ascii") + self._text_tail

    def _start_call(self, index: int, block: dict) -> bytes:
        call = begun_call(block, self._shape, self._calls_count, self._completion_id)
        if call["name"] and call["name"] == self._shape.json_tool:
            if self._kept_text is None:
                return b""  # a second answer behind the first would spoil both
            self._kept_text = None
            self._open(index, CallFrames(self._text_head, self._text_tail, block.get("input"), False))
            return b""
        if self._shape.old and self._calls_count:
            return b""
        self._calls_count += 1
        self.tool_ids.append(call["id"])
        delta = call_delta(call, self._shape, True)
        again = CHAT_JSON(call_delta(call, self._shape, False)).encode("ascii")
        # The one empty string in it is the place of the pieces.
        before, _, after = again.rpartition(b'""')
        self._open(index, CallFrames(self._head + before, after + self._tail, block.get("input"),
                                   call["is_custom"]))
        return self._delta(delta)

    def _open(self, index: int, call: CallFrames) -> None:
        self._calls[index] = call
        self._blocks[index] = call.feed

    def _take_block_stop(self, value: dict) -> bytes:
        index = value.get("index")
        if type(index) is not int:
            return b""
        self._blocks.pop(index, None)
        return self._close_call(index)

    def _close_call(self, index: int) -> bytes:
        call = self._calls.pop(index, None)
        return call.close() if call is not None else b""

    def _take_message_delta(self, value: dict) -> bytes:
        self._take_usage(value.get("usage"))
        delta = value.get("delta")
        if isinstance(delta, dict):
            if isinstance(delta.get("stop_reason"), str):
                self.stop_reason = delta["stop_reason"][:MAX_TOLD_CHARS]
            self._stop_details = delta.get("stop_details") or self._stop_details
        return b""

    def _take_message_stop(self, value: dict) -> bytes:
        self.complete = True
        frames = [self._role(), *map(self._close_call, sorted(self._calls))]
        if self._kept_text:
            frames.append(self._delta({"content": "".join(self._kept_text)}))
        if self.stop_reason == "refusal":
            frames.append(self._delta({"refusal": refusal_text(self._stop_details)}))
        reason = finish_reason(self.stop_reason, bool(self._calls_count))
        last = CHAT_JSON(self._shape.finish if reason == "tool_calls" else reason)
        frames.append(self._head + b'{},"logprobs":null,"finish_reason":' + last.encode("ascii")
                      + self._end)
        return b"".join(frames)

    def _take_error(self, value: dict) -> bytes:
        self.failure = value
        error = value.get("error")
        told = error.get("type") if isinstance(error, dict) else None
        kind = told if isinstance(told, str) else "api_error"
        return self.error(STATUS_OF_TYPE.get(kind, 500), kind, told_message(value)
                          or "the upstream ended its stream with an error")

    TAKERS: Mapping[str, Callable[[Any, dict], bytes]] = {
        "message_start": _take_message_start,
        "content_block_start": _take_block_start,
        "content_block_delta": _take_block_delta,
        "content_block_stop": _take_block_stop,
        "message_delta": _take_message_delta,
        "message_stop": _take_message_stop,
        "error": _take_error,
    }


# ---- 16. Engine --------------------------------------------------------------


class Route(NamedTuple):
    """What answers a path with a method; ``open`` needs no key unless the mode is strict.

    A ``page`` is for people, so that links of other sites may lead to it.
    """

    name: str
    handler: str
    open: bool = False
    page: bool = False


# Contract section 4.  "GET" answers HEAD as well.
ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/": {"GET": Route("probe", "answer_probe", open=True, page=True)},
    "/api/hello": {"GET": Route("probe", "answer_probe", open=True)},
    "/healthz": {"GET": Route("healthz", "answer_healthz", open=True)},
    "/health": {"GET": Route("health", "answer_health", open=True)},
    "/v1/messages": {"POST": Route("messages", "forward_message")},
    "/v1/messages/count_tokens": {"POST": Route("count_tokens", "forward_count")},
    "/v1/models": {"GET": Route("models", "answer_models", open=True)},
    "/v1/models/claude": {"GET": Route("models", "answer_models", open=True)},
    "/v1/providers": {"GET": Route("providers", "answer_providers", open=True)},
    "/v1/chat/completions": {"POST": Route("chat_completions", "forward_chat")},
    "/metrics": {"GET": Route("metrics", "answer_metrics")},
    "/gateway/status": {"GET": Route("status", "answer_status")},
    "/gateway/requests": {"GET": Route("requests", "answer_requests")},
    "/dashboard": {"GET": Route("dashboard", "answer_dashboard", open=True, page=True)},
}
# Those that are answered with a message, whose accounts they speak for.
MESSAGE_ROUTES = frozenset(["messages", "chat_completions"])
MODEL_ROUTES = {"GET": Route("model", "answer_model", open=True)}
TELEMETRY_ROUTES = {"POST": Route("telemetry", "answer_telemetry")}
# Not TRACE, whose answer would show the account's key, and not CONNECT.
PASSAGE_ROUTES = {method: Route("passage", "forward_as_it_is")
                  for method in ("DELETE", "GET", "PATCH", "POST", "PUT")}
# Methods that may be done twice (RFC 9110 section 9.2.2): a batch must not be.
REPEATABLE_METHODS = frozenset(["DELETE", "GET", "HEAD", "PUT"])
PATH_PREFIX = "/claude_api"
# A version before the path's own, and paths that have none: a client's base URL ends in /v1.
DOUBLED = re.compile("^(?:/v1)+(?=/v1/)")
UNVERSIONED = ("/", "/api/hello", "/healthz", "/health")
# What may be passed on to an upstream: no empty or dot segments, and encoded only
# what needs it: nothing that two parsers could read in two ways.
SEGMENTS = (r"(?:/(?!\.{1,2}(?:/|$))(?:[A-Za-z0-9._~!$&'()*+,;=:@-]"
            r"|%(?![01]|2[DdEeFf]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEeFf])"
            r"[0-9A-Fa-f]{2})+)+/?")
PASSAGE_PATH = re.compile("/v1" + SEGMENTS)
TELEMETRY_PATH = re.compile("(?:/v1)?/api/event_logging" + SEGMENTS)


def plain_path(path: str) -> tuple[str, bool]:
    """A path without the optional prefix and the doubled version; whether it was doubled.

    >>> plain_path("/claude_api/v1/v1/messages")
    ('/v1/messages', True)
    """
    if path in ROUTES:
        return path, False
    if path == PATH_PREFIX or path.startswith(PATH_PREFIX + "/"):
        path = path[len(PATH_PREFIX):] or "/"
    plain = DOUBLED.sub("", path)
    if plain == "/v1" or plain[3:] in UNVERSIONED and plain.startswith("/v1"):
        return plain[3:] or "/", True
    return plain, plain != path


def find_routes(path: str) -> Optional[Mapping[str, Route]]:
    """The routes of a plain path by method, or None where there is nothing."""
    found = ROUTES.get(path) or ROUTES.get(path[:-1] if path.endswith("/") else path)
    if found is not None:
        return found
    if path.startswith("/v1/models/"):
        return MODEL_ROUTES
    if TELEMETRY_PATH.fullmatch(path):
        return TELEMETRY_ROUTES
    return PASSAGE_ROUTES if PASSAGE_PATH.fullmatch(path) else None


# Nobody on the way is to buffer a stream.
STREAM_HEADERS = (("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"))
# What is told of this moment, or of one key's requests.
NEVER_STORED = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
CHALLENGE = (("WWW-Authenticate", 'Bearer realm="claude_gateway"'),)


class Page(NamedTuple):
    """What a browser is shown: HTML, and the headers that fence it in."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


NO_PAGE = Page(b"<!DOCTYPE html><title>claude_gateway</title><p>This gateway has no page.\n")


class Door:
    """How a client is spoken to; this one in the words of the Messages API.

    A door knows the request and the provider that it is for, and nothing else.
    """

    ping = encode_sse_event("ping", {"type": "ping"})
    stream_type = "text/event-stream"
    # What a stream that is relayed is sent with, and the upstream's headers that go for it.
    stream_headers: Sequence[tuple[str, str]] = STREAM_HEADERS
    replaced_headers = lower_names(stream_headers)
    # Whether the client wants no stream although one is asked for.
    collects = False
    # Headers of the client that mean nothing upstream, by how they begin.
    dropped_prefixes: tuple[str, ...] = ()
    passes_query = True

    # Told to the client beside who answered.
    headers: Sequence[tuple[str, str]] = ()
    # What the body needs in ``anthropic-beta``.
    betas: tuple[str, ...] = ()

    def refusal(self, error: GatewayError, request_id: str) -> dict:
        """The body of an error of ours."""
        return anthropic_error(error.type, error.message, request_id)

    def passed_on(self, response: HttpResponse, wall_clock: Callable[[], float]) -> HttpResponse:
        """An upstream's answer as the client is to see it."""
        return response

    def message(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message that was collected."""
        return message

    def whole(self, body: bytes, message: Mapping[str, Any]) -> bytes:
        """A message that came whole: its bytes, and what they say."""
        return body

    def credentials(self, provider: Provider,
                    own: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """The client's own credential as a provider takes it."""
        return own

    def relay(self, exchange: Exchange, upstream: UpstreamResponse, secret: str,
              is_messages: bool) -> RelayBody:
        """The body of an answer that is relayed as it comes."""
        return RelayBody(exchange, upstream, secret, is_messages)

    def last_words(self, error: Mapping[str, Any]) -> bytes:
        """What ends a stream that failed: ``error`` is an error body in the door's shape."""
        return encode_sse_event("error", dict({"type": "error"}, **error))


MESSAGES_DOOR = Door()
CHAT_PATH = "/v1/chat/completions"


class ChatDoor(Door):
    """The words of OpenAI's chat completions (section 15), for one request.

    ``chat`` is the request in one provider's terms, None until it is understood;
    ``owner`` begins the names under which its thinking is remembered.
    """

    ping = PING_COMMENT
    stream_type = "text/event-stream; charset=utf-8"
    stream_headers = (*STREAM_HEADERS, ("Content-Type", stream_type))
    replaced_headers = lower_names(stream_headers)
    dropped_prefixes = ("openai-",)
    passes_query = False

    def __init__(self, completion_id: str, created: int, memory: ToolMemory, owner: str = "",
                 chat: Optional[ChatRequest] = None, wants_json: bool = False) -> None:
        self._completion_id = completion_id
        self._created = created
        self._memory = memory
        self._owner = owner
        self._chat = chat
        self._wants_json = wants_json
        if chat is not None:
            self.collects = not chat.stream
            self.betas = chat.betas
            self.headers = [("X-Gateway-Ignored", ", ".join(chat.ignored))] if chat.ignored else ()

    def owned(self, exchange: Exchange) -> ChatDoor:
        """The same door for a client that is known: what is remembered is its own.

        Some vendors number their calls, so that ids of two clients may be the same.
        """
        owner = exchange.record.key and "key " + exchange.record.key or "own " + " ".join(
            value for _, value in exchange.admission.own_credentials)
        return ChatDoor(self._completion_id, self._created, self._memory,
                        fingerprint(owner)[:16] + " ")

    def understood(self, chat: ChatRequest, wants_json: bool) -> ChatDoor:
        """The same door for the request that it turned out to be, without its large parts."""
        return ChatDoor(self._completion_id, self._created, self._memory, self._owner,
                        chat._replace(body={"model": chat.body["model"]}), wants_json)

    def refusal(self, error: GatewayError, request_id: str) -> dict:
        """The body of an error of ours; ChatError knows the field at fault."""
        return openai_error(error.status, error.type, error.message,
                            getattr(error, "param", None) or None,
                            getattr(error, "code", None) or None)

    def passed_on(self, response: HttpResponse, wall_clock: Callable[[], float]) -> HttpResponse:
        """An answer with OpenAI's limit headers; an error in its shape, under its status."""
        response.headers.extend(openai_rate_headers(
            rate_limits(Headers(response.headers), wall_clock())))
        if response.status < 400 or not isinstance(response.body, bytes):
            return response
        told = openai_error_of(response.status, response.body)
        is_unpaid = told["error"]["code"] == "insufficient_quota"
        status = 402 if is_unpaid else openai_status(response.status)
        pairs = pairs_without(response.headers, ("content-type",))
        return json_response(status, told, pairs).then(response.close)

    def message(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message as a chat.completion; its signed thinking is kept for the next turn."""
        assert self._chat is not None
        content = message.get("content")
        blocks = [block for block in content if isinstance(block, dict)] if isinstance(
            content, list) else []
        calls = [block["id"] for block in blocks
                 if block.get("type") == "tool_use" and isinstance(block.get("id"), str)]
        self.remember(calls, [block for block in blocks if is_signed(block)])
        return chat_completion(
            message, self._completion_id, self._created, self._chat.body["model"],
            self._chat.json_tool, self._chat.custom_tools, self._chat.legacy, self._wants_json)

    def whole(self, body: bytes, message: Mapping[str, Any]) -> bytes:
        """A message that came whole although a stream was asked for.

        What is no message, such as an error under status 200, must not look like an empty one.
        """
        if not isinstance(message.get("content"), list):
            raise UpstreamMalformed("upstream answered with something that is not a message")
        if not self.collects:
            raise UpstreamMalformed("upstream answered without the stream that was asked for")
        return plain_json(self.message(message))

    def credentials(self, provider: Provider,
                    own: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """OpenAI's SDKs put any key into Authorization; an API key goes where it is taken.

        Anthropic's OAuth tokens, which are Bearer there, too, say what they are.
        """
        def taken(name: str, value: str) -> tuple[str, str]:
            name = name.lower()
            key = bearer_credential(value) if name == "authorization" else ""
            if provider.credential_header != "x-api-key" or not key or "-oat" in key[:16]:
                return name, value
            return "x-api-key", key

        # One key in both places goes up once.
        return list(dict.fromkeys(taken(name, value) for name, value in own))

    def relay(self, exchange: Exchange, upstream: UpstreamResponse, secret: str,
              is_messages: bool) -> RelayBody:
        """Chunks, made of a stream that we can read."""
        if not is_messages:
            raise UpstreamMalformed("upstream answered with a stream that cannot be read")
        assert self._chat is not None
        chat = ChatStream(self._completion_id, self._created, self._chat.body["model"],
                          self._chat.include_usage, self._chat.json_tool,
                          self._chat.custom_tools, self._chat.legacy)
        return ChatBody(exchange, upstream, secret, chat, self.remember)

    def remember(self, tool_ids: Sequence[str], blocks: Sequence[dict]) -> None:
        """Keep the signed thinking before tool calls: chat clients cannot send it back."""
        if tool_ids and blocks:
            self._memory.remember([self._owner + tool_id for tool_id in tool_ids], blocks)

    def recall(self, tool_id: str) -> Optional[list[dict]]:
        """What was kept of the turn with a tool call."""
        return self._memory.recall(self._owner + tool_id)

    def last_words(self, error: Mapping[str, Any]) -> bytes:
        """An error within a stream, and its end."""
        return b"data: " + plain_json(error) + b"\n\n" + CHAT_DONE


class Exchange(LiveRequest):
    """One request on its way through the engine, with its record."""

    # Set when it goes upstream: to whom, each provider's bytes, which are fixed before the
    # first call, and the calls; the path there, if not its own.
    routed: Routed
    bodies: dict[str, Prepared]
    attempts: Attempts
    path = ""
    # A whole answer is to be a JSON object; what is not repeatable is sent again only if
    # surely not done.
    whole = repeatable = True
    # Who keeps the client waiting, and whether the head of the answer has gone for that.
    heartbeat: Optional[Heartbeat] = None
    has_begun = False
    may_resend = True
    # The message request that goes upstream, and how its edits are spelled.
    body: Optional[Body] = None
    spell: Callable[[Body], bytes] = staticmethod(plain_json)
    door: Door = MESSAGES_DOOR
    # Where they hang on the provider's model: body and door by provider.
    readings: Mapping[str, tuple[Body, Door]] = {}
    # What was done to the body for everybody.
    edits: Sequence[str] = ()

    def __init__(self, request: HttpRequest, request_id: str, record: RequestRecord,
                 began: float, served: Served, admission: Admission) -> None:
        self.request = request
        self.id = request_id
        self.record = record
        self.began = began
        # What was in force when it came: a reload does not disturb it.
        self.served = served
        self.admission = admission

    def with_our_headers(self, response: HttpResponse) -> HttpResponse:
        """The headers that all answers have: ids, and CORS for a listed origin."""
        has_id = "request-id" in map(str.lower, map(NAME_OF, response.headers))
        response.headers.append(("X-Request-ID", self.id))
        if not has_id:
            response.headers.append(("request-id", self.id))
        origin = self.admission.origin
        if origin:
            response.headers.extend(cors_headers(origin, [name for name, _ in response.headers]))
        return response

    def turn_to(self, provider: Provider) -> None:
        """From now on it is this provider's answer that counts."""
        self.body, self.door = self.readings.get(provider.name, (self.body, self.door))

    def holds_key(self, text: str) -> bool:
        """Whether a gateway key stands in some other place than where keys are read.

        Asked only of clients that have shown a key, or need none.
        """
        return any(key.key.reveal() in text for key in self.served.config.auth.api_keys)


class Spoken:
    """What a provider calls a model, what that is without a suffix that asks for thinking,
    and whether it had one."""

    __slots__ = ("model", "stem", "thinks")

    def __init__(self, model: str, stem: str, thinks: bool) -> None:
        self.model = model
        self.stem = stem
        self.thinks = thinks

    @property
    def rules_model(self) -> str:
        """The id by whose rules it is spoken to: its own, with the suffix if that is meant."""
        return self.model + (THINKING_SUFFIX if self.thinks else "")


def spoken_model(provider: Provider, asked: str) -> Spoken:
    """What a provider calls the model that a client asks for.

    An id that the provider lists or maps by name is called so.  Beside Claude's
    own ids the suffix works on names that are mapped to one of them.  What names
    no model is only passed on.
    """
    stem, thinks = asked, False
    if not asked:
        return Spoken("", "", False)
    if asked not in provider.models and asked not in provider.model_map:
        alias = without_suffix(asked)
        mapped = provider.mapped(alias) if alias not in ("", asked) else None
        if mapped is not None and model_generation(mapped) is not None:
            stem, thinks = alias, True
        else:
            stem, thinks = split_thinking(asked)
    return Spoken(provider.upstream_model(stem), stem, thinks)


class Routed:
    """Who may serve a model, and as what: the same for each request under one configuration.

    ``spoken`` and ``models`` are by provider, ``candidates`` by whether the client has
    a credential of its own.
    """

    __slots__ = ("providers", "model", "spoken", "models", "candidates", "ways", "told")

    def __init__(self, providers: Sequence[Provider], model: str) -> None:
        self.providers = providers
        self.model = model
        self.spoken = {provider.name: spoken_model(provider, model) for provider in providers}
        self.models = {name: spoken.model for name, spoken in self.spoken.items()}
        self.ways = [(provider.name, provider, self.spoken[provider.name]) for provider in providers]
        own = {provider.name: candidates(provider, model) for provider in providers}
        self.candidates = {has_own: [
            candidate for provider in usable_providers(providers, has_own)
            for candidate in own[provider.name]] for has_own in (False, True)}
        # Our headers that tell who answered, by that and the number of calls: both are few.
        self.told: dict[tuple[Candidate, int], list[tuple[str, str]]] = {}


class Admission:
    """What a configuration makes of a request head: its path and its route, why it is
    refused, whose key it shows.

    It hangs on nothing else and is worked out once for each kind of head.  ``refusal``
    is the browser guard's, ``barred`` what its credentials lack (contract section 5: any
    header that holds a key lets the request pass).  ``own_credentials`` are those that
    are not gateway keys, as header pairs; ``request_id`` and ``session`` are the client's,
    or "", and ``origin`` the listed one that an answer names, or "".
    """

    def __init__(self, request: HttpRequest, served: Served) -> None:
        config, keys = served.config, served.keys
        self.path, self.doubled = plain_path(request.path)
        self.prefix = PATH_PREFIX if request.path.startswith(PATH_PREFIX) else ""
        self.routes = find_routes(self.path)
        method = "GET" if request.method == "HEAD" else request.method
        self.route = route = self.routes.get(method) if self.routes is not None else None
        mode = config.auth_mode
        self.refusal = browser_refusal(request.headers, mode == "off", config.cors_origins,
                                       config.allowed_hosts, route is not None and route.page)
        origin = request.headers.get("origin")
        self.origin = origin if origin in config.cors_origins and request.method != "OPTIONS" else ""
        offered = map(request.headers.get, ("x-request-id", SESSION_HEADER))
        self.request_id, self.session = (
            text if VISIBLE_ASCII.fullmatch(text) else "" for text in offered)
        self.key = ""
        self.own_credentials: list[tuple[str, str]] = []
        presented = presented_credentials(request.headers)
        for name, value, credential in presented:
            key = keys.find(credential)
            if key is not None:
                self.key = self.key or key
            elif value.lower() != "bearer" and not any(map(keys.find, value.split())):
                # A gateway key under some other scheme must not go upstream as
                # the client's own either; a scheme without a key is nothing.
                self.own_credentials.append((name, value))
        self.has_own = bool(self.own_credentials)
        self.barred = ""
        is_open = mode == "off" or (mode != "strict" and route is not None and route.open)
        if not is_open and not self.key:
            self.barred = "invalid x-api-key" if presented else "missing x-api-key header"
        self.route_name, self.handler = (route.name, route.handler) if route else ("", "")
        self.is_message = self.route_name in MESSAGE_ROUTES
        if self.handler == "answer_telemetry" and config.telemetry == "forward":
            self.handler = "forward_as_it_is"
        self.is_chat = self.routes is ROUTES[CHAT_PATH]
        self.has_body = any(name in request.headers
                            for name in ("content-length", "transfer-encoding"))
        is_forwarded = self.handler.startswith("forward_")
        self.lacks_body = is_forwarded and self.handler != "forward_as_it_is" and not self.has_body
        self.limited_key = served.limited_keys.get(self.key) if is_forwarded else None
        # Nothing is to be said of most heads, which is one question instead of ten.
        self.is_usual = route is not None and self.limited_key is None and not (
            self.doubled or self.refusal or self.barred or self.lacks_body)


class Served:
    """What a configuration makes the engine serve; replaced as a whole by a reload."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keys = KeyRing([(key.name, key.key) for key in config.auth.api_keys])
        self.limited_keys = {key.name: key for key in config.auth.api_keys
                             if key.requests_per_minute is not None}
        self.models = [model_listing(model, provider.owned_by, provider.name)
                       for provider in config.providers if provider.enabled
                       for model in provider.models]
        # What each message is asked for.
        self.intercepts = config.warmup == "intercept"
        self.background_model = config.routing.background_model
        self.collect = config.stream.collect
        self.sticky, self.strategy = config.routing.sticky, config.routing.strategy
        self.retry, self.timeouts = config.retry, config.timeouts
        self.holds = config.stream.hold_seconds > 0
        # By model and route; names are clients', so that they are bounded.
        self._routed: dict[tuple[str, str], Routed] = {}
        # By the kind of a client's head, and by that, the account and what the body asks
        # of the head: not one of them goes into a log.
        self._admissions: dict[object, Admission] = {}
        self.upstream_heads: dict[tuple[Any, ...], UpstreamHead] = {}

    def admission(self, request: HttpRequest) -> Admission:
        """What it makes of a request's head."""
        try:
            return self._admissions[request.kind]
        except KeyError:
            pass  # the first of its kind
        found = Admission(request, self)
        if request.kind is not None:
            remember(self._admissions, request.kind, found, HEADS_KEPT)
        return found

    def routed(self, model: str, route: str = "messages") -> Routed:
        """Who may serve a model; where tokens are counted, or a path is only passed on, fewer."""
        try:
            return self._routed[model, route]
        except KeyError:
            pass  # the first request for it
        found = Routed(self._providers(model, route), model)
        remember(self._routed, (model, route), found, MAX_ROUTED_MODELS)
        return found

    def _providers(self, model: str, route: str) -> list[Provider]:
        if route == "passage":
            return [provider for provider in self.config.providers
                    if provider.enabled and provider.type == "anthropic"][:1]
        return [provider for provider in candidate_providers(self.config, model)
                if route != "count_tokens" or provider.count_tokens == "upstream"]


class Prepared:
    """The bytes for one provider, the model id in them, the rules that changed them.

    ``collects``: the client wants no stream and gets none, but one is asked for.
    ``drop_betas``: globs of the betas that go with fields which were left out.
    """

    # No NamedTuple: CPython takes ten times as long to read a member of one.
    __slots__ = ("body", "model", "edits", "collects", "drop_betas")

    def __init__(self, body: Optional[bytes], model: str = "", edits: Sequence[str] = (),
                 collects: bool = False, drop_betas: tuple[str, ...] = ()) -> None:
        self.body = body
        self.model = model
        self.edits = edits
        self.collects = collects
        self.drop_betas = drop_betas


# A field that an upstream refuses and the beta that announces it go together.
FIELD_BETAS = {
    "context_management": "context-management-*",
    "container": "code-execution-*",
    "mcp_servers": "mcp-client-*",
    "safeguards": "dangerous-tool-use-*",
}
# Above it the vendor's SDKs insist on streaming, since an answer may take longer
# than ten minutes.
COLLECT_ABOVE_TOKENS = 21333


def prepared(
    spell: Callable[[Body], bytes],
    body: Body,
    provider: Provider,
    spoken: Spoken,
    collect: str,
    thinking: str = "",
) -> Prepared:
    """What a provider is sent of a body; a clean one leaves byte for byte.

    ``spell`` gives the bytes of a body; ``spoken`` is what the provider calls its model;
    ``collect`` is the setting ``stream.collect``; ``thinking``, where given, is used
    instead of the provider's own setting of that rule.
    """
    before, model = body, spoken.model
    edits: tuple[str, ...] = ()
    if spoken.thinks:
        # What the model that answers takes, where that can be told.
        body = with_thinking(body, spoken.stem if model_generation(model) is None else model)
        edits += ("thinking_suffix",)
    if model != body["model"]:
        body = dict(body, model=model)
        edits += ("model",)
    profile = dict(provider.sanitize, thinking=thinking) if thinking else provider.sanitize
    rules: Sequence[str] = ()
    betas: tuple[str, ...] = ()
    collects = False
    try:
        if not is_clean(body, profile):
            body, rules = sanitized(body, profile)
        if profile["unknown_fields"]:
            refused = [name for name in provider.refused_fields if name in body]
            if refused:
                body, rules = without_keys(body, *refused), [*rules, "unknown_fields"]
                betas = tuple(FIELD_BETAS[name] for name in refused if name in FIELD_BETAS)
        if collect != "never" and before.get("stream") is not True and (
                collect == "always" or asks_above(body, COLLECT_ABOVE_TOKENS)):
            collects, body = True, dict(body, stream=True)
            edits += ("collect",)
        return Prepared(spell(body), model, (*edits, *rules), collects, betas)
    except RecursionError:
        # JSON so deep that it parsed only just is the client's fault.
        raise RequestError(400, "invalid JSON: the JSON is nested too deeply") from None


def asks_above(body: Body, limit: int) -> bool:
    """Whether max_tokens is a number above a limit."""
    tokens = body.get("max_tokens")
    return type(tokens) is int and tokens > limit  # not isinstance(): true is no number


class Result(NamedTuple):
    """What came of one call that did not serve: an answer or an error, and what follows."""

    outcome: Outcome
    decision: Decision
    response: Optional[HttpResponse] = None
    error: Optional[UpstreamError] = None


def result_of(outcome: Outcome, response: Optional[HttpResponse] = None,
              error: Optional[UpstreamError] = None) -> Result:
    """What follows from a call that did not serve."""
    return Result(outcome, decide(outcome), response, error)


ABANDONED = result_of(Outcome("client_left"))


def result_of_error(error: UpstreamError, exchange: Exchange, lease: Lease) -> Result:
    """What follows from a call that gave no answer."""
    return result_of(Outcome(
        error.kind, transparent=lease.account is None, repeatable=exchange.repeatable,
        ready_in=error.retry_after), None, error)


def upstream_head(exchange: Exchange, lease: Lease, sent: Prepared) -> UpstreamHead:
    """The head for a call; no gateway key is in it."""
    request, provider, door = exchange.request, lease.provider, exchange.door
    target = provider.base_url.prefix + (exchange.path or exchange.admission.path)
    if request.query and door.passes_query:
        query = "&".join(part for part in request.query.split("&")
                         if not exchange.holds_key(part))
        target += "?" + query if query else ""
    pairs = upstream_headers(
        request.headers,
        provider.base_url.authority,
        None if sent.body is None else 0,
        lease.credentials() if lease.account else door.credentials(
            provider, exchange.admission.own_credentials),
        BetaRule(provider.betas.add + door.betas, provider.betas.drop + sent.drop_betas),
        [(name, value.reveal()) for name, value in provider.headers],
    )
    pairs = [(name, value) for name, value in pairs
             if (name.lower() == "content-length" or not exchange.holds_key(value))
             and not name.lower().startswith(door.dropped_prefixes)]
    if sent.body is None:
        return UpstreamHead(request.method, provider, target, header_lines(pairs))
    at = [name.lower() for name, _ in pairs].index("content-length")
    before = b"%b%b: " % (header_lines(pairs[:at]), pairs[at][0].encode("ascii"))
    return UpstreamHead(request.method, provider, target, before,
                        b"\r\n" + header_lines(pairs[at + 1:]))


class Failure(NamedTuple):
    """A call that did not serve: the upstream's answer or our error, and what follows."""

    lease: Lease
    decision: Decision
    error: Optional[UpstreamError] = None
    response: Optional[HttpResponse] = None

    @property
    def rank(self) -> int:
        """Which failure tells the client most (contract section 9): higher is better."""
        if self.response is None or self.decision.blame:
            return 0
        if self.decision.hopeless:
            return 1  # one account's bill: any other failure may pass
        return {429: 4, 404: 3}.get(self.response.status, 2)


class Engine:
    """Routes, the walk of one request, the attempt loop and the relay; no sockets.

    ``handle`` gives an HttpResponse for any HttpRequest, and raises ClientGone
    alone.  Everything it needs is given: transport, pool, clocks, ids, log.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        log: Log,
        monotonic: Callable[[], float],
        wall_clock: Callable[[], float],
        new_id: Callable[[], str],
        chance: Callable[[], float],
        renewal: Renewal,
        page: Page = NO_PAGE,
    ) -> None:
        self.accounts = AccountPool(monotonic, chance)
        self._renewal = renewal
        self._page = page
        self._started = monotonic(), wall_clock()
        self._records = RecordRing()
        self.metrics = Metrics(self._records.observe)
        self.alive = Alive()
        self.draining = False
        self._transport = transport
        self._log = log
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._served = Served(config)
        self._rates = RequestRates(monotonic)
        self._calibration = TokenCalibration()
        self._tool_memory = ToolMemory()

    @property
    def config(self) -> Config:
        """The configuration in force for the next request."""
        return self._served.config

    @property
    def records(self) -> RecordRing:
        """The newest requests, with all that have ended."""
        self.metrics.settle()
        return self._records

    def reload(self, config: Config) -> None:
        """Serve another configuration from the next request on; accounts keep their state."""
        self._served = Served(config)
        self.accounts.retain(config.providers)
        self._renewal.retain((provider.name, account) for provider in config.providers
                             for account in provider.accounts)

    # -- the walk of one request

    def handle(self, request: HttpRequest) -> HttpResponse:
        """The answer to a request; to be closed by whoever wrote it.  Raises ClientGone."""
        exchange = self._begin(request)
        try:
            return self._finished(exchange, self._walk(exchange))
        except ClientGone:
            self._observe(exchange, "client_left")
            raise
        except GatewayError as error:
            return self._refused(exchange, error)
        except Exception as error:
            # The last resort: a fault of ours is told as such, and the way to it
            # is logged without the values on it.
            self._log.message("error", "%s: internal error: %s" % (exchange.id, frames_of(error)))
            return self._refused(exchange, GatewayError("internal error of the gateway"))

    def refuse(self, error: GatewayError, request: Optional[HttpRequest] = None) -> HttpResponse:
        """The answer to what never became a request, such as a malformed head."""
        nothing = request or HttpRequest(NO_HEAD.method, NO_HEAD.target, NO_HEAD.headers)
        return self._refused(self._begin(nothing), error)

    def _begin(self, request: HttpRequest) -> Exchange:
        served = self._served
        admission = served.admission(request)
        request_id = admission.request_id or self._new_id()
        record = RequestRecord(request_id, request.method, self._wall_clock())
        exchange = Exchange(request, request_id, record, self._monotonic(), served, admission)
        self.alive[exchange] = None
        if admission.is_chat:
            exchange.door = ChatDoor("chatcmpl-" + self._new_id()[-24:], int(self._wall_clock()),
                                     self._tool_memory)
        return exchange

    def _walk(self, exchange: Exchange) -> HttpResponse:
        """Contract section 6: route, guard, credentials, then the route's handler."""
        admission = exchange.admission
        if self.draining and admission.path not in HEALTH_PATHS:
            raise Unavailable("the gateway is shutting down", close=True)
        if not admission.is_usual:
            answer = self._answer_unusual(exchange)
            if answer is not None:
                return answer
        record = exchange.record
        record.key, record.route = admission.key, admission.route_name
        return getattr(self, admission.handler)(exchange)

    def _answer_unusual(self, exchange: Exchange) -> Optional[HttpResponse]:
        """The answer to what no route is for, or a note to who runs the client.

        Raises RequestError: no such path, or not for this client, now, or without a body.
        """
        request, admission = exchange.request, exchange.admission
        if admission.doubled:
            self._log.once("warning", "a client's base URL ends in /v1; set it to http://%s%s "
                           "(its requests are answered all the same)"
                           % (request.headers.get("host"), admission.prefix))
        if admission.refusal:
            raise RequestError(403, admission.refusal)
        if request.method == "OPTIONS" and is_preflight(request.headers):
            exchange.record.route = "preflight"
            return HttpResponse(204, preflight_headers(request.headers))
        exchange.record.key = admission.key
        if admission.barred:
            raise RequestError(401, admission.barred, CHALLENGE)
        routes = admission.routes
        if routes is None:
            raise RequestError(404, "no such path: %s" % admission.path)
        if request.method == "OPTIONS":
            return HttpResponse(204, [("Allow", allowed_methods(routes))])
        if admission.route is None:
            raise RequestError(405, "%s is not allowed here" % request.method,
                               [("Allow", allowed_methods(routes))])
        exchange.record.route = admission.route_name
        if admission.limited_key is not None:
            seconds = self._rates.admit(admission.limited_key)
            if seconds > 0:
                raise RequestError(
                    429, "the key %s is over its requests_per_minute" % admission.key,
                    [("retry-after", str(max(1, int(seconds + 0.999))))])
        if admission.lacks_body:
            raise RequestError(411, "a request here needs a Content-Length, or a chunked body")
        return None

    @staticmethod
    def _body(exchange: Exchange) -> bytes:
        body = exchange.request.read_body()
        exchange.record.bytes_in = len(body)
        return body

    # -- the books of one request

    def _finished(self, exchange: Exchange, response: HttpResponse) -> HttpResponse:
        """The response as it goes down, and its record at its end."""
        if exchange.has_begun:
            # Its head has gone: what is no stream goes down as an event.
            response = as_event(exchange, response)
        else:
            response = exchange.with_our_headers(response)
        exchange.record.status = response.status
        if isinstance(response.body, bytes):
            exchange.record.bytes_out = len(response.body)
        return response.then(partial(self._observe, exchange))

    def _refused(self, exchange: Exchange, error: GatewayError) -> HttpResponse:
        exchange.record.error = error.message
        if not exchange.record.attempts:
            exchange.record.ended = "refused"
        headers = list(error.headers)
        if error.status in NEVER_RETRIED and "x-should-retry" not in dict(headers):
            headers.append(("x-should-retry", "false"))
        body = exchange.door.refusal(error, exchange.id)
        return self._finished(exchange, json_response(error.status, body, headers, error.close))

    def _observe(self, exchange: Exchange, ended: str) -> None:
        record, now = exchange.record, self._monotonic()
        record.seconds = now - exchange.began
        if ended:
            record.ended = ended
        self.alive.end(exchange)
        self.metrics.observe(record, now)
        self._log.record(record)
        if now >= self._calibration.due and record.bytes_in <= MAX_CALIBRATED_BYTES:
            self._learn(exchange, now)
        if exchange.heartbeat is not None:
            exchange.heartbeat.stop()

    # -- answered here

    def answer_probe(self, exchange: Exchange) -> HttpResponse:
        """Start-up probes of clients want nothing but a 200; who browses, the dashboard."""
        path, prefix = exchange.admission.path, exchange.admission.prefix
        if path == "/" and any(token.split(";")[0].strip().lower() == "text/html" for token
                               in exchange.request.headers.tokens("accept")):
            return HttpResponse(303, [("Location", prefix + "/dashboard"),
                                      ("Vary", "Accept"), ("Cache-Control", "no-store")])
        return json_response(200, {"status": "ok", "service": "claude_gateway"})

    def answer_healthz(self, exchange: Exchange) -> HttpResponse:
        """The process serves."""
        return json_response(200, {"status": "ok"})

    def answer_health(self, exchange: Exchange) -> HttpResponse:
        """Whether a balancer should send requests here."""
        if self.draining:
            return json_response(503, {"status": "unhealthy", "reason": "shutting down"})
        if not any(self.accounts.could_serve(provider) for provider in exchange.served.config.providers):
            return json_response(503, {"status": "unhealthy", "reason": "no account can serve"})
        return json_response(200, {"status": "ok"})

    def answer_models(self, exchange: Exchange) -> HttpResponse:
        """The models of all providers; the first provider of an id is its own."""
        unique = {model["id"]: model for model in reversed(exchange.served.models)}
        models = [unique[key] for key in dict.fromkeys(model["id"] for model in exchange.served.models)]
        return json_response(200, page_of_models(models, exchange.request.query))

    def answer_model(self, exchange: Exchange) -> HttpResponse:
        """One model; OpenAI's SDK percent-encodes a slash in an id."""
        wanted = urllib.parse.unquote(exchange.admission.path[len("/v1/models/"):])
        for model in exchange.served.models:
            if model["id"] == wanted:
                return json_response(200, model)
        raise RequestError(404, "no such model: %s" % wanted)

    def answer_providers(self, exchange: Exchange) -> HttpResponse:
        """The providers; ``active`` is whether one could serve now."""
        data = [{"name": provider.name, "type": provider.owned_by,
                 "base_url": str(provider.base_url), "models": list(provider.models),
                 "active": self.accounts.could_serve(provider)}
                for provider in exchange.served.config.providers]
        return json_response(200, {"object": "list", "data": data})

    def answer_telemetry(self, exchange: Exchange) -> HttpResponse:
        """Clients report their use to the base URL; it stays here unless told otherwise."""
        return json_response(200, {})

    # -- seeing what it does (contract section 12)

    def answer_dashboard(self, exchange: Exchange) -> HttpResponse:
        """The page; what it shows it asks for with a key of its own."""
        return HttpResponse(200, [("Content-Type", "text/html; charset=utf-8"), *NEVER_STORED,
                                  *self._page.headers], self._page.body)

    def answer_metrics(self, exchange: Exchange) -> HttpResponse:
        """For Prometheus."""
        config = exchange.served.config
        ready = {candidate.name: self.accounts.snapshot(candidate)["state"] == "ready"
                 for provider in config.providers for candidate in configured(provider)
                 if provider.enabled and candidate.account and candidate.account.enabled}
        gauges = Gauges(__version__, self._monotonic() - self._started[0],
                        len(self.alive.requests()), ready, self.records.local_answers())
        return HttpResponse(200, [("Content-Type", METRICS_TYPE), *NEVER_STORED],
                            self.metrics.text(gauges))

    def answer_status(self, exchange: Exchange) -> HttpResponse:
        """How the gateway is, for the page, ``status`` and people's scripts."""
        now, wall_now = self._monotonic(), self._wall_clock()
        config, live = exchange.served.config, self.alive.requests()
        return json_response(200, {
            "version": __version__,
            "time": utc_text(wall_now),
            "started": utc_text(self._started[1]),
            "uptime_seconds": round(now - self._started[0], 3),
            "draining": self.draining,
            "auth": config.auth_mode,
            "in_flight": len(live),
            "records": self.records.seen_count,
            "totals": self.metrics.totals(),
            "providers": [self._provider_status(provider) for provider in config.providers],
            "accounts": [self._account_status(candidate, wall_now)
                         for provider in config.providers for candidate in configured(provider)],
            "models": self.metrics.of_models(),
            "local_answers": {kind: {"requests": count, "saved_tokens": tokens} for kind, (
                count, tokens) in sorted(self.records.local_answers().items())},
            "live": [request.as_dict(now) for request in live[:MAX_LIVE_SHOWN]],
            "history": self.metrics.history(now),
        }, NEVER_STORED)

    def _provider_status(self, provider: Provider) -> dict:
        """A provider; what its clients did with credentials of their own has no account."""
        return {"name": provider.name, "enabled": provider.enabled,
                "accounts": len(provider.accounts), "active": self.accounts.could_serve(provider),
                "own_credentials": self.metrics.of_account(provider.name, "")}

    def _account_status(self, candidate: Candidate, wall_now: float) -> dict:
        """An account: its state, what it answered, and when its cooldown ends."""
        assert candidate.account is not None
        state = self.accounts.snapshot(candidate)
        rests = state["ready_in_seconds"]
        return dict(
            state,
            provider=candidate.provider.name,
            account=candidate.account.name,
            enabled=candidate.provider.enabled and candidate.account.enabled,
            cooldown_ends=utc_text(wall_now + rests) if rests else None,
            totals=self.metrics.of_account(*candidate.key))

    def answer_requests(self, exchange: Exchange) -> HttpResponse:
        """The newest records, the newest first; ``limit`` from 1 to RECORDS_KEPT."""
        asked = dict(urllib.parse.parse_qsl(exchange.request.query, keep_blank_values=True))
        text = asked.get("limit", str(REQUESTS_SHOWN_DEFAULT))
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= RECORDS_KEPT:
            raise RequestError(400, "limit: must be a number from 1 to %d" % RECORDS_KEPT)
        count, records = self.records.numbered(int(text))
        return json_response(200, {"started": utc_text(self._started[1]), "records": count,
                                   "requests": [record.as_dict() for record in records]},
                             NEVER_STORED)

    # -- forwarded

    def forward_message(self, exchange: Exchange) -> HttpResponse:
        """POST /v1/messages."""
        body, served = self._message(exchange), exchange.served
        model = body["model"]
        if body.get("stream") is True:
            self._keep_alive(exchange)
        if served.intercepts and is_warmup(body["messages"]):
            return self._answer_warmup(exchange, body)
        if served.background_model and is_background_task(body):
            model = served.background_model
            body, exchange.edits = dict(body, model=model), ["background_model"]
        self._plan(exchange, body, model, served.collect)
        return self._attempts(exchange)

    def forward_count(self, exchange: Exchange) -> HttpResponse:
        """POST /v1/messages/count_tokens."""
        body = self._message(exchange)
        self._plan(exchange, body, body["model"], "never")
        routed = exchange.routed
        counted_as = next(iter(routed.models.values()), routed.model)
        exchange.routed = exchange.served.routed(routed.model, "count_tokens")
        if routed.providers and not exchange.routed.providers:
            return self._answer_estimate(exchange, counted_as)
        response = self._attempts(exchange)
        if not has_no_count(response):
            return response
        response.close("unread")  # it may be a stream that holds a lease
        return self._answer_estimate(exchange, counted_as)

    def _message(self, exchange: Exchange) -> Body:
        """A request's message, as it came."""
        document = parse_message_request(self._body(exchange))
        exchange.body = body = document.values
        exchange.spell = document.spelled
        exchange.record.model = body["model"]
        return body

    @staticmethod
    def _plan(exchange: Exchange, body: Body, model: str, collect: str) -> None:
        """What goes to whom of a message."""
        exchange.routed = routed = exchange.served.routed(model)
        exchange.bodies = bodies = {}
        for name, provider, spoken in routed.ways:
            bodies[name] = prepared(exchange.spell, body, provider, spoken, collect)

    def forward_chat(self, exchange: Exchange) -> HttpResponse:
        """POST /v1/chat/completions: the same engine behind another door (section 15)."""
        try:
            values = JsonDocument(self._body(exchange)).values
        except ValueError as error:
            raise RequestError(400, "invalid JSON: %s" % error) from None
        assert isinstance(exchange.door, ChatDoor)
        door = exchange.door.owned(exchange)
        asked = parse_fields(values)
        model = exchange.record.model = asked["model"]
        routed = exchange.served.routed(model)
        # An alias says nothing of what the model behind it takes: read once for each such model.
        rules = {provider.name: (routed.spoken[provider.name].rules_model,
                                 provider.preset == "anthropic") for provider in routed.providers}
        chats = {rule: translate_chat(values, door.recall, *rule)
                 for rule in dict.fromkeys(rules.values() or [(model, False)])}
        chat = next(iter(chats.values()))
        wanted = asked.get("response_format")
        is_json = wanted is not None and wanted.type == "json_object"
        exchange.readings = {
            name: (chats[rule].body, door.understood(chats[rule], is_json))
            for name, rule in rules.items()}
        exchange.door = door.understood(chat, is_json)
        exchange.body = chat.body
        if chat.stream:
            self._keep_alive(exchange)
        exchange.routed, exchange.path = routed, "/v1/messages"
        exchange.bodies = {provider.name: prepared(
            exchange.spell, chats[rules[provider.name]].body, provider,
            routed.spoken[provider.name], "never") for provider in routed.providers}
        return self._attempts(exchange)

    def _keep_alive(self, exchange: Exchange) -> None:
        """From now on the client of a stream is kept waiting with its head, then with pings."""
        if exchange.served.holds and exchange.request.begin_answer is not None:
            exchange.heartbeat = Heartbeat(exchange, self._monotonic)

    def _answer_warmup(self, exchange: Exchange, body: Body) -> HttpResponse:
        """Contract section 7: a message that says OK, as JSON or as six events."""
        exchange.record.route = "warmup"
        exchange.record.saved_tokens = self._estimate(body)
        message = warmup_message(body["model"], "msg_warmup_" + self._new_id()[-24:])
        headers = [("X-Warmup-Intercepted", "true")]
        if body.get("stream") is not True:
            return json_response(200, message, headers)
        return HttpResponse(200, [("Content-Type", "text/event-stream"), *STREAM_HEADERS, *headers],
                            iter(message_events(message)))

    def _answer_estimate(self, exchange: Exchange, model: str) -> HttpResponse:
        """Our own count, marked as such; never 0."""
        assert exchange.body is not None
        tokens = self._estimate(dict(exchange.body, model=model))
        return json_response(200, {"input_tokens": tokens}, [("X-Gateway-Estimated", "true")])

    def _estimate(self, body: Body) -> int:
        return self._calibration.apply(body["model"], estimate_tokens(body))

    @staticmethod
    def _forget_body(exchange: Exchange) -> None:
        """Let go of a large request once its answer is committed: streams last for minutes."""
        exchange.body, exchange.spell, exchange.readings = None, plain_json, {}
        for sent in exchange.bodies.values():
            sent.body = None
        exchange.request.let_go()

    def _learn(self, exchange: Exchange, now: float) -> None:
        """Let a request whose real count was told correct the estimate of its model."""
        usage, model = exchange.record.usage, exchange.record.mapped_model
        real = usage.input + usage.cache_read + usage.cache_write
        if real and exchange.body is not None:
            self._calibration.observe(
                model, estimate_tokens(dict(exchange.body, model=model)), real, now)

    def forward_as_it_is(self, exchange: Exchange) -> HttpResponse:
        """Any other /v1 path: to the first anthropic provider, whatever the body is."""
        admission, routed = exchange.admission, exchange.served.routed("", "passage")
        if not routed.providers:
            raise NoUsableAccount("no provider is enabled that could take this path")
        body: Optional[bytes] = self._body(exchange)
        if not body and not admission.has_body:
            body = None
        exchange.routed, exchange.bodies = routed, {routed.providers[0].name: Prepared(body)}
        exchange.whole, exchange.repeatable = False, exchange.request.method in REPEATABLE_METHODS
        return self._attempts(exchange)

    # -- attempts

    def _attempts(self, exchange: Exchange) -> HttpResponse:
        """At most ``max_attempts`` calls and ``max_wait_seconds`` of waiting between them."""
        routed, served, admission = exchange.routed, exchange.served, exchange.admission
        found = routed.candidates[admission.has_own]
        if not found and routed.providers and not usable_providers(
                routed.providers, admission.has_own):
            raise RequestError(
                401, "provider %s has no account here and the request brought no credential of "
                     "its own (an x-api-key or Authorization header)" % routed.providers[0].name,
                CHALLENGE)
        session: Union[str, int] = ""  # a conversation matters where there is a choice
        if served.sticky and len(found) > 1 and exchange.body:
            session = admission.session or conversation_key(exchange.body)
        exchange.attempts = attempts = Attempts(
            self.accounts, served.strategy, served.retry,
            found, session, routed.model, routed.models, admission.is_message)
        failures: list[Failure] = []
        while True:
            step = attempts.step()
            if isinstance(step, Lease):
                result = self._attempt(exchange, step)
                if isinstance(result, HttpResponse):
                    return result
                failures.append(result)
            elif step is None:
                return self._all_failed(exchange, failures)
            else:
                exchange.stage = "queued"
                self._transport.pause(step, exchange.request.peer)

    def _attempt(self, exchange: Exchange, lease: Lease) -> Union[HttpResponse, Failure]:
        """What one lease gives: an answer for the client, or a failure.

        One call as a rule, one more with a renewed credential or a mended body.
        The lease is given back here, or at the end of the stream that took it.
        """
        try:
            result = self._call(exchange, lease)
            if not isinstance(result, HttpResponse):
                result = self._called_again(exchange, lease, result)
        except BaseException:
            self.accounts.release(lease, exchange.attempts)
            raise
        if isinstance(result, HttpResponse):
            return self._given(exchange, lease, result)
        outcome, decision, response, error = result
        self._told(lease, decision, exchange.attempts.failed(lease, decision, outcome))
        if response is not None and decision.action in ("relay", "mend"):
            # A refusal that ends the attempts says when to come back, too.
            return self._given(exchange, lease, response)
        return Failure(lease, decision, error, response)

    def _called_again(self, exchange: Exchange, lease: Lease,
                      result: Result) -> Union[HttpResponse, Result]:
        """What came of a call that was no good; of the next one, should that mend it."""
        attempts = exchange.attempts
        again: Union[HttpResponse, Result] = result
        if result.decision.blame and attempts.may_repeat():
            renewed = self._renewed(exchange, lease)
            if renewed is True:
                attempts.repeated(lease)
                again = self._call(exchange, lease)
            elif isinstance(renewed, CredentialError):
                # The refusal is not the last word: the next key may be had soon.
                again = result_of_error(renewed, exchange, lease)
        if (isinstance(again, Result) and again.decision.action == "mend"
                and attempts.may_repeat() and self._mended(exchange, lease)):
            attempts.repeated(lease)
            again = self._call(exchange, lease)
        return again

    def _told(self, lease: Lease, decision: Decision, rests_seconds: float) -> None:
        """Log that an account rests."""
        if rests_seconds > 0:
            self._log.message("warning", "account %s %s for %.0f s (%s)"
                              % (lease.name, "is out" if decision.blame else "rests",
                                 rests_seconds, decision.case))

    def _renewed(self, exchange: Exchange, lease: Lease) -> Union[bool, CredentialError]:
        """Whether an account whose credential was refused has another one now.

        An error where it could not be had just now.
        """
        if lease.account is None or lease.secret is None:
            return False
        try:
            secret = self._renewal.renewed(lease.provider, lease.account, lease.secret,
                                           exchange.request.peer)
        except CredentialRefused:
            return False  # told in the log by the renewal; the refusal stands
        except CredentialError as error:
            return error
        if secret is None:
            return False
        lease.secret = secret
        return True

    def _call(self, exchange: Exchange, lease: Lease) -> Union[HttpResponse, Result]:
        """One upstream call, its attempt in the record; a good answer, or what follows from it."""
        candidate = lease.candidate
        exchange.asked = provider, account = candidate.key
        exchange.stage, exchange.tokens_so_far = "waiting", None
        result: Union[HttpResponse, Result] = ABANDONED
        upstream = None
        try:
            if candidate.sourced is not None:
                lease.secret = self._renewal.secret(lease.provider, candidate.sourced,
                                                    exchange.request.peer)
            upstream = self._send(exchange, lease)
            result = self._received(exchange, lease, upstream)
        except UpstreamError as error:
            result = result_of_error(error, exchange, lease)
            if isinstance(error, CredentialError):
                exchange.attempts.not_made(self._monotonic() - lease.began)
        finally:
            now, began, record = self._monotonic(), exchange.began, exchange.record
            if isinstance(result, HttpResponse):
                record.first_byte_seconds = now - began
                kind, status, case = "answer", result.status, RELAYED.case
            else:
                kind, status, case = result.outcome[0], result.outcome[1], result.decision.case
                if upstream is not None:
                    upstream.close()
            record.attempts.append((provider, account, kind, status, now - lease.began,
                                    case, lease.began - began))
        return result

    def _send(self, exchange: Exchange, lease: Lease) -> UpstreamResponse:
        """The upstream's answer up to its head.  Raises UpstreamError, ClientGone."""
        provider, key = lease.provider, lease.candidate.key
        if exchange.readings:
            exchange.turn_to(provider)
        sent = exchange.bodies[key[0]]
        body, secret, heads = sent.body, lease.secret, exchange.served.upstream_heads
        # Only a body's length and what a body asks of the head differ as a rule.
        kind = (exchange.admission, key, secret.reveal() if secret is not None else "",
                exchange.door.betas, sent.drop_betas, body is None)
        head = None
        try:
            head = heads[kind]
        except KeyError:
            pass  # the first of its kind; outside, or faults would carry the key in their context
        if head is None:
            head = upstream_head(exchange, lease, sent)
            if exchange.request.kind is not None:
                remember(heads, kind, head, HEADS_KEPT)
        call = UpstreamCall(head, body, exchange.served.timeouts, exchange.request.peer)
        call.may_resend = exchange.may_resend
        try:
            return self._transport.send(call)
        finally:
            exchange.may_resend = call.may_resend

    def _received(self, exchange: Exchange, lease: Lease,
                  upstream: UpstreamResponse) -> Union[HttpResponse, Result]:
        """What an answer means, and what of it would go down.

        A stream comes back held at its first content; an error event before that
        is an answer with the status of its type.  Raises UpstreamError.
        """
        self._take_over(exchange, lease)
        status, limits = upstream.status, told_limits(upstream.headers, self._wall_clock())
        if status >= 300 and status != 304:
            return self._refusal(exchange, lease, upstream, limits)
        answer = self._answer(exchange, lease, upstream)
        if isinstance(answer, HttpResponse):
            whole = isinstance(answer.body, bytes)
            if whole:
                upstream.close()
            self.accounts.answered(lease, exchange.attempts, limits, whole)
            return answer
        refusal = error_answer(lease, upstream, answer)
        assert isinstance(refusal.body, bytes)
        return result_of(Outcome(
            "answer", refusal.status, transparent=lease.account is None, limits=limits,
            repeatable=exchange.repeatable,
            says=error_topic(refusal.status, refusal.body)), refusal)

    def _refusal(self, exchange: Exchange, lease: Lease, upstream: UpstreamResponse,
                 limits: Optional[ToldLimits]) -> Result:
        """What an error status means."""
        if upstream.status < 400:
            # Nobody is to follow it with a key in hand.
            raise UpstreamMalformed("upstream redirects with status %d" % upstream.status)
        body = self._error_body(upstream, exchange.served.config.timeouts.idle_seconds)
        return result_of(Outcome(
            "answer", upstream.status, transparent=lease.account is None, limits=limits,
            repeatable=exchange.repeatable,
            final=upstream.headers.get("x-should-retry").lower() == "false",
            says=error_topic(upstream.status, body),
            ready_in=told_wait(upstream.headers, limits, self._wall_clock())),
            whole_answer(lease, upstream, body))

    def _error_body(self, upstream: UpstreamResponse, seconds: float) -> bytes:
        """The body of a refusal, within ``seconds``; where another account waits in less."""
        moves_on = decide(Outcome("answer", upstream.status)).action == "next"
        try:
            if moves_on:
                return read_at_most(upstream, MAX_ERROR_BODY_BYTES, ERROR_BODY_SECONDS,
                                    self._monotonic)
            return read_at_most(upstream, MAX_COLLECTED_BYTES, seconds, self._monotonic)
        except ShuttingDown:
            raise
        except UpstreamError as error:
            if not moves_on:
                raise
            # Its status and headers (retry-after) still tell the client most.
            told = anthropic_error(ERROR_TYPES.get(upstream.status, "api_error"),
                                   "the upstream's error body broke off: %s" % error, "")
            return json.dumps(told).encode("ascii")

    def _mended(self, exchange: Exchange, lease: Lease) -> bool:
        """Whether a refused thinking signature was mended: all thinking blocks left out.

        Claude Code mends it itself, and must see the refusal (contract section 9).
        A tool loop without its thinking blocks is refused while thinking is asked
        for by a budget: then that goes, too.
        """
        agent = exchange.request.headers.get("user-agent")
        if (agent.startswith("claude-cli/") or exchange.record.route not in MESSAGE_ROUTES
                or "thinking_signature" in exchange.edits):
            return False
        assert exchange.body is not None
        routed, provider = exchange.routed, lease.provider
        body = dict(exchange.body, model=routed.model)
        asked = body.get("thinking")
        if isinstance(asked, dict) and asked.get("type") == "enabled":
            body = without_keys(body, "thinking")
        again = prepared(exchange.spell, body, provider, routed.spoken[provider.name],
                         exchange.served.collect, "drop")
        if again.body == exchange.bodies[provider.name].body or "thinking" not in again.edits:
            return False
        exchange.edits = [*exchange.edits, "thinking_signature"]
        exchange.bodies[provider.name] = again
        return True

    # -- when all have failed

    def _all_failed(self, exchange: Exchange, failures: Sequence[Failure]) -> HttpResponse:
        """The best answer seen; else what went wrong in our words (contract section 9)."""
        hopeless = all(failure.decision.hopeless for failure in failures)
        wait = exchange.attempts.ready_in(hopeful=True) if hopeless else math.inf
        if wait < math.inf:
            raise self._nobody_ready(exchange, wait)
        if not failures:
            raise self._nobody_usable(exchange)
        best = max(reversed(failures), key=lambda failure: failure.rank)
        exchange.turn_to(best.lease.provider)
        self._take_over(exchange, best.lease)
        told = told_of(exchange, best.lease)
        if hopeless:
            told.append(("x-should-retry", "false"))
        if best.rank and best.response is not None:
            if hopeless:
                best.response.headers = pairs_without(best.response.headers, ("x-should-retry",))
                best.response.headers.append(told.pop())
            return self._given(exchange, best.lease, best.response)
        if best.error is not None and not best.decision.blame:
            best.error.message = "%s (%s)" % (best.error.message, best.lease.name)
            best.error.headers = tuple(told)
            raise best.error
        # The issuer's refusal says more than the upstream's: somebody has to sign in.
        raise NoUsableAccount(
            "%s (%s)" % (best.error.message, best.lease.name) if best.error is not None else
            "the upstream refused the credential of account %s" % best.lease.name, told)

    def _nobody_ready(self, exchange: Exchange, wait: float) -> GatewayError:
        """A 429 of ours: who rests, and when to come back."""
        resting = ["%s (%s)" % (candidate.name, state["last_error"] or (
            "ready" if state["state"] == "ready" and not wait else "at its limit"))
                   for candidate in exchange.attempts.candidates if candidate.account
                   for state in [self.accounts.snapshot(candidate)] if state["state"] != "out"]
        more = len(resting) - MAX_NAMED_ACCOUNTS
        names = ", ".join(resting[:MAX_NAMED_ACCOUNTS]) + (" and %d more" % more if more > 0 else "")
        # One may be ready that this request had no attempt left for.
        said = "no account is ready" if wait > 0 else "no attempt is left"
        return NobodyReady("%s: %s; the soonest is in %d s"
                           % (said, names, math.ceil(wait)),
                           [("retry-after", retry_after_text(wait))])

    def _nobody_usable(self, exchange: Exchange) -> GatewayError:
        """A 502 of ours: there is no account, or each one's credential is refused."""
        out = [candidate.name for candidate in exchange.attempts.candidates]
        if not out:
            return NoUsableAccount("no account is configured that could serve %s"
                                   % (exchange.routed.model or exchange.admission.path))
        return NoUsableAccount("the credential of account %s is refused"
                               % ", ".join(out[:MAX_NAMED_ACCOUNTS]), [("x-should-retry", "false")])

    # -- what goes down

    def _take_over(self, exchange: Exchange, lease: Lease) -> None:
        """Write into the record who answers."""
        record = exchange.record
        record.provider, record.account = lease.candidate.key
        sent = exchange.bodies[record.provider]
        record.mapped_model = sent.model
        record.edits = [*exchange.edits, *sent.edits] if exchange.edits else sent.edits

    def _given(self, exchange: Exchange, lease: Lease, response: HttpResponse) -> HttpResponse:
        """An upstream's answer with our headers; a 429 says when somebody is ready."""
        if response.status == 429:
            response.headers = pairs_without(response.headers, ("retry-after", "retry-after-ms"))
            wait = exchange.attempts.ready_in()
            if wait < math.inf:
                response.headers.append(("retry-after", retry_after_text(wait)))
        response = exchange.door.passed_on(response, self._wall_clock)
        response.headers += told_of(exchange, lease)
        return response

    def _answer(self, exchange: Exchange, lease: Lease,
                upstream: UpstreamResponse) -> Union[HttpResponse, dict]:
        """A good answer: collected where it must be whole, else as it comes.

        Gives the error instead where a stream begins with one, or a 200 is one.  Raises
        UpstreamError.
        """
        door, record = exchange.door, exchange.record
        is_stream = upstream.status == 200 and upstream.framing.is_event_stream
        if is_stream and (door.collects or exchange.bodies[lease.provider.name].collects):
            return self._collected(exchange, lease, upstream)
        if not is_stream and exchange.whole and exchange.request.method != "HEAD":
            whole = read_at_most(upstream, MAX_COLLECTED_BYTES)
            # What we cannot decode is the client's to judge.
            value = checked_answer(whole) if upstream.readable else {}
            if upstream.readable and record.route in MESSAGE_ROUTES:
                if isinstance(value.get("error"), dict):
                    return value  # an error, whatever the status says
                if not isinstance(value.get("content"), list):
                    raise UpstreamMalformed("upstream answered with something that is not a message")
            note_answer(record, value, lease)
            return whole_answer(lease, upstream, door.whole(whole, value))
        secret = maskable_key(lease)
        is_messages = is_stream and record.route in MESSAGE_ROUTES and upstream.readable
        if not is_messages and exchange.has_begun:
            raise UpstreamMalformed("upstream answered with something that is no stream of events")
        body = door.relay(exchange, upstream, secret, is_messages)
        exchange.tokens_so_far = body.tokens_so_far
        if is_messages and exchange.served.holds:
            exchange.stage = "held"
            error = body.hold()
            if error is not None:
                return error
        exchange.stage = "streaming"
        if exchange.heartbeat is not None:
            exchange.heartbeat.stop()
        headers = downstream_headers(upstream.headers, upstream.decoded,
                                     door.replaced_headers if is_stream else NO_NAMES, secret)
        if is_stream:
            headers.extend(door.stream_headers)
        # A stream is no count: what it should have counted is then estimated.
        if record.bytes_in > MAX_CALIBRATED_BYTES and record.route != "count_tokens":
            self._forget_body(exchange)
        # A stream's length, should one be told, would not cover an error event.
        answer = HttpResponse(upstream.status, headers, body,
                              None if is_stream else upstream.length,
                              partial(self._stream_over, exchange, lease, body))
        answer.ready = body.is_ready
        return answer

    def _stream_over(self, exchange: Exchange, lease: Lease, body: RelayBody, ended: str) -> None:
        """The end of an answer that was relayed as it came: its lease is given back."""
        body.close()
        wanted, outcome = exchange.attempts, body.outcome(lease.account is None)
        if outcome is None:
            if ended:
                self.accounts.release(lease, wanted)
            else:
                self.accounts.completed(lease, wanted)
            return
        decision = decide(outcome)
        self._told(lease, decision, self.accounts.release(lease, wanted, decision, outcome))

    def _collected(self, exchange: Exchange, lease: Lease,
                   upstream: UpstreamResponse) -> Union[HttpResponse, dict]:
        """A stream that was asked for in the client's stead, as the message it makes.

        Gives the error event where there is one, wherever it comes.  Raises
        UpstreamError where the stream breaks: nothing of it has gone down yet.
        """
        collector = MessageCollector()
        try:
            while True:
                data = upstream.read(END_SECONDS if collector.complete else None)
                if not data:
                    break
                collector.feed(data)
                if collector.error is not None:
                    return collector.error
        except UpstreamError:
            if not collector.complete:
                raise
        message = collector.message()
        note_answer(exchange.record, message, lease)
        try:
            text = json.dumps(exchange.door.message(message), separators=(",", ":"),
                              allow_nan=False)
        except (ValueError, RecursionError) as error:
            # 1e999 is read as infinity, which JSON cannot say.
            raise UpstreamMalformed("the upstream's stream makes no JSON message") from error
        response = whole_answer(lease, upstream, text.encode("ascii"))
        response.headers = pairs_without(response.headers, ("content-type", "cache-control"))
        response.headers.append(("Content-Type", "application/json"))
        return response


class Heartbeat:
    """Keeps the client of a stream that has nothing to show yet, and its connection, alive.

    Whoever waits for an upstream lets the client ``beat``.  After ``hold_seconds`` that
    sends the head of the answer, and from then on a ping after every ``ping_seconds`` of
    silence, until ``stop``.
    """

    _send: Optional[Callable[[bytes], None]] = None

    def __init__(self, exchange: Exchange, monotonic: Callable[[], float]) -> None:
        self._exchange = exchange
        self._monotonic = monotonic
        self._due = monotonic() + exchange.served.config.stream.hold_seconds
        # The client stays the one who is watched: no call in between for each event.
        exchange.request.peer.beat = self.beat

    def beat(self) -> float:
        """Send what is due; the seconds until the next is.  Raises ClientGone."""
        now = self._monotonic()
        if now >= self._due:
            if self._send is None:
                self._send = self._head_sent()
            else:
                self._send(self._exchange.door.ping)
            self._due = self._monotonic() + self._exchange.served.config.stream.ping_seconds
        return self._due - now

    def _head_sent(self) -> Callable[[bytes], None]:
        """Send the head of a stream that is yet to come; gives what sends pieces of it."""
        exchange = self._exchange
        # An iterable: no bytes would be a body of length 0.
        head = HttpResponse(200, [("Content-Type", exchange.door.stream_type),
                                  *STREAM_HEADERS, *exchange.door.headers], iter(()))
        begin = exchange.request.begin_answer
        assert begin is not None
        send = begin(exchange.with_our_headers(head))
        exchange.has_begun = True
        return send

    def begin(self) -> None:
        """Send the head at once, unless it has gone.  Raises ClientGone."""
        if self._send is None:
            self._due = -math.inf
            self.beat()

    def stop(self) -> None:
        """The answer itself goes on from here: no clock is looked at for each event."""
        exchange = self._exchange
        exchange.request.peer.beat = None
        exchange.heartbeat = None  # a circle would wait for the collector


class RelayBody:
    """The body of a relayed answer: an iterable of chunks, as the upstream's reads gave them.

    A message stream that breaks ends in one error event; anything else that
    breaks raises, so that the server can end the connection without a proper end.
    """

    _error: Optional[UpstreamError] = None

    def __init__(self, exchange: Exchange, upstream: UpstreamResponse, secret: str,
                 is_messages: bool) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._mask = KeyMask(secret)
        self._held = b""
        # How long to wait for the next bytes; None for as long as the settings say.
        self._patience: Optional[float] = None
        self._tracker = tracker = StreamTracker() if is_messages else None
        # What looks at bytes that go down.
        self._observe: Callable[[bytes], Any] = bool if tracker is None else tracker.feed

    def is_ready(self) -> bool:
        """Whether the next piece, or the end, comes without waiting."""
        return self._upstream.at_end or self._held != b""

    def tokens_so_far(self) -> dict[str, int]:
        """For who watches from another thread: the output is a guess until the stream ends."""
        tracker = self._tracker
        if tracker is None:
            return {}
        told = token_counts(tracker.usage)
        if not tracker.stop_reason:
            told["output_tokens"] = max(told["output_tokens"], guessed_output_tokens(
                self._read_bytes(), tracker.events_count))
        return told

    def _read_bytes(self) -> int:
        """How many bytes have come; where the same go down, those that have."""
        return self._exchange.record.bytes_out

    def hold(self) -> Optional[dict]:
        """Read up to the first content, under bounds; gives an error event that comes before.

        Raises UpstreamError where the stream breaks, or ends, before either.  After
        MAX_HELD_EVENTS the client has its head and pings; what is held stays held, and
        can be given up, until it has MAX_HELD_BYTES.
        """
        tracker = self._tracker
        assert tracker is not None
        pieces, total = [], 0
        while True:
            chunk = self._read()
            pieces.append(chunk)
            self._observe(chunk)
            # What came counts, too: of an upstream's comments a chat client gets nothing.
            total = max(total + len(chunk), self._read_bytes())
            if (tracker.content_started or tracker.complete or self._upstream.at_end
                    or total >= MAX_HELD_BYTES):
                break
            if tracker.events_count >= MAX_HELD_EVENTS:
                if self._exchange.heartbeat is None:
                    break
                self._exchange.heartbeat.begin()
        self._held = b"".join(pieces)
        if tracker.content_started:
            return None
        if self._upstream.at_end:
            self._check_complete()
        return tracker.error

    def _read(self) -> bytes:
        """The next bytes to go down, or b"": the same that came, as a rule."""
        data = self._mask.feed(self._upstream.read(self._patience))
        return data + self._mask.close() if self._upstream.at_end else data

    def _ending(self) -> bytes:
        """What goes down after the end of a complete body."""
        return b""

    def _broken(self, error: UpstreamError) -> bytes:
        """What goes down where a stream of messages broke."""
        assert self._tracker is not None
        return self._tracker.decoder.between_events() + self._exchange.door.last_words(
            self._exchange.door.refusal(error, self._exchange.id))

    def __iter__(self) -> Iterator[bytes]:
        record, tracker, upstream = self._exchange.record, self._tracker, self._upstream
        try:
            if self._held:
                piece, self._held = self._held, b""
                record.bytes_out += len(piece)
                yield piece
            chunk = b""
            while not upstream.at_end:
                # Looked at after it went down: the client waits for nothing of it.
                self._observe(chunk)
                chunk = self._read()
                if upstream.at_end:
                    self._observe(chunk)  # it waits for the end, to go down with it
                if chunk:
                    record.bytes_out += len(chunk)
                    yield chunk
            self._check_complete()
            piece = self._ending()
        except UpstreamError as error:
            if tracker is not None and tracker.complete:
                piece = self._ending()  # all of the message has come: nothing is missing
            else:
                self._error = error
                record.ended = "upstream_broke"
                record.error = error.message
                if tracker is None:
                    raise
                piece = self._broken(error)
        if piece:
            record.bytes_out += len(piece)
            yield piece

    def _check_complete(self) -> None:
        """The end of a stream proves nothing: only ``message_stop`` or an error does."""
        tracker = self._tracker
        if tracker is not None and not tracker.complete and not tracker.blind:
            raise UpstreamBroke("the upstream's stream ended before the message was complete")

    def outcome(self, transparent: bool) -> Optional[Outcome]:
        """What the end of the stream says about the account; None for nothing bad."""
        if self._error is not None:
            return Outcome(self._error.kind, transparent=transparent)
        if self._tracker is not None and self._tracker.error is not None:
            status = status_of_error(self._tracker.error)
            return Outcome("answer", status, transparent=transparent)
        return None

    def close(self) -> None:
        """Close the upstream call and note what the stream told."""
        self._upstream.close()
        tracker, record = self._tracker, self._exchange.record
        if tracker is not None:
            record.usage = tracker.usage
            record.stop_reason = tracker.stop_reason
            if tracker.error is not None:
                record.error = record.error or tracker.error_type
                record.ended = "upstream_broke"


class ChatBody(RelayBody):
    """A relayed stream of messages as chat.completion chunks."""

    def __init__(self, exchange: Exchange, upstream: UpstreamResponse, secret: str,
                 chat: ChatStream, remember: Callable[[Sequence[str], Sequence[dict]], None]
                 ) -> None:
        super().__init__(exchange, upstream, secret, True)
        self._observe = bool  # it was looked at when it was translated
        self._chat = chat
        self._remember = remember
        self._came_bytes = 0

    def _read_bytes(self) -> int:
        return self._came_bytes

    def _read(self) -> bytes:
        data = super()._read()
        self._came_bytes += len(data)
        return self._translated(data)

    def _translated(self, chunk: bytes) -> bytes:
        """The frames for the events in the next bytes.

        The end is said as soon as it is known: clients wait for it, and go on
        with the next round at once.  Raises UpstreamMalformed.
        """
        tracker, chat = self._tracker, self._chat
        assert tracker is not None
        frames = []
        for event in tracker.decoder.feed(chunk):
            tracker.look(event)
            # While the model thinks unseen nothing else keeps the client alive.
            is_ping = event.type == "ping" and not chat.complete
            frames.append(PING_COMMENT if is_ping else chat.feed(event))
            if chat.failure is not None:
                if tracker.error is None:
                    # An event that cannot be read counts as an error of the upstream's.
                    tracker.look(SseEvent("error", plain_json(chat.failure)))
                break  # what trails behind it is nobody's
        if chat.complete:
            # Nothing comes behind the end but the end of the body.
            self._patience = END_SECONDS
            return b"".join([*frames, self._ending()])
        if tracker.blind:
            raise UpstreamMalformed("an event of the upstream's stream is larger than %d bytes"
                                    % MAX_SSE_EVENT_BYTES)
        # Pieces that are kept for later (a custom tool's input) must not look like silence.
        return b"".join(frames) or (PING_COMMENT if frames else b"")

    def _ending(self) -> bytes:
        """What ends a whole stream, the first time that it is asked for."""
        last = self._chat.finish()
        if last:
            self._remember(self._chat.tool_ids, self._chat.thinking_blocks)
        return last

    def _broken(self, error: UpstreamError) -> bytes:
        """Frames are always whole: the error is the next one."""
        return self._chat.error(error.status, error.type, error.message)


def allowed_methods(routes: Mapping[str, Route]) -> str:
    """The Allow header's value for a path."""
    methods = list(routes)
    if "GET" in methods:
        methods.append("HEAD")
    return ", ".join(sorted([*methods, "OPTIONS"]))


def usable_providers(providers: Sequence[Provider], has_own: bool) -> list[Provider]:
    """Those with accounts, and one more without where the client brought a credential.

    One, since a client's key is for the upstream it thinks of: a second vendor
    must not see it because the first one failed.
    """
    transparent = [provider for provider in providers if not provider.accounts]
    chosen = transparent[:1] if has_own else []
    return [provider for provider in providers if provider.accounts or provider in chosen]


def note_answer(record: RequestRecord, message: Mapping[str, Any], lease: Lease) -> None:
    """Write into the record what a whole answer tells; not a key that it quotes."""
    record.usage.update(message.get("usage"))
    reason = message.get("stop_reason")
    if not isinstance(reason, str):
        reason = ""
    elif len(reason) >= MIN_MASKED_CHARS:
        secret = maskable_key(lease)
        reason = reason.replace(secret, "*" * len(secret)) if secret else reason
    record.stop_reason = reason[:MAX_TOLD_CHARS]


def status_of_error(event: Mapping[str, Any]) -> int:
    """The status that the API gives to the type in an error event; 500 for none known."""
    error = event.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return STATUS_OF_TYPE.get(kind, 500) if isinstance(kind, str) else 500


def error_json(event: Mapping[str, Any]) -> bytes:
    """An error event as JSON; 1e999 in it is read as infinity, which JSON cannot say."""
    try:
        return json.dumps(event, allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):
        kind = ERROR_TYPES.get(status_of_error(event), "api_error")
        return json.dumps(anthropic_error(kind, "the upstream's error is no JSON", "")).encode("ascii")


def error_answer(lease: Lease, upstream: UpstreamResponse, event: Mapping[str, Any]) -> HttpResponse:
    """An error event, before which nothing has gone down, as the answer that it stands for."""
    body = error_json(dict({"type": "error", "error": {}}, **event))
    response = whole_answer(lease, upstream, body)
    response.status = status_of_error(event)
    response.headers = pairs_without(response.headers, ("content-type", "cache-control"))
    response.headers.append(("Content-Type", "application/json"))
    return response


def as_event(exchange: Exchange, response: HttpResponse) -> HttpResponse:
    """What is left to say once the head of a stream has gone: an error is an event then.

    A stream goes on as it is.  A message that came as JSON although a stream was
    asked for cannot be told any more.
    """
    if not isinstance(response.body, bytes):
        return response
    value = json_object(response.body) or {}
    if not isinstance(value.get("error"), dict):
        value = exchange.door.refusal(UpstreamMalformed(
            "upstream answered with status %d and no stream" % response.status), exchange.id)
    exchange.record.error = exchange.record.error or "status %d" % response.status
    exchange.record.ended = "upstream_broke"
    event = exchange.door.last_words(json.loads(error_json(value)))
    exchange.record.bytes_out = len(event)
    return HttpResponse(200, (), iter([event])).then(response.close)


def told_of(exchange: Exchange, lease: Lease) -> list[tuple[str, str]]:
    """Our headers that tell a client who answered."""
    routed, key = exchange.routed, (lease.candidate, exchange.attempts.calls_count)
    try:
        told = routed.told[key]
    except KeyError:
        provider, account = lease.candidate.key
        told = routed.told[key] = list(filter(VALUE_OF, (
            ("X-Gateway-Provider", provider), ("X-Gateway-Attempts", str(key[1])),
            ("X-Account-Email", account), ("X-Mapped-Model", routed.models[provider]))))
    return [*told, *exchange.door.headers]


def whole_answer(lease: Lease, upstream: UpstreamResponse, body: bytes) -> HttpResponse:
    """A collected answer; the account's key is masked should the upstream quote it."""
    secret = maskable_key(lease)
    headers = downstream_headers(upstream.headers, upstream.decoded, NO_NAMES, secret)
    return HttpResponse(upstream.status, headers, masked(secret, body))


def maskable_key(lease: Lease) -> str:
    """The account's key where an answer must not quote it, or ""."""
    secret = lease.secret.reveal() if lease.secret is not None else ""
    return secret if len(secret) >= MIN_MASKED_CHARS else ""


def masked(secret: str, data: bytes) -> bytes:
    """Bytes of an answer; the account's key, should it be in them, as so many stars."""
    return data.replace(secret.encode("ascii"), b"*" * len(secret)) if secret else data


def has_no_count(response: HttpResponse) -> bool:
    """Whether an upstream does not count tokens: it says so, or its count is none.

    A 404 whose message names the model is about the model.
    """
    body = response.body if isinstance(response.body, bytes) else b""
    if response.status < 300:
        tokens = (json_object(body) or {}).get("input_tokens")
        return not isinstance(tokens, int) or isinstance(tokens, bool) or tokens <= 0
    return response.status in (404, 405, 501) and error_topic(response.status, body) != "model"


class KeyMask:
    """Masks an account's key in a body that comes in pieces.

    Holds back the end of a piece only where it is the beginning of the key;
    whatever does not hold the key passes as it came.

    >>> mask = KeyMask("k" * 16); mask.feed(b"a" + b"k" * 9), mask.feed(b"k" * 7), mask.close()
    (b'a', b'****************', b'')
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode("ascii")
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may go down of the held bytes and these."""
        secret = self._secret
        if not secret or not data:
            return data
        if self._held:
            data, self._held = self._held + data, b""
        # Not ``in``: for bytes it raises, and catches, an error of its own first (0.1 us).
        if data.find(secret) >= 0:
            data = data.replace(secret, b"*" * len(secret))
        if data[-1] not in secret:
            return data  # as a rule: an event ends in LF
        first = secret[:1]
        at = data.find(first, max(0, len(data) - len(secret) + 1))
        while at >= 0 and not secret.startswith(data[at:]):
            at = data.find(first, at + 1)
        if at < 0:
            return data
        self._held = data[at:]
        return data[:at]

    def close(self) -> bytes:
        """What was held back for nothing."""
        held, self._held = self._held, b""
        return held


# ---- 17. Downstream server ---------------------------------------------------


class Application(NamedTuple):
    """What a server serves: both functions give an answer that the server closes."""

    handle: Callable[[HttpRequest], HttpResponse]
    refuse: Callable[[GatewayError, Optional[HttpRequest]], HttpResponse]


def has_interpreter_lock() -> bool:
    """Whether this Python's threads work one at a time, and not side by side."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


class Waiter:
    """A thread that waits for its turn, asleep at its gate."""

    __slots__ = ("gate", "came_at", "given")

    def __init__(self, came_at: int) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        # How many turns had ended when it came.
        self.came_at = came_at
        self.given = False

    def wake(self) -> None:
        """Open its gate."""
        if self.gate.locked():
            self.gate.release()


class Turns:
    """A courtesy between threads: one works, the others wait for their turn asleep.

    Without it all of those whose data have come ask for the interpreter at once, and it
    changes hands at every system call, a dozen times a request (16 clients: a fifth
    of the time).  Who comes just when a turn ends may pass those who sleep, for waking
    takes 20 to 50 us in which nobody would work; but not for ever: who has been passed
    MAX_PASSES times by each of those who wait is given the next turn (64 clients: 99 of
    100 answers within 0.07 s instead of 0.18).

    Where no turn ends for TURN_SECONDS those who wait just go on, and so does everybody
    until that one has ended: one wait is lost, not one at each read.  The first of those
    who wait looks for that; the others only now and then, since a thousand who wake 20
    times a second have no time left for anything else.
    """

    def __init__(self) -> None:
        # Held by the one whose turn it is.
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: collections.deque[Waiter] = collections.deque()
        self._ended_count = 0
        # How many had ended when a wait was in vain; until one more has, nobody waits.
        self._stuck_at = -1
        # Threads that run side by side want no turns.
        self._wanted = has_interpreter_lock()

    def take(self) -> bool:
        """Wait for the turn; whether it was given: it is then to be ended."""
        return self._wanted and (self._turn.acquire(False) or self._wait())

    def _wait(self) -> bool:
        if self._stuck_at == self._ended_count:
            return False
        waiter, woken, ended_count = Waiter(self._ended_count), True, -1
        with self._lock:
            self._waiting.append(waiter)
        while True:
            with self._lock:
                if waiter.given:
                    return True
                if self._turn.acquire(False):
                    self._waiting.remove(waiter)
                    return True
                if not woken and self._ended_count == ended_count:
                    self._stuck_at = ended_count
                    for other in self._waiting:
                        other.wake()
                if self._stuck_at == self._ended_count:
                    self._waiting.remove(waiter)
                    return False
                ended_count, is_first = self._ended_count, self._waiting[0] is waiter
            woken = waiter.gate.acquire(timeout=TURN_SECONDS if is_first else CROWD_SECONDS)

    def end(self) -> None:
        """The next one's turn."""
        self._ended_count += 1  # by nobody else meanwhile
        if not self._waiting:
            self._turn.release()
            if not self._waiting:
                return
            has_turn = False  # who came just then may have looked too early
        else:
            has_turn = True
        with self._lock:
            first = self._waiting[0] if self._waiting else None
            if first is not None and has_turn and (
                    self._ended_count - first.came_at > MAX_PASSES * len(self._waiting)):
                first.given = True
                self._waiting.popleft()
            elif has_turn:
                self._turn.release()
            if first is not None:
                first.wake()


class ClientConnection(Watch):
    """A client's socket with what has been read of it and not been used.  Times in seconds.

    The socket never blocks: a socket of Python's with a timeout makes a ``poll`` of every
    ``send``, and each call gives other threads the interpreter (3 us an event).
    """

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float], turns: Turns) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._monotonic = monotonic
        self._turns = turns
        self._has_turn = False
        self._buffer = b""
        self._readable, self._writable = new_poller(), new_poller()
        self._readable.register(sock.fileno(), POLL_READ)
        self._writable.register(sock.fileno(), POLL_WRITE)

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    def gone(self) -> bool:
        """Whether the client has closed; asked when the descriptor is readable.

        A half-close counts: HTTP clients do not close one way and read on.
        """
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def await_request(self, seconds: float) -> bool:
        """Whether a first byte of a request comes in time."""
        try:
            if not self._buffer and self.rest(self._readable.poll, seconds * 1000):
                self._buffer = self._sock.recv(READ_BYTES)
        except OSError:
            pass  # gone: the connection ends without a word
        return self._buffer != b""

    def rest(self, wait: Callable[[Any], Any], argument: Any) -> Any:
        """What a call gives that only waits: it is another one's turn meanwhile."""
        if self._has_turn:
            self._has_turn = False
            self._turns.end()
        try:
            return wait(argument)
        finally:
            self._has_turn = self._turns.take()

    def read_head(self, seconds: float) -> bytes:
        """A request head with its blank line.  Raises RequestError, ClientGone.

        ``seconds`` bound all of it: a byte now and then does not extend them.
        """
        deadline: Optional[float] = None
        searched = blank = 0
        while True:
            buffer = self._buffer
            if buffer.startswith(b"\r\n") and blank < MAX_BLANK_LINES:
                self._buffer, blank = buffer[2:], blank + 1
                continue
            end = buffer.find(b"\r\n\r\n", searched) + 4
            if 4 <= end <= MAX_HEAD_BYTES:
                self._buffer = buffer[end:]
                return buffer[:end]
            self._refuse_long_head()
            if deadline is None:
                deadline = self._monotonic() + seconds
            searched = max(0, len(buffer) - 3)
            self._buffer += self._receive(deadline - self._monotonic(), "head")

    def _refuse_long_head(self) -> None:
        if len(self._buffer) > MAX_REQUEST_LINE_BYTES and b"\r\n" not in self._buffer:
            raise RequestError(414, "request line longer than %d bytes" % MAX_REQUEST_LINE_BYTES,
                               close=True)
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise RequestError(431, "headers longer than %d bytes" % MAX_HEAD_BYTES, close=True)
        if b"\n" in self._buffer.replace(b"\r\n", b""):
            raise RequestError(400, "a line ends in a bare LF", close=True)

    def _receive(self, seconds: float, what: str) -> bytes:
        try:
            if seconds <= 0 or not self.rest(self._readable.poll, seconds * 1000):
                raise RequestError(408, "the request's %s took too long" % what, close=True)
            data = self._sock.recv(READ_BYTES)
        except OSError as error:
            raise ClientGone() from error
        if not data:
            raise ClientGone()
        return data

    def read_body(self, decoder: BodyDecoder, limit_bytes: int, seconds: float,
                  reserve: Callable[[int], Any]) -> bytes:
        """A whole body, in ``seconds`` and some more by its size.  Raises RequestError, ClientGone.

        ``reserve`` is told of every piece before it is kept.
        """
        pieces: list[bytes] = []
        total, began = 0, None
        while not decoder.done:
            if not self._buffer:
                began = self._monotonic() if began is None else began
                allowed = seconds + total / MIN_BODY_BYTES_PER_SECOND
                self._buffer = self._receive(
                    min(seconds, began + allowed - self._monotonic()), "body")
            try:
                piece = decoder.feed(self._buffer)
            except ValueError as error:
                raise RequestError(400, "malformed chunked body: %s" % error,
                                   close=True) from None
            self._buffer = decoder.excess
            count = len(piece)
            total += count
            if total > limit_bytes:
                raise too_large(limit_bytes)
            reserve(count)
            pieces.append(piece)
        return b"".join(pieces)

    def drain(self, decoder: BodyDecoder, limit_bytes: int, seconds: float) -> bool:
        """Throw the rest of a body away; whether all of it came in these bounds."""
        deadline = self._monotonic() + seconds
        total = 0
        try:
            while not decoder.done and total <= limit_bytes:
                self._buffer = self._buffer or self._receive(deadline - self._monotonic(), "body")
                total += len(decoder.feed(self._buffer))
                self._buffer = decoder.excess
        except (RequestError, ClientGone, ValueError):
            return False  # safe: the connection is closed by whoever asked
        return decoder.done

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of it; ``seconds`` bound each SEND_BYTES, so that a slow reader is no idle one.

        Raises ClientGone, also for a client that reads nothing.
        """
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientGone() from error
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], seconds)

    def _send_rest(self, rest: memoryview, seconds: float) -> None:
        """Send what the socket did not take at once."""
        deadline, part = self._monotonic() + seconds, 0
        while rest:
            if not self.rest(self._writable.poll, max(0.0, deadline - self._monotonic()) * 1000):
                raise ClientGone()
            try:
                sent = self._sock.send(rest)
            except BlockingIOError:
                continue  # somebody else's bytes took the room: the bound is the deadline
            except OSError as error:
                raise ClientGone() from error
            rest, part = rest[sent:], part + sent
            if part >= SEND_BYTES:
                deadline, part = self._monotonic() + seconds, 0

    def finish_sending(self) -> None:
        """Tell the client that nothing more comes; it may still be sending."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already gone: nobody is left to be told

    def finish(self) -> None:
        """Its thread ends, and its turn with it."""
        if self._has_turn:
            self._turns.end()

    def reset_on_close(self) -> None:
        """Make the coming close a reset: the only bad end that a body without framing has."""
        reset_on_close(self._sock)


def too_large(limit_bytes: int) -> RequestError:
    """The refusal of a body above the limit."""
    return RequestError(413, "request body larger than %d bytes" % limit_bytes)


class BodyBudget:
    """The room for request bodies in memory, shared by all connections.

    A body that needs more than all of it gets all of it: it is then alone.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held_bytes = 0
        self.limit_bytes = MAX_HELD_BODY_BYTES


class BodyShare:
    """One request's part of the BodyBudget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = self._whole = self._taken = self._arrived = 0

    def take(self, count: int) -> None:
        """Reserve some more.  Raises Unavailable, and then has nothing: others may go on."""
        budget, whole = self._budget, self._whole
        budget.lock.acquire()  # a third of the time that ``with`` takes (0.3 us less)
        try:
            if budget.held_bytes + (count if count > whole else whole) > budget.limit_bytes:
                count = self._last_room(count)
            budget.held_bytes += count
        finally:
            budget.lock.release()
        self._bytes += count

    def _last_room(self, count: int) -> int:
        """How much is given where there is no room for all.  Raises Unavailable.

        Where the length of the body is known it begins only where there is room for all of it.
        """
        budget = self._budget
        own_limit = max(0, budget.limit_bytes - self._bytes)
        count = min(count, own_limit)
        needed = count if self._bytes else min(max(count, self._whole), own_limit)
        is_small = max(self._bytes + count, self._whole) <= SMALL_BODY_BYTES
        if count and budget.held_bytes + needed > budget.limit_bytes + (
                SPARE_BODY_BYTES if is_small else 0):
            budget.held_bytes -= self._bytes
            self._bytes = self._whole = 0
            raise busy("too many large requests at once")
        return count

    def begin(self, whole_bytes: int) -> Callable[[int], Any]:
        """A body of this length is to come; gives what its pieces are told.  Raises Unavailable."""
        if whole_bytes <= FIRST_BODY_BYTES:
            self.take(whole_bytes)
            return bool  # which has nothing to do: all of it has its room
        self._whole, self._taken, self._arrived = whole_bytes, FIRST_BODY_BYTES, 0
        self.take(FIRST_BODY_BYTES)
        return self.arrive

    def arrive(self, count: int) -> None:
        """So much of what has begun is here.  Raises Unavailable."""
        self._arrived += count
        while self._arrived > self._taken:
            more = min(self._taken, self._whole - self._taken)
            self.take(more)
            self._taken += more

    def give_back(self) -> None:
        """Free all of it; later calls do nothing."""
        budget, count = self._budget, self._bytes
        if count:
            budget.lock.acquire()
            try:
                budget.held_bytes -= count
            finally:
                budget.lock.release()
        self._bytes = self._whole = 0


class DownstreamHandler(http.server.BaseHTTPRequestHandler):
    """One client connection: its requests one after the other.

    http.server's own parser is not used: it ignores Transfer-Encoding, takes
    conflicting lengths and answers in HTML (robustness.md, section 1).
    """

    server: DownstreamServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        """Called by socketserver; no file objects are made of the socket."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeouts, (self._serve, self._refuse) = self.server.timeouts, self.server.application
        self._client = ClientConnection(self.request, self.server.monotonic, self.server.turns)
        self._share = BodyShare(self.server.bodies)
        self._is_spare = self.server.is_spare(self.request)
        self._idle_seconds, self._seconds = timeouts.keepalive_seconds, timeouts.client_seconds
        self._head_seconds = SPARE_HEAD_SECONDS if self._is_spare else self._seconds
        self._head = NO_HEAD
        self._lingers = False
        # What each request is given: methods that are bound once (0.2 us).
        self._hooks = self._read_body, self._client, self._begin_answer, self._share.give_back

    def handle(self) -> None:
        """Serve requests until one side wants the connection closed."""
        client, server = self._client, self.server
        try:
            # One above the limit has its time for all of it, silence with it.
            while self._is_spare or client.await_request(self._idle_seconds):
                try:
                    keep = self._serve_one()
                finally:
                    self._share.give_back()
                    # Without a lock: who waits says so and then looks, we do the opposite.
                    server.busy.discard(self)
                    if server.awaits_idle:
                        server.no_longer_busy()
                if not keep:
                    break
            if self._lingers:
                self._linger()
        except ClientGone:
            pass  # it left; whoever served it has closed its books

    def finish(self) -> None:
        """Called by socketserver, which then closes the socket."""
        self._client.finish()
        del self._hooks  # a circle

    def _serve_one(self) -> bool:
        """One request and its answer; whether the connection may serve another."""
        request: Optional[HttpRequest] = None
        # Nothing of the request before may show in this one.
        last, self._head, self._decoder = self._head, NO_HEAD, NO_BODY
        self._continue_owed = self._has_begun = False
        try:
            try:
                raw = self._client.read_head(self._head_seconds)
            except RequestError as error:
                raise busy("too many connections") if self._is_spare else error
            finally:
                # Half a head is no request yet: it does not hold up a stop.
                self.server.busy.add(self)
            head, length = parse_request_head(raw, last)
            self._head = head
            read_body, peer, begin_answer, let_go = self._hooks
            request = HttpRequest(head.method, head.target, head.headers, read_body, peer,
                                  begin_answer, let_go, head.kind)
            self._decoder = request_body_decoder(head) if length is None else LengthBody(length)
            if self._is_spare and plain_path(request.path)[0] not in HEALTH_PATHS:
                raise busy("too many connections")
            if head.expects:
                self._check_expectation()
            response = self._serve(request)
        except GatewayError as error:
            response = self._refuse(error, request)
        return self._answer(response)

    def _check_expectation(self) -> None:
        expectations = self._head.headers.tokens("expect")
        if expectations:
            if [value.lower() for value in expectations] != ["100-continue"]:
                raise RequestError(417, "the only expectation supported is 100-continue",
                                   close=True)
            self._continue_owed = self._head.version == 1

    def _read_body(self) -> bytes:
        """The request's body, for the engine, once its checks without a body are done."""
        decoder, share, limit_bytes = self._decoder, self._share, self.server.limit_bytes
        if not isinstance(decoder, LengthBody):
            reserve = share.take
        elif decoder.remaining > limit_bytes:
            raise too_large(limit_bytes)
        else:
            reserve = share.begin(decoder.remaining)
        if self._continue_owed and not decoder.done:
            self._continue_owed = False
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n", self._seconds)
        body = self._client.read_body(decoder, limit_bytes, self._seconds, reserve)
        if len(body) > SMALL_BODY_BYTES:
            # As much again is reckoned with; only what bombs take is reserved besides, or
            # bodies that had room would be refused once they have been read.
            share.take(max(0, parsed_bytes(body) - len(body)))
        return body

    def _begin_answer(self, response: HttpResponse) -> Callable[[bytes], None]:
        """Send the head of an answer whose body comes later; gives what sends pieces of it."""
        head = self._answer_head(response)
        self._has_begun = True
        self._client.send(head, self._seconds)
        return self._send_piece

    def _answer(self, response: HttpResponse) -> bool:
        """Write an answer and end its books; whether the connection stays.

        The answer does not wait for a body that nobody reads.  What then comes
        of it is thrown away where it is small; else the connection closes, after
        a while, so that the answer arrives.
        """
        keep, ended = False, "client_left"
        try:
            head, body = b"" if self._has_begun else self._answer_head(response), response.body
            if self._head.method == "HEAD" or response.status in (204, 304):
                self._client.send(head, self._seconds)
            elif isinstance(body, bytes):
                self._client.send(head + body, self._seconds)
            else:
                self._write_pieces(response, body, head)
            keep, ended = self._keeps, ""
        except UpstreamError:
            # Told by RelayBody in the record; here the connection ends without
            # the end of its body.
            ended = "upstream_broke"
            if self._head.version == 0:
                self._client.reset_on_close()
        finally:
            response.close(ended)
        if keep and not self._decoder.done:
            keep = self._client.drain(self._decoder, MAX_KEPT_DRAIN_BYTES, DRAIN_SECONDS)
        self._lingers = not keep and not ended
        return keep

    def _answer_head(self, response: HttpResponse) -> bytes:
        """An answer's head, and how its body ends (``_is_chunked``), and whether the
        connection may serve another request (``_keeps``)."""
        head = self._head
        self._is_chunked = response.length is None and head.version == 1
        self._keeps = not (
            head.closes or response.close_connection or self._is_spare
            or head.version == 0 and response.length is None
            or not self._decoder.done and (self._continue_owed or not self._small_rest()))
        return framed_head(response, head, self._keeps, self.server.wall_clock)

    def _small_rest(self) -> bool:
        return not isinstance(self._decoder, LengthBody) or (
            self._decoder.remaining <= MAX_KEPT_DRAIN_BYTES)

    def _send_piece(self, piece: bytes) -> None:
        self._client.send(encode_chunk(piece) if self._is_chunked else piece, self._seconds)

    def _write_pieces(self, response: HttpResponse, pieces: Iterable[bytes],
                      data: bytes) -> None:
        """A body that comes in pieces, ``data`` before it: each as soon as it is there.

        What is there at once goes down at once: one packet, and one call that other
        threads get in between at, less for the head and for the end of a stream.
        """
        seconds, send, ready = self._seconds, self._client.send, response.ready
        is_chunked = self._is_chunked
        if data and not ready():
            send(data, seconds)
            data = b""
        for piece in pieces:
            data += encode_chunk(piece) if is_chunked else piece
            if not ready():
                send(data, seconds)
                data = b""
        if is_chunked:
            data += LAST_CHUNK
        if data:
            send(data, seconds)

    def _linger(self) -> None:
        """Read on for a while before closing: a reset would take the answer with it."""
        self._client.finish_sending()
        self._client.drain(UntilCloseBody(), MAX_DRAIN_BYTES,
                           SPARE_HEAD_SECONDS if self._is_spare else DRAIN_SECONDS)


class DownstreamServer(http.server.ThreadingHTTPServer):
    """The listening side: a thread a connection, a bound on connections, a drain.

    ``serve_forever`` sleeps until a connection or ``shutdown`` comes; it polls
    nothing.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = LISTEN_BACKLOG
    # On Windows SO_REUSEADDR would let two processes share the port (gh-85307).
    allow_reuse_address = os.name != "nt"

    def __init__(
        self,
        address: tuple[str, int],
        application: Application,
        timeouts: Timeouts,
        limits: Limits,
        monotonic: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.application = application
        self.bodies = BodyBudget()
        self.turns = Turns()
        self.configure(timeouts, limits)
        self.monotonic = monotonic
        self.wall_clock = wall_clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._connections: set[socket.socket] = set()
        self._spare: set[socket.socket] = set()
        self._threads_seen: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        # The connections that serve a request.
        self.busy: set[DownstreamHandler] = set()
        self.awaits_idle = False
        self._stopping = threading.Event()
        self._waker, self._woken = socket.socketpair()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, DownstreamHandler)
        except BaseException:
            self._close_wakers()
            raise

    def configure(self, timeouts: Timeouts, limits: Limits) -> None:
        """Bounds for connections from now on."""
        self.timeouts = timeouts
        self.limit_bytes = limits.body_bytes
        self.bodies.limit_bytes = max(MAX_HELD_BODY_BYTES, limits.body_bytes)
        self._limit_connections = limits.connections

    def server_bind(self) -> None:
        """Bind without http.server's reverse look-up of the name, which may take seconds."""
        if os.name == "nt":
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        # A client that leaves between select and accept must not block the loop.
        self.socket.setblocking(False)

    @property
    def url(self) -> str:
        """Where it listens, as a client would write it."""
        host = self.server_name
        return "http://%s:%d" % ("[%s]" % host if ":" in host else host, self.server_port)

    def serve_forever(self, poll_interval: float = 0.0) -> None:
        """Accept until ``shutdown``; then nobody can connect any more."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    if key.fileobj is self.socket:
                        self._handle_request_noblock()  # pyright: ignore[reportAttributeAccessIssue]
        self._accept_the_rest()
        self.socket.close()

    def _accept_the_rest(self) -> None:
        """Let in who has connected and waits: closing the listener would reset them."""
        for _ in range(LISTEN_BACKLOG):
            try:
                request, client_address = self.get_request()
            except OSError:
                return  # nobody waits, or there is no room for one
            self.process_request(request, client_address)

    def shutdown(self) -> None:
        """End ``serve_forever``, from any thread."""
        self._stopping.set()
        self._waker.send(b"x")

    def get_request(self) -> Any:
        """Accept; out of descriptors, pause instead of spinning on the same error."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in OUT_OF_ROOM:
                self._stopping.wait(ACCEPT_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or an immediate 503 above the limit.

        Those just above it are looked at: health is told even then.
        """
        with self._changed:
            count = len(self._connections)
            full = count >= self._limit_connections + SPARE_CONNECTIONS
            if not full:
                self._connections.add(request)
                if count >= self._limit_connections:
                    self._spare.add(request)
        if full:
            self._turn_away(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # can't start new thread: the process is at its limit, not the request
            self._turn_away(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection's own thread, remembered so that stopping can wait for its end."""
        with self._changed:
            self._threads_seen.add(threading.current_thread())
        super().process_request_thread(request, client_address)

    def is_spare(self, request: Any) -> bool:
        """Whether a connection came above the limit: it may ask for health alone."""
        with self._changed:
            return request in self._spare

    def _turn_away(self, request: Any) -> None:
        response = self.application.refuse(busy("too many connections"), None)
        assert isinstance(response.body, bytes)
        try:
            request.setblocking(False)
            request.send(framed_head(response, NO_HEAD, False, self.wall_clock) + response.body)
            # Unread input would make the close a reset, which takes the answer along.
            request.shutdown(socket.SHUT_WR)
            request.recv(READ_BYTES)
        except OSError:
            pass  # it has not sent a request yet, or would not have read the answer
        response.close()
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; called when its thread has ended."""
        with self._changed:
            self._connections.discard(request)
            self._spare.discard(request)
            self._changed.notify_all()
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A fault of ours in a connection's thread, outside any request."""
        error = sys.exc_info()[1]
        if error is not None:
            self.application.refuse(
                GatewayError("internal error of the server: %s" % frames_of(error)), None).close()

    def no_longer_busy(self) -> None:
        """A request has its answer; who waits looks whether it was the last."""
        with self._changed:
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """``connections`` that are open, and ``requests`` under way."""
        with self._changed:
            return {"connections": len(self._connections), "requests": len(self.busy)}

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether the last request under way ends within ``seconds``."""
        with self._changed:
            self.awaits_idle = True
            return self._changed.wait_for(lambda: not self.busy, seconds)

    def close_connections(self, seconds: float) -> bool:
        """End every connection and wait for their threads; whether all ended in time.

        At first they are told only that nothing more will come: a request that is here
        already has its answer, instead of a reset.
        """
        deadline = self.monotonic() + seconds
        for how, wait in ((socket.SHUT_RD, min(LAST_ANSWER_SECONDS, seconds)),
                          (socket.SHUT_RDWR, seconds)):
            with self._changed:
                connections = list(self._connections)
            for connection in connections:
                try:
                    connection.shutdown(how)
                except OSError:
                    pass  # closed by its own thread meanwhile
            with self._changed:
                ended = self._changed.wait_for(lambda: not self._connections, wait)
        for thread in self._threads_alive():
            thread.join(max(0.0, deadline - self.monotonic()))
        return ended

    def _threads_alive(self) -> list[threading.Thread]:
        while True:
            try:
                with self._changed:
                    return list(self._threads_seen)
            except RuntimeError:
                pass  # one has ended just then, side by side with us (3.13t): look again

    def server_close(self) -> None:
        """Close the listener."""
        super().server_close()
        self._close_wakers()

    def _close_wakers(self) -> None:
        self._waker.close()
        self._woken.close()


# ---- 18. Demo upstream -------------------------------------------------------

DEMO_WORD_SECONDS = 0.02
DEMO_MAX_SLOW_SECONDS = 60.0
# demo:NAME ARGUMENT anywhere in the last user text.
DEMO_ORDER = re.compile(r"\bdemo:([a-z0-9]+)(?:[ ]+(\S+)(?:[ ]+(\{.*\}))?)?", re.DOTALL)
DEMO_STATUSES = {
    "401": (401, "invalid x-api-key (as you asked)"),
    "429": (429, "rate limited (as you asked)"),
    "500": (500, "internal error (as you asked)"),
    "529": (529, "overloaded (as you asked)"),
}


class DemoUpstream:
    """An upstream for trying, teaching and testing: contract section 13.

    Speaks the Messages API to whoever brings ``key``; echoes the last user text
    and says that it is a demo.  ``pause(seconds)`` is its only way to wait.
    """

    def __init__(
        self,
        key: Secret,
        pause: Callable[[float], Any],
        new_id: Callable[[], str],
    ) -> None:
        self._keys = KeyRing([("gateway", key)])
        self._pause = pause
        self._new_id = new_id

    def handle(self, request: HttpRequest) -> HttpResponse:
        """The answer to a request; a GatewayError is answered, too."""
        try:
            return self._answer(request)
        except GatewayError as error:
            return self.refuse(error)

    def refuse(self, error: GatewayError, request: Optional[HttpRequest] = None) -> HttpResponse:
        """An error in the API's shape."""
        request_id = self._new_id()
        body = anthropic_error(error.type, error.message, request_id)
        headers = [*error.headers, ("request-id", request_id)]
        return json_response(error.status, body, headers, error.close)

    def _answer(self, request: HttpRequest) -> HttpResponse:
        if not any(self._keys.find(credential)
                   for _, _, credential in presented_credentials(request.headers)):
            raise RequestError(401, "invalid x-api-key")
        if request.method != "POST" or not request.path.startswith("/v1/messages"):
            raise RequestError(404, "the demo upstream serves /v1/messages alone")
        document = parse_message_request(request.read_body())
        if request.path == "/v1/messages/count_tokens":
            return json_response(200, {"input_tokens": demo_tokens(document.data.decode("utf-8"))})
        text = demo_text(document.values["messages"])
        order = DEMO_ORDER.search(text)
        name, argument, json_text = order.groups() if order else ("", None, None)
        if name in DEMO_STATUSES:
            status, message = DEMO_STATUSES[name]
            told = [("retry-after", argument)] if status == 429 and argument else []
            raise RequestError(status, message, told)
        if name == "slow":
            self._pause(min(demo_number(argument), DEMO_MAX_SLOW_SECONDS))
        if name == "html":
            return HttpResponse(200, [("Content-Type", "text/html")], b"<h1>Log in</h1>")
        events = demo_events(document, text, self._new_id(), (name, argument, json_text))
        headers = [("request-id", self._new_id())]
        if document.values.get("stream") is True:
            return HttpResponse(200, [("Content-Type", "text/event-stream"), *headers],
                                self._stream(events, name))
        if name in ("cut", "error"):
            raise RequestError(500, "broken off (as you asked)")
        collector = MessageCollector()
        for event in events:
            collector.feed(encode_sse_event(event["type"], event))
        return json_response(200, collector.message(), headers)

    def _stream(self, events: Sequence[dict], fault: str) -> Iterator[bytes]:
        """The events word by word; ``cut`` and ``error`` break them off half way."""
        half = len(events) // 2
        for index, event in enumerate(events):
            if index == half and fault == "cut":
                raise UpstreamBroke("cut (as you asked)")
            if index == half and fault == "error":
                error = {"type": "overloaded_error", "message": "overloaded (as you asked)"}
                yield encode_sse_event("error", {"type": "error", "error": error})
                return
            yield encode_sse_event(event["type"], event)
            if event["type"] == "content_block_delta":
                self._pause(DEMO_WORD_SECONDS)


def demo_number(text: Optional[str]) -> float:
    """A number of seconds out of an order, 0 where it is none."""
    return float(text) if text and re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) else 0.0


def demo_tokens(text: str) -> int:
    """Four characters a token: good enough for a demo, never 0."""
    return max(1, len(text) // 4)


def demo_text(messages: Sequence[Any]) -> str:
    """The last text of the newest user message that a person may have typed."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [block.get("text") for block in blocks if isinstance(block, dict)]
        typed = [text for text in texts
                 if isinstance(text, str) and not text.lstrip().startswith("<system-reminder>")]
        return typed[-1].strip() if typed else ""
    return ""


def demo_tool(document: JsonDocument, order: Sequence[Optional[str]]) -> Optional[dict]:
    """The tool_use block that ``demo:tool NAME {json}`` asks for, where that tool is offered."""
    tools = document.values.get("tools")
    names = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(
        tools, list) else []
    if order[0] != "tool" or order[1] not in names:
        return None
    try:
        arguments = json.loads(order[2] or "{}")
    except ValueError:
        raise RequestError(400, "demo:tool NAME {json}: that is not JSON") from None
    return {"name": order[1], "input": arguments}


def demo_events(document: JsonDocument, text: str, message_id: str,
                order: Sequence[Optional[str]]) -> list[dict]:
    """A whole message as the events of its stream."""
    tool = demo_tool(document, order)
    thinking = document.values.get("thinking")
    blocks: list[tuple[dict, list[dict]]] = []
    if isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"):
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [
            {"type": "thinking_delta", "thinking": "The demo repeats what it was told."},
            {"type": "signature_delta", "signature": "ZGVtbw=="}]))
    answer = ("Calling %s, as you asked." % tool["name"] if tool is not None else
              "This is the demo upstream of claude_gateway; no model was asked. You said: %s"
              % (text or "(nothing that a person typed)"))
    blocks.append(({"type": "text", "text": ""},
                   [{"type": "text_delta", "text": word}
                    for word in re.findall(r"\s*\S+", answer)]))
    if tool is not None:
        blocks.append(({"type": "tool_use", "id": "toolu_" + message_id, "name": tool["name"],
                        "input": {}},
                       [{"type": "input_json_delta", "partial_json": json.dumps(tool["input"])}]))
    usage = {"input_tokens": demo_tokens(document.data.decode("utf-8")), "output_tokens": 1}
    start = {"id": "msg_" + message_id, "type": "message", "role": "assistant",
             "model": document.values.get("model"), "content": [], "stop_reason": None,
             "stop_sequence": None, "usage": usage}
    return events_of_blocks(start, blocks, "tool_use" if tool is not None else "end_turn",
                            demo_tokens(answer))


# ---- 19. Dashboard page ------------------------------------------------------

# One static constant, no formatting of any kind.  Its script fetches
# gateway/status once a second while somebody looks, and gateway/requests when
# that tells of new ones; what it gets it sets as text.
DASHBOARD = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>claude_gateway</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%23a8481f'/%3E%3Cpath d='M3 8h3l4-4h3M6 8l4 4h3' fill='none' stroke='white' stroke-width='1.6'/%3E%3C/svg%3E">
<style>
:root {
  --paper: #f7f5f1; --card: #ffffff; --ink: #1f1d1a; --soft: #5e584f; --line: #e2dcd1; --track: #ece7dd;
  --accent: #a8481f; --blue: #2f6294; --pale: #a9c3dc; --green: #20693f; --amber: #8a5300; --red: #b3261e;
  --green-wash: #e2f1e7; --amber-wash: #fbeed3; --red-wash: #fbe5e2; --blue-wash: #e3edf6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171614; --card: #211f1c; --ink: #ece7df; --soft: #aca497; --line: #38342e; --track: #35312b;
    --accent: #ef9468; --blue: #85b6e4; --pale: #3f6587; --green: #83cfa0; --amber: #eab960; --red: #ff9d92;
    --green-wash: #1d3326; --amber-wash: #3a2d13; --red-wash: #42201c; --blue-wash: #1c2f40;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 75rem; margin: 0 auto; padding: 0 1.25rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .9rem; padding-top: 1.1rem; padding-bottom: .9rem; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: 1.3rem; letter-spacing: -.01em; }
h1 span { color: var(--soft); font-weight: 400; font-size: .9rem; }
h2 { margin: 0; font-size: 1.02rem; }
h3 { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
section { margin: 0 0 1.6rem; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem .8rem; margin: 0 0 .55rem; }
.head p, .head label { margin: 0; color: var(--soft); font-size: .88rem; }
.head label { margin-left: auto; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.clip { overflow: hidden; } abbr { text-decoration: none; }
.empty { margin: 0; padding: 1rem; color: var(--soft); border-style: dashed; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .3rem; background: var(--card); padding: .3rem .6rem; z-index: 1; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: .25rem; }
button, input { font: inherit; color: inherit; }
button { cursor: pointer; background: var(--card); border: 1px solid var(--soft); border-radius: .4rem; padding: .2rem .7rem; }
button.primary { background: var(--accent); border-color: var(--accent); color: var(--card); font-weight: 600; }
a { color: var(--accent); }

.pill { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-size: .82rem; font-weight: 600; white-space: nowrap; }
header .pill { color: var(--amber); }
.pill { color: var(--amber); background: var(--amber-wash); }
.pill.good, header .pill.good { color: var(--green); background: var(--green-wash); }
.pill.bad, header .pill.bad { color: var(--red); background: var(--red-wash); }
.pill.busy { color: var(--blue); background: var(--blue-wash); }
.pill.off { color: var(--soft); background: var(--track); }
.pill.good::before, .pill.busy::before { content: ""; display: inline-block; width: .45rem; height: .45rem; margin-right: .4rem;
  border-radius: 50%; background: currentColor; vertical-align: .08rem; }
.pill.busy::before { animation: breathe 1.6s ease-in-out infinite; }
@keyframes breathe { 50% { opacity: .25; } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }

#problem { margin: 0 0 1.2rem; padding: .7rem 1rem; border-radius: .6rem; color: var(--red); background: var(--red-wash); }
#ask form { max-width: 30rem; margin: 3rem auto; padding: 1.4rem; display: grid; gap: .7rem; }
#ask p { margin: 0; color: var(--soft); } #ask .wrong { color: var(--red); font-weight: 600; }
#ask input { padding: .45rem .6rem; border: 1px solid var(--soft); border-radius: .4rem; background: var(--paper); width: 100%; }

#tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.4rem, 1fr)); gap: 1px; margin: 0 0 1.6rem;
  background: var(--line); overflow: hidden; }
#tiles div { background: var(--card); padding: .7rem 1rem; display: flex; flex-direction: column; }
#tiles dt { color: var(--soft); font-size: .82rem; }
#tiles dd { margin: 0; font-size: 1.55rem; line-height: 1.25; font-weight: 600; letter-spacing: -.015em; }
#tiles dd.note { font-size: .8rem; font-weight: 400; letter-spacing: 0; color: var(--soft); }

table { border-collapse: collapse; width: 100%; } .model { min-width: 6.2rem; }
caption { text-align: left; }
th, td { text-align: left; padding: .42rem .8rem; vertical-align: top; }
th { color: var(--soft); font-size: .8rem; font-weight: 600; border-bottom: 1px solid var(--line); }
tbody th { color: inherit; font-size: inherit; font-weight: 400; border: 0; overflow-wrap: anywhere; }
tbody tr + tr > td, tbody tr + tr > th { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; }
td .sub { color: var(--soft); font-size: .86rem; } td .pill + .sub { overflow-wrap: normal; }
td time { white-space: nowrap; }

#accounts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .8rem; list-style: none; margin: 0; padding: 0; }
#accounts li { padding: .8rem 1rem; display: flex; flex-direction: column; gap: .45rem; }
#accounts .top { display: flex; justify-content: space-between; gap: .6rem; align-items: start; }
#accounts .clock { font-size: 1.7rem; font-weight: 600; line-height: 1.1; color: var(--amber); }
#accounts .clock span { font-size: .85rem; font-weight: 400; color: var(--soft); }
#accounts p { margin: 0; color: var(--soft); font-size: .88rem; }
.limit { display: grid; grid-template-columns: 1fr auto; font-size: .84rem; gap: .1rem .6rem; }
.limit + .limit { margin-top: .4rem; }
.bar { grid-column: 1 / -1; height: .3rem; border-radius: 1rem; background: var(--track); overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--blue); }
.bar.low span { background: var(--red); }

#plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .8rem; }
figure { margin: 0; padding: .8rem 1rem .6rem; min-width: 0; }
.keys { display: flex; flex-wrap: wrap; gap: 0 .9rem; margin-top: .5rem; }
figure .readout { margin: .1rem 0 .5rem; font-size: .88rem; color: var(--soft); min-height: 1.3rem; }
.key { font-size: .8rem; color: var(--soft); white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .65rem; height: .65rem; border-radius: .15rem; margin-right: .35rem; background: var(--swatch); }
.c-blue { fill: var(--blue); --swatch: var(--blue); } .c-pale { fill: var(--pale); --swatch: var(--pale); }
.c-red { fill: var(--red); --swatch: var(--red); } .c-accent { fill: var(--accent); --swatch: var(--accent); }
.frame { position: relative; padding-right: 3.4rem; }
.frame svg { display: block; width: 100%; height: 7.2rem; }
.frame .grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.frame .top, .frame .middle { position: absolute; right: 0; width: 3.1rem; font-size: .76rem; color: var(--soft); line-height: 1; }
.frame .top { top: 0; } .frame .middle { top: calc(50% - .4em); }
.axis { display: flex; justify-content: space-between; padding-right: 3.4rem; font-size: .76rem; color: var(--soft); }

.opener { border: 0; background: none; padding: 0 .3rem 0 0; text-align: left; }
.opener::before { content: "\25B8"; display: inline-block; width: 1rem; color: var(--accent); }
.opener[aria-expanded=true]::before { content: "\25BE"; }
tr.detail > td { background: var(--paper); padding: .8rem 1rem 1rem; border-top: 0 !important; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .5rem 1.2rem; margin: 0 0 .8rem; }
.facts dt { color: var(--soft); font-size: .78rem; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.attempts { list-style: none; margin: .3rem 0 .8rem; padding: 0; }
.attempts li { display: grid; grid-template-columns: minmax(10rem, 1fr) minmax(9rem, 1fr) minmax(6rem, 1.4fr); gap: 0 1rem; align-items: center; padding: .2rem 0; }
.attempts .pause { color: var(--soft); font-size: .86rem; font-style: italic; }
.attempts svg { width: 100%; height: .6rem; } .attempts .rail { fill: var(--track); }
.edits { margin: .3rem 0 0; padding-left: 1.1rem; }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 2rem; }
@media (max-width: 46rem) {
  header, main, footer { padding-left: .75rem; padding-right: .75rem; }
  .wide { display: none; } th, td { padding: .42rem .35rem; } .model { min-width: 4.8rem; } td .pill { padding: .05rem .4rem; } .opener { white-space: nowrap; }
  td .pill + .sub { display: block; } td .pill + .sub:empty { display: none; }
  .attempts li { grid-template-columns: 1fr; padding: .35rem 0; } .attempts svg { grid-column: 1 / -1; }
  #tiles { grid-template-columns: 1fr 1fr; }
  .head label { margin-left: 0; }
}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
  <h1>claude_gateway <span id="version"></span></h1>
  <p id="connection" class="pill">connecting</p>
  <p id="about"></p>
  <button id="forget" type="button" hidden>Forget the key</button>
</header>
<p id="said" class="unseen" role="status"></p>
<main id="main">
  <p id="problem" hidden></p>
  <noscript><p class="card empty">This page draws itself with a script of its own. Without one, see <a href="gateway/status">gateway/status</a> and <a href="metrics">metrics</a>.</p></noscript>
  <section id="ask" aria-labelledby="ask-title" hidden>
    <form class="card">
      <h2 id="ask-title">This gateway wants a key</h2>
      <p id="ask-hint">One of <code>auth.api_keys</code>. It stays in this tab and is forgotten when the tab closes.</p>
      <label for="key">Gateway key</label>
      <input id="key" type="password" autocomplete="off" spellcheck="false" required aria-describedby="ask-hint ask-wrong">
      <p id="ask-wrong" class="wrong" role="alert"></p>
      <button class="primary">Open the dashboard</button>
    </form>
  </section>
  <div id="board" hidden>
    <dl id="tiles" class="card" aria-label="At a glance"></dl>
    <section aria-labelledby="live-title">
      <div class="head"><h2 id="live-title">Under way</h2><p id="live-note"></p></div>
      <p id="live-empty" class="card empty">Nothing is under way. A request shows up here within a second.</p>
      <div id="live-table" class="card clip" hidden><table>
        <caption class="unseen">Requests under way, the oldest first</caption>
        <thead><tr><th scope="col" class="number">Age</th><th scope="col">State</th><th scope="col">Model</th><th scope="col" class="wide">Account</th><th scope="col" class="wide">Client</th><th scope="col" class="number wide">In</th><th scope="col" class="number">Out <abbr title="about, by its size">≈</abbr></th></tr></thead>
        <tbody id="live"></tbody>
      </table></div>
    </section>
    <section aria-labelledby="accounts-title">
      <div class="head"><h2 id="accounts-title">Accounts</h2><p id="accounts-note"></p></div>
      <ul id="accounts"></ul>
    </section>
    <section aria-labelledby="plots-title">
      <div class="head"><h2 id="plots-title">The last hour</h2><p>a bar a minute</p></div>
      <div id="plots"></div>
    </section>
    <section aria-labelledby="recent-title">
      <div class="head"><h2 id="recent-title">Recent requests</h2><p>open a row to see attempts, delays and edits</p>
        <label><input id="only" type="checkbox"> only what failed, moved or was edited</label></div>
      <p id="recent-empty" class="card empty">No request yet. Point a client at this gateway: <code id="line"></code></p>
      <div id="recent-table" class="card clip" hidden><table>
        <caption class="unseen">Recent requests, the newest first</caption>
        <thead><tr><th scope="col">Time</th><th scope="col">Result</th><th scope="col">Model</th><th scope="col" class="wide">Account</th><th scope="col" class="number wide">In</th><th scope="col" class="number wide">From cache</th><th scope="col" class="number wide">Out</th><th scope="col" class="number wide">First byte</th><th scope="col" class="number">Took</th></tr></thead>
        <tbody id="recent"></tbody>
      </table></div>
    </section>
    <section aria-labelledby="models-title" id="models-section">
      <div class="head"><h2 id="models-title">Models</h2><p>since the start, by the id sent upstream</p></div>
      <div class="card clip"><table>
        <caption class="unseen">Totals per model since the start</caption>
        <thead><tr><th scope="col">Model</th><th scope="col" class="number">Requests</th><th scope="col" class="number">Failed</th><th scope="col" class="number wide">In</th><th scope="col" class="number wide">From cache</th><th scope="col" class="number wide">To cache</th><th scope="col" class="number">Out</th></tr></thead>
        <tbody id="models"></tbody>
      </table></div>
    </section>
  </div>
</main>
<footer id="foot" hidden><p>Also: <a id="to-metrics" href="metrics">metrics</a> for Prometheus. Answered here without an upstream: <span id="local">nothing</span>.</p></footer>
<script>
"use strict";
(() => {
// Everything that comes from the gateway is set as text, never as markup.
const $ = id => document.getElementById(id);
const base = location.pathname.replace(/\/?dashboard\/?$/, "");
const SVG = "http://www.w3.org/2000/svg";
const POLL_MS = 1000, ROWS = 100;

function el(tag, attributes, ...children) {
  const node = tag === "svg" || tag === "path" || tag === "rect" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
// Only what has changed is touched: nothing flickers, and selections stay.
function say(node, text) { if (node.textContent !== String(text)) node.textContent = text; }
function put(node, name, value) { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value); }
function show(node, shown) { if (node.hidden === shown) node.hidden = !shown; }
function sync(parent, items, key, make, update) {
  const rows = parent.rowsByKey || (parent.rowsByKey = new Map());
  const wanted = new Set(items.map(key));
  for (const [name, row] of rows) if (!wanted.has(name)) { row.remove(); rows.delete(name); }
  let next = parent.firstElementChild;
  for (const item of items) {
    let row = rows.get(key(item));
    if (!row) rows.set(key(item), row = make(item));
    if (row !== next) parent.insertBefore(row, next); else next = row.nextElementSibling;
    update(row, item);
  }
}
function cells(count, classes) {
  return el("tr", {}, ...Array.from({length: count}, (_, at) => el("td", {class: classes[at] || ""})));
}

// -- words
const whole = new Intl.NumberFormat("en"), short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const count = (number, one, many) => whole.format(number) + " " + (number === 1 ? one : many || one + "s");
const sum = list => list.reduce((total, value) => total + (value || 0), 0);
const two = number => String(number).padStart(2, "0");
function lasting(seconds) {
  if (seconds < 0.9995) return Math.round(seconds * 1000) + " ms";
  if (seconds < 59.95) return seconds.toFixed(1) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " min " + two(Math.floor(seconds % 60)) + " s";
  return minutes < 2880 ? Math.floor(minutes / 60) + " h " + two(minutes % 60) + " min" : Math.floor(minutes / 1440) + " days";
}
function clock(seconds) {
  const left = Math.ceil(seconds);
  return (left >= 3600 ? Math.floor(left / 3600) + ":" + two(Math.floor(left / 60) % 60) : Math.floor(left / 60)) + ":" + two(left % 60);
}
const hour = date => two(date.getHours()) + ":" + two(date.getMinutes());
const who = (provider, account) => provider ? provider + (account ? "/" + account : " (client's own key)") : "";
const CASES = {answered: "answered", unreached: "could not be reached", closed: "closed without an answer", silent: "no answer in time",
  credit: "credit used up", rate_limited: "over its limit", failing: "overloaded or failing", refused: "credential refused",
  credential: "key could not be renewed", unknown_model: "does not know the model", signature: "thinking signature refused",
  shutdown: "the gateway stopped", client_left: "client left"};
const EDITS = {model: "the model id was mapped", thinking_suffix: "-thinking in the id switched thinking on", background_model: "recognised as a background task, sent to background_model",
  collect: "asked for as a stream and collected", cache_control: "cache marks that would be refused were removed", merge_roles: "neighbours of one role were merged",
  empty_text: "blank text was removed", tool_pairs: "tool calls and results were paired", system_messages: "system messages became user turns",
  thinking: "thinking blocks were left out", thinking_signature: "asked once more without thinking blocks", unknown_fields: "fields that this upstream refuses were left out"};
const ENDED = {complete: "complete", upstream_broke: "upstream broke off", client_left: "client left", refused: "refused here"};
const STAGES = {reading: "reading", waiting: "waiting", queued: "queued", held: "held", streaming: "streaming"};
const STAGE_TITLES = {reading: "its body is coming in", waiting: "for the upstream's answer", queued: "until an account is ready", held: "until its first content", streaming: ""};
const words = (table, name) => Object.prototype.hasOwnProperty.call(table, name) ? table[name] : name;

// -- at a glance
function tile(name, value, note) { return {name, value, note}; }
function drawTiles(status) {
  const past = status.history, input = sum(past.input_tokens), cached = sum(past.cache_read_tokens), written = sum(past.cache_write_tokens);
  const prompt = input + cached + written, median = past.first_byte_p50.filter(value => value !== null).pop();
  const ready = status.accounts.filter(account => account.enabled && account.state === "ready").length;
  const failed = sum(past.errors), requests = sum(past.requests);
  const tiles = [
    tile("Under way", whole.format(status.in_flight), status.draining ? "draining" : "now"),
    tile("Accounts ready", status.accounts.length ? ready + " of " + status.accounts.length : "–", status.accounts.length ? "now" : "clients bring their own keys"),
    tile("Requests", whole.format(requests), "last hour, " + (failed ? whole.format(failed) + " failed" : "none failed")),
    tile("First byte", median === undefined ? "–" : lasting(median), "median, latest minute"),
    tile("Tokens out", short.format(sum(past.output_tokens)), "last hour"),
    tile("Tokens in", short.format(prompt), prompt ? Math.round(100 * cached / prompt) + " % from cache" : "last hour")];
  sync($("tiles"), tiles, item => item.name,
    item => el("div", {}, el("dt", {}, item.name), el("dd"), el("dd", {class: "note"})),
    (node, item) => { say(node.children[1], item.value); say(node.children[2], item.note); });
}

// -- under way
function drawLive(status) {
  show($("live-empty"), !status.live.length);
  show($("live-table"), status.live.length > 0);
  const more = status.in_flight - status.live.length;
  say($("live-note"), more > 0 ? "and " + whole.format(more) + " more" : "");
  sync($("live"), status.live, item => item.number, () => {
    const row = cells(7, ["number", "", "model", "wide", "wide", "number wide", "number"]);
    row.children[1].append(el("span", {class: "pill"}), " ", el("span", {class: "sub"}));
    return row;
  }, (row, item) => {
    const [age, state, model, account, client, tokensIn, tokensOut] = row.children;
    say(age, lasting(item.age_seconds));
    put(state.firstChild, "class", "pill " + (item.state === "streaming" ? "good" : item.state === "queued" ? "" : "busy"));
    put(state.firstChild, "title", words(STAGE_TITLES, item.state));
    say(state.firstChild, words(STAGES, item.state));
    say(state.lastChild, item.attempt > 1 ? "attempt " + item.attempt : "");
    say(model, item.model || item.route || "–");
    say(account, who(item.provider, item.account) || "–");
    say(client, item.key || "–");
    say(tokensIn, item.input_tokens === undefined ? "–" : short.format(item.input_tokens + item.cache_read_tokens + item.cache_write_tokens));
    say(tokensOut, item.output_tokens === undefined ? "–" : whole.format(item.output_tokens));
  });
}

// -- accounts
const STATES = {ready: "ready", cooling: "cooling", out: "out", off: "switched off"};
let statesBefore = null;
function drawAccounts(status) {
  const state = account => account.enabled ? account.state : "off";
  const own = status.providers.filter(provider => provider.enabled && !provider.accounts);
  const shown = status.accounts.concat(own.map(provider => ({provider: provider.name, account: "", enabled: true, state: provider.active ? "ready" : "out",
    ready_in_seconds: 0, in_flight: null, last_error: "", limits: {}, totals: provider.own_credentials})));
  say($("accounts-note"), shown.length ? "" : "none is configured");
  sync($("accounts"), shown, account => account.provider + "\n" + account.account, account => {
    const card = el("li", {class: "card"}, el("div", {class: "top"}, el("h3", {}, who(account.provider, account.account)), el("span", {class: "pill"})),
      el("div", {class: "clock"}, el("b"), " ", el("span", {}, "left of its rest")), el("p"), el("div"), el("p"));
    return card;
  }, (card, account) => {
    const [top, rest, error, limits, totals] = card.children, is = state(account);
    put(top.children[1], "class", "pill " + ({ready: "good", out: "bad", off: "off"}[is] || ""));
    say(top.children[1], STATES[is]);
    show(rest, account.ready_in_seconds > 0 && account.enabled);
    say(rest.firstChild, clock(account.ready_in_seconds));
    show(error, Boolean(account.last_error));
    say(error, "Last failure: " + words(CASES, account.last_error));
    sync(limits, Object.entries(account.limits), item => item[0],
      item => el("div", {class: "limit"}, el("span", {}, item[0].replace(/-/g, " ")), el("span"), el("div", {class: "bar", "aria-hidden": "true"}, el("span"))), drawLimit);
    say(totals, !account.in_flight && !account.totals.requests ? "not asked yet" : (account.in_flight === null ? "" : count(account.in_flight, "request") + " now · ") + count(account.totals.requests, "answer") + (account.totals.errors ? ", " + whole.format(account.totals.errors) + " failed" : "")
      + " · " + short.format(account.totals.output_tokens) + " tokens out");
  });
  const states = new Map(shown.map(account => [who(account.provider, account.account), state(account)]));
  if (statesBefore) for (const [name, is] of states)
    if (statesBefore.has(name) && statesBefore.get(name) !== is) say($("said"), "Account " + name + " is " + STATES[is] + ".");
  statesBefore = states;
}
function drawLimit(node, [, limit]) {
  const known = limit.limit > 0 && limit.remaining !== undefined, bar = node.children[2];
  const left = known ? short.format(limit.remaining) + " of " + short.format(limit.limit) + " left" : limit.status || "told";
  say(node.children[1], left + (limit.resets_in_seconds ? ", resets in " + clock(limit.resets_in_seconds) : ""));
  show(bar, known);
  if (!known) return;
  const share = Math.min(1, limit.remaining / limit.limit);
  put(bar, "class", share < 0.1 ? "bar low" : "bar");
  const width = (100 * share).toFixed(1) + "%";
  if (bar.firstChild.style.width !== width) bar.firstChild.style.width = width;
}

// -- plots
const PLOTS = [
  {title: "Requests", format: short.format, series: [["blue", "answered", past => past.requests.map((value, at) => value - past.errors[at])], ["red", "failed", past => past.errors]],
    all: past => count(sum(past.requests), "request") + ", " + whole.format(sum(past.errors)) + " failed",
    one: (past, at) => count(past.requests[at], "request") + ", " + whole.format(past.errors[at]) + " failed"},
  {title: "Time to first byte", format: seconds => seconds >= 1 ? seconds + " s" : seconds * 1000 + " ms", series: [["blue", "median", past => past.first_byte_p50], ["pale", "95th percentile", past => past.first_byte_p95.map((value, at) => value === null ? null : value - past.first_byte_p50[at])]],
    all: past => { const known = past.first_byte_p50.filter(value => value !== null); const ends = [lasting(Math.min(...known)), lasting(Math.max(...known))];
      return !known.length ? "no answer yet" : ends[0] === ends[1] ? "median " + ends[0] : "medians from " + ends.join(" to "); },
    one: (past, at) => past.first_byte_p50[at] === null ? "no answer" : "median " + lasting(past.first_byte_p50[at]) + ", 95 % below " + lasting(past.first_byte_p95[at])},
  {title: "Tokens", format: short.format, series: [["accent", "out", past => past.output_tokens], ["blue", "in", past => past.input_tokens.map((value, at) => value + past.cache_write_tokens[at])], ["pale", "read from cache", past => past.cache_read_tokens]],
    all: past => short.format(sum(past.output_tokens)) + " out, " + short.format(sum(past.input_tokens) + sum(past.cache_write_tokens)) + " in, " + short.format(sum(past.cache_read_tokens)) + " from cache",
    one: (past, at) => whole.format(past.output_tokens[at]) + " out, " + whole.format(past.input_tokens[at] + past.cache_write_tokens[at]) + " in, " + whole.format(past.cache_read_tokens[at]) + " from cache"}];
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * [1, 2, 5, 10].find(step => value <= step * power * 1.0001);
}
function makePlot(plot) {
  plot.paths = plot.series.map(([color]) => el("path", {class: "c-" + color}));
  plot.svg = el("svg", {viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img"}, el("path", {class: "grid", d: "M0 .5H600M0 50H600M0 99.5H600"}), ...plot.paths);
  plot.readout = el("p", {class: "readout"});
  plot.top = el("span", {class: "top"}); plot.middle = el("span", {class: "middle"});
  plot.svg.addEventListener("pointermove", event => {
    const box = plot.svg.getBoundingClientRect();
    plot.at = Math.max(0, Math.min(59, Math.floor(60 * (event.clientX - box.left) / box.width)));
    readOut(plot);
  });
  plot.svg.addEventListener("pointerleave", () => { plot.at = null; readOut(plot); });
  return el("figure", {class: "card"}, el("figcaption", {}, el("h3", {}, plot.title)), plot.readout,
    el("div", {class: "frame"}, plot.svg, plot.top, plot.middle), el("div", {class: "axis"}, el("span", {}, "an hour ago"), el("span", {}, "now")),
    el("div", {class: "keys"}, ...plot.series.map(([color, name]) => el("span", {class: "key c-" + color}, name))));
}
function readOut(plot) {
  const at = plot.at;
  if (!plot.past) return;
  say(plot.readout, at == null ? plot.all(plot.past) : hour(new Date(Date.now() - (59 - at) * 60000)) + ": " + plot.one(plot.past, at));
}
function drawPlot(plot, past) {
  plot.past = past;
  const columns = plot.series.map(([, , values]) => values(past));
  const most = Math.max(...past.requests.map((_, at) => sum(columns.map(column => column[at]))));
  const top = ceiling(most), heights = new Array(60).fill(0);
  columns.forEach((column, index) => {
    let path = "";
    column.forEach((value, at) => {
      if (!value) return;
      const low = heights[at], high = heights[at] = low + 100 * value / top;
      path += "M" + (at * 10 + 1) + " " + (100 - low).toFixed(1) + "V" + (100 - high).toFixed(1) + "h8V" + (100 - low).toFixed(1) + "z";
    });
    put(plot.paths[index], "d", path);
  });
  say(plot.top, most ? plot.format(top) : ""); say(plot.middle, most && (plot.format !== short.format || top % 2 === 0) ? plot.format(top / 2) : "");
  put(plot.svg, "aria-label", plot.title + " in the last hour: " + plot.all(past));
  readOut(plot);
}

// -- recent requests
let records = [], newest = 0, started = "";
function resultOf(record) {
  if (record.ended === "client_left") return ["off", "client left"];
  if (record.ended === "upstream_broke") return ["bad", "broke off"];
  return record.status >= 400 ? ["bad", String(record.status)] : ["good", String(record.status || "–")];
}
const isNotable = record => record.status >= 400 || record.ended !== "complete" || record.attempts.length > 1 || record.edits.length > 0;
function drawRecent() {
  const only = $("only").checked, shown = only ? records.filter(isNotable) : records;
  show($("recent-empty"), !records.length);
  show($("recent-table"), records.length > 0);
  sync($("recent"), shown.flatMap(record => record.open ? [record, {number: "d" + record.number, of: record}] : [record]), item => item.number,
    item => item.of ? detailRow(item.of) : recordRow(item), () => {});
}
function recordRow(record) {
  const row = cells(9, ["", "", "model", "wide", "number wide", "number wide", "number wide", "number wide", "number"]);
  const [time, result, model, account, tokensIn, cached, tokensOut, first, took] = row.children;
  const at = new Date(record.time), [color, text] = resultOf(record);
  const button = el("button", {class: "opener", type: "button", "aria-expanded": "false"}, el("time", {datetime: record.time}, hour(at) + ":" + two(at.getSeconds())));
  button.append(el("span", {class: "unseen"}, ", details of " + (record.model || record.route || "request")));
  button.addEventListener("click", () => {
    record.open = !record.open;
    button.setAttribute("aria-expanded", String(record.open));
    drawRecent();
  });
  time.append(button);
  result.append(el("span", {class: "pill " + color}, text));
  if (record.attempts.length > 1) result.append(" ", el("span", {class: "sub"}, count(record.attempts.length, "attempt")));
  const mapped = record.mapped_model && record.mapped_model !== record.model;
  model.append(record.model || record.route || record.method);
  if (mapped) model.append(" ", el("span", {class: "sub"}, "→ " + record.mapped_model));
  account.append(who(record.provider, record.account) || (record.error ? "refused here" : "answered here"));
  const number = value => record.provider ? short.format(value) : "–";
  tokensIn.append(number(record.input_tokens + record.cache_write_tokens));
  cached.append(number(record.cache_read_tokens));
  tokensOut.append(number(record.output_tokens));
  first.append(record.first_byte_seconds === null ? "–" : lasting(record.first_byte_seconds));
  took.append(lasting(record.seconds));
  return row;
}
function detailRow(record) {
  const facts = [["Request id", record.id], ["Client key", record.key], ["Route", record.method + " " + (record.route || "–")], ["Ended", words(ENDED, record.ended)], ["Error", record.error], ["Stop reason", record.stop_reason],
    ["Answered by", who(record.provider, record.account)], ["Model asked", record.model], ["Model sent", record.mapped_model === record.model ? "" : record.mapped_model], ["First byte", record.first_byte_seconds === null ? "" : lasting(record.first_byte_seconds)], ["Took", lasting(record.seconds)],
    ["Tokens in", record.provider ? whole.format(record.input_tokens) + ", cache read " + whole.format(record.cache_read_tokens) + ", written " + whole.format(record.cache_write_tokens) : ""],
    ["Tokens out", record.provider ? whole.format(record.output_tokens) : ""], ["Tokens saved, about", record.saved_tokens ? whole.format(record.saved_tokens) : ""],
    ["Bytes", whole.format(record.bytes_in) + " in, " + whole.format(record.bytes_out) + " out"]];
  const cell = el("td", {colspan: "9"}, el("dl", {class: "facts"}, ...facts.filter(fact => fact[1]).map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))));
  if (record.attempts.length) cell.append(el("h3", {}, "Attempts"), attemptList(record));
  if (record.edits.length) cell.append(el("h3", {}, "Edits"), el("ul", {class: "edits"}, ...record.edits.map(edit => el("li", {}, el("code", {}, edit), EDITS[edit] ? " – " + words(EDITS, edit) : ""))));
  return el("tr", {class: "detail"}, cell);
}
function attemptList(record) {
  const list = el("ol", {class: "attempts"}), all = Math.max(record.seconds, 0.001);
  let before = 0;
  record.attempts.forEach((attempt, index) => {
    const pause = attempt.began_seconds - before;
    if (index && pause > 0.01) list.append(el("li", {class: "pause"}, "waited " + lasting(pause)));
    before = attempt.began_seconds + attempt.seconds;
    const good = attempt.case === "answered" && attempt.status < 400;
    const rail = el("svg", {viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true"}, el("rect", {class: "rail", width: 100, height: 6}),
      el("rect", {class: good ? "c-blue" : "c-red", x: (100 * attempt.began_seconds / all).toFixed(2), width: Math.max(0.6, 100 * attempt.seconds / all).toFixed(2), height: 6}));
    list.append(el("li", {}, el("span", {}, who(attempt.provider, attempt.account)),
      el("span", {}, words(CASES, attempt.case) + (attempt.status ? " (" + attempt.status + ")" : "") + " after " + lasting(attempt.seconds)), rail));
  });
  return list;
}

// -- the rest
function drawModels(status) {
  const models = Object.entries(status.models);
  show($("models-section"), models.length > 0);
  sync($("models"), models, item => item[0], item => {
    const row = el("tr", {}, el("th", {scope: "row"}, item[0]));
    for (const kind of ["number", "number", "number wide", "number wide", "number wide", "number"]) row.append(el("td", {class: kind}));
    return row;
  }, (row, [, of]) => [of.requests, of.errors, of.input_tokens, of.cache_read_tokens, of.cache_write_tokens, of.output_tokens].forEach(
    (value, at) => say(row.children[at + 1], whole.format(value))));
}
function draw(status) {
  say($("version"), status.version);
  say($("about"), "up " + lasting(status.uptime_seconds) + (status.auth === "off" ? " · no key needed" : ""));
  document.title = (status.in_flight ? "(" + status.in_flight + ") " : "") + "claude_gateway";
  drawTiles(status); drawLive(status); drawAccounts(status); drawModels(status);
  PLOTS.forEach(plot => drawPlot(plot, status.history));
  const local = Object.entries(status.local_answers).filter(([kind]) => !["status", "requests", "dashboard", "metrics"].includes(kind));
  say($("local"), local.map(([kind, of]) => kind + " " + whole.format(of.requests)).join(", ") || "nothing");
  show($("board"), true); show($("foot"), true);
}

// -- asking the gateway: once a second while somebody looks, never otherwise
let key = "", timer = 0, abort = null, asking = false, failures = 0, lastSeen = null;
try { key = sessionStorage.getItem("claude_gateway_key") || ""; } catch (error) { /* no storage here: kept in memory */ }
function keep(value) {
  key = value;
  try { if (value) sessionStorage.setItem("claude_gateway_key", value); else sessionStorage.removeItem("claude_gateway_key"); } catch (error) { /* as above */ }
}
async function ask(path) {
  // No header can hold such a key, and no gateway has it; fetch would throw as if none answered.
  if (/[^\x21-\x7e]/.test(key)) throw Object.assign(new Error(), {status: 401});
  const answer = await fetch(base + path, {headers: key ? {"x-api-key": key} : {}, signal: abort.signal, credentials: "omit", cache: "no-store"});
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.error && told.error.message || "status " + answer.status), {status: answer.status});
}
async function look() {
  clearTimeout(timer);
  if (document.hidden || abort || asking) return;
  abort = new AbortController();
  const patience = setTimeout(() => abort && abort.abort(), 8000);
  try {
    const status = await ask("/gateway/status");
    if (status.started !== started) { records = []; newest = 0; started = status.started; $("recent").replaceChildren(); $("recent").rowsByKey = null; }
    draw(status);
    if (status.records > newest) await fetchRecords(status.records);
    drawRecent();
    if (failures) say($("said"), "The gateway answers again.");
    failures = 0; lastSeen = new Date();
    connected("good", "live"); show($("ask"), false); show($("problem"), false); show($("forget"), Boolean(key));
  } catch (error) {
    if (document.hidden) return;
    if (error.status === 401) return askForKey();
    failures += 1;
    if (failures === 1) say($("said"), "The gateway does not answer.");
    connected("bad", "reconnecting"); show($("problem"), true);
    say($("problem"), (error.status ? "The gateway says: " + error.message + "." : "The gateway does not answer.") + (lastSeen ? " This is how it was at " + hour(lastSeen) + ":" + two(lastSeen.getSeconds()) + "." : "") + " Trying again.");
  } finally {
    clearTimeout(patience);
    abort = null;
    timer = setTimeout(look, POLL_MS * Math.min(1 + failures, 4));
  }
}
async function fetchRecords(count) {
  const told = await ask("/gateway/requests?limit=" + Math.min(ROWS, count - newest + 5));
  const fresh = told.requests.map((record, at) => Object.assign(record, {number: told.records - at})).filter(record => record.number > newest);
  records = fresh.concat(records).slice(0, ROWS);
  newest = told.records;
}
function connected(color, text) { put($("connection"), "class", "pill " + color); say($("connection"), text); }
function askForKey() {
  say($("ask-wrong"), key ? "The gateway does not know that key." : "");
  keep("");
  for (const id of ["board", "foot", "problem", "forget"]) show($(id), false);
  show($("ask"), true); connected("", "key needed");
  asking = true;
  $("key").focus();
}
$("ask").querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  keep($("key").value.trim());
  $("key").value = "";
  asking = false;
  look();
});
$("forget").addEventListener("click", () => { keep(""); records = []; newest = 0; started = ""; statesBefore = null; look(); });
$("only").addEventListener("change", drawRecent);
document.addEventListener("visibilitychange", () => { if (document.hidden) { clearTimeout(timer); if (abort) abort.abort(); } else look(); });
$("plots").append(...PLOTS.map(makePlot));
$("to-metrics").href = base + "/metrics";
say($("line"), "ANTHROPIC_BASE_URL=" + location.origin + base);
look();
})();
</script>
</body>
</html>
"""


def dashboard_page() -> Page:
    """The page, fenced in: its own script and style run, nothing else, nowhere else.

    Both are named by their hashes, so that not even this page could be made to
    run more; the pictures are the icon, which stands in the page itself.
    """
    policy = "; ".join([
        "default-src 'none'",
        "script-src " + source_hash("script"),
        "style-src " + source_hash("style"),
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ])
    return Page(DASHBOARD.encode("utf-8"), (
        ("Content-Security-Policy", policy),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    ))


def source_hash(tag: str) -> str:
    """How a policy names what stands within the page's only element of a tag."""
    start = DASHBOARD.index("<%s>" % tag) + len(tag) + 2
    text = DASHBOARD[start:DASHBOARD.index("</%s>" % tag)]
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "'sha256-%s'" % base64.b64encode(digest).decode("ascii")


# ---- 20. Gateway -------------------------------------------------------------

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


class Gateway:
    """The composed gateway: starts on ``start`` or on entering, stops on ``stop`` or leaving.

    ``url`` (``http://HOST:PORT``) and ``port`` say where it listens once started,
    ``config`` what it serves.  ``write`` takes each log line, without its line end, from
    any thread (None: no log).  ``environ`` is looked at for proxies and certificates
    when it starts; None means the process' own, and the system's proxy settings.

    It serves in threads of its own and leaves none behind; it sets no signal handler
    and nothing of the process.  Stopped, it may be started again; several may run
    beside each other.  What tells about the running one raises RuntimeError where
    none runs.

    >>> with Gateway(Config.from_dict({"port": 0, "providers": [{"name": "demo"}]})) as gateway:
    ...     gateway.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(
        self,
        config: Config,
        write: Optional[Callable[[str], None]] = None,
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.config: Config = config
        self.url: str = ""
        self.port: int = 0
        self._environ = environ
        self._log = Log(write or (lambda line: None), time.time, config.log)
        self._new_id = request_ids()
        self._stop_pauses = threading.Event()
        self._engine: Optional[Engine] = None
        self._transport: Optional[Transport] = None
        self._renewal: Optional[Renewal] = None
        # The last one is the gateway's own; before it the demo upstream's, once wanted.
        self._servers: list[tuple[DownstreamServer, threading.Thread]] = []
        self._demo: Optional[tuple[BaseUrl, Account]] = None

    def start(self) -> Gateway:
        """Listen and serve, in threads of its own.

        Raises OSError where the address cannot be had, ConfigError where it must
        not be (:func:`startup_fault`), RuntimeError if it runs already.
        """
        if self._servers:
            raise RuntimeError("the gateway runs already")
        fault = startup_fault(self.config)
        if fault:
            raise ConfigError([fault])
        for warning in self.config.warnings:
            self._log.message("warning", warning)
        self._stop_pauses = threading.Event()
        transport = Transport(time.monotonic, proxy_chooser(self._environ, self._log.message),
                              named_ca_files(self._environ, self._log.message))
        renewal = Renewal(transport.send, transport.pause, time.monotonic, time.time, self._log)
        try:
            config = self._with_demo(self.config)
            # A generator of its own: a program may have seeded the one that all share.
            engine = Engine(config, transport, self._log, time.monotonic, time.time,
                            self._new_id, random.Random().random, renewal, dashboard_page())
            server = self._serve((config.host, config.port),
                                 Application(engine.handle, engine.refuse), config)
        except BaseException:
            self._close_servers()
            transport.close()
            raise
        self._engine, self._transport, self._renewal = engine, transport, renewal
        self.url, self.port = server.url, server.server_port
        return self

    def _with_demo(self, config: Config) -> Config:
        """The configuration with the demo upstream's address, which is started if wanted."""
        if not any(provider.preset == DEMO for provider in config.providers):
            return config
        if self._demo is None:
            key = Secret(os.urandom(24).hex())
            demo = DemoUpstream(key, self._stop_pauses.wait, self._new_id)
            server = self._serve(("127.0.0.1", 0), Application(demo.handle, demo.refuse), config)
            # The gateway's own server stays the last one.
            self._servers.insert(0, self._servers.pop())
            account = build_account(
                {"name": DEMO, "api_key": key, "auth_token": None, "priority": 0, "weight": 1,
                 "requests_per_minute": None, "max_concurrent": None, "models": (),
                 "enabled": True}, "x-api-key")
            self._demo = BaseUrl("http", "127.0.0.1", server.server_port, ""), account
        address, account = self._demo
        return config._replace(providers=tuple(
            provider._replace(base_url=address, accounts=(account,), proxy=None)
            if provider.preset == DEMO else provider
            for provider in config.providers))

    def _serve(self, address: tuple[str, int], application: Application,
               config: Config) -> DownstreamServer:
        server = DownstreamServer(address, application, config.timeouts, config.limits,
                                  time.monotonic, time.time)
        thread = threading.Thread(target=server.serve_forever, name="accept", daemon=True)
        self._servers.append((server, thread))
        thread.start()
        return server

    def reload(self, config: Config) -> list[str]:
        """Serve another configuration from the next request on; gives what needs a restart.

        Requests under way keep what they began with, and accounts that remain
        their state.  Each of the list is a line for people.  Raises ConfigError, and
        then changes nothing; RuntimeError where no gateway runs.
        """
        engine = self._running()
        # It must be one to start with, and one for where we listen until then.
        fault = startup_fault(config) or startup_fault(
            config._replace(host=self.config.host, port=self.port))
        if fault:
            raise ConfigError([fault])
        notes = ["%s: %s needs a restart; still %s" % (name, new, old) for name, old, new in (
            ("host", self.config.host, config.host), ("port", self.config.port, config.port))
            if old != new]
        config = config._replace(host=self.config.host, port=self.config.port)
        served = self._with_demo(config)
        self._log.configure(config.log)
        for server, _ in self._servers:
            server.configure(config.timeouts, config.limits)
        engine.reload(served)
        self.config = config
        for note in (*config.warnings, *notes):
            self._log.message("warning", note)
        return notes

    def note(self, level: str, text: str) -> None:
        """A line of one's own in the log; ``level`` as in ``log.level``."""
        self._log.message(level, text)

    def stop(self) -> None:
        """Drain and end: requests under way get ``timeouts.shutdown_seconds``.

        While draining ``/health`` and every new request answer 503.  What is
        then still under way ends with an error.
        """
        if self._engine is None or self._transport is None or self._renewal is None:
            return
        self._engine.draining = True
        server, _ = self._servers[-1]
        if not server.wait_until_idle(self.config.timeouts.shutdown_seconds):
            self._log.message("warning", "requests still under way are ended")
            self._stop_pauses.set()
            self._transport.cancel_all()
            server.wait_until_idle(DRAIN_SECONDS)
        # A token may be under renewal for nobody.
        self._transport.cancel_all()
        self._renewal.close()
        self._close_servers()
        self._transport.close()
        self._engine = self._transport = self._renewal = None

    def _close_servers(self) -> None:
        self._stop_pauses.set()
        for server, thread in reversed(self._servers):
            server.shutdown()
            thread.join(DRAIN_SECONDS)
            server.close_connections(DRAIN_SECONDS)
            server.server_close()
        self._servers, self._demo = [], None

    def _running(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the gateway does not run")
        return self._engine

    def status(self) -> dict[str, int]:
        """Counts for looking after the process: ``connections`` of clients, ``requests``
        under way, ``leases`` of accounts, ``upstream_active`` and ``upstream_idle``."""
        engine = self._running()
        assert self._transport is not None
        upstream = self._transport.connections()
        return dict(self._servers[-1][0].counts(), leases=engine.accounts.in_flight(),
                    upstream_active=upstream["active"], upstream_idle=upstream["idle"])

    def accounts(self) -> list[dict[str, Any]]:
        """Every account with ``provider``, ``account``, ``state`` (ready, cooling, out),
        ``ready_in_seconds``, ``in_flight``, ``last_error`` and the ``limits`` it told."""
        engine = self._running()
        return [dict(engine.accounts.snapshot(candidate), provider=provider.name,
                     account=candidate.key[1])
                for provider in engine.config.providers
                for candidate in configured(provider)]

    def local_answers(self) -> dict[str, tuple[int, int]]:
        """What was answered without an upstream, by route: (requests, tokens saved)."""
        return self._running().records.local_answers()

    def records(self, limit: int = RECORDS_KEPT) -> list[dict[str, Any]]:
        """What became of the newest requests that ended, the newest first; as JSON has them.

        A record has the keys of ``GET /gateway/requests``: ``id``, ``time`` (RFC 3339), ``key``,
        ``method``, ``route``, ``model``, ``mapped_model``, ``provider``, ``account``,
        ``attempts`` (a dict each), ``edits`` (names), ``status``, ``error``, ``stop_reason``,
        ``input_tokens``, ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``,
        ``first_byte_seconds`` (None: no byte came), ``seconds``, ``bytes_in``, ``bytes_out``,
        ``saved_tokens`` and ``ended`` (complete, upstream_broke, client_left, refused).
        """
        return [record.as_dict() for record in self._running().records.newest(limit)]

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *error: Any) -> None:
        self.stop()


def bypass_of_environment(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether the ``no`` among proxies excepts ``host:port``; on every system by these alone."""
    return bool(urllib.request.proxy_bypass_environment(  # pyright: ignore[reportAttributeAccessIssue]
        host, proxies=proxies))


def proxy_chooser(
    environ: Optional[Mapping[str, str]],
    tell: Callable[[str, str], None],
) -> Callable[[BaseUrl], Optional[ProxyAddress]]:
    """The environment's proxies (None: the process' and the system's), looked up once, now.

    ``tell(level, text)`` hears of one that cannot be used.
    """
    if environ is None:
        proxies, bypass = urllib.request.getproxies(), urllib.request.proxy_bypass
    else:
        proxies = {name.lower()[:-6]: value for name, value in sorted(environ.items())
                   if name.lower().endswith("_proxy") and value}
        bypass = partial(bypass_of_environment, proxies=proxies)
    parsed: dict[str, ProxyAddress] = {}
    for scheme in ("http", "https"):
        text = proxies.get(scheme) or proxies.get("all")
        try:
            parsed.update({scheme: parse_proxy(text)} if text else {})
        except ValueError as error:
            tell("error", "%s proxy of the environment not used: %s" % (scheme, error))

    def choose(base_url: BaseUrl) -> Optional[ProxyAddress]:
        host = "%s:%d" % (base_url.host, base_url.port)
        direct = is_loopback(base_url.host) or bypass(host)
        return None if direct else parsed.get(base_url.scheme)

    return choose


def named_ca_files(
    environ: Optional[Mapping[str, str]],
    tell: Callable[[str, str], None],
) -> list[str]:
    """The environment's files of certificates; one that is gone must not stop all TLS."""
    environ = os.environ if environ is None else environ
    named = [(name, environ[name]) for name in CA_VARIABLES if environ.get(name)]
    for name, path in named:
        if not os.path.isfile(path):
            tell("warning", "%s names %s, which is no file" % (name, path))
    return [path for _, path in named if os.path.isfile(path)]


def request_ids() -> Callable[[], str]:
    """What makes ids for requests: 96 random bits each, which guard nothing.

    Out of a generator of their own: a program may have seeded the one that all share.
    """
    bits = random.Random().getrandbits
    return lambda: "req_" + bits(96).to_bytes(12, "big").hex()


def is_same_host(listening: str, asked: str) -> bool:
    """Whether a connection to ``asked`` comes out where ``listening`` is listened on."""
    listening, asked = (name.strip("[]").lower().rstrip(".") for name in (listening, asked))
    anywhere = ("0.0.0.0", "::")
    local = is_loopback(asked) or asked in anywhere
    return listening == asked or local and (is_loopback(listening) or listening in anywhere)


def startup_fault(config: Config) -> str:
    """Why a valid configuration must not be served, with its path and what to do; or ""."""
    if config.auth.mode == "auto" and not config.auth.api_keys and not is_loopback(config.host):
        return ("host: %s is not loopback and there is no key: add --api-key (or auth.api_keys), "
                "or say --auth off" % config.host)
    for index, provider in enumerate(config.providers):
        base = provider.base_url
        if provider.preset != DEMO and base.port == config.port and is_same_host(
                config.host, base.host):
            return "providers[%d].base_url: %s is this gateway itself" % (index, base)
    return ""


# ---- 21. Options and files ---------------------------------------------------

CONFIG_NAME = "claude_gateway.json"
EXIT_GOOD, EXIT_BAD, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
SECRET_KEYS = frozenset([
    "api_key", "api_keys", "auth_token", "client_secret", "key", "proxy", "refresh_token"])
# How often the configuration file is looked at: one stat.
FILE_LOOK_SECONDS = 1.0

# Options that set one plain value of the table; --api-key and --upstream… do more.
PLAIN_OPTIONS = tuple(setting for setting in SETTINGS
                      if setting.flag and not isinstance(setting.default, tuple))


class Shell(NamedTuple):
    """How a shell's lines are written; ``python`` is how the interpreter is called there."""

    set: Callable[[str, str], str]
    unset: Callable[[str], str]
    quote: Callable[[str], str]
    python: str = "python3"


def quote_for_cmd(word: str) -> str:
    """A word in double quotes where cmd would split it or take a part of it as its own."""
    return '"%s"' % word if re.search(r"[\s&|<>^]", word) else word


def quote_for_powershell(word: str) -> str:
    """A word in single quotes where PowerShell would read it otherwise."""
    plain = re.fullmatch(r"[A-Za-z0-9_./:=\\-]+", word) is not None
    return word if plain else "'%s'" % word.replace("'", "''")


SHELLS: Mapping[str, Shell] = {
    "bash": Shell(
        lambda name, value: "export %s=%s" % (name, shlex.quote(value)),
        lambda name: "unset %s" % name,
        shlex.quote),
    "cmd": Shell(
        lambda name, value: "set %s" % quote_for_cmd("%s=%s" % (name, value)),
        lambda name: "set %s=" % name,
        quote_for_cmd, "py"),
    "fish": Shell(
        lambda name, value: "set -gx %s %s" % (name, shlex.quote(value)),
        lambda name: "set -e %s" % name,
        shlex.quote),
    # The env block of Claude Code's settings file.
    "json": Shell(
        lambda name, value: "%s: %s" % (json.dumps(name), json.dumps(value)),
        lambda name: "remove %s" % json.dumps(name),
        shlex.quote),
    "powershell": Shell(
        lambda name, value: "$env:%s = '%s'" % (name, value.replace("'", "''")),
        lambda name: "Remove-Item Env:%s" % name,
        quote_for_powershell, "py"),
}


def detected_shell(environ: Mapping[str, str], is_windows: bool) -> str:
    """Whose syntax to write where nobody said; cmd alone sets PROMPT for its children."""
    name = re.split(r"[/\\]", environ.get("SHELL", ""))[-1].lower()
    if is_windows and "MSYSTEM" not in environ:
        return "cmd" if "PROMPT" in environ else "powershell"
    return {"fish": "fish", "pwsh": "powershell"}.get(name, "bash")


class Command(NamedTuple):
    """What ``--help`` tells of a command; ``options`` are those that it has for itself."""

    about: str
    text: str
    examples: tuple[str, ...]
    options: tuple[str, ...] = ()


COMMAND_TEXTS: Mapping[str, Command] = {
    "serve": Command(
        "run the gateway; also what happens without a command",
        "Listens until Ctrl-C or SIGTERM, and prints where, whose accounts it uses (keys\n"
        "masked) and the lines that point a client at it.  Without any configuration it\n"
        "passes each client's own key on to https://api.anthropic.com.",
        ("serve --demo", "serve --port 8045 --upstream-key env:MY_KEY"),
        ("--quiet",)),
    "check": Command(
        "validate the configuration and print what it comes to",
        "Reads options, environment and file as serve would and prints every setting in\n"
        "force, secrets masked.  A fault is told with its path and what to write instead.\n"
        "Exit code 0 where it can be served, 2 where not.",
        ("check", "check --config other.json")),
    "doctor": Command(
        "look at everything between a client and an answer",
        "A line each for Python, the port, proxies, certificates, the way to each\n"
        "upstream, each account's key (asked with a call that costs nothing), the clock\n"
        "and the client's variables in this shell; below a bad one, what mends it.\n"
        "Exit code 1 where something is broken.",
        ("doctor", "doctor --offline", "doctor --shell powershell"),
        ("--offline", "--shell")),
    "env": Command(
        "print the lines that point a client at the gateway",
        "To be copied into the shell in which the client runs, or, with --shell json,\n"
        "into ~/.claude/settings.json.",
        ('eval "$(python3 claude_gateway.py env)"', "env --shell powershell",
         "env --shell json"),
        ("--shell",)),
    "init": Command(
        "write a starter configuration",
        "Writes every setting with its default to PATH (./claude_gateway.json, where the\n"
        "other commands look for it), readable by you alone.  An existing file is never\n"
        "touched.  What it writes can be served as it is.",
        ("init", "init other.json --port 9000")),
    "status": Command(
        "ask the running gateway how it is",
        "Prints its accounts with their state and cooldown, requests in flight and\n"
        "totals.  Exit code 1 where no gateway runs there.",
        ("status", "status --port 9000 --api-key env:GATEWAY_KEY", "status --json"),
        ("--json",)),
    "selftest": Command(
        "try the gateway's promises on this machine",
        "Starts an upstream and gateways on free ports of 127.0.0.1, walks the contract\n"
        "clause by clause over real sockets and prints what holds.  It needs no network,\n"
        "no key and no configuration, and ends within seconds.  Exit code 1 where a\n"
        "clause fails.",
        ("selftest", "selftest --quiet"),
        ("--quiet",)),
}

OWN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--json": {"action": "store_true", "help": "print the gateway's JSON as it is"},
    "--offline": {"action": "store_true", "help": "look at this machine alone, ask nobody"},
    "--quiet": {"action": "store_true",
                "help": "serve: print only where it listens; selftest: only what fails"},
    "--shell": {"choices": sorted(SHELLS), "help": "whose syntax (the shell that is running)"},
}


class ArgumentParser(argparse.ArgumentParser):
    """One whose errors go where they may be kept: a mistyped option's value may be a key."""

    def error(self, message: str) -> NoReturn:
        """End the program with 2 and a line."""
        if message.startswith("unrecognized arguments"):
            message = re.sub(r"( -[^\s=]+=)\S+", r"\1***", message)
        super().error(escape_controls(message))


def argument_parser(command: str = "") -> argparse.ArgumentParser:
    """The options of one command, as its ``--help`` shows them; without one, of all."""
    told = COMMAND_TEXTS.get(command)
    parser = ArgumentParser(
        prog="claude_gateway.py",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="claude_gateway.py %s [OPTIONS]" % (
            "init [PATH]" if command == "init" else command or "[COMMAND]"),
        description=told.about.capitalize() + ".\n\n" + told.text if told else overview(),
        epilog=help_end(told))
    if told is None:
        parser.add_argument("command", nargs="?", choices=sorted(COMMAND_TEXTS),
                            help=argparse.SUPPRESS)
    if command in ("", "init"):
        parser.add_argument("path", nargs="?", metavar="PATH",
                            help="the file that init writes (./%s)" % CONFIG_NAME)
    for flag in told.options if told else OWN_OPTIONS:
        parser.add_argument(flag, **OWN_OPTIONS[flag])
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    if command != "selftest":
        add_configuration_options(parser.add_argument_group(
            "which gateway, and how it is configured"))
    parser.add_argument("--version", action="store_true", help="which version this is")
    parser.add_argument("--verbose", action="store_true",
                        help="with --version: Python, platform, this file and its SHA-256, too")
    return parser


def overview() -> str:
    """What the program is, and its commands a line each."""
    rows = ["  %-9s %s" % (name, told.about) for name, told in COMMAND_TEXTS.items()]
    return ("A gateway between Anthropic or OpenAI clients and the upstreams that serve them.\n\n"
            "commands:\n%s" % "\n".join(rows))


def help_end(told: Optional[Command]) -> str:
    """The examples of a command; without one, where to read on."""
    if told is None:
        return "COMMAND --help tells more of one.  README.md tells the rest."
    return "examples:\n" + "\n".join(
        "  " + (line if "claude_gateway.py" in line else "python3 claude_gateway.py " + line)
        for line in told.examples)


def add_configuration_options(group: Any) -> None:
    """The options that mean the same to every command."""
    group.add_argument("--config", metavar="FILE",
                       help="configuration file (JSON; TOML from Python 3.11 on)")
    for setting in PLAIN_OPTIONS:
        names = getattr(setting.read, "names", None)
        group.add_argument(setting.flag, dest=setting.path,
                           type=int if isinstance(setting.default, int) else str,
                           choices=names, metavar=None if names else setting.path.upper(),
                           help="%s (%s)" % (setting.about, setting.default))
    group.add_argument("--api-key", metavar="KEY", action="append",
                       help="a key that clients must present; env:NAME and file:PATH keep it "
                            "out of the process list; repeatable")
    group.add_argument("--upstream", metavar="URL",
                       help="base URL of the upstream (https://api.anthropic.com)")
    group.add_argument("--upstream-key", metavar="KEY", action="append",
                       help="an account's key, as --api-key; repeatable, each one an account")
    group.add_argument("--demo", action="store_true",
                       help="an upstream inside the process: no key, no network")


def version_lines(verbose: bool) -> list[str]:
    """What ``--version`` prints; ``verbose`` adds what a report of a fault should hold.

    The sum is of the file as it stands on disk, by a program that is in that file: it
    tells one release from another, and nothing of a file that somebody has tampered with.
    """
    lines = ["claude_gateway " + __version__]
    if verbose:
        path = os.path.abspath(__file__)
        try:
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError as error:
            digest = "unknown: " + reason_of(error)  # it was taken away, or is within an archive
        lines += ["python %s %s (%s)" % (platform.python_implementation(),
                                         platform.python_version(), sys.executable),
                  "platform " + platform.platform(),
                  "file " + path,
                  "sha256 " + digest]
    return lines


def parse_options(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line; ends the program with 2 and a line where it is wrong."""
    parser = argument_parser()
    options = parser.parse_intermixed_args(arguments)
    command = options.command or "serve"
    for flag in OWN_OPTIONS:
        if getattr(options, flag[2:]) and flag not in COMMAND_TEXTS[command].options:
            parser.error("%s has no option %s; see %s --help" % (command, flag, command))
    if options.path is not None and command != "init":
        parser.error("unexpected %s; one command at a time" % json.dumps(options.path))
    if options.help:
        say(argument_parser(options.command or "").format_help().rstrip("\n"))
        raise SystemExit(EXIT_GOOD)
    if options.version:
        for line in version_lines(options.verbose):
            say(escape_controls(line))
        raise SystemExit(EXIT_GOOD)
    if options.verbose:
        parser.error("--verbose goes with --version; --log-level debug makes serve tell more")
    options.command = command
    return options


def find_config_file(option: Optional[str], environ: Mapping[str, str]) -> Optional[str]:
    """The configuration file to use, or None; contract section 2 gives the order."""
    named = option or environ.get("CLAUDE_GATEWAY_CONFIG")
    if named:
        return named
    home = environ.get("HOME")
    if os.name == "nt":
        folder = environ.get("APPDATA", "")
    else:
        folder = environ.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    candidates_in_order = [os.path.join(".", CONFIG_NAME)]
    if folder:
        candidates_in_order.append(os.path.join(folder, "claude_gateway", "config.json"))
    return next((path for path in candidates_in_order if os.path.exists(path)), None)


def read_config_file(path: str) -> dict:
    """The settings in a file.  Raises ConfigError."""
    try:
        text = read_text_file(path)
        if path.endswith(".toml"):
            return parse_toml(text)
        return json.loads(text, object_pairs_hook=refuse_double_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(["%s: %s" % (path, reason_of(error))]) from None


def read_text_file(path: str) -> str:
    """A UTF-8 file; editors on Windows may have put a byte order mark in front."""
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def parse_toml(text: str) -> dict:
    """Raises ValueError, also where the interpreter has no tomllib (before 3.11)."""
    try:
        import tomllib  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("TOML needs Python 3.11 or newer; use JSON") from None
    return tomllib.loads(text)


def refuse_double_keys(pairs: Sequence[tuple[str, Any]]) -> dict:
    """For json.loads: a key that stands twice is a mistake that would go unseen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError("the key %s stands twice" % json.dumps(double))
    return found


def secret_option(text: str, option: str, environ: Mapping[str, str]) -> str:
    """``env:NAME`` and ``file:PATH`` looked up; else the text itself.  Raises ConfigError."""
    if text.startswith("env:"):
        value = environ.get(text[4:])
        if value is None:
            raise ConfigError(["%s: the environment has no %s" % (option, text[4:])])
        return value
    if text.startswith("file:"):
        try:
            return read_text_file(text[5:]).strip()
        except (OSError, ValueError) as error:
            raise ConfigError(["%s: cannot read %s (%s)"
                               % (option, text[5:], reason_of(error))]) from None
    return text


def load_config(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Config, str]:
    """The configuration in force and the file it came from: options > environment > file.

    Raises ConfigError.
    """
    path = find_config_file(options.config, environ)
    settings = read_config_file(path) if path else {}
    if not isinstance(settings, dict):
        raise ConfigError(["%s: must hold an object" % path])
    config = Config.from_dict(settings, environ, read_text_file, overrides_of(options, environ))
    faults = ["providers[%d].ca_file: there is no file %s" % (index, provider.ca_file)
              for index, provider in enumerate(config.providers)
              if provider.ca_file and not os.path.isfile(provider.ca_file)]
    if faults:
        raise ConfigError(faults)
    if path and file_is_open(path) and holds_secrets(settings):
        config = config._replace(warnings=config.warnings + (
            "%s: holds secrets and is readable by others; chmod 600 it" % path,))
    # Without a file the folder that one started from, which may be gone by now, says nothing.
    folder = os.path.dirname(os.path.abspath(path)) if path else ""
    return with_store_paths(config, folder), path or ""


def with_store_paths(config: Config, folder: str) -> Config:
    """A relative ``store`` lies beside the file that names it, wherever one starts from."""

    def placed(account: Account) -> Account:
        if not isinstance(account.source, TokenGrant):
            return account
        store = os.path.join(folder, account.source.store)
        return account._replace(source=account.source._replace(store=store))

    return config._replace(providers=tuple(
        provider._replace(accounts=tuple(placed(account) for account in provider.accounts))
        for provider in config.providers))


def overrides_of(options: argparse.Namespace, environ: Mapping[str, str]) -> dict:
    """What options and environment lay over the file's settings, taken as it is."""
    result: dict[str, Any] = {}
    for setting in PLAIN_OPTIONS:
        value = getattr(options, setting.path)
        if value is not None:
            group, _, name = setting.path.rpartition(".")
            (result.setdefault(group, {}) if group else result)[name] = value
    keys = secret_list(options.api_key, "--api-key", "CLAUDE_GATEWAY_API_KEY", environ)
    if keys is not None:
        result.setdefault("auth", {})["api_keys"] = keys
    if options.demo:
        result["providers"] = [{"name": DEMO}]
        return result
    url = options.upstream or environ.get("CLAUDE_GATEWAY_UPSTREAM")
    keys = secret_list(options.upstream_key, "--upstream-key", "CLAUDE_GATEWAY_UPSTREAM_KEY",
                       environ)
    if url or keys:
        provider: dict[str, Any] = {"name": "anthropic", "accounts": [
            {"name": "key-%d" % (index + 1), "api_key": key}
            for index, key in enumerate(keys or [])]}
        result["providers"] = [dict(provider, base_url=url) if url else provider]
    return result


def secret_list(
    given: Optional[Sequence[str]],
    option: str,
    variable: str,
    environ: Mapping[str, str],
) -> Optional[list[str]]:
    """The keys of an option, else of its environment variable, else None.  Raises ConfigError."""
    if given:
        return [secret_option(text, option, environ) for text in given]
    if variable not in environ:
        return None
    found = split_list(environ[variable])
    # An empty variable is an empty key, which draws its warning.
    return [secret_option(text, variable, environ) for text in found or [""]]


def split_list(text: Optional[str]) -> list[str]:
    """The members of a comma-separated environment variable."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def file_is_open(path: str) -> bool:
    """Whether others than the owner may read a file; Windows has no such bits."""
    return os.name != "nt" and bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def holds_secrets(value: Any, is_secret: bool = False) -> bool:
    """Whether a credential stands in the settings of a file; ``${NAME}`` only names one."""
    if isinstance(value, dict):
        return any(holds_secrets(item, key in SECRET_KEYS) for key, item in value.items())
    if isinstance(value, list):
        return any(holds_secrets(item, is_secret) for item in value)
    return is_secret and isinstance(value, str) and bool(Interpolation.PATTERN.sub("", value))


# -- what people read


def describe_config(config: Config) -> list[str]:
    """The configuration in force, secrets masked, a line each."""
    names = ", ".join("%s (%s)" % (key.name, key.key) for key in config.auth.api_keys)
    lines = ["auth: %s%s" % (config.auth_mode, "; keys: " + names if names else "")]
    for provider in config.providers:
        where = "inside this process" if provider.preset == DEMO else provider.base_url
        lines.append("provider %s: %s%s" % (provider.name, where,
                                            "" if provider.enabled else " (disabled)"))
        for account in provider.accounts:
            lines.append("  account %s: %s %s%s" % (account.name, account.header,
                                                    described_secret(account),
                                                    "" if account.enabled else " (disabled)"))
        if not provider.accounts and provider.preset != DEMO:
            lines.append("  no account: each client's own credential is passed on")
    return lines


def described_secret(account: Account) -> str:
    """An account's key masked, or where it comes from: a command's words may be secrets."""
    if isinstance(account.source, KeyCommand):
        return "printed by %s" % str(account.source)
    if isinstance(account.source, TokenGrant):
        return "granted by %s" % str(account.source)
    return str(account.secret)


def provider_lines(config: Config) -> list[str]:
    """What each provider resolves to beyond its accounts; header values may be secrets."""
    lines = []
    for index, provider in enumerate(config.providers):
        shown = {
            "preset": provider.preset,
            "owned_by": provider.owned_by,
            "models": provider.models,
            "model_map": dict(provider.model_map),
            "default_model": provider.default_model,
            "credential_header": provider.credential_header,
            "betas": provider.betas._asdict(),
            "headers": {name: str(value) for name, value in provider.headers},
            "proxy": provider.proxy,
            "ca_file": provider.ca_file,
            "priority": provider.priority,
            "accounts": {account.name: {"priority": account.priority, "models": account.models}
                         for account in provider.accounts},
        }
        lines.extend("providers[%d].%s = %s" % (index, name, json.dumps(value, default=str))
                     for name, value in shown.items())
    return lines


def setting_lines(config: Config) -> list[str]:
    """Every plain setting with the value in force."""
    lines = []
    for setting in SETTINGS:
        value: Any = config
        for name in setting.path.split("."):
            value = getattr(value, name)
        if setting.path not in ("providers", "auth.api_keys"):
            shown = json.dumps(value, default=str)
            lines.append("%s = %s" % (setting.path, shown))
    return lines


def client_variables(url: str, has_keys: bool) -> list[tuple[str, str]]:
    """What a client's environment needs."""
    pairs = [("ANTHROPIC_BASE_URL", url)]
    if has_keys:
        pairs.append(("ANTHROPIC_AUTH_TOKEN", "YOUR-GATEWAY-KEY"))
    return pairs


def client_lines(shell: str, url: str, has_keys: bool) -> str:
    """The client's lines in a shell's syntax; json is the env block of Claude Code's settings."""
    pairs = client_variables(url, has_keys)
    if shell == "json":
        return json.dumps({"env": dict(pairs)}, indent=2)
    return "\n".join(SHELLS[shell].set(name, value) for name, value in pairs)


def reachable_url(config: Config) -> str:
    """The address to give to a client on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return BaseUrl("http", host, config.port, "").origin


def say(line: str) -> None:
    """A line on standard output, which may be closed or unable to show a character."""
    write_line(sys.stdout, line)


def complain(line: str) -> None:
    """A line on standard error."""
    write_line(sys.stderr, escape_controls(line))


def write_line(stream: Any, line: str) -> None:
    """A line on a stream that may be closed, full, not there at all, or know few characters."""
    try:
        stream.write(shown_on(stream, line + "\n"))
        stream.flush()
    except (OSError, ValueError, AttributeError):
        pass  # safe: nobody reads this stream any more


# -- terminals


COLOURS = {"ok": 32, "pass": 32, "warn": 33, "skip": 33, "FAIL": 31}
ENABLE_VIRTUAL_TERMINAL_PROCESSING = 4
TERMINAL_COLUMNS = 79


def can_colour(stream: Any, environ: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal that takes colours, and the user wants them."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not is_terminal(stream):
        return False
    return os.name != "nt" or enable_escape_codes(stream)


def is_terminal(stream: Any) -> bool:
    """Whether somebody looks on; a stream may be closed, or None."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def enable_escape_codes(stream: Any) -> bool:
    """Make a Windows console read escape codes; old ones cannot, and would show them."""
    import ctypes  # on Windows alone
    import msvcrt
    try:
        kernel = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue]
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(stream.fileno()))  # pyright: ignore
        mode = ctypes.c_ulong()
        return bool(kernel.GetConsoleMode(handle, ctypes.byref(mode)) and kernel.SetConsoleMode(
            handle, mode.value | ENABLE_VIRTUAL_TERMINAL_PROCESSING))
    except (AttributeError, OSError, ValueError):
        return False


def painted(word: str, width: int, colour: bool) -> str:
    """A word of COLOURS filled up to ``width``, in its colour where there may be one."""
    text = word.ljust(width)
    return "\x1b[%dm%s\x1b[0m" % (COLOURS[word], text) if colour else text


class Progress:
    """One line on a terminal that says what is under way; nothing where nobody looks on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream if is_terminal(stream) else None
        self._shown = 0

    def show(self, text: str) -> None:
        """Put a text in the place of the last one; "" clears the line."""
        text = escape_controls(text)[:TERMINAL_COLUMNS]
        if self._stream is None or not (text or self._shown):
            return
        line = "\r%s%s" % (text.ljust(self._shown), "" if text else "\r")
        self._shown = len(text)
        try:
            self._stream.write(shown_on(self._stream, line))
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # nobody looks on any more


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's rows with its columns below each other, two spaces between them.

    >>> aligned([("a", "b"), ("long", "c")])
    ['a     b', 'long  c']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows]


def counted(count: int, noun: str) -> str:
    """A number and what it counts.

    >>> counted(1, "account"), counted(0, "account")
    ('1 account', '0 accounts')
    """
    return "%d %s%s" % (count, noun, "" if count == 1 else "s")


def human_seconds(seconds: Any) -> str:
    """A duration in its two largest units.

    >>> human_seconds(3725), human_seconds(12.4), human_seconds(None)
    ('1 h 2 min', '12 s', '?')
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) \
            or not math.isfinite(seconds):
        return "?"
    whole = int(math.ceil(seconds)) if seconds < 10 else int(seconds)
    for name, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60),
                                    ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return "%d %s%s" % (whole // size, name, " %d %s" % (rest, below) if rest else "")
    return "%d s" % whole


# -- looking at this machine


# What the gateway answers from memory; one that is stuck must not hold the command.
STATUS_SECONDS = 5.0
MAX_STATUS_BYTES = 16 * 1024 * 1024


def port_holder(port: int) -> str:
    """Who listens on a port, as far as Linux tells without another program; or ""."""
    inode = listening_inode(port)
    for process in os.listdir("/proc") if inode and os.path.isdir("/proc") else ():
        folder = "/proc/%s/fd" % process
        try:
            links = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
            if "socket:[%s]" % inode in links:
                # A process may give itself any bytes for a name.
                with open("/proc/%s/comm" % process, encoding="utf-8", errors="replace") as file:
                    return "process %s, %s" % (process, file.read().strip())
        except OSError:
            continue  # safe: a process of another user, or one that has just ended
    return ""


def listening_inode(port: int) -> str:
    """The inode of the socket that listens on a port, from Linux' tables; "" elsewhere."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue  # safe: not Linux, or no IPv6
        for row in rows:
            if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == port:
                return row[9]
    return ""


def fetch(url: str, path: str, headers: Sequence[tuple[str, str]],
          seconds: float) -> tuple[int, Headers, bytes]:
    """A GET of a gateway, straight, without any proxy.  Raises OSError, ValueError."""
    import http.client  # needed by status, doctor and selftest
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    late = threading.Event()

    def hang_up(connected: Any) -> None:
        late.set()
        with contextlib.suppress(OSError):  # closed in this moment
            connected.shutdown(2)  # both ways

    timer = None
    try:
        connection.connect()
        # The time limit of a socket is for each byte; this one is for all.
        timer = threading.Timer(seconds, hang_up, [connection.sock])
        timer.daemon = True
        timer.start()
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        answer = response.status, Headers(response.getheaders()), response.read(MAX_STATUS_BYTES)
    except (OSError, http.client.HTTPException) as error:
        # The other side may answer our hanging up with a reset.
        if late.is_set():
            raise OSError("timed out") from None
        if not isinstance(error, http.client.HTTPException):
            raise
        raise ValueError("it does not speak HTTP: %s" % type(error).__name__) from None
    finally:
        if timer:
            timer.cancel()
        connection.close()
    if late.is_set():
        raise OSError("timed out")
    return answer


# ---- 22. Doctor --------------------------------------------------------------

# Each look at the network; a person waits for it.
DOCTOR_SECONDS = 10.0
# Tokens of a refresh grant are renewed five minutes early, and certificates
# begin some hours before they are given out: below this no clock does harm.
CLOCK_FAULT_SECONDS = 300
CLOCK_DOUBT_SECONDS = 60
CERTIFICATE_DOUBT_SECONDS = 7 * 86400
MAX_TOLD_CHARACTERS = 120
LOOPBACK_BYPASS = "localhost,127.0.0.1,::1"


class Finding(NamedTuple):
    """One line of the doctor: ``level`` is ok, warn or FAIL.

    ``mends`` are tuples: ("set", NAME, VALUE), ("unset", NAME), ("run", WORD, …),
    ("gateway", WORD, …) for this program, ("say", TEXT).
    """

    level: str
    what: str
    text: str
    mends: tuple[tuple[str, ...], ...] = ()


def mend_line(mend: Sequence[str], shell: Shell) -> str:
    """A mend in a shell's syntax."""
    kind, words = mend[0], mend[1:]
    if kind == "set":
        return shell.set(words[0], words[1])
    if kind == "unset":
        return shell.unset(words[0])
    if kind == "say":
        return words[0]
    if kind == "gateway":
        words = (shell.python, "claude_gateway.py", *words)
    return " ".join(shell.quote(word) for word in words)


def finding_lines(finding: Finding, shell: Shell, colour: bool) -> list[str]:
    """A finding with its mends below it."""
    text = escape_controls("%s  %s" % (finding.what.ljust(12), finding.text))
    return [painted(finding.level, 6, colour) + text,
            *("        mend: " + escape_controls(mend_line(mend, shell)) for mend in finding.mends)]


# -- judging: values in, findings out


def judge_python(version: Sequence[int], platform: str, tls: str) -> list[Finding]:
    """The interpreter."""
    text = "%s on %s, %s" % (".".join(str(part) for part in version[:3]), platform, tls)
    if tuple(version[:2]) < (3, 8):
        return [Finding("FAIL", "python", text + "; 3.8 or newer is needed",
                        (("say", "install a newer Python from https://www.python.org"),))]
    return [Finding("ok", "python", text)]


def judge_port(host: str, port: int, fault: str, holder: str, is_gateway: bool) -> list[Finding]:
    """Whether the gateway could listen; ``fault`` says why not."""
    where = BaseUrl("http", host, port, "").authority
    if is_gateway:
        return [Finding("ok", "port", "a gateway answers at %s" % where)]
    if not fault:
        return [Finding("ok", "port", "any free one" if port == 0 else "%s is free" % where)]
    if holder:
        return [Finding("FAIL", "port", "%s is held by %s" % (where, holder),
                        (("gateway", "--port", str(port + 1 if port < 65535 else 0)),))]
    # Below 1024 a port is the administrator's; else it is the address.
    words = ("--port", "8045") if 0 < port < 1024 else ("--host", "127.0.0.1", "--port", str(port))
    return [Finding("FAIL", "port", "cannot listen on %s: %s" % (where, fault),
                    (("gateway", *words),))]


def judge_proxies(environ: Mapping[str, str], host: str, port: int) -> list[Finding]:
    """Proxy variables: malformed ones, and such that take what was meant for the gateway."""
    named = {name: environ[name] for name in sorted(environ)
             if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and environ[name]}
    findings = []
    shown = []
    for name, value in named.items():
        try:
            shown.append("%s %s" % (name, parse_proxy(value)))
        except ValueError as error:
            findings.append(Finding("FAIL", "proxy", "%s: %s" % (name, error), (("unset", name),)))
    bypass = {"no": ",".join(filter(None, (environ.get("no_proxy"), environ.get("NO_PROXY"))))}
    passed = bypass_of_environment("%s:%d" % (host, port), bypass)
    taking = [name for name in named if name.lower() != "https_proxy"]
    if taking and is_loopback(host) and not passed:
        name = "no_proxy" if environ.get("no_proxy") else "NO_PROXY"
        value = ",".join(filter(None, (environ.get(name), LOOPBACK_BYPASS)))
        findings.append(Finding(
            "FAIL", "proxy", "%s takes clients' requests to %s; NO_PROXY does not except it"
            % (taking[0], host), (("set", name, value),)))
    if findings:
        return findings
    return [Finding("ok", "proxy", ", ".join(shown) + "; not for loopback" if shown else "none set")]


def judge_certificates(name: str, path: str, fault: str) -> Finding:
    """A file of certificates that a variable or a provider names."""
    mend = (("unset", name) if name in CA_VARIABLES else
            ("say", "put the path of a PEM file at %s" % name),)
    if fault:
        return Finding("FAIL", "certificates", "%s names %s: %s" % (name, path, fault), mend)
    return Finding("ok", "certificates", "%s adds %s" % (name, path))


# What OpenSSL says of a certificate -> what to do.
TLS_MENDS = (
    ("expired", "compare this machine's clock; else the upstream has to renew its certificate"),
    ("not yet valid", "set this machine's clock"),
    ("mismatch", "give base_url the name that the certificate has"),
    ("doesn't match", "give base_url the name that the certificate has"),
    ("self", "a proxy of your company may sit between: put its CA's PEM file at ca_file "
             "of the provider, or into SSL_CERT_FILE"),
    ("issuer", "put the missing CA's PEM file at ca_file of the provider, or into "
               "SSL_CERT_FILE; on macOS run Install Certificates.command"),
    *((mark, "give the proxy its user and password: http://USER:PASSWORD@HOST:PORT")
      for mark in ("failed: 401", "failed: 407")),
)


def judge_tls(host: str, fault: str, certificate: Mapping[str, Any], now: float) -> Finding:
    """The handshake; ``certificate`` as ``ssl.getpeercert`` gives it."""
    if fault:
        mend = next((text for mark, text in TLS_MENDS if mark in fault),
                    "a firewall or proxy may cut TLS: try another network, or set proxy of "
                    "the provider")
        return Finding("FAIL", "tls", fault, (("say", mend),))
    names = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    issuer = names.get("organizationName") or names.get("commonName") or "?"
    left = ssl.cert_time_to_seconds(certificate["notAfter"]) - now \
        if "notAfter" in certificate else math.inf
    text = "%s is trusted, issued by %s" % (host, issuer)
    if left < CERTIFICATE_DOUBT_SECONDS:
        return Finding("warn", "tls", "%s, ends in %s" % (text, human_seconds(left)),
                       (("say", "the upstream has to renew its certificate"),))
    return Finding("ok", "tls", text)


def judge_credential(who: str, status: int, told: str, how: str) -> Finding:
    """What an upstream answered to an account that asked for nothing costly."""
    said = "%d%s" % (status, " " + told if told else "")
    mends = {
        "api_key": "make a new key with the provider and put it where %s's api_key comes from",
        "auth_token": "get a new token and put it where %s's auth_token comes from",
        "key_command": "run %s's key_command by hand and look at what it prints",
        "token": "log in again with the issuer and configure %s's refresh_token anew",
    }
    if status in (401, 403):
        return Finding("FAIL", "account", "%s: the credential is refused (%s): expired or wrong"
                       % (who, said), (("say", mends[how] % who),))
    if status == 402:
        return Finding("FAIL", "account", "%s: the credit is used up (%s)" % (who, said),
                       (("say", "add credit with the provider"),))
    if status == 429:
        return Finding("warn", "account", "%s: taken, but over its limit now (429)" % who,
                       (("say", "wait, or add a second account"),))
    if status // 100 == 5:
        return Finding("warn", "account", "%s: the upstream is in trouble (%s)" % (who, said),
                       (("say", "try again later"),))
    if status // 100 == 3 or status in (404, 405):
        return Finding("warn", "account", "%s: no call without cost to try it with (%s)"
                       % (who, said), (("say", "check base_url; else send a message"),))
    return Finding("ok", "account", "%s: the credential is taken" % who)


def judge_clock(offset: float, platform: str) -> Finding:
    """This machine's clock against an upstream's Date; ``offset`` is ours less theirs."""
    mends = {"darwin": ("run", "sudo", "sntp", "-sS", "time.apple.com"),
             "win32": ("run", "w32tm", "/resync")}
    mend = mends.get(platform, ("run", "sudo", "timedatectl", "set-ntp", "true"))
    off = "%s %s" % (human_seconds(abs(offset)), "ahead" if offset > 0 else "behind")
    if abs(offset) >= CLOCK_FAULT_SECONDS:
        return Finding("FAIL", "clock", "%s: certificates and tokens will be refused" % off,
                       (mend,))
    if abs(offset) >= CLOCK_DOUBT_SECONDS:
        return Finding("warn", "clock", off, (mend,))
    return Finding("ok", "clock", "agrees with the upstream's")


# Variables that make Claude Code pass the gateway by, or lose what it gives:
# name, level, finding.
CLIENT_SWITCHES = (
    ("CLAUDE_CODE_USE_BEDROCK", "FAIL", "makes Claude Code ask Bedrock, past this gateway"),
    ("CLAUDE_CODE_USE_VERTEX", "FAIL", "makes Claude Code ask Vertex, past this gateway"),
    ("CLAUDE_CODE_USE_FOUNDRY", "FAIL", "makes Claude Code ask Foundry, past this gateway"),
    ("DISABLE_PROMPT_CACHING", "warn", "every turn pays for the whole conversation again"),
)
OFF_WORDS = ("", "0", "false", "no", "off")


def judge_base_url(value: str, config: Config) -> list[Finding]:
    """ANTHROPIC_BASE_URL against where this gateway is."""
    url = reachable_url(config)
    name = "ANTHROPIC_BASE_URL"
    mend = (("set", name, url),)
    if not value.strip():
        return [Finding("warn", "client", "%s is not set here: clients of this shell pass the "
                        "gateway by" % name, mend)]
    problems = Problems()
    parts = read_url_parts(value.strip(), name, problems)
    if parts is None:
        return [Finding("FAIL", "client", problems.errors[0].replace(name + ":", name), mend)]
    base = address_of(parts, "")
    path = parts.path.rstrip("/")
    if not is_same_host(config.host, base.host):
        fault = "points at %s, past this gateway" % base.origin
    elif base.scheme != "http":
        fault = "begins with https, but the gateway speaks plain http"
    elif config.port and base.port != config.port:
        fault = "has port %d, but the gateway's is %d" % (base.port, config.port)
    elif path not in ("", "/v1", PATH_PREFIX, PATH_PREFIX + "/v1"):
        fault = "ends in %s, where the gateway has nothing" % path
    elif path.endswith("/v1"):
        return [Finding("warn", "client", "%s ends in /v1, which clients append themselves; "
                        "the gateway bears it" % name, mend)]
    else:
        return []
    return [Finding("FAIL", "client", "%s %s" % (name, fault), mend)]


def judge_client_keys(environ: Mapping[str, str], config: Config) -> list[Finding]:
    """The client's credentials against the gateway's keys; their values are never shown."""
    names = [name for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN",
                               "CLAUDE_CODE_OAUTH_TOKEN") if environ.get(name)]
    keys = KeyRing([(key.name, key.key) for key in config.auth.api_keys])
    good = [name for name in names if keys.find(environ[name].strip())]
    transparent = any(row.enabled and not row.accounts and row.preset != DEMO
                      for row in config.providers)
    set_key = ("set", "ANTHROPIC_AUTH_TOKEN", "YOUR-GATEWAY-KEY")
    if config.auth_mode != "off" and not good:
        said = " and ".join(names[:2]) + (" is" if len(names) == 1 else " are") + (
            " no key of this gateway") if names else "no key is set here, but the gateway wants one"
        level = "FAIL" if names else "warn"
        return [Finding(level, "client", said, (set_key,))]
    both = [name for name in names if name != "CLAUDE_CODE_OAUTH_TOKEN"]
    # A transparent provider needs a second one: the first is the gateway's.
    if len(both) == 2 and not (transparent and len(good) == 1):
        spare = next((name for name in both if name not in good), "ANTHROPIC_API_KEY")
        return [Finding("warn", "client", "%s are both set, and clients send both"
                        % " and ".join(both), (("unset", spare),))]
    return []


def judge_client(environ: Mapping[str, str], config: Config) -> list[Finding]:
    """The client's variables in this shell, against this gateway and each other."""
    findings = judge_base_url(environ.get("ANTHROPIC_BASE_URL", ""), config)
    findings += judge_client_keys(environ, config)
    for name, level, text in CLIENT_SWITCHES:
        if environ.get(name, "").strip().lower() not in OFF_WORDS:
            findings.append(Finding(level, "client", "%s %s" % (name, text), (("unset", name),)))
    if re.search(r"(?im)^\s*(x-api-key|authorization|host)\s*:",
                 environ.get("ANTHROPIC_CUSTOM_HEADERS", "")):
        findings.append(Finding("warn", "client", "ANTHROPIC_CUSTOM_HEADERS sets a credential or "
                                "Host beside the client's own",
                                (("unset", "ANTHROPIC_CUSTOM_HEADERS"),)))
    patience = environ.get("API_TIMEOUT_MS", "").strip()
    if re.fullmatch("[0-9]{1,12}", patience) and (
            int(patience) < 1000 * config.timeouts.first_byte_seconds):
        findings.append(Finding(
            "warn", "client", "API_TIMEOUT_MS gives up before the gateway does "
            "(timeouts.first_byte_seconds is %g)" % config.timeouts.first_byte_seconds,
            (("unset", "API_TIMEOUT_MS"),)))
    return findings or [Finding("ok", "client", "ANTHROPIC_BASE_URL points here; nothing "
                                "contradicts it")]


# -- looking: what the judges need


class Doctor:
    """Looks at one configuration; ``show`` hears what is under way.

    The clock is a parameter; sockets and files are real.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        wall_clock: Callable[[], float],
        show: Callable[[str], None],
    ) -> None:
        self._config = config
        self._environ = environ
        self._wall_clock = wall_clock
        self._show = show
        system = None if environ is os.environ else environ
        self._choose_proxy = proxy_chooser(system, lambda level, text: None)
        self._ca_files = [path for path in named_ca_files(system, lambda level, text: None)
                          if not certificates_fault(path)]
        self._transport = Transport(time.monotonic, self._choose_proxy, self._ca_files)
        self._renewal = Renewal(self._transport.send, self._transport.pause, time.monotonic,
                                wall_clock, Log(lambda line: None, wall_clock, config.log))
        self._offset: Optional[float] = None

    def findings(self, offline: bool) -> Iterator[Finding]:
        """Every finding, as soon as it is known."""
        yield from judge_python(sys.version_info[:3], sys.platform, ssl.OPENSSL_VERSION)
        yield from self._look_at_configuration()
        yield from self._look_at_port()
        yield from judge_proxies(self._environ, self._reachable_host(), self._config.port)
        yield from self._look_at_certificates()
        if not offline:
            for provider in self._config.providers:
                if provider.enabled and provider.preset != DEMO:
                    yield from self._look_at_provider(provider)
            if self._offset is not None:
                yield judge_clock(self._offset, sys.platform)
        path = client_settings_path(self._environ)
        block = client_settings(path)
        for finding in judge_client(dict(self._environ, **block), self._config):
            yield mended_in_file(finding, path, block)

    def close(self) -> None:
        """End what a look may have left under way."""
        self._transport.cancel_all()
        self._renewal.close()
        self._transport.close()

    def _reachable_host(self) -> str:
        return urllib.parse.urlsplit(reachable_url(self._config)).hostname or ""

    def _look_at_configuration(self) -> Iterator[Finding]:
        fault = startup_fault(self._config)
        if fault:
            yield Finding("FAIL", "config", fault, (("gateway", "check"),))
        for warning in self._config.warnings:
            yield Finding("warn", "config", warning, (("gateway", "check"),))
        if not (fault or self._config.warnings):
            providers = self._config.providers
            yield Finding("ok", "config", "%s, %s" % (
                counted(len(providers), "provider"),
                counted(sum(len(provider.accounts) for provider in providers), "account")))

    def _look_at_port(self) -> list[Finding]:
        self._show("looking at the port")
        config = self._config
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        fault = holder = ""
        try:
            with socket.socket(family) as probe:
                if os.name != "nt":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((config.host, config.port))
        except (OSError, UnicodeError) as error:
            fault = reason_of(error)
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                holder = port_holder(config.port) or "another program"
        return judge_port(config.host, config.port, fault, holder,
                          bool(holder) and self._is_gateway())

    def _is_gateway(self) -> bool:
        """Whether who answers there gives our request id back."""
        mark = request_ids()()
        try:
            _, headers, _ = fetch(reachable_url(self._config), "/healthz",
                                  [("X-Request-ID", mark)], STATUS_SECONDS)
        except (OSError, ValueError):
            return False
        return headers.get("x-request-id") == mark

    def _look_at_certificates(self) -> Iterator[Finding]:
        named = [(name, self._environ[name]) for name in CA_VARIABLES if self._environ.get(name)]
        named += [("providers[%d].ca_file" % index, provider.ca_file)
                  for index, provider in enumerate(self._config.providers) if provider.ca_file]
        for name, path in named:
            yield judge_certificates(name, path, certificates_fault(path))
        if not named:
            yield Finding("ok", "certificates", "the system's")

    # -- the network

    def _look_at_provider(self, provider: Provider) -> Iterator[Finding]:
        """Name, connection, TLS; then the accounts, where the way is good."""
        base = provider.base_url
        proxy = provider.proxy or self._choose_proxy(base)
        host, port = (proxy.host, proxy.port) if proxy else (base.host, base.port)
        self._show("looking at " + str(base))
        way = "%s:%d%s" % (host, port, ", the proxy for %s" % base.host if proxy else "")
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            yield Finding("FAIL", "dns", "%s has no address (%s)" % (host, reason_of(error)),
                          (("say", "correct the name, or look at this machine's network and "
                                   "name server"),))
            return
        yield Finding("ok", "dns", "%s is %s" % (host, found[0][4][0]))
        try:
            socket.create_connection((host, port), DOCTOR_SECONDS).close()
        except OSError as error:
            yield Finding("FAIL", "tcp", "%s cannot be reached: %s"
                          % (way, connect_reason(error, host)),
                          (("say", "look at base_url, firewall and proxy settings, and whether "
                                   "the upstream runs"),))
            return
        yield Finding("ok", "tcp", "%s takes connections" % way)
        if base.scheme == "https":
            finding = self._look_at_tls(provider, proxy)
            yield finding
            if finding.level == "FAIL":
                return
        yield from self._look_at_accounts(provider)

    def _look_at_tls(self, provider: Provider, proxy: Optional[ProxyAddress]) -> Finding:
        import http.client
        base = provider.base_url
        fault, certificate = "", {}
        try:
            context = tls_context([*self._ca_files, *filter(None, [provider.ca_file])])
            near = (proxy.host, proxy.port) if proxy else (base.host, base.port)
            connection = http.client.HTTPSConnection(*near, timeout=DOCTOR_SECONDS,
                                                     context=context)
            if proxy:
                connection.set_tunnel(base.host, base.port, {
                    "Proxy-Authorization": proxy.authorization.reveal()}
                    if proxy.authorization else {})
            with contextlib.closing(connection):
                connection.connect()
                certificate = connection.sock.getpeercert() or {}
        except (OSError, http.client.HTTPException) as error:
            fault = connect_reason(error, base.host) if isinstance(error, OSError) \
                else "the proxy's answer cannot be read"
        return judge_tls(base.host, fault, certificate, self._wall_clock())

    def _look_at_accounts(self, provider: Provider) -> Iterator[Finding]:
        if not provider.accounts:
            try:
                status, _ = self._ask(provider, "GET", "/v1/models?limit=1", [], Secret(""))
                yield Finding("ok", "account", "%s: none, each client's own key is passed on; "
                              "it answers (%d)" % (provider.name, status))
            except UpstreamError as error:
                yield silent_finding(provider.name, error)
        for account in provider.accounts:
            who = "%s/%s" % (provider.name, account.name)
            self._show("asking with %s" % who)
            try:
                yield self._try_account(provider, account, who)
            except CredentialError as error:
                yield Finding("FAIL", "account", "%s: %s" % (who, error),
                              (("say", "mend where %s's credential comes from" % who),))
            except UpstreamError as error:
                yield silent_finding(who, error)

    def _try_account(self, provider: Provider, account: Account, who: str) -> Finding:
        """Counting tokens costs nothing and needs a key; models may be listed for all."""
        secret = self._renewal.secret(provider, account, Watch())
        pairs = account._replace(secret=secret).credentials()
        status, told = 404, ""
        if provider.count_tokens == "upstream":
            status, told = self._ask(provider, "POST", "/v1/messages/count_tokens", pairs, secret)
        if status in (404, 405, 501):
            status, told = self._ask(provider, "GET", "/v1/models?limit=1", pairs, secret)
        how = {KeyCommand: "key_command", TokenGrant: "token"}.get(
            type(account.source), "auth_token" if account.header == "Authorization" else "api_key")
        return judge_credential(who, status, told, how)

    def _ask(self, provider: Provider, method: str, path: str,
             pairs: Sequence[tuple[str, str]], secret: Secret) -> tuple[int, str]:
        """(status, what an error says) of one call, sent as the gateway would.  Raises UpstreamError."""
        model = next(iter(provider.models), "claude-haiku-4-5-20251001")
        body = b"" if method == "GET" else json.dumps(
            {"model": provider.upstream_model(model),
             "messages": [{"role": "user", "content": "hi"}]}).encode("ascii")
        base, own = provider.base_url, [("Accept", "application/json"),
                                        ("User-Agent", "claude_gateway/" + __version__)]
        if body:
            own.append(("Content-Type", "application/json"))
        headers = upstream_headers(
            Headers(own), base.authority, len(body) if body else None, pairs, provider.betas,
            [(name, value.reveal()) for name, value in provider.headers])
        timeouts = self._config.timeouts._replace(
            connect_seconds=DOCTOR_SECONDS, first_byte_seconds=DOCTOR_SECONDS)
        began = self._wall_clock()
        upstream = self._transport.send(UpstreamCall(
            UpstreamHead(method, provider, base.prefix + path, header_lines(headers)), body, timeouts))
        try:
            self._compare_clock(upstream.headers, (began + self._wall_clock()) / 2)
            data = read_at_most(upstream, MAX_ERROR_BODY_BYTES, DOCTOR_SECONDS)
            return upstream.status, told_by(data, secret)
        finally:
            upstream.close()

    def _compare_clock(self, headers: Headers, now: float) -> None:
        try:
            date = email.utils.parsedate_to_datetime(headers.get("date"))
            self._offset = now - date.timestamp()
        except (IndexError, TypeError, ValueError, OverflowError):
            pass  # no Date that could be compared with


def client_settings_path(environ: Mapping[str, str]) -> str:
    """Where Claude Code keeps its settings for this user; "" without a home."""
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    folder = environ.get("CLAUDE_CONFIG_DIR") or (os.path.join(home, ".claude") if home else "")
    return os.path.join(folder, "settings.json") if folder else ""


def client_settings(path: str) -> dict[str, str]:
    """The env block of Claude Code's settings, which beats the shell's variables there."""
    try:
        block = json.loads(read_text_file(path))["env"]
        return {str(name): value for name, value in block.items() if isinstance(value, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # no such file or no such block: the shell's variables are all there is


def mended_in_file(finding: Finding, path: str, block: Mapping[str, str]) -> Finding:
    """A finding about a variable of the settings file has its mend there, not in a shell."""
    names = [mend[1] for mend in finding.mends if mend[0] in ("set", "unset") and mend[1] in block]
    if not names:
        return finding
    return finding._replace(
        text="%s (%s says so)" % (finding.text, path),
        mends=tuple(("say", "in its env block: " + mend_line(mend, SHELLS["json"]))
                    for mend in finding.mends))


def certificates_fault(path: str) -> str:
    """Why a file of certificates cannot be used, or ""."""
    if not os.path.isfile(path):
        return "there is no such file"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return "it holds no certificate in PEM form"
    except (OSError, ValueError) as error:
        return reason_of(error)
    return ""


def silent_finding(who: str, error: UpstreamError) -> Finding:
    """An upstream that takes connections and gives no answer."""
    return Finding("FAIL", "account", "%s: %s" % (who, error),
                   (("say", "look at base_url and at what stands between"),))


def told_by(data: bytes, secret: Secret) -> str:
    """What an error body says, in short; the credential is not repeated."""
    try:
        error = json.loads(data.decode("utf-8"))["error"]
        text = "%s: %s" % (error["type"], error["message"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""
    if secret.reveal():
        text = text.replace(secret.reveal(), "***")
    return text[:MAX_TOLD_CHARACTERS]


# ---- 23. Self-test -----------------------------------------------------------

SELFTEST_SECONDS = 5.0
SELFTEST_KEY = "gateway-key-of-the-selftest"
ACCOUNT_KEY = "account-key-of-the-selftest-"
OTHER_KEY = "a-client's-own-key"
HELLO = {"model": "claude-opus-5-5", "max_tokens": 64,
         "messages": [{"role": "user", "content": "hello"}]}


class ClauseBroken(Exception):
    """What a clause promises does not hold; the text says what was found."""


class ClauseSkipped(Exception):
    """This version does not have what the clause is about."""


class Clause(NamedTuple):
    """One promise: the contract's section, its words, and what tries it."""

    section: int
    words: str
    run: Callable[[Bench], None]


class Received(NamedTuple):
    """What a client got."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return json.loads(self.body.decode("utf-8"))
        except ValueError:
            return None

    def error(self) -> tuple[int, str, str]:
        """(status, type, message) of an error in the shape of Anthropic or OpenAI."""
        found = self.json()
        error = found.get("error") if isinstance(found, dict) else None
        error = error if isinstance(error, dict) else {}
        return self.status, str(error.get("type")), str(error.get("message"))

    def events(self) -> list[str]:
        """The names of a stream's events."""
        return re.findall(r"^event: (\S+)", self.body.decode("utf-8", "replace"), re.MULTILINE)

    def text(self) -> str:
        """All text of a message, or of its stream."""
        found = self.json()
        if isinstance(found, dict) and isinstance(found.get("content"), list):
            return "".join(block.get("text", "") for block in found["content"])
        return "".join(json.loads(text) for text in re.findall(
            r'"type": ?"text_delta", ?"text": ?("(?:[^"\\]|\\.)*")', self.body.decode("utf-8")))


class Bench:
    """What clauses use: a demo upstream that keeps what it was sent, and gateways over it.

    ``script`` holds answers for the next calls (functions of the request, or
    statuses); without one the demo answers.  ``seen`` are the calls as
    (HttpRequest, body).
    """

    SETTINGS: Mapping[str, Any] = {
        "port": 0, "retry": {"max_wait_seconds": 0}, "timeouts": {"shutdown_seconds": 0.5}}

    def __init__(self) -> None:
        self.script: collections.deque = collections.deque()
        self.seen: list[tuple[HttpRequest, bytes]] = []
        key = Secret("selftest")
        self._demo_key = key.reveal()
        self._demo = DemoUpstream(key, lambda seconds: None, request_ids())
        config = Config.from_dict({})
        self._server = DownstreamServer(
            ("127.0.0.1", 0), Application(self._handle, self._demo.refuse), config.timeouts,
            config.limits, time.monotonic, time.time)
        self.url = "http://127.0.0.1:%d" % self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the upstream."""
        self._server.shutdown()
        self._thread.join(SELFTEST_SECONDS)
        self._server.close_connections(SELFTEST_SECONDS)
        self._server.server_close()

    def _handle(self, request: HttpRequest) -> HttpResponse:
        body = request.read_body()
        self.seen.append((request, body))
        if self.script:
            answer = self.script.popleft()
            return refusal_of(answer) if isinstance(answer, int) else answer(request)
        return self._demo.handle(HttpRequest(
            request.method, request.target, Headers([("x-api-key", self._demo_key)]),
            lambda: body))

    @contextlib.contextmanager
    def gateway(self, accounts: Sequence[str] = ("one",), provider: Mapping[str, Any] = {},
                **settings: Any) -> Iterator[Client]:
        """A gateway over the upstream; gives a client of it.  What was scripted and seen
        before is forgotten."""
        self.script.clear()
        self.seen.clear()
        row = {"name": "anthropic", "base_url": self.url, "accounts": [
            {"name": name, "api_key": ACCOUNT_KEY + name} for name in accounts]}
        config = Config.from_dict(dict(self.SETTINGS, providers=[dict(row, **provider)],
                                       **settings))
        with Gateway(config, environ={}) as gateway:
            yield Client(gateway)


class Client:
    """Asks one gateway over real sockets."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.port = gateway.port

    def ask(self, method: str, path: str, headers: Sequence[tuple[str, str]] = (),
            body: bytes = b"") -> Received:
        """One request on a connection of its own."""
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SELFTEST_SECONDS)
        with contextlib.closing(connection):
            has_host = any(name.lower() == "host" for name, _ in headers)
            connection.putrequest(method, path, skip_host=has_host, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Received(response.status, Headers(response.getheaders()), response.read())

    def get(self, path: str, *headers: tuple[str, str]) -> Received:
        """A GET."""
        return self.ask("GET", path, headers)

    def post(self, *headers: tuple[str, str], path: str = "/v1/messages", **fields: Any) -> Received:
        """HELLO with some fields of its own."""
        return self.ask("POST", path, [("Content-Type", "application/json"), *headers],
                        json.dumps(dict(HELLO, **fields)).encode("utf-8"))

    def say(self, text: str, **fields: Any) -> Received:
        """A message of the user."""
        return self.post(messages=[{"role": "user", "content": text}], **fields)

    def raw(self, data: bytes) -> bytes:
        """Bytes as they are, and all that comes until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), SELFTEST_SECONDS) as sock:
            sock.sendall(data)
            pieces = []
            while True:
                piece = sock.recv(READ_BYTES)
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)

    def records(self) -> list[dict]:
        """The records of what was asked; one is written just after the last byte has gone."""
        deadline = time.monotonic() + SELFTEST_SECONDS
        while not self.gateway.records(1) and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        return self.gateway.records()


CLAUSES: list[Clause] = []


def clause(section: int) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Marks a function that tries a clause; its docstring is the clause's words."""

    def note(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CLAUSES.append(Clause(section, " ".join((run.__doc__ or "").split()), run))
        return run

    return note


def expect(found: Any, wanted: Any, what: str) -> None:
    """Raises ClauseBroken where the two differ."""
    if found != wanted:
        raise ClauseBroken("%s: %s instead of %s" % (what, shortened(found), shortened(wanted)))


def expect_in(part: Any, whole: Any, what: str) -> None:
    """Raises ClauseBroken where a part is missing."""
    if part not in whole:
        raise ClauseBroken("%s: no %s in %s" % (what, shortened(part), shortened(whole)))


def shortened(value: Any) -> str:
    """A value for one line."""
    text = repr(value)
    return text if len(text) <= MAX_TOLD_CHARACTERS else text[:MAX_TOLD_CHARACTERS] + "..."


def refusal_of(status: int, message: str = "of the selftest", *headers: tuple[str, str],
            kind: str = "api_error") -> HttpResponse:
    """An upstream's error."""
    return json_response(status, {"type": "error", "error": {"type": kind, "message": message}},
                         headers)


def clause_results(bench: Bench) -> Iterator[tuple[str, Clause, str]]:
    """(pass, FAIL or skip; the clause; why) of each, as soon as it is known."""
    for found in CLAUSES:
        try:
            found.run(bench)
            yield "pass", found, ""
        except ClauseSkipped as reason:
            yield "skip", found, str(reason)
        except ClauseBroken as fault:
            yield "FAIL", found, str(fault)
        except Exception as error:  # whatever the gateway did to the clause
            yield "FAIL", found, "%s: %s" % (type(error).__name__, reason_of(error))


# ---- 24. Clauses -------------------------------------------------------------


# -- section 4: routes


@clause(4)
def clause_message(bench: Bench) -> None:
    """POST /v1/messages answers with a message as JSON."""
    with bench.gateway() as client:
        answer = client.say("hello")
        expect((answer.status, answer.json()["type"]), (200, "message"), "answer")
        expect_in("You said: hello", answer.text(), "text")


@clause(4)
def clause_stream(bench: Bench) -> None:
    """With "stream": true it answers with events from message_start to message_stop."""
    with bench.gateway() as client:
        events = client.say("hello", stream=True).events()
        expect((events[:1], events[-1:]), (["message_start"], ["message_stop"]), "events")


@clause(4)
def clause_count(bench: Bench) -> None:
    """POST /v1/messages/count_tokens gives the upstream's count."""
    with bench.gateway() as client:
        bench.script.append(lambda request: json_response(200, {"input_tokens": 4711}))
        answer = client.post(path="/v1/messages/count_tokens")
        expect(answer.json(), {"input_tokens": 4711}, "count")


@clause(4)
def clause_estimate(bench: Bench) -> None:
    """Where the upstream cannot count, our estimate comes with X-Gateway-Estimated: true."""
    with bench.gateway() as client:
        bench.script.append(404)
        answer = client.post(path="/v1/messages/count_tokens")
        expect(answer.headers.get("x-gateway-estimated"), "true", "header")
        expect(answer.json()["input_tokens"] > 0, True, "a count above 0")


@clause(4)
def clause_models(bench: Bench) -> None:
    """GET /v1/models is one list for both SDKs; limit is honoured."""
    with bench.gateway() as client:
        found = client.get("/v1/models?limit=2").json()
        expect((found["object"], len(found["data"]), found["has_more"]), ("list", 2, True), "list")
        expect(found["first_id"], found["data"][0]["id"], "first_id")
        for key in ("object", "type", "owned_by", "created", "created_at", "display_name"):
            expect_in(key, found["data"][0], "a model")


@clause(4)
def clause_model(bench: Bench) -> None:
    """GET /v1/models/{id} is one of them, or 404."""
    with bench.gateway() as client:
        expect(client.get("/v1/models/claude-opus-5-5").json()["id"], "claude-opus-5-5", "id")
        expect(client.get("/v1/models/none").error()[:2], (404, "not_found_error"), "unknown id")


@clause(4)
def clause_providers(bench: Bench) -> None:
    """GET /v1/providers lists name, type, base_url, models and whether one could serve."""
    with bench.gateway() as client:
        row = client.get("/v1/providers").json()["data"][0]
        expect((row["name"], row["type"], row["base_url"], row["active"]),
               ("anthropic", "anthropic", bench.url, True), "provider")


@clause(4)
def clause_healthz(bench: Bench) -> None:
    """GET /healthz says ok while the process serves."""
    with bench.gateway() as client:
        answer = client.get("/healthz")
        expect((answer.status, answer.json()), (200, {"status": "ok"}), "answer")


@clause(4)
def clause_health(bench: Bench) -> None:
    """GET /health is 503 with a reason when no account could serve."""
    with bench.gateway() as client:
        expect(client.get("/health").status, 200, "at first")
        bench.script.append(401)
        client.say("hello")
        answer = client.get("/health")
        expect((answer.status, answer.json().get("status")), (503, "unhealthy"), "after a 401")


@clause(4)
def clause_probes(bench: Bench) -> None:
    """HEAD / and GET /api/hello answer 200 at once."""
    with bench.gateway() as client:
        answer = client.ask("HEAD", "/")
        expect((answer.status, answer.body), (200, b""), "HEAD /")
        expect(client.get("/api/hello").status, 200, "GET /api/hello")


@clause(4)
def clause_prefixes(bench: Bench) -> None:
    """Every path also works below /claude_api and with a doubled version."""
    with bench.gateway() as client:
        for path in ("/claude_api/v1/messages", "/v1/v1/messages"):
            expect(client.post(path=path).status, 200, path)


@clause(4)
def clause_passage(bench: Bench) -> None:
    """Other /v1 paths are passed on as they are, query and all."""
    with bench.gateway() as client:
        bench.script.append(lambda request: json_response(200, {"ok": True}))
        answer = client.ask("DELETE", "/v1/files/file_1?x=%20y")
        request, _ = bench.seen[-1]
        expect((answer.status, request.method, request.target),
               (200, "DELETE", "/v1/files/file_1?x=%20y"), "call")


@clause(4)
def clause_unknown_path(bench: Bench) -> None:
    """An unknown path is a 404, a known one with another method a 405 with Allow."""
    with bench.gateway() as client:
        expect(client.get("/nowhere").error()[:2], (404, "not_found_error"), "/nowhere")
        answer = client.ask("DELETE", "/v1/messages")
        expect(answer.status, 405, "DELETE /v1/messages")
        expect_in("POST", answer.headers.get("allow"), "Allow")


@clause(4)
def clause_telemetry(bench: Bench) -> None:
    """The client's telemetry is answered and dropped."""
    with bench.gateway() as client:
        answer = client.post(path="/api/event_logging/batch")
        expect((answer.status, len(bench.seen)), (200, 0), "(status, calls upstream)")


# -- section 5: credentials


@clause(5)
def clause_key_headers(bench: Bench) -> None:
    """A key passes as Bearer (in any case), bare, x-api-key or x-goog-api-key."""
    with bench.gateway(auth={"api_keys": [SELFTEST_KEY]}) as client:
        for pair in (("Authorization", "Bearer " + SELFTEST_KEY),
                     ("authorization", "bEARER " + SELFTEST_KEY),
                     ("Authorization", SELFTEST_KEY), ("x-api-key", SELFTEST_KEY),
                     ("X-Goog-Api-Key", SELFTEST_KEY)):
            expect(client.post(pair).status, 200, pair[0])


@clause(5)
def clause_missing_key(bench: Bench) -> None:
    """A missing key and a wrong one are a 401 that says which, with WWW-Authenticate."""
    with bench.gateway(auth={"api_keys": [SELFTEST_KEY]}) as client:
        answer = client.post()
        expect(answer.error(), (401, "authentication_error", "missing x-api-key header"),
               "no key")
        expect_in("www-authenticate", answer.headers, "header")
        expect(client.post(("x-api-key", "wrong")).error()[2], "invalid x-api-key", "wrong key")
        expect(len(bench.seen), 0, "calls upstream")


@clause(5)
def clause_key_in_query(bench: Bench) -> None:
    """A key in the query string is never read."""
    with bench.gateway(auth={"api_keys": [SELFTEST_KEY]}) as client:
        answer = client.post(path="/v1/messages?key=%s&api_key=%s" % (SELFTEST_KEY, SELFTEST_KEY))
        expect(answer.status, 401, "status")


@clause(5)
def clause_open_routes(bench: Bench) -> None:
    """all_except_health leaves health, probes and lists open; strict leaves nothing."""
    open_paths = ("/healthz", "/health", "/", "/api/hello", "/v1/models", "/v1/providers")
    for mode, status in (("all_except_health", 200), ("strict", 401)):
        with bench.gateway(auth={"mode": mode, "api_keys": [SELFTEST_KEY]}) as client:
            for path in open_paths:
                expect(client.get(path).status, status, "%s under %s" % (path, mode))


@clause(5)
def clause_no_key_at_all(bench: Bench) -> None:
    """strict without any key starts, and refuses everything."""
    with bench.gateway(auth={"mode": "strict"}) as client:
        expect(client.post(("x-api-key", "")).status, 401, "status")


@clause(5)
def clause_account_key(bench: Bench) -> None:
    """With an account, every credential of the client is dropped and the account's is set."""
    with bench.gateway(auth={"api_keys": [SELFTEST_KEY]}) as client:
        client.post(("x-api-key", SELFTEST_KEY), ("Authorization", "Bearer " + OTHER_KEY))
        headers = bench.seen[-1][0].headers
        expect((headers.all("x-api-key"), headers.all("authorization")),
               ([ACCOUNT_KEY + "one"], []), "credentials upstream")


@clause(5)
def clause_transparent(bench: Bench) -> None:
    """Without an account the client's own credential goes up; a gateway key never leaves."""
    with bench.gateway((), auth={"api_keys": [SELFTEST_KEY]}) as client:
        client.post(("x-api-key", SELFTEST_KEY), ("Authorization", "Bearer " + OTHER_KEY))
        headers = bench.seen[-1][0].headers
        expect((headers.all("x-api-key"), headers.all("authorization")),
               ([], ["Bearer " + OTHER_KEY]), "credentials upstream")
        expect(client.post(("x-api-key", SELFTEST_KEY)).status, 401, "with none left")


@clause(5)
def clause_headers_up(bench: Bench) -> None:
    """End-to-end headers go up; hop-by-hop ones, cookies and the way here do not."""
    with bench.gateway() as client:
        client.post(("User-Agent", "selftest/1"), ("X-App", "cli"), ("Cookie", "a=b"),
                    ("X-Forwarded-For", "192.0.2.1"), ("Connection", "X-Hop"), ("X-Hop", "1"),
                    ("anthropic-version", "2026-10-21"), ("Accept-Encoding", "br"))
        headers = bench.seen[-1][0].headers
        expect([headers.get(name) for name in (
            "user-agent", "x-app", "anthropic-version", "accept-encoding")],
            ["selftest/1", "cli", "2026-10-21", "identity"], "kept")
        for name in ("cookie", "x-forwarded-for", "x-hop"):
            expect(name in headers, False, name + " upstream")


@clause(5)
def clause_version(bench: Bench) -> None:
    """anthropic-version: 2023-06-01 is added where the client sent none."""
    with bench.gateway() as client:
        client.post()
        expect(bench.seen[-1][0].headers.all("anthropic-version"), ["2023-06-01"], "header")


@clause(5)
def clause_betas(bench: Bench) -> None:
    """anthropic-beta: the provider's first, then the client's, each once, less what is dropped."""
    betas = {"betas": {"add": ["a-1"], "drop": ["c-*"]}}
    with bench.gateway(provider=betas) as client:
        client.post(("anthropic-beta", "b-1, a-1"), ("anthropic-beta", "c-9"))
        sent = ",".join(bench.seen[-1][0].headers.all("anthropic-beta"))
        expect(re.split(r"\s*,\s*", sent), ["a-1", "b-1"], "tokens")


@clause(5)
def clause_request_id(bench: Bench) -> None:
    """X-Request-ID is the client's where it can be told, else a new one."""
    with bench.gateway() as client:
        expect(client.get("/healthz", ("X-Request-ID", "mine-1")).headers.get("x-request-id"),
               "mine-1", "the client's")
        found = client.get("/healthz", ("X-Request-ID", "x" * 200)).headers.get("x-request-id")
        expect(found not in ("", "x" * 200), True, "a new one for what is too long")


@clause(5)
def clause_headers_down(bench: Bench) -> None:
    """Answers name account, provider, model sent and number of attempts."""
    with bench.gateway(provider={"model_map": {"claude-opus-*": "big"}}) as client:
        headers = client.post().headers
        expect([headers.get(name) for name in (
            "x-account-email", "x-gateway-provider", "x-mapped-model", "x-gateway-attempts")],
            ["one", "anthropic", "big", "1"], "headers")


@clause(5)
def clause_quoted_key(bench: Bench) -> None:
    """An account's key that the upstream quotes does not reach the client."""
    with bench.gateway() as client:
        bench.script.append(lambda request: refusal_of(400, "bad key " + ACCOUNT_KEY + "one"))
        status, _, message = client.post().error()
        expect((status, message[:8]), (400, "bad key "), "error")
        expect(ACCOUNT_KEY in message, False, "the key in it")


# -- section 6: what happens to a request


@clause(6)
def clause_clean_body(bench: Bench) -> None:
    """A clean body leaves byte for byte as it came."""
    body = (b'{ "model":"claude-opus-5-5","max_tokens" : 6.4e1, "unknown":[1.0, 1e-7],\n'
            b'"messages":[{"role":"user","content":"h\\u00e9 \\ud83d\\ude00"}] }')
    with bench.gateway() as client:
        client.ask("POST", "/v1/messages", [], body)
        expect(bench.seen[-1][1], body, "body upstream")


@clause(6)
def clause_validation(bench: Bench) -> None:
    """Bad JSON and missing fields are a 400; nothing goes upstream."""
    with bench.gateway() as client:
        expect(client.ask("POST", "/v1/messages", [], b"{").error()[:2],
               (400, "invalid_request_error"), "bad JSON")
        expect_in("Missing required field: messages", client.ask(
            "POST", "/v1/messages", [], b'{"model":"claude-opus-5-5"}').error()[2], "message")
        expect(len(bench.seen), 0, "calls upstream")


@clause(6)
def clause_cache_control(bench: Bench) -> None:
    """cache_control goes where it is always refused, and stays elsewhere."""
    mark = {"type": "ephemeral"}
    with bench.gateway() as client:
        client.post(messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "b", "signature": "c2ln", "cache_control": mark},
                {"type": "text", "text": "c", "cache_control": mark}]},
            {"role": "user", "content": "d"}])
        sent = json.loads(bench.seen[-1][1].decode("utf-8"))["messages"][1]["content"]
        expect(["cache_control" in block for block in sent], [False, True], "marks")


@clause(6)
def clause_tool_pairs(bench: Bench) -> None:
    """A call without its result gets one that says it was interrupted."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}
    with bench.gateway() as client:
        client.post(messages=[{"role": "user", "content": "a"},
                              {"role": "assistant", "content": [call]},
                              {"role": "user", "content": "go on"}])
        sent = json.loads(bench.seen[-1][1].decode("utf-8"))["messages"][2]["content"][0]
        expect((sent.get("type"), sent.get("tool_use_id"), sent.get("is_error")),
               ("tool_result", "toolu_1", True), "first block after the call")


@clause(6)
def clause_empty_text(bench: Bench) -> None:
    """Blank text blocks go."""
    with bench.gateway() as client:
        client.post(messages=[{"role": "user", "content": [
            {"type": "text", "text": " "}, {"type": "text", "text": "a"}]}])
        sent = json.loads(bench.seen[-1][1].decode("utf-8"))["messages"][0]["content"]
        expect(sent, [{"type": "text", "text": "a"}], "content")


# -- section 7: answered here


@clause(7)
def clause_warmup(bench: Bench) -> None:
    """A message that says Warmup alone is answered OK here, as JSON and as a stream."""
    with bench.gateway() as client:
        answer = client.say("Warmup")
        expect((answer.text(), answer.headers.get("x-warmup-intercepted")), ("OK", "true"), "JSON")
        expect(answer.json()["usage"]["input_tokens"], 1, "usage")
        expect(client.say("Warmup", stream=True).events(), [
            "message_start", "content_block_start", "content_block_delta", "content_block_stop",
            "message_delta", "message_stop"], "events")
        expect(len(bench.seen), 0, "calls upstream")


@clause(7)
def clause_no_warmup(bench: Bench) -> None:
    """What only looks like a warm-up goes upstream."""
    with bench.gateway() as client:
        for count, text in enumerate(("Warmups?", "Warmup my engine", "warmup"), 1):
            client.say(text)
            expect(len(bench.seen), count, "calls upstream after %r" % text)


# -- section 8: models


@clause(8)
def clause_thinking(bench: Bench) -> None:
    """-thinking at the end of an id goes, and switches thinking on."""
    with bench.gateway() as client:
        for model, kind in (("claude-opus-5-5", "adaptive"),
                            ("claude-opus-4-5-20251101", "enabled")):
            client.post(model=model + "-thinking", max_tokens=4000)
            sent = json.loads(bench.seen[-1][1].decode("utf-8"))
            expect((sent["model"], sent["thinking"]["type"]), (model, kind), "sent")


@clause(8)
def clause_model_map(bench: Bench) -> None:
    """model_map: an exact id beats a glob, the glob with more literal characters the rest."""
    with bench.gateway(provider={"model_map": {"claude-*": "any", "claude-opus-*": "big",
                                               "claude-opus-5": "exact"}}) as client:
        for model, sent in (("claude-opus-5", "exact"), ("claude-opus-4-8", "big"),
                            ("claude-haiku-5-5", "any")):
            expect(client.post(model=model).headers.get("x-mapped-model"), sent, model)


# -- section 9: attempts


def login_page(request: HttpRequest) -> HttpResponse:
    """What a captive portal answers."""
    return HttpResponse(200, [("Content-Type", "text/html")], b"<h1>Log in</h1>")


@clause(9)
def clause_next_account(bench: Bench) -> None:
    """A 429, an overload, a refused key and a page of HTML: the next account answers."""
    for fault in (429, 529, 500, 401, login_page):
        with bench.gateway(("one", "two")) as client:
            bench.script.append(fault)
            answer = client.say("hello")
            expect((answer.status, answer.headers.get("x-account-email"),
                    answer.headers.get("x-gateway-attempts")), (200, "two", "2"), str(fault))


@clause(9)
def clause_cooldown(bench: Bench) -> None:
    """An account that said 429 with retry-after is not asked again before."""
    with bench.gateway(("one", "two"), routing={"sticky": False}) as client:
        bench.script.append(lambda request: refusal_of(429, "slow down", ("retry-after", "60")))
        client.say("hello")
        client.say("hello")
        expect([request.headers.get("x-api-key")[len(ACCOUNT_KEY):] for request, _ in bench.seen],
               ["one", "two", "two"], "accounts asked")


@clause(9)
def clause_nobody_ready(bench: Bench) -> None:
    """When all rest, the 429 tells in whole seconds when the soonest is ready."""
    with bench.gateway() as client:
        bench.script.append(lambda request: refusal_of(429, "no", ("retry-after", "7.2"),
                                                    kind="rate_limit_error"))
        answer = client.say("hello")
        expect(answer.error(), (429, "rate_limit_error", "no"), "the upstream's own answer")
        expect_in(answer.headers.get("retry-after"), ("7", "8"), "retry-after")
        expect_in(client.say("hello").headers.get("retry-after"), ("7", "8"), "and after")


@clause(9)
def clause_refused_key(bench: Bench) -> None:
    """When its key is refused and nobody is left: a 502 that names the account, not to be retried."""
    with bench.gateway() as client:
        bench.script.append(401)
        answer = client.say("hello")
        expect(answer.error()[:2], (502, "api_error"), "error")
        expect_in("one", answer.error()[2], "message")
        expect(answer.headers.get("x-should-retry"), "false", "x-should-retry")


@clause(9)
def clause_other_errors(bench: Bench) -> None:
    """Any other 4xx is passed on unmodified, after one call."""
    with bench.gateway(("one", "two")) as client:
        body = b'{"type":"error",  "error":{"type":"invalid_request_error","message":"as it is"}}'
        bench.script.append(lambda request: HttpResponse(
            400, [("Content-Type", "application/json")], body))
        answer = client.say("hello")
        expect((answer.status, answer.body, len(bench.seen)), (400, body, 1), "answer")


@clause(9)
def clause_best_answer(bench: Bench) -> None:
    """When all fail, the last upstream error comes down unmodified."""
    with bench.gateway(("one", "two")) as client:
        bench.script.extend([529] + 2 * [lambda request: refusal_of(529, "the last")])
        expect(client.say("hello").error(), (529, "api_error", "the last"), "answer")


@clause(9)
def clause_signature(bench: Bench) -> None:
    """A refused thinking signature: once more without thinking; Claude Code gets it as it is."""
    talk = [{"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "b", "signature": "c2ln"},
                {"type": "text", "text": "c"}]},
            {"role": "user", "content": "d"}]
    message = "messages.1.content.0: Invalid `signature` in `thinking` block"
    for agent, status in (("selftest/1", 200), ("claude-cli/2.1.329 (external, cli)", 400)):
        with bench.gateway() as client:
            bench.script.append(lambda request: refusal_of(400, message,
                                                        kind="invalid_request_error"))
            answer = client.post(("User-Agent", agent), messages=talk)
            expect(answer.status, status, agent)


@clause(9)
def clause_sticky(bench: Bench) -> None:
    """A conversation stays on its account while that is ready."""
    with bench.gateway(("one", "two"), routing={"strategy": "round_robin"}) as client:
        used = [[client.say(text).headers.get("x-account-email") for _ in range(3)]
                for text in ("first", "second")]
        expect(used, [["one"] * 3, ["two"] * 3], "accounts of two conversations")


@clause(9)
def clause_unreachable(bench: Bench) -> None:
    """An upstream that cannot be reached is a 502 that says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: refused
        url = "http://127.0.0.1:%d" % taken.getsockname()[1]
        with bench.gateway(provider={"base_url": url}) as client:
            status, kind, message = client.say("hello").error()
            expect((status, kind), (502, "api_error"), "error")
            expect_in("upstream connection failed", message, "message")


# -- section 10: the wire


@clause(10)
def clause_stream_head(bench: Bench) -> None:
    """A stream's head forbids caching and buffering, and its body is chunked."""
    with bench.gateway() as client:
        headers = client.say("hello", stream=True).headers
        expect([headers.get(name) for name in (
            "cache-control", "x-accel-buffering", "transfer-encoding")],
            ["no-cache, no-transform", "no", "chunked"], "head")


@clause(10)
def clause_hold(bench: Bench) -> None:
    """A stream that fails before its first content is replaced unseen."""
    start = encode_sse_event("message_start", {"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "content": [],
        "model": "m", "stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 1}}})
    broken = encode_sse_event("error", {"type": "error", "error": {
        "type": "overloaded_error", "message": "overloaded"}})
    with bench.gateway(("one", "two")) as client:
        bench.script.append(lambda request: HttpResponse(
            200, [("Content-Type", "text/event-stream")], iter([start, broken])))
        answer = client.say("hello", stream=True)
        expect((answer.status, answer.events().count("message_start"), answer.events()[-1]),
               (200, 1, "message_stop"), "stream")


@clause(10)
def clause_broken_stream(bench: Bench) -> None:
    """A stream that breaks after content ends in one error event and never looks complete."""
    with bench.gateway() as client:
        for order in ("demo:cut", "demo:error"):
            events = client.say(order, stream=True).events()
            expect((events.count("error"), events[-1], "message_stop" in events),
                   (1, "error", False), order)


@clause(10)
def clause_framing(bench: Bench) -> None:
    """Two lengths, a length beside chunks, a bare LF: 400, and the connection closes."""
    start = b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with bench.gateway() as client:
        expect(client.raw(start.replace(b"\r\n", b"\n") + b"\n")[:12], b"HTTP/1.1 400", "bare LF")
        for head in (b"Content-Length: 2\r\nContent-Length: 3\r\n",
                     b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
                     b"Content-Length : 2\r\n", b"A: b\n c: d\r\n"):
            expect(client.raw(start + head + b"\r\n{}")[:12], b"HTTP/1.1 400", repr(head))


@clause(10)
def clause_continue(bench: Bench) -> None:
    """Expect: 100-continue is answered before the body is read."""
    body = json.dumps(HELLO).encode("ascii")
    head = (b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    with bench.gateway() as client:
        with socket.create_connection(("127.0.0.1", client.port), SELFTEST_SECONDS) as sock:
            sock.sendall(head)
            expect(sock.recv(READ_BYTES)[:12], b"HTTP/1.1 100", "before the body")
            sock.sendall(body)
            expect(sock.recv(READ_BYTES)[:12], b"HTTP/1.1 200", "after it")


@clause(10)
def clause_keep_alive(bench: Bench) -> None:
    """A connection serves one request after the other."""
    get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
    with bench.gateway() as client:
        data = client.raw(get % b"" + get % b"Connection: close\r\n")
        expect(data.count(b"HTTP/1.1 200 OK"), 2, "answers on one connection")


@clause(10)
def clause_large_body(bench: Bench) -> None:
    """A body above limits.body_bytes is a 413."""
    with bench.gateway(limits={"body_bytes": 1024}) as client:
        expect(client.say("x" * 2000).error()[:2], (413, "request_too_large"), "error")


@clause(10)
def clause_redirect(bench: Bench) -> None:
    """A redirect is not followed."""
    with bench.gateway() as client:
        bench.script.append(lambda request: HttpResponse(
            307, [("Location", bench.url + "/elsewhere")]))
        expect((client.say("hello").status, len(bench.seen)), (502, 1), "(status, calls)")


@clause(10)
def clause_collect(bench: Bench) -> None:
    """A request for more than 21,333 tokens is asked for as a stream and collected."""
    with bench.gateway() as client:
        answer = client.say("hello", max_tokens=30000)
        expect(answer.json()["type"], "message", "answer")
        expect(json.loads(bench.seen[-1][1].decode("utf-8")).get("stream"), True, "stream")


@clause(10)
def clause_browser(bench: Bench) -> None:
    """A page from elsewhere and a foreign Host are refused with 403."""
    with bench.gateway() as client:
        for pair in (("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"),
                     ("Host", "evil.example")):
            answer = client.post(pair)
            expect(answer.error()[:2], (403, "permission_error"), "%s: %s" % pair)
            expect("access-control-allow-origin" in answer.headers, False, "a CORS header")


@clause(10)
def clause_cors(bench: Bench) -> None:
    """A listed origin gets exact CORS, never *."""
    origin = "https://app.example"
    with bench.gateway(cors_origins=[origin]) as client:
        answer = client.post(("Origin", origin))
        expect((answer.status, answer.headers.get("access-control-allow-origin")),
               (200, origin), "answer")


@clause(10)
def clause_drain(bench: Bench) -> None:
    """While stopping, new requests get 503 and those under way get their end."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(request: HttpRequest) -> HttpResponse:
        begun.set()
        go_on.wait(SELFTEST_SECONDS)
        return refusal_of(400, "in time")

    with bench.gateway(timeouts={"shutdown_seconds": SELFTEST_SECONDS}) as client:
        bench.script.append(slow)
        answers: list[Received] = []
        asking = threading.Thread(target=lambda: answers.append(client.say("hello")))
        asking.start()
        begun.wait(SELFTEST_SECONDS)
        stopping = threading.Thread(target=client.gateway.stop)
        stopping.start()
        try:
            deadline = time.monotonic() + SELFTEST_SECONDS
            status = 200
            while status == 200 and time.monotonic() < deadline:
                status = client.get("/health").status
            expect((status, client.post().status), (503, 503), "(/health, a message)")
        finally:
            go_on.set()
            asking.join(SELFTEST_SECONDS)
            stopping.join(SELFTEST_SECONDS)
        expect([answer.error()[2] for answer in answers], ["in time"], "the one under way")


# -- section 11: the OpenAI door


def ask_chat(client: Client, text: str, **fields: Any) -> Received:
    """A chat completion."""
    return client.say(text, path="/v1/chat/completions", **fields)


@clause(11)
def clause_chat(bench: Bench) -> None:
    """POST /v1/chat/completions answers with a completion and its usage."""
    with bench.gateway() as client:
        found = ask_chat(client, "hello").json()
        expect((found["object"], found["choices"][0]["finish_reason"], found["model"]),
               ("chat.completion", "stop", "claude-opus-5-5"), "completion")
        expect_in("hello", found["choices"][0]["message"]["content"], "content")
        expect(found["usage"]["completion_tokens"] > 0, True, "usage")


@clause(11)
def clause_chat_stream(bench: Bench) -> None:
    """Its stream is chunks that end in [DONE], with usage where it is asked for."""
    with bench.gateway() as client:
        answer = ask_chat(client, "hello", stream=True, stream_options={"include_usage": True})
        frames = re.findall(rb"^data: (.+)$", answer.body, re.MULTILINE)
        expect(frames[-1].strip(), b"[DONE]", "last frame")
        expect(json.loads(frames[-2].decode("utf-8"))["usage"]["prompt_tokens"] > 0, True, "usage")


@clause(11)
def clause_chat_error(bench: Bench) -> None:
    """Its errors have OpenAI's shape."""
    with bench.gateway(auth={"api_keys": [SELFTEST_KEY]}) as client:
        found = ask_chat(client, "hello").json()
        expect(sorted(found), ["error"], "keys of the answer")
        for key in ("message", "type", "param", "code"):
            expect_in(key, found["error"], "the error")


@clause(11)
def clause_chat_upstream(bench: Bench) -> None:
    """Its upstream side is a Messages stream on the same accounts."""
    with bench.gateway() as client:
        ask_chat(client, "hello")
        request, body = bench.seen[-1]
        expect((request.path, json.loads(body.decode("utf-8")).get("stream"),
                request.headers.get("x-api-key")),
               ("/v1/messages", True, ACCOUNT_KEY + "one"), "call")


# -- section 12: seeing what it does


def seeing(client: Client, path: str) -> Received:
    """One of section 12's routes.  Raises ClauseSkipped where this version has none."""
    if path.partition("?")[0] not in ROUTES:
        raise ClauseSkipped("this version has no " + path.partition("?")[0])
    return client.get(path)


@clause(12)
def clause_record(bench: Bench) -> None:
    """Each request leaves one record: model, account, attempts, status, tokens."""
    with bench.gateway() as client:
        client.say("hello")
        record = client.records()[0]
        expect((record["route"], record["status"], record["account"]),
               ("messages", 200, "one"), "record")


@clause(12)
def clause_status(bench: Bench) -> None:
    """GET /gateway/status tells version, uptime and the accounts."""
    with bench.gateway() as client:
        found = seeing(client, "/gateway/status").json()
        expect(found["version"], __version__, "version")
        expect(len(found["accounts"]), 1, "accounts")


@clause(12)
def clause_requests(bench: Bench) -> None:
    """GET /gateway/requests gives the newest records; never a body."""
    with bench.gateway() as client:
        client.say("a-word-of-the-prompt")
        client.records()
        answer = seeing(client, "/gateway/requests?limit=5")
        expect((answer.status, b"a-word-of-the-prompt" in answer.body), (200, False), "answer")


@clause(12)
def clause_metrics(bench: Bench) -> None:
    """GET /metrics is Prometheus text."""
    with bench.gateway() as client:
        client.say("hello")
        client.records()
        answer = seeing(client, "/metrics")
        expect_in("claude_gateway_requests_total{", answer.body.decode("utf-8"), "text")


@clause(12)
def clause_dashboard(bench: Bench) -> None:
    """GET /dashboard is one page under a strict CSP."""
    with bench.gateway() as client:
        answer = seeing(client, "/dashboard")
        expect_in("text/html", answer.headers.get("content-type"), "type")
        expect_in("default-src 'none'", answer.headers.get("content-security-policy"), "CSP")


# -- section 13: the demo upstream


@clause(13)
def clause_demo(bench: Bench) -> None:
    """The demo echoes the last user text and says that it is a demo."""
    with bench.gateway(provider={"name": DEMO}) as client:
        text = client.say("hello", model="claude-demo-1").text()
        expect_in("demo upstream", text, "text")
        expect_in("hello", text, "text")


@clause(13)
def clause_demo_thinking(bench: Bench) -> None:
    """It thinks where thinking is asked for."""
    with bench.gateway() as client:
        found = client.say("hello", thinking={"type": "adaptive"}).json()
        expect([block["type"] for block in found["content"]], ["thinking", "text"], "blocks")


@clause(13)
def clause_demo_tool(bench: Bench) -> None:
    """demo:tool NAME {json} calls an offered tool."""
    tool = {"name": "look", "input_schema": {"type": "object"}}
    with bench.gateway() as client:
        found = client.say('demo:tool look {"at": "it"}', tools=[tool]).json()
        expect((found["stop_reason"], found["content"][-1]["input"]), ("tool_use", {"at": "it"}),
               "answer")


@clause(13)
def clause_demo_fault(bench: Bench) -> None:
    """demo:429 SECONDS is a 429, and takes the course of section 9."""
    with bench.gateway() as client:
        answer = client.say("demo:429 5")
        expect((answer.status, client.gateway.accounts()[0]["state"]), (429, "cooling"),
               "(status, account)")


# ---- 25. Command line --------------------------------------------------------


def command_check(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Validate the configuration and print what it resolves to."""
    config, path = load_config(options, environ)
    say(escape_controls("configuration: %s" % (path or "none (defaults)")))
    for line in describe_config(config) + provider_lines(config) + setting_lines(config):
        say(escape_controls(line))
    say("what happens when an upstream fails (case (statuses or kinds): what it is; ...):")
    for line in policy_lines():
        say("  " + line)
    for warning in config.warnings:
        say(escape_controls("warning: " + warning))
    fault = startup_fault(config)
    if fault:
        raise ConfigError([fault])
    say("good")
    return EXIT_GOOD


def command_env(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the client's lines."""
    config, _ = load_config(options, environ)
    shell = options.shell or detected_shell(environ, os.name == "nt")
    say(client_lines(shell, reachable_url(config), bool(config.auth.api_keys)))
    return EXIT_GOOD


def command_init(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write a starter configuration; what stands there already is never touched."""
    path = options.path or options.config or CONFIG_NAME
    if path.endswith(".toml"):
        raise ConfigError(["init: %s: it writes JSON; choose a name that ends in .json" % path])
    text = json.dumps(starter_settings(options), indent=2) + "\n"
    Config.from_dict(json.loads(text), environ)  # what check would refuse is not written
    try:
        write_new_file(path, text.encode("utf-8"))
    except FileExistsError:
        complain("claude_gateway: %s exists already; nothing was written" % path)
        return EXIT_BAD
    except (OSError, ValueError) as error:
        complain("claude_gateway: cannot write %s: %s" % (path, reason_of(error)))
        return EXIT_BAD
    for line in starter_lines(path):
        say(escape_controls(line))
    return EXIT_GOOD


def write_new_file(path: str, data: bytes) -> None:
    """A file of one's own (mode 0600) that was not there before.  Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    is_whole = False
    try:
        while data:
            data = data[os.write(descriptor, data):]
        is_whole = True
    finally:
        os.close(descriptor)  # first: Windows removes no file that is open
        if not is_whole:
            os.unlink(path)  # a half would be taken for the user's own


def starter_settings(options: argparse.Namespace) -> dict:
    """Every setting with its default, or with what an option says; secrets stay out."""
    given = {setting.path: getattr(options, setting.path) for setting in PLAIN_OPTIONS}
    rows = {row.path: row.default if given.get(row.path) is None else given[row.path]
            for row in SETTINGS}
    provider = {row.path: row.default for row in PROVIDER_SETTINGS if row.default is not None}
    # A header map is read into pairs; as JSON it is an object.
    provider["headers"] = {}
    if options.upstream and not options.demo:
        provider["base_url"] = options.upstream
    name = DEMO if options.demo else "anthropic"
    rows["providers"] = [dict({"name": name}, **nested(provider))]
    return nested(rows)


def nested(rows: Mapping[str, Any]) -> dict:
    """Dotted paths as groups.

    >>> nested({"log.level": "info", "port": 1})
    {'log': {'level': 'info'}, 'port': 1}
    """
    result: dict[str, Any] = {}
    for path, value in rows.items():
        group, _, name = path.rpartition(".")
        (result.setdefault(group, {}) if group else result)[name] = value
    return result


def starter_lines(path: str) -> list[str]:
    """What to do with a starter file, and what else may stand in it."""
    options = "" if path == CONFIG_NAME else " --config " + shlex.quote(path)
    tables = (
        ("a provider", [row for row in PROVIDER_SETTINGS if row.default is None]),
        ("its sanitize", SANITIZE_SETTINGS),
        ("an account", ACCOUNT_SETTINGS),
        ("an account's token", TOKEN_SETTINGS),
        ("one of auth.api_keys", CLIENT_KEY_SETTINGS),
    )
    return [
        "wrote %s, readable by you alone: every setting with its default" % path,
        "It can be served as it is: each client's own key is passed on.  To use a key of yours,",
        "name the variable that holds it among the provider's accounts:",
        '  "accounts": [{"name": "work", "api_key": "${WORK_KEY}"}]',
        "What else may stand there (README.md has the tables):",
        *("  %s: %s" % (name, ", ".join(row.path for row in rows)) for name, rows in tables),
        "next:",
        *("  python3 claude_gateway.py %s%s" % (command, options)
          for command in ("check", "doctor", "serve")),
    ]


# -- status


def command_status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask the running gateway, and print what it says."""
    config, _ = load_config(options, environ)
    document, fault = asked_status(config)
    if document is None:
        complain("claude_gateway: " + fault)
        return EXIT_BAD
    if options.json:
        say(json.dumps(document, indent=2))
        return EXIT_GOOD
    for line in status_lines(document, reachable_url(config)):
        say(escape_controls(line))
    return EXIT_GOOD


def asked_status(config: Config) -> tuple[Optional[dict], str]:
    """What ``GET /gateway/status`` answers, or None and why it does not, in one line."""
    url = reachable_url(config)
    key = config.auth.api_keys[0].key.reveal() if config.auth.api_keys else ""
    try:
        status, _, body = fetch(url, "/gateway/status", [("x-api-key", key)] if key else [],
                                STATUS_SECONDS)
    except (OSError, ValueError) as error:
        return None, ("no gateway answers at %s (%s); --host and --port say where else to ask"
                      % (url, reason_of(error).lower()))
    faults = {
        401: "the gateway at %s wants a key: add --api-key KEY (env:NAME keeps it out of the "
             "process list)" % url,
        404: "what answers at %s has no /gateway/status: another program, or an older gateway"
             % url,
    }
    if status == 200:
        try:
            document = json.loads(body.decode("utf-8"))
            # Others answer everything with JSON, too.
            if isinstance(document, dict) and isinstance(document.get("version"), str) \
                    and isinstance(document.get("accounts"), list):
                return document, ""
        except (ValueError, RecursionError):
            pass  # told below
    return None, faults.get(status, "what answers at %s (status %d) is no gateway" % (url, status))


def status_lines(document: Mapping[str, Any], url: str) -> list[str]:
    """A snapshot for people.  What a newer gateway adds is left out, what is missing, too."""
    in_flight = document.get("in_flight", 0)
    lines = ["claude_gateway %s at %s, up %s, %s in flight" % (
        document.get("version", "?"), url, human_seconds(document.get("uptime_seconds")),
        len(in_flight) if isinstance(in_flight, list) else in_flight)]
    told = document.get("accounts")
    accounts = [row for row in told if isinstance(row, dict)] if isinstance(told, list) else []
    if accounts:
        head = ("provider", "account", "state", "ready in", "in flight", "last error")
        lines += ["", *aligned([head, *(account_row(row) for row in accounts)])]
    else:
        lines.append("no accounts: each client's own key is passed on")
    totals = total_rows(document.get("totals"), document.get("models"))
    return lines + (["", *aligned(totals)] if totals else [])


def account_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One account of a snapshot as cells."""
    seconds = row.get("ready_in_seconds") or 0
    state = row.get("state", "") if row.get("enabled", True) else "disabled"
    return (str(row.get("provider", "")), str(row.get("account", "")), str(state),
            human_seconds(seconds) if seconds else "now", str(row.get("in_flight", 0)),
            str(row.get("last_error") or "-"))


def total_rows(totals: Any, models: Any) -> list[tuple[str, ...]]:
    """A table of what was counted, for each model and for all; [] where nothing was."""
    by_model = {name: row for name, row in models.items() if isinstance(row, dict)} \
        if isinstance(models, dict) else {}
    if not isinstance(totals, dict):
        return []
    names = [name for name, value in totals.items() if isinstance(value, (int, float))]
    rows = [(str(model), *(str(row.get(name, 0)) for name in names))
            for model, row in by_model.items()]
    heads = [name.replace("_tokens", "").replace("_", " ") for name in names]
    return [("model", *heads), *rows, ("all", *(str(totals[name]) for name in names))] \
        if names else []


def command_doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print a line for everything between a client and an answer; 1 where one is bad."""
    shell = SHELLS[options.shell or detected_shell(environ, os.name == "nt")]
    colour = can_colour(sys.stdout, environ)
    progress = Progress(sys.stderr)
    counts: collections.Counter = collections.Counter()
    try:
        for finding in doctor_findings(options, environ, progress):
            progress.show("")
            counts[finding.level] += 1
            for line in finding_lines(finding, shell, colour):
                say(line)
    finally:
        progress.show("")
    say("%d ok, %d warn, %d FAIL" % (counts["ok"], counts["warn"], counts["FAIL"]))
    return EXIT_BAD if counts["FAIL"] else EXIT_GOOD


def doctor_findings(options: argparse.Namespace, environ: Mapping[str, str],
                    progress: Progress) -> Iterator[Finding]:
    """The doctor's findings; a configuration that cannot be read is one, and the last."""
    try:
        config, _ = load_config(options, environ)
    except ConfigError as error:
        yield from judge_python(sys.version_info[:3], sys.platform, ssl.OPENSSL_VERSION)
        for problem in error.problems:
            yield Finding("FAIL", "config", problem, (("gateway", "check"),))
        return
    doctor = Doctor(config, environ, time.time, progress.show)
    try:
        yield from doctor.findings(options.offline)
    finally:
        doctor.close()


def command_selftest(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Walk the contract; 1 where a clause fails."""
    colour = can_colour(sys.stdout, environ)
    progress = Progress(sys.stderr)
    counts: collections.Counter = collections.Counter()
    began = time.monotonic()
    bench = Bench()
    try:
        for result, found, why in clause_results(bench):
            counts[result] += 1
            progress.show("")
            if result == "FAIL" or not options.quiet:
                say("%s%2d  %s%s" % (painted(result, 6, colour), found.section, found.words,
                                     escape_controls(" -- " + why) if why else ""))
            progress.show("%d of %d clauses" % (sum(counts.values()), len(CLAUSES)))
    finally:
        progress.show("")
        bench.close()
    say("%d pass, %d FAIL, %d skip in %.1f s" % (counts["pass"], counts["FAIL"], counts["skip"],
                                                 time.monotonic() - began))
    return EXIT_BAD if counts["FAIL"] else EXIT_GOOD


def command_serve(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the gateway until a signal ends it."""
    config, path = load_config(options, environ)
    settle_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    # Lines are written by threads: a full pipe or a stopped terminal holds up
    # neither a request nor the end of the process.
    errors, output = LineWriter(sys.stderr), LineWriter(sys.stdout)
    gateway = Gateway(config, errors)
    signals = Signals()
    try:
        with one_core():
            gateway.start()
    except (OSError, UnicodeError) as error:
        complain("claude_gateway: cannot listen on %s: %s%s"
                 % (BaseUrl("http", config.host, config.port, "").authority, reason_of(error),
                    taken_port(error, config.port)))
        return EXIT_BAD
    for line in banner_lines(gateway, config, path, options.quiet,
                             detected_shell(environ, os.name == "nt")):
        output(escape_controls(line))
    watch = FileWatch(path)
    # A file that was found is named from now on: were it gone, the defaults would have
    # neither keys nor accounts.
    options.config = path or options.config
    while True:
        event = signals.next(FILE_LOOK_SECONDS if path else None)
        if event == "stop":
            break
        if event == "reload" or watch.changed():
            if path and os.path.exists(path) and not os.path.isfile(path):
                # A pipe would hold up this thread, which is the one that stops us.
                gateway.note("error", "configuration not reloaded: %s is no plain file" % path)
                continue
            reload_configuration(gateway, options, environ)
    gateway.stop()
    output.close()
    errors.close()
    return EXIT_GOOD


def settle_memory() -> None:
    """Give back what starting took, and spare the collector what stays for good.

    Compiling this file leaves 28 MB that glibc would keep; the program's own objects,
    a hundred thousand, would be looked at in each full collection (10 ms).
    """
    getattr(gc, "freeze", lambda: None)()  # PyPy has none
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes  # on Linux alone
        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass  # safe: a libc without it, or a Python without ctypes, keeps the memory


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Threads that begin meanwhile, and theirs, keep to one core, where the system has such.

    They take turns at the interpreter anyway; a turn that passes to another core has to
    wake it and finds cold caches.  16 clients: 2,090 -> 2,790 requests/s; 1,000 streams:
    an event's p99 146 -> 11 ms; and no worse beside other busy programs, which the
    system moves away.  Of the cores we may use it is the one that we have been given now.
    """
    can_choose = has_interpreter_lock() and hasattr(os, "sched_setaffinity")
    core = own_core() if can_choose else None
    if core is None or sys.platform != "linux":
        yield
        return
    try:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
    except OSError:
        yield  # forbidden here, and only slower
        return
    try:
        yield
    finally:
        try:
            os.sched_setaffinity(0, allowed)
        except OSError:
            pass  # safe: other cores are ours by now, and this thread does little from here on


def own_core() -> Optional[int]:
    """The core on which this thread runs, as proc(5) tells it; None where that is not told."""
    try:
        with open("/proc/thread-self/stat", "rb") as file:
            # Field 39; the 2nd, a name in brackets, may hold anything.
            return int(file.read().rpartition(b")")[2].split()[36])
    except (OSError, ValueError, IndexError):
        return None


def banner_lines(gateway: Gateway, config: Config, path: str, quiet: bool,
                 shell: str) -> list[str]:
    """Where it listens, what it serves, the lines to copy."""
    lines = ["claude_gateway %s listening on %s" % (__version__, gateway.url)]
    if quiet:
        return lines
    lines.append("configuration: %s" % (path or "none (defaults)"))
    lines.extend(describe_config(config))
    lines.append("point a client here (other shells: claude_gateway.py env --shell NAME):")
    url = reachable_url(config._replace(port=gateway.port))
    lines.extend("  " + line for line in client_lines(
        shell, url, bool(config.auth.api_keys)).split("\n"))
    if "/dashboard" in ROUTES:
        lines.append("dashboard: %s/dashboard%s" % (
            url, "" if config.auth_mode == "off" else " (asks for a key)"))
    return lines


def taken_port(error: Exception, port: int) -> str:
    """The end of the line about a port that somebody holds; "" for other faults."""
    # Windows may also say EACCES of a taken port, and others of one that only root may take.
    if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
        return ""
    holder = port_holder(port)
    return "%s; choose another with --port" % (" (held by %s)" % holder if holder else "")


def reload_configuration(gateway: Gateway, options: argparse.Namespace,
                         environ: Mapping[str, str]) -> None:
    """Read the configuration again; a bad one is told and changes nothing."""
    try:
        config, path = load_config(options, environ)
        gateway.reload(config)
    except ConfigError as error:
        for problem in error.problems:
            gateway.note("error", "configuration not reloaded: " + problem)
        return
    except OSError as error:
        # The file went while it was looked at, or no descriptor is left: no reason to end.
        gateway.note("error", "configuration not reloaded: " + reason_of(error))
        return
    gateway.note("info", "configuration reloaded: %s" % (path or "none (defaults)"))


class FileWatch:
    """Tells when a file has changed; one that is just being written is waited for."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = self._known = self._mark()

    def _mark(self) -> Optional[tuple[int, ...]]:
        try:
            found = os.stat(self._path)
        except OSError:
            return None  # gone, perhaps between the two steps of a replacement
        return found.st_mtime_ns, found.st_size, found.st_ino

    def changed(self) -> bool:
        """Whether it has another content than when last told, and rests since the last look."""
        mark, before = self._mark(), self._seen
        self._seen = mark
        if mark == self._known or mark != before or mark is None:
            return False
        self._known = mark
        return True


class Signals:
    """SIGINT and SIGTERM (on Windows Ctrl-Break, too) end the gateway; a second one at once.

    SIGHUP reads the configuration again.  Waiting on a lock would miss a signal
    that another thread takes, or that comes just before the main thread blocks;
    the byte on the wake-up socket stays.
    """

    def __init__(self) -> None:
        self._stop = self._reload = False
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle_stop)
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            signal.signal(hangup, self._handle_reload)

    def _handle_stop(self, number: int, frame: Any) -> None:
        if self._stop:
            os._exit(EXIT_BAD)
        self._stop = True

    def _handle_reload(self, number: int, frame: Any) -> None:
        self._reload = True

    def next(self, seconds: Optional[float] = None) -> str:
        """The next of "stop" and "reload", or "" when ``seconds`` have passed."""
        self._woken.settimeout(seconds)
        while not (self._stop or self._reload):
            try:
                self._woken.recv(1)
            except socket.timeout:
                return ""
        if self._stop:
            return "stop"
        self._reload = False
        return "reload"


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Mapping[str, str]], int]] = {
    "check": command_check,
    "doctor": command_doctor,
    "env": command_env,
    "init": command_init,
    "selftest": command_selftest,
    "serve": command_serve,
    "status": command_status,
}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The program; gives its exit code."""
    try:
        options = parse_options(arguments)
        return COMMANDS[options.command](options, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            complain("claude_gateway: " + problem)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    # Not sys.exit: the interpreter's last flush of the streams would wait for a
    # terminal that takes nothing, and make 120 of the code where a pipe is closed.
    # Every line has been flushed by who wrote it.
    os._exit(main())
