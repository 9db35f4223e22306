"""Upstream faults in the TCP transport. Start at `GatedListener`.

Mended against libp2p 0.8.1, each with a test (tests/peer/test_upstream_tcp.py, test_gate.py):

- **flood** `transport/tcp/tcp.py:219` starts a task for each connection, and counts none by its
  address: 900 silent ones from one address shut everybody else out. Here the gate is asked straight
  after accept, and a refused connection costs no task and no byte.
- **backlog** `transport/tcp/tcp.py:97` lets 128 connections wait; the next one's SYN is dropped,
  and comes again after a second.
- **shared port** `transport/tcp/tcp.py:94` opens listeners with SO_REUSEPORT: two peers on one port
  would share its connections by chance, without a word.
- **IPv6** `io/trio.py:104` knows no address of four parts, so over IPv6 nobody could be counted.
- **outage** `transport/tcp/tcp.py` leaves the kernel's times as they are: after an outage of 5 s
  the next byte may come 5 s late, and what a closed socket still holds is sent for two minutes.
- **any TCP** `transport/tcp/tcp.py:506` takes every address with "tcp" in it for plain TCP, such as
  one that leads over a relay.

Differs from upstream: `/ip6/::` means IPv6 alone, as in go-libp2p, so both wildcards can have one
port.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from contextlib import closing, suppress
from typing import Final, Protocol, cast

import trio
from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.peer.gate import Gate, Seat
from tokenplace.peer.ranges import plain_ip

log = logging.getLogger(__name__)

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # accept(2)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # leaves nothing behind in the kernel either
_RTO_MAX_MS: Final = 44  # TCP_RTO_MAX_MS of linux/tcp.h, which Python does not name
# What Linux can be told; the numbers mean something else elsewhere.
_TIMES: Final = (
    (
        (socket.TCP_USER_TIMEOUT, defaults.TCP_USER_TIMEOUT_S),
        (_RTO_MAX_MS, defaults.TCP_RTO_MAX_S),
    )
    if sys.platform == "linux"
    else ()
)
_DIALLED_BY: Final = {"ip4", "ip6", "dns", "dns4", "dns6"}


class Tunable(Protocol):
    """A socket of the standard library, or trio's."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None:
        """As `socket.socket.setsockopt`."""


class SeatedStream(TrioTCPStream):
    """An inbound connection, and its place in the gate."""

    def __init__(self, connection: socket.socket, remote: tuple[str, int], seat: Seat) -> None:
        _tune(connection)
        super().__init__(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
        self._cached_remote_address = remote
        self.seat = seat


class GatedListener(TCPListener):
    """A listener that asks the gate about each connection before anybody else hears of it."""

    def __init__(self, handler: THandler, gate: Gate) -> None:
        super().__init__(handler)
        self._gate = gate

    async def listen(self, maddr: Multiaddr) -> None:
        """Listen on `/ip4|ip6/ADDRESS/tcp/PORT`. Raises `OpenConnectionError`."""
        _, _, ip, _, port = str(maddr).split("/")[:5]
        async with self._lifecycle_lock:
            if self._closed:
                raise OpenConnectionError(f"{maddr}: the listener is closed")
            try:
                listening = _bind(ip, int(port), defaults.LISTEN_BACKLOG)
            except OSError as error:
                raise OpenConnectionError(f"{maddr}: {error.strerror}") from error
            self.listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(listening)))
            if self._nursery is None:
                await self._spawn_background_task()
            assert self._nursery is not None, "it was just made"
            self._nursery.start_soon(self._accept_forever, listening)

    async def _accept_forever(self, listening: socket.socket) -> None:
        with closing(listening):  # `close` does so too, unless it is cancelled before
            while True:
                try:
                    await trio.lowlevel.wait_readable(listening)
                except trio.ClosedResourceError:
                    return
                if not self._accept_batch(listening):
                    await trio.sleep(defaults.ACCEPT_RETRY_S)

    def _accept_batch(self, listening: socket.socket) -> bool:
        """Accept who waits, without a pause: handshakes under way must not let a flood queue up in
        front of a newcomer. False: the system can give us no more sockets for now.
        """
        for _ in range(defaults.ACCEPT_BATCH):
            try:
                connection, remote = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("cannot accept connections: %s", error.strerror)
                    return False
                continue  # it was gone before it was accepted
            self._let_in(connection, remote)
        return True

    def _let_in(self, connection: socket.socket, remote: tuple[str, int]) -> None:
        """Start a task for a connection that gets a seat, drop it otherwise. Never waits."""
        ip, port = str(plain_ip(remote[0])), remote[1]
        scope = trio.CancelScope()
        seat = self._gate.enter(ip, trio.current_time(), scope.cancel)
        if seat is None:
            _abort(connection)
            return
        assert self._nursery is not None, "it accepts, so it runs"
        self._nursery.start_soon(self._serve, connection, (ip, port), seat, scope)

    async def _serve(
        self,
        connection: socket.socket,
        remote: tuple[str, int],
        seat: Seat,
        scope: trio.CancelScope,
    ) -> None:
        stream = SeatedStream(connection, remote, seat)
        try:
            with scope:
                await self.handler(stream)
        except Exception as error:  # of one connection: the others go on
            log.debug("inbound connection: %s", type(error).__name__)
        finally:
            stream.stream.socket.close()
            self._gate.release(seat)


class MendedTCP(TCP):
    """Plain TCP that knows its peers' addresses, and lets in whom `gate` lets in."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        connection = cast(RawConnection, await super().dial(maddr))
        stream = cast(TrioTCPStream, connection.stream)
        try:
            host, port = stream.stream.socket.getpeername()[:2]
        except OSError:  # it is gone already
            await connection.close()
            raise
        _tune(stream.stream.socket)
        stream._cached_remote_address = (str(plain_ip(host)), port)
        return connection

    def create_listener(self, handler_function: THandler) -> TCPListener:
        return GatedListener(handler_function, self._gate)

    def can_dial(self, maddr: Multiaddr) -> bool:
        kind, *rest = [protocol.name for protocol in maddr.protocols()] or [""]
        return kind in _DIALLED_BY and rest in (["tcp"], ["tcp", "p2p"])


def require_free_port(ip: str, port: int) -> None:
    """Raise `OSError` unless `ip` is this machine's and nobody listens on `port`; 0 is free."""
    _bind(ip, port).close()


def _bind(ip: str, port: int, backlog: int | None = None) -> socket.socket:
    """A socket that has the port, and listens if `backlog` says so. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        # A port whose last connections are in TIME_WAIT is free.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((ip, port))
        if backlog is not None:
            listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


def _tune(connection: Tunable) -> None:
    """Have the kernel try again soon after an outage, and not for ever. Systems that cannot do so
    are left as they are.
    """
    for option, seconds in _TIMES:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def _abort(connection: socket.socket) -> None:
    """Close at once, with a reset."""
    with suppress(OSError):  # it is gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    connection.close()
