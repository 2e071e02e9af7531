"""Section 14: one renewal at a time, stored before it is used, told to nobody."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest
import urllib.parse
from unittest import mock

import claude_gateway as gw
from tests import support
from tests.support import FakeClock
from tests.support import Gate
from tests.support import ScriptedUpstream
from tests.support import eventually

ON_WINDOWS = os.name == "nt"
HERE = gw.Watch()


class Gone(gw.Watch):
    """A client that has left."""

    def gone(self):
        return True


def pause(seconds, watch):
    """What the transport's pause does, without the wait for a descriptor."""
    if watch.gone():
        raise gw.ClientGone()
    threading.Event().wait(0.002)


def no_call(call):
    raise AssertionError("nobody is to be asked here")


def together(count, act):
    """What `count` threads got from act(), started at one moment; errors are results."""
    barrier = threading.Barrier(count)
    results = []

    def run():
        barrier.wait(support.WAIT_SECONDS)
        try:
            results.append(act())
        except gw.UpstreamError as error:
            results.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(support.JOIN_SECONDS)
    if len(results) != count:
        raise AssertionError("%d of %d threads ended" % (len(results), count))
    return results


class RenewalTest(unittest.TestCase):
    """A folder, a clock, and Renewals that are closed in the end."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="gateway-test-")
        self.addCleanup(temporary.cleanup)
        self.folder = os.path.realpath(temporary.name)
        self.clock = FakeClock()
        self.lines = []

    def renewal(self, send=no_call, level="debug"):
        log = gw.Log(self.lines.append, self.clock.time, gw.LogSettings(level, "text"))
        made = gw.Renewal(send, pause, self.clock.monotonic, self.clock.time, log)
        self.addCleanup(made.close)
        return made

    def provider(self, **account):
        read = gw.Config.from_dict({"providers": [{
            "name": "anthropic", "base_url": "http://127.0.0.1:9",
            "accounts": [dict({"name": "mine"}, **account)]}]})
        return read.providers[0]

    def begun(self, renewal, provider):
        """The run that a client has begun and left alone."""
        with self.assertRaises(gw.ClientGone):
            renewal.secret(provider, provider.accounts[0], Gone())
        return next(iter(renewal._standings.values())).run

    def path(self, name):
        return os.path.join(self.folder, name)

    def text(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()


class StaticTest(RenewalTest):

    def test_is_given_at_once_and_has_no_other(self):
        provider = self.provider(api_key="k")
        renewal = self.renewal()
        account, = provider.accounts
        self.assertEqual(renewal.secret(provider, account, Gone()), gw.Secret("k"))
        self.assertIsNone(renewal.renewed(provider, account, gw.Secret("k"), Gone()))


# Prints key-1, key-2 … and appends a byte to a file for every run.
COUNTING = ("import os, sys\n"
            "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
            "os.write(fd, b'x')\n"
            "print('  key-%d  ' % os.fstat(fd).st_size)\n")
# Asks the test for its key, so that the test says when and whether it ends.
ASKING = ("import socket, sys\n"
          "peer = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
          "print(peer.makefile().readline(), flush=True)\n")
# The same in a child that shares its output; the parent waits for it.
PARENT = ("import subprocess, sys\n"
          "subprocess.call([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n")


# Prints how many cores it may use, as soon as they are as many as it is told.
COUNTING_CORES = ("import os, sys, threading\n"
                  "for _ in range(5000):\n"
                  "    if len(os.sched_getaffinity(0)) >= int(sys.argv[1]):\n"
                  "        break\n"
                  "    threading.Event().wait(0.001)\n"
                  "print(len(os.sched_getaffinity(0)))\n")


class CommandTest(RenewalTest):

    def command(self, program, *arguments, **settings):
        return self.provider(
            key_command=[*support.quick_python(), "-c", program, *map(str, arguments)],
            **settings)

    def counting(self, **settings):
        return self.command(COUNTING, self.path("runs"), **settings)

    def runs(self):
        return len(self.text("runs"))

    def test_what_it_prints_is_the_key(self):
        provider = self.counting()
        secret = self.renewal().secret(provider, provider.accounts[0], HERE)
        self.assertEqual(secret.reveal(), "key-1")

    def test_fifty_threads_run_it_once(self):
        provider = self.counting()
        renewal = self.renewal()
        found = together(50, lambda: renewal.secret(provider, provider.accounts[0], HERE))
        self.assertEqual(set(found), {gw.Secret("key-1")})
        self.assertEqual(self.runs(), 1)

    def test_is_run_again_after_its_time(self):
        provider = self.counting(key_ttl_seconds=60)
        renewal = self.renewal()
        for seconds, key in ((0, "key-1"), (59, "key-1"), (1, "key-2"), (61, "key-3")):
            self.clock.advance(seconds)
            with self.subTest(key):
                secret = renewal.secret(provider, provider.accounts[0], HERE)
                self.assertEqual(secret.reveal(), key)

    def test_a_refused_key_is_renewed_once_for_all(self):
        provider = self.counting()
        renewal = self.renewal()
        account, = provider.accounts
        refused = renewal.secret(provider, account, HERE)
        found = together(50, lambda: renewal.renewed(provider, account, refused, HERE))
        self.assertEqual(set(found), {gw.Secret("key-2")})
        self.assertEqual(renewal.secret(provider, account, HERE).reveal(), "key-2")
        self.assertEqual(self.runs(), 2)

    def test_the_same_key_again_is_no_other(self):
        program = COUNTING.replace("'  key-%d  ' % os.fstat(fd).st_size", "'same'")
        provider = self.command(program, self.path("runs"))
        renewal = self.renewal()
        account, = provider.accounts
        refused = renewal.secret(provider, account, HERE)
        found = together(20, lambda: renewal.renewed(provider, account, refused, HERE))
        self.assertEqual(set(found), {None})
        self.assertIsNone(renewal.renewed(provider, account, refused, HERE))
        self.assertEqual(self.runs(), 2)
        self.assertEqual(renewal.secret(provider, account, HERE).reveal(), "same")
        self.clock.advance(gw.RENEWAL_SAME_SECONDS)
        self.assertIsNone(renewal.renewed(provider, account, refused, HERE))
        self.assertEqual(self.runs(), 3)

    def test_what_is_no_key(self):
        table = [
            ("nothing", "", "printed nothing"),
            ("two lines", "print('MARKED\\nMARKED')", "one line of visible ASCII"),
            ("a space", "print('MARKED MARKED')", "one line of visible ASCII"),
            ("not ASCII", "import os; os.write(1, b'MARKED\\xe9')", "one line of visible ASCII"),
            ("too much", "print('MARKED' * 20000)", "printed more than 65536 bytes"),
            ("a failure", "import sys; print('MARKED'); sys.exit(3)", "exit code 3"),
        ]
        for name, program, words in table:
            with self.subTest(name):
                provider = self.command(program)
                with self.assertRaisesRegex(gw.CredentialError, words) as raised:
                    self.renewal().secret(provider, provider.accounts[0], HERE)
                self.assertIn("account mine: ", raised.exception.message)
                self.assertIsNone(raised.exception.retry_after)
        self.assertNotIn("MARKED", "\n".join(self.lines))

    def test_a_command_that_is_not_there(self):
        provider = self.provider(key_command=[self.path("missing"), "MARKED"])
        with self.assertRaisesRegex(gw.CredentialError, "could not be started") as raised:
            self.renewal().secret(provider, provider.accounts[0], HERE)
        self.assertNotIn("MARKED", repr(raised.exception))

    @unittest.skipUnless(hasattr(os, "sched_setaffinity"), "threads keep to no core here")
    def test_it_may_use_all_cores_though_our_threads_keep_to_one(self):
        allowed = os.sched_getaffinity(0)
        provider = self.command(COUNTING_CORES, len(allowed))
        told = []

        def run():
            os.sched_setaffinity(0, {min(allowed)})
            told.append(self.renewal().secret(provider, provider.accounts[0], HERE).reveal())
            told.append(os.sched_getaffinity(0))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(support.WAIT_SECONDS)
        self.assertEqual(told, [str(len(allowed)), {min(allowed)}])

    def test_no_shell_sees_it(self):
        provider = self.provider(key_command=[
            sys.executable, "-c", "import sys; print(sys.argv[1])", "$HOME;`id`"])
        secret = self.renewal().secret(provider, provider.accounts[0], HERE)
        self.assertEqual(secret.reveal(), "$HOME;`id`")

    @unittest.skipIf(ON_WINDOWS, "groups of processes are a matter of POSIX")
    def test_its_time_limit_ends_what_it_started_as_well(self):
        with ScriptedUpstream(lambda connection: connection.wait_closed("the command's child")) \
                as server:
            provider = self.command(PARENT, ASKING, server.port)
            renewal = self.renewal()
            run = self.begun(renewal, provider)
            server.wait_connections(1)
            eventually(lambda: self.clock.advance(gw.COMMAND_SECONDS) or run.done.is_set(),
                       "the end of the command")
        self.assertIn("its key_command took longer than 30 s", run.failure().message)

    def test_stopping_ends_it(self):
        with ScriptedUpstream(lambda connection: connection.wait_closed("the command")) as server:
            provider = self.command(ASKING, server.port)
            renewal = self.renewal()
            account, = provider.accounts
            closer = threading.Thread(target=lambda: (server.wait_connections(1), renewal.close()))
            closer.start()
            with self.assertRaises(gw.ShuttingDown):
                renewal.secret(provider, account, HERE)
            closer.join(support.WAIT_SECONDS)
            with self.assertRaises(gw.ShuttingDown):
                renewal.secret(provider, account, HERE)

    def test_a_client_that_leaves_does_not_end_it_for_others(self):
        gate = Gate()

        def script(connection):
            gate.wait("both to have asked")
            connection.send(b"key\n")

        with ScriptedUpstream(script) as server:
            provider = self.command(ASKING, server.port)
            renewal = self.renewal()
            account, = provider.accounts
            with self.assertRaises(gw.ClientGone):
                renewal.secret(provider, account, Gone())
            gate.open()
            self.assertEqual(renewal.secret(provider, account, HERE).reveal(), "key")
            self.assertEqual(server.connections_count, 1)

    def test_what_a_reload_takes_away_is_forgotten(self):
        provider = self.counting()
        renewal = self.renewal()
        account, = provider.accounts
        renewal.secret(provider, account, HERE)
        renewal.retain([("anthropic", account._replace(priority=7))])
        self.assertEqual(renewal.secret(provider, account, HERE).reveal(), "key-1")
        for kept in ([], [("other", account)],
                     [("anthropic", account._replace(source=gw.KeyCommand(("x",), 1)))]):
            renewal.retain(kept)
            renewal.secret(provider, account, HERE)
        self.assertEqual(self.runs(), 4)

    @unittest.skipIf(ON_WINDOWS or support.count_open_descriptors() is None, "descriptors unknown")
    def test_leaves_no_descriptor_open(self):
        provider = self.counting(key_ttl_seconds=1)
        renewal = self.renewal()
        renewal.secret(provider, provider.accounts[0], HERE)
        before = support.count_open_descriptors()
        for _ in range(5):
            self.clock.advance(1)
            renewal.secret(provider, provider.accounts[0], HERE)
        self.assertLessEqual(support.count_open_descriptors(), before)


class FakeResponse:
    """As much of an UpstreamResponse as is read."""

    at_end = False

    def __init__(self, status, body, headers=()):
        self.status = status
        self.headers = gw.Headers(headers)
        self.pieces = [body if isinstance(body, bytes) else json.dumps(body).encode()]
        self.closed = False

    def read(self, seconds=None):
        return self.pieces.pop() if self.pieces else b""

    def close(self):
        self.closed = True


class OnceIssuer:
    """Accepts each refresh token a single time; then it knows only its successor.

    ``forms`` are the requests; ``answers`` (functions) replace the next answers.
    """

    def __init__(self, first="refresh-0"):
        self.lock = threading.Lock()
        self.valid = first
        self.given = 0
        self.forms = []
        self.answers = []
        self.lifetime = 3600

    def send(self, call):
        status, body, headers = self.answer(call.body)
        return FakeResponse(status, body, headers)

    def respond(self, request):
        status, body, headers = self.answer(request.body)
        return support.json_response(body, status, headers)

    def answer(self, body):
        with self.lock:
            form = dict(urllib.parse.parse_qsl(body.decode("ascii"), strict_parsing=True))
            self.forms.append(form)
            if self.answers:
                return self.answers.pop(0)
            if form["refresh_token"] != self.valid:
                return 400, {"error": "invalid_grant"}, ()
            self.given += 1
            self.valid = "refresh-%d" % self.given
            return 200, {"access_token": "access-%d" % self.given, "token_type": "Bearer",
                         "expires_in": self.lifetime, "refresh_token": self.valid}, ()

    @property
    def sent(self):
        return [form["refresh_token"] for form in self.forms]


class GrantTest(RenewalTest):

    def setUp(self):
        super().setUp()
        self.issuer = OnceIssuer()

    def granted(self, **changes):
        return self.provider(token=dict({
            "token_url": "http://127.0.0.1:9/token", "client_id": "abc",
            "refresh_token": "refresh-0", "store": self.path("tokens.json")}, **changes))

    def secret(self, renewal, provider, watch=HERE):
        return renewal.secret(provider, provider.accounts[0], watch).reveal()

    def stored(self):
        row, = json.loads(self.text("tokens.json"))["grants"].values()
        return row

    def assert_refused(self, renewal, provider, words="refused"):
        with self.assertRaisesRegex(gw.CredentialRefused, words):
            self.secret(renewal, provider)


class AskingTest(GrantTest):

    def test_the_request_is_that_of_rfc_6749(self):
        with ScriptedUpstream(respond=self.issuer.respond) as server:
            provider = self.granted(token_url=server.url + "/oauth/token?tenant=a",
                                    client_secret="c&s", scope="a b")
            transport = gw.Transport(self.clock.monotonic)
            self.addCleanup(transport.close)
            self.assertEqual(self.secret(self.renewal(transport.send), provider), "access-1")
            request, = server.requests
        self.assertEqual((request.method, request.target), ("POST", "/oauth/token?tenant=a"))
        self.assertEqual(request.header("content-type"), "application/x-www-form-urlencoded")
        self.assertEqual(request.header("host"), "127.0.0.1:%d" % server.port)
        self.assertIsNone(request.header("authorization"))
        self.assertEqual(self.issuer.forms, [{
            "grant_type": "refresh_token", "refresh_token": "refresh-0", "client_id": "abc",
            "client_secret": "c&s", "scope": "a b"}])

    def test_it_goes_by_the_providers_proxy_and_never_on_a_used_connection(self):
        proxy = gw.ProxyAddress("p", 1, None)
        for url, used in (("https://issuer.example/t", proxy), ("http://127.0.0.1:9/t", None)):
            provider = self.granted(token_url=url)._replace(proxy=proxy, ca_file="x")
            call = gw.grant_call(provider, provider.accounts[0].source, "a=b")
            self.assertEqual((call.head.provider.proxy, call.head.provider.ca_file), (used, "x"))
            self.assertFalse(call.may_resend)

    def test_fifty_threads_ask_once(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        found = together(50, lambda: self.secret(renewal, provider))
        self.assertEqual((set(found), self.issuer.sent), ({"access-1"}, ["refresh-0"]))

    def test_is_renewed_before_it_expires_while_the_old_one_serves(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        self.clock.advance(3600 - gw.RENEWAL_MARGIN_SECONDS - 1)
        self.assertEqual(self.secret(renewal, provider, Gone()), "access-1")
        self.assertEqual(self.issuer.sent, ["refresh-0"])
        self.clock.advance(1)
        self.assertEqual(self.secret(renewal, provider, Gone()), "access-1")
        eventually(lambda: self.secret(renewal, provider, Gone()) == "access-2", "the renewal")
        self.assertEqual(self.issuer.sent, ["refresh-0", "refresh-1"])

    def test_an_expired_one_is_waited_for(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        self.clock.advance(3600)
        self.assertEqual(self.secret(renewal, provider), "access-2")

    def test_a_refused_one_is_renewed_once_for_all(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        account, = provider.accounts
        refused = renewal.secret(provider, account, HERE)
        found = together(50, lambda: renewal.renewed(provider, account, refused, HERE))
        self.assertEqual(set(found), {gw.Secret("access-2")})
        self.assertEqual(self.issuer.sent, ["refresh-0", "refresh-1"])

    def test_while_renewing_fails_the_refused_one_is_not_given(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        account, = provider.accounts
        refused = renewal.secret(provider, account, HERE)
        self.issuer.answers = [(500, {}, ()), (500, {}, ())]
        for ask in (lambda: renewal.renewed(provider, account, refused, HERE),
                    lambda: renewal.secret(provider, account, HERE)):
            with self.assertRaisesRegex(gw.CredentialError, "status 500"):
                ask()
        self.assertEqual(self.secret(renewal, provider), "access-2")

    def test_a_failure_in_the_margin_costs_nothing_and_is_not_repeated_at_once(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        self.clock.advance(3400)
        self.issuer.answers = [(503, {}, ())]
        self.secret(renewal, provider)
        eventually(lambda: "status 503" in "".join(self.lines), "the failure")
        eventually(lambda: not renewal._threads, "the end of the renewal")
        for seconds in (0, gw.RENEWAL_RETRY_SECONDS - 1):
            self.clock.advance(seconds)
            self.assertEqual(self.secret(renewal, provider), "access-1")
            eventually(lambda: not renewal._threads, "the end of what must not have begun")
        self.assertEqual(len(self.issuer.forms), 2)
        self.clock.advance(1)
        eventually(lambda: self.secret(renewal, provider) == "access-2", "the next renewal")

    def test_an_issuers_429_is_obeyed(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.issuer.answers = [(429, {}, [("Retry-After", "60")])]
        for seconds, told in ((0, 60), (20, 40), (39, 1)):
            self.clock.advance(seconds)
            with self.assertRaises(gw.CredentialError) as raised:
                self.secret(renewal, provider)
            self.assertAlmostEqual(raised.exception.retry_after, told)
        self.assertEqual(len(self.issuer.forms), 1)
        self.clock.advance(1)
        self.assertEqual(self.secret(renewal, provider), "access-1")

    def test_an_absurd_wait_is_cut(self):
        self.issuer.answers = [(429, {}, [("Retry-After", "9999999")])]
        with self.assertRaises(gw.CredentialError) as raised:
            self.secret(self.renewal(self.issuer.send), self.granted())
        self.assertEqual(raised.exception.retry_after, gw.MAX_REST_SECONDS)

    def test_what_is_no_grant(self):
        good = {"access_token": "MARKED"}
        table = [
            ("a redirect", 302, good, "status 302"),
            ("forbidden", 403, {"error": "MARKED"}, "status 403"),
            ("not JSON", 200, b"<html>MARKED", "no bearer token"),
            ("nothing", 200, {}, "no bearer token"),
            ("another type", 200, dict(good, token_type="mac"), "no bearer token"),
            ("a type of no type", 200, dict(good, token_type=7), "no bearer token"),
            ("a line end", 200, {"access_token": "MARKED\r\nx: y"}, "no bearer token"),
            ("not a string", 200, {"access_token": ["MARKED"]}, "no bearer token"),
            ("too long", 200, {"access_token": "MARKED" * 5000}, "no bearer token"),
            ("a busy issuer", 400, {"error": "temporarily_unavailable"}, "status 400"),
            ("too much", 200, b"MARKED" * 200000, "could not be read"),
        ]
        for name, status, body, words in table:
            with self.subTest(name):
                self.issuer.answers = [(status, body, ())]
                with self.assertRaisesRegex(gw.CredentialError, words) as raised:
                    self.secret(self.renewal(self.issuer.send), self.granted())
                self.assertIs(type(raised.exception), gw.CredentialError)
        self.assertNotIn("MARKED", "\n".join(self.lines))

    def test_an_issuer_that_cannot_be_asked(self):
        table = [
            (gw.UpstreamUnreached("no route"), "could not be reached: no route"),
            (gw.UpstreamSilent("MARKED"), "did not answer in time"),
            (gw.UpstreamClosed("MARKED"), "closed the connection"),
            (gw.UpstreamMalformed("MARKED"), "could not be read"),
        ]
        for error, words in table:
            with self.subTest(words):
                with self.assertRaisesRegex(gw.CredentialError, words):
                    self.secret(self.renewal(mock.Mock(side_effect=error)), self.granted())
        self.assertNotIn("MARKED", "\n".join(self.lines))

    def test_lifetimes(self):
        table = [(60, 60.0), ("60", 60.0), (1.5, 1.5), ("1.5", 1.5)]
        table += [(value, gw.ASSUMED_TOKEN_SECONDS) for value in (
            None, 0, -1, True, "", "soon", "-5", [], float("nan"))]
        table += [(value, gw.MAX_TOKEN_SECONDS) for value in (
            10 ** 400, float("inf"), "9999999999")]
        for value, seconds in table:
            with self.subTest(value=str(value)[:20]):
                self.assertEqual(gw.told_lifetime(value), seconds)

    def test_a_short_life_is_renewed_at_its_half(self):
        self.assertEqual([gw.margin_of(seconds) for seconds in (60, 600, 3600)], [30, 300, 300])

    def test_without_a_type_and_a_new_refresh_token(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.issuer.answers = [(200, {"access_token": "a-1"}, ()),
                               (200, {"access_token": "a-2"}, ())]
        self.assertEqual(self.secret(renewal, provider), "a-1")
        self.clock.advance(gw.ASSUMED_TOKEN_SECONDS)
        self.assertEqual(self.secret(renewal, provider), "a-2")
        self.assertEqual(self.issuer.sent, ["refresh-0", "refresh-0"])

    def test_what_nobody_thought_of_is_an_error_like_others(self):
        renewal = self.renewal(mock.Mock(side_effect=KeyError("MARKED")))
        with self.assertRaisesRegex(gw.CredentialError, r"failed \(KeyError\)"):
            self.secret(renewal, self.granted())
        self.assertIn("KeyError at ", "\n".join(self.lines))
        self.assertNotIn("MARKED", "\n".join(self.lines))

    def test_stopping(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        renewal.close()
        self.assertEqual(self.secret(renewal, provider), "access-1")
        self.clock.advance(3600)
        with self.assertRaises(gw.ShuttingDown):
            self.secret(renewal, provider)


class RefusedTest(GrantTest):

    def test_a_refused_token_is_sent_once_even_after_a_restart(self):
        provider = self.granted(refresh_token="dead")
        renewal = self.renewal(self.issuer.send)
        self.assert_refused(renewal, provider, r"\(invalid_grant\)")
        self.assert_refused(renewal, provider, "before")
        self.assert_refused(self.renewal(self.issuer.send), provider, "before")
        self.assertEqual(self.issuer.sent, ["dead"])
        self.assertNotIn("dead", self.text("tokens.json"))

    def test_a_reload_does_not_forget_it(self):
        provider, renewal = self.granted(refresh_token="dead"), self.renewal(self.issuer.send)
        with mock.patch.object(gw, "save_store", side_effect=OSError(28, "disk full")):
            self.assert_refused(renewal, provider)
        renewal.retain([])
        self.assert_refused(renewal, provider, "before")
        self.assertEqual(self.issuer.sent, ["dead"])

    def test_a_newly_configured_one_is_tried(self):
        self.assert_refused(self.renewal(self.issuer.send), self.granted(refresh_token="dead"))
        self.assertEqual(self.secret(self.renewal(self.issuer.send), self.granted()), "access-1")

    def test_a_wrong_client_secret_says_nothing_of_the_token(self):
        self.issuer.answers = [(401, {"error": "invalid_client"}, ())]
        wrong = self.granted(client_secret="wrong")
        self.assert_refused(self.renewal(self.issuer.send), wrong, r"\(invalid_client\)")
        self.assert_refused(self.renewal(self.issuer.send), wrong, "before")
        right = self.granted(client_secret="right")
        self.assertEqual(self.secret(self.renewal(self.issuer.send), right), "access-1")

    def test_said_with_status_200(self):
        self.issuer.answers = [(200, {"error": "bad_refresh_token"}, ())]
        self.assert_refused(self.renewal(self.issuer.send), self.granted())
        self.assertNotIn("bad_refresh_token", "\n".join(self.lines))


class StoreTest(GrantTest):

    def test_a_rotated_token_is_stored_before_its_first_use(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        seen = []

        def use():
            secret = self.secret(renewal, provider)
            row = self.stored()
            seen.append((secret, row["access_token"], row["refresh_token"]))

        together(10, use)
        self.assertEqual(set(seen), {("access-1", "access-1", "refresh-1")})
        self.assertNotIn("refresh-0", self.text("tokens.json"))

    @unittest.skipIf(ON_WINDOWS, "Windows has no such bits")
    def test_its_owner_alone_may_read_it(self):
        old = self.path("tokens.json")
        with open(old, "w", encoding="utf-8"):
            os.chmod(old, 0o644)
        self.secret(self.renewal(self.issuer.send), self.granted())
        for name in os.listdir(self.folder):
            with self.subTest(name):
                self.assertEqual(os.stat(self.path(name)).st_mode & 0o777, 0o600)
        self.assertEqual(sorted(os.listdir(self.folder)), ["tokens.json", "tokens.json.lock"])

    def test_a_restart_takes_what_is_stored(self):
        provider = self.granted()
        self.secret(self.renewal(self.issuer.send), provider)
        self.assertEqual(self.secret(self.renewal(no_call), provider), "access-1")
        self.clock.advance(3600)
        self.assertEqual(self.secret(self.renewal(self.issuer.send), provider), "access-2")
        self.assertEqual(self.issuer.sent, ["refresh-0", "refresh-1"])

    def test_a_refused_one_is_not_taken_from_there(self):
        provider = self.granted()
        refused = gw.Secret(self.secret(self.renewal(self.issuer.send), provider))
        renewal = self.renewal(self.issuer.send)
        found = renewal.renewed(provider, provider.accounts[0], refused, HERE)
        self.assertEqual(found, gw.Secret("access-2"))

    def test_a_clock_that_was_set_back_adds_nothing(self):
        provider = self.granted()
        self.secret(self.renewal(self.issuer.send), provider)
        self.clock._wall -= 10 ** 7
        renewal = self.renewal(self.issuer.send)
        self.assertEqual(self.secret(renewal, provider), "access-1")
        self.clock.advance(3600)
        self.assertEqual(self.secret(renewal, provider), "access-2")

    def test_a_newly_configured_token_supersedes_the_stored_one(self):
        self.secret(self.renewal(self.issuer.send), self.granted())
        self.issuer.valid = "new"
        provider = self.granted(refresh_token="new")
        self.assertEqual(self.secret(self.renewal(self.issuer.send), provider), "access-2")
        self.assertEqual(self.issuer.sent, ["refresh-0", "new"])

    def test_accounts_may_share_one(self):
        other = OnceIssuer("other-0")
        first, second = self.granted(), self.granted(refresh_token="other-0")
        self.secret(self.renewal(self.issuer.send), first)
        self.secret(self.renewal(other.send), second)
        for provider in (first, second):
            self.assertEqual(self.secret(self.renewal(no_call), provider), "access-1")

    def test_a_full_disk_is_told_once_and_served_on(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        with mock.patch.object(gw, "save_store", side_effect=OSError(28, "disk full")):
            for number in (2, 3):
                self.clock.advance(3600)
                self.assertEqual(self.secret(renewal, provider), "access-%d" % number)
        told = [line for line in self.lines if "disk full" in line]
        self.assertEqual(len(told), 1)
        self.assertIn(" warning account mine: its token store ", told[0])
        self.clock.advance(3600)
        self.assertEqual(self.secret(renewal, provider), "access-4")
        self.assertEqual(self.issuer.sent, ["refresh-%d" % number for number in range(4)])
        self.assertEqual(self.stored()["refresh_token"], "refresh-4")

    def test_a_folder_that_is_not_there(self):
        provider = self.granted(store=self.path(os.path.join("no", "tokens.json")))
        renewal = self.renewal(self.issuer.send)
        self.assertEqual(self.secret(renewal, provider), "access-1")
        self.clock.advance(3600)
        self.assertEqual(self.secret(renewal, provider), "access-2")

    def test_another_file_is_left_as_it_is(self):
        for text in ('{"providers": []}', "[]", "not JSON", '{"grants": [], "refused": []}'):
            with self.subTest(text):
                with open(self.path("tokens.json"), "w", encoding="utf-8") as file:
                    file.write(text)
                self.issuer = OnceIssuer()
                renewal = self.renewal(self.issuer.send)
                self.assertEqual(self.secret(renewal, self.granted()), "access-1")
                self.clock.advance(3600)
                self.assertEqual(self.secret(renewal, self.granted()), "access-2")
                self.assertEqual(self.text("tokens.json"), text)

    def test_rows_that_are_none_are_passed_over(self):
        good = {"account": "a", "refresh_token": "r", "access_token": "a", "granted_at": 1,
                "expires_at": 2}
        self.assertIsNotNone(gw.parse_stored_grant(good))
        for bad in (None, [], {}, dict(good, access_token="a\nb"), dict(good, refresh_token=7),
                    dict(good, expires_at="2"), dict(good, expires_at=float("nan")),
                    dict(good, granted_at=-1)):
            self.assertIsNone(gw.parse_stored_grant(bad))

    def test_is_replaced_as_a_whole_or_not_at_all(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        before = self.text("tokens.json")
        for name in ("replace", "fsync"):
            self.clock.advance(3600)
            with mock.patch.object(gw.os, name, side_effect=OSError(5, "broken")):
                self.secret(renewal, provider)
            self.assertEqual(self.text("tokens.json"), before)
            self.assertEqual(sorted(os.listdir(self.folder)), ["tokens.json", "tokens.json.lock"])

    def test_a_target_in_use_is_tried_again(self):
        waits = []
        with mock.patch.object(gw.os, "replace", side_effect=[PermissionError(), None]):
            gw.replace_file("a", "b", waits.append)
        self.assertEqual(len(waits), 1)
        with mock.patch.object(gw.os, "replace", side_effect=PermissionError()):
            self.assertRaises(PermissionError, gw.replace_file, "a", "b", waits.append)
        self.assertEqual(len(waits), gw.STORE_REPLACE_TRIES)

    def test_is_bounded(self):
        content = gw.StoreContent()
        for number in range(300):
            content.grants[str(number)] = gw.StoredGrant("a", gw.Secret("r"), gw.Secret("a"),
                                                         number, number)
            content.refused.append(str(number))
        again = gw.StoreContent.parse(content.encode())
        self.assertEqual(sorted(map(int, again.grants)), list(range(200, 300)))
        self.assertEqual(again.refused, [str(number) for number in range(200, 300)])
        with open(self.path("large"), "wb") as file:
            file.truncate(gw.MAX_STORE_BYTES + 1)
        self.assertRaises(ValueError, gw.load_store, self.path("large"))

    @unittest.skipIf(support.count_open_descriptors() is None, "descriptors unknown")
    def test_leaves_no_descriptor_open(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        self.secret(renewal, provider)
        before = support.count_open_descriptors()
        for _ in range(5):
            self.clock.advance(3600)
            self.secret(renewal, provider)
        self.assertLessEqual(support.count_open_descriptors(), before)


class LockTest(GrantTest):

    def test_a_store_that_another_process_holds_is_waited_for(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        lock = gw.FileLock(self.path("tokens.json.lock"))
        self.assertTrue(lock.try_acquire())
        found = []
        waiting = threading.Thread(target=lambda: found.append(self.secret(renewal, provider)))
        waiting.start()
        eventually(lambda: renewal._threads, "the renewal")
        self.assertEqual((found, self.issuer.forms), ([], []))
        lock.close()
        waiting.join(support.WAIT_SECONDS)
        self.assertEqual(found, ["access-1"])

    def test_but_not_for_ever(self):
        provider, renewal = self.granted(), self.renewal(self.issuer.send)
        lock = gw.FileLock(self.path("tokens.json.lock"))
        self.addCleanup(lock.close)
        self.assertTrue(lock.try_acquire())
        run = self.begun(renewal, provider)
        eventually(lambda: self.clock.advance(gw.STORE_LOCK_SECONDS) or run.done.is_set(),
                   "the end of the wait")
        self.assertIn("locked by another process", run.failure().message)

    def test_a_file_system_without_locks_is_told(self):
        with mock.patch.object(gw.FileLock, "_lock", side_effect=OSError(95, "not supported")):
            self.assertEqual(self.secret(self.renewal(self.issuer.send), self.granted()),
                             "access-1")
        self.assertIn("cannot be locked (not supported)", "\n".join(self.lines))

    def test_what_another_process_got_is_taken(self):
        provider = self.granted()
        account, = provider.accounts
        ours, theirs = self.renewal(self.issuer.send), self.renewal(self.issuer.send)
        refused = ours.secret(provider, account, HERE)
        self.assertEqual(theirs.secret(provider, account, HERE), refused)
        renewed = theirs.renewed(provider, account, refused, HERE)
        self.assertEqual(ours.renewed(provider, account, refused, HERE), renewed)
        self.assertEqual(self.issuer.sent, ["refresh-0", "refresh-1"])


# One of several processes: for each line on stdin every thread asks for the credential
# ("secret") or for another one ("renewed"); then what they got is printed as JSON.
PROCESS = r"""
import json, sys, threading, time
import claude_gateway as gw

