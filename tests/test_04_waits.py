"""Section 4: when to come back, in every form that upstreams write it."""

import random
import unittest

import claude_gateway as gw

# Tue, 14 Nov 2023 22:13:20 GMT
NOW = 1700000000.0
REST_OF_TIME = 300e9


def headers(**values):
    """Headers given as names with underscores."""
    return gw.Headers([(name.replace("_", "-"), value) for name, value in values.items()])


def limit_headers(*rows):
    """Anthropic's limit headers given as (name, value)."""
    return gw.Headers([("anthropic-ratelimit-" + name, value) for name, value in rows])


class ToldSecondsTest(unittest.TestCase):

    FORMS = [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        (" 7\t", 7.0),
        ("1.5", 1.5),
        ("1.", 1.0),
        ("0.001", 0.001),
        ("86400", 86400.0),
        # RFC 9110 section 5.6.7: the form of today, that of RFC 850, that of asctime.
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        ("Tuesday, 14-Nov-23 22:13:30 GMT", 10.0),
        ("Tue Nov 14 22:13:30 2023", 10.0),
        ("Fri Dec  1 00:00:00 2023", 1388800.0),
        ("Tue, 14 Nov 2023 22:13:30 -0000", 10.0),
        ("Tue, 14 Nov 2023 23:13:30 +0100", 10.0),
        ("2023-11-14T22:13:30Z", 10.0),
        ("2023-11-14t22:13:30z", 10.0),
        ("2023-11-14 22:13:30Z", 10.0),
        ("2023-11-14T22:13:30.999999999Z", 10.0),
        ("2023-11-14T22:13:30+00:00", 10.0),
        ("2023-11-15T00:13:30+02:00", 10.0),
        ("2023-11-14T16:43:30-0530", 10.0),
        ("1700000010", 10.0),
        ("1700000010.25", 10.25),
        ("1700000010000", 10.0),
        ("1700000010250", 10.25),
    ]

    PAST = [
        "Tue, 14 Nov 2023 22:13:10 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "2023-11-14T22:13:10Z",
        "0001-01-01T00:00:00Z",
        "1699999990",
        "1699999990000",
    ]

    NONSENSE = [
        "", " ", "soon", "-5", "+5", "nan", "NaN", "inf", "-inf", "Infinity", "1e3", "0x10", ".5",
        "1,5", "1 2", "10, 20", "5s", "6m0s", "in 5 s", "[1]", "1_000", "²", "\x00", "\xe4\xf6",
        "1" * 400, "0." + "1" * 400, "2023-11-14", "2023-11-14T22:13:30", "22:13:30",
        "2023-13-01T00:00:00Z", "2023-02-30T00:00:00Z", "2023-11-14T25:00:00Z",
        "2023-11-14T22:13:61Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59",
        "Tue, 99 Nov 2023 99:99:99 GMT", "Tue, 14 Nov 2023 22:13:30 +99999999999",
        "Tue, 14 Nov %s 22:13:30 GMT" % ("9" * 5000), "(" * 1000, "Tue Nov", ",", "GMT",
    ]

    def test_forms(self):
        for text, seconds in self.FORMS:
            with self.subTest(text):
                self.assertAlmostEqual(gw.told_seconds(text, NOW), seconds, places=3)

    def test_what_is_past_is_now(self):
        for text in self.PAST:
            with self.subTest(text):
                self.assertEqual(gw.told_seconds(text, NOW), 0.0)

    def test_nonsense_is_nothing(self):
        for text in self.NONSENSE:
            with self.subTest(text[:40]):
                self.assertIsNone(gw.told_seconds(text, NOW))

    def test_the_year_9999_is_a_moment(self):
        for text in ("9999-12-31T23:59:59Z", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 15):
            with self.subTest(text):
                self.assertGreater(gw.told_seconds(text, NOW), 1e9)

    def test_any_text_is_a_number_or_nothing(self):
        """Whatever pieces an upstream puts together: never an exception, never below 0."""
        pieces = ["Tue", ",", "14", "Nov", "2023", "22:13:30", "GMT", "+0000", "-", "(", ")", '"',
                  "9" * 20, "\xb2", "\u0663", "Z", "T", "a.m.", "-0000", "", ";", "\\", "0", "nan",
                  "14-Nov-23", "12.30.00", "+24:00", "-+1", "00-00-00", "\xff", "1e9", "\r\n"]
        chance = random.Random(4)
        for _ in range(5000):
            text = chance.choice(["", " "]).join(
                chance.choice(pieces) for _ in range(chance.randrange(1, 9)))
            seconds = gw.told_seconds(text, NOW)
            if seconds is not None and not 0 <= seconds < REST_OF_TIME:
                self.fail("%r is %r seconds" % (text, seconds))


