"""Several requests as one answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
import trio

from tests.api_shim.serving import ScriptedGenerator
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import make_request
from tokenplace.api_shim import together
from tokenplace.api_shim.answer import Answers
from tokenplace.api_shim.form import Part
from tokenplace.api_shim.together import open_parts
from tokenplace.errors import ContextLengthExceeded, RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    Generator,
    TextInput,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.text.deltas import merge

ALICE, BOB = "12D3KooWAlice", "12D3KooWBob"


@dataclass
class Donors:
    """Asks another donor for each prompt; one that says "long" is refused."""

    engine: EchoEngine = field(default_factory=lambda: EchoEngine(token_interval_s=0.001))
    most_running: int = 0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        assert isinstance(request.input, TextInput)
        prompt = request.input.prompt
        if prompt == "long":
            await trio.sleep(0.01)
            raise ContextLengthExceeded
        async with self.engine.generate(request) as events:
            async for event in events:
                self.most_running = max(self.most_running, self.engine.n_running)
                if isinstance(event, Accepted):
                    donor = ALICE if len(prompt) % 2 else BOB
                    fields = event.prompt_digest, 5, 1, 4096, 100, "tp/1", 1, 0
                    event = Accepted(*fields, donor=donor, served=f"tiny@sha256:{len(prompt)}")
                yield event


async def run(generator: Generator, answers: Answers) -> list[str]:
    """The text of each choice."""
    parts: list[Part] = []
    async with open_parts(generator, answers.each) as received:
        async for some in received:
            parts += some
    return [
        merge([delta for part in parts if part.choice == choice for delta in part.deltas]).content
        for choice in range(answers.n_choices)
    ]


async def test_choices_are_counted_through_and_usage_is_summed() -> None:
    answers = Answers([make_request(prompt, n=2) for prompt in ("one", "four", "seven")])
    assert await run(Donors(), answers) == ["one", "one", "four", "four", "seven", "seven"]
    assert answers.require_end() == ["stop"] * 6
    assert answers.usage == Usage(1 + 2 + 2, 0, 2 * (1 + 2 + 2))
    assert answers.accepted_by == f"{ALICE},{BOB}"
    assert answers.served == "tiny@sha256:3,tiny@sha256:4,tiny@sha256:5"


async def test_only_a_few_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "API_PROMPTS_AT_ONCE", 3)
    donors = Donors()
    answers = Answers([make_request(f"prompt {number}") for number in range(12)])
    assert await run(donors, answers) == [f"prompt {number}" for number in range(12)]
    assert donors.most_running == 3


async def test_the_first_that_fails_ends_all_with_its_own_error() -> None:
    donors = Donors(EchoEngine(token_interval_s=3600))
    answers = Answers([make_request(prompt) for prompt in ("one", "long", "four")])
    with pytest.raises(ContextLengthExceeded):
        await run(donors, answers)
    assert (donors.engine.n_running, donors.engine.n_cancelled) == (0, 2)


async def test_leaving_early_frees_every_engine() -> None:
    donors = Donors(EchoEngine(token_interval_s=3600))
    answers = Answers([make_request(prompt) for prompt in ("one", "four")])
    async with open_parts(donors, answers.each) as parts:
        await anext(parts)
        await anext(parts)
        assert donors.engine.n_running == 2
    assert donors.engine.n_running == 0


async def test_one_that_came_to_a_stop_string_is_left_while_others_go_on() -> None:
    donors = Donors(EchoEngine(piece_bytes=1, token_interval_s=0.001))
    answers = Answers([make_request(prompt, stop=("N",)) for prompt in ("yesNo" * 400, "four")])
    assert await run(donors, answers) == ["yes", "four"]
    assert donors.engine.n_cancelled == 1


async def test_an_answer_without_its_last_event_is_a_failure() -> None:
    accepted = Accepted(bytes(32), 1, 0, 10, 10, "tp/1", 1, 0)
    end = Finished((ChoiceEnd(0, EogStop(2)),), Usage(1, 0, 1), Timings(0, 0, 0))
    token = Tokens(0, 0, (1,), (b"Hi",))
    whole: list[Event] = [accepted, token, end]
    for events, is_whole in ((whole, True), (whole[:-1], False)):
        answers = Answers([make_request(), make_request()])
        assert await run(ScriptedGenerator(events), answers) == ["Hi", "Hi"]
        if is_whole:
            assert answers.require_end() == ["stop", "stop"]
        else:
            with pytest.raises(RemoteProtocolError):
                answers.require_end()
