"""Which donated models are in memory, with engines that compute nothing and a clock of our own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.node.engines import Shelf
from tokenplace import defaults
from tokenplace.engine.engine import EngineSpec
from tokenplace.engine.launch import LoadInterrupted
from tokenplace.errors import ConfigError, DonorBusy, ModelNotOffered, TokenplaceError
from tokenplace.node.donation import Donation, DonationState
from tokenplace.node.loading import Loader
from tokenplace.node.memory import Share


@dataclass
class Lab:
    """Models of 4 bytes each, and a budget."""

    names: str
    budget_bytes: int = 100
    idle_unload_s: float = math.inf
    shelf: Shelf = field(default_factory=Shelf)
    said: list[str] = field(default_factory=list)
    broken_files: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.donations = [Donation(name, share=Share(1, 4)) for name in self.names]

    def __getitem__(self, name: str) -> Donation:
        return next(d for d in self.donations if d.what == name)

    async def prepare(self, donation: Donation) -> EngineSpec:
        donation.state = DonationState.HASHING
        await trio.lowlevel.checkpoint()
        if donation.what in self.broken_files:
            raise ConfigError(f"{donation.what}: its sha256 differs.")
        return EngineSpec(Path(donation.what), donation.what, donation.what * 64, n_threads=1)

    def states(self) -> dict[str, str]:
        return {d.what: d.state.value for d in self.donations}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Loader]:
        """Every model has been loaded once, or has failed, when the block starts."""
        loader = Loader(
            self.donations,
            budget_bytes=self.budget_bytes,
            idle_unload_s=self.idle_unload_s,
            prepare=self.prepare,
            open_engine=self.shelf.open,
            say=self.said.append,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loader.run)
            await until(lambda: all(is_settled(d) for d in self.donations))
            yield loader
            nursery.cancel_scope.cancel()
        assert not self.shelf.loaded, "every engine ends with the loader"


def is_settled(donation: Donation) -> bool:
    return donation.info is not None or donation.state is DonationState.FAILED


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(1000):  # of the test's clock
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.1)


async def use(loader: Loader, donation: Donation, for_s: float = 0.0) -> None:
    async with loader.lease(donation) as engine:
        assert engine.info.name == donation.what
        await trio.sleep(for_s)
        assert donation.engine is engine, "it stays while it is used"


# ---------------------------------------------------------------- coming and going


async def test_all_are_loaded_one_after_the_other_and_offered(autojump_clock: MockClock) -> None:
    lab = Lab("ABC", shelf=Shelf(load_s=3))
    async with lab.running() as loader:
        assert trio.current_time() == pytest.approx(9, abs=0.1)
        assert lab.shelf.loaded == ["A", "B", "C"]
        assert set(lab.states().values()) == {"offered"}
        assert [line.split(":")[0] for line in lab.said] == [f"donating {name}" for name in "ABC"]
        for donation in lab.donations:
            await use(loader, donation)
    assert len(lab.shelf.specs) == 3


async def test_those_that_do_not_fit_take_turns_and_stay_offered(autojump_clock: MockClock) -> None:
    lab = Lab("ABC", budget_bytes=8)
    async with lab.running() as loader:
        assert lab.shelf.most == 2
        assert lab.states() == {"A": "unloaded", "B": "offered", "C": "offered"}
        assert all(d.offered for d in lab.donations)
        await trio.sleep(1)
        await use(loader, lab["B"])
        await use(loader, lab["A"])
        assert lab.states() == {"A": "offered", "B": "offered", "C": "unloaded"}
    assert lab.shelf.most == 2
    assert len(lab.said) == 3, "it is news only once"


async def test_a_model_in_use_is_not_unloaded(autojump_clock: MockClock) -> None:
    lab = Lab("AB", budget_bytes=4)
    async with lab.running() as loader, trio.open_nursery() as nursery:
        nursery.start_soon(use, loader, lab["A"], 10.0)
        await until(lambda: lab["A"].n_users == 1)
        began_at = trio.current_time()
        await use(loader, lab["B"])
        assert trio.current_time() >= began_at + 9
        assert lab.shelf.most == 1


async def test_requests_for_one_model_share_a_load(autojump_clock: MockClock) -> None:
    lab = Lab("AB", budget_bytes=4, shelf=Shelf(load_s=2))
    async with lab.running() as loader:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(use, loader, lab["A"], 1.0)
        assert [spec.name for spec in lab.shelf.specs] == ["A", "B", "A"]
        assert lab["A"].n_waiting == lab["A"].n_users == 0


async def test_two_that_are_asked_for_at_once_both_come(autojump_clock: MockClock) -> None:
    lab = Lab("AB", budget_bytes=4, shelf=Shelf(load_s=1))
    async with lab.running() as loader, trio.open_nursery() as nursery:
        for name in "ABAB":
            nursery.start_soon(use, loader, lab[name], 0.5)
    assert lab.shelf.most == 1


async def test_a_load_outlives_who_wanted_it(autojump_clock: MockClock) -> None:
    lab = Lab("AB", budget_bytes=4, shelf=Shelf(load_s=5))
    async with lab.running() as loader:
        with trio.move_on_after(1) as scope:
            await use(loader, lab["A"])
        assert scope.cancelled_caught
        assert lab["A"].n_waiting == 0
        await until(lambda: lab["A"].engine is not None)


async def test_idle_models_give_their_memory_back(autojump_clock: MockClock) -> None:
    lab = Lab("AB", idle_unload_s=60)
    async with lab.running() as loader:
        await trio.sleep(50)
        await use(loader, lab["A"], 5.0)
        await trio.sleep(20)
        assert lab.states() == {"A": "offered", "B": "unloaded"}
        await trio.sleep(60)
        assert lab.shelf.loaded == []
        assert lab["B"].load is not None
        assert lab["B"].load.decode_tps == 80, "the advert goes on to say how fast it is"
        await use(loader, lab["B"], 500.0)
        assert lab.states() == {"A": "unloaded", "B": "offered"}


# ---------------------------------------------------------------- patience


async def test_who_waits_too_long_is_sent_elsewhere(autojump_clock: MockClock) -> None:
    lab = Lab("AB", budget_bytes=4)
    async with lab.running() as loader, trio.open_nursery() as nursery:
        nursery.start_soon(use, loader, lab["A"], 40.0)
        await until(lambda: lab["A"].n_users == 1)
        began_at = trio.current_time()
        with pytest.raises(DonorBusy) as caught:
            await use(loader, lab["B"])
        assert trio.current_time() == began_at + defaults.LOAD_WAIT_S
        assert caught.value.retry_after_s
        assert lab["B"].offered, "it only takes a while"
    assert defaults.LOAD_WAIT_S < defaults.ACCEPT_TIMEOUT_S


async def test_nobody_waits_for_a_model_that_is_known_to_take_longer(
    autojump_clock: MockClock,
) -> None:
    lab = Lab("AB", budget_bytes=4, shelf=Shelf(load_s=100))
    async with lab.running() as loader:
        began_at = trio.current_time()
        with pytest.raises(DonorBusy):
            await use(loader, lab["A"])
        assert trio.current_time() == began_at
        await until(lambda: lab["A"].engine is not None)
        await use(loader, lab["A"])


async def test_a_model_that_is_always_in_use_lets_another_have_its_turn(
    autojump_clock: MockClock,
) -> None:
    lab = Lab("AB", budget_bytes=4)
    refused = 0

    async def insist(loader: Loader) -> None:
        nonlocal refused
        while True:
            try:
                await use(loader, lab["A"], 3.0)
            except DonorBusy:
                refused += 1
                await trio.sleep(1)

    async with lab.running() as loader, trio.open_nursery() as nursery:
        nursery.start_soon(insist, loader)
        await trio.sleep(1)
        nursery.start_soon(insist, loader)
        await trio.sleep(1)
        with pytest.raises(DonorBusy):
            await use(loader, lab["B"])
        assert not refused
        await until(lambda: lab["B"].engine is not None)
        assert refused
        assert trio.current_time() < 2 * defaults.MODEL_TURN_S
        await until(lambda: lab["A"].engine is not None)
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- failing


async def test_a_file_that_is_broken_is_not_tried_again(autojump_clock: MockClock) -> None:
    lab = Lab("AB")
    lab.broken_files.add("A")
    lab.shelf.fails["B"] = ConfigError("B: it is cut off.")
    async with lab.running() as loader:
        assert lab.states() == {"A": "failed", "B": "failed"}
        assert lab["A"].reason == "A: its sha256 differs."
        assert lab["B"].reason == "B: it is cut off."
        assert lab.said == [f"{d.what} is not offered: {d.reason}" for d in lab.donations]
        await trio.sleep(10_000)
        assert len(lab.said) == 2
        with pytest.raises(ModelNotOffered):
            await use(loader, lab["A"])


async def test_what_may_work_later_is_tried_again(autojump_clock: MockClock) -> None:
    lab = Lab("A")
    lab.shelf.fails["A"] = LoadInterrupted("A: loading it ended the process (signal 9).")
    async with lab.running():
        assert "signal 9" in lab["A"].reason
        assert "again" in lab["A"].reason
        await trio.sleep(defaults.MODEL_RETRY_S * 3.5)
        assert len(lab.shelf.specs) == 3, "after one time, then after twice as long"
        del lab.shelf.fails["A"]
        await until(lambda: lab["A"].offered is not None)
        assert lab.states() == {"A": "offered"}
        assert lab["A"].reason == ""


@pytest.mark.parametrize("error", [ConfigError("gone"), LoadInterrupted("no memory")])
async def test_a_model_that_does_not_come_back_is_offered_no_more(
    error: TokenplaceError, autojump_clock: MockClock
) -> None:
    lab = Lab("AB", budget_bytes=4)
    async with lab.running() as loader:
        assert lab["A"].offered
        lab.shelf.fails["A"] = error
        with pytest.raises(ModelNotOffered):
            await use(loader, lab["A"])
        assert lab["A"].offered is None
        assert lab.states()["A"] == "failed"
        await use(loader, lab["B"])
