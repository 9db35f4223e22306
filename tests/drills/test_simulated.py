"""What the figures of simulated networks come to in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.drills.simulated import DRILLS, Limit, Plan
from benchmarks.drills.table import Scale
from benchmarks.simulation.scenarios import SCENARIOS

PLAN = Plan(
    "churn", (Limit("answered", at_least=0.9), Limit("late_s", at_most=3.0)), (1, 1), (2, 2)
)


def run(answered: float, late_s: float, *faults: str) -> dict[str, Any]:
    figures = {"answered": answered, "late_s": late_s, "other": 7.0}
    return {"n_asked": 10, "figures": figures, "faults": list(faults)}


def test_of_many_seeds_the_worst_counts() -> None:
    result = PLAN.result([run(1.0, 2.0), run(0.95, 1.0)])
    assert result.ok
    assert (result.n, result.figures) == (20, {"answered": 0.95, "late_s": 2.0, "faults": 0})
    assert result.measured == "worst of 2: answered 0.95, late s 2; 0 corrupt or hanging"


@pytest.mark.parametrize(
    "bad", [run(0.89, 1.0), run(1.0, 3.1), run(1.0, 1.0, "ALICE request 3: is corrupt")]
)
def test_one_that_misses_its_line_is_enough(bad: dict[str, Any]) -> None:
    result = PLAN.result([run(1.0, 1.0), bad])
    assert result.ok is False
    assert list(result.faults) == bad["faults"]


def test_every_plan_is_of_a_scenario_and_its_limits_are_of_its_figures() -> None:
    owners = [getattr(drill.run, "__self__", None) for drill in DRILLS]
    plans = [owner for owner in owners if isinstance(owner, Plan)]
    assert len(plans) == len(DRILLS) - 1
    assert {plan.scenario for plan in plans} | {plan.quickly for plan in plans} <= {"", *SCENARIOS}


async def test_a_plan_is_run_in_processes_of_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan("outage", (Limit("breakers_open", at_most=0),), (2.5, 1.6), (2, 1))
    result = await plan.run(Scale(is_quick=True, seed=3, folder=tmp_path, say=said.append))
    assert result.ok
    assert result.n > 20
    assert said == ["outage, seed 3: 1.6 virtual minutes"]


async def test_a_simulation_that_breaks_down_says_which(tmp_path: Path) -> None:
    plan = Plan("nothing", (), (1, 1), (1, 1))
    with pytest.raises(ExceptionGroup) as raised:
        await plan.run(Scale(is_quick=True, seed=3, folder=tmp_path, say=print))
    assert raised.group_contains(RuntimeError, match="nothing --seed 3")
