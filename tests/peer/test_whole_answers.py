"""Requester against donor over memory streams, for answers that come whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tests.answerers import FakeAnswerer, vector_of
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import BOB, TINY_MODEL, Lab
from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    ContextLengthExceeded,
    DeadlineExceeded,
    DonorBusy,
    DonorFinishing,
    DonorInternalError,
    InvalidRequest,
    ModelNotOffered,
    RequestTooBig,
    StaleEpoch,
    TokenplaceError,
    Unsupported,
)
from tokenplace.generation import ChatInput, ChatMessage, IdsInput, SamplingParams, TextInput
from tokenplace.operations import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Replay,
    ScoreRequest,
    Scores,
    TokenScore,
    ask,
)

CANARY = "canary-51c9"
EMBED = EmbedRequest("local name", ("grüße", (1, 70000), "x"), artifact=TINY_MODEL)
CHAT = ChatInput((ChatMessage("user", "one two three"),))
COUNT = CountRequest("local name", CHAT, "2026-03-01", TINY_MODEL, "cd" * 32)
REPLAY = Replay(SamplingParams(temperature=0.5, logit_bias=((7, 1.0),)), b"12345678", 3)
SCORE = ScoreRequest(
    "local name",
    IdsInput((3, 4)),
    (5, 70000),
    b"c" * 16,
    "2026-03-01",
    REPLAY,
    TINY_MODEL,
)
QUESTIONS = [EMBED, COUNT, SCORE]


async def test_vectors_arrive_whole() -> None:
    engine = FakeAnswerer()
    async with Lab(engine).running() as lab:
        answer = await lab.remote().embed(EMBED)
        await lab.settled()
    expected = tuple(vector_of(given, engine.n_dimensions) for given in EMBED.inputs)
    assert answer == Embeddings(expected, (5, 2, 1), donor=BOB)
    assert lab.donor.statistics.n_served == 1
    assert engine.questions == [replace(EMBED, model="", bucket="203.0.113.0/24")]
    alice, bob = lab.streams[0]
    assert not alice.was_reset
    assert not bob.was_reset


async def test_counts_and_scores_arrive_whole() -> None:
    engine = FakeAnswerer()
    async with Lab(engine).running() as lab:
        assert await lab.remote().count(COUNT) == len("one two three")
        scores = tuple(TokenScore(-1.5, 0.5, token_id, 0.25) for token_id in SCORE.ids)
        assert await lab.remote().score(SCORE) == Scores(scores, SCORE.ids, 2)
        assert await lab.remote().score(replace(SCORE, replay=None)) == Scores(scores, (), 2)
    count, score, bare = engine.questions
    assert count == replace(COUNT, model="")
    assert score == replace(SCORE, model="", bucket="203.0.113.0/24")
    assert bare == replace(score, replay=None)


async def test_the_largest_answer_arrives_whole(autojump_clock: MockClock) -> None:
    n_numbers = defaults.MAX_VECTORS_BYTES // 4 // 64
    question = replace(EMBED, inputs=("x",) * 64, dimensions=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_EMBED_DIMENSIONS", n_numbers)
        async with Lab(FakeAnswerer(n_dimensions=n_numbers)).running() as lab:
            answer = await lab.remote().embed(question)
    assert sum(map(len, answer.vectors)) == defaults.MAX_VECTORS_BYTES


async def test_a_vector_larger_than_a_chunk_arrives_whole() -> None:
    n_numbers = defaults.MAX_EMBED_DIMENSIONS
    async with Lab(FakeAnswerer(n_dimensions=n_numbers), max_read=777).running() as lab:
        answer = await lab.remote().embed(EMBED)
    assert answer.vectors[1] == vector_of((1, 70000), n_numbers)


async def test_nothing_readable_crosses_the_stream() -> None:
    async with Lab(FakeAnswerer()).running() as lab:
        await lab.remote().embed(replace(EMBED, inputs=(CANARY,)))
    alice, bob = lab.streams[0]
    for sent in (alice.outgoing.log, bob.outgoing.log):
        assert len(sent) > 1000
        assert CANARY.encode() not in sent
        assert b"answered" not in sent


# ---------------------------------------------------------------- leaving, waiting, ending


@pytest.mark.parametrize("question", QUESTIONS, ids=["embed", "count", "score"])
async def test_a_cancelled_app_frees_the_engine_at_once(
    question: Question, autojump_clock: MockClock
) -> None:
    engine = FakeAnswerer(work_s=100.0)
    async with Lab(engine).running() as lab:
        with trio.move_on_after(50):
            await ask(lab.remote(), question)
        await lab.settled()
        assert trio.current_time() == pytest.approx(50, abs=0.1)
    assert (engine.n_running, engine.n_cancelled) == (0, 1)
    assert lab.streams[0][0].was_reset
    assert lab.donor.statistics.n_cancelled == 1


async def test_signs_of_life_keep_a_slow_donor(autojump_clock: MockClock) -> None:
    async with Lab(FakeAnswerer(work_s=200.0)).running() as lab:
        assert (await lab.remote().embed(EMBED)).donor == BOB
        assert trio.current_time() == pytest.approx(200, abs=0.1)


async def test_a_donor_that_only_lives_is_given_up(autojump_clock: MockClock) -> None:
    engine = FakeAnswerer(work_s=10_000.0)
    async with Lab(engine).running() as lab:
        with pytest.raises(DeadlineExceeded):
            await lab.remote().embed(EMBED)
        assert trio.current_time() == pytest.approx(defaults.MAX_WAIT_S, abs=3)
        await lab.settled()
    assert engine.n_cancelled == 1


async def test_a_place_is_queued_until_the_answer_is_there(autojump_clock: MockClock) -> None:
    async with Lab(FakeAnswerer(work_s=5.0)).running() as lab, trio.open_nursery() as nursery:
        for _ in range(defaults.QUEUED_PER_BUCKET):
            nursery.start_soon(lab.remote().embed, EMBED)
        await trio.sleep(1)
        assert lab.admission.n_queued == defaults.QUEUED_PER_BUCKET
        with pytest.raises(DonorBusy):
            await lab.remote().embed(EMBED)
        await trio.sleep(5)
        assert lab.is_idle
        assert (await lab.remote().embed(EMBED)).donor == BOB


async def test_a_donor_that_stops_says_so(autojump_clock: MockClock) -> None:
    async with Lab(FakeAnswerer(work_s=60.0)).running() as lab:

        async def expect_finishing() -> None:
            with pytest.raises(DonorFinishing):
                await lab.remote().embed(EMBED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_finishing)
            await trio.sleep(1)
            await lab.donor.finish()
        with pytest.raises(DonorFinishing):
            await lab.remote().count(COUNT)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("question", QUESTIONS, ids=["embed", "count", "score"])
@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (DonorBusy("full", retry_after_s=3), DonorBusy),
        (ContextLengthExceeded(numbers={"n_prompt": 9, "n_ctx": 8}), ContextLengthExceeded),
        (RuntimeError(CANARY), DonorInternalError),
    ],
)
async def test_an_engines_error_arrives_as_what_it_is(
    question: Question,
    sent: Exception,
    received: type[TokenplaceError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeAnswerer(fail_after=0, error=sent)  # type: ignore[arg-type]
    async with Lab(engine).running() as lab:
        with pytest.raises(received) as failure:
            await ask(lab.remote(), question)
        await lab.settled()
    if isinstance(sent, TokenplaceError):
        assert (failure.value.numbers, failure.value.retry_after_s) == (
            sent.numbers,
            sent.retry_after_s,
        )
    assert CANARY not in caplog.text
    assert lab.donor.statistics.n_failed == 1


class Wrong(FakeAnswerer):
    """Says what nobody asked for."""

    wrong: object = None

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return self.wrong  # type: ignore[return-value]


@pytest.mark.parametrize(
    "wrong",
    [
        Embeddings((), ()),
        Embeddings((vector_of("x", 8),) * 2, (1, 1, 1)),
        Embeddings((vector_of("x", 8),) * 3, (1, 1)),
        Embeddings((bytes(32),) * 3, (1, 1, 1)),
        Embeddings((b"\xff" * 32,) * 3, (1, 1, 1)),
        7,
        Scores((), (), 1),
    ],
)
async def test_a_fault_of_the_engine_is_an_internal_error(wrong: object) -> None:
    engine = Wrong()
    engine.wrong = wrong
    async with Lab(engine).running() as lab:
        with pytest.raises(DonorInternalError):
            await lab.remote().embed(EMBED)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (replace(EMBED, artifact="cd" * 32), ModelNotOffered),
        (replace(COUNT, artifact="cd" * 32), ModelNotOffered),
        (replace(EMBED, artifact="tiny"), BadFormat),
        (replace(EMBED, inputs=()), InvalidRequest),
        (replace(EMBED, inputs=("x", "")), InvalidRequest),
        (replace(EMBED, inputs=("\ud800",)), InvalidRequest),
        (replace(EMBED, inputs=((1 << 32,),)), InvalidRequest),
        (replace(EMBED, inputs=("x",) * 2049), InvalidRequest),
        (replace(EMBED, dimensions=0), InvalidRequest),
        (replace(EMBED, inputs=("x" * defaults.MAX_BODY_BYTES,)), RequestTooBig),
        (replace(COUNT, input=TextInput("")), InvalidRequest),
        (replace(SCORE, ids=()), InvalidRequest),
        (replace(SCORE, replay=Replay(SamplingParams(top_p=2), bytes(8))), InvalidRequest),
    ],
)
async def test_what_cannot_be_answered_is_told_why(
    question: Question, expected: type[TokenplaceError]
) -> None:
    engine = FakeAnswerer()
    async with Lab(engine).running() as lab:
        with pytest.raises(expected):
            await ask(lab.remote(), question)
        await lab.settled()
    assert engine.questions == []


@pytest.mark.parametrize("question", QUESTIONS, ids=["embed", "count", "score"])
async def test_a_model_that_only_generates_says_so(question: Question) -> None:
    async with Lab(EchoEngine()).running() as lab:
        with pytest.raises(Unsupported) as refused:
            await ask(lab.remote(), question)
    assert refused.value.retry_elsewhere


async def test_a_stale_epoch_is_renewed_for_a_question_too() -> None:
    async with Lab(FakeAnswerer()).running() as lab:

        async def renew(keys: bytes | None, live: bytes | None) -> object:
            return lab.target()

        stale = replace(lab.target(), epoch=bytes(8))
        answer = await lab.remote(stale, renew).embed(EMBED)  # type: ignore[arg-type]
        assert answer.donor == BOB
        with pytest.raises(StaleEpoch):
            await lab.remote(stale).embed(EMBED)
