"""Where a model can be had: this peer's own engines and the donors it knows. Start at
`NetworkRoutes`.

A name means what this peer's tables say it means; what only donors claim never answers a bare name
(docs/protocol.md, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import trio

from tokenplace.dht.donors import DonorRecord
from tokenplace.dht.finder import FindResult
from tokenplace.errors import NoDonorForModel, SearchIncomplete, TokenplaceError
from tokenplace.models.names import ModelNames, NamedModel
from tokenplace.operations import Answerer
from tokenplace.peer.adverts import DonorState, OfferedModel
from tokenplace.router.demand import Demand, screen, sought
from tokenplace.router.groups import groups_of
from tokenplace.router.policy import Candidate, rank_of
from tokenplace.router.route import RETRY_AFTER_S, Route
from tokenplace.router.trust import NO_TRUST, Trust

SEARCH_DEADLINE_S: Final = 10.0
OWN_SEARCH_DEADLINE_S: Final = 0.0  # the own engine answers: others are asked only if known already


class DonorSource(Protocol):
    """What is needed of `dht.finder.Finder`."""

    async def find(
        self,
        models: Sequence[NamedModel],
        *,
        deadline_s: float,
        features: frozenset[str] = frozenset(),
        peers: frozenset[str] = frozenset(),
        besides: frozenset[str] = frozenset(),
    ) -> FindResult:
        """Donors of any of these models with all of these features, if `peers` is not empty only
        among these, and none of `besides`; from memory if there are some, else by searching.
        """

    def keep_fresh(self, model: NamedModel) -> AbstractContextManager[None]:
        """Until the block exits, stay informed of this model's donors."""

    def known(self) -> Sequence[DonorRecord]:
        """All donors that are known now."""

    def mark_failed(self, peer_id: str) -> None:
        """This donor may be gone, or not be as it says: wait for its own word."""


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A model that this very peer serves. queue: requests that wait for it now. prefill_tps,
    decode_tps: tokens/s, 0 if unknown.
    """

    offered: OfferedModel
    answerer: Answerer
    queue: int
    prefill_tps: float = 0.0
    decode_tps: float = 0.0

    def open(self) -> Answerer:
        """The engine itself."""
        return self.answerer


class NetworkRoutes:
    """Routes for the router (`router.Routes`), over own engines and a source of donors."""

    def __init__(
        self,
        names: Callable[[], ModelNames],
        own_models: Callable[[], Sequence[OwnModel]],
        source: DonorSource,
        open_donor: Callable[[DonorRecord], Answerer],
        *,
        trust: Callable[[], Trust],
        why_nobody: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        """
        names, own_models, trust: as they are now. open_donor: what reaches this donor.
        why_nobody: explains an empty search. now: unix seconds.
        """
        self._names = names
        self._own_models = own_models
        self._source = source
        self._open_donor = open_donor
        self._trust = trust
        self._why_nobody = why_nobody
        self._now = now

    async def find(
        self,
        model: str,
        demand: Demand,
        *,
        within_s: float = math.inf,
        besides: frozenset[str] = frozenset(),
    ) -> Sequence[Route]:
        """See `router.Routes`."""
        ends_at = trio.current_time() + within_s
        wanted = self._names().resolve(model)
        trust = self._trust_for(demand)
        own = list(self._own_routes(wanted))
        # With a donor that was heard of lately this neither waits nor asks anybody.
        deadline_s = OWN_SEARCH_DEADLINE_S if own else SEARCH_DEADLINE_S
        result = await self._source.find(
            wanted, deadline_s=min(deadline_s, within_s), besides=besides
        )
        routes = [*own, *self._routes_to(result.donors, wanted)]
        if not routes:
            error = NoDonorForModel if result.complete else SearchIncomplete
            raise error(self._why_nobody(), retry_after_s=RETRY_AFTER_S)
        try:
            return _screened(routes, demand, trust)
        except TokenplaceError:
            # Whoever is known will not do; somebody who does may only have to be found.
            others = sought(demand, trust)
            if others is None or not (own or others.peers or len(wanted) > 1):
                raise
        left_s = max(ends_at - trio.current_time(), 0.0)
        more = await self._source.find(
            wanted,
            deadline_s=min(SEARCH_DEADLINE_S, left_s),
            features=others.features,
            peers=others.peers,
            besides=besides,
        )
        records = {record.peer_id: record for record in (*result.donors, *more.donors)}
        routes = [*own, *self._routes_to(records.values(), wanted)]
        return _screened(routes, demand, trust)

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """See `route.Routes`."""
        if candidate.donor:
            self._source.mark_failed(candidate.donor)

    def offered_now(self) -> Iterator[OfferedModel]:
        """Every model that somebody offers now, this peer first."""
        for own in self._own_models():
            yield own.offered
        for record in self._source.known():
            yield from record.offer.models

    def _own_routes(self, wanted: Sequence[NamedModel]) -> Iterator[Route]:
        for own in self._own_models():
            if (rank := rank_of(own.offered, wanted)) is None:
                continue
            candidate = Candidate(
                donor="",
                artifact=own.offered.artifact,
                template=own.offered.template,
                rank=rank,
                queue=own.queue,
                prefill_tps=own.prefill_tps,
                decode_tps=own.decode_tps,
                rtt_s=0.0,
                is_accepting=True,
                name=wanted[rank].name,
                features=own.offered.features,
                quantization=own.offered.quant,
                n_ctx=own.offered.n_ctx,
            )
            yield Route(candidate, own.open)

    def _routes_to(
        self, donors: Iterable[DonorRecord], wanted: Sequence[NamedModel]
    ) -> Iterator[Route]:
        records = list(donors)
        groups = groups_of({record.peer_id: record.addrs for record in records})
        now = self._now()
        for record in records:
            load = record.load(now)
            heard_at = record.live_received_at
            for offered in record.offer.models:
                if (rank := rank_of(offered, wanted)) is None:
                    continue
                candidate = Candidate(
                    donor=record.peer_id,
                    artifact=offered.artifact,
                    template=offered.template,
                    rank=rank,
                    queue=load.queue if load else 0,
                    prefill_tps=load.prefill_tps if load else 0.0,
                    decode_tps=load.decode_tps if load else 0.0,
                    rtt_s=record.rtt_s,
                    is_accepting=load is None or load.state is DonorState.ACCEPTING,
                    name=wanted[rank].name,
                    features=offered.features,
                    quantization=offered.quant,
                    group=groups[record.peer_id],
                    load_age_s=now - heard_at if load and heard_at is not None else None,
                    n_ctx=offered.n_ctx,
                )
                same = NamedModel(wanted[rank].name, offered.artifact, offered.template)
                yield Route(
                    candidate,
                    partial(self._open_donor, record),
                    partial(self._may_answer, candidate),
                    partial(self._source.keep_fresh, same),
                )

    def _may_answer(self, candidate: Candidate, demand: Demand) -> bool:
        """Does it pass by what the user says now?"""
        try:
            return bool(screen([candidate], demand, self._trust_for(demand)))
        except TokenplaceError:
            return False

    def _trust_for(self, demand: Demand) -> Trust:
        # Nothing but tools is a matter of trust, so a damaged list must not stop anything else.
        return self._trust() if demand.has_tools else NO_TRUST


def _screened(routes: Sequence[Route], demand: Demand, trust: Trust) -> list[Route]:
    passed = set(screen([route.candidate for route in routes], demand, trust))
    return [route for route in routes if route.candidate in passed]
