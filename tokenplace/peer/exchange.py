"""One exchange as a table, for both roles. Start at `REQUESTER` and `DONOR`, then `Exchange`.

Pure: `now` is an argument, in seconds of any steady clock. What frames hold is checked by
`contents.py` and `whole.py`. `requester.py` and `donor.py` tell an `Exchange` whatever happens,
wait no longer than it says, and count by the state it ends in. The diagrams of docs/protocol.md,
section 5, are drawn from the tables.

Differs from most state machines: deadlines are inputs. Those that run in a state are those that its
row has an answer to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError, TokenplaceError
from tokenplace.generation import Accepted, Alive, Finished, GenerateRequest, Phase, Tokens
from tokenplace.operations import Reply, Request
from tokenplace.peer.contents import Contents
from tokenplace.peer.frames import Frame
from tokenplace.peer.movement import Movement
from tokenplace.peer.whole import Answered, Part, Taken, WholeContents


class State(StrEnum):
    """Where an exchange stands. The last four are ends."""

    # only a requester's
    OPENING = "opening"  # seals the request and opens a stream
    RENEWING = "renewing"  # was refused, and looks for newer keys and a newer epoch
    REOPENING = "reopening"  # as `opening`, once more and for the last time
    ASKED_AGAIN = "asked_again"
    # only a donor's
    READING = "reading"  # the request is coming in
    REFUSING = "refusing"  # says no in clear
    # both; what a requester has received, a donor has put into its outbox
    ASKED = "asked"  # the request was sent, or opened; nobody has said yes or no
    ACCEPTED = "accepted"  # no token yet, or requeued since the last one
    ANSWERING = "answering"
    WORKING = "working"  # on an answer that comes whole
    ENDING = "ending"  # `finished` or `answered` was said; the final chunk is not over
    FAILING = "failing"  # the same with `error`

    FINISHED = "finished"
    FAILED = "failed"  # by a refusal or an error that was said
    LOST = "lost"  # the other side went, fell silent, or broke the protocol
    CANCELLED = "cancelled"  # this side did not want it any more


class Input(StrEnum):
    """What can happen to an exchange, besides a deadline's passing."""

    OPENED = "stream open"
    UNREACHABLE = "no connection"
    UNSENDABLE = "request over a limit"
    OUTDATED = "refusal as outdated"  # `unknown_key` or `stale_epoch`, received
    REFUSED = "refusal"  # any other, received; or any that is to be sent
    RENEWED = "newer keys or epoch"
    NOT_RENEWED = "nothing newer"
    REQUEST = "request opened"
    ACCEPTED = "accepted"
    ALIVE = "alive"
    REQUEUED = "requeued"  # `alive` with this phase
    TOKENS = "tokens"
    FINISHED = "finished"
    TAKEN = "taken"
    PART = "part"
    ANSWERED = "answered"
    ERROR = "error"
    CHUNK = "chunk over"  # received, and not the final one
    END = "end"  # the final chunk was received or sent whole, or a refusal sent
    BYTES = "bytes"  # from the requester, after its request
    GONE = "stream gone"  # it ended, or was reset
    WRONG = "protocol error"
    CANCEL = "cancel"


class Limit(StrEnum):
    """Deadlines, as inputs too: each is what happens when it has passed."""

    CONNECT = "connecting late"
    RENEW = "renewal late"
    REQUEST = "request late"
    IDLE = "silence"
    ACCEPT = "yes or no late"
    FIRST_TOKEN = "first token late"
    STILL = "nothing moves"
    PROGRESS = "next token late"
    WORK = "answer or next part late"
    WRITE = "reading late"
    WHOLE = "answer too long"

    def seconds(self, eta_ms: int = 0) -> float:
        """How long it is; `eta_ms` is what `accepted` said."""
        match self:
            case Limit.CONNECT | Limit.RENEW:
                return defaults.CONNECT_TIMEOUT_S
            case Limit.REQUEST:
                return defaults.REQUEST_TIMEOUT_S
            case Limit.IDLE:
                return defaults.IDLE_TIMEOUT_S
            case Limit.ACCEPT:
                return defaults.ACCEPT_TIMEOUT_S
            case Limit.FIRST_TOKEN:
                eta_s = eta_ms / 1000
                return defaults.FIRST_TOKEN_ETA_FACTOR * eta_s + defaults.FIRST_TOKEN_GRACE_S
            case Limit.STILL:
                return defaults.STILL_TIMEOUT_S
            case Limit.PROGRESS:
                return defaults.PROGRESS_TIMEOUT_S
            case Limit.WORK:
                return defaults.MAX_WAIT_S
            case Limit.WRITE:
                return defaults.WRITE_TIMEOUT_S
            case Limit.WHOLE:
                return defaults.MAX_EXCHANGE_S


