"""How the models of well-known templates write tool calls."""

from __future__ import annotations

import pytest

from tests.engine import chat_templates
from tokenplace.engine.tools import SHOWN_TEXTS, ToolFormat, control_name, tool_format


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (chat_templates.HERMES, ToolFormat.HERMES),
        (chat_templates.LLAMA, ToolFormat.LLAMA),
        (chat_templates.MISTRAL, ToolFormat.MISTRAL),
        (chat_templates.PLAIN, ToolFormat.JSON),
        (chat_templates.QWEN_CODER, ToolFormat.JSON),
        (chat_templates.GLM, ToolFormat.JSON),
        (chat_templates.NEW_MISTRAL, ToolFormat.JSON),
        ("", ToolFormat.JSON),
    ],
)
def test_the_format_is_found_in_the_template(template: str, expected: ToolFormat) -> None:
    assert tool_format(template) is expected


def test_the_markers_that_are_forced_are_shown() -> None:
    assert {"<tool_call>", "</tool_call>", "[TOOL_CALLS]"} <= SHOWN_TEXTS


def test_names_in_grammars_have_no_spaces_or_brackets() -> None:
    assert control_name("[TOOL CALLS]é<>") == "<5b544f4f4c2043414c4c535dc3a93c3e>"
