"""The DHT and the way into it, as far as a finder needs them. Start at `SimKad`.

Differs from the real one: it knows at once who donates, and forgets those who left only when their
records would have expired; so searches find the living and the dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from tokenplace.dht.kad import ProviderSearch
from tokenplace.dht.messages import PeerAddrs

_WALK_S: Final = (0.05, 1.0)
_CUT_SHORT: Final = 0.1  # of the walks


@dataclass
class SimKad:
    """Stands for `dht.kad.Kad`. providers: everybody who ever announced something here."""

    dice: Random
    providers: dict[str, PeerAddrs] = field(default_factory=dict)

    def announce(self, peer: PeerAddrs) -> None:
        """This peer donates."""
        self.providers[peer.peer_id] = peer

    def n_peers(self) -> int:
        """As `Kad.n_peers`: somebody is always known."""
        return 1

    def servers(self) -> list[PeerAddrs]:
        """As `Kad.servers`."""
        return []

    def on_provided(self, hint: Callable[[str], None]) -> None:
        """As `Kad.on_provided`: a peer that only asks is told of nothing."""

    async def find_providers(
        self, key: bytes, *, enough: int, soft_s: float, is_thorough: bool = False
    ) -> ProviderSearch:
        """As `Kad.find_providers`; every key is the same here."""
        await trio.sleep(self.dice.uniform(*_WALK_S))
        providers = list(self.providers.values())
        self.dice.shuffle(providers)
        is_complete = is_thorough or self.dice.random() >= _CUT_SHORT
        if not is_complete:
            providers = providers[: len(providers) // 2]
        return ProviderSearch(tuple(providers), is_complete)


@dataclass(frozen=True, slots=True)
class SimJoiner:
    """Stands for `dht.bootstrap.Joiner`: this peer has joined."""

    peers: tuple[PeerAddrs, ...] = ()
    is_alone: bool = False

    async def wait_joined(self) -> None:
        """As `Joiner.wait_joined`."""
        await trio.lowlevel.checkpoint()
