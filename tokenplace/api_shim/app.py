"""The HTTP API that apps on this machine speak. Start at `create_app`.

What is served, and under which paths; whatever is refused is `refusal`. A dialect is a package of
bodies, their translation, forms of answers, and routes: `openai`. `responder` runs what they ask.
Every route exists under /v1, as OpenAI's, and under /api/v1, as token.place's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tokenplace import __version__
from tokenplace.api_shim.about import add_about_routes, add_document_route
from tokenplace.api_shim.access import Access
from tokenplace.api_shim.catalog import ModelCatalog
from tokenplace.api_shim.encrypted.completions import EncryptedCompletions
from tokenplace.api_shim.encrypted.own_key import OwnKey
from tokenplace.api_shim.encrypted.routes import add_public_key_route
from tokenplace.api_shim.guard import Guard
from tokenplace.api_shim.history import History
from tokenplace.api_shim.metrics import CountingRequests, CountingTokens, Metrics
from tokenplace.api_shim.openai.routes import (
    Completions,
    Embedder,
    add_chat_route,
    add_embedding_route,
    add_model_list_route,
    add_model_route,
    add_text_route,
)
from tokenplace.api_shim.openapi import openapi_document
from tokenplace.api_shim.page.routes import PATHS as PAGE_PATHS
from tokenplace.api_shim.page.routes import page_routes
from tokenplace.api_shim.refusal import Refusal, Refused, refusal_of, refusal_of_status
from tokenplace.api_shim.request_id import RequestId, id_of, journal_id
from tokenplace.api_shim.responder import Responder
from tokenplace.defaults import API_HEADERS_HOLD_S, API_KEEPALIVE_S
from tokenplace.errors import TokenplaceError
from tokenplace.generation import Generator
from tokenplace.router.journal import Journal

PREFIXES: Final = ("/v1", "/api/v1")
# What needs no API key: the page, which must show before one can be typed in, and the sign of life.
OPEN_PATHS: Final = PAGE_PATHS | {f"{prefix}/health" for prefix in ("", *PREFIXES)}
ALIAS_PREFIX: Final = "/api/v2"  # has the chat and the models alone, as token.place's


def create_app(
    generator: Generator,
    models: ModelCatalog,
    *,
    embedder: Embedder | None = None,
    journal: Journal | None = None,
    hold_s: float = API_HEADERS_HOLD_S,
    keepalive_s: float = API_KEEPALIVE_S,
    access: Access | None = None,
) -> FastAPI:
    """The API over a generator and a catalog. Serve it with `server.serve_api`.

    embedder: makes vectors; None: nobody does. journal: what became of requests, if the generator
    writes that down. hold_s: seconds that a stream's headers wait for a donor. keepalive_s: seconds
    of silence after which a stream says why it waits. access: who may call over TCP; None: this
    machine's programs.
    """
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        # FastAPI would send request bodies' errors to whoever an environment variable names.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    access = access or Access()
    journal = journal or Journal()
    metrics = Metrics()
    own_key = OwnKey()
    counted = CountingTokens(generator, metrics)
    plain = Completions(Responder(counted, journal, hold_s, keepalive_s))
    completions = EncryptedCompletions(plain, own_key)
    shared, rest, about, root = APIRouter(), APIRouter(), APIRouter(), APIRouter()
    add_chat_route(shared, completions)
    add_text_route(rest, completions)
    add_model_list_route(shared, models)
    add_model_route(rest, models)
    add_public_key_route(rest, own_key)
    if embedder is not None:
        add_embedding_route(rest, embedder, journal)
    add_about_routes(about, metrics, journal)
    has_keys = bool(access.keys.digests)
    document = partial(openapi_document, __version__, PREFIXES, ALIAS_PREFIX, has_keys=has_keys)
    for prefix in PREFIXES:
        app.include_router(shared, prefix=prefix)
        app.include_router(rest, prefix=prefix)
        app.include_router(about, prefix=prefix)
    app.include_router(shared, prefix=ALIAS_PREFIX)
    add_document_route(root, document)
    app.include_router(root)
    app.include_router(about)
    app.routes.extend(page_routes())
    app.add_middleware(Guard, access=replace(access, open_paths=OPEN_PATHS))
    app.add_middleware(CountingRequests, metrics=metrics)
    app.add_middleware(RequestId)
    app.add_exception_handler(HTTPException, _on_status)
    for kind in (Refused, TokenplaceError, Exception):
        app.add_exception_handler(kind, partial(_on_error, journal))
    return app


def _json_of(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def _on_status(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json_of(refusal_of_status(error.status_code, error.headers))


async def _on_error(journal: Journal, http: Request, error: Exception) -> Response:
    history = History(journal, journal_id(id_of(http.scope)))
    return _json_of(history.told_in(refusal_of(error)))
