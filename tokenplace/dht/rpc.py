"""One query to one peer, and a stream of queries from one. Start at `query`, `serve_stream`."""

from __future__ import annotations

from collections.abc import Callable
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


async def query(host: PeerHost, protocol: str, peer: PeerAddrs, message: Message) -> Message:
    """The answer of `peer` to `message`.

    Raises `QueryFailed`, after `QUERY_TIMEOUT_S` at the latest.
    """
    try:
        with trio.fail_after(defaults.QUERY_TIMEOUT_S):
            stream = await host.open_stream(peer.peer_id, protocol, peer.addrs)
            try:
                await stream.send_all(encode_message(message))
                answer = await _receive(stream, MessageDecoder())
                await stream.aclose()
            finally:
                await stream.reset()  # does nothing after aclose
    except (
        ConnectFailed,
        RemoteProtocolError,
        trio.TooSlowError,
        trio.BrokenResourceError,
    ) as error:
        raise QueryFailed(type(error).__name__) from error
    if answer is None or answer.type != message.type:
        raise QueryFailed("no answer to this query")
    return answer


async def serve_stream(stream: PeerStream, answer: Callable[[Message], Message | None]) -> None:
    """Answer one message after the other until the peer ends the stream.

    Resets it at the first that `answer` refuses by returning None, that is none at all, or at the
    end of the stream's lifetime.
    """
    decoder = MessageDecoder()
    with trio.move_on_after(defaults.DHT_STREAM_LIFETIME_S):
        try:
            while (message := await _receive(stream, decoder)) is not None:
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
