"""Exchanges that were asked something, and frames for them. Start at `asked`."""

from __future__ import annotations

import pytest

from tests.peer.exchange_lab import make_request
from tokenplace.errors import DonorBusy
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Finished,
    Logprob,
    Phase,
    Stop,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.peer.exchange import DONOR, REQUESTER, Exchange, Input, State, Table
from tokenplace.peer.frames import Frame

ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 2000, 0)
ALIVE = Alive(Phase.PREFILL, 0.5, 0)
REQUEUED = Alive(Phase.REQUEUED, 0.0, 1)
END = ChoiceEnd(0, EogStop(2))
FINISHED = Finished((END,), Usage(5, 0, 1), Timings(0, 0, 0))
ERROR = DonorBusy()
ENDS = {State.FINISHED, State.FAILED, State.LOST, State.CANCELLED}
ROLES = pytest.mark.parametrize("table", [REQUESTER, DONOR], ids=["requester", "donor"])
BEGIN = {id(REQUESTER): Input.OPENED, id(DONOR): Input.REQUEST}


def tokens(
    index: int, n_tokens: int = 1, choice: int = 0, logprobs: tuple[Logprob, ...] = ()
) -> Tokens:
    return Tokens(choice, index, (7,) * n_tokens, (b"x",) * n_tokens, logprobs)


def finished(*choices: int, stop: Stop = END.stop, n_tokens: int = 1) -> Finished:
    ends = tuple(ChoiceEnd(choice, stop) for choice in choices)
    return Finished(ends, Usage(5, 0, n_tokens), FINISHED.timings)


def asked(table: Table = REQUESTER, now: float = 0.0, **wanted: object) -> Exchange:
    exchange = Exchange(table, now)
    exchange.expect(make_request(**wanted))  # type: ignore[arg-type]
    exchange.on(BEGIN[id(table)], now)
    assert exchange.state is State.ASKED
    return exchange


def after(*frames: Frame, **wanted: object) -> Exchange:
    exchange = asked(**wanted)  # type: ignore[arg-type]
    for frame in frames:
        exchange.take(frame, 0.0)
    return exchange
