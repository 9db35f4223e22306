"""Fakes behind our own interfaces. Start at `FakeEngine`: a `Generator` without a model."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from tokenplace.errors import TokenplaceError
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    TextInput,
    Timings,
    Tokens,
    Usage,
)


def prompt_of(request: GenerateRequest) -> str:
    if isinstance(request.input, TextInput):
        return request.input.prompt
    return request.input.messages[-1].content


@dataclass
class FakeEngine:
    """Repeats the prompt, one token for each piece of `piece_bytes` bytes, so characters are split
    between tokens.

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
            max_new = min(request.max_tokens or len(ids), len(ids))
            n_ctx = 4096
            yield Accepted(digest, len(ids), 0, n_ctx, max_new, "tp/1", 10, 0)
            for index, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
                if self.fail_after == index:
                    raise self.error or TokenplaceError("planned failure")
                if index == max_new:
                    break
                await trio.sleep(self.token_interval_s)
                yield Tokens(0, index, (token_id,), (piece,))
            stop = EogStop(2) if max_new == len(ids) else LengthStop()
            yield Finished(
                (ChoiceEnd(0, stop),), Usage(len(ids), 0, max_new), Timings(0, 1, max_new)
            )
        except BaseException as error:
            if isinstance(error, (trio.Cancelled, GeneratorExit)):
                self.n_cancelled += 1
            raise
        finally:
            self.n_running -= 1


def hash_id(piece: bytes) -> int:
    return int.from_bytes(hashlib.sha256(piece).digest()[:2], "big")
