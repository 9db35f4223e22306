"""The serving half of a peer: a listening host with the lasting identity, the DHT as a server, the
directory, and the donor's side of the exchange. Start at `open_serving`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tokenplace.dht.announce import Announcer, open_announcer
from tokenplace.dht.bootstrap import BootstrapList, Joiner
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.finder import Finder, open_finder
from tokenplace.dht.kad import Kad
from tokenplace.dht.known_peers import KnownPeers, open_remembering
from tokenplace.dht.news import Herald
from tokenplace.node.donating import Donations
from tokenplace.node.proving import Prober, ReachPolicy, open_prober
from tokenplace.peer.admission import Admission
from tokenplace.peer.background import open_background
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import Identity
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.clock import ElapsedClock
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Serving:
    """The running serving half."""

    host: PeerHost
    kad: Kad
    joiner: Joiner
    donor: Donor
    finder: Finder
    announcer: Announcer
    herald: Herald
    prober: Prober

    async def leave(self) -> None:
        """Say that this peer stops: to those connected, and to those who stored its records."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.herald.tell)
            nursery.start_soon(self.announcer.leave, self.kad)

    async def withdraw(self) -> None:
        """Offer nothing from now on, and take back what the DHT knows; soon done, see there."""
        await self.announcer.withdraw(self.kad)


@asynccontextmanager
async def open_serving(
    network: str,
    identity: Identity,
    listen: tuple[str, ...],
    bootstrap: BootstrapList,
    known: KnownPeers,
    donations: Donations,
    reach: ReachPolicy,
    say: Callable[[str], None],
    *,
    allow_private: bool,
) -> AsyncIterator[Serving]:
    """Serve until the block exits; then say goodbye to those who could still send requests here.

    The DHT is served, and addresses are announced, once others are known to reach them.
    """
    clock = ElapsedClock(time.monotonic, time.time)
    key_ring = KeyRing()
    epochs = Epochs()
    async with (
        open_host(identity, listen=listen) as host,
        open_prober(host, network, reach, say, allow_private=allow_private, clock=clock) as (
            prober,
            kad,
        ),
        open_background() as background,
    ):
        known.leave_out(host.peer_id)
        joiner = Joiner(host, kad, bootstrap, known.peers)
        announcer = Announcer(
            identity=identity,
            network=network,
            addrs=prober.announced,
            models=donations.offered,
            public_keys=lambda: key_ring.advertised(clock()),
            load=donations.load,
            epoch=lambda: epochs.current(clock()),
            clock=clock,
        )
        donor = Donor(
            network=network,
            donor_id=identity.peer_id_bytes,
            key_ring=key_ring,
            epochs=epochs,
            models=donations.models,
            admission=Admission(),
            signed_keys=announcer.signed_keys,
            signed_live=announcer.signed_live,
            clock=clock,
        )
        cache = DirectoryCache(
            network, allow_private=allow_private, own_peers=frozenset({identity.peer_id})
        )
        Directory(cache, identity.peer_id, announcer.own).serve_on(host)
        host.set_stream_handler(GENERATE_PROTOCOL, donor.handle)
        background.start_soon(joiner.run)
        # Not the directory of the asking half: that one would show what this user looks for.
        async with (
            open_finder(host, kad, joiner, cache, network=network) as finder,
            open_announcer(announcer, kad),
            open_remembering(known, kad, finder),
        ):
            herald = Herald(host, announcer)
            background.start_soon(herald.run)
            yield Serving(host, kad, joiner, donor, finder, announcer, herald, prober)
