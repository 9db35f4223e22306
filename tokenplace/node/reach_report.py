"""What a peer says of its being reached, and why it is not. Pure. Start at `ReachReport`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tokenplace import defaults
from tokenplace.node.addresses import Reach, reach_of, short
from tokenplace.peer.reach_wire import Outcome


class ReachState(StrEnum):
    """From where others are known to reach this peer."""

    INTERNET = "internet"
    LOCAL_NETWORK = "local_network"
    THIS_MACHINE = "this_machine"
    UNREACHED = "unreached"


_STATES: Final = {
    Reach.INTERNET: ReachState.INTERNET,
    Reach.LOCAL_NETWORK: ReachState.LOCAL_NETWORK,
    Reach.THIS_MACHINE: ReachState.THIS_MACHINE,
}
_REACHED: Final = {
    ReachState.INTERNET: "reachable from the internet at {}",
    ReachState.LOCAL_NETWORK: "reachable in the local network at {}, from the internet not so far",
    ReachState.THIS_MACHINE: "reachable on this machine at {}, from elsewhere not so far",
}


Gist = tuple[ReachState, bool, bool, Outcome | None]
"""The state; whether it is enough; whether an address waits for its second proof; the problem."""

NOTHING_YET: Final[Gist] = (ReachState.UNREACHED, False, False, None)


@dataclass(frozen=True, slots=True)
class Problem:
    """What last went wrong. outcome: as the peer told; None: it told nothing.

    addr: the multiaddr that it should have dialled, if it said.
    """

    peer_id: str
    outcome: Outcome | None
    addr: str = ""

    @property
    def worth(self) -> int:
        """How much it explains: that somebody tried in vain, more than that nobody tried."""
        if self.outcome is None:
            return 0
        return 2 if self.outcome is Outcome.UNREACHABLE else 1

    def is_farther_than(self, addr: str) -> bool:
        """Is this about being reached from farther away than at `addr`?"""
        return bool(self.addr) and reach_of(self.addr) < reach_of(addr)

    @property
    def text(self) -> str:
        """For a person, and what to do about it."""
        peer = f"peer {short(self.peer_id)}"
        if self.outcome is Outcome.UNREACHABLE:
            ip, port = self.addr.split("/")[2], self.addr.split("/")[4]
            return (
                f"{peer} could not connect to {ip}, port {port}: a firewall or router blocks it; "
                f"let TCP port {port} in, and have a router forward it to this machine"
            )
        if self.outcome is Outcome.PROVED:
            return f"{peer} says that it connected, but nothing of that arrived here"
        if self.outcome is Outcome.BUSY:
            return f"{peer} has no time to try; it will be asked again"
        if self.outcome is Outcome.REFUSED:
            return f"{peer} does not want to try"
        return f"{peer} did not answer when it was asked to try"


@dataclass(frozen=True, slots=True)
class ReachReport:
    """How things stand.

    always: why this peer serves whatever is proven; empty if it does not. confirmed: addresses that
    are proven, farthest first. half_confirmed: those that too few have reached. does_local_count:
    whether being reached from nearby is what this peer is there for. n_peers: how many are
    connected that could be asked.
    """

    always: str
    confirmed: tuple[str, ...]
    half_confirmed: tuple[str, ...]
    problem: Problem | None
    n_peers: int
    does_local_count: bool
    is_donating: bool

    @property
    def state(self) -> ReachState:
        """From how far away it is reached."""
        return _STATES[reach_of(self.confirmed[0])] if self.confirmed else ReachState.UNREACHED

    @property
    def is_enough(self) -> bool:
        """Do those reach this peer for whom it is there?"""
        return bool(self.confirmed) and (self.does_local_count or self.state == ReachState.INTERNET)

    @property
    def gist(self) -> Gist:
        """What has to change before it is worth a line at the terminal."""
        outcome = self.problem.outcome if self.problem and not self.is_enough else None
        return self.state, self.is_enough, bool(self.half_confirmed), outcome

    @property
    def text(self) -> str:
        """For a person."""
        if self.always:
            tail = self._reached() if self.confirmed else f"nobody has reached it: {self._why()}"
            return f"serves because {self.always}; {tail}"
        if self.is_enough:
            return self._reached()
        whom = "nobody on the internet" if self.confirmed else "nobody"
        effect = "your donation does nothing yet" if self.is_donating else "you help nobody yet"
        text = f"{whom} can reach you, because {self._why()}; so {effect}"
        return f"{text} ({self._reached()})" if self.confirmed else text

    def _reached(self) -> str:
        state = self.state
        alike = [addr for addr in self.confirmed if _STATES[reach_of(addr)] is state]
        return _REACHED[state].format(" and ".join(alike))

    def _why(self) -> str:
        if self.half_confirmed:
            return (
                f"only peers of one network have reached {self.half_confirmed[0]} so far: "
                f"{defaults.REACH_NETWORKS} networks must, or a peer of your bootstrap list"
            )
        if self.problem is not None:
            return self.problem.text
        return "nobody has tried yet" if self.n_peers else "no peer is connected that could try"
