"""What the tests with real clients share: finding a client, running it within bounds, a gateway before it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import unittest

import claude_gateway as gw
from tests.support import SSE_HEAD
from tests.support import GatewayProcess
from tests.support import ScriptedUpstream
from tests.support import chunk
from tests.support import error_body
from tests.support import eventually
from tests.support import exchange
from tests.support import json_response
from tests.support import stream_events

GATEWAY_KEY = "gw-test-key"
UPSTREAM_KEY = "upstream-test-key"
SPARE_KEY = "spare-upstream-test-key"
# Only a gateway that answers model lists itself can know this one.
LISTED_MODEL = "claude-listed-by-the-gateway"

# As the doctor prints it.
NO_PROXY = gw.LOOPBACK_BYPASS

# A client takes one to three seconds; one that retries on its own schedule takes minutes and is a failure.
CLIENT_SECONDS = 60

CREDENTIAL_NAMES = frozenset(["authorization", "x-api-key", "x-goog-api-key"])
# RFC 9110 section 7.6.1, and what each connection has to say for itself. The gateway asks for plain bodies.
PER_CONNECTION_NAMES = frozenset(
    ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"]
    + ["accept-encoding", "content-length", "x-request-id"]
)


def clients_folder():
    temporary = os.environ.get("TMPDIR") or "/tmp"
    return os.environ.get("CLAUDE_GATEWAY_CLIENTS") or os.path.join(temporary, "claude_gateway_clients")


def missing(what):
    """A developer may lack a client; CI installs them, so there its absence must be seen."""
    reason = "%s is missing: run tests/clients/install.sh" % what
    if os.environ.get("CI") == "true":
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def installed(name, *parts):
    """The path of a file in a client's folder that install.sh has finished."""
    folder = os.path.join(clients_folder(), name)
    return os.path.join(folder, *parts) if os.path.exists(os.path.join(folder, ".installed")) else missing(folder)


def on_path(name):
    return shutil.which(name) or missing(name)


def program(name):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", name)


class Finished:
    """What a client left behind: exit code and both outputs, as bytes."""

    def __init__(self, code, out, err):
        self.code = code
        self.out = out
        self.err = err

    @property
    def text(self):
        return self.out.decode("utf-8").strip()

    def __repr__(self):
        return "exit %s\nstdout: %r\nstderr: %r" % (self.code, self.out[-2000:], self.err[-2000:])


def end_with_children(process):
    """A client may have started helpers that hold our pipes; its process group takes them along."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run(arguments, environment, folder, seconds=CLIENT_SECONDS):
    """Runs a client to its end with nothing on standard input."""
    process = subprocess.Popen(
        arguments,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_with_children(process)
        raise AssertionError("%s did not end within %s seconds" % (arguments[0], seconds))
    return Finished(process.returncode, out, err)


def bare_environment(home, **more):
    """The least a client needs. Nothing of the caller's own settings, keys or proxies may leak into a test."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return dict(kept, HOME=home, **more)


# A mount namespace of its own lets one command, and nobody else, see another /etc/hosts.
SEEING_HOSTS = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']


def seeing_hosts(folder, lines):
    """What a command is prefixed with to find these lines, "ADDRESS NAME" each, in /etc/hosts."""
    path = os.path.join(folder, "hosts")
    with open(path, "w") as file:
        file.write("".join(line + "\n" for line in lines))
    prefix = SEEING_HOSTS + [path]
    on_path(prefix[0])
    tried = run(prefix + ["cat", "/etc/hosts"], bare_environment(folder), folder)
    if tried.text.split("\n") != list(lines):
        missing("a mount namespace (%r)" % tried)
    return prefix


def api_key(key):
    return {"ANTHROPIC_API_KEY": key}


def auth_token(key):
    return {"ANTHROPIC_AUTH_TOKEN": key}


def openai_key(key):
    return {"OPENAI_API_KEY": key}


class ClaudeCode:
    """The command-line client in print mode, each time as if started for the first time on this machine."""

    # With the session and the device fixed, two runs send the same bytes.
    SESSION_ID = "5f0c8f4e-6f0e-4f52-9c1d-8f7ab1c6a001"
    SETTINGS = {"hasCompletedOnboarding": True, "userID": "a" * 64}

    def __init__(self, folder):
        self.path = installed("claude-code", "node_modules", ".bin", "claude")
        self.home = os.path.join(folder, "home")
        self.work = os.path.join(folder, "work")
        self.files = {}
        self.variables = {}
        self.prefix = []

    def start_afresh(self):
        for path in (self.home, self.work):
            shutil.rmtree(path, ignore_errors=True)
            os.makedirs(path)
        # Without it the first start asks api.anthropic.com how it is, and ends where that cannot be reached.
        with open(os.path.join(self.home, ".claude.json"), "w") as settings:
            json.dump(self.SETTINGS, settings)
        for name, content in self.files.items():
            with open(os.path.join(self.work, name), "w") as file:
                file.write(content)

    def environment(self, base_url, credentials):
        settings = {
            "ANTHROPIC_BASE_URL": base_url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            # Whatever else it wants of the world ends at a port nobody listens on.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": NO_PROXY,
        }
        return bare_environment(self.home, **dict(settings, **dict(credentials, **self.variables)))

    def run(self, base_url, credentials, prompt="Say hello."):
        self.start_afresh()
        command = [self.path, "-p", prompt, "--session-id", self.SESSION_ID]
        return run(self.prefix + command, self.environment(base_url, credentials), self.work)


