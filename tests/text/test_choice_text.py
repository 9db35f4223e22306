"""UTF-8 and stop strings across tokens: any split gives the text of the joined bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace.text.choice_text import ChoiceText


def reference(data: bytes, stop: Sequence[str]) -> tuple[str, bool]:
    """The definition, one character at a time."""
    text = data.decode("utf-8", errors="replace")
    for end in range(len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in pairwise(places)]


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
CUTS = st.lists(st.integers(0, 80), max_size=30)


@given(DATA, STOPS, CUTS)
def test_any_split_gives_the_text_of_the_joined_bytes(
    data: bytes, stop: list[str], cuts: list[int]
) -> None:
    choice = ChoiceText(stop)
    shown = "".join(choice.feed(piece) for piece in split(data, cuts)) + choice.finish()
    assert (shown, choice.stopped) == reference(data, stop)


@given(DATA, STOPS, CUTS)
def test_what_was_shown_is_never_taken_back(data: bytes, stop: list[str], cuts: list[int]) -> None:
    choice = ChoiceText(stop)
    shown = ""
    seen = b""
    for piece in split(data, cuts):
        shown += choice.feed(piece)
        seen += piece
        for rest in ("", *stop):
            final, _ = reference(seen + rest.encode(), stop)
            assert final.startswith(shown)


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string() -> None:
    choice = ChoiceText(["END"])
    assert choice.feed(b"Lend") == "Lend"
    assert choice.feed(b" E") == " "
    assert choice.feed(b"N") == ""
    assert choice.feed(b"T") == "ENT"


def test_stop_string_over_three_tokens_is_cut_and_ends_the_text() -> None:
    choice = ChoiceText(["\n\nUser:"])
    assert choice.feed(b"Paris.\n") == "Paris."
    assert choice.feed(b"\nUs") == ""
    assert choice.feed(b"er: and more") == ""
    assert choice.stopped
    assert choice.feed(b"ignored") == ""
    assert choice.finish() == ""


def test_split_character_is_held_until_whole_and_replaced_at_the_end() -> None:
    euro = "€".encode()
    choice = ChoiceText()
    assert choice.feed(euro[:1]) == ""
    assert choice.feed(euro[1:]) == "€"
    assert choice.feed(euro[:2]) == ""
    assert choice.finish() == "\ufffd"
    assert not choice.stopped


def test_replacement_at_the_end_can_complete_a_stop_string() -> None:
    choice = ChoiceText(["a\ufffd"])
    assert choice.feed(b"ba\xe2") == "b"
    assert choice.finish() == ""
    assert choice.stopped


def test_empty_stop_string_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        ChoiceText([""])
