"""What the Anthropic Python SDK makes of some streams, as a list in JSON: python_messages.py DOOR COUNT

DOOR is "messages" or "beta". Runs in the SDK's own virtual environment and asks COUNT times one after the
other: starting it for each stream would take longer than all of them.
"""

import json
import sys

import anthropic

QUESTION = {
    "model": "claude-opus-5-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Say it."}],
}


def final_message(door):
    with door.stream(**QUESTION) as events:
        # Unset members are those that no event has told.
        return events.get_final_message().model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)


def told(door):
    try:
        return final_message(door)
    # Whatever the SDK raises is what the test wants to see, from any layer below it.
    except Exception as error:
        return {"raised": type(error).__name__, "words": str(error)}


def main():
    client = anthropic.Anthropic(max_retries=0)
    door = {"messages": client.messages, "beta": client.beta.messages}[sys.argv[1]]
    print(json.dumps([told(door) for _ in range(int(sys.argv[2]))]))


if __name__ == "__main__":
    main()
