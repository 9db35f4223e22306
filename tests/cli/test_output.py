"""What a person reads: errors, sizes, times."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tokenplace.cli.output import (
    INTERRUPTED,
    CommandFailed,
    console,
    explain,
    human_bytes,
    human_seconds,
)
from tokenplace.errors import ConfigError, ModelFetchFailed
from tokenplace.settings import Settings

CANARY = "the canary sings at noon"


def explained(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught:
        explain(error)
    captured = capsys.readouterr()
    assert captured.out == "", "stdout is for data"
    return caught.value.code, captured.err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CommandFailed("donor-1 ended"), "error: donor-1 ended\n"),
        (ConfigError("bad port.", hint="Choose."), "error: bad port.\n  Choose.\n"),
        (ModelFetchFailed(), "error: The model could not be fetched.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission denied"),
    ],
)
def test_an_error_is_one_line_and_a_hint(
    error: Exception, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = explained(error, capsys)
    assert code == 1
    assert said.startswith(text)
    grouped = BaseExceptionGroup("", [BaseExceptionGroup("", [error])])
    assert explained(grouped, capsys) == (1, said)


def test_a_fault_of_ours_names_its_place_and_nothing_it_was_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        Settings(Path()).threads_each("two")  # type: ignore[arg-type]
    except Exception as fault:
        fault.add_note(CANARY)
        code, said = explained(fault, capsys)
    assert code == 1
    assert "at tokenplace/settings.py:" in said
    assert "Traceback" not in said
    assert CANARY not in explained(KeyError(CANARY), capsys)[1]


def test_ctrl_c_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(KeyboardInterrupt(), capsys) == (INTERRUPTED, "")
    group = BaseExceptionGroup("", [KeyboardInterrupt()])
    assert explained(group, capsys) == (INTERRUPTED, "")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98 MB"), (4.9e12, "4.9 TB")],
)
def test_sizes(n_bytes: int, text: str) -> None:
    assert human_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (60, "1 min"), (18_600, "5 h 10 min"), (187_200, "2 d 4 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_tables_lose_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("x" * 300)
    assert "x" * 300 in capsys.readouterr().out
