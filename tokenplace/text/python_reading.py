"""Python's literals read from a `Reader`, and passed on as JSON. Start at `read_arguments`. Pure.

Some models write calls as Python (LFM2, Llama from 3.2 on). Only what has a counterpart in JSON is
read: strings in one pair of quotes, numbers, True, False, None, lists, dictionaries.
"""

from __future__ import annotations

import json
import re
from typing import Final

from tokenplace import defaults
from tokenplace.text.json_reading import read_space, read_string
from tokenplace.text.reader import Reader, Sink, Steps, UnexpectedText

_WORD: Final = re.compile(r"[-+.\w]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", re.ASCII)
_JSON_OF: Final = {"True": "true", "False": "false", "None": "null"}
_CLOSE_OF: Final = {"{": "}", "[": "]"}


def read_arguments(reader: Reader, sink: Sink) -> Steps[None]:
    """Read what stands between the parentheses of a call, and the second of them; pass on an
    object of it. Raises `UnexpectedText`."""
    sink("{")
    yield from read_space(reader)
    is_last = (yield from reader.peek()) == ")"
    while not is_last:
        key: list[str] = []
        yield from reader.run(_WORD, key.append)
        yield from read_space(reader)
        yield from reader.literal("=")
        sink(f"{json.dumps(''.join(key))}: ")
        yield from read_space(reader)
        yield from _read_value(reader, sink, defaults.MAX_PYTHON_DEPTH)
        is_last = yield from _is_last(reader, sink, ")")
    yield from reader.literal(")")
    sink("}")


def _read_value(reader: Reader, sink: Sink, depth: int) -> Steps[None]:
    """depth: levels that it may have."""
    char = yield from reader.peek()
    if char in _CLOSE_OF:
        yield from _read_parts(reader, sink, depth)
    elif char in "\"'":
        yield from _read_string(reader, sink)
    else:
        word: list[str] = []
        yield from reader.run(_WORD, word.append)
        text = "".join(word)
        if text not in _JSON_OF and not _NUMBER.fullmatch(text):
            raise UnexpectedText
        sink(_JSON_OF.get(text, text))


def _read_parts(reader: Reader, sink: Sink, depth: int) -> Steps[None]:
    """A list or a dictionary."""
    if depth == 0:
        raise UnexpectedText
    opening = yield from reader.one_of(_CLOSE_OF)
    close = _CLOSE_OF[opening]
    sink(opening)
    yield from read_space(reader)
    is_last = (yield from reader.peek()) == close
    while not is_last:
        if opening == "{":
            yield from _read_string(reader, sink)
            yield from read_space(reader)
            yield from reader.literal(":")
            sink(": ")
            yield from read_space(reader)
        yield from _read_value(reader, sink, depth - 1)
        is_last = yield from _is_last(reader, sink, close)
    yield from reader.literal(close)
    sink(close)


def _is_last(reader: Reader, sink: Sink, close: str) -> Steps[bool]:
    """Does `close` come behind a value? If not, read up to the next value."""
    yield from read_space(reader)
    if (yield from reader.peek()) == close:
        return True
    yield from reader.literal(",")
    yield from read_space(reader)
    if (yield from reader.peek()) == close:  # Python allows a comma there
        return True
    sink(", ")
    return False


def _read_string(reader: Reader, sink: Sink) -> Steps[None]:
    quote = yield from reader.peek()
    if quote not in "\"'":
        raise UnexpectedText
    sink('"')
    yield from read_string(
        reader, lambda text: sink(json.dumps(text, ensure_ascii=False)[1:-1]), quote
    )
    sink('"')
