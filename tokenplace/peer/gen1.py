"""gen/1: the JSON inside a sealed request (docs/protocol.md, section 7). Start at `encode_body` and
`parse_body`.

Pure. Only these fields cross the seal, whatever an app sent. Differs from OpenAI's bodies: fields
have one type each (`null` and 5.0 for 5 are refused), and what is not known is ignored, since a
field that must not be ignored is named in `requires`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import InvalidRequest, RequestTooBig
from tokenplace.generation import (
    ChatInput,
    GenerateRequest,
    JsonObject,
    JsonSchema,
    SamplingParams,
    TextInput,
)
from tokenplace.peer.gen1_chat import CHAT_FIELDS, chat_fields, read_chat, read_schema
from tokenplace.peer.gen1_fields import JsonReader, flag, integer, is_text, items, number

MAX_DEPTH: Final = 16
_USUAL: Final = SamplingParams()
_ID: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_MAX_ID: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Body:
    """What gen/1 says of a request. The fields are `GenerateRequest`'s."""

    input: ChatInput | TextInput
    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eog: bool
    n: int
    top_logprobs: int | None
    output: JsonObject | JsonSchema | None


def encode_body(request: GenerateRequest) -> bytes:
    """Every field that does something, and the four of the first version always: a donor of another
    version then draws the same tokens.

    Raises `RequestTooBig` over `MAX_BODY_BYTES` and `InvalidRequest` for text or numbers that JSON
    cannot hold.
    """
    fields = _sampling_fields(request.sampling)
    if isinstance(request.input, ChatInput):
        fields |= chat_fields(request.input)
    else:
        fields["prompt"] = request.input.prompt
    if request.max_tokens is not None:
        fields["max_tokens"] = request.max_tokens
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.ignore_eog:
        fields["ignore_eog"] = True
    if request.n != 1:
        fields["n"] = request.n
    if request.top_logprobs is not None:
        fields["top_logprobs"] = request.top_logprobs
    match request.output:
        case JsonObject():
            fields["response_format"] = {"type": "json_object"}
        case JsonSchema(schema):
            fields["response_format"] = {"type": "json_schema", "schema": schema}
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = text.encode()
    except ValueError:  # its message would quote the text
        raise InvalidRequest("text must be valid Unicode and numbers finite") from None
    if len(body) > defaults.MAX_BODY_BYTES:
        raise RequestTooBig
    return body


def parse_body(body: bytes) -> Body:
    """Raises `RequestTooBig`, or `InvalidRequest` with `param` naming the field; never quotes what
    it read.
    """
    if len(body) > defaults.MAX_BODY_BYTES:
        raise RequestTooBig
    reader = JsonReader()
    fields = reader.read(body, MAX_DEPTH, what="the body")
    return Body(
        input=_input(fields, reader),
        sampling=_sampling(fields),
        max_tokens=integer(fields, "max_tokens", 1, defaults.MAX_NEW_TOKENS),
        stop=_stop(fields),
        ignore_eog=flag(fields, "ignore_eog", default=False),
        n=integer(fields, "n", 1, defaults.MAX_CHOICES) or 1,
        top_logprobs=integer(fields, "top_logprobs", 0, defaults.MAX_TOP_LOGPROBS),
        output=_output(fields, reader),
    )


# ---------------------------------------------------------------- sampling


def _sampling_fields(sampling: SamplingParams) -> dict[str, object]:
    fields: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    if sampling.typical_p != 1:
        fields["typical_p"] = sampling.typical_p
    if sampling.repeat_penalty != 1:
        fields["repeat_penalty"] = sampling.repeat_penalty
        fields["repeat_last_n"] = sampling.repeat_last_n
    if sampling.presence_penalty != 0:
        fields["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty != 0:
        fields["frequency_penalty"] = sampling.frequency_penalty
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    return fields


def _sampling(fields: dict[str, Any]) -> SamplingParams:
    top_k = integer(fields, "top_k", 0, defaults.MAX_TOP_K)
    last_n = integer(fields, "repeat_last_n", 0, defaults.MAX_REPEAT_LAST_N)
    return SamplingParams(
        temperature=number(fields, "temperature", _USUAL.temperature, lambda t: 0 <= t <= 2),
        top_k=_USUAL.top_k if top_k is None else top_k,
        top_p=number(fields, "top_p", _USUAL.top_p, lambda p: 0 < p <= 1),
        min_p=number(fields, "min_p", _USUAL.min_p, lambda p: 0 <= p <= 1),
        typical_p=number(fields, "typical_p", 1.0, lambda p: 0 < p <= 1),
        repeat_penalty=number(fields, "repeat_penalty", 1.0, lambda r: 0 < r <= 10),
        repeat_last_n=_USUAL.repeat_last_n if last_n is None else last_n,
        presence_penalty=number(fields, "presence_penalty", 0.0, _is_penalty),
        frequency_penalty=number(fields, "frequency_penalty", 0.0, _is_penalty),
        logit_bias=_logit_bias(fields),
    )


def _is_penalty(value: float) -> bool:
    return -2 <= value <= 2


def _logit_bias(fields: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    """By ascending id: JSON objects have no order, and ids one spelling."""
    biases = fields.get("logit_bias", {})
    if type(biases) is not dict or len(biases) > defaults.MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias must be an object of at most {defaults.MAX_LOGIT_BIAS} fields",
            param="logit_bias",
        )
    for token_id, bias in biases.items():
        if (
            not _ID.fullmatch(token_id)
            or int(token_id) > _MAX_ID
            or type(bias) not in (int, float)
            or not -100 <= bias <= 100
        ):
            raise InvalidRequest(
                "logit_bias must have numbers from -100 to 100 by token id", param="logit_bias"
            )
    return tuple(sorted((int(token_id), float(bias)) for token_id, bias in biases.items()))


# ---------------------------------------------------------------- what else there is


def _input(fields: dict[str, Any], reader: JsonReader) -> ChatInput | TextInput:
    if ("messages" in fields) == ("prompt" in fields):
        raise InvalidRequest("exactly one of messages and prompt is needed", param="messages")
    if "messages" in fields:
        return read_chat(fields, reader)
    for name in CHAT_FIELDS:
        if name in fields:
            raise InvalidRequest(f"{name} needs messages", param=name)
    prompt = fields["prompt"]
    if not is_text(prompt) or not prompt:
        raise InvalidRequest("prompt must be text and not empty", param="prompt")
    return TextInput(prompt)


def _stop(fields: dict[str, Any]) -> tuple[str, ...]:
    strings = items(fields, "stop", 0, defaults.MAX_STOP_STRINGS, param="stop")
    for string in strings:
        if not is_text(string) or not 1 <= len(string.encode()) <= defaults.MAX_STOP_STRING_BYTES:
            raise InvalidRequest(
                f"a stop string must be 1 to {defaults.MAX_STOP_STRING_BYTES} bytes", param="stop"
            )
    return tuple(strings)


def _output(fields: dict[str, Any], reader: JsonReader) -> JsonObject | JsonSchema | None:
    if "response_format" not in fields:
        return None
    wanted = fields["response_format"]
    match wanted:
        case {"type": "json_object"}:
            return JsonObject()
        case {"type": "json_schema"}:
            param = "response_format.schema"
            return JsonSchema(read_schema(wanted, "schema", reader, param=param))
    raise InvalidRequest(
        "response_format must be an object of type json_object or json_schema",
        param="response_format",
    )
