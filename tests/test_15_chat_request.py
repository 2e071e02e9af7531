"""Section 15, the request side: golden tables by field, bad input, fuzz, the prefix property."""

import base64
import functools
import gc
import json
import random
import threading
import time
import unittest

import claude_gateway as gw

OLD, HAIKU, SONNET, OPUS = (
    "claude-sonnet-4-0", "claude-haiku-4-5", "claude-sonnet-4-6", "claude-opus-4-8")
OPUS_5, HAIKU_5_5, SONNET_5_5, OPUS_5_5 = (
    "claude-opus-5", "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5")
FABLE, OTHER = "claude-fable-5", "glm-4.7"
HI = {"role": "user", "content": "hi"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
GIF = base64.b64encode(b"GIF89a" + bytes(16)).decode()
PDF = base64.b64encode(b"%PDF-1.7\n" + bytes(16)).decode()
TEXT = base64.b64encode("Grüße".encode()).decode()
MARK = {"type": "ephemeral"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
SEALED = {"type": "redacted_thinking", "data": "x"}
EMPTY_SCHEMA = {"type": "object", "properties": {}}
ADAPTIVE = {"type": "adaptive", "display": "summarized"}
NO_PARALLEL = {"disable_parallel_tool_use": True}


def text(words, **more):
    return dict({"type": "text", "text": words}, **more)


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def said(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def use(call, name="f", **arguments):
    return {"type": "tool_use", "id": call, "name": name, "input": arguments}


def result(call, *content):
    found = {"type": "tool_result", "tool_use_id": call}
    return dict(found, content=content[0]) if content else found


def called(*ids, content=None, **more):
    """An assistant message of OpenAI's with calls of f."""
    calls = [{"id": call, "type": "function", "function": {"name": "f", "arguments": "{}"}}
             for call in ids]
    return dict({"role": "assistant", "content": content, "tool_calls": calls}, **more)


def answered(call, content="done", **more):
    return dict({"role": "tool", "tool_call_id": call, "content": content}, **more)


def function(name="f", **more):
    return {"type": "function", "function": dict({"name": name}, **more)}


def tool(name="f", schema=None, **more):
    return dict({"name": name, "input_schema": schema or EMPTY_SCHEMA}, **more)


def request(*messages, model=HAIKU, **more):
    return dict({"model": model, "messages": list(messages) or [HI]}, **more)


def translated(*messages, remembered=lambda call: None, **more):
    """What becomes of a request; the request itself stays as it is."""
    values = request(*messages, **more)
    before = json.dumps(values)
    found = gw.translate_chat(values, remembered)
    assert json.dumps(values) == before, "the translation changed what it was given"
    json.dumps(found.body, allow_nan=False)
    assert found.body["stream"] is True
    return found


def rest_of(body):
    """What a body has beside the members that stand in all."""
    return {key: value for key, value in body.items()
            if key not in ("model", "max_tokens", "messages", "stream")}


class TableCase(unittest.TestCase):

    def check_messages(self, table):
        """(name, messages, the body's messages, the body's system)."""
        for name, messages, wanted, *system in table:
            with self.subTest(name):
                body = translated(*messages).body
                self.assertEqual(body["messages"], wanted)
                self.assertEqual(body.get("system"), system[0] if system else None)

    def check_fields(self, table):
        """(name, model, fields, the body's other members, ignored names, max_tokens)."""
        for name, model, fields, wanted, *more in table:
            with self.subTest(name, model=model):
                found = translated(model=model, **fields)
                self.assertEqual(rest_of(found.body), wanted)
                self.assertEqual(found.ignored, more[0] if more else ())
                if len(more) > 1:
                    self.assertEqual(found.body["max_tokens"], more[1])


class WholeBodyTest(unittest.TestCase):

    def test_a_tool_loop(self):
        found = gw.translate_chat({
            "model": "claude-opus-5-5",
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.7,
            "max_completion_tokens": 4000,
            "stop": "END",
            "user": "u-1",
            "tools": [function(description="F.", parameters={"properties": {}})],
            "messages": [
                {"role": "developer", "content": "Be brief."},
                HI,
                called("toolu_1", content="Let me see."),
                answered("toolu_1"),
                {"role": "user", "content": "And?"},
            ],
        }, {"toolu_1": [THOUGHT]}.get)
        self.assertEqual(found, gw.ChatRequest(
            body={
                "model": "claude-opus-5-5",
                "max_tokens": 4000,
                "messages": [
                    user(text("hi")),
                    said(THOUGHT, text("Let me see."), use("toolu_1")),
                    user(result("toolu_1", "done"), text("And?")),
                ],
                "tools": [{"name": "f", "description": "F.", "input_schema": EMPTY_SCHEMA}],
                "system": [text("Be brief.")],
                "thinking": ADAPTIVE,
                "stop_sequences": ["END"],
                "metadata": {"user_id": "u-1"},
                "stream": True,
            },
            stream=True, include_usage=True, ignored=("temperature",), betas=(), json_tool=""))

    def test_recorded_clients(self):
        self.assertEqual(translated(model="gpt-x", seed=1, response_format={
            "type": "json_object"}, reasoning_effort="low", max_completion_tokens=5).body, {
                "model": "gpt-x", "max_tokens": 5, "messages": [user(text("hi"))],
                "system": [text(gw.NOTE_JSON_OBJECT)], "stream": True})

    def test_rules_are_those_of_the_model_that_answers(self):
        values = request(model="gpt-4o", temperature=0.5)
        self.assertEqual(gw.translate_chat(values).body["temperature"], 0.5)
        body = gw.translate_chat(values, model="claude-opus-5-5").body
        self.assertNotIn("temperature", body)
        self.assertEqual((body["model"], body["max_tokens"]), ("gpt-4o", 128000))

    def test_automatic_caching_where_nothing_is_marked(self):
        marked = {"role": "user", "content": [text("a", cache_control=MARK)]}
        for values, caches, wanted in [
                (request(), True, MARK), (request(), False, None), (request(marked), True, None),
                (request(tools=[dict(function(), cache_control=MARK)]), True, None)]:
            with self.subTest(values=values, caches=caches):
                body = gw.translate_chat(values, caches=caches).body
                self.assertEqual(body.get("cache_control"), wanted)


class SystemTest(TableCase):

    def test_system_messages(self):
        system = {"role": "system", "content": "a"}
        later = {"role": "developer", "content": [text("b"), text(" ")], "name": "x"}
        self.check_messages([
            ("leading run", [system, later, HI], [user(text("hi"))], [text("a"), text("b")]),
            ("later ones are hoisted", [system, HI, later], [user(text("hi"))],
             [text("a"), text("b")]),
            ("between neighbours", [HI, system, HI], [user(text("hi"), text("hi"))], [text("a")]),
            ("empty", [dict(system, content=" "), HI], [user(text("hi"))], None),
            ("null", [dict(system, content=None), HI], [user(text("hi"))], None),
            ("only system", [system, later], [user(text("a"), text("b"))], None),
            ("a mark", [{"role": "system", "content": [text("a", cache_control=MARK)]}, HI],
             [user(text("hi"))], [text("a", cache_control=MARK)]),
            ("a message's mark", [dict(later, cache_control=MARK), HI],
             [user(text("hi"))], [text("b", cache_control=MARK)]),
        ])

    def test_notes_stand_before_later_messages(self):
        body = translated({"role": "system", "content": "a"}, HI, {"role": "system", "content": "b"},
                          response_format={"type": "json_object"}).body
        self.assertEqual([block["text"] for block in body["system"]],
                         ["a", gw.NOTE_JSON_OBJECT, "b"])


class UserTest(TableCase):

    def part(self, **part):
        return [{"role": "user", "content": [part]}]

    def image(self, url, **more):
        return self.part(type="image_url", image_url=dict({"url": url}, **more))

    def file(self, **file):
        return self.part(type="file", file=file)

    def test_texts(self):
        self.check_messages([
            ("string", [HI], [user(text("hi"))]),
            ("parts", [{"role": "user", "content": [text("a"), text("\n"), text("b")]}],
             [user(text("a"), text("b"))]),
            ("name", [dict(HI, name="Ann")], [user(text("hi"))]),
            ("blank neighbours", [dict(HI, content=" "), HI], [user(text("hi"))]),
            ("neighbours", [HI, HI], [user(text("hi"), text("hi"))]),
            ("refusal", self.part(type="refusal", refusal="no"), [user(text("no"))]),
            ("a mark", self.part(type="text", text="a", cache_control=dict(MARK, ttl="1h")),
             [user(text("a", cache_control=dict(MARK, ttl="1h")))]),
            ("a message's mark", [dict(HI, cache_control=MARK)],
             [user(text("hi", cache_control=MARK))]),
            ("a breakpoint", self.part(type="text", text="a", prompt_cache_breakpoint={
                "mode": "explicit", "ttl": "12h"}),
             [user(text("a", cache_control=dict(MARK, ttl="1h")))]),
        ])

    def test_images(self):
        def source(media_type, data):
            return [user({"type": "image", "source": {
                "type": "base64", "media_type": media_type, "data": data}})]

        def fetched(url):
            return [user({"type": "image", "source": {"type": "url", "url": url}})]

        self.check_messages([
            ("png", self.image("data:image/png;base64," + PNG), source("image/png", PNG)),
            ("type lies", self.image("data:image/jpeg;base64," + GIF), source("image/gif", GIF)),
            ("jpg", self.image("DATA:image/JPG;charset=x;BASE64,AAAA"),
             source("image/jpeg", "AAAA")),
            ("line breaks", self.image("data:image/png;base64,%s\r\n%s" % (PNG[:20], PNG[20:])),
             source("image/png", PNG)),
            ("https", self.image("https://a/b.png", detail="low"), fetched("https://a/b.png")),
            ("bare string", self.part(type="image_url", image_url="HTTPS://a/b.png"),
             fetched("HTTPS://a/b.png")),
        ])

    def test_files(self):
        def document(source, **more):
            return [user(dict({"type": "document", "source": source}, **more))]

        pdf = {"type": "base64", "media_type": "application/pdf", "data": PDF}
        words = {"type": "text", "media_type": "text/plain", "data": "Grüße"}
        self.check_messages([
            ("pdf", self.file(filename="a.pdf", file_data="data:application/pdf;base64," + PDF),
             document(pdf, title="a.pdf")),
            ("bare base64", self.file(file_data=PDF), document(pdf)),
            ("pdf as octets", self.file(file_data="data:application/octet-stream;base64," + PDF),
             document(pdf)),
            ("text", self.file(file_data="data:text/markdown;base64," + TEXT), document(words)),
            ("json, percent-encoded", self.file(file_data="data:application/json,Gr%C3%BC%C3%9Fe"),
             document(words)),
            ("blank text goes", [HI] + self.file(file_data="data:text/plain,%20"),
             [user(text("hi"))]),
            ("image", self.file(filename="a", file_data="data:image/png;base64," + PNG),
             [user({"type": "image", "source": {
                 "type": "base64", "media_type": "image/png", "data": PNG}})]),
            ("url as data", self.file(file_data="https://a/b.pdf"),
             document({"type": "url", "url": "https://a/b.pdf"})),
            ("url", self.file(file_url="https://a/b.pdf"),
             document({"type": "url", "url": "https://a/b.pdf"})),
        ])

    def test_a_stored_file_needs_its_beta(self):
        found = translated(*self.file(file_id="file_011CNha8"))
        self.assertEqual(found.body["messages"][0]["content"][0]["source"],
                         {"type": "file", "file_id": "file_011CNha8"})
        self.assertEqual(found.betas, (gw.FILES_BETA,))

    def test_audio_is_left_out_and_named(self):
        audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
        found = translated({"role": "user", "content": [audio, text("hi")]})
        self.assertEqual(found.body["messages"], [user(text("hi"))])
        self.assertEqual(found.ignored, ("input_audio",))


class AssistantTest(TableCase):

    def test_assistants(self):
        old = {"role": "assistant", "content": None,
               "function_call": {"name": "f", "arguments": '{"a": 1}'}}
        custom = {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "custom", "custom": {"name": "f", "input": "ls"}}]}
        self.check_messages([
            ("text and calls", [HI, called("a", "b", content="so"), answered("b"), answered("a")],
             [user(text("hi")), said(text("so"), use("a"), use("b")),
              user(result("b", "done"), result("a", "done"))]),
            ("refusal parts", [HI, {"role": "assistant", "content": [
                {"type": "refusal", "refusal": "no"}]}, HI],
             [user(text("hi")), said(text("no")), user(text("hi"))]),
            ("refusal member", [HI, {"role": "assistant", "content": None, "refusal": "no"}, HI],
             [user(text("hi")), said(text("no")), user(text("hi"))]),
            ("nothing in it", [HI, {"role": "assistant", "content": "", "audio": {"id": "x"}}, HI],
             [user(text("hi"), text("hi"))]),
            ("custom", [HI, custom, answered("c")],
             [user(text("hi")), said(use("c", input="ls")), user(result("c", "done"))]),
            ("old function", [HI, old, {"role": "function", "name": "f", "content": "done"}],
             [user(text("hi")), said(use("call_1", a=1)), user(result("call_1", "done"))]),
            ("first", [{"role": "assistant", "content": "so"}, HI],
             [user(text(".")), said(text("so")), user(text("hi"))]),
        ])

    def test_arguments(self):
        deep = "[" * 5000
        for arguments, wanted in [
                ('{"a": [1.5, null]}', {"a": [1.5, None]}), ("", {}), (" ", {}), (None, {}),
                ({"a": 1}, {"a": 1}), ("[1]", {"_arguments": "[1]"}), ("{", {"_arguments": "{"}),
                ('{"a": NaN}', {"_arguments": '{"a": NaN}'}),
                ('{"a": 1e999}', {"_arguments": '{"a": 1e999}'}), (deep, {"_arguments": deep})]:
            with self.subTest(arguments=str(arguments)[:20]):
                self.assertEqual(gw.parse_arguments(arguments), wanted)

    def test_the_end_of_a_conversation(self):
        last = {"role": "assistant", "content": "so \n"}
        for model, message, wanted in [
                (HAIKU, last, [said(text("so"))]),
                (OTHER, last, [said(text("so"))]),
                (SONNET, last, [said(text("so \n")), user(text("Continue."))]),
                (OPUS_5_5, last, [said(text("so \n")), user(text("Continue."))]),
                (HAIKU, called("a"), [said(use("a")), user(text("Continue."))])]:
            with self.subTest(model=model, message=message):
                body = translated(HI, message, model=model).body
                self.assertEqual(body["messages"][1:], wanted)

    def test_signed_thinking_comes_first(self):
        detail = {"type": "reasoning.text", "text": "hm", "signature": "sig", "index": 0}
        secret = {"type": "reasoning.encrypted", "data": "x", "format": "anthropic-claude-v1"}
        cases = [
            ("litellm", {"thinking_blocks": [dict(THOUGHT, index=0), SEALED]}, [THOUGHT, SEALED]),
            ("openrouter", {"reasoning_details": [detail, secret]}, [THOUGHT, SEALED]),
            ("both", {"thinking_blocks": [THOUGHT], "reasoning_details": [detail]}, [THOUGHT]),
            ("unsigned", {"thinking_blocks": [{"type": "thinking", "thinking": "hm"}, 7],
                          "reasoning_details": [dict(detail, signature=None)]}, []),
            ("another vendor's", {"reasoning_details": [
                dict(secret, format="openai-responses-v1"), dict(secret, format=[])]}, []),
            ("bare", {"reasoning_content": "hm", "reasoning": "hm"}, []),
        ]
        for name, members, thinking in cases:
            with self.subTest(name):
                body = translated(HI, dict({"role": "assistant", "content": "so"}, **members), HI).body
                self.assertEqual(body["messages"][1], said(*thinking, text("so")))

    def test_remembered_thinking_stands_where_it_stood(self):
        memory = {"a": [THOUGHT], "b": [THOUGHT], "c": [SEALED]}
        asked = [HI, called("a", "b", "c", content="so"), answered("a"), answered("b"), answered("c")]
        body = translated(*asked, remembered=memory.get).body
        self.assertEqual(body["messages"][1], said(
            THOUGHT, text("so"), use("a"), use("b"), SEALED, use("c")))
        asked[1]["thinking_blocks"] = [SEALED]
        body = translated(*asked, remembered=memory.get).body
        self.assertEqual(body["messages"][1]["content"][:2], [SEALED, text("so")])


class ToolResultTest(TableCase):

    def test_results(self):
        image = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
        shown = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
        self.check_messages([
            ("one user turn, results first", [HI, called("a", "b"), answered("a"), answered("b"), HI],
             [user(text("hi")), said(use("a"), use("b")),
              user(result("a", "done"), result("b", "done"), text("hi"))]),
            ("a text before them", [HI, called("a"), HI, answered("a")],
             [user(text("hi")), said(use("a")), user(result("a", "done"), text("hi"))]),
            ("parts", [HI, called("a"), answered("a", [text("x"), image, text("")])],
             [user(text("hi")), said(use("a")), user(result("a", [text("x"), shown]))]),
            ("empty", [HI, called("a"), answered("a", "")],
             [user(text("hi")), said(use("a")), user(result("a"))]),
            ("a message's mark", [HI, called("a"), answered("a", cache_control=MARK)],
             [user(text("hi")), said(use("a")),
              user(dict(result("a", "done"), cache_control=MARK))]),
            ("a stray one", [HI, answered("zz")], [user(result("zz", "done"), text("hi"))]),
            ("a stray function", [HI, {"role": "function", "name": "g", "content": "x"}],
             [user(result("call_1", "x"), text("hi"))]),
        ])

    def test_ids_are_made_legal_on_both_sides(self):
        for raw in ["functions.f:0", "call_x|fc_y", "ü", "\ud800", "x" * 4000]:
            with self.subTest(raw=raw[:20]):
                messages = translated(HI, called(raw), answered(raw)).body["messages"]
                made = messages[1]["content"][0]["id"]
                self.assertRegex(made, r"^[A-Za-z0-9_-]{1,128}$")
                self.assertEqual(messages[2]["content"][0]["tool_use_id"], made)
        self.assertNotEqual(gw.legal_id("a.b"), gw.legal_id("a:b"))

    def test_an_id_that_comes_again_gets_a_number(self):
        messages = translated(HI, called("f:0", "f:0"), answered("f:0", "1"), answered("f:0", "2"),
                              called("f:0"), answered("f:0", "3"), called("x_2"), answered("x_2"),
                              called("x"), answered("x"), called("x"), answered("x")).body["messages"]
        uses = [block["id"] for message in messages for block in message["content"]
                if block["type"] == "tool_use"]
        results = [block["tool_use_id"] for message in messages for block in message["content"]
                   if block["type"] == "tool_result"]
        self.assertEqual(uses, results)
        self.assertEqual(len(set(uses)), 6)
        self.assertEqual(uses[-3:], ["x_2", "x", "x_3"])


class ToolsTest(TableCase):

    def test_tools(self):
        schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}}
        strict = {"type": "object", "additionalProperties": False, "properties": {
            "a": {"type": "string", "description": "{minLength: 2}"}}}
        native = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
        self.check_fields([
            ("plain", HAIKU, {"tools": [function(description="d", parameters=schema)]},
             {"tools": [tool(schema=schema, description="d")]}),
            ("no parameters", HAIKU, {"tools": [function(parameters=None)]}, {"tools": [tool()]}),
            ("no type", HAIKU, {"tools": [function(parameters={"properties": {}})]},
             {"tools": [tool()]}),
            ("flat", HAIKU, {"tools": [{"type": "function", "name": "f"}]}, {"tools": [tool()]}),
            ("strict", HAIKU, {"tools": [function(parameters=schema, strict=True)]},
             {"tools": [tool(schema=strict, strict=True)]}),
            ("strict, too old", OLD, {"tools": [function(parameters=schema, strict=True)]},
             {"tools": [tool(schema=schema)]}),
            ("marked", HAIKU, {"tools": [dict(function(), cache_control=MARK)]},
             {"tools": [tool(cache_control=MARK)]}),
            ("the API's own", HAIKU, {"tools": [native, tool("g")]},
             {"tools": [native, tool("g")]}),
            ("none", HAIKU, {"tools": []}, {}),
            ("old functions", HAIKU, {"functions": [{"name": "f"}], "function_call": "auto"},
             {"tools": [tool()], "tool_choice": dict(NO_PARALLEL, type="auto")}),
        ])

    def test_custom_and_old_ones_are_told(self):
        found = translated(tools=[{"type": "custom", "custom": {"name": "sh", "format": {}}},
                                  {"type": "custom", "name": "py"}, function()])
        self.assertEqual((found.custom_tools, found.legacy), (("sh", "py"), False))
        self.assertEqual(found.body["tools"][0], tool("sh", gw.CUSTOM_TOOL_SCHEMA))
        self.assertTrue(translated(functions=[{"name": "f"}]).legacy)

    def test_history_with_calls_keeps_its_tools(self):
        body = translated(HI, called("a"), answered("a")).body
        self.assertEqual(rest_of(body), {
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "none"}})

    def test_choices(self):
        named = {"type": "function", "function": {"name": "f"}}
        some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
        both = [function(), function("g")]
        offered = [tool(), tool("g")]
        notes = {"any": [text(gw.NOTE_CALL_ANY)], "f": [text(gw.NOTE_CALL_TOOL % "f")]}
        single = {"parallel_tool_calls": False}
        table = [
            # model, choice, more fields, tool_choice, offered tools, system
            (HAIKU, "auto", {}, {"type": "auto"}, offered, None),
            (HAIKU, "none", {}, {"type": "none"}, offered, None),
            (HAIKU, "none", single, {"type": "none"}, offered, None),
            (HAIKU, "required", {}, {"type": "any"}, offered, None),
            (HAIKU, named, {}, {"type": "tool", "name": "f"}, offered, None),
            (HAIKU, {"name": "f"}, {}, {"type": "tool", "name": "f"}, offered, None),
            (HAIKU, {"type": "custom", "custom": {"name": "f"}}, {},
             {"type": "tool", "name": "f"}, offered, None),
            (HAIKU, named, single, dict(NO_PARALLEL, type="tool", name="f"), offered, None),
            (HAIKU, None, single, dict(NO_PARALLEL, type="auto"), offered, None),
            (HAIKU, None, {"parallel_tool_calls": True}, None, offered, None),
            (HAIKU, some, {}, {"type": "any"}, offered[:1], None),
            (HAIKU, {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "g"}]}, {},
             {"type": "auto"}, offered[1:], None),
            (HAIKU_5_5, "required", {}, {"type": "any"}, offered, None),
            (OPUS_5, "required", {}, {"type": "any"}, offered, None),
            (SONNET_5_5, "required", {}, {"type": "auto"}, offered, notes["any"]),
            (OPUS_5_5, named, single, dict(NO_PARALLEL, type="auto"), offered, notes["f"]),
            (FABLE, named, {}, {"type": "tool", "name": "f"}, offered, None),
            ("claude-mythos-5-1", named, {}, {"type": "auto"}, offered, notes["f"]),
            ("claude-next", named, {}, {"type": "auto"}, offered, notes["f"]),
            (OTHER, "required", {}, {"type": "any"}, offered, None),
        ]
        for model, choice, more, wanted, tools, system in table:
            with self.subTest(model=model, choice=choice, more=more):
                found = translated(model=model, tools=both, tool_choice=choice, **more)
                self.assertEqual(found.body.get("tool_choice"), wanted)
                self.assertEqual(found.body["tools"], tools)
                self.assertEqual(found.body.get("system"), system)
                self.assertEqual(found.ignored, ("tool_choice",) if system else ())

    def test_old_function_call(self):
        body = translated(functions=[{"name": "f"}], function_call={"name": "f"}).body
        self.assertEqual(body["tool_choice"], dict(NO_PARALLEL, type="tool", name="f"))


