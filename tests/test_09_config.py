"""Section 9: settings, their faults and paths, presets, addresses, which provider serves."""

import re
import unittest

import claude_gateway as gw

MINIMAL_PROVIDER = {"name": "own", "base_url": "https://own.example"}


def config(**settings):
    """A configuration of settings in the shape of the file."""
    return gw.Config.from_dict(settings)


def provider(**settings):
    """The only provider of a configuration, on an address of its own unless told."""
    return config(providers=[dict(MINIMAL_PROVIDER, **settings)]).providers[0]


def problems_of(settings, environ=None, read_file=None):
    """The lines of the ConfigError that settings raise; [] where they are good."""
    try:
        gw.Config.from_dict(settings, environ or {}, read_file)
    except gw.ConfigError as error:
        return error.problems
    return []


def paths_of(problems):
    """What stands in front of each problem's first colon."""
    return [problem.split(": ")[0] for problem in problems]


def account(**settings):
    """Settings with one account, for faults in it."""
    return {"providers": [dict(MINIMAL_PROVIDER, accounts=[dict({"name": "a"}, **settings)])]}


class ProblemsTest(unittest.TestCase):

    def test_keeps_the_first_fault_of_a_path(self):
        problems = gw.Problems()
        problems.error("a.b", "first")
        problems.error("a.b", "second")
        problems.error("a", "third")
        self.assertEqual(problems.errors, ["a.b: first", "a: third"])

    def test_keeps_every_warning(self):
        problems = gw.Problems()
        problems.warn("a", "one")
        problems.warn("a", "two")
        self.assertEqual((problems.errors, problems.warnings), ([], ["a: one", "a: two"]))


class FaultsTest(unittest.TestCase):

    def test_ten_faults_are_ten_lines_with_their_paths(self):
        settings = {
            "hots": "127.0.0.1",
            "port": 65536,
            "auth": {"mode": "open", "api_keys": ["good", {"name": "laptop"}]},
            "providers": [
                MINIMAL_PROVIDER,
                {"name": "zai", "base_url": "ftp://zai.example", "accounts": [
                    {"name": "good", "api_key": "good"},
                    {"name": "bare"},
                    {"name": "unset", "auth_token": "${TOKEN}"},
                ], "headers": {"x-api-key": "v"}},
            ],
            "routing": {"models": {"glm-*": "zia"}},
            "timeouts": {"idle_seconds": "300"},
        }
        self.assertEqual(sorted(problems_of(settings)), sorted([
            "hots: unknown key; did you mean host?",
            "port: must be from 0 to 65535",
            "auth.mode: must be one of auto, off, all_except_health, strict",
            "auth.api_keys[1].key: is missing",
            "providers[1].base_url: must begin with https:// or http:// and name a host",
            "providers[1].accounts[1]: needs exactly one of api_key, auth_token, key_command, "
            "token",
            "providers[1].accounts[2].auth_token: the environment has no TOKEN",
            "providers[1].headers.x-api-key: is set by the gateway",
            'routing.models.glm-*: no provider is called "zia"; did you mean zai?',
            "timeouts.idle_seconds: must be a number, not a string",
        ]))

    def test_wrong_values_are_named_by_type(self):
        table = [
            ("text", {"host": 5}, "host: must be a string, not a number"),
            ("empty text", {"host": " "}, "host: must not be empty"),
            ("control character", {"host": "a\nb"}, "host: must not hold control characters"),
            ("whole number", {"port": 1.5}, "port: must be a whole number, not a number"),
            ("number", {"port": True}, "port: must be a whole number, not a boolean"),
            ("NaN", {"timeouts": {"idle_seconds": float("nan")}},
             "timeouts.idle_seconds: must be from 0.1 to 3600"),
            ("boolean", {"routing": {"sticky": "yes"}},
             "routing.sticky: must be true or false, not a string"),
            ("choice", {"log": {"level": "inf"}},
             "log.level: must be one of debug, info, warning, error; did you mean info?"),
            ("choice of another type", {"warmup": ["x"]},
             "warmup: must be one of intercept, forward"),
            ("list", {"cors_origins": "x"}, "cors_origins: must be a list, not a string"),
            ("group", {"retry": None}, "retry: must be an object, not null"),
            ("map", {"routing": {"models": []}}, "routing.models: must be an object, not a list"),
            ("origin", {"cors_origins": ["*"]},
             "cors_origins[0]: must be an origin such as https://app.example (never *)"),
            ("origin with a path", {"cors_origins": ["https://a.example/x"]},
             "cors_origins[0]: must be an origin such as https://app.example (never *)"),
        ]
        for name, settings, problem in table:
            with self.subTest(name):
                self.assertEqual(problems_of(settings), [problem])

    def test_numbers_at_their_bounds(self):
        table = [
            ({"port": 0}, 0),
            ({"port": 65535}, 0),
            ({"port": -1}, 1),
            ({"port": 65536}, 1),
            ({"retry": {"max_attempts": 1}}, 0),
            ({"retry": {"max_attempts": 0}}, 1),
            ({"retry": {"max_attempts": 10}}, 0),
            ({"retry": {"max_attempts": 11}}, 1),
            ({"limits": {"body_bytes": 1024}}, 0),
            ({"limits": {"body_bytes": 1023}}, 1),
            ({"timeouts": {"shutdown_seconds": 0}}, 0),
            ({"timeouts": {"connect_seconds": 0}}, 1),
        ]
        for settings, faults in table:
            with self.subTest(settings=settings):
                self.assertEqual(len(problems_of(settings)), faults)

    def test_one_fault_is_one_line(self):
        """What only follows from a fault would hide the others."""
        table = [
            ("key of another type", {"auth": {"api_keys": [5]}}, "auth.api_keys[0]"),
            ("provider of another type", {"providers": ["anthropic"]}, "providers[0]"),
            ("unknown preset", {"providers": [{"name": "x", "preset": "anthropc"}]},
             "providers[0].preset"),
            ("preset of another type", {"providers": [{"name": "x", "preset": 5}]},
             "providers[0].preset"),
            ("unset preset", {"providers": [{"name": "x", "preset": "${UNSET}"}]},
             "providers[0].preset"),
            ("account of another type",
             {"providers": [dict(MINIMAL_PROVIDER, accounts=["key"])]},
             "providers[0].accounts[0]"),
            ("accounts of another type", {"providers": [dict(MINIMAL_PROVIDER, accounts="key")]},
             "providers[0].accounts"),
            ("misspelt credential", account(api_kye="k"), "providers[0].accounts[0].api_kye"),
            ("unset credential", account(api_key="${UNSET}"),
             "providers[0].accounts[0].api_key"),
            ("unset address", {"providers": [{"name": "x", "base_url": "${UNSET}"}]},
             "providers[0].base_url"),
            ("route of another type", {"routing": {"models": {"x": 5}}}, "routing.models.x"),
            ("route to another type", {"routing": {"models": {"x": [5]}}}, "routing.models.x[0]"),
            ("unset route", {"routing": {"models": {"x": ["${UNSET}"]}}}, "routing.models.x[0]"),
        ]
        for name, settings, path in table:
            with self.subTest(name):
                self.assertEqual(paths_of(problems_of(settings)), [path])

    def test_names_stand_once(self):
        two = [{"name": "a", "api_key": "k"}, {"name": "a", "api_key": "l"}]
        table = [
            ("providers", {"providers": [MINIMAL_PROVIDER, MINIMAL_PROVIDER]}, "own"),
            ("providers[0].accounts", {"providers": [dict(MINIMAL_PROVIDER, accounts=two)]}, "a"),
            ("auth.api_keys", {"auth": {"api_keys": [{"name": "key-2", "key": "a"}, "b"]}},
             "key-2"),
        ]
        for path, settings, name in table:
            with self.subTest(path):
                self.assertEqual(problems_of(settings),
                                 ['%s: the name "%s" stands 2 times' % (path, name)])

    def test_no_two_accounts_are_told_of_by_one_name(self):
        rows = [dict(MINIMAL_PROVIDER, name=provider, accounts=[{"name": name, "api_key": name}])
                for provider, name in (("a/b", "c"), ("a", "b/c"))]
        self.assertEqual(problems_of({"providers": rows}),
                         ['providers: the name "a/b/c" stands 2 times'])
        self.assertEqual(problems_of({"providers": rows[:1]}), [])

    def test_the_exception_shows_every_line(self):
        error = gw.ConfigError(["a: b", "c: d"])
        self.assertEqual((str(error), error.problems), ("a: b\nc: d", ["a: b", "c: d"]))


