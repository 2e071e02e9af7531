"""Upstreams whose accounts answer as a test says, and a gateway in front of them."""

import contextlib
import threading

from tests import support
from tests.running import ACCOUNT_KEY
from tests.running import JSON_TYPE
from tests.running import provider
from tests.running import running_gateway

# More connections than any test makes; each runs the same script.
CONNECTIONS = 5000


def error(status, kind="api_error", words="", **headers):
    """A whole refusal; underscores of `headers` stand for hyphens."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    body = support.error_body(kind, words or "status %d" % status)
    return support.json_response(body, status=status, headers=pairs)


def body_of(response):
    """The body of a whole response with Content-Length, as bytes."""
    return response[response.index(b"\r\n\r\n") + 4:]


def stream_of(events, end=support.LAST_CHUNK):
    """A stream in one chunk; `end` b"" leaves it without its proper end."""
    return support.SSE_HEAD + support.chunk(b"".join(events)) + end


def close(connection, request):
    """Closes without a byte of an answer."""
    return False


def reset(connection, request):
    """Resets without a byte of an answer."""
    connection.reset()
    return False


def silent(connection, request):
    """Says nothing until the other side gives up."""
    connection.wait_closed("the gateway to give up")
    return False


def cut(data):
    """Sends some bytes and closes."""
    def act(connection, request):
        connection.send(data)
        return False

    return act


def good(connection, request):
    """A message that names its account, as a stream where one is asked for."""
    connection.send(good_answer(account_of(request), is_stream(request)))
    return True


def good_answer(name, stream=False):
    if stream:
        return support.stream_response(good_events(name))
    return support.json_response(support.message("from %s" % name))


def good_events(name):
    return support.stream_events("from %s" % name)


def is_stream(request):
    return b'"stream":true' in request.body


def account_of(request):
    """Whose key, by the name of the account; other keys as they are."""
    key = request.header("x-api-key") or request.header("authorization") or ""
    return key[len(ACCOUNT_KEY) + 1:] if key.startswith(ACCOUNT_KEY) else key


class FaultyUpstream(support.ScriptedUpstream):
    """Each account has a list of what its calls meet, in order; `good` once that is over.

    What a call meets is a whole response as bytes, or act(connection, request),
    which tells whether the connection stays.
    """

    def __init__(self, answers):
        super().__init__(*[self.run] * CONNECTIONS)
        self.answers = {name: list(acts) for name, acts in answers.items()}
        self._answers_lock = threading.Lock()

    def run(self, connection):
        # Unbounded as in Connection.serve: an idle connection is no failure.
        request = connection.read_request(seconds=None)
        while request is not None:
            act = self.next_act(request)
            if callable(act):
                if not act(connection, request):
                    return
            else:
                connection.send(act)
            request = connection.read_request(seconds=None)

    def next_act(self, request):
        with self._answers_lock:
            acts = self.answers.get(account_of(request))
            return acts.pop(0) if acts else good

    @property
    def asked(self):
        """The accounts in the order in which they were asked."""
        return [account_of(request) for request in list(self.requests)]


class Play:
    """A gateway over a FaultyUpstream."""

    def __init__(self, upstream, gateway):
        self.upstream = upstream
        self.gateway = gateway
        self._asked_before = 0

    def post(self, text="hi", stream=False, path="/v1/messages", headers=(), **fields):
        """The answer to one message on a connection of its own."""
        return support.exchange(self.gateway.port, "POST", path, [JSON_TYPE, *headers],
                                message_body(text, stream, **fields))

    def client(self, text="hi", **fields):
        """A client that has sent a request for a stream and read nothing."""
        client = support.RawClient(self.gateway.port)
        client.request("POST", "/v1/messages", [JSON_TYPE], message_body(text, True, **fields))
        return client

    def asked(self):
        """The accounts asked since the last time that this was called."""
        asked = self.upstream.asked[self._asked_before:]
        self._asked_before += len(asked)
        return asked

    def records(self, count):
        """The records, the oldest request first; written when an answer has gone, so awaited.

        Whoever asks twice may be answered twice before the first one's is written.
        """
        support.eventually(lambda: len(self.gateway.records()) >= count, "%d records" % count)
        return sorted(self.gateway.records()[::-1], key=lambda record: record["time"])

    def settled(self):
        """The gateway's counts once it holds nothing of any request."""
        names = ("leases", "upstream_active", "requests")
        support.eventually(lambda: not any(self.gateway.status()[name] for name in names),
                           "nothing to be under way: %r" % (self.gateway.status(),))
        return self.gateway.status()


def message_body(text="hi", stream=False, **fields):
    body = {"model": "claude-opus-5-5", "max_tokens": 64,
            "messages": [{"role": "user", "content": text}]}
    if stream:
        body["stream"] = True
    return support.to_json(dict(body, **fields))


@contextlib.contextmanager
def play(answers, provider_settings=None, accounts=None, **settings):
    """A Play; `answers` maps the accounts, in order, to what their calls meet."""
    settings = dict({"routing": {"sticky": False}}, **settings)
    with FaultyUpstream(answers) as upstream:
        names = tuple(answers) if accounts is None else accounts
        with running_gateway(provider(upstream, names, **(provider_settings or {})),
                             **settings) as gateway:
            yield Play(upstream, gateway)
