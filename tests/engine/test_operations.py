"""What an engine is asked beside tokens, with the real small models: vectors, counts, scores."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from scripts.embedding_model import MODEL_SHA256, WHEEL
from tests.conftest import model_file
from tests.engine.bert import Bert
from tests.engine.parts import ALICE, RunningEngine, chat, raw, tiny_spec, until
from tokenplace import defaults
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotOffered,
    RequestTooBig,
    TokenplaceError,
    Unsupported,
)
from tokenplace.generation import Accepted, GenerateRequest, IdsInput, SamplingParams, Tokens
from tokenplace.operations import CountRequest, Embeddings, EmbedRequest, Replay, ScoreRequest

pytestmark = pytest.mark.slow

PROMPT_IDS = (2705, 28, 827, 28, 1296, 28)  # of "One, two, three,"
SENTENCE = "The quick brown fox jumps over the lazy dog."
MANY = tuple(f"{number} sheep jump over the fence, and then some more." for number in range(150))


@pytest.fixture(scope="module")
def embedding(embedding_model: Path) -> Iterator[RunningEngine]:
    spec = EngineSpec(embedding_model, "embedding-model", MODEL_SHA256, n_threads=1)
    with RunningEngine(spec) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[RunningEngine]:
    with RunningEngine(tiny_spec(tiny_model)) as engine:
        yield engine


def texts(*texts: str, bucket: str = "alice", dimensions: int | None = None) -> EmbedRequest:
    return EmbedRequest("embedding-model", texts, dimensions, bucket=bucket)


def embed(engine: RunningEngine, request: EmbedRequest) -> Embeddings:
    return engine.run(lambda engine: engine.embed(request))


def numbers(vector: bytes) -> NDArray[np.float32]:
    return np.frombuffer(vector, "<f4")


def count_of(request: GenerateRequest) -> CountRequest:
    return CountRequest(request.model, request.input, request.as_of)


def score_of(request: GenerateRequest, *ids: int, replay: Replay | None = None) -> ScoreRequest:
    return ScoreRequest(request.model, request.input, ids, ALICE, request.as_of, replay)


# ---------------------------------------------------------------- vectors


def test_an_embedding_engine_says_what_it_is(embedding: RunningEngine) -> None:
    info = embedding.engine.info
    assert (info.features, info.template) == (("embeddings",), "")
    assert (info.n_dimensions, info.n_ctx) == (384, 512)
    assert embedding.engine.load.prefill_tps > 0


def test_vectors_come_in_order_and_are_the_models(embedding: RunningEngine) -> None:
    answer = embed(embedding, texts("short", SENTENCE, "another one"))
    assert len(answer.vectors) == 3
    assert answer.n_tokens == (3, 12, 4)
    expected = Bert(model_file(WHEEL)).vector(SENTENCE)
    assert float(numbers(answer.vectors[1]) @ expected) > 0.9999
    assert embed(embedding, texts("another one")).n_tokens == (4,)


def test_vectors_may_be_cut_short(embedding: RunningEngine) -> None:
    whole = numbers(embed(embedding, texts(SENTENCE)).vectors[0])
    short = numbers(embed(embedding, texts(SENTENCE, dimensions=64)).vectors[0])
    assert short.shape == (64,)
    assert np.allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-3)


def test_ids_have_the_vector_of_their_text(embedding: RunningEngine) -> None:
    cls, hi, sep = 101, 7632, 102  # of this vocabulary
    request = replace(texts("hi"), inputs=("hi", (cls, hi, sep), (hi,)))
    answer = embed(embedding, request)
    whole, given, bare = map(numbers, answer.vectors)
    assert float(whole @ given) > 0.9999
    assert float(whole @ bare) < 0.99
    assert answer.n_tokens == (3, 3, 1)
    with pytest.raises(InvalidRequest):
        embed(embedding, replace(request, inputs=((30_522,),)))


@pytest.mark.parametrize("n_words", [600, 30_000], ids=["counted", "not even tokenised"])
def test_a_text_too_long_is_refused_with_numbers(embedding: RunningEngine, n_words: int) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        embed(embedding, texts("fits", "word " * n_words))
    assert caught.value.numbers["n_ctx"] == 512
    assert caught.value.numbers["n_prompt"] > 512


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (texts(), InvalidRequest),
        (texts(*["a"] * (defaults.MAX_EMBED_INPUTS + 1)), InvalidRequest),
        (texts("a", dimensions=0), InvalidRequest),
        (texts("a", dimensions=385), InvalidRequest),
        (texts("a", "\ud800"), InvalidRequest),
        (replace(texts("a"), artifact="0" * 64), ModelNotOffered),
    ],
    ids=["none", "too many", "no dimensions", "too many dimensions", "not Unicode", "artifact"],
)
def test_what_cannot_be_embedded_is_refused(
    embedding: RunningEngine, wrong: EmbedRequest, error: type[TokenplaceError]
) -> None:
    with pytest.raises(error):
        embed(embedding, wrong)
    assert embed(embedding, texts("and it goes on")).vectors


def test_a_question_is_answered_before_somebodys_many_texts(embedding: RunningEngine) -> None:
    async def scenario(engine: Engine) -> None:
        ended: list[str] = []

        async def ask(name: str, *wanted: str) -> None:
            await engine.embed(texts(*wanted, bucket=name))
            ended.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "alice", *MANY)
            await until(lambda: engine.load.n_running == 1)
            nursery.start_soon(ask, "bob", "hi")
        assert ended == ["bob", "alice"]

    embedding.run(scenario)


def test_leaving_ends_the_work(embedding: RunningEngine) -> None:
    async def scenario(engine: Engine) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.embed, texts(*MANY))
            await until(lambda: engine.load.n_running == 1)
            nursery.cancel_scope.cancel()
        assert engine.load.n_running == 0
        assert (await engine.embed(texts("hi"))).vectors

    embedding.run(scenario)


async def test_vectors_survive_their_worker(embedding_model: Path) -> None:
    spec = EngineSpec(embedding_model, "embedding-model", MODEL_SHA256, n_threads=1)
    answers: list[Embeddings] = []

    async def ask(engine: Engine) -> None:
        answers.append(await engine.embed(texts(*MANY)))

    async with open_engine(spec) as engine:
        with trio.fail_after(60):
            expected = (await engine.embed(texts(MANY[0], MANY[-1]))).vectors
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, engine)
                await until(lambda: engine.load.n_running == 1)
                os.kill(engine.worker_pid, signal.SIGKILL)
    (answer,) = answers
    assert engine.load.restarts == 1
    assert len(answer.vectors) == len(answer.n_tokens) == len(MANY)
    for got, wanted in zip((answer.vectors[0], answer.vectors[-1]), expected, strict=True):
        assert float(numbers(got) @ numbers(wanted)) > 0.999


def test_each_kind_of_model_does_its_own_work(
    embedding: RunningEngine, tiny: RunningEngine
) -> None:
    with pytest.raises(Unsupported):
        embed(tiny, texts("hi"))
    with pytest.raises(Unsupported):
        embedding.ask(raw("hi"))
    with pytest.raises(Unsupported):
        embedding.run(lambda engine: engine.score(score_of(raw("hi"), 1)))
    with pytest.raises(Unsupported):
        embedding.run(lambda engine: engine.count(count_of(chat())))


def test_too_many_numbers_at_once_are_refused(
    embedding: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_VECTORS_BYTES", 2 * 384 * 4)
    assert len(embed(embedding, texts("a", "b")).vectors) == 2
    assert len(embed(embedding, texts("a", "b", "c", dimensions=256)).vectors) == 3
    with pytest.raises(RequestTooBig):
        embed(embedding, texts("a", "b", "c"))


# ---------------------------------------------------------------- ids for a prompt


def test_a_prompt_of_ids_goes_on_as_its_text_does(tiny: RunningEngine) -> None:
    """SmolLM2 puts nothing before a text, so these are the ids of one."""
    text = raw("One, two, three,", max_tokens=4)
    written = ids_of(tiny, text)
    prompt = tuple(PROMPT_IDS)
    asked = replace(text, input=IdsInput(prompt))
    assert ids_of(tiny, asked) == written
    (accepted,) = (event for event in tiny.ask(asked) if isinstance(event, Accepted))
    assert (accepted.n_prompt, accepted.begun) == (len(prompt), "")
    assert tiny.run(lambda engine: engine.count(count_of(asked))) == len(prompt)
    scores = tiny.run(lambda engine: engine.score(score_of(asked, *written)))
    assert {score.rank for score in scores.tokens} == {0}


@pytest.mark.parametrize("ids", [(49_152,), (1, (1 << 32) - 1)], ids=["next", "highest"])
def test_ids_that_the_vocabulary_lacks_are_refused(
    tiny: RunningEngine, ids: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidRequest, match="there are 49152"):
        tiny.ask(replace(raw("x"), input=IdsInput(ids)))


# ---------------------------------------------------------------- counts


def test_tokens_are_counted_as_they_would_be_computed(
    tiny: RunningEngine, embedding: RunningEngine
) -> None:
    for request in (chat("Name a colour.", max_tokens=1), raw("One, two, three", max_tokens=1)):
        (first,) = (event for event in tiny.ask(request) if isinstance(event, Accepted))
        count = count_of(request)
        assert tiny.run(partial(Engine.count, request=count)) == first.n_prompt
    n_tokens = embedding.run(lambda engine: engine.count(count_of(raw(SENTENCE))))
    assert (n_tokens,) == embed(embedding, texts(SENTENCE)).n_tokens


def test_more_than_the_context_holds_can_be_counted(tiny: RunningEngine) -> None:
    assert tiny.run(lambda engine: engine.count(count_of(raw("word " * 1500)))) > 1024


def test_what_would_hold_up_others_is_not_counted(tiny: RunningEngine) -> None:
    with pytest.raises(RequestTooBig):
        tiny.run(lambda engine: engine.count(count_of(raw("x" * (defaults.MAX_COUNT_BYTES + 1)))))


# ---------------------------------------------------------------- scores


def ids_of(tiny: RunningEngine, request: GenerateRequest) -> list[int]:
    return [i for event in tiny.ask(request) if isinstance(event, Tokens) for i in event.ids]


def test_ones_own_answer_is_found_likely(tiny: RunningEngine) -> None:
    request = replace(chat("Say hello.", max_tokens=40, ignore_eog=True), top_logprobs=0)
    tokens = [event for event in tiny.ask(request) if isinstance(event, Tokens)]
    ids = [token_id for event in tokens for token_id in event.ids]
    said = [logprob.logprob for event in tokens for logprob in event.logprobs]
    assert len(ids) == 40 > defaults.SCORE_ROWS, "it takes several steps"

    greedy = Replay(request.sampling, request.seed)
    scores = tiny.run(lambda engine: engine.score(score_of(request, *ids, replay=greedy)))
    assert len(scores.tokens) == len(scores.drawn) == len(ids)
    # Batches differ, and with them the last bits: see docs/design.md.
    assert max(score.gap for score in scores.tokens) < 0.5
    assert [score.logprob for score in scores.tokens] == pytest.approx(said, abs=0.2)
    assert sum(a == b for a, b in zip(scores.drawn, ids, strict=True)) >= 36
    (first,) = (event for event in tiny.ask(request) if isinstance(event, Accepted))
    assert scores.n_prompt == first.n_prompt


def test_a_seed_is_drawn_again(tiny: RunningEngine) -> None:
    sampling = SamplingParams(temperature=0.8, top_k=40, top_p=1.0, min_p=0.05)
    request = replace(chat("A story.", max_tokens=40, ignore_eog=True), sampling=sampling)
    ids = ids_of(tiny, request)

    def hits(seed: bytes) -> int:
        replay = Replay(sampling, seed)
        scores = tiny.run(lambda engine: engine.score(score_of(request, *ids, replay=replay)))
        assert all(score.rank < 40 for score in scores.tokens)
        assert all(score.gap < -math.log(0.05) + 0.5 for score in scores.tokens)
        return sum(a == b for a, b in zip(scores.drawn, ids, strict=True))

    assert hits(request.seed) >= 32 > hits(b"another.")


def test_an_answer_of_somebody_else_is_found_unlikely(tiny: RunningEngine) -> None:
    ids = ids_of(tiny, raw("Purple monkey dishwasher, said the", max_tokens=8))
    scores = tiny.run(lambda engine: engine.score(score_of(chat("Say hello."), *ids)))
    assert max(score.gap for score in scores.tokens) > 2
    assert scores.drawn == ()


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ((), InvalidRequest),
        ((-1,), InvalidRequest),
        ((1 << 30,), InvalidRequest),
        ((5,) * 1024, ContextLengthExceeded),
    ],
    ids=["none", "negative", "unknown", "too many"],
)
def test_what_cannot_be_scored_is_refused(
    tiny: RunningEngine, ids: tuple[int, ...], error: type[TokenplaceError]
) -> None:
    with pytest.raises(error):
        tiny.run(lambda engine: engine.score(score_of(chat(), *ids)))
