"""What a GGUF file says about itself, read without llama.cpp. Start at `read_gguf`.

Only the header is read (format: ggml's docs/gguf.md, versions 2 and 3), and every length in it is
checked against the file before it is believed. Differs from llama.cpp's reader: it answers in
milliseconds, in any process, and cannot abort it.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_KEYS: Final = 1 << 14  # real files have under 100
_MAX_TENSORS: Final = 1 << 16  # the largest mixtures of experts have a few thousand
_MAX_STRINGS: Final = (
    1 << 22
)  # in all arrays; the largest vocabularies have 262,144 and as many merges
_MAX_TEXT_BYTES: Final = 1 << 20  # a template or name; the longest chat templates are 20 KB
_MAX_DIMS: Final = 4
_MAX_DIM: Final = 1 << 40

# Value types of the format's metadata.
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"} | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING: Final = 8
_ARRAY: Final = 9


class GgufError(ValueError):
    """The bytes are not a whole GGUF file that we can read; the text says where."""


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """chat_template: empty when the file has none. n_ctx_train: tokens, 0 when not said. n_parts:
    files it consists of.
    """

    architecture: str
    chat_template: str
    n_ctx_train: int
    n_params: int
    n_parts: int


def read_gguf(path: Path) -> GgufInfo:
    """Read a GGUF's header. Raises `GgufError`, and `OSError` when the file cannot be read."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise GgufError("it is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_gguf(data)


def parse_gguf(data: bytes | mmap.mmap) -> GgufInfo:
    """The same, from bytes. Raises `GgufError`."""
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise GgufError("it is not a GGUF file")
    version = reader.scalar("<I")
    if version not in _VERSIONS:
        raise GgufError(f"its GGUF version is {version}, not 2 or 3")
    n_tensors, n_keys = reader.count(_MAX_TENSORS, "tensors"), reader.count(_MAX_KEYS, "keys")
    values: dict[str, str | float] = {}
    for _ in range(n_keys):
        key = reader.text()
        value = reader.value(reader.scalar("<I"))
        if value is not None:
            values[key] = value
    n_params, last_offset = _read_tensors(reader, n_tensors)
    alignment = _whole_number(values, "general.alignment") or 32
    data_start = -(-reader.position // alignment) * alignment
    if n_tensors and data_start + last_offset >= len(data):
        raise GgufError("it is cut off: its last tensors are missing")
    architecture = str(values.get("general.architecture", ""))
    return GgufInfo(
        architecture=architecture,
        chat_template=str(values.get("tokenizer.chat_template", "")),
        n_ctx_train=_whole_number(values, f"{architecture}.context_length"),
        n_params=n_params,
        n_parts=_whole_number(values, "split.count") or 1,
    )


def _read_tensors(reader: _Reader, n_tensors: int) -> tuple[int, int]:
    """(numbers in all tensors, where the last one starts)."""
    n_params = last_offset = 0
    for _ in range(n_tensors):
        reader.text()
        n_dims = reader.scalar("<I")
        if n_dims > _MAX_DIMS:
            raise GgufError(f"a tensor has {n_dims} dimensions")
        dims = [reader.count(_MAX_DIM, "numbers in a tensor") for _ in range(int(n_dims))]
        reader.scalar("<I")  # the quantization
        n_params += math.prod(dims)
        last_offset = max(last_offset, int(reader.scalar("<Q")))
    return n_params, last_offset


def _whole_number(values: dict[str, str | float], key: str) -> int:
    value = values.get(key, 0)
    return value if isinstance(value, int) and value > 0 else 0


class _Reader:
    """Reads forward through `data`; never past its end."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._n_strings_left = _MAX_STRINGS
        self.position = 0

    def take(self, n_bytes: int) -> bytes:
        start = self.skip(n_bytes)
        return self._data[start : self.position]

    def skip(self, n_bytes: int) -> int:
        start = self.position
        if n_bytes > len(self._data) - start:
            raise GgufError("it is cut off in its header")
        self.position = start + n_bytes
        return start

    def scalar(self, layout: str) -> float:
        (value,) = struct.unpack_from(layout, self._data, self.skip(struct.calcsize(layout)))
        number: float = value
        return number

    def count(self, most: int, what: str) -> int:
        number = int(self.scalar("<Q"))
        if number > most:
            raise GgufError(f"it claims {number} {what}")
        return number

    def text(self) -> str:
        n_bytes = int(self.scalar("<Q"))
        if n_bytes > _MAX_TEXT_BYTES:
            raise GgufError(f"a text in its header has {n_bytes} bytes")
        return self.take(n_bytes).decode("utf-8", "replace")

    def value(self, kind: float) -> str | float | None:
        """A scalar or text; None for an array, which is only skipped."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            self._skip_array()
            return None
        layout = _SCALARS.get(int(kind))
        if layout is None:
            raise GgufError(f"its header holds a value of unknown type {kind}")
        return self.scalar(layout)

    def _skip_array(self) -> None:
        kind, n_items = int(self.scalar("<I")), int(self.scalar("<Q"))
        layout = _SCALARS.get(kind)
        if layout is not None:
            self.skip(n_items * struct.calcsize(layout))
        elif kind == _STRING:
            self._n_strings_left -= n_items
            if self._n_strings_left < 0:
                raise GgufError("its header holds too many texts")
            for _ in range(n_items):
                self.skip(int(self.scalar("<Q")))
        else:
            raise GgufError(f"its header holds an array of unknown type {kind}")
