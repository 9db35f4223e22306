"""When those who wait will begin, and have their first token. Start at `forecast`. Pure.

Seats and prompts are reckoned on beforehand, as the scheduler will deal them out: whoever is next
takes the seat that is free first, prompts are read one after the other, and each holds up the
streams beside it. How long the answers will get is a guess (`lengths.py`), so this is one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenplace.engine.pace import Pace


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence still needs: prompt tokens to be read, and tokens of its answer."""

    n_prompt: int
    n_answer: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds from now until it begins, and until its first token."""

    begins_s: float
    first_token_s: float


def forecast(
    running: Sequence[Work], waiting: Sequence[Work], n_seats: int, pace: Pace
) -> list[Wait]:
    """One for each of `running`, then one for each of `waiting`; both in their order. All are 0
    while the pace is unknown.
    """
    n_beside = min(n_seats, len(running) + len(waiting)) - 1
    token_s = pace.seconds_for_decode(1, n_beside)
    waits: list[Wait] = []
    free_at: list[float] = []  # each seat
    reading_until = 0.0
    for work in running:
        first_s = 0.0
        if work.n_prompt:
            first_s = reading_until + pace.seconds_for_prefill(work.n_prompt, n_beside)
            _hold_up(free_at, reading_until, work, pace)
            reading_until = first_s
        waits.append(Wait(0.0, first_s))
        free_at.append(first_s + work.n_answer * token_s)
    free_at += [0.0] * (n_seats - len(free_at))
    for work in waiting:
        seat = min(range(n_seats), key=free_at.__getitem__)
        begins_s = free_at[seat]
        reads_from = max(begins_s, reading_until)
        reading_until = reads_from + pace.seconds_for_prefill(work.n_prompt, n_beside)
        _hold_up(free_at, reads_from, work, pace)
        waits.append(Wait(begins_s, reading_until))
        free_at[seat] = reading_until + work.n_answer * token_s
    return waits


def _hold_up(free_at: list[float], reads_from: float, work: Work, pace: Pace) -> None:
    """Streams that run while a prompt is read end so much later."""
    held_s = pace.seconds_held_up(work.n_prompt)
    for seat, at in enumerate(free_at):
        if at > reads_from:
            free_at[seat] = at + held_s
