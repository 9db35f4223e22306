"""Talking to a person while something runs for minutes. Start at `run_logged`.

A terminal gets one line that changes; a log gets a line every so often. All of it goes to stderr.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_TICK_S: Final = 1.0
_LOG_INTERVAL_S: Final = 15.0  # without a terminal: often enough to see that it lives
_TAIL_LINES: Final = 25


class SetUpError(Exception):
    """The set-up cannot go on; the text is for the person who ran it."""


def duration(seconds: float) -> str:
    """`75.2` → `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Status:
    """One task's line: `doing: detail ... 12 s`, and `doing: 34 s` when it is done."""

    def __init__(self, doing: str, out: IO[str] = sys.stderr) -> None:
        self.doing = doing
        self._out = out
        self._started = self._shown_at = time.monotonic()
        self._is_terminal = out.isatty()
        self._say("")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def show(self, detail: str) -> None:
        """Say how far it is; at most once in 15 s where lines cannot be replaced."""
        if self._is_terminal or time.monotonic() - self._shown_at >= _LOG_INTERVAL_S:
            self._say(detail)

    def _say(self, detail: str) -> None:
        self._shown_at = time.monotonic()
        text = f"  {self.doing}{': ' + detail if detail else ''} ... {duration(self.elapsed_s)}"
        self._out.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        self._out.flush()

    def done(self) -> None:
        """The last word."""
        start = "\r\x1b[K" if self._is_terminal else ""
        self._out.write(f"{start}  {self.doing}: {duration(self.elapsed_s)}\n")
        self._out.flush()


def run_logged(
    command: Sequence[str],
    log: Path,
    status: Status,
    on_line: Callable[[str], str | None] = lambda line: None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """
    Run a command with its output in `log`. `on_line` may make a detail for the status out of each
    line. Raises `SetUpError` with the end of the output when it fails.
    """
    detail = ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None, "asked for above"
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            if selector.select(_TICK_S):
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    break
                file.write(data)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    detail = on_line(line.decode("utf-8", "replace")) or detail
            status.show(detail)
        returncode = process.wait()
    if returncode != 0:
        raise SetUpError(_failure(status.doing, log))


def _failure(doing: str, log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    tail = "\n".join(f"    {line}" for line in lines)
    return f"{doing}: failed. The end of {log}:\n\n{tail}\n"
