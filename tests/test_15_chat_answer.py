"""Section 15, answers: a message, streamed or whole, in OpenAI's shape."""

import copy
import json
import random
import sys
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests.support import error_body
from tests.support import every_split
from tests.support import message
from tests.support import sse_event
from tests.support import stream_events
from tests.support import to_json
from tests.support import tool_use_events

ID, CREATED, MODEL = "chatcmpl-1", 1790035200, "claude-asked-for"
DONE = b"data: [DONE]\n\n"
TEXT = {"type": "text", "text": ""}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
CITATION = {"type": "char_location", "cited_text": "sky", "document_index": 0,
            "document_title": None, "start_char_index": 0, "end_char_index": 3}


def text_delta(text):
    return {"type": "text_delta", "text": text}


def thought_delta(text):
    return {"type": "thinking_delta", "thinking": text}


def signature_delta(text):
    return {"type": "signature_delta", "signature": text}


def json_delta(text):
    return {"type": "input_json_delta", "partial_json": text}


def tool(name="look", tool_id="toolu_1", **members):
    return dict({"type": "tool_use", "id": tool_id, "name": name, "input": {}}, **members)


def started(**members):
    begun = dict(message(), content=[], stop_reason=None, usage={"input_tokens": 10, "output_tokens": 1})
    begun.update(members)
    return {"type": "message_start", "message": begun}


def block_events(index, block, *deltas):
    begun = {"type": "content_block_start", "index": index, "content_block": block}
    middle = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [begun, *middle, {"type": "content_block_stop", "index": index}]


def ended(stop_reason="end_turn", usage=None, **delta):
    return [{"type": "message_delta", "delta": dict(delta, stop_reason=stop_reason),
             "usage": usage or {"output_tokens": 9}}, {"type": "message_stop"}]


def whole(*blocks, stop_reason="end_turn", **last):
    """The events of a message; a block is (content_block, delta, delta ...)."""
    events = [started()]
    for index, (block, *deltas) in enumerate(blocks):
        events += block_events(index, block, *deltas)
    return events + ended(stop_reason, **last)


def new_stream(include_usage=False, **shape):
    return gw.ChatStream(ID, CREATED, MODEL, include_usage, **shape)


def relayed(pieces, chat):
    """All that goes down for these bytes, and the end of it."""
    decoder = gw.SseDecoder()
    out = [chat.feed(event) for piece in pieces for event in decoder.feed(piece)]
    return b"".join(out) + chat.finish()


def stream_of(events):
    return b"".join(map(sse_event, events))


def parsed_frames(data):
    """The JSON of every frame; checks the form of each on the way."""
    frames = data.decode("ascii").split("\n\n")
    assert frames.pop() == "", data[-50:]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), frames
    texts = [frame[len("data: "):] for frame in frames]
    if texts and texts[-1] == "[DONE]":
        texts.pop()
    assert "[DONE]" not in texts, texts

    def refuse(name):
        raise AssertionError("%s is not JSON" % name)
    return [json.loads(text, parse_constant=refuse) for text in texts]


def deltas_of(events, **shape):
    """(delta or finish_reason) of each chunk behind the role."""
    data = relayed([stream_of(events)], new_stream(**shape))
    assert data.endswith(DONE), data[-80:]
    role, *chunks = [frame["choices"][0] for frame in parsed_frames(data)]
    assert role["delta"] == {"role": "assistant", "content": ""}, role
    assert chunks[-1]["delta"] == {}, chunks[-1]
    assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])
    return [chunk["delta"] for chunk in chunks[:-1]] + [chunks[-1]["finish_reason"]]


def accumulated(data):
    """The completion that a client builds out of the chunks, as the SDKs' helpers do."""
    answer, finish, usage = {"role": None, "content": None, "refusal": None}, None, None
    calls = {}
    for frame in parsed_frames(data):
        usage = frame.get("usage") or usage
        for choice in frame["choices"]:
            finish = choice["finish_reason"] or finish
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    for call in value:
                        extend_call(calls.setdefault(call["index"], {}), call)
                elif name == "function_call":
                    extend_call(answer.setdefault("function_call", {}), value)
                else:
                    answer[name] = (answer.get(name) or "") + value
    if calls:
        assert sorted(calls) == list(range(len(calls))), calls
        answer["tool_calls"] = [calls[index] for index in sorted(calls)]
    if (calls or "function_call" in answer) and not answer["content"]:
        answer["content"] = None
    return answer, finish, usage


def extend_call(call, piece):
    """Members of a call come whole but for the texts of what is in it."""
    for name, value in piece.items():
        if isinstance(value, dict):
            extend_call(call.setdefault(name, {}), value)
        elif name in ("arguments", "input"):
            call[name] = call.get(name, "") + value
        elif name != "index":
            assert name not in call, call
            call[name] = value


def comparable(answer):
    """Arguments are compared by what they mean: their spaces are the model's."""
    answer = copy.deepcopy(answer)
    functions = [call["function"] for call in answer.get("tool_calls", []) if "function" in call]
    places = [(function, "arguments") for function in functions] + [(answer, "content")]
    if "function_call" in answer:
        places.append((answer["function_call"], "arguments"))
    for place, name in places:
        try:
            place[name] = json.loads(place[name])
        except (TypeError, ValueError):
            pass  # null, or a text that is none of JSON: compared as it is
    return answer


SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
    {"type": "web_search_result", "url": "https://a", "title": "A", "encrypted_content": "eA=="}]}
EMPTY_THOUGHT = (THINKING, signature_delta("b21pdHRlZA=="))

# Streams that every test below goes through.
STREAMS = {
    "text": [json.loads(event.split(b"data: ")[1]) for event in stream_events("Hello w\u00f6rld")],
    "a tool": [json.loads(event.split(b"data: ")[1])
               for event in tool_use_events("look", {"path": "\u00e4", "deep": [{"n": 1.5}]})],
    "nothing": whole(),
    "an empty text": whole((TEXT,)),
    "letters": whole((TEXT, text_delta("h\u00e9 \U0001f44b \" \\ \n\r\t\x00 </s> \u2028"))),
    "text in the start": whole((dict(TEXT, text="a"), text_delta("b"))),
    "two texts": whole((TEXT, text_delta("a")), (TEXT, text_delta("b"))),
    "citations": whole((TEXT, {"type": "citations_delta", "citation": CITATION}, text_delta("sky"))),
    "thinking": whole((THINKING, thought_delta("hm"), thought_delta(" so"), signature_delta("c2ln")),
                      (TEXT, text_delta("yes"))),
    "two thoughts": whole((THINKING, thought_delta("a"), signature_delta("1")), EMPTY_THOUGHT,
                          (THINKING, thought_delta("b"), thought_delta("c"), signature_delta("2")),
                          (TEXT, text_delta("yes"))),
    "omitted thinking": whole(EMPTY_THOUGHT, (TEXT, text_delta("yes"))),
    "redacted thinking": whole(({"type": "redacted_thinking", "data": "ZW5j"},),
                               (tool(), json_delta('{"a":1}')), stop_reason="tool_use"),
    "parallel tools": whole((THINKING, thought_delta("two"), signature_delta("c2ln")),
                            (TEXT, text_delta("I look.")),
                            (tool(), json_delta(""), json_delta('{"a": '), json_delta("1}")),
                            (tool("see", "toolu_2"), json_delta('{"b":"\u00e4\\n"}')),
                            stop_reason="tool_use"),
    "no arguments": whole((tool(), json_delta("")), (tool("see", "toolu_2"),), stop_reason="tool_use"),
    "blank arguments": whole((tool(), json_delta(" "), json_delta("\n")), stop_reason="tool_use"),
    "arguments in the start": whole((tool(input={"a": [1]}),), stop_reason="tool_use"),
    "arguments in both": whole((tool(input={"a": [1]}), json_delta('{"b":2}')), stop_reason="tool_use"),
    "arguments cut": whole((tool(), json_delta('{"a": "tex')), stop_reason="max_tokens"),
    "arguments no JSON": whole((tool(), json_delta('{"a": un'), json_delta("quoted}")), stop_reason="tool_use"),
    "no id": whole((tool(id=None), json_delta("{}")), (tool(id=5), json_delta("{}")), stop_reason="tool_use"),
    "server tools": whole((SEARCH, json_delta('{"query":'), json_delta('"x"}')), (FOUND,),
                          (TEXT, text_delta("found")), (tool(), json_delta("{}")), stop_reason="tool_use"),
    "unknown kinds": whole(({"type": "future", "data": "x"}, {"type": "future_delta", "data": "y"}),
                           (TEXT, {"type": "future_delta", "data": "no"}, text_delta("yes"))),
    "unknown events": [started(), {"type": "ping"}, {"type": "future"},
                       *block_events(0, TEXT, text_delta("a")), {"type": "ping"}, *ended()],
    "refusal": whole((TEXT, text_delta("I ca")), stop_reason="refusal",
                     stop_details={"type": "refusal", "explanation": "Not this."}),
    "refusal without words": whole(stop_reason="refusal"),
    "a reason to come": whole((TEXT, text_delta("a")), stop_reason="future"),
    "a reason to come, with a call": whole((tool(), json_delta("{}")), stop_reason="future"),
    "no reason": whole((tool(), json_delta("{}")), stop_reason=None),
    "usage": [started(usage={"input_tokens": 3, "cache_creation_input_tokens": 5,
                             "cache_read_input_tokens": 7, "output_tokens": 1}),
              *block_events(0, TEXT, text_delta("a")),
              {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5, "input_tokens": None}},
              *ended(usage={"output_tokens": 11, "output_tokens_details": {"thinking_tokens": 4}})],
    "iterations": whole((TEXT, text_delta("a")), usage={
        "input_tokens": 2, "output_tokens": 3, "iterations": [
            {"type": "compaction", "input_tokens": 100, "output_tokens": 20,
             "output_tokens_details": {"thinking_tokens": 6}},
            {"type": "message", "input_tokens": 2, "output_tokens": 3, "cache_read_input_tokens": 9}]}),
    "interleaved": [started(),
                    {"type": "content_block_start", "index": 0, "content_block": tool()},
                    {"type": "content_block_start", "index": 1, "content_block": tool("see", "toolu_2")},
                    {"type": "content_block_delta", "index": 1, "delta": json_delta('{"b":2')},
                    {"type": "content_block_delta", "index": 0, "delta": json_delta('{"a":1}')},
                    {"type": "content_block_delta", "index": 1, "delta": json_delta("}")},
                    {"type": "content_block_stop", "index": 0},
                    {"type": "content_block_stop", "index": 1}, *ended("tool_use")],
    "no block stops": [event for event in whole((TEXT, text_delta("a")), (tool(),), stop_reason="tool_use")
                       if event["type"] != "content_block_stop"],
}


