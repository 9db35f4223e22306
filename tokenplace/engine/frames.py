"""Frames between the engine and its child processes: length(4) ‖ msgpack. Start at `FrameDecoder`.

Bytes only, no I/O. Both ends are ours and of one version, so there is no negotiation. Still
everything is bounded: a child that lost its mind must cost one restart, not the memory of the peer.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from tokenplace import defaults

_LENGTH: Final = struct.Struct(">I")


class BadFrame(Exception):
    """The other process sent something that is no frame of ours."""


def encode_frame(value: object) -> bytes:
    """One frame. Raises `BadFrame` if it is over `defaults.MAX_CHILD_FRAME_BYTES`."""
    body: bytes = msgpack.packb(value)
    if len(body) > defaults.MAX_CHILD_FRAME_BYTES:
        raise BadFrame(f"{len(body)} bytes in one frame")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes in, values out. Arrays arrive as tuples."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take what was read, cut anywhere."""
        self._buffer += data

    def next_value(self) -> Any | None:
        """The next frame's value; None when more data is needed. Raises `BadFrame`."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > defaults.MAX_CHILD_FRAME_BYTES:
            raise BadFrame(f"{length} bytes announced")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        try:
            value = msgpack.unpackb(body, use_list=False)
        except ValueError as error:  # every failure of msgpack's, bad UTF-8 included
            raise BadFrame("not msgpack") from error
        if value is None:
            raise BadFrame("an empty value")
        return value
