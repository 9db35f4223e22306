"""From a path to a worker that has generated its first tokens. Start at `launch_worker`.

Whatever is wrong with the file becomes a `ConfigError` that names it: one look here, then
llama.cpp's own reason, then how the worker died over it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.engine.blackbox import BlackBox
from tokenplace.engine.frames import BadFrame, encode_frame
from tokenplace.engine.messages import Load, LoadFailed, Ready, from_value, to_value
from tokenplace.engine.model_file import ModelFile
from tokenplace.engine.process import ChildDied, ChildProcess
from tokenplace.errors import ConfigError

_MODULE: Final = "tokenplace.engine.worker"
_KILLED: Final = "signal 9"  # what Linux does when memory runs out


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
    flash_attention: auto, on or off. is_owner_first: whether this peer's own requests start before
    those of others that wait.
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
    is_owner_first: bool = True


@dataclass(frozen=True)
class Worker:
    """A worker process that is ready. Whoever gets one must `aclose` it."""

    child: ChildProcess
    ready: Ready
    box: BlackBox

    async def aclose(self) -> None:
        """End it, and wait until it is gone."""
        await self.child.aclose()
        self.box.close()


async def launch_worker(spec: EngineSpec, file: ModelFile) -> Worker:
    """A worker that has loaded `file` and generated. Raises `ConfigError`."""
    box, box_fd = BlackBox.create()
    try:
        child = ChildProcess.start(_MODULE, (file.fd, box_fd))
    except ChildDied as error:
        box.close()
        raise LoadInterrupted(f"{spec.path}: no process for it: {error}.") from None
    finally:
        os.close(box_fd)
    try:
        return Worker(child, await _load(child, spec, file, box_fd), box)
    except BaseException:
        box.close()
        await child.aclose()
        raise


async def _load(child: ChildProcess, spec: EngineSpec, file: ModelFile, box_fd: int) -> Ready:
    try:
        with trio.fail_after(defaults.LOAD_TIMEOUT_S):
            load = Load(
                path=file.path_for_child,
                n_threads=spec.n_threads,
                n_ctx=spec.n_ctx,
                n_slots=spec.n_slots,
                kv_bytes=spec.kv_bytes,
                kv_type=spec.kv_type,
                n_gpu_layers=spec.n_gpu_layers,
                flash_attention=spec.flash_attention,
                is_owner_first=spec.is_owner_first,
                box_fd=box_fd,
            )
            await child.send(encode_frame(to_value(load)))
            match from_value(await child.receive()):
                case Ready() as ready:
                    return ready
                case LoadFailed(reason):
                    reason = reason.replace(file.path_for_child, str(spec.path))
                    raise ConfigError(f"{spec.path}: {reason}.")
                case message:
                    raise BadFrame(type(message).__name__)
    except ChildDied as error:
        kind = LoadInterrupted if str(error) == _KILLED else ConfigError
        raise kind(f"{spec.path}: loading it ended the process ({error}).") from None
    except BadFrame:
        raise ConfigError(f"{spec.path}: the process that loaded it went astray.") from None
    except trio.TooSlowError:
        limit = f"{defaults.LOAD_TIMEOUT_S:g} s"
        raise LoadInterrupted(f"{spec.path}: not loaded after {limit}.") from None
