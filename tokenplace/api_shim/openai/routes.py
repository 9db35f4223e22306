"""OpenAI's routes. Start at `add_chat_route`; what answers is `Completions`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenplace.api_shim.answer import OWN_ENGINE
from tokenplace.api_shim.body import parse_body, read_json
from tokenplace.api_shim.catalog import ModelCatalog
from tokenplace.api_shim.envelope import OPEN, Envelope
from tokenplace.api_shim.history import History
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.openai.chat_form import ChatForm
from tokenplace.api_shim.openai.embeddings import (
    EmbeddingRequest,
    embed_request,
    embedding_list,
)
from tokenplace.api_shim.openai.objects import model_list, model_object
from tokenplace.api_shim.openai.text_form import TextForm
from tokenplace.api_shim.openai.translate import chat_request, completion_requests
from tokenplace.api_shim.request_id import id_of, journal_id
from tokenplace.api_shim.responder import Responder
from tokenplace.api_shim.sse import served_headers
from tokenplace.api_shim.surroundings import SurroundingsOf
from tokenplace.generation import TextInput
from tokenplace.operations import Embeddings, EmbedRequest
from tokenplace.router.journal import Journal


class Completing(Protocol):
    """Answers the bodies of completions. See `Completions`."""

    async def complete_chat(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response: ...

    async def complete_text(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response: ...


class Embedder(Protocol):
    """What of an `Operator` this API needs."""

    async def embed(self, request: EmbedRequest) -> Embeddings: ...


@dataclass(frozen=True, slots=True)
class Completions:
    """Answers bodies that are read already, so that others than the routes below can have them
    answered, in an envelope of theirs. Raises `Refused` for a body at fault, and what
    `Responder.respond` raises.
    """

    responder: Responder
    surroundings: SurroundingsOf = field(default_factory=SurroundingsOf)

    async def complete_chat(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response:
        """POST /chat/completions. body: the JSON. http: whose request it is; not read."""
        asked = parse_body(ChatCompletionRequest, body)
        around = self.surroundings(http)
        request = chat_request(asked, around)
        form = ChatForm(
            f"chatcmpl-{around.id}",
            around.now,
            asked.model,
            n_choices=request.n,
            includes_usage=asked.includes_usage,
            has_logprobs=request.top_logprobs is not None,
            metadata=asked.metadata,
        )
        return await self.responder.respond([request], form, envelope)

    async def complete_text(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response:
        """POST /completions. See `complete_chat`."""
        asked = parse_body(CompletionRequest, body)
        around = self.surroundings(http)
        requests = completion_requests(asked, around)
        echoes = [each.input.prompt for each in requests if isinstance(each.input, TextInput)]
        n = requests[0].n
        form = TextForm(
            f"cmpl-{around.id}",
            around.now,
            asked.model,
            n_choices=n * len(requests),
            includes_usage=asked.includes_usage,
            echoes=tuple(echo for echo in echoes for _ in range(n)) if asked.echo else (),
            top_logprobs=asked.logprobs,
        )
        return await self.responder.respond(requests, form, envelope)


def add_chat_route(router: APIRouter, completions: Completing) -> None:
    """POST /chat/completions."""

    @router.post("/chat/completions")
    async def create_chat_completion(http: Request) -> Response:
        return await completions.complete_chat(await read_json(http), http)


def add_text_route(router: APIRouter, completions: Completing) -> None:
    """POST /completions."""

    @router.post("/completions")
    async def create_completion(http: Request) -> Response:
        return await completions.complete_text(await read_json(http), http)


def add_embedding_route(router: APIRouter, embedder: Embedder, journal: Journal) -> None:
    """POST /embeddings."""

    @router.post("/embeddings")
    async def create_embedding(http: Request) -> Response:
        asked = parse_body(EmbeddingRequest, await read_json(http))
        history = History(journal, journal_id(id_of(http.scope)))
        embeddings = await embedder.embed(embed_request(asked, history.id))
        served = served_headers(embeddings.donor or OWN_ENGINE, embeddings.served)
        headers = {**served, **history.headers(is_over=True)}
        return JSONResponse(embedding_list(asked, embeddings), headers=headers)


def add_model_list_route(router: APIRouter, models: ModelCatalog) -> None:
    """GET /models."""

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        return model_list(await models.list_models())


def add_model_route(router: APIRouter, models: ModelCatalog) -> None:
    """GET /models/{id}."""

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        return model_object(await models.get_model(name))
