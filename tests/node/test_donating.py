"""Donated models from their files on, with fake engines and with the real small model."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.engine.parts import raw
from tests.models.gguf_files import gguf
from tests.node.engines import Shelf
from tests.node.test_loading import is_settled
from tokenplace import defaults
from tokenplace.engine.engine import Engine, open_engine
from tokenplace.errors import Unsupported
from tokenplace.features import Feature
from tokenplace.generation import Event, Finished, TextInput
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.models.store import ModelStore
from tokenplace.models.table import TableFile
from tokenplace.node.donating import Donations
from tokenplace.node.donation import Donation, DonationState
from tokenplace.node.loading import OpenEngine
from tokenplace.node.status import _model
from tokenplace.operations import CountRequest, EmbedRequest
from tokenplace.settings import Settings

WAIT_S = 120.0  # however busy the machine is


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", TableFile(tmp_path / "home"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two small models that no llama.cpp would run."""
    paths = [tmp_path / f"{name}.gguf" for name in ("alice", "bob")]
    for path in paths:
        path.write_bytes(gguf(filling=path.name[:1].encode()))
    return [str(path) for path in paths]


@asynccontextmanager
async def donating(
    store: ModelStore,
    donate: list[str],
    opener: OpenEngine,
    *,
    say: Callable[[str], None] = print,
    **changes: Any,
) -> AsyncIterator[Donations]:
    """All models have been loaded once, or have failed, when the block starts."""
    settings = Settings(store.table.path.parent, donate=tuple(donate), **{"n_threads": 2} | changes)
    donations = Donations([*map(Donation, donate)], say, open_engine=opener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(donations.run, settings, store)
        await until(lambda: all(is_settled(d) for d in donations.all))
        yield donations
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def ask(donations: Donations, artifact: str) -> list[Event]:
    request = replace(raw("One, two,", max_tokens=3), artifact=artifact)
    async with donations.models()[artifact].generate(request) as events:
        return [event async for event in events]


# ---------------------------------------------------------------- with fake engines


async def test_what_was_set_reaches_every_engine(store: ModelStore, files: list[str]) -> None:
    shelf = Shelf()
    changes: dict[str, Any] = {
        "n_ctx": 256,
        "n_slots": 3,
        "n_gpu_layers": 7,
        "flash_attention": "on",
        "kv_type": "q8_0",
    }
    async with donating(store, files, shelf.open, **changes) as donations:
        assert [d.name for d in donations.all] == ["alice", "bob"]
        assert len(donations.offered()) == len(donations.models()) == 2
        assert donations.load().decode_tps == 80
        for own in donations.own_models():
            events = await ask(donations, own.offered.artifact)
            assert isinstance(events[-1], Finished)
    assert len(shelf.specs) == 2
    for spec in shelf.specs:
        assert {name: getattr(spec, name) for name in changes} == changes
        assert spec.n_threads == 1, "two share two cores"


async def test_a_model_that_is_too_large_says_both_figures(
    store: ModelStore, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "WORKER_OVERHEAD_BYTES", 2_000_000_000)
    shelf = Shelf()
    async with donating(store, files, shelf.open, memory_gb=1.25) as donations:
        for donation in donations.all:
            assert donation.state is DonationState.FAILED
            assert "at least 2.00 GB" in donation.reason
            assert "may take 1.25 GB" in donation.reason
            assert "--memory" in donation.reason
    assert shelf.specs == []


async def test_each_gets_all_threads_where_they_take_turns(
    store: ModelStore, files: list[str]
) -> None:
    room = (defaults.WORKER_OVERHEAD_BYTES * 1.5) / 1e9
    shelf = Shelf()
    async with donating(store, files, shelf.open, memory_gb=room) as donations:
        assert shelf.most == 1
        assert [d.state.value for d in donations.all] == ["unloaded", "offered"]
        alice, bob = donations.offered()
        for offered in (alice, bob, alice):
            assert isinstance((await ask(donations, offered.artifact))[-1], Finished)
    assert [spec.n_threads for spec in shelf.specs] == [2] * 5, "two at first, then one a question"
    assert shelf.most == 1


async def test_files_that_cannot_be_used_do_not_stop_the_others(
    store: ModelStore, files: list[str], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf()[:-128])
    absent = str(tmp_path / "absent.gguf")
    copy = tmp_path / "copy.gguf"
    shutil.copy(files[0], copy)
    donate = [str(cut), absent, files[0], "no-such-model", str(copy)]
    async with donating(store, donate, Shelf().open) as donations:
        by_name = {d.what: d for d in donations.all}
        assert by_name[files[0]].state is DonationState.OFFERED
        for what, reason in (
            (str(cut), f"{cut}: it is cut off"),
            (absent, f"{absent}: No such file"),
            ("no-such-model", "neither a model's name"),
            (str(copy), "the same file as"),
        ):
            assert by_name[what].state is DonationState.FAILED
            assert reason in by_name[what].reason
        assert len(donations.offered()) == 1


@pytest.mark.parametrize("is_first", [True, False])
async def test_whether_the_owner_goes_first_is_told_to_the_engine(
    store: ModelStore, files: list[str], is_first: bool
) -> None:
    shelf = Shelf()
    async with donating(store, files[:1], shelf.open, is_owner_first=is_first):
        assert [spec.is_owner_first for spec in shelf.specs] == [is_first]


async def test_a_file_that_was_replaced_is_not_loaded_again(
    store: ModelStore, tmp_path: Path, tiny_model: Path
) -> None:
    path = store.models_dir / tiny_model.name
    store.models_dir.mkdir()
    os.link(tiny_model, path)
    shelf = Shelf()
    async with donating(store, [DEFAULT_MODEL.name], shelf.open, idle_unload_min=1e-9) as donations:
        (donation,) = donations.all
        artifact = donations.offered()[0].artifact
        await until(lambda: donation.state is DonationState.UNLOADED)
        path.unlink()
        with path.open("wb") as file:
            file.truncate(DEFAULT_MODEL.size_bytes)
        with pytest.raises(Exception, match="does not offer"):
            await ask(donations, artifact)
        assert "sha256 differs" in donation.reason
        assert donations.models() == {}


async def test_the_status_says_how_far_it_is(store: ModelStore, files: list[str]) -> None:
    waiting = _model(Donation("alice"))
    assert (waiting["state"], waiting["n_ctx"], waiting["memory_bytes"]) == ("waiting", None, None)
    async with donating(store, files[:1], Shelf().open) as donations:
        status = _model(donations.all[0])
    assert status["state"] == "offered"
    assert (status["architecture"], status["quantization"]) == ("llama", "F32")
    assert status["n_slots"] == 4
    assert status["memory_bytes"] > defaults.WORKER_OVERHEAD_BYTES


# ---------------------------------------------------------------- with real workers


@pytest.mark.slow
async def test_real_models_come_go_and_come_back(
    store: ModelStore, tmp_path: Path, tiny_model: Path
) -> None:
    """Two models in two workers, with memory for one: the same weights, with a byte of difference
    behind them.
    """
    other = tmp_path / "other.gguf"
    shutil.copy(tiny_model, other)
    with other.open("ab") as file:
        file.write(b"\0")
    donate = [str(tiny_model), str(other)]
    changes: dict[str, Any] = {"n_ctx": 256, "n_slots": 2, "memory_gb": 0.6, "n_threads": 1}
    async with donating(store, donate, open_engine, **changes) as donations:
        first, second = donations.all
        assert (first.state, second.state) == (DonationState.UNLOADED, DonationState.OFFERED)
        assert second.info is not None
        assert (second.info.n_ctx, second.info.n_slots) == (256, 2)
        assert isinstance(second.engine, Engine)
        worker = psutil.Process(second.engine.worker_pid)
        assert first.info is not None
        events = await ask(donations, first.info.artifact)
        assert isinstance(events[-1], Finished)
        assert (first.state, second.state) == (DonationState.OFFERED, DonationState.UNLOADED)
        assert not worker.is_running(), "its memory was given back for the other"
        assert donations.load().decode_tps > 0
        assert first.reason == second.reason == ""


@pytest.mark.slow
async def test_a_model_for_embeddings_is_given_like_others(
    store: ModelStore, embedding_model: Path
) -> None:
    said: list[str] = []
    donate, changes = [str(embedding_model)], {"n_threads": 1, "memory_gb": 1.0}
    async with donating(store, donate, open_engine, say=said.append, **changes) as donations:
        (offered,) = donations.offered()
        assert (offered.features, offered.template) == ((Feature.EMBEDDINGS,), "")
        assert any("vectors of 384 numbers" in line for line in said)
        assert donations.load().prefill_tps > 0
        model = donations.models()[offered.artifact]
        answer = await model.embed(EmbedRequest("", ("hi",), artifact=offered.artifact))
        assert len(answer.vectors[0]) == 384 * 4
        count = CountRequest("", TextInput("hi"), "2026-03-01", offered.artifact)
        assert await model.count(count) == 3
        with pytest.raises(Unsupported):
            await ask(donations, offered.artifact)


@pytest.mark.slow
async def test_a_real_worker_takes_no_more_than_was_reckoned(
    store: ModelStore, tiny_model: Path
) -> None:
    changes: dict[str, Any] = {"n_ctx": 1024, "n_slots": 2, "n_threads": 1}
    me = psutil.Process()
    others = {child.pid for child in me.children(recursive=True)}
    async with donating(store, [str(tiny_model)], open_engine, **changes) as donations:
        (donation,) = donations.all
        assert donation.share is not None
        assert isinstance(donation.engine, Engine)
        await ask(donations, donations.offered()[0].artifact)
        mine = [child for child in me.children(recursive=True) if child.pid not in others]
        taken = sum(child.memory_info().rss for child in mine)
        assert taken <= donation.share.n_bytes <= 2 * taken
