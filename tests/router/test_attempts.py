"""The closed list of end reasons, and what is told of attempts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tokenplace.errors import ErrorCode
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Finished,
    Phase,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.router.attempts import (
    ASKED,
    MAX_TOLD,
    Asked,
    Attempt,
    Outcome,
    Progress,
    end_of,
    route_text,
    tried_text,
)
from tokenplace.router.policy import Candidate
from tokenplace.router.why import Rule, Why

ALICE = "12D3KooWSPpe5mwtL8KmqMWKucAp9YL7JkwvFSn3FrbDnL1bLGD2"
BOB = "12D3KooWMvrQ1xxSLrqjdvugEBADAhgW4tT2VmaVpjcBAWPiTpER"
CAROL = "12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu"
TINY_MODEL = "tiny-model@sha256:aaaaaaaaaaaa"
NO_ERRORS = {"finished", "cancelled", "outraced"}


def candidate(donor: str) -> Candidate:
    return Candidate(donor, "a" * 64, "", 0, 0, 0.0, 0.0, None, True, "tiny-model")


def attempt(
    donor: str = ALICE,
    outcome: Outcome | None = Outcome.BUSY,
    phase: str = ASKED,
    n_tokens: int = 0,
    number: int = 0,
    rule: Rule = Rule.BETTER_OF_TWO,
) -> Attempt:
    return Attempt(
        at=1000.0,
        request="0123456789ab",
        model="tiny",
        served=TINY_MODEL,
        donor=donor,
        number=number,
        outcome=outcome,
        phase=phase,
        accepted_s=None if phase == ASKED else 0.02,
        first_token_s=0.3 if n_tokens else None,
        total_s=1.5,
        n_tokens=n_tokens,
        n_resumed=0,
        why=Why(rule),
    )


TRIED = [
    attempt(ALICE),
    attempt(BOB, Outcome.CONNECTION_LOST, Phase.DECODE, 40, 1),
    attempt(CAROL, Outcome.CONNECT_FAILED, number=2),
]


# ---------------------------------------------------------------- the list


def test_an_outcome_is_an_error_code_or_no_error() -> None:
    assert {outcome.value for outcome in Outcome} == {code.value for code in ErrorCode} | NO_ERRORS


def test_the_protocol_names_the_outcomes_that_are_no_errors() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    section = page.split("\n## 8. ")[1].split("\n## ")[0]
    (sentence,) = re.findall(r"An attempt ends with one of these codes, or with ([^;]+);", section)
    assert set(re.findall(r"`(\w+)`", sentence)) == NO_ERRORS


def test_every_outcome_has_words() -> None:
    words = [outcome.text for outcome in Outcome]
    assert len(set(words)) == len(words)
    assert not [text for text in words if "_" in text]


# ---------------------------------------------------------------- what is told


def test_what_was_tried_is_a_sentence_for_people() -> None:
    assert tried_text(TRIED) == (
        "3 donors asked: bDnL1bLGD2 busy, cBAWPiTpER connection_lost (decode, 40 tokens), "
        "Nzbm5akpqu connect_failed."
    )
    assert tried_text([]) == ""


def test_a_donor_that_was_asked_twice_is_one_donor() -> None:
    twice = [
        attempt(BOB, Outcome.CONNECTION_LOST, Phase.DECODE, 1),
        attempt(BOB, Outcome.DONOR_SILENT, Phase.QUEUED),
    ]
    assert tried_text(twice) == (
        f"1 donor asked in 2 attempts: {end_of(BOB)} connection_lost (decode, 1 token), "
        f"{end_of(BOB)} donor_silent (queued)."
    )


def test_a_route_is_for_programs() -> None:
    route = [*TRIED[:2], attempt("self", Outcome.FINISHED, Phase.DECODE, 9)]
    assert route_text(route) == (
        f"{end_of(ALICE)}=busy@asked, {end_of(BOB)}=connection_lost@decode, self=finished"
    )
    assert route_text([attempt(outcome=None, phase=Phase.PREFILL)]).endswith("=running@prefill")
    assert route_text([]) == ""


@given(
    st.lists(
        st.builds(
            attempt,
            donor=st.sampled_from([ALICE, BOB, "self"]),
            outcome=st.sampled_from([None, *Outcome]),
            phase=st.sampled_from([ASKED, *Phase]),
            n_tokens=st.integers(0, 10**9),
        ),
        max_size=MAX_TOLD + 4,
    )
)
def test_what_is_told_is_bounded_and_fits_a_header(attempts: list[Attempt]) -> None:
    route = route_text(attempts)
    assert route.isascii()
    assert route.isprintable()
    assert len(route) < 60 * MAX_TOLD
    assert len(tried_text(attempts)) < 80 * MAX_TOLD
    parts = [re.fullmatch(r"(\w+)=(\w+)(?:@(\w+))?", part) for part in route.split(", ") if part]
    assert len(parts) == min(len(attempts), MAX_TOLD)
    for part in parts:
        assert part is not None
        assert part[2] in {*Outcome, "running"}
        assert part[3] in {None, ASKED, *Phase}


# ---------------------------------------------------------------- progress


ACCEPTED = Accepted(bytes(32), 7, 0, 4096, 100, "tp/1", 8000, 3, donor=BOB)
END = Finished((ChoiceEnd(0, EogStop(2)),), Usage(7, 0, 3), Timings(0, 1, 2))


def progress(why: Why | None = None) -> Progress:
    return Progress(50.0, Asked(1000.0, "0123456789ab", "tiny", candidate(BOB), 1, why, 5))


def test_an_attempt_is_written_down_as_it_went() -> None:
    seen = progress(Why(Rule.TRIAL))
    seen.note(ACCEPTED, 50.25)
    seen.note(Alive(Phase.PREFILL, 0.5, 0), 51.0)
    seen.note(Tokens(0, 5, (1, 2), (b"a", b"b")), 52.0)
    seen.note(Tokens(0, 7, (3,), (b"c",)), 53.0)
    seen.note(END, 54.0)
    assert seen.attempt(54.5) == Attempt(
        at=1000.0,
        request="0123456789ab",
        model="tiny",
        served=TINY_MODEL,
        donor=BOB,
        number=1,
        outcome=Outcome.FINISHED,
        phase=Phase.DECODE,
        accepted_s=0.25,
        first_token_s=2.0,
        total_s=4.5,
        n_tokens=3,
        n_resumed=5,
        why=Why(Rule.TRIAL),
    )


def test_what_never_happened_has_no_time() -> None:
    seen = progress().attempt(51.0)
    assert (seen.accepted_s, seen.first_token_s, seen.phase) == (None, None, ASKED)
    assert seen.outcome is Outcome.CANCELLED
    assert seen.waiting is None


def test_whoever_waits_has_a_place_and_a_time_that_shrinks() -> None:
    seen = progress()
    seen.note(ACCEPTED, 51.0)
    waiting = seen.attempt(53.0, is_over=False).waiting
    assert waiting is not None
    assert (waiting.position, waiting.eta_s) == (3, 6.0)
    seen.note(Alive(Phase.QUEUED, 0.0, 1, 2000), 54.0)
    waiting = seen.attempt(54.0, is_over=False).waiting
    assert waiting is not None
    assert (waiting.position, waiting.eta_s) == (1, 2.0)
    seen.note(Tokens(0, 0, (1,), (b"a",)), 55.0)
    running = seen.attempt(55.0, is_over=False)
    assert (running.waiting, running.outcome) == (None, None)


@pytest.mark.parametrize("rule", [*Rule, None])
def test_a_hedge_is_known_by_its_rule(rule: Rule | None) -> None:
    seen = progress(Why(rule) if rule else None).attempt(51.0)
    assert seen.is_hedge == (rule is Rule.HEDGE)


def test_attempts_tell_no_text() -> None:
    seen = progress()
    seen.note(Tokens(0, 0, (1,), (b"the canary sings",)), 51.0)
    assert "canary" not in repr(seen)
    assert "canary" not in repr(seen.attempt(52.0))
