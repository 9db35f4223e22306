"""Donors that die where a test says, and what an app sees of an answer. Start at `Mortal`."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import trio

from tests.fakes import NoOperations
from tests.router.given import GivenRouter, GivenRoutes, route_to
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import SearchIncomplete, TokenplaceError
from tokenplace.generation import (
    Accepted,
    Alive,
    ChatInput,
    ChatMessage,
    Event,
    Finished,
    GenerateRequest,
    Logprob,
    SamplingParams,
    Tokens,
)
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.router.router import Router

REQUEST = GenerateRequest(
    model="fake-model",
    input=ChatInput((ChatMessage("user", "Say something long."),)),
    sampling=SamplingParams(),
    seed=b"12345678",
    cache_scope=b"s" * 16,
    as_of="2026-11-22",
    max_tokens=40,
    ignore_eog=True,
)


@dataclass(frozen=True)
class Death:
    """After so many events, signs of life apart; none of them is the last of the answer."""

    n_events: int
    error: TokenplaceError


@dataclass
class Mortal(NoOperations):
    """A fake engine that dies as often as there are deaths, each time that it is asked."""

    deaths: Sequence[Death] = ()
    engine: FakeEngine = field(default_factory=FakeEngine)

    @property
    def requests(self) -> list[GenerateRequest]:
        return self.engine.requests

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        n_before = len(self.requests)
        death = self.deaths[n_before] if n_before < len(self.deaths) else None
        n_events = 0
        async with self.engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Alive):
                    yield event
                    continue
                if death and (n_events == death.n_events or isinstance(event, Finished)):
                    raise death.error
                yield event
                n_events += 1


class MortalRoutes(GivenRoutes):
    """Routes to donors in order of preference. search_s: how long looking for them takes, from the
    second time on.
    """

    def __init__(self, *donors: Mortal, search_s: float = 0.0) -> None:
        super().__init__()
        self.donors = donors
        self.search_s = search_s

    async def find(
        self,
        model: str,
        demand: Demand,
        *,
        within_s: float = math.inf,
        besides: frozenset[str] = frozenset(),
    ) -> Sequence[Route]:
        """See `Routes`."""
        if self.demands:
            await trio.sleep(min(self.search_s, within_s))
            if self.search_s > within_s:
                raise SearchIncomplete
        return await super().find(model, demand)

    def given(self, demand: Demand) -> Sequence[Route]:
        return [
            route_to(self._candidate(n, donor.engine.model), donor)
            for n, donor in enumerate(self.donors)
        ]

    @staticmethod
    def _candidate(n: int, model: FakeModel) -> Candidate:
        return Candidate(
            donor=f"donor{n}",
            artifact=model.artifact,
            template=model.template,
            rank=n,
            queue=0,
            prefill_tps=100.0,
            decode_tps=10.0,
            rtt_s=0.01,
            is_accepting=True,
            name=model.name,
            features=model.features,
            n_ctx=model.n_ctx,
        )


def router_over(*donors: Mortal, search_s: float = 0.0) -> GivenRouter:
    return GivenRouter(MortalRoutes(*donors, search_s=search_s))


async def collect(
    router: Router, request: GenerateRequest = REQUEST, seen: list[Event] | None = None
) -> list[Event]:
    """All events; `seen` keeps those that came before a failure."""
    seen = [] if seen is None else seen
    async with router.generate(request) as events:
        async for event in events:
            seen.append(event)
    return seen


@dataclass
class Whole:
    """One choice of an answer, however it came."""

    ids: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)


def choices_of(events: Sequence[Event]) -> dict[int, Whole]:
    """Of what was delivered; fails at a gap or an overlap."""
    choices: dict[int, Whole] = {}
    for event in events:
        if isinstance(event, Tokens):
            choice = choices.setdefault(event.choice, Whole())
            assert event.index == len(choice.ids), "a gap or an overlap"
            choice.ids += event.ids
            choice.pieces += event.pieces
            choice.logprobs += event.logprobs
    return choices


def accepted_of(events: Sequence[Event]) -> list[Accepted]:
    return [event for event in events if isinstance(event, Accepted)]
