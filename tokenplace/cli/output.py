"""Everything printed to a person goes through here: data to stdout, talk to stderr, and a hint that
can be acted on."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from tokenplace.errors import TokenplaceError, first_error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

INTERRUPTED: Final = 130  # as a shell reports a command that Ctrl-C ended
TABLE_WIDTH: Final = 240  # characters; the widest row, with a long path, is about 200
LABEL_CHARS: Final = 16  # of the labels before facts that stand one under the other
PACKAGE: Final = Path(__file__).resolve().parent.parent


class CommandFailed(Exception):
    """A command cannot go on; the text says why."""


def say(text: str) -> None:
    """Talk to the person at the terminal, on stderr, so that stdout stays usable in a pipe."""
    print(text, file=sys.stderr, flush=True)


def fail(problem: str, *hints: str) -> NoReturn:
    """End the command with exit status 1: what went wrong, then what to do about it."""
    _say_error(problem, *hints)
    raise typer.Exit(1)


def explain(error: BaseException) -> NoReturn:
    """End the process with what `error`, which no command has handled, means to a person."""
    error = first_error(error)
    if isinstance(error, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    if isinstance(error, CommandFailed):
        _say_error(str(error))
    elif isinstance(error, TokenplaceError):
        _say_error(error.detail or str(error), error.hint)
    elif isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        _say_error(f"{error.filename}: {reason}" if error.filename else reason)
    else:
        # Without the error's own text, which may hold a prompt.
        _say_error(
            f"a fault in tokenplace itself: {type(error).__name__} at {place_of(error)}",
            "please report this line",
        )
    sys.exit(1)


def place_of(error: BaseException) -> str:
    """File and line of our own code that `error` came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    if not own:
        return "an unknown place"
    return f"{Path(own[-1].filename).relative_to(PACKAGE.parent)}:{own[-1].lineno}"


def _say_error(problem: str, *hints: str) -> None:
    say(f"error: {problem}")
    for hint in hints:
        if hint:
            say(f"  {hint}")


def console() -> Console:
    """Where tables go: stdout, as wide as they need. A narrow terminal breaks their lines, for a
    name or a path cut short would be worth nothing.
    """
    from rich.console import Console  # here: `--help` must not pay for it

    return Console(highlight=False, soft_wrap=True, width=TABLE_WIDTH)


def table_of(title: str, columns: Sequence[str], figures: Collection[str]) -> Table:
    """A table without rows yet. figures: the columns of numbers, which stand on the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="right" if column in figures else "left")
    return table


def human_seconds(seconds: float) -> str:
    """A time as people say it: "42 s", "3 min", "5 h 10 min", "2 d 4 h"."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if not minutes:
        return f"{seconds:.0f} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def counted(n: int, what: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def human_bytes(n_bytes: int) -> str:
    """A size as people write it: "98 MB"."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
