"""Pages in a real Chromium: which of them reach the gateway, and what they see of its answers.

A Tap stands before the gateway and writes down each exchange, since what a page is told of a
refusal is nothing but "failed".
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest

from tests.clients import harness
from tests.support import LAST_CHUNK
from tests.support import SSE_HEAD
from tests.support import WAIT_SECONDS
from tests.support import Gate
from tests.support import GatewayProcess
from tests.support import ScriptedUpstream
from tests.support import chunk
from tests.support import error_body
from tests.support import eventually
from tests.support import json_response
from tests.support import message
from tests.support import stream_events

BODY = '{"model": "claude-opus-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}'
STREAMED_BODY = BODY[:-1] + ', "stream": true}'
EVIL = "evil.example"
APP = "app.example"
# A visit takes half a second; the browser's start one or two.
VISIT_SECONDS = 40

REQUEST = re.compile(rb"(GET|POST|PUT|OPTIONS) (\S+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n")
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
PAGE = b"<!doctype html><title>page</title><body>"
PAGE_ANSWER = (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"
               b"Connection: close\r\n\r\n%s" % (len(PAGE), PAGE))

# Each tries one way of asking and gives what the page saw of the answer.  `ask` names itself in the
# query, so that the exchange can be told from others.
ATTEMPTS = """async ([base, body]) => {
  const seen = {};
  const ask = (name, path) => base + path + "?attempt=" + name;
  const fetched = (name, path, options) => fetch(ask(name, path), options).then(
    async answer => [answer.type, answer.status, await answer.text()], error => error.name);
  const loaded = (name, path, element, attribute) => new Promise(resolve => {
    element.onload = () => resolve("load");
    element.onerror = () => resolve("error");
    element[attribute] = ask(name, path);
    document.body.append(element);
  });
  const made = (tag, more) => Object.assign(document.createElement(tag), more);
  const framed = html => new Promise(resolve => {
    window.addEventListener("message", event => resolve(event.data), { once: true });
    document.body.append(html);
  });
  const told = name => `<script>fetch("${ask(name, "/v1/messages")}", { method: "POST", body: "x" })
    .then(answer => parent.postMessage(answer.status, "*"), error => parent.postMessage(error.name, "*"))</` + "script>";
  const post = (name, type) => new Promise(resolve => {
    const frame = made("iframe", { name });
    const form = made("form", { method: "POST", action: ask(name, "/v1/messages"), target: name, enctype: type });
    form.append(made("input", { name: body.slice(0, -1), value: "}" }));
    document.body.append(frame, form);
    frame.onload = () => resolve("load");
    form.submit();
  });
  seen.get = await fetched("get", "/v1/models");
  seen.passage = await fetched("passage", "/v1/files");
  seen.text = await fetched("text", "/v1/messages", { method: "POST", body });
  seen.json = await fetched("json", "/v1/messages",
    { method: "POST", body, headers: { "content-type": "application/json", "x-api-key": "x" } });
  seen.put = await fetched("put", "/v1/files", { method: "PUT", body });
  seen.blind_get = await fetched("blind_get", "/v1/files", { mode: "no-cors" });
  seen.blind_post = await fetched("blind_post", "/v1/messages", { mode: "no-cors", method: "POST", body });
  seen.form = await post("form", "application/x-www-form-urlencoded");
  seen.text_form = await post("text_form", "text/plain");
  seen.file_form = await post("file_form", "multipart/form-data");
  seen.image = await loaded("image", "/v1/files", made("img"), "src");
  seen.script = await loaded("script", "/v1/files", made("script"), "src");
  seen.style = await loaded("style", "/v1/files", made("link", { rel: "stylesheet" }), "href");
  seen.frame = await loaded("frame", "/", made("iframe"), "src");
  seen.events = await new Promise(resolve => {
    const source = new EventSource(ask("events", "/v1/files"));
    source.onopen = () => resolve("open");
    source.onerror = () => { source.close(); resolve("error"); };
  });
  seen.socket = await new Promise(resolve => {
    const socket = new WebSocket(ask("socket", "/v1/files").replace("http", "ws"));
    socket.onopen = () => resolve("open");
    socket.onerror = () => resolve("error");
  });
  seen.beacon = String(navigator.sendBeacon(ask("beacon", "/v1/messages"), body));
  seen.sandbox = await framed(made("iframe", { sandbox: "allow-scripts", srcdoc: told("sandbox") }));
  seen.data = await framed(made("iframe", { src: "data:text/html," + encodeURIComponent(told("data")) }));
  return seen;
}"""
# What a page on its way through sees of a refusal: that it failed, or that something not to be read came.
UNSEEN = {"TypeError", "error", "load", "true"}
OPAQUE = ["opaque", 0, ""]

FETCH = """([url, options]) => fetch(url, options).then(async answer =>
  ({ status: answer.status, text: await answer.text(), headers: Object.fromEntries(answer.headers) }),
  error => error.name)"""

# Tells each piece to the page's own site as it comes.
READ_STREAM = """async ([url, options]) => {
  const answer = await fetch(url, options), reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let text = "", told = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return { status: answer.status, type: answer.headers.get("content-type"), text };
    text += decoder.decode(value, { stream: true });
    if (!told && text.includes("Once")) { told = true; await fetch("/shown"); }
  }
}"""

FOLLOW = """url => { const link = document.createElement("a"); link.href = url; document.body.append(link); link.click(); }"""


def key_headers(key):
    return {"content-type": "application/json", "x-api-key": key, "anthropic-version": "2023-06-01"}


def posting(body=BODY, headers=None):
    return {"method": "POST", "body": body, "headers": headers or {"content-type": "application/json"}}


class Exchanged:
    """One request and the head of its answer, as they passed the tap."""

    def __init__(self, request, answer):
        self.method, target, lines = (part.decode("latin-1") for part in request)
        self.target, _, self.attempt = target.partition("?attempt=")
        self.headers = headers_of(lines)
        self.status = int(answer[0])
        self.told = headers_of(answer[1].decode("latin-1"))

    def __repr__(self):
        return "%s %s %r -> %s %r" % (self.method, self.target, self.headers, self.status, self.told)


def headers_of(lines):
    pairs = (line.partition(":") for line in lines.split("\r\n") if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


class Tap:
    """A port of this machine: a site's page while it has no target, then what the target is.

    The change is what DNS rebinding does: another server behind the same name and port.
    """

    def __init__(self, target=None):
        self.target = target
        self.shown = Gate()
        self._streams = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *ignored):
        # A close alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_SECONDS)

    def url(self, host="127.0.0.1"):
        return "http://%s:%d" % (host, self.port)

    def exchanges(self):
        """What passed so far.  Heads are found by their looks: no body here has such lines."""
        found = []
        for up, down in list(self._streams):
            found.extend(map(Exchanged, *zip(*zip(REQUEST.findall(bytes(up)), ANSWER.findall(bytes(down)))))
                         if up and down else ())
        return found

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client, self.target), daemon=True).start()

    def _serve(self, client, target):
        with client, contextlib.suppress(OSError):
            if target is None:
                head = client.recv(65536)
                if head.startswith(b"GET /shown"):
                    self.shown.open()
                client.sendall(PAGE_ANSWER)
                return
            up, down = bytearray(), bytearray()
            self._streams.append((up, down))
            with socket.create_connection(target, WAIT_SECONDS) as server:
                server.settimeout(None)
                back = threading.Thread(target=pump, args=(server, client, down), daemon=True)
                back.start()
                pump(client, server, up)
                back.join(WAIT_SECONDS)


def pump(source, target, seen):
    """Copies until an end or a reset, and passes the end on."""
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            seen += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Browser:
    """A Chromium, driven through programs/browser.cjs."""

    def __init__(self, home, more=()):
        path = harness.on_path("chromium")
        settings = {"path": path, "hosts": [EVIL, APP], "more": list(more)}
        environment = harness.bare_environment(
            home, NODE_PATH=harness.installed("browser", "node_modules"), XDG_RUNTIME_DIR=home)
        self._process = subprocess.Popen(
            [harness.on_path("node"), harness.program("browser.cjs"), json.dumps(settings)],
            env=environment, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True)
        self._timer = None
        self.version = self._told()

    def visit(self, url, script, argument=None, **more):
        order = dict(more, url=url, script=script, argument=argument)
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self):
        timer = threading.Timer(VISIT_SECONDS, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise AssertionError("the browser ended: %r" % self._process.communicate()[1][-2000:])
        told = json.loads(line)
        if "error" in told:
            raise AssertionError(told["error"])
        return told["value"]

    def close(self):
        try:
            self._process.communicate(timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            harness.end_with_children(self._process)


class BrowserTest(harness.ClientTest):
    """A site, a gateway behind a tap, and one browser for the whole class."""

    @classmethod
    def setUpClass(cls):
        cls.site = Tap()
        cls.site.__enter__()
        cls.addClassCleanup(cls.site.__exit__)
        home = tempfile.mkdtemp(prefix="claude_gateway_browser_")
        cls.addClassCleanup(shutil.rmtree, home, ignore_errors=True)
        cls.browser = Browser(home, cls.browser_flags())
        cls.addClassCleanup(cls.browser.close)

    @classmethod
    def browser_flags(cls):
        return []

    def setUp(self):
        super().setUp()
        self.site.shown = Gate()

    def start(self, *answers, script=None, mode="off", tapped=None, **settings):
        """A gateway behind a tap, whose address is given."""
        scripts = [script] if script else []
        self.upstream = self.entered(ScriptedUpstream(*scripts, respond=harness.Answers(answers)))
        account = {"name": "work", "api_key": harness.UPSTREAM_KEY}
        config = dict(settings, auth={"mode": mode, "api_keys": [harness.GATEWAY_KEY]}, providers=[
            {"name": "anthropic", "base_url": self.upstream.url, "accounts": [account]}])
        gateway = self.entered(GatewayProcess(config))
        self.tap = tapped or self.entered(Tap())
        self.tap.target = (gateway.host, gateway.port)
        return self.tap

    def visit(self, page, script, argument=None, **more):
        return self.browser.visit(page, script, argument, **more)

    def exchanges(self, *attempts):
        """Those of the tap by attempt, when all the named ones have passed."""
        def by_attempt():
            found = {}
            for exchanged in self.tap.exchanges():
                found.setdefault(exchanged.attempt, []).append(exchanged)
            return found if set(attempts) <= set(found) else None
        return eventually(by_attempt, "the exchanges of %s, of %s" % (attempts, self.tap.exchanges()))

    def assert_all_refused(self, seen, status=403):
        """Each attempt came to us, got nothing, and nothing went up."""
        found = self.exchanges(*seen)
        for attempt in seen:
            for exchanged in found[attempt]:
                with self.subTest(attempt):
                    self.assertEqual(status, exchanged.status, exchanged)
                    self.assertEqual([], [name for name in exchanged.told if name.startswith("access-control")])
        self.assertEqual([], self.upstream.requests)
        return found


class OtherSitesTest(BrowserTest):

    def attempted(self, page_host, mode="off"):
        tap = self.start(mode=mode)
        # localhost stays localhost: the page's own site at another port is to be tried as well.
        host = "localhost" if page_host == "localhost" else "127.0.0.1"
        seen = self.visit(self.site.url(page_host), ATTEMPTS, [tap.url(host), BODY])
        for name, saw in seen.items():
            with self.subTest(name):
                self.assertTrue(saw == OPAQUE or saw in UNSEEN, saw)
        return self.assert_all_refused(seen)

    def test_everything_that_a_page_of_another_site_may_try(self):
        found = self.attempted(EVIL)
        self.assertEqual("OPTIONS", found["json"][0].method)
        self.assertEqual("websocket", found["socket"][0].headers["upgrade"].lower())
        self.assertEqual(["null", "null"], [found[name][0].headers["origin"] for name in ("sandbox", "data")])
        # The guard needs the mark, since these have no Origin.
        for name in ("blind_get", "image", "script", "style", "frame"):
            self.assertNotIn("origin", found[name][0].headers)
            self.assertEqual("cross-site", found[name][0].headers["sec-fetch-site"])

    def test_with_keys(self):
        self.attempted(EVIL, mode="auto")

    def test_a_page_at_another_local_port(self):
        """To the browser it is the same site."""
        found = self.attempted("localhost")
        self.assertEqual("same-site", found["image"][0].headers["sec-fetch-site"])

    def test_links_lead_to_pages_alone(self):
        tap = self.start()
        for path, end, status in (("/", "/dashboard", 200), ("/dashboard", "/dashboard", 200),
                                  ("/v1/files", "/v1/files", 403), ("/v1/models", "/v1/models", 403)):
            with self.subTest(path):
                led = self.visit(self.site.url(EVIL), FOLLOW, tap.url() + path, leads=True)
                self.assertEqual((tap.url() + end, status), (led["url"], led["status"]))
        self.assertEqual([], self.upstream.requests)


class RebindingTest(BrowserTest):

    def rebound(self, mode):
        """What the page's requests, to its own origin by then, are answered."""
        place = self.entered(Tap())
        self.start(mode=mode, tapped=place)
        target, place.target = place.target, None
        script = """async ([body]) => {
          await fetch("/shown");
          while ((await fetch("/healthz")).headers.get("content-type") === "text/html");
          const asked = async (path, options) => {
            const answer = await fetch(path, options);
            return [answer.status, await answer.text()];
          };
          const headers = { "content-type": "application/json" };
          return [await asked("/?attempt=page"), await asked("/v1/models?attempt=models"),
            await asked("/v1/files?attempt=files"),
            await asked("/v1/messages?attempt=message", { method: "POST", body, headers })];
        }"""

        def rebind():
            place.shown.wait("the page to be there")
            place.target = target
        rebinding = threading.Thread(target=rebind)
        rebinding.start()
        seen = self.visit(place.url(EVIL), script, [BODY])
        rebinding.join(WAIT_SECONDS)
        found = self.exchanges("page", "models", "files", "message")
        for (exchanged,) in (found[name] for name in ("page", "models", "files", "message")):
            self.assertEqual("%s:%d" % (EVIL, place.port), exchanged.headers["host"])
        self.assertEqual(place.url(EVIL), found["message"][0].headers["origin"])
        self.assertEqual([], self.upstream.requests)
        return seen

    def test_without_keys_nothing_is_told(self):
        seen = self.rebound("off")
        self.assertEqual([403] * 4, [status for status, _ in seen])
        for _, text in seen:
            self.assertIn("allowed_hosts", text)

    def test_with_keys_it_learns_what_needs_none(self):
        seen = self.rebound("auto")
        self.assertEqual([200, 200, 401, 403], [status for status, _ in seen])
        self.assertNotIn(harness.UPSTREAM_KEY, str(seen))


