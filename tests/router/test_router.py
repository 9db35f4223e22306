"""The router over fake engines: whom it asks, when it fails over, when it must not."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.fakes import EchoEngine
from tests.router.given import GivenRouter, GivenRoutes, route_to
from tokenplace.errors import (
    DONOR_ERRORS,
    ConnectFailed,
    ConnectionLost,
    DonorBusy,
    ModelNotFound,
    NoDonorForModel,
    OwnNetworkDown,
    Quarantined,
    Scope,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChatMessage,
    Event,
    Finished,
    GenerateRequest,
    SamplingParams,
    Tokens,
    Wishes,
)
from tokenplace.router.demand import Demand, demand_of
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.router.router import Router

CANARY = "the canary sings at noon"
REQUEST = GenerateRequest(
    model="tiny",
    input=ChatInput((ChatMessage("user", CANARY),)),
    sampling=SamplingParams(),
    seed=b"12345678",
    cache_scope=b"s" * 16,
    as_of="2026-11-22",
)


class FixedRoutes(GivenRoutes):
    """Routes to fake engines, in order of preference; `artifacts` are different if they are not
    all of one.
    """

    def __init__(
        self,
        *engines: EchoEngine,
        error: TokenplaceError | None = None,
        artifacts: str = "",
    ) -> None:
        super().__init__()
        self.engines = engines
        self.artifacts = artifacts or "a" * len(engines)
        self.error = error

    def given(self, demand: Demand) -> Sequence[Route]:
        if self.error:
            raise self.error
        return [
            route_to(
                Candidate(
                    f"donor-{n}", letter * 64, "", n, 0, 100.0, 10.0, 0.01, True, f"tiny-{n}"
                ),
                engine,
            )
            for n, (engine, letter) in enumerate(zip(self.engines, self.artifacts, strict=True))
        ]


def router_over(routes: FixedRoutes) -> GivenRouter:
    return GivenRouter(routes)


async def collect(
    router: Router, request: GenerateRequest = REQUEST, seen: list[Event] | None = None
) -> list[Event]:
    """All events; `seen` keeps those that came before a failure."""
    seen = [] if seen is None else seen
    async with router.generate(request) as events:
        async for event in events:
            seen.append(event)
    return seen


def text_of(events: Sequence[Event]) -> str:
    return b"".join(p for e in events if isinstance(e, Tokens) for p in e.pieces).decode()


async def test_the_best_route_answers() -> None:
    routes = FixedRoutes(EchoEngine(), EchoEngine())
    router = router_over(routes)
    events = await collect(router)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    assert text_of(events) == CANARY
    assert routes.engines[0].requests[0].artifact == "a" * 64
    assert not routes.engines[1].requests
    assert [(a.donor, a.outcome) for a in router.attempts] == [("donor-0", "finished")]
    assert routes.demands == [demand_of(REQUEST)]


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_says_what_serves_it(streamed: bool) -> None:
    routes = FixedRoutes(EchoEngine(fail_after=0, error=ConnectionLost()), EchoEngine())
    events = await collect(router_over(routes), replace(REQUEST, streamed=streamed))
    served = [event.served for event in events if isinstance(event, Accepted)]
    assert served == [f"tiny-{n}@sha256:{'a' * 12}" for n in (0, 1)]


async def test_donors_are_asked_in_the_order_that_is_wished() -> None:
    broken = [EchoEngine(fail_after=0, error=ConnectionLost()) for _ in range(3)]
    router = router_over(FixedRoutes(*broken))
    wishes = Wishes(order=("donor-2", "nobody", "donor-1"))
    with pytest.raises(ConnectionLost):
        await collect(router, replace(REQUEST, wishes=wishes))
    assert [a.donor for a in router.attempts] == ["donor-2", "donor-1", "donor-0"]


@pytest.mark.parametrize("error", [ConnectionLost(), DonorBusy(), WorkerCrashed()])
async def test_before_the_first_token_another_donor_is_asked(error: TokenplaceError) -> None:
    routes = FixedRoutes(EchoEngine(fail_after=0, error=error), EchoEngine())
    router = router_over(routes)
    events = await collect(router)
    assert text_of(events) == CANARY
    in_doubt = ["donor-0"] if isinstance(error, ConnectionLost) else []
    assert [donor for donor, _ in routes.failures] == in_doubt
    assert [r.attempt for e in routes.engines for r in e.requests] == [0, 1]
    assert [a.outcome for a in router.attempts] == [error.code, "finished"]


async def test_after_the_first_token_a_stream_fails_rather_than_mix_two_models() -> None:
    broken = EchoEngine(fail_after=2, error=ConnectionLost())
    routes = FixedRoutes(broken, EchoEngine(), artifacts="ab")
    seen: list[Event] = []
    with pytest.raises(ConnectionLost):
        await collect(router_over(routes), seen=seen)
    assert CANARY.startswith(text_of(seen))
    assert not routes.engines[1].requests


async def test_a_request_that_does_not_stream_starts_again_at_any_time() -> None:
    broken = EchoEngine(fail_after=5, error=ConnectionLost())
    routes = FixedRoutes(broken, EchoEngine(), artifacts="ab")
    events = await collect(router_over(routes), replace(REQUEST, streamed=False))
    assert text_of(events) == CANARY, "and nothing of the first donor's answer"
    assert isinstance(events[-1], Finished)
    assert not routes.engines[1].requests[0].resume


WOULD_REPEAT = [error for error in DONOR_ERRORS.values() if error.scope is Scope.APP]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("error", WOULD_REPEAT, ids=lambda error: error.code)
@pytest.mark.parametrize("n_tokens", [0, 4])
async def test_an_error_that_would_repeat_is_not_retried(
    error: type[TokenplaceError], n_tokens: int, streamed: bool
) -> None:
    routes = FixedRoutes(EchoEngine(fail_after=n_tokens, error=error()), EchoEngine())
    with pytest.raises(error):
        await collect(router_over(routes), replace(REQUEST, streamed=streamed))
    assert not routes.engines[1].requests


def test_what_would_repeat() -> None:
    assert Quarantined in WOULD_REPEAT
    assert not any(error.retry_elsewhere for error in WOULD_REPEAT)


async def test_three_attempts_are_the_end() -> None:
    broken = [EchoEngine(fail_after=0, error=ConnectionLost()) for _ in range(5)]
    routes = FixedRoutes(*broken)
    with pytest.raises(ConnectionLost) as caught:
        await collect(router_over(routes))
    assert caught.value.retry_after_s
    assert [len(engine.requests) for engine in broken] == [1, 1, 1, 0, 0]


async def test_a_request_that_crashes_workers_is_retried_once() -> None:
    broken = [EchoEngine(fail_after=0, error=WorkerCrashed()) for _ in range(3)]
    with pytest.raises(WorkerCrashed):
        await collect(router_over(FixedRoutes(*broken)))
    assert [len(engine.requests) for engine in broken] == [1, 1, 0]


async def test_all_busy_says_when_to_come_back() -> None:
    routes = FixedRoutes(
        *(EchoEngine(fail_after=0, error=DonorBusy(retry_after_s=3.0)) for _ in range(2))
    )
    with pytest.raises(DonorBusy) as caught:
        await collect(router_over(routes))
    assert caught.value.retry_after_s is not None
    assert 3.0 <= caught.value.retry_after_s <= 4.5, "as the donors say, or a little later"
    assert "All 2 donors" in caught.value.detail


async def test_who_was_not_busy_is_not_said_to_be_and_the_first_to_be_free_says_when() -> None:
    errors = (ConnectFailed(), DonorBusy(retry_after_s=2.0), DonorBusy(retry_after_s=200.0))
    routes = FixedRoutes(*(EchoEngine(fail_after=0, error=error) for error in errors))
    with pytest.raises(DonorBusy) as caught:
        await collect(router_over(routes))
    assert "2 of the 3 donors" in caught.value.detail
    assert caught.value.retry_after_s is not None
    assert 2.0 <= caught.value.retry_after_s <= 3.0


async def test_apps_that_are_turned_away_together_do_not_come_back_together() -> None:
    told = set()
    for seed in range(10):
        router = GivenRouter(FixedRoutes(), seed=seed)
        with pytest.raises(NoDonorForModel) as caught:
            await collect(router)
        told.add(caught.value.retry_after_s)
    assert len(told) == 10


class Unreachable(EchoEngine):
    """Nobody can be dialled while `is_away`."""

    is_away = True

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if self.is_away:
            raise ConnectFailed
        async with super().generate(request) as events:
            async for event in events:
                yield event


@pytest.mark.parametrize(("fail_after", "error"), [(0, OwnNetworkDown), (2, ConnectionLost)])
async def test_paths_to_two_donors_that_break_are_this_machines_network(
    fail_after: int, error: type[TokenplaceError]
) -> None:
    """An app that has a part of the answer is told what cut it."""
    cut = EchoEngine(fail_after=fail_after, error=ConnectionLost())
    others = [Unreachable() for _ in range(3)]
    routes = FixedRoutes(cut, *others)
    router = router_over(routes)
    with pytest.raises(error) as caught:
        await collect(router)
    assert caught.value.retry_after_s or fail_after
    cut.fail_after = None
    for other in others:
        other.is_away = False
    assert text_of(await collect(router)) == CANARY
    assert not routes.failures, "nobody is blamed"


async def test_one_broken_path_is_not_taken_for_this_machines_network() -> None:
    with pytest.raises(ConnectionLost):
        await collect(router_over(FixedRoutes(EchoEngine(fail_after=0, error=ConnectionLost()))))


@pytest.mark.parametrize("error", [ModelNotFound(), NoDonorForModel()])
async def test_what_the_search_says_reaches_the_app(error: TokenplaceError) -> None:
    with pytest.raises(type(error)):
        await collect(router_over(FixedRoutes(error=error)))


async def test_nobody_at_all_is_no_donor_for_model() -> None:
    with pytest.raises(NoDonorForModel) as caught:
        await collect(router_over(FixedRoutes()))
    assert caught.value.retry_after_s


async def test_leaving_early_cancels_the_donor(autojump_clock: trio.testing.MockClock) -> None:
    engine = EchoEngine(token_interval_s=1)
    router = router_over(FixedRoutes(engine))
    async with router.generate(REQUEST) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
    assert engine.n_running == 0
    assert [a.outcome for a in router.attempts] == ["cancelled"]
    assert router.attempts[0].first_token_s == 1


async def test_no_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    routes = FixedRoutes(EchoEngine(fail_after=0, error=ConnectionLost()), EchoEngine())
    await collect(router_over(routes))
    assert "donor-1" in caplog.text
    assert CANARY not in caplog.text
