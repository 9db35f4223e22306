"""What became of the latest requests of this peer's apps, as plain data for its status. Start at
`request_status`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenplace.node.addresses import short
from tokenplace.router.attempts import ASKED, Attempt, Outcome
from tokenplace.router.journal import Record
from tokenplace.router.waiting import Waiting


def request_status(record: Record, now: float, clock: float) -> dict[str, Any]:
    """One request and every attempt at it. now: unix seconds; clock: trio's time.

    `outcome`: null while it runs. `text`: the same for people, or how far it is. `age_s`: since the
    app asked.
    """
    attempts = record.attempts_at(clock)
    return {
        "id": record.id,
        "kind": record.kind,
        "model": record.model,
        "at": record.at,
        "age_s": max(0.0, now - record.at),
        "outcome": record.outcome,
        "text": _text(record.outcome, attempts),
        "total_s": record.total_s(clock),
        "n_tokens": record.n_tokens,
        "n_attempts": record.n_attempts,
        "attempts": [_attempt(attempt) for attempt in attempts],
    }


def _text(outcome: Outcome | None, attempts: Sequence[Attempt]) -> str:
    if outcome is not None:
        return outcome.text
    running = [attempt for attempt in attempts if attempt.outcome is None]
    return _attempt_text(running[0]) if running else "looking for a donor"


def _attempt_text(attempt: Attempt) -> str:
    if attempt.outcome is Outcome.FINISHED:
        return attempt.outcome.text
    if attempt.outcome is not None:
        phase = "before it accepted" if attempt.phase == ASKED else f"in {attempt.phase}"
        return f"{attempt.outcome.text}, {phase}"
    if attempt.phase == ASKED:
        return "connecting"
    return "writing the answer" if attempt.waiting is None else _waiting_text(attempt.waiting)


def _waiting_text(waiting: Waiting) -> str:
    # Who it waits for stands beside it, in full.
    return replace(waiting, donor=short(waiting.donor)).text


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """`number` counts from 0. `waiting`: what the donor said of it, until its first token."""
    why, waiting = attempt.why, attempt.waiting
    return {
        "number": attempt.number,
        "at": attempt.at,
        "donor": attempt.donor,
        "served": attempt.served,
        "outcome": attempt.outcome,
        "text": _attempt_text(attempt),
        "phase": attempt.phase,
        "accepted_s": attempt.accepted_s,
        "first_token_s": attempt.first_token_s,
        "total_s": attempt.total_s,
        "n_tokens": attempt.n_tokens,
        "n_resumed": attempt.n_resumed,
        "is_hedge": attempt.is_hedge,
        "why": why and {"rule": why.rule, "text": why.text},
        "waiting": waiting
        and {"position": waiting.position, "eta_s": waiting.eta_s, "text": _waiting_text(waiting)},
    }
