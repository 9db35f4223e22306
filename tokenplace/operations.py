"""The words for what can be asked of a model beside tokens: vectors of texts, a prompt's length,
scores of an answer.

Start at `EmbedRequest`. Pure words, as `generation.py`. Differs from `Generator`: these answers are
short, so they come whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenplace.generation import (
    NO_WISHES,
    GenerateRequest,
    Generator,
    Input,
    SamplingParams,
    Wishes,
)

FLOAT_BYTES = 4  # a vector's numbers are float32


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Vectors wanted for texts, of a model made for that. `model`, `artifact` and `bucket` are as
    in `GenerateRequest`.

    inputs: 1 to `defaults.MAX_EMBED_INPUTS` texts, or token ids as the app gave them; none empty.
    dimensions: keep so many numbers of each vector, made one long again; None keeps all.
    id: as in `GenerateRequest`; so in the other questions.
    """

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    artifact: str = ""
    bucket: str = ""
    wishes: Wishes = NO_WISHES
    id: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each text, in their order: float32 numbers, little-endian, of length one.

    n_tokens: of each text, with those that the model puts around it. donor, served: as in
    `Accepted`.
    """

    vectors: tuple[bytes, ...]
    n_tokens: tuple[int, ...]
    donor: str = ""
    served: str = ""


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many tokens a prompt has, template and BOS included. The fields are as in
    `GenerateRequest`.
    """

    model: str
    input: Input
    as_of: str
    artifact: str = ""
    template: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Draw again, as tp/1 does, what this seed gives for this choice."""

    sampling: SamplingParams
    seed: bytes
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely a model finds an answer that somebody else gave: for audits. The other fields are
    as in `GenerateRequest`.

    ids: the answer's tokens, 1 to `defaults.MAX_NEW_TOKENS`, an end-of-generation id among them or
    not. replay: what the answer is said to have been drawn with; None draws nothing.
    """

    model: str
    input: Input
    ids: tuple[int, ...]
    cache_scope: bytes
    as_of: str
    replay: Replay | None = None
    artifact: str = ""
    template: str = ""
    bucket: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token among all that could have stood in its place, by raw logits, as `Logprob`.

    logprob: ln of its probability. gap: the highest logit minus its own; 0 or more.
    rank: how many stand before it: with a higher logit, or the same and a lower id.
    mass: the probability of those before it. So it is within top_k if rank < k, within top_p if
    mass < p, and within min_p if gap <= -ln(min_p), each on its own.
    """

    logprob: float
    gap: float
    rank: int
    mass: float


@dataclass(frozen=True, slots=True)
class Scores:
    """One score for each id. `drawn`: with `replay`, the id that tp/1 draws in its place, the
    tokens before it being those given; else empty.
    """

    tokens: tuple[TokenScore, ...]
    drawn: tuple[int, ...]
    n_prompt: int


Question = EmbedRequest | CountRequest | ScoreRequest
Request = GenerateRequest | Question
"""All that can be asked of a model."""
Reply = Embeddings | int | Scores
"""The answer to a `Question`."""


class Operator(Protocol):
    """Anything that answers these questions: an engine, a remote donor, the router. Failures are
    raised as `TokenplaceError`.
    """

    async def embed(self, request: EmbedRequest) -> Embeddings: ...

    async def count(self, request: CountRequest) -> int: ...

    async def score(self, request: ScoreRequest) -> Scores: ...


class Answerer(Generator, Operator, Protocol):
    """Anything that answers whatever can be asked of a model."""


async def ask(operator: Operator, question: Question) -> Reply:
    """The answer, of the type that belongs to the question. Raises what the operator raises."""
    match question:
        case EmbedRequest():
            return await operator.embed(question)
        case CountRequest():
            return await operator.count(question)
        case ScoreRequest():
            return await operator.score(question)
