"""The peers this one knows in the DHT, in libp2p's routing table. Start at `PeerTable`.

Differs from libp2p's use of it: an entry's addresses are replaced when the peer is seen again, and
the number of entries is bounded. Who may enter is decided in `kad`: peers that answered a query as
servers.
"""

from __future__ import annotations

from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.peer.host import PeerHost


class PeerTable:
    """Servers of the DHT, in k-buckets."""

    def __init__(self, host: PeerHost) -> None:
        self._table = RoutingTable(ID.from_base58(host.peer_id), host.upstream)

    async def add(self, peer: PeerAddrs) -> None:
        """Enter a peer that just answered, or renew its entry; a full table stays as it is.

        May wait: a bucket that can neither take nor split pings its oldest entry.
        """
        peer_id = ID.from_base58(peer.peer_id)
        if self._table.peer_in_table(peer_id):
            self._table.remove_peer(peer_id)
        elif self._table.size() >= defaults.MAX_TABLE_PEERS:
            return
        info = PeerInfo(peer_id, [Multiaddr(addr) for addr in peer.addrs])
        await self._table.add_peer(info, skip_server_mode_check=True)

    def remove(self, peer_id: str) -> None:
        """Drop a peer that did not answer."""
        self._table.remove_peer(ID.from_base58(peer_id))

    def has(self, peer_id: str) -> bool:
        """Whether the peer is in the table."""
        return self._table.peer_in_table(ID.from_base58(peer_id))

    def closest(self, key: bytes, n: int) -> list[PeerAddrs]:
        """The `n` entries closest to `key`, the closest first."""
        infos = map(self._table.get_peer_info, self._table.find_local_closest_peers(key, n))
        return [_peer_addrs(info) for info in infos if info is not None]

    def least_recently_seen(self, n: int) -> list[PeerAddrs]:
        """The `n` entries that were not heard of for longest."""
        entries = [entry for bucket in self._table.buckets for entry in bucket.peers.values()]
        entries.sort(key=lambda entry: entry[1])
        return [_peer_addrs(info) for info, _ in entries[:n]]

    def peers(self) -> list[str]:
        """The ids of all entries."""
        return [peer_id.to_base58() for peer_id in self._table.get_peer_ids()]

    def __len__(self) -> int:
        return self._table.size()


def _peer_addrs(info: PeerInfo) -> PeerAddrs:
    return PeerAddrs(info.peer_id.to_base58(), tuple(str(addr) for addr in info.addrs))
