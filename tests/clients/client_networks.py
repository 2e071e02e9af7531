"""Corporate networks: real proxies before the upstream, one of which signs TLS anew, and localhost as ::1."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

from tests import support
from tests.clients import harness
from tests.support import json_response
from tests.support import message
from tests.support import stream_events
from tests.support import stream_response

# A name that only the proxies can resolve: what arrives there came through one.
UPSTREAM_NAME = "upstream.example"
UPSTREAM_HOSTS = ["127.0.0.1 localhost", "127.0.0.1 " + UPSTREAM_NAME]
QUESTION = {"model": "claude-opus-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
NOBODY = "http://127.0.0.1:9"


class Proxy:
    """A proxy as a process; `port` is where it listens, `text()` what it said."""

    def __init__(self, command, environment, folder, port=None):
        self.command = command
        self.environment = environment
        self.folder = folder
        self.port = port
        self._said = []

    def __enter__(self):
        self._process = subprocess.Popen(
            self.command, env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        support.eventually(self._listens, "the proxy to listen; it says:\n" + self.text())
        return self

    def _read(self):
        for line in self._process.stdout:
            self._said.append(line.decode("utf-8", "replace"))

    def text(self):
        return "".join(self._said)

    def _listens(self):
        if self._process.poll() is not None:
            raise AssertionError("the proxy ended:\n" + self.text())
        if self.port is None:
            told = re.search(r"listening at 127\.0\.0\.1:(\d+)", self.text())
            self.port = told and int(told.group(1))
            return self.port
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __exit__(self, kind, error, trace):
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(support.WAIT_SECONDS)
        harness.end_with_children(self._process)
        self._reader.join()
        self._process.stdout.close()


class NetworkTest(harness.ClientTest):
    """An upstream with TLS by the name that only a proxy resolves, its certificate from a CA of its own."""

    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.mkdtemp(prefix="claude_gateway_client_")
        cls.addClassCleanup(shutil.rmtree, cls.shared)
        cls.material = support.make_tls_material(cls.shared, "DNS:" + UPSTREAM_NAME)
        cls.seeing_upstream = harness.seeing_hosts(cls.shared, UPSTREAM_HOSTS)

    def setUp(self):
        super().setUp()
        self.answers = harness.Answers([])
        self.upstream = self.entered(support.ScriptedUpstream(respond=self.answers, tls=self.material))
        self.authority = "%s:%d" % (UPSTREAM_NAME, self.upstream.port)

    def config(self, **provider):
        accounts = [{"name": "work", "api_key": harness.UPSTREAM_KEY}]
        provider = dict(provider, name="anthropic", base_url="https://" + self.authority, accounts=accounts)
        # One attempt: what the proxy says at first is what is told.
        return {"providers": [provider], "auth": {"api_keys": [harness.GATEWAY_KEY]}, "retry": {"max_attempts": 1}}

    def gateway(self, env, python=sys.executable, **provider):
        return self.entered(support.GatewayProcess(self.config(**provider), env=env, python=python))

    def ask(self, gateway, *answers, **more):
        """curl's (status, body) of one question."""
        self.answers.left = list(answers)
        command = [harness.on_path("curl"), "-sS", "--max-time", "20", "-w", "\n%{http_code}", "-N",
                   gateway.url + "/v1/messages", "-H", "x-api-key: " + harness.GATEWAY_KEY,
                   "-H", "content-type: application/json", "-d", json.dumps(dict(QUESTION, **more))]
        finished = harness.run(command, harness.bare_environment(self.folder), self.folder)
        self.assertEqual(0, finished.code, finished)
        body, _, status = finished.out.rpartition(b"\n")
        return int(status), body

    def assert_answers(self, gateway):
        status, body = self.ask(gateway, json_response(message("through")))
        self.assertEqual((200, "through"), (status, json.loads(body)["content"][0]["text"]))
        events = stream_events("word by word")
        self.assertEqual((200, b"".join(events)), self.ask(gateway, stream_response(events), stream=True))
        self.assertEqual(2, len(self.upstream.requests))
        self.assert_only_the_account_was_shown()

    def assert_fails_with(self, words, gateway):
        status, body = self.ask(gateway)
        self.assertEqual((502, "api_error"), (status, json.loads(body)["error"]["type"]))
        self.assertIn(words, json.loads(body)["error"]["message"])
        self.assertEqual([], self.upstream.requests)

    def doctor(self, env, **provider):
        """What the doctor prints with the same configuration and environment."""
        path = os.path.join(self.folder, "gateway.json")
        with open(path, "w") as file:
            json.dump(dict(self.config(**provider), port=1), file)
        os.chmod(path, 0o600)
        self.answers.left = [json_response({"input_tokens": 1})]
        return harness.run([sys.executable, support.GATEWAY_FILE, "doctor", "--config", path],
                           harness.bare_environment(self.folder, **env), self.folder).text