class FormatTest(TableCase):

    SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}
    CLOSED = {"type": "object", "additionalProperties": False, "properties": {
        "a": {"type": "integer", "description": "{minimum: 1}"}}}

    def asks(self, schema=None, **more):
        return {"type": "json_schema", "json_schema": dict(
            {"name": "x", "strict": True, "schema": schema or self.SCHEMA}, **more)}

    def test_formats(self):
        native = {"output_config": {"format": {"type": "json_schema", "schema": self.CLOSED}}}
        forced = {"type": "tool", "name": "json_response", "disable_parallel_tool_use": True}
        taker = tool("json_response", self.SCHEMA, description="d")
        note = {"system": [text(gw.NOTE_JSON_OBJECT)]}
        wanted = self.asks(description="d")
        self.check_fields([
            ("text", HAIKU, {"response_format": {"type": "text"}}, {}),
            ("object", HAIKU, {"response_format": {"type": "json_object"}}, note),
            ("no schema", HAIKU, {"response_format": self.asks({"type": "object"})}, note),
            ("schema", HAIKU, {"response_format": wanted}, native),
            ("beside a raw config", SONNET,
             {"response_format": wanted, "output_config": {"effort": "low"}},
             {"output_config": dict(native["output_config"], effort="low")}),
            ("too old", OLD, {"response_format": wanted},
             {"tools": [taker], "tool_choice": forced}),
            ("another vendor", OTHER, {"response_format": wanted, "tools": [function()]},
             {"tools": [tool(), taker], "tool_choice": {"type": "any"}}),
            ("calls switched off", OTHER,
             {"response_format": wanted, "tools": [function()], "tool_choice": "none"},
             {"tools": [tool(), taker], "tool_choice": forced}),
            ("a call is forced", OTHER,
             {"response_format": wanted, "tools": [function()], "tool_choice": "required"},
             {"tools": [tool()], "tool_choice": {"type": "any"},
              "system": [text(gw.NOTE_JSON_SCHEMA + gw.json_text(self.SCHEMA))]}),
        ])

    def test_the_emulating_tool_is_told(self):
        self.assertEqual(translated(model=OLD, response_format=self.asks()).json_tool,
                         "json_response")
        found = translated(model=OTHER, response_format=self.asks(),
                           tools=[function("json_response")])
        self.assertEqual(found.json_tool, "json_response_")
        self.assertEqual(translated(response_format=self.asks()).json_tool, "")

    def test_trimmed_schemas(self):
        closed = {"type": "object", "additionalProperties": False}
        table = [
            ({"type": "object"}, closed),
            ({"type": ["object", "null"]}, dict(closed, type=["object", "null"])),
            ({"type": "object", "additionalProperties": {"type": "string"}},
             dict(closed, description='{additionalProperties: {"type":"string"}}')),
            ({"oneOf": [{"type": "object"}]}, {"anyOf": [closed]}),
            ({"allOf": [{"type": "object"}]}, {"allOf": [closed]}),
            ({"$defs": {"minimum": {"type": "object"}}, "$ref": "#/$defs/minimum"},
             {"$defs": {"minimum": closed}, "$ref": "#/$defs/minimum"}),
            ({"properties": {"format": {"type": "string", "format": "uri"}}},
             {"properties": {"format": {"type": "string", "format": "uri"}},
              "additionalProperties": False}),
            ({"type": "string", "format": "regex"},
             {"type": "string", "description": "{format: \"regex\"}"}),
            ({"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object"}},
             {"type": "array", "minItems": 1, "items": closed, "description": "{maxItems: 2}"}),
            ({"type": "array", "minItems": 2, "description": "Two."},
             {"type": "array", "description": "Two.\n\n{minItems: 2}"}),
            ({"$schema": "x", "enum": ["minimum"], "default": {"oneOf": 1}},
             {"enum": ["minimum"], "default": {"oneOf": 1}}),
            (True, True),
        ]
        for schema, wanted in table:
            with self.subTest(schema=schema):
                self.assertEqual(gw.trimmed_schema(schema), wanted)


