// A browser that does what it is told: a line of JSON {code, values} in, a line {result} or {error} out.
// The code runs with page, context, seen (what the browser asked and complained of), values, axe.
const readline = require("readline");
const {chromium} = require("playwright-core");
const axe = require("axe-core").source;
const AsyncFunction = (async () => {}).constructor;

async function main() {
  const [executablePath, options] = [process.argv[2], JSON.parse(process.argv[3])];
  const browser = await chromium.launch({executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]});
  const context = await browser.newContext(options);
  const seen = {requests: [], complaints: []};
  context.on("request", request => seen.requests.push(request.url()));
  context.on("console", message => ["error", "warning"].includes(message.type()) && seen.complaints.push(message.text()));
  context.on("weberror", error => seen.complaints.push(String(error.error())));
  const page = await context.newPage();
  page.setDefaultTimeout(10000);
  console.log(JSON.stringify({result: "ready"}));
  for await (const line of readline.createInterface({input: process.stdin})) {
    const {code, values} = JSON.parse(line);
    try {
      const result = await new AsyncFunction("page", "context", "seen", "values", "axe", code)(page, context, seen, values, axe);
      console.log(JSON.stringify({result: result === undefined ? null : result}));
    } catch (error) {
      console.log(JSON.stringify({error: String(error && error.stack || error)}));
    }
  }
  await browser.close();
}
main().catch(error => { console.log(JSON.stringify({error: String(error.stack)})); process.exit(1); });
