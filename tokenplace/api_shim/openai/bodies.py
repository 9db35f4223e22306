"""The bodies that apps send. Start at `ChatCompletionRequest`.

As strict as OpenAI: an unknown name is refused, so a typing error never passes for a wish that was
heard. Differs in names that users of llama.cpp know and OpenAI does not have: `top_k`, `min_p`,
`typical_p`, `repeat_penalty`, `repeat_last_n` and `ignore_eos`; in `repetition_penalty`, which
users of vLLM know; and in `provider`, which users of OpenRouter know. What is not supported is
refused by name, but taken in the values that ask for nothing, because SDKs send those. Numbers are
those of gen/1 (docs/protocol.md, section 7), and -1 where those programs say "no limit" so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tokenplace.api_shim.openai.fields import (
    Biases,
    Body,
    Empty,
    Ignored,
    JsonValues,
    MaxTokens,
    ModelName,
    NoList,
    NoWord,
    Null,
    One,
    Penalty,
    RepeatPenalty,
    Schema,
    Share,
    ShareAbove0,
    Stop,
    TextModality,
    UsualVerbosity,
    WishList,
    invalid,
    unsupported,
)
from tokenplace.api_shim.openai.inputs import OneOrMany, Prompt
from tokenplace.api_shim.openai.messages import Message, Tool, ToolChoiceField
from tokenplace.defaults import (
    API_MAX_CHOICES,
    API_MAX_PROMPTS,
    MAX_CHOICES,
    MAX_COMPLETIONS_LOGPROBS,
    MAX_MESSAGES,
    MAX_REPEAT_LAST_N,
    MAX_TOOLS,
    MAX_TOP_K,
    MAX_TOP_LOGPROBS,
)
from tokenplace.generation import NamedTool, ToolChoice


class StreamOptions(Body):
    """What else a stream carries."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class Provider(Body):
    """Which donors may answer, in OpenRouter's words; donors are named by peer id.

    max_latency: seconds to the first token.
    """

    order: WishList = None
    only: WishList = None
    ignore: WishList = None
    allow_fallbacks: bool | None = None
    quantizations: WishList = None
    max_latency: Annotated[float | None, Field(gt=0.0, allow_inf_nan=False)] = None


class GenerationBody(Body):
    """What both kinds of completion share."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    temperature: Annotated[float | None, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = None
    top_p: Share = None
    stop: Stop = None
    seed: Annotated[int | None, Field(ge=-(2**63), le=2**63 - 1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    logit_bias: Biases | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    # llama.cpp's names, beyond OpenAI's
    top_k: Annotated[int | None, Field(ge=-1, le=MAX_TOP_K)] = None
    min_p: Share = None
    typical_p: ShareAbove0 = None
    repeat_penalty: RepeatPenalty = None
    repeat_last_n: Annotated[int | None, Field(ge=0, le=MAX_REPEAT_LAST_N)] = None
    ignore_eos: bool | None = None
    # vLLM's: a `repeat_penalty` that looks back at everything
    repetition_penalty: RepeatPenalty = None
    # OpenRouter's
    provider: Provider | None = None

    user: Ignored = None

    @property
    def includes_usage(self) -> bool:
        """Does the stream end with a chunk of token counts?"""
        return bool(self.stream_options and self.stream_options.include_usage)


# ---------------------------------------------------------------- chat


class NamedSchema(Body):
    """A schema as OpenAI wraps it. It is held to the letter, `strict` or not."""

    # Not `schema`, which pydantic's own models have.
    schema_: Annotated[Schema, Field(alias="schema")]
    name: Ignored = None
    description: Ignored = None
    strict: Ignored = None


class ResponseFormat(Body):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _needs_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid("type json_schema goes with a json_schema.")
        return self


class ChatCompletionRequest(GenerationBody):
    """Body of POST /chat/completions.

    reasoning_effort: taken in every value that OpenAI knows, and without effect: how much a model
    thinks is its own affair, and what it thinks is in the answer's `reasoning_content`.
    metadata: comes back in the answer, and goes nowhere else.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: MaxTokens = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS, fail_fast=True)] = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    metadata: JsonValues | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    moderation: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None

    audio: Null = None
    functions: NoList = None
    function_call: NoWord = None
    modalities: TextModality = None
    verbosity: UsualVerbosity = None
    web_search_options: Null = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise invalid("it needs logprobs: true.", "top_logprobs")
        names = [tool.function.name for tool in self.tools or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid("another tool has that name.", "tools", index, "function", "name")
        match self.tool_choice:
            case NamedTool(name) if name not in names:
                raise invalid("it is none of the tools.", "tool_choice", "function", "name")
            case ToolChoice.REQUIRED if not names:
                raise invalid("it needs tools.", "tool_choice")
        return self


# ---------------------------------------------------------------- text


Prompts = Annotated[tuple[Prompt, ...], OneOrMany(API_MAX_PROMPTS)]


class CompletionRequest(GenerationBody):
    """Body of POST /completions."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_COMPLETIONS_LOGPROBS)] = None
    best_of: One = None
    suffix: Empty = None

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if len(self.prompt) * (self.n or 1) > API_MAX_CHOICES:
            raise invalid(f"prompts times n may be at most {API_MAX_CHOICES}.", "n")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise unsupported(" with token ids, whose text is not known,", "echo")
        if self.echo and self.logprobs is not None:
            raise unsupported(" together with logprobs", "echo")
        return self
