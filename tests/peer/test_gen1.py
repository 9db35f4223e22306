from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tests.peer.mutations import damaged
from tokenplace import defaults
from tokenplace.errors import InvalidRequest, RequestTooBig, TokenplaceError
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    GenerateRequest,
    IdsInput,
    Input,
    JsonObject,
    JsonSchema,
    NamedTool,
    SamplingParams,
    TextInput,
    Tool,
    ToolCall,
    ToolChoice,
)
from tokenplace.peer.gen1 import Body, encode_body, parse_body

PATH = Path(__file__).resolve().parent.parent / "vectors" / "gen1.json"
VECTORS = json.loads(PATH.read_text())["bodies"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
USUAL = SamplingParams()


def meaning(body: Body) -> dict[str, Any]:
    return (
        input_meaning(body.input)
        | asdict(body.sampling)
        | {
            "logit_bias": [list(pair) for pair in body.sampling.logit_bias],
            "max_tokens": body.max_tokens,
            "stop": list(body.stop),
            "ignore_eog": body.ignore_eog,
            "n": body.n,
            "top_logprobs": body.top_logprobs,
            "response_format": format_meaning(body.output),
        }
    )


def input_meaning(asked: Input) -> dict[str, Any]:
    match asked:
        case TextInput(prompt):
            return {"prompt": prompt}
        case IdsInput(ids):
            return {"prompt_ids": list(ids)}
        case ChatInput():
            return chat_meaning(asked)


def chat_meaning(chat: ChatInput) -> dict[str, Any]:
    choice = chat.tool_choice
    return {
        "messages": [message_meaning(message) for message in chat.messages],
        "tools": [asdict(tool) for tool in chat.tools],
        "tool_choice": {"name": choice.name} if isinstance(choice, NamedTool) else choice.value,
        "parallel_tool_calls": chat.parallel_tool_calls,
    }


def message_meaning(message: ChatMessage) -> list[Any]:
    said = asdict(message)
    role, content, calls = said.pop("role"), said.pop("content"), list(said.pop("tool_calls"))
    rest = {"tool_calls": calls} | said
    rest = {name: value for name, value in rest.items() if value}
    return [role, content, rest] if rest else [role, content]


def format_meaning(output: JsonObject | JsonSchema | None) -> dict[str, str] | None:
    match output:
        case JsonSchema(schema):
            return {"type": "json_schema", "schema": schema}
        case JsonObject():
            return {"type": "json_object"}
    return None


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["body_hex"]) if "body_hex" in vector else vector["body"].encode()
    if vector["expect"] == "success":
        assert meaning(parse_body(body)) == vector["means"]
        return
    with pytest.raises(TokenplaceError) as refusal:
        parse_body(body)
    assert refusal.value.code == vector["expect"]
    assert refusal.value.param == vector["param"]


NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True)
TOOL_SCHEMAS = st.sampled_from(["", "{}", '{"type":"object"}'])
SCHEMAS = st.sampled_from(["{}", '{"type": "object"}', '{"enum":["\\u00fc","ü"]}'])
TOOLS = st.builds(Tool, NAMES, TEXT, TOOL_SCHEMAS)
CALLS = st.builds(ToolCall, TEXT, NAMES, TEXT)
MESSAGES = (
    st.builds(ChatMessage, st.sampled_from(["system", "user"]), TEXT)
    | st.builds(ChatMessage, st.just("assistant"), TEXT, st.lists(CALLS, max_size=2).map(tuple))
    | st.builds(ChatMessage, st.just("tool"), TEXT, st.just(()), TEXT, st.just("") | NAMES)
)
ABOVE_0 = st.floats(0, 1, exclude_min=True)
PENALTIES = st.floats(-2, 2)
IDS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=9).map(tuple)
ID_PROMPTS = st.builds(IdsInput, IDS)
BIASES = st.dictionaries(st.integers(0, (1 << 32) - 1), st.floats(-100, 100), max_size=5)


@st.composite
def chats(draw: st.DrawFn) -> ChatInput:
    tools = draw(st.lists(TOOLS, max_size=3, unique_by=lambda tool: tool.name))
    choices: list[ToolChoice | NamedTool] = [ToolChoice.AUTO, ToolChoice.NONE]
    if tools:
        choices += [ToolChoice.REQUIRED, NamedTool(tools[-1].name)]
    messages = draw(st.lists(MESSAGES, min_size=1, max_size=4))
    choice = draw(st.sampled_from(choices))
    return ChatInput(tuple(messages), tuple(tools), choice, draw(st.booleans()))


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    repeat_penalty = draw(st.just(1.0) | st.floats(0, 10, exclude_min=True))
    last_n = st.integers(0, defaults.MAX_REPEAT_LAST_N)
    return SamplingParams(
        temperature=draw(st.floats(0, 2)),
        top_k=draw(st.integers(0, defaults.MAX_TOP_K)),
        top_p=draw(ABOVE_0),
        min_p=draw(st.floats(0, 1)),
        typical_p=draw(ABOVE_0),
        repeat_penalty=repeat_penalty,
        # Without a penalty it means nothing, and does not cross.
        repeat_last_n=USUAL.repeat_last_n if repeat_penalty == 1 else draw(last_n),
        presence_penalty=draw(PENALTIES),
        frequency_penalty=draw(PENALTIES),
        logit_bias=tuple(sorted(draw(BIASES).items())),
    )


