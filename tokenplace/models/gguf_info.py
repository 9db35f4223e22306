"""What a donor must know of a GGUF before it loads it: size, shape, what its KV cache takes. Start
at `read_facts`.

The file is a stranger's: it is read by a child process with limits (`gguf_child.py`), and every
failure is a `ConfigError` that names it. Differs from `gguf.py`, which any peer has without
donating's packages and which only says whether the file is whole and what to call it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tokenplace import defaults
from tokenplace.errors import ConfigError

_CHILD: Final = "tokenplace.models.gguf_child"

# Bytes of 32 numbers in the KV cache, by llama.cpp's names for --cache-type.
_KV_BLOCK: Final = 32
KV_BLOCK_BYTES: Final = {"f16": 64, "q8_0": 34, "q4_0": 18}


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """A model's figures, as its file has them; 0 where it says nothing.

    quantization: as in file names, "Q4_K_M". n_ctx_train: tokens of context it was trained for.
    n_kv_heads: the most that a layer has. kv_values: numbers that the KV cache holds for each
    token, over all layers. pooling: "" for a model that generates, else how it makes a text's
    vector: mean, cls, last or rank.
    """

    architecture: str
    n_params: int
    quantization: str
    n_ctx_train: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    key_length: int
    value_length: int
    kv_values: int
    n_embd: int
    n_vocab: int
    has_chat_template: bool
    pooling: str
    size_bytes: int

    def kv_bytes_per_token(self, kv_type: str) -> int:
        """What one token of context takes in a KV cache of that type, one of `KV_BLOCK_BYTES`."""
        return self.kv_values * KV_BLOCK_BYTES[kv_type] // _KV_BLOCK


_TYPES: Final = {"str": str, "int": int, "bool": bool}
_FIELDS: Final = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(GgufFacts)}


def parse_facts(value: object) -> GgufFacts:
    """The facts in a JSON object, as `dataclasses.asdict` gives them. Raises `ValueError`."""
    if not isinstance(value, dict) or {key: type(one) for key, one in value.items()} != _FIELDS:
        raise ValueError("not the facts of a model")
    if any(type(one) is int and one < 0 for one in value.values()):
        raise ValueError("a fact below 0")
    return GgufFacts(**value)


async def read_facts(path: Path) -> GgufFacts:
    """Read a GGUF's metadata, in a child process. Raises `ConfigError`."""
    try:
        with trio.fail_after(defaults.FACTS_TIMEOUT_S):
            result = await trio.run_process(
                [sys.executable, "-P", "-m", _CHILD, str(path)],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
    except trio.TooSlowError:
        limit = f"{defaults.FACTS_TIMEOUT_S:g} s"
        raise ConfigError(f"{path}: its header was not read after {limit}.") from None
    if result.returncode != 0:
        raise ConfigError(f"{path}: {_why_it_died(result)}.")
    answer: dict[str, Any] = json.loads(result.stdout)
    if "error" in answer:
        raise ConfigError(f"{path}: {answer['error']}.")
    return parse_facts(answer)


def _why_it_died(result: subprocess.CompletedProcess[bytes]) -> str:
    if b"No module named 'gguf'" in result.stderr:
        return "donating needs more packages: pip install 'tokenplace[donate]'"
    status = result.returncode
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"reading its header ended the process ({how})"
