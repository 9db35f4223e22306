"""The fake engine: its time, its turns, its faults. What it shares with the real one is in
test_contract.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.engine.parts import ALICE, BOB, chat, raw, text_of
from tokenplace import defaults
from tokenplace.engine.fake import FakeEngine, Faults
from tokenplace.engine.fake_model import Answer, FakeModel
from tokenplace.errors import (
    DonorBusy,
    DonorFinishing,
    InvalidRequest,
    ResumeRejected,
    TokenplaceError,
    Unsupported,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChatInput,
    ChatMessage,
    Event,
    Finished,
    GenerateRequest,
    Generator,
    GrammarStop,
    JsonObject,
    Phase,
    Resume,
    SamplingParams,
    Timings,
    Tokens,
    Tool,
    ToolCall,
    ToolChoice,
)

SLOW = FakeModel(prefill_tps=100.0, decode_tps=10.0, n_slots=1)
PROMPT = "word " * 80  # 100 tokens
WEATHER = Tool("weather", "Tells the weather.", "{}")


def ids_of(events: list[Event], choice: int = 0) -> list[int]:
    return [
        token_id
        for event in events
        if isinstance(event, Tokens) and event.choice == choice
        for token_id in event.ids
    ]


@dataclass
class Heard:
    """Events of one answer, with the time of each, and the error that ended it."""

    events: list[Event] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    error: TokenplaceError | None = None

    def when(self, kind: type[Event]) -> list[float]:
        return [at for event, at in zip(self.events, self.at, strict=True) if type(event) is kind]


async def hear(engine: FakeEngine, request: GenerateRequest, heard: Heard | None = None) -> Heard:
    heard = heard if heard is not None else Heard()
    try:
        async with engine.generate(request) as events:
            async for event in events:
                heard.events.append(event)
                heard.at.append(trio.current_time())
    except TokenplaceError as error:
        heard.error = error
    return heard


async def hear_all(engine: FakeEngine, *requests: GenerateRequest) -> list[Heard]:
    """All asked at once, in this order."""
    answers = [Heard() for _ in requests]
    async with trio.open_nursery() as nursery:
        for request, heard in zip(requests, answers, strict=True):
            nursery.start_soon(hear, engine, request, heard)
            await trio.testing.wait_all_tasks_blocked()
    return answers


def of_bucket(name: str, max_tokens: int = 10) -> GenerateRequest:
    return replace(raw(f"I am {name}.", max_tokens=max_tokens), bucket=name, ignore_eog=True)


# ---------------------------------------------------------------- time


async def test_it_is_as_fast_as_told(autojump_clock: MockClock) -> None:
    heard = await hear(FakeEngine(SLOW), replace(raw(PROMPT, max_tokens=21), ignore_eog=True))
    first, *_, last = heard.when(Tokens)
    assert first == pytest.approx(1.0)
    assert last - first == pytest.approx(2.0)
    done = heard.events[-1]
    assert isinstance(done, Finished)
    assert done.timings == Timings(0, 1000, 2000)


@pytest.mark.parametrize(("stream_cost", "seconds"), [(0.0, 2.0), (0.5, 5.0), (1.0, 8.0)])
async def test_streams_share_its_speed(
    autojump_clock: MockClock, stream_cost: float, seconds: float
) -> None:
    model = replace(SLOW, n_slots=4, prefill_tps=1e9, stream_cost=stream_cost)
    answers = await hear_all(FakeEngine(model), *[of_bucket(name, 21) for name in "abcd"])
    for heard in answers:
        assert heard.when(Tokens)[-1] == pytest.approx(seconds, abs=0.5)


async def test_choices_are_streams_too(autojump_clock: MockClock) -> None:
    engine = FakeEngine(replace(SLOW, prefill_tps=1e9))
    heard = await hear(engine, replace(of_bucket("alice", 21), n=4))
    assert heard.when(Tokens)[-1] == pytest.approx(5.0)


async def test_a_found_prefix_saves_time_in_its_own_scope_only(autojump_clock: MockClock) -> None:
    engine = FakeEngine(SLOW)

    async def first_token_s(scope: bytes) -> float:
        began_at = trio.current_time()
        request = replace(raw(PROMPT + "More?", max_tokens=2), cache_scope=scope)
        return (await hear(engine, request)).when(Tokens)[0] - began_at

    await hear(engine, replace(raw(PROMPT, max_tokens=2), cache_scope=ALICE))
    assert await first_token_s(BOB) > 1.0 > 0.1 > await first_token_s(ALICE)


async def test_a_long_prompt_says_how_far_it_is(autojump_clock: MockClock) -> None:
    heard = await hear(FakeEngine(SLOW), raw(PROMPT * 8, max_tokens=2))
    alive = [event for event in heard.events if isinstance(event, Alive)]
    assert {event.phase for event in alive} == {Phase.PREFILL}
    assert heard.when(Alive) == pytest.approx([0.0, 2.0, 4.0, 6.0])
    assert [event.progress for event in alive] == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.05)
    ends_at = [at + event.eta_ms / 1000 for at, event in zip(heard.when(Alive), alive, strict=True)]
    assert ends_at == pytest.approx([heard.when(Tokens)[0]] * 4, abs=0.3)


async def test_many_donors_cost_no_time(autojump_clock: MockClock) -> None:
    engines = [FakeEngine(SLOW) for _ in range(40)]
    requests = [of_bucket(f"bucket {number}") for number in range(5)]
    answers: list[list[Heard]] = []

    async def serve(engine: FakeEngine) -> None:
        answers.append(await hear_all(engine, *requests))

    async with trio.open_nursery() as nursery:
        for engine in engines:
            nursery.start_soon(serve, engine)
    assert trio.current_time() > 5 * 0.9
    assert all(len(ids_of(heard.events)) == 10 for five in answers for heard in five)
    assert len({tuple(ids_of(five[0].events)) for five in answers}) == 1, "they are one model"


# ---------------------------------------------------------------- turns


async def test_buckets_take_turns(autojump_clock: MockClock) -> None:
    names = ["alice"] * 4 + ["bob"] * 2
    answers = await hear_all(FakeEngine(SLOW), *map(of_bucket, names))
    order = sorted(range(6), key=lambda number: answers[number].when(Tokens)[0])
    assert [names[number][0] for number in order] == [*"ababaa"]


async def test_who_was_away_has_saved_nothing_up(autojump_clock: MockClock) -> None:
    engine = FakeEngine(SLOW)
    for _ in range(3):
        await hear(engine, of_bucket("alice", 50))
    names = ["alice", "alice", "bob", "bob", "bob"]
    answers = await hear_all(engine, *map(of_bucket, names))
    order = sorted(range(5), key=lambda number: answers[number].when(Tokens)[0])
    assert [names[number][0] for number in order][:4] == [*"abab"]


async def test_the_wait_is_told_and_is_not_longer(autojump_clock: MockClock) -> None:
    engine = FakeEngine(replace(SLOW, n_slots=2))
    answers = await hear_all(engine, *[of_bucket(name, 40) for name in "abcde"])
    for place, heard in enumerate(answers):
        first = heard.events[0]
        assert isinstance(first, Accepted)
        assert first.position == max(0, place - 2)
        waited_s = heard.when(Tokens)[0] - heard.at[0]
        assert waited_s <= 2 * first.eta_ms / 1000 + 0.01
        assert first.eta_ms / 1000 <= 2 * waited_s + 0.01, "it should not scare people away either"


async def test_those_who_wait_hear_of_it_until_they_begin(autojump_clock: MockClock) -> None:
    names = ["alice"] * 4
    answers = await hear_all(FakeEngine(SLOW), *[of_bucket(name, 400) for name in names])
    last = [event for event in answers[3].events if isinstance(event, Alive)]
    queued = [event for event in last if event.phase is Phase.QUEUED]
    assert [event.position for event in queued] == sorted(
        (event.position for event in queued), reverse=True
    )
    assert {event.position for event in queued} == {0, 1, 2}
    assert last[len(queued)].phase is Phase.PREFILL, "told at once, before any heartbeat"


async def test_the_owner_goes_before_those_who_wait(autojump_clock: MockClock) -> None:
    names = ["alice", "alice", "bob", "", ""]
    answers = await hear_all(FakeEngine(SLOW), *map(of_bucket, names))
    order = sorted(range(5), key=lambda number: answers[number].when(Tokens)[0])
    assert order[:3] == [0, 3, 4], "who runs is not stopped"
    answers = await hear_all(FakeEngine(SLOW, is_owner_first=False), *map(of_bucket, names))
    order = sorted(range(5), key=lambda number: answers[number].when(Tokens)[0])
    assert order[:3] == [0, 2, 3]


async def test_nobody_is_ahead_while_a_slot_is_free(autojump_clock: MockClock) -> None:
    engine = FakeEngine(replace(SLOW, n_slots=2))
    ahead = [engine.load.n_ahead]
    async with trio.open_nursery() as nursery:
        for name in ("alice", "bob", "carol"):
            nursery.start_soon(hear, engine, of_bucket(name))
            await trio.testing.wait_all_tasks_blocked()
            ahead.append(engine.load.n_ahead)
    assert ahead == [0, 0, 1, 2]


async def test_no_room_is_said_at_once(autojump_clock: MockClock) -> None:
    engine = FakeEngine(replace(SLOW, n_queued=1))
    answers = await hear_all(engine, *map(of_bucket, "abc"))
    assert [type(heard.error) for heard in answers] == [type(None), type(None), DonorBusy]


async def test_who_leaves_is_forgotten_in_every_phase(autojump_clock: MockClock) -> None:
    engine = FakeEngine(SLOW)
    for after_s in (0.5, 1.5):  # of prefill, of decode
        with trio.move_on_after(after_s):
            await hear_all(engine, raw(PROMPT, max_tokens=100), of_bucket("bob"))
        assert (engine.load.n_running, engine.load.n_queued) == (0, 0)
    assert (await hear(engine, of_bucket("bob"))).error is None


# ---------------------------------------------------------------- what it says


async def test_a_resumed_answer_is_the_uninterrupted_one(autojump_clock: MockClock) -> None:
    drawn = SamplingParams(temperature=1.0)
    request = replace(raw("Tell.", max_tokens=30), n=2, ignore_eog=True, sampling=drawn)
    whole = (await hear(FakeEngine(), request)).events
    assert isinstance(whole[0], Accepted)
    resume = tuple(Resume(choice, tuple(ids_of(whole, choice)[:7])) for choice in range(2))
    rest = await hear(
        FakeEngine(), replace(request, resume=resume, prompt_digest=whole[0].prompt_digest)
    )
    for choice in range(2):
        assert ids_of(whole, choice)[7:] == ids_of(rest.events, choice)
    alone = await hear(FakeEngine(), replace(request, n=1))
    assert ids_of(alone.events) == ids_of(whole, 0) != ids_of(whole, 1)


async def test_characters_are_split_and_text_is_whole(autojump_clock: MockClock) -> None:
    heard = await hear(FakeEngine(), chat("Tell me everything.", max_tokens=None))
    pieces = [p for event in heard.events if isinstance(event, Tokens) for p in event.pieces]
    assert b"".join(pieces).decode() == text_of(heard.events)
    assert any(piece.decode("utf-8", "replace").endswith("\ufffd") for piece in pieces)


async def test_a_form_that_was_demanded_is_kept(autojump_clock: MockClock) -> None:
    request = replace(chat("Tell.", max_tokens=None), output=JsonObject())
    heard = await hear(FakeEngine(), request)
    assert set(json.loads(text_of(heard.events))) == {"answer"}
    done = heard.events[-1]
    assert isinstance(done, Finished)
    assert done.choices[0].stop == GrammarStop()

    assert isinstance(heard.events[0], Accepted)
    resumed = replace(request, prompt_digest=heard.events[0].prompt_digest)
    ids = tuple(ids_of(heard.events))
    rest = await hear(FakeEngine(), replace(resumed, resume=(Resume(0, ids[:5]),)))
    assert tuple(ids_of(rest.events)) == ids[5:]
    wrong = await hear(FakeEngine(), replace(resumed, resume=(Resume(0, (0,)),)))
    assert isinstance(wrong.error, ResumeRejected)


async def test_a_history_with_tools_is_a_prompt_of_its_own(autojump_clock: MockClock) -> None:
    engine = FakeEngine(FakeModel(features=("chat", "tools")))
    call = ToolCall("1", "weather", "{}")
    inputs = [
        ChatInput((ChatMessage("user", "Hi."),)),
        ChatInput((ChatMessage("user", "Hi."),), (WEATHER,)),
        ChatInput((ChatMessage("user", "Hi."), ChatMessage("assistant", "", (call,)))),
    ]
    firsts = [(await hear(engine, replace(chat(), input=one))).events[0] for one in inputs]
    assert len({first.prompt_digest for first in firsts if isinstance(first, Accepted)}) == 3


@pytest.mark.parametrize(
    ("model", "request_", "error"),
    [
        (FakeModel(features=()), chat(), Unsupported),
        (FakeModel(features=("chat",)), replace(chat(), output=JsonObject()), Unsupported),
        (
            FakeModel(),
            replace(chat(), input=ChatInput((ChatMessage("user", "Hi."),), (WEATHER,))),
            Unsupported,
        ),
        (FakeModel(), raw(""), InvalidRequest),
    ],
    ids=["chat", "grammar", "tools", "empty"],
)
async def test_what_it_lacks_is_refused(
    autojump_clock: MockClock,
    model: FakeModel,
    request_: GenerateRequest,
    error: type[TokenplaceError],
) -> None:
    assert type((await hear(FakeEngine(model), request_)).error) is error


async def test_tools_that_may_not_be_called_need_no_support(autojump_clock: MockClock) -> None:
    messages = (ChatMessage("user", "Hi."),)
    request = replace(chat(), input=ChatInput(messages, (WEATHER,), ToolChoice.NONE))
    assert (await hear(FakeEngine(), request)).error is None


@settings(max_examples=50)
@given(
    seed=st.binary(min_size=8, max_size=8),
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    choice=st.integers(0, 15),
    n_kept=st.integers(0, 40),
    stop=st.sampled_from([(), ("hello",), ("are", "e ")]),
)
def test_wherever_an_answer_is_cut_it_goes_on_alike(
    seed: bytes, prompt: str, choice: int, n_kept: int, stop: tuple[str, ...]
) -> None:
    request = replace(
        raw(prompt), seed=seed, stop=stop, sampling=SamplingParams(temperature=1.0), top_logprobs=2
    )

    def rest_of(answer: Answer) -> list[object]:
        rest: list[object] = []
        while answer.stop is None:
            rest.append(answer.next())
        return [*rest, answer.stop]

    model = FakeModel()
    whole = rest_of(Answer(model, request, choice, 40))
    ids = [token[0] for token in whole[:-1] if isinstance(token, tuple)]
    again = rest_of(Answer(model, request, choice, 40, ids[:n_kept]))
    assert again == whole[-len(again) :]
    assert len(again) >= len(whole) - n_kept


# ---------------------------------------------------------------- faults


async def test_a_refusal_comes_instead_of_an_answer(autojump_clock: MockClock) -> None:
    for refusal in (DonorBusy, DonorFinishing):
        heard = await hear(FakeEngine(faults=Faults(refusal=refusal)), chat())
        assert heard.events == []
        assert type(heard.error) is refusal


async def test_a_crash_ends_all_and_the_worker_comes_back(autojump_clock: MockClock) -> None:
    engine = FakeEngine(replace(SLOW, n_slots=2), Faults(crash_after=3, restart_s=1.0))
    answers = await hear_all(engine, of_bucket("alice"), of_bucket("bob"), of_bucket("carol"))
    assert [type(heard.error) for heard in answers] == [WorkerCrashed] * 3
    assert [len(ids_of(heard.events)) for heard in answers] == [3, 3, 0]
    assert (engine.load.state, engine.load.restarts) == ("restarting", 1)

    engine.faults = Faults()
    began_at = trio.current_time()
    heard = await hear(engine, of_bucket("alice"))
    assert heard.error is None
    assert heard.at[0] - began_at == pytest.approx(1.0)
    assert isinstance(heard.events[-1], Finished)
    assert heard.events[-1].usage.n_cached == 0, "what it had cached is gone"
    assert engine.load.state == "ready"


async def test_a_worker_that_stays_away_is_not_waited_for(autojump_clock: MockClock) -> None:
    engine = FakeEngine(faults=Faults(restart_s=60.0))
    engine.crash()
    heard = await hear(engine, chat())
    assert isinstance(heard.error, WorkerCrashed)
    assert trio.current_time() == pytest.approx(defaults.RESTART_WAIT_S)


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_stalled_worker_is_alive_until_it_is_killed(
    autojump_clock: MockClock, is_silent: bool
) -> None:
    engine = FakeEngine(faults=Faults(stall_after=2, is_silent=is_silent))
    heard = await hear(engine, of_bucket("alice"))
    assert isinstance(heard.error, WorkerCrashed)
    assert len(ids_of(heard.events)) == 2
    assert trio.current_time() == pytest.approx(defaults.WORKER_STALL_S, abs=1)
    n_beats = defaults.WORKER_STALL_S // defaults.HEARTBEAT_S
    assert len(heard.when(Alive)) == pytest.approx(0 if is_silent else n_beats, abs=1)


async def test_it_can_lie_about_the_wait(autojump_clock: MockClock) -> None:
    etas = []
    for factor in (1.0, 0.01):
        first = (await hear(FakeEngine(SLOW, Faults(eta_factor=factor)), raw(PROMPT))).events[0]
        assert isinstance(first, Accepted)
        etas.append(first.eta_ms)
    assert etas == [1000, 10]


# ---------------------------------------------------------------- as a part


async def test_it_is_a_generator_with_an_offer(autojump_clock: MockClock) -> None:
    engine = FakeEngine(FakeModel(features=()))
    generator: Generator = engine
    async with generator.generate(raw("Hi.")) as events:
        assert isinstance(await events.receive(), Accepted)
    assert engine.requests == [raw("Hi.")]
    assert (engine.info.name, engine.info.n_ctx, engine.info.template) == ("fake-model", 4096, "")
    assert (engine.load.prefill_tps, engine.load.decode_tps) == (1000.0, 100.0)


def test_it_needs_no_model_library() -> None:
    code = "import sys, tokenplace.engine.fake; assert not {'numpy', 'llama_cpp'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
