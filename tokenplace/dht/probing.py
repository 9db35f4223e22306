"""Whether the providers of full keys are there at all. Start at `probe_forever`.

libp2p has nothing of the kind: whoever came first held one of a key's few places for two days, and
20 made-up peer ids kept everybody else out. A provider is dialled on its own word, so this is done
seldom, for full keys only, and never to addresses that strangers may not name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from tokenplace import defaults
from tokenplace.dht.members import Members
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.providers import ProviderStore
from tokenplace.errors import ConnectFailed
from tokenplace.peer.host import PeerHost

log = logging.getLogger(__name__)


async def probe_forever(
    host: PeerHost, store: ProviderStore, members: Members, clock: Callable[[], float]
) -> None:
    """Dial one provider after the other. Run `PROVIDER_PROBES` of these, until cancelled."""
    while True:
        provider = store.next_to_probe(clock())
        if provider is not None:
            is_there = await _is_there(host, members.reachable([provider]))
            store.note_probed(provider, has_failed=not is_there)
        await trio.sleep(defaults.PROVIDER_PROBE_PAUSE_S)


async def _is_there(host: PeerHost, reachable: Sequence[PeerAddrs]) -> bool:
    """Whether one provider can be connected to; `reachable` is empty if nobody may try."""
    for peer in reachable:
        try:
            await host.connect(peer.peer_id, peer.addrs)
        except ConnectFailed as error:
            log.debug("provider %s: %s", peer.peer_id, error)
        else:
            return True
    return False
