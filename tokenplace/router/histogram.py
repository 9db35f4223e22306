"""How often values of a size were seen. Start at `Histogram`. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass
class Histogram:
    """How often a value was seen, by its size. n_seen: one more than `bounds`, for the rest."""

    bounds: tuple[float, ...]
    sum: float = 0.0
    n_seen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.n_seen = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to what is below it."""
        self.n_seen[bisect_left(self.bounds, value)] += 1
        self.sum += value
