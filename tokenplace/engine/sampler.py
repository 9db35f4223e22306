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
# Halving takes a dozen rounds. No row can make it take more than these, and then sorting.
_MAX_ROUNDS: Final = 40
# exp of this is 0. It stands for the logarithm of a probability of 0, for 0 * -inf is no number.
_LOG_OF_NOTHING: Final = -1000.0

_FIRST: Final = b"tokenplace/tp/1"
_AGAIN: Final = b"tokenplace/tp/1/again"

_Floats = NDArray[np.floating[Any]]


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
    ids = _top_k(logits, params.top_k)
    ids = _typical(logits, ids, params.typical_p)
    ids = _likely(logits, ids, params.top_p, params.min_p)
    values = _of(logits, ids)
    drawn = _crossing(values, _softmax(values, params.temperature), u, "right")
    return drawn if ids is None else int(ids[drawn])


def logprob(
    logits: NDArray[np.float32], token_id: int, n_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """ln of the softmax over a row of raw logits: of `token_id`, and of the `n_top` likeliest ids.

    These are (id, log-probability), by logit descending, of equals by id ascending; ids with
    probability 0 are left out. Raises `BadLogits`.
    """
    _, peak = _best(logits)
    log_total = math.log(_weights(logits, peak).sum())
    top = _highest(logits, min(n_top, len(logits))) if n_top > 0 else np.empty(0, np.intp)
    return float(logits[token_id]) - peak - log_total, tuple(
        (token, logit - peak - log_total)
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


# A set of candidates is an array of ids, ascending; None stands for all of them.
_Ids = NDArray[np.intp] | None


def _of(logits: NDArray[np.float32], ids: _Ids) -> NDArray[np.float32]:
    return logits if ids is None else logits[ids]


def _pick(ids: _Ids, places: NDArray[np.intp]) -> NDArray[np.intp]:
    """The ids at these places of a set."""
    return places if ids is None else ids[places]


def _top_k(logits: NDArray[np.float32], k: int) -> _Ids:
    return np.sort(_highest(logits, k)) if 0 < k < len(logits) else None


def _typical(logits: NDArray[np.float32], ids: _Ids, typical_p: float) -> _Ids:
    """Step 6. How typical a token is the paper measures by |-ln p - H|. Both terms hold ln of

    softmax's divisor, so what is left is the distance of its logit to the mean logit.
    """
    if typical_p >= 1:
        return ids
    values = _of(logits, ids)
    p = _softmax(values)
    distance = values.astype(np.float64)
    distance -= float(values.max())
    np.maximum(distance, _LOG_OF_NOTHING, out=distance)
    distance -= (p * distance).sum()
    np.abs(distance, out=distance)
    nearness = np.negative(distance, out=distance)
    return _pick(ids, _prefix(nearness, p, typical_p))


def _likely(logits: NDArray[np.float32], ids: _Ids, top_p: float, min_p: float) -> _Ids:
    """Steps 7 and 8. Both keep the highest, so the order does not matter: the cheaper goes first,

    but the probabilities are those of before.
    """
    if top_p >= 1 and min_p <= 0:
        return ids
    values = _of(logits, ids)
    peak = float(values.max())
    total = _weights(values, peak).sum() if top_p < 1 else 1.0
    if min_p > 0:
        # min_p compares ratios: these are the ones in question, with room for rounding.
        likely = np.flatnonzero(values >= peak + math.log(min_p) - 0.01)
        likely = likely[_weights(values[likely], peak) >= min_p]
        ids, values = _pick(ids, likely), values[likely]
    if top_p < 1:
        ids = _pick(ids, _prefix(values, _weights(values, peak) / total, top_p))
    return ids


def _prefix(values: _Floats, p: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """Indices of the shortest prefix, by value descending, whose sum of `p` reaches `share`."""
    last = _crossing(values, p, share, "left")
    kept = np.flatnonzero(values >= values[last])
    return kept[(values[kept] > values[last]) | (kept <= last)]


def _crossing(
    values: _Floats, p: NDArray[np.float64], goal: float, side: Literal["left", "right"]
) -> int:
    """Where the running sum of `p`, by value descending, of equals by index ascending, is >= `goal`

    (left) or > `goal` (right); if rounding lets it end below, the last place that added to it.

    Looks at the highest first; if the sum does not get there within them, it does so in the rest.
    """
    ids: _Ids = None
    for size in _FIRST_LOOKS:
        if size < len(values) // 4:
            high = np.flatnonzero(values >= _lower_bound(values, size))
            if _reaches(float(p[high].sum()), goal, side):
                ids, values, p = high, values[high], p[high]
                break
    done = 0.0
    for _ in range(_MAX_ROUNDS):
        if len(values) <= _SORTED:
            break
        sample = np.sort(values[:: len(values) // _SORTED])
        is_high = values >= sample[len(sample) // 2]
        if is_high.all():  # so many are equal
            is_high = values > sample[0]
        high = np.flatnonzero(is_high)
        total = done + float(p[high].sum())
        if _reaches(total, goal, side):
            part = high
        else:
            part, done = np.flatnonzero(~is_high), total
        ids, values, p = _pick(ids, part), values[part], p[part]
    order = np.argsort(-values, kind="stable")
    sums = np.cumsum(p[order]) + done
    place = min(int(np.searchsorted(sums, goal, side)), int(np.searchsorted(sums, sums[-1])))
    return int(order[place] if ids is None else ids[order[place]])


def _reaches(total: float, goal: float, side: Literal["left", "right"]) -> bool:
    return total > goal or (total == goal and side == "left")


def _softmax(values: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Relative to the highest of the kept, not of all: step 6 may drop the peak, and the rest be so

    far below it that a low temperature would leave nothing.
    """
    p = _weights(values, float(values.max()), temperature)
    p /= p.sum()
    return p


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


def _highest(values: _Floats, n: int) -> NDArray[np.intp]:
    """Indices of the n highest values, by value descending, of equals by index ascending."""
    ids = np.flatnonzero(values >= _lower_bound(values, n)) if n < len(values) else np.arange(n)
    return ids[np.argsort(-values[ids], kind="stable")[:n]]


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
