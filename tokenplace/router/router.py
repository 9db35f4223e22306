"""What answers behind the local API: finds who can, asks the best, fails over. Start at
`Router.generate`.

Decides nothing itself (`policy.choose` does) and knows neither libp2p nor llama.cpp: donors and
engines are handed to it as `Route`s.
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
from tokenplace.errors import DonorBusy, NoDonorForModel, TokenplaceError, WorkerCrashed
from tokenplace.generation import (
    Accepted,
    ChatInput,
    Event,
    Finished,
    GenerateRequest,
    Tokens,
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
    """An `Answerer` over every donor that can be reached, this peer's own engine first."""

    def __init__(self, routes: Routes, *, wall_clock: Callable[[], float], dice: Random) -> None:
        self._routes = routes
        self._wall_clock = wall_clock
        self._dice = dice
        self.attempts: deque[Attempt] = deque(maxlen=ATTEMPTS_REMEMBERED)
        self.outcomes: Counter[str] = Counter()  # of all attempts since the start

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Ask donors until one answers; at most `defaults.MAX_ATTEMPTS`, and only while nothing was
        committed.

        Committed = a token was handed on. For a request that does not stream nothing is handed on
        before the answer is whole, so it may start again at any time. After that a failure is
        raised: never a quiet end, never text of two donors.
        """
        search = _Search(request.model, demand_of(request))
        while route := await self._next_route(search):
            answer = _Answer(request.streamed, route.candidate.served, trio.current_time())
            asked = _request_to(route.candidate, request, search.number)
            with self._attempt(search, route.candidate, answer):
                async with route.open().generate(asked) as events:
                    async for event in events:
                        for ready in answer.take(event, trio.current_time()):
                            yield ready
                return
        raise _nobody_left(search.error, len(search.tried))

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
            answer = _Answer(False, route.candidate.served, trio.current_time())
            asked = _question_to(route.candidate, question)
            with self._attempt(search, route.candidate, answer):
                reply = await ask(route.open(), asked)
                answer.outcome = "finished"
                return reply, route.candidate
        raise _nobody_left(search.error, len(search.tried))

    @contextmanager
    def _attempt(self, search: _Search, candidate: Candidate, answer: _Answer) -> Iterator[None]:
        """Ask this donor in the block. Swallows what goes wrong if another may be asked."""
        at = self._wall_clock()
        try:
            yield
        except TokenplaceError as failure:
            answer.outcome = failure.code
            self._routes.failed(candidate, failure)
            if answer.is_committed or not _is_worth_another(failure, search.error):
                raise
            search.error = failure
        finally:
            self._remember(answer.attempt(candidate, search, at, trio.current_time()))

    async def _next_route(self, search: _Search) -> Route | None:
        """Whom to ask now, counted as asked."""
        if len(search.tried) == defaults.MAX_ATTEMPTS:
            return None
        try:
            routes = await self._routes.find(search.model, search.demand)
        except TokenplaceError:
            if search.error is None:
                raise
            return None  # what went wrong with the donor asked before says more
        by_candidate = {route.candidate: route for route in routes}
        order = search.demand.wishes.order
        chosen = choose(list(by_candidate), frozenset(search.tried), self._dice, order)
        if chosen is None:
            return None
        search.tried.add(chosen.donor)
        return by_candidate[chosen]

    def _remember(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.outcomes[attempt.outcome] += 1
        log.info(
            "attempt %d for %s by %s: %s after %.2f s, %d tokens",
            attempt.number,
            attempt.model,
            attempt.donor,
            attempt.outcome,
            attempt.total_s,
            attempt.n_tokens,
        )


@dataclass
class _Search:
    """How far the search for somebody who answers one request is. error: of the last attempt."""

    model: str
    demand: Demand
    tried: set[str] = field(default_factory=set)
    error: TokenplaceError | None = None

    @property
    def number(self) -> int:
        """Of the attempt that is made now, 0 for the first."""
        return len(self.tried) - 1


@dataclass
class _Answer:
    """What has come of one attempt's answer. Knows neither tasks nor clocks; times are trio's.

    served: what answers, as `Accepted` has it.
    """

    is_streamed: bool
    served: str
    started: float
    is_committed: bool = False
    outcome: str = "cancelled"
    first_token: float | None = None
    n_tokens: int = 0
    held: list[Event] = field(default_factory=list)

    def take(self, event: Event, now: float) -> Sequence[Event]:
        """What may be handed on now that `event` has come."""
        if isinstance(event, Tokens):
            self.first_token = now if self.first_token is None else self.first_token
            self.n_tokens += len(event.ids)
            if not self.is_streamed:
                self.held.append(event)
                return ()
            self.is_committed = True
        elif isinstance(event, Finished):
            self.outcome = "finished"
            self.is_committed = True
            return (*self.held, event)
        elif isinstance(event, Accepted):
            return (dataclasses.replace(event, served=self.served),)
        return (event,)

    def attempt(self, candidate: Candidate, search: _Search, at: float, now: float) -> Attempt:
        """The same for people, at `now`; `at` is when it began, in unix seconds."""
        return Attempt(
            at=at,
            model=search.model,
            donor=candidate.called,
            number=search.number,
            outcome=self.outcome,
            first_token_s=None if self.first_token is None else self.first_token - self.started,
            total_s=now - self.started,
            n_tokens=self.n_tokens,
        )


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


def _is_worth_another(failure: TokenplaceError, before: TokenplaceError | None) -> bool:
    """May another donor do better? Not with a request that has crashed two workers already."""
    has_crashed_two = isinstance(failure, WorkerCrashed) and isinstance(before, WorkerCrashed)
    return failure.retry_elsewhere and not has_crashed_two


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
