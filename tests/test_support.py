"""A short test of what the other tests stand on."""

import json
import ssl
import tempfile
import threading
import unittest

from tests import support


class GateTest(unittest.TestCase):
    def test_gate_orders_two_threads(self):
        gate = support.Gate()
        seen = []
        thread = threading.Thread(target=lambda: (gate.wait("main"), seen.append(gate.is_open)))
        thread.start()
        self.assertFalse(gate.is_open)
        gate.open()
        thread.join(support.WAIT_SECONDS)
        self.assertEqual([True], seen)

    def test_waits_name_what_they_awaited(self):
        bound = support.WAIT_SECONDS
        self.addCleanup(setattr, support, "WAIT_SECONDS", bound)
        support.WAIT_SECONDS = 0.05
        with self.assertRaisesRegex(AssertionError, "the moon"):
            support.Gate().wait("the moon")
        with self.assertRaisesRegex(AssertionError, "the sun"):
            support.eventually(lambda: False, "the sun")

    def test_fake_clock(self):
        clock = support.FakeClock()
        start, wall = clock.monotonic(), clock.time()
        clock.sleep(2)
        clock.advance(1)
        self.assertEqual((3, 3, [2]), (clock.monotonic() - start, clock.time() - wall, clock.sleeps))


class BuildersTest(unittest.TestCase):
    def test_every_split(self):
        splits = list(support.every_split(b"abc"))
        self.assertEqual([[b"abc"], [b"a", b"bc"], [b"ab", b"c"], [b"a", b"b", b"c"]], splits)
        self.assertEqual([[b"ab"], [b"a", b"b"]], list(support.every_split(b"ab")))

    def test_stream_events_join_to_the_text(self):
        events = [parse_event(event) for event in support.stream_events(" Grüße an  alle ")]
        words = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
        self.assertEqual(" Grüße an  alle ", "".join(words))
        self.assertEqual("message_start", events[0]["type"])
        self.assertEqual("end_turn", events[-2]["delta"]["stop_reason"])
        self.assertEqual("message_stop", events[-1]["type"])

    def test_tool_use_events_join_to_the_input(self):
        events = [parse_event(event) for event in support.tool_use_events("Read", {"file_path": "/tmp/ä"})]
        pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
        self.assertEqual({"file_path": "/tmp/ä"}, json.loads("".join(pieces)))
        self.assertEqual("tool_use", events[-2]["delta"]["stop_reason"])


def parse_event(event):
    name, data = event.decode("utf-8").rstrip("\n").split("\n")
    parsed = json.loads(data[len("data: "):])
    assert name == "event: " + parsed["type"] and event.endswith(b"\n\n")
    return parsed


