"""Section 22: the doctor's judgements as tables, and whole outputs of the program."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests.running import running_gateway
from tests.support import ScriptedUpstream
from tests.support import error_body
from tests.support import free_port
from tests.support import json_response
from tests.support import make_tls_material
from tests.test_20_command_line import FolderTest
from tests.test_20_command_line import ON_LINUX
from tests.test_20_command_line import ON_WINDOWS

SECRET = "sk-ant-MARKED-0123456789-tail"


def config_of(**settings):
    """A configuration on the default port."""
    return gw.Config.from_dict(settings)


def levels(findings):
    """(level, text) pairs."""
    return [(finding.level, finding.text) for finding in findings]


class MendTest(unittest.TestCase):

    def test_every_kind_in_every_shell(self):
        table = {
            "bash": ["export A='x y'", "unset A", "python3 claude_gateway.py --port 1",
                     "sudo 'a b'", "do this"],
            "fish": ["set -gx A 'x y'", "set -e A", "python3 claude_gateway.py --port 1",
                     "sudo 'a b'", "do this"],
            "cmd": ['set "A=x y"', "set A=", "py claude_gateway.py --port 1", 'sudo "a b"',
                    "do this"],
            "powershell": ["$env:A = 'x y'", "Remove-Item Env:A",
                           "py claude_gateway.py --port 1", "sudo 'a b'", "do this"],
            "json": ['"A": "x y"', 'remove "A"', "python3 claude_gateway.py --port 1",
                     "sudo 'a b'", "do this"],
        }
        mends = [("set", "A", "x y"), ("unset", "A"), ("gateway", "--port", "1"),
                 ("run", "sudo", "a b"), ("say", "do this")]
        self.assertEqual(set(table), set(gw.SHELLS))
        for name, lines in table.items():
            with self.subTest(name):
                self.assertEqual([gw.mend_line(mend, gw.SHELLS[name]) for mend in mends], lines)

    def test_a_finding_is_a_line_and_one_for_each_mend(self):
        finding = gw.Finding("FAIL", "port", "taken\x1b[2J", (("unset", "A"), ("say", "wait")))
        self.assertEqual(gw.finding_lines(finding, gw.SHELLS["bash"], False), [
            "FAIL  port          taken\\x1b[2J", "        mend: unset A", "        mend: wait"])

    @unittest.skipIf(ON_WINDOWS or shutil.which("bash") is None, "no bash")
    def test_bash_takes_the_mends(self):
        value = "a'b $c"
        lines = "\n".join(gw.mend_line(mend, gw.SHELLS["bash"]) for mend in (
            ("set", "A", value), ("set", "B", "1"), ("unset", "B")))
        shown = subprocess.run(["bash", "-c", lines + '\nprintf "%s|%s" "$A" "$B"'],
                               stdout=subprocess.PIPE, encoding="utf-8", timeout=30)
        self.assertEqual(shown.stdout, value + "|")


class JudgeTest(unittest.TestCase):

    def test_python(self):
        for version, level in (((3, 7, 9), "FAIL"), ((3, 8, 0), "ok"), ((3, 14, 1), "ok")):
            with self.subTest(version):
                self.assertEqual(gw.judge_python(version, "linux", "OpenSSL 3")[0].level, level)

    def test_port(self):
        table = [
            ("free", ("127.0.0.1", 1, "", "", False), "ok", "127.0.0.1:1 is free"),
            ("any", ("127.0.0.1", 0, "", "", False), "ok", "any free one"),
            ("ours", ("127.0.0.1", 1, "in use", "p", True), "ok",
             "a gateway answers at 127.0.0.1:1"),
            ("taken", ("127.0.0.1", 1, "in use", "process 7, nginx", False), "FAIL",
             "127.0.0.1:1 is held by process 7, nginx"),
            ("no address", ("192.0.2.1", 8045, "no such address", "", False), "FAIL",
             "cannot listen on 192.0.2.1:8045: no such address"),
            ("not ours to take", ("127.0.0.1", 99, "Permission denied", "", False), "FAIL",
             "cannot listen on 127.0.0.1:99: Permission denied"),
        ]
        for name, facts, level, text in table:
            with self.subTest(name):
                self.assertEqual(levels(gw.judge_port(*facts)), [(level, text)])

    def test_proxies(self):
        takes = "HTTP_PROXY takes clients' requests to 127.0.0.1; NO_PROXY does not except it"
        proxy = {"HTTP_PROXY": "http://me:MARKED@p.example:3128"}
        table = [
            ("none", {}, [("ok", "none set")], None),
            ("captures", proxy, [("FAIL", takes)],
             ("set", "NO_PROXY", "localhost,127.0.0.1,::1")),
            ("captures beside others", dict(proxy, NO_PROXY="corp.example"), [("FAIL", takes)],
             ("set", "NO_PROXY", "corp.example,localhost,127.0.0.1,::1")),
            ("excepted", dict(proxy, NO_PROXY="127.0.0.1"),
             [("ok", "HTTP_PROXY http://p.example:3128; not for loopback")], None),
            ("all excepted", dict(proxy, no_proxy="*"),
             [("ok", "HTTP_PROXY http://p.example:3128; not for loopback")], None),
            ("https alone takes no plain http", {"https_proxy": "p.example:1"},
             [("ok", "https_proxy http://p.example:1; not for loopback")], None),
            ("malformed", {"HTTPS_PROXY": "http://p:MARKED"},
             [("FAIL", "HTTPS_PROXY: the proxy's host or port is malformed")],
             ("unset", "HTTPS_PROXY")),
            ("all", {"ALL_PROXY": "p.example:1"},
             [("FAIL", takes.replace("HTTP_", "ALL_"))], None),
        ]
        for name, environ, expected, mend in table:
            with self.subTest(name):
                found = gw.judge_proxies(environ, "127.0.0.1", 8045)
                self.assertEqual(levels(found), expected)
                if mend:
                    self.assertEqual(found[0].mends, (mend,))
                self.assertNotIn("MARKED", str(found))

    def test_tls(self):
        now = 1.8e9
        ends = {"notAfter": "Jan 15 08:00:00 2027 GMT",
                "issuer": ((("countryName", "US"),), (("organizationName", "A CA"),))}
        near = gw.ssl.cert_time_to_seconds(ends["notAfter"]) - 86400
        table = [
            ("trusted", ("h", "", {"issuer": ends["issuer"]}, now), "ok",
             "h is trusted, issued by A CA"),
            ("ends soon", ("h", "", ends, near), "warn",
             "h is trusted, issued by A CA, ends in 1 d"),
            ("expired", ("h", "the certificate of h is not trusted (certificate has expired)",
                         {}, now), "FAIL", "clock"),
            ("name", ("h", "the certificate of h is not trusted (Hostname mismatch, …)", {}, now),
             "FAIL", "base_url"),
            ("self-signed", ("h", "the certificate of h is not trusted (self-signed "
                                  "certificate in certificate chain)", {}, now), "FAIL",
             "ca_file"),
            ("proxy with a password", ("h", "Tunnel connection failed: 407 Proxy Authentication "
                                            "Required", {}, now), "FAIL", "USER:PASSWORD"),
            ("cut", ("h", "TLS with h failed (WRONG_VERSION_NUMBER)", {}, now), "FAIL",
             "firewall"),
        ]
        for name, facts, level, part in table:
            with self.subTest(name):
                found = gw.judge_tls(*facts)
                self.assertEqual(found.level, level)
                self.assertIn(part, found.text + str(found.mends))

    def test_credential(self):
        table = [(200, "ok"), (400, "ok"), (401, "FAIL"), (403, "FAIL"), (402, "FAIL"),
                 (404, "warn"), (429, "warn"), (307, "warn"), (529, "warn")]
        for status, level in table:
            for how in ("api_key", "auth_token", "key_command", "token"):
                with self.subTest(status=status, how=how):
                    found = gw.judge_credential("p/a", status, "", how)
                    self.assertEqual(found.level, level)
                    self.assertEqual(bool(found.mends), level != "ok")

    def test_clock(self):
        table = [(0, "ok"), (-59, "ok"), (61, "warn"), (-299, "warn"), (300, "FAIL"),
                 (-86400, "FAIL")]
        for offset, level in table:
            with self.subTest(offset):
                self.assertEqual(gw.judge_clock(offset, "linux").level, level)
        self.assertIn("1 d behind", gw.judge_clock(-86400, "linux").text)
        self.assertEqual(gw.judge_clock(900, "win32").mends, (("run", "w32tm", "/resync"),))

    def test_base_url(self):
        table = [
            ("", "warn", "is not set"),
            ("http://127.0.0.1:8045", "", ""),
            ("http://localhost:8045/", "", ""),
            ("http://127.0.0.1:8045/claude_api", "", ""),
            ("http://127.0.0.1:8045/v1", "warn", "ends in /v1"),
            ("http://127.0.0.1:8045/v1/messages", "FAIL", "ends in /v1/messages"),
            ("http://127.0.0.1:9", "FAIL", "has port 9, but the gateway's is 8045"),
            ("https://127.0.0.1:8045", "FAIL", "begins with https"),
            ("https://api.anthropic.com", "FAIL", "points at https://api.anthropic.com"),
            ("127.0.0.1:8045", "FAIL", "must begin with"),
            ("http://me:MARKED@other.example", "FAIL", "points at http://other.example"),
        ]
        for value, level, part in table:
            with self.subTest(value):
                found = gw.judge_base_url(value, config_of())
                self.assertEqual([finding.level for finding in found], [level] if level else [])
                self.assertIn(part, str(found))
                self.assertNotIn("MARKED", str(found))
                for finding in found:
                    self.assertEqual(finding.mends, (
                        ("set", "ANTHROPIC_BASE_URL", "http://127.0.0.1:8045"),))

    def test_client_keys(self):
        with_key = {"auth": {"api_keys": ["the-key"]}}
        own = {"providers": [{"name": "own", "base_url": "https://own.example",
                              "accounts": [{"name": "a", "api_key": "k"}]}]}
        both = {"ANTHROPIC_API_KEY": "MARKED", "ANTHROPIC_AUTH_TOKEN": "the-key"}
        table = [
            ("no key wanted", {}, {}, ""),
            ("none set", with_key, {}, "warn"),
            ("the right one", with_key, {"ANTHROPIC_AUTH_TOKEN": "the-key"}, ""),
            ("a wrong one", with_key, {"ANTHROPIC_API_KEY": "MARKED"}, "FAIL"),
            ("two wrong ones", with_key, {"ANTHROPIC_API_KEY": "MARKED",
                                          "ANTHROPIC_AUTH_TOKEN": "MARKED"}, "FAIL"),
            ("one for us, one to pass on", with_key, both, ""),
            ("two where one is enough", dict(with_key, **own), both, "warn"),
            ("two, and no auth", own, both, "warn"),
        ]
        for name, settings, environ, level in table:
            with self.subTest(name):
                found = gw.judge_client_keys(environ, config_of(**settings))
                self.assertEqual([finding.level for finding in found], [level] if level else [])
                self.assertNotIn("MARKED", str(found))

    def test_the_key_that_is_ours_is_kept(self):
        both = {"ANTHROPIC_API_KEY": "the-key", "ANTHROPIC_AUTH_TOKEN": "x"}
        config = config_of(auth={"api_keys": ["the-key"]}, providers=[{"name": "demo"}])
        found, = gw.judge_client_keys(both, config)
        self.assertEqual(found.mends, (("unset", "ANTHROPIC_AUTH_TOKEN"),))

    def test_switches_of_the_client(self):
        good = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8045"}
        table = [
            ({}, "ok"),
            ({"CLAUDE_CODE_USE_BEDROCK": "1"}, "FAIL"),
            ({"CLAUDE_CODE_USE_BEDROCK": "0"}, "ok"),
            ({"CLAUDE_CODE_USE_VERTEX": "true"}, "FAIL"),
            ({"DISABLE_PROMPT_CACHING": "1"}, "warn"),
            ({"ANTHROPIC_CUSTOM_HEADERS": "X-A: 1\nX-Api-Key: MARKED"}, "warn"),
            ({"ANTHROPIC_CUSTOM_HEADERS": "X-A: 1"}, "ok"),
            ({"API_TIMEOUT_MS": "60000"}, "warn"),
            ({"API_TIMEOUT_MS": "600000"}, "ok"),
            ({"API_TIMEOUT_MS": "never"}, "ok"),
        ]
        for environ, level in table:
            with self.subTest(environ):
                found, = gw.judge_client(dict(good, **environ), config_of())
                self.assertEqual(found.level, level)
                self.assertNotIn("MARKED", str(found))

    def test_what_an_upstream_says_is_short_and_without_the_key(self):
        body = b'{"error":{"type":"t","message":"no %s %s"}}' % (SECRET.encode(), b"x" * 500)
        told = gw.told_by(body, gw.Secret(SECRET))
        self.assertTrue(told.startswith("t: no *** xx"))
        self.assertLessEqual(len(told), 120)
        for odd in (b"", b"[]", b'{"error":"x"}', b"\xff", b"[" * 100000):
            self.assertEqual(gw.told_by(odd, gw.Secret("")), "")


class ProgramTest(FolderTest):
    """Runs ``doctor``; what differs between machines is replaced in its output."""

    GOOD = """\
