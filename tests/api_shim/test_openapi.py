"""The API's document against the API: its routes, its statuses, its objects."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from tests.api_shim.serving import CHAT, PINNED_MODEL, TINY_MODEL, FakeCatalog, http_client, serving
from tests.fakes import EchoEngine, FakeEmbedder
from tokenplace.api_shim import document_schemas as ours
from tokenplace.api_shim.access import Access, ApiKeys
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.http1 import REFUSALS
from tokenplace.api_shim.openai import answer_schemas as answers
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.openai.embeddings import EmbeddingRequest
from tokenplace.api_shim.page.routes import PATHS as PAGE_PATHS
from tokenplace.errors import TokenplaceError

Json = dict[str, Any]
TEXT = {"model": TINY_MODEL, "prompt": ["Hello", "Grüße"], "max_tokens": 50}


async def document_of(**options: Any) -> Json:
    async with (
        serving(embedder=FakeEmbedder(), **options) as address,
        http_client(address) as client,
    ):
        key = {"authorization": "Bearer one-of-sixteen-letters"}
        document: Json = (await client.get("/openapi.json", headers=key)).json()
    return document


async def test_it_has_every_route_and_no_other() -> None:
    app = create_app(EchoEngine(), FakeCatalog(), embedder=FakeEmbedder())
    served = {
        (method.lower(), route.path.replace("{name:path}", "{name}"))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
        if route.path not in PAGE_PATHS
    }
    document = await document_of()
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert described == served
    ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(ids) == len(set(ids))


def subclasses(kind: type[TokenplaceError]) -> set[type[TokenplaceError]]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


async def test_every_status_of_an_error_is_described() -> None:
    document = await document_of()
    described = set(document["paths"]["/v1/chat/completions"]["post"]["responses"])
    said = {error.http_status for error in subclasses(TokenplaceError)} | set(REFUSALS)
    assert {str(status) for status in said} <= described


async def test_every_reference_leads_somewhere() -> None:
    document = await document_of()
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]*)"', text)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]


@pytest.mark.parametrize("body", [ChatCompletionRequest, CompletionRequest, EmbeddingRequest])
async def test_a_body_has_its_parameters_and_no_others(body: type[BaseModel]) -> None:
    schema = (await document_of())["components"]["schemas"][body.__name__]
    assert set(schema["properties"]) - {"encrypted"} == set(body.model_fields)
    assert schema["additionalProperties"] is False


async def test_a_key_is_asked_for_where_there_are_keys() -> None:
    assert "security" not in await document_of()
    keys = ApiKeys.of(["one-of-sixteen-letters"])
    document = await document_of(access=Access(keys=keys))
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/v1/health"]["get"]["security"] == []


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("chat/completions", CHAT, answers.ChatCompletion),
        (
            "chat/completions",
            {**CHAT, "n": 2, "logprobs": True, "top_logprobs": 2, "metadata": {"a": "b"}},
            answers.ChatCompletion,
        ),
        ("completions", TEXT, answers.Completion),
        ("completions", {**TEXT, "n": 2, "logprobs": 2, "model": "x"}, answers.Completion),
        ("completions", {**TEXT, "echo": True, "stop": "l"}, answers.Completion),
        ("embeddings", {"model": TINY_MODEL, "input": "Hello"}, answers.EmbeddingList),
        ("chat/completions", {**CHAT, "temperature": 9}, answers.Error),
        ("models", None, answers.ModelList),
        (f"models/{PINNED_MODEL}", None, answers.Model),
        ("models/none", None, answers.Error),
        ("none", None, answers.Error),
        ("health", None, ours.Health),
        ("version", None, ours.Version),
        ("public-key", None, ours.PublicKey),
    ],
)
async def test_objects_are_as_described(path: str, body: Json | None, kind: Any) -> None:
    async with serving(embedder=FakeEmbedder()) as address, http_client(address) as client:
        method = "GET" if body is None else "POST"
        answer = await client.request(method, f"/v1/{path}", json=body)
    kind.model_validate_json(answer.content)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("chat/completions", CHAT, answers.ChatCompletionChunk),
        (
            "chat/completions",
            {**CHAT, "n": 2, "logprobs": True, "top_logprobs": 2, "metadata": {"a": "b"}},
            answers.ChatCompletionChunk,
        ),
        ("completions", {**TEXT, "n": 2, "logprobs": 2}, answers.CompletionChunk),
        ("completions", {**TEXT, "echo": True}, answers.CompletionChunk),
    ],
)
async def test_events_are_as_described(path: str, body: Json, kind: Any) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with serving() as address, http_client(address) as client:
        answer = await client.post(f"/v1/{path}", json=asked)
    events = re.findall(r"^data: (\{.*)$", answer.text, re.MULTILINE)
    assert len(events) > 4
    for event in events:
        kind.model_validate_json(event)
