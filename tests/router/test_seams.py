"""An answer that is cut in one place after the other, as an app reads it over real HTTP.

Start at `test_wherever_it_is_cut_a_stream_reads_as_uncut`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.api_shim.serving import http_client, serving
from tests.fakes import EchoEngine
from tests.router.given import GivenRouter
from tests.router.mortal import Death, Mortal
from tests.router.mortal import router_over as mortal_router
from tests.router.test_router import FixedRoutes
from tokenplace import defaults
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import ConnectionLost, DonorSilent, TokenplaceError
from tokenplace.router.router import Router

QUICK = FakeModel(prefill_tps=1e6, decode_tps=1e6, n_answer=(16, 24))
LOOK_UP = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object"}},
}
CALL = '{"name": "look_up", "arguments": {"word": "日本 😀"}}'


@dataclass(frozen=True)
class Case:
    """What an app asks. said: what the donors answer, where it matters; else a fake model talks."""

    about: str
    body: dict[str, Any]
    said: str = ""
    finish_reasons: frozenset[str] = field(default_factory=lambda: frozenset({"stop"}))

    def __str__(self) -> str:
        return self.about


CASES = [
    Case("text", {}, "Grüße an 日本 😀, naïve Tokens."),
    Case(
        "stop string", {"stop": ["日本 ist", "??"]}, "Grüße, 日本 ist 😀 weit, weit weg von hier."
    ),
    Case(
        "stop strings side by side",
        {"stop": ["weit", "😀 w"]},
        "Grüße, 日本 ist 😀 weit, weit weg.",
    ),
    Case("reasoning", {}, "<think>Hm, 日本 😀 ist weit.</think>\n\nJa, Grüße."),
    Case(
        "tool call",
        {"tools": [LOOK_UP]},
        f"Ich sehe nach.\n<tool_call>\n{CALL}\n</tool_call>",
        frozenset({"tool_calls"}),
    ),
    Case(
        "two tool calls",
        {"tools": [LOOK_UP], "tool_choice": "required"},
        f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
        frozenset({"tool_calls"}),
    ),
    Case("form", {"response_format": {"type": "json_object"}}),
    Case("length", {"max_tokens": 9}, finish_reasons=frozenset({"length"})),
    Case(
        "log-probabilities",
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 14},
        finish_reasons=frozenset({"length"}),
    ),
    Case(
        "three choices",
        {"n": 3, "logprobs": True, "stop": ["naïve"], "max_tokens": 14},
        finish_reasons=frozenset({"stop", "length"}),
    ),
]
ERRORS = {
    "twin": (DonorSilent,),
    "same donor": (ConnectionLost, ConnectionLost),  # then a twin
}


def body_of(case: Case, *, stream: bool) -> dict[str, Any]:
    said = case.said or "Say something long."
    body = {"model": "tiny", "messages": [{"role": "user", "content": said}], "seed": 7}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {**body, **case.body}


def router_of(case: Case, cut: int | None, errors: Sequence[type[TokenplaceError]]) -> Router:
    """Two donors, of which the first dies at its token number `cut`, of each error in turn."""
    if case.said:
        dying = EchoEngine(fail_after=cut, error=errors[0]())
        routes = FixedRoutes(dying, EchoEngine())
        return GivenRouter(routes)
    deaths = [] if cut is None else [Death(1 + cut, error()) for error in errors]
    return mortal_router(Mortal(deaths, FakeEngine(QUICK)), Mortal(engine=FakeEngine(QUICK)))


@asynccontextmanager
async def api_over(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(router) as address, http_client(address) as client:
        yield client


@dataclass
class Read:
    """A streamed answer, put together as an app does it."""

    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    calls: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finish_reasons: list[tuple[int, str]] = field(default_factory=list)
    usages: list[dict[str, Any]] = field(default_factory=list)
    n_done: int = 0
    error: str = ""

    def take(self, data: str) -> None:
        if data == "[DONE]":
            self.n_done += 1
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.error = chunk["error"]["code"]
            return
        if chunk.get("usage"):
            self.usages.append(chunk["usage"])
        for choice in chunk["choices"]:
            number = choice["index"]
            if choice["finish_reason"]:
                self.finish_reasons.append((number, choice["finish_reason"]))
            self.logprobs.setdefault(number, []).extend(
                (choice.get("logprobs") or {}).get("content") or ()
            )
            for key in ("content", "reasoning_content"):
                text = self.texts.get((number, key), "") + (choice["delta"].get(key) or "")
                self.texts[number, key] = text
            for call in choice["delta"].get("tool_calls", ()):
                parts = self.calls.setdefault((number, call["index"]), ["", ""])
                parts[0] += call["function"].get("name", "")
                parts[1] += call["function"].get("arguments", "")


async def stream_of(case: Case, router: Router) -> tuple[Read, list[str]]:
    """What an app reads, and the comments."""
    read, comments = Read(), []
    async with (
        api_over(router) as client,
        client.stream("POST", "/v1/chat/completions", json=body_of(case, stream=True)) as answer,
    ):
        with suppress(httpx.RemoteProtocolError):
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    read.take(line.removeprefix("data: "))
                elif line.startswith(": "):
                    comments.append(line.removeprefix(": "))
    return read, comments


@pytest.mark.parametrize("errors", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_wherever_it_is_cut_a_stream_reads_as_uncut(
    case: Case, errors: tuple[type[TokenplaceError], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "PROGRESS_TOKENS", 1)  # how often is another test's business
    uncut, _ = await stream_of(case, router_of(case, None, errors))
    assert {reason for _, reason in uncut.finish_reasons} == case.finish_reasons
    n_choices = case.body.get("n", 1)
    assert len(uncut.finish_reasons) == n_choices
    n_tokens = uncut.usages[0]["completion_tokens"]
    for cut in range(1, n_tokens, 1 if len(errors) == 1 else 5):
        read, comments = await stream_of(case, router_of(case, cut, errors))
        assert read == uncut, f"cut at {cut}"
        assert (len(read.usages), read.n_done, read.error) == (1, 1, "")
        assert any(comment.startswith("continued on ") for comment in comments)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_wherever_it_is_cut_a_whole_answer_is_the_same(case: Case) -> None:
    async def answer_of(cut: int | None) -> dict[str, Any]:
        async with api_over(router_of(case, cut, [DonorSilent])) as client:
            asked = body_of(case, stream=False)
            answer: dict[str, Any] = (await client.post("/v1/chat/completions", json=asked)).json()
        del answer["id"], answer["created"]
        for choice in answer["choices"]:
            for call in choice["message"].get("tool_calls", ()):
                del call["id"]
        return answer

    uncut = await answer_of(None)
    for cut in range(1, uncut["usage"]["completion_tokens"], 5):
        assert await answer_of(cut) == uncut, f"cut at {cut}"


async def test_without_a_twin_the_app_is_told_and_the_stream_is_aborted() -> None:
    case = CASES[0]
    for cut in (1, 5):
        dying = EchoEngine(fail_after=cut, error=DonorSilent())
        other = EchoEngine()
        routes = FixedRoutes(dying, other, artifacts="ab")
        router = GivenRouter(routes)
        read, comments = await stream_of(case, router)
        assert (read.error, read.n_done, read.finish_reasons) == ("donor_silent", 0, [])
        assert not any(comment.startswith("continued on ") for comment in comments)
        assert not other.requests
