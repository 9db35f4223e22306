"""What this peer knows about donors. Pure: `now` is in unix seconds. Start at `DirectoryCache`.

Only verified statements get in. Who handed them over does not matter for keys and offer; load
figures and proof of life are taken from the donor alone (docs/protocol.md, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from tokenplace import defaults
from tokenplace.dht.addresses import usable_addrs
from tokenplace.dht.directory_wire import Entry
from tokenplace.dht.floors import Floors, digest_of
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.adverts import (
    DonorState,
    Keys,
    Kind,
    Live,
    Load,
    Offer,
    signer_of,
    verify_keys,
    verify_live,
    verify_offer,
)

AdvertT = TypeVar("AdvertT", Keys, Offer, Live)


@dataclass(frozen=True, slots=True)
class DonorRecord:
    """The best that is known about one donor.

    addrs: where to dial it, those it signed itself first. live: gives the epoch however old it is.
    live_received_at: unix seconds when `live` came from the donor itself; None: it came from
    others, so its load figures mean nothing. rtt_s: one question and answer over an open stream;
    None if never measured.
    """

    peer_id: str
    addrs: tuple[str, ...]
    keys: Keys
    offer: Offer
    live: Live | None
    live_received_at: float | None
    rtt_s: float | None
    keys_envelope: bytes
    offer_envelope: bytes
    live_envelope: bytes | None

    def load(self, now: float) -> Load | None:
        """The donor's load, if it said so itself and not too long ago."""
        if self.live is None or self.live_received_at is None:
            return None
        age_s = now - self.live_received_at
        return self.live.load if 0 <= age_s <= defaults.LIVE_LIFETIME_S else None

    def is_living(self, now: float) -> bool:
        """Are its keys and its offer still valid?"""
        return now <= min(self.keys.expires_at, self.offer.expires_at) + defaults.CLOCK_SKEW_S

    @property
    def is_leaving(self) -> bool:
        """Did it last say that it stops?"""
        return self.live is not None and self.live.load.state is DonorState.FINISHING

    @property
    def entry(self) -> Entry:
        """What a directory hands on."""
        return Entry(self.keys_envelope, self.offer_envelope, self.live_envelope)


@dataclass(frozen=True, slots=True)
class DonorStatus:
    """One known donor, for a person. `load` is None when unknown or too old; ages in seconds."""

    peer_id: str
    models: tuple[str, ...]
    rtt_s: float | None
    load: Load | None
    live_age_s: float | None
    is_failed: bool


@dataclass(slots=True)
class _Known:
    """One donor, and what happened with it."""

    record: DonorRecord
    heard_at: float
    proven_at: float | None = None
    n_failures: int = 0
    failed_at: float = 0.0

    @property
    def worth(self) -> tuple[bool, float]:
        """What to keep when there is no room for all: higher is better."""
        return self.proven_at is not None, self.heard_at

    def retry_at(self) -> float:
        doubled = defaults.DONOR_RETRY_S * 2.0 ** min(self.n_failures - 1, 10)
        return self.failed_at + min(doubled, defaults.DONOR_RETRY_MAX_S)