class PlainProxyTest(NetworkTest):
    """tinyproxy, which passes TLS on as it is."""

    def proxy(self, *lines):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        path = os.path.join(self.folder, "tinyproxy.conf")
        with open(path, "w") as file:
            file.write("\n".join(["Port %d" % port, "Listen 127.0.0.1", "Timeout 60", "LogLevel Connect", *lines, ""]))
        command = self.seeing_upstream + [harness.on_path("tinyproxy"), "-d", "-c", path]
        return self.entered(Proxy(command, harness.bare_environment(self.folder), self.folder, port))

    def test_without_a_password(self):
        proxy = self.proxy()
        env = {"HTTPS_PROXY": "http://127.0.0.1:%d" % proxy.port, "SSL_CERT_FILE": self.material.ca_file}
        self.assert_answers(self.gateway(env))
        support.eventually(lambda: "CONNECT " + self.authority in proxy.text(), "the proxy's log")

    def test_with_a_password(self):
        address = "http://%%s127.0.0.1:%d" % self.proxy("BasicAuth me pass").port
        trust = {"SSL_CERT_FILE": self.material.ca_file}
        none, wrong = (dict(trust, HTTPS_PROXY=address % user) for user in ("", "me:wrong@"))
        self.assert_fails_with("with status 407: give it a user and password, as http://USER:PASSWORD@HOST:PORT",
                               self.gateway(none))
        self.assert_fails_with("with status 401: the user or password is wrong", self.gateway(wrong))
        for env in (none, wrong):
            self.assertIn("mend: give the proxy its user and password", self.doctor(env))
        self.assert_answers(self.gateway(dict(trust, HTTPS_PROXY=address % "me:pass@")))

    def test_proxy_of_the_provider(self):
        address = "http://me:pass@127.0.0.1:%d" % self.proxy("BasicAuth me pass").port
        env = {"HTTPS_PROXY": NOBODY, "SSL_CERT_FILE": self.material.ca_file}
        self.assert_answers(self.gateway(env, proxy=address))

    def test_no_proxy(self):
        """The gateway itself can resolve the name here, and the proxy is none."""
        wrapper = os.path.join(self.folder, "python")
        with open(wrapper, "w") as file:
            file.write("#!/bin/sh\nexec %s \"$@\"\n" % " ".join(
                map(shlex.quote, self.seeing_upstream + [sys.executable])))
        os.chmod(wrapper, 0o700)
        env = {"HTTPS_PROXY": NOBODY, "SSL_CERT_FILE": self.material.ca_file}
        self.assert_fails_with("proxy %s: connection refused" % NOBODY, self.gateway(env, wrapper))
        self.assert_answers(self.gateway(dict(env, NO_PROXY="localhost,.example"), wrapper))


