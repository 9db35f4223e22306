"""A second donor while the first keeps a request waiting: when, to whom, and what the app sees."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.router.given import GivenRouter
from tests.router.mortal import REQUEST, Death, Mortal, accepted_of, choices_of, collect
from tests.router.mortal import router_over as mortal_router
from tests.router.racers import Racer, RaceRoutes, router_over
from tokenplace import defaults
from tokenplace.errors import (
    ConnectionLost,
    ContextLengthExceeded,
    DeadlineExceeded,
    DonorBusy,
    DonorInternalError,
    DonorSilent,
    TokenplaceError,
)
from tokenplace.generation import (
    NO_WISHES,
    Accepted,
    Alive,
    Event,
    Finished,
    GenerateRequest,
    Phase,
    Tokens,
    Wishes,
)
from tokenplace.router.attempts import Asked, Outcome, Progress
from tokenplace.router.hedging import HedgeBudget, Hedging, Punctuality, patience_ends_at
from tokenplace.router.policy import Candidate, Standing
from tokenplace.router.route import Route
from tokenplace.router.selector import Facts
from tokenplace.router.why import Rule

FOR_EVER = 1e6
BUSY: dict[str, object] = {"queue": 2}


def waiting(queue_s: float = FOR_EVER, *, phase: Phase = Phase.QUEUED, position: int = 1) -> Racer:
    """Lets a request wait for so long, and promises a first token within a second."""
    return Racer(queue_s=queue_s, phase=phase, position=position)


def outcomes(router: GivenRouter) -> list[tuple[str, str | None]]:
    return [(a.donor, a.outcome) for a in router.attempts]


def is_one_answer(events: Sequence[Event]) -> bool:
    return (
        isinstance(events[-1], Finished)
        and sum(isinstance(event, Finished) for event in events) == 1
        and len(choices_of(events)[0].ids) == REQUEST.max_tokens
    )


# ---------------------------------------------------------------- when, and who wins


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_idle_donor_answers_what_another_lets_wait(
    streamed: bool, autojump_clock: MockClock
) -> None:
    alice, bob = waiting(), Racer()
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    events = await collect(router, replace(REQUEST, streamed=streamed))
    assert is_one_answer(events)
    assert bob.asked_at == [2.0], "twice what the first has promised"
    assert outcomes(router) == [("donor0", "outraced"), ("donor1", "finished")]
    assert [(r.attempt, r.is_hedge) for r in (*alice.requests, *bob.requests)] == [
        (0, False),
        (1, True),
    ]
    why = router.attempts[1].why
    assert why is not None
    assert why.rule is Rule.HEDGE
    assert routes.failures == [], "nobody is to blame"
    assert [event.position for event in accepted_of(events)] == [1, 0], "the last one counts"


async def test_who_says_neither_yes_nor_no_is_hedged_too(autojump_clock: MockClock) -> None:
    alice, bob = Racer(accept_s=FOR_EVER), Racer()
    router = router_over(RaceRoutes([alice, bob]))
    events = await collect(router)
    assert is_one_answer(events)
    assert bob.asked_at == [defaults.HEDGE_UNACCEPTED_S]
    assert len(accepted_of(events)) == 1


async def test_whatever_a_donor_promises_a_queue_is_not_waited_for_longer(
    autojump_clock: MockClock,
) -> None:
    bob = Racer()
    await collect(router_over(RaceRoutes([Racer(queue_s=FOR_EVER, eta_s=90.0), bob])))
    assert bob.asked_at == [defaults.HEDGE_AFTER_MAX_S]


async def test_the_first_token_wins_and_the_loser_is_cancelled_at_once(
    autojump_clock: MockClock,
) -> None:
    alice, bob = Racer(queue_s=5.0, position=1), Racer(queue_s=FOR_EVER)
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    first_token_at = None
    async with router.generate(REQUEST) as events:
        async for event in events:
            if isinstance(event, Tokens) and first_token_at is None:
                first_token_at = trio.current_time()
                await trio.testing.wait_all_tasks_blocked()
                assert (alice.n_running, bob.n_running) == (1, 0)
    assert bob.ended_at == first_token_at
    assert sorted(outcomes(router)) == [("donor0", "finished"), ("donor1", "outraced")]
    assert routes.failures == []


async def test_an_app_is_told_of_the_first_donors_wait_alone(autojump_clock: MockClock) -> None:
    alice, bob = Racer(queue_s=FOR_EVER, position=7), Racer(queue_s=9.0)
    events = await collect(router_over(RaceRoutes([alice, bob])))
    waits = [event.position for event in events if isinstance(event, Alive)]
    assert set(waits[:-1]) == {7}
    assert is_one_answer(events)


async def test_a_second_that_would_have_to_wait_is_left_at_once(autojump_clock: MockClock) -> None:
    alice, bob = Racer(queue_s=8.0), Racer(queue_s=FOR_EVER, position=1)
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    assert is_one_answer(await collect(router))
    assert bob.ended_at == bob.asked_at[0] == 2.0
    assert routes.failures == []


# ---------------------------------------------------------------- when not


@pytest.mark.parametrize(
    ("phase", "loads", "wishes"),
    [
        (Phase.QUEUED, {1: BUSY}, NO_WISHES),
        (Phase.QUEUED, {1: {"is_accepting": False}}, NO_WISHES),
        (Phase.QUEUED, {1: {"load_age_s": None}}, NO_WISHES),
        (Phase.QUEUED, {1: {"rank": 1}}, NO_WISHES),
        (Phase.QUEUED, {0: {"donor": ""}}, NO_WISHES),
        (Phase.PREFILL, {}, NO_WISHES),
        (Phase.QUEUED, {}, Wishes(order=("donor0",))),
    ],
    ids=["queue", "yielding", "no load", "smaller model", "own engine", "prefill", "wished"],
)
async def test_no_second_donor(
    phase: Phase,
    loads: dict[int, dict[str, object]],
    wishes: Wishes,
    autojump_clock: MockClock,
) -> None:
    bob = Racer()
    router = router_over(RaceRoutes([waiting(30.0, phase=phase), bob], loads))
    assert is_one_answer(await collect(router, replace(REQUEST, wishes=wishes)))
    assert not bob.requests


async def test_a_donor_that_becomes_idle_is_asked_then(autojump_clock: MockClock) -> None:
    alice, bob = waiting(), Racer()
    routes = RaceRoutes([alice, bob], {1: BUSY})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, router_over(routes))
        await trio.sleep(15)
        routes.loads.clear()
    assert bob.asked_at[0] == pytest.approx(16, abs=defaults.HEDGE_LOOK_S)


async def test_an_answer_that_goes_on_is_not_hedged(autojump_clock: MockClock) -> None:
    dying = Racer(deaths=[Death(6, DonorSilent())])
    slow, idle = Racer(queue_s=20.0, position=1), Racer()
    routes = RaceRoutes([dying, slow, idle], {2: {"is_accepting": False}})
    router = router_over(routes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, router)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(5)
        routes.loads.clear()
    assert outcomes(router) == [("donor0", "donor_silent"), ("donor1", "finished")]


async def test_a_hedge_that_nobody_can_be_asked_for_costs_nothing(
    autojump_clock: MockClock,
) -> None:
    """The second says that it is idle, but has just said that it is full."""
    alice, bob = Racer(queue_s=30.0, position=3), Racer()
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    full = router._selector.ask(routes._route(1).candidate, Facts(), 0.0)
    full.failed(DonorBusy(retry_after_s=60.0), trio.current_time())
    assert is_one_answer(await collect(router))
    assert not bob.requests
    assert [router._hedging.budget.take() for _ in range(3)] == [True, True, False]


def test_tokens_to_go_on_from_have_to_be_read_too() -> None:
    candidate = RaceRoutes([Racer()])._route(0).candidate
    asked = Asked(0.0, "id", "model", candidate, 1)
    accepted = Accepted(bytes(32), 100, 0, 16_384, 100, "tp/1", 0, 0)
    ends_at = [
        patience_ends_at(Progress(0.0, replace(asked, n_resumed=n)), accepted) for n in (0, 8000)
    ]
    assert ends_at[1] - ends_at[0] == 8000 / defaults.PATIENT_PREFILL_TPS


def test_who_was_left_before_its_time_was_up_may_have_been_in_time() -> None:
    candidate = Candidate("alice", "a" * 64, "", 0, 0, 100.0, 10.0, 0.01, True)
    progress = Progress(0.0, Asked(0.0, "id", "model", candidate, 0))
    progress.accepted, progress.outcome = 1.0, Outcome.OUTRACED
    accepted = Accepted(bytes(32), 100, 0, 16_384, 100, "tp/1", 1000, 0)
    hedging = Hedging()
    before = hedging.due_at(progress, accepted)
    for _ in range(40):
        hedging.note_ended(progress, accepted, now=1.1)
    assert hedging.due_at(progress, accepted) == before
    for _ in range(40):
        hedging.note_ended(progress, accepted, now=4.0)
    assert hedging.due_at(progress, accepted) > before


async def test_hedges_are_a_twentieth_of_all_requests(autojump_clock: MockClock) -> None:
    n_requests = 100
    bob = Racer()
    for_all = RaceRoutes([Racer(queue_s=5.0), bob])
    router = router_over(for_all)
    for _ in range(n_requests):
        for_all.demands.clear()
        await collect(router, replace(REQUEST, max_tokens=1))
    n_most = n_requests // defaults.HEDGE_ONE_IN + defaults.HEDGE_BURST
    assert n_most - 1 <= len(bob.requests) <= n_most


@given(st.lists(st.booleans(), max_size=400))
def test_in_any_row_of_requests_the_budget_holds(wants: list[bool]) -> None:
    budget = HedgeBudget()
    taken = []
    for wanted in wants:
        budget.note_request()
        taken.append(wanted and budget.take())
    for start in range(0, len(wants), 7):
        n_requests = len(wants) - start
        most = n_requests / defaults.HEDGE_ONE_IN + defaults.HEDGE_BURST
        assert sum(taken[start:]) <= most


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0, 1e6))
def test_how_late_a_donor_is_at_the_worst(ratios: list[float], promised_s: float) -> None:
    punctuality = Punctuality()
    assert punctuality.factor("donor0") == 2
    for ratio in ratios:
        punctuality.note("donor0", 10.0, 10.0 * ratio)
        punctuality.note("donor1", promised_s, ratio)
    assert 1 <= punctuality.factor("donor0") <= defaults.FIRST_TOKEN_ETA_FACTOR
    assert 1 <= punctuality.factor("donor1") <= defaults.FIRST_TOKEN_ETA_FACTOR


def test_a_donor_that_keeps_its_word_is_taken_at_it() -> None:
    punctuality = Punctuality()
    for _ in range(60):
        punctuality.note("donor0", 10.0, 9.0)
        punctuality.note("donor1", 10.0, 26.0)
    assert punctuality.factor("donor0") < 2
    assert punctuality.factor("donor1") == pytest.approx(2.6)
    for n in range(2000):
        punctuality.note(f"{n}", 1.0, 1.0)
    assert punctuality.factor("donor1") == 2, "forgotten"


# ---------------------------------------------------------------- who fails


@pytest.mark.parametrize("error", [DonorBusy(), ContextLengthExceeded(), DonorInternalError()])
async def test_a_second_that_fails_is_nobodys_business(
    error: TokenplaceError, autojump_clock: MockClock
) -> None:
    alice, bob, carol = Racer(queue_s=20.0), Racer(deaths=[Death(0, error)]), Racer()
    router = router_over(RaceRoutes([alice, bob, carol], {2: BUSY}))
    assert is_one_answer(await collect(router))
    assert outcomes(router) == [("donor1", error.code), ("donor0", "finished")]
    assert not carol.requests, "one second donor a request"


async def test_a_second_that_was_not_needed_has_done_nothing_wrong(
    autojump_clock: MockClock,
) -> None:
    alice, bob = Racer(queue_s=5.0), waiting()
    router = router_over(RaceRoutes([alice, bob]))
    assert is_one_answer(await collect(router))
    assert outcomes(router) == [("donor1", "outraced"), ("donor0", "finished")]
    assert router.opinion("donor1").standing is Standing.READY


async def test_the_second_goes_on_when_the_first_fails(autojump_clock: MockClock) -> None:
    alice = Racer(deaths=[Death(1, DonorSilent())], queue_s=10.0, position=1)
    bob = Racer(queue_s=30.0)
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    events = await collect(router)
    assert is_one_answer(events)
    assert outcomes(router) == [("donor0", "donor_silent"), ("donor1", "finished")]
    assert [event.position for event in accepted_of(events)] == [1, 0]
    assert [donor for donor, _ in routes.failures] == ["donor0"]


@pytest.mark.parametrize("other", [DonorBusy(), DonorSilent()])
async def test_when_both_fail_the_app_is_told_what_says_most(
    other: TokenplaceError, autojump_clock: MockClock
) -> None:
    alice = Racer(deaths=[Death(1, other)], queue_s=10.0)
    bob = Racer(deaths=[Death(1, ContextLengthExceeded())])
    carol = Racer()
    with pytest.raises(ContextLengthExceeded):
        await collect(router_over(RaceRoutes([alice, bob, carol], {2: BUSY})))
    assert not carol.requests, "it would say the same"


async def test_when_both_fail_a_third_is_asked(autojump_clock: MockClock) -> None:
    alice = Racer(deaths=[Death(1, DonorSilent())], queue_s=10.0)
    bob = Racer(deaths=[Death(1, ConnectionLost())])
    carol = Racer()
    router = router_over(RaceRoutes([alice, bob, carol], {2: BUSY}))
    assert is_one_answer(await collect(router))
    assert [a.number for a in router.attempts] == [1, 0, 2]


async def test_who_was_outraced_may_go_on_with_the_answer(autojump_clock: MockClock) -> None:
    alice, bob = Racer(queue_s=6.0), Racer(deaths=[Death(6, DonorSilent())])
    router = router_over(RaceRoutes([alice, bob]))
    assert is_one_answer(await collect(router))
    assert outcomes(router) == [
        ("donor0", "outraced"),
        ("donor1", "donor_silent"),
        ("donor0", "finished"),
    ]


@pytest.mark.parametrize(("may_answer", "asked"), [(True, "donor0"), (False, "donor1")])
async def test_who_is_not_trusted_any_more_is_not_asked_again(
    may_answer: bool, asked: str, autojump_clock: MockClock
) -> None:
    alice, bob = Racer(deaths=[Death(6, ConnectionLost())]), Racer()
    router = router_over(RaceRoutes([alice, bob], may_answer=may_answer))
    assert is_one_answer(await collect(router))
    assert outcomes(router) == [("donor0", "connection_lost"), (asked, "finished")]


async def test_who_leaves_cancels_both(autojump_clock: MockClock) -> None:
    alice, bob = waiting(), waiting(position=0)
    routes = RaceRoutes([alice, bob])
    router = router_over(routes)
    with trio.move_on_after(15):
        await collect(router)
    assert (alice.n_running, bob.n_running) == (0, 0)
    assert len(bob.requests) == 1
    assert sorted(outcomes(router)) == [("donor0", "cancelled"), ("donor1", "cancelled")]
    assert routes.failures == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_fault_of_this_program_comes_out_bare(
    streamed: bool, autojump_clock: MockClock
) -> None:
    router = router_over(RaceRoutes([Racer(bug=ZeroDivisionError())]))
    with pytest.raises(ZeroDivisionError):
        await collect(router, replace(REQUEST, streamed=streamed))


# ---------------------------------------------------------------- fakes and deadlines


async def test_a_donor_is_not_left_whose_first_token_comes_while_others_are_sought(
    autojump_clock: MockClock,
) -> None:
    class Silent(Racer):
        @trio.as_safe_channel
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            async with self.engine.generate(request) as events:
                async for event in events:
                    if not isinstance(event, Alive):
                        yield event
                    if isinstance(event, Accepted):
                        await trio.sleep(self.queue_s)

    class Slow(RaceRoutes):
        async def find(self, *arguments: Any, **more: Any) -> Sequence[Route]:
            if self.demands:
                await trio.sleep(defaults.TWIN_SEARCH_S)
            return await super().find(*arguments, **more)

    n_in_time = 0
    for n_late in range(30):
        queue_s = defaults.FIRST_TOKEN_PATIENCE_S + n_late * defaults.TWIN_SEARCH_S / 4
        router = router_over(Slow([Silent(queue_s=queue_s), Racer()], {1: BUSY}))
        assert is_one_answer(await collect(router))
        first = next(a for a in router.attempts if a.donor == "donor0")
        assert (first.outcome == "finished") == (first.first_token_s is not None)
        n_in_time += first.outcome == "finished"
    assert 0 < n_in_time < 30


async def test_a_donor_is_left_that_only_promises(autojump_clock: MockClock) -> None:
    alice = Racer(queue_s=FOR_EVER, eta_s=200.0, phase=Phase.PREFILL)
    bob = Racer()
    routes = RaceRoutes([alice, bob], {1: BUSY})
    router = router_over(routes)
    assert is_one_answer(await collect(router))
    n_prompt = router.attempts[1].first_token_s  # the fake reads 1000 tokens/s
    assert n_prompt is not None
    (alice_left_at,) = [a.total_s for a in router.attempts if a.donor == "donor0"]
    assert defaults.FIRST_TOKEN_PATIENCE_S <= alice_left_at <= 70
    assert outcomes(router) == [("donor0", "deadline_exceeded"), ("donor1", "finished")]


async def test_who_is_alone_is_waited_for_but_not_for_ever(autojump_clock: MockClock) -> None:
    alice = Racer(queue_s=FOR_EVER, eta_s=200.0)
    router = router_over(RaceRoutes([alice]))
    with pytest.raises(DeadlineExceeded):
        await collect(router)
    assert trio.current_time() == defaults.MAX_UNANSWERED_S
    assert outcomes(router) == [("donor0", "deadline_exceeded")]
    assert alice.n_running == 0


async def test_however_many_pretend_a_request_ends(autojump_clock: MockClock) -> None:
    racers = [Racer(queue_s=FOR_EVER, eta_s=99.0) for _ in range(9)]
    routes = RaceRoutes(racers, {n: BUSY for n in range(1, 9)})
    with pytest.raises(DeadlineExceeded):
        await collect(router_over(routes))
    assert trio.current_time() == defaults.MAX_UNANSWERED_S
    assert sum(len(racer.requests) for racer in racers) == defaults.MAX_ATTEMPTS


# ---------------------------------------------------------------- whatever happens

times = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 7.0, 31.0])
deaths = st.builds(
    Death,
    st.integers(0, 30),
    st.sampled_from([ConnectionLost, DonorSilent, DonorInternalError, DonorBusy]).map(
        lambda error: error()
    ),
)
racers = st.builds(
    Racer,
    accept_s=times,
    queue_s=times,
    eta_s=st.sampled_from([0.0, 0.5, 1.0, 90.0]),
    position=st.integers(0, 2),
    phase=st.sampled_from([Phase.QUEUED, Phase.PREFILL]),
    deaths=st.lists(deaths, max_size=2),
    death_s=times,
)


@settings(max_examples=150, deadline=None)
@given(
    racing=st.lists(racers, min_size=1, max_size=4),
    streamed=st.booleans(),
    n=st.integers(1, 2),
    busy=st.sets(st.integers(1, 4)),
)
def test_whoever_races_the_app_sees_the_answer_of_one(
    racing: list[Racer], streamed: bool, n: int, busy: set[int]
) -> None:
    request = replace(REQUEST, streamed=streamed, n=n, max_tokens=12)
    last = Racer()
    everybody = [*(replace(r, asked_at=[], engine=type(r.engine)()) for r in racing), last]
    routes = RaceRoutes(everybody, {number: BUSY for number in busy})
    most_running = 0

    async def watch() -> None:
        nonlocal most_running
        while True:
            most_running = max(most_running, sum(racer.n_running for racer in everybody))
            await trio.sleep(0.5)

    async def main() -> tuple[list[Event], float]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            events = await collect(router := router_over(routes), request)
            nursery.cancel_scope.cancel()
        assert [a.outcome for a in router.attempts].count(Outcome.FINISHED) <= 1
        assert sum(a.is_hedge for a in router.attempts) <= 1
        return events, trio.current_time()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "PROGRESS_TOKENS", 0)  # how often is another test's business
        events, _ = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sum(racer.n_running for racer in everybody) == 0
    assert most_running <= 2
    uncut = run_uncut(request)
    assert choices_of(events) == choices_of(uncut)
    end, uncut_end = events[-1], uncut[-1]
    assert isinstance(end, Finished)
    assert isinstance(uncut_end, Finished)
    assert (end.choices, end.usage) == (uncut_end.choices, uncut_end.usage)
    assert sum(isinstance(event, Finished) for event in events) == 1


def run_uncut(request: GenerateRequest) -> list[Event]:
    async def main() -> list[Event]:
        return await collect(mortal_router(Mortal()), request)

    return trio.run(main, clock=MockClock(autojump_threshold=0))
