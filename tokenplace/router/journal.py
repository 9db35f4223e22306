"""The latest requests of this peer's own apps, and what became of each. Start at `Journal`.

In memory alone, bounded, and without any text of a prompt or an answer: what a request is called,
which model it asked for, which donors were asked, and why. `Recorded` writes down when a request
begins and ends, the router each attempt.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
import trio.abc

from tokenplace.defaults import ATTEMPTS_KEPT, REQUESTS_KEPT
from tokenplace.errors import TokenplaceError
from tokenplace.generation import Event, GenerateRequest
from tokenplace.operations import (
    Answerer,
    CountRequest,
    Embeddings,
    EmbedRequest,
    Request,
    ScoreRequest,
    Scores,
)
from tokenplace.router.attempts import Attempt, Outcome, Progress
from tokenplace.router.histogram import Histogram
from tokenplace.router.journal_lines import log_attempt, log_request

log = logging.getLogger(__name__)

PART_SEPARATOR: Final = "."  # between a request's id and the number of one of its prompts
MODEL_CHARS: Final = 64  # of a model's name as an app wrote it, which may be anything
# Seconds until a donor has accepted or sent its first token: from this machine to a long queue.
WAIT_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ATTEMPTS_BOUNDS: Final = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0)
KINDS: Final = {
    GenerateRequest: "generate",
    EmbedRequest: "embed",
    CountRequest: "count",
    ScoreRequest: "score",
}


@dataclass
class Record:
    """One request. at: unix seconds; started, ended: trio's clock. outcome: None while it runs.

    attempts: those that have ended, the latest `defaults.ATTEMPTS_KEPT`. n_attempts: all that were
    begun. running: those that run now; two of them while a hedge does.
    """

    id: str
    kind: str
    model: str
    at: float
    started: float
    outcome: Outcome | None = None
    ended: float | None = None
    n_attempts: int = 0
    attempts: deque[Attempt] = field(default_factory=lambda: deque(maxlen=ATTEMPTS_KEPT))
    running: list[Progress] = field(default_factory=list)

    def total_s(self, now: float) -> float:
        """Seconds that it has taken, so far or in all."""
        return (now if self.ended is None else self.ended) - self.started

    @property
    def n_tokens(self) -> int:
        """New tokens, of all attempts."""
        ended = sum(attempt.n_tokens for attempt in self.attempts)
        return ended + sum(progress.n_tokens for progress in self.running)

    def attempts_at(self, now: float) -> list[Attempt]:
        """Those that have ended, in the order in which they did, then those that run."""
        return [*self.attempts, *(each.attempt(now, is_over=False) for each in self.running)]


class Journal:
    """Records by their ids, oldest first; the oldest is forgotten.

    outcomes: of all attempts since the start. endings: of all requests. accepted_s, first_token_s:
    of attempts, since they began. n_attempts: of each request that asked anybody.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._parts: dict[str, dict[str, Record]] = {}  # by the id that an app knows
        self.outcomes: Counter[Outcome] = Counter()
        self.endings: Counter[Outcome] = Counter()
        self.accepted_s = Histogram(WAIT_BOUNDS_S)
        self.first_token_s = Histogram(WAIT_BOUNDS_S)
        self.n_attempts = Histogram(ATTEMPTS_BOUNDS)

    @property
    def records(self) -> Sequence[Record]:
        """All that are remembered, oldest first."""
        return tuple(self._records.values())

    def records_of(self, request: str) -> list[Record]:
        """The record with this id, and those of its further prompts."""
        return list(self._parts.get(request, {}).values())

    def attempts_of(self, request: str, now: float) -> list[Attempt]:
        """All attempts at it, by the time they began."""
        records = self.records_of(request)
        attempts = [attempt for record in records for attempt in record.attempts_at(now)]
        return sorted(attempts, key=lambda attempt: (attempt.at, attempt.number))

    def n_attempts_of(self, request: str) -> int:
        """How many attempts were begun at it."""
        return sum(record.n_attempts for record in self.records_of(request))

    def begin(self, request: Request, at: float, now: float) -> Record:
        """An app asks this."""
        record = Record(request.id, KINDS[type(request)], _shown(request.model), at, now)
        self._records[record.id] = record
        self._parts.setdefault(whole_id(record.id), {})[record.id] = record
        if len(self._records) > REQUESTS_KEPT:
            self._forget(next(iter(self._records)))
        return record

    def _forget(self, request: str) -> None:
        del self._records[request]
        parts = self._parts[whole_id(request)]
        del parts[request]
        if not parts:
            del self._parts[whole_id(request)]

    def end(self, record: Record, outcome: Outcome, now: float) -> None:
        """This became of it."""
        record.outcome, record.ended = outcome, now
        self.endings[outcome] += 1
        if record.n_attempts:
            self.n_attempts.observe(record.n_attempts)
        log_request(log, record, now)

    def note_asked(self, progress: Progress) -> None:
        """A donor is asked."""
        if record := self._records.get(progress.asked.request):
            record.n_attempts += 1
            record.running.append(progress)

    def note_ended(self, progress: Progress, attempt: Attempt) -> None:
        """It has answered, or not."""
        assert attempt.outcome is not None, "it has ended"
        self.outcomes[attempt.outcome] += 1
        if attempt.accepted_s is not None:
            self.accepted_s.observe(attempt.accepted_s)
        if attempt.first_token_s is not None:
            self.first_token_s.observe(attempt.first_token_s)
        if record := self._records.get(attempt.request):
            # By identity: two that have just begun may be equal.
            record.running = [each for each in record.running if each is not progress]
            record.attempts.append(attempt)
        log_attempt(log, attempt)


class Recorded:
    """An `Answerer` around the router that all else stands before: what an app is told is what is
    written down."""

    def __init__(
        self, answerer: Answerer, journal: Journal, wall_clock: Callable[[], float]
    ) -> None:
        self._answerer = answerer
        self._journal = journal
        self._wall_clock = wall_clock

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Event]]:
        """See `Generator`."""
        with self._recorded(request):
            async with self._answerer.generate(request) as events:
                yield events

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Operator`."""
        with self._recorded(request):
            return await self._answerer.embed(request)

    async def count(self, request: CountRequest) -> int:
        """See `Operator`."""
        with self._recorded(request):
            return await self._answerer.count(request)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Operator`."""
        with self._recorded(request):
            return await self._answerer.score(request)

    @contextmanager
    def _recorded(self, request: Request) -> Iterator[None]:
        """The request runs in the block. Who leaves it in peace has the whole answer, be it by its
        last event or by a stop string; an app that hangs up is cancelled there."""
        record = self._journal.begin(request, self._wall_clock(), trio.current_time())
        outcome = Outcome.CANCELLED
        try:
            yield
            outcome = Outcome.FINISHED
        except TokenplaceError as error:
            outcome = Outcome(error.code)
            raise
        except Exception:  # a fault of this program: raised again, it is only written down here
            outcome = Outcome.INTERNAL
            raise
        finally:
            self._journal.end(record, outcome, trio.current_time())


def part_id(request: str, number: int) -> str:
    """What the request for one of several prompts is called; the first has the plain id."""
    return f"{request}{PART_SEPARATOR}{number}" if number else request


def whole_id(part: str) -> str:
    """What the app knows a request by that may be for one of several prompts."""
    return part.partition(PART_SEPARATOR)[0]


def _shown(model: str) -> str:
    """A model's name as it may be shown on a terminal."""
    return "".join(char if char.isprintable() else "?" for char in model[:MODEL_CHARS])
