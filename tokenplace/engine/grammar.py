"""Which token ids a grammar allows next: llguidance, for one vocabulary. Start at
`GrammarTokenizer.matcher`.

The only file that imports llguidance; it knows no llama_cpp, and runs in the worker and in the
process that checks grammars beforehand. Everything a step may cost is bounded, so a grammar that
explodes half-way ends its own request (`GrammarFailed`) and nobody else waits.

Differs from llguidance's own use: text that the grammar leaves no choice about is not forced as a
fixed run of tokens. Working that out took 10 ms a step for a long constant, and what `allows` and
`mask` say would differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from tokenplace import defaults
from tokenplace.engine.tools import control_name

_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'
_CONTROL: Final = (
    b"\xff"  # llguidance's mark of a token that no text spells; UTF-8 has no such byte
)
_SILENT: Final = 0
_WORD_BITS: Final = 32  # of a bit mask
_QUOTED_LINES: Final = re.compile(r"\n *[0-9]+ \| ")  # of the grammar, behind the error itself
# What llguidance says, and what a user may read: its own words quote the schema.
_REASONS: Final = (
    (
        r'Unimplemented keys: (\["[$a-zA-Z]+"(?:, "[$a-zA-Z]+")*\])',
        "These keywords are unknown: {}",
    ),
    (r"Unknown format", "A `format` in it is unknown"),
    (r"look-around|backreference", "A `pattern` in it looks around or back"),
    (r"decimal literal invalid", "A number in it is too large or too fine"),
    (r"regex parse error", "A `pattern` in it is no regular expression"),
    (r"oneOf constraints", "The options of a `oneOf` in it overlap; `anyOf` may do"),
    (r"are not disjoint", "Its `patternProperties` overlap"),
    (r"circular reference", "A `$ref` in it leads back to itself"),
    (r"not present in a registry|ointer|nresolvable|nchor", "A `$ref` in it leads nowhere"),
    (r"too many digits|for (?:float|integer) range", "A number in it is too large or too fine"),
    (r"fuel|[Tt]oo (?:large|many|complex)|Unable to|max is|exceeded", "It is too complex"),
    (r"Unsatisfiable|NoExtension|is empty", "Nothing can satisfy it"),
)


class BadGrammar(Exception):
    """This grammar cannot be used. `str()` says why, for the user, without a word of it."""


class GrammarFailed(Exception):
    """A grammar can go no further: a step was too much, or a token came that it forbids.

    `str()` is for the user.
    """


class GrammarTokenizer:
    """A vocabulary as grammars need it. Making it takes 0.15 s for 49,152 tokens."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        control_texts: Mapping[int, str],
        eog_ids: Iterable[int],
        tokenise: Callable[[str], list[int]],
    ) -> None:
        """
        pieces: of each id, the bytes that it adds to the text. control_texts: of control tokens,
        which only their `control_name` in a grammar lets through. eog_ids: what ends an answer, at
        least one. tokenise: plain text to ids; llguidance wants one, though nothing here uses it.
        """
        self.eog_ids = frozenset(eog_ids)
        self.eog_places = np.array(sorted(self.eog_ids), np.intp)
        tokens = list(pieces)
        for token_id in self.eog_ids:
            tokens[token_id] = _CONTROL + f"<eog{token_id}>".encode()
        for token_id, text in control_texts.items():
            tokens[token_id] = _CONTROL + control_name(text).encode()
        self.n_tokens = len(tokens)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokens, min(self.eog_ids), tokenise)),
            eos_token=sorted(self.eog_ids),
        )
        self._limits = LLParserLimits(
            step_lexer_fuel=defaults.GRAMMAR_STEP_LEXER_FUEL,
            step_max_items=defaults.GRAMMAR_STEP_ITEMS,
            max_lexer_states=defaults.MAX_LEXER_STATES,
            precompute_large_lexemes=False,  # it would take longer the larger the vocabulary
            verbose_errors=False,
        )

    def matcher(self, grammar: str) -> LlamaMatcher:
        """What lets only this grammar through, at its start. Raises `BadGrammar`."""
        matcher = LLMatcher(
            self._tokenizer, _OPTIONS + grammar, log_level=_SILENT, limits=self._limits
        )
        if matcher.is_error():
            raise BadGrammar(_reason(matcher))
        return LlamaMatcher(matcher, self)


class LlamaMatcher:
    """A grammar and how far an answer has got in it: `allows` or `mask`, then `accept`, and so on.

    `allows` and `mask` always agree. What they and `accept` raise is final.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: GrammarTokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._bits = np.empty(-(-tokenizer.n_tokens // _WORD_BITS), np.uint32)

    @property
    def is_complete(self) -> bool:
        """May nothing follow but the end?"""
        return self._matcher.is_stopped()

    def allows(self, token_id: int) -> bool:
        """May this id come next? End-of-generation ids: may the answer end here?

        Raises `GrammarFailed`.
        """
        if token_id in self._tokenizer.eog_ids:
            return self._matcher.is_accepting()
        is_allowed = not self.is_complete and self._matcher.validate_tokens([token_id]) == 1
        self._check()
        return is_allowed

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits of forbidden ids to minus infinity, in place; there is one for each id.

        Raises `GrammarFailed`.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        np.invert(self._bits, out=self._bits)
        is_forbidden = np.unpackbits(
            self._bits.view(np.uint8), count=self._tokenizer.n_tokens, bitorder="little"
        ).view(np.bool_)
        is_forbidden[self._tokenizer.eog_places] = not self._matcher.is_accepting()
        np.copyto(logits, -np.inf, where=is_forbidden)

    def accept(self, token_id: int) -> None:
        """This id came next; never one that ends the answer. Raises `GrammarFailed`."""
        if not self.allows(token_id) or token_id in self._tokenizer.eog_ids:
            raise GrammarFailed("The grammar forbids what follows.")
        self._matcher.consume_token(token_id)
        self._check()

    def fork(self) -> LlamaMatcher:
        """Another one in the same state."""
        return LlamaMatcher(self._matcher.deep_copy(), self._tokenizer)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(_reason(self._matcher))


class _Vocabulary:
    """The attributes that `TokenizerWrapper` looks for."""

    bos_token_id: Final = None

    def __init__(
        self, tokens: list[bytes], eos_token_id: int, tokenise: Callable[[str], list[int]]
    ) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self._tokenise = tokenise

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenise(text.decode("utf-8", "replace"))


def _reason(matcher: LLMatcher) -> str:
    """Why it failed, without a word of the grammar or of the answer."""
    error = _QUOTED_LINES.split(matcher.get_error())[0]
    for pattern, reason in _REASONS:
        if found := re.search(pattern, error):
            return reason.format(*found.groups()) + "."
    return "It uses something that is not supported."
