"""What many trials of one drill come to. Start at `Outcome`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.drills.table import Result, percentile

SHOWN_FAULTS: Final = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an app saw of one trial.

    what: was tried, to find it again. took_s: what the drill measures, None if there was nothing to
    measure. problem: empty if all is well. was_hit: whether the app's answer was in what broke;
    None where that is not the question.
    """

    what: str
    took_s: float | None
    problem: str = ""
    was_hit: bool | None = None


def result_of(
    outcomes: Sequence[Outcome], *, good: str, time: str, p95_s: float, worst_s: float | None = None
) -> Result:
    """The drill's result: all trials must be without a problem, and their times within limits.

    good: what became of those, as "answered". time: what was measured, as "gap". p95_s, worst_s:
    the limits.
    """
    times = [one.took_s for one in outcomes if not one.problem and one.took_s is not None]
    n_good = sum(not one.problem for one in outcomes)
    n_hit = sum(one.was_hit is True for one in outcomes)
    is_hit_told = any(one.was_hit is not None for one in outcomes)
    hit = f" ({n_hit} were hit)" if is_hit_told else ""
    p95, worst = percentile(times, 0.95), max(times, default=0.0)
    is_in_time = p95 <= p95_s and (worst_s is None or worst <= worst_s)
    problems = [f"{one.what}: {one.problem}" for one in outcomes if one.problem]
    return Result(
        ok=n_good == len(outcomes) and is_in_time,
        n=len(outcomes),
        measured=f"{n_good} {good}{hit}; {time} p95 {p95:.2f} s, worst {worst:.2f}",
        figures={"good": n_good, "hit": n_hit, f"{time}_p95_s": p95, f"{time}_worst_s": worst},
        faults=tuple(problems[:SHOWN_FAULTS]),
    )
