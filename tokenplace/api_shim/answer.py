"""Events of answers in, their text and state out. Start at `Answer`; `Answers` is several that one
app asked for together.

Pure. They count what they received, so an answer that is left early, because every choice has come
to a stop string, has its token counts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tokenplace.api_shim.form import FinishReason, Part
from tokenplace.api_shim.logprobs import LogprobQueue
from tokenplace.errors import RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    ChatInput,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Tokens,
    ToolChoice,
    Usage,
)
from tokenplace.router.waiting import Waiting
from tokenplace.text.choice import Choice

OWN_ENGINE: Final = "self"


class Answer:
    """How far the answer to one request has come.

    first_choice: its first choice's place among those of all requests. accepted_by: peer id of the
    donor, "self" for this peer's own engine, empty while nobody has accepted. served: what answers,
    as `Accepted` has it. waiting: what the donor said last. usage: tokens so far.
    n_continued: how often another donor, or the same one again, went on in the middle.
    """

    def __init__(self, request: GenerateRequest, first_choice: int = 0) -> None:
        self.request = request
        self.accepted_by = ""
        self.served = ""
        self.waiting = Waiting()
        self.usage = Usage(0, 0, 0)
        self.n_continued = 0
        self._first_choice = first_choice
        self._choices = [_choice_of(request) for _ in range(request.n)]
        has_logprobs = request.top_logprobs is not None
        self._logprobs = [LogprobQueue(request.stop) for _ in range(request.n * has_logprobs)]
        self._finish_reasons: list[FinishReason | None] = [None] * request.n

    @property
    def is_cut(self) -> bool:
        """Was a stop string found in every choice? Then nobody needs more events, and the generator
        is left.
        """
        return all(choice.stopped for choice in self._choices)

    @property
    def has_ended(self) -> bool:
        """Is it known of every choice why it ended?"""
        return None not in self._finish_reasons

    def receive(self, event: Event) -> list[Part]:
        """Take the next event; returns what is safe to show now."""
        self.waiting = self.waiting.after(event)
        match event:
            case Tokens():
                return self._receive_tokens(event)
            case Accepted():
                self._receive_accepted(event)
            case Finished():
                return self._receive_end(event)
        return []

    def require_end(self) -> list[FinishReason]:
        """Why each choice ended; raises `RemoteProtocolError` if the events ended before the answer
        did.

        To be called after the generator's block: a generator that fails ends its events first, and
        raises when the block is left.
        """
        reasons = [reason for reason in self._finish_reasons if reason is not None]
        if len(reasons) < len(self._finish_reasons):
            raise RemoteProtocolError("The answer ended without its last event.")
        return reasons

    def _receive_accepted(self, event: Accepted) -> None:
        self.accepted_by = event.donor or OWN_ENGINE
        self.served = event.served
        # They go into headers and a comment; our own requester and router filled them in.
        assert self.accepted_by.isascii()
        assert self.accepted_by.isalnum()
        assert self.served.isascii()
        assert self.served.isprintable()
        self.n_continued += self.usage.n_completion > 0
        self.usage = Usage(event.n_prompt, event.n_cached, self.usage.n_completion)
        if self.request.output is None:  # else it has a form from its first byte on
            for choice in self._choices:
                choice.begin(event.begun)

    def _receive_tokens(self, event: Tokens) -> list[Part]:
        n_completion = self.usage.n_completion + len(event.ids)
        self.usage = Usage(self.usage.n_prompt, self.usage.n_cached, n_completion)
        choice = self._choices[event.choice]
        deltas = choice.feed(b"".join(event.pieces))
        tokens = self._logprobs[event.choice] if self._logprobs else None
        if tokens is not None:
            tokens.feed(event.pieces, event.logprobs)
        if choice.stopped:
            self._finish_reasons[event.choice] = "tool_calls" if choice.n_calls else "stop"
        elif not deltas:
            return []
        shown = tokens.take() if tokens is not None else ()
        return [Part(self._first_choice + event.choice, deltas, shown)] if deltas or shown else []

    def _receive_end(self, event: Finished) -> list[Part]:
        self.usage = event.usage
        parts = []
        for end in event.choices:
            choice = self._choices[end.choice]
            deltas = choice.finish()
            shown = self._logprobs[end.choice].finish() if self._logprobs else ()
            if deltas or shown:
                parts.append(Part(self._first_choice + end.choice, deltas, shown))
            if isinstance(end.stop, LengthStop) and not choice.stopped:
                self._finish_reasons[end.choice] = "length"
            else:
                self._finish_reasons[end.choice] = "tool_calls" if choice.n_calls else "stop"
        return parts


class Answers:
    """The answers to requests that one app asked together, as one: choices are counted through."""

    def __init__(self, requests: Sequence[GenerateRequest]) -> None:
        assert requests
        self.each: list[Answer] = []
        self.n_choices = 0
        for request in requests:
            self.each.append(Answer(request, self.n_choices))
            self.n_choices += request.n

    @property
    def accepted_by(self) -> str:
        """Who has accepted, each donor once, with commas; empty while nobody has."""
        return _joined(answer.accepted_by for answer in self.each)

    @property
    def served(self) -> str:
        """What answers, each artifact once, with commas; empty while it is not known."""
        return _joined(answer.served for answer in self.each)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            sum(answer.usage.n_prompt for answer in self.each),
            sum(answer.usage.n_cached for answer in self.each),
            sum(answer.usage.n_completion for answer in self.each),
        )

    @property
    def n_continued(self) -> int:
        """How often somebody went on in the middle of an answer."""
        return sum(answer.n_continued for answer in self.each)

    @property
    def wait(self) -> str:
        """Why there is no text yet, for people."""
        answer = next((each for each in self.each if not each.has_ended), self.each[-1])
        return answer.waiting.text

    def require_end(self) -> list[FinishReason]:
        """See `Answer.require_end`; of all choices."""
        return [reason for answer in self.each for reason in answer.require_end()]


def _choice_of(request: GenerateRequest) -> Choice:
    chat = request.input if isinstance(request.input, ChatInput) else None
    if chat is None or chat.tool_choice is ToolChoice.NONE:
        return Choice(request.stop, is_chat=chat is not None)
    return Choice(
        request.stop,
        tools=frozenset(tool.name for tool in chat.tools),
        is_forced_call=chat.tool_choice is not ToolChoice.AUTO,
    )


def _joined(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(filter(None, names)))
