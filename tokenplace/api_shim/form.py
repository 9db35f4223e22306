"""What an answer is, before it has the words of a dialect. Start at `AnswerForm`.

Pure. Whoever runs requests and sends answers (`responder`, `sse`) knows these words alone; a
dialect is a package beside this module, which makes requests of bodies and objects of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.refusal import Refusal
from tokenplace.generation import Usage
from tokenplace.text.deltas import Delta

Json = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls"]


class Part(NamedTuple):
    """What has become known of one choice: new text, and what of its tokens' log-probabilities was
    asked for. Choices are counted from 0, through all requests of an answer.
    """

    choice: int
    deltas: Sequence[Delta]
    logprobs: Sequence[TokenLogprob]


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """All that one choice says, and why it ended."""

    deltas: Sequence[Delta]
    logprobs: Sequence[TokenLogprob]
    finish_reason: FinishReason


class AnswerForm(Protocol):
    """How one dialect writes one answer: whole, or as the events of a stream in this order.

    media_type, encode, comment, last: how a stream is sent: its content type, the bytes of one
    event, of a remark that no program reads, and what follows the events of a whole answer.
    """

    @property
    def media_type(self) -> str: ...

    @property
    def last(self) -> bytes: ...

    def encode(self, event: Json) -> bytes: ...

    def comment(self, text: str) -> bytes: ...

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> Json:
        """The object of an answer that is not streamed."""

    def begin(self) -> list[Json]:
        """Events before the first text."""

    def deltas(self, part: Part) -> list[Json]:
        """Events of new text."""

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
        """Events after the last text."""

    def error(self, refusal: Refusal) -> Json:
        """The event that tells of a failure in mid-stream."""
