"""Keeps one worker running, and carries its messages to those who wait for them.

Start at `Supervisor.run`.

A worker that dies is replaced, after a delay that doubles while it keeps dying. What was in flight
is asked again of the next one, which goes on where the last left off; `triage.py` says who goes
first, so that the one request that kills is found, and only that one fails. The worker never waits
for a reader of answers: each has a mailbox that holds a whole answer, which `max_new` bounds.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from dataclasses import dataclass, replace
from typing import Literal

import trio

from tokenplace import defaults
from tokenplace.engine.frames import BadFrame, encode_frame
from tokenplace.engine.launch import EngineSpec, Worker, launch_worker
from tokenplace.engine.mailbox import Answer as Answer
from tokenplace.engine.mailbox import Mail as Mail
from tokenplace.engine.mailbox import Reply, Request
from tokenplace.engine.messages import (
    Cancel,
    Done,
    Embedded,
    FromWorker,
    Scored,
    ToWorker,
    from_value,
    to_value,
)
from tokenplace.engine.model_file import ModelFile
from tokenplace.engine.process import ChildDied
from tokenplace.engine.quarantine import Quarantine
from tokenplace.engine.triage import Triage
from tokenplace.errors import (
    ConfigError,
    DonorBusy,
    DonorFinishing,
    Quarantined,
    RequestTooBig,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import Phase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is, and how it is kept.

    Speeds are in tokens a second, measured; `restarts` counts workers replaced. n_slots: requests
    that run at once. confinement: what the worker can no longer do (`confine.PROTECTIONS`).
    """

    state: Literal["ready", "restarting"]
    n_running: int
    n_queued: int
    prefill_tps: float
    decode_tps: float
    restarts: int
    n_slots: int = 0
    confinement: tuple[str, ...] = ()

    @property
    def n_ahead(self) -> int:
        """Requests that must end before a new one begins: none while a slot is free."""
        return max(0, self.n_running + self.n_queued + 1 - max(1, self.n_slots))


