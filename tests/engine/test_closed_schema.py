"""Schemas of tools, without the properties that they leave open."""

from __future__ import annotations

from typing import Any

import pytest

from tokenplace.engine.closed_schema import closed

CITY: dict[str, Any] = {"type": "string"}
Schema = dict[str, Any]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object"}, {"type": "object"}),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        (
            {"properties": {"city": CITY}, "required": ["city"]},
            {"properties": {"city": CITY}, "required": ["city"], "additionalProperties": False},
        ),
        (
            {"properties": {"to": {"items": {"properties": {"city": CITY}}}}},
            {
                "properties": {
                    "to": {"items": {"properties": {"city": CITY}, "additionalProperties": False}}
                },
                "additionalProperties": False,
            },
        ),
        (
            {"anyOf": [{"properties": {"city": CITY}}, CITY]},
            {"anyOf": [{"properties": {"city": CITY}, "additionalProperties": False}, CITY]},
        ),
        (
            {"properties": {"properties": CITY, "if": {}, "const": {"properties": {}}}},
            {
                "properties": {
                    "properties": CITY,
                    "if": {},
                    "const": {"properties": {}, "additionalProperties": False},
                },
                "additionalProperties": False,
            },
        ),
        (
            {"$ref": "#/$defs/c", "$defs": {"c": {"properties": {"city": CITY}}}},
            {
                "$ref": "#/$defs/c",
                "$defs": {"c": {"properties": {"city": CITY}, "additionalProperties": False}},
            },
        ),
    ],
)
def test_only_what_is_named_may_stand_there(schema: Schema, expected: Schema) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"city": CITY}, "additionalProperties": CITY},
        {"properties": {"city": CITY}, "patternProperties": {"^x": CITY}},
        {"properties": {"city": CITY}, "required": ["country"]},
        {"properties": {"city": CITY}, "minProperties": 2},
        {"properties": {"city": CITY}, "minProperties": "2"},
        {"properties": {"city": CITY}, "required": [["city"]]},
        {"properties": {"city": CITY}, "required": "city"},
        {"properties": ["city"]},
        {"allOf": [{"properties": {"a": CITY}}, {"properties": {"b": CITY}}]},
        {"properties": {"a": CITY}, "anyOf": [{"properties": {"b": CITY}}]},
        {"properties": {"a": CITY}, "$ref": "#/$defs/c", "$defs": {"c": {"properties": {}}}},
        {"const": {"properties": {}}},
        {"enum": [{"properties": {}}]},
    ],
)
def test_what_would_mean_something_else_stays_as_it_is(schema: Schema) -> None:
    assert closed(schema) == schema
