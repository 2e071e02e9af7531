"""Section 11 at work: an hour of twenty agents on four accounts that run out in turn.

Events on a fake clock, no thread, no sleep, one seed.  The real AccountPool,
Attempts and decide are driven as Engine._attempts drives them; beside them, for
comparison, a gateway that goes round without a memory.  As a module it prints the table:

    python3 -m tests.test_11_simulation
"""

import functools
import heapq
import itertools
import math
import random
import unittest

import claude_gateway as gw
from tests.support import FakeClock

AGENTS = 20
HOUR = 3600.0
WINDOW_SECONDS = 300.0
# Requests a window, and when an account's windows begin.  An agent asks every 15 s on
# average: 400 requests a window of all, which is 93 % of what the four take together.
BUDGETS = {"a": (40, 0.0), "b": (60, 75.0), "c": (90, 150.0), "d": (242, 225.0)}
HEAD_SECONDS = 0.3
# What a client like Claude Code waits at most, and where nothing was told.
CLIENT_WAITS_SECONDS = 60.0
BACKOFF_SECONDS = 5.0

STRATEGIES = ("failover", "round_robin", "weighted", "shuffle", "least_loaded")


class Upstream:
    """Accounts with a budget for each window; 429 with retry-after above it."""

    def __init__(self, clock, chance, overloaded):
        self._now = clock.monotonic
        self._chance = chance
        self._overloaded = overloaded
        self._used = {}
        # Until when each account is known to be exhausted: a 429 has told so.
        self._told_until = {}
        self.calls = self.wasted = self.served = self.refused = 0

    def _window(self, name):
        return math.floor((self._now() - BUDGETS[name][1]) / WINDOW_SECONDS)

    def has_room(self, name):
        return self._used.get((name, self._window(name)), 0) < BUDGETS[name][0]

    def next_window(self, name):
        """Seconds until an account's budget is fresh."""
        return (self._window(name) + 1) * WINDOW_SECONDS + BUDGETS[name][1] - self._now()

    def call(self, name):
        """A call that takes HEAD_SECONDS: yields them; gives status and headers."""
        self.calls += 1
        self.wasted += self._now() < self._told_until.get(name, -math.inf)
        overloaded = self._chance() < self._overloaded
        window = (name, self._window(name))
        seconds = math.ceil(self.next_window(name))
        admitted = not overloaded and self.has_room(name)
        if admitted:
            self._used[window] = self._used.get(window, 0) + 1
        yield HEAD_SECONDS
        if overloaded:
            return 529, gw.Headers([])
        if admitted:
            self.served += 1
            return 200, gw.Headers([])
        self.refused += 1
        # What was told counts from when it is read.
        self._told_until[name] = max(self._told_until.get(name, 0.0), self._now() + seconds)
        return 429, gw.Headers([("retry-after", str(seconds))])


class OurGateway:
    """The real sections 10 and 11, driven as the engine drives them."""

    def __init__(self, upstream, clock, chance, strategy, sticky=True):
        self._upstream, self._clock = upstream, clock
        self.config = gw.Config.from_dict({
            "providers": [{"name": "p", "base_url": "https://p.example", "accounts": [
                {"name": name, "api_key": "key-" + name, "weight": budget}
                for name, (budget, _) in BUDGETS.items()]}],
            "routing": {"strategy": strategy, "sticky": sticky}})
        self.pool = gw.AccountPool(clock.monotonic, chance)
        self._candidates = gw.candidates(self.config.providers[0], "m")

    def ask(self, agent, answer_seconds, statuses):
        """One request: yields what it waits; gives status, retry-after and account.

        The statuses of the calls that failed are added to ``statuses``.
        """
        session = "agent-%d" % agent if self.config.routing.sticky else ""
        attempts = gw.Attempts(self.pool, self.config.routing.strategy, self.config.retry,
                               self._candidates, session, "m", {"p": "m"}, True)
        while True:
            step = attempts.step()
            if step is None:
                # As Engine._all_failed: the last 429 is the best answer.
                if not statuses or 429 in statuses:
                    return 429, float(gw.retry_after_text(attempts.ready_in())), None
                return statuses[-1], None, None
            if not isinstance(step, gw.Lease):
                yield step
                continue
            name = step.account.name
            status, headers = yield from self._upstream.call(name)
            outcome = gw.Outcome("answer", status, ready_in=gw.told_wait(headers, None, 0.0))
            decision = gw.decide(outcome)
            if decision.action == "relay":
                self.pool.answered(step, attempts)
                yield answer_seconds
                self.pool.completed(step, attempts)
                return status, None, name
            statuses.append(status)
            attempts.failed(step, decision, outcome)


class PlainGateway:
    """The next account for each call, after a failure the next at once; no memory."""

    def __init__(self, upstream):
        self._upstream = upstream
        self._next = itertools.cycle(BUDGETS)

    def ask(self, agent, answer_seconds, statuses):
        """As OurGateway.ask."""
        status, headers = 0, gw.Headers([])
        for _ in range(3):
            name = next(self._next)
            status, headers = yield from self._upstream.call(name)
            if status == 200:
                yield answer_seconds
                return status, None, name
            statuses.append(status)
        return status, gw.retry_after_seconds(headers, 0.0), None


