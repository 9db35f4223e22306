"""Tools, calls and their results in chat templates: the template's own words for them, or ours."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.engine import chat_templates
from tests.engine.rendering import CONTROL, HELLO, PLAIN, TODAY, open_renderer
from tokenplace.engine.chat_values import to_messages, to_tools
from tokenplace.engine.guard import Guard, any_of
from tokenplace.engine.renderer import compile_template
from tokenplace.engine.tools import ToolFormat
from tokenplace.errors import InvalidRequest
from tokenplace.generation import ChatInput, ChatMessage, NamedTool, Tool, ToolCall, ToolChoice

BRACKETED = re.compile(r"\[[a-z]+\]")
WEATHER = Tool("get_weather", "The weather", '{"type": "object", "properties": {"city": {}}}')
CALLED = ChatInput(
    (
        ChatMessage("user", "Oslo?"),
        ChatMessage(
            "assistant", "", (ToolCall("call00001", "get_weather", '{"city": "Oslo", "n": 1}'),)
        ),
        ChatMessage("tool", "rain", tool_call_id="call00001"),
    ),
    (WEATHER,),
)


async def rendered(template: str, chat: ChatInput) -> str:
    async with open_renderer(template) as renderer:
        return "".join(text for text, _ in await renderer.render(chat, TODAY))


async def test_qwens_template_shows_tools_calls_and_results() -> None:
    text = await rendered(chat_templates.HERMES, CALLED)
    shown = (
        '{"type": "function", "function": {"name": "get_weather", "description": "The weather", '
        '"parameters": {"type": "object", "properties": {"city": {}}}}}'
    )
    assert f"<tools>\n{shown}\n</tools>" in text
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Oslo", "n": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_llamas_template_shows_tools_calls_and_results() -> None:
    text = await rendered(chat_templates.LLAMA, CALLED)
    assert '"name": "get_weather",\n        "description": "The weather"' in text
    assert '{"name": "get_weather", "parameters": {"city": "Oslo", "n": 1}}<|eot_id|>' in text
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"rain"<|eot_id|>' in text


async def test_mistrals_template_shows_tools_calls_and_results() -> None:
    text = await rendered(chat_templates.MISTRAL, CALLED)
    assert '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather"' in text
    assert (
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "n": 1}, '
        '"id": "call00001"}]</s>[TOOL_RESULTS] {"content": rain, "call_id": "call00001"}'
    ) in text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (chat_templates.HERMES, True),
        (chat_templates.LLAMA, True),
        (chat_templates.MISTRAL, True),
        (chat_templates.PLAIN, True),
        (chat_templates.NO_SYSTEM, True),
        ("{{ messages[-1].content }}", True),
        ("hello", False),
        ("{{ tools[0].function.name }}", True),
        ("{% if messages[0].role == 'system' %}{{ tools }}{% endif %}", True),
        ("{% if messages[1] %}{{ raise_exception('one only') }}{% endif %}{{ tools }}", True),
        ("{{ raise_exception('never') }}", False),
    ],
)
async def test_whether_a_template_shows_tools_is_tried_out(template: str, expected: bool) -> None:
    async with open_renderer(template) as renderer:
        assert not renderer.has_tools
        await renderer.start()
        assert renderer.has_tools == expected


SHOWN = (
    "You may call these functions:\n"
    '{"name": "get_weather", "description": "The weather", '
    '"parameters": {"type": "object", "properties": {"city": {}}}}\n'
    'To call one, answer with nothing but {"name": NAME, "arguments": ARGUMENTS}; to call several,'
    " with a JSON list of such objects."
)
SHOWN_TURNS = (
    ("user", "Oslo?"),
    ("assistant", '{"name": "get_weather", "arguments": {"city": "Oslo", "n": 1}}'),
    ("user", "Result of get_weather (call00001): rain"),
)


def chatml(*turns: tuple[str, str]) -> str:
    written = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns]
    return "".join(written) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (CALLED, chatml(("system", SHOWN), *SHOWN_TURNS)),
        (ChatInput(CALLED.messages), chatml(*SHOWN_TURNS)),
        (replace(CALLED, tool_choice=ToolChoice.NONE), chatml(*SHOWN_TURNS)),
        (HELLO, chatml(("user", "hello"))),
        (
            replace(CALLED, parallel_tool_calls=False),
            chatml(("system", SHOWN.partition("; to call several")[0] + "."), *SHOWN_TURNS),
        ),
    ],
    ids=["tools", "calls alone", "none may be called", "neither", "one at a time"],
)
async def test_a_template_that_shows_no_tools_is_given_them_in_words(
    chat: ChatInput, expected: str
) -> None:
    assert await rendered(chat_templates.PLAIN, chat) == expected


async def test_a_template_that_refuses_a_system_message_has_them_in_the_users() -> None:
    question, called, result = (content for _, content in SHOWN_TURNS)
    assert await rendered(chat_templates.NO_SYSTEM, CALLED) == (
        f"<s><start_of_turn>user\n{SHOWN}\n\n{question}<end_of_turn>\n"
        f"<start_of_turn>model\n{called}<end_of_turn>\n"
        f"<start_of_turn>user\n{result}<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    "template", [chat_templates.HERMES, chat_templates.LLAMA, chat_templates.MISTRAL]
)
async def test_a_template_that_shows_tools_is_given_nothing_else(template: str) -> None:
    render = compile_template(template, "<s>", "</s>")
    nothing = Guard(any_of(()))
    turns = [
        (m.role, m.content, [(c.id, c.name, c.arguments) for c in m.tool_calls], m.tool_call_id, "")
        for m in CALLED.messages
    ]
    tools = to_tools([(WEATHER.name, WEATHER.description, WEATHER.parameters)], nothing)
    expected = render(to_messages(turns, nothing), tools, TODAY)
    assert await rendered(template, CALLED) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (chat_templates.HERMES, ToolFormat.HERMES),
        (chat_templates.PLAIN, ToolFormat.JSON),
        (chat_templates.PLAIN + "{# <tool_call> #}", ToolFormat.JSON),
    ],
)
async def test_calls_are_forced_in_the_form_that_is_shown(
    template: str, expected: ToolFormat
) -> None:
    async with open_renderer(template) as renderer:
        await renderer.start()
        assert renderer.tool_format is expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice.AUTO, "get_weather"),
        (ToolChoice.REQUIRED, "get_weather"),
        (NamedTool("get_weather"), "get_weather"),
        (ToolChoice.NONE, "True"),
    ],
)
async def test_tools_that_may_not_be_called_are_not_shown(
    choice: ToolChoice | NamedTool, expected: str
) -> None:
    chat = ChatInput(HELLO.messages, (WEATHER,), choice)
    template = "{% if tools %}{{ tools[0].function.name }}{% else %}{{ tools is none }}{% endif %}"
    assert await rendered(template, chat) == expected


@pytest.mark.parametrize(
    "text", ["[]", "1", "{", "nothing", '{"a": ' * 99_999 + "1" + "}" * 99_999]
)
async def test_json_that_is_none_is_the_requests_fault(text: str) -> None:
    call = ChatMessage("assistant", "", (ToolCall("1", "t", text),))
    async with open_renderer(PLAIN) as renderer:
        with pytest.raises(InvalidRequest, match="not a JSON object") as caught:
            await renderer.render(ChatInput((call,)), TODAY)
        assert caught.value.param == "messages"
        with pytest.raises(InvalidRequest, match="not a JSON object") as caught:
            await renderer.render(ChatInput(HELLO.messages, (Tool("t", "", text),)), TODAY)
        assert caught.value.param == "tools"


async def test_no_text_around_tools_becomes_control() -> None:
    """Wherever it stands, and however it is written."""
    end = "[end]"
    hidden = '"\\u005bend]": ["x[end]", {"[user]": "\\u005bend\\u005d"}]'
    chat = ChatInput(
        (
            ChatMessage("assistant", end, (ToolCall(end, end, f"{{{hidden}}}"),)),
            ChatMessage("tool", end, tool_call_id=end, name=end),
        ),
        (Tool(end, end, f"{{{hidden}}}"),),
    )
    async with open_renderer("{{ tools | tojson }}{{ messages | tojson }}[end]") as renderer:
        await renderer.start()
        segments = await renderer.render(chat, TODAY)
    *written, (last, may_be_control) = segments
    assert (last[-5:], may_be_control) == ("[end]", True)
    assert not any(text in part for part, is_control in written if is_control for text in CONTROL)
    assert CONTROL[0] not in last[:-5]
    whole = "".join(part for part, _ in segments)[: -len("[end]")]
    assert whole.count("[end]") == 2 + 2 * 3 + 6
    assert whole.count("[user]") == 2


@pytest.mark.parametrize("is_system", [True, False])
async def test_no_text_around_tools_in_words_becomes_control(is_system: bool) -> None:
    end = "[end]"
    hidden = '{"\\u005bend]": ["x[end]", {"[user]": "\\u005bend\\u005d"}]}'
    chat = ChatInput(
        (
            ChatMessage("user", end),
            ChatMessage("assistant", end, (ToolCall(end, end, hidden),)),
            ChatMessage("tool", end, tool_call_id=end, name=end),
        ),
        (Tool(end, end, hidden),),
    )
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    async with open_renderer(("" if is_system else refusal) + PLAIN) as renderer:
        await renderer.start()
        segments = await renderer.render(chat, TODAY)
    first = ["[system]", end] if is_system else []
    controls = [text for part, may_be in segments if may_be for text in BRACKETED.findall(part)]
    turns = ["[user]", end, "[assistant]", end, "[user]", end, "[assistant]"]
    assert controls == [*first, *turns]
    texts = [part for part, may_be_control in segments if not may_be_control]
    assert texts.count("[user]") == 2
    assert texts.count(end) == len(texts) - 2 == 1 + (2 + 3) + (2 + 3) + 3
