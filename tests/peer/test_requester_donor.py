"""Requester against donor over memory streams: what both do together, and every way it can end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.abc
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import EchoEngine
from tests.peer.exchange_lab import (
    BOB,
    SIGNED_KEYS,
    SIGNED_LIVE,
    TINY_MODEL,
    Lab,
    make_request,
    text_of,
)
from tokenplace import defaults
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import (
    BadFormat,
    ConfigError,
    ConnectionLost,
    ContextLengthExceeded,
    DeadlineExceeded,
    DonorBusy,
    DonorFinishing,
    DonorInternalError,
    InvalidRequest,
    ModelNotOffered,
    RequestTooBig,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    GrammarStop,
    Logprob,
    Phase,
    Resume,
    SamplingParams,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.peer.requester import SealTarget

CANARY = "canary-51c9"


async def collect(
    lab: Lab, request: GenerateRequest, events: list[Event], wait_s: float = 0
) -> None:
    """Ask, read nothing for a while, and keep what came even if the answer then fails."""
    async with lab.remote().generate(request) as channel:
        await trio.sleep(wait_s)
        async for event in channel:
            events.append(event)  # noqa: PERF401


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


class Waiting:
    """An engine that works on one thing: it accepts, and says what it is told to."""

    def __init__(self, *events: tuple[float, Event | TokenplaceError | Exception]) -> None:
        self.events = events

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        for pause_s, event in self.events:
            await trio.sleep(pause_s)
            if isinstance(event, Exception):
                raise event
            yield event


ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 20_000, 2)
ALIVE = Alive(Phase.PREFILL, 0.5, 0)
TOKEN = Tokens(0, 0, (1,), (b"x",))


async def test_heartbeats_keep_a_slow_donor_alive(autojump_clock: MockClock) -> None:
    """No byte for ten seconds is the end; a prefill of a minute is not."""
    more = dataclasses.replace(ALIVE, progress=0.9)
    engine = Waiting((5.0, ACCEPTED), (20.0, ALIVE), (19.0, more), (19.0, TOKEN), (500.0, TOKEN))
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
    engine = Waiting((0.0, ACCEPTED), *((3.0, each) for each in said * 30), (500.0, TOKEN))
    async with Lab(engine).running() as lab:
        with pytest.raises(DeadlineExceeded):
            await lab.ask(make_request())
        due_s = 3.0 + defaults.STILL_TIMEOUT_S
        assert trio.current_time() == pytest.approx(due_s, abs=defaults.HEARTBEAT_S)


async def test_a_donor_without_accepted_is_given_up(autojump_clock: MockClock) -> None:
    async with Lab(Waiting((100.0, ACCEPTED))).running() as lab:
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
    async with Lab(Waiting((0.0, accepted), (250.0, DonorBusy()))).running() as lab:
        events: list[Event] = []
        with pytest.raises(DonorBusy):
            await collect(lab, make_request(), events, wait_s=249)
    assert len(events) <= 2


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (DonorBusy("full", retry_after_s=3), DonorBusy),
        (ContextLengthExceeded(numbers={"n_prompt": 5000, "n_ctx": 4096}), ContextLengthExceeded),
        (ConfigError("/home/bob/models"), DonorInternalError),
        (ConnectionLost(), DonorInternalError),
        (RuntimeError(CANARY), DonorInternalError),
        (ExceptionGroup(CANARY, [ValueError(CANARY)]), DonorInternalError),
    ],
)
@pytest.mark.parametrize("n_tokens", [0, 5])
async def test_an_engines_error_arrives_as_what_it_is(
    n_tokens: int,
    sent: Exception,
    received: type[TokenplaceError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = EchoEngine(fail_after=n_tokens, error=sent)  # type: ignore[arg-type]
    async with Lab(engine).running() as lab:
        events: list[Event] = []
        with pytest.raises(received) as failure:
            await collect(lab, make_request(CANARY * 5), events)
        await lab.settled()
    assert type(failure.value) is received
    assert len(text_of(events)) == 3 * n_tokens
    assert lab.donor.statistics.n_failed == 1
    if isinstance(sent, TokenplaceError) and received is type(sent):
        assert failure.value.numbers == sent.numbers
        assert failure.value.retry_after_s == sent.retry_after_s
    else:
        assert failure.value.detail == ""
        assert "fakes.py" in caplog.text
    assert CANARY not in caplog.text


class Unruly:
    """Engines that break the order of events."""

    def __init__(self, *events: Event) -> None:
        self.events = events

    def generate(
        self, request: GenerateRequest
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Event]]:
        return Waiting(*((0.0, event) for event in self.events)).generate(request)


@pytest.mark.parametrize(
    "events",
    [
        (),
        (ACCEPTED,),
        (TOKEN,),
        (ACCEPTED, ACCEPTED),
        (ACCEPTED, TOKEN, TOKEN),
        (ACCEPTED, Tokens(0, 0, (1,) * 11, (b"",) * 11)),
        (ACCEPTED, Tokens(0, 0, (1,), (bytes(20_000),))),
        (ACCEPTED, Tokens(1, 0, (1,), (b"x",))),
        (ACCEPTED, Tokens(0, 0, (1,), (b"x",), (Logprob(-1.0),))),
        (ACCEPTED, Finished((), Usage(5, 0, 0), Timings(0, 0, 0))),
        (ACCEPTED, Finished((ChoiceEnd(0, GrammarStop()),), Usage(5, 0, 0), Timings(0, 0, 0))),
    ],
)
async def test_an_engine_that_breaks_the_order_is_an_internal_error(
    events: tuple[Event, ...],
) -> None:
    async with Lab(Unruly(*events)).running() as lab:
        with pytest.raises(DonorInternalError):
            await lab.ask(make_request())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"artifact": "cd" * 32}, ModelNotOffered),
        ({"artifact": "tiny"}, BadFormat),
        ({"sampling": SamplingParams(temperature=3)}, InvalidRequest),
        ({"resume": (Resume(0, (1,)),)}, BadFormat),  # without the prompt's digest
    ],
)
async def test_a_request_that_cannot_be_served_is_told_why(
    changes: dict[str, object], expected: type[TokenplaceError]
) -> None:
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        with pytest.raises(expected) as failure:
            await lab.ask(make_request(**changes))  # type: ignore[arg-type]
        await lab.settled()
    assert engine.requests == []
    if expected is InvalidRequest:
        assert failure.value.param == "temperature"


async def test_a_prompt_over_the_limit_never_leaves() -> None:
    async with Lab().running() as lab:
        with pytest.raises(RequestTooBig):
            await lab.ask(make_request("x" * (defaults.MAX_BODY_BYTES + 1)))
        assert lab.streams == []


async def test_the_largest_prompt_is_served() -> None:
    engine = EchoEngine(piece_bytes=1 << 19)
    prompt = "x" * (defaults.MAX_BODY_BYTES - 1000)
    async with Lab(engine).running() as lab:
        # The engine echoes pieces that fit no chunk: what matters is that the request got through.
        with pytest.raises(DonorInternalError):
            await lab.ask(make_request(prompt))
    assert len(engine.requests) == 1


async def test_a_donor_that_is_finishing_serves_the_rest_and_no_more(
    autojump_clock: MockClock,
) -> None:
    async with Lab(EchoEngine(token_interval_s=0.5)).running() as lab:
        answers: list[list[Event]] = []

        async def ask() -> None:
            answers.append(await lab.ask(make_request("123456789")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            nursery.start_soon(lab.donor.finish)
            await trio.sleep(0.5)
            with pytest.raises(DonorFinishing):
                await lab.ask(make_request())
        assert text_of(answers[0]) == b"123456789"
        assert trio.current_time() == pytest.approx(1.5, abs=0.1)
        await lab.donor.finish()  # idle already
        assert trio.current_time() == pytest.approx(1.5, abs=0.1)


async def test_an_answer_too_long_to_wait_for_is_told_why_it_ends(
    autojump_clock: MockClock,
) -> None:
    engine = EchoEngine(token_interval_s=1.0)
    async with Lab(engine).running() as lab:
        events: list[Event] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_finishing, lab, events)
            await wait_all_tasks_blocked()
            nursery.start_soon(lab.donor.finish)
        assert trio.current_time() == pytest.approx(defaults.FINISH_GRACE_S)
        assert engine.n_running == 0
        await lab.settled()
    assert text_of(events) == b"worwor"


async def expect_finishing(lab: Lab, events: list[Event]) -> None:
    with pytest.raises(DonorFinishing):
        await collect(lab, make_request("wor" * 50), events)


async def test_a_requester_that_does_not_read_holds_up_nobody_who_stops(
    autojump_clock: MockClock,
) -> None:
    async with Lab(EchoEngine(piece_bytes=8192, token_interval_s=0.01)).running() as lab:
        frame, _ = lab.seal_request(make_request("word " * 100_000))
        await (await lab.open_stream()).send_all(frame)
        await trio.sleep(5)
        await lab.donor.finish()
        assert trio.current_time() == 5 + defaults.FINISH_GRACE_S + defaults.FINISH_NOTICE_S


# ---------------------------------------------------------------- keys and epochs


class Renewal:
    """What the directory does with a refusal's envelopes, without the envelopes."""

    def __init__(self, lab: Lab, *, is_valid: bool = True) -> None:
        self.lab = lab
        self.is_valid = is_valid
        self.seen: list[tuple[bytes | None, bytes | None]] = []

    async def __call__(self, keys: bytes | None, live: bytes | None) -> SealTarget | None:
        self.seen.append((keys, live))
        return self.lab.target() if self.is_valid else None


