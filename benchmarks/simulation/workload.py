"""What apps ask in a simulated network, and what the whole answer is. Start at `draw_request` and
`expected_answer`. Pure but for the dice.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from tokenplace.engine.fake_model import Answer, FakeModel, prompt_ids
from tokenplace.generation import (
    CACHE_SCOPE_BYTES,
    SEED_BYTES,
    ChatInput,
    ChatMessage,
    GenerateRequest,
    JsonObject,
    SamplingParams,
    Stop,
    TextInput,
)

_WORDS: Final = ("why ", "do ", "tokens ", "über ", "日本 ", "flow ", "here ", "? ")
_AS_OF: Final = "2026-11-23"
_MAX_TURNS: Final = 5


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """One choice of an answer that nobody cut."""

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    stop: Stop


@dataclass(frozen=True, slots=True)
class Habits:
    """How apps ask. Shares are of the requests.

    n_prompt: words of a new prompt, at least and at most. max_tokens: of an answer; a request may
    also set none. pause_s: between an answer and the next request, on average.
    leaves: who goes away while the answer runs.
    """

    n_prompt: tuple[int, int] = (3, 120)
    max_tokens: tuple[int, int] = (1, 40)
    pause_s: float = 2.0
    is_plain: bool = False
    leaves: float = 0.05


def draw_request(
    dice: Random, model: str, scope: bytes, habits: Habits, before: ChatInput | None = None
) -> GenerateRequest:
    """Any request. before: a conversation that it goes on with."""
    messages = before.messages if before is not None else ()
    text = "".join(dice.choices(_WORDS, k=dice.randint(*habits.n_prompt)))
    asked = ChatInput((*messages, ChatMessage("user", text)))
    if habits.is_plain:
        return _request(dice, model, asked, scope, max_tokens=habits.max_tokens[1])
    has_form = dice.random() < 0.1
    return _request(
        dice,
        model,
        TextInput(text) if before is None and dice.random() < 0.1 else asked,
        scope,
        max_tokens=dice.randint(*habits.max_tokens) if dice.random() < 0.8 else None,
        n=dice.choice((1, 1, 1, 2, 3)),
        stop=dice.choice(((), (), (), ("free",), ("日本 and", "\n"))),
        ignore_eog=dice.random() < 0.1,
        top_logprobs=dice.choice((None, None, None, 0, 3)),
        output=JsonObject() if has_form else None,
        streamed=dice.random() < 0.7,
    )


def _request(
    dice: Random,
    model: str,
    asked: ChatInput | TextInput,
    scope: bytes,
    *,
    max_tokens: int | None,
    n: int = 1,
    stop: tuple[str, ...] = (),
    ignore_eog: bool = False,
    top_logprobs: int | None = None,
    output: JsonObject | None = None,
    streamed: bool = True,
) -> GenerateRequest:
    return GenerateRequest(
        model=model,
        input=asked,
        sampling=SamplingParams(temperature=dice.choice((0.0, 0.8))),
        seed=dice.randbytes(SEED_BYTES),
        cache_scope=scope,
        as_of=_AS_OF,
        max_tokens=40 if ignore_eog and max_tokens is None else max_tokens,
        stop=stop,
        ignore_eog=ignore_eog,
        n=n,
        top_logprobs=top_logprobs,
        output=output,
        streamed=streamed,
    )


def draw_scope(dice: Random) -> bytes:
    """Of one requester and app."""
    return dice.randbytes(CACHE_SCOPE_BYTES)


def conversation(asked: GenerateRequest, answer: str) -> ChatInput | None:
    """What the next request may go on with; None if it is long enough, or no chat."""
    if not isinstance(asked.input, ChatInput) or len(asked.input.messages) > 2 * _MAX_TURNS:
        return None
    return ChatInput((*asked.input.messages, ChatMessage("assistant", answer)))


def expected_answer(model: FakeModel, asked: GenerateRequest) -> list[WholeChoice]:
    """What this model says, choice by choice, when nothing cuts it."""
    max_new = min(model.n_ctx - len(prompt_ids(asked.input)), asked.max_tokens or model.n_ctx)
    return [_whole(model, asked, choice, max_new) for choice in range(asked.n)]


def _whole(model: FakeModel, asked: GenerateRequest, choice: int, max_new: int) -> WholeChoice:
    answer = Answer(model, asked, choice, max_new)
    ids: list[int] = []
    pieces: list[bytes] = []
    while answer.stop is None:
        token = answer.next()
        if token is not None:
            ids.append(token[0])
            pieces.append(token[1])
    return WholeChoice(tuple(ids), tuple(pieces), answer.stop)
