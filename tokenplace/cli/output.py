"""Everything printed to a person goes through here: data to stdout, talk to stderr, and a hint that
can be acted on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """Talk to the person at the terminal, on stderr, so that stdout stays usable in a pipe."""
    print(text, file=sys.stderr, flush=True)


def fail(problem: str, *hints: str) -> NoReturn:
    """End the command with exit status 1: what went wrong, then what to do about it."""
    say(f"error: {problem}")
    for hint in hints:
        if hint:
            say(f"  {hint}")
    raise typer.Exit(1)


def console() -> Console:
    """Where tables go: stdout, as wide as they need where no terminal limits them."""
    from rich.console import Console  # here: `--help` must not pay for it

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


def human_bytes(n_bytes: int) -> str:
    """A size as people write it: "98 MB"."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
