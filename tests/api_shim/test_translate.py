"""OpenAI's words to ours and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.api_shim.serving import CHAT, TINY_MODEL
from tokenplace.api_shim.schemas import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.translate import (
    ChatForm,
    CompletionForm,
    FinishReason,
    Surroundings,
    chat_request,
    completion_request,
)
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    JsonObject,
    JsonSchema,
    SamplingParams,
    TextInput,
    Usage,
)

AROUND = Surroundings(b"12345678", b"s" * 16, "2026-11-22")
USAGE = Usage(5, 2, 3)


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


REQUESTS = st.fixed_dictionaries(
    {
        "model": st.text(min_size=1, max_size=256),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["system", "developer", "user", "assistant"]),
                    "content": st.text(),
                }
            ),
            min_size=1,
            max_size=5,
        ),
    },
    optional={
        "temperature": optional(st.floats(0, 2)),
        "top_p": optional(st.floats(0, 1)),
        "min_p": optional(st.floats(0, 1)),
        "top_k": optional(st.integers(0, 1 << 20)),
        "max_tokens": optional(st.integers(1, 131_072)),
        "max_completion_tokens": optional(st.integers(1, 131_072)),
        "stop": optional(st.lists(st.text(min_size=1, max_size=64), max_size=4)),
        "seed": optional(st.integers(-(2**63), 2**63 - 1)),
        "ignore_eos": optional(st.booleans()),
    },
)


@given(REQUESTS)
def test_any_valid_chat_becomes_a_request_within_gen_1(body: dict[str, Any]) -> None:
    parsed = ChatCompletionRequest.model_validate_json(json.dumps(body))
    request = chat_request(parsed, AROUND)
    assert isinstance(request.input, ChatInput)
    assert [turn.content for turn in request.input.messages] == [
        turn["content"] for turn in body["messages"]
    ]
    assert {turn.role for turn in request.input.messages} <= {"system", "user", "assistant"}
    assert 0 <= request.sampling.temperature <= 2
    assert 0 < request.sampling.top_p <= 1
    assert len(request.seed) == 8
    assert request.stop == tuple(body.get("stop") or ())
    assert request.max_tokens == (body.get("max_completion_tokens") or body.get("max_tokens"))
    assert request.model == body["model"]


def test_what_is_not_said_has_the_usual_value() -> None:
    request = chat_request(ChatCompletionRequest.model_validate(CHAT), AROUND)
    assert request.sampling == SamplingParams()
    assert request.seed == AROUND.random_seed
    assert request.cache_scope == AROUND.cache_scope
    assert request.as_of == "2026-11-22"
    assert request.max_tokens is None
    assert request.stop == ()
    assert not request.ignore_eog
    assert not request.streamed


def test_said_values_arrive() -> None:
    said = {
        "temperature": 0,
        "top_k": 7,
        "top_p": 0,
        "min_p": 0.25,
        "seed": -1,
        "stop": "END",
        "ignore_eos": True,
        "stream": True,
        "typical_p": 0.5,
        "repeat_penalty": 1.5,
        "repeat_last_n": 9,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "logit_bias": {"70000": -100, "7": 1.5},
        "n": 4,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "colour", "schema": {"const": "grün"}},
        },
        "messages": [{"role": "developer", "content": "Be brief."}],
    }
    request = chat_request(ChatCompletionRequest.model_validate({**CHAT, **said}), AROUND)
    assert request.sampling.temperature == 0
    assert (request.sampling.top_k, request.sampling.min_p) == (7, 0.25)
    assert 0 < request.sampling.top_p < 1e-300
    assert request.seed == b"\xff" * 8
    assert request.stop == ("END",)
    assert request.ignore_eog
    assert request.streamed
    assert (request.sampling.typical_p, request.sampling.repeat_last_n) == (0.5, 9)
    assert (request.sampling.repeat_penalty, request.sampling.presence_penalty) == (1.5, -1)
    assert request.sampling.frequency_penalty == 0.5
    assert request.sampling.logit_bias == ((7, 1.5), (70000, -100.0))
    assert request.n == 4
    assert request.output == JsonSchema('{"const":"grün"}')
    assert request.input == ChatInput((ChatMessage("system", "Be brief."),))


@pytest.mark.parametrize(
    ("said", "output"), [("text", None), ("json_object", JsonObject())], ids=str
)
def test_a_form_without_a_schema(said: str, output: JsonObject | None) -> None:
    body = {**CHAT, "response_format": {"type": said}}
    assert chat_request(ChatCompletionRequest.model_validate(body), AROUND).output == output


def test_text_completion_has_openais_own_limit() -> None:
    body = CompletionRequest.model_validate({"model": TINY_MODEL, "prompt": "Once"})
    request = completion_request(body, AROUND)
    assert request.input == TextInput("Once")
    assert request.max_tokens == 16


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("includes_usage", [False, True])
def test_every_object_is_what_the_sdk_declares(
    finish_reason: FinishReason, includes_usage: bool
) -> None:
    chat = ChatForm("chatcmpl-1", 1, "an-alias", includes_usage)
    text = CompletionForm("cmpl-1", 1, "an-alias", includes_usage)
    ChatCompletion.model_validate(chat.whole([("Hi", finish_reason)] * 2, USAGE), strict=True)
    Completion.model_validate(text.whole([("Hi", finish_reason)] * 2, USAGE), strict=True)
    for chunk in [*chat.begin(2), chat.delta(1, "Hi"), *chat.end([finish_reason] * 2, USAGE)]:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    # The SDK reads chunks of this kind with the class of the whole, though finish_reason is null.
    *chunks, _ = [text.delta(1, "Hi"), *text.end([finish_reason] * 2, USAGE)]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)


def test_usage_comes_last_and_only_when_asked_for() -> None:
    form = ChatForm("chatcmpl-1", 1, TINY_MODEL, includes_usage=True)
    assert form.delta(0, "Hi")["usage"] is None
    end, usage = form.end(["stop"], USAGE)
    assert end["usage"] is None
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    silent = ChatForm("chatcmpl-1", 1, TINY_MODEL)
    assert "usage" not in silent.delta(0, "Hi")
    assert len(silent.end(["stop"], USAGE)) == 1