Row = Mapping[Input | Limit, State]
Table = Mapping[State, Row]

# The frames' part is the same for both roles.
_IN_ACCEPTED: Final[Row] = {
    Input.ALIVE: State.ACCEPTED,
    Input.REQUEUED: State.ACCEPTED,
    Input.TOKENS: State.ANSWERING,
    Input.FINISHED: State.ENDING,
    Input.ERROR: State.FAILING,
}
_IN_ANSWERING: Final[Row] = {
    Input.ALIVE: State.ANSWERING,
    Input.REQUEUED: State.ACCEPTED,
    Input.TOKENS: State.ANSWERING,
    Input.FINISHED: State.ENDING,
    Input.ERROR: State.FAILING,
}
_IN_WORKING: Final[Row] = {
    Input.ALIVE: State.WORKING,
    Input.PART: State.WORKING,
    Input.ANSWERED: State.ENDING,
    Input.ERROR: State.FAILING,
}

_OPENING: Final[Row] = {
    Input.UNSENDABLE: State.FAILED,
    Input.WRONG: State.LOST,  # a donor whose key cannot be used
    Input.UNREACHABLE: State.LOST,
    Limit.CONNECT: State.LOST,
    Input.CANCEL: State.CANCELLED,
}
_LISTENING: Final[Row] = {
    Input.GONE: State.LOST,
    Input.WRONG: State.LOST,
    Limit.IDLE: State.LOST,
    Limit.WHOLE: State.LOST,
    Input.CANCEL: State.CANCELLED,
}
_ASKED: Final[Row] = {
    Input.REFUSED: State.FAILED,
    Input.ACCEPTED: State.ACCEPTED,
    Input.TAKEN: State.WORKING,
    Input.ERROR: State.FAILING,
    **_LISTENING,
    Limit.ACCEPT: State.LOST,
}
_CLOSING: Final[Row] = {Input.WRONG: State.LOST, Input.CANCEL: State.CANCELLED}

REQUESTER: Final[Table] = {
    State.OPENING: {Input.OPENED: State.ASKED, **_OPENING},
    State.ASKED: {Input.OUTDATED: State.RENEWING, Input.CHUNK: State.ASKED, **_ASKED},
    State.RENEWING: {
        Input.RENEWED: State.REOPENING,
        Input.NOT_RENEWED: State.FAILED,
        Limit.RENEW: State.FAILED,
        Input.CANCEL: State.CANCELLED,
    },
    State.REOPENING: {Input.OPENED: State.ASKED_AGAIN, **_OPENING},
    State.ASKED_AGAIN: {Input.OUTDATED: State.FAILED, Input.CHUNK: State.ASKED_AGAIN, **_ASKED},
    State.ACCEPTED: {
        Input.CHUNK: State.ACCEPTED,
        **_IN_ACCEPTED,
        **_LISTENING,
        Limit.FIRST_TOKEN: State.LOST,
        Limit.STILL: State.LOST,
    },
    State.ANSWERING: {
        Input.CHUNK: State.ANSWERING,
        **_IN_ANSWERING,
        **_LISTENING,
        Limit.PROGRESS: State.LOST,
    },
    State.WORKING: {
        Input.CHUNK: State.WORKING,
        **_IN_WORKING,
        **_LISTENING,
        Limit.WORK: State.LOST,
    },
    State.ENDING: {Input.END: State.FINISHED, **_CLOSING},
    State.FAILING: {Input.END: State.FAILED, **_CLOSING},
}
"""What may happen to a requester in which state, and where it leads. The first row is the start;
states without a row are ends.
"""

