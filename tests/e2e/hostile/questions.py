"""Attacks on what every peer answers: the DHT, directory, reach, and libp2p's identify and ping.
Start at `ATTACKS`.

A question that is none, or that is not asked in time, costs who asks it the stream.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgpack
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tests.e2e.hostile.raw_peer import MULTISTREAM, RawPeer, RawStream, delimited
from tests.e2e.hostile.siege import PING, PING_BYTES, Attack, Attacker, Ending
from tokenplace import defaults
from tokenplace.dht.directory_wire import PROTOCOL_ID as DIRECTORY
from tokenplace.dht.directory_wire import QUERY_LENGTH
from tokenplace.dht.messages import encode_message
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.reach_wire import PROTOCOL_ID as REACH
from tokenplace.peer.reach_wire import DialBack, Proof
from tokenplace.peer.reach_wire import encode as encode_reach

KAD: Final = defaults.DHT_PROTOCOL.format(network=defaults.NETWORK)
PUSH: Final = "/ipfs/id/push/1.0.0"
KEY: Final = b"k" * 32
FRAME_BYTES: Final = 32 << 10
SOMEWHERE: Final = b"\x04\x7f\x00\x00\x01\x06\x0f\xaa"  # /ip4/127.0.0.1/tcp/4010
TRICKLE_S: Final = 1.0
PING_TIMEOUT_S: Final = 10.0  # libp2p's own

Begin = Callable[[Attacker], Awaitable[RawPeer | RawStream]]


# ---------------------------------------------------------------- whatever the protocol


async def asks(attacker: Attacker, protocol: str, data: bytes) -> RawStream:
    stream = await (await attacker.connect()).open_stream(protocol)
    for start in range(0, len(data), FRAME_BYTES):
        await stream.send(data[start : start + FRAME_BYTES])
    return stream


async def asks_byte_by_byte(attacker: Attacker, protocol: str, data: bytes) -> RawStream:
    stream = await asks(attacker, protocol, b"")
    attacker.trickle(stream.send, data, TRICKLE_S)
    return stream


async def opens_too_many(attacker: Attacker, protocol: str, n_allowed: int) -> RawStream:
    peer = await attacker.connect()
    for _ in range(n_allowed):
        await peer.open_stream(protocol)
    return await peer.open_stream(protocol)


def _asking(
    name: str, protocol: str, data: bytes, within_s: float = 0.0, ends: Ending = Ending.STREAM
) -> Attack:
    return Attack(name, partial(asks, protocol=protocol, data=data), ends, within_s)


def dawdling(
    name: str, protocol: str, data: bytes, within_s: float, n_streams: int
) -> tuple[Attack, ...]:
    """What a good question can be turned into by taking one's time. data: long enough for it."""
    begin = partial(asks_byte_by_byte, protocol=protocol, data=data * 20)
    too_many = partial(opens_too_many, protocol=protocol, n_allowed=n_streams)
    return (
        _asking(f"{name}: silence", protocol, b"", within_s),
        _asking(f"{name}: half a question", protocol, data[:-1], within_s),
        Attack(f"{name}: byte by byte", begin, Ending.STREAM, within_s),
        Attack(f"{name}: a stream too many", too_many, Ending.STREAM),
    )


# ---------------------------------------------------------------- DHT


def question(kind: int, key: bytes = KEY) -> Message:
    return Message(type=kind, key=key)  # type: ignore[arg-type]


def announcement(*peer_ids: bytes, addrs: tuple[bytes, ...] = (SOMEWHERE,)) -> bytes:
    message = question(Message.ADD_PROVIDER)
    for peer_id in peer_ids:
        message.providerPeers.add(id=peer_id, addrs=addrs)
    return encode_message(message)


def value() -> bytes:
    message = question(Message.PUT_VALUE)
    message.record.key, message.record.value = KEY, b"value" * 1000
    return encode_message(message)


def crowded_question() -> bytes:
    message = question(Message.FIND_NODE)
    for _ in range(1000):
        message.closerPeers.add(id=os.urandom(38), addrs=[SOMEWHERE])
    return encode_message(message)


async def announces_itself(attacker: Attacker, n_keys: int, n_addrs: int) -> RawStream:
    """Sends all at once, then waits for as many answers as it may have."""
    peer = await attacker.connect()
    stream = await peer.open_stream(KAD)
    sent = b""
    for number in range(n_keys):
        message = question(Message.ADD_PROVIDER, number.to_bytes(32, "big"))
        addrs = [SOMEWHERE[:-2] + port.to_bytes(2, "big") for port in range(1, n_addrs + 1)]
        message.providerPeers.add(id=peer.identity.peer_id_bytes, addrs=addrs)
        sent += encode_message(message)
    for start in range(0, len(sent), FRAME_BYTES):
        await stream.send(sent[start : start + FRAME_BYTES])
    n_answers = min(n_keys, defaults.MAX_KEYS_PER_PROVIDER)
    answer = encode_message(question(Message.ADD_PROVIDER, bytes(32)))
    await stream.receive_exactly(n_answers * len(answer))
    return stream


