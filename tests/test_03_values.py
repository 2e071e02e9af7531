"""Section 3: secrets, headers, requests, responses, usage; and every doctest of the module."""

import doctest
import json
import unittest

import claude_gateway as gw

LONG_KEY = "sk-ant-api03-abcdefghijklmnop-WXYZ"


class DoctestTest(unittest.TestCase):

    def test_examples_of_all_sections_hold(self):
        results = doctest.testmod(gw)
        self.assertEqual(results.failed, 0)
        self.assertGreater(results.attempted, 10)


class SecretTest(unittest.TestCase):

    def test_shows_at_most_the_last_four_characters_of_a_long_one(self):
        table = [
            (LONG_KEY, "…WXYZ"),
            ("x" * 15 + "abcde", "…bcde"),  # 20 characters: just long enough
            ("x" * 14 + "abcde", "…"),
            ("short", "…"),
            ("", "…"),
        ]
        for text, mask in table:
            with self.subTest(length=len(text)):
                self.assertEqual(str(gw.Secret(text)), mask)
                self.assertEqual(repr(gw.Secret(text)), "Secret(%s)" % mask)

    def test_no_way_of_printing_shows_it(self):
        secret = gw.Secret(LONG_KEY)
        shown = ["%s" % secret, "%r" % secret, "{}".format(secret), "{!r:>50}".format(secret),
                 "%s" % [secret], "%s" % {"key": secret}, repr((secret, 1)),
                 repr(ValueError(secret)), str(ValueError(secret))]
        self.assertEqual([text for text in shown if LONG_KEY[:-4] in text], [])

    def test_does_not_become_json(self):
        with self.assertRaises(TypeError):
            json.dumps({"key": gw.Secret(LONG_KEY)})

    def test_reveals_on_demand(self):
        self.assertEqual(gw.Secret(LONG_KEY).reveal(), LONG_KEY)

    def test_equality_is_that_of_the_text_and_never_raises(self):
        table = [
            ("same", gw.Secret("k"), gw.Secret("k"), True),
            ("other", gw.Secret("k"), gw.Secret("l"), False),
            ("prefix", gw.Secret("k"), gw.Secret("kk"), False),
            ("not ASCII", gw.Secret("ключ"), gw.Secret("ключ"), True),
            ("lone surrogate", gw.Secret("\ud800"), gw.Secret("\udfff"), False),
            ("a plain string", gw.Secret("k"), "k", False),
            ("None", gw.Secret("k"), None, False),
        ]
        for name, one, other, equal in table:
            with self.subTest(name):
                self.assertIs(one == other, equal)

    def test_equal_ones_hash_alike(self):
        self.assertEqual(len({gw.Secret("k"), gw.Secret("k"), gw.Secret("l")}), 2)


class EncodeLosslessTest(unittest.TestCase):

    def test_takes_any_text_and_keeps_differences(self):
        texts = ["", "a", "ä", "\xe4\xe4", "鍵", "\ud800", "\udfff", "\U0001f511", "\x00"]
        self.assertEqual(len({gw.encode_lossless(text) for text in texts}), len(texts))


class HeadersTest(unittest.TestCase):

    def setUp(self):
        self.headers = gw.Headers([("X-A", "1"), ("x-a", "2"), ("B", ""), ("C", " a,, b ,"),
                                   ("c", "c")])

    def test_keeps_order_spelling_and_duplicates(self):
        self.assertEqual(self.headers.pairs, [("X-A", "1"), ("x-a", "2"), ("B", ""),
                                              ("C", " a,, b ,"), ("c", "c")])

    def test_get_gives_the_first_or_the_default(self):
        self.assertEqual(self.headers.get("x-a"), "1")
        self.assertEqual(self.headers.get("b", "d"), "")
        self.assertEqual(self.headers.get("missing"), "")
        self.assertEqual(self.headers.get("missing", "d"), "d")

    def test_all_gives_every_line(self):
        self.assertEqual(self.headers.all("x-a"), ["1", "2"])
        self.assertEqual(self.headers.all("missing"), [])

    def test_contains_what_is_there_be_it_empty(self):
        self.assertIn("b", self.headers)
        self.assertNotIn("missing", self.headers)

    def test_tokens_of_all_lines_are_trimmed_and_not_empty(self):
        self.assertEqual(self.headers.tokens("c"), ["a", "b", "c"])
        self.assertEqual(self.headers.tokens("b"), [])
        self.assertEqual(self.headers.tokens("missing"), [])

    def test_does_not_change_with_the_list_it_was_made_from(self):
        pairs = [("A", "1")]
        headers = gw.Headers(pairs)
        pairs.append(("B", "2"))
        self.assertEqual(headers.pairs, [("A", "1")])

    def test_takes_a_generator(self):
        headers = gw.Headers((name, "v") for name in "ab")
        self.assertEqual((headers.pairs, headers.get("b")), ([("a", "v"), ("b", "v")], "v"))


