"""Many requests for vectors on one model. Start at `EmbeddingRunner.step`.

Pure but for the backend and the clock. A step tokenises a little and computes one batch: texts of
all requests, one of each bucket in turn, as many as take about `defaults.PREFILL_STEP_S`. So a
short question never waits for somebody's two thousand texts.

Differs from generating: a text is computed as a whole, and nothing of it is kept. A request is read
to its end before the first of its texts is computed, so what is too long costs nobody anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.messages import Count, Counted, Embed, Embedded, FromWorker, Refused
from tokenplace.engine.pace import Pace
from tokenplace.engine.sequence import BadPrompt, Ids, given_ids
from tokenplace.errors import ErrorCode

_OWNER: Final = ""  # the bucket of this peer's own requests
_TEXT_COST_CHARS: Final = 32  # tokenising the shortest text takes as long as that many characters


class EmbedFailed(Exception):
    """The backend could not compute these texts, or not with finite numbers."""


class EmbeddingBackend(Protocol):
    """What computes. n_ctx: tokens of one text, and of all texts of a step, at most. n_tokens: of
    its vocabulary.
    """

    n_ctx: int
    n_tokens: int
    n_dimensions: int

    def tokenise(self, text: str) -> list[int]:
        """The ids of a text, with those that the model wants around it; none of its own words
        becomes a control token.
        """

    def embed(self, texts: Sequence[Ids]) -> NDArray[np.float32]:
        """One vector for each text, at most `defaults.MAX_EMBED_BATCH`. Raises `EmbedFailed`."""


class EmbeddingRunner:
    """All requests of one worker: what `runner.Runner` is for models that generate.

    note: told whose text is looked at next, before it could kill the process. is_owner_first:
    whether texts of the empty bucket, this peer's own, come before all others.
    """

    def __init__(
        self,
        backend: EmbeddingBackend,
        clock: Callable[[], float],
        note: Callable[[Iterable[int]], None],
        *,
        is_owner_first: bool = True,
    ) -> None:
        self.pace = Pace()
        self._backend = backend
        self._clock = clock
        self._note = note
        self._unread = _Turns(is_owner_first=is_owner_first)
        self._ready = _Turns(is_owner_first=is_owner_first)

    @property
    def is_idle(self) -> bool:
        """Is there nothing to compute?"""
        return not (self._unread or self._ready)

    def submit(self, embed: Embed) -> list[FromWorker]:
        """Take a request for vectors."""
        try:
            self._check(embed)
        except BadPrompt as bad:
            return [bad.refusal(embed.request)]
        self._unread.add(_Job(embed))
        return []

    def count(self, count: Count) -> list[FromWorker]:
        """Answer at once how many tokens a text has."""
        text = count.prompt_ids or "".join(text for text, _ in count.segments)
        self._note((count.request,))
        try:
            self._check_length(0, _least_tokens(text))
            return [Counted(count.request, len(self._ids_of(0, text)))]
        except BadPrompt as bad:
            return [bad.refusal(count.request)]

    def cancel(self, request: int) -> list[FromWorker]:
        """Forget a request; one that has ended already is no fault."""
        for turns in (self._unread, self._ready):
            for job in [job for job in turns if job.embed.request == request]:
                turns.remove(job)
        return []

    def step(self) -> list[FromWorker]:
        """Read a little, compute a little, and say what came of it. Does nothing when idle."""
        events = self._read()
        if self._ready:
            events += self._compute(self._next_batch())
        return events

    # ------------------------------------------------------------ reading

    def _check(self, embed: Embed) -> None:
        """What can be seen without a tokeniser. Raises `BadPrompt`."""
        n_texts, n_numbers = len(embed.inputs), self._backend.n_dimensions
        if not 1 <= n_texts <= defaults.MAX_EMBED_INPUTS:
            raise BadPrompt(
                ErrorCode.INVALID_REQUEST,
                f"{n_texts} texts; 1 to {defaults.MAX_EMBED_INPUTS} are taken.",
            )
        if embed.dimensions is not None and not 1 <= embed.dimensions <= n_numbers:
            raise BadPrompt(
                ErrorCode.INVALID_REQUEST,
                f"{embed.dimensions} dimensions; this model's vectors have {n_numbers}.",
            )
        for number, text in enumerate(embed.inputs):
            self._check_length(number, _least_tokens(text))

    def _check_length(self, number: int, n_tokens: int) -> None:
        """Raises `BadPrompt`."""
        n_ctx = self._backend.n_ctx
        if n_tokens > n_ctx:
            raise BadPrompt(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"Text {number} has {n_tokens} tokens, the context holds {n_ctx}.",
                n_prompt=n_tokens,
                n_ctx=n_ctx,
            )

    def _read(self) -> list[FromWorker]:
        """Tokenise some texts, one of each bucket in turn."""
        events: list[FromWorker] = []
        room = defaults.EMBED_READ_CHARS
        while self._unread and room > 0:
            job = self._unread.take()
            text = job.embed.inputs[len(job.ids)]
            room -= len(text) + _TEXT_COST_CHARS
            self._note((job.embed.request,))
            try:
                self._take_ids(job, self._ids_of(len(job.ids), text))
            except BadPrompt as bad:
                events.append(bad.refusal(job.embed.request))
            else:
                (self._ready if job.is_read else self._unread).add(job)
        return events

    def _ids_of(self, number: int, text: str | tuple[int, ...]) -> Ids:
        """Those of a text, or those that were given. Raises `BadPrompt`."""
        if isinstance(text, str):
            return np.array(self._backend.tokenise(text), np.int32)
        return given_ids(text, self._backend.n_tokens, f"input {number}")

    def _take_ids(self, job: _Job, ids: Ids) -> None:
        """The next text of a request has these. Raises `BadPrompt`."""
        number = len(job.ids)
        if not len(ids):
            raise BadPrompt(ErrorCode.INVALID_REQUEST, f"Text {number} is empty.")
        self._check_length(number, len(ids))
        job.ids.append(ids)
        job.n_tokens += len(ids)
        if job.n_tokens > defaults.MAX_EMBED_TOKENS:
            raise BadPrompt(
                ErrorCode.INVALID_REQUEST,
                f"All texts of one request may have {defaults.MAX_EMBED_TOKENS} tokens.",
            )

    # ------------------------------------------------------------ computing

    def _next_batch(self) -> list[_Text]:
        batch: list[_Text] = []
        room = min(self.pace.chunk(0), self._backend.n_ctx)
        while self._ready and len(batch) < defaults.MAX_EMBED_BATCH:
            job = self._ready.next
            n_tokens = len(job.ids[job.n_taken])
            if batch and n_tokens > room:
                break  # the next step begins with it
            room -= n_tokens
            self._ready.take()
            batch.append(_Text(job, job.n_taken))
            job.n_taken += 1
            if not job.is_taken:
                self._ready.add(job)
        return batch

    def _compute(self, batch: list[_Text]) -> list[FromWorker]:
        self._note(job.embed.request for job in _jobs_of(batch))
        began_at = self._clock()
        try:
            rows = self._backend.embed([text.ids for text in batch])
        except EmbedFailed:
            return [event for job in _jobs_of(batch) for event in self._fail(job)]
        self.pace.note(sum(len(text.ids) for text in batch), 0, self._clock() - began_at)
        events: list[FromWorker] = []
        for job in _jobs_of(batch):
            mine = [place for place, text in enumerate(batch) if text.job is job]
            try:
                vectors = unit_vectors(rows[mine], job.embed.dimensions)
            except EmbedFailed:
                events += self._fail(job)
                continue
            n_tokens = tuple(len(batch[place].ids) for place in mine)
            index = batch[mine[0]].number
            events.append(Embedded(job.embed.request, index, vectors, n_tokens, job.is_taken))
        return events

    def _fail(self, job: _Job) -> list[FromWorker]:
        self.cancel(job.embed.request)
        detail = "The model could not compute these vectors."
        return [Refused(job.embed.request, ErrorCode.INTERNAL, detail)]


def unit_vectors(rows: NDArray[np.float32], dimensions: int | None) -> tuple[bytes, ...]:
    """The first `dimensions` numbers of each row, None: all, made one long, as float32
    little-endian. Raises `EmbedFailed` if that cannot be done.
    """
    kept = rows[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise EmbedFailed
    return tuple(row.tobytes() for row in (kept / lengths).astype("<f4"))


@dataclass(eq=False)
class _Job:
    """One request. ids: of the texts that have been tokenised. n_taken: texts computed, or being
    computed; they are taken in order.
    """

    embed: Embed
    ids: list[Ids] = field(default_factory=list)
    n_tokens: int = 0
    n_taken: int = 0

    @property
    def is_read(self) -> bool:
        return len(self.ids) == len(self.embed.inputs)

    @property
    def is_taken(self) -> bool:
        return self.n_taken == len(self.embed.inputs)


@dataclass(frozen=True, slots=True)
class _Text:
    """One text of a batch."""

    job: _Job
    number: int

    @property
    def ids(self) -> Ids:
        return self.job.ids[self.number]


def _least_tokens(text: str | tuple[int, ...]) -> int:
    """How many tokens it has at the least, as far as can be seen without a tokeniser."""
    if isinstance(text, str):
        return len(text.encode()) // defaults.MAX_PROMPT_BYTES_PER_TOKEN
    return len(text)


def _jobs_of(batch: list[_Text]) -> list[_Job]:
    return list(dict.fromkeys(text.job for text in batch))


class _Turns:
    """Jobs of several buckets. A bucket that had its turn comes last, and so does its job, once it
    is added again; but the owner's may always come first.
    """

    def __init__(self, *, is_owner_first: bool) -> None:
        self._is_owner_first = is_owner_first
        self._buckets: dict[str, deque[_Job]] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __iter__(self) -> Iterator[_Job]:
        return (job for jobs in self._buckets.values() for job in jobs)

    @property
    def next(self) -> _Job:
        """Whose turn it is."""
        if self._is_owner_first and _OWNER in self._buckets:
            return self._buckets[_OWNER][0]
        return next(iter(self))

    def take(self) -> _Job:
        """Whose turn it is; it is here no longer."""
        job = self.next
        jobs = self._buckets.pop(job.embed.bucket)
        jobs.popleft()
        if jobs:
            self._buckets[job.embed.bucket] = jobs
        return job

    def add(self, job: _Job) -> None:
        """It comes last in its bucket."""
        self._buckets.setdefault(job.embed.bucket, deque()).append(job)

    def remove(self, job: _Job) -> None:
        """It is wanted no longer."""
        jobs = self._buckets[job.embed.bucket]
        jobs.remove(job)
        if not jobs:
            del self._buckets[job.embed.bucket]
