"""A collected stream is the message that the vendor's own SDK makes of the same bytes.

The SDK is asked directly, without a gateway: only what it makes of the events is of interest here.
"""

import json
import unittest

import claude_gateway as gw
from tests.clients import harness
from tests.support import ScriptedUpstream
from tests.support import message
from tests.support import sse_event
from tests.support import stream_events
from tests.support import stream_response
from tests.support import tool_use_events

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
STOP = sse_event({"type": "message_stop"})
TEXT = {"type": "text", "text": ""}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
USAGE = {"input_tokens": 10, "output_tokens": 1}
CITATIONS = [
    {"type": "char_location", "cited_text": "sky", "document_index": 0, "document_title": "T",
     "start_char_index": 0, "end_char_index": 3, "file_id": None},
    {"type": "web_search_result_location", "cited_text": "s\u00eba", "encrypted_index": "eA==",
     "title": None, "url": "https://example.com/"},
]
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
    {"type": "web_search_result", "url": "https://example.com/", "title": "E", "encrypted_content": "eA==", "page_age": None},
]}
RAN = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": {
    "type": "code_execution_result", "stdout": "1\n", "stderr": "", "return_code": 0, "content": [],
}}

# As the API writes it: spaces after colons, numbers as they are, a ping after the first block's start.
RECORDED = b"""\
event: message_start
data: {"type":"message_start","message":{"model":"claude-opus-5-5","id":"msg_01XFD","type":"message","role":"assistant",\
"content":[],"stop_reason":null,"stop_sequence":null,"stop_details":null,"usage":{"input_tokens":472,\
"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,\
"ephemeral_1h_input_tokens":0},"output_tokens":2,"service_tier":"standard","inference_geo":"global"}}   }

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}     }

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Okay"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":", let\\u2019s \\ud83d\\udc4b"}  }

event: content_block_stop
data: {"type":"content_block_stop","index":0    }

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_01T1x","name":"get_weather",\
"input":{},"caller":{"type":"direct"}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"location\\": \\"San"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":" Francisc\\u00f3\\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null,"stop_details":null},\
"usage":{"input_tokens":472,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":89}}

event: message_stop
data: {"type":"message_stop"          }

"""


def started(**members):
    begun = dict(message(), content=[], stop_reason=None, usage=USAGE)
    begun.update(members)
    return sse_event({"type": "message_start", "message": begun})


