"""Who computes next. Start at `Scheduler.step`: one chunk of a prompt, or one token of an answer.

One sequence at a time, first come, first served; a step is short, so that a newcomer is answered
and a cancelled sequence gone within it. Knows tokens and a backend that computes logits; no
sockets, no llama.cpp.

KV prefixes are reused only within one cache scope: by its speed a prompt would tell a stranger what
others asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.messages import (
    Done,
    FromWorker,
    NewTokens,
    Progress,
    Queued,
    Refused,
)
from tokenplace.engine.sampler import BadLogits, sample, uniform
from tokenplace.engine.sequence import Sequence, Vocabulary, n_common
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase


class DecodeFailed(Exception):
    """The backend could not compute these tokens. What it has in its KV cache is unknown."""


class Backend(Protocol):
    """What computes: one KV cache with one sequence in it."""

    n_ctx: int

    def decode(self, ids: AbstractSequence[int] | NDArray[np.int32], position: int) -> None:
        """Compute these tokens, the first at `position`; at most `defaults.MAX_PREFILL_CHUNK`.

        Raises `DecodeFailed`.
        """

    def logits(self) -> NDArray[np.float32]:
        """The row after the last decoded token; valid until the next `decode`."""

    def keep(self, n: int) -> int:
        """Forget all but the first `n` tokens. Returns how many are left: `n`, or none."""


class Speed:
    """Tokens a second over the last few measurements; the larger ones weigh more."""

    _DECAY = 0.8  # five measurements back counts a third

    def __init__(self) -> None:
        self._n_tokens = 0.0
        self._seconds = 0.0

    def note(self, n_tokens: int, seconds: float) -> None:
        """Count a measurement in."""
        self._n_tokens = self._n_tokens * self._DECAY + n_tokens
        self._seconds = self._seconds * self._DECAY + seconds

    @property
    def tps(self) -> float:
        """Tokens a second; 0 before the first measurement."""
        return self._n_tokens / self._seconds if self._seconds > 0 else 0.0

    def seconds_for(self, n_tokens: int) -> float:
        """How long so many would take; 0 while unknown."""
        return n_tokens * self._seconds / self._n_tokens if self._n_tokens > 0 else 0.0


class Scheduler:
    """The running sequence, those that wait, and what the KV cache holds."""

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, clock: Callable[[], float]
    ) -> None:
        self._backend = backend
        self._vocabulary = vocabulary
        self._clock = clock
        self._running: Sequence | None = None
        self._waiting: deque[Sequence] = deque()
        self._cached_ids = np.empty(0, np.int32)
        self._cached_scope = b""
        self.prefill = Speed()
        self.decode = Speed()

    @property
    def is_idle(self) -> bool:
        """Is there nothing to compute?"""
        return self._running is None and not self._waiting

    def submit(self, sequence: Sequence) -> Queued:
        """Put it at the end of the queue."""
        ahead = [*([self._running] if self._running else []), *self._waiting]
        # The last one ahead decides what the cache will hold; usage says later what really was
        # found.
        cached, scope = self._cached_ids, self._cached_scope
        if ahead:
            cached, scope = ahead[-1].prompt, ahead[-1].cache_scope
        n_cached = n_reusable(sequence, cached, scope)
        eta_s = sum(map(self._seconds_left, ahead))
        eta_s += self.prefill.seconds_for(len(sequence.prompt) - n_cached)
        self._waiting.append(sequence)
        return Queued(
            sequence.request,
            sequence.digest,
            len(sequence.prompt),
            n_cached,
            self._backend.n_ctx,
            sequence.max_new,
            round(eta_s * 1000),
            len(ahead),
        )

    def cancel(self, request: int) -> list[FromWorker]:
        """Forget a request, running or waiting; one that has ended already is no fault."""
        if self._running is not None and self._running.request == request:
            self._leave(self._running)
            return []
        left = [sequence for sequence in self._waiting if sequence.request != request]
        if len(left) == len(self._waiting):
            return []
        self._waiting = deque(left)
        return self._positions()

    def step(self) -> list[FromWorker]:
        """Compute a little, and say what came of it. Does nothing when idle."""
        if self._running is None:
            return self._start(self._waiting.popleft()) if self._waiting else []
        sequence = self._running
        try:
            if sequence.is_prefilling:
                return self._prefill(sequence)
            self._backend.decode(sequence.generated[-1:], sequence.n_past)
            sequence.n_past += 1
            return self._emit(sequence)
        except DecodeFailed:
            return self._fail(sequence, "the model could not compute this answer")
        except BadLogits:
            return self._fail(sequence, "the model computed numbers that are not finite")

    def _start(self, sequence: Sequence) -> list[FromWorker]:
        n_reused = n_reusable(sequence, self._cached_ids, self._cached_scope)
        sequence.n_past = sequence.n_cached = self._backend.keep(n_reused)
        sequence.started_at = self._clock()
        self._running = sequence
        return [self._prefill_progress(sequence), *self._positions()]

    def _prefill(self, sequence: Sequence) -> list[FromWorker]:
        chunk = sequence.prompt[sequence.n_past :][: self._chunk_size()]
        began_at = self._clock()
        self._backend.decode(chunk, sequence.n_past)
        self.prefill.note(len(chunk), self._clock() - began_at)
        sequence.n_past += len(chunk)
        if sequence.is_prefilling:
            return [self._prefill_progress(sequence)]
        return self._emit(sequence)

    def _chunk_size(self) -> int:
        """As many prompt tokens as one step should take."""
        wanted = int(self.prefill.tps * defaults.PREFILL_STEP_S)
        return min(max(wanted, defaults.MIN_PREFILL_CHUNK), defaults.MAX_PREFILL_CHUNK)

    def _emit(self, sequence: Sequence) -> list[FromWorker]:
        """Draw the next token, and see whether the answer ends with it."""
        index = len(sequence.generated)
        # Temperature 0 draws nothing, and 50 us are saved: every cache is cold after a step.
        u = uniform(sequence.seed, 0, index) if sequence.sampling.temperature > 0 else 0.0
        token_id = sample(self._backend.logits(), sequence.sampling, u)
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
        if token_id in self._vocabulary.eog_ids and not sequence.ignore_eog:
            return [self._finish(sequence, eog_id=token_id)]
        sequence.generated.append(token_id)
        piece = self._vocabulary.piece(token_id)
        events: list[FromWorker] = [NewTokens(sequence.request, index, (token_id,), (piece,))]
        stop = sequence.stops.push(piece)
        if stop is not None or len(sequence.generated) == sequence.max_new:
            events.append(self._finish(sequence, stop=stop))
        elif index == 0:
            events.append(Progress(sequence.request, Phase.DECODE, 0.0, 0))
        return events

    def _finish(
        self, sequence: Sequence, eog_id: int | None = None, stop: bytes | None = None
    ) -> Done:
        assert sequence.started_at is not None, "finished before it started"
        assert sequence.first_token_at is not None, "finished before its first token"
        self._leave(sequence)
        return Done(
            sequence.request,
            eog_id,
            stop,
            len(sequence.prompt),
            sequence.n_cached,
            len(sequence.generated),
            round((sequence.started_at - sequence.submitted_at) * 1000),
            round((sequence.first_token_at - sequence.started_at) * 1000),
            round((self._clock() - sequence.first_token_at) * 1000),
            self.prefill.tps,
            self.decode.tps,
        )

    def _fail(self, sequence: Sequence, detail: str) -> list[FromWorker]:
        sequence.n_past = 0
        self._leave(sequence)
        self._backend.keep(0)
        return [Refused(sequence.request, ErrorCode.INTERNAL, detail)]

    def _leave(self, sequence: Sequence) -> None:
        """The slot is free; what the sequence computed stays for the next of its scope."""
        if sequence.first_token_at is not None and sequence.n_past > len(sequence.prompt):
            n_decoded = sequence.n_past - len(sequence.prompt)
            self.decode.note(n_decoded, self._clock() - sequence.first_token_at)
        self._cached_ids = sequence.ids_in_cache()
        self._cached_scope = sequence.cache_scope
        self._running = None

    def _seconds_left(self, sequence: Sequence) -> float:
        """At the most: it may end earlier.

        A requester's deadline is made of it, so it must not be too short.
        """
        return self.prefill.seconds_for(len(sequence.prompt) - sequence.n_past) + (
            self.decode.seconds_for(sequence.max_new - len(sequence.generated))
        )

    def _positions(self) -> list[FromWorker]:
        n_running = 0 if self._running is None else 1
        return [
            Progress(sequence.request, Phase.QUEUED, 0.0, place)
            for place, sequence in enumerate(self._waiting, n_running)
        ]

    def _prefill_progress(self, sequence: Sequence) -> Progress:
        share = sequence.n_past / len(sequence.prompt)
        return Progress(sequence.request, Phase.PREFILL, share, 0)


def n_reusable(sequence: Sequence, cached: NDArray[np.int32], scope: bytes) -> int:
    """Prompt tokens that need no prefill. The last always does: its logits draw the first token."""
    if sequence.cache_scope != scope:
        return 0
    return min(n_common(sequence.prompt, cached), len(sequence.prompt) - 1)