settings = json.loads(sys.argv[1])
provider = gw.Config.from_dict(settings).providers[0]
account = provider.accounts[0]
transport = gw.Transport(time.monotonic)
renewal = gw.Renewal(transport.send, lambda seconds, watch: threading.Event().wait(0.002),
                     time.monotonic, time.time,
                     gw.Log(sys.stderr.write, time.time, gw.LogSettings("debug", "text")))
last = None
for line in sys.stdin:
    found = []
    def ask():
        secret = (renewal.secret(provider, account, gw.Watch()) if line.strip() == "secret"
                  else renewal.renewed(provider, account, last, gw.Watch()))
        found.append(secret.reveal())
    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    last = gw.Secret(found[0])
    print(json.dumps([len(found), sorted(set(found))]), flush=True)
renewal.close()
"""


class TwoProcessesTest(GrantTest):

    def start(self, settings):
        process = subprocess.Popen(
            support.importing_command(PROCESS, json.dumps(settings)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def ask_all(self, processes, word):
        for process in processes:
            process.stdin.write(word + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline() or "null") for process in processes]

    def test_a_rotating_token_is_used_once_by_two_processes_of_twenty_threads(self):
        with ScriptedUpstream(respond=self.issuer.respond) as server:
            settings = {"providers": [{"name": "anthropic", "base_url": server.url, "accounts": [
                {"name": "mine", "token": {
                    "token_url": server.url + "/token", "client_id": "abc",
                    "refresh_token": "refresh-0", "store": self.path("tokens.json")}}]}]}
            processes = [self.start(settings) for _ in range(2)]
            self.assertEqual(self.ask_all(processes, "secret"), [[20, ["access-1"]]] * 2)
            for number in (2, 3, 4):
                self.assertEqual(self.ask_all(processes, "renewed"),
                                 [[20, ["access-%d" % number]]] * 2)
            told = [process.communicate()[1] for process in processes]
        self.assertEqual(self.issuer.sent, ["refresh-%d" % number for number in range(4)])
        for secret in ("refresh-", "access-"):
            self.assertNotIn(secret, "".join(told))

    def test_a_refused_one_is_not_sent_by_another_process_either(self):
        provider = self.granted(refresh_token="dead")
        self.assert_refused(self.renewal(self.issuer.send), provider)
        with ScriptedUpstream(respond=self.issuer.respond) as server:
            settings = {"providers": [{"name": "anthropic", "base_url": server.url, "accounts": [
                {"name": "mine", "token": {
                    "token_url": server.url + "/token", "client_id": "abc",
                    "refresh_token": "dead", "store": self.path("tokens.json")}}]}]}
            process = self.start(settings)
            _, told = process.communicate("secret\n")
            self.assertEqual(server.requests, [])
        self.assertIn("has refused this refresh token before", told)


class SecrecyTest(GrantTest):

    def test_no_line_no_error_and_no_repr_has_a_secret(self):
        """Every secret holds MARKED, and the issuer says it wherever it can."""
        provider = self.granted(refresh_token="MARKED-0", client_secret="MARKED-secret",
                                token_url="http://127.0.0.1:9/token?key=MARKED")
        account, = provider.accounts
        renewal = self.renewal(self.issuer.send)
        head = [("MARKED", "MARKED"), ("Retry-After", "MARKED")]
        self.issuer.answers = [(status, body, head) for status, body in (
            (500, b"MARKED"),
            (400, {"error": "temporarily_unavailable", "error_description": "MARKED"}),
            (200, {"access_token": "MARKED MARKED"}),
            (200, {"access_token": "MARKED-1", "refresh_token": "MARKED-2", "expires_in": 1}),
            (401, {"error": "MARKED", "error_description": "MARKED"}),
        )]
        shown = []
        for _ in range(5):
            self.clock.advance(60)
            try:
                renewal.secret(provider, account, HERE)
            except gw.CredentialError as error:
                shown += [repr(error), str(error), "".join(traceback.format_exception(
                    type(error), error, error.__traceback__))]
        self.assertEqual((len(shown), self.issuer.answers), (12, []))
        shown += [repr(provider), *self.lines]
        shown += [repr(standing.unsaved) for standing in renewal._standings.values()]
        shown += [repr(gw.load_store(self.path("tokens.json")).grants)]
        self.assertGreater(len(self.lines), 4)
        for text in shown:
            self.assertNotIn("MARKED", text)


if __name__ == "__main__":
    unittest.main()
