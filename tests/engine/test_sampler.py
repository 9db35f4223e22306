"""Sampler tp/1 against its vectors, and against an implementation slow and plainly right."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.engine import tp1
from tokenplace.engine.sampler import BadLogits, logprob, sample, uniform
from tokenplace.generation import SamplingParams

VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/tp1.json").read_text())

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 0.8, 1.0, 1.5, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 3, 5, 40, 200, 5000, 1 << 20]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 1e-6, 0.2, 0.7, 0.95, 0.999]),
)
# Most of them leave too many candidates to sort.
WIDE_PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.8, 2.0]),
    top_k=st.sampled_from([0, 0, 0, 40, 700, 5000, 1 << 20]),
    top_p=st.sampled_from([0.3, 0.95, 0.999, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.05]),
    typical_p=st.sampled_from([1.0, 1.0, 0.2, 0.95, 0.999]),
)
UNIT = st.floats(0, 1, exclude_max=True)
SMALL = st.lists(
    st.one_of(
        st.integers(-3, 3).map(float), st.floats(-30, 30, width=32), st.sampled_from([-math.inf])
    ),
    min_size=1,
    max_size=60,
).filter(lambda row: max(row) > -math.inf)


@given(SMALL, PARAMS, UNIT)
@settings(max_examples=200, deadline=None)
def test_small_rows_as_the_reference(logits: list[float], params: SamplingParams, u: float) -> None:
    expected, margin = tp1.choose(logits, params, u)
    assume(margin > tp1.CLOSE)
    assert sample(np.array(logits, np.float32), params, u) == expected


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 600, 3000, 9000, 20_000]),
    st.sampled_from([0.0, 0.3, 3.0, 8.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.5, 0.99]),
    WIDE_PARAMS,
    UNIT,
)
@settings(max_examples=100, deadline=None)
def test_vocabularies_as_the_reference(
    noise: int,
    n: int,
    spread: float,
    is_rounded: bool,
    forbidden: float,
    params: SamplingParams,
    u: float,
) -> None:
    """Large enough for every first look and for halving; rounded rows are full of equals."""
    rng = np.random.default_rng(noise)
    row = rng.normal(0, spread, n).astype(np.float32)
    row = row.round() if is_rounded else row
    row[1:][rng.random(n - 1) < forbidden] = -np.inf
    expected, margin = tp1.choose(row.tolist(), params, u)
    assume(margin > tp1.CLOSE)
    assert sample(row, params, u) == expected


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_u_as_the_reference(seed: bytes, choice: int, index: int) -> None:
    u, again = uniform(seed, choice, index), uniform(seed, choice, index, is_again=True)
    assert u == tp1.number(seed, choice, index)
    assert again == tp1.number_again(seed, choice, index)
    assert 0 <= u < 1
    assert 0 <= again < 1
    assert u != again


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if "answer" not in vector],
    ids=lambda vector: vector["name"],
)
def test_vectors_without_tokens_before(vector: dict[str, Any]) -> None:
    """The others are in test_choice_sampler.py."""
    fields = SamplingParams.__dataclass_fields__.keys() & vector.keys()
    params = SamplingParams(**{name: vector[name] for name in fields})
    u = uniform(bytes.fromhex(vector["seed"]), vector["choice"], vector["index"])
    assert u == vector["u"]
    assert sample(np.array(vector["logits"], np.float32), params, u) == vector["token"]


@pytest.mark.parametrize("n_top", [0, 1, 5, 40, 200])
@given(SMALL, st.data())
def test_logprob_as_the_reference(n_top: int, logits: list[float], data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    value, top = logprob(np.array(logits, np.float32), token, n_top)
    assert value == pytest.approx(tp1.log_probability(logits, token), rel=1e-12, abs=1e-12)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    expected = [i for i in order if logits[i] > -math.inf][:n_top]
    assert [i for i, _ in top] == expected
    assert [p for _, p in top] == pytest.approx(
        [tp1.log_probability(logits, i) for i in expected], rel=1e-12, abs=1e-12
    )
    assert all(p == value for i, p in top if i == token)


@given(st.integers(0, 2**32), st.integers(1, 9_000), st.integers(0, 300), st.booleans())
@settings(max_examples=40)
def test_logprob_of_vocabularies(noise: int, n: int, n_top: int, is_rounded: bool) -> None:
    row = np.random.default_rng(noise).normal(0, 3, n).astype(np.float32)
    row = row.round() if is_rounded else row
    value, top = logprob(row, n - 1, n_top)
    assert value == pytest.approx(tp1.log_probability(row.tolist(), n - 1), rel=1e-12, abs=1e-12)
    assert [i for i, _ in top] == np.lexsort((np.arange(n), -row))[:n_top].tolist()


def test_a_logprob_of_what_can_be_drawn_can_be_sent() -> None:
    lowest = -tp1.LARGEST
    row = np.array([lowest, -lowest, 0.0, -np.inf], np.float32)
    assert logprob(row, 0, 4) == (lowest, ((1, 0.0), (2, lowest), (0, lowest)))
    assert logprob(row, 3, 0) == (-math.inf, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logprob_of_no_numbers_is_refused(bad: float) -> None:
    row = np.full(1000, -np.inf, np.float32)
    row[500] = bad
    with pytest.raises(BadLogits):
        logprob(row, 3, 5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(temperature: float, bad: float) -> None:
    row = np.zeros(1000, np.float32)
    row[500] = bad
    with pytest.raises(BadLogits):
        sample(row, SamplingParams(temperature=temperature), 0.5)


def test_tokens_ruled_out_are_never_drawn() -> None:
    """Minus infinity is how a model says never."""
    row = np.full(10_000, -np.inf, np.float32)
    row[[7, 9_000]] = 1.0
    params = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    assert {sample(row, params, u) for u in (0.0, 0.49, 0.51, 1 - 2**-53)} == {7, 9_000}


@pytest.mark.parametrize("forbidden", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("typical_p", [1.0, 0.9999999])
def test_rounded_sums_draw_nothing_that_is_ruled_out(forbidden: float, typical_p: float) -> None:
    """The running sum may end below u, and after it come only tokens that must not come."""
    params = SamplingParams(1.0, 0, 1.0, 0.0, typical_p)
    for noise in range(20):
        rng = np.random.default_rng(noise)
        row = rng.normal(0, 1, 5000).astype(np.float32)
        row[rng.random(5000) < forbidden] = -np.inf
        for u in (1 - 2**-53, 1 - 2**-52):
            assert row[sample(row, params, u)] > -np.inf


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0, 0, 1.0, 0.0),
        SamplingParams(0.5, 5, 1.0, 0.0),
        SamplingParams(2.0, 0, 0.9, 0.0),
        SamplingParams(1.0, 0, 1.0, 0.1),
        SamplingParams(1.0, 0, 1.0, 0.0, 0.6),
    ],
)
def test_over_all_u_each_token_comes_as_often_as_it_is_likely(params: SamplingParams) -> None:
    """On a grid of u a token's share may be off by one step at either end."""
    logits = [1.5, -0.25, 3.0, 2.0, -4.0, 0.5, 2.75, 1.0]
    row, n = np.array(logits, np.float32), 2000
    drawn = [sample(row, params, (i + 0.5) / n) for i in range(n)]
    slow = [tp1.choose(logits, params, (i + 0.5) / n).token for i in range(n)]
    assert drawn == slow
    kept = sorted(set(drawn))
    chances = tp1.softmax([logits[i] / params.temperature for i in kept])
    for i, chance in zip(kept, chances, strict=True):
        assert abs(drawn.count(i) - n * chance) <= 1


def test_typical_drops_the_likeliest_where_it_says_too_little() -> None:
    """One token of 0.4 and thirty of 0.02: the thirty are what one expects to hear."""
    row = np.log(np.array([0.4] + [0.02] * 30)).astype(np.float32)
    params = SamplingParams(1.0, 0, 1.0, 0.0, typical_p=0.49)
    assert {sample(row, params, i / 100) for i in range(100)} == set(range(1, 26))
    cold = SamplingParams(5e-324, 0, 1.0, 0.0, typical_p=0.49)
    assert sample(row, cold, 0.999) in range(1, 26)


def test_the_running_sum_must_exceed_u() -> None:
    row = np.zeros(4, np.float32)
    for params in (SamplingParams(1.0, 0, 1.0, 0.0), SamplingParams(1.0, 4, 1.0, 0.05)):
        assert [sample(row, params, u) for u in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]


def test_the_smallest_temperature_takes_the_best() -> None:
    row = np.array([1.0, 2.0, 1.5], np.float32)
    assert sample(row, SamplingParams(temperature=5e-324), 0.999) == 1
