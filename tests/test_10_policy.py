"""Section 11: every row of the policy's tables, and what is in none of them."""

import unittest

import claude_gateway as gw


def answer(status, **settings):
    return gw.Outcome("answer", status, **settings)


def kinds_of(error_class):
    """The kinds of all classes below an error class."""
    for subclass in error_class.__subclasses__():
        yield subclass.kind
        for kind in kinds_of(subclass):
            yield kind


class FailedCallsTest(unittest.TestCase):

    def test_every_kind(self):
        table = {
            "unreached": "next",
            "closed": "next",
            "silent": "next",
            "malformed": "next",
            "broke": "next",
            "stalled": "next",
            "shutdown": "give_up",
            "credential": "next",
            "credential_refused": "next",
        }
        for kind, action in table.items():
            with self.subTest(kind):
                self.assertEqual(gw.decide(gw.Outcome(kind)), gw.Decision(action))
        self.assertEqual(set(gw.FAILED_CALLS), set(table))

    def test_every_error_of_an_upstream_has_a_row(self):
        self.assertEqual(set(kinds_of(gw.UpstreamError)) - set(gw.FAILED_CALLS), set())

    def test_the_credential_is_not_asked(self):
        """A client's own credential has no other candidate, but that is for the pool to say."""
        for kind in gw.FAILED_CALLS:
            with self.subTest(kind):
                self.assertEqual(gw.decide(gw.Outcome(kind, transparent=True)),
                                 gw.decide(gw.Outcome(kind)))


class FailedStatusesTest(unittest.TestCase):

    NEXT = (408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)

    def test_momentary_ones_go_on(self):
        for status in self.NEXT:
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status)), gw.Decision("next"))

    def test_a_refused_account_is_to_blame(self):
        for status in (401, 403):
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status)), gw.Decision("next", blame=True))

    def test_the_table_has_no_other_row(self):
        self.assertEqual(set(gw.FAILED_STATUSES), set(self.NEXT) | {401, 403})

    def test_everything_else_is_relayed(self):
        for status in sorted(set(range(200, 600)) - set(gw.FAILED_STATUSES)):
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status)), gw.RELAY)

    def test_the_clients_own_refusal_is_passed_on(self):
        for status in (401, 403):
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status, transparent=True)), gw.RELAY)

    def test_the_clients_own_other_failures_are_not(self):
        for status in self.NEXT:
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status, transparent=True)), gw.NEXT)


class FinalTest(unittest.TestCase):
    """``x-should-retry: false`` from the upstream ends the attempts (contract section 9)."""

    def test_it_is_relayed(self):
        for status in FailedStatusesTest.NEXT + (200, 400, 404):
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status, final=True)), gw.RELAY)

    def test_an_accounts_refusal_is_not_shown_to_a_client(self):
        """A client would take the 401 of an account for its own and log out."""
        for status in (401, 403):
            with self.subTest(status):
                decision = gw.decide(answer(status, final=True))
                self.assertTrue(decision.blame)
                self.assertNotEqual(decision.action, "relay")

    def test_the_clients_own_refusal_is_passed_on(self):
        for status in (401, 403):
            with self.subTest(status):
                self.assertEqual(gw.decide(answer(status, final=True, transparent=True)),
                                 gw.RELAY)


if __name__ == "__main__":
    unittest.main()
