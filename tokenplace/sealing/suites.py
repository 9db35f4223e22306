"""The one HPKE suite of version 1: ML-KEM-768+X25519, HKDF-SHA-256, ChaCha20-Poly1305. Start at
`PublicKey` and `PrivateKey`; `hpke_open` is where the library is asked.

Bytes in, bytes out; everything is done by `cryptography`. Used in both directions: the request is
sealed to a donor's key, the answer's secret to the requester's one-time reply key
(docs/protocol.md, sections 4 and 5).

Differs from the library: an unusable key and a ciphertext that does not open are both a
`ValueError`, so that callers have one thing to catch and say whose fault it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

# Code points of RFC 9180 and draft-ietf-hpke-pq; they stand in the request's header and in a
# donor's signed keys.
KEM_ID: Final = 0x647A
KDF_ID: Final = 0x0001
AEAD_ID: Final = 0x0003

# Code points that never will mean a KEM, KDF or AEAD: 0x0a0a, 0x1a1a, … 0xfafa, as RFC 8701
# reserves them for TLS. A donor advertises one, so that who chokes on what is unknown is found out
# early.
GREASE_IDS: Final = tuple(range(0x0A0A, 0x10000, 0x1010))

MLKEM_PUBLIC_BYTES: Final = 1184
PUBLIC_KEY_BYTES: Final = MLKEM_PUBLIC_BYTES + 32
ENC_BYTES: Final = 1088 + 32  # ML-KEM ciphertext and ephemeral X25519 key
TAG_BYTES: Final = 16

SUITE: Final = hpke.Suite(
    hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305
)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One entry of a donor's signed `keys` (docs/protocol.md, section 3). `id` is 0 to 255."""

    id: int
    kem: int
    kdf: int
    aead: int
    public: bytes

    @property
    def is_supported(self) -> bool:
        """Can a request be sealed to it here? Others in a donor's list are skipped."""
        suite = (self.kem, self.kdf, self.aead)
        return suite == (KEM_ID, KDF_ID, AEAD_ID) and len(self.public) == PUBLIC_KEY_BYTES


def best_key(keys: Sequence[PublicKey]) -> PublicKey | None:
    """The one to seal to: donors list the best first, and what is unknown here is skipped. None if
    nothing can be sealed to any of them; there is no falling back to something weaker.
    """
    return next((key for key in keys if key.is_supported), None)


class PrivateKey:
    """A private key of the hybrid KEM. It lives in memory only and is never written anywhere."""

    def __init__(
        self, mlkem_key: mlkem.MLKEM768PrivateKey, x25519_key: x25519.X25519PrivateKey
    ) -> None:
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public = (
            mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())

    def decrypt(self, ciphertext: bytes, info: bytes) -> bytes:
        """Open `enc ‖ ct` (HPKE base mode, single shot, no AAD). Raises `ValueError` when it does
        not open.
        """
        return hpke_open(SUITE, self._key, ciphertext, info)


def encrypt(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Seal to a public key: `enc(1120) ‖ ct`. Raises `ValueError` when the key cannot be used.

    public: ML-KEM-768 encapsulation key(1184) ‖ X25519(32).
    """
    key = hpke.MLKEM768X25519PublicKey(
        mlkem.MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
        x25519.X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
    )
    return SUITE.encrypt(plaintext, key, info=info)


def hpke_open(
    suite: hpke.Suite,
    key: hpke.MLKEM768X25519PrivateKey | x25519.X25519PrivateKey,
    ciphertext: bytes,
    info: bytes,
) -> bytes:
    """Open `enc ‖ ct` of any suite. Raises `ValueError` when it does not open."""
    try:
        return suite.decrypt(ciphertext, key, info=info)
    except InvalidTag:
        raise ValueError("the ciphertext does not open") from None
