"""What befalls a simulated network. Start at `Chaos.run`.

What donors are like by themselves is in `donors.Nature`; here is what comes from outside: crashes
and restarts, machines that freeze, networks that are away, for all of a peer or between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from random import Random
from typing import Final

import trio

from benchmarks.simulation.donors import SimDonor
from benchmarks.simulation.network import NOTICED_S, SimHost, SimNetwork
from benchmarks.simulation.trace import Trace


class Fault(StrEnum):
    """What can befall a network."""

    CRASH = auto()  # a donor's process dies, and is started again later, or never
    LEAVE = auto()  # a donor is told to stop, and is started again later, or never
    WORKER_CRASH = auto()  # only its model does
    FREEZE = auto()  # a donor's machine stands still for a while
    PARTITION = auto()  # a donor and one requester do not reach each other
    OUTAGE = auto()  # a requester's own network is away
    BREAK = auto()  # all of a host's connections break at once, and can be made again


# A flap is over before anybody's deadline, an outage after all of them.
_SHORT_S: Final = (0.5, 6.0)
_LONG_S: Final = (6.0, 60.0)
_RESTART_S: Final = (0.5, 40.0)
_NEVER_SHARE: Final = 0.1


@dataclass(eq=False)
class Chaos:
    """Faults, one after the other, on average every `pause_s` seconds."""

    network: SimNetwork
    donors: Sequence[SimDonor]
    requesters: Sequence[SimHost]
    dice: Random
    trace: Trace
    pause_s: float
    kinds: Sequence[Fault] = tuple(Fault)

    async def run(self) -> None:
        """Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self.dice.expovariate(1 / self.pause_s))
                nursery.start_soon(self._do, self.dice.choice(self.kinds))

    async def _do(self, fault: Fault) -> None:
        donor = self.dice.choice(self.donors)
        requester = self.dice.choice(self.requesters)
        match fault:
            case Fault.CRASH | Fault.LEAVE:
                await self._go(fault, donor)
            case Fault.WORKER_CRASH:
                self.trace.note(fault, donor.name)
                if donor.process is not None:
                    donor.process.engine.crash()
            case Fault.FREEZE:
                await self._take_away(fault, donor.host)
            case Fault.OUTAGE:
                await self._take_away(fault, requester)
            case Fault.PARTITION:
                seconds = self._seconds()
                self.trace.note(fault, donor.name, requester.name, f"{seconds:.3f}")
                self.network.cut(donor.host, requester, trio.current_time() + seconds)
            case Fault.BREAK:
                host = self.dice.choice((donor.host, requester))
                self.trace.note(fault, host.name)
                self.network.give_up(host)

    async def _go(self, fault: Fault, donor: SimDonor) -> None:
        is_clean = self.dice.choice((True, False, None))
        restart_s = self.dice.uniform(*_RESTART_S)
        is_last = self.dice.random() < _NEVER_SHARE
        self.trace.note(fault, donor.name, "for ever" if is_last else f"{restart_s:.3f}")
        if fault is Fault.LEAVE:
            await donor.leave()
        else:
            donor.crash(is_clean=is_clean)
        if not is_last:
            await trio.sleep(restart_s)
            self.trace.note("restart", donor.name)
            donor.restart()

    async def _take_away(self, fault: Fault, host: SimHost) -> None:
        seconds = self._seconds()
        # Not every path says that it is dead: what only swallows must be noticed by deadlines.
        is_noticed = self.dice.random() < 0.5
        self.trace.note(fault, host.name, f"{seconds:.3f}", "noticed" if is_noticed else "silent")
        until = trio.current_time() + seconds
        self.network.take_away(host, until)
        await trio.sleep(min(seconds, NOTICED_S))
        if is_noticed and seconds > NOTICED_S:
            self.network.give_up(host)

    def _seconds(self) -> float:
        return self.dice.uniform(*self.dice.choice((_SHORT_S, _LONG_S)))
