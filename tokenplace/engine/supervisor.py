"""Keeps one worker running, and carries its messages to those who wait for them.

Start at `Supervisor.run`.

A worker that dies is replaced, after a delay that doubles while it keeps dying. Requests in flight
fail with `WorkerCrashed`; the one that was being computed is remembered. The worker never waits for
a reader of answers: each has a mailbox that holds a whole answer, which `max_new` bounds.
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
from tokenplace.engine.launch import EngineSpec, FileIdentity, identify, launch_worker
from tokenplace.engine.messages import (
    Cancel,
    Done,
    FromWorker,
    NewTokens,
    Progress,
    Queued,
    Ready,
    Refused,
    Submit,
    ToWorker,
    from_value,
    to_value,
)
from tokenplace.engine.process import ChildDied, ChildProcess
from tokenplace.engine.quarantine import Quarantine
from tokenplace.errors import (
    DONOR_ERRORS,
    ConfigError,
    DonorBusy,
    DonorFinishing,
    Quarantined,
    RequestTooBig,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import Alive, Phase

logger = logging.getLogger(__name__)

Mail = Queued | NewTokens | Done | Refused | TokenplaceError


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is.

    Speeds are in tokens a second, measured; `restarts` counts workers replaced.
    """

    state: Literal["ready", "restarting"]
    n_running: int
    n_queued: int
    prefill_tps: float
    decode_tps: float
    restarts: int


class Answer:
    """What has come back for one request. Take its mail with `receive`."""

    def __init__(self, request: int, digest: bytes) -> None:
        self.request = request
        self.digest = digest
        self.phase: Phase | None = None  # None: not yet accepted
        self._progress = 0.0
        self._position = 0
        self._n_tokens = 0
        self._max_new = 0
        self._outbox, self._inbox = trio.open_memory_channel[Mail](math.inf)

    async def receive(self) -> Mail:
        """The next thing that happened; an error is handed over, not raised."""
        return await self._inbox.receive()

    def alive(self) -> Alive:
        """Where the request stands, once it was accepted."""
        assert self.phase is not None, "nothing may come before `Accepted`"
        progress = self._progress
        if self.phase is Phase.DECODE:
            progress = self._n_tokens / self._max_new
        return Alive(self.phase, progress, self._position)

    def take(self, message: Queued | Progress | NewTokens | Done | Refused) -> None:
        """Count a message in, and pass it on. Raises `BadFrame` when the worker goes astray."""
        match message:
            case Queued():
                self.phase, self._position = Phase.QUEUED, message.position
                self._max_new = message.max_new
            case NewTokens():
                end = message.index + len(message.ids)
                if [*map(type, message.pieces)] != [bytes] * len(message.ids):
                    raise BadFrame("tokens without their bytes")
                self._n_tokens = end
            case Refused():
                if message.code not in DONOR_ERRORS:
                    raise BadFrame("an unknown code")
            case Progress():
                self.phase, self._position = Phase(message.phase), message.position
                self._progress = message.progress
                return
        self._outbox.send_nowait(message)

    def fail(self, error: TokenplaceError) -> None:
        """Nothing more will come but this error."""
        self._outbox.send_nowait(error)


