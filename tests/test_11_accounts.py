"""Section 11: who is asked and when, how accounts rest and recover; leases balance."""

import collections
import math
import threading
import unittest

import claude_gateway as gw
from tests.support import FakeClock

GLOBS = ["claude-opus-*", "glm"]


def config(*providers, **settings):
    """A configuration of providers that are given as (name, account dicts, settings)."""
    rows = []
    for name, accounts, more in providers:
        accounts = [dict({"api_key": "key-" + row["name"]}, **row) for row in accounts]
        rows.append(dict({"name": name, "base_url": "https://%s.example" % name,
                          "accounts": accounts}, **more))
    return gw.Config.from_dict(dict({"providers": rows}, **settings))


def provider(name, *accounts, **settings):
    """A provider with accounts given as dicts without a key."""
    return config((name, accounts, settings)).providers[0]


def answer(status, **told):
    return gw.Outcome("answer", status, **told)


def told(**limits):
    """What an answer tells of limits, given as RateLimits by name; in the form it has there."""
    return gw.told_limits(gw.Headers([
        ("anthropic-ratelimit-%s-%s" % (name.replace("_", "-"), member), "%s" % value)
        for name, limit in limits.items() for member, value in zip(
            ("limit", "remaining", "reset", "status"), limit) if value not in (None, "")]), 0.0)


def names(found):
    return [each.name for each in found]


class PoolTestCase(unittest.TestCase):
    """A pool on a fake clock; what is left to chance is 0.5."""

    def setUp(self):
        self.clock = FakeClock()
        self.chance = 0.5
        self.pool = gw.AccountPool(self.clock.monotonic, lambda: self.chance)

    def wanted(self, *providers, **settings):
        model = settings.get("model", "m")
        found = [each for row in providers for each in gw.candidates(row, model)]
        models = {row.name: model for row in providers}
        return gw.Attempts(
            self.pool, "failover", gw.Retry(3, 30.0),
            found, settings.get("session", ""), model, models, settings.get("paces", True))

    def accounts(self, *account_names, **settings):
        """What wants one provider p of plain accounts."""
        return self.wanted(provider("p", *({"name": name} for name in account_names)), **settings)

    def lease(self, wanted, strategy="failover", again_at=None):
        lease = self.pool.acquire(wanted, strategy, again_at or {})
        self.assertIsInstance(lease, gw.Lease)
        return lease

    def wait(self, wanted, strategy="failover", again_at=None):
        """The seconds that nobody may be asked."""
        found = self.pool.acquire(wanted, strategy, again_at or {})
        self.assertNotIsInstance(found, gw.Lease)
        return found

    def broken(self, wanted, outcome, lease=None, seconds=0.01):
        """One call that fails after some time; the seconds that its account rests."""
        lease = lease or self.lease(wanted)
        self.clock.advance(seconds)
        return self.pool.release(lease, wanted, gw.decide(outcome), outcome)

    def serve(self, wanted, lease=None, seconds=0.01, strategy="failover"):
        """One call that is answered; its lease's name."""
        lease = lease or self.lease(wanted, strategy)
        self.clock.advance(seconds)
        self.pool.answered(lease, wanted, whole=True)
        return lease.name

    def shown(self, wanted, place=0):
        return self.pool.snapshot(wanted.candidates[place])

    def state(self, wanted, place=0):
        return self.shown(wanted, place)["state"]


class RestTest(PoolTestCase):
    """How long an account rests, by what happened (contract section 9)."""

    ROWS = [
        (gw.Outcome("unreached"), [5, 10, 20, 40, 80, 160, 300, 300]),
        (gw.Outcome("closed"), [5, 10, 20, 40, 80, 160, 300, 300]),
        (gw.Outcome("silent"), [30, 30, 30]),
        (answer(429), [5, 10, 20, 40, 80, 160, 300, 300]),
        (answer(429, ready_in=7.0), [7, 7]),
        (answer(429, ready_in=0.0), [5, 10]),
        (answer(429, ready_in=86400.0), [1800, 1800]),
        (answer(429, says="credit", ready_in=7.0), [1800, 1800]),
        (answer(529), [0, 2, 4, 8, 16, 32, 60, 60]),
        (answer(503, ready_in=7.0), [0, 2]),
        (gw.Outcome("broke"), [0, 2, 4]),
        (answer(401), [1800, 1800]),
        (answer(403), [1800, 1800]),
        (answer(404, says="model"), [0, 0]),
        (answer(400), [0, 0]),
        (gw.Outcome("client_left"), [0]),
        (gw.Outcome("credential", ready_in=9.0), [9]),
        (gw.Outcome("credential_refused"), [1800]),
    ]

    def test_in_a_row(self):
        for outcome, rests in self.ROWS:
            with self.subTest(outcome.kind, status=outcome.status, told=outcome.ready_in):
                self.setUp()
                wanted = self.accounts("a")
                for seconds in rests:
                    self.assertEqual(self.broken(wanted, outcome), seconds)
                    self.assertEqual(self.shown(wanted)["ready_in_seconds"], seconds)
                    self.clock.advance(seconds + 60)

    def test_cases_have_rows_of_their_own(self):
        wanted = self.accounts("a")
        rests = []
        for status in (529, 429, 500, 429, 503):
            rests.append(self.broken(wanted, answer(status)))
            self.clock.advance(100)
        self.assertEqual(rests, [0, 5, 2, 10, 4])

    def test_an_answer_ends_the_row(self):
        wanted = self.accounts("a")
        for _ in range(3):
            self.broken(wanted, answer(529))
            self.clock.advance(100)
        self.serve(wanted)
        self.assertEqual(self.shown(wanted)["last_error"], "")
        rests = []
        for _ in range(2):
            self.clock.advance(1)
            rests.append(self.broken(wanted, answer(529)))
        self.assertEqual(rests, [0, 2])

    def test_an_answer_that_began_before_the_failure_does_not(self):
        wanted = self.accounts("a")
        old = self.lease(wanted)
        for _ in range(2):
            self.clock.advance(1)
            self.broken(wanted, answer(529))
        self.serve(wanted, old)
        self.assertEqual(self.state(wanted), "cooling")
        self.assertEqual(self.broken(wanted, answer(529)), 4)

    def test_a_wave_is_one_failure(self):
        """Fifty that began together and fail one after the other, or in one tick."""
        for step in (0.001, 0.0):
            for outcome, first, second in ((gw.Outcome("closed"), 5, 10), (answer(429), 5, 10),
                                           (answer(529), 0, 2)):
                with self.subTest(outcome, step=step):
                    self.setUp()
                    wanted = self.accounts("a")
                    leases = [self.lease(wanted) for _ in range(50)]
                    rests = {self.broken(wanted, outcome, lease, step) for lease in leases}
                    self.assertEqual(rests, {first})
                    self.clock.advance(100)
                    self.assertEqual(self.broken(wanted, outcome), second)

    def test_a_shorter_rest_does_not_end_a_longer_one(self):
        wanted = self.accounts("a")
        leases = [self.lease(wanted) for _ in range(4)]
        self.broken(wanted, answer(401), leases[0])
        self.broken(wanted, answer(429, ready_in=1.0), leases[1])
        self.broken(wanted, answer(529), leases[2])
        self.serve(wanted, leases[3])
        self.assertEqual(self.state(wanted), "out")
        self.assertEqual(self.wait(wanted), math.inf)

    def test_nor_where_both_only_seem_to_fail(self):
        wanted = self.accounts("a")
        leases = [self.lease(wanted) for _ in range(2)]
        self.broken(wanted, gw.Outcome("silent"), leases[0])
        self.assertEqual(self.broken(wanted, gw.Outcome("closed"), leases[1]), 5)
        self.assertAlmostEqual(self.shown(wanted)["ready_in_seconds"], 29.99)

    def test_the_clients_own_credential_never_rests(self):
        wanted = self.wanted(provider("p"))
        for outcome in (answer(429, transparent=True, ready_in=60.0),
                        answer(401, transparent=True), gw.Outcome("closed", transparent=True)):
            with self.subTest(outcome):
                self.assertEqual(self.broken(wanted, outcome), 0)
                self.pool.release(self.lease(wanted), wanted)
        self.assertEqual(self.pool.in_flight(), 0)

    def test_limits_of_other_paths_do_not_rest_it(self):
        """Token counting has limits of its own; a refused key is one everywhere."""
        wanted = self.accounts("a", paces=False)
        self.assertEqual(self.broken(wanted, answer(429, ready_in=60.0)), 0)
        self.assertEqual(self.state(wanted), "ready")
        self.assertEqual(self.broken(wanted, answer(401)), 1800)