def block(index, start, *deltas):
    """The events of one content block; a delta is its type and its one member."""
    events = [{"type": "content_block_start", "index": index, "content_block": start}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return b"".join(map(sse_event, events + [{"type": "content_block_stop", "index": index}]))


def ended(reason="end_turn", usage=(), delta=(), **members):
    last = {"type": "message_delta", "delta": dict({"stop_reason": reason, "stop_sequence": None}, **dict(delta))}
    return sse_event(dict(last, usage=dict({"output_tokens": 9}, **dict(usage)), **members)) + STOP


def one_block(start, *deltas):
    return started() + block(0, start, *deltas) + ended()


def texts(*pieces):
    return [{"type": "text_delta", "text": piece} for piece in pieces]


def pieces_of_input(*pieces):
    return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


def thinking(*pieces, signature="c2lnbmF0dXJl"):
    return [{"type": "thinking_delta", "thinking": piece} for piece in pieces] + [
        {"type": "signature_delta", "signature": signature}]


NESTED = {"path": "h\u00e9 \U0001f44b", "deep": [{"n": [1, -2.5, 1e30, None, True, {}]}], "quoted": "\"\\\n\t", "": []}
CACHED = dict(USAGE, cache_creation_input_tokens=3, cache_read_input_tokens=4, service_tier="standard",
              cache_creation={"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0})
REFUSED = {"type": "refusal", "category": "cyber", "explanation": None}

STREAMS = {
    "text": b"".join(stream_events("Hello w\u00f6rld \U0001f44b")),
    "text that is empty": one_block(TEXT),
    "text begun in the start": one_block({"type": "text", "text": "a"}, *texts("b", "", "c")),
    "no blocks": started() + ended(),
    "as recorded": RECORDED,
    "as recorded, CRLF": RECORDED.replace(b"\n", b"\r\n"),
    "several blocks": started() + block(0, TEXT, *texts("a")) + block(1, TEXT, *texts("b")) + block(
        2, TOOL, *pieces_of_input('{"a":1}')) + ended("tool_use"),
    "tool": b"".join(tool_use_events("look", {"path": "/tmp/a"})),
    "tool, nested and beyond ASCII": b"".join(tool_use_events("look", NESTED)),
    "tool, escapes cut in two": one_block(TOOL, *pieces_of_input('{"a":"\\', 'u00e', '9\\ud83d', '\\udc4b"', ' , "b" : 1.0 } ')),
    "tool without a piece of input": one_block(TOOL),
    "tool with one empty piece": one_block(TOOL, *pieces_of_input("")),
    "tool with an empty object": one_block(TOOL, *pieces_of_input("", "{", "}")),
    "tool with its input in the start": one_block(dict(TOOL, input={"a": [1]})),
    "two tools": started() + block(0, TOOL, *pieces_of_input('{"a":1}')) + block(
        1, dict(TOOL, id="toolu_2"), *pieces_of_input('{"a":2}')) + ended("tool_use"),
    "thinking": started() + block(0, THINKING, *thinking("I ", "th\u00efnk")) + block(1, TEXT, *texts("so")) + ended(),
    "thinking omitted": one_block(THINKING, *thinking()),
    "thinking with two signatures": one_block(THINKING, *thinking("a"), *thinking(signature="bGFzdA==")),
    "thinking with a progress count": one_block(
        THINKING, {"type": "thinking_delta", "thinking": "a", "estimated_tokens": 50}, *thinking()),
    "redacted thinking": started() + block(0, {"type": "redacted_thinking", "data": "ZW5j"}) + block(
        1, TEXT, *texts("a")) + ended(),
    "citations": one_block(dict(TEXT, citations=[]), *texts("a"), *(
        {"type": "citations_delta", "citation": citation} for citation in CITATIONS), *texts("b")),
    "citations where there were none": one_block(TEXT, {"type": "citations_delta", "citation": CITATIONS[0]}),
    "server tools": started() + block(0, SEARCH, *pieces_of_input('{"query":', ' "x"}')) + block(1, FOUND) + block(
        2, RAN) + block(3, {"type": "container_upload", "file_id": "file_1"}) + block(4, TEXT, *texts("a")) + ended(
        usage={"server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}},
        delta={"container": {"id": "c_1", "expires_at": "2026-11-21T00:00:00Z"}}),
    "cache counts of the start stay": started(usage=CACHED) + ended(),
    "cache counts of the end win": started(usage=CACHED) + ended(usage={
        "input_tokens": 11, "cache_read_input_tokens": 0, "cache_creation_input_tokens": None,
        "output_tokens_details": {"thinking_tokens": 5}}),
    "several message_delta": started() + sse_event({
        "type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}, "usage": {"output_tokens": 4},
    }) + ended(),
    "stop sequence": started() + ended("stop_sequence", delta={"stop_sequence": "###"}),
    "max tokens": started() + block(0, TEXT, *texts("cut")) + ended("max_tokens"),
    "refusal": started() + ended("refusal", delta={"stop_details": REFUSED}),
    "pause": started() + block(0, SEARCH, *pieces_of_input("{}")) + ended("pause_turn"),
    "an unknown block": one_block({"type": "future", "data": "x", "n": {"a": [1.5, None]}}),
    "an unknown event": started() + b'event: future\ndata: {"type":"future","delta":5}\n\n' + ended(),
    "an unknown member of message_start": started(future={"a": 1}) + ended(),
    "pings and comments": PING + b": hello\n\n" + started() + PING + block(0, TEXT, *texts("a")).replace(
        b"event: ", b": note\nevent: ") + PING + ended(),
}
BETA_STREAMS = {
    "text": STREAMS["text"],
    "compaction": one_block({"type": "compaction", "content": None, "encrypted_content": None},
                            {"type": "compaction_delta", "content": "summary", "encrypted_content": "eA=="}),
    "context management": started(context_management=None) + ended(context_management={"applied_edits": [
        {"type": "clear_tool_uses_20250919", "cleared_input_tokens": 5, "cleared_tool_uses": 1}]}),
    "transformations of the start stay": started(input_transformations=[]) + ended(input_transformations=None),
    "fallback": started() + block(0, {
        "type": "fallback", "from": {"model": "claude-opus-5-5"}, "to": {"model": "claude-sonnet-5"},
        "trigger": {"type": "refusal", "category": None},
    }) + block(1, TEXT, *texts("a")) + ended(),
    "iterations": started() + ended(usage={"iterations": [dict(
        USAGE, type="message", model="claude-opus-5-5", cache_creation=None, cache_creation_input_tokens=0, cache_read_input_tokens=0)]}),
    "MCP": started() + block(0, {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "x", "server_name": "s", "input": {}},
                             *pieces_of_input('{"a":', '"b"}')) + block(1, {
        "type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False,
        "content": [{"type": "text", "text": "r", "citations": None}]}) + ended(),
}
CUT_INPUT = '{"whole": 1, "half": "tex'
# What the collector keeps and the SDK does not: (the stream, the difference in the SDK's message). The
# collector stands between an upstream and a client of any version, so it must not forget what it does not know.
KEPT_HERE = {
    "an unknown delta": (
        one_block({"type": "future", "data": "x"}, {"type": "future_delta", "data": "y", "list": [1]}),
        lambda told: told["content"][0].update(data="xy", list=[1])),
    "an unknown member of the delta": (
        started() + ended(delta={"safeguard_results": [{"type": "dangerous_tool_use"}]}),
        lambda told: told.update(safeguard_results=[{"type": "dangerous_tool_use"}])),
    "an unknown member of the event": (
        started() + ended(future=[1]),
        lambda told: told.update(future=[1])),
    "an unknown count": (
        started() + ended(usage={"future_tokens": 5}),
        lambda told: told["usage"].update(future_tokens=5)),
    "a stop reason that a later event leaves out": (
        started() + ended("tool_use").replace(STOP, b"") + ended(None),
        lambda told: told.update(stop_reason="tool_use")),
    "half a tool input, whose whole members look like a call": (
        one_block(TOOL, *pieces_of_input(CUT_INPUT)),
        lambda told: told["content"][0].update(input={"INVALID_JSON": CUT_INPUT})),
}
# The SDK gives up on these altogether.
ONLY_HERE = {
    "a gap in the indexes": (started() + block(3, TEXT, *texts("a")) + ended(), {"type": "text", "text": "a"}),
    "tool input that is no JSON": (
        one_block(TOOL, *pieces_of_input("{]")), dict(TOOL, input={"INVALID_JSON": "{]"})),
}


def collected(data):
    collector = gw.MessageCollector()
    collector.feed(data)
    # Through JSON and back, as a client gets it: half a surrogate pair finds its other half.
    return json.loads(json.dumps(collector.message()))


def without_added(told, ours):
    """What the SDK told, without the nulls of members that no event had.

    It assigns stop_sequence and stop_details at each message_delta, told or not.
    """
    if isinstance(told, dict) and isinstance(ours, dict):
        return {name: without_added(value, ours.get(name)) for name, value in told.items()
                if value is not None or name in ours}
    if isinstance(told, list) and isinstance(ours, list) and len(told) == len(ours):
        return [without_added(*pair) for pair in zip(told, ours)]
    return told


class CollectTest(harness.ClientTest):
    maxDiff = None

    def told(self, door, streams):
        """What the SDK makes of each of the streams."""
        sdk = harness.SdkProgram(
            self.folder,
            [harness.installed("sdk-python-current", "bin", "python"), harness.program("python_messages.py"), door],
            {},
        )
        answers = [stream_response([data]) for data in streams]
        upstream = self.entered(ScriptedUpstream(respond=harness.Answers(answers)))
        told = sdk.told(upstream.url, harness.api_key(harness.UPSTREAM_KEY), str(len(answers)))
        self.assertEqual((len(told), len(upstream.requests)), (len(answers), len(answers)))
        return told

    def assert_same(self, ours, told):
        # As text, since to Python 1, 1.0 and True are equal.
        self.assertEqual(json.dumps(ours, indent=1, sort_keys=True),
                         json.dumps(without_added(told, ours), indent=1, sort_keys=True))

    def assert_all_same(self, door, streams):
        for (name, data), told in zip(streams.items(), self.told(door, streams.values())):
            with self.subTest(name):
                self.assertNotIn("raised", told)
                self.assert_same(collected(data), told)

    def test_messages(self):
        self.assert_all_same("messages", STREAMS)

    def test_beta(self):
        self.assert_all_same("beta", BETA_STREAMS)

    def test_what_only_the_collector_keeps(self):
        streams = [data for data, _ in KEPT_HERE.values()]
        for (name, (data, add)), told in zip(KEPT_HERE.items(), self.told("messages", streams)):
            with self.subTest(name):
                self.assertNotIn("raised", told)
                self.assertNotEqual(collected(data), without_added(told, collected(data)))
                add(told)
                self.assert_same(collected(data), told)

    def test_what_only_the_collector_takes(self):
        streams = [data for data, _ in ONLY_HERE.values()]
        for (name, (data, expected)), told in zip(ONLY_HERE.items(), self.told("messages", streams)):
            with self.subTest(name):
                self.assertIn("raised", told)
                self.assertEqual(collected(data)["content"], [expected])


if __name__ == "__main__":
    unittest.main()
