"""What the next step computes: continuous batching. Start at `Scheduler.schedule`.

Pure: no llama.cpp, no clock, no trio. A step carries the next token of every running sequence and,
in what room is left, chunks of prompts; sequences join and leave at every step (Orca, OSDI 2022;
chunked prefill: arXiv:2308.16369).

Who starts next is fair between buckets by what they have been given, and will have been with the
answers that run (virtual token counter with length prediction, arXiv:2401.00588), first come, first
served within one; the machine's owner may go before all of them, though what runs is never stopped
for that. A sequence waits, at the most, for a prefix that another one of its scope is computing at
the moment: then it is copied instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tokenplace import defaults
from tokenplace.engine.accounts import Accounts
from tokenplace.engine.sequence import Sequence, n_common
from tokenplace.engine.slots import Prefix, Slot, SlotTable

_PROMPT_COST = 1  # of one token, in the account of its bucket
_ANSWER_COST = 2  # a token of an answer takes about twice as long as one of a prompt


@dataclass(frozen=True)
class Keep:
    """Forget all but the first `n` tokens of a slot."""

    slot: int
    n: int


@dataclass(frozen=True)
class Copy:
    """Make `slot`, whatever it holds, a copy of the first `n` tokens of `source`."""

    source: int
    slot: int
    n: int


@dataclass(frozen=True)
class Chunk:
    """Ids of one sequence to compute in this step, the first at place `start`.

    n_rows: of how many of the last ones the logits are wanted.
    """

    sequence: Sequence
    start: int
    n: int
    n_rows: int


@dataclass
class Plan:
    """One step: first the moves, in order, then all chunks as one batch.

    started: sequences that got a slot. requeued: those that lost theirs and wait again.
    """

    moves: list[Keep | Copy] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    requeued: list[Sequence] = field(default_factory=list)


class Scheduler:
    """All sequences of one worker, waiting and running.

    n_ctx: ids one sequence may have. max_running: sequences at a time, at most `table`'s slots.
    can_cut: whether a slot can forget its last tokens only; models with a recurrent state cannot.
    is_owner_first: whether those of the empty bucket, this peer's own, start before all others.
    n_left: tokens that an answer may be expected to need still. They count for its bucket before
    they are computed: else one that was given nothing yet would take every seat that is free.
    """

    def __init__(
        self,
        table: SlotTable,
        max_running: int,
        *,
        can_cut: bool = True,
        is_owner_first: bool = True,
        n_left: Callable[[Sequence], float] = lambda _: 1,
    ) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._table = table
        self._max_running = max_running
        self._can_cut = can_cut
        self._is_owner_first = is_owner_first
        self._n_left = n_left
        self._accounts = Accounts()
        self._n_arrived = 0
        self._n_started = 0
        self._has_news = False  # did anything change that could let somebody start?

    @property
    def is_idle(self) -> bool:
        """Is there nothing to compute?"""
        return not self.waiting and not self.running

    def submit(self, sequence: Sequence) -> None:
        """Let it wait for its turn."""
        waiting, running = ({s.bucket for s in some} for some in (self.waiting, self.running))
        self._accounts.enter(sequence.bucket, waiting, running)
        sequence.arrival = self._n_arrived
        self._n_arrived += 1
        self.waiting.append(sequence)
        self._has_news = True

    def leave(self, sequence: Sequence) -> list[Keep]:
        """It has ended, or nobody wants it any more; what it computed stays for its scope."""
        self._has_news = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return []
        self.running.remove(sequence)
        return [Keep(slot.index, 0) for slot in self._table.leave(sequence)]

    def drop(self, sequence: Sequence) -> list[Keep]:
        """The same, but nothing of it is used again: its keys and values are not to be trusted."""
        sequence.n_past = 0
        index = sequence.slot
        moves = self.leave(sequence)
        return moves if index is None else [*moves, Keep(index, 0)]

    def in_order(self) -> list[Sequence]:
        """Those that wait, in the order in which they may be expected to start."""
        return list(self._turns())

    def n_seats(self, waiting: list[Sequence]) -> int:
        """How many can run at once of those that do and of `waiting`, in this order: at most the
        seats there are, and fewer where the KV cache has no room for who is next.
        """
        n, n_cells = len(self.running), 0
        for sequence in waiting[: self._max_running - n]:
            n_cells += sequence.n_wanted
            if self._table.make_room(n_cells) is None:
                return max(1, n)
            n += 1
        return self._max_running

    def n_cached(self, sequence: Sequence) -> int:
        """Tokens of its prompt that it would find now, or once those that run are so far."""
        found = [prefix.n for prefix in self._table.prefixes(sequence) if self._is_usable(prefix)]
        coming = [n for _, n in self._being_computed(sequence)]
        n = max((*found, *coming), default=0)
        return min(n, sequence.n_prompt) if n >= defaults.MIN_REUSED_PREFIX else 0

    @property
    def is_rush(self) -> bool:
        """Are only prompts being read that were there before any running stream began?

        Streams may be held then: all of these came together, and each is sooner done if the prompts
        are read first, and the answers then computed in the same steps. Whoever comes later must
        not hold a stream that runs.
        """
        n_met = [s.n_met for s in self.running if s.is_stream]
        reading = [s.arrival for s in self.running if not s.is_stream]
        if not n_met or not reading:
            return False
        return all(n is not None and max(reading) < n for n in n_met)

    def schedule(
        self, n_prompt_tokens: int, max_rows: int, *, are_streams_held: bool = False
    ) -> Plan:
        """Decide a step. Sequences are taken to be computed by it: their `n_past` moves on.

        n_prompt_tokens: how many of prompts it should hold. max_rows: logits wanted, at most,
        beyond one for each sequence. are_streams_held: compute nothing of those that run.
        """
        plan = Plan()
        self._grow(plan)
        if self._has_news:
            self._start(plan)
        n_left = n_prompt_tokens
        for sequence in self.running:
            n = sequence.n_missing
            if sequence.is_stream:
                sequence.n_met = self._n_arrived if sequence.n_met is None else sequence.n_met
                if are_streams_held:
                    continue
            elif n > 1 or sequence.first_row is not None:
                n = min(n, n_left, self._n_for_rows(sequence, max_rows))
                n_left -= n
            if n > 0:
                plan.chunks.append(self._chunk(sequence, n))
        # llama.cpp computes neighbours in ascending order at once, and others one after the other.
        plan.chunks.sort(key=lambda chunk: chunk.sequence.slot or 0)
        return plan

    def take_back(self, chunks: list[Chunk]) -> list[Keep]:
        """These were not computed after all; what of them may have been is to be forgotten."""
        for chunk in chunks:
            chunk.sequence.n_past = chunk.start
            self._accounts.charge(chunk.sequence.bucket, -self._cost(chunk))
        slots = [(chunk.sequence.slot, chunk.start) for chunk in chunks]
        return [Keep(slot, start) for slot, start in slots if slot is not None]

    def charge(self, chunks: Iterable[Chunk]) -> None:
        """These were taken back because of whom they are for, so its bucket pays for them."""
        for chunk in chunks:
            self._accounts.charge(chunk.sequence.bucket, self._cost(chunk))

    def requeue_youngest(self) -> list[Sequence]:
        """The backend found no room although the budget has some: the youngest makes some. It is
        not lost. Empty if it runs alone, so that nothing would be won.
        """
        if len(self.running) < 2:
            return []
        plan = Plan()
        self._requeue(self._youngest(), plan)
        return plan.requeued

    def forget_idle(self) -> list[int]:
        """Give up every idle prefix; the slots that are to be emptied."""
        idle = [slot for slot in self._table.slots if slot.is_free]
        for slot in idle:
            self._table.forget(slot)
        return [slot.index for slot in idle]

    # ------------------------------------------------------------ a step

    def _chunk(self, sequence: Sequence, n: int) -> Chunk:
        start, end = sequence.n_past, sequence.n_past + n
        if sequence.first_row is not None:
            n_rows = max(0, end - max(start, sequence.first_row))
        else:
            n_rows = 1 if end == sequence.n_ids else 0
        sequence.n_past = end
        chunk = Chunk(sequence, start, n, n_rows)
        self._accounts.charge(sequence.bucket, self._cost(chunk))
        return chunk

    @staticmethod
    def _cost(chunk: Chunk) -> int:
        sequence = chunk.sequence
        is_decode = chunk.n == 1 and chunk.start + 1 == sequence.n_ids and sequence.n_new > 0
        return _ANSWER_COST if is_decode else chunk.n * _PROMPT_COST

    @staticmethod
    def _n_for_rows(sequence: Sequence, max_rows: int) -> int:
        """Ids that may be computed at once so that not too many rows of logits are wanted."""
        if sequence.first_row is None:
            return sequence.n_missing
        return max(sequence.first_row - sequence.n_past, 0) + max_rows

    def _grow(self, plan: Plan) -> None:
        """More cells for those whose answers are longer than was expected."""
        for sequence in list(self.running):
            if sequence.slot is None:  # requeued a moment ago
                continue
            slot = self._table.slots[sequence.slot]
            if sequence.n_ids <= slot.n_reserved:
                continue
            n_more = sequence.n_wanted - slot.n_reserved
            while (gone := self._table.make_room(n_more)) is None:
                youngest = self._youngest()
                self._requeue(youngest, plan)
                if youngest is sequence:
                    break
            else:
                self._forget(gone, plan)
                slot.n_reserved += n_more

    def _requeue(self, sequence: Sequence, plan: Plan) -> None:
        assert sequence.slot is not None, "only who runs can be stopped"
        plan.moves += self.drop(sequence)
        plan.requeued.append(sequence)
        # First in its bucket: it has waited before.
        self.waiting.insert(0, sequence)

    def _youngest(self) -> Sequence:
        return max(self.running, key=lambda sequence: sequence.order)

    # ------------------------------------------------------------ who starts

    def _start(self, plan: Plan) -> None:
        """Let sequences start, in their turn, as long as there is a slot and room for them."""
        self._has_news = False
        for sequence in self._turns():
            if len(self.running) == self._max_running:
                return
            if self._is_being_computed(sequence):
                self._has_news = True  # look again in the next step
                continue
            if not self._seat(sequence, plan):
                return  # nobody overtakes who needs more room: large requests would never start
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._accounts.seat(sequence.bucket)
            plan.started.append(sequence)

    def _turns(self) -> Iterator[Sequence]:
        """Those that wait: the owner's, if he goes first, then of the bucket that was given least,
        each in turn.
        """
        queues: dict[str, list[Sequence]] = {}
        for sequence in self.waiting:
            queues.setdefault(sequence.bucket, []).append(sequence)
        # What each will have been given once those before it have ended.
        given: dict[str, float] = {b: self._accounts.given(b) for b in queues}
        for sequence in self.running:
            if sequence.bucket in given:
                given[sequence.bucket] += self._n_left(sequence) * _ANSWER_COST
        while queues:
            bucket = min(queues, key=lambda name: (not self._is_privileged(name), given[name]))
            sequence = queues[bucket].pop(0)
            n_answer = self._n_left(sequence)
            given[bucket] += sequence.n_missing * _PROMPT_COST + n_answer * _ANSWER_COST
            if not queues[bucket]:
                del queues[bucket]
            yield sequence

    def _is_privileged(self, bucket: str) -> bool:
        return self._is_owner_first and not bucket

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Does somebody of its scope compute much of its prompt at the moment?"""
        found = max((prefix.n for prefix in self._table.prefixes(sequence)), default=0)
        return any(
            n - found >= defaults.MIN_SHARED_PREFIX and other.n_past < n
            for other, n in self._being_computed(sequence)
        )

    def _being_computed(self, sequence: Sequence) -> Iterator[tuple[Sequence, int]]:
        """Who of its scope is at its prompt now, and how much of it they have in common."""
        for other in self.running:
            if other.scope == sequence.scope and other.n_past < other.n_prompt and self._can_cut:
                yield other, min(n_common(other.ids, sequence.ids), sequence.n_reusable)

    def _seat(self, sequence: Sequence, plan: Plan) -> bool:
        """Give it a slot, with the best prefix there is. False if there is no room."""
        prefix = self._best_prefix(sequence)
        source = prefix.slot if prefix else None
        slot = self._slot_for(prefix)
        if slot is None:
            return False
        room = self._table.make_room(sequence.n_wanted - slot.n_cells, keep=slot)
        if room is None:
            return False
        if source is not None and source in room:  # it has to go: it is taken over in the end
            slot = source
            room = self._table.make_room(sequence.n_wanted - slot.n_cells, keep=slot)
            assert room is not None, "there was room with more of it gone"
        self._forget(room, plan)
        self._move_in(sequence, slot, prefix, plan)
        return True

    def _slot_for(self, prefix: Prefix | None) -> Slot | None:
        """An idle prefix is taken over if most of it is used, or if there is no other slot; else it
        stays as it is, for others, and is copied.
        """
        if prefix is None:
            return self._table.free_slot()
        source = prefix.slot
        if source.is_free and prefix.n * 2 >= len(source.ids):
            return source
        other = self._table.free_slot(keep=source)
        return source if other is None and source.is_free else other

    def _move_in(self, sequence: Sequence, slot: Slot, prefix: Prefix | None, plan: Plan) -> None:
        n = prefix.n if prefix is not None else 0
        if prefix is not None and prefix.slot is not slot:
            plan.moves.append(Copy(prefix.slot.index, slot.index, n))
        elif len(slot.ids) > n:
            plan.moves.append(Keep(slot.index, n))
        self._table.forget(slot)
        self._table.occupy(slot, sequence, sequence.n_wanted)
        sequence.n_past = n
        if sequence.n_cached is None:
            sequence.n_cached = min(n, sequence.n_prompt)
        sequence.order = self._n_started
        self._n_started += 1

    def _best_prefix(self, sequence: Sequence) -> Prefix | None:
        """The longest prefix worth using; of equals an idle one, which need not be copied."""
        found = [
            prefix
            for prefix in self._table.prefixes(sequence)
            if prefix.n >= defaults.MIN_REUSED_PREFIX and self._is_usable(prefix)
        ]
        return max(found, key=lambda p: (p.n, p.slot.is_free, -p.slot.index), default=None)

    def _is_usable(self, prefix: Prefix) -> bool:
        return self._can_cut or (prefix.slot.is_free and prefix.n == len(prefix.slot.ids))

    def _forget(self, slots: list[Slot], plan: Plan) -> None:
        for slot in slots:
            self._table.forget(slot)
            plan.moves.append(Keep(slot.index, 0))
