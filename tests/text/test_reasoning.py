"""Thoughts before an answer."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.splitting import CUTS, read
from tokenplace import defaults
from tokenplace.text.choice import Choice
from tokenplace.text.deltas import Content, Merged, Reasoning


@pytest.mark.parametrize(
    ("answer", "begun", "thought", "content"),
    [
        ("<think>\nhm\n\nso 4\n</think>\n\n4.\n", "", "hm\n\nso 4", "4.\n"),
        (" \n<think>hm</think>4", "", "hm", "4"),
        ("[THINK]hm[/THINK]4", "", "hm", "4"),
        ("[THINK]hm</think>4[/THINK]", "", "hm</think>4", ""),
        ("hm</think>\n\n4", "<think>\n", "hm", "4"),
        ("4", "<think>\n\n</think>\n\n", "", "4"),
        ("<think>\n\n</think>\n\n4", "", "", "4"),
        ("<think>hm\n", "", "hm", ""),
        ("<think>hm\n</thi", "", "hm\n</thi", ""),
        ("hm", "<think>\n", "hm", ""),
        ("4 <think>hm</think>", "", "", "4 <think>hm</think>"),
        ("<think>a</think>b<think>c</think>", "", "a", "b<think>c</think>"),
        ("\n\n4 ", "", "", "\n\n4 "),
        ("<thin", "", "", "<thin"),
        ("<thinking>hm", "", "", "<thinking>hm"),
        (" \n", "", "", " \n"),
        ("", "<think>", "", ""),
        ("</think>4", "", "", "</think>4"),
    ],
)
@given(cuts=CUTS)
@settings(max_examples=25)
def test_a_thought_is_split_off(
    answer: str, begun: str, thought: str, content: str, cuts: Iterable[int]
) -> None:
    assert read(answer, cuts, begun=begun) == Merged(content, thought, ())


def test_thoughts_are_shown_as_they_come() -> None:
    choice = Choice()
    assert choice.feed(b"\n<think") == []
    assert choice.feed(b">\n") == []
    assert choice.feed(b"a < b") == [Reasoning("a < b")]
    assert choice.feed(b" ") == []  # it may be the last
    assert choice.feed(b"<") == []
    assert choice.feed(b"i") == [Reasoning(" <i")]
    assert choice.feed(b"\n</think>\n") == []
    assert choice.feed(b"\n4") == [Content("4")]
    assert choice.feed(b"\n") == [Content("\n")]


@given(cuts=CUTS, n_space=st.integers(0, 12))
def test_no_more_white_space_is_held_than_the_limit(cuts: Iterable[int], n_space: int) -> None:
    space = "\n" * n_space
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_HELD_SPACE", 5)
        thought = read(f"<think>hm{space}</think>4", cuts)
        at_start = read(f"{space}<think>hm</think>", cuts)
    assert thought == Merged("4", "hm" + "\n" * max(0, n_space - 5), ())
    if n_space <= 5:
        assert at_start == Merged("", "hm", ())
    else:
        assert at_start == Merged(f"{space}<think>hm</think>", "", ())