class SdkProgram:
    """A small program in an SDK's own language that makes one call and tells what it saw as JSON."""

    def __init__(self, folder, command, environment):
        self.folder = folder
        self.command = command
        self.environment = environment

    prefix = ()

    def run(self, base_url, credentials, case="create"):
        environment = bare_environment(
            self.folder,
            ANTHROPIC_BASE_URL=base_url,
            OPENAI_BASE_URL=base_url + "/v1",
            **dict(self.environment, **credentials)
        )
        return run([*self.prefix, *self.command, case], environment, self.folder)

    def told(self, base_url, credentials, case):
        finished = self.run(base_url, credentials, case)
        if finished.code != 0:
            raise AssertionError("the program broke: %r" % finished)
        return json.loads(finished.text)


def python_sdk(folder, name):
    interpreter = installed(name, "bin", "python")
    return SdkProgram(folder, [interpreter, program("python_sdk.py")], {})


def typescript_sdk(folder, name="sdk-typescript"):
    modules = installed(name, "node_modules")
    return SdkProgram(folder, [on_path("node"), program("typescript_sdk.cjs")], {"NODE_PATH": modules})


def openai_python_sdk(folder, name, **environment):
    interpreter = installed(name, "bin", "python")
    return SdkProgram(folder, [interpreter, program("openai_sdk.py")], environment)


def openai_typescript_sdk(folder, name="openai-typescript", **environment):
    modules = installed(name, "node_modules")
    return SdkProgram(folder, [on_path("node"), program("openai_sdk.cjs")], dict(environment, NODE_PATH=modules))


def credentials_in(request):
    """Every credential a request carries, whichever header it is in."""
    return [(name.lower(), value) for name, value in request.headers if name.lower() in CREDENTIAL_NAMES]


def end_to_end(request, credentials=False):
    """The headers in order and spelling, without those each hop writes for itself."""
    left_out = PER_CONNECTION_NAMES if credentials else PER_CONNECTION_NAMES | CREDENTIAL_NAMES
    return [(name, value) for name, value in request.headers if name.lower() not in left_out]


def said(request):
    """All that a client said, for comparing it with what it says the next time."""
    return request.method, request.target, request.headers, request.body


BEGUN_PIECES = ["Once", " upon"]


def too_many(seconds):
    """A 429 that asks to come back after so many seconds."""
    error = error_body("rate_limit_error", "slow down")
    return json_response(error, status=429, headers=[("retry-after", str(seconds))])


def begun_stream():
    """An event stream that breaks off after two pieces of text."""
    # Told so, the upstream closes after what is there of the answer.
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    # Five events: message_start, content_block_start, ping, and a delta for each of BEGUN_PIECES.
    return head + b"".join(map(chunk, stream_events("Once upon a time")[:5]))


class Answers:
    """An upstream's answers in turn. One request too many is told to the client as a final error."""

    def __init__(self, answers):
        self.left = list(answers)

    def __call__(self, request):
        if self.left:
            return self.left.pop(0)
        error = error_body("invalid_request_error", "asked more often than the test foresaw")
        return json_response(error, status=400, headers=[("x-should-retry", "false")])


class ClientTest(unittest.TestCase):
    """A folder, an upstream that answers as told, and a gateway before it."""

    def setUp(self):
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="claude_gateway_client_"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def entered(self, context):
        """unittest has enterContext for it from Python 3.11 on."""
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def start_gateway(self, answers, auth, accounts, script=None, args=(), env=None, **settings):
        """The upstream and a gateway before it; `settings` are further ones of its configuration."""
        scripts = [script] if script else []
        self.upstream = self.entered(ScriptedUpstream(*scripts, respond=Answers(answers)))
        provider = {"name": "anthropic", "base_url": self.upstream.url, "models": [LISTED_MODEL]}
        config = dict(settings, auth=auth, providers=[dict(provider, **accounts)])
        self.process = self.entered(GatewayProcess(config, args, env))
        return self.process.url

    def gateway_before(self, *answers, mode="auto", **more):
        """A gateway with a key of its own and one account; returns its base URL."""
        auth = {"mode": mode, "api_keys": [GATEWAY_KEY]}
        accounts = {"accounts": [{"name": "work", "api_key": UPSTREAM_KEY}]}
        return self.start_gateway(answers, auth, accounts, **more)

    def gateway_with_two_accounts_before(self, *answers):
        """As gateway_before, with a second account behind the first."""
        accounts = {"accounts": [{"name": "work", "api_key": UPSTREAM_KEY},
                                 {"name": "spare", "api_key": SPARE_KEY}]}
        return self.start_gateway(answers, {"api_keys": [GATEWAY_KEY]}, accounts)

    def transparent_gateway_before(self, *answers):
        """A gateway without any credential, neither its own nor an account's."""
        return self.start_gateway(answers, {}, {})

    def assert_one_request(self, *attempts):
        """The client asked once; for that the gateway called the upstream as told: (account, status) each."""
        def records():
            return exchange(self.process.port, "GET", "/gateway/requests", [("x-api-key", GATEWAY_KEY)]).json()["requests"]

        (record,) = eventually(records, "the record of the request")
        self.assertEqual(list(attempts), [(tried["account"], tried["status"]) for tried in record["attempts"]])
        self.assertEqual(len(attempts), len(self.upstream.requests))

    def assert_only_the_account_was_shown(self):
        """That it is the account's key proves the way through the gateway, whose own key stays there."""
        self.assertNotEqual([], self.upstream.requests)
        for request in self.upstream.requests:
            self.assertEqual([("x-api-key", UPSTREAM_KEY)], credentials_in(request))
            self.assertNotIn(GATEWAY_KEY.encode(), request.raw_head)
