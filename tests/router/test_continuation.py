"""Answers that go on with another donor: what the app sees is what it would have seen uncut."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.router.mortal import (
    REQUEST,
    Death,
    Mortal,
    MortalRoutes,
    accepted_of,
    choices_of,
    collect,
    router_over,
)
from tokenplace import defaults
from tokenplace.api_shim.answer import Answer
from tokenplace.api_shim.form import Part
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    DonorBusy,
    DonorInternalError,
    DonorSilent,
    InvalidRequest,
    PromptMismatch,
    RemoteProtocolError,
    ResumeRejected,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    Event,
    Finished,
    GenerateRequest,
    GrammarStop,
    JsonObject,
    JsonSchema,
    LengthStop,
    Resume,
    Stop,
    StringStop,
    Tokens,
)
from tokenplace.router.continuation import Continuation
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Standing
from tokenplace.router.search import Search

ERRORS = [ConnectionLost, DonorSilent, DonorInternalError, RemoteProtocolError]
OTHER_MODEL = FakeModel(name="other-model", artifact="b" * 64)
ACCEPTED = 1  # events before the first token

requests = st.builds(
    replace,
    st.just(REQUEST),
    seed=st.binary(min_size=8, max_size=8),
    n=st.integers(1, 3),
    max_tokens=st.none() | st.integers(1, 24),
    ignore_eog=st.just(False),
    stop=st.sampled_from([(), ("日本",), ("are ", "n"), ("ü", "ß", "ï")]),
    output=st.sampled_from([None, None, JsonObject()]),
    top_logprobs=st.none() | st.integers(0, 2),
    streamed=st.booleans(),
)
deaths = st.builds(Death, st.integers(0, 80), st.sampled_from(ERRORS).map(lambda error: error()))


def parts_of(request: GenerateRequest, events: Sequence[Event]) -> dict[int, list[Part]]:
    """What an app is sent of each choice."""
    answer = Answer(request)
    parts: dict[int, list[Part]] = {}
    for event in events:
        for part in answer.receive(event):
            parts.setdefault(part.choice, []).append(part)
    assert answer.has_ended
    return parts


def run(mortals: Sequence[Mortal], request: GenerateRequest) -> list[Event]:
    async def main() -> list[Event]:
        return await collect(router_over(*mortals), request)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=150, deadline=None)
@given(request=requests, dying=st.lists(st.lists(deaths, min_size=1, max_size=2), max_size=4))
def test_wherever_donors_die_the_answer_is_that_of_an_uncut_run(
    request: GenerateRequest, dying: list[list[Death]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "PROGRESS_TOKENS", 0)  # how often is another test's business
        events = run([*map(Mortal, dying), Mortal()], request)
    uncut = run([Mortal()], request)
    assert choices_of(events) == choices_of(uncut)
    end, uncut_end = events[-1], uncut[-1]
    assert isinstance(end, Finished)
    assert isinstance(uncut_end, Finished)
    assert (end.choices, end.usage) == (uncut_end.choices, uncut_end.usage)
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert parts_of(request, events) == parts_of(request, uncut)


# ---------------------------------------------------------------- who goes on


def dying_after(n_tokens: int, *errors: TokenplaceError, model: FakeModel | None = None) -> Mortal:
    """Dies of each error in turn, after so many tokens of one choice."""
    deaths = [Death(ACCEPTED + n_tokens, error) for error in errors]
    return Mortal(deaths, FakeEngine(model))


async def test_a_broken_path_asks_the_same_donor_first_and_once(autojump_clock: MockClock) -> None:
    alice = dying_after(20, ConnectionLost(), ConnectionLost())
    bob = Mortal()
    router = router_over(alice, bob)
    events = await collect(router, replace(REQUEST, max_tokens=60))
    assert [a.donor for a in router.attempts] == ["donor0", "donor0", "donor1"]
    assert [a.n_tokens for a in router.attempts] == [20, 20, 20]
    assert [a.outcome for a in router.attempts] == ["connection_lost"] * 2 + ["finished"]
    assert [a.phase for a in router.attempts] == ["decode"] * 3
    asked = [*alice.requests, *bob.requests]
    assert [request.attempt for request in asked] == [0, 1, 2]
    delivered = choices_of(events)[0].ids
    assert [r.resume for r in asked] == [
        (),
        (Resume(0, tuple(delivered[:20])),),
        (Resume(0, tuple(delivered[:40])),),
    ]
    first, *_ = accepted_of(events)
    assert {r.prompt_digest for r in asked[1:]} == {first.prompt_digest}
    assert {(r.seed, r.sampling, r.n) for r in asked} == {(REQUEST.seed, REQUEST.sampling, 1)}


@pytest.mark.parametrize("error", [DonorSilent(), DonorInternalError(), WorkerCrashed()])
async def test_any_other_failure_asks_a_twin(
    error: TokenplaceError, autojump_clock: MockClock
) -> None:
    router = router_over(dying_after(5, error), Mortal())
    await collect(router)
    assert [a.donor for a in router.attempts] == ["donor0", "donor1"]


@pytest.mark.parametrize("refusal", [PromptMismatch, ResumeRejected, DonorBusy, ConnectFailed])
async def test_who_cannot_go_on_is_passed_over(
    refusal: type[TokenplaceError], autojump_clock: MockClock
) -> None:
    refusing = Mortal([Death(0, refusal())])
    router = router_over(dying_after(20, DonorSilent()), refusing, Mortal())
    events = await collect(router)
    assert len(choices_of(events)[0].ids) == 40
    assert [a.outcome for a in router.attempts] == ["donor_silent", refusal.code, "finished"]
    assert router.attempts[1].phase == "asked"


async def test_only_a_twin_goes_on_with_a_stream(autojump_clock: MockClock) -> None:
    other = Mortal(engine=FakeEngine(OTHER_MODEL))
    twin = Mortal()
    router = router_over(dying_after(5, DonorSilent()), other, twin)
    await collect(router)
    assert not other.requests
    assert len(twin.requests) == 1


async def test_without_a_twin_a_stream_ends_with_what_cut_it(autojump_clock: MockClock) -> None:
    other = Mortal(engine=FakeEngine(OTHER_MODEL))
    alice = Mortal([Death(6, ConnectionLost()), Death(0, ConnectFailed())])
    seen: list[Event] = []
    with pytest.raises(ConnectionLost):
        await collect(router_over(alice, other), seen=seen)
    assert len(choices_of(seen)[0].ids) == 5
    assert not other.requests


async def test_a_search_for_a_twin_does_not_keep_the_app_waiting(autojump_clock: MockClock) -> None:
    router = router_over(dying_after(5, DonorSilent()), Mortal(), search_s=60)
    seen: list[Event] = []
    with pytest.raises(DonorSilent):
        await collect(router, seen=seen)
    (attempt,) = router.attempts
    assert trio.current_time() == pytest.approx(attempt.total_s + defaults.TWIN_SEARCH_S)


async def test_after_a_failure_nobody_is_searched_for_long(autojump_clock: MockClock) -> None:
    dead = Mortal([Death(0, DonorSilent())])
    router = router_over(dead, Mortal(), search_s=60)
    with pytest.raises(DonorSilent):
        await collect(router)
    (attempt,) = router.attempts
    assert trio.current_time() == pytest.approx(attempt.total_s + defaults.NEXT_SEARCH_S)


async def test_what_does_not_stream_is_resumed_too(autojump_clock: MockClock) -> None:
    request = replace(REQUEST, streamed=False)
    twin = Mortal()
    events = await collect(router_over(dying_after(5, DonorSilent()), twin), request)
    assert len(twin.requests[0].resume[0].ids) == 5
    assert choices_of(events) == choices_of(await collect(router_over(Mortal()), request))


async def test_what_does_not_stream_starts_again_where_there_is_no_twin(
    autojump_clock: MockClock,
) -> None:
    other = Mortal(engine=FakeEngine(OTHER_MODEL))
    request = replace(REQUEST, streamed=False)
    events = await collect(router_over(dying_after(5, DonorSilent()), other), request)
    assert not other.requests[0].resume
    alone = await collect(router_over(Mortal(engine=FakeEngine(OTHER_MODEL))), request)
    assert choices_of(events) == choices_of(alone)
    end, end_alone = events[-1], alone[-1]
    assert isinstance(end, Finished)
    assert isinstance(end_alone, Finished)
    assert (end.choices, end.usage) == (end_alone.choices, end_alone.usage)


async def test_who_began_another_answer_does_not_go_on_with_this_one(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Too much was delivered of the first to be resumed, and the second is of another model."""
    monkeypatch.setattr("tokenplace.router.continuation.defaults.MAX_NEW_TOKENS", 10)
    alice = dying_after(20, ConnectionLost())
    other = dying_after(5, DonorSilent(), model=OTHER_MODEL)
    twin = Mortal(engine=FakeEngine(OTHER_MODEL))
    router = router_over(alice, other, twin)
    events = await collect(router, replace(REQUEST, streamed=False))
    assert len(alice.requests) == 1
    assert len(choices_of(events)[0].ids) == 40
    assert len(twin.requests[0].resume[0].ids) == 5


