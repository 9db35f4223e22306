"""The runner, with requests that come, wait, run and leave in any order: each answer must be what
it would be alone, whoever shares its steps, its slots and its prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.parts import (
    ALICE,
    BOB,
    ArithmeticModel,
    alone,
    enter,
    runner_of,
    submit,
)
from tokenplace.engine.messages import Done, FromWorker, NewTokens, Progress, Queued, Submit

PROMPTS = ["", "a", "abcabcabcabc", "abcabcabcabcd", "abcabcabcab" + "b" * 20, "abc" * 15]


@dataclass
class Asked:
    submit: Submit
    queued: Queued
    tokens: dict[int, list[int]] = field(default_factory=dict)
    done: Done | None = None
    is_cancelled: bool = False


class RunnerMachine(RuleBasedStateMachine):
    """Submit, step and cancel in any order."""

    @initialize(
        n_slots=st.integers(1, 4),
        n_cells=st.sampled_from([None, 64, 100]),
        can_cut=st.booleans(),
    )
    def open(self, n_slots: int, n_cells: int | None, can_cut: bool) -> None:
        self.model = ArithmeticModel(n_slots=n_slots, n_cells=n_cells, can_cut=can_cut)
        self.runner = runner_of(self.model)
        self.asked: dict[int, Asked] = {}

    @rule(
        prompt=st.sampled_from(PROMPTS),
        scope=st.sampled_from([ALICE, BOB]),
        bucket=st.sampled_from(["alice", "bob"]),
        n=st.sampled_from([1, 1, 3]),
        max_tokens=st.sampled_from([1, 2, 9, None]),
        temperature=st.sampled_from([0.0, 0.8]),
        stop=st.sampled_from([(), (b"A",), (b"AB", b"z")]),
        ignore_eog=st.booleans(),
    )
    def submit(self, prompt: str, **of: object) -> None:
        request = len(self.asked)
        asked = submit(request, prompt, **of)  # type: ignore[arg-type]
        self.asked[request] = Asked(asked, enter(self.runner, asked))

    @precondition(lambda self: not self.runner.is_idle)
    @rule(n=st.integers(1, 12), is_unwanted=st.booleans())
    def step(self, n: int, is_unwanted: bool = False) -> None:
        for _ in range(n):
            for event in self.runner.step(lambda _: is_unwanted):
                self.take(event)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.asked)))
        for event in self.runner.cancel(request):
            self.take(event)
        if self.asked[request].done is None:
            self.asked[request].is_cancelled = True

    def take(self, event: FromWorker) -> None:
        assert isinstance(event, NewTokens | Progress | Done)
        asked = self.asked[event.request]
        assert not asked.is_cancelled, "words of somebody who left"
        assert asked.done is None, "words after the end"
        match event:
            case NewTokens():
                tokens = asked.tokens.setdefault(event.choice, [])
                assert event.index == len(tokens)
                tokens += event.ids
            case Done():
                self.check_end(asked, event)

    def check_end(self, asked: Asked, done: Done) -> None:
        asked.done = done
        assert [choice for choice, _ in done.ends] == list(range(asked.submit.n))
        for choice, end in done.ends:
            assert (asked.tokens.get(choice, []), end) == alone(asked.submit, choice)
        assert done.n_completion == sum(map(len, asked.tokens.values()))
        assert done.n_prompt == asked.queued.n_prompt
        same_scope = [
            other
            for request, other in self.asked.items()
            if request != done.request and other.submit.cache_scope == asked.submit.cache_scope
        ]
        assert same_scope or done.n_cached == 0, "a foreign prefix"

    @invariant()
    def idle_means_that_everybody_got_an_end(self) -> None:
        if hasattr(self, "asked"):
            waiting = [a for a in self.asked.values() if a.done is None and not a.is_cancelled]
            assert self.runner.is_idle == (not waiting)

    def teardown(self) -> None:
        if hasattr(self, "asked"):
            for _ in range(5000):
                if self.runner.is_idle:
                    return
                self.step(1)
            raise AssertionError("it never ends")


TestRunnerMachine = RunnerMachine.TestCase
TestRunnerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