class LimitsAndSamplingTest(TableCase):

    def test_max_tokens(self):
        for model, fields, wanted in [
                (HAIKU, {}, 64000), (OLD, {}, 8192), (OTHER, {}, 8192), (SONNET, {}, 128000),
                (OPUS_5_5, {}, 128000), ("claude-next", {}, 128000),
                (HAIKU, {"max_tokens": 5}, 5), (HAIKU, {"max_completion_tokens": 6}, 6),
                (HAIKU, {"max_tokens": 5, "max_completion_tokens": 6}, 6),
                (HAIKU, {"max_tokens": None}, 64000)]:
            with self.subTest(model=model, fields=fields):
                self.assertEqual(translated(model=model, **fields).body["max_tokens"], wanted)

    def test_sampling(self):
        thinks = {"reasoning_effort": "low", "max_completion_tokens": 9000}
        budget = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
        self.check_fields([
            ("capped", HAIKU, {"temperature": 1.7}, {"temperature": 1}),
            ("top_p alone", HAIKU, {"top_p": 0.5, "top_k": 3}, {"top_p": 0.5, "top_k": 3}),
            ("one of both", HAIKU, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5},
             ("top_p",)),
            ("both for others", OTHER, {"temperature": 0.5, "top_p": 0.5},
             {"temperature": 0.5, "top_p": 0.5}),
            ("both before 4", "claude-3-5-haiku-20241022", {"temperature": 0.5, "top_p": 0.5},
             {"temperature": 0.5, "top_p": 0.5}),
            ("gone with 4.7", OPUS, {"temperature": 0.5, "top_p": 0.5, "top_k": 3}, {},
             ("temperature", "top_k", "top_p")),
            ("nothing lost at 1", OPUS, {"temperature": 1, "top_p": 1.0}, {}),
            ("while thinking", HAIKU, dict(thinks, temperature=0.5, top_p=0.5), budget,
             ("temperature", "top_p")),
            ("top_p while thinking", HAIKU, dict(thinks, top_p=0.96), dict(budget, top_p=0.96)),
            ("4.6 thinking", SONNET, {"temperature": 0.5, "reasoning_effort": "low"},
             {"thinking": ADAPTIVE, "output_config": {"effort": "low"}}, ("temperature",)),
            ("4.6 not thinking", SONNET, {"temperature": 0.5}, {"temperature": 0.5}),
        ])

    def test_the_rest(self):
        long_id = "u" * 300
        self.check_fields([
            ("stop", HAIKU, {"stop": "x"}, {"stop_sequences": ["x"]}),
            ("stops", HAIKU, {"stop": ["x", " ", ""]}, {"stop_sequences": ["x"]}),
            ("blank stop", HAIKU, {"stop": "\n"}, {}),
            ("user", HAIKU, {"user": "u"}, {"metadata": {"user_id": "u"}}),
            ("safety", HAIKU, {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}},
             {"metadata": {"user_id": "s"}}),
            ("blank user", HAIKU, {"user": " "}, {}),
            ("e-mail", HAIKU, {"user": "ann@example.com"},
             {"metadata": {"user_id": gw.parse_user("ann@example.com")}}),
            ("telephone", HAIKU, {"user": "+49 (30) 1234-567"},
             {"metadata": {"user_id": gw.parse_user("+49 (30) 1234-567")}}),
            ("long", HAIKU, {"user": long_id}, {"metadata": {"user_id": gw.parse_user(long_id)}}),
            ("neutral", HAIKU, {"n": 1, "logprobs": False, "presence_penalty": 0.0, "store": False,
                                "frequency_penalty": 0, "modalities": ["text"], "seed": None,
                                "service_tier": "auto", "logit_bias": {}, "prompt_cache_key": "k"},
             {}),
            ("ignored", HAIKU, {"seed": 0, "logprobs": True, "top_logprobs": 3, "prediction": {},
                                "verbosity": "low", "modalities": ["text", "audio"], "xyz": [],
                                "a\r\nb": 1, "service_tier": "flex", "web_search_options": {}},
             {}, ("logprobs", "modalities", "prediction", "seed", "service_tier", "top_logprobs",
                  "verbosity", "web_search_options", "xyz")),
        ])
        self.assertEqual(len(gw.parse_user("ann@example.com")), 64)

    def test_ignored_names_are_bounded(self):
        found = translated(**{"field_%d" % number: 1 for number in range(500)})
        self.assertEqual(len(found.ignored), gw.MAX_IGNORED_NAMES)


