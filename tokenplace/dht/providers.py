"""What others asked this peer to remember: who provides which key. Start at `ProviderStore`.

Pure: no clock, no I/O. Differs from libp2p's store: records live 45 minutes instead of two days,
nothing heard from others is cached, and a full key makes room by the most crowded network instead
of refusing every newcomer.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs


@dataclass(frozen=True, slots=True)
class _Record:
    addrs: tuple[str, ...]
    group: str
    expires_at: float


class ProviderStore:
    """Provider records by key and peer id. `now` is on the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._records: dict[bytes, dict[str, _Record]] = {}
        self._n_keys_of: Counter[str] = Counter()

    @property
    def n_records(self) -> int:
        """Records held, expired ones included until `drop_expired`."""
        return self._n_keys_of.total()

    def add(self, key: bytes, provider: PeerAddrs, remote_ip: str, now: float) -> bool:
        """Remember `provider`, or renew its record. False: refused, a limit is reached.

        remote_ip: where the provider's connection came from; decides who makes room when the key is
        full.
        """
        known = self._records.get(key, {})
        if provider.peer_id not in known:
            if self._n_keys_of[provider.peer_id] >= defaults.MAX_KEYS_PER_PROVIDER:
                return False
            if self.n_records >= defaults.MAX_PROVIDER_RECORDS:
                return False
            if len(known) >= defaults.MAX_PROVIDERS_PER_KEY:
                self._make_room(key, network_of(remote_ip))
            self._n_keys_of[provider.peer_id] += 1
        record = _Record(provider.addrs, network_of(remote_ip), now + defaults.PROVIDER_TTL_S)
        self._records.setdefault(key, {})[provider.peer_id] = record
        return True

    def get(self, key: bytes, now: float) -> list[PeerAddrs]:
        """Who provides `key` now."""
        return [
            PeerAddrs(peer_id, record.addrs)
            for peer_id, record in self._records.get(key, {}).items()
            if record.expires_at > now
        ]

    def remove(self, key: bytes, peer_id: str) -> None:
        """Forget one record, if it is there."""
        records = self._records.get(key, {})
        if records.pop(peer_id, None) is None:
            return
        if not records:
            del self._records[key]
        self._n_keys_of[peer_id] -= 1
        if not self._n_keys_of[peer_id]:
            del self._n_keys_of[peer_id]

    def drop_expired(self, now: float) -> None:
        """Free what has expired."""
        expired = [
            (key, peer_id)
            for key, records in self._records.items()
            for peer_id, record in records.items()
            if record.expires_at <= now
        ]
        for key, peer_id in expired:
            self.remove(key, peer_id)

    def _make_room(self, key: bytes, newcomer: str) -> None:
        """Drop the oldest record in the most crowded network, the newcomer counted in."""
        records = self._records[key]
        crowd = Counter(record.group for record in records.values())
        crowd[newcomer] += 1
        most = max(crowd.values())
        candidates = [
            (record.expires_at, peer_id)
            for peer_id, record in records.items()
            if crowd[record.group] == most
        ]
        self.remove(key, min(candidates)[1])


def network_of(ip: str) -> str:
    """The /16 of an IPv4 address, the /32 of an IPv6 one: what an attacker has to leave."""
    address = ipaddress.ip_address(ip)
    prefix = 16 if address.version == 4 else 32
    return str(ipaddress.ip_network((address, prefix), strict=False))
