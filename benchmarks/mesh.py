"""What the network costs: HTTP + libp2p + sealing against the same engine called directly.

`python -m benchmarks.mesh [--quick] [--json FILE]`. One engine thread in both arms; the arms take
turns, and each figure is the median over the pairs. Start at `measure`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import psutil
import trio

from benchmarks.report import Row, parse_arguments, report
from tokenplace.cli.processes import PeerProcess, is_offering, open_peers
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.generation import ChatInput, ChatMessage, GenerateRequest, SamplingParams, Tokens
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.settings import default_home, models_dir_of

PAIRS: Final = 15
QUICK_PAIRS: Final = 7
MAX_TOKENS: Final = 128
N_THREADS: Final = 1
PROMPT: Final = "Tell me a long story about a lighthouse keeper and the sea."
FIRST_TOKEN_AIM_S: Final = 0.015
SPEED_AIM: Final = 0.97
CPU_AIM_S: Final = 0.0025


@dataclass(frozen=True, slots=True)
class Run:
    """One answer.

    cpu_s: of both peers' processes, without their engines, while it lasted; in the direct arm these
    are idle. n_frames: events with text.
    """

    first_s: float
    tokens_per_s: float
    total_s: float
    cpu_s: float
    n_frames: int = 0


def request_of(number: int) -> GenerateRequest:
    """The request of both arms.

    Every run has its own scope, so no prompt is found in the KV cache.
    """
    return GenerateRequest(
        model=DEFAULT_MODEL.name,
        input=ChatInput((ChatMessage("user", PROMPT),)),
        sampling=SamplingParams(temperature=0.0),
        seed=bytes(8),
        cache_scope=number.to_bytes(16, "big"),
        as_of="2026-01-01",
        max_tokens=MAX_TOKENS,
        ignore_eog=True,
    )


async def run_direct(engine: Engine, number: int, cpu_s: Callable[[], float]) -> Run:
    """The engine, called in this process."""
    cpu_before, started, first_s = cpu_s(), time.perf_counter(), 0.0
    async with engine.generate(request_of(number)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                first_s = first_s or time.perf_counter() - started
    total_s = time.perf_counter() - started
    return Run(first_s, (MAX_TOKENS - 1) / (total_s - first_s), total_s, cpu_s() - cpu_before)


async def run_mesh(client: httpx.AsyncClient, number: int, cpu_s: Callable[[], float]) -> Run:
    """The same through the local API of one peer and the donor in another."""
    asked = {
        "model": DEFAULT_MODEL.name,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    # The key only separates cache scopes, as two apps' keys would.
    headers = {"Authorization": f"Bearer run-{number}"}
    cpu_before, started, first_s, n_frames = cpu_s(), time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/chat/completions", json=asked, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    first_s = first_s or time.perf_counter() - started
                    n_frames += 1
    total_s = time.perf_counter() - started
    speed = (MAX_TOKENS - 1) / (total_s - first_s)
    return Run(first_s, speed, total_s, cpu_s() - cpu_before, n_frames)


def cpu_of(*peers: PeerProcess) -> Callable[[], float]:
    """Seconds of CPU that these processes have used, without their children."""
    processes = [psutil.Process(peer.process.pid) for peer in peers]

    def cpu_s() -> float:
        times = [process.cpu_times() for process in processes]
        return float(sum(t.user + t.system for t in times))

    return cpu_s


async def measure(n_pairs: int, folder: Path) -> list[Row]:
    """Both arms in turns."""
    model = models_dir_of(default_home()) / DEFAULT_MODEL.file_name
    spec = EngineSpec(
        path=model,
        name=DEFAULT_MODEL.name,
        artifact=DEFAULT_MODEL.artifact,
        n_threads=N_THREADS,
        n_ctx=None,
    )
    async with open_peers(folder) as peers, open_engine(spec) as engine:
        bootstrap = await peers.start_bootstrap()
        donor = await peers.start_donor("donor", DEFAULT_MODEL.name, bootstrap, N_THREADS)
        asker, api = await peers.start_asker("asker", bootstrap, 0)
        await donor.wait(is_offering)
        await asker.wait(lambda status: status["donors"])
        cpu_s = cpu_of(donor, asker)
        direct, mesh = [], []
        async with httpx.AsyncClient(base_url=api, timeout=60) as client:
            for number in range(n_pairs + 1):
                direct.append(await run_direct(engine, number, cpu_s))
                mesh.append(await run_mesh(client, number, cpu_s))
    return rows_of(direct[1:], mesh[1:])  # the first pair only warms up


def rows_of(direct: list[Run], mesh: list[Run]) -> list[Row]:
    """Medians and the medians of the pairs' differences and ratios, against the aims."""
    n = len(direct)
    pairs = list(zip(mesh, direct, strict=True))
    added_s = median(m.first_s - d.first_s for m, d in pairs)
    speed = median(m.tokens_per_s / d.tokens_per_s for m, d in pairs)
    idle = median(d.cpu_s / d.total_s for d in direct)
    frame_s = median((m.cpu_s - idle * m.total_s) / m.n_frames for m in mesh)
    return [
        Row(
            "first token",
            n,
            median(m.first_s for m in mesh) * 1000,
            median(d.first_s for d in direct) * 1000,
            median(m.first_s / d.first_s for m, d in pairs),
            "ms",
            None,
        ),
        Row(
            "added to the first token",
            n,
            added_s * 1000,
            None,
            None,
            "ms",
            added_s <= FIRST_TOKEN_AIM_S,
        ),
        Row(
            "speed after the first token",
            n,
            median(m.tokens_per_s for m in mesh),
            median(d.tokens_per_s for d in direct),
            speed,
            "tokens/s",
            speed >= SPEED_AIM,
        ),
        Row("CPU a frame, both peers", n, frame_s * 1000, None, None, "ms", frame_s <= CPU_AIM_S),
        Row("CPU of both peers when idle", n, idle * 1000, None, None, "ms/s", None),
    ]


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "")
    n_pairs = QUICK_PAIRS if arguments.quick else PAIRS
    os.environ.setdefault("TOKENPLACE_MODELS_DIR", str(Path(".cache/models").absolute()))
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        rows = trio.run(measure, n_pairs, Path(folder))
    report("the network against its own engine", rows, arguments.json)


if __name__ == "__main__":
    main()
