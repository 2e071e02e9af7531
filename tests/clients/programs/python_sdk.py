"""One call of the Anthropic Python SDK, told as JSON: python_sdk.py CASE

Runs in the SDK's own virtual environment, not in the tests' interpreter. The address and the key come in
ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, as they do for a user.
"""

import asyncio
import json
import os
import sys

import anthropic

# Latin, Greek and an emoji: a relay that decodes and encodes again shows in one of them.
QUESTION = {
    "model": "claude-opus-5-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": os.environ.get("QUESTION_TEXT")
                  or "Say hé, γειά and \N{WAVING HAND SIGN}."}],
}
COUNTED = {"model": QUESTION["model"], "messages": QUESTION["messages"]}


def credentials():
    """ANTHROPIC_AUTH_TOKEN reaches the SDK by itself; the key is given to show that it is this one."""
    key = os.environ.get("ANTHROPIC_API_KEY")
    return {"api_key": key} if key else {}


def told_message(message):
    return {
        "id": message.id,
        "text": "".join(block.text for block in message.content),
        "stop_reason": message.stop_reason,
        "output_tokens": message.usage.output_tokens,
    }


def create(told):
    told.update(told_message(anthropic.Anthropic(**credentials()).messages.create(**QUESTION)))


def stream(told):
    told["pieces"] = []
    with anthropic.Anthropic(**credentials()).messages.stream(**QUESTION) as events:
        for piece in events.text_stream:
            told["pieces"].append(piece)
        told.update(told_message(events.get_final_message()))


def broken_stream_then_create(told):
    """The same client goes on, over the connection that it has or a new one."""
    client = anthropic.Anthropic(**credentials())
    told["pieces"] = []
    try:
        with client.messages.stream(**QUESTION) as events:
            for piece in events.text_stream:
                told["pieces"].append(piece)
    except anthropic.APIError as error:
        told["raised"] = type(error).__name__
    told.update(told_message(client.messages.create(**QUESTION)))


def models(told):
    told["ids"] = [model.id for model in anthropic.Anthropic(**credentials()).models.list()]


def retrieve_models(told):
    client = anthropic.Anthropic(**credentials())
    told["ids"] = [client.models.retrieve(model.id).id for model in client.models.list()]


def count_tokens(told):
    counted = anthropic.Anthropic(**credentials()).messages.count_tokens(**COUNTED)
    told["input_tokens"] = counted.input_tokens


async def async_create(told):
    async with anthropic.AsyncAnthropic(**credentials()) as client:
        told.update(told_message(await client.messages.create(**QUESTION)))


async def async_stream(told):
    told["pieces"] = []
    async with anthropic.AsyncAnthropic(**credentials()) as client:
        async with client.messages.stream(**QUESTION) as events:
            async for piece in events.text_stream:
                told["pieces"].append(piece)
            told.update(told_message(await events.get_final_message()))


CASES = {
    "create": create,
    "stream": stream,
    "broken_stream_then_create": broken_stream_then_create,
    "models": models,
    "retrieve_models": retrieve_models,
    "count_tokens": count_tokens,
    "async_create": lambda told: asyncio.run(async_create(told)),
    "async_stream": lambda told: asyncio.run(async_stream(told)),
}


def told_error(error):
    return {
        "class": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "body": getattr(error, "body", None),
    }


def main():
    told = {"version": anthropic.__version__}
    try:
        CASES[sys.argv[1]](told)
    # Whatever the SDK raises is what the test wants to see, from any layer below it.
    except Exception as error:
        told["error"] = told_error(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
