"""What of an app's request a donor gets to see: a real HTTP request, router, seal and donor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from tests.api_shim.serving import http_client, serving
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import BOB, TINY_MODEL, Lab
from tests.router.given import GivenRouter, GivenRoutes
from tokenplace.errors import TokenplaceError
from tokenplace.generation import NO_WISHES, ChatInput
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.sealing.request import seal_request

CANARY = "canary"
QUESTION = "What is the weather like on the moon?"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up",
        "parameters": {"type": "object"},
        "strict": True,
    },
}
BODY: dict[str, Any] = {
    "model": f"{CANARY}-model",
    "messages": [
        {"role": "user", "content": "Hello!", "name": f"{CANARY}-name"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": f"{CANARY}-thought"},
        {"role": "user", "content": QUESTION},
    ],
    "tools": [TOOL],
    "user": f"{CANARY}-user",
    "metadata": {f"{CANARY}-key": f"{CANARY}-value"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": f"{CANARY}-safety",
    "prompt_cache_key": f"{CANARY}-cache",
    "stream_options": {"include_usage": True},
    "provider": {
        "order": [f"{CANARY}-first", BOB],
        "ignore": [f"{CANARY}-enemy"],
        "allow_fallbacks": True,
        "quantizations": [f"{CANARY}-type"],
        "max_latency": 7.77,
    },
    "stop": ["never"],
    "temperature": 0.5,
    "seed": 7,
}
HEADERS = {
    "authorization": f"Bearer {CANARY}-api-key",
    "cookie": f"session={CANARY}",
    "user-agent": f"{CANARY}-agent",
    "openai-organization": f"{CANARY}-org",
    "x-request-id": f"{CANARY}-id",
    "x-stainless-os": f"{CANARY}-os",
}
GEN1 = {"messages", "tools", "stop", "temperature", "top_k", "top_p", "min_p"}


class OneRoute(GivenRoutes):
    """Leads to the lab's donor, whatever is asked."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab

    def given(self, demand: Demand) -> Sequence[Route]:
        candidate = Candidate(BOB, TINY_MODEL, "", 0, 0, 0.0, 0.0, None, True, "tiny-model")
        return [Route(candidate, self.lab.remote)]

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        raise error


@pytest.mark.parametrize("stream", [True, False])
async def test_only_the_fields_of_gen1_cross_the_seal(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plaintexts: list[bytes] = []

    def spy(payload: bytes, *target: Any) -> bytes:
        plaintexts.append(payload)
        return seal_request(payload, *target)

    monkeypatch.setattr("tokenplace.peer.requester.seal_request", spy)
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        router = GivenRouter(OneRoute(lab))
        async with serving(router) as address, http_client(address) as client:
            body = BODY | {"stream": stream} if stream else _whole(BODY)
            answer = await client.post("/v1/chat/completions", json=body, headers=HEADERS)
        await lab.settled()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tokenplace-accepted-by"] == BOB
    assert answer.headers["x-tokenplace-model"] == f"tiny-model@sha256:{TINY_MODEL[:12]}"
    assert f'"model":"{CANARY}-model"' in answer.text.replace(" ", ""), "as the app asked"

    (plaintext,) = plaintexts
    assert QUESTION.encode() in plaintext, "what is looked at is what crosses"
    assert CANARY.encode() not in plaintext.lower()
    fields = msgpack.unpackb(plaintext)
    assert set(json.loads(fields["body"])) == GEN1

    (asked,) = engine.requests
    assert isinstance(asked.input, ChatInput)
    assert asked.input.messages[-1].content == QUESTION
    assert CANARY not in repr(asked).lower()
    assert (asked.model, asked.wishes) == ("", NO_WISHES)


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "stream_options"}
