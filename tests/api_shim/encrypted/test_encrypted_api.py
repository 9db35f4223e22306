"""The encrypted API over real HTTP, asked by a client of other make."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.api_shim.encrypted.client import (
    JAVASCRIPT,
    PYTHON,
    Client,
    base64_of,
    key_of,
    other_key,
    pem_of,
    seal,
    seal_bytes,
)
from tests.api_shim.serving import TINY_MODEL, RefusingGenerator, http_client, serving
from tests.conftest import ROOT
from tests.fakes import EchoEngine
from tokenplace.api_shim.encrypted import completions
from tokenplace.defaults import MAX_MESSAGES
from tokenplace.errors import ConnectionLost, NoDonorForModel
from tokenplace.generation import GenerateRequest, Generator

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SECRET = "the secret of the llamas"
MESSAGES = [{"role": "system", "content": "Answer."}, {"role": "user", "content": SECRET}]
ASK = {"model": TINY_MODEL}
OF_EACH_ANSWER = {"date", "x-request-id", "x-tokenplace-request-id"}


@dataclass
class Api:
    """A served API, and a client of it."""

    http: httpx.AsyncClient
    client: Client

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def refused(self, path: str, body: object) -> dict[str, Any]:
        response = await self.post(path, body)
        assert response.status_code == 400
        error: dict[str, Any] = response.json()["error"]
        return error


@asynccontextmanager
async def encrypted_api(generator: Generator | None = None) -> AsyncIterator[Api]:
    async with serving(generator) as address, http_client(address) as http:
        answer = (await http.get("/api/v1/public-key")).json()
        key = load_pem_public_key(base64.b64decode(answer["public_key"], validate=True))
        assert isinstance(key, rsa.RSAPublicKey)
        yield Api(http, Client(key, other_key()))


def events_of(stream: str) -> list[Any]:
    """What a stream says, up to [DONE]."""
    blocks = [block for block in stream.split("\n\n") if block.startswith("data: ")]
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in {"id", "created"}}


def comparable(request: GenerateRequest) -> GenerateRequest:
    return replace(request, seed=b"", cache_scope=b"", id="")


# ---------------------------------------------------------------- the key


async def test_the_public_key() -> None:
    async with serving() as address, http_client(address) as http:
        answers = [await http.get(f"{prefix}/public-key") for prefix in ("/v1", "/api/v1")]
        as_pem = await http.get("/v1/public-key?format=pem")
        assert answers[0].json() == answers[1].json()
        assert set(answers[0].json()) == {"public_key"}
        pem = base64.b64decode(answers[0].json()["public_key"], validate=True)
        assert as_pem.json() == {"public_key": pem.decode()}
        assert answers[0].headers["cache-control"] == "no-store"
    key = load_pem_public_key(pem)
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert isinstance(key, rsa.RSAPublicKey)
    assert (key.key_size, key.public_numbers().e) == (2048, 65537)


async def test_many_who_ask_at_once_get_one_key() -> None:
    texts = set()
    async with serving() as address, http_client(address) as http, trio.open_nursery() as nursery:

        async def ask() -> None:
            texts.add((await http.get("/v1/public-key")).text)

        for _ in range(8):
            nursery.start_soon(ask)
    assert len(texts) == 1


async def test_an_unknown_form_of_the_key_is_refused() -> None:
    async with serving() as address, http_client(address) as http:
        response = await http.get("/v1/public-key?format=der")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "format"


# ---------------------------------------------------------------- answers

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0, "seed": 7, "max_tokens": 3, "top_p": 0.5},
    {"n": 2, "stop": ["llamas"], "logprobs": True, "top_logprobs": 1},
    {"metadata": {"of": "the app"}, "user": "Alice"},
    {"response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("path", [CHAT, "/api/v1/chat/completions", "/api/v2/chat/completions"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_a_chat_is_answered_as_in_clear(path: str, options: dict[str, Any]) -> None:
    engine = EchoEngine()
    async with encrypted_api(engine) as api:
        response = await api.post(path, api.client.body(MESSAGES, **ASK, **options))
        plain = await api.post(path, {"messages": MESSAGES, **ASK, **options})
    assert response.status_code == 200, response.text
    assert SECRET not in response.text
    assert timeless(api.client.open_whole(response.json())) == timeless(plain.json())
    assert set(response.headers) == set(plain.headers)
    sealed, clear = engine.requests
    assert comparable(sealed) == comparable(clear)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_a_streamed_chat_is_answered_as_in_clear(options: dict[str, Any]) -> None:
    options = {**options, "stream": True, "stream_options": {"include_usage": True}}
    async with encrypted_api() as api:
        response = await api.post(CHAT, api.client.body(MESSAGES, **ASK, **options))
        plain = await api.post(CHAT, {"messages": MESSAGES, **ASK, **options})
    assert response.headers["content-type"] == plain.headers["content-type"]
    assert SECRET not in response.text
    events = events_of(response.text)
    opened = [timeless(api.client.open_event(event)) for event in events]
    assert opened == [timeless(event) for event in events_of(plain.text)]
    assert len(opened) > 3
    assert ": served by self\n\n" in response.text


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("options", [{}, {"echo": True, "max_tokens": 2}, {"n": 2}], ids=str)
async def test_a_completion_is_answered_as_in_clear(
    streamed: bool, options: dict[str, Any]
) -> None:
    options = {**options, "stream": streamed, **ASK}
    async with encrypted_api() as api:
        response = await api.post(TEXT, api.client.body(SECRET, **options))
        plain = await api.post(TEXT, {"prompt": SECRET, **options})
    assert response.status_code == 200, response.text
    assert SECRET not in response.text
    if not streamed:
        assert timeless(api.client.open_whole(response.json())) == timeless(plain.json())
        return
    opened = [timeless(api.client.open_event(event)) for event in events_of(response.text)]
    assert opened == [timeless(event) for event in events_of(plain.text)]


async def test_a_client_in_javascript_is_answered() -> None:
    async with encrypted_api() as api:
        sealed = seal(MESSAGES, api.client.peer_key, JAVASCRIPT)
        response = await api.post(CHAT, {**api.client.body(MESSAGES, **ASK), "messages": sealed})
        answer = api.client.open_whole(response.json())
    assert answer["choices"][0]["message"]["content"] == SECRET


@pytest.mark.parametrize("encrypted", [False, None])
async def test_what_is_not_encrypted_is_answered_in_clear(encrypted: bool | None) -> None:
    async with encrypted_api() as api:
        chat = await api.post(CHAT, {"encrypted": encrypted, "messages": MESSAGES, **ASK})
        text = await api.post(TEXT, {"encrypted": encrypted, "prompt": SECRET, **ASK})
    assert chat.json()["choices"][0]["message"]["content"] == SECRET
    assert text.json()["choices"][0]["text"] == SECRET


# ---------------------------------------------------------------- failures in clear


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"model": ""}, "model"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"llamas": 3}, "llamas"),
        ({"encrypted": "true"}, "encrypted"),
        ({"encrypted": 1}, "encrypted"),
        ({"encrypted": False}, "client_public_key"),
    ],
    ids=str,
)
@pytest.mark.parametrize("sealed", [True, False])
async def test_what_stands_outside_is_refused_by_name(
    wrong: dict[str, Any], param: str, sealed: bool
) -> None:
    """Whether the envelope can be opened or not: nobody looks into it."""
    async with encrypted_api() as api:
        body = {**api.client.body(MESSAGES, **ASK), **wrong}
        error = await api.refused(CHAT, body if sealed else {**body, "messages": "broken"})
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("body", [[], "encrypted", 7])
async def test_a_body_that_is_no_object(body: object) -> None:
    async with encrypted_api() as api:
        error = await api.refused(CHAT, body)
    assert error["message"] == "The body must be a JSON object."


async def test_a_failure_before_the_answer_is_told_in_clear() -> None:
    async with encrypted_api(RefusingGenerator(NoDonorForModel())) as api:
        for streamed in (False, True):
            body = api.client.body(MESSAGES, stream=streamed, **ASK)
            response = await api.post(CHAT, body)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "no_donor_for_model"


async def aborted_stream(api: Api, body: object) -> str:
    """What came before the connection was aborted."""
    text = ""
    try:
        async with api.http.stream("POST", CHAT, json=body) as response:
            async for part in response.aiter_text():
                text += part
    except httpx.RemoteProtocolError:
        return text
    raise AssertionError("the stream came to an orderly end")


async def test_a_failure_in_mid_stream_is_an_event_in_clear() -> None:
    async with encrypted_api(EchoEngine(fail_after=2, error=ConnectionLost())) as api:
        text = await aborted_stream(api, api.client.body(MESSAGES, stream=True, **ASK))
    *sealed, last = [json.loads(block[6:]) for block in text.split("\n\n") if block[:1] == "d"]
    assert "".join(
        api.client.open_event(event)["choices"][0]["delta"].get("content", "") for event in sealed
    ) == SECRET[:6]  # fmt: skip
    assert last["event"] == "error"
    assert last["error"]["code"] == "connection_lost"
    assert "[DONE]" not in text


# ---------------------------------------------------------------- what cannot be opened


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse within a millisecond; when is tested elsewhere."""
    monkeypatch.setattr(completions, "API_SEALED_REFUSAL_STEP_S", 0.001)


def broken(body: dict[str, Any], key: rsa.RSAPublicKey, good: object) -> dict[str, dict[str, Any]]:
    """Requests that differ from `body`, whose plaintext is `good`, in one thing each."""
    sealed = body["messages"]

    def flipped(name: str, place: int) -> dict[str, Any]:
        data = bytearray(base64.b64decode(sealed[name]))
        data[place] ^= 1
        return {**sealed, name: base64_of(bytes(data))}

    envelopes: dict[str, object] = {
        "no envelope": None,
        "in clear": good,
        "an empty envelope": {},
        "no base64": {**sealed, "iv": "#"},
        "broken RSA": flipped("cipherkey", 100),
        "RSA beyond the modulus": {**sealed, "cipherkey": base64_of(b"\xff" * 256)},
        "another peer's key": seal(good, other_key().public_key()),
        "a short key": {**sealed, "cipherkey": base64_of(key.encrypt(b"A" * 43, PYTHON))},
        "broken padding": flipped("ciphertext", -17),
        "half a block": {**sealed, "ciphertext": sealed["ciphertext"][:24] + "AAAA"},
        "no JSON": seal_bytes(b'[{"role": "user"', key),
        "no UTF-8": seal_bytes(b'["\xff"]', key),
        "deep JSON": seal_bytes(b"[" * 50_000, key),
    }
    client_keys: dict[str, object] = {
        "no client key": None,
        "a client key that is a number": 7,
        "a client key of 1024 bits": base64_of(pem_of(key_of(1024))),
        "a client key that is none": base64_of(b"none"),
        "a client key with an even modulus": base64_of(pem_of_even()),
    }
    return {
        **{name: {**body, "messages": value} for name, value in envelopes.items()},
        **{name: {**body, "client_public_key": value} for name, value in client_keys.items()},
    }


