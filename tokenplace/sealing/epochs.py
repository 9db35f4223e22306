"""Epochs: how a donor tells a fresh request from a replay without anybody's clock
(docs/protocol.md, section 4).

Start at `Epochs`. Every `EPOCH_S` the donor draws 8 random bytes and says them in its signed
`live`; a request names one. Only the current epoch and the `EPOCHS_KEPT` before it are accepted, so
the replay cache needs to remember no longer than that.

Differs from a window of timestamps (RFC 9458, section 6.5): the requester's clock is not on the
wire, and need not be right.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from tokenplace import defaults
from tokenplace.errors import DonorBusy, StaleEpoch

EPOCH_BYTES: Final = 8


@dataclass(slots=True)
class _Epoch:
    made_at: float
    seen: set[bytes] = field(default_factory=set)


class Epochs:
    """The living epochs and the requests seen under each. `now` is in seconds of any steady
    clock.
    """

    def __init__(self) -> None:
        self._epochs: dict[bytes, _Epoch] = {}  # oldest first

    def current(self, now: float) -> bytes:
        """The epoch to advertise, drawn anew when the last is `EPOCH_S` old."""
        self._forget(now)
        newest = next(reversed(self._epochs), None)
        if newest is not None and now < self._epochs[newest].made_at + defaults.EPOCH_S:
            return newest
        epoch = secrets.token_bytes(EPOCH_BYTES)
        self._epochs[epoch] = _Epoch(made_at=now)
        return epoch

    def accept(self, epoch: bytes, enc: bytes, now: float) -> None:
        """Let a request through, once. Call it only for a request that opened.

        Raises `StaleEpoch` for an epoch that is not alive and for an `enc` seen before, `DonorBusy`
        when no more can be
        remembered: forgetting one would let it be replayed.
        """
        self._forget(now)
        living = self._epochs.get(epoch)
        if living is None:
            raise StaleEpoch
        mark = hashlib.sha256(enc).digest()
        if mark in living.seen:
            raise StaleEpoch
        if len(living.seen) >= defaults.MAX_SEEN_PER_EPOCH:
            raise DonorBusy(retry_after_s=defaults.EPOCH_S)
        living.seen.add(mark)

    def _forget(self, now: float) -> None:
        lifetime = (1 + defaults.EPOCHS_KEPT) * defaults.EPOCH_S
        for epoch in [e for e, it in self._epochs.items() if now >= it.made_at + lifetime]:
            del self._epochs[epoch]
