"""HTTP/1.1 and nothing else. Start at `Http1Server`.

Hypercorn goes over to HTTP/2 or WebSocket when a client says so. Nobody needs either here, and both
held a connection for ever whose client then fell silent: no timer runs in them. Upgrades are
ignored, as RFC 9110, section 7.8, allows, and HTTP/2's opening is a request of a wrong version.
"""

from __future__ import annotations

import h11
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer


class Http1Server(TCPServer):
    """Serves one connection."""

    async def _read_data(self) -> None:
        # Hypercorn chose the protocol by names global to its modules. Changing the class of this
        # one object touches no other connection, and nothing has been read yet.
        self.protocol.protocol.__class__ = _Http1Protocol
        await super()._read_data()


class _Http1Protocol(H11Protocol):
    """Stays what it is, whatever a client asks for."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Where Hypercorn goes over to HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Without the header that makes Hypercorn go over to WebSocket."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        )