class UnknownKeysTest(unittest.TestCase):

    def test_nearest_known_name_at_every_level(self):
        table = [
            ({"timeout": {}}, "timeout", "timeouts"),
            ({"auth": {"keys": []}}, "auth.keys", "api_keys"),
            ({"auth": {"api_keys": [{"key": "k", "requests_per_min": 1}]}},
             "auth.api_keys[0].requests_per_min", "requests_per_minute"),
            ({"providers": [dict(MINIMAL_PROVIDER, models_map={})]},
             "providers[0].models_map", "model_map"),
            ({"providers": [dict(MINIMAL_PROVIDER, betas={"ad": []})]},
             "providers[0].betas.ad", "add"),
            (account(api_key="k", prioritiy=1),
             "providers[0].accounts[0].prioritiy", "priority"),
            ({"routing": {"model": {}}}, "routing.model", "models"),
            ({"retry": {"max_attempt": 1}}, "retry.max_attempt", "max_attempts"),
            ({"timeouts": {"idle_second": 1}}, "timeouts.idle_second", "idle_seconds"),
            ({"limits": {"body_byte": 1}}, "limits.body_byte", "body_bytes"),
            ({"stream": {"colect": "auto"}}, "stream.colect", "collect"),
            ({"log": {"levle": "info"}}, "log.levle", "level"),
        ]
        for settings, path, known in table:
            with self.subTest(path):
                self.assertEqual(problems_of(settings),
                                 ["%s: unknown key; did you mean %s?" % (path, known)])

    def test_a_name_without_its_unit_is_near(self):
        table = [
            ({"timeouts": {"idle": 1}}, "timeouts.idle", "idle_seconds"),
            ({"timeouts": {"connect": 1}}, "timeouts.connect", "connect_seconds"),
            ({"limits": {"body": 1}}, "limits.body", "body_bytes"),
            ({"stream": {"hold": 1}}, "stream.hold", "hold_seconds"),
        ]
        for settings, path, known in table:
            with self.subTest(path):
                self.assertEqual(problems_of(settings),
                                 ["%s: unknown key; did you mean %s?" % (path, known)])

    def test_where_nothing_is_near_all_are_named(self):
        self.assertEqual(problems_of({"timeouts": {"qqq": 1}}), [
            "timeouts.qqq: unknown key; known are connect_seconds, first_byte_seconds, "
            "idle_seconds, client_seconds, keepalive_seconds, shutdown_seconds"])

    def test_maps_have_free_keys(self):
        maps = dict(MINIMAL_PROVIDER, model_map={"anything": "m"}, headers={"X-Any": "v"})
        self.assertEqual(problems_of({"providers": [maps],
                                      "routing": {"models": {"anything-*": "own"}}}), [])


