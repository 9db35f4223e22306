"""The API's own description, OpenAPI 3.1. Start at `openapi_document`.

Written from the models that check the bodies, and from those that tests hold the answers against.
Differs from FastAPI's own, which sees neither: bodies are read and answers are written by hand
(`body`, `responder`). As there, `itemSchema` says what events are: 3.2's word, which readers of 3.1
know or skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tokenplace.api_shim import document_schemas as ours
from tokenplace.api_shim.form import Json
from tokenplace.api_shim.openai import answer_schemas as answers
from tokenplace.api_shim.openai.embeddings import EmbeddingRequest

_REFS: Final = "#/components/schemas/{model}"
# What the server, the guard and the routes refuse with, whatever is asked for.
_ALWAYS: Final = (400, 401, 403, 405, 408, 413, 414, 415, 431, 500, 501, 503, 505)
_OF_DONORS: Final = (404, 502, 504)
_RETRIED: Final = frozenset({503})
_MEANINGS: Final = {
    400: "A parameter or the request itself is not valid; `param` names it.",
    401: "An API key is asked for, and this one is not it.",
    403: "Whoever asks may not, or not this of these donors.",
    404: "No such model, or nothing at this path.",
    405: "This path does not know that method.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    414: "The request's target is too long.",
    415: "The body is not JSON, or compressed.",
    431: "The request's headers are too large.",
    500: "A fault of this peer.",
    501: "The method or transfer coding is not known.",
    502: "The donor failed.",
    503: "No donor for this model now, or all are busy.",
    504: "The donor was silent for too long.",
    505: "Not HTTP/1.1.",
}


@dataclass(frozen=True, slots=True)
class _Operation:
    """One method of one path. bodies: any one of them. answers: of a 200, any one of them.

    events: of a stream, where there may be one. has_donors: others may have to be asked.
    is_open: asks for no API key.
    """

    method: str
    path: str
    id: str
    summary: str
    answers: tuple[type[BaseModel], ...] = ()
    bodies: tuple[type[BaseModel], ...] = ()
    events: tuple[type[BaseModel], ...] = ()
    media_type: str = "application/json"
    parameters: tuple[Json, ...] = ()
    has_donors: bool = False
    is_open: bool = False


_TEXT: Final = {"type": "string"}
_HEADERS: Final[Json] = {
    "x-request-id": {"schema": _TEXT, "description": "A name for this answer."},
    "x-tokenplace-request-id": {
        "schema": _TEXT,
        "description": "Its beginning, for `tokenplace peer status --requests`.",
    },
    "x-tokenplace-attempts": {
        "schema": {"type": "integer"},
        "description": "How often a donor was asked, of a stream until it began.",
    },
    "x-tokenplace-route": {
        "schema": _TEXT,
        "description": "What became of each attempt, but for a stream: DONOR=REASON@PHASE, ...",
    },
    "x-tokenplace-accepted-by": {
        "schema": _TEXT,
        "description": "Peer id of the donor; self: this peer's own engine.",
    },
    "x-tokenplace-model": {"schema": _TEXT, "description": "What answered: NAME@sha256:HEX."},
    "retry-after": {
        "schema": {"type": "integer"},
        "description": "Seconds until asking again makes sense.",
    },
}
_NAMES: Final = ("x-request-id", "x-tokenplace-request-id")
_ATTEMPTS: Final = ("x-tokenplace-attempts", "x-tokenplace-route")
_SERVED_HEADERS: Final = ("x-tokenplace-accepted-by", "x-tokenplace-model", *_ATTEMPTS)
_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "A model's name or alias, or NAME@sha256:HEX.",
}
_KEY_FORM: Final = {
    "name": "format",
    "in": "query",
    "schema": {"enum": ["base64", "pem"]},
    "description": "base64 (of PEM) otherwise.",
}
# Under every prefix, the alias's too.
_SHARED: Final = (
    _Operation(
        "post",
        "/chat/completions",
        "createChatCompletion",
        "Answer a chat.",
        (answers.ChatCompletion, ours.SealedAnswer),
        (ours.ChatCompletionRequest, ours.SealedChatCompletionRequest),
        (answers.ChatCompletionChunk, ours.SealedEvent, answers.Error, ours.SealedStreamError),
        has_donors=True,
    ),
    _Operation(
        "get",
        "/models",
        "listModels",
        "The models that can be asked for now.",
        (answers.ModelList,),
    ),
)
# Under the prefixes.
_REST: Final = (
    _Operation(
        "post",
        "/completions",
        "createCompletion",
        "Continue raw prompts.",
        (answers.Completion, ours.SealedAnswer),
        (ours.CompletionRequest, ours.SealedCompletionRequest),
        (answers.CompletionChunk, ours.SealedEvent, answers.Error, ours.SealedStreamError),
        has_donors=True,
    ),
    _Operation(
        "post",
        "/embeddings",
        "createEmbedding",
        "Vectors of texts.",
        (answers.EmbeddingList,),
        (EmbeddingRequest,),
        has_donors=True,
    ),
    _Operation(
        "get",
        "/models/{name}",
        "retrieveModel",
        "One model, by any name that a request could use.",
        (answers.Model,),
        parameters=(_NAME,),
        has_donors=True,
    ),
    _Operation(
        "get",
        "/public-key",
        "getPublicKey",
        "The key that requests of the encrypted API are sealed to.",
        (ours.PublicKey,),
        parameters=(_KEY_FORM,),
    ),
)
# Under the prefixes, and at the root.
_SIGNS: Final = (
    _Operation("get", "/health", "getHealth", "A sign of life.", (ours.Health,), is_open=True),
    _Operation("get", "/version", "getVersion", "What runs here.", (ours.Version,)),
    _Operation("get", "/metrics", "getMetrics", "Numbers for Prometheus.", media_type="text/plain"),
)
# At the root alone.
_ROOT: Final = (_Operation("get", "/openapi.json", "getOpenApi", "This document."),)


def openapi_document(
    version: str, prefixes: Sequence[str], alias_prefix: str, *, has_keys: bool
) -> Json:
    """What is served under which path. has_keys: an API key is asked for."""
    operations = {
        "": (*_ROOT, *_SIGNS),
        **{prefix: (*_SHARED, *_REST, *_SIGNS) for prefix in prefixes},
        alias_prefix: _SHARED,
    }
    paths: Json = {}
    for prefix, served in operations.items():
        for operation in served:
            item = paths.setdefault(prefix + operation.path, {})
            item[operation.method] = _described(operation, prefix)
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "tokenplace",
            "version": version,
            "summary": "OpenAI's API over a network of donated LLM inference.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "headers": _HEADERS},
    }
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _described(operation: _Operation, prefix: str) -> Json:
    place = "".join(part.capitalize() for part in prefix.split("/"))
    described: Json = {
        "operationId": operation.id + place,
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.bodies:
        content = {"application/json": {"schema": _any_of(operation.bodies)}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.is_open:
        described["security"] = []
    return described


def _responses(operation: _Operation) -> Json:
    schema = {"type": "string"} if operation.media_type == "text/plain" else {"type": "object"}
    if operation.answers:
        schema = _any_of(operation.answers)
    content: Json = {operation.media_type: {"schema": schema}}
    if operation.events:
        content["text/event-stream"] = {"itemSchema": _event_of(operation.events)}
    names = (*_NAMES, *(_SERVED_HEADERS if operation.has_donors else ()))
    responses: Json = {"200": {"description": "OK", "headers": _headers(names), "content": content}}
    for status in sorted({*_ALWAYS, *(_OF_DONORS if operation.has_donors else ())}):
        names = (*_NAMES, *(("retry-after",) if status in _RETRIED else ()))
        responses[str(status)] = {
            "description": _MEANINGS[status],
            "headers": _headers(names),
            "content": {"application/json": {"schema": _any_of((answers.Error,))}},
        }
    return responses


def _event_of(models: Sequence[type[BaseModel]]) -> Json:
    """One event of a stream: JSON in its `data`, but for the last one of a whole answer."""
    written = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _any_of(models),
    }
    data = {"anyOf": [{"const": "[DONE]"}, written]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _headers(names: Sequence[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _any_of(models: Sequence[type[BaseModel]]) -> Json:
    refs = [{"$ref": _REFS.format(model=model.__name__)} for model in models]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _schemas() -> Json:
    served = (*_SHARED, *_REST, *_SIGNS, *_ROOT)
    models = {answers.Error}.union(
        *((*each.bodies, *each.answers, *each.events) for each in served)
    )
    named = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in named], ref_template=_REFS)
    return dict(schemas["$defs"])
