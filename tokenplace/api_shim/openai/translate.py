"""OpenAI's bodies to requests. Start at `chat_request` and `completion_requests`.

Pure: clock and dice are arguments.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import suppress
from typing import Final

from tokenplace.api_shim.openai.bodies import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
    Provider,
    ResponseFormat,
)
from tokenplace.api_shim.openai.fields import NO_LIMIT, compact_json, is_tool_name, sendable_object
from tokenplace.api_shim.openai.inputs import Prompt
from tokenplace.api_shim.openai.messages import Message, Tool
from tokenplace.api_shim.request_id import journal_id
from tokenplace.api_shim.surroundings import Surroundings
from tokenplace.defaults import COMPLETIONS_MAX_TOKENS, MAX_REPEAT_LAST_N
from tokenplace.generation import (
    NO_WISHES,
    SEED_BYTES,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    IdsInput,
    Input,
    JsonObject,
    JsonSchema,
    SamplingParams,
    TextInput,
    ToolCall,
    ToolChoice,
    Wishes,
)
from tokenplace.generation import Tool as AskedTool
from tokenplace.router.journal import part_id

_SAMPLING_NAMES: Final = tuple(
    field.name for field in dataclasses.fields(SamplingParams) if field.name != "logit_bias"
)

INVALID_JSON: Final = "INVALID_JSON"  # the name that Anthropic's documentation gives it


def chat_request(body: ChatCompletionRequest, around: Surroundings) -> GenerateRequest:
    """The request of a chat. Of two limits the newer name counts."""
    chat = ChatInput(
        messages=tuple(map(_message, body.messages)),
        tools=tuple(map(_tool, body.tools or ())),
        tool_choice=body.tool_choice or ToolChoice.AUTO,
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )
    max_tokens = body.max_completion_tokens or body.max_tokens
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = _request(body, chat, max_tokens, top_logprobs, around)
    return dataclasses.replace(request, output=_output(body.response_format))


def completion_requests(
    body: CompletionRequest, around: Surroundings
) -> tuple[GenerateRequest, ...]:
    """The requests of a raw completion, one for each prompt."""
    max_tokens = body.max_tokens or COMPLETIONS_MAX_TOKENS
    return tuple(
        dataclasses.replace(
            _request(body, _raw_input(prompt), max_tokens, body.logprobs, around),
            id=part_id(journal_id(around.id), number),
        )
        for number, prompt in enumerate(body.prompt)
    )


def _request(
    body: GenerationBody,
    input_: Input,
    max_tokens: int | None,
    top_logprobs: int | None,
    around: Surroundings,
) -> GenerateRequest:
    return GenerateRequest(
        model=body.model,
        input=input_,
        sampling=_sampling(body),
        seed=around.random_seed if body.seed is None else _seed_bytes(body.seed),
        cache_scope=around.cache_scope,
        as_of=around.as_of,
        max_tokens=None if max_tokens == NO_LIMIT else max_tokens,
        stop=tuple(body.stop or ()),
        ignore_eog=bool(body.ignore_eos),
        streamed=bool(body.stream),
        n=body.n or 1,
        top_logprobs=top_logprobs,
        wishes=wishes_of(body.provider),
        id=journal_id(around.id),
    )


def _raw_input(prompt: Prompt) -> TextInput | IdsInput:
    return TextInput(prompt) if isinstance(prompt, str) else IdsInput(prompt)


def _message(turn: Message) -> ChatMessage:
    """A tool's name crosses if it is one; apps put other things there, and mostly nothing."""
    is_named = turn.role == "tool" and isinstance(turn.name, str) and is_tool_name(turn.name)
    return ChatMessage(
        "system" if turn.role == "developer" else turn.role,
        turn.content or "",
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, _arguments(call.function.arguments))
            for call in turn.tool_calls or ()
        ),
        tool_call_id=turn.tool_call_id or "",
        name=turn.name if is_named else "",
    )


def _arguments(text: str) -> str:
    """A JSON object, as templates need, or empty. A model that erred, or that its limit of tokens
    cut, wrote none; the app tells it so in the next turn, so it is shown what it wrote.
    """
    with suppress(ValueError, RecursionError):
        value = json.loads(text or "{}")
        if isinstance(value, dict):
            sendable_object(value)
            return text
    return compact_json({INVALID_JSON: text})


def _tool(tool: Tool) -> AskedTool:
    function = tool.function
    parameters = "" if function.parameters is None else compact_json(function.parameters)
    return AskedTool(function.name, function.description or "", parameters)


def _output(wanted: ResponseFormat | None) -> JsonObject | JsonSchema | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return JsonObject()
    return JsonSchema(compact_json(wanted.json_schema.schema_))


def _seed_bytes(seed: int) -> bytes:
    return seed.to_bytes(SEED_BYTES, "big", signed=True)


def _sampling(body: GenerationBody) -> SamplingParams:
    said = {name: value for name in _SAMPLING_NAMES if (value := getattr(body, name)) is not None}
    if "top_p" in said:
        # OpenAI takes 0, gen/1 does not: the smallest share keeps the one most likely token too.
        said["top_p"] = max(said["top_p"], sys.float_info.min)
    if "top_k" in said:  # -1 keeps all, as 0 does
        said["top_k"] = max(said["top_k"], 0)
    if body.repetition_penalty is not None and body.repeat_penalty is None:
        said["repeat_penalty"] = body.repetition_penalty
        said.setdefault("repeat_last_n", MAX_REPEAT_LAST_N)
    biases = tuple(
        sorted((int(token_id), bias) for token_id, bias in (body.logit_bias or {}).items())
    )
    return SamplingParams(**said, logit_bias=biases)


def wishes_of(provider: Provider | None) -> Wishes:
    """Which donors an app wants."""
    if provider is None:
        return NO_WISHES
    return Wishes(
        order=tuple(provider.order or ()),
        only=tuple(provider.only or ()),
        ignore=tuple(provider.ignore or ()),
        may_fall_back=provider.allow_fallbacks is not False,
        quantizations=tuple(provider.quantizations or ()),
        max_latency_s=provider.max_latency,
    )
