"""Drills on the network between peers: links that delay, lose, double, reorder, throttle and break,
hosts that come and go. Start at `DRILLS`; hosts and links are `benchmarks.lab`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.drills.table import Drill, Result, Scale, percentile, skipped
from benchmarks.drills.trials import Outcome, result_of
from benchmarks.lab.lab import why_not
from benchmarks.lab.peers import REQUESTER, open_lab_network
from benchmarks.lab.scenarios import (
    FLAGS,
    LINKS,
    NO_TWIN,
    Bench,
    Told,
    churn,
    through_a_flap,
    through_a_partition,
    through_links,
    while_away,
)

TOPICS: Final = ("canaries", "lighthouses", "Grüße", "ferns", "a very long river", "日本")
TOGETHER: Final = 3  # answers at once: a link of 256 kbit/s carries them
N_TOKENS: Final = 100
N_TWINS: Final = 2
FLAP_S: Final = 5.0
AWAY_S: Final = 20.0
QUICKLY_AWAY_S: Final = 11.0  # longer than a silent donor is waited for
WENT_ON_S: Final = 12.0
SERVED_S: Final = 3.0
# Half of the donors are replaced every minute.
N_CHURNING: Final = 6
REPLACED_EVERY_S: Final = 20.0
QUICKLY_REPLACED_EVERY_S: Final = 2.0
N_CHURNING_TOKENS: Final = 50  # a second of text: five answers a second, all together
ANSWERED: Final = 0.995

Run = Callable[[Scale, Bench], Awaitable[Result]]


def _in_lab(run: Run, n_donors: int) -> Callable[[Scale], Awaitable[Result]]:
    """A drill in a network of the lab, where there can be one."""

    async def run_there(scale: Scale) -> Result:
        if reason := why_not():
            return skipped(reason)
        async with open_lab_network(
            scale.folder, n_donors, seed=scale.seed, flags=FLAGS
        ) as network:
            return await run(scale, Bench(network))

    return run_there


def _topics(number: int) -> list[str]:
    """What the answers of this round are about."""
    return [TOPICS[(number + place) % len(TOPICS)] for place in range(TOGETHER)]


async def _run_links(scale: Scale, bench: Bench) -> Result:
    all_told: list[Told] = []
    for number in range(scale.times(20, 1)):
        all_told += await through_links(bench, _topics(number), N_TOKENS)
    for number in range(scale.times(8, 1)):
        scale.say(f"flap {number}")
        donor = bench.network.donors[number % len(LINKS)]
        host = donor.host if number % 2 else REQUESTER
        await bench.until_asked(donor)
        all_told += await through_a_flap(bench, donor, host, FLAP_S, _topics(number))
    outcomes = [Outcome(told.what, _pause_s(told), told.problem) for told in all_told]
    return result_of(outcomes, good="whole and equal", time="pause", p95_s=WENT_ON_S)


def _pause_s(told: Told) -> float:
    """The longest that its app waited for text."""
    return told.question.stream.longest_pause_s(told.question.sent_at)


async def _run_partitions(scale: Scale, bench: Bench) -> Result:
    outcomes: list[Outcome] = []
    for number in range(scale.times(6, 1)):
        scale.say(f"partition {number}")
        victim = bench.network.donors[number % N_TWINS]
        await bench.until_asked(victim)
        is_whole_host = number % 4 < N_TWINS
        cut = await through_a_partition(bench, victim, _topics(number), number, is_whole_host)
        outcomes += [Outcome(t.what, t.went_on_s(cut.at), _broken(t)) for t in cut.all_told]
    return result_of(
        outcomes, good="continued or told why not", time="gap", p95_s=WENT_ON_S, worst_s=WENT_ON_S
    )


def _broken(told: Told) -> str:
    """What is wrong with an answer whose donor was cut off; without a twin it may fail, but not
    quietly."""
    if told.what.endswith(NO_TWIN) and not told.is_corrupt and not told.question.is_hanging:
        return ""
    return told.problem


async def _run_away(scale: Scale, bench: Bench) -> Result:
    outcomes: list[Outcome] = []
    for number in range(scale.times(5, 1)):
        scale.say(f"away {number}")
        seconds = QUICKLY_AWAY_S if scale.is_quick else AWAY_S
        away = await while_away(bench, seconds, _topics(number))
        problem = away.back.problem
        if away.is_anybody_shunned:
            problem = problem or f"a donor is shunned: {', '.join(away.rules)}"
        problem = problem or next((t.line for t in away.during if t.is_corrupt), "")
        outcomes.append(Outcome("back again", away.back.question.first_text_s, problem))
    return result_of(
        outcomes, good="served, nobody blamed", time="served", p95_s=SERVED_S, worst_s=SERVED_S
    )


async def _run_churn(scale: Scale, bench: Bench) -> Result:
    all_told, n_replaced = await churn(
        bench,
        TOPICS,
        N_CHURNING_TOKENS,
        seconds=scale.times(300, 10),
        every_s=QUICKLY_REPLACED_EVERY_S if scale.is_quick else REPLACED_EVERY_S,
        dice=scale.dice("churn"),
    )
    n_answered = sum(not told.problem for told in all_told)
    n_corrupt = sum(told.is_corrupt for told in all_told)
    share = n_answered / len(all_told)
    pause_s = percentile([_pause_s(told) for told in all_told], 0.95)
    return Result(
        ok=share >= ANSWERED and not n_corrupt,
        n=len(all_told),
        measured=f"{share:.1%} answered, {n_corrupt} corrupt; {n_replaced} donors replaced;"
        f" pause p95 {pause_s:.2f} s",
        figures={
            "answered": n_answered,
            "corrupt": n_corrupt,
            "replaced": n_replaced,
            "pause_p95_s": pause_s,
        },
        faults=tuple(told.line for told in all_told if told.problem)[:20],
    )


DRILLS: Final = (
    Drill(
        "links",
        f"{'; '.join(LINKS)}; 5 s flaps",
        "all whole, valid, byte-equal to undisturbed",
        _in_lab(_run_links, len(LINKS)),
    ),
    Drill(
        "partition",
        "cut a donor off while answers are queued, in prefill, in stream",
        "continued or failed with a reason <= 12 s; 0 hangs",
        _in_lab(_run_partitions, N_TWINS),
    ),
    Drill(
        "away",
        "cut the requester off for 20 s",
        "no donor's breaker opens; next request served <= 3 s after it is back",
        _in_lab(_run_away, 3),
    ),
    Drill(
        "churn-lab",
        "6 donors on hosts of their own, half of them replaced every minute",
        ">= 99.5 % answered; 0 corrupt",
        _in_lab(_run_churn, N_CHURNING),
    ),
)