class ThinkingTest(TableCase):

    def effort(self, word, thinking=ADAPTIVE):
        return {"thinking": thinking, "output_config": {"effort": word}}

    def budget(self, tokens):
        return {"thinking": {"type": "enabled", "budget_tokens": tokens}}

    def test_nothing_said(self):
        for model in (OLD, HAIKU, SONNET, OPUS, OTHER):
            self.check_fields([("silent", model, {}, {})])
        for model in (OPUS_5, HAIKU_5_5, SONNET_5_5, OPUS_5_5, FABLE, "claude-next"):
            self.check_fields([("unasked", model, {}, {"thinking": ADAPTIVE})])

    def test_efforts(self):
        lost = ("reasoning_effort",)
        table = [
            (OPUS, "minimal", self.effort("low"), ()),
            (OPUS, "xhigh", self.effort("xhigh"), ()),
            (SONNET, "xhigh", self.effort("high"), ()),
            (SONNET, "max", self.effort("max"), ()),
            (OPUS_5_5, "medium", self.effort("medium"), ()),
            (HAIKU, "minimal", self.budget(2048), ()),
            (HAIKU, "medium", self.budget(8192), ()),
            (HAIKU, "max", self.budget(32000), ()),
            (OLD, "high", self.budget(8192 - 1024), ()),
            (OTHER, "high", {}, lost),
            ("claude-3-5-haiku-20241022", "high", {}, lost),
            # switched off
            (HAIKU, "none", {}, ()),
            (OPUS, "none", {}, ()),
            (OPUS_5, "none", {"thinking": {"type": "disabled"}}, ()),
            (HAIKU_5_5, "none", {"thinking": {"type": "disabled"}}, ()),
            (SONNET_5_5, "none", {"thinking": {"type": "between_tools"}}, ()),
            (OPUS_5_5, "none", {"output_config": {"effort": "low"}}, ()),
            (FABLE, "none", {"output_config": {"effort": "low"}}, ()),
            (OTHER, "none", {}, ()),
        ]
        self.check_fields([(effort, model, {"reasoning_effort": effort}, wanted, ignored)
                           for model, effort, wanted, ignored in table])

    def test_budgets_and_limits(self):
        high = {"reasoning_effort": "high"}
        self.check_fields([
            ("within", HAIKU, dict(high, max_completion_tokens=20000), self.budget(16384), (), 20000),
            ("cut", HAIKU, dict(high, max_completion_tokens=5000), self.budget(3976), (), 5000),
            ("no room", HAIKU, dict(high, max_completion_tokens=2000), {},
             ("reasoning_effort",), 2000),
            ("added", HAIKU, dict(high, max_tokens=500), self.budget(16384), (), 16884),
            ("capped", HAIKU, dict(high, max_tokens=60000), self.budget(16384), (), 64000),
            ("suffix makes room", HAIKU + "-thinking", dict(high, max_completion_tokens=1500),
             self.budget(1024), (), 2048),
        ])

    def test_the_suffix_is_section_8(self):
        self.check_fields([
            ("budget", HAIKU + "-thinking", {"temperature": 0.5}, self.budget(32000),
             ("temperature",), 64000),
            ("small", HAIKU + "-thinking", {"max_completion_tokens": 1500}, self.budget(1200), (),
             1500),
            ("adaptive", OPUS + "-thinking", {}, {"thinking": ADAPTIVE}),
            ("effort as well", OPUS + "-thinking", {"reasoning_effort": "low"}, self.effort("low")),
            ("off wins", OPUS + "-thinking", {"reasoning_effort": "none"},
             {"thinking": {"type": "disabled"}}),
            ("a vendor's own name", "kimi-k2-thinking", {}, {}),
        ])
        self.assertEqual(translated(model=OPUS + "-thinking").body["model"], OPUS + "-thinking")

    def test_section_8_changes_nothing_after_it(self):
        forced = {"tools": [function()], "tool_choice": "required"}
        loop = [HI, called("a"), answered("a")]
        for stem in (OLD, HAIKU, SONNET, OPUS, OPUS_5, SONNET_5_5):
            for messages, fields in [([], {}), ([], forced), (loop, {}),
                                     ([], {"reasoning_effort": "none"}),
                                     ([], {"reasoning_effort": "low", "max_tokens": 5})]:
                with self.subTest(model=stem, fields=fields):
                    body = translated(*messages, model=stem + "-thinking", **fields).body
                    self.assertIs(gw.with_thinking(body, stem), body)

    def test_openrouters_reasoning(self):
        hidden = {"type": "adaptive", "display": "omitted"}
        self.check_fields([
            ("effort", OPUS, {"reasoning": {"effort": "high"}}, self.effort("high")),
            ("enabled", OPUS, {"reasoning": {"enabled": True}}, {"thinking": ADAPTIVE}),
            ("disabled", OPUS_5, {"reasoning": {"enabled": False}},
             {"thinking": {"type": "disabled"}}),
            ("excluded", OPUS, {"reasoning": {"effort": "low", "exclude": True}},
             self.effort("low", hidden)),
            ("budget", HAIKU, {"reasoning": {"max_tokens": 3000}}, self.budget(3000)),
            ("4.6 has both", SONNET, {"reasoning": {"max_tokens": 3000}}, self.budget(3000)),
            ("budget as effort", OPUS, {"reasoning": {"max_tokens": 3000}}, self.effort("medium")),
            ("no budget", OPUS_5, {"reasoning": {"max_tokens": 0}},
             {"thinking": {"type": "disabled"}}),
        ])

    def test_raw_thinking_wins(self):
        adaptive = {"type": "adaptive"}
        enabled = {"type": "enabled", "budget_tokens": 5000}
        off = {"type": "disabled"}
        self.check_fields([
            ("as given", OPUS, {"thinking": adaptive, "output_config": {"effort": "max"}},
             self.effort("max", adaptive)),
            ("beside an effort", OPUS, {"thinking": adaptive, "reasoning_effort": "low"},
             self.effort("low", adaptive)),
            ("budget", HAIKU, {"thinking": enabled}, self.budget(5000)),
            ("budget that is none", OPUS, {"thinking": enabled}, self.effort("high")),
            ("adaptive that is none", HAIKU, {"thinking": adaptive}, self.budget(32000)),
            ("off", HAIKU, {"thinking": off}, {}),
            ("off at high effort", OPUS_5, {"thinking": off, "output_config": {"effort": "max"}},
             self.effort("high", off)),
            ("cannot be off", OPUS_5_5, {"thinking": off}, {"output_config": {"effort": "low"}}),
            ("between tools", SONNET_5_5, {"thinking": dict(adaptive, type="between_tools", x=1)},
             {"thinking": dict(adaptive, type="between_tools", x=1)}),
            ("another vendor", OTHER, {"thinking": enabled}, {"thinking": enabled}),
            ("too old", "claude-3-5-haiku-20241022", {"thinking": enabled}, {}, ("thinking",)),
        ])

    def test_a_forced_tool_keeps_it_off_up_to_4_6(self):
        fields = {"tools": [function()], "tool_choice": "required", "reasoning_effort": "high"}
        for model, thinks in [(HAIKU, False), (SONNET, False), (OPUS, True), (OPUS_5, True)]:
            with self.subTest(model=model):
                found = translated(model=model, **fields)
                self.assertEqual("thinking" in found.body, thinks)
                self.assertEqual(found.ignored, () if thinks else ("reasoning_effort",))

    def test_a_tool_loop_without_its_signature(self):
        loop = [HI, called("a"), answered("a")]
        memory = {"a": [THOUGHT]}.get
        for model, remembered, thinks in [
                (HAIKU, memory, True), (HAIKU, lambda call: None, False),
                (OPUS, lambda call: None, True), (OPUS_5_5, lambda call: None, True)]:
            with self.subTest(model=model, thinks=thinks):
                body = translated(*loop, model=model, reasoning_effort="high",
                                  remembered=remembered).body
                self.assertEqual("thinking" in body, thinks)
        raw = {"type": "enabled", "budget_tokens": 5000}
        self.assertNotIn("thinking", translated(*loop, thinking=raw).body)
        self.assertNotIn("thinking", translated(*loop, model=HAIKU + "-thinking").body)


