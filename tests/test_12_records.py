"""Section 12: what a record tells, what a line may hold, and that no line costs a request."""

import errno
import io
import json
import queue
import threading
import unittest
from unittest import mock

import claude_gateway as gw
from tests.support import FakeClock
from tests.support import Gate
from tests.support import WAIT_SECONDS


class EscapeControlsTest(unittest.TestCase):

    def test_what_a_terminal_or_a_line_reader_would_act_on(self):
        table = [
            ("newline", "a\nb", "a\\nb"),
            ("return", "a\rb", "a\\rb"),
            ("tab", "a\tb", "a\\tb"),
            ("escape", "\x1b[2J", "\\x1b[2J"),
            ("zero", "\x00", "\\x00"),
            ("DEL", "\x7f", "\\x7f"),
            ("C1: CSI in one character", "\x9b2J", "\\x9b2J"),
            ("next line", "\x85", "\\x85"),
            ("line separator", "\u2028\u2029", "\\u2028\\u2029"),
            ("right-to-left override", "\u202e", "\\u202e"),
            ("lone surrogate", "\ud800", "\\ud800"),
        ]
        for name, text, expected in table:
            with self.subTest(name):
                self.assertEqual(gw.escape_controls(text), expected)

    def test_text_stays(self):
        text = "req_1 GET /ü 日本 😀 \\ 'a b' …"
        self.assertEqual(gw.escape_controls(text), text)


class RequestRecordTest(unittest.TestCase):

    def record(self, **values):
        record = gw.RequestRecord("req_1", "POST", 1700000000.25)
        for name, value in values.items():
            setattr(record, name, value)
        return record

    def test_keys_are_the_fields_in_order(self):
        self.assertEqual(tuple(self.record().as_dict()), gw.RequestRecord.FIELDS)

    def test_fields_are_those_of_contract_section_12(self):
        needed = {"id", "time", "key", "route", "model", "mapped_model", "provider", "account",
                  "attempts", "edits", "status", "stop_reason", "input_tokens", "output_tokens",
                  "cache_read_tokens", "cache_write_tokens", "first_byte_seconds", "seconds",
                  "bytes_in", "bytes_out", "ended"}
        self.assertEqual(needed - set(gw.RequestRecord.FIELDS), set())

    def test_a_new_one_knows_nothing_and_is_complete(self):
        values = self.record().as_dict()
        self.assertEqual((values["id"], values["time"], values["method"], values["ended"]),
                         ("req_1", "2023-11-14T22:13:20.250Z", "POST", "complete"))
        self.assertIsNone(values["first_byte_seconds"])
        rest = set(gw.RequestRecord.FIELDS) - {"id", "time", "method", "ended"}
        self.assertEqual([name for name in rest if values[name]], [])

    def test_as_dict_is_json(self):
        record = self.record(seconds=1.23456789, first_byte_seconds=0.1234567)
        record.attempts.append(gw.Attempt("p", "a", "answer", 529, 0.5, "failing", 1.25))
        record.usage.update({"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 5,
                             "cache_creation_input_tokens": 6})
        values = json.loads(json.dumps(record.as_dict()))
        self.assertEqual(values["attempts"], [{"provider": "p", "account": "a", "seconds": 0.5,
                                               "outcome": "answer", "status": 529,
                                               "case": "failing", "began_seconds": 1.25}])
        self.assertEqual([values[name + "_tokens"] for name in
                          ("input", "output", "cache_read", "cache_write")], [3, 4, 5, 6])
        self.assertEqual((values["seconds"], values["first_byte_seconds"]), (1.234568, 0.123457))

    def test_text_grows_with_what_is_known(self):
        table = [
            ({}, "req_1 POST - - 0.000 s"),
            ({"route": "messages", "status": 200, "seconds": 1.5},
             "req_1 POST messages 200 1.500 s"),
            ({"model": "m"}, "req_1 POST - - m 0.000 s"),
            ({"model": "m", "mapped_model": "m"}, "req_1 POST - - m 0.000 s"),
            ({"model": "m", "mapped_model": "n"}, "req_1 POST - - m -> n 0.000 s"),
            ({"provider": "p"}, "req_1 POST - - p 0.000 s"),
            ({"provider": "p", "account": "a"}, "req_1 POST - - p/a 0.000 s"),
            ({"ended": "client_left"}, "req_1 POST - - 0.000 s client_left"),
            ({"error": "bad JSON"}, "req_1 POST - - 0.000 s (bad JSON)"),
        ]
        for values, text in table:
            with self.subTest(values=values):
                self.assertEqual(self.record(**values).as_text(), text)

    def test_text_tells_attempts_where_there_were_several(self):
        record = self.record()
        record.attempts.append(gw.Attempt("p", "a", "answer", 529, 0.1))
        self.assertNotIn("tried", record.as_text())
        record.attempts.append(gw.Attempt("p", "b", "silent", 0, 0.1))
        self.assertIn("tried p/a 529, p/b silent", record.as_text())

    def test_text_tells_tokens(self):
        record = self.record()
        record.usage.update({"input_tokens": 3, "output_tokens": 4})
        self.assertIn("3 in 4 out", record.as_text())


