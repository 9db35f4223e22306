"""Whether a wait gets on, by what a donor's heartbeats say. Start at `Movement.note`. Pure.

A heartbeat proves life and no more, and one that repeats the last not even that somebody works. So
what counts is only what was never said before in this wait: a later phase, more of it done, fewer
requests ahead, or a first token that is expected sooner. What goes back and forth does not move.
"""

from __future__ import annotations

import math
from typing import Final

from tokenplace import defaults
from tokenplace.generation import Accepted, Alive, Phase

_STAGES: Final = {
    Phase.REQUEUED: 0,
    Phase.QUEUED: 0,
    Phase.LOADING: 1,
    Phase.PREFILL: 2,
    Phase.DECODE: 3,
}


class Movement:
    """Of one wait: until the first token, or since an answer was requeued."""

    def __init__(self, now: float) -> None:
        self._moved_at = now
        self._stage = 0
        # The best that was said of this stage.
        self._progress = 0.0
        self._position: float = math.inf
        self._eta_ms: float = math.inf

    @property
    def due_at(self) -> float:
        """By when something has to move."""
        is_queued = self._stage == 0
        still_s = defaults.QUEUE_STILL_TIMEOUT_S if is_queued else defaults.STILL_TIMEOUT_S
        return self._moved_at + still_s

    def start(self, accepted: Accepted) -> None:
        """The wait begins, with `renew`."""
        self._restart(0, accepted.position, accepted.eta_ms)

    def note(self, alive: Alive, now: float) -> None:
        """The donor says that it lives."""
        stage = _STAGES[alive.phase]
        if alive.phase is Phase.REQUEUED:
            self._restart(0, alive.position, alive.eta_ms)
        elif stage > self._stage:
            self._restart(stage, alive.position, alive.eta_ms)
            self._progress = alive.progress
            self._moved_at = now
        elif stage == self._stage:
            self._compare(alive, now)

    def _compare(self, alive: Alive, now: float) -> None:
        eta_ms = alive.eta_ms or math.inf  # 0: unknown
        if (
            alive.progress > self._progress
            or alive.position < self._position
            or eta_ms < self._eta_ms
        ):
            self._moved_at = now
        self._progress = max(self._progress, alive.progress)
        self._position = min(self._position, alive.position)
        self._eta_ms = min(self._eta_ms, eta_ms)

    def renew(self, now: float) -> None:
        """Something else came of it: count from now on."""
        self._moved_at = now

    def _restart(self, stage: int, position: int, eta_ms: int) -> None:
        self._stage, self._progress, self._position = stage, 0.0, position
        self._eta_ms = eta_ms or math.inf
