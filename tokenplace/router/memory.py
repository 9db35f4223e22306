"""What this requester knows of donors from asking them. Start at `Memory.ask`: what comes of it is
told to the `Notes` that it returns.

Pure: `now` (trio's clock) is an argument. Here the notes of one attempt go to those who learn from
them: `experience`, `breaker`, `blame` and `affinity`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    DonorBusy,
    DonorFinishing,
    DonorSilent,
    ModelNotOffered,
    PromptMismatch,
    ResumeRejected,
    Scope,
    StaleEpoch,
    TemplateMismatch,
    TokenplaceError,
    UnknownKey,
    Unsupported,
)
from tokenplace.generation import Accepted, Alive, Event, Finished, Phase, Tokens
from tokenplace.router.affinity import Affinity, Prefix
from tokenplace.router.blame import Blame
from tokenplace.router.breaker import Breaker, State
from tokenplace.router.experience import Experience
from tokenplace.router.jitter import jittered, later
from tokenplace.router.policy import Candidate, Standing

# Two heartbeats were missed: whoever was given up had fallen silent.
SILENT_S: Final = 2.5 * defaults.HEARTBEAT_S
PATH_ERRORS: Final = (ConnectFailed, ConnectionLost, DonorSilent)
# The donor no longer does what its statements say: it has to speak again.
# What was to be gone on with does not fit: that may be whose fault it is who began.
CONTINUATION_ERRORS: Final = (PromptMismatch, ResumeRejected)
STATEMENT_ERRORS: Final = (ModelNotOffered, TemplateMismatch, UnknownKey, StaleEpoch)
_WAITING: Final = frozenset({Phase.LOADING, Phase.REQUEUED})
# Of an answer's time, what an app may take to read before its speed says nothing of the donor's.
_APPS_SHARE: Final = 0.2


@dataclass(eq=False)
class Notes:
    """One donor that is asked. wait_s: until it was expected to begin. n_prompt: tokens that it has
    to read, estimated; n_held: those that it was thought to hold already. is_computed: see `Facts`.

    It ends once: by `finished`, `failed`, `outraced` or `left`; what is told after that does not
    count.
    """

    memory: Memory
    candidate: Candidate
    asked_at: float
    n_prompt: int
    prefixes: tuple[Prefix, ...] = ()
    n_held: int = 0
    wait_s: float = 0.0
    is_computed: bool = True
    is_trial: bool = False
    is_over: bool = False
    first_at: float | None = None
    _heard_at: float = -math.inf
    _is_queued: bool = False
    _says_it_waits: bool = False
    _n_cached: int = 0
    _n_tokens: int = 0
    _n_first: int = 0
    _n_choices: int = 1
    _app_s: float = 0.0

    def note(self, event: Event, now: float, read_from: float | None = None) -> None:
        """This has come. read_from: since when it was waited for, if that was not at once."""
        if self.is_over:
            return
        if self.first_at is not None and read_from is not None:
            self._app_s += max(read_from - self._heard_at, 0.0)
        self._heard_at = now
        self.memory.note_heard(self.candidate.donor, now)
        match event:
            case Accepted():
                self._is_queued = self._says_it_waits = event.position > 0
                self.memory.note_position(self, event.position, now)
                self._n_cached = event.n_cached
                self.memory.note_accepted(self, event)
            case Alive():
                self._says_it_waits = event.position > 0 or event.phase in _WAITING
                self.memory.note_position(self, event.position, now)
            case Tokens():
                if self.first_at is None:
                    self.first_at = now
                    self._n_first = len(event.ids)
                    self.memory.note_first_token(self, now)
                self._n_tokens += len(event.ids)
                self._n_choices = max(self._n_choices, event.choice + 1)
            case Finished():
                self.finished(now)

    def finished(self, now: float) -> None:
        """The answer is whole."""
        if self._end():
            self.memory.note_heard(self.candidate.donor, now)
            self.memory.note_finished(self, now)

    def failed(self, error: TokenplaceError, now: float) -> None:
        """This went wrong."""
        if self._end():
            self.memory.note_failed(self, error, now)

    def outraced(self, now: float) -> None:
        """It let wait, and somebody who was asked later was sooner with the first token."""
        if self._end():
            self.memory.note_outraced(self, now)

    def left(self, now: float) -> None:
        """Nobody wants the answer any more."""
        if self._end():
            self.memory.note_at_least(self, now)

    @property
    def silent_since(self) -> float:
        """When it was last heard, or else asked."""
        return max(self._heard_at, self.asked_at)

    @property
    def n_to_read(self) -> int:
        """Tokens that the donor had to read; what it says it did not have to is to its own cost."""
        return max(self.n_prompt - self._n_cached, 0)

    @property
    def says_it_waits(self) -> bool:
        """Was something before it to the last, as the donor says?"""
        return self._says_it_waits

    @property
    def is_queued(self) -> bool:
        """Did it have to wait for others, as it says?"""
        return self._is_queued

    def decoded(self) -> tuple[int, float] | None:
        """How many tokens one choice had after the first, and in which time; None if the app was in
        the way."""
        if self.first_at is None:
            return None
        seconds = self._heard_at - self.first_at
        if self._app_s > _APPS_SHARE * seconds:
            return None
        return (self._n_tokens - self._n_first) // self._n_choices, seconds

    def _end(self) -> bool:
        was_over, self.is_over = self.is_over, True
        if not was_over:
            self.memory.note_over(self)
        return not was_over


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests that would be ahead of a new one, and when it was so."""

    n: int
    at: float


