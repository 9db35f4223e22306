"""Whose fault broken paths are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.router.blame import Blame


def test_one_path_that_broke_counts_once_somebody_else_is_heard() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=10)
    assert blame.is_pending("alice")
    assert blame.heard("alice", 10.5) == (), "who breaks off and comes back says nothing of others"
    blame.broke("alice", silent_since=11, now=20)
    assert blame.heard("bob", 20.1) == ("alice",)
    assert not blame.is_pending("alice")
    assert blame.heard("bob", 20.2) == (), "each is told once"
    assert not blame.is_own(21)


def test_two_that_break_with_nobody_heard_in_between_are_nobodys_fault() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=10)
    blame.broke("bob", silent_since=0, now=11)
    assert blame.is_own(11)
    assert blame.heard("carol", 30) == ()
    assert not blame.is_own(30)


def test_somebody_heard_in_between_parts_two_failures() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=10)
    assert blame.heard("carol", 10.2) == ("alice",)
    blame.broke("bob", silent_since=5, now=11)
    assert not blame.is_own(11)
    assert blame.heard("carol", 11.2) == ("bob",)


def test_what_fell_silent_during_an_outage_is_forgiven_whenever_it_is_noticed() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=10)
    blame.broke("bob", silent_since=1, now=11)
    blame.heard("carol", 15)
    blame.broke("dave", silent_since=14, now=24)
    assert not blame.is_pending("dave")
    blame.broke("dave", silent_since=16, now=26)
    assert blame.heard("carol", 26.1) == ("dave",)


def test_one_path_that_broke_long_ago_says_nothing_any_more() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=10)
    later = 10 + defaults.BLAME_WITHIN_S + 1
    blame.broke("bob", silent_since=later - 1, now=later)
    assert not blame.is_own(later)
    assert blame.heard("carol", later + 0.1) == ("bob",)


def test_an_outage_of_long_ago_is_not_told_of_any_more() -> None:
    blame = Blame()
    blame.broke("alice", silent_since=0, now=1)
    blame.broke("bob", silent_since=0, now=1)
    assert not blame.is_own(2 + defaults.OUTAGE_TOLD_S)


DONORS = ("alice", "bob", "carol")
steps = st.lists(
    st.tuples(st.sampled_from(["heard", "broke"]), st.sampled_from(DONORS), st.floats(0, 5))
)


@given(steps)
def test_nobody_is_blamed_twice_for_one_failure_nor_by_its_own_word(
    steps: list[tuple[str, str, float]],
) -> None:
    blame, now, n_broke = Blame(), 0.0, dict.fromkeys(DONORS, 0)
    for what, donor, seconds in steps:
        now += seconds
        if what == "broke":
            blame.broke(donor, now, now)
            n_broke[donor] += 1
            continue
        for blamed in blame.heard(donor, now):
            assert blamed != donor
            n_broke[blamed] -= 1
            assert n_broke[blamed] >= 0
        assert not blame.is_own(now), "somebody was heard"


@given(
    st.lists(
        st.tuples(st.sampled_from(DONORS), st.floats(0, 20), st.floats(20, 35)),
        min_size=2,
        max_size=40,
    ).filter(lambda failures: len({donor for donor, _, _ in failures}) > 1)
)
def test_an_outage_that_was_seen_blames_nobody(
    failures: list[tuple[str, float, float]],
) -> None:
    """Two have failed; whoever fell silent before somebody is heard again is forgiven."""
    blame = Blame()
    blame.broke("alice", silent_since=0, now=19)
    blame.broke("bob", silent_since=0, now=19)
    assert blame.heard("carol", 20) == ()
    for donor, silent_since, now in sorted(failures, key=lambda failure: failure[2]):
        blame.broke(donor, silent_since, now)
        assert blame.heard("dave", now) == ()