def function_start(index, name="look", tool_id="toolu_1"):
    return {"tool_calls": [{"index": index, "id": tool_id, "type": "function",
                            "function": {"name": name, "arguments": ""}}]}


def function_piece(index, text):
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def says(text):
    return {"content": text}


def thinks(text):
    return {"reasoning_content": text}


# What becomes of them: the deltas behind the role chunk, and the finish_reason.
CHUNKS = {
    "text": [says("Hello"), says(" w\u00f6rld"), "stop"],
    "a tool": [function_start(0), *(function_piece(0, text) for text in (
        '{"path"', ':"\u00e4","d', 'eep":[{', '"n":1.5', "}]}")), "tool_calls"],
    "nothing": ["stop"],
    "an empty text": ["stop"],
    "letters": [says("h\u00e9 \U0001f44b \" \\ \n\r\t\x00 </s> \u2028"), "stop"],
    "text in the start": [says("a"), says("b"), "stop"],
    "two texts": [says("a"), says("b"), "stop"],
    "citations": [says("sky"), "stop"],
    "thinking": [thinks("hm"), thinks(" so"), says("yes"), "stop"],
    "two thoughts": [thinks("a"), thinks("\n\nb"), thinks("c"), says("yes"), "stop"],
    "omitted thinking": [says("yes"), "stop"],
    "redacted thinking": [function_start(0), function_piece(0, '{"a":1}'), "tool_calls"],
    "parallel tools": [thinks("two"), says("I look."),
                       function_start(0), function_piece(0, '{"a": '), function_piece(0, "1}"),
                       function_start(1, "see", "toolu_2"), function_piece(1, '{"b":"\u00e4\\n"}'), "tool_calls"],
    "no arguments": [function_start(0), function_piece(0, "{}"),
                     function_start(1, "see", "toolu_2"), function_piece(1, "{}"), "tool_calls"],
    "blank arguments": [function_start(0), function_piece(0, " "), function_piece(0, "\n"),
                        function_piece(0, "{}"), "tool_calls"],
    "arguments in the start": [function_start(0), function_piece(0, '{"a":[1]}'), "tool_calls"],
    "arguments in both": [function_start(0), function_piece(0, '{"b":2}'), "tool_calls"],
    "arguments cut": [function_start(0), function_piece(0, '{"a": "tex'), "length"],
    "arguments no JSON": [function_start(0), function_piece(0, '{"a": un'), function_piece(0, "quoted}"), "tool_calls"],
    "no id": [function_start(0, tool_id="call_chatcmpl-1_0"), function_piece(0, "{}"),
              function_start(1, tool_id="call_chatcmpl-1_1"), function_piece(1, "{}"), "tool_calls"],
    "server tools": [says("found"), function_start(0), function_piece(0, "{}"), "tool_calls"],
    "unknown kinds": [says("yes"), "stop"],
    "unknown events": [says("a"), "stop"],
    "refusal": [says("I ca"), {"refusal": "Not this."}, "content_filter"],
    "refusal without words": [{"refusal": gw.REFUSED}, "content_filter"],
    "a reason to come": [says("a"), "stop"],
    "a reason to come, with a call": [function_start(0), function_piece(0, "{}"), "tool_calls"],
    "no reason": [function_start(0), function_piece(0, "{}"), "tool_calls"],
    "usage": [says("a"), "stop"],
    "iterations": [says("a"), "stop"],
    "interleaved": [function_start(0), function_start(1, "see", "toolu_2"), function_piece(1, '{"b":2'),
                    function_piece(0, '{"a":1}'), function_piece(1, "}"), "tool_calls"],
    "no block stops": [says("a"), function_start(0), function_piece(0, "{}"), "tool_calls"],
}


