"""Stop strings in text that comes in pieces. Start at `StopStrings`. Pure.

Differs from llama.cpp's server, which looks for them once a token: here the result depends on the
joined text alone, never on where tokens end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenplace.text.seams import find_first, possible_chars


class StopStrings:
    """Text up to the first stop string.

    The first is the one whose last character comes first; of several that end there, the longest.
    The text is cut where it begins (docs/protocol.md, section 7).
    """

    def __init__(self, stop: Sequence[str]) -> None:
        assert all(stop), "an empty stop string would end every answer"
        self.stopped = False
        self._stop = tuple(stop)
        self._begin = re.compile("|".join(re.escape(string[0]) for string in stop))
        self._held = ""  # may still become the beginning of a stop string

    def feed(self, new: str) -> str:
        """The text that is safe to show now. Not to be called after a stop string was found."""
        assert not self.stopped, "the text has ended"
        # Most tokens have none of the characters that stop strings begin with.
        if not self._held and (not self._stop or self._begin.search(new) is None):
            return new
        text = self._held + new
        cut = find_first(text, self._stop)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = len(text) - possible_chars(text, self._stop)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """The text held back so far: no more will come."""
        text, self._held = self._held, ""
        return text
