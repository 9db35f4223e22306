"""A way to get an answer, and where such ways come from. Start at `Route`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from tokenplace.errors import TokenplaceError
from tokenplace.operations import Answerer
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate

RETRY_AFTER_S: Final = 5.0  # a new donor is found by the background search within seconds


@dataclass(frozen=True, slots=True)
class Route:
    """A candidate, and how to get what reaches it if it is chosen. may_answer: may it still, by
    what the user says now? asking: entered while it is asked, so that who could go on with its
    answer is not lost sight of, however long that is.
    """

    candidate: Candidate
    open: Callable[[], Answerer]
    may_answer: Callable[[Demand], bool] = lambda _: True
    asking: Callable[[], AbstractContextManager[None]] = nullcontext


class Routes(Protocol):
    """Where the routes for a model come from: own engines and the network's donors."""

    async def find(
        self,
        model: str,
        demand: Demand,
        *,
        within_s: float = math.inf,
        besides: frozenset[str] = frozenset(),
    ) -> Sequence[Route]:
        """All routes known for a model name as an app sent it that meet a request's demand; waits
        for a search, or for signs of life, only when there are none with any of late, and no longer
        than `within_s`. What is known by then counts. besides: donors that do not count, so that
        others are sought when there are only these; also those that had failed before.

        Raises `ModelNotFound`, `NoDonorForModel`, `SearchIncomplete`, and what `demand.screen`
        raises.
        """

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """A donor may be gone, or not offer any more what it said: whoever keeps the donors has it
        prove that. Not called for what `breaker` keeps count of, answers that were bad.
        """
