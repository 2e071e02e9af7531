"""/metrics as Prometheus' own library reads it, checked against what was sent."""

import json
import subprocess
import unittest

from tests import running
from tests import support
from tests.clients import harness

ODD_NAME = 'we"ird \\ name'


def metrics_of(gateway):
    """{family: {frozenset of sample name and labels: value}} and {family: type} of a gateway."""
    told = support.exchange(gateway.port, "GET", "/metrics")
    finished = subprocess.run(
        [harness.installed("prometheus", "bin", "python"), harness.program("metrics_parser.py")],
        input=told.body, stdout=subprocess.PIPE, check=True, timeout=harness.CLIENT_SECONDS)
    return {family["name"]: family for family in json.loads(finished.stdout.decode("utf-8"))}


def values(family, suffix=""):
    """{label values: value} of a family's samples."""
    return {tuple(labels.values()): value for name, labels, value in family["samples"]
            if name == family["name"] + suffix}


class MetricsTest(unittest.TestCase):

    def test_what_was_sent_is_what_is_counted(self):
        answers = [support.json_response(support.error_body("overloaded_error", "no"), 529)]

        def respond(request):
            return answers.pop() if answers else support.respond_with_message(request)

        with support.ScriptedUpstream(respond=respond) as upstream:
            accounts = [{"name": name, "api_key": running.ACCOUNT_KEY} for name in ("work", ODD_NAME)]
            with running.running_gateway(dict(running.provider(upstream), accounts=accounts)) as gateway:
                def post(body):
                    return support.exchange(gateway.port, "POST", "/v1/messages", [running.JSON_TYPE], body)

                self.assertEqual([post(running.MESSAGE).status for _ in range(3)], [200] * 3)
                self.assertEqual(post(b"{}").status, 400)
                self.assertEqual(post(running.MESSAGE.replace(b'"hi"', b'"Warmup"')).status, 200)
                self.assertEqual(support.exchange(gateway.port, "GET", "/v1/models").status, 200)
                # Books are closed after an answer has gone: those of the last one, too.
                support.eventually(lambda: len(gateway.records()) == 6, "six records")
                found = metrics_of(gateway)
        for family in found.values():
            self.assertTrue(family["help"] and family["type"] in ("counter", "gauge", "histogram"), family)
        requests = values(found["claude_gateway_requests"], "_total")
        self.assertEqual(sum(requests.values()), 6)
        self.assertEqual(sum(value for labels, value in requests.items() if labels[1] == "anthropic"), 3)
        self.assertEqual(requests["messages", "", "", "400"], 1)
        self.assertEqual(values(found["claude_gateway_upstream_attempts"], "_total"), {("answered",): 3, ("failing",): 1})
        usage = support.message()["usage"]
        tokens = values(found["claude_gateway_tokens"], "_total")
        self.assertEqual((tokens["input",], tokens["output",]), (3 * usage["input_tokens"], 3 * usage["output_tokens"]))
        self.assertEqual(set(values(found["claude_gateway_account_ready"])),
                         {("anthropic/work",), ("anthropic/" + ODD_NAME,)})
        self.assertEqual(values(found["claude_gateway_local_answers"], "_total"), {("warmup",): 1, ("models",): 1})
        self.assertEqual(values(found["claude_gateway_in_flight"]), {(): 0})
        for name in ("claude_gateway_request_seconds", "claude_gateway_time_to_first_byte_seconds"):
            with self.subTest(name):
                self.assertEqual(found[name]["type"], "histogram")
                buckets = list(values(found[name], "_bucket").items())
                self.assertEqual(buckets[-1], (("+Inf",), 3))
                self.assertEqual([value for _, value in buckets], sorted(value for _, value in buckets))
                bounds = [float(labels[0]) for labels, _ in buckets]
                self.assertEqual(bounds, sorted(bounds))
                self.assertEqual(values(found[name], "_count"), {(): 3})
                self.assertGreater(values(found[name], "_sum")[()], 0)


if __name__ == "__main__":
    unittest.main()
