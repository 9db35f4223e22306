"""What this requester has measured itself: how long a donor takes to its first token, and how fast
it then writes. Start at `Experience`.

Pure: `now` is an argument. What a donor says of itself is a prior, worth `PRIOR_SAMPLES`, and never
believed beyond what is typical of those measured with the same artifact: so somebody who advertises
a hundred times its speed is soon expected at what it delivers. Measurements lose half their weight
every `HALF_LIFE_S`, so that a donor that became better is seen again.

Differs from a plain average: a sample counts as at most `OUTLIER` times what was known, for one
hiccup says little; one that goes on is followed within a few samples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tokenplace import defaults

PRIOR_SAMPLES: Final = 3.0
# More than so many samples do not weigh: the latest minutes say more than the whole day.
MAX_SAMPLES: Final = 20.0
HALF_LIFE_S: Final = 900.0
OUTLIER: Final = 4.0
# A first token is measured in units of what it takes somebody plain: so short and long prompts can
# be told of in one figure.
PLAIN_LAG_S: Final = 0.1
PLAIN_PREFILL_TPS: Final = 500.0
# Fewer tokens say more of the network's hiccups than of the donor.
MIN_DECODED: Final = 8


def plain_first_token_s(n_prompt: float) -> float:
    """The unit in which first tokens are measured: what a plain donor takes for such a prompt."""
    return PLAIN_LAG_S + n_prompt / PLAIN_PREFILL_TPS


@dataclass(slots=True)
class Average:
    """Of one figure. weight: samples' worth; at: when it was so."""

    mean: float = 0.0
    weight: float = 0.0
    at: float = 0.0

    def add(self, sample: float, now: float) -> None:
        """Take in one sample."""
        self._fade(now)
        if self.weight >= 1:
            sample = min(max(sample, self.mean / OUTLIER), self.mean * OUTLIER)
        self.mean = (self.mean * self.weight + sample) / (self.weight + 1)
        self.weight = min(self.weight + 1, MAX_SAMPLES)

    def blended(self, prior: float, now: float) -> float:
        """With what is expected without any sample."""
        self._fade(now)
        return (prior * PRIOR_SAMPLES + self.mean * self.weight) / (PRIOR_SAMPLES + self.weight)

    def _fade(self, now: float) -> None:
        if now > self.at:
            self.weight *= 0.5 ** ((now - self.at) / HALF_LIFE_S)
            self.at = now


@dataclass(slots=True)
class _Measured:
    """Of one donor with one artifact. first_token: in units of `plain_first_token_s`. token_s:
    seconds for each token after the first.
    """

    first_token: Average = field(default_factory=Average)
    token_s: Average = field(default_factory=Average)


@dataclass(frozen=True, slots=True)
class Typical:
    """The middle of what was measured with one artifact; None as long as nothing was."""

    first_token: float | None = None
    token_s: float | None = None


class Experience:
    """Measurements by donor and artifact; those made longest ago are forgotten first."""

    def __init__(self) -> None:
        self._measured: OrderedDict[tuple[str, str], _Measured] = OrderedDict()

    def __len__(self) -> int:
        return len(self._measured)

    def knows(self, donor: str, artifact: str) -> bool:
        """Has a first token of it ever come here?"""
        return (donor, artifact) in self._measured

    def note_first_token(
        self, donor: str, artifact: str, *, n_prompt: float, seconds: float, now: float
    ) -> None:
        """A first token came after so long, in which so many prompt tokens were read."""
        sample = max(seconds, 0.0) / plain_first_token_s(n_prompt)
        self._of(donor, artifact).first_token.add(sample, now)

    def note_at_least(
        self, donor: str, artifact: str, *, n_prompt: float, seconds: float, now: float
    ) -> None:
        """A first token had not come after so long: that tells something if it is longer than was
        known. Who was never measured stays so.
        """
        measured = self._measured.get((donor, artifact))
        sample = seconds / plain_first_token_s(n_prompt)
        if measured is not None and sample > measured.first_token.mean:
            measured.first_token.add(sample, now)

    def note_decode(
        self, donor: str, artifact: str, *, n_tokens: int, seconds: float, now: float
    ) -> None:
        """So many tokens came in so long after the first one. Few say nothing."""
        if n_tokens >= MIN_DECODED and seconds > 0:
            self._of(donor, artifact).token_s.add(seconds / n_tokens, now)

    def typical(self, artifact: str) -> Typical:
        """What is typical of those measured with this artifact."""
        first = [each.first_token.mean for each in self._with(artifact) if each.first_token.weight]
        token = [each.token_s.mean for each in self._with(artifact) if each.token_s.weight]
        return Typical(median(first) if first else None, median(token) if token else None)

    def first_token_s(
        self,
        donor: str,
        artifact: str,
        prior_s: float,
        n_prompt: float,
        typical: Typical,
        now: float,
    ) -> float:
        """Expected seconds to the first token, waiting apart. prior_s: by the donor's own word."""
        unit_s = plain_first_token_s(n_prompt)
        prior = max(prior_s / unit_s, typical.first_token or 0.0)
        measured = self._measured.get((donor, artifact))
        return unit_s * (measured.first_token.blended(prior, now) if measured else prior)

    def token_s(
        self, donor: str, artifact: str, prior_s: float, typical: Typical, now: float
    ) -> float:
        """Expected seconds for each further token. prior_s: by the donor's own word."""
        prior = max(prior_s, typical.token_s or 0.0)
        measured = self._measured.get((donor, artifact))
        return measured.token_s.blended(prior, now) if measured else prior

    def decode_tps(self, donor: str) -> float | None:
        """Tokens a second of the donor's answers, by the artifact that it was asked for last; None
        if that was never measured.
        """
        for (other, _), measured in reversed(self._measured.items()):
            if other == donor and measured.token_s.weight:
                return 1 / measured.token_s.mean
        return None

    def _of(self, donor: str, artifact: str) -> _Measured:
        measured = self._measured.setdefault((donor, artifact), _Measured())
        self._measured.move_to_end((donor, artifact))
        while len(self._measured) > defaults.MAX_DONORS_MEASURED:
            self._measured.popitem(last=False)
        return measured

    def _with(self, artifact: str) -> Iterator[_Measured]:
        return (each for (_, of), each in self._measured.items() if of == artifact)
