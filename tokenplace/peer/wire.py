"""The request's msgpack map, inside the seal, and the refusal's, outside it. Start at `RequestMap`.

Pure (docs/protocol.md, sections 4 and 5); the answer's frames are in `frames.py`. A request comes
from a stranger, and msgpack blows up 72 times in memory: values are read one by one under limits,
what is unknown is skipped without being built, and what is large is bytes: `body`, which is JSON,
and the ids of `resume`.
"""

from __future__ import annotations

import datetime
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    DonorBusy,
    ErrorCode,
    InvalidRequest,
    RemoteProtocolError,
    RequestTooBig,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
    Unsupported,
)
from tokenplace.features import Requirement
from tokenplace.generation import (
    CACHE_SCOPE_BYTES,
    PROMPT_DIGEST_BYTES,
    SEED_BYTES,
    ChatInput,
    GenerateRequest,
    Resume,
    SamplingParams,
)
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
_MAX_KEYS: Final = 64  # version 1 has 16; the rest is room for later ones
_MAX_TEXT_BYTES: Final = 64  # the longest are hashes in hex
_MAX_REQUIRES: Final = 32
_MAX_ATTEMPT: Final = 255
_MAX_RETRY_AFTER_S: Final = 3600.0
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ID_BYTES: Final = 4  # little-endian, as of `prompt_digest`

_KNOWN_REQUIREMENTS: Final = frozenset(Requirement)

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
    resume: tuple[Resume, ...]
    prompt_digest: bytes
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
        "requires": requirements_of(request),
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
            {"choice": resume.choice, "ids": _packed_ids(resume.ids)} for resume in request.resume
        ]
        fields["prompt_digest"] = request.prompt_digest
    payload = packed(fields)
    if dice is None:
        return payload
    greased = packed(grease.with_unknown_key(fields, dice))
    is_larger = padded_bytes(len(greased)) > padded_bytes(len(payload))
    return payload if is_larger else greased


def requirements_of(request: GenerateRequest) -> list[str]:
    """What a donor must understand, lest it answer something else. What is neutral needs nothing,
    so that older donors can still be asked.
    """
    sampling, usual, chat = request.sampling, SamplingParams(), request.input
    required = {
        Requirement.CHOICES: request.n > 1,
        Requirement.GRAMMAR: request.output is not None,
        Requirement.LOGPROBS: request.top_logprobs is not None,
        Requirement.PENALTIES: sampling.typical_p != usual.typical_p
        or sampling.repeat_penalty != usual.repeat_penalty
        or sampling.presence_penalty != usual.presence_penalty
        or sampling.frequency_penalty != usual.frequency_penalty
        or sampling.logit_bias != usual.logit_bias,
        Requirement.RESUME: bool(request.resume),
        Requirement.TOOLS: isinstance(chat, ChatInput)
        and (
            bool(chat.tools)
            or any(turn.role == "tool" or turn.tool_calls for turn in chat.messages)
        ),
    }
    return [name.value for name, is_required in required.items() if is_required]


def decode_request(payload: bytes) -> RequestMap:
    """Raises `BadFormat`; what the fields mean together is `to_generate_request`'s to judge."""
    try:
        fields = _read_map(payload)
    except (ValueError, msgpack.UnpackException):
        raise BadFormat("the request is not the msgpack map it must be") from None
    for name, is_valid in _FIELDS.items():
        if name not in fields or not is_valid(fields[name]):
            raise BadFormat(f"the request's {name} is missing or wrong")
    del fields["v"]
    if not fields.setdefault("resume", ()):
        fields["prompt_digest"] = b""
    elif not _is_digest(fields.get("prompt_digest")):
        raise BadFormat("the request's prompt_digest is missing or wrong")
    return RequestMap(**fields)


def to_generate_request(request: RequestMap, bucket: str) -> GenerateRequest:
    """bucket: as of `GenerateRequest`. Raises `Unsupported` for what this version lacks, and what
    `gen1.parse_body` raises.
    """
    if request.op != GENERATE:
        raise Unsupported(f"operation {request.op!r}")
    for name in request.requires:
        if name not in _KNOWN_REQUIREMENTS:
            raise Unsupported(f"feature {name!r}")
    body = gen1.parse_body(request.body)
    if any(resume.choice >= body.n for resume in request.resume):
        raise InvalidRequest("resume names a choice that was not asked for", param="resume")
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
        n=body.n,
        top_logprobs=body.top_logprobs,
        output=body.output,
        resume=request.resume,
        prompt_digest=request.prompt_digest,
        bucket=bucket,
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


def _packed_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


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
    "resume": _read_resume,
    "prompt_digest": lambda unpacker: unpacker.unpack(),
}
"""How the values are read that are lists, or that may be missing."""
