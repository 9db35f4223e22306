"""What the engine's benchmark asks for, and what it sees of an answer. Start at `Ask` and `Trace`.

Pure: no arm is known here. `now` is an argument.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Final

# Each is one token of the default model's vocabulary when a space is before it, so a prompt has as
# many tokens as words. A model with other words only makes prompts of other lengths.
_TEXT: Final = """\
the old lighthouse stood above a cold sea and every evening its keeper walked up long stairs
with lamp oil bread letters from friends who lived beyond hills where rivers bend through
green valleys small villages wake early when birds sing fishermen mend nets children run
along stone walls under bright skies storms arrive without warning wind turns waves rise
boats return home smoke leaves stories begin near warm fires music dance song night stars
moon silver path forest bridge market horse garden window table clock winter summer spring
autumn rain snow light shadow voice memory journey island harbor captain sailor mountain
"""
WORDS: Final = _TEXT.split()


def words(n: int, seed: str) -> str:
    """So many words, the same ones for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def prompt(n: int, seed: str, shared: str = "") -> str:
    """A text of `n` tokens that begins with `shared`, or else shares no beginning with others."""
    start = shared or "The"
    return f"{start} {words(n - len(start.split()), seed)}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to any arm: continue this raw text greedily by exactly `n_new` tokens.

    scope: who shares prefixes with whom; arms without scopes share what they like.
    """

    text: str
    n_new: int
    scope: bytes


def asks(n: int, n_prompt: int, n_new: int, seed: str) -> list[Ask]:
    """Requests of `n` strangers."""
    return [
        Ask(prompt(n_prompt, f"{seed}/{number}"), n_new, scope_of(f"{seed}/{number}"))
        for number in range(n)
    ]


def asks_with_prefix(n: int, n_shared: int, n_prompt: int, n_new: int, seed: str) -> list[Ask]:
    """Requests of one app, whose texts begin with the same `n_shared` tokens."""
    shared = prompt(n_shared, seed)
    return [
        Ask(prompt(n_prompt, f"{seed}/{number}", shared), n_new, scope_of(seed))
        for number in range(n)
    ]


def scope_of(seed: str) -> bytes:
    """16 bytes that are a requester's own."""
    return random.Random(seed).randbytes(16)


@dataclass(slots=True)
class Trace:
    """One answer as it arrived. Times are those of `time.perf_counter`; `text` is in UTF-8."""

    sent_at: float = 0.0
    ended_at: float = 0.0
    n_prompt: int = 0
    n_tokens: int = 0
    text: bytes = b""
    times: list[float] = field(default_factory=list)

    def saw(self, n_tokens: int, text: bytes, now: float) -> None:
        """Tokens arrived."""
        self.n_tokens += n_tokens
        self.text += text
        self.times.append(now)

    @property
    def first_s(self) -> float:
        """From asking to the first token."""
        return self.times[0] - self.sent_at

    def longest_gap_s(self, since: float) -> float:
        """The longest silence between two arrivals, of those that ended after `since`."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((after - before for before, after in pairs if after > since), default=0.0)


@dataclass(frozen=True, slots=True)
class Together:
    """What became of requests that were sent at once."""

    tokens_per_s: float
    first_s: float

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> Together:
        """Tokens of all in all the time; mean time to the first token."""
        total_s = max(t.ended_at for t in traces) - min(t.sent_at for t in traces)
        n_tokens = sum(t.n_tokens for t in traces)
        return cls(n_tokens / total_s, mean(t.first_s for t in traces))


@dataclass(frozen=True, slots=True)
class Compared:
    """Both arms' medians over the rounds, and the median of the rounds' ratios."""

    ours: float
    rival: float
    ratio: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Compared:
        """pairs: (ours, rival) of each round."""
        return cls(
            median(ours for ours, _ in pairs),
            median(rival for _, rival in pairs),
            median(ours / rival for ours, rival in pairs),
        )
