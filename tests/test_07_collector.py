"""Section 7: an event stream collected into the message that was not streamed."""

import copy
import json
import random
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests.support import every_split
from tests.support import message
from tests.support import sse_event
from tests.support import stream_events
from tests.support import tool_use_events


def started(**members):
    """A message_start event."""
    begun = dict(message(), content=[], stop_reason=None)
    begun.update(usage={"input_tokens": 10, "output_tokens": 1})
    begun.update(members)
    return {"type": "message_start", "message": begun}


def block_events(index, block, *deltas):
    """The events of one content block."""
    begun = {"type": "content_block_start", "index": index, "content_block": block}
    middle = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [begun, *middle, {"type": "content_block_stop", "index": index}]


def ended(**members):
    """A message_delta event and the message_stop; ``delta`` and ``usage`` may be given."""
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 9}}
    return [dict(last, **members), {"type": "message_stop"}]


def stream(*events):
    return b"".join(map(sse_event, events))


def fed(*pieces):
    """A collector that has been given these bytes."""
    collector = gw.MessageCollector()
    for piece in pieces:
        collector.feed(piece)
    return collector


def collected(*events):
    return fed(stream(*events)).message()


def collected_block(block, *deltas):
    """What becomes of one block."""
    content = collected(started(), *block_events(0, block, *deltas), *ended())["content"]
    assert len(content) == 1, content
    return content[0]


def text_delta(text):
    return {"type": "text_delta", "text": text}


def json_delta(text):
    return {"type": "input_json_delta", "partial_json": text}


CITATION = {"type": "char_location", "cited_text": "sky", "document_index": 0,
            "document_title": None, "start_char_index": 0, "end_char_index": 3}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
MIXED_EVENTS = (
    started(),
    {"type": "ping"},
    *block_events(0, {"type": "thinking", "thinking": "", "signature": ""},
                  {"type": "thinking_delta", "thinking": "h\u00e9"},
                  {"type": "thinking_delta", "thinking": "\U0001f44b"},
                  {"type": "signature_delta", "signature": "c2ln"}),
    *block_events(1, {"type": "text", "text": ""},
                  text_delta("a\nb"), {"type": "citations_delta", "citation": CITATION}),
    *block_events(2, TOOL, json_delta(""), json_delta('{"a": [1, '), json_delta('{"b":null}]}')),
    *block_events(3, {"type": "future", "data": "x"}, {"type": "future_delta", "data": "y"}),
    *ended(usage={"output_tokens": 7, "input_tokens": None}),
)
MIXED = stream(*MIXED_EVENTS)
MIXED_MESSAGE = dict(
    message(),
    content=[
        {"type": "thinking", "thinking": "h\u00e9\U0001f44b", "signature": "c2ln"},
        {"type": "text", "text": "a\nb", "citations": [CITATION]},
        dict(TOOL, input={"a": [1, {"b": None}]}),
        {"type": "future", "data": "xy"},
    ],
    usage={"input_tokens": 10, "output_tokens": 7},
)


