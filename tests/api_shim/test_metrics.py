"""GET /metrics, as Prometheus' own parser reads it."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api_shim.serving import CHAT, TINY_MODEL, http_client, serving, wait_until
from tests.fakes import EchoEngine
from tokenplace import __version__
from tokenplace.errors import ConnectionLost
from tokenplace.router.histogram import Histogram

N_TOKENS = 5  # of CHAT's message, three bytes each

Samples = dict[tuple[str, tuple[str, ...]], float]


async def samples(client: httpx.AsyncClient, path: str = "/metrics") -> Samples:
    """By name and the values of labels."""
    answer = await client.get(path)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_what_was_asked_and_answered_is_counted() -> None:
    async with serving() as address, http_client(address) as client:
        before = await samples(client)
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/api/v1/chat/completions", json={**CHAT, "stream": True})
        await client.post("/v1/chat/completions", json={**CHAT, "temperature": 9})
        await client.get("/v1/models/alices-secret-model")
        await client.get("/alices-secret-path")
        await client.request("DELETE", "/v1/models")
        after = await samples(client, "/v1/metrics")
    assert before["tokenplace_info", (__version__,)] == 1
    assert before["tokenplace_tokens_total", ("completion",)] == 0
    requests = "tokenplace_http_requests_total"
    assert after[requests, ("POST", "/chat/completions", "200")] == 2
    assert after[requests, ("POST", "/chat/completions", "400")] == 1
    assert after[requests, ("GET", "/models/{name:path}", "404")] == 1
    assert after[requests, ("GET", "other", "404")] == 1
    assert after[requests, ("other", "/models", "405")] == 1
    assert after["tokenplace_tokens_total", ("prompt",)] == 2 * N_TOKENS
    assert after["tokenplace_tokens_total", ("completion",)] == 2 * N_TOKENS
    assert after["tokenplace_first_token_seconds_count", ()] == 2
    assert after["tokenplace_first_token_seconds_bucket", ("+Inf",)] == 2
    assert after["tokenplace_answers_running", ()] == 0
    assert not any("alice" in label for _, labels in after for label in labels)


async def test_an_answer_that_runs_is_seen_and_one_that_failed_is_over() -> None:
    engine = EchoEngine(token_interval_s=0.01)
    long = {**CHAT, "messages": [{"role": "user", "content": "x" * 30_000}], "stream": True}
    async with serving(engine) as address, http_client(address) as client:
        async with client.stream("POST", "/v1/chat/completions", json=long):
            await wait_until(lambda: engine.n_running == 1)
            assert (await samples(client))["tokenplace_answers_running", ()] == 1
        await wait_until(lambda: engine.n_running == 0)
        assert (await samples(client))["tokenplace_answers_running", ()] == 0
    async with (
        serving(EchoEngine(fail_after=1, error=ConnectionLost())) as address,
        http_client(address) as client,
    ):
        text = {"model": TINY_MODEL, "prompt": "Hello, donors!"}
        assert (await client.post("/v1/completions", json=text)).status_code == 502
        after = await samples(client)
    assert after["tokenplace_tokens_total", ("completion",)] == 1
    assert after["tokenplace_answers_running", ()] == 0


@pytest.mark.parametrize(
    ("value", "n_seen"), [(0.5, [1, 0, 0]), (1.0, [1, 0, 0]), (1.5, [0, 1, 0]), (3.0, [0, 0, 1])]
)
def test_a_bound_belongs_to_what_is_below_it(value: float, n_seen: list[int]) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert (histogram.n_seen, histogram.sum) == (n_seen, value)
