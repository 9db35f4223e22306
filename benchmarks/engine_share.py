"""How much of a worker's time is Python: `python -m benchmarks.engine_share MODEL THREADS N_CTX N
N_PROMPT N_NEW` prints it as JSON. Start at `measure`.

The worker's own loop and parts, in this process, with all requests in its pipe before it starts, so
that it is never idle. What counts as not Python is the time inside llama.cpp's `llama_decode`,
measured at that very call.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import llama_cpp
import trio

from benchmarks.engine_arms import to_request
from benchmarks.engine_asks import Ask, asks
from tokenplace import defaults
from tokenplace.engine.blackbox import BlackBox
from tokenplace.engine.confine import ParentGone, ParentPipe
from tokenplace.engine.engine import to_submit
from tokenplace.engine.frames import encode_frame
from tokenplace.engine.llama import LlamaContext
from tokenplace.engine.llama_model import LlamaModel
from tokenplace.engine.messages import Load, to_value
from tokenplace.engine.prompt import Prompt
from tokenplace.engine.runner import Runner
from tokenplace.engine.worker import prove, serve

_PIPE_BYTES: Final = 4 << 20  # nobody reads the answers while they are measured


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds. total: all. llama: inside llama.cpp. batch: filling its batches. step: the rest of
    the steps, deciding and drawing. pipe: the rest, reading requests and writing answers.
    """

    total: float
    llama: float
    batch: float
    step: float
    pipe: float


class _Stopwatch:
    """A function that remembers how long it took in all."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds = 0.0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        began_at = time.perf_counter()
        result = self._function(*arguments)
        self.seconds += time.perf_counter() - began_at
        return result


class _FilledPipe(ParentPipe):
    """Holds all requests from the beginning; when they are answered the parent is gone."""

    def receive(self) -> Any:
        value = self.receive_nowait()
        if value is None:
            raise ParentGone
        return value


def measure(model_path: Path, n_threads: int, n_ctx: int, requests: list[Ask]) -> Share:
    """Answer all requests at once."""
    load = Load(
        path=str(model_path),
        n_threads=n_threads,
        n_ctx=n_ctx,
        n_slots=len(requests),
        kv_bytes=defaults.DEFAULT_KV_BYTES,
        kv_type="f16",
        n_gpu_layers=0,
        flash_attention="auto",
        box_fd=None,
    )
    stopwatch = _Stopwatch(llama_cpp.llama_decode)
    llama_cpp.llama_decode = stopwatch
    model = LlamaModel(load.path, load.n_gpu_layers)
    context = LlamaContext(model, load)
    box = BlackBox.open(None)
    runner = Runner(context, model.vocabulary, time.monotonic, n_threads, box.note)
    prove(runner, context.n_ctx)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
    for number, ask in enumerate(requests):
        submit = to_submit(to_request(ask), Prompt(((ask.text, False),)), grammar="")
        theirs.sendall(encode_frame(to_value(replace(submit, request=number))))
    before = stopwatch.seconds, runner.computing_s, runner.busy_s
    began_at = time.perf_counter()
    try:
        serve(_FilledPipe(ours), runner, box)
    except ParentGone:
        total = time.perf_counter() - began_at
    llama = stopwatch.seconds - before[0]
    computing, busy = runner.computing_s - before[1], runner.busy_s - before[2]
    return Share(total, llama, computing - llama, busy - computing, total - busy)


async def measure_apart(model_path: Path, sizes: Sequence[int]) -> Share:
    """`measure` in a process of its own. sizes: as on the command line."""
    command = [sys.executable, "-m", "benchmarks.engine_share", str(model_path), *map(str, sizes)]
    done = await trio.run_process(command, capture_stdout=True, cwd=Path(__file__).parents[1])
    return Share(**json.loads(done.stdout))


def main() -> None:
    """Measure, and print."""
    n_threads, n_ctx, n, n_prompt, n_new = map(int, sys.argv[2:])
    share = measure(Path(sys.argv[1]), n_threads, n_ctx, asks(n, n_prompt, n_new, "share"))
    print(json.dumps(asdict(share)))


if __name__ == "__main__":
    main()
