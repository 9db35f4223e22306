"""What a prompt becomes before any work, and where an answer stops."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.parts import ALICE, BOS, EOG, LetterVocabulary, submit
from tokenplace import defaults
from tokenplace.engine.sequence import Sequence, StopMatcher, admit
from tokenplace.errors import ErrorCode

N_CTX = 16


def admitted(
    prompt: str = "hello",
    max_tokens: int | None = 8,
    segments: tuple[tuple[str, bool], ...] | None = None,
) -> Sequence:
    asked = submit(prompt=prompt, max_tokens=max_tokens, segments=segments)
    sequence = admit(asked, LetterVocabulary(), N_CTX, now=1.0)
    assert isinstance(sequence, Sequence)
    return sequence


def test_a_prompt_begins_with_bos_once() -> None:
    assert admitted("abc").prompt[0] == BOS
    assert admitted(segments=(("⏵abc", True),)).prompt.tolist() == admitted("abc").prompt.tolist()


def test_a_vocabulary_without_bos_gets_none() -> None:
    vocabulary = LetterVocabulary()
    vocabulary.first_id = None
    sequence = admit(submit(prompt="a"), vocabulary, N_CTX, now=0.0)
    assert isinstance(sequence, Sequence)
    assert BOS not in sequence.prompt


def test_control_tokens_come_only_from_segments_that_may_hold_them() -> None:
    assert EOG in admitted(segments=(("a⏹", True),)).prompt
    assert EOG not in admitted(segments=(("a", True), ("⏹", False))).prompt


def test_the_digest_is_of_little_endian_ids() -> None:
    sequence = admitted("xyz")
    packed = struct.pack(f"<{len(sequence.prompt)}I", *sequence.prompt.tolist())
    assert sequence.digest == hashlib.sha256(packed).digest()


def test_the_answer_gets_what_the_context_still_holds() -> None:
    assert admitted("hello", max_tokens=None).max_new == N_CTX - 6
    assert admitted("hello", max_tokens=100).max_new == N_CTX - 6
    assert admitted("hello", max_tokens=3).max_new == 3
    assert admitted("h" * (N_CTX - 2), max_tokens=None).max_new == 1


def test_a_prompt_without_room_for_one_token_is_refused_with_numbers() -> None:
    refused = admit(submit(request=3, prompt="h" * (N_CTX - 1)), LetterVocabulary(), N_CTX, now=0.0)
    assert not isinstance(refused, Sequence)
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert dict(refused.numbers) == {"n_prompt": N_CTX, "n_ctx": N_CTX}


def test_a_prompt_far_too_large_is_not_even_tokenised() -> None:
    class Busy(LetterVocabulary):
        def tokenise(self, text: str, parse_special: bool) -> list[int]:
            raise AssertionError("tokenised")

    n_bytes = N_CTX * defaults.MAX_PROMPT_BYTES_PER_TOKEN + 1
    refused = admit(submit(prompt="é" * (n_bytes // 2 + 1)), Busy(), N_CTX, now=0.0)
    assert not isinstance(refused, Sequence)
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert dict(refused.numbers)["n_prompt"] >= N_CTX


def test_an_empty_prompt_is_refused() -> None:
    vocabulary = LetterVocabulary()
    vocabulary.first_id = None
    refused = admit(submit(segments=()), vocabulary, N_CTX, now=0.0)
    assert not isinstance(refused, Sequence)
    assert refused.code == ErrorCode.INVALID_REQUEST


def test_a_sequence_keeps_its_scope() -> None:
    assert admitted().cache_scope == ALICE


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