class InterpolationTest(unittest.TestCase):

    def host(self, text, environ=None, read_file=None):
        return gw.Config.from_dict({"host": text}, environ or {}, read_file).host

    def test_names_and_defaults(self):
        table = [
            ("set", "${H}", {"H": "h"}, "h"),
            ("within a text", "a-${H}-${I}", {"H": "h", "I": "i"}, "a-h-i"),
            ("default, unset", "${H:-d}", {}, "d"),
            ("default, set", "${H:-d}", {"H": "h"}, "h"),
            ("default, empty as in a shell", "${H:-d}", {"H": ""}, "d"),
            ("empty default", "x${H:-}", {}, "x"),
            ("default with a dash", "${H:-a:-b}", {}, "a:-b"),
            ("no second round", "${H}", {"H": "${I}", "I": "i"}, "${I}"),
            ("a dollar alone", "a$b", {}, "a$b"),
            ("no brace", "$H", {"H": "h"}, "$H"),
        ]
        for name, text, environ, expected in table:
            with self.subTest(name):
                self.assertEqual(self.host(text, environ), expected)

    def test_file_is_read_and_trimmed(self):
        files = {"/run/key": "from-file\n"}
        self.assertEqual(self.host("${file:/run/key}", read_file=files.__getitem__), "from-file")

    def test_faults_have_their_path(self):
        def missing(path):
            raise FileNotFoundError(2, "No such file or directory")

        def not_text(path):
            raise ValueError("not UTF-8")

        table = [
            ("unset", "${H}", {}, None, "the environment has no H"),
            ("set but empty", "${H}", {"H": ""}, None, "must not be empty"),
            ("missing file", "${file:/x}", {}, missing,
             "cannot read /x (No such file or directory)"),
            ("not a text", "${file:/x}", {}, not_text, "cannot read /x (not UTF-8)"),
            ("empty file", "${file:/x}", {}, lambda path: "\n", "must not be empty"),
            ("no files here", "${file:/x}", {}, None, "files cannot be read here"),
        ]
        for name, text, environ, read_file, problem in table:
            with self.subTest(name):
                self.assertEqual(problems_of(account(api_key=text), environ, read_file),
                                 ["providers[0].accounts[0].api_key: " + problem])

    def test_no_depth_breaks_it(self):
        nested = []
        for _ in range(5000):
            nested = [nested]
        problem, _ = problems_of({"providers": [dict(MINIMAL_PROVIDER, sanitize=nested)]})
        self.assertRegex(problem, r"^providers\[0\]\.sanitize(\[0\])+: is nested too deeply$")

    def test_settings_given_are_not_changed(self):
        settings = {"host": "${H}", "auth": {"api_keys": ["${H}"]}}
        gw.Config.from_dict(settings, {"H": "127.0.0.1"})
        self.assertEqual(settings, {"host": "${H}", "auth": {"api_keys": ["${H}"]}})


class SettingsTableTest(unittest.TestCase):

    def value(self, path):
        value = gw.Config.from_dict({})
        for name in path.split("."):
            value = getattr(value, name)
        return value

    def test_every_default_is_what_an_empty_configuration_has(self):
        for setting in gw.SETTINGS:
            with self.subTest(setting.path):
                value = self.value(setting.path)
                if setting.path == "providers":
                    # None at all means one: contract section 3.
                    self.assertEqual([row.name for row in value], ["anthropic"])
                else:
                    self.assertEqual(value, setting.default)

    def test_every_default_would_be_accepted(self):
        for setting in gw.SETTINGS:
            with self.subTest(setting.path):
                problems = gw.Problems()
                default = setting.default
                setting.read(list(default) if default == () else default, "p", problems)
                self.assertEqual((problems.errors, problems.warnings), ([], []))

    def test_every_attribute_has_a_row(self):
        rows = {setting.path for setting in gw.SETTINGS}
        default = gw.Config.from_dict({})
        found = set()
        for name in default._fields:
            group = getattr(default, name)
            fields = getattr(group, "_fields", None)
            found |= {"%s.%s" % (name, field) for field in fields} if fields else {name}
        self.assertEqual(found - {"warnings"}, rows)

    def test_rows_are_those_of_the_contract(self):
        """The example of contract section 3, with what this version leaves out left out."""
        settings = {
            "host": "127.0.0.1", "port": 8045,
            "auth": {"mode": "auto", "api_keys": ["k", {"name": "laptop", "key": "l",
                                                        "requests_per_minute": 60}]},
            "providers": [
                {"name": "anthropic", "accounts": [
                    {"name": "work", "api_key": "w", "priority": 1, "weight": 2},
                    {"name": "team", "auth_token": "t"}]},
                {"name": "zai", "accounts": [{"name": "zai", "api_key": "z"}],
                 "model_map": {"claude-opus-*": "GLM-4.7", "claude-haiku-*": "GLM-4.5-Air"}}],
            "routing": {"strategy": "failover", "models": {"glm-*": "zai"}, "sticky": True,
                        "background_model": None},
            "retry": {"max_attempts": 3, "max_wait_seconds": 30},
            "timeouts": {"connect_seconds": 10, "first_byte_seconds": 120, "idle_seconds": 300,
                         "client_seconds": 60, "keepalive_seconds": 75, "shutdown_seconds": 30},
            "limits": {"body_bytes": 33554432, "connections": 2048},
            "stream": {"hold_seconds": 20, "ping_seconds": 15, "collect": "auto"},
            "warmup": "intercept", "telemetry": "drop",
            "log": {"level": "info", "format": "text"},
            "cors_origins": [], "allowed_hosts": [],
        }
        default = gw.Config.from_dict({})
        read = gw.Config.from_dict(settings)
        same = [name for name in default._fields
                if name not in ("auth", "providers", "routing", "warnings")]
        self.assertEqual([getattr(read, name) for name in same],
                         [getattr(default, name) for name in same])
        self.assertEqual(read.routing.models, {"glm-*": ("zai",)})

    def test_every_row_says_what_it_is_about(self):
        for rows in (gw.SETTINGS, gw.PROVIDER_SETTINGS, gw.ACCOUNT_SETTINGS,
                     gw.CLIENT_KEY_SETTINGS):
            self.assertEqual([row.path for row in rows if not row.about], [])


