"""Which DHT keys stand for what (docs/protocol.md, section 2). Start at `dht_key`.

Pure: names and times in, keys out. Keys change with the UTC day and are split over shards, so that
no 20 peers carry a popular model for ever. Neither defends against forged records: those are hints,
the signed objects fetched afterwards are what counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Final

from tokenplace import defaults

PREFIX: Final = b"tokenplace/1"


class Kind(StrEnum):
    """What a key leads to: any donors, donors of a model's name, donors of an artifact."""

    DONORS = "donors"
    MODEL = "model"
    ARTIFACT = "artifact"


N_SHARDS: Final = {
    Kind.DONORS: defaults.DONORS_SHARDS,
    Kind.MODEL: defaults.MODEL_SHARDS,
    Kind.ARTIFACT: defaults.MODEL_SHARDS,
}


def dht_key(network: str, kind: Kind, value: str, day: date, shard: int) -> bytes:
    """The 32-byte key of one shard on one UTC day. `value` is empty for `Kind.DONORS`."""
    fields = b"".join(_field(text) for text in (network, kind.value, value, day.isoformat()))
    return hashlib.sha256(PREFIX + fields + shard.to_bytes(2, "big")).digest()


def shard_of(peer_id_bytes: bytes, n_shards: int) -> int:
    """The shard, of `n_shards`, that a donor announces itself in."""
    return int.from_bytes(hashlib.sha256(peer_id_bytes).digest()[:2], "big") % n_shards


def keys_to_provide(
    network: str, peer_id_bytes: bytes, names: Iterable[str], artifacts: Iterable[str], now: float
) -> list[bytes]:
    """All keys a donor announces itself under at `now` (unix seconds), without repetitions.

    Today's, and from `ANNOUNCE_AHEAD_S` before midnight UTC tomorrow's too. names, artifacts: of
    what it offers.
    """
    today = _day(now)
    days = {today, _day(now + defaults.ANNOUNCE_AHEAD_S)}
    subjects = [
        (Kind.DONORS, ""),
        *((Kind.MODEL, name) for name in names),
        *((Kind.ARTIFACT, artifact) for artifact in artifacts),
    ]
    keys = (
        dht_key(network, kind, value, day, shard_of(peer_id_bytes, N_SHARDS[kind]))
        for day in sorted(days)
        for kind, value in subjects
    )
    return list(dict.fromkeys(keys))


def keys_to_search(network: str, kind: Kind, value: str, now: float) -> list[bytes]:
    """The keys of every shard at `now` (unix seconds): all of them together hold every donor."""
    day = _day(now)
    return [dht_key(network, kind, value, day, shard) for shard in range(N_SHARDS[kind])]


def _day(now: float) -> date:
    return datetime.fromtimestamp(now, UTC).date()


def _field(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data
