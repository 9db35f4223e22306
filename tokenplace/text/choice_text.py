"""Bytes of tokens in, text out: UTF-8 across tokens, and stop strings. Start at `ChoiceText`.

Pure, and run by whoever asked, so the text survives a change of donor in mid-answer. Differs from
llama.cpp's server, which looks for stop strings once a token: here the result depends on the joined
bytes alone, never on where tokens end.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class ChoiceText:
    """The text of one choice, up to the first stop string.

    The first stop string is the one whose last character comes first; of several that end there,
    the longest. The text is cut where it begins. Bytes that are not UTF-8 become U+FFFD, as
    Python's decoder does with "replace".
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        assert all(stop), "an empty stop string would end every answer"
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but may still become the beginning of a stop string

    def feed(self, pieces: bytes) -> str:
        """The text that is safe to show now. Empty after a stop string was found."""
        return self._cut(self._decoder.decode(pieces))

    def finish(self) -> str:
        """The text held back so far: no more bytes will come."""
        text = self._cut(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _cut(self, decoded: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else decoded
        text = self._held + decoded
        cut = find_stop(text, self._stop)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = len(text) - possible_stop_chars(text, self._stop)
        self._held = text[keep:]
        return text[:keep]


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string in `text` begins, or None."""
    found = [(begin + len(string), begin) for string in stop if (begin := text.find(string)) >= 0]
    return min(found)[1] if found else None


def possible_stop_chars(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` could still become a stop string."""
    longest = 0
    for string in stop:
        begin = text.find(string[0], max(0, len(text) - len(string) + 1))
        while begin >= 0 and len(text) - begin > longest:
            if string.startswith(text[begin:]):
                longest = len(text) - begin
                break
            begin = text.find(string[0], begin + 1)
    return longest
