"""One network for the tests that leave it as they found it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.network import Network, open_network


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tp-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def _models_dir(tiny_model: Path) -> Iterator[None]:
    """Every peer finds the model there, with `make test` and without: none is fetched anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENPLACE_MODELS_DIR", str(tiny_model.parent))
        yield


@pytest.fixture(scope="session")
def network(short_folder: Path, tiny_model: Path) -> Iterator[Network]:
    """A bootstrap peer, two donors, one peer that asks; nobody may harm it."""
    folder = short_folder / "shared"
    folder.mkdir()
    with open_network(folder, n_donors=2) as network:
        yield network


@pytest.fixture
def client(network: Network) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=network.api, api_key="anything", max_retries=0) as client:
        yield client
