"""Donors that lie to who asks them: each is left in time with the right error, its stream is reset,
and who asks an honest donor meanwhile does not notice.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.e2e.hostile.frame_lies import FRAMES
from tests.e2e.hostile.lies import BYTES, ENDS, MAX_NEW, N_CHOICES, N_TOP, SILENCES, Told
from tests.e2e.hostile.telling import Outcome, tell_all
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import make_request, text_of
from tokenplace.generation import Event
from tokenplace.peer.requester import RemoteDonor

LIES: Final = (*SILENCES, *ENDS, *BYTES, *FRAMES)
each_lie = pytest.mark.parametrize("told", LIES, ids=[told.name for told in LIES])


async def _ask_liar(remote: RemoteDonor) -> None:
    await _ask(remote, "one two three", MAX_NEW)


async def _ask_honestly(remote: RemoteDonor) -> None:
    prompt = "And so it goes on and on." * 4
    events = await _ask(remote, prompt, len(prompt))
    for choice in range(N_CHOICES):
        assert text_of(events, choice) == prompt.encode()


async def _ask(remote: RemoteDonor, prompt: str, max_tokens: int) -> list[Event]:
    request = make_request(prompt, max_tokens=max_tokens, n=N_CHOICES, top_logprobs=N_TOP)
    async with remote.generate(request) as events:
        return [event async for event in events]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All lies, once."""
    return tell_all(LIES, EchoEngine(token_interval_s=0.01), _ask_liar, _ask_honestly)


@each_lie
def test_who_is_lied_to_leaves_with_the_right_error(
    told: Told, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[told.name]
    assert type(outcome.error) is told.ends_with
    assert outcome.is_left


def test_a_refusal_is_believed_once(outcomes: dict[str, Outcome]) -> None:
    """Whatever is said of keys and epochs, the same donor is asked twice at most."""
    assert max(outcome.n_asked for outcome in outcomes.values()) == 2
    asked_twice = {name for name, outcome in outcomes.items() if outcome.n_asked == 2}
    assert asked_twice == {"no: a stale epoch, for ever", "no: an unknown key, for ever"}
