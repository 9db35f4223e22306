"""Answers drawn at random through grammars, with bytes and with a real vocabulary: whatever comes
out is what the grammar promised, and an answer that was broken off goes on as it would have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.grammars import N_BYTES, allowed_ids, walk
from tokenplace import defaults
from tokenplace.engine.checker import byte_tokenizer
from tokenplace.engine.grammar import BadGrammar, GrammarFailed, GrammarTokenizer, LlamaMatcher
from tokenplace.engine.llama_model import LlamaVocabulary
from tokenplace.engine.tools import control_name

EOG = N_BYTES
BYTES = byte_tokenizer(())
WHITESPACE = b" \n\r\t"


def json_grammar(schema: object) -> str:
    options = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}"}
    return "start: %json " + json.dumps({**schema, "x-guidance": options})  # type: ignore[dict-item]


OBJECT = json_grammar({"type": "object"})
PERSON = json_grammar(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


# ---------------------------------------------------------------- schemas, and what they allow

SCALARS = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-1000, 1000),
        st.integers(0, 1000),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9)), min_size=1, max_size=4),
    ),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, low, span: {
            "type": "array",
            "items": items,
            "minItems": low,
            "maxItems": low + span,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda properties, n: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:n],
            "additionalProperties": False,
        },
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
        st.integers(0, 3),
    )
    return arrays | objects | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)


SCHEMAS = st.recursive(SCALARS, containers, max_leaves=6)


def is_allowed(schema: dict[str, Any], value: object) -> bool:
    """JSON schema, as much of it as the strategy above uses."""
    if "anyOf" in schema:
        return any(is_allowed(option, value) for option in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(one) and value == one for one in schema["enum"])
    match schema["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_allowed(schema["items"], item) for item in value)
            )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(schema["properties"])
        and all(is_allowed(schema["properties"][key], item) for key, item in value.items())
    )


# ---------------------------------------------------------------- drawing


class Dice:
    """Random logits, with white space rather unlikely, so that an answer ends some time."""

    def __init__(self, seed: int, pieces: list[bytes], eog_ids: frozenset[int]) -> None:
        self._random = np.random.default_rng(seed)
        self._pieces = pieces
        self._eog_ids = eog_ids
        self._bias = np.array([-8.0 if set(p) <= set(WHITESPACE) else 0.0 for p in pieces])

    def answer(self, matcher: LlamaMatcher, max_tokens: int = 400) -> list[int]:
        ids: list[int] = []
        while not matcher.is_complete and len(ids) < max_tokens:
            row = (self._random.normal(size=len(self._pieces)) + self._bias).astype(np.float32)
            matcher.mask(row)
            token_id = int(row.argmax())
            assert np.isfinite(row[token_id])
            if token_id in self._eog_ids:
                break
            matcher.accept(token_id)
            ids.append(token_id)
        return ids

    def text(self, ids: list[int]) -> str:
        return b"".join(self._pieces[token_id] for token_id in ids).decode()


BYTE_PIECES = [bytes([byte]) for byte in range(N_BYTES)] + [b""]
SEEDS = st.integers(0, 2**32 - 1)


@given(SCHEMAS, SEEDS)
def test_whatever_is_drawn_is_what_the_schema_allows(schema: dict[str, Any], seed: int) -> None:
    try:
        matcher = BYTES.matcher(json_grammar(schema))
    except BadGrammar:  # e.g. an integer's enum and a string's never meet
        pytest.fail(f"refused: {schema}")
    dice = Dice(seed, BYTE_PIECES, frozenset({EOG}))
    ids = dice.answer(matcher)
    assert matcher.allows(EOG), "it did not come to an end"
    assert is_allowed(schema, json.loads(dice.text(ids)))


@given(SEEDS)
@settings(max_examples=20)
def test_any_object_is_an_object(seed: int) -> None:
    dice = Dice(seed, BYTE_PIECES, frozenset({EOG}))
    matcher = BYTES.matcher(OBJECT)
    ids = dice.answer(matcher, max_tokens=2000)
    if matcher.is_complete:
        assert isinstance(json.loads(dice.text(ids)), dict)


# ---------------------------------------------------------------- a real vocabulary


class RealVocabulary:
    """SmolLM2's, without its weights."""

    def __init__(self, path: Path) -> None:
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        self.vocabulary = LlamaVocabulary(lib.llama_model_get_vocab(self._model))
        self.n_tokens = self.vocabulary.n_tokens
        self.eog_ids = self.vocabulary.eog_ids
        self.pieces = [self.vocabulary.piece(token_id) for token_id in range(self.n_tokens)]

    def close(self) -> None:
        lib.llama_model_free(self._model)

    def dice(self, seed: int) -> Dice:
        return Dice(seed, self.pieces, self.eog_ids)


