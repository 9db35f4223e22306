"""Background tasks of a block, whose own error leaves it bare. Start at `open_background`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery for as long as the block runs; its tasks are cancelled when the block ends.

    An error raised in the block is raised as it is. One raised by a task arrives in an
    `ExceptionGroup`, as from any
    nursery: tasks handle their errors themselves.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
