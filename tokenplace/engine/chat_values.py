"""Messages and tools as chat templates expect them. Start at `to_messages`. Pure.

The shapes are those of transformers' `apply_chat_template`: OpenAI's, but with a call's arguments
and a tool's parameters as values instead of as text. They are parsed here, in the renderer's
process, and before anything is hidden: an escape in JSON must not smuggle in a control token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenplace.engine.guard import Guard

Call = tuple[str, str, str]
"""A tool call's id, name and arguments as JSON."""
Turn = tuple[str, str, Sequence[Call], str, str]
"""A message's role, content, tool calls, the id of the call it answers, and that tool's name."""
ToolText = tuple[str, str, str]
"""A tool's name, description and parameters as JSON."""


class BadValue(Exception):
    """JSON in a request that is none; `param` is the field that has it."""

    def __init__(self, detail: str, param: str) -> None:
        super().__init__(detail)
        self.param = param


def to_messages(turns: Iterable[Turn], guard: Guard) -> list[dict[str, Any]]:
    """What a template finds as `messages`; fields that are empty are not there.

    Raises `BadValue`.
    """
    messages = []
    names: dict[str, str] = {}
    for role, content, calls, call_id, name in turns:
        message: dict[str, Any] = {"role": role, "content": guard.hide(content)}
        if calls:
            message["tool_calls"] = [_call(call, guard) for call in calls]
        names |= {called_id: called for called_id, called, _ in calls}
        if call_id:
            message["tool_call_id"] = guard.hide(call_id)
        if name or call_id in names:  # apps mostly say the id alone
            message["name"] = guard.hide(name or names[call_id])
        messages.append(message)
    return messages


def to_tools(tools: Iterable[ToolText], guard: Guard) -> list[dict[str, Any]]:
    """What a template finds as `tools`. Raises `BadValue`."""
    return [
        {
            "type": "function",
            "function": {
                "name": guard.hide(name),
                "description": guard.hide(description),
                "parameters": guard.hide_in(
                    _parse(parameters, "A tool's parameters are", "tools")
                    or {"type": "object", "properties": {}}
                ),
            },
        }
        for name, description, parameters in tools
    ]


def _call(call: Call, guard: Guard) -> dict[str, Any]:
    call_id, name, arguments = call
    value = _parse(arguments, "The arguments of a tool call are", "messages")
    return {
        "type": "function",
        "id": guard.hide(call_id),
        "function": {"name": guard.hide(name), "arguments": guard.hide_in(value)},
    }


def _parse(text: str, what: str, param: str) -> dict[str, Any]:
    """Models, and so apps, write "" for no arguments."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):  # whose text would quote the user
        value = None
    if not isinstance(value, dict):
        raise BadValue(f"{what} not a JSON object.", param)
    return value