class Simulation:
    """One hour; the figures are attributes and ``upstream``'s."""

    def __init__(self, strategy, overloaded=0.0, seed=11, sticky=True):
        self.clock = FakeClock(monotonic=0.0)
        self._random = random.Random(seed)
        self.upstream = Upstream(self.clock, random.Random(seed + 1).random, overloaded)
        chance = random.Random(seed + 2).random
        self.gateway = (OurGateway(self.upstream, self.clock, chance, strategy, sticky)
                        if strategy else PlainGateway(self.upstream))
        self.done = self.moves = self.shown_429 = self.shown_other = 0
        # The statuses that each lost request saw.
        self.lost = []
        self._events = []
        self._order = itertools.count()

    def run(self):
        """All agents, until nobody has anything to do; gives itself."""
        for agent in range(AGENTS):
            self._push(self._random.uniform(0, 15), self._agent(agent))
        while self._events:
            moment, _, steps = heapq.heappop(self._events)
            self.clock.advance(max(0.0, moment - self.clock.monotonic()))
            try:
                self._push(next(steps), steps)
            except StopIteration:
                pass
        return self

    def _push(self, seconds, steps):
        heapq.heappush(self._events, (self.clock.monotonic() + seconds, next(self._order), steps))

    def _agent(self, agent):
        """Asks, reads, thinks; after a refusal it comes back when it was told to."""
        last = None
        while self.clock.monotonic() < HOUR:
            answer_seconds = self._random.uniform(5, 20)
            while self.clock.monotonic() < HOUR:
                began = self.clock.monotonic()
                statuses = []
                status, retry_after, name = yield from self.gateway.ask(
                    agent, answer_seconds, statuses)
                if status == 200:
                    break
                self._note_failure(began, status, statuses)
                yield min(CLIENT_WAITS_SECONDS, retry_after or BACKOFF_SECONDS)
            else:
                return
            self.done += 1
            self.moves += last not in (None, name)
            last = name
            yield self._random.uniform(0, 5)

    def _note_failure(self, began, status, statuses):
        """Lost is what an account could have served, now or within max_wait_seconds."""
        self.shown_429 += status == 429
        self.shown_other += status != 429
        left = began + 30.0 - self.clock.monotonic()
        if any(self.upstream.has_room(name) or self.upstream.next_window(name) <= left
               for name in BUDGETS):
            self.lost.append(statuses)

    def figures(self):
        """The row of the table."""
        upstream = self.upstream
        return (self.done, upstream.calls, upstream.refused, upstream.wasted, len(self.lost),
                self.moves, self.shown_429, self.shown_other)


HEADINGS = ("gateway", "served", "calls", "429s seen", "wasted", "lost", "moves", "429s shown",
            "others shown")


def table(overloaded):
    """The lines of one scenario: plain, then each strategy."""
    widths = [22] + [max(9, len(heading)) for heading in HEADINGS[1:]]
    rows = [HEADINGS, ("plain round robin", *Simulation("", overloaded).run().figures())]
    for strategy in STRATEGIES:
        rows.append((strategy, *Simulation(strategy, overloaded).run().figures()))
    rows.append(("failover, not sticky",
                 *Simulation("failover", overloaded, sticky=False).run().figures()))
    return ["  ".join(str(cell).ljust(width) if place == 0 else str(cell).rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths))) for row in rows]


@functools.lru_cache(maxsize=None)
def simulated(strategy, overloaded):
    """A Simulation that has run; several tests look at the same ones."""
    return Simulation(strategy, overloaded).run()


class SimulationTest(unittest.TestCase):

    SCENARIOS = (("accounts run out", 0.0), ("and 3 % of calls are 529", 0.03))

    def test_ours_wastes_nothing_and_loses_nothing(self):
        for (name, overloaded), strategy in itertools.product(self.SCENARIOS, STRATEGIES):
            with self.subTest(name, strategy=strategy):
                ours = simulated(strategy, overloaded)
                self.assertEqual(ours.upstream.wasted, 0, "called what was known to be exhausted")
                # Three calls are all that a request may cost: three bad draws end it.
                lost = [statuses for statuses in ours.lost
                        if len(statuses) < 3 or 529 not in statuses]
                self.assertEqual(lost, [], "refused what could have been served")
                self.assertLessEqual(len(ours.lost), 2)
                self.assertLessEqual(ours.shown_other, len(ours.lost))
                self.assertEqual(ours.gateway.pool.in_flight(), 0, "a lease was not given back")
                self.assertGreater(ours.upstream.refused, 10, "no account ran out")

    def test_the_plain_one_does_both(self):
        """Else the scenario would prove nothing."""
        for name, overloaded in self.SCENARIOS:
            with self.subTest(name):
                plain = simulated("", overloaded)
                self.assertGreater(plain.upstream.wasted, 100)
                self.assertGreater(len(plain.lost), 50)

    def test_conversations_move_only_when_they_must(self):
        """A move costs the prompt cache; going round moves with nearly every request."""
        for name, overloaded in self.SCENARIOS:
            with self.subTest(name):
                ours, plain = simulated("failover", overloaded), simulated("", overloaded)
                self.assertLess(ours.moves, plain.moves / 3)

    def test_no_less_is_served(self):
        for name, overloaded in self.SCENARIOS:
            with self.subTest(name):
                ours, plain = simulated("failover", overloaded), simulated("", overloaded)
                self.assertGreaterEqual(ours.done, plain.done * 0.99)

    def test_the_same_seed_is_the_same_hour(self):
        self.assertEqual(simulated("shuffle", 0.03).figures(),
                         Simulation("shuffle", 0.03).run().figures())


if __name__ == "__main__":
    for title, share in SimulationTest.SCENARIOS:
        print("%d agents, an hour, %s" % (AGENTS, title))
        print("\n".join(table(share)))
