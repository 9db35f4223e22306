"""The frames of a sealed answer (docs/protocol.md, section 5). Start at `encode_frame` and
`decode_frames`.

Pure: a frame is an event of `generation.py`, a piece of an answer that comes whole (`whole.py`), or
the error that ended the answer, as a msgpack map.
What order they may come in is `exchange.py`'s business. Nothing a donor sends is trusted: types,
ranges and sizes are checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgpack

from tokenplace import defaults
from tokenplace.errors import (
    DONOR_ERRORS,
    DonorInternalError,
    ErrorCode,
    RemoteProtocolError,
    TokenplaceError,
)
from tokenplace.generation import (
    PROMPT_DIGEST_BYTES,
    THINK_TAGS,
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GrammarStop,
    LengthStop,
    Logprob,
    Phase,
    Stop,
    StringStop,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.peer.frame_fields import FrameFields, as_bytes, u32
from tokenplace.peer.refusal import packed, retry_after_s
from tokenplace.peer.whole import WHOLE_READERS, Answered, Part, Taken, WholeFrame, whole_fields

_MAX_SAMPLER_CHARS: Final = 32
_MAX_PARAM_CHARS: Final = 64
_MAX_NUMBERS: Final = 8
_MAX_NUMBER: Final = 1 << 53  # what every language's numbers hold exactly
_LOWEST: Final = -(2 - 2**-23) * 2.0**127  # of the numbers that are float32

Frame = Event | WholeFrame | TokenplaceError
"""An error frame is the error itself, ready to be raised."""


class FinalDonorError(DonorInternalError):
    """The donor failed for a reason unknown to this version; it says that no other donor could do
    better.
    """

    retry_elsewhere: ClassVar[bool] = False


# ---------------------------------------------------------------- events and errors to bytes


def encode_frame(frame: Frame) -> bytes:
    """One msgpack map. An error outside `DONOR_ERRORS` says nothing but `internal`."""
    match frame:
        case Tokens():
            fields: dict[str, object] = {
                "f": "tokens",
                "choice": frame.choice,
                "index": frame.index,
                "ids": frame.ids,
                "bytes": frame.pieces,
            }
            if frame.logprobs:
                fields["logprobs"] = [_logprob_value(logprob) for logprob in frame.logprobs]
                data: bytes = msgpack.packb(fields, use_single_float=True)
                return data
        case Alive():
            fields = {
                "f": "alive",
                "phase": frame.phase.value,
                "progress": frame.progress,
                "position": frame.position,
                "eta_ms": frame.eta_ms,
            }
        case Accepted():
            fields = {
                "f": "accepted",
                "prompt_digest": frame.prompt_digest,
                "n_prompt": frame.n_prompt,
                "n_cached": frame.n_cached,
                "n_ctx": frame.n_ctx,
                "max_new": frame.max_new,
                "sampler": frame.sampler,
                "eta_ms": frame.eta_ms,
                "position": frame.position,
            }
            if frame.begun:
                fields["begun"] = frame.begun
        case Finished():
            fields = _finished_fields(frame)
        case Taken() | Part() | Answered():
            fields = whole_fields(frame)
        case _:
            fields = _error_fields(frame)
    return packed(fields)


def _logprob_value(logprob: Logprob) -> tuple[object, ...]:
    return logprob.logprob, [(top.id, top.piece, top.logprob) for top in logprob.top]


def is_logprob(value: float) -> bool:
    """Can this be the logarithm of a probability, as it crosses the wire? NaN fails it."""
    return _LOWEST <= value <= 0


def _finished_fields(event: Finished) -> dict[str, object]:
    usage, timings = event.usage, event.timings
    return {
        "f": "finished",
        "choices": [
            {"choice": end.choice, "stop": _stop_fields(end.stop)} for end in event.choices
        ],
        "usage": {
            "n_prompt": usage.n_prompt,
            "n_cached": usage.n_cached,
            "n_completion": usage.n_completion,
        },
        "timings": {
            "queue_ms": timings.queue_ms,
            "prefill_ms": timings.prefill_ms,
            "decode_ms": timings.decode_ms,
        },
    }


def _stop_fields(stop: Stop) -> dict[str, object]:
    match stop:
        case EogStop():
            return {"kind": "eog", "id": stop.id}
        case StringStop():
            return {"kind": "string", "string": stop.string}
        case LengthStop():
            return {"kind": "length"}
        case GrammarStop():
            return {"kind": "grammar"}


def _error_fields(error: TokenplaceError) -> dict[str, object]:
    if error.code not in DONOR_ERRORS or type(error) is TokenplaceError:
        error = DonorInternalError()  # what happened inside this peer is nobody else's business
    message = " ".join(part for part in (error.detail, error.hint) if part)
    fields: dict[str, object] = {
        "f": "error",
        "code": error.code.value,
        "scope": error.scope.value,
        "retry_elsewhere": error.retry_elsewhere,
        "message": message[: defaults.MAX_ERROR_MESSAGE_CHARS],
    }
    if error.param is not None:
        fields["param"] = error.param[:_MAX_PARAM_CHARS]
    if error.retry_after_s is not None:
        fields["retry_after_s"] = error.retry_after_s
    if error.numbers:
        fields["numbers"] = error.numbers
    return fields


# ---------------------------------------------------------------- bytes to events and errors


def decode_frames(data: bytes) -> list[Frame]:
    """The known frames of one chunk. Unknown frames and keys are ignored; anything malformed is
    `RemoteProtocolError`.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=defaults.MAX_CHUNK_BYTES)
    unpacker.feed(data)
    frames = []
    try:
        while unpacker.tell() < len(data):
            fields = unpacker.unpack()
            read = _READERS.get(fields["f"])
            if read is not None:
                frames.append(read(FrameFields(fields)))
    # msgpack's own errors are these too; what is not a map has no "f", or no keys at all.
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        raise RemoteProtocolError("a malformed frame") from None
    return frames


