"""Where a request stands that has no token yet, for people. Start at `Waiting.text`. Pure.

Made of a donor's numbers alone, never of its words: the text goes to apps and to terminals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tokenplace.generation import Accepted, Alive, Event, Phase, Tokens

_HERE: Final = "self"  # how this peer's own engine is called
_SECONDS_UP_TO_S: Final = 120  # above, minutes say enough
_LONG_S: Final = 3600  # a donor may promise anything


@dataclass(frozen=True, slots=True)
class Waiting:
    """donor: peer id of who has accepted, "self" for this peer's own engine, empty while nobody
    has. phase: what it does. position: requests ahead. eta_s: until the first token; 0 if unknown.
    progress: the share of the phase that is done.
    """

    donor: str = ""
    phase: Phase = Phase.QUEUED
    position: int = 0
    eta_s: float = 0.0
    progress: float = 0.0

    def after(self, event: Event) -> Waiting:
        """What is known once this has come."""
        match event:
            case Accepted():
                eta_s = event.eta_ms / 1000
                return Waiting(event.donor or _HERE, Phase.QUEUED, event.position, eta_s)
            case Alive():
                eta_s = event.eta_ms / 1000
                return Waiting(self.donor, event.phase, event.position, eta_s, event.progress)
            case Tokens():
                return Waiting(self.donor, Phase.DECODE)
            case _:
                return self

    def later(self, passed_s: float) -> Waiting:
        """The same, so much later, if nothing was heard since."""
        return replace(self, eta_s=max(0.0, self.eta_s - passed_s))

    @property
    def text(self) -> str:
        """In words: "waiting: position 3 at 12D3Koo…, first token in about 8 s"."""
        if not self.donor:
            return "looking for a donor"
        match self.phase:
            case Phase.PREFILL:
                share = f", {self.progress * 100:.0f} %" if self.progress else ""
                return f"reading the prompt{share}{_about(', about ', self.eta_s)}"
            case Phase.LOADING:
                return f"loading the model{_about(', about ', self.eta_s)}"
            case Phase.DECODE:
                return "writing the answer"
            case _:
                again = " again" if self.phase is Phase.REQUEUED else ""
                place = f"position {self.position}" if self.position else "next"
                where = "this peer" if self.donor == _HERE else self.donor
                soon = _about(", first token in about ", self.eta_s)
                return f"waiting{again}: {place} at {where}{soon}"


def _about(before: str, seconds: float) -> str:
    """Behind these words how long it takes; nothing if that is not known."""
    if seconds <= 0:
        return ""
    if seconds > _LONG_S:
        return f"{before}an hour or more"
    if seconds > _SECONDS_UP_TO_S:
        return f"{before}{seconds / 60:.0f} min"
    return f"{before}{max(1, round(seconds))} s"
