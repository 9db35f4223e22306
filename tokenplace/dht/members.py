"""Who is a server of this DHT, and asking one. Start at `Members.query`.

Every question teaches something: who answers is there, who fails twice leaves the table. Differs
from libp2p's service: opening a stream makes nobody a server (`kad_dht.py:632`: every client was in
every server's table); answering a question does, so that those who can only ask stay out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tokenplace import defaults
from tokenplace.dht.addresses import usable_addrs
from tokenplace.dht.messages import PeerAddrs, add_provider, get_peers
from tokenplace.dht.rpc import Answer, QueryFailed, query, tell
from tokenplace.dht.table import PeerTable
from tokenplace.dht.turns import Turns
from tokenplace.errors import ConnectFailed
from tokenplace.peer.host import PeerHost, parse_peer_id

log = logging.getLogger(__name__)


class Members:
    """Fills `table` with peers that answer, and empties it of those that do not."""

    def __init__(
        self,
        host: PeerHost,
        protocol: str,
        table: PeerTable,
        clock: Callable[[], float],
        *,
        allow_private: bool,
    ) -> None:
        """allow_private: whether private addresses that strangers name may be dialled."""
        self._host = host
        self._protocol = protocol
        self._table = table
        self._clock = clock
        self._allow_private = allow_private
        self._turns = Turns(defaults.DHT_QUERIES_PER_PEER)
        self._suspects_in, self._suspects_out = trio.open_memory_channel[str](
            defaults.MAX_DHT_STREAMS
        )
        self._not_servers: dict[str, float] = {}

    def reachable(self, peers: Iterable[PeerAddrs]) -> list[PeerAddrs]:
        """What strangers said of `peers`, cut to addresses that may be dialled on their word."""
        usable = (
            PeerAddrs(
                p.peer_id, usable_addrs(p.addrs, p.peer_id, allow_private=self._allow_private)
            )
            for p in peers
        )
        return [peer for peer in usable if peer.addrs]

    async def query(self, peer: PeerAddrs, message: Message) -> Message | None:
        """The peer's answer; None if there was none, and then the table knows it too."""
        answer = await self._ask(peer, message)
        return answer.message if answer is not None else None

    async def _ask(self, peer: PeerAddrs, message: Message) -> Answer | None:
        asked_at = trio.current_time()
        try:
            async with self._turns.turn(peer.peer_id):
                asked_at = trio.current_time()
                answer = await query(self._host, self._protocol, peer, message)
        except QueryFailed as error:
            log.debug("query to %s: %s", peer.peer_id, error)
            self._table.note_failed(peer.peer_id, asked_at=asked_at, now=trio.current_time())
            return None
        self._table.note_answered(peer.peer_id)
        return answer

    async def take_back(
        self, holder: PeerAddrs, keys: list[bytes], limiter: trio.CapacityLimiter
    ) -> None:
        """Tell `holder` that this peer provides `keys` no more; it may fail to hear of it."""
        me = PeerAddrs(self._host.peer_id, ())
        try:
            async with limiter, self._turns.turn(holder.peer_id):
                messages = [add_provider(key, me) for key in keys]
                await tell(self._host, self._protocol, holder, messages)
        except QueryFailed as error:
            log.debug("taking records back from %s: %s", holder.peer_id, error)

    async def probe(self, peer: PeerAddrs) -> bool:
        """Ask a peer about itself: if it answers it is a server, and enters the table."""
        try:
            key = parse_peer_id(peer.peer_id).to_bytes()
        except ConnectFailed:
            return False
        answer = await self._ask(peer, Message(type=Message.FIND_NODE, key=key))
        if answer is None:
            return False
        named = self.reachable(get_peers(answer.message.closerPeers, defaults.K + 1))
        told = next((known.addrs for known in named if known.peer_id == peer.peer_id), ())
        worked = {addr for known in self.reachable([peer]) for addr in known.addrs}
        # Behind a router or a name it does not know all its addresses: then ours stay too.
        addrs = told if worked & set(told) else (*told, *peer.addrs)
        self._table.add(PeerAddrs(peer.peer_id, addrs[: defaults.MAX_PEER_ADDRS]), answer.remote_ip)
        return True

    async def probe_all(self, peers: Iterable[PeerAddrs]) -> int:
        """Probe everybody at once; how many answered."""
        n_answered = 0

        async def probe(peer: PeerAddrs) -> None:
            nonlocal n_answered
            has_answered = await self.probe(peer)  # not in the sum: that would read it too early
            n_answered += has_answered

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(probe, peer)
        return n_answered

    async def recheck_forever(self) -> None:
        """See whether those who failed once are back, or leave the table."""
        while True:
            await trio.sleep(defaults.RECHECK_S)
            await self.probe_all(self._table.doubtful()[: defaults.K])

    # ------------------------------------------------------------ those who ask us

    def suspect(self, peer_id: str) -> None:
        """Somebody asked us: find out soon whether it is a server too, and if not, leave it be."""
        if self._table.has(peer_id) or self._not_servers.get(peer_id, 0.0) > self._clock():
            return
        while len(self._not_servers) >= defaults.MAX_TABLE_PEERS:
            del self._not_servers[next(iter(self._not_servers))]
        self._not_servers[peer_id] = self._clock() + defaults.CLIENT_MEMORY_S
        try:
            self._suspects_in.send_nowait(peer_id)
        except trio.WouldBlock:
            del self._not_servers[peer_id]  # busy; its next query brings it back

    def reconsider(self, peer_id: str) -> None:
        """Forget that the peer was no server: its next query has it probed again."""
        self._not_servers.pop(peer_id, None)

    async def probe_suspects(self) -> None:
        """Probe one suspect after the other. Run `ALPHA` of these."""
        async for peer_id in self._suspects_out:
            if await self.probe(PeerAddrs(peer_id, ())):
                self._not_servers.pop(peer_id, None)
