"""gen/1: the JSON inside a sealed request (docs/protocol.md, section 7). Start at `encode_body` and
`parse_body`.

Pure. Only these fields cross the seal, whatever an app sent. Differs from OpenAI's bodies: fields
have one type each (`null` and 5.0 for 5 are refused), and what is not known is ignored, since a
field that must not be ignored is named in `requires`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeGuard

from tokenplace import defaults
from tokenplace.errors import InvalidRequest, RequestTooBig
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    GenerateRequest,
    SamplingParams,
    TextInput,
)

MAX_DEPTH: Final = 16
_ABSENT: Final = SamplingParams()
_ROLES: Final = frozenset({"system", "user", "assistant"})
_STRING: Final = re.compile(rb'"[^"]*"?')
_BRACKETS: Final = bytes.maketrans(b"[]{}", b"()()")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Body:
    """What gen/1 says of a request. The fields are `GenerateRequest`'s."""

    input: ChatInput | TextInput
    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eog: bool


def encode_body(request: GenerateRequest) -> bytes:
    """Every field that has a value, defaults too: a donor of another version then draws the same
    tokens.

    Raises `RequestTooBig` over `MAX_BODY_BYTES` and `InvalidRequest` for text or numbers that JSON
    cannot hold.
    """
    sampling = request.sampling
    fields: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    if isinstance(request.input, ChatInput):
        fields["messages"] = [
            {"role": message.role, "content": message.content} for message in request.input.messages
        ]
    else:
        fields["prompt"] = request.input.prompt
    if request.max_tokens is not None:
        fields["max_tokens"] = request.max_tokens
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.ignore_eog:
        fields["ignore_eog"] = True
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
    fields = _parse_json(body)
    top_k = _integer(fields, "top_k", 0, defaults.MAX_TOP_K)
    return Body(
        input=_input(fields),
        sampling=SamplingParams(
            temperature=_number(fields, "temperature", _ABSENT.temperature, lambda t: 0 <= t <= 2),
            top_k=_ABSENT.top_k if top_k is None else top_k,
            top_p=_number(fields, "top_p", _ABSENT.top_p, lambda p: 0 < p <= 1),
            min_p=_number(fields, "min_p", _ABSENT.min_p, lambda p: 0 <= p <= 1),
        ),
        max_tokens=_integer(fields, "max_tokens", 1, defaults.MAX_NEW_TOKENS),
        stop=_stop(fields),
        ignore_eog=_flag(fields, "ignore_eog"),
    )


def _parse_json(body: bytes) -> dict[str, Any]:
    # Before parsing: the parser would go a thousand levels deep first, and hold everybody up for
    # most of a second over 3 MiB of empty objects.
    if _is_deep_or_long(body):
        raise InvalidRequest(
            f"the body is nested more than {MAX_DEPTH} deep, or has too many parts"
        )
    try:
        fields = json.loads(
            body.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except ValueError:  # also what is not UTF-8, and integers of thousands of digits
        raise InvalidRequest("the body is not JSON") from None
    if type(fields) is not dict:
        raise InvalidRequest("the body is not an object")
    return fields


def _is_deep_or_long(body: bytes) -> bool:
    """Whether brackets outside strings nest more than `MAX_DEPTH` deep, or there are more than
    `MAX_BODY_PARTS` strings, commas and brackets. True, too, for some texts that are no JSON at
    all.
    """
    # Quotes that end no string go first. A pattern that knows of them takes a second for the
    # largest body, and with a string that never ends, where it tries every later quote, hours.
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * defaults.MAX_BODY_PARTS:
        return True
    rest, n_strings = _STRING.subn(b"", unescaped)
    brackets = rest.translate(_BRACKETS, _NO_BRACKETS)
    if n_strings + rest.count(b",") + len(brackets) > defaults.MAX_BODY_PARTS:
        return True
    for _ in range(MAX_DEPTH):  # each round takes the innermost level away
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidRequest("a field is given twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest("NaN and Infinity are not JSON")


def _input(fields: dict[str, Any]) -> ChatInput | TextInput:
    if ("messages" in fields) == ("prompt" in fields):
        raise InvalidRequest("exactly one of messages and prompt is needed", param="messages")
    if "prompt" in fields:
        prompt = fields["prompt"]
        if not _is_text(prompt) or not prompt:
            raise InvalidRequest("prompt must be text and not empty", param="prompt")
        return TextInput(prompt)
    messages = fields["messages"]
    if type(messages) is not list or not 1 <= len(messages) <= defaults.MAX_MESSAGES:
        raise InvalidRequest(
            f"messages must be a list of 1 to {defaults.MAX_MESSAGES}", param="messages"
        )
    return ChatInput(tuple(_message(index, message) for index, message in enumerate(messages)))


def _message(index: int, message: Any) -> ChatMessage:
    where = f"messages[{index}]"
    if type(message) is not dict:
        raise InvalidRequest(f"{where} must be an object", param=where)
    role, content = message.get("role"), message.get("content")
    if type(role) is not str or role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be system, user or assistant", param=f"{where}.role"
        )
    if not _is_text(content):
        raise InvalidRequest(f"{where}.content must be text", param=f"{where}.content")
    return ChatMessage(role, content)


def _number(
    fields: dict[str, Any], name: str, default: float, is_in_range: Callable[[float], bool]
) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or not is_in_range(value):
        raise InvalidRequest(f"{name} must be a number in its range", param=name)
    return float(value)


def _integer(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    if name not in fields:
        return None
    value = fields[name]
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}", param=name)
    return value


def _stop(fields: dict[str, Any]) -> tuple[str, ...]:
    strings = fields.get("stop", [])
    if type(strings) is not list or len(strings) > defaults.MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop must be a list of at most {defaults.MAX_STOP_STRINGS}", param="stop"
        )
    for string in strings:
        if not _is_text(string) or not 1 <= len(string.encode()) <= defaults.MAX_STOP_STRING_BYTES:
            raise InvalidRequest(
                f"a stop string must be 1 to {defaults.MAX_STOP_STRING_BYTES} bytes", param="stop"
            )
    return tuple(strings)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _is_text(value: object) -> TypeGuard[str]:
    """Text that has a UTF-8 form: JSON's escapes can spell lone surrogates, which have none."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