class UrlTest(unittest.TestCase):

    def read(self, text):
        problems = gw.Problems()
        return gw.read_url(text, "u", problems), problems

    def test_parts(self):
        table = [
            ("https://a.example", ("https", "a.example", 443, "")),
            ("https://a.example/", ("https", "a.example", 443, "")),
            ("HTTPS://A.Example", ("https", "a.example", 443, "")),
            ("https://a.example/api/anthropic", ("https", "a.example", 443, "/api/anthropic")),
            ("https://a.example/api//", ("https", "a.example", 443, "/api")),
            ("https://a.example:8443", ("https", "a.example", 8443, "")),
            ("http://127.0.0.1:8080/x", ("http", "127.0.0.1", 8080, "/x")),
            ("http://localhost", ("http", "localhost", 80, "")),
            ("http://[::1]:8080", ("http", "::1", 8080, "")),
            ("https://[2001:db8::1]/x", ("https", "2001:db8::1", 443, "/x")),
        ]
        for text, parts in table:
            with self.subTest(text):
                url, problems = self.read(text)
                self.assertEqual(tuple(url), parts)
                self.assertEqual((problems.errors, problems.warnings), ([], []))

    def test_faults(self):
        table = [
            ("user", "https://me@a.example"),
            ("user and password", "https://me:word@a.example"),
            ("empty user", "https://@a.example"),
            ("query", "https://a.example/?a=b"),
            ("fragment", "https://a.example/#x"),
            ("empty fragment", "https://a.example/#"),
            ("no scheme", "a.example"),
            ("other scheme", "ftp://a.example"),
            ("no host", "https://"),
            ("no host but a port", "https://:443"),
            ("port too high", "https://a.example:65536"),
            ("port not a number", "https://a.example:http"),
            ("open bracket", "https://[::1"),
            ("space", "https://a.example/a b"),
            ("tab", "https://a.example/a\tb"),
            ("line end", "https://a.example\n"),
            ("backslash", "https://a.example\\x"),
            ("not ASCII", "https://ä.example"),
            ("empty", ""),
            ("number", 5),
        ]
        for name, text in table:
            with self.subTest(name):
                self.assertEqual(paths_of(self.read(text)[1].errors), ["u"])

    def test_warnings(self):
        table = [
            ("http://a.example", "plain http", ""),
            ("http://192.0.2.1:8080", "plain http", ""),
            ("https://a.example/v1", "ends in /v1", ""),
            ("https://a.example/v1/", "ends in /v1", ""),
            ("https://a.example/api/v1", "ends in /v1", "/api"),
            # Two slashes are a slip of who pasted two halves together.
            ("https://a.example/api//v1", "ends in /v1", "/api"),
        ]
        for text, warning, prefix in table:
            with self.subTest(text):
                url, problems = self.read(text)
                self.assertEqual((problems.errors, len(problems.warnings)), ([], 1))
                self.assertIn(warning, problems.warnings[0])
                self.assertEqual(url.prefix, prefix)

    def test_what_only_looks_like_a_version_stays(self):
        for prefix in ("/xv1", "/v1beta", "/v1/x"):
            with self.subTest(prefix):
                url, problems = self.read("https://a.example" + prefix)
                self.assertEqual((url.prefix, problems.warnings), (prefix, []))

    def test_authority_and_text(self):
        table = [
            (("https", "a.example", 443, "/x"), "a.example", "https://a.example/x"),
            (("https", "a.example", 80, ""), "a.example:80", "https://a.example:80"),
            (("http", "a.example", 80, ""), "a.example", "http://a.example"),
            (("http", "::1", 8045, ""), "[::1]:8045", "http://[::1]:8045"),
        ]
        for parts, authority, text in table:
            with self.subTest(text):
                url = gw.BaseUrl(*parts)
                self.assertEqual((url.authority, str(url)), (authority, text))


class ProxyTest(unittest.TestCase):

    def test_addresses(self):
        table = [
            ("http://p.example:3128", ("p.example", 3128, None)),
            ("p.example:3128", ("p.example", 3128, None)),
            ("http://p.example", ("p.example", 80, None)),
            ("http://[::1]:3128", ("::1", 3128, None)),
            # base64 of me:word, and of "me:wo rd@" with its escapes undone.
            ("http://me:word@p.example:1", ("p.example", 1, "Basic bWU6d29yZA==")),
            ("me:word@p.example:1", ("p.example", 1, "Basic bWU6d29yZA==")),
            ("http://me:wo%20rd%40@p.example:1", ("p.example", 1, "Basic bWU6d28gcmRA")),
            ("http://me@p.example:1", ("p.example", 1, "Basic bWU6")),
        ]
        for text, (host, port, authorization) in table:
            with self.subTest(text):
                proxy = gw.parse_proxy(text)
                shown = proxy.authorization.reveal() if proxy.authorization else None
                self.assertEqual((proxy.host, proxy.port, shown), (host, port, authorization))

    def test_faults(self):
        for text in ("https://p.example", "socks5://p.example", "http://", "http://p:x",
                     "http://p:65536", ""):
            with self.subTest(text):
                settings = {"providers": [dict(MINIMAL_PROVIDER, proxy=text)]}
                self.assertEqual(paths_of(problems_of(settings)), ["providers[0].proxy"])

    def test_text_leaves_user_and_password_out(self):
        proxy = gw.parse_proxy("http://me:word@p.example:3128")
        self.assertEqual(str(proxy), "http://p.example:3128")