class ChunkTest(unittest.TestCase):

    maxDiff = None

    def test_the_bytes_of_a_stream(self):
        """One stream as it goes over the wire: role, text, end, usage, mark."""
        data = relayed(stream_events("Hello w\u00f6rld"), new_stream(include_usage=True))
        begin = ('data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790035200,'
                 '"model":"claude-asked-for","system_fingerprint":null,"choices":[')
        chunk = begin + '{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}],"usage":null}\n\n'
        self.assertEqual(data.decode("ascii"), "".join([
            chunk % ('{"role":"assistant","content":""}', "null"),
            chunk % ('{"content":"Hello"}', "null"),
            chunk % ('{"content":" w\\u00f6rld"}', "null"),
            chunk % ("{}", '"stop"'),
            begin + '],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,'
            '"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},'
            '"completion_tokens_details":{"reasoning_tokens":0}}}\n\n',
            "data: [DONE]\n\n"]))

    def test_every_stream_has_its_chunks(self):
        self.assertEqual(set(STREAMS), set(CHUNKS))
        for name, events in STREAMS.items():
            with self.subTest(name):
                self.assertEqual(deltas_of(events), CHUNKS[name])

    def test_every_split_gives_the_same_bytes(self):
        for name in ("letters", "parallel tools", "refusal"):
            data = stream_of(STREAMS[name])
            expected = relayed([data], new_stream(True))
            for pieces in every_split(data):
                self.assertEqual(relayed(pieces, new_stream(True)), expected, name)

    def test_every_stop_reason(self):
        table = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
                 "model_context_window_exceeded": "length", "pause_turn": "length",
                 "refusal": "content_filter", "tool_use": "stop", "compaction": "stop", None: "stop"}
        for reason, finish in table.items():
            with self.subTest(reason):
                self.assertEqual(deltas_of(whole((TEXT, text_delta("a")), stop_reason=reason))[-1], finish)
        for reason in ("tool_use", "compaction", None):
            with self.subTest(reason, called=True):
                self.assertEqual(deltas_of(whole((tool(),), stop_reason=reason))[-1], "tool_calls")

    def test_a_ping_gives_nothing_and_the_ping_is_a_comment(self):
        self.assertEqual(new_stream().feed(gw.SseEvent("ping", b'{"type":"ping"}')), b"")
        self.assertEqual(gw.SseDecoder().feed(gw.PING_COMMENT), [])

    def test_usage_is_told_only_where_it_was_asked_for(self):
        for name, events in STREAMS.items():
            frames = parsed_frames(relayed([stream_of(events)], new_stream()))
            self.assertEqual([frame for frame in frames if "usage" in frame or not frame["choices"]], [], name)
            *chunks, last = parsed_frames(relayed([stream_of(events)], new_stream(True)))
            self.assertEqual({frame["usage"] for frame in chunks}, {None}, name)
            self.assertEqual((last["choices"], sorted(last["usage"])[0]), ([], "completion_tokens"))

    def test_what_the_wiring_reads(self):
        chat = new_stream()
        seen = []
        for event in gw.SseDecoder().feed(stream_of(STREAMS["parallel tools"])):
            chat.feed(event)
            seen.append((event.type, chat.content_started, chat.complete))
        self.assertEqual(seen[0], ("message_start", False, False))
        self.assertEqual(seen[1], ("content_block_start", True, False))
        self.assertEqual(seen[-1], ("message_stop", True, True))
        self.assertEqual((chat.stop_reason, chat.tool_ids), ("tool_use", ["toolu_1", "toolu_2"]))
        self.assertEqual((chat.usage.input, chat.usage.output), (10, 9))
        self.assertEqual(chat.thinking_blocks, [{"type": "thinking", "thinking": "two", "signature": "c2ln"}])
        self.assertIsNone(chat.failure)

    def test_thinking_is_remembered_where_it_is_signed(self):
        def remembered(*blocks):
            chat = new_stream()
            relayed([stream_of(whole(*blocks))], chat)
            return chat.thinking_blocks
        redacted = {"type": "redacted_thinking", "data": "ZW5j"}
        self.assertEqual(remembered(EMPTY_THOUGHT, (redacted,)), [
            {"type": "thinking", "thinking": "", "signature": "b21pdHRlZA=="}, redacted])
        self.assertEqual(remembered((THINKING, thought_delta("a")), ({"type": "redacted_thinking"},)), [])
        self.assertEqual(remembered((THINKING, dict(thought_delta("a"), estimated_tokens=5), signature_delta("b"))),
                         [{"type": "thinking", "thinking": "a", "signature": "b"}])


