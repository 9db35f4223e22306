"""A choice's sampler against its vectors, and against an implementation slow and plainly right."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import ROOT
from tests.engine import tp1, write_tp1_vectors
from tokenplace.engine import choice_sampler
from tokenplace.engine.choice_sampler import ChoiceSampler, NothingAllowed
from tokenplace.engine.sampler import BadLogits, logprob, sample, uniform
from tokenplace.generation import SamplingParams

VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/tp1.json").read_text())
SEED = bytes(range(8))
NO_PROMPT = np.empty(0, np.int32)
PLAIN = SamplingParams(1.0, 0, 1.0, 0.0)
GREEDY = SamplingParams(0.0)
LARGEST = float(np.finfo(np.float32).max)
# What each field says when it does nothing.
OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 1 << 20,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [],
}


class OnlyThese:
    """A grammar that allows the same ids at every place."""

    is_complete = False

    def __init__(self, allowed: Collection[int]) -> None:
        self.allowed = frozenset(allowed)
        self.accepted: list[int] = []
        self.n_masks = 0

    def allows(self, token_id: int) -> bool:
        return token_id in self.allowed

    def mask(self, logits: NDArray[np.float32]) -> None:
        self.n_masks += 1
        logits[[i for i in range(len(logits)) if i not in self.allowed]] = -np.inf

    def accept(self, token_id: int) -> None:
        if token_id not in self.allowed:
            raise ValueError("forbidden")
        self.accepted.append(token_id)


def row_of(logits: Sequence[float]) -> NDArray[np.float32]:
    """As llama.cpp's memory: whoever writes to it fails."""
    row = np.array(logits, np.float32)
    row.flags.writeable = False
    return row


def sampler(
    params: SamplingParams,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    allowed: Collection[int] | None = None,
    seed: bytes = SEED,
    choice: int = 0,
) -> ChoiceSampler:
    """After `answer` was accepted. What a grammar allows begins only then."""
    matcher = None if allowed is None else OnlyThese({*allowed, *answer})
    made = ChoiceSampler(params, seed, choice, np.array(prompt, np.int32), matcher)
    for token in answer:
        made.accept(token)
    if matcher is not None and allowed is not None:
        matcher.allowed = frozenset(allowed)
    return made


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.8, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    typical_p=st.sampled_from([1.0, 1.0, 0.3, 0.9]),
    repeat_penalty=st.sampled_from([1.0, 0.5, 1.1, 10.0, 1e-3]),
    repeat_last_n=st.sampled_from([0, 1, 2, 5, 17, 64, 1 << 20]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.1, -1.0]),
    logit_bias=st.dictionaries(st.integers(0, 14), st.floats(-100, 100, width=16), max_size=6).map(
        lambda bias: tuple(sorted(bias.items()))
    ),
)
N_IDS = 12
IDS = st.integers(0, N_IDS - 1)
LOGITS = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32)),
    min_size=N_IDS,
    max_size=N_IDS,
)


@given(
    LOGITS,
    PARAMS,
    st.lists(IDS, max_size=30),
    st.lists(IDS, max_size=40),
    st.none() | st.frozensets(IDS),
    st.binary(min_size=8, max_size=8),
)
@settings(max_examples=300)
def test_draws_as_the_reference(
    logits: list[float],
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    allowed: frozenset[int] | None,
    seed: bytes,
) -> None:
    expected, margin = tp1.draw(logits, params, seed, 3, prompt, answer, allowed)
    assume(margin > tp1.CLOSE)
    made = sampler(params, prompt, answer, allowed, seed, 3)
    if expected is None:
        with pytest.raises(NothingAllowed):
            made.draw(row_of(logits))
    else:
        assert made.draw(row_of(logits)) == expected
    assert made.n_accepted == len(answer)


@given(
    st.integers(0, 1 << 32),
    st.sampled_from([0.0, 0.8]),
    st.sampled_from([1, 50, 400, 3000]),
    st.integers(0, 500),
    st.integers(0, 500),
)
@settings(max_examples=40)
def test_long_answers_as_the_reference(
    noise: int, temperature: float, last_n: int, n_prompt: int, n_answer: int
) -> None:
    """Enough different tokens to grow by, and to leave the window from every place."""
    rng = np.random.default_rng(noise)
    row = rng.normal(0, 0.3, 2000).astype(np.float32)
    ids = (rng.pareto(0.5, n_prompt + n_answer) * 20).clip(0, 1999).astype(int).tolist()
    params = SamplingParams(
        temperature,
        repeat_penalty=1.5,
        repeat_last_n=last_n,
        presence_penalty=0.2,
        frequency_penalty=0.1,
    )
    before = ids[:n_prompt], ids[n_prompt:]
    expected, margin = tp1.draw(row.tolist(), params, SEED, 0, *before)
    assume(margin > tp1.CLOSE)
    assert sampler(params, *before).draw(row) == expected


