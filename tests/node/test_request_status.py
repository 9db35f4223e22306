"""What a status says of a request, while it runs and after."""

from __future__ import annotations

import json

import pytest

from tests.router.test_attempts import ACCEPTED, ALICE, BOB, candidate
from tests.router.test_router import REQUEST
from tokenplace.generation import Alive, Phase, Tokens
from tokenplace.node.request_status import request_status
from tokenplace.router.attempts import Asked, Outcome, Progress
from tokenplace.router.journal import Journal, Record
from tokenplace.router.why import Rule, Why

WHY = Why(Rule.BETTER_OF_TWO, 0.4, 4.0, 5, 3)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def record(journal: Journal) -> Record:
    """A request that was begun at 1000 by everybody's clock, and at 50 by trio's."""
    return journal.begin(REQUEST, 1000.0, 50.0)


def ask(journal: Journal, donor: str = BOB, why: Why | None = WHY) -> Progress:
    progress = Progress(50.5, Asked(1000.5, REQUEST.id, REQUEST.model, candidate(donor), 0, why))
    journal.note_asked(progress)
    return progress


def test_a_request_that_nobody_was_found_for_yet(record: Record) -> None:
    status = request_status(record, 1002.0, 52.0)
    assert (status["outcome"], status["text"]) == (None, "looking for a donor")
    assert (status["age_s"], status["total_s"], status["attempts"]) == (2.0, 2.0, [])


def test_a_request_says_how_far_it_is(journal: Journal, record: Record) -> None:
    progress = ask(journal)

    def text() -> str:
        status = request_status(record, 1003.0, 53.0)
        (attempt,) = status["attempts"]
        assert attempt["outcome"] is None
        assert attempt["text"] == status["text"]
        return str(status["text"])

    assert text() == "connecting"
    progress.note(ACCEPTED, 51.0)
    assert text() == f"waiting: position 3 at …{BOB[-10:]}, first token in about 6 s"
    progress.note(Alive(Phase.PREFILL, 0.5, 0, 1000), 53.0)
    assert text() == "reading the prompt, 50 %, about 1 s"
    progress.note(Tokens(0, 0, (1,), (b"the canary",)), 53.0)
    assert text() == "writing the answer"


def test_a_request_says_what_became_of_it(journal: Journal, record: Record) -> None:
    lost, unreached, own = ask(journal), ask(journal, ALICE, None), ask(journal, "")
    lost.note(ACCEPTED, 51.0)
    lost.note(Tokens(0, 0, (1, 2), (b"the ", b"canary")), 53.0)
    for progress, outcome in (
        (lost, Outcome.CONNECTION_LOST),
        (unreached, Outcome.CONNECT_FAILED),
        (own, Outcome.FINISHED),
    ):
        progress.outcome = outcome
        journal.note_ended(progress, progress.attempt(54.0))
    journal.end(record, Outcome.FINISHED, 54.0)
    status = request_status(record, 1009.0, 59.0)
    assert (status["text"], status["total_s"], status["n_attempts"]) == ("finished", 4.0, 3)
    first, second, third = status["attempts"]
    assert first["text"] == "connection lost, in decode"
    assert (first["accepted_s"], first["first_token_s"], first["n_tokens"]) == (0.5, 2.5, 2)
    assert first["why"] == {"rule": "better_of_two", "text": WHY.text}
    assert second["text"] == "connect failed, before it accepted"
    assert second["why"] is None
    assert (third["donor"], third["text"]) == ("self", "finished")
    assert "canary" not in json.dumps(status)


def test_a_clock_that_was_set_back_makes_no_request_younger_than_now(record: Record) -> None:
    assert request_status(record, 900.0, 51.0)["age_s"] == 0.0