class TroubledTest(PoolTestCase):
    """A healthy account is not asked for each of its troubles."""

    def test_from_a_failure_until_nothing_is_left_of_it(self):
        for outcome in (answer(429), answer(429, says="credit"), answer(401), answer(529),
                        answer(529, limits=told(requests=gw.RateLimit(50.0, 0.0, 10.0))),
                        gw.Outcome("closed"), gw.Outcome("credential")):
            with self.subTest(outcome):
                self.setUp()
                wanted = self.accounts("a")
                lease = self.lease(wanted)
                self.assertFalse(lease.state.troubled)
                self.broken(wanted, outcome, lease)
                self.assertTrue(lease.state.troubled)
                self.clock.advance(gw.MAX_REST_SECONDS)
                self.serve(wanted)
                self.assertTrue(lease.state.troubled)
                self.clock.advance(gw.RAMP_SECONDS)
                self.serve(wanted)
                self.assertFalse(lease.state.troubled)
                self.assertEqual((lease.state.in_a_row, lease.state.last_error), ({}, ""))


class LimitsTest(PoolTestCase):
    """What answers tell of limits is kept, and what is used up rests."""

    def learn(self, wanted, **limits):
        lease = self.lease(wanted)
        self.pool.answered(lease, wanted, told(**limits), True)

    def test_shown_as_told(self):
        wanted = self.accounts("a")
        self.learn(wanted, requests=gw.RateLimit(50.0, 7.0, 10.0))
        self.clock.advance(4)
        self.assertEqual(self.shown(wanted)["limits"], {
            "requests": {"limit": 50.0, "remaining": 7.0, "resets_in_seconds": 6.0}})
        self.assertEqual(self.state(wanted), "ready")

    def test_used_up_is_asked_last(self):
        wanted = self.accounts("a", "b")
        self.learn(wanted, requests=gw.RateLimit(50.0, 0.0, 10.0))
        self.assertEqual(self.serve(wanted), "p/b")
        self.clock.advance(10)
        self.assertEqual(self.serve(wanted), "p/a")

    def test_used_up_rests_whatever_the_answer_is(self):
        limits = told(requests=gw.RateLimit(50.0, 0.0, 10.0))
        ends = {
            "whole": lambda lease, wanted: self.pool.answered(lease, wanted, limits, True),
            "a stream": lambda lease, wanted: (self.pool.answered(lease, wanted, limits),
                                               self.pool.completed(lease, wanted)),
            "a stream that breaks": lambda lease, wanted: (
                self.pool.answered(lease, wanted, limits), self.pool.release(lease, wanted)),
            "a refusal": lambda lease, wanted: self.pool.release(
                lease, wanted, gw.decide(answer(400)), answer(400, limits=limits)),
        }
        for name, end in ends.items():
            with self.subTest(name):
                self.setUp()
                wanted = self.accounts("a", "b")
                end(self.lease(wanted), wanted)
                self.assertEqual(self.pool.in_flight(), 0)
                self.assertEqual((self.shown(wanted)["state"], self.serve(wanted)),
                                 ("cooling", "p/b"))

    def test_rejected_is_not_asked(self):
        wanted = self.accounts("a")
        self.learn(wanted, unified=gw.RateLimit(reset_in=20.0, status="rejected"))
        self.assertEqual(self.wait(wanted), 20)

    def test_at_most_half_an_hour(self):
        wanted = self.accounts("a")
        self.learn(wanted, unified=gw.RateLimit(reset_in=1e6, status="rejected"))
        self.assertEqual(self.wait(wanted), 1800)