async def reads_no_answers(attacker: Attacker) -> RawStream:
    """More than a window of answers, and no more window."""
    peer = await attacker.connect()
    peer.gives_window = False
    stream = await peer.open_stream(KAD)
    for _ in range(40):
        await stream.send(encode_message(question(Message.FIND_NODE)) * 100)
    return stream


async def asks_for_ever(attacker: Attacker) -> RawStream:
    peer = await attacker.connect()
    stream = await peer.open_stream(KAD)
    asked = encode_message(question(Message.GET_PROVIDERS))

    async def ask() -> None:
        await stream.send(asked * 100)
        await stream.receive_exactly(len(asked) * 100)

    attacker.repeat(ask)
    return stream


IN_TIME: Final = defaults.DHT_STREAM_LIFETIME_S

DHT_ATTACKS: Final = (
    _asking("dht: garbage", KAD, bytes(range(256)) * 8),
    _asking("dht: a length that never ends", KAD, b"\xff" * 9 + b"\x01"),
    _asking("dht: a length of 128 KiB and a byte", KAD, b"\x81\x80\x08"),
    _asking("dht: groups within groups", KAD, b"\xe0\xd4\x03" + b"\x0b" * 60_000),
    _asking("dht: no message", KAD, b"\x05hello"),
    _asking("dht: stores a value", KAD, value()),
    _asking("dht: asks for a value", KAD, encode_message(question(Message.GET_VALUE))),
    _asking("dht: pings", KAD, encode_message(question(Message.PING)) * 100),
    _asking("dht: no key", KAD, encode_message(question(Message.FIND_NODE, b""))),
    _asking("dht: a long key", KAD, encode_message(question(Message.FIND_NODE, bytes(65)))),
    _asking("dht: announces somebody else", KAD, announcement(throwaway_identity().peer_id_bytes)),
    _asking("dht: announces nobody", KAD, announcement()),
    _asking("dht: announces 1,000 peers", KAD, announcement(*[os.urandom(38)] * 1000)),
    _asking("dht: announces an id of 1 KB", KAD, announcement(bytes(1000))),
    _asking("dht: names 1,000 peers in a question", KAD, crowded_question(), ends=Ending.NONE),
    Attack(
        "dht: announces 1,000 addresses",
        partial(announces_itself, n_keys=1, n_addrs=1000),
        Ending.NONE,
    ),
    Attack(
        "dht: announces 1,000 keys",
        partial(announces_itself, n_keys=1000, n_addrs=1),
        Ending.STREAM,
    ),
    Attack("dht: asks for ever", asks_for_ever, Ending.NONE),
    Attack("dht: reads no answers", reads_no_answers, Ending.STREAM, IN_TIME),
    *dawdling(
        "dht",
        KAD,
        encode_message(question(Message.FIND_NODE)),
        IN_TIME,
        defaults.MAX_DHT_STREAMS_PER_PEER,
    ),
)


# ---------------------------------------------------------------- directory


def query(**fields: object) -> bytes:
    body = msgpack.packb({"op": "sample", "value": b"", "max": 1, **fields})
    return packed(body)


def packed(body: bytes) -> bytes:
    return QUERY_LENGTH.pack(len(body)) + body


def _wrong_query(name: str, data: bytes) -> Attack:
    return _asking(f"directory: {name}", DIRECTORY, data)


DIRECTORY_ATTACKS: Final = (
    _wrong_query("the longest length", QUERY_LENGTH.pack(0xFFFF)),
    _wrong_query("1 KiB and a byte", QUERY_LENGTH.pack(1025) + bytes(1025)),
    _wrong_query("nothing", packed(b"")),
    _wrong_query("garbage", packed(bytes(range(256)) * 4)),
    _wrong_query("a list in a list in a list", packed(b"\x91" * 1000)),
    _wrong_query("a map in a map in a map", packed(b"\x81\xa0" * 500)),
    _wrong_query("a map of 4 billion entries", packed(b"\xdf\xff\xff\xff\xff")),
    _wrong_query("a list of 4 billion entries", packed(b"\xdd\xff\xff\xff\xff")),
    _wrong_query("4 GiB of bytes", packed(b"\xc6\xff\xff\xff\xff")),
    _wrong_query("4 GiB of text", packed(b"\xdb\xff\xff\xff\xff")),
    _wrong_query("a list for a key", packed(b"\x81\x90\x01")),
    _wrong_query("a time", packed(b"\xd6\xff" + bytes(4))),
    _wrong_query("two questions in one", packed(msgpack.packb({"op": "sample", "max": 1}) * 2)),
    _wrong_query("an unknown question", query(op="all")),
    _wrong_query("no question", query(op=None)),
    _wrong_query("a list for a value", query(value=["a", ["b"]])),
    _wrong_query("none", query(max=0)),
    _wrong_query("33", query(max=defaults.MAX_DIRECTORY_ENTRIES + 1)),
    _wrong_query("very many", query(max=2**64 - 1)),
    _wrong_query("true", query(max=True)),
    _wrong_query("a fraction", query(max=1.5)),
    *dawdling(
        "directory",
        DIRECTORY,
        query(),
        defaults.DIRECTORY_READ_TIMEOUT_S,
        defaults.DIRECTORY_STREAMS_PER_PEER,
    ),
)


