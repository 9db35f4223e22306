"""The objects that all of OpenAI's answers share. Start at `OpenAIForm`.

Pure. The objects are plain dicts, because a pydantic model for each streamed token would cost more
than the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.form import Json
from tokenplace.api_shim.refusal import Refusal
from tokenplace.api_shim.sse import DONE, SSE_TYPE, encode_comment, encode_event
from tokenplace.generation import Usage

MIN_LOGPROB = -9999.0  # what OpenAI writes for "never"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class OpenAIForm:
    """id, created (unix seconds) and model stand in every object; model is what the app asked.

    includes_usage: a stream ends with a chunk of token counts.
    """

    media_type: ClassVar[str] = SSE_TYPE
    last: ClassVar[bytes] = DONE
    chunk_kind: ClassVar[str]

    id: str
    created: int
    model: str
    n_choices: int = 1
    includes_usage: bool = False

    def encode(self, event: Json) -> bytes:
        """See `AnswerForm`."""
        return encode_event(event)

    def comment(self, text: str) -> bytes:
        """See `AnswerForm`."""
        return encode_comment(text)

    def error(self, refusal: Refusal) -> Json:
        """See `AnswerForm`."""
        return refusal.body

    def object(self, kind: str, choices: list[Json]) -> Json:
        """What every object begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def chunk(self, choice: Json) -> Json:
        """An event about one choice."""
        chunk = self.object(self.chunk_kind, [choice])
        if self.includes_usage:
            chunk["usage"] = None
        return chunk

    def usage_chunks(self, usage: Usage) -> list[Json]:
        """The event of token counts, if it was asked for."""
        if not self.includes_usage:
            return []
        return [{**self.object(self.chunk_kind, []), "usage": usage_object(usage)}]


def usage_object(usage: Usage) -> Json:
    """Token counts in OpenAI's words."""
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
    }


def shown_logprob(logprob: float) -> float:
    """As JSON can say it. In this order, so that what is no number becomes the least one."""
    return max(MIN_LOGPROB, logprob)


def model_object(card: ModelCard) -> Json:
    """A model as the landing page shows it."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "token.place",
        "permission": [],
        "root": card.root or card.id,
        "parent": None,
    }


def model_list(cards: Sequence[ModelCard]) -> Json:
    """All of them."""
    return {"object": "list", "data": [model_object(card) for card in cards]}
