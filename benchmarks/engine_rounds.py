"""Two arms in turns, and how much other programs disturbed them. Start at `Bench.compare`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import psutil
import trio

from benchmarks.engine_arms import Arm, Size, open_ours, open_server
from benchmarks.engine_asks import Ask, Trace, asks

N_PROMPT: Final = 200
N_CTX: Final = 448

T = TypeVar("T")


@dataclass
class Bench:
    """What all workloads share. others: CPU of other processes during each run, in cores."""

    model: Path
    server: Path
    folder: Path
    rounds: int
    n_new: int
    n_threads: int
    n_prompts: dict[str, int] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def both(self, n_slots: int, n_ctx: int = N_CTX) -> AsyncIterator[tuple[Arm, Arm]]:
        """Our engine and llama.cpp's server, with so many slots."""
        size = Size(n_slots, n_ctx, self.n_threads)
        log = self.folder / "llama-server.log"
        async with (
            open_ours(self.model, size) as ours,
            open_server(self.server, self.model, size, log) as server,
        ):
            yield ours, server

    async def compare(
        self, arms: tuple[Arm, Arm], run: Callable[[Arm, str], Awaitable[T]]
    ) -> list[tuple[T, T]]:
        """`run` with each arm in each round, the arms in turns first; it gets the round's seed.

        A short run of both before it is not counted.
        """
        for arm in arms:
            await self.ask_together(arm, asks(1, N_PROMPT, 8, "warm-up"))
        pairs = []
        for number in range(self.rounds):
            results: dict[int, T] = {}
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                busy = others_busy()
                results[which] = await run(arms[which], f"round {number}")
                self.others.append(busy())
            pairs.append((results[0], results[1]))
        return pairs

    async def ask_together(self, arm: Arm, requests: Sequence[Ask]) -> list[Trace]:
        """Send all at once, and wait for all answers."""
        traces = [Trace() for _ in requests]
        async with trio.open_nursery() as nursery:
            for ask, trace in zip(requests, traces, strict=True):
                nursery.start_soon(self.ask, arm, ask, trace)
        return traces

    async def ask(self, arm: Arm, ask: Ask, trace: Trace) -> None:
        """Send one, and check that the arms do the same work."""
        await arm.answer(ask, trace)
        assert trace.n_tokens == ask.n_new, f"{trace.n_tokens} tokens instead of {ask.n_new}"
        n_prompt = self.n_prompts.setdefault(ask.text, trace.n_prompt)
        assert trace.n_prompt == n_prompt, f"a prompt of {n_prompt} and of {trace.n_prompt} tokens"


def others_busy() -> Callable[[], float]:
    """A function that says how many cores processes other than ours used, on average since now."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]

    def busy_s() -> float:
        times = psutil.cpu_times()
        in_all = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        in_all -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        mine = [process.cpu_times() for process in family]
        return float(in_all - sum(t.user + t.system for t in mine))

    began_at, before = time.perf_counter(), busy_s()

    def since() -> float:
        return max(0.0, (busy_s() - before) / (time.perf_counter() - began_at))

    return since
