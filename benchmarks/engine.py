"""Our engine beside llama.cpp's own server: speed, first tokens, shared prefixes, stalls, chats.

`python -m benchmarks.engine [--quick] [--only WORKLOAD] [--json FILE]`; the server is built once by
`python -m benchmarks.llama_server`. Start at `WORKLOADS`.

Both arms have the same model, threads and prompts, which neither has seen, and answer greedily. In
each round both do the same, in turns first; a ratio is the median of the rounds' ratios, so what
other programs do to both does not count, and how much they did is reported. Every answer is checked
to have as many tokens as were asked for, and every prompt to be as long in both arms.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import trio

from benchmarks import llama_server
from benchmarks.engine_rounds import Bench
from benchmarks.engine_workloads import (
    cancel,
    chat,
    locked,
    network,
    prefix,
    python,
    speed,
    stall,
)
from benchmarks.report import Row, parse_arguments, report
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.settings import default_home, models_dir_of

ROUNDS: Final = 3
N_NEW: Final = 128
QUICK_N_NEW: Final = 48
N_THREADS: Final = 2

WORKLOADS: Final[dict[str, Callable[[Bench], Awaitable[list[Row]]]]] = {
    **{f"speed-{n}": partial(speed, n) for n in (1, 2, 4, 8, 16)},
    "prefix": prefix,
    "stall": stall,
    "chat": chat,
    "cancel": cancel,
    "python": python,
    "network-1": partial(network, 1),
    "network-2": partial(network, 2),
    "locked": locked,
}
"""By the name that `--only` takes."""

QUICK: Final = ("speed-4", "prefix", "stall", "chat", "cancel", "python")


async def measure(names: Sequence[str], bench: Bench) -> list[Row]:
    """All these workloads, one after the other."""
    rows: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        for row in await WORKLOADS[name](bench):
            ratio = "" if row.ratio is None else f", ratio {row.ratio:.3g}"
            print(f"  {row.workload}: {row.ours:.3g} {row.unit}{ratio}", file=sys.stderr)
            rows.append(row)
    rows.append(others_row("CPU of others, median", median(bench.others)))
    rows.append(others_row("CPU of others, highest", max(bench.others)))
    return rows


def others_row(what: str, cores: float) -> Row:
    """How far the machine was not ours."""
    return Row(what, None, cores * 100, None, None, "% of a core", None)


def chosen(only: str | None, is_quick: bool) -> list[str]:
    """The workloads to run: those that `only` matches, else all, or the quick ones."""
    if only is not None:
        return [name for name in WORKLOADS if fnmatch(name, only)]
    return list(QUICK if is_quick else WORKLOADS)


def add_options(parser: ArgumentParser) -> None:
    """What only this benchmark has."""
    names = ", ".join(WORKLOADS)
    parser.add_argument("--only", metavar="WORKLOAD", help=f"one, or a pattern, of {names}")
    parser.add_argument(
        "--threads",
        type=int,
        default=N_THREADS,
        metavar="N",
        help=f"of each arm, but for network-*: {N_THREADS} unless given; with as many as cores, "
        "one busy neighbour makes all steps three times as long",
    )


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "", add_options=add_options)
    names = chosen(arguments.only, arguments.quick)
    if not names:
        sys.exit(f"No workload is called {arguments.only}.")
    root = Path(__file__).parents[1]
    server = llama_server.path_of(llama_server.locked_requirement(root))
    if not server.exists():
        sys.exit("llama-server is not built yet: run `python -m benchmarks.llama_server` once.")
    os.environ.setdefault("TOKENPLACE_MODELS_DIR", str(Path(".cache/models").absolute()))
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        bench = Bench(
            model=models_dir_of(default_home()) / DEFAULT_MODEL.file_name,
            server=server,
            folder=Path(folder),
            rounds=1 if arguments.quick else ROUNDS,
            n_new=QUICK_N_NEW if arguments.quick else N_NEW,
            n_threads=arguments.threads,
        )
        rows = trio.run(measure, names, bench)
    report("our engine against llama.cpp's own server", rows, arguments.json)


if __name__ == "__main__":
    main()
