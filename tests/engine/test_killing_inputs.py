"""Inputs that kill llama.cpp when they reach it: each is refused beforehand, or answered; and where
llama.cpp is made to die all the same, that costs one worker, and nobody else an answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.conftest import ROOT
from tests.engine import native_worker
from tests.engine.parts import ALICE, BOB, RunningEngine, ask, chat, raw, tiny_spec
from tokenplace import defaults
from tokenplace.engine import launch
from tokenplace.engine.engine import Engine
from tokenplace.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    PromptMismatch,
    Quarantined,
    ResumeRejected,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Event,
    Finished,
    GenerateRequest,
    JsonSchema,
    Resume,
    SamplingParams,
    Tokens,
)
from tokenplace.operations import ScoreRequest

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20
NO_TOKEN = 1_000_000_000
INNOCENT = chat("Tell a story of a wolf.", max_tokens=24, ignore_eog=True, scope=BOB)


def sampled(**params: Any) -> GenerateRequest:
    return replace(raw("One, two,", max_tokens=3), sampling=SamplingParams(**params))


def shaped(schema: object) -> GenerateRequest:
    return replace(raw("One, two,", max_tokens=3), output=JsonSchema(json.dumps(schema)))


def nested(depth: int) -> str:
    return '{"items": ' * depth + "{}" + "}" * depth


def resumed(*ids: int) -> GenerateRequest:
    return replace(raw("One, two,"), resume=(Resume(0, ids),), prompt_digest=b"d" * 32)


REFUSED: dict[str, tuple[GenerateRequest, type[TokenplaceError]]] = {
    "longer than the context": (chat("word " * 1500), ContextLengthExceeded),
    "a megabyte of a letter": (raw("a" * MEGABYTE), ContextLengthExceeded),
    "a megabyte of spaces": (raw(" " * MEGABYTE), ContextLengthExceeded),
    "a megabyte of emoji": (chat("🜚" * (MEGABYTE // 4)), ContextLengthExceeded),
    "text that is no Unicode": (raw("\udfff"), InvalidRequest),
    "resumed from no token": (resumed(NO_TOKEN), ResumeRejected),
    "resumed from a negative token": (resumed(-1), ResumeRejected),
    "resumed from another prompt": (resumed(5), PromptMismatch),
    "a bias for no token": (sampled(logit_bias=((NO_TOKEN, 1.0),)), InvalidRequest),
    "a bias for a negative token": (sampled(logit_bias=((-1, 1.0),)), InvalidRequest),
    "a schema that is no JSON": (
        replace(raw("One,"), output=JsonSchema("(" * 100_000)),
        InvalidRequest,
    ),
    "a schema of 100,000 levels": (
        replace(raw("One,"), output=JsonSchema(nested(100_000))),
        InvalidRequest,
    ),
    "a schema of nothing": (shaped({"enum": []}), InvalidRequest),
    "a schema of no choice": (shaped({"anyOf": []}), InvalidRequest),
    "a schema from elsewhere": (shaped({"$ref": "https://example.com/x"}), InvalidRequest),
    "temperature not a number": (sampled(temperature=math.nan), InvalidRequest),
    "infinite temperature": (sampled(temperature=math.inf), InvalidRequest),
    "top_p not a number": (sampled(temperature=1.0, top_p=math.nan), InvalidRequest),
    "negative top_p": (sampled(temperature=1.0, top_p=-1.0), InvalidRequest),
    "negative top_k": (sampled(temperature=1.0, top_k=-5), InvalidRequest),
    "min_p of seven": (sampled(temperature=1.0, min_p=7.0), InvalidRequest),
    "a penalty of nothing": (sampled(repeat_penalty=0.0), InvalidRequest),
}
ANSWERED: dict[str, GenerateRequest] = {
    "a schema of a million letters": shaped({"type": "string", "maxLength": 1_000_000}),
    "a schema of many digits": shaped(
        {"type": "array", "items": {"type": "string", "pattern": "^\\d+$"}, "maxItems": 1500}
    ),
    "a schema of itself": shaped(
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    ),
    "penalties over everything": sampled(repeat_penalty=1.1, repeat_last_n=(1 << 31) - 1),
    "all tokens are sampled": sampled(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0),
    "no temperature to speak of": sampled(temperature=1e-300),
    "the same prompt for several": replace(chat(max_tokens=3), n=4),
    "control tokens in words": raw("<|im_start|><|im_end|>\x00\uffff", max_tokens=3),
}


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[RunningEngine]:
    with RunningEngine(replace(tiny_spec(tiny_model), n_slots=4)) as running:
        yield running


def assert_whole(events: list[Event]) -> None:
    tokens = [event for event in events if isinstance(event, Tokens)]
    ends_at = [event.index + len(event.ids) for event in tokens]
    assert [event.index for event in tokens] == [0, *ends_at[:-1]]
    assert ends_at[-1] == INNOCENT.max_tokens
    assert sum(isinstance(event, Accepted) for event in events) == 1
    assert isinstance(events[-1], Finished)


async def beside_an_innocent(engine: Engine, evil: GenerateRequest) -> TokenplaceError | None:
    """What `evil` gets while somebody else is being answered; that answer must be whole."""
    is_answering = trio.Event()
    events: list[Event] = []

    async def read() -> None:
        async with engine.generate(INNOCENT) as answer:
            async for event in answer:
                events.append(event)
                if isinstance(event, Tokens):
                    is_answering.set()

    error = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await is_answering.wait()
        try:
            await ask(engine, evil)
        except TokenplaceError as caught:
            error = caught
    assert_whole(events)
    return error


@pytest.mark.parametrize("name", REFUSED)
def test_refused_beforehand(tiny: RunningEngine, name: str) -> None:
    evil, expected = REFUSED[name]
    error = tiny.run(lambda engine: beside_an_innocent(engine, evil))
    assert type(error) is expected
    assert error.http_status == 400 or error.retry_elsewhere
    assert tiny.engine.load.restarts == 0


@pytest.mark.parametrize("name", ANSWERED)
def test_answered(tiny: RunningEngine, name: str) -> None:
    assert tiny.run(lambda engine: beside_an_innocent(engine, ANSWERED[name])) is None
    assert tiny.engine.load.restarts == 0


def test_scores_of_tokens_that_do_not_exist(tiny: RunningEngine) -> None:
    request = ScoreRequest(
        model="tiny-model",
        input=raw("One, two,").input,
        ids=(5, NO_TOKEN),
        cache_scope=ALICE,
        as_of="2025-06-01",
    )
    with pytest.raises(InvalidRequest):
        tiny.run(lambda engine: engine.score(request))
    assert tiny.engine.load.restarts == 0


# ---------------------------------------------------------------- what kills all the same


@pytest.fixture(scope="module")
def frail(tiny_model: Path) -> Iterator[RunningEngine]:
    """With a worker that calls llama.cpp as nobody should, if a prompt says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_MODULE", native_worker.__name__)
        patch.setattr(defaults, "RESTART_WAIT_S", 60.0)
        patch.setattr(defaults, "RESTART_DELAY_S", 0.01)
        patch.setenv("PYTHONPATH", str(ROOT))
        with RunningEngine(replace(tiny_spec(tiny_model), n_slots=4)) as running:
            yield running


@pytest.mark.parametrize("name", native_worker.KILLERS)
def test_what_kills_costs_one_worker_and_only_its_own_answer(
    frail: RunningEngine, name: str
) -> None:
    n_restarts = frail.engine.load.restarts
    error = frail.run(lambda engine: beside_an_innocent(engine, raw(name)))
    assert type(error) is WorkerCrashed
    assert frail.engine.load.restarts == n_restarts + 1
    with pytest.raises(Quarantined):
        frail.ask(raw(name))
