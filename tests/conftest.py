"""Fixtures that every part uses."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# The same examples on every run, and no failure because the machine was busy.
hypothesis.settings.register_profile("tokenplace", derandomize=True, deadline=None)
hypothesis.settings.load_profile("tokenplace")

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
