"""Servers of the DHT that lie to who asks them. Each answers its first question honestly, so it is
in the asker's table; whatever it says then, a thorough search finds the honest provider.

In one process, over real libp2p.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tests.peer.hosts import LOOPBACK, closed_port
from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import MessageDecoder, PeerAddrs, encode_message, put_peers
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import STREAM_GONE, PeerStream

KEY: Final = b"a key that an honest peer holds."
NETWORK: Final = "test"
PROTOCOL: Final = defaults.DHT_PROTOCOL.format(network=NETWORK)
FOUND_WITHIN_S: Final = 3 * defaults.WALK_TIMEOUT_S  # on a busy machine


@dataclass(frozen=True)
class Asked:
    """One question to a liar. asker: who asks, and where it is not; itself: the liar."""

    stream: PeerStream
    message: Message
    asker: PeerHost
    itself: PeerHost

    def answer(self, *, providers: int = 0, closer: int = 0, n_addrs: int = 1) -> Message:
        """An answer that names so many peers that do not exist."""
        reply = Message(type=self.message.type, key=self.message.key)
        put_peers((nobody(n_addrs) for _ in range(providers)), reply.providerPeers)
        put_peers((nobody(n_addrs) for _ in range(closer)), reply.closerPeers)
        return reply

    async def say(self, data: bytes | Message) -> None:
        data = data if isinstance(data, bytes) else encode_message(data)
        await self.stream.send_all(data)


Lie = Callable[[Asked], Awaitable[None]]


def nobody(n_addrs: int = 1) -> PeerAddrs:
    """A peer that does not exist, at addresses where nobody listens."""
    port = closed_port()
    addrs = tuple(f"/ip4/127.0.{n}.1/tcp/{port}" for n in range(n_addrs))
    return PeerAddrs(throwaway_identity().peer_id, addrs)


def says(data: bytes) -> Lie:
    return lambda asked: asked.say(data)


async def names_nobodies_as_providers(asked: Asked) -> None:
    await asked.say(asked.answer(providers=defaults.MAX_PROVIDERS_PER_KEY))


async def names_nobodies_as_closer(asked: Asked) -> None:
    """Others at every question: the walk never comes to the end of them."""
    await asked.say(asked.answer(closer=defaults.K))


async def names_many(asked: Asked) -> None:
    await asked.say(asked.answer(providers=500, closer=500))


async def names_many_addresses(asked: Asked) -> None:
    await asked.say(asked.answer(closer=10, n_addrs=200))


async def names_the_asker(asked: Asked) -> None:
    reply = asked.answer()
    myself = PeerAddrs(asked.asker.peer_id, tuple(asked.itself.addrs()))
    put_peers([myself] * 20, reply.closerPeers)
    put_peers([myself] * 20, reply.providerPeers)
    await asked.say(reply)


async def names_its_own_address_for_all(asked: Asked) -> None:
    """Whoever is dialled there turns out to be the liar."""
    reply = asked.answer()
    addrs = (asked.itself.addrs()[0].split("/p2p/")[0],)
    put_peers(
        (PeerAddrs(throwaway_identity().peer_id, addrs) for _ in range(20)), reply.closerPeers
    )
    await asked.say(reply)


async def names_no_ids(asked: Asked) -> None:
    reply = asked.answer()
    for _ in range(20):
        reply.closerPeers.add(id=os.urandom(64), addrs=[os.urandom(100)])
    await asked.say(reply)


async def answers_another_question(asked: Asked) -> None:
    await asked.say(Message(type=Message.PING, key=os.urandom(32)))


async def answers_without_end(asked: Asked) -> None:
    while True:
        await asked.say(asked.answer(providers=1))


async def trickles(asked: Asked) -> None:
    await asked.say(b"\xff\xff\x07")
    while True:
        await asked.say(b"\x0a")
        await trio.sleep(0.05)


async def is_silent(asked: Asked) -> None:
    await trio.sleep_forever()


async def resets(asked: Asked) -> None:
    await asked.stream.reset()


LIES: Final[dict[str, Lie]] = {
    "garbage": says(bytes(range(256)) * 8),
    "a length that never ends": says(b"\xff" * 10),
    "a length over 128 KiB": says(b"\x81\x80\x08" + bytes(1000)),
    "groups within groups": says(b"\xe0\xd4\x03" + b"\x0b" * 60_000),
    "half an answer": says(b"\x20half"),
    "an empty answer": says(b"\x00"),
    "silence": is_silent,
    "a byte at a time": trickles,
    "a reset": resets,
    "an answer to another question": answers_another_question,
    "answers without end": answers_without_end,
    "64 providers that do not exist": names_nobodies_as_providers,
    "ever other peers that do not exist": names_nobodies_as_closer,
    "1,000 peers": names_many,
    "2,000 addresses": names_many_addresses,
    "the asker itself": names_the_asker,
    "itself under other names": names_its_own_address_for_all,
    "ids and addresses that are none": names_no_ids,
}


@dataclass
class Outcome:
    """n_lies: how often the lie was told. is_found: the honest provider was among those found."""

    n_lies: int = 0
    is_found: bool = False


async def tell_all() -> dict[str, Outcome]:
    """A liar and an asker for each lie, and an honest server that knows the provider for all."""
    outcomes = {name: Outcome() for name in LIES}
    async with AsyncExitStack() as stack:
        honest, _ = await open_peer(stack, is_server=True)
        provider, provides = await open_peer(stack, is_server=True)
        assert await provides.join([(honest.peer_id, honest.addrs())]) == 1
        assert await provides.provide(KEY) >= 1
        async with trio.open_nursery() as nursery:
            for name in LIES:
                nursery.start_soon(ask_among, [honest, provider], name, outcomes[name])
    return outcomes


async def open_peer(stack: AsyncExitStack, *, is_server: bool) -> tuple[PeerHost, Kad]:
    listen = [LOOPBACK] if is_server else []
    host = await stack.enter_async_context(open_host(throwaway_identity(), listen=listen))
    kad = await stack.enter_async_context(open_kad(host, network=NETWORK, server=is_server))
    return host, kad


async def ask_among(known: list[PeerHost], name: str, outcome: Outcome) -> None:
    """Meet an honest server and a liar, and look for the provider."""
    honest, provider = known
    async with AsyncExitStack() as stack:
        liar = await stack.enter_async_context(open_host(throwaway_identity(), listen=[LOOPBACK]))
        asker, kad = await open_peer(stack, is_server=False)

        async def handle(stream: PeerStream) -> None:
            message = await read_question(stream)
            asked = Asked(stream, message, asker, liar)
            if message.key == liar.identity.peer_id_bytes:  # the asker wants to know who it is
                await asked.say(asked.answer())
                return
            outcome.n_lies += 1
            try:
                await LIES[name](asked)
            except STREAM_GONE:
                return

        liar.set_stream_handler(PROTOCOL, handle)
        # The liar alone first, so that it is in the table when the honest one comes.
        await kad._members.probe_all([PeerAddrs(liar.peer_id, tuple(liar.addrs()))])
        assert kad.peers() == [liar.peer_id]
        await kad._members.probe_all([PeerAddrs(honest.peer_id, tuple(honest.addrs()))])
        with trio.move_on_after(FOUND_WITHIN_S):
            # As the finder searches on when the first who were named are worth nothing.
            found = await kad.find_providers(
                KEY,
                enough=defaults.MAX_PROVIDERS_MET,
                soft_s=defaults.FIND_TIMEOUT_S,
                is_thorough=True,
            )
            outcome.is_found = provider.peer_id in {peer.peer_id for peer in found.providers}


async def read_question(stream: PeerStream) -> Message:
    decoder = MessageDecoder()
    while (message := decoder.next_message()) is None:
        decoder.receive_data(await stream.receive_some(4096))
    return message


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All lies, once."""
    return trio.run(tell_all)


@pytest.mark.parametrize("name", LIES)
def test_the_honest_provider_is_found(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].n_lies >= 1, "nobody asked the liar"
    assert outcomes[name].is_found
