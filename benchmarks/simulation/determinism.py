"""Runs that a seed decides wholly. Start at `run_seeded`.

trio shuffles what is ready to run, and the product draws sizes and pauses at random; here all of
that comes out of the seed, and time is virtual. Keys, nonces and epochs stay truly random: nothing
that is traced depends on them.

Differs from what one would expect of a library: trio's names for this are private, and are looked
at before they are replaced.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from unittest.mock import patch

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from tokenplace.peer import grease
from tokenplace.sealing import keys

T = TypeVar("T")


def run_seeded(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` under trio in virtual time; the same seed makes it do the same, in any process."""
    with _seeded(seed):
        return trio.run(main, clock=MockClock(autojump_threshold=0))


class _Secrets:
    """What `sealing.keys` uses of `secrets`: its sizes are seen on the wire."""

    def __init__(self, dice: random.Random) -> None:
        self.randbelow = dice.randrange
        self.token_bytes = dice.randbytes
        self._dice = dice

    def choice(self, values: Sequence[T]) -> T:
        return self._dice.choice(values)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    for name in ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r"):
        assert hasattr(trio_run, name), f"this version of trio has no {name}"
    state = random.getstate()
    random.seed(f"{seed} pauses")
    try:
        with (
            patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            patch.object(trio_run, "_r", random.Random(f"{seed} scheduler")),
            patch.object(grease, "DICE", random.Random(f"{seed} grease")),
            patch.object(keys, "secrets", _Secrets(random.Random(f"{seed} keys"))),
        ):
            yield
    finally:
        random.setstate(state)
