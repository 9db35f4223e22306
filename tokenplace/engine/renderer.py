"""The process that renders chat templates: `python -m tokenplace.engine.renderer`.

Start at `answer`. A template is a program out of a model file. jinja2's immutable sandbox keeps it
from Python's internals and from the disk, but not from looping for ever or filling the memory:
limits on this process do (`limits.py`), and the parent's clock (`template.py`).

Version `jinja/1`: what a template finds here is what Hugging Face's `apply_chat_template` gives it,
except that the clock shows the request's date. A change to it changes prompts, so it needs a new
version (docs/protocol.md, section 2).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenplace import defaults
from tokenplace.engine.chat_values import BadValue, to_messages, to_tools
from tokenplace.engine.confine import ParentGone, confine, enter_child
from tokenplace.engine.guard import Guard, Segment, any_of
from tokenplace.engine.limits import allow_cpu, limit_process
from tokenplace.engine.worded_tools import Place, in_words

# jinja2 and Python import these when they first need them, for an error, a word in quotes, a
# filter; then this process may open no file any more.
_NEEDED_LATER: Final = ("encodings.unicode_escape", "jinja2.constants", "jinja2.debug")


class Refusal(Exception):
    """The template itself called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it is only its content."""

    tags: Final = {"generation"}  # type: ignore[misc]  # jinja2 declares a mutable class variable

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the block's body and drop the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None, str], str]


def compile_template(source: str, bos: str, eos: str) -> Render:
    """A function of (messages, tools, as_of) that renders the prompt.

    Raises `jinja2.TemplateSyntaxError`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    template = environment.from_string(source)

    def render(
        messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, as_of: str
    ) -> str:
        day = date.fromisoformat(as_of)

        def strftime_now(format: str) -> str:
            return datetime(day.year, day.month, day.day).strftime(format)

        return template.render(
            messages=messages,
            add_generation_prompt=True,
            tools=tools,
            documents=None,
            bos_token=bos,
            eos_token=eos,
            strftime_now=strftime_now,
        )

    return render


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """As transformers does it: readable text, not jinja2's escaping for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise Refusal(message)


_PROBE: Final = "tokenplace_probe"
_PROBES: Final = (
    [{"role": "user", "content": "?"}],
    [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}],
)


def place_of_tools(render: Render) -> Place:
    """Where this template shows a model its tools. Tried out, since nothing else says so."""
    tools = to_tools([(_PROBE, "", "")], Guard(any_of(())))
    for place in (Place.TEMPLATE, Place.SYSTEM, Place.USER):
        for messages in _PROBES:
            try:
                if _PROBE in render_at(place, render, messages, tools, False, "2000-01-01"):
                    return place
            except Exception:  # a template can make Python raise anything; it may take the next one
                continue
    return Place.NOWHERE


def render_at(
    place: Place,
    render: Render,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    may_call_several: bool,
    as_of: str,
) -> str:
    """Render with the tools in this place. A template that shows none finds no calls either."""
    if place.is_worded:
        messages = in_words(messages, tools, place, may_call_several=may_call_several)
        tools = []
    return render(messages, tools or None, as_of)


def describe(error: Exception, source: str) -> str:
    """Why rendering failed, for the user, without a word of the messages.

    What a template says in `raise_exception` is shown only if it stands in the template like that.
    """
    match error:
        case Refusal() if str(error) in source:
            return f"The template says: {str(error)[:200]!r}."
        case Refusal():
            return "The template refused these messages."
        case MemoryError() | OverflowError():
            return "The template needs too much memory."
        case RecursionError():
            return "The template is nested too deep."
    return f"The template failed: {type(error).__name__}."


Answer = tuple[list[Segment], str, str]
"""The prompt; or why there is none, and the request's field at fault ("": none, the template)."""


@dataclass(frozen=True)
class Template:
    """What is known of the one that this process renders. control: what is to be hidden from it."""

    source: str
    render: Render
    place: Place
    control: re.Pattern[str]


def answer(
    template: Template, messages: Any, tools: Any, may_call_several: bool, as_of: str
) -> Answer:
    """Render what `template.py` sends."""
    guard = Guard(template.control)
    try:
        text = render_at(
            template.place,
            template.render,
            to_messages(messages, guard),
            to_tools(tools, guard),
            may_call_several,
            as_of,
        )
        if len(text.encode()) > defaults.MAX_RENDERED_BYTES:
            return [], "The rendered prompt is too large.", ""
        return guard.split(text), "", ""
    except BadValue as error:
        return [], str(error), error.param
    except Exception as error:  # a template can make Python raise anything: this is the seam
        return [], describe(error, template.source), ""


def main() -> None:
    """Compile the template of the first frame, then render until the parent is gone."""
    pipe = enter_child(sys.argv[1:])
    limit_process(defaults.RENDER_MEMORY_BYTES)
    source, bos, eos, control_texts = pipe.receive()
    for name in _NEEDED_LATER:
        importlib.import_module(name)
    confine()
    allow_cpu(defaults.RENDER_TIMEOUT_S)
    try:
        render = compile_template(source, bos, eos)
        control = any_of(control_texts)
    except Exception as error:  # jinja2 and Python's compiler raise anything over a stranger's text
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        pipe.send([(f"{type(error).__name__}{line}", str(Place.NOWHERE))])
        return
    template = Template(source, render, place_of_tools(render), control)
    pipe.send([("", str(template.place))])
    while True:
        question = pipe.receive()
        allow_cpu(defaults.RENDER_TIMEOUT_S)
        pipe.send([answer(template, *question)])


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
