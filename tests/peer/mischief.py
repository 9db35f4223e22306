"""What an engine, a wire and the circumstances may do to an exchange, as hypothesis strategies.
Start at `SCRIPTS`, `MISHAPS` and `CIRCUMSTANCES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import trio
from hypothesis import strategies as st

from tests.answerers import vector_of
from tests.fakes import NoOperations, prompt_of
from tests.peer.exchange_lab import make_request
from tests.peer.wild_wire import End, Item, Mishap, WildStream
from tokenplace.errors import DonorBusy, TokenplaceError
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    Logprob,
    Phase,
    Resume,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.operations import Embeddings, EmbedRequest

DIGEST = b"d" * 32


@dataclass(frozen=True)
class Script:
    """How the engine answers one prompt. fails_at, requeued_at: before that token; None: never.

    starts: what is asked for: each choice, and the tokens of it that another donor delivered.
    n_top: how many likely tokens with each; None: none.
    """

    accepts_after_s: float
    n_tokens: int
    interval_s: float
    fails_at: int | None
    error: Exception
    requeued_at: int | None
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    n_top: int | None = None

    @property
    def n_new(self) -> int:
        return sum(max(0, self.n_tokens - start) for _, start in self.starts)

    def request(self, prompt: str) -> GenerateRequest:
        """What Alice's app asks."""
        resume = tuple(Resume(choice, (7,) * start) for choice, start in self.starts)
        is_resumed = any(start for _, start in self.starts)
        return make_request(
            prompt,
            n=1 + max(choice for choice, _ in self.starts),
            top_logprobs=self.n_top,
            resume=resume if is_resumed else (),
            prompt_digest=DIGEST if is_resumed else b"",
        )

    def tokens_at(self, prompt: str, index: int) -> Iterator[Tokens]:
        """One step's tokens, of every choice that is so far."""
        logprobs: tuple[Logprob, ...] = ()
        if self.n_top is not None:
            logprobs = (Logprob(-0.5, (TopToken(7, bytes(100), -0.5),) * self.n_top),)
        for choice, start in self.starts:
            if index >= start:
                piece = piece_of(prompt, choice, index)
                yield Tokens(choice, index, (index,), (piece,), logprobs)


SCRIPTS = st.builds(
    Script,
    accepts_after_s=st.sampled_from([0.0, 0.0, 0.0, 3.0, 30.0]),
    n_tokens=st.sampled_from([12, 7, 2, 1, 0]),
    interval_s=st.sampled_from([0.0, 0.01, 0.3, 0.3, 3.0, 4.0, 12.0]),
    fails_at=st.sampled_from([None, None, 0, 1, 5]),
    error=st.sampled_from([DonorBusy(), RuntimeError(), TokenplaceError()]),
    requeued_at=st.sampled_from([None, None, 0, 1, 5]),
    # Of resumed ones not every choice is named, and one may have had nothing yet.
    starts=st.sampled_from(
        [((0, 0),), ((0, 0),), ((0, 0), (1, 0), (2, 0)), ((0, 2),), ((1, 2), (3, 0))]
    ),
    n_top=st.sampled_from([None, None, 0, 20]),
)


N_NUMBERS = 6000  # of a vector: it takes two parts


