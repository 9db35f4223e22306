"""The process that tries out grammars: `python -m tokenplace.engine.checker`. Start at `check`.

A schema of a few lines can take llguidance minutes or all memory to compile, and then it dies with
its process. Here that costs nobody anything; the worker compiles only what went well here. The
vocabulary is bytes: what a grammar costs hardly depends on the model's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from tokenplace import defaults
from tokenplace.engine.confine import ParentGone, confine, enter_child
from tokenplace.engine.grammar import BadGrammar, GrammarFailed, GrammarTokenizer, LlamaMatcher
from tokenplace.engine.limits import allow_cpu, limit_process

_N_BYTES: Final = 256
# An answer's beginning is tried too: 1,500 properties that may all be left out compile, but then no
# step is possible.
_TRIED_BYTES: Final = 64


def byte_tokenizer(control_texts: Sequence[str]) -> GrammarTokenizer:
    """A vocabulary of all bytes, these control tokens, and an end."""
    control = dict(enumerate(control_texts, _N_BYTES))
    eog_id = _N_BYTES + len(control)
    pieces = [bytes([byte]) for byte in range(_N_BYTES)] + [b""] * (len(control) + 1)
    return GrammarTokenizer(pieces, control, [eog_id], lambda text: list(text.encode()))


def check(tokenizer: GrammarTokenizer, grammar: str) -> str:
    """Why it cannot be used; "" if it can."""
    began_at = time.thread_time()
    try:
        matcher = tokenizer.matcher(grammar)
        _try(matcher, tokenizer)
    except (BadGrammar, GrammarFailed) as error:
        return str(error)
    if time.thread_time() - began_at > defaults.GRAMMAR_COMPILE_S:
        return "It is too complex."
    return ""


def _try(matcher: LlamaMatcher, tokenizer: GrammarTokenizer) -> None:
    """Begin an answer, with visible characters where they may stand."""
    for _ in range(_TRIED_BYTES):
        row = np.zeros(tokenizer.n_tokens, np.float32)
        row[: ord("!")] = -1
        matcher.mask(row)
        token_id = int(row.argmax())
        if matcher.is_complete or token_id in tokenizer.eog_ids:
            return
        matcher.accept(token_id)


def main() -> None:
    """Make a vocabulary of the first frame's control texts, then check until the parent is gone."""
    pipe = enter_child(sys.argv[1:])
    limit_process(defaults.GRAMMAR_CHECK_MEMORY_BYTES)
    tokenizer = byte_tokenizer(pipe.receive())
    confine()
    pipe.send([True])
    while True:
        grammar = pipe.receive()
        allow_cpu(defaults.GRAMMAR_CHECK_TIMEOUT_S)
        pipe.send([check(tokenizer, grammar)])


if __name__ == "__main__":
    try:
        main()
    except ParentGone:
        sys.exit(0)
