"""One request in a fake engine. Start at `Job`. Pure but for what wakes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from tokenplace.engine.fake_model import Answer
from tokenplace.generation import ChoiceEnd, GenerateRequest, Phase


@dataclass(eq=False)
class Job:
    """One request. `answers` has the choices that go on, `ends` why the others ended.

    wake: something happened to it: it got its slot, or its worker died.
    """

    request: GenerateRequest
    prompt: tuple[int, ...]
    max_new: int
    answers: list[Answer]
    submitted_at: float
    ends: list[ChoiceEnd] = field(default_factory=list)
    wake: trio.Event = field(default_factory=trio.Event)
    phase: Phase = Phase.QUEUED
    is_dead: bool = False
    progress: float = 0.0
    n_cached: int = 0
    n_new: int = 0
    started_at: float | None = None
    first_token_at: float | None = None

    @property
    def n_left(self) -> int:
        """Tokens that the choice which is furthest back may still have."""
        return max((self.max_new - answer.index for answer in self.answers), default=0)

    def end_if_over(self, answer: Answer) -> None:
        """Count a choice as ended if nothing follows in it."""
        if answer.stop is not None:
            self.answers.remove(answer)
            self.ends.append(ChoiceEnd(answer.choice, answer.stop))
