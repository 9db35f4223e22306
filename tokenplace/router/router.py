"""What answers behind the local API: finds who can, asks the best, fails over. Start at
`Router.generate`.

Decides nothing itself (`selector` does; `continuation` knows what was delivered) and knows
neither libp2p nor llama.cpp: donors and engines are handed to it as `Route`s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from random import Random

import trio

from tokenplace import defaults
from tokenplace.errors import DeadlineExceeded, OwnNetworkDown, TokenplaceError
from tokenplace.generation import Event, Finished, GenerateRequest
from tokenplace.operations import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Reply,
    Request,
    ScoreRequest,
    Scores,
    ask,
)
from tokenplace.router.asking import are_twins, question_to, request_to, served
from tokenplace.router.attempts import Asked, Outcome, Progress
from tokenplace.router.continuation import Continuation
from tokenplace.router.demand import demand_of
from tokenplace.router.hedging import Hedging, can_hedge, patience_ends_at
from tokenplace.router.jitter import later
from tokenplace.router.journal import Journal
from tokenplace.router.memory import CONTINUATION_ERRORS, PATH_ERRORS, Notes, Opinion
from tokenplace.router.policy import Candidate
from tokenplace.router.racing import Entrant, Race, open_race
from tokenplace.router.route import RETRY_AFTER_S, Route, Routes
from tokenplace.router.search import Search
from tokenplace.router.selector import Selector


class Router:
    """An `Answerer` over every donor that can be reached, this peer's own engine first."""

    def __init__(
        self,
        routes: Routes,
        *,
        wall_clock: Callable[[], float],
        dice: Random,
        journal: Journal | None = None,
    ) -> None:
        """journal: where to write what was asked, and of whom."""
        self._routes = routes
        self._wall_clock = wall_clock
        self._dice = dice
        self._selector = Selector(dice, in_doubt=routes.failed)
        self._journal = journal or Journal()
        self._hedging = Hedging()

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Ask donors until the answer is whole. One that was cut goes on with another donor of the
        same artifact and template, from the tokens that were delivered; `Accepted` is told again.

        Without such a donor an answer of which the app has a part fails; any other starts again. An
        answer ends with what cut it, never quietly, and never with text of another model.
        """
        search = self._search(request)
        so_far = Continuation(request)
        self._hedging.budget.note_request()
        while route := await self._next_route(search, so_far):
            async with open_race(partial(self._note_ended, search, so_far)) as race:
                self._enter(race, search, route, so_far)
                while race.running:
                    came = await race.receive(self._look_at(race, search, so_far))
                    if came is None:
                        await self._look_after(race, search, so_far)
                        continue
                    entrant, what = came
                    if isinstance(what, TokenplaceError):
                        self._note_failed(race, search, entrant, what, so_far)
                        continue
                    if entrant is race.winner:
                        search.note_begun(entrant.route)
                    for ready in so_far.take(served(what, entrant.route.candidate)):
                        yield ready
                    if isinstance(what, Finished):
                        await race.finish()
                        return
            if so_far.is_whole:  # only its last event was lost
                for ready in so_far.finish():
                    yield ready
                return
        raise self._why_nobody(search, is_committed=so_far.is_committed)

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
        search = self._search(question)
        while route := await self._next_route(search):
            progress = self._begin(search, route)
            notes = self._notes(search, route)
            asked = question_to(route.candidate, question)
            try:
                with route.asking():
                    reply = await ask(route.open(), asked)
                progress.outcome = Outcome.FINISHED
                notes.finished(trio.current_time())
                return reply, route.candidate
            except TokenplaceError as failure:
                progress.outcome = Outcome(failure.code)
                notes.failed(failure, trio.current_time())
                search.note_failure(route, failure, 0, trio.current_time())
                if not search.may_go_on:
                    raise
            finally:
                notes.left(trio.current_time())
                self._remember(progress)
        raise self._why_nobody(search, is_committed=False)

    def opinion(self, donor: str) -> Opinion:
        """What this peer thinks of a donor, by what came of asking it."""
        return self._selector.memory.opinion(donor, trio.current_time())

    def _search(self, request: Request) -> Search:
        demand = demand_of(request)
        facts = self._selector.facts_of(request, demand)
        return Search(request.model, demand, trio.current_time(), request=request.id, facts=facts)

    def _begin(self, search: Search, route: Route, n_resumed: int = 0) -> Progress:
        """The attempt that is made now. n_resumed: tokens that need not be made again."""
        asked = Asked(
            at=self._wall_clock(),
            request=search.request,
            model=search.model,
            candidate=route.candidate,
            number=search.number,
            why=search.why,
            n_resumed=n_resumed,
        )
        progress = Progress(trio.current_time(), asked)
        self._journal.note_asked(progress)
        return progress

    def _notes(self, search: Search, route: Route, n_resumed: int = 0) -> Notes:
        wait_s = search.why.expected_wait_s if search.why else 0.0
        now = trio.current_time()
        return self._selector.ask(
            route.candidate, search.facts, now, wait_s=wait_s, n_resumed=n_resumed
        )

    # ------------------------------------------------------------ a race

    def _enter(
        self,
        race: Race,
        search: Search,
        route: Route,
        so_far: Continuation,
        *,
        is_hedge: bool = False,
    ) -> None:
        """Ask this donor too."""
        asked = request_to(route.candidate, so_far.request, search.number, is_hedge=is_hedge)
        n_resumed = sum(len(each.ids) for each in asked.resume)
        progress = self._begin(search, route, n_resumed)
        race.start(Entrant(route, asked, progress, self._notes(search, route, n_resumed)))

    def _note_failed(
        self,
        race: Race,
        search: Search,
        entrant: Entrant,
        error: TokenplaceError,
        so_far: Continuation,
    ) -> None:
        """It is out of the race. Raises what says most if nobody else may be asked, though somebody
        would have to be.
        """
        search.note_failure(entrant.route, error, entrant.progress.n_tokens, trio.current_time())
        if isinstance(error, CONTINUATION_ERRORS) and so_far.has_begun and not so_far.is_committed:
            so_far.start_again()  # what is there may be wrong, and no app has seen it
            search.note_left(entrant.route)
        if not race.running and not so_far.is_whole and not search.may_go_on:
            raise search.error or error

    def _note_ended(self, search: Search, so_far: Continuation, entrant: Entrant) -> None:
        """Its task is over, whatever the reason."""
        progress = entrant.progress
        if progress.outcome is Outcome.OUTRACED:
            search.note_left(entrant.route)
            if not entrant.request.is_hedge:
                entrant.notes.outraced(trio.current_time())
        elif progress.outcome is Outcome.CANCELLED and so_far.is_whole:
            progress.outcome = Outcome.FINISHED  # the app left because it has the whole answer
        if progress.outcome is Outcome.FINISHED:
            entrant.notes.finished(trio.current_time())
        entrant.notes.left(trio.current_time())
        self._hedging.note_ended(progress, entrant.accepted, trio.current_time())
        self._remember(progress)

    def _look_at(self, race: Race, search: Search, so_far: Continuation) -> float:
        """When it is to be seen to that the app is not kept waiting; never while it is not."""
        if race.winner is not None:
            return math.inf
        looks = [patience_ends_at(each.progress, each.accepted) for each in race.running]
        if _may_hedge(race, search, so_far):
            looks.append(self._hedging.due_at(race.leader.progress, race.leader.accepted))
        return min(search.ends_at, max(search.look_at, min(looks)))

    async def _look_after(self, race: Race, search: Search, so_far: Continuation) -> None:
        """Somebody keeps the app waiting: leave him for another, or ask another too. Raises
        `DeadlineExceeded` when the app has waited for long enough.
        """
        now = trio.current_time()
        if now >= search.ends_at:
            late = DeadlineExceeded(f"No token came for {defaults.MAX_UNANSWERED_S:g} s.")
            self._leave_late(race, search, list(race.running), late, so_far)
            raise late
        search.look_at = now + defaults.HEDGE_LOOK_S
        others = await self._others(search)
        if not search.is_last_attempt:
            impatient = [
                each
                for each in race.running
                if each.progress.first_token is None  # it may have come while others were sought
                and patience_ends_at(each.progress, each.accepted) <= now
            ]
            if others or len(impatient) < len(race.running):
                error = DeadlineExceeded("Another donor was asked: no token came.")
                self._leave_late(race, search, impatient, error, so_far)
        if race.running and _may_hedge(race, search, so_far):
            leader = race.leader
            if self._hedging.due_at(leader.progress, leader.accepted) <= now:
                self._hedge(race, search, others, so_far)

    def _leave_late(
        self,
        race: Race,
        search: Search,
        late: Sequence[Entrant],
        error: TokenplaceError,
        so_far: Continuation,
    ) -> None:
        for entrant in late:
            entrant.notes.failed(error, trio.current_time())
            race.leave(entrant, Outcome(error.code))
            self._note_failed(race, search, entrant, error, so_far)

    def _hedge(
        self, race: Race, search: Search, others: Sequence[Route], so_far: Continuation
    ) -> None:
        """Ask an idle donor too, if there is one and not too many were lately."""
        first = race.leader.route.candidate
        idle = [route for route in others if can_hedge(first, route.candidate)]
        route = self._choose(idle, search, is_hedge=True)
        if route is not None and self._hedging.budget.take():
            search.is_hedged = True
            search.note_asked(route)
            self._enter(race, search, route, so_far, is_hedge=True)

    async def _others(self, search: Search) -> Sequence[Route]:
        """Who else could be asked now, as far as that is known at once."""
        try:
            routes = await self._find(search, defaults.TWIN_SEARCH_S)
        except TokenplaceError:
            return []
        return [route for route in routes if route.candidate.donor not in search.tried]

    # ------------------------------------------------------------ whom to ask

    async def _next_route(self, search: Search, so_far: Continuation | None = None) -> Route | None:
        """Whom to ask now, counted as asked."""
        if search.is_exhausted:
            return None
        route = None
        if so_far is not None and so_far.has_begun:
            if so_far.can_resume:
                route = search.take_again() or await self._find_twin(search, so_far)
            if route is None and so_far.is_committed:
                return None
            if route is None:
                so_far.start_again()
        route = route or await self._find_anybody(search)
        if route is not None:
            search.note_asked(route)
        return route

    async def _find_anybody(self, search: Search) -> Route | None:
        waits_s = math.inf if search.error is None else defaults.NEXT_SEARCH_S
        try:
            routes = await self._find(search, waits_s, besides=search.lost)
        except TokenplaceError as error:
            if search.error is None:
                is_own = self._selector.is_own_outage(trio.current_time())
                told = OwnNetworkDown(retry_after_s=RETRY_AFTER_S) if is_own else error
                raise self._jittered(told) from None
            return None  # what went wrong with the donor asked before says more
        return self._choose(routes, search)

    async def _find_twin(self, search: Search, so_far: Continuation) -> Route | None:
        """Somebody who can go on with what the donor asked last has begun."""
        assert search.last is not None, "an answer that has begun has a donor"
        begun = search.last.candidate
        try:
            routes = await self._find(search, defaults.TWIN_SEARCH_S, besides=search.lost)
        except TokenplaceError:
            return None
        twins = [route for route in routes if are_twins(route.candidate, begun)]
        return self._choose([r for r in twins if r.candidate.has_room(so_far.n_ids)], search)

    async def _find(
        self, search: Search, within_s: float, besides: frozenset[str] = frozenset()
    ) -> Sequence[Route]:
        """Who has room for it, as far as that shows in so long. Raises what `Routes.find` does."""
        with trio.move_on_after(within_s + defaults.SEARCH_GRACE_S):
            routes = await self._routes.find(
                search.model, search.demand, within_s=within_s, besides=besides
            )
            return [route for route in routes if route.candidate.has_room(search.small_ctx)]
        return []

    def _choose(
        self, routes: Sequence[Route], search: Search, *, is_hedge: bool = False
    ) -> Route | None:
        by_candidate = {route.candidate: route for route in routes}
        tried, now = frozenset(search.tried), trio.current_time()
        if is_hedge:
            choice = self._selector.hedge(list(by_candidate), search.facts, tried, now)
        else:
            is_first = search.number < 0
            choice = self._selector.choose(
                list(by_candidate), search.facts, tried, now, is_first=is_first
            )
        if choice is None:
            return None
        search.why = choice.why
        return by_candidate[choice.candidate]

    def _why_nobody(self, search: Search, *, is_committed: bool) -> TokenplaceError:
        """What to tell the app when there is nobody left to ask."""
        error = search.why_nobody(is_committed)
        is_own = self._selector.is_own_outage(trio.current_time())
        if is_own and not is_committed and isinstance(error, PATH_ERRORS):
            error = OwnNetworkDown(retry_after_s=RETRY_AFTER_S)
        return self._jittered(error)

    def _jittered(self, error: TokenplaceError) -> TokenplaceError:
        """Apps that were turned away together should not come back together, nor too soon."""
        if error.retry_after_s is not None:
            error.retry_after_s = later(error.retry_after_s, self._dice)
        return error

    def _remember(self, progress: Progress) -> None:
        self._journal.note_ended(progress, progress.attempt(trio.current_time()))


def _may_hedge(race: Race, search: Search, so_far: Continuation) -> bool:
    """May a second donor be asked beside the first? Not beside this peer's own engine, which needs
    to show the prompt to nobody, nor beside one that the request wishes.
    """
    first = race.leader
    return (
        first.is_queued
        and len(race.running) == 1
        and not search.is_hedged
        and not so_far.has_begun
        and not search.is_last_attempt
        and not first.route.candidate.is_own
        and first.route.candidate.called not in search.demand.wishes.order
    )
