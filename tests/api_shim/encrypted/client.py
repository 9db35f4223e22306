"""A client of the encrypted API, written from its description: nothing here is of tokenplace.

Start at `Client`. Python's clients wrap the AES key by OAEP, JavaScript's by PKCS#1 v1.5.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PYTHON = rsa_padding.OAEP(
    mgf=rsa_padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None
)
JAVASCRIPT = rsa_padding.PKCS1v15()


@cache
def key_of(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """Drawn once a run: a test needs some key, seldom a new one."""
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


@cache
def other_key() -> rsa.RSAPrivateKey:
    """Not `key_of()`."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem_of(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def aes_encrypt(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    padded = padder.update(plaintext) + padder.finalize()
    return encryptor.update(padded) + encryptor.finalize()


def aes_decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    unpadder = padding.PKCS7(128).unpadder()
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    return unpadder.update(padded) + unpadder.finalize()


def seal_bytes(
    plaintext: bytes,
    key: rsa.RSAPublicKey,
    wrapping: rsa_padding.AsymmetricPadding = PYTHON,
) -> dict[str, str]:
    """A request's envelope around any bytes."""
    aes_key, iv = os.urandom(32), os.urandom(16)
    return {
        "ciphertext": base64_of(aes_encrypt(aes_key, iv, plaintext)),
        "cipherkey": base64_of(key.encrypt(base64.b64encode(aes_key), wrapping)),
        "iv": base64_of(iv),
    }


def seal(
    value: object, key: rsa.RSAPublicKey, wrapping: rsa_padding.AsymmetricPadding = PYTHON
) -> dict[str, str]:
    """A request's envelope around JSON."""
    return seal_bytes(json.dumps(value).encode(), key, wrapping)


@dataclass
class Client:
    """Holds the peer's public key and its own pair; opens what comes back."""

    peer_key: rsa.RSAPublicKey
    key: rsa.RSAPrivateKey = field(default_factory=key_of)
    _stream_key: bytes = b""

    @property
    def public_key(self) -> str:
        return base64_of(pem_of(self.key))

    def body(self, content: object, **options: Any) -> dict[str, Any]:
        """A request: messages of a chat, or the prompt of a completion."""
        return {
            "encrypted": True,
            "client_public_key": self.public_key,
            "messages": seal(content, self.peer_key),
            **options,
        }

    def open_whole(self, answer: dict[str, Any]) -> Any:
        assert set(answer) == {"encrypted", "data"}
        data = answer["data"]
        assert set(data) == {"encrypted", "ciphertext", "cipherkey", "iv"}
        assert answer["encrypted"] is True
        assert data["encrypted"] is True
        wrapped = base64.b64decode(data["cipherkey"], validate=True)
        return self._open(self._unwrap(wrapped, JAVASCRIPT), data)

    def open_event(self, event: dict[str, Any]) -> Any:
        """The next chunk of a stream; the first one brings the key."""
        assert set(event) == {"event", "encrypted", "stream_session_id", "data"}
        assert event["event"] == "delta"
        assert event["encrypted"] is True
        data = event["data"]
        expected = {"encrypted", "ciphertext", "iv", "stream_session_id"}
        assert data["encrypted"] is True
        assert data["stream_session_id"] == event["stream_session_id"]
        if not self._stream_key:
            expected |= {"cipherkey"}
            wrapped = base64.b64decode(data["cipherkey"], validate=True)
            self._stream_key = self._unwrap(wrapped, PYTHON)
        assert set(data) == expected
        return self._open(self._stream_key, data)

    def _unwrap(self, wrapped: bytes, wrapping: rsa_padding.AsymmetricPadding) -> bytes:
        text = self.key.decrypt(wrapped, wrapping)
        assert len(text) == 44  # not random bytes in place of a broken padding
        return base64.b64decode(text, validate=True)

    def _open(self, key: bytes, data: dict[str, Any]) -> Any:
        iv = base64.b64decode(data["iv"], validate=True)
        ciphertext = base64.b64decode(data["ciphertext"], validate=True)
        return json.loads(aes_decrypt(key, iv, ciphertext).decode("utf-8"))
