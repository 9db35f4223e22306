"""Choosing a donor: properties over any set of candidates."""

from __future__ import annotations

import dataclasses
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tokenplace.router.policy import (
    NEAR_EQUAL_FACTOR,
    Candidate,
    choose,
    expected_first_token_s,
    expected_total_s,
)

ALICE = Candidate(
    donor="alice",
    artifact="a" * 64,
    template="",
    rank=0,
    queue=0,
    prefill_tps=100.0,
    decode_tps=10.0,
    rtt_s=0.02,
    is_accepting=True,
)
BOB = dataclasses.replace(ALICE, donor="bob")

speeds = st.one_of(st.just(0.0), st.floats(0.1, 1e9))
candidates = st.builds(
    Candidate,
    donor=st.sampled_from(["", "alice", "bob", "carol", "dave", "erin"]),
    artifact=st.sampled_from(["a" * 64, "b" * 64]),
    template=st.just(""),
    rank=st.integers(0, 2),
    queue=st.sampled_from([0, 1, 2, 4, 8]),
    prefill_tps=speeds,
    decode_tps=speeds,
    rtt_s=st.one_of(st.none(), st.floats(0, 5)),
    is_accepting=st.booleans(),
)


@given(st.lists(candidates), st.frozensets(st.sampled_from(["", "alice", "bob"])), st.integers())
def test_only_an_untried_candidate_is_chosen_and_some_is_if_there_is_one(
    known: list[Candidate], tried: frozenset[str], seed: int
) -> None:
    chosen = choose(known, tried, Random(seed))
    left = [c for c in known if c.donor not in tried]
    assert (chosen in left) if left else (chosen is None)


@given(st.lists(candidates, min_size=1), st.integers())
def test_who_accepts_and_the_best_model_go_first(known: list[Candidate], seed: int) -> None:
    chosen = choose(known, frozenset(), Random(seed))
    assert chosen is not None
    if any(c.is_own for c in known):
        assert chosen.is_own
    elif any(c.is_accepting for c in known):
        assert chosen.is_accepting
        assert chosen.rank == min(c.rank for c in known if c.is_accepting)


@given(st.lists(candidates, min_size=1), st.integers())
def test_nobody_clearly_worse_is_chosen(known: list[Candidate], seed: int) -> None:
    known = [dataclasses.replace(c, rank=0, is_accepting=True, donor="x" + c.donor) for c in known]
    chosen = choose(known, frozenset(), Random(seed))
    assert chosen is not None
    best_s = min(expected_total_s(c) for c in known)
    is_good = expected_first_token_s(chosen) <= 1.0 and chosen.decode_tps >= 20
    assert is_good or expected_total_s(chosen) <= NEAR_EQUAL_FACTOR * best_s


def test_equals_share_the_work() -> None:
    dice = Random(1)
    chosen = {c.donor for _ in range(50) if (c := choose([ALICE, BOB], frozenset(), dice))}
    assert chosen == {"alice"}, "of two equals drawn the same wins; load decides"
    carol = dataclasses.replace(ALICE, donor="carol")
    chosen = {c.donor for _ in range(50) if (c := choose([ALICE, BOB, carol], frozenset(), dice))}
    assert len(chosen) > 1


def test_a_longer_queue_loses() -> None:
    busy = dataclasses.replace(ALICE, queue=8)
    for seed in range(20):
        assert choose([busy, BOB], frozenset(), Random(seed)) == BOB


def test_claims_beyond_belief_are_worth_no_more_than_the_cap() -> None:
    fast = dataclasses.replace(ALICE, decode_tps=300.0, prefill_tps=20_000.0)
    liar = dataclasses.replace(ALICE, decode_tps=1e9, prefill_tps=1e9)
    assert expected_total_s(liar) == expected_total_s(fast)
