"""Keeps models from inventing arguments. Start at `closed`. Pure.

A JSON schema that names properties allows any others beside them, and small models write some until
their tokens end. Who writes a tool's schema means those it names; llama.cpp takes it so too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

# Where several schemas hold for one object, one of them alone does not know all its properties.
_TOGETHER: Final = frozenset({"allOf", "if", "not", "dependentSchemas", "$dynamicRef"})
_BESIDE_PROPERTIES: Final = frozenset({"anyOf", "oneOf", "$ref"})
_SAYS_ITSELF: Final = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}
)
_OF_SCHEMAS: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_NO_SCHEMAS: Final = frozenset({"const", "enum", "default", "examples"})  # JSON of any kind


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, where objects have only the properties that are named. What fits it fits `schema`.

    As it is where that cannot be said of each object by itself.
    """
    found: list[dict[str, Any]] = []
    closed_schema: dict[str, Any] = _closed(schema, found.append)
    return schema if any(map(_is_entangled, found)) else closed_schema


def _is_entangled(schema: dict[str, Any]) -> bool:
    names = schema.keys()
    return bool(names & _TOGETHER or ("properties" in names and names & _BESIDE_PROPERTIES))


def _closed(value: Any, tell: Callable[[dict[str, Any]], None]) -> Any:
    """`tell` is called with each schema inside, as it was."""
    if isinstance(value, list):
        return [_closed(each, tell) for each in value]
    if not isinstance(value, dict):
        return value
    tell(value)
    inside: dict[str, Any] = {}
    for name, each in value.items():
        if name in _OF_SCHEMAS and isinstance(each, dict):
            inside[name] = {key: _closed(schema, tell) for key, schema in each.items()}
        else:
            inside[name] = each if name in _NO_SCHEMAS else _closed(each, tell)
    if _may_be_closed(inside):
        inside["additionalProperties"] = False
    return inside


def _may_be_closed(schema: dict[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or schema.keys() & _SAYS_ITSELF:
        return False
    if not isinstance(required, list):
        return False
    is_named = all(isinstance(name, str) and name in properties for name in required)
    return is_named and schema.get("minProperties", 0) in range(len(properties) + 1)
