"""Sampler tp/1 (docs/protocol.md, section 7): a row of logits and a number u in, a token id out.

Start at `sample`. Pure, and without state: u comes from the seed and the token's index, so an
answer can be continued or audited by anybody. Differs from llama.cpp's chain: computed in float64,
ties go to the lowest id, and the vocabulary is never sorted as a whole unless the parameters keep
nearly all of it (sorting 49,152 logits takes 4 ms, a step 10 ms).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenplace.generation import SamplingParams

# Logits looked at together for their maximum. 64 leaves 768 maxima of SmolLM2's vocabulary: enough
# to bound a top_k of 40.
_BLOCK: Final = 64
# Without top_k so many candidates are tried first: peaked distributions need no more. The last
# resort is all of them.
_PREFIXES: Final = (128, 4096)


class BadLogits(Exception):
    """The model produced no finite maximum:

    NaN or infinity. Its weights are damaged, or the backend is.
    """


def uniform(seed: bytes, choice: int, index: int) -> float:
    """u in [0, 1) for token `index` of `choice`: 53 bits of sha256, as a float64 holds."""
    digest = hashlib.sha256(b"tokenplace/tp/1" + seed + struct.pack(">II", choice, index)).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def sample(logits: NDArray[np.float32], params: SamplingParams, u: float) -> int:
    """The token id that tp/1 draws from one row of logits. Raises `BadLogits`."""
    best = int(logits.argmax())  # of equals the first; a NaN wins over every number
    peak = float(logits[best])
    if not math.isfinite(peak):
        raise BadLogits
    if params.temperature == 0:
        return best
    limit = min(params.top_k, len(logits)) if params.top_k > 0 else len(logits)
    if limit == len(logits) and params.top_p >= 1 and params.min_p <= 0:
        return _draw_from_all(logits, peak, params.temperature, u)
    kept = _kept(logits, peak, params, limit)
    cumulative = np.cumsum(_weights(logits[kept], peak, params.temperature))
    return int(kept[_first_above(cumulative / cumulative[-1], u)])


def _kept(
    logits: NDArray[np.float32], peak: float, params: SamplingParams, limit: int
) -> NDArray[np.intp]:
    """Steps 2 to 5: the ids that may be drawn, in order. `limit` is what top_k leaves."""
    if limit < len(logits):
        ids = _highest(logits, limit)
        p = _weights(logits[ids], peak)
        return ids[: _n_kept(p / p.sum(), params.top_p, params.min_p)]
    # min_p compares ratios, so without top_p nothing needs to be normalised.
    total = _weights(logits, peak).sum() if params.top_p < 1 else 1.0
    for size in _prefix_sizes(limit):
        ids = _highest(logits, size)
        n_kept = _n_kept(_weights(logits[ids], peak) / total, params.top_p, params.min_p)
        if n_kept < size:
            break
    return ids[:n_kept]


def _prefix_sizes(n: int) -> Iterator[int]:
    """How many candidates to look at, growing until what is looked for lies within them."""
    yield from (size for size in _PREFIXES if size < n)
    yield n


def _n_kept(p: NDArray[np.float64], top_p: float, min_p: float) -> int:
    """How many of the sorted probabilities top_p and min_p keep.

    Both keep a prefix, so the shorter one counts.
    """
    n_kept = len(p)
    if top_p < 1:
        n_kept = min(n_kept, int(np.searchsorted(np.cumsum(p), top_p)) + 1)
    if min_p > 0:
        n_kept = min(n_kept, int(np.count_nonzero(p >= min_p * p[0])))
    return n_kept


def _draw_from_all(logits: NDArray[np.float32], peak: float, temperature: float, u: float) -> int:
    """Step 6 when nothing is cut off: sort only as far as u reaches."""
    total = float(_weights(logits, peak, temperature).sum())
    for size in _prefix_sizes(len(logits)):
        ids = _highest(logits, size)
        cumulative = np.cumsum(_weights(logits[ids], peak, temperature)) / total
        if cumulative[-1] > u:
            break
    return int(ids[_first_above(cumulative, u)])


def _weights(
    logits: NDArray[np.float32], peak: float, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Softmax before its division: exp of the distance to the highest logit, in float64."""
    distance = logits.astype(np.float64) - peak
    if temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature: minus infinity is what is meant
            distance /= temperature
    return np.exp(distance)


def _first_above(cumulative: NDArray[np.float64], threshold: float) -> int:
    """Index of the first running sum that is > threshold, else the last."""
    return min(int(np.searchsorted(cumulative, threshold, side="right")), len(cumulative) - 1)


def _highest(logits: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Ids of the n highest logits, by logit descending, of equals by id ascending."""
    ids = np.flatnonzero(logits >= _lower_bound(logits, n)) if n < len(logits) else np.arange(n)
    return ids[np.argsort(-logits[ids], kind="stable")[:n]]


def _lower_bound(logits: NDArray[np.float32], n: int) -> np.float32:
    """A value that at least n logits reach, close to the n-th highest.

    The n-th highest of the blocks' maxima is one: n different blocks hold a logit that high. Eight
    times faster than partitioning the row, for a handful of candidates too many.
    """
    n_blocks = len(logits) // _BLOCK
    if n > n_blocks // 2:
        return np.float32(np.partition(logits, len(logits) - n)[len(logits) - n])
    maxima = logits[: n_blocks * _BLOCK].reshape(_BLOCK, n_blocks).max(axis=0)
    return np.float32(np.partition(maxima, n_blocks - n)[n_blocks - n])
