"""What the engine's tests share: a model of arithmetic, and requests for the real one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from tests.conftest import TINY_MODEL_SHA256
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.engine.messages import Queued, Submit
from tokenplace.engine.sampler import sample, uniform
from tokenplace.engine.scheduler import DecodeFailed, Scheduler
from tokenplace.engine.sequence import Sequence, StopMatcher, admit
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    Event,
    GenerateRequest,
    SamplingParams,
    TextInput,
    Tokens,
)

T = TypeVar("T")

EOG = 0
BOS = 1
N_VOCAB = 64
ALICE = b"alice's cache...."[:16]
BOB = b"bob's cache......"[:16]


class LetterVocabulary:
    """One token for each character, and back; 0 and 1 are control tokens, written ⏹ and ⏵."""

    first_id: int | None = BOS
    eog_ids = frozenset({EOG})

    def tokenise(self, text: str, parse_special: bool) -> list[int]:
        special = {"⏹": EOG, "⏵": BOS} if parse_special else {}
        return [special.get(letter, 2 + (ord(letter) - 66) % (N_VOCAB - 2)) for letter in text]

    def piece(self, token_id: int) -> bytes:
        return bytes([64 + token_id])


class ArithmeticModel:
    """Its next token depends on every token before it, so a wrong KV cache shows."""

    def __init__(self, n_ctx: int = 64, can_cut: bool = True) -> None:
        self.n_ctx = n_ctx
        self.ids: list[int] = []
        self.n_decoded = 0
        self.fails = False
        self._can_cut = can_cut

    def decode(self, ids: AbstractSequence[int] | NDArray[np.int32], position: int) -> None:
        if self.fails:
            raise DecodeFailed
        assert position == len(self.ids), "a gap in the KV cache"
        self.ids += [int(token_id) for token_id in ids]
        self.n_decoded += len(ids)
        assert len(self.ids) <= self.n_ctx

    def logits(self) -> NDArray[np.float32]:
        return arithmetic_logits(self.ids)

    def keep(self, n: int) -> int:
        n = n if self._can_cut else 0
        self.ids = self.ids[:n]
        return n


def arithmetic_logits(ids: list[int]) -> NDArray[np.float32]:
    noise = int.from_bytes(hashlib.sha256(bytes(ids)).digest()[:8], "big")
    return np.random.default_rng(noise).normal(0, 3, N_VOCAB).astype(np.float32)


def submit(
    request: int = 0,
    prompt: str = "hello",
    *,
    scope: bytes = ALICE,
    max_tokens: int | None = 8,
    stop: tuple[bytes, ...] = (),
    temperature: float = 0.0,
    ignore_eog: bool = False,
    segments: tuple[tuple[str, bool], ...] | None = None,
) -> Submit:
    return Submit(
        request=request,
        segments=segments if segments is not None else ((prompt, False),),
        temperature=temperature,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        seed=b"\x07" * 8,
        cache_scope=scope,
        max_tokens=max_tokens,
        stop=stop,
        ignore_eog=ignore_eog,
    )


VOCABULARY = LetterVocabulary()


class Ticks:
    """A clock that a test owns; every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def enter(scheduler: Scheduler, asked: Submit, n_ctx: int = 64) -> Queued:
    sequence = admit(asked, VOCABULARY, n_ctx, now=0.0)
    assert isinstance(sequence, Sequence)
    return scheduler.submit(sequence)


def alone(asked: Submit, n_ctx: int = 64) -> tuple[list[int], int | None]:
    """Tokens and end-of-generation id of an answer computed with no scheduler and no cache."""
    sequence = admit(asked, VOCABULARY, n_ctx, now=0.0)
    assert isinstance(sequence, Sequence)
    params = SamplingParams(asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    stops = StopMatcher(asked.stop)
    generated: list[int] = []
    while len(generated) < sequence.max_new:
        row = arithmetic_logits([*sequence.prompt.tolist(), *generated])
        token_id = sample(row, params, uniform(asked.seed, 0, len(generated)))
        if token_id == EOG and not asked.ignore_eog:
            return generated, EOG
        generated.append(token_id)
        if stops.push(VOCABULARY.piece(token_id)):
            break
    return generated, None


# ---------------------------------------------------------------- the real model


def tiny_spec(path: Path, n_ctx: int | None = 1024) -> EngineSpec:
    return EngineSpec(path, "tiny-model", TINY_MODEL_SHA256, n_threads=1, n_ctx=n_ctx)


def chat(
    content: str = "Say hello.",
    *,
    max_tokens: int | None = 24,
    temperature: float = 0.0,
    seed: bytes = b"\x01" * 8,
    scope: bytes = ALICE,
    stop: tuple[str, ...] = (),
    ignore_eog: bool = False,
) -> GenerateRequest:
    return GenerateRequest(
        model="tiny-model",
        input=ChatInput((ChatMessage("user", content),)),
        sampling=SamplingParams(temperature=temperature),
        seed=seed,
        cache_scope=scope,
        as_of="2025-06-01",
        max_tokens=max_tokens,
        stop=stop,
        ignore_eog=ignore_eog,
    )


def raw(prompt: str, *, max_tokens: int | None = 8) -> GenerateRequest:
    return GenerateRequest(
        model="tiny-model",
        input=TextInput(prompt),
        sampling=SamplingParams(temperature=0.0),
        seed=b"\x01" * 8,
        cache_scope=ALICE,
        as_of="2025-06-01",
        max_tokens=max_tokens,
    )


async def ask(engine: Engine, request: GenerateRequest) -> list[Event]:
    async with engine.generate(request) as events:
        return [event async for event in events]


async def until(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    with trio.fail_after(timeout_s):
        while not is_so():  # noqa: ASYNC110  # what is waited for happens in another process
            await trio.sleep(0.01)


class RunningEngine:
    """One engine for many tests, in a thread and trio of its own: loading it takes a second."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def __enter__(self) -> RunningEngine:
        self._thread.start()
        assert self._is_open.wait(30), "the engine does not open"
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._close.set, trio_token=self._token)
        self._thread.join()

    def run(self, scenario: Callable[[Engine], Awaitable[T]]) -> T:
        """Let `scenario` use the engine, for a minute at most."""

        async def main() -> T:
            with trio.fail_after(60):
                return await scenario(self.engine)

        return trio.from_thread.run(main, trio_token=self._token)

    def ask(self, request: GenerateRequest) -> list[Event]:
        return self.run(lambda engine: ask(engine, request))

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._close = trio.Event()
        async with open_engine(self._spec) as self.engine:
            self._is_open.set()
            await self._close.wait()


def text_of(events: list[Event]) -> str:
    pieces = [piece for event in events if isinstance(event, Tokens) for piece in event.pieces]
    return b"".join(pieces).decode("utf-8", "replace")