class HardAndSoftTest(PoolTestCase):

    def test_who_seems_to_fail_is_asked_where_nobody_else_is_ready_soon(self):
        rather = gw.RATHER_WAIT_SECONDS
        table = [
            # b's rest is certain: its end is waited for only where it is near.
            (rather / 2, None, rather / 2),
            (rather + 0.5, "p/a", 0.0),
            (60.0, "p/a", 0.0),
        ]
        for told, expected, wait in table:
            with self.subTest(told):
                self.setUp()
                wanted = self.accounts("a", "b")
                self.broken(wanted, gw.Outcome("closed"), self.lease(wanted))
                lease = self.lease(wanted)
                self.assertEqual(lease.name, "p/b")
                self.broken(wanted, answer(429, ready_in=told), lease)
                found = self.pool.acquire(wanted, "failover")
                if expected is None:
                    self.assertAlmostEqual(found, wait)
                else:
                    self.assertEqual(found.name, expected)

    def test_sole_one_is_asked_at_once(self):
        wanted = self.accounts("a")
        self.broken(wanted, gw.Outcome("closed"))
        self.assertEqual(self.state(wanted), "cooling")
        self.assertEqual(self.lease(wanted).name, "p/a")

    def test_who_is_surely_not_ready_is_not(self):
        wanted = self.accounts("a")
        self.broken(wanted, answer(429, ready_in=20.0))
        self.assertEqual(self.wait(wanted), 20)
        self.clock.advance(5)
        self.assertEqual(self.wait(wanted), 15)
        self.clock.advance(15)
        self.assertEqual(self.lease(wanted).name, "p/a")

    def test_the_one_that_recovers_first(self):
        """Of several that only seem to fail, whoever rests least."""
        wanted = self.accounts("a", "b")
        for count, place in ((3, "p/a"), (2, "p/b")):
            for _ in range(count):
                lease = self.pool.acquire(self.accounts(place[-1]), "failover")
                self.broken(wanted, answer(529), lease)
        self.clock.advance(1.5)  # left: a 2.5, b 0.5
        self.assertEqual(self.lease(wanted).name, "p/b")

    def test_waiting_for_a_slot_goes_after_who_only_seems_to_fail(self):
        """Nobody knows when a slot comes free."""
        wanted = self.wanted(provider("p", {"name": "a", "max_concurrent": 1}, {"name": "b"}))
        held = self.lease(wanted)
        self.broken(wanted, gw.Outcome("closed"), self.lease(wanted))
        self.assertEqual((held.name, self.lease(wanted).name), ("p/a", "p/b"))

    def test_out_is_nobody_to_wait_for(self):
        wanted = self.accounts("a")
        self.broken(wanted, answer(401))
        self.assertEqual((self.wait(wanted), wanted.ready_in()), (math.inf, math.inf))
        self.assertFalse(self.pool.could_serve(wanted.candidates[0].provider))
        self.clock.advance(1800)
        self.assertEqual(self.lease(wanted).name, "p/a")
        self.assertTrue(self.pool.could_serve(wanted.candidates[0].provider))


class RecoveryTest(PoolTestCase):

    def started(self, wanted):
        """How many may begin now."""
        count = 0
        while isinstance(self.pool.acquire(wanted, "failover"), gw.Lease):
            count += 1
            if count >= 1000:
                break
        return count

    def test_ramp(self):
        """One, then one more every 250 ms for 30 s, then as many as come."""
        wanted = self.accounts("a")
        self.broken(wanted, answer(429, ready_in=10.0))
        self.clock.advance(10)
        self.assertEqual([self.started(wanted), self.wait(wanted)], [1, 0.25])
        self.clock.advance(0.125)
        self.assertEqual(self.wait(wanted), 0.125)
        for advance, count in ((0.125, 1), (0.125, 0), (0.125, 1), (1.0, 4), (10.0, 40)):
            self.clock.advance(advance)
            self.assertEqual(self.started(wanted), count)
        self.clock.advance(30 - 11.5)
        self.assertEqual(self.started(wanted), 1000)

    def test_no_ramp_after_what_cost_nothing(self):
        wanted = self.accounts("a")
        self.broken(wanted, answer(529))
        self.assertEqual(self.started(wanted), 1000)

    def test_ramp_begins_when_it_recovers(self):
        """Not, long after it serves again, when its rest would have ended."""
        wanted = self.accounts("a")
        self.broken(wanted, gw.Outcome("silent"))
        self.serve(wanted)
        self.assertEqual(self.state(wanted), "ready")
        self.clock.advance(30)
        self.assertEqual(self.started(wanted), 1000)

    def probe(self, outcome):
        """An account whose rest was guessed, and its probe."""
        wanted = self.accounts("a")
        old = self.lease(wanted)
        self.broken(wanted, outcome)
        self.clock.advance(1800)
        probe = self.lease(wanted)
        self.assertEqual(self.wait(wanted), gw.PROBE_LOOK_SECONDS)
        return wanted, probe, old

    GUESSED = [answer(429, ready_in=86400.0), answer(429, says="credit"), answer(401)]

    def test_one_probe_while_others_wait(self):
        for outcome in self.GUESSED:
            with self.subTest(outcome):
                self.setUp()
                wanted, probe, _ = self.probe(outcome)
                self.clock.advance(100)
                self.wait(wanted)
                self.serve(wanted, probe)
                self.clock.advance(0.25)
                self.assertEqual(self.started(wanted), 1, "then the ramp")

    def test_a_probe_that_fails_rests_it_again(self):
        for outcome in self.GUESSED:
            with self.subTest(outcome):
                self.setUp()
                wanted, probe, _ = self.probe(outcome)
                self.assertEqual(self.broken(wanted, outcome, probe), 1800)
                self.clock.advance(1800)
                self.lease(wanted)
                self.wait(wanted)

    def test_a_probe_whose_client_left_makes_room_for_the_next(self):
        wanted, probe, _ = self.probe(self.GUESSED[0])
        self.pool.release(probe, wanted)
        self.clock.advance(0.25)
        self.lease(wanted)
        self.wait(wanted)

    def test_an_older_call_that_comes_home_does_not(self):
        for ends in (self.pool.release, self.serve):
            with self.subTest(ends.__name__):
                self.setUp()
                wanted, _, old = self.probe(self.GUESSED[0])
                if ends == self.serve:
                    self.serve(wanted, old)
                else:
                    self.pool.release(old, wanted)
                self.clock.advance(100)
                self.wait(wanted)

    def test_an_answer_about_the_request_proves_the_account(self):
        """A 400 speaks of what was asked, not of who asked: the probe has succeeded."""
        wanted, probe, _ = self.probe(self.GUESSED[0])
        outcome = gw.Outcome("answer", 400)
        self.pool.release(probe, wanted, gw.decide(outcome), outcome)
        self.clock.advance(gw.RAMP_STEP_SECONDS)
        self.assertFalse(self.lease(wanted).is_probe)

    def test_what_was_told_needs_no_probe(self):
        wanted = self.accounts("a")
        self.broken(wanted, answer(429, ready_in=1800.0))
        self.clock.advance(1800)
        self.assertEqual(self.started(wanted), 1)
        self.clock.advance(0.25)
        self.assertEqual(self.started(wanted), 1)


