"""What every engine promises, whoever asks: the real one with the small model, and the fake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

import pytest
import trio
from trio.testing import MockClock

from tests.engine.parts import RunningEngine, chat, raw, text_of, tiny_spec, until
from tokenplace import defaults
from tokenplace.engine.engine import Engine
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import (
    BadFormat,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotOffered,
    PromptMismatch,
    ResumeRejected,
    TemplateMismatch,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Phase,
    Resume,
    SamplingParams,
    StringStop,
    Tokens,
)

T = TypeVar("T")
AnyEngine = Engine | FakeEngine
STORY = chat("Tell a story.", max_tokens=12, ignore_eog=True)
LONG = 100_000  # tokens: more than the context holds


class Rig(Protocol):
    """Lets a test use an engine."""

    def run(self, scenario: Callable[[AnyEngine], Awaitable[T]]) -> T: ...


class FakeRig:
    """A new fake for each scenario, in virtual time."""

    def run(self, scenario: Callable[[AnyEngine], Awaitable[T]]) -> T:
        engine = FakeEngine(FakeModel(n_ctx=1024, n_slots=2))
        return trio.run(scenario, engine, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    spec = replace(tiny_spec(request.getfixturevalue("tiny_model")), n_slots=2)
    with RunningEngine(spec) as running:
        yield running


def ids_of(events: list[Event], choice: int = 0) -> list[int]:
    return [
        token_id
        for event in events
        if isinstance(event, Tokens) and event.choice == choice
        for token_id in event.ids
    ]


def accepted_of(events: list[Event]) -> Accepted:
    assert isinstance(events[0], Accepted)
    return events[0]


def finished_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


async def ask(engine: AnyEngine, request: GenerateRequest) -> list[Event]:
    async with engine.generate(request) as events:
        return [event async for event in events]


def check(events: list[Event], request: GenerateRequest) -> None:
    """The rules that hold for every whole answer."""
    first, *between, last = events
    assert isinstance(first, Accepted)
    assert isinstance(last, Finished)
    next_index = dict.fromkeys(range(request.n), 0)
    if request.resume:
        next_index = {resume.choice: len(resume.ids) for resume in request.resume}
    n_new = 0
    for event in between:
        assert isinstance(event, Tokens | Alive)
        if isinstance(event, Tokens):
            assert event.index == next_index[event.choice], "no gap and no overlap"
            assert len(event.ids) == len(event.pieces) > 0
            assert len(event.logprobs) == (0 if request.top_logprobs is None else len(event.ids))
            next_index[event.choice] += len(event.ids)
            n_new += len(event.ids)
    assert max(next_index.values()) <= first.max_new
    assert [end.choice for end in last.choices] == sorted(next_index)
    for end in last.choices:
        if isinstance(end.stop, LengthStop):
            assert next_index[end.choice] == first.max_new
    assert len(first.prompt_digest) == 32
    assert first.sampler == "tp/1"
    assert last.usage.n_prompt == first.n_prompt >= last.usage.n_cached
    assert last.usage.n_completion == n_new
    assert min(vars_of(last.timings)) >= 0


def vars_of(timings: object) -> list[int]:
    return [getattr(timings, name) for name in ("queue_ms", "prefill_ms", "decode_ms")]


def answer(rig: Rig, request: GenerateRequest) -> list[Event]:
    async def scenario(engine: AnyEngine) -> list[Event]:
        return await ask(engine, request)

    events = rig.run(scenario)
    check(events, request)
    return events


def refusal(rig: Rig, request: GenerateRequest) -> TokenplaceError:
    async def scenario(engine: AnyEngine) -> TokenplaceError:
        with pytest.raises(TokenplaceError) as raised:
            await ask(engine, request)
        return raised.value

    return rig.run(scenario)


# ---------------------------------------------------------------- answers


def test_an_answer_has_the_length_that_was_asked_for(rig: Rig) -> None:
    events = answer(rig, STORY)
    assert len(ids_of(events)) == accepted_of(events).max_new == 12
    assert [end.stop for end in finished_of(events).choices] == [LengthStop()]


def test_without_a_limit_the_context_is_one(rig: Rig) -> None:
    first = accepted_of(answer(rig, chat("Say hello.", max_tokens=None)))
    assert first.max_new == first.n_ctx - first.n_prompt


def test_a_digest_names_the_prompt(rig: Rig) -> None:
    one, same, other = (
        accepted_of(answer(rig, request))
        for request in (STORY, replace(STORY, max_tokens=2), chat("Tell a joke.", max_tokens=2))
    )
    assert one.prompt_digest == same.prompt_digest != other.prompt_digest
    assert one.n_prompt == same.n_prompt


def test_seeds_decide_only_what_is_drawn(rig: Rig) -> None:
    other_seed = b"\x02" * 8
    greedy = ids_of(answer(rig, STORY))
    assert greedy == ids_of(answer(rig, replace(STORY, seed=other_seed)))
    drawn = replace(STORY, sampling=replace(STORY.sampling, temperature=1.5))
    first = ids_of(answer(rig, drawn))
    assert first == ids_of(answer(rig, drawn))
    assert first != ids_of(answer(rig, replace(drawn, seed=other_seed)))


def test_the_model_ends_its_turn(rig: Rig) -> None:
    events = answer(rig, chat("Say hello.", max_tokens=200))
    (end,) = finished_of(events).choices
    assert isinstance(end.stop, EogStop)
    assert end.stop.id not in ids_of(events)
    longer = len(ids_of(events)) + 4
    going_on = answer(rig, chat("Say hello.", max_tokens=longer, ignore_eog=True))
    assert len(ids_of(going_on)) == longer


def test_a_stop_string_ends_an_answer_with_the_token_that_completes_it(rig: Rig) -> None:
    pieces = [p for e in answer(rig, STORY) if isinstance(e, Tokens) for p in e.pieces]
    for stop in (pieces[5].decode("utf-8", "ignore").strip(), b"".join(pieces[4:7]).decode()[1:-1]):
        assert stop, "the test needs a piece with text"
        events = answer(rig, replace(STORY, stop=("~~~", stop)))
        assert [end.stop for end in finished_of(events).choices] == [StringStop(stop)]
        assert stop in text_of(events)
        without_last = [p for e in events if isinstance(e, Tokens) for p in e.pieces][:-1]
        assert stop.encode() not in b"".join(without_last)


def test_several_choices_each_have_an_answer(rig: Rig) -> None:
    sampling = replace(STORY.sampling, temperature=1.5)
    events = answer(rig, replace(STORY, n=3, sampling=sampling))
    answers = [tuple(ids_of(events, choice)) for choice in range(3)]
    assert len(set(answers)) == 3
    assert finished_of(events).usage.n_completion == sum(map(len, answers))


@pytest.mark.parametrize("n_top", [0, 3, defaults.MAX_TOP_LOGPROBS])
def test_log_probabilities_come_with_each_token(rig: Rig, n_top: int) -> None:
    events = answer(rig, replace(STORY, top_logprobs=n_top))
    for event in events:
        if not isinstance(event, Tokens):
            continue
        for token_id, piece, logprob in zip(event.ids, event.pieces, event.logprobs, strict=True):
            assert logprob.logprob <= 0
            shares = [token.logprob for token in logprob.top]
            assert len(shares) == n_top
            assert shares == sorted(shares, reverse=True)
            if logprob.top:  # without temperature, the likeliest is drawn
                best = logprob.top[0]
                assert (best.id, best.piece, best.logprob) == (token_id, piece, logprob.logprob)


# ---------------------------------------------------------------- resuming


def cut(events: list[Event], request: GenerateRequest, lengths: dict[int, int]) -> GenerateRequest:
    """The request that goes on after so many tokens of each choice."""
    return replace(
        request,
        resume=tuple(
            Resume(choice, tuple(ids_of(events, choice)[:n])) for choice, n in lengths.items()
        ),
        prompt_digest=accepted_of(events).prompt_digest,
        attempt=1,
    )


def test_a_resumed_answer_goes_on_with_the_next_index(rig: Rig) -> None:
    events = answer(rig, STORY)
    resumed = answer(rig, cut(events, STORY, {0: 5}))
    assert accepted_of(resumed).prompt_digest == accepted_of(events).prompt_digest
    assert accepted_of(resumed).max_new == 12
    assert finished_of(resumed).usage.n_completion == len(ids_of(resumed)) == 7


def test_only_the_choices_named_are_resumed(rig: Rig) -> None:
    request = replace(STORY, n=3, sampling=replace(STORY.sampling, temperature=1.5))
    events = answer(rig, request)
    resumed = answer(rig, cut(events, request, {0: 3, 2: 8}))
    assert [len(ids_of(resumed, choice)) for choice in range(3)] == [9, 0, 4]


def test_what_had_ended_already_only_ends(rig: Rig) -> None:
    request = replace(STORY, n=2)
    events = answer(rig, request)
    ended = answer(rig, cut(events, request, {0: 12, 1: 12}))
    assert [type(event) for event in ended] == [Accepted, Finished]
    assert finished_of(ended).choices == finished_of(events).choices
    half = answer(rig, cut(events, request, {0: 12, 1: 11}))
    assert len(ids_of(half, 1)) == finished_of(half).usage.n_completion == 1


def test_what_cannot_be_resumed_is_refused(rig: Rig) -> None:
    events = answer(rig, STORY)
    good = cut(events, STORY, {0: 5})
    assert isinstance(refusal(rig, replace(good, prompt_digest=bytes(32))), PromptMismatch)
    too_long = replace(cut(events, STORY, {0: 12}), max_tokens=11)
    assert isinstance(refusal(rig, too_long), ResumeRejected)
    absurd = replace(good, resume=(Resume(0, (2**31 - 1,)),))
    assert isinstance(refusal(rig, absurd), ResumeRejected)
    stopped = replace(good, stop=(text_of(events)[:2],))  # it ends with the first or second
    assert isinstance(refusal(rig, stopped), ResumeRejected)


# ---------------------------------------------------------------- refusals


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(rig: Rig) -> None:
    error = refusal(rig, raw("word " * LONG))
    assert isinstance(error, ContextLengthExceeded)
    assert error.numbers["n_prompt"] > error.numbers["n_ctx"] == 1024


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (replace(STORY, artifact="ab" * 32), ModelNotOffered),
        (replace(STORY, template="ab" * 32), TemplateMismatch),
        (replace(STORY, as_of="yesterday"), BadFormat),
        (raw("\ud800"), InvalidRequest),
        (chat("\ud800"), InvalidRequest),
        (replace(STORY, sampling=SamplingParams(logit_bias=((2**31 - 1, 1.0),))), InvalidRequest),
    ],
    ids=["artifact", "template", "date", "text", "chat", "bias"],
)
def test_what_it_does_not_serve_is_refused(
    rig: Rig, request_: GenerateRequest, error: type[TokenplaceError]
) -> None:
    assert type(refusal(rig, request_)) is error


# ---------------------------------------------------------------- many at once


def test_leaving_early_frees_the_slot(rig: Rig) -> None:
    async def scenario(engine: AnyEngine) -> None:
        for n_events in (1, 2, 5):
            async with engine.generate(chat("Count.", max_tokens=900, ignore_eog=True)) as events:
                for _ in range(n_events):
                    await events.receive()
                assert engine.load.n_running + engine.load.n_queued == 1
            await until(lambda: engine.load.n_running + engine.load.n_queued == 0)
        check(await ask(engine, STORY), STORY)

    rig.run(scenario)


async def run_on(engine: AnyEngine, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Have a slot until the scope is cancelled."""
    with trio.CancelScope() as scope:
        async with engine.generate(chat("Count.", max_tokens=900, ignore_eog=True)) as events:
            async for event in events:
                if isinstance(event, Tokens) and event.index == 0:
                    task_status.started(scope)


