"""A renderer in its own process, and what the tests of templates render with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tokenplace.engine.template import TemplateRenderer
from tokenplace.generation import ChatInput, ChatMessage

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}{{ '[assistant]' }}"
CONTROL = ("[end]", "[user]", "[assistant]", "[e")


def says(content: str) -> ChatInput:
    return ChatInput((ChatMessage("user", content),))


HELLO = says("hello")
TODAY = "2025-06-01"


@asynccontextmanager
async def open_renderer(template: str) -> AsyncIterator[TemplateRenderer]:
    renderer = TemplateRenderer(template, "<s>", "</s>", CONTROL)
    try:
        yield renderer
    finally:
        await renderer.aclose()
