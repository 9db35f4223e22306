"""Scores of given tokens, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tokenplace.engine.sampler import BadLogits, logprob
from tokenplace.engine.scoring import score_rows

# Few different values, so that equal logits are common.
LOGITS = st.sampled_from([-np.inf, -30.0, -1.5, 0.0, 0.25, 0.25, 4.0, 11.0])
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=LOGITS)


@given(ROWS, st.data())
def test_scores_are_what_they_are_said_to_be(logits: np.ndarray, data: st.DataObject) -> None:
    logits[:, -1] = 1.0  # a row of nothing but minus infinity is no row
    n_rows, n_vocab = logits.shape
    ids = data.draw(st.lists(st.integers(0, n_vocab - 1), min_size=n_rows, max_size=n_rows))
    for row, token_id, score in zip(logits, ids, score_rows(logits, ids), strict=True):
        p = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
        order = sorted(range(n_vocab), key=lambda i: (-row[i], i))
        assert score.rank == order.index(token_id)
        assert score.gap == row.max() - row[token_id]
        assert score.mass == pytest.approx(sum(p[i] for i in order[: score.rank]), abs=1e-12)
        if p[token_id] > 0:
            assert score.logprob == pytest.approx(math.log(p[token_id]))
        else:
            assert score.logprob == -math.inf
        assert (score.gap == 0) == (row[token_id] == row.max())
        assert score.logprob == logprob(row, token_id, 0)[0], "as a donor tells it"


def test_the_likeliest_token_has_nothing_before_it() -> None:
    (score,) = score_rows(np.array([[0.0, 3.0, 3.0, 1.0]], np.float32), [1])
    assert (score.gap, score.rank, score.mass) == (0, 0, 0)


def test_rows_of_different_places_are_scored_each_by_itself() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (3, 500)).astype(np.float32)
    ids = [0, 499, 250]
    alone = [score_rows(logits[i : i + 1], ids[i : i + 1])[0] for i in range(3)]
    assert score_rows(logits, ids) == alone
    assert score_rows(logits[:0], []) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_scored(bad: float) -> None:
    logits = np.zeros((2, 8), np.float32)
    logits[1, 3] = bad
    with pytest.raises(BadLogits):
        score_rows(logits, [0, 0])


def test_rows_are_left_as_they_were() -> None:
    """They are llama.cpp's own memory."""
    logits = np.random.default_rng(2).normal(0, 3, (2, 50)).astype(np.float32)
    before = logits.copy()
    logits.setflags(write=False)
    score_rows(logits, [1, 2])
    assert (logits == before).all()
