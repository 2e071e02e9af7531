"""Sections 23 and 24: the self-test passes, and fails where a clause is broken on purpose."""

import contextlib
import io
import re
import unittest
import unittest.mock

import claude_gateway as gw
from tests.test_20_command_line import FolderTest

PATTERN = re.compile(r"^(pass|FAIL|skip) +(\d+)  (.*)$")


def selftest(*arguments):
    """(exit code, {words: (result, why)}, last line) of a run inside this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        code = gw.main(["selftest", *arguments])
    lines = output.getvalue().splitlines()
    rows = {}
    for line in lines[:-1]:
        result, _, text = PATTERN.match(line).groups()
        words, _, why = text.partition(" -- ")
        rows[words] = (result, why)
    return code, rows, lines[-1]


class SelftestTest(FolderTest):

    def test_passes_here_without_network_key_or_configuration(self):
        result = self.command("selftest", HTTP_PROXY="http://192.0.2.1:9",
                              CLAUDE_GATEWAY_CONFIG="no-such-file.json")
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assertRegex(result.stdout.splitlines()[-1],
                         r"^\d+ pass, 0 FAIL, \d+ skip in \d\.\d s$")

    def test_walks_every_section_and_at_least_forty_clauses(self):
        self.assertGreaterEqual(len(gw.CLAUSES), 40)
        self.assertEqual({clause.section for clause in gw.CLAUSES}, set(range(4, 14)))
        words = [clause.words for clause in gw.CLAUSES]
        self.assertEqual(len(set(words)), len(words))
        self.assertTrue(all(text.endswith((".", "*.")) for text in words), words)

    def test_quiet_tells_the_sum_alone(self):
        result = self.inside("selftest", "--quiet")
        self.assertEqual((result.returncode, result.stdout.count("\n")), (0, 1))

    def test_a_clause_broken_on_purpose_fails_and_is_exit_1(self):
        def leaky(self):
            return [("x-api-key", self.secret.reveal()), ("Authorization", "Bearer leaked")]

        table = [
            ("an answer", gw.Engine, "answer_healthz",
             lambda self, exchange: gw.json_response(200, {"status": "fine"}),
             "GET /healthz says ok while the process serves."),
            ("a credential", gw.Account, "credentials", leaky,
             "With an account, every credential of the client is dropped and the account's is "
             "set."),
            ("the guard", gw, "browser_refusal", lambda *a: "",
             "A page from elsewhere and a foreign Host are refused with 403."),
            ("the body", gw.JsonDocument, "spelled", lambda self, values: gw.plain_json(values),
             "A clean body leaves byte for byte as it came."),
        ]
        for name, owner, attribute, broken, words in table:
            with self.subTest(name), unittest.mock.patch.object(owner, attribute, broken), \
                    unittest.mock.patch.object(gw, "SELFTEST_SECONDS", 1):
                code, rows, total = selftest()
                self.assertEqual(code, 1)
                self.assertEqual(rows[words][0], "FAIL")
                self.assertNotEqual(rows[words][1], "")
                self.assertNotIn(" 0 FAIL", total)

    def test_no_clause_is_satisfied_by_a_gateway_that_only_fails(self):
        """A clause that holds of an answer with status 500 would hold of anything."""
        refused = gw.json_response(500, {"error": None})

        def fail(self, request):
            return gw.HttpResponse(refused.status, refused.headers, refused.body)

        with unittest.mock.patch.object(gw.Engine, "handle", fail), \
                unittest.mock.patch.object(gw, "SELFTEST_SECONDS", 0.1):
            code, rows, _ = selftest()
        self.assertEqual(code, 1)
        by_the_server = {  # what section 17 answers before there is a request
            "Two lengths, a length beside chunks, a bare LF: 400, and the connection closes.",
        }
        passed = {words for words, (result, _) in rows.items() if result == "pass"}
        self.assertEqual(passed - by_the_server, set())

    def test_every_start_is_ended(self):
        import threading
        before = threading.active_count()
        selftest("--quiet")
        self.assertLessEqual(threading.active_count(), before)


if __name__ == "__main__":
    unittest.main()
