"""The bodies that apps send. Start at `ChatCompletionRequest`.

As strict as OpenAI: an unknown name is refused, so a typing error never passes for a wish that was
heard. Differs in names that users of llama.cpp know and OpenAI does not have: `top_k`, `min_p`,
`typical_p`, `repeat_penalty`, `repeat_last_n` and `ignore_eos`. What is not supported (tools,
logprobs …) is refused by name, but taken in the values that ask for nothing, because SDKs send
those. Numbers are those of gen/1 (docs/protocol.md, section 7).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tokenplace.api_shim.refusal import MAX_NAME_CHARS
from tokenplace.defaults import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_MODEL_NAME_CHARS,
    MAX_NEW_TOKENS,
    MAX_REPEAT_LAST_N,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_TOP_K,
)

_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,8}")

Ignored = Any
"""Read, and without effect: it asks for nothing that an answer could show."""


def unsupported(detail: str = "") -> PydanticCustomError:
    """The error of a wish that is understood and cannot be met. `detail` follows the name."""
    return PydanticCustomError("unsupported_parameter", "not supported", {"detail": detail})


class OnlyNeutral:
    """Annotation: takes only the values that ask for nothing."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = neutral

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def _check(self, value: object) -> object:
        if value in self._neutral:
            return value
        raise unsupported()


def invalid(reason: str) -> PydanticCustomError:
    """The error of a value that cannot be used."""
    return PydanticCustomError("invalid_value", "invalid", {"reason": reason})