_SENDING: Final[Row] = {
    Input.GONE: State.LOST,
    Limit.WRITE: State.LOST,
    Input.CANCEL: State.CANCELLED,
}
_SERVING: Final[Row] = {Input.BYTES: State.LOST, **_SENDING}

DONOR: Final[Table] = {
    State.READING: {
        Input.REQUEST: State.ASKED,
        Input.REFUSED: State.REFUSING,
        Input.GONE: State.LOST,
        Limit.REQUEST: State.LOST,
        Input.CANCEL: State.CANCELLED,
    },
    State.REFUSING: {Input.END: State.FAILED, **_SENDING},
    State.ASKED: {
        Input.ACCEPTED: State.ACCEPTED,
        Input.TAKEN: State.WORKING,
        Input.ERROR: State.FAILING,
        Limit.WHOLE: State.FAILING,
        **_SERVING,
    },
    State.ACCEPTED: {**_IN_ACCEPTED, Limit.WHOLE: State.FAILING, **_SERVING},
    State.ANSWERING: {**_IN_ANSWERING, Limit.WHOLE: State.FAILING, **_SERVING},
    State.WORKING: {**_IN_WORKING, Limit.WHOLE: State.FAILING, **_SERVING},
    State.ENDING: {Input.END: State.FINISHED, **_SERVING},
    State.FAILING: {Input.END: State.FAILED, **_SERVING},
}
"""The same for a donor."""

FRAMES: Final[Mapping[type[Frame], Input]] = {
    Accepted: Input.ACCEPTED,
    Alive: Input.ALIVE,
    Tokens: Input.TOKENS,
    Finished: Input.FINISHED,
    Taken: Input.TAKEN,
    Part: Input.PART,
    Answered: Input.ANSWERED,
}
# What a donor, or an engine, says. Where the table has no answer to it, the protocol is broken;
# where it has none to anything else, our own program is wrong.
_SAID: Final = frozenset(
    {*FRAMES.values(), Input.REQUEUED, Input.ERROR, Input.CHUNK, Input.END}
    | {Input.OUTDATED, Input.REFUSED}
)
_ENDS_OF_ANSWERS: Final = frozenset({State.ENDING, State.FAILING})
# They prove life, no progress: a state's own limit runs on.
_HEARTBEATS: Final = frozenset({Input.ALIVE, Input.CHUNK})


