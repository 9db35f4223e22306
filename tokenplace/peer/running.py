"""Answers under way, so that a peer that stops can let them end. Start at `Running.finish`.

Both halves of a peer have one: the donor's for its requesters, the router's for this peer's apps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from tokenplace import defaults


class Running:
    """The answers that run now."""

    def __init__(self) -> None:
        self.is_finishing = False
        """Is this peer about to stop? Then nothing new may begin."""
        self._cuts: list[Callable[[], None]] = []
        self._is_idle = trio.Event()

    @contextmanager
    def answer(self, cut: Callable[[], None]) -> Iterator[None]:
        """One more, until the block ends. cut: called when it has to end, and whoever waits for it
        has to be told why.
        """
        self._cuts.append(cut)
        try:
            yield
        finally:
            self._cuts.remove(cut)
            if not self._cuts:
                self._is_idle.set()

    async def finish(self) -> None:
        """Let those that run come to their end. What has not after `FINISH_GRACE_S` is cut, and
        then has `FINISH_NOTICE_S`.
        """
        self.is_finishing = True
        with trio.move_on_after(defaults.FINISH_GRACE_S):
            await self._wait_idle()
        for cut in tuple(self._cuts):
            cut()
        with trio.move_on_after(defaults.FINISH_NOTICE_S):
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        if self._cuts:
            self._is_idle = trio.Event()
            await self._is_idle.wait()
