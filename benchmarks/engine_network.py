"""The engine through the whole network, as an arm of the engine's benchmark. Start at
`open_network`.

Three peers in processes of their own, as in `benchmarks.mesh`: one helps the others find each
other, one donates, and one asks, whose local API is called here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engine_arms import post
from benchmarks.engine_asks import Ask, Trace
from tokenplace.cli.processes import is_offering, open_peers
from tokenplace.models.catalogue import DEFAULT_MODEL


class Network:
    """The local API of a peer that asks. `Ask.text` is what a user says."""

    def __init__(self, api: str) -> None:
        self._url = httpx.URL(api)

    async def answer(self, ask: Ask, trace: Trace) -> None:
        """See `Arm`."""
        body = {
            "model": DEFAULT_MODEL.name,
            "messages": [{"role": "user", "content": ask.text}],
            "temperature": 0,
            "max_tokens": ask.n_new,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        usage: dict[str, int] = {}

        def take(event: Any) -> None:
            if event.get("usage"):
                usage.update(event["usage"])
            for choice in event["choices"]:
                text = choice["delta"].get("content")
                if text:
                    trace.saw(1, text.encode(), time.perf_counter())

        # The key only separates cache scopes, as two apps' keys would.
        header = f"Authorization: Bearer {ask.scope.hex()}"
        assert self._url.port is not None
        trace.sent_at = time.perf_counter()
        await post(self._url.port, f"{self._url.path}/chat/completions", body, take, [header])
        trace.ended_at = time.perf_counter()
        trace.n_prompt = usage["prompt_tokens"]
        trace.n_tokens = usage["completion_tokens"]  # several come as one event


@asynccontextmanager
async def open_network(folder: Path, n_threads: int) -> AsyncIterator[Network]:
    """A donor that offers the default model, and a peer that knows it."""
    async with open_peers(folder) as peers:
        bootstrap = await peers.start_bootstrap()
        donor = await peers.start_donor(
            "donor", DEFAULT_MODEL.name, bootstrap, n_threads, n_slots=8
        )
        asker, api = await peers.start_asker("asker", bootstrap, 0)
        await donor.wait(is_offering)
        await asker.wait(lambda status: status["donors"])
        yield Network(api)
