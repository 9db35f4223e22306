"""Donors that are asked at the same time for one answer, of which the first token decides. Start at
`open_race`, then `Race.receive`.

Each is asked in a task of its own. At the first token of one the others are left, and from then on
whoever reads the race reads the winner's own channel: no token is handed from task to task. Knows
neither policy nor what was delivered before. Most races have one entrant.

Differs from a bare nursery: what a donor does wrong is returned, so that the others may go on, and
whatever else is raised in the block leaves it bare.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
import trio.abc

from tokenplace.errors import DonorInternalError, TokenplaceError
from tokenplace.generation import Accepted, Event, Finished, GenerateRequest, Phase, Tokens
from tokenplace.router.attempts import ASKED, Outcome, Progress
from tokenplace.router.memory import Notes
from tokenplace.router.route import Route

_WAITING: Final = frozenset({ASKED, Phase.QUEUED, Phase.LOADING, Phase.REQUEUED})


@dataclass(eq=False)
class Entrant:
    """One donor that is asked. accepted: what it said to that, if anything."""

    route: Route
    request: GenerateRequest
    progress: Progress
    notes: Notes
    accepted: Accepted | None = None
    _error: Exception | None = None
    _events: trio.abc.ReceiveChannel[Event] | None = None
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _is_released: trio.Event = field(default_factory=trio.Event)
    _has_ended: trio.Event = field(default_factory=trio.Event)

    @property
    def is_queued(self) -> bool:
        """Does nobody work on it yet, as far as the donor says?"""
        return self.progress.phase in _WAITING

    @property
    def is_wanted(self) -> bool:
        """Was it not left, and has not said all yet?"""
        is_whole = self.progress.outcome is Outcome.FINISHED
        return not (is_whole or self._scope.cancel_called)

    def _note(self, event: Event, read_from: float | None = None) -> None:
        now = trio.current_time()
        self.progress.note(event, now)
        self.notes.note(event, now, read_from)
        if isinstance(event, Accepted):
            self.accepted = event

    def _fail(self, error: Exception) -> None:
        if self._error is not None:
            return  # the first one says why
        if isinstance(error, TokenplaceError):
            self.progress.outcome = Outcome(error.code)
            self.notes.failed(error, trio.current_time())
        else:
            self.progress.outcome = Outcome.INTERNAL
        self._error = error

    async def _next(self) -> Event:
        """Of the winner. Raises what ended it, once its task has."""
        assert self._events is not None, "it has won"
        read_from = trio.current_time()
        try:
            event = await self._events.receive()
        except trio.EndOfChannel:
            await self._end()
            assert self._error is not None, "its task has looked why"
            raise self._error from None
        except TokenplaceError as error:
            self._fail(error)
            await self._end()
            raise
        self._note(event, read_from)
        return event

    async def _end(self) -> None:
        """Let its task come to its end."""
        self._is_released.set()
        await self._has_ended.wait()


Came = tuple[Entrant, Event | TokenplaceError]


class Race:
    """Who runs, and what comes of it."""

    def __init__(self, nursery: trio.Nursery, on_end: Callable[[Entrant], None]) -> None:
        self.running: list[Entrant] = []  # in the order in which they were started
        self.winner: Entrant | None = None
        self._nursery = nursery
        self._on_end = on_end
        # Without a buffer: whoever is not read waits, and can be left at any event.
        self._sender, self._receiver = trio.open_memory_channel[tuple[Entrant, Event | Exception]](
            0
        )
        self._ready: deque[Came] = deque()

    @property
    def leader(self) -> Entrant:
        """Whose signs of life are told: the one that was asked first, of those that run."""
        return self.running[0]

    def start(self, entrant: Entrant) -> None:
        """It is asked from now on."""
        assert self.winner is None, "the race is over"
        self.running.append(entrant)
        self._nursery.start_soon(self._run, entrant)

    def leave(self, entrant: Entrant, outcome: Outcome) -> None:
        """Nothing more is wanted of it, because of `outcome`."""
        entrant.progress.outcome = outcome
        entrant._scope.cancel()
        self._remove(entrant)

    async def receive(self, until: float = math.inf) -> Came | None:
        """What comes next and is to be told: signs of life only of the leader, tokens and the end
        of the winner, or what went wrong with one, which is out then. None at `until`, while
        nobody has won.

        Raises only what is a fault of this program.
        """
        while not self._ready:
            assert self.running, "nobody runs"
            if self.winner is not None:
                return await self._receive_of(self.winner)
            entrant, what = None, None
            with trio.move_on_at(until):
                entrant, what = await self._receiver.receive()
            if entrant is None or what is None:
                return None
            if entrant in self.running:  # else it was left while it spoke
                self._take(entrant, what)
        return self._ready.popleft()

    async def finish(self) -> None:
        """After the winner's last event: let it come to its end."""
        assert self.winner is not None, "nobody has won"
        await self.winner._end()

    async def _receive_of(self, winner: Entrant) -> Came:
        try:
            return winner, await winner._next()
        except TokenplaceError as error:
            self._remove(winner)
            return winner, error

    def _take(self, entrant: Entrant, what: Event | Exception) -> None:
        """Of somebody who runs while nobody has won."""
        match what:
            case TokenplaceError():
                self._ready.append((entrant, what))
                self._remove(entrant)
                return
            case Exception():
                raise what
            case Accepted() if entrant is not self.leader and what.position:
                self.leave(entrant, Outcome.OUTRACED)  # it would have to wait there too
                return
            case Tokens() | Finished():
                self.winner = entrant
                for other in [other for other in self.running if other is not entrant]:
                    self.leave(other, Outcome.OUTRACED)
        if entrant is self.leader:
            self._ready.append((entrant, what))

    def _remove(self, entrant: Entrant) -> None:
        was_leader = entrant is self.leader
        self.running.remove(entrant)
        # Whoever leads now may have accepted long ago, and was not told of.
        if was_leader and self.running and self.leader.accepted is not None:
            self._ready.append((self.leader, self.leader.accepted))

    # ------------------------------------------------------------ an entrant's own task

    async def _run(self, entrant: Entrant) -> None:
        try:
            with entrant._scope, entrant.route.asking():
                try:
                    await self._ask(entrant)
                # Raised by whoever reads the race: out of the nursery it would come in a group.
                except Exception as error:
                    if not entrant.is_wanted and isinstance(error, TokenplaceError):
                        return
                    entrant._fail(error)
                    if entrant is not self.winner:
                        await self._sender.send((entrant, error))
        finally:
            entrant._has_ended.set()
            self._on_end(entrant)

    async def _ask(self, entrant: Entrant) -> None:
        async with entrant.route.open().generate(entrant.request) as events:
            entrant._events = events
            async for event in events:
                entrant._note(event)
                await self._sender.send((entrant, event))
                if isinstance(event, (Tokens, Finished)):
                    await entrant._is_released.wait()
                    break
            if entrant.progress.outcome is Outcome.FINISHED:
                async for _ in events:  # behind its last event: the end of the channel
                    pass
                return
        # A generator that fails ends its events first, and raises when the block is left.
        raise DonorInternalError("Its answer has no end.")


@asynccontextmanager
async def open_race(on_end: Callable[[Entrant], None]) -> AsyncIterator[Race]:
    """A race without entrants; whoever still runs at the block's end is cancelled. on_end: called
    once for each entrant, when its task is over.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield Race(nursery, on_end)
        # Raised again below: out of the nursery it would come wrapped in a group.
        except BaseException as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
