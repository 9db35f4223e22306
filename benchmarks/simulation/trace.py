"""What happened in a run, in order. Start at `Trace`. Pure but for trio's clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import trio


class Trace:
    """Lines with the virtual time at which something happened; `digest` tells two runs apart.

    Names and numbers only: what is random by nature (keys, sealed bytes) has no place here.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """say: gets each line as it happens, e.g. `print`."""
        self.n_lines = 0
        self._hash = hashlib.sha256()
        self._say = say

    def note(self, *what: object) -> None:
        """This has happened now."""
        line = f"{trio.current_time():11.6f} {' '.join(map(str, what))}"
        self.n_lines += 1
        self._hash.update(line.encode() + b"\n")
        if self._say is not None:
            self._say(line)

    @property
    def digest(self) -> str:
        """sha256 of all lines so far, in hex."""
        return self._hash.hexdigest()
