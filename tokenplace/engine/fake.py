"""A donor's engine without a model: for tests of everything else, and for simulations of many
donors. Start at `FakeEngine`.

Answers as `engine.Engine` does, in events, order, errors and limits; `fake_model.py` and
`fake_operations.py` say what.
Time passes only in `trio.sleep`-like waits, so under a `trio.testing.MockClock` hours cost nothing.

Differs from the real one: there is no worker process and no batch. Each answer waits as long as its
steps would take with as many others as run at the moment, which comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine import fake_operations
from tokenplace.engine.engine import EngineInfo, EngineLoad
from tokenplace.engine.fake_job import Job
from tokenplace.engine.fake_model import Answer, FakeModel, n_common, prompt_digest, prompt_ids
from tokenplace.engine.fake_queue import ANSWER_COST, FakeQueue
from tokenplace.errors import (
    BadFormat,
    ContextLengthExceeded,
    DonorBusy,
    InvalidRequest,
    ModelNotOffered,
    PromptMismatch,
    TemplateMismatch,
    TokenplaceError,
    Unsupported,
    WorkerCrashed,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChatInput,
    Event,
    Finished,
    GenerateRequest,
    Phase,
    Timings,
    Tokens,
    ToolChoice,
    Usage,
)
from tokenplace.operations import CountRequest, Embeddings, EmbedRequest, ScoreRequest, Scores

_SAMPLER: Final = "tp/1"
_MAX_PREFIXES: Final = 64


@dataclass(frozen=True)
class Faults:
    """What goes wrong, with every request.

    refusal: it is raised instead of `Accepted`. crash_after, stall_after: after so many tokens of
    one answer the worker dies, or computes no more (and is killed for that in the end).
    is_silent: no `Alive` comes. eta_factor: what `eta_ms` is multiplied with.
    restart_s: how long a dead worker takes to come back.
    """

    refusal: type[TokenplaceError] | None = None
    crash_after: int | None = None
    stall_after: int | None = None
    is_silent: bool = False
    eta_factor: float = 1.0
    restart_s: float = defaults.RESTART_DELAY_S


class FakeEngine:
    """One pretended model. Set `faults` at any time; `requests` has all that were asked."""

    def __init__(
        self,
        model: FakeModel | None = None,
        faults: Faults | None = None,
        *,
        is_owner_first: bool = True,
    ) -> None:
        self.model = model or FakeModel()
        self.faults = faults or Faults()
        self.requests: list[GenerateRequest] = []
        has_chat = "chat" in self.model.offered_features
        self.info = EngineInfo(
            name=self.model.name,
            artifact=self.model.artifact,
            template=self.model.template if has_chat else "",
            profile=self.model.profile,
            n_ctx=self.model.n_ctx,
            features=self.model.offered_features,
            n_slots=self.model.n_slots,
            n_dimensions=self.model.n_dimensions,
        )
        self._queue = FakeQueue(self.model, self._n_cached, is_owner_first=is_owner_first)
        self._prefixes: list[tuple[bytes, tuple[int, ...]]] = []  # scope, ids; the latest last
        self._up_at = -math.inf
        self._n_restarts = 0

    @property
    def load(self) -> EngineLoad:
        """How busy it is, and how fast."""
        n_queued = self._queue.n_queued
        return EngineLoad(
            state="ready" if trio.current_time() >= self._up_at else "restarting",
            n_running=len(self._queue.jobs) - n_queued,
            n_queued=n_queued,
            prefill_tps=self.model.prefill_tps,
            decode_tps=self.model.decode_tps,
            restarts=self._n_restarts,
            n_slots=self.model.n_slots,
        )

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Answer a request: see `generation.Generator`.

        Raises `ModelNotOffered`, `TemplateMismatch`, `Unsupported`, `InvalidRequest`, `BadFormat`,
        `ContextLengthExceeded`, `PromptMismatch`, `ResumeRejected`, `DonorBusy`, `WorkerCrashed`,
        and what `faults` says.
        """
        self.requests.append(request)
        self._check_generates()
        self._check(request)
        await self._wait_for_worker()
        job = self._admit(request)
        self._queue.jobs.append(job)
        try:
            self._queue.charge(job, 0)
            self._fill_slots()
            yield self._accepted(job)
            alive_at = trio.current_time() + defaults.HEARTBEAT_S
            for coming in self._work(job):
                if not isinstance(coming, float):
                    yield coming
                    alive_at = trio.current_time() + defaults.HEARTBEAT_S
                    continue
                until = trio.current_time() + coming
                while not await self._wait(job, until, min(until, alive_at)):
                    if not self.faults.is_silent:
                        yield self._alive(job)
                    alive_at = trio.current_time() + defaults.HEARTBEAT_S
        finally:
            self._queue.jobs.remove(job)
            self._fill_slots()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of texts, if its model makes them. Raises as `generate`."""
        self._check_artifact(request.artifact)
        answer = fake_operations.embed(self.model, request)
        await self._compute(sum(answer.n_tokens))
        return answer

    async def count(self, request: CountRequest) -> int:
        """Tokens of a prompt. Raises as `generate`."""
        self._check(request)
        return len(prompt_ids(request.input))

    async def score(self, request: ScoreRequest) -> Scores:
        """How likely its model finds given ids. Raises as `generate`."""
        self._check_generates()
        self._check(request)
        answer = fake_operations.score(self.model, request)
        await self._compute(answer.n_prompt + len(request.ids))
        return answer

    async def _compute(self, n_tokens: int) -> None:
        """Beside what it generates, and as fast as if it were alone."""
        await self._wait_for_worker()
        await trio.sleep(n_tokens / self.model.prefill_tps)

    def crash(self) -> None:
        """Let the worker die: every answer ends with `WorkerCrashed`, and nothing stays cached."""
        self._n_restarts += 1
        self._up_at = trio.current_time() + self.faults.restart_s
        self._prefixes.clear()
        for job in self._queue.jobs:
            job.is_dead = True
            job.wake.set()

    # ------------------------------------------------------------ waiting

    async def _wait_for_worker(self) -> None:
        missing_s = self._up_at - trio.current_time()
        await trio.sleep(max(0.0, min(missing_s, defaults.RESTART_WAIT_S)))
        if missing_s > defaults.RESTART_WAIT_S:
            raise WorkerCrashed(retry_after_s=defaults.RESTART_DELAY_MAX_S)

    @staticmethod
    async def _wait(job: Job, until: float, look_up_at: float) -> bool:
        """Is it `until` yet, or did what the job waits for happen? False at `look_up_at`."""
        with trio.move_on_at(look_up_at):
            await job.wake.wait()
        if job.is_dead:
            raise WorkerCrashed
        return job.wake.is_set() or trio.current_time() >= until

    # ------------------------------------------------------------ what comes in

    def _check_generates(self) -> None:
        if self.model.n_dimensions:
            raise Unsupported("generate")

    def _check_artifact(self, artifact: str) -> None:
        if self.faults.refusal is not None:
            raise self.faults.refusal
        if artifact and artifact != self.info.artifact:
            raise ModelNotOffered

    def _check(self, request: GenerateRequest | CountRequest | ScoreRequest) -> None:
        self._check_artifact(request.artifact)
        if isinstance(request.input, ChatInput):
            if not self.info.template:
                raise Unsupported("chat")
            if request.template and request.template != self.info.template:
                raise TemplateMismatch
            has_tools = request.input.tools and request.input.tool_choice is not ToolChoice.NONE
            if has_tools and "tools" not in self.info.features:
                raise Unsupported("tools")
        try:
            date.fromisoformat(request.as_of)
        except ValueError:
            raise BadFormat("as_of is not a date") from None

    def _admit(self, request: GenerateRequest) -> Job:
        if request.output is not None and "grammar" not in self.info.features:
            raise Unsupported("grammar")
        if any(token_id >= self.model.n_tokens for token_id, _ in request.sampling.logit_bias):
            raise InvalidRequest("logit_bias names a token that does not exist.")
        n_ctx = self.model.n_ctx
        prompt = prompt_ids(request.input)
        if not prompt:
            raise InvalidRequest("The prompt is empty.")
        if len(prompt) >= n_ctx:
            raise ContextLengthExceeded(
                f"The prompt has {len(prompt)} tokens, the context holds {n_ctx} with the answer.",
                numbers={"n_prompt": len(prompt), "n_ctx": n_ctx},
            )
        if request.resume and request.prompt_digest != prompt_digest(prompt):
            raise PromptMismatch("It has other tokens here.")
        if len(self._queue.jobs) >= self.model.n_slots + self.model.n_queued:
            raise DonorBusy
        max_new = min(n_ctx - len(prompt), request.max_tokens or defaults.MAX_NEW_TOKENS)
        resumed = {resume.choice: resume.ids for resume in request.resume}
        answers = [
            Answer(self.model, request, choice, max_new, ids)
            for choice, ids in (resumed or dict.fromkeys(range(request.n), ())).items()
        ]
        job = Job(request, prompt, max_new, answers, trio.current_time())
        for answer in list(answers):
            job.end_if_over(answer)
        return job

    def _accepted(self, job: Job) -> Accepted:
        return Accepted(
            prompt_digest=prompt_digest(job.prompt),
            n_prompt=len(job.prompt),
            n_cached=self._n_cached(job),
            n_ctx=self.model.n_ctx,
            max_new=job.max_new,
            sampler=_SAMPLER,
            eta_ms=round(self._queue.eta_s(job) * self.faults.eta_factor * 1000),
            position=self._queue.position(job),
            wait_ms=round(self._queue.wait_s(job) * self.faults.eta_factor * 1000),
            begun=self.model.begun if isinstance(job.request.input, ChatInput) else "",
        )

    # ------------------------------------------------------------ who runs

    def _fill_slots(self) -> None:
        """Let requests start in their turn, as long as there are slots."""
        for job in self._queue.in_order():
            if (
                sum(other.phase is not Phase.QUEUED for other in self._queue.jobs)
                >= self.model.n_slots
            ):
                return
            job.phase = Phase.PREFILL
            job.started_at = trio.current_time()
            job.n_cached = self._n_cached(job)
            self._queue.charge(job, len(job.prompt) - job.n_cached)
            job.wake.set()

    def _alive(self, job: Job) -> Alive:
        eta_ms = round(self._queue.eta_s(job) * self.faults.eta_factor * 1000)
        return Alive(job.phase, job.progress, self._queue.position(job), eta_ms)

    def _n_cached(self, job: Job) -> int:
        """Prompt tokens that need no prefill: a prefix that its own scope computed."""
        found = (
            n_common(job.prompt, ids)
            for scope, ids in self._prefixes
            if scope == job.request.cache_scope
        )
        n = min(max(found, default=0), len(job.prompt) - 1)  # the last one's logits are needed
        return n if n >= defaults.MIN_REUSED_PREFIX else 0

    # ------------------------------------------------------------ one request

    def _work(self, job: Job) -> Iterator[Event | float]:
        """What is said, and the seconds that pass before what follows."""
        if job.answers:  # what was resumed may have ended already
            if job.phase is Phase.QUEUED:
                yield math.inf
            job.wake = trio.Event()
            if not self.faults.is_silent:  # who queues the request has to know that it has begun
                yield self._alive(job)
            yield from self._prefill(job)
            yield from self._decode(job)
        yield self._finished(job)

    def _prefill(self, job: Job) -> Iterator[float]:
        n_prompt = len(job.prompt) - job.n_cached + sum(answer.index for answer in job.answers)
        n_left = n_prompt
        while n_left > 0:
            job.progress = 1 - n_left / n_prompt
            n = min(n_left, max(1, int(self.model.prefill_tps * defaults.PREFILL_STEP_S)))
            n_beside = sum(other.phase is Phase.PREFILL for other in self._queue.jobs)
            yield n * n_beside / self.model.prefill_tps
            n_left -= n
        self._prefixes.append((job.request.cache_scope, job.prompt))
        del self._prefixes[:-_MAX_PREFIXES]

    def _decode(self, job: Job) -> Iterator[Event | float]:
        job.phase = Phase.DECODE
        job.first_token_at = trio.current_time()
        while True:
            for answer in list(job.answers):
                yield from self._next_token(job, answer)
            if not job.answers:
                return
            job.progress = 1 - job.n_left / job.max_new
            streams = (
                len(other.answers) for other in self._queue.jobs if other.phase is Phase.DECODE
            )
            yield self.model.step_s(sum(streams))

    def _next_token(self, job: Job, answer: Answer) -> Iterator[Event | float]:
        if job.n_new == self.faults.stall_after:
            yield defaults.WORKER_STALL_S
        if job.n_new in (self.faults.stall_after, self.faults.crash_after):
            self.crash()
            raise WorkerCrashed
        index = answer.index
        token = answer.next()
        if token is not None:
            token_id, piece, logprob = token
            logprobs = () if job.request.top_logprobs is None else (logprob,)
            job.n_new += 1
            self._queue.charge(job, ANSWER_COST)
            yield Tokens(answer.choice, index, (token_id,), (piece,), logprobs)
        job.end_if_over(answer)

    @staticmethod
    def _finished(job: Job) -> Finished:
        now = trio.current_time()
        started_at = now if job.started_at is None else job.started_at
        first_token_at = now if job.first_token_at is None else job.first_token_at
        return Finished(
            choices=tuple(sorted(job.ends, key=lambda end: end.choice)),
            usage=Usage(len(job.prompt), job.n_cached, job.n_new),
            timings=Timings(
                queue_ms=round((started_at - job.submitted_at) * 1000),
                prefill_ms=round((first_token_at - started_at) * 1000),
                decode_ms=round((now - first_token_at) * 1000),
            ),
        )