class ScriptedEngine(NoOperations):
    """Answers each prompt as its script says, with text that names the prompt; or with a vector of
    it, after so many seconds, or with an error.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.works: dict[str, tuple[float, TokenplaceError | None]] = {}
        self.n_asked: Counter[str] = Counter()
        self.n_running = 0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        prompt = prompt_of(request)
        script = self.scripts[prompt]
        self.n_asked[prompt] += 1
        self.n_running += 1
        try:
            await trio.sleep(script.accepts_after_s)
            yield Accepted(DIGEST, 5, 0, 4096, max(1, script.n_tokens), "tp/1", 10, 0)
            for index in range(script.n_tokens):
                if index == script.fails_at:
                    raise script.error
                if index == script.requeued_at:
                    yield Alive(Phase.REQUEUED, 0.0, 1)
                await trio.sleep(script.interval_s)
                for tokens in script.tokens_at(prompt, index):
                    yield tokens
            ends = tuple(ChoiceEnd(choice, EogStop(2)) for choice, _ in script.starts)
            yield Finished(ends, Usage(5, 0, script.n_new), Timings(0, 0, 0))
        finally:
            self.n_running -= 1

    async def embed(self, request: EmbedRequest) -> Embeddings:
        (prompt,) = request.inputs
        assert isinstance(prompt, str)
        work_s, error = self.works[prompt]
        self.n_asked[prompt] += 1
        self.n_running += 1
        try:
            await trio.sleep(work_s)
            if error is not None:
                raise error
            return Embeddings((vector_of(prompt, N_NUMBERS),), (len(prompt),))
        finally:
            self.n_running -= 1


def piece_of(prompt: str, choice: int, index: int) -> bytes:
    return f"{prompt}.{choice}.{index} ".encode()


@dataclass
class Asked:
    """One request of Alice's app, and what has come of it. script: None if it is for a vector."""

    prompt: str
    script: Script | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    events: list[Event] = field(default_factory=list)
    wires: list[WildStream] = field(default_factory=list)
    error: TokenplaceError | None = None
    reply: Embeddings | None = None
    is_over: bool = False

    @property
    def is_whole(self) -> bool:
        """Has it all come?"""
        has_end = bool(self.events) and isinstance(self.events[-1], Finished)
        return has_end or self.reply is not None

    def whole_texts(self) -> dict[int, bytes]:
        """By choice: what there is to come of it."""
        script = self.script
        if script is None:
            return {}
        return {
            choice: b"".join(
                piece_of(self.prompt, choice, n) for n in range(start, script.n_tokens)
            )
            for choice, start in script.starts
        }


# ---------------------------------------------------------------- what the wire can do


def garbled(position: int, bit: int) -> Mishap:
    def garble(item: Item) -> list[Item]:
        if isinstance(item, End):
            return [item]
        data = bytearray(item)
        data[position % len(data)] ^= 1 << bit
        return [bytes(data)]

    return garble


def truncated(n_bytes: int) -> Mishap:
    return lambda item: [item if isinstance(item, End) else item[: n_bytes % len(item)]]


def duplicated(item: Item) -> list[Item]:
    return [item, item]


def dropped(item: Item) -> list[Item]:
    return []


def cut_behind(end: End) -> Mishap:
    return lambda item: [item, end]


POSITIONS = st.integers(0, 5000) | st.integers(0, 40)
MISHAPS: st.SearchStrategy[Mishap] = st.one_of(
    st.builds(garbled, POSITIONS, st.integers(0, 7)),
    st.builds(truncated, POSITIONS),
    st.sampled_from([duplicated, dropped]),
    st.builds(cut_behind, st.sampled_from(End)),
)
USUALLY = [True, True, True, True]


@dataclass(frozen=True)
class Circumstances:
    """How things stand when a request is made.

    connects: None never says. flows: whether the request and the answer pass by themselves.
    mishaps: of the first pieces of either.
    """

    sealed_to: str
    renewal: str
    connects: bool | None
    window: int
    flows: tuple[bool, bool]
    mishaps: tuple[list[Mishap], list[Mishap]]


CIRCUMSTANCES = st.builds(
    Circumstances,
    sealed_to=st.sampled_from([*["good"] * 8, "stale epoch", "unknown key", "unusable key"]),
    renewal=st.sampled_from(["good", "good", "none", "stale epoch", "hangs"]),
    connects=st.sampled_from([*USUALLY, *USUALLY, False, None]),
    window=st.sampled_from([700, 1 << 18]),
    flows=st.tuples(*[st.sampled_from([*USUALLY, False])] * 2),
    mishaps=st.tuples(*[st.just([]) | st.just([]) | st.lists(MISHAPS, max_size=3)] * 2),
)
