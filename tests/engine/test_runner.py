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
    enter,
    run,
    runner_of,
    submit,
)
from tokenplace import defaults
from tokenplace.engine.messages import (
    Count,
    Counted,
    Done,
    FromWorker,
    NewTokens,
    Progress,
    Refused,
    Score,
    Scored,
    Submit,
)
from tokenplace.engine.runner import CacheFull, DecodeFailed, Runner
from tokenplace.engine.sequence import prompt_digest, tokenise_prompt
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase, SamplingParams

LONG = "x" * 40


@pytest.fixture
def model() -> ArithmeticModel:
    return ArithmeticModel()


@pytest.fixture
def runner(model: ArithmeticModel) -> Runner:
    return runner_of(model)


def tokens_of(events: list[FromWorker], request: int, choice: int = 0) -> list[int]:
    ids: list[int] = []
    for event in events:
        if isinstance(event, NewTokens) and (event.request, event.choice) == (request, choice):
            ids += event.ids
    return ids


def done_of(events: list[FromWorker], request: int) -> Done:
    (done,) = [e for e in events if isinstance(e, Done) and e.request == request]
    return done


def refused_of(events: list[FromWorker]) -> Refused:
    (refused,) = [event for event in events if isinstance(event, Refused)]
    return refused


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


# ---------------------------------------------------------------- prefixes


def test_a_prefix_is_reused_within_a_scope(runner: Runner, model: ArithmeticModel) -> None:
    first = submit(prompt="the same beginning", max_tokens=3, ignore_eog=True)
    enter(runner, first)
    run(runner)
    before = model.n_decoded
    asked = submit(1, "the same beginning, another end", max_tokens=1, ignore_eog=True)
    assert enter(runner, asked).n_cached == 19
    events = run(runner)
    done = done_of(events, 1)
    assert done.n_cached == 19
    assert model.n_decoded - before == done.n_prompt - done.n_cached
    assert tokens_of(events, 1) == alone(asked)[0]


def test_the_next_turn_reuses_the_answer_but_for_its_last_token(runner: Runner) -> None:
    """Nobody computed the keys of the last token: nothing had to follow it."""
    enter(runner, submit(prompt="hello", max_tokens=6, ignore_eog=True))
    answer = b"".join(map(VOCABULARY.piece, tokens_of(run(runner), 0))).decode("latin-1")
    follow_up = submit(1, f"hello{answer} and more", max_tokens=4)
    enter(runner, follow_up)
    events = run(runner)
    assert done_of(events, 1).n_cached == 1 + 5 + 6 - 1
    assert tokens_of(events, 1) == alone(follow_up)[0]


def test_another_continuation_does_not_spoil_a_long_prefix(runner: Runner) -> None:
    conversation = LONG + "and much more of it"
    enter(runner, submit(0, conversation, max_tokens=1, ignore_eog=True))
    run(runner)
    enter(runner, submit(1, LONG[:20] + "b", max_tokens=1, ignore_eog=True))
    assert done_of(run(runner), 1).n_cached == 21
    enter(runner, submit(2, conversation + "!", max_tokens=1))
    assert done_of(run(runner), 2).n_cached == 1 + len(conversation)


def test_a_prompt_that_is_being_read_is_waited_for_and_copied() -> None:
    model = ArithmeticModel(n_ctx=400, n_slots=4)
    runner = runner_of(model)
    shared = "s" * 300
    enter(runner, submit(0, shared + "a", max_tokens=30, ignore_eog=True))
    runner.step()
    asked = [submit(n, shared + chr(66 + n), max_tokens=30, ignore_eog=True) for n in range(1, 4)]
    for one in asked:
        assert enter(runner, one).n_cached == 301
    events = run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(one, n_ctx=400)[0]
        assert done_of(events, one.request).n_cached == 301
    assert model.n_decoded <= 302 + 3 * 2 + 4 * 30


def test_nothing_is_reused_across_scopes(runner: Runner, model: ArithmeticModel) -> None:
    enter(runner, submit(prompt="a secret question", scope=ALICE))
    run(runner)
    before = model.n_decoded
    asked = submit(1, "a secret question", scope=BOB, max_tokens=1, ignore_eog=True)
    assert enter(runner, asked).n_cached == 0
    assert done_of(run(runner), 1).n_cached == 0
    assert model.n_decoded - before == 18, "it takes as long as for somebody new"
    again = submit(2, "a secret question", scope=ALICE, max_tokens=1)
    assert enter(runner, again).n_cached == 17, "what is Alice's stays hers"


def test_a_foreign_prompt_in_the_making_is_not_waited_for() -> None:
    runner = runner_of(ArithmeticModel(n_ctx=400))
    enter(runner, submit(0, "s" * 300, scope=ALICE, max_tokens=1))
    runner.step()
    assert enter(runner, submit(1, "s" * 300, scope=BOB, max_tokens=1)).n_cached == 0
    runner.step()
    assert 1 in runner.running


