"""Tool calls found in what a model writes. Start at `CallSplit`. Pure.

Every model family marks calls in its own way. Here all ways are read alike, whatever model answers:
an app gets a call as a call even if a model has picked up another family's form.

Differs from other servers' parsers: a form is read as a generator over a `Reader`, so arguments are
passed on as they come, and text is held back only until it is clear that it is no call.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from tokenplace import defaults
from tokenplace.text.deltas import CallArguments, CallBegin, Content, Delta
from tokenplace.text.json_reading import ignore, read_space, read_string, read_value
from tokenplace.text.python_reading import read_arguments
from tokenplace.text.reader import Reader, Sink, Steps, UnexpectedText
from tokenplace.text.seams import possible_chars

MISTRAL: Final = "[TOOL_CALLS]"
# What begins calls, and what ends them where something does. The first character of none of them
# stands elsewhere in one.
CLOSE_OF: Final = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen, SmolLM3, Granite
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4-mini; Granite without the end
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|python_tag|>": "",  # Llama 3
    MISTRAL: "",
}
FENCES: Final = ("```json\n", "```\n")
FENCE: Final = "```"
# What a call's object may have before its name; anything else there is no call.
EARLY_KEYS: Final = ('"name"', '"arguments"', '"parameters"', '"id"', '"type"')
ARGUMENTS_KEYS: Final = frozenset({"arguments", "parameters"})
_MARKERS: Final = tuple(CLOSE_OF)
_MARKER: Final = re.compile("|".join(map(re.escape, CLOSE_OF)))
_MARKER_BEGIN: Final = re.compile(r"[<\[]")
_NAME: Final = re.compile(r"[-.\w]*")
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_-]")


class _Output:
    """Deltas in the making: pieces of one kind become one delta."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.has_arguments = False  # the last call
        self._deltas: list[Delta] = []
        self._pieces: list[str] = []
        self._is_arguments = False

    def content(self, text: str) -> None:
        self._piece(text, is_arguments=False)

    def begin(self, name: str) -> None:
        self._flush()
        self._deltas.append(CallBegin(self.n_calls, name))
        self.n_calls += 1
        self.has_arguments = False

    def arguments(self, text: str) -> None:
        self.has_arguments = self.has_arguments or bool(text)
        self._piece(text, is_arguments=True)

    def take(self) -> list[Delta]:
        """All since the last time."""
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _piece(self, text: str, *, is_arguments: bool) -> None:
        if is_arguments != self._is_arguments:
            self._flush()
            self._is_arguments = is_arguments
        self._pieces.append(text)

    def _flush(self) -> None:
        if text := "".join(self._pieces):
            index = self.n_calls - 1
            self._deltas.append(CallArguments(index, text) if self._is_arguments else Content(text))
        self._pieces = []


