"""Section 10: every row of the table of contract section 9, and what is in none of them."""

import itertools
import json
import unittest

import claude_gateway as gw

HALF_HOUR = 1800.0

# What each case does to an account: the rests after 1, 2, 3 … failures in a row, and
# whether the upstream's word goes before, it is surely not ready, and it is out.
RESTS = {
    "unreached": ([5, 10, 20, 40, 80, 160, 300, 300], False, False, False),
    "closed": ([5, 10, 20, 40, 80, 160, 300, 300], False, False, False),
    "silent": ([30, 30, 30], False, False, False),
    "rate_limited": ([5, 10, 20, 40, 80, 160, 300, 300], True, True, False),
    "credential": ([5, 10, 20, 40, 80, 160, 300, 300], True, True, False),
    "credit": ([HALF_HOUR, HALF_HOUR], False, True, False),
    "failing": ([0, 2, 4, 8, 16, 32, 60, 60], False, False, False),
    "refused": ([HALF_HOUR, HALF_HOUR], False, True, True),
}
# Cases that rest nobody.
FREE = {"unknown_model", "signature", "shutdown", "client_left", "answered"}

# (status or kind, what the body says) -> (case, action, surely not done)
ROWS = {
    ("unreached", ""): ("unreached", "next", True),
    ("closed", ""): ("closed", "next", False),
    ("silent", ""): ("silent", "next", False),
    ("broke", ""): ("failing", "next", False),
    ("malformed", ""): ("failing", "next", False),
    ("stalled", ""): ("failing", "next", False),
    ("credential", ""): ("credential", "next", True),
    ("credential_refused", ""): ("refused", "next", True),
    ("shutdown", ""): ("shutdown", "give_up", False),
    ("client_left", ""): ("client_left", "give_up", False),
    (429, ""): ("rate_limited", "next", True),
    (429, "credit"): ("credit", "next", True),
    (400, "credit"): ("credit", "next", True),
    (402, "credit"): ("credit", "next", True),
    (403, "credit"): ("credit", "next", True),
    (529, ""): ("failing", "next", True),
    (503, ""): ("failing", "next", True),
    (502, ""): ("failing", "next", False),
    (504, ""): ("failing", "next", False),
    (500, ""): ("failing", "next", False),
    (408, ""): ("failing", "next", False),
    (520, ""): ("failing", "next", False),
    (521, ""): ("failing", "next", False),
    (522, ""): ("failing", "next", False),
    (523, ""): ("failing", "next", False),
    (524, ""): ("failing", "next", False),
    (401, ""): ("refused", "next", True),
    (403, ""): ("refused", "next", True),
    (404, "model"): ("unknown_model", "next_provider", True),
    (400, "signature"): ("signature", "mend", False),
}
# The same account once more where nobody else is left: what may be over in a moment.
AGAIN = {"unreached", "closed", "failing"}
BLAMED = {"refused"}
HOPELESS = {"refused", "credit"}


def outcome(what, says="", **settings):
    """An answer of a status, or what is none by its kind."""
    if isinstance(what, int):
        return gw.Outcome("answer", what, says=says, **settings)
    return gw.Outcome(what, says=says, **settings)


