"""Section 7: validation, what a stream tells on its way, the list of models."""

import itertools
import json
import unittest
import unittest.mock

import claude_gateway as gw
from tests.support import every_split


def message_request(**fields):
    """A body of /v1/messages; a field that is ... is left out."""
    value = {"model": "claude-demo-1", "messages": [{"role": "user", "content": "hi"}]}
    value.update(fields)
    return json.dumps({key: item for key, item in value.items() if item is not ...}).encode("ascii")


def error_event(error):
    """What ends a stream of messages that broke."""
    door = gw.MESSAGES_DOOR
    return door.last_words(door.refusal(error, "req_1"))


class ValidationTest(unittest.TestCase):

    def assert_refused(self, body, words):
        with self.assertRaises(gw.RequestError) as caught:
            gw.parse_message_request(body)
        self.assertEqual((caught.exception.status, caught.exception.close), (400, False))
        self.assertIn(words, caught.exception.message)

    def test_what_is_certain_passes(self):
        table = {
            "least": message_request(),
            "messages of any shape": message_request(messages=[{}]),
            "a role that we do not know": message_request(messages=[{"role": "tool"}]),
            "content of a wrong type": message_request(messages=[{"role": "user", "content": 5}]),
            "unknown fields": message_request(future={"a": [1]}),
            "fields of wrong types": message_request(stream="yes", system=5, max_tokens=None),
            "no max_tokens": message_request(max_tokens=...),
            "a model that we do not know": message_request(model="gpt-9"),
            "an empty string for max_tokens": message_request(max_tokens=""),
        }
        for name, body in table.items():
            with self.subTest(name):
                self.assertEqual(gw.parse_message_request(body).data, body)

    def test_a_missing_field_is_named_in_the_words_of_the_contract(self):
        for key in ("messages", "model"):
            with self.subTest(key):
                self.assert_refused(message_request(**{key: ...}), "Missing required field: " + key)

    def test_wrong_types_are_named_with_their_place(self):
        table = [
            ("model null", {"model": None}, "model: must be a non-empty string"),
            ("model empty", {"model": ""}, "model: must be a non-empty string"),
            ("model a number", {"model": 5}, "model: must be a non-empty string"),
            ("model a list", {"model": ["a"]}, "model: must be a non-empty string"),
            ("messages null", {"messages": None}, "messages: must be a non-empty list"),
            ("messages empty", {"messages": []}, "messages: must be a non-empty list"),
            ("messages an object", {"messages": {}}, "messages: must be a non-empty list"),
            ("messages a string", {"messages": "hi"}, "messages: must be a non-empty list"),
            ("a message null", {"messages": [None]}, "messages.0: must be an object"),
            ("a message a string", {"messages": [{}, "hi"]}, "messages.1: must be an object"),
            ("a message a list", {"messages": [{}, {}, []]}, "messages.2: must be an object"),
        ]
        for name, fields, words in table:
            with self.subTest(name):
                self.assert_refused(message_request(**fields), words)

    def test_what_is_no_json_is_told_so(self):
        for body in (b"", b"[]", b"{", b"null", b"\xff", b'{"a":NaN}', b'{"a":1,"a":2}',
                     b'{"a":' + b"[" * 100000, b'{"a":' + b"1" * 5000 + b"}",
                     message_request() + b"x"):
            with self.subTest(body=body[:20]):
                self.assert_refused(body, "invalid JSON: ")

    def test_a_message_never_quotes_the_body_at_length(self):
        key = b'"' + b"secret" * 10000 + b'"'
        for body in (b"{" + key + b":1," + key + b":2}", b"{" + key + b":" + key + b"x}"):
            with self.subTest(body=body[-10:]), self.assertRaises(gw.RequestError) as caught:
                gw.parse_message_request(body)
            self.assertLess(len(caught.exception.message), 1000)


