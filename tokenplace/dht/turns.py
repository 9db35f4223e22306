"""At most so many at the same time for each peer. Start at `Turns`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """A limiter for each peer, kept only while somebody holds or awaits it.

    A peer serves few streams of one other peer at once and resets the rest: who asks more in
    parallel must queue here, or takes its own impatience for a dead peer.
    """

    def __init__(self, n_at_once: int) -> None:
        self._n_at_once = n_at_once
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, peer_id: str) -> AsyncIterator[None]:
        """Wait for a turn with `peer_id`, and hold it until the block exits."""
        limiter = self._limiters.setdefault(peer_id, trio.CapacityLimiter(self._n_at_once))
        try:
            async with limiter:
                yield
        finally:
            if not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
                self._limiters.pop(peer_id, None)
