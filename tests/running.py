"""Starts gateways inside the test process, and the configurations that tests share."""

import contextlib

from claude_gateway import Config
from claude_gateway import Gateway

CLIENT_KEY = "gw-key-for-tests"
ACCOUNT_KEY = "account-key-for-tests"


def provider(upstream, accounts=("work",), **settings):
    """A provider of a ScriptedUpstream; each account's key names it."""
    return dict({
        "name": "anthropic",
        "base_url": upstream.url,
        "accounts": [{"name": name, "api_key": "%s-%s" % (ACCOUNT_KEY, name)}
                     for name in accounts],
    }, **settings)


def settings_for(*providers, **settings):
    """A whole configuration on a free port with short bounds, so that failures show soon."""
    return dict({
        "port": 0,
        "providers": list(providers),
        "timeouts": {"shutdown_seconds": 0.2},
    }, **settings)


@contextlib.contextmanager
def running_gateway(*providers, write=None, environ=None, **settings):
    """A started Gateway over providers as dicts; what it leaves open fails the test."""
    gateway = Gateway(Config.from_dict(settings_for(*providers, **settings)), write, environ or {})
    with gateway:
        yield gateway


MESSAGE = b'{"model":"claude-opus-5-5","max_tokens":64,"messages":[{"role":"user","content":"hi"}]}'
STREAM_MESSAGE = MESSAGE[:-1] + b',"stream":true}'
JSON_TYPE = ("Content-Type", "application/json")
