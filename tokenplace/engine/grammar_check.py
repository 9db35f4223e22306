"""Whether the worker can bear a grammar. Start at `GrammarChecker.check`.

Apart from the template's process: requests without a chat have grammars too, and whoever sends one
that takes a second to refuse must not hold up everybody's chats.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.helper import Helper
from tokenplace.engine.process import ChildDied
from tokenplace.errors import InvalidRequest

_MODULE: Final = "tokenplace.engine.checker"


class GrammarChecker:
    """Tries grammars out, in a child process that starts with the first. Close it."""

    def __init__(self, control_texts: Sequence[str]) -> None:
        self._helper = Helper(_MODULE, tuple(control_texts), defaults.GRAMMAR_CHECK_TIMEOUT_S)
        self._turns: dict[str, trio.Lock] = {}

    async def check(self, grammar: str, param: str, bucket: str = "") -> None:
        """Raises `InvalidRequest`, naming `param`, for a grammar that cannot be used, or would take
        too much time or memory.

        bucket: whose request it is, for fairness.
        """
        async with self._turn(bucket):
            try:
                reason = await self._helper.ask(grammar)
            except (ChildDied, trio.TooSlowError):
                reason = "It is too complex."
        if reason:
            raise InvalidRequest(f"The schema cannot be used. {reason}", param=param)

    async def aclose(self) -> None:
        """End the child."""
        await self._helper.aclose()

    @asynccontextmanager
    async def _turn(self, bucket: str) -> AsyncIterator[None]:
        """One grammar of a bucket at a time: the others wait behind one slow one, not sixteen."""
        lock = self._turns.setdefault(bucket, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._turns.get(bucket) is lock:
                del self._turns[bucket]
