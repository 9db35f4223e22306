"""Donors that say unasked that they stop or offer less, over real hosts; and who is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import trio

from tests.dht.donating import (
    LOOPBACK,
    NETWORK,
    NOW,
    OTHER_MODEL,
    TINY_MODEL,
    AskingPeer,
    Donor,
    identity_of,
    open_asking_peer,
    open_serving_peer,
)
from tests.peer.hosts import open_asking_host, wait_until
from tests.peer.memory import stream_pair
from tokenplace import defaults
from tokenplace.dht.announce import Announcer
from tokenplace.dht.directory import Directory
from tokenplace.dht.directory_wire import Entry, Op, Query, encode_answer
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.news import PROTOCOL_ID, Herald, NewsReader
from tokenplace.errors import ConnectFailed
from tokenplace.models.names import NamedModel
from tokenplace.peer.adverts import DonorState
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.streams import STREAM_GONE

WANTED = [NamedModel(TINY_MODEL.name, TINY_MODEL.artifact)]


@dataclass
class Leaver:
    """A donor on a host of its own, with a herald."""

    host: PeerHost
    says: Donor
    herald: Herald

    def finish(self) -> None:
        self.says.load = replace(self.says.load, state=DonorState.FINISHING)


@asynccontextmanager
async def open_leaver(name: str = "alice", n_models: int = 1) -> AsyncIterator[Leaver]:
    says = Donor(identity_of(name), models=[TINY_MODEL, OTHER_MODEL][:n_models])
    async with open_host(says.identity, listen=[LOOPBACK]) as host:
        says.addrs = host.addrs()
        announcer = Announcer(
            says.identity,
            NETWORK,
            addrs=lambda: says.addrs,
            models=lambda: says.models,
            public_keys=says.announcer().public_keys,
            load=lambda: says.load,
            epoch=lambda: says.epoch,
        )
        cache = DirectoryCache(NETWORK, allow_private=True)
        Directory(cache, says.identity.peer_id, announcer.own).serve_on(host)
        yield Leaver(host, says, Herald(host, announcer))


async def met(asker: AskingPeer, leaver: Leaver) -> None:
    await asker.host.connect(leaver.host.peer_id, leaver.host.addrs())
    await wait_until(lambda: knows(asker, leaver))


def knows(asker: AskingPeer, leaver: Leaver) -> bool:
    return leaver.host.peer_id in {record.peer_id for record in asker.finder.known()}


async def test_who_stops_is_asked_no_more_by_those_connected() -> None:
    async with open_leaver() as leaver, open_asking_peer([]) as asker, open_asking_peer([]) as bob:
        await met(asker, leaver)
        await met(bob, leaver)
        leaver.finish()
        await leaver.herald.tell()
        await wait_until(lambda: not knows(asker, leaver) and not knows(bob, leaver))
        [status] = asker.finder.status()
        assert status.is_failed
        assert status.load is not None
        assert status.load.state is DonorState.FINISHING
        assert asker.host.is_connected(leaver.host.peer_id), "answers that run go on"


async def test_who_stops_is_not_offered_again_while_it_still_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "DONOR_RETRY_S", 0.0)  # it is asked at every check
    monkeypatch.setattr(defaults, "REFRESH_CHECK_S", 0.05)
    async with open_leaver() as leaver, open_asking_peer([]) as asker:
        await met(asker, leaver)
        leaver.finish()
        await leaver.herald.tell()
        await wait_until(lambda: not knows(asker, leaver))

        def heard_at() -> float:
            [record] = asker.finder._cache.failed(asker.finder._now(), is_due_only=False)
            return record.live_received_at or 0.0

        def is_heard_after(before: float) -> bool:
            return heard_at() > before

        for _ in range(3):
            await wait_until(partial(is_heard_after, heard_at()))
            assert not knows(asker, leaver)


async def test_a_model_that_is_offered_no_more_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "ANNOUNCE_CHECK_S", 0.02)
    async with (
        open_leaver(n_models=2) as leaver,
        open_asking_peer([]) as asker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(leaver.herald.run)
        await met(asker, leaver)
        leaver.says.models.remove(OTHER_MODEL)
        await wait_until(lambda: [r.offer.models for r in asker.finder.known()] == [(TINY_MODEL,)])
        leaver.says.models.clear()
        await wait_until(lambda: not asker.finder.status())
        nursery.cancel_scope.cancel()


async def test_who_takes_no_news_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "NEWS_TIMEOUT_S", 3.0)
    monkeypatch.setattr(defaults, "PARALLEL_NEWS", 2)

    async def say_nothing(stream: object) -> None:
        await trio.sleep_forever()

    async with AsyncExitStack() as stack:
        leaver = await stack.enter_async_context(open_leaver())
        for handler in (None, say_nothing):  # of an older version; one that does not read
            older = await stack.enter_async_context(open_asking_host())
            if handler is not None:
                older.set_stream_handler(PROTOCOL_ID, handler)
            await older.connect(leaver.host.peer_id, leaver.host.addrs())
        asker = await stack.enter_async_context(open_asking_peer([]))
        await met(asker, leaver)
        leaver.finish()
        with trio.fail_after(20):
            await leaver.herald.tell()
        await wait_until(lambda: not knows(asker, leaver))


async def test_a_donor_that_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_leaver() as leaver, open_asking_peer([]) as asker:
        await met(asker, leaver)
        leaver.finish()
        await leaver.herald.tell()
        await wait_until(lambda: not knows(asker, leaver))
        leaver.says.load = replace(leaver.says.load, state=DonorState.ACCEPTING)
        result = await asker.finder.find(WANTED)  # with nobody else, it is asked at once
        assert [record.peer_id for record in result.donors] == [leaver.host.peer_id]
        assert not result.donors[0].is_leaving


async def test_a_directory_hands_on_nobody_who_leaves() -> None:
    alice = Donor(identity_of("alice"))
    cache = DirectoryCache(NETWORK, allow_private=True)
    directory = Directory(cache, "me", lambda: None, lambda: NOW)

    def add() -> None:
        own = alice.announcer().own()
        assert own is not None
        cache.add(own.entry, answered_by=alice.identity.peer_id, now=NOW)

    def handed_on() -> list[int]:
        peer = Query(Op.PEER, alice.identity.peer_id_bytes)
        return [len(directory.entries(query)) for query in (Query(Op.SAMPLE), peer)]

    add()
    assert handed_on() == [1, 1]
    alice.load = replace(alice.load, state=DonorState.FINISHING)
    alice.now += 0.001
    add()
    assert handed_on() == [0, 0]


# ---------------------------------------------------------------- who is believed


def finishing(name: str, *, network: str = NETWORK) -> Entry:
    donor = Donor(identity_of(name))
    donor.load = replace(donor.load, state=DonorState.FINISHING)
    return donor.announcer(network).entry()


@dataclass
class Listener:
    """Knows alice, and takes news."""

    cache: DirectoryCache = field(
        default_factory=lambda: DirectoryCache(NETWORK, allow_private=True)
    )

    def __post_init__(self) -> None:
        self.reader = NewsReader(self.cache, lambda: None, lambda: NOW)
        alice = Donor(identity_of("alice"), now=NOW - 1)
        own = alice.announcer().own()
        assert own is not None
        self.cache.add(own.entry, answered_by=alice.identity.peer_id, now=NOW)

    async def hear(self, name: str, message: bytes, *, ends: bool = True) -> bool:
        """What `name` says over its own connection; whether alice is still believed to be there."""
        mine, theirs = stream_pair((identity_of(name).peer_id, "listener"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reader.handle, theirs)
            try:
                await mine.send_all(message)
                if ends:
                    await mine.send_eof()
            except STREAM_GONE:
                pass
        return identity_of("alice").peer_id in {r.peer_id for r in self.cache.donors(NOW)}


async def test_only_a_donors_own_word_counts() -> None:
    news = encode_answer([finishing("alice")])
    assert await Listener().hear("bob", news), "replayed by another peer"
    assert not await Listener().hear("alice", news)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xff\xff\xff", id="too-long"),
        pytest.param(encode_answer([]), id="no-entry"),
        pytest.param(encode_answer([finishing("alice"), finishing("bob")]), id="two-entries"),
        pytest.param(encode_answer([finishing("bob")]), id="of-somebody-else"),
        pytest.param(encode_answer([finishing("alice", network="other")]), id="another-network"),
        pytest.param(encode_answer([finishing("alice")])[:-1], id="cut-short"),
        pytest.param(b"\x00\x00\x00\x01\xc1", id="no-msgpack"),
    ],
)
async def test_what_is_no_news_changes_nothing(message: bytes) -> None:
    listener = Listener()
    assert await listener.hear("alice", message)
    assert {record.peer_id for record in listener.cache.donors(NOW)} == {
        identity_of("alice").peer_id
    }


async def test_who_says_nothing_is_waited_for_but_not_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await Listener().hear("alice", b"\x00", ends=False)
    assert trio.current_time() <= defaults.DIRECTORY_READ_TIMEOUT_S


async def test_strangers_are_not_listened_to() -> None:
    listener = Listener()
    await listener.hear("bob", encode_answer([finishing("bob")]))
    assert listener.cache.get(identity_of("bob").peer_id, NOW) is None


async def test_news_without_end_are_heard_seldom() -> None:
    listener = Listener()
    read: list[Sequence[Entry]] = []
    add = listener.cache.add
    with pytest.MonkeyPatch.context() as patch:

        def count(entry: Entry, **rest: object) -> object:
            read.append([entry])
            return add(entry, **rest)  # type: ignore[arg-type]

        patch.setattr(listener.cache, "add", count)
        for _ in range(50):
            await listener.hear("alice", encode_answer([finishing("alice")]))
    assert len(read) == defaults.NEWS_BURST


async def test_a_peer_without_a_finder_takes_no_news() -> None:
    async with open_serving_peer() as peer, open_asking_host() as host:
        with pytest.raises(ConnectFailed):
            await host.open_stream(peer.host.peer_id, PROTOCOL_ID, peer.host.addrs())
