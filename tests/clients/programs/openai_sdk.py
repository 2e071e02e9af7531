"""One use of the OpenAI Python SDK, told as JSON: openai_sdk.py CASE

Runs in the SDK's own virtual environment. The address and the key come in OPENAI_BASE_URL and OPENAI_API_KEY,
as they do for a user. The SDK does not retry: each call is seen by the gateway once.
"""

import asyncio
import json
import os
import sys
from typing import List

import openai
import pydantic

MODEL = "claude-opus-5-5"
QUESTION = {
    "model": MODEL,
    "max_completion_tokens": 64,
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Say hé, γειά and \N{WAVING HAND SIGN}."},
    ],
}
# One red pixel, and the least that is called a PDF.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
PDF = "JVBERi0xLjQKJSVFT0YK"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


class Answer(pydantic.BaseModel):
    colour: str
    numbers: List[int]


def asking(content, **more):
    return dict(QUESTION, messages=[{"role": "user", "content": content}], **more)


def client():
    return openai.OpenAI(max_retries=0)


def told_usage(usage):
    return usage and {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
    }


def told_calls(calls):
    return [[call.id, call.type, call.function.name, call.function.arguments] for call in calls or []]


def told_completion(completion):
    choice = completion.choices[0]
    return {
        "id": completion.id,
        "object": completion.object,
        "model": completion.model,
        "text": choice.message.content,
        "reasoning": getattr(choice.message, "reasoning_content", None),
        "finish_reason": choice.finish_reason,
        "calls": told_calls(choice.message.tool_calls),
        "usage": told_usage(completion.usage),
    }


class Pieces:
    """What the chunks of a stream tell, as somebody who reads them one by one sees it."""

    def __init__(self, told):
        self.told = told
        told.update(pieces=[], reasoning=None, finish_reason=None, usage=None, calls=[], text="", ids=[])

    def add(self, chunk):
        told = self.told
        if chunk.id not in told["ids"]:
            told["ids"].append(chunk.id)
        if chunk.usage:
            told["usage"] = told_usage(chunk.usage)
        for choice in chunk.choices:
            told["finish_reason"] = choice.finish_reason or told["finish_reason"]
            if choice.delta.content:
                told["pieces"].append(choice.delta.content)
                told["text"] += choice.delta.content
            thought = getattr(choice.delta, "reasoning_content", None)
            if thought:
                told["reasoning"] = (told["reasoning"] or "") + thought
            for call in choice.delta.tool_calls or []:
                self.add_call(call)

    def add_call(self, call):
        calls = self.told["calls"]
        if call.index == len(calls):
            calls.append([call.id, call.type, call.function.name, ""])
        calls[call.index][3] += call.function.arguments or ""


def create(told):
    told.update(told_completion(client().chat.completions.create(**QUESTION)))


def stream(told):
    pieces = Pieces(told)
    for chunk in client().chat.completions.create(stream=True, **QUESTION):
        pieces.add(chunk)


def broken_stream_then_create(told):
    """The same client goes on, over the connection that it has or a new one."""
    both = client()
    pieces = Pieces(told)
    try:
        for chunk in both.chat.completions.create(stream=True, **QUESTION):
            pieces.add(chunk)
    except openai.APIError as error:
        told["raised"] = type(error).__name__
    told.update(told_completion(both.chat.completions.create(**QUESTION)))


def stream_usage(told):
    pieces = Pieces(told)
    options = {"include_usage": True}
    for chunk in client().chat.completions.create(stream=True, stream_options=options, **QUESTION):
        pieces.add(chunk)


def stream_helper(told):
    with client().chat.completions.stream(**QUESTION) as events:
        told["pieces"] = [event.delta for event in events if event.type == "content.delta"]
        told.update(told_completion(events.get_final_completion()))


async def async_create(told):
    async with openai.AsyncOpenAI(max_retries=0) as asynchronous:
        told.update(told_completion(await asynchronous.chat.completions.create(**QUESTION)))


async def async_stream(told):
    pieces = Pieces(told)
    async with openai.AsyncOpenAI(max_retries=0) as asynchronous:
        async for chunk in await asynchronous.chat.completions.create(stream=True, **QUESTION):
            pieces.add(chunk)


def tools(told):
    """Two rounds: the calls of the first answer are answered, and the model has the last word."""
    messages = [{"role": "user", "content": "How is the weather in Rome and in Oslo?"}]
    asked = dict(QUESTION, messages=messages, tools=TOOLS, tool_choice="auto", parallel_tool_calls=True)
    first = client().chat.completions.create(**asked)
    told["first"] = told_completion(first)
    messages.append(first.choices[0].message.model_dump(exclude_none=True))
    for call in first.choices[0].message.tool_calls:
        city = json.loads(call.function.arguments).get("city", "nowhere")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny in " + city})
    told.update(told_completion(client().chat.completions.create(**asked)))


def stream_tools(told):
    pieces = Pieces(told)
    for chunk in client().chat.completions.create(stream=True, tools=TOOLS, tool_choice="required", **QUESTION):
        pieces.add(chunk)


def image(told):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG, "detail": "low"}},
    ]
    told.update(told_completion(client().chat.completions.create(**asking(parts))))


def pdf(told):
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + PDF}
    parts = [{"type": "file", "file": file}, {"type": "text", "text": "What does it say?"}]
    told.update(told_completion(client().chat.completions.create(**asking(parts))))


def parse(told):
    completion = client().chat.completions.parse(response_format=Answer, **QUESTION)
    told["parsed"] = completion.choices[0].message.parsed.model_dump()


def two_choices(told):
    client().chat.completions.create(n=2, **QUESTION)


def models(told):
    told["ids"] = [model.id for model in client().models.list()]
    told["retrieved"] = [client().models.retrieve(name).id for name in told["ids"]]
    told["owners"] = sorted({type(model.owned_by).__name__ for model in client().models.list()})


def unknown_model(told):
    client().models.retrieve("no-such-model")


def errors(told):
    """As many calls as ERRORS_COUNT says, each of which should fail."""
    told["raised"] = []
    for _ in range(int(os.environ["ERRORS_COUNT"])):
        try:
            client().chat.completions.create(**QUESTION)
            told["raised"].append(None)
        except openai.APIError as error:
            told["raised"].append(told_error(error))


CASES = {
    "create": create,
    "stream": stream,
    "broken_stream_then_create": broken_stream_then_create,
    "stream_usage": stream_usage,
    "stream_helper": stream_helper,
    "async_create": lambda told: asyncio.run(async_create(told)),
    "async_stream": lambda told: asyncio.run(async_stream(told)),
    "tools": tools,
    "stream_tools": stream_tools,
    "image": image,
    "pdf": pdf,
    "parse": parse,
    "two_choices": two_choices,
    "models": models,
    "unknown_model": unknown_model,
    "errors": errors,
}


def told_error(error):
    return {
        "class": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "type": getattr(error, "type", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "request_id": getattr(error, "request_id", None),
    }


def main():
    told = {"version": openai.__version__}
    try:
        CASES[sys.argv[1]](told)
    # Whatever the SDK raises is what the test wants to see, from any layer below it.
    except Exception as error:
        told["error"] = told_error(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