def pem_of_even() -> bytes:
    head = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA"
    der = base64.b64decode(head) + b"\x80" + bytes(255) + b"\x02\x03\x01\x00\x01"
    return b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(der) + b"-----END PUBLIC KEY-----\n"


MANY = [{"role": "user", "content": ""}] * (MAX_MESSAGES + 1)
NOT_MESSAGES: list[object] = [
    *(None, True, 7, "Hello", {}, {"role": "user", "content": "Hello"}, []),
    *([None], ["Hello"], [{"role": "user"}], [{"role": "llama", "content": "x"}]),
    [{"role": "user", "content": "x", "the secret name": 1}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    [{"role": "user", "content": "\ud800"}],
    MANY,
]
NOT_PROMPTS: list[object] = [None, True, 7, "", [], ["Hello"], [1, 2], {}, MESSAGES, "\udc00"]


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "good", "bad_contents"),
    [(CHAT, MESSAGES, NOT_MESSAGES), (TEXT, SECRET, NOT_PROMPTS)],
    ids=["chat", "text"],
)
async def test_one_answer_to_all_that_cannot_be_opened(
    path: str,
    good: object,
    bad_contents: list[object],
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = EchoEngine()
    caplog.set_level(logging.DEBUG)
    answers = set()
    async with encrypted_api(engine) as api:
        options = {"stream": stream, **ASK}
        body = api.client.body(good, **options)
        bad = broken(body, api.client.peer_key, good)
        bad |= {str(value)[:60]: api.client.body(value, **options) for value in bad_contents}
        if path == TEXT:
            bad["a prompt in clear too"] = {**body, "prompt": SECRET}
        for name, wrong in bad.items():
            response = await api.post(path, wrong)
            headers = {k: v for k, v in response.headers.items() if k not in OF_EACH_ANSWER}
            answers.add((response.status_code, response.content, tuple(headers.items())))
            assert len(answers) == 1, name
        assert engine.requests == []
        assert (await api.post(path, body)).status_code == 200
    ((status, content, _),) = answers
    error = json.loads(content)["error"]
    assert status == 400
    assert error["type"] == "encryption_error"
    assert (error["param"], error["code"]) == (None, "encryption_error")
    assert "secret" not in caplog.text


async def test_a_key_of_an_earlier_start_is_one_of_them() -> None:
    async with encrypted_api() as before:
        pass
    async with encrypted_api() as after:
        error = await after.refused(CHAT, before.client.body(MESSAGES, **ASK))
    assert error["type"] == "encryption_error"
    assert "GET /public-key" in error["message"]


async def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "client_public_key" in block)
    async with serving() as address:
        code = example.replace("http://127.0.0.1:5010", address)
        await trio.to_thread.run_sync(exec, compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "Why is the sky blue?\n"
