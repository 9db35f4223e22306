"""The fake engine's other answers: the same each time, and refused as the real ones are."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tokenplace.engine.fake import FakeEngine, Faults
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import (
    ContextLengthExceeded,
    DonorBusy,
    InvalidRequest,
    ModelNotOffered,
    RequestTooBig,
    TokenplaceError,
    Unsupported,
)
from tokenplace.features import Feature
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChatMessage,
    Finished,
    GenerateRequest,
    IdsInput,
    SamplingParams,
    TextInput,
    Tokens,
)
from tokenplace.operations import CountRequest, EmbedRequest, Question, Replay, ScoreRequest, ask

TODAY = "2026-03-01"
MODEL = FakeModel()
VECTORS = FakeModel(n_dimensions=16, n_ctx=32)
EMBED = EmbedRequest("", ("one", "two", "one", (1, 70000)))
COUNT = CountRequest("", TextInput("12345678"), TODAY)
SCORE = ScoreRequest("", TextInput("12345678"), (1, 2, 3), bytes(16), TODAY)
SAMPLING, SEED = SamplingParams(temperature=0.7), b"12345678"


async def test_vectors_are_of_length_one_and_the_same_for_the_same_text() -> None:
    answer = await FakeEngine(VECTORS).embed(EMBED)
    assert answer == await FakeEngine(VECTORS).embed(EMBED)
    one, two, again, ids = answer.vectors
    assert one == again
    assert len({one, two, ids}) == 3
    assert answer.n_tokens == (1, 1, 1, 2)
    for vector in answer.vectors:
        assert math.hypot(*struct.unpack("<16f", vector)) == pytest.approx(1)
    short = (await FakeEngine(VECTORS).embed(replace(EMBED, dimensions=3))).vectors[0]
    numbers = struct.unpack("<3f", short)
    assert math.hypot(*numbers) == pytest.approx(1)
    first = struct.unpack("<16f", one)
    assert numbers[0] / numbers[1] == pytest.approx(first[0] / first[1], rel=1e-4)


async def test_an_embedding_model_says_what_it_is() -> None:
    engine = FakeEngine(VECTORS)
    assert engine.info.features == (Feature.EMBEDDINGS,)
    assert (engine.info.n_dimensions, engine.info.template) == (16, "")


async def test_a_count_is_the_prompts() -> None:
    assert await FakeEngine().count(COUNT) == 2
    assert await FakeEngine().count(replace(COUNT, input=IdsInput((7,) * 9))) == 9
    assert await FakeEngine(VECTORS).count(COUNT) == 2


async def test_a_replayed_answer_scores_as_its_own(autojump_clock: MockClock) -> None:
    engine = FakeEngine()
    request = GenerateRequest("", SCORE.input, SAMPLING, SEED, bytes(16), TODAY, n=2)
    async with engine.generate(request) as events:
        answer = [event async for event in events]
    assert isinstance(answer[-1], Finished)
    tokens = [event for event in answer if isinstance(event, Tokens) and event.choice == 1]
    ids = (*(i for each in tokens for i in each.ids), engine.model.eog_id)
    replay = Replay(SAMPLING, SEED, choice=1)
    scores = await engine.score(replace(SCORE, ids=ids, replay=replay))
    assert scores.drawn == ids
    assert {score.rank for score in scores.tokens} == {0}
    assert scores.n_prompt == 2
    other = await engine.score(replace(SCORE, ids=ids, replay=replace(replay, seed=bytes(8))))
    assert other.drawn != ids
    assert max(score.rank for score in other.tokens) == 1
    assert (await engine.score(replace(SCORE, ids=ids))).drawn == ()


async def test_a_template_may_begin_an_answer() -> None:
    engine = FakeEngine(FakeModel(begun="<think>"))
    chat = ChatInput((ChatMessage("user", "x"),))
    for asked, begun in ((chat, "<think>"), (TextInput("x"), ""), (IdsInput((1,)), "")):
        request = GenerateRequest("", asked, SAMPLING, SEED, bytes(16), TODAY)
        async with engine.generate(request) as events:
            accepted = await events.receive()
        assert isinstance(accepted, Accepted)
        assert accepted.begun == begun


async def test_work_takes_its_time(autojump_clock: MockClock) -> None:
    await FakeEngine(replace(VECTORS, prefill_tps=1.0)).embed(EMBED)
    assert trio.current_time() == pytest.approx(5)


@pytest.mark.parametrize(
    ("model", "question", "error"),
    [
        (MODEL, EMBED, Unsupported),
        (VECTORS, SCORE, Unsupported),
        (VECTORS, replace(EMBED, artifact="0" * 64), ModelNotOffered),
        (MODEL, replace(COUNT, artifact="0" * 64), ModelNotOffered),
        (MODEL, replace(SCORE, artifact="0" * 64), ModelNotOffered),
        (VECTORS, replace(EMBED, inputs=()), InvalidRequest),
        (VECTORS, replace(EMBED, inputs=("x", "")), InvalidRequest),
        (VECTORS, replace(EMBED, inputs=("\ud800",)), InvalidRequest),
        (VECTORS, replace(EMBED, inputs=("x",) * 2049), InvalidRequest),
        (VECTORS, replace(EMBED, dimensions=17), InvalidRequest),
        (VECTORS, replace(EMBED, inputs=("x" * 200,)), ContextLengthExceeded),
        (
            replace(VECTORS, n_dimensions=8192),
            replace(EMBED, inputs=("x",) * 2048),
            RequestTooBig,
        ),
        (MODEL, replace(SCORE, ids=()), InvalidRequest),
        (MODEL, replace(SCORE, ids=(MODEL.n_tokens,)), InvalidRequest),
        (MODEL, replace(SCORE, ids=(1,) * 4096), ContextLengthExceeded),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    model: FakeModel, question: Question, error: type[TokenplaceError]
) -> None:
    with pytest.raises(error):
        await ask(FakeEngine(model), question)


async def test_a_model_for_vectors_generates_nothing() -> None:
    request = GenerateRequest("", TextInput("x"), SAMPLING, SEED, bytes(16), TODAY)

    async def generate() -> None:
        async with FakeEngine(VECTORS).generate(request) as events:
            async for _ in events:
                pass

    with pytest.raises(Unsupported):
        await generate()


@pytest.mark.parametrize("question", [EMBED, COUNT, SCORE])
async def test_faults_are_everybodys(question: Question) -> None:
    model = VECTORS if question is EMBED else MODEL
    with pytest.raises(DonorBusy):
        await ask(FakeEngine(model, Faults(refusal=DonorBusy)), question)
