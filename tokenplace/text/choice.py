"""Bytes of tokens in, what they say out: UTF-8 across tokens, stop strings, thoughts, tool calls.
Start at `Choice`.

Pure, and run by whoever asked, so the text survives a change of donor in mid-answer. What comes out
depends on the joined bytes alone, never on where tokens end.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from tokenplace.text.calls import CallSplit
from tokenplace.text.deltas import Content, Delta, Reasoning
from tokenplace.text.reasoning import ReasoningSplit
from tokenplace.text.stop_strings import StopStrings


class Choice:
    """The text of one choice, up to the first stop string, and what is found in it.

    Four stages, each of which holds back only what it cannot tell yet: bytes to text (what is not
    UTF-8 becomes U+FFFD, as Python's decoder does with "replace"), stop strings, which are looked
    for in all of the text, then of a chat's answer thoughts, and calls if it has tools.

    stop: strings that end the text. is_chat: if not, all of the text is content. tools: names of
    those that may be called; without any nothing is taken for a call. is_forced_call: the model had
    no choice but to call one, so it has not gone on with a thought that its template began.
    """

    def __init__(
        self,
        stop: Sequence[str] = (),
        *,
        is_chat: bool = True,
        tools: Collection[str] = (),
        is_forced_call: bool = False,
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = StopStrings(stop)
        self._reasoning = ReasoningSplit() if is_chat else None
        self._calls = CallSplit(tools) if is_chat and tools else None
        self._is_forced_call = is_forced_call
        self._begun = ""
        self._has_text = False

    @property
    def stopped(self) -> bool:
        """Was a stop string found? Then the text is whole, and all of it was returned."""
        return self._stop.stopped

    @property
    def n_calls(self) -> int:
        """Calls so far, whole or not."""
        return 0 if self._calls is None else self._calls.n_calls

    def begin(self, begun: str) -> None:
        """What the template itself has begun the answer with (`Accepted.begun`): it is read as if
        the model had written it, but holds no stop string.

        May be said again until the first bytes come, for another donor; later it has no effect. Not
        to be called where `response_format` leaves no room for thoughts.
        """
        self._begun = "" if self._is_forced_call else begun

    def feed(self, pieces: bytes) -> list[Delta]:
        """What is safe to show now. Empty after a stop string was found."""
        if self.stopped:
            return []
        deltas = self._split(self._stop.feed(self._decoder.decode(pieces)))
        if self.stopped:
            deltas += self._end()
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back so far: no more bytes will come."""
        if self.stopped:
            return []
        text = self._stop.feed(self._decoder.decode(b"", final=True))
        return self._split(text + self._stop.finish()) + self._end()

    def _split(self, text: str) -> list[Delta]:
        if self._reasoning is None:
            return [Content(text)] if text else []
        if not self._has_text and text:
            self._has_text = True
            text = self._begun + text
        return self._found(*self._reasoning.feed(text))

    def _end(self) -> list[Delta]:
        """What the last stages held back."""
        if self._reasoning is None:
            return []
        deltas = self._found(*self._reasoning.finish())
        return deltas if self._calls is None else deltas + self._calls.finish()

    def _found(self, thought: str, content: str) -> list[Delta]:
        deltas: list[Delta] = [Reasoning(thought)] if thought else []
        if content:
            deltas += [Content(content)] if self._calls is None else self._calls.feed(content)
        return deltas
