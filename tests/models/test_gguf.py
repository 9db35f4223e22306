from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.gguf_files import CHAT_TEMPLATE, gguf, text, text_array, u32_value
from tokenplace.models.catalogue import DEFAULT_MODEL, template_hash
from tokenplace.models.gguf import GgufError, GgufInfo, parse_gguf, read_gguf

WHOLE = gguf()


def test_header_of_a_small_file() -> None:
    assert parse_gguf(WHOLE) == GgufInfo(
        architecture="llama",
        chat_template=CHAT_TEMPLATE,
        n_ctx_train=2048,
        n_params=2 * 4 * 8,
        n_parts=1,
    )


def test_the_real_model_is_what_the_catalogue_says(tiny_model: Path) -> None:
    info = read_gguf(tiny_model)
    assert info.n_params == DEFAULT_MODEL.n_params
    assert info.n_ctx_train == DEFAULT_MODEL.n_ctx_train
    assert template_hash(info.chat_template) == DEFAULT_MODEL.template
    assert tiny_model.stat().st_size == DEFAULT_MODEL.size_bytes


def test_what_a_file_need_not_have() -> None:
    info = parse_gguf(gguf(u32_value("split.count", 3), template=None))
    assert (info.chat_template, info.n_parts) == ("", 3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"),
        (b"PK\x03\x04" + WHOLE[4:], "not a GGUF"),
        (gguf(version=1), "version is 1"),
        (WHOLE[:4] + struct.pack(">I", 3) + WHOLE[8:], "version is"),
        (WHOLE[:8] + struct.pack("<Q", 1 << 60) + WHOLE[16:], "tensors"),
        (WHOLE[:16] + struct.pack("<Q", 1 << 60) + WHOLE[24:], "keys"),
        (gguf(text("a") + struct.pack("<I", 99)), "unknown type 99"),
        (gguf(text("a") + struct.pack("<IIQ", 9, 9, 1)), "array of unknown type 9"),
        (gguf(text("a") + struct.pack("<IIQ", 9, 8, 1 << 50)), "too many texts"),
        (gguf(text("a") + struct.pack("<IIQ", 9, 0, 1 << 50)), "cut off"),
        (gguf(struct.pack("<Q", 1 << 40)), "bytes"),
        (WHOLE[: len(WHOLE) - 128], "last tensors"),
    ],
)
def test_damaged_files_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(GgufError, match=says):
        parse_gguf(data)


def test_dimensions_are_bounded() -> None:
    tensor = text("blk.0.weight")
    at = WHOLE.index(tensor) + len(tensor)
    with pytest.raises(GgufError, match="9 dimensions"):
        parse_gguf(WHOLE[:at] + struct.pack("<I", 9) + WHOLE[at + 4 :])


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    for data in (b"", b"GG", b"<html>not found</html>"):
        (tmp_path / "model.gguf").write_bytes(data)
        with pytest.raises(GgufError, match="not a GGUF"):
            read_gguf(tmp_path / "model.gguf")


@given(st.integers(0, len(WHOLE) - 129))
def test_every_cut_is_noticed(n_bytes: int) -> None:
    with pytest.raises(GgufError):
        parse_gguf(WHOLE[:n_bytes])


@given(st.integers(4, len(WHOLE) - 1), st.binary(min_size=1, max_size=12))
def test_garbage_in_the_header_ends_in_our_own_error(at: int, garbage: bytes) -> None:
    with contextlib.suppress(GgufError):
        parse_gguf(WHOLE[:at] + garbage + WHOLE[at + len(garbage) :])


@given(st.lists(st.text(max_size=20), max_size=20))
def test_arrays_of_texts_are_skipped_exactly(values: list[str]) -> None:
    assert parse_gguf(gguf(text_array("tokenizer.ggml.merges", values))) == parse_gguf(WHOLE)
