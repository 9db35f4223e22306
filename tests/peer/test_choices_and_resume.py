"""Several choices, log-probabilities and resuming, from requester to donor over memory streams."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from trio.testing import MockClock

from tests.fakes import EchoEngine
from tests.peer.exchange_lab import Lab, collect, make_request
from tests.peer.memory import MemoryPeerStream
from tests.peer.test_requester import Scripted
from tokenplace import defaults
from tokenplace.errors import DonorBusy, PromptMismatch, RemoteProtocolError, TokenplaceError
from tokenplace.generation import (
    Accepted,
    Event,
    Finished,
    JsonObject,
    Logprob,
    Resume,
    SamplingParams,
    Tokens,
)
from tokenplace.peer.frames import encode_frame
from tokenplace.sealing.answer import AnswerSealer

PROMPT = "one two three four"
MIB = 1 << 20


def by_choice(events: list[Event]) -> dict[int, tuple[tuple[int, ...], bytes]]:
    """Ids and bytes of each choice."""
    found: dict[int, tuple[tuple[int, ...], bytes]] = {}
    for event in events:
        if isinstance(event, Tokens):
            ids, text = found.get(event.choice, ((), b""))
            found[event.choice] = ids + event.ids, text + b"".join(event.pieces)
    return found


async def test_every_choice_arrives_whole() -> None:
    async with Lab().running() as lab:
        events = await lab.ask(make_request(PROMPT, n=defaults.MAX_CHOICES))
    answers = by_choice(events)
    assert {choice: text for choice, (_, text) in answers.items()} == dict.fromkeys(
        range(defaults.MAX_CHOICES), PROMPT.encode()
    )
    end = events[-1]
    assert isinstance(end, Finished)
    assert {each.choice for each in end.choices} == set(range(defaults.MAX_CHOICES))
    assert end.usage.n_completion == sum(len(ids) for ids, _ in answers.values())
    assert lab.donor.statistics.n_tokens == end.usage.n_completion


async def test_log_probabilities_of_every_choice_arrive(autojump_clock: MockClock) -> None:
    """More than one chunk holds, all at the same moment."""
    engine = EchoEngine(piece_bytes=1)
    request = make_request(PROMPT * 4, n=defaults.MAX_CHOICES, top_logprobs=20)
    async with Lab(engine).running() as lab:
        events = await lab.ask(request)
    tokens = [event for event in events if isinstance(event, Tokens)]
    logprobs = [logprob for event in tokens for logprob in event.logprobs]
    assert len(logprobs) == len(PROMPT) * 4 * defaults.MAX_CHOICES
    assert {len(logprob.top) for logprob in logprobs} == {20}
    for event in tokens:
        for token_id, piece, logprob in zip(event.ids, event.pieces, event.logprobs, strict=True):
            assert isinstance(logprob, Logprob)
            assert (logprob.logprob, logprob.top[0].id, logprob.top[0].piece) == (
                *(-0.5, token_id, piece),
            )


async def test_all_that_a_request_says_reaches_the_engine() -> None:
    engine = EchoEngine()
    sampling = SamplingParams(repeat_penalty=1.5, repeat_last_n=7, logit_bias=((3, -1.0),))
    request = make_request(
        PROMPT, n=2, top_logprobs=0, output=JsonObject(), sampling=sampling, max_tokens=3
    )
    async with Lab(engine).running() as lab:
        await lab.ask(request)
    (asked,) = engine.requests
    bucket = "203.0.113.0/24"  # of the lab's `remote_ip`
    assert asked == dataclasses.replace(request, model="", bucket=bucket)


async def test_the_wire_does_not_say_whose_request_it_is() -> None:
    """The bucket is what the donor sees, and never this peer's own."""
    engine = EchoEngine()
    async with Lab(engine, remote_ip="not an address").running() as lab:
        await lab.ask(make_request(PROMPT, bucket="mine"))
    assert engine.requests[0].bucket not in ("", "mine")


# ---------------------------------------------------------------- resuming


