"""What is remembered of model files beside their sha256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.gguf_files import FACTS, gguf
from tokenplace.errors import ConfigError
from tokenplace.models import store as store_module
from tokenplace.models.hashes import HashCache
from tokenplace.models.store import ModelStore
from tokenplace.models.table import TableFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    return path


def no_progress(n_done: int) -> None:
    pass


def test_facts_and_hash_of_a_file_stand_side_by_side(path: Path, tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "home")
    assert cache.facts_of(path) is None
    cache.remember_facts(path, FACTS)
    digest = cache.sha256_of(path, no_progress)
    again = HashCache(tmp_path / "home")
    assert again.facts_of(path) == FACTS
    assert again.sha256_of(path, lambda n_done: pytest.fail("hashed again")) == digest
    path.write_bytes(gguf(filling=b"\x22") + b"more")
    assert again.facts_of(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"looks": [1, 2]},
        {"looks": [1, 2, "3"]},
        {"looks": 7},
        {"sha256": "ab"},
        {"sha256": None},
        {"facts": {}},
        {"facts": 7},
        {"more": 1},
    ],
)
def test_an_entry_that_makes_no_sense_is_no_harm(
    path: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    cache = HashCache(tmp_path)
    cache.remember_facts(path, FACTS)
    document = json.loads(cache.path.read_bytes())
    (entry,) = document.values()
    entry |= change
    cache.path.write_text(json.dumps(document))
    assert cache.facts_of(path) is None
    assert len(cache.sha256_of(path, no_progress)) == 64


async def test_a_header_is_read_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "models", TableFile(tmp_path / "home"))
    facts = await store.facts(path)
    monkeypatch.setattr(store_module, "read_facts", None)
    assert await store.facts(path) == store.known_facts(path) == facts


async def test_facts_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", TableFile(tmp_path / "home"))
    assert store.known_facts(tmp_path / "absent.gguf") is None
    with pytest.raises(ConfigError, match=r"absent\.gguf: No such file"):
        await store.facts(tmp_path / "absent.gguf")
