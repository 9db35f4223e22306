"""What templates find as messages and tools."""

from __future__ import annotations

import pytest

from tokenplace.engine.chat_values import BadValue, to_messages, to_tools
from tokenplace.engine.guard import Guard, any_of

OPEN = Guard(any_of(()))


def test_a_plain_message_has_nothing_but_role_and_content() -> None:
    """So that a chat without tools is rendered as it always was."""
    assert to_messages([("user", "hello", (), "", "")], OPEN) == [
        {"role": "user", "content": "hello"}
    ]


def test_calls_have_their_arguments_as_values() -> None:
    turn = ("assistant", "", [("1", "clock", '{"b": 1, "a": [null]}'), ("2", "ping", "")], "", "")
    (message,) = to_messages([turn], OPEN)
    assert message["tool_calls"] == [
        {
            "type": "function",
            "id": "1",
            "function": {"name": "clock", "arguments": {"b": 1, "a": [None]}},
        },
        {"type": "function", "id": "2", "function": {"name": "ping", "arguments": {}}},
    ]
    assert list(message["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("call_id", "name", "expected"),
    [
        ("1", "", {"tool_call_id": "1", "name": "clock"}),
        ("1", "mine", {"tool_call_id": "1", "name": "mine"}),
        ("9", "", {"tool_call_id": "9"}),
        ("", "", {}),
    ],
)
def test_a_result_knows_its_tool(call_id: str, name: str, expected: dict[str, str]) -> None:
    turns = [
        ("assistant", "", [("1", "clock", "{}")], "", ""),
        ("tool", "noon", (), call_id, name),
    ]
    assert to_messages(turns, OPEN)[1] == {"role": "tool", "content": "noon", **expected}


@pytest.mark.parametrize("parameters", ["", "{}"])
def test_a_tool_without_parameters_has_the_schema_of_none(parameters: str) -> None:
    assert to_tools([("clock", "", parameters)], OPEN) == [
        {
            "type": "function",
            "function": {
                "name": "clock",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]


def test_errors_name_the_field_and_quote_nothing() -> None:
    with pytest.raises(BadValue) as caught:
        to_tools([("clock", "", "secret")], OPEN)
    assert (caught.value.param, str(caught.value)) == (
        "tools",
        "A tool's parameters are not a JSON object.",
    )
