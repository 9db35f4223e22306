"""Times that many peers would else keep together. Pure."""

from __future__ import annotations

from random import Random
from typing import Final

JITTER: Final = 0.5  # of the time


def jittered(seconds: float, dice: Random) -> float:
    """`seconds`, half of them more or less at the most: whoever was told the same does not come
    back at the same moment.
    """
    return seconds * dice.uniform(1 - JITTER, 1 + JITTER)


def later(seconds: float, dice: Random) -> float:
    """`seconds` that somebody else asked for, and half of them more at the most."""
    return seconds * dice.uniform(1, 1 + JITTER)
