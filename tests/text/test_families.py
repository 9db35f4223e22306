"""Answers as the models of each family write them, thoughts and calls and all."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings

from tests.text.splitting import CUTS, read
from tokenplace.text.deltas import Call, Merged

TOOLS = ("get_weather", "search_web")
PARIS = Call("get_weather", '{"city": "Paris"}')
NEWS = Call("search_web", '{"query": "news, \\"today\\"", "n": 3}')

ANSWERS = {
    "Qwen3, thinking": (
        "<think>\nThe user asks for the weather.\n\nI should call get_weather.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search_web", "arguments": {"query": "news, \\"today\\"", "n": 3}}\n'
        "</tool_call>",
        "",
        Merged("", "The user asks for the weather.\n\nI should call get_weather.", (PARIS, NEWS)),
    ),
    "Qwen3, not thinking": (
        "Paris is the capital of France.",
        "<think>\n\n</think>\n\n",
        Merged("Paris is the capital of France.", "", ()),
    ),
    "Qwen3, told to call": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Hermes 2 Pro": (
        "I will look that up.\n<tool_call>\n"
        '{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>\n',
        "",
        Merged("I will look that up.\n", "", (PARIS,)),
    ),
    "Llama 3.1": (
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Llama 3.1 with a built-in environment": (
        '<|python_tag|>{"type": "function", "name": "get_weather", '
        '"parameters": {"city": "Paris"}}',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Llama 3.2, several": (
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "search_web", "parameters": {"query": "news, \\"today\\"", "n": 3}}',
        "",
        Merged("", "", (PARIS, NEWS)),
    ),
    "Llama 3.2 as Python": (
        "[get_weather(city='Paris'), search_web(query='news, \"today\"', n=3)]",
        "",
        Merged("", "", (PARIS, NEWS)),
    ),
    "Mistral v3": (
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "9Ae3bDc2F"}]',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Mistral v7": (
        'Let me see.[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "search_web", "arguments": {"query": "news, \\"today\\"", "n": 3}}]',
        "",
        Merged("Let me see.", "", (PARIS, NEWS)),
    ),
    "Mistral v11": (
        '[TOOL_CALLS]get_weather[CALL_ID]9Ae3bDc2F[ARGS]{"city": "Paris"}'
        '[TOOL_CALLS]search_web[CALL_ID]8Ae3bDc2F[ARGS]{"query": "news, \\"today\\"", "n": 3}',
        "",
        Merged("", "", (PARIS, NEWS)),
    ),
    "Magistral": (
        '[THINK]The user asks for the weather.[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": '
        '"Paris"}',
        "",
        Merged("", "The user asks for the weather.", (PARIS,)),
    ),
    "DeepSeek R1 distilled": (
        "Okay, the user asks 2+2.\n\nThat is 4.\n</think>\n\n2 + 2 = **4**",
        "<think>\n",
        Merged("2 + 2 = **4**", "Okay, the user asks 2+2.\n\nThat is 4.", ()),
    ),
    "DeepSeek R1 distilled, older template": (
        "<think>\nOkay.\n</think>\n\n4",
        "",
        Merged("4", "Okay.", ()),
    ),
    "DeepSeek R1 distilled, cut": (
        "Okay, the user asks 2+2.\n\n",
        "<think>\n",
        Merged("", "Okay, the user asks 2+2.", ()),
    ),
    "SmolLM3": (
        "<think>\nI need the weather.\n</think>\n"
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>',
        "",
        Merged("", "I need the weather.", (PARIS,)),
    ),
    "SmolLM2": (
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_call>',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Phi-4-mini": (
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Granite 3.3": (
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Granite 3.1": (
        '<tool_call>[{"arguments": {"city": "Paris"}, "name": "get_weather"}]',
        "",
        Merged("", "", (PARIS,)),
    ),
    "LFM2": (
        '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>Checking the weather.',
        "",
        Merged("Checking the weather.", "", (PARIS,)),
    ),
    "Gemma 3": (
        '```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```',
        "",
        Merged("", "", (PARIS,)),
    ),
    "Gemma 3 that explains": (
        'You could call it so:\n```json\n{"name": "get_weather", "parameters": {}}\n```',
        "",
        Merged(
            'You could call it so:\n```json\n{"name": "get_weather", "parameters": {}}\n```', "", ()
        ),
    ),
}


@pytest.mark.parametrize("family", ANSWERS)
@given(cuts=CUTS)
@settings(max_examples=25)
def test_answers_of(family: str, cuts: Iterable[int]) -> None:
    answer, begun, expected = ANSWERS[family]
    assert read(answer, cuts, tools=TOOLS, begun=begun) == expected