class StreamTest(unittest.TestCase):
    """Bytes in any split, ends and cuts."""

    def test_the_streams_of_the_other_tests(self):
        text = fed(*stream_events("Hello w\u00f6rld")).message()
        self.assertEqual(text["content"], [{"type": "text", "text": "Hello w\u00f6rld"}])
        tool = fed(*tool_use_events("look", {"path": "\u00e4", "deep": [{"n": 1.5}]})).message()
        self.assertEqual(tool["content"], [dict(TOOL, input={"path": "\u00e4", "deep": [{"n": 1.5}]})])
        self.assertEqual(tool["stop_reason"], "tool_use")

    def test_every_split_gives_the_same_message(self):
        for pieces in every_split(MIXED):
            self.assertEqual(fed(*pieces).message(), MIXED_MESSAGE, pieces[:2])

    def test_other_line_ends_comments_and_pings(self):
        padded = MIXED.replace(b"event: content_block", b": note\n\nevent: ping\ndata: {}\n\nevent: content_block")
        for name, data in (("CRLF", MIXED.replace(b"\n", b"\r\n")), ("CR", MIXED.replace(b"\n", b"\r")),
                           ("no space", MIXED.replace(b": {", b":{")), ("padded", padded),
                           ("BOM", b"\xef\xbb\xbf" + MIXED)):
            with self.subTest(name):
                self.assertEqual(fed(data).message(), MIXED_MESSAGE)

    def test_members_come_in_the_order_they_were_told(self):
        text = json.dumps(fed(MIXED).message())
        self.assertEqual(text, json.dumps(MIXED_MESSAGE))

    def test_a_message_can_be_asked_for_twice(self):
        collector = fed(MIXED)
        self.assertEqual(collector.message(), collector.message())

    def test_cut_at_every_byte_it_is_never_complete(self):
        whole = len(MIXED)
        collector = gw.MessageCollector()
        for at in range(whole):
            self.assertFalse(collector.complete, at)
            self.assertIsNone(collector.error)
            with self.assertRaises(gw.UpstreamBroke):
                collector.message()
            collector.feed(MIXED[at:at + 1])
        self.assertTrue(collector.complete)

    def test_cut_at_every_event_it_is_never_complete(self):
        for count in range(len(MIXED_EVENTS)):
            with self.assertRaises(gw.UpstreamBroke):
                collected(*MIXED_EVENTS[:count])

    def test_what_trails_behind_the_end_is_passed_over(self):
        for junk in (b"data: [DONE]\n\n", b"event: message_delta\ndata: nonsense\n\n", b"event: x\ndata: {",
                     stream({"type": "error", "error": {}}), stream(started(id="msg_2")), MIXED):
            for pieces in ([MIXED + junk], [MIXED, junk]):
                collector = fed(*pieces)
                self.assertEqual((collector.complete, collector.error), (True, None))
                self.assertEqual(collector.message(), MIXED_MESSAGE)

    def test_events_without_a_name_are_not_the_protocol(self):
        with self.assertRaises(gw.UpstreamBroke):
            fed(MIXED.replace(b"event: ", b"x: ")).message()
        self.assertEqual(fed(b"data: [DONE]\n\n" + MIXED).message(), MIXED_MESSAGE)

    def test_without_message_start_there_is_no_message(self):
        for events in (MIXED_EVENTS[1:], MIXED_EVENTS[-1:], ({"type": "message_start", "message": 5},) + MIXED_EVENTS[1:]):
            collector = fed(stream(*events))
            self.assertTrue(collector.complete)
            self.assertRaises(gw.UpstreamMalformed, collector.message)


class ErrorEventTest(unittest.TestCase):

    ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}

    def test_an_error_at_any_place_is_kept_and_nothing_is_complete(self):
        for count in range(len(MIXED_EVENTS)):
            data = stream(*MIXED_EVENTS[:count], self.ERROR, *MIXED_EVENTS[count:])
            for pieces in ([data], [data[:-9], data[-9:]]):
                collector = fed(*pieces)
                self.assertEqual((collector.error, collector.complete), (self.ERROR, False))
                self.assertRaises(gw.UpstreamBroke, collector.message)

    def test_the_first_error_counts(self):
        self.assertEqual(fed(stream(self.ERROR, {"type": "error", "error": {}})).error, self.ERROR)

    def test_an_error_that_does_not_parse_is_an_error(self):
        for data in (b"[1]", b"overloaded", b"\xff", b"null", b"[" * 100000):
            self.assertEqual(fed(b"event: error\ndata: " + data + b"\n\n").error, {"type": "error"})


