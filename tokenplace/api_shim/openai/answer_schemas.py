"""What OpenAI's objects look like, for the API's document and for tests. Start at `ChatCompletion`.

No answer is made of these models: objects are plain dicts (`objects`, `chat_form`, `text_form`,
`embeddings`), because a model for each streamed token would cost more than the token. A test holds
the dicts against these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "tool_calls"]
Count = Annotated[int, Field(ge=0)]


class ClosedObject(BaseModel):
    """Has these names and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorObject(ClosedObject):
    """code: for programs. param: the parameter at fault. message: for people. request_id: of
    `tokenplace peer status --requests`."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str = ""


class Error(ClosedObject):
    """The body of every answer that is a refusal, and the event of one in mid-stream."""

    error: ErrorObject


class PromptDetails(ClosedObject):
    """cached_tokens: those that the donor still had in its KV cache."""

    cached_tokens: Count


class Usage(ClosedObject):
    """Token counts."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails


# ---------------------------------------------------------------- chat


class ChosenToken(ClosedObject):
    """A token and its log-probability; bytes: where it is only part of a character, its text is
    not."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenChoice(ChosenToken):
    """A token of the answer, with those most likely in its place."""

    top_logprobs: list[ChosenToken]


class ChatLogprobs(ClosedObject):
    """Of every token of the answer, or of a chunk."""

    content: list[TokenChoice]
    refusal: None


class FunctionCall(ClosedObject):
    """What the model calls; arguments is JSON text."""

    name: str
    arguments: str


class ToolCall(ClosedObject):
    """A call that the app may carry out, or not."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(ClosedObject):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(ClosedObject):
    """One answer of `n`."""

    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(ClosedObject):
    """Answer of POST /chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metadata: dict[str, Any] = {}


class FunctionDelta(ClosedObject):
    """More of a call; its name comes first, whole."""

    name: str = ""
    arguments: str


class ToolCallDelta(ClosedObject):
    """index: which call of the choice."""

    index: Count
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class ChatDelta(ClosedObject):
    """What is new."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChatChunkChoice(ClosedObject):
    """What is new of one choice."""

    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(ClosedObject):
    """Event of a streamed chat. The last one has no choices, if usage was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    metadata: dict[str, Any] = {}


# ---------------------------------------------------------------- text


class TextLogprobs(ClosedObject):
    """OpenAI's older form: lists of one length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[Count]


class TextPart(ClosedObject):
    """What both have."""

    text: str
    index: Count
    logprobs: TextLogprobs | None


class TextChoice(TextPart):
    """One continuation."""

    finish_reason: FinishReason


class Completion(ClosedObject):
    """Answer of POST /completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(TextPart):
    """What is new of one continuation."""

    finish_reason: FinishReason | None


class CompletionChunk(ClosedObject):
    """Event of a streamed completion; see `ChatCompletionChunk`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


# ---------------------------------------------------------------- the rest


class Embedding(ClosedObject):
    """One vector: numbers, or base64 of float32, little-endian."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingUsage(ClosedObject):
    """Token counts."""

    prompt_tokens: Count
    total_tokens: Count


class EmbeddingList(ClosedObject):
    """Answer of POST /embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(ClosedObject):
    """One model. root: what it stands for, if it is an alias."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    permission: list[Any]
    root: str
    parent: None


class ModelList(ClosedObject):
    """Answer of GET /models."""

    object: Literal["list"]
    data: list[Model]
