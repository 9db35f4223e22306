"""One exchange's order and deadlines, for both sides. Start at `TRANSITIONS`, then `Exchange`.

Pure (docs/protocol.md, section 5): the requester checks with it what it receives, the donor what it
is about to send; `Deadlines` is the requester's, `now` an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from tokenplace import defaults
from tokenplace.errors import (
    DeadlineExceeded,
    DonorSilent,
    RemoteProtocolError,
    TokenplaceError,
)
from tokenplace.generation import Accepted, Alive, Finished, GenerateRequest, Phase, Tokens
from tokenplace.peer.frames import Frame


class State(StrEnum):
    """Where an exchange stands, from the moment the request was sent."""

    ASKED = "asked"
    ANSWERING = "answering"
    FINISHED = "finished"
    FAILED = "failed"


TRANSITIONS: Final[dict[State, dict[type[Frame], State]]] = {
    State.ASKED: {Accepted: State.ANSWERING, TokenplaceError: State.FAILED},
    State.ANSWERING: {
        Alive: State.ANSWERING,
        Tokens: State.ANSWERING,
        Finished: State.FINISHED,
        TokenplaceError: State.FAILED,
    },
    State.FINISHED: {},
    State.FAILED: {},
}
"""What may come in which state, and where it leads. Anything else breaks the protocol."""

ENDED: Final = frozenset({State.FINISHED, State.FAILED})


class Exchange:
    """The frames of one answer, in order. Every method raises `RemoteProtocolError` for what must
    not come now.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self.state = State.ASKED
        self._max_new = request.max_tokens or defaults.MAX_NEW_TOKENS
        self._n_tokens = 0
        self._n_bytes = 0

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return self._n_tokens

    def check_chunk(self, frames: Sequence[Frame], *, is_final: bool) -> None:
        """A received chunk: `finished` or `error` is the last frame of the final chunk and stands
        nowhere else.
        """
        for frame in frames:
            self.check(frame)
        if (self.state in ENDED) != is_final:
            raise RemoteProtocolError("its answer ended at the wrong place")

    def check(self, frame: Frame) -> None:
        """One more frame."""
        kind = TokenplaceError if isinstance(frame, TokenplaceError) else type(frame)
        state = TRANSITIONS[self.state].get(kind)
        if state is None:
            raise RemoteProtocolError(f"{kind.__name__} in an exchange that is {self.state}")
        match frame:
            case Tokens():
                self._check_tokens(frame)
            case Accepted():
                if not 1 <= frame.max_new <= self._max_new:
                    raise RemoteProtocolError("it promises more tokens than were asked for")
                self._max_new = frame.max_new
            case Finished():
                # gen/1 asks for one choice; `n` will come with a field of its own.
                if [end.choice for end in frame.choices] != [0]:
                    raise RemoteProtocolError("it finished other choices than were asked for")
        self.state = state

    def _check_tokens(self, tokens: Tokens) -> None:
        if tokens.choice != 0:
            raise RemoteProtocolError("tokens of a choice that was not asked for")
        if tokens.index != self._n_tokens:
            raise RemoteProtocolError("a gap or an overlap in its tokens")
        self._n_tokens += len(tokens.ids)
        self._n_bytes += sum(map(len, tokens.pieces))
        if self._n_tokens > self._max_new or self._n_bytes > defaults.MAX_ANSWER_BYTES:
            raise RemoteProtocolError("a longer answer than it promised")


class Deadlines:
    """Until when the requester waits. `now` in seconds of any steady clock.

    Two run side by side: any byte proves life, only `accepted` and tokens prove progress.
    """

    def __init__(self, now: float) -> None:
        self._ends_at = now + defaults.MAX_EXCHANGE_S
        self._silent_at = now + defaults.IDLE_TIMEOUT_S
        self._stuck_at = now + defaults.ACCEPT_TIMEOUT_S
        self._first_token_s = 0.0

    @property
    def next_at(self) -> float:
        """The earliest of them."""
        return min(self._silent_at, self._stuck_at, self._ends_at)

    def on_bytes(self, now: float) -> None:
        """The donor sent something, or took the last of the request."""
        self._silent_at = now + defaults.IDLE_TIMEOUT_S

    def on_frame(self, frame: Frame, now: float) -> None:
        match frame:
            case Tokens():
                self._stuck_at = now + defaults.PROGRESS_TIMEOUT_S
            case Accepted():
                self._first_token_s = (
                    defaults.FIRST_TOKEN_ETA_FACTOR * frame.eta_ms / 1000
                    + defaults.FIRST_TOKEN_GRACE_S
                )
                self._stuck_at = now + self._first_token_s
            case Alive(phase=Phase.REQUEUED):
                self._stuck_at = now + self._first_token_s

    def error(self, now: float) -> TokenplaceError:
        """What to raise when `next_at` has passed."""
        if now >= self._silent_at:
            return DonorSilent(f"nothing came for {defaults.IDLE_TIMEOUT_S:g} s.")
        return DeadlineExceeded("it was alive, but the answer did not get on.")
