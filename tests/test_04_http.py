"""Section 4: heads, framing, body decoders, header rules, credentials, the browser guard."""

import unittest

import claude_gateway as gw
from tests.support import every_split

CLIENT_KEY = "gateway-key"
ACCOUNT = ("x-api-key", "account-key")


def request_head(*lines, start="GET / HTTP/1.1", host="Host: a"):
    """A request head out of its lines; ``host=None`` leaves that header out."""
    lines = [start] + ([host] if host is not None else []) + list(lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def response_head(*lines, start="HTTP/1.1 200 OK", end="\r\n"):
    """A response head out of its lines."""
    return (end.join([start, *lines]) + end + end).encode("latin-1")


def fed(decoder, pieces):
    """What a decoder makes of pieces, one after the other."""
    return b"".join([decoder.feed(piece) for piece in pieces])


def in_bytes(data):
    """The worst of all splits."""
    return [data[at:at + 1] for at in range(len(data))]


class HeadTestCase(unittest.TestCase):

    def assert_refused(self, data, status=400):
        with self.assertRaises(gw.RequestError) as caught:
            gw.parse_request_head(data)
        self.assertEqual(caught.exception.status, status)
        self.assertTrue(caught.exception.close, "its framing can no longer be trusted")


class ParseHeaderLinesTest(unittest.TestCase):

    def test_values_lose_the_blanks_around_them_only(self):
        table = {
            "A:b": ("A", "b"),
            "A: b": ("A", "b"),
            "A: \t b \t": ("A", "b"),
            "A: b c\td": ("A", "b c\td"),
            "A:": ("A", ""),
            "A: :": ("A", ":"),
            "A: \xe4\xa0": ("A", "\xe4\xa0"),
            "!#$%&'*+-.^_`|~09azAZ: x": ("!#$%&'*+-.^_`|~09azAZ", "x"),
        }
        for line, pair in table.items():
            with self.subTest(line):
                self.assertEqual(gw.parse_header_lines([line]), [pair])

    def test_no_lines_are_no_headers(self):
        self.assertEqual(gw.parse_header_lines([]), [])

    def test_anything_else_is_refused(self):
        controls = ["A: b%sc" % chr(code) for code in [*range(0x20), 0x7f] if code != 0x09]
        names = ["A : b", "A\t: b", " A: b", "\tA: b", ": b", "A b: c", "A", "", "Ä: b", "A(: b",
                 "A\x00: b", "A\xa0: b", "\ufeffA: b"]
        for line in controls + names:
            with self.subTest(line), self.assertRaises(ValueError):
                gw.parse_header_lines(["Good: line", line])


class ParseRequestHeadTest(HeadTestCase):

    def test_gives_method_target_version_and_headers(self):
        head, length = gw.parse_request_head(
            request_head("X-B:  1 ", start="POST /v1/messages?a=b HTTP/1.1"))
        self.assertIsNone(length)
        self.assertEqual((head.method, head.target, head.version),
                         ("POST", "/v1/messages?a=b", 1))
        self.assertEqual(head.headers.pairs, [("Host", "a"), ("X-B", "1")])

    def test_valid_heads(self):
        table = {
            "any method of a token": request_head(start="M-SEARCH / HTTP/1.1"),
            "HTTP/1.0": request_head(start="GET / HTTP/1.0"),
            "HTTP/1.0 without Host": request_head(start="GET / HTTP/1.0", host=None),
            "asterisk": request_head(start="OPTIONS * HTTP/1.1"),
            "percent": request_head(start="GET /%00%0d%23 HTTP/1.1"),
            "colon in the path": request_head(start="GET /a:b@c HTTP/1.1"),
            "a URL in the query": request_head(start="GET /?u=http://a/ HTTP/1.1"),
            "Host with a port": request_head(host="Host: a:8045"),
            "Host of IPv6": request_head(host="Host: [::1]:8045"),
            "Host in capitals": request_head(host="HOST: LOCALHOST"),
            "Host without a blank": request_head(host="host:a"),
            "bytes above ASCII in a value": request_head("A: \xe9\xff"),
            "a name twice": request_head("A: 1", "A: 2"),
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assertIsInstance(gw.parse_request_head(data)[0], gw.Head)

    def test_malformed_request_lines(self):
        starts = [
            "GET  / HTTP/1.1", "GET /  HTTP/1.1", " GET / HTTP/1.1", "GET / HTTP/1.1 ",
            "GET\t/\tHTTP/1.1", "GET / a HTTP/1.1", "GET /", "GET / ", "GET", "", "/ HTTP/1.1",
            "GET / HTTP/0.9", "GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/11",
            "GET / HTTP/1.1.1", "GET / http/1.1", "GET / HTTP/1,1", "GET / HTTP/1.\xb2",
            "GET / HTTPS/1.1", "G(T / HTTP/1.1", "GE\x00T / HTTP/1.1", ": / HTTP/1.1",
            "M" * 33 + " / HTTP/1.1", "GET\x85/ HTTP/1.1", "GET\xa0/ HTTP/1.1", "GET\x0b/ HTTP/1.1",
            "GET /\x0c HTTP/1.1", "GET / HTTP/1.1\rHost: a", "GET / HTTP/1.1\nHost: a",
            "GET / HTTP/1.1\r",
        ]
        for start in starts:
            with self.subTest(start):
                self.assert_refused(request_head(start=start))

    def test_targets_that_are_not_a_path(self):
        targets = [
            "http://a/v1/messages", "https://a/", "HTTP://a", "a:443", "v1/messages", "?a", "**",
            ".evil.example/v1", "0/v1/messages", "@evil.example/", ":80/", "/#a", "/a?b#c",
            "/a\\b", "\\\\a\\b", "\\/a", "/\x00", "/\x1f", "/\x7f", "/\xe9", "/\x85", "/\xa0",
        ]
        for target in targets:
            with self.subTest(target):
                self.assert_refused(request_head(start="GET %s HTTP/1.1" % target))

    def test_malformed_header_lines(self):
        table = {
            "folded": "A: b\r\n c",
            "folded with a tab": "A: b\r\n\tc",
            "folded right behind the request line": None,
            "blank before the colon": "A : b",
            "tab before the colon": "A\t: b",
            "no colon": "A",
            "no name": ": b",
            "bare CR": "A: b\rC: d",
            "CR before the end": "A: b\r",
            "bare LF": "A: b\nC: d",
            "LF CR": "A: b\n\rC: d",
            "NUL": "A: b\x00c",
            "NUL in the name": "A\x00: b",
            "escape": "A: \x1b[2J",
            "DEL": "A: \x7f",
            "a second request line": "GET / HTTP/1.1",
        }
        for name, line in table.items():
            with self.subTest(name):
                data = request_head(line, "Z: z") if line else request_head(host=" Host: a")
                self.assert_refused(data)

    def test_exactly_one_well_formed_host(self):
        table = {
            "none": [None],
            "two alike": ["Host: a", "Host: a"],
            "two": ["Host: a", "hOST: b"],
            "user info": ["Host: user@a"],
            "path": ["Host: a/b"],
            "query": ["Host: a?b"],
            "fragment": ["Host: a#b"],
            "two ports": ["Host: a:1:2"],
            "port of letters": ["Host: a:b"],
            "port with a sign": ["Host: a:+1"],
            "long port": ["Host: a:123456"],
            "blank within": ["Host: a b"],
            "IPv6 without brackets": ["Host: ::1"],
            "half a bracket": ["Host: [::1"],
        }
        for name, (host, *more) in table.items():
            with self.subTest(name):
                self.assert_refused(request_head(*more, host=host))

    def test_two_hosts_are_refused_of_http_1_0_too(self):
        self.assert_refused(request_head("Host: b", start="GET / HTTP/1.0"))

    def test_request_line_limit(self):
        # "GET " and " HTTP/1.1" are 13 bytes of the line; its CRLF does not count.
        room = gw.MAX_REQUEST_LINE_BYTES - 13
        gw.parse_request_head(request_head(start="GET /%s HTTP/1.1" % ("a" * (room - 1))))
        for extra in (0, 1, 40 * 1024):
            with self.subTest(extra=extra):
                start = "GET /%s HTTP/1.1" % ("a" * (room + extra))
                self.assert_refused(request_head(start=start), 414)

    def test_a_long_line_is_told_as_such_whatever_is_in_it(self):
        self.assert_refused(request_head(start="x" * (gw.MAX_REQUEST_LINE_BYTES + 1)), 414)

    def test_header_count_limit(self):
        # Host is one of them.
        for count, status in ((99, None), (100, None), (101, 431), (5000, 431)):
            with self.subTest(count=count):
                data = request_head(*["A: b"] * (count - 1))
                if status is None:
                    self.assertEqual(len(gw.parse_request_head(data)[0].headers.pairs), count)
                else:
                    self.assert_refused(data, status)

    def test_a_long_header_line_is_the_head_limits_business(self):
        # The server bounds the whole head (section 17); here a line may fill it.
        value = "b" * (gw.MAX_HEAD_BYTES - 100)
        head, _ = gw.parse_request_head(request_head("A: " + value))
        self.assertTrue(head.headers.get("a") == value)  # assertEqual would diff it for minutes

    def test_every_byte_of_a_head_may_be_lost_without_another_exception(self):
        data = request_head("A: b", start="POST /v1/messages HTTP/1.1", host="Host: [::1]:8045")
        for at in range(len(data) - 4):
            for byte in (b"", b"\x00", b"\r", b"\n", b" ", b":", b"\xff"):
                with self.subTest(at=at, byte=byte):
                    try:
                        gw.parse_request_head(data[:at] + byte + data[at + 1:])
                    except gw.RequestError as error:
                        self.assertIn(error.status, (400, 414, 431))


class KnownHeadTest(HeadTestCase):
    """Heads that differ in their Content-Length alone are one kind; nothing else is."""

    def sized(self, length, *lines, name="Content-Length", start="POST /v1/messages HTTP/1.1"):
        return gw.parse_request_head(request_head(
            "A: 1", "%s: %s" % (name, length), "B: 2", *lines, start=start))

    def test_each_has_its_own_length(self):
        read = [self.sized(length) for length in ("5", "17", "007", "0", "9" * 18, "5")]
        self.assertEqual([length for _, length in read], [5, 17, 7, 0, 10 ** 18 - 1, 5])
        self.assertEqual(len({head.kind for head, _ in read}), 1)
        self.assertIsNotNone(read[0][0].kind)

    def test_what_they_share_tells_no_length(self):
        """Who asks the headers of one for the body's length is not told another one's."""
        for length in ("5", "17"):
            head, _ = self.sized(length)
            self.assertEqual(head.headers.pairs, [
                ("Host", "a"), ("A", "1"), ("Content-Length", ""), ("B", "2")])
            with self.assertRaises(gw.RequestError):
                gw.request_body_decoder(head)

    def test_the_one_before_on_a_connection_changes_nothing(self):
        start = "POST /v1/messages HTTP/1.1"
        lines = [("Content-Length: " + value,) for value in (
            "5", "17", "", "+5", "5 ", "5\xb2", "9" * 18, "9" * 19, "5, 5", "5_0")]
        lines += [("content-length: 5",), ("CONTENT-LENGTH: 5",), ("Content-Length:5",), (),
                  ("Content-Length: 5", "A: 1"), ("A: 1", "Content-Length: 5"),
                  ("Content-Length: 5", "A: 12"), ("A: 12", "Content-Length: 5"),
                  ("Content-Length: 5", "Content-Length: 5"), ("A: ength: 5",), ("X-Length: 5",),
                  ("Content-Length: 5", "Transfer-Encoding: chunked"), ("Expect: 100-continue",),
                  ("Transfer-Encoding: chunked", "Content-Length: 5"), ("Connection: close",),
                  ("Content-Length: 5", "P: " + "p" * gw.MAX_KEPT_HEAD_BYTES)]
        data = [request_head(*some, start=start) for some in lines]
        data += [request_head("Content-Length: 5", start=start, host=None),
                 request_head("Content-Length: 5", start=start[:-1] + "0", host=None)]

        def read(this, *last):
            try:
                return gw.parse_request_head(this, *last)
            except gw.RequestError as error:
                return error.message

        for this in data:
            alone = read(this)
            for before in data:
                last = read(before)
                if isinstance(last, str):
                    continue
                with self.subTest(this, before=before):
                    found = read(this, last[0])
                    if isinstance(alone, str) or alone[0].kind is not None:
                        self.assertEqual(found, alone)
                    else:
                        self.assertEqual((found[0].headers.pairs, found[0].kind, found[1]),
                                         (alone[0].headers.pairs, None, None))

    def test_what_is_no_plain_length_is_no_length(self):
        for value in ("", "+5", "5 ", " 5", "5_0", "0x5", "-1", "5,5", "5\xb2", "1" * 19, "5\t"):
            with self.subTest(value):
                head, length = self.sized(value)
                self.assertIsNone(length)
                self.assertEqual(head.headers.get("content-length"), value.strip(" \t"))

    def test_only_the_name_itself_tells_a_length(self):
        for name in ("X-Content-Length", "A-Content-Length", "Length", "ontent-Length",
                     "Content-Lengths", "Xcontent-length"):
            with self.subTest(name):
                head, length = self.sized("5", name=name)
                self.assertIsNone(length)
                self.assertEqual(head.headers.get(name.lower()), "5")

    def test_a_length_is_found_before_another_one_too(self):
        for after in ("X-Length: 7", "x-content-length: 7", "A: ength: 7"):
            for length in ("5", "17"):
                with self.subTest(after, length=length):
                    head, told = self.sized(length, after)
                    decoder = gw.LengthBody(told) if told is not None else (
                        gw.request_body_decoder(head))
                    self.assertEqual(decoder.remaining, int(length))

    def test_any_other_difference_makes_another_kind(self):
        read = [
            self.sized("5"), self.sized("5", name="content-length"), self.sized("5", "B: 2"),
            self.sized("5", start="PUT /v1/messages HTTP/1.1"), self.sized("5", "c: 3"),
            self.sized("5", start="POST /v1/message HTTP/1.1"), self.sized("5", "C: 3"),
            self.sized("5", start="POST /v1/messages HTTP/1.0"), self.sized("5 "),
            gw.parse_request_head(request_head("A: 1", "B: 2", "Content-Length: 5",
                                               start="POST /v1/messages HTTP/1.1")),
            gw.parse_request_head(request_head("A: 1", "B: 2", start="POST /v1/messages HTTP/1.1")),
        ]
        self.assertEqual(len({head.kind for head, _ in read}), len(read))

    def test_a_second_length_is_refused_however_often_the_first_was_seen(self):
        for second in ("Content-Length: 5", "content-length:5", "CONTENT-LENGTH: 5",
                       "Transfer-Encoding: chunked"):
            for length in ("5", "6"):
                with self.subTest(second, length=length):
                    for head, told in (self.sized(length, second), self.sized(length, second)):
                        self.assertIsNone(told)
                        with self.assertRaises(gw.RequestError):
                            gw.request_body_decoder(head)
                    self.assertEqual(self.sized(length)[1], int(length))

    def test_the_first_of_two_lengths_is_the_first_as_sent(self):
        head, _ = gw.parse_request_head(request_head("CONTENT-LENGTH: 1", "Content-Length: 2"))
        self.assertEqual((head.headers.get("content-length"), head.headers.all("content-length")),
                         ("1", ["1", "2"]))

    def test_malformed_heads_stay_malformed(self):
        for _ in range(2):
            self.assert_refused(request_head("Content-Length: 5", "A : 1"))
            self.assert_refused(request_head("Content-Length: 5", " folded"))
            self.assert_refused(request_head("Content-Length: 5", "A: 1\nB: 2"))
            self.assert_refused(request_head("Content-Length: 5", host=None))

    def test_long_heads_leave_nothing(self):
        gw.known_head.cache_clear()
        head, length = self.sized("5", "P: " + "p" * gw.MAX_KEPT_HEAD_BYTES)
        self.assertEqual((head.kind, length), (None, None))
        self.assertEqual(gw.request_body_decoder(head).remaining, 5)
        self.assertEqual(gw.known_head.cache_info().currsize, 0)


class ParseResponseHeadTest(unittest.TestCase):

    def assert_malformed(self, data):
        with self.assertRaises(gw.UpstreamMalformed):
            gw.parse_response_head(data)

    def test_gives_version_status_and_headers(self):
        head = gw.parse_response_head(
            response_head("A:  b ", "a: c", start="HTTP/1.0 529 Over loaded"))
        self.assertEqual((head.version, head.status), (0, 529))
        self.assertEqual(head.headers.pairs, [("A", "b"), ("a", "c")])

    def test_line_ends_are_tolerated_as_clients_do(self):
        for end in ("\r\n", "\n", "\r\r\n"):
            with self.subTest(end):
                head = gw.parse_response_head(response_head("A: b", "C: d", end=end))
                self.assertEqual(head.headers.pairs, [("A", "b"), ("C", "d")])

    def test_status_lines_that_are_tolerated(self):
        for start in ("HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 \xe9t\xe9",
                      "HTTP/1.0 200 OK", "HTTP/1.1 599 a b:c", "HTTP/1.1 200 O\tK"):
            with self.subTest(start):
                self.assertIn(gw.parse_response_head(response_head(start=start)).status, (200, 599))

    def test_status_lines_that_are_not(self):
        for start in ("", "HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 099",
                      "HTTP/1.1 600", "HTTP/1.1 999 X", "HTTP/1.1 +20", "HTTP/1.1 2_0",
                      "HTTP/1.1 -20", "HTTP/1.1 20\xb2",
                      "HTTP/1.1  200 OK", "HTTP/2 200", "HTTP/2.0 200 OK", "http/1.1 200 OK",
                      "HTTP/1.1 200OK", "HTTP/1.1 200 a\x00b", "HTTP/1.1 200 a\x1bb",
                      "ICY 200 OK", "SSH-2.0-OpenSSH_9", "<html>", " HTTP/1.1 200 OK"):
            with self.subTest(start):
                self.assert_malformed(response_head(start=start))

    def test_header_lines_that_could_hide_others_are_not(self):
        for line in ("A", ": b", " folded", "A: b\x00", "A: b\rC: d", "A: \x1b[2J", "A b: c"):
            with self.subTest(line):
                self.assert_malformed(response_head("Good: line", line, "Content-Length: 1"))

    def test_header_count_limit(self):
        limit = gw.MAX_RESPONSE_HEADERS_COUNT
        for count in (101, limit - 1, limit):
            with self.subTest(count=count):
                head = gw.parse_response_head(response_head(*["A: b"] * count))
                self.assertEqual(len(head.headers.pairs), count)
        for count in (limit + 1, limit * 20):
            with self.subTest(count=count):
                self.assert_malformed(response_head(*["A: b"] * count))


class EncodeHeadTest(unittest.TestCase):

    def test_is_read_back_as_it_was(self):
        pairs = [("Host", "a"), ("A", "1"), ("a", "2"), ("B", ""), ("C", "x\ty \xe9")]
        head, _ = gw.parse_request_head(gw.encode_head("GET /x HTTP/1.1", pairs))
        self.assertEqual((head.target, head.headers.pairs), ("/x", pairs))

    def test_without_headers_it_ends_all_the_same(self):
        self.assertEqual(gw.encode_head("HTTP/1.1 200 OK", []), b"HTTP/1.1 200 OK\r\n\r\n")

    def test_what_could_break_out_of_its_line_is_left_out(self):
        bad = [("A", "b\r\nC: d"), ("A", "b\nc"), ("A", "b\rc"), ("A", "b\x00"), ("A", "\x1b[2J"),
               ("A\r\nB", "c"), ("A:", "b"), ("A ", "b"), ("", "b"), ("Ä", "b"), ("A\n", "b")]
        for pair in bad:
            with self.subTest(pair=pair):
                self.assertEqual(gw.encode_head("S", [("X", "1"), pair, ("Y", "2")]),
                                 b"S\r\nX: 1\r\nY: 2\r\n\r\n")

    def test_what_latin_1_lacks_never_turns_into_a_control(self):
        # Cutting off the high byte would make LF of U+010A, as Node once did (CVE-2018-12116).
        data = gw.encode_head("S", [("A", "\u010a\u010d\u0100鍵")])
        self.assertEqual(data, b"S\r\nA: ????\r\n\r\n")


class EncodeChunkTest(unittest.TestCase):

    def test_sizes_are_in_hex(self):
        self.assertEqual(gw.encode_chunk(b"a"), b"1\r\na\r\n")
        self.assertEqual(gw.encode_chunk(b"a" * 26)[:4], b"1a\r\n")

    def test_is_read_back_as_it_was(self):
        data = gw.encode_chunk(b"a\r\n0\r\n\r\n") + gw.encode_chunk(b"\x00" * 300) + gw.LAST_CHUNK
        decoder = gw.ChunkedBody()
        self.assertEqual(decoder.feed(data), b"a\r\n0\r\n\r\n" + b"\x00" * 300)
        self.assertTrue(decoder.done)

    @unittest.skipUnless(__debug__, "assertions are off")
    def test_an_empty_one_would_end_the_body(self):
        with self.assertRaises(AssertionError):
            gw.encode_chunk(b"")


class NoBodyTest(unittest.TestCase):

    def test_everything_belongs_to_the_next_message(self):
        for pieces in every_split(b"GET / HTTP"):
            decoder = gw.NoBody()
            self.assertEqual((fed(decoder, pieces), decoder.excess), (b"", b"GET / HTTP"))
            self.assertTrue(decoder.done)

    def test_ends_well_and_keeps_nothing_for_the_next_one(self):
        gw.NoBody().feed(b"x")
        decoder = gw.NoBody()
        decoder.feed_eof()
        self.assertEqual(decoder.excess, b"")


class LengthBodyTest(unittest.TestCase):

    def test_counts_in_every_split_with_and_without_trailing_bytes(self):
        for excess in (b"", b"H", b"HTTP/1.1 200"):
            for pieces in every_split(b"hello" + excess):
                with self.subTest(excess=excess, pieces=pieces):
                    decoder = gw.LengthBody(5)
                    self.assertEqual(fed(decoder, pieces), b"hello")
                    self.assertEqual((decoder.done, decoder.excess), (True, excess))
                    decoder.feed_eof()

    def test_is_done_with_its_last_byte_and_not_before(self):
        decoder = gw.LengthBody(2)
        states = [decoder.done]
        for piece in (b"a", b"", b"b"):
            decoder.feed(piece)
            states.append(decoder.done)
        self.assertEqual(states, [False, False, False, True])

    def test_no_length_is_done_at_once(self):
        decoder = gw.LengthBody(0)
        self.assertTrue(decoder.done)
        self.assertEqual((decoder.feed(b"x"), decoder.excess), (b"", b"x"))

    def test_an_early_end_is_an_error(self):
        for length, data in ((1, b""), (5, b"hell"), (10 ** 18, b"x")):
            with self.subTest(length=length):
                decoder = gw.LengthBody(length)
                decoder.feed(data)
                with self.assertRaises(EOFError):
                    decoder.feed_eof()


class UntilCloseBodyTest(unittest.TestCase):

    def test_all_bytes_are_its_own_until_the_end(self):
        for pieces in every_split(b"hello\r\n\r\n"):
            decoder = gw.UntilCloseBody()
            self.assertEqual((fed(decoder, pieces), decoder.excess), (b"hello\r\n\r\n", b""))
            self.assertFalse(decoder.done)
            decoder.feed_eof()
            self.assertTrue(decoder.done)


class ChunkedBodyTest(unittest.TestCase):

    def assert_malformed(self, data):
        """Refused however it comes."""
        for pieces in every_split(data):
            with self.assertRaises(ValueError, msg="in pieces %r" % pieces[:3]):
                fed(gw.ChunkedBody(), pieces)

    def test_valid_bodies_in_every_split_with_and_without_trailing_bytes(self):
        table = {
            "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            "none": (b"0\r\n\r\n", b""),
            "many": (b"1\r\nh\r\n3\r\nell\r\n1\r\no\r\n0\r\n\r\n", b"hello"),
            "either case of hex": (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
                                   b"0123456789" * 2),
            "leading zeros": (b"005\r\nhello\r\n000\r\n\r\n", b"hello"),
            "extension": (b"5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n", b"hello"),
            "blanks before an extension": (b"5 \t;a\r\nhello\r\n0\r\n\r\n", b"hello"),
            "trailers": (b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"hello"),
            "line ends as payload": (b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", b"\r\n0\r\n\r"),
            "a last chunk as payload": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
            "chunks as payload": (b"a\r\n1\r\nh\r\n1\r\no\r\n0\r\n\r\n", b"1\r\nh\r\n1\r\no"),
            "a line end in one of many": (b"2\r\nhe\r\n2\r\n\r\n\r\n1\r\no\r\n0\r\n\r\n", b"he\r\no"),
            "sizes of two ways": (b"1\r\nh\r\n02\r\nel\r\n2;a\r\nlo\r\n0\r\n\r\n", b"hello"),
        }
        for name, (data, payload) in table.items():
            for excess in (b"", b"\r", b"GET / HTTP/1.1\r\n"):
                for pieces in every_split(data + excess):
                    with self.subTest(name, excess=excess, first=pieces[0]):
                        decoder = gw.ChunkedBody()
                        self.assertEqual(fed(decoder, pieces), payload)
                        self.assertEqual((decoder.done, decoder.excess), (True, excess))

    def test_chunks_that_look_like_lines_take_no_look_at_all_of_them_each(self):
        decoder, looks = gw.ChunkedBody(), []
        whole_chunks = decoder._whole_chunks
        decoder._whole_chunks = lambda *given: looks.append(1) or whole_chunks(*given)
        self.assertEqual(decoder.feed(b"2\r\n\r\n\r\n" * 1000 + b"2\r\na"), b"\r\n" * 1000 + b"a")
        self.assertEqual(decoder.feed(b"b\r\n" + b"2\r\n\r\n\r\n" * 1000), b"b" + b"\r\n" * 1000)
        self.assertLess(len(looks), 6)

    def test_payload_comes_out_as_soon_as_it_is_there(self):
        decoder = gw.ChunkedBody()
        fed_and_given = [(b"5\r\nhe", b"he"), (b"l", b"l"), (b"lo\r", b"lo"), (b"\n0\r\n\r\n", b"")]
        for data, payload in fed_and_given:
            self.assertEqual(decoder.feed(data), payload)

    def test_malformed_sizes(self):
        sizes = [b"0x5", b"0X5", b"+5", b"-5", b"5_0", b"_5", b"", b" 5", b"\t5", b"5h", b"g",
                 b"5,", b"5.0", b"5 5", b"\xb2", b"\xd9\xa5", b"5\x00", b"5;a\x00", b"5;a\x1b",
                 b"5;a\rb", b"5\r", b"'5'", b"1" * (gw.MAX_CHUNK_SIZE_DIGITS + 1),
                 b"0" * gw.MAX_CHUNK_SIZE_DIGITS + b"5", b"f" * 16, b"8000000000000000"]
        for size in sizes:
            with self.subTest(size=size):
                self.assert_malformed(size + b"\r\nhello\r\n0\r\n\r\n")

    def test_malformed_line_ends(self):
        table = {
            "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
            "bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
            "bare LF behind an extension": b"5;a\nhello\r\n0\r\n\r\n",
            "none behind the data": b"5\r\nhello0\r\n\r\n",
            "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
            "bare CR behind the data": b"5\r\nhello\r0\r\n\r\n",
            "two bytes more than the size": b"5\r\nhelloXX0\r\n\r\n",
            "chunk longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
            "chunk shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
            "bare LF behind the last size": b"0\n\r\n",
            "bare LF behind a trailer": b"0\r\nA: b\n\r\n",
            "bare LF as the last line": b"0\r\n\n",
            "empty line before a size": b"\r\n5\r\nhello\r\n0\r\n\r\n",
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assert_malformed(data)

    def test_a_size_of_all_allowed_digits_reserves_nothing(self):
        decoder = gw.ChunkedBody()
        self.assertEqual(decoder.feed(b"f" * gw.MAX_CHUNK_SIZE_DIGITS + b"\r\nabc"), b"abc")
        self.assertFalse(decoder.done)

    def test_size_line_limit(self):
        # The bound counts the line with its CR: "5;" and CR are 3 of the bytes.
        room = gw.MAX_CHUNK_LINE_BYTES - 3
        for extra, good in ((-1, True), (0, True), (1, False), (10000, False)):
            data = b"5;" + b"a" * (room + extra) + b"\r\nhello\r\n0\r\n\r\n"
            for pieces in ([data], [data[:250], data[250:]], in_bytes(data)):
                with self.subTest(extra=extra, pieces=len(pieces)):
                    if good:
                        self.assertEqual(fed(gw.ChunkedBody(), pieces), b"hello")
                    else:
                        self.assertRaises(ValueError, fed, gw.ChunkedBody(), pieces)

    def test_a_line_without_an_end_is_refused_before_it_grows(self):
        decoder = gw.ChunkedBody()
        with self.assertRaises(ValueError):
            for _ in range(gw.MAX_CHUNK_LINE_BYTES + 1):
                decoder.feed(b"1")

    def test_trailer_limit_is_that_of_all_of_them(self):
        # Each line is 100 bytes with its CRLF; the blank line is 2 more.
        line = b"A: " + b"b" * 95 + b"\r\n"
        most = (gw.MAX_TRAILER_BYTES - 2) // len(line)
        for count, good in ((most - 1, True), (most, True), (most + 1, False), (most * 50, False)):
            data = b"0\r\n" + line * count + b"\r\n"
            for pieces in ([data], [data[:5000], data[5000:]], in_bytes(data)):
                with self.subTest(count=count, pieces=len(pieces)):
                    if good:
                        self.assertEqual(fed(gw.ChunkedBody(), pieces), b"")
                    else:
                        self.assertRaises(ValueError, fed, gw.ChunkedBody(), pieces)

    def test_one_long_trailer_is_refused(self):
        for data in (b"0\r\nA: " + b"b" * gw.MAX_TRAILER_BYTES,
                     b"0\r\nA: " + b"b" * gw.MAX_TRAILER_BYTES + b"\r\n\r\n"):
            with self.subTest(length=len(data)), self.assertRaises(ValueError):
                gw.ChunkedBody().feed(data)

    def test_an_end_before_the_last_line_is_an_error(self):
        data = b"5\r\nhello\r\n0\r\nA: b\r\n\r\n"
        for at in range(len(data)):
            with self.subTest(at=at):
                decoder = gw.ChunkedBody()
                decoder.feed(data[:at])
                self.assertRaises(EOFError, decoder.feed_eof)
        decoder.feed(data[at:])
        decoder.feed_eof()

    def test_bytes_that_come_after_the_end_are_gathered(self):
        decoder = gw.ChunkedBody()
        self.assertEqual(fed(decoder, [b"0\r\n\r\nGE", b"T ", b"/"]), b"")
        self.assertEqual(decoder.excess, b"GET /")


class ContentLengthTest(unittest.TestCase):

    def test_one_plain_number_or_none(self):
        self.assertIsNone(gw.content_length(gw.Headers()))
        for value in ("0", "5", "007", "9" * 18):
            with self.subTest(value):
                headers = gw.Headers([("content-LENGTH", value)])
                self.assertEqual(gw.content_length(headers), int(value))

    def test_anything_else_is_refused(self):
        values = ["", "+5", "-1", "-0", "5_0", "0x5", "5.0", "1e3", "5,5", "5, 5", " 5", "5 ",
                  "5 5", "a", "\xb2", "٥", "５", "9" * 19, "9" * 5000]
        for value in values:
            with self.subTest(value[:20]), self.assertRaises(ValueError):
                gw.content_length(gw.Headers([("Content-Length", value)]))

    def test_duplicates_are_refused_be_they_equal(self):
        for other in ("5", "6", ""):
            with self.subTest(other), self.assertRaises(ValueError):
                gw.content_length(gw.Headers([("Content-Length", "5"), ("content-length", other)]))


class RequestFramingTest(unittest.TestCase):

    def decoder(self, *pairs, version=1):
        return gw.request_body_decoder(gw.Head("POST", "/", version, gw.Headers(pairs)))

    def test_plan(self):
        table = [
            ("nothing announced", [], 1, gw.NoBody),
            ("length", [("Content-Length", "5")], 1, gw.LengthBody),
            ("length with HTTP/1.0", [("Content-Length", "5")], 0, gw.LengthBody),
            ("length 0", [("Content-Length", "0")], 1, gw.LengthBody),
            ("chunked", [("Transfer-Encoding", "chunked")], 1, gw.ChunkedBody),
            ("chunked in any case", [("transfer-encoding", "Chunked")], 1, gw.ChunkedBody),
        ]
        for name, pairs, version, decoder_class in table:
            with self.subTest(name):
                self.assertIs(type(self.decoder(*pairs, version=version)), decoder_class)

    def test_length_is_the_announced_one(self):
        self.assertEqual(self.decoder(("Content-Length", "12")).remaining, 12)

    def test_what_two_parsers_could_read_in_two_ways_is_refused(self):
        chunked, length = ("Transfer-Encoding", "chunked"), ("Content-Length", "5")
        table = {
            "both": [length, chunked],
            "both, the other way round": [chunked, length],
            "both, with a length of 0": [chunked, ("Content-Length", "0")],
            "both, with a malformed length": [chunked, ("Content-Length", "x")],
            "two equal lengths": [length, length],
            "two lengths": [length, ("Content-Length", "6")],
            "a list of lengths": [("Content-Length", "5, 5")],
            "sign": [("Content-Length", "+5")],
            "underscore": [("Content-Length", "5_0")],
            "negative": [("Content-Length", "-1")],
            "empty length": [("Content-Length", "")],
            "gzip before": [("Transfer-Encoding", "gzip, chunked")],
            "gzip before, on its own line": [("Transfer-Encoding", "gzip"), chunked],
            "chunked twice": [chunked, chunked],
            "chunked twice in one": [("Transfer-Encoding", "chunked, chunked")],
            "an empty member": [("Transfer-Encoding", ", chunked")],
            "identity": [("Transfer-Encoding", "identity")],
            "empty coding": [("Transfer-Encoding", "")],
            "xchunked": [("Transfer-Encoding", "xchunked")],
            "chunkedx": [("Transfer-Encoding", "chunkedx")],
            "a parameter": [("Transfer-Encoding", "chunked;q=1")],
            "quotes": [("Transfer-Encoding", "\"chunked\"")],
            "an odd blank": [("Transfer-Encoding", "\xa0chunked")],
        }
        for name, pairs in table.items():
            with self.subTest(name), self.assertRaises(gw.RequestError) as caught:
                self.decoder(*pairs)
            self.assertEqual((caught.exception.status, caught.exception.close), (400, True), name)

    def test_http_1_0_knows_no_chunks(self):
        with self.assertRaises(gw.RequestError) as caught:
            self.decoder(("Transfer-Encoding", "chunked"), version=0)
        self.assertEqual((caught.exception.status, caught.exception.close), (400, True))


class ResponseFramingTest(unittest.TestCase):

    def decoder(self, *pairs, method="POST", status=200, version=1):
        head = gw.StatusHead(version, status, gw.Headers(pairs))
        framing = gw.framing_of(method, head)
        return gw.sized_body(head.headers) if framing.body is None else framing.body()

    def test_plan(self):
        length, chunked = ("Content-Length", "5"), ("Transfer-Encoding", "chunked")
        table = [
            ("nothing announced", {}, [], gw.UntilCloseBody),
            ("length", {}, [length], gw.LengthBody),
            ("chunked", {}, [chunked], gw.ChunkedBody),
            ("chunked in any case", {}, [("transfer-encoding", "CHUNKED")], gw.ChunkedBody),
            ("chunked overrides a length", {}, [length, chunked], gw.ChunkedBody),
            ("HEAD", {"method": "HEAD"}, [length], gw.NoBody),
            ("HEAD, chunked", {"method": "HEAD"}, [chunked], gw.NoBody),
            ("204", {"status": 204}, [], gw.NoBody),
            ("304", {"status": 304}, [length], gw.NoBody),
            ("HTTP/1.0", {"version": 0}, [], gw.UntilCloseBody),
        ]
        for name, settings, pairs, decoder_class in table:
            with self.subTest(name):
                self.assertIs(type(self.decoder(*pairs, **settings)), decoder_class)

    def test_what_cannot_be_read_for_sure_is_malformed(self):
        table = {
            "gzip before": [("Transfer-Encoding", "gzip, chunked")],
            "gzip": [("Transfer-Encoding", "gzip")],
            "xchunked": [("Transfer-Encoding", "xchunked")],
            "chunked twice": [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
            "sign": [("Content-Length", "+5")],
            "negative": [("Content-Length", "-1")],
            "two lengths": [("Content-Length", "5"), ("Content-Length", "6")],
            "empty length": [("Content-Length", "")],
        }
        for name, pairs in table.items():
            with self.subTest(name), self.assertRaises(gw.UpstreamMalformed):
                self.decoder(*pairs)


    def test_what_is_remembered_has_a_bound(self):
        def framing(coding):
            headers = gw.Headers([("Content-Encoding", coding)])
            return gw.framing_of("POST", gw.StatusHead(1, 200, headers))

        for number in range(gw.NAME_LISTS_KEPT + 5):
            framing("x-%d" % number)
        self.assertLessEqual(len(gw.KNOWN_FRAMINGS), gw.NAME_LISTS_KEPT)
        self.assertIs(framing("x-1"), framing("x-1"))
        known = len(gw.KNOWN_FRAMINGS)
        self.assertEqual(len(framing("x" * gw.MAX_KEPT_HEAD_BYTES).coding), gw.MAX_KEPT_HEAD_BYTES)
        self.assertEqual(len(gw.KNOWN_FRAMINGS), known)


class KnownTest(unittest.TestCase):

    def test_is_asked_once_and_emptied_where_it_would_hold_more(self):
        asked = []
        known = gw.Known(lambda key: asked.append(key) or -key, 3)
        self.assertEqual([known[key] for key in (1, 2, 1, 3, 1)], [-1, -2, -1, -3, -1])
        self.assertEqual((asked, len(known)), ([1, 2, 3], 3))
        self.assertEqual((known[4], len(known)), (-4, 1))


class WantsCloseTest(unittest.TestCase):

    def test_by_version_and_connection(self):
        table = [
            (1, [], False),
            (1, ["close"], True),
            (1, ["Close"], True),
            (1, ["keep-alive, close"], True),
            (1, ["x", "close"], True),
            (1, ["keep-alive"], False),
            (1, ["closed"], False),
            (0, [], True),
            (0, ["keep-alive"], False),
            (0, ["Keep-Alive"], False),
            (0, ["close"], True),
        ]
        for version, values, closes in table:
            with self.subTest(version=version, values=values):
                headers = gw.Headers([("Connection", value) for value in values])
                self.assertIs(gw.wants_close(version, headers), closes)


class UpstreamHeadersTest(unittest.TestCase):

    def up(self, *pairs, credentials=(ACCOUNT,), length=7, betas=gw.BetaRule(), extra=(),
           version=True):
        """The headers sent for a client's ones; an anthropic-version is put in front of those."""
        first = [("anthropic-version", "2023-06-01")] if version else []
        result = gw.upstream_headers(gw.Headers(first + list(pairs)), "up.example", length,
                                     list(credentials), betas, extra)
        self.assertEqual(result[:len(first)], first)
        return result[len(first):]

    def values(self, result, name):
        return [value for key, value in result if key.lower() == name]

    def test_order_and_spelling_are_the_clients(self):
        result = self.up(
            ("HOST", "127.0.0.1:8045"), ("x-App", "cli"), ("X-Api-Key", CLIENT_KEY),
            ("User-Agent", "claude-cli/2"), ("content-length", "99"), ("X-Stainless-Lang", "js"),
            ("Accept-encoding", "gzip, br"), ("anthropic-weird", "1"), ("Content-Type", "a/b"))
        self.assertEqual(result, [
            ("HOST", "up.example"), ("x-App", "cli"), ACCOUNT, ("User-Agent", "claude-cli/2"),
            ("content-length", "7"), ("X-Stainless-Lang", "js"), ("Accept-encoding", "identity"),
            ("anthropic-weird", "1"), ("Content-Type", "a/b")])

    def test_what_the_client_left_out_comes_last(self):
        self.assertEqual(self.up(("A", "1")), [
            ("A", "1"), ACCOUNT, ("Host", "up.example"), ("Accept-Encoding", "identity"),
            ("Content-Length", "7")])

    def test_duplicates_of_what_passes_are_kept_and_of_what_is_replaced_are_not(self):
        result = self.up(("A", "1"), ("a", "2"), ("A", "1"), ("Accept-Encoding", "gzip"),
                         ("accept-encoding", "br"), ("Host", "x"))
        self.assertEqual(self.values(result, "a"), ["1", "2", "1"])
        self.assertEqual(self.values(result, "accept-encoding"), ["identity"])
        self.assertEqual(self.values(result, "host"), ["up.example"])

    def test_a_request_without_a_body_has_no_length(self):
        for length, sent in ((None, []), (0, ["0"]), (12, ["12"])):
            with self.subTest(length=length):
                result = self.up(("Content-Length", "99"), length=length)
                self.assertEqual(self.values(result, "content-length"), sent)

    def test_what_is_between_the_client_and_us_is_dropped(self):
        names = ["Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
                 "Proxy-Connection", "Proxy-Anything", "TE", "Trailer", "Transfer-Encoding",
                 "Upgrade", "Cookie", "Expect", "Forwarded", "X-Forwarded-For",
                 "x-forwarded-host", "X-FORWARDED-ANYTHING", "Origin", "Referer"]
        for name in names:
            with self.subTest(name):
                result = self.up((name, "v"), ("Kept", "k"))
                self.assertEqual(result[0], ("Kept", "k"))
                self.assertEqual(self.values(result, name.lower()), [])

    def test_what_only_looks_like_it_is_kept(self):
        pairs = [("X-Forwarded", "1"), ("Cookies", "1"), ("Refer", "1"), ("X-Proxy", "1"),
                 ("x-claude-code-session-id", "s"), ("X-Request-ID", "r")]
        self.assertEqual(self.up(*pairs)[:len(pairs)], pairs)

    def test_what_connection_names_is_dropped(self):
        result = self.up(("Connection", "close, X-Foo"), ("connection", "x-bar"),
                         ("x-foo", "1"), ("X-BAR", "2"), ("X-Baz", "3"))
        self.assertEqual(result[0], ("X-Baz", "3"))
        self.assertEqual(self.values(result, "x-foo") + self.values(result, "x-bar"), [])

    def test_connection_cannot_take_away_what_is_ours(self):
        result = self.up(("Connection", "host, x-api-key, content-length, accept-encoding"),
                         ("x-api-key", CLIENT_KEY), ("Host", "a"), ("Content-Length", "9"))
        for name in ("host", "x-api-key", "content-length", "accept-encoding"):
            with self.subTest(name):
                self.assertEqual(len(self.values(result, name)), 1)

    def test_accounts_credential_replaces_every_one_of_the_clients(self):
        inbound = [("Authorization", "Bearer " + CLIENT_KEY), ("x-api-key", "own"),
                   ("X-Goog-Api-Key", "own"), ("authorization", "Basic b3du"), ("X-API-KEY", "")]
        for credential in (ACCOUNT, ("Authorization", "Bearer account-token")):
            with self.subTest(credential=credential):
                result = self.up(("A", "1"), *inbound, ("B", "2"), credentials=[credential])
                self.assertEqual(result[:3], [("A", "1"), credential, ("B", "2")])
                sent = [pair for pair in result if pair[0].lower() in gw.CREDENTIAL_HEADERS]
                self.assertEqual(sent, [credential])

    def test_transparent_sends_the_clients_own_ones_where_they_stood(self):
        own = ("X-Api-Key", "sk-own")
        result = self.up(("Authorization", "Bearer " + CLIENT_KEY), ("A", "1"), own, ("B", "2"),
                         credentials=[own])
        self.assertEqual(result[:3], [("A", "1"), own, ("B", "2")])
        self.assertNotIn(CLIENT_KEY, repr(result))

    def test_transparent_sends_several_own_ones_unchanged(self):
        own = [("authorization", "bearer  oat"), ("X-Api-Key", "sk-own"), ("X-Api-Key", "sk-own")]
        result = self.up(own[0], ("x-api-key", CLIENT_KEY), own[1], own[2], credentials=own)
        self.assertEqual(result[:3], own)
        self.assertNotIn(CLIENT_KEY, repr(result))

    def test_client_that_offers_the_accounts_own_key_sends_it_once(self):
        result = self.up(("Authorization", "Bearer x"), ACCOUNT, ("B", "2"))
        self.assertEqual(result[:2], [ACCOUNT, ("B", "2")])

    def test_version_is_added_only_where_it_is_missing(self):
        ours = ("anthropic-version", gw.ANTHROPIC_VERSION)
        self.assertIn(ours, self.up(version=False))
        for value in ("2026-10-21", "2023-06-01", ""):
            with self.subTest(value):
                result = self.up(("Anthropic-Version", value), version=False)
                self.assertEqual(self.values(result, "anthropic-version"), [value])

    def test_betas_are_merged_in_the_place_of_the_first(self):
        result = self.up(("Anthropic-Beta", "b, a"), ("X", "1"), ("anthropic-beta", "c,b"),
                         betas=gw.BetaRule(add=("z",)))
        self.assertEqual(result[:2], [("Anthropic-Beta", "z,b,a,c"), ("X", "1")])
        self.assertEqual(len(self.values(result, "anthropic-beta")), 1)

    def test_betas_that_need_no_change_keep_their_bytes(self):
        self.assertEqual(self.up(("anthropic-beta", "b,  a ,c"))[0], ("anthropic-beta", "b,  a ,c"))

    def test_betas_are_added_where_the_client_has_none(self):
        result = self.up(betas=gw.BetaRule(add=("z",)))
        self.assertEqual(self.values(result, "anthropic-beta"), ["z"])

    def test_betas_that_are_all_dropped_leave_no_empty_header(self):
        result = self.up(("anthropic-beta", "a"), betas=gw.BetaRule(drop=("*",)))
        self.assertEqual(self.values(result, "anthropic-beta"), [])

    def test_extra_headers_win_over_everything(self):
        extra = [("User-Agent", "ours"), ("anthropic-version", "1"), ("X-Api-Key", "fixed"),
                 ("X-New", "n")]
        result = self.up(("user-agent", "client"), ("USER-AGENT", "again"),
                         ("x-api-key", CLIENT_KEY), ("A", "1"), extra=extra, version=False)
        self.assertEqual(result[-4:], extra)
        for name, value in extra:
            with self.subTest(name):
                self.assertEqual(self.values(result, name.lower()), [value])

    def test_an_inputs_lists_are_left_as_they_were(self):
        credentials, headers = [ACCOUNT], gw.Headers([("x-api-key", "k")])
        gw.upstream_headers(headers, "h", 1, credentials, gw.BetaRule())
        self.assertEqual((credentials, headers.pairs), ([ACCOUNT], [("x-api-key", "k")]))


class DownstreamHeadersTest(unittest.TestCase):

    def down(self, *pairs, decoded=False):
        return gw.downstream_headers(gw.Headers(pairs), decoded)

    def test_end_to_end_headers_pass_in_order_spelling_and_number(self):
        pairs = [("Content-Type", "text/event-stream"), ("request-id", "req_1"),
                 ("Retry-After", "3"), ("anthropic-ratelimit-requests-reset", "x"),
                 ("x-should-retry", "true"), ("Vary", "a"), ("vary", "b"), ("Vary", "a"),
                 ("Date", "now"), ("Server", "s"), ("Via", "1.1 v"), ("Empty", "")]
        self.assertEqual(self.down(*pairs), pairs)

    def test_framing_hop_by_hop_and_cookies_are_dropped(self):
        names = ["Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "TE",
                 "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Set-Cookie",
                 "SET-COOKIE", "Set-Cookie2"]
        for name in names:
            with self.subTest(name):
                self.assertEqual(self.down((name, "v"), ("A", "1"), (name, "w")), [("A", "1")])

    def test_what_connection_names_is_dropped(self):
        self.assertEqual(self.down(("X-Foo", "1"), ("connection", "X-FOO, close"), ("X-Bar", "2")),
                         [("X-Bar", "2")])

    def test_another_gateways_headers_do_not_pass_for_ours(self):
        names = ("X-Account-Email", "x-gateway-attempts", "X-Gateway-Provider", "X-Mapped-Model",
                 "X-Request-ID")
        self.assertEqual(self.down(*[(name, "theirs") for name in names]), [])

    def test_an_upstreams_cors_is_not_ours(self):
        """Contract section 10: a listed origin gets exact CORS and others none, never ``*``."""
        self.assertEqual([], self.down(
            ("Access-Control-Allow-Origin", "*"), ("access-control-allow-credentials", "true"),
            ("Access-Control-Expose-Headers", "*"), ("Access-Control-Allow-Headers", "*")))

    def test_content_encoding_goes_when_it_was_undone(self):
        pair = ("Content-Encoding", "gzip")
        self.assertEqual(self.down(pair, ("A", "1"), decoded=True), [("A", "1")])
        self.assertEqual(self.down(pair, ("A", "1")), [pair, ("A", "1")])


class KnownNamesTest(unittest.TestCase):
    """What is remembered of answers' names has a bound in bytes, whoever sends them."""

    def headers(self, prefix=""):
        return gw.Headers([("%sx%s" % (prefix, "y" * gw.MAX_KEPT_HEAD_BYTES), "1")])

    def test_long_names_of_upstreams(self):
        headers, before = self.headers(), (
            set(gw.going_downstream._known), set(gw.telling_limits._known))
        self.assertEqual(gw.downstream_headers(headers, False), headers.pairs)
        self.assertIsNone(gw.told_limits(self.headers("anthropic-ratelimit-"), 0.0))
        gw.downstream_headers(gw.Headers([("Connection", "z" * gw.MAX_KEPT_HEAD_BYTES)]), False)
        self.assertEqual((set(gw.going_downstream._known), set(gw.telling_limits._known)), before)
        for number in range(2 * gw.NAME_LISTS_KEPT):
            gw.downstream_headers(gw.Headers([("A%d" % number, "1")]), False)
            self.assertLessEqual(len(gw.going_downstream._known), gw.NAME_LISTS_KEPT)
        longest = "anthropic-ratelimit-" + "a" * 40 + "-remaining"
        told = gw.told_limits(gw.Headers([(longest, "1")]), 0.0)
        self.assertEqual(list(told.by_name()), ["a" * 40])

    def test_answers_with_the_same_names(self):
        """What is remembered of names says nothing of values, nor of other names."""
        for value in ("1", "0", "7"):
            headers = gw.Headers([("A", value), ("Set-Cookie", "x"), (
                "Anthropic-RateLimit-Requests-Remaining", value)])
            self.assertEqual(gw.downstream_headers(headers, False),
                             [("A", value), headers.pairs[2]])
            told = gw.told_limits(headers, 0.0)
            self.assertEqual(told.by_name(), {"requests": gw.RateLimit(remaining=float(value))})
            self.assertEqual(bool(told.used_up()), value == "0")
        self.assertIsNone(gw.told_limits(gw.Headers([("A", "1"), ("Set-Cookie", "x"), (
            "Anthropic-RateLimit-Requests", "0")]), 0.0))


class MergeBetasTest(unittest.TestCase):

    def test_adds_first_each_once_drops_by_glob(self):
        add_a, drop_a = gw.BetaRule(add=("a",)), gw.BetaRule(drop=("a",))
        table = [
            ("nothing at all", [], gw.BetaRule(), None),
            ("client's alone", ["a,b"], gw.BetaRule(), None),
            ("client's with blanks", [" a , b "], gw.BetaRule(), None),
            ("client's in two lines", ["a", "b"], gw.BetaRule(), "a,b"),
            ("twice in a line", ["a,b,a"], gw.BetaRule(), "a,b"),
            ("twice in two lines", ["a,b", "b,c"], gw.BetaRule(), "a,b,c"),
            ("added", ["b"], add_a, "a,b"),
            ("added to none", [], add_a, "a"),
            ("added that is there", ["a,b"], add_a, None),
            ("added that is there, later", ["b,a"], add_a, "a,b"),
            ("several added", ["c"], gw.BetaRule(add=("b", "a")), "b,a,c"),
            ("dropped", ["a,b"], drop_a, "b"),
            ("dropped to nothing", ["a"], drop_a, ""),
            ("dropped that is not there", ["b"], drop_a, None),
            ("dropped by a glob", ["oauth-1,x,oauth-2"], gw.BetaRule(drop=("oauth-*",)), "x"),
            ("drop is exact else", ["ab"], drop_a, None),
            ("drop has a case", ["A"], drop_a, None),
            ("empty members", ["a,,b,"], gw.BetaRule(), None),
        ]
        for name, lines, rule, merged in table:
            with self.subTest(name):
                headers = gw.Headers([("Anthropic-Beta", line) for line in lines])
                self.assertEqual(gw.merge_betas(headers, rule), merged)

    def test_merging_again_changes_nothing(self):
        rule = gw.BetaRule(add=("z", "a"), drop=("c*",))
        once = gw.merge_betas(gw.Headers([("anthropic-beta", "b, a,c1")]), rule)
        self.assertEqual(once, "z,a,b")
        self.assertIsNone(gw.merge_betas(gw.Headers([("anthropic-beta", once)]), rule))


class CredentialsTest(unittest.TestCase):

    def test_authorization_forms(self):
        table = {
            "Bearer k": "k",
            "bearer k": "k",
            "BEARER k": "k",
            "bEaReR   k": "k",
            "k": "k",
            "sk-ant-api03-x_y": "sk-ant-api03-x_y",
            "": "",
            "Bearer": "",
            "Bearer ": "",
            "Basic": "",
            "Basic az0x": "",
            "basic k": "",
            "Token k": "",
            "Digest username=\"k\"": "",
            "Bearer k l": "",
            "k l": "",
            "Bearer: k": "",
        }
        for value, credential in table.items():
            with self.subTest(value):
                self.assertEqual(gw.bearer_credential(value), credential)

    def test_all_three_headers_are_read_in_order_as_sent(self):
        pairs = [("X-Goog-Api-Key", "g"), ("A", "1"), ("AUTHORIZATION", "bearer b"),
                 ("x-api-key", "Bearer x"), ("authorization", "Basic c"), ("X-Api-Key", "")]
        self.assertEqual(gw.presented_credentials(gw.Headers(pairs)), [
            ("X-Goog-Api-Key", "g", "g"), ("AUTHORIZATION", "bearer b", "b"),
            ("x-api-key", "Bearer x", "Bearer x"), ("authorization", "Basic c", "")])

    def test_other_headers_hold_none(self):
        pairs = [("Proxy-Authorization", "Bearer k"), ("Cookie", "x-api-key=k"),
                 ("X-Api-Keys", "k")]
        self.assertEqual(gw.presented_credentials(gw.Headers(pairs)), [])


class KeyRingTest(unittest.TestCase):

    def ring(self, **keys):
        return gw.KeyRing([(name, gw.Secret(key)) for name, key in keys.items()])

    def test_finds_each_key_by_its_name(self):
        ring = self.ring(laptop="key-one", phone="key-two")
        self.assertEqual([ring.find("key-one"), ring.find("key-two")], ["laptop", "phone"])

    def test_finds_nothing_else(self):
        ring = self.ring(laptop="key-one")
        for credential in ("", "key-on", "key-onee", "KEY-ONE", " key-one", "laptop", "k\xe9y",
                           "ключ", "\ud800", "\x00", "key-one\x00", "k" * 100000):
            with self.subTest(credential[:20]):
                self.assertIsNone(ring.find(credential))

    def test_keys_beyond_ascii_can_be_compared(self):
        # hmac.compare_digest raises TypeError for such strings.
        self.assertEqual(self.ring(a="kéy").find("kéy"), "a")

    def test_an_empty_key_is_never_found(self):
        self.assertIsNone(self.ring(a="", b="k").find(""))

    def test_is_true_when_it_has_keys(self):
        self.assertEqual((bool(self.ring()), bool(self.ring(a="k"))), (False, True))
        self.assertIsNone(self.ring().find("k"))

    def test_does_not_hold_the_keys_themselves(self):
        self.assertNotIn("key-one", repr(vars(self.ring(laptop="key-one"))))


class HostTest(unittest.TestCase):

    def test_split(self):
        table = {
            "LocalHost": ("localhost", None),
            "a.example:8045": ("a.example", 8045),
            "[::1]:80": ("::1", 80),
            "[FE80::1]": ("fe80::1", None),
            "": ("", None),
            "a:b": ("a:b", None),
        }
        for value, expected in table.items():
            with self.subTest(value):
                self.assertEqual(gw.split_host(value), expected)

    def test_loopback_names(self):
        for host in ("127.0.0.1", "127.255.255.254", "localhost", "LOCALHOST", "localhost.", "::1",
                     "[::1]"):
            with self.subTest(host):
                self.assertTrue(gw.is_loopback(host))

    def test_other_names(self):
        for host in ("", "0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "127.0.0.1.evil.example",
                     "127.evil.example", "localhost.evil.example", "evil-localhost", "xlocalhost",
                     "1.127.0.0.1", "127.0.0", "127.0.0.1.1", "127.0.0.0x1", "[::2]", "127.0.0.1 "):
            with self.subTest(host):
                self.assertFalse(gw.is_loopback(host))


class BrowserRefusalTest(unittest.TestCase):

    PAGE = "https://app.example"

    LINK = dict(host="localhost", sec_fetch_mode="navigate", sec_fetch_dest="document")

    def refusal(self, auth_off=True, is_page=False, **headers):
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return gw.browser_refusal(
            gw.Headers(pairs), auth_off, (self.PAGE,), ("Gate.example",), is_page)

    def test_let_pass(self):
        table = [
            ("loopback address", dict(host="127.0.0.1:8045")),
            ("loopback name in capitals", dict(host="LOCALHOST:1")),
            ("IPv6 loopback", dict(host="[::1]:8045")),
            ("allowed host in any case", dict(host="gaTe.example:8045")),
            ("foreign host where keys are asked for", dict(host="evil.example", auth_off=False)),
            ("listed origin", dict(host="localhost", origin=self.PAGE)),
            ("listed origin, cross-site", dict(host="localhost", origin=self.PAGE,
                                               sec_fetch_site="cross-site")),
            ("Node's own fetch", dict(host="localhost", sec_fetch_mode="cors")),
            ("same origin", dict(host="localhost", sec_fetch_site="same-origin")),
            ("typed by the user", dict(host="localhost", sec_fetch_site="none")),
            ("our own page", dict(host="127.0.0.1:8045", origin="http://127.0.0.1:8045")),
            ("our own page by name", dict(host="LocalHost:8045", origin="http://localhost:8045",
                                          sec_fetch_site="same-origin")),
            ("our own page by IPv6", dict(host="[::1]:8045", origin="http://[::1]:8045")),
            ("our own page behind TLS", dict(host="gate.example", origin="https://gate.example")),
            ("the usual port, said once", dict(host="gate.example:80", origin="http://gate.example")),
            ("our own page by address, with keys", dict(
                host="192.168.1.2:8045", origin="http://192.168.1.2:8045", auth_off=False)),
            ("link of another site to a page", dict(self.LINK, sec_fetch_site="cross-site",
                                                    is_page=True)),
            ("link of another port to a page", dict(self.LINK, sec_fetch_site="same-site",
                                                    is_page=True)),
        ]
        for name, headers in table:
            with self.subTest(name):
                self.assertEqual(self.refusal(**headers), "")

    def test_refused(self):
        table = [
            ("rebound name", dict(host="evil.example")),
            ("rebound name with our port", dict(host="evil.example:8045")),
            ("name that begins like ours", dict(host="127.0.0.1.evil.example")),
            ("subdomain of an allowed host", dict(host="a.gate.example")),
            ("address that is not loopback", dict(host="192.168.1.2:8045")),
            ("empty host", dict(host="")),
            ("other origin", dict(host="localhost", origin="https://evil.example")),
            ("opaque origin", dict(host="localhost", origin="null")),
            ("origin of another scheme", dict(host="localhost", origin="http://app.example")),
            ("origin with another port", dict(host="localhost", origin=self.PAGE + ":444")),
            ("origin that begins so", dict(host="localhost", origin=self.PAGE + ".evil.example")),
            ("wildcard", dict(host="localhost", origin="*")),
            ("cross-site without an origin", dict(host="localhost", sec_fetch_site="cross-site")),
            ("cross-site in capitals", dict(host="localhost", sec_fetch_site="CROSS-SITE")),
            ("listed origin at a rebound name", dict(host="evil.example", origin=self.PAGE)),
            ("other origin with keys", dict(host="localhost", origin="https://evil.example",
                                            auth_off=False)),
            ("cross-site with keys", dict(host="localhost", sec_fetch_site="cross-site",
                                          auth_off=False)),
            ("page of a rebound name", dict(host="evil.example:8045",
                                            origin="http://evil.example:8045")),
            ("page of a rebound name, with keys", dict(
                host="evil.example:8045", origin="http://evil.example:8045", auth_off=False)),
            ("page at an address that is not loopback", dict(
                host="192.168.1.2:8045", origin="http://192.168.1.2:8045")),
            ("page at another address, with keys", dict(
                host="192.168.1.2:8045", origin="http://192.168.1.3:8045", auth_off=False)),
            ("page at another local port", dict(host="localhost:8045",
                                                origin="http://localhost:3000")),
            ("page at another loopback name", dict(host="127.0.0.1:8045",
                                                   origin="http://localhost:8045")),
            ("page at the usual port", dict(host="localhost:8045", origin="http://localhost")),
            ("no web page", dict(host="localhost:8045", origin="ftp://localhost:8045")),
            ("origin without a name", dict(host="localhost", origin="http://")),
            ("another local port without an origin", dict(host="localhost",
                                                          sec_fetch_site="same-site")),
            ("link to what is no page", dict(self.LINK, sec_fetch_site="cross-site")),
            ("page in a frame", dict(self.LINK, sec_fetch_dest="iframe",
                                     sec_fetch_site="cross-site", is_page=True)),
            ("page as an image", dict(self.LINK, sec_fetch_mode="no-cors", sec_fetch_dest="image",
                                      sec_fetch_site="cross-site", is_page=True)),
            ("form of another site to a page", dict(
                self.LINK, sec_fetch_site="cross-site", origin="https://evil.example",
                is_page=True)),
            ("link to a page at a rebound name", dict(
                self.LINK, host="evil.example", sec_fetch_site="cross-site", is_page=True)),
        ]
        for name, headers in table:
            with self.subTest(name):
                self.assertNotEqual(self.refusal(**headers), "")

    def test_names_the_host_and_the_setting_without_control_characters(self):
        text = self.refusal(host="\x1bevil.example")
        self.assertIn("allowed_hosts", text)
        self.assertIn("evil.example", text)
        self.assertTrue(text.isprintable())


class CorsHeadersTest(unittest.TestCase):

    ASKED = gw.Headers([
        ("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, x-api-key,b@d"),
        ("Access-Control-Request-Private-Network", "true")])

    def answers(self):
        return [gw.cors_headers("https://app.example", ["request-id", "X-A", "request-id"]),
                gw.preflight_headers(self.ASKED)]

    def test_origin_is_exact_and_caches_are_told(self):
        for pairs in self.answers():
            self.assertEqual(pairs[:2], [
                ("Access-Control-Allow-Origin", "https://app.example"), ("Vary", "Origin")])
            self.assertNotIn("*", str(pairs))

    def test_a_preflight_allows_what_was_asked_for(self):
        pairs = dict(gw.preflight_headers(self.ASKED))
        self.assertEqual(pairs["Access-Control-Allow-Methods"], "POST")
        self.assertEqual(pairs["Access-Control-Allow-Headers"], "authorization, x-api-key")

    def test_an_answer_shows_its_headers(self):
        pairs = dict(self.answers()[0])
        self.assertEqual(pairs["Access-Control-Expose-Headers"], "request-id, X-A")

    def test_neither_credentials_nor_private_networks_are_offered(self):
        names = {name for pairs in self.answers() for name, _ in pairs}
        self.assertEqual(names & {"Access-Control-Allow-Credentials",
                                  "Access-Control-Allow-Private-Network"}, set())


class RetryAfterTest(unittest.TestCase):

    NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT

    def test_seconds_from_now(self):
        table = [
            ("0", 0.0), ("7", 7.0), (" 7 ", 7.0), ("1.5", 1.5), ("86400", 86400.0),
            ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0), ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
            ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ]
        for text, seconds in table:
            with self.subTest(text):
                headers = gw.Headers([("Retry-After", text)])
                self.assertEqual(gw.retry_after_seconds(headers, self.NOW), seconds)

    def test_what_says_nothing(self):
        for text in ("", "nan", "inf", "-1", "+1", "1e3", "soon", "9" * 400, "\u0667", "1,5",
                     "Sun, 99 Foo 1994", "Sun, 06 Nov 99999999999 08:50:37 GMT"):
            with self.subTest(text):
                headers = gw.Headers([("Retry-After", text)])
                self.assertIsNone(gw.retry_after_seconds(headers, self.NOW))
        self.assertIsNone(gw.retry_after_seconds(gw.Headers(), self.NOW))


if __name__ == "__main__":
    unittest.main()
