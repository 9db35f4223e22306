"""The simulation finds what it looks for: each defect is planted, and found."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from random import Random

import pytest
import trio

from benchmarks.simulation import workload
from benchmarks.simulation.checks import Asked, faults_of
from benchmarks.simulation.donors import Nature
from benchmarks.simulation.faults import Fault
from benchmarks.simulation.links import MemoryStream
from benchmarks.simulation.world import Outcome, run_world
from tests.simulation.worlds import PLAIN, TINY_MODEL, plan_of
from tokenplace import defaults
from tokenplace.engine import fake
from tokenplace.engine.fake import Faults
from tokenplace.engine.fake_model import Answer, FakeModel, prompt_ids
from tokenplace.errors import DonorBusy, TokenplaceError
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Stop,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.peer.admission import Place
from tokenplace.peer.contents import Contents
from tokenplace.router.continuation import Continuation
from tokenplace.router.router import Router

TWO = (Nature.HONEST, Nature.HONEST)


def test_a_world_in_which_nothing_happens_is_right() -> None:
    outcome = run_world(1, plan_of(*TWO))
    assert not outcome.faults
    assert outcome.outcomes == {"whole": 12}


def test_a_world_in_which_donors_die_is_right_too() -> None:
    outcome = run_world(1, plan_of(*TWO, chaos=(Fault.CRASH,), chaos_s=5.0))
    assert not outcome.faults
    assert any(len(asked.accepted) > 1 for asked in outcome.asked if asked.is_whole)


# ---------------------------------------------------------------- planted defects


def has(outcome: Outcome, what: str) -> bool:
    return any(what in fault for fault in outcome.faults)


def test_a_donor_that_repeats_a_token_when_it_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeating(Answer):
        def _id_at(self, index: int) -> int:
            is_first = bool(self._resumed) and index == len(self._resumed)
            return super()._id_at(index - is_first)

        def __init__(
            self,
            model: FakeModel,
            request: GenerateRequest,
            choice: int,
            max_new: int,
            ids: Sequence[int] = (),
        ) -> None:
            self._resumed = ids
            super().__init__(model, request, choice, max_new, ids)

    monkeypatch.setattr(fake, "Answer", Repeating)
    outcome = run_world(1, plan_of(*TWO, chaos=(Fault.CRASH,), chaos_s=5.0))
    assert has(outcome, "is corrupt")


def test_a_router_that_hands_on_a_lie_about_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contents, "_finish", lambda contents, finished: None)
    outcome = run_world(1, plan_of(Nature.LIES, n_requests=40))
    assert has(outcome, "silently short")


def test_a_router_that_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Router.generate

    @trio.as_safe_channel
    async def quiet(router: Router, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        try:
            async with generate(router, request) as events:
                async for event in events:
                    yield event
        except TokenplaceError:
            return

    monkeypatch.setattr(Router, "generate", quiet)
    outcome = run_world(1, plan_of(*TWO, chaos=(Fault.CRASH,), chaos_s=3.0))
    assert has(outcome, "ends without a word")


def test_a_router_that_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROGRESS_TIMEOUT_S", "STILL_TIMEOUT_S", "MAX_UNANSWERED_S", "WORKER_STALL_S"):
        monkeypatch.setattr(defaults, name, math.inf)
    stalling = plan_of(Nature.STALLS, faults=Faults(stall_after=3), n_requests=1)
    assert has(run_world(1, stalling), "hangs")


def test_a_router_that_fails_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(continuation: Continuation, event: Event) -> Sequence[Event]:
        raise KeyError("a defect")

    monkeypatch.setattr(Continuation, "take", take)
    outcome = run_world(1, plan_of(Nature.HONEST, n_requests=1))
    assert has(outcome, "which is no reason")


def test_a_donor_that_forgets_to_give_a_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "release", lambda place: None)
    outcome = run_world(1, plan_of(Nature.HONEST, n_requests=1))
    assert has(outcome, " running")


def test_streams_that_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(stream: MemoryStream) -> None:
        pass

    monkeypatch.setattr(MemoryStream, "aclose", nothing)
    outcome = run_world(1, plan_of(Nature.HONEST, n_requests=1))
    assert has(outcome, "/generate/1.0.0 open")


# ---------------------------------------------------------------- one answer


REQUEST = workload.draw_request(Random(1), TINY_MODEL.name, bytes(16), PLAIN)
(WHOLE,) = workload.expected_answer(TINY_MODEL, REQUEST)
N_PROMPT = len(prompt_ids(REQUEST.input))
N = len(WHOLE.ids)
SERVED = f"{TINY_MODEL.name}@sha256:{TINY_MODEL.artifact[:12]}"
ACCEPTED = Accepted(bytes(32), N_PROMPT, 0, 4096, 50, "tp/1", 0, 0, served=SERVED)


def tokens(start: int = 0, end: int = N) -> Tokens:
    return Tokens(0, start, WHOLE.ids[start:end], WHOLE.pieces[start:end])


def finished(n_tokens: int = N, n_prompt: int = N_PROMPT, stop: Stop = WHOLE.stop) -> Finished:
    return Finished((ChoiceEnd(0, stop),), Usage(n_prompt, 0, n_tokens), Timings(0, 0, 0))


def asked(*events: Event, error: BaseException | None = None, **facts: bool) -> Asked:
    return Asked("app", 0, REQUEST, 0.0, list(events), error, **facts)  # type: ignore[arg-type]


WRONG = replace(tokens(5, 6), ids=(WHOLE.ids[5] + 1,))


@pytest.mark.parametrize(
    "right",
    [
        asked(ACCEPTED, tokens(), finished()),
        asked(ACCEPTED, tokens(0, 7), ACCEPTED, tokens(7), finished()),
        asked(error=DonorBusy()),
        asked(ACCEPTED, tokens(0, 7), error=DonorBusy()),
        asked(ACCEPTED, tokens(0, 7), has_left=True),
        asked(has_left=True),
    ],
    ids=["whole", "continued", "refused", "cut with a reason", "left", "left early"],
)
def test_right_answers(right: Asked) -> None:
    assert faults_of(right, [TINY_MODEL]) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (asked(is_late=True), "hangs"),
        (asked(), "without a word"),
        (asked(ACCEPTED, tokens()), "without a word"),
        (asked(error=KeyError()), "no reason"),
        (asked(ACCEPTED, tokens(), finished(), error=DonorBusy()), "after its end"),
        (asked(ACCEPTED, tokens(), finished(), tokens(0, 0)), "behind its end"),
        (asked(tokens(), finished()), "without `accepted`"),
        (asked(ACCEPTED, tokens(0, 5), tokens(6), finished()), "gap"),
        (asked(ACCEPTED, tokens(0, 5), tokens(4), finished()), "repetition"),
        (asked(ACCEPTED, tokens(0, 5), WRONG, tokens(6), finished()), "corrupt"),
        (asked(ACCEPTED, tokens(0, 5), finished(5)), "silently short"),
        (asked(ACCEPTED, finished(0)), "silently short"),
        (asked(ACCEPTED, tokens(), finished(stop=LengthStop())), "another reason"),
        (asked(ACCEPTED, tokens(), finished(N + 1)), "counts"),
        (asked(ACCEPTED, tokens(), finished(n_prompt=3)), "prompt tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "asked",
)
def test_wrong_ones(wrong: Asked, fault: str) -> None:
    assert any(fault in found for found in faults_of(wrong, [TINY_MODEL]))
