"""What an app is told of how its answer came about, over real HTTP, router and fake engines; and
that neither that, nor a log, nor the status, nor the metrics say what was asked.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx
import pytest
import trio

from tests.api_shim.serving import http_client, serving
from tests.fakes import EchoEngine, FakeEmbedder
from tests.router.test_router import FixedRoutes
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    ContextLengthExceeded,
    DonorBusy,
    DonorSilent,
    TokenplaceError,
)
from tokenplace.generation import Event, GenerateRequest
from tokenplace.node.request_status import request_status
from tokenplace.router.journal import Journal, Recorded
from tokenplace.router.router import Router

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SECRET = "The canary sings at noon about quicksilver."
BODY = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}]}
STREAMED = {**BODY, "stream": True}
N_TOKENS = -(-len(SECRET) // 3)


@dataclass
class Api:
    """A served API before a router that keeps a journal."""

    http: httpx.AsyncClient
    journal: Journal

    def status(self) -> list[dict[str, Any]]:
        now, clock = time.time(), trio.current_time()
        return [request_status(record, now, clock) for record in self.journal.records]


@asynccontextmanager
async def api_over(
    *engines: EchoEngine, hold_s: float = 3.0, artifacts: str = ""
) -> AsyncIterator[Api]:
    journal = Journal()
    router = Router(
        FixedRoutes(*engines, artifacts=artifacts),
        wall_clock=time.time,
        dice=Random(7),
        journal=journal,
    )
    apps = Recorded(router, journal, time.time)
    async with (
        serving(apps, embedder=apps, journal=journal, hold_s=hold_s) as address,
        http_client(address) as client,
    ):
        yield Api(client, journal)


@dataclass
class Refusing(EchoEngine):
    """Refuses every request, as a donor does that has no room."""

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        assert self.error is not None
        raise self.error
        yield  # makes this a generator


def failing(error: TokenplaceError, after: int = -1) -> EchoEngine:
    """Fails after so many tokens; -1: does not even accept."""
    return Refusing(error=error) if after < 0 else EchoEngine(fail_after=after, error=error)


def comments_of(stream: str) -> list[str]:
    return [line.removeprefix(": ") for line in stream.split("\n\n") if line.startswith(": ")]


# ---------------------------------------------------------------- answers


async def test_a_whole_answer_tells_its_route() -> None:
    async with api_over(failing(DonorBusy()), failing(DonorSilent(), 4), EchoEngine()) as api:
        answer = await api.http.post(CHAT, json=BODY)
        (asked,) = api.status()
    assert answer.status_code == 200
    attempts = asked["attempts"]
    assert answer.headers["x-tokenplace-attempts"] == str(len(attempts))
    route = answer.headers["x-tokenplace-route"].split(", ")
    assert route[:2] == ["donor-0=busy@asked", "donor-1=donor_silent@decode"]
    assert route[-1] == "donor-2=finished"
    assert len(route) == len(attempts)
    assert asked["id"] == answer.headers["x-tokenplace-request-id"]
    assert asked["outcome"] == "finished"


async def test_ids_an_app_may_have_all_begin_alike() -> None:
    async with api_over(EchoEngine()) as api:
        answer = await api.http.post(CHAT, json=BODY)
    name = answer.headers["x-tokenplace-request-id"]
    assert re.fullmatch(r"[0-9a-f]{12}", name)
    assert answer.headers["x-request-id"].startswith(f"req_{name}")
    assert answer.json()["id"].startswith(f"chatcmpl-{name}")


async def test_a_stream_tells_its_route_in_its_last_comments() -> None:
    async with api_over(failing(DonorBusy()), failing(DonorSilent(), 4), EchoEngine()) as api:
        answer = await api.http.post(CHAT, json=STREAMED)
        (asked,) = api.status()
    assert answer.headers["x-tokenplace-attempts"] == "2", "asked until it began"
    assert "x-tokenplace-route" not in answer.headers
    *_, route, served = comments_of(answer.text)
    assert route.startswith("route: donor-0=busy@asked, donor-1=donor_silent@decode, ")
    assert route.endswith("donor-2=finished")
    assert served.startswith("served by ")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert route.count("=") == asked["n_attempts"]


async def test_an_aborted_stream_tells_its_route_and_whom_it_asked() -> None:
    text = b""
    async with api_over(failing(ConnectionLost(), 4), EchoEngine(), artifacts="ab") as api:
        async with api.http.stream("POST", CHAT, json=STREAMED) as answer:
            with suppress(httpx.RemoteProtocolError):
                async for data in answer.aiter_bytes():
                    text += data
        (asked,) = api.status()
    events = [block for block in text.decode().split("\n\n") if block.startswith("data: ")]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == asked["outcome"] == "connection_lost"
    assert "donor-0 connection_lost (decode, 4 tokens)" in error["message"]
    assert error["request_id"] == answer.headers["x-tokenplace-request-id"]
    assert "route: donor-0=connection_lost@decode" in comments_of(text.decode())[-1]


async def test_several_prompts_are_told_of_together() -> None:
    async with api_over(EchoEngine()) as api:
        answer = await api.http.post(TEXT, json={"model": "tiny", "prompt": ["One", "Two"]})
        asked = api.status()
    name = answer.headers["x-tokenplace-request-id"]
    assert answer.headers["x-tokenplace-attempts"] == "2"
    assert answer.headers["x-tokenplace-route"] == "donor-0=finished, donor-0=finished"
    assert {each["id"] for each in asked} == {name, f"{name}.1"}


async def test_vectors_are_told_of_too() -> None:
    async with api_over(EchoEngine()) as api:
        answer = await api.http.post(EMBED, json={"model": "tiny", "input": "One"})
        (asked,) = api.status()
    assert answer.json()["error"]["code"] == "unsupported"
    assert asked["kind"] == "embed"
    assert answer.headers["x-tokenplace-route"] == "donor-0=unsupported@asked"
    journal = Journal()
    recorded = Recorded(FakeEmbedder(), journal, time.time)  # type: ignore[arg-type]
    async with (
        serving(embedder=recorded, journal=journal) as address,
        http_client(address) as client,
    ):
        answer = await client.post(EMBED, json={"model": "tiny", "input": "One"})
    assert answer.status_code == 200
    assert [record.kind for record in journal.records] == ["embed"]
    assert "x-tokenplace-attempts" not in answer.headers, "nobody had to be asked"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "stream"])
async def test_an_error_says_who_was_asked(body: dict[str, Any]) -> None:
    engines = failing(DonorBusy()), failing(DonorSilent()), failing(ConnectFailed())
    async with api_over(*engines) as api:
        answer = await api.http.post(CHAT, json=body)
        (asked,) = api.status()
    error = answer.json()["error"]
    assert answer.status_code == 503
    assert error["code"] == asked["outcome"]
    assert error["message"].endswith(
        "3 donors asked: donor-0 busy, donor-1 donor_silent, donor-2 connect_failed."
    )
    assert error["request_id"] == asked["id"] == answer.headers["x-tokenplace-request-id"]
    assert answer.headers["x-tokenplace-attempts"] == "3"
    assert answer.headers["x-tokenplace-route"].startswith("donor-0=busy@asked, ")
    assert answer.headers["retry-after"]


async def test_what_asked_nobody_says_nothing_of_donors() -> None:
    async with api_over() as api:
        nobody = await api.http.post(CHAT, json=BODY)
        wrong = await api.http.post(CHAT, json={**BODY, "temperature": 9})
        lost = await api.http.get("/v1/nowhere")
    assert nobody.json()["error"]["code"] == "no_donor_for_model"
    assert nobody.json()["error"]["request_id"] == nobody.headers["x-tokenplace-request-id"]
    assert "request_id" not in wrong.json()["error"], "no model was asked for anything"
    for answer in (nobody, wrong, lost):
        assert "asked:" not in answer.text
        assert "x-tokenplace-attempts" not in answer.headers
        assert "x-tokenplace-request-id" in answer.headers


# ---------------------------------------------------------------- metrics


async def test_metrics_count_attempts_and_ends() -> None:
    async with api_over(failing(DonorBusy()), EchoEngine()) as api:
        await api.http.post(CHAT, json=BODY)
        text = (await api.http.get("/metrics")).text
    for line in (
        'tokenplace_requests_total{outcome="finished"} 1.0',
        'tokenplace_attempts_total{outcome="busy"} 1.0',
        'tokenplace_attempts_total{outcome="finished"} 1.0',
        'tokenplace_attempts_per_request_bucket{le="1.0"} 0.0',
        'tokenplace_attempts_per_request_bucket{le="2.0"} 1.0',
        "tokenplace_attempts_per_request_sum 2.0",
        "tokenplace_attempt_first_token_seconds_count 1.0",
        "tokenplace_attempt_accepted_seconds_count 1.0",
    ):
        assert line in text.split("\n")


# ---------------------------------------------------------------- nothing of the prompt


def engines_that(error: TokenplaceError) -> Sequence[EchoEngine]:
    """Nobody answers: one fails before its first token, the others in the middle."""
    return failing(error), failing(error, 3), failing(error, N_TOKENS - 1)


@pytest.mark.parametrize(
    "error",
    [DonorBusy(), ConnectionLost(), ContextLengthExceeded(), RuntimeError(SECRET)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
async def test_no_trace_of_a_request_says_what_it_was(
    error: Any, is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = ""
    async with api_over(*engines_that(error), hold_s=0.01) as api:
        body = {**BODY, "stream": is_streamed, "model": SECRET[:20]}
        async with api.http.stream("POST", CHAT, json=body) as answer:
            told += str(answer.headers)
            with suppress(httpx.RemoteProtocolError):
                async for line in answer.aiter_lines():
                    is_answer = '"error"' not in line and line.startswith("data: ")
                    told += "" if is_answer else line
        status = api.status()
        metrics = (await api.http.get("/metrics")).text
    assert len(status) == 1
    assert status[0]["attempts"], "there is something to look at"
    assert [record for record in caplog.records if hasattr(record, "fields")]
    logged = "".join(f"{line.getMessage()} {line.__dict__}" for line in caplog.records)
    status[0]["model"] = ""  # as the app wrote it: its user sees it, and nobody else
    for attempt in status[0]["attempts"]:
        assert "model" not in attempt
    everything = told + logged + metrics + json.dumps(status)
    for piece in (SECRET, "canary", "quicksilver"):
        assert piece not in everything