class EndTest(unittest.TestCase):
    """Errors, cuts, and what follows an end."""

    ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    TOLD = (b'data: {"error":{"message":"busy","type":"server_error","param":null,"code":"overloaded"}}\n\n'
            b"data: [DONE]\n\n")

    def test_an_error_event_at_any_place_ends_the_stream(self):
        events = STREAMS["parallel tools"]
        for count in range(len(events)):
            data = stream_of([*events[:count], self.ERROR, *events[count:]])
            chat = new_stream(True)
            told = relayed([data], chat)
            before = relayed([stream_of(events[:count])], new_stream(True))
            self.assertEqual(told, before + self.TOLD)
            self.assertEqual((chat.complete, chat.failure), (True, self.ERROR))
            self.assertEqual(chat.error(500, "api_error", "again"), b"")

    def test_a_cut_stream_ends_in_an_error_and_never_looks_whole(self):
        events = STREAMS["parallel tools"]
        for count in range(len(events)):
            chat = new_stream(True)
            told = relayed([stream_of(events[:count])], chat)
            self.assertNotIn(b"[DONE]", told)
            self.assertFalse(chat.complete)
            self.assertFalse(any(choice["finish_reason"] for frame in parsed_frames(told)
                                 for choice in frame["choices"]))
            self.assertEqual(chat.error(529, "overloaded_error", "busy"), self.TOLD)
            self.assertEqual((chat.finish(), chat.error(500, "api_error", "again")), (b"", b""))
            self.assertEqual(chat.feed(gw.SseEvent("message_stop", b"{}")), b"")

    def test_an_error_behind_a_whole_message_is_its_end(self):
        for include_usage in (False, True):
            chat = new_stream(include_usage)
            for event in gw.SseDecoder().feed(stream_of(STREAMS["text"])):
                chat.feed(event)
            self.assertTrue(chat.error(502, "api_error", "cut").endswith(DONE))
            self.assertEqual((chat.finish(), chat.failure), (b"", None))

    def test_what_trails_behind_the_end_is_passed_over(self):
        data = stream_of(STREAMS["text"])
        for junk in (stream_of([self.ERROR]), data, b"event: message_delta\ndata: no\n\n"):
            self.assertEqual(relayed([data, junk], new_stream()), relayed([data], new_stream()))

    def test_an_event_that_is_no_json_is_an_error(self):
        """A stream that lacks a piece must not look whole."""
        for name in ("message_start", "content_block_start", "content_block_delta",
                     "content_block_stop", "message_delta"):
            for data in (b"", b"[1]", b'{"a":', b"[" * 100000, b"\xff", b'{"a":NaN}'):
                chat = new_stream()
                frames = parsed_frames(chat.feed(gw.SseEvent(name, data)))
                self.assertEqual([frame["error"]["type"] for frame in frames], ["server_error"])
                self.assertIn(name, frames[0]["error"]["message"])
                self.assertTrue(chat.complete and chat.failure)

    def test_an_endless_stream_is_ended(self):
        """What is kept for the end, or for the next request, has a bound."""
        data = stream_of([started(), *block_events(0, THINKING, *[thought_delta("hm")] * 9), *ended()])
        for bound, is_whole in ((len(data), True), (500, False)):
            with mock.patch.object(gw, "MAX_COLLECTED_BYTES", bound):
                chat = new_stream()
                out = relayed([data], chat)
            self.assertEqual((chat.complete, chat.failure is None), (True, is_whole))
            self.assertEqual((b'"finish_reason":"stop"' in out, out.count(DONE)), (is_whole, 1))

    def test_the_two_whose_name_says_all_need_no_json(self):
        stop = new_stream()
        self.assertIn(b'"finish_reason":"stop"', stop.feed(gw.SseEvent("message_stop", b"")))
        broken = new_stream()
        self.assertIn(b'"server_error"', broken.feed(gw.SseEvent("error", b"no")))
        self.assertEqual(broken.failure, {})

    def test_a_stream_without_message_start_still_begins_with_the_role(self):
        self.assertEqual(deltas_of(STREAMS["thinking"][1:]), CHUNKS["thinking"])
        self.assertEqual(deltas_of([{"type": "message_stop"}]), ["stop"])
        self.assertEqual(deltas_of([started(), *STREAMS["thinking"]]), CHUNKS["thinking"])


class JsonToolTest(unittest.TestCase):
    """The tool that stands for a response_format: its input is the text."""

    def deltas(self, *blocks, stop_reason="tool_use"):
        return deltas_of(whole(*blocks, stop_reason=stop_reason), json_tool="json_response")

    def test_its_arguments_are_the_content(self):
        answer = (tool("json_response"), json_delta(""), json_delta('{"a":'), json_delta('"\u00e4"}'))
        self.assertEqual(self.deltas(answer), [says('{"a":'), says('"\u00e4"}'), "stop"])
        self.assertEqual(self.deltas(answer, stop_reason="max_tokens")[-1], "length")

    def test_empty_and_given_ones(self):
        self.assertEqual(self.deltas((tool("json_response"),)), [says("{}"), "stop"])
        self.assertEqual(self.deltas((tool("json_response", input={"a": 1}),)), [says('{"a":1}'), "stop"])

    def test_text_beside_it_would_spoil_it(self):
        answer = (tool("json_response"), json_delta("{}"))
        text = (TEXT, text_delta("Here "), text_delta("it is:"))
        self.assertEqual(self.deltas(text, answer, text), [says("{}"), "stop"])
        self.assertEqual(self.deltas(text, text, stop_reason="end_turn"), [says("Here it is:" * 2), "stop"])

    def test_a_second_answer_is_none(self):
        answer = (tool("json_response"), json_delta('{"a":1}'))
        self.assertEqual(self.deltas(answer, answer), [says('{"a":1}'), "stop"])

    def test_it_counts_neither_as_a_call_nor_as_an_index(self):
        blocks = ((tool("json_response"), json_delta("{}")), (tool("look", "toolu_2"), json_delta("{}")))
        expected = [says("{}"), function_start(0, "look", "toolu_2"), function_piece(0, "{}"), "tool_calls"]
        self.assertEqual(self.deltas(*blocks), expected)
        chat = new_stream(json_tool="json_response")
        relayed([stream_of(whole(*blocks))], chat)
        self.assertEqual(chat.tool_ids, ["toolu_2"])

    def test_a_tool_without_a_name_is_not_it(self):
        self.assertEqual(deltas_of(whole((tool(name=None),), stop_reason="tool_use"))[0], function_start(0, ""))


