"""Sampler tp/1 against its vectors, and against an implementation slow and plainly right."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tokenplace.engine.sampler import BadLogits, sample, uniform
from tokenplace.generation import SamplingParams

VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/tp1.json").read_text())

# Two right implementations may differ in the last bit of a sum, so a comparison this close may go
# either way.
CLOSE = 1e-9


def reference(logits: list[float], params: SamplingParams, u: float) -> tuple[int, float]:
    """The token, and how close the closest comparison was."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.temperature == 0:
        return order[0], math.inf
    margin = math.inf
    kept = order[: params.top_k] if params.top_k > 0 else order
    p = softmax([logits[i] for i in kept])
    if params.top_p < 1:
        n_kept, total = 0, 0.0
        while n_kept < len(kept) and total < params.top_p:
            total += p[n_kept]
            n_kept += 1
            margin = min(margin, abs(total - params.top_p))
        kept, p = kept[:n_kept], p[:n_kept]
    if params.min_p > 0:
        threshold = params.min_p * p[0]
        for i, chance in zip(kept, p, strict=True):
            if logits[i] != logits[kept[0]]:
                margin = min(margin, abs(chance - threshold))
        kept = [i for i, chance in zip(kept, p, strict=True) if chance >= threshold]
    total = 0.0
    for i, chance in zip(
        kept, softmax([logits[i] / params.temperature for i in kept]), strict=True
    ):
        total += chance
        margin = min(margin, abs(total - u))
        if total > u:
            return i, margin
    return kept[-1], margin


def softmax(values: list[float]) -> list[float]:
    peak = max(values)
    weights = [math.exp(value - peak) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def reference_u(seed: bytes, choice: int, index: int) -> float:
    data = b"tokenplace/tp/1" + seed + choice.to_bytes(4, "big") + index.to_bytes(4, "big")
    return (int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 11) / 2**53


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 0.8, 1.0, 1.5, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 3, 5, 40, 200, 5000, 1 << 20]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
)
UNIT = st.floats(0, 1, exclude_max=True)
SMALL = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32)), min_size=1, max_size=60
)


@given(SMALL, PARAMS, UNIT)
@settings(max_examples=200, deadline=None)
def test_small_rows_as_the_reference(logits: list[float], params: SamplingParams, u: float) -> None:
    expected, margin = reference(logits, params, u)
    assume(margin > CLOSE)
    assert sample(np.array(logits, np.float32), params, u) == expected


@given(
    st.integers(0, 2**32),
    st.integers(1, 12_000),
    st.sampled_from([0.0, 0.3, 3.0, 8.0]),
    st.booleans(),
    PARAMS,
    UNIT,
)
@settings(max_examples=60, deadline=None)
def test_vocabularies_as_the_reference(
    noise: int, n: int, spread: float, is_rounded: bool, params: SamplingParams, u: float
) -> None:
    """Large enough for blocks and for every prefix; rounded rows are full of equals."""
    row = np.random.default_rng(noise).normal(0, spread, n).astype(np.float32)
    row = row.round() if is_rounded else row
    expected, margin = reference(row.tolist(), params, u)
    assume(margin > CLOSE)
    assert sample(row, params, u) == expected


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_u_as_the_reference(seed: bytes, choice: int, index: int) -> None:
    u = uniform(seed, choice, index)
    assert u == reference_u(seed, choice, index)
    assert 0 <= u < 1


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    params = SamplingParams(*(vector[name] for name in ("temperature", "top_k", "top_p", "min_p")))
    u = uniform(bytes.fromhex(vector["seed"]), vector["choice"], vector["index"])
    assert vector["expect"] == "success"
    assert u == vector["u"]
    assert sample(np.array(vector["logits"], np.float32), params, u) == vector["token"]
    assert reference(vector["logits"], params, u)[0] == vector["token"]


def test_the_vectors_leave_no_step_out() -> None:
    """Each parameter decides at least one vector: without it another token would be drawn."""
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("temperature", 1.0)):
        assert any(
            reference(vector["logits"], SamplingParams(**without), vector["u"])[0]
            != vector["token"]
            for vector in VECTORS
            for without in [
                {key: vector[key] for key in ("temperature", "top_k", "top_p", "min_p")}
                | {name: off}
            ]
        ), name


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


def test_the_running_sum_must_exceed_u() -> None:
    row = np.zeros(4, np.float32)
    for params in (SamplingParams(1.0, 0, 1.0, 0.0), SamplingParams(1.0, 4, 1.0, 0.05)):
        assert [sample(row, params, u) for u in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]


def test_the_smallest_temperature_takes_the_best() -> None:
    row = np.array([1.0, 2.0, 1.5], np.float32)
    assert sample(row, SamplingParams(temperature=5e-324), 0.999) == 1
