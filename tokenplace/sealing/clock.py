"""The clock by which a donor's keys and epochs age, and what others were told of it. Start at
`ElapsedClock`.

Differs from a steady clock, which on many systems stands still while the machine sleeps: a laptop
that slept for a week would go on with last week's key. And from the wall clock, which may be set
back: a key would live on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Less is no step: clocks are corrected by milliseconds, and the two are not read at one instant.
_STEP_S: Final = 1.0


class ElapsedClock:
    """Seconds since some start, by whichever of the two clocks saw more of them pass.

    It never goes back, never lags behind the steady clock, and counts the wall clock's steps
    forward (the machine slept, or the clock was set) up to a second. What ages by it is dropped
    early rather than late.
    """

    def __init__(self, steady: Callable[[], float], wall: Callable[[], float]) -> None:
        self._steady = steady
        self._wall = wall
        self._difference = wall() - steady()
        self._skipped_s = 0.0

    def __call__(self) -> float:
        steady = self._steady()
        step = self._wall() - steady - self._difference
        if abs(step) >= _STEP_S:
            self._difference += step
            self._skipped_s += max(step, 0.0)
        return steady + self._skipped_s