class CallSplit:
    """Content in, content and calls out; white space next to a call is dropped.

    tools: names of those that may be called. JSON without a mark around it is a call only where it
    names one of them, at the beginning of an answer; with a mark any name makes a call.
    """

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = frozenset(tools)
        self._python_openings = frozenset(f"{name}(" for name in tools)
        self._reader = Reader()
        self._output = _Output()
        self._steps = self._read()
        next(self._steps)

    @property
    def n_calls(self) -> int:
        """Calls begun so far."""
        return self._output.n_calls

    def feed(self, text: str) -> list[Delta]:
        """What is safe to show now."""
        self._reader.feed(text)
        next(self._steps)
        return self._output.take()

    def finish(self) -> list[Delta]:
        """What was held back so far: no more will come. A call that is not whole stays so."""
        self._steps.close()
        self._output.content(self._reader.release())
        return self._output.take()

    # ------------------------------------------------------------ what stands where

    def _read(self) -> Steps[None]:
        """Everything, for ever."""
        try:
            yield from self._read_beginning()
        except UnexpectedText:
            self._output.content(self._reader.release())
        while True:
            yield from self._read_content()
            try:
                marker = yield from self._reader.one_of(CLOSE_OF)
                yield from self._read_marked(marker)
            except UnexpectedText:
                self._output.content(self._reader.release())

    def _read_beginning(self) -> Steps[None]:
        """Calls that an answer begins with, marked or not. Raises `UnexpectedText`."""
        reader = self._reader
        reader.hold()
        yield from read_space(reader)
        match (yield from reader.peek()):
            case "{":
                yield from self._read_objects(is_bare=True)
            case "`":
                yield from reader.one_of(FENCES)
                yield from read_space(reader)
                yield from self._read_calls(is_bare=True)
                yield from self._read_close(FENCE)
            case "[":
                reader.place += 1
                if (yield from reader.peek()) != MISTRAL[1]:
                    yield from self._read_list(is_bare=True)
                else:
                    yield from reader.literal(MISTRAL[1:])
                    yield from self._read_marked(MISTRAL)
            case _:
                yield from self._read_marked((yield from reader.one_of(CLOSE_OF)))
        yield from read_space(reader)

    def _read_content(self) -> Steps[None]:
        """Content up to where a marker may begin; that is held."""
        reader = self._reader
        while True:
            end = _marker_place(reader.text, reader.place)
            self._output.content(reader.text[reader.place : end])
            reader.place = end
            if end < len(reader.text):
                reader.hold()
                return
            yield from reader.more()

    def _read_marked(self, marker: str) -> Steps[None]:
        """What is behind a marker, up to what closes it. Raises `UnexpectedText`."""
        reader = self._reader
        yield from read_space(reader)
        if marker == MISTRAL and (yield from reader.peek()) not in "{[":
            yield from self._read_named()
        else:
            yield from self._read_calls(is_bare=False)
        yield from self._read_close(CLOSE_OF[marker])

    def _read_close(self, close: str) -> Steps[None]:
        """What should close calls, and white space around it; what is there instead is content."""
        reader = self._reader
        yield from read_space(reader)
        if close:
            reader.hold()
            yield from reader.literal(close)
            reader.drop()
            yield from read_space(reader)

    # ------------------------------------------------------------ calls

    def _read_calls(self, *, is_bare: bool) -> Steps[None]:
        if (yield from self._reader.peek()) == "[":
            self._reader.place += 1
            yield from self._read_list(is_bare=is_bare)
        else:
            yield from self._read_objects(is_bare=is_bare)

    def _read_objects(self, *, is_bare: bool) -> Steps[None]:
        """One object or several, with a semicolon, as Llama writes them, or space between them."""
        reader = self._reader
        while True:
            yield from self._read_object(is_bare=is_bare)
            yield from read_space(reader)
            reader.hold()
            char = yield from reader.peek()
            if char == ";":
                reader.place += 1
                yield from read_space(reader)
            elif char != "{":
                reader.drop()
                return

    def _read_list(self, *, is_bare: bool) -> Steps[None]:
        """A list of objects or of Python's calls, of which the bracket has been read."""
        reader = self._reader
        while True:
            yield from read_space(reader)
            if (yield from reader.peek()) == "{":
                yield from self._read_object(is_bare=is_bare)
            else:
                yield from self._read_python_call(is_bare=is_bare)
            yield from read_space(reader)
            reader.hold()
            if (yield from reader.one_of((",", "]"))) == "]":
                reader.drop()
                return

    def _read_named(self) -> Steps[None]:
        """The form of newer Mistrals: NAME[ARGS]OBJECT or NAME[CALL_ID]ID[ARGS]OBJECT, and where
        markers get lost NAMEOBJECT."""
        reader = self._reader
        name: list[str] = []
        yield from reader.run(_NAME, name.append)
        if (yield from reader.peek()) == "[":
            if (yield from reader.one_of(("[ARGS]", "[CALL_ID]"))) == "[CALL_ID]":
                yield from reader.run(_NAME, ignore)
                yield from reader.literal("[ARGS]")
            yield from read_space(reader)
        if (yield from reader.peek()) != "{":
            raise UnexpectedText
        self._begin("".join(name), is_bare=False)
        yield from read_value(reader, self._output.arguments)

    def _read_python_call(self, *, is_bare: bool) -> Steps[None]:
        """NAME(KEY=VALUE, ...)"""
        reader = self._reader
        name: list[str] = []
        if is_bare:  # most lists at the beginning of an answer are no calls: show them at once
            name.append((yield from reader.one_of(self._python_openings))[:-1])
        else:
            yield from reader.run(_NAME, name.append)
            yield from reader.literal("(")
        self._begin("".join(name), is_bare=is_bare)
        yield from read_arguments(reader, self._output.arguments)

    def _read_object(self, *, is_bare: bool) -> Steps[None]:
        """A call as an object of its name and arguments, which may come in any order."""
        reader = self._reader
        early: list[str] = []  # arguments, while the name is not known
        has_name = has_arguments = False
        yield from reader.literal("{")
        while True:
            yield from read_space(reader)
            key = yield from self._read_key(is_any=has_name)
            if key == "name" and not has_name:
                name: list[str] = []
                yield from read_string(reader, name.append)
                self._begin("".join(name), is_bare=is_bare)
                has_name = True
                self._output.arguments("".join(early))
            elif key in ARGUMENTS_KEYS and not has_arguments:
                yield from self._read_arguments(
                    self._output.arguments if has_name else early.append
                )
                has_arguments = True
            else:
                yield from read_value(reader, ignore)
            yield from read_space(reader)
            if (yield from reader.one_of((",", "}"))) == "}":
                break
        if not has_name:
            raise UnexpectedText
        if not self._output.has_arguments:
            self._output.arguments("{}")

    def _read_key(self, *, is_any: bool) -> Steps[str]:
        """A key, one of the early ones unless it may be any, and its colon."""
        reader = self._reader
        if is_any:
            pieces: list[str] = []
            yield from read_string(reader, pieces.append)
            key = "".join(pieces)
        else:
            key = (yield from reader.one_of(EARLY_KEYS))[1:-1]
        yield from read_space(reader)
        yield from reader.literal(":")
        yield from read_space(reader)
        return key

    def _read_arguments(self, sink: Sink) -> Steps[None]:
        """An object, a string that holds one, or nothing as null."""
        match (yield from self._reader.peek()):
            case "{":
                yield from read_value(self._reader, sink)
            case '"':
                yield from read_string(self._reader, sink)
            case _:
                yield from self._reader.literal("null")

    def _begin(self, name: str, *, is_bare: bool) -> None:
        """The name is known: from here on it is a call, whatever comes.

        Apps send back what an answer called, with what came of it, so no more calls are made, and
        no other names, than a conversation may have.
        """
        if is_bare and name not in self._tools:
            raise UnexpectedText
        if not 0 < len(name) <= defaults.MAX_TOOL_NAME_CHARS:
            raise UnexpectedText
        if self._output.n_calls == defaults.MAX_TOOL_CALLS:
            raise UnexpectedText
        self._reader.drop()
        self._output.begin(_NOT_IN_NAMES.sub("_", name))


def _marker_place(text: str, place: int) -> int:
    """From `place` on, where the first marker is, or where one may begin that `text` ends in; the
    end if there is none."""
    begin = _MARKER_BEGIN.search(text, place)
    if begin is None:  # as in most tokens
        return len(text)
    if found := _MARKER.search(text, begin.start()):
        return found.start()
    return len(text) - possible_chars(text[begin.start() :], _MARKERS)