class BadInputTest(unittest.TestCase):

    def check(self, values, param, code):
        with self.assertRaises(gw.ChatError) as caught:
            gw.translate_chat(values)
        error = caught.exception
        self.assertEqual((error.status, error.param, error.code), (400, param, code))
        self.assertTrue(error.message.startswith(param + ": "), error.message)

    def test_fields(self):
        kind, value, missing, unsupported = (
            "invalid_type", "invalid_value", "missing_required_parameter", "unsupported_value")
        offers = {"tools": [function()]}
        table = [
            ({"model": None}, "model", missing), ({"model": ""}, "model", value),
            ({"model": 7}, "model", kind), ({"model": "m" * 600}, "model", value),
            ({"messages": None}, "messages", missing), ({"messages": {}}, "messages", kind),
            ({"messages": []}, "messages", value), ({"messages": [7]}, "messages[0]", kind),
            ({"n": 2}, "n", unsupported), ({"n": True}, "n", kind), ({"n": "1"}, "n", kind),
            ({"max_tokens": 0}, "max_tokens", value), ({"max_tokens": 1.5}, "max_tokens", kind),
            ({"max_tokens": 10 ** 4000}, "max_tokens", value),
            ({"max_completion_tokens": -1}, "max_completion_tokens", value),
            ({"temperature": "1"}, "temperature", kind), ({"temperature": 2.1}, "temperature", value),
            ({"temperature": float("nan")}, "temperature", value),
            ({"temperature": float("inf")}, "temperature", value),
            ({"top_p": True}, "top_p", kind), ({"top_p": -1}, "top_p", value),
            ({"stop": 7}, "stop", kind), ({"stop": ["a", 7]}, "stop[1]", kind),
            ({"stream": 1}, "stream", kind), ({"stream_options": []}, "stream_options", kind),
            ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", kind),
            ({"modalities": ["audio"]}, "modalities", unsupported),
            ({"reasoning_effort": "huge"}, "reasoning_effort", value),
            ({"reasoning_effort": []}, "reasoning_effort", kind),
            ({"reasoning": {"effort": "huge"}}, "reasoning.effort", value),
            ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens", value),
            ({"thinking": {}}, "thinking.type", missing),
            ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", kind),
            ({"thinking": {"type": "x", "y": float("inf")}}, "thinking", value),
            ({"user": 7}, "user", kind), ({"response_format": "json"}, "response_format", kind),
            ({"response_format": {"type": "xml"}}, "response_format.type", value),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", missing),
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}},
             "response_format.json_schema.schema", kind),
            ({"tools": {}}, "tools", kind), ({"tools": [7]}, "tools[0]", kind),
            ({"tools": [{"type": "x"}]}, "tools[0].type", value),
            ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", missing),
            ({"tools": [function(parameters=[])]}, "tools[0].function.parameters", kind),
            ({"functions": [{}]}, "functions[0].name", missing),
            ({"tool_choice": "required"}, "tool_choice", value),
            ({"function_call": {"name": "f"}}, "function_call", value),
            (dict(offers, tool_choice="sometimes"), "tool_choice", value),
            (dict(offers, tool_choice=7), "tool_choice", kind),
            (dict(offers, tool_choice={"type": "function", "function": {}}),
             "tool_choice.function.name", missing),
            (dict(offers, tool_choice={"name": "g"}), "tool_choice", value),
            (dict(offers, tool_choice={"type": "allowed_tools", "tools": [{"name": "g"}]}),
             "tool_choice.allowed_tools.tools", value),
        ]
        for fields, param, code in table:
            with self.subTest(fields=str(fields)[:80]):
                self.check(dict(request(), **fields), param, code)

    def test_messages(self):
        def part(**members):
            return {"role": "user", "content": [text("a"), members]}

        image, data = "content[1].image_url", "content[1].file.file_data"
        table = [
            ({}, "role", "missing_required_parameter"), ({"role": "bot"}, "role", "invalid_value"),
            ({"role": "user", "content": 7}, "content", "invalid_type"),
            ({"role": "user", "content": [7]}, "content[0]", "invalid_type"),
            (part(type="video_url"), "content[1].type", "invalid_value"),
            (part(type=[]), "content[1].type", "invalid_value"),
            (part(type="text", text=7), "content[1].text", "invalid_type"),
            (part(type="text", text="a", cache_control=7), "content[1].cache_control",
             "invalid_type"),
            (part(type="image_url"), image, "missing_required_parameter"),
            (part(type="image_url", image_url={}), image + ".url", "missing_required_parameter"),
            (part(type="image_url", image_url="http://a"), image, "invalid_value"),
            (part(type="image_url", image_url={"url": "data:image/png,abc"}), image + ".url",
             "invalid_value"),
            (part(type="image_url", image_url={"url": "data:image/svg+xml;base64,AAAA"}),
             image + ".url", "invalid_value"),
            (part(type="image_url", image_url={"url": "data:image/png;base64,"}),
             image + ".url", "invalid_value"),
            (part(type="file", file={}), "content[1].file.file_data", "missing_required_parameter"),
            (part(type="file", file={"file_data": "data:application/zip;base64,AAAA"}), data,
             "invalid_value"),
            (part(type="file", file={"file_data": "data:text/plain;base64,/w=="}), data,
             "invalid_value"),
            (part(type="file", file={"file_data": "data:text/plain;base64,ü"}), data,
             "invalid_value"),
            (part(type="file", file={"file_id": "file-abc"}), "content[1].file.file_id",
             "invalid_value"),
            (part(type="file", file={"file_url": "http://a"}), "content[1].file.file_url",
             "invalid_value"),
            ({"role": "user", "content": [{"type": "input_audio"}]}, "content",
             "unsupported_value"),
            ({"role": "system", "content": [{"type": "image_url"}]}, "content[0].type",
             "invalid_value"),
            ({"role": "assistant", "tool_calls": {}}, "tool_calls", "invalid_type"),
            ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0].id",
             "missing_required_parameter"),
            ({"role": "assistant", "tool_calls": [{"id": "a", "type": "x"}]},
             "tool_calls[0].type", "invalid_value"),
            ({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f",
              "arguments": 7}}]}, "tool_calls[0].function.arguments", "invalid_type"),
            ({"role": "assistant", "thinking_blocks": 7}, "thinking_blocks", "invalid_type"),
            ({"role": "tool", "content": "x"}, "tool_call_id", "missing_required_parameter"),
            ({"role": "function", "content": "x"}, "name", "missing_required_parameter"),
        ]
        for message, param, code in table:
            with self.subTest(message=message):
                self.check(request(HI, message), "messages[1]." + param, code)