class RetryAfterTest(unittest.TestCase):

    TABLE = [
        ({}, None),
        ({"retry_after": ""}, None),
        ({"retry_after": "12"}, 12.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "2023-11-14T22:13:30Z"}, 10.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "250.5"}, 0.2505),
        # The finer one counts; one that says nothing does not hide the other.
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"retry_after_ms": "-1", "retry_after": "2"}, 2.0),
        ({"retry_after_ms": "nan", "retry_after": "2"}, 2.0),
        ({"retry_after_ms": "1" * 400, "retry_after": "2"}, 2.0),
    ]

    def test_table(self):
        for values, seconds in self.TABLE:
            with self.subTest(str(values)[:60]):
                self.assertEqual(gw.retry_after_seconds(headers(**values), NOW), seconds)

    def test_text_that_goes_down(self):
        table = [
            (-5.0, "1"), (0.0, "1"), (0.001, "1"), (1.0, "1"), (1.001, "2"), (59.5, "60"),
            (60.0, "60"), (60.001, "60"), (61.0, "60"), (599.9, "60"), (600.0, "60"),
            (600.001, "601"), (601.0, "601"), (1800.0, "1800"),
        ]
        for seconds, text in table:
            with self.subTest(seconds):
                self.assertEqual(gw.retry_after_text(seconds), text)


class RateLimitsTest(unittest.TestCase):

    def test_limits_of_an_api_key(self):
        limits = gw.rate_limits(limit_headers(
            ("requests-limit", "50"), ("requests-remaining", "0"),
            ("requests-reset", "2023-11-14T22:13:30Z"),
            ("input-tokens-limit", "30000"), ("input-tokens-remaining", "29000"),
            ("input-tokens-reset", "2023-11-14T22:13:22Z"),
            ("output-tokens-remaining", "8000"), ("tokens-limit", "38000")), NOW)
        self.assertEqual(limits, {
            "requests": gw.RateLimit(50.0, 0.0, 10.0),
            "input-tokens": gw.RateLimit(30000.0, 29000.0, 2.0),
            "output-tokens": gw.RateLimit(None, 8000.0),
            "tokens": gw.RateLimit(38000.0),
        })

    def test_limits_of_a_subscription(self):
        limits = gw.rate_limits(limit_headers(
            ("unified-status", "rejected"), ("unified-reset", "1700000600"),
            ("unified-5h-status", "Rejected"), ("unified-5h-reset", "1700000600"),
            ("unified-5h-utilization", "1.02"), ("unified-representative-claim", "five_hour"),
            ("unified-7d-status", "allowed_warning"), ("unified-7d-reset", "1700500000"),
            ("unified-overage-status", "rejected")), NOW)
        self.assertEqual(limits, {
            "unified": gw.RateLimit(reset_in=600.0, status="rejected"),
            "unified-5h": gw.RateLimit(reset_in=600.0, status="rejected"),
            "unified-7d": gw.RateLimit(reset_in=500000.0, status="allowed_warning"),
            "unified-overage": gw.RateLimit(status="rejected"),
        })

    def test_names_in_any_case(self):
        pairs = gw.Headers([("Anthropic-RateLimit-Requests-Remaining", "3")])
        self.assertEqual(gw.rate_limits(pairs, NOW), {"requests": gw.RateLimit(remaining=3.0)})

    def test_what_says_nothing_is_left_out(self):
        table = [
            ("requests-remaining", "-1"), ("requests-remaining", "nan"), ("requests-limit", "many"),
            ("requests-limit", "1" * 400), ("requests-reset", "soon"), ("requests-reset", ""),
        ]
        for name, value in table:
            with self.subTest(name=name, value=value[:20]):
                limits = gw.rate_limits(limit_headers((name, value)), NOW)
                self.assertEqual(limits.get("requests", gw.RateLimit()), gw.RateLimit())
                self.assertEqual(gw.used_up(limits), [])
                told = gw.told_limits(limit_headers((name, value)), NOW)
                self.assertEqual((list(told.used_up()), told.by_name()), ([], limits))
                self.assertIsNone(gw.told_wait(gw.Headers([]), told, NOW))

    def test_other_headers_are_no_limits(self):
        for name in ("anthropic-ratelimit-", "anthropic-ratelimit-requests",
                     "anthropic-ratelimit-requests-colour", "x-ratelimit-requests-limit",
                     "anthropic-ratelimit-%s-limit" % ("x" * 41),
                     "anthropic-ratelimit-a b-limit"):
            with self.subTest(name[:40]):
                self.assertEqual(gw.rate_limits(gw.Headers([(name, "1")]), NOW), {})

    def test_bounds(self):
        """An upstream cannot fill the memory with names or with a long word."""
        rows = [("name%d-limit" % number, "1") for number in range(1000)]
        limits = gw.rate_limits(limit_headers(*rows, ("name0-remaining", "0")), NOW)
        self.assertEqual(len(limits), gw.MAX_LIMITS_COUNT)
        self.assertEqual(limits["name0"], gw.RateLimit(1.0, 0.0))
        limits = gw.rate_limits(limit_headers(("unified-status", "x" * 9999)), NOW)
        self.assertEqual(limits["unified"].status, "")

    def test_for_people(self):
        limit = gw.RateLimit(50.0, 0.0, 10.0)
        self.assertEqual(limit.as_dict(4.0), {"limit": 50.0, "remaining": 0.0,
                                              "resets_in_seconds": 6.0})
        self.assertEqual(limit.as_dict(100.0)["resets_in_seconds"], 0.0)
        self.assertEqual(gw.RateLimit().as_dict(0.0), {})


