"""The same seed is the same world, in this process and in any other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.simulation.__main__ import judge
from benchmarks.simulation.world import run_world

ROOT = Path(__file__).parents[2]
SEEDS = (3, 11, 28)  # of those that had other traces with other hashes of text


def test_the_same_seed_leaves_the_same_trace_and_another_another() -> None:
    assert judge(SEEDS[0]) == judge(SEEDS[0])
    assert judge(SEEDS[0]).digest != judge(SEEDS[1]).digest


def test_also_in_another_process() -> None:
    """Where text has other hashes, so sets have another order."""
    here = [judge(seed).digest for seed in SEEDS]
    program = "import sys; from benchmarks.simulation.__main__ import judge; " + (
        "[print(judge(int(seed)).digest) for seed in sys.argv[1:]]"
    )
    for number in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, SEEDS)],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": number},
            text=True,
        )
        assert done.stdout.split() == here


def test_a_trace_says_what_happens_and_nothing_of_what_is_asked() -> None:
    lines: list[str] = []
    outcome = run_world(SEEDS[0], say=lines.append)
    assert len(lines) > 50
    assert any(" asks " in line for line in lines)
    texts = [asked.text for asked in outcome.asked if len(asked.text) > 20]
    assert texts
    assert not [text for text in texts if any(text in line for line in lines)]


def test_a_run_leaves_no_seed_behind() -> None:
    state = random.getstate()
    judge(SEEDS[0])
    assert random.getstate() == state
