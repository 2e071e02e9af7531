// Drives a headless Chromium for client_browser.py.  One line of JSON in is one page visited:
// {url, script, argument, permissions, leads}; one line of JSON out is what came of it, {value} or {error}.
"use strict";

const { chromium } = require("playwright-core");
const readline = require("readline");

const VISIT_MILLISECONDS = 30000;

function settings() {
  const { path, hosts, more } = JSON.parse(process.argv[2]);
  const rules = hosts.map((host) => `MAP ${host} 127.0.0.1`);
  return {
    executablePath: path,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--no-proxy-server",
      // Whatever else it looks up does not exist; only loopback is asked.
      `--host-resolver-rules=${rules.join(",")},MAP * ~NOTFOUND,EXCLUDE 127.0.0.1,EXCLUDE localhost`,
      ...more,
    ],
  };
}

async function visit(browser, { url, script, argument, permissions, leads }) {
  const context = await browser.newContext({ permissions: permissions || [] });
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(VISIT_MILLISECONDS);
    await page.goto(url);
    // Playwright would call a function; the text of one is no expression that calls it.
    const run = page.evaluate(`(${script})(${JSON.stringify(argument)})`);
    if (!leads) {
      return await run;
    }
    const [response] = await Promise.all([page.waitForNavigation(), run.catch(() => null)]);
    return { url: page.url(), status: response.status(), text: await response.text() };
  } finally {
    await context.close();
  }
}

function within(milliseconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the page took too long")), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

(async () => {
  const browser = await chromium.launch(settings());
  process.stdout.write(JSON.stringify({ value: browser.version() }) + "\n");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let told;
    try {
      told = { value: await within(VISIT_MILLISECONDS, visit(browser, JSON.parse(line))) };
    } catch (error) {
      told = { error: String(error) };
    }
    process.stdout.write(JSON.stringify(told) + "\n");
  }
  await browser.close();
})();
