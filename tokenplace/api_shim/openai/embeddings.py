"""Vectors of texts: the body that asks for them, its translation, and the answer. Start at
`EmbeddingRequest`. Pure.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal

from pydantic import Field

from tokenplace.api_shim.form import Json
from tokenplace.api_shim.openai.bodies import Provider
from tokenplace.api_shim.openai.fields import Body, Ignored, ModelName
from tokenplace.api_shim.openai.inputs import OneOrMany, Prompt
from tokenplace.api_shim.openai.translate import wishes_of
from tokenplace.defaults import MAX_EMBED_DIMENSIONS, MAX_EMBED_INPUTS
from tokenplace.operations import Embeddings, EmbedRequest


class EmbeddingRequest(Body):
    """Body of POST /embeddings."""

    model: ModelName
    input: Annotated[tuple[Prompt, ...], OneOrMany(MAX_EMBED_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1, le=MAX_EMBED_DIMENSIONS)] = None
    # OpenRouter's
    provider: Provider | None = None

    user: Ignored = None


def embed_request(body: EmbeddingRequest, id_: str = "") -> EmbedRequest:
    """What is asked of a model. id_: as the journal will have it."""
    wishes = wishes_of(body.provider)
    return EmbedRequest(body.model, body.input, body.dimensions, wishes=wishes, id=id_)


def embedding_list(body: EmbeddingRequest, embeddings: Embeddings) -> Json:
    """The answer, in the form that was asked for. OpenAI's SDK asks for base64, and decodes it."""
    encode = _base64 if body.encoding_format == "base64" else _floats
    n_tokens = sum(embeddings.n_tokens)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(embeddings.vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