async def test_a_stale_epoch_is_mended_by_sealing_once_more() -> None:
    async with Lab().running() as lab:
        renewal = Renewal(lab)
        stale = SealTarget(lab.target().key, bytes(8))
        remote = lab.remote(stale, renewal)
        assert text_of(await lab.ask(make_request("once"), remote)) == b"once"
        assert renewal.seen == [(SIGNED_KEYS, SIGNED_LIVE)]
        assert len(lab.streams) == 2
        # What was learned is kept for the next request.
        assert text_of(await lab.ask(make_request("again"), remote)) == b"again"
        assert len(lab.streams) == 3


async def test_a_restarted_donors_new_key_is_learned() -> None:
    async with Lab().running() as lab:
        key = lab.target().key
        old = dataclasses.replace(key, id=(key.id + 1) % 256)
        renewal = Renewal(lab)
        remote = lab.remote(SealTarget(old, bytes(8)), renewal)
        assert text_of(await lab.ask(make_request("once"), remote)) == b"once"
        assert renewal.seen == [(SIGNED_KEYS, SIGNED_LIVE)]


async def test_a_refusal_that_does_not_verify_is_final() -> None:
    async with Lab().running() as lab:
        renewal = Renewal(lab, is_valid=False)
        with pytest.raises(StaleEpoch):
            await lab.ask(
                make_request(), lab.remote(SealTarget(lab.target().key, bytes(8)), renewal)
            )
        assert len(lab.streams) == 1


