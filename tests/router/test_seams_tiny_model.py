"""Answers with a form, of the real small model, that several donors wrote: still of that form.

What the model says is not the same as uncut, for numerics differ between batches; what its grammar,
and whoever reads the text, make of the seam is what counts.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from tests.engine.parts import RunningEngine, chat, tiny_spec
from tests.fakes import NoOperations
from tests.router.given import GivenRouter, GivenRoutes, route_to
from tests.router.mortal import choices_of, collect
from tokenplace.api_shim.answer import Answer
from tokenplace.engine.engine import Engine
from tokenplace.errors import DonorSilent
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    Event,
    Finished,
    GenerateRequest,
    JsonSchema,
    Tokens,
    Tool,
    ToolChoice,
)
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.text.deltas import Delta, Merged, merge

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {"town": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["town", "people"],
    "additionalProperties": False,
}
LOOK_UP = Tool("look_up", "Looks up a town.", json.dumps(SCHEMA))
ASKED = chat("Tell me of a town.", max_tokens=120, temperature=0.7)
FORMED = replace(ASKED, output=JsonSchema(json.dumps(SCHEMA)), n=2, top_logprobs=1)
CALLING = replace(
    ASKED,
    input=ChatInput(
        (ChatMessage("user", "Look up a town."),),
        (LOOK_UP,),
        ToolChoice.REQUIRED,
        parallel_tool_calls=False,
    ),
)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[RunningEngine]:
    with RunningEngine(tiny_spec(tiny_model)) as engine:
        yield engine


@dataclass
class Cut(NoOperations):
    """The engine, up to so many tokens."""

    engine: Engine
    n_tokens: int | None
    requests: list[GenerateRequest] = field(default_factory=list)

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        n_tokens = 0
        async with self.engine.generate(request) as events:
            async for event in events:
                yield event
                n_tokens += isinstance(event, Tokens)
                if n_tokens == self.n_tokens:
                    raise DonorSilent


class EngineRoutes(GivenRoutes):
    """Routes to donors that are all the same engine, in order of preference."""

    def __init__(self, donors: Sequence[Cut]) -> None:
        super().__init__()
        self.donors = donors

    def given(self, demand: Demand) -> Sequence[Route]:
        return [self._route(rank, donor) for rank, donor in enumerate(self.donors)]

    @staticmethod
    def _route(rank: int, donor: Cut) -> Route:
        info = donor.engine.info
        candidate = Candidate(
            donor=f"donor{rank}",
            artifact=info.artifact,
            template=info.template,
            rank=rank,
            queue=0,
            prefill_tps=0.0,
            decode_tps=0.0,
            rtt_s=None,
            is_accepting=True,
            features=info.features,
        )
        return route_to(candidate, donor)


def answered(
    tiny: RunningEngine, request: GenerateRequest, *cuts: int
) -> tuple[list[Merged], list[Event], list[Cut]]:
    """What an app reads of each choice when donors die after so many tokens each."""

    async def scenario(engine: Engine) -> tuple[list[Event], list[Cut]]:
        donors = [Cut(engine, cut) for cut in (*cuts, None)]
        router = GivenRouter(EngineRoutes(donors))
        return await collect(router, request), donors

    events, donors = tiny.run(scenario)
    answer = Answer(request)
    deltas: list[list[Delta]] = [[] for _ in range(request.n)]
    for event in events:
        for part in answer.receive(event):
            deltas[part.choice] += part.deltas
    assert answer.require_end() == ["tool_calls" if request is CALLING else "stop"] * request.n
    return [merge(each) for each in deltas], events, donors


def is_of_the_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        value.keys() == {"town", "people"}
        and isinstance(value["town"], str)
        and isinstance(value["people"], int)
    )


@pytest.mark.parametrize("cuts", [(1,), (3, 4), (9,)], ids=str)
def test_the_form_is_kept_over_the_seam(tiny: RunningEngine, cuts: tuple[int, ...]) -> None:
    texts, events, donors = answered(tiny, FORMED, *cuts)
    assert all(is_of_the_schema(text.content) for text in texts)
    assert all(donor.requests[0].resume for donor in donors[1:])
    choices = choices_of(events)
    assert all(len(choice.logprobs) == len(choice.ids) for choice in choices.values())
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.usage.n_completion == sum(len(choice.ids) for choice in choices.values())
    assert len(end.choices) == FORMED.n


@pytest.mark.parametrize("cuts", [(1,), (2, 2), (6,)], ids=str)
def test_a_call_is_kept_over_the_seam(tiny: RunningEngine, cuts: tuple[int, ...]) -> None:
    ((content, reasoning, calls),), _, donors = answered(tiny, CALLING, *cuts)
    assert (content, reasoning) == ("", "")
    (call,) = calls
    assert call.name == LOOK_UP.name
    assert is_of_the_schema(call.arguments)
    assert all(donor.requests[0].resume for donor in donors[1:])
