"""The dashboard in a real browser: what people see, with keys, through a restart, and for screen readers."""

import contextlib
import json
import os
import queue
import subprocess
import threading
import unittest

from tests import running
from tests import support
from tests.clients import harness

ARTEFACTS = os.path.join(support.PROJECT_DIRECTORY, ".ci", "artefacts")
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 800}
MARKUP = "<img src=x onerror=alert(1)>"
# What axe finds at any level, without its opinions on best practice in other places.
AXE = """
await page.evaluate(axe);
const found = await page.evaluate(() => window.axe.run(document));
return found.violations.map(rule => rule.id + ": " + rule.nodes.map(node => node.target.join(" ") + " " + node.failureSummary).join("; "));
"""


class Browser:
    """A Chromium that a program in node drives; one line of JavaScript after the other."""

    def __init__(self, **options):
        modules = harness.installed("dashboard", "node_modules")
        chromium = harness.on_path("chromium")
        self.process = subprocess.Popen(
            [harness.on_path("node"), harness.program("dashboard.cjs"), chromium, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
            env=dict(os.environ, NODE_PATH=modules), start_new_session=True)
        self.answers = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self._answer()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({"error": "the browser has ended"})

    def _answer(self):
        answer = self.answers.get(timeout=harness.CLIENT_SECONDS)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def run(self, code, **values):
        """The result of a piece of code; it knows page, context, seen, values and axe."""
        self.process.stdin.write(json.dumps({"code": code, "values": values}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def open(self, url):
        self.run("await page.goto(values.url)", url=url)

    def text(self, selector):
        return self.run("return await page.locator(values.selector).first().innerText()", selector=selector)

    def wait(self, selector, text="", state="visible"):
        """Until an element (that holds a text) is there; how long that took, in seconds."""
        return self.run("""const began = Date.now();
            await page.locator(values.selector, {hasText: values.text}).first().waitFor({state: values.state});
            return (Date.now() - began) / 1000;""", selector=selector, text=text, state=state)

    def click(self, selector):
        self.run("await page.locator(values.selector).first().click()", selector=selector)

    def picture(self, name):
        """A screenshot of the whole page for people, in a folder that git does not look at."""
        os.makedirs(ARTEFACTS, exist_ok=True)
        self.run("await page.screenshot({path: values.path, fullPage: true})",
                 path=os.path.join(ARTEFACTS, "dashboard-%s.png" % name))

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(harness.CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            harness.end_with_children(self.process)
        self.reader.join(harness.CLIENT_SECONDS)
        self.process.stdout.close()


def refused(status, **headers):
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return support.json_response(support.error_body("overloaded_error", "not now"), status, pairs)


class DashboardTest(unittest.TestCase):

    def entered(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def browser(self, **options):
        browser = Browser(**dict({"viewport": WIDE}, **options))
        self.addCleanup(browser.close)
        return browser

    def gateway(self, respond=support.respond_with_message, accounts=("work",), **settings):
        self.upstream = self.entered(support.ScriptedUpstream(respond=respond))
        return self.entered(running.running_gateway(running.provider(self.upstream, accounts), **settings))

    def post(self, gateway, body=running.MESSAGE, headers=()):
        return support.exchange(gateway.port, "POST", "/v1/messages", [running.JSON_TYPE, *headers], body)

    def first(self, *answers):
        """An upstream that gives these answers and then messages."""
        left = list(answers)
        return lambda request: left.pop(0) if left else support.respond_with_message(request)

    def shown(self, gateway, **options):
        browser = self.browser(**options)
        browser.open(gateway.url + "/dashboard")
        browser.wait("#board")
        return browser

    def assert_quiet(self, browser, gateway):
        """Nothing was asked elsewhere, nothing was complained of."""
        seen = browser.run("return seen")
        self.assertEqual(seen["complaints"], [])
        self.assertEqual([url for url in seen["requests"]
                          if not url.startswith((gateway.url + "/", "data:image/svg"))], [])


class SeeingTest(DashboardTest):

    def test_a_gateway_that_nobody_has_asked(self):
        gateway = self.gateway()
        browser = self.browser()
        browser.open(gateway.url + "/")
        browser.wait("#connection", "live")
        self.assertTrue(browser.run("return page.url()").endswith("/dashboard"))
        self.assertIn("Nothing is under way", browser.text("#live-empty"))
        self.assertIn("ANTHROPIC_BASE_URL=" + gateway.url, browser.text("#recent-empty"))
        browser.picture("empty")
        self.assertEqual(browser.run(AXE), [])
        self.assert_quiet(browser, gateway)

    def test_below_the_prefix(self):
        gateway = self.gateway()
        browser = self.browser()
        browser.open(gateway.url + "/claude_api/dashboard/")
        browser.wait("#connection", "live")
        self.assert_quiet(browser, gateway)

    def test_a_request_is_seen_within_two_seconds_of_its_start(self):
        go = support.Gate()
        self.addCleanup(go.open)

        def script(connection):
            connection.read_request()
            go.wait("the browser to have seen it")
            connection.send(support.stream_response(support.stream_events("Once upon a time")))

        upstream = self.entered(support.ScriptedUpstream(script))
        gateway = self.entered(running.running_gateway(running.provider(upstream)))
        browser = self.shown(gateway)
        browser.wait("#connection", "live")
        thread = threading.Thread(target=self.post, args=(gateway, running.STREAM_MESSAGE))
        thread.start()
        self.addCleanup(thread.join)
        seconds = browser.wait("#live tr", "anthropic/work")
        self.assertLess(seconds, 2)
        print("seen after %.2f s" % seconds)
        self.assertIn("waiting", browser.text("#live tr"))
        go.open()
        browser.wait("#recent tr", "claude-opus-5-5")
        browser.wait("#live tr", state="detached")
        self.assert_quiet(browser, gateway)

    def test_a_row_opens_to_the_attempts_and_stays_open(self):
        gateway = self.gateway(self.first(refused(529)), ("work", "team"))
        self.post(gateway)
        browser = self.shown(gateway)
        browser.wait("#recent .opener")
        browser.run("await page.locator('#recent .opener').first().focus(); await page.keyboard.press('Enter')")
        told = browser.text("#recent .detail")
        for text in ("anthropic/work", "overloaded or failing (529)", "anthropic/team", "answered (200)"):
            self.assertIn(text, told)
        self.assertEqual(browser.run(AXE), [])
        self.post(gateway)
        browser.wait("#recent tr:nth-child(3)")
        self.assertEqual(browser.text("#recent .detail"), told)
        held = browser.run("return await page.evaluate(() => document.activeElement.getAttribute('aria-expanded'))")
        self.assertEqual(held, "true")
        browser.run("await page.keyboard.press('Enter')")
        browser.wait("#recent .detail", state="detached")
        self.assert_quiet(browser, gateway)

    def test_what_is_told_is_text(self):
        body = json.dumps({"model": MARKUP, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})
        gateway = self.gateway(lambda request: support.json_response(support.message(model=MARKUP)))
        self.post(gateway, body.encode(), [("X-Request-ID", "<b>id</b>")])
        browser = self.shown(gateway)
        browser.wait("#recent tr", MARKUP)
        browser.click("#recent .opener")
        self.assertIn("<b>id</b>", browser.text("#recent .detail"))
        self.assertEqual(browser.run("return await page.locator('img, b:not(.clock b)').count()"), 0)
        self.assert_quiet(browser, gateway)

    def test_a_cooling_account_counts_down(self):
        gateway = self.gateway(self.first(refused(429, retry_after="90")), ("work", "team"))
        self.post(gateway)
        browser = self.shown(gateway)
        browser.wait("#accounts li", "cooling")
        before = browser.text("#accounts .clock b")
        self.assertRegex(before, r"^1:[0-3][0-9]$")
        browser.run("""await page.waitForFunction(before => document.querySelector("#accounts .clock b").textContent < before,
            values.before)""", before=before)
        self.assertIn("over its limit", browser.text("#accounts li"))
        self.assert_quiet(browser, gateway)

    def test_nothing_flickers(self):
        """What does not change is not touched: an idle second changes the uptime alone."""
        gateway = self.gateway()
        self.post(gateway)
        browser = self.shown(gateway)
        browser.wait("#recent tr")
        changed = browser.run("""return await page.evaluate(async () => {
            const changed = [];
            new MutationObserver(list => list.forEach(item => changed.push(item.type + " " + (item.target.id || item.target.tagName))))
              .observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
            await new Promise(done => setTimeout(done, 2600));
            return [...new Set(changed)];
        })""")
        self.assertEqual(changed, ["childList about"])

    def test_who_does_not_look_asks_nothing(self):
        gateway = self.gateway()
        browser = self.shown(gateway)
        asked = browser.run("""
            await page.evaluate(() => { Object.defineProperty(document, "hidden", {configurable: true, get: () => true});
              document.dispatchEvent(new Event("visibilitychange")); });
            const before = seen.requests.length;
            await page.waitForTimeout(2500);
            const hidden = seen.requests.length - before;
            await page.evaluate(() => { Object.defineProperty(document, "hidden", {get: () => false});
              document.dispatchEvent(new Event("visibilitychange")); });
            await page.waitForTimeout(500);
            return [hidden, seen.requests.length - before > 0];""")
        self.assertEqual(asked, [0, True])


class KeyTest(DashboardTest):

    def test_a_key_is_asked_for_and_kept_for_the_tab_alone(self):
        gateway = self.gateway(auth={"api_keys": [running.CLIENT_KEY]})
        browser = self.browser()
        browser.open(gateway.url + "/dashboard")
        browser.wait("#ask")
        self.assertEqual(browser.run(AXE), [])
        asked = browser.run("const before = seen.requests.length; await page.waitForTimeout(2200); return seen.requests.length - before")
        self.assertEqual(asked, 0)
        enter = "await page.locator('#key').fill(values.key); await page.keyboard.press('Enter')"
        browser.run(enter, key="wrong")
        browser.wait("#ask-wrong", "does not know that key")
        browser.picture("key")
        browser.run(enter, key=running.CLIENT_KEY)
        browser.wait("#board")
        kept = """return await page.evaluate(key => [Object.values(sessionStorage), localStorage.length, document.cookie,
            document.documentElement.outerHTML.includes(key)], values.key)"""
        self.assertEqual(browser.run(kept, key=running.CLIENT_KEY), [[running.CLIENT_KEY], 0, "", False])
        browser.run("await page.reload()")
        browser.wait("#board")
        other = browser.run("""const tab = await context.newPage();
            await tab.goto(page.url());
            await tab.locator("#ask").waitFor();
            const board = await tab.locator("#board").isVisible();
            await tab.close();
            return board;""")
        self.assertFalse(other)
        browser.click("#forget")
        browser.wait("#ask")
        self.assertEqual(browser.run(kept, key=running.CLIENT_KEY)[0], [])
        self.assertFalse([url for url in browser.run("return seen")["requests"] if running.CLIENT_KEY in url])


class RestartTest(DashboardTest):

    def test_a_restart_of_the_gateway(self):
        upstream = self.entered(support.ScriptedUpstream())
        settings = [running.provider(upstream)]
        with contextlib.ExitStack() as first:
            gateway = first.enter_context(running.running_gateway(*settings))
            port = gateway.port
            self.post(gateway)
            browser = self.shown(gateway)
            browser.wait("#recent tr:nth-child(1)")
        browser.wait("#connection", "reconnecting")
        self.assertIn("does not answer", browser.text("#problem"))
        browser.picture("gone")
        self.assertTrue(browser.run("return await page.locator('#recent tr').count()"))
        self.assertEqual(browser.run(AXE), [])
        gateway = self.entered(running.running_gateway(*settings, port=port))
        browser.wait("#connection", "live")
        browser.wait("#problem", state="hidden")
        browser.wait("#recent-empty")
        self.post(gateway)
        browser.wait("#recent tr", "claude-opus-5-5")


class LookTest(DashboardTest):
    """Screenshots for people, and axe and the width on each of them."""

    def busy(self):
        """A gateway with streams, a rotation, a cooling account, one that is out, and an edit."""
        go = threading.Event()
        limits = [("anthropic-ratelimit-requests-limit", "4000"), ("anthropic-ratelimit-requests-remaining", "3120"),
                  ("anthropic-ratelimit-input-tokens-limit", "2000000"),
                  ("anthropic-ratelimit-input-tokens-remaining", "90000")]

        def script(connection):
            while True:
                request = connection.read_request()
                if request is None:
                    return
                key = request.header("x-api-key")
                if key.endswith("-team"):
                    connection.send(refused(429, retry_after="754"))
                elif key.endswith("-old"):
                    connection.send(refused(401))
                elif b'"stream"' in request.body:
                    begun = support.stream_events("word " * 99)[:60]
                    connection.send(support.SSE_HEAD + b"".join(map(support.chunk, begun)))
                    while not go.wait(0.5):
                        connection.send(support.chunk(support.sse_event({"type": "ping"})))
                    return
                else:
                    connection.send(support.json_response(support.message(), 200, limits))

        upstream = self.entered(support.ScriptedUpstream(*[script] * 20))
        gateway = self.entered(running.running_gateway(
            running.provider(upstream, ("team", "old", "work", "spare"), model_map={"claude-haiku-*": "GLM-4.5-Air"}),
            retry={"max_attempts": 4}))
        self.post(gateway)
        self.post(gateway, running.MESSAGE.replace(b"opus", b"haiku"))
        self.post(gateway, b"{}")
        for _ in range(2):
            thread = threading.Thread(target=self.post, args=(gateway, running.STREAM_MESSAGE))
            thread.start()
            self.addCleanup(thread.join)
        self.addCleanup(go.set)
        return gateway

    def test_light_dark_and_narrow(self):
        gateway = self.busy()
        for name, options in (("light", {"colorScheme": "light"}), ("dark", {"colorScheme": "dark"}),
                              ("narrow", {"viewport": NARROW}),
                              ("narrow-dark", {"viewport": NARROW, "colorScheme": "dark", "reducedMotion": "reduce"})):
            with self.subTest(name):
                browser = self.shown(gateway, **options)
                browser.wait("#recent tr:nth-child(3)")
                browser.wait("#live tr", "streaming")
                browser.run("await page.locator('#recent .opener').last().click()")
                self.assertEqual(browser.run(AXE), [])
                wider = """return await page.evaluate(() => [document.documentElement, ...document.querySelectorAll(".clip")]
                    .map(node => node.scrollWidth - node.clientWidth))"""
                self.assertEqual(set(browser.run(wider)), {0})
                browser.picture(name)
                self.assert_quiet(browser, gateway)


if __name__ == "__main__":
    unittest.main()
