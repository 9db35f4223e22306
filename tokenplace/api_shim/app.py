"""The HTTP API that apps on this machine speak. Start at `create_app`.

Routes only: bodies are `schemas`, words are `translate`, streams are `sse`, and whatever is refused
is `refusal`. Every route exists under /v1, as OpenAI's, and under /api/v1, as token.place's.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tokenplace.api_shim.answer import Answer, collect
from tokenplace.api_shim.catalog import ModelCatalog
from tokenplace.api_shim.guard import Guard
from tokenplace.api_shim.refusal import (
    Refusal,
    refusal_of,
    refusal_of_invalid,
    refusal_of_status,
)
from tokenplace.api_shim.schemas import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.sse import EventStream, accepted_by_headers
from tokenplace.api_shim.translate import (
    AnswerForm,
    ChatForm,
    CompletionForm,
    Surroundings,
    chat_request,
    completion_request,
    model_object,
)
from tokenplace.defaults import API_HEADERS_HOLD_S, API_KEEPALIVE_S
from tokenplace.errors import TokenplaceError
from tokenplace.generation import CACHE_SCOPE_BYTES, SEED_BYTES, GenerateRequest, Generator

PREFIXES: Final = ("/v1", "/api/v1")
ID_BYTES: Final = 12  # of an answer's id: unique, not secret


def create_app(
    generator: Generator,
    models: ModelCatalog,
    *,
    hold_s: float = API_HEADERS_HOLD_S,
    keepalive_s: float = API_KEEPALIVE_S,
) -> FastAPI:
    """The API over a generator and a catalog. Serve it with `server.serve_api`.

    hold_s: seconds that a stream's headers wait for a donor. keepalive_s: seconds of silence after
    which a stream says why it waits.
    """
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        # FastAPI would send request bodies' errors to whoever an environment variable names.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    router = APIRouter()
    _add_model_routes(router, models)
    _add_completion_routes(router, generator, hold_s, keepalive_s)
    for prefix in PREFIXES:
        app.include_router(router, prefix=prefix)
    app.add_middleware(Guard)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_status)
    app.add_exception_handler(TokenplaceError, _on_error)
    app.add_exception_handler(Exception, _on_error)
    return app


def _add_model_routes(router: APIRouter, models: ModelCatalog) -> None:
    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": "v1",
            "service": "token.place",
            "timestamp": int(time.time()),
        }

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        cards = await models.list_models()
        return {"object": "list", "data": [model_object(card) for card in cards]}

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        return model_object(await models.get_model(name))


def _add_completion_routes(
    router: APIRouter, generator: Generator, hold_s: float, keepalive_s: float
) -> None:
    surroundings = _SurroundingsOf()

    async def respond(request: GenerateRequest, form: AnswerForm) -> Response:
        if request.streamed:
            return EventStream(generator, request, form, hold_s=hold_s, keepalive_s=keepalive_s)
        answer = Answer(request.stop, request.n)
        async with generator.generate(request) as events:
            texts = await collect(answer, request.n, events)
        choices = list(zip(texts, answer.require_end(), strict=True))
        whole = form.whole(choices, answer.usage)
        return JSONResponse(whole, headers=accepted_by_headers(answer))

    @router.post("/chat/completions")
    async def create_chat_completion(body: ChatCompletionRequest, http: Request) -> Response:
        request = chat_request(body, surroundings(http))
        form = ChatForm(_new_id("chatcmpl"), int(time.time()), body.model, body.includes_usage)
        return await respond(request, form)

    @router.post("/completions")
    async def create_completion(body: CompletionRequest, http: Request) -> Response:
        request = completion_request(body, surroundings(http))
        form = CompletionForm(_new_id("cmpl"), int(time.time()), body.model, body.includes_usage)
        return await respond(request, form)


class _SurroundingsOf:
    """Clock and dice of a request. Apps that show different keys get different cache scopes."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(CACHE_SCOPE_BYTES)

    def __call__(self, http: Request) -> Surroundings:
        key = http.headers.get("authorization", "").encode()
        scope = hashlib.blake2b(key, key=self._secret, digest_size=CACHE_SCOPE_BYTES)
        today = datetime.now(UTC).date().isoformat()
        return Surroundings(secrets.token_bytes(SEED_BYTES), scope.digest(), today)


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(ID_BYTES)}"


def _json_of(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def _on_invalid(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _json_of(refusal_of_invalid(error.errors()[0], error.body))


async def _on_status(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json_of(refusal_of_status(error.status_code, error.headers))


async def _on_error(http: Request, error: Exception) -> Response:
    return _json_of(refusal_of(error))
