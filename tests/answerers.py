"""Fakes that answer more than requests for tokens. Start at `FakeAnswerer`."""

from __future__ import annotations

import struct
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import trio
import trio.abc

from tests.fakes import EchoEngine, NoOperations, hash_id
from tokenplace.errors import TokenplaceError
from tokenplace.generation import Event, GenerateRequest, Generator, IdsInput, TextInput
from tokenplace.operations import (
    Answerer,
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    ScoreRequest,
    Scores,
    TokenScore,
)


@dataclass
class FakeAnswerer(EchoEngine):
    """A `EchoEngine` that makes vectors, counts and scores as well: of characters or ids, its
    tokens.

    work_s: how long that takes. `error` with `fail_after` of 0 is raised instead of an answer.
    """

    work_s: float = 0.0
    n_dimensions: int = 8
    questions: list[Question] = field(default_factory=list)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        await self._work(request)
        n_numbers = request.dimensions or self.n_dimensions
        vectors = tuple(vector_of(given, n_numbers) for given in request.inputs)
        return Embeddings(vectors, tuple(map(len, request.inputs)))

    async def count(self, request: CountRequest) -> int:
        await self._work(request)
        return n_tokens_of(request)

    async def score(self, request: ScoreRequest) -> Scores:
        await self._work(request)
        scores = tuple(TokenScore(-1.5, 0.5, token_id, 0.25) for token_id in request.ids)
        return Scores(scores, request.ids if request.replay else (), n_tokens_of(request))

    async def _work(self, question: Question) -> None:
        self.questions.append(question)
        self.n_running += 1
        try:
            await trio.sleep(self.work_s)
            if self.fail_after is not None:
                raise self.error or TokenplaceError("planned failure")
        except trio.Cancelled:
            self.n_cancelled += 1
            raise
        finally:
            self.n_running -= 1


@dataclass
class OnlyGenerates(NoOperations):
    """A `Generator` as an `Answerer` that answers nothing else."""

    generator: Generator

    def generate(
        self, request: GenerateRequest
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Event]]:
        return self.generator.generate(request)


def answerer_of(generator: Generator) -> Answerer:
    """The fake as it is, if it is an `Answerer`; else one that refuses what it cannot do."""
    return generator if isinstance(generator, NoOperations) else OnlyGenerates(generator)


def vector_of(given: str | tuple[int, ...], n_numbers: int) -> bytes:
    """Of length one, and most likely another for another input."""
    numbers = [0.0] * n_numbers
    numbers[hash_id(repr(given).encode()) % n_numbers] = 1.0
    return struct.pack(f"<{n_numbers}f", *numbers)


def n_tokens_of(question: CountRequest | ScoreRequest) -> int:
    match question.input:
        case TextInput(prompt):
            return len(prompt)
        case IdsInput(ids):
            return len(ids)
        case chat:
            return sum(len(message.content) for message in chat.messages)
