"""Section 17 where the machine gives out: descriptors, threads, clocks, the log's disk.

And hostile answers of an upstream, through the whole gateway.
"""

import contextlib
import errno
import gzip
import json
import os
import random
import socket
import struct
import subprocess
import threading
import time
import unittest
import unittest.mock
import zlib

import claude_gateway as gw
from tests import faulty
from tests import support
from tests.running import JSON_TYPE
from tests.running import MESSAGE
from tests.running import STREAM_MESSAGE
from tests.running import provider
from tests.running import running_gateway
from tests.running import settings_for

try:
    import resource
except ImportError:
    resource = None  # Windows has none

DESCRIPTORS = 48


def ask(port, body=MESSAGE):
    return support.exchange(port, "POST", "/v1/messages", [JSON_TYPE], body)


class DescriptorsTest(unittest.TestCase):

    @unittest.skipUnless(hasattr(resource, "prlimit"), "needs Linux' prlimit")
    def test_a_process_out_of_descriptors_survives(self):
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(support.ScriptedUpstream())
            gateway = stack.enter_context(support.GatewayProcess(settings_for(provider(upstream))))
            pid = gateway.process.pid
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
            early = stack.enter_context(support.RawClient(gateway.port))
            early.request("GET", "/healthz")
            self.assertEqual(early.read_response().status, 200)
            crowd = [stack.enter_context(support.RawClient(gateway.port))
                     for _ in range(DESCRIPTORS)]
            support.eventually(lambda: support.count_open_descriptors(pid) >= DESCRIPTORS,
                               "all descriptors to be in use")
            # An upstream connection cannot be had; the client is told so, and by whom.
            early.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
            refused = early.read_response()
            self.assertEqual((refused.status, refused.json()["error"]["type"]),
                             (503, "overloaded_error"))
            self.assertLess(self.cpu_share(pid), 0.5)
            for client in crowd:
                client.close()
            support.eventually(lambda: support.count_open_descriptors(pid) < 20, "the crowd to go")
            for body in (MESSAGE, STREAM_MESSAGE):
                answer = ask(gateway.port, body)
                # Nor is any account blamed for it.
                self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, "1"))
            self.assertEqual((gateway.stop(), gateway.stderr_text().count("Traceback"),
                              gateway.stderr_text().count("internal error")), (0, 0, 0))

    @unittest.skipUnless(hasattr(resource, "prlimit"), "needs Linux' prlimit")
    def test_a_name_that_cannot_be_looked_up_for_want_of_them_blames_no_account(self):
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(support.ScriptedUpstream())
            named = provider(upstream, base_url=upstream.url.replace("127.0.0.1", "localhost"))
            gateway = stack.enter_context(support.GatewayProcess(settings_for(named)))
            pid = gateway.process.pid
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
            early = stack.enter_context(support.RawClient(gateway.port))
            early.request("GET", "/healthz")
            self.assertEqual(early.read_response().status, 200)
            crowd = [stack.enter_context(support.RawClient(gateway.port))
                     for _ in range(DESCRIPTORS)]
            support.eventually(lambda: support.count_open_descriptors(pid) >= DESCRIPTORS,
                               "all descriptors to be in use")
            early.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
            refused = early.read_response()
            self.assertEqual((refused.status, refused.json()["error"]["type"]),
                             (503, "overloaded_error"))
            for client in crowd:
                client.close()
            support.eventually(lambda: support.count_open_descriptors(pid) < 20, "the crowd to go")
            self.assertEqual(ask(gateway.port).status, 200)
            self.assertEqual((gateway.stop(), gateway.stderr_text().count(" rests ")), (0, 0))

    @unittest.skipUnless(resource, "needs limits of the system")
    def test_certificates_that_cannot_be_opened_are_not_done_without_for_good(self):
        code = (
            "import os, resource, time, claude_gateway as gw\n"
            "handler = gw.PoolingHandler(time.monotonic, lambda base: None, ())\n"
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "import encodings.idna, encodings.ascii\n"
            "first = os.dup(0)\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1, hard))\n"
            "try:\n"
            "    handler._context(None)\n"
            "except gw.Unavailable as error:\n"
            "    print(error.status)\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
            "print(handler._context(None).verify_mode == gw.ssl.CERT_REQUIRED)\n")
        told = subprocess.run(support.importing_command(code), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, check=True).stdout
        self.assertEqual(told.split(), [b"503", b"True"])

    def cpu_share(self, pid):
        """How much of one processor the process uses while it waits for descriptors."""
        def used():
            with open("/proc/%d/stat" % pid, encoding="ascii") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before, began = used(), time.monotonic()
        threading.Event().wait(0.5)
        return (used() - before) / (time.monotonic() - began)

    def test_an_upstream_socket_that_cannot_be_had_blames_no_account(self):
        real = socket.socket

        def none_left(*arguments, **settings):
            if threading.current_thread() is not threading.main_thread():
                raise OSError(errno.EMFILE, "Too many open files")
            return real(*arguments, **settings)

        with support.ScriptedUpstream() as upstream:
            with running_gateway(provider(upstream)) as gateway:
                with support.RawClient(gateway.port) as client:
                    client.request("GET", "/healthz")
                    client.read_response()
                    with unittest.mock.patch.object(gw.socket, "socket", none_left):
                        client.request("POST", "/v1/messages", [JSON_TYPE], MESSAGE)
                        answer = client.read_response()
                self.assertEqual((answer.status, answer.header("retry-after")),
                                 (503, str(gw.BUSY_RETRY_SECONDS)))
                (account,) = gateway.accounts()
                self.assertEqual((account["state"], account["in_flight"], account["last_error"]),
                                 ("ready", 0, ""))


