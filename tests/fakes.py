"""Fakes behind our own interfaces. Start at `EchoEngine`: a `Generator` without a model."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from tokenplace.errors import PromptMismatch, TokenplaceError, Unsupported
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    IdsInput,
    LengthStop,
    Logprob,
    TextInput,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.operations import CountRequest, Embeddings, EmbedRequest, ScoreRequest, Scores


def prompt_of(request: GenerateRequest) -> str:
    if isinstance(request.input, TextInput):
        return request.input.prompt
    if isinstance(request.input, IdsInput):
        return " ".join(map(str, request.input.ids))
    return request.input.messages[-1].content


class NoOperations:
    """For fakes that only generate."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise Unsupported("embed")

    async def count(self, request: CountRequest) -> int:
        raise Unsupported("count")

    async def score(self, request: ScoreRequest) -> Scores:
        raise Unsupported("score")


@dataclass
class EchoEngine(NoOperations):
    """Repeats the prompt, one token for each piece of `piece_bytes` bytes, so characters are split
    between tokens. All choices say the same, and take turns.

    fail_after: raise `error` after so many tokens. token_interval_s: pause before each token.
    `n_running` and `n_cancelled` let a test see that leaving early reached the engine.
    """

    piece_bytes: int = 3
    token_interval_s: float = 0.0
    fail_after: int | None = None
    error: TokenplaceError | None = None
    n_running: int = 0
    n_cancelled: int = 0
    requests: list[GenerateRequest] = field(default_factory=list)

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.n_running += 1
        try:
            data = prompt_of(request).encode()
            pieces = [data[i : i + self.piece_bytes] for i in range(0, len(data), self.piece_bytes)]
            ids = [hash_id(piece) for piece in pieces]
            digest = hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).digest()
            if request.resume and digest != request.prompt_digest:
                raise PromptMismatch
            max_new = min(request.max_tokens or len(ids), len(ids))
            n_ctx = 4096
            yield Accepted(digest, len(ids), 0, n_ctx, max_new, "tp/1", 10, 0)
            starts = {resume.choice: len(resume.ids) for resume in request.resume}
            starts = starts or dict.fromkeys(range(request.n), 0)
            for index, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
                if self.fail_after == index:
                    raise self.error or TokenplaceError("planned failure")
                if index == max_new:
                    break
                await trio.sleep(self.token_interval_s)
                logprobs = logprobs_of(request, token_id, piece)
                for choice in (choice for choice, start in starts.items() if start <= index):
                    yield Tokens(choice, index, (token_id,), (piece,), logprobs)
            stop = EogStop(2) if max_new == len(ids) else LengthStop()
            n_completion = sum(max_new - start for start in starts.values())
            yield Finished(
                tuple(ChoiceEnd(choice, stop) for choice in starts),
                Usage(len(ids), 0, n_completion),
                Timings(0, 1, max_new),
            )
        except BaseException as error:
            if isinstance(error, (trio.Cancelled, GeneratorExit)):
                self.n_cancelled += 1
            raise
        finally:
            self.n_running -= 1


@dataclass
class FakeEmbedder:
    """Makes vectors of two numbers, of how long a text is. Each character or id is a
    token, and one stands before them.
    """

    donor: str = ""
    served: str = ""
    error: TokenplaceError | None = None

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if self.error is not None:
            raise self.error
        lengths = [len(each) for each in request.inputs]
        vectors = tuple(struct.pack("<2f", math.cos(n), math.sin(n)) for n in lengths)
        return Embeddings(vectors, tuple(n + 1 for n in lengths), self.donor, self.served)


def logprobs_of(request: GenerateRequest, token_id: int, piece: bytes) -> tuple[Logprob, ...]:
    """One, if it was asked for; the token itself is the most likely."""
    if request.top_logprobs is None:
        return ()
    top = (TopToken(token_id, piece, -0.5), *(TopToken(n, b"?", -2.0) for n in range(19)))
    return (Logprob(-0.5, top[: request.top_logprobs]),)


def hash_id(piece: bytes) -> int:
    return int.from_bytes(hashlib.sha256(piece).digest()[:2], "big")
