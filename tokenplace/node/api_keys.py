"""The file of API keys. Start at `read_api_keys`.

Read once, at the start of a peer. One key a line; empty lines and lines that begin with # do not
count. Whoever else could read it could use the API in the user's name, so such a file is refused,
as ssh does with keys.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from tokenplace import defaults
from tokenplace.errors import ConfigError

MAX_FILE_BYTES: Final = defaults.API_MAX_KEYS * (defaults.API_MAX_KEY_CHARS + 1)
# What can stand in an Authorization header and is no space: RFC 6750's characters, and others that
# providers use.
_KEY: Final = re.compile(r"[!-~]+")


def read_api_keys(path: Path) -> tuple[str, ...]:
    """The keys in the file, at least one. Raises `ConfigError`, which shows no key."""
    try:
        text = _read_private(path).decode("ascii")
    except OSError as error:
        raise ConfigError(f"{path}: the API keys cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: a key has characters outside ASCII.") from None
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not _is_key(key):
            raise ConfigError(
                f"{path}:{number}: this is no API key.",
                hint=f"A key has {defaults.API_MIN_KEY_CHARS} to {defaults.API_MAX_KEY_CHARS}"
                " characters and no spaces; `openssl rand -hex 24` makes one.",
            )
        keys.append(key)
    if not 1 <= len(keys) <= defaults.API_MAX_KEYS:
        raise ConfigError(
            f"{path}: there are {len(keys)} API keys in it.",
            hint=f"It must hold one key a line, at most {defaults.API_MAX_KEYS}.",
        )
    return tuple(keys)


def _read_private(path: Path) -> bytes:
    # Not waiting for somebody to write, if it is a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path} is no file of API keys.")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"{path}: others can read the API keys in it.", hint=f"Run: chmod 600 {path}"
            )
        data = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is too large for a file of API keys.")
    return data


def _is_key(text: str) -> bool:
    n_chars = len(text)
    is_long_enough = defaults.API_MIN_KEY_CHARS <= n_chars <= defaults.API_MAX_KEY_CHARS
    return is_long_enough and _KEY.fullmatch(text) is not None
