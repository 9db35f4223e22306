"""A whole DHT of real hosts on loopback. Start at `open_dht`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from tests.peer.hosts import LOOPBACK, wait_until
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import Identity, throwaway_identity

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Member:
    """One peer in the DHT, alive in a task of its own until it leaves."""

    identity: Identity
    leaving: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    host: PeerHost = field(init=False)
    kad: Kad = field(init=False)

    async def leave(self) -> None:
        self.leaving.set()
        await self.gone.wait()


@dataclass
class Dht:
    """Peers of one network in this process. The first server is everybody's bootstrap peer."""

    nursery: trio.Nursery
    network: str
    clock: Clock = field(default_factory=Clock)
    servers: list[Member] = field(default_factory=list)

    async def add_server(self, identity: Identity | None = None) -> Member:
        member = Member(identity or throwaway_identity())
        await self.nursery.start(self._live, member, True)
        self.servers.append(member)
        return member

    async def add_client(self) -> Member:
        member = Member(throwaway_identity())
        await self.nursery.start(self._live, member, False)
        return member

    async def _live(
        self, member: Member, is_server: bool, task_status: trio.TaskStatus[None]
    ) -> None:
        listen = [LOOPBACK] if is_server else []
        async with (
            open_host(member.identity, listen=listen) as member.host,
            open_kad(
                member.host, network=self.network, server=is_server, clock=self.clock
            ) as member.kad,
        ):
            if self.servers:
                first = self.servers[0].host
                assert await member.kad.join([(first.peer_id, first.addrs())]) == 1
            task_status.started()
            await member.leaving.wait()
        member.gone.set()

    async def grow(self, n_servers: int) -> None:
        """Add servers, and wait until each knows all others."""
        for _ in range(n_servers):
            await self.add_server()
        everybody = {member.host.peer_id for member in self.servers}
        for member in self.servers:
            await wait_until(partial(knows, member, everybody))


@asynccontextmanager
async def open_dht(n_servers: int, network: str = "main") -> AsyncIterator[Dht]:
    async with trio.open_nursery() as nursery:
        dht = Dht(nursery, network)
        await dht.grow(n_servers)
        yield dht
        nursery.cancel_scope.cancel()


def addrs_of(member: Member) -> tuple[str, ...]:
    """Where a member is found: its addresses without its id, which a record names anyway."""
    return tuple(addr.split("/p2p/")[0] for addr in member.host.addrs())


def ids_of(providers: Iterable[PeerAddrs]) -> set[str]:
    return {provider.peer_id for provider in providers}


def knows(member: Member, everybody: set[str]) -> bool:
    return {*member.kad.peers(), member.host.peer_id} == everybody


def ids_of_members(members: Iterable[Member]) -> set[str]:
    return {member.host.peer_id for member in members}
