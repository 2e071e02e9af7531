"""Section 7, sanitizing and warm-up: single rules, then properties over generated conversations."""

import glob
import json
import os
import random
import time
import unittest

import claude_gateway as gw
from tests import support

SEEDS = range(400)
DATA = os.path.join(support.TESTS_DIRECTORY, "data")
RECORDINGS = os.path.join(support.PROJECT_DIRECTORY, "..", "shared", "client-requests", "*.json")


def text(words="hello", **more):
    return dict({"type": "text", "text": words}, **more)


def use(call, **arguments):
    return {"type": "tool_use", "id": call, "name": "Read", "input": arguments}


def result(call, content="done", **more):
    return dict({"type": "tool_result", "tool_use_id": call, "content": content}, **more)


def thought(words="hm", signature="sig"):
    return {"type": "thinking", "thinking": words, "signature": signature}


def user(*content):
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content):
    return dict(user(*content), role="assistant")


def system(*content, **more):
    return dict({"role": "system", "content": list(content)}, **more)


def body_of(*messages, **more):
    return dict({"model": "m", "messages": list(messages)}, **more)


def apply(rule, setting, *messages, **more):
    """What a rule makes of a body, as plain values."""
    body = body_of(*messages, **more)
    before = json.dumps(body)
    after = gw.SANITIZE_RULES[rule](body, setting)
    assert json.dumps(body) == before, "a rule changed what it was given"
    return after


class RuleCase(unittest.TestCase):

    rule = ""

    def check(self, setting, before, after):
        """A table row: messages before and after; the same object where nothing changes."""
        changed = apply(self.rule, setting, *before)["messages"]
        self.assertEqual(changed, after)
        body = body_of(*after)
        self.assertIs(gw.SANITIZE_RULES[self.rule](body, setting), body, "not idempotent")

    def same(self, setting, *messages, **more):
        body = body_of(*messages, **more)
        self.assertIs(gw.SANITIZE_RULES[self.rule](body, setting), body)


class SystemMessagesTest(RuleCase):

    rule = "system_messages"

    def test_keep(self):
        self.same("keep", user("a"), system(text("s")))

    def test_becomes_a_marked_user_turn_in_place(self):
        self.check("user", [user("a"), system(text("s")), assistant("b")],
                   [user("a"), user(text(gw.NOTE_SYSTEM), text("s")), assistant("b")])

    def test_string_content(self):
        self.check("user", [user("a"), dict(system(), content="s")],
                   [user("a"), user(text(gw.NOTE_SYSTEM), text("s"))])

    def test_without_content_it_only_set_the_effort(self):
        self.check("user", [user("a"), system(output_config={"effort": "low"}), assistant("b")],
                   [user("a"), assistant("b")])


class ThinkingTest(RuleCase):

    rule = "thinking"

    def test_keep(self):
        self.same("keep", assistant(thought(signature="")), user("b"))

    def test_unsigned_goes(self):
        redacted = {"type": "redacted_thinking", "data": "x"}
        self.check("unsigned", [assistant(thought(signature=""), thought(), redacted, text())],
                   [assistant(thought(), redacted, text())])
        without = {"type": "thinking", "thinking": "x"}
        self.check("unsigned", [assistant(without, text())], [assistant(text())])

    def test_drop_takes_all(self):
        redacted = {"type": "redacted_thinking", "data": "x"}
        self.check("drop", [assistant(thought(), redacted, use("t"))], [assistant(use("t"))])

    def test_never_leaves_an_assistant_message_empty(self):
        self.check("drop", [user("a"), assistant(thought()), user("b")],
                   [user("a"), assistant(text(gw.NOTE_THINKING)), user("b")])

    def test_other_roles_are_left_alone(self):
        self.same("drop", user(thought()), system(thought()))


