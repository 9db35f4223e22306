"""Finding donors for a model. Start at `Finder.find`; `explorer` knows them before that.

The way goes from what asks least of others to what asks most: the cache, the directories of peers
already known, the DHT's keys of the model. The DHT only names peers; what counts is what each
signed and hands over itself.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from tokenplace import defaults
from tokenplace.dht.asker import Lane
from tokenplace.dht.bootstrap import Joiner
from tokenplace.dht.directory_wire import Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord, DonorStatus
from tokenplace.dht.explorer import Explorer
from tokenplace.dht.kad import Kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.news import NewsReader
from tokenplace.dht.scouting import Scout, distance
from tokenplace.dht.wanted import Wanted
from tokenplace.errors import RemoteProtocolError
from tokenplace.models.names import NamedModel
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
    scout = Scout(host, kad, joiner, cache, network, now)
    async with open_background() as nursery:
        finder = Finder(scout, nursery)
        NewsReader(cache, scout.asker.publish, now).serve_on(host)
        nursery.start_soon(Explorer(scout, finder.asked_lately).run)
        yield finder


class Finder:
    """Donors, found and kept fresh. Make one with `open_finder`, on the host that asks."""

    def __init__(self, scout: Scout, nursery: trio.Nursery) -> None:
        self._scout = scout
        self._cache = scout.cache
        self._asker = scout.asker
        self._now = scout.now
        self._nursery = nursery
        self._searches: dict[Wanted, _Search] = {}
        self._asked_at: dict[Wanted, float] = {}
        self._kept_fresh: Counter[Wanted] = Counter()
        self._lane = Lane.of(defaults.FOREGROUND_FETCHES, defaults.FOREGROUND_WALKS)

    # ------------------------------------------------------------ for who asks

    async def find(
        self,
        models: Sequence[NamedModel],
        *,
        deadline_s: float = defaults.FIND_TIMEOUT_S,
        features: frozenset[str] = frozenset(),
        peers: frozenset[str] = frozenset(),
        besides: frozenset[str] = frozenset(),
    ) -> FindResult:
        """Donors of any of `models`, as soon as there are some; at the latest after `deadline_s`.

        Whose donors count: see `Wanted`. Ends early, with an empty and complete result, when it is
        certain that nobody offers one.
        """
        wanted = Wanted(tuple(models), features, peers, besides)
        self._note_asked(Wanted(tuple(models), features, peers))
        complete = False
        # A search under way may have begun while our own network was away: its failure says nothing
        # of now.
        is_joining = wanted in self._searches
        with trio.move_on_after(deadline_s):
            while not self._heard_lately(wanted):
                if self._usable(wanted):
                    await self._probe(wanted)
                    if self._usable(wanted):
                        break
                complete = await self._wait_for_search(wanted)
                if not self._usable(wanted) and (complete or not is_joining):
                    break
                is_joining = False
        return FindResult(self._usable(wanted), complete)

    @contextmanager
    def keep_fresh(self, model: NamedModel) -> Iterator[None]:
        """Until the block exits this model counts as asked for: an answer of it may be long, and
        who could go on with it is to be known when it is cut, not only then to be looked for.
        """
        wanted = Wanted((model,))
        self._kept_fresh[wanted] += 1
        try:
            yield
        finally:
            self._kept_fresh[wanted] -= 1
            if not self._kept_fresh[wanted]:
                del self._kept_fresh[wanted]
            self._note_asked(wanted)

    def known(self) -> list[DonorRecord]:
        """All donors that can be asked now, of whatever model."""
        return self._cache.donors(self._now())

    def met(self) -> list[DonorRecord]:
        """All living donors that have spoken themselves, failed ones too."""
        return self._cache.met(self._now())

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
        if record is not None and await self._asker.ask_donor(peer_id, record.addrs, self._lane):
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
        return tuple(filter(wanted.is_met_by, self._cache.donors(self._now())))

    def _heard_lately(self, wanted: Wanted) -> bool:
        now = self._now()
        return any(record.load(now) is not None for record in self._usable(wanted))

    def _note_asked(self, wanted: Wanted) -> None:
        self._asked_at.pop(wanted, None)
        self._asked_at[wanted] = trio.current_time()
        while len(self._asked_at) > defaults.MAX_ASKED:
            del self._asked_at[next(iter(self._asked_at))]

    def asked_lately(self) -> list[Wanted]:
        """What was looked for in the last `ASKED_FOR_S`, or is kept fresh."""
        since = trio.current_time() - defaults.ASKED_FOR_S
        lately = [wanted for wanted, at in self._asked_at.items() if at >= since]
        return [*self._kept_fresh, *lately]

    async def _probe(self, wanted: Wanted) -> None:
        """Donors are known, but from others or from long ago: see who lives, not for long."""
        nearest = sorted(self._usable(wanted), key=distance)[: defaults.MAX_PROBED]
        n_left = len(nearest)
        all_asked = trio.Event()

        async def ask(record: DonorRecord) -> None:
            nonlocal n_left
            await self._asker.ask_donor(record.peer_id, record.addrs, self._lane)
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
            for peer in self._scout.peers_to_ask():
                nursery.start_soon(self._ask_one, search, peer, queries)
            for record in self._cache.failed(self._now(), is_due_only=False):
                if search.wanted.is_met_by(record):
                    nursery.start_soon(
                        self._asker.ask_donor, record.peer_id, record.addrs, self._lane
                    )
        asked.set()

    async def _ask_one(self, search: _Search, peer: PeerAddrs, queries: list[Query]) -> None:
        answered = [await self._asker.ask(peer, query, self._lane) for query in queries]
        search.n_directories += None not in answered

    async def _ask_dht(self, search: _Search) -> None:
        if self._scout.joiner.is_alone:
            return  # nobody to wait for
        await self._scout.joiner.wait_joined()
        keys = search.wanted.keys(self._scout.network, self._now())
        search.is_walked = await self._scout.walk(
            keys, self._lane, is_enough=lambda: bool(self._usable(search.wanted))
        )