class ThreadsTest(unittest.TestCase):

    def test_no_thread_for_a_connection_is_a_503(self):
        real, lacking = threading.Thread.start, threading.Event()

        def start(thread):
            if lacking.is_set() and thread.name != "accept":
                raise RuntimeError("can't start new thread")
            real(thread)

        with unittest.mock.patch.object(threading.Thread, "start", start):
            with support.ScriptedUpstream() as upstream:
                with running_gateway(provider(upstream)) as gateway:
                    self.assertEqual(ask(gateway.port).status, 200)
                    before = support.count_open_descriptors()
                    lacking.set()
                    for _ in range(20):
                        with support.RawClient(gateway.port) as client:
                            answer = client.read_response()
                            self.assertEqual((answer.status, answer.header("connection"),
                                              answer.json()["error"]["type"]),
                                             (503, "close", "overloaded_error"))
                    lacking.clear()
                    support.eventually(lambda: gateway.status()["connections"] == 0, "the end")
                    self.assertEqual(ask(gateway.port).status, 200)
                    support.eventually(
                        lambda: support.count_open_descriptors() <= before, "all to be closed")


class ClocksTest(unittest.TestCase):

    def test_a_wall_clock_that_jumps_changes_nothing(self):
        """Cooldowns, timeouts and idle times are of the monotonic clock; Date is what it is."""
        chance, lines = random.Random(1), []

        def jumping():
            return chance.choice([0, 1e9, 2e9, 3e9, 4e9])

        answers = {"a": [faulty.error(429, "rate_limit_error", retry_after="0.3")]}
        with unittest.mock.patch.object(gw.time, "time", jumping), \
                unittest.mock.patch.object(gw, "RAMP_STEP_SECONDS", 0.05):
            with faulty.play(answers, write=lines.append,
                             log={"level": "debug", "format": "json"}) as played:
                told = [played.post(stream=number % 2 == 1) for number in range(10)]
                records = played.records(10)
        self.assertEqual([answer.status for answer in told], [200] * 10)
        self.assertEqual(played.upstream.asked, ["a"] * 11)
        self.assertGreater(len({answer.header("date") for answer in told}), 1)
        self.assertTrue(all(0 <= record["seconds"] < 5 for record in records))
        for line in lines:
            json.loads(line)


