"""A serving peer stays what it is under load (a twentieth of the soak), and one that grows is seen.

Start at `test_a_peer_is_after_the_load_what_it_was_before`.
"""

from __future__ import annotations

import dataclasses
import sys

import pytest

from benchmarks import soak
from benchmarks.soak import Course
from benchmarks.soak_peer import State

FIRST = State(
    tasks=8,
    descriptors=11,
    memory_mb=80.0,
    connections=0,
    streams=0,
    exchanges=0,
    key_id=1,
    public="",
    epoch="",
)


def course(last: State) -> Course:
    return Course("exchanges", done=[1, 10], states=[FIRST, last], took_s=1.0)


async def test_a_peer_is_after_the_load_what_it_was_before() -> None:
    courses = await soak.soak(scale=0.05)
    assert [course.name for course in courses] == [
        "connections",
        "streams at once",
        "exchanges",
        "all of these",
    ]
    assert [course.done[-1] for course in courses] == [50, 100, 100, 250]
    assert [course.faults() for course in courses] == [[]] * 4


@pytest.mark.parametrize(
    ("what", "grown"),
    [
        ("tasks", 8 + soak.TASKS_SLACK),
        ("descriptors", 11 + soak.DESCRIPTORS_SLACK),
        ("memory_mb", 80.0 + 80.0 * soak.MEMORY_SLACK),
        ("connections", 0),
        ("streams", 0),
        ("exchanges", 0),
    ],
)
def test_what_grows_beyond_its_slack_is_a_fault(what: str, grown: float) -> None:
    assert course(dataclasses.replace(FIRST, **{what: grown})).faults() == []  # type: ignore[arg-type]
    more = dataclasses.replace(FIRST, **{what: grown + 1})  # type: ignore[arg-type]
    (fault,) = course(more).faults()
    assert fault.startswith(f"exchanges: {what} +")


@pytest.mark.parametrize(("tasks", "status"), [(8, None), (80, 1)])
def test_the_exit_status_says_whether_the_peer_grew(
    tasks: int,
    status: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def grown(scale: float) -> list[Course]:
        return [course(dataclasses.replace(FIRST, tasks=tasks))]

    monkeypatch.setattr(soak, "soak", grown)
    monkeypatch.setattr(sys, "argv", ["soak"])
    if status is None:
        soak.main()
        assert "yes" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as exit_info:
        soak.main()
    assert exit_info.value.code == status
    out = capsys.readouterr().out
    assert "NO" in out
    assert "exchanges: tasks +72, more than 2" in out