class UnknownModelTest(PoolTestCase):

    def setUp(self):
        super().setUp()
        self.first = provider("p", {"name": "a"}, {"name": "b"})
        self.second = provider("q", {"name": "a"})
        self.refused = answer(404, says="model")

    def test_the_model_on_that_provider_for_twelve_hours(self):
        wanted = self.wanted(self.first, self.second)
        self.broken(wanted, self.refused)
        self.assertEqual(self.lease(wanted).name, "q/a")
        self.assertEqual(self.lease(self.wanted(self.first, self.second, model="n")).name, "p/a")
        self.clock.advance(12 * 3600 - 1)
        self.assertEqual(self.lease(wanted).name, "q/a")
        self.clock.advance(1)
        self.assertEqual(self.lease(wanted).name, "p/a")

    def test_last_resort_where_there_is_no_other(self):
        wanted = self.wanted(self.first)
        self.broken(wanted, self.refused)
        self.assertEqual(self.lease(wanted).name, "p/a")

    def test_an_answer_clears_it(self):
        alone, both = self.wanted(self.first), self.wanted(self.first, self.second)
        self.broken(alone, self.refused)
        self.serve(alone)
        self.assertEqual(self.lease(both).name, "p/a")

    def test_retry_after_is_not_its(self):
        wanted = self.wanted(self.first, self.second)
        self.broken(wanted, self.refused)
        self.broken(wanted, answer(429, ready_in=40.0))
        self.assertEqual(wanted.ready_in(), 40)

    def test_bounded(self):
        for number in range(gw.MAX_UNKNOWN_MODELS + 100):
            self.broken(self.wanted(self.first, model="m%d" % number), self.refused)
        self.assertEqual(self.lease(self.wanted(self.first, self.second, model="m0")).name, "p/a")
        self.assertEqual(self.lease(self.wanted(
            self.first, self.second, model="m%d" % gw.MAX_UNKNOWN_MODELS)).name, "q/a")


class SettingsTest(PoolTestCase):

    def test_requests_per_minute_slide(self):
        wanted = self.wanted(provider("p", {"name": "a", "requests_per_minute": 3}))
        for _ in range(3):
            self.serve(wanted, seconds=10)
        self.assertEqual(self.wait(wanted), 30)
        self.clock.advance(29)
        self.assertEqual(self.wait(wanted), 1)
        self.clock.advance(1)
        self.serve(wanted, seconds=0)
        self.assertEqual(self.wait(wanted), 10)

    def test_over_its_own_limit_the_next_is_asked(self):
        wanted = self.wanted(provider("p", {"name": "a", "requests_per_minute": 1}, {"name": "b"}))
        self.assertEqual([self.serve(wanted) for _ in range(3)], ["p/a", "p/b", "p/b"])

    def test_a_call_that_is_made_again_counts(self):
        wanted = self.wanted(provider("p", {"name": "a", "requests_per_minute": 2}))
        lease = self.lease(wanted)
        self.pool.again(lease)
        self.pool.release(lease, wanted)
        self.assertEqual(self.wait(wanted), 60)

    def test_max_concurrent(self):
        wanted = self.wanted(provider("p", {"name": "a", "max_concurrent": 2}))
        first, _ = self.lease(wanted), self.lease(wanted)
        self.assertEqual(self.wait(wanted), gw.SLOT_LOOK_SECONDS)
        self.pool.release(first, wanted)
        self.lease(wanted)

    def test_tiers(self):
        low = provider("low", {"name": "a"}, {"name": "b", "priority": -1}, priority=2)
        high = provider("high", {"name": "a", "priority": 5}, priority=1)
        wanted = self.wanted(low, high)
        for strategy in ("failover", "round_robin", "weighted", "shuffle", "least_loaded"):
            with self.subTest(strategy):
                self.setUp()
                order = []
                for _ in range(3):
                    lease = self.lease(wanted, strategy)
                    order.append(lease.name)
                    self.broken(wanted, answer(401), lease)
                self.assertEqual(order, ["high/a", "low/b", "low/a"])


class StrategyTest(PoolTestCase):

    def picks(self, wanted, strategy, count):
        return [self.serve(wanted, strategy=strategy) for _ in range(count)]

    def test_failover_stays_with_the_first(self):
        self.assertEqual(self.picks(self.accounts("a", "b"), "failover", 5), ["p/a"] * 5)

    def test_round_robin(self):
        self.assertEqual(self.picks(self.accounts("a", "b", "c"), "round_robin", 7),
                         ["p/a", "p/b", "p/c"] * 2 + ["p/a"])

    def test_who_has_rested_does_not_catch_up(self):
        for strategy, most in (("round_robin", 26), ("weighted", 26)):
            with self.subTest(strategy):
                self.setUp()
                wanted = self.accounts("a", "b")
                self.picks(wanted, strategy, 10)
                lease = self.lease(wanted, strategy)
                rested = lease.name
                self.broken(wanted, answer(429, ready_in=50.0), lease)
                self.assertNotIn(rested, self.picks(wanted, strategy, 100))
                self.clock.advance(100)
                after = self.picks(wanted, strategy, 50)
                self.assertLessEqual(after.count(rested), most)
                self.assertNotIn([rested] * 3, [after[at:at + 3] for at in range(48)])

    def test_weighted_is_exact(self):
        table = [((3, 1), (300, 100)), ((1, 3), (100, 300)), ((1, 1), (200, 200)),
                 ((0.5, 0.5), (200, 200)), ((5, 2, 1), (250, 100, 50))]
        for weights, shares in table:
            with self.subTest(weights):
                self.setUp()
                wanted = self.wanted(provider("p", *(
                    {"name": "abc"[place], "weight": weight}
                    for place, weight in enumerate(weights))))
                counts = collections.Counter(self.picks(wanted, "weighted", 400))
                for name, share in zip(("p/a", "p/b", "p/c"), shares):
                    self.assertLessEqual(abs(counts[name] - share), 1, counts)

    def test_weighted_mixes(self):
        """No run of one account beyond its share: 3 to 1 is never 5 in a row."""
        wanted = self.wanted(provider("p", {"name": "a", "weight": 3}, {"name": "b"}))
        text = "".join(name[-1] for name in self.picks(wanted, "weighted", 400))
        self.assertNotIn("aaaaa", text)
        self.assertNotIn("bb", text)

    def test_weights_of_provider_and_account_multiply(self):
        wanted = self.wanted(provider("p", {"name": "a", "weight": 2}, weight=3),
                             provider("q", {"name": "a", "weight": 4}, weight=0.5))
        counts = collections.Counter(self.picks(wanted, "weighted", 400))
        self.assertLessEqual(abs(counts["p/a"] - 300), 1)

    def test_shuffle_goes_by_chance(self):
        numbers = iter([0.9, 0.1, 0.5, 0.2, 0.8, 0.7])
        self.pool = gw.AccountPool(self.clock.monotonic, lambda: next(numbers))
        self.assertEqual(self.picks(self.accounts("a", "b", "c"), "shuffle", 2), ["p/b", "p/a"])

    def test_least_loaded(self):
        wanted = self.wanted(provider("p", {"name": "a", "weight": 2}, {"name": "b"}))
        leases = [self.lease(wanted, "least_loaded") for _ in range(6)]
        self.assertEqual(collections.Counter(names(leases)), {"p/a": 4, "p/b": 2})
        self.pool.release(next(lease for lease in leases if lease.name == "p/b"), wanted)
        self.assertEqual(self.lease(wanted, "least_loaded").name, "p/b")

    def test_least_loaded_goes_round_where_all_are_idle(self):
        self.assertEqual(self.picks(self.accounts("a", "b"), "least_loaded", 4),
                         ["p/a", "p/b"] * 2)