def test_the_last_prompt_token_is_always_computed(runner: Runner) -> None:
    for request in range(2):
        enter(runner, submit(request, "once again", max_tokens=4, ignore_eog=True))
        events = run(runner)
        assert (
            tokens_of(events, request)
            == alone(submit(0, "once again", max_tokens=4, ignore_eog=True))[0]
        )
    assert done_of(events, 1).n_cached == 10


def test_a_model_that_cannot_cut_its_state_starts_over() -> None:
    runner = runner_of(ArithmeticModel(can_cut=False))
    asked = [submit(n, LONG, max_tokens=4, ignore_eog=True) for n in range(3)]
    enter(runner, asked[0])
    enter(runner, asked[1])
    events = run(runner)
    enter(runner, asked[2])
    events += run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(asked[0])[0]
        assert done_of(events, one.request).n_cached == 0


# ---------------------------------------------------------------- room


def test_who_does_not_fit_waits_and_is_answered() -> None:
    runner = runner_of(ArithmeticModel(n_cells=64))
    asked = [
        submit(n, f"{n}" * 20, scope=bytes([n]) * 16, max_tokens=20, ignore_eog=True)
        for n in range(4)
    ]
    for one in asked:
        enter(runner, one)
    events = run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(one)[0]


def test_an_answer_longer_than_expected_makes_the_youngest_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "EXPECTED_NEW_TOKENS", 4)
    runner = runner_of(ArithmeticModel(n_cells=80))
    asked = [
        submit(n, f"{n}" * 9, scope=bytes([n]) * 16, max_tokens=None, ignore_eog=True)
        for n in range(3)
    ]
    for one in asked:
        enter(runner, one)
    events = run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(one)[0], "nothing lost, nothing twice"
    requeued = [e.request for e in events if isinstance(e, Progress) and e.phase == Phase.REQUEUED]
    assert requeued
    assert 0 not in requeued, "the oldest never has to give way"
    assert next(e.request for e in events if isinstance(e, Done)) == 0


def test_a_cache_fuller_than_believed_costs_only_time(
    runner: Runner, model: ArithmeticModel
) -> None:
    asked = [submit(n, scope=bytes([n]) * 16, max_tokens=9, ignore_eog=True) for n in range(2)]
    for one in asked:
        enter(runner, one)
    events = runner.step() + runner.step()
    model.fails = CacheFull
    events += runner.step()
    model.fails = None
    assert Phase.REQUEUED in [e.phase for e in events if isinstance(e, Progress)]
    events += run(runner)
    for one in asked:
        assert tokens_of(events, one.request) == alone(one)[0]


def test_a_cache_too_small_for_one_alone_ends_it(runner: Runner, model: ArithmeticModel) -> None:
    enter(runner, submit(0))
    model.fails = CacheFull
    assert refused_of(runner.step()).code == ErrorCode.INTERNAL
    assert runner.is_idle


# ---------------------------------------------------------------- resuming


def digest_of(asked: Submit) -> bytes:
    return prompt_digest(tokenise_prompt(asked.segments, VOCABULARY, 64))


@pytest.mark.parametrize("n_delivered", [0, 1, 5, 9])
def test_an_answer_is_resumed_where_it_broke_off(runner: Runner, n_delivered: int) -> None:
    asked = submit(max_tokens=10, temperature=0.9, ignore_eog=True)
    ids, _ = alone(asked)
    delivered = ((0, tuple(ids[:n_delivered])),)
    enter(
        runner,
        submit(
            max_tokens=10,
            temperature=0.9,
            ignore_eog=True,
            resume=delivered,
            digest=digest_of(asked),
        ),
    )
    events = run(runner)
    tokens = [event for event in events if isinstance(event, NewTokens)]
    assert tokens[0].index == n_delivered
    assert tokens_of(events, 0) == ids[n_delivered:]
    assert done_of(events, 0).n_completion == 10 - n_delivered


def test_only_the_choices_that_had_not_ended_are_resumed(runner: Runner) -> None:
    asked = submit(n=3, max_tokens=6, temperature=0.9, ignore_eog=True)
    kept = {choice: alone(asked, choice)[0] for choice in (0, 2)}
    resume = tuple((choice, tuple(ids[:2])) for choice, ids in kept.items())
    enter(
        runner,
        submit(
            n=3,
            max_tokens=6,
            temperature=0.9,
            ignore_eog=True,
            resume=resume,
            digest=digest_of(asked),
        ),
    )
    events = run(runner)
    assert done_of(events, 0).ends == ((0, "length"), (2, "length"))
    for choice, ids in kept.items():
        assert tokens_of(events, 0, choice) == ids[2:]


