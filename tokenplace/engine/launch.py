"""From a path to a worker that has generated its first tokens. Start at `launch_worker`.

Whatever is wrong with the file becomes a `ConfigError` that names it: one look here, then
llama.cpp's own reason, then how the worker died over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.frames import BadFrame, encode_frame
from tokenplace.engine.messages import Load, LoadFailed, Ready, from_value, to_value
from tokenplace.engine.process import ChildDied, ChildProcess
from tokenplace.errors import ConfigError

_MODULE: Final = "tokenplace.engine.worker"
_GGUF_MAGIC: Final = b"GGUF"

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size and time of change: differs when a file was replaced."""


@dataclass(frozen=True)
class EngineSpec:
    """What to run. `artifact` is the file's sha256 in hex, computed by the caller; `name` is for
    people.

    n_threads: processor cores for it, at least 1. n_ctx: tokens of context; None leaves it to the
    engine, and more than the model was trained for becomes what it was trained for.
    """

    path: Path
    name: str
    artifact: str
    n_threads: int
    n_ctx: int | None = None


def identify(path: Path) -> FileIdentity:
    """Which file this is, after a look at its first bytes. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from None
    if magic != _GGUF_MAGIC:
        raise ConfigError(f"{path}: not a GGUF file.")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def launch_worker(spec: EngineSpec) -> tuple[ChildProcess, Ready]:
    """A worker that is ready, and what it says of its model. Raises `ConfigError`."""
    try:
        child = ChildProcess.start(_MODULE)
    except ChildDied as error:
        raise ConfigError(f"{spec.path}: no process for it: {error}.") from None
    try:
        with trio.fail_after(defaults.LOAD_TIMEOUT_S):
            load = Load(str(spec.path), spec.n_threads, spec.n_ctx)
            await child.send(encode_frame(to_value(load)))
            match from_value(await child.receive()):
                case Ready() as ready:
                    return child, ready
                case LoadFailed(reason):
                    raise ConfigError(f"{spec.path}: {reason}.")
                case message:
                    raise BadFrame(type(message).__name__)
    except ChildDied as error:
        await child.aclose()
        raise ConfigError(f"{spec.path}: loading it ended the process ({error}).") from None
    except BadFrame:
        await child.aclose()
        raise ConfigError(f"{spec.path}: the process that loaded it went astray.") from None
    except trio.TooSlowError:
        await child.aclose()
        limit = f"{defaults.LOAD_TIMEOUT_S:g} s"
        raise ConfigError(f"{spec.path}: not loaded after {limit}.") from None
    except BaseException:
        await child.aclose()
        raise
