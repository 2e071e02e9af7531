"""Section 2: whose fault it was, and in which words a client is told."""

import unittest

import claude_gateway as gw


class ErrorTypesTest(unittest.TestCase):

    def test_types_are_those_of_contract_section_9(self):
        table = {
            400: "invalid_request_error",
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            405: "invalid_request_error",
            408: "timeout_error",
            411: "invalid_request_error",
            413: "request_too_large",
            429: "rate_limit_error",
            502: "api_error",
            503: "overloaded_error",
            504: "timeout_error",
            529: "overloaded_error",
        }
        for status, error_type in table.items():
            with self.subTest(status):
                self.assertEqual(gw.RequestError(status, "m").type, error_type)

    def test_an_unknown_status_is_an_api_error(self):
        self.assertEqual(gw.RequestError(599, "m").type, "api_error")

    def test_what_cannot_get_better_is_never_retried(self):
        self.assertEqual({400, 401, 403, 404, 405, 413, 431} - gw.NEVER_RETRIED, set())

    def test_what_may_get_better_can_be_retried(self):
        self.assertEqual({408, 429, 500, 502, 503, 504, 529} & gw.NEVER_RETRIED, set())


class GatewayErrorTest(unittest.TestCase):

    def test_status_and_kind_of_each_class(self):
        table = [
            (gw.GatewayError, 500, None),
            (gw.Unavailable, 503, None),
            (gw.NoUsableAccount, 502, None),
            (gw.UpstreamError, 502, "upstream_error"),
            (gw.UpstreamUnreached, 502, "unreached"),
            (gw.UpstreamClosed, 502, "closed"),
            (gw.UpstreamSilent, 504, "silent"),
            (gw.UpstreamMalformed, 502, "malformed"),
            (gw.UpstreamBroke, 502, "broke"),
            (gw.UpstreamStalled, 504, "stalled"),
            (gw.ShuttingDown, 503, "shutdown"),
            (gw.CredentialError, 502, "credential"),
            (gw.CredentialRefused, 502, "credential_refused"),
        ]
        for error_class, status, kind in table:
            with self.subTest(error_class.__name__):
                error = error_class("m")
                self.assertEqual((error.status, getattr(error, "kind", None)), (status, kind))

    def test_carries_message_headers_and_whether_to_close(self):
        error = gw.RequestError(405, "no", [("Allow", "GET")], close=True)
        self.assertEqual((error.status, error.message, str(error)), (405, "no", "no"))
        self.assertEqual((error.headers, error.close), ((("Allow", "GET"),), True))

    def test_keeps_the_connection_unless_told_otherwise(self):
        self.assertEqual((gw.UpstreamClosed("m").headers, gw.UpstreamClosed("m").close),
                         ((), False))

    def test_one_errors_status_is_not_the_next_ones(self):
        gw.RequestError(404, "m")
        self.assertEqual(gw.GatewayError("m").status, 500)

    def test_a_stall_is_a_break_and_both_are_the_upstreams(self):
        self.assertIsInstance(gw.UpstreamStalled("m"), gw.UpstreamBroke)
        self.assertIsInstance(gw.UpstreamBroke("m"), gw.UpstreamError)

    def test_an_issuers_own_wait_travels_with_its_error(self):
        self.assertIsNone(gw.CredentialError("m").retry_after)
        self.assertEqual(gw.CredentialRefused("m", 2.5).retry_after, 2.5)

    def test_a_client_that_left_is_told_nothing(self):
        self.assertFalse(issubclass(gw.ClientGone, gw.GatewayError))


class ConfigErrorTest(unittest.TestCase):

    def test_has_one_line_per_fault(self):
        error = gw.ConfigError(("port: must be a number", "host: must be a string"))
        self.assertEqual(error.problems, ["port: must be a number", "host: must be a string"])
        self.assertEqual(str(error), "port: must be a number\nhost: must be a string")


class AnthropicErrorTest(unittest.TestCase):

    def test_has_the_shape_of_contract_section_9_and_nothing_else(self):
        self.assertEqual(gw.anthropic_error("api_error", "no", "req_1"), {
            "type": "error",
            "error": {"type": "api_error", "message": "no"},
            "request_id": "req_1",
        })


if __name__ == "__main__":
    unittest.main()
