"""What tests of the directory need: donors with made-up models, hosts and a DHT on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from tokenplace import defaults
from tokenplace.dht.announce import Announcer, open_announcer
from tokenplace.dht.bootstrap import BootstrapList, Joiner, parse_addrs
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.finder import Finder, open_finder
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import Identity, throwaway_identity
from tokenplace.sealing.keys import AdvertisedKeys
from tokenplace.sealing.suites import PublicKey

NETWORK = "test"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NOW = 1_800_000_000.0


def identity_of(name: str) -> Identity:
    """The same identity for the same name, always."""
    key_pair = create_new_key_pair(hashlib.sha256(name.encode()).digest())
    peer_id = ID.from_pubkey(key_pair.public_key)
    return Identity(key_pair, peer_id.to_base58(), peer_id.to_bytes())


def model_of(name: str) -> OfferedModel:
    """A model whose artifact follows from its name."""
    return OfferedModel(
        name, hashlib.sha256(name.encode()).hexdigest(), "", "test", 2048, ("chat",)
    )


TINY_MODEL = model_of("tiny-model")
OTHER_MODEL = model_of("other-model")


def advertised(key: PublicKey) -> AdvertisedKeys:
    """`key` for as long as a statement may say it."""
    return AdvertisedKeys((key,), defaults.KEYS_LIFETIME_S)


@dataclass(eq=False)
class Donor:
    """A donor that says what a test wants it to say."""

    identity: Identity
    models: list[OfferedModel] = field(default_factory=lambda: [TINY_MODEL])
    addrs: list[str] = field(default_factory=lambda: ["/ip4/203.0.113.7/tcp/4010"])
    key: PublicKey = field(default_factory=lambda: PublicKey(1, 0x647A, 1, 3, bytes(1216)))
    load: Load = field(default_factory=lambda: Load(DonorState.ACCEPTING, 0, 100.0, 10.0))
    epoch: bytes = bytes(8)
    now: float = NOW

    def announcer(self, network: str = NETWORK) -> Announcer:
        return Announcer(
            self.identity,
            network,
            addrs=lambda: self.addrs,
            models=lambda: self.models,
            public_keys=lambda: advertised(self.key),
            load=lambda: self.load,
            epoch=lambda: self.epoch,
            now=lambda: self.now,
        )


@dataclass
class ServingPeer:
    """A peer that others can reach, in a DHT; `announcer` is None while it donates nothing."""

    host: PeerHost
    kad: Kad
    joiner: Joiner
    cache: DirectoryCache
    announcer: Announcer | None

    @property
    def addr(self) -> str:
        """What `peer invite` would print."""
        return self.host.addrs()[0]


@asynccontextmanager
async def open_joiner(
    host: PeerHost,
    kad: Kad,
    addrs: Sequence[str],
    remembered: Callable[[], Sequence[PeerAddrs]] = tuple,
) -> AsyncIterator[Joiner]:
    bootstrap = BootstrapList(parse_addrs((addr, "test") for addr in addrs), "test")
    async with open_background() as nursery:
        joiner = Joiner(host, kad, bootstrap, remembered)
        nursery.start_soon(joiner.run)
        yield joiner


@asynccontextmanager
async def open_serving_peer(
    bootstrap: Sequence[str] = (), models: Sequence[OfferedModel] = ()
) -> AsyncIterator[ServingPeer]:
    async with AsyncExitStack() as stack:
        identity = throwaway_identity()
        host = await stack.enter_async_context(open_host(identity, listen=[LOOPBACK]))
        kad = await stack.enter_async_context(open_kad(host, network=NETWORK, server=True))
        joiner = await stack.enter_async_context(open_joiner(host, kad, bootstrap))
        cache = DirectoryCache(NETWORK, allow_private=True)
        announcer = None
        if models:
            announcer = Announcer(
                identity,
                NETWORK,
                addrs=host.addrs,
                models=lambda: models,
                public_keys=lambda: advertised(PublicKey(1, 0x647A, 1, 3, bytes(1216))),
                load=lambda: Load(DonorState.ACCEPTING, 0, 100.0, 10.0),
                epoch=lambda: bytes(8),
            )
            await stack.enter_async_context(open_announcer(announcer, kad))
        own = announcer.own if announcer else lambda: None
        Directory(cache, identity.peer_id, own).serve_on(host)
        yield ServingPeer(host, kad, joiner, cache, announcer)


@dataclass
class AskingPeer:
    host: PeerHost
    kad: Kad
    joiner: Joiner
    cache: DirectoryCache
    finder: Finder


@asynccontextmanager
async def open_asking_peer(
    bootstrap: Sequence[str], remembered: Callable[[], Sequence[PeerAddrs]] = tuple
) -> AsyncIterator[AskingPeer]:
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(throwaway_identity()))
        kad = await stack.enter_async_context(open_kad(host, network=NETWORK, server=False))
        joiner = await stack.enter_async_context(open_joiner(host, kad, bootstrap, remembered))
        cache = DirectoryCache(NETWORK, allow_private=True)
        finder = await stack.enter_async_context(
            open_finder(host, kad, joiner, cache, network=NETWORK)
        )
        yield AskingPeer(host, kad, joiner, cache, finder)
