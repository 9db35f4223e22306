"""Which bodies are taken, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.api_shim.serving import CHAT, TINY_MODEL, http_client, serving
from tokenplace.api_shim.refusal import Refusal, refusal_of_invalid
from tokenplace.api_shim.schemas import ChatCompletionRequest, CompletionRequest

COMPLETION = {"model": TINY_MODEL, "prompt": "Once"}


NESTED: dict[str, Any] = {}
for _ in range(64):
    NESTED = {"not": NESTED}


def form_of(schema: object) -> dict[str, Any]:
    """The field that asks for JSON of this schema, as the SDK sends it."""
    wrapped = {"name": "word", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def refusal_to(kind: type[ChatCompletionRequest | CompletionRequest], body: Any) -> Refusal | None:
    """What the app would be told; None if the body is taken."""
    try:
        kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        return refusal_of_invalid({**first, "loc": ("body", *first["loc"])}, body)
    return None


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        (form_of(None), "response_format.json_schema.schema", "invalid_type"),
        (form_of({"const": "\ud800"}), "response_format.json_schema.schema", "invalid_value"),
        (form_of({"const": "x" * 65_536}), "response_format.json_schema.schema", "invalid_value"),
        (form_of({"const": float("inf")}), "response_format.json_schema.schema", "invalid_value"),
        (form_of(NESTED), "response_format.json_schema.schema", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schem": {}}}},
            "response_format.json_schema.schem",
            "unknown_parameter",
        ),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 17}, "n", "integer_above_max_value"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
        ({"logit_bias": {"1": True}}, "logit_bias.1", "invalid_type"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"\ud800": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "decimal_above_max_value"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "decimal_below_min_value"),
        ({"typical_p": 0}, "typical_p", "decimal_below_min_value"),
        ({"repeat_penalty": 0}, "repeat_penalty", "decimal_below_min_value"),
        ({"repeat_penalty": 10.5}, "repeat_penalty", "decimal_above_max_value"),
        ({"repeat_last_n": -1}, "repeat_last_n", "integer_below_min_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"x" * 1000: 1}, "x" * 64, "unknown_parameter"),
        ({"\ud800": 1}, "?", "unknown_parameter"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        ({"min_p": -1}, "min_p", "decimal_below_min_value"),
        ({"top_k": -1}, "top_k", "integer_below_min_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens", "integer_above_max_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": ""}, "stop[0]", "string_below_min_length"),
        ({"stop": "é" * 129}, "stop[0]", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"model": ""}, "model", "string_below_min_length"),
        ({"model": 5}, "model", "invalid_type"),
        ({"messages": []}, "messages", "array_below_min_length"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": "a"}] * 1025},
            "messages",
            "array_above_max_length",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "messages[0].role",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            "messages[0].content",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
    ],
)
def test_chat_parameter_is_refused_by_name(extra: dict[str, Any], param: str, code: str) -> None:
    refusal = refusal_to(ChatCompletionRequest, {**CHAT, **extra})
    assert refusal is not None
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)
    assert f"'{param}'" in refusal.message


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "unsupported_parameter"),
        ({"prompt": [1, 2]}, "prompt", "unsupported_parameter"),
        ({"prompt": ""}, "prompt", "string_below_min_length"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_completion_parameter_is_refused_by_name(
    extra: dict[str, Any], param: str, code: str
) -> None:
    refusal = refusal_to(CompletionRequest, {**COMPLETION, **extra})
    assert refusal is not None
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)


@pytest.mark.parametrize("body", [None, [], "text", 3, True])
def test_body_that_is_no_object_is_refused(body: object) -> None:
    refusal = refusal_to(ChatCompletionRequest, body)
    assert refusal is not None
    assert (refusal.status, refusal.param, refusal.code) == (400, None, "invalid_type")


def test_the_largest_values_are_taken() -> None:
    most = {
        "n": 16,
        "logit_bias": {str(n): -100 for n in range(299)} | {"999999999": 100.0},
        "typical_p": 1,
        "repeat_penalty": 10,
        "repeat_last_n": 65_536,
        **form_of(NESTED["not"]),
    }
    assert refusal_to(ChatCompletionRequest, {**CHAT, **most}) is None
    form = {"response_format": {"type": "json_object"}}
    assert refusal_to(ChatCompletionRequest, {**CHAT, **form}) is None


def test_values_that_ask_for_nothing_are_taken() -> None:
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "n": 1,
        "logprobs": False,
        "top_logprobs": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "stop": None,
        "max_tokens": None,
        "temperature": None,
        "stream": None,
        "stream_options": None,
        "seed": None,
        "user": "ALICE",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "modalities": ["text"],
    }
    assert refusal_to(ChatCompletionRequest, {**CHAT, **nothing}) is None
    nothing = {"best_of": 1, "echo": False, "suffix": None, "logprobs": None, "n": 1, "user": "BOB"}
    assert refusal_to(CompletionRequest, {**COMPLETION, **nothing}) is None


def test_an_earlier_answer_can_be_sent_back_as_the_sdk_dumps_it() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert refusal_to(ChatCompletionRequest, {**CHAT, "messages": [message]}) is None


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    body = ChatCompletionRequest.model_validate({**CHAT, "messages": messages})
    assert body.messages[0].content == "one\ntwo"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers().map(lambda number: number * 10**400)
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({*ChatCompletionRequest.model_fields})) | st.text()
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), JSON_VALUES), max_size=3
)


@given(st.dictionaries(NAMES, JSON_VALUES, max_size=5), MESSAGES | st.just(CHAT["messages"]))
def test_any_body_is_taken_or_refused_in_words_that_can_be_sent(
    extra: dict[str, Any], messages: object
) -> None:
    for kind, body in (
        (ChatCompletionRequest, {**CHAT, "messages": messages, **extra}),
        (CompletionRequest, {**COMPLETION, **extra}),
    ):
        refusal = refusal_to(kind, body)
        if refusal is not None:
            assert refusal.status == 400
            json.dumps(refusal.body, ensure_ascii=False).encode()
        else:
            taken = kind.model_validate(body)
            heard = {name for name in body if kind.model_fields[name].annotation is not Any}
            taken.model_dump_json(include=heard)  # raises for what is not Unicode


async def test_refusal_of_many_faults_is_quick_and_one_only() -> None:
    async with serving() as address, http_client(address) as client:
        faults = {f"unknown{number}": 1 for number in range(100_000)}
        unknown = await client.post("/v1/chat/completions", json={**CHAT, **faults})
        wrong = await client.post(
            "/v1/chat/completions", json={**CHAT, "messages": [1] * 1_000_000}
        )
    assert unknown.json()["error"]["param"] == "unknown0"
    assert wrong.status_code == 400
    assert len(wrong.content) < 500
