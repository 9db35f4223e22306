"""What an app reads when it does not get an answer. Start at `Refusal`.

Pure. Every error of the API has OpenAI's form, `{"error": {"message", "type", "param", "code"}}`,
and where OpenAI has a code for the case, its code. No value that an app sent is repeated, except
names of parameters: a message may end up in a log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tokenplace.defaults import API_RETRY_AFTER_S
from tokenplace.errors import TokenplaceError, first_error

logger = logging.getLogger(__name__)

MAX_NAME_CHARS: Final = 64  # of a parameter's name that is repeated to the app
RATE_LIMIT_ERROR: Final = "rate_limit_error"

JSON_TYPES: Final = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
EXPECTED_TYPES: Final = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
LIMITS: Final = {
    "greater_than": (">", "gt", "below_min_value"),
    "greater_than_equal": (">=", "ge", "below_min_value"),
    "less_than": ("<", "lt", "above_max_value"),
    "less_than_equal": ("<=", "le", "above_max_value"),
}
LENGTHS: Final = {
    "too_long": ("array", "at most", "max_length", "array_above_max_length"),
    "too_short": ("array", "at least", "min_length", "array_below_min_length"),
    "string_too_long": ("string", "at most", "max_length", "string_above_max_length"),
    "string_too_short": ("string", "at least", "min_length", "string_below_min_length"),
}


@dataclass(frozen=True)
class Refusal:
    """An HTTP error: status and headers, and the error object for the body or a stream's event.

    kind: the error's type; empty takes the one that goes with the status. request_id: as the
    journal has it; empty if it does not.
    """

    status: int
    message: str
    code: str | None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    request_id: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = RATE_LIMIT_ERROR if self.status == 429 else kind
        error = {
            "message": self.message,
            "type": self.kind or kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": {**error, "request_id": self.request_id} if self.request_id else error}


def too_many(message: str) -> Refusal:
    """What a program gets that asks for more at once than one peer takes of all its apps."""
    return Refusal(429, message, "rate_limit_exceeded", headers=_retry_headers(429, None))


class Refused(Exception):
    """A refusal on its way out of a route."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


def refusal_of(error: Exception) -> Refusal:
    """What to say about `error`. One that is not ours is a fault: logged by type and place alone,
    because its text may hold a prompt."""
    if isinstance(error, ExceptionGroup):
        return refusal_of(bare(error))
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, TokenplaceError):
        return Refusal(
            error.http_status,
            error.user_text,
            error.code.value,
            error.param,
            _retry_headers(error.http_status, error.retry_after_s),
        )
    logger.error("unexpected %s at %s", type(error).__name__, _place_of(error))
    return refusal_of(TokenplaceError())


def bare(errors: ExceptionGroup) -> Exception:
    """The one of them that an app should hear of: the first of ours, or else the first."""
    ours = errors.subgroup(TokenplaceError)
    error = first_error(errors if ours is None else ours)
    assert isinstance(error, Exception)  # as every member of an ExceptionGroup
    return error


def refusal_of_status(status: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """What to say where the framework only knows a status: no such path, wrong method."""
    message, code = {
        404: ("There is nothing at this path: the API is under /v1.", "unknown_url"),
        405: ("This path does not know that method.", "method_not_allowed"),
    }.get(status, ("The request was refused.", None))
    return Refusal(status, message, code, None, headers or {})


def refusal_of_invalid(error: Mapping[str, Any]) -> Refusal:
    """What to say about one pydantic error of a body: which parameter, and what was expected.

    An error of ours may say in its context where it is, `at`, below what pydantic knows.
    """
    kind, context = error["type"], error.get("ctx", {})
    param = param_name((*error["loc"], *context.get("at", ())))
    if kind == "unknown_parameter":
        return Refusal(400, f"Unknown parameter: '{param}'.", kind, param)
    if kind == "unsupported_parameter":
        message = f"Unsupported parameter: '{param}'{context['detail']} is not supported here."
        return Refusal(400, message, kind, param)
    if not param:
        message = "The body must be a JSON object."
        return Refusal(400, message, "invalid_type")
    if kind == "missing":
        message = f"Missing required parameter: '{param}'."
        return Refusal(400, message, "missing_required_parameter", param)
    message, code = _value_message(kind, param, error.get("input"), context)
    return Refusal(400, message, code, param)


def param_name(location: tuple[str | int, ...]) -> str:
    """A parameter as OpenAI writes it: `messages[0].content`."""
    name = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in location
    )
    return name.removeprefix(".")


def _shown(name: str) -> str:
    """An app's own name for something, short, and without the halves of surrogate pairs that JSON
    can write and no answer could repeat.
    """
    return name[:MAX_NAME_CHARS].encode(errors="replace").decode()


def _value_message(
    kind: str, param: str, value: object, context: Mapping[str, Any]
) -> tuple[str, str]:
    if kind in EXPECTED_TYPES:
        got = JSON_TYPES.get(type(value), "something else")
        expected = EXPECTED_TYPES[kind]
        message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
        return message, "invalid_type"
    if kind in LIMITS:
        sign, key, code = LIMITS[kind]
        limit = context[key]
        number = "decimal" if isinstance(limit, float) else "integer"
        shown = f"{limit:g}" if isinstance(limit, float) else str(limit)
        message = f"Invalid '{param}': expected a value {sign} {shown}."
        return message, f"{number}_{code}"
    if kind in LENGTHS:
        what, words, key, code = LENGTHS[kind]
        return f"Invalid '{param}': expected {what} of length {words} {context[key]}.", code
    if kind == "literal_error":
        return f"Invalid value for '{param}'. Supported: {context['expected']}.", "invalid_value"
    if kind == "invalid_value":
        return f"Invalid '{param}': {context['reason']}", kind
    return f"Invalid value for '{param}'.", "invalid_value"


def _retry_headers(status: int, retry_after_s: float | None) -> dict[str, str]:
    if retry_after_s is None:
        # RFC 9110, section 15.6.4, and RFC 6585, section 4: they say when to come back.
        return {"retry-after": str(API_RETRY_AFTER_S)} if status in {429, 503} else {}
    return {"retry-after": str(max(1, math.ceil(retry_after_s)))}


def _place_of(error: Exception) -> str:
    traceback = error.__traceback__
    place = "an unknown place"
    while traceback is not None:
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
