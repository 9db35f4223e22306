"""The home: one folder for all of a peer's state, and one running peer in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tokenplace.errors import ConfigError

# The kernel's limit for the path of a Unix socket is 108 bytes, with the final zero.
MAX_SOCKET_PATH_BYTES: Final = 107


@contextmanager
def open_home(home: Path, control_socket: Path) -> Iterator[None]:
    """Make the home if it is not there and hold it for this process until the block ends.

    The lock is the kernel's, so a killed peer leaves none behind. Raises `ConfigError` if the
    folder cannot be used or another peer runs in it.
    """
    if len(os.fsencode(control_socket)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{home}: this path is too long.", hint="Choose a shorter --home.")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{home}: cannot be used as home: {error.strerror}.", hint="Choose another --home."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"A peer already runs in {home}.",
                hint="Look at it with `tokenplace peer status`, or choose another --home.",
            ) from error
        yield
    finally:
        os.close(descriptor)
