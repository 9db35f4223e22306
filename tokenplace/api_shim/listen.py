"""Listening sockets that only this machine, or only this user, can reach, unless told otherwise.

Start at `listen_on` and `unix_listener`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tokenplace.errors import ConfigError

BACKLOG: Final = 128  # connections that wait to be accepted; more than an app opens at once
FREE_PORT_TRIES: Final = 10  # a port that is free on 127.0.0.1 may be taken on ::1
MAX_PORT: Final = 65_535
SOCKET_FILE_MODE: Final = 0o600
LOOPBACK: Final = ("127.0.0.1", "::1")
EVERYWHERE: Final = ("0.0.0.0", "::")  # every address of the machine, of each version of IP
NO_IPV6: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def listen_on(port: int, address: str | None = None) -> list[socket.socket]:
    """Sockets on 127.0.0.1 and, where there is IPv6, on ::1, all at one port; 0 is any free one.

    address: an IP address to listen on besides; 0.0.0.0 is every one of IPv4, :: every one.
    All or none: `localhost` may mean either, and must not lead to another program. Raises
    `ConfigError`.
    """
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"Port {port} is not between 0 and {MAX_PORT}.")
    wanted = addresses_with(address)
    for _ in range(FREE_PORT_TRIES):
        if sockets := _listen_on_all(wanted, port):
            return sockets
    raise ConfigError(f"No port was free on all of {', '.join(wanted)}.", hint="Use --api-port N.")


def addresses_with(address: str | None) -> tuple[str, ...]:
    """The addresses to listen on so that loopback and `address` are reached, each once."""
    if address is None:
        return LOOPBACK
    if address == EVERYWHERE[1]:
        return EVERYWHERE
    if address == EVERYWHERE[0]:
        return (EVERYWHERE[0], LOOPBACK[1])
    return tuple(dict.fromkeys((*LOOPBACK, address)))


def _listen_on_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """Sockets on all; none if any port would do, and the one found is taken at another address."""
    any_port = port == 0
    with ExitStack() as stack:  # closes what was opened if not all could be
        sockets: list[socket.socket] = []
        for address in addresses:
            try:
                sockets.append(stack.enter_context(_listen(address, port)))
            except OSError as error:
                if address in {LOOPBACK[1], EVERYWHERE[1]} and error.errno in NO_IPV6:
                    continue
                if any_port and sockets and error.errno == errno.EADDRINUSE:
                    return []
                raise _unusable(address, port, error) from None
            port = sockets[0].getsockname()[1]
        stack.pop_all()
        return sockets


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
    # Bound elsewhere and made private before it listens: at no time may others connect.
    temporary = path.with_name(path.name + ".new")
    for place in (path, temporary):
        if place.exists() and not place.is_socket():
            raise ConfigError(f"{place} exists and is not a socket.", hint="Move it away.")
    if path.exists() and _is_served(path):
        raise ConfigError(f"{path} is in use.", hint="Another peer runs there: stop it first.")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(SOCKET_FILE_MODE)
        listener.listen(BACKLOG)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _listen(address: str, port: int) -> socket.socket:
    is_ipv4 = ipaddress.ip_address(address).version == 4
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    return socket.create_server((address, port), family=family, backlog=BACKLOG)


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
