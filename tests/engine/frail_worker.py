"""A worker over arithmetic that its prompts can kill: `python -m tests.engine.frail_worker`.

Started as the real one is. A prompt that begins with "abort at 3: " ends the process when its token
number 3 is to be computed, in whatever way its first word says; "at tokenise" when it is read. With
"once", only the first worker dies of it. All else is the real worker's: loop, scheduler, batches,
black box.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.engine.arithmetic import ArithmeticModel, LetterVocabulary
from tokenplace.engine.blackbox import BlackBox
from tokenplace.engine.confine import ParentGone, enter_child
from tokenplace.engine.messages import FromWorker, Load, Ready, from_value, to_value
from tokenplace.engine.runner import Runner
from tokenplace.engine.scheduler import Chunk
from tokenplace.engine.worker import serve

N_CTX: Final = 256
N_SLOTS: Final = 8
FOLDER: Final = "FRAIL_WORKER_FOLDER"
"""Environment variable: a folder. A file WAIT_FOR in it says for how many requests the next worker
waits before its first step; a file ONCE in it stands for the one death of those that kill once.
"""
WAIT_FOR: Final = "wait_for"
ONCE: Final = "once"

_ORDER: Final = re.compile(r"(abort|exit|killed|stops) (once )?at (\d+|tokenise): ")


def taken(name: str) -> str:
    """What is in a file of the folder, which then is gone; empty if there is none."""
    path = Path(os.environ[FOLDER]) / name
    if not path.exists():
        return ""
    text = path.read_text()
    path.unlink()
    return text


def die(order: re.Match[str]) -> None:
    if order[2] and not taken(ONCE):
        return
    match order[1]:
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stops":
            os.kill(os.getpid(), signal.SIGSTOP)


class FrailVocabulary(LetterVocabulary):
    def __init__(self) -> None:
        self.orders: dict[tuple[int, ...], re.Match[str]] = {}

    def tokenise(self, text: str, parse_special: bool) -> list[int]:
        ids = super().tokenise(text, parse_special)
        if order := _ORDER.match(text):
            self.orders[tuple(ids)] = order
            if order[3] == "tokenise":
                die(order)
        return ids


class FrailModel(ArithmeticModel):
    def __init__(self, vocabulary: FrailVocabulary) -> None:
        super().__init__(N_CTX, n_slots=N_SLOTS)
        self._vocabulary = vocabulary

    def decode(
        self, chunks: AbstractSequence[Chunk], is_unwanted: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        for chunk in chunks:
            sequence = chunk.sequence
            prompt = tuple(sequence.ids[1 : sequence.n_prompt].tolist())  # without BOS
            order = self._vocabulary.orders.get(prompt)
            if order is not None and order[3] == str(sequence.n_new):
                die(order)
        return super().decode(chunks, is_unwanted)


class FrailRunner(Runner):
    """Waits for company before its first step."""

    n_awaited = 0

    def step(
        self, is_unwanted: Callable[[frozenset[int]], bool] = lambda _: False
    ) -> list[FromWorker]:
        if len(self._requests) < self.n_awaited:
            self._note(())  # nothing of anybody is computed
            time.sleep(0.001)
            return []
        self.n_awaited = 0
        return super().step(is_unwanted)


def main() -> None:
    pipe = enter_child(sys.argv[1:])
    load = from_value(pipe.receive())
    assert isinstance(load, Load)
    box = BlackBox.open(load.box_fd)
    vocabulary = FrailVocabulary()
    runner = FrailRunner(FrailModel(vocabulary), vocabulary, time.monotonic, 1, box.note)
    runner.n_awaited = int(taken(WAIT_FOR) or 0)
    ready = Ready(N_CTX, N_SLOTS, "", "", "", (), "arithmetic", 1000.0, 500.0, ("network",))
    pipe.send([to_value(ready)])
    serve(pipe, runner, box)


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
