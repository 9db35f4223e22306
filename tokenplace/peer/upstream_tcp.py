"""Upstream faults in the TCP transport. Start at `MendedTCP`. Mended, each with a test:

- **IPv6** The other side's address was unknown over IPv6, so nobody could be counted by it.
- **shared port** Listeners are opened with SO_REUSEPORT: two peers on one port would share its
  connections by chance, without a word.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import cast

from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr


class MendedTCP(TCP):
    """TCP that knows its peers' addresses, IPv4 ones reached over IPv6 in their own form."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        connection = cast(RawConnection, await super().dial(maddr))
        try:
            _note_remote(connection.stream)
        except OSError:  # it is gone already
            await connection.close()
            raise
        return connection

    def create_listener(self, handler_function: THandler) -> TCPListener:
        async def handle(stream: ReadWriteCloser) -> None:
            _note_remote(stream)
            await handler_function(stream)

        return super().create_listener(handle)


def require_free_port(ip: str, port: int) -> None:
    """Raise `OSError` unless `ip` is this machine's and nobody listens on `port`; 0 is free."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        probe.bind((ip, port))


def _note_remote(stream: ReadWriteCloser) -> None:
    """Fill the cache that upstream leaves empty for an address of four parts."""
    tcp_stream = cast(TrioTCPStream, stream)
    host, port = tcp_stream.stream.socket.getpeername()[:2]
    ip = ipaddress.ip_address(host.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    tcp_stream._cached_remote_address = (str(ip), port)
