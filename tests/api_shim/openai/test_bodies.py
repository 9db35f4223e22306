"""Which bodies are taken, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.serving import CHAT, TINY_MODEL
from tokenplace.api_shim.body import parse_body
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.openai.translate import chat_request, completion_requests
from tokenplace.api_shim.refusal import Refusal, Refused
from tokenplace.api_shim.surroundings import Surroundings
from tokenplace.generation import GenerateRequest
from tokenplace.peer import gen1

COMPLETION = {"model": TINY_MODEL, "prompt": "Once"}
TEXT_PART = {"type": "text", "text": "one"}
ALICE = "12D3KooWAlice"

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
        parse_body(kind, body)
    except Refused as refused:
        return refused.refusal
    return None


def message(role: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, **fields}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def call(**fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"id": "call_1", "type": "function", "function": function, **fields}


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{**tool(), "type": "custom"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool(name="x" * 65)]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [tool(description="é" * 4097)]},
            "tools[0].function.description",
            "invalid_value",
        ),
        ({"tools": [tool(parameters="{}")]}, "tools[0].function.parameters", "invalid_type"),
        ({"tools": [tool(parameters=NESTED)]}, "tools[0].function.parameters", "invalid_value"),
        ({"tools": [tool(returns={})]}, "tools[0].function.returns", "unknown_parameter"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "invalid_value"),
        (
            {"tools": [tool(name=f"f{n}") for n in range(129)]},
            "tools",
            "array_above_max_length",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": ["auto"]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": tool()}, "tool_choice.function.name", "invalid_value"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
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
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"metadata": "x"}, "metadata", "invalid_type"),
        ({"metadata": {"a": "\ud800"}}, "metadata", "invalid_value"),
        ({"metadata": {"a": float("inf")}}, "metadata", "invalid_value"),
        ({"metadata": NESTED}, "metadata", "invalid_value"),
        ({"metadata": {"\ud800": "a"}}, "metadata", "invalid_value"),
        ({"provider": {"sort": "price"}}, "provider.sort", "unknown_parameter"),
        ({"provider": {"only": [ALICE] * 65}}, "provider.only", "array_above_max_length"),
        ({"provider": {"order": ["x" * 129]}}, "provider.order[0]", "string_above_max_length"),
        ({"provider": {"max_latency": 0}}, "provider.max_latency", "decimal_below_min_value"),
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
        ({"top_k": -2}, "top_k", "integer_below_min_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": -2}, "max_tokens", "integer_below_min_value"),
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
        (message("function", content="a"), "messages[0].role", "unsupported_parameter"),
        (
            message("tool", content="a"),
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        (message("user", content=None), "messages[0].content", "invalid_value"),
        (message("system", content=None), "messages[0].content", "invalid_value"),
        (
            message("tool", content=None, tool_call_id="call_1"),
            "messages[0].content",
            "invalid_value",
        ),
        (message("user", content="\ud800"), "messages[0].content", "invalid_value"),
        (
            message("user", content=[TEXT_PART, {"type": "image_url", "image_url": {}}]),
            "messages[0].content[1]",
            "unsupported_parameter",
        ),
        (
            message("user", content=[{"type": "input_audio"}]),
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        (message("user", content=["a"]), "messages[0].content[0]", "invalid_value"),
        (
            message("user", content="a", tool_calls=[call()]),
            "messages[0].tool_calls",
            "invalid_value",
        ),
        (
            message("user", content="a", tool_call_id="call_1"),
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        (
            message("assistant", tool_calls=[call(id="é" * 129)]),
            "messages[0].tool_calls[0].id",
            "invalid_value",
        ),
        (
            message("assistant", tool_calls=[call(type="custom")]),
            "messages[0].tool_calls[0].type",
            "unsupported_parameter",
        ),
        (
            message("assistant", tool_calls=[call(function={"name": "f"})]),
            "messages[0].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
        (
            message("assistant", tool_calls=[call()] * 65),
            "messages[0].tool_calls",
            "array_above_max_length",
        ),
        (
            message("assistant", content="a", function_call={"name": "f"}),
            "messages[0].function_call",
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
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": {}}, "prompt", "invalid_value"),
        ({"prompt": 7}, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", "\ud800"]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ({"prompt": [1, True]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"prompt": [[1], [2**32]]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 9, "n": 16}, "n", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True, "prompt": ["a", [1]]}, "echo", "unsupported_parameter"),
        ({"echo": True, "logprobs": 0}, "echo", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_completion_parameter_is_refused_by_name(
    extra: dict[str, Any], param: str, code: str
) -> None:
    refusal = refusal_to(CompletionRequest, {**COMPLETION, **extra})
    assert refusal is not None
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)
    assert f"'{param}'" in refusal.message


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
        "function_call": "auto",
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
        "reasoning_effort": "high",
        "verbosity": "medium",
        "prediction": {"type": "content", "content": "x"},
        "provider": {},
    }
    assert refusal_to(ChatCompletionRequest, {**CHAT, **nothing}) is None
    nothing = {"best_of": 1, "echo": False, "suffix": None, "logprobs": None, "n": 1, "user": "BOB"}
    assert refusal_to(CompletionRequest, {**COMPLETION, **nothing}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "Hello", "tool_calls": None},
        {"content": None, "tool_calls": [call()]},
        {"content": None, "tool_calls": None},  # thoughts alone
        {"content": None, "tool_calls": []},
        {},
        {"content": '{"city": "Paris"}', "parsed": {"city": "Paris"}},
        {
            "content": None,
            "parsed": None,
            "tool_calls": [
                call(function={"name": "f", "arguments": "{}", "parsed_arguments": {"city": None}})
            ],
        },
    ],
)
def test_an_earlier_answer_can_be_sent_back_as_the_sdk_dumps_it(fields: dict[str, Any]) -> None:
    dumped: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "reasoning_content": "Hm.",
    }
    messages = message("assistant", **dumped, **fields)
    assert refusal_to(ChatCompletionRequest, {**CHAT, **messages}) is None


def test_text_parts_are_joined_by_line_breaks() -> None:
    refused = {"type": "refusal", "refusal": "two"}
    cached = {**TEXT_PART, "cache_control": {"type": "ephemeral"}}
    messages = message("assistant", content=[cached, refused])
    body = ChatCompletionRequest.model_validate({**CHAT, **messages})
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
FIELDS = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
NAMES = st.sampled_from(sorted(FIELDS)) | st.text()
PARTS_OF_MESSAGES = ["role", "content", "name", "tool_calls", "tool_call_id", "x"]
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(PARTS_OF_MESSAGES), JSON_VALUES | st.sampled_from(["user", "tool"])
    ),
    max_size=3,
)


def assert_sendable(body: ChatCompletionRequest | CompletionRequest) -> None:
    """Whatever is taken can be asked of a donor, unless it is too big."""
    around = Surroundings(b"12345678", b"s" * 16, "2026-11-22", "0f", 1)
    if isinstance(body, ChatCompletionRequest):
        requests: tuple[GenerateRequest, ...] = (chat_request(body, around),)
    else:
        requests = completion_requests(body, around)
    for request in requests:
        gen1.parse_body(gen1.encode_body(request))


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
            assert_sendable(taken)
            heard = {name for name in body if kind.model_fields[name].annotation is not Any}
            taken.model_dump_json(include=heard)  # raises for what is not Unicode