class HeaderMapTest(unittest.TestCase):

    def test_extra_headers_are_pairs(self):
        headers = provider(headers={"X-Team": "a", "x-b": "c"}).headers
        self.assertEqual([(name, value.reveal()) for name, value in headers],
                         [("X-Team", "a"), ("x-b", "c")])

    def test_refused_names_and_values(self):
        table = [
            ("not a token", {"a b": "v"}, "a b"),
            ("credential", {"X-Api-Key": "v"}, "X-Api-Key"),
            ("authorization", {"authorization": "v"}, "authorization"),
            ("host", {"Host": "v"}, "Host"),
            ("framing", {"Content-Length": "1"}, "Content-Length"),
            ("hop by hop", {"Transfer-Encoding": "chunked"}, "Transfer-Encoding"),
            ("line end", {"X-A": "a\r\nX-B: c"}, "X-A"),
            ("not a string", {"X-A": 1}, "X-A"),
        ]
        for name, headers, at in table:
            with self.subTest(name):
                settings = {"providers": [dict(MINIMAL_PROVIDER, headers=headers)]}
                self.assertEqual(paths_of(problems_of(settings)), ["providers[0].headers." + at])


class ClientKeysTest(unittest.TestCase):

    def keys(self, *items):
        return config(auth={"api_keys": list(items)}).auth.api_keys

    def test_strings_and_objects(self):
        found = self.keys("one", {"name": "laptop", "key": "two", "requests_per_minute": 60},
                          {"key": "three"})
        self.assertEqual([(key.name, key.key.reveal(), key.requests_per_minute) for key in found],
                         [("key-1", "one", None), ("laptop", "two", 60), ("key-3", "three", None)])

    def test_an_empty_string_is_no_key_and_warns(self):
        for name, item in [("string", ""), ("blank", "  "), ("object", {"name": "n", "key": ""})]:
            with self.subTest(name):
                read = config(auth={"api_keys": [item]})
                self.assertEqual(read.auth.api_keys, ())
                self.assertEqual(paths_of(read.warnings), ["auth.api_keys[0]"])

    def test_faults(self):
        table = [
            ("no key", {"name": "n"}, "auth.api_keys[0].key"),
            ("not a string", {"key": 5}, "auth.api_keys[0].key"),
            ("space inside", {"key": "a b"}, "auth.api_keys[0].key"),
            ("not ASCII", {"key": "clé"}, "auth.api_keys[0].key"),
            ("rate of zero", {"key": "k", "requests_per_minute": 0},
             "auth.api_keys[0].requests_per_minute"),
        ]
        for name, item, path in table:
            with self.subTest(name):
                self.assertEqual(paths_of(problems_of({"auth": {"api_keys": [item]}})), [path])

    def test_space_around_a_key_is_left_out(self):
        self.assertEqual(self.keys(" one\t")[0].key.reveal(), "one")


GRANT = {"token_url": "https://issuer.example/t", "client_id": "abc", "refresh_token": "first",
         "store": "tokens.json"}


