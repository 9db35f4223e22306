"""Messages and tools in gen/1 (docs/protocol.md, section 7). Start at `chat_fields` and
`read_chat`.

Pure. Differs from OpenAI's bodies: content is always text, and what apps nest freely, schemas and a
call's arguments, crosses as JSON text inside a string, so the body itself stays shallow.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import InvalidRequest
from tokenplace.generation import ChatInput, ChatMessage, NamedTool, Tool, ToolCall, ToolChoice
from tokenplace.peer.gen1_fields import JsonReader, flag, is_text, objects, text

CHAT_FIELDS: Final = ("messages", "tools", "tool_choice", "parallel_tool_calls")
_ROLES: Final = ("system", "user", "assistant", "tool")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")


def chat_fields(chat: ChatInput) -> dict[str, object]:
    """The body's fields for a chat, those that are neutral left out."""
    fields: dict[str, object] = {"messages": [_message_fields(turn) for turn in chat.messages]}
    if chat.tools:
        fields["tools"] = [_tool_fields(tool) for tool in chat.tools]
    if isinstance(chat.tool_choice, NamedTool):
        fields["tool_choice"] = {"name": chat.tool_choice.name}
    elif chat.tool_choice is not ToolChoice.AUTO:
        fields["tool_choice"] = chat.tool_choice.value
    if not chat.parallel_tool_calls:
        fields["parallel_tool_calls"] = False
    return fields


def _message_fields(message: ChatMessage) -> dict[str, object]:
    fields: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.name:
        fields["name"] = message.name
    return fields


def _tool_fields(tool: Tool) -> dict[str, object]:
    fields: dict[str, object] = {"name": tool.name}
    if tool.description:
        fields["description"] = tool.description
    if tool.parameters:
        fields["parameters"] = tool.parameters
    return fields


def read_chat(fields: dict[str, Any], reader: JsonReader) -> ChatInput:
    """Messages and tools of a body that has messages. Raises `InvalidRequest`."""
    messages = objects(fields, "messages", 1, defaults.MAX_MESSAGES, param="messages")
    tools = tuple(
        _tool(where, tool, reader)
        for where, tool in objects(fields, "tools", 0, defaults.MAX_TOOLS, param="tools")
    )
    names = {tool.name for tool in tools}
    if len(names) != len(tools):
        raise InvalidRequest("two tools have the same name", param="tools")
    return ChatInput(
        messages=tuple(_message(where, message) for where, message in messages),
        tools=tools,
        tool_choice=_tool_choice(fields, names),
        parallel_tool_calls=flag(fields, "parallel_tool_calls", default=True),
    )


def read_schema(fields: dict[str, Any], name: str, reader: JsonReader, *, param: str) -> str:
    """A JSON schema as text, which is the text of an object. Raises `InvalidRequest`."""
    schema = text(fields, name, defaults.MAX_SCHEMA_BYTES, param=param)
    read = reader.read(schema.encode(), defaults.MAX_SCHEMA_DEPTH, what=param, param=param)
    try:
        json.dumps(read, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{param} must be valid Unicode", param=param) from None
    return schema


# ---------------------------------------------------------------- messages


def _message(where: str, message: dict[str, Any]) -> ChatMessage:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be system, user, assistant or tool", param=f"{where}.role"
        )
    if not is_text(content):
        raise InvalidRequest(f"{where}.content must be text", param=f"{where}.content")
    for name, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool"), ("name", "tool")):
        if name in message and role != owner:
            raise InvalidRequest(
                f"{where}.{name} belongs to the role {owner}", param=f"{where}.{name}"
            )
    calls = objects(message, "tool_calls", 0, defaults.MAX_TOOL_CALLS, param=f"{where}.tool_calls")
    return ChatMessage(
        role,
        content,
        tool_calls=tuple(_tool_call(place, call) for place, call in calls),
        tool_call_id=_call_id(message, "tool_call_id", where) if "tool_call_id" in message else "",
        name=_name(message, where) if "name" in message else "",
    )


def _tool_call(where: str, call: dict[str, Any]) -> ToolCall:
    param = f"{where}.arguments"
    return ToolCall(
        id=_call_id(call, "id", where),
        name=_name(call, where),
        arguments=text(call, "arguments", defaults.MAX_BODY_BYTES, param=param),
    )


def _call_id(fields: dict[str, Any], name: str, where: str) -> str:
    return text(fields, name, defaults.MAX_TOOL_CALL_ID_BYTES, param=f"{where}.{name}")


def _name(fields: dict[str, Any], where: str) -> str:
    name = fields.get("name")
    if (
        type(name) is not str
        or len(name) > defaults.MAX_TOOL_NAME_CHARS
        or not _NAME.fullmatch(name)
    ):
        raise InvalidRequest(
            f"{where}.name must be 1 to {defaults.MAX_TOOL_NAME_CHARS} of a-z A-Z 0-9 _ -",
            param=f"{where}.name",
        )
    return name


# ---------------------------------------------------------------- tools


def _tool(where: str, tool: dict[str, Any], reader: JsonReader) -> Tool:
    name, description, parameters = _name(tool, where), "", ""
    if "description" in tool:
        max_bytes = defaults.MAX_TOOL_DESCRIPTION_BYTES
        description = text(tool, "description", max_bytes, param=f"{where}.description")
    if "parameters" in tool:
        parameters = read_schema(tool, "parameters", reader, param=f"{where}.parameters")
    return Tool(name, description, parameters)


def _tool_choice(fields: dict[str, Any], names: set[str]) -> ToolChoice | NamedTool:
    choice = fields.get("tool_choice", "auto")
    match choice:
        case {"name": str(name)} if name in names:
            return NamedTool(name)
        case "auto" | "none":
            return ToolChoice(choice)
        case "required" if names:
            return ToolChoice.REQUIRED
    raise InvalidRequest(
        "tool_choice must be auto, none, required or the name of one of the tools",
        param="tool_choice",
    )
