"""What one answer may hold, by what was asked and what its donor promised. Start at `Contents`.

Pure, and the same for both roles: a requester believes no donor, and a fault of a donor's engine
must not reach the wire. In what order frames may come is `exchange.py`'s business.
"""

from __future__ import annotations

from tokenplace import defaults
from tokenplace.errors import PromptMismatch, RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    ChatInput,
    Finished,
    GenerateRequest,
    GrammarStop,
    LengthStop,
    StringStop,
    Tokens,
)
from tokenplace.peer.frames import is_logprob


class Contents:
    """How much of one answer has come, choice by choice. Every method raises `RemoteProtocolError`
    for what does not fit the request.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._prompt_digest = request.prompt_digest if request.resume else None
        self._max_new = request.max_tokens or defaults.MAX_NEW_TOKENS
        self._top_logprobs = request.top_logprobs
        self._stops = request.stop
        self._has_grammar = request.output is not None or (
            isinstance(request.input, ChatInput) and bool(request.input.tools)
        )
        self._next_index = {resume.choice: len(resume.ids) for resume in request.resume}
        if not request.resume:
            self._next_index = dict.fromkeys(range(request.n), 0)
        self._n_bytes = 0
        self._n_new = 0

    def take(self, frame: object) -> None:
        """`accepted`, tokens, or the end have come. Raises `PromptMismatch`, too, if what is to be
        resumed began otherwise.
        """
        match frame:
            case Tokens():
                self._add(frame)
            case Accepted():
                self._accept(frame)
            case Finished():
                self._finish(frame)
            case _:
                raise RemoteProtocolError("an answer that is no tokens")

    def _accept(self, accepted: Accepted) -> None:
        if self._prompt_digest not in (None, accepted.prompt_digest):
            raise PromptMismatch
        if not 1 <= accepted.max_new <= self._max_new:
            raise RemoteProtocolError("it promises more tokens than were asked for")
        self._max_new = accepted.max_new

    def _add(self, tokens: Tokens) -> None:
        index = self._next_index.get(tokens.choice)
        if index is None:
            raise RemoteProtocolError("tokens of a choice that was not asked for")
        if tokens.index != index:
            raise RemoteProtocolError("a gap or an overlap in its tokens")
        self._check_logprobs(tokens)
        self._next_index[tokens.choice] = index = index + len(tokens.ids)
        self._n_new += len(tokens.ids)
        n_ids = len(tokens.ids) + sum(len(logprob.top) for logprob in tokens.logprobs)
        self._n_bytes += n_ids * defaults.ANSWER_ID_BYTES + sum(map(len, tokens.pieces))
        self._n_bytes += sum(len(top.piece) for each in tokens.logprobs for top in each.top)
        if index > self._max_new or self._n_bytes > defaults.MAX_ANSWER_BYTES:
            raise RemoteProtocolError("a longer answer than it promised")

    def _check_logprobs(self, tokens: Tokens) -> None:
        if self._top_logprobs is None:
            if tokens.logprobs:
                raise RemoteProtocolError("log-probabilities that were not asked for")
            return
        if len(tokens.logprobs) != len(tokens.ids):
            raise RemoteProtocolError("not one log-probability for each token")
        for each in tokens.logprobs:
            if len(each.top) > self._top_logprobs:
                raise RemoteProtocolError("more likely tokens than were asked for")
            if not all(map(is_logprob, (each.logprob, *(top.logprob for top in each.top)))):
                raise RemoteProtocolError("a log-probability that is none")

    def _finish(self, finished: Finished) -> None:
        if sorted(end.choice for end in finished.choices) != sorted(self._next_index):
            raise RemoteProtocolError("it finished other choices than were asked for")
        is_by_form = any(isinstance(end.stop, GrammarStop) for end in finished.choices)
        if is_by_form and not self._has_grammar:
            raise RemoteProtocolError("it stopped at the end of a form that nobody asked for")
        # Else an answer that was cut short would look whole.
        if finished.usage.n_completion != self._n_new:
            raise RemoteProtocolError("it counts other tokens than it delivered")
        for end in finished.choices:
            if isinstance(end.stop, LengthStop) and self._next_index[end.choice] != self._max_new:
                raise RemoteProtocolError("it stopped before the length that it promised")
            if isinstance(end.stop, StringStop) and end.stop.string not in self._stops:
                raise RemoteProtocolError("it stopped at a string that was not asked for")