class LocalNetworkTest(BrowserTest):
    """Pages that to the browser come from the public network.

    Chromium sends no private-network preflight any more: it asks the user, and only for secure pages.
    """

    PERMISSION = "local-network-access"

    @classmethod
    def browser_flags(cls):
        secure = ",".join(map(cls.site.url, (EVIL, APP)))
        return ["--ip-address-space-overrides=127.0.0.1:%d=public" % cls.site.port,
                "--unsafely-treat-insecure-origin-as-secure=" + secure]

    def test_a_page_that_the_user_lets_in_is_refused_all_the_same(self):
        tap = self.start()
        for permissions in ([], [self.PERMISSION]):
            for attempt, options in (("get", {}), ("post", posting())):
                url = "%s/v1/messages?attempt=%s" % (tap.url(), attempt)
                self.assertEqual("TypeError", self.visit(
                    self.site.url(EVIL), FETCH, [url, options], permissions=permissions))
            if not permissions:
                self.assertEqual([], self.tap.exchanges())
        self.assert_all_refused(["get", "post"])

    def test_a_listed_page_that_the_user_lets_in_is_served(self):
        tap = self.start(json_response(message("hi")), cors_origins=[self.site.url(APP)])
        told = self.visit(self.site.url(APP), FETCH, [tap.url() + "/v1/messages", posting()],
                          permissions=[self.PERMISSION])
        self.assertEqual(200, told["status"])


