"""Texts or token ids, one or several: what completions continue and embeddings stand for. Start at
`OneOrMany`.
"""

from __future__ import annotations

from typing import Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tokenplace.api_shim.openai.fields import Place, invalid, whole_unicode

MAX_TOKEN_ID: Final = (1 << 32) - 1  # 32 bits on the wire; no vocabulary has more

Prompt = str | tuple[int, ...]
"""A text, or token ids, which apps have made with the model's own tokenizer."""

_TEXT: Final = {"type": "string", "minLength": 1}
_ID: Final = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_IDS: Final = {"type": "array", "items": _ID, "minItems": 1}


class OneOrMany:
    """Annotation of `tuple[Prompt, ...]`: a text, token ids, or at most `max_items` of them in an
    array; none empty.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        items = {"anyOf": [_TEXT, _IDS]}
        many = {"type": "array", "items": items, "minItems": 1, "maxItems": self._max_items}
        return {"anyOf": [_TEXT, _IDS, many]}

    def _check(self, value: object) -> tuple[Prompt, ...]:
        if not value or not isinstance(value, (str, list)):
            raise invalid("it must be a text, token ids, or an array of such, and not empty.")
        if isinstance(value, str):
            return (whole_unicode(value),)
        if type(value[0]) is int:
            return (_ids(value),)
        if len(value) > self._max_items:
            raise invalid(f"it may hold at most {self._max_items} texts.")
        return tuple(_one(prompt, number) for number, prompt in enumerate(value))


def _one(prompt: object, number: int) -> Prompt:
    if isinstance(prompt, str) and prompt:
        return whole_unicode(prompt, number)
    if isinstance(prompt, list) and prompt:
        return _ids(prompt, number)
    raise invalid("it must be a text or token ids, and not empty.", number)


def _ids(values: list[object], *at: Place) -> tuple[int, ...]:
    if not all(map(_is_id, values)):
        raise invalid(f"a token id must be an integer from 0 to {MAX_TOKEN_ID}.", *at)
    return tuple(values)  # type: ignore[arg-type]  # as just checked


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID
