"""Both ends of `/tokenplace/directory/1.0.0` (docs/protocol.md, section 3).

Start at `Directory` and `fetch`. Differs from the DHT: answers are signed by the donors they speak
of, so it does not matter who is asked.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import base58
import trio

from tokenplace import defaults
from tokenplace.dht import directory_wire as wire
from tokenplace.dht.directory_wire import Entry, Op, Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.errors import ConnectionLost, DonorSilent, RemoteProtocolError, TokenplaceError
from tokenplace.peer.adverts import OfferedModel
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream, receive_exactly

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OwnEntry:
    """What this peer says of itself while it donates."""

    entry: Entry
    models: tuple[OfferedModel, ...]


@dataclass
class Directory:
    """Answers questions about donors: this peer itself first, then those in `cache`.

    own: this peer's own statements; None while it donates nothing. now: unix seconds.
    """

    cache: DirectoryCache
    own_peer_id: str
    own: Callable[[], OwnEntry | None]
    now: Callable[[], float] = time.time

    def serve_on(self, host: PeerHost) -> None:
        """Answer the questions that reach `host`."""
        host.set_stream_handler(
            wire.PROTOCOL_ID,
            self.handle,
            max_streams_per_peer=defaults.DIRECTORY_STREAMS_PER_PEER,
            max_streams=defaults.DIRECTORY_STREAMS,
        )

    async def handle(self, stream: PeerStream) -> None:
        """Answer one question; a stream that asks nothing sensible in time is reset unanswered."""
        try:
            await self._answer(stream)
        except (trio.TooSlowError, trio.BrokenResourceError, TokenplaceError) as error:
            log.debug("directory question of %s: %s", stream.peer_id, error)
            await stream.reset()

    async def _answer(self, stream: PeerStream) -> None:
        with trio.fail_after(defaults.DIRECTORY_READ_TIMEOUT_S):
            length = wire.query_length(await receive_exactly(stream, wire.QUERY_LENGTH.size))
            query = wire.decode_query(await receive_exactly(stream, length))
        with trio.fail_after(defaults.DIRECTORY_WRITE_TIMEOUT_S):
            await stream.send_all(wire.encode_answer(self.entries(query)))
            await stream.aclose()

    def entries(self, query: Query) -> list[Entry]:
        """What this peer knows for `query`, its own statements first, at most what was asked."""
        now = self.now()
        own = self.own()
        if query.op is Op.PEER:
            asked = query.value if isinstance(query.value, str) else _base58(query.value)
            if asked in ("", self.own_peer_id):
                return [own.entry] if own is not None else []
            record = self.cache.get(asked, now)
            return [record.entry] if record is not None and _is_for_others(record) else []
        records = [record for record in self.cache.donors(now) if _is_for_others(record)]
        if query.op is Op.MODEL:
            records = [record for record in records if _offers(record.offer.models, query.value)]
            if own is not None and not _offers(own.models, query.value):
                own = None
        n_others = query.max_entries - (own is not None)
        # At random, so that not the same few donors get all the requests.
        picked = random.sample(records, min(len(records), n_others))
        return [*([own.entry] if own is not None else []), *(record.entry for record in picked)]


def _is_for_others(record: DonorRecord) -> bool:
    """A donor that names no address is reached only by whom it is connected to."""
    return bool(record.offer.addrs) and not record.is_leaving


def _offers(models: Sequence[OfferedModel], value: str | bytes) -> bool:
    """Is `value` the name or the artifact of one of `models`?"""
    return isinstance(value, str) and any(value in (m.name, m.artifact) for m in models)


def _base58(peer_id: bytes) -> str:
    text: bytes = base58.b58encode(peer_id)
    return text.decode("ascii")


# ---------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer answered. rtt_s: from sending the question to the answer's first byte."""

    entries: list[Entry]
    rtt_s: float


class OpensStreams(Protocol):
    """What asking needs of a `PeerHost`."""

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        """As `PeerHost.open_stream`."""


async def fetch(
    host: OpensStreams,
    peer_id: str,
    query: Query,
    *,
    addrs: Sequence[str] = (),
    timeout_s: float = defaults.DIRECTORY_ASK_TIMEOUT_S,
) -> Answer:
    """Ask the directory of `peer_id`, connecting first when needed; whatever it does, this ends
    after `timeout_s`.

    Raises `ConnectFailed` (also for a peer without a directory), `DonorSilent`, `ConnectionLost` or
    `RemoteProtocolError`.
    """
    with trio.move_on_after(timeout_s):
        stream = await host.open_stream(peer_id, wire.PROTOCOL_ID, addrs)
        try:
            return await _ask(stream, query)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionLost(f"{peer_id} ended its directory answer early.") from None
        finally:
            await stream.reset()  # an answer that was read whole loses nothing by it
    raise DonorSilent(f"{peer_id} did not answer within {timeout_s:g} s.")


async def _ask(stream: PeerStream, query: Query) -> Answer:
    asked_at = trio.current_time()
    await stream.send_all(wire.encode_query(query))
    prefix = await receive_exactly(stream, wire.ANSWER_LENGTH.size)
    rtt_s = trio.current_time() - asked_at
    entries = wire.decode_answer(await receive_exactly(stream, wire.answer_length(prefix)))
    if len(entries) > query.max_entries:
        raise RemoteProtocolError("directory: more entries than were asked for")
    return Answer(entries, rtt_s)
