"""A router over routes that a test gives. Start at `GivenRouter`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from random import Random

from tokenplace.errors import TokenplaceError
from tokenplace.operations import Answerer
from tokenplace.router.attempts import Attempt, Progress
from tokenplace.router.demand import Demand
from tokenplace.router.journal import Journal
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route, Routes
from tokenplace.router.router import Router

WALL_CLOCK_S = 1000.0


class GivenRoutes(ABC):
    """Routes that are found at once. demands: of each search. failures: who is in doubt, why."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.failures: list[tuple[str, TokenplaceError]] = []

    @abstractmethod
    def given(self, demand: Demand) -> Sequence[Route]:
        """What this search finds."""

    async def find(
        self,
        model: str,
        demand: Demand,
        *,
        within_s: float = math.inf,
        besides: frozenset[str] = frozenset(),
    ) -> Sequence[Route]:
        """See `Routes`."""
        self.demands.append(demand)
        return self.given(demand)

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """See `Routes`."""
        self.failures.append((candidate.donor, error))


class GivenRouter(Router):
    """A router of which a test reads the attempts, in the order of their ends."""

    def __init__(
        self, routes: Routes, wall_clock: Callable[[], float] = lambda: WALL_CLOCK_S, seed: int = 7
    ) -> None:
        journal = _Attempts()
        super().__init__(routes, wall_clock=wall_clock, dice=Random(seed), journal=journal)
        self.attempts = journal.attempts


class _Attempts(Journal):
    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[Attempt] = []

    def note_ended(self, progress: Progress, attempt: Attempt) -> None:
        super().note_ended(progress, attempt)
        self.attempts.append(attempt)


def route_to(candidate: Candidate, answerer: Answerer) -> Route:
    """One whose donor is reached at once."""
    return Route(candidate, lambda: answerer)
