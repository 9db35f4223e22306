"""Two clocks that a test moves, as a real machine's move."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Machine:
    """steady stands still while it sleeps; wall is also set by hand."""

    steady: float = 50.0
    wall: float = 1_800_000_000.0

    def run(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def set_clock(self, seconds: float) -> None:
        """Forward, or back if negative."""
        self.wall += seconds
