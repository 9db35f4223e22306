"""What a server of the DHT answers. Start at `KadServer.handle`.

Mended against libp2p's server: a peer may hold few streams and none for ever, so idle ones cannot
stop it; a record is confirmed only when it was stored; only its own provider can announce one;
values are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs, get_peers, put_peers
from tokenplace.dht.providers import ProviderStore
from tokenplace.dht.rpc import serve_stream
from tokenplace.dht.table import PeerTable
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream

MAX_KEY_BYTES: Final = 64  # keys are 32 bytes, peer ids up to 42


class KadServer:
    """Answers the queries of others from the table and the store."""

    def __init__(
        self,
        host: PeerHost,
        table: PeerTable,
        store: ProviderStore,
        clock: Callable[[], float],
        meet: Callable[[str], None],
    ) -> None:
        """meet: told the peer id of everybody who asks; must not wait."""
        self._host = host
        self._table = table
        self._store = store
        self._clock = clock
        self._meet = meet
        self._n_streams: Counter[str] = Counter()

    async def handle(self, stream: PeerStream) -> None:
        """Serve one inbound stream; the handler of the DHT's protocol."""
        peer_id = stream.peer_id
        if (
            self._n_streams[peer_id] >= defaults.MAX_DHT_STREAMS_PER_PEER
            or self._n_streams.total() >= defaults.MAX_DHT_STREAMS
        ):
            await stream.reset()
            return
        self._n_streams[peer_id] += 1
        try:
            self._meet(peer_id)
            await serve_stream(
                stream, lambda message: self.answer(message, peer_id, stream.remote_ip)
            )
        finally:
            self._n_streams[peer_id] -= 1
            self._n_streams += Counter()  # drops the zeros

    def answer(self, message: Message, peer_id: str, remote_ip: str) -> Message | None:
        """The answer to one message of `peer_id`; None refuses it."""
        if not 0 < len(message.key) <= MAX_KEY_BYTES:
            return None
        reply = Message(type=message.type, key=message.key)
        if message.type == Message.FIND_NODE:
            put_peers(self._myself_if(message.key), reply.closerPeers)
        elif message.type == Message.GET_PROVIDERS:
            put_peers(self._store.get(message.key, self._clock()), reply.providerPeers)
        elif message.type == Message.ADD_PROVIDER:
            return reply if self._add_provider(message, peer_id, remote_ip) else None
        else:
            return None
        closer = self._table.closest(message.key, defaults.K + 1)
        put_peers(
            [peer for peer in closer if peer.peer_id != peer_id][: defaults.K], reply.closerPeers
        )
        return reply

    def _add_provider(self, message: Message, peer_id: str, remote_ip: str) -> bool:
        providers = get_peers(message.providerPeers, 1)
        if not providers or providers[0].peer_id != peer_id or not providers[0].addrs:
            return False
        return self._store.add(message.key, providers[0], remote_ip, self._clock())

    def _myself_if(self, key: bytes) -> list[PeerAddrs]:
        """Who asks for our own id gets our addresses, from the one who knows."""
        if key != self._host.identity.peer_id_bytes:
            return []
        addrs = self._host.addrs()[: defaults.MAX_PEER_ADDRS]
        return [PeerAddrs(self._host.peer_id, tuple(addrs))]
