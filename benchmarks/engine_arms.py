"""The two arms of the engine's benchmark: our engine and llama.cpp's server. Start at `Arm`.

Both run in processes of their own and are asked from this one, over a pipe by the product's own
`Engine` or over a socket. The client of the server is as lean as can be, because it runs on the
cores that the server computes with: httpx would cost the server 3 %.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import trio

from benchmarks.engine_asks import Ask, Trace
from benchmarks.startup import free_port
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    SamplingParams,
    TextInput,
    Tokens,
)
from tokenplace.models.catalogue import DEFAULT_MODEL

SERVER_START_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Size:
    """How large an arm is opened: `n_slots` requests at once, each with `n_ctx` tokens. None leaves
    it to our engine.
    """

    n_slots: int | None
    n_ctx: int | None
    n_threads: int


class Arm(Protocol):
    """Something that answers."""

    async def answer(self, ask: Ask, trace: Trace) -> None:
        """Answer, and note in the trace how that went. May be cancelled."""


def to_request(ask: Ask, *, is_chat: bool = False) -> GenerateRequest:
    """The same for the product. is_chat: the text is what a user says."""
    return GenerateRequest(
        model=DEFAULT_MODEL.name,
        input=ChatInput((ChatMessage("user", ask.text),)) if is_chat else TextInput(ask.text),
        sampling=SamplingParams(temperature=0.0),
        seed=bytes(8),
        cache_scope=ask.scope,
        as_of="2026-01-01",
        max_tokens=ask.n_new,
        ignore_eog=True,
        bucket=ask.scope.hex(),
    )


class OurEngine:
    """The product's engine."""

    def __init__(self, engine: Engine, *, is_chat: bool = False) -> None:
        self._engine = engine
        self._is_chat = is_chat

    async def answer(self, ask: Ask, trace: Trace) -> None:
        """See `Arm`."""
        trace.sent_at = time.perf_counter()
        async with self._engine.generate(to_request(ask, is_chat=self._is_chat)) as events:
            async for event in events:
                match event:
                    case Accepted(n_prompt=n_prompt):
                        trace.n_prompt = n_prompt
                    case Tokens(ids=ids, pieces=pieces):
                        trace.saw(len(ids), b"".join(pieces), time.perf_counter())
        trace.ended_at = time.perf_counter()


class LlamaServer:
    """llama.cpp's own server, asked by its own raw `/completion`."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def answer(self, ask: Ask, trace: Trace) -> None:
        """See `Arm`."""
        body = {
            "prompt": ask.text,
            "n_predict": ask.n_new,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": True,
            "stream": True,
        }
        last: dict[str, Any] = {}

        def take(event: Any) -> None:
            last.update(event)
            if event["content"]:
                trace.saw(1, event["content"].encode(), time.perf_counter())

        trace.sent_at = time.perf_counter()
        await post(self._port, "/completion", body, take)
        trace.ended_at = time.perf_counter()
        trace.n_prompt = last["tokens_evaluated"]
        trace.n_tokens = last["tokens_predicted"]  # several may come as one event


class EventReader:
    """Bytes of an HTTP answer in, its server-sent events out.

    Both servers here write one event as one chunk, so what stands between two events is skipped
    and not parsed.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._is_ok = False

    def receive_data(self, data: bytes | bytearray) -> list[Any]:
        """The events that are whole now. Raises `RuntimeError` for any answer but 200."""
        self._pending += data
        if not self._is_ok and b"\r\n" in self._pending:
            if not self._pending.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(self._pending.decode(errors="replace"))
            self._is_ok = True
        *blocks, self._pending = self._pending.split(b"\n\n")
        parts = (block.partition(b"data: ")[2] for block in blocks)
        return [json.loads(part) for part in parts if part and part != b"[DONE]"]


async def post(
    port: int, path: str, body: object, take: Callable[[Any], None], headers: Sequence[str] = ()
) -> None:
    """Send a request, and hand over each server-sent event as it arrives.

    Raises `RuntimeError` for any answer but 200.
    """
    payload = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {HOST}:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        "Connection: close",
        *headers,
    )
    reader = EventReader()
    async with await trio.open_tcp_stream(HOST, port) as stream:
        await stream.send_all("\r\n".join((*lines, "", "")).encode() + payload)
        async for data in stream:
            for event in reader.receive_data(data):
                take(event)


@asynccontextmanager
async def open_ours(model: Path, size: Size, *, is_chat: bool = False) -> AsyncIterator[OurEngine]:
    """Our engine; it generates before it is there."""
    spec = EngineSpec(
        path=model,
        name=DEFAULT_MODEL.name,
        artifact=DEFAULT_MODEL.artifact,
        n_threads=size.n_threads,
        n_ctx=size.n_ctx,
        n_slots=size.n_slots,
    )
    async with open_engine(spec) as engine:
        yield OurEngine(engine, is_chat=is_chat)


@asynccontextmanager
async def open_server(
    program: Path, model: Path, size: Size, log: Path
) -> AsyncIterator[LlamaServer]:
    """llama.cpp's server; it warms up by itself before it says that it is well."""
    assert size.n_slots is not None, "the server divides its context by it"
    assert size.n_ctx is not None, "the server divides its context by it"
    port = free_port()
    options = {
        "--host": HOST,
        "--port": port,
        "--model": model,
        "--threads": size.n_threads,
        "--threads-batch": size.n_threads,
        "--parallel": size.n_slots,
        "--ctx-size": size.n_slots * size.n_ctx,
        "--batch-size": 2048,
        "--ubatch-size": 512,
        "--cache-ram": 0,  # prompts of strangers are not worth keeping
    }
    arguments = [str(part) for option in options.items() for part in option]
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with trio.fail_after(SERVER_START_TIMEOUT_S):
            await _wait_until_well(process, port, log)
        yield LlamaServer(port)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _wait_until_well(process: trio.Process, port: int, log: Path) -> None:
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client:
        while True:
            if process.poll() is not None:
                raise RuntimeError(
                    f"llama-server ended:\n{await trio.Path(log).read_text('utf-8')}"
                )
            try:
                if (await client.get("/health")).is_success:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            await trio.sleep(POLL_S)
