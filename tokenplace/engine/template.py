"""From a chat to the text that a model reads. Start at `TemplateRenderer.render`.

The work is done in a child process with limits (`renderer.py`), given two seconds a chat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.frames import BadFrame
from tokenplace.engine.guard import Segment
from tokenplace.engine.helper import Helper
from tokenplace.engine.process import ChildDied
from tokenplace.errors import ConfigError, InvalidRequest, TemplateFailed
from tokenplace.generation import ChatInput, ToolChoice

RENDERER: Final = "jinja/1"
_MODULE: Final = "tokenplace.engine.renderer"


def template_hash(template: str) -> str:
    """The template's name on the wire: docs/protocol.md, section 2. 64 hex digits."""
    return hashlib.sha256(template.encode() + b"\x00" + RENDERER.encode()).hexdigest()


class TemplateRenderer:
    """One template, rendered by one child process that is replaced when it dies. Close it."""

    def __init__(self, template: str, bos: str, eos: str, control_texts: Sequence[str]) -> None:
        compiled = (template, bos, eos, tuple(control_texts))
        self._helper = Helper(_MODULE, compiled, defaults.RENDER_TIMEOUT_S)
        self._has_tools = False

    @property
    def has_tools(self) -> bool:
        """Does the template show the model its tools? Known after `start`."""
        return self._has_tools

    async def start(self) -> None:
        """Compile the template now, so that a broken one is found early.

        Raises `ConfigError` with the reason.
        """
        try:
            reason, self._has_tools = await self._helper.start()
        except ChildDied:
            reason = "the template needs too much time or memory"
        if reason:
            await self.aclose()
            raise ConfigError(f"its chat template does not compile: {reason}")

    async def render(self, chat: ChatInput, as_of: str) -> tuple[Segment, ...]:
        """The prompt for this chat, up to where the model goes on.

        Raises `TemplateFailed`, and `InvalidRequest` for tools or calls whose JSON is none.
        """
        try:
            segments, reason, param = await self._helper.ask(_question(chat, as_of))
        except ChildDied:
            raise TemplateFailed("The template needs too much time or memory.") from None
        except trio.TooSlowError:
            raise TemplateFailed(f"It took longer than {defaults.RENDER_TIMEOUT_S:g} s.") from None
        except BadFrame:
            raise TemplateFailed("The messages are too large.") from None
        if param:
            raise InvalidRequest(reason, param=param)
        if reason:
            raise TemplateFailed(reason)
        return tuple(segments)

    async def aclose(self) -> None:
        """End the child."""
        await self._helper.aclose()


def _question(chat: ChatInput, as_of: str) -> object:
    """What `renderer.py` takes."""
    messages = [
        (
            message.role,
            message.content,
            [(call.id, call.name, call.arguments) for call in message.tool_calls],
            message.tool_call_id,
            message.name,
        )
        for message in chat.messages
    ]
    shown = () if chat.tool_choice == ToolChoice.NONE else chat.tools
    return messages, [(tool.name, tool.description, tool.parameters) for tool in shown], as_of
