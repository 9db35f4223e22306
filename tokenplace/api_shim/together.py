"""Runs the requests of one answer. Start at `open_parts`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from tokenplace.api_shim.answer import Answer
from tokenplace.api_shim.form import Part
from tokenplace.api_shim.refusal import bare
from tokenplace.defaults import API_PROMPTS_AT_ONCE
from tokenplace.generation import Event, Generator


@asynccontextmanager
async def open_parts(
    generator: Generator, answers: Sequence[Answer]
) -> AsyncIterator[AsyncIterator[list[Part]]]:
    """What becomes known, event by event; an empty list where that is no text. Leaving the block
    cancels what still runs.

    `defaults.API_PROMPTS_AT_ONCE` of the requests run at a time; the first that fails ends all.
    """
    if len(answers) == 1:
        # No task between, as nearly all answers are of one request and each event would pay for it.
        async with generator.generate(answers[0].request) as events:
            yield _Parts(answers[0], events)
    else:
        try:
            async with _run_together(generator, answers) as parts:
                yield parts
        except ExceptionGroup as errors:
            raise bare(errors) from None


class _Parts:
    """The parts of one answer, up to a stop string or the end of the events.

    After `Finished` the generator is left to end by itself, so that it is not taken for cancelled.
    """

    def __init__(self, answer: Answer, events: AsyncIterator[Event]) -> None:
        self._answer = answer
        self._events = events

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self

    async def __anext__(self) -> list[Part]:
        if self._answer.is_cut:
            raise StopAsyncIteration
        return self._answer.receive(await anext(self._events))


@trio.as_safe_channel
async def _run_together(
    generator: Generator, answers: Sequence[Answer]
) -> AsyncGenerator[list[Part], None]:
    limiter = trio.CapacityLimiter(API_PROMPTS_AT_ONCE)
    send, receive = trio.open_memory_channel[list[Part]](0)

    async def run(answer: Answer, own_send: trio.MemorySendChannel[list[Part]]) -> None:
        async with own_send, limiter, generator.generate(answer.request) as events:
            async for parts in _Parts(answer, events):
                await own_send.send(parts)

    async with trio.open_nursery() as nursery, receive:
        async with send:
            for answer in answers:
                nursery.start_soon(run, answer, send.clone())
        async for parts in receive:
            yield parts