class Swindler(Mortal):
    """Says that the prompt was another one, and breaks off."""

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        async with super().generate(request) as events:
            async for event in events:
                if isinstance(event, Accepted):
                    event = replace(event, prompt_digest=bytes(32))
                yield event


@pytest.mark.parametrize("streamed", [True, False])
async def test_who_cannot_go_on_with_what_somebody_else_began_is_not_blamed(
    streamed: bool, autojump_clock: MockClock
) -> None:
    swindler = Swindler([Death(5, DonorInternalError())])
    router = router_over(swindler, *(Mortal() for _ in range(4)))
    if streamed:
        with pytest.raises(DonorInternalError):
            await collect(router, replace(REQUEST, streamed=True))
    else:
        events = await collect(router, replace(REQUEST, streamed=False))
        assert len(choices_of(events)[0].ids) == 40, "it has started again"
    standings = [router.opinion(f"donor{n}").standing for n in range(5)]
    assert standings[1:] == [Standing.READY] * 4


# ---------------------------------------------------------------- what is not asked


@pytest.mark.parametrize("error", [WorkerCrashed(), InvalidRequest()])
async def test_nobody_is_asked_for_an_answer_that_lacks_only_its_end(
    error: TokenplaceError, autojump_clock: MockClock
) -> None:
    twin = Mortal()
    events = await collect(router_over(dying_after(40, error), twin))
    assert not twin.requests
    end = events[-1]
    assert isinstance(end, Finished)
    assert [type(choice.stop) for choice in end.choices] == [LengthStop]
    assert end.usage.n_completion == 40


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        (b'{"answer": "ja"}', GrammarStop()),
        (b'{"answer": "ja"', LengthStop()),
        (b'"yes"', GrammarStop()),
        (b"true", GrammarStop()),
        (b"12", LengthStop()),
        (b"[" * 10_000, LengthStop()),
    ],
    ids=["object", "cut", "text", "true", "a number may go on", "deep"],
)
def test_a_form_that_is_complete_with_the_last_token_is_told_from_one_that_is_cut(
    text: bytes, stop: Stop
) -> None:
    """Its donor died before it said why it ended."""
    request = replace(REQUEST, output=JsonSchema("{}"), max_tokens=1)
    so_far = Continuation(request)
    so_far.take(Accepted(bytes(32), 7, 0, 4096, 1, "tp/1", 0, 0))
    so_far.take(Tokens(0, 0, (1,), (text,)))
    (end,) = so_far.finish()
    assert isinstance(end, Finished)
    assert [choice.stop for choice in end.choices] == [stop]


