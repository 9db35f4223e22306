"""What those who wait are told: the reckoning alone, and against a runner whose steps take time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engine.parts import VOCABULARY, ArithmeticModel, submit
from tokenplace import defaults
from tokenplace.engine.forecast import Wait, Work, forecast
from tokenplace.engine.lengths import Lengths
from tokenplace.engine.messages import NewTokens, Progress, Queued
from tokenplace.engine.pace import Pace
from tokenplace.engine.runner import Runner
from tokenplace.engine.scheduler import Chunk
from tokenplace.generation import Phase

STEP_S: Final = 0.02
STREAM_S: Final = 0.005
PROMPT_TOKEN_S: Final = 0.004


def step_s(n_prompt: int, n_decode: int) -> float:
    """Of a machine whose speed is known to the last digit."""
    return STEP_S + n_decode * STREAM_S + n_prompt * PROMPT_TOKEN_S


def known_pace() -> Pace:
    pace = Pace()
    for n in (1, 2, 4, 8):
        pace.note(0, n, step_s(0, n))
    pace.note(64, 0, step_s(64, 0))
    return pace


WORKS = st.lists(
    st.builds(Work, st.integers(1, 500), st.floats(0, 500, allow_nan=False)), max_size=12
)
SEATS = st.integers(1, 6)


@given(WORKS, WORKS, SEATS)
def test_waits_are_in_the_order_of_turns(
    running: list[Work], waiting: list[Work], n_seats: int
) -> None:
    running = running[:n_seats]
    waits = forecast(running, waiting, n_seats, known_pace())
    assert len(waits) == len(running) + len(waiting)
    assert all(0 <= wait.begins_s <= wait.first_token_s for wait in waits)
    assert all(wait.begins_s == 0 for wait in waits[:n_seats]), "whoever has a seat begins"
    for before, behind in pairwise(waits):
        assert before.begins_s <= behind.begins_s
        assert before.first_token_s <= behind.first_token_s


@given(WORKS, WORKS.filter(bool), SEATS)
def test_one_more_ahead_makes_nobody_sooner(
    running: list[Work], waiting: list[Work], n_seats: int
) -> None:
    running = running[:n_seats]
    last = forecast(running, waiting[1:], n_seats, known_pace())
    behind = forecast(running, waiting, n_seats, known_pace())
    if len(waiting) > 1:
        # Steps with one stream fewer are shorter, and with them everything is.
        assert last[-1].begins_s <= behind[-1].begins_s + 1e-9


def test_nothing_is_promised_before_the_pace_is_known() -> None:
    waits = forecast([Work(0, 100)], [Work(50, 100)], 1, Pace())
    assert waits == [Wait(0.0, 0.0)] * 2


# ---------------------------------------------------------------- how long answers get


LENGTHS = st.lists(st.tuples(st.integers(1, 1000), st.booleans()), max_size=60)


@given(LENGTHS, st.integers(0, 2000), st.integers(0, 2000))
def test_no_answer_is_expected_to_get_longer_than_it_may(
    seen: list[tuple[int, bool]], n_new: int, n_more: int
) -> None:
    lengths = Lengths()
    for n_tokens, is_cut in seen:
        lengths.note(n_tokens, is_cut=is_cut)
    assert 0 <= lengths.left(n_new, n_new + n_more) <= n_more


def test_only_answers_that_got_longer_say_how_long_one_goes_on() -> None:
    lengths = Lengths()
    for _ in range(defaults.LENGTHS_REMEMBERED // 2):
        lengths.note(10, is_cut=False)
        lengths.note(100, is_cut=False)
    assert lengths.left(0, 4096) == 55
    assert lengths.left(10, 4096) == 90
    assert lengths.left(90, 4096) == 10
    assert lengths.left(100, 4096) == 100  # longer than all
    assert lengths.left(100, 120) == 20


def test_one_that_was_cut_would_have_gone_on() -> None:
    lengths = Lengths()
    for _ in range(defaults.LENGTHS_REMEMBERED):
        lengths.note(16, is_cut=True)
    assert lengths.left(0, 16) == 16
    assert lengths.left(0, 4096) == 32


def test_what_is_asked_now_outweighs_what_was() -> None:
    lengths = Lengths()
    for n_tokens in [500] * 1000 + [20] * defaults.LENGTHS_REMEMBERED:
        lengths.note(n_tokens, is_cut=False)
    assert lengths.left(0, 4096) == 20


# ---------------------------------------------------------------- a runner with a clock


class PacedModel(ArithmeticModel):
    """Steps take as long as `step_s` says."""

    now = 0.0

    def decode(
        self, chunks: Sequence[Chunk], is_unwanted: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        n_decode = sum(chunk.n == 1 for chunk in chunks)
        self.now += step_s(sum(chunk.n for chunk in chunks) - n_decode, n_decode)
        return super().decode(chunks, is_unwanted)


ASKED = st.lists(
    st.tuples(
        st.integers(2, 30),  # letters of the prompt
        st.integers(8, 30),  # tokens of the answer
        st.sampled_from(["alice", "bob", "carol"]),
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=40, deadline=None)
@given(ASKED, st.integers(1, 4))
def test_what_is_expected_comes_true_within_a_factor_of_two(
    asked: list[tuple[int, int, str]], n_slots: int
) -> None:
    model = PacedModel(n_slots=n_slots)
    runner = Runner(model, VOCABULARY, lambda: model.now, n_threads=1)
    runner.submit(submit(99, "warm" * 8, max_tokens=20, ignore_eog=True))
    while not runner.is_idle:
        runner.step()
    due_at: dict[int, float] = {}
    came_at: dict[int, float] = {}
    told: dict[int, float] = {}
    for request, (n_letters, max_tokens, bucket) in enumerate(asked):
        prompt = chr(66 + request) * n_letters
        scope = bytes([request]) * 16
        (queued,) = runner.submit(
            submit(
                request,
                prompt,
                bucket=bucket,
                scope=scope,
                max_tokens=max_tokens,
                ignore_eog=True,
            )
        )
        assert isinstance(queued, Queued)
    asked_at = model.now
    while not runner.is_idle:
        for event in runner.step():
            if isinstance(event, Progress) and event.phase == Phase.QUEUED:
                due_at[event.request] = model.now + event.eta_ms / 1000
                told.setdefault(event.request, event.eta_ms / 1000)
            elif isinstance(event, NewTokens):
                came_at.setdefault(event.request, model.now)
    for request, eta_s in told.items():
        waited_s = came_at[request] - asked_at
        assert eta_s / 2 - 0.2 <= waited_s <= 2 * eta_s + 0.2
        assert due_at[request] == pytest.approx(came_at[request], rel=0.5, abs=1.5)
