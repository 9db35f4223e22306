"""A streamed chat answer as the strictest of apps reads it. Start at `Stream.take`.

Pure: bytes and times in, what they say and every rule they break out. Most clients forgive what
this one writes down, so a drill cannot pass because a client was kind.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

_END: Final = b"\n\n"
_DATA: Final = "data: "
_DONE: Final = "[DONE]"
_KIND: Final = "chat.completion.chunk"


class End(StrEnum):
    """How a stream ended."""

    OPEN = "open"  # it has not
    WHOLE = "whole"  # [DONE], in good order
    FAILED = "failed"  # an error event, then an abort
    SILENT = "silent"  # neither: an app would take a part for the whole


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of `logprobs`. raw: its bytes. top: ln p of the most likely there, by bytes."""

    raw: bytes
    logprob: float
    top: dict[bytes, float]


@dataclass
class Choice:
    """What came of one choice. tokens: if logprobs were asked for."""

    text: str = ""
    has_role: bool = False
    finish_reason: str = ""
    tokens: list[Token] = field(default_factory=list)

    @property
    def essence(self) -> tuple[str, tuple[bytes, ...], str]:
        """What must be the same whoever answered."""
        return self.text, tuple(token.raw for token in self.tokens), self.finish_reason


@dataclass
class Stream:
    """One answer, for which `include_usage` was asked.

    moments: when an event with text came, and how long the text of choice 0 was then.
    faults: each rule that was broken, once.
    """

    n_choices: int = 1
    choices: dict[int, Choice] = field(default_factory=lambda: defaultdict(Choice))
    moments: list[tuple[float, int]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    error: str = ""
    error_at: float | None = None
    last_at: float = 0.0
    end: End = End.OPEN
    faults: list[str] = field(default_factory=list)
    _buffer: bytes = b""
    _is_done: bool = False
    _head: tuple[Any, ...] | None = None

    @property
    def text(self) -> str:
        """Of the first choice, which is the only one of most answers."""
        return self.choices[0].text

    @property
    def essence(self) -> tuple[Any, ...]:
        """What must be the same whoever answered: texts, tokens, why each ended, and usage."""
        usage = self.usage or {}
        return (
            *((number, *choice.essence) for number, choice in sorted(self.choices.items())),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            usage.get("total_tokens"),
        )

    def longest_pause_s(self, since: float) -> float:
        """The longest an app waited after `since` for the next text, or for the end."""
        times = [since, *(at for at, _ in self.moments if at > since)]
        if self.last_at > times[-1]:
            times.append(self.last_at)
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def take(self, data: bytes, now: float) -> None:
        """So many bytes of the body have come, cut anywhere."""
        *events, self._buffer = (self._buffer + data).split(_END)
        for event in events:
            self._take_event(event, now)

    def close(self, now: float, *, is_orderly: bool) -> None:
        """Nothing comes any more. is_orderly: the body ended as HTTP says, it was not cut off."""
        self.last_at = now
        if self._buffer:
            self._fault("the body ends within an event")
        if self.error:
            self.end = End.FAILED
            if is_orderly:
                self._fault("an orderly end of the body after an error")
        elif self._is_done:
            self.end = End.WHOLE
            if not is_orderly:
                self._fault("the body was cut off behind [DONE]")
        else:
            self.end = End.SILENT
            self._fault("neither [DONE] nor an error")

    # ------------------------------------------------------------ events

    def _fault(self, what: str) -> None:
        if what not in self.faults:
            self.faults.append(what)

    def _take_event(self, event: bytes, now: float) -> None:
        try:
            text = event.decode()
        except UnicodeDecodeError:
            self._fault("an event is not UTF-8")
            return
        if text.startswith(":"):
            self.comments.append(text[1:].strip())
        elif not text.startswith(_DATA):
            self._fault("neither data nor a comment")
        elif self._is_done or self.error:
            self._fault("something behind the end")
        elif text == _DATA + _DONE:
            self._is_done = True
            self.last_at = now
            self._check_done()
        else:
            self._take_data(text.removeprefix(_DATA), now)

    def _check_done(self) -> None:
        if sorted(self.choices) != list(range(self.n_choices)):
            self._fault(f"[DONE] after choices {sorted(self.choices)} of {self.n_choices}")
        if not all(choice.finish_reason for choice in self.choices.values()):
            self._fault("[DONE] without a finish_reason")
        if self.usage is None:
            self._fault("[DONE] without usage")

    def _take_data(self, text: str, now: float) -> None:
        try:
            data = json.loads(text)
        except json.JSONDecodeError:
            self._fault("an event is not JSON")
            return
        if "error" in data:
            self.error, self.error_at = str(data["error"]["code"]), now
            return
        head = (data["id"], data["object"], data["created"], data["model"])
        if self._head is None:
            self._head = head
        if head != self._head or data["object"] != _KIND:
            self._fault("id, object, created or model changed")
        if self.usage is not None:
            self._fault("something behind usage")
        if not data["choices"]:
            self._take_usage(data["usage"])
        for choice in data["choices"]:
            self._take_choice(choice, now)

    def _take_usage(self, usage: dict[str, Any]) -> None:
        self.usage = usage
        if usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
            self._fault("usage does not add up")
        if not all(choice.finish_reason for choice in self.choices.values()):
            self._fault("usage before the last finish_reason")

    def _take_choice(self, data: dict[str, Any], now: float) -> None:
        choice, delta = self.choices[data["index"]], data["delta"]
        if choice.finish_reason:
            self._fault("something behind finish_reason")
        if "role" in delta:
            if choice.has_role:
                self._fault("a second role")
            choice.has_role = True
        if not choice.has_role:
            self._fault("a delta before the role")
        if content := delta.get("content"):
            choice.text += content
            self.last_at = now
            self.moments.append((now, len(self.choices[0].text)))
        for token in (data["logprobs"] or {}).get("content") or ():
            choice.tokens.append(_token(token))
        choice.finish_reason = data["finish_reason"] or ""


def _token(entry: dict[str, Any]) -> Token:
    top = {bytes(other["bytes"]): other["logprob"] for other in entry["top_logprobs"]}
    return Token(bytes(entry["bytes"]), entry["logprob"], top)
