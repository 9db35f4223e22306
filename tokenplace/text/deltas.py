"""What is found in the text of one answer, in pieces. Start at `Delta`; `merge` makes a whole.

Pure values, and what collects them. Differs from OpenAI's chunks: a delta says one thing, and a
call has no id here, because ids are the business of whoever answers an app.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Content:
    """More of what is meant for the person. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thought before it answered. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The model calls the tool `name`, in which "_" stands for what no tool's name may have.
    `index` counts the calls of an answer from 0.
    """

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of this call's arguments, as the model wrote it. Never empty.

    `index` is always that of the last `CallBegin`. If an answer was cut, or a model wrote no valid
    JSON, all of a call's pieces together are no valid JSON either.
    """

    index: int
    text: str


Delta = Content | Reasoning | CallBegin | CallArguments


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call: the tool's name and the JSON text of its arguments."""

    name: str
    arguments: str


class Merged(NamedTuple):
    """All of an answer."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]


def merge(deltas: Iterable[Delta]) -> Merged:
    """The whole that these deltas of one choice make."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallBegin(_, name):
                calls.append((name, []))
            case CallArguments(_, text):
                calls[-1][1].append(text)
    whole_calls = tuple(Call(name, "".join(pieces)) for name, pieces in calls)
    return Merged("".join(content), "".join(reasoning), whole_calls)
