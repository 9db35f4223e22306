"""Errors of an exchange over memory streams: each comes to the app as what it is."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.abc
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import EchoEngine
from tests.peer.exchange_lab import (
    ACCEPTED,
    TOKEN,
    Lab,
    Scripted,
    collect,
    make_request,
    text_of,
)
from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    ConfigError,
    ConnectionLost,
    ContextLengthExceeded,
    DonorBusy,
    DonorFinishing,
    DonorInternalError,
    InvalidRequest,
    ModelNotOffered,
    RequestTooBig,
    TokenplaceError,
)
from tokenplace.generation import (
    ChoiceEnd,
    Event,
    Finished,
    GenerateRequest,
    GrammarStop,
    Logprob,
    Resume,
    SamplingParams,
    Timings,
    Tokens,
    Usage,
)

CANARY = "canary-51c9"


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
        return Scripted(*((0.0, event) for event in self.events)).generate(request)


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
