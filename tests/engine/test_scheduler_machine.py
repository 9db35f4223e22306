"""The scheduler, with requests that come, wait, run and leave in any order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.engine.parts import (
    ALICE,
    BOB,
    VOCABULARY,
    ArithmeticModel,
    Ticks,
    alone,
    enter,
    submit,
)
from tokenplace.engine.messages import Done, FromWorker, NewTokens, Progress, Queued, Submit
from tokenplace.engine.scheduler import Scheduler
from tokenplace.generation import Phase


@dataclass
class Asked:
    submit: Submit
    queued: Queued
    tokens: list[int] = field(default_factory=list)
    done: Done | None = None
    is_cancelled: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    """Submit, step and cancel in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ArithmeticModel()
        self.scheduler = Scheduler(self.model, VOCABULARY, Ticks())
        self.asked: dict[int, Asked] = {}
        self.started: list[int] = []

    @rule(
        prompt=st.sampled_from(["", "a", "ab", "abc", "abd", "b" * 30, "abc" * 18]),
        scope=st.sampled_from([ALICE, BOB]),
        max_tokens=st.sampled_from([1, 2, 9, None]),
        temperature=st.sampled_from([0.0, 0.8]),
        stop=st.sampled_from([(), (b"A",), (b"AB", b"z")]),
        ignore_eog=st.booleans(),
    )
    def submit(
        self,
        prompt: str,
        scope: bytes,
        max_tokens: int | None,
        temperature: float,
        stop: tuple[bytes, ...],
        ignore_eog: bool,
    ) -> None:
        request = len(self.asked)
        asked = submit(
            request,
            prompt,
            scope=scope,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
            ignore_eog=ignore_eog,
        )
        queued = enter(self.scheduler, asked)
        n_ahead = sum(not a.is_cancelled and a.done is None for a in self.asked.values())
        assert queued.position == n_ahead
        assert len(queued.prompt_digest) == hashlib.sha256().digest_size
        self.asked[request] = Asked(asked, queued)

    @precondition(lambda self: not self.scheduler.is_idle)
    @rule(n=st.integers(1, 12))
    def step(self, n: int) -> None:
        for _ in range(n):
            for event in self.scheduler.step():
                self.take(event)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.asked)))
        for event in self.scheduler.cancel(request):
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
                assert event.index == len(asked.tokens)
                asked.tokens += event.ids
            case Progress(phase=Phase.PREFILL) if event.request not in self.started:
                self.started.append(event.request)
            case Done():
                self.check_end(asked, event)

    def check_end(self, asked: Asked, done: Done) -> None:
        asked.done = done
        ids, eog_id = alone(asked.submit)
        assert asked.tokens == ids
        assert done.eog_id == eog_id
        assert done.n_completion == len(ids)
        place = self.started.index(done.request)
        if place == 0 or self.scope(place) != self.scope(place - 1):
            assert done.n_cached == 0

    def scope(self, place: int) -> bytes:
        return self.asked[self.started[place]].submit.cache_scope

    @invariant()
    def first_come_first_served(self) -> None:
        assert self.started == sorted(self.started)

    @invariant()
    def idle_means_that_everybody_got_an_end(self) -> None:
        waiting = [a for a in self.asked.values() if a.done is None and not a.is_cancelled]
        assert self.scheduler.is_idle == (not waiting)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