class EmptyTextTest(RuleCase):

    rule = "empty_text"

    def test_off(self):
        self.same(False, user(""), user(text(" ")))

    def test_blank_blocks_go(self):
        self.check(True, [user(text(" \n"), text("a"), text(""))], [user(text("a"))])

    def test_blank_text_in_a_result_goes(self):
        self.check(True, [user(result("t", [text(""), text("x")]))],
                   [user(result("t", [text("x")]))])
        self.check(True, [user(result("t", [text("")]))], [user(result("t", []))])

    def test_message_left_empty_goes(self):
        self.check(True, [user("a"), assistant(text(" ")), user("b")], [user("a"), user("b")])
        self.check(True, [user("a"), assistant("\n"), user("b")], [user("a"), user("b")])
        self.check(True, [user("a"), {"role": "assistant", "content": []}], [user("a")])

    def test_conversation_that_would_be_left_empty_is_not_edited(self):
        self.same(True, user(" "))

    def test_system_message_that_sets_the_effort_stays(self):
        self.same(True, user("a"), system(output_config={"effort": "low"}), system())

    def test_blank_system_prompt_goes(self):
        after = apply("empty_text", True, user("a"), system=[text(""), text("s")])
        self.assertEqual(after["system"], [text("s")])
        self.assertNotIn("system", apply("empty_text", True, user("a"), system=[text(" ")]))


class MergeRolesTest(RuleCase):

    rule = "merge_roles"

    def test_off(self):
        self.same(False, user("a"), user("b"))

    def test_strings_join_with_a_blank_line(self):
        self.check(True, [user("a"), user("b"), user("c")], [user("a\n\nb\n\nc")])

    def test_else_blocks_in_order_results_first(self):
        self.check(True, [user("a"), user(text("b"), result("t")), assistant("c")],
                   [user(result("t"), text("a"), text("b")), assistant("c")])

    def test_long_runs_cost_what_they_hold(self):
        """8,000 neighbours took 5 s when they were merged two by two."""
        many = [user(text("a")) for _ in range(8000)]
        body = apply("merge_roles", True, *many)
        self.assertEqual(len(body["messages"][0]["content"]), 8000)

    def test_messages_with_more_keys_and_system_stay_apart(self):
        self.same(True, user("a"), dict(user("b"), name="n"), system(text("s")), system(text("t")))


class ToolPairsTest(RuleCase):

    rule = "tool_pairs"

    def missing(self, *calls):
        return gw.missing_results(calls)

    def test_pairs_are_left_alone(self):
        self.same(True, user("a"), assistant(use("1"), use("2")),
                  user(result("2"), result("1"), text("b")), assistant("c"))

    def test_off(self):
        self.same(False, assistant(use("1")), user("b"))

    def test_open_calls_of_the_last_message_are_left_alone(self):
        self.same(True, user("a"), assistant(use("1")))

    def test_missing_result_is_told(self):
        self.check(True, [assistant(use("1"), use("2")), user(result("2"), text("b"))],
                   [assistant(use("1"), use("2")),
                    user(*self.missing("1"), result("2"), text("b"))])
        self.check(True, [assistant(use("1")), user("never mind")],
                   [assistant(use("1")), user(*self.missing("1"), text("never mind"))])

    def test_missing_turn_is_put_in(self):
        self.check(True, [assistant(use("1")), system(text("s")), assistant("b")],
                   [assistant(use("1")), user(*self.missing("1")), system(text("s")),
                    assistant("b")])

    def test_what_stands_between_call_and_result_does_not_part_them(self):
        effort = system(output_config={"effort": "low"})
        odd = {"role": "developer", "content": "x"}
        for between in (effort, system(text("s")), odd, None):
            self.same(True, assistant(use("1")), between, user(result("1", "REAL")), assistant("b"))

    def test_neighbours_of_one_role_are_one_turn(self):
        self.same(True, assistant(use("1")), assistant(use("2")), user(result("1")),
                  user(result("2")))

    def test_result_without_its_call_becomes_text(self):
        image = {"type": "image", "source": {}}
        after = apply("tool_pairs", True, user(result("9", [text("x"), image]), text("y")))
        self.assertEqual(after["messages"], [user(
            text("[Result of the tool call 9]\nx\n(image)"), text("y"))])

    def test_second_result_goes(self):
        self.check(True, [assistant(use("1")), user(result("1"), result("1", "again"))],
                   [assistant(use("1")), user(result("1"))])
        self.check(True, [assistant(use("1")), user(result("1")), assistant("b"),
                          user(result("1", "again"))],
                   [assistant(use("1")), user(result("1")), assistant("b"),
                    user(text(gw.NOTE_DOUBLE_RESULT))])

    def test_results_stand_in_front(self):
        self.check(True, [assistant(use("1")), user(text("b"), result("1"))],
                   [assistant(use("1")), user(result("1"), text("b"))])

    def test_server_tools_are_not_its_business(self):
        call = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
        self.same(True, assistant(call, text()), user("b"))


