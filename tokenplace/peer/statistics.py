"""What a donor has done so far, in numbers. Start at `Statistics`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace.peer.exchange import State


@dataclass(slots=True)
class Statistics:
    """Counts since the start, for people to see.

    n_served: answers given whole. n_failed: requests refused, or ended by an error frame.
    n_cancelled: requesters that left before, or did not read. n_answering: running or queued now.
    n_tokens: taken from engines for requesters.
    """

    n_served: int = 0
    n_failed: int = 0
    n_cancelled: int = 0
    n_answering: int = 0
    n_tokens: int = 0

    def count(self, end: State) -> None:
        """One exchange is over."""
        match end:
            case State.FINISHED:
                self.n_served += 1
            case State.FAILED:
                self.n_failed += 1
            case _:
                self.n_cancelled += 1
