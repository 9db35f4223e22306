"""What became of asking donors, for people to read. Start at `Attempt`.

Pure, and never holds text of a prompt or an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace.generation import Accepted, Alive, Event, Finished, Phase, Tokens
from tokenplace.router.policy import Candidate


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of asking one donor.

    outcome: "finished", "cancelled" or an error code. phase: how far it had come, "asked" until
    the donor accepts. Times in seconds; first_token_s is None if none came. n_tokens: new ones.
    """

    at: float
    model: str
    donor: str
    number: int
    outcome: str
    phase: str
    first_token_s: float | None
    total_s: float
    n_tokens: int


@dataclass
class Progress:
    """What has come of one attempt so far. Knows neither tasks nor clocks; times are trio's."""

    started: float
    outcome: str = "cancelled"
    phase: str = "asked"
    first_token: float | None = None
    n_tokens: int = 0

    def note(self, event: Event, now: float) -> None:
        """This has come."""
        match event:
            case Accepted():
                self.phase = Phase.QUEUED
            case Alive():
                self.phase = event.phase
            case Tokens():
                self.phase = Phase.DECODE
                self.first_token = now if self.first_token is None else self.first_token
                self.n_tokens += len(event.ids)
            case Finished():
                self.outcome = "finished"

    def attempt(
        self, candidate: Candidate, model: str, number: int, at: float, now: float
    ) -> Attempt:
        """The same for people, at `now`; `at` is when it began, in unix seconds."""
        return Attempt(
            at=at,
            model=model,
            donor=candidate.called,
            number=number,
            outcome=self.outcome,
            phase=self.phase,
            first_token_s=None if self.first_token is None else self.first_token - self.started,
            total_s=now - self.started,
            n_tokens=self.n_tokens,
        )