def _logprob(value: Any) -> float:
    if type(value) not in (int, float) or not is_logprob(value):
        raise ValueError("not a log-probability")
    return float(value)


def _read_accepted(fields: FrameFields) -> Accepted:
    digest = fields.data("prompt_digest")
    if len(digest) != PROMPT_DIGEST_BYTES:
        raise ValueError("prompt_digest")
    return Accepted(
        prompt_digest=digest,
        n_prompt=fields.integer("n_prompt"),
        n_cached=fields.integer("n_cached"),
        n_ctx=fields.integer("n_ctx"),
        max_new=fields.integer("max_new"),
        sampler=fields.text("sampler", _MAX_SAMPLER_CHARS),
        eta_ms=fields.integer("eta_ms"),
        position=fields.integer("position"),
        begun=_read_begun(fields),
    )


def _read_begun(fields: FrameFields) -> str:
    """Only what is known means something: it stands in an answer, and what it opens may be hidden
    from the user.
    """
    if "begun" not in fields.values:
        return ""
    begun = fields.text("begun", defaults.MAX_BEGUN_CHARS)
    return begun if begun in THINK_TAGS else ""


def _read_alive(fields: FrameFields) -> Alive:
    progress = fields.values["progress"]
    if type(progress) not in (int, float) or not 0 <= progress <= 1:
        raise ValueError("progress")
    phase = Phase(fields.values["phase"])
    # Donors of the first days did not say it.
    eta_ms = fields.integer("eta_ms") if "eta_ms" in fields.values else 0
    return Alive(phase, float(progress), fields.integer("position"), eta_ms)


def _read_tokens(fields: FrameFields) -> Tokens:
    ids, pieces = fields.items("ids"), fields.items("bytes")
    if not ids or len(ids) != len(pieces):
        raise ValueError("ids and bytes")
    return Tokens(
        choice=fields.integer("choice"),
        index=fields.integer("index"),
        ids=tuple(map(u32, ids)),
        pieces=tuple(map(as_bytes, pieces)),
        logprobs=_read_logprobs(fields, len(ids)) if "logprobs" in fields.values else (),
    )


