"""Which of the donated models are in memory. Start at `Loader.lease`.

One model is loaded at a time: two would fight for the disk and for the cores they are measured on.
Where not all fit, the one whose last request is the longest ago makes room for one that is asked
for, and stays offered: it comes back the same way.

A load belongs to the loader, not to the request that wanted it: it goes on when that one has gone,
and the next finds the model there.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from tokenplace import defaults
from tokenplace.engine.engine import EngineSpec
from tokenplace.engine.launch import LoadInterrupted
from tokenplace.errors import DonorBusy, ModelNotOffered, TokenplaceError, first_error
from tokenplace.node.donation import Donation, DonationState, LoadedEngine

OpenEngine = Callable[[EngineSpec], AbstractAsyncContextManager[LoadedEngine]]
Prepare = Callable[[Donation], Awaitable[EngineSpec]]


class Loader:
    """Loads, unloads, and lends engines. Does its work in `run`."""

    def __init__(
        self,
        donations: Sequence[Donation],
        *,
        budget_bytes: int,
        idle_unload_s: float,
        prepare: Prepare,
        open_engine: OpenEngine,
        say: Callable[[str], None],
    ) -> None:
        """
        donations: each with its share; none of them larger than the budget. prepare: looks at the
        file once more, and says how to run it; raises `TokenplaceError`. say: tells a person what
        became of a model.
        """
        self._donations = donations
        self._budget_bytes = budget_bytes
        self._idle_unload_s = idle_unload_s
        self._prepare = prepare
        self._open_engine = open_engine
        self._say = say
        self._wanted: list[Donation] = []
        self._news = trio.Event()

    async def run(self) -> None:
        """Load all of them once, then whatever is wanted. Cancelled, it leaves nothing behind."""
        for donation in self._donations:
            self._want(donation)
        async with trio.open_nursery() as nursery:
            if self._idle_unload_s < math.inf:
                nursery.start_soon(self._unload_idle)
            while True:
                while not self._wanted:
                    await self._news.wait()
                donation = self._wanted[0]
                await self._load(donation, nursery)
                self._wanted.remove(donation)

    @asynccontextmanager
    async def lease(self, donation: Donation) -> AsyncIterator[LoadedEngine]:
        """Its engine, loaded for this if need be, and kept until the block ends.

        Raises `DonorBusy` when it cannot be there soon, `ModelNotOffered` when it failed.
        """
        if donation.is_leaving:
            raise DonorBusy(retry_after_s=defaults.LOAD_WAIT_S)
        engine = donation.engine or await self._wait_loaded(donation)
        donation.n_users += 1
        try:
            yield engine
        finally:
            donation.n_users -= 1
            donation.used_at = trio.current_time()
            self._stir()

    async def _wait_loaded(self, donation: Donation) -> LoadedEngine:
        self._want(donation)
        donation.n_waiting += 1
        # Who knows that it takes longer does not make others wait for a refusal.
        is_quick = donation.load_took_s <= defaults.LOAD_WAIT_S
        try:
            with trio.move_on_after(defaults.LOAD_WAIT_S if is_quick else 0):
                while donation.engine is None and donation.state is not DonationState.FAILED:
                    await self._news.wait()
        finally:
            donation.n_waiting -= 1
        if donation.engine is not None:
            return donation.engine
        if donation.state is DonationState.FAILED:
            raise ModelNotOffered
        raise DonorBusy(retry_after_s=defaults.LOAD_WAIT_S)

    def _want(self, donation: Donation) -> None:
        if donation not in self._wanted:
            self._wanted.append(donation)
            self._stir()

    def _stir(self) -> None:
        """Something has changed: whoever waits looks again."""
        self._news.set()
        self._news = trio.Event()

    # ------------------------------------------------------------ loading

    async def _load(self, donation: Donation, nursery: trio.Nursery) -> None:
        """Load it, or note why that is not possible."""
        began_at = trio.current_time()
        try:
            spec = await self._prepare(donation)
            await self._make_room(donation)
        except TokenplaceError as error:
            self._fail(donation, error, nursery)
            return
        donation.state = DonationState.LOADING
        settled = trio.Event()
        nursery.start_soon(self._keep, donation, spec, settled, nursery)
        await settled.wait()
        donation.used_at = trio.current_time()
        donation.load_took_s = donation.used_at - began_at

    async def _keep(
        self, donation: Donation, spec: EngineSpec, settled: trio.Event, nursery: trio.Nursery
    ) -> None:
        """Have the engine running until it is to leave. settled: it has come, or cannot."""
        donation.in_memory, donation.leave = True, trio.Event()
        try:
            async with self._open_engine(spec) as engine:
                self._arrive(donation, engine, spec)
                settled.set()
                await donation.leave.wait()
        except* TokenplaceError as group:
            error = first_error(group)
            assert isinstance(error, TokenplaceError), "all in this group are"
            self._fail(donation, error, nursery)
        finally:
            donation.depart()
            donation.in_memory = donation.is_leaving = False
            settled.set()
            self._stir()

    def _arrive(self, donation: Donation, engine: LoadedEngine, spec: EngineSpec) -> None:
        is_news = donation.info is None
        donation.arrive(engine)
        if is_news:
            n_dimensions = engine.info.n_dimensions
            speed = engine.load.prefill_tps if n_dimensions else engine.load.decode_tps
            vectors = f"vectors of {n_dimensions} numbers, " if n_dimensions else ""
            self._say(
                f"donating {engine.info.name}: context {engine.info.n_ctx}, {vectors}"
                f"{speed:.0f} tokens/s on {spec.n_threads} "
                f"thread{'' if spec.n_threads == 1 else 's'}"
            )
        self._stir()

    def _fail(self, donation: Donation, error: TokenplaceError, nursery: trio.Nursery) -> None:
        reason = str(error)
        if isinstance(error, LoadInterrupted):
            # The exponent is bounded only to keep the number small.
            delay_s = defaults.MODEL_RETRY_S * 2 ** min(donation.n_failures, 16)
            donation.n_failures += 1
            nursery.start_soon(self._retry, donation, min(delay_s, defaults.MODEL_RETRY_MAX_S))
            reason += " It will be tried again."
        donation.fail(reason)
        self._say(f"{donation.name} is not offered: {reason}")
        self._stir()

    async def _retry(self, donation: Donation, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self._want(donation)

    # ------------------------------------------------------------ room

    async def _make_room(self, donation: Donation) -> None:
        """Unload others until it fits. Those in use may end their answers; after a while they take
        no new ones.
        """
        patience_until = trio.current_time() + defaults.MODEL_TURN_S
        while (missing := self._missing_bytes(donation)) > 0:
            leaving = self._least_used(missing, only_idle=True)
            if not leaving and trio.current_time() >= patience_until:
                for other in self._least_used(missing, only_idle=False):
                    other.is_leaving = True
            for other in leaving:
                await self._unload(other)
            if not leaving:
                with trio.move_on_after(defaults.MODEL_TURN_S):
                    await self._news.wait()

    def _missing_bytes(self, donation: Donation) -> int:
        taken = sum(_bytes_of(other) for other in self._donations if other.in_memory)
        return taken + _bytes_of(donation) - self._budget_bytes

    def _least_used(self, n_bytes: int, *, only_idle: bool) -> list[Donation]:
        """Models to unload for so many bytes, least recently used first; none if that would not
        do.
        """
        chosen: list[Donation] = []
        for other in sorted(self._donations, key=lambda other: other.used_at):
            if other.is_idle or (other.engine is not None and not only_idle):
                chosen.append(other)
                n_bytes -= _bytes_of(other)
                if n_bytes <= 0:
                    return chosen
        return []

    async def _unload(self, donation: Donation) -> None:
        """Give its memory back; it is free when this returns."""
        donation.depart()
        donation.leave.set()
        while donation.in_memory:
            await self._news.wait()

    async def _unload_idle(self) -> None:
        while True:
            now = trio.current_time()
            for donation in self._donations:
                if donation.is_idle and now >= donation.used_at + self._idle_unload_s:
                    await self._unload(donation)
            await trio.sleep(defaults.IDLE_CHECK_S)


def _bytes_of(donation: Donation) -> int:
    assert donation.share is not None, "only models that fit are loaded"
    return donation.share.n_bytes
