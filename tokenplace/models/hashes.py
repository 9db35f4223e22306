"""sha256 of model files, and what their headers say, remembered as long as a file looks unchanged.
Start at `HashCache.sha256_of`.

A cache, not a record: a damaged or lost one only costs the time to hash again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenplace import defaults
from tokenplace.models.files import OnBlock, sha256_of, write_atomically
from tokenplace.models.gguf_info import GgufFacts, parse_facts
from tokenplace.models.syntax import is_sha256

FILE_NAME: Final = "model-hashes.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of a file. looks: size, modification time, inode. sha256: empty if unknown."""

    looks: tuple[int, int, int]
    sha256: str = ""
    facts: GgufFacts | None = None


class HashCache:
    """`model-hashes.json` of one home: by path, how a file looks, its sha256 and its facts."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE_NAME

    def sha256_of(self, path: Path, on_block: OnBlock) -> str:
        """sha256 of `path`, from the cache or computed. Blocks while it is computed. Raises
        `OSError`.
        """
        entry = self._entry(path)
        if entry.sha256:
            return entry.sha256
        digest = sha256_of(path, on_block)
        # Written to while it was read: the digest is of neither version.
        if _looks(path) != entry.looks:
            raise OSError(None, "the file changed while it was read", str(path))
        self.remember(path, digest)
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """Keep what is known of a file that was hashed elsewhere, as it looks now. Raises
        `OSError`.
        """
        self._put(path, dataclasses.replace(self._entry(path), sha256=digest))

    def facts_of(self, path: Path) -> GgufFacts | None:
        """What its header says, if that was read before. Raises `OSError`."""
        return self._entry(path).facts

    def remember_facts(self, path: Path, facts: GgufFacts) -> None:
        """Keep what was read of a file, as it looks now. Raises `OSError`."""
        self._put(path, dataclasses.replace(self._entry(path), facts=facts))

    def _entry(self, path: Path) -> _Entry:
        """What is known of the file as it looks now."""
        looks = _looks(path)
        entry = self._read().get(str(path.resolve()))
        return entry if entry is not None and entry.looks == looks else _Entry(looks)

    def _put(self, path: Path, entry: _Entry) -> None:
        entries = self._read()
        entries.pop(key := str(path.resolve()), None)  # so that it counts among the newest
        self._write({**entries, key: entry})

    def _read(self) -> dict[str, _Entry]:
        try:
            document = json.loads(self.path.read_bytes())
            return {key: _parse_entry(value) for key, value in document.items()}
        # AttributeError: not an object at all.
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _write(self, entries: dict[str, _Entry]) -> None:
        newest = list(entries.items())[-defaults.MAX_CACHED_HASHES :]
        document = {key: dataclasses.asdict(entry) for key, entry in newest}
        # A home that cannot be written is somebody else's error to report; hashing works without
        # it.
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(document, indent=1).encode())


def _looks(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _parse_entry(value: Any) -> _Entry:
    """Raises `ValueError` or `TypeError` for what this module has not written."""
    if not isinstance(value, dict):
        raise ValueError("not an object")
    entry = _Entry(**value)
    if [type(one) for one in entry.looks] != [int, int, int]:
        raise ValueError("not how a file looks")
    if not isinstance(entry.sha256, str) or (entry.sha256 and not is_sha256(entry.sha256)):
        raise ValueError("not a sha256")
    facts = None if entry.facts is None else parse_facts(entry.facts)
    size, mtime_ns, inode = entry.looks
    return _Entry((size, mtime_ns, inode), entry.sha256, facts)