class AccountsTest(unittest.TestCase):

    def test_exactly_one_credential(self):
        table = [
            ("none", {}, ["providers[0].accounts[0]"]),
            ("two", {"api_key": "a", "auth_token": "b"}, ["providers[0].accounts[0]"]),
            ("api_key", {"api_key": "a"}, []),
            ("auth_token", {"auth_token": "b"}, []),
        ]
        for name, credentials, paths in table:
            with self.subTest(name):
                self.assertEqual(paths_of(problems_of(account(**credentials))), paths)

    def test_a_command_is_a_list_or_a_string_of_words(self):
        table = [
            ("print-my-key", ("print-my-key",)),
            ("vault read 'my key'", ("vault", "read", "my key")),
            (["vault", "read", "my key; rm -rf $HOME"], ("vault", "read", "my key; rm -rf $HOME")),
        ]
        for value, words in table:
            with self.subTest(value):
                read = provider(accounts=[{"name": "a", "key_command": value}]).accounts[0]
                self.assertEqual(read.source, gw.KeyCommand(words, 300))

    def test_what_is_no_command(self):
        for value in ("", " ", [], [""], ["a", 1], 7, None, {"a": "b"}, "a 'b", ["a\0b"]):
            with self.subTest(value):
                self.assertEqual(paths_of(problems_of(account(key_command=value))),
                                 ["providers[0].accounts[0].key_command"])

    def test_a_command_on_windows_keeps_its_backslashes(self):
        table = [
            ('"C:\\my tools\\key.exe" -n work', ["C:\\my tools\\key.exe", "-n", "work"]),
            ("C:\\tools\\key.exe 'a b'", ["C:\\tools\\key.exe", "a b"]),
            ('key.exe "', None),
        ]
        for text, words in table:
            with self.subTest(text):
                if words is None:
                    self.assertRaises(ValueError, gw.split_command, text, True)
                else:
                    self.assertEqual(gw.split_command(text, True), words)

    def test_a_ttl_is_a_commands_own(self):
        read = provider(accounts=[{"name": "a", "key_command": "k", "key_ttl_seconds": 60.5}])
        self.assertEqual(read.accounts[0].source.ttl_seconds, 60.5)
        self.assertEqual(paths_of(problems_of(account(key_command="k", key_ttl_seconds=0))),
                         ["providers[0].accounts[0].key_ttl_seconds"])
        self.assertEqual(problems_of(account(api_key="k", key_ttl_seconds=60)), [
            "providers[0].accounts[0].key_ttl_seconds: means something beside key_command only"])

    def test_a_grant(self):
        grant = dict(GRANT, token_url="https://issuer.example:8443/oauth/token?tenant=a",
                     client_secret="cs", scope="a b")
        read = provider(accounts=[{"name": "a", "token": grant}]).accounts[0].source
        self.assertEqual((read.token_url.base.origin, read.token_url.target),
                         ("https://issuer.example:8443", "/oauth/token?tenant=a"))
        self.assertEqual(str(read), "https://issuer.example:8443/oauth/token")
        self.assertEqual((read.client_id, read.refresh_token, read.store),
                         ("abc", gw.Secret("first"), "tokens.json"))
        self.assertEqual((read.client_secret, read.scope), (gw.Secret("cs"), "a b"))

    def test_what_is_no_grant(self):
        at = "providers[0].accounts[0].token"
        table = [
            ("a string", "x", [at]),
            ("nothing", {}, [at + name for name in (
                ".token_url", ".client_id", ".refresh_token", ".store")]),
            ("an unknown key", dict(GRANT, refresh="x"), [at + ".refresh"]),
            ("http elsewhere", dict(GRANT, token_url="http://issuer.example/t"),
             [at + ".token_url"]),
            ("no URL", dict(GRANT, token_url="issuer.example"), [at + ".token_url"]),
            ("a user", dict(GRANT, token_url="https://me:MARKED@issuer.example/t"),
             [at + ".token_url"]),
            ("a space", dict(GRANT, token_url="https://issuer.example/a b"), [at + ".token_url"]),
            ("a token of two lines", dict(GRANT, refresh_token="a\nb"), [at + ".refresh_token"]),
        ]
        for name, value, paths in table:
            with self.subTest(name):
                problems = problems_of(account(token=value))
                self.assertEqual(paths_of(problems), paths)
                self.assertNotIn("MARKED", "\n".join(problems))

    def test_an_issuer_on_loopback_may_be_plain(self):
        self.assertEqual(problems_of(account(token=dict(GRANT, token_url="http://[::1]:9"))), [])

    def test_which_header_carries_what(self):
        table = [
            ("x-api-key", {"api_key": "k"}, [("x-api-key", "k")]),
            ("authorization", {"api_key": "k"}, [("Authorization", "Bearer k")]),
            ("x-api-key", {"auth_token": "t"}, [("Authorization", "Bearer t")]),
            ("authorization", {"auth_token": "t"}, [("Authorization", "Bearer t")]),
            ("x-api-key", {"key_command": "c"}, [("x-api-key", "")]),
            ("authorization", {"key_command": "c"}, [("Authorization", "Bearer ")]),
            ("x-api-key", {"token": GRANT}, [("Authorization", "Bearer ")]),
        ]
        for header, credentials, pairs in table:
            with self.subTest(header=header, credentials=credentials):
                row = dict({"name": "a"}, **credentials)
                read = provider(credential_header=header, accounts=[row]).accounts[0]
                self.assertEqual(read.credentials(), pairs)

    def test_defaults(self):
        read = provider(accounts=[{"api_key": "k"}]).accounts[0]
        self.assertEqual(
            (read.name, read.priority, read.weight, read.requests_per_minute, read.max_concurrent,
             read.models, read.enabled), ("account-1", 0, 1, None, None, (), True))


class PresetsTest(unittest.TestCase):

    def test_those_of_contract_and_providers_list(self):
        table = [
            ("anthropic", "https://api.anthropic.com", "anthropic", "x-api-key"),
            ("zai", "https://api.z.ai/api/anthropic", "zhipu", "authorization"),
            ("deepseek", "https://api.deepseek.com/anthropic", "deepseek", "x-api-key"),
            ("moonshot", "https://api.moonshot.ai/anthropic", "moonshot", "authorization"),
            ("minimax", "https://api.minimax.io/anthropic", "minimax", "x-api-key"),
            ("openrouter", "https://openrouter.ai/api", "openrouter", "authorization"),
            ("vercel", "https://ai-gateway.vercel.sh", "vercel", "x-api-key"),
            ("fireworks", "https://api.fireworks.ai/inference", "fireworks", "authorization"),
            ("ollama", "http://localhost:11434", "ollama", "authorization"),
            ("lmstudio", "http://localhost:1234", "lmstudio", "authorization"),
            ("vllm", "http://localhost:8000", "vllm", "authorization"),
            ("sglang", "http://localhost:30000", "sglang", "authorization"),
            ("llamacpp", "http://localhost:8080", "llamacpp", "authorization"),
        ]
        for name, base_url, owner, header in table:
            with self.subTest(name):
                read = config(providers=[{"name": name}])
                row = read.providers[0]
                self.assertEqual((str(row.base_url), row.owned_by, row.credential_header),
                                 (base_url, owner, header))
                self.assertEqual(read.warnings, ())

    def test_every_preset_is_usable_by_its_name(self):
        for name in gw.PRESETS:
            with self.subTest(name):
                # Qwen's address holds the user's workspace: only they know it.
                given = {"base_url": "https://w.example"} if name == "qwen" else {}
                self.assertEqual(problems_of({"providers": [dict(given, name=name)]}), [])

    def test_a_value_of_the_provider_wins(self):
        row = provider(name="zai", base_url="https://own.example", owned_by="me", models=["m"],
                       credential_header="x-api-key", accounts=[{"name": "a", "api_key": "k"}])
        self.assertEqual((str(row.base_url), row.owned_by, row.models, row.credential_header),
                         ("https://own.example", "me", ("m",), "x-api-key"))
        self.assertEqual(row.accounts[0].credentials(), [("x-api-key", "k")])

    def test_an_empty_list_of_models_wins_too(self):
        self.assertEqual(provider(name="anthropic", models=[]).models, ())

    def test_preset_under_another_name(self):
        row = config(providers=[{"name": "second", "preset": "zai"}]).providers[0]
        self.assertEqual((row.name, str(row.base_url), row.owned_by, row.preset),
                         ("second", "https://api.z.ai/api/anthropic", "zhipu", "zai"))

    def test_an_unknown_one_names_the_nearest(self):
        problems = problems_of({"providers": [dict(MINIMAL_PROVIDER, preset="antropic")]})
        self.assertRegex(problems[0], r"^providers\[0\]\.preset: .*did you mean anthropic\?")

    def test_a_name_without_preset_needs_an_address(self):
        self.assertEqual(paths_of(problems_of({"providers": [{"name": "own"}]})),
                         ["providers[0].base_url"])

    def test_no_provider_means_anthropic_without_accounts(self):
        for settings in ({}, {"providers": []}):
            with self.subTest(settings=settings):
                row, = gw.Config.from_dict(settings).providers
                self.assertEqual((row.name, str(row.base_url), row.accounts),
                                 ("anthropic", "https://api.anthropic.com", ()))


