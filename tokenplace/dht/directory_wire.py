"""Bytes of `/tokenplace/directory/1.0.0` (docs/protocol.md, section 3). Start at `Query`. No I/O.

An answer is read entry by entry: whatever a stranger nests inside one costs no memory, for unknown
fields are skipped unread and known ones must be plain bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError

PROTOCOL_ID: Final = "/tokenplace/directory/1.0.0"
QUERY_LENGTH: Final = struct.Struct(">H")
ANSWER_LENGTH: Final = struct.Struct(">I")
_MAX_FIELDS: Final = 16  # of a query or an entry; version 1 has three


class Op(StrEnum):
    """What is asked for: any donors, donors of a model, or one peer's statements."""

    SAMPLE = "sample"
    MODEL = "model"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Query:
    """One question.

    value: a model's name or artifact, or a peer id's bytes; empty: the answering peer itself.
    """

    op: Op
    value: str | bytes = b""
    max_entries: int = defaults.MAX_DIRECTORY_ENTRIES


@dataclass(frozen=True, slots=True)
class Entry:
    """The envelopes of one donor, unverified."""

    keys: bytes
    offer: bytes
    live: bytes | None = None


def encode_query(query: Query) -> bytes:
    """The question with its length."""
    body: bytes = msgpack.packb(
        {"op": query.op.value, "value": query.value, "max": query.max_entries}
    )
    assert len(body) <= defaults.MAX_DIRECTORY_QUERY_BYTES, "a name or peer id of more than 1 KiB"
    return QUERY_LENGTH.pack(len(body)) + body


def query_length(prefix: bytes) -> int:
    """The length that `prefix` announces. Raises `RemoteProtocolError` if it is too long."""
    return _checked_length(QUERY_LENGTH, prefix, defaults.MAX_DIRECTORY_QUERY_BYTES)


def decode_query(body: bytes) -> Query:
    """The question without its length. Raises `RemoteProtocolError`."""
    try:
        fields = msgpack.unpackb(body, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise RemoteProtocolError("directory: the question is not msgpack") from None
    if not isinstance(fields, dict):
        raise RemoteProtocolError("directory: the question is not a map")
    op, value, max_entries = fields.get("op"), fields.get("value", b""), fields.get("max")
    if not isinstance(op, str) or op not in set(Op):
        raise RemoteProtocolError("directory: an unknown question")
    if not isinstance(value, (str, bytes)):
        raise RemoteProtocolError("directory: `value` is neither text nor bytes")
    if type(max_entries) is not int or not 0 < max_entries <= defaults.MAX_DIRECTORY_ENTRIES:
        raise RemoteProtocolError("directory: `max` is out of range")
    return Query(Op(op), value, max_entries)


def encode_answer(entries: Iterable[Entry]) -> bytes:
    """The answer with its length: as many of `entries`, in order, as fit."""
    packed: list[bytes] = []
    room = defaults.MAX_DIRECTORY_ANSWER_BYTES - len(_array_header(defaults.MAX_DIRECTORY_ENTRIES))
    for entry in entries:
        fields = {"keys": entry.keys, "offer": entry.offer}
        if entry.live is not None:
            fields["live"] = entry.live
        item: bytes = msgpack.packb(fields)
        room -= len(item)
        if room < 0 or len(packed) == defaults.MAX_DIRECTORY_ENTRIES:
            break
        packed.append(item)
    body = _array_header(len(packed)) + b"".join(packed)
    return ANSWER_LENGTH.pack(len(body)) + body


def answer_length(prefix: bytes, most: int = defaults.MAX_DIRECTORY_ANSWER_BYTES) -> int:
    """The length that `prefix` announces. Raises `RemoteProtocolError` if it is over `most`."""
    return _checked_length(ANSWER_LENGTH, prefix, most)


def decode_answer(body: bytes) -> list[Entry]:
    """The entries of an answer without its length. Raises `RemoteProtocolError`."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=defaults.MAX_DIRECTORY_ANSWER_BYTES,
        max_array_len=defaults.MAX_DIRECTORY_ENTRIES,
        max_map_len=_MAX_FIELDS,
        max_ext_len=0,
    )
    try:
        unpacker.feed(body)
        n_entries = unpacker.read_array_header()
        if n_entries > defaults.MAX_DIRECTORY_ENTRIES:
            raise RemoteProtocolError("directory: an answer of too many entries")
        entries = [_read_entry(unpacker, body) for _ in range(n_entries)]
    except (ValueError, msgpack.UnpackException, msgpack.BufferFull):
        raise RemoteProtocolError("directory: the answer is not a msgpack list of maps") from None
    if unpacker.tell() != len(body):
        raise RemoteProtocolError("directory: bytes after the answer")
    return entries


def _read_entry(unpacker: msgpack.Unpacker, body: bytes) -> Entry:
    n_fields = unpacker.read_map_header()
    if n_fields > _MAX_FIELDS:
        raise RemoteProtocolError("directory: an entry of too many fields")
    found: dict[str, bytes] = {}
    for _ in range(n_fields):
        name = _plain(body[slice(*_skip(unpacker))])
        span = slice(*_skip(unpacker))
        if name in ("keys", "offer", "live"):
            value = _plain(body[span])
            if not isinstance(value, bytes):
                raise RemoteProtocolError(f"directory: {name} is not bytes")
            found[name] = value
    if "keys" not in found or "offer" not in found:
        raise RemoteProtocolError("directory: an entry without keys or offer")
    return Entry(found["keys"], found["offer"], found.get("live"))


def _skip(unpacker: msgpack.Unpacker) -> tuple[int, int]:
    """Pass over one value without building it: where it starts and ends."""
    start = unpacker.tell()
    unpacker.skip()
    return start, unpacker.tell()


def _plain(packed: bytes) -> object:
    """A plain value, at most as long as an advert; `ValueError` for anything nested or longer."""
    return msgpack.unpackb(
        packed,
        max_bin_len=defaults.MAX_ADVERT_BYTES,
        max_str_len=defaults.MAX_ADVERT_BYTES,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
    )


def _array_header(n: int) -> bytes:
    header: bytes = msgpack.Packer().pack_array_header(n)
    return header


def _checked_length(prefix_format: struct.Struct, prefix: bytes, most: int) -> int:
    length: int = prefix_format.unpack(prefix)[0]
    if length > most:
        raise RemoteProtocolError(f"directory: {length} bytes announced, {most} allowed")
    return length