@pytest.mark.parametrize(
    "vector",
    # From the start the largest index takes a while to reach.
    [vector for vector in VECTORS if vector["index"] < 1000],
    ids=lambda vector: vector["name"],
)
def test_vectors(vector: dict[str, Any]) -> None:
    params, seed = write_tp1_vectors.sampling_params(vector), bytes.fromhex(vector["seed"])
    answer = vector.get("answer", [0] * vector["index"])
    assert vector["index"] == len(answer)
    before = vector.get("prompt", []), answer, vector.get("allowed")
    made = sampler(params, *before, seed, vector["choice"])
    row = row_of(vector["logits"])
    assert made.draw(row) == vector["token"]
    assert uniform(seed, vector["choice"], vector["index"]) == vector["u"]
    if "allowed" in vector:
        assert uniform(seed, vector["choice"], vector["index"], True) == vector["u_again"]
    if "top" in vector:
        value, top = logprob(row, vector["token"], vector["n_top"])
        assert value == pytest.approx(vector["logprob"], rel=1e-12)
        assert [list(item) for item in top] == [[i, pytest.approx(p)] for i, p in vector["top"]]


def test_the_vectors_leave_no_step_out() -> None:
    """Each field decides at least one vector: without it another token would be drawn."""
    for name, off in OFF.items():
        assert any(
            write_tp1_vectors.draw(vector | {name: off}).token != vector["token"]
            for vector in VECTORS
            if name in vector
        ), name


def test_no_vector_hangs_on_the_last_bit() -> None:
    for vector in VECTORS:
        margin = write_tp1_vectors.draw(vector).margin
        assert margin > 1e-4 or vector["name"].startswith("exact-")


def test_the_writer_writes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write_tp1_vectors.PATH.read_bytes()
    monkeypatch.setattr(write_tp1_vectors, "PATH", tmp_path / "tp1.json")
    write_tp1_vectors.main()
    assert (tmp_path / "tp1.json").read_bytes() == there


@given(LOGITS, st.sampled_from([0.0, 0.8, 2.0]), st.lists(IDS, max_size=5))
def test_what_does_nothing_changes_nothing(
    logits: list[float], temperature: float, answer: list[int]
) -> None:
    params = SamplingParams(
        temperature, repeat_penalty=1.0, repeat_last_n=0, presence_penalty=0, logit_bias=()
    )
    u = uniform(SEED, 0, len(answer))
    row = row_of(logits)
    assert sampler(params, answer, answer).draw(row) == sample(row, params, u)


ODD_LOGITS = st.lists(
    st.sampled_from(
        [0.0, -0.0, 1.0, -7.5, LARGEST, -LARGEST, 1e38, -1e38, 1e-45, -math.inf, math.inf, math.nan]
    ),
    min_size=1,
    max_size=8,
)
ODD_PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 5e-324, 1e-30, 0.8, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 1 << 20]),
    top_p=st.sampled_from([5e-324, 0.5, 1 - 2**-53, 1.0]),
    min_p=st.sampled_from([0.0, 5e-324, 1.0]),
    typical_p=st.sampled_from([5e-324, 0.5, 1 - 2**-53, 1.0]),
    repeat_penalty=st.sampled_from([5e-324, 1e-30, 1.0, 1.5, 10.0]),
    repeat_last_n=st.sampled_from([0, 1, 1 << 40]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 5e-324, 2.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 5e-324, 2.0]),
    logit_bias=st.sampled_from([(), ((0, 100.0),), ((0, -100.0), (7, 5e-324), (1 << 31, 1.0))]),
)


@given(ODD_LOGITS, ODD_PARAMS, st.data())
@settings(max_examples=300)
def test_odd_numbers_fail_only_as_they_should(
    logits: list[float], params: SamplingParams, data: st.DataObject
) -> None:
    """And neither NaN nor infinity becomes a number by being adjusted."""
    ids = st.integers(0, len(logits) - 1)
    answer = data.draw(st.lists(ids, max_size=4))
    made = sampler(params, answer, answer, data.draw(st.none() | st.frozensets(ids)))
    is_good = any(map(math.isfinite, logits)) and not any(x != x or x == math.inf for x in logits)
    try:
        assert logits[made.draw(row_of(logits))] > -math.inf
        assert is_good
    except BadLogits:
        assert not is_good
    except NothingAllowed:
        assert is_good


