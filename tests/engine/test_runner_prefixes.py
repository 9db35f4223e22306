"""Prefixes that are reused, and what happens when the cache is full."""

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
    runner_of,
    submit,
    tokens_of,
)
from tokenplace import defaults
from tokenplace.engine.backend import CacheFull
from tokenplace.engine.messages import (
    Done,
    Progress,
)
from tokenplace.engine.runner import Runner
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase

LONG = "x" * 40


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