class BetasTest(unittest.TestCase):

    def test_the_name_means_the_list(self):
        row = provider(betas={"add": ["own", "claude-code-defaults"], "drop": ["x-*"]})
        self.assertEqual(row.betas.add, (
            "own", "claude-code-20250219", "oauth-2025-04-20",
            "interleaved-thinking-2025-05-14", "fine-grained-tool-streaming-2025-05-14"))
        self.assertEqual(row.betas.drop, ("x-*",))

    def test_none_by_default(self):
        self.assertEqual(provider().betas, gw.BetaRule())


class ModelMapTest(unittest.TestCase):

    MAP = {
        "claude-opus-4-8": "exact",
        "claude-*": "short",
        "claude-opus-*": "long",
        "*-preview": "suffix",
        "claude-?-x": "one",
    }

    def test_exact_then_most_literal(self):
        table = [
            ("claude-opus-4-8", "exact"),
            ("claude-opus-4-7", "long"),
            ("claude-sonnet-5", "short"),
            ("claude-a-x", "one"),
            ("gpt-preview", "suffix"),
            ("gpt", None),
            ("Claude-opus-4-7", None),
        ]
        row = provider(model_map=self.MAP)
        for model, mapped in table:
            with self.subTest(model):
                self.assertEqual(row.mapped(model), mapped)

    def test_order_in_the_file_does_not_matter(self):
        row = provider(model_map=dict(reversed(list(self.MAP.items()))))
        self.assertEqual(row.mapped("claude-opus-4-7"), "long")

    def test_a_set_of_characters_is_not_literal(self):
        """claude-[opqrs]* has seven literal characters, claude-op* nine."""
        row = provider(model_map={"claude-[opqrs]*": "set", "claude-op*": "literal"})
        self.assertEqual(row.mapped("claude-opus-5"), "literal")

    def test_an_id_with_brackets_is_found_as_it_is(self):
        self.assertEqual(provider(model_map={"claude-opus-5[1m]": "m"}).mapped(
            "claude-opus-5[1m]"), "m")

    def test_model_sent_upstream(self):
        row = provider(models=["listed", "both"], model_map={"both": "b", "m-*": "m"},
                       default_model="default")
        table = [
            ("listed", "listed"),  # never the default: contract section 8
            ("both", "b"),
            ("m-1", "m"),
            ("unknown", "default"),
        ]
        for model, sent in table:
            with self.subTest(model):
                self.assertEqual(row.upstream_model(model), sent)

    def test_without_default_an_unknown_id_stays(self):
        self.assertEqual(provider(models=["listed"]).upstream_model("unknown"), "unknown")


class AuthModeTest(unittest.TestCase):

    def test_resolution(self):
        keys = ["k"]
        table = [
            ("auto", "127.0.0.1", [], "off"),
            ("auto", "localhost", [], "off"),
            ("auto", "::1", [], "off"),
            ("auto", "127.0.0.1", keys, "all_except_health"),
            ("auto", "127.0.0.1", [""], "off"),  # an empty string is no key
            ("auto", "0.0.0.0", [], "all_except_health"),
            ("auto", "::", [], "all_except_health"),
            ("auto", "192.0.2.1", keys, "all_except_health"),
            ("auto", "127.evil.example", [], "all_except_health"),
            ("off", "0.0.0.0", [], "off"),
            ("off", "127.0.0.1", keys, "off"),
            ("strict", "127.0.0.1", [], "strict"),
            ("strict", "0.0.0.0", keys, "strict"),
            ("all_except_health", "127.0.0.1", [], "all_except_health"),
        ]
        for mode, host, api_keys, expected in table:
            with self.subTest(mode=mode, host=host, api_keys=api_keys):
                read = config(host=host, auth={"mode": mode, "api_keys": api_keys})
                self.assertEqual(read.auth_mode, expected)


class CandidateProvidersTest(unittest.TestCase):

    PROVIDERS = [
        dict(name="first", base_url="https://1.example", models=["m-1", "shared"]),
        dict(name="second", base_url="https://2.example", models=["m-2", "shared"], priority=-1),
        dict(name="third", base_url="https://3.example", model_map={"map-*": "x"}),
        dict(name="fourth", base_url="https://4.example", models=["m-4"], enabled=False),
    ]
    ROUTES = {
        "route-*": "third",
        "route-both-*": ["third", "first"],
        "route-both-x": "second",
        "dead-*": "fourth",
        "half-*": ["fourth", "first"],
        "[rstu]oute-*": "first",
    }

    def test_which_and_in_what_order(self):
        table = [
            ("m-1", ["first"]),
            ("m-2", ["second"]),
            ("shared", ["second", "first"]),
            ("map-9", ["third"]),
            ("unknown", ["second", "first", "third"]),
            ("", ["second", "first", "third"]),
            ("m-4", ["second", "first", "third"]),  # who lists it is disabled
            ("route-1", ["third"]),
            ("route-both-1", ["third", "first"]),
            ("route-both-x", ["second"]),
            ("dead-1", []),  # a route names all that may be tried
            ("half-1", ["first"]),
        ]
        read = config(providers=self.PROVIDERS, routing={"models": self.ROUTES})
        for model, names in table:
            with self.subTest(model):
                found = gw.candidate_providers(read, model)
                self.assertEqual([row.name for row in found], names)


