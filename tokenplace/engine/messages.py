"""What the engine and its worker process say to each other. Start at `Submit`.

Pure: values in, values out. A message is an array on the pipe: its class's name, then its fields in
order. Fields are msgpack's own types, and are checked on arrival, because the worker runs C code
over a stranger's input.

Differs from the frames of docs/protocol.md: these never leave the machine, and both ends are always
of one version.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from tokenplace.engine.frames import BadFrame

# ---------------------------------------------------------------- to the worker


@dataclass(frozen=True, slots=True)
class Load:
    """First message: load this GGUF. `n_ctx` None leaves the context's size to the worker."""

    path: str
    n_threads: int
    n_ctx: int | None


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate.

    `segments` are (text, may contain control tokens); `stop` is in UTF-8; the rest as
    `GenerateRequest`.
    """

    request: int
    segments: tuple[tuple[str, bool], ...]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: bytes
    cache_scope: bytes
    max_tokens: int | None
    stop: tuple[bytes, ...]
    ignore_eog: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this answer any more."""

    request: int


ToWorker = Load | Submit | Cancel

# ---------------------------------------------------------------- from the worker


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be used; the worker ends. `reason` is for the person who named the file."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has generated.

    Speeds are in tokens a second; `template` is empty when the file has none.
    """

    n_ctx: int
    template: str
    bos: str
    eos: str
    control_texts: tuple[str, ...]
    profile: str
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The prompt fits and will run: what `generation.Accepted` tells."""

    request: int
    prompt_digest: bytes
    n_prompt: int
    n_cached: int
    n_ctx: int
    max_new: int
    eta_ms: int
    position: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request stands now: the fields of `generation.Alive`, `phase` as its text."""

    request: int
    phase: str
    progress: float
    position: int


@dataclass(frozen=True, slots=True)
class NewTokens:
    """One step's tokens of one request."""

    request: int
    index: int
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole.

    `eog_id` or `stop_string` says why; neither: its length. Speeds as in `Ready`.
    """

    request: int
    eog_id: int | None
    stop_string: bytes | None
    n_prompt: int
    n_cached: int
    n_completion: int
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The request ends with this `ErrorCode`; `detail` never quotes the prompt."""

    request: int
    code: str
    detail: str
    numbers: tuple[tuple[str, int], ...] = ()


FromWorker = LoadFailed | Ready | Queued | Progress | NewTokens | Done | Refused

# ---------------------------------------------------------------- on the pipe

_CLASSES: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (
        *(Load, Submit, Cancel),
        *(LoadFailed, Ready, Queued, Progress, NewTokens, Done, Refused),
    )
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (float,),
    "str": (str,),
    "bytes": (bytes,),
    "bool": (bool,),
    "int | None": (int, type(None)),
    "bytes | None": (bytes, type(None)),
}
_FIELD_TYPES: Final = {
    name: tuple(_TYPES.get(str(field.type), (tuple,)) for field in fields(cls))
    for name, cls in _CLASSES.items()
}
_GETTERS: Final = {
    name: attrgetter(*(field.name for field in fields(cls))) for name, cls in _CLASSES.items()
}


def to_value(message: ToWorker | FromWorker) -> tuple[Any, ...]:
    """A message as the value of a frame."""
    name = type(message).__name__
    values = _GETTERS[name](message)
    return (name, *values) if len(_FIELD_TYPES[name]) > 1 else (name, values)


def from_value(value: object) -> ToWorker | FromWorker:
    """The message in a frame's value.

    Raises `BadFrame` for an unknown name, or fields missing or of another type.
    """
    match value:
        case (str(name), *values) if name in _CLASSES:
            types = _FIELD_TYPES[name]
            if len(values) == len(types) and all(map(isinstance, values, types)):
                message: ToWorker | FromWorker = _CLASSES[name](*values)
                return message
    raise BadFrame("not a message")
