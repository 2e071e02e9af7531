"""Corporate networks: proxies of the environment, NO_PROXY, and a proxy that signs TLS anew."""

import os
import tempfile
import unittest
from unittest import mock

import claude_gateway as gw
from tests import running
from tests import support

UPSTREAM_NAME = "upstream.example"
UPSTREAM = "https://%s:4711" % UPSTREAM_NAME


def base(url):
    return gw.Config.from_dict({"providers": [{"name": "x", "base_url": url}]}).providers[0].base_url


def told_into(told):
    return lambda level, text: told.append((level, text))


class ChoiceTest(unittest.TestCase):
    """Which proxy a provider's calls take."""

    def chosen(self, environ, url):
        """The proxy as host:port, or None."""
        told = []
        proxy = gw.proxy_chooser(environ, told_into(told))(base(url))
        self.assertEqual(told, [])
        return proxy and "%s:%d" % (proxy.host, proxy.port)

    def test_variables(self):
        table = [
            ("https", {"HTTPS_PROXY": "http://a:1"}, "https://x.example", "a:1"),
            ("https does not take http", {"HTTPS_PROXY": "http://a:1"}, "http://x.example", None),
            ("http", {"HTTP_PROXY": "http://a:1"}, "http://x.example", "a:1"),
            ("http does not take https", {"HTTP_PROXY": "http://a:1"}, "https://x.example", None),
            ("all", {"ALL_PROXY": "http://a:1"}, "https://x.example", "a:1"),
            ("its own before all", {"ALL_PROXY": "a:1", "HTTPS_PROXY": "b:2"},
             "https://x.example", "b:2"),
            ("lower case", {"https_proxy": "http://a:1"}, "https://x.example", "a:1"),
            ("lower case first", {"HTTPS_PROXY": "a:1", "https_proxy": "b:2"},
             "https://x.example", "b:2"),
            ("empty", {"HTTPS_PROXY": ""}, "https://x.example", None),
            ("never for loopback", {"HTTPS_PROXY": "a:1"}, "https://127.0.0.1:9", None),
            ("nor by its name", {"HTTPS_PROXY": "a:1"}, "https://localhost:9", None),
            ("nor by its IPv6", {"HTTP_PROXY": "a:1"}, "http://[::1]:9", None),
        ]
        for name, environ, url, expected in table:
            with self.subTest(name):
                self.assertEqual(self.chosen(environ, url), expected)

    def test_no_proxy(self):
        table = [
            ("the host", "x.corp.example", True),
            ("in capitals", "X.Corp.Example", True),
            ("a suffix", "corp.example", True),
            ("a suffix with its dot", ".corp.example", True),
            ("one of several, with blanks", "localhost, corp.example ,other.example", True),
            ("everything", "*", True),
            ("with the port", "x.corp.example:8443", True),
            ("with another port", "x.corp.example:443", False),
            ("half a label", "orp.example", False),
            ("a longer name", "y.x.corp.example", False),
            ("a star within a name is none", "*.corp.example", False),
        ]
        for name, value, is_direct in table:
            for variable in ("NO_PROXY", "no_proxy"):
                with self.subTest(name, variable=variable):
                    found = self.chosen({"HTTPS_PROXY": "a:1", variable: value},
                                        "https://x.corp.example:8443")
                    self.assertEqual(found, None if is_direct else "a:1")

    def test_no_proxy_with_addresses(self):
        """An address counts as it is written; a range is none, as urllib has it."""
        table = [("http://10.1.2.3:8000", "10.1.2.3", True),
                 ("http://10.1.2.3:8000", "10.0.0.0/8", False),
                 ("http://[2001:db8::1]:8000", "2001:db8::1", True)]
        for url, value, is_direct in table:
            with self.subTest(url, value=value):
                found = self.chosen({"HTTP_PROXY": "a:1", "NO_PROXY": value}, url)
                self.assertEqual(found, None if is_direct else "a:1")

    def test_what_cannot_be_used_is_told_without_its_password(self):
        for text in ("https://me:MARKED@p.example:1", "socks5://me:MARKED@p.example:1",
                     "http://me:MARKED@p.example:x"):
            with self.subTest(text):
                told = []
                choose = gw.proxy_chooser({"HTTPS_PROXY": text}, told_into(told))
                self.assertIsNone(choose(base("https://x.example")))
                self.assertEqual([level for level, _ in told], ["error"])
                self.assertTrue(told[0][1].startswith("https proxy of the environment not used: "))
                self.assertNotIn("MARKED", told[0][1])

    @unittest.skipIf(os.name == "nt", "there the registry has a say as well")
    def test_the_process_own_environment(self):
        own = {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "corp.example"}
        with mock.patch.dict(os.environ, own, clear=True):
            choose = gw.proxy_chooser(None, self.fail)
            self.assertEqual(str(choose(base("https://x.example"))), "http://a:1")
            self.assertIsNone(choose(base("https://x.corp.example")))
            self.assertIsNone(choose(base("https://localhost")))


