"""When a second donor is asked though the first may still answer, and when the first is left
(docs/protocol.md, section 11). Start at `Hedging.due_at`.

Pure: `now` is an argument, in seconds of any steady clock. A hedge costs a donor's time, so it is
only made while the first donor does not work on the request, only into a slot that is idle, and for
one request in `defaults.HEDGE_ONE_IN`: where everybody is busy, hedging must not make it worse.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from tokenplace import defaults
from tokenplace.generation import Accepted
from tokenplace.router.attempts import Outcome, Progress
from tokenplace.router.policy import Candidate

_P95: Final = 0.95
# Until a donor has shown how it keeps its word: what it promises is an expectation, and half come
# later. Worth one sample, so after twenty it does not count.
PRIOR: Final = 2.0
_SAMPLES: Final = 32  # of one donor; the latest
_MAX_DONORS: Final = 1024  # remembered; 0.5 KB each
_MIN_PROMISE_S: Final = 0.25  # below, a round trip decides whether it was kept


class Punctuality:
    """How late donors are at the worst: the 95th percentile of actual ÷ promised seconds to the
    first token, of each donor, as measured here."""

    def __init__(self) -> None:
        self._ratios: dict[str, deque[float]] = {}  # the donor noted last stands last

    def note(self, donor: str, promised_s: float, actual_s: float) -> None:
        """It has taken so long; or, of one that was left before its first token, longer."""
        ratios = self._ratios.pop(donor, None) or deque(maxlen=_SAMPLES)
        ratios.append(actual_s / max(promised_s, _MIN_PROMISE_S))
        self._ratios[donor] = ratios
        if len(self._ratios) > _MAX_DONORS:
            del self._ratios[next(iter(self._ratios))]

    def factor(self, donor: str) -> float:
        """1 to `defaults.FIRST_TOKEN_ETA_FACTOR`, behind which a donor is given up anyway."""
        ratios = sorted((PRIOR, *self._ratios.get(donor, ())))
        at = math.ceil(_P95 * len(ratios)) - 1
        return float(min(max(ratios[at], 1.0), defaults.FIRST_TOKEN_ETA_FACTOR))


class HedgeBudget:
    """A token bucket, filled by requests: of n in a row, n ÷ `HEDGE_ONE_IN` + `HEDGE_BURST` are
    hedged at the most."""

    def __init__(self) -> None:
        self._credit = self._full

    @property
    def _full(self) -> int:
        return defaults.HEDGE_BURST * defaults.HEDGE_ONE_IN

    def note_request(self) -> None:
        """Another request was made."""
        self._credit = min(self._credit + 1, self._full)

    def take(self) -> bool:
        """May one be hedged? Then that is counted."""
        if self._credit < defaults.HEDGE_ONE_IN:
            return False
        self._credit -= defaults.HEDGE_ONE_IN
        return True


class Hedging:
    """What one requester knows about it, over all its requests."""

    def __init__(self) -> None:
        self.budget = HedgeBudget()
        self._punctuality = Punctuality()

    def due_at(self, progress: Progress, accepted: Accepted | None) -> float:
        """When whoever is asked has let the request wait for longer than usual for it.

        A donor that has not even said yes or no is not given what its queue would take; one that
        has, no longer than `HEDGE_AFTER_MAX_S`, whatever it promises.
        """
        if accepted is None or progress.accepted is None:
            return progress.started + defaults.HEDGE_UNACCEPTED_S
        factor = self._punctuality.factor(progress.asked.candidate.donor)
        after_s = max(factor * accepted.eta_ms / 1000, defaults.HEDGE_AFTER_MIN_S)
        return progress.accepted + min(after_s, defaults.HEDGE_AFTER_MAX_S)

    def note_ended(self, progress: Progress, accepted: Accepted | None, now: float) -> None:
        """An attempt is over: learn how its donor kept its word."""
        if accepted is None or progress.accepted is None:
            return
        promised_s = accepted.eta_ms / 1000
        actual_s = (progress.first_token or now) - progress.accepted
        is_known = progress.first_token is not None or (
            progress.outcome in (Outcome.OUTRACED, Outcome.DEADLINE_EXCEEDED)
            and actual_s > promised_s  # else it may have been in time yet
        )
        if is_known:
            self._punctuality.note(progress.asked.candidate.donor, promised_s, actual_s)


def is_idle(candidate: Candidate) -> bool:
    """Does it say, and lately, that a request would not wait there?

    Without a `live` of late its queue only looks empty.
    """
    is_known = candidate.load_age_s is not None
    return is_known and candidate.is_accepting and candidate.queue == 0


def can_hedge(candidate: Candidate, second: Candidate) -> bool:
    """Would `second` do as well as the first? A smaller model would not."""
    return is_idle(second) and not second.is_own and second.rank <= candidate.rank


def patience_ends_at(progress: Progress, accepted: Accepted | None) -> float:
    """When a donor without a first token is left for another, whatever it promises: reckoned from
    what this peer asked, not from what the donor says of its queue.
    """
    n_new = accepted.n_prompt - accepted.n_cached + progress.asked.n_resumed if accepted else 0
    prompt_s = max(0, n_new) / defaults.PATIENT_PREFILL_TPS
    return progress.started + defaults.FIRST_TOKEN_PATIENCE_S + prompt_s
