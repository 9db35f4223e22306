"""Donors and requesters as numbers in a queue of events, around the real `Selector`: what its rules
come to when many requests are made. Start at `Market.run`.

Pure, and without trio: an hour takes about a second. Whether the parts work together is seen in
`benchmarks.simulation`, where everything is real; here rules and their numbers are tried.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tokenplace import defaults
from tokenplace.errors import (
    DeadlineExceeded,
    DonorBusy,
    DonorSilent,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import Accepted, Finished, Timings, Tokens, Usage
from tokenplace.peer.adverts import queue_step
from tokenplace.router.memory import Notes
from tokenplace.router.policy import Candidate
from tokenplace.router.selector import Facts, Selector

ARTIFACT = "a" * 64
FINISHED = Finished((), Usage(1, 0, 1), Timings(0, 0, 0))
RTT_S = 0.03


@dataclass
class Donor:
    """kind: "good", "errs" (every answer fails) or "stalls" (lives, without a token). boast: how
    many times its true speed it advertises.
    """

    name: str
    decode_tps: float = 20.0
    prefill_tps: float = 400.0
    n_seats: int = 1
    kind: str = "good"
    boast: float = 1.0
    group: str = ""
    n_running: int = 0
    waiting: list[Callable[[], None]] = field(default_factory=list)
    told: list[tuple[float, int]] = field(default_factory=list)

    @property
    def n_here(self) -> int:
        return self.n_running + len(self.waiting)


@dataclass
class Asked:
    """One request: when, whom it asked, when its first token came."""

    at: float
    donors: list[str] = field(default_factory=list)
    first_token_s: float | None = None
    is_answered: bool = False


@dataclass
class Requester:
    """away: from when to when its own network is away."""

    selector: Selector
    donors: Sequence[Donor]
    asked: list[Asked] = field(default_factory=list)
    away: tuple[float, float] = (0.0, 0.0)


class Market:
    """Donors, requesters and time."""

    def __init__(
        self,
        donors: Sequence[Donor],
        n_requesters: int,
        *,
        seed: int,
        stale_s: float = 5.0,
        n_prompt: int = 300,
        n_answer: int = 200,
        max_queued: int = 64,
    ) -> None:
        """stale_s: load figures are about so old."""
        self.donors = donors
        self.dice = Random(seed)
        self.stale_s = stale_s
        self.n_prompt = n_prompt
        self.n_answer = n_answer
        self.max_queued = max_queued
        self.now = 0.0
        self.queues: list[list[int]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self.requesters = []
        for _ in range(n_requesters):
            selector = Selector(Random(self.dice.random()), in_doubt=lambda candidate, error: None)
            self.requesters.append(Requester(selector, donors))

    def run(self, seconds: float, per_second: float, sample_s: float = 1.0) -> None:
        """Each request is made at a random moment, by a random requester."""
        self._at(0.0, self._tell)
        self._at(sample_s, lambda: self._sample(sample_s))
        at = self.dice.expovariate(per_second)
        while at < seconds:
            self._at(at, lambda: self._request(self.dice.choice(self.requesters)))
            at += self.dice.expovariate(per_second)
        while self._events and self._events[0][0] <= seconds:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def share_of(self, names: set[str], since: float) -> float:
        """Of all requests since then, how many went to one of these, at whatever attempt."""
        asked = [each for r in self.requesters for each in r.asked if each.at >= since]
        return sum(bool(names & set(each.donors)) for each in asked) / len(asked)

    def firsts(self, since: float) -> Counter[str]:
        """Whom requests since then asked first."""
        return Counter(
            each.donors[0] for r in self.requesters for each in r.asked if each.at >= since
        )

    def p95_first_token_s(self, since: float) -> float:
        """Of the requests since then that were answered."""
        times = sorted(
            each.first_token_s
            for r in self.requesters
            for each in r.asked
            if each.at >= since and each.first_token_s is not None
        )
        return times[int(0.95 * len(times))]

    # ------------------------------------------------------------ events

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._ids), what))

    def _in(self, seconds: float, what: Callable[[], None]) -> None:
        self._at(self.now + seconds, what)

    def _tell(self) -> None:
        for donor in self.donors:
            donor.told = [*donor.told[-4:], (self.now, len(donor.waiting))]
        self._in(self.stale_s / 5, self._tell)

    def _sample(self, sample_s: float) -> None:
        self.queues.append([donor.n_here for donor in self.donors])
        self._in(sample_s, lambda: self._sample(sample_s))

    def _candidate(self, donor: Donor) -> Candidate:
        told_at, queue = donor.told[0]
        return Candidate(
            donor.name,
            ARTIFACT,
            "",
            0,
            0 if donor.boast > 1 else queue_step(queue),
            donor.prefill_tps * donor.boast,
            donor.decode_tps * donor.boast,
            RTT_S,
            True,
            group=donor.group or donor.name,
            load_age_s=self.now - told_at,
        )

    def _request(self, requester: Requester) -> None:
        asked = Asked(self.now)
        requester.asked.append(asked)
        self._attempt(requester, asked)

    def _attempt(self, requester: Requester, asked: Asked) -> None:
        facts = Facts(self.n_prompt, self.n_answer)
        choice = requester.selector.choose(
            [self._candidate(donor) for donor in requester.donors],
            facts,
            frozenset(asked.donors),
            self.now,
            is_first=not asked.donors,
        )
        if choice is None or len(asked.donors) == defaults.MAX_ATTEMPTS:
            return
        candidate = choice.candidate
        asked.donors.append(candidate.donor)
        notes = requester.selector.ask(
            candidate, facts, self.now, wait_s=choice.why.expected_wait_s
        )
        donor = next(each for each in self.donors if each.name == candidate.donor)
        answer = _Answer(self, requester, asked, donor, notes)
        begins, ends = requester.away
        if begins <= self.now < ends:
            self._in(5.0, lambda: answer.fail(DonorSilent()))
        else:
            self._in(RTT_S, answer.arrive)


@dataclass
class _Answer:
    """What one donor does for one request."""

    market: Market
    requester: Requester
    asked: Asked
    donor: Donor
    notes: Notes

    def arrive(self) -> None:
        market, donor = self.market, self.donor
        if donor.kind == "errs":
            self.fail(WorkerCrashed())
            return
        if len(donor.waiting) >= market.max_queued:
            self.fail(DonorBusy(retry_after_s=2.0))
            return
        position = len(donor.waiting) + (donor.n_running >= donor.n_seats)
        self.notes.note(Accepted(b"", market.n_prompt, 0, 4096, 512, "", 0, position), market.now)
        if donor.kind == "stalls":
            market._in(10.0, lambda: self.fail(DeadlineExceeded()))
        elif position:
            donor.waiting.append(self.begin)
        else:
            self.begin()

    def begin(self) -> None:
        self.donor.n_running += 1
        self.market._in(self.market.n_prompt / self.donor.prefill_tps, self.first_token)

    def first_token(self) -> None:
        self.notes.note(Tokens(0, 0, (1,), (b"x",)), self.market.now, self.market.now)
        self.asked.first_token_s = self.market.now - self.asked.at
        n_answer = max(1, int(self.market.dice.expovariate(1 / self.market.n_answer)))
        self.market._in(n_answer / self.donor.decode_tps, lambda: self.finish(n_answer))

    def finish(self, n_answer: int) -> None:
        now = self.market.now
        self.notes.note(Tokens(0, 1, (1,) * n_answer, (b"x",) * n_answer), now, 0.0)
        self.notes.note(FINISHED, now, now)
        self.asked.is_answered = True
        self.donor.n_running -= 1
        if self.donor.waiting:
            self.donor.waiting.pop(0)()

    def fail(self, error: TokenplaceError) -> None:
        self.notes.failed(error, self.market.now)
        self.market._attempt(self.requester, self.asked)
