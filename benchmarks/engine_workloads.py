"""What our engine and its rivals are compared in. Start at `speed`.

Each workload opens its arms, has them do the same in turns, and makes rows of it with the aims.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import trio

from benchmarks.engine_apart import open_locked_llama
from benchmarks.engine_arms import Arm, Size, open_ours
from benchmarks.engine_asks import (
    Ask,
    Compared,
    Together,
    Trace,
    asks,
    asks_with_prefix,
    prompt,
    scope_of,
    words,
)
from benchmarks.engine_network import open_network
from benchmarks.engine_rounds import N_CTX, N_PROMPT, Bench, others_busy
from benchmarks.engine_share import Share, measure_apart
from benchmarks.report import Row

MANY: Final = 8  # requests at once, where a workload has one number of them

SPEED_AIM: Final = 0.97  # 1.0, less what rounds differ by
FIRST_TOKEN_AIM: Final = 0.85
FIRST_TOKEN_AIM_ALONE: Final = 1.05
N_SHARED: Final = 160
SHARED_SPEED_AIM: Final = 1.4
SHARED_FIRST_TOKEN_AIM: Final = 0.4
N_STREAMS: Final = 4
N_LONG_PROMPT: Final = 1000
STREAM_BEGUN: Final = 16  # tokens that each stream has when the long prompt arrives
STREAM_NEW: Final = 128
LATE_NEW: Final = 32
STALL_AIM_S: Final = 0.4
STALL_TOTAL_AIM: Final = 1.05
CANCEL_AIM_S: Final = 0.3
PREFILL_S: Final = 0.3  # it goes on when another one comes, and as long again until it is cancelled
POLL_S: Final = 0.01
TURNS: Final = 6
TURN_AIM: Final = 1.3
PYTHON_AIM: Final = 0.02
NETWORK_AIM: Final = 0.95
LOCKED_AIM: Final = 1.6


async def speed(n: int, bench: Bench) -> list[Row]:
    """Requests of `n` strangers at once."""

    async def run(arm: Arm, seed: str) -> Together:
        requests = asks(n, N_PROMPT, bench.n_new, f"speed {n} {seed}")
        return Together.of(await bench.ask_together(arm, requests))

    async with bench.both(n) as arms:
        pairs = await bench.compare(arms, run)
    first_aim = FIRST_TOKEN_AIM if n > 1 else FIRST_TOKEN_AIM_ALONE
    return together_rows("strangers", n, pairs, SPEED_AIM, first_aim)


async def prefix(bench: Bench) -> list[Row]:
    """Requests of one app, whose prompts mostly are the same."""

    async def run(arm: Arm, seed: str) -> Together:
        requests = asks_with_prefix(MANY, N_SHARED, N_PROMPT, bench.n_new, f"prefix {seed}")
        return Together.of(await bench.ask_together(arm, requests))

    async with bench.both(MANY) as arms:
        pairs = await bench.compare(arms, run)
    what = f"{N_SHARED} of {N_PROMPT} shared"
    return together_rows(what, MANY, pairs, SHARED_SPEED_AIM, SHARED_FIRST_TOKEN_AIM)


def together_rows(
    what: str,
    n: int,
    pairs: Sequence[tuple[Together, Together]],
    speed_aim: float,
    first_aim: float,
) -> list[Row]:
    """Tokens a second of all, at least so many times the rival's; mean first token, at most."""
    rate = Compared.of([(ours.tokens_per_s, rival.tokens_per_s) for ours, rival in pairs])
    first = Compared.of([(ours.first_s, rival.first_s) for ours, rival in pairs])
    return [
        compared_row(f"{what}: speed", n, rate, "tokens/s", rate.ratio >= speed_aim),
        compared_row(f"{what}: first token", n, first, "s", first.ratio <= first_aim),
    ]


def compared_row(what: str, n: int, compared: Compared, unit: str, ok: bool | None) -> Row:
    """Both arms in one row."""
    return Row(what, n, compared.ours, compared.rival, compared.ratio, unit, ok)


