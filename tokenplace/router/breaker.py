"""Who answers badly is left alone for a while, then tried again. Start at `Breaker`.

Pure: `now` and the dice are arguments. Whether a donor lives is the directory's matter
(`dht.donors`); whether it answers well is this one's, for a donor may do the first and not the
second. Source: Nygard, "Release It!", circuit breaker.

    closed --3 faults in a row, 5 of the last 8, or 1 of somebody new--> open
    open --its rest is over--> half-open
    half-open --the trial went well--> closed        half-open --it did not--> open, twice as long
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final

from tokenplace import defaults
from tokenplace.router.jitter import jittered

REMEMBERED: Final = 8  # answers by which a donor is judged
FAULTS_IN_A_ROW: Final = 3
FAULTS_OF_REMEMBERED: Final = 5  # more than half of them
_MAX_DOUBLINGS: Final = 16  # beyond any longest rest; keeps the power small


class State(StrEnum):
    """May the donor be asked? Yes; no; one request may try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Of one donor. What was begun before it opened says nothing of what came after."""

    _lately: deque[bool] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _n_openings: int = 0  # since it was last well for as long as is remembered
    _opened_at: float | None = None
    _rests_until: float = 0.0
    _is_tried: bool = False
    _is_proven: bool = False  # was any answer good?

    def state(self, now: float) -> State:
        """What it is at `now`."""
        if self._opened_at is None:
            return State.CLOSED
        return State.HALF_OPEN if now >= self._rests_until else State.OPEN

    @property
    def rests_until(self) -> float:
        """When an open one may be tried."""
        return self._rests_until

    @property
    def is_tried(self) -> bool:
        """Is a trial under way?"""
        return self._is_tried

    @property
    def is_proven(self) -> bool:
        """Was any of its answers good?"""
        return self._is_proven

    @property
    def faults(self) -> float:
        """The share of the latest answers that were bad; 0 to 1. Few count as if the rest were
        good."""
        return self._lately.count(False) / REMEMBERED

    def begin_trial(self) -> None:
        """A half-open one is asked."""
        assert self._opened_at is not None, "nothing to try"
        assert not self._is_tried, "one trial at a time"
        self._is_tried = True

    def end_trial(self) -> None:
        """It ended, however it did; if nothing else is said, nothing was learned."""
        self._is_tried = False

    def note_good(self, asked_at: float) -> None:
        """An answer was whole; it was asked for at `asked_at`."""
        self._is_proven = True
        if self._opened_at is not None:
            if asked_at < self._opened_at:
                return
            self._opened_at = None
            self._lately.clear()
        self._lately.append(True)
        if len(self._lately) == REMEMBERED and all(self._lately):
            self._n_openings = 0

    def note_fault(self, asked_at: float, now: float, dice: Random) -> None:
        """The donor did not answer as it should have."""
        if self._opened_at is None:
            self._lately.append(False)
            latest = list(self._lately)[-FAULTS_IN_A_ROW:]
            in_a_row = len(latest) == FAULTS_IN_A_ROW and not any(latest)
            is_often = self._lately.count(False) >= FAULTS_OF_REMEMBERED
            if in_a_row or is_often or not self._is_proven:
                self._open(now, dice)
        elif asked_at >= self._rests_until:
            self._open(now, dice)

    def _open(self, now: float, dice: Random) -> None:
        doubled = defaults.BREAKER_REST_S * 2.0 ** min(self._n_openings, _MAX_DOUBLINGS)
        self._n_openings += 1
        self._opened_at = now
        self._rests_until = now + jittered(min(doubled, defaults.BREAKER_MAX_REST_S), dice)
        self._lately.clear()
