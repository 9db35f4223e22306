"""A clock on which other programs take no time. Start at `run_on_own_clock`.

It counts the CPU that the event loop uses, and the time for which the loop has nothing to do. Many
peers in one process are bound by its CPU: on this clock their timeouts and figures are those of a
core of their own, however many programs share the machine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio
import trio.abc

Args = TypeVarTuple("Args")
Result = TypeVar("Result")


def run_on_own_clock(function: Callable[[*Args], Awaitable[Result]], *args: *Args) -> Result:
    """`trio.run` on this clock; for functions that wait for nothing outside this process."""
    clock = _CpuClock()
    return trio.run(function, *args, clock=clock, instruments=[clock])


class _CpuClock(trio.abc.Clock, trio.abc.Instrument):
    """Seconds of CPU of this thread, and of waiting for what the loop chose to wait for."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self._wait_began = 0.0

    def start_clock(self) -> None:
        """Nothing to do: the time since when is nobody's business."""

    def current_time(self) -> float:
        return time.thread_time() + self._waited_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()

    def before_io_wait(self, timeout: float) -> None:
        self._wait_began = time.perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        # Not more than was asked for: the rest is the machine's being late.
        self._waited_s += min(timeout, time.perf_counter() - self._wait_began)
