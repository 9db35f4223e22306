"""The RSA key that an app wants its answer sealed to. Start at `parse_client_key`. Pure."""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tokenplace.defaults import (
    API_CLIENT_KEY_MAX_BITS,
    API_CLIENT_KEY_MIN_BITS,
    API_MAX_CLIENT_KEY_CHARS,
)

_PEM: Final = re.compile(
    rb"\s*-----BEGIN (RSA )?PUBLIC KEY-----(.*)-----END (RSA )?PUBLIC KEY-----\s*", re.DOTALL
)
# Near the start of a key in DER: an object identifier of PKCS #1 (RFC 8017, appendix A); or, in the
# bare key, the INTEGER that it begins with.
PKCS1_OID: Final = bytes.fromhex("2a864886f70d0101")
DER_HEAD_BYTES: Final = 32
DER_FIRST_INSIDE: Final = slice(4, 5)
DER_INTEGER: Final = b"\x02"
# Usual are 3 and 65537. A long one makes a public key as slow as a private one.
MAX_EXPONENT: Final = (1 << 32) - 1


def parse_client_key(value: object) -> RSAPublicKey:
    """The key in any form that apps send: base64 of PEM, PEM itself, base64 of DER.

    Raises `ValueError` for anything but an RSA key of a sane size and exponent.
    """
    if not isinstance(value, str) or len(value) > API_MAX_CLIENT_KEY_CHARS:
        raise ValueError("no key")
    data = value.encode("ascii")
    if _PEM.fullmatch(data) is None:
        data = _decode(data)
    if pem := _PEM.fullmatch(data):
        data = _decode(pem[2])
    # Others are not even parsed: for some the library has a warning, which nobody here should read.
    if PKCS1_OID not in data[:DER_HEAD_BYTES] and data[DER_FIRST_INSIDE] != DER_INTEGER:
        raise ValueError("not an RSA key")
    try:
        key = load_der_public_key(data)
    except UnsupportedAlgorithm:
        raise ValueError("not an RSA key") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key")
    if not API_CLIENT_KEY_MIN_BITS <= key.key_size <= API_CLIENT_KEY_MAX_BITS:
        raise ValueError("too short or too long")
    if key.public_numbers().e > MAX_EXPONENT:
        raise ValueError("its exponent is too large")
    return key


def _decode(text: bytes) -> bytes:
    """Base64, whose lines may be wrapped."""
    return b64decode(b"".join(text.split()), validate=True)
