"""What the selector takes for a donor's fault, and how long it leaves whom alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.router.selecting import (
    DONORS,
    FAULTS,
    World,
    accepted,
    candidate,
    measured,
)
from tokenplace import defaults
from tokenplace.errors import (
    DONOR_ERRORS,
    ConnectFailed,
    ConnectionLost,
    ContextLengthExceeded,
    DeadlineExceeded,
    DonorBusy,
    DonorFinishing,
    DonorInternalError,
    DonorSilent,
    ModelNotOffered,
    PeerStopping,
    TemplateMismatch,
    TokenplaceError,
    Unsupported,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    Phase,
)
from tokenplace.router.breaker import FAULTS_IN_A_ROW
from tokenplace.router.memory import PATH_ERRORS, STATEMENT_ERRORS
from tokenplace.router.policy import Standing
from tokenplace.router.why import Rule

# ---------------------------------------------------------------- who is at fault


@pytest.mark.parametrize("error", [*FAULTS, ModelNotOffered, TemplateMismatch])
def test_bad_answers_open_the_breaker(error: type[TokenplaceError]) -> None:
    world = measured()
    world.fail("alice", error(), FAULTS_IN_A_ROW)
    assert world.standing("alice") is Standing.RESTING
    assert {world.choose().candidate.donor for _ in range(50)} == {"bob", "carol", "dave"}


@pytest.mark.parametrize(
    "error", [DonorBusy, DonorFinishing, Unsupported, ContextLengthExceeded, PeerStopping]
)
def test_what_is_not_the_donors_fault_does_not(error: type[TokenplaceError]) -> None:
    world = World()
    world.fail("alice", error(), 20)
    assert world.standing("alice") in (Standing.READY, Standing.COOLING)
    world.now += 100
    assert world.standing("alice") is Standing.READY


@pytest.mark.parametrize("error", sorted({*DONOR_ERRORS.values(), *PATH_ERRORS}, key=str))
def test_only_who_may_be_gone_has_to_prove_that_it_lives(error: type[TokenplaceError]) -> None:
    world = World()
    world.fail("alice", error())
    world.answer("bob")
    is_doubted = issubclass(error, PATH_ERRORS + STATEMENT_ERRORS)
    assert world.doubted == (["alice"] if is_doubted else [])


def test_who_fell_silent_and_was_given_up_is_a_path_that_broke() -> None:
    world = World()
    notes = world.ask("alice")
    notes.note(accepted(), world.now)
    world.now += 60
    notes.failed(DeadlineExceeded(), world.now)
    assert world.standing("alice") is Standing.SUSPECT
    world.answer("bob")
    assert world.doubted == ["alice"]


# ---------------------------------------------------------------- outraced

WAITS = [accepted(position=3)]
SAYS_NOTHING_IS_BEFORE_IT = [accepted(), Alive(Phase.QUEUED, 0.0, 0)]
LOADS = [accepted(), Alive(Phase.LOADING, 0.0, 0)]


@pytest.mark.parametrize(
    ("said", "standing"),
    [
        (WAITS, Standing.READY),
        (LOADS, Standing.READY),
        (SAYS_NOTHING_IS_BEFORE_IT, Standing.RESTING),
        ([], Standing.RESTING),
    ],
    ids=["waits", "loads", "says nothing is before it", "says nothing"],
)
def test_who_is_outraced_without_a_reason_again_and_again_rests(
    said: Sequence[Accepted | Alive], standing: Standing
) -> None:
    world = measured()
    for _ in range(FAULTS_IN_A_ROW):
        notes = world.ask("alice")
        for event in said:
            notes.note(event, world.now)
        world.now += 2
        notes.outraced(world.now)
    assert world.standing("alice") is standing


def test_who_was_never_any_good_rests_when_outraced_whatever_it_says() -> None:
    world = measured("bob")
    notes = world.ask("alice")
    notes.note(accepted(position=3), world.now)
    world.now += 2
    notes.outraced(world.now)
    assert world.standing("alice") is Standing.RESTING


def test_a_trial_that_is_outraced_has_failed() -> None:
    world = measured()
    world.fail("alice", WorkerCrashed(), FAULTS_IN_A_ROW)
    world.now += 2 * defaults.BREAKER_REST_S
    assert world.standing("alice") is Standing.DUE
    notes = world.ask("alice")
    notes.note(accepted(position=3), world.now)
    notes.outraced(world.now + 2)
    assert world.standing("alice") is Standing.RESTING


# ---------------------------------------------------------------- paths and the own network


def test_a_broken_path_makes_suspect_at_once_and_counts_once_somebody_is_heard() -> None:
    world = measured("alice")
    for _ in range(FAULTS_IN_A_ROW):
        world.fail("alice", ConnectionLost())
        assert world.standing("alice") is Standing.SUSPECT
        assert world.choose().candidate.donor != "alice"
        world.now += 10
        world.answer("bob")
    assert world.standing("alice") is Standing.RESTING


def test_requests_that_share_a_connection_fail_together_and_that_is_one_fault() -> None:
    world = measured("alice")
    asked = [world.ask("alice") for _ in range(10)]
    for notes in asked:
        notes.failed(ConnectionLost(), world.now)
        world.answer("bob")
        world.now -= 1.4
    world.now += 60
    assert world.standing("alice") is Standing.READY


def test_the_own_network_away_opens_nothing_and_cools_nothing() -> None:
    world = measured()
    asked = [world.ask(donor) for donor in DONORS for _ in range(5)]
    for number, notes in enumerate(asked):
        world.now += 0.01
        notes.failed(DonorSilent(), world.now)
        assert world.selector.is_own_outage(world.now) == (number >= 5)
    for _ in range(20):
        donor = world.choose().candidate.donor
        world.now += 5
        world.fail(donor, ConnectFailed())
    assert world.selector.is_own_outage(world.now)
    late = world.ask("alice")
    world.now += 1
    world.answer("bob")
    late.failed(DonorSilent(), world.now + 9)
    world.answer("bob")
    world.now += 20
    assert not world.selector.is_own_outage(world.now)
    assert not world.doubted
    assert {world.standing(donor) for donor in DONORS} == {Standing.READY}


@pytest.mark.parametrize("error", [DeadlineExceeded, DonorInternalError])
def test_giving_somebody_up_is_not_hearing_of_him(error: type[TokenplaceError]) -> None:
    """What it says shows that this peer's own network is there; what is found here does not."""
    world = World()
    world.fail("alice", ConnectionLost())
    notes = world.ask("bob")
    world.now += 1
    notes.failed(error(), world.now)
    assert world.doubted == ([] if error is DeadlineExceeded else ["alice"])