def test_more_requests_than_slots_wait_and_hear_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "HEARTBEAT_S", 0.05)

    async def scenario(engine: AnyEngine) -> None:
        async with trio.open_nursery() as nursery:
            running = [await nursery.start(run_on, engine) for _ in range(engine.info.n_slots)]
            assert engine.load.n_running == engine.info.n_slots == 2
            async with engine.generate(STORY) as events:
                first, alive = await events.receive(), await events.receive()
                assert isinstance(first, Accepted)
                assert first.position == 0, "only those who wait are ahead"
                assert first.eta_ms > 0
                assert isinstance(alive, Alive)
                assert alive.phase is Phase.QUEUED
                assert engine.load.n_queued == 1
                for scope in running:
                    scope.cancel()
                check([first, alive, *[event async for event in events]], STORY)

    rig.run(scenario)


def test_answers_given_at_the_same_time_are_all_whole(rig: Rig) -> None:
    async def scenario(engine: AnyEngine) -> None:
        async def one(number: int) -> None:
            request = chat(f"Story {number}.", max_tokens=8 + number)
            request = replace(request, bucket=f"bucket {number % 3}")
            check(await ask(engine, request), request)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert engine.load.n_running == engine.load.n_queued == 0

    rig.run(scenario)


def test_a_prefix_is_reused_within_its_scope_only(rig: Rig) -> None:
    async def scenario(engine: AnyEngine) -> list[int]:
        prompt = "Once upon a time there was a donor who had two cores and a cat. " * 3
        counts = []
        mine, foreign = b"\x05" * 16, b"\x06" * 16
        for scope in (mine, mine, foreign):
            events = await ask(engine, chat(prompt, max_tokens=2, scope=scope))
            counts.append(finished_of(events).usage.n_cached)
            assert accepted_of(events).n_cached == counts[-1]
        return counts

    first, second, foreign = rig.run(scenario)
    assert first == foreign == 0
    assert second > 30
