"""What a donor says of itself, and making itself known. Start at `Announcer`.

Statements are signed when somebody asks for them and kept while they are good. The DHT learns that
this peer donates, and under which names; everything else is fetched from the peer itself.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.dht.directory import OwnEntry
from tokenplace.dht.directory_wire import Entry
from tokenplace.dht.kad import Kad
from tokenplace.dht.keys import keys_to_provide
from tokenplace.peer.adverts import (
    Load,
    OfferedModel,
    next_seq,
    sign_keys,
    sign_live,
    sign_offer,
)
from tokenplace.peer.background import open_background
from tokenplace.peer.identity import Identity
from tokenplace.sealing.keys import AdvertisedKeys

log = logging.getLogger(__name__)

_DAY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class AnnounceStatus:
    """How making this donor known goes, for a person.

    models: names offered. n_keys: DHT keys to stand under. n_confirmed: those that another peer has
    confirmed to store.
    """

    models: tuple[str, ...]
    n_keys: int
    n_confirmed: int


@dataclass(slots=True)
class _Statement:
    """The last envelope of one kind, what it says, and when it was made."""

    envelope: bytes = b""
    content: object = None
    made_at: float = 0.0
    seq: int = 0

    def renew(
        self, content: object, now: float, max_age_s: float, sign: Callable[[int], bytes]
    ) -> bytes:
        """The envelope; signed anew, under the next number, if it says something else or is old."""
        is_good = self.content == content and 0 <= now - self.made_at < max_age_s
        if not self.envelope or not is_good:
            self.seq = next_seq(self.seq, now)
            self.envelope = sign(self.seq)
            self.content, self.made_at = content, now
        return self.envelope


@dataclass(slots=True)
class _Announcement:
    """One DHT key: how many peers confirmed it last, and when it is due again (the announcer's
    `clock`)."""

    due_at: float = 0.0
    pause_s: float = defaults.ANNOUNCE_RETRY_S
    n_confirmed: int = 0

    def note(self, n_confirmed: int, now: float) -> None:
        self.n_confirmed = n_confirmed
        if n_confirmed:
            self.pause_s = defaults.ANNOUNCE_RETRY_S
            self.due_at = now + defaults.ANNOUNCE_EVERY_S * random.uniform(0.8, 1.0)
        else:
            self.due_at = now + self.pause_s * random.uniform(0.5, 1.5)
            self.pause_s = min(self.pause_s * 2, defaults.ANNOUNCE_RETRY_MAX_S)


@dataclass
class Announcer:
    """A donor's statements, and its place in the DHT. The callables say how things stand now.

    addrs: where the serving host is reached. models: what is served; without any of either, nothing
    is announced. public_keys: what to seal to, and how long that may be said.
    load: `queue` and speeds unrounded. epoch: the current one. now: unix seconds.
    clock: seconds, by which what the DHT was told grows old; better one that counts sleep.
    """

    identity: Identity
    network: str
    addrs: Callable[[], Sequence[str]]
    models: Callable[[], Sequence[OfferedModel]]
    public_keys: Callable[[], AdvertisedKeys]
    load: Callable[[], Load]
    epoch: Callable[[], bytes]
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = trio.current_time
    _keys: _Statement = field(default_factory=_Statement)
    _offer: _Statement = field(default_factory=_Statement)
    _live: _Statement = field(default_factory=_Statement)
    _announced: dict[bytes, _Announcement] = field(default_factory=dict)
    _announced_addrs: tuple[str, ...] = ()
    _is_withdrawn: bool = False
    _announcing: trio.CancelScope = field(default_factory=trio.CancelScope)

    # ------------------------------------------------------------ statements

    def signed_keys(self) -> bytes:
        """The current keys envelope."""
        now, advertised = self.now(), self.public_keys()
        keys, lifetime_s = advertised.keys, advertised.lifetime_s

        def sign(seq: int) -> bytes:
            return sign_keys(
                self.identity, self.network, keys, seq=seq, now=now, lifetime_s=lifetime_s
            )

        return self._keys.renew(keys, now, defaults.KEYS_RENEW_S, sign)

    def signed_offer(self) -> bytes:
        """The current offer envelope; of models that do not all fit into one, the first."""
        now, addrs, models = self.now(), self._own_addrs(), self.offered()
        keys_hash = hashlib.sha256(self.signed_keys()).digest()

        def sign(seq: int) -> bytes:
            n_fitting = min(len(models), defaults.MAX_OFFERED_MODELS)
            while True:
                fitting = models[:n_fitting]
                try:
                    envelope = sign_offer(
                        self.identity, self.network, addrs, fitting, keys_hash, seq=seq, now=now
                    )
                except ValueError:
                    n_fitting -= 1
                else:
                    break
            if n_fitting < len(models):
                log.warning("the offer has room for %d of %d models", n_fitting, len(models))
            return envelope

        return self._offer.renew((addrs, models, keys_hash), now, defaults.OFFER_RENEW_S, sign)

    def signed_live(self) -> bytes:
        """A live envelope of the present state that is at most `LIVE_REFRESH_S` old."""
        now, load = self.now(), self.load()

        def sign(seq: int) -> bytes:
            return sign_live(self.identity, self.network, self.epoch(), load, seq=seq, now=now)

        # A donor that is finishing says so at once.
        return self._live.renew(load.state, now, defaults.LIVE_REFRESH_S, sign)

    def own(self) -> OwnEntry | None:
        """What this peer's directory says of it; None while it offers nothing."""
        models = self.offered()
        return OwnEntry(self.entry(), models) if models else None

    def entry(self) -> Entry:
        """The three statements, also of a peer that offers nothing."""
        return Entry(self.signed_keys(), self.signed_offer(), self.signed_live())

    def offered(self) -> tuple[OfferedModel, ...]:
        """What is offered now."""
        return () if self._is_withdrawn else tuple(self.models())

    def _own_addrs(self) -> tuple[str, ...]:
        # Without the peer id, which the envelope names already: it would be a tenth of the offer.
        suffix = f"/p2p/{self.identity.peer_id}"
        return tuple(addr.removesuffix(suffix) for addr in self.addrs())[: defaults.MAX_ADDRS]

    # ------------------------------------------------------------ the DHT

    def status(self) -> AnnounceStatus:
        """What is offered, and how far the DHT knows of it."""
        return AnnounceStatus(
            tuple(model.name for model in self.offered()),
            len(self._announced),
            sum(bool(announcement.n_confirmed) for announcement in self._announced.values()),
        )

    async def announce_forever(self, kad: Kad) -> None:
        """Stand under every key that fits what is offered, and only those.

        Runs until cancelled or withdrawn.
        """
        was_joined = False
        with self._announcing:
            while True:
                is_joined = bool(kad.n_peers())
                is_news = self._announced_addrs != self._own_addrs() or is_joined > was_joined
                was_joined = is_joined
                await self._announce(kad, everything=is_news)
                await trio.sleep(defaults.ANNOUNCE_CHECK_S)

    async def _announce(self, kad: Kad, *, everything: bool) -> None:
        self.public_keys()  # an old key is dropped in time, though nobody may ask for a day
        self._announced_addrs = self._own_addrs()
        keys = self._keys_at(self.now())
        await self._leave(kad, self._announced.keys() - set(keys))
        limiter = trio.CapacityLimiter(defaults.PARALLEL_ANNOUNCEMENTS)

        async def provide(key: bytes, announcement: _Announcement) -> None:
            async with limiter:
                announcement.note(await kad.provide(key), self.clock())

        async with trio.open_nursery() as nursery:
            for key in keys:
                announcement = self._announced.setdefault(key, _Announcement())
                if everything or self.clock() >= announcement.due_at:
                    nursery.start_soon(provide, key, announcement)

    def _keys_at(self, now: float) -> list[bytes]:
        models = self.offered()
        if not models or not self._own_addrs():
            return []
        return keys_to_provide(
            self.network,
            self.identity.peer_id_bytes,
            [model.name for model in models],
            [model.artifact for model in models],
            now,
        )

    async def withdraw(self, kad: Kad) -> None:
        """Offer nothing from now on, and `leave`."""
        self._is_withdrawn = True
        await self.leave(kad)

    async def leave(self, kad: Kad) -> None:
        """Announce nothing more, and take back what other peers store; who asks this peer itself
        still reads what it says of itself, e.g. that it is finishing.

        Takes `WITHDRAW_TIMEOUT_S` at most; what was not taken back by then expires by itself.
        """
        self._announcing.cancel()  # or what is under way would be announced after all
        await self._leave(kad, self._announced.keys())

    async def _leave(self, kad: Kad, keys: Iterable[bytes]) -> None:
        """Stand under `keys` no more. Nobody asks for yesterday's: these expire by themselves."""
        leaving = set(keys)
        expiring = leaving.intersection(self._keys_at(self.now() - _DAY_S))
        for key in leaving:
            del self._announced[key]
        for key in expiring:
            kad.unprovide(key)
        if leaving - expiring:
            await kad.withdraw(leaving - expiring)


@asynccontextmanager
async def open_announcer(announcer: Announcer, kad: Kad) -> AsyncIterator[None]:
    """Keep the donor announced until the block exits; then it is withdrawn, however it exits."""
    async with open_background() as nursery:
        nursery.start_soon(announcer.announce_forever, kad)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await announcer.withdraw(kad)
