"""How many inbound streams of one protocol are open, and whose. Pure. Start at `StreamCounts`.

Counted by peer id and by address: peer ids are free, so an address gets twice what a peer gets (the
two hosts of one peer, or two peers of one household), however many ids it shows. On loopback, where
all peers of one machine share an address, only ids count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tokenplace.peer.ranges import block_of, is_loopback

PEERS_PER_ADDRESS: Final = 2


@dataclass(slots=True)
class StreamCounts:
    """The open streams of one protocol. None means no limit."""

    max_per_peer: int | None
    max_in_all: int | None
    _n_open: Counter[str] = field(default_factory=Counter)
    _n_in_all: int = 0

    def enter(self, peer_id: str, remote_ip: str) -> bool:
        """Count one more; False: there are enough already, and nothing was counted."""
        if self.max_in_all is not None and self._n_in_all >= self.max_in_all:
            return False
        limits = self._limits(peer_id, remote_ip)
        if any(self._n_open[key] >= limit for key, limit in limits.items()):
            return False
        self._n_open.update(limits.keys())
        self._n_in_all += 1
        return True

    def leave(self, peer_id: str, remote_ip: str) -> None:
        """A stream that was counted has ended."""
        self._n_in_all -= 1
        self._n_open.subtract(self._limits(peer_id, remote_ip).keys())
        self._n_open = +self._n_open  # drops the zeros

    def _limits(self, peer_id: str, remote_ip: str) -> dict[str, int]:
        if self.max_per_peer is None:
            return {}
        limits = {f"peer {peer_id}": self.max_per_peer}
        if remote_ip and not is_loopback(remote_ip):
            limits[f"address {block_of(remote_ip)}"] = PEERS_PER_ADDRESS * self.max_per_peer
        return limits
