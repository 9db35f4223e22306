"""The environments of tests/clients/, one for each requirements/clients/*.lock. Start at
`make_environments`.

Run as `.venv/bin/python -m scripts.clients`. Several, because clients ask for releases of openai
that exclude each other. Each lies in `.cache/clients` and is remade from nothing when its
lock changed: by uv, which takes a second; where it reaches no index, as its settings are not pip's,
by pip, which takes half a minute.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Final

from scripts.console import SetUpError, Status, run_logged

LOCKS: Final = Path("requirements") / "clients"
STAMP: Final = "clients.sha256"
# Nothing is built: a source distribution runs code of its own.
OPTIONS: Final = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement")


def environment_of(root: Path, name: str) -> Path:
    """Where the environment lies that goes with requirements/clients/`name`.lock."""
    return root / ".cache" / "clients" / name


def make_environments(root: Path) -> None:
    """Make those that are missing or out of date. Raises `SetUpError`."""
    for lock in sorted((root / LOCKS).glob("*.lock")):
        folder = environment_of(root, lock.stem)
        if not is_made(folder, lock):
            _make(folder, lock, root / ".cache" / "set-up.log")
            (folder / STAMP).write_text(_stamp(lock), "utf-8")


def is_made(folder: Path, lock: Path) -> bool:
    """Was it finished, from this lock and for this Python?"""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text("utf-8") == _stamp(lock)


def _make(folder: Path, lock: Path, log: Path) -> None:
    status = Status(f"installing the clients of {lock.name}")
    shutil.rmtree(folder, ignore_errors=True)
    own = Path(sys.prefix) / "bin"
    run_logged([sys.executable, "-m", "venv", "--without-pip", str(folder)], log, status)
    into = ("--python", str(folder / "bin" / "python"))
    by_uv = [str(own / "uv"), "pip", "install", *into, *OPTIONS, str(lock)]
    by_pip = [sys.executable, "-m", "pip", *into, "install", *OPTIONS, str(lock)]
    try:
        run_logged(by_uv, log, status)
    except SetUpError:
        run_logged(by_pip, log, status)
    status.done()


def _stamp(lock: Path) -> str:
    python = "{}.{} {}".format(*sys.version_info[:2], sys.base_prefix)
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {python}"


if __name__ == "__main__":
    try:
        make_environments(Path.cwd())
    except SetUpError as error:
        sys.exit(f"\n{error}")