class HttpRequestTest(unittest.TestCase):

    def test_splits_the_target_at_the_first_question_mark(self):
        table = {
            "/v1/models": ("/v1/models", ""),
            "/v1/models?limit=2": ("/v1/models", "limit=2"),
            "/a?b?c": ("/a", "b?c"),
            "/a?": ("/a", ""),
            "/%3F?x": ("/%3F", "x"),
            "*": ("*", ""),
        }
        for target, expected in table.items():
            with self.subTest(target):
                request = gw.HttpRequest("GET", target, gw.Headers())
                self.assertEqual((request.path, request.query), expected)
                self.assertEqual(request.target, target)

    def test_has_no_body_and_a_patient_peer_by_default(self):
        request = gw.HttpRequest("GET", "/", gw.Headers())
        self.assertEqual(request.read_body(), b"")
        self.assertEqual((request.peer.gone(), request.peer.fileno()), (False, -1))


class HttpResponseTest(unittest.TestCase):

    def test_length_is_counted_for_bytes_and_told_for_others(self):
        table = [
            (gw.HttpResponse(204), 0),
            (gw.HttpResponse(200, body=b"four"), 4),
            (gw.HttpResponse(200, body=b"four", length=9), 4),
            (gw.HttpResponse(200, body=iter([b"a"])), None),
            (gw.HttpResponse(200, body=iter([b"a"]), length=1), 1),
        ]
        for number, (response, length) in enumerate(table):
            with self.subTest(number):
                self.assertEqual(response.length, length)

    def test_close_calls_back_once(self):
        calls = []
        response = gw.HttpResponse(200, on_close=calls.append)
        response.close("client_left")
        response.close()
        self.assertEqual(calls, ["client_left"])

    def test_close_calls_back_once_even_if_the_callback_raises(self):
        calls = []

        def fail(ended):
            calls.append(ended)
            raise KeyError(ended)

        response = gw.HttpResponse(200, on_close=fail)
        with self.assertRaises(KeyError):
            response.close("a")
        response.close("b")
        self.assertEqual(calls, ["a"])

    def test_then_adds_callbacks_in_order(self):
        calls = []
        response = gw.HttpResponse(200, on_close=lambda ended: calls.append((1, ended)))
        same = response.then(lambda ended: calls.append((2, ended)))
        same.then(lambda ended: calls.append((3, ended))).close("x")
        self.assertIs(same, response)
        self.assertEqual(calls, [(1, "x"), (2, "x"), (3, "x")])

    def test_then_works_where_nothing_was_to_be_called(self):
        calls = []
        gw.HttpResponse(200).then(calls.append).close()
        self.assertEqual(calls, [""])

    def test_one_answers_headers_are_not_the_next_ones(self):
        gw.HttpResponse(200).headers.append(("A", "1"))
        self.assertEqual(gw.HttpResponse(200).headers, [])


class JsonResponseTest(unittest.TestCase):

    def test_is_compact_ascii_json_with_its_type(self):
        response = gw.json_response(404, {"a": "ä\ud800\n", "b": [1]}, [("X", "y")], True)
        self.assertEqual(response.body, b'{"a":"\\u00e4\\ud800\\n","b":[1]}')
        self.assertEqual(response.headers, [("Content-Type", "application/json"), ("X", "y")])
        self.assertEqual((response.status, response.length, response.close_connection),
                         (404, len(response.body), True))


class UsageTest(unittest.TestCase):

    def counts(self, *updates):
        usage = gw.Usage()
        for update in updates:
            usage.update(update)
        return usage.input, usage.output, usage.cache_read, usage.cache_write

    def test_takes_the_four_counts_over(self):
        self.assertEqual((1, 2, 3, 4), self.counts({
            "input_tokens": 1, "output_tokens": 2,
            "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}))

    def test_later_counts_win_and_missing_ones_stay(self):
        self.assertEqual((5, 9, 0, 0), self.counts(
            {"input_tokens": 5, "output_tokens": 1}, {"output_tokens": 9}))

    def test_a_later_zero_wins(self):
        self.assertEqual((0, 0, 0, 0), self.counts({"output_tokens": 7}, {"output_tokens": 0}))

    def test_what_is_no_count_changes_nothing(self):
        known = {"input_tokens": 5}
        junk = [None, [], "x", 5, True, {}, {"input_tokens": None}, {"input_tokens": "6"},
                {"input_tokens": True}, {"input_tokens": 6.5}, {"input_tokens": [6]},
                {"input": 6}]
        for value in junk:
            with self.subTest(value=value):
                self.assertEqual((5, 0, 0, 0), self.counts(known, value))


if __name__ == "__main__":
    unittest.main()