class UsedUpTest(unittest.TestCase):

    TABLE = [
        ("plenty", [("requests-remaining", "5")], []),
        ("none left", [("requests-remaining", "0")], ["requests"]),
        ("two", [("requests-remaining", "0"), ("tokens-remaining", "0.0")], ["requests", "tokens"]),
        ("rejected", [("unified-status", "rejected")], ["unified"]),
        ("allowed", [("unified-status", "allowed")], []),
        ("nearly", [("unified-status", "allowed_warning")], []),
        # One window of several: the unified status has the say.
        ("window alone", [("unified-5h-status", "rejected"), ("unified-status", "allowed")], []),
        ("paid on", [("unified-status", "rejected"), ("unified-overage-status", "allowed")], []),
        ("paid on, nearly", [("unified-status", "rejected"),
                             ("unified-overage-status", "allowed_warning")], []),
        ("paid off", [("unified-status", "rejected"),
                      ("unified-overage-status", "rejected")], ["unified"]),
    ]

    def test_table(self):
        for name, rows, names in self.TABLE:
            with self.subTest(name):
                limits = gw.rate_limits(limit_headers(*rows), NOW)
                self.assertEqual(gw.used_up(limits), [limits[name] for name in names])
                told = gw.told_limits(limit_headers(*rows), NOW)
                self.assertEqual(list(told.used_up()), [limits[name] for name in names])

    def test_one_look_misses_nothing(self):
        """Whatever the lines are: the same as when all of them are worked out."""
        chance = random.Random(5)
        for _ in range(3000):
            rows = [("%s-%s" % (chance.choice(["requests", "Tokens", "unified", "unified-5h",
                                               "unified-overage", "0", "a b", "x" * 41]),
                                chance.choice(["remaining", "Remaining", "status", "STATUS", "reset",
                                               "limit", "utilization", "remaining-0"])),
                     chance.choice(["0", "00", "0.0", "0.", "0x", "7", "-0", "rejected", "Rejected",
                                    "reject", "allowed", "allowed_warning", "1700000600", "", "soon"]))
                    for _ in range(chance.randrange(7))]
            expected = gw.rate_limits(limit_headers(*rows), NOW)
            told = gw.told_limits(limit_headers(*rows), NOW)
            with self.subTest(rows):
                self.assertEqual(list(told.used_up()) if told else [], gw.used_up(expected))
                self.assertEqual(told.by_name() if told else {}, expected)

    def test_what_is_kept_of_long_lines_is_what_they_say(self):
        told = gw.told_limits(limit_headers(
            ("requests-limit", "5"), *(("requests-reset", "x" * 9999) for _ in range(9))), NOW)
        self.assertEqual((told.by_name(), told._pairs), ({"requests": gw.RateLimit(5.0)}, []))


class ToldWaitTest(unittest.TestCase):

    TABLE = [
        ("nothing", {}, [], None),
        ("retry-after", {"retry_after": "7"}, [], 7.0),
        ("retry-after goes before resets", {"retry_after": "7"},
         [("requests-remaining", "0"), ("requests-reset", "1700000600")], 7.0),
        ("nonsense does not", {"retry_after": "soon"},
         [("requests-remaining", "0"), ("requests-reset", "1700000600")], 600.0),
        ("the reset of what is used up", {},
         [("requests-remaining", "0"), ("requests-reset", "1700000060"),
          ("tokens-remaining", "9"), ("tokens-reset", "1700000001")], 60.0),
        ("the latest of those", {},
         [("requests-remaining", "0"), ("requests-reset", "1700000060"),
          ("tokens-remaining", "0"), ("tokens-reset", "1700000090")], 90.0),
        ("the soonest where none is used up", {},
         [("requests-reset", "1700000060"), ("tokens-reset", "1700000005")], 5.0),
        ("used up without a reset", {},
         [("requests-remaining", "0"), ("tokens-reset", "1700000005")], 5.0),
        ("a subscription", {}, [("unified-status", "rejected"), ("unified-reset", "1700009000"),
                                ("unified-5h-reset", "1700000001")], 9000.0),
        ("a reset that is past", {},
         [("requests-remaining", "0"), ("requests-reset", "1600000000")], 0.0),
    ]

    def test_table(self):
        for name, told, rows, seconds in self.TABLE:
            with self.subTest(name):
                limits = gw.told_limits(limit_headers(*rows), NOW)
                self.assertEqual(gw.told_wait(headers(**told), limits, NOW), seconds)


if __name__ == "__main__":
    unittest.main()
