"""What a person can set, and what follows from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenplace.errors import ConfigError
from tokenplace.settings import Settings, models_dir_of

HOME = Path("/home/alice/tokenplace")


@pytest.mark.parametrize("network", ["main", "a", "my-friends-2", "a" * 32])
def test_names_of_networks(network: str) -> None:
    Settings(HOME, network=network).check()


@pytest.mark.parametrize("network", ["", "Main", "-a", "a b", "a/b", "ä", "a" * 33, "main\n"])
def test_what_is_no_name_of_a_network(network: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(HOME, network=network).check()
    assert "main" in caught.value.hint


def test_a_peer_must_have_something_to_do() -> None:
    with pytest.raises(ConfigError, match="nothing to do"):
        Settings(HOME, has_api=False).check()
    Settings(HOME, has_api=False, serve=True).check()


def test_who_donates_serves_or_listens_is_serving() -> None:
    assert not Settings(HOME).is_serving
    assert Settings(HOME, donate=("tiny",)).is_serving
    assert Settings(HOME, serve=True).is_serving
    assert Settings(HOME, listen=("/ip4/127.0.0.1/tcp/0",)).is_serving


@pytest.mark.parametrize(
    ("n_threads", "n_models", "each"), [(8, 1, 8), (8, 3, 2), (1, 2, 1), (4, 0, 4)]
)
def test_threads_are_divided_among_the_models(n_threads: int, n_models: int, each: int) -> None:
    donate = tuple(f"model-{n}" for n in range(n_models))
    assert Settings(HOME, donate=donate, n_threads=n_threads).threads_per_model() == each


def test_without_a_number_every_core_is_taken() -> None:
    assert Settings(HOME).threads_per_model() == (os.cpu_count() or 1)


def test_models_lie_in_the_home_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOKENPLACE_MODELS_DIR", raising=False)
    assert Settings(HOME).models_dir == HOME / "models"
    monkeypatch.setenv("TOKENPLACE_MODELS_DIR", "/srv/models")
    assert models_dir_of(HOME) == Path("/srv/models")
    monkeypatch.setenv("TOKENPLACE_MODELS_DIR", "~/models")
    assert models_dir_of(HOME) == Path.home() / "models"
