"""Answers that come whole, cut into frames and put together again (docs/protocol.md, section 5).
Start at `frames_of` and `WholeContents`.

Pure, and the same for both roles, as `contents.py` is for tokens: a requester believes no donor,
and a fault of a donor's engine must not reach the wire. An answer is one run of bytes of a form
that the question sets, so nobody can send more than was asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.operations import (
    FLOAT_BYTES,
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Reply,
    ScoreRequest,
    Scores,
    TokenScore,
)
from tokenplace.peer.frame_fields import FrameFields, u32

_SCORE: Final = struct.Struct("<ffIf")
_DRAWN: Final = struct.Struct("<I")
_HIGHEST: Final = (2 - 2**-23) * 2.0**127  # of the numbers that are float32


@dataclass(frozen=True, slots=True)
class Taken:
    """First frame: the donor works on it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the answer's bytes; `at` are before them."""

    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """Last frame: nothing is missing. n_tokens: of each input, or of the prompt."""

    n_tokens: tuple[int, ...]


WholeFrame = Taken | Part | Answered


# ---------------------------------------------------------------- frames to bytes and back


def whole_fields(frame: WholeFrame) -> dict[str, object]:
    """A frame as a map."""
    match frame:
        case Taken():
            return {"f": "taken"}
        case Part():
            return {"f": "part", "at": frame.at, "bytes": frame.data}
        case Answered():
            return {"f": "answered", "n_tokens": frame.n_tokens}


def _read_part(fields: FrameFields) -> Part:
    return Part(fields.integer("at"), fields.data("bytes"))


def _read_answered(fields: FrameFields) -> Answered:
    return Answered(tuple(map(u32, fields.items("n_tokens"))))


WHOLE_READERS: Final[dict[object, Callable[[FrameFields], WholeFrame]]] = {
    "taken": lambda fields: Taken(),
    "part": _read_part,
    "answered": _read_answered,
}


# ---------------------------------------------------------------- answers to frames


def frames_of(reply: Reply) -> Iterator[Part | Answered]:
    """What follows `Taken`."""
    match reply:
        case Embeddings():
            data, n_tokens = b"".join(reply.vectors), reply.n_tokens
        case Scores():
            data, n_tokens = _scores_bytes(reply), (reply.n_prompt,)
        case int():
            data, n_tokens = b"", (reply,)
    size = defaults.MAX_PART_BYTES
    for at in range(0, len(data), size):
        yield Part(at, data[at : at + size])
    yield Answered(n_tokens)


def _scores_bytes(scores: Scores) -> bytes:
    data = bytearray()
    for number, score in enumerate(scores.tokens):
        # A logit may be so low that float32 has no number for it.
        logprob, gap = max(score.logprob, -_HIGHEST), min(score.gap, _HIGHEST)
        data += _SCORE.pack(logprob, gap, score.rank, score.mass)
        if scores.drawn:
            data += _DRAWN.pack(scores.drawn[number])
    return bytes(data)


# ---------------------------------------------------------------- frames to answers


class WholeContents:
    """How much of one answer has come. Every method raises `RemoteProtocolError` for what does not
    fit the question.
    """

    def __init__(self, question: Question) -> None:
        self.reply: Reply | None = None
        self._question = question
        self._data = bytearray()
        self._max_bytes = _max_bytes(question)

    def take(self, frame: object) -> None:
        """One more frame; with `Answered` comes `reply`. In what order they may come is
        `exchange.py`'s business.
        """
        match frame:
            case Taken():
                return
            case Part(at, data):
                if at != len(self._data) or not data:
                    raise RemoteProtocolError("a gap, an overlap or nothing in its answer")
                if at + len(data) > self._max_bytes:
                    raise RemoteProtocolError("a longer answer than was asked for")
                self._data += data
            case Answered(n_tokens):
                self.reply = self._read(n_tokens)
                self._data = bytearray()
            case _:
                raise RemoteProtocolError("tokens, where they were not asked for")

    def _read(self, n_tokens: tuple[int, ...]) -> Reply:
        question = self._question
        n_inputs = len(question.inputs) if isinstance(question, EmbedRequest) else 1
        if len(n_tokens) != n_inputs:
            raise RemoteProtocolError("not a number of tokens for each input")
        match question:
            case EmbedRequest():
                return Embeddings(_read_vectors(question, bytes(self._data)), n_tokens)
            case CountRequest():
                return n_tokens[0]
            case ScoreRequest():
                return _read_scores(question, bytes(self._data), n_tokens[0])


def _max_bytes(question: Question) -> int:
    match question:
        case EmbedRequest():
            n_numbers = question.dimensions or defaults.MAX_EMBED_DIMENSIONS
            n_bytes = FLOAT_BYTES * n_numbers * len(question.inputs)
            return min(n_bytes, defaults.MAX_VECTORS_BYTES)
        case CountRequest():
            return 0
        case ScoreRequest():
            return _score_bytes(question) * len(question.ids)


def _score_bytes(question: ScoreRequest) -> int:
    return _SCORE.size + (_DRAWN.size if question.replay is not None else 0)


def _read_vectors(question: EmbedRequest, data: bytes) -> tuple[bytes, ...]:
    n_numbers, rest = divmod(len(data), FLOAT_BYTES * len(question.inputs))
    if rest or not n_numbers or question.dimensions not in (None, n_numbers):
        raise RemoteProtocolError("vectors of another size than were asked for")
    size = FLOAT_BYTES * n_numbers
    vectors = tuple(data[at : at + size] for at in range(0, len(data), size))
    form = struct.Struct(f"<{n_numbers}f")
    # What is not finite is no length of 1 either.
    if not all(_is_one(math.hypot(*form.unpack(vector))) for vector in vectors):
        raise RemoteProtocolError("a vector whose length is not 1")
    return vectors


def _is_one(length: float) -> bool:
    return abs(length - 1) <= defaults.VECTOR_LENGTH_SLACK


def _read_scores(question: ScoreRequest, data: bytes, n_prompt: int) -> Scores:
    size = _score_bytes(question)
    if len(data) != size * len(question.ids):
        raise RemoteProtocolError("not one score for each id")
    places = range(0, len(data), size)
    scores = tuple(TokenScore(*_SCORE.unpack_from(data, at)) for at in places)
    if not all(map(_is_score, scores)):
        raise RemoteProtocolError("a score that is none")
    has_drawn = question.replay is not None
    drawn = tuple(_DRAWN.unpack_from(data, at + _SCORE.size)[0] for at in places if has_drawn)
    return Scores(scores, drawn, n_prompt)


def _is_score(score: TokenScore) -> bool:
    """NaN fails it."""
    return -_HIGHEST <= score.logprob <= 0 and 0 <= score.gap <= _HIGHEST and 0 <= score.mass <= 1
