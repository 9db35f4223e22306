"""The pace of steps, and the number of threads, on machines that are functions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.engine.pace import Pace, StepTime, ThreadTuner

NOISE = 0.3


@dataclass(frozen=True)
class Machine:
    """Seconds of a step, without noise."""

    fixed_s: float
    per_stream_s: float
    per_prompt_token_s: float

    def seconds(self, n_prompt: int, n_decode: int) -> float:
        return self.fixed_s + n_decode * self.per_stream_s + n_prompt * self.per_prompt_token_s


REFERENCE = Machine(0.0033, 0.0041, 1 / 300)  # SmolLM2 on two cores
LARGE_ON_CPU = Machine(0.2, 0.01, 0.005)
GPU = Machine(0.008, 0.0002, 1 / 5000)
VERY_SLOW = Machine(0.0, 1.0, 0.2)


def work(pace: Pace, machine: Machine, n_decode: int, n_steps: int, seed: int = 1) -> None:
    """Steps as a worker makes them: each with as much of a prompt as the pace allows, and then
    some without.
    """
    dice = random.Random(seed)
    for _ in range(n_steps):
        chunk = pace.chunk(n_decode)
        pace.note(chunk, n_decode, machine.seconds(chunk, n_decode) * noise(dice))
        if n_decode:
            pace.note(0, n_decode, machine.seconds(0, n_decode) * noise(dice))


def noise(dice: random.Random) -> float:
    return dice.uniform(1 - NOISE, 1 + NOISE)


# ---------------------------------------------------------------- Pace


def test_it_is_careful_and_silent_before_any_measurement() -> None:
    pace = Pace()
    assert pace.chunk(0) == pace.chunk(4) == defaults.FIRST_PREFILL_CHUNK
    assert pace.prefill_tps == pace.decode_tps == 0
    assert pace.seconds_for_prefill(100) == pace.seconds_for_decode(100) == 0


@pytest.mark.parametrize("n_decode", [0, 1, 4, 8])
def test_a_step_takes_about_as_long_as_wanted(n_decode: int) -> None:
    pace = Pace()
    for seed in range(20):
        work(pace, REFERENCE, n_decode, 20, seed)
        seconds = REFERENCE.seconds(pace.chunk(n_decode), n_decode)
        assert defaults.PREFILL_STEP_S * 0.7 < seconds < defaults.PREFILL_STEP_S * 1.4


def test_where_steps_are_short_chunks_are_as_large_as_they_may() -> None:
    pace = Pace()
    work(pace, GPU, 4, 5)
    assert pace.chunk(4) == pace.chunk(0) == defaults.MAX_PREFILL_CHUNK


def test_on_a_very_slow_machine_a_prompt_still_moves() -> None:
    pace = Pace()
    work(pace, VERY_SLOW, 0, 5)
    assert pace.chunk(0) == defaults.MIN_PREFILL_CHUNK


def test_where_decoding_is_slow_a_prompt_at_most_doubles_a_step() -> None:
    pace = Pace()
    work(pace, LARGE_ON_CPU, 3, 40)
    without = LARGE_ON_CPU.seconds(0, 3)
    assert 1.4 * without < LARGE_ON_CPU.seconds(pace.chunk(3), 3) < 2.4 * without


def test_one_step_that_slept_hardly_matters() -> None:
    pace = Pace()
    work(pace, REFERENCE, 0, 20)
    before = pace.chunk(0)
    pace.note(before, 0, 3600.0)
    assert before * 0.7 < pace.chunk(0) < before


def test_a_clock_that_stood_still_says_nothing() -> None:
    pace = Pace()
    pace.note(64, 0, 0.0)
    pace.note(0, 1, 0.0)
    assert pace.prefill_tps == pace.decode_tps == 0


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_it_follows_a_machine_that_changes_within_seconds(factor: float) -> None:
    pace = Pace()
    work(pace, REFERENCE, 2, 50)
    changed = Machine(*(value * factor for value in vars(REFERENCE).values()))
    work(pace, changed, 2, 15)
    chunk = pace.chunk(2)
    assert 0.6 < changed.seconds(chunk, 2) / defaults.PREFILL_STEP_S < 1.5


def test_it_recovers_from_a_first_step_that_read_the_model_from_the_disk() -> None:
    pace = Pace()
    pace.note(64, 0, 8.0)
    assert pace.chunk(0) == defaults.MIN_PREFILL_CHUNK
    seconds = 0.0
    while pace.chunk(0) < 64:
        seconds += REFERENCE.seconds(pace.chunk(0), 0)
        pace.note(pace.chunk(0), 0, REFERENCE.seconds(pace.chunk(0), 0))
        assert seconds < 5


def test_speeds_are_those_of_a_request_that_is_alone() -> None:
    pace = Pace()
    dice = random.Random(1)
    for step in range(300):
        n_decode = 1 + step % 8
        pace.note(0, n_decode, REFERENCE.seconds(0, n_decode) * noise(dice))
        pace.note(64, 0, REFERENCE.seconds(64, 0) * noise(dice))
    assert pace.decode_tps == pytest.approx(1 / REFERENCE.seconds(0, 1), rel=0.35)
    assert pace.stream_tps(7) == pytest.approx(1 / REFERENCE.seconds(0, 8), rel=0.2)
    assert pace.prefill_tps == pytest.approx(300, rel=0.2)
    assert pace.seconds_for_prefill(600) == pytest.approx(2, rel=0.2)
    assert pace.seconds_for_decode(100) == pytest.approx(100 / pace.decode_tps)


def test_eight_streams_alone_do_not_make_it_think_one_is_as_slow() -> None:
    pace = Pace()
    for _ in range(50):
        pace.note(0, 8, 0.036)
    assert pace.stream_tps(7) == pytest.approx(1 / 0.036)
    assert pace.stream_tps(7) < pace.decode_tps < 8 * pace.stream_tps(7)


def test_steps_with_prompts_correct_a_decode_time_that_is_too_long() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note(0, 4, 2.0)
    for _ in range(40):
        n_left = 600
        while n_left:
            chunk = min(n_left, pace.chunk(4))
            pace.note(chunk, 4, REFERENCE.seconds(chunk, 4))
            n_left -= chunk
    assert REFERENCE.seconds(pace.chunk(4), 4) < 2 * defaults.PREFILL_STEP_S


@settings(max_examples=50)
@example([(1, 0, 5e-324), (0, 1, 1e6)])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 512), st.integers(0, 256), st.floats(0, 1e6, allow_subnormal=False)
        ).filter(lambda step: step[0] + step[1] > 0),
        max_size=50,
    )
)
def test_whatever_was_measured_its_answers_are_in_bounds(
    steps: list[tuple[int, int, float]],
) -> None:
    pace = Pace()
    for step in steps:
        pace.note(*step)
        for n_decode in (0, 1, 7, 256):
            chunk = pace.chunk(n_decode)
            assert defaults.MIN_PREFILL_CHUNK <= chunk <= defaults.MAX_PREFILL_CHUNK
            assert pace.stream_tps(n_decode) >= 0
            assert 0 <= pace.seconds_for_prefill(1000, n_decode) < float("inf")
            assert 0 <= pace.seconds_for_decode(1000, n_decode) < float("inf")


@given(st.lists(st.integers(1, 16), min_size=2, max_size=30).filter(lambda n: len(set(n)) > 1))
def test_without_noise_the_line_is_nearly_found(counts: list[int]) -> None:
    time = StepTime(0.99)
    for _ in range(40):
        for n_decode in counts:
            time.note(0, n_decode, REFERENCE.seconds(0, n_decode))
    for n_decode in range(min(counts), max(counts) + 1):
        assert time.without_prompt(n_decode) == pytest.approx(
            REFERENCE.seconds(0, n_decode), rel=0.35
        )


def test_a_machine_that_is_free_again_is_noticed_while_prompts_come_one_after_the_other() -> None:
    pace = Pace()
    busy = Machine(*(value * 40 for value in vars(REFERENCE).values()))
    work(pace, busy, 4, 20)
    for _ in range(12):
        chunk = pace.chunk(4)
        pace.note(chunk, 4, REFERENCE.seconds(chunk, 4))
    assert REFERENCE.seconds(pace.chunk(4), 4) < 2 * defaults.PREFILL_STEP_S


# ---------------------------------------------------------------- ThreadTuner


def barrier(n_prompt: int, n_decode: int, n_threads: int, n_cores: int, n_busy: int) -> float:
    """Seconds of a step where all threads wait for each other, as measured on two cores: one that
    must share its core makes all three times slower.
    """
    seconds = (0.006 + 0.008 * n_decode + 0.006 * n_prompt) / n_threads
    return seconds if n_threads <= n_cores - n_busy else 3 * seconds


@dataclass(frozen=True)
class Step:
    """What a step took, and what it would have with the best number of threads."""

    n_threads: int
    seconds: float
    best_s: float


class Run:
    """A worker on `n_cores`, with other programs that come and go."""

    def __init__(self, n_cores: int, seed: int) -> None:
        self.tuner = ThreadTuner(n_cores)
        self.n_cores = n_cores
        self.n_busy = 0
        self._dice = random.Random(seed)

    def steps(self, n: int) -> Iterator[Step]:
        """Make steps."""
        for _ in range(n):
            n_prompt = 32 if self._dice.random() < 0.1 else 0
            n_decode = self._dice.randint(1, 4)
            luck = noise(self._dice)
            n_threads = self.tuner.n_threads
            assert 1 <= n_threads <= self.n_cores
            seconds = [
                luck * barrier(n_prompt, n_decode, count, self.n_cores, self.n_busy)
                for count in range(1, self.n_cores + 1)
            ]
            self.tuner.note(n_prompt, n_decode, seconds[n_threads - 1])
            yield Step(n_threads, seconds[n_threads - 1], min(seconds))

    def steps_until(self, n_threads: int, limit: int) -> int:
        """Steps until it uses so many for a hundred in a row."""
        in_a_row = 0
        for count, step in enumerate(self.steps(limit)):
            in_a_row = in_a_row + 1 if step.n_threads == n_threads else 0
            if in_a_row == 100:
                return count
        raise AssertionError(f"not at {n_threads} threads after {limit} steps")


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n_cores", "n_busy"), [(2, 1), (4, 1), (8, 1), (8, 2), (8, 4)])
def test_it_gives_way_when_cores_are_taken_and_returns_when_they_are_free(
    n_cores: int, n_busy: int, seed: int
) -> None:
    run = Run(n_cores, seed)
    list(run.steps(3000))
    run.n_busy = n_busy
    run.steps_until(n_cores - n_busy, limit=6000)
    run.n_busy = 0
    run.steps_until(n_cores, limit=12000)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_core_of_two_is_given_up_at_once(seed: int) -> None:
    run = Run(2, seed)
    list(run.steps(3000))
    run.n_busy = 1
    assert run.steps_until(1, limit=1000) < 500


def test_it_finds_out_on_a_machine_that_was_busy_from_the_start() -> None:
    run = Run(2, seed=1)
    run.n_busy = 1
    run.steps_until(1, limit=4000)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_cores", [2, 4, 8])
@pytest.mark.parametrize("n_busy", [0, 1])
def test_a_quiet_machine_does_not_make_it_waver_and_trying_costs_little(
    n_cores: int, n_busy: int, seed: int
) -> None:
    run = Run(n_cores, seed)
    run.n_busy = n_busy
    list(run.steps(6000))
    steps = list(run.steps(8000))
    total_s = sum(step.seconds for step in steps)
    assert total_s - sum(step.best_s for step in steps) < 0.02 * total_s


def test_one_thread_is_never_changed() -> None:
    tuner = ThreadTuner(1)
    for step in range(5000):
        tuner.note(0, 1, 0.01 if step < 1000 else 0.05)
        assert tuner.n_threads == 1


def test_it_does_the_same_again() -> None:
    runs = [[step.n_threads for step in Run(4, seed=3).steps(5000)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1


def test_steps_of_a_shape_never_seen_before_do_not_judge_a_trial() -> None:
    tuner = ThreadTuner(2)
    while tuner.n_threads == 2:
        tuner.note(0, 1, 0.01)
    for _ in range(100):
        tuner.note(64, 1, 10.0)
    assert tuner.n_threads == 1
    for _ in range(10):
        tuner.note(0, 1, 0.02)
    assert tuner.n_threads == 2
