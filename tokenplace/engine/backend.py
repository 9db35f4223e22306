"""What computes a step of continuous batching, as `runner` sees it. Start at `Backend`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokenplace.engine.scheduler import Chunk, Copy, Keep
from tokenplace.engine.sizing import ContextSize


class DecodeFailed(Exception):
    """The backend could not compute a step. What it has of these sequences is unknown."""


class CacheFull(Exception):
    """The backend found no place for a step's tokens; nothing was computed."""


class Stopped(Exception):
    """A step was stopped while it was computed. What of it was computed is unknown."""


class Backend(Protocol):
    """What computes: one KV cache with many slots.

    n_batch: tokens of one step, at most. can_stop: whether a step can be stopped.
    """

    size: ContextSize
    n_batch: int
    can_cut: bool
    can_stop: bool

    def apply(self, move: Keep | Copy) -> None:
        """Forget or copy what a slot holds. Raises `DecodeFailed`."""

    def decode(
        self, chunks: AbstractSequence[Chunk], is_unwanted: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        """Compute a step; the rows of logits wanted, in order, valid until the next call.

        is_unwanted: asked meanwhile, if `can_stop`. Raises `CacheFull`, `DecodeFailed` and, when
        it was unwanted, `Stopped`.
        """

    def set_threads(self, n_threads: int) -> None:
        """Compute with so many from now on."""
