"""What a donor tells those it is connected to without being asked: that it stops, or offers less
than before. Start at `Herald`; `NewsReader` is the other end (docs/protocol.md, section 3).

Without it they would learn of it from their next request, or 11 s after the donor fell silent. The
news are what the donor's directory would answer: signed, and told over its own connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.dht import directory_wire as wire
from tokenplace.dht.announce import Announcer
from tokenplace.dht.directory_wire import Entry
from tokenplace.dht.donors import DirectoryCache
from tokenplace.errors import RemoteProtocolError, TokenplaceError
from tokenplace.peer.adverts import signer_of
from tokenplace.peer.buckets import TokenBuckets
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import STREAM_GONE, PeerStream, receive_exactly

log = logging.getLogger(__name__)

PROTOCOL_ID: Final = "/tokenplace/news/1.0.0"


# ---------------------------------------------------------------- telling


@dataclass(frozen=True)
class Herald:
    """Tells everybody connected to `host` what is worse than they may think."""

    host: PeerHost
    announcer: Announcer

    async def run(self) -> None:
        """Tell when a model is offered no more, until cancelled."""
        before: set[str] = set()
        while True:
            now = {model.artifact for model in self.announcer.offered()}
            if before - now:
                await self.tell()
            before = now
            await trio.sleep(defaults.ANNOUNCE_CHECK_S)

    async def tell(self) -> None:
        """Tell how things stand now, whoever is being served first.

        Takes `NEWS_TIMEOUT_S` at most. Who was not reached by then learns it when it asks.
        """
        message = wire.encode_answer([self.announcer.entry()])
        connections = sorted(self.host.connections(), key=lambda info: -info.n_streams)
        limiter = trio.CapacityLimiter(defaults.PARALLEL_NEWS)
        with trio.move_on_after(defaults.NEWS_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for peer_id in dict.fromkeys(info.peer_id for info in connections):
                    nursery.start_soon(self._tell_one, peer_id, message, limiter)

    async def _tell_one(self, peer_id: str, message: bytes, limiter: trio.CapacityLimiter) -> None:
        try:
            async with limiter:
                stream = await self.host.open_stream(peer_id, PROTOCOL_ID)
                await stream.send_all(message)
                await stream.aclose()
        except (TokenplaceError, *STREAM_GONE) as error:  # it is gone, or takes no news
            log.debug("%s was not told: %s", peer_id, type(error).__name__)


# ---------------------------------------------------------------- being told


class NewsReader:
    """Takes news of donors that are known already, from themselves alone."""

    def __init__(
        self, cache: DirectoryCache, publish: Callable[[], None], now: Callable[[], float]
    ) -> None:
        """publish: called when something was learned. now: unix seconds."""
        self._cache = cache
        self._publish = publish
        self._now = now
        self._recent = TokenBuckets(defaults.NEWS_BURST, 1 / defaults.NEWS_EVERY_S)

    def serve_on(self, host: PeerHost) -> None:
        """Take the news that reach `host`."""
        host.set_stream_handler(
            PROTOCOL_ID,
            self.handle,
            max_streams_per_peer=defaults.NEWS_STREAMS_PER_PEER,
            max_streams=defaults.NEWS_STREAMS,
        )

    async def handle(self, stream: PeerStream) -> None:
        """Read one piece of news; what is none, or wanted by nobody, gets a reset."""
        try:
            await self._read(stream)
        except (trio.TooSlowError, trio.BrokenResourceError, RemoteProtocolError) as error:
            log.debug("news of %s: %s", stream.peer_id, error)
            await stream.reset()

    async def _read(self, stream: PeerStream) -> None:
        peer_id = stream.peer_id
        if self._cache.get(peer_id, self._now()) is None:
            raise RemoteProtocolError("news: of nobody that is known")
        if not self._recent.take(peer_id, trio.current_time()):
            raise RemoteProtocolError("news: too often")
        with trio.fail_after(defaults.DIRECTORY_READ_TIMEOUT_S):
            prefix = await receive_exactly(stream, wire.ANSWER_LENGTH.size)
            length = wire.answer_length(prefix, defaults.MAX_NEWS_BYTES)
            entries = wire.decode_answer(await receive_exactly(stream, length))
        if len(entries) != 1:
            raise RemoteProtocolError("news: not of one donor")
        self._take(peer_id, entries[0])

    def _take(self, peer_id: str, entry: Entry) -> None:
        if signer_of(entry.keys) != peer_id:
            raise RemoteProtocolError("news: of somebody else")
        record = self._cache.add(entry, answered_by=peer_id, now=self._now())
        assert record is not None, "an own peer is not known"
        if not record.offer.models:
            self._cache.forget(peer_id)
        self._publish()
