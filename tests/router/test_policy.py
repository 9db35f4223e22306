"""Choosing a donor: properties over any set of contenders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace.router.policy import (
    NEAR_EQUAL_FACTOR,
    OWN_FACTOR,
    Candidate,
    Choice,
    Contender,
    Standing,
    choose,
    expected_first_token_s,
    expected_total_s,
    hedge,
)
from tokenplace.router.why import Rule, Why

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
READY_ALICE = Contender(ALICE, first_token_s=2.0, total_s=10.0)


def contender(donor: str, total_s: float = 10.0, *, rank: int = 0, **changes: Any) -> Contender:
    candidate = replace(ALICE, donor=donor, rank=rank)
    known = replace(READY_ALICE, candidate=candidate, first_token_s=total_s / 5, total_s=total_s)
    return replace(known, **changes)


def who(choice: Choice | None) -> tuple[str, Rule]:
    assert choice is not None
    return choice.candidate.donor, choice.why.rule


def counts(contenders: Sequence[Contender], n: int = 2000, **kinds: Any) -> Counter[str]:
    dice = Random(1)
    return Counter(who(choose(contenders, dice, **kinds))[0] for _ in range(n))


READY_BOB = contender("bob")
READY_OWN = contender("")
seconds = st.floats(0, 1e4)
candidates = st.builds(
    Candidate,
    donor=st.sampled_from(["", "alice", "bob", "carol", "dave", "erin"]),
    artifact=st.sampled_from(["a" * 64, "b" * 64]),
    template=st.just(""),
    rank=st.integers(0, 2),
    queue=st.sampled_from([0, 1, 8]),
    prefill_tps=seconds,
    decode_tps=seconds,
    rtt_s=st.one_of(st.none(), seconds),
    is_accepting=st.booleans(),
    group=st.sampled_from(["", "here", "there"]),
)
contenders = st.lists(
    st.builds(
        Contender,
        candidates,
        first_token_s=seconds,
        total_s=seconds,
        wait_s=seconds,
        saved_s=seconds,
        is_free=st.booleans(),
        standing=st.sampled_from(Standing),
        ready_in_s=seconds,
        is_newcomer=st.booleans(),
    ),
    max_size=8,
)
orders = st.lists(st.sampled_from(["self", "alice", "bob", "nobody"]), max_size=3)


# ---------------------------------------------------------------- who may be chosen at all


@given(contenders, st.integers(), orders, st.booleans(), st.booleans())
def test_while_somebody_is_left_somebody_is_asked(
    left: list[Contender], seed: int, order: list[str], may_explore: bool, may_try: bool
) -> None:
    choice = choose(left, Random(seed), order=order, may_explore=may_explore, may_try=may_try)
    if not left:
        assert choice is None
        return
    assert choice is not None
    assert choice.candidate in [c.candidate for c in left]
    why = choice.why
    assert why.n_failed + why.n_full <= why.n_compared <= len(left)
    assert choice.why.text


@given(contenders.filter(bool), st.integers())
def test_who_is_ready_goes_before_who_rests(left: list[Contender], seed: int) -> None:
    choice = choose(left, Random(seed))
    assert choice is not None
    asked = [c for c in left if c.candidate == choice.candidate]
    askable = [c for c in left if c.candidate.is_accepting or c.candidate.is_own] or left
    if min(c.standing for c in askable) <= Standing.SUSPECT:
        assert min(c.standing for c in asked) <= Standing.SUSPECT


@given(contenders.filter(bool), st.integers())
def test_the_best_model_goes_first(left: list[Contender], seed: int) -> None:
    left = [replace(c, standing=Standing.READY) for c in left]
    choice = choose(left, Random(seed))
    assert choice is not None
    askable = [c for c in left if c.candidate.is_accepting or c.candidate.is_own] or left
    if choice.why.rule is not Rule.OWN:
        assert choice.candidate.rank == min(c.candidate.rank for c in askable)


@given(contenders.filter(bool), st.integers())
def test_only_a_request_that_may_go_to_newcomers_and_trials(
    left: list[Contender], seed: int
) -> None:
    choice = choose(left, Random(seed))
    assert choice is not None
    assert choice.why.rule is not Rule.NEWCOMER
    if any(c.standing <= Standing.SUSPECT and c.candidate.is_accepting for c in left):
        assert choice.why.rule not in (Rule.TRIAL, Rule.LEAST_BAD)


def test_who_accepts_nothing_is_asked_when_nobody_else_is_left() -> None:
    closed = replace(READY_ALICE, candidate=replace(ALICE, is_accepting=False))
    assert counts([closed, READY_BOB], 20) == {"bob": 20}
    assert who(choose([closed], Random(1))) == ("alice", Rule.ONLY_ONE)


def test_of_who_is_asked_without_a_comparison_it_is_told_why_there_was_none() -> None:
    new = [replace(READY_BOB, is_newcomer=True), replace(READY_ALICE, is_newcomer=True)]
    assert who(choose([READY_ALICE, new[0]], Random(1))) == ("alice", Rule.ONLY_MEASURED)
    of_one_network = [replace(c, candidate=replace(c.candidate, group="net")) for c in new]
    choice = choose(of_one_network, Random(1))
    assert choice is not None
    assert choice.why.rule is Rule.DRAWN


# ---------------------------------------------------------------- wishes and the own engine


def test_wishes_go_first_in_their_order_but_not_to_who_rests() -> None:
    resting = replace(READY_BOB, standing=Standing.RESTING)
    assert who(choose([READY_ALICE, READY_OWN, READY_BOB], Random(1), order=["bob", "alice"])) == (
        "bob",
        Rule.WISHED,
    )
    assert (
        who(choose([READY_ALICE, READY_OWN, resting], Random(1), order=["bob", "alice"]))[0]
        == "alice"
    )


def test_the_own_engine_is_first_unless_its_queue_is_long() -> None:
    assert who(choose([READY_OWN, READY_ALICE], Random(1))) == ("", Rule.OWN)
    some = replace(
        READY_OWN, is_free=False, wait_s=1.0, first_token_s=READY_ALICE.first_token_s * OWN_FACTOR
    )
    assert who(choose([some, READY_ALICE], Random(1))) == ("", Rule.OWN)
    long = replace(some, wait_s=30.0, first_token_s=32.0, total_s=40.0)
    chosen = counts([long, READY_ALICE, READY_BOB], 200)
    assert chosen[""] < 20
    newcomer = replace(READY_ALICE, is_newcomer=True)
    assert who(choose([long, newcomer], Random(1))) == ("", Rule.OWN), "nobody measured is sooner"


# ---------------------------------------------------------------- better and worse


def test_equals_share_the_work_and_who_is_clearly_worse_gets_next_to_none() -> None:
    shared = counts([READY_ALICE, READY_BOB, contender("carol"), contender("dave", 40.0)])
    assert all(shared[donor] > 100 for donor in ("alice", "bob", "carol"))
    assert shared["dave"] < 20


def test_who_waits_longer_is_asked_less_but_not_never() -> None:
    short = contender("alice", 10.0, wait_s=1.0)
    long = contender("bob", 20.0, wait_s=11.0)
    asked = counts([short, long])
    assert 0.1 < asked["bob"] / asked["alice"] < 0.4


def test_who_is_good_anyway_is_as_good_as_the_best() -> None:
    good = contender("bob", 5.0, first_token_s=0.5)
    best = contender("alice", 0.5, first_token_s=0.1)
    others = [contender(f"good-{n}", 5.0, first_token_s=0.5) for n in range(8)]
    asked = counts([good, best, *others])
    assert asked["alice"] < 1000, "two are drawn of all of them"


def test_one_good_donor_among_many_bad_ones_is_found() -> None:
    slow = [contender(f"slow-{n}", 50.0, first_token_s=5.0) for n in range(9)]
    assert counts([READY_ALICE, *slow])["alice"] > 1900


# ---------------------------------------------------------------- affinity


def test_who_holds_the_beginning_is_asked_if_nobody_is_sooner() -> None:
    holder = replace(READY_ALICE, first_token_s=0.5, total_s=8.5, saved_s=1.5)
    assert who(choose([holder, READY_BOB, contender("carol")], Random(1))) == (
        "alice",
        Rule.AFFINITY,
    )
    loaded = replace(holder, first_token_s=6.0, total_s=14.0, wait_s=5.5)
    assert who(choose([loaded, READY_BOB, contender("carol")], Random(1)))[1] is not Rule.AFFINITY
    slow = replace(holder, total_s=READY_BOB.total_s * NEAR_EQUAL_FACTOR * 1.1)
    assert who(choose([slow, READY_BOB, contender("carol")], Random(1)))[1] is not Rule.AFFINITY


# ---------------------------------------------------------------- newcomers


def farm(n: int, total_s: float = 10.0, **changes: Any) -> list[Contender]:
    known = [
        contender(f"sybil-{each:03}", total_s, is_newcomer=True, **changes) for each in range(n)
    ]
    return [replace(c, candidate=replace(c.candidate, group="farm")) for c in known]


def test_newcomers_are_left_out_unless_the_request_may_try_one() -> None:
    asked = counts([READY_ALICE, READY_BOB, *farm(50)])
    assert set(asked) == {"alice", "bob"}
    assert who(choose([READY_ALICE, *farm(50)], Random(1), may_explore=True))[1] is Rule.NEWCOMER


def test_a_farm_of_newcomers_has_the_chance_of_one() -> None:
    honest = [contender(f"honest-{n}", is_newcomer=True) for n in range(4)]
    asked = counts([READY_ALICE, *honest, *farm(200)], may_explore=True)
    n_farm = sum(n for donor, n in asked.items() if donor.startswith("sybil"))
    assert 0.1 < n_farm / sum(asked.values()) < 0.3, "a fifth, not 98 %"


def test_nobody_is_measured_at_the_start_so_newcomers_are_compared() -> None:
    slow = contender("slow", 100.0, is_newcomer=True)
    asked = counts([slow, *(replace(c, is_newcomer=True) for c in (READY_ALICE, READY_BOB))])
    assert asked["slow"] < 10


def test_newcomers_help_when_everybody_else_would_let_wait() -> None:
    busy = [replace(c, is_free=False, wait_s=20.0, total_s=30.0) for c in (READY_ALICE, READY_BOB)]
    assert counts([*busy, *farm(3)])["bob"] < 600
    busy_too = {"is_free": False, "wait_s": 20.0}
    as_long = counts([*busy, *farm(3, total_s=30.0, **busy_too)])
    longer = counts([*busy, *farm(3, total_s=60.0, **busy_too)])
    assert max(as_long["alice"], as_long["bob"]) < 800, "a third each, for it is one network"
    assert min(longer["alice"], longer["bob"]) > 800


# ---------------------------------------------------------------- rest and trials


def test_one_that_has_rested_is_tried_by_a_request_that_may() -> None:
    due = contender("due", standing=Standing.DUE)
    assert set(counts([READY_ALICE, READY_BOB, due], 100)) == {"alice", "bob"}
    assert who(choose([READY_ALICE, READY_BOB, due], Random(1), may_try=True)) == (
        "due",
        Rule.TRIAL,
    )
    stranger = replace(due, is_newcomer=True)
    assert set(counts([READY_ALICE, READY_BOB, stranger], 100, may_try=True)) == {"alice", "bob"}
    assert who(choose([READY_ALICE, stranger], Random(1), may_explore=True))[0] == "alice"
    assert who(choose([READY_ALICE, stranger], Random(1), may_explore=True, may_retry=True)) == (
        "due",
        Rule.NEWCOMER,
    )
    worse_model = contender("due", rank=1, standing=Standing.DUE)
    assert who(choose([READY_ALICE, worse_model], Random(1), may_try=True))[0] == "alice"


def test_a_suspect_is_asked_only_if_all_are() -> None:
    suspect = contender("bob", 1.0, standing=Standing.SUSPECT)
    assert set(counts([READY_ALICE, suspect], 100)) == {"alice"}
    assert who(choose([suspect], Random(1)))[0] == "bob"


def test_when_all_rest_the_one_is_asked_that_is_ready_first() -> None:
    full = contender("full", standing=Standing.COOLING, ready_in_s=3.0)
    bad = contender("bad", standing=Standing.RESTING, ready_in_s=200.0)
    assert who(choose([bad, full], Random(1))) == ("full", Rule.LEAST_BAD)
    soon = replace(bad, ready_in_s=1.0)
    assert who(choose([soon, full], Random(1))) == ("bad", Rule.LEAST_BAD)
    due = contender("due", standing=Standing.DUE)
    assert who(choose([bad, full, due], Random(1))) == ("due", Rule.TRIAL)


# ---------------------------------------------------------------- hedges


@given(contenders)
def test_a_hedge_goes_only_to_who_is_idle_and_ready_measured_ones_first(
    left: list[Contender],
) -> None:
    choice = hedge(left)
    fit = [
        c for c in left if c.standing is Standing.READY and c.is_free and c.candidate.is_accepting
    ]
    fit = [c for c in fit if not c.is_newcomer] or fit
    assert (choice is None) == (not fit)
    if choice is not None:
        assert choice.candidate in [c.candidate for c in fit]
        assert choice.why.rule is Rule.HEDGE


# ---------------------------------------------------------------- a donor's own word


def test_claims_beyond_belief_are_worth_no_more_than_the_cap() -> None:
    fast = replace(ALICE, decode_tps=300.0, prefill_tps=20_000.0)
    liar = replace(ALICE, decode_tps=1e9, prefill_tps=1e9)
    assert expected_total_s(liar) == expected_total_s(fast)
    assert expected_first_token_s(replace(fast, queue=3)) == pytest.approx(
        expected_first_token_s(fast) + 3 * 200 / 300
    )


def test_a_reason_says_what_was_expected_and_of_how_many() -> None:
    why = Why(Rule.BETTER_OF_TWO, 1.25, 9.0, n_compared=7, n_failed=2, n_full=1)
    assert "1.2 s, by its own word" in why.text
    assert "7 donors; 2 of them resting after failures; 1 of them busy" in why.text
    assert "by what was measured" in replace(why, is_measured=True).text
    assert all(Why(rule).text for rule in Rule)