@dataclass
class _Donor:
    """One donor, over all that it offers. n_seats: how many requests of this peer it was seen to
    work on at the same time.
    """

    breaker: Breaker = field(default_factory=Breaker)
    full_until: float = -math.inf
    suspect_until: float = -math.inf
    blamed_at: float = -math.inf
    n_seats: int = 1
    queue: Queue | None = None
    asking: list[Notes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What this requester thinks of a donor, for people. ready_in_s: until it is asked again.
    n_asked: requests that it has now. decode_tps: tokens a second, as measured; None if never.
    """

    standing: Standing
    ready_in_s: float
    n_asked: int
    decode_tps: float | None


class Memory:
    """Of donors, at most `defaults.MAX_DONORS_MEASURED` but for those that are asked now.

    in_doubt: called with a donor that may not be there any more, or not as its statements say.
    """

    def __init__(
        self, dice: Random, key: bytes, in_doubt: Callable[[Candidate, TokenplaceError], None]
    ) -> None:
        """key: see `Affinity`."""
        self.experience = Experience()
        self.affinity = Affinity(key)
        self._blame = Blame()
        self._dice = dice
        self._in_doubt = in_doubt
        self._donors: OrderedDict[str, _Donor] = OrderedDict()
        self._broken: dict[str, tuple[Notes, TokenplaceError]] = {}

    def __len__(self) -> int:
        return len(self._donors)

    # ------------------------------------------------------------ for who chooses

    def is_own_outage(self, now: float) -> bool:
        """Is this machine's own network away, as far as can be told?"""
        return self._blame.is_own(now)

    def standing(self, donor: str, now: float) -> tuple[Standing, float]:
        """May it be asked now, and in how many seconds it is ready by itself?"""
        known = self._donors.get(donor)
        if known is None:
            return Standing.READY, 0.0
        match known.breaker.state(now):
            case State.OPEN:
                return Standing.RESTING, known.breaker.rests_until - now
            case State.HALF_OPEN if known.breaker.is_tried:
                return Standing.RESTING, 0.0
            case State.HALF_OPEN:
                standing = Standing.DUE
            case State.CLOSED:
                standing = Standing.SUSPECT if now < known.suspect_until else Standing.READY
        if now < known.full_until:
            return Standing.COOLING, known.full_until - now
        return standing, 0.0

    def opinion(self, donor: str, now: float) -> Opinion:
        """For people: nothing is decided by it."""
        standing, ready_in_s = self.standing(donor, now)
        return Opinion(standing, ready_in_s, self.n_asked(donor), self.experience.decode_tps(donor))

    def faults(self, donor: str) -> float:
        """The share of its latest answers that were bad; 0 to 1."""
        known = self._donors.get(donor)
        return known.breaker.faults if known else 0.0

    def n_asked(self, donor: str, since: float = -math.inf) -> int:
        """Requests of this peer that the donor has now, of those begun after `since`."""
        known = self._donors.get(donor)
        return sum(each.asked_at > since for each in known.asking) if known else 0

    def n_seats(self, donor: str) -> int:
        """How many requests of this peer it can work on at the same time, as far as was seen."""
        known = self._donors.get(donor)
        return known.n_seats if known else 1

    def queue(self, donor: str) -> Queue | None:
        """How many would be ahead of a new request there, when one of this peer's was told of its
        own place last; None if none ever was.
        """
        known = self._donors.get(donor)
        return known.queue if known else None

    def ask(
        self,
        candidate: Candidate,
        now: float,
        *,
        n_prompt: int,
        prefixes: tuple[Prefix, ...] = (),
        wait_s: float = 0.0,
        is_computed: bool = True,
    ) -> Notes:
        """The donor is asked from now on."""
        n_held = self.affinity.n_held(prefixes, candidate.donor, candidate.artifact, now)
        asking = Notes(self, candidate, now, n_prompt, prefixes, n_held, wait_s, is_computed)
        known = self._of(candidate.donor)
        known.asking.append(asking)
        if known.breaker.state(now) is State.HALF_OPEN and not known.breaker.is_tried:
            known.breaker.begin_trial()
            asking.is_trial = True
        return asking

    # ------------------------------------------------------------ for `Notes`

    def note_heard(self, donor: str, now: float) -> None:
        """Something came from it. The own engine says nothing of the network."""
        if not donor:
            return
        for blamed in self._blame.heard(donor, now):
            asking, error = self._broken.pop(blamed)
            self._in_doubt(asking.candidate, error)
            known = self._of(blamed)
            # Requests that share a connection fail together: that is one fault.
            if now - known.blamed_at > defaults.SUSPECT_S:
                known.blamed_at = now
                known.breaker.note_fault(asking.asked_at, now, self._dice)

    def note_accepted(self, asking: Notes, accepted: Accepted) -> None:
        """It has queued the request, and says what it holds of the prompt."""
        donor, artifact = asking.candidate.donor, asking.candidate.artifact
        known = self._of(donor)
        if accepted.position:
            n_working = sum(each.first_at is not None for each in known.asking)
            known.n_seats = min(known.n_seats, max(n_working, 1))
        if asking.n_held and not accepted.n_cached:
            self.affinity.note_lost(asking.prefixes, donor, artifact)

    def note_position(self, asking: Notes, n_ahead: int, now: float) -> None:
        """So many are before it: often later news than what the donor tells everybody."""
        known = self._of(asking.candidate.donor)
        if asking is max(known.asking, key=lambda each: each.asked_at):
            known.queue = Queue(n_ahead + 1 if n_ahead else 0, now)

    def note_first_token(self, asking: Notes, now: float) -> None:
        """It has read the prompt."""
        donor, artifact = asking.candidate.donor, asking.candidate.artifact
        self.affinity.note_held(asking.prefixes, donor, artifact, now)
        known = self._of(donor)
        n_working = sum(each.first_at is not None for each in known.asking)
        known.n_seats = min(max(known.n_seats, n_working), defaults.MAX_SEATS_SEEN)
        if asking.is_queued and asking.wait_s:
            self.note_at_least(asking, now)  # what of it was waiting is not known
        else:
            self.note_read(asking, now)

    def note_read(self, asking: Notes, now: float) -> None:
        """It has read what it had to, and waited for nobody."""
        candidate, seconds = asking.candidate, now - asking.asked_at
        self.experience.note_first_token(
            candidate.donor,
            candidate.artifact,
            n_prompt=asking.n_to_read,
            seconds=seconds,
            now=now,
        )

    def note_at_least(self, asking: Notes, now: float) -> None:
        """No first token came until now, or waiting is among the time that it took."""
        donor, artifact = asking.candidate.donor, asking.candidate.artifact
        if asking.first_at is None or asking.is_queued:
            self.experience.note_at_least(
                donor,
                artifact,
                n_prompt=asking.n_to_read,
                seconds=now - asking.asked_at - asking.wait_s,
                now=now,
            )

    def note_outraced(self, asking: Notes, now: float) -> None:
        """It let wait until another was sooner: bad of somebody who says that nothing is before the
        request. Of somebody unproven too, whatever it says: pretending to wait costs nothing.
        """
        self.note_at_least(asking, now)
        breaker = self._of(asking.candidate.donor).breaker
        if asking.is_trial or not breaker.is_proven or not asking.says_it_waits:
            breaker.note_fault(asking.asked_at, now, self._dice)

    def note_finished(self, asking: Notes, now: float) -> None:
        """Its answer is whole."""
        donor, artifact = asking.candidate.donor, asking.candidate.artifact
        self._of(donor).breaker.note_good(asking.asked_at)
        if asking.first_at is None and asking.is_computed:  # an answer that comes whole
            self.note_read(asking, now)
        if decoded := asking.decoded():
            n_tokens, seconds = decoded
            self.experience.note_decode(
                donor, artifact, n_tokens=n_tokens, seconds=seconds, now=now
            )

    def note_failed(self, asking: Notes, error: TokenplaceError, now: float) -> None:
        """It has failed, or broken off."""
        donor = asking.candidate.donor
        known = self._of(donor)
        if _is_of_path(asking, error, now):
            known.suspect_until = now + jittered(defaults.SUSPECT_S, self._dice)
            self._blame.broke(donor, asking.silent_since, now)
            self._broken = {d: b for d, b in self._broken.items() if self._blame.is_pending(d)}
            if self._blame.is_pending(donor):
                self._broken[donor] = (asking, error)
            return
        if error.scope is Scope.SELF:
            return  # this peer stops, say
        if not isinstance(error, DeadlineExceeded):  # that may be found on this side
            self.note_heard(donor, now)
        self.note_at_least(asking, now)
        if isinstance(error, STATEMENT_ERRORS):
            self._in_doubt(asking.candidate, error)
        if isinstance(error, DonorFinishing):
            known.full_until = now + jittered(defaults.LIVE_LIFETIME_S, self._dice)
        elif isinstance(error, DonorBusy):
            told_s = error.retry_after_s or defaults.BUSY_RETRY_AFTER_S
            rest_s = min(max(told_s, defaults.MIN_COOL_DOWN_S), defaults.MAX_COOL_DOWN_S)
            known.full_until = now + later(rest_s, self._dice)
        elif isinstance(error, BadFormat) or (
            error.scope is Scope.DONOR
            and not isinstance(error, (Unsupported, *CONTINUATION_ERRORS))
        ):
            known.breaker.note_fault(asking.asked_at, now, self._dice)

    def note_over(self, asking: Notes) -> None:
        """It is not asked any more."""
        known = self._of(asking.candidate.donor)
        known.asking.remove(asking)
        if asking.is_trial:
            known.breaker.end_trial()

    def _of(self, donor: str) -> _Donor:
        known = self._donors.setdefault(donor, _Donor())
        self._donors.move_to_end(donor)
        if len(self._donors) > defaults.MAX_DONORS_MEASURED:
            idle = next((d for d, each in self._donors.items() if not each.asking), donor)
            if idle != donor:
                del self._donors[idle]
        return known


def _is_of_path(asking: Notes, error: TokenplaceError, now: float) -> bool:
    """May only the path to the donor have broken?"""
    if isinstance(error, DeadlineExceeded):
        return now - asking.silent_since > SILENT_S
    return isinstance(error, PATH_ERRORS)
