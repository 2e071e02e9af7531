"""Section 5: event streams in any split of their bytes, and after any cut."""

import itertools
import json
import re
import unittest

import claude_gateway as gw
from tests.support import every_split

BOM = b"\xef\xbb\xbf"
MESSAGE_STREAM = (
    b'event: message_start\ndata: {"type":"message_start"}\n\n'
    b": a comment\n\n"
    b'event: content_block_delta\ndata: {"delta":{"text":"\xc3\xa4"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


def reference(data):
    """The events of a whole stream: WHATWG HTML section 9.2.6 line by line, and slow."""
    if data.startswith(BOM):
        data = data[3:]
    lines = re.split(b"\r\n|\n|\r", data)[:-1]
    events, event_type, values = [], b"", []
    for line in lines:
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            if values:
                events.append((event_type.decode("utf-8", "replace") or "message",
                               b"\n".join(values)))
            event_type, values = b"", []
        elif field == b"event":
            event_type = value
        elif field == b"data":
            values.append(value)
    return events


def decoded(pieces, **settings):
    """What a fresh decoder makes of pieces."""
    decoder = gw.SseDecoder(**settings)
    return [tuple(event) for piece in pieces for event in decoder.feed(piece)]


def in_bytes(data):
    """The worst of all splits."""
    return [data[at:at + 1] for at in range(len(data))]


class DecoderTest(unittest.TestCase):

    def assert_events(self, data, expected):
        """The same events in every split, and with bytes of a next one behind them."""
        self.assertEqual(reference(data), expected, "the reference is wrong")
        for excess in (b"", b"event: x\ndata: unfinished"):
            for pieces in every_split(data + excess):
                self.assertEqual(decoded(pieces), expected, pieces[:2])

    def test_a_message_stream(self):
        self.assert_events(MESSAGE_STREAM, [
            ("message_start", b'{"type":"message_start"}'),
            ("content_block_delta", b'{"delta":{"text":"\xc3\xa4"}}'),
            ("message_stop", b'{"type":"message_stop"}'),
        ])

    def test_fields(self):
        table = {
            "no type": (b"data: x\n\n", [("message", b"x")]),
            "no blank": (b"event:a\ndata:x\n\n", [("a", b"x")]),
            "one blank only is taken off": (b"event:  a \ndata:  x \n\n", [(" a ", b" x ")]),
            "a tab is no blank": (b"data:\tx\n\n", [("message", b"\tx")]),
            "colons in a value": (b"data: a:b: c\n\n", [("message", b"a:b: c")]),
            "type behind the data": (b"data: x\nevent: a\n\n", [("a", b"x")]),
            "the last type wins": (b"event: a\nevent: b\ndata: x\n\n", [("b", b"x")]),
            "an empty type is none": (b"event: a\nevent\ndata: x\n\n", [("message", b"x")]),
            "a type is for one event": (b"event: a\n\ndata: x\n\n", [("message", b"x")]),
            "no data, no event": (b"event: a\nid: 1\nretry: 5\n\n", []),
            "empty data": (b"data\n\ndata:\n\ndata: \n\n", [("message", b"")] * 3),
            "several lines": (b"data: a\ndata: b\ndata\ndata: c\n\n", [("message", b"a\nb\n\nc")]),
            "two empty lines": (b"data\ndata\n\n", [("message", b"\n")]),
            "comments": (b":\n: x\ndata: a\n:data: b\ndata: c\n\n", [("message", b"a\nc")]),
            "comments alone": (b": ping\n\n: ping\n\n", []),
            "unknown fields": (b"id: 1\nDATA: x\ndatax: y\n data: z\ndata: a\n\n",
                               [("message", b"a")]),
            "blank lines between": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [("message", b"a"),
                                                                         ("message", b"b")]),
            "no end": (b"data: a\n\ndata: b\n", [("message", b"a")]),
            "nothing": (b"\n", []),
        }
        for name, (data, expected) in table.items():
            with self.subTest(name):
                self.assert_events(data, expected)

    def test_only_cr_and_lf_end_a_line(self):
        # str.splitlines() would also split at these.
        text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\x00j".encode("utf-8")
        self.assert_events(b"data: " + text + b"\n\n", [("message", text)])

    def test_bytes_that_are_no_utf_8_pass_as_data_and_are_replaced_in_a_type(self):
        self.assert_events(b"event: a\xff\ndata: \xff\xfe\xc3\n\n", [("a\ufffd", b"\xff\xfe\xc3")])

    def test_byte_order_mark_counts_at_the_start_only(self):
        table = {
            "at the start": (BOM + b"data: x\n\n", [("message", b"x")]),
            "twice": (BOM + BOM + b"data: x\n\n", []),
            "in the second event": (b"data: x\n\n" + BOM + b"data: y\n\n", [("message", b"x")]),
            "behind blank lines": (b"\n\n" + BOM + b"data: x\n\n", []),
            "alone": (BOM + b"\n\ndata: x\n\n", [("message", b"x")]),
            "in data": (b"data: " + BOM + b"\n\n", [("message", BOM)]),
            "half": (BOM[:2] + b"data: x\n\n", []),
        }
        for name, (data, expected) in table.items():
            with self.subTest(name):
                self.assert_events(data, expected)

    def test_line_ends_of_every_kind_alone_and_mixed(self):
        for first, second, third in itertools.product((b"\n", b"\r", b"\r\n"), repeat=3):
            data = (b"event: a" + first + b"data: x" + second + third
                    + b"data: y" + third + b"data: z" + first + second)
            if b"\r\n" in (first + second, second + third, third + first):
                continue  # two ends that read as one: another stream, see the next test
            with self.subTest(data=data):
                self.assert_events(data, [("a", b"x"), ("message", b"y\nz")])

    def test_every_short_stream_reads_as_the_reference_reads_it(self):
        parts = (b"\r", b"\n", b"data:x", b"event:y", b":")
        for count in range(1, 6):
            for chosen in itertools.product(parts, repeat=count):
                data = b"".join(chosen) + b"\n\n"
                expected = reference(data)
                # Split where the parts meet, and byte by byte.
                for pieces in ([data], chosen + (b"\n", b"\n"), in_bytes(data)):
                    self.assertEqual(decoded(pieces), expected, chosen)

    def test_empty_reads_change_nothing(self):
        pieces = [b"", b"data: x\r", b"", b"\n", b"", b"\r", b"", b"\n", b""]
        self.assertEqual(decoded(pieces), [("message", b"x")])

    def test_events_come_with_the_read_that_completes_them(self):
        decoder = gw.SseDecoder()
        pieces = (b"data: a\n", b"\ndata: b\n\nda", b"ta: c\n\r")
        counts = [len(decoder.feed(piece)) for piece in pieces]
        self.assertEqual(counts, [0, 2, 1])

    def test_a_large_event_in_small_pieces_is_whole(self):
        data = b"data: " + b"x" * 500000 + b"\n\n"
        pieces = [data[at:at + 7] for at in range(0, len(data), 7)]
        # assertEqual would work on the difference for minutes.
        self.assertTrue(decoded(pieces) == [("message", b"x" * 500000)])


