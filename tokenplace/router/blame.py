"""Whose fault a broken path is: the donor's, or this machine's own network. Start at `Blame`.

Pure: `now` is an argument. When this machine's network goes, every donor seems to fail; who blamed
them would have nobody left to ask when it is back. So a broken path counts against its donor only
once somebody else was heard after it, and against nobody if a second donor's path breaks before
that. What fell silent while the own network was away is forgiven, whenever it is noticed.
"""

from __future__ import annotations

import math

from tokenplace import defaults


class Blame:
    """Paths that broke, and what they mean: at most two, for a short time."""

    def __init__(self) -> None:
        self._pending: dict[str, float] = {}  # donor → when its path broke; nobody was heard since
        self._own_at = -math.inf  # when a path broke last while the own network was away
        self._back_at = -math.inf  # when somebody was heard after that

    def is_own(self, now: float) -> bool:
        """Is this machine's own network away, as far as can be told?"""
        return self._back_at < self._own_at and now - self._own_at <= defaults.OUTAGE_TOLD_S

    def is_pending(self, donor: str) -> bool:
        """Did its path break, and is it not known why?"""
        return donor in self._pending

    def heard(self, donor: str, now: float) -> tuple[str, ...]:
        """Something came from this donor. Returns those of which it is now clear that their own
        path broke.
        """
        is_own = self._own_at > self._back_at
        if not self._pending and not is_own:
            return ()
        if is_own:
            self._back_at = now
            self._pending.clear()
            return ()
        self._drop_old(now)
        blamed = tuple(other for other in self._pending if other != donor)
        self._pending.clear()
        return blamed

    def broke(self, donor: str, silent_since: float, now: float) -> None:
        """The path to this donor broke. silent_since: when it was last heard, or else asked."""
        if silent_since <= self._back_at:
            return
        self._drop_old(now)
        if len(self._pending) < 2 or donor in self._pending:
            self._pending[donor] = now
        if len(self._pending) > 1:
            self._own_at = now

    def _drop_old(self, now: float) -> None:
        since = now - defaults.BLAME_WITHIN_S
        self._pending = {donor: at for donor, at in self._pending.items() if at >= since}
