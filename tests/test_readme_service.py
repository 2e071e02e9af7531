"""README.md's service files and balancers say what works: their commands run, their times agree.

Real balancers run in tests/clients/client_balancers.py, systemd's own judgement in client_systemd.py.
"""

import configparser
import json
import os
import plistlib
import re
import shlex
import signal
import subprocess
import sys
import unittest

import claude_gateway as gw
from tests import support
from tests.test_readme import README
from tests.test_readme import blocks

KEY = "gw-key-for-tests"
UNITS = {"s": 1, "min": 60, "h": 3600}


def block(language):
    """The one fenced block of a language."""
    (found,) = blocks(language)
    return found


def seconds_of(text):
    """The seconds that "2s", "11min" or "1h" mean."""
    number, unit = re.match(r"(\d+)(s|min|h)$", text).groups()
    return int(number) * UNITS[unit]


def arguments_of(words):
    """What follows the interpreter and claude_gateway.py, which must be there, on a command line."""
    interpreter, script = (re.split(r"[/\\]", word)[-1] for word in words[:2])
    if not re.match(r"python3?(\.exe)?$", interpreter) or script != "claude_gateway.py":
        raise AssertionError("no command that runs the gateway: %r" % words)
    return words[2:]


def running(arguments, config=None, env=None):
    """The gateway with a README's arguments, on a free port, its configuration a demo's."""
    demo = config or {"providers": [{"name": "demo"}]}
    gateway = support.GatewayProcess(demo if "--config" in arguments else None, env=env)
    at = arguments.index("--config") if "--config" in arguments else len(arguments)
    gateway.args = arguments[:at] + arguments[at + 2:]
    return gateway


def asked(gateway):
    """What the demo answers to somebody with a key."""
    body = {"model": "claude-demo-1", "max_tokens": 64,
            "messages": [{"role": "user", "content": "Hello"}]}
    headers = [("content-type", "application/json"), ("x-api-key", KEY)]
    answer = support.exchange(gateway.port, "POST", "/v1/messages", headers, support.to_json(body))
    return answer.json()["content"][0]["text"]


