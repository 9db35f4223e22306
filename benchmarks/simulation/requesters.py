"""A peer that asks in a simulated network, and its apps. Start at `SimRequester`.

Router, routes, finder, directory cache and remote donors are real, put together as
`tokenplace.node` does; below them is a simulated host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import trio

from benchmarks.simulation.checks import BOUND_S, Asked
from benchmarks.simulation.donors import NETWORK
from benchmarks.simulation.lookup import SimJoiner, SimKad
from benchmarks.simulation.network import UNIX_S, SimHost
from benchmarks.simulation.trace import Trace
from benchmarks.simulation.workload import Habits, conversation, draw_request, draw_scope
from tokenplace.dht.bootstrap import Joiner
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.finder import Finder, open_finder
from tokenplace.dht.kad import Kad
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import TokenplaceError
from tokenplace.generation import ChatInput, Tokens
from tokenplace.models.names import ModelNames
from tokenplace.models.table import LocalModel, Table
from tokenplace.node.asking import Asking
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost
from tokenplace.router.policy import Standing
from tokenplace.router.router import Router
from tokenplace.router.routes import NetworkRoutes
from tokenplace.router.trust import NO_TRUST


@dataclass(eq=False, slots=True)
class SimRequester:
    """One asking peer. Make one with `open_requester`."""

    host: SimHost
    finder: Finder
    router: Router

    @property
    def name(self) -> str:
        """As the trace has it."""
        return self.host.name

    def is_resting(self, donor: str) -> bool:
        """Is this peer's breaker for that donor open?"""
        return self.router.opinion(donor).standing in (Standing.RESTING, Standing.DUE)


@asynccontextmanager
async def open_requester(
    host: SimHost, kad: SimKad, models: Sequence[FakeModel], dice: Random, clock_s: float = 0.0
) -> AsyncIterator[SimRequester]:
    """Ask until the block exits. clock_s: how far its clock is wrong."""

    def now() -> float:
        return UNIX_S + clock_s + trio.current_time()

    # The one seam: what stands for libp2p, and has what the parts above use of it.
    real_host, real_kad = cast(PeerHost, host), cast(Kad, kad)
    joiner = cast(Joiner, SimJoiner())
    names = ModelNames(Table({model.name: _local(model) for model in models}), catalogue=())
    cache = DirectoryCache(NETWORK, allow_private=False)
    async with (
        open_background() as host.nursery,
        open_finder(real_host, real_kad, joiner, cache, network=NETWORK, now=now) as finder,
    ):
        asking = Asking(real_host, real_kad, finder, joiner, NETWORK)
        routes = NetworkRoutes(
            lambda: names,
            lambda: (),
            finder,
            asking.open_donor,
            trust=lambda: NO_TRUST,
            why_nobody=lambda: "",
            now=now,
        )
        router = Router(routes, wall_clock=now, dice=dice)
        yield SimRequester(host, finder, router)


def _local(model: FakeModel) -> LocalModel:
    return LocalModel(model.name, Path(model.name), model.artifact, model.template, 1, 1)


@dataclass(eq=False)
class App:
    """Somebody who asks one request after the other. models: by name; "auto" is any."""

    name: str
    requester: SimRequester
    dice: Random
    models: Sequence[str]
    habits: Habits
    trace: Trace
    on_end: Callable[[Asked], None]
    n_asked: int = 0
    scope: bytes = b""
    before: ChatInput | None = None
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scope = draw_scope(self.dice)

    async def run(self, n_requests: int) -> None:
        """Ask so often."""
        for _ in range(n_requests):
            await self._pause()
            await self.ask()

    async def run_until(self, time: float) -> None:
        """Ask for so long."""
        await self._pause()
        while trio.current_time() < time:
            await self.ask()
            await self._pause()

    async def _pause(self) -> None:
        await trio.sleep(self.dice.expovariate(1 / self.habits.pause_s))

    async def ask(self) -> Asked:
        """Ask once, and say what came of it."""
        if self.before is not None and self.dice.random() < 0.4:
            self.before = None
        model = self.dice.choice(self.models)
        request = draw_request(self.dice, model, self.scope, self.habits, self.before)
        leaves_after = self.dice.randrange(20) if self.dice.random() < self.habits.leaves else None
        asked = Asked(self.name, self.n_asked, request, trio.current_time())
        self.n_asked += 1
        self.trace.note(self.name, "asks", asked.number)
        with trio.move_on_after(BOUND_S) as bound:
            await _receive(self.requester.router, asked, leaves_after)
        asked.is_late = bound.cancelled_caught
        asked.ended_at = trio.current_time()
        if asked.is_whole:
            self.before = conversation(request, asked.text)
        self.trace.note(self.name, "got", asked.number, asked.outcome, _summary(asked))
        self.on_end(asked)
        return asked


async def _receive(router: Router, asked: Asked, leaves_after: int | None) -> None:
    n_tokens = 0
    try:
        async with router.generate(asked.request) as events:
            async for event in events:
                asked.note(event, trio.current_time())
                n_tokens += isinstance(event, Tokens)
                if leaves_after is not None and n_tokens > leaves_after:
                    asked.has_left = True
                    break
    except TokenplaceError as error:
        asked.error = error
    # Whatever else it is, it is a defect, and the world goes on to find more.
    except Exception as error:
        asked.error = error


def _summary(asked: Asked) -> str:
    n_tokens = sum(len(event.ids) for event in asked.events if isinstance(event, Tokens))
    return f"{n_tokens} tokens, {len(asked.accepted)} donors"
