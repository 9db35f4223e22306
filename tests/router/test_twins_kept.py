"""Who could go on with an answer is known when it is cut, however long it was: a real finder, with
routes and a router over it, in virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock

from tests.dht.finder_lab import Network, now, open_finder_in
from tests.router.given import GivenRouter
from tests.router.mortal import REQUEST, Death, Mortal, MortalRoutes, choices_of, collect
from tokenplace import defaults
from tokenplace.dht.finder import Finder
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import DonorBusy, DonorSilent
from tokenplace.generation import Tokens
from tokenplace.models.catalogue import CATALOGUE
from tokenplace.models.names import ModelNames, NamedModel
from tokenplace.operations import CountRequest
from tokenplace.peer.adverts import OfferedModel
from tokenplace.peer.streams import PeerStream
from tokenplace.router.demand import Demand
from tokenplace.router.route import Route
from tokenplace.router.routes import NetworkRoutes
from tokenplace.router.trust import NO_TRUST

KNOWN = CATALOGUE[0]
OFFERED = OfferedModel(KNOWN.name, KNOWN.artifact, KNOWN.template, "test", 4096, ("chat",))
SLOW = FakeModel(KNOWN.name, KNOWN.artifact, KNOWN.template, prefill_tps=1e6, decode_tps=1.0)
LONG = replace(REQUEST, model=KNOWN.name, max_tokens=400)
COUNT = CountRequest(KNOWN.name, REQUEST.input, REQUEST.as_of)
CUT_S = 240  # long after the last search, and between two idle refreshes


@dataclass(eq=False)
class Far(Network):
    """Everybody's answers take longer than a search for a twin may."""

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        await trio.sleep(1.4 * defaults.TWIN_SEARCH_S)
        return await super().open_stream(peer_id, protocol, addrs)


@asynccontextmanager
async def open_router(
    network: Network, *donors: Mortal
) -> AsyncIterator[tuple[GivenRouter, Finder]]:
    """Over a finder that has met a peer for each of the donors, and whom nobody tells any more."""
    reach = {network.add(f"donor {n}"): donor for n, donor in enumerate(donors)}
    for peer_id in reach:
        network.donors[peer_id].models = [OFFERED]
    network.in_dht = list(reach)
    async with open_finder_in(network) as finder:
        await finder.find([NamedModel(KNOWN.name, KNOWN.artifact)])
        await trio.sleep(2)
        assert len(finder.known()) == len(donors)
        network.in_dht = []
        routes = NetworkRoutes(
            ModelNames,
            lambda: [],
            finder,
            lambda record: reach[record.peer_id],
            trust=lambda: NO_TRUST,
            why_nobody=lambda: "",
            now=now,
        )
        yield GivenRouter(routes, now), finder


def dying() -> Mortal:
    """Of two, whoever is asked first dies; the other has the whole rest."""
    return Mortal([Death(1 + CUT_S, DonorSilent())], FakeEngine(SLOW))


async def test_donors_of_a_model_stay_fresh_while_it_answers(autojump_clock: MockClock) -> None:
    network = Network()
    engines = [Mortal(engine=FakeEngine(SLOW)) for _ in range(2)]
    async with open_router(network, *engines) as (router, finder):
        async with router.generate(LONG) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    assert all(record.load(now()) for record in finder.known())
        assert trio.current_time() > 400
        await trio.sleep(defaults.ASKED_FOR_S - 1)
        assert all(record.load(now()) for record in finder.known()), "as after any search"
        await trio.sleep(defaults.REFRESH_ASKED_S + 30)
        assert not any(record.load(now()) for record in finder.known())


async def test_an_answer_keeps_its_donors_fresh_until_the_last_of_several_ends(
    autojump_clock: MockClock,
) -> None:
    model = NamedModel(KNOWN.name, KNOWN.artifact)
    async with open_finder_in(Network()) as finder:
        with finder.keep_fresh(model):
            with finder.keep_fresh(model):
                await trio.sleep(2 * defaults.ASKED_FOR_S)
            await trio.sleep(2 * defaults.ASKED_FOR_S)
            (wanted,) = finder.asked_lately()
            assert wanted.models == (model,)
        await trio.sleep(defaults.ASKED_FOR_S + 1)
        assert finder.asked_lately() == []


