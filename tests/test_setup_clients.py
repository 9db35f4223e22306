"""The environments of the tests' clients, without installing anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import clients
from scripts.clients import LOCKS, environment_of, is_made, make_environments
from scripts.console import SetUpError
from scripts.locks import parse_lock
from tests.conftest import ROOT

REAL_LOCKS = sorted((ROOT / LOCKS).glob("*.lock"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / LOCKS).mkdir(parents=True)
    for name in ("newer", "older"):
        (tmp_path / LOCKS / f"{name}.lock").write_text(f"{name}==1")
    return tmp_path


class Recorded:
    """Stands in for `run_logged`; fails for commands that have one of the words `broken`."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], log: Path, status: object) -> None:
        self.commands.append(command)
        if self.broken & {Path(word).name for word in command}:
            raise SetUpError("broken")
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)


def record(monkeypatch: pytest.MonkeyPatch, *broken: str) -> Recorded:
    recorded = Recorded(*broken)
    monkeypatch.setattr(clients, "run_logged", recorded)
    return recorded


def test_each_lock_is_installed_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record(monkeypatch)
    make_environments(tree)
    assert len(recorded.commands) == 4
    for name in ("newer", "older"):
        assert is_made(environment_of(tree, name), tree / LOCKS / f"{name}.lock")
    make_environments(tree)
    assert len(recorded.commands) == 4
    installs = [command for command in recorded.commands if "install" in command]
    assert all("--require-hashes" in command for command in installs)


def test_a_changed_lock_is_installed_anew(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record(monkeypatch)
    make_environments(tree)
    (environment_of(tree, "newer") / "left-over").touch()
    (tree / LOCKS / "newer.lock").write_text("newer==2")
    recorded.commands.clear()
    make_environments(tree)
    assert len(recorded.commands) == 2
    assert not (environment_of(tree, "newer") / "left-over").exists()


def test_where_uv_fails_pip_installs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record(monkeypatch, "uv")
    make_environments(tree)
    assert sum("pip" in command and "-m" in command for command in recorded.commands) == 2


def test_a_half_made_environment_is_not_trusted(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(monkeypatch, "uv", "pip")
    with pytest.raises(SetUpError):
        make_environments(tree)
    assert not is_made(environment_of(tree, "newer"), tree / LOCKS / "newer.lock")
    recorded = record(monkeypatch)
    make_environments(tree)
    assert len(recorded.commands) == 4


@pytest.mark.parametrize("lock", REAL_LOCKS, ids=lambda lock: lock.stem)
def test_our_locks_hold_everything_that_was_asked_for(lock: Path) -> None:
    locked = parse_lock(lock.read_text("utf-8"))
    lines = lock.with_suffix(".in").read_text("utf-8").splitlines()
    asked = {line.split("[")[0].split("<")[0].split(">")[0] for line in lines if line[0] != "#"}
    assert len(asked) > 2
    assert asked <= set(locked)
    assert "://" not in "".join(locked.values())


def test_make_lock_writes_each_of_them() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert REAL_LOCKS
    assert all(f"clients/{lock.stem}" in makefile for lock in REAL_LOCKS)
