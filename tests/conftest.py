"""Fixtures that every part uses."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.browser.chromium import Browser, Chromium, find_chromium, open_browser, open_chromium

# The same examples on every run, and no failure because the machine was busy.
hypothesis.settings.register_profile("tokenplace", derandomize=True, deadline=None)
hypothesis.settings.load_profile("tokenplace")

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


# Their tests start processes, load models or measure the machine: never two of these at once.
LONE_FOLDERS = frozenset({"benchmarks", "browser", "clients", "drills", "e2e", "lab"})
LONE_FIXTURES = re.compile(r"\b(tiny_model|embedding_model)\b")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Share the tests out between pytest-xdist's workers: what must be alone goes to one of them,
    and every other file to whoever is free.

    xdist's own `loadgroup` would do, but it does nothing with pytest 9.2: nobody reads the node ids
    that it changes.
    """
    return FileScheduling(config, log)


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types for it
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "lone" if is_lone(ROOT / file) else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest part first: the other worker has all the rest meanwhile."""
    items.sort(key=lambda item: not is_lone(item.path))


@cache
def is_lone(file: Path) -> bool:
    folder = file.relative_to(ROOT / "tests").parts[0]
    return folder in LONE_FOLDERS or LONE_FIXTURES.search(file.read_text("utf-8")) is not None


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The real small model: SmolLM2-135M-Instruct Q4_1, put there by `make`."""
    return model_file("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def embedding_model() -> Path:
    """The real small model for vectors: all-MiniLM-L6-v2 in float16, put there by `make test`."""
    return model_file("all-MiniLM-L6-v2.F16.gguf")


def model_file(name: str) -> Path:
    """What the set-up put into the folder of models."""
    folder = Path(os.environ.get("TOKENPLACE_MODELS_DIR", ROOT / ".cache" / "models"))
    path = folder / name
    assert path.exists(), f"{path} is missing: run `make setup-test`"
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One real browser for all tests; those that need it are skipped where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    folder = Path(tempfile.mkdtemp(prefix="tp-chromium-"))
    try:
        with open_chromium(program, folder) as running:
            yield running
    finally:
        # Its last processes may still write there for a moment.
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def browser(chromium: Chromium) -> AsyncIterator[Browser]:
    """A private window of it. `await browser.open_page(url)` opens a tab."""
    async with open_browser(chromium) as window:
        yield window
