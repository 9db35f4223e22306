"""What a drill is, and which there are. Start at `Drill`; `all_drills` is the registry.

A drill breaks something in a running network, or in a simulated one, as often as its `Scale` says,
and compares what the app saw with its pass line.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Final

MODULES: Final = (
    "benchmarks.drills.early",
    "benchmarks.drills.cut",
    "benchmarks.drills.frozen",
    "benchmarks.drills.gone",
    "benchmarks.drills.restarted",
    "benchmarks.drills.real_model",
    "benchmarks.drills.network",
    "benchmarks.drills.simulated",
)
"""Each has its drills in `DRILLS`, a sequence; what is heavy to import they import when run."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done, and where.

    is_quick: fewer times, so that all drills together take 3 minutes. seed: of every die that is
    cast here. folder: an empty one for the drill alone, with a path so short that a Unix socket's
    may lie two folders deeper. say: what a person who waits may read meanwhile. at_most: nothing is
    done more often than that; None sets no limit.
    """

    is_quick: bool
    seed: int
    folder: Path
    say: Callable[[str], None]
    at_most: int | None = None

    def times(self, full: int, quick: int) -> int:
        """How often something is done."""
        n = quick if self.is_quick else full
        return n if self.at_most is None else min(n, self.at_most)

    def dice(self, name: str) -> Random:
        """Dice of one drill, the same for the same seed whatever other drills there are."""
        return Random(f"{self.seed} {name}")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a drill.

    ok: whether the pass line was met; None when it was not run. n: how often it was tried.
    measured: in words and figures, to be read beside the pass line. figures: the same for programs.
    faults: what went wrong, a line each, enough to look for the cause. skipped: why it was not run.
    """

    ok: bool | None
    n: int
    measured: str
    figures: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Drill:
    """One line of the table. name: of `--only`. what: is done. pass_line: what must come of it."""

    name: str
    what: str
    pass_line: str
    run: Callable[[Scale], Awaitable[Result]]


def skipped(reason: str) -> Result:
    """The result of a drill that cannot be run here."""
    return Result(ok=None, n=0, measured="not run", skipped=reason)


def all_drills() -> list[Drill]:
    """Every drill, in the order in which they run."""
    return [drill for module in MODULES for drill in import_module(module).DRILLS]


def percentile(values: list[float], share: float) -> float:
    """The value below which so great a share of them lies (nearest rank); 0 without any."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0
