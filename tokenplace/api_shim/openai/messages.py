"""Messages and tools, as apps send them. Start at `Message` and `Tool`.

One model for the turns of all roles, checked as a whole, because a union's errors would name
branches of ours instead of the app's parameters.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from tokenplace.api_shim.openai.fields import (
    Body,
    Ignored,
    Null,
    Schema,
    ToolName,
    WholeUnicode,
    invalid,
    missing,
    unsupported,
)
from tokenplace.defaults import (
    MAX_TOOL_CALL_ID_BYTES,
    MAX_TOOL_CALLS,
    MAX_TOOL_DESCRIPTION_BYTES,
)
from tokenplace.generation import NamedTool, ToolChoice

PARTS_OF_OTHERS = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url"})


def _text_of_content(value: object) -> object:
    """A list of text parts is one text; models join them with line breaks, as llama.cpp does."""
    if not isinstance(value, list):
        return value
    return "\n".join(_text_of_part(number, part) for number, part in enumerate(value))


def _text_of_part(number: int, part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": str(kind)} if kind in PARTS_OF_OTHERS:
            raise unsupported(f" ({kind})", number)
    raise invalid("it is not an object with type 'text' and a text.", number)


def _role_of_today(value: object) -> object:
    if value == "function":
        raise unsupported(" function (answer with the role tool instead)")
    return value


def _type_function(value: object) -> object:
    if isinstance(value, str) and value != "function":
        raise unsupported(" other than function")
    return value


def _short_id(value: str) -> str:
    if len(value.encode()) > MAX_TOOL_CALL_ID_BYTES:
        raise invalid(f"it may have at most {MAX_TOOL_CALL_ID_BYTES} bytes.")
    return value


def _short_description(value: str) -> str:
    if len(value.encode()) > MAX_TOOL_DESCRIPTION_BYTES:
        raise invalid(f"it may have at most {MAX_TOOL_DESCRIPTION_BYTES} bytes.")
    return value


Text = Annotated[str, WholeUnicode]
_PART: Final = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type", kind],
            "properties": {"type": {"const": kind}, kind: {"type": "string"}},
        }
        for kind in ("text", "refusal")
    ]
}
Content = Annotated[
    Text | None,
    BeforeValidator(_text_of_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}
    ),
]
Role = Annotated[
    Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_role_of_today)
]
TypeFunction = Annotated[Literal["function"], BeforeValidator(_type_function)]
CallId = Annotated[str, Field(min_length=1), WholeUnicode, AfterValidator(_short_id)]
Description = Annotated[str, WholeUnicode, AfterValidator(_short_description)]


class CalledFunction(Body):
    """What a model called in an earlier turn. `arguments` should be JSON, but is what it wrote;
    `parsed_arguments` is what OpenAI's SDK made of it.
    """

    name: ToolName
    arguments: Text
    parsed_arguments: Ignored = None


class Call(Body):
    """One call of an earlier turn. `index` is what is left of it when a stream was put together."""

    id: CallId
    type: TypeFunction = "function"
    function: CalledFunction
    index: Ignored = None


class Message(Body):
    """One turn. What earlier answers carried beside their text is read back without effect, their
    reasoning too (templates show models no reasoning of earlier turns), and so is `parsed`, which
    OpenAI's SDK made of the text. Only an assistant may have said nothing: apps write down null for
    an answer that had no text.
    """

    role: Role
    content: Content = None
    tool_calls: Annotated[list[Call] | None, Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] = (
        None
    )
    tool_call_id: CallId | None = None
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    parsed: Ignored = None
    reasoning_content: Ignored = None
    audio: Null = None
    function_call: Null = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise invalid("it belongs to the role assistant.", "tool_calls")
        if self.tool_call_id is not None and self.role != "tool":
            raise invalid("it belongs to the role tool.", "tool_call_id")
        if self.role == "tool" and self.tool_call_id is None:
            raise missing("tool_call_id")
        if self.content is None and self.role != "assistant":
            if "content" not in self.model_fields_set:
                raise missing("content")
            raise invalid("only that of the role assistant may be null.", "content")
        return self


class Function(Body):
    """What may be called. It is held to its schema where a call is forced, `strict` or not."""

    name: ToolName
    description: Description | None = None
    parameters: Schema | None = None
    strict: Ignored = None


class Tool(Body):
    """A tool that the model may call: a function, as nobody but the app itself runs others."""

    type: TypeFunction
    function: Function


def _tool_choice(value: object) -> ToolChoice | NamedTool | None:
    match value:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return NamedTool(name)
        case {"type": "allowed_tools" | "custom" as kind}:
            raise unsupported(f" ({kind})")
    raise invalid(
        "it must be auto, none, required, or an object of type function with the function's name."
    )


ToolChoiceField = Annotated[
    ToolChoice | NamedTool | None,
    PlainValidator(_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [None, "auto", "none", "required"]},
                {
                    "type": "object",
                    "required": ["type", "function"],
                    "properties": {
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}},
                        },
                    },
                },
            ]
        }
    ),
]
