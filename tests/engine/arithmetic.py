"""A model of arithmetic, its vocabulary and its grammar: what tests have for llama.cpp's.

Imports no trio, so that a process over it starts fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

import numpy as np
from numpy.typing import NDArray

from tokenplace.engine.backend import Stopped
from tokenplace.engine.grammar import BadGrammar, GrammarFailed
from tokenplace.engine.scheduler import Chunk, Copy, Keep
from tokenplace.engine.sizing import ContextSize

EOG = 0
BOS = 1
N_VOCAB = 64


class LetterVocabulary:
    """One token for each character, and back; 0 and 1 are control tokens, written ⏹ and ⏵."""

    n_tokens = N_VOCAB
    first_id: int | None = BOS
    eog_ids = frozenset({EOG})

    def tokenise(self, text: str, parse_special: bool) -> list[int]:
        special = {"⏹": EOG, "⏵": BOS} if parse_special else {}
        return [special.get(letter, 2 + (ord(letter) - 66) % (N_VOCAB - 2)) for letter in text]

    def piece(self, token_id: int) -> bytes:
        return bytes([64 + token_id])

    def matcher(self, grammar: str) -> OneOf:
        return OneOf([*map(ord, grammar)])


class OneOf:
    """A grammar of one text: these ids, one after the other. `!` is a grammar that is none."""

    def __init__(self, ids: list[int]) -> None:
        if ids == [ord("!")]:
            raise BadGrammar("It is no grammar.")
        self._ids = [token_id - 64 for token_id in ids]

    @property
    def is_complete(self) -> bool:
        return not self._ids

    def allows(self, token_id: int) -> bool:
        return token_id == (self._ids[0] if self._ids else EOG)

    def mask(self, logits: NDArray[np.float32]) -> None:
        allowed = self._ids[0] if self._ids else EOG
        kept = logits[allowed]
        logits[:] = -np.inf
        logits[allowed] = kept

    def accept(self, token_id: int) -> None:
        if self._ids.pop(0) != token_id:
            raise GrammarFailed("It may not come.")


class ArithmeticModel:
    """Its next token depends on every token before it, so a wrong KV cache shows. n_cells: as in
    `ContextSize`; with `is_strict` it finds no room beyond them, as a shared cache does.
    """

    def __init__(
        self,
        n_ctx: int = 64,
        *,
        n_slots: int = 4,
        n_running: int | None = None,
        n_cells: int | None = None,
        can_cut: bool = True,
        n_batch: int = 512,
    ) -> None:
        n_cells = n_cells or n_ctx * n_slots
        self.size = ContextSize(
            n_ctx, n_slots, n_running or n_slots, n_cells, is_shared=n_cells < n_ctx * n_slots
        )
        self.n_batch = n_batch
        self.can_cut = self.can_stop = can_cut
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.n_decoded = 0
        self.n_steps = 0
        self.n_answering_steps = 0
        self.fails: type[Exception] | None = None
        self.n_threads = 0

    def apply(self, move: Keep | Copy) -> None:
        match move:
            case Keep(slot, n):
                assert n == 0 or self.can_cut, "this memory cannot be cut"
                assert n <= len(self.slots[slot]), "more is kept than there is"
                del self.slots[slot][n:]
            case Copy(source, slot, n):
                assert n <= len(self.slots[source]), "more is copied than there is"
                self.slots[slot] = self.slots[source][:n]

    def decode(
        self, chunks: AbstractSequence[Chunk], is_unwanted: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        if self.fails is not None:
            raise self.fails
        assert 0 < sum(chunk.n for chunk in chunks) <= self.n_batch
        assert len({chunk.sequence.slot for chunk in chunks}) == len(chunks)
        rows = []
        for chunk in chunks:
            assert chunk.sequence.slot is not None
            ids = self.slots[chunk.sequence.slot]
            assert chunk.start == len(ids), "a gap in the KV cache"
            for place in range(chunk.start, chunk.start + chunk.n):
                ids.append(int(chunk.sequence.buffer[place]))
                if place >= chunk.start + chunk.n - chunk.n_rows:
                    rows.append(arithmetic_logits(ids))
            if is_unwanted is not None and is_unwanted():  # with some of it computed
                raise Stopped
            assert len(ids) <= self.size.n_ctx
        assert sum(map(len, self.slots)) <= self.size.n_cells, "over the budget"
        self.n_decoded += sum(chunk.n for chunk in chunks)
        self.n_steps += 1
        self.n_answering_steps += any(chunk.n == 1 for chunk in chunks)
        return np.array(rows, np.float32).reshape(len(rows), N_VOCAB)

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads


def arithmetic_logits(ids: AbstractSequence[int]) -> NDArray[np.float32]:
    noise = int.from_bytes(hashlib.sha256(bytes(ids)).digest()[:8], "big")
    return np.random.default_rng(noise).normal(0, 3, N_VOCAB).astype(np.float32)