@given(st.lists(IDS, max_size=20), st.lists(IDS, max_size=20), PARAMS, LOGITS)
def test_a_resumed_choice_goes_on_as_if_nothing_had_been(
    prompt: list[int], answer: list[int], params: SamplingParams, logits: list[float]
) -> None:
    """Whether tokens were drawn here or by another donor, and whatever was drawn in between."""
    first, second = sampler(params, prompt), sampler(params, prompt)
    for token in answer:
        first.draw(row_of(logits))
        first.accept(token)
        second.accept(token)
    assert first.draw(row_of(logits)) == first.draw(row_of(logits)) == second.draw(row_of(logits))
    assert first.n_accepted == second.n_accepted == len(answer)


def numbers_of_a_grid(monkeypatch: pytest.MonkeyPatch, n: int) -> dict[str, int]:
    """Where on a grid of n the numbers u and u' stand, instead of what the seed says."""
    at = {"u": 0, "again": 0}

    def on_the_grid(seed: bytes, choice: int, index: int, is_again: bool) -> float:
        return (at["again" if is_again else "u"] + 0.5) / n

    monkeypatch.setattr(choice_sampler, "uniform", on_the_grid)
    return at


@pytest.mark.parametrize("allowed", [[0, 1, 2, 3, 4], [0, 2], [4], [1, 3, 4]])
def test_drawing_again_comes_to_the_same_as_masking_first(
    allowed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all pairs of numbers each allowed token comes as often as the masked row says."""
    n = 60
    at = numbers_of_a_grid(monkeypatch, n)
    logits = [1.0, 0.5, 2.0, -1.0, 0.0]
    made, row = sampler(PLAIN, allowed=allowed), row_of(logits)
    drawn = []
    for at["u"] in range(n):
        for at["again"] in range(n):
            drawn.append(made.draw(row))
    assert set(drawn) == set(allowed)
    for i, chance in zip(allowed, tp1.softmax([logits[i] for i in allowed]), strict=True):
        # Each id's place on the line is a grid point too long or too short, once for either number.
        assert abs(drawn.count(i) / n**2 - chance) < 2 / n


def test_the_mask_is_made_only_when_something_forbidden_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = numbers_of_a_grid(monkeypatch, 4)
    matcher = OnlyThese([0, 1])
    made = ChoiceSampler(PLAIN, SEED, 0, NO_PROMPT, matcher)
    row = row_of([0.0] * 4)
    n_masks = []
    for at["u"] in range(4):
        at["again"] = at["u"]
        assert made.draw(row) == [0, 1, 1, 1][at["u"]]
        n_masks.append(matcher.n_masks)
    assert n_masks == [0, 0, 1, 2]


def test_the_grammar_hears_of_every_accepted_token() -> None:
    matcher = OnlyThese([3, 5])
    made = ChoiceSampler(GREEDY, SEED, 0, NO_PROMPT, matcher)
    for token in (5, 3, 5):
        made.accept(token)
    assert matcher.accepted == [5, 3, 5]
    with pytest.raises(ValueError, match="forbidden"):
        made.accept(4)
    assert made.n_accepted == 3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("allowed", [[], [1]])
def test_a_grammar_may_leave_nothing(temperature: float, allowed: list[int]) -> None:
    """No id at all, or only one that the model rules out."""
    made = sampler(SamplingParams(temperature), allowed=allowed)
    with pytest.raises(NothingAllowed):
        made.draw(row_of([1.0, -math.inf, 0.5]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_penalties_hide_no_damage(bad: float) -> None:
    params = SamplingParams(
        0.0, repeat_penalty=2.0, frequency_penalty=1.0, logit_bias=((0, -100.0),)
    )
    with pytest.raises(BadLogits):
        sampler(params, [0], [0]).draw(row_of([bad, 1.0]))


@example(prompt=[1, 2, 3], size=1)
@given(prompt=st.lists(IDS, min_size=1, max_size=20), size=st.integers(1, 8))
def test_the_window_holds_the_last_ids_and_no_more(prompt: list[int], size: int) -> None:
    """With equal logits a greedy draw takes the lowest id that is not in it."""
    params = SamplingParams(0.0, repeat_penalty=2.0, repeat_last_n=size)
    made, row = sampler(params, prompt), row_of([1.0] * (N_IDS + 1))
    context = list(prompt)
    for _ in range(30):
        token = made.draw(row)
        assert token == min(set(range(N_IDS + 1)) - set(context[-size:]))
        made.accept(token)
        context.append(token)
