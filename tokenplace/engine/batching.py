"""Tokens of one tick as one message. Start at `TokenBatcher`.

Pure: `now` is an argument. A message costs the peer a few task switches whatever it holds, so a
fast model's tokens go to it together, on the tick on which they leave for the requester anyway
(docs/protocol.md, section 5). The first token of an answer never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenplace import defaults
from tokenplace.engine.messages import Done, FromWorker, NewTokens, Refused


@dataclass(slots=True)
class _Held:
    """Tokens of one request that wait for its tick, by choice; ticks are counted from its first
    token.
    """

    started_at: float
    n_ticks: int = 0
    tokens: dict[int, list[NewTokens]] = field(default_factory=dict)

    def put(self, tokens: NewTokens) -> None:
        self.tokens.setdefault(tokens.choice, []).append(tokens)

    def take(self) -> list[FromWorker]:
        held, self.tokens = self.tokens, {}
        return [_join(tokens) for tokens in held.values()]


def _join(tokens: Sequence[NewTokens]) -> NewTokens:
    """What one choice got, as one message."""
    first = tokens[0]
    return NewTokens(
        first.request,
        first.choice,
        first.index,
        tuple(token_id for one in tokens for token_id in one.ids),
        tuple(piece for one in tokens for piece in one.pieces),
        tuple(logprob for one in tokens for logprob in one.logprobs),
    )


class TokenBatcher:
    """Every event of a step in, what the parent should hear now out; nothing is lost or moved."""

    def __init__(self, tick_s: float = defaults.TOKEN_TICK_S) -> None:
        self._tick_s = tick_s
        self._held: dict[int, _Held] = {}

    def put(self, events: Sequence[FromWorker], now: float) -> list[FromWorker]:
        """The events of one step; what is to be sent after it, tokens of earlier steps first."""
        out: list[FromWorker] = []
        for event in events:
            held = self._held.get(event.request) if isinstance(event, _OF_REQUEST) else None
            match event:
                case NewTokens() if held is not None:
                    held.put(event)
                case NewTokens():
                    self._held[event.request] = _Held(now)
                    out.append(event)
                case Done() | Refused() if held is not None:
                    out += [*held.take(), event]
                    del self._held[event.request]
                case _:
                    out.append(event)
        for held in self._held.values():
            n_ticks = int((now - held.started_at) / self._tick_s)
            if n_ticks > held.n_ticks:
                held.n_ticks = n_ticks
                out += held.take()
        return out

    def forget(self, request: int) -> None:
        """A request was cancelled: nobody waits for its tokens."""
        self._held.pop(request, None)


_OF_REQUEST = (NewTokens, Done, Refused)
