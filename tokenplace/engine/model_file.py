"""A model's file, held open. Start at `ModelFile`.

What is loaded, and loaded again after a crash, is the file that was looked at, whatever becomes of
its path; and the worker needs no right to open anything. Without a /proc the path has to do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tokenplace.errors import ConfigError

_GGUF_MAGIC: Final = b"GGUF"
_CLOSED: Final = -1
_DESCRIPTORS: Final = Path("/proc/self/fd")


class ModelFile:
    """Close it."""

    def __init__(self, path: Path) -> None:
        """Open it, and look at its first bytes. Raises `ConfigError`."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}.") from None
        try:
            magic = os.read(self._fd, len(_GGUF_MAGIC))
            self._identity = _identity(os.fstat(self._fd))
        except OSError as error:
            self.close()
            raise ConfigError(f"{path}: {error.strerror}.") from None
        if magic != _GGUF_MAGIC:
            self.close()
            raise ConfigError(f"{path}: not a GGUF file.")

    @property
    def fd(self) -> int:
        """The descriptor that a child must inherit."""
        return self._fd

    @property
    def path_for_child(self) -> str:
        """Where a child that has inherited the descriptor finds the file."""
        return str(_DESCRIPTORS / str(self._fd)) if _DESCRIPTORS.exists() else str(self.path)

    def check(self) -> None:
        """Raises `ConfigError` if it is no longer what it was, as far as its size and times say."""
        try:
            now = os.fstat(self._fd) if _DESCRIPTORS.exists() else self.path.stat()
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}.") from None
        if _identity(now) != self._identity:
            raise ConfigError(f"{self.path}: it is not the file that was hashed.")

    def close(self) -> None:
        """Let go of it. May be called twice."""
        fd, self._fd = self._fd, _CLOSED
        if fd != _CLOSED:
            os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
