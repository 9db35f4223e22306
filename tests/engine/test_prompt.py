"""What a model is given to read, and what its template has begun for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.parts import VOCABULARY, RunningEngine, submit, tiny_spec
from tests.engine.parts import chat as says
from tokenplace.engine.guard import Segment
from tokenplace.engine.messages import Count
from tokenplace.engine.prompt import Prompt, begun_by, prompt_of
from tokenplace.engine.sequence import BadPrompt, prompt_ids
from tokenplace.engine.template import TemplateRenderer
from tokenplace.errors import ErrorCode, InvalidRequest
from tokenplace.generation import (
    THINK_TAGS,
    Accepted,
    ChatInput,
    ChatMessage,
    IdsInput,
    Input,
    TextInput,
)
from tokenplace.text.reasoning import CLOSE_OF

TODAY = "2026-03-01"
CHAT = ChatInput((ChatMessage("user", "why? <think>"),))
THINKING = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>\n"
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def test_the_tags_are_those_that_are_read() -> None:
    assert set(THINK_TAGS) == set(CLOSE_OF)


@pytest.mark.parametrize(
    ("segments", "begun"),
    [
        ((), ""),
        ((("[assistant]<think>", True),), "<think>"),
        ((("[assistant]<think>\n\n \t", True),), "<think>"),
        ((("x", False), ("[THINK]\n", True)), "[THINK]"),
        ((("[assistant]<think></think>\n", True),), ""),
        ((("[assistant]<think> hm", True),), ""),
        ((("[assistant]think>", True),), ""),
        ((("[assistant]", True), ("<think>", False)), ""),
        ((("[assistant]<think>", True), ("x", False)), ""),
    ],
)
def test_a_thought_that_the_template_opened_is_told(
    segments: tuple[Segment, ...], begun: str
) -> None:
    assert begun_by(segments) == begun


@pytest.mark.parametrize(("template", "begun"), [(THINKING, "<think>"), (PLAIN, "")])
async def test_it_is_found_in_what_a_template_renders(template: str, begun: str) -> None:
    renderer = TemplateRenderer(template, "", "", ("<think>", "[assistant]"))
    await renderer.start()
    try:
        prompt = await prompt_of(CHAT, TODAY, renderer)
    finally:
        await renderer.aclose()
    assert prompt.begun == begun
    assert ("<think>", False) in prompt.segments, "the user's own words begin nothing"


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        (TextInput("say <think>"), Prompt((("say <think>", False),))),
        (IdsInput((1, 2, 3)), Prompt(ids=(1, 2, 3))),
    ],
)
async def test_a_raw_prompt_begins_nothing(asked: Input, prompt: Prompt) -> None:
    assert await prompt_of(asked, TODAY, None) == prompt


@pytest.mark.parametrize("asked", [TextInput("\ud800"), IdsInput(())])
async def test_what_is_no_prompt_is_refused(asked: Input) -> None:
    with pytest.raises(InvalidRequest):
        await prompt_of(asked, TODAY, None)


# ---------------------------------------------------------------- ids, in the worker


def test_ids_are_the_prompt_as_they_are() -> None:
    """Whatever the vocabulary puts before text, and control tokens too."""
    assert VOCABULARY.first_id is not None
    ids = (5, *VOCABULARY.eog_ids, 5)
    assert prompt_ids(Count(0, (), ids), VOCABULARY, 64).tolist() == list(ids)
    assert prompt_ids(submit(prompt="a"), VOCABULARY, 64)[0] == VOCABULARY.first_id


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ((1, -1), ErrorCode.INVALID_REQUEST),
        ((VOCABULARY.n_tokens,), ErrorCode.INVALID_REQUEST),
        (((1 << 32) - 1,), ErrorCode.INVALID_REQUEST),
        ((1,) * 64, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    ],
)
def test_ids_that_cannot_be_read_are_refused(ids: tuple[int, ...], code: ErrorCode) -> None:
    with pytest.raises(BadPrompt) as refused:
        prompt_ids(Count(0, (), ids), VOCABULARY, 64)
    assert refused.value.code is code


# ---------------------------------------------------------------- with the real model


@pytest.mark.slow
def test_the_engine_tells_what_is_begun(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def render(chat: ChatInput, as_of: str) -> tuple[Segment, ...]:
        return (("<|im_start|>assistant\n<think>\n", True),)

    with RunningEngine(tiny_spec(tiny_model)) as engine:
        plain, *_ = engine.ask(says("Why?", max_tokens=1))
        monkeypatch.setattr(engine.engine._renderer, "render", render)
        thinking, *_ = engine.ask(says("Why?", max_tokens=1))
    assert isinstance(plain, Accepted)
    assert isinstance(thinking, Accepted)
    assert (plain.begun, thinking.begun) == ("", "<think>")