@pytest.fixture(scope="module")
def real(tiny_model: Path) -> Iterator[RealVocabulary]:
    vocabulary = RealVocabulary(tiny_model)
    yield vocabulary
    vocabulary.close()


@given(seed=SEEDS)
@settings(max_examples=15)
def test_a_real_vocabulary_spells_it(real: RealVocabulary, seed: int) -> None:
    dice = real.dice(seed)
    matcher = real.vocabulary.matcher(PERSON)
    ids = dice.answer(matcher)
    assert matcher.is_complete
    person = json.loads(dice.text(ids))
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 120


@given(seed=SEEDS, share=st.floats(0, 1))
@settings(max_examples=15)
def test_a_resumed_answer_is_in_the_same_state(
    real: RealVocabulary, seed: int, share: float
) -> None:
    ids = real.dice(seed).answer(real.vocabulary.matcher(PERSON))
    n = round(len(ids) * share)
    whole, resumed = real.vocabulary.matcher(PERSON), real.vocabulary.matcher(PERSON)
    for token_id in ids[:n]:
        allowed_ids(whole, real.n_tokens)  # the resumed one never computes these
        whole.accept(token_id)
        resumed.accept(token_id)
    forked = whole.fork()
    for token_id in ids[n:]:
        left = allowed_ids(whole, real.n_tokens)
        assert np.array_equal(left, allowed_ids(resumed, real.n_tokens))
        assert np.array_equal(left, allowed_ids(forked, real.n_tokens))
        for matcher in (whole, resumed, forked):
            matcher.accept(token_id)
    assert all(matcher.is_complete for matcher in (whole, resumed, forked))


@given(seed=SEEDS)
@settings(max_examples=5)
def test_allows_and_mask_agree(real: RealVocabulary, seed: int) -> None:
    matcher = real.vocabulary.matcher(PERSON)
    for token_id in real.dice(seed).answer(real.vocabulary.matcher(PERSON), max_tokens=12):
        left = set(allowed_ids(matcher, real.n_tokens).tolist())
        sample = np.random.default_rng(seed).integers(real.n_tokens, size=200).tolist()
        for other in [*sample, *list(left)[:200], *real.eog_ids]:
            assert matcher.allows(other) == (other in left)
        matcher.accept(token_id)


def test_a_control_token_comes_only_where_it_is_named(real: RealVocabulary) -> None:
    text = "<|im_start|>"
    (token_id,) = real.vocabulary.tokenise(text, parse_special=True)
    spelled = real.vocabulary.tokenise(text, parse_special=False)
    named = real.vocabulary.matcher(f'start: {control_name(text)} "x"')
    assert allowed_ids(named, real.n_tokens).tolist() == [token_id]
    plain = real.vocabulary.matcher(f'start: "{text}"')
    assert not plain.allows(token_id)
    for spelled_id in spelled:
        plain.accept(spelled_id)
    assert plain.is_complete


# ---------------------------------------------------------------- beginnings and ends


def test_an_answer_may_end_exactly_where_the_grammar_does() -> None:
    matcher = BYTES.matcher(json_grammar({"type": "integer", "minimum": 0, "maximum": 120}))
    assert not matcher.allows(EOG)
    matcher.accept(ord("1"))
    assert matcher.allows(EOG)  # 1 is one, 12 another
    assert not matcher.is_complete
    assert EOG in allowed_ids(matcher, N_BYTES + 1)
    for letter in b"20":
        matcher.accept(letter)
    assert matcher.is_complete
    assert allowed_ids(matcher, N_BYTES + 1).tolist() == [EOG]
    assert matcher.allows(EOG)
    assert not matcher.allows(ord("1"))