def _list_of_stops(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _whole_unicode(value: str) -> str:
    """JSON can write half a surrogate pair, which is no text and has no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid("it is not valid Unicode.") from None
    return value


def _short_stop(value: str) -> str:
    if len(value.encode()) > MAX_STOP_STRING_BYTES:
        raise invalid(f"a stop string may have at most {MAX_STOP_STRING_BYTES} bytes.")
    return value


def _text_of_content(value: object) -> object:
    """A list of text parts is one text; models join them with line breaks, as llama.cpp does."""
    if not isinstance(value, list):
        return value
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind == "text" and isinstance(text, str):
            texts.append(text)
        elif kind in {"image_url", "input_audio", "file", "refusal"}:
            raise unsupported(f" (part {number} is of type {kind})")
        else:
            raise invalid(f"part {number} is not an object with type 'text' and a text.")
    return "\n".join(texts)


def _role_without_tools(value: object) -> object:
    if isinstance(value, str) and value in {"tool", "function"}:
        raise unsupported(f" {value}")
    return value


def _one_prompt(value: object) -> object:
    if isinstance(value, list):
        raise unsupported(" as an array")
    return value


def _few_ids(value: object) -> object:
    if isinstance(value, dict):
        if len(value) > MAX_LOGIT_BIAS:
            raise invalid(f"it may name at most {MAX_LOGIT_BIAS} token ids.")
        if not all(map(_TOKEN_ID.fullmatch, value)):
            raise invalid("its names must be token ids.")
    return value


def _is_deep(value: object) -> bool:
    """Is it nested deeper than a schema may be?"""
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        lists = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [inner for each in lists if isinstance(each, list) for inner in each]
    return any(isinstance(each, (dict, list)) for each in level)


def schema_text(schema: dict[str, Any]) -> str:
    """As it goes to a donor."""
    return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _sendable_schema(value: dict[str, Any]) -> dict[str, Any]:
    if _is_deep(value):
        raise invalid(f"it is nested more than {MAX_SCHEMA_DEPTH} deep.")
    try:
        text = schema_text(value)
    except ValueError:
        raise invalid("its numbers must be finite.") from None
    if len(_whole_unicode(text).encode()) > MAX_SCHEMA_BYTES:
        raise invalid(f"a schema may have at most {MAX_SCHEMA_BYTES} bytes.")
    return value


Null = Annotated[object, OnlyNeutral(None)]
NoList = Annotated[object, OnlyNeutral(None, [])]
Zero = Annotated[object, OnlyNeutral(None, 0)]
One = Annotated[object, OnlyNeutral(None, 1)]
Off = Annotated[object, OnlyNeutral(None, False)]
NoWord = Annotated[object, OnlyNeutral(None, "none")]
Empty = Annotated[object, OnlyNeutral(None, "")]
TextModality = Annotated[object, OnlyNeutral(None, ["text"])]

WholeUnicode = AfterValidator(_whole_unicode)
StopString = Annotated[str, Field(min_length=1), WholeUnicode, AfterValidator(_short_stop)]
Stop = Annotated[
    list[StopString] | None,
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
    BeforeValidator(_list_of_stops),
]
Content = Annotated[str, BeforeValidator(_text_of_content), WholeUnicode]
Prompt = Annotated[str, Field(min_length=1), BeforeValidator(_one_prompt), WholeUnicode]
Role = Annotated[
    Literal["system", "developer", "user", "assistant"], BeforeValidator(_role_without_tools)
]
MaxTokens = Annotated[int | None, Field(ge=1, le=MAX_NEW_TOKENS)]
Share = Annotated[float | None, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
ShareAbove0 = Annotated[float | None, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Penalty = Annotated[float | None, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Biases = Annotated[dict[str, Bias], BeforeValidator(_few_ids)]
Schema = Annotated[dict[str, Any], AfterValidator(_sendable_schema)]


class _Body(BaseModel):
    """Refuses unknown names: the first one, at once, so that a body of many costs nothing."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: object) -> object:
        for name in data if isinstance(data, dict) else ():
            if name not in cls._names():
                # JSON can name half a surrogate pair, which no answer could repeat.
                shown = str(name)[:MAX_NAME_CHARS].encode(errors="replace").decode()
                raise PydanticCustomError("unknown_parameter", "unknown", {"name": shown})
        return data

    @classmethod
    def _names(cls) -> set[str]:
        """As apps write them."""
        return {field.alias or name for name, field in cls.model_fields.items()}


class StreamOptions(_Body):
    """What else a stream carries."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class Message(_Body):
    """One turn. What earlier answers carried beside their text is read back without effect."""

    role: Role
    content: Content
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    reasoning_content: Ignored = None
    audio: Null = None
    tool_calls: NoList = None
    tool_call_id: Null = None
    function_call: Null = None


class NamedSchema(_Body):
    """A schema as OpenAI wraps it. It is held to the letter, `strict` or not."""

    # Not `schema`, which pydantic's own models have.
    schema_: Annotated[Schema, Field(alias="schema")]
    name: Ignored = None
    description: Ignored = None
    strict: Ignored = None


class ResponseFormat(_Body):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _needs_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid("type json_schema goes with a json_schema.")
        return self


class _GenerationRequest(_Body):
    """What both kinds of completion share."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME_CHARS), WholeUnicode]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    temperature: Annotated[float | None, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = None
    top_p: Share = None
    stop: Stop = None
    seed: Annotated[int | None, Field(ge=-(2**63), le=2**63 - 1)] = None
    # llama.cpp's names, beyond OpenAI's
    top_k: Annotated[int | None, Field(ge=0, le=MAX_TOP_K)] = None
    min_p: Share = None
    typical_p: ShareAbove0 = None
    repeat_penalty: Annotated[float | None, Field(gt=0.0, le=10.0, allow_inf_nan=False)] = None
    repeat_last_n: Annotated[int | None, Field(ge=0, le=MAX_REPEAT_LAST_N)] = None
    ignore_eos: bool | None = None

    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    logit_bias: Biases | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None

    user: Ignored = None

    @property
    def includes_usage(self) -> bool:
        """Does the stream end with a chunk of token counts?"""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(_GenerationRequest):
    """Body of POST /chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: MaxTokens = None
    response_format: ResponseFormat | None = None

    metadata: Ignored = None
    moderation: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None

    audio: Null = None
    functions: NoList = None
    function_call: NoWord = None
    logprobs: Off = None
    modalities: TextModality = None
    prediction: Null = None
    reasoning_effort: NoWord = None
    tool_choice: NoWord = None
    tools: NoList = None
    top_logprobs: Zero = None
    verbosity: Null = None
    web_search_options: Null = None


class CompletionRequest(_GenerationRequest):
    """Body of POST /completions."""

    prompt: Prompt
    best_of: One = None
    echo: Off = None
    logprobs: Null = None
    suffix: Empty = None
