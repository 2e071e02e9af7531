"""Starts gateways inside the test process, and the configurations that tests share."""

import contextlib
from unittest import mock

import claude_gateway
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


def config_with_pings(settings):
    """A Config; its pings may come more often than once a second, the most that users can set."""
    stream = dict(settings.get("stream", {}))
    seconds = stream.pop("ping_seconds", None)
    config = Config.from_dict(dict(settings, stream=stream))
    if seconds is not None:
        config = config._replace(stream=config.stream._replace(ping_seconds=seconds))
    return config


@contextlib.contextmanager
def running_gateway(*providers, write=None, environ=None, **settings):
    """A started Gateway over providers as dicts; what it leaves open fails the test."""
    config = config_with_pings(settings_for(*providers, **settings))
    gateway = Gateway(config, write, environ or {})
    with gateway:
        yield gateway


MESSAGE = b'{"model":"claude-opus-5-5","max_tokens":64,"messages":[{"role":"user","content":"hi"}]}'
STREAM_MESSAGE = MESSAGE[:-1] + b',"stream":true}'
JSON_TYPE = ("Content-Type", "application/json")


def quick_backoff(seconds=0.02):
    """The longest first pause before the same account is asked again, for so long as entered.

    For tests of what comes before or behind it.
    """
    return mock.patch.object(claude_gateway, "BACKOFF_SECONDS", seconds)
