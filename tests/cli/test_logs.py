"""How a running peer's log is written."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import typer

from tokenplace.cli.logs import JsonFormatter, set_up_logs
from tokenplace.errors import ConfigError
from tokenplace.settings import LOG_FORMATS, Settings

SECRET = "the canary sings at noon"


def line_of(message: str, *args: object, **extra: object) -> dict[str, object]:
    record = logging.LogRecord(
        "tokenplace.router.journal", logging.INFO, "journal.py", 1, message, args, None
    )
    record.created = 1_700_000_000.25
    for name, value in extra.items():
        setattr(record, name, value)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line: dict[str, object] = json.loads(text)
    return line


def test_a_message_is_one_object() -> None:
    assert line_of("%d peers\nleft", 3) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
        "logger": "tokenplace.router.journal",
        "message": "3 peers\nleft",
    }


def test_an_event_has_its_fields_instead_of_words() -> None:
    line = line_of("attempt number=0", event="attempt", fields={"number": 0, "total_s": 0.5})
    assert line["event"] == "attempt"
    assert (line["number"], line["total_s"]) == (0, 0.5)
    assert "message" not in line


def test_an_exceptions_text_is_in_no_line() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        line = line_of("it broke", exc_info=sys.exc_info())
    assert line["error"] == "ValueError"
    assert SECRET not in json.dumps(line)
    assert "Traceback" not in json.dumps(line)


def new_root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A root logger that nobody has set up yet, pytest neither."""
    root = logging.RootLogger(logging.NOTSET)
    monkeypatch.setattr(logging, "root", root)
    return root


@pytest.mark.parametrize(("form", "is_json"), [("text", False), ("json", True)])
def test_a_log_has_one_form(form: str, is_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = new_root(monkeypatch)
    monkeypatch.setenv("TOKENPLACE_LOG", "info")
    set_up_logs(form)
    (handler,) = root.handlers
    assert root.level == logging.INFO
    assert isinstance(handler.formatter, JsonFormatter) == is_json


def test_an_unknown_level_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = new_root(monkeypatch)
    monkeypatch.setenv("TOKENPLACE_LOG", "loud")
    with pytest.raises(typer.Exit):
        set_up_logs("text")
    assert "TOKENPLACE_LOG=LOUD is no log level" in capsys.readouterr().err
    assert not root.handlers


@pytest.mark.parametrize("form", LOG_FORMATS)
def test_forms_that_exist(form: str) -> None:
    Settings(Path("/home/alice"), log_format=form).check()


def test_a_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(Path("/home/alice"), log_format="xml").check()
    assert "json" in caught.value.hint
