"""How models write tool calls. Start at `tool_format`. Pure.

A chat template shows a model its tools, and an earlier turn's calls as the model would have written
them; the format of the latter is the one to force. Nothing else in a model file names it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ToolFormat(StrEnum):
    """What surrounds the name and the arguments of a call."""

    HERMES = "hermes"  # Qwen, Hermes, SmolLM3: <tool_call>, a JSON object, </tool_call>
    LLAMA = "llama"  # Llama 3.1 to 3.3: a JSON object whose arguments are called parameters
    MISTRAL = "mistral"  # up to its tokenizer v7: [TOOL_CALLS] and a JSON list
    JSON = "json"  # the rest: a JSON object, or a list of them


HERMES_OPEN: Final = "<tool_call>"
HERMES_CLOSE: Final = "</tool_call>"
MISTRAL_OPEN: Final = "[TOOL_CALLS]"

SHOWN_TEXTS: Final = frozenset(
    {
        *(HERMES_OPEN, HERMES_CLOSE, MISTRAL_OPEN),
        *("<|tool_call|>", "<|/tool_call|>", "<|tool_call_start|>", "<|tool_call_end|>"),
        *("[ARGS]", "[CALL_ID]", "<|python_tag|>"),
        *("<think>", "</think>", "[THINK]", "[/THINK]"),
    }
)
"""Texts that an answer must show even where a vocabulary has them as control tokens: whoever asked
finds tool calls and thoughts by them."""


def tool_format(template: str) -> ToolFormat:
    """In which format the model of this chat template writes calls.

    Formats that are no JSON inside, as of Qwen3-Coder, GLM and newer Mistrals, count as `JSON`:
    what is forced then is not what the model knows best, but still a call.
    """
    if "[ARGS]" in template or "<function=" in template or "<arg_key>" in template:
        return ToolFormat.JSON
    if HERMES_OPEN in template:
        return ToolFormat.HERMES
    if MISTRAL_OPEN in template:
        return ToolFormat.MISTRAL
    if "<|start_header_id|>" in template and '"parameters": ' in template:
        return ToolFormat.LLAMA
    return ToolFormat.JSON


def control_name(text: str) -> str:
    """The name of a control token in a grammar, which takes no spaces or brackets in it."""
    return f"<{text.encode().hex()}>"