class OversizedEventTest(unittest.TestCase):

    LIMIT = 60

    def event(self, size):
        """An event whose lines are ``size`` bytes with their ends, less the blank line."""
        return b"data: " + b"x" * (size - 7) + b"\n\n"

    def feed(self, pieces):
        decoder = gw.SseDecoder(max_event_bytes=self.LIMIT)
        return [event.data for piece in pieces for event in decoder.feed(piece)], decoder

    def test_just_under_the_bound_is_an_event(self):
        for size in (self.LIMIT - 1, self.LIMIT):
            data = self.event(size) * 2 + b"data: y\n\n"
            for pieces in every_split(data):
                with self.subTest(size=size, first=len(pieces[0])):
                    events, decoder = self.feed(pieces)
                    self.assertEqual((len(events), decoder.overflowed), (3, False))

    def test_over_the_bound_ends_the_decoding_in_pieces(self):
        for size in (self.LIMIT + 1, self.LIMIT * 10):
            data = b"data: first\n\n" + self.event(size) + b"data: never\n\n"
            with self.subTest(size=size):
                events, decoder = self.feed(in_bytes(data))
                self.assertEqual((events, decoder.overflowed), ([b"first"], True))

    def test_over_the_bound_ends_the_decoding_in_every_split(self):
        """Whether an event is too large must not hang on where the reads end."""
        for size in (self.LIMIT + 1, self.LIMIT * 3):
            data = b"data: first\n\n" + self.event(size) + b"data: never\n\n"
            with self.subTest(size=size):
                for pieces in every_split(data):
                    events, decoder = self.feed(pieces)
                    self.assertEqual((events, decoder.overflowed), ([b"first"], True), pieces[:2])

    def test_many_small_lines_count_together(self):
        events, decoder = self.feed([b"data: x\n"] * 8 + [b"\n"])
        self.assertEqual((events, decoder.overflowed), ([], True))

    def test_an_overflow_keeps_nothing_and_stays(self):
        events, decoder = self.feed([b"x" * 40] * 3 + [b"\n\n", b"data: x\n\n"])
        self.assertEqual((events, decoder.overflowed), ([], True))
        self.assertEqual(decoder._fragments, [])


