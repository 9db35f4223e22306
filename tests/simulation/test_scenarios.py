"""Short forms of the networks that drills measure. Each measures what it says: where the product is
made worse, the figure is.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulation.scenarios import (
    run_bad_donors,
    run_churn,
    run_liar,
    run_own_outage,
    run_saturated,
)
from tokenplace.router import breaker
from tokenplace.router.blame import Blame
from tokenplace.router.memory import Memory, Notes

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.no_cover  # it would take half of their time


def test_half_of_the_donors_are_replaced_every_minute() -> None:
    measured = run_churn(1, 1.0)
    assert not measured.faults
    assert measured.figures["answered"] >= 0.995
    assert measured.n_asked > 100


def test_one_that_errs_and_one_that_stalls_get_next_to_nothing() -> None:
    measured = run_bad_donors(1, 2.5)
    assert not measured.faults
    assert measured.figures["bad_share"] < 0.03
    assert measured.figures["ratio"] <= 1.3
    assert measured.figures["answered"] == 1.0


def test_a_liar_gets_less_than_its_share() -> None:
    measured = run_liar(1, 1.5)
    assert not measured.faults
    assert measured.figures["liars_share"] < 0.08


def test_four_donors_do_what_four_can() -> None:
    measured = run_saturated(1, 0.75)
    assert not measured.faults
    assert measured.figures["ratio"] >= 3.6, "3.8 over longer times: half a minute is short"


@pytest.mark.parametrize("seed", range(3))
def test_the_own_network_away_is_nobodys_fault(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FAULTS_IN_A_ROW", 1)
    measured = run_own_outage(seed)
    assert not measured.faults
    assert measured.figures["breakers_open"] == 0
    assert measured.figures["served_after_s"] <= 3


def test_the_same_by_the_command() -> None:
    command = [sys.executable, "-m", "benchmarks.simulation.scenarios", "outage", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True)
    assert json.loads(done.stdout)["figures"] == run_own_outage(1).figures


# ---------------------------------------------------------------- made worse


def test_breakers_open_where_a_broken_path_is_its_donors_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broke(blame: Blame, donor: str, silent_since: float, now: float) -> None:
        blame._pending[donor] = math.inf

    monkeypatch.setattr(breaker, "FAULTS_IN_A_ROW", 1)
    monkeypatch.setattr(Blame, "broke", broke)
    assert run_own_outage(1).figures["breakers_open"] > 0


def test_bad_donors_get_more_where_nobody_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "note_failed", lambda memory, asking, error, now: None)
    monkeypatch.setattr(Notes, "outraced", lambda notes, now: None)
    assert run_bad_donors(1, 1.5).figures["bad_share"] > 0.03
