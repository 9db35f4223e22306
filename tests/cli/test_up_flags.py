"""What a donor sets reaches the peer: by flag, by llama.cpp's own names, environment and file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenplace.cli import up as up_module
from tokenplace.cli.app import app
from tokenplace.errors import ConfigError
from tokenplace.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings with which a peer was started."""
    seen: list[Settings] = []

    def run_up(settings: Settings, *, may_fetch: bool, until_eof: bool) -> None:
        settings.check()
        seen.append(settings)

    monkeypatch.setattr(up_module, "run_up", run_up)
    return seen


def start(*arguments: str, config: str = "/dev/null", **environment: str) -> None:
    result = CliRunner().invoke(
        app, ["--config", config, "up", *arguments], env=environment, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        "--parallel 3 --ctx 900 --gpu-layers 20 --flash-attention on --kv-type q8_0",
        "-np 3 -c 900 -ngl 20 -fa on --kv-type q8_0",
        "--parallel 3 --ctx-size 900 -ngl 20 -fa on --kv-type q8_0",
    ],
)
def test_flags_of_ours_and_of_llama_cpp(arguments: str, started: list[Settings]) -> None:
    start(*arguments.split())
    (settings,) = started
    assert (settings.n_slots, settings.n_ctx, settings.n_gpu_layers) == (3, 900, 20)
    assert (settings.flash_attention, settings.kv_type) == ("on", "q8_0")


def test_without_flags_the_engine_decides(started: list[Settings]) -> None:
    start()
    (settings,) = started
    assert settings == Settings(home=settings.home)
    assert settings.n_gpu_layers is settings.n_slots is settings.memory_gb is None


def test_memory_and_idle_time(started: list[Settings]) -> None:
    start("--memory", "2.5", "--idle-unload", "10")
    assert (started[0].memory_gb, started[0].idle_unload_min) == (2.5, 10)


@pytest.mark.parametrize(
    ("arguments", "environment", "is_first"),
    [
        ([], {}, True),
        (["--no-owner-first"], {}, False),
        ([], {"TOKENPLACE_OWNER_FIRST": "false"}, False),
        (["--owner-first"], {"TOKENPLACE_OWNER_FIRST": "false"}, True),
    ],
    ids=["usual", "flag", "environment", "flag over environment"],
)
def test_whether_the_owner_goes_first(
    arguments: list[str], environment: dict[str, str], is_first: bool, started: list[Settings]
) -> None:
    start(*arguments, **environment)
    assert started[0].is_owner_first is is_first


def test_the_environment(started: list[Settings]) -> None:
    start(
        TOKENPLACE_PARALLEL="2",
        TOKENPLACE_GPU_LAYERS="7",
        TOKENPLACE_FLASH_ATTENTION="off",
        TOKENPLACE_KV_TYPE="f16",
        TOKENPLACE_MEMORY="3",
        TOKENPLACE_IDLE_UNLOAD="1",
    )
    (settings,) = started
    assert (settings.n_slots, settings.n_gpu_layers, settings.flash_attention) == (2, 7, "off")
    assert (settings.memory_gb, settings.idle_unload_min) == (3, 1)


def test_the_config_file(started: list[Settings], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[up]\nparallel = 2\ngpu_layers = 7\nflash_attention = "off"\n'
        'kv_type = "f16"\nmemory = 3\nidle_unload = 1.5\nctx = 128\nowner_first = false\n'
    )
    start(config=str(config))
    (settings,) = started
    assert (settings.n_slots, settings.n_gpu_layers, settings.flash_attention) == (2, 7, "off")
    assert (settings.memory_gb, settings.idle_unload_min, settings.n_ctx) == (3, 1.5, 128)
    assert not settings.is_owner_first


@pytest.mark.parametrize(
    "arguments", ["-ngl many", "-np 0", "--kv-type f32", "-fa maybe", "--memory 0"]
)
def test_bad_values_are_refused(arguments: str, started: list[Settings]) -> None:
    with pytest.raises(ConfigError) as caught:
        start(*arguments.split())
    assert caught.value.hint
    assert not started


def test_who_may_use_the_api(started: list[Settings], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    flags = f"--api-host 192.168.1.7 --api-key-file {keys} --api-socket {tmp_path}/api.sock"
    pages = "--api-allow-origin https://chat.example --api-allow-origin tauri://localhost"
    start(*flags.split(), *pages.split(), "--api-allow-host", "llm.example")
    (settings,) = started
    assert settings.api_host == "192.168.1.7"
    assert settings.api_key_file == keys
    assert settings.api_socket == tmp_path / "api.sock"
    assert settings.api_allow_origins == ("https://chat.example", "tauri://localhost")
    assert settings.api_allow_hosts == ("llm.example",)


def test_who_may_use_the_api_by_environment(started: list[Settings]) -> None:
    start(
        TOKENPLACE_API_KEY_FILE="/keys",
        TOKENPLACE_API_ALLOW_ORIGIN="https://a.example https://b.example",
    )
    assert started[0].api_key_file == Path("/keys")
    assert started[0].api_allow_origins == ("https://a.example", "https://b.example")
