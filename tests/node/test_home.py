"""One folder, one running peer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenplace.errors import ConfigError
from tokenplace.node.home import MAX_SOCKET_PATH_BYTES, open_home


def control_socket_of(home: Path) -> Path:
    return home / "control.sock"


def test_a_home_is_made_for_this_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with open_home(home, control_socket_of(home)):
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "lock").stat().st_mode & 0o777 == 0o600


def test_a_second_peer_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with open_home(tmp_path, control_socket_of(tmp_path)):
        with (
            pytest.raises(ConfigError, match="already runs") as caught,
            open_home(tmp_path, control_socket_of(tmp_path)),
        ):
            pass
        assert "--home" in caught.value.hint
        with pytest.raises(ConfigError), open_home(tmp_path, control_socket_of(tmp_path)):
            pass
    with open_home(tmp_path, control_socket_of(tmp_path)):
        pass


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    home = tmp_path / ("ü" * MAX_SOCKET_PATH_BYTES)
    with pytest.raises(ConfigError, match="too long"), open_home(home, control_socket_of(home)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), open_home(file, file / "c"):
        pass
    (tmp_path / "home" / "lock").mkdir(parents=True)
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match="cannot be used"), open_home(home, home / "c"):
        pass
