"""What donors have delivered of one answer, and what is left to ask of the next. Start at
`Continuation`.

Pure. A donor says why a choice ended only in its last event, so when it dies before that, the
delivered ids tell: those that have reached `max_new` or hold a stop string need nothing more
(docs/protocol.md, section 6). Any other choice is resumed, also one that had ended its turn: its
next donor draws the same end at the same place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenplace import defaults
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    Event,
    Finished,
    GenerateRequest,
    GrammarStop,
    LengthStop,
    Resume,
    Stop,
    StringStop,
    Timings,
    Tokens,
    Usage,
)


@dataclass
class _Delivered:
    """Of one choice. pieces: only kept where they tell of an end."""

    ids: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)


class Continuation:
    """The answer to one request, over all donors that have a part in it.

    Indices, that a resumed answer goes on with the next, and the prompt's digest are checked by
    whoever reads a donor or a worker (`peer.contents`, `engine.mailbox`).
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._first: Accepted | None = None  # of the donor with which the answer began
        self._max_new = 0  # of the donor that is asked now
        self._is_continued = False
        self._stops = [stop.encode() for stop in request.stop]
        self._choices = [_Delivered() for _ in range(request.n)]
        self._ended: dict[int, Stop] = {}  # choices that donors before the present one have ended
        self._held: list[Event] = []  # tokens that are not handed on before the answer is whole

    @property
    def has_begun(self) -> bool:
        """Has any token come?"""
        return any(choice.ids for choice in self._choices)

    @property
    def is_committed(self) -> bool:
        """Was any token handed on? Then the answer can go on, but not start again."""
        return self._request.streamed and self.has_begun

    @property
    def is_whole(self) -> bool:
        """Does no choice need a further token, as far as the delivered ones tell?"""
        return self.has_begun and not self._unfinished()

    @property
    def can_resume(self) -> bool:
        """Is there something to go on from, and is it not more than a request may name?"""
        n_ids = sum(len(self._choices[number].ids) for number in self._unfinished())
        return self.has_begun and n_ids <= defaults.MAX_NEW_TOKENS

    @property
    def n_ids(self) -> int:
        """Of the longest choice that is to be resumed, with its prompt: to go on with it a context
        must hold more."""
        n_prompt = self._first.n_prompt if self._first is not None else 0
        resumed = [len(self._choices[number].ids) for number in self._unfinished()]
        return n_prompt + max(resumed, default=0)

    @property
    def request(self) -> GenerateRequest:
        """What to ask of the next donor: the request as it was, and where to go on."""
        if self._first is None or not self.has_begun:
            return self._request
        rest = [Resume(number, tuple(self._choices[number].ids)) for number in self._unfinished()]
        return dataclasses.replace(
            self._request, resume=tuple(rest), prompt_digest=self._first.prompt_digest
        )

    def start_again(self) -> None:
        """Forget what was delivered: nobody can go on with it."""
        assert not self.is_committed, "the app has a part of this answer"
        self._choices = [_Delivered() for _ in self._choices]
        self._ended = {}
        self._held = []
        self._is_continued = False

    def take(self, event: Event) -> Sequence[Event]:
        """Count in what has come; returns what may be handed on now, as one answer's events."""
        match event:
            case Accepted():
                return (self._accept(event),)
            case Tokens():
                self._add(event)
                if not self._request.streamed:
                    self._held.append(event)
                    return ()
            case Finished():
                return (
                    *self._held,
                    self._joined(event) if self._is_continued else self._own(event),
                )
        return (event,)

    def finish(self) -> Sequence[Event]:
        """The rest of an answer that is whole, though its donor did not come to say so."""
        assert self.is_whole
        return (*self._held, self._joined(Finished((), Usage(0, 0, 0), Timings(0, 0, 0))))

    def _accept(self, event: Accepted) -> Accepted:
        # What was long enough for a donor before stays so, though this one has more room.
        ends = {number: self._end(number) for number in range(len(self._choices))}
        self._ended = {number: end for number, end in ends.items() if end is not None}
        self._max_new = event.max_new
        if self._first is None or not self.has_begun:
            self._first = event
            return event
        self._is_continued = True
        return dataclasses.replace(event, n_cached=self._first.n_cached)

    def _add(self, tokens: Tokens) -> None:
        choice = self._choices[tokens.choice]
        assert tokens.index == len(choice.ids), "checked where it was read"
        choice.ids += tokens.ids
        if self._stops or self._request.output is not None:
            choice.pieces += tokens.pieces

    def _own(self, last: Finished) -> Finished:
        """The end of an answer by one donor. Tokens are counted here: what it says of them is only
        its word.
        """
        assert self._first is not None, "an answer ends after it has begun"
        n_prompt = self._first.n_prompt
        n_completion = sum(len(choice.ids) for choice in self._choices)
        usage = Usage(n_prompt, min(last.usage.n_cached, n_prompt), n_completion)
        return dataclasses.replace(last, usage=usage)

    def _joined(self, last: Finished) -> Finished:
        """The end of all choices, of which the last donor knows only those that it was asked for;
        usage counted once. Times are the last donor's.
        """
        assert self._first is not None, "an answer ends after it has begun"
        ends = {end.choice: end.stop for end in last.choices}
        for number in range(len(self._choices)):
            if number not in ends and (stop := self._end(number)) is not None:
                ends[number] = stop
        n_completion = sum(len(choice.ids) for choice in self._choices)
        return Finished(
            tuple(ChoiceEnd(number, ends[number]) for number in sorted(ends)),
            Usage(self._first.n_prompt, self._first.n_cached, n_completion),
            last.timings,
        )

    def _unfinished(self) -> list[int]:
        return [number for number in range(len(self._choices)) if self._end(number) is None]

    def _end(self, number: int) -> Stop | None:
        """Why this choice needs no further token, as far as can be seen from here."""
        if number in self._ended:
            return self._ended[number]
        choice = self._choices[number]
        text = b"".join(choice.pieces)
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            return StringStop(min(found)[1].decode())
        if not choice.ids or len(choice.ids) < self._max_new:
            return None
        has_form = self._request.output is not None
        return GrammarStop() if has_form and _is_whole_json(text) else LengthStop()


def _is_whole_json(text: bytes) -> bool:
    """Can nothing follow? Of a number nobody knows: its next digit may be missing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, bool) or not isinstance(value, (int, float))