class DeltaTest(unittest.TestCase):
    """What each type of delta does to its block."""

    def assert_block(self, expected, block, *deltas):
        found = collected_block(block, *deltas)
        self.assertEqual(json.dumps(found, sort_keys=True), json.dumps(expected, sort_keys=True))

    def test_text(self):
        begun = {"type": "text", "text": ""}
        self.assert_block(begun, begun)
        self.assert_block({"type": "text", "text": "ab c"}, begun, *map(text_delta, ["a", "", "b c"]))
        self.assert_block({"type": "text", "text": "ab"}, {"type": "text", "text": "a"}, text_delta("b"))
        self.assert_block({"type": "text", "text": "b"}, {"type": "text"}, text_delta("b"))

    def test_a_surrogate_pair_in_two_deltas_is_one_letter(self):
        data = stream(started(), *block_events(0, {"type": "text", "text": ""}, text_delta("1"), text_delta("2")), *ended())
        data = data.replace(b'"text":"1"', b'"text":"\\ud83d"').replace(b'"text":"2"', b'"text":"\\udc4b"')
        text = json.dumps(fed(data).message()["content"])
        self.assertEqual(json.loads(text), [{"type": "text", "text": "\U0001f44b"}])

    def test_thinking_and_signature(self):
        begun = {"type": "thinking", "thinking": "", "signature": ""}
        self.assert_block({"type": "thinking", "thinking": "ab", "signature": "c2ln"}, begun,
                          {"type": "thinking_delta", "thinking": "a"}, {"type": "thinking_delta", "thinking": "b"},
                          {"type": "signature_delta", "signature": "c2ln"})

    def test_omitted_thinking_is_a_signature_alone(self):
        self.assert_block({"type": "thinking", "thinking": "", "signature": "c2ln"},
                          {"type": "thinking", "thinking": ""}, {"type": "signature_delta", "signature": "c2ln"})

    def test_the_last_signature_wins(self):
        self.assert_block({"type": "thinking", "signature": "b"}, {"type": "thinking"},
                          {"type": "signature_delta", "signature": "a"}, {"type": "signature_delta", "signature": "b"})

    def test_a_progress_count_is_no_member_of_the_block(self):
        """Sent back in the next request, it would be refused as an extra input."""
        self.assert_block({"type": "thinking", "thinking": "a"}, {"type": "thinking", "thinking": ""},
                          {"type": "thinking_delta", "thinking": "a", "estimated_tokens": 50})

    def test_citations(self):
        other = dict(CITATION, cited_text="sea")
        deltas = [{"type": "citations_delta", "citation": value} for value in (CITATION, other)]
        for begun in ({}, {"citations": None}, {"citations": []}):
            self.assert_block({"type": "text", "text": "", "citations": [CITATION, other]},
                              dict({"type": "text", "text": ""}, **begun), *deltas)
        self.assert_block({"type": "text", "citations": [other, CITATION]},
                          {"type": "text", "citations": [other]}, deltas[0])

    def test_compaction(self):
        begun = {"type": "compaction", "content": None, "encrypted_content": None}
        for content in ("summary", None):
            self.assert_block(dict(begun, content=content, encrypted_content="eA=="), begun,
                              {"type": "compaction_delta", "content": content, "encrypted_content": "eA=="})

    def test_unknown_deltas(self):
        table = [
            ("strings append", {"a": "x"}, [{"a": "y"}, {"a": "z"}], {"a": "xyz"}),
            ("a string begins", {}, [{"a": "y"}, {"a": "z"}], {"a": "yz"}),
            ("lists extend", {"a": [1]}, [{"a": [2]}, {"a": [[3]]}], {"a": [1, 2, [3]]}),
            ("a list begins", {}, [{"a": [2]}, {"a": []}], {"a": [2]}),
            ("the rest is set", {"a": 1, "b": {"x": 1}}, [{"a": 2, "b": {"y": 1}, "c": True}],
             {"a": 2, "b": {"y": 1}, "c": True}),
            ("null erases nothing", {"a": "x", "b": [1]}, [{"a": "y"}, {"a": None, "b": None, "c": None}],
             {"a": "xy", "b": [1], "c": None}),
            ("what was null begins anew", {"a": None, "b": None}, [{"a": "y", "b": [1]}], {"a": "y", "b": [1]}),
            ("several members", {}, [{"a": "1", "b": [1]}, {"b": [2], "a": "2"}], {"a": "12", "b": [1, 2]}),
            ("kinds change", {"a": 5}, [{"a": "x"}, {"a": [1]}, {"a": "y"}], {"a": "y"}),
        ]
        for name, begun, deltas, expected in table:
            for kind in ("future_delta", 5, None, ["text_delta"], {}):
                with self.subTest(name, kind=kind):
                    self.assert_block(dict(expected, type="future"), dict(begun, type="future"),
                                      *(dict(delta, type=kind) for delta in deltas))

    def test_a_delta_without_a_type_is_an_unknown_one(self):
        self.assert_block({"type": "text", "text": "ab"}, {"type": "text", "text": "a"}, {"text": "b"})

    def test_known_deltas_of_wrong_types_change_nothing(self):
        block = {"type": "text", "text": "a", "signature": "s", "thinking": "t", "citations": [CITATION]}
        members = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature",
                   "citations_delta": "citation"}
        for kind, member in members.items():
            for value in (None, 5, True, [], ["x"]):
                with self.subTest(kind, value=value):
                    self.assert_block(block, block, {"type": kind, member: value}, {"type": kind})


