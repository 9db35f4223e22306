"""OpenAI's bodies to requests."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from tests.api_shim.openai.valid import CHATS, COMPLETIONS
from tests.api_shim.serving import CHAT, TINY_MODEL
from tokenplace.api_shim.body import parse_body, parse_json
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.openai.translate import chat_request, completion_requests
from tokenplace.api_shim.surroundings import Surroundings
from tokenplace.generation import (
    NO_WISHES,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    IdsInput,
    JsonObject,
    JsonSchema,
    NamedTool,
    SamplingParams,
    TextInput,
    Tool,
    ToolCall,
    ToolChoice,
    Wishes,
)
from tokenplace.peer import gen1

AROUND = Surroundings(b"12345678", b"s" * 16, "2026-11-22", "0f", 1)


def chat_of(body: dict[str, Any]) -> GenerateRequest:
    parsed = parse_body(ChatCompletionRequest, parse_json(json.dumps(body).encode()))
    return chat_request(parsed, AROUND)


def completions_of(body: dict[str, Any]) -> tuple[GenerateRequest, ...]:
    parsed = parse_body(CompletionRequest, parse_json(json.dumps(body).encode()))
    return completion_requests(parsed, AROUND)


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def message_of(turn: ChatMessage) -> dict[str, Any]:
    """The turn as an app would write it."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.tool_calls
        ]
    if turn.role == "tool":
        message |= {"tool_call_id": turn.tool_call_id}
        message |= {"name": turn.name} if turn.name else {}
    return message


def expected_message(message: dict[str, Any]) -> dict[str, Any]:
    role = message["role"]
    said = {"role": "system" if role == "developer" else role}
    said["content"] = text_of(message.get("content"))
    kept = ("tool_call_id", "name") if role == "tool" else ()
    if message.get("tool_calls"):
        said["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": arguments_of(call)}}
            for call in message["tool_calls"]
        ]
    return said | {name: message[name] for name in kept if name in message}


def arguments_of(call: dict[str, Any]) -> str:
    """As every template can use them."""
    text: str = call["function"]["arguments"]
    with suppress(ValueError):
        if text == "" or isinstance(json.loads(text), dict):
            return text
    return json.dumps({"INVALID_JSON": text}, ensure_ascii=False, separators=(",", ":"))