class OldShapeTest(unittest.TestCase):
    """What the request's own shape changes: custom tools, and functions as before tools."""

    def test_a_custom_tool_gets_its_bare_text(self):
        events = whole((tool("run"), json_delta('{"inp'), json_delta('ut": "ls\\n"}')), stop_reason="tool_use")
        self.assertEqual(deltas_of(events, custom_tools={"run"}), [
            {"tool_calls": [{"index": 0, "id": "toolu_1", "type": "custom", "custom": {"name": "run", "input": ""}}]},
            {"tool_calls": [{"index": 0, "custom": {"input": "ls\n"}}]}, "tool_calls"])

    def test_functions_are_called_one_at_a_time(self):
        self.assertEqual(deltas_of(STREAMS["parallel tools"], old_functions=True), [
            thinks("two"), says("I look."), {"function_call": {"name": "look", "arguments": ""}},
            {"function_call": {"arguments": '{"a": '}}, {"function_call": {"arguments": "1}"}}, "function_call"])


class CompletionTest(unittest.TestCase):
    """A message that was not streamed, or was collected."""

    maxDiff = None

    def completion(self, *content, stop_reason="end_turn", **options):
        value = dict(message(), content=list(content), stop_reason=stop_reason)
        return gw.chat_completion(value, ID, CREATED, MODEL, **options)

    def answer(self, *content, **options):
        return self.completion(*content, **options)["choices"][0]["message"]

    def test_the_whole_object(self):
        told = self.completion(
            {"type": "thinking", "thinking": "a", "signature": "s"}, {"type": "thinking", "thinking": ""},
            {"type": "thinking", "thinking": "b"}, {"type": "text", "text": "one"}, SEARCH, FOUND,
            {"type": "text", "text": "two", "citations": [CITATION]}, tool(input={"a": [1, "\u00e4"]}),
            stop_reason="tool_use")
        self.assertEqual(told, {
            "id": ID, "object": "chat.completion", "created": CREATED, "model": MODEL,
            "choices": [{"index": 0, "logprobs": None, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": "onetwo", "refusal": None, "reasoning_content": "a\n\nb",
                "tool_calls": [{"id": "toolu_1", "type": "function", "function": {
                    "name": "look", "arguments": '{"a":[1,"\u00e4"]}'}}]}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                      "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                      "completion_tokens_details": {"reasoning_tokens": 0}},
            "system_fingerprint": None})

    def test_content_is_null_only_beside_calls(self):
        self.assertEqual(self.answer()["content"], "")
        self.assertIsNone(self.answer(tool())["content"])
        self.assertEqual(self.answer({"type": "text", "text": "a"}, tool())["content"], "a")

    def test_a_refusal(self):
        told = self.completion({"type": "text", "text": "I ca"}, stop_reason="refusal")["choices"][0]
        self.assertEqual((told["message"]["content"], told["message"]["refusal"], told["finish_reason"]),
                         ("I ca", gw.REFUSED, "content_filter"))

    def test_input_that_was_no_json_is_told_as_it_was(self):
        call = self.answer(tool(input={"INVALID_JSON": '{"a": un'}))["tool_calls"][0]
        self.assertEqual(call["function"]["arguments"], '{"a": un')
        call = self.answer(tool(input={"INVALID_JSON": 5}))["tool_calls"][0]
        self.assertEqual(call["function"]["arguments"], '{"INVALID_JSON":5}')

    def test_a_fence_goes_where_json_was_asked_for(self):
        for text in ('```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', ' ```json\r\n{"a": 1}\r\n```\n', '{"a": 1}'):
            block = {"type": "text", "text": text}
            self.assertEqual(self.answer(block, json_object_only=True)["content"], '{"a": 1}')
            self.assertEqual(self.answer(block)["content"], text)

    def test_it_is_what_the_chunks_add_up_to(self):
        shapes = [{}, {"json_tool": "look"}, {"old_functions": True}, {"custom_tools": {"see"}},
                  {"custom_tools": {"see"}, "json_tool": "look"}]
        for shape in shapes:
            for name, events in STREAMS.items():
                with self.subTest(name, shape=shape):
                    data = stream_of(events)
                    collector = gw.MessageCollector()
                    collector.feed(data)
                    told = gw.chat_completion(collector.message(), ID, CREATED, MODEL, **shape)
                    answer, finish, usage = accumulated(relayed([data], new_stream(True, **shape)))
                    choice = told["choices"][0]
                    self.assertEqual(comparable(choice["message"]), comparable(answer))
                    self.assertEqual((choice["finish_reason"], told["usage"]), (finish, usage))

    def test_values_of_wrong_types_never_raise(self):
        for content in (None, 5, "x", {}, [None, 5, [], {}, {"type": []}, {"type": "text", "text": 5},
                                           {"type": "tool_use", "id": [], "name": {}, "input": "x"}]):
            for usage in (None, 5, [], {"input_tokens": "x", "iterations": [None, 5]}, {"output_tokens_details": 5}):
                value = {"content": content, "usage": usage, "stop_reason": [], "stop_details": 5}
                json.dumps(gw.chat_completion(value, ID, CREATED, MODEL), allow_nan=False)


class UsageTest(unittest.TestCase):

    def test_the_prompt_holds_what_the_cache_gave_and_took(self):
        told = gw.chat_usage({"input_tokens": 3, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 7,
                              "output_tokens": 11, "output_tokens_details": {"thinking_tokens": 4}})
        self.assertEqual(told, {
            "prompt_tokens": 15, "completion_tokens": 11, "total_tokens": 26,
            "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 4}})

    def test_iterations_are_summed(self):
        told = accumulated(relayed([stream_of(STREAMS["iterations"])], new_stream(True)))[2]
        self.assertEqual((told["prompt_tokens"], told["completion_tokens"]), (111, 23))
        self.assertEqual(told["completion_tokens_details"], {"reasoning_tokens": 6})

    def test_counts_of_a_stream_are_cumulative(self):
        told = accumulated(relayed([stream_of(STREAMS["usage"])], new_stream(True)))[2]
        self.assertEqual((told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]), (15, 11, 26))

    def test_what_is_no_count_is_none(self):
        for usage in (None, 5, [], {}, {"input_tokens": -1}, {"input_tokens": True}, {"iterations": []},
                      {"output_tokens": 10 ** 400}, {"output_tokens_details": {"thinking_tokens": "x"}}):
            self.assertEqual(gw.chat_usage(usage)["total_tokens"], 0, usage)


class FuzzTest(unittest.TestCase):

    VALUES = [None, True, 0, 1, -5, 1.5, 1e999, "", "x", "text_delta", "tool_use", "\ud83d", [], ["x"], {}, {"type": "text"},
              {"a": {"b": []}}, 10 ** 30]

    def broken(self, value, chance):
        """A copy with values of wrong types in it, and members gone."""
        if self.random.random() < chance:
            return self.random.choice(self.VALUES)
        if isinstance(value, dict):
            return {key: self.broken(member, chance) for key, member in value.items()
                    if key == "type" or self.random.random() > chance / 4}
        return [self.broken(member, chance) for member in value] if isinstance(value, list) else value

    def test_broken_streams_never_raise_and_give_json_alone(self):
        self.random = random.Random(15)
        names = sorted(STREAMS)
        for _ in range(3000):
            events = STREAMS[self.random.choice(names)]
            chat = new_stream(self.random.random() < 0.5, json_tool=self.random.choice(["", "look"]),
                              custom_tools=self.random.choice([(), ("see",)]),
                              old_functions=self.random.random() < 0.2)
            out = []
            for event in events:
                event_type, value = event["type"], self.broken(event, 0.08)
                if self.random.random() < 0.03:
                    continue
                for _ in range(2 if self.random.random() < 0.05 else 1):
                    data = json.dumps(value).replace("Infinity", "1e999").encode()
                    out.append(chat.feed(gw.SseEvent(event_type, data)))
            out.append(chat.finish() or chat.error(502, "api_error", "cut"))
            data = b"".join(out)
            self.assertEqual(data.count(DONE), 1)
            self.assertTrue(data.endswith(DONE))
            frames = parsed_frames(data)
            roles = [choice["delta"]["role"] for frame in frames for choice in frame.get("choices", ())
                     if "role" in choice["delta"]]
            self.assertLessEqual(len(roles), 1)
            self.assertEqual(json.loads(json.dumps(chat.thinking_blocks)), chat.thinking_blocks)


class ErrorTest(unittest.TestCase):
    """Anthropic's errors in OpenAI's shape."""

    # status, type, message; the class that both SDKs raise goes by the status alone.
    TABLE = [
        (400, "invalid_request_error", "max_tokens: required", "invalid_request_error", None),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum",
         "invalid_request_error", "context_length_exceeded"),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 2",
         "invalid_request_error", "context_length_exceeded"),
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.",
         "insufficient_quota", "insufficient_quota"),
        (401, "authentication_error", "invalid x-api-key", "authentication_error", "invalid_api_key"),
        (402, "billing_error", "pay", "insufficient_quota", "insufficient_quota"),
        (402, "api_error", "pay", "insufficient_quota", "insufficient_quota"),
        (403, "permission_error", "no", "permission_error", None),
        (404, "not_found_error", "model: claude-x", "invalid_request_error", "model_not_found"),
        (404, "not_found_error", "no such route", "invalid_request_error", None),
        (405, "invalid_request_error", "use POST", "invalid_request_error", None),
        (408, "timeout_error", "slow body", "invalid_request_error", "timeout"),
        (409, "conflict_error", "twice", "invalid_request_error", None),
        (413, "request_too_large", "large", "invalid_request_error", "request_too_large"),
        (422, "", "unprocessable", "invalid_request_error", None),
        (429, "rate_limit_error", "slow down", "rate_limit_error", "rate_limit_exceeded"),
        (429, "rate_limit_error", "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        (500, "api_error", "oh", "server_error", None),
        (502, "api_error", "upstream connection failed: x", "server_error", None),
        (503, "overloaded_error", "draining", "server_error", "overloaded"),
        (504, "timeout_error", "slow", "server_error", "timeout"),
        (529, "overloaded_error", "busy", "server_error", "overloaded"),
        (500, "future_error", "oh", "future_error", None),
        (500, "", "oh", "server_error", None),
    ]

    def test_every_type_and_status(self):
        for status, error_type, text, kind, code in self.TABLE:
            with self.subTest(status, type=error_type):
                told = {"error": {"message": text, "type": kind, "param": None, "code": code}}
                self.assertEqual(gw.openai_error(status, error_type, text), told)
                body = to_json(error_body(error_type, text))
                self.assertEqual(gw.openai_error_of(status, body), told)

    def test_every_type_that_we_use_is_known(self):
        used = set(gw.ERROR_TYPES.values()) | set(gw.STATUS_OF_TYPE)
        self.assertEqual(used - set(gw.OPENAI_ERRORS), set())

    def test_param_and_code_as_given(self):
        told = gw.openai_error(400, "invalid_request_error", "no", "n", "unsupported_value")
        self.assertEqual(told["error"]["param"], "n")
        self.assertEqual(told["error"]["code"], "unsupported_value")

    def test_only_529_gets_another_status(self):
        for status in (200, 400, 401, 402, 429, 500, 503, 504):
            self.assertEqual(gw.openai_status(status), status)
        self.assertEqual(gw.openai_status(529), 503)

    def test_bodies_of_others(self):
        table = [
            (b'{"error":{"message":"no","type":"BadRequestError","param":"n","code":"bad"}}',
             ("no", "BadRequestError", "n", "bad")),
            (b'{"error":{"message":"no","type":null,"param":5,"code":400}}', ("no", "invalid_request_error", None, None)),
            (b'{"error":"no"}', ("no", "invalid_request_error", None, None)),
            (b'{"message":"no"}', ("no", "invalid_request_error", None, None)),
            (b'{"detail":"no"}', ("no", "invalid_request_error", None, None)),
            (b"<html>no</html>", ("upstream answered with status 400", "invalid_request_error", None, None)),
            (b"", ("upstream answered with status 400", "invalid_request_error", None, None)),
            (b'[{"error":{}}]', ("upstream answered with status 400", "invalid_request_error", None, None)),
            (b'{"error":{"message":5,"type":[]}}', ("upstream answered with status 400", "invalid_request_error", None, None)),
            (b"[" * 100000, ("upstream answered with status 400", "invalid_request_error", None, None)),
        ]
        for body, expected in table:
            with self.subTest(body[:40]):
                error = gw.openai_error_of(400, body)["error"]
                self.assertEqual((error["message"], error["type"], error["param"], error["code"]), expected)


