"""What a search looks for, what meets it, and where it is looked for."""

from __future__ import annotations

from dataclasses import replace

from tests.dht.donating import NETWORK, NOW, OTHER_MODEL, TINY_MODEL, Donor, identity_of
from tokenplace import defaults
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.dht.wanted import Wanted
from tokenplace.models.names import NamedModel
from tokenplace.peer.adverts import OfferedModel

NAME, ARTIFACT = TINY_MODEL.name, TINY_MODEL.artifact
TEMPLATE, OTHER_TEMPLATE = "a" * 64, "b" * 64


def record_of(*models: OfferedModel) -> DonorRecord:
    own = Donor(identity_of("alice"), models=list(models)).announcer().own()
    assert own is not None
    cache = DirectoryCache(NETWORK, allow_private=False)
    record = cache.add(own.entry, answered_by=identity_of("alice").peer_id, now=NOW)
    assert record is not None
    return record


def is_met(record: DonorRecord, *models: NamedModel) -> bool:
    return Wanted(models).is_met_by(record)


def test_the_artifact_or_its_first_digits_decide_and_the_name_only_without() -> None:
    record = record_of(TINY_MODEL)
    assert is_met(record, NamedModel("any", ARTIFACT))
    assert is_met(record, NamedModel("any", OTHER_MODEL.artifact), NamedModel("", ARTIFACT[:12]))
    assert is_met(record, NamedModel(NAME))
    assert not is_met(record, NamedModel(NAME, OTHER_MODEL.artifact))
    assert not is_met(record, NamedModel("any"))
    assert not is_met(record, NamedModel("any", OTHER_MODEL.artifact), NamedModel(NAME))


def test_the_template_must_be_the_one_that_goes_with_the_artifact() -> None:
    record = record_of(replace(TINY_MODEL, template=TEMPLATE), OTHER_MODEL)
    assert is_met(record, NamedModel(NAME, ARTIFACT))
    assert is_met(record, NamedModel(NAME, ARTIFACT, TEMPLATE))
    assert not is_met(record, NamedModel(NAME, ARTIFACT, OTHER_TEMPLATE))
    assert is_met(
        record, NamedModel(NAME, ARTIFACT, OTHER_TEMPLATE), NamedModel("", OTHER_MODEL.artifact)
    )


def test_only_who_is_wanted_and_can_do_it_counts() -> None:
    record = record_of(TINY_MODEL, replace(OTHER_MODEL, features=("embeddings", "later")))
    models = (NamedModel("", ARTIFACT), NamedModel("", OTHER_MODEL.artifact))
    assert Wanted(models, features=frozenset({"embeddings"})).is_met_by(record)
    assert not Wanted(models, features=frozenset({"embeddings", "chat"})).is_met_by(record)
    assert not Wanted(models[:1], features=frozenset({"embeddings"})).is_met_by(record)
    assert Wanted(models, peers=frozenset({record.peer_id, "other"})).is_met_by(record)
    assert not Wanted(models, peers=frozenset({"other"})).is_met_by(record)


def test_nobody_is_told_who_is_trusted() -> None:
    anybody = Wanted((NamedModel(NAME, ARTIFACT),))
    only = replace(anybody, peers=frozenset({"friend"}))
    assert only.queries() == anybody.queries()
    assert only.keys(NETWORK, NOW) == anybody.keys(NETWORK, NOW)


def test_it_is_asked_for_by_whole_artifacts_and_names() -> None:
    wanted = Wanted((NamedModel(NAME, ARTIFACT, TEMPLATE), NamedModel("", OTHER_MODEL.artifact)))
    values = [ARTIFACT, OTHER_MODEL.artifact, NAME]
    assert wanted.queries() == [Query(Op.MODEL, value) for value in values]
    kinds = [Kind.ARTIFACT, Kind.ARTIFACT, Kind.MODEL]
    assert wanted.keys(NETWORK, NOW) == [
        key
        for kind, value in zip(kinds, values, strict=True)
        for key in keys_to_search(NETWORK, kind, value, NOW)
    ]


def test_what_cannot_be_asked_for_one_by_one_is_looked_for_among_all_donors() -> None:
    many = Wanted(tuple(NamedModel(f"m{n}") for n in range(defaults.MAX_SUBJECTS + 1)))
    for wanted in (many, Wanted((NamedModel("", ARTIFACT[:12]),))):
        assert wanted.queries() == [Query(Op.SAMPLE)]
        assert wanted.keys(NETWORK, NOW) == keys_to_search(NETWORK, Kind.DONORS, "", NOW)
