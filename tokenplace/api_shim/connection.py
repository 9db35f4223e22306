"""One app's connection, with the deadlines that Hypercorn does not have. Start at `Connection`."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final

import trio

from tokenplace.defaults import API_LINGER_S, API_READ_AHEAD_BYTES

GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)  # the app, or our own socket


class Connection:
    """A socket stream as Hypercorn uses it. Four of its faults end here:

    - It sends under a shield without a deadline, so a client that stops reading would pin its
      handler for ever, and no cancellation would end it. Here each write has a deadline, and the
      whole connection gets one when the server ends. TCP_USER_TIMEOUT could do the former, on
      Linux and TCP alone.
    - It cancels no handler when its app hangs up. Here the end of the app's half cancels all.
    - It keeps a connection that its app closed until the idle timer ends. Here it ends at once.
    - It reads nothing while pipelined requests wait, and so sees no hang-up. See `read_ahead`.

    write_timeout_s: a write that takes longer means that the app stopped reading.
    scope: what serves the connection runs in it; shielded, so that `end_by` decides when it ends.
    """

    def __init__(self, stream: trio.SocketStream, write_timeout_s: float) -> None:
        self.socket = stream.socket
        self.scope = trio.CancelScope(shield=True)
        self._stream = stream
        self._write_timeout_s = write_timeout_s
        self._write_scope = trio.CancelScope()
        self._end_at = math.inf
        self._ahead = bytearray()

    def end_by(self, deadline: float) -> None:
        """Whatever the app does, this connection is over at that time (trio's clock)."""
        self._end_at = deadline
        self.scope.deadline = deadline
        self._write_scope.deadline = min(self._write_scope.deadline, deadline)

    def close(self) -> None:
        """Close the socket at once; never waits."""
        self.socket.close()

    async def send_all(self, data: bytes) -> None:
        """Send all; raises `trio.BrokenResourceError` when the deadline has passed."""
        deadline = min(trio.current_time() + self._write_timeout_s, self._end_at)
        with trio.CancelScope(deadline=deadline) as self._write_scope:
            await self._stream.send_all(data)
            return
        self.close()
        raise trio.BrokenResourceError("the app stopped reading")

    async def receive_some(self, max_bytes: int) -> bytes:
        """As `trio.SocketStream.receive_some`; the end cancels `scope`, for nobody reads on."""
        if self._ahead:
            await trio.lowlevel.checkpoint()
            data = bytes(self._ahead[:max_bytes])
            del self._ahead[:max_bytes]
            return data
        return await self._receive(max_bytes)

    async def read_ahead(self) -> None:
        """Take what comes, for `receive_some` to give later, until cancelled: a hang-up shows only
        to who reads. Stops reading when much has come."""
        with suppress(*GONE):
            while len(self._ahead) < API_READ_AHEAD_BYTES:
                self._ahead += await self._receive(API_READ_AHEAD_BYTES)
        await trio.sleep_forever()

    async def linger(self) -> None:
        """Say that nothing more is sent, then drop what comes, not for long: closing under an app
        that is sending resets the connection, and it may never read the last answer."""
        with trio.move_on_after(API_LINGER_S):
            with suppress(*GONE):
                await self._stream.send_eof()
                while await self._receive(API_READ_AHEAD_BYTES):
                    pass

    async def _receive(self, max_bytes: int) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except GONE:
            self.end_by(trio.current_time())
            raise
        if not data:
            self.end_by(trio.current_time())
        return data

    async def send_eof(self) -> None:
        """As `trio.SocketStream.send_eof`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As `trio.SocketStream.aclose`."""
        await self._stream.aclose()
