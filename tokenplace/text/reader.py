"""Text that comes in pieces, read as if it were whole. Start at `Reader`. Pure.

Differs from a usual parser's input: what reads it are generators, which stop in the middle of
anything until more text is there, so that a parser is written down as if it had all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from re import Pattern
from typing import TypeVar

from tokenplace import defaults

Value = TypeVar("Value")
Steps = Generator[None, None, Value]
"""A reading that yields whenever it needs more text, and returns a `Value`."""
Sink = Callable[[str], None]
"""Takes text that was read, in pieces of any size."""


class UnexpectedText(Exception):
    """The text at this place is not what was looked for. Nothing behind the place was read."""


class Reader:
    """A piece of text and a place in it.

    Text can be held: what is read from then on can be had back as a whole. No more is held than
    `defaults.MAX_HELD_CALL` characters, behind which there is `UnexpectedText`.
    """

    def __init__(self) -> None:
        self.text = ""
        self.place = 0
        self.end = 0  # of what may be read now
        self._is_holding = False
        self._hold_place = 0  # in this piece
        self._held: list[str] = []  # of earlier pieces
        self._n_held = 0

    def feed(self, piece: str) -> None:
        """Go on with the next piece. The last one must have been read to its end."""
        assert self.place == self.end == len(self.text), "text would be lost"
        if self._is_holding:
            self._held.append(self.text[self._hold_place :])
            self._n_held += len(self.text) - self._hold_place
        self._hold_place = self.place = 0
        self.text = piece
        self._set_end()

    # ------------------------------------------------------------ holding

    def hold(self) -> None:
        """Hold what is read from here on, and nothing from before."""
        self._is_holding = True
        self._hold_place = self.place
        self._held, self._n_held = [], 0
        self._set_end()

    def release(self) -> str:
        """What is held; it is held no more."""
        if not self._is_holding:
            return ""
        text = "".join([*self._held, self.text[self._hold_place : self.place]])
        self.drop()
        return text

    def drop(self) -> None:
        """Forget what is held."""
        self._is_holding = False
        self._held, self._n_held = [], 0
        self._set_end()

    def _set_end(self) -> None:
        self.end = len(self.text)
        if self._is_holding:
            room = defaults.MAX_HELD_CALL - self._n_held
            self.end = min(self.end, self._hold_place + room)

    # ------------------------------------------------------------ reading

    def more(self) -> Steps[None]:
        """Wait until there is something to be read."""
        while self.place == self.end:
            if self._is_holding and self._n_held_now() >= defaults.MAX_HELD_CALL:
                raise UnexpectedText
            yield

    def _n_held_now(self) -> int:
        return self._n_held + self.place - self._hold_place

    def peek(self) -> Steps[str]:
        """The next character, which stays unread."""
        if self.place == self.end:
            yield from self.more()
        return self.text[self.place]

    def run(self, pattern: Pattern[str], sink: Sink) -> Steps[None]:
        """Read as many characters as match `pattern`, which is one class of characters with a
        star."""
        while True:
            found = pattern.match(self.text, self.place, self.end)
            assert found is not None, "a star always matches"
            if found.end() > self.place:
                sink(found.group())
                self.place = found.end()
            if self.place < self.end:
                return
            yield from self.more()

    def literal(self, expected: str) -> Steps[None]:
        """Read just this. Raises `UnexpectedText`."""
        yield from self.one_of((expected,))

    def one_of(self, options: Collection[str]) -> Steps[str]:
        """Read one of these, none of which begins another. Raises `UnexpectedText` at the first
        character that none of them has there."""
        for option in options:  # mostly all of it is there
            if self.text.startswith(option, self.place, self.end):
                self.place += len(option)
                return option
        found = ""
        while found not in options:
            found += yield from self.peek()
            if not any(option.startswith(found) for option in options):
                raise UnexpectedText
            self.place += 1
        return found
