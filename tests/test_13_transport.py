"""Section 13: the upstream side of the wire, against a scripted upstream."""

import os
import select
import socket
import ssl
import tempfile
import threading
import time
import unittest
from unittest import mock

import claude_gateway as gw
from tests import shim
from tests import support

QUICK = gw.Timeouts(connect_seconds=5, first_byte_seconds=5, idle_seconds=5, client_seconds=5,
                    keepalive_seconds=5, shutdown_seconds=0)


def provider_at(url, **settings):
    """A Provider, as the configuration makes it."""
    settings = dict({"name": "anthropic", "base_url": url}, **settings)
    return gw.Config.from_dict({"providers": [settings]}).providers[0]


def call_to(provider, method="POST", body=b"{}", timeouts=QUICK, watch=None, target="/v1/messages"):
    """An UpstreamCall with the headers that it needs and no more."""
    pairs = [("Host", provider.base_url.authority), ("Content-Length", str(len(body)))]
    head = gw.UpstreamHead(method, provider, target, gw.header_lines(pairs))
    return gw.UpstreamCall(head, body, timeouts, watch or gw.Watch())


def read_all(response):
    """A response's body, and its reads as they came."""
    reads = list(iter(response.read, b""))
    return b"".join(reads), reads


class TransportCase(unittest.TestCase):

    def setUp(self):
        self.transport = gw.Transport(time.monotonic)
        self.addCleanup(self.transport.close)

    def get(self, upstream, **settings):
        """One call, read to its end: (status, body)."""
        response = self.transport.send(call_to(provider_at(upstream.url), **settings))
        try:
            return response.status, read_all(response)[0]
        finally:
            response.close()


class LargeBodyTest(TransportCase):

    def test_is_not_copied_and_arrives_behind_its_head(self):
        for size, pieces in ((gw.READ_BYTES, 1), (gw.READ_BYTES + 1, 2)):
            body = bytes(size)
            sent = []
            with self.subTest(size), support.ScriptedUpstream() as upstream, \
                    mock.patch.object(gw.Wire, "send", autospec=True,
                                      side_effect=self.noted(gw.Wire.send, sent)):
                self.assertEqual(self.get(upstream, body=body)[0], 200)
                self.assertEqual(upstream.requests[0].body, body)
            self.assertEqual(len(sent), pieces)
            self.assertEqual(sent[-1] is body, pieces == 2)

    def noted(self, send, sent):
        def noting(wire, data, seconds):
            sent.append(data)
            return send(wire, data, seconds)
        return noting


class LeavingWatch(gw.Watch):
    """A client that can be made to leave, by closing the other end of a pair."""

    def __init__(self):
        self.near, self.far = socket.socketpair()

    def fileno(self):
        return self.near.fileno()

    def gone(self):
        return self.near.recv(1, socket.MSG_PEEK) == b""

    def leave(self):
        self.far.close()

    def close(self):
        self.near.close()
        self.far.close()


