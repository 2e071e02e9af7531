"""curl, with the requests a README shows and the two forms of body only curl sends."""

import json
import os
import subprocess
import unittest

from tests.clients import harness
from tests.support import LAST_CHUNK
from tests.support import SSE_HEAD
from tests.support import Gate
from tests.support import chunk
from tests.support import json_response
from tests.support import message
from tests.support import stream_events
from tests.support import stream_response

QUESTION = b'{"model": "claude-opus-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}'
STREAMED_QUESTION = QUESTION[:-1] + b', "stream": true}'

# curl sends Expect: 100-continue from 1 MiB on.
LARGE_TEXT = "x" * (1024 * 1024 + 1)
LARGE_QUESTION = QUESTION.replace(b'"hi"', b'"%s"' % LARGE_TEXT.encode())

KEY_HEADERS = (
    "x-api-key: %s",
    "Authorization: Bearer %s",
    "Authorization: %s",
    "x-goog-api-key: %s",
)


class CurlTest(harness.ClientTest):
    def setUp(self):
        super().setUp()
        self.curl_path = harness.on_path("curl")

    def command(self, *arguments):
        # 20 seconds are far beyond the one second curl waits for a 100 Continue that does not come.
        return [self.curl_path, "--silent", "--show-error", "--max-time", "20"] + list(arguments)

    def curl(self, *arguments):
        """The home is empty, so no ~/.curlrc plays in; the exit code covers the framing of the answer."""
        finished = harness.run(self.command(*arguments), harness.bare_environment(self.folder), self.folder)
        self.assertEqual(0, finished.code, finished)
        return finished

    def body_file(self, body):
        path = os.path.join(self.folder, "question.json")
        with open(path, "wb") as file:
            file.write(body)
        return "@" + path

    def post(self, url, body, *arguments, key_header=KEY_HEADERS[0] % harness.GATEWAY_KEY):
        headers = ["-H", key_header, "-H", "anthropic-version: 2023-06-01", "-H", "content-type: application/json"]
        return self.curl(url, *headers, "--data-binary", self.body_file(body), *arguments)

    def status(self, *arguments):
        return self.curl("-o", os.devnull, "-w", "%{http_code}", *arguments).text

    def assert_upstream_got(self, body):
        self.assertEqual([body], [r.body for r in self.upstream.requests])
        self.assertEqual("/v1/messages", self.upstream.requests[0].target)
        self.assert_only_the_account_was_shown()

    def test_json(self):
        answer = json.dumps(message("hi"), indent=3).encode()
        gateway = self.gateway_before(json_response(answer))
        finished = self.post(gateway + "/v1/messages", QUESTION)
        self.assertEqual(answer, finished.out)
        self.assert_upstream_got(QUESTION)

    def test_answer_names_provider_and_account(self):
        gateway = self.gateway_before(json_response(message("hi")))
        head = self.post(gateway + "/v1/messages", QUESTION, "-D", "-", "-o", os.devnull).text.lower()
        self.assertIn("x-gateway-provider: anthropic", head)
        self.assertIn("x-account-email: work", head)

    def test_stream(self):
        events = stream_events("one two three")
        gateway = self.gateway_before(stream_response(events))
        finished = self.post(gateway + "/v1/messages", STREAMED_QUESTION, "-N")
        self.assertEqual(b"".join(events), finished.out)
        self.assert_upstream_got(STREAMED_QUESTION)

    def test_stream_is_not_held_back(self):
        """The upstream's second half waits until curl has shown the first."""
        shown = Gate()
        events = stream_events("one two three")
        first, second = b"".join(events[:4]), b"".join(events[4:])

        def script(connection):
            connection.read_request()
            connection.send(SSE_HEAD + chunk(first))
            shown.wait("curl to show the first half")
            connection.send(chunk(second) + LAST_CHUNK)

        url = self.gateway_before(script=script) + "/v1/messages"
        headers = ["-H", KEY_HEADERS[0] % harness.GATEWAY_KEY, "-H", "content-type: application/json"]
        command = self.command(url, *headers, "-N", "--data-binary", self.body_file(STREAMED_QUESTION))
        with subprocess.Popen(command, env=harness.bare_environment(self.folder), stdout=subprocess.PIPE) as curl:
            # Neither read can wait for ever: curl ends by itself.
            self.assertEqual(first, curl.stdout.read(len(first)))
            shown.open()
            self.assertEqual(second, curl.stdout.read())
        self.assertEqual(0, curl.returncode)
        self.assert_upstream_got(STREAMED_QUESTION)

    def test_refusal_of_the_upstream_keeps_its_bytes(self):
        refusal = b'{"type":"error",  "error":{"type":"invalid_request_error","message":"nein \\u2013 no"}}\n'
        gateway = self.gateway_before(json_response(refusal, status=400))
        finished = self.post(gateway + "/v1/messages", QUESTION, "-w", "%{http_code}")
        self.assertEqual(refusal + b"400", finished.out)

    def test_every_form_of_key_is_taken(self):
        gateway = self.gateway_before(*[json_response(message("hi")) for _ in KEY_HEADERS])
        for form in KEY_HEADERS:
            with self.subTest(form):
                finished = self.post(gateway + "/v1/messages", QUESTION, key_header=form % harness.GATEWAY_KEY)
                self.assertEqual("hi", json.loads(finished.out)["content"][0]["text"])
        self.assertEqual(len(KEY_HEADERS), len(self.upstream.requests))
        self.assert_only_the_account_was_shown()

    def test_models_with_every_form_of_key(self):
        """Strict, because a list that is open to everybody would prove nothing about the key."""
        models = self.gateway_before(mode="strict") + "/v1/models"
        for form in KEY_HEADERS:
            with self.subTest(form):
                listed = json.loads(self.curl(models, "-H", form % harness.GATEWAY_KEY).out)
                self.assertEqual([harness.LISTED_MODEL], [model["id"] for model in listed["data"]])
                self.assertEqual("401", self.status(models, "-H", form % "sk-wrong"))
        self.assertEqual("401", self.status(models))

    def test_healthz_needs_no_key(self):
        finished = self.curl(self.gateway_before() + "/healthz")
        self.assertEqual({"status": "ok"}, json.loads(finished.out))

    def test_lists_of_the_source_contracts(self):
        """CC-Relay's and Antigravity's documents: no key, an OpenAI-shaped list, ids in data[].id."""
        base_url = self.gateway_before()
        for path in ("/v1/models", "/v1/models/claude"):
            listed = json.loads(self.curl(base_url + path).out)
            self.assertEqual("list", listed["object"])
            self.assertEqual(
                (harness.LISTED_MODEL, "model", "anthropic", "anthropic", int),
                tuple(listed["data"][0][key] for key in ("id", "object", "owned_by", "provider"))
                + (type(listed["data"][0]["created"]),),
            )
        providers = json.loads(self.curl(base_url + "/v1/providers").out)
        self.assertEqual("list", providers["object"])
        self.assertEqual(
            {"name": "anthropic", "type": "anthropic", "base_url": self.upstream.url,
             "models": [harness.LISTED_MODEL], "active": True},
            providers["data"][0],
        )
        self.assertEqual({"status": "ok"}, json.loads(self.curl(base_url + "/health").out))

    def test_refusals_of_the_source_contracts(self):
        """CC-Relay's document: the words and types of 401 and 400."""
        url = self.gateway_before() + "/v1/messages"
        missing = json.loads(self.curl(url, "--data", "{}").out)
        self.assertEqual(
            {"type": "authentication_error", "message": "missing x-api-key header"}, missing["error"]
        )
        told = json.loads(self.post(url, b'{"model": "claude-sonnet-4-6"}').out)
        self.assertEqual(
            {"type": "invalid_request_error", "message": "Missing required field: messages"}, told["error"]
        )

    def test_claude_api_prefix_with_a_bare_key(self):
        """The "Claude client" document: no anthropic-version, no max_tokens, the bare key."""
        body = (
            b'{"messages":[{"role":"user","content":"hi"}],"model":"claude-sonnet-4-20250514","stream":true,'
            b'"system":[{"type":"text","text":"Answer."}]}'
        )
        events = stream_events("one two")
        gateway = self.gateway_before(stream_response(events))
        finished = self.curl(
            "--location", "--request", "POST", gateway + "/claude_api/v1/messages",
            "--header", "Content-Type: application/json", "--header", "anthropic-beta: test",
            "--header", "Authorization: " + harness.GATEWAY_KEY, "--data-raw", body.decode(),
        )
        self.assertEqual(b"".join(events), finished.out)
        self.assert_upstream_got(body)
        sent = self.upstream.requests[0]
        self.assertEqual(("2023-06-01", "test"), (sent.header("anthropic-version"), sent.header("anthropic-beta")))

    def test_start_up_probe(self):
        """curl -I complains of any body that follows the head."""
        head = self.curl("-I", self.gateway_before() + "/api/hello").text
        self.assertIn(" 200", head.splitlines()[0])

    def test_large_body_is_invited(self):
        gateway = self.gateway_before(json_response(message("hi")))
        finished = self.post(gateway + "/v1/messages", LARGE_QUESTION, "--verbose")
        self.assertIn(b"> Expect: 100-continue", finished.err)
        self.assertIn(b"< HTTP/1.1 100 Continue", finished.err)
        self.assert_upstream_got(LARGE_QUESTION)
        self.assertNotIn("expect", self.upstream_names())

    def test_large_body_with_a_wrong_key_is_refused_instead_of_invited(self):
        url = self.gateway_before() + "/v1/messages"
        finished = self.post(url, LARGE_QUESTION, "--verbose", key_header="x-api-key: sk-wrong")
        self.assertIn(b"< HTTP/1.1 401", finished.err)
        self.assertNotIn(b"100 Continue", finished.err)
        self.assertEqual([], self.upstream.requests)

    def test_chunked_upload(self):
        gateway = self.gateway_before(json_response(message("hi")))
        finished = self.post(
            gateway + "/v1/messages", LARGE_QUESTION, "-H", "Transfer-Encoding: chunked", "--verbose"
        )
        self.assertIn(b"> Transfer-Encoding: chunked", finished.err)
        self.assertNotIn(b"> Content-Length", finished.err)
        self.assert_upstream_got(LARGE_QUESTION)

    def upstream_names(self):
        return [name.lower() for name, value in self.upstream.requests[0].headers]


if __name__ == "__main__":
    unittest.main()