def test_the_own_engine_says_nothing_of_the_network() -> None:
    world = World(donors=[candidate(""), *map(candidate, DONORS)])
    world.fail("alice", ConnectionLost())
    world.answer("")
    assert not world.doubted


# ---------------------------------------------------------------- cool-downs


def test_a_full_donor_is_left_alone_for_as_long_as_it_says_and_somewhat_longer() -> None:
    rests = set()
    for seed in range(20):
        world = World()
        world.memory._dice.seed(seed)
        world.fail("alice", DonorBusy(retry_after_s=20.0))
        assert world.choose().candidate.donor != "alice"
        standing, rest_s = world.memory.standing("alice", world.now)
        assert standing is Standing.COOLING
        assert 20 <= rest_s <= 30
        rests.add(rest_s)
    assert len(rests) == 20


@pytest.mark.parametrize("told_s", [None, 0.0, 1e-9, 3600.0])
def test_a_cool_down_is_bounded_whatever_is_told(told_s: float | None) -> None:
    world = World()
    world.fail("alice", DonorBusy(retry_after_s=told_s))
    _, rest_s = world.memory.standing("alice", world.now)
    assert defaults.MIN_COOL_DOWN_S <= rest_s <= defaults.MAX_COOL_DOWN_S * 1.5


def test_a_donor_that_leaves_is_left_alone_until_all_have_heard_it() -> None:
    world = World()
    world.fail("alice", DonorFinishing())
    standing, rest_s = world.memory.standing("alice", world.now)
    assert standing is Standing.COOLING
    assert rest_s >= defaults.LIVE_LIFETIME_S / 2
    world.now += 1.5 * defaults.LIVE_LIFETIME_S
    assert world.standing("alice") is Standing.READY, "leaving is no fault"


def test_when_all_are_full_the_one_is_asked_that_is_free_first() -> None:
    world = World()
    for donor in DONORS:
        world.fail(donor, DonorBusy(retry_after_s=4.0 if donor == "carol" else 60.0))
    assert world.choose().why.rule is Rule.LEAST_BAD
    assert world.choose().candidate.donor == "carol"
