"""An answer that goes on with another donor, over real hosts on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import trio

from tests.answerers import answerer_of
from tests.peer.exchange_lab import NETWORK, no_renewal
from tests.peer.hosts import LOOPBACK, open_asking_host
from tests.router.given import GivenRouter, GivenRoutes
from tests.router.mortal import REQUEST, Mortal, accepted_of, choices_of, collect
from tests.router.mortal import router_over as router_over_fakes
from tokenplace.engine.fake import FakeEngine
from tokenplace.generation import Finished, Tokens
from tokenplace.peer.admission import Admission
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.suites import best_key

LONG = replace(REQUEST, max_tokens=250)  # 2.5 s: a host takes a moment to leave


@dataclass
class Donating:
    """A donor on a host of its own. streams: those that it has served."""

    host: PeerHost
    engine: FakeEngine = field(default_factory=FakeEngine)
    streams: list[PeerStream] = field(default_factory=list)
    key_ring: KeyRing = field(default_factory=KeyRing)
    epochs: Epochs = field(default_factory=Epochs)

    def __post_init__(self) -> None:
        self._donor = Donor(
            network=NETWORK,
            donor_id=self.host.identity.peer_id_bytes,
            key_ring=self.key_ring,
            epochs=self.epochs,
            models=lambda: {self.engine.model.artifact: answerer_of(self.engine)},
            admission=Admission(),
            signed_keys=lambda: b"",
            signed_live=lambda: b"",
            clock=trio.current_time,
        )
        self.host.set_stream_handler(GENERATE_PROTOCOL, self._handle)

    async def _handle(self, stream: PeerStream) -> None:
        self.streams.append(stream)
        await self._donor.handle(stream)

    def remote(self, asker: PeerHost, addrs: Sequence[str]) -> RemoteDonor:
        now = trio.current_time()
        key = best_key(self.key_ring.advertised(now).keys)
        assert key is not None
        return RemoteDonor(
            peer_id=self.host.peer_id,
            donor_id=self.host.identity.peer_id_bytes,
            open_stream=partial(asker.open_stream, self.host.peer_id, GENERATE_PROTOCOL, addrs),
            target=SealTarget(key, self.epochs.current(now)),
            network=NETWORK,
            renew=no_renewal,
        )


class HostRoutes(GivenRoutes):
    """Routes to donors, in order of preference."""

    def __init__(self, asker: PeerHost, donors: Sequence[Donating]) -> None:
        super().__init__()
        self.asker = asker
        self.donors = donors
        self._addrs = [donor.host.addrs() for donor in self.donors]  # known also when it is gone

    def given(self, demand: Demand) -> Sequence[Route]:
        return [self._route(rank) for rank in range(len(self.donors))]

    def _route(self, rank: int) -> Route:
        donor = self.donors[rank]
        model = donor.engine.model
        candidate = Candidate(
            donor=donor.host.peer_id,
            artifact=model.artifact,
            template=model.template,
            rank=rank,
            queue=0,
            prefill_tps=0.0,
            decode_tps=0.0,
            rtt_s=None,
            is_accepting=True,
        )
        return Route(candidate, partial(donor.remote, self.asker, self._addrs[rank]))


async def donate(
    leave: trio.Event, task_status: trio.TaskStatus[Donating] = trio.TASK_STATUS_IGNORED
) -> None:
    """A donor that is there until it is told to leave."""
    async with open_host(throwaway_identity(), listen=(LOOPBACK,)) as host:
        task_status.started(Donating(host))
        await leave.wait()


@pytest.mark.parametrize("what_breaks", ["the stream", "the host"])
async def test_the_app_sees_one_answer(what_breaks: str) -> None:
    uncut = await collect(router_over_fakes(Mortal()), LONG)
    leave_alice, leave_bob = trio.Event(), trio.Event()
    async with open_asking_host() as asker, trio.open_nursery() as nursery:
        alice: Donating = await nursery.start(donate, leave_alice)
        bob: Donating = await nursery.start(donate, leave_bob)
        routes = HostRoutes(asker, [alice, bob])
        router = GivenRouter(routes)
        events = []
        is_broken = False
        async with router.generate(LONG) as answer:
            async for event in answer:
                events.append(event)
                # Tokens of one tick come together, so no place is sure to begin an event.
                if isinstance(event, Tokens) and event.index >= 5 and not is_broken:
                    is_broken = True
                    if what_breaks == "the stream":
                        await alice.streams[0].reset()
                    else:
                        leave_alice.set()
        leave_alice.set()
        leave_bob.set()
    went_on = alice if what_breaks == "the stream" else bob
    donors = [each.donor for each in accepted_of(events)]
    assert donors == [alice.host.peer_id, went_on.host.peer_id]
    assert went_on.engine.requests[-1].resume
    assert choices_of(events) == choices_of(uncut)
    end, uncut_end = events[-1], uncut[-1]
    assert isinstance(end, Finished)
    assert isinstance(uncut_end, Finished)
    assert (end.choices, end.usage) == (uncut_end.choices, uncut_end.usage)
    assert router.attempts[0].outcome == "connection_lost"
    assert router.attempts[-1].outcome == "finished"