@dataclass(frozen=True, slots=True)
class Stall:
    """gap_s: the longest silence of a running stream since a long prompt arrived."""

    gap_s: float
    first_s: float
    total_s: float


async def stall(bench: Bench) -> list[Row]:
    """Four streams run, and a long prompt arrives."""
    async with bench.both(N_STREAMS + 1, N_LONG_PROMPT + N_CTX) as arms:
        pairs = await bench.compare(arms, partial(run_stall, bench))
    gap = Compared.of([(ours.gap_s, rival.gap_s) for ours, rival in pairs])
    first = Compared.of([(ours.first_s, rival.first_s) for ours, rival in pairs])
    total = Compared.of([(ours.total_s, rival.total_s) for ours, rival in pairs])
    what = f"{N_LONG_PROMPT} tokens arrive"
    total_ok = total.ratio <= STALL_TOTAL_AIM
    return [
        compared_row(f"{what}: longest gap", N_STREAMS, gap, "s", gap.ours <= STALL_AIM_S),
        compared_row(f"{what}: total time", N_STREAMS, total, "s", total_ok),
        compared_row(f"{what}: first token", N_STREAMS, first, "s", None),
    ]


async def run_stall(bench: Bench, arm: Arm, seed: str) -> Stall:
    """One round of `stall`."""
    streams = asks(N_STREAMS, N_PROMPT, STREAM_NEW, f"stall {seed}")
    (newcomer,) = asks(1, N_LONG_PROMPT, LATE_NEW, f"newcomer {seed}")
    running, late = [Trace() for _ in streams], Trace()
    async with trio.open_nursery() as nursery:
        for ask, trace in zip(streams, running, strict=True):
            nursery.start_soon(bench.ask, arm, ask, trace)
        await wait_until_streaming(running)
        nursery.start_soon(bench.ask, arm, newcomer, late)
    gap_s = max(trace.longest_gap_s(late.sent_at) for trace in running)
    traces = [*running, late]
    total_s = max(t.ended_at for t in traces) - min(t.sent_at for t in traces)
    return Stall(gap_s, late.first_s, total_s)


async def wait_until_streaming(running: Sequence[Trace]) -> None:
    """Until each of these answers has begun."""
    while True:
        if min(trace.n_tokens for trace in running) >= STREAM_BEGUN:
            return
        await trio.sleep(POLL_S)


