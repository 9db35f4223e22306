"""The private keys that a donor holds. Start at `KeyRing`.

They live in memory only: a restart makes new ones, and a request sealed to an old one gets
`unknown_key` with the new keys. A ring may hold several keys under different ids, best first, so an
old one can stay valid while a new one is announced.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from tokenplace.errors import UnknownKey
from tokenplace.sealing.suites import AEAD_ID, KDF_ID, KEM_ID, PrivateKey, PublicKey


class KeyRing:
    """A donor's HPKE private keys by key id, best first."""

    def __init__(self, keys: Mapping[int, PrivateKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def generate(cls) -> KeyRing:
        """One new key. Its id is random, so after a restart a request to the old key is told
        `unknown_key`.
        """
        return cls({secrets.randbelow(256): PrivateKey.generate()})

    def public_keys(self) -> tuple[PublicKey, ...]:
        """What to advertise, best first."""
        return tuple(
            PublicKey(key_id, KEM_ID, KDF_ID, AEAD_ID, key.public)
            for key_id, key in self._keys.items()
        )

    def private_key(self, key_id: int) -> PrivateKey:
        """Raises `UnknownKey`."""
        try:
            return self._keys[key_id]
        except KeyError:
            raise UnknownKey from None
