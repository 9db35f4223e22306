"""How every benchmark reports: a table for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark's result. ok: whether the aim was met; None where there is none."""

    workload: str
    n: int | None
    ours: float | None
    rival: float | None
    ratio: float | None
    unit: str
    ok: bool | None


def parse_arguments(
    description: str,
    *,
    has_scale: bool = False,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """`--json FILE` and `--quick`, the same for every benchmark; `--scale SHARE` in its place for
    one whose size may be chosen. `add_options` adds what only one has.
    """
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    if has_scale:
        parser.add_argument("--scale", type=float, default=1.0, metavar="SHARE", help="do so much")
    else:
        parser.add_argument(
            "--quick", action="store_true", help="fewer repetitions, within 2 minutes"
        )
    return parser.parse_args()


def report(title: str, rows: list[Row], json_file: Path | None) -> None:
    """Print the table; write it to `json_file` if there is one."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in ("workload", "n", "ours", "rival", "ratio", "unit", "ok"):
        table.add_column(column, justify="left" if column in ("workload", "unit") else "right")
    for row in rows:
        table.add_row(
            row.workload,
            "" if row.n is None else str(row.n),
            _figure(row.ours),
            _figure(row.rival),
            _figure(row.ratio),
            row.unit,
            {True: "yes", False: "NO", None: ""}[row.ok],
        )
    Console(highlight=False, soft_wrap=True).print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
