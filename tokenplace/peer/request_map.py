"""Reading a request's msgpack map (docs/protocol.md, section 4). Start at `decode_request`.

Pure. It comes from a stranger, and msgpack blows up 72 times in memory: values are read one by one
under limits, what is unknown is skipped without being built, and what is large is bytes: `body`,
which is JSON, and the ids of `resume`.
"""

from __future__ import annotations

import datetime
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import BadFormat
from tokenplace.generation import (
    CACHE_SCOPE_BYTES,
    PROMPT_DIGEST_BYTES,
    SEED_BYTES,
    Resume,
)
from tokenplace.sealing.answer import SECRET_BYTES
from tokenplace.sealing.epochs import EPOCH_BYTES
from tokenplace.sealing.suites import PUBLIC_KEY_BYTES

VERSION: Final = 1
_MAX_KEYS: Final = 64  # version 1 has 17; the rest is room for later ones
_MAX_TEXT_BYTES: Final = 64  # the longest are hashes in hex
_MAX_REQUIRES: Final = 32
_MAX_ATTEMPT: Final = 255
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ID_BYTES: Final = 4  # little-endian, as of `prompt_digest`


@dataclass(frozen=True, slots=True)
class RequestMap:
    """A request as opened, its form checked, its body not yet read. Fields: docs/protocol.md,
    section 4.
    """

    op: str
    requires: tuple[str, ...]
    epoch: bytes
    resp_secret: bytes
    reply_key: bytes
    artifact: str
    template: str
    cache_scope: bytes
    seed: bytes
    as_of: str
    attempt: int
    hedge: bool
    resume: tuple[Resume, ...]
    prompt_digest: bytes
    body: bytes


def decode_request(payload: bytes) -> RequestMap:
    """Raises `BadFormat`; what the fields mean together is `wire.to_request`'s to judge."""
    try:
        fields = _read_map(payload)
    except (ValueError, msgpack.UnpackException):
        raise BadFormat("the request is not the msgpack map it must be") from None
    for name, is_valid in _FIELDS.items():
        if name not in fields or not is_valid(fields[name]):
            raise BadFormat(f"the request's {name} is missing or wrong")
    del fields["v"]
    if type(fields.setdefault("hedge", False)) is not bool:
        raise BadFormat("the request's hedge is wrong")
    if not fields.setdefault("resume", ()):
        fields["prompt_digest"] = b""
    elif not _is_digest(fields.get("prompt_digest")):
        raise BadFormat("the request's prompt_digest is missing or wrong")
    return RequestMap(**fields)


def _read_map(payload: bytes) -> dict[str, Any]:
    """The known keys' values. `skip` builds nothing, so unknown values cost no memory whatever they
    hold; a list or a map is only ever read by its header and then item by item.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=defaults.MAX_PADDED_BYTES,
        max_str_len=_MAX_TEXT_BYTES,
        max_bin_len=defaults.MAX_PADDED_BYTES,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(payload)
    fields: dict[str, Any] = {}
    for key in _read_keys(unpacker):
        if key in _READERS:
            fields[key] = _READERS[key](unpacker)
        elif key in _FIELDS:
            fields[key] = unpacker.unpack()
        else:
            unpacker.skip()
    if unpacker.tell() != len(payload):
        raise ValueError("bytes after the map")
    return fields


def _read_keys(unpacker: msgpack.Unpacker) -> Iterator[str]:
    """The keys of a map, one by one; whoever takes one reads its value before the next."""
    n_keys = unpacker.read_map_header()
    if n_keys > _MAX_KEYS:
        raise ValueError("too many keys")
    seen: set[str] = set()
    for _ in range(n_keys):
        key = unpacker.unpack()
        if type(key) is not str or key in seen:
            raise ValueError("a key that is no text, or given twice")
        seen.add(key)
        yield key


def _read_requires(unpacker: msgpack.Unpacker) -> tuple[Any, ...]:
    n_texts = unpacker.read_array_header()
    if n_texts > _MAX_REQUIRES:
        raise ValueError("too many requirements")
    return tuple(unpacker.unpack() for _ in range(n_texts))


def _read_resume(unpacker: msgpack.Unpacker) -> tuple[Resume, ...]:
    n_choices = unpacker.read_array_header()
    if n_choices > defaults.MAX_CHOICES:
        raise ValueError("too many choices")
    resumed = tuple(_read_resumed(unpacker) for _ in range(n_choices))
    if len(dict(resumed)) != n_choices:
        raise ValueError("a choice is resumed twice")
    if sum(len(ids) for _, ids in resumed) > defaults.MAX_NEW_TOKENS * _ID_BYTES:
        raise ValueError("more ids than an answer may have")
    return tuple(
        Resume(choice, struct.unpack(f"<{len(ids) // _ID_BYTES}I", ids)) for choice, ids in resumed
    )


def _read_resumed(unpacker: msgpack.Unpacker) -> tuple[int, bytes]:
    fields: dict[str, Any] = {}
    for key in _read_keys(unpacker):
        if key in ("choice", "ids"):
            fields[key] = unpacker.unpack()
        else:
            unpacker.skip()
    choice, ids = fields.get("choice"), fields.get("ids")
    if type(choice) is not int or not 0 <= choice < defaults.MAX_CHOICES:
        raise ValueError("no choice")
    if type(ids) is not bytes or len(ids) % _ID_BYTES:
        raise ValueError("no ids")
    return choice, ids


def _is_bytes(length: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is bytes and len(value) == length


_is_digest: Final = _is_bytes(PROMPT_DIGEST_BYTES)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_hash(value: Any) -> bool:
    return type(value) is str and _HASH.fullmatch(value) is not None


def _is_date(value: Any) -> bool:
    if type(value) is not str or _DATE.fullmatch(value) is None:
        return False
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


_FIELDS: Final[dict[str, Callable[[Any], bool]]] = {
    "v": lambda value: type(value) is int and value == VERSION,
    "op": _is_text,
    "requires": lambda value: all(map(_is_text, value)),
    "epoch": _is_bytes(EPOCH_BYTES),
    "resp_secret": _is_bytes(SECRET_BYTES),
    "reply_key": _is_bytes(PUBLIC_KEY_BYTES),
    "artifact": _is_hash,
    "template": lambda value: value == "" or _is_hash(value),
    "cache_scope": _is_bytes(CACHE_SCOPE_BYTES),
    "seed": _is_bytes(SEED_BYTES),
    "as_of": _is_date,
    "attempt": lambda value: type(value) is int and 0 <= value <= _MAX_ATTEMPT,
    "body": lambda value: type(value) is bytes,
}
"""The keys a request must have, and what their values look like."""

_READERS: Final[dict[str, Callable[[msgpack.Unpacker], Any]]] = {
    "requires": _read_requires,
    "hedge": lambda unpacker: unpacker.unpack(),
    "resume": _read_resume,
    "prompt_digest": lambda unpacker: unpacker.unpack(),
}
"""How the values are read that are lists, or that may be missing."""
