"""The servers of the DHT that this peer knows. Pure. Start at `PeerTable`.

Differs from libp2p's routing table: one query that failed makes an entry doubtful, only the second
removes it; an entry's addresses are those it has now; the networks that peers answer from are
limited, over the whole table too, and taken from the connection, not from what the peer says;
and a place whose holder is doubtful goes to who needs it, without a ping that everybody waits for.
Who may enter is decided in `members`: peers that answered a query as servers.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs, peer_id_bytes
from tokenplace.peer.ranges import crowd_of, plain_ip


@dataclass(slots=True)
class _Entry:
    """One server. network: None where addresses cost nothing, and then nothing is counted.

    bucket: how many leading bits its place shares with this peer's. failed_at: when its last
    query failed, None if it was answered.
    """

    peer: PeerAddrs
    network: str | None
    place: int
    bucket: int
    n_failures: int = 0
    failed_at: float | None = None


class PeerTable:
    """Servers by peer id, the one heard of least recently first, each in a bucket of limited size.

    Times are of any one clock, in seconds.
    """

    def __init__(self, own_peer_id: str) -> None:
        self._own_place = position(peer_id_bytes(own_peer_id))
        self._entries: dict[str, _Entry] = {}

    def add(self, peer: PeerAddrs, remote_ip: str) -> bool:
        """Enter a peer that just answered, or renew its entry; False if there is no place for it.

        remote_ip: where it answered from. Where there is no room, a doubtful entry makes some.
        """
        self._entries.pop(peer.peer_id, None)
        place = position(peer_id_bytes(peer.peer_id))
        entry = _Entry(
            peer,
            crowd_of(remote_ip) if plain_ip(remote_ip).is_global else None,
            place,
            256 - (place ^ self._own_place).bit_length(),
        )
        leaving = set()
        for holders, most in self._shares(entry):
            staying = [holder for holder in holders if holder.peer.peer_id not in leaving]
            if len(staying) < most:
                continue
            doubtful = next((holder for holder in staying if holder.n_failures), None)
            if doubtful is None:
                return False
            leaving.add(doubtful.peer.peer_id)
        for peer_id in leaving:
            del self._entries[peer_id]
        self._entries[peer.peer_id] = entry
        return True

    def _shares(self, newcomer: _Entry) -> Iterator[tuple[list[_Entry], int]]:
        """What a newcomer takes a part of: who holds it now, and how many may."""
        everybody = list(self._entries.values())
        bucket = [entry for entry in everybody if entry.bucket == newcomer.bucket]
        if (network := newcomer.network) is not None:
            in_bucket = [entry for entry in bucket if entry.network == network]
            yield in_bucket, defaults.BUCKET_PEERS_PER_NETWORK
            in_table = [entry for entry in everybody if entry.network == network]
            yield in_table, defaults.TABLE_PEERS_PER_NETWORK
        yield bucket, defaults.BUCKET_PEERS
        yield everybody, defaults.MAX_TABLE_PEERS

    def note_answered(self, peer_id: str) -> None:
        """The peer answered a query: it is beyond doubt."""
        entry = self._entries.pop(peer_id, None)
        if entry is not None:
            entry.n_failures, entry.failed_at = 0, None
            self._entries[peer_id] = entry

    def note_failed(self, peer_id: str, *, asked_at: float, now: float) -> None:
        """A query of `asked_at` failed: the first time the peer is doubtful, then it is dropped.

        Queries that were under way together count once: they met with the same mishap.
        """
        entry = self._entries.get(peer_id)
        if entry is None or (entry.failed_at is not None and asked_at < entry.failed_at):
            return
        entry.n_failures += 1
        entry.failed_at = now
        if entry.n_failures >= defaults.MAX_QUERY_FAILURES:
            del self._entries[peer_id]

    def has(self, peer_id: str) -> bool:
        """Whether the peer is in the table, doubtful or not."""
        return peer_id in self._entries

    def closest(self, key: bytes, n: int) -> list[PeerAddrs]:
        """The `n` peers closest to `key`, the closest first; doubtful ones only if all are."""
        target = position(key)
        entries = self._good() or list(self._entries.values())
        nearest = heapq.nsmallest(n, entries, key=lambda entry: entry.place ^ target)
        return [entry.peer for entry in nearest]

    def least_recently_heard(self, n: int) -> list[PeerAddrs]:
        """The `n` peers not heard of for longest, doubtful ones left out."""
        return [entry.peer for entry in self._good()[:n]]

    def doubtful(self) -> list[PeerAddrs]:
        """The peers whose last query failed."""
        return [entry.peer for entry in self._entries.values() if entry.n_failures]

    def peers(self) -> list[PeerAddrs]:
        """All peers that are not doubtful."""
        return [entry.peer for entry in self._good()]

    def __len__(self) -> int:
        """How many are not doubtful."""
        return len(self._good())

    def _good(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if not entry.n_failures]


def position(data: bytes) -> int:
    """Where a key or a peer id lies: Kademlia's metric is XOR over sha256, as in libp2p."""
    return int.from_bytes(hashlib.sha256(data).digest(), "big")
