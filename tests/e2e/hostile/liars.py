"""Donors that lie: they join the real network from the test's own process. Start at `open_liar`.

A liar is the real donor over a fake engine; only the bytes it sends are not what it meant to send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.fakes import EchoEngine
from tests.peer.hosts import wait_until
from tokenplace import defaults
from tokenplace.cli.processes import LOOPBACK
from tokenplace.dht.announce import Announcer, open_announcer
from tokenplace.dht.bootstrap import BootstrapList, Joiner, parse_addrs
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.kad import open_kad
from tokenplace.peer.admission import Admission
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.peer.background import open_background
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing

Lie = Callable[[Sequence[bytes]], bytes]
"""What to send instead of the last of these writes."""

TOO_GOOD = Load(DonorState.ACCEPTING, 0, 20_000.0, 300.0)  # so it is asked before any honest donor


def garbage(writes: Sequence[bytes]) -> bytes:
    return bytes(range(7, 256)) * 8


def tampered(writes: Sequence[bytes]) -> bytes:
    last = writes[-1]
    return last if len(writes) < 4 else last[:-1] + bytes([last[-1] ^ 1])


def flood(writes: Sequence[bytes]) -> bytes:
    """Chunks of a length that there is, for as long as somebody reads them."""
    return writes[-1] if len(writes) < 2 else (b"\x60\x10" + bytes(8192 + 16)) * 200


@dataclass
class LyingStream:
    """A donor's stream on which a lie is told. See `PeerStream`."""

    stream: PeerStream
    lie: Lie
    writes: list[bytes] = field(default_factory=list)

    @property
    def peer_id(self) -> str:
        return self.stream.peer_id

    @property
    def remote_ip(self) -> str:
        return self.stream.remote_ip

    @property
    def is_inbound(self) -> bool:
        return self.stream.is_inbound

    async def send_all(self, data: bytes) -> None:
        self.writes.append(data)
        await self.stream.send_all(self.lie(self.writes))

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self.stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def reset(self) -> None:
        await self.stream.reset()


@dataclass
class Liar:
    """One lying donor. n_asked: requests that reached it."""

    host: PeerHost
    lie: Lie
    donor: Donor
    n_asked: int = 0

    async def handle(self, stream: PeerStream) -> None:
        self.n_asked += 1
        await self.donor.handle(LyingStream(stream, self.lie))


@asynccontextmanager
async def open_liar(bootstrap: str, model: OfferedModel, lie: Lie) -> AsyncIterator[Liar]:
    """Offer `model` in the network of `bootstrap`; inside the block the DHT knows of it."""
    identity, keys, epochs = throwaway_identity(), KeyRing(), Epochs()
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(identity, listen=[LOOPBACK]))
        kad = await stack.enter_async_context(
            open_kad(host, network=defaults.NETWORK, server=True, allow_private=True)
        )
        background = await stack.enter_async_context(open_background())
        known = BootstrapList(parse_addrs([(bootstrap, "test")]), "test")
        background.start_soon(Joiner(host, kad, known).run)
        announcer = Announcer(
            identity,
            defaults.NETWORK,
            addrs=host.addrs,
            models=lambda: [model],
            public_keys=lambda: keys.advertised(trio.current_time()),
            load=lambda: TOO_GOOD,
            epoch=lambda: epochs.current(trio.current_time()),
        )
        donor = Donor(
            network=defaults.NETWORK,
            donor_id=identity.peer_id_bytes,
            key_ring=keys,
            epochs=epochs,
            models=lambda: {model.artifact: EchoEngine(token_interval_s=0.1)},
            admission=Admission(),
            signed_keys=announcer.signed_keys,
            signed_live=announcer.signed_live,
            clock=trio.current_time,
        )
        cache = DirectoryCache(defaults.NETWORK, allow_private=True)
        Directory(cache, identity.peer_id, announcer.own).serve_on(host)
        liar = Liar(host, lie, donor)
        host.set_stream_handler(GENERATE_PROTOCOL, liar.handle)
        await stack.enter_async_context(open_announcer(announcer, kad))
        await wait_until(lambda: 0 < announcer.status().n_keys == announcer.status().n_confirmed)
        yield liar
