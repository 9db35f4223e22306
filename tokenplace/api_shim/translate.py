"""OpenAI's words to ours and back. Start at `chat_request` and `ChatForm`.

Pure: clock and dice are arguments. A form turns one answer's parts into the JSON objects of one
dialect; who sends them does not know which dialect it is. The objects are plain dicts, because a
pydantic model for each streamed token would cost more than the token.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from tokenplace.api_shim.catalog import ModelCard
from tokenplace.api_shim.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponseFormat,
    schema_text,
)
from tokenplace.defaults import COMPLETIONS_MAX_TOKENS
from tokenplace.generation import (
    SEED_BYTES,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    JsonObject,
    JsonSchema,
    SamplingParams,
    TextInput,
    Usage,
)

Json = dict[str, Any]
_SAMPLING_NAMES: Final = tuple(
    field.name for field in dataclasses.fields(SamplingParams) if field.name != "logit_bias"
)
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
    request = _request(body, ChatInput(messages), max_tokens, around)
    return dataclasses.replace(request, output=_output(body.response_format))


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
        n=body.n or 1,
    )


def _output(wanted: ResponseFormat | None) -> JsonObject | JsonSchema | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return JsonObject()
    return JsonSchema(schema_text(wanted.json_schema.schema_))


def _seed_bytes(seed: int) -> bytes:
    return seed.to_bytes(SEED_BYTES, "big", signed=True)


def _sampling(body: ChatCompletionRequest | CompletionRequest) -> SamplingParams:
    said = {name: value for name in _SAMPLING_NAMES if (value := getattr(body, name)) is not None}
    if "top_p" in said:
        # OpenAI takes 0, gen/1 does not: the smallest share keeps the one most likely token too.
        said["top_p"] = max(said["top_p"], sys.float_info.min)
    biases = tuple(
        sorted((int(token_id), bias) for token_id, bias in (body.logit_bias or {}).items())
    )
    return SamplingParams(**said, logit_bias=biases)


class AnswerForm(Protocol):
    """How one dialect writes one answer: whole, or as the events of a stream in this order. Choices
    are counted from 0.
    """

    def whole(self, choices: Sequence[tuple[str, FinishReason]], usage: Usage) -> Json:
        """The object of an answer that is not streamed: each choice's text, and why it ended."""

    def begin(self, n_choices: int) -> list[Json]:
        """Events before the first text."""

    def delta(self, choice: int, text: str) -> Json:
        """The event of new text."""

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
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

    def whole(self, choices: Sequence[tuple[str, FinishReason]], usage: Usage) -> Json:
        whole = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
            for index, (text, finish_reason) in enumerate(choices)
        ]
        return {**self._object("chat.completion", whole), "usage": usage_object(usage)}

    def begin(self, n_choices: int) -> list[Json]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._delta(choice, delta, None) for choice in range(n_choices)]

    def delta(self, choice: int, text: str) -> Json:
        return self._delta(choice, {"content": text}, None)

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
        last = [self._delta(choice, {}, why) for choice, why in enumerate(finish_reasons)]
        return [*last, *self._usage_chunk("chat.completion.chunk", usage)]

    def _delta(self, index: int, delta: Json, finish_reason: FinishReason | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk("chat.completion.chunk", [choice])


class CompletionForm(_OpenAIForm):
    """`text_completion`, plain and as chunks: the form that OpenAI's SDK reads."""

    def whole(self, choices: Sequence[tuple[str, FinishReason]], usage: Usage) -> Json:
        whole = [self._choice(index, text, why) for index, (text, why) in enumerate(choices)]
        return {**self._object("text_completion", whole), "usage": usage_object(usage)}

    def begin(self, n_choices: int) -> list[Json]:
        return []

    def delta(self, choice: int, text: str) -> Json:
        return self._chunk("text_completion", [self._choice(choice, text, None)])

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
        last = [
            self._chunk("text_completion", [self._choice(choice, "", why)])
            for choice, why in enumerate(finish_reasons)
        ]
        return [*last, *self._usage_chunk("text_completion", usage)]

    def _choice(self, index: int, text: str, finish_reason: FinishReason | None) -> Json:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


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