class UtcTextTest(unittest.TestCase):

    def test_rfc_3339(self):
        table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (0.9996, "1970-01-01T00:00:00.999Z"),  # rounding up would need a new second
            (1700000000.5, "2023-11-14T22:13:20.500Z"),
        ]
        for seconds, text in table:
            with self.subTest(seconds=seconds):
                self.assertEqual(gw.utc_text(seconds), text)


class Stream:
    """A stream whose first ``faults`` writes raise; each attempt is told to ``attempts``."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.attempts = queue.Queue()
        self.text = ""

    def write(self, text):
        fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            self.text += text
        self.attempts.put(text)
        if fault is not None:
            raise fault

    def flush(self):
        pass


class BlockedStream(Stream):
    """A terminal that takes nothing until the gate opens."""

    def __init__(self):
        super().__init__()
        self.entered = Gate()
        self.gate = Gate()

    def write(self, text):
        self.entered.open()
        self.gate.wait("the terminal reads on")
        super().write(text)


class LineWriterTest(unittest.TestCase):

    def written_one_by_one(self, stream, *lines):
        """What a stream holds after lines, each of which was tried before the next."""
        writer = gw.LineWriter(stream)
        for line in lines:
            writer(line)
            stream.attempts.get(timeout=WAIT_SECONDS)
        writer.close()
        return stream.text

    def test_writes_lines_in_order(self):
        stream = io.StringIO()
        writer = gw.LineWriter(stream)
        for number in range(100):
            writer(str(number))
        writer.close()
        self.assertEqual(stream.getvalue(), "".join("%d\n" % number for number in range(100)))

    def test_nothing_said_writes_nothing(self):
        stream = io.StringIO()
        gw.LineWriter(stream).close()
        self.assertEqual(stream.getvalue(), "")

    def test_a_blocked_terminal_blocks_no_caller(self):
        stream = BlockedStream()
        with mock.patch.object(gw, "LOG_QUEUE_LINES", 3):
            writer = gw.LineWriter(stream)
            writer("taken")
            stream.entered.wait("the writer reaches the terminal")
            for number in range(8):
                writer("line %d" % number)
            stream.gate.open()
            writer.close()
        self.assertEqual(stream.text, "taken\n(5 log lines lost)\nline 0\nline 1\nline 2\n")

    def test_the_first_line_comes_at_once_and_the_next_ones_together(self):
        with mock.patch.object(gw, "LOG_PAUSE_SECONDS", 3600.0):
            stream = Stream()
            writer = gw.LineWriter(stream)
            writer("first")
            stream.attempts.get(timeout=WAIT_SECONDS)
            for number in range(100):
                writer("%d" % number)
            self.assertTrue(stream.attempts.empty())
            writer.close()  # which ends the pause
        self.assertEqual(stream.attempts.qsize(), 1)
        self.assertEqual(stream.text.split("\n"), ["first", *map(str, range(100)), ""])

    def test_after_a_pause_the_next_line_comes(self):
        stream = Stream()
        writer = gw.LineWriter(stream)
        for number in range(3):
            writer("%d" % number)
            stream.attempts.get(timeout=WAIT_SECONDS)
        self.assertEqual(stream.text, "0\n1\n2\n")
        writer.close()

    def test_closing_waits_no_longer_than_it_may(self):
        stream = BlockedStream()
        self.addCleanup(stream.gate.open)
        writer = gw.LineWriter(stream)
        writer("taken")
        stream.entered.wait("the writer reaches the terminal")
        with mock.patch.object(gw, "LOG_FLUSH_SECONDS", 0.01):
            writer.close()
        self.assertEqual(stream.text, "")

    def test_lines_lost_are_counted_and_told(self):
        full = OSError(errno.ENOSPC, "No space left on device")
        pipe = BrokenPipeError(errno.EPIPE, "Broken pipe")
        table = [
            ("full disk", [full], "(1 log lines lost)"),
            ("closed pipe", [pipe], "(1 log lines lost)"),
            ("closed file", [ValueError("I/O operation on closed file.")], "(1 log lines lost)"),
            # The line that tells the loss is lost as well, and is no line of ours.
            ("twice", [full, full], "(2 log lines lost)"),
            ("thrice", [full, full, full], "(3 log lines lost)"),
            ("four times", [full, full, full, pipe], "(4 log lines lost)"),
        ]
        for name, faults, told in table:
            with self.subTest(name):
                lines = ["lost %d" % number for number in range(len(faults))] + ["kept"]
                self.assertEqual(self.written_one_by_one(Stream(*faults), *lines),
                                 "%s\nkept\n" % told)

    def test_a_loss_is_told_once(self):
        stream = Stream(OSError(errno.ENOSPC, "No space left on device"))
        self.assertEqual(self.written_one_by_one(stream, "lost", "a", "b"),
                         "(1 log lines lost)\na\nb\n")

    def test_a_closed_stream_for_good_only_loses_lines(self):
        stream = io.StringIO()
        stream.close()
        writer = gw.LineWriter(stream)
        for number in range(100):
            writer(str(number))
        writer.close()

    def test_no_stream_at_all_only_loses_lines(self):
        """sys.stderr is None where the process was started with it closed."""
        writer = gw.LineWriter(None)
        with mock.patch.object(threading, "excepthook") as unhandled:
            writer("lost")
            writer.close()
        self.assertEqual(unhandled.mock_calls, [])

    def test_lines_after_the_end_are_lost_quietly(self):
        stream = io.StringIO()
        writer = gw.LineWriter(stream)
        writer("a")
        writer.close()
        writer("b")
        writer.close()
        self.assertEqual(stream.getvalue(), "a\n")

    def test_callers_in_parallel_lose_nothing(self):
        stream = io.StringIO()
        writer = gw.LineWriter(stream)
        threads = [threading.Thread(target=lambda: [writer("x" * 50) for _ in range(100)])
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        writer.close()
        self.assertEqual(stream.getvalue(), ("x" * 50 + "\n") * 800)


class LogTest(unittest.TestCase):

    STAMP = "2023-11-14T22:13:20.000Z"

    def log(self, level="info", format="text"):
        self.lines = []
        return gw.Log(self.lines.append, FakeClock().time, gw.LogSettings(level, format))

    def record(self, **values):
        record = gw.RequestRecord("req_1", "GET", 0)
        for name, value in values.items():
            setattr(record, name, value)
        return record

    def test_levels(self):
        levels = ["debug", "info", "warning", "error"]
        for position, threshold in enumerate(levels):
            with self.subTest(threshold):
                log = self.log(threshold)
                for level in levels:
                    log.message(level, "m")
                self.assertEqual(self.lines, ["%s %s m" % (self.STAMP, level)
                                              for level in levels[position:]])

    def test_one_message_is_one_line(self):
        for form in ("text", "json"):
            with self.subTest(form):
                self.log(format=form).message("info", "a\nb\x1b[2J\u2028")
                self.assertEqual(len(self.lines), 1)
                self.assertTrue(self.lines[0].isprintable())

    def test_json(self):
        self.log(format="json").message("warning", "a\nb")
        self.assertEqual(json.loads(self.lines[0]),
                         {"time": self.STAMP, "level": "warning", "message": "a\nb"})

    def test_json_record_is_the_record(self):
        record = self.record(provider="p", status=200)
        self.log(format="json").record(record)
        self.assertEqual(json.loads(self.lines[0]), dict(record.as_dict(), level="info"))

    def test_text_record_is_its_text_escaped(self):
        self.log().record(self.record(provider="p", status=200, model="a\nb"))
        self.assertEqual(self.lines, [self.STAMP + " info req_1 GET - 200 a\\nb p 0.000 s"])

    def test_level_of_a_record(self):
        table = [
            ("a probe", {"status": 200}, "debug"),
            ("answered by an upstream", {"status": 200, "provider": "p"}, "info"),
            ("refused here", {"status": 401}, "info"),
            ("our failure", {"status": 503}, "warning"),
            ("an upstream's failure", {"status": 529, "provider": "p"}, "warning"),
            ("broke in the middle",
             {"status": 200, "provider": "p", "ended": "upstream_broke"}, "warning"),
            ("the client left", {"status": 200, "provider": "p", "ended": "client_left"}, "info"),
        ]
        for name, values, level in table:
            with self.subTest(name):
                self.log("debug").record(self.record(**values))
                self.assertEqual(self.lines[0].split(" ")[1], level)

    def test_a_record_below_the_threshold_costs_no_line(self):
        for level, status, count in (("warning", 200, 0), ("warning", 503, 1), ("error", 503, 0)):
            self.log(level).record(self.record(status=status, provider="p"))
            self.assertEqual(len(self.lines), count)

    def test_once(self):
        log = self.log()
        for text in ("a", "b", "a", "a"):
            log.once("info", text)
        self.assertEqual([line[-1] for line in self.lines], ["a", "b"])

    def test_once_remembers_a_bounded_number(self):
        """Texts may hold what a client sent: neither memory nor the log may grow with them."""
        log = self.log()
        for number in range(gw.MAX_REMEMBERED_NOTICES + 10):
            log.once("info", str(number))
        self.assertEqual(len(self.lines), gw.MAX_REMEMBERED_NOTICES)


class RecordRingTest(unittest.TestCase):

    def ring_of(self, *records, size=3):
        ring = gw.RecordRing(size)
        for values in records:
            values.setdefault("status", 200)
            record = gw.RequestRecord(values.pop("id", "r"), "GET", 0)
            for name, value in values.items():
                setattr(record, name, value)
            ring.observe([record])
        return ring

    def test_newest_first_up_to_the_limit(self):
        ring = self.ring_of({"id": "a"}, {"id": "b"}, {"id": "c"})
        table = [(0, []), (1, ["c"]), (2, ["c", "b"]), (10, ["c", "b", "a"])]
        for limit, ids in table:
            with self.subTest(limit=limit):
                self.assertEqual([record.id for record in ring.newest(limit)], ids)

    def test_keeps_no_more_than_its_size(self):
        ring = self.ring_of(*[{"id": name} for name in "abcde"])
        self.assertEqual([record.id for record in ring.newest(10)], ["e", "d", "c"])

    def test_the_contracts_size_is_the_default(self):
        ring = gw.RecordRing()
        for number in range(1001):
            ring.observe([gw.RequestRecord(str(number), "GET", 0)])
        kept = ring.newest(2000)
        self.assertEqual((len(kept), kept[0].id, kept[-1].id), (1000, "1000", "1"))

    def test_counts_local_answers_by_route(self):
        ring = self.ring_of({"route": "health"}, {"route": "health"}, {"route": "models"},
                            {"route": "messages", "provider": "p"},
                            {"route": "messages", "error": "bad JSON"}, size=1)
        self.assertEqual(ring.local_answers(), {"health": (2, 0), "models": (1, 0)})

    def test_nothing_answered_is_no_local_answer_and_no_route_is_none(self):
        ring = self.ring_of({"route": "messages", "status": 0, "ended": "client_left"},
                            {"route": "", "status": 204})
        self.assertEqual(ring.local_answers(), {"none": (1, 0)})

    def test_gives_copies(self):
        ring = self.ring_of({"route": "models"})
        ring.local_answers().clear()
        ring.newest(1).clear()
        self.assertEqual((ring.local_answers(), len(ring.newest(1))), ({"models": (1, 0)}, 1))

    def test_probes_that_went_well_push_nothing_out(self):
        ring = self.ring_of({"id": "a"}, *({"route": name, "status": 200}
                                           for name in sorted(gw.QUIET_ROUTES) * 3))
        self.assertEqual([record.id for record in ring.newest(9)], ["a"])
        ring = self.ring_of({"id": "a"}, {"id": "b", "route": "health", "status": 503})
        self.assertEqual([record.id for record in ring.newest(9)], ["b", "a"])

    def test_numbers_go_on_when_records_have_gone(self):
        ring = self.ring_of(*[{"id": name} for name in "abcde"])
        number, records = ring.numbered(2)
        self.assertEqual((number, [record.id for record in records]), (5, ["e", "d"]))
        self.assertEqual(ring.seen_count, 5)


if __name__ == "__main__":
    unittest.main()
