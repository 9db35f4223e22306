"""From what a request demands of an answer's form to a grammar. Start at `grammar_for`. Pure.

The text is llguidance's dialect of Lark (its docs/syntax.md). JSON schemas stand in it whole: what
they mean is llguidance's business, and whether it can bear them `grammar_check.py` finds out.

Differs from OpenAI's API: a schema for the answer holds strictly or is refused, while a tool's is
followed as far as it can be, because apps do not write those with a grammar in mind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from tokenplace import defaults
from tokenplace.engine.closed_schema import closed
from tokenplace.engine.tools import (
    HERMES_CLOSE,
    HERMES_OPEN,
    MISTRAL_OPEN,
    ToolFormat,
    control_name,
)
from tokenplace.errors import InvalidRequest
from tokenplace.generation import (
    ChatInput,
    GenerateRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    Tool,
    ToolChoice,
)

OUTPUT_PARAM: Final = "response_format"
TOOLS_PARAM: Final = "tools"
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
_SPACE: Final = rf"[\x20\x0A\x0D\x09]{{1,{defaults.MAX_JSON_SPACE}}}"


def grammar_for(request: GenerateRequest, tools: ToolFormat, control_texts: frozenset[str]) -> str:
    """The grammar of each answer to this request, "" if it may be anything.

    control_texts: of the model's vocabulary, for markers that are control tokens there. Raises
    `InvalidRequest`.
    """
    output = _output_rule(request.output)
    if not isinstance(request.input, ChatInput):
        return f"start: {output}" if output else ""
    _check_tools(request.input)
    callable_tools = _callable_tools(request.input)
    is_forced = _is_forced(request.input)
    if not is_forced and not output:
        return ""
    if not callable_tools:
        return f"start: {output}"
    _check_size(sum(len(tool.parameters) for tool in callable_tools))  # before all are parsed
    rules = list(_call_rules(request.input, callable_tools, tools, control_texts))
    # A tool that may be called is not shut out by the form that an answer must have.
    start = "start: calls" if is_forced else f"start: calls | answer\nanswer: {output}"
    grammar = "\n".join([start, *rules])
    _check_size(len(grammar))
    return grammar


def grammar_param(request: GenerateRequest) -> str:
    """The field to name when this request's grammar cannot be used."""
    is_forced = isinstance(request.input, ChatInput) and _is_forced(request.input)
    return TOOLS_PARAM if is_forced else OUTPUT_PARAM


# ---------------------------------------------------------------- the answer itself


def _output_rule(output: JsonObject | JsonSchema | None) -> str:
    match output:
        case None:
            return ""
        case JsonObject():
            return _json({"type": "object"}, is_lenient=False)
        case JsonSchema(schema):
            return _json(_parse_schema(schema, OUTPUT_PARAM), is_lenient=False)


def _json(schema: dict[str, Any], *, is_lenient: bool) -> str:
    options = {"whitespace_pattern": _SPACE, "lenient": is_lenient}
    # Options that an app put there itself would undo ours.
    return "%json " + json.dumps({**schema, "x-guidance": options})


def _parse_schema(text: str, param: str) -> dict[str, Any]:
    if len(text) > defaults.MAX_SCHEMA_BYTES or len(text.encode()) > defaults.MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"A schema has at most {defaults.MAX_SCHEMA_BYTES} bytes.", param=param
        )
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # whose text would quote the schema
        raise InvalidRequest("A schema is not valid JSON.", param=param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest("A schema must be a JSON object.", param=param)
    if _depth(schema) > defaults.MAX_SCHEMA_DEPTH:
        raise InvalidRequest(
            f"A schema is nested deeper than {defaults.MAX_SCHEMA_DEPTH}.", param=param
        )
    return schema


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _depth(value: object) -> int:
    """Levels of objects and lists. Without recursion: what is asked is whether that is safe."""
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in _parts(outer)]:
        depth += 1
    return depth


def _parts(value: object) -> list[object]:
    """What is directly inside; something in any case if it is an object or a list."""
    if isinstance(value, dict):
        return [*value.values(), None]
    if isinstance(value, list):
        return [*value, None]
    return []


# ---------------------------------------------------------------- tools


def _is_forced(chat: ChatInput) -> bool:
    return chat.tool_choice == ToolChoice.REQUIRED or isinstance(chat.tool_choice, NamedTool)


def _callable_tools(chat: ChatInput) -> tuple[Tool, ...]:
    match chat.tool_choice:
        case ToolChoice.NONE:
            return ()
        case NamedTool(name):
            named = tuple(tool for tool in chat.tools if tool.name == name)
            if not named:
                raise InvalidRequest("It names none of the tools.", param="tool_choice")
            return named
        case ToolChoice.REQUIRED if not chat.tools:
            raise InvalidRequest("There is no tool to call.", param="tool_choice")
    return chat.tools


def _check_tools(chat: ChatInput) -> None:
    names = [tool.name for tool in chat.tools]
    if len(names) > defaults.MAX_TOOLS:
        raise InvalidRequest(
            f"A request has at most {defaults.MAX_TOOLS} tools.", param=TOOLS_PARAM
        )
    if not all(len(n) <= defaults.MAX_TOOL_NAME_CHARS and _NAME.fullmatch(n) for n in names):
        raise InvalidRequest(
            f"A tool's name has 1 to {defaults.MAX_TOOL_NAME_CHARS} characters of a-z A-Z 0-9 _ -.",
            param=TOOLS_PARAM,
        )
    if len(set(names)) != len(names):
        raise InvalidRequest("Two tools have the same name.", param=TOOLS_PARAM)


def _check_size(n_bytes: int) -> None:
    if n_bytes > defaults.MAX_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"Together the tools' schemas are larger than {defaults.MAX_GRAMMAR_BYTES} bytes.",
            param=TOOLS_PARAM,
        )


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    schema = _parse_schema(tool.parameters or "{}", TOOLS_PARAM)
    if schema.get("type", "object") != "object":
        raise InvalidRequest("A tool's parameters must be an object's schema.", param=TOOLS_PARAM)
    return closed({"type": "object", **schema})


def _call_rules(
    chat: ChatInput, tools: tuple[Tool, ...], tool_format: ToolFormat, control_texts: frozenset[str]
) -> Iterator[str]:
    """Rules of Lark, of which `calls` is the whole answer."""

    def marker(text: str) -> str:
        return control_name(text) if text in control_texts else json.dumps(text)

    several = chat.parallel_tool_calls
    match tool_format:
        case ToolFormat.HERMES:
            yield r'calls: tagged ("\n" tagged)*' if several else "calls: tagged"
            yield rf'tagged: {marker(HERMES_OPEN)} "\n" call "\n" {marker(HERMES_CLOSE)}'
        case ToolFormat.MISTRAL:
            more = ' ("," " "? call)*' if several else ""
            yield f'calls: {marker(MISTRAL_OPEN)} " "? "[" call{more} "]"'
        case (
            ToolFormat.LLAMA
        ):  # its template: "This model only supports single tool-calls at once!"
            yield "calls: call"
        case ToolFormat.JSON:
            yield 'calls: call | "[" call ("," " "? call)* "]"' if several else "calls: call"
    key = "parameters" if tool_format is ToolFormat.LLAMA else "arguments"
    yield "call: " + " | ".join(f"call_{index}" for index in range(len(tools)))
    for index, tool in enumerate(tools):
        start = json.dumps(f'{{"name": "{tool.name}", "{key}": ')
        yield f'call_{index}: {start} arguments_{index} "}}"'
        yield f"arguments_{index}: {_json(_arguments_schema(tool), is_lenient=True)}"