class SendTest(TransportCase):

    def test_head_and_body_arrive_as_given(self):
        with support.ScriptedUpstream() as upstream:
            provider = provider_at(upstream.url)
            pairs = [("hOsT", "x.example"), ("X-Twice", "1"), ("X-Twice", "2"),
                     ("Content-Length", "3")]
            head = gw.UpstreamHead("POST", provider, "/v1/x?q=%2F", gw.header_lines(pairs))
            self.transport.send(gw.UpstreamCall(head, b"abc", QUICK)).close()
            request = upstream.wait_requests(1)[0]
        self.assertEqual((request.method, request.target, request.body),
                         ("POST", "/v1/x?q=%2F", b"abc"))
        self.assertEqual(request.headers, pairs)

    def test_large_body_to_an_upstream_that_reads_late(self):
        gate, body = support.Gate(), os.urandom(1 << 16) * 100

        def late(connection):
            gate.wait("the sender to be stopped by a full socket")
            connection.read_request()
            connection.send(support.json_response())

        with support.ScriptedUpstream(late) as upstream:
            timer = threading.Timer(0.1, gate.open)
            timer.start()
            self.assertEqual(self.get(upstream, body=body)[0], 200)
            self.assertEqual(upstream.requests[0].body, body)
            timer.join()

    def test_early_answer_to_a_body_that_is_not_read(self):
        def refuse(connection):
            connection.read_head()
            connection.send(support.json_response({"e": 1}, status=413,
                                                  headers=[("connection", "close")]))
            connection.half_close()
            connection.wait_closed("the gateway to give up the connection")

        with support.ScriptedUpstream(refuse) as upstream:
            self.assertEqual(self.get(upstream, body=b"x" * (32 << 20))[0], 413)
        self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_what_is_owed_the_rest_of_a_body_takes_no_other_request(self):
        gate = support.Gate()

        def refuse(connection):
            connection.read_head()
            connection.send(support.json_response({"e": 1}, status=413,
                                                  headers=[("connection", "keep-alive")]))
            gate.wait("the answer to have been read")  # who read on would be sent all of it
            connection.wait_closed("the gateway to give up the connection")

        with support.ScriptedUpstream(refuse) as upstream:
            self.assertEqual(self.get(upstream, body=b"x" * (32 << 20))[0], 413)
            gate.open()
        self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_interim_answer_does_not_end_a_stopped_upload(self):
        """An upstream that says 102 before it reads on wants the rest."""
        gate = support.Gate()

        def script(connection):
            head = connection.read_head()
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            gate.wait("the sender to have seen it")
            connection.read_body(head)
            connection.send(support.json_response())

        timer = threading.Timer(0.2, gate.open)
        with support.ScriptedUpstream(script) as upstream:
            timer.start()
            self.assertEqual(self.get(upstream, body=b"x" * (20 << 20))[0], 200)
            timer.join()
            self.assertEqual(len(upstream.requests[0].body), 20 << 20)

    def test_interim_answers_without_end_end_a_stopped_upload(self):
        for piece in (b"HTTP/1.1 102 Processing\r\n\r\n" * 400, b"HTTP/1.1 102 " + b"x" * 65536):
            def script(connection):
                connection.read_head()
                try:
                    while True:
                        connection.send(piece)
                except (OSError, support.EndedEarly):
                    pass  # given up, as it should be

            with self.subTest(piece[:30]), support.ScriptedUpstream(script) as upstream:
                began = time.monotonic()
                self.assertRaises(gw.UpstreamMalformed, self.get, upstream, body=b"x" * (20 << 20))
                self.assertLess(time.monotonic() - began, 3)

    def test_redirect_is_an_answer_like_any_other(self):
        moved = support.json_response({}, status=307, headers=[("location", "http://127.0.0.1:1/")])
        with support.ScriptedUpstream(respond=lambda request: moved) as upstream:
            self.assertEqual(self.get(upstream)[0], 307)
            self.assertEqual(len(upstream.requests), 1)


class FramingTest(TransportCase):
    """The three framings of RFC 9112 section 6.3, in every split of the bytes."""

    def exchange(self, pieces, then="close", **settings):
        """What a call makes of an answer that is sent in these pieces."""
        def script(connection):
            if connection.read_request() is None:
                return
            for piece in pieces:
                connection.send(piece)
            if then == "reset":
                connection.reset()

        with support.ScriptedUpstream(script) as upstream:
            return self.get(upstream, **settings)

    def test_answers_in_every_split(self):
        answers = {
            "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                       b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nA: b\r\n\r\n",
            "until close": b"HTTP/1.0 200 OK\r\n\r\nhello",
            "after an interim one": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        }
        for name, answer in answers.items():
            splits = list(support.every_split(answer))
            # The whole, the byte-by-byte one and a third of the two-piece ones:
            # each costs a connection.
            for pieces in [splits[0], splits[-1]] + splits[1:-1:3]:
                with self.subTest(name, first=pieces[0]):
                    self.assertEqual(self.exchange(pieces), (200, b"hello"))

    def test_no_body_for_head_204_and_304(self):
        table = [("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
                 ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
                 ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304)]
        for method, answer, status in table:
            with self.subTest(status):
                self.assertEqual(self.exchange([answer], method=method), (status, b""))

    def test_broken_answers_never_look_whole(self):
        head = b"HTTP/1.1 200 OK\r\n"
        table = [
            ("short length", head + b"Content-Length: 6\r\n\r\nhello", gw.UpstreamBroke),
            ("no last chunk", head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
             gw.UpstreamBroke),
            ("half a chunk", head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", gw.UpstreamBroke),
            ("bad size", head + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
             gw.UpstreamBroke),
            ("half a head", head + b"Content-Le", gw.UpstreamMalformed),
            ("no HTTP", b"SSH-2.0-OpenSSH_9\r\n\r\n", gw.UpstreamMalformed),
            ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n", gw.UpstreamMalformed),
            ("two lengths", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
             gw.UpstreamMalformed),
            ("odd coding", head + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
             gw.UpstreamMalformed),
            ("no colon", head + b"Content-Length 5\r\n\r\nhello", gw.UpstreamMalformed),
            ("endless 1xx", b"HTTP/1.1 100 Continue\r\n\r\n" * 20, gw.UpstreamMalformed),
            ("switching", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", gw.UpstreamMalformed),
            ("huge head", head + b"X: " + b"x" * (gw.MAX_RESPONSE_HEAD_BYTES + 10),
             gw.UpstreamMalformed),
            ("nothing", b"", gw.UpstreamClosed),
        ]
        for name, answer, error in table:
            with self.subTest(name):
                with self.assertRaises(error) as caught:
                    self.exchange([answer] if answer else [])
                self.assertIs(type(caught.exception), error)
        self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_reset_within_a_body(self):
        pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel"]
        with self.assertRaises(gw.UpstreamBroke):
            self.exchange(pieces, then="reset")

    def test_one_read_is_one_piece(self):
        """What the upstream sends at once comes out at once, before it sends more."""
        gate = support.Gate()

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"first"))
            gate.wait("the first piece to be read")
            connection.send(support.chunk(b"second") + support.LAST_CHUNK)
            connection.wait_closed("the pooled connection to be closed")

        with support.ScriptedUpstream(script) as upstream:
            response = self.transport.send(call_to(provider_at(upstream.url)))
            self.assertEqual(response.read(), b"first")
            gate.open()
            self.assertEqual(response.read(), b"second")
            self.assertEqual(response.read(), b"")
            response.close()
            self.transport.close()