async def test_a_choice_that_had_no_more_room_has_ended_though_the_next_donor_has_more(
    autojump_clock: MockClock,
) -> None:
    """One slot: the choices come one after another, and the second lacks a token."""
    small = FakeModel(n_ctx=48, n_slots=1)
    request = replace(REQUEST, n=2, max_tokens=None)
    uncut = await collect(router_over(Mortal(engine=FakeEngine(small))), request)
    n_events = sum(not isinstance(event, Alive) for event in uncut) - 2
    alice = Mortal([Death(n_events, DonorSilent())], FakeEngine(small))
    bob = Mortal(engine=FakeEngine(replace(small, n_ctx=64)))
    events = await collect(router_over(alice, bob), request)
    end = events[-1]
    assert isinstance(end, Finished)
    assert [type(choice.stop) for choice in end.choices] == [LengthStop, LengthStop]
    whole = choices_of(events)
    assert len(whole[1].ids) == len(whole[0].ids) + 16
    assert end.usage.n_completion == len(whole[0].ids) + len(whole[1].ids)


async def test_choices_that_have_ended_are_not_resumed(autojump_clock: MockClock) -> None:
    """The second choice has come to its stop string when the donor dies."""
    request = replace(REQUEST, n=2, max_tokens=8)
    whole = choices_of(await collect(router_over(Mortal()), request))
    first, second = (b"".join(whole[choice].pieces).decode() for choice in (0, 1))
    stop = next(word for word in second[:8].split() if word not in first)
    request = replace(request, stop=(stop,))
    uncut = await collect(router_over(Mortal()), request)
    # All but the first choice's last token, and the end.
    n_events = sum(not isinstance(event, Alive) for event in uncut) - 2
    twin = Mortal()
    events = await collect(router_over(Mortal([Death(n_events, DonorSilent())]), twin), request)
    assert [resume.choice for resume in twin.requests[0].resume] == [0]
    end, uncut_end = events[-1], uncut[-1]
    assert isinstance(end, Finished)
    assert isinstance(uncut_end, Finished)
    assert (end.choices, end.usage) == (uncut_end.choices, uncut_end.usage)