class UpstreamTest(unittest.TestCase):
    def test_keep_alive_with_default_answer(self):
        with support.ScriptedUpstream() as upstream:
            with support.RawClient(upstream.port) as client:
                for number in range(3):
                    client.request("POST", "/v1/messages?n=%d" % number, [("X-Ab", "c")], b"{}")
                    self.assertEqual(support.message(), client.read_response().json())
            requests = upstream.wait_requests(3)
            self.assertEqual(1, upstream.connections_count)
        self.assertEqual("/v1/messages?n=2", requests[2].target)
        self.assertEqual(("X-Ab", "c"), requests[2].headers[1])
        self.assertEqual("c", requests[2].header("x-aB"))
        self.assertEqual({}, requests[2].json())
        self.assertEqual([], upstream.errors)

    def test_scripts_in_order_then_respond(self):
        def script(text):
            def run(connection):
                connection.read_request()
                connection.send(support.json_response(support.message(text)))
            return run

        def respond(request):
            return support.json_response(support.error_body("overloaded_error", "x"), 529)

        with support.ScriptedUpstream(script("one"), script("two"), respond=respond) as upstream:
            answers = [support.exchange(upstream.port, "GET", "/") for _ in range(3)]
            self.assertEqual([0, 1, 2], [request.connection for request in upstream.wait_requests(3)])
        self.assertEqual("one", answers[0].json()["content"][0]["text"])
        self.assertEqual("two", answers[1].json()["content"][0]["text"])
        self.assertEqual((529, "req_upstream_1"), (answers[2].status, answers[2].header("Request-Id")))

    def test_chunked_answer_step_by_step(self):
        go_on = support.Gate()
        events = support.stream_events()

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(events[0]))
            go_on.wait("the first chunk was read")
            for event in events[1:]:
                connection.send(support.chunk(event))
            connection.send(support.LAST_CHUNK)

        with support.ScriptedUpstream(script) as upstream, support.RawClient(upstream.port) as client:
            client.request("POST", "/v1/messages", body=b"{}")
            head = client.read_head()
            self.assertEqual(events[0], client.read_chunk())
            go_on.open()
            client.read_body(head)
            self.assertTrue(head.complete)
            self.assertEqual(events[1:], head.chunks)
            self.assertTrue(client.at_eof())

    def test_every_split_of_a_chunked_answer_reads_alike(self):
        pieces_to_send = list(support.every_split(support.stream_response([b"one", b"two" * 6])))

        def script_for(pieces):
            def run(connection):
                connection.read_request()
                for piece in pieces:
                    connection.send(piece)
            return run

        with support.ScriptedUpstream(*map(script_for, pieces_to_send)) as upstream:
            for _ in pieces_to_send:
                answer = support.exchange(upstream.port, "GET", "/")
                self.assertEqual(([b"one", b"two" * 6], True), (answer.chunks, answer.complete))

    def test_chunked_request_body(self):
        body = support.chunk(b"ab") + support.chunk(b"c") + support.LAST_CHUNK
        with support.ScriptedUpstream() as upstream:
            support.exchange(upstream.port, "POST", "/", [("Transfer-Encoding", "chunked")], body)
            request = upstream.wait_requests(1)[0]
        self.assertEqual((b"abc", [b"ab", b"c"]), (request.body, request.chunks))

    def test_the_ends_of_a_connection_differ(self):
        def cut(end):
            def run(connection):
                connection.read_request()
                connection.send(support.SSE_HEAD + support.chunk(b"part"))
                sent.wait("the part was read")
                getattr(connection, end)()
            return run

        for end, expected in (("close", "eof"), ("reset", "reset")):
            sent = support.Gate()
            with support.ScriptedUpstream(cut(end)) as upstream, support.RawClient(upstream.port) as client:
                client.request("GET", "/")
                client.read_head()
                self.assertEqual(b"part", client.read_chunk())
                sent.open()
                self.assertIsNone(client.read_chunk())
                self.assertEqual(expected, client.ended_by)

    def test_the_client_leaving_is_seen(self):
        for end, expected in (("close", "eof"), ("reset", "reset")):
            ends = []

            def script(connection):
                connection.read_request()
                ends.append(connection.wait_closed("the client left"))

            with support.ScriptedUpstream(script) as upstream:
                client = support.RawClient(upstream.port)
                client.request("GET", "/")
                upstream.wait_requests(1)
                getattr(client, end)()
            self.assertEqual([expected], ends)

    def test_close_delimited_answer(self):
        def respond(request):
            return b"HTTP/1.1 200 OK\r\n\r\nto the end"

        with support.ScriptedUpstream(respond=respond) as upstream:
            with support.RawClient(upstream.port) as client:
                client.request("GET", "/")
                answer = client.read_response()
        self.assertEqual((b"to the end", True), (answer.body, answer.complete))

    def test_a_failing_script_fails_the_test(self):
        def script(connection):
            raise ValueError("script is wrong")

        with self.assertRaisesRegex(AssertionError, "script is wrong"):
            with support.ScriptedUpstream(script) as upstream:
                with support.RawClient(upstream.port) as client:
                    self.assertTrue(client.at_eof())

    def test_a_client_which_leaves_amid_a_request_is_no_failure(self):
        with support.ScriptedUpstream() as upstream:
            with support.RawClient(upstream.port) as client:
                client.send(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
            support.eventually(lambda: upstream.errors, "the upstream to notice")
        self.assertIsInstance(upstream.errors[0], support.EndedEarly)

    def test_many_connections_and_no_descriptor_left(self):
        before = support.count_open_descriptors()
        with support.ScriptedUpstream() as upstream:
            clients = [support.RawClient(upstream.port) for _ in range(200)]
            for client in clients:
                client.request("GET", "/")
            for client in clients:
                self.assertEqual(200, client.read_response().status)
            self.assertEqual(200, upstream.open_connections_count)
            for client in clients:
                client.close()
        self.assertEqual(0, upstream.open_connections_count)
        self.assertEqual(before, support.count_open_descriptors())


class TlsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        try:
            cls.tls = support.make_tls_material(cls.directory.name)
        except BaseException:
            cls.directory.cleanup()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def test_request_over_tls(self):
        with support.ScriptedUpstream(tls=self.tls) as upstream:
            self.assertTrue(upstream.url.startswith("https://127.0.0.1:"))
            for host in ("127.0.0.1", "localhost"):
                with support.RawClient(upstream.port, host, self.tls.client_context()) as client:
                    for _ in range(2):
                        client.request("GET", "/")
                        self.assertEqual(200, client.read_response().status)
            self.assertEqual((2, 4), (upstream.handshakes_count, len(upstream.requests)))

    def test_ends_over_tls(self):
        def script_for(end):
            def run(connection):
                connection.read_request()
                getattr(connection, end)()
            return run

        ends = ["close", "close_without_notify", "reset"]
        with support.ScriptedUpstream(*map(script_for, ends), tls=self.tls) as upstream:
            for end in ends:
                with support.RawClient(upstream.port, context=self.tls.client_context()) as client:
                    client.request("GET", "/")
                    self.assertTrue(client.at_eof())
                    # Over TLS some Pythons report RST as a ragged EOF.
                    self.assertIn(client.ended_by, ("eof", "reset") if end == "reset" else ("eof",))

    def test_the_client_leaving_over_tls_is_seen(self):
        ends = []

        def script(connection):
            connection.read_request()
            ends.append(connection.wait_closed("the client left"))

        with support.ScriptedUpstream(script, tls=self.tls) as upstream:
            with support.RawClient(upstream.port, context=self.tls.client_context()) as client:
                client.request("GET", "/")
                upstream.wait_requests(1)
        self.assertIn(ends, (["eof"], ["reset"]))

    def test_an_idle_tls_connection_does_not_hold_the_exit(self):
        with support.ScriptedUpstream(tls=self.tls) as upstream:
            client = support.RawClient(upstream.port, context=self.tls.client_context())
            client.request("GET", "/")
            client.read_response()
        self.assertTrue(client.at_eof())
        client.close()

    def test_a_refused_certificate_is_no_failure(self):
        with support.ScriptedUpstream(tls=self.tls) as upstream:
            with self.assertRaises(ssl.SSLError):
                support.RawClient(upstream.port, context=ssl.create_default_context())
            support.eventually(lambda: upstream.errors, "the upstream to notice")
        self.assertEqual(0, upstream.handshakes_count)


if __name__ == "__main__":
    unittest.main()
