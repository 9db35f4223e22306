"""Donors that keep a request waiting, each in its way, and routes to them. Start at `Racer`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

import trio

from tests.fakes import NoOperations
from tests.router.given import GivenRouter, GivenRoutes, route_to
from tests.router.mortal import Death
from tokenplace.engine.fake import FakeEngine
from tokenplace.generation import Accepted, Alive, Event, Finished, GenerateRequest, Phase
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route


@dataclass
class Racer(NoOperations):
    """A fake engine behind a wait. Dies as often as there are deaths, each time that it is asked,
    `death_s` after it has fallen silent.

    accept_s: until it says yes. queue_s: from then on until it begins; meanwhile it is in `phase`,
    and says so every 2 s. eta_s, position: what it promises. asked_at: when, each time.
    """

    accept_s: float = 0.0
    queue_s: float = 0.0
    eta_s: float = 1.0
    position: int = 0
    phase: Phase = Phase.QUEUED
    deaths: Sequence[Death] = ()
    death_s: float = 0.0
    bug: Exception | None = None
    engine: FakeEngine = field(default_factory=FakeEngine)
    asked_at: list[float] = field(default_factory=list)
    n_running: int = 0
    ended_at: float = 0.0

    @property
    def requests(self) -> list[GenerateRequest]:
        return self.engine.requests

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        n_before = len(self.asked_at)
        death = self.deaths[n_before] if n_before < len(self.deaths) else None
        self.asked_at.append(trio.current_time())
        self.n_running += 1
        try:
            await trio.sleep(self.accept_s)
            n_events = 0
            async with self.engine.generate(request) as events:
                async for event in events:
                    if isinstance(event, Alive):
                        yield event
                        continue
                    if death and (n_events == death.n_events or isinstance(event, Finished)):
                        await trio.sleep(self.death_s)
                        raise death.error
                    if self.bug is not None:
                        raise self.bug
                    n_events += 1
                    if not isinstance(event, Accepted):
                        yield event
                        continue
                    eta_ms = round(self.eta_s * 1000)
                    yield replace(event, eta_ms=eta_ms, position=self.position)
                    begins_at = trio.current_time() + self.queue_s
                    while (left_s := begins_at - trio.current_time()) > 0:
                        yield Alive(self.phase, 0.0, self.position)
                        await trio.sleep(min(2.0, left_s))
        finally:
            self.n_running -= 1
            self.ended_at = trio.current_time()


class RaceRoutes(GivenRoutes):
    """The first search finds the first racer alone, so that it is the one asked first; others all.

    loads: of a racer, by its number, what is not as of an idle donor.
    """

    def __init__(
        self,
        racers: Sequence[Racer],
        loads: dict[int, dict[str, object]] | None = None,
        *,
        may_answer: bool = True,
    ) -> None:
        super().__init__()
        self.racers = racers
        self.loads = {} if loads is None else loads
        self.may_answer = may_answer

    def given(self, demand: Demand) -> Sequence[Route]:
        return [self._route(n) for n in range(1 if len(self.demands) == 1 else len(self.racers))]

    def _route(self, n: int) -> Route:
        racer = self.racers[n]
        model = racer.engine.model
        candidate = Candidate(
            donor=f"donor{n}",
            artifact=model.artifact,
            template=model.template,
            rank=0,
            queue=0,
            prefill_tps=100.0,
            decode_tps=10.0,
            rtt_s=0.01,
            is_accepting=True,
            name=model.name,
            features=model.features,
            load_age_s=1.0,
        )
        changed = replace(candidate, **self.loads.get(n, {}))  # type: ignore[arg-type]
        return replace(route_to(changed, racer), may_answer=lambda _: self.may_answer)


def router_over(routes: RaceRoutes) -> GivenRouter:
    return GivenRouter(routes)
