"""One answer in the making inside the worker: its token ids, and how far it is. Start at
`Sequence`.

Pure. Knows tokens, not sockets; nothing here draws or computes. A request of `n` choices is `n`
sequences that begin alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.choice_sampler import Matcher
from tokenplace.engine.guard import Segment
from tokenplace.engine.messages import Count, Refused, Score, Submit
from tokenplace.errors import ErrorCode

Ids = NDArray[np.int32]


class Vocabulary(Protocol):
    """What must be known of a model's vocabulary.

    `first_id` is the BOS token that prompts begin with, if they do.
    """

    n_tokens: int
    first_id: int | None
    eog_ids: frozenset[int]

    def tokenise(self, text: str, parse_special: bool) -> list[int]: ...
    def piece(self, token_id: int) -> bytes: ...
    def matcher(self, grammar: str) -> Matcher: ...


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
    """Token ids that are to be computed in one slot, one after the other.

    n_prompt: how many of them are the prompt's. n_past: how many are in the KV cache. max_new: ids
    that the answer may have. n_expected: ids of the answer for which room is reserved at the start.
    first_row: place of the first id whose logits are wanted; None: only those of the last one.
    n_cached: prompt tokens found in the KV cache when it first started; None before that.
    slot: its seat while it runs. order: of starting, so the highest is the youngest. arrival: of
    submitting. n_met: how many had arrived when it had its first token; None before that.
    """

    request: int
    choice: int
    bucket: str
    scope: bytes
    n_prompt: int
    max_new: int
    n_expected: int
    buffer: Ids = field(repr=False)
    n_ids: int
    first_row: int | None = None
    n_past: int = 0
    n_cached: int | None = None
    slot: int | None = None
    order: int = -1
    arrival: int = -1
    n_met: int | None = None

    @classmethod
    def begin(
        cls,
        request: int,
        prompt: Ids,
        *,
        choice: int = 0,
        bucket: str = "",
        scope: bytes = b"",
        max_new: int = 0,
        n_expected: int | None = None,
        answer: Iterable[int] = (),
    ) -> Sequence:
        """A sequence that has yet to start. `answer`: what another donor delivered of it."""
        resumed = np.fromiter(answer, np.int32)
        n_ids = len(prompt) + len(resumed)
        buffer = np.empty(max(len(prompt) + max_new, n_ids), np.int32)
        buffer[: len(prompt)] = prompt
        buffer[len(prompt) : n_ids] = resumed
        n_expected = max_new if n_expected is None else min(n_expected, max_new)
        return cls(request, choice, bucket, scope, len(prompt), max_new, n_expected, buffer, n_ids)

    @property
    def ids(self) -> Ids:
        """All ids known so far, of the prompt and then of the answer. A view."""
        return self.buffer[: self.n_ids]

    @property
    def cached_ids(self) -> Ids:
        """The ids whose keys and values have been computed. A view."""
        return self.buffer[: self.n_past]

    @property
    def n_missing(self) -> int:
        """Ids to compute until the next one can be drawn: 1 while it decodes."""
        return self.n_ids - self.n_past

    @property
    def n_new(self) -> int:
        """Ids of the answer so far, resumed ones included."""
        return self.n_ids - self.n_prompt

    @property
    def is_requeued(self) -> bool:
        """Had it a slot, and lost it?"""
        return self.slot is None and self.n_cached is not None

    @property
    def is_stream(self) -> bool:
        """Does its answer go on with the next step?"""
        return self.n_missing == 1 and self.n_new > 0 and self.first_row is None

    @property
    def n_reusable(self) -> int:
        """Ids that need not be computed again: their logits are not wanted."""
        return self.n_ids - 1 if self.first_row is None else self.first_row

    @property
    def is_whole(self) -> bool:
        """Has it as many ids as it may?"""
        return self.n_new >= self.max_new

    @property
    def n_wanted(self) -> int:
        """Cells of the KV cache to reserve when it starts, now that it has come so far."""
        return self.n_ids + min(self.n_expected, self.max_new - self.n_new)

    def append(self, token_id: int) -> None:
        """One more id of the answer."""
        assert not self.is_whole, "an answer grew beyond its end"
        self.buffer[self.n_ids] = token_id
        self.n_ids += 1


def n_common(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def prompt_digest(prompt: Ids) -> bytes:
    """sha256 of the prompt's ids as little-endian u32 (docs/protocol.md, section 5)."""
    return hashlib.sha256(prompt.astype("<u4").tobytes()).digest()


class BadPrompt(Exception):
    """This prompt cannot be computed; `refusal` says why to whom it belongs."""

    def __init__(self, code: ErrorCode, detail: str, **numbers: int) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.numbers = tuple(numbers.items())

    def refusal(self, request: int) -> Refused:
        """As the message that ends the request."""
        return Refused(request, self.code, self.detail, self.numbers)


def prompt_ids(asked: Submit | Count | Score, vocabulary: Vocabulary, n_ctx: int) -> Ids:
    """The prompt's ids, before any decoding: those that were given, or its text's. Raises
    `BadPrompt`.
    """
    if not asked.prompt_ids:
        return tokenise_prompt(asked.segments, vocabulary, n_ctx)
    if len(asked.prompt_ids) >= n_ctx:
        raise _too_long(len(asked.prompt_ids), n_ctx)
    return given_ids(asked.prompt_ids, vocabulary.n_tokens, "prompt_ids")


def given_ids(ids: tuple[int, ...], n_tokens: int, what: str) -> Ids:
    """Ids that an app gave, in a vocabulary of so many tokens. what: their name in the error's
    text. Raises `BadPrompt`.
    """
    if not are_known(ids, n_tokens):
        raise BadPrompt(
            ErrorCode.INVALID_REQUEST,
            f"{what}: it names a token that does not exist; there are {n_tokens}.",
        )
    return np.array(ids, np.int32)


def are_known(ids: Iterable[int], n_tokens: int) -> bool:
    """Does a vocabulary of so many tokens have all of these?"""
    return all(0 <= token_id < n_tokens for token_id in ids)


def tokenise_prompt(segments: Iterable[Segment], vocabulary: Vocabulary, n_ctx: int) -> Ids:
    """The ids of a prompt's text. Raises `BadPrompt`."""
    segments = tuple(segments)
    n_bytes = sum(len(text.encode()) for text, _ in segments)
    if n_bytes > n_ctx * defaults.MAX_PROMPT_BYTES_PER_TOKEN:
        raise _too_long(n_bytes // defaults.MAX_PROMPT_BYTES_PER_TOKEN, n_ctx)
    ids = [
        token_id
        for text, parse_special in segments
        for token_id in vocabulary.tokenise(text, parse_special)
    ]
    # Some templates write the BOS token themselves; twice it would harm the answer.
    if vocabulary.first_id is not None and ids[:1] != [vocabulary.first_id]:
        ids.insert(0, vocabulary.first_id)
    if not ids:
        raise BadPrompt(ErrorCode.INVALID_REQUEST, "The prompt is empty.")
    if len(ids) >= n_ctx:
        raise _too_long(len(ids), n_ctx)
    return np.array(ids, np.int32)


def _too_long(n_prompt: int, n_ctx: int) -> BadPrompt:
    """`n_prompt` is exact, or at least so many when the prompt was too large to be tokenised at
    all.
    """
    detail = f"The prompt has {n_prompt} tokens, the context holds {n_ctx} with the answer."
    return BadPrompt(ErrorCode.CONTEXT_LENGTH_EXCEEDED, detail, n_prompt=n_prompt, n_ctx=n_ctx)
