"""`python -m benchmarks.drills [--quick] [--only NAME ...] [--seed N] [--json FILE]`.

Exit status 1 if a pass line was missed. Start at `main`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio
import trio.lowlevel
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.drills.table import Drill, Result, Scale, all_drills
from tokenplace.cli.stopping import until_signal

FILE_WIDTH: Final = 160  # a terminal's own, where there is one
QUICK_AT_ONCE: Final = 3  # most of a drill is waiting


@dataclass(frozen=True, slots=True)
class Line:
    """One drill that was run, and how long that took."""

    drill: Drill
    result: Result
    took_s: float

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not run"}[self.result.ok]


def parse_arguments(names: Sequence[str]) -> argparse.Namespace:
    """Flags as every benchmark has them. names: of all drills."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer times, within 3 minutes")
    parser.add_argument(
        "--only", nargs="+", action="extend", choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--seed", type=int, default=0, help="of every die; the default is 0")
    return parser.parse_args()


async def run_drill(drill: Drill, *, is_quick: bool, seed: int) -> Line:
    """Run one drill in a folder of its own. One that breaks down itself has missed its line."""
    began = trio.current_time()
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        try:
            result = await drill.run(Scale(is_quick, seed, Path(folder), _say))
        except* Exception as group:
            # The one seam behind which anything may go wrong: the others are still to be run.
            traceback.print_exception(group)
            result = Result(ok=False, n=0, measured="broke down", faults=(_last_words(group),))
    return Line(drill, result, trio.current_time() - began)


async def run_drills(drills: Sequence[Drill], *, is_quick: bool, seed: int) -> list[Line]:
    """Run them one after the other, or some beside each other if it has to be quick. Those that
    were interrupted are not in the list.
    """
    lines: dict[str, Line] = {}
    turns = trio.CapacityLimiter(QUICK_AT_ONCE if is_quick else 1)

    async def run(drill: Drill) -> None:
        async with turns:
            _say(f"{drill.name}: {drill.what} ...")
            lines[drill.name] = await run_drill(drill, is_quick=is_quick, seed=seed)

    async with until_signal(), trio.open_nursery() as nursery:
        for drill in drills:
            nursery.start_soon(run, drill)
            await trio.lowlevel.checkpoint()  # in this order
    return [lines[drill.name] for drill in drills if drill.name in lines]


def print_lines(lines: Sequence[Line], seed: int) -> None:
    """The table, and below it what went wrong."""
    table = Table(
        title=f"drills, seed {seed}", title_justify="left", box=box.SIMPLE, pad_edge=False
    )
    for column in ("drill", "n", "measured", "pass line", "s", ""):
        table.add_column(column, justify="right" if column in ("n", "s") else "left")
    for line in lines:
        result = line.result
        table.add_row(
            line.drill.name,
            str(result.n),
            result.skipped or result.measured,
            line.drill.pass_line,
            f"{line.took_s:.0f}",
            line.verdict,
        )
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=FILE_WIDTH)
    console.print(table)
    for line in lines:
        for fault in line.result.faults:
            console.print(f"{line.drill.name}: {fault}", markup=False)


def rows_of(lines: Sequence[Line]) -> list[dict[str, object]]:
    """The same for programs."""
    return [
        {
            "drill": line.drill.name,
            "what": line.drill.what,
            "pass_line": line.drill.pass_line,
            **asdict(line.result),
            "took_s": round(line.took_s, 1),
        }
        for line in lines
    ]


def main() -> None:
    """Run the drills and report."""
    drills = all_drills()
    arguments = parse_arguments([drill.name for drill in drills])
    chosen = [drill for drill in drills if not arguments.only or drill.name in arguments.only]
    lines = trio.run(_run, chosen, arguments.quick, arguments.seed)
    print_lines(lines, arguments.seed)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows_of(lines), indent=2) + "\n", "utf-8")
    if len(lines) < len(chosen) or any(line.result.ok is False for line in lines):
        sys.exit(1)


async def _run(drills: Sequence[Drill], is_quick: bool, seed: int) -> list[Line]:
    return await run_drills(drills, is_quick=is_quick, seed=seed)


def _last_words(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
