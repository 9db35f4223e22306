"""Bytes of `/tokenplace/reach/1.0.0` (docs/protocol.md, section 12). No I/O.

Start at `DialBack`, which asks, `Proof`, which counts, and `Answer`, which only explains.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.fields import Fields

PROTOCOL_ID: Final = "/tokenplace/reach/1.0.0"
LENGTH: Final = struct.Struct(">H")
NONCE_BYTES: Final = 16
_MAX_PORT: Final = (1 << 16) - 1
_MAX_TEXT_CHARS: Final = 45  # the longest form of an IPv6 address


class Outcome(StrEnum):
    """What the answering peer says of its dial; a word, no proof."""

    PROVED = "proved"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DialBack:
    """Asks for a connection to the asker's address, at `port`, and for `nonce` over it."""

    nonce: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Proof:
    """Delivers the nonce, over a connection made for it."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How it went. observed: the IP address of the asker, as the answering peer sees it."""

    outcome: Outcome
    observed: str


def encode(message: DialBack | Proof | Answer) -> bytes:
    """A message with its length."""
    fields: dict[str, object]
    if isinstance(message, DialBack):
        fields = {"op": "dial_back", "nonce": message.nonce, "port": message.port}
    elif isinstance(message, Proof):
        fields = {"op": "proof", "nonce": message.nonce}
    else:
        fields = {"outcome": message.outcome.value, "observed": message.observed}
    body: bytes = msgpack.packb(fields)
    return LENGTH.pack(len(body)) + body


def body_length(prefix: bytes) -> int:
    """The length that `prefix` announces. Raises `RemoteProtocolError` if it is too long."""
    (length,) = LENGTH.unpack(prefix)
    if length > defaults.MAX_REACH_MESSAGE_BYTES:
        raise RemoteProtocolError(f"reach: a message of {length} bytes")
    return int(length)


def decode_question(body: bytes) -> DialBack | Proof:
    """What opens a stream, without its length. Raises `RemoteProtocolError`."""
    fields = _fields(body)
    op = fields.text("op", _MAX_TEXT_CHARS)
    nonce = fields.data("nonce", NONCE_BYTES)
    if len(nonce) != NONCE_BYTES:
        raise fields.fault("nonce")
    if op == "proof":
        return Proof(nonce)
    if op != "dial_back":
        raise fields.fault("op")
    port = fields.integer("port", _MAX_PORT)
    if not port:
        raise fields.fault("port")
    return DialBack(nonce, port)


def decode_answer(body: bytes) -> Answer:
    """An answer without its length; an outcome of later versions counts as refused.

    Raises `RemoteProtocolError`.
    """
    fields = _fields(body)
    outcome = fields.text("outcome", _MAX_TEXT_CHARS)
    observed = fields.text("observed", _MAX_TEXT_CHARS)
    try:
        ip = ipaddress.ip_address(observed)
    except ValueError:
        raise fields.fault("observed") from None
    if "%" in observed:  # a zone means something only on the machine that says it
        raise fields.fault("observed")
    known = Outcome(outcome) if outcome in set(Outcome) else Outcome.REFUSED
    return Answer(known, str(ip))


def _fields(body: bytes) -> Fields:
    try:
        values = msgpack.unpackb(body, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise RemoteProtocolError("reach: the message is not msgpack") from None
    if not isinstance(values, dict):
        raise RemoteProtocolError("reach: the message is not a map")
    return Fields("reach", values)
