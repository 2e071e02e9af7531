"""Secrets in nothing: every secret there is holds MARKED, and every output is searched for it.

The upstreams, the proxy and the issuer say all that they are told wherever they can.
"""

import contextlib
import json
import os
import tempfile
import traceback
import unittest
import unittest.mock

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import running_gateway
from tests.running import settings_for


def secret(name):
    """A mask may show the last four characters."""
    return "MARKED-%s-0123456789abcdef-tail" % name


CLIENT = secret("client")
KEYS = ("client", "other", "api", "bearer", "command", "client-secret", "refresh", "access",
        "rotated", "header", "proxy")


def told(request):
    """What an upstream has been told, as a text of one line.

    All but a provider's extra headers: what they hold only the upstream knows.
    """
    return json.dumps({name: value for name, value in request.headers if name != "x-team"})[
        1:-1].replace('"', "'") + request.target


def quoting(request):
    """An upstream that quotes its client in headers, bodies, events and errors, in turn."""
    text = told(request)
    headers = [("x-echo", text), ("request-id", text[-60:])]
    kind = quoting.count = quoting.count + 1
    if request.target.startswith("/token"):
        return support.json_response({"access_token": secret("access"), "token_type": "Bearer",
                                      "refresh_token": secret("rotated"), "expires_in": 3600,
                                      "told": text}, headers=headers)
    if kind % 4 == 0:
        status = (400, 401, 403, 404, 429, 500, 529)[kind // 4 % 7]
        return support.json_response(support.error_body("api_error", text), status=status,
                                     headers=headers)
    if b'"stream":true' in request.body:
        head = support.SSE_HEAD[:-2] + ("x-echo: %s\r\n\r\n" % text).encode()
        events = support.stream_events("said: " + text)
        if kind % 4 == 1:
            events[3:] = [support.sse_event(support.error_body("overloaded_error", text))]
        return head + b"".join(map(support.chunk, events)) + support.LAST_CHUNK
    return support.json_response(support.message("said: " + text), headers=headers)


def refusing_proxy(connection):
    """A proxy that quotes the password in its refusal."""
    request = connection.read_request()
    if request is not None:
        connection.send(support.json_response(
            {"told": told(request)}, status=407, headers=[("x-echo", told(request))]))


class SecretsTest(unittest.TestCase):

    def setUp(self):
        quoting.count = 0
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.upstream = self.stack.enter_context(support.ScriptedUpstream(respond=quoting))
        self.proxy = self.stack.enter_context(support.ScriptedUpstream(*[refusing_proxy] * 1000))
        self.lines = []

    def providers(self):
        grant = {"token_url": self.upstream.url + "/token", "client_id": "abc",
                 "client_secret": secret("client-secret"), "refresh_token": secret("refresh"),
                 "store": os.path.join(self.folder, "tokens.json")}
        command = [*support.quick_python(), "-c", "print('MARKED-' + 'command-0123456789abcdef-tail')"]
        url = self.upstream.url
        return [
            {"name": "anthropic", "base_url": url, "headers": {"x-team": secret("header")},
             "models": ["claude-a"], "accounts": [
                 {"name": "api", "api_key": secret("api")},
                 {"name": "bearer", "auth_token": secret("bearer")}]},
            {"name": "command", "base_url": url, "models": ["claude-b"], "accounts": [
                {"name": "command", "key_command": command}]},
            {"name": "issued", "base_url": url, "models": ["claude-c"], "accounts": [
                {"name": "issued", "token": grant}]},
            {"name": "proxied", "base_url": "https://upstream.invalid", "models": ["claude-d"],
             "proxy": "http://me:%s@127.0.0.1:%d" % (secret("proxy"), self.proxy.port),
             "accounts": [{"name": "proxied", "api_key": secret("api")}]},
        ]

    def settings(self, log_format):
        return {"auth": {"mode": "all_except_health",
                         "api_keys": [CLIENT, {"name": "other", "key": secret("other")}]},
                "log": {"level": "debug", "format": log_format},
                "routing": {"models": {"claude-%s" % letter: name for letter, name in zip(
                    "abcd", ("anthropic", "command", "issued", "proxied"))}},
                "retry": {"max_wait_seconds": 0}}

    def ask_everything(self, port):
        """What clients get to see, at both doors and elsewhere."""
        shown = []
        paths = ["/v1/messages", "/v1/messages?key=" + CLIENT, "/v1/messages/count_tokens",
                 "/v1/chat/completions", "/v1/files", "/v1/models", "/v1/providers", "/health",
                 "/nothing/" + "x", "/v1/messages/" + "y", "/gateway/status"]
        keys = [[("x-api-key", CLIENT)], [("Authorization", "Bearer " + secret("other"))],
                [("x-api-key", secret("wrong"))], [("Authorization", "Basic " + CLIENT)], []]
        for letter in "abcd":
            for number, path in enumerate(paths * 3):
                body = (STREAM_MESSAGE if number % 2 else MESSAGE).replace(
                    b"claude-opus-5-5", b"claude-" + letter.encode())
                method = "POST" if "message" in path or "chat" in path else "GET"
                for headers in keys if letter == "a" and number < len(paths) else keys[:2]:
                    answer = support.exchange(port, method, path, [JSON_TYPE, *headers],
                                              body if method == "POST" else b"")
                    shown.append(answer.raw_head.decode("latin-1")
                                 + answer.body.decode("utf-8", "replace"))
        for data in (b"GET /" + CLIENT.encode() + b" HTTP/1.1\r\nx-api-key : " + CLIENT.encode(),
                     b"x-api-key: " + CLIENT.encode()):
            with support.RawClient(port) as client:
                client.send(data + b"\r\n\r\n")
                answer = client.read_response()
                shown.append(answer.raw_head.decode("latin-1") + answer.body.decode())
        return shown

    def check_nothing(self, shown, where):
        for text in shown:
            at = text.find("MARKED")
            if at >= 0:
                self.fail("%s shows %r" % (where, text[max(0, at - 200):at + 60]))

    def test_answers_log_records_and_reprs(self):
        for log_format in ("text", "json"):
            with self.subTest(log_format):
                with running_gateway(*self.providers(), write=self.lines.append,
                                     **self.settings(log_format)) as gateway:
                    shown = self.ask_everything(gateway.port)
                    inside = [json.dumps(gateway.records()), json.dumps(gateway.accounts()),
                              json.dumps(gateway.status()), repr(gateway.config),
                              str(gateway.config), repr(vars(gateway)),
                              repr(vars(gateway._engine)), repr(gateway._engine._served.keys)]
                self.assertGreater(len(self.lines), 100)
                self.check_nothing(shown, "an answer")
                self.check_nothing(self.lines, "the log")
                self.check_nothing(inside, "a record or a repr")
                del self.lines[:]
        # That all of them were in use, or this would have shown nothing.
        said = "".join(request.raw_head.decode() + request.body.decode()
                       for request in self.upstream.requests)
        for name in ("api", "bearer", "command", "client-secret", "refresh", "access", "header"):
            self.assertIn(secret(name), said)
        self.assertTrue(any(request.header("proxy-authorization")
                            for request in self.proxy.requests))
        # No gateway key has left.
        self.assertNotIn(CLIENT, said)
        self.assertNotIn(secret("other"), said)

    def test_faults_of_ours_and_their_tracebacks(self):
        """An exception that quotes a secret, wherever it comes from."""
        caught = []

        def fails(*arguments, **settings):
            error = KeyError(*[secret(name) for name in KEYS])
            caught.append(error)
            raise error

        for place in ("upstream_headers", "candidate_providers", "note_answer", "told_limits"):
            with self.subTest(place), unittest.mock.patch.object(gw, place, fails):
                with running_gateway(*self.providers(), write=self.lines.append,
                                     **self.settings("text")) as gateway:
                    for path in ("/v1/messages", "/v1/chat/completions"):
                        answer = support.exchange(
                            gateway.port, "POST", path, [JSON_TYPE, ("x-api-key", CLIENT)],
                            MESSAGE.replace(b"opus-5-5", b"a"))
                        self.check_nothing([repr(answer), str(answer.headers),
                                            answer.body.decode()], "an answer")
        self.check_nothing(self.lines, "the log")
        self.assertGreater(len(caught), 4)

    def test_a_traceback_of_any_frame_has_no_secret_of_ours(self):
        """Values show themselves by their repr; no secret's does."""
        def fails(*arguments):
            raise gw.UpstreamClosed("x")

        config = gw.Config.from_dict(settings_for(*self.providers(), **self.settings("text")))
        error = None
        try:
            fails(config)
        except gw.UpstreamError as raised:
            error = raised
        text = "".join(traceback.TracebackException.from_exception(
            error, capture_locals=True).format())
        self.assertIn("Config(", text)
        # The test's own frame holds nothing that is secret.
        self.check_nothing([text], "a traceback with its values")

    def test_check_and_what_serve_prints(self):
        for log_format in ("text", "json"):
            config = dict(settings_for(*self.providers()), **self.settings(log_format))
            path = os.path.join(self.folder, "config.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(dict(config, port=8045), file)
            os.chmod(path, 0o600)
            for command in ("check", "env"):
                for extra in ([], ["--port", "x"], ["--upstream", "http://x:%s@y" % CLIENT]):
                    result = support.run_inside([command, "--config", path, *extra], self.folder,
                                                dict(os.environ))
                    self.assertTrue(result.stdout + result.stderr)
                    self.check_nothing([result.stdout, result.stderr], command)
            with support.GatewayProcess(config) as gateway:
                self.check_nothing(self.ask_everything(gateway.port), "an answer")
                gateway.stop()
                self.check_nothing([gateway.output()], "the process")

    def test_a_bad_configuration_does_not_quote_its_secrets(self):
        """Secrets under wrong keys, of wrong types, with characters that no header may hold."""
        bad = [
            {"auth": {"api_keys": [{"kee": CLIENT}]}}, {"auth": {"api_key": CLIENT}},
            {"auth": {"api_keys": [CLIENT + "\n"]}}, {"auth": {"api_keys": CLIENT}},
            {"auth": {"mode": CLIENT}} and {"auth": {"api_keys": [["x", CLIENT]]}},
            {"providers": [{"name": "a", "accounts": [{"name": "x", "api_key": [CLIENT]}]}]},
            {"providers": [{"name": "a", "accounts": [{"name": "x", "api_key": CLIENT + "\0"}]}]},
            {"providers": [{"name": "a", "accounts": [{"name": "x", "apikey": CLIENT}]}]},
            {"providers": [{"name": "a", "accounts": [{"api_key": CLIENT, "auth_token": CLIENT}]}]},
            {"providers": [{"name": "a", "base_url": "https://u:%s@h" % CLIENT}]},
            {"providers": [{"name": "a", "proxy": "ftp://u:%s@h" % CLIENT}]},
            {"providers": [{"name": "a", "proxy": "http://u:%s@h:x" % CLIENT}]},
            {"providers": [{"name": "a", "headers": {"x": CLIENT + "\r\n"}}]},
            {"providers": [{"name": "a", "headers": {"x": [CLIENT]}}]},
            {"providers": [{"name": "a", "accounts": [{"name": "x", "token": {
                "token_url": "https://h/?k=" + CLIENT, "client_secret": 5, "refresh_token": CLIENT
            }}]}]},
        ]
        for settings in bad:
            with self.subTest(json.dumps(settings)):
                try:
                    shown = [repr(gw.Config.from_dict(settings))]
                except gw.ConfigError as error:
                    shown = [str(error), repr(error)]
                self.check_nothing(shown, "a configuration's fault")


if __name__ == "__main__":
    unittest.main()
