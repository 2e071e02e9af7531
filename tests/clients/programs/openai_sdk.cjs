// One use of the OpenAI TypeScript SDK, told as JSON: node openai_sdk.cjs CASE
// NODE_PATH names the folder the SDK was installed into. The address and the key come in OPENAI_BASE_URL and
// OPENAI_API_KEY, as they do for a user. The SDK does not retry. It asks and tells what openai_sdk.py does.
"use strict";

const { default: OpenAI } = require("openai");
const { VERSION } = require("openai/version");

const QUESTION = {
  model: "claude-opus-5-5",
  max_completion_tokens: 64,
  messages: [
    { role: "developer", content: "Be brief." },
    { role: "user", content: "Say hé, γειά and \u{1F44B}." },
  ],
};
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const PDF = "JVBERi0xLjQKJSVFT0YK";
const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const SCHEMA = {
  type: "object",
  properties: { colour: { type: "string" }, numbers: { type: "array", items: { type: "integer" } } },
  required: ["colour", "numbers"],
  additionalProperties: false,
};

// Before 5.0 these stood in the beta.
const helpers = (client) => (client.chat.completions.parse ? client.chat.completions : client.beta.chat.completions);

const asking = (content) => ({ ...QUESTION, messages: [{ role: "user", content }] });

const toldUsage = (usage) =>
  usage
    ? {
        prompt: usage.prompt_tokens,
        completion: usage.completion_tokens,
        total: usage.total_tokens,
        cached: usage.prompt_tokens_details.cached_tokens,
      }
    : null;

const toldCalls = (calls) =>
  (calls ?? []).map((call) => [call.id, call.type, call.function.name, call.function.arguments]);

const toldCompletion = (completion) => {
  const { message, finish_reason } = completion.choices[0];
  return {
    id: completion.id,
    object: completion.object,
    model: completion.model,
    text: message.content,
    reasoning: message.reasoning_content ?? null,
    finish_reason,
    calls: toldCalls(message.tool_calls),
    usage: toldUsage(completion.usage),
  };
};

// What the chunks of a stream tell, as somebody who reads them one by one sees it.
async function readPieces(stream, told) {
  Object.assign(told, { pieces: [], reasoning: null, finish_reason: null, usage: null, calls: [], text: "", ids: [] });
  for await (const chunk of stream) {
    if (!told.ids.includes(chunk.id)) told.ids.push(chunk.id);
    if (chunk.usage) told.usage = toldUsage(chunk.usage);
    for (const { delta, finish_reason } of chunk.choices) {
      told.finish_reason = finish_reason ?? told.finish_reason;
      if (delta.content) {
        told.pieces.push(delta.content);
        told.text += delta.content;
      }
      if (delta.reasoning_content) told.reasoning = (told.reasoning ?? "") + delta.reasoning_content;
      for (const call of delta.tool_calls ?? []) {
        if (call.index === told.calls.length) told.calls.push([call.id, call.type, call.function.name, ""]);
        told.calls[call.index][3] += call.function.arguments ?? "";
      }
    }
  }
}

const CASES = {
  async create(client, told) {
    Object.assign(told, toldCompletion(await client.chat.completions.create(QUESTION)));
  },

  async stream(client, told) {
    await readPieces(await client.chat.completions.create({ ...QUESTION, stream: true }), told);
  },

  // The same client goes on, over the connection that it has or a new one.
  async broken_stream_then_create(client, told) {
    const stream = await client.chat.completions.create({ ...QUESTION, stream: true });
    await readPieces(stream, told).catch((error) => {
      told.raised = error.constructor.name;
    });
    Object.assign(told, toldCompletion(await client.chat.completions.create(QUESTION)));
  },

  async stream_usage(client, told) {
    const asked = { ...QUESTION, stream: true, stream_options: { include_usage: true } };
    await readPieces(await client.chat.completions.create(asked), told);
  },

  async stream_helper(client, told) {
    const pieces = [];
    const stream = helpers(client).stream(QUESTION).on("content", (piece) => pieces.push(piece));
    Object.assign(told, toldCompletion(await stream.finalChatCompletion()), { pieces });
  },

  async tools(client, told) {
    const messages = [{ role: "user", content: "How is the weather in Rome and in Oslo?" }];
    const asked = { ...QUESTION, messages, tools: TOOLS, tool_choice: "auto", parallel_tool_calls: true };
    const first = await client.chat.completions.create(asked);
    told.first = toldCompletion(first);
    messages.push(first.choices[0].message);
    for (const call of first.choices[0].message.tool_calls) {
      const { city } = JSON.parse(call.function.arguments);
      messages.push({ role: "tool", tool_call_id: call.id, content: "sunny in " + (city ?? "nowhere") });
    }
    Object.assign(told, toldCompletion(await client.chat.completions.create(asked)));
  },

  async stream_tools(client, told) {
    const asked = { ...QUESTION, tools: TOOLS, tool_choice: "required", stream: true };
    await readPieces(await client.chat.completions.create(asked), told);
  },

  async image(client, told) {
    const url = "data:image/png;base64," + PNG;
    const parts = [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url, detail: "low" } },
    ];
    Object.assign(told, toldCompletion(await client.chat.completions.create(asking(parts))));
  },

  async pdf(client, told) {
    const file = { filename: "a.pdf", file_data: "data:application/pdf;base64," + PDF };
    const parts = [{ type: "file", file }, { type: "text", text: "What does it say?" }];
    Object.assign(told, toldCompletion(await client.chat.completions.create(asking(parts))));
  },

  async parse(client, told) {
    const response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: SCHEMA } };
    const completion = await helpers(client).parse({ ...QUESTION, response_format });
    told.parsed = completion.choices[0].message.parsed;
  },

  async two_choices(client) {
    await client.chat.completions.create({ ...QUESTION, n: 2 });
  },

  async models(client, told) {
    told.ids = [];
    told.retrieved = [];
    const owners = new Set();
    for await (const model of client.models.list()) {
      told.ids.push(model.id);
      owners.add(typeof model.owned_by === "string" ? "str" : typeof model.owned_by);
      told.retrieved.push((await client.models.retrieve(model.id)).id);
    }
    told.owners = [...owners];
  },

  async unknown_model(client) {
    await client.models.retrieve("no-such-model");
  },

  async errors(client, told) {
    told.raised = [];
    for (let left = Number(process.env.ERRORS_COUNT); left > 0; left--) {
      await client.chat.completions.create(QUESTION).then(
        () => told.raised.push(null),
        (error) => told.raised.push(toldError(error)),
      );
    }
  },
};

const toldError = (error) => ({
  class: error.constructor.name,
  message: error.message,
  status: error.status ?? null,
  type: error.type ?? null,
  code: error.code ?? null,
  param: error.param ?? null,
  request_id: error.requestID ?? error.request_id ?? null,
});

async function main() {
  const told = { version: VERSION };
  try {
    await CASES[process.argv[2]](new OpenAI({ maxRetries: 0 }), told);
  } catch (error) {
    // Whatever the SDK raises is what the test wants to see.
    told.error = toldError(error);
  }
  console.log(JSON.stringify(told));
}

main();
