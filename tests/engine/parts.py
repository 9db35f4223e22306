"""What the engine's tests share: a model of arithmetic, and requests for the real one."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import trio

from tests.conftest import TINY_MODEL_SHA256
from tests.engine.arithmetic import BOS as BOS
from tests.engine.arithmetic import EOG as EOG
from tests.engine.arithmetic import N_VOCAB as N_VOCAB
from tests.engine.arithmetic import ArithmeticModel as ArithmeticModel
from tests.engine.arithmetic import LetterVocabulary as LetterVocabulary
from tests.engine.arithmetic import OneOf as OneOf
from tests.engine.arithmetic import arithmetic_logits as arithmetic_logits
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.engine.messages import Done, FromWorker, NewTokens, Queued, Refused, Submit
from tokenplace.engine.runner import Runner
from tokenplace.engine.sampler import sample, uniform
from tokenplace.engine.sequence import StopMatcher, tokenise_prompt
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

ALICE = b"alice's cache...."[:16]
BOB = b"bob's cache......"[:16]


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


def tokens_of(events: list[FromWorker], request: int, choice: int = 0) -> list[int]:
    ids: list[int] = []
    for event in events:
        if isinstance(event, NewTokens) and (event.request, event.choice) == (request, choice):
            ids += event.ids
    return ids


def done_of(events: list[FromWorker], request: int) -> Done:
    (done,) = [e for e in events if isinstance(e, Done) and e.request == request]
    return done


def refused_of(events: list[FromWorker]) -> Refused:
    (refused,) = [event for event in events if isinstance(event, Refused)]
    return refused
