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
_KILLED: Final = "signal 9"  # what Linux does when memory runs out

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size and time of change: differs when a file was replaced."""


class LoadInterrupted(ConfigError):
    """The model could not be loaded now."""

    # For want of memory, processes or time: trying again later makes sense.


@dataclass(frozen=True)
class EngineSpec:
    """What to run. `artifact` is the file's sha256 in hex, computed by the caller; `name` is for
    people.

    n_threads: processor cores for it, at least 1. n_ctx: tokens of context of one request; None
    leaves it to the engine, and more than the model was trained for becomes what that was.
    n_slots: requests that run at once; None leaves it to the engine.
    kv_bytes: memory that the KV cache may take. kv_type: f16, q8_0 or q4_0.
    n_gpu_layers: layers computed by the GPU; None: all of them where llama.cpp was built for one.
    flash_attention: auto, on or off.
    """

    path: Path
    name: str
    artifact: str
    n_threads: int
    n_ctx: int | None = None
    n_slots: int | None = None
    kv_bytes: int = defaults.DEFAULT_KV_BYTES
    kv_type: str = "f16"
    n_gpu_layers: int | None = None
    flash_attention: str = "auto"


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
        raise LoadInterrupted(f"{spec.path}: no process for it: {error}.") from None
    try:
        with trio.fail_after(defaults.LOAD_TIMEOUT_S):
            load = Load(
                path=str(spec.path),
                n_threads=spec.n_threads,
                n_ctx=spec.n_ctx,
                n_slots=spec.n_slots,
                kv_bytes=spec.kv_bytes,
                kv_type=spec.kv_type,
                n_gpu_layers=spec.n_gpu_layers,
                flash_attention=spec.flash_attention,
            )
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
        kind = LoadInterrupted if str(error) == _KILLED else ConfigError
        raise kind(f"{spec.path}: loading it ended the process ({error}).") from None
    except BadFrame:
        await child.aclose()
        raise ConfigError(f"{spec.path}: the process that loaded it went astray.") from None
    except trio.TooSlowError:
        await child.aclose()
        limit = f"{defaults.LOAD_TIMEOUT_S:g} s"
        raise LoadInterrupted(f"{spec.path}: not loaded after {limit}.") from None
    except BaseException:
        await child.aclose()
        raise
