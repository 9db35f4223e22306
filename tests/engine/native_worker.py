"""The real worker, but prompts can make it call llama.cpp in the ways that are known to kill:
`python -m tests.engine.native_worker`, started as the real one is.

`KILLERS` are its faults that no request can reach. Here each is called while the prompt of that
name is read, inside the confined process, to see that it costs that process and nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final

import llama_cpp as lib

from tokenplace import defaults
from tokenplace.engine import llama_model, worker
from tokenplace.engine.confine import ParentGone
from tokenplace.engine.llama_model import LlamaVocabulary

_NO_TOKEN: Final = 1_000_000_000


def _piece_of_no_token(vocabulary: Any) -> None:
    lib.llama_token_to_piece(vocabulary, _NO_TOKEN, ctypes.create_string_buffer(16), 16, 0, False)


def _text_beyond_unicode(vocabulary: Any) -> None:
    ids = (ctypes.c_int32 * 16)()
    lib.llama_tokenize(vocabulary, b"\xf4\x90\x80\x80", 4, ids, 16, False, False)


def _nested_grammar(vocabulary: Any) -> None:
    text = b"root ::= " + b"(" * 100_000 + b'"a"' + b")" * 100_000
    lib.llama_sampler_init_grammar(vocabulary, text, b"root")


def _repeating_grammar(vocabulary: Any) -> None:
    schema = '{"type": "string", "maxLength": 1000000}'
    text = lib.LlamaGrammar.from_json_schema(schema, verbose=False)._grammar
    lib.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")


def _all_memory(_vocabulary: Any) -> None:
    bytearray(4 * defaults.WORKER_GROWTH_BYTES)  # stacks of many threads are allowed for


KILLERS: Final[dict[str, Callable[[Any], None]]] = {
    "piece of no token": _piece_of_no_token,
    "text beyond Unicode": _text_beyond_unicode,
    "nested grammar": _nested_grammar,
    "repeating grammar": _repeating_grammar,
    "all memory": _all_memory,
}


class FrailVocabulary(LlamaVocabulary):
    """Dies of texts that name a killer."""

    def tokenise(self, text: str, *args: Any, **options: Any) -> list[int]:
        if text in KILLERS:
            KILLERS[text](self._handle)
        return super().tokenise(text, *args, **options)


if __name__ == "__main__":
    llama_model.LlamaVocabulary = FrailVocabulary  # type: ignore[misc]
    try:
        worker.main()
    except ParentGone:
        sys.exit(0)
