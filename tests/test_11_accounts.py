"""Section 10: who may be asked, in which order, how often; leases balance."""

import threading
import unittest

import claude_gateway as gw
from tests.support import FakeClock

DONE = gw.Outcome("answer", 200)


def provider(name, *accounts, **settings):
    """A provider with accounts given as dicts without a key."""
    rows = [dict({"api_key": "key-" + row["name"]}, **row) for row in accounts]
    row = dict({"name": name, "base_url": "https://%s.example" % name, "accounts": rows},
               **settings)
    return gw.Config.from_dict({"providers": [row]}).providers[0]


def names(leases):
    return [lease.name for lease in leases]


class LeaseTest(unittest.TestCase):

    def test_name_is_provider_and_account(self):
        row = provider("p", {"name": "a"})
        self.assertEqual(gw.Lease(row, row.accounts[0]).name, "p/a")
        self.assertEqual(gw.Lease(row, None).name, "p")


class AccountPoolTest(unittest.TestCase):

    def setUp(self):
        self.pool = gw.AccountPool()

    def walk(self, providers, model="m"):
        """Every lease that one request would get if each attempt failed."""
        tried = []
        while True:
            lease = self.pool.acquire(providers, model, tried)
            if lease is None:
                return tried
            tried.append(lease)
            self.pool.release(lease, gw.Outcome("closed"))

    def test_goes_through_providers_and_accounts_in_order_each_once(self):
        first = provider("p", {"name": "a"}, {"name": "b"})
        second = provider("q", {"name": "a"})
        self.assertEqual(names(self.walk([first, second])), ["p/a", "p/b", "q/a"])
        self.assertEqual(names(self.walk([second, first])), ["q/a", "p/a", "p/b"])

    def test_nobody_left_is_none(self):
        self.assertIsNone(self.pool.acquire([], "m", []))

    def test_a_busy_account_is_still_the_best(self):
        row = provider("p", {"name": "a"}, {"name": "b"})
        leases = [self.pool.acquire([row], "m", []) for _ in range(3)]
        self.assertEqual(names(leases), ["p/a"] * 3)
        self.assertEqual(self.pool.in_flight(), 3)

    def test_the_clients_own_credential_is_leased_once_a_request(self):
        self.assertEqual(names(self.walk([provider("p")])), ["p"])

    def test_accounts_of_one_name_are_told_apart_by_provider(self):
        leases = [self.pool.acquire([provider(name, {"name": "a"})], "m", [])
                  for name in ("p", "q")]
        self.pool.release(leases[0], DONE)
        self.assertEqual(self.pool.in_flight(), 1)
        with self.assertRaises(AssertionError):
            self.pool.release(leases[0], DONE)

    def test_leases_balance_under_threads(self):
        rows = [provider("p", {"name": "a"}, {"name": "b"}), provider("q")]
        start = threading.Barrier(8)
        faults = []

        def work():
            start.wait(10)
            try:
                for _ in range(200):
                    tried = []
                    for _ in range(3):
                        tried.append(self.pool.acquire(rows, "m", tried))
                    for lease in tried:
                        self.pool.release(lease, DONE)
            except Exception as error:  # told below: a thread's own would go unseen
                faults.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual((faults, self.pool.in_flight()), ([], 0))


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
        self.assertEqual(gw.candidates(row, "m"), [gw.Lease(row, None)])

    def test_globs_of_the_account(self):
        row = provider("p", {"name": "a", "models": ["claude-opus-*", "glm"]}, {"name": "b"})
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


class CanServeTest(unittest.TestCase):

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
                self.assertIs(gw.can_serve(row), expected)


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
