"""Small GGUF files, made here byte by byte (ggml's docs/gguf.md), and a model's facts."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tokenplace.models.gguf_info import GgufFacts

FACTS = GgufFacts("llama", 1, "Q4_0", 2, 3, 4, 5, 6, 7, 8, 9, 10, True, "", 11)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def text_value(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def u32_value(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def text_array(key: str, values: Sequence[str]) -> bytes:
    head = struct.pack("<IIQ", 9, 8, len(values))
    return text(key) + head + b"".join(map(text, values))


def float_array(key: str, values: Sequence[float]) -> bytes:
    head = struct.pack("<IIQ", 9, 6, len(values))
    return text(key) + head + struct.pack(f"<{len(values)}f", *values)


def gguf(
    *extra: bytes,
    template: str | None = CHAT_TEMPLATE,
    n_tensors: int = 2,
    version: int = 3,
    filling: bytes = b"\x11",
) -> bytes:
    """A file of `n_tensors` tensors of 4 x 8 float32; `filling` makes files that differ."""
    keys = [
        text_value("general.architecture", "llama"),
        u32_value("llama.context_length", 2048),
        text_array("tokenizer.ggml.tokens", ["<unk>", "a", "b"]),
        float_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0]),
        *extra,
    ]
    if template is not None:
        keys.append(text_value("tokenizer.chat_template", template))
    tensor_bytes = 4 * 8 * 4
    tensors = b"".join(
        text(f"blk.{i}.weight") + struct.pack("<IQQIQ", 2, 4, 8, 0, i * tensor_bytes)
        for i in range(n_tensors)
    )
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, len(keys)) + b"".join(keys) + tensors
    return head + bytes(-len(head) % 32) + filling * (n_tensors * tensor_bytes)
