"""Which models the local API lists, and under which names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.dht.donating import model_of
from tokenplace.errors import ModelNotFound
from tokenplace.models.catalogue import CATALOGUE
from tokenplace.models.names import DEFAULT_ALIASES, EMBEDDING_ALIASES, ModelNames
from tokenplace.models.table import LocalModel, Table
from tokenplace.node.catalog import NetworkCatalog, names_of
from tokenplace.peer.adverts import OfferedModel

KNOWN = CATALOGUE[0]
TINY_MODEL = OfferedModel("whatever", KNOWN.artifact, KNOWN.template, "test", 2048, ("chat",))
STRANGE = model_of("strange-model")
VECTORS = LocalModel("vectors", Path("/vectors.gguf"), "c" * 64, "", 1, 1)
STRANGE_NAME = f"strange-model@sha256:{STRANGE.artifact[:12]}"


def catalog_over(*offered: OfferedModel) -> NetworkCatalog:
    names = ModelNames(Table(aliases={"mine": KNOWN.name}))
    return NetworkCatalog(lambda: names, lambda: offered, created=1_700_000_000)


async def ids_of(catalog: NetworkCatalog) -> list[str]:
    return [card.id for card in await catalog.list_models()]


async def test_nothing_is_listed_while_nobody_offers_anything() -> None:
    assert await ids_of(catalog_over()) == []


async def test_known_names_come_first_then_strange_ones_pinned_then_aliases() -> None:
    ids = await ids_of(catalog_over(STRANGE, TINY_MODEL, TINY_MODEL, STRANGE))
    assert ids[:3] == [KNOWN.name, STRANGE_NAME, "auto"]
    assert set(ids[3:]) == {"mine", *DEFAULT_ALIASES} - EMBEDDING_ALIASES
    assert len(ids) == len(set(ids))


async def test_no_alias_is_listed_when_nothing_can_answer_it() -> None:
    assert await ids_of(catalog_over(STRANGE)) == [STRANGE_NAME]


async def test_aliases_for_embeddings_are_listed_while_something_makes_them() -> None:
    names = ModelNames(Table({"vectors": VECTORS}))
    offered = model_of("anything")
    offered = replace(offered, artifact=VECTORS.artifact, features=("embeddings",))
    catalog = NetworkCatalog(lambda: names, lambda: [offered], created=0)
    assert await ids_of(catalog) == ["vectors", "auto", *sorted(EMBEDDING_ALIASES)]


async def test_an_alias_says_what_it_stands_for() -> None:
    cards = {card.id: card.root for card in await catalog_over(TINY_MODEL).list_models()}
    assert (cards["mine"], cards["gpt-4o"]) == (KNOWN.name, "auto")
    assert (cards[KNOWN.name], cards["auto"]) == ("", "")
    assert (await catalog_over().get_model("mine")).root == KNOWN.name


async def test_an_alias_of_a_model_that_is_gone_is_not_listed() -> None:
    names = ModelNames(Table(aliases={"mine": "gone"}))
    catalog = NetworkCatalog(lambda: names, lambda: [TINY_MODEL], created=0)
    assert "mine" not in await ids_of(catalog)


async def test_a_listed_name_can_be_retrieved_and_asked_for() -> None:
    catalog = catalog_over(STRANGE, TINY_MODEL)
    for name in await ids_of(catalog):
        card = await catalog.get_model(name)
        assert (card.id, card.created) == (name, 1_700_000_000)


async def test_a_name_that_nobody_knows_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        await catalog_over(STRANGE).get_model("strange-model")


def test_a_known_model_under_another_template_is_not_that_model() -> None:
    other = OfferedModel("tiny", KNOWN.artifact, "0" * 64, "test", 2048, ("chat",))
    assert list(names_of([other], ModelNames())) == [f"tiny@sha256:{KNOWN.artifact[:12]}"]