async def begun(lab: Lab) -> tuple[Accepted, dict[int, tuple[int, ...]]]:
    """What came of an answer of two choices that broke off: the first event, and the ids."""
    events: list[Event] = []
    with pytest.raises(DonorBusy):
        await collect(lab, make_request(PROMPT, n=2), events)
    accepted = events[0]
    assert isinstance(accepted, Accepted)
    return accepted, {choice: ids for choice, (ids, _) in by_choice(events).items()}


async def test_another_donor_goes_on_where_the_first_broke_off() -> None:
    async with Lab(EchoEngine(fail_after=3, error=DonorBusy())).running() as lab:
        accepted, delivered = await begun(lab)
    assert {len(ids) for ids in delivered.values()} == {3}
    resumed = (Resume(1, delivered[1]), Resume(0, delivered[0][:1]))
    request = make_request(PROMPT, n=2, resume=resumed, prompt_digest=accepted.prompt_digest)
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        events = await lab.ask(request)
    assert engine.requests[0].resume == resumed
    rest = by_choice(events)
    assert rest[1][1] == PROMPT.encode()[9:]
    assert rest[0][1] == PROMPT.encode()[3:]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.usage.n_completion == sum(len(ids) for ids, _ in rest.values())


async def test_only_the_choice_that_is_resumed_comes() -> None:
    async with Lab(EchoEngine(fail_after=3, error=DonorBusy())).running() as lab:
        accepted, delivered = await begun(lab)
    request = make_request(
        PROMPT, n=2, resume=(Resume(1, delivered[1]),), prompt_digest=accepted.prompt_digest
    )
    async with Lab().running() as lab:
        events = await lab.ask(request)
    assert list(by_choice(events)) == [1]
    end = events[-1]
    assert isinstance(end, Finished)
    assert [each.choice for each in end.choices] == [1]


RESUMING = make_request(PROMPT, resume=(Resume(0, (7,)),), prompt_digest=b"d" * 32)
OTHER_PROMPT = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 0, 0)


async def test_a_donor_that_makes_another_prompt_says_so() -> None:
    async with Lab().running() as lab:
        with pytest.raises(PromptMismatch):
            await lab.ask(RESUMING)
        await lab.settled()


async def test_a_donor_is_not_believed_to_have_the_same_prompt() -> None:
    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(sealer.opening + sealer.seal(encode_frame(OTHER_PROMPT)))
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(PromptMismatch) as failure:
        await donor.ask(RESUMING)
    assert failure.value.retry_elsewhere
    assert donor.events == []
    assert donor.streams[0].was_reset


@pytest.mark.parametrize(
    "tokens",
    [
        Tokens(0, 0, (1,), (b"x",)),
        Tokens(0, 2, (1,), (b"x",)),
        Tokens(1, 0, (1,), (b"x",)),
    ],
    ids=["from the start", "with a gap", "of another choice"],
)
async def test_a_resumed_answer_neither_repeats_nor_skips(tokens: Tokens) -> None:
    accepted = dataclasses.replace(OTHER_PROMPT, prompt_digest=RESUMING.prompt_digest)

    async def script(stream: MemoryPeerStream, sealer: AnswerSealer) -> None:
        await stream.send_all(sealer.opening + sealer.seal(encode_frame(accepted)))
        await stream.send_all(sealer.seal(encode_frame(tokens)))
        await trio.sleep_forever()

    donor = Scripted(script)
    with pytest.raises(RemoteProtocolError):
        await donor.ask(RESUMING)
    assert donor.streams[0].was_reset


async def test_the_longest_resume_crosses() -> None:
    ids = tuple(range(defaults.MAX_NEW_TOKENS - 1))
    request = make_request("x" * 2 * MIB, resume=(Resume(0, ids),), prompt_digest=b"d" * 32)
    engine = EchoEngine()
    async with Lab(engine).running() as lab:
        with pytest.raises(PromptMismatch):
            await lab.ask(request)
    assert engine.requests[0].resume == request.resume


async def test_a_resume_over_the_limit_is_refused() -> None:
    ids = (0,) * (defaults.MAX_NEW_TOKENS + 1)
    async with Lab().running() as lab:
        with pytest.raises(TokenplaceError) as refusal:
            await lab.ask(make_request(resume=(Resume(0, ids),), prompt_digest=b"d" * 32))
    assert refusal.value.code == "bad_format"
