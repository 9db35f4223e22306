"""Whose turn it is after hours of other use, and how many can run at once."""

from __future__ import annotations

import numpy as np
import pytest

from tokenplace.engine.scheduler import Scheduler
from tokenplace.engine.sequence import Sequence
from tokenplace.engine.slots import SlotTable


class Desk:
    """A scheduler whose sequences all end after as many tokens as they may have."""

    def __init__(self, n_seats: int, n_cells: int = 4000) -> None:
        self.scheduler = Scheduler(SlotTable(4, n_cells), n_seats)
        self.n_asked = 0
        self.ended: list[str] = []

    def sequence(self, bucket: str, n_prompt: int = 10, n_new: int = 10) -> Sequence:
        self.n_asked += 1
        prompt = np.full(n_prompt, 1000 + self.n_asked, np.int32)
        scope = bucket.encode()
        return Sequence.begin(self.n_asked, prompt, bucket=bucket, max_new=n_new, scope=scope)

    def ask(self, bucket: str, n: int = 1) -> None:
        for _ in range(n):
            self.scheduler.submit(self.sequence(bucket))

    def next_end(self) -> str:
        """Compute until one has ended; whose it was."""
        while not self.ended:
            for chunk in self.scheduler.schedule(512, 32).chunks:
                if chunk.n_rows:
                    chunk.sequence.append(1)
            for sequence in list(self.scheduler.running):
                if sequence.is_whole:
                    self.scheduler.leave(sequence)
                    self.ended.append(sequence.bucket)
        return self.ended.pop(0)

    def n_before(self, bucket: str, other: str) -> int:
        """Answers of `other`, who asks again each time, before the next of `bucket`."""
        for n in range(100):
            ended = self.next_end()
            while ended not in (bucket, other):
                ended = self.next_end()
            if ended == bucket:
                return n
            self.ask(other)
        raise AssertionError(f"{bucket} is starved")


def test_who_used_an_idle_donor_does_not_pay_for_it_later() -> None:
    desk = Desk(n_seats=1)
    for _ in range(50):
        desk.ask("alice")
        assert desk.next_end() == "alice"
    assert desk.scheduler.is_idle
    desk.ask("bob", 2)
    assert desk.next_end() == "bob"
    desk.ask("bob")
    desk.ask("alice")
    assert desk.n_before("alice", "bob") <= 2


def test_who_used_seats_that_others_left_free_does_not_pay_for_it_later() -> None:
    """Somebody else was there all the time, with one request after the other."""
    desk = Desk(n_seats=2)
    desk.ask("carol")
    desk.ask("alice")
    for _ in range(100):
        ended = desk.next_end()
        desk.ask(ended, 1 if ended == "carol" else 2)
    while any(s.bucket == "alice" for s in (*desk.scheduler.running, *desk.scheduler.waiting)):
        if desk.next_end() == "carol":
            desk.ask("carol")
    desk.ask("bob", 4)
    for _ in range(3):
        desk.ask(desk.next_end())
    desk.ask("alice")
    assert desk.n_before("alice", "bob") <= 4


@pytest.mark.parametrize(
    ("n_waiting", "n_cells", "n_seats"), [(0, 100, 4), (3, 100, 4), (3, 60, 3), (3, 20, 1)]
)
def test_there_are_as_many_seats_as_the_cache_has_room_for(
    n_waiting: int, n_cells: int, n_seats: int
) -> None:
    desk = Desk(4, n_cells)
    desk.ask("alice")
    desk.scheduler.schedule(512, 32)
    waiting = [desk.sequence("bob") for _ in range(n_waiting)]
    assert desk.scheduler.n_seats(waiting) == n_seats
