"""The app served for real, and clients that look at the bytes. Start at `serving`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import trio

from tests.fakes import EchoEngine
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.server import serve_api
from tokenplace.errors import ModelNotFound, TokenplaceError
from tokenplace.generation import Event, GenerateRequest, Generator

TINY_MODEL = "tiny-model"
PINNED_MODEL = "tiny-model@sha256:b179c9523d0e"
CREATED = 1_679_351_277
CHAT = {"model": TINY_MODEL, "messages": [{"role": "user", "content": "Hello, donors!"}]}


@dataclass
class FakeCatalog:
    """Knows two names of one model."""

    async def list_models(self) -> Sequence[ModelCard]:
        return [ModelCard(TINY_MODEL, CREATED), ModelCard(PINNED_MODEL, CREATED, TINY_MODEL)]

    async def get_model(self, name: str) -> ModelCard:
        for card in await self.list_models():
            if card.id == name:
                return card
        raise ModelNotFound(hint="See `tokenplace models list`.")


@dataclass
class RefusingGenerator:
    """Refuses every request before it is accepted, as a router without a donor does."""

    error: Exception
    delay_s: float = 0.0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        await trio.sleep(self.delay_s)
        if self.error:
            raise self.error
        yield  # type: ignore[misc]  # makes this a generator


@dataclass
class ScriptedGenerator:
    """Gives the events of a script; waits for `gates[i]` before event i."""

    events: Sequence[Event]
    gates: dict[int, trio.Event] = field(default_factory=dict)
    error: TokenplaceError | None = None
    n_running: int = 0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.n_running += 1
        try:
            for number, event in enumerate(self.events):
                if number in self.gates:
                    await self.gates[number].wait()
                yield event
            if self.error is not None:
                raise self.error
        finally:
            self.n_running -= 1


@asynccontextmanager
async def serving(
    generator: Generator | None = None,
    *,
    write_timeout_s: float = 30.0,
    address: str | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """Serve until the block exits; gives the address, without a path. options: of `create_app`."""
    app = create_app(generator or EchoEngine(), FakeCatalog(), **options)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_api, app, port=0, address=address, write_timeout_s=write_timeout_s)
        port = await nursery.start(serve)
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http_client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=address, timeout=10) as client:
        yield client


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


async def raw_exchange(address: str, request: bytes) -> bytes:
    """Send bytes as they are; everything that comes back until the other side closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
    answer = b""
    with trio.fail_after(10):
        async with stream:
            with suppress(trio.BrokenResourceError):  # closed while we were sending
                await stream.send_all(request)
            with suppress(trio.BrokenResourceError):
                async for data in stream:
                    answer += data
    return answer


def post(path: str, body: bytes, port: int, *headers: str) -> bytes:
    """A raw POST of JSON; headers given here replace the usual ones of the same name."""
    usual = {
        "host": f"Host: 127.0.0.1:{port}",
        "content-type": "Content-Type: application/json",
        "content-length": f"Content-Length: {len(body)}",
    }
    given = {header.partition(":")[0].lower(): header for header in headers}
    lines = [f"POST {path} HTTP/1.1", *{**usual, **given}.values(), "", ""]
    return "\r\n".join(lines).encode() + body


async def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110  # of code that has no event to wait for
            await trio.sleep(0.005)
