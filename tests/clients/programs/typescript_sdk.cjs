// One call of the Anthropic TypeScript SDK, told as JSON: node typescript_sdk.cjs CASE
// NODE_PATH names the folder the SDK was installed into (only require obeys it, hence .cjs). The address and
// the key come in ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, as they do for a user.
"use strict";

const { default: Anthropic } = require("@anthropic-ai/sdk");
const { VERSION } = require("@anthropic-ai/sdk/version");

// Latin, Greek and an emoji: a relay that decodes and encodes again shows in one of them.
const QUESTION = {
  model: "claude-opus-5-5",
  max_tokens: 64,
  messages: [{ role: "user", content: process.env.QUESTION_TEXT || "Say hé, γειά and \u{1F44B}." }],
};

const toldMessage = (message) => ({
  id: message.id,
  text: message.content.map((block) => block.text).join(""),
  stop_reason: message.stop_reason,
  output_tokens: message.usage.output_tokens,
});

const CASES = {
  async create(client, told) {
    Object.assign(told, toldMessage(await client.messages.create(QUESTION)));
  },

  async stream(client, told) {
    told.pieces = [];
    const events = client.messages.stream(QUESTION).on("text", (piece) => told.pieces.push(piece));
    Object.assign(told, toldMessage(await events.finalMessage()));
  },

  // The same client goes on, over the connection that it has or a new one.
  async broken_stream_then_create(client, told) {
    told.pieces = [];
    const events = client.messages.stream(QUESTION).on("text", (piece) => told.pieces.push(piece));
    await events.finalMessage().catch((error) => {
      told.raised = error.constructor.name;
    });
    Object.assign(told, toldMessage(await client.messages.create(QUESTION)));
  },

  async models(client, told) {
    told.ids = [];
    for await (const model of client.models.list()) told.ids.push(model.id);
  },

  async retrieve_models(client, told) {
    told.ids = [];
    for await (const model of client.models.list()) told.ids.push((await client.models.retrieve(model.id)).id);
  },

  async count_tokens(client, told) {
    const { model, messages } = QUESTION;
    told.input_tokens = (await client.messages.countTokens({ model, messages })).input_tokens;
  },
};

const toldError = (error) => ({
  class: error.constructor.name,
  message: error.message,
  status: error.status ?? null,
  body: error.error ?? null,
});

async function main() {
  const told = { version: VERSION };
  try {
    await CASES[process.argv[2]](new Anthropic(), told);
  } catch (error) {
    // Whatever the SDK raises is what the test wants to see.
    told.error = toldError(error);
  }
  console.log(JSON.stringify(told));
}

main();
