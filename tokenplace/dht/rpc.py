"""One query to one peer, and a stream of queries from one. Start at `query`, `serve_stream`.

Differs from libp2p: a silent peer costs 3 s, not 10 (`common.py`, `QUERY_TIMEOUT`), and holds a
server's stream for 20 s at most, not for ever (`kad_dht.py:587`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tokenplace import defaults
from tokenplace.dht.messages import MessageDecoder, PeerAddrs, encode_message
from tokenplace.errors import ConnectFailed, RemoteProtocolError
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream

RECEIVE_BYTES: Final = 16 << 10


class QueryFailed(Exception):
    """The peer did not answer the query: unreachable, silent, or not a server of this DHT."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer answered, and the address of its end of the connection."""

    message: Message
    remote_ip: str


async def query(host: PeerHost, protocol: str, peer: PeerAddrs, message: Message) -> Answer:
    """The answer of `peer` to `message`.

    Raises `QueryFailed`, after `QUERY_TIMEOUT_S` at the latest.
    """
    async with _asking(host, protocol, peer) as stream:
        await stream.send_all(encode_message(message))
        answer = await _receive(stream, MessageDecoder())
        await stream.aclose()
    if answer is None or answer.type != message.type:
        raise QueryFailed("no answer to this query")
    return Answer(answer, stream.remote_ip)


async def tell(host: PeerHost, protocol: str, peer: PeerAddrs, messages: list[Message]) -> None:
    """Send `messages` one behind the other, and wait until `peer` has answered them all.

    Raises `QueryFailed`, after `QUERY_TIMEOUT_S` at the latest.
    """
    decoder = MessageDecoder()
    async with _asking(host, protocol, peer) as stream:
        await stream.send_all(b"".join(map(encode_message, messages)))
        for _ in messages:
            if await _receive(stream, decoder) is None:
                raise QueryFailed("fewer answers than messages")
        await stream.aclose()


@asynccontextmanager
async def _asking(host: PeerHost, protocol: str, peer: PeerAddrs) -> AsyncIterator[PeerStream]:
    """A stream to `peer` for `QUERY_TIMEOUT_S`; what goes wrong leaves as `QueryFailed`."""
    try:
        with trio.fail_after(defaults.QUERY_TIMEOUT_S):
            stream = await host.open_stream(peer.peer_id, protocol, peer.addrs)
            try:
                yield stream
            finally:
                await stream.reset()  # does nothing after aclose
    except (
        ConnectFailed,
        RemoteProtocolError,
        trio.TooSlowError,
        trio.BrokenResourceError,
    ) as error:
        raise QueryFailed(type(error).__name__) from error


async def serve_stream(stream: PeerStream, answer: Callable[[Message], Message | None]) -> None:
    """Answer one message after the other until the peer ends the stream.

    Resets it at the first that `answer` refuses by returning None, that is none at all, when the
    first one is late, or at the end of the stream's lifetime.
    """
    decoder = MessageDecoder()
    ends_at = trio.current_time() + defaults.DHT_STREAM_LIFETIME_S
    with trio.move_on_after(defaults.FIRST_FRAME_TIMEOUT_S) as scope:
        try:
            while (message := await _receive(stream, decoder)) is not None:
                scope.deadline = ends_at
                reply = answer(message)
                if reply is None:
                    break
                await stream.send_all(encode_message(reply))
            else:
                await stream.aclose()
        except (RemoteProtocolError, trio.BrokenResourceError):
            pass  # the peer's doing; what is left of the stream is reset
    await stream.reset()


async def _receive(stream: PeerStream, decoder: MessageDecoder) -> Message | None:
    """The next message, or None at the end. Raises `RemoteProtocolError` for half a message."""
    while (message := decoder.next_message()) is None:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            if decoder.is_empty:
                return None
            raise RemoteProtocolError("its DHT message is not whole")
        decoder.receive_data(data)
    return message
