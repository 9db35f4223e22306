"""Who holds which part of the KV cache. Start at `SlotTable`.

Pure. A slot is a seat in the cache: one sequence's keys and values, and when that has ended what it
computed, until the place is needed. Cells are the cache's room, one a token. What several slots
share is counted for each of them, so the budget is kept however the backend stores it.

A prefix is only ever found by the scope that computed it: by its speed a prompt would tell a
stranger what others asked. So a bucket's idle prefixes have a quota, or one requester could turn
out everybody else's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tokenplace.engine.sequence import Ids, Sequence, n_common

_NOTHING = np.empty(0, np.int32)


@dataclass(eq=False)
class Slot:
    """One place. While `sequence` runs here, its ids count; `ids` are those of an idle prefix.

    n_reserved: cells kept for the running sequence. used_at: a count, the lowest is the least
    recently used.
    """

    index: int
    sequence: Sequence | None = None
    ids: Ids = field(default_factory=lambda: _NOTHING)
    scope: bytes = b""
    bucket: str = ""
    n_reserved: int = 0
    used_at: int = 0

    @property
    def cached_ids(self) -> Ids:
        """What the KV cache has of this slot."""
        return self.ids if self.sequence is None else self.sequence.cached_ids

    @property
    def is_free(self) -> bool:
        """Does nobody run here?"""
        return self.sequence is None

    @property
    def is_idle_prefix(self) -> bool:
        """Does nobody run here, but something is kept?"""
        return self.sequence is None and len(self.ids) > 0

    @property
    def n_cells(self) -> int:
        """Cells that are taken, or promised."""
        return len(self.ids) if self.sequence is None else self.n_reserved


@dataclass(frozen=True)
class Prefix:
    """The first `n` ids in `slot`, which somebody of the same scope needs too."""

    slot: Slot
    n: int


class SlotTable:
    """All slots, and the budget of cells. `n_cells` is at least what one sequence can fill."""

    def __init__(self, n_slots: int, n_cells: int) -> None:
        self.slots = [Slot(index) for index in range(n_slots)]
        self.n_cells = n_cells
        # Of one bucket. Half of all: two buckets never turn out each other's.
        self.idle_quota = n_cells // 2
        self._n_uses = 0

    @property
    def n_taken(self) -> int:
        """Cells that are taken or promised; never above `n_cells`."""
        return sum(slot.n_cells for slot in self.slots)

    def prefixes(self, sequence: Sequence) -> list[Prefix]:
        """What its scope has computed of it already, in each slot. Never among it is an id whose
        logits are wanted: the last one at least.
        """
        limit = sequence.n_reusable
        return [
            Prefix(slot, min(n_common(slot.cached_ids, sequence.ids), limit))
            for slot in self.slots
            if self._scope_of(slot) == sequence.scope
        ]

    def make_room(self, n_cells: int, keep: Slot | None = None) -> list[Slot] | None:
        """Idle prefixes that must go, least recently used first, so that `n_cells` are free; None
        if that would not do. `keep` is not among them. Changes nothing.
        """
        free = self.n_cells - self.n_taken
        gone: list[Slot] = []
        while free < n_cells:
            slot = self._next_to_go(keep, gone)
            if slot is None:
                return None
            gone.append(slot)
            free += slot.n_cells
        return gone

    def free_slot(self, keep: Slot | None = None) -> Slot | None:
        """A slot for a newcomer: an empty one beside those in use, because llama.cpp computes
        neighbours at once and others one after the other; else that of the idle prefix to go next.
        Never `keep`.
        """
        empty = [s for s in self.slots if s.is_free and not len(s.ids) and s is not keep]
        beside = [s for s in empty if self._is_beside_running(s)]
        return next(iter(beside or empty), None) or self._next_to_go(keep, [])

    def _is_beside_running(self, slot: Slot) -> bool:
        neighbours = self.slots[max(0, slot.index - 1) : slot.index + 2]
        return any(not neighbour.is_free for neighbour in neighbours)

    def occupy(self, slot: Slot, sequence: Sequence, n_cells: int) -> None:
        """The sequence runs here now, with so many cells of its own."""
        assert slot.is_free, "two sequences in one slot"
        slot.sequence, slot.n_reserved = sequence, n_cells
        slot.ids, slot.scope, slot.bucket = _NOTHING, b"", ""
        sequence.slot = slot.index

    def leave(self, sequence: Sequence) -> list[Slot]:
        """The sequence ends; what it computed stays. Slots that are over the quota now, forgotten
        here already and to be emptied.
        """
        assert sequence.slot is not None, "a sequence left twice"
        slot = self.slots[sequence.slot]
        slot.sequence, slot.n_reserved, sequence.slot = None, 0, None
        slot.ids, slot.scope, slot.bucket = (
            sequence.cached_ids.copy(),
            sequence.scope,
            sequence.bucket,
        )
        self._n_uses += 1
        slot.used_at = self._n_uses
        mine = [s for s in self.slots if s.is_idle_prefix and s.bucket == sequence.bucket]
        mine.sort(key=lambda s: s.used_at)
        gone = []
        # One may be larger: a donor's only requester has a long conversation.
        while len(mine) > 1 and sum(s.n_cells for s in mine) > self.idle_quota:
            gone.append(mine.pop(0))
            self.forget(gone[-1])
        return gone

    def forget(self, slot: Slot) -> None:
        """An idle prefix goes."""
        assert slot.is_free, "a running sequence's keys and values are needed"
        slot.ids, slot.scope, slot.bucket = _NOTHING, b"", ""

    def _next_to_go(self, keep: Slot | None, gone: list[Slot]) -> Slot | None:
        """The least recently used idle prefix of the bucket that has most of them."""
        idle = [s for s in self.slots if s.is_idle_prefix and s not in gone]
        n_held = Counter(slot.bucket for slot in idle)
        return min(
            (slot for slot in idle if slot is not keep),
            key=lambda s: (-n_held[s.bucket], s.used_at),
            default=None,
        )

    @staticmethod
    def _scope_of(slot: Slot) -> bytes | None:
        if slot.sequence is not None:
            return slot.sequence.scope
        return slot.scope if len(slot.ids) else None
