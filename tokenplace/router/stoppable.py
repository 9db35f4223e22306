"""Answers to this peer's own apps that end with a reason when the peer stops. Start at `Stoppable`.

Without it an app would see its stream break off, as if the peer had crashed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio
import trio.abc

from tokenplace.errors import PeerStopping
from tokenplace.generation import Event, GenerateRequest
from tokenplace.operations import (
    Answerer,
    CountRequest,
    Embeddings,
    EmbedRequest,
    ScoreRequest,
    Scores,
)
from tokenplace.peer.running import Running


class Stoppable:
    """An `Answerer` around another one."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._running = Running()

    async def finish(self) -> None:
        """From now on new requests fail with `PeerStopping`; those that run have a moment to end,
        and fail with it too (`Running.finish`).
        """
        await self._running.finish()

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Event]]:
        """See `Generator`."""
        async with self._answerer.generate(request) as events:
            answer = _Answer(events)
            if self._running.is_finishing:
                answer.stop()
            with self._running.answer(answer.stop):
                yield answer

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Operator`."""
        with self._stoppable():
            return await self._answerer.embed(request)

    async def count(self, request: CountRequest) -> int:
        """See `Operator`."""
        with self._stoppable():
            return await self._answerer.count(request)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Operator`."""
        with self._stoppable():
            return await self._answerer.score(request)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ends the block where it waits, with `PeerStopping`, once this peer stops."""
        if self._running.is_finishing:
            raise PeerStopping
        with trio.CancelScope() as waiting, self._running.answer(waiting.cancel):
            yield
        if waiting.cancelled_caught:
            raise PeerStopping


class _Answer(trio.abc.ReceiveChannel[Event]):
    """Events that end with `PeerStopping` once `stop` was called."""

    def __init__(self, events: trio.abc.ReceiveChannel[Event]) -> None:
        self._events = events
        self._is_stopped = False
        self._receiving = trio.CancelScope()

    def stop(self) -> None:
        self._is_stopped = True
        self._receiving.cancel()

    async def receive(self) -> Event:
        if not self._is_stopped:
            with trio.CancelScope() as self._receiving:
                return await self._events.receive()
        raise PeerStopping

    async def aclose(self) -> None:
        await self._events.aclose()
