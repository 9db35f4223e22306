"""The generator behind the local API: finds who can answer, asks the best, fails over. Start at
`Router.generate`.

Decides nothing itself (`policy.choose` does) and knows neither libp2p nor llama.cpp: donors and
engines are handed to it as `Route`s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import trio

from tokenplace import defaults
from tokenplace.errors import DonorBusy, NoDonorForModel, TokenplaceError, WorkerCrashed
from tokenplace.generation import (
    Accepted,
    ChatInput,
    Event,
    Finished,
    GenerateRequest,
    Generator,
    Tokens,
)
from tokenplace.router.policy import Candidate, choose

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5.0  # a new donor is found by the background search within seconds
ATTEMPTS_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class Route:
    """A candidate and the generator that reaches it."""

    candidate: Candidate
    generator: Generator


class Routes(Protocol):
    """Where the routes for a model come from: own engines and the network's donors."""

    async def find(self, model: str) -> Sequence[Route]:
        """All routes known for a model name as an app sent it; waits for a search only when there
        are none.

        Raises `ModelNotFound`, `NoDonorForModel` or `SearchIncomplete`.
        """

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """A route did not work: whoever keeps the donors may let it rest."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of asking one donor, for people to read. Never holds text of a prompt or an
    answer.

    outcome: "finished", "cancelled" or an error code. Times in seconds; first_token_s is None if
    none came.
    """

    at: float
    model: str
    donor: str
    number: int
    outcome: str
    first_token_s: float | None
    total_s: float
    n_tokens: int


class Router:
    """A `Generator` over every donor that can be reached, this peer's own engine first."""

    def __init__(self, routes: Routes, *, wall_clock: Callable[[], float], dice: Random) -> None:
        self._routes = routes
        self._wall_clock = wall_clock
        self._dice = dice
        self.attempts: deque[Attempt] = deque(maxlen=ATTEMPTS_REMEMBERED)

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Ask donors until one answers; at most `defaults.MAX_ATTEMPTS`, and only while nothing was
        committed.

        Committed = a token was handed on. For a request that does not stream nothing is handed on
        before the answer is whole, so it may start again at any time. After that a failure is
        raised: never a quiet end, never text of two donors.
        """
        tried: set[str] = set()
        error: TokenplaceError | None = None
        for number in range(defaults.MAX_ATTEMPTS):
            route = await self._next_route(request.model, tried, error)
            if route is None:
                break
            tried.add(route.candidate.donor)
            progress = _Progress(self._wall_clock(), trio.current_time())
            try:
                # Closed here, not by the garbage collector: leaving early must cancel the donor's
                # work at once.
                async with self._attempt(route, request, number, progress) as events:
                    async for event in events:
                        yield event
                return
            except TokenplaceError as failure:
                self._routes.failed(route.candidate, failure)
                crashed_twice = isinstance(failure, WorkerCrashed) and isinstance(
                    error, WorkerCrashed
                )
                if progress.is_committed or not failure.retry_elsewhere or crashed_twice:
                    raise
                error = failure
        raise _nobody_left(error, len(tried))

    async def _next_route(
        self, model: str, tried: set[str], error: TokenplaceError | None
    ) -> Route | None:
        try:
            routes = await self._routes.find(model)
        except TokenplaceError:
            if error is None:
                raise
            return None  # what went wrong with the donor asked before says more
        by_candidate = {route.candidate: route for route in routes}
        chosen = choose(list(by_candidate), frozenset(tried), self._dice)
        return None if chosen is None else by_candidate[chosen]

    @trio.as_safe_channel
    async def _attempt(
        self, route: Route, request: GenerateRequest, number: int, progress: _Progress
    ) -> AsyncGenerator[Event, None]:
        candidate = route.candidate
        outcome = "cancelled"
        template = candidate.template if isinstance(request.input, ChatInput) else ""
        asked = dataclasses.replace(
            request, artifact=candidate.artifact, template=template, attempt=number
        )
        held: list[Event] = []
        try:
            async with route.generator.generate(asked) as events:
                async for event in events:
                    progress.note(event)
                    if isinstance(event, Tokens) and not request.streamed:
                        held.append(event)
                        continue
                    if isinstance(event, Finished):
                        for token in held:
                            progress.is_committed = True
                            yield token
                        outcome = "finished"
                    elif isinstance(event, Tokens):
                        progress.is_committed = True
                    yield event
        except TokenplaceError as failure:
            outcome = failure.code
            raise
        finally:
            self._remember(candidate, request.model, number, outcome, progress)

    def _remember(
        self, candidate: Candidate, model: str, number: int, outcome: str, progress: _Progress
    ) -> None:
        attempt = progress.attempt(candidate.donor or "self", model, number, outcome)
        self.attempts.append(attempt)
        log.info(
            "attempt %d for %s by %s: %s after %.2f s, %d tokens",
            number,
            model,
            attempt.donor,
            outcome,
            attempt.total_s,
            attempt.n_tokens,
        )


@dataclass
class _Progress:
    """What one attempt has done so far."""

    at: float
    started: float
    is_committed: bool = False
    first_token: float | None = None
    n_tokens: int = 0

    def note(self, event: Event) -> None:
        if isinstance(event, Accepted):
            return
        if isinstance(event, Tokens):
            if self.first_token is None:
                self.first_token = trio.current_time()
            self.n_tokens += len(event.ids)

    def attempt(self, donor: str, model: str, number: int, outcome: str) -> Attempt:
        first_s = None if self.first_token is None else self.first_token - self.started
        total_s = trio.current_time() - self.started
        return Attempt(self.at, model, donor, number, outcome, first_s, total_s, self.n_tokens)


def _nobody_left(error: TokenplaceError | None, n_tried: int) -> TokenplaceError:
    """What to tell the app when every donor that could be asked has failed before its first
    token."""
    if error is None:
        return NoDonorForModel(retry_after_s=RETRY_AFTER_S)
    if isinstance(error, DonorBusy):
        return DonorBusy(
            f"All {n_tried} donors asked are busy.",
            retry_after_s=error.retry_after_s or RETRY_AFTER_S,
        )
    error.retry_after_s = error.retry_after_s or RETRY_AFTER_S
    return error
