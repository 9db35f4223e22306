"""sha256 of model files, remembered as long as a file looks unchanged. Start at
`HashCache.sha256_of`.

A cache, not a record: a damaged or lost one only costs the time to hash again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from tokenplace import defaults
from tokenplace.models.files import OnBlock, sha256_of, write_atomically
from tokenplace.models.syntax import is_sha256

FILE_NAME: Final = "model-hashes.json"


class HashCache:
    """`model-hashes.json` of one home: path → size, modification time, inode, sha256."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE_NAME

    def sha256_of(self, path: Path, on_block: OnBlock) -> str:
        """sha256 of `path`, from the cache or computed. Blocks while it is computed. Raises
        `OSError`.
        """
        key = str(path.resolve())
        looks = _looks(path)
        entries = self._read()
        if entries.get(key, [])[:-1] == looks:
            return str(entries[key][-1])
        digest = sha256_of(path, on_block)
        # Written to while it was read: the digest is of neither version.
        if _looks(path) != looks:
            raise OSError(None, "the file changed while it was read", str(path))
        self.remember(path, digest)
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """Keep what is known of a file that was hashed elsewhere, as it looks now. Raises
        `OSError`.
        """
        entries = self._read()
        entries.pop(key := str(path.resolve()), None)  # so that it counts among the newest
        self._write({**entries, key: [*_looks(path), digest]})

    def _read(self) -> dict[str, list[int | str]]:
        try:
            entries = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
            return {}
        return entries

    def _write(self, entries: dict[str, list[int | str]]) -> None:
        newest = list(entries.items())[-defaults.MAX_CACHED_HASHES :]
        # A home that cannot be written is somebody else's error to report; hashing works without
        # it.
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(dict(newest), indent=1).encode())


def _looks(path: Path) -> list[int | str]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and [type(item) for item in entry] == [int, int, int, str]
        and is_sha256(entry[-1])
    )
