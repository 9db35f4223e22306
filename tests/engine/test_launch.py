"""Why a load failed, and whether it makes sense to try it again later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.gguf_files import gguf
from tokenplace import defaults
from tokenplace.engine import launch
from tokenplace.engine.engine import EngineSpec, open_engine
from tokenplace.engine.launch import LoadInterrupted
from tokenplace.errors import ConfigError

DIES = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


@pytest.fixture
def spec(tmp_path: Path) -> EngineSpec:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    return EngineSpec(path, "tiny-model", "a" * 64, n_threads=1)


@pytest.fixture
def put_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Has a program run in place of the worker."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "_MODULE", "pretended_worker")
    return (tmp_path / "pretended_worker.py").write_text


async def error_of(spec: EngineSpec) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        async with open_engine(spec):
            pass
    assert str(spec.path) in caught.value.detail
    return caught.value


async def test_a_worker_that_the_system_killed_may_be_tried_again(
    spec: EngineSpec, put_worker: Callable[[str], object]
) -> None:
    put_worker(DIES.format("SIGKILL"))
    error = await error_of(spec)
    assert isinstance(error, LoadInterrupted)
    assert "signal 9" in error.detail


async def test_a_worker_that_died_of_the_file_is_not(
    spec: EngineSpec, put_worker: Callable[[str], object]
) -> None:
    put_worker(DIES.format("SIGABRT"))
    error = await error_of(spec)
    assert not isinstance(error, LoadInterrupted)
    assert "signal 6" in error.detail


async def test_a_worker_that_takes_too_long_may_be_tried_again(
    spec: EngineSpec, put_worker: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_worker("import time\ntime.sleep(1000)\n")
    monkeypatch.setattr(defaults, "LOAD_TIMEOUT_S", 0.1)
    error = await error_of(spec)
    assert isinstance(error, LoadInterrupted)
    assert "not loaded after 0.1 s" in error.detail


async def test_what_llama_cpp_refuses_is_final(spec: EngineSpec) -> None:
    error = await error_of(spec)
    assert not isinstance(error, LoadInterrupted)
