"""The sealed answer: chunks that only the requester can open, in order, with a proven end
(docs/protocol.md, section 5).

Start at `AnswerSealer` (donor) and `AnswerOpener` (requester). The chunk format is
draft-ietf-ohai-chunked-ohttp's: a counter in the nonce refuses chunks that were dropped, swapped or
repeated, and the final chunk is authenticated as final, so "finished" and "died" cannot be
confused.

Differs from OHTTP in where the key comes from: a secret out of the request *and* one sealed to the
requester's one-time reply key, so a stolen donor key opens requests but never answers.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tokenplace import defaults
from tokenplace.errors import BadFormat, ConnectionLost, RemoteProtocolError
from tokenplace.sealing.suites import ENC_BYTES, TAG_BYTES, PrivateKey, encrypt

SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 32
_AEAD_NONCE_BYTES: Final = 12
_REPLY_INFO: Final = b"tokenplace/reply/1"
_REPLY_ENC_BYTES: Final = ENC_BYTES + SECRET_BYTES + TAG_BYTES
_OPENING: Final = struct.Struct(f">BH{_REPLY_ENC_BYTES}s{_NONCE_BYTES}s")
_LENGTH: Final = struct.Struct(">H")
_MAX_CIPHERTEXT_BYTES: Final = defaults.MAX_CHUNK_BYTES + TAG_BYTES
MAX_FRAMES_BYTES: Final = defaults.MAX_CHUNK_BYTES - _LENGTH.size


@dataclass(frozen=True, slots=True)
class ReplySecrets:
    """What a requester keeps to open the answer of one attempt; both are new for each."""

    resp_secret: bytes
    key: PrivateKey

    @classmethod
    def generate(cls) -> ReplySecrets:
        return cls(secrets.token_bytes(SECRET_BYTES), PrivateKey.generate())


class _Cipher:
    """The answer's key schedule and its chunk counter, the same on both sides."""

    def __init__(self, ikm: bytes, digest: bytes, nonce: bytes) -> None:
        prk = hmac.digest(digest + nonce, ikm, "sha256")  # HKDF-Extract (RFC 5869, section 2.2)
        self._aead = ChaCha20Poly1305(HKDFExpand(hashes.SHA256(), 32, b"key").derive(prk))
        base = HKDFExpand(hashes.SHA256(), _AEAD_NONCE_BYTES, b"nonce").derive(prk)
        self._base = int.from_bytes(base, "big")
        self._count = 0

    def encrypt(self, plaintext: bytes, is_final: bool) -> bytes:
        return self._aead.encrypt(self._next_nonce(), plaintext, b"final" if is_final else b"")

    def decrypt(self, ciphertext: bytes, is_final: bool) -> bytes:
        return self._aead.decrypt(self._next_nonce(), ciphertext, b"final" if is_final else b"")

    def _next_nonce(self) -> bytes:
        nonce = (self._base ^ self._count).to_bytes(_AEAD_NONCE_BYTES, "big")
        self._count += 1
        return nonce


class AnswerSealer:
    """The donor's side. Send `opening` first, then what `seal` returns; end the stream after the
    final chunk.
    """

    def __init__(self, resp_secret: bytes, reply_key: bytes, request_digest: bytes) -> None:
        """request_digest: sha256 of the sealed request. Raises `BadFormat` when `reply_key` cannot
        be used.
        """
        shared = secrets.token_bytes(SECRET_BYTES)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        try:
            enc = encrypt(shared, reply_key, _REPLY_INFO)
        except ValueError:
            raise BadFormat("its reply key cannot be used") from None
        self.opening = _OPENING.pack(1, len(enc), enc, nonce)
        self._cipher = _Cipher(resp_secret + shared, request_digest, nonce)

    def seal(self, frames: bytes, *, is_final: bool = False) -> bytes:
        """One chunk around whole frames, at most `MAX_FRAMES_BYTES`, padded so that its size says
        little about them.
        """
        assert len(frames) <= MAX_FRAMES_BYTES, "frames do not fit a chunk"
        length = _LENGTH.size + len(frames)
        padded = length + -length % defaults.CHUNK_PAD_BYTES
        plaintext = (_LENGTH.pack(len(frames)) + frames).ljust(padded, b"\0")
        ciphertext = self._cipher.encrypt(plaintext, is_final)
        return encode_varint(0 if is_final else len(ciphertext)) + ciphertext


@dataclass(frozen=True, slots=True)
class RefusalBytes:
    """An unsealed refusal's msgpack map. Nobody vouches for it."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole frames out of one chunk that opened. `is_final`: nothing follows."""

    frames: bytes
    is_final: bool


class _Stage(Enum):
    KIND = auto()
    REFUSAL = auto()
    OPENING = auto()
    LENGTH = auto()
    CHUNK = auto()
    FINAL = auto()
    DONE = auto()


