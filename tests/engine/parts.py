"""What the engine's tests share: a model of arithmetic, and requests for the real one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from tests.conftest import TINY_MODEL_SHA256
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.engine.grammar import BadGrammar, GrammarFailed
from tokenplace.engine.messages import FromWorker, Queued, Submit
from tokenplace.engine.runner import Runner
from tokenplace.engine.sampler import sample, uniform
from tokenplace.engine.scheduler import Chunk, Copy, Keep
from tokenplace.engine.sequence import StopMatcher, tokenise_prompt
from tokenplace.engine.sizing import ContextSize
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

    n_tokens = N_VOCAB
    first_id: int | None = BOS
    eog_ids = frozenset({EOG})

    def tokenise(self, text: str, parse_special: bool) -> list[int]:
        special = {"⏹": EOG, "⏵": BOS} if parse_special else {}
        return [special.get(letter, 2 + (ord(letter) - 66) % (N_VOCAB - 2)) for letter in text]

    def piece(self, token_id: int) -> bytes:
        return bytes([64 + token_id])

    def matcher(self, grammar: str) -> OneOf:
        return OneOf([*map(ord, grammar)])


class OneOf:
    """A grammar of one text: these ids, one after the other. `!` is a grammar that is none."""

    def __init__(self, ids: list[int]) -> None:
        if ids == [ord("!")]:
            raise BadGrammar("It is no grammar.")
        self._ids = [token_id - 64 for token_id in ids]

    @property
    def is_complete(self) -> bool:
        return not self._ids

    def allows(self, token_id: int) -> bool:
        return token_id == (self._ids[0] if self._ids else EOG)

    def mask(self, logits: NDArray[np.float32]) -> None:
        allowed = self._ids[0] if self._ids else EOG
        kept = logits[allowed]
        logits[:] = -np.inf
        logits[allowed] = kept

    def accept(self, token_id: int) -> None:
        if self._ids.pop(0) != token_id:
            raise GrammarFailed("It may not come.")


class ArithmeticModel:
    """Its next token depends on every token before it, so a wrong KV cache shows. n_cells: as in
    `ContextSize`; with `is_strict` it finds no room beyond them, as a shared cache does.
    """

    def __init__(
        self,
        n_ctx: int = 64,
        *,
        n_slots: int = 4,
        n_running: int | None = None,
        n_cells: int | None = None,
        can_cut: bool = True,
        n_batch: int = 512,
    ) -> None:
        n_cells = n_cells or n_ctx * n_slots
        self.size = ContextSize(
            n_ctx, n_slots, n_running or n_slots, n_cells, is_shared=n_cells < n_ctx * n_slots
        )
        self.n_batch = n_batch
        self.can_cut = can_cut
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.n_decoded = 0
        self.n_steps = 0
        self.fails: type[Exception] | None = None
        self.n_threads = 0

    def apply(self, move: Keep | Copy) -> None:
        match move:
            case Keep(slot, n):
                assert n == 0 or self.can_cut, "this memory cannot be cut"
                assert n <= len(self.slots[slot]), "more is kept than there is"
                del self.slots[slot][n:]
            case Copy(source, slot, n):
                assert n <= len(self.slots[source]), "more is copied than there is"
                self.slots[slot] = self.slots[source][:n]

    def decode(self, chunks: AbstractSequence[Chunk]) -> NDArray[np.float32]:
        if self.fails is not None:
            raise self.fails
        assert 0 < sum(chunk.n for chunk in chunks) <= self.n_batch
        assert len({chunk.sequence.slot for chunk in chunks}) == len(chunks)
        rows = []
        for chunk in chunks:
            assert chunk.sequence.slot is not None
            ids = self.slots[chunk.sequence.slot]
            assert chunk.start == len(ids), "a gap in the KV cache"
            for place in range(chunk.start, chunk.start + chunk.n):
                ids.append(int(chunk.sequence.buffer[place]))
                if place >= chunk.start + chunk.n - chunk.n_rows:
                    rows.append(arithmetic_logits(ids))
            assert len(ids) <= self.size.n_ctx
        assert sum(map(len, self.slots)) <= self.size.n_cells, "over the budget"
        self.n_decoded += sum(chunk.n for chunk in chunks)
        self.n_steps += 1
        return np.array(rows, np.float32).reshape(len(rows), N_VOCAB)

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads


def arithmetic_logits(ids: AbstractSequence[int]) -> NDArray[np.float32]:
    noise = int.from_bytes(hashlib.sha256(bytes(ids)).digest()[:8], "big")
    return np.random.default_rng(noise).normal(0, 3, N_VOCAB).astype(np.float32)


def submit(
    request: int = 0,
    prompt: str = "hello",
    *,
    bucket: str = "alice",
    scope: bytes = ALICE,
    n: int = 1,
    max_tokens: int | None = 8,
    stop: tuple[bytes, ...] = (),
    sampling: SamplingParams | None = None,
    temperature: float = 0.0,
    ignore_eog: bool = False,
    top_logprobs: int | None = None,
    grammar: str = "",
    resume: tuple[tuple[int, tuple[int, ...]], ...] = (),
    digest: bytes = b"",
    segments: tuple[tuple[str, bool], ...] | None = None,
) -> Submit:
    return Submit(
        request=request,
        bucket=bucket,
        segments=segments if segments is not None else ((prompt, False),),
        sampling=astuple(sampling or SamplingParams(temperature=temperature)),
        n=n,
        seed=b"\x07" * 8,
        cache_scope=scope,
        max_tokens=max_tokens,
        stop=stop,
        ignore_eog=ignore_eog,
        top_logprobs=top_logprobs,
        grammar=grammar,
        resume=resume,
        prompt_digest=digest,
    )


VOCABULARY = LetterVocabulary()


class Ticks:
    """A clock that a test owns; every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def runner_of(model: ArithmeticModel) -> Runner:
    return Runner(model, VOCABULARY, Ticks(), n_threads=1)


def enter(runner: Runner, asked: Submit) -> Queued:
    (queued,) = runner.submit(asked)
    assert isinstance(queued, Queued)
    return queued


def run(runner: Runner, max_steps: int = 10_000) -> list[FromWorker]:
    """Everything that is told until all is done."""
    events: list[FromWorker] = []
    for _ in range(max_steps):
        if runner.is_idle:
            return events
        events += runner.step()
    raise AssertionError("it never ends")


def alone(asked: Submit, choice: int = 0, n_ctx: int = 64) -> tuple[list[int], int | bytes | str]:
    """Tokens and end of one choice computed with no scheduler and no cache."""
    prompt = tokenise_prompt(asked.segments, VOCABULARY, n_ctx).tolist()
    params = SamplingParams(*asked.sampling)
    stops = StopMatcher(asked.stop)
    generated: list[int] = []
    max_new = min(n_ctx - len(prompt), asked.max_tokens or n_ctx)
    while len(generated) < max_new:
        row = arithmetic_logits([*prompt, *generated])
        token_id = sample(row, params, uniform(asked.seed, choice, len(generated)))
        if token_id == EOG and not asked.ignore_eog:
            return generated, EOG
        generated.append(token_id)
        if (stop := stops.push(VOCABULARY.piece(token_id))) is not None:
            return generated, stop
    return generated, "length"


# ---------------------------------------------------------------- the real model


def tiny_spec(path: Path, n_ctx: int | None = 1024) -> EngineSpec:
    return EngineSpec(path, "tiny-model", TINY_MODEL_SHA256, n_threads=1, n_ctx=n_ctx, n_slots=2)


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
