"""What is written down of requests: by the router, and by whoever stands before it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import EchoEngine
from tests.router.test_router import CANARY, REQUEST, FixedRoutes
from tokenplace.defaults import ATTEMPTS_KEPT, REQUESTS_KEPT
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    ContextLengthExceeded,
    DonorBusy,
    DonorSilent,
    ModelNotFound,
    Unsupported,
)
from tokenplace.generation import Event, GenerateRequest, Phase, Tokens
from tokenplace.operations import CountRequest, EmbedRequest, ask
from tokenplace.router.attempts import ASKED, Asked, Outcome, Progress
from tokenplace.router.journal import Journal, Record, Recorded, part_id
from tokenplace.router.journal_lines import ATTEMPT_FIELDS, REQUEST_FIELDS
from tokenplace.router.policy import Candidate
from tokenplace.router.router import Router

NAMED = replace(REQUEST, id="0123456789ab")


class World:
    """A journal, a router over fake engines that keeps it, and what stands before."""

    def __init__(self, *engines: EchoEngine, routes: FixedRoutes | None = None) -> None:
        self.journal = Journal()
        router = Router(
            routes or FixedRoutes(*engines),
            wall_clock=lambda: 1000.0,
            dice=Random(7),
            journal=self.journal,
        )
        self.apps = Recorded(router, self.journal, lambda: 1000.0)

    @property
    def record(self) -> Record:
        (record,) = self.journal.records
        return record

    async def ask(self, request: GenerateRequest = NAMED) -> list[Event]:
        async with self.apps.generate(request) as events:
            return [event async for event in events]


# ---------------------------------------------------------------- how requests end


async def test_a_request_that_was_answered_by_the_second_donor() -> None:
    world = World(EchoEngine(fail_after=0, error=DonorBusy()), EchoEngine())
    await world.ask()
    record = world.record
    assert (record.id, record.kind, record.model) == ("0123456789ab", "generate", "tiny")
    assert record.outcome is Outcome.FINISHED
    assert record.n_attempts == 2
    assert record.n_tokens == len(CANARY) // 3
    assert not record.running
    first, second = record.attempts
    assert (first.donor, first.outcome, first.phase) == ("donor-0", Outcome.BUSY, Phase.QUEUED)
    assert (second.donor, second.outcome, second.number) == ("donor-1", Outcome.FINISHED, 1)
    assert {first.request, second.request} == {record.id}
    assert first.why is not None
    assert second.served == f"tiny-1@sha256:{'a' * 12}"
    assert world.journal.outcomes == {Outcome.BUSY: 1, Outcome.FINISHED: 1}
    assert world.journal.endings == {Outcome.FINISHED: 1}
    assert world.journal.n_attempts.sum == 2
    assert sum(world.journal.first_token_s.n_seen) == 1


async def test_an_answer_that_was_continued_says_from_where() -> None:
    broken = EchoEngine(fail_after=5, error=ConnectionLost())
    world = World(broken, EchoEngine())
    await world.ask()
    attempts = list(world.record.attempts)
    assert attempts[0].outcome is Outcome.CONNECTION_LOST
    assert attempts[0].n_tokens == 5
    assert attempts[-1].n_resumed == 5
    assert world.record.n_tokens == len(CANARY) // 3
    assert world.record.outcome is Outcome.FINISHED


@pytest.mark.parametrize("error", [ContextLengthExceeded(), ModelNotFound()], ids=lambda e: e.code)
async def test_a_request_that_failed_ends_with_the_errors_code(error: Exception) -> None:
    is_sought = isinstance(error, ModelNotFound)
    routes = FixedRoutes(
        EchoEngine(fail_after=0, error=None if is_sought else error),  # type: ignore[arg-type]
        error=error if is_sought else None,  # type: ignore[arg-type]
    )
    world = World(routes=routes)
    with pytest.raises(type(error)):
        await world.ask()
    assert world.record.outcome == error.code  # type: ignore[attr-defined]
    assert len(world.record.attempts) == (not is_sought)
    assert sum(world.journal.n_attempts.n_seen) == (not is_sought), "who asked nobody is no sample"


async def test_a_fault_of_this_program_is_written_down_as_one() -> None:
    world = World(routes=FixedRoutes(EchoEngine(fail_after=0, error=ZeroDivisionError())))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await world.ask()
    assert world.record.outcome is Outcome.INTERNAL


async def test_an_app_that_leaves_has_cancelled() -> None:
    world = World(EchoEngine(token_interval_s=3600))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ask)
        await wait_all_tasks_blocked()
        assert len(world.record.running) == 1
        assert world.record.outcome is None
        assert world.journal.attempts_of(NAMED.id, trio.current_time())[0].outcome is None
        nursery.cancel_scope.cancel()
    assert world.record.outcome is Outcome.CANCELLED
    assert [attempt.outcome for attempt in world.record.attempts] == [Outcome.CANCELLED]
    assert world.record.ended is not None
    assert not world.record.running


async def test_an_app_that_has_what_it_wants_has_not_cancelled() -> None:
    """A stop string is found here, and the donor left before it has said its last."""
    world = World(EchoEngine())
    async with world.apps.generate(replace(NAMED, stop=("canary",))) as events:
        seen = b""
        async for event in events:
            seen += b"".join(event.pieces) if isinstance(event, Tokens) else b""
            if b"canary" in seen:
                break
    assert world.record.outcome is Outcome.FINISHED
    assert [attempt.outcome for attempt in world.record.attempts] == [Outcome.FINISHED]


async def test_time_is_told_while_it_runs_and_then_stands_still(
    autojump_clock: MockClock,
) -> None:
    world = World(EchoEngine(token_interval_s=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ask)
        await trio.sleep(3.5)
        now = trio.current_time()
        assert world.record.total_s(now) == 3.5
        (attempt,) = world.record.attempts_at(now)
        assert (attempt.total_s, attempt.first_token_s, attempt.n_tokens) == (3.5, 1, 3)
    took_s = world.record.total_s(trio.current_time())
    assert took_s == len(CANARY) // 3
    await trio.sleep(9)
    assert world.record.total_s(trio.current_time()) == took_s


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (EmbedRequest("tiny", ("text",), id="0123456789ab"), "embed"),
        (CountRequest("tiny", REQUEST.input, REQUEST.as_of, id="0123456789ab"), "count"),
    ],
    ids=["embed", "count"],
)
async def test_other_questions_are_written_down_too(
    request_: EmbedRequest | CountRequest, kind: str
) -> None:
    world = World(EchoEngine())
    with pytest.raises(Unsupported):
        await ask(world.apps, request_)
    assert world.record.kind == kind
    assert world.record.outcome is Outcome.UNSUPPORTED
    assert [attempt.outcome for attempt in world.record.attempts] == [Outcome.UNSUPPORTED]


# ---------------------------------------------------------------- bounds


def asked(request: str, number: int = 0) -> Progress:
    candidate = Candidate("alice", "a" * 64, "", 0, 0, 0.0, 0.0, None, True, "tiny-model")
    return Progress(1.0, Asked(1000.0, request, "tiny", candidate, number))


def test_the_oldest_requests_are_forgotten() -> None:
    journal = Journal()
    for number in range(REQUESTS_KEPT + 3):
        journal.begin(replace(REQUEST, id=f"{number:012}"), 1000.0, 1.0)
    assert len(journal.records) == REQUESTS_KEPT
    assert journal.records[0].id == f"{3:012}"
    forgotten = asked(f"{0:012}")
    journal.note_asked(forgotten)
    journal.note_ended(forgotten, forgotten.attempt(2.0))
    assert journal.attempts_of(f"{0:012}", 2.0) == []
    assert journal.records_of(f"{0:012}") == []
    assert len(journal.records_of(f"{3:012}")) == 1
    assert journal.outcomes == {Outcome.CANCELLED: 1}, "counted all the same"


def test_the_oldest_attempts_are_forgotten_and_counted() -> None:
    journal = Journal()
    record = journal.begin(NAMED, 1000.0, 1.0)
    for number in range(ATTEMPTS_KEPT + 2):
        progress = asked(NAMED.id, number)
        journal.note_asked(progress)
        journal.note_ended(progress, progress.attempt(2.0))
    assert [attempt.number for attempt in record.attempts] == list(range(2, ATTEMPTS_KEPT + 2))
    assert journal.n_attempts_of(NAMED.id) == ATTEMPTS_KEPT + 2


def test_two_attempts_that_begin_alike_end_each_for_itself() -> None:
    journal = Journal()
    record = journal.begin(NAMED, 1000.0, 1.0)
    first, hedge = asked(NAMED.id), asked(NAMED.id)
    journal.note_asked(first)
    journal.note_asked(hedge)
    journal.note_ended(hedge, hedge.attempt(2.0))
    assert len(record.running) == 1
    assert record.running[0] is first


def test_prompts_of_one_request_are_found_by_its_id() -> None:
    journal = Journal()
    ids = [part_id("0123456789ab", number) for number in range(3)]
    assert ids[0] == "0123456789ab"
    for id_ in (*ids, "0123456789abc", "999"):
        journal.begin(replace(REQUEST, id=id_), 1000.0, 1.0)
        journal.note_asked(asked(id_))
    assert [record.id for record in journal.records_of("0123456789ab")] == ids
    assert journal.n_attempts_of("0123456789ab") == 3
    assert [a.request for a in journal.attempts_of("0123456789ab", 2.0)] == ids


def test_a_models_name_cannot_play_with_a_terminal() -> None:
    record = Journal().begin(replace(REQUEST, model="\x1b[2J" + "ä" * 99), 1000.0, 1.0)
    assert record.model == "?[2J" + "ä" * 60


# ---------------------------------------------------------------- logs


@asynccontextmanager
async def asked_with_failures(caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    """One request that a third donor answers, after the second died in mid-answer."""
    caplog.set_level(logging.DEBUG)
    world = World(
        EchoEngine(fail_after=0, error=ConnectFailed(CANARY)),
        EchoEngine(fail_after=4, error=DonorSilent(CANARY)),
        EchoEngine(),
    )
    await world.ask(replace(NAMED, model=CANARY))
    yield world


async def test_a_line_for_each_attempt_and_each_request(caplog: pytest.LogCaptureFixture) -> None:
    async with asked_with_failures(caplog) as world:
        lines = [record for record in caplog.records if hasattr(record, "fields")]
    assert len(lines) == world.record.n_attempts + 1
    *attempts, last = lines
    for line in attempts:
        assert (line.event, tuple(line.fields)) == ("attempt", ATTEMPT_FIELDS)  # type: ignore[attr-defined]
    assert (last.event, tuple(last.fields)) == ("request", REQUEST_FIELDS)  # type: ignore[attr-defined]
    assert (
        attempts[0].getMessage().startswith("attempt request=0123456789ab number=0 donor=donor-0 ")
    )
    assert " outcome=connect_failed phase=" in attempts[0].getMessage()
    assert last.getMessage().startswith(
        "request request=0123456789ab kind=generate outcome=finished n_attempts="
    )


async def test_no_line_says_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    async with asked_with_failures(caplog) as world:
        assert len(caplog.records) >= 4, "there is something to look at"
    for line in caplog.records:
        assert CANARY not in line.getMessage()
        assert CANARY not in str(line.__dict__)
    attempts = world.journal.attempts_of(NAMED.id, trio.current_time())
    assert CANARY not in str([replace(attempt, model="") for attempt in attempts])


async def test_nothing_is_written_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await World(EchoEngine()).ask()
    assert not caplog.records


def test_asked_is_no_phase_of_a_donor() -> None:
    assert ASKED not in set(Phase)
