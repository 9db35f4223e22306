"""A confined child process that answers one question at a time. Start at `Helper.ask`.

For what strangers write and somebody must run: chat templates (`template.py`), grammars
(`grammar_check.py`). A child that dies, or takes too long, is replaced at the next question.
"""

from __future__ import annotations

from typing import Any

import trio

from tokenplace import defaults
from tokenplace.engine.frames import encode_frame
from tokenplace.engine.process import ChildDied, ChildProcess


class Helper:
    """The life of one such child. Close it."""

    def __init__(self, module: str, first: object, timeout_s: float) -> None:
        """`first` is what a new child is told; it answers. `timeout_s`: for each question."""
        self._module = module
        self._first = first
        self._timeout_s = timeout_s
        self._child: ChildProcess | None = None
        self._one_at_a_time = trio.Lock()

    async def start(self) -> Any:
        """Start a child now, and return what it answers to `first`.

        Raises `ChildDied`, also when that takes too long.
        """
        child = ChildProcess.start(self._module)
        try:
            with trio.fail_after(defaults.HELPER_START_TIMEOUT_S):
                await child.send(encode_frame(self._first))
                answer = await child.receive()
        except trio.TooSlowError:
            await child.aclose()
            raise ChildDied("it took too long to start") from None
        except BaseException:
            await child.aclose()
            raise
        self._child = child
        return answer

    async def ask(self, question: object) -> Any:
        """The child's answer.

        Raises `ChildDied`, `trio.TooSlowError`, and `BadFrame` for a question that is too large.
        """
        async with self._one_at_a_time:
            is_answered = False
            try:
                if self._child is None or not self._child.is_running:
                    await self.aclose()
                    await self.start()  # what it says was said before
                assert self._child is not None
                with trio.fail_after(self._timeout_s):
                    await self._child.send(encode_frame(question))
                    answer = await self._child.receive()
                is_answered = True
                return answer
            finally:
                if not is_answered:  # its next answer would be to this question
                    await self.aclose()

    async def aclose(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            await child.aclose()
