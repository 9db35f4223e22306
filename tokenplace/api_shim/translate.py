"""OpenAI's words to ours and back. Start at `chat_request` and `ChatForm`.

Pure: clock and dice are arguments. A form turns one answer's parts into the JSON objects of one
dialect; who sends them does not know which dialect it is. The objects are plain dicts, because a
pydantic model for each streamed token would cost more than the token.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.schemas import ChatCompletionRequest, CompletionRequest
from tokenplace.defaults import COMPLETIONS_MAX_TOKENS
from tokenplace.generation import (
    SEED_BYTES,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    SamplingParams,
    TextInput,
    Usage,
)

Json = dict[str, Any]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a request gets from its surroundings rather than from its app.

    random_seed: 8 bytes, taken when the app gave no seed. cache_scope, as_of: as in
    `GenerateRequest`.
    """

    random_seed: bytes
    cache_scope: bytes
    as_of: str


def chat_request(body: ChatCompletionRequest, around: Surroundings) -> GenerateRequest:
    """The request of a chat. Of two limits the newer name counts."""
    messages = tuple(
        ChatMessage("system" if turn.role == "developer" else turn.role, turn.content)
        for turn in body.messages
    )
    max_tokens = body.max_completion_tokens or body.max_tokens
    return _request(body, ChatInput(messages), max_tokens, around)


def completion_request(body: CompletionRequest, around: Surroundings) -> GenerateRequest:
    """The request of a raw text completion."""
    max_tokens = body.max_tokens or COMPLETIONS_MAX_TOKENS
    return _request(body, TextInput(body.prompt), max_tokens, around)


def _request(
    body: ChatCompletionRequest | CompletionRequest,
    input_: ChatInput | TextInput,
    max_tokens: int | None,
    around: Surroundings,
) -> GenerateRequest:
    return GenerateRequest(
        model=body.model,
        input=input_,
        sampling=_sampling(body),
        seed=around.random_seed if body.seed is None else _seed_bytes(body.seed),
        cache_scope=around.cache_scope,
        as_of=around.as_of,
        max_tokens=max_tokens,
        stop=tuple(body.stop or ()),
        ignore_eog=bool(body.ignore_eos),
        streamed=bool(body.stream),
    )


def _seed_bytes(seed: int) -> bytes:
    return seed.to_bytes(SEED_BYTES, "big", signed=True)


def _sampling(body: ChatCompletionRequest | CompletionRequest) -> SamplingParams:
    usual = SamplingParams()
    top_p = usual.top_p if body.top_p is None else body.top_p
    return SamplingParams(
        temperature=usual.temperature if body.temperature is None else body.temperature,
        top_k=usual.top_k if body.top_k is None else body.top_k,
        # OpenAI takes 0, gen/1 does not: the smallest share keeps the one most likely token too.
        top_p=max(top_p, sys.float_info.min),
        min_p=usual.min_p if body.min_p is None else body.min_p,
    )


class AnswerForm(Protocol):
    """How one dialect writes one answer: whole, or as the events of a stream in this order."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> Json:
        """The object of an answer that is not streamed."""

    def begin(self) -> list[Json]:
        """Events before the first text."""

    def delta(self, text: str) -> Json:
        """The event of new text."""

    def end(self, finish_reason: FinishReason, usage: Usage) -> list[Json]:
        """Events after the last text."""


@dataclass(frozen=True, slots=True)
class _OpenAIForm:
    """id, created (unix seconds) and model stand in every object; model is what the app asked."""

    id: str
    created: int
    model: str
    includes_usage: bool = False

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, kind: str, choices: list[Json]) -> Json:
        chunk = self._object(kind, choices)
        if self.includes_usage:
            chunk["usage"] = None
        return chunk

    def _usage_chunk(self, kind: str, usage: Usage) -> list[Json]:
        if not self.includes_usage:
            return []
        return [{**self._object(kind, []), "usage": usage_object(usage)}]


class ChatForm(_OpenAIForm):
    """`chat.completion` and its chunks."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**self._object("chat.completion", [choice]), "usage": usage_object(usage)}

    def begin(self) -> list[Json]:
        return [self._delta({"role": "assistant", "content": "", "refusal": None}, None)]

    def delta(self, text: str) -> Json:
        return self._delta({"content": text}, None)

    def end(self, finish_reason: FinishReason, usage: Usage) -> list[Json]:
        last = self._delta({}, finish_reason)
        return [last, *self._usage_chunk("chat.completion.chunk", usage)]

    def _delta(self, delta: Json, finish_reason: FinishReason | None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk("chat.completion.chunk", [choice])


class CompletionForm(_OpenAIForm):
    """`text_completion`, plain and as chunks: the form that OpenAI's SDK reads."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> Json:
        choices = [self._choice(text, finish_reason)]
        return {**self._object("text_completion", choices), "usage": usage_object(usage)}

    def begin(self) -> list[Json]:
        return []

    def delta(self, text: str) -> Json:
        return self._chunk("text_completion", [self._choice(text, None)])

    def end(self, finish_reason: FinishReason, usage: Usage) -> list[Json]:
        last = self._chunk("text_completion", [self._choice("", finish_reason)])
        return [last, *self._usage_chunk("text_completion", usage)]

    def _choice(self, text: str, finish_reason: FinishReason | None) -> Json:
        return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}


def usage_object(usage: Usage) -> Json:
    """Token counts in OpenAI's words."""
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
    }


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
