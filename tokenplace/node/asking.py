"""The asking half of a peer: a dial-only host with a throw-away key, the DHT as a client, the
search for donors.

Start at `open_asking`. Nothing a donor needs depends on who asks, so nothing lasting is shown to it
(docs/protocol.md, section 1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import base58

from tokenplace.dht.bootstrap import BootstrapList, Joiner
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.dht.finder import Finder, open_finder
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.known_peers import KnownPeers, open_remembering
from tokenplace.operations import Answerer
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import Identity
from tokenplace.peer.reach import ReachService
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.epochs import EPOCH_BYTES
from tokenplace.sealing.suites import best_key


@dataclass(frozen=True, slots=True)
class Asking:
    """The running asking half."""

    host: PeerHost
    kad: Kad
    finder: Finder
    joiner: Joiner
    network: str

    def open_donor(self, record: DonorRecord) -> Answerer:
        """What reaches the donor of `record` with one sealed exchange a request."""

        async def open_stream() -> PeerStream:
            return await self.host.open_stream(record.peer_id, GENERATE_PROTOCOL, record.addrs)

        async def renew(keys: bytes | None, live: bytes | None) -> SealTarget | None:
            renewed = await self.finder.renew(record.peer_id, keys, live)
            return None if renewed is None else target_of(renewed)

        return RemoteDonor(
            peer_id=record.peer_id,
            donor_id=base58.b58decode(record.peer_id),
            open_stream=open_stream,
            target=target_of(record),
            network=self.network,
            renew=renew,
        )


def target_of(record: DonorRecord) -> SealTarget:
    """What a request to this donor is sealed to: its best key, and its last known epoch."""
    keys = record.keys.keys
    key = best_key(keys) or keys[0]  # sealing to one that it cannot use is the donor's fault
    return SealTarget(key, record.live.epoch if record.live else bytes(EPOCH_BYTES))


@asynccontextmanager
async def open_asking(
    network: str,
    identity: Identity,
    bootstrap: BootstrapList,
    known: KnownPeers,
    *,
    allow_private: bool,
    own_peers: frozenset[str],
) -> AsyncIterator[Asking]:
    """Run the asking half until the block exits. It joins and searches in the background.

    identity: a throw-away one. own_peers: peer ids of this very peer's serving half, which is not
    asked over the network.
    """
    cache = DirectoryCache(network, allow_private=allow_private, own_peers=own_peers)
    async with (
        open_host(identity) as host,
        open_kad(host, network=network, server=False, allow_private=allow_private) as kad,
        open_background() as background,
    ):
        ReachService(host).serve()  # donors ask whoever they are connected to
        joiner = Joiner(host, kad, bootstrap, known.peers)
        background.start_soon(joiner.run)
        async with (
            open_finder(host, kad, joiner, cache, network=network) as finder,
            open_remembering(known, kad, finder),
        ):
            yield Asking(host, kad, finder, joiner, network)
