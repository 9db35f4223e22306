"""Answers that go on where another worker left them, and scores of answers."""

from __future__ import annotations

import pytest

from tests.engine.parts import (
    ALICE,
    BOB,
    VOCABULARY,
    ArithmeticModel,
    alone,
    done_of,
    enter,
    refused_of,
    run,
    submit,
    tokens_of,
)
from tokenplace import defaults
from tokenplace.engine.messages import (
    Done,
    NewTokens,
    Score,
    Scored,
    Submit,
)
from tokenplace.engine.runner import Runner
from tokenplace.engine.sequence import prompt_digest, tokenise_prompt
from tokenplace.errors import ErrorCode
from tokenplace.generation import SamplingParams

LONG = "x" * 40


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
