"""Tools for chat templates that show none. Start at `in_words`. Pure.

Agents use tools with whatever model there is, and many small models' templates have no word of
them. Such a model reads of its tools in a message, and calls them in the form that a forced call
has then (`tools.ToolFormat.JSON`). The words are part of the prompt, hence of the protocol
(docs/protocol.md, section 7): to change them is to change the renderer's version.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, Final

BEFORE: Final = "You may call these functions:"
AFTER_ONE: Final = 'To call one, answer with nothing but {"name": NAME, "arguments": ARGUMENTS}.'
AFTER: Final = (
    'To call one, answer with nothing but {"name": NAME, "arguments": ARGUMENTS}; to call several,'
    " with a JSON list of such objects."
)

Message = dict[str, Any]


class Place(StrEnum):
    """Where a model reads of its tools. The template's own words for them come first, being what
    the model was trained on; the first that shows them is the one.
    """

    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"  # for templates that refuse a system message, or leave it out
    NOWHERE = ""

    @property
    def is_worded(self) -> bool:
        """Is it done by `in_words`?"""
        return self in (Place.SYSTEM, Place.USER)


def in_words(
    messages: list[Message], tools: list[Message], place: Place, *, may_call_several: bool
) -> list[Message]:
    """The same chat, as messages of plain text: the tools in the first message of the role `place`,
    earlier calls as the assistant's text, their results as a user's turn.
    """
    worded = _without_tool_turns(messages)
    if not tools:
        return worded
    after = AFTER if may_call_several else AFTER_ONE
    shown = "\n".join([BEFORE, *(_json(tool["function"]) for tool in tools), after])
    n_before = next((n for n, message in enumerate(worded) if message["role"] == place), None)
    if n_before is None:
        return [{"role": str(place), "content": shown}, *worded]
    told = worded[n_before]
    parts = [told["content"], shown] if place is Place.SYSTEM else [shown, told["content"]]
    worded[n_before] = {**told, "content": "\n\n".join(filter(None, parts))}
    return worded


def _without_tool_turns(messages: list[Message]) -> list[Message]:
    worded: list[Message] = []
    is_result = False
    for message in messages:
        was_result, is_result = is_result, message["role"] == "tool"
        if not is_result:
            worded.append(_without_calls(message))
        elif was_result:  # one turn, as templates want users and assistants in turn
            worded[-1]["content"] += f"\n{_result(message)}"
        else:
            worded.append({"role": "user", "content": _result(message)})
    return worded


def _without_calls(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    functions = [call["function"] for call in calls]
    text = _json(functions[0] if len(functions) == 1 else functions)
    content = message["content"]
    return {"role": message["role"], "content": f"{content}\n{text}" if content else text}


def _result(message: Message) -> str:
    call_id = message.get("tool_call_id")
    called = f" ({call_id})" if call_id else ""
    return f"Result of {message.get('name', 'the call')}{called}: {message['content']}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
