"""The directory's two ends over memory streams, with strangers at the other one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

from tests.dht.donating import NETWORK, NOW, OTHER_MODEL, TINY_MODEL, Donor, identity_of
from tests.peer.hosts import LOOPBACK, wait_until
from tests.peer.memory import MemoryPeerStream, stream_pair
from tokenplace import defaults
from tokenplace.dht import directory_wire as wire
from tokenplace.dht.directory import Answer, Directory, fetch
from tokenplace.dht.directory_wire import Entry, Op, Query
from tokenplace.dht.donors import DirectoryCache
from tokenplace.errors import ConnectFailed, ConnectionLost, DonorSilent, RemoteProtocolError
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

ALICE = Donor(identity_of("alice"))
BOB = Donor(identity_of("bob"), models=[OTHER_MODEL])
CAROL = Donor(identity_of("carol"), models=[TINY_MODEL, OTHER_MODEL])
SAMPLE = Query(Op.SAMPLE)


def entry_of(donor: Donor) -> Entry:
    own = donor.announcer().own()
    assert own is not None
    return own.entry


def directory_of(own: Donor | None, *others: Donor) -> Directory:
    cache = DirectoryCache(NETWORK, allow_private=False)
    for donor in others:
        cache.add(entry_of(donor), answered_by=donor.identity.peer_id, now=NOW)
    peer_id = own.identity.peer_id if own else "nobody"
    own_entry = own.announcer().own if own else lambda: None
    return Directory(cache, peer_id, own_entry, now=lambda: NOW)


class Host:
    """Hands out one end of a memory stream, and gives the other to `answer`."""

    def __init__(
        self, nursery: trio.Nursery, answer: Callable[[PeerStream], Awaitable[None]]
    ) -> None:
        self.nursery = nursery
        self.answer = answer
        self.streams: list[MemoryPeerStream] = []

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        assert protocol == wire.PROTOCOL_ID
        mine, theirs = stream_pair()
        mine.max_read = 7
        self.streams.append(mine)
        self.nursery.start_soon(self.answer, theirs)
        return mine


async def ask(answer: Callable[[PeerStream], Awaitable[None]], query: Query = SAMPLE) -> Answer:
    async with trio.open_nursery() as nursery:
        host = Host(nursery, answer)
        error: Exception | None = None
        try:
            return await fetch(host, "BOB", query)
        except Exception as caught:
            error = caught
        finally:
            assert all(stream.is_closed for stream in host.streams)
            nursery.cancel_scope.cancel()
    raise error


# ---------------------------------------------------------------- what is known


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(Op.PEER), {ALICE}),
        (Query(Op.PEER, ""), {ALICE}),
        (Query(Op.PEER, ALICE.identity.peer_id_bytes), {ALICE}),
        (Query(Op.PEER, BOB.identity.peer_id_bytes), {BOB}),
        (Query(Op.PEER, BOB.identity.peer_id), {BOB}),
        (Query(Op.PEER, b"nobody"), set()),
        (Query(Op.SAMPLE), {ALICE, BOB, CAROL}),
        (Query(Op.MODEL, TINY_MODEL.name), {ALICE, CAROL}),
        (Query(Op.MODEL, OTHER_MODEL.name), {BOB, CAROL}),
        (Query(Op.MODEL, OTHER_MODEL.artifact), {BOB, CAROL}),
        (Query(Op.MODEL, TINY_MODEL.artifact[:12]), set()),
        (Query(Op.MODEL, b"\xff"), set()),
    ],
)
async def test_answers(query: Query, expected: set[Donor]) -> None:
    answer = await ask(directory_of(ALICE, BOB, CAROL).handle, query)
    assert sorted(entry.offer for entry in answer.entries) == sorted(
        entry_of(donor).offer for donor in expected
    )


@pytest.mark.parametrize("op", [Op.SAMPLE, Op.PEER], ids=str)
async def test_a_donor_without_address_speaks_for_itself_alone(op: Op) -> None:
    unreached = Donor(identity_of("dave"), addrs=[])
    peer_id = unreached.identity.peer_id_bytes
    assert (await ask(directory_of(None, unreached).handle, Query(op, peer_id))).entries == []
    own = await ask(directory_of(unreached).handle, Query(op, peer_id))
    assert own.entries == [entry_of(unreached)]


async def test_a_peer_that_donates_nothing_has_no_statements_of_its_own() -> None:
    assert (await ask(directory_of(None, BOB).handle, Query(Op.PEER))).entries == []
    assert len((await ask(directory_of(None, BOB).handle)).entries) == 1


async def test_no_more_is_said_than_was_asked_for_own_statements_first() -> None:
    directory = directory_of(ALICE, BOB, CAROL)
    answer = await ask(directory.handle, Query(Op.SAMPLE, max_entries=1))
    assert [entry.offer for entry in answer.entries] == [entry_of(ALICE).offer]
    assert len((await ask(directory.handle, Query(Op.SAMPLE, max_entries=2))).entries) == 2


# ---------------------------------------------------------------- strangers who answer


async def test_the_round_trip_is_measured(autojump_clock: MockClock) -> None:
    async def slow(stream: PeerStream) -> None:
        await trio.sleep(0.25)
        await stream.send_all(wire.encode_answer([]))

    assert (await ask(slow)).rtt_s == 0.25


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x04\x00\x01" + bytes(10),
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x03\x91\x81\xa1",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        wire.encode_answer([Entry(b"", b"")] * 33)[:-1] + b"\xc1",
        wire.encode_answer([Entry(b"", b"")] * 3),
    ],
)
async def test_a_malformed_answer_is_an_error_at_once(
    said: bytes, autojump_clock: MockClock
) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.send_all(said)
        await trio.sleep_forever()

    with pytest.raises(RemoteProtocolError):
        await ask(answer, Query(Op.SAMPLE, max_entries=2))
    assert trio.current_time() == 0


@pytest.mark.parametrize("n_bytes", [0, 1, 4, 7])
async def test_an_answer_cut_short_is_an_error_at_once(
    n_bytes: int, autojump_clock: MockClock
) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.send_all(wire.encode_answer([Entry(b"k", b"o")])[:n_bytes])
        await stream.aclose()

    with pytest.raises(ConnectionLost):
        await ask(answer)
    assert trio.current_time() == 0


async def test_a_reset_is_an_error_at_once() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.reset()

    with pytest.raises(ConnectionLost):
        await ask(answer)


async def test_silence_and_an_endless_trickle_end_at_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async def trickle(stream: PeerStream) -> None:
        await stream.send_all(wire.ANSWER_LENGTH.pack(defaults.MAX_DIRECTORY_ANSWER_BYTES))
        while True:
            await stream.send_all(b"\x00")
            await trio.sleep(0.5)

    async def silence(stream: PeerStream) -> None:
        await trio.sleep_forever()

    for answer in (trickle, silence):
        start = trio.current_time()
        with pytest.raises(DonorSilent):
            await ask(answer)
        assert trio.current_time() - start == defaults.DIRECTORY_ASK_TIMEOUT_S


async def test_dialling_counts_too(autojump_clock: MockClock) -> None:
    class Unreachable:
        def __init__(self, dial_s: float) -> None:
            self.dial_s = dial_s

        async def open_stream(
            self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
        ) -> PeerStream:
            await trio.sleep(self.dial_s)
            raise ConnectFailed

    with pytest.raises(ConnectFailed):
        await fetch(Unreachable(1), "BOB", SAMPLE)
    with pytest.raises(DonorSilent):
        await fetch(Unreachable(100), "BOB", SAMPLE)
    assert trio.current_time() == 1 + defaults.DIRECTORY_ASK_TIMEOUT_S


# ---------------------------------------------------------------- strangers who ask


@pytest.mark.parametrize("said", [b"\xff\xff", b"\x00\x01\xc1", b"\x00\x00", b"GET / HTTP/1.1"])
async def test_a_malformed_question_is_reset_at_once(
    said: bytes, autojump_clock: MockClock
) -> None:
    mine, theirs = stream_pair()
    await mine.send_all(said)
    await directory_of(ALICE).handle(theirs)
    assert theirs.was_reset
    assert trio.current_time() == 0


async def test_who_asks_nothing_or_does_not_read_is_dropped(autojump_clock: MockClock) -> None:
    mine, theirs = stream_pair()
    await directory_of(ALICE).handle(theirs)
    assert theirs.was_reset
    assert trio.current_time() == defaults.DIRECTORY_READ_TIMEOUT_S

    mine, theirs = stream_pair()
    theirs.outgoing.data += bytes(1 << 20)  # a window that is full already
    await mine.send_all(wire.encode_query(SAMPLE))
    await directory_of(ALICE).handle(theirs)
    assert theirs.was_reset
    assert trio.current_time() == (
        defaults.DIRECTORY_READ_TIMEOUT_S + defaults.DIRECTORY_WRITE_TIMEOUT_S
    )


async def test_one_peer_cannot_take_all_streams() -> None:
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK]) as host,
        open_host(throwaway_identity()) as mallory,
        open_host(throwaway_identity()) as bob,
    ):
        directory_of(ALICE).serve_on(host)
        await mallory.connect(host.peer_id, host.addrs())
        *idle, one_more = [
            await mallory.open_stream(host.peer_id, wire.PROTOCOL_ID)
            for _ in range(defaults.DIRECTORY_STREAMS_PER_PEER + 1)
        ]
        with pytest.raises(trio.BrokenResourceError):
            await one_more.receive_some(1)
        answer = await fetch(bob, host.peer_id, SAMPLE, addrs=host.addrs())
        assert len(answer.entries) == 1
        for stream in idle:
            await stream.reset()
        await wait_until(lambda: sum(c.n_streams for c in host.connections()) == 0)
        assert len((await fetch(mallory, host.peer_id, SAMPLE)).entries) == 1
