"""Tools over the network, with a small model whose chat template has no word of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.network import MODEL, Network
from tokenplace.node.trust_file import TrustFile

pytestmark = pytest.mark.slow
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Rome"]},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
QUESTION: Any = {"role": "user", "content": "What is the weather in Oslo?"}


@pytest.fixture
def trusted(network: Network) -> Iterator[str]:
    """One of the two donors, whose tool calls are taken."""
    assert network.asker is not None
    trust = TrustFile(network.asker.home)
    peer_id = str(network.status(network.donors[0])["peer_id"])
    trust.add(peer_id)
    yield peer_id
    trust.remove(peer_id)


def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, trusted: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[QUESTION], tools=[WEATHER], tool_choice=NAMED, temperature=0
    )
    (choice,) = raw.parse().choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    call: Any = (choice.message.tool_calls or [])[0]
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city", "unit"}
    assert arguments["city"] in ("Oslo", "Rome")
    assert arguments["unit"] in ("celsius", "fahrenheit")
    assert raw.headers["x-tokenplace-accepted-by"] == trusted

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    turns: Any = [QUESTION, choice.message.model_dump(exclude_none=True), result]
    for wished in ("auto", "none"):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=turns,
            tools=[WEATHER],
            tool_choice=wished,
            temperature=0,
            max_tokens=16,
        )
        message = answer.choices[0].message
        assert message.content or message.tool_calls
        assert wished == "auto" or not message.tool_calls


def test_a_stream_of_a_forced_call_says_the_same(client: openai.OpenAI, trusted: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[QUESTION],
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            stream=True,
        )
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [call.function for choice in choices for call in choice.delta.tool_calls or []]
    assert [piece.name for piece in pieces if piece and piece.name] == ["get_weather"]
    assert json.loads("".join(piece.arguments or "" for piece in pieces if piece))
    assert [choice.finish_reason for choice in choices][-1] == "tool_calls"
