"""What a worker is computing right now, readable after it died. Start at `BlackBox.note`.

A few bytes of memory that both processes map. A worker that llama.cpp aborts has no time to say
anything, and with continuous batching any of its requests may be the cause: so it notes beforehand
whose work comes next, which costs a microsecond where a message would cost both sides a switch.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Iterable
from typing import Final

from tokenplace import defaults

_COUNT: Final = struct.Struct("=q")
_MAX_NOTED: Final = defaults.MAX_OPEN_EXCHANGES  # a supervisor never has more in flight
_BYTES: Final = _COUNT.size * (1 + _MAX_NOTED)


class BlackBox:
    """One worker's note. Its parent calls `create`, the worker `open`."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls) -> tuple[BlackBox, int]:
        """A new one, and the descriptor for the worker; whoever gets it must close it."""
        fd = _nameless_file()
        os.ftruncate(fd, _BYTES)
        return cls(mmap.mmap(fd, _BYTES)), fd

    @classmethod
    def open(cls, fd: int | None) -> BlackBox:
        """The worker's end; None: nobody will read it."""
        return cls(mmap.mmap(-1 if fd is None else fd, _BYTES))

    def note(self, requests: Iterable[int]) -> None:
        """What is computed from now on is theirs. Replaces the note before."""
        noted = [*requests][:_MAX_NOTED]
        # Count last: killed in between, the worker has noted nobody rather than somebody else.
        _COUNT.pack_into(self._memory, 0, 0)
        struct.pack_into(f"={len(noted)}q", self._memory, _COUNT.size, *noted)
        _COUNT.pack_into(self._memory, 0, len(noted))

    def clear(self) -> None:
        """Nobody's work is done now."""
        _COUNT.pack_into(self._memory, 0, 0)

    def read(self) -> frozenset[int]:
        """Whose work was done last. May hold anything: a process that went astray wrote it."""
        (n_noted,) = _COUNT.unpack_from(self._memory, 0)
        n_noted = max(0, min(n_noted, _MAX_NOTED))
        return frozenset(struct.unpack_from(f"={n_noted}q", self._memory, _COUNT.size))

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def _nameless_file() -> int:
    if sys.platform == "linux":  # in memory, and no folder for it needs to be writable
        return os.memfd_create("tokenplace")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