# ---------------------------------------------------------------- reach


def dial_back(port: int) -> bytes:
    return encode_reach(DialBack(os.urandom(16), port))


async def names_a_silent_port(attacker: Attacker) -> RawStream:
    """Where somebody listens who never says a word: no more than a handshake is tried there."""
    peer = await attacker.connect()
    listener = trio.socket.socket()
    await listener.bind((peer.source, 0))
    listener.listen()
    attacker.sockets.append(trio.SocketStream(listener))
    stream = await peer.open_stream(REACH)
    await stream.send(dial_back(listener.getsockname()[1]))
    return stream


async def has_many_dialled(attacker: Attacker) -> RawStream:
    """By many peers, more than are dialled at the same time."""
    streams = [
        await asks(attacker, REACH, dial_back(4010)) for _ in range(2 * defaults.REACH_DIALS)
    ]
    return streams[-1]


REACH_ATTACKS: Final = (
    _asking("reach: garbage", REACH, os.urandom(300)),
    _asking("reach: a long message", REACH, b"\xff\xff"),
    _asking("reach: a nonce that is not out", REACH, encode_reach(Proof(os.urandom(16)))),
    _asking("reach: no nonce", REACH, encode_reach(DialBack(b"", 4010))),
    _asking("reach: port zero", REACH, dial_back(0)),
    _asking("reach: a port beyond the last", REACH, dial_back(1 << 16)),
    _asking("reach: a port where nobody is", REACH, dial_back(4010), defaults.REACH_TIMEOUT_S),
    Attack(
        "reach: a port where nobody speaks",
        names_a_silent_port,
        Ending.STREAM,
        defaults.REACH_TIMEOUT_S,
    ),
    Attack("reach: many dials", has_many_dialled, Ending.STREAM, defaults.REACH_TIMEOUT_S),
    *dawdling(
        "reach",
        REACH,
        dial_back(4010),
        defaults.REACH_READ_TIMEOUT_S,
        defaults.REACH_STREAMS_PER_PEER,
    ),
)


# ---------------------------------------------------------------- libp2p's own


async def pushes_news(attacker: Attacker) -> RawStream:
    """1 MB about itself, forty times: nobody wants to know."""
    peer = await attacker.connect()
    offered = delimited(MULTISTREAM) + delimited(PUSH)
    for number in range(40):
        stream = await peer.open_stream()
        name = f"{number:05d}".encode() + b"a" * 999_995
        news = b"\x12\xc4\x84\x3d\x36\xc0\x84\x3d" + name  # one address: /dns/<name>
        await stream.send(offered + b"\xc8\x84\x3d" + news[: FRAME_BYTES - 100])
        for start in range(FRAME_BYTES - 100, len(news), FRAME_BYTES):
            if stream.ended.is_set():
                break
            await stream.send(news[start : start + FRAME_BYTES])
            await peer.ping()
    return stream


async def pings_for_ever(attacker: Attacker) -> RawStream:
    stream = await (await attacker.connect()).open_stream(PING)

    async def ping() -> None:
        await stream.send(bytes(PING_BYTES * 100))
        await stream.receive_exactly(PING_BYTES * 100)

    attacker.repeat(ping)
    return stream


LIBP2P_ATTACKS: Final = (
    Attack("identify: news of 1 MB", pushes_news, Ending.STREAM, defaults.NEGOTIATE_TIMEOUT_S),
    _asking("identify: asks and leaves", "/ipfs/id/1.0.0", b"", PING_TIMEOUT_S),
    _asking("ping: silence", PING, b"", PING_TIMEOUT_S),
    _asking("ping: half a ping", PING, bytes(PING_BYTES - 1), PING_TIMEOUT_S),
    Attack("ping: for ever", pings_for_ever, Ending.NONE),
)

ATTACKS: Final = DHT_ATTACKS + DIRECTORY_ATTACKS + REACH_ATTACKS + LIBP2P_ATTACKS
