"""What is read of a GGUF before it is loaded: of a real file, of files the gguf package writes, and
of hostile ones.
"""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.gguf_files import FACTS, gguf, text, text_array, text_value, u32_value
from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.models.gguf_child import facts_of
from tokenplace.models.gguf_info import KV_BLOCK_BYTES, GgufFacts, parse_facts, read_facts

WHOLE = gguf()
N_LAYERS, N_EMBD, N_HEADS = 3, 64, 4


def write_model(path: Path, arch: str = "llama", *, kv_heads: int | list[int] = 2) -> None:
    """A model without sense, as the package's own writer makes it."""
    writer = package.GGUFWriter(path, arch)
    writer.add_context_length(1024)
    writer.add_block_count(N_LAYERS)
    writer.add_embedding_length(N_EMBD)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_token_list([f"word-{number}" for number in range(100)])
    writer.add_token_scores([0.0] * 100)
    if arch == "bert":
        writer.add_pooling_type(package.PoolingType.MEAN)
    else:
        writer.add_key_length(24)
        writer.add_value_length(8)
        writer.add_chat_template("{{ messages }}")
        writer.add_file_type(package.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("token_embd.weight", np.zeros((100, N_EMBD), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(N_EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# ---------------------------------------------------------------- what is read


async def test_the_real_model(tiny_model: Path) -> None:
    facts = await read_facts(tiny_model)
    assert facts == GgufFacts(
        architecture="llama",
        n_params=DEFAULT_MODEL.n_params,
        quantization=DEFAULT_MODEL.quantization,
        n_ctx_train=DEFAULT_MODEL.n_ctx_train,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        key_length=64,
        value_length=64,
        kv_values=30 * 3 * (64 + 64),
        n_embd=576,
        n_vocab=49_152,
        has_chat_template=True,
        pooling="",
        size_bytes=DEFAULT_MODEL.size_bytes,
    )
    assert facts.kv_bytes_per_token("f16") == 23_040


async def test_what_the_packages_writer_wrote(path: Path) -> None:
    write_model(path)
    facts = await read_facts(path)
    assert (facts.architecture, facts.quantization, facts.pooling) == ("llama", "Q4_K_M", "")
    assert (facts.n_ctx_train, facts.n_layers, facts.n_vocab) == (1024, N_LAYERS, 100)
    assert (facts.key_length, facts.value_length) == (24, 8)
    assert facts.kv_values == N_LAYERS * 2 * (24 + 8)
    assert facts.n_params == 100 * N_EMBD + N_EMBD
    assert facts.has_chat_template
    assert facts.size_bytes > 100 * N_EMBD * 2


def test_layers_may_have_heads_of_their_own(path: Path) -> None:
    write_model(path, kv_heads=[4, 0, 1])
    facts = facts_of(path)
    assert facts["n_kv_heads"] == 4
    assert facts["kv_values"] == (4 + 0 + 1) * (24 + 8)


def test_a_model_for_embeddings(path: Path) -> None:
    write_model(path, "bert")
    facts = facts_of(path)
    assert facts["pooling"] == "mean"
    assert facts["quantization"] == "F16", "without a file type, that of most weights"
    assert (facts["key_length"], facts["value_length"]) == (N_EMBD // N_HEADS,) * 2
    assert not facts["has_chat_template"]


def test_a_file_that_says_little_has_facts_too(path: Path) -> None:
    path.write_bytes(WHOLE)
    facts = parse_facts(facts_of(path))
    assert (facts.n_vocab, facts.quantization, facts.kv_values) == (3, "F32", 0)


def test_types_newer_than_the_package_are_no_fault(path: Path) -> None:
    tensor = text("blk.0.weight") + struct.pack("<IQQ", 2, 4, 8)
    data = gguf(u32_value("general.file_type", 999))
    for old in (tensor, text("blk.1.weight") + struct.pack("<IQQ", 2, 4, 8)):
        at = data.index(old) + len(old)
        data = data[:at] + struct.pack("<I", 777) + data[at + 4 :]
    path.write_bytes(data)
    assert facts_of(path)["quantization"] == "type 777"


def test_bytes_of_the_kv_cache_are_llamas() -> None:
    for name, n_bytes in KV_BLOCK_BYTES.items():
        block, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType[name.upper()]]
        assert size / block == n_bytes / 32


# ---------------------------------------------------------------- hostile files


def keys_first(*keys: bytes, n_keys: int | None = None) -> bytes:
    """A file that is nothing but keys."""
    n_keys = len(keys) if n_keys is None else n_keys
    return b"GGUF" + struct.pack("<IQQ", 3, 0, n_keys) + b"".join(keys) + bytes(64)


HOSTILE = [
    (b"", "not a GGUF"),
    (b"<html>not found</html>", "not a GGUF"),
    (WHOLE[:-128], "cut off"),
    (WHOLE[:100], "cut off"),
    (keys_first(n_keys=1 << 60), "claims 1152921504606846976 keys"),
    (WHOLE[:8] + struct.pack("<Q", 1 << 60) + WHOLE[16:], "tensors"),
    (keys_first(text("a") + struct.pack("<IIQ", 9, 8, 1 << 60)), "too many texts"),
    (keys_first(text("a") + struct.pack("<IIQ", 9, 0, 1 << 60)), "cut off"),
    (keys_first(text("a") + struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
    (keys_first(struct.pack("<Q", 1 << 50)), "bytes"),
    (keys_first(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1)), "no sense"),
    (keys_first(u32_value("a", 1), u32_value("a", 2)), "no sense"),
]


@pytest.mark.parametrize(("data", "says"), HOSTILE)
async def test_a_hostile_file_is_refused_with_its_name_and_reason(
    path: Path, data: bytes, says: str
) -> None:
    write(path, data)
    with pytest.raises(ConfigError) as caught:
        await read_facts(path)
    assert caught.value.detail.startswith(f"{path}: ")
    assert says in caught.value.detail


async def test_what_is_no_file_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        await read_facts(path)
    with pytest.raises(ConfigError, match="directory"):
        await read_facts(path.parent)


async def test_texts_that_are_no_utf8_are_shown_as_such(path: Path) -> None:
    value = struct.pack("<Q", 4) + b"\xff\xfe\x1b["
    name = text("general.architecture") + struct.pack("<I", 8) + value
    write(path, keys_first(name, text_value("tokenizer.chat_template", "x")))
    facts = await read_facts(path)
    assert facts.architecture == "\ufffd\ufffd?["


async def test_figures_beyond_sense_count_as_none(path: Path) -> None:
    huge = text("llama.block_count") + struct.pack("<IQ", 10, (1 << 64) - 1)
    negative = text("llama.attention.head_count") + struct.pack("<Iq", 11, -3)
    write(path, gguf(huge, negative, text_value("llama.embedding_length", "many")))
    facts = await read_facts(path)
    assert (facts.n_layers, facts.n_heads, facts.n_embd) == (0, 0, 0)


@pytest.mark.slow
async def test_a_header_of_gigabytes_fills_nobodys_memory(path: Path) -> None:
    megabyte = 1 << 20
    n_keys = defaults.FACTS_MEMORY_BYTES // megabyte + 100
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, n_keys))
        for number in range(n_keys):  # holes: no disk is taken
            file.write(text(f"k{number}") + struct.pack("<IQ", 8, megabyte))
            file.seek(megabyte, 1)
        file.truncate(file.tell() + 64)
    with pytest.raises(ConfigError, match="MemoryError"):
        await read_facts(path)


def test_many_texts_are_stepped_over(path: Path) -> None:
    write(path, gguf(text_array("tokenizer.ggml.merges", ["a b"] * 300_000)))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tokenplace.models.gguf_child import facts_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "facts_of(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30_000, "KB; the package alone takes a kilobyte for each text"


async def test_a_reader_that_takes_too_long_is_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, WHOLE)
    monkeypatch.setattr(defaults, "FACTS_TIMEOUT_S", 0.0)
    with pytest.raises(ConfigError, match="not read after 0 s"):
        await read_facts(path)


async def test_without_the_package_the_hint_is_how_to_get_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(path, WHOLE)
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError(\"No module named 'gguf'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tokenplace\[donate\]"):
        await read_facts(path)


# ---------------------------------------------------------------- facts as JSON


def test_facts_survive_json() -> None:
    assert parse_facts(dataclasses.asdict(FACTS)) == FACTS


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {**dataclasses.asdict(FACTS), "more": 1}]
    + [{**dataclasses.asdict(FACTS), "n_layers": wrong} for wrong in (-1, 1.5, "1", True, None)],
)
def test_other_json_is_no_facts(value: Any) -> None:
    with pytest.raises(ValueError, match="fact"):
        parse_facts(value)


@given(st.sampled_from(sorted(KV_BLOCK_BYTES)), st.integers(0, 1 << 40))
def test_smaller_types_take_less(kv_type: str, kv_values: int) -> None:
    facts = dataclasses.replace(FACTS, kv_values=kv_values)
    assert facts.kv_bytes_per_token(kv_type) <= 2 * kv_values == facts.kv_bytes_per_token("f16")
