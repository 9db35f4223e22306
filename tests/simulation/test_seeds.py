"""Two hundred simulated networks: every answer is right, or has a reason, in time."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.simulation.__main__ import judge

N_SEEDS = 200
STEP = 20


@pytest.mark.no_cover  # half of their time, and what they run is covered by other tests
@pytest.mark.parametrize("first", range(0, N_SEEDS, STEP))
def test_every_answer_is_right_or_has_a_reason(first: int) -> None:
    verdicts = [judge(seed) for seed in range(first, first + STEP)]
    failed = [f"{v.replay}: {fault}" for v in verdicts for fault in v.faults]
    assert not failed, "\n".join(failed)
    outcomes = sum((verdict.outcomes for verdict in verdicts), start=Counter())
    assert outcomes["whole"] > outcomes.total() / 2, "the worlds are so bad that they show little"
