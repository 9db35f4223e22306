"""llama-cpp-python's `Llama`, one request at a time: `python -m benchmarks.engine_apart MODEL
THREADS N_CTX`, started by `LockedLlama`. Start there.

In a process of its own, as our engine and llama.cpp's server are. `Llama` has one sequence and is
not safe to use from two threads, so a lock is what its users put around it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import llama_cpp
import trio

from benchmarks.engine_arms import Size
from benchmarks.engine_asks import Ask, Trace

_READ_BYTES: Final = 4096


class LockedLlama:
    """`Llama` behind a lock. Make one with `open_locked_llama`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._lock = trio.Lock()  # first come, first served
        self._pending = b""

    async def wait_until_loaded(self) -> None:
        """Until the model is loaded."""
        await self._line()

    async def answer(self, ask: Ask, trace: Trace) -> None:
        """See `Arm`; may not be cancelled."""
        assert self._process.stdin is not None
        trace.sent_at = time.perf_counter()
        async with self._lock:
            question = {"text": ask.text, "n_new": ask.n_new}
            await self._process.stdin.send_all(json.dumps(question).encode() + b"\n")
            trace.n_prompt = await self._line()
            for _ in range(ask.n_new):
                token: int = await self._line()
                trace.saw(1, str(token).encode(), time.perf_counter())
        trace.ended_at = time.perf_counter()

    async def _line(self) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            data = await self._process.stdout.receive_some(_READ_BYTES)
            assert data, "the process of Llama ended"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)


@asynccontextmanager
async def open_locked_llama(model: Path, size: Size) -> AsyncIterator[LockedLlama]:
    """`Llama` with its own defaults, but for the size."""
    arguments = [str(model), str(size.n_threads), str(size.n_ctx)]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.engine_apart", *arguments],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        llama = LockedLlama(process)
        await llama.wait_until_loaded()
        yield llama
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def main() -> None:
    """Load; then for each line of stdin a line with the prompt's tokens, and one for each token."""
    path, n_threads, n_ctx = sys.argv[1:]
    llama = llama_cpp.Llama(path, n_threads=int(n_threads), n_ctx=int(n_ctx), verbose=False)
    print("0", flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        ids = llama.tokenize(ask["text"].encode())
        print(len(ids), flush=True)
        for token in islice(llama.generate(ids, temp=0.0), ask["n_new"]):
            print(token, flush=True)


if __name__ == "__main__":
    main()
