"""Events of one answer in, its texts and state out. Start at `Answer`; `collect` runs it to its
end.

`Answer` is pure. It counts what it received, so an answer that is left early, because every choice
has come to a stop string, has its token counts too.
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

    accepted_by: peer id of the donor, "self" for this peer's own engine, empty while nobody has
    accepted. phase, position: what the donor said last.
    """

    def __init__(self, stop: Sequence[str], n_choices: int = 1) -> None:
        self.accepted_by = ""
        self.phase = Phase.QUEUED
        self.position = 0
        self._texts = [ChoiceText(stop) for _ in range(n_choices)]
        self._finish_reasons: list[FinishReason | None] = [None] * n_choices
        self._usage = Usage(0, 0, 0)

    @property
    def is_cut(self) -> bool:
        """Was a stop string found in every choice? Then nobody needs more events, and the generator
        is left.
        """
        return all(text.stopped for text in self._texts)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage

    def receive(self, event: Event) -> list[tuple[int, str]]:
        """Take the next event; returns the text that is safe to show now, by choice."""
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

    def _receive_tokens(self, event: Tokens) -> list[tuple[int, str]]:
        n_completion = self._usage.n_completion + len(event.ids)
        self._usage = Usage(self._usage.n_prompt, self._usage.n_cached, n_completion)
        choice = self._texts[event.choice]
        text = choice.feed(b"".join(event.pieces))
        if choice.stopped:
            self._finish_reasons[event.choice] = "stop"
        return [(event.choice, text)] if text else []

    def _receive_end(self, event: Finished) -> list[tuple[int, str]]:
        self._usage = event.usage
        texts = []
        for end in event.choices:
            choice = self._texts[end.choice]
            if text := choice.finish():
                texts.append((end.choice, text))
            was_cut = isinstance(end.stop, LengthStop) and not choice.stopped
            self._finish_reasons[end.choice] = "length" if was_cut else "stop"
        return texts


async def collect(answer: Answer, n_choices: int, events: AsyncIterable[Event]) -> list[str]:
    """The text of each choice, up to a stop string or the end of the events: `require_end` tells if
    it is whole.

    After `Finished` the generator is left to end by itself, so that it is not taken for cancelled.
    """
    texts: list[list[str]] = [[] for _ in range(n_choices)]
    async for event in events:
        for choice, text in answer.receive(event):
            texts[choice].append(text)
        if answer.is_cut:
            break
    return ["".join(some) for some in texts]