class ToolInputTest(unittest.TestCase):

    def collected_input(self, *texts, block=TOOL):
        return collected_block(block, *map(json_delta, texts))["input"]

    def test_pieces_are_joined_and_parsed_at_the_end(self):
        value = {"path": "h\u00e9 \U0001f44b \" \\ \n", "deep": [{"n": [1, 2.5, None, True, {}]}], "": ""}
        for ascii_only in (True, False):
            text = json.dumps(value, ensure_ascii=ascii_only)
            for pieces in every_split(text):
                self.assertEqual(self.collected_input("", *pieces), value)

    def test_empty_input_is_the_own_one_of_the_block(self):
        for texts in ((), ("",), ("", " ", "\n")):
            with self.subTest(texts):
                self.assertEqual(self.collected_input(*texts), {})
                self.assertEqual(self.collected_input(*texts, block=dict(TOOL, input={"a": 1})), {"a": 1})
        self.assertEqual(self.collected_input("", block={"type": "tool_use"}), {})

    def test_a_block_without_pieces_gets_no_input(self):
        self.assertEqual(collected_block({"type": "text", "text": ""}), {"type": "text", "text": ""})

    def test_pieces_outweigh_the_own_input(self):
        self.assertEqual(self.collected_input('{"b":2}', block=dict(TOOL, input={"a": 1})), {"b": 2})

    def test_what_is_no_object_stays_as_it_is(self):
        for value in ([1], "x", 5, None, True):
            self.assertEqual(self.collected_input(json.dumps(value)), value)

    def test_what_is_no_json_is_kept_under_the_key_of_the_vendors_page(self):
        table = ['{"a": 1, "b": "tex', "{", '{"a":1}}', "nonsense", '{"a": NaN}', "[" * 100000,
                 '{"n": %s}' % ("1" * (gw.MAX_NUMERAL_DIGITS + 1)), "\x00"]
        for text in table:
            with self.subTest(text[:20]):
                self.assertEqual(self.collected_input(text[:5], text[5:]), {"INVALID_JSON": text})

    def test_other_blocks_than_tool_use_may_have_an_input(self):
        for kind in ("server_tool_use", "mcp_tool_use", "future_tool_use"):
            block = {"type": kind, "id": "srvtoolu_1", "name": "web_search", "input": {}}
            self.assertEqual(collected_block(block, json_delta('{"query":'), json_delta('"x"}')),
                             dict(block, input={"query": "x"}))

    def test_pieces_of_wrong_types_are_passed_over(self):
        deltas = [{"type": "input_json_delta", "partial_json": value} for value in (None, 5, ["x"], {}, '{"a":1}')]
        self.assertEqual(collected_block(TOOL, *deltas, {"type": "input_json_delta"})["input"], {"a": 1})