class OwnPageTest(BrowserTest):

    def test_it_may_ask(self):
        for host in ("127.0.0.1", "localhost"):
            with self.subTest(host):
                tap = self.start(json_response(message("hi")))
                told = self.visit(tap.url(host) + "/", FETCH, ["/v1/messages?attempt=own", posting()])
                self.assertEqual(200, told["status"])
                self.assertEqual("hi", json.loads(told["text"])["content"][0]["text"])
                self.assertEqual(tap.url(host), self.exchanges("own")["own"][0].headers["origin"])

    def test_under_another_name_it_is_another_page(self):
        tap = self.start()
        url = tap.url("127.0.0.1") + "/v1/messages?attempt=other"
        # Not from the dashboard, whose own policy would keep it from asking.
        self.assertEqual("TypeError", self.visit(tap.url("localhost") + "/healthz", FETCH, [url, posting()]))
        self.assert_all_refused(["other"])


class ListedOriginTest(BrowserTest):

    def listed(self, *answers, **more):
        return self.start(*answers, mode="auto", cors_origins=[self.site.url(APP)], **more)

    def ask(self, path="/v1/messages", key=harness.GATEWAY_KEY, body=BODY, script=FETCH):
        options = posting(body, key_headers(key)) if key else posting(body)
        return self.visit(self.site.url(APP), script, [self.tap.url() + path, options])

    def test_json_and_all_headers(self):
        self.listed(json_response(message("hi"), headers=[("anthropic-ratelimit-requests-remaining", "7")]))
        told = self.ask()
        self.assertEqual((200, "hi"), (told["status"], json.loads(told["text"])["content"][0]["text"]))
        self.assertEqual(
            ("anthropic", "work", "7", "1"),
            tuple(told["headers"].get(name) for name in (
                "x-gateway-provider", "x-account-email", "anthropic-ratelimit-requests-remaining",
                "x-gateway-attempts")))
        self.assertIn("request-id", told["headers"])
        self.assertIn("x-request-id", told["headers"])
        self.assert_only_the_account_was_shown()
        before, asked = self.tap.exchanges()
        self.assertEqual(("OPTIONS", 204), (before.method, before.status))
        self.assertNotIn("x-api-key", before.headers)
        for exchanged in (before, asked):
            self.assertEqual(self.site.url(APP), exchanged.told["access-control-allow-origin"])

    def test_errors_can_be_read(self):
        self.listed(json_response(error_body("invalid_request_error", "no such thing"), status=400))
        told = self.ask()
        self.assertEqual((400, "no such thing"), (told["status"], json.loads(told["text"])["error"]["message"]))
        for key, text in ((None, "missing x-api-key header"), ("wrong", "invalid x-api-key")):
            told = self.ask(key=key)
            self.assertEqual((401, text), (told["status"], json.loads(told["text"])["error"]["message"]))
        told = self.ask("/nowhere")
        self.assertEqual((404, "not_found_error"), (told["status"], json.loads(told["text"])["error"]["type"]))
        self.assertEqual(1, len(self.upstream.requests))

    def test_a_stream_is_read_as_it_comes(self):
        events = stream_events("Once upon a time")

        def script(connection):
            connection.read_request()
            connection.send(SSE_HEAD + b"".join(map(chunk, events[:4])))
            self.site.shown.wait("the page to have the first piece")
            connection.send(b"".join(map(chunk, events[4:])) + LAST_CHUNK)

        self.listed(script=script)
        told = self.ask(body=STREAMED_BODY, script=READ_STREAM)
        self.assertEqual((200, b"".join(events).decode()), (told["status"], told["text"]))
        self.assertTrue(told["type"].startswith("text/event-stream"))

    def test_the_list_is_exact(self):
        self.listed()
        url = self.tap.url() + "/v1/messages?attempt=other"
        options = posting(headers=key_headers(harness.GATEWAY_KEY))
        for page in (self.site.url(EVIL), self.site.url("localhost")):
            with self.subTest(page):
                self.assertEqual("TypeError", self.visit(page, FETCH, [url, options]))
        self.assert_all_refused(["other"])


if __name__ == "__main__":
    unittest.main()
