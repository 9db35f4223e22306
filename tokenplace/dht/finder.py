"""Finding donors for a model, and knowing them before they are needed. Start at `Finder.find`.

The way goes from what asks least of others to what asks most: the cache, the directories of peers
already known, the DHT's keys of the model. The DHT only names peers; what counts is what each
signed and hands over itself.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tokenplace import defaults
from tokenplace.dht.asker import Asker, Lane
from tokenplace.dht.bootstrap import Joiner
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord, DonorStatus
from tokenplace.dht.kad import Kad
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.wanted import Wanted
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FindResult:
    """Donors found. `complete`: everybody who could know one was asked, so empty means none."""

    donors: tuple[DonorRecord, ...]
    complete: bool


@dataclass(slots=True)
class _Search:
    """One search under way, shared by everybody who waits for the same."""

    wanted: Wanted
    n_directories: int = 0
    is_walked: bool = False
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def complete(self) -> bool:
        return self.is_walked and self.n_directories > 0


@asynccontextmanager
async def open_finder(
    host: PeerHost,
    kad: Kad,
    joiner: Joiner,
    cache: DirectoryCache,
    *,
    network: str,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Finder]:
    """Look for donors until the block exits, on its own and when asked. now: unix seconds."""
    async with open_background() as nursery:
        finder = Finder(host, kad, joiner, cache, network, now, nursery)
        nursery.start_soon(finder._explore_forever)
        nursery.start_soon(finder._refresh_forever)
        yield finder


class Finder:
    """Donors, found and kept fresh. Make one with `open_finder`, on the host that asks."""

    def __init__(
        self,
        host: PeerHost,
        kad: Kad,
        joiner: Joiner,
        cache: DirectoryCache,
        network: str,
        now: Callable[[], float],
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._kad = kad
        self._joiner = joiner
        self._cache = cache
        self._network = network
        self._now = now
        self._nursery = nursery
        self._searches: dict[Wanted, _Search] = {}
        self._asked_at: dict[Wanted, float] = {}
        self._asker = Asker(host, cache, now)
        self._foreground = Lane.of(defaults.FOREGROUND_FETCHES, defaults.FOREGROUND_WALKS)
        self._background = Lane.of(defaults.BACKGROUND_FETCHES, defaults.BACKGROUND_WALKS)

    # ------------------------------------------------------------ for who asks

    async def find(
        self,
        names: Sequence[str],
        artifacts: Sequence[str] = (),
        *,
        deadline_s: float = defaults.FIND_TIMEOUT_S,
    ) -> FindResult:
        """Donors of a model, as soon as there are some; at the latest after `deadline_s`.

        names: what donors may call it. artifacts: sha256 in hex, or at least 12 digits of it; when
        there are any, only they decide, and names only say where to look. Ends early, with an empty
        and complete result, when it is certain that nobody offers it.
        """
        wanted = Wanted(tuple(names), tuple(artifacts))
        self._note_asked(wanted)
        complete = False
        with trio.move_on_after(deadline_s):
            while not self._heard_lately(wanted):
                if self._usable(wanted):
                    await self._probe(wanted)
                    if self._usable(wanted):
                        break
                complete = await self._wait_for_search(wanted)
                if not self._usable(wanted):
                    break
        return FindResult(self._usable(wanted), complete)

    def known(self) -> list[DonorRecord]:
        """All donors that can be asked now, of whatever model."""
        return self._cache.donors(self._now())

    def status(self) -> list[DonorStatus]:
        """All living donors, failed ones too, for a person."""
        return self._cache.status(self._now())

    async def renew(
        self, peer_id: str, keys: bytes | None, live: bytes | None
    ) -> DonorRecord | None:
        """The donor's record after a refusal, with the statements that came with it.

        What did not come along, or is wrong, is fetched from the donor. None if that fails too.
        """
        if keys is not None or live is not None:
            try:
                return self._cache.renew(peer_id, keys, live, now=self._now())
            except RemoteProtocolError as error:
                log.debug("refusal of %s: %s", peer_id, error)
        record = self._cache.get(peer_id, self._now())
        if record is not None and await self._asker.ask_donor(
            peer_id, record.addrs, self._foreground
        ):
            return self._cache.get(peer_id, self._now())
        return None

    def mark_failed(self, peer_id: str) -> None:
        """The donor did not answer: not offered again until it has answered something itself."""
        self._cache.mark_failed(peer_id, self._now())
        self._asker.publish()

    def forget(self, peer_id: str) -> None:
        """Drop the donor; it may be found again."""
        self._cache.forget(peer_id)

    def _usable(self, wanted: Wanted) -> tuple[DonorRecord, ...]:
        return tuple(self._cache.lookup(wanted.names, wanted.artifacts, self._now()))

    def _heard_lately(self, wanted: Wanted) -> bool:
        now = self._now()
        return any(record.load(now) is not None for record in self._usable(wanted))

    def _note_asked(self, wanted: Wanted) -> None:
        self._asked_at.pop(wanted, None)
        self._asked_at[wanted] = trio.current_time()
        while len(self._asked_at) > defaults.MAX_ASKED:
            del self._asked_at[next(iter(self._asked_at))]

    async def _probe(self, wanted: Wanted) -> None:
        """Donors are known, but from others or from long ago: see who lives, not for long."""
        nearest = sorted(self._usable(wanted), key=_distance)[: defaults.MAX_PROBED]
        n_left = len(nearest)
        all_asked = trio.Event()

        async def ask(record: DonorRecord) -> None:
            nonlocal n_left
            await self._asker.ask_donor(record.peer_id, record.addrs, self._foreground)
            n_left -= 1
            if not n_left:
                all_asked.set()

        for record in nearest:
            self._nursery.start_soon(ask, record)
        with trio.move_on_after(defaults.PROBE_S):
            while self._usable(wanted) and not self._heard_lately(wanted):
                await self._asker.news.wait()
            with trio.move_on_after(defaults.FIND_GRACE_S):
                await all_asked.wait()

    async def _wait_for_search(self, wanted: Wanted) -> bool:
        """Start a search or join one, until it has a donor or ends; whether it was complete."""
        search = self._searches.get(wanted)
        if search is None:
            if len(self._searches) >= defaults.MAX_SEARCHES:
                return False
            search = self._searches[wanted] = _Search(wanted)
            self._nursery.start_soon(self._search, search)
        while not search.done.is_set() and not self._usable(wanted):
            await self._asker.news.wait()
        if self._heard_lately(wanted):
            with trio.move_on_after(defaults.FIND_GRACE_S):
                await search.done.wait()
        return search.complete

    # ------------------------------------------------------------ one search

    async def _search(self, search: _Search) -> None:
        """Ask known peers, then the DHT if they could not help."""
        with trio.move_on_after(defaults.FIND_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                asked = trio.Event()
                nursery.start_soon(self._ask_known, search, asked)
                with trio.move_on_after(defaults.DIRECTORIES_FIRST_S):
                    await asked.wait()
                if not self._usable(search.wanted):
                    await self._ask_dht(search)
        del self._searches[search.wanted]
        search.done.set()
        self._asker.publish()

    async def _ask_known(self, search: _Search, asked: trio.Event) -> None:
        """Directories of known peers, and donors that failed before: one may be back."""
        queries = search.wanted.queries()
        async with trio.open_nursery() as nursery:
            for peer in self._peers_to_ask():
                nursery.start_soon(self._ask_one, search, peer, queries)
            for record in self._cache.failed(self._now(), is_due_only=False):
                if search.wanted.is_met_by(record):
                    nursery.start_soon(
                        self._asker.ask_donor, record.peer_id, record.addrs, self._foreground
                    )
        asked.set()

    async def _ask_one(self, search: _Search, peer: PeerAddrs, queries: list[Query]) -> None:
        answered = [await self._asker.ask(peer, query, self._foreground) for query in queries]
        search.n_directories += None not in answered

    async def _ask_dht(self, search: _Search) -> None:
        if not self._joiner.peers and not self._kad.n_peers():
            return  # alone: nobody to wait for
        await self._joiner.wait_joined()
        keys = search.wanted.keys(self._network, self._now())
        is_walked = await self._walk(keys, self._foreground)
        if not is_walked and not self._usable(search.wanted):
            # Cut short because providers were named, but none of them is there: look for all.
            is_walked = await self._walk(keys, self._foreground, soft_s=defaults.FIND_TIMEOUT_S)
        search.is_walked = is_walked

    async def _walk(
        self,
        keys: Iterable[bytes],
        lane: Lane,
        soft_s: float = defaults.WALK_SOFT_S,
    ) -> bool:
        """Ask the DHT for `keys`, and the donors it names; whether every walk ended by itself."""
        ended: list[bool] = []
        met: set[str] = set()
        async with trio.open_nursery() as nursery:

            async def walk(key: bytes) -> None:
                async with lane.walks:
                    found = await self._kad.find_providers(key, soft_s=soft_s)
                ended.append(found.complete)
                for peer in found.providers:
                    if peer.peer_id not in met and self._is_worth_asking(peer.peer_id):
                        met.add(peer.peer_id)
                        nursery.start_soon(self._asker.ask_donor, peer.peer_id, peer.addrs, lane)

            for key in keys:
                nursery.start_soon(walk, key)
        return all(ended)

    # ------------------------------------------------------------ in the background

    async def _explore_forever(self) -> None:
        """Learn of donors before anybody asks; from bootstrap peers even before having joined."""
        pause_s = defaults.EXPLORE_FIRST_S
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._explore_known)
                if not self._kad.n_peers():
                    await self._joiner.wait_joined()
                    nursery.start_soon(self._explore_known)  # who did not answer may do so now
                keys = keys_to_search(self._network, Kind.DONORS, "", self._now())
                await self._walk(keys, self._background)
            # Often at first: a young network's donors come up together with those who ask.
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, defaults.EXPLORE_S)

    async def _explore_known(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self._peers_to_ask():
                for query in (Query(Op.PEER), Query(Op.SAMPLE)):
                    nursery.start_soon(self._asker.ask, peer, query, self._background)

    async def _refresh_forever(self) -> None:
        """Keep what is known of donors that matter fresh; see whether failed ones are back."""
        while True:
            async with trio.open_nursery() as nursery:
                for record in self._due():
                    nursery.start_soon(
                        self._asker.ask_donor, record.peer_id, record.addrs, self._background
                    )
            await trio.sleep(defaults.REFRESH_CHECK_S * random.uniform(0.5, 1.5))

    def _due(self) -> list[DonorRecord]:
        now, recently = self._now(), trio.current_time() - defaults.ASKED_FOR_S
        asked = [wanted for wanted, at in self._asked_at.items() if at >= recently]

        def is_asked_for(record: DonorRecord) -> bool:
            return any(wanted.is_met_by(record) for wanted in asked)

        def is_due(record: DonorRecord) -> bool:
            if record.live_received_at is None:
                return True
            most = defaults.REFRESH_ASKED_S if is_asked_for(record) else defaults.REFRESH_IDLE_S
            # Jittered, so that a donor is not asked by everybody in the same moment.
            return now - record.live_received_at > most * random.uniform(0.75, 1.0)

        nearest = sorted(
            self._cache.donors(now),
            key=lambda record: (not is_asked_for(record), _distance(record)),
        )[: defaults.MAX_REFRESHED]
        back = self._cache.failed(now, is_due_only=True)[: defaults.MAX_REFRESHED]
        return [*filter(is_due, nearest), *back]

    # ------------------------------------------------------------ whom to ask

    def _peers_to_ask(self) -> list[PeerAddrs]:
        """Peers whose directories are near: the bootstrap peers, and whoever is connected."""
        connected = [PeerAddrs(info.peer_id, ()) for info in self._host.connections()]
        random.shuffle(connected)
        peers = {peer.peer_id: peer for peer in (*connected, *self._joiner.peers)}
        speaking = [peer for peer in peers.values() if not self._asker.is_silent(peer.peer_id)]
        return (speaking or list(peers.values()))[-defaults.MAX_DIRECTORIES_ASKED :]

    def _is_worth_asking(self, peer_id: str) -> bool:
        """False if it was heard only now, or just did not answer."""
        record = self._cache.get(peer_id, self._now())
        is_fresh = record is not None and record.load(self._now()) is not None
        return not is_fresh and not self._asker.is_silent(peer_id)


def _distance(record: DonorRecord) -> float:
    """For sorting: round trip in seconds, never measured last."""
    return math.inf if record.rtt_s is None else record.rtt_s
