"""Who is a server of this DHT, and asking one. Start at `Members.query`.

Every question teaches something: who answers is there, who fails twice leaves the table. Differs
from libp2p's service: opening a stream makes nobody a server (`kad_dht.py:632`: every client was in
every server's table); answering a question does, so that those who can only ask stay out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
        nursery: trio.Nursery,
        clock: Callable[[], float],
        *,
        allow_private: bool,
    ) -> None:
        """
        nursery: where queries end that nobody waits for. allow_private: whether private addresses
        that strangers name may be dialled.
        """
        self._host = host
        self._protocol = protocol
        self._table = table
        self._nursery = nursery
        self._clock = clock
        self._allow_private = allow_private
        self._turns = Turns(defaults.DHT_QUERIES_PER_PEER)
        self._suspects_in, self._suspects_out = trio.open_memory_channel[str](
            defaults.MAX_DHT_STREAMS
        )
        self._not_servers: dict[str, float] = {}
        self._doubted_until: dict[str, float] = {}
        self._is_asking = True

    def stop_asking(self) -> None:
        """From now on nobody answers: this peer leaves the DHT, whatever still wants to ask."""
        self._is_asking = False

    def is_doubtful(self, peer_id: str) -> bool:
        """Did this peer, member or not, fail to answer lately?"""
        return self._doubted_until.get(peer_id, 0.0) > trio.current_time()

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
        # In a task of its own: a walk that goes on without a silent peer is cancelled here before
        # the silence has lasted long enough to count, and would meet it again every time.
        if not self._is_asking:
            return None
        asked = _Query()
        self._nursery.start_soon(self._run, peer, message, asked)
        await asked.is_done.wait()
        return asked.answer

    async def _run(self, peer: PeerAddrs, message: Message, asked: _Query) -> None:
        asked_at = trio.current_time()
        try:
            async with self._turns.turn(peer.peer_id):
                asked_at = trio.current_time()
                asked.answer = await query(self._host, self._protocol, peer, message)
        except QueryFailed as error:
            log.debug("query to %s: %s", peer.peer_id, error)
            self._table.note_failed(peer.peer_id, asked_at=asked_at, now=trio.current_time())
            self._doubt(peer.peer_id)
        else:
            self._table.note_answered(peer.peer_id)
            self._doubted_until.pop(peer.peer_id, None)
        asked.is_done.set()

    def _doubt(self, peer_id: str) -> None:
        self._doubted_until.pop(peer_id, None)
        self._doubted_until[peer_id] = trio.current_time() + defaults.DOUBT_S
        while len(self._doubted_until) > defaults.MAX_DOUBTED:
            del self._doubted_until[next(iter(self._doubted_until))]

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

    async def probe_all(self, peers: Iterable[PeerAddrs], n_at_once: float = math.inf) -> int:
        """Probe everybody, all at once unless said otherwise; how many answered."""
        n_answered = 0
        limiter = trio.CapacityLimiter(n_at_once)

        async def probe(peer: PeerAddrs) -> None:
            nonlocal n_answered
            async with limiter:
                has_answered = await self.probe(peer)
            n_answered += has_answered  # not awaited in here: the sum would be read too early

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(probe, peer)
        return n_answered

    async def recheck_forever(self) -> None:
        """See whether those who failed once are back, or leave the table."""
        while True:
            await trio.sleep(defaults.RECHECK_S)
            await self.probe_all(self._table.doubtful()[: defaults.K], n_at_once=defaults.ALPHA)

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


@dataclass(slots=True)
class _Query:
    """One query, shared by who waits and who runs it."""

    is_done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
