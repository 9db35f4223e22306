"""Sealing one request to one donor (docs/protocol.md, section 4). Start at `seal_request` and
`open_request`.

Bytes in, bytes out: what the payload says is `peer/wire.py`'s business. Differs from OHTTP (RFC
9458) by a format byte in front of the header, by the donor's identity in `info`, and by padding:
sizes on the wire are powers of two.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from tokenplace import defaults
from tokenplace.errors import BadFormat, RemoteProtocolError, RequestTooBig
from tokenplace.sealing import suites
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.suites import PublicKey

_FORMAT: Final = 1
_HEADER: Final = struct.Struct(">BBHHH")  # format, key id, KEM, KDF, AEAD
_LENGTH: Final = struct.Struct(">I")
_LABEL: Final = b"tokenplace/request/1\0"


@dataclass(frozen=True, slots=True)
class OpenedRequest:
    """What a donor gets out of a sealed request.

    enc: the HPKE encapsulated key, unique to this request: what the replay cache remembers.
    digest: sha256 of the sealed bytes, which binds the answer to them.
    """

    payload: bytes
    enc: bytes
    digest: bytes


def request_digest(sealed: bytes) -> bytes:
    """What binds an answer to its request."""
    return hashlib.sha256(sealed).digest()


def seal_request(payload: bytes, key: PublicKey, donor_id: bytes, network: str) -> bytes:
    """Seal `payload` for the holder of `key`, acting as `donor_id` in `network`.

    donor_id: the donor's raw peer id bytes. Raises `RequestTooBig` over 4 MiB and
    `RemoteProtocolError` when the donor advertised a key that cannot be used.
    """
    header = _HEADER.pack(_FORMAT, key.id, key.kem, key.kdf, key.aead)
    plaintext = _pad(payload)
    if not key.is_supported:
        raise RemoteProtocolError("its encryption key is of an unknown kind")
    try:
        return header + suites.encrypt(plaintext, key.public, _info(network, donor_id, header))
    except ValueError:
        raise RemoteProtocolError("its encryption key cannot be used") from None


def open_request(
    sealed: bytes, keys: KeyRing, donor_id: bytes, network: str, now: float
) -> OpenedRequest:
    """Open what `seal_request` made. `now` is the key ring's.

    Raises `RequestTooBig`, `UnknownKey` or `BadFormat`.
    """
    if len(sealed) > defaults.MAX_REQUEST_FRAME_BYTES:
        raise RequestTooBig
    header, ciphertext = sealed[: _HEADER.size], sealed[_HEADER.size :]
    if len(header) < _HEADER.size or header[0] != _FORMAT:
        raise BadFormat("unknown request format")
    _, key_id, kem, kdf, aead = _HEADER.unpack(header)
    private_key = keys.private_key(key_id, now)
    # Every key here has the one suite of version 1, so any other would be weaker than the best
    # advertised (section 4). The X25519 half of a key would open what is sealed to it alone.
    if (kem, kdf, aead) != (suites.KEM_ID, suites.KDF_ID, suites.AEAD_ID):
        raise BadFormat("unknown cipher suite")
    try:
        plaintext = private_key.decrypt(ciphertext, _info(network, donor_id, header))
    except ValueError:
        raise BadFormat("it does not open") from None
    return OpenedRequest(_unpad(plaintext), ciphertext[: suites.ENC_BYTES], request_digest(sealed))


def padded_bytes(n_payload_bytes: int) -> int:
    """The plaintext's size around a payload of so many bytes: all that the wire shows of it."""
    length = _LENGTH.size + n_payload_bytes
    return max(defaults.MIN_PADDED_BYTES, 1 << (length - 1).bit_length())


def _info(network: str, donor_id: bytes, header: bytes) -> bytes:
    name = network.encode()
    return (
        b"".join(
            (_LABEL, struct.pack(">H", len(name)), name, struct.pack(">H", len(donor_id)), donor_id)
        )
        + header
    )


def _pad(payload: bytes) -> bytes:
    padded = padded_bytes(len(payload))
    if padded > defaults.MAX_PADDED_BYTES:
        raise RequestTooBig
    return (_LENGTH.pack(len(payload)) + payload).ljust(padded, b"\0")


def _unpad(plaintext: bytes) -> bytes:
    size = len(plaintext)
    if size < defaults.MIN_PADDED_BYTES or size & (size - 1):
        raise BadFormat("wrong padding")
    (length,) = _LENGTH.unpack_from(plaintext)
    end = _LENGTH.size + length
    if end > size or plaintext.count(0, end) != size - end:
        raise BadFormat("wrong padding")
    return plaintext[_LENGTH.size : end]
