"""UTF-8 and stop strings across tokens, and the stages together: any split gives the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.splitting import CUTS, read, split
from tokenplace.text.choice import Choice
from tokenplace.text.deltas import (
    Call,
    CallArguments,
    CallBegin,
    Content,
    Merged,
    Reasoning,
    merge,
)


def reference(data: bytes, stop: Sequence[str]) -> tuple[str, bool]:
    """The definition, one character at a time."""
    text = data.decode("utf-8", errors="replace")
    for end in range(len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


class RawText:
    """The text of a raw completion."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.choice = Choice(stop, is_chat=False, tools=["look_up"])

    def feed(self, pieces: bytes) -> str:
        return self._content(self.choice.feed(pieces))

    def finish(self) -> str:
        return self._content(self.choice.finish())

    def _content(self, deltas: Iterable[object]) -> str:
        assert all(isinstance(delta, Content) for delta in deltas)
        return "".join(delta.text for delta in deltas if isinstance(delta, Content))


# Few letters, so that stop strings overlap with the text and each other; every width of UTF-8.
SMALL_TEXT = st.text(st.sampled_from("abé€😀\ufffd"), max_size=24)
BROKEN_UTF8 = st.lists(
    st.sampled_from(
        [b"a", b"b", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff"]
    ),
    max_size=20,
).map(b"".join)
DATA = st.one_of(SMALL_TEXT.map(str.encode), BROKEN_UTF8, st.binary(max_size=24))
STOPS = st.lists(SMALL_TEXT.filter(lambda text: 0 < len(text) <= 5), max_size=4)


@given(DATA, STOPS, CUTS)
def test_any_split_gives_the_text_of_the_joined_bytes(
    data: bytes, stop: list[str], cuts: Iterable[int]
) -> None:
    raw = RawText(stop)
    shown = "".join(raw.feed(piece) for piece in split(data, cuts)) + raw.finish()
    assert (shown, raw.choice.stopped) == reference(data, stop)


@given(DATA, STOPS, CUTS)
def test_what_was_shown_is_never_taken_back(
    data: bytes, stop: list[str], cuts: Iterable[int]
) -> None:
    raw = RawText(stop)
    shown = ""
    seen = b""
    for piece in split(data, cuts):
        shown += raw.feed(piece)
        seen += piece
        for rest in ("", *stop):
            final, _ = reference(seen + rest.encode(), stop)
            assert final.startswith(shown)


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string() -> None:
    raw = RawText(["END"])
    assert raw.feed(b"Lend") == "Lend"
    assert raw.feed(b" E") == " "
    assert raw.feed(b"N") == ""
    assert raw.feed(b"T") == "ENT"


def test_stop_string_over_three_tokens_is_cut_and_ends_the_text() -> None:
    raw = RawText(["\n\nUser:"])
    assert raw.feed(b"Paris.\n") == "Paris."
    assert raw.feed(b"\nUs") == ""
    assert raw.feed(b"er: and more") == ""
    assert raw.choice.stopped
    assert raw.feed(b"ignored") == ""
    assert raw.finish() == ""


def test_split_character_is_held_until_whole_and_replaced_at_the_end() -> None:
    euro = "€".encode()
    raw = RawText()
    assert raw.feed(euro[:1]) == ""
    assert raw.feed(euro[1:]) == "€"
    assert raw.feed(euro[:2]) == ""
    assert raw.finish() == "\ufffd"
    assert not raw.choice.stopped


def test_replacement_at_the_end_can_complete_a_stop_string() -> None:
    raw = RawText(["a\ufffd"])
    assert raw.feed(b"ba\xe2") == "b"
    assert raw.finish() == ""
    assert raw.choice.stopped


def test_empty_stop_string_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Choice([""])


def test_a_raw_completion_is_content_whatever_it_looks_like() -> None:
    text = '<think>x</think>{"name": "look_up", "arguments": {}}'
    raw = RawText()
    assert raw.feed(text.encode()) == text


# ---------------------------------------------------------------- the stages together

THOUGHT_AND_CALL = (
    '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "look_up", "arguments": {"a": 1}}'
)


@given(CUTS)
def test_a_stop_string_counts_in_thoughts_and_calls_too(cuts: Iterable[int]) -> None:
    assert read(THOUGHT_AND_CALL, cuts, stop=["m\n"], tools=["look_up"]) == Merged("", "h", ())
    assert read(THOUGHT_AND_CALL, cuts, stop=["think>\n\n"], tools=["look_up"]) == Merged(
        "", "hm\n</", ()
    )
    assert read(THOUGHT_AND_CALL, cuts, stop=["1"], tools=["look_up"]) == Merged(
        "", "hm", (Call("look_up", '{"a": '),)
    )


def test_with_the_stop_string_comes_all_that_was_held_back() -> None:
    choice = Choice(["END"], tools=["look_up"])
    assert choice.feed(b'{"name": ') == []
    assert choice.feed(b"END") == [Content('{"name": ')]
    assert choice.stopped
    assert choice.finish() == []


def test_a_stop_string_is_not_looked_for_in_what_the_template_began() -> None:
    assert read("hm</think>4", stop=["think"], begun="<think>\n") == Merged("", "hm</", ())


def test_deltas_come_in_order() -> None:
    choice = Choice(tools=["look_up"])
    assert choice.feed(THOUGHT_AND_CALL.encode()) == [
        Reasoning("hm"),
        CallBegin(0, "look_up"),
        CallArguments(0, '{"a": 1}'),
    ]


def test_begun_may_be_said_again_until_the_text_begins() -> None:
    choice = Choice()
    choice.begin("<think>")
    choice.begin("")
    assert choice.feed(b"\xe2") == []
    choice.begin("<think>\n")  # of a donor that was asked after the first
    assert choice.feed(b"\x82\xac") == [Reasoning("€")]
    choice.begin("<think>")
    assert choice.feed(b"</think>4") == [Content("4")]


def test_forced_calls_follow_no_thought_that_the_template_began() -> None:
    choice = Choice(tools=["look_up"], is_forced_call=True)
    choice.begin("<think>\n")
    deltas = choice.feed(b'{"name": "look_up", "arguments": {}}')
    assert merge(deltas).calls == (Call("look_up", "{}"),)


FRAGMENTS = st.sampled_from(
    [
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<thi", "</"),
        *("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>", "<|"),
        *("<|tool_call_start|>", "<|tool_call_end|>", "look_up(", "a=", "b='x\\'", "True", ")"),
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL", "look_up", "```json\n", "```", "`", "x"),
        *("{", "}", "[", "]", ":", ",", ";", '"', "\\", "\n", " ", "1", "null", "é", "\ufffd"),
        *('"name": ', '"look_up"', '"other"', '"arguments": ', '"parameters":', '"id": "1", '),
        *(
            '{"name": "look_up", ',
            '"{\\"a\\": 1}"',
            '{"a": [1, "x]"], "b": {}}',
            "\\ud83d",
            "\\ude00",
        ),
        *('{"name": "look_up", "arguments": {}}', '"\\ud83d\\ude00"', "{}", "[]"),
    ]
)
ANSWERS = st.lists(FRAGMENTS, max_size=14).map("".join)


@given(ANSWERS, st.sampled_from(["", "<think>\n", "<think>\n\n</think>\n\n", "[THINK]"]), CUTS)
def test_any_split_says_the_same(answer: str, begun: str, cuts: Iterable[int]) -> None:
    whole = read(answer, tools=["look_up"], begun=begun)
    assert read(answer, cuts, tools=["look_up"], begun=begun) == whole
    stop = ["look", "\n\n", '}}"']
    assert read(answer, cuts, tools=["look_up"], stop=stop) == read(
        answer, tools=["look_up"], stop=stop
    )


@given(ANSWERS, CUTS)
def test_without_calls_and_thoughts_nothing_is_lost(answer: str, cuts: Iterable[int]) -> None:
    found = read(answer, cuts, tools=["look_up"])
    if not found.calls and "think>" not in answer.lower() and "[THINK]" not in answer:
        assert found == Merged(answer, "", ())
    if "think>" not in answer and "[THINK]" not in answer:
        assert read(answer, cuts) == Merged(answer, "", ())


@given(st.binary(max_size=60), CUTS)
def test_any_bytes_are_read(data: bytes, cuts: Iterable[int]) -> None:
    assert read(data, cuts, tools=["look_up"]) == read(data, tools=["look_up"])


@given(st.lists(st.text(st.sampled_from("abc .,:;\"'()=>}]\n1é"), min_size=1), min_size=1))
def test_plain_text_is_shown_at_once(pieces: list[str]) -> None:
    choice = Choice(["STOP"], tools=["look_up"])
    assert choice.feed(b"I ") == [Content("I ")]
    for piece in pieces:
        assert choice.feed(piece.encode()) == [Content(piece)]
