"""Events of one answer in, its text and state out. Start at `Answer`; `collect` runs it to its end.

`Answer` is pure. It counts what it received, so an answer that is left early, because a stop string
was found, has its token counts too.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Final

from tokenplace.api_shim.translate import FinishReason
from tokenplace.errors import RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    Alive,
    Event,
    Finished,
    LengthStop,
    Phase,
    Tokens,
    Usage,
)
from tokenplace.text.choice_text import ChoiceText

OWN_ENGINE: Final = "self"


class Answer:
    """How far one answer has come.

    finish_reason: None while more is to come. accepted_by: peer id of the donor, "self" for this
    peer's own engine, empty while nobody has accepted. phase, position: what the donor said last.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.finish_reason: FinishReason | None = None
        self.accepted_by = ""
        self.phase = Phase.QUEUED
        self.position = 0
        self._text = ChoiceText(stop)
        self._usage = Usage(0, 0, 0)

    @property
    def is_cut(self) -> bool:
        """Was a stop string found? Then no more events are needed, and the generator is left."""
        return self._text.stopped

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage

    def receive(self, event: Event) -> str:
        """Take the next event; returns the text that is safe to show now."""
        match event:
            case Tokens():
                return self._receive_tokens(event)
            case Accepted():
                self.accepted_by = event.donor or OWN_ENGINE
                # It goes into a header and a comment; our own requester filled it in.
                assert self.accepted_by.isascii()
                assert self.accepted_by.isalnum()
                self.position = event.position
                self._usage = Usage(event.n_prompt, event.n_cached, self._usage.n_completion)
            case Alive():
                self.phase, self.position = event.phase, event.position
            case Finished():
                return self._receive_end(event)
        return ""

    def require_end(self) -> FinishReason:
        """Why it ended; raises `RemoteProtocolError` if the events ended before the answer did.

        To be called after the generator's block: a generator that fails ends its events first, and
        raises when the block is left.
        """
        if self.finish_reason is None:
            raise RemoteProtocolError("The answer ended without its last event.")
        return self.finish_reason

    def _receive_tokens(self, event: Tokens) -> str:
        n_completion = self._usage.n_completion + len(event.ids)
        self._usage = Usage(self._usage.n_prompt, self._usage.n_cached, n_completion)
        text = self._text.feed(b"".join(event.pieces))
        if self._text.stopped:
            self.finish_reason = "stop"
        return text

    def _receive_end(self, event: Finished) -> str:
        self._usage = event.usage
        text = self._text.finish()
        was_cut = any(isinstance(end.stop, LengthStop) for end in event.choices)
        self.finish_reason = "length" if was_cut and not self._text.stopped else "stop"
        return text


async def collect(answer: Answer, events: AsyncIterable[Event]) -> str:
    """The text, up to a stop string or the end of the events: `require_end` tells if it is whole.

    After `Finished` the generator is left to end by itself, so that it is not taken for cancelled.
    """
    texts = []
    async for event in events:
        texts.append(answer.receive(event))
        if answer.is_cut:
            break
    return "".join(texts)