class SecrecyTest(unittest.TestCase):
    """Each secret holds MARK, in front of the four characters that a mask may show."""

    MARK = "MARKED"
    # What base64 makes of MARKED-pa behind the three characters "me:".
    ENCODED_MARK = "TUFSS0VELXBh"
    LONG = "sk-ant-api03-MARKED-0123456789-tail"
    SETTINGS = {
        "auth": {"api_keys": [LONG + "1", {"name": "n", "key": "MARKED-short"},
                              {"name": "from-env", "key": "${KEY}"}]},
        "providers": [{
            "name": "anthropic",
            "proxy": "http://me:MARKED-password@proxy.example:3128",
            "accounts": [
                {"name": "a", "api_key": LONG + "2"},
                {"name": "b", "auth_token": "${file:/run/token}"},
                {"name": "c", "api_key": "MARKED"},
                {"name": "d", "key_command": ["print", "--token", "MARKED"]},
                {"name": "e", "token": dict(
                    GRANT, token_url="https://i.example/t?key=MARKED", refresh_token=LONG + "5",
                    client_secret="MARKED")},
            ],
        }],
    }

    def assert_hidden(self, text):
        self.assertNotIn(self.MARK, text)
        self.assertNotIn(self.ENCODED_MARK, text)

    def test_no_text_of_a_configuration_shows_one(self):
        read = gw.Config.from_dict(self.SETTINGS, {"KEY": self.LONG + "3"},
                                   lambda path: self.LONG + "4")
        shown = [repr(read), str(read), "%s" % (read.providers,), repr(read.auth),
                 str(read.providers[0].proxy), repr(read.providers[0].proxy),
                 "\n".join(gw.describe_config(read)), "\n".join(gw.setting_lines(read)),
                 "\n".join(read.warnings)]
        for number, text in enumerate(shown):
            with self.subTest(number):
                self.assert_hidden(text)

    def test_the_marks_would_be_found(self):
        """The test above means something only if the secrets are in there."""
        read = gw.Config.from_dict(self.SETTINGS, {"KEY": "k"}, lambda path: self.LONG)
        revealed = [row.secret.reveal() for row in read.providers[0].accounts[:3]]
        self.assertTrue(all(self.MARK in text for text in revealed))
        self.assertIn(self.ENCODED_MARK, read.providers[0].proxy.authorization.reveal())

    def test_no_fault_shows_one(self):
        own = dict(MINIMAL_PROVIDER)
        table = [
            ("not ASCII", account(api_key="MARKEDé")),
            ("space", account(auth_token="MARKED MARKED")),
            ("line end", account(auth_token="MARKED\nMARKED")),
            ("list", account(api_key=["MARKED"])),
            ("object", account(api_key={"a": "MARKED"})),
            ("client key", {"auth": {"api_keys": ["MARKED MARKED"]}}),
            ("two credentials", account(api_key="MARKED", auth_token="MARKED")),
            ("token", account(token={"refresh_token": "MARKED"})),
            ("key_command", account(key_command=["print", "MARKED", 7])),
            ("a command's quote", account(key_command="print 'MARKED")),
            ("password in a URL", {"providers": [
                dict(own, base_url="https://me:MARKED@a.example")]}),
            ("slash in the password of a URL", {"providers": [
                dict(own, base_url="https://me:MARKED/x@a.example")]}),
            ("host not in normal form", {"providers": [
                dict(own, base_url="https://me:MARKED@a.ex\u2100mple")]}),
            ("proxy of another scheme", {"providers": [
                dict(own, proxy="https://me:MARKED@p.example:1")]}),
            ("slash in the password of a proxy", {"providers": [
                dict(own, proxy="http://me:MARKED/x@p.example:1")]}),
            ("port of a proxy", {"providers": [dict(own, proxy="http://me:MARKED@p.example:x")]}),
            ("host of a proxy not in normal form", {"providers": [
                dict(own, proxy="http://me:MARKED@p.ex\u2100mple:1")]}),
        ]
        for name, settings in table:
            with self.subTest(name):
                with self.assertRaises(gw.ConfigError) as raised:
                    gw.Config.from_dict(settings)
                self.assert_hidden(str(raised.exception))
                self.assert_hidden(repr(raised.exception))


class DescribedTest(unittest.TestCase):

    def test_names_the_json_type(self):
        table = [(True, "a boolean"), ("x", "a string"), (1, "a number"), (1.5, "a number"),
                 ([], "a list"), ({}, "an object"), (None, "null"), (object(), "something else")]
        for value, name in table:
            with self.subTest(name):
                self.assertEqual(gw.described(value), name)


class ReasonTest(unittest.TestCase):

    def test_says_it_without_numbers_and_quotes(self):
        table = [
            (FileNotFoundError(2, "No such file or directory", "/x"),
             "No such file or directory"),
            (ValueError("not UTF-8"), "not UTF-8"),
            (RecursionError(), "RecursionError"),
        ]
        for error, reason in table:
            with self.subTest(reason):
                self.assertEqual(gw.reason_of(error), reason)
                self.assertIsNone(re.search(r"\[Errno", gw.reason_of(error)))


if __name__ == "__main__":
    unittest.main()
