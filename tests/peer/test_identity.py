from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.peer.id import ID

from tokenplace.errors import ConfigError
from tokenplace.peer.identity import load_or_create_identity, throwaway_identity


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.key"
    made = load_or_create_identity(path)
    assert load_or_create_identity(path).peer_id == made.peer_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == made.key_pair.private_key.to_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_the_peer_id_is_libp2ps() -> None:
    identity = throwaway_identity()
    assert identity.peer_id == ID.from_pubkey(identity.key_pair.public_key).to_base58()
    assert identity.peer_id_bytes == ID.from_base58(identity.peer_id).to_bytes()
    assert throwaway_identity().peer_id != identity.peer_id


def test_the_private_key_is_not_in_the_text_form() -> None:
    identity = throwaway_identity()
    assert identity.key_pair.private_key.to_bytes().hex() not in repr(identity)
    assert repr(identity) == f"Identity({identity.peer_id})"


@given(data=st.binary(max_size=80).filter(lambda data: len(data) != 32))
def test_a_damaged_file_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("home") / "identity.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_or_create_identity(path)
    assert str(path) in caught.value.user_text
    assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_open_to_others_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    load_or_create_identity(path)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_or_create_identity(path)
    assert f"chmod 600 {path}" in caught.value.user_text


def test_a_folder_in_its_place_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_or_create_identity(tmp_path)


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "identity.key"
    with pytest.raises(ConfigError, match="No space left on device") as caught:
        load_or_create_identity(path)
    assert str(path) in caught.value.user_text
    assert list(tmp_path.iterdir()) == []
