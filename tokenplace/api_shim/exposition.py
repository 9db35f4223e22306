"""`Metrics` as Prometheus reads them. Start at `metrics_text`.

Loaded at the first question: prometheus_client takes 50 ms to import, which no start should wait
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tokenplace.api_shim.metrics import Metrics
from tokenplace.router.attempts import Outcome
from tokenplace.router.histogram import Histogram
from tokenplace.router.journal import Journal

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def metrics_text(metrics: Metrics, journal: Journal, version: str) -> bytes:
    """All numbers, of what was asked of donors too."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(metrics, journal, version))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, metrics: Metrics, journal: Journal, version: str) -> None:
        self._metrics = metrics
        self._journal = journal
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("tokenplace", "This peer.", {"version": self._version})
        yield self._requests()
        yield GaugeMetricFamily(
            "tokenplace_answers_running", "Answers being made now.", self._metrics.n_running
        )
        tokens = CounterMetricFamily(
            "tokenplace_tokens", "Tokens read and written for apps.", labels=["kind"]
        )
        tokens.add_metric(["prompt"], self._metrics.n_prompt_tokens)
        tokens.add_metric(["completion"], self._metrics.n_completion_tokens)
        yield tokens
        yield _histogram(
            "tokenplace_first_token_seconds",
            "From a request to its first token.",
            self._metrics.first_token_s,
        )
        yield from self._of_donors(self._journal)

    @staticmethod
    def _of_donors(journal: Journal) -> Iterator[Metric]:
        yield _by_outcome(
            "tokenplace_requests", "Requests to models, by what the app was told.", journal.endings
        )
        yield _by_outcome(
            "tokenplace_attempts", "Donors asked, by what became of it.", journal.outcomes
        )
        yield _histogram(
            "tokenplace_attempts_per_request",
            "Donors asked for a request, the same one again included.",
            journal.n_attempts,
        )
        yield _histogram(
            "tokenplace_attempt_accepted_seconds",
            "From asking a donor to its word that it accepts.",
            journal.accepted_s,
        )
        yield _histogram(
            "tokenplace_attempt_first_token_seconds",
            "From asking a donor to its first token.",
            journal.first_token_s,
        )

    def _requests(self) -> Metric:
        requests = CounterMetricFamily(
            "tokenplace_http_requests",
            "Requests answered, by the status that they began with.",
            labels=["method", "route", "status"],
        )
        for (method, route, status), n in self._metrics.n_answered.items():
            requests.add_metric([method, route, str(status)], n)
        return requests


def _by_outcome(name: str, text: str, counts: Mapping[Outcome, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["outcome"])
    for outcome, n in counts.items():
        family.add_metric([outcome.value], n)
    return family


def _histogram(name: str, text: str, seen: Histogram) -> Metric:
    buckets, n_below = [], 0
    for bound, n in zip([*map(str, seen.bounds), "+Inf"], seen.n_seen, strict=True):
        n_below += n
        buckets.append((bound, n_below))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=seen.sum)
