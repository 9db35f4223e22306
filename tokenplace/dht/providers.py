"""What others asked this peer to remember: who provides which key. Start at `ProviderStore`.

Pure: no clock, no I/O; `probing` dials. Differs from libp2p's store (`provider_store.py:585`),
which held 20 providers of a key for two days and ignored every newcomer until then: here records
live 45 minutes, nothing heard from others is cached, and what is full makes room. Providers that
could not be reached go first, then those of the most crowded network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.peer.ranges import crowd_of


@dataclass(frozen=True, slots=True)
class _Record:
    addrs: tuple[str, ...]
    network: str
    expires_at: float


@dataclass(slots=True)
class _Probe:
    """The last attempt to reach a provider at these addresses, from when it began."""

    addrs: tuple[str, ...]
    begun_at: float
    has_failed: bool = False


class ProviderStore:
    """Provider records by key and peer id. `now` is on the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._records: dict[bytes, dict[str, _Record]] = {}
        self._n_keys_of: Counter[str] = Counter()
        self._probes: dict[str, _Probe] = {}
        # Records by network, the oldest first.
        self._in_network: dict[str, dict[tuple[bytes, str], None]] = {}

    @property
    def n_records(self) -> int:
        """Records held, expired ones included until `drop_expired`."""
        return sum(map(len, self._in_network.values()))

    def add(self, key: bytes, provider: PeerAddrs, remote_ip: str, now: float) -> bool:
        """Remember `provider`, or renew its record. False: refused, a limit is reached.

        remote_ip: where the provider's connection came from; decides who makes room.
        """
        peer_id, network = provider.peer_id, crowd_of(remote_ip)
        old = self._records.get(key, {}).get(peer_id)
        if old is not None:
            self._leave_network(old.network, key, peer_id)
        else:
            if self._n_keys_of[peer_id] >= defaults.MAX_KEYS_PER_PROVIDER:
                return False
            if not self._make_room(key, network):
                return False
            self._n_keys_of[peer_id] += 1
        probe = self._probes.get(peer_id)
        if probe is not None and probe.addrs != provider.addrs:
            del self._probes[peer_id]  # what was found out was about another place
        record = _Record(provider.addrs, network, now + defaults.PROVIDER_TTL_S)
        self._records.setdefault(key, {})[peer_id] = record
        self._in_network.setdefault(network, {})[key, peer_id] = None
        return True

    def get(self, key: bytes, now: float) -> list[PeerAddrs]:
        """Who provides `key` now; those that could not be reached come last."""
        providers = [
            PeerAddrs(peer_id, record.addrs)
            for peer_id, record in self._records.get(key, {}).items()
            if record.expires_at > now
        ]
        return sorted(providers, key=lambda provider: self._has_failed(provider.peer_id))

    def remove(self, key: bytes, peer_id: str) -> None:
        """Forget one record, if it is there."""
        records = self._records.get(key, {})
        record = records.pop(peer_id, None)
        if record is None:
            return
        if not records:
            del self._records[key]
        self._leave_network(record.network, key, peer_id)
        self._n_keys_of[peer_id] -= 1
        if not self._n_keys_of[peer_id]:
            del self._n_keys_of[peer_id]
            self._probes.pop(peer_id, None)

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

    # ------------------------------------------------------------ full keys

    def next_to_probe(self, now: float) -> PeerAddrs | None:
        """The provider of a full key that was not probed for longest; None if all were lately.

        It counts as being probed from here on. Say how that ended with `note_probed`.
        """
        chosen, chosen_at = None, now - defaults.PROVIDER_PROBE_AGAIN_S
        for records in self._records.values():
            if len(records) < defaults.MAX_PROVIDERS_PER_KEY:
                continue
            for peer_id, record in records.items():
                probe = self._probes.get(peer_id)
                begun_at = probe.begun_at if probe is not None else float("-inf")
                if begun_at < chosen_at:
                    chosen, chosen_at = PeerAddrs(peer_id, record.addrs), begun_at
        if chosen is not None:
            # What is known so far holds until the outcome is.
            has_failed = self._has_failed(chosen.peer_id)
            self._probes[chosen.peer_id] = _Probe(chosen.addrs, now, has_failed)
        return chosen

    def note_probed(self, provider: PeerAddrs, *, has_failed: bool) -> None:
        """Take in what came of probing `provider` at these addresses."""
        probe = self._probes.get(provider.peer_id)
        if probe is not None and probe.addrs == provider.addrs:
            probe.has_failed = has_failed

    def _has_failed(self, peer_id: str) -> bool:
        probe = self._probes.get(peer_id)
        return probe is not None and probe.has_failed

    def _make_room(self, key: bytes, newcomer: str) -> bool:
        """See that one more record of `key` fits, from the network `newcomer`; False: it cannot.

        In a full key who failed a probe goes, then who is in the most crowded network, the newcomer
        counted in; of equals the oldest. In a full store the oldest of its most crowded network.
        """
        records = self._records.get(key, {})
        if len(records) >= defaults.MAX_PROVIDERS_PER_KEY:
            crowd = Counter(record.network for record in records.values())
            crowd[newcomer] += 1

            def order(peer_id: str) -> tuple[bool, int, float]:
                record = records[peer_id]
                return not self._has_failed(peer_id), -crowd[record.network], record.expires_at

            self.remove(key, min(records, key=order))
        elif self.n_records >= defaults.MAX_PROVIDER_RECORDS:
            most = max(self._in_network.values(), key=len, default={})
            oldest = next(iter(most), None)
            if oldest is None:
                return False
            self.remove(*oldest)
        return True

    def _leave_network(self, network: str, key: bytes, peer_id: str) -> None:
        held = self._in_network[network]
        del held[key, peer_id]
        if not held:
            del self._in_network[network]
