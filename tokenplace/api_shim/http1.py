"""HTTP/1.1 and nothing else. Start at `Http1Server`.

Hypercorn goes over to HTTP/2 or WebSocket when a client says so. Nobody needs either here, and both
held a connection for ever whose client then fell silent: no timer runs in them. Upgrades are
ignored, as RFC 9110, section 7.8, allows, and HTTP/2's opening is a request of a wrong version.

What is malformed is judged in `head`; here it gets its answer, in JSON as every other.
"""

from __future__ import annotations

import json
from typing import Any, Final, cast

import h11
import trio
from hypercorn.events import Closed, Updated
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from tokenplace.api_shim.connection import Connection
from tokenplace.api_shim.guard import SAY_CONTINUE
from tokenplace.api_shim.head import StrictConnection, origin_form
from tokenplace.api_shim.refusal import Refusal

MALFORMED: Final = Refusal(400, "This is not valid HTTP/1.1.", "malformed_request")
REFUSALS: Final = {
    408: Refusal(408, "The request's head did not arrive in time.", "request_timeout"),
    414: Refusal(414, "The request's target is too long.", "uri_too_long"),
    431: Refusal(431, "The request's head is too large.", "headers_too_large"),
    501: Refusal(501, "This method or transfer coding is not known here.", "not_implemented"),
    505: Refusal(505, "Only HTTP/1.1 is spoken here.", "http_version_not_supported"),
}


def whole_response(refusal: Refusal) -> bytes:
    """An answer in one piece, for a connection that is not going to be served."""
    body = json.dumps(refusal.body).encode()
    headers = {
        **refusal.headers,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {refusal.status} \r\n{head}\r\n".encode() + body


class Http1Server(TCPServer):
    """Serves one connection."""

    async def _read_data(self) -> None:
        # Hypercorn chose the protocol by names global to its modules. Changing the class of this
        # one object touches no other connection, and nothing has been read yet.
        protocol = cast(Any, self.protocol.protocol)
        protocol.__class__ = _Http1Protocol
        protocol.begin(cast(Any, self.stream))
        await super()._read_data()

    async def _initiate_server_close(self) -> None:
        """When a connection was idle for too long, or the server ends."""
        if not self.context.terminated.is_set():
            await cast(_Http1Protocol, self.protocol.protocol).refuse_unfinished_head()
        await super()._initiate_server_close()


class _Http1Protocol(H11Protocol):
    """Stays what it is, whatever a client asks for."""

    app_connection: Connection
    connection: StrictConnection

    def begin(self, app_connection: Connection) -> None:
        """Take the place of the class that Hypercorn made; before anything is read."""
        self.app_connection = app_connection
        self.connection = StrictConnection()
        self.connection_state[SAY_CONTINUE] = self._say_continue

    async def refuse_unfinished_head(self) -> None:
        """Tell an app that has sent a part of a request why nothing more is read."""
        if self.connection.has_begun_head:
            await self._send_error_response(408)

    async def _handle_events(self) -> None:
        """As Hypercorn's, but for three things: it says "100 Continue" before anybody has looked
        at the head, stops reading while a pipelined request waits, and closes under an app that
        still sends what was refused.
        """
        while True:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                return await self._refuse(error.error_status_hint)
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._create_stream(event)
            elif event is h11.PAUSED:
                await self._wait_for_turn()
            elif self.stream is None or not isinstance(event, h11.Data | h11.EndOfMessage):
                return  # more must come, or everything is over
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            else:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _create_stream(self, request: h11.Request) -> None:
        """Without the header that makes Hypercorn go over to WebSocket."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        target, headers = origin_form(request.target, headers)
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=target,
                headers=headers,
                http_version=request.http_version,
            )
        )

    async def _say_continue(self) -> None:
        """To an app that waits with its body until it is welcome (RFC 9110, section 10.1.1)."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def _wait_for_turn(self) -> None:
        """Until the answer that is under way has ended; meanwhile the app's hang-up is seen."""
        await self.can_read.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.app_connection.read_ahead)
            await self.can_read.wait()
            nursery.cancel_scope.cancel()
        if self.connection.their_state is h11.IDLE:
            # Some clients send an empty line after a body, which h11 would take for a request.
            self.connection = self.connection.renewed()

    async def _refuse(self, status: int) -> None:
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(status)
            await self.app_connection.linger()
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        refusal = REFUSALS.get(status_code, MALFORMED)
        body = json.dumps(refusal.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=refusal.status, headers=headers))
        if not self.connection.is_head:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
