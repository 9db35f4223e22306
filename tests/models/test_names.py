from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.errors import ModelNotFound
from tokenplace.models.catalogue import CATALOGUE, DEFAULT_MODEL, catalogue_model
from tokenplace.models.names import (
    DEFAULT_ALIASES,
    EMBEDDING_ALIASES,
    ModelNames,
    NamedModel,
)
from tokenplace.models.syntax import (
    AUTO,
    is_alias,
    is_model_name,
    is_sha256,
    is_target,
    parse_pin,
)
from tokenplace.models.table import LocalModel, Table

TINY = NamedModel(
    DEFAULT_MODEL.name, DEFAULT_MODEL.artifact, DEFAULT_MODEL.template, DEFAULT_MODEL.n_params
)
BIG = LocalModel("big-7b", Path("/models/big.gguf"), "ab" * 32, "", 4_000_000_000, 7_000_000_000)
BIG_NAMED = NamedModel(BIG.name, BIG.artifact, "", BIG.n_params)

model_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(is_model_name)
aliases = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,30}", fullmatch=True).filter(is_alias)
pins = st.builds(
    "{}@sha256:{}".format, model_names, st.text("0123456789abcdef", min_size=12, max_size=64)
)
targets = st.one_of(st.just(AUTO), model_names, pins)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    names = draw(st.lists(model_names, max_size=4, unique=True))
    models = {
        name: LocalModel(
            name, Path("/m"), draw(st.sampled_from(["a", "b"])) * 64, "", 1, draw(st.integers(0, 9))
        )
        for name in names
    }
    return Table(models, draw(st.dictionaries(aliases, targets, max_size=4)))


def test_a_name_of_the_catalogue() -> None:
    assert ModelNames().resolve(DEFAULT_MODEL.name) == (TINY,)


def test_auto_is_every_known_model_the_largest_first() -> None:
    names = ModelNames(Table({BIG.name: BIG}))
    assert names.resolve(AUTO) == (BIG_NAMED, TINY) == names.known


@pytest.mark.parametrize("alias", DEFAULT_ALIASES)
def test_what_apps_ask_for_by_themselves_is_answered(alias: str) -> None:
    assert ModelNames().resolve(alias) == (TINY,)


def test_the_hint_names_the_command_that_mends_it() -> None:
    with pytest.raises(ModelNotFound) as caught:
        ModelNames().resolve("openai/o9-mini")
    assert "`tokenplace models alias openai/o9-mini auto`" in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        ModelNames().resolve("$(reboot)")
    assert "alias" not in caught.value.hint, "what cannot be an alias is not repeated"


def test_the_users_alias_goes_before_the_built_in_one() -> None:
    names = ModelNames(Table({BIG.name: BIG}, {"gpt-3.5-turbo": TINY.name}))
    assert names.resolve("gpt-3.5-turbo") == (TINY,)
    assert names.aliases["gpt-3.5-turbo"] == TINY.name


def test_an_alias_may_look_like_what_programs_send() -> None:
    assert ModelNames(Table({}, {"openai/gpt-4o": AUTO})).resolve("openai/gpt-4o") == (TINY,)


def test_an_alias_is_followed_once() -> None:
    names = ModelNames(Table({}, {"one": "two", "two": "one"}))
    with pytest.raises(ModelNotFound, match="one stands for two here"):
        names.resolve("one")


def test_a_models_own_name_is_never_an_alias() -> None:
    names = ModelNames(Table({BIG.name: BIG}, {BIG.name: TINY.name}))
    assert names.resolve(BIG.name) == (BIG_NAMED,)


@pytest.mark.parametrize("n_digits", [12, 40, 64])
def test_a_pin_that_fits_is_the_known_model(n_digits: int) -> None:
    pin = f"{TINY.name}@sha256:{TINY.artifact[:n_digits]}"
    assert ModelNames().resolve(pin) == (TINY,)


def test_a_pin_of_other_bytes_or_of_an_unknown_name() -> None:
    names = ModelNames()
    assert names.resolve(f"{TINY.name}@sha256:{'0' * 12}") == (NamedModel(TINY.name, "0" * 12),)
    assert names.resolve(f"far-70b@sha256:{'0' * 64}") == (NamedModel("far-70b", "0" * 64),)


@pytest.mark.parametrize(
    "asked",
    [
        "unknown",
        "",
        "UPPER",
        "a b",
        f"{TINY.name}@sha256:{'0' * 11}",
        f"{TINY.name}@sha256:{'A' * 12}",
        f"{TINY.name}@sha256:{'0' * 65}",
        f"{AUTO}@sha256:{'0' * 64}",
        f"@sha256:{'0' * 64}",
        "x" * 65,
        "x" * 100_000,
        "zéro",
        "a\nb",
        f"{TINY.name}\n",
    ],
)
def test_what_is_not_known(asked: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        ModelNames().resolve(asked)
    assert TINY.name in caught.value.hint
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_the_hint_stays_short() -> None:
    many = {f"m{i}": LocalModel(f"m{i}", Path("/m"), "a" * 64, "", 1, i) for i in range(500)}
    with pytest.raises(ModelNotFound) as caught:
        ModelNames(Table(many)).resolve("unknown")
    assert f"and {501 - defaults.MAX_NAMES_IN_HINT} more" in caught.value.hint


def test_nothing_known_at_all() -> None:
    with pytest.raises(ModelNotFound):
        ModelNames(catalogue=()).resolve(AUTO)


@given(tables(), st.one_of(targets, aliases, st.text(max_size=100)))
def test_resolving_gives_usable_models_or_says_no(table: Table, asked: str) -> None:
    names = ModelNames(table)
    try:
        found = names.resolve(asked)
    except ModelNotFound:
        assert asked not in {model.name for model in names.known}
        return
    assert found
    assert all(is_model_name(model.name) for model in found)
    assert [m.n_params for m in found] == sorted((m.n_params for m in found), reverse=True)


@given(tables())
def test_every_known_name_means_itself(table: Table) -> None:
    names = ModelNames(table)
    assert all(names.resolve(model.name) == (model,) for model in names.known)


@given(st.one_of(targets, aliases, st.text(max_size=80)))
def test_the_kinds_of_names_agree(text: str) -> None:
    pin = parse_pin(text)
    assert is_target(text) == (text == AUTO or is_model_name(text) or pin is not None)
    assert not (is_model_name(text) and pin)
    assert not is_model_name(text) or is_alias(text)
    if pin is not None:
        assert text == f"{pin[0]}@sha256:{pin[1]}"


def test_the_catalogue_is_consistent() -> None:
    assert len({model.name for model in CATALOGUE}) == len(CATALOGUE)
    for model in CATALOGUE:
        assert is_model_name(model.name)
        assert is_sha256(model.artifact)
        assert is_sha256(model.template)
        assert catalogue_model(model.name) is model
    default: Mapping[str, str] = DEFAULT_ALIASES
    assert all(map(is_alias, default))
    assert all(map(is_target, default.values()))
    assert not set(default) & {model.name for model in CATALOGUE}
    assert set(default) > EMBEDDING_ALIASES
    assert catalogue_model("unknown") is None
