"""POST /embeddings, over a model whose vectors can be foretold."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.serving import TINY_MODEL, http_client, serving
from tests.fakes import FakeEmbedder
from tokenplace.api_shim.body import parse_body
from tokenplace.api_shim.openai.answer_schemas import EmbeddingList
from tokenplace.api_shim.openai.embeddings import EmbeddingRequest, embed_request, embedding_list
from tokenplace.api_shim.refusal import Refused
from tokenplace.defaults import MAX_EMBED_DIMENSIONS, MAX_EMBED_INPUTS
from tokenplace.errors import NoDonorForModel
from tokenplace.generation import Wishes
from tokenplace.operations import Embeddings, EmbedRequest

TEXTS = {"model": TINY_MODEL, "input": ["Hello", "Grüße"]}


@asynccontextmanager
async def embedding_client(embedder: FakeEmbedder) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(embedder=embedder) as address, http_client(address) as client:
        yield client


async def test_each_text_has_its_vector_in_either_form() -> None:
    embedder = FakeEmbedder()
    async with embedding_client(embedder) as client:
        answers = {
            form: (await client.post("/v1/embeddings", json={**TEXTS, **asked})).json()
            for form, asked in {
                "usual": {},
                "float": {"encoding_format": "float"},
                "base64": {"encoding_format": "base64"},
            }.items()
        }
    assert answers["usual"] == answers["float"]
    assert answers["usual"]["model"] == TINY_MODEL
    assert answers["usual"]["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    for form, answer in answers.items():
        EmbeddingList.model_validate(answer)
        assert [each["index"] for each in answer["data"]] == [0, 1], form
    for plain, packed in zip(answers["float"]["data"], answers["base64"]["data"], strict=True):
        vector = base64.b64decode(packed["embedding"])
        assert list(struct.unpack(f"<{len(vector) // 4}f", vector)) == plain["embedding"]


async def test_headers_say_who_served() -> None:
    async with embedding_client(
        FakeEmbedder(donor="12D3Donor", served="tiny@sha256:0123")
    ) as client:
        answer = await client.post("/api/v1/embeddings", json=TEXTS)
        own = await client.post("/v1/embeddings", json=TEXTS)
    assert answer.headers["x-tokenplace-accepted-by"] == "12D3Donor"
    assert answer.headers["x-tokenplace-model"] == "tiny@sha256:0123"
    assert own.status_code == 200


async def test_a_failure_is_an_http_error() -> None:
    async with embedding_client(FakeEmbedder(error=NoDonorForModel(retry_after_s=3))) as client:
        answer = await client.post("/v1/embeddings", json=TEXTS)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"]["code"] == "no_donor_for_model"


ids = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)
texts = st.text(min_size=1, max_size=8)
one = texts | ids


@given(
    one | st.lists(texts, min_size=1, max_size=4) | st.lists(ids, min_size=1, max_size=4),
    st.none() | st.integers(1, MAX_EMBED_DIMENSIONS),
)
def test_what_was_asked_is_what_is_requested(asked: Any, dimensions: int | None) -> None:
    body = {
        "model": TINY_MODEL,
        "input": asked,
        "dimensions": dimensions,
        "user": "alice",
        "provider": {"only": ["self"], "max_latency": 2.5},
    }
    is_one = isinstance(asked, str) or isinstance(asked[0], int)
    inputs = [asked] if is_one else asked
    assert embed_request(parse_body(EmbeddingRequest, body)) == EmbedRequest(
        TINY_MODEL,
        tuple(each if isinstance(each, str) else tuple(each) for each in inputs),
        dimensions,
        wishes=Wishes(only=("self",), max_latency_s=2.5),
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["Hello", ""]}, "input[1]"),
        ({"input": [[1, 2], []]}, "input[1]"),
        ({"input": [[1, 2], "Hello", [-1]]}, "input[2]"),
        ({"input": [1, "Hello"]}, "input"),
        ({"input": [2**32]}, "input"),
        ({"input": {"text": "Hello"}}, "input"),
        ({"input": ["Hello"] * (MAX_EMBED_INPUTS + 1)}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"model": ""}, "model"),
        ({"temperature": 0}, "temperature"),
        ({"provider": {"sort": "price"}}, "provider.sort"),
    ],
)
def test_what_cannot_be_embedded_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_body(EmbeddingRequest, {**TEXTS, **change})
    assert (caught.value.refusal.status, caught.value.refusal.param) == (400, param)


def test_a_text_is_no_list_of_letters() -> None:
    body = parse_body(EmbeddingRequest, {"model": TINY_MODEL, "input": "Hello"})
    answer = embedding_list(body, Embeddings((struct.pack("<2f", 0.6, 0.8),), (3,)))
    assert len(answer["data"]) == 1
