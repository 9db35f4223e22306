"""How the latest requests read, and one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from tokenplace.cli import status as status_module
from tokenplace.cli.app import app
from tokenplace.cli.requests import print_request, print_requests, requests_named

ALICE = "12D3KooWSPpe5mwtL8KmqMWKucAp9YL7JkwvFSn3FrbDnL1bLGD2"
BOB = "12D3KooWMvrQ1xxSLrqjdvugEBADAhgW4tT2VmaVpjcBAWPiTpER"
TINY_MODEL = "tiny-model@sha256:b179c9523d0e"


def attempt(number: int, donor: str, outcome: str | None, **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "at": 1000.0,
        "donor": donor,
        "served": TINY_MODEL,
        "outcome": outcome,
        "text": outcome.replace("_", " ") if outcome else "writing the answer",
        "phase": "decode",
        "accepted_s": 0.0125,
        "first_token_s": 0.212,
        "total_s": 3.21,
        "n_tokens": 17,
        "n_resumed": 0,
        "is_hedge": False,
        "why": {"rule": "better_of_two", "text": "the better of two; of 5 donors"},
        "waiting": None,
        **fields,
    }


def asked(id_: str, *attempts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "kind": "generate",
        "model": "[auto]",
        "at": 1000.0,
        "age_s": 65.0,
        "outcome": "finished",
        "text": "finished",
        "total_s": 4.44,
        "n_tokens": sum(each["n_tokens"] for each in attempts),
        "n_attempts": len(attempts),
        "attempts": list(attempts),
        **fields,
    }


CONTINUED = asked(
    "0123456789ab",
    attempt(0, ALICE, "connection_lost", text="connection lost, in decode"),
    attempt(
        1,
        BOB,
        "finished",
        accepted_s=0.03,
        first_token_s=0.4,
        total_s=83.0,
        n_tokens=120,
        n_resumed=17,
        why={"rule": "only_one", "text": "nobody else was left"},
    ),
)
REFUSED = asked(
    "cafe00000001",
    attempt(
        0, ALICE, "busy", phase="asked", accepted_s=None, first_token_s=None, total_s=0.08,
        n_tokens=0, why=None, text="busy, before it accepted",
    ),
    outcome="busy",
    text="busy",
    total_s=0.09,
)  # fmt: skip
WAITING = asked(
    "cafe00000002",
    attempt(
        0,
        BOB,
        None,
        phase="queued",
        first_token_s=None,
        n_tokens=0,
        text="waiting: position 3, about 8 s",
        waiting={"position": 3, "eta_s": 8.0, "text": "waiting: position 3, about 8 s"},
    ),
    attempt(
        1,
        "self",
        None,
        phase="asked",
        accepted_s=None,
        first_token_s=None,
        n_tokens=0,
        text="connecting",
    ),
    outcome=None,
    text="waiting: position 3, about 8 s",
)
SEEKING = asked("cafe00000003", outcome=None, text="looking for a donor", age_s=1.0, total_s=1.0)
REQUESTS = [CONTINUED, REFUSED, WAITING, SEEKING]


def rendered(printer: Any, requests: list[dict[str, Any]], width: int = 240) -> list[str]:
    """The words of each line."""
    screen = Console(highlight=False, soft_wrap=True, width=width)
    with screen.capture() as capture:
        printer(screen, requests)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


# ---------------------------------------------------------------- all of them


def test_each_request_has_a_line_and_its_attempts_below() -> None:
    lines = rendered(print_requests, REQUESTS)
    rows = [
        "0123456789ab 1 min ago, for [auto]",
        "finished; 137 tokens in 4.4 s",
        "1 …FrbDnL1bLGD2 (better of two): connection lost, in decode; accepted after 12 ms, "
        "first token after 212 ms, 17 tokens in 3.2 s",
        "2 …BAWPiTpER (only one): finished; accepted after 30 ms, first token after 400 ms, "
        "resumed from 17 tokens, 120 tokens in 1 min",
        "cafe00000001 1 min ago, for [auto]",
        "busy; 0 tokens in 90 ms",
        "1 …FrbDnL1bLGD2: busy, before it accepted; 0 tokens in 80 ms",
        "cafe00000002 1 min ago, for [auto]",
        "waiting: position 3, about 8 s; 0 tokens in 4.4 s",
        "1 …BAWPiTpER (better of two): waiting: position 3, about 8 s; accepted after 12 ms, "
        "0 tokens in 3.2 s",
        "2 self (better of two): connecting; 0 tokens in 3.2 s",
        "cafe00000003 1 s ago, for [auto]",
        "looking for a donor; 0 tokens in 1.0 s",
    ]
    rows = [row.replace("…FrbDnL1bLGD2", f"…{ALICE[-10:]}") for row in rows]
    rows = [row.replace("…BAWPiTpER", f"…{BOB[-10:]}") for row in rows]
    assert lines == ["", "latest requests", *rows]


def test_before_any_request_there_is_a_word() -> None:
    assert rendered(print_requests, []) == ["", "no requests yet"]


# ---------------------------------------------------------------- one request


def test_one_request_tells_everything() -> None:
    assert rendered(print_request, [CONTINUED]) == [
        "request 0123456789ab",
        "asked 1 min ago, for [auto]",
        "outcome finished; 137 tokens in 4.4 s",
        f"attempt 1 {ALICE}",
        f"with {TINY_MODEL}",
        "chosen: the better of two; of 5 donors",
        "connection lost, in decode; accepted after 12 ms, first token after 212 ms, "
        "17 tokens in 3.2 s",
        f"attempt 2 {BOB}",
        f"with {TINY_MODEL}",
        "chosen: nobody else was left",
        "finished; accepted after 30 ms, first token after 400 ms, resumed from 17 tokens, "
        "120 tokens in 1 min",
    ]


def test_who_asked_nobody_says_so() -> None:
    lines = rendered(print_request, [asked("cafe00000003", text="no donor for model")])
    assert "attempts none: no donor was asked" in lines
    assert "outcome no donor for model; 0 tokens in 4.4 s" in lines


def test_forgotten_attempts_are_counted() -> None:
    lines = rendered(print_request, [CONTINUED | {"n_attempts": 9}])
    assert "attempts the first 7 are forgotten" in lines


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("0123", ["0123456789ab"]),
        ("0123456789ab", ["0123456789ab"]),
        ("req_0123456789abcdef01234567", ["0123456789ab"]),
        ("chatcmpl-cafe00000002000000000000", ["cafe00000002"]),
        ("cafe", ["cafe00000001", "cafe00000002", "cafe00000003"]),
    ],
)
def test_requests_are_found_by_any_id_that_an_app_has(name: str, ids: list[str]) -> None:
    assert [request["id"] for request in requests_named(REQUESTS, name)] == ids


def test_further_prompts_are_found_with_the_first() -> None:
    more = [asked("0123456789ab.1"), asked("0123456789ab.12")]
    found = requests_named([*REQUESTS, *more], "cmpl-0123456789abffffffffffff")
    assert [request["id"] for request in found] == [
        "0123456789ab",
        "0123456789ab.1",
        "0123456789ab.12",
    ]


@pytest.mark.parametrize("name", ["ffff", "01", "req_", ""])
def test_what_is_no_request_here_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        requests_named(REQUESTS, name)
    assert "error: " in capsys.readouterr().err


# ---------------------------------------------------------------- the command


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that runs and has been asked."""
    monkeypatch.setattr(status_module, "ask_peer", lambda home, path: {"requests": REQUESTS})


def run(*arguments: str, home: Path) -> Any:
    return CliRunner().invoke(
        app, ["--config", "/dev/null", "peer", "status", *arguments, "--home", str(home)]
    )


@pytest.mark.usefixtures("peer")
def test_the_command_shows_one_request(tmp_path: Path) -> None:
    result = run("--requests", "0123", home=tmp_path)
    assert result.exit_code == 0
    assert BOB in result.output
    whole = run("--requests", "0123", "--json", home=tmp_path)
    assert json.loads(whole.output) == [CONTINUED]


@pytest.mark.usefixtures("peer")
def test_an_id_alone_is_no_command(tmp_path: Path) -> None:
    assert run("0123", home=tmp_path).exit_code == 1
    assert run("--requests", "ffff", home=tmp_path).exit_code == 1
