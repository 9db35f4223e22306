"""JSON from a stranger, and its fields one by one. Start at `JsonReader`.

Pure. Every function raises `InvalidRequest` with `param` naming the field, and never quotes what it
read. What nobody asks for is never looked at, so unknown fields are ignored.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeGuard

from tokenplace import defaults
from tokenplace.errors import InvalidRequest

_ID_BYTES: Final = 4
_STRING: Final = re.compile(rb'"[^"]*"?')
_BRACKETS: Final = bytes.maketrans(b"[]{}", b"()()")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(slots=True)
class JsonReader:
    """Reads objects that have at most `n_parts_left` strings, commas and brackets outside strings,
    all together. One that has more, or is nested too deep, is refused before it is parsed: the
    parser would go a thousand levels deep first, and hold everybody up for most of a second over
    3 MiB of empty objects.
    """

    n_parts_left: int = field(default_factory=lambda: defaults.MAX_BODY_PARTS)

    def read(
        self, data: bytes, max_depth: int, *, what: str, param: str | None = None
    ) -> dict[str, Any]:
        """One object. what: its name in the error's text."""
        if self._is_long_or_deep(data, max_depth):
            reason = f"{what} is nested more than {max_depth} deep, or has too many parts"
            raise InvalidRequest(reason, param=param)
        try:
            fields = json.loads(
                data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
            )
        except _BadObject as error:
            raise InvalidRequest(f"{what} {error}", param=param) from None
        except ValueError:  # also what is not UTF-8, and integers of thousands of digits
            raise InvalidRequest(f"{what} is not JSON", param=param) from None
        if type(fields) is not dict:
            raise InvalidRequest(f"{what} is not an object", param=param)
        return fields

    def _is_long_or_deep(self, data: bytes, max_depth: int) -> bool:
        """True, too, for some texts that are no JSON at all."""
        # Quotes that end no string go first. A pattern that knows of them takes a second for the
        # largest body, and with a string that never ends, where it tries every later quote, hours.
        unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
        if unescaped.count(b'"') > 2 * self.n_parts_left:
            return True
        rest, n_strings = _STRING.subn(b"", unescaped)
        brackets = rest.translate(_BRACKETS, _NO_BRACKETS)
        self.n_parts_left -= n_strings + rest.count(b",") + len(brackets)
        if self.n_parts_left < 0:
            return True
        for _ in range(max_depth):  # each round takes the innermost level away
            brackets = brackets.replace(b"()", b"")
        return bool(brackets)


class _BadObject(ValueError):
    """What is wrong, to be said behind the object's name."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _BadObject("has a field twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise _BadObject("has NaN or Infinity, which are not JSON")


# ---------------------------------------------------------------- one field


def number(
    fields: dict[str, Any], name: str, default: float, is_in_range: Callable[[float], bool]
) -> float:
    """A number that is in its range."""
    value = fields.get(name, default)
    if type(value) not in (int, float) or not is_in_range(value):
        raise InvalidRequest(f"{name} must be a number in its range", param=name)
    return float(value)


def integer(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """An integer from `low` to `high`; None if it is not there."""
    if name not in fields:
        return None
    value = fields[name]
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}", param=name)
    return value


def flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    """True or false."""
    value = fields.get(name, default)
    if type(value) is not bool:
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def items(fields: dict[str, Any], name: str, low: int, high: int, *, param: str) -> list[Any]:
    """A list of `low` to `high` things; an empty one if it is not there."""
    value = fields.get(name, [])
    if type(value) is not list or not low <= len(value) <= high:
        raise InvalidRequest(f"{param} must be a list of {low} to {high}", param=param)
    return value


def objects(
    fields: dict[str, Any], name: str, low: int, high: int, *, param: str
) -> list[tuple[str, dict[str, Any]]]:
    """A list of objects, each with its place for errors."""
    found = []
    for index, value in enumerate(items(fields, name, low, high, param=param)):
        where = f"{param}[{index}]"
        if type(value) is not dict:
            raise InvalidRequest(f"{where} must be an object", param=where)
        found.append((where, value))
    return found


def text(fields: dict[str, Any], name: str, max_bytes: int, *, param: str) -> str:
    """Text of at most so many bytes in UTF-8."""
    value = fields.get(name)
    if not is_text(value) or len(value.encode()) > max_bytes:
        raise InvalidRequest(f"{param} must be text of at most {max_bytes} bytes", param=param)
    return value


def is_text(value: object) -> TypeGuard[str]:
    """Text that has a UTF-8 form: JSON's escapes can spell lone surrogates, which have none."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------- token ids


def ids_text(values: Sequence[int], param: str) -> str:
    """Token ids as they cross: base64 of a little-endian u32 each."""
    try:
        return base64.b64encode(struct.pack(f"<{len(values)}I", *values)).decode()
    except struct.error:
        raise InvalidRequest(f"{param}: a token id has at most 32 bits", param=param) from None


def ids(value: object, most: int, *, param: str) -> tuple[int, ...]:
    """1 to `most` token ids. Each list of them has one spelling."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    n_ids = len(data) // _ID_BYTES
    if len(data) % _ID_BYTES or not 1 <= n_ids <= most or base64.b64encode(data).decode() != value:
        raise InvalidRequest(f"{param} must be base64 of 1 to {most} token ids", param=param)
    return struct.unpack(f"<{n_ids}I", data)
