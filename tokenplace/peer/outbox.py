"""What a donor has yet to send of one answer, and when. Start at `Outbox`.

Pure: `now` is an argument, in seconds of any steady clock (docs/protocol.md, section 5). The first
token leaves at once; later ones leave together on a tick, counted from the first: that is a fifth
of the CPU, and hides when each was made.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from tokenplace import defaults
from tokenplace.errors import DonorInternalError
from tokenplace.generation import Accepted, Alive, Phase, Tokens
from tokenplace.peer.frames import Frame, encode_frame
from tokenplace.sealing.answer import MAX_FRAMES_BYTES

_TOKENS_BYTES: Final = MAX_FRAMES_BYTES - defaults.CHUNK_RESERVE_BYTES
_TOKEN_OVERHEAD_BYTES: Final = 10  # msgpack's headers of an id and of its bytes, at the most


class Outbox:
    """Frames in, chunks out. Who puts frames in has checked their order (`exchange.Exchange`)."""

    def __init__(self, now: float) -> None:
        self.due_at = now + defaults.HEARTBEAT_S
        """When the next chunk should leave: `take` it then."""
        self._accepted = b""
        self._is_accepted = False
        self._status = Alive(Phase.QUEUED, 0.0, 0)
        self._is_status_due = False
        self._max_new = 1
        self._n_tokens = 0
        self._ticks_from: float | None = None
        self._tokens_left_at = now
        self._ids: list[int] = []
        self._pieces: list[bytes] = []
        self._n_bytes = 0
        self._end: bytes | None = None

    def put(self, frame: Frame, now: float) -> None:
        """One more frame to send. `due_at` moves forward if it cannot wait.

        Raises `DonorInternalError` for a token whose bytes do not fit a chunk.
        """
        match frame:
            case Tokens():
                self._put_tokens(frame, now)
            case Alive():
                self._status = frame
                # It renews the requester's deadline; every other phase can wait for a heartbeat.
                if frame.phase is Phase.REQUEUED:
                    self._is_status_due = True
                    self.due_at = now
            case Accepted():
                self._accepted = encode_frame(frame)
                self._is_accepted = True
                self._max_new = frame.max_new
                phase = Phase.QUEUED if frame.position else Phase.PREFILL
                self._status = Alive(phase, 0.0, frame.position)
                self.due_at = now
            case _:  # Finished or an error
                self._end = encode_frame(frame)
                self.due_at = now

    def _put_tokens(self, tokens: Tokens, now: float) -> None:
        if max(map(len, tokens.pieces)) + _TOKEN_OVERHEAD_BYTES > _TOKENS_BYTES:
            raise DonorInternalError("a token is too long to be sent")
        if self._ticks_from is None:
            self._ticks_from = self.due_at = now
        elif not self._ids:
            self.due_at = min(self.due_at, self._next_tick(self._ticks_from, now))
        self._ids += tokens.ids
        self._pieces += tokens.pieces
        self._n_bytes += sum(map(len, tokens.pieces)) + len(tokens.ids) * _TOKEN_OVERHEAD_BYTES
        if self._n_bytes > _TOKENS_BYTES:
            self.due_at = now

    def take(self, now: float) -> tuple[bytes, bool]:
        """The frames of one chunk, and whether it is the final one; with nothing to say, a
        heartbeat.

        Before `accepted` a heartbeat is a chunk without frames, since `accepted` must be the first.
        """
        parts = [self._accepted]
        self._accepted = b""
        if self._ids:
            parts.append(self._take_tokens())
            self._tokens_left_at = now
        if self._ids:
            return b"".join(parts), False  # what is left is due at once: `due_at` stays
        self.due_at = now + defaults.HEARTBEAT_S
        if self._end is not None:
            parts.append(self._end)
            return b"".join(parts), True
        if self._is_status_due or (self._is_accepted and not any(parts)):
            parts.append(encode_frame(self._status))
            if self._is_status_due:
                self._is_status_due = False
                self._status = replace(self._status, phase=Phase.QUEUED)  # it was requeued once
        return b"".join(parts), False

    def _take_tokens(self) -> bytes:
        n_taken = n_bytes = 0
        for piece in self._pieces:
            n_bytes += len(piece) + _TOKEN_OVERHEAD_BYTES
            if n_bytes > _TOKENS_BYTES:
                break
            n_taken += 1
        ids, self._ids = self._ids[:n_taken], self._ids[n_taken:]
        pieces, self._pieces = self._pieces[:n_taken], self._pieces[n_taken:]
        self._n_bytes = sum(map(len, self._pieces)) + len(self._ids) * _TOKEN_OVERHEAD_BYTES
        frame = encode_frame(Tokens(0, self._n_tokens, tuple(ids), tuple(pieces)))
        self._n_tokens += n_taken
        self._status = Alive(Phase.DECODE, min(1.0, self._n_tokens / self._max_new), 0)
        return frame

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
