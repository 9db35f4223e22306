from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_names import BIG, tables
from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.models.table import (
    NO_TABLE,
    LocalModel,
    Table,
    TableFile,
    encode_table,
    parse_table,
)


@given(tables())
def test_what_is_written_is_read(table: Table) -> None:
    assert parse_table(encode_table(table)) == table


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_a_table_or_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_table(data)


def test_models_and_aliases_come_and_go(tmp_path: Path) -> None:
    file = TableFile(tmp_path / "home")
    assert file.read() is NO_TABLE
    file.put_model(BIG)
    file.put_alias("gpt-4o", BIG.name)
    assert TableFile(tmp_path / "home").read() == Table({BIG.name: BIG}, {"gpt-4o": BIG.name})
    file.remove_alias("gpt-4o")
    assert file.read() == Table({BIG.name: BIG})
    assert [path.name for path in file.path.parent.iterdir()] == ["models.json"]


def test_what_is_not_there_cannot_be_removed(tmp_path: Path) -> None:
    file = TableFile(tmp_path)
    with pytest.raises(ConfigError, match="gpt-4o"):
        file.remove_alias("gpt-4o")


def test_names_that_cannot_be_given(tmp_path: Path) -> None:
    file = TableFile(tmp_path)
    file.put_model(BIG)
    for alias, target in [
        ("auto", BIG.name),
        ("a b", BIG.name),
        ("ok", "A B"),
        (BIG.name, "auto"),
        (DEFAULT_MODEL.name, "auto"),
    ]:
        with pytest.raises(ConfigError):
            file.put_alias(alias, target)
    for name in ("auto", "Big", "", DEFAULT_MODEL.name):
        with pytest.raises(ConfigError):
            file.put_model(LocalModel(name, BIG.path, BIG.artifact, "", 1, 1))
    assert file.read() == Table({BIG.name: BIG})


ENTRY = {"path": "/m", "artifact": "a" * 64, "template": "", "size_bytes": 1, "n_params": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        {"version": 2},
        {"version": 1, "models": []},
        {"version": 1, "models": {"ok": []}},
        {"version": 1, "models": {"NOT OK": ENTRY}},
        {"version": 1, "models": {"ok": {**ENTRY, "path": 7}}},
        {"version": 1, "models": {"ok": {**ENTRY, "artifact": "ab"}}},
        {"version": 1, "models": {"ok": {**ENTRY, "template": "ab"}}},
        {"version": 1, "models": {"ok": {**ENTRY, "n_params": True}}},
        {"version": 1, "models": {"ok": {**ENTRY, "size_bytes": -1}}},
        {"version": 1, "aliases": {"ok": 7}},
        {"version": 1, "aliases": {"ok": "NOT OK"}},
        {"version": 1, "aliases": {f"a{i}": "auto" for i in range(defaults.MAX_TABLE_ENTRIES + 1)}},
        b" " * (defaults.MAX_TABLE_BYTES + 1),
    ],
    ids=lambda content: repr(content)[:40],
)
def test_a_damaged_file_is_named_and_left_alone(
    tmp_path: Path, content: bytes | dict[str, object]
) -> None:
    file = TableFile(tmp_path)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    file.path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"models\.json is damaged") as caught:
        file.read()
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match="damaged"):
        file.put_alias("gpt-4o", "auto")
    assert file.path.read_bytes() == data


def test_a_full_table_takes_no_more(tmp_path: Path) -> None:
    file = TableFile(tmp_path)
    aliases = {f"a{i}": "auto" for i in range(defaults.MAX_TABLE_ENTRIES)}
    file.path.write_bytes(encode_table(Table({}, aliases)))
    with pytest.raises(ConfigError, match="full"):
        file.put_alias("one-more", "auto")
    file.put_alias("a0", DEFAULT_MODEL.name)


def test_a_home_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    file = TableFile(tmp_path / "home")
    with pytest.raises(ConfigError, match="home"):
        file.read()
    with pytest.raises(ConfigError, match="home"):
        file.put_model(BIG)


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=TableFile(tmp_path).put_alias, args=(f"a{i}", "auto"))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TableFile(tmp_path).read().aliases) == 16
