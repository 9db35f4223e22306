"""gen/1: the JSON inside a sealed request (docs/protocol.md, section 7). Start at `encode_body` and
`parse_body`.

Pure. Only these fields cross the seal, whatever an app sent. Differs from OpenAI's bodies: fields
have one type each (`null` and 5.0 for 5 are refused), and what is not known is ignored, since a
field that must not be ignored is named in `requires`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenplace import defaults
from tokenplace.errors import InvalidRequest
from tokenplace.generation import (
    GenerateRequest,
    Input,
    JsonObject,
    JsonSchema,
    SamplingParams,
)
from tokenplace.peer.gen1_chat import read_schema
from tokenplace.peer.gen1_fields import JsonReader, flag, integer, is_text, items
from tokenplace.peer.gen1_input import input_fields, read_input, read_json, to_json
from tokenplace.peer.gen1_sampling import read_sampling, sampling_fields


@dataclass(frozen=True, slots=True)
class Body:
    """What gen/1 says of a request. The fields are `GenerateRequest`'s."""

    input: Input
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

    Raises as `to_json`.
    """
    fields = sampling_fields(request.sampling) | input_fields(request.input)
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
    return to_json(fields)


def parse_body(body: bytes) -> Body:
    """Raises `RequestTooBig`, or `InvalidRequest` with `param` naming the field; never quotes what
    it read.
    """
    fields, reader = read_json(body)
    return Body(
        input=read_input(fields, reader),
        sampling=read_sampling(fields),
        max_tokens=integer(fields, "max_tokens", 1, defaults.MAX_NEW_TOKENS),
        stop=_stop(fields),
        ignore_eog=flag(fields, "ignore_eog", default=False),
        n=integer(fields, "n", 1, defaults.MAX_CHOICES) or 1,
        top_logprobs=integer(fields, "top_logprobs", 0, defaults.MAX_TOP_LOGPROBS),
        output=_output(fields, reader),
    )


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
