"""What this peer's own apps see when it stops."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import EchoEngine
from tests.router.test_router import CANARY, REQUEST, FixedRoutes, router_over, text_of
from tokenplace import defaults
from tokenplace.errors import PeerStopping
from tokenplace.generation import Event, Finished
from tokenplace.router.stoppable import Stoppable


async def collect(generator: Stoppable, seen: list[Event], pause_s: float = 0) -> None:
    async with generator.generate(REQUEST) as events:
        async for event in events:
            seen.append(event)
            await trio.sleep(pause_s)


async def expect_stopping(generator: Stoppable, seen: list[Event], pause_s: float = 0) -> None:
    with pytest.raises(PeerStopping):  # bare, through every hop
        await collect(generator, seen, pause_s)


def stoppable_over(engine: EchoEngine) -> Stoppable:
    return Stoppable(router_over(FixedRoutes(engine)))


async def test_an_answer_passes_unchanged() -> None:
    generator, seen = stoppable_over(EchoEngine()), list[Event]()
    await collect(generator, seen)
    assert text_of(seen) == CANARY
    assert isinstance(seen[-1], Finished)


async def test_what_runs_may_end_and_nothing_new_begins(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=0.2)
    generator, seen = stoppable_over(engine), list[Event]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, generator, seen)
        await wait_all_tasks_blocked()
        nursery.start_soon(generator.finish)
        await wait_all_tasks_blocked()
        late: list[Event] = []
        await expect_stopping(generator, late)
        assert not late
        assert len(engine.requests) == 1
    assert text_of(seen) == CANARY
    assert trio.current_time() < defaults.FINISH_GRACE_S, "nobody waits when the last has ended"
    await generator.finish()  # idle: at once
    assert trio.current_time() < defaults.FINISH_GRACE_S


@pytest.mark.parametrize("app_pause_s", [0.0, 5.0], ids=["waits", "is busy with the last event"])
async def test_what_does_not_end_is_told_why(app_pause_s: float, autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    generator, seen = stoppable_over(engine), list[Event]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_stopping, generator, seen, app_pause_s)
        await wait_all_tasks_blocked()
        await generator.finish()
        waited_s = defaults.FINISH_NOTICE_S if app_pause_s else 0
        assert trio.current_time() == defaults.FINISH_GRACE_S + waited_s
    assert engine.n_running == 0
    assert seen
    assert not isinstance(seen[-1], Finished)


async def test_an_app_may_close_its_events_first() -> None:
    generator = stoppable_over(EchoEngine())
    async with generator.generate(REQUEST) as events:
        await events.receive()
        await events.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await events.receive()
