"""Continuous batching: one model, many requests. Start at `Runner.step`.

The scheduler decides, the backend computes, the choices' samplers draw; here is the order in which
that happens, the clock, and what is told of it. Knows no llama.cpp and no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.answering import Answering, Scoring
from tokenplace.engine.backend import Backend, CacheFull, DecodeFailed, Stopped
from tokenplace.engine.choice_sampler import NothingAllowed
from tokenplace.engine.forecast import Wait, Work, forecast
from tokenplace.engine.grammar import BadGrammar, GrammarFailed
from tokenplace.engine.lengths import Lengths
from tokenplace.engine.messages import (
    Count,
    Counted,
    FromWorker,
    Progress,
    Queued,
    Refused,
    Score,
    Submit,
)
from tokenplace.engine.pace import Pace, ThreadTuner
from tokenplace.engine.sampler import BadLogits
from tokenplace.engine.scheduler import Chunk, Copy, Keep, Plan, Scheduler
from tokenplace.engine.sequence import (
    BadPrompt,
    Sequence,
    Vocabulary,
    prompt_digest,
    prompt_ids,
)
from tokenplace.engine.slots import SlotTable
from tokenplace.errors import ErrorCode
from tokenplace.generation import Phase


class Runner:
    """All requests of one worker.

    computing_s, busy_s: seconds spent in `Backend.decode`, and in steps as a whole.
    """

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary,
        clock: Callable[[], float],
        n_threads: int,
        note: Callable[[Iterable[int]], None] = lambda requests: None,
        *,
        is_owner_first: bool = True,
    ) -> None:
        """`note` is told, before each piece of work, for which requests it is done. is_owner_first:
        see `Scheduler`.
        """
        size = backend.size
        self.pace = Pace()
        self.computing_s = self.busy_s = 0.0
        self._backend = backend
        self._vocabulary = vocabulary
        self._clock = clock
        self._note = note
        self._tuner = ThreadTuner(n_threads)
        self._n_threads = n_threads
        table = SlotTable(size.n_slots, size.n_cells)
        self._scheduler = Scheduler(
            table,
            size.n_running,
            can_cut=backend.can_cut,
            is_owner_first=is_owner_first,
            n_left=self._n_left,
        )
        self._requests: dict[int, Answering | Scoring] = {}
        self._stopped: list[Chunk] = []  # what the last step was to compute, if it was stopped
        self._lengths = Lengths()
        self._streamed_at = clock()  # the last step that held no stream
        self._told_at = self._streamed_at  # those who wait

    @property
    def is_idle(self) -> bool:
        """Is there nothing to compute?"""
        return self._scheduler.is_idle

    @property
    def running(self) -> frozenset[int]:
        """Requests that the next step may compute."""
        return frozenset(sequence.request for sequence in self._scheduler.running)

    # ------------------------------------------------------------ what comes in

    def submit(self, submit: Submit) -> list[FromWorker]:
        """Take a request to generate."""
        self._note((submit.request,))
        n_ctx = self._backend.size.n_ctx
        try:
            answering = Answering.begin(submit, self._vocabulary, n_ctx, self._clock())
        except BadPrompt as bad:
            return [bad.refusal(submit.request)]
        except BadGrammar as bad:
            return [Refused(submit.request, ErrorCode.INVALID_REQUEST, str(bad))]
        n_cached, position, wait = 0, 0, Wait(0.0, 0.0)
        self._requests[submit.request] = answering
        for sequence in answering.sequences:
            self._scheduler.submit(sequence)
        if answering.choices:
            first = answering.sequences[0]
            n_cached, wait = self._scheduler.n_cached(first), self._waits()[submit.request]
            position = self._waiting_requests().index(submit.request)
        queued = Queued(
            submit.request,
            prompt_digest(answering.prompt),
            len(answering.prompt),
            n_cached,
            n_ctx,
            answering.max_new,
            round(wait.first_token_s * 1000),
            position,
            round(wait.begins_s * 1000),
        )
        return [queued, *self._end_if_whole(answering)]

    def score(self, score: Score) -> list[FromWorker]:
        """Take a request to score."""
        self._note((score.request,))
        n_ctx = self._backend.size.n_ctx
        try:
            scoring = Scoring.begin(score, self._vocabulary, n_ctx, self._clock())
        except BadPrompt as bad:
            return [bad.refusal(score.request)]
        self._requests[score.request] = scoring
        self._scheduler.submit(scoring.sequence)
        return []

    def count(self, count: Count) -> list[FromWorker]:
        """Answer at once how many tokens a prompt has."""
        self._note((count.request,))
        n_ctx = defaults.MAX_N_CTX // defaults.MAX_PROMPT_BYTES_PER_TOKEN
        try:
            ids = prompt_ids(count, self._vocabulary, n_ctx)
        except BadPrompt as bad:
            return [bad.refusal(count.request)]
        return [Counted(count.request, len(ids))]

    def cancel(self, request: int) -> list[FromWorker]:
        """Forget a request, running or waiting; one that has ended already is no fault."""
        if request not in self._requests:
            return []
        # Else asking and leaving, again and again, would be free.
        self._scheduler.charge(c for c in self._stopped if c.sequence.request == request)
        self._end(request)
        return self._positions()

    # ------------------------------------------------------------ a step

    def step(
        self, is_unwanted: Callable[[frozenset[int]], bool] = lambda _: False
    ) -> list[FromWorker]:
        """Compute a little for everybody, and say what came of it. Does nothing when idle.

        is_unwanted: whether one of these requests, which the step computes, was cancelled
        meanwhile, so that a long step may better be stopped; must not raise. After a stopped step
        comes one that is not, so that whoever asks and cancels, again and again, does not keep
        others' prompts from moving.
        """
        began_at = self._clock()
        n_running = len(self._scheduler.running)
        n_streams = sum(sequence.is_stream for sequence in self._scheduler.running)
        is_held = self._scheduler.is_rush and began_at - self._streamed_at < defaults.MAX_HOLD_S
        if not is_held:
            self._streamed_at = began_at
        n_decode = 0 if is_held else n_streams
        can_stop = self._backend.can_stop and n_decode == 0 and not self._stopped
        step_s = defaults.READING_STEP_S if can_stop else defaults.PREFILL_STEP_S
        n_prompt = self.pace.chunk(n_decode, step_s)
        self._stopped = []
        plan = self._scheduler.schedule(
            max(1, min(n_prompt, self._backend.n_batch - n_running)),
            defaults.SCORE_ROWS,
            are_streams_held=is_held,
        )
        events = self._told(plan, began_at)
        if self._scheduler.waiting and began_at - self._told_at >= defaults.ETA_RENEW_S:
            self._told_at = began_at
            events += self._positions()
        requests = frozenset(chunk.sequence.request for chunk in plan.chunks)
        self._note(requests)
        try:
            self._apply(plan.moves)
            rows = self._decode(plan.chunks, partial(is_unwanted, requests) if can_stop else None)
        except Stopped:
            self._stopped = plan.chunks
            self._apply(self._scheduler.take_back(plan.chunks))
        except CacheFull:
            events += self._make_room(plan)
        except DecodeFailed:
            for request in requests:
                events += self._fail(request, "The model could not compute this answer.")
        else:
            events += self._take(plan.chunks, rows)
        self.busy_s += self._clock() - began_at
        return events

    def _decode(
        self, chunks: list[Chunk], is_unwanted: Callable[[], bool] | None
    ) -> NDArray[np.float32]:
        if not chunks:
            return np.empty((0, 0), np.float32)
        began_at = self._clock()
        rows = self._backend.decode(chunks, is_unwanted)
        seconds = self._clock() - began_at
        self.computing_s += seconds
        n_decode = sum(chunk.n == 1 for chunk in chunks)
        n_prompt = sum(chunk.n for chunk in chunks) - n_decode
        self.pace.note(n_prompt, n_decode, seconds)
        self._tuner.note(n_prompt, n_decode, seconds)
        if self._tuner.n_threads != self._n_threads:
            self._n_threads = self._tuner.n_threads
            self._backend.set_threads(self._n_threads)
        return rows

    def _take(self, chunks: list[Chunk], rows: NDArray[np.float32]) -> list[FromWorker]:
        """Draw from the rows, and tell."""
        events: list[FromWorker] = []
        now = self._clock()
        n_before = 0
        n_running = len(self._scheduler.running)
        for chunk in chunks:
            mine = rows[n_before : n_before + chunk.n_rows]
            n_before += chunk.n_rows
            asked = self._requests.get(chunk.sequence.request)
            if asked is None:  # another choice of it failed in this step
                continue
            self._note((asked.request,))
            try:
                events += self._take_chunk(asked, chunk, mine, now)
            except BadLogits:
                events += self._fail(
                    asked.request, "The model computed numbers that are not finite."
                )
            except GrammarFailed as failed:
                events += self._fail(asked.request, str(failed), ErrorCode.INVALID_REQUEST)
            except NothingAllowed:
                events += self._fail(asked.request, "The grammar allows no further token.")
        if len(self._scheduler.running) < n_running:
            events += self._positions()
        return events

    def _take_chunk(
        self, asked: Answering | Scoring, chunk: Chunk, rows: NDArray[np.float32], now: float
    ) -> list[FromWorker]:
        sequence = chunk.sequence
        events: list[FromWorker] = []
        if chunk.n_rows == 0:
            share = sequence.n_past / sequence.n_ids
            return [Progress(asked.request, Phase.PREFILL, share, 0, self._reading_ms(sequence))]
        if isinstance(asked, Scoring):
            events.append(asked.take_rows(sequence, rows, now))
            if asked.is_whole:
                self._end(asked.request)
            return events
        is_first = sequence.n_new == 0
        tokens = asked.take_rows(sequence, rows, now)
        if tokens is not None:
            events.append(tokens)
        if sequence.choice in asked.choices:
            if is_first:
                events.append(Progress(asked.request, Phase.DECODE, 0.0, 0))
            return events
        if not asked.submit.ignore_eog:
            self._lengths.note(sequence.n_new, is_cut=asked.ends[-1][1] == "length")
        self._apply(self._scheduler.leave(sequence))
        return [*events, *self._end_if_whole(asked)]

    def _make_room(self, plan: Plan) -> list[FromWorker]:
        """The budget has room, the backend found none: the youngest waits, the rest tries again."""
        self._scheduler.take_back(plan.chunks)  # nothing of it was computed
        requeued = self._scheduler.requeue_youngest()
        if not requeued:
            (request,) = {chunk.sequence.request for chunk in plan.chunks}
            return self._fail(request, "There is no room for this answer in the KV cache.")
        self._apply([Keep(slot, 0) for slot in self._scheduler.forget_idle()])
        return self._told(Plan(requeued=requeued), self._clock())

    def _apply(self, moves: Iterable[Keep | Copy]) -> None:
        for move in moves:
            self._backend.apply(move)

    # ------------------------------------------------------------ ends

    def _end_if_whole(self, answering: Answering) -> list[FromWorker]:
        if answering.choices:
            return []
        del self._requests[answering.request]
        # What a newcomer would get now; when all is done, the speed of one alone.
        decode_tps = self.pace.stream_tps(len(self._scheduler.running))
        return [answering.done(self._clock(), self.pace.prefill_tps, decode_tps)]

    def _end(self, request: int) -> None:
        for sequence in self._requests.pop(request).sequences:
            self._apply(self._scheduler.leave(sequence))

    def _fail(
        self, request: int, detail: str, code: ErrorCode = ErrorCode.INTERNAL
    ) -> list[FromWorker]:
        """Nothing that it computed is used again."""
        for sequence in self._requests.pop(request).sequences:
            self._apply(self._scheduler.drop(sequence))
        return [Refused(request, code, detail)]

    # ------------------------------------------------------------ what is told

    def _told(self, plan: Plan, now: float) -> list[FromWorker]:
        """Who started and who has to wait again."""
        events: list[FromWorker] = []
        for sequence in plan.started:
            asked = self._requests[sequence.request]
            asked.note_start(sequence, now)
            share = sequence.n_past / sequence.n_ids
            eta_ms = self._reading_ms(sequence)
            events.append(Progress(sequence.request, Phase.PREFILL, share, 0, eta_ms))
        waits = self._waits() if plan.requeued else {}
        events += [
            Progress(s.request, Phase.REQUEUED, 0.0, 0, _milliseconds(waits[s.request]))
            for s in plan.requeued
        ]
        if plan.started:
            events += self._positions()
        return events

    def _waiting_requests(self) -> list[int]:
        """Requests of which nothing runs, in the order in which they would start."""
        running = self.running
        in_order = dict.fromkeys(s.request for s in self._scheduler.in_order())
        return [request for request in in_order if request not in running]

    def _positions(self) -> list[FromWorker]:
        """Where those stand that have not begun, or have to wait again, and when they may expect to
        go on. Of a request whose other choices had their turn the rest are no news.
        """
        again = {s.request for s in self._scheduler.waiting if s.is_requeued}
        waiting = [r for r in self._waiting_requests() if r in again or not self._has_begun(r)]
        waits = self._waits() if waiting else {}
        return [
            Progress(request, Phase.QUEUED, 0.0, place, _milliseconds(waits[request]))
            for place, request in enumerate(waiting)
        ]

    def _has_begun(self, request: int) -> bool:
        return self._requests[request].times.started_at is not None

    def _waits(self) -> dict[int, Wait]:
        """Of each request, when the first of its sequences that are under way begins, and has its
        next token if it must compute for that.
        """
        running, waiting = self._scheduler.running, self._scheduler.in_order()
        works = [Work(0 if s.is_stream else s.n_missing, self._n_left(s)) for s in running]
        seen = {sequence.request for sequence in running}
        coming: list[Work] = []
        for sequence in waiting:
            # Choices begin alike: what the first one computes is copied.
            is_first = sequence.request not in seen
            seen.add(sequence.request)
            n_prompt = sequence.n_missing - self._scheduler.n_cached(sequence) if is_first else 1
            coming.append(Work(n_prompt, self._n_left(sequence)))
        all_waits = forecast(works, coming, self._scheduler.n_seats(waiting), self.pace)
        waits: dict[int, Wait] = {}
        for sequence, wait in zip((*running, *waiting), all_waits, strict=True):
            waits.setdefault(sequence.request, wait)
        return waits

    def _n_left(self, sequence: Sequence) -> float:
        """Tokens that its answer may be expected to need."""
        asked = self._requests[sequence.request]
        if isinstance(asked, Answering) and asked.submit.ignore_eog:
            return sequence.max_new - sequence.n_new
        return self._lengths.left(sequence.n_new, sequence.max_new)

    def _reading_ms(self, sequence: Sequence) -> int:
        """Until its prompt is read: those that began before it are read before."""
        running = self._scheduler.running
        reading = [s.n_missing for s in running[: running.index(sequence) + 1] if not s.is_stream]
        n_streams = sum(s.is_stream for s in running)
        return round(self.pace.seconds_for_prefill(sum(reading), n_streams) * 1000)


def _milliseconds(wait: Wait) -> int:
    return round(wait.first_token_s * 1000)