class NamedFilesTest(unittest.TestCase):

    def test_a_file_that_is_gone_is_told_and_left_out(self):
        told = []
        environ = {"NODE_EXTRA_CA_CERTS": __file__, "SSL_CERT_FILE": "/no/such.pem",
                   "REQUESTS_CA_BUNDLE": ""}
        self.assertEqual(gw.named_ca_files(environ, told_into(told)), [__file__])
        self.assertEqual(told, [("warning", "SSL_CERT_FILE names /no/such.pem, which is no file")])


class SigningProxyTest(unittest.TestCase):
    """The gateway behind a proxy that answers for every host with a CA of its own."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.material = support.make_tls_material(cls.folder.name, "DNS:" + UPSTREAM_NAME)

    def sign_anew(self, connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        connection.handshaken = False  # a refusal of the certificate is no fault of the test
        connection.shake_hands(self.material.server_context())
        connection.serve()

    def ask(self, environ, **provider):
        """(answer, requests at the proxy, log) of one message through a gateway."""
        log = []
        with support.ScriptedUpstream(*[self.sign_anew] * 3) as proxy:
            address = "http://me:pa%%24s@127.0.0.1:%d" % proxy.port
            settings = running.provider(proxy, **dict(provider, base_url=UPSTREAM))
            with running.running_gateway(settings, write=log.append, retry={"max_attempts": 1},
                                         environ=dict(environ, HTTPS_PROXY=address)) as gateway:
                answer = support.exchange(gateway.port, "POST", "/v1/messages",
                                          [running.JSON_TYPE], running.MESSAGE)
        return answer, proxy.requests, "".join(log)

    def test_trusted_however_its_ca_is_named(self):
        ca_file = self.material.ca_file
        ways = [({name: ca_file}, {}) for name in gw.CA_VARIABLES] + [({}, {"ca_file": ca_file})]
        for environ, provider in ways:
            with self.subTest(environ=environ, provider=provider):
                answer, (connect, request), log = self.ask(environ, **provider)
                self.assertEqual((answer.status, answer.json()["content"][0]["text"]), (200, "Hello"))
                self.assertEqual((connect.method, connect.target), ("CONNECT", UPSTREAM[8:]))
                self.assertEqual(connect.header("proxy-authorization"), "Basic bWU6cGEkcw==")
                self.assertEqual((request.target, request.header("proxy-authorization")),
                                 ("/v1/messages", None))
                self.assertNotIn("pa$s", log)

    def test_without_its_ca_the_answer_says_what_is_missing(self):
        answer, requests, _ = self.ask({})
        self.assertEqual([request.method for request in requests], ["CONNECT"])
        self.assertEqual((answer.status, answer.json()["error"]["type"]), (502, "api_error"))
        message = answer.json()["error"]["message"]
        self.assertIn("the certificate of %s is not trusted" % UPSTREAM_NAME, message)
        self.assertIn("name the file of its CA in SSL_CERT_FILE or as ca_file", message)


if __name__ == "__main__":
    unittest.main()
