"""What a server of the DHT answers, and what it refuses, over real streams."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID

from tests.peer.hosts import LOOPBACK, open_asking_host, wait_until
from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import (
    MessageDecoder,
    PeerAddrs,
    add_provider,
    encode_message,
    get_peers,
)
from tokenplace.dht.rpc import QueryFailed, query, tell
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

KEY = b"k" * 32
PROTOCOL = "/tokenplace/main/kad/1.0.0"
ADDR = "/ip4/203.0.113.7/tcp/4010"


class Pair:
    """A server, and a host that talks to it without being in the DHT."""

    def __init__(self, host: PeerHost, kad: Kad, asker: PeerHost) -> None:
        self.host, self.kad, self.asker = host, kad, asker

    async def ask(self, message: Message) -> Message:
        peer = PeerAddrs(self.host.peer_id, tuple(self.host.addrs()))
        return (await query(self.asker, PROTOCOL, peer, message)).message

    async def open_stream(self) -> PeerStream:
        return await self.asker.open_stream(self.host.peer_id, PROTOCOL, self.host.addrs())


async def open_pair(stack: AsyncExitStack) -> Pair:
    host = await stack.enter_async_context(open_host(throwaway_identity(), listen=[LOOPBACK]))
    kad = await stack.enter_async_context(open_kad(host, network="main", server=True))
    return Pair(host, kad, await stack.enter_async_context(open_asking_host()))


def announcement(peer_id: str, *addrs: str) -> Message:
    return add_provider(KEY, PeerAddrs(peer_id, addrs))


def two_providers(peer_id: str) -> Message:
    message = announcement(peer_id, ADDR)
    message.providerPeers.add().CopyFrom(message.providerPeers[0])
    return message


def unreadable_addr(peer_id: str) -> Message:
    message = announcement(peer_id)
    message.providerPeers[0].addrs.append(b"no address")
    return message


async def test_a_provider_is_stored_confirmed_and_told() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        answer = await pair.ask(announcement(pair.asker.peer_id, ADDR))
        assert answer.key == KEY
        answer = await pair.ask(Message(type=Message.GET_PROVIDERS, key=KEY))
        assert get_peers(answer.providerPeers, 20) == [PeerAddrs(pair.asker.peer_id, (ADDR,))]


async def test_who_asks_for_a_server_itself_gets_its_addresses() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        key = ID.from_base58(pair.host.peer_id).to_bytes()
        answer = await pair.ask(Message(type=Message.FIND_NODE, key=key))
        me = PeerAddrs(pair.host.peer_id, tuple(pair.host.addrs()))
        assert get_peers(answer.closerPeers, 20) == [me]


@pytest.mark.parametrize(
    "message",
    [
        Message(type=Message.PUT_VALUE, key=KEY),
        Message(type=Message.GET_VALUE, key=KEY),
        Message(type=Message.PING, key=KEY),
        Message(type=Message.FIND_NODE),
        Message(type=Message.GET_PROVIDERS, key=bytes(65)),
        Message(type=Message.ADD_PROVIDER, key=KEY),
        announcement(throwaway_identity().peer_id, ADDR),
    ],
    ids=["put value", "get value", "ping", "no key", "long key", "no provider", "somebody else"],
)
async def test_what_is_refused_resets_the_stream_only(message: Message) -> None:
    if message.type == Message.PUT_VALUE:
        message.record.key, message.record.value = KEY, b"value"
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        with pytest.raises(QueryFailed):
            await pair.ask(message)
        answer = await pair.ask(Message(type=Message.GET_PROVIDERS, key=KEY))
        assert not answer.providerPeers
        assert not answer.HasField("record")


async def providers_at(pair: Pair) -> list[PeerAddrs]:
    answer = await pair.ask(Message(type=Message.GET_PROVIDERS, key=KEY))
    return get_peers(answer.providerPeers, 20)


async def test_a_provider_takes_its_own_record_back() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        await pair.ask(announcement(pair.asker.peer_id, ADDR))
        stranger = await stack.enter_async_context(open_asking_host())
        peer = PeerAddrs(pair.host.peer_id, tuple(pair.host.addrs()))
        with pytest.raises(QueryFailed):
            await query(stranger, PROTOCOL, peer, announcement(pair.asker.peer_id))
        assert len(await providers_at(pair)) == 1
        for _ in range(2):  # also of a record that is not there: answered like the rest
            answer = await pair.ask(announcement(pair.asker.peer_id))
            assert (answer.type, answer.key) == (Message.ADD_PROVIDER, KEY)
            assert await providers_at(pair) == []


@pytest.mark.parametrize("message_of", [two_providers, unreadable_addr])
async def test_an_announcement_that_says_nothing_clear_is_refused(
    message_of: Callable[[str], Message],
) -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        await pair.ask(announcement(pair.asker.peer_id, ADDR))
        with pytest.raises(QueryFailed):
            await pair.ask(message_of(pair.asker.peer_id))
        assert len(await providers_at(pair)) == 1


async def test_many_messages_behind_one_another_are_all_answered() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        peer = PeerAddrs(pair.host.peer_id, tuple(pair.host.addrs()))
        messages = [
            add_provider(bytes([n]) * 32, PeerAddrs(pair.asker.peer_id, (ADDR,)))
            for n in range(130)
        ]
        await tell(pair.asker, PROTOCOL, peer, messages)
        assert pair.kad._store.n_records == 130
        with pytest.raises(QueryFailed):
            await tell(pair.asker, PROTOCOL, peer, [messages[0], Message(type=Message.PING)])


async def test_what_was_not_stored_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDER_RECORDS", 0)
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        with pytest.raises(QueryFailed):
            await pair.ask(announcement(pair.asker.peer_id, ADDR))


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff\x0f", b"\x05hello", b"GET / HTTP/1.1\r\n\r\n", b"\x40half"],
    ids=["huge", "no message", "http", "half"],
)
async def test_garbage_resets_the_stream_only(garbage: bytes) -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        stream = await pair.open_stream()
        await stream.send_all(garbage)
        await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        await pair.ask(Message(type=Message.GET_PROVIDERS, key=KEY))


async def test_one_stream_may_carry_several_queries() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        stream = await pair.open_stream()
        decoder = MessageDecoder()
        for _ in range(3):
            await stream.send_all(encode_message(Message(type=Message.GET_PROVIDERS, key=KEY)))
            while (answer := decoder.next_message()) is None:
                decoder.receive_data(await stream.receive_some(4096))
            assert answer.key == KEY
        await stream.send_eof()
        assert await stream.receive_some(1) == b""
        await stream.aclose()


async def test_idle_streams_do_not_stop_the_server() -> None:
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        idle = [await pair.open_stream() for _ in range(12)]
        bob = await stack.enter_async_context(open_asking_host())
        peer = PeerAddrs(pair.host.peer_id, tuple(pair.host.addrs()))
        message = Message(type=Message.GET_PROVIDERS, key=KEY)
        assert (await query(bob, PROTOCOL, peer, message)).message.key == KEY
        for stream in idle[: defaults.MAX_DHT_STREAMS_PER_PEER]:
            await stream.reset()
        await wait_until(lambda: sum(c.n_streams for c in pair.host.connections()) == 0)
        await pair.ask(message)


async def test_a_stream_that_asks_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "FIRST_FRAME_TIMEOUT_S", 0.1)
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        stream = await pair.open_stream()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


async def test_a_stream_that_asked_once_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "DHT_STREAM_LIFETIME_S", 0.5)
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        stream = await pair.open_stream()
        await stream.send_all(encode_message(Message(type=Message.GET_PROVIDERS, key=KEY)))
        assert await stream.receive_some(4096)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


async def test_all_streams_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_DHT_STREAMS", 0)
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack)
        with pytest.raises(QueryFailed):
            await pair.ask(Message(type=Message.GET_PROVIDERS, key=KEY))
