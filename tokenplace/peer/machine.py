"""Noticing that this machine slept, or moved to another network. Start at `watch_machine`.

Either may have ended every connection without a word: to find that out by silence takes 11 s, which
a person who opens a laptop would wait for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import trio

from tokenplace import defaults
from tokenplace.peer.upstream_host import interface_ips
from tokenplace.sealing.clock import ElapsedClock


async def watch_machine(
    happened: Callable[[], None],
    *,
    steady: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    addresses: Callable[[], Sequence[str]] = interface_ips,
) -> None:
    """Call `happened` whenever it did, until cancelled.

    steady: seconds, on a clock that stands still while the machine sleeps. wall: unix seconds; a
    clock that is set forward looks like sleep. addresses: of this machine's network cards.
    """
    slept = SleepMeter(steady, wall)
    before, looked_at = frozenset(addresses()), trio.current_time()
    while True:
        await trio.sleep(defaults.MACHINE_CHECK_S)
        has_slept = slept.has_grown()
        now = trio.current_time()
        if not has_slept and now < looked_at + defaults.INTERFACES_CHECK_S:
            continue
        current, looked_at = frozenset(addresses()), now
        if has_slept or current != before:
            happened()
        before = current


class SleepMeter:
    """How long this machine has slept, by what a steady clock missed. Pure, but for its clocks."""

    def __init__(self, steady: Callable[[], float], wall: Callable[[], float]) -> None:
        self._steady = steady
        self._elapsed = ElapsedClock(steady, wall)
        self._slept_s = 0.0

    def has_grown(self) -> bool:
        """Did it sleep, by a second or more, since this was last asked?"""
        slept_s = self._elapsed() - self._steady()
        if slept_s - self._slept_s < 0.5:  # of a second: the two clocks are not read at one instant
            return False
        self._slept_s = slept_s
        return True
