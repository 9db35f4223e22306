"""How long until the local API answers, and how much memory a peer takes that only asks.

`python -m benchmarks.startup [--quick] [--json FILE]`. Start at `measure`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import psutil

from benchmarks.report import Row, parse_arguments, report

STARTS: Final = 9
QUICK_STARTS: Final = 5
SETTLE_S: Final = 3.0  # libp2p is loaded after the API is up: its memory counts too
ANSWER_AIM_S: Final = 1.5
MEMORY_AIM_MB: Final = 130.0
POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds to the first answer, and resident memory after it, once all is loaded."""

    answer_s: float
    memory_mb: float


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def start_once(folder: Path) -> Start:
    """Start `tokenplace up` without models or peers, and stop it."""
    port = free_port()
    started = time.perf_counter()
    command = [sys.executable, "-m", "tokenplace", "up", "--home", str(folder)]
    process = subprocess.Popen([*command, "--api-port", str(port)], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/health").raise_for_status()
                break
            except httpx.ConnectError:
                assert process.poll() is None, "the peer ended"
                time.sleep(POLL_S)
        answer_s = time.perf_counter() - started
        time.sleep(SETTLE_S)
        return Start(answer_s, psutil.Process(process.pid).memory_info().rss / 1e6)
    finally:
        process.terminate()
        process.wait()


def measure(n_starts: int) -> list[Row]:
    """Medians over warm starts; the first start is not counted."""
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        starts = [start_once(Path(folder)) for _ in range(n_starts + 1)][1:]
    answer_s = median(start.answer_s for start in starts)
    memory_mb = median(start.memory_mb for start in starts)
    return [
        Row(
            "first answer of the API", n_starts, answer_s, None, None, "s", answer_s <= ANSWER_AIM_S
        ),
        Row("resident memory", n_starts, memory_mb, None, None, "MB", memory_mb <= MEMORY_AIM_MB),
    ]


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "")
    rows = measure(QUICK_STARTS if arguments.quick else STARTS)
    report("starting a peer that only asks", rows, arguments.json)


if __name__ == "__main__":
    main()
