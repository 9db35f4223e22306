"""Reading one frame's map, value by value. Start at `FrameFields`.

Pure. Differs from `fields.py`: whoever reads frames makes one error of all that is wrong, so these
raise what Python does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

_MAX_U32: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class FrameFields:
    """A map's values by key and expected type. Raises `ValueError` or `LookupError`."""

    values: Any

    def integer(self, name: str) -> int:
        """An unsigned integer of 32 bits."""
        return u32(self.values[name])

    def data(self, name: str) -> bytes:
        """Bytes, maybe none."""
        return as_bytes(self.values[name])

    def text(self, name: str, max_chars: int) -> str:
        """Text of at most so many characters, whatever they are."""
        value = self.values[name]
        if type(value) is not str or len(value) > max_chars:
            raise ValueError(name)
        return value

    def items(self, name: str) -> list[Any]:
        """A list."""
        value = self.values[name]
        if type(value) is not list:
            raise ValueError(name)
        return value

    def map(self, name: str) -> FrameFields:
        """A map in the map."""
        value = self.values[name]
        if type(value) is not dict:
            raise ValueError(name)
        return FrameFields(value)


def u32(value: Any) -> int:
    """An unsigned integer of 32 bits, or `ValueError`."""
    if type(value) is not int or not 0 <= value <= _MAX_U32:
        raise ValueError("not an unsigned integer of 32 bits")
    return value


def as_bytes(value: Any) -> bytes:
    """Bytes, or `ValueError`."""
    if type(value) is not bytes:
        raise ValueError("not bytes")
    return value
