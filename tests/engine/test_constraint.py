"""From requests to grammars: what is refused, and what the grammars of llguidance let through."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.engine.grammars import accepts
from tokenplace import defaults
from tokenplace.engine.constraint import grammar_for, grammar_param
from tokenplace.engine.tools import ToolFormat
from tokenplace.errors import InvalidRequest
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    GenerateRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    SamplingParams,
    TextInput,
    Tool,
    ToolChoice,
)

CITY = json.dumps(
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
WEATHER = Tool("get_weather", "The weather of a city", CITY)
CLOCK = Tool("clock", "", "")
OSLO = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
TIME = '{"name": "clock", "arguments": {}}'


def asks(
    *tools: Tool,
    choice: ToolChoice | NamedTool = ToolChoice.REQUIRED,
    parallel: bool = True,
    output: JsonObject | JsonSchema | None = None,
) -> GenerateRequest:
    chat = ChatInput((ChatMessage("user", "?"),), tools, choice, parallel)
    return GenerateRequest(
        "tiny", chat, SamplingParams(), bytes(8), bytes(16), "2025-06-01", output=output
    )


def with_schema(schema: object) -> GenerateRequest:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return replace(asks(), input=TextInput("?"), output=JsonSchema(text))


def grammar(
    request: GenerateRequest, tools: ToolFormat = ToolFormat.JSON, *control_texts: str
) -> str:
    return grammar_for(request, tools, frozenset(control_texts))


# ---------------------------------------------------------------- the form of answers


def test_most_requests_have_no_grammar() -> None:
    assert grammar(replace(asks(), input=TextInput("?"))) == ""
    assert grammar(asks(choice=ToolChoice.AUTO)) == ""
    assert grammar(asks(WEATHER, choice=ToolChoice.AUTO)) == ""
    assert grammar(asks(WEATHER, choice=ToolChoice.NONE)) == ""


@pytest.mark.parametrize("answer", ["{}", '{"a": [1, {"b": null}]}', '{\n    "a": "\\u0000"\n}'])
def test_a_json_object_may_be_any(answer: str) -> None:
    assert accepts(grammar(asks(choice=ToolChoice.AUTO, output=JsonObject())), answer)


@pytest.mark.parametrize("answer", ["[]", '"a"', "1", "{", '{"a": 1,}', "{} ", " {}", "{a: 1}"])
def test_nothing_else_is_a_json_object(answer: str) -> None:
    assert not accepts(grammar(asks(choice=ToolChoice.AUTO, output=JsonObject())), answer)


def test_a_schema_says_what_an_answer_is() -> None:
    number = grammar(with_schema({"type": "integer", "minimum": 10, "maximum": 20}))
    assert accepts(number, "15")
    assert not accepts(number, "9")
    assert not accepts(number, "21")


def test_white_space_has_an_end() -> None:
    """A small model would write spaces until its tokens are used up."""
    wanted = grammar(with_schema({"type": "object"}))
    assert accepts(wanted, "{" + " " * 64 + "}")
    assert not accepts(wanted, "{" + " " * 65 + "}")


def test_options_in_a_schema_change_nothing() -> None:
    wanted = grammar(with_schema({"type": "object", "x-guidance": {"item_separator": ";"}}))
    assert accepts(wanted, '{"a": 1, "b": 2}')
    assert not accepts(wanted, '{"a": 1; "b": 2}')


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "{",
        "[]",
        "true",
        '{"minimum": NaN}',
        '{"minimum": ' + "9" * 5000 + "}",
        '{"description": "' + "x" * defaults.MAX_SCHEMA_BYTES + '"}',
        '{"description": "' + "é" * (defaults.MAX_SCHEMA_BYTES // 2) + '"}',
        '{"items": ' * 100_000 + "{}" + "}" * 100_000,
        '{"items": ' * 6000 + "{}" + "}" * 6000,
        '{"items": ' * defaults.MAX_SCHEMA_DEPTH + "{}" + "}" * defaults.MAX_SCHEMA_DEPTH,
    ],
)
def test_schemas_that_are_none_are_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar(with_schema(schema))
    assert caught.value.param == "response_format"
    assert "xx" not in str(caught.value)


# ---------------------------------------------------------------- forced calls


def test_a_call_must_be_one_of_a_tool_with_its_arguments() -> None:
    wanted = grammar(asks(WEATHER, CLOCK))
    assert accepts(wanted, OSLO)
    assert accepts(wanted, TIME)
    assert not accepts(wanted, "{}")
    assert not accepts(wanted, OSLO.replace("get_weather", "clock_"))
    assert not accepts(wanted, OSLO.replace("city", "town"))
    assert not accepts(wanted, OSLO.replace('"Oslo"', "7"))


def test_a_named_tool_is_the_only_one() -> None:
    wanted = grammar(asks(WEATHER, CLOCK, choice=NamedTool("clock")))
    assert accepts(wanted, TIME)
    assert not accepts(wanted, OSLO)


@pytest.mark.parametrize(
    ("tool_format", "one", "two"),
    [
        (ToolFormat.JSON, "{0}", "[{0}, {1}]"),
        (
            ToolFormat.HERMES,
            "<tool_call>\n{0}\n</tool_call>",
            "<tool_call>\n{0}\n</tool_call>\n<tool_call>\n{1}\n</tool_call>",
        ),
        (ToolFormat.MISTRAL, "[TOOL_CALLS] [{0}]", "[TOOL_CALLS][{0}, {1}]"),
    ],
)
def test_several_calls_only_where_wanted(tool_format: ToolFormat, one: str, two: str) -> None:
    one, two = (text.replace("{0}", OSLO).replace("{1}", TIME) for text in (one, two))
    several = grammar(asks(WEATHER, CLOCK), tool_format)
    assert accepts(several, one)
    assert accepts(several, two)
    single = grammar(asks(WEATHER, CLOCK, parallel=False), tool_format)
    assert accepts(single, one)
    assert not accepts(single, two)


def test_llama_calls_arguments_parameters_and_makes_one_call() -> None:
    wanted = grammar(asks(WEATHER, CLOCK), ToolFormat.LLAMA)
    assert accepts(wanted, OSLO.replace("arguments", "parameters"))
    assert not accepts(wanted, OSLO)
    assert not accepts(wanted, f"[{OSLO.replace('arguments', 'parameters')}]")


def test_markers_are_control_tokens_where_the_vocabulary_has_them() -> None:
    markers = ("<tool_call>", "</tool_call>", "<|im_end|>")
    wanted = grammar(asks(CLOCK), ToolFormat.HERMES, *markers)
    call = f"<tool_call>\n{TIME}\n</tool_call>"
    assert accepts(wanted, call, markers)
    assert not accepts(wanted, call, markers, is_spelled=True)


def test_a_form_for_answers_leaves_calling_possible() -> None:
    wanted = grammar(asks(CLOCK, choice=ToolChoice.AUTO, output=JsonObject()), ToolFormat.HERMES)
    assert accepts(wanted, '{"any": "object"}')
    assert accepts(wanted, f"<tool_call>\n{TIME}\n</tool_call>")
    none = grammar(asks(CLOCK, choice=ToolChoice.NONE, output=JsonObject()), ToolFormat.HERMES)
    assert accepts(none, '{"any": "object"}')
    assert not accepts(none, f"<tool_call>\n{TIME}\n</tool_call>")


def test_a_tools_schema_is_followed_as_far_as_possible() -> None:
    odd = {"properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    wanted = grammar(asks(Tool("odd", "", json.dumps(odd))))
    assert accepts(wanted, '{"name": "odd", "arguments": {"a": [1, 1]}}')
    assert not accepts(wanted, '{"name": "odd", "arguments": {"a": 1}}')
    assert not accepts(wanted, '{"name": "odd", "arguments": []}')


def test_references_in_a_tools_schema_are_its_own() -> None:
    schemas = [
        {"$defs": {"x": {"type": kind}}, "properties": {"a": {"$ref": "#/$defs/x"}}}
        for kind in ("string", "integer")
    ]
    wanted = grammar(asks(*(Tool(f"t{n}", "", json.dumps(s)) for n, s in enumerate(schemas))))
    assert accepts(wanted, '{"name": "t0", "arguments": {"a": "x"}}')
    assert accepts(wanted, '{"name": "t1", "arguments": {"a": 1}}')
    assert not accepts(wanted, '{"name": "t0", "arguments": {"a": 1}}')


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asks(), "tool_choice"),
        (asks(CLOCK, choice=NamedTool("other")), "tool_choice"),
        (asks(CLOCK, CLOCK), "tools"),
        (asks(Tool("a b", "", "")), "tools"),
        (asks(Tool("", "", "")), "tools"),
        (asks(Tool('"', "", ""), choice=ToolChoice.AUTO), "tools"),
        (asks(Tool("x" * (defaults.MAX_TOOL_NAME_CHARS + 1), "", "")), "tools"),
        (asks(*(Tool(f"t{n}", "", "") for n in range(defaults.MAX_TOOLS + 1))), "tools"),
        (asks(Tool("t", "", "[]")), "tools"),
        (asks(Tool("t", "", '{"type": "string"}')), "tools"),
        (
            asks(*(Tool(f"t{n}", "", json.dumps({"title": "x" * 60_000})) for n in range(5))),
            "tools",
        ),
    ],
)
def test_tools_that_cannot_be_called_are_refused(request_: GenerateRequest, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar(request_)
    assert caught.value.param == param


def test_the_field_at_fault() -> None:
    assert grammar_param(asks(CLOCK)) == "tools"
    assert grammar_param(asks(CLOCK, choice=NamedTool("clock"))) == "tools"
    assert grammar_param(asks(CLOCK, choice=ToolChoice.AUTO)) == "response_format"
    assert grammar_param(with_schema({})) == "response_format"