def _read_logprobs(fields: FrameFields, n_ids: int) -> tuple[Logprob, ...]:
    entries = fields.items("logprobs")
    if len(entries) != n_ids:
        raise ValueError("logprobs")
    return tuple(map(_read_logprob, entries))


def _read_logprob(entry: Any) -> Logprob:
    match entry:
        case [logprob, [*top]] if len(top) <= defaults.MAX_TOP_LOGPROBS:
            return Logprob(_logprob(logprob), tuple(map(_read_top_token, top)))
        case _:
            raise ValueError("logprobs")


def _read_top_token(entry: Any) -> TopToken:
    match entry:
        case [token_id, piece, logprob]:
            return TopToken(u32(token_id), as_bytes(piece), _logprob(logprob))
        case _:
            raise ValueError("logprobs")


def _read_finished(fields: FrameFields) -> Finished:
    usage, timings = fields.map("usage"), fields.map("timings")
    return Finished(
        choices=tuple(_read_choice_end(FrameFields(end)) for end in fields.items("choices")),
        usage=Usage(
            usage.integer("n_prompt"), usage.integer("n_cached"), usage.integer("n_completion")
        ),
        timings=Timings(
            timings.integer("queue_ms"), timings.integer("prefill_ms"), timings.integer("decode_ms")
        ),
    )


def _read_choice_end(fields: FrameFields) -> ChoiceEnd:
    stop = fields.map("stop")
    match stop.values["kind"]:
        case "eog":
            return ChoiceEnd(fields.integer("choice"), EogStop(stop.integer("id")))
        case "string":
            string = stop.text("string", defaults.MAX_STOP_STRING_BYTES)
            return ChoiceEnd(fields.integer("choice"), StringStop(string))
        case "length":
            return ChoiceEnd(fields.integer("choice"), LengthStop())
        case "grammar":
            return ChoiceEnd(fields.integer("choice"), GrammarStop())
        case _:
            raise ValueError("stop")


def _read_error(fields: FrameFields) -> TokenplaceError:
    """The class of a known code says itself whether another donor could do better; for an unknown
    code the frame does.
    """
    code = fields.text("code", _MAX_PARAM_CHARS)
    retry_elsewhere = fields.values["retry_elsewhere"]
    if type(retry_elsewhere) is not bool:
        raise ValueError("retry_elsewhere")
    unknown = DonorInternalError if retry_elsewhere else FinalDonorError
    error = DONOR_ERRORS[ErrorCode(code)] if code in DONOR_ERRORS else unknown
    message = fields.text("message", defaults.MAX_ERROR_MESSAGE_CHARS)
    param = fields.text("param", _MAX_PARAM_CHARS) if "param" in fields.values else None
    return error(
        _printable(message),
        param=None if param is None else _printable(param),
        retry_after_s=retry_after_s(fields.values.get("retry_after_s")),
        numbers=_read_numbers(fields.values.get("numbers", {})),
    )


def _read_numbers(numbers: Any) -> dict[str, int]:
    if type(numbers) is not dict or len(numbers) > _MAX_NUMBERS:
        raise ValueError("numbers")
    for name, number in numbers.items():
        if type(name) is not str or len(name) > _MAX_PARAM_CHARS or not name.isprintable():
            raise ValueError("numbers")
        if type(number) is not int or abs(number) > _MAX_NUMBER:
            raise ValueError("numbers")
    return numbers


def _printable(text: str) -> str:
    """Without what could steer a terminal: a stranger wrote it and a person will read it."""
    return "".join(char if char.isprintable() else " " for char in text)


_READERS: Final[dict[object, Callable[[FrameFields], Frame]]] = {
    "accepted": _read_accepted,
    "alive": _read_alive,
    "tokens": _read_tokens,
    "finished": _read_finished,
    "error": _read_error,
    **WHOLE_READERS,
}
