"""What the local API has done since its start, in numbers. Start at `Metrics`.

Plain numbers, counted where requests pass: `CountingRequests` sees HTTP, `CountingTokens` sees
answers. `exposition` writes them for Prometheus. Nothing here tells one app, donor or model from
another, so no number says what anybody asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
import trio.abc
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenplace.generation import Accepted, Event, GenerateRequest, Generator, Tokens
from tokenplace.router.histogram import Histogram

# Seconds to the first token: from a warm own engine to a queue behind others.
FIRST_TOKEN_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
OTHER: Final = "other"  # a method or path that an app made up must not become a label


@dataclass
class Metrics:
    """n_answered: by method, route and status. n_running: answers that are being made now."""

    n_answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    n_running: int = 0
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))


class CountingRequests:
    """ASGI middleware: counts what is answered, when its status goes out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                key = (_method_of(scope), _route_of(scope), message["status"])
                self._metrics.n_answered[key] += 1
            await send(message)

        await self._app(scope, receive, send_counted)


def _method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in KNOWN_METHODS else OTHER


def _route_of(scope: Scope) -> str:
    """The path as it was declared, without its prefix; who is refused earlier has none."""
    route = scope.get("route")
    return OTHER if route is None else str(route.path)


class CountingTokens:
    """A `Generator` around another one: counts what its answers cost."""

    def __init__(self, generator: Generator, metrics: Metrics) -> None:
        self._generator = generator
        self._metrics = metrics

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Event]]:
        """See `Generator`."""
        self._metrics.n_running += 1
        try:
            async with self._generator.generate(request) as events:
                yield _CountedEvents(events, self._metrics)
        finally:
            self._metrics.n_running -= 1


class _CountedEvents(trio.abc.ReceiveChannel[Event]):
    """The events as they are, counted on their way."""

    def __init__(self, events: trio.abc.ReceiveChannel[Event], metrics: Metrics) -> None:
        self._events = events
        self._metrics = metrics
        self._started = trio.current_time()
        self._n_prompt = 0
        self._has_token = False

    async def receive(self) -> Event:
        event = await self._events.receive()
        if isinstance(event, Tokens):
            self._metrics.n_completion_tokens += len(event.ids)
            if not self._has_token:
                self._has_token = True
                # Not before: until its first token a donor may be replaced by another.
                self._metrics.n_prompt_tokens += self._n_prompt
                self._metrics.first_token_s.observe(trio.current_time() - self._started)
        elif isinstance(event, Accepted):
            self._n_prompt = event.n_prompt
        return event

    async def aclose(self) -> None:
        await self._events.aclose()