class BetweenEventsTest(unittest.TestCase):
    """After any cut an error event can follow, and the half event is nothing but a ping."""

    ERROR = gw.encode_sse_event("error", {"type": "error", "error": {"type": "api_error"}})
    ERROR_READ = ("error", b'{"type":"error","error":{"type":"api_error"}}')

    def assert_clean(self, data, pieces, **settings):
        """``data`` has gone down in ``pieces``; then comes the end of it all."""
        decoder = gw.SseDecoder(**settings)
        for piece in pieces:
            decoder.feed(piece)
        sent = data + decoder.between_events() + self.ERROR
        whole = reference(data)
        seen = reference(sent)
        self.assertEqual(decoded([sent]), seen)
        self.assertEqual(seen[-1], self.ERROR_READ, sent)
        self.assertEqual(seen[:len(whole)], whole, sent)
        between = [event_type for event_type, _ in seen[len(whole):-1]]
        self.assertIn(between, ([], ["ping"]), sent)

    def streams(self):
        yield "line feeds", MESSAGE_STREAM
        yield "CRLF", MESSAGE_STREAM.replace(b"\n", b"\r\n")
        yield "CR", MESSAGE_STREAM.replace(b"\n", b"\r")
        yield "byte order mark", BOM + b"data: x\n\n"
        yield "mixed", (b"event: a\r\ndata: x\r\rdata: y\n\r\ndata: z\r\n\n: c\n\r"
                        b"event: b\ndata: x\r\n\r\n")
        yield "type behind the data", b"data: x\nevent: message_stop\n\n"

    def test_a_cut_at_every_byte_that_was_read_whole(self):
        for name, data in self.streams():
            with self.subTest(name):
                for at in range(len(data) + 1):
                    self.assert_clean(data[:at], [data[:at]])

    def test_a_cut_at_every_byte_that_was_read_byte_by_byte(self):
        for name, data in self.streams():
            with self.subTest(name):
                for at in range(len(data) + 1):
                    self.assert_clean(data[:at], in_bytes(data[:at]))

    def test_a_cut_at_every_byte_that_was_read_in_every_two_pieces(self):
        data = b"event: a\r\ndata: x\r\n\r\nevent: b\r\ndata: y\r\n\r\n"
        for at in range(1, len(data) + 1):
            for pieces in every_split(data[:at]):
                self.assert_clean(data[:at], pieces)

    def test_a_cut_after_any_short_stream(self):
        parts = (b"\r", b"\n", b"data:x", b"event:y")
        for count in range(1, 6):
            for chosen in itertools.product(parts, repeat=count):
                self.assert_clean(b"".join(chosen), chosen)

    def test_a_cut_within_and_behind_an_oversized_event(self):
        data = b"data: a\n\nevent: b\ndata: " + b"x" * 40 + b"\n\ndata: c\n\n"
        for at in range(len(data) + 1):
            self.assert_clean(data[:at], in_bytes(data[:at]), max_event_bytes=20)
            for pieces in every_split(data[:at]):
                self.assert_clean(data[:at], pieces, max_event_bytes=20)

    def test_is_empty_between_events(self):
        for data in (b"", b"data: x\n\n", b"data: x\r\n\r\n", b"data: x\r\r", b": c\n\n"):
            for pieces in every_split(data):
                with self.subTest(pieces=pieces):
                    decoder = gw.SseDecoder()
                    for piece in pieces:
                        decoder.feed(piece)
                    self.assertEqual(decoder.between_events(), b"")

    def test_asking_changes_nothing(self):
        decoder = gw.SseDecoder()
        decoder.feed(b"data: x")
        self.assertEqual(decoder.between_events(), decoder.between_events())
        self.assertEqual(decoder.feed(b"\n\n"), [("message", b"x")])


class EncodeTest(unittest.TestCase):

    def test_no_text_breaks_out_of_its_event(self):
        value = {"message": "a\n\nevent: x\r\n\r\u2028\x85\ud800ä"}
        data = gw.encode_sse_event("error", value)
        [(event_type, payload)] = reference(data)
        self.assertEqual((event_type, json.loads(payload.decode("ascii"))), ("error", value))
        self.assertEqual(data.count(b"\n"), 3)

    def test_several_in_a_row_are_read_back(self):
        data = b"".join(gw.encode_sse_event("t%d" % number, [number]) for number in range(3))
        for pieces in every_split(data):
            self.assertEqual(decoded(pieces), [("t0", b"[0]"), ("t1", b"[1]"), ("t2", b"[2]")])


if __name__ == "__main__":
    unittest.main()