@st.composite
def requests(draw: st.DrawFn) -> GenerateRequest:
    stop = TEXT.filter(lambda text: 1 <= len(text.encode()) <= defaults.MAX_STOP_STRING_BYTES)
    return make_request(
        input=draw(chats() | st.builds(TextInput, TEXT.filter(bool)) | ID_PROMPTS),
        sampling=draw(samplings()),
        max_tokens=draw(st.none() | st.integers(1, defaults.MAX_NEW_TOKENS)),
        stop=tuple(draw(st.lists(stop, max_size=defaults.MAX_STOP_STRINGS))),
        ignore_eog=draw(st.booleans()),
        n=draw(st.integers(1, defaults.MAX_CHOICES)),
        top_logprobs=draw(st.none() | st.integers(0, defaults.MAX_TOP_LOGPROBS)),
        output=draw(st.none() | st.just(JsonObject()) | st.builds(JsonSchema, SCHEMAS)),
    )


@given(requests())
def test_what_is_encoded_means_the_same(request: GenerateRequest) -> None:
    body = parse_body(encode_body(request))
    assert body == Body(**{field.name: getattr(request, field.name) for field in fields(Body)})


def test_what_does_nothing_is_left_out() -> None:
    chat = ChatInput((ChatMessage("user", "x"),))
    assert set(json.loads(encode_body(make_request(input=chat)))) == {
        *("messages", "temperature", "top_k", "top_p", "min_p")
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.sampled_from(
    [
        *("messages", "prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "stop"),
        *("typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty", "logit_bias", "n"),
        *("top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
    ]
)


RIGHT = encode_body(
    make_request(
        input=ChatInput(
            (
                ChatMessage("assistant", "", (ToolCall("1", "look_up", "{}"),)),
                ChatMessage("tool", "x", (), "1", "look_up"),
            ),
            (Tool("look_up", "", '{"type":"object"}'),),
            NamedTool("look_up"),
        ),
        sampling=SamplingParams(repeat_penalty=1.1, logit_bias=((7, 1.5),)),
        stop=("x",),
        max_tokens=5,
        output=JsonSchema("{}"),
    )
)


@given(st.dictionaries(FIELDS, JSON).map(json.dumps).map(str.encode) | st.binary() | damaged(RIGHT))
def test_nothing_but_declared_errors(data: bytes) -> None:
    try:
        body = parse_body(data)
    except InvalidRequest as error:
        error.user_text.encode()
    else:
        assert body.max_tokens is None or 1 <= body.max_tokens <= defaults.MAX_NEW_TOKENS


def test_limits_of_counts_and_bytes() -> None:
    message = ChatMessage("user", "x")
    most = make_request(input=ChatInput((message,) * defaults.MAX_MESSAGES))
    assert parse_body(encode_body(most)).input == most.input
    more = make_request(input=ChatInput((message,) * (defaults.MAX_MESSAGES + 1)))
    with pytest.raises(InvalidRequest):
        parse_body(encode_body(more))
    longest = "ü" * (defaults.MAX_STOP_STRING_BYTES // 2)
    assert parse_body(encode_body(make_request(stop=(longest,)))).stop == (longest,)
    with pytest.raises(InvalidRequest):
        parse_body(encode_body(make_request(stop=(longest + "x",))))


def test_the_largest_body() -> None:
    room = defaults.MAX_BODY_BYTES - len(encode_body(make_request("x"))) + 1
    body = encode_body(make_request("x" * room))
    assert len(body) == defaults.MAX_BODY_BYTES
    assert parse_body(body).input == TextInput("x" * room)
    with pytest.raises(RequestTooBig):
        encode_body(make_request("x" * (room + 1)))
    with pytest.raises(RequestTooBig):
        parse_body(body + b" ")


@pytest.mark.parametrize(
    "request_",
    [
        make_request("\ud800"),
        make_request(sampling=SamplingParams(temperature=math.nan)),
        make_request(sampling=SamplingParams(top_p=math.inf)),
    ],
)
def test_what_json_cannot_hold_is_not_sent(request_: GenerateRequest) -> None:
    with pytest.raises(InvalidRequest):
        encode_body(request_)


@pytest.mark.parametrize("body", [b"[" * 3_000_000, b'{"a":' * 500_000, b'"' + b"[" * 100])
def test_depth_is_refused_before_it_is_parsed(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(body)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse_body(b'{"prompt":"x","new":' + b"9" * 10_000 + b"}")


def test_errors_never_quote_what_they_read() -> None:
    canary = "canary-7f3a"
    for body in (
        f'{{"prompt":"{canary}","{canary}":NaN}}',
        f'{{"prompt":"{canary}","stop":["{canary}","{canary * 40}"]}}',
        f'{{"{canary}":1,"{canary}":2}}',
        f'{{"prompt":"{canary}',
        f'{{"messages":[{{"role":"{canary}","content":"x"}}]}}',
    ):
        with pytest.raises(InvalidRequest) as refusal:
            parse_body(body.encode())
        assert canary not in refusal.value.user_text
        assert refusal.value.__cause__ is None
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None