class CompressionTest(TransportCase):

    def test_codings_are_undone(self):
        import gzip
        import zlib
        raw = zlib.compressobj(9, zlib.DEFLATED, -15)
        table = {"gzip": gzip.compress(b"hello"), "deflate": zlib.compress(b"hello"),
                 "Deflate": raw.compress(b"hello") + raw.flush()}
        for coding, data in table.items():
            answer = support.json_response(data, headers=[("content-encoding", coding)])
            with self.subTest(coding):
                with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
                    self.assertEqual(self.get(upstream), (200, b"hello"))

    def test_several_members_and_single_bytes(self):
        import gzip
        import zlib
        raw = zlib.compressobj(9, zlib.DEFLATED, -15)
        table = [("gzip", gzip.compress(b"hel") + gzip.compress(b"lo")),
                 ("deflate", raw.compress(b"hello") + raw.flush())]
        for coding, data in table:
            def script(connection):
                connection.read_request()
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n"
                                b"Content-Length: %d\r\n\r\n" % (coding.encode(), len(data)))
                for byte in data:
                    connection.send(bytes([byte]))
                connection.serve()

            with self.subTest(coding), support.ScriptedUpstream(script) as upstream:
                self.assertEqual(self.get(upstream), (200, b"hello"))
                self.transport.close()
                self.transport = gw.Transport(time.monotonic)
                self.addCleanup(self.transport.close)

    def test_bomb_comes_out_in_bounded_pieces(self):
        import gzip
        size = 50 * gw.MAX_INFLATED_STEP_BYTES
        answer = support.json_response(gzip.compress(bytes(size)),
                                       headers=[("content-encoding", "gzip")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            response = self.transport.send(call_to(provider_at(upstream.url)))
            sizes = [len(piece) for piece in iter(response.read, b"")]
            response.close()
        self.assertEqual(sum(sizes), size)
        self.assertLessEqual(max(sizes), gw.MAX_INFLATED_STEP_BYTES)

    def test_bad_data_is_a_broken_answer(self):
        answer = support.json_response(b"no gzip", headers=[("content-encoding", "gzip")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with self.assertRaises(gw.UpstreamBroke):
                self.get(upstream)

    def test_cut_compressed_data_is_a_broken_answer(self):
        import gzip
        answer = support.json_response(gzip.compress(b"hello" * 100)[:-12],
                                       headers=[("content-encoding", "gzip")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with self.assertRaises(gw.UpstreamBroke):
                self.get(upstream)


class PoolTest(TransportCase):

    def test_connection_is_reused(self):
        with support.ScriptedUpstream() as upstream:
            for _ in range(5):
                self.assertEqual(self.get(upstream)[0], 200)
            self.assertEqual(upstream.connections_count, 1)
            self.assertEqual(self.transport.connections(), {"active": 0, "idle": 1})
            self.transport.close()

    def test_reused_when_who_made_the_call_before_is_gone_and_closed(self):
        """Its descriptor stands in the wire's poller still: select() says nothing but an error."""
        with support.ScriptedUpstream() as upstream:
            for watch in [LeavingWatch() for _ in range(3)]:
                self.addCleanup(watch.close)
                self.assertEqual(self.get(upstream, watch=watch)[0], 200)
                watch.close()
            self.assertEqual(upstream.connections_count, 1)
            self.transport.close()

    def test_parallel_calls_take_connections_of_their_own(self):
        with support.ScriptedUpstream() as upstream:
            calls = [self.transport.send(call_to(provider_at(upstream.url))) for _ in range(3)]
            self.assertEqual(self.transport.connections()["active"], 3)
            for response in calls:
                read_all(response)
                response.close()
            self.assertEqual(self.transport.connections(), {"active": 0, "idle": 3})
            self.transport.close()

    def test_not_reused_when_the_upstream_says_close(self):
        answer = support.json_response(headers=[("Connection", "close")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            self.get(upstream)
            self.get(upstream)
            self.assertEqual(upstream.connections_count, 2)

    def test_not_reused_when_left_unread(self):
        with support.ScriptedUpstream() as upstream:
            self.transport.send(call_to(provider_at(upstream.url))).close()
            self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_not_reused_when_more_came_than_announced(self):
        answer = support.json_response(headers=[("content-length", "2")])
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            self.get(upstream)
            self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_one_on_which_more_came_after_the_answer_is_not_used(self):
        """However soon: it would be taken for the answer to the next request."""
        stray = (support.json_response(b"STRAY"),
                 b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        for index, late in enumerate(stray):
            with self.subTest(index):
                near, far = socket.socketpair()
                self.addCleanup(far.close)
                near.setblocking(False)
                clock = support.FakeClock()
                pool = gw.ConnectionPool(clock.monotonic)
                self.addCleanup(pool.close)
                destination = pool.destination("http", "127.0.0.1", 1, None, None)
                wire = gw.Wire(near, clock.monotonic)
                wire.destination = destination
                pool.end(wire, True)
                self.assertIs(pool.take(destination), wire)
                pool.end(wire, True)
                far.sendall(late)
                self.assertIsNone(pool.take(destination))

    def test_idle_one_that_was_closed_is_not_used(self):
        def once(connection):
            connection.read_request()
            connection.send(support.json_response())

        with support.ScriptedUpstream(once, once) as upstream:
            self.get(upstream)
            upstream.connections[0].closed or support.eventually(
                lambda: upstream.open_connections_count == 0, "the upstream to close")
            self.assertEqual(self.get(upstream)[0], 200)
            self.assertEqual(upstream.connections_count, 2)

    def test_stale_one_is_replaced_once_unnoticed(self):
        """Closed by the upstream just when the second request is on its way."""
        def closes_at_second(how):
            def script(connection):
                connection.read_request()
                connection.send(support.json_response())
                connection.read_request()
                getattr(connection, how)()
            return script

        for how in ("close", "reset"):
            with self.subTest(how), support.ScriptedUpstream(closes_at_second(how)) as upstream:
                self.get(upstream)
                self.assertEqual(self.get(upstream)[0], 200)
                self.assertEqual([request.connection for request in upstream.requests], [0, 0, 1])

    def test_fresh_one_that_closes_is_not_tried_again(self):
        def closes(connection):
            connection.read_request()

        with support.ScriptedUpstream(closes, closes) as upstream:
            with self.assertRaises(gw.UpstreamClosed):
                self.get(upstream)
            self.assertEqual(upstream.connections_count, 1)

    def test_half_an_answer_on_a_reused_one_is_not_tried_again(self):
        def script(connection):
            connection.read_request()
            connection.send(support.json_response())
            connection.read_request()
            connection.send(b"HTTP/1.1 20")

        with support.ScriptedUpstream(script) as upstream:
            self.get(upstream)
            with self.assertRaises(gw.UpstreamMalformed):
                self.get(upstream)
            self.assertEqual(upstream.connections_count, 1)

    def test_idle_too_long_is_not_used(self):
        clock = support.FakeClock()
        transport = gw.Transport(clock.monotonic)
        self.addCleanup(transport.close)
        with support.ScriptedUpstream() as upstream:
            for _ in range(2):
                response = transport.send(call_to(provider_at(upstream.url)))
                read_all(response)
                response.close()
                clock.advance(gw.POOL_IDLE_SECONDS + 1)
            self.assertEqual(upstream.connections_count, 2)
            transport.close()

    def test_what_begins_just_when_all_is_cancelled_is_ended_too(self):
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        pool, wire = gw.ConnectionPool(time.monotonic), gw.Wire(near, time.monotonic)
        pool.cancel_all()
        pool.begin(wire)
        self.assertTrue(wire.cancelled)
        self.assertEqual(wire.receive(5), b"")

    def test_pool_is_bounded(self):
        pool = gw.ConnectionPool(time.monotonic)
        pairs = [socket.socketpair() for _ in range(gw.POOL_IDLE_PER_ORIGIN + 5)]
        for near, _ in pairs:
            wire = gw.Wire(near, time.monotonic)
            wire.destination = pool.destination("http", "127.0.0.1", 1, None, None)
            pool.end(wire, True)
        self.assertEqual(pool.count(), gw.POOL_IDLE_PER_ORIGIN)
        pool.close()
        self.assertTrue(all(near.fileno() == -1 for near, _ in pairs))
        for _, far in pairs:
            far.close()


class TimeoutTest(TransportCase):

    def test_no_response_head_in_time(self):
        def silent(connection):
            connection.read_request()
            connection.wait_closed("the gateway to give up")

        with support.ScriptedUpstream(silent) as upstream:
            with self.assertRaises(gw.UpstreamSilent) as caught:
                self.get(upstream, timeouts=QUICK._replace(first_byte_seconds=0.05))
        self.assertEqual(caught.exception.status, 504)

    def test_a_dripping_head_does_not_extend_the_bound(self):
        def drips(connection):
            connection.read_request()
            never = threading.Event()
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                try:
                    connection.send(bytes([byte]))
                except OSError:
                    return
                never.wait(0.01)

        with support.ScriptedUpstream(drips) as upstream:
            began = time.monotonic()
            with self.assertRaises(gw.UpstreamSilent):
                self.get(upstream, timeouts=QUICK._replace(first_byte_seconds=0.2))
        self.assertLess(time.monotonic() - began, 3)

    def test_silence_within_an_answer(self):
        def stops(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"a"))
            connection.wait_closed("the gateway to give up")

        with support.ScriptedUpstream(stops) as upstream:
            with self.assertRaises(gw.UpstreamStalled):
                self.get(upstream, timeouts=QUICK._replace(idle_seconds=0.05))

    def test_connect_that_nobody_answers(self):
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):  # fill the queue: later connects are left unanswered
            filler = socket.socket()
            self.addCleanup(filler.close)
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        provider = provider_at("http://127.0.0.1:%d" % listener.getsockname()[1])
        with self.assertRaises(gw.UpstreamError) as caught:
            self.transport.send(call_to(provider, timeouts=QUICK._replace(
                connect_seconds=0.1, first_byte_seconds=0.1)))
        self.assertIn(type(caught.exception), (gw.UpstreamUnreached, gw.UpstreamSilent))

    def test_refused_and_unresolvable(self):
        for url, words in ((support.ScriptedUpstream.absent().url, "refused"),
                           ("http://no-such-host.invalid", "cannot resolve")):
            with self.subTest(url), self.assertRaises(gw.UpstreamUnreached) as caught:
                self.transport.send(call_to(provider_at(url)))
            self.assertIn(words, caught.exception.message)
            self.assertTrue(caught.exception.message.startswith("upstream connection failed: "))


class LeavingTest(TransportCase):
    """A client that leaves ends the upstream call, whatever it is doing."""

    def leaves_while(self, script, read_first=False, **settings):
        watch = LeavingWatch()
        self.addCleanup(watch.close)
        told = support.Gate()

        def leave():
            told.wait("the script to get there")
            watch.leave()

        leaver = threading.Thread(target=leave)
        leaver.start()
        with support.ScriptedUpstream(lambda connection: script(connection, told)) as upstream:
            began = time.monotonic()
            with self.assertRaises(gw.ClientGone):
                response = self.transport.send(call_to(provider_at(upstream.url), watch=watch,
                                                       **settings))
                try:
                    read_all(response)
                finally:
                    response.close()
            self.assertLess(time.monotonic() - began, 1)
        leaver.join()
        self.assertEqual(self.transport.connections(), {"active": 0, "idle": 0})

    def test_while_waiting_for_the_head(self):
        def script(connection, told):
            connection.read_request()
            told.open()
            connection.wait_closed("the call to be closed")

        self.leaves_while(script)

    def test_within_a_silent_stream(self):
        def script(connection, told):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"a"))
            told.open()
            connection.wait_closed("the call to be closed")

        self.leaves_while(script)

    def test_while_the_upstream_does_not_read(self):
        def script(connection, told):
            connection.read_head()
            told.open()
            connection.wait_closed("the call to be closed")

        self.leaves_while(script, body=b"x" * (32 << 20))

    def test_bytes_of_a_next_request_are_not_leaving(self):
        watch = LeavingWatch()
        self.addCleanup(watch.close)
        watch.far.sendall(b"GET / HTTP/1.1\r\n")

        def script(connection):
            connection.read_request()
            threading.Event().wait(0.05)  # long enough for the watch to be seen readable
            connection.send(support.json_response())

        with support.ScriptedUpstream(script) as upstream:
            self.assertEqual(self.get(upstream, watch=watch)[0], 200)

    @shim.needs("POLLRDHUP")
    @unittest.skipUnless(hasattr(select, "POLLRDHUP"), "only Linux tells (POLLRDHUP), and PyPy has no name for it")
    def test_leaving_behind_bytes_of_a_next_request(self):
        watch = LeavingWatch()
        self.addCleanup(watch.close)
        watch.far.sendall(b"GET / HTTP/1.1\r\n")

        def script(connection):
            connection.read_request()
            watch.leave()
            connection.wait_closed("the call to be closed")

        watch.gone = lambda: watch.far.fileno() == -1
        with support.ScriptedUpstream(script) as upstream:
            with self.assertRaises(gw.ClientGone):
                self.get(upstream, watch=watch)

    def test_shutdown_ends_a_silent_call(self):
        told = support.Gate()

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD)
            told.open()
            connection.wait_closed("the call to be closed")

        def cancel():
            told.wait("the call to be under way")
            self.transport.cancel_all()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with support.ScriptedUpstream(script) as upstream:
            with self.assertRaises(gw.ShuttingDown):
                self.get(upstream)
        canceller.join()


class TlsTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.material = support.make_tls_material(cls.folder.name)

    def transport(self, *ca_files):
        transport = gw.Transport(time.monotonic, ca_files=ca_files)
        self.addCleanup(transport.close)
        return transport

    def fetch(self, transport, provider, **settings):
        response = transport.send(call_to(provider, **settings))
        try:
            return response.status, read_all(response)[0]
        finally:
            response.close()

    def test_connection_is_reused_through_tls(self):
        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(tls=self.material) as upstream:
            for _ in range(5):
                self.assertEqual(self.fetch(transport, provider_at(upstream.url))[0], 200)
            self.assertEqual(upstream.handshakes_count, 1)
            transport.close()

    def test_stale_one_is_replaced_once_unnoticed(self):
        def script(connection):
            connection.read_request()
            connection.send(support.json_response())
            connection.read_request()

        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(script, tls=self.material) as upstream:
            for _ in range(2):
                self.assertEqual(self.fetch(transport, provider_at(upstream.url))[0], 200)
            self.assertEqual(upstream.handshakes_count, 2)
            transport.close()

    def test_provider_ca_file(self):
        with support.ScriptedUpstream(tls=self.material) as upstream:
            transport = self.transport()
            provider = provider_at(upstream.url, ca_file=self.material.ca_file)
            self.assertEqual(self.fetch(transport, provider)[0], 200)
            transport.close()

    def test_unknown_issuer_is_refused(self):
        with support.ScriptedUpstream(tls=self.material) as upstream:
            with self.assertRaises(gw.UpstreamUnreached) as caught:
                self.fetch(self.transport(), provider_at(upstream.url))
        message = caught.exception.message
        self.assertIn("the certificate of 127.0.0.1 is not trusted", message)
        self.assertIn("name the file of its CA in SSL_CERT_FILE or as ca_file", message)

    def test_certificate_for_another_name_is_told_without_talk_of_a_ca(self):
        with tempfile.TemporaryDirectory() as folder:
            other = support.make_tls_material(folder, "DNS:elsewhere.example")
            transport = self.transport(other.ca_file)
            with support.ScriptedUpstream(tls=other) as upstream:
                with self.assertRaises(gw.UpstreamUnreached) as caught:
                    self.fetch(transport, provider_at(upstream.url))
        self.assertIn("is not trusted", caught.exception.message)
        self.assertNotIn("SSL_CERT_FILE", caught.exception.message)

    def test_ca_as_python_3_13_would_not_have_it(self):
        with tempfile.TemporaryDirectory() as folder:
            older = support.make_tls_material(folder, config=support.OLDER_OPENSSL_CONFIG)
            with support.ScriptedUpstream(tls=older) as upstream:
                transport = self.transport(older.ca_file)
                self.assertEqual(self.fetch(transport, provider_at(upstream.url))[0], 200)
                transport.close()

    def test_ca_file_that_is_missing(self):
        with support.ScriptedUpstream(tls=self.material) as upstream:
            provider = provider_at(upstream.url, ca_file="/no/such/file.pem")
            with self.assertRaises(gw.UpstreamUnreached) as caught:
                self.fetch(self.transport(), provider)
        self.assertIn("/no/such/file.pem", caught.exception.message)

    def test_large_answer_and_large_body(self):
        text = os.urandom(1 << 20).hex()
        answer = support.json_response({"text": text})
        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(respond=lambda request: answer, tls=self.material) as upstream:
            status, body = self.fetch(transport, provider_at(upstream.url), body=b"y" * (4 << 20))
            self.assertEqual(len(upstream.requests[0].body), 4 << 20)
            transport.close()
        self.assertIn(text.encode(), body)

    def test_cut_without_goodbye_is_a_broken_answer(self):
        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"a"))
            connection.close_without_notify()

        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(script, tls=self.material) as upstream:
            with self.assertRaises(gw.UpstreamBroke):
                self.fetch(transport, provider_at(upstream.url))

    def test_leaving_while_the_request_is_sent_is_no_fault_of_ours(self):
        """PyPy tells of it as a RuntimeError about the error's text."""
        def script(connection):
            connection.read_head()
            connection.reset()

        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(script, tls=self.material) as upstream:
            with self.assertRaises(gw.UpstreamClosed):
                self.fetch(transport, provider_at(upstream.url), body=b"y" * (8 << 20))

    def test_an_error_below_tls_is_one_of_the_system(self):
        class Broken:
            def fail(self, *arguments):
                raise RuntimeError("cannot use string() on <cdata 'char *' NULL>")

            write = read = do_handshake = pending = fail

        with socket.socket() as one:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.sslsocket_class = gw.PyPySocket
            with context.wrap_socket(one, do_handshake_on_connect=False) as wrapped:
                wrapped._sslobj = Broken()
                for call in (lambda: wrapped.send(b"x"), lambda: wrapped.recv(1), wrapped.do_handshake):
                    with mock.patch.object(wrapped, "getpeername", tuple), self.assertRaises(ConnectionResetError):
                        call()
                wrapped._sslobj = None

    def test_client_leaves_while_tls_is_silent(self):
        watch = LeavingWatch()
        self.addCleanup(watch.close)

        def script(connection):
            connection.read_request()
            connection.send(support.SSE_HEAD + support.chunk(b"a"))
            watch.leave()
            connection.wait_closed("the call to be closed")

        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(script, tls=self.material) as upstream:
            with self.assertRaises(gw.ClientGone):
                self.fetch(transport, provider_at(upstream.url), watch=watch)

    def test_handshake_that_is_never_answered(self):
        def silent(connection):
            connection.wait_closed("the gateway to give up")

        transport = self.transport(self.material.ca_file)
        with support.ScriptedUpstream(silent) as upstream:
            provider = provider_at(upstream.url.replace("http:", "https:"))
            with self.assertRaises(gw.UpstreamUnreached) as caught:
                self.fetch(transport, provider, timeouts=QUICK._replace(connect_seconds=0.1))
        self.assertIn("did not answer in time", caught.exception.message)


class ProxyTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.material = support.make_tls_material(cls.folder.name)

    def send(self, provider, proxy_url=None):
        chosen = gw.parse_proxy(proxy_url) if proxy_url else None
        transport = gw.Transport(time.monotonic, lambda base_url: chosen, [self.material.ca_file])
        self.addCleanup(transport.close)
        response = transport.send(call_to(provider))
        body = read_all(response)[0]
        response.close()
        transport.close()
        return response.status, body

    def test_plain_upstream_through_a_proxy(self):
        with support.ScriptedUpstream() as proxy:
            url = "http://user:pa%%24s@127.0.0.1:%d" % proxy.port
            status, _ = self.send(provider_at("http://upstream.invalid/base"), url)
            request = proxy.requests[0]
        self.assertEqual(status, 200)
        self.assertEqual(request.target, "http://upstream.invalid/v1/messages")
        self.assertEqual(request.header("proxy-authorization"), "Basic dXNlcjpwYSRz")

    def tunnel(self, answer):
        """A proxy that lets a call through, and the upstream behind it, which answers so."""
        def script(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            connection.shake_hands(self.material.server_context())
            connection.read_request()
            connection.send(answer)
            connection.wait_closed("the gateway to close")

        return script

    def test_tls_upstream_through_connect(self):
        with support.ScriptedUpstream(self.tunnel(support.json_response())) as proxy:
            status, _ = self.send(provider_at("https://localhost:4711"),
                                  "http://127.0.0.1:%d" % proxy.port)
            connect, request = proxy.requests
        self.assertEqual((status, connect.method, connect.target),
                         (200, "CONNECT", "localhost:4711"))
        self.assertEqual(request.target, "/v1/messages")
        self.assertEqual(request.header("host"), "localhost:4711")

    def refusal(self, status, upstream_url, user=""):
        """What is said of a proxy that answers with `status`, less its address."""
        answer = support.json_response({}, status=status)
        with support.ScriptedUpstream(respond=lambda request: answer) as proxy:
            with self.assertRaises(gw.UpstreamUnreached) as caught:
                self.send(provider_at(upstream_url), "http://%s127.0.0.1:%d" % (user, proxy.port))
        self.assertNotIn("MARKED", caught.exception.message)
        before = "upstream connection failed: proxy http://127.0.0.1:%d refused the connection " % proxy.port
        self.assertTrue(caught.exception.message.startswith(before), caught.exception.message)
        return caught.exception.message[len(before):]

    def test_proxy_that_refuses(self):
        wants = "with status 407: give it a user and password, as http://USER:PASSWORD@HOST:PORT"
        wrong = "with status 407: the user or password is wrong"
        for url in ("https://localhost:4711", "http://upstream.invalid"):
            with self.subTest(url):
                self.assertEqual(self.refusal(407, url), wants)
                self.assertEqual(self.refusal(407, url, "me:MARKED@"), wrong)
        # So says tinyproxy; before an http upstream it could be the upstream's own.
        self.assertEqual(self.refusal(401, "https://localhost:4711", "me:MARKED@"), wrong.replace("407", "401"))
        self.assertEqual(self.refusal(403, "https://localhost:4711"), "with status 403")

    def test_407_that_no_proxy_can_have_said_is_the_upstreams_own(self):
        answer = support.json_response({}, status=407)
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            self.assertEqual(self.send(provider_at(upstream.url))[0], 407)
        with support.ScriptedUpstream(self.tunnel(answer)) as proxy:
            status, _ = self.send(provider_at("https://localhost:4711"), "http://127.0.0.1:%d" % proxy.port)
        self.assertEqual(status, 407)

    def test_proxy_that_cannot_be_reached_is_named(self):
        with support.ScriptedUpstream() as gone:
            pass
        for url in ("https://localhost:4711", "http://upstream.invalid"):
            with self.subTest(url), self.assertRaises(gw.UpstreamUnreached) as caught:
                self.send(provider_at(url), "http://127.0.0.1:%d" % gone.port)
            self.assertEqual(caught.exception.message, "upstream connection failed: "
                             "proxy http://127.0.0.1:%d: connection refused" % gone.port)

    def test_provider_setting_beats_the_environment(self):
        with support.ScriptedUpstream() as proxy, support.ScriptedUpstream() as other:
            provider = provider_at("http://upstream.invalid",
                                   proxy="http://127.0.0.1:%d" % proxy.port)
            self.send(provider, "http://127.0.0.1:%d" % other.port)
            self.assertEqual((len(proxy.requests), len(other.requests)), (1, 0))


class SelectPollerTest(unittest.TestCase):
    """What Windows uses: it must behave as poll does for us."""

    def test_reports_what_is_ready(self):
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        poller = gw.SelectPoller()
        poller.register(near.fileno(), gw.POLL_READ)
        self.assertEqual(poller.poll(0), [])
        far.sendall(b"x")
        self.assertEqual(poller.poll(1000), [(near.fileno(), gw.POLL_READ)])
        poller.modify(near.fileno(), gw.POLL_WRITE)
        self.assertEqual(poller.poll(1000), [(near.fileno(), gw.POLL_WRITE)])

    def test_transport_works_with_it(self):
        saved = gw.new_poller, gw.POLL_LEFT
        self.addCleanup(lambda: (setattr(gw, "new_poller", saved[0]),
                                 setattr(gw, "POLL_LEFT", saved[1])))
        gw.new_poller, gw.POLL_LEFT = gw.SelectPoller, 0
        for case in (SendTest, LeavingTest, TimeoutTest, PoolTest):
            names = unittest.defaultTestLoader.getTestCaseNames(case)
            suite = unittest.TestSuite(case(name) for name in names
                                       if "behind_bytes" not in name)  # needs POLLRDHUP
            result = unittest.TestResult()
            suite.run(result)
            self.assertEqual(result.failures + result.errors, [])


if __name__ == "__main__":
    unittest.main()
