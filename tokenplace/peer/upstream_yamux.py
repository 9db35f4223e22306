"""Upstream faults in yamux: no receive window, no notice of silence, writes that a cancel tears.

Start at `MendedYamux`; `MendedUpgrader` makes libp2p use it. Mended against libp2p 0.8.1's
`stream_muxer/yamux/yamux.py`, each with a test (tests/peer/test_upstream_yamux*.py):

- **window** `:1546` The receive window was logged, not enforced: 98 MB could be pushed into one
  unread stream. A peer that ignores it is cut off. The window itself is never grown, and credit
  goes back in halves of it instead of after every read (`:447`), which saves a third of the CPU per
  frame.
- **stalled writer** `:283` A writer whose window was empty looked every 10 ms whether it still was,
  and failed after 5 s. It is woken, and waits as long as the connection lives: who calls `write`
  has a deadline of his own.
- **keepalive** `:719` A missing pong was ignored, so a frozen peer went unnoticed; and everybody
  was pinged, however much came from there. When to ask, and when to give up: `liveness`.
- **torn write** `:875` A task cancelled inside a write left half a Noise message on the wire, or
  the message counter one ahead: every other stream of the connection died with it. Now frames leave
  from a task of their own, `frame_writer`.
- **slow line** `:874`, `:1487` The answer to a ping waited behind the data of all streams, in
  frames of 64 KiB, and with it the task that reads: a connection full of answers seemed dead. A
  reset waited there too, and so did its caller.
- **reset** `:1058`, `:638` A stream that the peer reset, or that was lost with its connection,
  looked like one that ended well; one that this side reset left its own reader waiting for ever.
- **unread end** `:1716` What had arrived but was not read yet was lost with the connection.
- **streams** `:1293` The number of inbound streams was not limited.
- **socket** `:810` A connection whose closing was cancelled kept its socket open.
- **broken write** `:1693` After a failed write the reader went on with what it had, at 100 frames a
  second: 64 KiB of pings held a connection open for a minute after its peer had left.
- **muxer** `stream_muxer/muxer_multistream.py:143` A `Yamux` was made, whatever was asked for.

Left as they are, because they harm no other connection: a peer that floods one with streams and
takes no bytes stops that one (`:685`, a channel of 10), until `WRITE_STALL_S` ends it; and 256
outbound streams (`:668`) make the next wait, which `PeerHost.open_stream` gives up in time.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Any, Final, cast

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    HEADER_SIZE,
    PROTOCOL_ID,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)
from libp2p.transport.upgrader import TransportUpgrader

from tokenplace import defaults
from tokenplace.peer.frame_writer import FrameWriter
from tokenplace.peer.gate import Seat
from tokenplace.peer.liveness import Liveness, Step

log = logging.getLogger(__name__)

YAMUX: TProtocol = TProtocol(PROTOCOL_ID)
_VERSION: Final = b"\0"  # a header's first byte
_TYPE: Final = 1  # where in a header its type is


class MendedYamuxStream(YamuxStream):
    """A stream whose window stays as it is, and whose reader can tell a reset from an end.

    Upstream's reading task sets `send_window` and `closed` by plain assignment; as properties they
    wake whoever waits to write.
    """

    _writers: trio.lowlevel.ParkingLot
    _unread_at_end = b""
    _ended_well = False

    @classmethod
    def mend(cls, stream: YamuxStream) -> MendedYamuxStream:
        """Make `stream` one of these, in its place.

        Yamux makes its streams by a name global to its module. Changing the class of the one object
        touches no other connection, and nothing has read from it or written to it yet.
        """
        state = stream.__dict__
        stream.__class__ = cls
        mended = cast(MendedYamuxStream, stream)
        mended._writers = trio.lowlevel.ParkingLot()
        mended._send_window = state.pop("send_window")
        mended._closed = state.pop("closed")
        return mended

    @property
    def send_window(self) -> int:
        return self._send_window

    @send_window.setter
    def send_window(self, n_bytes: int) -> None:
        self._send_window = n_bytes
        self._writers.unpark_all()

    @property
    def closed(self) -> bool:
        return self._closed

    @closed.setter
    def closed(self, is_closed: bool) -> None:
        self._closed = is_closed
        self._writers.unpark_all()

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits for the window as long as the connection lives."""
        sent = 0
        while sent < len(data):
            await self._wait_for_window()
            part = data[sent : sent + min(self._send_window, defaults.DATA_FRAME_BYTES)]
            self._send_window -= len(part)
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, len(part))
            await self.conn._write_frame(header + part)
            sent += len(part)

    async def _wait_for_window(self) -> None:
        while True:
            if self.closed or self.send_closed:
                raise MuxedStreamError("the stream is closed for sending")
            if self._send_window > 0:
                return
            await self._writers.park()

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
        except (MuxedStreamEOF, MuxedStreamReset) as error:
            if unread := self._unread_at_end:
                part = unread if n is None or n < 0 else unread[:n]
                self._unread_at_end = unread[len(part) :]
                return part
            if self._ended_well:
                raise MuxedStreamEOF("the stream has ended") from error
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset") from error
            raise
        finally:
            if self.stream_id not in self.conn.streams:
                # Whoever waited for data put the event of a stream that is gone back in its place.
                self.conn.stream_events.pop(self.stream_id, None)

    def keep_unread(self) -> None:
        """The connection is gone: keep for the reader what had arrived."""
        if not self.reset_received:
            self._ended_well = self.recv_closed
            self._unread_at_end = bytes(self.conn.stream_buffers.pop(self.stream_id, b""))

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