class Supervisor:
    """One model's worker, and the requests in flight. Made by `start`, does its work in `run`."""

    def __init__(self, spec: EngineSpec, file: ModelFile, worker: Worker) -> None:
        self._spec = spec
        self._file = file
        self._worker = worker
        self._to_worker: trio.MemorySendChannel[bytes] | None = None
        self._is_open = trio.Event()  # for newcomers
        self._answers: dict[int, Answer] = {}
        self._triage = Triage()
        self._quarantine = Quarantine()
        self._ids = itertools.count()
        self._last_heard_at = 0.0
        self._is_stalled = False
        self._n_failures = 0
        self._n_restarts = 0
        self._speeds = (worker.ready.prefill_tps, worker.ready.decode_tps)
        self.ready = worker.ready

    @classmethod
    async def start(cls, spec: EngineSpec) -> Supervisor:
        """Load the model. Raises `ConfigError`."""
        file = ModelFile(spec.path)
        try:
            return cls(spec, file, await launch_worker(spec, file))
        except BaseException:
            file.close()
            raise

    @property
    def load(self) -> EngineLoad:
        """How busy it is now."""
        n_queued = sum(answer.phase is Phase.QUEUED for answer in self._answers.values())
        prefill_tps, decode_tps = self._speeds
        return EngineLoad(
            state="ready" if self._is_open.is_set() else "restarting",
            n_running=len(self._answers) - n_queued,
            n_queued=n_queued,
            prefill_tps=prefill_tps,
            decode_tps=decode_tps,
            restarts=self._n_restarts,
            n_slots=self._worker.ready.n_slots,
            confinement=self._worker.ready.confinement,
        )

    @property
    def worker_pid(self) -> int:
        """Process id of the worker that runs, or of the last one."""
        return self._worker.child.pid

    async def run(self) -> None:
        """Serve for ever. Cancelled, it leaves no worker and no answer without an end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._patrol)
                while True:
                    how, is_own_fault = await self._serve()
                    logger.warning("the worker of %s died: %s", self._spec.name, how)
                    self._judge(is_own_fault=is_own_fault)
                    await self._worker.aclose()
                    await self._restart()
        finally:
            for answer in self._answers.values():
                answer.fail(DonorFinishing())
            self._answers.clear()
            await self.aclose()

    async def aclose(self) -> None:
        """End the worker. May be called twice."""
        await self._worker.aclose()
        self._file.close()

    # ------------------------------------------------------------ requests

    async def submit(self, asked: Request) -> Answer:
        """Hand a request to the worker, under a number given here. Whoever submits must `forget`.

        Raises `Quarantined`, `RequestTooBig`, `DonorBusy`, and `WorkerCrashed` when there is no
        worker for newcomers for long.
        """
        digest = self._quarantine.digest(asked)
        if self._quarantine.has(digest):
            raise Quarantined
        asked = replace(asked, request=next(self._ids))
        try:
            frame = encode_frame(to_value(asked))
        except BadFrame as error:
            raise RequestTooBig(f"The rendered prompt has {error}.") from None
        with trio.move_on_after(defaults.RESTART_WAIT_S):
            await self._is_open.wait()
        if self._to_worker is None or not self._is_open.is_set():
            raise _no_worker()
        if len(self._answers) >= defaults.MAX_OPEN_EXCHANGES:
            raise DonorBusy
        now = trio.current_time()
        if not self._answers:  # it owed nobody anything until now
            self._last_heard_at = now
        answer = self._answers[asked.request] = Answer(asked, digest, now)
        self._to_worker.send_nowait(frame)
        return answer

    def forget(self, answer: Answer) -> None:
        """Nobody reads this answer any more; the worker drops it after the running step.

        Never waits.
        """
        if self._answers.pop(answer.request, None) is None:
            return
        if self._to_worker is not None:
            self._to_worker.send_nowait(encode_frame(to_value(Cancel(answer.request))))
        self._triage.leave(answer.request)
        self._resume()

    # ------------------------------------------------------------ a worker's life

    async def _serve(self) -> tuple[str, bool]:
        """Carry messages until the worker is dead: how it died, and if it did that itself."""
        # Unbounded, because `forget` may not wait; it holds at most two frames of each request in
        # flight.
        self._to_worker, frames = trio.open_memory_channel[bytes](math.inf)
        self._last_heard_at = trio.current_time()
        self._is_stalled = False
        try:
            self._resume()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, frames)
                death = await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._to_worker = None
            self._is_open = trio.Event()
        return death

    async def _read(self) -> tuple[str, bool]:
        while True:
            try:
                message = from_value(await self._worker.child.receive())
                self._last_heard_at = trio.current_time()
                self._deliver(message)
            except ChildDied as error:
                if self._is_stalled:
                    return f"it said nothing for {defaults.WORKER_STALL_S:g} s", True
                return str(error), error.is_own_fault
            except (BadFrame, ValueError):  # ValueError: a phase that does not exist
                return "it went astray", True

    def _deliver(self, message: ToWorker | FromWorker) -> None:
        if not isinstance(message, Reply):
            raise BadFrame(type(message).__name__)
        if isinstance(message, Done | Embedded | Scored):
            self._n_failures = 0
        if isinstance(message, Done):
            self._speeds = (message.prefill_tps, message.decode_tps)
        answer = self._answers.get(message.request)
        if answer is None:  # cancelled a moment ago
            return
        now = trio.current_time()
        is_last = answer.take(message, now)
        if is_last:
            del self._answers[message.request]
        if is_last or (message.request == self._triage.on_trial and answer.is_proven(now)):
            self._quarantine.clear(answer.digest)
            self._triage.leave(message.request)
            self._resume()

    async def _write(self, frames: trio.MemoryReceiveChannel[bytes]) -> None:
        async for frame in frames:
            try:
                await self._worker.child.send(frame)
            except ChildDied:  # `_read` sees it too, and says how
                return

    async def _restart(self) -> None:
        """Try until there is a worker again."""
        while True:
            # The exponent is bounded only to keep the number small.
            delay_s = defaults.RESTART_DELAY_S * 2 ** min(self._n_failures, 16)
            self._n_failures += 1
            # Jitter: several workers that died of one cause do not load at once.
            await trio.sleep(min(delay_s, defaults.RESTART_DELAY_MAX_S) * random.uniform(0.5, 1.5))
            try:
                self._file.check()
                self._worker = await launch_worker(self._spec, self._file)
            except ConfigError as error:
                logger.warning("%s does not start again: %s", self._spec.name, error.detail)
            else:
                ready = self._worker.ready
                self._speeds = (ready.prefill_tps, ready.decode_tps)
                self._n_restarts += 1
                return

    async def _patrol(self) -> None:
        """Kill a worker that owes answers and says nothing: it is stopped, or lost in a step. And
        let nobody wait too long for a new one.
        """
        while True:
            now = trio.current_time()
            if self._to_worker is None:
                for answer in [*self._answers.values()]:
                    since = answer.requeued_at
                    if since is not None and now - since >= defaults.RESUME_WAIT_S:
                        self._fail(answer, _no_worker())
            elif self._answers and now - self._last_heard_at >= defaults.WORKER_STALL_S:
                self._is_stalled = True
                self._worker.child.kill()
            await trio.sleep(min(defaults.WORKER_STALL_S, defaults.RESUME_WAIT_S) / 10)

    # ------------------------------------------------------------ over a crash

    def _judge(self, *, is_own_fault: bool) -> None:
        """Who killed the worker has failed; the others wait for the next one."""
        computing = self._worker.box.read()
        guilty = self._triage.crash(self._answers, computing, is_own_fault=is_own_fault)
        for request, answer in self._answers.items():
            if request == guilty:
                self._quarantine.condemn(answer.digest)
            elif guilty is not None:
                self._quarantine.clear(answer.digest)
            elif request in computing:
                self._quarantine.note_crash(answer.digest)
        now = trio.current_time()
        for answer in [*self._answers.values()]:
            if self._quarantine.has(answer.digest) or answer.n_resumes >= defaults.MAX_RESUMES:
                self._fail(answer, WorkerCrashed())
            else:
                answer.requeue(now)

    def _resume(self) -> None:
        """Give the worker whoever's turn it is; with nobody left, newcomers may come."""
        if self._to_worker is None:
            return
        now = trio.current_time()
        while turn := self._triage.take():
            for request in turn:
                self._ask_again(self._answers[request], now)
        if self._triage.is_over:
            self._is_open.set()

    def _ask_again(self, answer: Answer, now: float) -> None:
        assert self._to_worker is not None, "nobody can be asked"
        asked = answer.again(now)
        if asked is None:
            answer.finish(now, *self._speeds)
            del self._answers[answer.request]
            self._triage.leave(answer.request)
            return
        try:
            self._to_worker.send_nowait(encode_frame(to_value(asked)))
        except BadFrame:  # with what was delivered it is too large
            self._fail(answer, WorkerCrashed())

    def _fail(self, answer: Answer, error: TokenplaceError) -> None:
        answer.fail(error)
        del self._answers[answer.request]
        self._triage.leave(answer.request)


def _no_worker() -> WorkerCrashed:
    """There is no worker, and nobody knows when there will be."""
    return WorkerCrashed(retry_after_s=defaults.RESTART_DELAY_MAX_S)
