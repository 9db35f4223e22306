"""Donors whose contexts hold more or less: a prompt, or an answer, that is too long for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from trio.testing import MockClock

from tests.router.given import GivenRouter
from tests.router.mortal import (
    REQUEST,
    Death,
    Mortal,
    MortalRoutes,
    choices_of,
    collect,
    router_over,
)
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel, prompt_ids
from tokenplace.errors import (
    ContextLengthExceeded,
    DonorBusy,
    DonorInternalError,
    DonorSilent,
    InvalidRequest,
    NoDonorForModel,
    TokenplaceError,
)
from tokenplace.generation import ChatInput, ChatMessage, Event
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.router.search import Search

LONG = replace(REQUEST, input=ChatInput((ChatMessage("user", "word " * 30),)))
SMALL, BIG = 20, 4096
N_PROMPT = len(prompt_ids(REQUEST.input))


def with_room(n_ctx: int, *deaths: Death) -> Mortal:
    return Mortal(deaths, FakeEngine(FakeModel(n_ctx=n_ctx)))


def outcomes(router: GivenRouter) -> list[tuple[str, str | None]]:
    return [(attempt.donor, attempt.outcome) for attempt in router.attempts]


def too_long(n_prompt: int, n_ctx: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(numbers={"n_prompt": n_prompt, "n_ctx": n_ctx})


# ---------------------------------------------------------------- a prompt that is too long


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_prompt_that_is_too_long_for_one_donor_goes_to_one_with_more_room(
    streamed: bool, autojump_clock: MockClock
) -> None:
    as_small = with_room(SMALL)
    router = router_over(with_room(SMALL), as_small, with_room(SMALL - 1), with_room(BIG))
    events = await collect(router, replace(LONG, streamed=streamed))
    assert outcomes(router) == [("donor0", "context_length_exceeded"), ("donor3", "finished")]
    assert not as_small.requests, "what has no more room would refuse it too"
    assert len(choices_of(events)[0].ids) == 40


async def test_too_long_for_all_is_told_with_figures(
    autojump_clock: MockClock,
) -> None:
    router = router_over(with_room(SMALL), with_room(SMALL + 1))
    with pytest.raises(ContextLengthExceeded) as caught:
        await collect(router, LONG)
    assert caught.value.numbers["n_ctx"] == SMALL
    assert caught.value.retry_after_s is None, "it would be too long then too"
    assert outcomes(router) == [("donor0", "context_length_exceeded")], "21 are known to be too few"


async def test_without_figures_it_is_told_at_once(autojump_clock: MockClock) -> None:
    other = with_room(BIG)
    router = router_over(with_room(SMALL, Death(0, ContextLengthExceeded())), other)
    with pytest.raises(ContextLengthExceeded):
        await collect(router)
    assert not other.requests


async def test_who_says_nothing_of_its_room_may_have_it(autojump_clock: MockClock) -> None:
    class Silent(MortalRoutes):
        def given(self, demand: Demand) -> Sequence[Route]:
            routes = super().given(demand)
            return [replace(r, candidate=replace(r.candidate, n_ctx=0)) for r in routes]

    routes = Silent(with_room(SMALL), with_room(BIG))
    router = GivenRouter(routes)
    await collect(router, LONG)
    assert [outcome for _, outcome in outcomes(router)] == ["context_length_exceeded", "finished"]


async def test_a_small_context_is_no_fault(autojump_clock: MockClock) -> None:
    router = router_over(with_room(SMALL), with_room(BIG))
    for _ in range(4):
        await collect(router, LONG)
    assert router.opinion("donor0").ready_in_s == 0


# ---------------------------------------------------------------- an answer that has begun


async def test_a_stream_goes_on_where_prompt_and_answer_have_room(
    autojump_clock: MockClock,
) -> None:
    """Not with who would refuse it, whether for the prompt or for what was delivered."""
    too_small = [with_room(SMALL), with_room(N_PROMPT + 30)]
    router = router_over(with_room(BIG, Death(31, DonorSilent())), *too_small, with_room(BIG))
    events = await collect(router)
    assert outcomes(router) == [("donor0", "donor_silent"), ("donor3", "finished")]
    assert choices_of(events) == choices_of(await collect(router_over(with_room(BIG))))


async def test_one_token_more_is_room(autojump_clock: MockClock) -> None:
    router = router_over(with_room(BIG, Death(31, DonorSilent())), with_room(N_PROMPT + 31))
    events = await collect(router)
    assert outcomes(router) == [("donor0", "donor_silent"), ("donor1", "finished")]
    assert len(choices_of(events)[0].ids) == 31


async def test_a_stream_that_nobody_has_room_for_ends_with_what_cut_it(
    autojump_clock: MockClock,
) -> None:
    """Also where a twin refuses it that seemed to have room."""
    refusing = with_room(BIG, Death(0, too_long(BIG, BIG)))
    router = router_over(with_room(BIG, Death(6, DonorSilent())), refusing, with_room(BIG))
    seen: list[Event] = []
    with pytest.raises(DonorSilent):
        await collect(router, seen=seen)
    assert len(choices_of(seen)[0].ids) == 5
    assert outcomes(router) == [("donor0", "donor_silent"), ("donor1", "context_length_exceeded")]


async def test_a_refusal_for_room_in_mid_stream_is_not_the_end(autojump_clock: MockClock) -> None:
    refusing = with_room(BIG, Death(0, too_long(BIG, BIG)))
    router = router_over(with_room(BIG, Death(6, DonorSilent())), refusing, with_room(BIG + 1))
    assert len(choices_of(await collect(router))[0].ids) == 40
    assert [donor for donor, _ in outcomes(router)] == ["donor0", "donor1", "donor2"]


# ---------------------------------------------------------------- what is told

ALICE, BOB = (
    Route(Candidate(name, "a" * 64, "", 0, 0, 0.0, 0.0, None, True, n_ctx=n_ctx), Mortal)
    for name, n_ctx in (("alice", 2048), ("bob", 4096))
)
BUSY, BROKEN, WRONG = DonorBusy(), DonorInternalError(), InvalidRequest()


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        pytest.param([(ALICE, too_long(3000, 2048)), (BOB, BUSY)], "busy", id="room but busy"),
        pytest.param([(BOB, BUSY), (ALICE, too_long(3000, 2048))], "busy", id="the same, reversed"),
        pytest.param(
            [(ALICE, BUSY), (BOB, too_long(5000, 4096))], "context_length_exceeded", id="no room"
        ),
        pytest.param(
            [(BOB, BROKEN), (ALICE, too_long(3000, 2048))], "internal", id="room but broken"
        ),
        pytest.param(
            [(BOB, WRONG), (ALICE, too_long(3000, 2048))], "invalid_request", id="would repeat"
        ),
        pytest.param(
            [(ALICE, too_long(3000, 2048)), (BOB, WRONG)], "invalid_request", id="would repeat last"
        ),
    ],
)
def test_too_long_is_told_only_if_nobody_had_room(
    failures: list[tuple[Route, TokenplaceError]], told: str
) -> None:
    """Whoever is told it does not come back, so it must not be said of a donor that was full."""
    search = Search("tiny-model", Demand(), 0.0)
    assert isinstance(search.why_nobody(is_committed=False), NoDonorForModel)
    for route, error in failures:
        search.note_asked(route)
        search.note_failure(route, error, 0, 1.0)
    assert search.why_nobody(is_committed=False).code == told
    assert search.may_go_on is (told != "invalid_request")


def test_what_was_too_small_stays_so_whatever_the_next_donor_says() -> None:
    search = Search("tiny-model", Demand(), 0.0)
    route = MortalRoutes(with_room(SMALL)).given(Demand())[0]
    for n_ctx in (4096, 2048):
        search.note_failure(route, too_long(100, n_ctx), 0, 1.0)
    assert search.small_ctx == 4096