class StreamTrackerTest(unittest.TestCase):

    START = ("message_start", {"message": {"usage": {"input_tokens": 11, "output_tokens": 1,
                                                     "cache_read_input_tokens": 3,
                                                     "cache_creation_input_tokens": 4}}})
    BLOCK = ("content_block_start", {"index": 0})
    TEXT = ("content_block_delta", {"delta": {"text": "usage"}})
    DELTA = ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
    STOP = ("message_stop", {})
    ERROR = ("error", {"error": {"type": "overloaded_error"}})

    def encoded(self, *events):
        return b"".join(gw.encode_sse_event(event_type, dict(value, type=event_type))
                        for event_type, value in events)

    def tracked(self, *events, raw=b""):
        tracker = gw.StreamTracker()
        tracker.feed(self.encoded(*events) + raw)
        return tracker

    def state(self, tracker):
        usage = tracker.usage
        return ((usage.input, usage.output, usage.cache_read, usage.cache_write),
                tracker.stop_reason, tracker.error_type, tracker.complete, tracker.content_started)

    def test_a_whole_stream_in_every_split(self):
        data = self.encoded(self.START, self.BLOCK, self.TEXT, self.DELTA, self.STOP)
        for begin, excess in itertools.product(
                (b"", b"\xef\xbb\xbf"), (b"", b"event: error\ndata: {}\n")):
            for pieces in every_split(begin + data + excess):
                tracker = gw.StreamTracker()
                for piece in pieces:
                    tracker.feed(piece)
                self.assertEqual(self.state(tracker), ((11, 9, 3, 4), "end_turn", "", True, True))

    def test_events_are_counted_however_they_are_written(self):
        """What is passed over in runs is counted as the decoder counts it."""
        ping = b"event: ping\ndata: {}\n\n"
        written = [ping, ping * 2500, b": comment\n\n", b"\n", b"event: ping\n\n", b"data: x\n\n",
                   ping.replace(b"\n", b"\r\n"), b"id: 1\n" + ping, b"event: ping\ndata: a\ndata: b\n\n",
                   b"event: ping\ndata: " + b"x" * 70000 + b"\n\n", self.encoded(self.BLOCK),
                   b"event: ping\ndata: x\nevent: message_stop\n\n",
                   b"\xef\xbb\xbf" + self.encoded(self.STOP), self.encoded(self.STOP, self.BLOCK)]
        for first, second in itertools.product(written, repeat=2):
            data = ping + first + second + ping
            at = len(ping + first) + len(second) // 2
            for pieces in ([data], [ping, first, second, ping], [data[:at], data[at:]]):
                tracker, events = gw.StreamTracker(), gw.SseDecoder().feed(data)
                for piece in pieces:
                    tracker.feed(piece)
                types = [event.type for event in events]
                self.assertEqual(
                    (tracker.events_count, tracker.content_started, tracker.complete),
                    (len(events), "content_block_start" in types, "message_stop" in types))

    def test_what_tells_nothing_is_not_parsed_behind_a_comment_either(self):
        """It took 4 times as long from there to the end of the read, with ids 20 times."""
        ping = b"event: ping\ndata: {}\n\n"
        for odd in (b": comment\n\n", ping.replace(b"\n\n", b"\nid: 1\n\n"),
                    ping.replace(b"event: ", b"event:")):
            tracker = gw.StreamTracker()
            with unittest.mock.patch.object(gw, "parse_event", wraps=gw.parse_event) as parse:
                tracker.feed(ping + odd + (ping + odd) * 100)
            comments = 101 if odd.startswith(b":") else 0
            self.assertEqual(parse.call_count, comments)
            self.assertEqual(tracker.events_count, 202 - comments)

    def test_is_complete_with_a_stop_or_an_error_only(self):
        table = [
            ("nothing", [], False),
            ("start", [self.START], False),
            ("content", [self.START, self.BLOCK, self.TEXT], False),
            ("stop reason", [self.START, self.DELTA], False),
            ("stop", [self.START, self.DELTA, self.STOP], True),
            ("stop of an empty message", [self.START, self.STOP], True),
            ("error", [self.ERROR], True),
            ("error in the midst", [self.START, self.BLOCK, self.ERROR], True),
            ("pings", [("ping", {})] * 3, False),
            ("unknown events", [("future", {"type": "message_stop"})], False),
        ]
        for name, events, complete in table:
            with self.subTest(name):
                self.assertIs(self.tracked(*events).complete, complete)

    def test_half_a_stop_is_no_stop(self):
        data = self.encoded(self.STOP)
        for at in range(len(data)):
            with self.subTest(at=at):
                tracker = gw.StreamTracker()
                tracker.feed(data[:at])
                self.assertFalse(tracker.complete)

    def test_content_starts_with_its_first_block(self):
        self.assertFalse(self.tracked(self.START, ("ping", {})).content_started)
        self.assertTrue(self.tracked(self.START, self.BLOCK).content_started)

    def test_later_counts_win(self):
        more = ("message_delta", {"delta": {}, "usage": {"output_tokens": 20, "input_tokens": 12}})
        self.assertEqual(self.state(self.tracked(self.START, self.DELTA, more))[:2],
                         ((12, 20, 3, 4), "end_turn"))

    def test_error_types(self):
        table = [
            (b'{"error":{"type":"rate_limit_error"}}', "rate_limit_error"),
            (b'{"error":{"type":5}}', "error"),
            (b'{"error":{}}', "error"),
            (b'{"error":"x"}', "error"),
            (b'{"error":null}', "error"),
            (b"{}", "error"),
            (b"[]", "error"),
            (b"not JSON", "error"),
            (b"\xff", "error"),
        ]
        for data, error_type in table:
            with self.subTest(data=data):
                tracker = self.tracked(raw=b"event: error\ndata: " + data + b"\n\n")
                self.assertEqual((tracker.error_type, tracker.complete), (error_type, True))

    def test_junk_is_passed_over_and_changes_nothing(self):
        junk = [b"", b"not JSON", b"{", b"null", b"[]", b"5", b'"x"', b"\xff\xfe", b"{}", b"NaN",
                b"[" * 100000, b'{"a":' * 100000, b'{"usage":' + b"1" * 5000 + b"}",
                b'{"message":null}', b'{"message":[]}', b'{"message":"x"}', b'{"message":5}',
                b'{"message":{"usage":[]}}', b'{"message":{"usage":{"input_tokens":"1"}}}',
                b'{"delta":null}', b'{"delta":[]}', b'{"delta":{"stop_reason":null}}',
                b'{"delta":{"stop_reason":5}}', b'{"delta":{"stop_reason":{}}}', b'{"usage":"x"}',
                b'{"usage":{"output_tokens":true}}', b'{"usage":{"output_tokens":1e999}}',
                b'{"usage":{"output_tokens":[[]]}}']
        before = self.state(self.tracked(self.START, self.DELTA))
        for data in junk:
            for event_type in (b"message_start", b"message_delta", b"ping", b"new", b"\xff", b""):
                with self.subTest(event_type=event_type, data=data[:40]):
                    tracker = self.tracked(self.START, self.DELTA, raw=(
                        b"event: " + event_type + b"\ndata: " + data + b"\n\n"))
                    self.assertEqual(self.state(tracker), before)

    def test_looks_on_after_junk(self):
        tracker = self.tracked(raw=b"event: message_start\ndata: {\n\n\x00\xff\n\n:\n\n"
                                   + self.encoded(self.DELTA, self.STOP))
        self.assertEqual(self.state(tracker), ((0, 9, 0, 0), "end_turn", "", True, False))

    def test_an_event_beyond_the_bound_makes_it_blind(self):
        tracker = self.tracked(self.START)
        piece = b"x" * (1024 * 1024)  # one object, many times: nothing is copied
        for _ in range(gw.MAX_SSE_EVENT_BYTES // len(piece)):
            tracker.feed(piece)
        self.assertFalse(tracker.blind)
        tracker.feed(b"x")
        self.assertTrue(tracker.blind)
        tracker.feed(b"\n\n" + self.encoded(self.STOP))
        self.assertEqual(self.state(tracker), ((11, 1, 3, 4), "", "", False, False))

    def test_after_a_cut_an_error_event_is_read_clean(self):
        data = self.encoded(self.START, self.BLOCK, self.STOP)
        error = error_event(gw.UpstreamStalled("silent"))
        for at in range(len(data)):
            with self.subTest(at=at):
                tracker = gw.StreamTracker()
                tracker.feed(data[:at])
                events = gw.SseDecoder().feed(data[:at] + tracker.decoder.between_events() + error)
                self.assertEqual(events[-1].type, "error")
                self.assertNotIn("message_stop", [event.type for event in events])


class ErrorEventTest(unittest.TestCase):

    def test_is_one_event_in_the_shape_of_contract_section_9(self):
        table = [(gw.UpstreamBroke("a\n\nb"), "api_error"),
                 (gw.UpstreamStalled("ä"), "timeout_error"),
                 (gw.ShuttingDown("\ud800"), "overloaded_error")]
        for error, error_type in table:
            with self.subTest(error_type):
                [event] = gw.SseDecoder().feed(error_event(error))
                self.assertEqual(event.type, "error")
                self.assertEqual(json.loads(event.data.decode("ascii")), {
                    "type": "error", "error": {"type": error_type, "message": error.message},
                    "request_id": "req_1"})


class ModelListingTest(unittest.TestCase):

    def test_has_what_both_sdk_families_read(self):
        self.assertEqual(gw.model_listing("claude-opus-4-5-20251101", "anthropic", "work"), {
            "id": "claude-opus-4-5-20251101",
            "object": "model",
            "type": "model",
            "owned_by": "anthropic",
            "provider": "work",
            "created": 1761955200,  # date -u -d 2025-11-01 +%s
            "created_at": "2025-11-01T00:00:00Z",
            "display_name": "Claude Opus 4.5",
        })

    def test_an_id_without_a_date_has_the_epoch(self):
        for model_id in ("GLM-4.7", "claude-opus-4-5", "x-20251399", "x-20250230", "x-19990101",
                         "x-2025110", "x-202511011", "x-20251101a", ""):
            with self.subTest(model_id):
                listing = gw.model_listing(model_id, "o", "p")
                self.assertEqual((listing["created"], listing["created_at"]),
                                 (0, "1970-01-01T00:00:00Z"))


class DisplayNameTest(unittest.TestCase):

    def test_names(self):
        table = {
            "claude-opus-4-5-20251101": "Claude Opus 4.5",
            "claude-sonnet-4-20250514": "Claude Sonnet 4",
            "claude-3-5-haiku-20241022": "Claude 3.5 Haiku",
            "claude-haiku-4-5": "Claude Haiku 4.5",
            "GLM-4.7": "GLM 4.7",
            "GLM-4.5-Air": "GLM 4.5 Air",
            "claude": "Claude",
            "": "",
        }
        for model_id, name in table.items():
            with self.subTest(model_id):
                self.assertEqual(gw.display_name(model_id), name)


class PageOfModelsTest(unittest.TestCase):

    MODELS = [{"id": model_id} for model_id in "abcde"]

    def page(self, query):
        page = gw.page_of_models(self.MODELS, query)
        ids = "".join(model["id"] for model in page["data"])
        self.assertEqual((page["first_id"], page["last_id"]), (ids[:1] or None, ids[-1:] or None))
        self.assertEqual(page["object"], "list")
        return ids, page["has_more"]

    def test_pages(self):
        table = {
            "": ("abcde", False),
            "limit=2": ("ab", True),
            "limit=5": ("abcde", False),
            "limit=4": ("abcd", True),
            "limit=1000": ("abcde", False),
            "limit=002": ("ab", True),
            "after_id=b": ("cde", False),
            "after_id=b&limit=2": ("cd", True),
            "after_id=b&limit=3": ("cde", False),
            "after_id=e": ("", False),
            "before_id=d": ("abc", False),
            "before_id=d&limit=2": ("bc", True),
            "before_id=d&limit=3": ("abc", False),
            "before_id=a": ("", False),
            "after_id=unknown": ("abcde", False),
            "before_id=unknown&limit=1": ("a", True),
            "beta=true": ("abcde", False),
            "&&=&%ff=%00": ("abcde", False),
        }
        for query, expected in table.items():
            with self.subTest(query):
                self.assertEqual(self.page(query), expected)

    def test_pages_in_a_row_are_the_whole_list(self):
        for limit in range(1, 7):
            with self.subTest(limit=limit):
                seen, more = self.page("limit=%d" % limit)
                while more:
                    ids, more = self.page("limit=%d&after_id=%s" % (limit, seen[-1]))
                    seen += ids
                self.assertEqual(seen, "abcde")

    def test_escaped_ids_are_known(self):
        page = gw.page_of_models([{"id": "a/b c"}, {"id": "d"}], "after_id=a%2Fb%20c")
        self.assertEqual(page["data"], [{"id": "d"}])

    def test_bad_limits(self):
        for limit in ("0", "-1", "1001", "%2B5", "5.0", "5_0", "x", "%20", "1e2", "9" * 5000,
                      "%EF%BC%95", "0000", "NaN"):
            with self.subTest(limit[:20]), self.assertRaises(gw.RequestError) as caught:
                self.page("limit=" + limit)
            self.assertEqual(caught.exception.status, 400, limit[:20])

    def test_no_models_are_an_empty_list(self):
        self.assertEqual(gw.page_of_models([], "limit=1"), {
            "object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None})


if __name__ == "__main__":
    unittest.main()