async def test_a_long_answer_goes_on_with_a_twin_at_once(autojump_clock: MockClock) -> None:
    async with open_router(Far(), dying(), dying()) as (router, _):
        longest_s, last_at = 0.0, math.inf
        async with router.generate(replace(LONG, max_tokens=CUT_S + 50)) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    longest_s = max(longest_s, trio.current_time() - last_at)
                    last_at = trio.current_time()
        assert [attempt.n_tokens for attempt in router.attempts] == [CUT_S, 50]
        assert longest_s < 1 / SLOW.decode_tps + defaults.TWIN_SEARCH_S / 2, "nobody was sought"


async def test_a_twin_of_which_nothing_was_heard_lately_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Its sign of life takes longer than the app is kept waiting: it is asked without."""
    monkeypatch.setattr(defaults, "REFRESH_ASKED_S", 10 * CUT_S)
    monkeypatch.setattr(defaults, "REFRESH_IDLE_S", 10 * CUT_S)
    async with open_router(Far(), dying(), dying()) as (router, _):
        events = await collect(router, replace(LONG, max_tokens=CUT_S + 5))
        assert len(choices_of(events)[0].ids) == CUT_S + 5
        assert [attempt.n_tokens for attempt in router.attempts] == [CUT_S, 5]


@pytest.mark.parametrize("n_tokens", [0, 3])
async def test_a_twin_that_had_failed_and_is_back_is_found_when_it_is_needed(
    n_tokens: int, autojump_clock: MockClock
) -> None:
    """Soon after its failure, when nobody has asked it for a sign of life yet; and the donor that
    has just died still looks as if it lived."""
    network = Network()
    mortal = Mortal([Death(1 + n_tokens, DonorSilent())], FakeEngine(SLOW))
    twin = Mortal(engine=FakeEngine(SLOW))
    async with open_router(network, mortal, twin) as (router, finder):
        _, back = network.donors
        finder.mark_failed(back)
        assert len(finder.known()) == 1
        events = await collect(router, replace(LONG, max_tokens=10))
    assert len(choices_of(events)[0].ids) == 10
    assert [attempt.n_tokens for attempt in router.attempts] == [n_tokens, 10 - n_tokens]


async def test_where_all_are_busy_nobody_else_is_sought(autojump_clock: MockClock) -> None:
    network = Network()
    busy = Mortal([Death(0, DonorBusy(retry_after_s=2.0))], FakeEngine(SLOW))
    async with open_router(network, busy, Mortal(engine=FakeEngine(SLOW))) as (router, finder):
        _, failed = network.donors
        finder.mark_failed(failed)
        n_before = network.n_asked_since(0.0)
        with pytest.raises(DonorBusy):
            await collect(router, LONG)
        assert network.n_asked_since(0.0) == n_before


async def test_a_whole_answer_keeps_its_donors_fresh_too(autojump_clock: MockClock) -> None:
    class Counting(Mortal):
        async def count(self, request: CountRequest) -> int:
            await trio.sleep(CUT_S)
            return 7

    async with open_router(Network(), Counting(engine=FakeEngine(SLOW))) as (router, finder):
        assert await router.count(COUNT) == 7
        assert all(record.load(now()) for record in finder.known())


async def test_routes_that_overstay_their_time_do_not_keep_the_app_waiting(
    autojump_clock: MockClock,
) -> None:
    class Late(MortalRoutes):
        async def find(
            self,
            model: str,
            demand: Demand,
            *,
            within_s: float = math.inf,
            besides: frozenset[str] = frozenset(),
        ) -> Sequence[Route]:
            return await super().find(model, demand)

    dead = Mortal([Death(0, DonorSilent())])
    routes = Late(dead, Mortal(), search_s=60)
    with pytest.raises(DonorSilent):
        await collect(GivenRouter(routes, now))
    expected_s = defaults.NEXT_SEARCH_S + defaults.SEARCH_GRACE_S
    assert trio.current_time() == pytest.approx(expected_s)
