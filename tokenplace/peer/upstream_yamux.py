"""Upstream faults in yamux: no receive window, no notice of silence, writes that a cancel tears.

Start at `MendedYamux`; `MendedUpgrader` makes libp2p use it. Mended, each with a test:

- **window** The receive window was logged, not enforced: 98 MB could be pushed into one unread
  stream. A peer that ignores it is cut off. The window itself is never grown, and credit goes back
  in halves of it instead of after every read, which saves a third of the CPU per frame.
- **keepalive** A missing pong was ignored, so a frozen peer went unnoticed.
- **torn write** A task cancelled inside a write left half a Noise message on the wire, or the
  message counter one ahead: every other stream of the connection died with it.
- **reset** A stream that the peer reset, or that was lost with its connection, looked like one that
  ended well; one that this side reset left its own reader waiting for ever.
- **streams** The number of inbound streams was not limited.
- **socket** A connection whose closing was cancelled kept its socket open.
- **broken write** After a failed write the reader went on with what it had, at 100 frames a second:
  64 KiB of pings held a connection open for a minute after its peer had left.

Known and left: a writer whose window stays empty polls every 10 ms and fails after 5 s. Readers
must drain promptly.
"""

from __future__ import annotations

import logging
import struct
from typing import cast

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    PROTOCOL_ID,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)
from libp2p.transport.upgrader import TransportUpgrader

from tokenplace import defaults

log = logging.getLogger(__name__)

YAMUX: TProtocol = TProtocol(PROTOCOL_ID)


class MendedYamuxStream(YamuxStream):
    """A stream whose window stays as it is, and whose reader can tell a reset from an end."""

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        self._pending_recv_release += bytes_read
        if self._pending_recv_release < defaults.STREAM_WINDOW_BYTES // 2:
            return
        credit, self._pending_recv_release = self._pending_recv_release, 0
        self.recv_window += credit
        await self.send_window_update(credit)

    async def read(self, n: int | None = -1) -> bytes:
        try:
            return await super().read(n)
        except MuxedStreamEOF as error:
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset") from error
            raise
        finally:
            if self.stream_id not in self.conn.streams:
                # Whoever waited for data put the event of a stream that is gone back in its place.
                self.conn.stream_events.pop(self.stream_id, None)

    async def reset(self) -> None:
        data_or_end = self.conn.stream_events.get(self.stream_id)
        try:
            await super().reset()
            if unread := self.conn.stream_buffers.get(self.stream_id):
                unread.clear()  # nobody can read it any more, but upstream keeps it for a minute
                await self.conn._finalize_stream(self, fully_closed=True)
        finally:
            if data_or_end is not None:
                data_or_end.set()


class MendedYamux(Yamux):
    """A connection that holds its peer to the rules and outlives the tasks that use it."""

    async def start(self) -> None:
        try:
            await super().start()
        finally:
            # Upstream closes the socket last of all, and not when that is cancelled.
            with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
                await self.secured_conn.close()
            self.event_closed.set()

    async def open_stream(self) -> YamuxStream:
        return _mended(await super().open_stream())

    async def accept_stream(self) -> IMuxedStream:
        while True:
            stream = _mended(cast(YamuxStream, await super().accept_stream()))
            inbound = [known for known in self.streams.values() if not known.is_initiator]
            if len(inbound) <= defaults.MAX_INBOUND_STREAMS:
                return stream
            log.debug("too many streams from %s", self.peer_id)
            await stream.reset()

    async def _read_data_body(self, length: int) -> bytes:
        window = defaults.STREAM_WINDOW_BYTES
        unread = [len(buffer) for buffer in self.stream_buffers.values()]
        # Credit is only given for what was read: of an honest peer, no more than a window is
        # unread.
        if (
            length > window
            or max(unread, default=0) > window
            or sum(unread) + length > defaults.MAX_UNREAD_BYTES
        ):
            log.warning("cut off %s: it ignores flow control", self.peer_id)
            await self._cleanup_on_error()
            raise RawConnError("the peer ignores flow control")
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        with trio.move_on_after(defaults.WRITE_STALL_S, shield=True) as stall:
            try:
                await super()._write_frame(data)
            except Exception as error:  # of TCP or of Noise: neither can be gone on with
                await self._drop()
                raise RawConnError("the connection is broken") from error
        if stall.cancelled_caught:
            log.debug("no byte went out to %s in time", self.peer_id)
            await self._drop()
            raise RawConnError("the peer takes no more bytes")

    async def _measure_rtt_loop(self) -> None:
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(defaults.KEEPALIVE_INTERVAL_S):
                await self.event_shutting_down.wait()
                return
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_event = trio.Event()
            self._ping_sent_time = trio.current_time()
            try:
                await self._write_frame(
                    struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id)
                )
                with trio.fail_after(defaults.KEEPALIVE_TIMEOUT_S):
                    await self._ping_event.wait()
            except trio.TooSlowError:
                log.debug("%s is silent", self.peer_id)
                await self._drop()
            except Exception as error:  # the connection is going down: its reader cleans up
                log.debug("ping to %s: %s", self.peer_id, type(error).__name__)
                return

    async def _drop(self) -> None:
        """Close the socket: the reading task then fails, and cleans up in the one right place."""
        await self.secured_conn.close()


def _mended(stream: YamuxStream) -> MendedYamuxStream:
    # Yamux makes its streams by a name global to its module. Changing the class of the one object
    # touches no other connection, and nothing has read from it yet.
    stream.__class__ = MendedYamuxStream
    return cast(MendedYamuxStream, stream)


class _MendedMuxer(MuxerMultistream):
    """Makes the muxer it was given; upstream makes a `Yamux`, whatever it was given."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, muxer = await self._selector.select(
            conn, conn.is_initiator, self.negotiate_timeout
        )
        return self._annotate_connection(muxer(conn, peer_id), conn, protocol)


class MendedUpgrader(TransportUpgrader):
    """Secures and multiplexes connections with `MendedYamux` alone."""

    def __init__(self, security: TSecurityOptions) -> None:
        super().__init__(security, {YAMUX: MendedYamux}, int(defaults.UPGRADE_TIMEOUT_S))
        self.muxer_multistream = _MendedMuxer({YAMUX: MendedYamux}, int(defaults.UPGRADE_TIMEOUT_S))
