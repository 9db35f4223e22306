"""The child process that reads a GGUF's metadata with the gguf package: `python -m
tokenplace.models.gguf_child FILE`, started by `gguf_info.py`. Start at `facts_of`.

It says one JSON line on stdout: the facts, or {"error": text}. A process of its own, because the
package brings numpy along, and because it believes what a file says: it keeps two arrays for each
word of the vocabulary (2.7 s and 160 MB for 49,152), and a count of 2^60 keeps it busy for ever. So
the file passes our own look at its header first, and lists of texts are stepped over.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from gguf.constants import (
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
    LlamaFileType,
    PoolingType,
)
from gguf.gguf_reader import GGUFReader, ReaderField

from tokenplace import defaults
from tokenplace.models.gguf import GgufError, GgufInfo, read_gguf

_LENGTH: Final = struct.Struct("<Q")
_MAX_LIST: Final = 1 << 12  # numbers of a list that is read: one for each layer
_MAX_NUMBER: Final = 1 << 40
_MAX_CHARS: Final = 64


class Header(GGUFReader):
    """A GGUF's metadata without its vocabulary and weights. The file was looked at before.

    weights: numbers in the tensors of each type.
    """

    weights: Counter[int]

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """As the base's, but an array is one part, and none at all if it has texts or is long."""
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(self._get(orig_offs, "<u4")[0])
        n_items = int(self._get(orig_offs + 4, "<u8")[0])
        types = [GGUFValueType.ARRAY, kind]
        start = orig_offs + 12
        counts = [self._get(orig_offs, "<u4"), self._get(orig_offs + 4, "<u8")]
        if kind is GGUFValueType.STRING:
            return self._end_of_texts(start, n_items) - orig_offs, counts, [], types
        items = self._get(start, self.gguf_scalar_to_np[kind], n_items)
        size = 12 + int(items.nbytes)
        if n_items > _MAX_LIST:
            return size, counts, [], types
        return size, [*counts, items], [2], types

    def _end_of_texts(self, position: int, n_items: int) -> int:
        data = self.data.data
        for _ in range(n_items):
            (n_bytes,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size + n_bytes
        return position

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        """Counts them only: a type that the package does not know may be llama.cpp's newest."""
        self.weights = Counter()
        for field in fields:
            _length, _name, _n_dims, dims, kind, _offset = field.parts
            n_weights = 1
            for dim in dims:
                n_weights *= int(dim)
            self.weights[int(kind[0])] += n_weights

    # ------------------------------------------------------------ by key

    def numbers(self, key: str) -> list[int]:
        """What the file says under this key: a number, or one for each layer; none if neither."""
        field = self.get_field(key)
        value: Any = field.contents() if field is not None and field.data else None
        values: list[int] = value if isinstance(value, list) else [value]
        is_sane = all(type(one) is int and 0 <= one < _MAX_NUMBER for one in values)
        return values if is_sane else []

    def number(self, key: str) -> int:
        """The same for a key that has one number; 0 if it is not there."""
        values = self.numbers(key)
        return values[0] if len(values) == 1 else 0

    def length(self, key: str) -> int:
        """How many items the list under this key has; 0 if it is not there."""
        field = self.get_field(key)
        if field is None or field.types[:1] != [GGUFValueType.ARRAY]:
            return 0
        return int(field.parts[4][0])  # behind the key's length and text, its type, the items' type


def facts_of(path: Path) -> dict[str, Any]:
    """What `gguf_info.GgufFacts` holds. Raises `GgufError`, `OSError`, and whatever the package
    does.
    """
    info = read_gguf(path)
    header = Header(path)
    arch = info.architecture

    def number(key: str) -> int:
        return header.number(key.format(arch=arch))

    n_layers, n_heads = number(Keys.LLM.BLOCK_COUNT), number(Keys.Attention.HEAD_COUNT)
    n_embd = number(Keys.LLM.EMBEDDING_LENGTH)
    width = n_embd // max(1, n_heads)
    kv_heads = header.numbers(Keys.Attention.HEAD_COUNT_KV.format(arch=arch)) or [n_heads]
    if len(kv_heads) == 1:
        kv_heads *= min(n_layers, _MAX_LIST)
    key_length = number(Keys.Attention.KEY_LENGTH) or width
    value_length = number(Keys.Attention.VALUE_LENGTH) or width
    return {
        "architecture": printable(arch),
        "n_params": info.n_params,
        "quantization": quantization_of(header),
        "n_ctx_train": info.n_ctx_train,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": max(kv_heads, default=0),
        "key_length": key_length,
        "value_length": value_length,
        "kv_values": sum(kv_heads) * (key_length + value_length),
        "n_embd": n_embd,
        "n_vocab": header.length(Keys.Tokenizer.LIST) or number(Keys.LLM.VOCAB_SIZE),
        "has_chat_template": bool(info.chat_template),
        "pooling": pooling_of(header, info),
        "size_bytes": path.stat().st_size,
    }


def printable(text: str) -> str:
    """A short text out of the file, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_CHARS])


def quantization_of(header: Header) -> str:
    """The name of the file's type, as in file names: "Q4_K_M"; without one, of most weights'."""
    field = header.get_field(Keys.General.FILE_TYPE)
    try:
        if field is not None:
            return LlamaFileType(field.contents()).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        pass  # newer than the package
    ((kind, _),) = header.weights.most_common(1) or [(GGMLQuantizationType.F32.value, 0)]
    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"type {kind}"


def pooling_of(header: Header, info: GgufInfo) -> str:
    """How a model made for embeddings makes one vector of a text: "mean", "cls", "last" or "rank";
    empty for one that generates.
    """
    kind = header.number(Keys.LLM.POOLING_TYPE.format(arch=info.architecture))
    return PoolingType(kind).name.lower() if kind in (1, 2, 3, 4) else ""


def main(path: str) -> None:
    """Say the facts of one file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not of the address space, in which the mapped weights count.
    resource.setrlimit(resource.RLIMIT_DATA, (defaults.FACTS_MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (defaults.FACTS_CPU_S,) * 2)
    try:
        answer = facts_of(Path(path))
    except GgufError as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": error.strerror or "it cannot be read"}
    # The one seam behind which anything may be raised: a library that reads a stranger's file.
    except Exception as error:
        answer = {"error": f"its header makes no sense ({type(error).__name__})"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
