"""Who is owed what: nothing is saved up by being away, and surplus is free."""

from __future__ import annotations

import pytest

from tokenplace import defaults
from tokenplace.engine.accounts import Accounts


def served(bucket: str, cost: int) -> Accounts:
    """Of an engine that has served one bucket, alone."""
    accounts = Accounts()
    accounts.enter(bucket, set())
    accounts.seat(bucket)
    accounts.charge(bucket, cost)
    return accounts


def test_who_comes_to_an_idle_engine_is_lifted_to_who_had_the_last_seat() -> None:
    accounts = served("alice", 1000)
    accounts.enter("bob", set())
    assert accounts.given("bob") == 1000
    accounts.seat("bob")
    accounts.charge("bob", 10)
    accounts.enter("carol", set())
    assert accounts.given("carol") == 1010, "by now"


def test_who_comes_to_others_is_lifted_to_the_least_of_those_who_wait() -> None:
    accounts = served("alice", 1000)
    accounts.enter("bob", set())
    accounts.seat("bob")
    accounts.charge("bob", 500)
    accounts.enter("carol", {"alice", "bob"})
    assert accounts.given("carol") == 1000


def test_nobody_is_lowered_and_who_waits_already_is_left_alone() -> None:
    accounts = served("alice", 1000)
    accounts.enter("bob", set())
    accounts.charge("bob", -400)  # taken back
    accounts.enter("bob", {"bob", "alice"})
    assert accounts.given("bob") == 600
    accounts.enter("alice", {"bob"})
    assert accounts.given("alice") == 1000


def test_of_many_who_are_gone_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_ACCOUNTS", 4)
    accounts = served("alice", 1000)
    accounts.enter("runs", set())
    for number in range(20):
        accounts.enter(f"visitor {number}", {"waits"} if number else set(), {"runs"})
        if not number:
            accounts.enter("waits", set())
    for bucket in ("alice", "runs", "waits", "visitor 19"):  # the last seat was alice's
        assert accounts.given(bucket) == 1000
    with pytest.raises(KeyError):
        accounts.given("visitor 1")
