"""Messages of the DHT: libp2p's Kademlia protobuf behind a length. Start at `MessageDecoder`.

No I/O here; `rpc` sends and serves them. Differs from libp2p's own handling: a message is refused
by its announced length before a byte of it is buffered, what strangers list is cut to bounded
numbers of peers and addresses, and the last ids and addresses read and written are remembered: the
same peers come up in every answer, and libp2p's parsers were a third of a query's CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError

MAX_PEER_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class PeerAddrs:
    """A peer id in base58, and where that peer may be reached."""

    peer_id: str
    addrs: tuple[str, ...]


class MessageDecoder:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next_message(self) -> Message | None:
        """The next whole message; None: more bytes are needed.

        Raises `RemoteProtocolError` for a message that is too long, as soon as that is announced,
        or is none.
        """
        header = self._decode_length()
        if header is None:
            return None
        length, start = header
        if length > defaults.MAX_DHT_MESSAGE_BYTES:
            raise RemoteProtocolError("its DHT message is too long")
        if len(self._buffer) < start + length:
            return None
        data = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        message = Message()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise RemoteProtocolError("its DHT message cannot be read") from error
        return message

    @property
    def is_empty(self) -> bool:
        """Whether no message has begun."""
        return not self._buffer

    def _decode_length(self) -> tuple[int, int] | None:
        """The announced length and where its message starts: LEB128 of at most three bytes."""
        length = 0
        for index, byte in enumerate(self._buffer[:3]):
            length |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return length, index + 1
        if len(self._buffer) >= 3:
            raise RemoteProtocolError("its DHT message is too long")
        return None


def encode_message(message: Message) -> bytes:
    """The message as it goes on the wire, length first."""
    data = message.SerializeToString()
    length, prefix = len(data), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data


def put_peers(peers: Iterable[PeerAddrs], entries: Sequence[Message.Peer]) -> None:
    """Append `peers` to a message's list of closer peers or providers."""
    for peer in peers:
        entry = entries.add()  # type: ignore[attr-defined]  # protobuf's container
        entry.id = peer_id_bytes(peer.peer_id)
        entry.addrs.extend(_addr_bytes(addr) for addr in peer.addrs)


def add_provider(key: bytes, provider: PeerAddrs) -> Message:
    """The message that announces a provider; one without addresses takes the record back."""
    message = Message(type=Message.ADD_PROVIDER, key=key)
    put_peers([provider], message.providerPeers)
    return message


def get_peers(entries: Iterable[Message.Peer], max_peers: int) -> list[PeerAddrs]:
    """The first `max_peers` of a stranger's list, with the addresses of each."""
    peers = []
    for entry, _ in zip(entries, range(max_peers), strict=False):
        if 0 < len(entry.id) <= MAX_PEER_ID_BYTES:
            peers.append(PeerAddrs(_peer_id_text(entry.id), get_addrs(entry.addrs)))
    return peers


def get_addrs(addrs: Iterable[bytes]) -> tuple[str, ...]:
    """The readable ones of the first `MAX_PEER_ADDRS` addresses, as text, without repetitions."""
    texts = []
    for data, _ in zip(addrs, range(defaults.MAX_PEER_ADDRS), strict=False):
        if 0 < len(data) <= defaults.MAX_ADDR_BYTES and (text := _addr_text(data)):
            texts.append(text)
    return tuple(dict.fromkeys(texts))


@lru_cache(defaults.MAX_PARSED)
def peer_id_bytes(peer_id: str) -> bytes:
    """The raw bytes of a peer id in base58."""
    data: bytes = ID.from_base58(peer_id).to_bytes()
    return data


@lru_cache(defaults.MAX_PARSED)
def _peer_id_text(data: bytes) -> str:
    return ID(data).to_base58()


@lru_cache(defaults.MAX_PARSED)
def _addr_bytes(addr: str) -> bytes:
    data: bytes = Multiaddr(addr).to_bytes()
    return data


@lru_cache(defaults.MAX_PARSED)
def _addr_text(data: bytes) -> str:
    """Empty for an address that cannot be read."""
    try:
        return str(Multiaddr(data))
    except Exception:  # whatever multiaddr's codecs raise, such an address is none
        return ""