ok    python        PYTHON
ok    config        1 provider, 1 account
ok    port          127.0.0.1:PORT is free
ok    proxy         none set
ok    certificates  the system's
ok    dns           127.0.0.1 is 127.0.0.1
ok    tcp           127.0.0.1:UPSTREAM takes connections
ok    account       own/work: the credential is taken
ok    clock         agrees with the upstream's
ok    client        ANTHROPIC_BASE_URL points here; nothing contradicts it
10 ok, 0 warn, 0 FAIL
"""

    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.upstream = None
        self.answer = {"obj": {"input_tokens": 1}}
        self.date = time.time()

    def respond(self, request):
        return json_response(headers=[("date", gw.http_date(self.date))], **self.answer)

    def start_upstream(self, **how):
        self.upstream = ScriptedUpstream(respond=self.respond, **how)
        self.upstream.__enter__()
        self.addCleanup(self.upstream.__exit__, None, None, None)

    def doctor(self, *arguments, url=None, provider=(), run=None, **environ):
        """(exit code, output) for one account, inside this process or as `run` runs it."""
        if self.upstream is None:
            self.start_upstream()
        where = url or self.upstream.url
        row = {"name": "own", "base_url": where, "accounts": [{"name": "work", "api_key": SECRET}]}
        path = self.write("own.json", {"port": self.port, "providers": [
            dict(row, **dict(provider))]})
        environ.setdefault("ANTHROPIC_BASE_URL", "http://127.0.0.1:%d" % self.port)
        result = (run or self.inside)("doctor", "--config", path, *arguments, **environ)
        self.assertEqual(result.stderr, "")
        self.assertNotIn("MARKED", result.stdout)
        text = re.sub(r"(python +).*", r"\1PYTHON", result.stdout, count=1)
        for number, name in ((self.port + 1, "PORT+1"), (self.port, "PORT"),
                             (int(where.rsplit(":", 1)[1]), "UPSTREAM")):
            text = text.replace(":%d" % number, ":" + name).replace(" %d" % number, " " + name)
        return result.returncode, text.replace(self.work, "WORK")

    def expect(self, found, code, changes, total):
        """The good output with some lines replaced (None: gone, with all after it in its group)."""
        text = self.GOOD.rsplit("\n", 2)[0] + "\n"
        for line, new in changes.items():
            whole = re.search(r"^ok    %s .*\n" % line, text, re.MULTILINE).group(0)
            text = text.replace(whole, new)
        self.assertEqual(found, (code, text + total + "\n"))


class DoctorTest(ProgramTest):
    """Whole outputs."""

    def test_all_well(self):
        self.assertEqual(self.doctor(run=self.command), (0, self.GOOD))
        self.assertEqual(self.upstream.requests[0].target, "/v1/messages/count_tokens")
        self.assertEqual(len(self.upstream.requests), 1)

    def test_port_taken(self):
        with ScriptedUpstream() as holder:
            self.port = holder.port
            code, text = self.doctor(run=self.command)
        text = re.sub("held by (process|another).*", "held by HOLDER", text)
        self.expect((code, text), 1, {"port": (
            "FAIL  port          127.0.0.1:PORT is held by HOLDER\n"
            "        mend: python3 claude_gateway.py --port PORT+1\n")}, "9 ok, 0 warn, 1 FAIL")

    def test_port_taken_by_one_that_says_nothing(self):
        with socket.socket() as holder, mock.patch.object(gw, "STATUS_SECONDS", 0.1):
            holder.bind(("127.0.0.1", self.port))
            holder.listen(1)
            doctor = gw.Doctor(config_of(port=self.port), {}, time.time, lambda text: None)
            self.addCleanup(doctor.close)
            finding, = doctor._look_at_port()
        self.assertEqual(finding.level, "FAIL")
        self.assertRegex(finding.text, r"127\.0\.0\.1:%d is held by (process|another)" % self.port)

    @unittest.skipUnless(ON_LINUX, "the holder is learnt from /proc")
    def test_a_holder_whose_name_is_no_text(self):
        code = ("import socket, sys; comm = open('/proc/self/comm', 'wb'); comm.write(b'\\xff\\x1b[2J'); comm.close();"
                "held = socket.socket(); held.bind(('127.0.0.1', 0)); held.listen(1);"
                "print(held.getsockname()[1], flush=True); sys.stdin.read()")
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as process:
            told = gw.port_holder(int(process.stdout.readline()))
            process.stdin.close()
        self.assertEqual(told, "process %d, \ufffd\x1b[2J" % process.pid)

    @unittest.skipUnless(ON_LINUX, "the holder is learnt from /proc")
    def test_port_held_by_a_gateway_is_good(self):
        with running_gateway({"name": "demo"}) as gateway:
            self.port = gateway.port
            self.assertEqual(self.doctor(), (0, self.GOOD.replace(
                "127.0.0.1:PORT is free", "a gateway answers at 127.0.0.1:PORT")))

    def test_proxy_that_captures_loopback(self):
        mends = {"bash": "export NO_PROXY=localhost,127.0.0.1,::1",
                 "cmd": "set NO_PROXY=localhost,127.0.0.1,::1",
                 "powershell": "$env:NO_PROXY = 'localhost,127.0.0.1,::1'"}
        for shell, mend in mends.items():
            with self.subTest(shell):
                self.expect(self.doctor("--shell", shell, HTTP_PROXY="http://u:MARKED@p.example:1"),
                            1, {"proxy": (
                                "FAIL  proxy         HTTP_PROXY takes clients' requests to "
                                "127.0.0.1; NO_PROXY does not except it\n"
                                "        mend: %s\n" % mend)}, "9 ok, 0 warn, 1 FAIL")

    def test_broken_certificates(self):
        path = self.write("ca.pem", "not a certificate")
        mends = {"bash": "unset SSL_CERT_FILE", "cmd": "set SSL_CERT_FILE=",
                 "powershell": "Remove-Item Env:SSL_CERT_FILE", "fish": "set -e SSL_CERT_FILE"}
        for shell, mend in mends.items():
            with self.subTest(shell):
                self.expect(self.doctor("--shell", shell, SSL_CERT_FILE=path), 1, {
                    "certificates": (
                        "FAIL  certificates  SSL_CERT_FILE names WORK/ca.pem: it holds no "
                        "certificate in PEM form\n        mend: %s\n" % mend)},
                    "9 ok, 0 warn, 1 FAIL")

    def test_wrong_base_url_of_the_client(self):
        mends = {"bash": "export ANTHROPIC_BASE_URL=http://127.0.0.1:PORT",
                 "cmd": "set ANTHROPIC_BASE_URL=http://127.0.0.1:PORT",
                 "powershell": "$env:ANTHROPIC_BASE_URL = 'http://127.0.0.1:PORT'"}
        for shell, mend in mends.items():
            with self.subTest(shell):
                self.expect(self.doctor("--shell", shell,
                                        ANTHROPIC_BASE_URL="https://api.anthropic.com"), 1, {
                    "client": (
                        "FAIL  client        ANTHROPIC_BASE_URL points at "
                        "https://api.anthropic.com, past this gateway\n"
                        "        mend: %s\n" % mend)}, "9 ok, 0 warn, 1 FAIL")

    def test_the_clients_settings_file_beats_its_shell(self):
        path = self.write(os.path.join(self.home, ".claude", "settings.json"), {"env": {
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9/", "ANTHROPIC_AUTH_TOKEN": "MARKED"}})
        self.expect(self.doctor("--shell", "cmd"), 1, {"client": (
            "FAIL  client        ANTHROPIC_BASE_URL has port 9, but the gateway's is PORT (%s "
            "says so)\n        mend: in its env block: \"ANTHROPIC_BASE_URL\": "
            "\"http://127.0.0.1:PORT\"\n" % path)}, "9 ok, 0 warn, 1 FAIL")

    def test_a_settings_file_that_says_nothing(self):
        for content in (b"", b"[]", b'{"env": 3}', b'{"env": {"ANTHROPIC_BASE_URL": 3}}', b"\xff"):
            with self.subTest(content):
                path = self.write("settings.json", content)
                self.assertEqual(gw.client_settings(path), {})
        self.assertEqual(gw.client_settings_path({}), "")
        self.assertEqual(gw.client_settings(""), {})

    def test_expired_key(self):
        self.answer = {"status": 401, "obj": error_body("authentication_error", "invalid " + SECRET)}
        self.expect(self.doctor(), 1, {"account": (
            "FAIL  account       own/work: the credential is refused (401 authentication_error: "
            "invalid ***): expired or wrong\n"
            "        mend: make a new key with the provider and put it where own/work's api_key "
            "comes from\n")}, "9 ok, 0 warn, 1 FAIL")

    @unittest.skipUnless(ON_LINUX, "the mend is the system's")
    def test_clock_off(self):
        self.date += 86400 + 30
        self.expect(self.doctor(), 1, {"clock": (
            "FAIL  clock         1 d behind: certificates and tokens will be refused\n"
            "        mend: sudo timedatectl set-ntp true\n")}, "9 ok, 0 warn, 1 FAIL")

    def test_unreachable_upstream(self):
        self.start_upstream()
        url = "http://127.0.0.1:%d" % free_port()
        self.expect(self.doctor(url=url), 1, {
            "tcp": ("FAIL  tcp           127.0.0.1:UPSTREAM cannot be reached: connection refused\n"
                    "        mend: look at base_url, firewall and proxy settings, and whether the "
                    "upstream runs\n"),
            "account": "", "clock": ""}, "7 ok, 0 warn, 1 FAIL")

    def test_an_unknown_name(self):
        code, text = self.doctor(url="http://no-such-host.invalid:1")
        self.assertEqual(code, 1)
        self.assertIn("FAIL  dns           no-such-host.invalid has no address", text)

    def test_offline_asks_nobody(self):
        self.expect(self.doctor("--offline"), 0,
                    {"dns": "", "tcp": "", "account": "", "clock": ""}, "6 ok, 0 warn, 0 FAIL")
        self.assertEqual(self.upstream.requests, [])

    def test_an_upstream_that_cannot_count_is_asked_for_its_models(self):
        self.answer = {"status": 404, "obj": error_body("not_found_error", "no")}
        self.expect(self.doctor(), 0, {"account": (
            "warn  account       own/work: no call without cost to try it with (404 "
            "not_found_error: no)\n        mend: check base_url; else send a message\n")},
            "9 ok, 1 warn, 0 FAIL")
        self.assertEqual([request.target.partition("?")[0] for request in self.upstream.requests],
                         ["/v1/messages/count_tokens", "/v1/models"])

    def test_a_provider_with_headers_of_its_own(self):
        headers = {"X-Extra": "e", "user-agent": "mine"}
        self.assertEqual(self.doctor(provider={"headers": headers})[0], 0)
        sent = {name.lower(): value for name, value in self.upstream.requests[0].headers}
        self.assertEqual((sent["x-extra"], sent["user-agent"], sent["x-api-key"]),
                         ("e", "mine", SECRET))

    def test_a_transparent_provider(self):
        self.answer = {"status": 401, "obj": error_body("authentication_error", "no")}
        self.assertEqual(self.doctor(provider={"accounts": []}), (0, self.GOOD.replace(
            "1 account\n", "0 accounts\n").replace(
            "own/work: the credential is taken",
            "own: none, each client's own key is passed on; it answers (401)")))

    def test_a_command_that_prints_no_key(self):
        account = {"name": "work", "key_command": [sys.executable, "-c", "raise SystemExit(3)"]}
        code, text = self.doctor(provider={"accounts": [account]})
        self.assertEqual(code, 1)
        self.assertIn("FAIL  account       own/work: ", text)
        self.assertIn("mend: mend where own/work's credential comes from", text)

    def test_a_configuration_that_cannot_be_read(self):
        path = self.write("bad.json", {"prot": 1})
        result = self.inside("doctor", "--config", path, "--shell", "cmd")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout.split("\n", 1)[1], (
            "FAIL  config        prot: unknown key; did you mean port?\n"
            "        mend: py claude_gateway.py check\n1 ok, 0 warn, 1 FAIL\n"))

    def test_demo_needs_no_network(self):
        url = "http://127.0.0.1:%d" % self.port
        result = self.command("doctor", "--demo", "--port", str(self.port), ANTHROPIC_BASE_URL=url)
        self.assertEqual(result.returncode, 0)
        self.assertNotIn("dns", result.stdout)


class CertificateTest(ProgramTest):

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.material = make_tls_material(cls.folder.name)


class HandshakeTest(CertificateTest):

    def setUp(self):
        super().setUp()
        self.start_upstream(tls=self.material)

    def tls_line(self, **how):
        code, text = self.doctor(**how)
        return code, [line for line in text.split("\n") if "  tls  " in line]

    def test_trusted_through_ca_file_of_the_provider(self):
        code, lines = self.tls_line(provider={"ca_file": self.material.ca_file})
        self.assertEqual(lines, ["warn  tls           127.0.0.1 is trusted, issued by Throw-away "
                                 "test CA, ends in 1 d 23 h"])
        self.assertEqual(code, 0)

    def test_not_trusted(self):
        code, lines = self.tls_line(run=self.command)
        self.assertEqual(code, 1)
        self.assertIn("the certificate of 127.0.0.1 is not trusted", lines[0])
        self.assertEqual(self.upstream.requests, [], "no credential is sent")


class ProxyTest(CertificateTest):
    """The way to the upstream through a proxy; inside this process."""

    def tunnel(self, connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        connection.shake_hands(self.material.server_context())

    def look(self, *scripts, **how):
        """Findings of one look through a proxy of these scripts, and what it was asked."""
        with ScriptedUpstream(lambda connection: None, *scripts, **how) as proxy:
            config = gw.Config.from_dict({"port": self.port, "providers": [{
                "name": "own", "base_url": "https://localhost:4711",
                "proxy": "http://user:MARKED@127.0.0.1:%d" % proxy.port,
                "ca_file": self.material.ca_file,
                "accounts": [{"name": "work", "api_key": SECRET}]}]})
            doctor = gw.Doctor(config, {}, time.time, lambda text: None)
            try:
                found = {finding.what: finding for finding in doctor.findings(False)}
            finally:
                doctor.close()
            self.assertNotIn("MARKED", str(found))
            return found, proxy.requests

    def test_through_a_tunnel(self):
        def answer(connection):
            self.tunnel(connection)
            connection.read_request()
            connection.send(json_response({"input_tokens": 1}))
            connection.wait_closed("the doctor's end")

        found, requests = self.look(self.tunnel, answer)
        self.assertIn("the proxy for localhost", found["tcp"].text)
        self.assertEqual([found[what].level for what in ("dns", "tcp", "tls", "account")],
                         ["ok", "ok", "warn", "ok"])
        self.assertEqual([request.method for request in requests], ["CONNECT", "CONNECT", "POST"])
        self.assertTrue(all(request.header("proxy-authorization") for request in requests[:2]))
        self.assertIsNone(requests[2].header("proxy-authorization"))

    def test_a_proxy_that_refuses(self):
        found, _ = self.look(respond=lambda request: json_response({}, 407))
        self.assertEqual(found["tls"].level, "FAIL")
        self.assertIn("407", found["tls"].text)
        self.assertNotIn("account", found)


if __name__ == "__main__":
    unittest.main()