class CacheControlTest(unittest.TestCase):

    MARK = {"type": "ephemeral"}

    def marked(self, block):
        return dict(block, cache_control=self.MARK)

    def test_keep_removes_what_is_always_refused(self):
        after = apply("cache_control", "keep",
                      assistant(self.marked(thought()), self.marked(text("a"))),
                      user(self.marked(text(" ")), text("b")))
        self.assertEqual(after["messages"], [
            assistant(thought(), self.marked(text("a"))), user(text(" "), text("b"))])

    def test_fifth_mark_goes_the_earliest_first(self):
        messages = [user(self.marked(text("1")), self.marked(text("2"))),
                    assistant(self.marked(use("t"))), user(self.marked(result("t")))]
        tools, prompt = [self.marked({"name": "Read"})], [self.marked(text("s"))]
        after = apply("cache_control", "keep", *messages, tools=tools, system=prompt)
        self.assertEqual(after["messages"], [user(text("1"), text("2"))] + messages[1:])
        self.assertEqual((after["tools"], after["system"]), (tools, prompt))

    def test_automatic_mark_counts(self):
        four = [user(*[self.marked(text(str(at))) for at in range(4)])]
        body = body_of(*four)
        self.assertIs(gw.rule_cache_control(body, "keep"), body)
        after = apply("cache_control", "keep", *four, cache_control=self.MARK)
        self.assertNotIn("cache_control", after["messages"][0]["content"][0])

    def test_strip_takes_all_but_inputs_and_schemas(self):
        schema = {"properties": {"cache_control": {"type": "string"}}, "cache_control": 1}
        after = apply(
            "cache_control", "strip", user(self.marked(result("t", [self.marked(text("x"))]))),
            assistant(self.marked(use("t", cache_control=1))), cache_control=self.MARK,
            system=[self.marked(text("s"))],
            tools=[self.marked({"name": "Read", "input_schema": schema})])
        self.assertEqual(after, body_of(
            user(result("t", [text("x")])), assistant(use("t", cache_control=1)),
            system=[text("s")], tools=[{"name": "Read", "input_schema": schema}]))


class Conversation:
    """Makes random conversations that grow turn by turn, sound or with the usual damage."""

    def __init__(self, seed, damaged):
        self.random = random.Random(seed)
        self.damaged = damaged
        self.calls = 0

    def chance(self, share):
        return self.random.random() < share

    def words(self):
        return self.random.choice(["ok", "caf\u00e9 \u4f60", "a\nb", "1.50", "x" * 300])

    def user_turn(self, open_calls):
        blocks = [result(call, self.random.choice(["r", [text("r")], []]))
                  for call in open_calls if not (self.damaged and self.chance(0.3))]
        if self.damaged and blocks and self.chance(0.2):
            blocks.append(dict(blocks[0]))
        if self.damaged and self.chance(0.1):
            blocks.append(result("stray"))
        if not open_calls or self.chance(0.3):
            blocks.append(text(self.words()))
        if self.chance(0.2):
            blocks.append({"type": "image", "source": {"type": "base64", "data": "iVBO"}})
        if self.damaged and self.chance(0.2):
            blocks.append(text(" "))
        if self.damaged and self.chance(0.3):
            self.random.shuffle(blocks)
        if len(blocks) == 1 and blocks[0]["type"] == "text" and self.chance(0.5):
            return user(blocks[0]["text"])
        return {"role": "user", "content": blocks or [text("go on")]}

    def assistant_turn(self):
        blocks = [thought(signature="" if self.damaged and self.chance(0.5) else "s" * 40)
                  for _ in range(self.random.randrange(2))]
        if self.chance(0.7):
            blocks.append(text(" " if self.damaged and self.chance(0.2) else self.words()))
        calls = []
        for _ in range(self.random.randrange(3)):
            self.calls += 1
            calls.append("toolu_%d" % self.calls)
            blocks.append(use(calls[-1], n=1.5, deep={"a": [1, None]}))
        return assistant(*(blocks or [text("fine")])), calls

    def messages(self, turns):
        made, open_calls = [], []
        for _ in range(turns):
            made.append(self.user_turn(open_calls))
            if self.chance(0.2):
                made.append(system(text("note"), output_config={"effort": "low"}))
            answer, open_calls = self.assistant_turn()
            made.append(answer)
            if self.damaged and self.chance(0.15):
                made.append(assistant(text("cut")))
        made.append(self.user_turn(open_calls))
        return made