class SigningProxyTest(NetworkTest):
    """mitmproxy, which ends TLS and signs for the upstream with a CA that it made itself."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        command = cls.seeing_upstream + [
            harness.installed("mitmproxy", "bin", "mitmdump"), "--listen-host", "127.0.0.1", "--listen-port", "0",
            "--set", "confdir=" + cls.shared, "--set", "ssl_verify_upstream_trusted_ca=" + cls.material.ca_file,
            "--set", "stream_large_bodies=1"]
        environment = harness.bare_environment(cls.shared, PYTHONUNBUFFERED="1")
        context = Proxy(command, environment, cls.shared)
        cls.addClassCleanup(context.__exit__, None, None, None)
        cls.proxy = context.__enter__()
        cls.env = {"HTTPS_PROXY": "http://127.0.0.1:%d" % cls.proxy.port}
        cls.ca_file = os.path.join(cls.shared, "mitmproxy-ca-cert.pem")

    def test_trusted_by_the_environment(self):
        self.assert_answers(self.gateway(dict(self.env, SSL_CERT_FILE=self.ca_file)))
        self.assertIn("POST https://%s/v1/messages" % self.authority, self.proxy.text())

    def test_trusted_by_the_provider(self):
        self.assert_answers(self.gateway(self.env, ca_file=self.ca_file))

    def test_claude_code_with_the_variable_that_it_has_itself(self):
        gateway = self.gateway(dict(self.env, NODE_EXTRA_CA_CERTS=self.ca_file))
        self.answers.left = [stream_response(stream_events("Hello from afar"))]
        finished = harness.ClaudeCode(self.folder).run(gateway.url, harness.api_key(harness.GATEWAY_KEY))
        self.assertEqual((0, "Hello from afar"), (finished.code, finished.text), finished)
        self.assert_only_the_account_was_shown()

    def test_without_trust_it_is_said_what_is_missing(self):
        self.assert_fails_with("name the file of its CA in SSL_CERT_FILE or as ca_file of the provider",
                               self.gateway(self.env))
        found = self.doctor(self.env)
        self.assertIn("FAIL  tls           the certificate of %s is not trusted" % UPSTREAM_NAME, found)
        self.assertIn("CA's PEM file at ca_file of the provider, or into SSL_CERT_FILE", found)

    def test_doctor_with_trust(self):
        found = self.doctor(self.env, ca_file=self.ca_file)
        self.assertIn("ok    tls           %s is trusted, issued by mitmproxy" % UPSTREAM_NAME, found)
        self.assertIn("ok    account       anthropic/work: the credential is taken", found)


class LocalhostTest(harness.ClientTest):
    """localhost is ::1 first, as on most machines."""

    HOSTS = ["::1 localhost", "127.0.0.1 localhost"]
    FIRST_ADDRESS_ALONE = {"NODE_OPTIONS": "--no-network-family-autoselection"}

    def setUp(self):
        super().setUp()
        self.prefix = harness.seeing_hosts(self.folder, self.HOSTS)
        self.port = 0

    def start(self, host, *answers):
        self.gateway_before(*answers, args=["--host", host])
        return "http://localhost:%d" % self.process.port

    def sdks(self):
        """With the transports httpx, httpx2, node-fetch and Node's own."""
        for name in ("sdk-python-old", "sdk-python-current"):
            yield name, harness.python_sdk(self.folder, name)
        for name in ("sdk-typescript-old", "sdk-typescript"):
            yield name, harness.typescript_sdk(self.folder, name)

    def assert_all_answered(self, url, sdks):
        for name, sdk in sdks:
            with self.subTest(name):
                sdk.prefix = self.prefix
                told = sdk.told(url, harness.api_key(harness.GATEWAY_KEY), "create")
                self.assertEqual("Hello", told.get("text"), told)

    def assert_curl_is_answered(self, url):
        command = [*self.prefix, harness.on_path("curl"), "-sS", "--max-time", "20", url + "/healthz"]
        finished = harness.run(command, harness.bare_environment(self.folder), self.folder)
        self.assertEqual({"status": "ok"}, json.loads(finished.text), finished)

    def assert_claude_code_prints(self, url, text):
        claude = harness.ClaudeCode(self.folder)
        claude.prefix = self.prefix
        finished = claude.run(url, harness.api_key(harness.GATEWAY_KEY))
        self.assertEqual((0, text), (finished.code, finished.text), finished)

    def test_clients_find_127_0_0_1(self):
        sdks = list(self.sdks())
        url = self.start("127.0.0.1", *[json_response(message("Hello"))] * len(sdks),
                         stream_response(stream_events("Here I am")))
        self.assert_curl_is_answered(url)
        self.assert_all_answered(url, sdks)
        self.assert_claude_code_prints(url, "Here I am")

    def test_clients_find_ipv6(self):
        sdks = [(name, sdk) for name, sdk in self.sdks() if name != "sdk-python-current"]
        url = self.start("::1", *[json_response(message("Hello"))] * len(sdks),
                         stream_response(stream_events("Here I am")))
        self.assert_curl_is_answered(self.process.url)
        self.assert_all_answered(url, sdks)
        self.assert_claude_code_prints(self.process.url, "Here I am")

    def test_who_tries_the_first_address_alone(self):
        """Node before 20; what README says of it."""
        sdk = harness.typescript_sdk(self.folder)
        sdk.prefix, sdk.environment = self.prefix, dict(sdk.environment, **self.FIRST_ADDRESS_ALONE)
        url = self.start("127.0.0.1", json_response(message("Hello")))
        told = sdk.told(url, harness.api_key(harness.GATEWAY_KEY), "create")
        self.assertEqual("APIConnectionError", told["error"]["class"])
        self.assert_all_answered(self.process.url, [("by its address", sdk)])
        url = self.start("::1", json_response(message("Hello")))
        self.assert_all_answered(url, [("on ::1", sdk)])


class ClientsProxyTest(harness.ClientTest):
    """Clients in a shell with a proxy: with what the doctor prints for NO_PROXY they come straight to the gateway."""

    VARIABLES = {"HTTP_PROXY": NOBODY, "http_proxy": NOBODY, "ALL_PROXY": NOBODY, "NO_PROXY": harness.NO_PROXY}

    def test_they_come_straight(self):
        programs = {name: harness.python_sdk(self.folder, name) for name in ("sdk-python-old", "sdk-python-current")}
        gateway = self.gateway_before(*[json_response(message("Hello"))] * len(programs),
                                      stream_response(stream_events("Here I am")))
        for name, sdk in programs.items():
            with self.subTest(name):
                sdk.environment = dict(sdk.environment, **self.VARIABLES)
                told = sdk.told(gateway, harness.api_key(harness.GATEWAY_KEY), "create")
                self.assertEqual("Hello", told.get("text"), told)
        claude = harness.ClaudeCode(self.folder)
        claude.variables = self.VARIABLES
        finished = claude.run(gateway, harness.api_key(harness.GATEWAY_KEY))
        self.assertEqual((0, "Here I am"), (finished.code, finished.text), finished)

    def test_without_it_they_do_not(self):
        """Else the test above would show nothing."""
        gateway = self.gateway_before()
        sdk = harness.python_sdk(self.folder, "sdk-python-old")
        sdk.environment = dict(self.VARIABLES, NO_PROXY="")
        told = sdk.told(gateway, harness.api_key(harness.GATEWAY_KEY), "create")
        self.assertEqual("APIConnectionError", told["error"]["class"])


if __name__ == "__main__":
    unittest.main()
