"""What a prompt becomes before any work, and where an answer stops."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.parts import BOS, EOG, LetterVocabulary
from tokenplace import defaults
from tokenplace.engine.sequence import (
    BadPrompt,
    Sequence,
    StopMatcher,
    n_common,
    prompt_digest,
    tokenise_prompt,
)
from tokenplace.errors import ErrorCode

N_CTX = 16


def ids_of(*segments: tuple[str, bool], vocabulary: LetterVocabulary | None = None) -> list[int]:
    return tokenise_prompt(segments, vocabulary or LetterVocabulary(), N_CTX).tolist()


def without_bos() -> LetterVocabulary:
    vocabulary = LetterVocabulary()
    vocabulary.first_id = None
    return vocabulary


def test_a_prompt_begins_with_bos_once() -> None:
    assert ids_of(("abc", False))[0] == BOS
    assert ids_of(("⏵abc", True)) == ids_of(("abc", False))


def test_a_vocabulary_without_bos_gets_none() -> None:
    assert BOS not in ids_of(("a", False), vocabulary=without_bos())


def test_control_tokens_come_only_from_segments_that_may_hold_them() -> None:
    assert EOG in ids_of(("a⏹", True))
    assert EOG not in ids_of(("a", True), ("⏹", False))


def test_the_digest_is_of_little_endian_ids() -> None:
    prompt = tokenise_prompt((("xyz", False),), LetterVocabulary(), N_CTX)
    packed = struct.pack(f"<{len(prompt)}I", *prompt.tolist())
    assert prompt_digest(prompt) == hashlib.sha256(packed).digest()


def test_a_prompt_without_room_for_one_token_is_refused_with_numbers() -> None:
    with pytest.raises(BadPrompt) as caught:
        ids_of(("h" * (N_CTX - 1), False))
    refused = caught.value.refusal(3)
    assert (refused.request, refused.code) == (3, ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    assert dict(refused.numbers) == {"n_prompt": N_CTX, "n_ctx": N_CTX}


def test_a_prompt_far_too_large_is_not_even_tokenised() -> None:
    class Busy(LetterVocabulary):
        def tokenise(self, text: str, parse_special: bool) -> list[int]:
            raise AssertionError("tokenised")

    n_bytes = N_CTX * defaults.MAX_PROMPT_BYTES_PER_TOKEN + 1
    with pytest.raises(BadPrompt) as caught:
        ids_of(("é" * (n_bytes // 2 + 1), False), vocabulary=Busy())
    assert caught.value.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert dict(caught.value.numbers)["n_prompt"] >= N_CTX


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadPrompt) as caught:
        ids_of(vocabulary=without_bos())
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_a_sequence_counts_how_far_it_is() -> None:
    sequence = Sequence.begin(0, np.array([1, 2, 3], np.int32), max_new=3, answer=[9])
    assert (sequence.n_missing, sequence.n_new, sequence.is_whole) == (4, 1, False)
    sequence.n_past = 4
    sequence.append(8)
    assert (sequence.n_missing, sequence.cached_ids.tolist()) == (1, [1, 2, 3, 9])
    sequence.append(7)
    assert sequence.is_whole
    assert sequence.ids.tolist() == [1, 2, 3, 9, 8, 7]


def test_room_is_reserved_for_what_is_expected_and_no_more_than_may_come() -> None:
    prompt = np.array([1, 2, 3], np.int32)
    assert Sequence.begin(0, prompt, max_new=10).n_wanted == 13
    assert Sequence.begin(0, prompt, max_new=10, n_expected=4).n_wanted == 7
    assert Sequence.begin(0, prompt, max_new=10, n_expected=4, answer=[5] * 8).n_wanted == 13


IDS = st.lists(st.integers(0, 2), max_size=12)


@given(IDS, IDS)
def test_the_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    n = n_common(np.array(a, np.int32), np.array(b, np.int32))
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n == min(len(a), len(b))


LETTERS = st.text("ab", min_size=1, max_size=4).map(str.encode)


@given(st.lists(LETTERS, max_size=4), st.lists(LETTERS, max_size=12))
def test_stops_are_found_across_any_pieces(stops: list[bytes], pieces: list[bytes]) -> None:
    matcher = StopMatcher(stops)
    text = b""
    for piece in pieces:
        text += piece
        complete = [stop for stop in stops if stop in text]
        found = matcher.push(piece)
        assert (found is not None) == bool(complete)
        if found is not None:
            assert text.index(found) == min(map(text.index, complete))
            break


def test_without_stops_nothing_is_found() -> None:
    assert StopMatcher(()).push(b"anything") is None
