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
    """First message: load this GGUF. The fields are `EngineSpec`'s; None leaves a figure to the
    worker.

    kv_bytes: memory that the KV cache may take. is_owner_first: see `Scheduler`. box_fd: descriptor
    of the `BlackBox`, if there is one.
    """

    path: str
    n_threads: int
    n_ctx: int | None
    n_slots: int | None
    kv_bytes: int
    kv_type: str
    n_gpu_layers: int | None
    flash_attention: str
    is_owner_first: bool = True
    box_fd: int | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate.

    `segments` are (text, may contain control tokens), and empty where `prompt_ids` are given
    instead; `sampling` has the fields of `SamplingParams` in order; `stop` is in UTF-8; `grammar`
    is llguidance's, empty for none; `resume` has (choice, ids), and then only these choices are
    wanted; the rest as `GenerateRequest`.
    """

    request: int
    bucket: str
    segments: tuple[tuple[str, bool], ...]
    sampling: tuple[Any, ...]
    n: int
    seed: bytes
    cache_scope: bytes
    max_tokens: int | None
    stop: tuple[bytes, ...]
    ignore_eog: bool
    top_logprobs: int | None
    grammar: str
    resume: tuple[tuple[int, tuple[int, ...]], ...]
    prompt_digest: bytes
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this answer any more."""

    request: int


@dataclass(frozen=True, slots=True)
class Embed:
    """Make vectors: `EmbedRequest`."""

    request: int
    bucket: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None


@dataclass(frozen=True, slots=True)
class Count:
    """Tokenise, and no more; `segments` and `prompt_ids` as in `Submit`."""

    request: int
    segments: tuple[tuple[str, bool], ...]
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Say how likely `ids` are after the prompt: `ScoreRequest`.

    `segments`, `prompt_ids` and `sampling` as in `Submit`; an empty `sampling` draws nothing.
    """

    request: int
    bucket: str
    segments: tuple[tuple[str, bool], ...]
    ids: tuple[int, ...]
    cache_scope: bytes
    sampling: tuple[Any, ...]
    seed: bytes
    choice: int
    prompt_ids: tuple[int, ...] = ()


ToWorker = Load | Submit | Cancel | Embed | Count | Score

# ---------------------------------------------------------------- from the worker


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be used; the worker ends. `reason` is for the person who named the file."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has generated.

    `n_slots` sequences run at a time; speeds are in tokens a second; `template` is empty when the
    file has none. confinement: what the worker can no longer do, as `confine_worker` says it.
    n_dimensions: of its vectors, if it makes them instead of generating; else 0.
    """

    n_ctx: int
    n_slots: int
    template: str
    bos: str
    eos: str
    control_texts: tuple[str, ...]
    profile: str
    prefill_tps: float
    decode_tps: float
    confinement: tuple[str, ...] = ()
    n_dimensions: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """The prompt fits and will run: what `generation.Accepted` tells. wait_ms: until it begins."""

    request: int
    prompt_digest: bytes
    n_prompt: int
    n_cached: int
    n_ctx: int
    max_new: int
    eta_ms: int
    position: int
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request stands now: the fields of `generation.Alive`, `phase` as its text."""

    request: int
    phase: str
    progress: float
    position: int
    eta_ms: int = 0


@dataclass(frozen=True, slots=True)
class NewTokens:
    """One step's tokens of one choice. `logprobs` has, for each id, its log-probability and
    ((id, bytes, log-probability), …) of the most likely ones; it is empty if nobody asked.
    """

    request: int
    choice: int
    index: int
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    logprobs: tuple[tuple[float, tuple[tuple[int, bytes, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole.

    `ends` has for each choice (choice, the end-of-generation id, stop string, "length" or "grammar"
    that ended it). Speeds as in `Ready`.
    """

    request: int
    ends: tuple[tuple[int, int | bytes | str], ...]
    n_prompt: int
    n_cached: int
    n_completion: int
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some texts, the first of them number `index`, and their tokens:
    `operations.Embeddings`. `is_last` ends the answer.
    """

    request: int
    index: int
    vectors: tuple[bytes, ...]
    n_tokens: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to `Count`."""

    request: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of some ids, the first of them number `index`: the fields of
    `operations.TokenScore`, and, if asked for, what tp/1 draws there. `is_last` ends the answer.
    """

    request: int
    index: int
    scores: tuple[tuple[float, float, int, float], ...]
    drawn: tuple[int, ...]
    n_prompt: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The request ends with this `ErrorCode`; `detail` never quotes the prompt."""

    request: int
    code: str
    detail: str
    numbers: tuple[tuple[str, int], ...] = ()


FromWorker = (
    LoadFailed
    | Ready
    | Queued
    | Progress
    | NewTokens
    | Done
    | Embedded
    | Counted
    | Scored
    | Refused
)

# ---------------------------------------------------------------- on the pipe

_CLASSES: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (
        *(Load, Submit, Cancel, Embed, Count, Score),
        *(LoadFailed, Ready, Queued, Progress, NewTokens, Done),
        *(Embedded, Counted, Scored, Refused),
    )
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (float,),
    "str": (str,),
    "bytes": (bytes,),
    "bool": (bool,),
    "int | None": (int, type(None)),
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
