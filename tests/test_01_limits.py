"""Section 1: the bounds that the contract names, and how they stand to each other."""

import unittest

import claude_gateway as gw


class PromisedNumbersTest(unittest.TestCase):
    """Numbers that contract sections 5, 9, 10 and 12 fix; people's scripts hold them."""

    def test_limits_are_those_of_the_contract(self):
        promised = {
            "MAX_REQUEST_LINE_BYTES": 16 * 1024,
            "MAX_HEADERS_COUNT": 100,
            "MAX_HEAD_BYTES": 64 * 1024,
            "MAX_NUMERAL_DIGITS": 4300,
            "MAX_CLIENT_REQUEST_ID": 128,
            "RECORDS_KEPT": 1000,
            "ANTHROPIC_VERSION": "2023-06-01",
            "CLAUDE_CODE_BETAS_NAME": "claude-code-defaults",
        }
        for name, value in promised.items():
            with self.subTest(name):
                self.assertEqual(getattr(gw, name), value)

    def test_claude_code_betas_are_the_four_of_the_contract(self):
        self.assertEqual(
            gw.CLAUDE_CODE_BETAS,
            "claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14,"
            "fine-grained-tool-streaming-2025-05-14")

    def test_every_bound_is_a_positive_number(self):
        bounds = [name for name in vars(gw) if name.startswith("MAX_")]
        self.assertGreater(len(bounds), 15)
        for name in bounds:
            with self.subTest(name):
                self.assertGreater(getattr(gw, name), 0)

    def test_answers_are_tolerated_beyond_what_requests_may_be(self):
        # Answers come through more proxies than requests do.
        self.assertGreater(gw.MAX_RESPONSE_HEADERS_COUNT, gw.MAX_HEADERS_COUNT)
        self.assertGreater(gw.MAX_RESPONSE_HEAD_BYTES, gw.MAX_HEAD_BYTES)

    def test_a_chunk_size_of_all_digits_fits_where_lengths_do(self):
        self.assertLess(16 ** gw.MAX_CHUNK_SIZE_DIGITS, 2 ** 63)
        self.assertGreater(gw.MAX_CHUNK_LINE_BYTES, gw.MAX_CHUNK_SIZE_DIGITS)

    def test_a_listen_queue_takes_a_burst(self):
        # The default of 5 loses clients at 64 in parallel (robustness 1.15).
        self.assertGreaterEqual(gw.LISTEN_BACKLOG, 128)


class HeaderSetsTest(unittest.TestCase):

    SETS = ("HOP_BY_HOP", "CREDENTIAL_HEADERS", "NOT_UPSTREAM", "NOT_UPSTREAM_PREFIXES",
            "NOT_DOWNSTREAM", "OWN_HEADERS")

    def test_names_are_in_lower_case_as_they_are_looked_up(self):
        for name in self.SETS:
            with self.subTest(name):
                self.assertEqual([key for key in getattr(gw, name) if key != key.lower()], [])

    def test_hop_by_hop_names_go_in_neither_direction(self):
        # RFC 9110 section 7.6.1; Proxy-Connection is what old clients made of it.
        hop_by_hop = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
                      "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
        self.assertEqual(hop_by_hop - gw.NOT_UPSTREAM, set())
        self.assertEqual(hop_by_hop - gw.NOT_DOWNSTREAM, set())

    def test_our_own_headers_are_those_of_the_contract(self):
        self.assertEqual(gw.OWN_HEADERS, {"x-request-id", "x-account-email", "x-mapped-model",
                                          "x-gateway-provider", "x-gateway-attempts"})


class ReasonsTest(unittest.TestCase):

    def test_every_status_that_we_answer_with_has_a_reason(self):
        # 402 is only ever an upstream's.
        ours = set(gw.ERROR_TYPES) - {402} | {200, 204}
        self.assertEqual(ours - set(gw.REASONS), set())

    def test_reasons_are_safe_in_a_status_line(self):
        for status, reason in gw.REASONS.items():
            with self.subTest(status):
                self.assertRegex(reason, r"\A[A-Za-z -]+\Z")


if __name__ == "__main__":
    unittest.main()
