"""What is remembered of donors longer than their records: the highest numbers seen, and who signed
two different keys under one. Pure. Start at `Floors`.

Without it an old statement could come back once a donor was crowded out of the cache, and so could
a donor that tells different peers different keys (docs/protocol.md, section 3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.adverts import Advert, Keys, Kind


@dataclass(frozen=True, slots=True)
class _Floor:
    """The highest sequence number seen of one kind, until the statement that set it ends."""

    seq: int
    until: float
    digest: bytes


@dataclass(slots=True)
class _Memory:
    """Of one peer."""

    floors: dict[Kind, _Floor] = field(default_factory=dict)
    banned_until: float = 0.0


class Floors:
    """By peer id, for at most `MAX_FLOORS` peers; `now` is in unix seconds.

    When full, those go first of whom there was nothing new for longest, and the banned last.
    """

    def __init__(self) -> None:
        self._memories: dict[str, _Memory] = {}

    def seq(self, peer_id: str, kind: Kind, now: float) -> int:
        """The number below which a statement is an old one; -1 if any will do."""
        memory = self._memories.get(peer_id)
        floor = memory.floors.get(kind) if memory is not None else None
        return floor.seq if floor is not None and now <= floor.until else -1

    def raise_to(self, advert: Advert, kind: Kind, envelope: bytes, now: float) -> None:
        """Remember `advert` as the newest. A `live` may have a wrong clock: it is aged from now."""
        if advert.seq <= self.seq(advert.peer_id, kind, now):
            return
        until: float = advert.expires_at + defaults.CLOCK_SKEW_S
        if kind is Kind.LIVE:
            until = now + defaults.LIVE_LIFETIME_S
        memory = self._memories.pop(advert.peer_id, None) or _Memory()
        memory.floors[kind] = _Floor(advert.seq, until, digest_of(envelope))
        self._memories[advert.peer_id] = memory
        if len(self._memories) > defaults.MAX_FLOORS:
            free = (id for id, memory in self._memories.items() if now > memory.banned_until)
            del self._memories[next(free, advert.peer_id)]

    def check_keys(self, keys: Keys, envelope: bytes, now: float) -> None:
        """Ban the signer of other keys than those seen under the same number.

        Raises `RemoteProtocolError`, for whoever was banned before as well.
        """
        self.check_ban(keys.peer_id, now)
        memory = self._memories.get(keys.peer_id, _Memory())
        floor = memory.floors.get(Kind.KEYS)
        if floor is not None and floor.seq == keys.seq and floor.digest != digest_of(envelope):
            memory.banned_until = max(floor.until, keys.expires_at + defaults.CLOCK_SKEW_S)
            self.check_ban(keys.peer_id, now)

    def check_ban(self, peer_id: str, now: float) -> None:
        """Raises `RemoteProtocolError` if this peer signed two different keys under one number."""
        memory = self._memories.get(peer_id)
        if memory is not None and now <= memory.banned_until:
            raise RemoteProtocolError(f"{peer_id} signed two different keys under one number")

    def __len__(self) -> int:
        return len(self._memories)


def digest_of(envelope: bytes) -> bytes:
    """By which an envelope is told from another: its sha256."""
    return hashlib.sha256(envelope).digest()
