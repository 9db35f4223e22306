"""The request's msgpack map, inside the seal, and the refusal's, outside it. Start at `RequestMap`.

Pure (docs/protocol.md, sections 4 and 5); the answer's frames are in `frames.py`. A request comes
from a stranger, and msgpack blows up 72 times in memory: values are read one by one under limits,
what is unknown is skipped without being built, and the one large value is `body`, JSON in bytes.
"""

from __future__ import annotations

import datetime
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    DonorBusy,
    ErrorCode,
    RemoteProtocolError,
    RequestTooBig,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
    Unsupported,
)
from tokenplace.generation import CACHE_SCOPE_BYTES, SEED_BYTES, GenerateRequest
from tokenplace.peer import gen1, grease
from tokenplace.sealing.answer import SECRET_BYTES
from tokenplace.sealing.epochs import EPOCH_BYTES
from tokenplace.sealing.request import padded_bytes
from tokenplace.sealing.suites import PUBLIC_KEY_BYTES

VERSION: Final = 1
GENERATE: Final = "generate"
GENERATE_PROTOCOL: Final = "/tokenplace/generate/1.0.0"
FRAME_LENGTH: Final = struct.Struct(">I")
_REFUSAL_LENGTH: Final = struct.Struct(">H")
_MAX_KEYS: Final = 64  # version 1 has 15; the rest is room for later ones
_MAX_TEXT_BYTES: Final = 64  # the longest are hashes in hex
_MAX_REQUIRES: Final = 32
_MAX_ATTEMPT: Final = 255
_MAX_RETRY_AFTER_S: Final = 3600.0
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EMPTY_LIST: Final = 0x90

REFUSALS: Final[dict[ErrorCode, type[TokenplaceError]]] = {
    error.code: error for error in (UnknownKey, StaleEpoch, DonorBusy, RequestTooBig, BadFormat)
}
"""What a donor may say unsealed."""


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
    has_resume: bool
    body: bytes


def encode_request(
    request: GenerateRequest,
    epoch: bytes,
    resp_secret: bytes,
    reply_key: bytes,
    dice: random.Random | None = None,
) -> bytes:
    """The payload to seal. Raises what `gen1.encode_body` raises.

    dice: for a key that means nothing (`grease.py`); None: without one.
    """
    fields: dict[str, object] = {
        "v": VERSION,
        "op": GENERATE,
        "requires": [],
        "epoch": epoch,
        "resp_secret": resp_secret,
        "reply_key": reply_key,
        "artifact": request.artifact,
        "template": request.template,
        "cache_scope": request.cache_scope,
        "seed": request.seed,
        "as_of": request.as_of,
        "attempt": request.attempt,
        "body": gen1.encode_body(request),
    }
    if request.resume:
        fields["resume"] = [
            {"choice": resume.choice, "ids": list(resume.ids)} for resume in request.resume
        ]
    payload = packed(fields)
    if dice is None:
        return payload
    greased = packed(grease.with_unknown_key(fields, dice))
    is_larger = padded_bytes(len(greased)) > padded_bytes(len(payload))
    return payload if is_larger else greased


def decode_request(payload: bytes) -> RequestMap:
    """Raises `BadFormat`; what the fields mean together is `to_generate_request`'s to judge."""
    try:
        fields = _read_map(payload)
    except (ValueError, msgpack.UnpackException):
        raise BadFormat("the request is not the msgpack map it must be") from None
    for name, is_valid in _FIELDS.items():
        if name not in fields or not is_valid(fields[name]):
            raise BadFormat(f"the request's {name} is missing or wrong")
    return RequestMap(
        requires=tuple(fields.pop("requires")),
        has_resume="resume" in fields,
        **{name: fields[name] for name in _FIELDS if name not in ("v", "requires")},
    )


