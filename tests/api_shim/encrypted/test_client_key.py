"""Keys that apps show, in every form and of every kind."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization import PublicFormat as Form
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.encrypted.client import base64_of, key_of, pem_of
from tokenplace.api_shim.encrypted.client_key import PKCS1_OID, parse_client_key
from tokenplace.defaults import API_MAX_CLIENT_KEY_CHARS

KEY = key_of().public_key()
PEM = pem_of(key_of())
DER = KEY.public_bytes(Encoding.DER, Form.SubjectPublicKeyInfo)
PKCS1_PEM = KEY.public_bytes(Encoding.PEM, Form.PKCS1)


@pytest.mark.parametrize(
    "text",
    [
        base64_of(PEM),
        base64_of(PEM.rstrip()),
        base64.encodebytes(PEM).decode(),
        PEM.decode(),
        PEM.decode().rstrip(),
        PEM.decode().replace("\n", "\r\n"),
        PEM.decode().replace("\n", ""),
        base64_of(DER),
        PKCS1_PEM.decode(),
        base64_of(PKCS1_PEM),
        base64_of(KEY.public_bytes(Encoding.DER, Form.PKCS1)),
    ],
    ids=[
        *("base64 of PEM", "base64 of PEM without the last newline", "base64 in lines"),
        *("PEM", "PEM without the last newline", "PEM of Windows", "PEM in one line"),
        *("base64 of DER", "PKCS #1", "base64 of PKCS #1", "base64 of PKCS #1 in DER"),
    ],
)
def test_every_form_of_a_key(text: str) -> None:
    assert parse_client_key(text).public_numbers() == KEY.public_numbers()


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 3), (3072, 65537), (4096, 65537)])
def test_sizes_and_exponents_that_are_taken(bits: int, exponent: int) -> None:
    # Not drawn: 4096 bits take seconds. No one can open what is sealed to it, nor has to.
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) | 1).public_key()
    text = base64_of(key.public_bytes(Encoding.PEM, Form.SubjectPublicKeyInfo))
    assert parse_client_key(text).key_size == bits


def spki(bits: int, exponent: int) -> bytes:
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) | 1).public_key()
    return key.public_bytes(Encoding.DER, Form.SubjectPublicKeyInfo)


OTHER_KINDS: dict[str, PublicKeyTypes] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()).public_key(),
    "Ed25519": ed25519.Ed25519PrivateKey.generate().public_key(),
    "DSA": dsa.DSAPublicNumbers(
        4, dsa.DSAParameterNumbers((1 << 2047) | 1, (1 << 255) | 1, 4)
    ).public_key(),
}
# Of 512 bits. The library warns of it when it loads it, which a test would take for an error.
DIFFIE_HELLMAN = (
    "MIGbMFMGCSqGSIb3DQEDATBGAkEA9KaSJN0YDI/mYSW59dbOb+uMfUBX2UvN6Is6T6yPe4RGvRGh7hAb/JOI96QN+s+v"
    "KXI9WxCd86pYgrWRjojtPwIBAgNEAAJBAIrnGVHXlMsclkjcHGNDOePAI+OZBpGJtT8+bZZ9fXZ+AhGrKuFj89Sdr8t9"
    "k6Oc+JdqH9/9q/cbV1E/rDrz/Ks="
)
PRIVATE = key_of().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
REFUSED = {
    **{
        name: key.public_bytes(Encoding.DER, Form.SubjectPublicKeyInfo)
        for name, key in OTHER_KINDS.items()
    },
    "Diffie-Hellman": base64.b64decode(DIFFIE_HELLMAN),
    "an unknown curve": base64.b64decode(
        # secp160r1
        "MD4wEAYHKoZIzj0CAQYFK4EEAAgDKgAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
    ),
    "X25519 that looks like RSA": bytes.fromhex("302a300506032b656e032100")
    + PKCS1_OID.ljust(32, b"\1"),
    "a signature's algorithm": DER.replace(PKCS1_OID + b"\1", PKCS1_OID + b"\x0b"),
    "1024 bits": spki(1024, 65537),
    "2047 bits": spki(2047, 65537),
    "4097 bits": spki(4097, 65537),
    "an exponent of 33 bits": spki(2048, (1 << 32) + 1),
    "private": PRIVATE,
    "empty": b"",
    "a sequence of nothing": b"0\x82\0\0\2",
    "cut": DER[:-1],
    "PEM without a key": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_other_keys_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its text is for nobody
        parse_client_key(base64_of(data))


@pytest.mark.parametrize(
    "value",
    [None, True, 7, [], {}, b"", PRIVATE.decode(), "ä", "A", base64_of(PEM) + "!"],
    ids=lambda value: str(value)[:8],
)
def test_what_is_no_key_at_all(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_client_key(value)


def test_a_text_that_is_too_long_is_not_read() -> None:
    padded = base64_of(PEM).ljust(API_MAX_CLIENT_KEY_CHARS)
    assert parse_client_key(padded).key_size == 2048
    with pytest.raises(ValueError, match="no key"):
        parse_client_key(padded + " ")


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_a_damaged_key_is_a_key_or_a_value_error(place: int, flip: int) -> None:
    damaged = DER[:place] + bytes([DER[place] ^ flip]) + DER[place + 1 :]
    try:
        key = parse_client_key(base64_of(damaged))
    except ValueError:
        return
    assert 2048 <= key.key_size <= 4096
    assert key.public_numbers().e < 1 << 32


@given(st.text() | st.binary().map(base64_of))
def test_any_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_client_key(text)
