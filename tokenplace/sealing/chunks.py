"""The chunk format of chunked OHTTP (draft-ietf-ohai-chunked-ohttp). Start at `ChunkReader`; both
ends hold a `ChunkCipher`.

Bytes in, plaintexts out; what is in them is `answer.py`'s business. Nothing here knows which AEAD
is used or how long a chunk may be, so the draft's own example runs through the same code as our
answers.

Differs from a plain list of sealed messages: the counter in the nonce refuses chunks that were
dropped, swapped or repeated, and the final chunk is authenticated as final, so "finished" and
"died" cannot be confused.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tokenplace.errors import ConnectionLost, RemoteProtocolError

Aead = ChaCha20Poly1305 | AESGCM

_NONCE_BYTES: Final = 12  # of both AEADs
_FINAL_AAD: Final = b"final"


class ChunkCipher:
    """One direction's AEAD and its counter: chunk i has the nonce base XOR i."""

    def __init__(self, aead: Aead, base_nonce: bytes) -> None:
        self._aead = aead
        self._base = int.from_bytes(base_nonce, "big")
        self._count = 0

    @classmethod
    def derive(
        cls, ikm: bytes, salt: bytes, aead: type[Aead] = ChaCha20Poly1305, key_bytes: int = 32
    ) -> ChunkCipher:
        """Key and base nonce out of a secret, as RFC 9458, section 4.4, does it for an answer."""
        prk = hmac.digest(salt, ikm, "sha256")  # HKDF-Extract (RFC 5869, section 2.2)
        key = HKDFExpand(hashes.SHA256(), key_bytes, b"key").derive(prk)
        return cls(aead(key), HKDFExpand(hashes.SHA256(), _NONCE_BYTES, b"nonce").derive(prk))

    def seal(self, plaintext: bytes, *, is_final: bool) -> bytes:
        """The next chunk, with its length before it. The final one's end is the stream's."""
        aad = _FINAL_AAD if is_final else b""
        ciphertext = self._aead.encrypt(self._next_nonce(), plaintext, aad)
        return encode_varint(0 if is_final else len(ciphertext)) + ciphertext

    def open(self, ciphertext: bytes, *, is_final: bool) -> bytes:
        """The next chunk's plaintext. Raises `RemoteProtocolError` when it does not open."""
        try:
            aad = _FINAL_AAD if is_final else b""
            return self._aead.decrypt(self._next_nonce(), ciphertext, aad)
        except InvalidTag:
            raise RemoteProtocolError("a chunk of its answer does not open") from None

    def _next_nonce(self) -> bytes:
        nonce = (self._base ^ self._count).to_bytes(_NONCE_BYTES, "big")
        self._count += 1
        return nonce


class _Stage(Enum):
    LENGTH = auto()
    CHUNK = auto()
    FINAL = auto()
    DONE = auto()


class ChunkReader:
    """Bytes in, opened chunks out, in order and up to a proven end.

    After each `receive_data` or `receive_eof`, call `next_chunk` until it returns None: then at
    most one chunk is buffered.
    """

    def __init__(
        self, cipher: ChunkCipher, *, is_length: Callable[[int], bool], max_bytes: int
    ) -> None:
        """is_length: can a ciphertext have so many bytes? max_bytes: the longest that can."""
        self._cipher = cipher
        self._is_length = is_length
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._stage = _Stage.LENGTH
        self._needed = 1  # bytes that must be there before the stage can go on
        self._is_eof = False

    def receive_data(self, data: bytes) -> None:
        self._buffer += data

    def receive_eof(self) -> None:
        """The stream ended. `next_chunk` returns the final chunk, or raises."""
        self._is_eof = True

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """A plaintext, and whether it is the final one. None: more bytes are needed, or it is done.

        Raises `RemoteProtocolError` for what no honest sender sends, a length over the limit at
        once and without waiting for its bytes; `ConnectionLost` for an end before the final chunk
        is whole.
        """
        while self._stage in (_Stage.LENGTH, _Stage.CHUNK):
            if len(self._buffer) < self._needed:
                if self._is_eof:
                    raise ConnectionLost
                return None
            if self._stage is _Stage.CHUNK:
                return self._read_chunk()
            self._read_length()
        if self._stage is _Stage.FINAL:
            return self._final_chunk()
        if self._buffer:
            raise RemoteProtocolError("bytes after the end of the answer")
        return None

    def _read_length(self) -> None:
        size = varint_size(self._buffer[0])
        if len(self._buffer) < size:
            self._needed = size
            return
        length = decode_varint(self._take(size))
        if length == 0:
            self._stage = _Stage.FINAL
        elif self._is_length(length):
            self._stage, self._needed = _Stage.CHUNK, length
        else:
            raise RemoteProtocolError("a chunk of a size that does not exist")

    def _read_chunk(self) -> tuple[bytes, bool]:
        plaintext = self._cipher.open(self._take(self._needed), is_final=False)
        self._stage, self._needed = _Stage.LENGTH, 1
        return plaintext, False

    def _final_chunk(self) -> tuple[bytes, bool] | None:
        if len(self._buffer) > self._max_bytes:
            raise RemoteProtocolError("bytes after the end of the answer")
        if not self._is_eof:
            return None
        if not self._is_length(len(self._buffer)):
            raise ConnectionLost  # cut off: a final chunk has a length like any other
        plaintext = self._cipher.open(self._take(len(self._buffer)), is_final=True)
        self._stage = _Stage.DONE
        return plaintext, True

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def encode_varint(value: int) -> bytes:
    """QUIC's variable-length integer (RFC 9000, section 16), in its shortest form; up to 30 bits,
    as chunks need no more.
    """
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    return (value | 2 << 30).to_bytes(4, "big")


def varint_size(first_byte: int) -> int:
    """How many bytes the integer takes that starts with this one: 1, 2, 4 or 8."""
    return 1 << (first_byte >> 6)


def decode_varint(data: bytes) -> int:
    """The value of one whole variable-length integer."""
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)
