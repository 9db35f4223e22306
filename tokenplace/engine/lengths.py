"""How long answers get here, learned from those that ended. Start at `Lengths.left`. Pure.

Differs from a mean of all: of an answer that has so many tokens already, only those count that got
longer. `max_tokens` alone would say little: most apps name none, and few answers fill the context.
"""

from __future__ import annotations

from collections import deque

from tokenplace import defaults


class Lengths:
    """The latest lengths, in tokens."""

    def __init__(self) -> None:
        self._seen = deque([defaults.EXPECTED_ANSWER_TOKENS], maxlen=defaults.LENGTHS_REMEMBERED)

    def note(self, n_tokens: int, *, is_cut: bool) -> None:
        """An answer has ended. is_cut: it would have gone on, and is taken to have come half-way:
        that is what one knows of something of which only the age is known.
        """
        self._seen.append(2 * n_tokens if is_cut else n_tokens)

    def left(self, n_new: int, max_new: int) -> float:
        """Tokens to be expected of an answer that has `n_new`, and may have `max_new`."""
        longer = [min(n, max_new) - n_new for n in self._seen if n > n_new]
        if longer:
            return max(0.0, sum(longer) / len(longer))
        return min(n_new, max_new - n_new)  # longer than all: it has come half-way, maybe
