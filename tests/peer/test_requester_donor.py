"""Requester against donor over memory streams: what both do together, and every way it can end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.abc
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.fakes import EchoEngine
from tests.peer.exchange_lab import (
    ACCEPTED,
    ALIVE,
    BOB,
    TINY_MODEL,
    TOKEN,
    Lab,
    Scripted,
    collect,
    make_request,
    text_of,
)
from tokenplace import defaults
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DonorBusy,
    DonorInternalError,
    InvalidRequest,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    Phase,
    Tokens,
)

CANARY = "canary-51c9"


async def test_an_answer_arrives_whole() -> None:
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        request = make_request("grüße aus dem speicher", attempt=1, stop=("x",))
        events = await lab.ask(request)
        await lab.settled()
    first, last = events[0], events[-1]
    assert isinstance(first, Accepted)
    assert first.donor == BOB
    assert isinstance(last, Finished)
    assert last.choices[0].stop == EogStop(2)
    assert text_of(events) == "grüße aus dem speicher".encode()
    assert lab.donor.statistics.n_served == 1
    assert lab.donor.statistics.n_tokens == last.usage.n_completion
    (asked,) = engine.requests
    assert (asked.input, asked.attempt, asked.stop) == (request.input, 1, ("x",))
    assert asked.model == ""
    assert (engine.n_running, engine.n_cancelled) == (0, 0)
    alice, bob = lab.streams[0]
    assert not alice.was_reset
    assert not bob.was_reset


async def test_a_hedge_is_only_taken_if_it_need_not_wait(autojump_clock: MockClock) -> None:
    engine = FakeEngine(FakeModel(artifact=TINY_MODEL, n_slots=1))
    async with Lab(engine).running() as lab:
        lab.nursery.start_soon(lab.ask, make_request())
        await trio.sleep(0.1)
        with pytest.raises(DonorBusy):
            await lab.ask(make_request(is_hedge=True))
        for is_hedge in (False, True):  # the first waits, the second finds nobody
            events = await lab.ask(make_request(is_hedge=is_hedge))
            assert isinstance(events[-1], Finished)
        await lab.settled()
    assert [request.is_hedge for request in engine.requests] == [False, True, False, True]


class Tidy(EchoEngine):
    """Has something to do after its last event."""

    n_tidied = 0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        async with super().generate(request) as events:
            async for event in events:
                yield event
        await trio.sleep(1)
        self.n_tidied += 1


async def test_an_engine_comes_to_its_own_end_and_nobody_waits(autojump_clock: MockClock) -> None:
    engine = Tidy()
    async with Lab(engine).running() as lab:
        await lab.ask(make_request())
        assert trio.current_time() < 1
        await lab.settled()
    assert engine.n_tidied == 1


async def test_many_at_once_do_not_mix() -> None:
    async with Lab(EchoEngine(token_interval_s=0.001)).running() as lab:
        answers: dict[str, bytes] = {}

        async def ask(prompt: str) -> None:
            answers[prompt] = text_of(await lab.ask(make_request(prompt)))

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(ask, f"prompt {n} " * (n + 1))
    assert len(answers) == 10
    assert all(text == prompt.encode() for prompt, text in answers.items())


@settings(max_examples=10)
@given(st.integers(1, 3000))
def test_how_the_bytes_are_cut_makes_no_difference(max_read: int) -> None:
    async def ask() -> list[Event]:
        async with Lab(max_read=max_read).running() as lab:
            return await lab.ask(make_request("one two three"))

    events = trio.run(ask)
    assert text_of(events) == b"one two three"
    assert isinstance(events[-1], Finished)


async def test_nothing_readable_crosses_the_stream() -> None:
    async with Lab().running() as lab:
        await lab.ask(make_request(CANARY * 10))
    alice, bob = lab.streams[0]
    for sent in (alice.outgoing.log, bob.outgoing.log):
        assert len(sent) > 1000
        assert CANARY.encode() not in sent
        assert b"tokens" not in sent


# ---------------------------------------------------------------- leaving, losing, silence


async def test_leaving_early_frees_the_engine(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=0.1)
    async with Lab(engine).running() as lab:
        async with lab.remote().generate(make_request("word " * 50)) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    break
        assert lab.streams[0][0].was_reset
        await lab.settled()
        assert (engine.n_running, engine.n_cancelled) == (0, 1)
        assert lab.donor.statistics.n_cancelled == 1
        assert lab.donor.statistics.n_answering == 0


async def test_a_cancelled_app_frees_the_engine_at_once(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        with trio.move_on_after(5.5):
            await lab.ask(make_request("word " * 50))
        await lab.settled()
        assert trio.current_time() == pytest.approx(5.5, abs=0.1)
        assert (engine.n_running, engine.n_cancelled) == (0, 1)


async def test_the_apps_own_error_comes_out_bare(autojump_clock: MockClock) -> None:
    async with Lab(EchoEngine(token_interval_s=1.0)).running() as lab:

        async def fail() -> None:
            async with lab.remote().generate(make_request("word " * 50)) as events:
                await events.receive()
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        await lab.settled()


async def test_a_killed_donor_is_a_lost_connection(autojump_clock: MockClock) -> None:
    async with Lab(EchoEngine(token_interval_s=0.1)).running() as lab:
        seen: list[Event] = []

        async def ask() -> None:
            async with lab.remote().generate(make_request("word " * 50)) as events:
                async for event in events:
                    seen.append(event)
                    if isinstance(event, Tokens):
                        lab.streams[0][1].lose()

        with pytest.raises(ConnectionLost):
            await ask()
        assert trio.current_time() < 1
        assert any(isinstance(event, Tokens) for event in seen)
        assert not any(isinstance(event, Finished) for event in seen)


async def test_a_donor_that_stops_is_a_lost_connection(autojump_clock: MockClock) -> None:
    """Its host closes the stream in mid-answer: an end, but not the final chunk."""
    async with Lab(EchoEngine(token_interval_s=0.1)).running() as lab:

        async def ask() -> None:
            async with lab.remote().generate(make_request("word " * 50)) as events:
                async for event in events:
                    if isinstance(event, Tokens):
                        await lab.streams[0][1].aclose()

        with pytest.raises(ConnectionLost):
            await ask()


async def test_heartbeats_keep_a_slow_donor_alive(autojump_clock: MockClock) -> None:
    """No byte for ten seconds is the end; a prefill of a minute is not."""
    more = dataclasses.replace(ALIVE, progress=0.9)
    engine = Scripted((5.0, ACCEPTED), (20.0, ALIVE), (19.0, more), (19.0, TOKEN), (500.0, TOKEN))
    async with Lab(engine).running() as lab:
        events: list[Event] = []
        with pytest.raises(TokenplaceError) as failure:
            await collect(lab, make_request(), events)
        assert failure.value.code == "deadline_exceeded"  # alive, but without a second token
        assert trio.current_time() == pytest.approx(63.0 + defaults.PROGRESS_TIMEOUT_S)
    heartbeats = [event for event in events if isinstance(event, Alive)]
    assert {event.phase for event in heartbeats} == {Phase.QUEUED, Phase.PREFILL, Phase.DECODE}
    assert 30 <= len(heartbeats) <= 40


@pytest.mark.parametrize(
    "said",
    [(ALIVE,), (ALIVE, dataclasses.replace(ALIVE, phase=Phase.QUEUED))],
    ids=["the same", "back and forth"],
)
async def test_heartbeats_alone_do_not(said: tuple[Alive, ...], autojump_clock: MockClock) -> None:
    """A donor whose model hangs, or that pretends, goes on saying what it has said."""
    engine = Scripted((0.0, ACCEPTED), *((3.0, each) for each in said * 30), (500.0, TOKEN))
    async with Lab(engine).running() as lab:
        with pytest.raises(DeadlineExceeded):
            await lab.ask(make_request())
        due_s = 3.0 + defaults.STILL_TIMEOUT_S
        assert trio.current_time() == pytest.approx(due_s, abs=defaults.HEARTBEAT_S)


async def test_a_donor_without_accepted_is_given_up(autojump_clock: MockClock) -> None:
    async with Lab(Scripted((100.0, ACCEPTED))).running() as lab:
        with pytest.raises(TokenplaceError) as failure:
            await lab.ask(make_request())
        assert failure.value.code == "deadline_exceeded"
        assert trio.current_time() == defaults.ACCEPT_TIMEOUT_S


async def test_a_slow_app_never_slows_the_donor(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=0.001)
    events: list[Event] = []
    async with Lab(engine).running() as lab:
        lab.nursery.start_soon(collect, lab, make_request("word " * 2000), events, 1000.0)
        await trio.sleep(20)
        assert lab.donor.statistics.n_served == 1
        assert lab.is_idle
        assert events == []
        await trio.sleep(1000)
    assert text_of(events) == b"word " * 2000
    assert isinstance(events[-1], Finished)


async def test_a_slow_app_does_not_pile_up_heartbeats(autojump_clock: MockClock) -> None:
    accepted = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 200_000, 2)
    async with Lab(Scripted((0.0, accepted), (250.0, DonorBusy()))).running() as lab:
        events: list[Event] = []
        with pytest.raises(DonorBusy):
            await collect(lab, make_request(), events, wait_s=249)
    assert len(events) <= 2


# ---------------------------------------------------------------- admission


async def test_one_bucket_has_its_limit_and_others_are_served(autojump_clock: MockClock) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        refused: list[DonorBusy] = []
        served: list[bytes] = []

        async def ask() -> None:
            try:
                served.append(text_of(await lab.ask(make_request("123456"))))
            except DonorBusy as busy:
                refused.append(busy)

        async with trio.open_nursery() as nursery:
            for _ in range(defaults.OPEN_PER_BUCKET + 5):
                nursery.start_soon(ask)
            await trio.sleep(0.5)
            lab.remote_ip = "198.51.100.1"
            nursery.start_soon(ask)
        assert len(served) == defaults.QUEUED_PER_BUCKET + 1
        assert len(refused) == defaults.OPEN_PER_BUCKET + 5 - defaults.QUEUED_PER_BUCKET
        assert lab.is_idle


async def test_a_request_is_queued_until_the_engine_works_on_it(autojump_clock: MockClock) -> None:
    queued = Alive(Phase.QUEUED, 0.0, 1)
    engine = Scripted((1.0, ACCEPTED), (1.0, queued), (1.0, ALIVE), (1.0, TOKEN))
    async with Lab(engine).running() as lab:
        lab.nursery.start_soon(self_contained_ask, lab)
        counts = []
        for _ in range(4):
            await trio.sleep(0.9)
            counts.append((lab.admission.n_queued, lab.admission.n_running))
    assert counts == [(1, 0), (1, 0), (1, 0), (0, 1)]


async def self_contained_ask(lab: Lab) -> None:
    with pytest.raises(DonorInternalError):
        await lab.ask(make_request())


# ---------------------------------------------------------------- logs


async def test_no_prompt_and_no_answer_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Lab(EchoEngine(fail_after=8, error=RuntimeError(CANARY))).running() as lab:  # type: ignore[arg-type]
        with pytest.raises(DonorInternalError) as failure:
            await lab.ask(make_request(CANARY * 5, stop=(CANARY,)))
        with pytest.raises(InvalidRequest) as refusal:
            await lab.ask(make_request(CANARY, stop=(CANARY * 30,)))
    assert "generating failed: RuntimeError" in caplog.text
    for text in (caplog.text, failure.value.user_text, refusal.value.user_text):
        assert CANARY not in text
