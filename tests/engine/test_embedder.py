"""Requests for vectors in one worker, with a model of arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.embedder import EmbeddingRunner, EmbedFailed, unit_vectors
from tokenplace.engine.messages import Count, Counted, Embed, Embedded, FromWorker, Refused
from tokenplace.engine.sequence import Ids
from tokenplace.errors import ErrorCode

N_CTX = 16
N_DIMENSIONS = 4
CLS, SEP = 1, 2
BROKEN = "~"  # its vector is no vector


class LetterEmbedder:
    """One token for each character, and one before and behind. A text's vector is made of its own
    letters alone, so one that got another's place shows.
    """

    n_ctx = N_CTX
    n_dimensions = N_DIMENSIONS
    n_tokens = 1 << 20

    def __init__(self) -> None:
        self.batches: list[list[Ids]] = []
        self.n_tokenised = 0
        self.fails = False
        self.noted: frozenset[int] = frozenset()
        self.noted_at_work: list[frozenset[int]] = []

    def note(self, requests: Iterable[int]) -> None:
        self.noted = frozenset(requests)

    def tokenise(self, text: str) -> list[int]:
        self.n_tokenised += 1
        self.noted_at_work.append(self.noted)
        return [CLS, *map(ord, text), SEP] if text else []

    def embed(self, texts: Sequence[Ids]) -> NDArray[np.float32]:
        assert sum(map(len, texts)) <= self.n_ctx, "llama.cpp would abort"
        assert 0 < len(texts) <= defaults.MAX_EMBED_BATCH
        if self.fails:
            raise EmbedFailed
        self.noted_at_work.append(self.noted)
        self.batches.append(list(texts))
        return np.stack([vector_of(ids) for ids in texts])


def vector_of(ids: Ids) -> NDArray[np.float32]:
    if ord(BROKEN) in ids:
        return np.full(N_DIMENSIONS, np.nan, np.float32)
    return np.random.default_rng(ids.tolist()).normal(0, 3, N_DIMENSIONS).astype(np.float32)


def expected(text: str, dimensions: int | None = None) -> bytes:
    ids = np.array(LetterEmbedder().tokenise(text), np.int32)
    (vector,) = unit_vectors(vector_of(ids)[np.newaxis], dimensions)
    return vector


def embed(
    request: int,
    *texts: str | tuple[int, ...],
    bucket: str = "alice",
    dimensions: int | None = None,
) -> Embed:
    return Embed(request, bucket, texts, dimensions)


def new_runner(model: LetterEmbedder) -> EmbeddingRunner:
    """Every look at its clock takes a millisecond."""
    return EmbeddingRunner(model, itertools.count(0.0, 0.001).__next__, model.note)


@pytest.fixture
def model() -> LetterEmbedder:
    return LetterEmbedder()


@pytest.fixture
def runner(model: LetterEmbedder) -> EmbeddingRunner:
    return new_runner(model)


def run(runner: EmbeddingRunner) -> list[FromWorker]:
    events: list[FromWorker] = []
    while not runner.is_idle:
        events += runner.step()
    return events


def vectors_of(events: list[FromWorker], request: int) -> list[bytes]:
    """What came for one request; checks that it came in order and ended once."""
    mine = [event for event in events if isinstance(event, Embedded) and event.request == request]
    vectors: list[bytes] = []
    for event in mine:
        assert event.index == len(vectors)
        assert len(event.n_tokens) == len(event.vectors) > 0
        vectors += event.vectors
    assert [event.is_last for event in mine] == [False] * (len(mine) - 1) + [True]
    return vectors


def test_each_text_gets_its_own_vector_of_length_one(runner: EmbeddingRunner) -> None:
    texts = ["hello", "a", "hello", "some words"]
    assert runner.submit(embed(7, *texts)) == []
    events = run(runner)
    vectors = vectors_of(events, 7)
    assert vectors == [expected(text) for text in texts]
    assert np.linalg.norm(np.frombuffer(vectors[0], "<f4")) == pytest.approx(1, abs=1e-6)
    counts = [n for event in events if isinstance(event, Embedded) for n in event.n_tokens]
    assert counts == [len(text) + 2 for text in texts]


def test_the_owners_texts_come_before_others() -> None:
    model = LetterEmbedder()
    for is_owner_first in (True, False):
        runner = EmbeddingRunner(
            model, itertools.count(0.0, 0.001).__next__, model.note, is_owner_first=is_owner_first
        )
        runner.submit(embed(0, *["alice"] * 40, bucket="alice"))
        runner.submit(embed(1, *["owner"] * 40, bucket=""))
        ends = [e.request for e in run(runner) if isinstance(e, Embedded) and e.is_last]
        assert ends == ([1, 0] if is_owner_first else [0, 1])


def test_ids_are_taken_as_they_are(runner: EmbeddingRunner, model: LetterEmbedder) -> None:
    """Nothing is put around them, and nothing is tokenised."""
    spelled = tuple(model.tokenise("hello"))
    runner.submit(embed(7, spelled, "hello", spelled[1:-1]))
    events = run(runner)
    whole, text, bare = vectors_of(events, 7)
    assert whole == text == expected("hello") != bare
    counts = [n for event in events if isinstance(event, Embedded) for n in event.n_tokens]
    assert counts == [7, 7, 5]
    assert model.n_tokenised == 2
    assert runner.count(Count(8, (), spelled)) == [Counted(8, 7)]


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ((1, -1), ErrorCode.INVALID_REQUEST),
        ((LetterEmbedder.n_tokens,), ErrorCode.INVALID_REQUEST),
        ((1 << 40,), ErrorCode.INVALID_REQUEST),
        ((), ErrorCode.INVALID_REQUEST),
        ((1,) * (N_CTX + 1), ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    ],
)
def test_ids_that_cannot_be_computed_are_refused(
    runner: EmbeddingRunner, model: LetterEmbedder, ids: tuple[int, ...], code: ErrorCode
) -> None:
    events = runner.submit(embed(7, "hello", ids)) or run(runner)
    assert refusal(events).code == code
    assert model.batches == []
    assert runner.is_idle


def test_fewer_dimensions_are_the_first_ones_made_one_long(runner: EmbeddingRunner) -> None:
    runner.submit(embed(1, "hello", dimensions=2))
    (short,) = vectors_of(run(runner), 1)
    numbers = np.frombuffer(short, "<f4")
    whole = np.frombuffer(expected("hello"), "<f4")
    assert numbers.shape == (2,)
    assert np.allclose(numbers, whole[:2] / np.linalg.norm(whole[:2]))


def test_texts_of_several_requests_are_computed_together(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    for request in range(3):
        runner.submit(embed(request, "ab"))
    events = run(runner)
    assert all(vectors_of(events, request) == [expected("ab")] for request in range(3))
    assert len(model.batches) == 1


def test_a_short_question_does_not_wait_for_somebodys_many_texts(runner: EmbeddingRunner) -> None:
    runner.submit(embed(1, *["some words"] * 100, bucket="alice"))
    runner.step()
    runner.submit(embed(2, "hi", bucket="bob"))
    events = [event for _ in range(3) for event in runner.step()]
    assert vectors_of(events, 2) == [expected("hi")]
    runner.submit(embed(3, "hi", bucket="alice"))
    events = [event for _ in range(3) for event in runner.step()]
    assert vectors_of(events, 3) == [expected("hi")], "nor for one's own"


def test_a_full_step_ends_with_whom_the_next_begins(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    """A long text is not passed over for ever because shorter ones fit."""
    runner.submit(embed(1, *["abc"] * 50, bucket="alice"))
    runner.step()
    runner.submit(embed(2, "x" * (N_CTX - 2), bucket="bob"))
    events = [event for _ in range(4) for event in runner.step()]
    assert vectors_of(events, 2)


def test_many_texts_are_read_a_few_at_a_time(
    runner: EmbeddingRunner, model: LetterEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "EMBED_READ_CHARS", 80)  # two of these texts
    runner.submit(embed(1, *["0123456789"] * 10, bucket="alice"))
    runner.step()
    assert model.n_tokenised == 2
    assert not model.batches, "a request is read to its end first"
    runner.submit(embed(2, "hi", bucket="bob"))
    events = runner.step()
    assert vectors_of(events, 2) == [expected("hi")]
    assert model.n_tokenised < 10
    assert vectors_of(run(runner), 1) == [expected("0123456789")] * 10


def refusal(events: list[FromWorker]) -> Refused:
    (refused,) = (event for event in events if isinstance(event, Refused))
    assert events[-1] is refused
    return refused


def test_a_text_too_long_is_refused_before_anything_is_computed(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    runner.submit(embed(5, "fits", "x" * (N_CTX - 1)))
    refused = refusal(run(runner))
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert dict(refused.numbers) == {"n_prompt": N_CTX + 1, "n_ctx": N_CTX}
    assert "Text 1" in refused.detail
    assert not model.batches


def test_an_absurdly_long_text_is_not_even_tokenised(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    n_bytes = (N_CTX + 1) * defaults.MAX_PROMPT_BYTES_PER_TOKEN
    refused = refusal(runner.submit(embed(5, "x" * n_bytes)))
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert model.n_tokenised == 0
    assert runner.is_idle


@pytest.mark.parametrize(
    "wrong",
    [
        embed(1),
        embed(1, *["a"] * 9),
        embed(1, "a", dimensions=0),
        embed(1, "a", dimensions=N_DIMENSIONS + 1),
        embed(1, "a", ""),
        embed(1, *["abcdefgh"] * 8),
    ],
    ids=["none", "too many", "no dimensions", "too many dimensions", "empty", "too many tokens"],
)
def test_what_is_out_of_bounds_is_refused_and_nobody_else_suffers(
    runner: EmbeddingRunner,
    model: LetterEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Embed,
) -> None:
    monkeypatch.setattr(defaults, "MAX_EMBED_INPUTS", 8)
    monkeypatch.setattr(defaults, "MAX_EMBED_TOKENS", 79)
    events = runner.submit(wrong)
    runner.submit(embed(2, "hi"))
    events += run(runner)
    assert [e.code for e in events if isinstance(e, Refused)] == [ErrorCode.INVALID_REQUEST]
    assert vectors_of(events, 2) == [expected("hi")]
    assert all(len(batch) == 1 for batch in model.batches)


def test_nobody_quotes_a_text_in_a_refusal(runner: EmbeddingRunner) -> None:
    secret = "a secret that is far too long"
    assert secret not in str(refusal([*runner.submit(embed(1, secret)), *run(runner)]))


def test_cancelled_requests_are_gone(runner: EmbeddingRunner, model: LetterEmbedder) -> None:
    runner.submit(embed(1, *["some words"] * 10))
    runner.submit(embed(2, *["other words"] * 10))
    runner.step()
    assert runner.cancel(1) == []
    assert runner.cancel(2) == []
    assert runner.cancel(3) == [], "one that has ended already is no fault"
    assert runner.is_idle
    n_batches = len(model.batches)
    assert runner.step() == []
    assert len(model.batches) == n_batches


def test_a_request_that_nobody_has_read_can_be_cancelled(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    runner.submit(embed(1, "some words"))
    runner.cancel(1)
    assert runner.is_idle
    assert model.n_tokenised == 0


def test_a_failed_batch_ends_its_requests_and_no_more(
    runner: EmbeddingRunner, model: LetterEmbedder
) -> None:
    runner.submit(embed(1, *["some words"] * 10))
    runner.step()
    model.fails = True
    assert refusal(runner.step()).code == ErrorCode.INTERNAL
    model.fails = False
    assert runner.is_idle
    runner.submit(embed(2, "hi"))
    assert vectors_of(run(runner), 2) == [expected("hi")]


def test_numbers_that_are_not_finite_end_one_request(runner: EmbeddingRunner) -> None:
    runner.submit(embed(1, BROKEN, "more"))
    runner.submit(embed(2, "hi"))
    events = run(runner)
    assert [(e.request, e.code) for e in events if isinstance(e, Refused)] == [
        (1, ErrorCode.INTERNAL)
    ]
    assert vectors_of(events, 2) == [expected("hi")]


@pytest.mark.parametrize("row", [[0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_a_vector_without_length_is_none(row: list[float]) -> None:
    with pytest.raises(EmbedFailed):
        unit_vectors(np.array([row], np.float32), None)


def test_tokens_are_counted_as_they_would_be_computed(runner: EmbeddingRunner) -> None:
    assert runner.count(Count(4, (("hel", False), ("lo", False)))) == [Counted(4, 7)]


def test_a_text_too_long_is_not_counted(runner: EmbeddingRunner, model: LetterEmbedder) -> None:
    n_bytes = (N_CTX + 1) * defaults.MAX_PROMPT_BYTES_PER_TOKEN
    refused = refusal(runner.count(Count(4, (("x" * n_bytes, False),))))
    assert refused.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert model.n_tokenised == 0


def test_whose_work_is_done_is_noted_before(runner: EmbeddingRunner, model: LetterEmbedder) -> None:
    runner.count(Count(1, (("a", False),)))
    runner.submit(embed(2, "b"))
    runner.submit(embed(3, "c", bucket="bob"))
    run(runner)
    assert model.noted_at_work == [frozenset(who) for who in ({1}, {2}, {3}, {2, 3})]


def test_speed_is_measured(runner: EmbeddingRunner) -> None:
    assert runner.pace.prefill_tps == 0
    runner.submit(embed(1, "some words"))
    run(runner)
    assert runner.pace.prefill_tps > 0


WORDS = st.text("abc", min_size=1, max_size=N_CTX - 2)


@given(
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.lists(WORDS, min_size=1, max_size=9)), max_size=9
    ),
    st.sets(st.integers(0, 8)),
    st.randoms(use_true_random=False),
)
def test_every_text_is_computed_once_whoever_comes_and_goes(
    jobs: list[tuple[str, list[str]]], cancelled: set[int], random: Random
) -> None:
    model = LetterEmbedder()
    runner = new_runner(model)
    events: list[FromWorker] = []
    for number, (bucket, texts) in enumerate(jobs):
        events += runner.submit(embed(number, *texts, bucket=bucket))
        for _ in range(random.randrange(3)):
            events += runner.step()
        if random.random() < 0.5:
            gone = random.choice(sorted(cancelled & set(range(number + 1))) or [99])
            runner.cancel(gone)
    events += run(runner)
    for number, (_, texts) in enumerate(jobs):
        if number not in cancelled:
            assert vectors_of(events, number) == [expected(text) for text in texts]


@given(st.lists(st.sampled_from("ABCD"), min_size=2, max_size=12))
def test_buckets_get_equally_many_turns(buckets: list[str]) -> None:
    """However many requests a bucket has: while all have texts left, none is two ahead."""
    model = LetterEmbedder()
    runner = new_runner(model)
    for number, bucket in enumerate(buckets):
        runner.submit(embed(number, *[bucket] * 40, bucket=bucket))
    while len(model.batches) < len(set(buckets)):  # all have been read
        runner.step()
    model.batches.clear()
    for _ in range(6):
        runner.step()
        turns = Counter({bucket: 0 for bucket in buckets})
        turns.update(chr(ids[1]) for batch in model.batches for ids in batch)
        assert max(turns.values()) - min(turns.values()) <= 1
