"""The table of drills: what is run, what counts as met, what the command says at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.drills import __main__ as command
from benchmarks.drills.app import Question, chat, whole
from benchmarks.drills.real_model import N_TOKENS, NEAR, seam_problem
from benchmarks.drills.stream import Token
from benchmarks.drills.table import Drill, Result, Scale, all_drills, percentile
from benchmarks.drills.trials import Outcome, result_of

GOOD = Outcome("ALICE", 1.0)
Run = Callable[[Scale], Coroutine[None, None, Result]]


async def met(scale: Scale) -> Result:
    return Result(ok=True, n=scale.times(50, 5), measured="all of them")


async def missed(scale: Scale) -> Result:
    return Result(ok=False, n=1, measured="none", faults=("ALICE: it [was] late",))


async def broken(scale: Scale) -> Result:
    raise AssertionError("no donor came")


def drill(run: Run) -> Drill:
    return Drill(run.__name__, "what is done", "what must come of it", run)


def run_command(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, drills: tuple[Run, ...] = (met, missed)
) -> int:
    """Its exit status."""
    monkeypatch.setattr(command, "all_drills", lambda: [drill(run) for run in drills])
    monkeypatch.setattr(sys, "argv", ["drills", *arguments])
    try:
        command.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_every_drill_has_a_name_of_its_own() -> None:
    names = [drill.name for drill in all_drills()]
    assert len(set(names)) == len(names)
    assert {"killed-early", "killed-in-stream", "killed-alone", "frozen", "gone"} <= set(names)


def test_the_exit_status_says_whether_a_line_was_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "--only", "met") == 0
    assert run_command(monkeypatch) == 1
    out = capsys.readouterr().out
    assert "missed: ALICE: it [was] late" in out
    assert "MISSED" in out


def test_a_drill_that_breaks_down_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, drills=(broken, met)) == 1
    out = capsys.readouterr().out
    assert "broken: AssertionError: no donor came" in out
    assert "all of them" in out


@pytest.mark.parametrize(("flags", "n"), [((), 50), (("--quick",), 5)])
def test_json_has_what_the_table_has(
    flags: tuple[str, ...], n: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    assert run_command(monkeypatch, *flags, "--json", str(file), drills=(met,)) == 0
    (row,) = json.loads(file.read_text("utf-8"))
    assert (row["drill"], row["ok"], row["n"]) == ("met", True, n)
    assert row["pass_line"] == "what must come of it"


def test_a_name_that_no_drill_has_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "--only", "nobody") == 2
    assert "invalid choice: 'nobody'" in capsys.readouterr().err


def test_the_same_seed_casts_the_same_dice(tmp_path: Path) -> None:
    scale = Scale(False, 1, tmp_path, print)
    assert scale.dice("early").random() == scale.dice("early").random()
    assert scale.dice("early").random() != scale.dice("cut").random()
    assert scale.dice("early").random() != replace(scale, seed=2).dice("early").random()
    assert replace(scale, at_most=3).times(50, 5) == 3


@pytest.mark.parametrize(
    ("outcomes", "is_ok"),
    [
        ([GOOD] * 20, True),
        ([*[GOOD] * 19, replace(GOOD, took_s=9.0)], True),
        ([*[GOOD] * 18, *[replace(GOOD, took_s=9.0)] * 2], False),
        ([*[GOOD] * 19, replace(GOOD, problem="a second role")], False),
        ([*[GOOD] * 19, replace(GOOD, took_s=None)], True),
    ],
    ids=["all good", "one late", "two late", "one bad", "one without a time"],
)
def test_a_line_is_met_by_all_and_by_most_in_time(outcomes: list[Outcome], is_ok: bool) -> None:
    result = result_of(outcomes, good="whole", time="gap", p95_s=3.0)
    assert result.ok is is_ok
    assert result.n == 20


def test_the_worst_may_count_too() -> None:
    late = [*[GOOD] * 19, replace(GOOD, took_s=9.0)]
    assert not result_of(late, good="whole", time="gap", p95_s=3.0, worst_s=3.0).ok


def test_percentiles_are_of_what_was_seen() -> None:
    assert percentile([float(n) for n in range(100)], 0.95) == 94.0
    assert percentile([4.0], 0.95) == 4.0
    assert percentile([], 0.95) == 0.0


# ---------------------------------------------------------------- the seam of a real model


def answer(*tokens: Token) -> Question:
    question = Question(chat("model", "hello", N_TOKENS))
    choice = question.stream.choices[0]
    choice.tokens = [*tokens, *[Token(b".", -0.1, {})] * (N_TOKENS - len(tokens))]
    choice.text = b"".join(token.raw for token in choice.tokens).decode()
    question.stream.usage = {"completion_tokens": N_TOKENS}
    return question


SURE = Token(b"a", -0.1, {b"a": -0.1, b"b": -2.0})
TORN = Token(b"a", -0.7, {b"a": -0.7, b"b": -0.7 - NEAR / 2})


@pytest.mark.parametrize(
    ("uncut", "token", "is_good"),
    [(SURE, b"a", True), (SURE, b"b", False), (TORN, b"b", True), (TORN, b"c", False)],
    ids=["the same", "another", "as likely", "unheard of"],
)
def test_at_a_seam_only_an_equally_likely_token_may_stand(
    uncut: Token, token: bytes, is_good: bool
) -> None:
    cut = answer(replace(uncut, raw=token))
    assert (seam_problem(cut, answer(uncut)) == "") is is_good


def test_a_token_that_is_missing_at_the_seam_is_seen() -> None:
    cut = answer(SURE)
    cut.stream.choices[0].tokens.pop()
    assert seam_problem(cut, answer(SURE)) == f"{N_TOKENS - 1} tokens instead of {N_TOKENS}"
    cut = answer(SURE)
    cut.stream.choices[0].text += "."
    assert seam_problem(cut, answer(SURE)) == "its text is not that of its tokens"


def test_a_question_that_does_not_stream_is_the_same_question() -> None:
    body = chat("model", "hello", 4)
    assert {**whole(body), "stream": True, "stream_options": body["stream_options"]} == body
