"""Log-probabilities that appear with their tokens' text, not before. Start at `LogprobQueue`.

Pure. Text that may become a stop string is held back (`tokenplace.text`), and so are the tokens
that it came from: what is behind a stop string was never said. Works on bytes, because tokens end
in the middle of characters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokenplace.generation import Logprob, TopToken
from tokenplace.text.seams import find_first, possible_chars


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer, its raw bytes, and how likely it was. `top` as in `Logprob`."""

    piece: bytes
    logprob: float
    top: tuple[TopToken, ...]


class LogprobQueue:
    """The tokens of one choice. Stop strings are looked for as `Choice` does."""

    def __init__(self, stop: Sequence[str]) -> None:
        # Bytes as characters of the same number: what searches text then searches bytes.
        self._stop = tuple(string.encode().decode("latin-1") for string in stop)
        self._max_stop = max(map(len, self._stop), default=0)
        self._tail = ""  # the last bytes, as far as a stop string can reach back
        self._n_bytes = 0
        self._n_safe = 0  # bytes that can no longer become part of a stop string
        self._is_cut = False
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # with where their bytes end

    def feed(self, pieces: Sequence[bytes], logprobs: Sequence[Logprob]) -> None:
        """Take the next tokens. None are wanted after a stop string."""
        if self._is_cut:
            return
        begins = [self._n_bytes]
        for piece, logprob in zip(pieces, logprobs, strict=True):
            begins.append(begins[-1] + len(piece))
            token = TokenLogprob(piece, logprob.logprob, logprob.top)
            self._held.append((begins[-1], token))
        self._n_bytes = begins[-1]
        text = self._tail + b"".join(pieces).decode("latin-1")
        self._tail = text[len(text) - self._max_stop :] if self._max_stop else ""
        cut = find_first(text, self._stop)
        if cut is None:
            self._n_safe = self._n_bytes - possible_chars(text, self._stop)
        else:
            self._drop_from(self._n_bytes - len(text) + cut)

    def take(self) -> tuple[TokenLogprob, ...]:
        """The tokens that can be shown now and were not yet."""
        tokens = []
        while self._held and self._held[0][0] <= self._n_safe:
            tokens.append(self._held.popleft()[1])
        return tuple(tokens)

    def finish(self) -> tuple[TokenLogprob, ...]:
        """The tokens that were held back: no more will come."""
        self._n_safe = self._n_bytes
        return self.take()

    def _drop_from(self, cut: int) -> None:
        """Forget the tokens whose text begins at this byte or later."""
        self._held = deque(
            (end, token) for end, token in self._held if end - len(token.piece) < cut
        )
        self._n_safe = self._n_bytes
        self._is_cut = True