async def chat(bench: Bench) -> list[Row]:
    """One conversation, each turn of which repeats all before it; the server keeps it too."""

    async def run(arm: Arm, seed: str) -> list[float]:
        text, firsts = "The", []
        for turn in range(TURNS):
            text += " " + words(N_PROMPT // 2, f"chat {seed} {turn}")
            trace = Trace()
            await bench.ask(arm, Ask(text, bench.n_new // 2, scope_of(seed)), trace)
            text += trace.text.decode("utf-8", "replace")
            firsts.append(trace.first_s)
        return firsts

    async with bench.both(1, TURNS * (N_PROMPT // 2 + bench.n_new)) as arms:
        pairs = await bench.compare(arms, run)
    last = Compared.of([(ours[-1], rival[-1]) for ours, rival in pairs])
    grown = Compared.of([(ours[-1] / ours[0], rival[-1] / rival[0]) for ours, rival in pairs])
    ok = grown.ours <= TURN_AIM
    return [
        compared_row("chat: last turn's first token", TURNS, last, "s", None),
        compared_row("chat: that ÷ the first turn's", TURNS, grown, "times", ok),
    ]


async def cancel(bench: Bench) -> list[Row]:
    """With one slot: from the end of a request in prefill to the next one's token."""

    async def run(arm: Arm, seed: str) -> float:
        unwanted, waiting = Trace(), Trace()
        async with trio.open_nursery() as nursery, trio.open_nursery() as doomed:
            (long,) = asks(1, N_LONG_PROMPT, 1, f"cancelled {seed}")
            doomed.start_soon(arm.answer, long, unwanted)
            await trio.sleep(PREFILL_S)
            short = Ask(prompt(8, f"next {seed}"), 1, scope_of(seed))
            nursery.start_soon(bench.ask, arm, short, waiting)
            await trio.sleep(PREFILL_S)
            assert not unwanted.times, "too fast to be cancelled in prefill"
            doomed.cancel_scope.cancel()
            cancelled_at = time.perf_counter()
        return waiting.times[0] - cancelled_at

    async with bench.both(1, N_LONG_PROMPT + N_CTX) as arms:
        took = Compared.of(await bench.compare(arms, run))
    what = "cancelled: the next one's token"
    return [compared_row(what, 1, took, "s", took.ours <= CANCEL_AIM_S)]


async def python(bench: Bench) -> list[Row]:
    """What part of a worker's time is not llama.cpp's."""
    sizes = [bench.n_threads, N_CTX, MANY, N_PROMPT, bench.n_new]
    shares = []
    for _ in range(bench.rounds):
        busy = others_busy()
        shares.append(await measure_apart(bench.model, sizes))
        bench.others.append(busy())

    def row(what: str, part: Callable[[Share], float], aim: float | None = None) -> Row:
        percent = median(part(share) / share.total for share in shares) * 100
        ok = None if aim is None else percent <= aim * 100
        return Row(what, MANY, percent, None, None, "%", aim is None or ok)

    return [
        row("Python, of the worker's time", lambda share: share.total - share.llama, PYTHON_AIM),
        row("  filling batches", lambda share: share.batch),
        row("  deciding and drawing", lambda share: share.step),
        row("  the pipe", lambda share: share.pipe),
    ]


async def network(n_threads: int, bench: Bench) -> list[Row]:
    """The same engine through HTTP, two peers and sealing; the rival is the engine called here."""

    async def run(arm: Arm, seed: str) -> Together:
        # The template adds some tokens of its own.
        requests = asks(MANY, N_PROMPT - 30, bench.n_new, f"network {n_threads} {seed}")
        return Together.of(await bench.ask_together(arm, requests))

    size = Size(n_slots=None, n_ctx=None, n_threads=n_threads)
    folder = bench.folder / f"network-{n_threads}"
    folder.mkdir()
    async with (
        open_network(folder, n_threads) as through,
        open_ours(bench.model, size, is_chat=True) as alone,
    ):
        pairs = await bench.compare((through, alone), run)
    rate = Compared.of([(ours.tokens_per_s, rival.tokens_per_s) for ours, rival in pairs])
    first = Compared.of([(ours.first_s, rival.first_s) for ours, rival in pairs])
    threads = "one thread" if n_threads == 1 else f"{n_threads} threads"
    ok = rate.ratio >= NETWORK_AIM if n_threads == 1 else None
    return [
        compared_row(f"network, {threads}: speed", MANY, rate, "tokens/s", ok),
        compared_row(f"network, {threads}: first token", MANY, first, "s", None),
    ]


async def locked(bench: Bench) -> list[Row]:
    """Against llama-cpp-python's own `Llama`, one request after the other."""

    async def run(arm: Arm, seed: str) -> Together:
        requests = asks(MANY, N_PROMPT, bench.n_new, f"locked {seed}")
        return Together.of(await bench.ask_together(arm, requests))

    size = Size(MANY, N_CTX, bench.n_threads)
    async with (
        open_ours(bench.model, size) as ours,
        open_locked_llama(bench.model, size) as llama,
    ):
        pairs = await bench.compare((ours, llama), run)
    rate = Compared.of([(ours.tokens_per_s, rival.tokens_per_s) for ours, rival in pairs])
    ok = rate.ratio >= LOCKED_AIM
    return [compared_row("`Llama` behind a lock: speed", MANY, rate, "tokens/s", ok)]
