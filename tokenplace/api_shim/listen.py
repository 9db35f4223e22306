"""Listening sockets that only this machine, or only this user, can reach.

Start at `listen_on_loopback` and `unix_listener`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tokenplace.errors import ConfigError

BACKLOG: Final = 128  # connections that wait to be accepted; more than an app opens at once
FREE_PORT_TRIES: Final = 10  # a port that is free on 127.0.0.1 may be taken on ::1
MAX_PORT: Final = 65_535
SOCKET_FILE_MODE: Final = 0o600
NO_IPV6: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def listen_on_loopback(port: int) -> list[socket.socket]:
    """Sockets on 127.0.0.1 and, where there is IPv6, on ::1, both at one port; 0 is any free one.

    Both or none: `localhost` may mean either, and must not lead to another program. Raises
    `ConfigError`.
    """
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"Port {port} is not between 0 and {MAX_PORT}.")
    for _ in range(FREE_PORT_TRIES):
        try:
            first = _listen(socket.AF_INET, "127.0.0.1", port)
        except OSError as error:
            raise _unusable("127.0.0.1", port, error) from None
        bound_port = first.getsockname()[1]
        try:
            return [first, _listen(socket.AF_INET6, "::1", bound_port)]
        except OSError as error:
            if error.errno in NO_IPV6:
                return [first]
            first.close()
            if port != 0:
                raise _unusable("::1", port, error) from None
    raise ConfigError("No port was free on both 127.0.0.1 and ::1.", hint="Use --api-port N.")


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket at `path` that no other user may open; the block's end removes it.

    A socket file that nobody listens on any more is replaced, in one step. Raises `ConfigError` if
    somebody does, if another kind of file is there, or if the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        try:
            _listen_privately(listener, path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"{path} cannot be used as a socket: {reason}.") from None
        own = path.stat()
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(own, path.stat()):
                    path.unlink()


def _listen_privately(listener: socket.socket, path: Path) -> None:
    if path.exists() and not path.is_socket():
        raise ConfigError(f"{path} exists and is not a socket.", hint="Move it away.")
    if path.exists() and _is_served(path):
        raise ConfigError(f"{path} is in use.", hint="Another peer runs there: stop it first.")
    # Bound elsewhere and made private before it listens: at no time may others connect.
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(SOCKET_FILE_MODE)
        listener.listen(BACKLOG)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    is_taken = error.errno == errno.EADDRINUSE
    reason = "another program uses it" if is_taken else error.strerror or type(error).__name__
    hint = "Stop that program, or choose another port: --api-port N (0 takes any free one)."
    return ConfigError(f"Port {port} on {host} cannot be opened: {reason}.", hint=hint)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # A full backlog says EAGAIN: somebody is there all the same.
        return probe.connect_ex(str(path)) not in {errno.ECONNREFUSED, errno.ENOENT}