class RateHeadersTest(unittest.TestCase):

    def told(self, **headers):
        pairs = [("anthropic-ratelimit-" + name.replace("_", "-"), value) for name, value in headers.items()]
        return gw.openai_rate_headers(gw.rate_limits(gw.Headers(pairs), 1700000000.0))

    def test_names_and_values(self):
        self.assertEqual(self.told(requests_limit="4000", requests_remaining="3999",
                                   requests_reset="2023-11-14T22:13:32Z", tokens_limit="400000",
                                   tokens_remaining="0", tokens_reset="2023-11-14T22:19:20Z",
                                   input_tokens_limit="5", unified_status="allowed"), [
            ("x-ratelimit-limit-requests", "4000"), ("x-ratelimit-remaining-requests", "3999"),
            ("x-ratelimit-reset-requests", "12s"), ("x-ratelimit-limit-tokens", "400000"),
            ("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "6m0s")])

    def test_what_was_not_told_is_not_told(self):
        self.assertEqual(self.told(), [])
        self.assertEqual(self.told(tokens_limit="x", tokens_reset="soon", requests_remaining="7"),
                         [("x-ratelimit-remaining-requests", "7")])

    def test_durations(self):
        table = {0.0: "0s", 0.0001: "1ms", 0.017: "17ms", 1.0: "1s", 59.2: "1m0s", 60.0: "1m0s", 3600.0: "1h0m0s"}
        for seconds, text in table.items():
            self.assertEqual(gw.openai_duration(seconds), text)


# -------------------------------------------------------------- benchmark


def benchmark(kinds=("text", "thinking", "arguments"), count=100000):
    """What one event of a long stream costs, without and with the decoding of its bytes."""
    for kind in kinds:
        block, delta = {"text": (TEXT, text_delta(" some w\u00f6rds in it")),
                        "thinking": (THINKING, thought_delta(" some words in it")),
                        "arguments": (tool(), json_delta('"key": "val'))}[kind]
        begun = stream_of([started(), *block_events(0, block)[:1]])
        data = sse_event({"type": "content_block_delta", "index": 0, "delta": delta})
        event = gw.SseDecoder().feed(data)[0]
        chat = new_stream(True)
        relayed([begun], chat)
        before = time.perf_counter()
        for _ in range(count):
            chat.feed(event)
        fed = time.perf_counter() - before
        chat, decoder = new_stream(True), gw.SseDecoder()
        relayed([begun], chat)
        before = time.perf_counter()
        for _ in range(count):
            for decoded in decoder.feed(data):
                chat.feed(decoded)
        both = time.perf_counter() - before
        print("%-10s %5.2f us an event, %5.2f us with its decoding" % (kind, fed / count * 1e6, both / count * 1e6))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        benchmark()
    else:
        unittest.main()