class LogTest(unittest.TestCase):

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_a_full_disk_and_closed_streams_under_requests(self):
        """Both streams full, or both read by nobody, while requests come."""
        for kind in ("full", "closed"):
            with self.subTest(kind), support.ScriptedUpstream() as upstream:
                self.check_served(kind, upstream)

    def check_served(self, kind, upstream):
        port = support.free_port()
        if kind == "full":
            writer = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, writer = os.pipe()
            os.close(reader)
        try:
            process = subprocess.Popen(
                support.gateway_command("--port", str(port), "--upstream", upstream.url,
                                        "--upstream-key", "k" * 20, "--log-level", "debug"),
                stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        try:
            support.eventually(lambda: self.listens(port), "the gateway to listen")
            for _ in range(50):
                self.assertEqual(ask(port).status, 200)
            process.terminate()
            self.assertEqual(process.wait(support.WAIT_SECONDS), 0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def listens(self, port):
        with contextlib.suppress(ConnectionError):
            return support.exchange(port, "GET", "/healthz").status == 200
        return False


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = json.dumps(support.message()).encode()


def bomb(mebibytes):
    """So many MiB of zeros in gzip.  Made of one compressed MiB, again and again."""
    zeros, crc = bytes(1 << 20), 0
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After a full flush the same bytes are packed the same again.
    packed = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mebibytes):
        crc = zlib.crc32(zeros, crc)
    data = (gzip.compress(b"")[:10] + packed * mebibytes + packer.flush()
            + struct.pack("<II", crc, mebibytes << 20))
    return support.json_response(data, headers=[("content-encoding", "gzip")])


class HostileUpstreamTest(unittest.TestCase):
    """What an upstream sends that is no answer costs the client nothing: the next one serves."""

    ANSWERS = {
        "huge head": OK + b"X: " + b"x" * 300000 + b"\r\n\r\n",
        "huge line": b"HTTP/1.1 200 " + b"x" * 300000,
        "1000 headers": OK + b"A: b\r\n" * 1000 + b"\r\n",
        "endless 1xx": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        "204 with a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        "304 with a body": b"HTTP/1.1 304 Not Modified\r\n\r\nhello",
        "status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
        "bad chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        "huge chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nx",
        "endless chunk line": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 70000,
        "endless trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 9000,
        "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + support.chunk(WHOLE),
        "length too large": OK + b"Content-Length: %d\r\n\r\n" % (len(WHOLE) + 1) + WHOLE,
        "length too small": OK + b"Content-Length: %d\r\n\r\n" % (len(WHOLE) - 1) + WHOLE,
        "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "odd coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "bomb": bomb(100),
        "no gzip": support.json_response(b"x", headers=[("content-encoding", "gzip")]),
        "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "redirect of the method too": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/"
                                      b"\r\nContent-Length: 0\r\n\r\n",
        "bare CR in a header": OK + b"A: b\rX: c\r\nContent-Length: 0\r\n\r\n",
        "NUL in a header": OK + b"A: \0\r\nContent-Length: 0\r\n\r\n",
    }

    def test_the_next_account_serves(self):
        for name, answer in self.ANSWERS.items():
            for stream in (False, True):
                with self.subTest(name, stream=stream):
                    with faulty.play({"a": [faulty.cut(answer)], "b": []}) as played:
                        told = played.post(stream=stream)
                        self.assertEqual((told.status, told.complete), (200, True))
                        self.assertEqual(played.asked(), ["a", "b"])
                        self.assertEqual(played.settled()["upstream_active"], 0)

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "needs Linux' /proc")
    def test_a_bomb_does_not_fill_the_memory(self):
        answer = bomb(512)
        with support.ScriptedUpstream(respond=lambda request: answer) as upstream:
            with support.GatewayProcess(settings_for(
                    provider(upstream), retry={"max_attempts": 1})) as gateway:
                self.assertEqual(ask(gateway.port).status, 502)
                with open("/proc/%d/status" % gateway.process.pid, encoding="ascii") as file:
                    highest = [int(line.split()[1]) for line in file
                               if line.startswith("VmHWM:")][0]
        print("\na bomb of 512 MiB in %d KiB: %d MiB resident at most"
              % (len(answer) >> 10, highest >> 10))
        self.assertLess(highest >> 10, 300)


if __name__ == "__main__":
    unittest.main()
