"""The sealed answer: chunks that only the requester can open, in order, with a proven end
(docs/protocol.md, section 5).

Start at `AnswerSealer` (donor) and `AnswerOpener` (requester); the chunks themselves are
`chunks.py`'s.

Differs from OHTTP in where the key comes from: a secret out of the request *and* one sealed to the
requester's one-time reply key, so a stolen donor key opens requests but never answers.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tokenplace import defaults
from tokenplace.errors import BadFormat, ConnectionLost, RemoteProtocolError
from tokenplace.sealing.chunks import ChunkCipher, ChunkReader
from tokenplace.sealing.suites import ENC_BYTES, TAG_BYTES, PrivateKey, encrypt

SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 32
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
        self._cipher = ChunkCipher.derive(resp_secret + shared, request_digest + nonce)

    def seal(self, frames: bytes, *, is_final: bool = False) -> bytes:
        """One chunk around whole frames, at most `MAX_FRAMES_BYTES`, padded so that its size says
        little about them.
        """
        assert len(frames) <= MAX_FRAMES_BYTES, "frames do not fit a chunk"
        plaintext = _LENGTH.pack(len(frames)) + frames + bytes(padding_bytes(len(frames)))
        return self._cipher.seal(plaintext, is_final=is_final)


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
    REFUSED = auto()


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
        self._chunks: ChunkReader | None = None  # from the opening on

    def receive_data(self, data: bytes) -> None:
        if self._chunks is None:
            self._buffer += data
        else:
            self._chunks.receive_data(data)

    def receive_eof(self) -> None:
        """The donor's half ended. `next_item` returns the final chunk, or raises."""
        self._is_eof = True
        if self._chunks is not None:
            self._chunks.receive_eof()

    def next_item(self) -> RefusalBytes | Chunk | None:
        """None: more bytes are needed, or the answer is complete.

        Raises `RemoteProtocolError` for what no honest donor sends, a length over the limit at once
        and without waiting for its bytes; `ConnectionLost` for an end before the final chunk is
        whole.
        """
        while self._chunks is None:
            if self._stage is _Stage.REFUSED:
                if self._buffer:
                    raise RemoteProtocolError("bytes after the end of the answer")
                return None
            if len(self._buffer) < self._needed:
                if self._is_eof:
                    raise ConnectionLost
                return None
            refusal = self._step()
            if refusal is not None:
                return refusal
        opened = self._chunks.next_chunk()
        return None if opened is None else Chunk(_unpad(opened[0]), is_final=opened[1])

    def _step(self) -> RefusalBytes | None:
        """Consume what the stage needs, all of which is there, and go to the next stage."""
        match self._stage:
            case _Stage.KIND:
                self._read_kind()
            case _Stage.REFUSAL:
                return self._read_refusal()
            case _:
                self._read_opening()
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
        self._go(_Stage.REFUSED, 0)
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
        cipher = ChunkCipher.derive(self._reply.resp_secret + shared, self._digest + nonce)
        self._chunks = ChunkReader(
            cipher, is_length=_is_chunk_length, max_bytes=_MAX_CIPHERTEXT_BYTES
        )
        self._chunks.receive_data(self._take(len(self._buffer)))
        if self._is_eof:
            self._chunks.receive_eof()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _go(self, stage: _Stage, needed: int) -> None:
        self._stage, self._needed = stage, needed


def padding_bytes(n_frames_bytes: int) -> int:
    """How many zeros follow frames of so many bytes in their chunk."""
    return -(_LENGTH.size + n_frames_bytes) % defaults.CHUNK_PAD_BYTES


def _unpad(plaintext: bytes) -> bytes:
    (length,) = _LENGTH.unpack_from(plaintext)
    end = _LENGTH.size + length
    if end > len(plaintext) or plaintext.count(0, end) != len(plaintext) - end:
        raise RemoteProtocolError("a chunk with wrong padding")
    return plaintext[_LENGTH.size : end]


def _is_chunk_length(length: int) -> bool:
    padded = length - TAG_BYTES
    return 0 < padded <= defaults.MAX_CHUNK_BYTES and padded % defaults.CHUNK_PAD_BYTES == 0
