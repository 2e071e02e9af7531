"""Section 17 against raw requests on disk: tests/data/http.

A file's name begins with the status of its answer.  After an invalid one the
connection closes, after a valid one it stays unless its name ends in `close`.
Valid POSTs carry MESSAGE.
"""

import glob
import os
import unittest

from tests import support
from tests.running import MESSAGE
from tests.running import provider
from tests.running import running_gateway

FOLDER = os.path.join(support.TESTS_DIRECTORY, "data", "http")
FIRST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
# What a smuggler would hide: it must not be served behind a refusal.
BEHIND = (b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
          % len(MESSAGE)) + MESSAGE
BYTE_BY_BYTE_UP_TO = 3000
PIECE_BYTES = 1009
# For requests that never end; those that do have 10 s.
SHORT_SECONDS = 0.2


def corpus(kind):
    """(name, status, bytes) of every request of a kind."""
    found = []
    for path in sorted(glob.glob(os.path.join(FOLDER, kind, "*.raw"))):
        name = os.path.basename(path)[:-len(".raw")]
        with open(path, "rb") as file:
            found.append((name, int(name[:3]), file.read()))
    return found


def pieces_of(data):
    """Byte by byte; large ones in pieces that fit no boundary."""
    size = 1 if len(data) <= BYTE_BY_BYTE_UP_TO else PIECE_BYTES
    return [data[at:at + size] for at in range(0, len(data), size)]


def tell(client, pieces):
    try:
        for piece in pieces:
            client.send(piece)
    except ConnectionError:
        pass  # safe: refused before its end; what it says is read by the caller


class CorpusTest(unittest.TestCase):

    def setUp(self):
        self.upstream = self.enter(support.ScriptedUpstream())

    def enter(self, context):
        entered = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return entered

    def gateway(self, client_seconds=10):
        return self.enter(running_gateway(
            provider(self.upstream),
            timeouts={"client_seconds": client_seconds, "shutdown_seconds": 0.2}))

    def test_there_are_enough(self):
        self.assertGreaterEqual(len(corpus("invalid")), 60)
        self.assertGreaterEqual(len(corpus("valid")), 30)

    def test_line_ends_survived_the_repository(self):
        """A checkout that turns CRLF into LF would make every request a bare-LF one."""
        for kind in ("valid", "invalid"):
            self.assertTrue(any(b"\r\n" in data for _, _, data in corpus(kind)))
        bare = dict((name, data) for name, _, data in corpus("invalid"))["400_bare_lf"]
        self.assertNotIn(b"\r", bare)

    # -- invalid ones

    def check_refused(self, client, status, before):
        answers = [client.read_response() for _ in range(before + 1)]
        self.assertEqual([answer.status for answer in answers], [200] * before + [status])
        self.assertEqual(answers[-1].header("connection"), "close")
        self.assertEqual(answers[-1].header("content-type"), "application/json")
        self.assertTrue(client.at_eof())

    def test_invalid_ones(self):
        gateway = self.gateway()
        for name, status, data in corpus("invalid"):
            if status == 408:
                continue  # below
            ways = {"whole": [data + BEHIND], "behind another": [FIRST + data + BEHIND],
                    "in pieces": pieces_of(data) + [BEHIND]}
            for way, pieces in ways.items():
                with self.subTest(name, way=way), support.RawClient(gateway.port) as client:
                    tell(client, pieces)
                    self.check_refused(client, status, int(way == "behind another"))
        self.assertEqual(self.upstream.requests, [])
        self.assertEqual(gateway.status()["upstream_active"], 0)

    def test_those_that_never_end(self):
        """All at once, since each has to be waited for."""
        gateway, asked = self.gateway(SHORT_SECONDS), []
        for name, status, data in corpus("invalid"):
            if status == 408:
                for before in (0, 1):
                    client = self.enter(support.RawClient(gateway.port))
                    tell(client, [FIRST * before + data])
                    asked.append((name, client, before))
        self.assertGreater(len(asked), 8)
        for name, client, before in asked:
            with self.subTest(name, before=before):
                self.check_refused(client, 408, before)
        self.assertEqual(self.upstream.requests, [])
        self.assertEqual(gateway.status()["upstream_active"], 0)

    # -- valid ones

    def check_served(self, gateway, name, data, pieces, before):
        del self.upstream.requests[:]
        kept = not name.endswith("close")
        with support.RawClient(gateway.port) as client:
            tell(client, pieces)
            if kept:
                client.send(FIRST)
            count = before + 1 + int(kept)
            answers = [client.read_response() for _ in range(count)]
            self.assertEqual([answer.status for answer in answers], [200] * count)
            self.assertEqual(client.at_eof(0.001 if kept else support.WAIT_SECONDS), not kept)
        expected = [MESSAGE] if data.lstrip().startswith(b"POST") else []
        self.assertEqual([request.body for request in self.upstream.requests], expected)

    def test_valid_ones(self):
        gateway = self.gateway()
        for name, _, data in corpus("valid"):
            ways = {"whole": [data], "in pieces": pieces_of(data),
                    "behind another": [FIRST + data]}
            for way, pieces in ways.items():
                with self.subTest(name, way=way):
                    self.check_served(gateway, name, data, pieces, int(way == "behind another"))


if __name__ == "__main__":
    unittest.main()
