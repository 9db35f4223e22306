"""Grammars that would freeze, crash or fill the worker are refused by a process of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio
import trio.testing

from tests.engine.test_constraint import with_schema
from tokenplace import defaults
from tokenplace.engine.checker import byte_tokenizer, check
from tokenplace.engine.constraint import grammar_for
from tokenplace.engine.grammar_check import GrammarChecker
from tokenplace.engine.tools import ToolFormat, control_name
from tokenplace.errors import InvalidRequest

GOOD = "start: %json {}"
# Whether anything fits all of these is worked out in minutes, or runs out of memory.
BOMB = "start: %json " + json.dumps(
    {"allOf": [{"type": "string", "pattern": f"{'x' * n}.{{{n}}}y"} for n in range(1, 40)]}
)


@asynccontextmanager
async def open_checker(*control_texts: str) -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(control_texts)
    try:
        yield checker
    finally:
        await checker.aclose()


def nested(n: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


# What stops llama.cpp's converter, and more: refused with a reason, or cheap.
BEARABLE = {
    "long text": {"type": "string", "maxLength": 1_000_000},
    "many items": {"type": "array", "maxItems": 1500, "items": {"type": "string"}},
    "digits": {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
    "itself": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "nested": nested(defaults.MAX_SCHEMA_DEPTH // 2 - 1),
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "repetition": {"type": "string", "pattern": "((((a{1,50}){1,50}){1,50}){1,50})b"},
    "states": {"type": "string", "pattern": "(a|b)*a(a|b){200}c"},
    "forced": {"type": "string", "pattern": "^a{1000000000}$"},
    "constant": {"const": "x" * 60_000},
    "choices": {"enum": [f"number {n}" for n in range(3000)]},
    "doubling": {
        "$ref": "#/$defs/d0",
        "$defs": {
            **{f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)},
            "d30": {"type": "string"},
        },
    },
}
REFUSED = {
    "self": {"$ref": "#"},
    "each other": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "remote": {"$ref": "https://example.com/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "empty": {"enum": []},
    "product": {
        "allOf": [
            {"anyOf": [{"properties": {f"{kind}{n}": {"type": "string"}}} for kind in "ab"]}
            for n in range(20)
        ]
    },
    "optional": {
        "type": "object",
        "properties": {f"p{n}": {"type": "string"} for n in range(1500)},
    },
    "expressions": {"type": "string", "pattern": r"(\w{1,1000}|\W{1,1000}){1,1000}$"},
    "multiples": {
        "allOf": [
            {"type": "integer", "multipleOf": n}
            for n in (1000003, 1000033, 1000037, 1000039, 1000081)
        ]
    },
}


@pytest.mark.parametrize("name", BEARABLE)
def test_what_is_cheap_passes(name: str) -> None:
    grammar = grammar_for(with_schema(BEARABLE[name]), ToolFormat.JSON, frozenset())
    assert check(byte_tokenizer(()), grammar) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_has_a_reason(name: str) -> None:
    grammar = grammar_for(with_schema(REFUSED[name]), ToolFormat.JSON, frozenset())
    reason = check(byte_tokenizer(()), grammar)
    assert reason in (
        "A `$ref` in it leads nowhere.",
        "Nothing can satisfy it.",
        "It is too complex.",
    )


async def test_schemas_that_stopped_llama_cpp() -> None:
    async with open_checker() as checker:
        for schema in BEARABLE.values():
            grammar = grammar_for(with_schema(schema), ToolFormat.JSON, frozenset())
            await checker.check(grammar, "response_format")
        for name, schema in REFUSED.items():
            grammar = grammar_for(with_schema(schema), ToolFormat.JSON, frozenset())
            with pytest.raises(InvalidRequest) as caught:
                await checker.check(grammar, "response_format")
            assert caught.value.param == "response_format", name


async def test_a_bomb_is_refused_and_the_next_is_checked() -> None:
    async with open_checker() as checker:
        with pytest.raises(InvalidRequest, match="It is too complex"):
            await checker.check(BOMB, "tools")
        await checker.check(GOOD, "tools")


async def test_what_takes_long_there_would_hold_up_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "GRAMMAR_CHECK_TIMEOUT_S", 60.0)  # a busy machine
    slow = {"type": "object", "required": [f"r{n}" for n in range(8_000)]}
    async with open_checker() as checker:
        with pytest.raises(InvalidRequest, match="It is too complex"):
            await checker.check("start: %json " + json.dumps(slow), "tools")


async def test_whoever_sends_bombs_waits_for_them_alone() -> None:
    finished: list[str] = []

    async def send(checker: GrammarChecker, grammar: str, bucket: str) -> None:
        with suppress(InvalidRequest):
            await checker.check(grammar, "tools", bucket)
        finished.append(bucket)

    async with open_checker() as checker, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(send, checker, BOMB, "alice")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, checker, GOOD, "bob")
    assert finished.index("bob") == 1


async def test_control_tokens_may_be_named() -> None:
    async with open_checker("[TOOL_CALLS]") as checker:
        await checker.check(f"start: {control_name('[TOOL_CALLS]')} %json {{}}", "tools")
        with pytest.raises(InvalidRequest):
            await checker.check(f"start: {control_name('<|im_end|>')} %json {{}}", "tools")


async def test_nothing_starts_before_the_first_grammar_or_stays_after_the_last() -> None:
    others = set(psutil.Process().children())
    async with open_checker() as checker:
        assert set(psutil.Process().children()) == others
        await checker.check(GOOD, "tools")
        assert len(set(psutil.Process().children()) - others) == 1
    assert set(psutil.Process().children()) == others
