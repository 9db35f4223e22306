"""A wire that does whatever a test tells it to. Start at `wild_pair`.

Differs from `memory.py`: what one end sends does not arrive by itself everywhere and unharmed. Each
direction (`Pipe`) may hold everything back, and each piece sent may meet a mishap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import trio


class End(Enum):
    """How one end left; travels behind what it sent before."""

    EOF = auto()
    RESET = auto()


Item = bytes | End
Mishap = Callable[[Item], Sequence[Item]]
"""What becomes of one piece of data, or of the end."""


@dataclass
class Pipe:
    """One direction. `log` keeps what was sent; `window` bytes may be under way."""

    window: int
    is_flowing: bool = True
    mishaps: deque[Mishap] = field(default_factory=deque)
    log: bytearray = field(default_factory=bytearray)
    held: deque[Item] = field(default_factory=deque)
    arrived: bytearray = field(default_factory=bytearray)
    end: End | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def room(self) -> int:
        n_held = sum(len(item) for item in self.held if isinstance(item, bytes))
        return max(0, self.window - n_held - len(self.arrived))

    def send(self, item: Item) -> None:
        """One piece enters the wire."""
        if isinstance(item, bytes):
            self.log += item
        self.held.extend(self.mishaps.popleft()(item) if self.mishaps else [item])
        if self.is_flowing:
            self.deliver()

    def deliver(self, n_bytes: int | None = None) -> None:
        """Let through what is held: all, or so many bytes of the first piece."""
        first = self.held[0] if self.held else End.EOF
        if n_bytes is not None and isinstance(first, bytes) and n_bytes < len(first):
            self.held[0] = first[n_bytes:]
            self._arrive(first[:n_bytes])
        else:
            while self.held:
                self._arrive(self.held.popleft())
        self.change()

    def _arrive(self, item: Item) -> None:
        if isinstance(item, End):
            self.end = self.end or item
        elif self.end is None:
            self.arrived += item

    def cut(self, end: End) -> None:
        """The wire breaks: what is under way is lost."""
        self.held.clear()
        self._arrive(end)
        self.change()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@dataclass
class WildStream:
    """One end, as a `PeerStream`."""

    peer_id: str
    remote_ip: str
    incoming: Pipe
    outgoing: Pipe
    is_inbound: bool = False
    is_closed: bool = False

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            self._check()
            room = self.outgoing.room
            if room:
                self.outgoing.send(data[:room])
                data = data[room:]
            else:
                await self.outgoing.changed.wait()

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if self.incoming.arrived:
                taken = bytes(self.incoming.arrived[:max_bytes])
                del self.incoming.arrived[:max_bytes]
                self.incoming.change()
                return taken
            if self.incoming.end is End.EOF:
                return b""
            await self.incoming.changed.wait()

    async def send_eof(self) -> None:
        self.outgoing.send(End.EOF)

    async def aclose(self) -> None:
        self._leave(End.EOF)

    async def reset(self) -> None:
        self._leave(End.RESET)

    def _leave(self, end: End) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.outgoing.send(end)
            self.incoming.change()

    def _check(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError
        if self.incoming.end is End.RESET:
            raise trio.BrokenResourceError


def wild_pair(
    peer_ids: tuple[str, str], remote_ip: str, window: int
) -> tuple[WildStream, WildStream]:
    """Two ends: the first peer's, who opened it, and the second's."""
    there, back = Pipe(window), Pipe(window)
    return (
        WildStream(peer_ids[1], remote_ip, incoming=back, outgoing=there),
        WildStream(peer_ids[0], remote_ip, incoming=there, outgoing=back, is_inbound=True),
    )