class _HeardConn:
    """A secured connection that calls `heard` when something came; in all else as it is."""

    def __init__(self, conn: ISecureConn, heard: Callable[[], None]) -> None:
        self._conn = conn
        self._heard = heard

    async def read(self, n: int | None = None) -> bytes:
        data = await self._conn.read(n)
        # A header of another version is garbage: whoever lost the thread is as good as silent.
        if n != HEADER_SIZE or data[:1] == _VERSION:
            self._heard()
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


class MendedYamux(Yamux):
    """A connection that holds its peer to the rules and outlives the tasks that use it.

    seat: its place in the gate, if it is inbound. idle_since: when its last stream ended.
    """

    seat: Seat | None = None
    idle_since = 0.0
    is_dropped = False

    def __init__(self, secured_conn: ISecureConn, peer_id: ID) -> None:
        super().__init__(secured_conn, peer_id)
        self.secured_conn = cast(ISecureConn, _HeardConn(secured_conn, self._note_heard))
        self.liveness = Liveness(trio.current_time())
        self._liveness_changed = trio.Event()
        self._writer = FrameWriter(self._write)

    async def start(self) -> None:
        self.idle_since = trio.current_time()
        try:
            await super().start()
        finally:
            # Upstream closes the socket last of all, and not when that is cancelled.
            with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
                await self.secured_conn.close()
            self.event_closed.set()

    async def open_stream(self) -> YamuxStream:
        return MendedYamuxStream.mend(await super().open_stream())

    async def accept_stream(self) -> IMuxedStream:
        while True:
            stream = MendedYamuxStream.mend(cast(YamuxStream, await super().accept_stream()))
            inbound = [known for known in self.streams.values() if not known.is_initiator]
            if len(inbound) <= defaults.MAX_INBOUND_STREAMS:
                return stream
            log.debug("too many streams from %s", self.peer_id)
            await stream.reset()

    def _finalize_stream_locked(self, stream: YamuxStream, *, fully_closed: bool) -> None:
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)
        self.idle_since = trio.current_time()

    async def _cleanup_on_error(self) -> None:
        self.event_shutting_down.set()  # no reader takes anything from now on
        for stream in self.streams.values():
            if isinstance(stream, MendedYamuxStream):
                stream.keep_unread()
        await super()._cleanup_on_error()

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
        """Waits until data are out; all else leaves by itself, but for a goodbye, after which the
        socket is closed.
        """
        try:
            if len(data) > HEADER_SIZE:
                await self._writer.send(data)
                return
            is_over = await self._writer.post(data)
        except trio.ClosedResourceError:
            raise RawConnError("the connection is closed") from None  # words that upstream knows
        if data[_TYPE] == TYPE_GO_AWAY:
            with trio.move_on_after(defaults.RESET_TIMEOUT_S):
                await is_over.wait()

    async def _write(self, frame: bytes) -> None:
        await self.secured_conn.write(frame)
        self.liveness.said(trio.current_time())

    async def _write_frames(self) -> None:
        try:
            await self._writer.run()
        except trio.TooSlowError:
            log.debug("no byte went out to %s in time", self.peer_id)
        except Exception as error:  # of TCP or of Noise: neither can be gone on with
            log.debug("writing to %s: %s", self.peer_id, type(error).__name__)
        await self.drop()

    # ------------------------------------------------------------ signs of life

    def doubt(self) -> None:
        """This machine slept, or moved: see at once whether the peer is still there."""
        self.liveness.doubt()
        self._liveness_changed.set()

    def _note_heard(self) -> None:
        if self.liveness.heard(trio.current_time()):
            self._liveness_changed.set()

    async def _measure_rtt_loop(self) -> None:
        """Upstream's task for pings, beside which frames are written. Ends with the connection,
        which cancels it.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_frames)
            while True:
                self._liveness_changed = trio.Event()
                with trio.move_on_at(self.liveness.due_at(in_use=bool(self.streams))):
                    await self._liveness_changed.wait()
                match self.liveness.look(trio.current_time(), in_use=bool(self.streams)):
                    case Step.ASK | Step.SPEAK:
                        # Apart: whoever takes no byte may hold this up.
                        nursery.start_soon(self._ping)
                    case Step.GIVE_UP:
                        log.debug("%s is silent", self.peer_id)
                        await self.drop()
                        return

    async def _ping(self) -> None:
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        self._ping_sent_time = trio.current_time()
        try:
            await self._write_frame(
                struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id)
            )
        except Exception as error:  # the connection is going down: its reader cleans up
            log.debug("ping to %s: %s", self.peer_id, type(error).__name__)

    async def drop(self) -> None:
        """Close the socket: the reading task then fails, and cleans up in the one right place."""
        self.is_dropped = True
        await self.secured_conn.close()


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
        timeout_s = int(defaults.CONNECT_TIMEOUT_S)  # inbound, the swarm's is over before
        super().__init__(security, {YAMUX: MendedYamux}, timeout_s)
        self.muxer_multistream = _MendedMuxer({YAMUX: MendedYamux}, timeout_s)
