"""The scheduler alone, with sequences that come, run, grow, end and are cancelled in any order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.engine.parts import ALICE, BOB
from tokenplace.engine.scheduler import Copy, Keep, Plan, Scheduler
from tokenplace.engine.sequence import Sequence
from tokenplace.engine.slots import SlotTable

N_CTX = 60
MAX_PROMPT = 40
OWNER = ""


class SchedulerMachine(RuleBasedStateMachine):
    """A table of what a KV cache would hold stands beside the scheduler's own."""

    @initialize(
        n_slots=st.integers(1, 6),
        n_running=st.integers(1, 4),
        n_cells=st.integers(N_CTX, 4 * N_CTX),
        can_cut=st.booleans(),
        is_owner_first=st.booleans(),
    )
    def open(
        self, n_slots: int, n_running: int, n_cells: int, can_cut: bool, is_owner_first: bool
    ) -> None:
        self.table = SlotTable(n_slots, n_cells)
        self.n_running = min(n_running, n_slots)
        self.can_cut = can_cut
        self.is_owner_first = is_owner_first
        self.scheduler = Scheduler(
            self.table, self.n_running, can_cut=can_cut, is_owner_first=is_owner_first
        )
        self.cache: list[list[tuple[int, bytes]]] = [[] for _ in range(n_slots)]
        self.n_asked = 0
        self.living: list[Sequence] = []

    @rule(
        bucket=st.sampled_from(["alice", "bob", OWNER]),
        scope=st.sampled_from([ALICE, BOB]),
        n_prompt=st.integers(1, MAX_PROMPT),
        common=st.integers(0, MAX_PROMPT),
        max_new=st.integers(1, N_CTX - MAX_PROMPT),
        n_expected=st.sampled_from([None, 4]),
        n_resumed=st.sampled_from([0, 0, 3]),
    )
    def submit(
        self,
        bucket: str,
        scope: bytes,
        n_prompt: int,
        common: int,
        max_new: int,
        n_expected: int | None,
        n_resumed: int,
    ) -> None:
        self.n_asked += 1
        prompt = np.full(n_prompt, 1000 + self.n_asked, np.int32)
        prompt[:common] = 7
        sequence = Sequence.begin(
            self.n_asked,
            prompt,
            bucket=bucket,
            scope=scope,
            max_new=max_new,
            n_expected=n_expected,
            answer=[5] * min(n_resumed, max_new - 1),
        )
        self.living.append(sequence)
        self.scheduler.submit(sequence)

    @precondition(lambda self: self.living)
    @rule(n_prompt_tokens=st.integers(1, 64), n=st.integers(1, 8))
    def step(self, n_prompt_tokens: int, n: int) -> None:
        for _ in range(n):
            self.one_step(n_prompt_tokens)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), is_trusted=st.booleans())
    def leave(self, data: st.DataObject, is_trusted: bool) -> None:
        sequence = data.draw(st.sampled_from(self.living))
        self.living.remove(sequence)
        leave = self.scheduler.leave if is_trusted else self.scheduler.drop
        self.move(leave(sequence))

    @precondition(lambda self: len(self.scheduler.running) > 1)
    @rule()
    def find_no_room(self) -> None:
        youngest = max(self.scheduler.running, key=lambda s: s.order)
        slot = youngest.slot
        assert self.scheduler.requeue_youngest() == [youngest]
        assert youngest in self.scheduler.waiting
        assert slot is not None
        self.move([Keep(index, 0) for index in self.scheduler.forget_idle()])

    def one_step(self, n_prompt_tokens: int) -> Plan:
        before = {id(s): s.n_past for s in self.scheduler.running}
        was_running = bool(self.scheduler.running)
        n_stopped = len(self.scheduler.running)
        plan = self.scheduler.schedule(n_prompt_tokens, 4)
        self.check_turns(plan)
        n_stopped += len(plan.started) - len(self.scheduler.running)
        assert n_stopped == len(plan.requeued), "somebody was stopped to let another start"
        self.move(plan.moves)
        assert plan.chunks or not self.living, "a step that does nothing, for ever"
        assert sum(c.n for c in plan.chunks if c.n > 1) <= n_prompt_tokens
        slots = [chunk.sequence.slot or 0 for chunk in plan.chunks]
        assert slots == sorted(slots), "llama.cpp would compute them one after the other"
        computed = {id(chunk.sequence) for chunk in plan.chunks}
        for sequence in self.scheduler.running:
            if was_running and before.get(id(sequence)) == sequence.n_ids - 1:
                assert id(sequence) in computed, "a running stream has to wait"
        for chunk in plan.chunks:
            slot = chunk.sequence.slot
            assert slot is not None
            held = self.cache[slot]
            assert len(held) == chunk.start, "a gap in the KV cache"
            ids = chunk.sequence.buffer[chunk.start : chunk.start + chunk.n].tolist()
            held += [(token_id, chunk.sequence.scope) for token_id in ids]
            assert chunk.n_rows == (chunk.start + chunk.n == chunk.sequence.n_ids)
        for chunk in plan.chunks:
            if chunk.n_rows:
                self.draw(chunk.sequence)
        return plan

    def check_turns(self, plan: Plan) -> None:
        """The owner's wait for no stranger who waited too."""
        if not self.is_owner_first:
            return
        in_order = [sequence.bucket for sequence in self.scheduler.in_order()]
        assert in_order == sorted(in_order, key=bool), "a stranger before the owner"
        started = [sequence.bucket for sequence in plan.started]
        assert started == sorted(started, key=bool)
        if any(started):  # whoever is left of the owner's waits for a prefix that is being read
            left = [s for s in self.scheduler.waiting if s.bucket == OWNER]
            assert all(self.scheduler._is_being_computed(s) for s in left if s not in plan.requeued)

    def draw(self, sequence: Sequence) -> None:
        sequence.append(5)
        if sequence.is_whole:
            self.living.remove(sequence)
            self.move(self.scheduler.leave(sequence))

    def move(self, moves: Iterable[Keep | Copy]) -> None:
        for move in moves:
            match move:
                case Keep(slot, n):
                    assert n == 0 or self.can_cut, "this memory cannot be cut"
                    assert n <= len(self.cache[slot])
                    del self.cache[slot][n:]
                case Copy(source, slot, n):
                    assert source != slot
                    self.cache[slot] = self.cache[source][:n]

    @invariant()
    def every_slot_is_free_or_owned_once(self) -> None:
        if not hasattr(self, "table"):
            return
        owners = [slot.sequence for slot in self.table.slots if slot.sequence is not None]
        assert sorted(map(id, owners)) == sorted(map(id, self.scheduler.running))
        for slot in self.table.slots:
            if slot.sequence is not None:
                assert slot.sequence.slot == slot.index
        assert all(sequence.slot is None for sequence in self.scheduler.waiting)
        both = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(map(id, both)) == sorted(map(id, self.living))
        assert len(self.scheduler.running) <= self.n_running

    @invariant()
    def the_budget_is_never_exceeded(self) -> None:
        if not hasattr(self, "table"):
            return
        assert self.table.n_taken <= self.table.n_cells
        for slot, held in zip(self.table.slots, self.cache, strict=True):
            assert len(held) <= slot.n_cells, "more in the cache than is accounted for"

    @invariant()
    def the_cache_holds_what_is_believed_and_of_one_scope(self) -> None:
        if not hasattr(self, "table"):
            return
        for slot, held in zip(self.table.slots, self.cache, strict=True):
            assert [token_id for token_id, _ in held] == slot.cached_ids.tolist()
            owner = slot.sequence.scope if slot.sequence is not None else slot.scope
            assert {scope for _, scope in held} <= {owner}, "a foreign prefix"

    @invariant()
    def idle_prefixes_keep_to_their_quota(self) -> None:
        if not hasattr(self, "table"):
            return
        idle: dict[str, list[int]] = {}
        for slot in self.table.slots:
            if slot.is_idle_prefix:
                idle.setdefault(slot.bucket, []).append(slot.n_cells)
        for sizes in idle.values():
            assert sum(sizes) <= self.table.idle_quota or len(sizes) == 1

    def teardown(self) -> None:
        """Nobody starves: with no more newcomers, all come to their end."""
        if not hasattr(self, "table"):
            return
        n_left = sum(s.n_ids + s.max_new + 2 for s in self.living)
        # Each step computes something; requeued work is done again, but the oldest never is.
        for _ in range(n_left * (len(self.living) + 1) + 1):
            if not self.living:
                break
            self.one_step(16)
        assert not self.living, "somebody starves"
        assert self.scheduler.is_idle


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_bucket_with_many_requests_does_not_hold_up_one_with_few() -> None:
    """What two busy buckets are given never differs by more than a few requests' worth."""
    table = SlotTable(2, 2 * N_CTX)
    scheduler = Scheduler(table, 2)
    given = {"alice": 0, "bob": 0}
    for request in range(60):
        prompt = np.full(8, request, np.int32)
        scheduler.submit(Sequence.begin(request, prompt, bucket="alice", scope=ALICE, max_new=8))
    for request in range(60, 66):
        prompt = np.full(8, request, np.int32)
        scheduler.submit(Sequence.begin(request, prompt, bucket="bob", scope=BOB, max_new=8))
    worst = 0
    while any(s.bucket == "bob" for s in (*scheduler.waiting, *scheduler.running)):
        for chunk in scheduler.schedule(64, 1).chunks:
            given[chunk.sequence.bucket] += chunk.n
            if chunk.n_rows:
                chunk.sequence.append(5)
                if chunk.sequence.is_whole:
                    scheduler.leave(chunk.sequence)
        worst = max(worst, abs(given["alice"] - given["bob"]))
    assert worst <= 3 * 16, "one of them got far more"
    assert any(s.bucket == "alice" for s in scheduler.waiting), "alice had more to do all the time"
