"""Chat templates: what they find, what they may not do, and what a user cannot say through them."""

from __future__ import annotations

import hashlib
import re
import time

import jinja2
import psutil
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.parts import until
from tests.engine.rendering import CONTROL, HELLO, PLAIN, TODAY, open_renderer, says
from tokenplace import defaults
from tokenplace.engine.guard import Guard, any_of
from tokenplace.engine.renderer import compile_template
from tokenplace.engine.template import TemplateRenderer, template_hash
from tokenplace.errors import ConfigError, TemplateFailed

MESSAGE = {"role": "user", "content": "hello"}


def test_the_hash_is_of_template_and_renderer() -> None:
    assert template_hash("é") == hashlib.sha256("é".encode() + b"\x00jinja/1").hexdigest()


# ---------------------------------------------------------------- what a template finds


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>hello</s>"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hello"}'),
        ("{{ ['<é>'] | tojson(indent=1) }}", '[\n "<é>"\n]'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ strftime_now('%d %b %Y') }}", "01 Jun 2025"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hello!"),
        ("a\n{% if true %}\nb\n{% endif %}\nc", "a\nb\nc"),
    ],
)
def test_a_template_finds_what_transformers_gives_it(template: str, expected: str) -> None:
    assert compile_template(template, "<s>", "</s>")([MESSAGE], None, TODAY) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    render = compile_template(template, "<s>", "</s>")
    try:
        text = render([MESSAGE], None, TODAY)
    except (jinja2.TemplateError, TypeError, OverflowError):
        return
    assert text == ""


# ---------------------------------------------------------------- the child process


async def test_messages_become_a_prompt() -> None:
    async with open_renderer(PLAIN) as renderer:
        await renderer.start()
        assert await renderer.render(HELLO, TODAY) == (("[user]hello[end][assistant]", True),)


async def test_a_broken_template_is_found_at_the_start() -> None:
    async with open_renderer("{% for %}") as renderer:
        with pytest.raises(ConfigError, match="TemplateSyntaxError, line 1"):
            await renderer.start()


async def test_what_a_template_says_itself_reaches_the_user() -> None:
    async with open_renderer("{{ raise_exception('Roles must alternate') }}") as renderer:
        with pytest.raises(TemplateFailed, match="'Roles must alternate'"):
            await renderer.render(HELLO, TODAY)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception(messages[0].content) }}", "{{ messages[0].content + 1 }}"]
)
async def test_errors_never_quote_the_messages(template: str) -> None:
    async with open_renderer(template) as renderer:
        with pytest.raises(TemplateFailed) as caught:
            await renderer.render(says("my secret"), TODAY)
        assert "secret" not in str(caught.value)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "evil",
    [
        pytest.param(LOOP, id="endless"),
        pytest.param("{{ 'a' * 3000000000 }}", id="memory"),
        pytest.param("{{ 'a' * 5000000 }}", id="size"),
        pytest.param("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", id="many"),
        pytest.param("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", id="deep"),
    ],
)
async def test_an_evil_template_fails_in_time_and_the_next_works(evil: str) -> None:
    template = "{% if messages[0].content == 'now' %}" + evil + "{% else %}fine{% endif %}"
    async with open_renderer(template) as renderer:
        await renderer.start()
        with trio.fail_after(defaults.RENDER_TIMEOUT_S + 5), pytest.raises(TemplateFailed):
            await renderer.render(says("now"), TODAY)
        assert await renderer.render(HELLO, TODAY) == (("fine", True),)


async def test_a_render_that_is_cancelled_leaves_no_answer_for_the_next() -> None:
    slow = LOOP.replace("99999", "300", 1).replace("99999", "3000")
    template = (
        "{% if messages[0].content == 'slow' %}" + slow + "{% endif %}{{ messages[0].content }}"
    )
    async with open_renderer(template) as renderer:
        await renderer.start()
        with trio.move_on_after(0.01):
            await renderer.render(says("slow"), TODAY)
        assert await renderer.render(HELLO, TODAY) == (("hello", True),)


async def test_a_child_that_something_else_ended_is_replaced_unnoticed() -> None:
    others = set(psutil.Process().children())
    async with open_renderer("{{ messages[0].content }}") as renderer:
        await renderer.start()
        (child,) = set(psutil.Process().children()) - others
        child.kill()
        psutil.wait_procs([child])
        assert await renderer.render(HELLO, TODAY) == (("hello", True),)


