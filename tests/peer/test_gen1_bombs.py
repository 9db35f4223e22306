"""Bodies of gen/1 that are made to be expensive: refused before they are parsed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.errors import InvalidRequest
from tokenplace.generation import TextInput
from tokenplace.peer.gen1 import parse_body
from tokenplace.peer.gen1_input import MAX_DEPTH

ROOM = defaults.MAX_BODY_BYTES - 100


def body_of(ignored: str) -> bytes:
    """A good body with a field that nobody knows."""
    return f'{{"prompt":"x","ignored":{ignored}}}'.encode()


def values(n_parts: int) -> str:
    """A list of numbers that makes a body of so many strings, commas and brackets: eight are there
    already.
    """
    return "[" + "0," * (n_parts - 8) + "0]"


def test_as_many_parts_as_allowed() -> None:
    assert parse_body(body_of(values(defaults.MAX_BODY_PARTS))).input == TextInput("x")
    with pytest.raises(InvalidRequest, match="too many parts"):
        parse_body(body_of(values(defaults.MAX_BODY_PARTS + 1)))


# The last of them took the parser's forerunner, a pattern, most of a day.
@pytest.mark.parametrize(
    "body",
    [
        body_of("[" + "{}," * (ROOM // 3) + "{}]"),
        body_of("[" + '"",' * (ROOM // 3) + '""]'),
        body_of("[" + "0," * (ROOM // 2) + "0]"),
        body_of("[" * ROOM),
        b'"' * ROOM,
        b"\\" * ROOM,
        b'"' + b'\\"' * (ROOM // 2),
    ],
    ids=["objects", "strings", "numbers", "brackets", "quotes", "backslashes", "endless string"],
)
def test_the_largest_bombs_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(body)


@given(st.text(st.sampled_from('\\"[]{},x'), max_size=60))
def test_what_stands_in_strings_is_not_counted(text: str) -> None:
    nested = "[" * (MAX_DEPTH - 1) + json.dumps(text) + "]" * (MAX_DEPTH - 1)
    assert parse_body(body_of(nested)).input == TextInput("x")
    with pytest.raises(InvalidRequest, match="deep"):
        parse_body(body_of(f"[{nested}]"))


def tools(schema: str, n: int) -> bytes:
    some = [{"name": f"t{i}", "parameters": schema} for i in range(n)]
    messages = [{"role": "user", "content": "x"}]
    return json.dumps({"messages": messages, "tools": some}).encode()


def test_schemas_and_body_share_the_parts() -> None:
    schema = '{"enum":[' + "0," * (defaults.MAX_BODY_PARTS * 2 // 5) + "0]}"
    assert parse_body(tools(schema, 2))
    with pytest.raises(InvalidRequest, match="too many parts") as refusal:
        parse_body(tools(schema, 3))
    assert refusal.value.param == "tools[2].parameters"


@pytest.mark.parametrize("schema", ["[" * 65_000, '{"a":' * 10_000, "{" + '"a":{},' * 5_000 + "}"])
def test_schemas_that_are_bombs_are_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_body(tools(schema, 1))
    assert refusal.value.param == "tools[0].parameters"
