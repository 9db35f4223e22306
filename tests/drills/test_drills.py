"""The drills themselves, a few times each, with real peers in processes of their own.

They run beside each other, because most of their time is waiting. Only what became of the answers
is looked at: times are for `python -m benchmarks.drills`, on a machine that has nothing else to do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from benchmarks.drills import cut, early, frozen, gone
from benchmarks.drills.table import Result, Scale

pytestmark = pytest.mark.slow
Run = Callable[[Scale], Awaitable[Result]]
# Each with how often.
SHORT: dict[str, tuple[Run, int]] = {
    "early": (early.run, 1),
    "with a twin": (cut.run_with_twin, 2),
    "alone": (cut.run_alone, 1),
    "frozen": (frozen.run, 1),
    "gone": (gone.run, 1),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tp-"))
    yield folder
    shutil.rmtree(folder)


async def test_short_forms_of_the_drills_find_nothing(folder: Path) -> None:
    results: dict[str, Result] = {}

    async def run(name: str, number: int) -> None:
        drill, at_most = SHORT[name]
        place = folder / str(number)
        place.mkdir()
        results[name] = await drill(Scale(False, 0, place, print, at_most))

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(SHORT):
            nursery.start_soon(run, name, number)
    for name, result in results.items():
        assert result.faults == (), name
        assert result.n >= SHORT[name][1], name
    assert results["with a twin"].figures["hit"] == 2, "two streams went on elsewhere"
