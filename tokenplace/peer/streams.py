"""What a stream to another peer can do, whoever carries it: libp2p, or memory in tests.

Start at `PeerStream`. The exchange and the directory are written against it, never against libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

STREAM_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What every waiting method of a `PeerStream` raises when nothing can come or go any more."""


class PeerStream(Protocol):
    """One bidirectional stream of bytes to one peer.

    Every waiting method raises `trio.BrokenResourceError` when the stream was reset or the
    connection is gone, and `trio.ClosedResourceError` after this side closed it. A reset by the
    other side may also look like the end.
    """

    @property
    def peer_id(self) -> str:
        """The other peer, proven by the transport, in base58."""

    @property
    def remote_ip(self) -> str:
        """The address the other peer's connection comes from, e.g. "203.0.113.7" or "::1"."""

    @property
    def is_inbound(self) -> bool:
        """Whether the other peer opened the connection, whoever opened the stream."""

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`; waits while the other side does not read."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one and at most `max_bytes` bytes; empty at the end of the other side's half."""

    async def send_eof(self) -> None:
        """End our half; reading goes on."""

    async def aclose(self) -> None:
        """Close orderly: what was sent arrives. Never raises."""

    async def reset(self) -> None:
        """Drop the stream at once, both halves.

        Never raises, and runs even while being cancelled.
        """


StreamHandler = Callable[[PeerStream], Awaitable[None]]
"""Called in a task of its own for each inbound stream; the stream is reset when it raises, closed
when it returns.
"""

OpenStream = Callable[[], Awaitable[PeerStream]]
"""Opens a stream to a peer that was chosen before; raises `ConnectFailed`."""


async def receive_exactly(stream: PeerStream, n_bytes: int) -> bytes:
    """The next `n_bytes`. Raises `trio.BrokenResourceError` if the stream ends before that."""
    received = bytearray()
    while len(received) < n_bytes:
        chunk = await stream.receive_some(n_bytes - len(received))
        if not chunk:
            raise trio.BrokenResourceError("the stream ended early")
        received += chunk
    return bytes(received)
