"""From messages to the text that a model reads. Start at `TemplateRenderer.render`.

The work is done in a child process with limits (`renderer.py`); here is its life: started with the
engine, given two seconds a chat, replaced when it dies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.frames import BadFrame, encode_frame
from tokenplace.engine.guard import Segment
from tokenplace.engine.process import ChildDied, ChildProcess
from tokenplace.errors import ConfigError, TemplateFailed
from tokenplace.generation import ChatMessage

RENDERER: Final = "jinja/1"
_MODULE: Final = "tokenplace.engine.renderer"


def template_hash(template: str) -> str:
    """The template's name on the wire: docs/protocol.md, section 2. 64 hex digits."""
    return hashlib.sha256(template.encode() + b"\x00" + RENDERER.encode()).hexdigest()


class TemplateRenderer:
    """One template, rendered by one child process that is replaced when it dies. Close it."""

    def __init__(self, template: str, bos: str, eos: str, control_texts: Sequence[str]) -> None:
        self._compiled = (template, bos, eos, tuple(control_texts))
        self._child: ChildProcess | None = None
        self._one_at_a_time = trio.Lock()

    async def render(self, messages: Sequence[ChatMessage], as_of: str) -> tuple[Segment, ...]:
        """The prompt for these messages, up to where the model goes on. Raises `TemplateFailed`."""
        question = ([(message.role, message.content) for message in messages], as_of)
        async with self._one_at_a_time:
            return await self._ask(question)

    async def start(self) -> None:
        """Compile the template now, so that a broken one is found early.

        Raises `ConfigError` with the reason.
        """
        try:
            await self._start_child()
        except TemplateFailed as error:
            raise ConfigError(f"its chat template does not compile: {error.detail}") from None

    async def aclose(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            await child.aclose()

    async def _ask(self, question: object) -> tuple[Segment, ...]:
        is_answered = False
        try:
            child = self._child
            if (
                child is None or not child.is_running
            ):  # something else ended it: no template's fault
                await self.aclose()
                child = await self._start_child()
            with trio.move_on_after(defaults.RENDER_TIMEOUT_S):
                await child.send(encode_frame(question))
                segments, reason = await child.receive()
                is_answered = True
        except ChildDied:
            raise TemplateFailed("The template needs too much time or memory.") from None
        except BadFrame:
            raise TemplateFailed("The messages are too large.") from None
        finally:
            if not is_answered:  # whatever it is doing, its next answer would be to this question
                await self.aclose()
        if not is_answered:
            raise TemplateFailed(f"It took longer than {defaults.RENDER_TIMEOUT_S:g} s.")
        if reason:
            raise TemplateFailed(reason)
        return tuple(segments)

    async def _start_child(self) -> ChildProcess:
        """A child that has compiled the template. Raises `TemplateFailed`."""
        child = ChildProcess.start(_MODULE)
        try:
            with trio.fail_after(defaults.RENDERER_START_TIMEOUT_S):
                await child.send(encode_frame(self._compiled))
                reason = await child.receive()
            if reason:
                raise TemplateFailed(reason)
        except (ChildDied, trio.TooSlowError):
            await child.aclose()
            raise TemplateFailed("The template needs too much time or memory.") from None
        except BaseException:
            await child.aclose()
            raise
        self._child = child
        return child
