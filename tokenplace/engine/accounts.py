"""What each bucket was given of one engine. Start at `Accounts.enter`. Pure.

Virtual token counters (arXiv:2401.00588): who was given least has the next seat, and who begins to
wait is lifted to those who wait already, else to who had the last seat. So nothing is saved up by
being away, and nobody pays later for what he used while nobody else wanted it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from tokenplace import defaults


class Accounts:
    """By bucket, in costs. At most `MAX_ACCOUNTS` beside those of who is there."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._last: frozenset[str] = frozenset()  # who had the last seat, if anybody had one

    def given(self, bucket: str) -> int:
        """What a bucket was given that has entered."""
        return self._given[bucket]

    def enter(
        self, bucket: str, waiting: AbstractSet[str], running: AbstractSet[str] = frozenset()
    ) -> None:
        """One more request of a bucket is to wait. waiting, running: buckets that have some."""
        if bucket in waiting:
            return
        least = min((self._given[other] for other in waiting or self._last), default=0)
        self._given[bucket] = max(self._given.get(bucket, 0), least)
        if len(self._given) > defaults.MAX_ACCOUNTS:  # of many who are gone they say nothing
            kept = {bucket, *waiting, *running, *self._last}
            self._given = {other: n for other, n in self._given.items() if other in kept}

    def seat(self, bucket: str) -> None:
        """A request of this bucket waits no more: it begins."""
        self._last = frozenset((bucket,))

    def charge(self, bucket: str, cost: int) -> None:
        """It was given so much; what is below 0 is taken back."""
        self._given[bucket] += cost