class AnswerOpener:
    """The requester's side: bytes in, refusal or chunks out. Knows nothing of streams.

    After each `receive_data` or `receive_eof`, call `next_item` until it returns None: then at most
    one chunk is buffered.
    """

    def __init__(self, reply: ReplySecrets, request_digest: bytes) -> None:
        self._reply = reply
        self._digest = request_digest
        self._buffer = bytearray()
        self._stage = _Stage.KIND
        self._needed = 1  # bytes that must be there before the stage can go on
        self._is_eof = False
        self._cipher: _Cipher | None = None

    def receive_data(self, data: bytes) -> None:
        self._buffer += data

    def receive_eof(self) -> None:
        """The donor's half ended. `next_item` returns the final chunk, or raises."""
        self._is_eof = True

    def next_item(self) -> RefusalBytes | Chunk | None:
        """None: more bytes are needed, or the answer is complete.

        Raises `RemoteProtocolError` for what no honest donor sends, a length over the limit at once
        and without waiting for its bytes; `ConnectionLost` for an end before the final chunk is
        whole.
        """
        while self._stage is not _Stage.FINAL:
            if self._stage is _Stage.DONE:
                if self._buffer:
                    raise RemoteProtocolError("bytes after the end of the answer")
                return None
            if len(self._buffer) < self._needed:
                if self._is_eof:
                    raise ConnectionLost
                return None
            item = self._step()
            if item is not None:
                return item
        return self._final_chunk()

    def _step(self) -> RefusalBytes | Chunk | None:
        """Consume what the stage needs, all of which is there, and go to the next stage."""
        match self._stage:
            case _Stage.KIND:
                self._read_kind()
            case _Stage.REFUSAL:
                return self._read_refusal()
            case _Stage.OPENING:
                self._read_opening()
            case _Stage.LENGTH:
                self._read_length()
            case _:
                return self._read_chunk()
        return None

    def _read_kind(self) -> None:
        if self._buffer[0] == 0:
            self._go(_Stage.REFUSAL, 1 + _LENGTH.size)
        elif self._buffer[0] == 1:
            self._go(_Stage.OPENING, 1 + _LENGTH.size)
        else:
            raise RemoteProtocolError("unknown kind of answer")

    def _read_refusal(self) -> RefusalBytes | None:
        start = 1 + _LENGTH.size
        (length,) = _LENGTH.unpack_from(self._buffer, 1)
        if length > defaults.MAX_REFUSAL_BYTES:
            raise RemoteProtocolError("a refusal over the limit")
        if len(self._buffer) < start + length:
            self._needed = start + length
            return None
        self._take(start)
        payload = self._take(length)
        self._go(_Stage.DONE, 0)
        return RefusalBytes(payload)

    def _read_opening(self) -> None:
        (enc_length,) = _LENGTH.unpack_from(self._buffer, 1)
        if enc_length != _REPLY_ENC_BYTES:
            raise RemoteProtocolError("an answer sealed in an unknown way")
        if len(self._buffer) < _OPENING.size:
            self._needed = _OPENING.size
            return
        _, _, enc, nonce = _OPENING.unpack(self._take(_OPENING.size))
        try:
            shared = self._reply.key.decrypt(enc, _REPLY_INFO)
        except ValueError:
            raise RemoteProtocolError("its answer's key does not open") from None
        self._cipher = _Cipher(self._reply.resp_secret + shared, self._digest, nonce)
        self._go(_Stage.LENGTH, 1)

    def _read_length(self) -> None:
        size = varint_size(self._buffer[0])
        if len(self._buffer) < size:
            self._needed = size
            return
        length = decode_varint(self._take(size))
        if length == 0:
            self._go(_Stage.FINAL, 0)
        elif _is_chunk_length(length):
            self._go(_Stage.CHUNK, length)
        else:
            raise RemoteProtocolError("a chunk of a size that does not exist")

    def _read_chunk(self) -> Chunk:
        frames = self._open(self._take(self._needed), is_final=False)
        self._go(_Stage.LENGTH, 1)
        return Chunk(frames, is_final=False)

    def _final_chunk(self) -> Chunk | None:
        if len(self._buffer) > _MAX_CIPHERTEXT_BYTES:
            raise RemoteProtocolError("bytes after the end of the answer")
        if not self._is_eof:
            return None
        if not _is_chunk_length(len(self._buffer)):
            raise ConnectionLost  # cut off: a final chunk is padded like any other
        frames = self._open(self._take(len(self._buffer)), is_final=True)
        self._go(_Stage.DONE, 0)
        return Chunk(frames, is_final=True)

    def _open(self, ciphertext: bytes, *, is_final: bool) -> bytes:
        assert self._cipher is not None, "a chunk before the opening"
        try:
            plaintext = self._cipher.decrypt(ciphertext, is_final)
        except InvalidTag:
            raise RemoteProtocolError("a chunk of its answer does not open") from None
        (length,) = _LENGTH.unpack_from(plaintext)
        end = _LENGTH.size + length
        if end > len(plaintext) or plaintext.count(0, end) != len(plaintext) - end:
            raise RemoteProtocolError("a chunk with wrong padding")
        return plaintext[_LENGTH.size : end]

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _go(self, stage: _Stage, needed: int) -> None:
        self._stage, self._needed = stage, needed


def _is_chunk_length(length: int) -> bool:
    padded = length - TAG_BYTES
    return 0 < padded <= defaults.MAX_CHUNK_BYTES and padded % defaults.CHUNK_PAD_BYTES == 0


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
