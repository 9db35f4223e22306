"""A `PeerStream` in memory, with a reset and a window as libp2p has. Start at `stream_pair`.

Differs from `trio.testing.memory_stream_pair`, which has neither: its writers never wait, and its
streams only end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

WINDOW_BYTES = 256 << 10  # as yamux's


@dataclass
class _Pipe:
    """One direction. `log` keeps everything that was ever sent."""

    data: bytearray = field(default_factory=bytearray)
    log: bytearray = field(default_factory=bytearray)
    is_ended: bool = False
    is_broken: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def break_(self) -> None:
        self.is_broken = True
        self.change()


@dataclass
class MemoryPeerStream:
    """One end. `max_read` makes each read return no more than so many bytes."""

    peer_id: str
    remote_ip: str
    incoming: _Pipe
    outgoing: _Pipe
    max_read: int = 1 << 30
    is_inbound: bool = False
    was_reset: bool = False
    is_closed: bool = False

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while True:
            self._check(self.outgoing)
            if self.outgoing.is_ended:
                raise trio.ClosedResourceError
            room = WINDOW_BYTES - len(self.outgoing.data)
            self.outgoing.data += rest[:room]
            self.outgoing.log += rest[:room]
            rest = rest[room:]
            changed = self.outgoing.changed
            if not rest:
                self.outgoing.change()
                return
            if room:
                self.outgoing.change()
                changed = self.outgoing.changed
            await changed.wait()

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check(self.incoming)
            if self.incoming.data:
                size = min(max_bytes, self.max_read)
                taken = bytes(self.incoming.data[:size])
                del self.incoming.data[:size]
                self.incoming.change()
                return taken
            if self.incoming.is_ended:
                return b""
            await self.incoming.changed.wait()

    async def send_eof(self) -> None:
        self._check(self.outgoing)
        self.outgoing.is_ended = True
        self.outgoing.change()

    async def aclose(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.outgoing.is_ended = True
        self.outgoing.change()
        self.incoming.change()

    async def reset(self) -> None:
        if self.is_closed:
            return
        self.is_closed = self.was_reset = True
        self.lose()

    def lose(self) -> None:
        """The connection is gone: both ends notice, and what was under way is lost."""
        self.incoming.break_()
        self.outgoing.break_()

    def _check(self, pipe: _Pipe) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError
        if pipe.is_broken:
            raise trio.BrokenResourceError


def stream_pair(
    peer_ids: tuple[str, str] = ("ALICE", "BOB"), remote_ip: str = "203.0.113.7"
) -> tuple[MemoryPeerStream, MemoryPeerStream]:
    """Two ends: the first peer's, connected to the second, and the second's."""
    there, back = _Pipe(), _Pipe()
    return (
        MemoryPeerStream(peer_ids[1], remote_ip, incoming=back, outgoing=there),
        MemoryPeerStream(peer_ids[0], remote_ip, incoming=there, outgoing=back, is_inbound=True),
    )
