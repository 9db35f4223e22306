"""Files that are whole or not there, and hashes of large ones. Start at `write_atomically`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1 << 20

OnBlock = Callable[[int], None]
"""Called with the bytes done so far; may raise to stop."""


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path`: after a crash it holds the old or the new bytes. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a crashed process: it could have another mode
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a flushed file and flush the folder, so that the new name survives a power cut."""
    os.replace(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, on_block: OnBlock) -> str:
    """sha256 of a file as 64 hex digits. Blocks: half a second to two seconds a gigabyte."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    n_done = 0
    with path.open("rb", buffering=0) as file:
        while n_read := file.readinto(buffer):
            digest.update(buffer[:n_read])
            n_done += n_read
            on_block(n_done)
    return digest.hexdigest()
