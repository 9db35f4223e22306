from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sealing.clocks import Machine
from tokenplace.sealing.clock import ElapsedClock

DAY_S = 86_400.0
SECONDS = st.floats(0, 10 * DAY_S)
STEPS = st.lists(
    st.tuples(st.sampled_from(["run", "sleep"]), SECONDS)
    | st.tuples(st.just("set_clock"), st.floats(-10 * DAY_S, 10 * DAY_S)),
    max_size=30,
)


def clock_of(machine: Machine) -> ElapsedClock:
    return ElapsedClock(lambda: machine.steady, lambda: machine.wall)


def test_sleep_counts_and_a_clock_set_back_does_not() -> None:
    machine = Machine()
    clock = clock_of(machine)
    start = clock()
    machine.run(10)
    assert clock() - start == pytest.approx(10)
    machine.sleep(3 * DAY_S)
    assert clock() - start == pytest.approx(10 + 3 * DAY_S)
    machine.set_clock(-365 * DAY_S)
    machine.run(10)
    assert clock() - start == pytest.approx(20 + 3 * DAY_S)
    machine.sleep(3600)
    assert clock() - start == pytest.approx(20 + 3 * DAY_S + 3600)


def test_small_corrections_do_not_add_up() -> None:
    machine = Machine()
    clock = clock_of(machine)
    start = clock()
    for _ in range(1000):
        machine.run(1)
        machine.set_clock(0.4)
        clock()
        machine.set_clock(-0.4)
        clock()
    assert clock() - start == pytest.approx(1000)


@given(STEPS)
def test_it_never_goes_back_and_never_misses_time(steps: list[tuple[str, float]]) -> None:
    machine = Machine()
    clock = clock_of(machine)
    start = last = clock()
    passed_s = 0.0
    for kind, seconds in steps:
        getattr(machine, kind)(seconds)
        passed_s += seconds if kind != "set_clock" else 0.0
        now = clock()
        assert now >= last
        if kind != "set_clock":
            assert now - last >= seconds - 1.001  # up to a second is taken for a correction
        last = now
    if all(kind == "run" for kind, _ in steps):
        assert last - start == pytest.approx(passed_s, abs=0.001)
