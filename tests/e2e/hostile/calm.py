"""What running peers hold while nobody attacks them, and whether they are back there. Start at
`Calm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from tests.e2e.network import Network, wait_for, workers_of
from tokenplace.cli.processes import PeerProcess

RSS_SLACK_BYTES = 24 << 20  # allocators keep some of what a burst needed
FDS_SLACK = 2  # the peers' own business: a status being asked, a connection being renewed


@dataclass(frozen=True)
class Calm:
    """How much a process held before anybody attacked it.

    n_fds: descriptors, without those of its connections, which come and go among regulars.
    regulars: all who are connected in this network anyway, to whomever.
    """

    network: Network
    peer: PeerProcess
    pid: int
    rss_bytes: int
    n_fds: int
    worker_pids: frozenset[int]
    regulars: frozenset[str]

    @classmethod
    def of_all(cls, network: Network) -> list[Calm]:
        """One for each peer that is always there: others come and go."""
        assert network.asker is not None, "the network has not started"
        peers = [network.group.peers[0], *network.donors, network.asker]
        regulars = frozenset.union(*(connected_to(network, peer) for peer in peers))
        return [cls._of(network, peer, regulars) for peer in peers]

    @classmethod
    def _of(cls, network: Network, peer: PeerProcess, regulars: frozenset[str]) -> Calm:
        process = psutil.Process(peer.process.pid)
        return cls(
            network,
            peer,
            process.pid,
            process.memory_info().rss,
            process.num_fds() - len(connected_to(network, peer)),
            frozenset(worker.pid for worker in workers_of(peer)),
            regulars,
        )

    def check_unharmed(self) -> None:
        """Fails unless the peer lives on, with the same workers, soon holds no more than before,
        and printed no traceback.
        """
        # The attackers have left, so nothing may wait for a deadline of its own.
        wait_for(self._has_let_go, f"{self.peer.name} has let go of everything", within_s=20)
        try:
            wait_for(self._is_small, f"{self.peer.name} is as small as before")
        except AssertionError as error:
            held = f"{self.rss_bytes >> 20} MB and {self.n_fds} descriptors"
            raise AssertionError(f"{error}: {self._held()} instead of {held}") from None
        self.peer.check()
        assert self.peer.process.pid == self.pid
        assert "Traceback" not in self.peer.output
        workers = frozenset(worker.pid for worker in workers_of(self.peer))
        assert workers == self.worker_pids, "a worker died"

    def _has_let_go(self) -> bool:
        """Is there neither a request nor a connection left but those it always has?"""
        exchanges = self.network.status(self.peer)["exchanges"]
        is_idle = not exchanges or not exchanges["open"]
        return is_idle and connected_to(self.network, self.peer) <= self.regulars

    def _is_small(self) -> bool:
        rss_bytes, n_fds = self._held()
        return rss_bytes <= self.rss_bytes + RSS_SLACK_BYTES and n_fds <= self.n_fds + FDS_SLACK

    def _held(self) -> tuple[int, int]:
        """Bytes of memory, and descriptors without those of connections, now."""
        process = psutil.Process(self.pid)
        n_connected = len(connected_to(self.network, self.peer))
        return process.memory_info().rss, process.num_fds() - n_connected


def connected_to(network: Network, peer: PeerProcess) -> frozenset[str]:
    """The peer ids at the other ends of its connections."""
    connections = network.status(peer)["connections"]
    return frozenset(connection["peer_id"] for connection in connections)
