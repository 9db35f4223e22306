"""What measurements come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.router.experience import (
    HALF_LIFE_S,
    MAX_SAMPLES,
    MIN_DECODED,
    Average,
    Experience,
    Typical,
    plain_first_token_s,
)

A = "a" * 64
NOTHING = Typical()


def decode(known: Experience, donor: str, tps: float, times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        known.note_decode(donor, A, n_tokens=100, seconds=100 / tps, now=now)


def tps_of(known: Experience, donor: str, told_tps: float, now: float = 0.0) -> float:
    return 1 / known.token_s(donor, A, 1 / told_tps, known.typical(A), now)


def test_a_donors_word_is_worth_three_samples() -> None:
    known = Experience()
    assert known.token_s("alice", A, 0.1, NOTHING, 0) == 0.1
    decode(known, "alice", tps=5, times=3)
    assert known.token_s("alice", A, 0.1, NOTHING, 0) == pytest.approx((0.1 + 0.2) / 2)


def test_a_liar_is_soon_expected_at_what_it_delivers() -> None:
    known = Experience()
    decode(known, "liar", tps=10)
    assert tps_of(known, "liar", 1000) == pytest.approx(10), "measured is typical: no boast counts"
    decode(known, "alice", tps=30, times=5)
    decode(known, "bob", tps=30, times=5)
    decode(known, "liar", tps=10, times=10)
    assert tps_of(known, "liar", 1000) < 12.5


def test_nobody_is_believed_beyond_what_is_typical_of_the_artifact() -> None:
    known = Experience()
    for donor, tps in (("alice", 10), ("bob", 20), ("carol", 40)):
        decode(known, donor, tps)
    assert tps_of(known, "dave", 1000) == pytest.approx(20)
    assert tps_of(known, "dave", 5) == pytest.approx(5)
    assert known.typical("b" * 64) == NOTHING


def test_what_was_measured_long_ago_counts_little_so_who_became_better_is_seen_again() -> None:
    known = Experience()
    for good in ("alice", "carol"):
        decode(known, good, tps=20, times=20)
    decode(known, "bob", tps=2, times=20)
    assert tps_of(known, "bob", 20) < 2.5
    later = 8 * HALF_LIFE_S
    assert tps_of(known, "bob", 20, now=later) > 10
    decode(known, "bob", tps=20, times=5, now=later)
    assert tps_of(known, "bob", 20, now=later) > 14


def test_one_hiccup_is_no_judgement_but_going_on_so_is() -> None:
    known = Experience()
    decode(known, "alice", tps=20, times=20)
    decode(known, "alice", tps=0.02)
    assert tps_of(known, "alice", 20) > 15
    decode(known, "alice", tps=0.2, times=30)
    assert tps_of(known, "alice", 20) < 1


def test_few_tokens_say_nothing() -> None:
    known = Experience()
    known.note_decode("alice", A, n_tokens=MIN_DECODED - 1, seconds=1, now=0)
    known.note_decode("alice", A, n_tokens=100, seconds=0, now=0)
    assert not known.knows("alice", A)


def test_a_first_token_is_expected_by_the_prompts_length() -> None:
    known = Experience()
    for _ in range(50):
        known.note_first_token("alice", A, n_prompt=1000, seconds=4.0, now=0)

    def expected(n_prompt: int) -> float:
        return known.first_token_s("alice", A, 0.001, n_prompt, known.typical(A), 0)

    assert expected(1000) == pytest.approx(4.0)
    assert expected(4000) == pytest.approx(4.0 * 8.1 / 2.1)
    assert expected(10) < 0.3


def test_no_first_token_yet_is_told_only_of_who_is_known_and_only_upwards() -> None:
    known = Experience()
    known.note_at_least("alice", A, n_prompt=100, seconds=60, now=0)
    assert not known.knows("alice", A)
    known.note_first_token("alice", A, n_prompt=100, seconds=2, now=0)
    before = known.first_token_s("alice", A, 1, 100, NOTHING, 0)
    known.note_at_least("alice", A, n_prompt=100, seconds=1, now=0)
    assert known.first_token_s("alice", A, 1, 100, NOTHING, 0) == before
    known.note_at_least("alice", A, n_prompt=100, seconds=9, now=0)
    assert known.first_token_s("alice", A, 1, 100, NOTHING, 0) > before


def test_memory_is_bounded_and_forgets_who_was_measured_longest_ago() -> None:
    known = Experience()
    for number in range(defaults.MAX_DONORS_MEASURED + 10):
        decode(known, str(number), tps=10)
        decode(known, "alice", tps=10)
    assert len(known) == defaults.MAX_DONORS_MEASURED
    assert known.knows("alice", A)
    assert not known.knows("5", A)


positive = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(positive, st.floats(0, 1e4)), max_size=50), positive, st.floats(0, 1e5))
def test_an_average_stays_among_what_went_into_it(
    samples: list[tuple[float, float]], prior: float, later: float
) -> None:
    average, now = Average(), 0.0
    for sample, seconds in samples:
        now += seconds
        average.add(sample, now)
    values = [prior, *(sample for sample, _ in samples)]
    slack = 1e-9 * max(values)
    assert min(values) - slack <= average.blended(prior, now + later) <= max(values) + slack
    assert average.weight <= MAX_SAMPLES


@given(st.floats(0, 1e6))
def test_a_longer_prompt_takes_longer(n_prompt: float) -> None:
    assert 0 < plain_first_token_s(n_prompt) < plain_first_token_s(n_prompt + 1)
