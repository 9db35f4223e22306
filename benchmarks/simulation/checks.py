"""What every answer, and every world at its end, is held to. Start at `faults_of`.

Pure. An answer either is exactly what the model says when nobody interferes, or its app was told
why not; and it is over in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.simulation.workload import expected_answer
from tokenplace.engine.fake_model import FakeModel, prompt_ids
from tokenplace.errors import TokenplaceError
from tokenplace.generation import Accepted, Event, Finished, GenerateRequest, Tokens

BOUND_S: Final = 180.0
"""By then each request has ended, whatever happened: three attempts and a search, each with its own
deadline, are less."""


@dataclass(eq=False)
class Asked:
    """One request of an app, and what came of it.

    has_left: the app went away by itself. error: what was raised to it. is_late: it had to be
    stopped after `BOUND_S`. Times are trio's.
    """

    app: str
    number: int
    request: GenerateRequest
    at: float
    events: list[Event] = field(default_factory=list)
    error: BaseException | None = None
    has_left: bool = False
    is_late: bool = False
    first_token_at: float | None = None
    ended_at: float = 0.0

    def note(self, event: Event, now: float) -> None:
        """This has come."""
        if isinstance(event, Tokens) and self.first_token_at is None:
            self.first_token_at = now
        self.events.append(event)

    @property
    def end(self) -> Finished | None:
        """The answer's own end, if it came."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished) else None

    @property
    def is_whole(self) -> bool:
        """Did the app get all of an answer?"""
        return self.error is None and self.end is not None

    @property
    def accepted(self) -> list[Accepted]:
        """One for each donor that had a part in it."""
        return [event for event in self.events if isinstance(event, Accepted)]

    @property
    def is_foreign(self) -> bool:
        """Was something raised to the app that is no reason?"""
        return self.error is not None and not isinstance(self.error, TokenplaceError)

    @property
    def outcome(self) -> str:
        """In a word, for the trace."""
        if self.is_late:
            return "late"
        if self.has_left:
            return "left"
        if isinstance(self.error, TokenplaceError):
            return str(self.error.code)
        if self.error is not None:
            return type(self.error).__name__
        return "whole" if self.is_whole else "silent"

    @property
    def text(self) -> str:
        """Of the first choice."""
        tokens = (e for e in self.events if isinstance(e, Tokens) and e.choice == 0)
        return b"".join(piece for each in tokens for piece in each.pieces).decode(errors="replace")


def faults_of(asked: Asked, models: Sequence[FakeModel]) -> list[str]:
    """What is wrong with this answer; nothing, if all is as it should be."""
    return [f"{asked.app} request {asked.number}: {fault}" for fault in _faults(asked, models)]


def _faults(asked: Asked, models: Sequence[FakeModel]) -> Iterator[str]:
    if asked.is_late:
        yield f"hangs: not over after {BOUND_S:g} s"
        return
    if asked.is_foreign:
        yield f"ends with {type(asked.error).__name__}, which is no reason"
    if asked.error is not None and asked.end is not None:
        yield "fails after its end"
    if asked.error is None and asked.end is None and not asked.has_left:
        yield "ends without a word"
    if any(isinstance(event, Finished) for event in asked.events[:-1]):
        yield "goes on behind its end"
    if asked.events and not asked.accepted:
        yield "begins without `accepted`"
    model = _served(asked, models)
    if model is not None:
        yield from _content_faults(asked, model)


def _served(asked: Asked, models: Sequence[FakeModel]) -> FakeModel | None:
    """What answered; None if it had not begun to."""
    if not any(isinstance(event, (Tokens, Finished)) for event in asked.events):
        return None
    served = asked.accepted[-1].served if asked.accepted else ""
    return next((m for m in models if served.startswith(f"{m.name}@")), None)


def _content_faults(asked: Asked, model: FakeModel) -> Iterator[str]:
    whole = expected_answer(model, asked.request)
    ids: list[list[int]] = [[] for _ in whole]
    pieces: list[list[bytes]] = [[] for _ in whole]
    n_logprobs = 0
    for event in asked.events:
        if isinstance(event, Tokens):
            if event.index != len(ids[event.choice]):
                yield f"has a gap or a repetition at token {event.index}"
            ids[event.choice] += event.ids
            pieces[event.choice] += event.pieces
            n_logprobs += len(event.logprobs)
    end = asked.end
    for choice, expected in enumerate(whole):
        n = len(ids[choice])
        if (*ids[choice],) != expected.ids[:n] or (*pieces[choice],) != expected.pieces[:n]:
            yield f"choice {choice} is corrupt within its {n} tokens"
        elif end is not None and n < len(expected.ids):
            yield f"choice {choice} is silently short: {n} of {len(expected.ids)} tokens"
    n_tokens = sum(map(len, ids))
    if asked.request.top_logprobs is not None and n_logprobs != n_tokens:
        yield f"has {n_logprobs} log-probabilities for {n_tokens} tokens"
    if end is None:
        return
    stops = {each.choice: each.stop for each in end.choices}
    if stops != {choice: expected.stop for choice, expected in enumerate(whole)}:
        yield "says another reason to stop than there was"
    if end.usage.n_completion != n_tokens:
        yield f"counts {end.usage.n_completion} tokens instead of {n_tokens}"
    if end.usage.n_prompt != len(prompt_ids(asked.request.input)):
        yield f"counts {end.usage.n_prompt} prompt tokens"