class BlockTest(unittest.TestCase):

    def content(self, *blocks):
        events = [event for index, block, *deltas in blocks for event in block_events(index, block, *deltas)]
        return collected(started(), *events, *ended())["content"]

    def test_blocks_without_deltas_stay_as_they_started(self):
        table = [
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1",
             "content": [{"type": "web_search_result", "url": "https://a", "encrypted_content": "eA=="}]},
            {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1",
             "content": {"type": "code_execution_result", "stdout": "", "return_code": 0, "content": []}},
            {"type": "container_upload", "file_id": "file_1"},
            {"type": "future", "n": 1.5, "nested": {"a": [None, {}]}, "text": "kept"},
            {"type": 5},
            {},
        ]
        for block in table:
            with self.subTest(block=block):
                self.assertEqual(self.content((0, block)), [block])
        self.assertEqual(self.content(*enumerate(table)), table)

    def test_blocks_stand_in_the_order_of_their_indexes(self):
        one, two = {"type": "text", "text": "1"}, {"type": "text", "text": "2"}
        for indexes in ((0, 1), (3, 7), (-1, 0), (0, 10 ** 30)):
            self.assertEqual(self.content((indexes[0], one), (indexes[1], two)), [one, two])
            self.assertEqual(self.content((indexes[1], two), (indexes[0], one)), [one, two])

    def test_blocks_may_be_interleaved(self):
        first, second = (block_events(index, {"type": "text", "text": ""}, text_delta("%d" % index), text_delta("!"))
                         for index in (0, 1))
        mixed = [event for pair in zip(first, second) for event in pair]
        self.assertEqual([block["text"] for block in collected(started(), *mixed, *ended())["content"]], ["0!", "1!"])

    def test_an_index_used_twice_loses_nothing(self):
        begun = {"type": "text", "text": ""}
        found = self.content((0, begun, text_delta("a")), (0, begun, text_delta("b")), (1, begun, text_delta("c")))
        self.assertEqual([block["text"] for block in found], ["a", "b", "c"])

    def test_a_missing_stop_is_forgiven(self):
        events = [event for event in MIXED_EVENTS if event["type"] != "content_block_stop"]
        self.assertEqual(collected(*events), MIXED_MESSAGE)

    def test_events_of_no_block_are_passed_over(self):
        table = [
            {"type": "content_block_delta", "index": 9, "delta": text_delta("x")},
            {"type": "content_block_delta", "delta": text_delta("x")},
            {"type": "content_block_delta", "index": 0},
            {"type": "content_block_delta", "index": 0, "delta": "x"},
            {"type": "content_block_delta", "index": [0], "delta": text_delta("x")},
            {"type": "content_block_delta", "index": False, "delta": text_delta("x")},
            {"type": "content_block_start", "index": 5},
            {"type": "content_block_start", "index": 5, "content_block": ["text"]},
            {"type": "content_block_start", "index": "5", "content_block": {"type": "text"}},
            {"type": "content_block_start", "index": None, "content_block": {"type": "text"}},
            {"type": "content_block_start", "content_block": {"type": "text"}},
            {"type": "content_block_stop"},
            {"type": "future_event", "index": 0, "delta": text_delta("x")},
        ]
        for event in table:
            with self.subTest(event=event):
                self.assertEqual(collected(*MIXED_EVENTS[:3], event, *MIXED_EVENTS[3:]), MIXED_MESSAGE)

    def test_content_of_message_start_comes_first(self):
        """As in the SDK; the API itself sends none."""
        begun, block = {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
        self.assertEqual(collected(started(content=[begun]), *block_events(0, block), *ended())["content"], [begun, block])

    def test_a_fallback_block_relabels_the_message(self):
        """As a message that is not streamed has it, and as the SDK does."""
        block = {"type": "fallback", "from": {"model": "claude-opus-5-5"}, "to": {"model": "claude-sonnet-5"}}
        found = collected(started(), *block_events(0, block), *ended())
        self.assertEqual((found["model"], found["content"]), ("claude-sonnet-5", [block]))
        for wrong in (None, 5, {}, {"model": 5}):
            found = collected(started(), *block_events(0, dict(block, to=wrong)), *ended())
            self.assertEqual(found["model"], "claude-opus-5-5")


class MessageTest(unittest.TestCase):
    """What message_start and message_delta say of the message itself."""

    def test_members_of_message_start_survive(self):
        extra = {"container": {"id": "c_1"}, "context_management": None, "future": [1, {"a": None}], "n": 1.0}
        found = collected(started(**extra), *ended())
        self.assertEqual({name: found[name] for name in extra}, extra)
        self.assertEqual((found["id"], found["role"], found["content"]), ("msg_upstream_1", "assistant", []))

    def test_every_member_of_the_delta_is_set(self):
        delta = {
            "stop_reason": "refusal",
            "stop_sequence": "###",
            "stop_details": {"type": "refusal", "category": "cyber", "explanation": None},
            "container": {"id": "c_1", "expires_at": "2026-11-21T00:00:00Z"},
            "safeguard_results": [{"type": "dangerous_tool_use", "status": {"type": "unsupported"}}],
            "future": {"a": 1},
            "absent_so_far": None,
        }
        found = collected(started(), *ended(delta=delta))
        self.assertEqual({name: found[name] for name in delta}, delta)

    def test_other_members_of_the_event_survive(self):
        extra = {"context_management": {"applied_edits": []}, "input_transformations": [], "future": 5}
        found = collected(started(context_management=None), *ended(**extra))
        self.assertEqual({name: found[name] for name in extra}, extra)
        self.assertNotIn("delta", found)
        self.assertEqual(found["type"], "message")

    def test_null_erases_nothing(self):
        """Deltas leave out or null what does not apply; message_start's word then holds."""
        found = collected(started(container={"id": "c_1"}, input_transformations=[1]),
                          *ended(delta={"container": None, "stop_reason": "end_turn"}, input_transformations=None))
        self.assertEqual((found["container"], found["input_transformations"]), ({"id": "c_1"}, [1]))

    def test_several_deltas_add_up(self):
        first, _ = ended(delta={"stop_reason": "tool_use", "a": 1}, usage={"output_tokens": 3, "iterations": [1]})
        found = collected(started(), first, *ended(delta={"stop_reason": None, "b": 2}, usage={"output_tokens": 8}))
        self.assertEqual((found["stop_reason"], found["a"], found["b"]), ("tool_use", 1, 2))
        self.assertEqual(found["usage"], {"input_tokens": 10, "output_tokens": 8, "iterations": [1]})

    def test_content_type_and_usage_are_not_the_deltas_to_set(self):
        wrong = {"content": "x", "type": "y", "usage": 5, "stop_reason": "end_turn"}
        found = collected(started(), *ended(delta=wrong, content="z"))
        self.assertEqual((found["content"], found["type"]), ([], "message"))
        self.assertEqual(found["usage"], {"input_tokens": 10, "output_tokens": 9})

    def test_usage(self):
        begun = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 5,
                 "cache_creation_input_tokens": 0, "service_tier": "standard",
                 "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 0}}
        last = {"output_tokens": 20, "input_tokens": None, "cache_read_input_tokens": 0,
                "server_tool_use": {"web_search_requests": 1}, "output_tokens_details": None}
        expected = dict(begun, output_tokens=20, cache_read_input_tokens=0,
                        server_tool_use={"web_search_requests": 1}, output_tokens_details=None)
        self.assertEqual(collected(started(usage=begun), *ended(usage=last))["usage"], expected)

    def test_usage_of_one_side_only(self):
        for begun in (None, 5, "x", []):
            self.assertEqual(collected(started(usage=begun), *ended())["usage"], {"output_tokens": 9})
        for last in (None, 5, "x", []):
            self.assertEqual(collected(started(), *ended(usage=last))["usage"], {"input_tokens": 10, "output_tokens": 1})

    def test_a_stream_without_message_delta(self):
        self.assertIsNone(collected(started(), {"type": "message_stop"})["stop_reason"])

    def test_the_first_message_start_counts(self):
        self.assertEqual(collected(started(), started(id="msg_2"), *ended())["id"], "msg_upstream_1")


class MalformedTest(unittest.TestCase):

    def test_a_known_event_that_is_no_json_object_is_a_fault(self):
        """Without it the message would be a cut one."""
        for name in ("message_start", "content_block_start", "content_block_delta", "message_delta"):
            for data in (b"{", b"[]", b"null", b'"x"', b'{"a":NaN}', b"[" * 100000, b""):
                with self.subTest(name, data=data[:9]):
                    wrong = b"event: %s\ndata: %s\n\n" % (name.encode(), data)
                    self.assertRaises(gw.UpstreamMalformed, fed, stream(*MIXED_EVENTS[:3]), wrong)

    def test_an_unknown_event_may_be_anything(self):
        wrong = b"event: future\ndata: [DONE]\n\n" + b"event: ping\ndata: {\n\n"
        self.assertEqual(fed(stream(started()), wrong, stream(*MIXED_EVENTS[1:])).message(), MIXED_MESSAGE)

    def test_bytes_that_are_no_utf8_do_not_matter(self):
        data = MIXED.replace(b"a\\nb", b"a\xffb")
        self.assertEqual(fed(data).message()["content"][1]["text"], "a\ufffdb")

    SCRAPS = (None, True, 0, -1, 1.5, 10 ** 30, "", "text", [], [1], {}, {"type": "text"}, {"type": []}, [[{}]])

    def places(self, value, path=()):
        """The path of every member and element below a value."""
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in parts:
            yield path + (key,)
            yield from self.places(part, path + (key,))

    def mutated(self, event, chance):
        """The event with one value somewhere replaced, taken away, or put twice."""
        event = copy.deepcopy(event)
        *path, last = chance.choice(list(self.places(event)))
        if [*path, last] == ["type"]:
            return event  # that is the event's name
        holder = event
        for key in path:
            holder = holder[key]
        if chance.random() < 0.2:
            del holder[last]
        else:
            holder[last] = chance.choice(self.SCRAPS)
        return event

    def scrambled(self, chance):
        events = list(MIXED_EVENTS)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(events))
            how = chance.random()
            if how < 0.7:
                events[at] = self.mutated(events[at], chance)
            elif how < 0.8:
                events.insert(at, events[chance.randrange(len(events))])
            elif how < 0.9 and len(events) > 1:
                del events[at]
            else:
                other = chance.randrange(len(events))
                events[at], events[other] = events[other], events[at]
        return events

    def outcome(self, pieces):
        """The message as JSON, or the name of what was raised; any other exception is a failure."""
        try:
            value = fed(*pieces).message()
        except (gw.UpstreamBroke, gw.UpstreamMalformed) as error:
            return type(error).__name__
        self.assertIsInstance(value["content"], list)
        return json.dumps(value)

    def test_wrong_types_anywhere_do_no_harm(self):
        chance = random.Random(20261121)
        outcomes, spelled = set(), {id(event): sse_event(event) for event in MIXED_EVENTS}
        for _ in range(4000):
            data = b"".join(spelled.get(id(event)) or sse_event(event)
                            for event in self.scrambled(chance))
            cut = chance.randrange(len(data))
            found = self.outcome([data])
            outcomes.add(found)
            self.assertEqual(self.outcome([data[:cut], data[cut:]]), found)
        # The fuzz must reach both the failures and many different messages.
        self.assertLess({"UpstreamBroke", "UpstreamMalformed"}, outcomes)
        self.assertGreater(len(outcomes), 1000)

    def test_wrong_bytes_anywhere_do_no_harm(self):
        chance = random.Random(20261122)
        for _ in range(2000):
            data = bytearray(MIXED)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.choice(b'\x00\n\r:{}[]",0e\xff')
            self.outcome([bytes(data)])


