"""What comes back for one request, whatever workers it takes. Start at `Answer`.

The parent remembers what was delivered, so that a new worker can go on where the old one died:
`Answer.again`. The reader notices no more of it than `Phase.REQUEUED`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import trio

from tokenplace import defaults
from tokenplace.engine.frames import BadFrame
from tokenplace.engine.messages import (
    Count,
    Counted,
    Done,
    Embed,
    Embedded,
    NewTokens,
    Progress,
    Queued,
    Refused,
    Score,
    Scored,
    Submit,
)
from tokenplace.errors import DONOR_ERRORS, ErrorCode, TokenplaceError
from tokenplace.generation import Alive, Phase

Request = Submit | Embed | Count | Score
"""What is asked of a worker; each has an answer of its own."""
Reply = Queued | Progress | NewTokens | Done | Embedded | Counted | Scored | Refused
"""What a worker says of one request."""
Mail = Queued | NewTokens | Done | Embedded | Counted | Scored | Refused | Alive | TokenplaceError

End = int | bytes | str
"""Why a choice ended, as `Done` says it."""

# A resumed request is not at fault when the donor's own new worker cannot go on with it.
_NOT_RESUMED = frozenset({ErrorCode.PROMPT_MISMATCH, ErrorCode.RESUME_REJECTED})


@dataclass
class _Choice:
    """What was delivered of one choice. `before`: by another donor, as the request said."""

    before: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.before) + len(self.ids)


class Answer:
    """What has come back for one request. Take its mail with `receive`.

    phase: None before the worker accepted it. n_resumes: workers that died before it was whole.
    requeued_at: since when it waits for a new one.
    """

    def __init__(self, asked: Request, digest: bytes, now: float) -> None:
        self.asked = asked
        self.digest = digest
        self.phase: Phase | None = None
        self.n_resumes = 0
        self.requeued_at: float | None = None
        self._submitted_at = self._resumed_at = now
        self._first_token_at: float | None = None  # from the worker that has it now
        self._accepted: Queued | None = None
        self._choices = _choices(asked)
        self._ended: dict[int, End] = {}  # before the worker that has it now
        self._n_parts = 0
        self._progress = 0.0
        self._position = 0
        self._first_token_due_at = now
        self._outbox, self._inbox = trio.open_memory_channel[Mail](math.inf)

    @property
    def request(self) -> int:
        """Its number, the same with every worker."""
        return self.asked.request

    async def receive(self) -> Mail:
        """The next thing that happened; an error is handed over, not raised."""
        return await self._inbox.receive()

    def alive(self, now: float) -> Alive:
        """Where the request stands, once it was accepted."""
        assert self.phase is not None, "nothing may come before `Accepted`"
        progress = self._progress
        if self.phase is Phase.DECODE and self._accepted is not None:
            n_wanted = self._accepted.max_new * len(self._choices)
            progress = sum(choice.n for choice in self._choices.values()) / n_wanted
        return Alive(self.phase, progress, self._position, self._eta_ms(now))

    def _eta_ms(self, now: float) -> int:
        """What the worker said last, less the time since."""
        return max(0, round((self._first_token_due_at - now) * 1000))

    def is_proven(self, now: float) -> bool:
        """Has it lived with this worker for longer than with the one before, as far as tokens that
        were computed but not delivered could tell?
        """
        first_at = self._first_token_at
        return first_at is not None and now - first_at >= defaults.PROBATION_S

    # ------------------------------------------------------------ from the worker

    def take(self, message: Reply, now: float) -> bool:
        """Count a message in, and pass it on. True if it was the last one.

        Raises `BadFrame`, and `ValueError` for an unknown phase, when the worker goes astray.
        """
        match message:
            case Queued():
                self._take_queued(message, now)
            case Progress():
                self._take_progress(message, now)
            case NewTokens():
                self._take_tokens(message, now)
            case Embedded() | Scored():
                return self._take_part(message)
            case Done():
                self._outbox.send_nowait(self._whole(message, now))
                return True
            case Refused():
                if message.code not in DONOR_ERRORS:
                    raise BadFrame("an unknown code")
                if self.n_resumes and message.code in _NOT_RESUMED:
                    message = replace(message, code=ErrorCode.WORKER_CRASHED)
                self._outbox.send_nowait(message)
                return True
            case Counted():
                self._outbox.send_nowait(message)
                return True
        return False

    def fail(self, error: TokenplaceError) -> None:
        """Nothing more will come but this error."""
        self._outbox.send_nowait(error)

    def _take_queued(self, message: Queued, now: float) -> None:
        self.phase, self._position = Phase.QUEUED, message.position
        self._first_token_due_at = now + message.eta_ms / 1000
        if self._accepted is None:  # it is told once, however many workers accept
            self._accepted = message
            self._outbox.send_nowait(message)

    def _take_progress(self, message: Progress, now: float) -> None:
        phase, was = Phase(message.phase), self.phase
        self._position = message.position
        self._first_token_due_at = now + message.eta_ms / 1000
        if phase is Phase.REQUEUED:
            self._say_requeued(now)
            return
        self.phase, self._progress = phase, message.progress
        # Who queues the request has to know at once that it has begun.
        if was is Phase.QUEUED and phase is Phase.PREFILL:
            self._outbox.send_nowait(self.alive(now))

    def _take_tokens(self, message: NewTokens, now: float) -> None:
        choice = self._choices.get(message.choice)
        if choice is None or self._accepted is None or message.choice in self._ended:
            raise BadFrame("tokens that nobody asked for")
        n = len(message.ids)
        if message.index != choice.n or message.index + n > self._accepted.max_new:
            raise BadFrame("tokens out of order")
        if [*map(type, message.pieces)] != [bytes] * n or len(message.logprobs) not in (0, n):
            raise BadFrame("tokens without what belongs to them")
        choice.ids += message.ids
        choice.pieces += message.pieces
        if self._first_token_at is None:
            self._first_token_at = now
        self._outbox.send_nowait(message)

    def _take_part(self, message: Embedded | Scored) -> bool:
        """A worker that starts over says again what was delivered: that is left out."""
        n_known = self._n_parts - message.index
        parts = message.vectors if isinstance(message, Embedded) else message.scores
        if n_known < 0:
            raise BadFrame("parts out of order")
        self._n_parts = max(self._n_parts, message.index + len(parts))
        if message.is_last and self._n_parts != _n_parts_wanted(self.asked):
            raise BadFrame("parts are missing")
        if n_known < len(parts) or message.is_last:
            self._outbox.send_nowait(_without_first(message, n_known))
        return message.is_last

    # ------------------------------------------------------------ over several workers

    def requeue(self, now: float) -> None:
        """Its worker died, and it waits for the next."""
        self.n_resumes += 1
        self.requeued_at = now
        self._first_token_at = None
        self._first_token_due_at = now  # nobody knows
        self._say_requeued(now)

    def again(self, now: float) -> Request | None:
        """What to ask the next worker; None if the answer was whole but for its end, which has its
        mail now.
        """
        self.requeued_at = None
        self._resumed_at = now
        asked = self.asked
        if not isinstance(asked, Submit) or self._accepted is None:
            return asked
        for number, choice in self._choices.items():
            if number not in self._ended and (end := self._end_of(choice)) is not None:
                self._ended[number] = end
        unfinished = {n: c for n, c in self._choices.items() if n not in self._ended}
        if not unfinished:
            return None
        if len(unfinished) == asked.n and not any(c.n for c in unfinished.values()):
            return asked
        resume = tuple((n, (*c.before, *c.ids)) for n, c in unfinished.items())
        return replace(asked, resume=resume, prompt_digest=self._accepted.prompt_digest)

    def finish(self, now: float, prefill_tps: float, decode_tps: float) -> None:
        """All was delivered before the worker died, only `Done` was lost."""
        assert self._accepted is not None, "nothing was delivered before it was accepted"
        n_prompt = self._accepted.n_prompt
        end = Done(self.request, (), n_prompt, 0, 0, 0, 0, 0, prefill_tps, decode_tps)
        self._outbox.send_nowait(self._whole(end, now))

    def _say_requeued(self, now: float) -> None:
        """Once each time that it happens (docs/protocol.md, section 5)."""
        if self._accepted is not None:
            self.phase, self._progress = Phase.QUEUED, 0.0
            alive = Alive(Phase.REQUEUED, 0.0, self._position, self._eta_ms(now))
            self._outbox.send_nowait(alive)

    def _end_of(self, choice: _Choice) -> End | None:
        """Why it needs no further token, as far as can be seen from here."""
        assert isinstance(self.asked, Submit), "only generation has choices"
        assert self._accepted is not None, "nothing is resumed that had not begun"
        text = b"".join(choice.pieces)
        found = [(at, stop) for stop in self.asked.stop if (at := text.find(stop)) >= 0]
        if found:
            return min(found)[1]
        return "length" if choice.n >= self._accepted.max_new else None

    def _whole(self, done: Done, now: float) -> Done:
        """The end of the answer as of one worker: usage counted once, time lost included."""
        if not self.n_resumes or self._accepted is None:
            return done
        lost_ms = round((self._resumed_at - self._submitted_at) * 1000)
        n_delivered = sum(len(choice.ids) for choice in self._choices.values())
        has_decoded = n_delivered > done.n_completion
        return replace(
            done,
            ends=tuple(sorted((*self._ended.items(), *done.ends), key=lambda end: end[0])),
            n_cached=self._accepted.n_cached,
            n_completion=n_delivered,
            queue_ms=done.queue_ms + (0 if has_decoded else lost_ms),
            decode_ms=done.decode_ms + (lost_ms if has_decoded else 0),
        )


def _choices(asked: Request) -> dict[int, _Choice]:
    if not isinstance(asked, Submit):
        return {}
    if asked.resume:
        return {number: _Choice(ids) for number, ids in asked.resume}
    return {number: _Choice() for number in range(asked.n)}


def _n_parts_wanted(asked: Request) -> int:
    match asked:
        case Embed(inputs=inputs):
            return len(inputs)
        case Score(ids=ids):
            return len(ids)
        case _:
            return 0


def _without_first(message: Embedded | Scored, n: int) -> Embedded | Scored:
    if isinstance(message, Embedded):
        return replace(
            message,
            index=message.index + n,
            vectors=message.vectors[n:],
            n_tokens=message.n_tokens[n:],
        )
    return replace(
        message, index=message.index + n, scores=message.scores[n:], drawn=message.drawn[n:]
    )