@pytest.mark.parametrize("token_id", [ord("x"), EOG])
def test_what_is_forbidden_is_not_accepted(token_id: int) -> None:
    matcher = BYTES.matcher(OBJECT)
    with pytest.raises(GrammarFailed, match="forbids what follows"):
        matcher.accept(token_id)


def test_nothing_follows_a_complete_answer() -> None:
    matcher = BYTES.matcher(OBJECT)
    for letter in b"{}":
        matcher.accept(letter)
    for token_id in (ord("}"), EOG):
        with pytest.raises(GrammarFailed):
            matcher.accept(token_id)


def test_every_end_of_generation_id_is_one() -> None:
    pieces = [b"{", b"}", b"<eos>", b"<end>", b"", b"{}"]
    tokenizer = GrammarTokenizer(pieces, {3: "<end>"}, [2, 3], lambda text: [])
    matcher = tokenizer.matcher(OBJECT)
    assert allowed_ids(matcher, 6).tolist() == [0, 5]
    matcher.accept(5)
    assert allowed_ids(matcher, 6).tolist() == [2, 3]
    assert matcher.allows(2)
    assert matcher.allows(3)


# ---------------------------------------------------------------- what goes wrong


def test_a_vocabulary_that_cannot_spell_it_says_so() -> None:
    tokenizer = GrammarTokenizer([b"{", b"x", b"<eos>"], {}, [2], lambda text: [])
    matcher = tokenizer.matcher(OBJECT)
    matcher.accept(0)
    with pytest.raises(GrammarFailed, match="Nothing can satisfy it"):
        allowed_ids(matcher, 3)


def test_a_step_that_is_too_much_ends_this_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "GRAMMAR_STEP_ITEMS", 100)
    tokenizer = byte_tokenizer(())
    many = {f"p{n}": {"type": "string"} for n in range(300)}
    matcher = tokenizer.matcher(json_grammar({"type": "object", "properties": many}))
    with pytest.raises(GrammarFailed, match="too complex"):
        walk(matcher, b'{"p7":"x","p9":"y"}')
    with pytest.raises(GrammarFailed, match="too complex"):
        matcher.allows(ord("}"))


def test_a_lexer_that_grows_ends_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_LEXER_STATES", 50)
    tokenizer = byte_tokenizer(())
    matcher = tokenizer.matcher(json_grammar({"type": "string", "pattern": "a.{500}b.{500}c"}))
    with pytest.raises(GrammarFailed, match="too complex"):
        walk(matcher, b'"' + b"ab" * 100)


REASONS = {
    "keyword": ({"not": {"type": "string"}}, r'These keywords are unknown: \["not"\]\.'),
    "format": ({"type": "string", "format": "secret"}, "A `format` in it is unknown"),
    "look-around": ({"type": "string", "pattern": "(?=secret)b"}, "looks around or back"),
    "back reference": ({"type": "string", "pattern": r"(secret)\1"}, "looks around or back"),
    "no regex": ({"type": "string", "pattern": "(secret"}, "no regular expression"),
    "overlap": ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "`oneOf` in it overlap"),
    "patterns": ({"patternProperties": {"secre": {}, "ecret": {}}}, "`patternProperties` overlap"),
    "circular": ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "leads back to itself"),
    "remote": ({"$ref": "https://example.com/secret.json"}, "leads nowhere"),
    "nowhere": ({"$ref": "#/$defs/secret"}, "leads nowhere"),
    "number": ({"type": "integer", "minimum": 10**30}, "too large or too fine"),
    "length": ({"type": "string", "maxLength": 10**18}, "too large or too fine"),
    "empty enum": ({"enum": []}, "Nothing can satisfy it"),
    "empty anyOf": ({"anyOf": []}, "Nothing can satisfy it"),
    "exponential": (
        {
            "allOf": [
                {"anyOf": [{"properties": {f"{kind}{n}": {"type": "string"}}} for kind in "ab"]}
                for n in range(20)
            ]
        },
        "too complex",
    ),
    "other": ({"type": "secret"}, "something that is not supported"),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons_are_given_without_quoting_the_schema(case: str) -> None:
    schema, reason = REASONS[case]
    with pytest.raises(BadGrammar, match=reason) as caught:
        BYTES.matcher(json_grammar(schema))
    assert "secret" not in str(caught.value)
