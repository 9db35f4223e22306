from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.dht.messages import (
    MessageDecoder,
    PeerAddrs,
    encode_message,
    get_addrs,
    get_peers,
    put_peers,
)
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.identity import throwaway_identity

ALICE = PeerAddrs(throwaway_identity().peer_id, ("/ip4/203.0.113.7/tcp/4010", "/ip6/::1/tcp/1"))
BOB = PeerAddrs(throwaway_identity().peer_id, ())

messages = st.builds(
    Message,
    type=st.sampled_from([Message.FIND_NODE, Message.GET_PROVIDERS, Message.ADD_PROVIDER]),
    key=st.binary(max_size=300),
)


@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 400), min_size=1))
def test_messages_survive_any_chunking(sent: list[Message], sizes: list[int]) -> None:
    data = b"".join(encode_message(message) for message in sent)
    decoder, received, position = MessageDecoder(), [], 0
    while position < len(data):
        size = sizes[position % len(sizes)]
        decoder.receive_data(data[position : position + size])
        position += size
        while (message := decoder.next_message()) is not None:
            received.append(message)
    assert received == sent
    assert decoder.is_empty


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    decoder = MessageDecoder()
    decoder.receive_data(data)
    try:
        while decoder.next_message() is not None:
            pass
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "header",
    [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80", b"\x81\x80\x08"],
    ids=["four gigabytes", "endless length", "one byte too many"],
)
def test_a_length_too_long_is_refused_before_its_message(header: bytes) -> None:
    decoder = MessageDecoder()
    decoder.receive_data(header)
    with pytest.raises(RemoteProtocolError):
        decoder.next_message()


def test_the_longest_message_passes() -> None:
    message = Message(type=Message.FIND_NODE)
    message.key = bytes(defaults.MAX_DHT_MESSAGE_BYTES - len(encode_message(message)) - 5)
    decoder = MessageDecoder()
    decoder.receive_data(encode_message(message))
    assert decoder.next_message() == message


def test_a_full_answer_passes() -> None:
    addr = "/dns6/" + "a" * 63 + ".tokenplace.example/tcp/65535/p2p/" + ALICE.peer_id
    assert len(Multiaddr(addr).to_bytes()) == defaults.MAX_ADDR_BYTES
    peers = [PeerAddrs(ALICE.peer_id, (addr,) * defaults.MAX_PEER_ADDRS)]
    message = Message(type=Message.GET_PROVIDERS, key=bytes(32))
    put_peers(peers * defaults.K, message.closerPeers)
    put_peers(peers * defaults.MAX_PROVIDERS_PER_KEY, message.providerPeers)
    decoder = MessageDecoder()
    decoder.receive_data(encode_message(message))
    assert decoder.next_message() == message


def test_peers_come_back_as_they_went() -> None:
    message = Message()
    put_peers([ALICE, BOB], message.closerPeers)
    assert get_peers(message.closerPeers, 20) == [ALICE, BOB]
    assert get_peers(message.closerPeers, 1) == [ALICE]


def test_what_strangers_list_is_bounded() -> None:
    message = Message()
    many = tuple(f"/ip4/203.0.113.7/tcp/{port}" for port in range(100))
    put_peers([PeerAddrs(ALICE.peer_id, many)], message.closerPeers)
    message.closerPeers.add(id=b"")
    message.closerPeers.add(id=bytes(65))
    [alice] = get_peers(message.closerPeers, 20)
    assert alice.addrs == many[: defaults.MAX_PEER_ADDRS]


def test_addresses_that_are_none_are_left_out() -> None:
    good = Multiaddr("/ip4/203.0.113.7/tcp/4010").to_bytes()
    assert get_addrs([b"", b"\xff\xff", good, bytes(1000), good]) == ("/ip4/203.0.113.7/tcp/4010",)


@given(st.binary(min_size=1, max_size=64), st.lists(st.binary(max_size=40), max_size=9))
def test_any_bytes_are_a_peer_or_none(peer_id: bytes, addrs: list[bytes]) -> None:
    message = Message()
    message.closerPeers.add(id=peer_id, addrs=addrs)
    for peer in get_peers(message.closerPeers, 20):
        assert ID.from_base58(peer.peer_id).to_bytes() == peer_id
        again = Message()
        put_peers([peer], again.closerPeers)
        assert get_peers(again.closerPeers, 20) == [peer]