def error_body(kind, message):
    """An error in Anthropic's shape."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def kinds_of(error_class):
    """The kinds of all classes below an error class."""
    for subclass in error_class.__subclasses__():
        yield subclass.kind
        yield from kinds_of(subclass)


class TableTest(unittest.TestCase):

    def test_every_row(self):
        for (what, says), (case, action, _) in ROWS.items():
            with self.subTest(what=what, says=says):
                decision = gw.decide(outcome(what, says))
                self.assertEqual((decision.case, decision.action), (case, action))
                self.assertEqual(decision.again, case in AGAIN)
                self.assertEqual(decision.blame, case in BLAMED)
                self.assertEqual(decision.hopeless, case in HOPELESS)

    def test_every_rest(self):
        for (what, says), (case, _, _) in ROWS.items():
            with self.subTest(what=what, says=says):
                cooldown = gw.decide(outcome(what, says)).cooldown
                if case in FREE:
                    self.assertIsNone(cooldown)
                    continue
                seconds, told, hard, out = RESTS[case]
                self.assertEqual([cooldown.seconds(count + 1) for count in range(len(seconds))],
                                 seconds)
                self.assertEqual((cooldown.told, cooldown.hard, cooldown.out), (told, hard, out))

    def test_a_row_without_end_stays_at_its_ceiling(self):
        for case, (seconds, _, _, _) in RESTS.items():
            with self.subTest(case):
                cooldown = next(row.cooldown for row in gw.CASES if row.name == case)
                self.assertEqual(cooldown.seconds(10 ** 6), seconds[-1])

    def test_every_status(self):
        for status in range(100, 600):
            for says in ("", "credit", "model", "signature"):
                case, action, _ = ROWS.get((status, says)) or ROWS.get(
                    (status, "")) or ("answered", "relay", False)
                with self.subTest(status=status, says=says):
                    decision = gw.decide(outcome(status, says))
                    self.assertEqual((decision.case, decision.action), (case, action))
                    if case == "answered":
                        self.assertEqual(decision, gw.Decision("answered", "relay"))

    def test_every_error_of_an_upstream_has_a_row(self):
        for kind in kinds_of(gw.UpstreamError):
            with self.subTest(kind):
                self.assertIn((kind, ""), ROWS)
                self.assertNotEqual(gw.decide(gw.Outcome(kind)).case, "answered")

    def test_the_table_has_no_other_row(self):
        """What the table knows is what stands above."""
        known = {(what, case.says) for case in gw.CASES for what in case.fits}
        self.assertEqual(known, set(ROWS))

    def test_an_answer_is_told_from_a_kind(self):
        """A kind is never looked up as a status, nor the other way round."""
        self.assertEqual(gw.decide(gw.Outcome("closed", 429)).case, "closed")
        self.assertEqual(gw.decide(gw.Outcome("answer", 0)).case, "answered")


class CircumstancesTest(unittest.TestCase):
    """Every row under every circumstance: the law in words, beside the code's."""

    def expected_action(self, what, says, final, transparent, repeatable):
        case, action, not_done = ROWS[what, says]
        if action not in ("next", "next_provider"):
            return action
        ends = "relay" if isinstance(what, int) else "give_up"
        if not repeatable and not not_done:
            return ends  # it may have been done, and must not be done twice
        if final and case not in ("refused", "credit"):
            return ends  # x-should-retry: false; but of one account it says nothing on others
        if transparent and case == "refused":
            return ends  # the client's own credential: its refusal is its to see
        return action

    def test_every_row_under_every_circumstance(self):
        for (what, says), final, transparent, repeatable in itertools.product(
                ROWS, (False, True), (False, True), (False, True)):
            told = dict(final=final, transparent=transparent, repeatable=repeatable)
            with self.subTest(what=what, says=says, **told):
                plain = gw.decide(outcome(what, says))
                decision = gw.decide(outcome(what, says, **told))
                self.assertEqual(decision.action, self.expected_action(
                    what, says, final, transparent, repeatable))
                self.assertEqual((decision.case, decision.again, decision.hopeless),
                                 (plain.case, plain.again, plain.hopeless))
                self.assertEqual(decision.cooldown, None if transparent else plain.cooldown)
                self.assertEqual(decision.blame, plain.blame and not transparent)

    def test_what_is_told_does_not_change_what_is_decided(self):
        for (what, says), told in itertools.product(ROWS, (None, 0.0, 5.0, 1e9)):
            with self.subTest(what=what, told=told):
                self.assertEqual(gw.decide(outcome(what, says, ready_in=told)),
                                 gw.decide(outcome(what, says)))


class PolicyLinesTest(unittest.TestCase):

    def test_a_line_for_every_case(self):
        lines = gw.policy_lines()
        self.assertEqual(len(lines), len(gw.CASES) + 1)
        for case, line in zip(gw.CASES, lines):
            with self.subTest(case.name):
                self.assertTrue(line.startswith(case.name + " ("), line)
                self.assertIn(case.about, line)
                self.assertIn(case.action, line)
        self.assertIn("as told, else 5 s doubling to 300 s", "\n".join(lines))
        self.assertIn("2 s doubling to 60 s, not after the first", "\n".join(lines))


