"""What answers behind the local API: finds who can, asks the best, fails over. Start at
`Router.generate`.

Decides nothing itself (`policy.choose` does; `continuation` knows what was delivered) and knows
neither libp2p nor llama.cpp: donors and engines are handed to it as `Route`s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

import trio

from tokenplace import defaults
from tokenplace.errors import (
    ConnectionLost,
    DonorBusy,
    NoDonorForModel,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    ChatInput,
    Event,
    GenerateRequest,
)
from tokenplace.operations import (
    Answerer,
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Reply,
    ScoreRequest,
    Scores,
    ask,
)
from tokenplace.router.attempts import Attempt, Progress
from tokenplace.router.continuation import Continuation
from tokenplace.router.demand import Demand, demand_of
from tokenplace.router.policy import Candidate, choose

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5.0  # a new donor is found by the background search within seconds
ATTEMPTS_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class Route:
    """A candidate, and how to get what reaches it if it is chosen."""

    candidate: Candidate
    open: Callable[[], Answerer]


class Routes(Protocol):
    """Where the routes for a model come from: own engines and the network's donors."""

    async def find(self, model: str, demand: Demand) -> Sequence[Route]:
        """All routes known for a model name as an app sent it that meet a request's demand; waits
        for a search only when there are none.

        Raises `ModelNotFound`, `NoDonorForModel`, `SearchIncomplete`, and what `demand.screen`
        raises.
        """

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """A route did not work: whoever keeps the donors may let it rest."""


