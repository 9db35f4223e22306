"""What a server of the DHT answers. Start at `KadServer.handle`.

Mended against libp2p's server (`kad_dht.py`): a peer may hold few streams and none for ever, so 12
idle ones cannot stop it (587); a record is confirmed only when it was stored (libp2p drops what is
over 10 in 10 s without a word, 313); a provider can take its record back; values, which libp2p
takes from anybody for any key (1156), are refused. Only its own provider can announce a record, as
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        provided: Callable[[str], None],
        addrs: Callable[[], Sequence[str]],
    ) -> None:
        """
        meet: told the peer id of everybody who asks. provided: told who has announced a record.
        Neither may wait. addrs: where this peer is reached.
        """
        self._host = host
        self._table = table
        self._store = store
        self._clock = clock
        self._meet = meet
        self._provided = provided
        self._addrs = addrs

    async def handle(self, stream: PeerStream) -> None:
        """Serve one inbound stream; the handler of the DHT's protocol."""
        peer_id = stream.peer_id
        self._meet(peer_id)
        await serve_stream(stream, lambda message: self.answer(message, peer_id, stream.remote_ip))

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
            return reply if self._take_provider(message, peer_id, remote_ip) else None
        else:
            return None
        closer = self._table.closest(message.key, defaults.K + 1)
        put_peers(
            [peer for peer in closer if peer.peer_id != peer_id][: defaults.K], reply.closerPeers
        )
        return reply

    def _take_provider(self, message: Message, peer_id: str, remote_ip: str) -> bool:
        """Store the asking peer's record, or, if it names no address, forget it."""
        providers = get_peers(message.providerPeers, 1)
        if len(message.providerPeers) != 1 or not providers or providers[0].peer_id != peer_id:
            return False
        if not message.providerPeers[0].addrs:
            self._store.remove(message.key, peer_id)
            return True
        if not providers[0].addrs:
            return False  # there are some, but none that can be read
        is_stored = self._store.add(message.key, providers[0], remote_ip, self._clock())
        if is_stored:
            self._provided(peer_id)
        return is_stored

    def _myself_if(self, key: bytes) -> list[PeerAddrs]:
        """Who asks for our own id gets our addresses, from the one who knows."""
        if key != self._host.identity.peer_id_bytes:
            return []
        addrs = self._addrs()[: defaults.MAX_PEER_ADDRS]
        return [PeerAddrs(self._host.peer_id, tuple(addrs))]