async def test_more_tokens_than_a_request_may_name_end_with_what_cut_them(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    twin = Mortal()
    router = router_over(dying_after(21, DonorSilent()), twin)
    monkeypatch.setattr("tokenplace.router.continuation.defaults.MAX_NEW_TOKENS", 20)
    with pytest.raises(DonorSilent):
        await collect(router)
    assert not twin.requests


# ---------------------------------------------------------------- how often


async def test_three_attempts_that_do_not_get_on_are_the_end(autojump_clock: MockClock) -> None:
    donors = [dying_after(n, DonorSilent()) for n in (15, 3, 0)]
    twin = Mortal()
    router = router_over(*donors, twin)
    seen: list[Event] = []
    with pytest.raises(DonorSilent):
        await collect(router, seen=seen)
    assert len(choices_of(seen)[0].ids) == 18
    assert not twin.requests


async def test_whoever_gets_on_may_be_followed_by_as_many_again(autojump_clock: MockClock) -> None:
    donors = [dying_after(n, DonorSilent()) for n in (3, 0, 16, 3, 0)]
    router = router_over(*donors, Mortal())
    assert len(choices_of(await collect(router))[0].ids) == 40
    assert len(router.attempts) == 6


async def test_even_who_gets_on_is_not_followed_for_ever(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_ATTEMPTS_IN_ALL", 4)
    router = router_over(*(dying_after(16, DonorSilent()) for _ in range(6)))
    with pytest.raises(DonorSilent):
        await collect(router, replace(REQUEST, max_tokens=200))
    assert len(router.attempts) == 4


async def test_an_answer_is_never_resumed_after_two_crashes(autojump_clock: MockClock) -> None:
    crashing = [dying_after(n, WorkerCrashed()) for n in (5, 0)]
    twin = Mortal()
    between = Mortal([Death(0, DonorBusy())])
    router = router_over(crashing[0], between, crashing[1], twin)
    with pytest.raises(WorkerCrashed):
        await collect(router)
    assert not twin.requests


async def test_what_would_repeat_is_not_retried_in_mid_stream_either(
    autojump_clock: MockClock,
) -> None:
    twin = Mortal()
    router = router_over(dying_after(5, DonorSilent()), Mortal([Death(0, InvalidRequest())]), twin)
    with pytest.raises(InvalidRequest):
        await collect(router)
    assert not twin.requests


# ---------------------------------------------------------------- what is told


async def test_usage_is_counted_once_and_every_donor_is_told(autojump_clock: MockClock) -> None:
    alice, bob = dying_after(5, DonorSilent()), Mortal()
    await collect(router_over(bob), replace(REQUEST, max_tokens=1))  # bob has the prompt cached
    events = await collect(router_over(alice, bob))
    first, second = accepted_of(events)
    assert second.n_cached == first.n_cached == 0
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.usage.n_cached, end.usage.n_completion) == (0, 40)
    answer = Answer(REQUEST)
    for event in events:
        answer.receive(event)
    assert answer.n_continued == 1


def test_an_app_that_has_a_part_of_its_answer_waits_for_the_rest_from_then_on() -> None:
    route = MortalRoutes(Mortal()).given(Demand())[0]
    search = Search("fake-model", Demand(), 0.0)
    ends_at = search.ends_at
    search.note_failure(route, DonorSilent(), 0, 100.0)
    assert search.ends_at == ends_at
    search.note_failure(route, DonorSilent(), 7, 200.0)
    assert search.ends_at == ends_at + 200


def test_of_two_stop_strings_in_one_token_the_first_ended_the_answer() -> None:
    so_far = Continuation(replace(REQUEST, stop=("two", "one")))
    so_far.take(Accepted(b"", 5, 0, 4096, 10, "", 0, 0))
    so_far.take(Tokens(0, 0, (1,), (b"then one two",)))
    (end,) = so_far.finish()
    assert isinstance(end, Finished)
    assert [choice.stop for choice in end.choices] == [StringStop("one")]
