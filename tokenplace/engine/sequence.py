"""One request inside the worker: its token ids, and how far it is. Start at `admit`.

Pure. Knows tokens, not sockets; the vocabulary is handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.messages import Refused, Submit
from tokenplace.errors import ErrorCode
from tokenplace.generation import SamplingParams


class Vocabulary(Protocol):
    """What must be known of a model's vocabulary.

    `first_id` is the BOS token that prompts begin with, if they do.
    """

    first_id: int | None
    eog_ids: frozenset[int]

    def tokenise(self, text: str, parse_special: bool) -> list[int]: ...
    def piece(self, token_id: int) -> bytes: ...


class StopMatcher:
    """Finds stop strings in bytes that come piece by piece.

    The requester makes the cut; here it only ends the work.
    """

    def __init__(self, stops: Iterable[bytes]) -> None:
        self._stops = tuple(stops)
        self._n_kept = max(map(len, self._stops), default=1) - 1
        self._tail = b""

    def push(self, piece: bytes) -> bytes | None:
        """The stop string that begins first in what was pushed so far, if one is complete."""
        window = self._tail + piece
        self._tail = window[max(0, len(window) - self._n_kept) :]
        found = [(at, stop) for stop in self._stops if (at := window.find(stop)) >= 0]
        return min(found)[1] if found else None


@dataclass(eq=False)
class Sequence:
    """A prompt that fits, and the tokens generated for it. Times are of one monotonic clock.

    n_past: tokens in the KV cache, of the prompt and then of `generated`. n_cached: those it found
    there.
    """

    request: int
    prompt: NDArray[np.int32]
    sampling: SamplingParams
    seed: bytes
    cache_scope: bytes
    max_new: int
    ignore_eog: bool
    stops: StopMatcher
    submitted_at: float
    n_cached: int = 0
    n_past: int = 0
    generated: list[int] = field(default_factory=list)
    started_at: float | None = None
    first_token_at: float | None = None

    @property
    def is_prefilling(self) -> bool:
        """Is there prompt left to compute?"""
        return self.n_past < len(self.prompt)

    @property
    def digest(self) -> bytes:
        """sha256 of the prompt's ids as little-endian u32 (docs/protocol.md, section 5)."""
        return hashlib.sha256(self.prompt.astype("<u4").tobytes()).digest()

    def ids_in_cache(self) -> NDArray[np.int32]:
        """The ids whose keys and values have been computed."""
        return np.concatenate([self.prompt, np.array(self.generated, np.int32)])[: self.n_past]


def n_common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def admit(submit: Submit, vocabulary: Vocabulary, n_ctx: int, now: float) -> Sequence | Refused:
    """Tokenise the prompt and see whether it fits, before any decoding."""
    n_bytes = sum(len(text.encode()) for text, _ in submit.segments)
    if n_bytes > n_ctx * defaults.MAX_PROMPT_BYTES_PER_TOKEN:
        return _too_long(submit, n_bytes // defaults.MAX_PROMPT_BYTES_PER_TOKEN, n_ctx)
    ids = [
        token_id
        for text, parse_special in submit.segments
        for token_id in vocabulary.tokenise(text, parse_special)
    ]
    # Some templates write the BOS token themselves; twice it would harm the answer.
    if vocabulary.first_id is not None and ids[:1] != [vocabulary.first_id]:
        ids.insert(0, vocabulary.first_id)
    if not ids:
        return Refused(submit.request, ErrorCode.INVALID_REQUEST, "the prompt is empty")
    if len(ids) >= n_ctx:
        return _too_long(submit, len(ids), n_ctx)
    room = n_ctx - len(ids)
    return Sequence(
        request=submit.request,
        prompt=np.array(ids, np.int32),
        sampling=SamplingParams(submit.temperature, submit.top_k, submit.top_p, submit.min_p),
        seed=submit.seed,
        cache_scope=submit.cache_scope,
        max_new=min(room, submit.max_tokens or defaults.MAX_NEW_TOKENS),
        ignore_eog=submit.ignore_eog,
        stops=StopMatcher(submit.stop),
        submitted_at=now,
    )


def _too_long(submit: Submit, n_prompt: int, n_ctx: int) -> Refused:
    """`n_prompt` is exact, or at least so many when the prompt was too large to be tokenised at
    all.
    """
    numbers = (("n_prompt", n_prompt), ("n_ctx", n_ctx))
    detail = f"The prompt has {n_prompt} tokens, the context holds {n_ctx} with the answer."
    return Refused(submit.request, ErrorCode.CONTEXT_LENGTH_EXCEEDED, detail, numbers)
