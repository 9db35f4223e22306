"""Ending a command that runs for long when a signal says so. Start at `until_signal`."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from tokenplace.cli.output import say

# Each part of a shutdown bounds itself; this is the whole, after which the process just ends.
STOP_TIMEOUT_S: Final = 4.8


@dataclass
class Stopping:
    """What the first signal cancels: the whole block, or what is inside `only_this`."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_stopping: bool = False

    @contextmanager
    def only_this(self) -> Iterator[None]:
        """From here on a signal cancels this inner block alone.

        What is around it can then wind up in order, still talking to others.
        """
        with trio.CancelScope() as self.scope:
            yield


@asynccontextmanager
async def until_signal() -> AsyncIterator[Stopping]:
    """Run the block until it ends, or SIGINT or SIGTERM cancels it (`Stopping` says how much of
    it); a second signal ends the process at once.

    Errors of the block leave as an `ExceptionGroup`.
    """
    async with trio.open_nursery() as nursery:
        stopping = Stopping()
        await nursery.start(_watch, stopping)
        with stopping.scope:
            yield stopping
        # Only now: until the block has wound up, the watch must see a second signal.
        nursery.cancel_scope.cancel()


async def _watch(
    stopping: Stopping, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stopping.is_stopping:
                os._exit(1)
            stopping.is_stopping = True
            say("stopping ...")
            stopping.scope.cancel()
            signal.setitimer(signal.ITIMER_REAL, STOP_TIMEOUT_S)