class DirectoryCache:
    """Donors by peer id, at most `max_donors`.

    When full, those that only others vouch for go first, and of them the oldest.
    """

    def __init__(
        self,
        network: str,
        *,
        allow_private: bool,
        own_peers: frozenset[str] = frozenset(),
        max_donors: int = defaults.DIRECTORY_MAX_DONORS,
    ) -> None:
        """own_peers: peers of this machine, never listed. allow_private: see `usable_addrs`."""
        self._network = network
        self._allow_private = allow_private
        self._own_peers = own_peers
        self._max_donors = max_donors
        self._known: dict[str, _Known] = {}
        self._floors = Floors()

    # ------------------------------------------------------------ what comes in

    def add(
        self,
        entry: Entry,
        *,
        answered_by: str,
        now: float,
        addrs: Iterable[str] = (),
        rtt_s: float | None = None,
    ) -> DonorRecord | None:
        """Take in what the peer `answered_by` said of a donor, maybe of itself; the record then.

        addrs: where the donor was found, besides what it signed. rtt_s: measured while asking.
        None for an own peer. Raises `RemoteProtocolError` if anything in `entry` is wrong.
        """
        peer_id = signer_of(entry.keys)
        if peer_id in self._own_peers:
            return None
        self._floors.check_ban(peer_id, now)
        is_own_word = peer_id == answered_by
        known = self._known.get(peer_id)
        old = known.record if known is not None else None
        keys = self._take_keys(old, peer_id, entry.keys, is_own_word, now)
        offer = self._take_offer(old, peer_id, entry.offer, is_own_word, now)
        _check_same_state(*keys, offer[0])
        record = DonorRecord(
            peer_id,
            addrs=self.usable_addrs(
                peer_id, (*offer[0].addrs, *addrs, *(old.addrs if old else ()))
            ),
            keys=keys[0],
            offer=offer[0],
            live=old.live if old else None,
            live_received_at=old.live_received_at if old else None,
            rtt_s=rtt_s if is_own_word and rtt_s is not None else (old.rtt_s if old else None),
            keys_envelope=keys[1],
            offer_envelope=offer[1],
            live_envelope=old.live_envelope if old else None,
        )
        if entry.live is not None:
            record = self._with_live(record, entry.live, is_own_word, now)
        self._keep(record, is_own_word, now)
        return record

    def renew(
        self, peer_id: str, keys: bytes | None, live: bytes | None, *, now: float
    ) -> DonorRecord | None:
        """Take in what the donor itself sent with a refusal; None if this donor is not known.

        Raises `RemoteProtocolError` if the statements are wrong.
        """
        known = self._known.get(peer_id)
        if known is None:
            return None
        record = known.record
        if keys is not None:
            newest = self._take_keys(record, peer_id, keys, True, now)
            record = replace(record, keys=newest[0], keys_envelope=newest[1])
        if live is not None:
            record = self._with_live(record, live, True, now)
        self._keep(record, True, now)
        return record

    def mark_failed(self, peer_id: str, now: float) -> None:
        """The donor did not answer: it is not looked up again until it answers something."""
        known = self._known.get(peer_id)
        if known is not None:
            known.n_failures += 1
            known.failed_at = now

    def forget(self, peer_id: str) -> None:
        """Drop the donor's record; what protects against old statements stays."""
        self._known.pop(peer_id, None)

    def _take_keys(
        self, old: DonorRecord | None, peer_id: str, envelope: bytes, is_own_word: bool, now: float
    ) -> tuple[Keys, bytes]:
        keys = verify_keys(envelope, peer_id=peer_id, network=self._network, now=now)
        try:
            self._floors.check_keys(keys, envelope, now)
        except RemoteProtocolError:
            self.forget(peer_id)
            raise
        last = (old.keys, old.keys_envelope) if old is not None else None
        floor_seq = self._floors.seq(peer_id, Kind.KEYS, now)
        return _newest(floor_seq, Kind.KEYS, (keys, envelope), last, is_own_word)

    def _take_offer(
        self, old: DonorRecord | None, peer_id: str, envelope: bytes, is_own_word: bool, now: float
    ) -> tuple[Offer, bytes]:
        offer = verify_offer(envelope, peer_id=peer_id, network=self._network, now=now)
        last = (old.offer, old.offer_envelope) if old is not None else None
        floor_seq = self._floors.seq(peer_id, Kind.OFFER, now)
        return _newest(floor_seq, Kind.OFFER, (offer, envelope), last, is_own_word)

    def _with_live(
        self, record: DonorRecord, envelope: bytes, is_own_word: bool, now: float
    ) -> DonorRecord:
        """`record` with this live, if it is worth more than the one it has."""
        floor_seq = self._floors.seq(record.peer_id, Kind.LIVE, now)
        try:
            live = verify_live(
                envelope,
                peer_id=record.peer_id,
                network=self._network,
                now=now,
                floor_seq=floor_seq,
                from_donor=is_own_word,
            )
        except RemoteProtocolError:
            if is_own_word:
                raise
            return record  # handing on an old one is no fault; keys and offer are good without
        if not is_own_word and record.load(now) is not None:
            return record
        received_at = now if is_own_word else None
        return replace(record, live=live, live_received_at=received_at, live_envelope=envelope)

    def is_own(self, peer_id: str) -> bool:
        """Is it a peer of this machine's own?"""
        return peer_id in self._own_peers

    def usable_addrs(self, peer_id: str, addrs: Iterable[str]) -> tuple[str, ...]:
        """Those of a stranger's addresses that may be dialled from here."""
        return usable_addrs(addrs, peer_id, allow_private=self._allow_private)

    def _keep(self, record: DonorRecord, is_own_word: bool, now: float) -> None:
        known = self._known.setdefault(record.peer_id, _Known(record, now))
        known.record, known.heard_at = record, now
        if is_own_word:
            known.proven_at = now
            # Who leaves answers still, but takes nothing new: asked again when it may be back.
            known.n_failures, known.failed_at = int(record.is_leaving), now
        self._floors.raise_to(record.keys, Kind.KEYS, record.keys_envelope, now)
        self._floors.raise_to(record.offer, Kind.OFFER, record.offer_envelope, now)
        if record.live is not None and record.live_envelope is not None:
            self._floors.raise_to(record.live, Kind.LIVE, record.live_envelope, now)
        if len(self._known) > self._max_donors:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        self._known = {
            id: known for id, known in self._known.items() if known.record.is_living(now)
        }
        while len(self._known) > self._max_donors:
            del self._known[min(self._known, key=lambda id: self._known[id].worth)]

    # ------------------------------------------------------------ what is known

    def get(self, peer_id: str, now: float) -> DonorRecord | None:
        """The living record of one donor, whether it failed or not."""
        known = self._known.get(peer_id)
        if known is None or not known.record.is_living(now):
            return None
        return known.record

    def donors(self, now: float) -> list[DonorRecord]:
        """Donors that live, offer something, and have not failed since they last answered."""
        return [
            known.record
            for known in self._known.values()
            if not known.n_failures and known.record.offer.models and known.record.is_living(now)
        ]

    def met(self, now: float) -> list[DonorRecord]:
        """Living donors whose own word was heard, whether they failed since or not."""
        return [
            known.record
            for known in self._known.values()
            if known.record.live_received_at is not None and known.record.is_living(now)
        ]

    def failed(self, now: float, *, is_due_only: bool) -> list[DonorRecord]:
        """Living donors that failed; with `is_due_only` those that may be tried again by now."""
        return [
            known.record
            for known in self._known.values()
            if known.n_failures
            and known.record.is_living(now)
            and (not is_due_only or now >= known.retry_at())
        ]

    def status(self, now: float) -> list[DonorStatus]:
        """Every living donor, those that failed too, for a person."""
        return [
            _status(known.record, bool(known.n_failures), now)
            for known in self._known.values()
            if known.record.is_living(now)
        ]


def _newest(
    floor_seq: int,
    kind: Kind,
    new: tuple[AdvertT, bytes],
    old: tuple[AdvertT, bytes] | None,
    is_own_word: bool,
) -> tuple[AdvertT, bytes]:
    """`new`; if it is older than the floor `old`, for others may lag behind, or an error."""
    if new[0].seq >= floor_seq:
        return new
    if old is None or is_own_word:
        raise RemoteProtocolError(f"{kind}: older than one already seen")
    return old


def _check_same_state(keys: Keys, keys_envelope: bytes, offer: Offer) -> None:
    # Keys made after the offer are news, sent with a refusal, say; other keys made before it are
    # leftovers.
    if offer.keys_hash != digest_of(keys_envelope) and keys.seq < offer.seq:
        raise RemoteProtocolError("keys: not those that the offer names")


def _status(record: DonorRecord, is_failed: bool, now: float) -> DonorStatus:
    received_at = record.live_received_at
    return DonorStatus(
        record.peer_id,
        tuple(model.name for model in record.offer.models),
        record.rtt_s,
        record.load(now),
        None if received_at is None else now - received_at,
        is_failed,
    )