class Exchange:
    """One exchange, as one side sees it."""

    def __init__(self, table: Table, now: float) -> None:
        """table: `REQUESTER` or `DONOR`."""
        self.state = next(iter(table))
        self._table = table
        self._moved_at = self._asked_at = self._touched_at = self._progressed_at = now
        self._contents: Contents | WholeContents | None = None  # once it is known what was asked
        self._eta_ms = 0
        self._movement = Movement(now)
        self._n_requeues = 0
        self._wait_left_s = defaults.MAX_WAIT_S

    @property
    def is_ended(self) -> bool:
        """Is it over, whichever way?"""
        return self.state not in self._table

    def can(self, what: Input | Limit) -> bool:
        """Does the table have an answer to this now?"""
        return what in self._table.get(self.state, {})

    def on(self, what: Input | Limit, now: float) -> None:
        """Something has happened. An exchange ends once: what happens later changes nothing.

        Raises `RemoteProtocolError` for what must not be said now.
        """
        if self.is_ended:
            return
        was_waiting = self.state is State.ACCEPTED
        self.state = self._next(what)
        self._n_requeues += what is Input.REQUEUED
        is_renewed = what is not Input.REQUEUED or self._n_requeues <= defaults.MAX_REQUEUES
        if what not in _HEARTBEATS and is_renewed:
            self._moved_at = now
            self._movement.renew(now)
        if what in (Input.OPENED, Input.REQUEST):
            self._asked_at = self._touched_at = self._progressed_at = now
        elif what is Input.TOKENS:
            if was_waiting:
                self._wait_left_s -= now - self._progressed_at
            self._progressed_at = now

    def _next(self, what: Input | Limit) -> State:
        state = self._table.get(self.state, {}).get(what)
        if state is None:
            assert what in _SAID, f"{what} in an exchange that is {self.state}"
            raise RemoteProtocolError(f"{what}, in an exchange that is {self.state}")
        return state

    # ------------------------------------------------------------ frames

    def expect(self, request: Request) -> None:
        """What was asked. Before that no frame but an error can be taken."""
        if isinstance(request, GenerateRequest):
            self._contents = Contents(request)
        else:
            self._contents = WholeContents(request)

    @property
    def reply(self) -> Reply | None:
        """The answer, if it is one that comes whole and has come."""
        return self._contents.reply if isinstance(self._contents, WholeContents) else None

    def take_chunk(self, frames: Sequence[Frame], now: float, *, is_final: bool) -> None:
        """A chunk has come. The answer's end is the last frame of the final chunk and stands
        nowhere else, or `RemoteProtocolError` is raised.
        """
        for frame in frames:
            self.take(frame, now)
        self.on(Input.END if is_final else Input.CHUNK, now)

    def take(self, frame: Frame, now: float) -> None:
        """A frame has come, or is about to be sent. Raises `RemoteProtocolError` for one that must
        not come now, and what `Contents` or `WholeContents` raises for one that does not fit the
        request.
        """
        if self.is_ended:
            return
        what = input_of(frame)
        self._next(what)
        if not isinstance(frame, (Alive, TokenplaceError)):
            assert self._contents is not None, "an answer before it is known what was asked"
            self._contents.take(frame)
        if isinstance(frame, Accepted):
            self._eta_ms = frame.eta_ms
            self._movement.start(frame)
        elif isinstance(frame, Alive):
            self._movement.note(frame, now)
            if what is Input.ALIVE and frame.eta_ms:
                # An honest donor learns that it takes longer than it thought. A lie gains no more
                # by it than by a promise: `STILL` and `MAX_WAIT_S` run on.
                waited_ms = round((now - self._moved_at) * 1000)
                self._eta_ms = max(self._eta_ms, waited_ms + frame.eta_ms)
        self.on(what, now)

    # ------------------------------------------------------------ deadlines

    def touch(self, now: float) -> None:
        """Bytes came, or are about to be sent: `IDLE` and `WRITE` count from now."""
        self._touched_at = now

    def due_at(self, limit: Limit) -> float:
        """When this limit passes, one that runs in the present state."""
        assert self.can(limit), f"{limit} does not run in an exchange that is {self.state}"
        match limit:
            case Limit.IDLE | Limit.WRITE:
                start = self._touched_at
            case Limit.WHOLE:
                start = self._asked_at
            case Limit.STILL:
                return self._movement.due_at
            case _:
                start = self._moved_at
        due_at = start + limit.seconds(self._eta_ms)
        if limit is Limit.FIRST_TOKEN:
            due_at = min(due_at, self._progressed_at + self._wait_left_s)
        if limit is Limit.WRITE and self.state in _ENDS_OF_ANSWERS:
            due_at = min(due_at, self._moved_at + defaults.ENDING_TIMEOUT_S)
        return due_at

    def next_limit(self) -> Limit:
        """The limit that passes first, of those that run in the present state; of two at the same
        time the one whose entry comes first: silence explains a lack of progress.
        """
        limits = [what for what in self._table[self.state] if isinstance(what, Limit)]
        return min(limits, key=self.due_at)


def input_of(frame: Frame) -> Input:
    """What this frame is to the table."""
    if isinstance(frame, TokenplaceError):
        return Input.ERROR
    if isinstance(frame, Alive) and frame.phase is Phase.REQUEUED:
        return Input.REQUEUED
    return FRAMES[type(frame)]
