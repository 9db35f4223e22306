"""What became of the latest requests, for people. Start at `print_requests` and `print_request`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tokenplace.cli.output import LABEL_CHARS, counted, fail, human_seconds
from tokenplace.node.addresses import short

if TYPE_CHECKING:
    from rich.console import Console

Status = dict[str, Any]
_INDENT: Final = "  "
MIN_ID_CHARS: Final = 4  # of a beginning of an id: fewer mean many requests
_ID_PREFIXES: Final = ("req_", "chatcmpl-", "cmpl-")  # as apps see ids


def print_requests(screen: Console, requests: list[Status]) -> None:
    """Lines for each request, the latest last, and under it for each attempt: who was asked, what
    came of it and why that one. No table: its lines would be too long for a terminal.
    """
    if not requests:
        screen.print("\nno requests yet", markup=False)
        return
    screen.print("\nlatest requests", style="bold")
    for request in requests:
        asked = f"{human_seconds(request['age_s'])} ago, for {request['model']}"
        screen.print(f"{request['id']}  {asked}", markup=False)
        screen.print(f"{_INDENT}{request['text']}; {_spent(request)}", markup=False)
        for attempt in request["attempts"]:
            rule = f" ({_rule(attempt)})" if attempt["why"] else ""
            screen.print(
                f"{_INDENT}{attempt['number'] + 1} {short(attempt['donor'])}{rule}: "
                f"{attempt['text']}; {_spent(attempt)}",
                markup=False,
            )


def print_request(screen: Console, requests: list[Status]) -> None:
    """Everything about each of them."""
    for number, request in enumerate(requests):
        if number:
            screen.print()
        for label, text in _facts(request):
            screen.print(f"{label:{LABEL_CHARS}}{text}", markup=False)


def requests_named(requests: list[Status], name: str) -> list[Status]:
    """Those that begin with `name`, which may be an id as any answer has it. Ends the command if
    there is none."""
    wanted = name.strip()
    for prefix in _ID_PREFIXES:
        wanted = wanted.removeprefix(prefix)
    if len(wanted) < MIN_ID_CHARS:
        fail(f"{name} is no request's id", f"give its first {MIN_ID_CHARS} characters or more")
    found = [r for r in requests if r["id"].startswith(wanted) or _is_of(r["id"], wanted)]
    if not found:
        fail(
            f"no request {name} is remembered here",
            "a peer remembers its latest requests until it stops: "
            "tokenplace peer status --requests",
        )
    return found


def _is_of(request: str, answer: str) -> bool:
    """Does the answer's id, which is longer, belong to this request, or to one of its prompts?"""
    return answer.startswith(request.partition(".")[0])


def _facts(request: Status) -> Iterator[tuple[str, str]]:
    """Lines of label and text; a line that goes on the one before has no label."""
    yield "request", request["id"]
    yield "asked", f"{human_seconds(request['age_s'])} ago, for {request['model']}"
    yield "outcome", f"{request['text']}; {_spent(request)}"
    if not request["attempts"]:
        yield "attempts", "none: no donor was asked"
    left_out = request["n_attempts"] - len(request["attempts"])
    if left_out:
        yield "attempts", f"the first {left_out} are forgotten"
    for attempt in request["attempts"]:
        yield f"attempt {attempt['number'] + 1}", attempt["donor"]
        yield "", f"with {attempt['served']}"
        if attempt["why"]:
            yield "", f"chosen: {attempt['why']['text']}"
        yield "", f"{attempt['text']}; {_spent(attempt)}"


def _spent(spent: Status) -> str:
    """Times and tokens of a request or an attempt."""
    parts = []
    if spent.get("accepted_s") is not None:
        parts.append(f"accepted after {_took(spent['accepted_s'])}")
    if spent.get("first_token_s") is not None:
        parts.append(f"first token after {_took(spent['first_token_s'])}")
    if spent.get("n_resumed"):
        parts.append(f"resumed from {counted(spent['n_resumed'], 'token')}")
    parts.append(f"{counted(spent['n_tokens'], 'token')} in {_took(spent['total_s'])}")
    return ", ".join(parts)


def _rule(attempt: Status) -> str:
    return str(attempt["why"]["rule"]).replace("_", " ")


def _took(seconds: float | None) -> str:
    """Finer than `human_seconds` where a person notices: "85 ms", "3.2 s"."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else human_seconds(seconds)
