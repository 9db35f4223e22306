"""A small JSON file in the home that commands change while a peer reads it. Start at `UserFile`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tokenplace.errors import ConfigError
from tokenplace.models.files import folder_lock, read_small, write_atomically

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UserFile(Generic[T]):
    """What a file says, as a `T`. Reading and writing block for as long as a small file takes; it
    is replaced whole, so a crash leaves the old or the new one.

    parse: of the file's bytes; raises `ValueError` that says what is wrong. nothing: what no file
    at all says. max_bytes: a larger one is damaged.
    """

    path: Path
    parse: Callable[[bytes], T]
    encode: Callable[[T], bytes]
    nothing: T
    max_bytes: int
    mode: int = 0o644

    def read(self) -> T:
        """What it says now. Raises `ConfigError` if it is damaged or cannot be read."""
        try:
            return self.parse(read_small(self.path, self.max_bytes))
        except FileNotFoundError:
            return self.nothing
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
            raise ConfigError(
                f"{self.path} is damaged: {error}.", hint="Mend it, or move it away to start anew."
            ) from error

    def change(self, change: Callable[[T], T]) -> None:
        """Write what `change` makes of it; of two changes at once none is lost. Raises what `read`
        and `change` raise.
        """
        try:
            with folder_lock(self.path.parent):
                write_atomically(self.path, self.encode(change(self.read())), self.mode)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}.") from error


def parse_document(data: bytes, version: int) -> dict[str, Any]:
    """The JSON object of a file of this format version. Raises `ValueError`."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    if document.get("version") != version:
        raise ValueError(f"version {document.get('version')!r} instead of {version}")
    return document
