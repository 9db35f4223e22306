"""More requests than slots with the real small model: what those who wait are told, and who goes
first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from tests.engine.parts import RunningEngine, ask, chat, tiny_spec, until
from tokenplace import defaults
from tokenplace.engine.engine import Engine
from tokenplace.generation import Accepted, Alive, Event, GenerateRequest, Phase, Tokens

pytestmark = pytest.mark.slow

STRANGERS = ("alice", "bob", "carol", "dave")
OWNER = ""


@dataclass
class Heard:
    """What one request was told, and when: the wait that each of it promised."""

    bucket: str
    asked_at: float = 0.0
    first_token_at: float = 0.0
    promised: list[tuple[float, Event]] = field(default_factory=list)

    async def ask(self, engine: Engine, request: GenerateRequest) -> None:
        self.asked_at = trio.current_time()
        async with engine.generate(replace(request, bucket=self.bucket)) as events:
            async for event in events:
                now = trio.current_time()
                if isinstance(event, Accepted | Alive):
                    self.promised.append((now, event))
                elif isinstance(event, Tokens) and not self.first_token_at:
                    self.first_token_at = now

    @property
    def queued(self) -> list[Alive]:
        alive = [event for _, event in self.promised if isinstance(event, Alive)]
        return [event for event in alive if event.phase is Phase.QUEUED]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[RunningEngine]:
    with RunningEngine(tiny_spec(tiny_model)) as engine:
        yield engine


def story(number: int) -> GenerateRequest:
    scope = number.to_bytes(16)
    return chat(f"Story {number}.", scope=scope, max_tokens=60, ignore_eog=True)


def test_those_beyond_the_slots_see_the_queue_move_and_the_owner_overtakes(
    tiny: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "HEARTBEAT_S", 0.05)

    async def scenario(engine: Engine) -> tuple[list[Heard], Heard]:
        await ask(engine, story(99))  # now the speeds are known
        strangers = [Heard(bucket) for bucket in ("running", "running", *STRANGERS)]
        owner = Heard(OWNER)
        async with trio.open_nursery() as nursery:
            for number, heard in enumerate(strangers):
                nursery.start_soon(heard.ask, engine, story(number))
                await until(lambda heard=heard: bool(heard.promised))  # type: ignore[misc]
            await until(lambda: engine.load.n_queued == len(STRANGERS))
            nursery.start_soon(owner.ask, engine, story(90))
        return strangers[2:], owner

    strangers, owner = tiny.run(scenario)
    assert owner.first_token_at < min(heard.first_token_at for heard in strangers[1:])
    assert {alive.position for alive in owner.queued} <= {0}
    last = max(strangers, key=lambda heard: heard.first_token_at)
    assert len(last.queued) > 3
    (_, accepted), *_ = last.promised
    assert isinstance(accepted, Accepted)
    assert accepted.position > 0
    assert last.queued[-1].position == 0
    # The owner came later and pushed it back once; from then on it only moves on.
    highest = max(range(len(last.queued)), key=lambda at: last.queued[at].position)
    moved = last.queued[highest:]
    assert all(before.position >= after.position for before, after in pairwise(moved))
    assert moved[-1].eta_ms < moved[0].eta_ms
