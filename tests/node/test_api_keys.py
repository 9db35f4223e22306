"""The file of API keys: what is in it, and who else could read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.node.api_keys import read_api_keys

ALICE = "alices-key-0123456789abcdef"
BOB = "bobs-key-0123456789abcdef"


def key_file(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"{ALICE}\n{BOB}\n",
        f"{ALICE}\r\n{BOB}",
        f"# of the laptop\n{ALICE}\n\n  # of the phone\n  {BOB}  \n\n",
    ],
)
def test_one_key_a_line(text: str, tmp_path: Path) -> None:
    assert read_api_keys(key_file(tmp_path, text)) == (ALICE, BOB)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there are 0 API keys"),
        ("# nothing\n\n", "there are 0 API keys"),
        (f"{ALICE}\nshort\n", r"keys:2: this is no API key.*openssl"),
        (f"{ALICE} {BOB}\n", "keys:1: this is no API key"),
        ("x" * (defaults.API_MAX_KEY_CHARS + 1), "keys:1: this is no API key"),
        (f"{ALICE}\x00{BOB}", "keys:1: this is no API key"),
        (b"\xff" * 20, "outside ASCII"),
        ("x" * 2_000_000, "too large"),
        (f"{ALICE}\n" * (defaults.API_MAX_KEYS + 1), "there are 1001 API keys"),
    ],
)
def test_what_holds_no_keys(text: str | bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        read_api_keys(key_file(tmp_path, text))
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o620, 0o602, 0o601])
def test_a_file_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = key_file(tmp_path, ALICE, mode)
    with pytest.raises(ConfigError, match="others can read") as caught:
        read_api_keys(path)
    assert caught.value.hint == f"Run: chmod 600 {path}"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_api_keys(tmp_path / "missing")
    with pytest.raises(ConfigError, match="no file of API keys"):
        read_api_keys(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="no file of API keys"):  # and does not wait for it
        read_api_keys(tmp_path / "pipe")
