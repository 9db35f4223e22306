"""When one connection is asked for a sign of life, and when it is given up. Pure. Start at
`Liveness.look`.

Whatever comes is a sign of life, so a busy connection is asked nothing; who only listens speaks up,
since his answer to a ping may have to wait for what the other side is sending. Differs from a plain
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
    SPEAK = auto()
    ASK = auto()
    GIVE_UP = auto()


class Liveness:
    """One connection's. `now` is in seconds of any steady clock.

    in_use: has it a stream open? Then somebody waits, and is to survive a short outage.
    """

    def __init__(self, now: float, dice: Callable[[], float] = random.random) -> None:
        """dice: between 0 and 1, so that many connections are not asked in the same moment."""
        self._dice = dice
        self._heard_at = self._said_at = now
        self._eagerness = dice()
        self._is_doubted = False
        self._given_up_at: float | None = None  # unless something comes: it was asked

    def heard(self, now: float) -> bool:
        """Something came. Whether it was waited for: then `due_at` is another."""
        was_asked = self._given_up_at is not None
        self._heard_at = now
        self._given_up_at = None
        return was_asked

    def said(self, now: float) -> None:
        """Something went out."""
        self._said_at = now

    def doubt(self) -> None:
        """The machine slept, or is in another network: ask now."""
        self._is_doubted = True

    def silent_s(self, now: float) -> float:
        """Seconds since anything came."""
        return now - self._heard_at

    def due_at(self, *, in_use: bool) -> float:
        """When to look again, if nothing comes or goes until then."""
        if self._is_doubted:
            return self._heard_at
        if self._given_up_at is not None:
            return self._given_up_at
        since = min(self._heard_at, self._said_at) if in_use else self._heard_at
        return since + self._pause_s(in_use=in_use)

    def _pause_s(self, *, in_use: bool) -> float:
        pause_s = defaults.KEEPALIVE_INTERVAL_S
        if in_use:
            pause_s = min(pause_s, defaults.KEEPALIVE_IN_USE_S)
        return pause_s * (1 - self._eagerness / 4)

    def look(self, now: float, *, in_use: bool) -> Step:
        """What to do now; it is taken as done."""
        if now < self.due_at(in_use=in_use):
            return Step.WAIT
        given_up_at = self._given_up_at
        is_heard = now < self._heard_at + self._pause_s(in_use=in_use)
        if is_heard and given_up_at is None and not self._is_doubted:
            self._said_at = now
            return Step.SPEAK
        # Later than that it was this process that stood still: what came may lie there unread.
        is_late = given_up_at is not None and now > given_up_at + defaults.KEEPALIVE_LATE_S
        if given_up_at is not None and not is_late and not self._is_doubted:
            return Step.GIVE_UP
        if given_up_at is None or is_late:
            silent_from = max(self._heard_at + defaults.KEEPALIVE_INTERVAL_S, now)
            self._given_up_at = silent_from + defaults.KEEPALIVE_TIMEOUT_S
        self._is_doubted = False
        self._said_at = now
        self._eagerness = self._dice()
        return Step.ASK
