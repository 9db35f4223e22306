"""Attacks on yamux, by whoever has a peer id, and on the choice of a stream's protocol. Start at
`ATTACKS`.

What yamux lets pass without a word is in the table too: frames of an unknown kind, or about a
stream that is not there, cost who sends them more than who reads them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tests.e2e.hostile.handshakes import KEEPALIVE_S, TRICKLE_S
from tests.e2e.hostile.raw_peer import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GONE,
    MULTISTREAM,
    PING,
    RST,
    SYN,
    WINDOW,
    RawPeer,
    RawStream,
    delimited,
    header,
)
from tests.e2e.hostile.siege import PING as PING_PROTOCOL
from tests.e2e.hostile.siege import SLACK_S, Attack, Attacker, Ending
from tokenplace import defaults
from tokenplace.dht.directory_wire import PROTOCOL_ID as DIRECTORY
from tokenplace.dht.directory_wire import Op, Query, encode_query

STREAM_BYTES: Final = 32 << 10  # in one frame
WINDOW_BYTES: Final = defaults.STREAM_WINDOW_BYTES
NEGOTIATION_S: Final = defaults.NEGOTIATE_TIMEOUT_S
NOBODY: Final = 99  # a stream that was never opened


def _sending(name: str, data: bytes, ends: Ending, within_s: float = 0.0) -> Attack:
    """Frames on a connection of their own."""

    async def begin(attacker: Attacker) -> RawPeer:
        peer = await attacker.connect()
        await peer.send(data)
        return peer

    return Attack(name, begin, ends, within_s)


# ---------------------------------------------------------------- connections


async def answers_no_ping(attacker: Attacker) -> RawPeer:
    peer = await attacker.connect()
    peer.is_polite = False
    return peer


async def reads_nothing(attacker: Attacker) -> RawPeer:
    """Asks for pongs for ever; who does not read learns of its end by writing."""
    peer = await attacker.connect()
    peer.is_reading = False

    async def ask() -> None:
        try:
            await peer.send(header(PING, SYN, 0, 7) * 1000)
        except GONE:
            peer.ended.set()
            raise
        await trio.sleep(0.1)

    attacker.repeat(ask, for_s=KEEPALIVE_S + SLACK_S)
    return peer


async def flood(attacker: Attacker, frames: Callable[[RawPeer], bytes]) -> RawPeer:
    """The same frames again and again, each time on streams of their own."""
    peer = await attacker.connect()

    async def send() -> None:
        await peer.send(frames(peer))
        await trio.lowlevel.checkpoint()

    attacker.repeat(send)
    return peer


def pings(peer: RawPeer) -> bytes:
    return header(PING, SYN, 0, 7) * 500


def pongs(peer: RawPeer) -> bytes:
    return header(PING, ACK, 0, 7) * 500


def streams(peer: RawPeer) -> bytes:
    return b"".join(header(WINDOW, SYN, peer.new_stream().id, 0) for _ in range(100))


def streams_reset_at_once(peer: RawPeer) -> bytes:
    ids = [peer.new_stream().id for _ in range(100)]
    return b"".join(header(WINDOW, SYN, i, 0) + header(WINDOW, RST, i, 0) for i in ids)


def streams_dead_on_arrival(peer: RawPeer) -> bytes:
    ids = [peer.new_stream().id for _ in range(100)]
    return b"".join(header(DATA, SYN | RST, i, 0) for i in ids)


def data_for_nobody(peer: RawPeer) -> bytes:
    return (header(DATA, 0, NOBODY, STREAM_BYTES) + bytes(STREAM_BYTES)) * 10


async def many_streams(attacker: Attacker) -> RawPeer:
    """500 at once, of which a connection holds MAX_INBOUND_STREAMS."""
    peer = await attacker.connect()
    opened = [peer.new_stream() for _ in range(500)]
    await peer.send(b"".join(header(WINDOW, SYN, stream.id, 0) for stream in opened))
    while sum(s.was_reset for s in opened) < 500 - defaults.MAX_INBOUND_STREAMS:  # noqa: ASYNC110
        await trio.sleep(0.01)
    return peer


# ---------------------------------------------------------------- windows


async def answered_stream(peer: RawPeer) -> RawStream:
    """A stream that nobody reads any more, because its question was answered."""
    stream = await peer.open_stream(DIRECTORY)
    await stream.send(encode_query(Query(Op.PEER)))
    await stream.ended.wait()
    stream.ended = trio.Event()  # for our own half
    return stream


async def overflows_a_window(attacker: Attacker) -> RawPeer:
    peer = await attacker.connect()
    stream = await answered_stream(peer)
    with suppress(*GONE):
        for _ in range(2 * WINDOW_BYTES // STREAM_BYTES):
            await stream.send(bytes(STREAM_BYTES))
    return peer


async def fills_many_windows(attacker: Attacker) -> RawPeer:
    """Each window is respected, all of them together are too much."""
    peer = await attacker.connect()
    with suppress(*GONE):
        for _ in range(2 * defaults.MAX_UNREAD_BYTES // WINDOW_BYTES):
            stream = await answered_stream(peer)
            for _ in range(WINDOW_BYTES // STREAM_BYTES):
                await stream.send(bytes(STREAM_BYTES))
    return peer


async def grows_our_window(attacker: Attacker) -> RawPeer:
    """4 GiB more allowed, a thousand times."""
    peer = await attacker.connect()
    stream = await peer.open_stream(PING_PROTOCOL)
    await peer.send(header(WINDOW, 0, stream.id, 0xFFFFFFFF) * 1000)
    await stream.send(bytes(32))
    await stream.receive_exactly(32)
    return peer


# ---------------------------------------------------------------- one stream


async def says_on_a_stream(attacker: Attacker, data: bytes) -> RawStream:
    """On a stream on which no protocol was chosen yet."""
    stream = await (await attacker.connect()).open_stream()
    await stream.send(data)
    return stream


async def asks_on_a_stream(attacker: Attacker, question: bytes) -> RawStream:
    """One question of multistream-select after the other."""
    stream = await says_on_a_stream(attacker, delimited(MULTISTREAM))

    async def ask() -> None:
        await stream.send(question * 20)
        await trio.sleep(0.02)

    attacker.repeat(ask, for_s=2 * NEGOTIATION_S)
    return stream


async def says_byte_by_byte(attacker: Attacker) -> RawStream:
    stream = await says_on_a_stream(attacker, b"")
    attacker.trickle(stream.send, delimited(MULTISTREAM) + delimited("/a" * 200), TRICKLE_S)
    return stream


async def data_after_its_end(attacker: Attacker) -> RawPeer:
    peer = await attacker.connect()
    stream = await peer.open_stream(PING_PROTOCOL)
    await stream.send(bytes(32), flags=FIN)
    for _ in range(10):
        await stream.send(bytes(STREAM_BYTES // 2))
    return peer


async def data_after_its_reset(attacker: Attacker) -> RawPeer:
    peer = await attacker.connect()
    stream = await peer.open_stream(PING_PROTOCOL)
    await stream.send(b"", flags=RST)
    for _ in range(10):
        await stream.send(bytes(STREAM_BYTES // 2))
    return peer


async def one_stream_twice(attacker: Attacker) -> RawPeer:
    peer = await attacker.connect()
    stream = await peer.open_stream(PING_PROTOCOL)
    await peer.send(header(WINDOW, SYN, stream.id, 0))
    return peer


# ---------------------------------------------------------------- the table

Begin = Callable[[Attacker], Awaitable[RawStream]]


def _choosing(name: str, begin: Begin) -> Attack:
    return Attack(f"stream: {name}", begin, Ending.STREAM, NEGOTIATION_S)


def _flooding(name: str, frames: Callable[[RawPeer], bytes]) -> Attack:
    return Attack(f"yamux: a flood of {name}", partial(flood, frames=frames), Ending.NONE)


def _greeted(message: bytes) -> Begin:
    return partial(says_on_a_stream, data=delimited(MULTISTREAM) + message)


ATTACKS: Final = (
    _sending("yamux: silence", b"", Ending.NONE),
    Attack("yamux: answers no ping", answers_no_ping, Ending.CONNECTION, KEEPALIVE_S),
    # While it asks it is alive, until the kernel takes no more of the answers.
    Attack("yamux: reads nothing", reads_nothing, Ending.CONNECTION, 2 * KEEPALIVE_S + SLACK_S),
    _sending("yamux: half a header", header(PING, SYN, 0, 7)[:7], Ending.CONNECTION, KEEPALIVE_S),
    _sending(
        "yamux: half a body",
        header(DATA, 0, NOBODY, 1000) + bytes(999),
        Ending.CONNECTION,
        KEEPALIVE_S,
    ),
    _sending("yamux: another version", header(PING, SYN, 0, 7, version=1), Ending.NONE),
    _sending("yamux: an unknown type", header(9, 0, 1, 0), Ending.NONE),
    _sending("yamux: all flags", header(WINDOW, 0xFFFF, NOBODY, 0), Ending.NONE),
    _sending("yamux: goodbye", header(GO_AWAY, 0, 0, 0), Ending.CONNECTION),
    _sending("yamux: goodbye, unknown reason", header(GO_AWAY, 0, 0, 77), Ending.CONNECTION),
    _sending("yamux: data of 2 GiB", header(DATA, 0, NOBODY, 1 << 31), Ending.CONNECTION),
    _sending("yamux: 2 GiB with its stream", header(DATA, SYN, 1, 1 << 31), Ending.CONNECTION),
    _sending(
        "yamux: data of a window and a byte",
        header(DATA, SYN, 1, WINDOW_BYTES + 1),
        Ending.CONNECTION,
    ),
    _sending("yamux: data for no stream", header(DATA, 0, NOBODY, 9) + bytes(9), Ending.NONE),
    _sending("yamux: reset of no stream", header(WINDOW, RST, NOBODY, 0), Ending.NONE),
    _sending("yamux: end of no stream", header(DATA, FIN, NOBODY, 0), Ending.NONE),
    _sending("yamux: window of no stream", header(WINDOW, 0, NOBODY, 0xFFFFFFFF), Ending.NONE),
    _sending("yamux: an even stream", header(WINDOW, SYN, 2, 0), Ending.NONE),
    _sending("yamux: stream zero", header(WINDOW, SYN, 0, 0), Ending.NONE),
    Attack("yamux: one stream twice", one_stream_twice, Ending.NONE),
    Attack("yamux: 500 streams", many_streams, Ending.NONE),
    _flooding("pings", pings),
    _flooding("pongs", pongs),
    _flooding("streams", streams),
    _flooding("streams that are reset", streams_reset_at_once),
    _flooding("streams that are dead on arrival", streams_dead_on_arrival),
    _flooding("data for nobody", data_for_nobody),
    Attack("yamux: overflows a window", overflows_a_window, Ending.CONNECTION),
    Attack("yamux: fills many windows", fills_many_windows, Ending.CONNECTION),
    Attack("yamux: grows our window without end", grows_our_window, Ending.NONE),
    Attack("yamux: data after its end", data_after_its_end, Ending.NONE),
    Attack("yamux: data after its reset", data_after_its_reset, Ending.NONE),
    _choosing("silence", partial(says_on_a_stream, data=b"")),
    _choosing("half a greeting", partial(says_on_a_stream, data=delimited(MULTISTREAM)[:9])),
    _choosing("no UTF-8", partial(says_on_a_stream, data=b"\x03\xff\xfe\n")),
    _choosing("no UTF-8 after the greeting", _greeted(b"\x03\xff\xfe\n")),
    _choosing("a length that never ends", _greeted(b"\xff" * 9 + b"\x7f")),
    _choosing("a length of 2 GiB", _greeted(b"\x80\x80\x80\x80\x08" + bytes(STREAM_BYTES))),
    _choosing("a length of nothing", _greeted(b"\x00")),
    _choosing(
        "asks for protocols without end", partial(asks_on_a_stream, question=delimited("ls"))
    ),
    _choosing(
        "unknown protocols without end",
        partial(asks_on_a_stream, question=delimited("/unknown/1.0.0")),
    ),
    _choosing("byte by byte", says_byte_by_byte),
)
