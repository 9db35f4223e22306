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

from tokenplace.api_shim.metrics import Histogram, Metrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def metrics_text(metrics: Metrics, attempts: Mapping[str, int], version: str) -> bytes:
    """All numbers. attempts: how often donors were asked, by what became of it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(metrics, attempts, version))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, metrics: Metrics, attempts: Mapping[str, int], version: str) -> None:
        self._metrics = metrics
        self._attempts = attempts
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
        yield _first_token(self._metrics.first_token_s)
        attempts = CounterMetricFamily(
            "tokenplace_attempts", "Donors asked, by what became of it.", labels=["outcome"]
        )
        for outcome, n in self._attempts.items():
            attempts.add_metric([outcome], n)
        yield attempts

    def _requests(self) -> Metric:
        requests = CounterMetricFamily(
            "tokenplace_http_requests",
            "Requests answered, by the status that they began with.",
            labels=["method", "route", "status"],
        )
        for (method, route, status), n in self._metrics.n_answered.items():
            requests.add_metric([method, route, str(status)], n)
        return requests


def _first_token(seen: Histogram) -> Metric:
    buckets, n_below = [], 0
    for bound, n in zip([*map(str, seen.bounds), "+Inf"], seen.n_seen, strict=True):
        n_below += n
        buckets.append((bound, n_below))
    return HistogramMetricFamily(
        "tokenplace_first_token_seconds",
        "From a request to its first token.",
        buckets=buckets,
        sum_value=seen.sum,
    )