class Supervisor:
    """One model's worker, and the requests in flight. Made by `start`, does its work in `run`."""

    def __init__(
        self, spec: EngineSpec, identity: FileIdentity, child: ChildProcess, ready: Ready
    ) -> None:
        self.ready = ready
        self._spec = spec
        self._identity = identity
        self._child = child
        self._to_worker: trio.MemorySendChannel[bytes] | None = None
        self._is_up = trio.Event()
        self._answers: dict[int, Answer] = {}
        self._quarantine = Quarantine()
        self._ids = itertools.count()
        self._last_heard_at = 0.0
        self._n_failures = 0
        self._n_restarts = 0
        self._speeds = (ready.prefill_tps, ready.decode_tps)

    @classmethod
    async def start(cls, spec: EngineSpec) -> Supervisor:
        """Load the model. Raises `ConfigError`."""
        identity = identify(spec.path)
        child, ready = await launch_worker(spec)
        return cls(spec, identity, child, ready)

    @property
    def load(self) -> EngineLoad:
        """How busy it is now."""
        n_queued = sum(answer.phase is Phase.QUEUED for answer in self._answers.values())
        prefill_tps, decode_tps = self._speeds
        return EngineLoad(
            state="ready" if self._is_up.is_set() else "restarting",
            n_running=len(self._answers) - n_queued,
            n_queued=n_queued,
            prefill_tps=prefill_tps,
            decode_tps=decode_tps,
            restarts=self._n_restarts,
        )

    @property
    def worker_pid(self) -> int:
        """Process id of the worker that runs, or of the last one."""
        return self._child.pid

    async def run(self) -> None:
        """Serve for ever. Cancelled, it leaves no worker and no answer without an end."""
        try:
            while True:
                how = await self._serve()
                logger.warning("the worker of %s died: %s", self._spec.name, how)
                self._blame()
                self._fail_all(WorkerCrashed())
                await self._child.aclose()
                await self._restart()
        finally:
            self._fail_all(DonorFinishing())
            await self.aclose()

    async def aclose(self) -> None:
        """End the worker."""
        await self._child.aclose()

    async def submit(self, submit: Submit) -> Answer:
        """Hand a request to the worker, under an id given here. Whoever submits must `forget`.

        Raises `Quarantined`, `RequestTooBig`, `DonorBusy`, and `WorkerCrashed` when there is no
        worker for long.
        """
        digest = self._quarantine.digest(submit)
        if self._quarantine.has(digest):
            raise Quarantined
        answer = Answer(next(self._ids), digest)
        try:
            frame = encode_frame(to_value(replace(submit, request=answer.request)))
        except BadFrame as error:
            raise RequestTooBig(f"The rendered prompt has {error}.") from None
        with trio.move_on_after(defaults.RESTART_WAIT_S):
            await self._is_up.wait()
        if self._to_worker is None:
            raise WorkerCrashed(retry_after_s=defaults.RESTART_DELAY_MAX_S)
        if len(self._answers) >= defaults.MAX_OPEN_EXCHANGES:
            raise DonorBusy
        if not self._answers:  # it owed nobody anything until now
            self._last_heard_at = trio.current_time()
        self._answers[answer.request] = answer
        self._to_worker.send_nowait(frame)
        return answer

    def forget(self, answer: Answer) -> None:
        """Nobody reads this answer any more; the worker drops it after the running step.

        Never waits.
        """
        if self._answers.pop(answer.request, None) is not None and self._to_worker is not None:
            self._to_worker.send_nowait(encode_frame(to_value(Cancel(answer.request))))

    async def _serve(self) -> str:
        """Carry messages until the worker is dead; the answer is how it died."""
        # Unbounded, because `forget` may not wait; it holds at most two frames of each request in
        # flight.
        self._to_worker, frames = trio.open_memory_channel[bytes](math.inf)
        self._is_up.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, frames)
                nursery.start_soon(self._watch)
                how = await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._to_worker = None
            self._is_up = trio.Event()
        return how

    async def _read(self) -> str:
        while True:
            try:
                message = from_value(await self._child.receive())
                self._last_heard_at = trio.current_time()
                self._deliver(message)
            except ChildDied as error:
                return str(error)
            except (BadFrame, ValueError):  # ValueError: a phase that does not exist
                return "it went astray"

    def _deliver(self, message: ToWorker | FromWorker) -> None:
        if not isinstance(message, Queued | Progress | NewTokens | Done | Refused):
            raise BadFrame(type(message).__name__)
        if isinstance(message, Done):
            self._n_failures = 0
            self._speeds = (message.prefill_tps, message.decode_tps)
        answer = self._answers.get(message.request)
        if answer is None:  # cancelled a moment ago
            return
        answer.take(message)
        if isinstance(message, Done | Refused):
            del self._answers[message.request]

    async def _write(self, frames: trio.MemoryReceiveChannel[bytes]) -> None:
        async for frame in frames:
            try:
                await self._child.send(frame)
            except ChildDied:  # `_read` sees it too, and says how
                return

    async def _watch(self) -> None:
        """Kill a worker that owes answers and says nothing: it is stopped, or lost in a step."""
        while True:
            silent_s = trio.current_time() - self._last_heard_at
            if self._answers and silent_s >= defaults.WORKER_STALL_S:
                self._child.kill()
                return
            await trio.sleep(defaults.WORKER_STALL_S / 10)

    async def _restart(self) -> None:
        """Try until there is a worker again."""
        while True:
            # The exponent is bounded only to keep the number small.
            delay_s = defaults.RESTART_DELAY_S * 2 ** min(self._n_failures, 16)
            self._n_failures += 1
            # Jitter: several workers that died of one cause do not load at once.
            await trio.sleep(min(delay_s, defaults.RESTART_DELAY_MAX_S) * random.uniform(0.5, 1.5))
            try:
                if identify(self._spec.path) != self._identity:
                    raise ConfigError(f"{self._spec.path}: it is not the file that was hashed.")
                self._child, ready = await launch_worker(self._spec)
            except ConfigError as error:
                logger.warning("%s does not start again: %s", self._spec.name, error.detail)
            else:
                self._speeds = (ready.prefill_tps, ready.decode_tps)
                self._n_restarts += 1
                return

    def _blame(self) -> None:
        """Remember what the worker was at: one sequence, or prompts it had only begun to read."""
        for answer in self._answers.values():
            if answer.phase is not Phase.QUEUED:
                self._quarantine.note_crash(answer.digest)

    def _fail_all(self, error: TokenplaceError) -> None:
        for answer in self._answers.values():
            answer.fail(error)
        self._answers.clear()