class StickyTest(PoolTestCase):

    def ask(self, session, model="m", strategy="round_robin"):
        return self.serve(self.accounts("a", "b", "c", session=session, model=model),
                          strategy=strategy)

    def test_a_conversation_stays(self):
        own = [self.ask("s%d" % number) for number in range(3)]
        self.assertEqual(sorted(own), ["p/a", "p/b", "p/c"])
        for _ in range(5):
            self.assertEqual([self.ask("s%d" % number) for number in range(3)], own)

    def test_it_moves_only_when_it_must_and_then_stays(self):
        self.assertEqual(self.ask("s", strategy="failover"), "p/a")
        wanted = self.accounts("a", "b", "c", session="s")
        self.broken(wanted, answer(429, ready_in=20.0))
        self.assertEqual(self.ask("s", strategy="failover"), "p/b")
        self.clock.advance(100)
        self.assertEqual(self.ask("s", strategy="failover"), "p/b")
        self.assertEqual(self.ask("t", strategy="failover"), "p/a")

    def test_a_failure_that_cost_nothing_does_not_move_it(self):
        self.assertEqual(self.ask("s", strategy="failover"), "p/a")
        self.broken(self.accounts("a", "b", "c", session="s"), answer(529))
        self.assertEqual(self.ask("s", strategy="failover"), "p/a")

    def test_one_hour(self):
        own = self.ask("s")
        for _ in range(3):
            self.clock.advance(3599)
            self.assertEqual(self.ask("s"), own, "each use begins a new hour")
        self.clock.advance(3600)
        self.assertNotEqual(self.ask("s"), own)

    def test_two_models_on_two_accounts_take_turns(self):
        """A third model goes where the conversation went last."""
        row = provider("p", {"name": "a", "models": ["x", "z"]}, {"name": "b", "models": ["y", "z"]})
        names = [self.serve(self.wanted(row, session="s", model=model), seconds=5)
                 for model in ("x", "y", "x", "z")]
        self.assertEqual(names, ["p/a", "p/b", "p/a", "p/a"])

    def test_a_new_model_is_noted_at_once(self):
        own = self.ask("s", "opus")
        self.ask("s", "haiku")
        self.clock.advance(gw.STICKY_SECONDS - 1)
        self.assertEqual(self.ask("s", "haiku"), own)

    def test_it_goes_before_the_tier(self):
        wanted = self.wanted(provider("p", {"name": "a"}, {"name": "b", "priority": 1}),
                             session="s")
        first = self.lease(wanted)
        second = self.lease(wanted, again_at={first.candidate.key: math.inf})
        self.serve(wanted, second)
        self.assertEqual(self.lease(wanted).name, "p/b")

    def test_a_new_model_goes_where_the_conversation_is(self):
        own = self.ask("s", "opus")
        self.assertEqual(self.ask("s", "haiku"), own)

    def test_each_model_has_its_own(self):
        """haiku lives elsewhere; opus does not follow it there."""
        row = provider("p", {"name": "a", "models": ["opus"]}, {"name": "b", "models": ["haiku"]},
                       {"name": "c"})
        opus, haiku = (self.wanted(row, session="s", model=model) for model in ("opus", "haiku"))
        for _ in range(3):
            self.assertEqual([self.serve(opus), self.serve(haiku)], ["p/a", "p/b"])
        self.serve(opus, self.lease(opus, again_at={("p", "a"): math.inf}))
        self.assertEqual([self.serve(haiku), self.serve(opus)], ["p/b", "p/c"])

    def test_bounded(self):
        self.assertEqual(self.ask("first", strategy="failover"), "p/a")
        only_b = self.accounts("b", session="x")
        for number in range(gw.MAX_CONVERSATIONS // 2):
            only_b.session = "x%d" % number
            self.serve(only_b, seconds=0)
        lease = self.lease(self.accounts("a", "b", session="x0"))
        self.assertEqual(lease.name, "p/b")
        self.assertLessEqual(len(self.pool._sticky), gw.MAX_CONVERSATIONS)
        # The oldest has gone: it goes where the strategy says.
        self.assertEqual(self.lease(self.accounts("c", "a", session="first")).name, "p/c")


class RetainTest(PoolTestCase):

    def reload(self, before, after):
        self.pool.retain([after])

    def test_who_remains_keeps_its_state(self):
        row = provider("p", {"name": "a"})
        wanted = self.wanted(row)
        self.broken(wanted, answer(429, ready_in=60.0))
        after = provider("p", {"name": "b"}, {"name": "a", "priority": 3})
        self.reload(row, after)
        self.assertEqual([self.state(self.wanted(after), place) for place in (0, 1)],
                         ["ready", "cooling"])
        self.assertEqual(self.wanted(after).candidates[1].name, "p/a")

    def test_another_credential_is_another_account(self):
        row = provider("p", {"name": "a"})
        changes = [
            provider("p", {"name": "a", "api_key": "another"}),
            provider("p", {"name": "a"}, base_url="https://elsewhere.example"),
            provider("p", {"name": "a"}, credential_header="authorization"),
        ]
        for after in changes:
            with self.subTest(str(after.base_url)):
                self.setUp()
                self.broken(self.wanted(row), answer(429, ready_in=60.0))
                self.reload(row, after)
                self.assertEqual(self.state(self.wanted(after)), "ready")

    def test_nobody_stays_out(self):
        row = provider("p", {"name": "a"})
        wanted = self.wanted(row)
        self.broken(wanted, answer(401))
        self.reload(row, provider("p", {"name": "a"}))
        self.lease(wanted)
        self.clock.advance(0.25)
        self.lease(wanted)  # and no probe is waited for
        self.clock.advance(1800)
        for _ in range(100):  # nor is there a ramp when it would have recovered
            self.lease(wanted)

    def test_credit_stays_used_up(self):
        row = provider("p", {"name": "a"})
        self.broken(self.wanted(row), answer(429, says="credit"))
        self.reload(row, row)
        self.assertAlmostEqual(self.wait(self.wanted(row)), 1800)

    def test_models_are_asked_for_anew(self):
        rows = [provider("p", {"name": "a"}), provider("q", {"name": "a"})]
        wanted = self.wanted(*rows)
        self.broken(wanted, answer(404, says="model"))
        self.pool.retain(rows)
        self.assertEqual(self.lease(wanted).name, "p/a")

    def test_a_lease_from_before_is_given_back_well(self):
        row = provider("p", {"name": "a"})
        wanted = self.wanted(row)
        for after in (provider("p", {"name": "a"}), provider("p", {"name": "b"}),
                      provider("p", {"name": "a", "api_key": "another"})):
            with self.subTest(after.accounts[0].name):
                self.setUp()
                leases = [self.lease(wanted) for _ in range(2)]
                self.reload(row, after)
                self.assertEqual(self.pool.in_flight(), 2)
                self.broken(wanted, answer(401), leases[0])
                self.serve(wanted, leases[1])
                self.assertEqual(self.pool.in_flight(), 0)
                self.assertEqual(self.shown(self.wanted(after))["in_flight"], 0)


class LeaseTest(PoolTestCase):

    def test_names_and_credentials(self):
        row = provider("p", {"name": "a"})
        lease = self.lease(self.wanted(row))
        self.assertEqual((lease.name, lease.credentials()), ("p/a", [("x-api-key", "key-a")]))
        lease = self.lease(self.wanted(provider("q")))
        self.assertEqual((lease.name, lease.credentials()), ("q", []))

    def test_nobody_is_never(self):
        self.assertEqual(self.wait(self.wanted()), math.inf)
        self.assertEqual(self.wanted().ready_in(), math.inf)

    def test_given_back_once(self):
        wanted = self.accounts("a")
        lease = self.lease(wanted)
        self.pool.release(lease, wanted)
        with self.assertRaises(AssertionError):
            self.pool.release(lease, wanted)

    def test_balance_under_threads(self):
        wanted = self.wanted(provider("p", {"name": "a", "max_concurrent": 5}, {"name": "b"}),
                             provider("q", {"name": "a"}), provider("r"), session="s")
        outcomes = [None, answer(429, ready_in=0.0), answer(529), gw.Outcome("client_left")]
        start, faults = threading.Barrier(16), []

        def work(number):
            start.wait(10)
            try:
                for turn in range(200):
                    strategy = ("failover", "round_robin", "least_loaded")[turn % 3]
                    lease = self.pool.acquire(wanted, strategy)
                    if not isinstance(lease, gw.Lease):
                        continue
                    outcome = outcomes[(turn + number) % 4]
                    if outcome is None:
                        self.pool.answered(lease, wanted, whole=True)
                    else:
                        self.pool.release(lease, wanted, gw.decide(outcome), outcome)
            except Exception as error:  # told below: a thread's own would go unseen
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual((faults, self.pool.in_flight()), ([], 0))
        for place in range(3):
            self.assertEqual(self.shown(wanted, place)["in_flight"], 0)


class AttemptsTest(PoolTestCase):

    def attempts(self, wanted, max_attempts=3, max_wait_seconds=30.0, strategy="failover"):
        return gw.Attempts(
            self.pool, strategy, gw.Retry(max_attempts, max_wait_seconds), wanted.candidates,
            wanted.session, wanted.model, wanted.models, wanted.paces)

    def walk(self, attempts, outcomes):
        """Names and waits of a request whose calls end so; its end is None."""
        seen, outcomes = [], list(outcomes)
        while True:
            step = attempts.step()
            if isinstance(step, gw.Lease):
                outcome = outcomes.pop(0)
                attempts.failed(step, gw.decide(outcome), outcome)
                seen.append(step.name)
            elif step is None:
                return seen + [None]
            else:
                self.clock.advance(step)
                seen.append(round(step, 6))

    def test_never_more_than_max_attempts(self):
        for limit in (1, 2, 3, 10):
            for names_of in ("a", "ab", "abcdefghijkl"):
                with self.subTest(limit=limit, accounts=names_of):
                    self.setUp()
                    attempts = self.attempts(self.accounts(*names_of), limit, 1e6)
                    seen = self.walk(attempts, [answer(529)] * 20)
                    self.assertEqual(sum(isinstance(each, str) for each in seen), limit)
                    self.assertEqual(attempts.calls_count, limit)
                    self.assertEqual(self.pool.in_flight(), 0)

    ROWS = [
        # accounts, what each call gives, what is seen
        ("abc", [answer(529)] * 3, ["p/a", "p/b", "p/c", None]),
        ("ab", [answer(529)] * 3, ["p/a", "p/b", 0.25, "p/a", None]),
        # alone: half of 0.5 s, then half of 1 s
        ("a", [answer(529)] * 3, ["p/a", 0.25, "p/a", 0.5, "p/a", None]),
        ("a", [gw.Outcome("closed")] * 3, ["p/a", 0.25, "p/a", 0.5, "p/a", None]),
        ("a", [gw.Outcome("unreached")] * 3, ["p/a", 0.25, "p/a", 0.5, "p/a", None]),
        # what is not momentary is not asked twice
        ("a", [gw.Outcome("silent")], ["p/a", None]),
        ("ab", [gw.Outcome("silent")] * 2, ["p/a", "p/b", None]),
        ("a", [answer(401)], ["p/a", None]),
        ("ab", [answer(401)] * 2, ["p/a", "p/b", None]),
        ("a", [answer(429, says="credit")], ["p/a", None]),
        # 429: the next; nobody left: the wait that was told, then again
        ("a", [answer(429, ready_in=7.0)] * 3, ["p/a", 7.0, "p/a", 7.0, "p/a", None]),
        ("a", [answer(429)] * 3, ["p/a", 5.0, "p/a", 10.0, "p/a", None]),
        ("ab", [answer(429, ready_in=7.0), answer(429, ready_in=3.0), answer(529)],
         ["p/a", "p/b", 3.0, "p/b", None]),
        ("a", [answer(429, ready_in=31.0)], ["p/a", None]),
        ("a", [answer(429, ready_in=20.0)] * 2, ["p/a", 20.0, "p/a", None]),
        # x-should-retry: false, and what ends a request
        ("ab", [gw.Outcome("shutdown")], ["p/a", None]),
        ("ab", [gw.Outcome("client_left")], ["p/a", None]),
        ("ab", [gw.Outcome("closed", repeatable=False)], ["p/a", None]),
    ]

    def test_walks(self):
        for accounts, outcomes, expected in self.ROWS:
            with self.subTest(accounts=accounts, outcome=outcomes[0]):
                self.setUp()
                self.assertEqual(self.walk(self.attempts(self.accounts(*accounts)), outcomes),
                                 expected)

    def test_full_jitter(self):
        for chance in (0.0, 0.999):
            with self.subTest(chance):
                self.setUp()
                self.chance = chance
                waits = [each for each in self.walk(
                    self.attempts(self.accounts("a"), 5), [answer(529)] * 5)
                    if isinstance(each, float)]
                self.assertEqual(waits, [] if not chance else
                                 [round(chance * each, 6) for each in (0.5, 1.0, 2.0, 4.0)])

    def test_who_only_seems_to_fail_goes_before_who_was_tried(self):
        wanted = self.accounts("a", "b")
        self.broken(self.accounts("b"), gw.Outcome("closed"))
        self.assertEqual(self.walk(self.attempts(wanted, 2), [answer(529)] * 2),
                         ["p/a", "p/b", None])

    def test_all_waiting_together_is_bounded(self):
        attempts = self.attempts(self.accounts("a"), 10)
        seen = self.walk(attempts, [answer(429, ready_in=12.0)] * 9)
        self.assertEqual(seen, ["p/a", 12.0, "p/a", 12.0, "p/a", None])
        self.assertEqual(attempts.waited_seconds, 24)

    def test_waiting_before_the_first_call(self):
        wanted = self.accounts("a")
        self.broken(wanted, answer(429, ready_in=12.0))
        self.assertEqual(self.walk(self.attempts(wanted), [answer(401)]), [12.0, "p/a", None])
        self.setUp()
        self.broken(wanted, answer(429, ready_in=31.0))
        attempts = self.attempts(wanted)
        self.assertEqual(self.walk(attempts, []), [None])
        self.assertEqual((attempts.ready_in(), attempts.ready_in(hopeful=True)), (31, 31))

    def test_the_clients_own_credential(self):
        wanted = self.wanted(provider("p"))
        rows = [
            ([answer(429, ready_in=2.0, transparent=True)] * 3, ["p", 2.0, "p", 2.0, "p", None]),
            ([answer(529, transparent=True)] * 3, ["p", 0.25, "p", 0.5, "p", None]),
        ]
        for outcomes, expected in rows:
            with self.subTest(outcomes[0]):
                self.assertEqual(self.walk(self.attempts(wanted), outcomes), expected)

    def test_an_unknown_model_goes_to_another_provider(self):
        wanted = self.wanted(provider("p", {"name": "a"}, {"name": "b"}),
                             provider("q", {"name": "a"}, {"name": "b"}))
        refused = answer(404, says="model")
        self.assertEqual(self.walk(self.attempts(wanted), [refused] * 2), ["p/a", "q/a", None])

    def test_a_call_that_is_repeated_counts(self):
        attempts = self.attempts(self.accounts("a", "b"), 2)
        lease = attempts.step()
        self.assertTrue(attempts.may_repeat())
        attempts.repeated(lease)
        self.assertFalse(attempts.may_repeat())
        attempts.failed(lease, gw.decide(answer(529)), answer(529))
        self.assertIsNone(attempts.step())
        attempts.not_made(0.0)
        self.assertEqual(attempts.step().name, "p/b")

    def test_renewals_that_hang_are_not_tried_one_after_the_other(self):
        attempts = self.attempts(self.accounts("a", "b", "c"), 1)
        failed = gw.Outcome("credential")
        for seconds in (1.0, gw.COMMAND_SECONDS - 1.0):
            lease = attempts.step()
            attempts.not_made(seconds)
            attempts.failed(lease, gw.decide(failed), failed)
        self.assertIsNone(attempts.step())

    def test_ready_in(self):
        wanted = self.accounts("a", "b")
        attempts = self.attempts(wanted)
        self.walk(attempts, [answer(429, ready_in=100.0), answer(429, says="credit")])
        self.assertEqual((attempts.ready_in(), attempts.ready_in(hopeful=True)), (100, 100))
        self.setUp()
        attempts = self.attempts(wanted)
        self.walk(attempts, [answer(401), answer(429, says="credit")])
        self.assertEqual((attempts.ready_in(), attempts.ready_in(hopeful=True)),
                         (1800, math.inf))

    def test_ready_in_for_the_clients_own_credential(self):
        attempts = self.attempts(self.wanted(provider("p")))
        self.walk(attempts, [answer(429, ready_in=100.0, transparent=True)])
        self.assertEqual(attempts.ready_in(), 100)


class CandidatesTest(unittest.TestCase):

    def test_lower_priority_first_then_order(self):
        row = provider("p", {"name": "a", "priority": 1}, {"name": "b"}, {"name": "c"},
                       {"name": "d", "priority": -0.5})
        self.assertEqual(names(gw.candidates(row, "m")), ["p/d", "p/b", "p/c", "p/a"])

    def test_disabled_ones_are_left_out(self):
        row = provider("p", {"name": "a", "enabled": False}, {"name": "b"})
        self.assertEqual(names(gw.candidates(row, "m")), ["p/b"])

    def test_none_left_is_not_the_clients_credential(self):
        """A provider whose accounts are all off has accounts all the same."""
        row = provider("p", {"name": "a", "enabled": False})
        self.assertEqual(gw.candidates(row, "m"), [])

    def test_without_accounts_it_is_the_clients_credential(self):
        row = provider("p")
        found = gw.candidates(row, "m")
        self.assertEqual([(each.provider, each.account) for each in found], [(row, None)])

    def test_globs_of_the_account(self):
        row = provider("p", {"name": "a", "models": GLOBS}, {"name": "b"})
        table = [
            ("claude-opus-5", ["p/a", "p/b"]),
            ("glm", ["p/a", "p/b"]),
            ("glm-5", ["p/b"]),
            ("Claude-opus-5", ["p/b"]),
            ("", ["p/a", "p/b"]),  # a request without a model, such as a batch
        ]
        for model, expected in table:
            with self.subTest(model):
                self.assertEqual(names(gw.candidates(row, model)), expected)


class CandidateProvidersTest(unittest.TestCase):

    def found(self, model, routing=None):
        rows = config(("p", [{"name": "a"}], {"models": ["claude-x"], "priority": 1}),
                      ("q", [{"name": "a"}], {"model_map": {"glm-*": "GLM"}}),
                      ("off", [{"name": "a"}], {"enabled": False, "models": ["claude-x"]}),
                      routing={"models": routing or {}})
        return [(row.name, row.priority) for row in gw.candidate_providers(rows, model)]

    def test_table(self):
        table = [
            ("claude-x", None, [("p", 1)]),
            ("claude-x-thinking", None, [("p", 1)]),
            ("glm-9", None, [("q", 0)]),
            ("other", None, [("q", 0), ("p", 1)]),
            ("claude-x", {"claude-*": "q"}, [("q", 0)]),
            ("claude-x", {"claude-*": "q", "claude-x*": "p"}, [("p", 0)]),
            ("claude-x", {"*": ["p", "q"]}, [("p", 0), ("q", 1)]),
            ("claude-x", {"*": ["off", "q"]}, [("q", 1)]),
            ("claude-x", {"*": "off"}, []),
        ]
        for model, routing, expected in table:
            with self.subTest(model=model, routing=routing):
                self.assertEqual(self.found(model, routing), expected)


class CouldServeTest(PoolTestCase):

    def test_has_anybody(self):
        off = {"name": "a", "enabled": False}
        table = [
            ("own credentials", provider("p"), True),
            ("an account", provider("p", {"name": "a"}), True),
            ("an account for some models", provider("p", {"name": "a", "models": ["x"]}), True),
            ("one of two", provider("p", off, {"name": "b"}), True),
            ("accounts off", provider("p", off), False),
            ("provider off", provider("p", {"name": "a"}, enabled=False), False),
        ]
        for name, row, expected in table:
            with self.subTest(name):
                self.assertIs(self.pool.could_serve(row), expected)

    def test_rests(self):
        wanted = self.accounts("a", "b")
        row = wanted.candidates[0].provider
        self.broken(wanted, answer(429, ready_in=9.0))
        self.assertTrue(self.pool.could_serve(row))
        self.broken(wanted, answer(429, ready_in=9.0))
        self.assertFalse(self.pool.could_serve(row))
        self.clock.advance(9)
        self.assertTrue(self.pool.could_serve(row))


class ConversationKeyTest(unittest.TestCase):

    def key(self, session=None, **body):
        headers = gw.Headers([("X-Claude-Code-Session-Id", session)] if session else [])
        body.setdefault("messages", [{"role": "user", "content": "Hello"}])
        request = gw.HttpRequest("POST", "/v1/messages", headers)
        admission = gw.Admission(request, gw.Served(gw.Config.from_dict({})))
        return admission.session or gw.conversation_key(body)

    def test_where_a_session_stands(self):
        uuid = "0f1e2d3c-0000-4000-8000-123456789abc"
        old = "user_%s_account_%s_session_%s" % ("a" * 64, uuid, uuid)
        new = '{"device_id":"d","account_uuid":"","session_id":"%s"}' % uuid
        table = [
            ("header", self.key(uuid), uuid),
            ("header first", self.key("other", metadata={"user_id": old}), "other"),
            ("old user_id", self.key(metadata={"user_id": old}), uuid),
            ("JSON user_id", self.key(metadata={"user_id": new}), uuid),
            ("a header that is none", self.key("a b", metadata={"user_id": new}), uuid),
        ]
        for name, found, expected in table:
            with self.subTest(name):
                self.assertEqual(found, expected)

    def test_no_session(self):
        plain = self.key()
        self.assertIsInstance(plain, int)  # so that it is nobody's session
        for user_id in (None, 5, "", "user_1", "{", "[]", "{}", '{"session_id": 5}',
                        '{"session_id": ""}', '{"session_id": "\\u00e4"}', "\ud800",
                        "x_session_", '{"session_id": "%s"}' % ("x" * 1000)):
            with self.subTest(user_id):
                self.assertEqual(self.key(metadata={"user_id": user_id}), plain)
        self.assertEqual(self.key(metadata=[1]), plain)

    def test_what_makes_no_difference(self):
        marked = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
        text = {"type": "text", "text": "Hello"}
        first = {"role": "user", "content": "Hello"}
        same = [
            {"messages": [{"role": "user", "content": [text]}]},
            {"messages": [{"role": "user", "content": [marked]}]},
            {"messages": [first, {"role": "assistant", "content": "Hi"},
                          {"role": "user", "content": "And now?"}]},
            {"messages": [first], "model": "other", "max_tokens": 5, "tools": [], "stream": True},
            {"messages": [{"role": "system", "content": "x"}, first]},
        ]
        for body in same:
            with self.subTest(body):
                self.assertEqual(self.key(**body), self.key())
        self.assertEqual(self.key(system="Hello"), self.key(system=[marked]))
        images = [{"type": "image", "source": source} for source in (
            {"type": "base64", "data": "x"}, {"data": "x", "type": "base64"})]
        keys = {self.key(messages=[{"role": "user", "content": [image]}]) for image in images}
        self.assertEqual(len(keys), 1)

    def test_what_makes_one(self):
        image = {"type": "image", "source": {"type": "url", "url": "https://x.example"}}
        keys = [
            self.key(),
            self.key(system="Be brief."),
            self.key(system="Be long."),
            self.key(messages=[{"role": "user", "content": "Hello!"}]),
            self.key(messages=[{"role": "user", "content": [image]}]),
            self.key(messages=[{"role": "user", "content": []}]),
            self.key(messages=[{"role": "assistant", "content": "Hello"}]),
        ]
        self.assertEqual(len(set(keys)), len(keys))

    def test_odd_content_is_no_fault(self):
        deep = []
        for _ in range(100000):
            deep = [deep]
        for content in (None, 5, "\ud800", [5], [None], {"a": 1}, deep):
            self.assertIsInstance(
                self.key(messages=[{"role": "user", "content": content}]), (str, int))


class RequestRatesTest(unittest.TestCase):

    def setUp(self):
        self.clock = FakeClock()
        self.rates = gw.RequestRates(self.clock.monotonic)

    def key(self, per_minute, name="k"):
        return gw.ClientKey(name, gw.Secret("s"), per_minute)

    def test_no_limit_admits_all(self):
        self.assertEqual({self.rates.admit(self.key(None)) for _ in range(1000)}, {0.0})

    def test_above_the_limit_it_tells_the_wait(self):
        self.assertEqual(self.rates.admit(self.key(2)), 0)
        self.clock.advance(10)
        self.assertEqual(self.rates.admit(self.key(2)), 0)
        self.clock.advance(20)
        self.assertEqual(self.rates.admit(self.key(2)), 30)

    def test_the_window_slides(self):
        for seconds in (0, 10):
            self.clock.advance(seconds)
            self.rates.admit(self.key(2))
        table = [(49, 1), (1, 0), (0, 10), (9, 1), (1, 0)]
        for advance, wait in table:
            self.clock.advance(advance)
            with self.subTest(now=self.clock.monotonic()):
                self.assertEqual(self.rates.admit(self.key(2)), wait)

    def test_a_refused_request_does_not_count(self):
        self.rates.admit(self.key(1))
        for _ in range(100):
            self.rates.admit(self.key(1))
        self.clock.advance(60)
        self.assertEqual(self.rates.admit(self.key(1)), 0)

    def test_keys_do_not_share(self):
        self.rates.admit(self.key(1, "a"))
        self.assertEqual(self.rates.admit(self.key(1, "b")), 0)
        self.assertEqual(self.rates.admit(self.key(1, "a")), 60)

    def test_no_more_than_the_limit_under_threads(self):
        admitted = []
        start = threading.Barrier(8)

        def work():
            start.wait(10)
            for _ in range(100):
                if self.rates.admit(self.key(50)) == 0:
                    admitted.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(len(admitted), 50)


if __name__ == "__main__":
    unittest.main()
