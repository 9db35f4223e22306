"""When one connection is asked for a sign of life, and when it is given up. Pure. Start at
`Liveness.look`.

Whatever comes is a sign of life, so a busy connection is asked nothing. Differs from a plain
ping-pong: what counts is the silence, not one answer, because TCP sends what was lost in an outage
of 5 s again as late as 10 s after it began.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto

from tokenplace import defaults


class Step(Enum):
    """What to do with a connection now."""

    WAIT = auto()
    ASK = auto()
    GIVE_UP = auto()


class Liveness:
    """One connection's. `now` is in seconds of any steady clock.

    in_use: has it a stream open? Then somebody waits, and is to survive a short outage.
    """

    def __init__(self, now: float, dice: Callable[[], float] = random.random) -> None:
        """dice: between 0 and 1, so that many connections are not asked in the same moment."""
        self._dice = dice
        self._heard_at = now
        self._eagerness = dice()
        self._is_doubted = False
        self._given_up_at: float | None = None  # unless something comes: it was asked

    def heard(self, now: float) -> bool:
        """Something came. Whether it was waited for: then `due_at` is another."""
        was_asked = self._given_up_at is not None
        self._heard_at = now
        self._given_up_at = None
        return was_asked

    def doubt(self) -> None:
        """The machine slept, or is in another network: ask now."""
        self._is_doubted = True

    def silent_s(self, now: float) -> float:
        """Seconds since anything came."""
        return now - self._heard_at

    def due_at(self, *, in_use: bool) -> float:
        """When to look again, if nothing comes until then."""
        if self._is_doubted:
            return self._heard_at
        if self._given_up_at is not None:
            return self._given_up_at
        pause_s = defaults.KEEPALIVE_INTERVAL_S
        if in_use:
            pause_s = min(pause_s, defaults.KEEPALIVE_IN_USE_S)
        return self._heard_at + pause_s * (1 - self._eagerness / 4)

    def look(self, now: float, *, in_use: bool) -> Step:
        """What to do now; asking and giving up are taken as done."""
        if now < self.due_at(in_use=in_use):
            return Step.WAIT
        given_up_at = self._given_up_at
        # Later than that it was this process that stood still: what came may lie there unread.
        is_late = given_up_at is not None and now > given_up_at + defaults.KEEPALIVE_LATE_S
        if given_up_at is not None and not is_late and not self._is_doubted:
            return Step.GIVE_UP
        if given_up_at is None or is_late:
            silent_from = max(self._heard_at + defaults.KEEPALIVE_INTERVAL_S, now)
            self._given_up_at = silent_from + defaults.KEEPALIVE_TIMEOUT_S
        self._is_doubted = False
        self._eagerness = self._dice()
        return Step.ASK