class SystemdTest(unittest.TestCase):

    def setUp(self):
        unit = configparser.ConfigParser(strict=True, interpolation=None)
        unit.optionxform = str
        unit.read_string(block("ini"))
        self.service = unit["Service"]

    def test_it_starts_reloads_and_stops(self):
        keys = ["${WORK_KEY}"]
        config = {"auth": {"api_keys": keys}, "providers": [{"name": "demo"}]}
        arguments = arguments_of(shlex.split(self.service["ExecStart"]))
        with running(arguments, config, {"WORK_KEY": KEY}) as gateway:
            self.assertIn("You said: Hello", asked(gateway))
            self.assertEqual(["/bin/kill", "-HUP", "$MAINPID"], self.service["ExecReload"].split())
            if hasattr(signal, "SIGHUP"):
                gateway.process.send_signal(signal.SIGHUP)
                support.eventually(lambda: "configuration reloaded" in gateway.stderr_text(),
                                   "the reload")
            self.assertNotIn("KillSignal", self.service)  # SIGTERM, which drains
            self.assertEqual(0, gateway.stop())

    def test_a_wrong_configuration_is_not_started_again_and_again(self):
        command = [sys.executable, support.GATEWAY_FILE, "--config", os.devnull + "/none"]
        result = subprocess.run(command, timeout=support.WAIT_SECONDS,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.assertEqual(self.service["RestartPreventExitStatus"], str(result.returncode))

    def test_it_has_time_to_drain_and_room_for_its_connections(self):
        told = int(re.search(r"`timeouts.shutdown_seconds` [^.]* say (\d+)\.", README).group(1))
        self.assertGreater(seconds_of(self.service["TimeoutStopSec"]),
                           told + 4 * gw.DRAIN_SECONDS)
        limits = gw.Config.from_dict({}).limits
        self.assertGreater(int(self.service["LimitNOFILE"]), 2 * limits.connections)


class LaunchdTest(unittest.TestCase):

    def test_it_runs_and_has_time_to_drain(self):
        job = plistlib.loads(block("xml").encode())
        arguments = arguments_of(job["ProgramArguments"])
        with running([*arguments, "--demo"]) as gateway:
            self.assertIn("You said: Hello", asked(gateway))
            self.assertEqual(0, gateway.stop())
        self.assertIs(job["RunAtLoad"], True)
        self.assertEqual({"SuccessfulExit": False}, job["KeepAlive"])
        shutdown_seconds = gw.Config.from_dict({}).timeouts.shutdown_seconds
        self.assertGreater(job["ExitTimeOut"], shutdown_seconds + 2 * gw.DRAIN_SECONDS)


class DockerTest(unittest.TestCase):

    def setUp(self):
        lines = [line.split(" ", 1) for line in block("dockerfile").strip().split("\n")]
        self.file = dict(lines)
        self.assertEqual(len(lines), len(self.file))
        command = json.loads(self.file["ENTRYPOINT"]) + json.loads(self.file["CMD"])
        self.arguments = arguments_of(command)

    def test_it_copies_what_it_runs_and_is_nobody(self):
        source, folder = self.file["COPY"].split()
        self.assertEqual(json.loads(self.file["ENTRYPOINT"])[1], folder + source)
        self.assertTrue(os.path.isfile(os.path.join(support.PROJECT_DIRECTORY, source)))
        self.assertNotIn(self.file["USER"], ("0", "root"))
        self.assertEqual(self.file["EXPOSE"], str(gw.Config.from_dict({}).port))

    def test_without_a_key_it_says_what_is_missing(self):
        command = [sys.executable, support.GATEWAY_FILE, *self.arguments, "--port", "0", "--demo"]
        result = subprocess.run(command, timeout=support.WAIT_SECONDS, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, universal_newlines=True)
        self.assertEqual(2, result.returncode)
        self.assertIn("add --api-key", result.stderr)

    def test_health_is_whether_it_answers(self):
        env = {"CLAUDE_GATEWAY_API_KEY": KEY}
        loopback = [word.replace("0.0.0.0", "127.0.0.1") for word in self.arguments]
        with running([*loopback, "--demo"], env=env) as gateway:
            self.assertEqual(0, self.health(gateway))
            self.assertEqual(0, gateway.stop())
            self.assertEqual(1, self.health(gateway))

    def health(self, gateway):
        instruction, _, command = self.file["HEALTHCHECK"].partition(" ")
        self.assertEqual("CMD", instruction)
        arguments = arguments_of(json.loads(command)) + ["--port", str(gateway.port)]
        return subprocess.run([sys.executable, support.GATEWAY_FILE, *arguments],
                              env=gateway._environment(), cwd=gateway.directory,
                              timeout=support.WAIT_SECONDS, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode


class WindowsTest(unittest.TestCase):

    def test_its_arguments_run(self):
        (task,) = [text for text in blocks("powershell") if "ScheduledTask" in text]
        program, arguments = re.search(r"-Execute '([^']+)' -Argument '([^']+)'", task).groups()
        with running(arguments_of([program, *arguments.split(" ")])) as gateway:
            self.assertIn("You said: Hello", asked(gateway))


class BalancerTest(unittest.TestCase):

    def test_they_wait_longer_than_the_gateway(self):
        """An answer as JSON may be silent for all attempts, their waits and the last's silence."""
        config = gw.Config.from_dict({})
        times = config.timeouts
        longest = (config.retry.max_attempts * (times.connect_seconds + times.first_byte_seconds)
                   + config.retry.max_wait_seconds + times.idle_seconds)
        for language, name in (("nginx", "proxy_read_timeout"), ("haproxy", "timeout client"),
                               ("haproxy", "timeout server")):
            with self.subTest(name):
                value = re.search(r"^ *%s (\w+)" % name, block(language), re.MULTILINE).group(1)
                self.assertGreater(seconds_of(value), longest)

    def test_bodies_pass_that_the_gateway_takes(self):
        size = re.search(r"client_max_body_size (\d+)m;", block("nginx")).group(1)
        self.assertGreater(int(size) << 20, gw.Config.from_dict({}).limits.body_bytes)


if __name__ == "__main__":
    unittest.main()
