"""The private keys that a donor holds, and how they follow one another. Start at `KeyRing`.

They live in memory only: a restart makes new ones, and a request sealed to an old one gets
`unknown_key` with the new keys. A key is the one advertised for a day; for another day it still
opens requests, because statements that name it are still about; then it is gone, and what was
recorded on the way can be opened by nobody (docs/protocol.md, section 3).

Differs from what one might expect of a key's id: it is a counter, not a name. Used ids do not
return before 128 days have passed, when nobody remembers what they meant.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tokenplace import defaults
from tokenplace.errors import UnknownKey
from tokenplace.sealing.suites import (
    AEAD_ID,
    GREASE_IDS,
    KDF_ID,
    KEM_ID,
    PrivateKey,
    PublicKey,
)

_N_IDS: Final = 256


@dataclass(frozen=True, slots=True)
class AdvertisedKeys:
    """What a donor's signed `keys` say now.

    lifetime_s: for so long a statement that is signed now may be valid. Whoever believes it for
    that long, and by a clock that is `CLOCK_SKEW_S` late, still finds the private halves here.
    """

    keys: tuple[PublicKey, ...]
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class _Held:
    private: PrivateKey
    made_at: float


class KeyRing:
    """A donor's HPKE private keys by key id. `now` is in seconds of an `ElapsedClock`."""

    def __init__(
        self,
        generate: Callable[[], PrivateKey] = PrivateKey.generate,
        *,
        first_id: int | None = None,
    ) -> None:
        """first_id: of the first key. Random if not given, so that after a restart a request to the
        old key is almost always told `unknown_key`.
        """
        self._generate = generate
        self._next_id = secrets.randbelow(_N_IDS) if first_id is None else first_id
        self._held: dict[int, _Held] = {}  # oldest first
        self._listed: tuple[PublicKey, ...] = ()

    def advertised(self, now: float) -> AdvertisedKeys:
        """What to advertise. A new key is made when the newest has been advertised for long
        enough.
        """
        self._forget(now)
        newest = next(reversed(self._held.values()), None)
        if newest is None or now >= newest.made_at + defaults.ROTATE_KEY_S:
            newest = self._make(now)
        left_s = newest.made_at + defaults.PRIVATE_KEY_LIFETIME_S - now
        lifetime_s = int(left_s - defaults.CLOCK_SKEW_S)
        return AdvertisedKeys(self._listed, min(lifetime_s, defaults.KEYS_LIFETIME_S))

    def private_key(self, key_id: int, now: float) -> PrivateKey:
        """Raises `UnknownKey` for an id that names none, or one that is no more."""
        self._forget(now)
        try:
            return self._held[key_id].private
        except KeyError:
            raise UnknownKey from None

    def _make(self, now: float) -> _Held:
        key_id = self._take_id()
        held = self._held[key_id] = _Held(self._generate(), now)
        real = PublicKey(key_id, KEM_ID, KDF_ID, AEAD_ID, held.private.public)
        grease = _grease_key(self._take_id())
        self._listed = (real, grease) if secrets.randbelow(2) else (grease, real)
        return held

    def _take_id(self) -> int:
        taken = self._next_id
        self._next_id = (taken + 1) % _N_IDS
        return taken

    def _forget(self, now: float) -> None:
        lifetime_s = defaults.PRIVATE_KEY_LIFETIME_S
        for key_id in [i for i, key in self._held.items() if now >= key.made_at + lifetime_s]:
            del self._held[key_id]


def _grease_key(key_id: int) -> PublicKey:
    """An entry that means nothing: who takes a list of keys with unknown suites in it today will
    take the next suite too (RFC 8701's idea).
    """
    kem, kdf, aead = (secrets.choice(GREASE_IDS) for _ in range(3))
    size = 1 + secrets.randbelow(defaults.MAX_GREASE_KEY_BYTES)
    return PublicKey(key_id, kem, kdf, aead, secrets.token_bytes(size))
