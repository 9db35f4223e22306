"""How far the search for somebody who answers one request is: whom it has asked, what went wrong,
whether it may go on. Start at `Search`. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tokenplace import defaults
from tokenplace.errors import (
    ConnectionLost,
    ContextLengthExceeded,
    DonorBusy,
    NoDonorForModel,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import RETRY_AFTER_S, Route
from tokenplace.router.selector import Facts
from tokenplace.router.why import Rule, Why


@dataclass
class Search:
    """How far the search for somebody who answers one request is.

    unanswered_since: when the app asked, or the attempt ended that delivered something last.
    number: of the last attempt, 0 for the first. last: who was asked last, of a race who won it.
    again: whose path broke while he answered; asked_again: who had that chance. error: what says
    most of why it is not answered; failed: whose it is. cut: of the last one that had delivered
    something. n_fruitless: attempts in a row that did not get on. is_hedged: there was a second
    donor at the same time. look_at: not before then it is looked for others again. request: its id.
    why: the one asked last was chosen. facts: what the choice is made by. n_busy, free_in_s: donors
    that were full, and the soonest that one of them said to be asked again. small_ctx: contexts of
    so many tokens are too small, by what donors said.
    """

    model: str
    demand: Demand
    unanswered_since: float
    number: int = -1
    tried: set[str] = field(default_factory=set)
    last: Route | None = None
    again: Route | None = None
    n_busy: int = 0
    free_in_s: float = math.inf
    asked_again: set[str] = field(default_factory=set)
    error: TokenplaceError | None = None
    failed: Candidate | None = None
    small_ctx: int = 0
    cut: TokenplaceError | None = None
    n_fruitless: int = 0
    n_crashes: int = 0
    is_hedged: bool = False
    look_at: float = 0.0
    request: str = ""
    why: Why | None = None
    facts: Facts = field(default_factory=Facts)

    @property
    def is_exhausted(self) -> bool:
        """Has there been enough trying?"""
        return (
            self.n_fruitless >= defaults.MAX_ATTEMPTS
            or self.number + 1 >= defaults.MAX_ATTEMPTS_IN_ALL
        )

    @property
    def may_go_on(self) -> bool:
        """May another attempt do better? Not with what would repeat, nor with a request that has
        crashed two workers already."""
        return self.error is None or (_may_do_better(self.error) and self.n_crashes < 2)

    @property
    def lost(self) -> frozenset[str]:
        """Who was asked and will not answer: others are worth a search. Where all are busy there is
        no need to ask the network for more at every request.
        """
        return frozenset() if isinstance(self.error, DonorBusy) else frozenset(self.tried)

    @property
    def ends_at(self) -> float:
        """When the app is told that nobody answers."""
        return self.unanswered_since + defaults.MAX_UNANSWERED_S

    @property
    def is_last_attempt(self) -> bool:
        """Would a failure without a token be the last?"""
        return (
            self.n_fruitless + 1 >= defaults.MAX_ATTEMPTS
            or self.number + 1 >= defaults.MAX_ATTEMPTS_IN_ALL
        )

    def note_asked(self, route: Route) -> None:
        """This one is asked now."""
        self.number += 1
        self.last = route
        self.tried.add(route.candidate.donor)

    def note_begun(self, route: Route) -> None:
        """The answer's tokens are this one's, from now on."""
        self.last = route

    def note_left(self, route: Route) -> None:
        """This one was left for another, and may be asked again."""
        self.tried.discard(route.candidate.donor)

    def note_failure(self, route: Route, error: TokenplaceError, n_tokens: int, now: float) -> None:
        """This one has failed, after so many new tokens."""
        if isinstance(error, ContextLengthExceeded):
            self.small_ctx = max(self.small_ctx, error.small_ctx)
        if self._says_more(error):
            self.error, self.failed = error, route.candidate
        self.n_fruitless = 0 if n_tokens >= defaults.PROGRESS_TOKENS else self.n_fruitless + 1
        self.n_crashes += isinstance(error, WorkerCrashed)
        if isinstance(error, DonorBusy):
            self.n_busy += 1
            self.free_in_s = min(self.free_in_s, error.retry_after_s or RETRY_AFTER_S)
        if n_tokens:
            self.cut = error
            self.unanswered_since = now
        donor = route.candidate.donor
        # Only its path may have broken, and it keeps what it has computed.
        is_broken_path = isinstance(error, ConnectionLost) and n_tokens > 0
        self.again = route if is_broken_path and donor not in self.asked_again else None

    def _says_more(self, error: TokenplaceError) -> bool:
        """Than what went wrong before? What would repeat says most; and while somebody with room
        for the prompt failed otherwise, it is not too long."""
        if self.error is None or self.failed is None:
            return True
        if isinstance(error, ContextLengthExceeded) and _may_do_better(error):
            return _may_do_better(self.error) and not self.failed.has_room(self.small_ctx)
        return _may_do_better(self.error)

    def take_again(self) -> Route | None:
        """Whom to ask once more, if anybody: the user may not trust him any more."""
        route, self.again = self.again, None
        if route is None or not route.may_answer(self.demand):
            return None
        self.asked_again.add(route.candidate.donor)
        self.why = Why(Rule.SAME_PATH)
        return route

    def why_nobody(self, is_committed: bool) -> TokenplaceError:
        """What to tell the app when there is nobody left to ask. is_committed: it has a part of the
        answer, so what cut that says more than why nobody went on."""
        if is_committed and self.cut is not None:
            return self.cut
        if self.error is None:
            return NoDonorForModel(retry_after_s=RETRY_AFTER_S)
        if isinstance(self.error, DonorBusy):
            n_asked = len(self.tried)
            who = f"All {n_asked}" if self.n_busy >= n_asked else f"{self.n_busy} of the {n_asked}"
            return DonorBusy(f"{who} donors asked are busy.", retry_after_s=self.free_in_s)
        if self.error.retry_elsewhere:
            self.error.retry_after_s = self.error.retry_after_s or RETRY_AFTER_S
        return self.error


def _may_do_better(error: TokenplaceError) -> bool:
    """May another donor? With a prompt that is too long, one with a larger context."""
    is_told = isinstance(error, ContextLengthExceeded) and error.small_ctx > 0
    return error.retry_elsewhere or is_told
