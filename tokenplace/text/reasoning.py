"""What a model thinks before it answers, split from the answer. Start at `ReasoningSplit`. Pure.

Only the beginning of an answer can be a thought: tags further on are what somebody talks about.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from tokenplace import defaults
from tokenplace.text.seams import possible_chars

CLOSE_OF: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
SPACE: Final = " \t\r\n"


class _Place(Enum):
    START = auto()  # nothing but white space yet, and maybe part of a tag
    BEFORE_THOUGHT = auto()  # behind the opening tag: white space is dropped
    THOUGHT = auto()
    BEFORE_CONTENT = auto()  # behind the closing tag: white space is dropped
    CONTENT = auto()


class ReasoningSplit:
    """Text in; thought and content out, without the tags and without white space at their seams.

    A thought that is not closed goes on to the end. Of a run of white space at its end at most
    `defaults.MAX_HELD_SPACE` characters are held back, and dropped. Content that follows no thought
    is left as it is.
    """

    def __init__(self) -> None:
        self._place = _Place.START
        self._close = ""  # of the thought that was opened
        self._held = ""  # white space, and what may become a tag

    def feed(self, new: str) -> tuple[str, str]:
        """What is safe to show now: more of the thought, and what comes of the content behind
        it."""
        if self._place is _Place.CONTENT:
            return "", new
        text, self._held = self._held + new, ""
        if self._place is _Place.START:
            text = self._behind_opening(text)
        thought = ""
        if self._place in {_Place.BEFORE_THOUGHT, _Place.THOUGHT}:
            thought, text = self._thought(text)
        if self._place is _Place.BEFORE_CONTENT and (text := text.lstrip(SPACE)):
            self._place = _Place.CONTENT
        return thought, text

    def finish(self) -> tuple[str, str]:
        """What was held back so far: no more will come."""
        held, self._held = self._held, ""
        return ("", held) if self._place is _Place.START else (held.rstrip(SPACE), "")

    def _behind_opening(self, text: str) -> str:
        """Look for the opening tag; the text behind it, or all that can be shown if there is
        none."""
        body = text.lstrip(SPACE)
        if len(text) - len(body) <= defaults.MAX_HELD_SPACE:
            for opening, close in CLOSE_OF.items():
                if body.startswith(opening):
                    self._place, self._close = _Place.BEFORE_THOUGHT, close
                    return body.removeprefix(opening)
            if any(opening.startswith(body) for opening in CLOSE_OF):
                self._held = text
                return ""
        self._place = _Place.CONTENT
        return text

    def _thought(self, text: str) -> tuple[str, str]:
        """The thought in `text` and what is behind it."""
        if self._place is _Place.BEFORE_THOUGHT:
            text = text.lstrip(SPACE)
        if text:
            self._place = _Place.THOUGHT
        cut = text.find(self._close)
        if cut < 0:
            if self._close[0] not in text and text[-1:] not in SPACE:  # as in most tokens
                return text, ""
            end = _end_without_space(text, len(text) - possible_chars(text, (self._close,)))
            self._held = text[end:]
            return text[:end], ""
        self._place = _Place.BEFORE_CONTENT
        return text[: _end_without_space(text, cut)], text[cut + len(self._close) :]


def _end_without_space(text: str, end: int) -> int:
    """Where `text[:end]` ends without its last white space, of which a bounded run is cut off."""
    return max(len(text[:end].rstrip(SPACE)), end - defaults.MAX_HELD_SPACE)
