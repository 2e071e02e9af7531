"""Section 12: what is counted, its bounds, Prometheus' text format, the hour's minutes, who is alive."""

import re
import threading
import unittest

import claude_gateway as gw

ANSWERED = gw.Attempt("p", "a", "answer", 200, 0.1, "answered")
LIMITED = gw.Attempt("p", "b", "answer", 429, 0.1, "rate_limited")
SAMPLE = re.compile(r'([a-z_]+)(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? (\S+)')


def record(route="messages", status=200, attempts=(ANSWERED,), model="m", usage=None, **values):
    made = gw.RequestRecord("r", "POST", 0)
    made.route, made.status, made.model = route, status, model
    made.attempts = list(attempts)
    if made.attempts:
        made.provider, made.account = made.attempts[-1].provider, made.attempts[-1].account
        made.first_byte_seconds = 0.3
    made.seconds = 1.5
    made.usage.update(usage)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def gauges(**values):
    return gw.Gauges(**dict({"version": "1", "uptime_seconds": 1.0, "in_flight": 0, "ready": {},
                             "local_answers": {}}, **values))


def metrics_of(*records, now=0.0):
    metrics = gw.Metrics()
    for each in records:
        metrics.observe(each, now)
    return metrics


def samples(metrics, **values):
    """{"name{labels}": value} of the text."""
    lines = metrics.text(gauges(**values)).decode("utf-8").split("\n")
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name[len("claude_gateway_"):]: float(value) for name, value in pairs}


class HistogramTest(unittest.TestCase):

    def test_a_bound_belongs_to_the_bucket_below_it(self):
        histogram = gw.Histogram((1.0, 2.0), (0.0, 1.0, 1.5, 2.0))
        histogram.add(gw.Histogram((1.0, 2.0), (2.1, 9.0)))
        self.assertEqual((histogram.counts, histogram.total, histogram.maximum),
                         ([2, 2, 2], 15.6, 9.0))

    def test_quantiles_lie_within_what_was_seen(self):
        histogram = gw.Histogram((1.0, 2.0, 4.0))
        self.assertIsNone(histogram.quantile(0.5))
        histogram.add(gw.Histogram(histogram.bounds, [1.2]))
        for share in (0.01, 0.5, 0.95, 1.0):
            self.assertTrue(1.0 <= histogram.quantile(share) <= 1.2)
        histogram.add(gw.Histogram(histogram.bounds, [50.0] * 99))
        self.assertTrue(4.0 <= histogram.quantile(0.5) <= 50.0)
        self.assertEqual(histogram.quantile(1.0), 50.0)


