"""What parameters may hold: types with their checks, and how a check says no. Start at `Body`.

A check of ours raises `invalid` or `unsupported`, with the place inside the value it looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from tokenplace.defaults import (
    API_MAX_WISH_CHARS,
    API_MAX_WISHES,
    MAX_LOGIT_BIAS,
    MAX_MODEL_NAME_CHARS,
    MAX_NEW_TOKENS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_TOOL_NAME_CHARS,
)

NO_LIMIT: Final = -1
"""What users of llama.cpp say for as many tokens as there is room for."""

_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_TOOL_NAME: Final = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}")

Place = str | int

Ignored = Any
"""Read, and without effect: it asks for nothing that an answer could show."""


def unsupported(detail: str = "", *at: Place) -> PydanticCustomError:
    """The error of a wish that is understood and cannot be met. `detail` follows the name."""
    context = {"detail": detail, "at": at}
    return PydanticCustomError("unsupported_parameter", "not supported", context)


def invalid(reason: str, *at: Place) -> PydanticCustomError:
    """The error of a value that cannot be used. `reason` is a sentence that follows the name."""
    return PydanticCustomError("invalid_value", "invalid", {"reason": reason, "at": at})


def missing(*at: Place) -> PydanticCustomError:
    """The error of what must be there and is not."""
    return PydanticCustomError("missing", "missing", {"at": at})


class OnlyNeutral:
    """Annotation: takes only the values that ask for nothing."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = neutral

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": list(self._neutral)}

    def _check(self, value: object) -> object:
        if value in self._neutral:
            return value
        raise unsupported()


class Body(BaseModel):
    """Refuses unknown names: the first one, at once, so that a body of many costs nothing."""

    model_config = ConfigDict(
        strict=True, extra="ignore", json_schema_extra={"additionalProperties": False}
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: object) -> object:
        for name in data if isinstance(data, dict) else ():
            if name not in cls._names():
                raise PydanticCustomError("unknown_parameter", "unknown", {"at": (str(name),)})
        return data

    @classmethod
    def _names(cls) -> set[str]:
        """As apps write them."""
        return {field.alias or name for name, field in cls.model_fields.items()}


def compact_json(value: object) -> str:
    """As it goes to a donor. Raises `ValueError` for what JSON has no form for."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


# ---------------------------------------------------------------- checks


def _list_of_stops(value: object) -> object:
    return [value] if isinstance(value, str) else value


def whole_unicode(value: str, *at: Place) -> str:
    """JSON can write half a surrogate pair, which is no text and has no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid("it is not valid Unicode.", *at) from None
    return value


def _short_stop(value: str) -> str:
    if len(value.encode()) > MAX_STOP_STRING_BYTES:
        raise invalid(f"a stop string may have at most {MAX_STOP_STRING_BYTES} bytes.")
    return value


def _not_0(value: int) -> int:
    if value == 0:
        raise PydanticKnownError("greater_than_equal", {"ge": 1})
    return value


def _few_ids(value: object) -> object:
    if isinstance(value, dict):
        if len(value) > MAX_LOGIT_BIAS:
            raise invalid(f"it may name at most {MAX_LOGIT_BIAS} token ids.")
        if not all(map(_TOKEN_ID.fullmatch, value)):
            raise invalid("its names must be token ids.")
    return value


def is_tool_name(value: str) -> bool:
    """May a function be called so?"""
    return _TOOL_NAME.fullmatch(value) is not None


def _tool_name(value: str) -> str:
    if not is_tool_name(value):
        raise invalid(f"it must be 1 to {MAX_TOOL_NAME_CHARS} of a-z A-Z 0-9 _ -.")
    return value


def _is_deep(value: object) -> bool:
    """Is it nested deeper than a schema may be?"""
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
    return any(isinstance(each, (dict, list)) for each in level)


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def sendable_object(value: dict[str, Any]) -> dict[str, Any]:
    """The same, if it can go to a donor and into templates and grammars."""
    if _is_deep(value):
        raise invalid(f"it is nested more than {MAX_SCHEMA_DEPTH} deep.")
    try:
        text = compact_json(value)
    except ValueError:
        raise invalid("its numbers must be finite.") from None
    whole_unicode(text)
    return value


def _small_schema(value: dict[str, Any]) -> dict[str, Any]:
    if len(compact_json(value).encode()) > MAX_SCHEMA_BYTES:
        raise invalid(f"a schema may have at most {MAX_SCHEMA_BYTES} bytes.")
    return value


# ---------------------------------------------------------------- types

Null = Annotated[object, OnlyNeutral(None)]
NoList = Annotated[object, OnlyNeutral(None, [])]
One = Annotated[object, OnlyNeutral(None, 1)]
NoWord = Annotated[object, OnlyNeutral(None, "none", "auto")]
Empty = Annotated[object, OnlyNeutral(None, "")]
TextModality = Annotated[object, OnlyNeutral(None, ["text"])]
UsualVerbosity = Annotated[object, OnlyNeutral(None, "medium")]

WholeUnicode = AfterValidator(whole_unicode)
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME_CHARS), WholeUnicode]
StopString = Annotated[str, Field(min_length=1), WholeUnicode, AfterValidator(_short_stop)]
Stop = Annotated[
    list[StopString] | None,
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
    BeforeValidator(_list_of_stops, json_schema_input_type=str | list[str] | None),
]
TokenLimit = Annotated[
    int,
    Field(ge=NO_LIMIT, le=MAX_NEW_TOKENS, json_schema_extra={"not": {"const": 0}}),
    AfterValidator(_not_0),
]
MaxTokens = TokenLimit | None
Share = Annotated[float | None, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
ShareAbove0 = Annotated[float | None, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Penalty = Annotated[float | None, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
RepeatPenalty = Annotated[float | None, Field(gt=0.0, le=10.0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Biases = Annotated[
    dict[str, Bias],
    BeforeValidator(_few_ids),
    Field(
        json_schema_extra={
            "propertyNames": {"pattern": f"^({_TOKEN_ID.pattern})$"},
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]
JsonValues = Annotated[dict[str, Any], AfterValidator(sendable_object)]
Schema = Annotated[JsonValues, AfterValidator(_small_schema)]
ToolName = Annotated[
    str,
    AfterValidator(_tool_name),
    Field(json_schema_extra={"pattern": f"^{_TOOL_NAME.pattern}$"}),
]
Wish = Annotated[str, Field(min_length=1, max_length=API_MAX_WISH_CHARS), WholeUnicode]
WishList = Annotated[list[Wish] | None, Field(max_length=API_MAX_WISHES, fail_fast=True)]