def rich_request(chance):
    """A request with nearly every member, for the fuzz to break."""
    return request(
        {"role": "system", "content": [text("s", cache_control=MARK)]},
        {"role": "user", "content": [
            text("a"),
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}},
            {"type": "file", "file": {"filename": "a", "file_data": PDF}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64," + TEXT}},
            {"type": "text", "text": "b", "prompt_cache_breakpoint": {"ttl": "30m"}}]},
        called("a", "b.c", content="so", thinking_blocks=[THOUGHT],
               reasoning_details=[{"type": "reasoning.text", "text": "x", "signature": "y"}]),
        answered("a", [text("x")]), answered("b.c"),
        {"role": "assistant", "function_call": {"name": "g", "arguments": '{"a": [1]}'}},
        {"role": "function", "name": "g", "content": "y"},
        model=chance.choice([OLD, HAIKU, SONNET, OPUS, OPUS_5, OPUS_5_5, OTHER]),
        tools=[function(parameters={"type": "object", "properties": {"a": {"minimum": 1}}},
                        strict=True), {"type": "custom", "custom": {"name": "c"}}],
        functions=[{"name": "g"}], parallel_tool_calls=False,
        tool_choice=chance.choice(["auto", "required", {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}]),
        response_format={"type": "json_schema", "json_schema": {"schema": {
            "type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}}}},
        reasoning_effort="high", reasoning={"effort": "low", "max_tokens": 3000},
        thinking={"type": "enabled", "budget_tokens": 3000}, output_config={"effort": "max"},
        stop=["x"], temperature=0.5, top_p=0.5, top_k=5, user="u", n=1, stream=True, seed=1,
        max_tokens=5000, max_completion_tokens=6000, stream_options={"include_usage": True})


DEEP = functools.reduce(lambda inner, _: [inner], range(900), [])
STRANGE_VALUES = [
    None, True, False, 0, 1, -1, 10 ** 4000, 1.5, float("nan"), float("inf"), "", " ", "x",
    "\ud800", "a" * 300, "data:image/png;base64,", "data:,", "https://", DEEP, {"type": DEEP},
    {"type": "text", "text": "\udfff"}, "[" * 3000, "auto", "none"]


def strange_value(chance, depth=0):
    """Anything that a JSON parser may give, and some that it may not."""
    if depth < 3 and chance.random() < 0.4:
        if chance.random() < 0.5:
            return [strange_value(chance, depth + 1) for _ in range(chance.randrange(3))]
        names = ["type", "name", "function", "content", "text", "url", "tools", "role", "\ud800"]
        return {chance.choice(names): strange_value(chance, depth + 1)
                for _ in range(chance.randrange(3))}
    return chance.choice(STRANGE_VALUES)


def places_of(value):
    """Every (container, key) of a JSON value."""
    found, below = [], [value]
    while below:
        item = below.pop()
        for key in (item if isinstance(item, dict) else range(len(item))):
            found.append((item, key))
            if isinstance(item[key], (dict, list)):
                below.append(item[key])
    return found


class FuzzTest(unittest.TestCase):

    def survives(self, values):
        """A request gives a body that can be written, or a ChatError with its place."""
        try:
            found = gw.translate_chat(values, lambda call: [THOUGHT])
        except gw.ChatError as error:
            self.assertTrue(error.param)
            error.param.encode("ascii")
            error.message.encode("utf-8")
            return False
        json.dumps(found.body, allow_nan=False)
        json.dumps(found.ignored).encode("ascii")
        return True

    def test_a_strange_value_in_every_place(self):
        for seed in range(12):
            chance = random.Random(seed)
            whole = json.dumps(rich_request(random.Random(seed)))
            for number in range(len(places_of(json.loads(whole)))):
                values = json.loads(whole)  # nothing of it is shared
                container, key = places_of(values)[number]
                container[key] = strange_value(chance)
                with self.subTest(seed=seed, number=number):
                    self.survives(values)

    def test_a_member_that_is_not_there(self):
        whole = json.dumps(rich_request(random.Random(1)))
        for number in range(len(places_of(json.loads(whole)))):
            values = json.loads(whole)
            container, key = places_of(values)[number]
            del container[key]
            self.survives(values)

    def test_nothing_but_strange_values(self):
        for seed in range(300):
            chance = random.Random(seed)
            values = {name: strange_value(chance) for name in (*gw.CHAT_FIELDS, "messages", "\ud800")
                      if chance.random() < 0.3}
            self.survives(dict(values, model="m") if seed % 2 else values)

    def test_the_request_itself_is_good(self):
        for seed in range(20):
            self.assertTrue(self.survives(rich_request(random.Random(seed))))

    def test_deep_schemas_and_arguments(self):
        def nested(levels):
            schema = {"type": "object"}
            for _ in range(levels):
                schema = {"type": "array", "items": schema}
            return schema

        limit = gw.MAX_CHAT_DEPTH - 1
        self.assertTrue(self.survives(request(tools=[function(parameters=dict(
            nested(limit), type="object"), strict=True)])))
        self.assertFalse(self.survives(request(tools=[function(parameters=nested(limit + 1))])))


def random_conversation(chance):
    """Messages of a well-formed conversation, and the lengths at which it is a request."""
    messages, requests, calls = [], [], 0
    if chance.random() < 0.7:
        messages.append({"role": chance.choice(["system", "developer"]), "content": "s"})
    if chance.random() < 0.1:
        messages.append({"role": "assistant", "content": "Welcome."})
    for turn in range(chance.randrange(1, 6)):
        messages.append(chance.choice([
            {"role": "user", "content": "u%d" % turn},
            {"role": "user", "content": [text("a"), text(" "), {
                "type": "image_url", "image_url": "https://a/%d.png" % turn}]}]))
        requests.append(len(messages))
        if chance.random() < 0.2:
            messages.append({"role": "system", "content": "later %d" % turn})
            requests.append(len(messages))
        while chance.random() < 0.5:
            ids = ["functions.f:%d" % number if chance.random() < 0.5 else "call_%d" % calls
                   for number in range(chance.randrange(1, 4))]
            calls += 1
            messages.append(called(*ids, content=chance.choice([None, "so", "so "])))
            for call in ids:
                messages.append(answered(call, chance.choice(["", "r", [text("r")]])))
            requests.append(len(messages))
        messages.append({"role": "assistant", "content": chance.choice(["ok", "ok \n", "", None])})
    return messages, requests


class PrefixTest(unittest.TestCase):

    FIELDS = [
        {},
        {"tools": [function(), function("g")], "tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"tools": [function()], "tool_choice": "required"},
    ]

    def assert_begins(self, earlier, later):
        """The earlier turns stand unchanged; the last of them may have grown."""
        for one, other in zip(earlier[:-1], later):
            self.assertEqual(one, other)
        grown = later[len(earlier) - 1]
        self.assertEqual(earlier[-1]["role"], grown["role"])
        self.assertEqual(earlier[-1]["content"], grown["content"][:len(earlier[-1]["content"])])

    def test_a_turn_is_a_beginning_of_the_next(self):
        for seed in range(400):
            chance = random.Random(seed)
            messages, lengths = random_conversation(chance)
            fields, model = chance.choice(self.FIELDS), chance.choice([HAIKU, OPUS, OPUS_5_5, OTHER])

            def remembered(call):
                return [dict(THOUGHT, thinking=call)] if len(call) % 2 else None

            before = None
            for length in lengths:
                body = translated(*messages[:length], remembered=remembered, model=model,
                                  **fields).body
                with self.subTest(seed=seed, length=length):
                    if before is not None:
                        self.assert_begins(before["messages"], body["messages"])
                        for key in ("system", "tools"):
                            earlier = before.get(key, [])
                            self.assertEqual(earlier, body.get(key, [])[:len(earlier)])
                before = body

    def test_what_the_sanitizer_would_mend_is_not_there(self):
        for seed in range(200):
            messages, lengths = random_conversation(random.Random(seed))
            body = translated(*messages[:lengths[-1]]).body
            with self.subTest(seed=seed):
                self.assertEqual(gw.sanitized(body, gw.SANITIZE_PROFILES["others"])[1], [])


class ToolMemoryTest(unittest.TestCase):

    def test_gives_back_what_was_kept_for_each_call_of_a_turn(self):
        memory = gw.ToolMemory()
        memory.remember(["a", "b"], [THOUGHT, text("no thinking"), SEALED])
        self.assertEqual(memory.recall("a"), [THOUGHT, SEALED])
        self.assertEqual(memory.recall("b"), [THOUGHT, SEALED])
        self.assertIsNone(memory.recall("c"))

    def test_a_turn_without_thinking_is_not_kept(self):
        memory = gw.ToolMemory()
        memory.remember(["a"], [text("x")])
        memory.remember(["a"], [])
        self.assertIsNone(memory.recall("a"))

    def test_least_lately_used_go_first(self):
        memory = gw.ToolMemory(max_calls=2)
        for call in "ab":
            memory.remember([call], [THOUGHT])
        memory.recall("a")
        memory.remember(["c"], [THOUGHT])
        self.assertEqual([memory.recall(call) is None for call in "abc"], [False, True, False])

    def test_characters_are_bounded(self):
        block = {"type": "redacted_thinking", "data": "x" * 100}
        one = len("type" "redacted_thinking" "data") + 100 + 1
        memory = gw.ToolMemory(max_chars=2 * one)
        for call in "abc":
            memory.remember([call], [block])
        self.assertEqual([memory.recall(call) is None for call in "abc"], [True, False, False])
        memory.remember(["d"], [dict(block, data="x" * 1000)])
        self.assertIsNone(memory.recall("d"))
        memory.remember(["b"], [block])  # again: counted once
        self.assertIsNotNone(memory.recall("c"))

    def test_many_threads(self):
        memory = gw.ToolMemory(max_calls=50, max_chars=5000)
        failures = []

        def work(number):
            chance = random.Random(number)
            try:
                for _ in range(500):
                    call = "call_%d" % chance.randrange(200)
                    memory.remember([call], [dict(THOUGHT, thinking=call)])
                    found = memory.recall("call_%d" % chance.randrange(200))
                    if found is not None and len(found) != 1:
                        failures.append(found)
            except Exception as error:  # told below, in the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        kept = [call for call in ("call_%d" % number for number in range(200))
                if memory.recall(call) is not None]
        self.assertTrue(0 < len(kept) <= 50)


# Costs: python3 -m tests.test_15_chat_request


def conversations(size):
    """(name, request) of about ``size`` bytes each."""
    words = "the quick brown fox jumps over the lazy dog " * 45
    arguments = json.dumps({"path": "/a/b.py", "lines": list(range(40)), "text": words[:500]})
    loop = [HI]
    for number in range(size // 2850):
        loop += [called("call_%d" % number, content="so"), answered("call_%d" % number, words)]
        loop[-2]["tool_calls"][0]["function"]["arguments"] = arguments
    chat = [HI, {"role": "assistant", "content": "hello"}] * (size // 80)
    calls = [HI]
    for number in range(size // 190):
        calls += [called("f:0"), answered("f:0", "x")]
    parts = [{"role": "user", "content": [text("x")] * (size // 30)}]
    images = [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG * 1000}}]}
        for _ in range(size // (len(PNG) * 1000))]
    schema = {"type": "object", "properties": {
        "p%d" % number: {"type": "string", "description": words[:80]} for number in range(20)}}
    tools = [function("f%d" % number, parameters=schema, strict=True)
             for number in range(size // 3000)]
    numbers = dict(HI), called("a"), answered("a")
    numbers[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(
        {"a": [1] * (size // 3)})
    return [
        ("agent loop", request(*loop)),
        ("one-word messages", request(*chat)),
        ("one id again and again", request(*calls)),
        ("one-letter parts", request(*parts)),
        ("images", request(*images)),
        ("strict tools", request(tools=tools)),
        ("numbers in arguments", request(*numbers)),
    ]


def seconds_for(values, rounds=3):
    """The best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()  # other programs' work is not ours
        gw.translate_chat(values, lambda call: [THOUGHT])
        best = min(best, time.process_time() - began)
    return best


class CostTest(unittest.TestCase):

    def test_cost_grows_with_the_size_alone(self):
        """Eight times the size costs eight times as much, and more where it leaves the
        processor's cache; quadratic work would be 64 times."""
        small, large = conversations(125 * 1000), conversations(1000 * 1000)
        gc.disable()  # its own cost depends on what the other tests have left
        self.addCleanup(gc.enable)
        for (name, little), (_, much) in zip(small, large):
            with self.subTest(name):
                self.assertLess(seconds_for(much), 32 * seconds_for(little) + 0.01)


def benchmark():
    """Print what a megabyte of each kind of conversation costs."""
    for name, values in conversations(1000 * 1000):
        size = len(json.dumps(values))
        print("%-24s %5.2f MB  %6.1f ms" % (name, size / 1e6, seconds_for(values, 7) * 1e3))


if __name__ == "__main__":
    benchmark()
