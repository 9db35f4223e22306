"""JSON read from a `Reader`. Start at `read_value`. Pure.

Differs from the json module: text is passed on as it comes, as it was written, and it is read only
as strictly as it takes to find where a value ends: numbers may have odd forms, strings may hold
line breaks. Whoever gets the text parses it anyway.
"""

from __future__ import annotations

import re
from typing import Final

from tokenplace import defaults
from tokenplace.text.reader import Reader, Sink, Steps, UnexpectedText

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_PLAIN: Final = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}
_SCALAR: Final = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR_BEGIN: Final = re.compile(r"[-0-9A-Za-z]")
# Whole members or elements without anything inside them, to read many at once.
_S: Final = r"[ \t\r\n]*+"
_QUOTED: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT: Final = rf"(?>{_QUOTED}|[-0-9A-Za-z][-+.0-9A-Za-z]*+)"
_FLAT_MEMBERS: Final = re.compile(rf"(?>{_QUOTED}{_S}:{_S}{_FLAT}{_S},{_S})*+", re.DOTALL)
_FLAT_ELEMENTS: Final = re.compile(rf"(?>{_FLAT}{_S},{_S})*+", re.DOTALL)
_CLOSE_OF: Final = {"{": "}", "[": "]"}
_ESCAPES: Final = {
    **{"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"},
    **{char: char for char in "\"'\\/"},
}
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_REPLACEMENT: Final = "\ufffd"


def ignore(_: str) -> None:
    """A sink for what nobody needs."""


def read_space(reader: Reader, sink: Sink = ignore) -> Steps[None]:
    """Read white space, if there is any."""
    if reader.place == reader.end or reader.text[reader.place] in " \t\r\n":
        yield from reader.run(_SPACE, sink)


def read_value(reader: Reader, sink: Sink) -> Steps[None]:
    """Read one value and pass on its text. Raises `UnexpectedText` where it is no JSON, or is
    nested deeper than `defaults.MAX_ARGUMENTS_DEPTH`."""
    closes: list[str] = []  # of what is open, from the outside in
    while True:
        char = yield from reader.peek()
        if close := _CLOSE_OF.get(char):
            if len(closes) == defaults.MAX_ARGUMENTS_DEPTH:
                raise UnexpectedText
            closes.append(close)
            _take(reader, sink)
            yield from read_space(reader, sink)
            if (yield from reader.peek()) != close:
                yield from _read_up_to_value(reader, sink, close)
                continue
        elif char == '"':
            yield from _read_quoted(reader, sink)
        elif _SCALAR_BEGIN.match(char):
            yield from reader.run(_SCALAR, sink)
        else:
            raise UnexpectedText
        yield from _read_closes(reader, sink, closes)
        if not closes:
            return
        yield from _read_up_to_value(reader, sink, closes[-1])


def _read_closes(reader: Reader, sink: Sink, closes: list[str]) -> Steps[None]:
    """Behind a value: read all that closes there, up to the comma before the next value."""
    while closes:
        yield from read_space(reader, sink)
        char = yield from reader.peek()
        if char == ",":
            _take(reader, sink)
            yield from read_space(reader, sink)
            return
        if char != closes[-1]:
            raise UnexpectedText
        closes.pop()
        _take(reader, sink)


def _read_up_to_value(reader: Reader, sink: Sink, close: str) -> Steps[None]:
    """Read what stands before a value inside of something that ends with `close`."""
    flat = _FLAT_MEMBERS if close == "}" else _FLAT_ELEMENTS
    # A match at the end of what is there is as good as any: whatever follows, its comma is read.
    found = flat.match(reader.text, reader.place, reader.end)
    if found is not None and found.group():
        sink(found.group())
        reader.place = found.end()
        yield from read_space(reader, sink)
    if close == "}":
        if (yield from reader.peek()) != '"':
            raise UnexpectedText
        yield from _read_quoted(reader, sink)
        yield from read_space(reader, sink)
        if (yield from reader.peek()) != ":":
            raise UnexpectedText
        _take(reader, sink)
        yield from read_space(reader, sink)


def _read_quoted(reader: Reader, sink: Sink) -> Steps[None]:
    """Read a string and pass on its text with quotes and escapes."""
    _take(reader, sink)
    while True:
        yield from reader.run(_PLAIN['"'], sink)
        char = yield from reader.peek()
        _take(reader, sink)
        if char == '"':
            return
        yield from reader.peek()
        _take(reader, sink)


def read_string(reader: Reader, sink: Sink, quote: str = '"') -> Steps[None]:
    """Read a string and pass on what it says. Raises `UnexpectedText`.

    Half of a surrogate pair becomes U+FFFD: it could not be sent on. An unknown escape stays.
    """
    yield from reader.literal(quote)
    while True:
        yield from reader.run(_PLAIN[quote], sink)
        char = yield from reader.peek()
        reader.place += 1
        if char == quote:
            return
        sink((yield from _read_escape(reader)))


def _read_escape(reader: Reader) -> Steps[str]:
    """What stands behind a backslash."""
    char = yield from reader.peek()
    reader.place += 1
    if char != "u":
        return _ESCAPES.get(char, f"\\{char}")
    code = yield from _read_hex(reader)
    if not 0xD800 <= code < 0xDC00:
        return _REPLACEMENT if 0xDC00 <= code < 0xE000 else chr(code)
    if (yield from reader.peek()) != "\\":
        return _REPLACEMENT
    reader.place += 1
    if (yield from reader.peek()) != "u":
        return _REPLACEMENT + (yield from _read_escape(reader))
    reader.place += 1
    low = yield from _read_hex(reader)
    if 0xDC00 <= low < 0xE000:
        return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
    return _REPLACEMENT + (_REPLACEMENT if 0xD800 <= low < 0xDC00 else chr(low))


def _read_hex(reader: Reader) -> Steps[int]:
    digits = ""
    for _ in range(4):
        char = yield from reader.peek()
        if char not in _HEX:
            raise UnexpectedText
        digits += char
        reader.place += 1
    return int(digits, 16)


def _take(reader: Reader, sink: Sink) -> None:
    sink(reader.text[reader.place])
    reader.place += 1
