"""A selector with donors, and what it hears of their answers. Start at `World`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tokenplace.errors import (
    BadFormat,
    DeadlineExceeded,
    DonorInternalError,
    RemoteProtocolError,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Finished,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.router.memory import Notes
from tokenplace.router.policy import Candidate, Choice, Standing
from tokenplace.router.selector import Facts, Selector

ARTIFACT = "a" * 64
FINISHED = Finished((), Usage(1, 0, 1), Timings(0, 0, 0))
FAULTS = (WorkerCrashed, DonorInternalError, RemoteProtocolError, BadFormat, DeadlineExceeded)
DONORS = ("alice", "bob", "carol", "dave")


def candidate(donor: str, **changes: Any) -> Candidate:
    known = Candidate(donor, ARTIFACT, "", 0, 0, 100.0, 20.0, 0.02, True, load_age_s=1.0)
    return replace(known, **changes)


def accepted(n_cached: int = 0, position: int = 0) -> Accepted:
    return Accepted(b"", 300, n_cached, 4096, 512, "", 0, position)


def tokens(n: int = 1, choice: int = 0) -> Tokens:
    return Tokens(choice, 0, (1,) * n, (b"x",) * n)


@dataclass
class World:
    """A selector, its donors, and the time."""

    donors: Sequence[Candidate] = tuple(map(candidate, DONORS))
    now: float = 1000.0
    doubted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.selector = Selector(Random(1), lambda c, _: self.doubted.append(c.donor))
        self.memory = self.selector.memory

    def choose(
        self, facts: Facts | None = None, tried: Iterable[str] = (), *, is_first: bool = True
    ) -> Choice:
        choice = self.selector.choose(
            self.donors, facts or Facts(), frozenset(tried), self.now, is_first=is_first
        )
        assert choice is not None
        return choice

    def ask(self, donor: str, facts: Facts | None = None) -> Notes:
        known = next(each for each in self.donors if each.donor == donor)
        return self.selector.ask(known, facts or Facts(), self.now)

    def answer(self, donor: str, facts: Facts | None = None, *, tps: float = 20.0) -> None:
        """One that goes well: the first token after a second, then ten."""
        notes = self.ask(donor, facts)
        notes.note(accepted(), self.now)
        self.now += 1
        notes.note(tokens(), self.now)
        self.now += 10 / tps
        notes.note(tokens(10), self.now)
        notes.note(FINISHED, self.now)

    def fail(self, donor: str, error: TokenplaceError, times: int = 1) -> None:
        for _ in range(times):
            self.ask(donor).failed(error, self.now)

    def standing(self, donor: str) -> Standing:
        return self.memory.standing(donor, self.now)[0]


def measured(*donors: str) -> World:
    world = World()
    for donor in donors or DONORS:
        world.answer(donor)
    return world
