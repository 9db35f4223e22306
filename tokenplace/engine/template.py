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
from tokenplace.engine.tools import ToolFormat, tool_format
from tokenplace.engine.worded_tools import Place
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
        self._template = template
        compiled = (template, bos, eos, tuple(control_texts))
        self._helper = Helper(_MODULE, compiled, defaults.RENDER_TIMEOUT_S)
        self._place = Place.NOWHERE

    @property
    def has_tools(self) -> bool:
        """Can the model be shown its tools? Known after `start`."""
        return self._place is not Place.NOWHERE

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls. Known after `start`."""
        return ToolFormat.JSON if self._place.is_worded else tool_format(self._template)

    async def start(self) -> None:
        """Compile the template now, so that a broken one is found early.

        Raises `ConfigError` with the reason.
        """
        try:
            reason, place = await self._helper.start()
            self._place = Place(place)
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
    tools = [(tool.name, tool.description, tool.parameters) for tool in shown]
    return messages, tools, chat.parallel_tool_calls, as_of