def flat(messages):
    """A conversation as (role, block) pairs: how a prompt cache sees it; strings by their text."""
    pairs = []
    for message in messages:
        for block in gw.blocks_of(message):
            pairs.append((message["role"], json.dumps(block, sort_keys=True)))
    return pairs


def broken_rules(messages):
    """The Messages rules (openai-mapping.md, section 3) that a conversation breaks."""
    found, open_calls = [], set()
    for index, (_, turn) in enumerate(gw.turns_of(messages)):
        blocks = [block for message in turn for block in gw.blocks_of(message)]
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if len(results) != len(set(results)) or not set(results) <= open_calls:
            found.append("stray result in turn %d" % index)
        if open_calls - set(results):
            found.append("missing result in turn %d" % index)
        for message in turn:
            kinds = [block["type"] == "tool_result" for block in gw.blocks_of(message)]
            if kinds != sorted(kinds, reverse=True):
                found.append("result behind other blocks in turn %d" % index)
            if not message["content"] and message["role"] != "system":
                found.append("empty message in turn %d" % index)
        found.extend("blank text in turn %d" % index for block in blocks if gw.is_blank_text(block))
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
    return found


class PropertyTest(unittest.TestCase):

    PROFILES = ("native", "others", "strict")

    def sanitized(self, messages, profile):
        return gw.sanitized(body_of(*messages), gw.SANITIZE_PROFILES[profile])[0]["messages"]

    def test_clean_conversations_are_unchanged(self):
        for seed in SEEDS:
            body = body_of(*Conversation(seed, False).messages(5))
            self.assertEqual(broken_rules(body["messages"]), [], seed)
            for profile in ("native", "off"):
                after, edits = gw.sanitized(body, gw.SANITIZE_PROFILES[profile])
                self.assertIs(after, body, (seed, edits))

    def test_idempotent(self):
        for seed in SEEDS:
            messages = Conversation(seed, True).messages(5)
            for profile in self.PROFILES:
                once = self.sanitized(messages, profile)
                self.assertEqual(self.sanitized(once, profile), once, (seed, profile))

    def test_no_rule_of_the_api_is_broken(self):
        for seed in SEEDS:
            messages = Conversation(seed, True).messages(5)
            for profile in self.PROFILES:
                after = self.sanitized(messages, profile)
                self.assertEqual(broken_rules(after), [], (seed, profile))
                if profile != "native":
                    roles = [message["role"] for message in after if message["role"] != "system"]
                    together = [pair for pair in zip(roles, roles[1:]) if pair[0] == pair[1]]
                    self.assertTrue(profile == "others" or not together, (seed, profile))

    def test_a_turn_is_a_beginning_of_the_next(self):
        for seed in SEEDS:
            messages = Conversation(seed, True).messages(6)
            for profile in self.PROFILES:
                whole = flat(self.sanitized(messages, profile))
                for turn in (index + 1 for index, message in enumerate(messages)
                             if message["role"] == "user" and self.ends_request(messages, index)):
                    part = flat(self.sanitized(messages[:turn], profile))
                    # Two strings join in one text, which is then longer.
                    last, longer = part[-1], whole[len(part) - 1]
                    self.assertEqual(part[:-1], whole[:len(part) - 1], (seed, profile, turn))
                    self.assertEqual(last[0], longer[0])
                    if last != longer:
                        texts = [json.loads(pair[1])["text"] for pair in (last, longer)]
                        self.assertTrue(texts[1].startswith(texts[0] + "\n\n"), texts)

    def ends_request(self, messages, index):
        """Whether a client may have sent the conversation up to here: an answer follows."""
        return index + 1 < len(messages) and messages[index + 1]["role"] == "assistant"

    def test_spelling_says_the_same_as_the_values(self):
        for seed in SEEDS:
            messages = Conversation(seed, True).messages(4)
            data = json.dumps(body_of(*messages), ensure_ascii=bool(seed % 2), indent=seed % 3 or None)
            document = gw.JsonDocument(data.encode("utf-8"))
            for profile in self.PROFILES:
                after, edits = gw.sanitized(document.values, gw.SANITIZE_PROFILES[profile])
                spelled = document.spelled(after)
                self.assertEqual(json.loads(spelled.decode("utf-8")), after, (seed, profile))
                self.assertEqual(spelled == document.data, not edits)

    def test_wrong_types_never_crash_a_rule(self):
        odd = [None, 1, "x", [], {}, [None], {"type": 5}, {"role": "user"}, True, 1.5,
               {"type": "tool_use"}, {"type": "tool_result", "tool_use_id": []}, [[]],
               {"type": "text"}, {"type": "thinking"}, {"role": "user", "content": [None, 3]}]
        for seed in SEEDS:
            pick = random.Random(seed)
            odd = json.loads(json.dumps(odd))  # what is put in must not hold itself
            messages = json.loads(json.dumps(Conversation(seed, True).messages(3)))
            for _ in range(6):
                self.damage(pick, messages, odd)
            body = body_of(*messages, system=pick.choice(odd), tools=pick.choice(odd))
            for profile in self.PROFILES + ("off",):
                after, _ = gw.sanitized(body, gw.SANITIZE_PROFILES[profile])
                document = gw.JsonDocument(json.dumps(body).encode("ascii"))
                again, _ = gw.sanitized(document.values, gw.SANITIZE_PROFILES[profile])
                self.assertEqual(json.loads(document.spelled(again).decode("utf-8")), after)

    def test_what_one_look_finds_clean_no_rule_would_change(self):
        odd = [None, 1, "x", "", " ", [], {}, [None], [text("")], text("\u2003"), result("toolu_1"),
               result("toolu_1", [text(" ")]), result("toolu_2", [result("t", [text("")])]), [[]],
               use("toolu_1"), dict(thought(), cache_control={}), thought(signature=""), user("hi"),
               text("a", cache_control={"type": "ephemeral"}), system(text("s")), "system", "user"]
        found = {True: 0, False: 0}
        for body in self.ODD_IN_ONE_WAY:
            for profile in self.PROFILES + ("off",):
                self.assert_law_of_the_one_look(body, profile)
        for seed in SEEDS:
            pick = random.Random(seed)
            messages = json.loads(json.dumps(Conversation(seed, seed % 3 == 0).messages(3)))
            for _ in range(seed % 2 + seed % 5 // 4):
                self.damage(pick, messages, odd)
            body = body_of(*messages, **{key: pick.choice(odd) for key in ("system", "tools")
                                         if pick.random() < 0.3})
            for profile in self.PROFILES + ("off",):
                found[self.assert_law_of_the_one_look(body, profile)] += 1
        self.assertGreater(min(found.values()), len(SEEDS))

    MARKED = text("a", cache_control={"type": "ephemeral"})
    ODD_IN_ONE_WAY = [
        body_of(user("a"), assistant(use("t")), system(text("s")), assistant("b")),
        body_of(user("a"), assistant(" "), user("b")),
        body_of(user("a"), assistant(dict(thought(), cache_control={"type": "ephemeral"}))),
        body_of(user("a"), assistant(use("t")), user(result("t", [result("u", [text(" ")])]))),
        body_of(user("a"), assistant(use("t")), user(result("t", [MARKED] * 5))),
        body_of(user("a"), assistant(use("t")), user(result("t", [
            {"type": "redacted_thinking", "data": "d", "cache_control": {"type": "ephemeral"}}]))),
        body_of(user("a"), system=[dict(thought(), cache_control={"type": "ephemeral"})]),
        body_of(user(*[MARKED] * 5)),
        body_of(user("a"), tools=[dict(name="t", cache_control={})] * 5),
        body_of(user(*[MARKED] * 4), cache_control={"type": "ephemeral"}),
        body_of(user("a"), cache_control={"type": "ephemeral"}),
        body_of(dict(user("a"), cache_control={"type": "ephemeral"})),
    ]

    def assert_law_of_the_one_look(self, body, profile):
        """Whether one look finds a body clean: then each rule gives it back."""
        settings = gw.SANITIZE_PROFILES[profile]
        is_clean = gw.is_clean(body, settings)
        for name, rule in gw.SANITIZE_RULES.items():
            if is_clean and settings[name] is not None:
                self.assertIs(rule(body, settings[name]), body, (profile, name))
        return is_clean

    def damage(self, pick, messages, odd):
        """Put something odd somewhere into a conversation."""
        odd = json.loads(json.dumps(odd))
        at = pick.randrange(len(messages))
        target = messages[at]
        if not isinstance(target, dict) or pick.random() < 0.2:
            messages[at] = pick.choice(odd)
            return
        if isinstance(target.get("content"), list) and target["content"] and pick.random() < 0.7:
            blocks = target["content"]
            place = pick.randrange(len(blocks))
            if isinstance(blocks[place], dict) and blocks[place] and pick.random() < 0.7:
                blocks[place][pick.choice(sorted(map(str, blocks[place])))] = pick.choice(odd)
            else:
                blocks[place] = pick.choice(odd)
            return
        target[pick.choice(["role", "content"])] = pick.choice(odd)


class SpellingTest(unittest.TestCase):

    def test_only_what_changes_changes(self):
        data = (b' { "x" : 1.50,"messages":[ {"role":"user" , "content":[{"type":"text","text":" "},'
                b' {"type":"tool_result","tool_use_id":"t","n":1E5,"content":"caf\\u00e9"}] },\n'
                b'{"role":"assistant","content":[{"z":0.10,"type":"text","text":"a"}]}] ,"y":[]} ')
        document = gw.JsonDocument(data)
        after = gw.rule_empty_text(document.values, True)
        self.assertEqual(document.spelled(after), data.replace(
            b'{"type":"text","text":" "}, {"type":"tool_result","tool_use_id":"t","n":1E5,'
            b'"content":"caf\\u00e9"}', b'{"type":"tool_result","tool_use_id":"t","n":1E5,'
            b'"content":"caf\\u00e9"}').replace(b'":[ {"role"', b'":[{"role"').replace(
                b'} },\n{', b'} },{').replace(b'}] },\n{', b'}] },{'))

    def test_members_of_an_edited_block_keep_their_text(self):
        data = (b'{"model":"m","messages":[{"role":"user","content":[{"cache_control":{"a":1},'
                b'"input":{"n":1.0e2,"n":2},"type":"x", "s":"\\u0041" }]}]}')
        document = gw.JsonDocument(data)
        after = gw.rule_cache_control(document.values, "strip")
        self.assertEqual(document.spelled(after), data.replace(b'"cache_control":{"a":1},', b""))

    def test_cost_is_told(self):
        """Contract: a clean 1 MB conversation under 15 ms, with one message edited under 40."""
        print()
        for count, words in ((500, 400), (3000, 60), (5000, 400)):
            messages = [user(text("word " * words)) if at % 2 else assistant(text("word " * words))
                        for at in range(count)]
            clean = json.dumps(body_of(*messages)).encode("ascii")
            messages[10]["content"].append(text(" "))
            dirty = json.dumps(body_of(*messages)).encode("ascii")
            rounds = 5 if len(clean) < 2e6 else 2
            for name, data in (("clean", clean), ("one message edited", dirty)):
                best = min(self.seconds_of(data) for _ in range(rounds))
                print("parse, sanitize and spell %.2f MB in %d messages, %s: %.1f ms"
                      % (len(data) / 1e6, count, name, best * 1000))

    def seconds_of(self, data):
        began = time.perf_counter()
        document = gw.parse_message_request(data)
        after, _ = gw.sanitized(document.values, gw.SANITIZE_PROFILES["native"])
        self.assertEqual(document.spelled(after) == data, b'" "' not in data)
        return time.perf_counter() - began


class RecordingsTest(unittest.TestCase):

    def test_every_recorded_request_passes_the_native_profile_byte_for_byte(self):
        files = sorted(glob.glob(RECORDINGS))
        if not files:
            self.skipTest("the recordings of real clients are not beside this repository")
        checked = clean = 0
        for path in files:
            with open(path, encoding="utf-8") as file:
                recorded = json.load(file)
            body = recorded.get("body")
            if not isinstance(body, dict) or "messages" not in body or "/chat/" in recorded["path"]:
                continue
            data = json.dumps(body, ensure_ascii=False).encode("utf-8")
            document = gw.parse_message_request(data)
            after, edits = gw.sanitized(document.values, gw.SANITIZE_PROFILES["native"])
            self.assertEqual(edits, [], path)
            self.assertEqual(document.spelled(after), data)
            checked += 1
            clean += gw.is_clean(document.values, gw.SANITIZE_PROFILES["native"])
        self.assertGreater(checked, 40)
        self.assertGreater(clean, 0.9 * checked, "one look was not enough")


class WarmupTest(unittest.TestCase):

    REMINDER = text("<system-reminder>\nbe nice\n</system-reminder>")

    def test_only_the_word_itself_is_one(self):
        image = {"type": "image", "source": {}}
        table = [
            ("string", [user("Warmup")], True),
            ("with space", [user(" Warmup\n")], True),
            ("block", [user(text("Warmup", cache_control={"type": "ephemeral"}))], True),
            ("beside a reminder", [user(self.REMINDER, text("Warmup"), self.REMINDER)], True),
            ("after a conversation", [user("a"), assistant("b"), user("Warmup")], True),
            ("lower case", [user("warmup")], False),
            ("question", [user("Warmups?")], False),
            ("sentence", [user("Warmup my engine")], False),
            ("reminder in the string", [user("<system-reminder>x</system-reminder>Warmup")], False),
            ("one block of several", [user(text("Warmup"), text("and more"))], False),
            ("twice", [user(text("Warmup"), text("Warmup"))], False),
            ("image", [user(text("Warmup"), image)], False),
            ("tool result", [user(result("t"), text("Warmup"))], False),
            ("older", [user("Warmup"), assistant("OK"), user("hi")], False),
            ("assistant's", [user("hi"), assistant("Warmup")], False),
            ("system's", [user("hi"), system(text("Warmup"))], False),
            ("words between two reminders", [user(text(
                "<system-reminder>a</system-reminder>do it<system-reminder>b</system-reminder>"),
                text("Warmup"))], False),
            ("odd block", [user(None, text("Warmup"))], False),
            ("no content", [{"role": "user"}], False),
        ]
        for name, messages, expected in table:
            with self.subTest(name):
                if name == "odd block":
                    messages = [{"role": "user", "content": [None, text("Warmup")]}]
                self.assertEqual(gw.is_warmup(messages), expected)

    def test_six_events_make_the_message(self):
        message = gw.warmup_message("claude-x", "msg_warmup_1")
        events = gw.message_events(message)
        self.assertEqual([event.type for event in gw.SseDecoder().feed(b"".join(events))], [
            "message_start", "content_block_start", "content_block_delta", "content_block_stop",
            "message_delta", "message_stop"])
        collector = gw.MessageCollector()
        collector.feed(b"".join(events))
        self.assertEqual(collector.message(), message)


class BackgroundTaskTest(unittest.TestCase):
    """What Claude Code 1.0.128 to 2.1.329 really sent, texts shortened, and what comes near."""

    def recorded(self):
        for path in sorted(glob.glob(os.path.join(DATA, "background", "*.json"))):
            with open(path, encoding="utf-8") as file:
                yield os.path.basename(path), json.load(file)["body"]

    def test_recordings_are_told_apart(self):
        found = {name: gw.is_background_task(body) for name, body in self.recorded()}
        self.assertGreater(len(found), 20)
        self.assertEqual(found, {name: name.startswith("bg-") for name in found})

    def test_everything_that_comes_near_is_not_one(self):
        (title,) = [body for name, body in self.recorded() if name == "bg-title-2.1.329.json"]
        self.assertTrue(gw.is_background_task(title))
        prompt, messages = title["system"][-1], title["messages"]
        near = {
            "no user id": dict(title, metadata={}),
            "odd user id": dict(title, metadata={"user_id": "me"}),
            "odd metadata": dict(title, metadata=5),
            "a tool": dict(title, tools=[{"name": "Read"}]),
            "thinking": dict(title, thinking={"type": "adaptive"}),
            "one more block": dict(title, system=[*title["system"], text("and more")]),
            "phrase within": dict(title, system=[text("Please. " + prompt["text"])]),
            "phrase of the user": dict(title, system=[text("Hi")], messages=[user(prompt["text"])]),
            "system as a string": dict(title, system=prompt["text"]),
            "odd system": dict(title, system=[None]),
            "longer": dict(title, messages=[*messages, assistant("a"), user("b")]),
            "another prefill": dict(title, messages=[*messages, assistant("[")]),
            "summarize this": body_of(user("Summarize this coding conversation in under 50")),
        }
        for name, body in near.items():
            with self.subTest(name):
                self.assertFalse(gw.is_background_task(body))


class ThinkingSuffixTest(unittest.TestCase):

    def body(self, **more):
        return dict({"model": "m", "max_tokens": 10000}, **more)

    def test_suffix_goes_from_claudes_ids_alone(self):
        for model, expected in [("claude-opus-4-5-thinking", ("claude-opus-4-5", True)),
                                ("claude-opus-4-5", ("claude-opus-4-5", False)),
                                ("kimi-k2-thinking", ("kimi-k2-thinking", False)),
                                ("-thinking", ("-thinking", False))]:
            self.assertEqual(gw.split_thinking(model), expected)

    def test_by_generation(self):
        budget = {"type": "enabled", "budget_tokens": 8000}
        table = [
            ("claude-3-7-sonnet-20250219", budget), ("claude-sonnet-4-20250514", budget),
            ("claude-haiku-4-5", budget), ("claude-opus-4-6", {"type": "adaptive"}),
            ("claude-opus-4-8", {"type": "adaptive"}), ("claude-fable-5-2", {"type": "adaptive"}),
            ("claude-unknown", {"type": "adaptive"}), ("claude-3-5-haiku-20241022", None),
        ]
        for model, expected in table:
            with self.subTest(model):
                self.assertEqual(gw.with_thinking(self.body(), model).get("thinking"), expected)

    def test_budget_fits_max_tokens(self):
        for limit, budget, raised in [(100, 1024, 1124), (1280, 1024, 1280), (10000, 8000, 10000),
                                      (64000, 32000, 64000)]:
            after = gw.with_thinking(self.body(max_tokens=limit), "claude-opus-4-5")
            self.assertEqual((after["thinking"]["budget_tokens"], after["max_tokens"]),
                             (budget, raised))

    def test_sampling_goes_up_to_4_6(self):
        sampling = {"temperature": 1, "top_p": 0.9, "top_k": 5}
        for model, stays in [("claude-opus-4-6", False), ("claude-opus-4-8", True)]:
            after = gw.with_thinking(self.body(**sampling), model)
            self.assertEqual("temperature" in after, stays)

    def test_not_beside_what_refuses_a_budget(self):
        loop = [user("a"), assistant(use("1")), user(result("1"))]
        table = [([user("a"), assistant("{")], False), (loop, False), ([user("a")], True),
                 ([user("a"), assistant(thought(), use("1")), user(result("1"))], True)]
        for messages, expected in table:
            for model, always in (("claude-opus-4-5", False), ("claude-opus-5", True)):
                after = gw.with_thinking(self.body(messages=messages), model)
                self.assertEqual("thinking" in after, expected or always)
        self.assertNotIn("thinking", gw.with_thinking(self.body(max_tokens=0), "claude-opus-4-5"))

    def test_clients_word_and_forced_tools_win(self):
        own = self.body(thinking={"type": "disabled"})
        self.assertIs(gw.with_thinking(own, "claude-opus-4-5"), own)
        forced = self.body(tool_choice={"type": "any"})
        self.assertIs(gw.with_thinking(forced, "claude-opus-4-6"), forced)
        self.assertIn("thinking", gw.with_thinking(forced, "claude-opus-5"))


if __name__ == "__main__":
    unittest.main()
