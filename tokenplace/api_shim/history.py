"""What an app is told of how its request came about: who was asked, and what became of that. Start
at `History`.

Ids, numbers and words of closed lists, all bounded; nothing of what was asked or answered.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import trio

from tokenplace.api_shim.refusal import Refusal
from tokenplace.router.attempts import route_text, tried_text
from tokenplace.router.journal import Journal

ATTEMPTS: Final = "x-tokenplace-attempts"
ROUTE: Final = "x-tokenplace-route"


@dataclass(frozen=True, slots=True)
class History:
    """Of one request, or of several that an app asked together. id: as the journal has it."""

    journal: Journal
    id: str

    def headers(self, *, is_over: bool) -> dict[str, str]:
        """How many attempts there were, and when all `is_over`, what became of each."""
        n_attempts = self.journal.n_attempts_of(self.id)
        if not n_attempts:
            return {}
        headers = {ATTEMPTS: str(n_attempts)}
        return {**headers, ROUTE: self.route} if is_over else headers

    @property
    def route(self) -> str:
        """What became of each attempt, for programs; empty if there was none."""
        return route_text(self.journal.attempts_of(self.id, trio.current_time()))

    def told_in(self, refusal: Refusal) -> Refusal:
        """The same, with whom this peer has asked. Only if it got as far as the journal: what is
        refused before has asked nobody."""
        if not self.journal.records_of(self.id):
            return refusal
        tried = tried_text(self.journal.attempts_of(self.id, trio.current_time()))
        return dataclasses.replace(
            refusal,
            message=" ".join(part for part in (refusal.message, tried) if part),
            headers={**refusal.headers, **self.headers(is_over=True)},
            request_id=self.id,
        )