class SizeTest(unittest.TestCase):

    # All events that are collected; pings and stops of blocks leave nothing behind.
    KEPT_BYTES = sum(len(sse_event(event).split(b"data: ", 1)[1]) - 2 for event in MIXED_EVENTS
                     if event["type"] not in ("ping", "content_block_stop"))

    def collect_within(self, limit_bytes, *pieces):
        with mock.patch.object(gw, "MAX_COLLECTED_BYTES", limit_bytes):
            return fed(*pieces).message()

    def test_just_under_the_limit_and_just_over_in_every_split(self):
        for pieces in every_split(MIXED):
            self.assertEqual(self.collect_within(self.KEPT_BYTES, *pieces), MIXED_MESSAGE)
            with self.assertRaises(gw.UpstreamMalformed):
                self.collect_within(self.KEPT_BYTES - 1, *pieces)

    def test_far_over(self):
        delta = stream({"type": "content_block_delta", "index": 0, "delta": text_delta("x" * 1000)})
        collector = fed(stream(*MIXED_EVENTS[:3]))
        with mock.patch.object(gw, "MAX_COLLECTED_BYTES", 100000):
            with self.assertRaises(gw.UpstreamMalformed) as caught:
                for _ in range(200):
                    collector.feed(delta)
        self.assertIn("larger than 100000 bytes", caught.exception.message)
        self.assertFalse(collector.complete)

    def test_pings_and_comments_cost_nothing(self):
        noise = b": a comment\n\n" + stream({"type": "ping"}) * 100
        self.assertEqual(self.collect_within(self.KEPT_BYTES, noise, MIXED), MIXED_MESSAGE)

    def test_an_event_that_never_ends(self):
        collector = gw.MessageCollector()
        with self.assertRaises(gw.UpstreamMalformed):
            for _ in range(gw.MAX_SSE_EVENT_BYTES // (1 << 20) + 1):
                collector.feed(b"x" * (1 << 20))

    def test_what_trails_behind_the_end_may_be_of_any_size(self):
        collector = fed(MIXED)
        for _ in range(gw.MAX_SSE_EVENT_BYTES // (1 << 20) + 1):
            collector.feed(b"x" * (1 << 20))
        self.assertEqual(collector.message(), MIXED_MESSAGE)

    def test_time_grows_with_the_stream_and_not_with_its_square(self):
        """Ten times the deltas, into text and into a tool's input, may take thirty times as long."""
        def seconds(count):
            deltas = stream({"type": "content_block_delta", "index": 0, "delta": text_delta("0123456789")},
                            {"type": "content_block_delta", "index": 1, "delta": json_delta("0123456789")})
            begun = stream(started(), *block_events(0, {"type": "text", "text": ""}), *block_events(1, TOOL, json_delta('["')))
            pieces = [begun, *[deltas] * count, stream(*ended())]
            least = float("inf")
            for _ in range(3):
                before = time.perf_counter()
                found = fed(*pieces).message()
                least = min(least, time.perf_counter() - before)
            self.assertEqual(len(found["content"][0]["text"]), 10 * count)
            return least

        self.assertLess(seconds(20000), 30 * seconds(2000))


if __name__ == "__main__":
    unittest.main()
