"""How likely a model finds tokens that are given to it, for audits. Start at `score_rows`.

Pure: rows of logits in, scores out. Nothing is drawn here; what tp/1 would have drawn in a place is
`sampler.py`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenplace.engine.sampler import BadLogits
from tokenplace.operations import TokenScore


def score_rows(logits: NDArray[np.float32], ids: Sequence[int]) -> list[TokenScore]:
    """The score of `ids[i]` in row i, the logits after the token before it. The ids must exist.

    Raises `BadLogits`.
    """
    assert len(logits) == len(ids), "a row of logits for each id"
    # Row by row: float64 copies of all rows at once would take three times the memory of the rows.
    return [_score(row, token_id) for row, token_id in zip(logits, ids, strict=True)]


def _score(row: NDArray[np.float32], token_id: int) -> TokenScore:
    logit = row[token_id]
    peak = float(row.max())  # a NaN wins over every number
    if not math.isfinite(peak):
        raise BadLogits
    weights = np.exp(row.astype(np.float64) - peak)
    total = float(weights.sum())
    is_before = row > logit
    is_before[:token_id] |= row[:token_id] == logit
    gap = peak - float(logit)
    return TokenScore(
        logprob=-gap - math.log(total),
        gap=gap,
        rank=int(np.count_nonzero(is_before)),
        mass=float(weights[is_before].sum()) / total,
    )
