"""Who holds which part of the KV cache."""

from __future__ import annotations

import numpy as np

from tests.engine.parts import ALICE, BOB
from tokenplace.engine.sequence import Sequence
from tokenplace.engine.slots import Slot, SlotTable


def sequence(ids: list[int], *, scope: bytes = ALICE, bucket: str = "alice") -> Sequence:
    made = Sequence.begin(0, np.array(ids, np.int32), scope=scope, bucket=bucket, max_new=4)
    made.n_past = made.n_ids
    return made


def leave_prefix(table: SlotTable, index: int, ids: list[int], **of: object) -> list[Slot]:
    made = sequence(ids, **of)  # type: ignore[arg-type]
    table.occupy(table.slots[index], made, made.n_wanted)
    return table.leave(made)


def found(table: SlotTable, asked: Sequence) -> dict[int, int]:
    return {prefix.slot.index: prefix.n for prefix in table.prefixes(asked)}


def test_a_prefix_is_found_by_its_own_scope_only() -> None:
    table = SlotTable(3, 100)
    leave_prefix(table, 0, [1, 2, 3, 4])
    leave_prefix(table, 1, [1, 2, 9], scope=BOB)
    assert found(table, sequence([1, 2, 3, 8])) == {0: 3}
    assert found(table, sequence([1, 2, 3, 8], scope=BOB)) == {1: 2}
    assert found(table, sequence([1, 2, 3], scope=b"carol")) == {}


def test_the_last_id_is_always_computed_for_its_logits() -> None:
    table = SlotTable(1, 100)
    leave_prefix(table, 0, [1, 2, 3, 4])
    assert found(table, sequence([1, 2, 3])) == {0: 2}


def test_ids_whose_logits_are_wanted_are_computed() -> None:
    table = SlotTable(1, 100)
    leave_prefix(table, 0, [1, 2, 3, 4, 5, 6])
    asked = sequence([1, 2, 3, 4, 5])
    asked.first_row = 2
    assert found(table, asked) == {0: 2}


def test_a_running_sequence_offers_what_it_has_computed() -> None:
    table = SlotTable(2, 100)
    runs = sequence([1, 2, 3, 4])
    runs.n_past = 2
    table.occupy(table.slots[0], runs, 8)
    assert found(table, sequence([1, 2, 3, 4])) == {0: 2}


def test_one_buckets_idle_prefixes_hold_at_most_half() -> None:
    table = SlotTable(4, 20)
    assert leave_prefix(table, 0, [1] * 6) == []
    gone = leave_prefix(table, 1, [2] * 6)
    assert [slot.index for slot in gone] == [0], "the least recently used goes"
    assert leave_prefix(table, 2, [3] * 6, bucket="bob") == [], "bob has a half of his own"
    assert [len(slot.ids) for slot in table.slots] == [0, 6, 6, 0]


def test_one_long_conversation_is_kept_whatever_its_length() -> None:
    table = SlotTable(2, 20)
    leave_prefix(table, 0, [2] * 6)
    gone = leave_prefix(table, 1, [1] * 11)
    assert [slot.index for slot in gone] == [0]
    assert table.n_taken == 11


def test_room_is_made_at_the_cost_of_who_holds_most_prefixes() -> None:
    table = SlotTable(4, 40)
    leave_prefix(table, 0, [1] * 5, bucket="bob")
    leave_prefix(table, 1, [2] * 5)
    leave_prefix(table, 2, [3] * 5)
    assert table.make_room(25) == []
    assert table.make_room(26) == [table.slots[1]], "alice has two, and this was her first"
    assert table.make_room(31) == [table.slots[1], table.slots[0]]
    assert table.make_room(26, keep=table.slots[1]) == [table.slots[2]]
    assert table.make_room(41) is None
    assert table.n_taken == 15, "asking changes nothing"


def test_a_newcomer_sits_beside_those_who_run() -> None:
    table = SlotTable(5, 100)
    table.occupy(table.slots[2], sequence([1]), 3)
    assert table.free_slot() is table.slots[1]
    leave_prefix(table, 1, [2] * 5)
    assert table.free_slot() is table.slots[3]
    table.occupy(table.slots[3], sequence([1]), 3)
    assert table.free_slot() is table.slots[4]
    leave_prefix(table, 4, [3] * 5)
    assert table.free_slot() is table.slots[0], "an empty one all the same"


def test_a_newcomer_gets_an_empty_slot_first() -> None:
    table = SlotTable(3, 100)
    leave_prefix(table, 0, [1] * 5)
    assert table.free_slot() is table.slots[1]
    leave_prefix(table, 1, [2] * 5)
    leave_prefix(table, 2, [3] * 5)
    assert table.free_slot() is table.slots[0]
    assert table.free_slot(keep=table.slots[0]) is table.slots[1]
    for slot in table.slots:
        table.forget(slot)
        table.occupy(slot, sequence([1]), 3)
    assert table.free_slot() is None