class Router:
    """An `Answerer` over every donor that can be reached, this peer's own engine first."""

    def __init__(self, routes: Routes, *, wall_clock: Callable[[], float], dice: Random) -> None:
        self._routes = routes
        self._wall_clock = wall_clock
        self._dice = dice
        self.attempts: deque[Attempt] = deque(maxlen=ATTEMPTS_REMEMBERED)
        self.outcomes: Counter[str] = Counter()  # of all attempts since the start

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Ask donors until the answer is whole. One that was cut goes on with another donor of the
        same artifact and template, from the tokens that were delivered; `Accepted` is told again.

        Without such a donor an answer of which the app has a part fails; any other starts again. An
        answer ends with what cut it, never quietly, and never with text of another model.
        """
        search = _Search(request.model, demand_of(request))
        so_far = Continuation(request)
        while route := await self._next_route(search, so_far):
            progress = Progress(trio.current_time())
            asked = _request_to(route.candidate, so_far.request, search.number)
            with self._attempt(search, route, progress, so_far):
                async with route.open().generate(asked) as events:
                    async for event in events:
                        progress.note(event, trio.current_time())
                        for ready in so_far.take(_served(event, route.candidate)):
                            yield ready
                return
            if so_far.is_whole:  # only its last event was lost
                for ready in so_far.finish():
                    yield ready
                return
        raise search.why_nobody(so_far.is_committed)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Ask donors until one answers, as `generate` does; so do `count` and `score`."""
        reply, candidate = await self._answer_to(request)
        assert isinstance(reply, Embeddings), "the answer belongs to the question"
        return dataclasses.replace(reply, served=candidate.served)

    async def count(self, request: CountRequest) -> int:
        """See `Operator`."""
        reply, _ = await self._answer_to(request)
        assert isinstance(reply, int), "the answer belongs to the question"
        return reply

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Operator`."""
        reply, _ = await self._answer_to(request)
        assert isinstance(reply, Scores), "the answer belongs to the question"
        return reply

    async def _answer_to(self, question: Question) -> tuple[Reply, Candidate]:
        """These answers come whole, so every failure is one before anything was committed."""
        search = _Search(question.model, demand_of(question))
        while route := await self._next_route(search):
            progress = Progress(trio.current_time())
            asked = _question_to(route.candidate, question)
            with self._attempt(search, route, progress):
                reply = await ask(route.open(), asked)
                progress.outcome = "finished"
                return reply, route.candidate
        raise search.why_nobody(False)

    @contextmanager
    def _attempt(
        self,
        search: _Search,
        route: Route,
        progress: Progress,
        so_far: Continuation | None = None,
    ) -> Iterator[None]:
        """Ask this donor in the block. Swallows what goes wrong if another may be asked, or if
        nobody needs to be. so_far: of an answer that can be resumed.
        """
        at = self._wall_clock()
        try:
            yield
        except TokenplaceError as failure:
            progress.outcome = failure.code
            self._routes.failed(route.candidate, failure)
            search.note_failure(failure, progress.n_tokens)
            is_whole = so_far is not None and so_far.is_whole
            if not is_whole and not search.may_go_on:
                raise
        finally:
            now = trio.current_time()
            self._remember(progress.attempt(route.candidate, search.model, search.number, at, now))

    async def _next_route(
        self, search: _Search, so_far: Continuation | None = None
    ) -> Route | None:
        """Whom to ask now, counted as asked."""
        if search.is_exhausted:
            return None
        route = None
        if so_far is not None and so_far.has_begun:
            if so_far.can_resume:
                route = search.take_again() or await self._find_twin(search)
            if route is None and so_far.is_committed:
                return None
            if route is None:
                so_far.start_again()
        route = route or await self._find_anybody(search)
        if route is not None:
            search.note_asked(route)
        return route

    async def _find_anybody(self, search: _Search) -> Route | None:
        try:
            routes = await self._routes.find(search.model, search.demand)
        except TokenplaceError:
            if search.error is None:
                raise
            return None  # what went wrong with the donor asked before says more
        return self._choose(routes, search)

    async def _find_twin(self, search: _Search) -> Route | None:
        """Somebody who can go on with what the donor asked last has begun."""
        assert search.last is not None, "an answer that has begun has a donor"
        begun = search.last.candidate
        with trio.move_on_after(defaults.TWIN_SEARCH_S):
            try:
                routes = await self._routes.find(search.model, search.demand)
            except TokenplaceError:
                return None
            return self._choose([r for r in routes if _are_twins(r.candidate, begun)], search)
        return None

    def _choose(self, routes: Sequence[Route], search: _Search) -> Route | None:
        by_candidate = {route.candidate: route for route in routes}
        order = search.demand.wishes.order
        chosen = choose(list(by_candidate), frozenset(search.tried), self._dice, order)
        return None if chosen is None else by_candidate[chosen]

    def _remember(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.outcomes[attempt.outcome] += 1
        log.info(
            "attempt %d for %s by %s: %s (%s) after %.2f s, %d tokens",
            attempt.number,
            attempt.model,
            attempt.donor,
            attempt.outcome,
            attempt.phase,
            attempt.total_s,
            attempt.n_tokens,
        )


@dataclass
class _Search:
    """How far the search for somebody who answers one request is.

    number: of the attempt that is made now, 0 for the first. last: who is asked now, or was.
    again: whose path broke while he answered; asked_again: who had that chance. error: of the last
    attempt. cut: of the last one that had delivered something. n_fruitless: attempts in a row that
    did not get on.
    """

    model: str
    demand: Demand
    number: int = -1
    tried: set[str] = field(default_factory=set)
    last: Route | None = None
    again: Route | None = None
    asked_again: set[str] = field(default_factory=set)
    error: TokenplaceError | None = None
    cut: TokenplaceError | None = None
    n_fruitless: int = 0
    n_crashes: int = 0

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
        return self.error is None or (self.error.retry_elsewhere and self.n_crashes < 2)

    def note_asked(self, route: Route) -> None:
        """This one is asked now."""
        self.number += 1
        self.last = route
        self.tried.add(route.candidate.donor)

    def note_failure(self, error: TokenplaceError, n_tokens: int) -> None:
        """Whoever is asked now has failed, after so many new tokens."""
        assert self.last is not None, "nobody was asked"
        self.error = error
        self.n_fruitless = 0 if n_tokens >= defaults.PROGRESS_TOKENS else self.n_fruitless + 1
        self.n_crashes += isinstance(error, WorkerCrashed)
        if n_tokens:
            self.cut = error
        donor = self.last.candidate.donor
        # Only its path may have broken, and it keeps what it has computed.
        is_broken_path = isinstance(error, ConnectionLost) and n_tokens > 0
        self.again = self.last if is_broken_path and donor not in self.asked_again else None

    def take_again(self) -> Route | None:
        """Whom to ask once more, if anybody."""
        route, self.again = self.again, None
        if route is not None:
            self.asked_again.add(route.candidate.donor)
        return route

    def why_nobody(self, is_committed: bool) -> TokenplaceError:
        """What to tell the app when there is nobody left to ask. is_committed: it has a part of the
        answer, so what cut that says more than why nobody went on."""
        if is_committed and self.cut is not None:
            return self.cut
        return _nobody_left(self.error, len(self.tried))


def _served(event: Event, candidate: Candidate) -> Event:
    """`Accepted` says what answers."""
    if isinstance(event, Accepted):
        return dataclasses.replace(event, served=candidate.served)
    return event


def _are_twins(one: Candidate, other: Candidate) -> bool:
    """Do they give the same answer to the same request?"""
    return one.artifact == other.artifact and one.template == other.template


def _request_to(candidate: Candidate, request: GenerateRequest, number: int) -> GenerateRequest:
    """The request as this candidate is asked it; raw text needs no template."""
    template = candidate.template if isinstance(request.input, ChatInput) else ""
    return dataclasses.replace(
        request, artifact=candidate.artifact, template=template, attempt=number
    )


def _question_to(candidate: Candidate, question: Question) -> Question:
    """The question as this candidate is asked it."""
    if isinstance(question, EmbedRequest):
        return dataclasses.replace(question, artifact=candidate.artifact)
    template = candidate.template if isinstance(question.input, ChatInput) else ""
    return dataclasses.replace(question, artifact=candidate.artifact, template=template)


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
