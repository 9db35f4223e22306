"""Knowing donors before anybody asks for one. Start at `Explorer.run`.

All of it is background work, a little at a time: walks through the DHT ever less often, a look at
one directory or two while few donors are known, and what shows by itself: who announces itself
here, who was connected to, and whose connection is gone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import trio

from tokenplace import defaults
from tokenplace.dht.asker import Lane
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DonorRecord
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.scouting import Scout, distance
from tokenplace.dht.wanted import Wanted
from tokenplace.peer.host import ConnectionInfo


class Explorer:
    """Fills the scout's cache, and keeps what is in there fresh."""

    def __init__(self, scout: Scout, asked_lately: Callable[[], Sequence[Wanted]]) -> None:
        """asked_lately: what was looked for in the last `ASKED_FOR_S`, or is asked now."""
        self._scout = scout
        self._asked_lately = asked_lately
        self._lane = Lane.of(defaults.BACKGROUND_FETCHES, defaults.BACKGROUND_WALKS)
        # Apart: anybody may announce something here and then say nothing.
        self._hint_lane = Lane.of(defaults.HINT_FETCHES, defaults.BACKGROUND_WALKS)
        self._hints_in, self._hints_out = trio.open_memory_channel[str](defaults.MAX_HINTS)
        self._hinted_at: dict[str, float] = {}
        self._lost_at: dict[str, float] = {}

    async def run(self) -> None:
        """Do all of it, until cancelled."""
        self._scout.kad.on_provided(self._hint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._explore_forever)
            nursery.start_soon(self._look_forever)
            nursery.start_soon(self._watch_connections, nursery)
            nursery.start_soon(self._refresh_forever)
            for _ in range(defaults.HINT_FETCHES):
                nursery.start_soon(self._follow_hints)

    # ------------------------------------------------------------ looking around

    async def _explore_forever(self) -> None:
        """Learn of donors before anybody asks; from bootstrap peers even before having joined."""
        pause_s = defaults.EXPLORE_FIRST_S
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._explore_known)
                if not self._scout.kad.n_peers():
                    await self._scout.joiner.wait_joined()
                    nursery.start_soon(self._explore_known)  # who did not answer may do so now
                keys = keys_to_search(self._scout.network, Kind.DONORS, "", self._scout.now())
                await self._scout.walk(keys, self._lane, is_enough=lambda: True)
            # Often at first: a young network's donors come up together with those who ask.
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, defaults.EXPLORE_S)

    async def _explore_known(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self._scout.peers_to_ask():
                nursery.start_soon(self._ask_about_all, peer)

    async def _ask_about_all(self, peer: PeerAddrs) -> None:
        for query in (Query(Op.PEER), Query(Op.SAMPLE)):
            await self._scout.asker.ask(peer, query, self._lane)

    async def _look_forever(self) -> None:
        """While few donors are known a new one matters: then directories are asked more often."""
        while True:
            await trio.sleep(defaults.LOOK_S * random.uniform(0.5, 1.5))
            if len(self._scout.cache.donors(self._scout.now())) < defaults.FEW_DONORS:
                peers = self._scout.peers_to_ask()
                for peer in random.sample(peers, min(len(peers), defaults.LOOKED_AT)):
                    await self._scout.asker.ask(peer, Query(Op.SAMPLE), self._lane)

    # ------------------------------------------------------------ what shows by itself

    def _hint(self, peer_id: str) -> None:
        """A donor may be there, or no longer: see, but not again for the same few moments."""
        now = trio.current_time()
        if now - self._hinted_at.get(peer_id, -math.inf) < defaults.ASK_AGAIN_S:
            return
        try:
            self._hints_in.send_nowait(peer_id)
        except trio.WouldBlock:
            return  # there is enough to do; what was missed is found by looking around
        self._hinted_at.pop(peer_id, None)
        self._hinted_at[peer_id] = now
        while len(self._hinted_at) > defaults.MAX_HINTS:
            del self._hinted_at[next(iter(self._hinted_at))]

    async def _follow_hints(self) -> None:
        async for peer_id in self._hints_out:
            record = self._scout.cache.get(peer_id, self._scout.now())
            addrs = record.addrs if record is not None else ()
            await self._scout.asker.ask_donor(peer_id, addrs, self._hint_lane)

    async def _watch_connections(self, nursery: trio.Nursery) -> None:
        """Ask whoever this peer has connected to, and known donors whose connection is gone, also
        one that came and went between two looks.
        """
        before: dict[str, ConnectionInfo] = {}
        looked_at = self._scout.now()
        while True:
            connections = self._scout.host.connections()
            dialled = {info.peer_id for info in connections if info.direction == "out"}
            # Sorted, as sets have another order in each process: simulations must replay.
            for peer_id in sorted(dialled - before.keys()):
                nursery.start_soon(self._ask_about_all, PeerAddrs(peer_id, ()))
            connected = {info.peer_id: info for info in connections}
            donors = self._scout.cache.donors(self._scout.now())
            for record in sorted(donors, key=lambda record: record.peer_id):
                was_heard = (record.live_received_at or 0.0) > looked_at
                is_lost = record.peer_id in before or was_heard
                if is_lost and record.peer_id not in connected:
                    self._note_lost(record.peer_id, before.get(record.peer_id), connections)
            before, looked_at = connected, self._scout.now()
            is_waiting = not donors
            await trio.sleep(defaults.JOIN_POLL_S if is_waiting else defaults.CONNECTIONS_CHECK_S)

    def _note_lost(
        self, peer_id: str, lost: ConnectionInfo | None, left: Sequence[ConnectionInfo]
    ) -> None:
        """The connection to a donor is gone. If it fell silent while others spoke, so is the donor;
        else see: it may have had no place for who is idle, or this peer's own network is away.
        """
        now = trio.current_time()
        is_silent = lost is not None and lost.silent_s > defaults.KEEPALIVE_TIMEOUT_S
        if is_silent and any(
            other.silent_s < defaults.KEEPALIVE_INTERVAL_S
            for other in left
            if not self._scout.cache.is_own(other.peer_id)
        ):
            self._scout.cache.mark_failed(peer_id, self._scout.now())
            self._scout.asker.publish()
        elif now - self._lost_at.get(peer_id, -math.inf) >= defaults.LOST_AGAIN_S:
            self._lost_at.pop(peer_id, None)
            self._lost_at[peer_id] = now
            while len(self._lost_at) > defaults.DIRECTORY_MAX_DONORS:
                del self._lost_at[next(iter(self._lost_at))]
            self._hint(peer_id)

    # ------------------------------------------------------------ staying fresh

    async def _refresh_forever(self) -> None:
        """Keep what is known of donors that matter fresh; see whether failed ones are back."""
        while True:
            async with trio.open_nursery() as nursery:
                for record in self._due():
                    nursery.start_soon(
                        self._scout.asker.ask_donor, record.peer_id, record.addrs, self._lane
                    )
            await trio.sleep(defaults.REFRESH_CHECK_S * random.uniform(0.5, 1.5))

    def _due(self) -> list[DonorRecord]:
        now, asked, cache = self._scout.now(), self._asked_lately(), self._scout.cache

        def is_asked_for(record: DonorRecord) -> bool:
            return any(wanted.is_met_by(record) for wanted in asked)

        def is_due(record: DonorRecord) -> bool:
            if record.live_received_at is None:
                return True
            most = defaults.REFRESH_ASKED_S if is_asked_for(record) else defaults.REFRESH_IDLE_S
            # Jittered, so that a donor is not asked by everybody in the same moment.
            return now - record.live_received_at > most * random.uniform(0.75, 1.0)

        nearest = sorted(
            cache.donors(now),
            key=lambda record: (not is_asked_for(record), distance(record)),
        )[: defaults.MAX_REFRESHED]
        back = cache.failed(now, is_due_only=True)[: defaults.MAX_REFRESHED]
        return [*filter(is_due, nearest), *back]
