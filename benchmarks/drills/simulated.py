"""Drills in simulated networks: more peers than a machine has room for, minutes in seconds. Start
at `DRILLS`; the networks are `benchmarks.simulation`'s.

Each simulation is a process of its own, for it replaces trio's scheduler and clock, and these
drills run under the real ones. A line is met if every seed meets it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.drills.table import Drill, Result, Scale

ROOT: Final = Path(__file__).parents[2]
SHOWN_FAULTS: Final = 20


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one figure: at least or at most so much."""

    figure: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def worst(self, values: Sequence[float]) -> float:
        """Of many runs."""
        return min(values) if math.isfinite(self.at_least) else max(values)

    def is_met(self, value: float) -> bool:
        """Is it within?"""
        return self.at_least <= value <= self.at_most


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario, how long it lasts and with how many seeds, in full and in quick form, and what
    must come of it. minutes: virtual ones. quickly: the scenario's smaller form, if it has one.
    """

    scenario: str
    limits: tuple[Limit, ...]
    minutes: tuple[float, float]
    n_seeds: tuple[int, int]
    quickly: str = ""

    async def run(self, scale: Scale) -> Result:
        """All seeds, as many at once as there are processors."""
        minutes = self.minutes[scale.is_quick]
        scenario = self.quickly if self.quickly and scale.is_quick else self.scenario
        seeds = [scale.seed + number for number in range(scale.times(*self.n_seeds))]
        measured: dict[int, Mapping[str, Any]] = {}
        turns = trio.CapacityLimiter(os.cpu_count() or 1)

        async def measure(seed: int) -> None:
            async with turns:
                scale.say(f"{scenario}, seed {seed}: {minutes:g} virtual minutes")
                measured[seed] = await _json_of(
                    "benchmarks.simulation.scenarios",
                    *(scenario, "--seed", str(seed), "--minutes", str(minutes)),
                )

        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(measure, seed)
        return self.result([measured[seed] for seed in seeds])

    def result(self, measured: Sequence[Mapping[str, Any]]) -> Result:
        """What the scenario's figures of all seeds come to: of each the worst."""
        worst = {
            limit.figure: limit.worst([each["figures"][limit.figure] for each in measured])
            for limit in self.limits
        }
        faults = [fault for each in measured for fault in each["faults"]]
        figures = ", ".join(f"{name.replace('_', ' ')} {worst[name]:.3g}" for name in worst)
        seeds = f"worst of {len(measured)}: " if len(measured) > 1 else ""
        return Result(
            ok=not faults and all(limit.is_met(worst[limit.figure]) for limit in self.limits),
            n=sum(each["n_asked"] for each in measured),
            measured=f"{seeds}{figures}; {len(faults)} corrupt or hanging",
            figures=worst | {"faults": len(faults)},
            faults=tuple(faults[:SHOWN_FAULTS]),
        )


async def _json_of(module: str, *arguments: str) -> Any:
    """What a program prints. Ends it when cancelled. Raises `RuntimeError` if it breaks down."""
    done = await trio.run_process(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_stdout=True, check=False
    )
    if not done.stdout:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout)


async def _run_seeds(scale: Scale) -> Result:
    n_seeds = scale.times(5000, 12)
    told = await _json_of(
        "benchmarks.simulation", "--seeds", str(n_seeds), "--from", str(scale.seed), "--json"
    )
    outcomes, faults = told["outcomes"], told["faults"]
    n = sum(outcomes.values())
    return Result(
        ok=not faults,
        n=n,
        measured=f"{n_seeds} seeds: {outcomes.get('whole', 0)} whole, all others with a reason;"
        f" {len(faults)} seeds failed; {told['virtual_s'] / 3600:.1f} virtual hours",
        figures={"seeds": n_seeds, "failed": len(faults), **outcomes},
        faults=tuple(faults[:SHOWN_FAULTS]),
    )


CHURN: Final = Plan("churn", (Limit("answered", at_least=0.995),), (10.0, 1.0), (5, 1))
BAD_DONORS: Final = Plan(
    "bad-donors",
    (Limit("bad_share", at_most=0.03), Limit("ratio", at_most=1.3)),
    (6.0, 2.0),
    (5, 1),
)
LIAR: Final = Plan("liar", (Limit("liars_share", at_most=0.08),), (6.0, 2.0), (5, 1))
SATURATED: Final = Plan("saturated", (Limit("ratio", at_least=3.8),), (3.0, 1.0), (5, 1))
HERD: Final = Plan(
    "herd",
    (Limit("longest", at_most=3.0), Limit("longest_of_10_s", at_most=3.0)),
    (3.0, 1.25),
    (1, 1),
    quickly="small-herd",
)
OUTAGE: Final = Plan(
    "outage",
    (Limit("breakers_open", at_most=0), Limit("served_after_s", at_most=3.0)),
    (2.5, 2.5),
    (20, 2),
)

DRILLS: Final = (
    Drill(
        "simulation",
        "networks drawn by seeds, in which donors and networks do what they should not",
        "0 corrupt, 0 silently short, 0 hangs",
        _run_seeds,
    ),
    Drill(
        "churn",
        "20 donors, half of them replaced every minute for 10 minutes",
        ">= 99.5 % answered; 0 corrupt",
        CHURN.run,
    ),
    Drill(
        "bad-donors",
        "one donor of five always errs, one always stalls",
        "< 3 % of requests after the first minute; first token p95 <= 1.3 x of the healthy network",
        BAD_DONORS.run,
    ),
    Drill(
        "liar",
        "one donor of ten advertises 100 x its speed",
        "< 8 % of requests after the first minute",
        LIAR.run,
    ),
    Drill("saturated", "4 donors against 1, saturated", "throughput >= 3.8 x", SATURATED.run),
    Drill(
        "herd",
        "200 requesters of 20 donors, of whom they know what the load was 20 s ago",
        "no donor over 3 x the mean queue after warm-up",
        HERD.run,
    ),
    Drill(
        "outage",
        "the requester's network is away for 20 s",
        "no donor's breaker opens; next request served <= 3 s after it is back",
        OUTAGE.run,
    ),
)
