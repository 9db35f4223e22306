"""What a model reads of tools whose chat template shows none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conftest import ROOT
from tokenplace.engine.worded_tools import AFTER, AFTER_ONE, BEFORE, Place, in_words

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Das Wetter in Köln", "parameters": {}},
}
SHOWN = f"{BEFORE}\n{json.dumps(WEATHER['function'], ensure_ascii=False)}\n{AFTER}"
ASK = {"role": "user", "content": "Köln?"}
OWN = {"role": "system", "content": "Be kind."}
EMPTY = {"role": "system", "content": ""}
GREETING = {"role": "assistant", "content": "Hello!"}

Messages = list[dict[str, Any]]


def worded(
    messages: Messages, tools: Messages, place: Place = Place.SYSTEM, several: bool = True
) -> Messages:
    return in_words(messages, tools, place, may_call_several=several)


def call(name: str, **arguments: object) -> dict[str, Any]:
    return {"type": "function", "id": name, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("place", "messages", "expected"),
    [
        (Place.SYSTEM, [ASK], [("system", SHOWN), ("user", "Köln?")]),
        (Place.SYSTEM, [OWN, ASK], [("system", f"Be kind.\n\n{SHOWN}"), ("user", "Köln?")]),
        (Place.SYSTEM, [EMPTY, ASK], [("system", SHOWN), ("user", "Köln?")]),
        (Place.USER, [ASK, GREETING], [("user", f"{SHOWN}\n\nKöln?"), ("assistant", "Hello!")]),
        (
            Place.USER,
            [GREETING, ASK, ASK],
            [("assistant", "Hello!"), ("user", f"{SHOWN}\n\nKöln?"), ("user", "Köln?")],
        ),
        (Place.USER, [GREETING], [("user", SHOWN), ("assistant", "Hello!")]),
    ],
)
def test_the_first_message_of_a_role_says_what_may_be_called(
    place: Place, messages: Messages, expected: list[tuple[str, str]]
) -> None:
    before = json.dumps(messages)
    shown = worded(messages, [WEATHER], place)
    assert [(message["role"], message["content"]) for message in shown] == expected
    assert json.dumps(messages) == before, "what came in is as it was"


def test_several_calls_are_offered_only_where_they_may_be_made() -> None:
    (message, _) = worded([ASK], [WEATHER, WEATHER], several=False)
    first, *tools, last = message["content"].split("\n")
    assert (first, last) == (BEFORE, AFTER_ONE)
    assert [json.loads(tool) for tool in tools] == [WEATHER["function"]] * 2


@pytest.mark.parametrize(
    ("content", "calls", "expected"),
    [
        ("", [call("a", x=1)], '{"name": "a", "arguments": {"x": 1}}'),
        ("Let me see.", [call("a")], 'Let me see.\n{"name": "a", "arguments": {}}'),
        (
            "",
            [call("a"), call("b", y="ü")],
            '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"y": "ü"}}]',
        ),
    ],
)
@pytest.mark.parametrize("tools", [[WEATHER], []])
def test_calls_are_what_the_assistant_said(
    content: str, calls: Messages, expected: str, tools: Messages
) -> None:
    turn = {"role": "assistant", "content": content, "tool_calls": calls}
    assert worded([ASK, turn], tools)[-1] == {"role": "assistant", "content": expected}


def test_results_that_follow_each_other_are_one_turn() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]}
    results = [
        {"role": "tool", "content": "rain", "tool_call_id": "call-1", "name": "a"},
        {"role": "tool", "content": "sun", "tool_call_id": "?"},
        {"role": "tool", "content": "snow"},
    ]
    shown = worded([ASK, turn, *results, ASK, results[0]], [])
    assert [message["role"] for message in shown] == [
        *("user", "assistant", "user", "user", "user")
    ]
    assert shown[2]["content"] == (
        "Result of a (call-1): rain\nResult of the call (?): sun\nResult of the call: snow"
    )
    assert shown[4]["content"] == "Result of a (call-1): rain"


def test_a_chat_without_tools_and_calls_is_as_it_was() -> None:
    assert worded([OWN, ASK, GREETING], []) == [OWN, ASK, GREETING]


@pytest.mark.parametrize("words", [BEFORE, AFTER, AFTER_ONE])
def test_the_words_are_those_of_the_protocol(words: str) -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "protocol.md").read_text("utf-8"))
    assert f"`{words}`" in page
