"""A donor's unsealed no, as bytes (docs/protocol.md, section 5). Start at `Refusal`. Pure."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Final

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
)
from tokenplace.peer import grease

_LENGTH: Final = struct.Struct(">H")
_MAX_KEYS: Final = 64  # version 1 has 4; the rest is room for later ones
_MAX_RETRY_AFTER_S: Final = 3600.0

REFUSALS: Final[dict[ErrorCode, type[TokenplaceError]]] = {
    error.code: error for error in (UnknownKey, StaleEpoch, DonorBusy, RequestTooBig, BadFormat)
}
"""What a donor may say unsealed."""


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
    return b"\0" + _LENGTH.pack(len(payload)) + payload


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
