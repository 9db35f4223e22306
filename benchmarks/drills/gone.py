"""An app that goes away, or a whole asking peer that dies, in the middle of an answer. Start at
`DRILLS`.

What counts is the donor: nobody reads what it computes, so its slot must be free for others, and
nothing may be left behind by those who went.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import trio

from benchmarks.drills.app import Question
from benchmarks.drills.peers import Donor, Lane, Size, open_network, prompt_of, size_of, wait_until
from benchmarks.drills.table import Drill, Result, Scale

FLAGS: Final = ("--prefill-tps", "1000", "--decode-tps", "16", "--slots", "1")
PHASES: Final = ("stream", "prefill", "queued")
N_TOKENS: Final = 400  # far more than are read: nothing ends by itself
PROMPT_TOKENS: Final = {"stream": 40, "prefill": 6000, "queued": 40}
PREFILL_S: Final = 3.0  # half of what it takes
QUEUED_WITHIN_S: Final = 10.0
APP_GONE_S: Final = 1.0
PEER_GONE_S: Final = 12.0
PATIENCE_S: Final = 30.0  # until a slot counts as never free
# A process's first requests load and cache what then stays.
WARM_UP: Final = 3
SETTLE_S: Final = 15.0
MEASURED: Final = ("donor", "asking peer", "donor in the end")
DESCRIPTORS_SLACK: Final = 1  # a connection to another peer that comes or goes by itself
# Its allocator wavers by so much; what a request leaves behind, fifty leave fifty times.
MEMORY_SLACK: Final = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """When the app goes: in this phase, after this share of it."""

    phase: str
    share: float
    prompt: str


def _trials(dice: Random, n: int, phases: Sequence[str]) -> list[Trial]:
    trials = []
    for number in range(n):
        phase = phases[number % len(phases)]
        trials.append(Trial(phase, dice.random(), prompt_of(dice, PROMPT_TOKENS[phase])))
    return trials


async def run(scale: Scale) -> Result:
    """See `DRILLS`. The asking peer is measured while it lives: before any of them is killed."""
    dice = scale.dice("gone")
    leavings = _trials(dice, scale.times(35, 6), PHASES)
    deaths = _trials(dice, scale.times(15, 2), PHASES[:2])
    warm_up = _trials(dice, WARM_UP, PHASES)
    async with open_network(scale.folder, *FLAGS) as network:
        (lane,) = network.lanes
        await lane.fill(1)
        (donor,) = lane.donors.values()
        assert network.asker is not None, "started by `open_network`"
        for trial in warm_up:
            await _leave(lane, donor, trial)
        sizes = [size_of(donor.pid), size_of(network.asker.process.pid)]
        app_s = [await _leave(lane, donor, trial) for trial in leavings]
        grown = await _grown([donor.pid, network.asker.process.pid], sizes)
        peer_s = [await _kill_asker(lane, donor, trial) for trial in deaths]
        grown += await _grown([donor.pid], sizes[:1])
    return _result(app_s, peer_s, grown)


# ---------------------------------------------------------------- the app


async def _leave(lane: Lane, donor: Donor, trial: Trial) -> float:
    """Seconds from the app's hanging up until the donor works for nobody."""
    async with trio.open_nursery() as nursery:
        others = []
        if trial.phase == "queued":  # behind somebody, who goes at the same time
            others.append(await _start(lane, donor, Trial("stream", 0.0, "first"), nursery))
        question = await _start(lane, donor, trial, nursery)
        for gone in (*others, question):
            gone.leaving.cancel()
        return await wait_until(donor.is_free, PATIENCE_S)


async def _start(lane: Lane, donor: Donor, trial: Trial, nursery: trio.Nursery) -> Question:
    """Ask, and return when the request is so far in its phase."""
    question = Question(lane.chat(trial.prompt, N_TOKENS))
    nursery.start_soon(question.ask, lane.network.api)
    if trial.phase == "queued":
        waited_s = await wait_until(donor.has_queued, QUEUED_WITHIN_S)
        assert waited_s < math.inf, f"never queued: {question.problem}"
        return question
    assert await question.wait(lambda: question.donor), question.problem
    if trial.phase == "prefill":
        await trio.sleep(trial.share * PREFILL_S)
        assert not question.stream.moments, "still in its prefill"
    else:
        n_pieces = 1 + int(trial.share * 8)
        assert await question.wait(lambda: len(question.stream.moments) >= n_pieces)
    return question


# ---------------------------------------------------------------- the asking peer


async def _kill_asker(lane: Lane, donor: Donor, trial: Trial) -> float:
    """Seconds from the asking peer's SIGKILL until the donor works for nobody."""
    network = lane.network
    assert network.asker is not None, "started by `open_network`"
    async with trio.open_nursery() as nursery:
        await _start(lane, donor, trial, nursery)
        network.asker.process.kill()
        freed_s = await wait_until(donor.is_free, PATIENCE_S)
    await network.asker.process.wait()
    await network.start_asker()
    await lane.introduce(donor)
    return freed_s


# ---------------------------------------------------------------- what is left


async def _grown(pids: Sequence[int], before: Sequence[Size]) -> list[tuple[int, float]]:
    """By how many descriptors, and by what share of its memory, each has grown for good."""
    grown: list[tuple[int, float]] = []

    async def has_settled() -> bool:
        grown[:] = [
            (now.descriptors - then.descriptors, now.memory_mb / then.memory_mb - 1)
            for now, then in zip(map(size_of, pids), before, strict=True)
        ]
        return all(_is_small(one) for one in grown)

    await wait_until(has_settled, SETTLE_S, poll_s=0.2)
    return grown


def _is_small(grown: tuple[int, float]) -> bool:
    descriptors, memory = grown
    return descriptors <= DESCRIPTORS_SLACK and memory <= MEMORY_SLACK


def _result(
    app_s: Sequence[float], peer_s: Sequence[float], grown: Sequence[tuple[int, float]]
) -> Result:
    late = [
        f"free {took_s:.2f} s after {who} had gone"
        for who, times, limit_s in (
            ("the app", app_s, APP_GONE_S),
            ("its peer", peer_s, PEER_GONE_S),
        )
        for took_s in times
        if took_s > limit_s
    ]
    kept = [
        f"{name}: {descriptors:+} descriptors, {memory:+.1%} memory"
        for name, (descriptors, memory) in zip(MEASURED, grown, strict=True)
        if not _is_small((descriptors, memory))
    ]
    descriptors, memory = (max(column) for column in zip(*grown, strict=True))
    return Result(
        ok=not late and not kept,
        n=len(app_s) + len(peer_s),
        measured=f"free after {max(app_s):.2f} s (app gone), {max(peer_s):.2f} s (peer killed) at "
        f"worst; descriptors {descriptors:+}, memory {memory:+.1%}",
        figures={
            "app_gone_worst_s": max(app_s),
            "peer_gone_worst_s": max(peer_s),
            "descriptors_grown": descriptors,
            "memory_grown": memory,
        },
        faults=(*late, *kept),
    )


DRILLS: Final = (
    Drill(
        "gone",
        "the app hangs up in the stream, in prefill, while queued; its peer gets SIGKILL",
        "donor's slot free <= 1 s, <= 12 s; memory and descriptors as before",
        run,
    ),
)