async def test_it_is_sealed_again_only_once() -> None:
    async with Lab().running() as lab:
        stale = SealTarget(lab.target().key, bytes(8))

        async def renew(keys: bytes | None, live: bytes | None) -> SealTarget:
            return stale

        with pytest.raises(StaleEpoch):
            await lab.ask(make_request(), lab.remote(stale, renew))
        assert len(lab.streams) == 2


async def test_a_renewal_that_hangs_is_none(autojump_clock: MockClock) -> None:
    async def renew(keys: bytes | None, live: bytes | None) -> SealTarget | None:
        await trio.sleep_forever()
        raise AssertionError

    async with Lab().running() as lab:
        stale = SealTarget(lab.target().key, bytes(8))
        with pytest.raises(StaleEpoch):
            await lab.ask(make_request(), lab.remote(stale, renew))
        assert trio.current_time() == defaults.CONNECT_TIMEOUT_S


async def test_other_refusals_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "QUEUED_PER_BUCKET", 0)
    async with Lab().running() as lab:
        renewal = Renewal(lab)
        with pytest.raises(DonorBusy) as busy:
            await lab.ask(make_request(), lab.remote(renew=renewal))
        assert busy.value.retry_after_s == defaults.BUSY_RETRY_AFTER_S
        assert renewal.seen == []


async def test_an_unknown_key_is_named_so() -> None:
    async with Lab().running() as lab:
        key = lab.target().key
        stranger = dataclasses.replace(key, id=(key.id + 1) % 256)
        with pytest.raises(UnknownKey):
            await lab.ask(make_request(), lab.remote(SealTarget(stranger, bytes(8))))


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
    engine = Waiting((1.0, ACCEPTED), (1.0, queued), (1.0, ALIVE), (1.0, TOKEN))
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
