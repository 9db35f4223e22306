"""Serves an ASGI app over TCP or on a Unix socket. Start at `serve_api` and `serve_unix`.

Hypercorn speaks HTTP on each connection; accepting and ending them is ours. Its own `serve` accepts
the sockets itself, so that nobody could end one whose client stopped reading: it sends under a
shield without a deadline, and such a client would pin its handler and the shutdown for ever.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp

from tokenplace.api_shim.connection import GONE, Connection
from tokenplace.api_shim.http1 import Http1Server, whole_response
from tokenplace.api_shim.listen import listen_on, unix_listener
from tokenplace.api_shim.refusal import too_many
from tokenplace.defaults import (
    API_IDLE_TIMEOUT_S,
    API_LINGER_S,
    API_MAX_CONNECTIONS,
    API_MAX_TURNED_AWAY,
    API_SHUTDOWN_GRACE_S,
    API_WRITE_TIMEOUT_S,
)
from tokenplace.errors import first_error

logger = logging.getLogger(__name__)

TOO_MANY_CONNECTIONS: Final = too_many("Too many connections are open to this peer.")


async def serve_api(
    app: ASGIApp,
    *,
    port: int,
    address: str | None = None,
    write_timeout_s: float = API_WRITE_TIMEOUT_S,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on 127.0.0.1, and on ::1 where there is IPv6, until cancelled; reports the port.

    port: 0 takes any free one. address: an IP address to serve on besides; see `listen_on`.
    After cancellation answers that are about to end may, for `API_SHUTDOWN_GRACE_S`; then all is
    closed, whatever the apps do. Raises `ConfigError` if port or address cannot be used.
    """
    sockets = listen_on(port, address)
    bound_port: int = sockets[0].getsockname()[1]
    await _Server(app, write_timeout_s).run(sockets, lambda: task_status.started(bound_port))


async def serve_unix(
    app: ASGIApp,
    path: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on a Unix socket that only this user may open, until cancelled; then it is removed.

    A socket file that nobody serves any more is replaced. Raises `ConfigError` if somebody does,
    or if `path` cannot be used.
    """
    with unix_listener(path) as listener:
        await _Server(app, API_WRITE_TIMEOUT_S).run([listener], task_status.started)


class _Server:
    """Accepts connections, lets Hypercorn serve each, and ends them all in time."""

    def __init__(self, app: ASGIApp, write_timeout_s: float) -> None:
        self._app = ASGIWrapper(cast(Any, app))  # Hypercorn types the same ASGI more narrowly
        self._write_timeout_s = write_timeout_s
        self._context = WorkerContext(max_requests=None)
        self._config = Config()
        self._config.errorlog = None  # it would log exceptions, whose text may hold a prompt
        self._config.include_server_header = False
        self._config.keep_alive_timeout = API_IDLE_TIMEOUT_S
        self._open: set[Connection] = set()
        self._turned_away: set[Connection] = set()
        self._end_at = math.inf

    async def run(self, sockets: Sequence[socket.socket], started: Callable[[], None]) -> None:
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(listener)) for listener in sockets
        ]
        async with trio.open_nursery() as handlers:
            started()
            try:
                await trio.serve_listeners(self._handle, listeners, handler_nursery=handlers)
            finally:
                # Runs while being cancelled; the handlers are shielded and end by the deadline.
                await self._context.terminated.set()
                self._end_at = trio.current_time() + API_SHUTDOWN_GRACE_S
                for connection in (*self._open, *self._turned_away):
                    connection.end_by(self._end_at)

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        """Say why, as far as there is room for that; then close."""
        connection = Connection(stream, API_LINGER_S)
        if len(self._turned_away) < API_MAX_TURNED_AWAY:
            self._turned_away.add(connection)
            connection.end_by(min(trio.current_time() + API_LINGER_S, self._end_at))
            with connection.scope, suppress(*GONE):
                await connection.send_all(whole_response(TOO_MANY_CONNECTIONS))
                await connection.linger()
            self._turned_away.discard(connection)
        connection.close()

    async def _handle(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= API_MAX_CONNECTIONS:
            await self._turn_away(stream)
            return
        connection = Connection(stream, self._write_timeout_s)
        connection.end_by(self._end_at)
        self._open.add(connection)
        http = Http1Server(
            self._app, self._config, self._context, ConnectionState({}), cast(Any, connection)
        )
        try:
            with connection.scope:
                await http.run()
        except* Exception as errors:
            # One broken connection must not end the others; the text may hold what was sent.
            logger.warning("connection dropped: %s", type(first_error(errors)).__name__)
        finally:
            # Not left to Hypercorn, which does not get there when it is cancelled.
            connection.close()
            self._open.discard(connection)
