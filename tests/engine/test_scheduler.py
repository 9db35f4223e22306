"""The scheduler over a model of arithmetic: every answer is the one it would be alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.engine.parts import (
    ALICE,
    BOB,
    EOG,
    VOCABULARY,
    ArithmeticModel,
    Ticks,
    alone,
    enter,
    submit,
)
from tokenplace import defaults
from tokenplace.engine.messages import (
    Done,
    FromWorker,
    NewTokens,
    Progress,
    Refused,
)
from tokenplace.engine.scheduler import Scheduler, Speed
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase


@pytest.fixture
def model() -> ArithmeticModel:
    return ArithmeticModel()


@pytest.fixture
def scheduler(model: ArithmeticModel) -> Scheduler:
    return Scheduler(model, VOCABULARY, Ticks())


def run(scheduler: Scheduler) -> list[FromWorker]:
    events = []
    while not scheduler.is_idle:
        events += scheduler.step()
    return events


def tokens_of(events: list[FromWorker], request: int) -> list[int]:
    return [
        token_id
        for event in events
        if isinstance(event, NewTokens) and event.request == request
        for token_id in event.ids
    ]


def done_of(events: list[FromWorker], request: int) -> Done:
    (done,) = [e for e in events if isinstance(e, Done) and e.request == request]
    return done


# ---------------------------------------------------------------- one by one


def test_an_answer_ends_at_its_length(scheduler: Scheduler) -> None:
    asked = submit(max_tokens=5, ignore_eog=True)
    enter(scheduler, asked)
    events = run(scheduler)
    done = done_of(events, 0)
    assert tokens_of(events, 0) == alone(asked)[0]
    assert (done.eog_id, done.stop_string, done.n_completion) == (None, None, 5)


def test_an_answer_ends_where_its_stop_string_is_complete(scheduler: Scheduler) -> None:
    ids, _ = alone(submit(max_tokens=12, ignore_eog=True))
    text = b"".join(map(VOCABULARY.piece, ids))
    stop = text[4:7]
    enter(scheduler, submit(max_tokens=12, ignore_eog=True, stop=(b"never", stop)))
    events = run(scheduler)
    assert done_of(events, 0).stop_string == stop
    assert tokens_of(events, 0) == ids[: text.index(stop) + 3]


def test_an_end_of_generation_id_is_not_among_the_tokens(scheduler: Scheduler) -> None:
    asked = next(
        asked
        for n in itertools.count()
        if (asked := submit(prompt=f"try {n}", max_tokens=40))
        and alone(asked)[1] == EOG
        and alone(asked)[0]
    )
    enter(scheduler, asked)
    events = run(scheduler)
    assert done_of(events, 0).eog_id == EOG
    assert EOG not in tokens_of(events, 0)


def test_long_prompts_come_in_chunks_with_progress(model: ArithmeticModel) -> None:
    model.n_ctx = 1024
    scheduler = Scheduler(model, VOCABULARY, Ticks())
    n_letters = 3 * defaults.MIN_PREFILL_CHUNK
    enter(scheduler, submit(prompt="x" * n_letters, max_tokens=1), n_ctx=1024)
    scheduler.step()
    shares = []
    while scheduler.is_idle is False:
        before = model.n_decoded
        events = scheduler.step()
        assert model.n_decoded - before <= defaults.MAX_PREFILL_CHUNK
        shares += [event.progress for event in events if isinstance(event, Progress)]
    assert shares == sorted(shares)
    assert model.n_decoded == n_letters + 1


def test_chunks_grow_with_the_speed_and_stay_bounded() -> None:
    model = ArithmeticModel(n_ctx=5000)
    ticks = Ticks()
    scheduler = Scheduler(model, VOCABULARY, ticks)
    enter(scheduler, submit(prompt="x" * 4000, max_tokens=1), n_ctx=5000)
    scheduler.step()
    sizes = []
    while not scheduler.is_idle:
        before = model.n_decoded
        scheduler.step()
        sizes.append(model.n_decoded - before)
    assert sizes[0] == defaults.MIN_PREFILL_CHUNK
    assert max(sizes) == defaults.MAX_PREFILL_CHUNK


def test_a_prefix_is_reused_within_a_scope(scheduler: Scheduler, model: ArithmeticModel) -> None:
    first = submit(prompt="the same beginning", max_tokens=3, ignore_eog=True)
    enter(scheduler, first)
    run(scheduler)
    before = model.n_decoded
    asked = submit(1, "the same beginning, another end", max_tokens=1)
    assert enter(scheduler, asked).n_cached == 19
    done = done_of(run(scheduler), 1)
    assert done.n_cached == 19
    assert model.n_decoded - before == done.n_prompt - done.n_cached


def test_the_next_turn_reuses_the_answer_but_for_its_last_token(scheduler: Scheduler) -> None:
    """Nobody computed the keys of the last token: nothing had to follow it."""
    first = submit(prompt="hello", max_tokens=6, ignore_eog=True)
    enter(scheduler, first)
    answer = b"".join(map(VOCABULARY.piece, tokens_of(run(scheduler), 0))).decode("latin-1")
    follow_up = submit(1, f"hello{answer} and more", max_tokens=4)
    enter(scheduler, follow_up)
    events = run(scheduler)
    assert done_of(events, 1).n_cached == 1 + 5 + 6 - 1
    assert tokens_of(events, 1) == alone(follow_up)[0]


def test_bad_numbers_end_only_their_request(scheduler: Scheduler, model: ArithmeticModel) -> None:
    enter(scheduler, submit(0))
    model.logits = lambda: np.full(64, np.nan, np.float32)  # type: ignore[method-assign]
    (refused,) = [event for event in run(scheduler) if isinstance(event, Refused)]
    assert refused.code == ErrorCode.INTERNAL
    assert scheduler.is_idle


def test_nothing_is_reused_across_scopes(scheduler: Scheduler, model: ArithmeticModel) -> None:
    enter(scheduler, submit(prompt="a secret question", scope=ALICE))
    run(scheduler)
    asked = submit(1, "a secret question", scope=BOB, max_tokens=1)
    assert enter(scheduler, asked).n_cached == 0
    assert done_of(run(scheduler), 1).n_cached == 0
    # Nor does what was Alice's come back when Bob is between.
    assert enter(scheduler, submit(2, "a secret question", scope=ALICE)).n_cached == 0


def test_the_last_prompt_token_is_always_computed(scheduler: Scheduler) -> None:
    for request in range(2):
        enter(scheduler, submit(request, "again", max_tokens=4, ignore_eog=True))
    events = run(scheduler)
    assert tokens_of(events, 0) == tokens_of(events, 1)
    assert done_of(events, 1).n_cached == 5


def test_a_model_that_cannot_cut_its_state_starts_over() -> None:
    model = ArithmeticModel(can_cut=False)
    scheduler = Scheduler(model, VOCABULARY, Ticks())
    for request in range(2):
        enter(scheduler, submit(request, "again", max_tokens=4, ignore_eog=True))
    events = run(scheduler)
    assert done_of(events, 1).n_cached == 0
    assert tokens_of(events, 0) == tokens_of(events, 1)


def test_positions_count_down(scheduler: Scheduler) -> None:
    positions = [enter(scheduler, submit(request, max_tokens=1)).position for request in range(3)]
    assert positions == [0, 1, 2]
    seen = [
        (event.request, event.position)
        for event in run(scheduler)
        if isinstance(event, Progress) and event.phase == Phase.QUEUED
    ]
    assert seen == [(1, 1), (2, 2), (2, 1)]


def test_cancelling_in_the_queue_moves_the_others_up(scheduler: Scheduler) -> None:
    for request in range(3):
        enter(scheduler, submit(request))
    scheduler.step()
    (moved,) = scheduler.cancel(1)
    assert moved == Progress(2, Phase.QUEUED, 0.0, 1)
    assert scheduler.cancel(1) == []
    assert [event.request for event in run(scheduler) if isinstance(event, Done)] == [0, 2]


def test_cancelling_the_running_one_frees_the_slot_at_once(scheduler: Scheduler) -> None:
    enter(scheduler, submit(0, max_tokens=50, ignore_eog=True))
    enter(scheduler, submit(1, max_tokens=1))
    for _ in range(5):
        scheduler.step()
    scheduler.cancel(0)
    (started,) = scheduler.step()
    assert isinstance(started, Progress)
    assert (started.request, started.phase) == (1, Phase.PREFILL)


def test_the_estimate_covers_everybody_ahead(scheduler: Scheduler) -> None:
    enter(scheduler, submit(9, max_tokens=20, ignore_eog=True))
    run(scheduler)  # now the speeds are known
    first = enter(scheduler, submit(0, "x" * 20, scope=BOB, max_tokens=30))
    second = enter(scheduler, submit(1, "y" * 20, scope=ALICE, max_tokens=30))
    ahead_s = 30 / scheduler.decode.tps
    assert second.eta_ms == pytest.approx(2 * first.eta_ms + 1000 * ahead_s, abs=3)


def test_a_step_that_fails_ends_only_its_request(
    scheduler: Scheduler, model: ArithmeticModel
) -> None:
    enter(scheduler, submit(0))
    enter(scheduler, asked := submit(1, ignore_eog=True))
    scheduler.step()
    model.fails = True
    (refused,) = scheduler.step()
    assert isinstance(refused, Refused)
    assert refused.code == ErrorCode.INTERNAL
    model.fails = False
    events = run(scheduler)
    assert done_of(events, 1).n_cached == 0
    assert tokens_of(events, 1) == alone(asked)[0]


def test_times_add_up(scheduler: Scheduler) -> None:
    enter(scheduler, submit(0, max_tokens=10, ignore_eog=True))
    done = done_of(run(scheduler), 0)
    assert done.prefill_ms > 0
    assert done.decode_ms > 0
    assert done.decode_tps > 0


def test_speed_follows_what_was_measured_last() -> None:
    speed = Speed()
    assert (speed.tps, speed.seconds_for(5)) == (0.0, 0.0)
    speed.note(100, 1.0)
    assert speed.tps == 100
    for _ in range(30):
        speed.note(50, 1.0)
    assert speed.tps == pytest.approx(50, rel=0.01)
    assert speed.seconds_for(100) == pytest.approx(2, rel=0.01)
