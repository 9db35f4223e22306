"""llama.cpp's vectors of a real model, against BERT in numpy over the weights as they came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.embedding_model import MODEL_SHA256, WHEEL
from tests.conftest import model_file
from tests.engine.bert import Bert
from tokenplace.engine.embedder import unit_vectors
from tokenplace.engine.llama import LlamaContext
from tokenplace.engine.llama_embed import LlamaEmbedder, is_for_embeddings
from tokenplace.engine.llama_model import LlamaModel, LoadError
from tokenplace.engine.messages import Load
from tokenplace.models.files import sha256_of

SENTENCES = (
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "Ünïcode café naïve: 東京 is 2,000 km away; isn't it?",
    "def f(x): return x**2  # squares\n\tprint(_foo)",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "word " * 100,
)
CONTROL_WORDS = "[CLS] [SEP][MASK] [PAD] ##ing [UNK]"


@pytest.fixture(scope="module")
def bert() -> Bert:
    return Bert(model_file(WHEEL))


def load(path: Path, n_ctx: int | None = None) -> Load:
    return Load(
        path=str(path),
        n_threads=1,
        n_ctx=n_ctx,
        n_slots=None,
        kv_bytes=1 << 30,
        kv_type="f16",
        n_gpu_layers=None,
        flash_attention="auto",
    )


@pytest.fixture(scope="module")
def model(embedding_model: Path) -> LlamaModel:
    return LlamaModel(str(embedding_model))


@pytest.fixture(scope="module")
def embedder(model: LlamaModel, embedding_model: Path) -> LlamaEmbedder:
    return LlamaEmbedder(model, load(embedding_model))


def vectors(embedder: LlamaEmbedder, *texts: str) -> NDArray[np.float32]:
    rows = embedder.embed([np.array(embedder.tokenise(text), np.int32) for text in texts])
    return np.stack([np.frombuffer(row, "<f4") for row in unit_vectors(rows, None)])


def test_the_model_is_the_one_that_the_set_up_makes(embedding_model: Path) -> None:
    assert sha256_of(embedding_model, lambda n_done: None) == MODEL_SHA256


@pytest.mark.parametrize("text", SENTENCES)
def test_vectors_are_those_of_the_model_as_it_came(
    embedder: LlamaEmbedder, bert: Bert, text: str
) -> None:
    assert embedder.tokenise(text) == bert.tokenise(text)
    (ours,) = vectors(embedder, text)
    assert float(ours @ bert.vector(text)) > 0.9999


def test_users_cannot_say_control_tokens(embedder: LlamaEmbedder, model: LlamaModel) -> None:
    ids = embedder.tokenise(CONTROL_WORDS)
    control_ids = {
        i for text in model.vocabulary.control_texts for i in model.vocabulary.tokenise(text, True)
    }
    assert {ids[0], ids[-1]} < control_ids
    assert not control_ids & set(ids[1:-1])


def test_meaning_shows(embedder: LlamaEmbedder) -> None:
    cat, kitten, tax = vectors(
        embedder, "A cat sleeps.", "A kitten is napping.", "The tax return is due in May."
    )
    assert cat @ kitten > 0.5 > 0.2 > cat @ tax


def test_texts_computed_together_do_not_see_each_other(embedder: LlamaEmbedder) -> None:
    together = vectors(embedder, *SENTENCES)
    alone = np.stack([vectors(embedder, text)[0] for text in SENTENCES])
    assert (together * alone).sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_a_text_may_fill_the_context_and_many_may_share_it(embedder: LlamaEmbedder) -> None:
    assert embedder.n_ctx == 512, "what it was trained for, though 4,096 is the default"
    full = np.full(embedder.n_ctx, 2003, np.int32)
    assert embedder.embed([full]).shape == (1, 384)
    short = np.full(embedder.n_ctx // 64, 2003, np.int32)
    rows = embedder.embed([short] * 64)
    assert rows.shape == (64, 384)
    assert np.isfinite(rows).all()


def test_fewer_tokens_of_context_may_be_asked_for(model: LlamaModel, embedding_model: Path) -> None:
    small = LlamaEmbedder(model, load(embedding_model, n_ctx=100))
    assert small.n_ctx == 100
    assert small.embed([np.full(100, 2003, np.int32)]).shape == (1, 384)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "\x85\u2028\ufeff",
        "\U0010ffff",
        "é" * 400,
        "[" * 400,
        "あ" * 400,
        "\u0301" * 99,
    ],
)
def test_strange_texts_are_only_texts(embedder: LlamaEmbedder, text: str) -> None:
    ids = embedder.tokenise(text)
    assert len(ids) >= 2
    assert np.isfinite(embedder.embed([np.array(ids, np.int32)[: embedder.n_ctx]])).all()


# ---------------------------------------------------------------- which models these are


def patched(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """The file with one key changed; the vocabulary behind it has the same place."""
    data = source.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    target.write_bytes(data.replace(old, new))
    return target


POOLING = b"bert.pooling_type\x04\0\0\0\x01\0\0\0"  # a number of four bytes: 1, mean


def test_models_that_generate_are_none(tiny_model: Path) -> None:
    assert not is_for_embeddings(LlamaModel(str(tiny_model)))


def test_a_model_that_ranks_is_refused(embedding_model: Path, tmp_path: Path) -> None:
    ranker = POOLING.replace(b"\x01", b"\x04")
    path = patched(embedding_model, tmp_path / "ranker.gguf", POOLING, ranker)
    with pytest.raises(LoadError, match="ranks"):
        is_for_embeddings(LlamaModel(str(path)))


def test_an_encoder_that_does_not_say_how_to_pool_is_refused(
    embedding_model: Path, tmp_path: Path
) -> None:
    unknown = POOLING.replace(b"pooling_type", b"pooling_typo")
    path = patched(embedding_model, tmp_path / "encoder.gguf", POOLING, unknown)
    model = LlamaModel(str(path))
    assert not is_for_embeddings(model)
    with pytest.raises(LoadError, match="does not generate"):
        LlamaContext(model, load(path))


def test_vectors_of_absurd_size_are_refused(
    model: LlamaModel, embedding_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenplace.defaults.MAX_EMBED_DIMENSIONS", 383)
    with pytest.raises(LoadError, match="384"):
        LlamaEmbedder(model, load(embedding_model))
