"""What a donor's model does for one request, into its answer. Start at `work`.

Differs between what is asked: tokens come as events from the model, and every other answer whole,
so that one is cut into frames here, behind a first one that says it is being worked on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from tokenplace.errors import DonorBusy
from tokenplace.generation import Accepted, Alive, Event, GenerateRequest, Generator, Phase, Tokens
from tokenplace.operations import Answerer, Request, ask
from tokenplace.peer.admission import Place
from tokenplace.peer.frames import Frame
from tokenplace.peer.statistics import Statistics
from tokenplace.peer.whole import Taken, frames_of

Put = Callable[[Frame], None]
"""Takes the next frame of an answer. Raises what the exchange raises for one that is wrong."""

_WORKING: Final = frozenset({Phase.PREFILL, Phase.DECODE})


async def work(
    model: Answerer, request: Request, put: Put, place: Place, statistics: Statistics
) -> None:
    """Everything that is asked. Raises what the model and `put` raise, and `DonorBusy` if it would
    have to wait for too long, or is a hedge and would have to wait at all.
    """
    if isinstance(request, GenerateRequest):
        await _pump(model, request, put, place, statistics)
        return
    put(Taken())
    reply = await ask(model, request)
    place.run()
    for frame in frames_of(reply):
        put(frame)


async def _pump(
    model: Generator, request: GenerateRequest, put: Put, place: Place, statistics: Statistics
) -> None:
    async with model.generate(request) as events:
        async for event in events:
            if request.is_hedge and isinstance(event, Accepted) and _must_wait(event):
                raise DonorBusy  # only a slot that is idle was asked for
            _tell(place, event)
            put(event)
            if isinstance(event, Tokens):
                statistics.n_tokens += len(event.ids)


def _must_wait(accepted: Accepted) -> bool:
    return accepted.position > 0 or accepted.wait_ms > 0


def _tell(place: Place, event: Event) -> None:
    """What an event says of the wait. Raises `DonorBusy` if that is too long."""
    if isinstance(event, Accepted):
        place.expect(event.wait_ms / 1000, event.eta_ms / 1000, trio.current_time())
    elif _is_work(event):
        place.run()
    elif isinstance(event, Alive):
        place.note_eta(event.eta_ms / 1000, trio.current_time())


def _is_work(event: Event) -> bool:
    """Does this event show that the model has begun?"""
    if isinstance(event, Alive):
        return event.phase in _WORKING
    return not isinstance(event, Accepted)
