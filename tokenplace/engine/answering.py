"""One request inside the worker: its choices, and what is told of them. Start at `Answering`.

Pure but for the model behind `Vocabulary`: rows of logits in, messages out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.choice_sampler import ChoiceSampler, Matcher
from tokenplace.engine.messages import Done, NewTokens, Score, Scored, Submit
from tokenplace.engine.sampler import logprob
from tokenplace.engine.scoring import score_rows
from tokenplace.engine.sequence import (
    BadPrompt,
    Ids,
    Sequence,
    StopMatcher,
    Vocabulary,
    are_known,
    prompt_digest,
    prompt_ids,
)
from tokenplace.errors import ErrorCode
from tokenplace.generation import SamplingParams

End = int | bytes | str
"""What ended a choice, as in `messages.Done`."""


@dataclass(eq=False)
class Choice:
    """One answer of a request, and what draws its tokens."""

    sequence: Sequence
    sampler: ChoiceSampler
    stops: StopMatcher
    matcher: Matcher | None


@dataclass(eq=False)
class Times:
    """Of one request, on one monotonic clock; None: not yet."""

    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None

    def milliseconds(self, now: float) -> tuple[int, int, int]:
        """In the queue, until the first token, and since."""
        started_at = now if self.started_at is None else self.started_at
        first_at = now if self.first_token_at is None else self.first_token_at
        return (
            round((started_at - self.submitted_at) * 1000),
            round((first_at - started_at) * 1000),
            round((now - first_at) * 1000),
        )


@dataclass(eq=False)
class Answering:
    """A request to generate. `choices` has those that go on; `ends` why the others ended."""

    submit: Submit
    vocabulary: Vocabulary
    prompt: Ids
    max_new: int
    choices: dict[int, Choice]
    times: Times
    ends: list[tuple[int, End]] = field(default_factory=list)
    n_cached: int | None = None
    n_drawn: int = 0

    @classmethod
    def begin(cls, submit: Submit, vocabulary: Vocabulary, n_ctx: int, now: float) -> Answering:
        """Tokenise the prompt and see whether all fits. Raises `BadPrompt` and `BadGrammar`."""
        _check_ids(submit, vocabulary)
        prompt = prompt_ids(submit, vocabulary, n_ctx)
        if submit.resume and submit.prompt_digest != prompt_digest(prompt):
            raise BadPrompt(ErrorCode.PROMPT_MISMATCH, "It has other tokens here.")
        max_new = min(n_ctx - len(prompt), submit.max_tokens or defaults.MAX_NEW_TOKENS)
        answering = cls(submit, vocabulary, prompt, max_new, {}, Times(now))
        for number, ids in submit.resume or ((number, ()) for number in range(submit.n)):
            answering._add_choice(number, ids)
        return answering

    @property
    def request(self) -> int:
        """Its number, as the parent gave it."""
        return self.submit.request

    @property
    def sequences(self) -> list[Sequence]:
        """Those that go on."""
        return [choice.sequence for choice in self.choices.values()]

    def note_start(self, sequence: Sequence, now: float) -> None:
        """One of its sequences got a slot."""
        if self.times.started_at is None:
            self.times.started_at = now
            self.n_cached = sequence.n_cached

    def take_rows(
        self, sequence: Sequence, rows: NDArray[np.float32], now: float
    ) -> NewTokens | None:
        """Draw the next token of a choice; None if that ends it without one. An end is in `ends`,
        and the choice no longer among `choices`. Raises `BadLogits` and what a matcher raises.
        """
        number = sequence.choice
        choice = self.choices[number]
        row = rows[0]
        token_id = choice.sampler.draw(row)
        if self.times.first_token_at is None:
            self.times.first_token_at = now
        # A grammar that is followed by more than its end does not exist.
        goes_on = self.submit.ignore_eog and choice.matcher is None
        if token_id in self.vocabulary.eog_ids and not goes_on:
            self._end(number, token_id)
            return None
        index = sequence.n_new
        sequence.append(token_id)
        self.n_drawn += 1
        self._accept(choice, token_id)
        if number in self.choices and sequence.is_whole:
            self._end(number, "length")
        piece = self.vocabulary.piece(token_id)
        return NewTokens(
            self.request, number, index, (token_id,), (piece,), self._logprobs(row, token_id)
        )

    def done(self, now: float, prefill_tps: float, decode_tps: float) -> Done:
        """The last message, once all choices have ended."""
        assert not self.choices, "an answer is whole only when all choices are"
        return Done(
            self.request,
            tuple(sorted(self.ends)),
            len(self.prompt),
            self.n_cached or 0,
            self.n_drawn,
            *self.times.milliseconds(now),
            prefill_tps,
            decode_tps,
        )

    def _add_choice(self, number: int, ids: tuple[int, ...]) -> None:
        """One more answer. What was delivered of it may have ended it already."""
        submit = self.submit
        if len(ids) > self.max_new:
            raise BadPrompt(ErrorCode.RESUME_REJECTED, "The answer is longer than it may be.")
        matcher = self.vocabulary.matcher(submit.grammar) if submit.grammar else None
        sampler = ChoiceSampler(
            SamplingParams(*submit.sampling), submit.seed, number, self.prompt, matcher
        )
        sequence = Sequence.begin(
            submit.request,
            self.prompt,
            choice=number,
            bucket=submit.bucket,
            scope=submit.cache_scope,
            max_new=self.max_new,
            # Nobody knows how long an answer without a limit will be.
            n_expected=defaults.EXPECTED_NEW_TOKENS if submit.max_tokens is None else None,
            answer=ids,
        )
        choice = Choice(sequence, sampler, StopMatcher(submit.stop), matcher)
        self.choices[number] = choice
        for token_id in ids:
            if number not in self.choices:
                raise BadPrompt(ErrorCode.RESUME_REJECTED, "It goes on behind its end.")
            if matcher is not None and not matcher.allows(token_id):
                raise BadPrompt(ErrorCode.RESUME_REJECTED, "The grammar forbids its tokens.")
            self._accept(choice, token_id)
        if number in self.choices and sequence.is_whole:
            self._end(number, "length")

    def _accept(self, choice: Choice, token_id: int) -> None:
        """Count in a token of a choice, and see whether it ends with it."""
        choice.sampler.accept(token_id)
        stop = choice.stops.push(self.vocabulary.piece(token_id))
        if stop is not None:
            self._end(choice.sequence.choice, stop)
        elif choice.matcher is not None and choice.matcher.is_complete:
            self._end(choice.sequence.choice, "grammar")

    def _end(self, number: int, end: End) -> None:
        del self.choices[number]
        self.ends.append((number, end))

    def _logprobs(
        self, row: NDArray[np.float32], token_id: int
    ) -> tuple[tuple[float, tuple[tuple[int, bytes, float], ...]], ...]:
        if self.submit.top_logprobs is None:
            return ()
        own, top = logprob(row, token_id, self.submit.top_logprobs)
        return ((own, tuple((i, self.vocabulary.piece(i), p) for i, p in top)),)


@dataclass(eq=False)
class Scoring:
    """A request to say how likely given ids are after a prompt."""

    score: Score
    n_prompt: int
    sequence: Sequence
    times: Times
    sampler: ChoiceSampler | None
    n_scored: int = 0

    @classmethod
    def begin(cls, score: Score, vocabulary: Vocabulary, n_ctx: int, now: float) -> Scoring:
        """Tokenise the prompt and see whether all fits. Raises `BadPrompt`."""
        if not score.ids or not are_known(score.ids, vocabulary.n_tokens):
            raise BadPrompt(ErrorCode.INVALID_REQUEST, "ids must name tokens of this vocabulary.")
        prompt = prompt_ids(score, vocabulary, n_ctx)
        if len(prompt) + len(score.ids) > n_ctx:
            n = len(prompt) + len(score.ids)
            raise BadPrompt(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"Prompt and ids have {n} tokens, the context holds {n_ctx}.",
                n_prompt=n,
                n_ctx=n_ctx,
            )
        # The last id is never computed: nothing is drawn behind it.
        sequence = Sequence.begin(
            score.request,
            prompt,
            choice=score.choice,
            bucket=score.bucket,
            scope=score.cache_scope,
            max_new=len(score.ids) - 1,
            answer=score.ids[:-1],
        )
        sequence.first_row = len(prompt) - 1
        sampler = None
        if score.sampling:
            params = SamplingParams(*score.sampling)
            sampler = ChoiceSampler(params, score.seed, score.choice, prompt)
        return cls(score, len(prompt), sequence, Times(now), sampler)

    @property
    def request(self) -> int:
        """Its number, as the parent gave it."""
        return self.score.request

    @property
    def sequences(self) -> list[Sequence]:
        """The one there is."""
        return [self.sequence]

    def note_start(self, sequence: Sequence, now: float) -> None:
        """It got a slot."""
        if self.times.started_at is None:
            self.times.started_at = now

    @property
    def is_whole(self) -> bool:
        """Has every id its score?"""
        return self.n_scored == len(self.score.ids)

    def take_rows(self, sequence: Sequence, rows: NDArray[np.float32], now: float) -> Scored:
        """Score the next ids, one for each row. Raises `BadLogits`."""
        index = self.n_scored
        ids = self.score.ids[index : index + len(rows)]
        scores = tuple((s.logprob, s.gap, s.rank, s.mass) for s in score_rows(rows, ids))
        drawn = []
        if self.sampler is not None:
            for row, token_id in zip(rows, ids, strict=True):
                drawn.append(self.sampler.draw(row))
                self.sampler.accept(token_id)
        self.n_scored += len(rows)
        # If it has to start over, these rows are not wanted again.
        sequence.first_row = self.n_prompt - 1 + self.n_scored
        return Scored(self.request, index, scores, tuple(drawn), self.n_prompt, self.is_whole)


def _check_ids(submit: Submit, vocabulary: Vocabulary) -> None:
    """A request may name tokens: whether there are such only the model knows."""
    sampling = SamplingParams(*submit.sampling)
    if not sampling.is_in_range:
        raise BadPrompt(ErrorCode.INVALID_REQUEST, "A sampling parameter is out of its range.")
    bias = sampling.logit_bias
    if not are_known((token_id for token_id, _ in bias), vocabulary.n_tokens):
        raise BadPrompt(
            ErrorCode.INVALID_REQUEST,
            f"logit_bias names a token that does not exist; there are {vocabulary.n_tokens}.",
        )
    if not all(are_known(ids, vocabulary.n_tokens) for _, ids in submit.resume):
        raise BadPrompt(ErrorCode.RESUME_REJECTED, "It names tokens that do not exist.")
