"""Continuous batching over a model of arithmetic: every answer must be what it would be alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.engine.parts import (
    ALICE,
    BOB,
    EOG,
    VOCABULARY,
    ArithmeticModel,
    alone,
    done_of,
    enter,
    refused_of,
    run,
    runner_of,
    submit,
    tokens_of,
)
from tokenplace import defaults
from tokenplace.engine.backend import DecodeFailed
from tokenplace.engine.messages import (
    Count,
    Counted,
    Done,
    NewTokens,
    Progress,
)
from tokenplace.engine.runner import Runner
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase, SamplingParams

LONG = "x" * 40


# ---------------------------------------------------------------- one answer


def test_an_answer_ends_at_its_length(runner: Runner) -> None:
    asked = submit(max_tokens=5, ignore_eog=True)
    enter(runner, asked)
    events = run(runner)
    assert tokens_of(events, 0) == alone(asked)[0]
    assert (done_of(events, 0).ends, done_of(events, 0).n_completion) == (((0, "length"),), 5)


def test_an_answer_ends_where_its_stop_string_is_complete(runner: Runner) -> None:
    ids, _ = alone(submit(max_tokens=12, ignore_eog=True))
    text = b"".join(map(VOCABULARY.piece, ids))
    stop = text[4:7]
    enter(runner, submit(max_tokens=12, ignore_eog=True, stop=(b"never", stop)))
    events = run(runner)
    assert done_of(events, 0).ends == ((0, stop),)
    assert tokens_of(events, 0) == ids[: text.index(stop) + 3]


def test_an_end_of_generation_id_is_not_among_the_tokens(runner: Runner) -> None:
    asked = next(
        asked
        for n in itertools.count()
        if (asked := submit(prompt=f"try {n}", max_tokens=40))
        and alone(asked)[1] == EOG
        and alone(asked)[0]
    )
    enter(runner, asked)
    events = run(runner)
    assert done_of(events, 0).ends == ((0, EOG),)
    assert EOG not in tokens_of(events, 0)


def test_long_prompts_come_in_chunks_with_progress() -> None:
    model = ArithmeticModel(n_ctx=5000, n_slots=1)
    runner = runner_of(model)
    enter(runner, submit(prompt="x" * 4000, max_tokens=1))
    shares, sizes = [], []
    while not runner.is_idle:
        before = model.n_decoded
        shares += [e.progress for e in runner.step() if isinstance(e, Progress)]
        sizes.append(model.n_decoded - before)
    assert shares == sorted(shares)
    assert sizes[0] == defaults.FIRST_PREFILL_CHUNK
    assert 10 * sizes[0] > defaults.MAX_PREFILL_CHUNK >= max(sizes) > 4 * sizes[0]
    assert sum(sizes) == 4001


def test_a_step_never_holds_more_than_the_backend_takes() -> None:
    model = ArithmeticModel(n_ctx=500, n_slots=3, n_batch=16)
    runner = runner_of(model)
    for request in range(3):
        enter(runner, submit(request, chr(70 + request) * 90, max_tokens=4, ignore_eog=True))
    run(runner)  # the model looks
    assert model.n_steps >= 3 * 91 / 16


def test_log_probabilities_come_with_the_tokens(runner: Runner) -> None:
    enter(runner, submit(max_tokens=3, ignore_eog=True, top_logprobs=2))
    tokens = [event for event in run(runner) if isinstance(event, NewTokens)]
    for event in tokens:
        ((own, top),) = event.logprobs
        assert top[0] == (event.ids[0], event.pieces[0], own), "the most likely one was taken"
        assert [len(token) for token in top] == [3, 3]
        assert own < 0


def test_the_grammar_decides_and_ends_the_answer(runner: Runner) -> None:
    enter(runner, submit(grammar="HEY", max_tokens=9, temperature=0.8))
    events = run(runner)
    assert b"".join(map(VOCABULARY.piece, tokens_of(events, 0))) == b"HEY"
    assert done_of(events, 0).ends == ((0, "grammar"),)


def test_a_grammar_that_is_none_is_the_apps_fault(runner: Runner) -> None:
    refused = refused_of(runner.submit(submit(grammar="!")))
    assert refused.code == ErrorCode.INVALID_REQUEST
    assert runner.is_idle


@pytest.mark.parametrize(
    "absurd",
    [
        {"min_p": 7.0},
        {"top_p": 0.0},
        {"temperature": float("nan")},
        {"repeat_penalty": 0.0},
        {"typical_p": -1.0},
        {"top_k": -5},
        {"frequency_penalty": float("inf")},
        {"logit_bias": ((3, 1e9),)},
    ],
    ids=lambda absurd: next(iter(absurd)),
)
def test_absurd_sampling_is_refused(runner: Runner, absurd: dict[str, Any]) -> None:
    refused = refused_of(runner.submit(submit(sampling=SamplingParams(**absurd))))
    assert refused.code == ErrorCode.INVALID_REQUEST
    assert runner.is_idle


def test_tokens_that_do_not_exist_are_refused(runner: Runner) -> None:
    bias = SamplingParams(logit_bias=((64, 1.0),))
    refused = refused_of(runner.submit(submit(sampling=bias)))
    assert refused.code == ErrorCode.INVALID_REQUEST
    assert "64" in refused.detail


def test_counting_is_done_at_once(runner: Runner) -> None:
    assert runner.count(Count(7, (("hello", False),))) == [Counted(7, 6)]
    assert runner.is_idle


def test_times_add_up(runner: Runner) -> None:
    enter(runner, submit(0, max_tokens=10, ignore_eog=True))
    done = done_of(run(runner), 0)
    assert done.prefill_ms > 0
    assert done.decode_ms > 0
    assert done.decode_tps > 0
    assert 0 < runner.computing_s < runner.busy_s


# ---------------------------------------------------------------- many at once


def test_all_that_fit_run_in_the_same_steps(runner: Runner, model: ArithmeticModel) -> None:
    asked = [
        submit(n, f"{n} says hello", scope=bytes([n]) * 16, max_tokens=8, ignore_eog=True)
        for n in range(4)
    ]
    for one in asked:
        enter(runner, one)
    events = run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(one)[0]
    assert model.n_steps <= 8 + 2, "each step carries all four"


def test_a_newcomer_joins_between_two_steps(runner: Runner) -> None:
    enter(runner, submit(0, max_tokens=20, ignore_eog=True))
    for _ in range(5):
        runner.step()
    enter(runner, submit(1, "joins", scope=BOB, max_tokens=2, ignore_eog=True))
    events = run(runner)
    kinds = [e.request for e in events if isinstance(e, NewTokens | Done)]
    assert 0 in kinds[kinds.index(1) :], "the first one goes on meanwhile"
    assert [e.request for e in events if isinstance(e, Done)] == [1, 0]


def test_streams_go_on_while_a_long_prompt_is_read() -> None:
    model = ArithmeticModel(n_ctx=2000, n_slots=2)
    runner = runner_of(model)
    enter(runner, submit(0, max_tokens=200, ignore_eog=True))
    for _ in range(3):
        runner.step()
    enter(runner, submit(1, "x" * 1500, scope=BOB, max_tokens=1, ignore_eog=True))
    while True:
        events = runner.step()
        assert tokens_of(events, 0), "every step brings the running stream a token"
        if any(isinstance(e, Done) and e.request == 1 for e in events):
            return


def test_who_came_together_is_read_first_and_then_answered_in_the_same_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def n_answering_steps() -> int:
        model = ArithmeticModel(n_ctx=400, n_slots=4, n_batch=64)
        runner = runner_of(model)
        for n in range(4):
            enter(
                runner,
                submit(n, f"{n}" * 200, scope=bytes([n]) * 16, max_tokens=20, ignore_eog=True),
            )
        events = run(runner)
        for n in range(4):
            alike = submit(n, f"{n}" * 200, max_tokens=20, ignore_eog=True)
            assert tokens_of(events, n) == alone(alike, n_ctx=400)[0]
        return model.n_answering_steps

    together = n_answering_steps()
    monkeypatch.setattr(defaults, "MAX_HOLD_S", 0.0)
    assert together < n_answering_steps()


def test_streams_are_held_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_HOLD_S", 0.01)  # of a clock that moves with every look
    runner = runner_of(ArithmeticModel(n_ctx=2000, n_slots=2, n_batch=16))
    enter(runner, submit(0, max_tokens=300, ignore_eog=True))
    enter(runner, submit(1, "x" * 1500, scope=BOB, max_tokens=1, ignore_eog=True))
    n_silent = 0
    while 1 in runner.running or not runner.running:
        n_silent = 0 if tokens_of(runner.step(), 0) else n_silent + 1
        assert n_silent < 10


def test_choices_share_their_prompt(runner: Runner, model: ArithmeticModel) -> None:
    asked = submit(0, LONG, n=3, max_tokens=6, temperature=0.9, ignore_eog=True)
    queued = enter(runner, asked)
    events = run(runner)
    answers = [tokens_of(events, 0, choice) for choice in range(3)]
    assert answers == [alone(asked, choice)[0] for choice in range(3)]
    assert len({tuple(answer) for answer in answers}) == 3
    done = done_of(events, 0)
    assert done.ends == ((0, "length"), (1, "length"), (2, "length"))
    assert (done.n_prompt, done.n_cached, done.n_completion) == (41, 0, 18)
    assert queued.n_prompt == 41
    assert model.n_decoded <= 41 + 2 + 3 * 6, "the prompt is read once, and its last token again"


def test_more_choices_than_slots_take_turns() -> None:
    runner = runner_of(ArithmeticModel(n_slots=2))
    asked = submit(0, LONG, n=5, max_tokens=4, temperature=0.9, ignore_eog=True)
    enter(runner, asked)
    events = run(runner)
    for choice in range(5):
        assert tokens_of(events, 0, choice) == alone(asked, choice)[0]
    assert sum(isinstance(event, Done) for event in events) == 1


# ---------------------------------------------------------------- the queue


def test_positions_count_down() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    positions = [enter(runner, submit(request, max_tokens=1)).position for request in range(3)]
    assert positions == [0, 1, 2]
    seen = [
        (event.request, event.position)
        for event in run(runner)
        if isinstance(event, Progress) and event.phase == Phase.QUEUED
    ]
    assert seen[0] == (1, 0)
    assert seen[-1] == (2, 0)
    assert (2, 1) in seen


def test_cancelling_in_the_queue_moves_the_others_up() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    for request in range(3):
        enter(runner, submit(request))
    runner.step()
    (moved,) = runner.cancel(1)
    assert isinstance(moved, Progress)
    assert (moved.request, moved.phase, moved.position) == (2, Phase.QUEUED, 0)
    assert runner.cancel(1) == []
    assert [event.request for event in run(runner) if isinstance(event, Done)] == [0, 2]


def test_a_stopped_step_counts_for_nothing_and_the_next_one_is_not_stopped() -> None:
    model = ArithmeticModel()
    runner = runner_of(model)
    asked = submit(0, "a" * 40)
    enter(runner, asked)
    runner.step(lambda _: True)
    assert model.slots[0] == []
    events = runner.step(lambda _: True)
    assert len(model.slots[0]) == 41  # with the one before every prompt
    tokens = [e for e in events + run(runner) if isinstance(e, NewTokens)]
    assert [i for e in tokens for i in e.ids] == alone(asked)[0]


def test_no_step_is_stopped_that_carries_a_stream() -> None:
    model = ArithmeticModel(n_slots=2)
    runner = runner_of(model)
    enter(runner, submit(0, "a"))
    runner.step()
    enter(runner, submit(1, "b" * 40))
    n_before = len(model.slots[0])
    runner.step(lambda _: True)
    assert len(model.slots[0]) == n_before + 1


def test_cancelling_a_running_one_frees_its_slot_at_once() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    enter(runner, submit(0, max_tokens=50, n=2, ignore_eog=True))
    enter(runner, submit(1, max_tokens=1))
    for _ in range(5):
        runner.step()
    runner.cancel(0)
    runner.step()
    assert runner.running <= {1}
    assert [event.request for event in run(runner) if isinstance(event, Done)] in ([1], [])


def test_the_estimate_covers_everybody_ahead() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    enter(runner, submit(9, max_tokens=20, ignore_eog=True))
    run(runner)  # now the speeds are known
    first = enter(runner, submit(0, "x" * 20, scope=BOB, max_tokens=30))
    second = enter(runner, submit(1, "y" * 20, scope=ALICE, max_tokens=30))
    ahead_ms = 1000 * runner.pace.seconds_for_decode(30)
    assert second.eta_ms == pytest.approx(2 * first.eta_ms + ahead_ms, rel=0.2)
    assert second.wait_ms == pytest.approx(first.eta_ms + ahead_ms, rel=0.2)
    assert (first.wait_ms, first.position, second.position) == (0, 0, 1)


def test_what_answers_need_is_learned_from_those_that_ended() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    behind = [submit(101, "y", scope=BOB, max_tokens=60)]
    enter(runner, submit(9, max_tokens=20, ignore_eog=True))
    run(runner)

    def wait_ms() -> int:
        enter(runner, submit(100, "x", max_tokens=60))
        wait_ms = enter(runner, behind[0]).wait_ms
        runner.cancel(100)
        runner.cancel(101)
        return wait_ms

    before_ms = wait_ms()
    for request in range(defaults.LENGTHS_REMEMBERED):
        enter(runner, submit(request, max_tokens=60, stop=(b"a", b"b", b"c", b"d", b"e")))
        run(runner)
    assert wait_ms() < before_ms / 2


def test_who_comes_after_those_of_another_bucket_is_told_his_fair_place() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    for request in range(4):
        enter(runner, submit(request, bucket="alice", max_tokens=5))
    runner.step()
    told = enter(runner, submit(4, bucket="bob", scope=BOB))
    begun = [event.request for event in run(runner) if isinstance(event, Done)]
    assert told.position == begun.index(4) - 1
    assert told.position < 3


def test_those_who_wait_are_told_anew_while_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "ETA_RENEW_S", 0.02)  # some steps of this clock
    runner = runner_of(ArithmeticModel(n_slots=1))
    enter(runner, submit(9, max_tokens=20, ignore_eog=True))
    run(runner)
    enter(runner, submit(0, max_tokens=50, ignore_eog=True))
    enter(runner, submit(1, scope=BOB))
    runner.step()
    told = []
    while 0 in runner.running:
        told += [e for e in runner.step() if isinstance(e, Progress) and e.request == 1]
    queued = [event for event in told if event.phase == Phase.QUEUED]
    assert len(queued) > 2
    etas = [event.eta_ms for event in queued]
    assert etas == sorted(etas, reverse=True)


def test_the_owner_gets_the_next_seat() -> None:
    runner = runner_of(ArithmeticModel(n_slots=1))
    for request in range(3):
        enter(runner, submit(request, bucket="alice", max_tokens=3))
    runner.step()
    assert enter(runner, submit(3, bucket="", scope=BOB, max_tokens=3)).position == 0
    assert [event.request for event in run(runner) if isinstance(event, Done)] == [0, 3, 1, 2]


def test_with_a_free_slot_nobody_is_ahead(runner: Runner) -> None:
    enter(runner, submit(9, max_tokens=20, ignore_eog=True))
    run(runner)
    first = enter(runner, submit(0, "x" * 20, scope=BOB, max_tokens=30))
    runner.step()
    second = enter(runner, submit(1, "y" * 20, scope=ALICE, max_tokens=30))
    assert (first.position, second.position) == (0, 0)
    assert second.eta_ms <= 3 * first.eta_ms


# ---------------------------------------------------------------- what goes wrong


def test_bad_numbers_end_only_their_request(runner: Runner, model: ArithmeticModel) -> None:
    enter(runner, submit(0))
    asked = submit(1, "other", scope=BOB, ignore_eog=True)
    enter(runner, asked)
    good = model.decode

    def decode(chunks: Any, is_unwanted: Any = None) -> Any:
        rows = good(chunks)
        rows[0] = np.nan
        return rows

    model.decode = decode  # type: ignore[method-assign]
    events = runner.step()
    model.decode = good  # type: ignore[method-assign]
    events += run(runner)
    assert refused_of(events).request == 0
    assert tokens_of(events, 1) == alone(asked)[0]


def test_a_step_that_fails_ends_only_its_requests(runner: Runner, model: ArithmeticModel) -> None:
    enter(runner, submit(0))
    runner.step()
    model.fails = DecodeFailed
    assert refused_of(runner.step()).code == ErrorCode.INTERNAL
    model.fails = None
    enter(runner, asked := submit(1, ignore_eog=True))
    events = run(runner)
    assert done_of(events, 1).n_cached == 0, "what failed is not to be trusted"
    assert tokens_of(events, 1) == alone(asked)[0]


def test_a_prompt_too_long_is_refused_with_numbers(runner: Runner) -> None:
    refused = refused_of(runner.submit(submit(prompt="x" * 64)))
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert dict(refused.numbers) == {"n_prompt": 65, "n_ctx": 64}
