"""Whose turn it is in a fake engine, and how long it will take. Start at `FakeQueue.in_order`.

Pure. Fair between buckets as the real scheduler is, and as honest about waits as the real forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tokenplace.engine.fake_job import Job
from tokenplace.engine.fake_model import Answer, FakeModel
from tokenplace.generation import Phase

ANSWER_COST: Final = 2  # of a token, in prompt tokens, in the account of its bucket


class FakeQueue:
    """All requests of one fake engine.

    jobs: in the order in which they came. n_cached: prompt tokens of one that need not be read.
    is_owner_first: whether those of the empty bucket go before all others.
    """

    def __init__(
        self, model: FakeModel, n_cached: Callable[[Job], int], *, is_owner_first: bool
    ) -> None:
        self.jobs: list[Job] = []
        self._model = model
        self._n_cached = n_cached
        self._is_owner_first = is_owner_first
        self._given: dict[str, int] = {}  # bucket: what it was given, in prompt tokens

    @property
    def n_queued(self) -> int:
        """How many wait."""
        return sum(job.phase is Phase.QUEUED for job in self.jobs)

    def in_order(self) -> list[Job]:
        """Those that wait: the owner's, if he goes first, then of the bucket that was given least,
        each in turn. What answers are expected to need counts before it is computed.
        """
        given: dict[str, float] = dict(self._given)
        for job in self.jobs:
            if job.phase is not Phase.QUEUED:
                given[job.request.bucket] += self._n_longest(job) * ANSWER_COST
        waiting = [job for job in self.jobs if job.phase is Phase.QUEUED]
        order = []
        while waiting:
            job = min(waiting, key=lambda job: (self._is_strangers(job), given[job.request.bucket]))
            given[job.request.bucket] += len(job.prompt) + self._n_longest(job) * ANSWER_COST
            waiting.remove(job)
            order.append(job)
        return order

    def _is_strangers(self, job: Job) -> bool:
        """Must it wait for the owner's?"""
        return self._is_owner_first and bool(job.request.bucket)

    def charge(self, job: Job, cost: int) -> None:
        """Accounts are those of buckets with requests; who comes anew is owed nothing."""
        active = {other.request.bucket for other in self.jobs}
        known = {bucket: given for bucket, given in self._given.items() if bucket in active}
        least = min(known.values(), default=0)
        self._given = {bucket: known.get(bucket, least) for bucket in active}
        self._given[job.request.bucket] += cost

    def position(self, job: Job) -> int:
        """Requests that start before it."""
        return self.in_order().index(job) if job.phase is Phase.QUEUED else 0

    def wait_s(self, job: Job) -> float:
        """Seconds until it gets its slot, if all answers are as long as can be expected."""
        if job.phase is not Phase.QUEUED:
            return 0.0
        ahead = self.in_order()[: self.position(job)]
        running = [other for other in self.jobs if other.phase is not Phase.QUEUED]
        n_streams = sum(len(other.answers) for other in running)
        step_s = self._model.step_s(max(1, n_streams))
        free_at = [0.0] * self._model.n_slots + [self._busy_s(other, step_s) for other in running]
        free_at = sorted(free_at)[-self._model.n_slots :]
        for other in ahead:
            free_at = sorted([free_at[0] + self._busy_s(other, step_s), *free_at[1:]])
        return free_at[0]

    def _busy_s(self, job: Job, step_s: float) -> float:
        """How long it will hold a slot."""
        return self._n_missing(job) / self._model.prefill_tps + self._n_longest(job) * step_s

    def _n_longest(self, job: Job) -> float:
        return max((self._n_left(answer, job) for answer in job.answers), default=0.0)

    def _n_left(self, answer: Answer, job: Job) -> float:
        """Tokens that it may be expected to need: what the model says, or the most it may have."""
        most = job.max_new - answer.index
        if job.request.ignore_eog or job.request.output is not None:
            return most
        return min(most, max(sum(self._model.n_answer) / 2 - answer.index, 1.0))

    def _n_missing(self, job: Job) -> float:
        """Tokens that have to be read before its next one."""
        match job.phase:
            case Phase.QUEUED:
                n_missing = len(job.prompt) - self._n_cached(job)
            case Phase.PREFILL:
                n_missing = len(job.prompt) - job.n_cached
            case _:
                return 0.0
        n_resumed = sum(answer.index for answer in job.answers)
        return (n_missing + n_resumed) * (1 - job.progress)

    def eta_s(self, job: Job) -> float:
        """Seconds until its first token: prompts that are read at the same time share the speed."""
        reading = sum(other.phase is Phase.PREFILL for other in self.jobs if other is not job)
        n_beside = reading if job.phase is Phase.PREFILL else 0
        own_s = self._n_missing(job) * (1 + n_beside) / self._model.prefill_tps
        return self.wait_s(job) + own_s