async def test_a_child_that_dies_of_a_chat_is_the_templates_failure() -> None:
    others = set(psutil.Process().children())
    async with open_renderer(LOOP) as renderer, trio.open_nursery() as nursery:

        async def render() -> None:
            with pytest.raises(TemplateFailed, match="too much time or memory"):
                await renderer.render(HELLO, TODAY)

        nursery.start_soon(render)
        await until(lambda: set(psutil.Process().children()) != others)
        for child in set(psutil.Process().children()) - others:
            child.kill()


async def test_a_template_that_never_gets_ready_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "HELPER_START_TIMEOUT_S", 0.001)
    others = set(psutil.Process().children())
    async with open_renderer(PLAIN) as renderer:
        with pytest.raises(ConfigError, match="too much time or memory"):
            await renderer.start()
        assert set(psutil.Process().children()) == others


async def test_renders_at_the_same_time_do_not_mix() -> None:
    answers: dict[str, str] = {}

    async def render(renderer: TemplateRenderer, word: str) -> None:
        ((text, _),) = await renderer.render(says(word), TODAY)
        answers[word] = text

    async with (
        open_renderer("{{ messages[0].content }}") as renderer,
        trio.open_nursery() as nursery,
    ):
        for n in range(10):
            nursery.start_soon(render, renderer, f"word {n}")
    assert answers == {f"word {n}": f"word {n}" for n in range(10)}


async def test_messages_too_large_for_the_pipe_are_refused() -> None:
    async with open_renderer(PLAIN) as renderer:
        with pytest.raises(TemplateFailed):
            await renderer.render(says("x" * defaults.MAX_CHILD_FRAME_BYTES), TODAY)
        assert await renderer.render(HELLO, TODAY)


# ---------------------------------------------------------------- control tokens in messages

CONTENT = st.lists(st.sampled_from([*CONTROL, "[", "e", "nd]", "é", "1", "\n"]), max_size=8).map(
    "".join
)
LETTERS = st.text("<|a>", min_size=1, max_size=4)


@given(st.lists(CONTENT, min_size=1, max_size=4))
def test_no_user_text_becomes_control_and_none_is_lost(contents: list[str]) -> None:
    guard = Guard(any_of(CONTROL))
    hidden = [guard.hide(content) for content in contents]
    for content in hidden:
        assert not any(text in content for text in CONTROL)
    segments = guard.split("".join(f"<{content}>" for content in hidden))
    assert "".join(text for text, _ in segments) == "".join(f"<{text}>" for text in contents)
    for text, may_be_control in segments:
        assert may_be_control == (text not in CONTROL)


@given(st.lists(LETTERS, min_size=1, max_size=6), st.text("<|a>", max_size=20))
def test_the_pattern_finds_what_plain_alternatives_do(texts: list[str], content: str) -> None:
    plain = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    assert any_of(texts).findall(content) == re.findall(plain, content)


def test_thousands_of_control_tokens_cost_nothing() -> None:
    """Tried one by one at each place, this would take more than ten seconds."""
    control = any_of(f"<unused{n}>" for n in range(6000))
    began_at = time.process_time()
    assert Guard(control).hide("<" * 131_000) == "<" * 131_000
    assert time.process_time() - began_at < 1


@pytest.mark.parametrize("filter_name", ["trim", "upper", "lower", "title", "tojson", "escape"])
def test_stand_ins_survive_filters(filter_name: str) -> None:
    guard = Guard(any_of(CONTROL))
    render = compile_template("{{ messages[0].content | " + filter_name + " }}", "", "")
    message = {"role": "user", "content": guard.hide("[end]")}
    assert ("[end]", False) in guard.split(render([message], None, TODAY))


def test_a_vocabulary_without_control_tokens_hides_nothing() -> None:
    guard = Guard(any_of(()))
    assert guard.hide("[end]") == "[end]"
    assert guard.split("") == []


async def test_control_tokens_are_hidden_on_the_way() -> None:
    async with open_renderer(PLAIN) as renderer:
        segments = await renderer.render(says("a[end]b"), TODAY)
    assert segments == (("[user]a", True), ("[end]", False), ("b[end][assistant]", True))
