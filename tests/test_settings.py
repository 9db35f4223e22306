"""What a person can set, and what follows from it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.models.gguf_info import KV_BLOCK_BYTES
from tokenplace.settings import KV_TYPES, Settings, models_dir_of, parse_gpu_layers

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
    assert Settings(HOME, n_threads=n_threads).threads_each(n_models) == each


def test_without_a_number_every_core_is_taken() -> None:
    assert Settings(HOME).threads_each(1) == (os.cpu_count() or 1)


# ---------------------------------------------------------------- the local API

KEY_FILE = Path("/home/alice/keys")


@pytest.mark.parametrize(
    "settings",
    [
        {"api_host": "192.168.1.7"},
        {"api_host": "0.0.0.0"},
        {"api_host": "::"},
        {"api_host": "fd00::7"},
        {"api_allow_hosts": ("llm.example",)},
    ],
)
def test_other_machines_need_a_key(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--api-(allow-)?host.* needs an API key") as caught:
        Settings(HOME, **settings).check()
    assert "--api-key-file" in caught.value.hint
    Settings(HOME, api_key_file=KEY_FILE, **settings).check()


@pytest.mark.parametrize("host", [None, "127.0.0.1", "127.0.0.2", "::1"])
def test_this_machine_needs_none(host: str | None) -> None:
    Settings(HOME, api_host=host).check()
    Settings(HOME, api_host=host, api_key_file=KEY_FILE).check()


@pytest.mark.parametrize("host", ["", "localhost", "example.org", "192.168.1.7:80", "[::1]", "*"])
def test_the_apis_host_is_an_ip_address(host: str) -> None:
    with pytest.raises(ConfigError, match="no IP address"):
        Settings(HOME, api_host=host, api_key_file=KEY_FILE).check()


# ---------------------------------------------------------------- donated models


@pytest.mark.parametrize(
    "settings",
    [
        {"n_slots": 1},
        {"n_slots": defaults.MAX_SLOTS},
        {"flash_attention": "off"},
        {"flash_attention": "on", "kv_type": "q4_0"},
        {"memory_gb": 0.001},
        {"idle_unload_min": 0.5},
    ],
)
def test_what_a_donor_may_set(settings: dict[str, Any]) -> None:
    Settings(HOME, **settings).check()


@pytest.mark.parametrize(
    ("settings", "flag", "hint"),
    [
        ({"n_slots": 0}, "--parallel 0", "Use 1 to 64"),
        ({"n_slots": 65}, "--parallel 65", "Use 1 to 64"),
        ({"flash_attention": "yes"}, "--flash-attention 'yes'", "auto, on, off"),
        ({"kv_type": "q5_1"}, "--kv-type 'q5_1'", "f16, q8_0, q4_0"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "--kv-type q8_0", "f16"),
        ({"memory_gb": 0.0}, "--memory 0", "gigabytes"),
        ({"memory_gb": -1.0}, "--memory -1", "gigabytes"),
        ({"memory_gb": math.nan}, "--memory nan", "gigabytes"),
        ({"memory_gb": math.inf}, "--memory inf", "gigabytes"),
        ({"idle_unload_min": -1.0}, "--idle-unload -1", "0 for never"),
        ({"idle_unload_min": math.nan}, "--idle-unload nan", "0 for never"),
    ],
)
def test_what_no_donor_can_use_is_named_with_what_to_do(
    settings: dict[str, Any], flag: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(HOME, **settings).check()
    assert caught.value.detail.startswith(flag)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("text", "n"), [("auto", None), ("0", 0), ("33", 33), ("999", 999)])
def test_layers_for_the_gpu(text: str, n: int | None) -> None:
    assert parse_gpu_layers(text) == n


@pytest.mark.parametrize("text", ["", "all", "-1", "1.5", "99999", "²", "x" * 1000])
def test_what_is_no_number_of_layers(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu-layers") as caught:
        parse_gpu_layers(text)
    assert "auto" in caught.value.hint
    assert len(caught.value.detail) < 100


def test_memory_is_a_share_of_the_machines_unless_somebody_says_how_much() -> None:
    assert Settings(HOME).memory_bytes(10_000) == 10_000 * defaults.DONATED_MEMORY_SHARE
    assert Settings(HOME, memory_gb=1.5).memory_bytes(10_000) == 1_500_000_000


def test_models_stay_loaded_unless_somebody_says_how_long() -> None:
    assert Settings(HOME).idle_unload_s == math.inf
    assert Settings(HOME, idle_unload_min=2).idle_unload_s == 120


def test_the_types_of_a_kv_cache_are_those_whose_size_is_known() -> None:
    assert set(KV_TYPES) == set(KV_BLOCK_BYTES)


def test_models_lie_in_the_home_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOKENPLACE_MODELS_DIR", raising=False)
    assert Settings(HOME).models_dir == HOME / "models"
    monkeypatch.setenv("TOKENPLACE_MODELS_DIR", "/srv/models")
    assert models_dir_of(HOME) == Path("/srv/models")
    monkeypatch.setenv("TOKENPLACE_MODELS_DIR", "~/models")
    assert models_dir_of(HOME) == Path.home() / "models"
