"""What the engine's benchmark makes of what it saw: pure parts, and rounds over arms of no cost.

Start at `test_both_arms_do_the_same_in_turns_first`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from benchmarks import engine, engine_workloads, llama_server
from benchmarks.engine_arms import Arm, EventReader
from benchmarks.engine_asks import (
    Ask,
    Compared,
    Together,
    Trace,
    asks,
    asks_with_prefix,
    prompt,
)
from benchmarks.engine_rounds import Bench, others_busy
from benchmarks.report import Row

ROOT = Path(__file__).parents[2]


class Scripted:
    """An arm that answers at once, and remembers what it was asked."""

    def __init__(self, name: str, log: list[str], n_more_prompt: int = 0, n_fewer: int = 0) -> None:
        self.name = name
        self.log = log
        self.n_more_prompt = n_more_prompt
        self.n_fewer = n_fewer
        self.texts: list[str] = []

    async def answer(self, ask: Ask, trace: Trace) -> None:
        self.log.append(self.name)
        self.texts.append(ask.text)
        await trio.lowlevel.checkpoint()
        trace.n_prompt = len(ask.text.split()) + self.n_more_prompt
        for second in range(ask.n_new - self.n_fewer):
            trace.saw(1, b".", float(second))
        trace.ended_at = float(ask.n_new)


def bench(rounds: int = 3) -> Bench:
    return Bench(Path("model"), Path("llama-server"), Path(), rounds, n_new=4, n_threads=1)


def trace(sent_at: float, *times: float) -> Trace:
    seen = Trace(sent_at=sent_at, ended_at=times[-1])
    for time in times:
        seen.saw(1, b".", time)
    return seen


# ---------------------------------------------------------------- what is asked


def test_prompts_have_the_length_asked_for_and_share_no_beginning() -> None:
    requests = asks(16, 200, 128, "round 0")
    assert {len(ask.text.split()) for ask in requests} == {200}
    assert len({ask.scope for ask in requests}) == 16
    assert len({tuple(ask.text.split()[:4]) for ask in requests}) == 16
    assert requests == asks(16, 200, 128, "round 0")
    assert requests != asks(16, 200, 128, "round 1")


def test_prompts_of_one_app_share_so_many_tokens_and_no_more() -> None:
    requests = asks_with_prefix(8, 160, 200, 128, "round 0")
    assert {len(ask.text.split()) for ask in requests} == {200}
    assert len({ask.scope for ask in requests}) == 1
    assert len({tuple(ask.text.split()[:160]) for ask in requests}) == 1
    assert len({tuple(ask.text.split()[160:164]) for ask in requests}) == 8


def test_a_prompt_is_of_words_that_are_one_token_each() -> None:
    words = prompt(1000, "long").split()
    assert words[0] == "The"
    assert all(word.isascii() and word.islower() for word in words[1:])


# ---------------------------------------------------------------- what is seen


def test_the_figures_of_requests_sent_together() -> None:
    both = Together.of([trace(10.0, 11.0, 12.0, 13.0), trace(10.0, 12.0, 14.0)])
    assert both.first_s == pytest.approx(1.5)
    assert both.tokens_per_s == pytest.approx(5 / 4.0)


def test_the_longest_gap_counts_from_when_the_long_prompt_came() -> None:
    seen = trace(0.0, 5.0, 9.0, 9.5, 12.0, 12.1)
    assert seen.longest_gap_s(since=0.0) == pytest.approx(4.0)
    assert seen.longest_gap_s(since=9.2) == pytest.approx(2.5)
    assert seen.longest_gap_s(since=10.0) == pytest.approx(2.5), "it had begun before"
    assert seen.longest_gap_s(since=99.0) == 0.0


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The third round was disturbed in both arms: neither median has the same ratio.
    compared = Compared.of([(10.0, 10.0), (11.0, 10.0), (2.0, 1.0)])
    assert compared == Compared(ours=10.0, rival=10.0, ratio=1.1)


@pytest.mark.parametrize(("ours", "oks"), [(97.0, [True, True]), (96.0, [False, False])])
def test_an_aim_is_met_or_not(ours: float, oks: list[bool]) -> None:
    pair = (Together(ours, first_s=85.0 + 97.0 - ours), Together(100.0, first_s=100.0))
    rows = engine_workloads.together_rows("strangers", 8, [pair], speed_aim=0.97, first_aim=0.85)
    assert [row.ok for row in rows] == oks
    assert [row.n for row in rows] == [8, 8]


# ---------------------------------------------------------------- rounds


async def test_both_arms_do_the_same_in_turns_first() -> None:
    log: list[str] = []
    ours, rival = Scripted("ours", log), Scripted("rival", log)
    bench_ = bench()

    async def run(arm: Arm, seed: str) -> str:
        await bench_.ask_together(arm, asks(1, 10, 4, seed))
        return f"{log[-1]} in {seed}"

    pairs = await bench_.compare((ours, rival), run)
    assert log == ["ours", "rival", "ours", "rival", "rival", "ours", "ours", "rival"]
    assert pairs == [(f"ours in round {n}", f"rival in round {n}") for n in range(3)]
    assert ours.texts == rival.texts
    assert len(set(ours.texts)) == 4, "each round, and the warm-up, has a text of its own"
    assert len(bench_.others) == 6


async def test_an_answer_of_another_length_is_no_comparison() -> None:
    arm = Scripted("ours", [], n_fewer=1)
    with pytest.raises(AssertionError, match="3 tokens instead of 4"):
        await bench().ask(arm, Ask(prompt(10, "ours"), 4, bytes(16)), Trace())


async def test_a_prompt_that_is_longer_in_one_arm_is_no_comparison() -> None:
    ask, bench_ = Ask(prompt(10, "both"), 4, bytes(16)), bench()
    await bench_.ask(Scripted("ours", []), ask, Trace())
    await bench_.ask(Scripted("rival", []), ask, Trace())
    with pytest.raises(AssertionError, match="a prompt of 10 and of 11 tokens"):
        await bench_.ask(Scripted("rival", [], n_more_prompt=1), ask, Trace())


def test_the_load_of_others_is_no_less_than_nothing_and_no_more_than_the_machine() -> None:
    busy = others_busy()
    assert 0.0 <= busy() <= 1024.0


# ---------------------------------------------------------------- the client of the server


ANSWER = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'10\r\ndata: {"n": 1}\n\n\r\n10\r\ndata: {"n": 2}\n\n\r\n'
    b"15\r\n: served by ALICE\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, len(ANSWER)])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    reader = EventReader()
    events = []
    for start in range(0, len(ANSWER), size):
        events += reader.receive_data(ANSWER[start : start + size])
    assert events == [{"n": 1}, {"n": 2}]


def test_an_answer_that_is_not_200_is_raised() -> None:
    with pytest.raises(RuntimeError, match="503 Service Unavailable"):
        EventReader().receive_data(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}")


# ---------------------------------------------------------------- the command


def test_what_only_and_quick_choose() -> None:
    assert engine.chosen(None, is_quick=False) == list(engine.WORKLOADS)
    assert set(engine.chosen(None, is_quick=True)) < set(engine.WORKLOADS)
    assert engine.chosen("speed-*", is_quick=True) == [f"speed-{n}" for n in (1, 2, 4, 8, 16)]
    assert engine.chosen("stall", is_quick=False) == ["stall"]
    assert engine.chosen("nothing", is_quick=False) == []


def test_the_report_ends_with_what_others_did_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def disturbed(bench: Bench) -> list[Row]:
        bench.others += [0.1, 0.2, 1.9]
        return [Row("strangers: speed", 8, 100.0, 95.0, 1.05, "tokens/s", True)]

    monkeypatch.setitem(engine.WORKLOADS, "speed-8", disturbed)
    rows = trio.run(engine.measure, ["speed-8"], bench())
    assert [(row.workload, row.ours) for row in rows[-2:]] == [
        ("CPU of others, median", pytest.approx(20.0)),
        ("CPU of others, highest", pytest.approx(190.0)),
    ]
    assert len(rows) == 3
    assert capsys.readouterr().err == "speed-8 ...\n  strangers: speed: 100 tokens/s, ratio 1.05\n"


def test_without_the_server_it_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENPLACE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["engine", "--quick"])
    with pytest.raises(SystemExit, match=r"run `python -m benchmarks\.llama_server` once"):
        engine.main()


def test_another_version_or_cache_is_another_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENPLACE_BENCH_CACHE", str(tmp_path))
    requirement = llama_server.locked_requirement(ROOT)
    assert requirement.startswith("llama-cpp-python==")
    here = llama_server.path_of(requirement)
    assert here.is_relative_to(tmp_path)
    assert llama_server.path_of(f"{requirement} and more") != here
    assert not here.is_relative_to(ROOT)
