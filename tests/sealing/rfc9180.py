"""The key schedule of HPKE (RFC 9180) for DHKEM(X25519), HKDF-SHA-256 and AES-128-GCM, as far as
the examples of OHTTP need what `cryptography` does not hand out: key, base nonce, exported secrets.

Only glue for `test_ohttp.py`: what is tested there is the product's.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_KEM_ID = b"KEM" + struct.pack(">H", 0x20)
_SUITE_ID = b"HPKE" + struct.pack(">HHH", 0x20, 1, 1)


def _extract(suite_id: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite_id + label + ikm, "sha256")


def _expand(suite_id: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = struct.pack(">H", length) + b"HPKE-v1" + suite_id + label + info
    return HKDFExpand(hashes.SHA256(), length, labeled).derive(prk)


@dataclass(frozen=True)
class Context:
    """The recipient's context in base mode."""

    key: bytes
    base_nonce: bytes
    exporter_secret: bytes

    def export(self, label: bytes, length: int) -> bytes:
        return _expand(_SUITE_ID, self.exporter_secret, b"sec", label, length)


def receive(private: X25519PrivateKey, enc: bytes, info: bytes) -> Context:
    """Sections 4.1 (decapsulation) and 5.1 (key schedule)."""
    kem_context = enc + private.public_key().public_bytes_raw()
    dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = _expand(
        _KEM_ID, _extract(_KEM_ID, b"", b"eae_prk", dh), b"shared_secret", kem_context, 32
    )
    context = (
        b"\0"
        + _extract(_SUITE_ID, b"", b"psk_id_hash", b"")
        + _extract(_SUITE_ID, b"", b"info_hash", info)
    )
    secret = _extract(_SUITE_ID, shared, b"secret", b"")
    return Context(
        _expand(_SUITE_ID, secret, b"key", context, 16),
        _expand(_SUITE_ID, secret, b"base_nonce", context, 12),
        _expand(_SUITE_ID, secret, b"exp", context, 32),
    )
