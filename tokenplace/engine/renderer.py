"""The process that renders chat templates: `python -m tokenplace.engine.renderer`.

Start at `answer`. A template is a program out of a model file. jinja2's immutable sandbox keeps it
from Python's internals and from the disk, but not from looping for ever or filling the memory:
limits on this process do (`_limit`), and the parent's clock (`template.py`).

Version `jinja/1`: what a template finds here is what Hugging Face's `apply_chat_template` gives it,
except that the clock shows the request's date. A change to it changes prompts, so it needs a new
version (docs/protocol.md, section 2).
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenplace import defaults
from tokenplace.engine.confine import ParentGone, enter_child
from tokenplace.engine.guard import Guard, Segment, any_of

_FILE_BYTES: Final = 0  # a renderer writes no files
# In case the parent is too busy to look at its clock.
_CPU_S: Final = int(defaults.RENDER_TIMEOUT_S) + 1


class Refusal(Exception):
    """The template itself called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it is only its content."""

    tags: Final = {"generation"}  # type: ignore[misc]  # jinja2 declares a mutable class variable

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the block's body and drop the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


Render = Callable[[list[tuple[str, str]], str], str]


def compile_template(source: str, bos: str, eos: str) -> Render:
    """A function of (messages, as_of) that renders the prompt.

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

    def render(messages: list[tuple[str, str]], as_of: str) -> str:
        day = date.fromisoformat(as_of)

        def strftime_now(format: str) -> str:
            return datetime(day.year, day.month, day.day).strftime(format)

        return template.render(
            messages=[{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
            tools=None,
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


def answer(
    render: Render, source: str, control: re.Pattern[str], messages: Any, as_of: str
) -> tuple[list[Segment], str]:
    """(segments, "") or (nothing, why not)."""
    guard = Guard(control)
    try:
        text = render([(role, guard.hide(content)) for role, content in messages], as_of)
        if len(text.encode()) > defaults.MAX_RENDERED_BYTES:
            return [], "The rendered prompt is too large."
        return guard.split(text), ""
    except Exception as error:  # a template can make Python raise anything: this is the seam
        return [], describe(error, source)


def main() -> None:
    """Compile the template of the first frame, then render until the parent is gone."""
    pipe = enter_child(sys.argv[1:])
    _limit()
    source, bos, eos, control_texts = pipe.receive()
    try:
        render = compile_template(source, bos, eos)
        control = any_of(control_texts)
    except Exception as error:  # jinja2 and Python's compiler raise anything over a stranger's text
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        pipe.send([f"{type(error).__name__}{line}"])
        return
    pipe.send([""])
    while True:
        messages, as_of = pipe.receive()
        _renew_cpu_limit()
        pipe.send([answer(render, source, control, messages, as_of)])


def _limit() -> None:
    memory = defaults.RENDER_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    _renew_cpu_limit()


def _renew_cpu_limit() -> None:
    """Allow a render's worth of processor time from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + _CPU_S, resource.RLIM_INFINITY))


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
