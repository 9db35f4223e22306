"""Sampler tp/1 from docs/protocol.md, section 7, slow and plainly right; and how close it was."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

from tokenplace.generation import SamplingParams

# Two right implementations may differ in the last bit of a sum, so a comparison this close may go
# either way.
CLOSE = 1e-9

LARGEST: float = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


class Drawn(NamedTuple):
    """The token, None if there is none, and how close the closest comparison was."""

    token: int | None
    margin: float


def number(seed: bytes, choice: int, index: int, tag: bytes = b"") -> float:
    data = b"tokenplace/tp/1" + tag + seed + choice.to_bytes(4, "big") + index.to_bytes(4, "big")
    return (int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 11) / 2**53


def number_again(seed: bytes, choice: int, index: int) -> float:
    return number(seed, choice, index, b"/again")


def float32(value: float) -> float:
    bounded = max(-LARGEST, min(LARGEST, value))
    return float(struct.unpack("<f", struct.pack("<f", bounded))[0])


def adjusted(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """Steps 1 to 3."""
    x = list(logits)
    for i, bias in params.logit_bias:
        if i < len(x) and math.isfinite(x[i]):
            x[i] = float32(x[i] + bias)
    context = [*prompt, *answer]
    if params.repeat_penalty != 1:
        for i in set(context[max(0, len(context) - params.repeat_last_n) :]):
            if x[i] > 0 and math.isfinite(x[i]):
                # Python raises where IEEE 754 overflows.
                is_small = params.repeat_penalty < x[i] / LARGEST
                x[i] = LARGEST if is_small else float32(x[i] / params.repeat_penalty)
            elif math.isfinite(x[i]):
                x[i] = float32(x[i] * params.repeat_penalty)
    for i in set(answer):
        if math.isfinite(x[i]):
            penalty = params.presence_penalty + params.frequency_penalty * answer.count(i)
            x[i] = float32(x[i] - penalty)
    return x


def softmax(values: Sequence[float]) -> list[float]:
    peak = max(values)
    weights = [math.exp(value - peak) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def choose(logits: Sequence[float], params: SamplingParams, u: float) -> Drawn:
    """Steps 4 to 9."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if not math.isfinite(max(logits)) or any(map(math.isnan, logits)):
        return Drawn(None, math.inf)
    if params.temperature == 0:
        return Drawn(order[0], math.inf)
    margin = math.inf
    kept = order[: params.top_k] if params.top_k > 0 else order
    if params.typical_p < 1:
        kept, margin = typical(logits, kept, params.typical_p)
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
    q = softmax([logits[i] / params.temperature for i in kept])
    total = 0.0
    for i, chance in zip(kept, q, strict=True):
        total += chance
        margin = min(margin, abs(total - u))
        if total > u:
            return Drawn(i, margin)
    return Drawn(max(i for i, chance in zip(kept, q, strict=True) if chance > 0), 0.0)


def typical(logits: Sequence[float], kept: list[int], share: float) -> tuple[list[int], float]:
    """Step 6 as the paper has it: by how far a token's surprise is from the expected one."""
    p = dict(zip(kept, softmax([logits[i] for i in kept]), strict=True))
    surprise = {i: -math.log(p[i]) if p[i] > 0 else math.inf for i in kept}
    entropy = math.fsum(p[i] * surprise[i] for i in kept if p[i] > 0)
    nearest = sorted(kept, key=lambda i: (abs(surprise[i] - entropy), i))
    margin, total, n_kept = math.inf, 0.0, 0
    while n_kept < len(nearest) and total < share:
        total += p[nearest[n_kept]]
        n_kept += 1
        margin = min(margin, abs(total - share))
    # Two logits equally far from the mean, one above and one below it.
    for i, k in pairwise(nearest[: n_kept + 1]):
        if logits[i] != logits[k] and p[k] > 0:
            margin = min(margin, abs(surprise[k] - entropy) - abs(surprise[i] - entropy))
    near = set(nearest[:n_kept])
    return [i for i in kept if i in near], margin


def draw(
    logits: Sequence[float],
    params: SamplingParams,
    seed: bytes,
    choice: int,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    allowed: Collection[int] | None = None,
) -> Drawn:
    """The token after `answer`, which is None if a grammar that allows these ids forbids all."""
    row = adjusted(logits, params, prompt, answer)
    first = choose(row, params, number(seed, choice, len(answer)))
    if allowed is None or first.token is None or first.token in allowed:
        return first
    row = [x if i in allowed else -math.inf for i, x in enumerate(row)]
    again = choose(row, params, number_again(seed, choice, len(answer)))
    return Drawn(again.token, min(first.margin, again.margin))


def log_probability(logits: Sequence[float], token: int) -> float:
    peak = max(logits)
    log_total = math.log(math.fsum(math.exp(x - peak) for x in logits))
    value = logits[token] - peak - log_total
    return max(value, -LARGEST) if logits[token] > -math.inf else value