def to_generate_request(request: RequestMap) -> GenerateRequest:
    """Raises `Unsupported` for what this version lacks, and what `gen1.parse_body` raises."""
    if request.op != GENERATE:
        raise Unsupported(f"operation {request.op!r}")
    if request.requires:
        raise Unsupported(f"feature {request.requires[0]!r}")
    if request.has_resume:
        raise Unsupported("resume")
    body = gen1.parse_body(request.body)
    return GenerateRequest(
        model="",
        input=body.input,
        sampling=body.sampling,
        seed=request.seed,
        cache_scope=request.cache_scope,
        as_of=request.as_of,
        max_tokens=body.max_tokens,
        stop=body.stop,
        ignore_eog=body.ignore_eog,
        artifact=request.artifact,
        template=request.template,
        attempt=request.attempt,
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A donor's unsealed no. A hint: only the signed objects in it can be believed, once verified.

    keys, live: signed envelopes, not yet verified.
    """

    error: TokenplaceError
    keys: bytes | None = None
    live: bytes | None = None


def encode_refusal(refusal: Refusal, dice: random.Random | None = None) -> bytes:
    """The whole answer, from its first byte on. `refusal.error` is one of `REFUSALS`; dice: as of
    `encode_request`.
    """
    fields: dict[str, object] = {"code": refusal.error.code.value}
    if refusal.keys is not None:
        fields["keys"] = refusal.keys
    if refusal.live is not None:
        fields["live"] = refusal.live
    if refusal.error.retry_after_s is not None:
        fields["retry_after_s"] = refusal.error.retry_after_s
    payload = packed(fields if dice is None else grease.with_unknown_key(fields, dice))
    assert len(payload) <= defaults.MAX_REFUSAL_BYTES, "signed objects too large for a refusal"
    return b"\0" + _REFUSAL_LENGTH.pack(len(payload)) + payload


def decode_refusal(payload: bytes) -> Refusal:
    """Raises `RemoteProtocolError`."""
    try:
        fields = msgpack.unpackb(payload, max_map_len=_MAX_KEYS, max_array_len=_MAX_KEYS)
    except (ValueError, msgpack.UnpackException):
        raise RemoteProtocolError("a refusal that is not msgpack") from None
    if type(fields) is not dict or type(code := fields.get("code")) is not str:
        raise RemoteProtocolError("a refusal without a code")
    error = REFUSALS.get(code)  # type: ignore[call-overload]
    if error is None:
        raise RemoteProtocolError("a refusal for an unknown reason")
    keys, live = fields.get("keys"), fields.get("live")
    return Refusal(
        error(retry_after_s=retry_after_s(fields.get("retry_after_s"))),
        keys if type(keys) is bytes else None,
        live if type(live) is bytes else None,
    )


def retry_after_s(value: object) -> float | None:
    """A donor's advice when to ask again, if it is one: seconds, at most an hour."""
    if type(value) not in (int, float) or not 0 <= value <= _MAX_RETRY_AFTER_S:  # type: ignore[operator]
        return None
    return float(value)  # type: ignore[arg-type]


def packed(fields: dict[str, object]) -> bytes:
    """A map as msgpack."""
    data: bytes = msgpack.packb(fields)
    return data


def _read_map(payload: bytes) -> dict[str, Any]:
    """The known keys' values. `skip` builds nothing, so unknown values cost no memory whatever they
    hold.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=defaults.MAX_PADDED_BYTES,
        max_str_len=_MAX_TEXT_BYTES,
        max_bin_len=defaults.MAX_PADDED_BYTES,
        max_array_len=_MAX_REQUIRES,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(payload)
    n_keys = unpacker.read_map_header()
    if n_keys > _MAX_KEYS:
        raise ValueError("too many keys")
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    for _ in range(n_keys):
        key = unpacker.unpack()
        if type(key) is not str or key in seen:
            raise ValueError("a key that is no text, or given twice")
        seen.add(key)
        start = unpacker.tell()
        if key in _FIELDS:
            fields[key] = unpacker.unpack()
        else:
            unpacker.skip()
            if key == "resume" and payload[start] != _EMPTY_LIST:
                fields[key] = True
    if unpacker.tell() != len(payload):
        raise ValueError("bytes after the map")
    return fields


def _is_bytes(length: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is bytes and len(value) == length


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
    "requires": lambda value: type(value) is list and all(map(_is_text, value)),
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