def test_penalties_and_grammar_know_what_was_delivered(runner: Runner) -> None:
    harsh = SamplingParams(temperature=0.0, frequency_penalty=2.0, repeat_penalty=1.5)
    whole = submit(0, sampling=harsh, max_tokens=12, ignore_eog=True)
    enter(runner, whole)
    ids = tokens_of(run(runner), 0)
    enter(
        runner,
        submit(
            1,
            sampling=harsh,
            max_tokens=12,
            ignore_eog=True,
            resume=((0, tuple(ids[:7])),),
            digest=digest_of(whole),
        ),
    )
    assert tokens_of(run(runner), 1) == ids[7:]
    delivered = tuple(letter - 64 for letter in b"HE")
    enter(runner, submit(2, grammar="HEY", resume=((0, delivered),), digest=digest_of(whole)))
    assert tokens_of(run(runner), 2) == [ord("Y") - 64]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": bytes(32)}, ErrorCode.PROMPT_MISMATCH),
        ({"resume": ((0, (64,)),)}, ErrorCode.RESUME_REJECTED),
        ({"resume": ((0, (5,) * 9),)}, ErrorCode.RESUME_REJECTED),
        ({"resume": ((0, (5, 6, 5)),), "stop": (b"EF",)}, ErrorCode.RESUME_REJECTED),
        ({"resume": ((0, (5,)),), "grammar": "HEY"}, ErrorCode.RESUME_REJECTED),
        ({"resume": ((0, (8, 5, 25, 5)),), "grammar": "HEY"}, ErrorCode.RESUME_REJECTED),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    runner: Runner, changes: dict[str, object], code: ErrorCode
) -> None:
    of: dict[str, object] = {"resume": ((0, (5,)),), "digest": digest_of(submit())}
    refused = refused_of(runner.submit(submit(**(of | changes))))  # type: ignore[arg-type]
    assert refused.code == code
    assert runner.is_idle


@pytest.mark.parametrize(
    ("of", "end"),
    [
        ({"resume": ((0, (5,) * 8),)}, "length"),
        ({"resume": ((0, (5, 6)),), "stop": (b"EF",)}, b"EF"),
        ({"resume": ((0, (8, 5, 25)),), "grammar": "HEY"}, "grammar"),
    ],
)
def test_what_had_ended_already_ends_at_once(
    runner: Runner, of: dict[str, object], end: object
) -> None:
    asked = submit(digest=digest_of(submit()), **of)  # type: ignore[arg-type]
    _, done = runner.submit(asked)
    assert isinstance(done, Done)
    assert (done.ends, done.n_completion) == (((0, end),), 0)
    assert runner.is_idle


# ---------------------------------------------------------------- scoring


def test_scores_are_of_the_given_ids(runner: Runner, model: ArithmeticModel) -> None:
    ids = tuple(alone(submit(max_tokens=40, ignore_eog=True))[0])
    sampling = submit().sampling
    assert (
        runner.score(Score(5, "alice", (("hello", False),), ids, ALICE, sampling, b"\x07" * 8, 0))
        == []
    )
    scored = [event for event in run(runner) if isinstance(event, Scored)]
    assert [event.index for event in scored] == [0, defaults.SCORE_ROWS]
    assert [event.is_last for event in scored] == [False, True]
    scores = [score for event in scored for score in event.scores]
    assert len(scores) == 40
    assert all(gap == 0 and rank == 0 for _, gap, rank, _ in scores), "they were the likeliest"
    assert [i for event in scored for i in event.drawn] == list(ids)
    assert model.n_decoded == 6 + 39, "behind the last id nothing is drawn"


def test_scoring_shares_steps_with_answers_and_prefixes(runner: Runner) -> None:
    asked = submit(0, LONG, max_tokens=10, ignore_eog=True)
    enter(runner, asked)
    run(runner)
    ids = tuple(alone(asked)[0])
    runner.score(Score(1, "alice", ((LONG, False),), ids, ALICE, (), b"", 0))
    enter(runner, other := submit(2, "other", scope=BOB, max_tokens=5, ignore_eog=True))
    events = run(runner)
    scores = [s for e in events if isinstance(e, Scored) for s in e.scores]
    assert [rank for _, _, rank, _ in scores] == [0] * 10
    assert tokens_of(events, 2) == alone(other)[0]


def test_unknown_ids_cannot_be_scored(runner: Runner) -> None:
    for ids in ((), (64,), (-1,)):
        refused = refused_of(runner.score(Score(0, "", (("a", False),), ids, ALICE, (), b"", 0)))
        assert refused.code == ErrorCode.INVALID_REQUEST


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
    assert runner.cancel(1) == [Progress(2, Phase.QUEUED, 0.0, 0)]
    assert runner.cancel(1) == []
    assert [event.request for event in run(runner) if isinstance(event, Done)] == [0, 2]


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

    def decode(chunks: object) -> np.ndarray:  # type: ignore[type-arg]
        rows = good(chunks)  # type: ignore[arg-type]
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