class CountTest(unittest.TestCase):

    def test_requests_by_route_provider_account_and_status(self):
        told = samples(metrics_of(
            record(), record(), record(status=429, attempts=[LIMITED]),
            record("models", attempts=()), record("", 401, (), ended="refused")))
        self.assertEqual({name: value for name, value in told.items()
                          if name.startswith("requests_total")}, {
            'requests_total{route="messages",provider="p",account="a",status="200"}': 2,
            'requests_total{route="messages",provider="p",account="b",status="429"}': 1,
            'requests_total{route="models",provider="",account="",status="200"}': 1,
            'requests_total{route="none",provider="",account="",status="401"}': 1})

    def test_statuses_are_bounded(self):
        told = samples(metrics_of(*[record(status=status) for status in range(1000)]))
        names = [name for name in told if name.startswith("requests_total")]
        self.assertIn('requests_total{route="messages",provider="p",account="a",status="other"}', names)
        self.assertIn('requests_total{route="messages",provider="p",account="a",status="none"}', names)
        self.assertIn('requests_total{route="messages",provider="p",account="a",status="529"}', names)
        self.assertLess(len(names), 100)

    def test_accounts_are_bounded_and_nothing_is_lost(self):
        count = gw.MAX_SERIES_COUNT + 500
        told = samples(metrics_of(*[
            record(attempts=[ANSWERED._replace(account="a%d" % number)]) for number in range(count)]))
        values = {name: value for name, value in told.items() if name.startswith("requests_total")}
        self.assertEqual((len(values), sum(values.values())), (gw.MAX_SERIES_COUNT + 1, count))
        self.assertEqual(values[
            'requests_total{route="messages",provider="other",account="other",status="200"}'], 500)

    def test_models_are_bounded_and_made_up_ones_are_not_named(self):
        metrics = metrics_of(*[record(model="made-up-%d" % number, status=404) for number in range(9)])
        self.assertEqual(list(metrics.of_models()), ["other"])
        for number in range(gw.MAX_MODELS_COUNTED + 5):
            metrics.observe(record(model="m%d" % number), 0.0)
        self.assertLessEqual(len(metrics.of_models()), gw.MAX_MODELS_COUNTED + 1)
        metrics.observe(record(model="m1", status=500), 0.0)
        self.assertEqual(metrics.of_models()["m1"]["errors"], 1)

    def test_a_model_is_what_was_sent_up(self):
        self.assertEqual(list(metrics_of(record(mapped_model="n")).of_models()), ["n"])

    def test_attempts_by_what_came_of_them(self):
        told = samples(metrics_of(record(attempts=[LIMITED, ANSWERED]), record()))
        self.assertEqual(told['upstream_attempts_total{outcome="rate_limited"}'], 1)
        self.assertEqual(told['upstream_attempts_total{outcome="answered"}'], 2)

    def test_tokens_by_kind(self):
        usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3,
                 "cache_creation_input_tokens": 4}
        metrics = metrics_of(record(usage=usage), record(usage=usage))
        told = samples(metrics)
        self.assertEqual([told['tokens_total{kind="%s"}' % kind] for kind in (
            "input", "output", "cache_read", "cache_write")], [2, 4, 6, 8])
        self.assertEqual(metrics.of_account("p", "a")["output_tokens"], 4)
        self.assertEqual(metrics.of_account("p", "unknown")["requests"], 0)

    def test_histograms_are_cumulative_and_of_what_went_upstream(self):
        told = samples(metrics_of(record(), record(seconds=700.0), record("models", attempts=())))
        buckets = [value for name, value in told.items() if name.startswith("request_seconds_bucket")]
        self.assertEqual(buckets, sorted(buckets))
        self.assertEqual((told['request_seconds_bucket{le="2.5"}'], told[
            'request_seconds_bucket{le="600.0"}'], told['request_seconds_bucket{le="+Inf"}']), (1, 1, 2))
        self.assertEqual((told["request_seconds_count"], told["request_seconds_sum"]), (2, 701.5))
        self.assertEqual(told["time_to_first_byte_seconds_count"], 2)

    def test_probes_are_requests_and_nothing_else(self):
        metrics = metrics_of(record("healthz", attempts=()), record("status", attempts=()))
        self.assertEqual(metrics.totals()["requests"], 0)
        self.assertEqual(sum(value for name, value in samples(metrics).items()
                             if name.startswith("requests_total")), 2)

    def test_gauges(self):
        told = samples(metrics_of(), in_flight=3, ready={"p/a": True, "p/b": False},
                       local_answers={"warmup": (2, 900), "models": (1, 0)})
        self.assertEqual((told["in_flight"], told['account_ready{account="p/a"}'],
                          told['account_ready{account="p/b"}']), (3, 1, 0))
        self.assertEqual(told['local_answers_total{kind="warmup"}'], 2)
        self.assertEqual(told['saved_tokens_total{kind="warmup"}'], 900)
        self.assertNotIn('saved_tokens_total{kind="models"}', told)

    def test_who_left_did_not_fail(self):
        metrics = metrics_of(record(ended="client_left", status=0), record(ended="upstream_broke"),
                             record(status=503))
        self.assertEqual(metrics.totals()["errors"], 2)

    def test_more_than_are_counted_together(self):
        metrics = gw.Metrics()
        count = 6 * gw.MAX_UNCOUNTED + 1
        for number in range(count):
            metrics.observe(record(status=200 + number % 7, seconds=float(number)), 60.0 * (number // 9))
            self.assertLess(len(metrics._uncounted), gw.MAX_UNCOUNTED)
        self.assertEqual(metrics.totals()["requests"], count)
        self.assertEqual(len(metrics._uncounted), 0)
        self.assertEqual(samples(metrics)["request_seconds_sum"], sum(range(count)))
        self.assertEqual(sum(metrics.history(60.0 * (count // 9))["requests"]), count)

    def test_figures_are_those_of_the_moment(self):
        metrics = gw.Metrics()
        for count in range(1, 5):
            metrics.observe(record(usage={"output_tokens": 5}), 0.0)
            told = samples(metrics)
            self.assertEqual((metrics.totals()["requests"], metrics.of_models()["m"]["requests"],
                              metrics.of_account("p", "a")["output_tokens"],
                              metrics.history(0.0)["requests"][-1],
                              told["request_seconds_count"],
                              told['upstream_attempts_total{outcome="answered"}']),
                             (count, count, 5 * count, count, count, count))

    def test_a_failure_before_its_model_was_known_is_not_the_models(self):
        failed = record(status=500)
        metrics = metrics_of(failed, record(), failed, failed)
        told = metrics.of_models()
        self.assertEqual((told["other"]["errors"], told["m"]["errors"], told["m"]["requests"]),
                         (1, 2, 3))

    def test_threads_lose_nothing(self):
        metrics, each = gw.Metrics(), record(usage={"output_tokens": 1})
        threads = [threading.Thread(target=lambda: [metrics.observe(each, 0.0) for _ in range(500)])
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(metrics.totals()["output_tokens"], 2000)


class TextFormatTest(unittest.TestCase):

    def test_every_line_is_well_formed(self):
        text = metrics_of(record()).text(gauges(ready={'p/"quoted\\\n"': True})).decode("utf-8")
        self.assertTrue(text.endswith("\n"))
        families = []
        for line in text[:-1].split("\n"):
            with self.subTest(line):
                if line.startswith("# HELP "):
                    families.append(line.split(" ")[2])
                elif line.startswith("# TYPE "):
                    self.assertEqual(line.split(" ")[2], families[-1])
                else:
                    match = SAMPLE.fullmatch(line)
                    self.assertIsNotNone(match)
                    self.assertTrue(match.group(1).startswith(families[-1]))
                    float(match.group(3))
        self.assertEqual(len(families), len(set(families)))

    def test_labels_are_escaped(self):
        text = gw.metric_family("x", "gauge", "About.", [("", {"name": 'a\\b"c\nd'}, 1)])
        self.assertIn('{name="a\\\\b\\"c\\nd"}', text)


class HistoryTest(unittest.TestCase):

    def test_minutes_oldest_first_the_last_is_under_way(self):
        metrics = gw.Metrics()
        metrics.observe(record(), 600.0)
        metrics.observe(record(status=500, usage={"cache_read_input_tokens": 7}), 660.0)
        past = metrics.history(719.9)
        self.assertEqual(set(past), set(gw.HISTORY_COLUMNS))
        self.assertEqual({len(column) for column in past.values()}, {60})
        self.assertEqual((past["requests"][-2:], past["errors"][-2:]), ([1, 1], [0, 1]))
        self.assertEqual(past["cache_read_tokens"][-1], 7)
        self.assertEqual((past["first_byte_p50"][0], past["first_byte_p50"][-1]), (None, 0.275))

    def test_an_hour_is_kept_and_no_more(self):
        metrics = gw.Metrics()
        metrics.observe(record(), 0.0)
        self.assertEqual(sum(metrics.history(59 * 60.0)["requests"]), 1)
        self.assertEqual(sum(metrics.history(60 * 60.0)["requests"]), 0)
        metrics.observe(record(), 3600.0)
        self.assertEqual(sum(metrics.history(3600.0)["requests"]), 1)

    def test_a_day_takes_the_room_of_an_hour(self):
        metrics = gw.Metrics()
        for minute in range(24 * 60):
            metrics.observe(record(), minute * 60.0)
        self.assertEqual(len(metrics._minutes), 60)
        self.assertEqual(metrics.history(24 * 3600.0 - 1)["requests"], [1] * 60)


class AliveTest(unittest.TestCase):

    def live(self, alive, route="messages", began=0.0):
        made = gw.LiveRequest(record(route, attempts=()), began)
        alive[made] = None
        return made

    def test_from_its_begin_to_its_end_oldest_first(self):
        alive = gw.Alive()
        first, second = self.live(alive), self.live(alive)
        self.assertEqual(alive.requests(), [first, second])
        first.tokens_so_far = first.as_dict
        alive.end(first)
        alive.end(first)
        self.assertIsNone(first.tokens_so_far, "else only the collector could free it")
        self.assertEqual(alive.requests(), [second])

    def test_looks_at_the_gateway_are_not_shown(self):
        alive = gw.Alive()
        self.live(alive, "status")
        self.assertEqual(alive.requests(), [])

    def test_requests_of_one_id_are_told_apart(self):
        alive = gw.Alive()
        first, second = self.live(alive), self.live(alive)
        numbers = [live.as_dict(0.0)["number"] for live in alive.requests()]
        alive.end(first)
        self.live(alive)
        later = [live.as_dict(0.0)["number"] for live in alive.requests()]
        self.assertEqual((len({*numbers, *later}), later[0]), (3, numbers[1]))
        self.assertEqual([*numbers, later[1]], sorted([*numbers, later[1]]))

    def test_what_is_shown(self):
        live = self.live(gw.Alive(), began=10.0)
        live.asked, live.stage = ("p", "a"), "streaming"
        live.tokens_so_far = lambda: {"output_tokens": 5}
        told = live.as_dict(12.5)
        self.assertEqual((told["age_seconds"], told["state"], told["account"], told["output_tokens"]),
                         (2.5, "streaming", "a", 5))

    def test_guessed_tokens(self):
        table = [(0, 0, 0), (113, 1, 0), (113 * 3 + 40, 3, 10), (50, 3, 0)]
        for size, events, tokens in table:
            with self.subTest(size=size, events=events):
                self.assertEqual(gw.guessed_output_tokens(size, events), tokens)


if __name__ == "__main__":
    unittest.main()
