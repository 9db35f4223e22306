"""What became of asking donors, for people to read. Start at `Attempt`; `Outcome` is the closed
list of reasons for which an attempt, or a whole request, ends.

Pure, and never holds text of a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tokenplace.errors import ErrorCode
from tokenplace.generation import Accepted, Alive, Event, Finished, Phase, Tokens
from tokenplace.router.policy import Candidate
from tokenplace.router.waiting import Waiting
from tokenplace.router.why import Rule, Why

ASKED: Final = "asked"  # the phase before a donor has accepted; then `Phase` says it
ID_END_CHARS: Final = 10  # of a peer id, as people see it: all ids begin alike
MAX_TOLD: Final = 16  # attempts in a header or a message: all of nearly every request


class Outcome(StrEnum):
    """Why an attempt or a request ended: one closed list (docs/protocol.md, section 8). The first
    three are no errors, the others are `ErrorCode`'s.
    """

    FINISHED = "finished"
    CANCELLED = "cancelled"
    OUTRACED = "outraced"

    BUSY = ErrorCode.BUSY.value
    TOO_BIG = ErrorCode.TOO_BIG.value
    BAD_FORMAT = ErrorCode.BAD_FORMAT.value
    UNKNOWN_KEY = ErrorCode.UNKNOWN_KEY.value
    STALE_EPOCH = ErrorCode.STALE_EPOCH.value
    UNSUPPORTED = ErrorCode.UNSUPPORTED.value
    INVALID_REQUEST = ErrorCode.INVALID_REQUEST.value
    CONTEXT_LENGTH_EXCEEDED = ErrorCode.CONTEXT_LENGTH_EXCEEDED.value
    MODEL_NOT_OFFERED = ErrorCode.MODEL_NOT_OFFERED.value
    TEMPLATE_MISMATCH = ErrorCode.TEMPLATE_MISMATCH.value
    TEMPLATE_FAILED = ErrorCode.TEMPLATE_FAILED.value
    PROMPT_MISMATCH = ErrorCode.PROMPT_MISMATCH.value
    RESUME_REJECTED = ErrorCode.RESUME_REJECTED.value
    WORKER_CRASHED = ErrorCode.WORKER_CRASHED.value
    QUARANTINED = ErrorCode.QUARANTINED.value
    DEADLINE_EXCEEDED = ErrorCode.DEADLINE_EXCEEDED.value
    FINISHING = ErrorCode.FINISHING.value
    INTERNAL = ErrorCode.INTERNAL.value
    CONNECT_FAILED = ErrorCode.CONNECT_FAILED.value
    CONNECTION_LOST = ErrorCode.CONNECTION_LOST.value
    DONOR_SILENT = ErrorCode.DONOR_SILENT.value
    PROTOCOL_ERROR = ErrorCode.PROTOCOL_ERROR.value
    MODEL_NOT_FOUND = ErrorCode.MODEL_NOT_FOUND.value
    NO_DONOR_FOR_MODEL = ErrorCode.NO_DONOR_FOR_MODEL.value
    SEARCH_INCOMPLETE = ErrorCode.SEARCH_INCOMPLETE.value
    OWN_NETWORK_DOWN = ErrorCode.OWN_NETWORK_DOWN.value
    UNTRUSTED_DONOR_TOOLS = ErrorCode.UNTRUSTED_DONOR_TOOLS.value
    STOPPING = ErrorCode.STOPPING.value
    CONFIG = ErrorCode.CONFIG.value

    @property
    def text(self) -> str:
        """The same in words, for people."""
        return _SAYS.get(self) or self.value.replace("_", " ")


_SAYS: Final = {
    Outcome.CANCELLED: "the app left",
    Outcome.OUTRACED: "another donor was sooner",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked, for which request, and why: known when an attempt begins.

    at: unix seconds. request: the request's id. model: as the app named it. number: of the attempt,
    0 for the first. n_resumed: tokens of the answer that are there already.
    """

    at: float
    request: str
    model: str
    candidate: Candidate
    number: int
    why: Why | None = None
    n_resumed: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of asking one donor.

    at, request, model, number, why, n_resumed: as in `Asked`. served: NAME@sha256:HEX.
    outcome: None while the attempt runs. phase: how far it had come, `ASKED` until the donor
    accepts. accepted_s, first_token_s, total_s: seconds since it began; None for what did not
    happen. n_tokens: new ones. waiting: of one that was accepted and got no token.
    """

    at: float
    request: str
    model: str
    served: str
    donor: str
    number: int
    outcome: Outcome | None
    phase: str
    accepted_s: float | None
    first_token_s: float | None
    total_s: float
    n_tokens: int
    n_resumed: int
    why: Why | None
    waiting: Waiting | None = None

    @property
    def is_hedge(self) -> bool:
        """Was it a second donor, raced while the first one let the request wait?"""
        return self.why is not None and self.why.rule is Rule.HEDGE


@dataclass
class Progress:
    """What has come of one attempt so far. Knows neither tasks nor clocks; times are trio's.

    waiting: what the donor said last of it, at `heard`, until its first token.
    """

    started: float
    asked: Asked
    outcome: Outcome = Outcome.CANCELLED
    phase: str = ASKED
    accepted: float | None = None
    first_token: float | None = None
    n_tokens: int = 0
    waiting: Waiting | None = None
    heard: float = 0.0

    def note(self, event: Event, now: float) -> None:
        """This has come."""
        match event:
            case Accepted():
                self.phase = Phase.QUEUED
                self.accepted = now
                self.waiting, self.heard = Waiting().after(event), now
            case Alive():
                self.phase = event.phase
                if self.waiting is not None:
                    self.waiting, self.heard = self.waiting.after(event), now
            case Tokens():
                self.phase = Phase.DECODE
                self.waiting = None
                self.first_token = now if self.first_token is None else self.first_token
                self.n_tokens += len(event.ids)
            case Finished():
                self.outcome = Outcome.FINISHED

    def attempt(self, now: float, *, is_over: bool = True) -> Attempt:
        """The same for people, at `now`."""
        asked = self.asked
        return Attempt(
            at=asked.at,
            request=asked.request,
            model=asked.model,
            served=asked.candidate.served,
            donor=asked.candidate.called,
            number=asked.number,
            outcome=self.outcome if is_over else None,
            phase=self.phase,
            accepted_s=None if self.accepted is None else self.accepted - self.started,
            first_token_s=None if self.first_token is None else self.first_token - self.started,
            total_s=now - self.started,
            n_tokens=self.n_tokens,
            n_resumed=asked.n_resumed,
            why=asked.why,
            waiting=self.waiting and self.waiting.later(now - self.heard),
        )


def end_of(donor: str) -> str:
    """The end of a peer id, by which people tell donors apart; "self" as it is."""
    return donor[-ID_END_CHARS:]


def route_text(attempts: Sequence[Attempt]) -> str:
    """Who was asked and what became of it, for programs and a header: ASCII, at most the last
    `MAX_TOLD`, `DONOR=OUTCOME@PHASE, DONOR=finished`."""
    return ", ".join(map(_route_part, attempts[-MAX_TOLD:]))


def tried_text(attempts: Sequence[Attempt]) -> str:
    """The same for people, in an error: "2 donors asked: A busy, B connection_lost (decode, 40
    tokens)."; empty if nobody was asked."""
    if not attempts:
        return ""
    n_donors = len({attempt.donor for attempt in attempts})
    asked = f"{n_donors} donor{'' if n_donors == 1 else 's'} asked"
    times = "" if n_donors == len(attempts) else f" in {len(attempts)} attempts"
    left_out = "…, " if len(attempts) > MAX_TOLD else ""
    parts = ", ".join(map(_tried_part, attempts[-MAX_TOLD:]))
    return f"{asked}{times}: {left_out}{parts}."


def _route_part(attempt: Attempt) -> str:
    outcome = attempt.outcome or "running"
    phase = "" if outcome == Outcome.FINISHED else f"@{attempt.phase}"
    return f"{end_of(attempt.donor)}={outcome}{phase}"


def _tried_part(attempt: Attempt) -> str:
    part = f"{end_of(attempt.donor)} {attempt.outcome or 'running'}"
    if attempt.phase == ASKED or attempt.outcome is Outcome.FINISHED:
        return part
    tokens = f"token{'' if attempt.n_tokens == 1 else 's'}"
    got = f", {attempt.n_tokens} {tokens}" if attempt.n_tokens else ""
    return f"{part} ({attempt.phase}{got})"
