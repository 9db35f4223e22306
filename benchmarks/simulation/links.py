"""Streams in memory that behave as those of a network do. Start at `stream_pair`.

What is sent arrives later, by the path's latency and bandwidth and after any outage, in pieces of
any size; writers wait for readers as with yamux's window. A path that is away swallows silently, as
TCP does: what was sent while it was away arrives when it is back, if the connection still stands.

Nothing here runs by itself: a reader works out when its next bytes are due, and sleeps until then.
What can be done at once is done without a checkpoint: there are thousands of reads in a world.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

WINDOW_BYTES: Final = 256 << 10  # as yamux's
_RETRANSMIT_S: Final = 0.4  # after an outage TCP's next try may be so far off
_CUT_SHARE: Final = 0.5  # of what a choppy path's reader gets at once


@dataclass(slots=True)
class Path:
    """One direction between two hosts, shared by all streams that go there.

    latency_s: of one way. jitter_s: added to it at random, at most. bytes_per_s: what it carries.
    is_choppy: readers get pieces of any size. away_until: nothing arrives before, maybe for ever.
    """

    dice: Random
    latency_s: float = 0.02
    jitter_s: float = 0.0
    bytes_per_s: float = math.inf
    is_choppy: bool = False
    window_bytes: int = WINDOW_BYTES
    away_until: Callable[[], float] = lambda: 0.0
    _free_at: float = 0.0

    def arrival(self, n_bytes: int, now: float) -> float:
        """When what is sent now is there; infinity if it never will be."""
        start = max(now, self._free_at, self.away_until())
        if start > now and start > self._free_at:
            start += self.dice.random() * _RETRANSMIT_S
        if math.isinf(start):
            return math.inf
        self._free_at = start + n_bytes / self.bytes_per_s
        return self._free_at + self.latency_s + self.jitter_s * self.dice.random()


@dataclass(slots=True)
class _Half:
    """One direction of a stream. segments: when each is there, and what; b"" is the end."""

    path: Path
    segments: deque[tuple[float, bytes]] = field(default_factory=deque)
    n_bytes: int = 0  # sent and not read
    last_at: float = 0.0  # nothing overtakes what was sent before
    is_ended: bool = False
    on_change: trio.Event | None = None

    def put(self, data: bytes) -> None:
        self.last_at = max(self.last_at, self.path.arrival(len(data), trio.current_time()))
        self.segments.append((self.last_at, data))
        self.n_bytes += len(data)
        self.change()

    def change(self) -> None:
        if self.on_change is not None:
            self.on_change.set()
            self.on_change = None

    async def wait(self, until: float) -> None:
        """For a change, but no longer."""
        if self.on_change is None:
            self.on_change = trio.Event()
        with trio.move_on_at(until):
            await self.on_change.wait()


@dataclass(eq=False, slots=True)
class MemoryStream:
    """One end; implements `tokenplace.peer.streams.PeerStream`.

    on_close: called once, when this end was closed or reset by its own side. opened_at: the time
    of trio's clock.
    """

    peer_id: str
    remote_ip: str
    is_inbound: bool
    incoming: _Half
    outgoing: _Half
    on_close: Callable[[MemoryStream], None]
    protocol: str
    opened_at: float
    other: MemoryStream | None = None
    is_closed: bool = False
    broken_at: float = math.inf
    _is_end_clean: bool = False

    async def send_all(self, data: bytes) -> None:
        self._check_sending()
        rest = data
        while True:
            room = self.outgoing.path.window_bytes - self.outgoing.n_bytes
            if room > 0 and rest:
                self.outgoing.put(rest[:room])
                rest = rest[room:]
            if not rest:
                return
            await self.outgoing.wait(self.broken_at)
            self._check_sending()

    async def receive_some(self, max_bytes: int) -> bytes:
        half = self.incoming
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError
            now = trio.current_time()
            due_at = half.segments[0][0] if half.segments else math.inf
            if now >= self.broken_at and due_at > now:
                if self._is_end_clean:
                    return b""
                raise trio.BrokenResourceError
            if due_at <= now:
                return self._take(max_bytes)
            await half.wait(min(due_at, self.broken_at))

    def _take(self, max_bytes: int) -> bytes:
        half = self.incoming
        due_at, data = half.segments[0]
        if not data:
            return b""  # and again whenever it is asked
        half.segments.popleft()
        n_bytes = min(max_bytes, len(data))
        if half.path.is_choppy and n_bytes > 1 and half.path.dice.random() < _CUT_SHARE:
            n_bytes = half.path.dice.randint(1, n_bytes - 1)
        if n_bytes < len(data):
            half.segments.appendleft((due_at, data[n_bytes:]))
        half.n_bytes -= n_bytes
        half.change()  # a writer may wait for room
        return data[:n_bytes]

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sending()
        self._end()

    async def aclose(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._end()
        self.incoming.change()
        self.on_close(self)

    async def reset(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.incoming.change()
        self.on_close(self)
        assert self.other is not None, "streams come in pairs"
        arrival = self.outgoing.path.arrival(0, trio.current_time())
        # libp2p does not always tell the end from a reset.
        self.other.break_at(arrival, is_clean=self.outgoing.path.dice.random() < 0.3)

    def break_at(self, when: float, *, is_clean: bool) -> None:
        """From then on nothing more comes or goes; what is there by then can still be read.

        is_clean: it looks like the end of the other side's half.
        """
        if when < self.broken_at:
            self.broken_at, self._is_end_clean = when, is_clean
            self.incoming.change()
            self.outgoing.change()

    def _end(self) -> None:
        if not self.outgoing.is_ended and trio.current_time() < self.broken_at:
            self.outgoing.is_ended = True
            self.outgoing.put(b"")

    def _check_sending(self) -> None:
        if self.is_closed or self.outgoing.is_ended:
            raise trio.ClosedResourceError
        if trio.current_time() >= self.broken_at:
            raise trio.BrokenResourceError


def stream_pair(
    there: Path,
    back: Path,
    *,
    opener: tuple[str, str],
    target: tuple[str, str],
    on_close: Callable[[MemoryStream], None],
    protocol: str,
) -> tuple[MemoryStream, MemoryStream]:
    """The opener's end, then the target's. opener, target: peer id and IP address of each."""
    request, answer, now = _Half(there), _Half(back), trio.current_time()
    mine = MemoryStream(*target, False, answer, request, on_close, protocol, now)
    theirs = MemoryStream(*opener, True, request, answer, on_close, protocol, now)
    mine.other, theirs.other = theirs, mine
    return mine, theirs
