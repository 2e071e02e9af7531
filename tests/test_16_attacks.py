"""What attacks on long sessions have found: one test for each fault."""

import unittest

import claude_gateway as gw
from tests import support
from tests.running import JSON_TYPE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway

STREAM_HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
               b"Connection: close\r\n\r\n")
START = support.stream_events()[0]


class HoldTest(unittest.TestCase):

    def test_head_that_goes_before_its_body_tells_no_length(self):
        gate = support.Gate()

        def slow_then_cut(connection):
            connection.read_request()
            connection.send(STREAM_HEAD + START)
            gate.wait("the client to have the head")
            connection.close()

        with support.ScriptedUpstream(slow_then_cut, lambda connection: connection.serve()) as upstream:
            upstream.respond = lambda request: support.stream_response(support.stream_events())
            with running_gateway(provider(upstream, accounts=("a", "b")),
                                 stream={"hold_seconds": 0.1, "ping_seconds": 1}) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("POST", "/v1/messages", [JSON_TYPE], STREAM_MESSAGE)
                    answer = client.read_head()
                    gate.open()
                    client.read_body(answer)
                    self.assertIsNone(answer.header("content-length"))
                    self.assertEqual(answer.header("transfer-encoding"), "chunked")
                    self.assertTrue(answer.complete)
                    self.assertEqual(answer.body, b"".join(support.stream_events()))
                    client.request("GET", "/healthz")
                    self.assertEqual(client.read_response().json(), {"status": "ok"})


if __name__ == "__main__":
    unittest.main()
