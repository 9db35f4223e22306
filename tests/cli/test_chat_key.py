"""`tokenplace chat` shows the running peer a key where it asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenplace.cli import chat
from tokenplace.errors import ConfigError

URL = "http://127.0.0.1:5010/v1"
ALICE = "alices-key-0123456789abcdef"


def test_the_first_key_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"# of this machine\n{ALICE}\nbobs-key-0123456789abcdef\n")
    with chat.api_client(URL, str(path)) as client:
        assert client.headers["authorization"] == f"Bearer {ALICE}"


def test_without_keys_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    with chat.api_client(URL, None) as client:
        assert "authorization" not in client.headers
        assert client.trust_env is False  # the peer is on this machine, behind no proxy


def test_a_key_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        chat.api_client(URL, str(tmp_path / "keys"))
