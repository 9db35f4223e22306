"""Opens sealed requests and seals answers. Start at `open_sealed` and `SealedAnswer`.

Pure but for the dice. AES-256-CBC with PKCS#7; its key K travels as RSA of *the base64 text of K*,
not of its bytes. The format has no authentication, so whoever may send changed copies of a request
could learn about its plaintext from the way in which they fail. Therefore all failures are one
error, and every step is taken whatever the steps before it gave: with a dummy, if need be.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from typing import Any, Final

from cryptography.hazmat.primitives import padding as block_padding
from cryptography.hazmat.primitives.asymmetric.padding import (
    MGF1,
    OAEP,
    AsymmetricPadding,
    PKCS1v15,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256

from tokenplace.api_shim.body import parse_json
from tokenplace.api_shim.form import Json
from tokenplace.api_shim.refusal import Refused

KEY_BYTES: Final = 32
KEY_TEXT_BYTES: Final = 44  # base64 of KEY_BYTES
BLOCK_BYTES: Final = 16
BLOCK_BITS: Final = 8 * BLOCK_BYTES
SESSION_BYTES: Final = 16
PARTS: Final = ("cipherkey", "iv", "ciphertext")
OAEP_SHA256: Final = OAEP(MGF1(SHA256()), SHA256(), None)  # Python's clients
PKCS1_V15: Final = PKCS1v15()  # JavaScript's
# Where there is nothing to go on with. Nothing that is opened with them is ever handed out.
DUMMY_KEY: Final = bytes(KEY_BYTES)
DUMMY_BLOCK: Final = bytes(BLOCK_BYTES)

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class NotOpened(Exception):
    """What was sent cannot be opened, or is not what it should be. Never says more than that."""


def open_sealed(private_key: RSAPrivateKey, sealed: object) -> Any:
    """The JSON value inside `{"ciphertext", "cipherkey", "iv"}`; raises `NotOpened`."""
    parts = _parts_of(sealed, private_key)
    wrapped, iv, ciphertext = parts or (_dummy_wrapped(private_key), DUMMY_BLOCK, DUMMY_BLOCK)
    key = _unwrap(private_key, wrapped)
    padded = _decrypt(key or DUMMY_KEY, iv, ciphertext)
    plaintext = _unpad(padded)
    is_json, value = _parse(padded if plaintext is None else plaintext)
    if parts is None or key is None or plaintext is None or not is_json:
        raise NotOpened
    return value


def _parts_of(sealed: object, private_key: RSAPrivateKey) -> tuple[bytes, bytes, bytes] | None:
    """Wrapped key, IV and ciphertext, each of a length that can be; None if they are not there.

    All that is looked at here is known to whoever sent it.
    """
    values = [sealed.get(name) for name in PARTS] if isinstance(sealed, dict) else []
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(PARTS):
        return None
    try:
        wrapped, iv, ciphertext = (b64decode(text, validate=True) for text in texts)
    except ValueError:
        return None
    modulus = private_key.public_key().public_numbers().n
    is_possible = (
        len(wrapped) == private_key.key_size // 8
        and int.from_bytes(wrapped, "big") < modulus
        and len(iv) == BLOCK_BYTES
        and len(ciphertext) > 0
        and len(ciphertext) % BLOCK_BYTES == 0
    )
    return (wrapped, iv, ciphertext) if is_possible else None


def _dummy_wrapped(private_key: RSAPrivateKey) -> bytes:
    """OpenSSL works on it as long as on a key: its length is right, and it is below the modulus."""
    return (2).to_bytes(private_key.key_size // 8, "big")


def _unwrap(private_key: RSAPrivateKey, wrapped: bytes) -> bytes | None:
    """K, whichever padding it came in. Both are always tried."""
    by_oaep = _read_key(_rsa_decrypt(private_key, wrapped, OAEP_SHA256))
    by_pkcs1 = _read_key(_rsa_decrypt(private_key, wrapped, PKCS1_V15))
    return by_oaep or by_pkcs1


def _rsa_decrypt(private_key: RSAPrivateKey, wrapped: bytes, padding: AsymmetricPadding) -> bytes:
    try:
        # Of PKCS#1 v1.5, OpenSSL since 3.2 answers a broken padding with random bytes ("implicit
        # rejection"). Those are no key's text, so it is all one whether it does.
        return private_key.decrypt(wrapped, padding)
    except ValueError:
        return b""


def _read_key(text: bytes) -> bytes | None:
    if len(text) != KEY_TEXT_BYTES:
        return None
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def _decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    return decryptor.update(ciphertext) + decryptor.finalize()


def _unpad(padded: bytes) -> bytes | None:
    unpadder = block_padding.PKCS7(BLOCK_BITS).unpadder()
    try:
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        return None


def _parse(plaintext: bytes) -> tuple[bool, Any]:
    """Was it JSON, and its value."""
    try:
        return True, parse_json(plaintext)
    except Refused:
        return False, None


class SealedAnswer:
    """One answer, sealed to its app: an `Envelope` for the routes of the plain API.

    is_streamed: then the key is wrapped by OAEP, else by PKCS#1 v1.5, as token.place's clients want
    it. Wrapped at once, so that a client's key which cannot be used raises `ValueError` before
    anybody works for it.
    """

    def __init__(self, client_key: RSAPublicKey, *, is_streamed: bool) -> None:
        self._key = secrets.token_bytes(KEY_BYTES)
        padding = OAEP_SHA256 if is_streamed else PKCS1_V15
        wrapped = client_key.encrypt(b64encode(self._key), padding)
        self._cipherkey = {"cipherkey": _text(wrapped)}
        self._session = f"stream-{secrets.token_hex(SESSION_BYTES)}"

    def whole(self, answer: Json) -> Json:
        """The body of an answer that is not streamed."""
        return {"encrypted": True, "data": {**self._seal(answer), **self._cipherkey}}

    def event(self, event: Json) -> Json:
        """The next event of a stream; the first one brings the key."""
        data = {**self._seal(event), "stream_session_id": self._session, **self._cipherkey}
        self._cipherkey = {}
        return {
            "event": "delta",
            "encrypted": True,
            "stream_session_id": self._session,
            "data": data,
        }

    def error(self, error: Json) -> Json:
        """A failure in mid-stream: not sealed, so that whoever cannot open the stream reads it too.
        token.place's clients look at `event`, OpenAI's at `error`.
        """
        return {"event": "error", **error}

    def _seal(self, obj: Json) -> Json:
        iv = secrets.token_bytes(BLOCK_BYTES)
        padder = block_padding.PKCS7(BLOCK_BITS).padder()
        padded = padder.update(_encoder.encode(obj).encode()) + padder.finalize()
        encryptor = Cipher(AES(self._key), CBC(iv)).encryptor()
        ciphertext = encryptor.update(padded) + encryptor.finalize()
        return {"encrypted": True, "ciphertext": _text(ciphertext), "iv": _text(iv)}


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
