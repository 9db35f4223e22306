"""Ending a command that runs for long when a signal says so. Start at `until_signal`."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from tokenplace.cli.output import say

# Each part of a shutdown bounds itself; this is the whole, after which the process just ends.
STOP_TIMEOUT_S: Final = 4.8


@asynccontextmanager
async def until_signal() -> AsyncIterator[None]:
    """Run the block until it ends, or SIGINT or SIGTERM cancels it; a second signal ends the
    process at once.

    Errors of the block leave as an `ExceptionGroup`.
    """
    async with trio.open_nursery() as nursery:
        block = trio.CancelScope()
        await nursery.start(_watch, block)
        with block:
            yield
        # Only now: until the block has wound up, the watch must see a second signal.
        nursery.cancel_scope.cancel()


async def _watch(
    block: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if block.cancel_called:
                os._exit(1)
            say("stopping ...")
            block.cancel()
            signal.setitimer(signal.ITIMER_REAL, STOP_TIMEOUT_S)
