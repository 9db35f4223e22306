"""`text_completion`, plain and as chunks: the form that OpenAI's SDK reads. Start at `TextForm`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tokenplace.api_shim.form import FinishReason, Json, Part, WholeChoice
from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.openai.objects import OpenAIForm, shown_logprob, usage_object
from tokenplace.generation import Usage
from tokenplace.text.deltas import Delta, merge


@dataclass(frozen=True, slots=True)
class TextForm(OpenAIForm):
    """An answer to raw prompts.

    echoes: what each choice's text begins with; empty echoes nothing. top_logprobs: how many were
    asked for; None wants none. Remembers of each choice how long its text is, so a form serves one
    answer, in its order.
    """

    chunk_kind: ClassVar[str] = "text_completion"

    echoes: tuple[str, ...] = ()
    top_logprobs: int | None = None
    _offsets: dict[int, _Offset] = field(default_factory=dict)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> Json:
        """See `AnswerForm`."""
        whole = [
            self._choice(
                index,
                self._echo(index) + _text(choice.deltas),
                self._logprobs(index, choice.logprobs),
                choice.finish_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return {**self.object(self.chunk_kind, whole), "usage": usage_object(usage)}

    def begin(self) -> list[Json]:
        """See `AnswerForm`."""
        return [self._chunk(index, text) for index, text in enumerate(self.echoes)]

    def deltas(self, part: Part) -> list[Json]:
        """See `AnswerForm`."""
        logprobs = self._logprobs(part.choice, part.logprobs) if part.logprobs else None
        return [self._chunk(part.choice, _text(part.deltas), logprobs)]

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
        """See `AnswerForm`."""
        last = [self._chunk(index, "", why=why) for index, why in enumerate(finish_reasons)]
        return [*last, *self.usage_chunks(usage)]

    def _echo(self, index: int) -> str:
        return self.echoes[index] if self.echoes else ""

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: Json | None = None,
        why: FinishReason | None = None,
    ) -> Json:
        return self.chunk(self._choice(index, text, logprobs, why))

    def _choice(
        self, index: int, text: str, logprobs: Json | None, why: FinishReason | None
    ) -> Json:
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": why}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Json | None:
        if self.top_logprobs is None:
            return None
        offset = self._offsets.setdefault(index, _Offset())
        return {
            "tokens": [_token(token.piece) for token in tokens],
            "token_logprobs": [shown_logprob(token.logprob) for token in tokens],
            "top_logprobs": [_tops(token) for token in tokens] if self.top_logprobs else None,
            "text_offset": [offset.step(token.piece) for token in tokens],
        }


class _Offset:
    """How many characters the tokens so far have made."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_chars = 0

    def step(self, piece: bytes) -> int:
        """Where this token's text begins."""
        begin = self._n_chars
        self._n_chars += len(self._decoder.decode(piece))
        return begin


def _text(deltas: Sequence[Delta]) -> str:
    return merge(deltas).content


def _tops(token: TokenLogprob) -> Json:
    """The token itself is among them, whether or not it was likely."""
    tops = {_token(top.piece): shown_logprob(top.logprob) for top in token.top}
    return {**tops, _token(token.piece): shown_logprob(token.logprob)}


def _token(piece: bytes) -> str:
    """As OpenAI writes it, a part of a character too."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
