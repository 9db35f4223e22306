"""Routes out of own engines and really signed donors: who may answer which name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.dht.donating import NOW, Donor, identity_of, model_of
from tests.fakes import EchoEngine
from tests.peer.exchange_lab import make_request
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.dht.finder import FindResult
from tokenplace.errors import (
    ConfigError,
    ConnectionLost,
    InvalidRequest,
    ModelNotFound,
    NoDonorAsWished,
    NoDonorForModel,
    SearchIncomplete,
    TokenplaceError,
    UntrustedDonorTools,
)
from tokenplace.features import Feature
from tokenplace.generation import ChatInput, ChatMessage, Tool, Wishes
from tokenplace.models.catalogue import CATALOGUE
from tokenplace.models.names import ModelNames, NamedModel
from tokenplace.models.table import LocalModel, Table
from tokenplace.operations import Answerer, EmbedRequest
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.router.demand import Demand, Need, demand_of
from tokenplace.router.policy import rank_of
from tokenplace.router.routes import (
    OWN_SEARCH_DEADLINE_S,
    SEARCH_DEADLINE_S,
    NetworkRoutes,
    OwnModel,
)
from tokenplace.router.trust import NO_TRUST, ToolsFrom, Trust

KNOWN = CATALOGUE[0]
TINY_MODEL = OfferedModel(KNOWN.name, KNOWN.artifact, KNOWN.template, "test", 2048, ("chat",))
IMPOSTOR = dataclasses.replace(model_of(KNOWN.name), template=KNOWN.template)
OTHER_TEMPLATE = dataclasses.replace(TINY_MODEL, template="0" * 64)
STRANGE = model_of("strange-model")
TOOL_MODEL = dataclasses.replace(TINY_MODEL, features=("chat", "tools", "grammar"))
ANYTHING = Demand()


def features_of(*names: str) -> tuple[Need, ...]:
    return tuple(Need(Feature(name), "messages") for name in names)


def record_of(name: str, *models: OfferedModel, load: Load | None = None) -> DonorRecord:
    """What the directory keeps of a donor that just said all this itself."""
    donor = Donor(identity_of(name), models=list(models))
    donor.load = load or donor.load
    own = donor.announcer().own()
    assert own is not None
    cache = DirectoryCache("test", allow_private=True)
    record = cache.add(own.entry, answered_by=donor.identity.peer_id, now=NOW, rtt_s=0.02)
    assert record is not None
    return record


@dataclass
class FixedSource:
    """A finder whose result is fixed; `more` is what it finds when it looks for somebody. find_s:
    how long it takes, if it is given the time.
    """

    records: tuple[DonorRecord, ...] = ()
    complete: bool = True
    more: tuple[DonorRecord, ...] = ()
    sought: list[tuple[frozenset[str], frozenset[str]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    asked: list[tuple[tuple[NamedModel, ...], float]] = field(default_factory=list)
    kept_fresh: list[NamedModel] = field(default_factory=list)
    find_s: float = 0.0

    async def find(
        self,
        models: Sequence[NamedModel],
        *,
        deadline_s: float,
        features: frozenset[str] = frozenset(),
        peers: frozenset[str] = frozenset(),
        besides: frozenset[str] = frozenset(),
    ) -> FindResult:
        self.asked.append((tuple(models), deadline_s))
        await trio.sleep(min(self.find_s, deadline_s))
        if not features and not peers:
            return FindResult(self.records, self.complete)
        self.sought.append((features, peers))
        return FindResult(self.more, self.complete)

    @contextmanager
    def keep_fresh(self, model: NamedModel) -> Iterator[None]:
        self.kept_fresh.append(model)
        yield
        self.kept_fresh.remove(model)

    def known(self) -> Sequence[DonorRecord]:
        return self.records

    def mark_failed(self, peer_id: str) -> None:
        self.failed.append(peer_id)


@dataclass
class Network:
    """`NetworkRoutes` over a fixed source; `opened` are the donors that were really opened."""

    source: FixedSource
    own: list[OwnModel] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    now: float = NOW
    trust: Trust = NO_TRUST
    names: ModelNames = field(default_factory=ModelNames)

    @property
    def routes(self) -> NetworkRoutes:
        return NetworkRoutes(
            lambda: self.names,
            lambda: self.own,
            self.source,
            self.open_donor,
            trust=self.read_trust,
            why_nobody=lambda: "This peer is alone.",
            now=lambda: self.now,
        )

    def read_trust(self) -> Trust:
        return self.trust

    def open_donor(self, record: DonorRecord) -> Answerer:
        self.opened.append(record.peer_id)
        return EchoEngine()


async def test_a_donor_is_a_candidate_with_its_own_figures() -> None:
    alice = record_of("alice", TINY_MODEL, load=Load(DonorState.ACCEPTING, 4, 200.0, 50.0))
    network = Network(FixedSource((alice,)))
    (route,) = await network.routes.find(KNOWN.name, ANYTHING)
    candidate = route.candidate
    assert (candidate.donor, candidate.artifact) == (alice.peer_id, KNOWN.artifact)
    assert (candidate.template, candidate.rank) == (KNOWN.template, 0)
    assert (candidate.queue, candidate.prefill_tps, candidate.decode_tps) == (4, 200.0, 50.0)
    assert candidate.rtt_s == 0.02
    assert candidate.is_accepting
    assert network.source.asked == [(ModelNames().resolve(KNOWN.name), SEARCH_DEADLINE_S)]


async def test_a_donor_is_opened_only_when_it_is_chosen() -> None:
    alice, bob = record_of("alice", TINY_MODEL), record_of("bob", TINY_MODEL)
    network = Network(FixedSource((alice, bob)))
    routes = await network.routes.find(KNOWN.name, ANYTHING)
    assert network.opened == []
    routes[1].open()
    assert network.opened == [bob.peer_id]


async def test_figures_that_are_too_old_count_as_unknown() -> None:
    alice = record_of("alice", TINY_MODEL, load=Load(DonorState.YIELDING, 4, 200.0, 50.0))
    network = Network(FixedSource((alice,)))
    (fresh,) = await network.routes.find(KNOWN.name, ANYTHING)
    assert not fresh.candidate.is_accepting
    network.now = NOW + 3600
    (old,) = await network.routes.find(KNOWN.name, ANYTHING)
    assert (old.candidate.queue, old.candidate.decode_tps) == (0, 0.0)
    assert old.candidate.is_accepting, "nobody knows that it is not"


async def test_only_the_right_bytes_answer_a_name() -> None:
    donor = record_of("alice", IMPOSTOR, OTHER_TEMPLATE, STRANGE, TINY_MODEL)
    routes = await Network(FixedSource((donor,))).routes.find(KNOWN.name, ANYTHING)
    assert [route.candidate.artifact for route in routes] == [KNOWN.artifact]
    assert [route.candidate.template for route in routes] == [KNOWN.template]


async def test_a_pin_reaches_a_model_that_is_not_known_here() -> None:
    network = Network(FixedSource((record_of("alice", TINY_MODEL, STRANGE),)))
    (route,) = await network.routes.find(f"strange-model@sha256:{STRANGE.artifact[:12]}", ANYTHING)
    assert route.candidate.artifact == STRANGE.artifact
    with pytest.raises(ModelNotFound):
        await network.routes.find("strange-model", ANYTHING)


async def test_the_own_engine_is_a_route_and_others_are_not_waited_for() -> None:
    engine = EchoEngine()
    network = Network(FixedSource((record_of("alice", TINY_MODEL),)))
    network.own = [OwnModel(STRANGE, EchoEngine(), 0), OwnModel(TINY_MODEL, engine, 3)]
    own, other = await network.routes.find("auto", ANYTHING)
    assert own.candidate.is_own
    assert own.candidate.queue == 3
    assert own.open() is engine
    assert not other.candidate.is_own
    assert network.source.asked[0][1] == OWN_SEARCH_DEADLINE_S


@pytest.mark.parametrize(
    ("complete", "error"), [(True, NoDonorForModel), (False, SearchIncomplete)]
)
async def test_nobody_is_certain_only_after_a_complete_search(
    complete: bool, error: type[TokenplaceError]
) -> None:
    network = Network(FixedSource((), complete))
    with pytest.raises(error) as caught:
        await network.routes.find(KNOWN.name, ANYTHING)
    assert "This peer is alone." in caught.value.user_text
    assert caught.value.retry_after_s


async def test_a_donor_in_doubt_has_to_prove_that_it_lives_but_not_the_own_engine() -> None:
    alice = record_of("alice", TINY_MODEL)
    network = Network(FixedSource((alice,)), own=[OwnModel(TINY_MODEL, EchoEngine(), 0)])
    own, other = await network.routes.find(KNOWN.name, ANYTHING)
    network.routes.failed(own.candidate, ConnectionLost())
    network.routes.failed(other.candidate, ConnectionLost())
    assert network.source.failed == [alice.peer_id]


def test_what_is_offered_now_names_this_peer_first() -> None:
    network = Network(FixedSource((record_of("alice", STRANGE),)))
    network.own = [OwnModel(TINY_MODEL, EchoEngine(), 0)]
    assert [offered.name for offered in network.routes.offered_now()] == [
        KNOWN.name,
        "strange-model",
    ]


@pytest.mark.parametrize(
    ("wanted", "rank"),
    [
        ([NamedModel("tiny", KNOWN.artifact)], 0),
        ([NamedModel("tiny", KNOWN.artifact[:12])], 0),
        ([NamedModel("tiny", KNOWN.artifact, KNOWN.template)], 0),
        ([NamedModel("tiny", KNOWN.artifact, "0" * 64)], None),
        ([NamedModel("tiny", "f" * 12)], None),
        ([NamedModel(KNOWN.name)], None),
        ([NamedModel("big", "f" * 64), NamedModel("tiny", KNOWN.artifact)], 1),
        ([], None),
    ],
)
def test_the_artifact_decides_the_rank(wanted: list[NamedModel], rank: int | None) -> None:
    assert rank_of(TINY_MODEL, wanted) == rank


async def test_a_search_ends_in_time_though_it_takes_two(autojump_clock: MockClock) -> None:
    """The second has what the first left; what is known counts."""
    alice, bob = record_of("alice", TOOL_MODEL), record_of("bob", TOOL_MODEL)
    source = FixedSource((alice,), more=(bob,), find_s=0.3)
    network = Network(source, trust=Trust({bob.peer_id: ""}))
    (route,) = await network.routes.find(KNOWN.name, WITH_TOOLS, within_s=0.5)
    assert route.candidate.donor == bob.peer_id
    assert trio.current_time() == pytest.approx(0.5)
    assert [deadline_s for _, deadline_s in source.asked] == pytest.approx([0.5, 0.2])


async def test_who_is_asked_has_its_twins_kept_fresh_and_says_its_room() -> None:
    """Of `auto`, which may be any of many models, those of what is asked."""
    alice = record_of("alice", TINY_MODEL)
    network = Network(FixedSource((alice,)), own=[OwnModel(TINY_MODEL, EchoEngine(), 0)])
    own, other = await network.routes.find("auto", ANYTHING)
    assert own.candidate.n_ctx == other.candidate.n_ctx == TINY_MODEL.n_ctx
    with other.asking():
        assert network.source.kept_fresh == [NamedModel(KNOWN.name, KNOWN.artifact, KNOWN.template)]
        with own.asking():
            assert len(network.source.kept_fresh) == 1, "the own engine has no part in the network"
    assert not network.source.kept_fresh


# ---------------------------------------------------------------- wishes and trust

WITH_TOOLS = demand_of(
    make_request(input=ChatInput((ChatMessage("user", "x"),), (Tool("look_up", "", "{}"),)))
)


async def donors_for(network: Network, demand: Demand, model: str = KNOWN.name) -> list[str]:
    return [route.candidate.called for route in await network.routes.find(model, demand)]


async def test_a_candidate_says_what_the_model_can_do_and_what_it_is_called() -> None:
    offered = dataclasses.replace(TOOL_MODEL, name="other-name", quant="Q4_1")
    network = Network(FixedSource((record_of("alice", offered),)))
    network.own = [OwnModel(offered, EchoEngine(), 1, 50.0, 5.0)]
    own, other = await network.routes.find("auto", ANYTHING)
    for candidate in (own.candidate, other.candidate):
        assert candidate.name == KNOWN.name, "as this user's tables call it, not as the donor does"
        assert candidate.served == f"{KNOWN.name}@sha256:{KNOWN.artifact[:12]}"
        assert candidate.features == ("chat", "tools", "grammar")
        assert candidate.quantization == "Q4_1"
    assert (own.candidate.prefill_tps, own.candidate.decode_tps) == (50.0, 5.0)


async def test_tools_go_to_trusted_donors_as_they_are_trusted_now() -> None:
    alice, bob = record_of("alice", TOOL_MODEL), record_of("bob", TOOL_MODEL)
    network = Network(FixedSource((alice, bob)))
    with pytest.raises(UntrustedDonorTools) as caught:
        await donors_for(network, WITH_TOOLS)
    assert caught.value.http_status == 403
    assert alice.peer_id in caught.value.hint
    assert network.source.sought == [], "nobody else could be found to be trusted"
    network.trust = Trust({bob.peer_id: "laptop"})
    assert await donors_for(network, WITH_TOOLS) == [bob.peer_id]
    network.trust = Trust(tools_from=ToolsFrom.ANY)
    assert await donors_for(network, WITH_TOOLS) == [alice.peer_id, bob.peer_id]


async def test_a_damaged_list_of_trust_stops_only_what_needs_it() -> None:
    class Damaged(Network):
        def read_trust(self) -> Trust:
            raise ConfigError("trust.json is damaged.")

    alice = record_of("alice", TOOL_MODEL)
    network = Damaged(FixedSource((alice,)))
    assert await donors_for(network, ANYTHING) == [alice.peer_id]
    with pytest.raises(ConfigError):
        await donors_for(network, WITH_TOOLS)


async def test_whom_the_user_does_not_trust_any_more_may_not_answer() -> None:
    """Also if it was trusted when it was asked first."""
    alice = record_of("alice", TOOL_MODEL)
    network = Network(FixedSource((alice,)), trust=Trust({alice.peer_id: ""}))
    (route,) = await network.routes.find(KNOWN.name, WITH_TOOLS)
    assert route.may_answer(WITH_TOOLS)
    network.trust = NO_TRUST
    (route,) = await network.routes.find(KNOWN.name, ANYTHING)
    assert route.may_answer(ANYTHING)
    assert not route.may_answer(WITH_TOOLS)


async def test_the_own_engine_is_trusted() -> None:
    network = Network(FixedSource((record_of("alice", TOOL_MODEL),)))
    network.own = [OwnModel(TOOL_MODEL, EchoEngine(), 0)]
    assert await donors_for(network, WITH_TOOLS) == ["self"]


async def test_a_trusted_donor_that_is_not_known_yet_is_looked_for() -> None:
    alice, bob = record_of("alice", TOOL_MODEL), record_of("bob", TOOL_MODEL)
    network = Network(FixedSource((alice,), more=(bob,)), trust=Trust({bob.peer_id: ""}))
    assert await donors_for(network, WITH_TOOLS) == [bob.peer_id]
    assert network.source.sought == [(WITH_TOOLS.features, frozenset({bob.peer_id}))]
    assert [deadline_s for _, deadline_s in network.source.asked] == [SEARCH_DEADLINE_S] * 2


async def test_nobody_at_all_is_no_matter_of_trust() -> None:
    with pytest.raises(NoDonorForModel):
        await donors_for(Network(FixedSource()), WITH_TOOLS)


async def test_a_model_that_cannot_is_named() -> None:
    network = Network(FixedSource((record_of("alice", TINY_MODEL),)))
    with pytest.raises(InvalidRequest, match=f"{KNOWN.name}.* cannot call tools") as caught:
        await donors_for(network, WITH_TOOLS)
    assert (caught.value.http_status, caught.value.param) == (400, "tools")
    assert network.source.sought == [], "the same bytes can do the same everywhere"


async def test_auto_is_the_best_that_can_do_it() -> None:
    small = dataclasses.replace(STRANGE, features=("embeddings",))
    names = ModelNames(
        Table({"vectors": LocalModel("vectors", Path("/v"), small.artifact, "", 1, 1)})
    )
    network = Network(FixedSource((record_of("alice", TINY_MODEL),)), names=names)
    embed = demand_of(EmbedRequest("auto", ("x",)))
    with pytest.raises(InvalidRequest, match="makes no embeddings"):
        await donors_for(network, embed, "auto")
    assert network.source.sought == [(frozenset({"embeddings"}), frozenset())], "one may be found"
    network.source.records = (record_of("alice", TINY_MODEL, small),)
    chat = demand_of(make_request(input=ChatInput((ChatMessage("user", "x"),))))
    for asked, served in ((embed, "vectors"), (chat, KNOWN.name)):
        routes = await network.routes.find("auto", asked)
        assert [route.candidate.name for route in routes] == [served]


async def test_who_ignores_the_own_engine_waits_for_another() -> None:
    alice = record_of("alice", TINY_MODEL)
    network = Network(FixedSource((), more=(alice,)))
    network.own = [OwnModel(TINY_MODEL, EchoEngine(), 0)]
    demand = Demand(features_of("chat"), wishes=Wishes(ignore=("self",)))
    assert await donors_for(network, demand) == [alice.peer_id]
    network.source.more = ()
    with pytest.raises(NoDonorAsWished, match="`ignore` excludes 1"):
        await donors_for(network, demand)
