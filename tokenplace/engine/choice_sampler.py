"""All that draws the tokens of one choice (docs/protocol.md, section 7). Start at `ChoiceSampler`.

`sampler` draws from one row and knows no tokens before it; here is what they do to the row: bias,
penalties, a grammar. Pure: no clock, no dice, no llama.cpp. Differs from llama.cpp's penalties: a
requester's presence and frequency count the answer alone, as vLLM's do, and only the repeat penalty
looks back into the prompt. Differs from masking before every draw: see `ChoiceSampler.draw`.

Rows come as views into llama.cpp's memory and are never written to. Only the logits of the few ids
concerned are computed anew.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace.engine.sampler import BadLogits, sample, uniform
from tokenplace.generation import SamplingParams

_HIGHEST: Final = float(np.finfo(np.float32).max)


class NothingAllowed(Exception):
    """The grammar forbids every token that the model could say:

    this vocabulary cannot spell what was asked for.
    """


class Matcher(Protocol):
    """What a grammar allows next, given the tokens so far. Start state: none so far."""

    @property
    def is_complete(self) -> bool:
        """May nothing follow but the end?"""

    def allows(self, token_id: int) -> bool:
        """May this id come next?"""

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits of forbidden ids to minus infinity, in place."""

    def accept(self, token_id: int) -> None:
        """This id came."""


class ChoiceSampler:
    """Draws one choice's tokens: `draw`, then `accept` what was drawn, or resumed, and so on."""

    def __init__(
        self,
        params: SamplingParams,
        seed: bytes,
        choice: int,
        prompt: NDArray[np.int32],
        matcher: Matcher | None = None,
    ) -> None:
        """`prompt`: the prompt's ids; its end may fall under the repeat penalty."""
        self._params = params
        self._seed = seed
        self._choice = choice
        self._matcher = matcher
        self._n_accepted = 0
        self._bias_ids = np.array([token for token, _ in params.logit_bias], np.intp)
        self._bias = np.array([bias for _, bias in params.logit_bias], np.float64)
        self._window: _Window | None = None
        if params.repeat_penalty != 1 and params.repeat_last_n > 0:
            self._window = _Window(prompt, params.repeat_last_n)
        self._answer: _Tally | None = None
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            self._answer = _Tally(prompt[:0])

    @property
    def n_accepted(self) -> int:
        """Tokens of the answer so far, which is the index of the next."""
        return self._n_accepted

    def draw(self, logits: NDArray[np.float32]) -> int:
        """The next token's id, from the row after the last one. Changes nothing.

        With a matcher the row is drawn from as it is, and only what the grammar then forbids is
        drawn again, from the allowed ids, with a number of its own. An allowed id comes first with
        its probability p, and again, after a forbidden one, with (1 - A) * p / A, where A is what
        all allowed ones have together: p / A in all, as if the mask had come first. Models mostly
        follow the grammar by themselves, and a mask costs more than all the rest. Where top_k and
        its like cut, the first draw cuts before the mask and the second after it, as llama.cpp's
        own do.

        Raises `BadLogits` and `NothingAllowed`.
        """
        row = self._adjusted(logits)
        token_id = sample(row, self._params, self._u(is_again=False))
        if self._matcher is None or self._matcher.allows(token_id):
            return token_id
        if row is logits:
            row = logits.copy()
        self._matcher.mask(row)
        try:
            return sample(row, self._params, self._u(is_again=True))
        except BadLogits:  # its numbers were good before the mask
            raise NothingAllowed from None

    def accept(self, token_id: int) -> None:
        """Count in the next token of the answer, drawn or resumed; what the matcher raises, too."""
        if self._matcher is not None:
            self._matcher.accept(token_id)
        if self._window is not None:
            self._window.push(token_id)
        if self._answer is not None:
            self._answer.add(token_id)
        self._n_accepted += 1

    def _u(self, is_again: bool) -> float:
        # Temperature 0 draws nothing, and 50 us are saved: every cache is cold after a step.
        if self._params.temperature == 0:
            return 0.0
        return uniform(self._seed, self._choice, self._n_accepted, is_again)

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Steps 1 to 3: the row itself if they do nothing, else a copy."""
        if not (self._bias_ids.size or self._window or self._answer):
            return logits
        params, row = self._params, logits.copy()
        if self._bias_ids.size:
            # Whoever wrote the bias may think of another vocabulary.
            n_known = int(np.searchsorted(self._bias_ids, len(row)))
            ids = self._bias_ids[:n_known]
            _store(row, ids, row[ids].astype(np.float64) + self._bias[:n_known])
        if self._window is not None:
            ids = self._window.ids
            old, penalty = row[ids].astype(np.float64), params.repeat_penalty
            with np.errstate(over="ignore"):  # `_store` bounds it
                _store(row, ids, np.where(old > 0, old / penalty, old * penalty))
        if self._answer is not None:
            ids = self._answer.ids
            penalties = params.presence_penalty + params.frequency_penalty * self._answer.counts
            _store(row, ids, row[ids].astype(np.float64) - penalties)
        return row


def _store(row: NDArray[np.float32], ids: NDArray[np.intp], values: NDArray[np.float64]) -> None:
    """Round to float32, at most its largest number; what was infinite or no number stays that."""
    old = row[ids]
    bounded = np.minimum(np.maximum(values, -_HIGHEST), _HIGHEST)
    row[ids] = np.where(np.isfinite(old), bounded, old)


class _Tally:
    """Different ids, and how often each is there. Adding and removing one takes O(1)."""

    def __init__(self, ids: NDArray[np.int32]) -> None:
        distinct, counts = np.unique(ids, return_counts=True)
        self._ids = distinct.astype(np.intp)  # the first of these two are in use
        self._counts = counts.astype(np.int64)
        self._places = {token_id: place for place, token_id in enumerate(distinct.tolist())}

    @property
    def ids(self) -> NDArray[np.intp]:
        """The different ids, in no order; valid until the next change."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `ids` is there, at least once."""
        return self._counts[: len(self._places)]

    def add(self, token_id: int) -> None:
        """Count one more of it."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                room = np.zeros(max(16, place), np.int64)  # doubled, so that growing is O(1) too
                self._ids = np.concatenate((self._ids, room.astype(np.intp)))
                self._counts = np.concatenate((self._counts, room))
            self._ids[place], self._counts[place] = token_id, 0
        self._counts[place] += 1

    def remove(self, token_id: int) -> None:
        """Count one less of it; it must be there."""
        place = self._places[token_id]
        self._counts[place] -= 1
        if self._counts[place] == 0:
            del self._places[token_id]
            last = len(self._places)
            if place != last:  # the last one moves into the gap
                moved = int(self._ids[last])
                self._ids[place], self._counts[place] = moved, self._counts[last]
                self._places[moved] = place


class _Window:
    """The last ids of prompt and answer."""

    def __init__(self, prompt: NDArray[np.int32], size: int) -> None:
        ids = prompt[-size:]
        self._size = size
        self._order: deque[int] = deque(ids.tolist())
        self._tally = _Tally(ids)

    @property
    def ids(self) -> NDArray[np.intp]:
        """The different ids in it."""
        return self._tally.ids

    def push(self, token_id: int) -> None:
        """A token came; the oldest leaves when the window is full."""
        self._order.append(token_id)
        self._tally.add(token_id)
        if len(self._order) > self._size:
            self._tally.remove(self._order.popleft())
