"""What the tests of grammars share: vocabularies, and walks through a grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenplace.engine.checker import byte_tokenizer
from tokenplace.engine.grammar import GrammarFailed, LlamaMatcher

N_BYTES = 256


def accepts(
    grammar: str, answer: str, control_texts: Sequence[str] = (), *, is_spelled: bool = False
) -> bool:
    """May this be a whole answer? Control texts in it are the tokens, unless `is_spelled`."""
    matcher = byte_tokenizer(control_texts).matcher(grammar)
    eog_id = N_BYTES + len(control_texts)
    try:
        for token_id in answer.encode() if is_spelled else _ids(answer, control_texts):
            matcher.accept(token_id)
    except GrammarFailed:
        return False
    return matcher.allows(eog_id)


def walk(matcher: LlamaMatcher, answer: bytes) -> None:
    """Take an answer byte for byte, as one that is being drawn. Raises `GrammarFailed`."""
    for token_id in answer:
        allowed_ids(matcher, N_BYTES + 1)
        matcher.accept(token_id)


def _ids(answer: str, control_texts: Sequence[str]) -> list[int]:
    pattern = "|".join(map(re.escape, control_texts)) or "(?!)"
    ids: list[int] = []
    for part in re.split(f"({pattern})", answer):
        if part in control_texts:
            ids.append(N_BYTES + list(control_texts).index(part))
        else:
            ids += part.encode()
    return ids


def allowed_ids(matcher: LlamaMatcher, n_tokens: int) -> NDArray[np.intp]:
    """Every id that the mask leaves."""
    row = np.zeros(n_tokens, np.float32)
    matcher.mask(row)
    return np.flatnonzero(np.isfinite(row))