def check_shared(request: GenerateRequest, body: dict[str, Any]) -> None:
    """Everything that is said of an answer is what the body says of it."""
    sampling = request.sampling
    for name in ("temperature", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"):
        said = body.get(name)
        assert getattr(sampling, name) == (
            getattr(SamplingParams(), name) if said is None else said
        )
    assert sampling.top_k == (40 if body.get("top_k") is None else max(0, body["top_k"]))
    for name in ("presence_penalty", "frequency_penalty"):
        assert getattr(sampling, name) == (body.get(name) or 0)
    assert sampling.top_p == pytest.approx(0.95 if body.get("top_p") is None else body["top_p"])
    assert sampling.is_in_range
    biases = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    assert biases == (body.get("logit_bias") or {})
    seed = body.get("seed")
    expected_seed = AROUND.random_seed if seed is None else seed.to_bytes(8, "big", signed=True)
    assert request.seed == expected_seed
    stop = body.get("stop") or []
    assert list(request.stop) == ([stop] if isinstance(stop, str) else stop)
    assert request.n == (body.get("n") or 1)
    assert request.streamed == bool(body.get("stream"))
    assert request.ignore_eog == bool(body.get("ignore_eos"))
    assert request.model == body["model"]
    assert (request.cache_scope, request.as_of) == (AROUND.cache_scope, AROUND.as_of)
    wishes, provider = request.wishes, body.get("provider") or {}
    for name in ("order", "only", "ignore", "quantizations"):
        assert list(getattr(wishes, name)) == (provider.get(name) or [])
    assert wishes.may_fall_back == (provider.get("allow_fallbacks") is not False)
    assert wishes.max_latency_s == provider.get("max_latency")


def check_gen1(request: GenerateRequest) -> None:
    """Every donor takes it, and reads the same."""
    read = gen1.parse_body(gen1.encode_body(request))
    if request.sampling.repeat_penalty == 1:  # nothing is looked back at
        request = replace(request, sampling=replace(request.sampling, repeat_last_n=64))
    for name in ("input", "sampling", "max_tokens", "stop", "ignore_eog", "n", "output"):
        assert getattr(read, name) == getattr(request, name)
    assert read.top_logprobs == request.top_logprobs


@given(CHATS)
def test_any_valid_chat_says_the_same_as_a_request(body: dict[str, Any]) -> None:
    request = chat_of(body)
    check_shared(request, body)
    chat = request.input
    assert isinstance(chat, ChatInput)
    assert list(map(message_of, chat.messages)) == list(map(expected_message, body["messages"]))
    for tool, said in zip(chat.tools, body.get("tools", []), strict=True):
        function = said["function"]
        assert (tool.name, tool.description) == (
            function["name"],
            function.get("description") or "",
        )
        parameters = function.get("parameters")
        assert (json.loads(tool.parameters) if tool.parameters else None) == parameters
    choice: Any = body.get("tool_choice") or "auto"
    if isinstance(chat.tool_choice, NamedTool):
        assert chat.tool_choice.name == choice["function"]["name"]
    else:
        assert chat.tool_choice == choice
    assert chat.parallel_tool_calls == (body.get("parallel_tool_calls") is not False)
    max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    assert request.max_tokens == (None if max_tokens == -1 else max_tokens)
    expected = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    assert request.top_logprobs == expected
    match request.output:
        case JsonSchema(schema):
            assert json.loads(schema) == body["response_format"]["json_schema"]["schema"]
        case JsonObject():
            assert body["response_format"] == {"type": "json_object"}
        case None:
            assert (body.get("response_format") or {"type": "text"}) == {"type": "text"}
    check_gen1(request)


@given(COMPLETIONS)
def test_any_valid_completion_says_the_same_as_requests(body: dict[str, Any]) -> None:
    prompt = body["prompt"]
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    requests = completions_of(body)
    for request, said in zip(requests, [prompt] if is_one else prompt, strict=True):
        check_shared(request, body)
        if isinstance(said, str):
            assert request.input == TextInput(said)
        else:
            assert request.input == IdsInput(tuple(said))
        max_tokens = body.get("max_tokens") or 16
        assert request.max_tokens == (None if max_tokens == -1 else max_tokens)
        assert request.top_logprobs == body.get("logprobs")
        assert request.output is None
        check_gen1(request)


def test_what_is_not_said_has_the_usual_value() -> None:
    request = chat_of(CHAT)
    assert request.sampling == SamplingParams()
    assert request.seed == AROUND.random_seed
    assert request.max_tokens is None
    assert request.stop == ()
    assert request.top_logprobs is None
    assert request.wishes is NO_WISHES
    assert not request.streamed
    (raw,) = completions_of({"model": TINY_MODEL, "prompt": "Once"})
    assert raw.max_tokens == 16  # OpenAI's own limit


def test_a_conversation_with_tools_arrives() -> None:
    weather = {"type": "object", "properties": {"stadt": {"const": "Köln"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {
        "model": TINY_MODEL,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [{**call, "index": 0}]},
            {"role": "tool", "content": "yes", "tool_call_id": "call_1", "name": "f"},
            {"role": "tool", "content": "no", "tool_call_id": "call_2", "name": "what it found"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": weather}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert chat_of(body).input == ChatInput(
        (
            ChatMessage("system", "Be brief."),
            ChatMessage("user", "Rain?"),
            ChatMessage("assistant", "", tool_calls=(ToolCall("call_1", "f", "{}"),)),
            ChatMessage("tool", "yes", tool_call_id="call_1", name="f"),
            ChatMessage("tool", "no", tool_call_id="call_2"),
        ),
        tools=(Tool("f", "", '{"type":"object","properties":{"stadt":{"const":"Köln"}}}'),),
        tool_choice=NamedTool("f"),
        parallel_tool_calls=False,
    )


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("", ""),
        ('{"city": "Paris"}', '{"city": "Paris"}'),
        ('{"city": "Par', '{"INVALID_JSON":"{\\"city\\": \\"Par"}'),
        ("[1]", '{"INVALID_JSON":"[1]"}'),
        ('{"t": NaN}', '{"INVALID_JSON":"{\\"t\\": NaN}"}'),
        ('{"t": "\\ud83d"}', '{"INVALID_JSON":"{\\"t\\": \\"\\\\ud83d\\"}"}'),
        ("[" * 100_000, '{"INVALID_JSON":"' + "[" * 100_000 + '"}'),
    ],
)
def test_a_call_that_was_written_wrong_does_not_end_the_conversation(
    arguments: str, shown: str
) -> None:
    call = {"id": "call_1", "function": {"name": "f", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "That was no JSON.", "tool_call_id": "call_1"},
    ]
    chat = chat_of({"model": TINY_MODEL, "messages": turns}).input
    assert isinstance(chat, ChatInput)
    assert chat.messages[1].tool_calls == (ToolCall("call_1", "f", shown),)


@pytest.mark.parametrize(
    ("said", "penalty", "n_back"),
    [
        ({"repetition_penalty": 1.5}, 1.5, 65_536),
        ({"repetition_penalty": 1.5, "repeat_last_n": 8}, 1.5, 8),
        ({"repetition_penalty": 1.5, "repeat_penalty": 1.25}, 1.25, 64),
    ],
)
def test_vllms_name_of_the_penalty_looks_back_at_everything(
    said: dict[str, Any], penalty: float, n_back: int
) -> None:
    sampling = chat_of({**CHAT, **said}).sampling
    assert (sampling.repeat_penalty, sampling.repeat_last_n) == (penalty, n_back)


def test_said_values_arrive() -> None:
    said = {
        "top_p": 0,
        "seed": -1,
        "stop": "END",
        "logit_bias": {"70000": -100, "7": 1.5},
        "tool_choice": "none",
        "provider": {"order": ["self"], "allow_fallbacks": False, "max_latency": 2},
        "logprobs": True,
    }
    request = chat_of({**CHAT, **said})
    assert 0 < request.sampling.top_p < 1e-300
    assert request.seed == b"\xff" * 8
    assert request.stop == ("END",)
    assert request.sampling.logit_bias == ((7, 1.5), (70000, -100.0))
    assert isinstance(request.input, ChatInput)
    assert request.input.tool_choice is ToolChoice.NONE
    assert request.wishes == Wishes(order=("self",), may_fall_back=False, max_latency_s=2)
    assert request.top_logprobs == 0
