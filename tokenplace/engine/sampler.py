"""Sampler tp/1 (docs/protocol.md, section 7): a row of logits and a number u in, a token id out.

Start at `sample`. Pure, and without state: u comes from the seed and the token's index, so an
answer can be continued or audited by anybody. What needs the tokens before (penalties, grammars)
is done to the row by `choice_sampler`. Differs from llama.cpp's chain: computed in float64, ties go
to the lowest id, and a vocabulary is never sorted (49,152 logits would take 4 ms, 262,144 30): what
a step keeps is a set, and where its cut goes is found by halving, see `_crossing`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tokenplace.generation import SamplingParams

# Values looked at together for their maximum. 64 leaves 768 maxima of SmolLM2's vocabulary: enough
# to bound a top_k of 40.
_BLOCK: Final = 64
# Where a running sum ends up is looked for among so many highest values first: peaked distributions
# end there. So many are sorted at once; a sample as large halves what is more.
_FIRST_LOOKS: Final = (128, 4096)
_SORTED: Final = 512
# exp of this is 0. It stands for the logarithm of a probability of 0, for 0 * -inf is no number.
_LOG_OF_NOTHING: Final = -1000.0
_LOWEST_LOGPROB: Final = float(np.finfo(np.float32).min)  # protocol.md, section 5: is sent as such

_FIRST: Final = b"tokenplace/tp/1"
_AGAIN: Final = b"tokenplace/tp/1/again"

_Floats = NDArray[np.floating[Any]]
# A set of candidates: their ids, ascending; None stands for all.
_Ids = NDArray[np.intp] | None
# Whether a running sum is there when it has reached the goal (>=), or only above it (>).
_Side = Literal["left", "right"]


class BadLogits(Exception):
    """The model produced no finite maximum:

    NaN or infinity. Its weights are damaged, or the backend is.
    """


def uniform(seed: bytes, choice: int, index: int, is_again: bool = False) -> float:
    """u in [0, 1) for token `index` of `choice`: 53 bits of sha256, as a float64 holds.

    `is_again`: another one, which has nothing to do with the first, for what is drawn in place of a
    token that a grammar forbids.
    """
    data = (_AGAIN if is_again else _FIRST) + seed + struct.pack(">II", choice, index)
    digest = hashlib.sha256(data).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def sample(logits: NDArray[np.float32], params: SamplingParams, u: float) -> int:
    """The token id that steps 4 to 9 of tp/1 draw from one row of logits. Raises `BadLogits`."""
    best, _ = _best(logits)
    if params.temperature == 0:
        return best
    k = params.top_k if 0 < params.top_k < len(logits) else len(logits)
    if k <= _SORTED:
        return _draw_from_few(logits, _highest(logits, k), params, u)
    ids = np.sort(_highest(logits, k)) if k < len(logits) else None
    if params.typical_p < 1:
        ids = _typical(logits, ids, params.typical_p)
    if params.top_p < 1 or params.min_p > 0:
        ids = _likely(logits, ids, params.top_p, params.min_p)
    values = _of(logits, ids)
    weights = _weights(values, float(values.max()), params.temperature)
    drawn = _crossing(values, weights, u * float(weights.sum()), "right")
    return drawn if ids is None else int(ids[drawn])


def logprob(
    logits: NDArray[np.float32], token_id: int, n_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """ln of the softmax over a row of raw logits: of `token_id`, and of the `n_top` likeliest ids.

    These are (id, log-probability), by logit descending, of equals by id ascending, without ids
    whose logit is -inf. No value is above 0 or below the lowest float32, but that of a token whose
    logit is -inf, which is never drawn. Raises `BadLogits`.
    """
    _, peak = _best(logits)
    log_total = math.log(_weights(logits, peak).sum())  # of at least 1

    def value(logit: float) -> float:
        return max(logit - peak - log_total, _LOWEST_LOGPROB) if logit > -math.inf else logit

    top = _highest(logits, min(n_top, len(logits))) if n_top > 0 else np.empty(0, np.intp)
    return value(float(logits[token_id])), tuple(
        (token, value(logit))
        for token, logit in zip(top.tolist(), logits[top].tolist(), strict=True)
        if logit > -math.inf
    )


def _best(logits: NDArray[np.float32]) -> tuple[int, float]:
    """The id of the highest logit, of equals the lowest id, and that logit."""
    best = int(logits.argmax())  # a NaN wins over every number
    peak = float(logits[best])
    if not math.isfinite(peak):
        raise BadLogits
    return best, peak


def _of(logits: NDArray[np.float32], ids: _Ids) -> NDArray[np.float32]:
    return logits if ids is None else logits[ids]


def _pick(ids: _Ids, places: NDArray[np.intp]) -> NDArray[np.intp]:
    """The ids at these places of a set."""
    return places if ids is None else ids[places]


def _draw_from_few(
    logits: NDArray[np.float32], ids: NDArray[np.intp], params: SamplingParams, u: float
) -> int:
    """Steps 6 to 9 for candidates that are sorted: what a step keeps is a prefix."""
    if params.typical_p < 1:
        ids = _sorted(logits, _typical(logits, np.sort(ids), params.typical_p))
    # Relative to the highest of the kept, not of all: step 6 may drop the peak, and the rest be so
    # far below it that a low temperature would leave nothing.
    values = logits[ids]
    peak = float(values[0])
    p = _weights(values, peak)
    p /= p.sum()
    if params.top_p < 1:
        p = p[: int(np.searchsorted(np.cumsum(p), params.top_p)) + 1]
    if params.min_p > 0:
        p = p[p >= params.min_p * p[0]]
    sums = np.cumsum(_weights(values[: len(p)], peak, params.temperature))
    return int(ids[_place(sums / sums[-1], u, "right")])


def _typical(logits: NDArray[np.float32], ids: _Ids, typical_p: float) -> NDArray[np.intp]:
    """Step 6, among the ids of a set. How typical a token is the paper measures by |-ln p - H|.

    Both terms hold ln of softmax's divisor, so what is left is the distance of its logit to the
    mean logit.
    """
    values = _of(logits, ids)
    peak = float(values.max())
    weights = _weights(values, peak)
    total = float(weights.sum())
    distance = values.astype(np.float64)
    distance -= peak
    np.maximum(distance, _LOG_OF_NOTHING, out=distance)
    distance -= float((weights * distance).sum()) / total
    np.abs(distance, out=distance)
    nearness = np.negative(distance, out=distance)
    return _pick(ids, _prefix(nearness, weights, typical_p * total))


def _likely(logits: NDArray[np.float32], ids: _Ids, top_p: float, min_p: float) -> NDArray[np.intp]:
    """Steps 7 and 8, among the ids of a set.

    Both keep the highest, so either may go first if the probabilities are those of before both.
    """
    values = _of(logits, ids)
    peak = float(values.max())
    if top_p >= 1:
        # Ratios need no sum: these are the ids in question, with room for rounding.
        likely = np.flatnonzero(values >= peak + math.log(min_p) - 0.01)
        return _pick(ids, likely[_weights(values[likely], peak) >= min_p])
    weights = _weights(values, peak)
    goal = top_p * float(weights.sum())
    if min_p > 0:
        likely = np.flatnonzero(weights >= min_p)
        ids, values, weights = _pick(ids, likely), values[likely], weights[likely]
    return _pick(ids, _prefix(values, weights, goal))


def _prefix(values: _Floats, weights: NDArray[np.float64], goal: float) -> NDArray[np.intp]:
    """Indices of the shortest prefix, by value descending, whose weights reach `goal` together."""
    last = _crossing(values, weights, goal, "left")
    is_kept = values > values[last]
    is_kept[: last + 1] |= values[: last + 1] == values[last]
    return np.flatnonzero(is_kept)


def _crossing(values: _Floats, weights: NDArray[np.float64], goal: float, side: _Side) -> int:
    """Index where the running sum of `weights`, in order of candidates, gets to `goal`.

    The order is by value descending, of equals by index ascending. The part of the row in which the
    sum gets there is halved until it is worth sorting: all in all the work of a few passes.
    """
    ids: _Ids = None
    for size in _FIRST_LOOKS:
        if size < len(values) // 4:
            high = np.flatnonzero(values >= _lower_bound(values, size))
            if _is_there(float(weights[high].sum()), goal, side):
                ids, values, weights = high, values[high], weights[high]
                break
    before = 0.0
    while len(values) > _SORTED:
        some = np.sort(values[:: len(values) // _SORTED])
        is_high = values >= some[len(some) // 2]
        if is_high.all():  # half of them are equal, and none is lower
            is_high = values > some[0]
            if not is_high.any():
                break  # all are
        part, rest = np.flatnonzero(is_high), np.flatnonzero(~is_high)
        total = before + float(weights[part].sum())
        # Where the rest adds nothing, rounding alone keeps the sum from getting there.
        if not _is_there(total, goal, side) and total + float(weights[rest].sum()) > total:
            part, before = rest, total
        ids, values, weights = _pick(ids, part), values[part], weights[part]
    order = np.argsort(-values, kind="stable")
    place = order[_place(np.cumsum(weights[order]) + before, goal, side)]
    return int(place if ids is None else ids[place])


def _place(sums: NDArray[np.float64], goal: float, side: _Side) -> int:
    """Index of the first running sum that is there, else of the last that added anything.

    Sums are rounded, so the last may fall short; what adds nothing may be forbidden (-inf).
    """
    return min(int(np.searchsorted(sums, goal, side)), int(np.searchsorted(sums, sums[-1])))


def _is_there(total: float, goal: float, side: _Side) -> bool:
    return total > goal or (total == goal and side == "left")


def _weights(
    logits: NDArray[np.float32], peak: float, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Softmax before its division: exp of the distance to the highest logit, in float64.

    In place: a second array of 262,144 would cost more than exp does, in page faults.
    """
    distance = logits.astype(np.float64)
    distance -= peak
    if temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature: minus infinity is what is meant
            distance /= temperature
    return np.exp(distance, out=distance)


def _highest(values: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Indices of the n highest values, by value descending, of equals by index ascending."""
    ids = np.flatnonzero(values >= _lower_bound(values, n)) if n < len(values) else np.arange(n)
    return _sorted(values, ids)[:n]


def _sorted(values: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """Ids of a set by value descending, of equals by id ascending."""
    return ids[np.argsort(-values[ids], kind="stable")]


def _lower_bound(values: _Floats, n: int) -> np.floating[Any]:
    """A value that at least n of `values` reach, close to the n-th highest.

    The n-th highest of blocks' maxima is one: n different blocks hold a value that high. Eight
    times faster than partitioning the row, for a handful of candidates too many.
    """
    block = min(_BLOCK, len(values) // (2 * n))
    bounds = values
    if block > 1:
        n_blocks = len(values) // block
        bounds = values[: n_blocks * block].reshape(block, n_blocks).max(axis=0)
    bound: np.floating[Any] = np.partition(bounds, len(bounds) - n)[len(bounds) - n]
    return bound
