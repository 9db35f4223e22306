"""A libp2p stream as a `PeerStream`. Start at `Libp2pStream`.

The one place where libp2p's stream errors become trio's. Three things to know: a read or write that
was cancelled leaves the stream usable for a reset, and for nothing else; `send_all` waits for a
reader that pauses, so it needs a deadline; and a writer is not told that the other side has closed,
so who wants no more answer resets the stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from tokenplace import defaults


class Libp2pStream:
    """Implements `tokenplace.peer.streams.PeerStream`."""

    def __init__(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream), "the swarm makes no other streams"
        self._stream = stream
        self._is_closed = False
        self._eof_sent = False
        remote = stream.get_remote_address()
        self._remote_ip = remote[0] if remote else ""

    @property
    def peer_id(self) -> str:
        return self._stream.muxed_conn.peer_id.to_base58()

    @property
    def remote_ip(self) -> str:
        return self._remote_ip

    @property
    def is_inbound(self) -> bool:
        return not self._stream.muxed_conn.is_initiator

    async def send_all(self, data: bytes) -> None:
        if self._is_closed or self._eof_sent:
            raise trio.ClosedResourceError
        try:
            await self._stream.write(data)
        except Exception as error:
            raise self._broken(error) from error

    async def receive_some(self, max_bytes: int) -> bytes:
        if self._is_closed:
            raise trio.ClosedResourceError
        try:
            # Upstream, `NetStream.read` refuses what had arrived when the connection ended.
            return await self._stream.muxed_stream.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except Exception as error:
            raise self._broken(error) from error

    async def send_eof(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError
        self._eof_sent = True
        try:
            await self._stream.close_write()
        except Exception as error:
            raise self._broken(error) from error

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await _quietly(self._stream.close)

    async def reset(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await _quietly(self._stream.reset)

    def _broken(self, error: Exception) -> Exception:
        """Whatever libp2p raised (it raises anything), the caller can do one thing about it."""
        if self._is_closed:
            return trio.ClosedResourceError("the stream was closed meanwhile")
        return trio.BrokenResourceError(type(error).__name__)


async def _quietly(end: Callable[[], Awaitable[None]]) -> None:
    """Run `end` even while being cancelled, for a bounded time; it may fail."""
    with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
        try:
            await end()
        except Exception:
            return