class ErrorTopicTest(unittest.TestCase):

    CREDIT = [
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API. "
                                       "Please go to Plans & Billing to upgrade or purchase credits."),
        (400, "invalid_request_error", "You have reached your specified API usage limits. "
                                       "You will regain access on 2026-12-01 at 00:00 UTC."),
        (400, "invalid_request_error", "You have reached your specified workspace API usage limits. "
                                       "You will regain access on 2026-12-01 at 00:00 UTC."),
        (403, "permission_error", "Your credit balance is too low to access the Claude API."),
        (429, "billing_error", "Extra usage is required for long context requests."),
        (403, "billing_error", "Payment required."),
        (402, "billing_error", "Your account has an unpaid invoice."),
        (402, "whatever", ""),
        (429, "insufficient_quota", "You exceeded your current quota, please check your plan."),
        (403, "x", "Insufficient Balance"),
        (400, "x", "This request requires more credits, or fewer max_tokens."),
    ]
    MODEL = [
        (404, "not_found_error", "model: claude-x"),
        (404, "not_found_error", "Model not found: glm-9"),
        (404, "x", "The model `gpt-9` does not exist or you do not have access to it."),
    ]
    SIGNATURE = [
        (400, "invalid_request_error",
         "messages.1.content.0: Invalid `signature` in `thinking` block"),
        (400, "invalid_request_error",
         "***.***.content.0: Invalid `signature` in `thinking` block"),
        (400, "x", "messages.3.content.0.thinking.signature: Field required"),
    ]
    NOTHING = [
        (429, "rate_limit_error", "This request would exceed your account's rate limit. "
                                  "Please try again later."),
        (429, "rate_limit_error", "Number of request tokens has exceeded your per-minute rate limit"),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "invalid_request_error", "max_tokens: 99999 > 64000, which is the maximum allowed"),
        (400, "invalid_request_error", "model: Field required"),
        (400, "invalid_request_error", "`thinking` blocks cannot be modified"),
        (400, "invalid_request_error", "Webhook signature is invalid"),
        (401, "authentication_error", "invalid x-api-key"),
        (403, "permission_error", "Your API key does not have permission to use the specified "
                                  "resource."),
        (403, "forbidden", "Request not allowed"),
        (404, "not_found_error", "Not found"),
        (404, "not_found_error", "Batch msgbatch_01 not found"),
        # The right words under another status are somebody else's.
        (500, "api_error", "Your credit balance is too low to access the Anthropic API."),
        (529, "overloaded_error", "insufficient quota"),
        (500, "not_found_error", "model: claude-x"),
        (400, "not_found_error", "model: claude-x"),
        (500, "api_error", "Invalid `signature` in `thinking` block"),
        (401, "billing_error", "x"),
        (200, "billing_error", "x"),
        (400, "invalid_request_error", "credit_balance is no known field"),
        (400, "invalid_request_error", "usage limits: extra inputs are not permitted"),
    ]

    def test_texts(self):
        for topic, rows in (("credit", self.CREDIT), ("model", self.MODEL),
                            ("signature", self.SIGNATURE), ("", self.NOTHING)):
            for status, kind, message in rows:
                with self.subTest(status=status, message=message):
                    self.assertEqual(gw.error_topic(status, error_body(kind, message)), topic)

    def test_other_shapes(self):
        table = [
            (400, b'{"error": "credit balance is too low"}', "credit"),
            (404, b'{"error": {"message": "MODEL x"}}', "model"),
            (404, b'{"detail": "model x"}', ""),
            (404, b"<html>no such model</html>", ""),
            (400, b'{"detail": "upstream: Invalid `signature` in `thinking` block"}', "signature"),
            (429, b'{"error": ["billing_error"]}', ""),
            (429, b'{"error": {"type": ["billing_error"], "message": {"credit": 0}}}', ""),
            (429, b'["billing_error"]', ""),
            (429, b"", ""),
            (404, b"\xff\xfe", ""),
            (400, b"null", ""),
            (402, b"", "credit"),
        ]
        for status, body, topic in table:
            with self.subTest(body):
                self.assertEqual(gw.error_topic(status, body), topic)

    def test_topics_lead_to_their_rows(self):
        table = [
            (self.CREDIT, "credit"),
            (self.MODEL, "unknown_model"),
            (self.SIGNATURE, "signature"),
        ]
        for rows, case in table:
            for status, kind, message in rows:
                with self.subTest(message):
                    says = gw.error_topic(status, error_body(kind, message))
                    self.assertEqual(gw.decide(outcome(status, says)).case, case)


if __name__ == "__main__":
    unittest.main()
