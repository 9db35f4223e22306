"""What a donor has yet to send of one answer, and when. Start at `Outbox`.

Pure: `now` is an argument, in seconds of any steady clock (docs/protocol.md, section 5). The first
token leaves at once; later ones leave together on a tick, counted from the first: that is a fifth
of the CPU, and hides when each was made. What does not fit one chunk leaves in several at once.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from tokenplace import defaults
from tokenplace.errors import DonorInternalError
from tokenplace.generation import Accepted, Alive, Logprob, Phase, Tokens
from tokenplace.peer.frames import Frame, encode_frame
from tokenplace.peer.whole import Part, Taken
from tokenplace.sealing.answer import MAX_FRAMES_BYTES

_TOKENS_BYTES: Final = MAX_FRAMES_BYTES - defaults.CHUNK_RESERVE_BYTES
# What msgpack adds, at the most: to one frame (its names, two numbers, three lists' headers), to an
# id and its bytes, to a log-probability with its list, and to each entry of that.
_FRAME_BYTES: Final = 80
_TOKEN_BYTES: Final = 10
_LOGPROB_BYTES: Final = 11
_TOP_BYTES: Final = 16


@dataclass(slots=True)
class _Pending:
    """Tokens of one choice that have not left; the first of them has this index. sizes: of each, in
    bytes of a chunk, at the most.
    """

    choice: int
    index: int
    ids: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, tokens: Tokens, sizes: list[int]) -> None:
        self.ids += tokens.ids
        self.pieces += tokens.pieces
        self.logprobs += tokens.logprobs
        self.sizes += sizes

    def take(self, room: int) -> Tokens | None:
        """The first tokens, as many as have room; None if not even one has."""
        n = 0
        room -= _FRAME_BYTES
        for size in self.sizes:
            room -= size
            if room < 0:
                break
            n += 1
        if not n:
            return None
        taken = Tokens(
            self.choice,
            self.index,
            tuple(self.ids[:n]),
            tuple(self.pieces[:n]),
            tuple(self.logprobs[:n]),
        )
        self.index += n
        del self.ids[:n], self.pieces[:n], self.logprobs[:n], self.sizes[:n]
        return taken


def _sizes(tokens: Tokens) -> list[int]:
    sizes = [len(piece) + _TOKEN_BYTES for piece in tokens.pieces]
    for number, logprob in enumerate(tokens.logprobs):
        sizes[number] += _LOGPROB_BYTES + sum(len(top.piece) + _TOP_BYTES for top in logprob.top)
    return sizes


class Outbox:
    """Frames in, chunks out. Who puts frames in has checked their order (`exchange.Exchange`)."""

    def __init__(self, now: float) -> None:
        self.due_at = now + defaults.HEARTBEAT_S
        """When the next chunk should leave: `take` it then."""
        self._first = b""  # `accepted` or `taken`
        self._is_first_said = False
        self._parts: deque[bytes] = deque()
        self._status = Alive(Phase.QUEUED, 0.0, 0)
        self._status_at = now
        self._is_status_due = False
        self._max_new = 1
        self._n_tokens = 0  # of the choice that is furthest
        self._ticks_from: float | None = None
        self._tokens_left_at = now
        self._pending: dict[int, _Pending] = {}  # by choice, who waits for longest first
        self._n_bytes = 0  # that they take, at the most
        self._end: bytes | None = None

    def put(self, frame: Frame, now: float) -> None:
        """One more frame to send. `due_at` moves forward if it cannot wait.

        Raises `DonorInternalError` for a token whose bytes do not fit a chunk.
        """
        match frame:
            case Tokens():
                self._put_tokens(frame, now)
            case Alive():
                self._set_status(frame, now)
                # It renews the requester's deadline; every other phase can wait for a heartbeat.
                if frame.phase is Phase.REQUEUED:
                    self._is_status_due = True
                    self.due_at = now
            case Accepted():
                self._put_first(frame, now)
                self._max_new = frame.max_new
                phase = Phase.QUEUED if frame.position else Phase.PREFILL
                self._set_status(Alive(phase, 0.0, frame.position, frame.eta_ms), now)
            case Taken():
                self._put_first(frame, now)
            case Part():
                self._parts.append(encode_frame(frame))
                self.due_at = now
            case _:  # Finished, Answered or an error
                self._end = encode_frame(frame)
                self.due_at = now

    def _set_status(self, status: Alive, now: float) -> None:
        self._status, self._status_at = status, now

    def _status_now(self, now: float) -> Alive:
        """The status as it was told last, its eta less the time since."""
        passed_ms = round((now - self._status_at) * 1000)
        return replace(self._status, eta_ms=max(0, self._status.eta_ms - passed_ms))

    def _put_first(self, frame: Accepted | Taken, now: float) -> None:
        self._first = encode_frame(frame)
        self._is_first_said = True
        self.due_at = now

    def _put_tokens(self, tokens: Tokens, now: float) -> None:
        sizes = _sizes(tokens)
        if max(sizes) + _FRAME_BYTES > _TOKENS_BYTES:
            raise DonorInternalError("a token is too long to be sent")
        if self._ticks_from is None:
            self._ticks_from = self.due_at = now
        elif not self._pending:
            self.due_at = min(self.due_at, self._next_tick(self._ticks_from, now))
        if tokens.choice not in self._pending:
            self._pending[tokens.choice] = _Pending(tokens.choice, tokens.index)
            self._n_bytes += _FRAME_BYTES
        self._pending[tokens.choice].add(tokens, sizes)
        self._n_bytes += sum(sizes)
        if self._n_bytes > _TOKENS_BYTES:
            self.due_at = now

    def take(self, now: float) -> tuple[bytes, bool]:
        """The frames of one chunk, and whether it is the final one; with nothing to say, a
        heartbeat.

        Before `accepted` or `taken` a heartbeat is a chunk without frames, since these must be the
        first.
        """
        parts = [self._first]
        self._first = b""
        if self._parts:
            return self._take_parts(parts, now)
        if self._pending:
            parts += self._take_tokens()
            self._tokens_left_at = now
        if self._pending:
            return b"".join(parts), False  # what is left is due at once: `due_at` stays
        self.due_at = now + defaults.HEARTBEAT_S
        if self._end is not None:
            parts.append(self._end)
            return b"".join(parts), True
        if self._is_status_due or (self._is_first_said and not any(parts)):
            parts.append(encode_frame(self._status_now(now)))
            if self._is_status_due:
                self._is_status_due = False
                # It was requeued once.
                self._set_status(replace(self._status_now(now), phase=Phase.QUEUED), now)
        return b"".join(parts), False

    def _take_parts(self, frames: list[bytes], now: float) -> tuple[bytes, bool]:
        """Parts of an answer that comes whole, and its end, as many as have room."""
        room = MAX_FRAMES_BYTES - sum(map(len, frames))
        while self._parts and len(self._parts[0]) <= room:
            frames.append(self._parts.popleft())
            room -= len(frames[-1])
        is_final = not self._parts and self._end is not None and len(self._end) <= room
        if is_final and self._end is not None:
            frames.append(self._end)
        is_more = bool(self._parts) or (self._end is not None and not is_final)
        self.due_at = now if is_more else now + defaults.HEARTBEAT_S
        return b"".join(frames), is_final

    def _take_tokens(self) -> list[bytes]:
        """A frame for each choice, until the chunk is full."""
        frames: list[bytes] = []
        room = _TOKENS_BYTES
        for pending in list(self._pending.values()):
            tokens = pending.take(room)
            if tokens is not None:
                frames.append(encode_frame(tokens))
                self._n_tokens = max(self._n_tokens, pending.index)
                room -= len(frames[-1])
            if pending.ids:
                break
            del self._pending[pending.choice]
        self._n_bytes = sum(sum(each.sizes) + _FRAME_BYTES for each in self._pending.values())
        self._status = Alive(Phase.DECODE, min(1.0, self._n_tokens / self._max_new), 0)
        return frames

    def _next_tick(self, start: float, now: float) -> float:
        """When a token made now leaves: on the next tick, or at once if the last tick has just
        passed unused. An engine that keeps the same ticks delivers a moment after each.
        """
        last = start + math.floor((now - start) / defaults.TOKEN_TICK_S) * defaults.TOKEN_TICK_S
        is_unused = last - self._tokens_left_at > defaults.TOKEN_TICK_SLACK_S
        if is_unused and now - last <= defaults.TOKEN_TICK_SLACK_S:
            return now
        tick = last + defaults.TOKEN_TICK_S
        # By rounding the tick that has just been used may look like the next one.
        is_used = tick - self._tokens_left_at < defaults.TOKEN_TICK_SLACK_S
        return tick + defaults.TOKEN_TICK_S if is_used else tick
