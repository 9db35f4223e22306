"""The vectors as files: described, and what their writers write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peer import (
    write_advert_vectors,
    write_gen1_vectors,
    write_op_vectors,
    write_request_vectors,
    write_vectors,
)
from tokenplace.errors import ErrorCode

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_in_the_readme_and_expects_what_there_is(path: Path) -> None:
    assert f"| `{path.name}` |" in (FOLDER / "README.md").read_text("utf-8")
    outcomes = {"success", *ErrorCode}
    chosen = {None, *range(256)} if path.name == "adverts.json" else set()
    for value in values_of("expect", json.loads(path.read_text("utf-8"))):
        assert value in outcomes or value in chosen


def values_of(name: str, data: Any) -> Iterator[Any]:
    """Every value under this key, however deep."""
    if isinstance(data, list):
        for item in data:
            yield from values_of(name, item)
    elif isinstance(data, dict):
        if name in data:
            yield data[name]
        for item in data.values():
            yield from values_of(name, item)


def test_the_writers_write_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_vectors, "PATH", tmp_path / "frames.json")
    monkeypatch.setattr(write_advert_vectors, "PATH", tmp_path / "adverts.json")
    monkeypatch.setattr(write_gen1_vectors, "PATH", tmp_path / "gen1.json")
    monkeypatch.setattr(write_op_vectors, "PATH", tmp_path / "ops.json")
    monkeypatch.setattr(write_request_vectors, "FOLDER", tmp_path)
    writers = (
        *(write_vectors, write_advert_vectors, write_gen1_vectors),
        *(write_op_vectors, write_request_vectors),
    )
    for writer in writers:
        writer.main()
    written = sorted(tmp_path.iterdir())
    assert len(written) == 6
    for path in written:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()
