"""Files that are whole or not there, and hashes of large ones. Start at `write_atomically`; who
changes what a file says does it under `folder_lock`."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, while a file in it is read, changed and replaced: of
    two changes at once none is lost. The folder itself is locked, because the file is replaced.
    Raises `OSError`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_small(path: Path, max_bytes: int) -> bytes:
    """All of a small file. Raises `OSError`, and `ValueError` if it is larger than that."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return data


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
