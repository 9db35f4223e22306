"""The local API over a fake engine, or a bare app on the same server, in a process of its own.

`python -m benchmarks.shim_server ours|bare TOKENS_PER_S` prints its port, and ends when its
standard input does. Start at `serve`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Final

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.server import serve_api
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel

MODEL: Final = "fake-model"
N_SLOTS: Final = 256  # more than are asked for at once
# Of an answer's beginning as our API sends it, so that both arms send as many bytes.
CHUNK: Final = {
    "id": "chatcmpl-0123456789abcdef01234567",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": MODEL,
    "choices": [
        {"index": 0, "delta": {"content": "token"}, "logprobs": None, "finish_reason": None}
    ],
}


class Catalog:
    """The one model."""

    async def list_models(self) -> list[ModelCard]:
        """See `ModelCatalog`."""
        return [ModelCard(MODEL, 0)]

    async def get_model(self, name: str) -> ModelCard:
        """See `ModelCatalog`."""
        return ModelCard(name, 0)


def our_app(tokens_per_s: float) -> ASGIApp:
    """The local API; each of its streams gets so many tokens a second, however many there are."""
    model = FakeModel(
        name=MODEL,
        n_slots=N_SLOTS,
        prefill_tps=1e9,
        decode_tps=tokens_per_s,
        stream_cost=0.0,
        n_answer=(100_000, 100_000),
        words=("hello ", "tokens ", "are ", "free "),  # each half is text: one token, one event
    )
    engine = FakeEngine(model)
    return create_app(engine, Catalog())


def bare_app(tokens_per_s: float) -> ASGIApp:
    """An app that knows no API: as many events a second, of the same bytes, or one whole one."""
    event = b"data: " + json.dumps(CHUNK, separators=(",", ":")).encode() + b"\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        wanted = json.loads(body)
        kind = b"text/event-stream" if wanted.get("stream") else b"application/json"
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if wanted.get("stream"):
            began_at = trio.current_time()
            for number in range(wanted["max_tokens"]):
                await trio.sleep_until(began_at + (number + 1) / tokens_per_s)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": json.dumps(CHUNK).encode()})

    return app


async def serve(app: ASGIApp) -> None:
    """Until standard input ends."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_api, app, port=0))
        print(port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Which arm, and how fast, stands in the arguments."""
    arm, tokens_per_s = sys.argv[1], float(sys.argv[2])
    trio.run(serve, {"ours": our_app, "bare": bare_app}[arm](tokens_per_s))


if __name__ == "__main__":
    main()
