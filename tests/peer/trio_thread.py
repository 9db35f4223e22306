"""A trio loop in a thread of its own, driven step by step. Start at `TrioThread`.

For tests whose steps are not async, as hypothesis's state machines. Time stands still between the
steps, and each step ends when every task waits: so a run is the same each time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

ResultT = TypeVar("ResultT")


class TrioThread:
    """Call `close` at the end. `nursery` is for what a test starts inside."""

    nursery: trio.Nursery

    def __init__(self) -> None:
        self._clock = MockClock()
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def step(self, work: Callable[..., ResultT], *args: object) -> ResultT:
        """Call `work` inside, and wait until every task waits again. Raises what ended the loop if
        it has crashed.
        """

        async def run() -> ResultT:
            result = work(*args)
            await wait_all_tasks_blocked()
            return result

        return self._inside(run)

    def sleep(self, seconds: float) -> None:
        """Let so much time pass inside, in no time."""

        async def run() -> None:
            self._clock.autojump_threshold = 0
            await trio.sleep(seconds)
            self._clock.autojump_threshold = math.inf
            await wait_all_tasks_blocked()

        self._inside(run)

    def time(self) -> float:
        return self._clock.current_time()

    def close(self) -> None:
        """End the loop and every task in it. Raises what ended it if it has crashed."""
        try:
            self.step(self.nursery.cancel_scope.cancel)
        except trio.Cancelled:
            pass  # the step itself may be what was cancelled
        finally:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _inside(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            return trio.from_thread.run(work, trio_token=self._token)
        except trio.RunFinishedError:
            self._thread.join()
            if self._failure is not None:
                raise self._failure from None
            raise

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        except BaseException as error:
            self._failure = error  # raised in the test's own thread

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            self._ready.set()
            await trio.sleep_forever()
