"""Dialling back, between real hosts: what proves something, what does not, and what it may cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import libp2p
import pytest
import trio
from libp2p.host.autonat.autonat import AutoNATService
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.host.basic_host import BasicHost
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from tests.peer.hosts import (
    LOOPBACK,
    closed_port,
    open_silent_port,
    open_stock_host,
    port_of,
    receive_all,
    stock_addrs,
    wait_until,
)
from tests.peer.memory import stream_pair
from tokenplace import defaults
from tokenplace.errors import ConnectFailed, ConnectionLost, DonorSilent, RemoteProtocolError
from tokenplace.peer import reach
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.reach import DialBackResult, ReachService
from tokenplace.peer.reach_wire import (
    LENGTH,
    PROTOCOL_ID,
    Answer,
    DialBack,
    Outcome,
    Proof,
    decode_question,
    encode,
)
from tokenplace.peer.streams import PeerStream, receive_exactly

Lie = Callable[[PeerStream, DialBack], Awaitable[None]]


@dataclass
class Pair:
    """ALICE listens and asks; BOB, who only dials, is connected to her and answers."""

    alice: PeerHost
    bob: PeerHost
    asker: ReachService
    answerer: ReachService
    proved: list[str] = field(default_factory=list)

    @property
    def alice_port(self) -> int:
        return port_of(self.alice.addrs()[0])

    async def ask(self, port: int | None) -> DialBackResult:
        return await self.asker.ask(self.bob.peer_id, lambda ip: port)

    def have_bob_lie(self, lie: Lie) -> None:
        """Bob answers with `lie` from now on."""

        async def handle(stream: PeerStream) -> None:
            (length,) = LENGTH.unpack(await receive_exactly(stream, LENGTH.size))
            question = decode_question(await receive_exactly(stream, length))
            assert isinstance(question, DialBack)
            await lie(stream, question)

        self.bob.set_stream_handler(PROTOCOL_ID, handle)


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(open_host(throwaway_identity(), listen=[LOOPBACK]))
        bob = await stack.enter_async_context(open_host(throwaway_identity()))
        pair = Pair(alice, bob, ReachService(alice), ReachService(bob))
        pair.answerer.on_proved = pair.proved.append
        pair.asker.serve()
        pair.answerer.serve()
        await bob.connect(alice.peer_id, alice.addrs())
        await wait_until(lambda: alice.is_connected(bob.peer_id))
        yield pair


async def claim(stream: PeerStream) -> None:
    """Say that all went well."""
    await stream.send_all(encode(Answer(Outcome.PROVED, "127.0.0.1")))
    await stream.aclose()


async def deliver(host: PeerHost, peer: PeerHost, nonce: bytes) -> bool:
    """Whether `peer` takes the nonce from `host`."""
    stream = await host.open_stream(peer.peer_id, PROTOCOL_ID, peer.addrs())
    await stream.send_all(encode(Proof(nonce)))
    try:
        return await receive_all(stream) == b""
    except trio.BrokenResourceError:
        return False


# ---------------------------------------------------------------- what is said


async def test_a_peer_that_listens_is_proven_reachable() -> None:
    async with open_pair() as pair:
        result = await pair.ask(pair.alice_port)
        assert result == DialBackResult(
            True, Outcome.PROVED, "127.0.0.1", "127.0.0.1", pair.alice_port
        )
        assert pair.proved == [pair.alice.peer_id]
        await wait_until(lambda: len(pair.alice.connections()) == 1)  # the new one has gone again


async def test_the_dial_comes_from_a_host_of_its_own() -> None:
    async with open_pair() as pair:
        bearers: list[tuple[str, bool]] = []
        take_proof = pair.asker.handle

        async def watch(stream: PeerStream) -> None:
            bearers.append((stream.peer_id, stream.is_inbound))
            await take_proof(stream)

        pair.alice.set_stream_handler(PROTOCOL_ID, watch)
        await pair.ask(pair.alice_port)
        await pair.ask(pair.alice_port)
    assert [is_inbound for _, is_inbound in bearers] == [True, True]
    assert len({pair.bob.peer_id} | {peer_id for peer_id, _ in bearers}) == 3, "an id a dial"


async def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    async with open_pair() as pair:
        result = await pair.ask(closed_port())
    assert (result.is_proven, result.outcome) == (False, Outcome.UNREACHABLE)
    assert pair.proved == []


async def test_another_peer_at_the_port_proves_nothing() -> None:
    async with open_pair() as pair, open_pair() as others:
        result = await pair.ask(others.alice_port)
    assert (result.is_proven, result.outcome) == (False, Outcome.UNREACHABLE)


async def test_a_port_that_stays_silent_costs_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "REACH_DIAL_TIMEOUT_S", 0.2)
    async with open_pair() as pair, open_silent_port() as silent:
        assert (await pair.ask(silent)).outcome is Outcome.UNREACHABLE


# ---------------------------------------------------------------- what does not count


async def test_the_word_of_the_asked_does_not_count() -> None:
    async with open_pair() as pair:
        pair.have_bob_lie(lambda stream, question: claim(stream))
        result = await pair.ask(closed_port())
    assert (result.is_proven, result.outcome) == (False, Outcome.PROVED)


async def test_a_nonce_over_the_connection_that_is_there_does_not_count() -> None:
    async with open_pair() as pair:
        taken: list[bool] = []

        async def lie(stream: PeerStream, question: DialBack) -> None:
            taken.append(await deliver(pair.bob, pair.alice, question.nonce))
            await claim(stream)

        pair.have_bob_lie(lie)
        assert not (await pair.ask(closed_port())).is_proven
    assert taken == [False]


async def test_a_nonce_over_a_connection_of_our_own_making_does_not_count() -> None:
    """Else whoever we have dialled could say that we are reachable, by whatever identity."""
    async with (
        open_pair() as pair,
        open_host(throwaway_identity(), listen=[LOOPBACK]) as helper,
    ):
        await pair.alice.connect(helper.peer_id, helper.addrs())
        taken: list[bool] = []

        async def lie(stream: PeerStream, question: DialBack) -> None:
            assert helper.connections()[0].direction == "in"
            taken.append(await deliver(helper, pair.alice, question.nonce))
            await claim(stream)

        pair.have_bob_lie(lie)
        assert not (await pair.ask(closed_port())).is_proven
    assert taken == [False]


async def test_a_nonce_counts_once_and_only_while_it_is_out() -> None:
    async with open_pair() as pair, open_host(throwaway_identity()) as bearer:
        taken: list[bool] = []
        nonces: list[bytes] = []

        async def tell_twice(stream: PeerStream, question: DialBack) -> None:
            nonces.append(question.nonce)
            taken.append(await deliver(bearer, pair.alice, bytes(16)))
            taken.append(await deliver(bearer, pair.alice, question.nonce))
            taken.append(await deliver(bearer, pair.alice, question.nonce))
            await claim(stream)

        async def keep(stream: PeerStream, question: DialBack) -> None:
            nonces.append(question.nonce)
            await claim(stream)

        pair.have_bob_lie(tell_twice)
        assert (await pair.ask(closed_port())).is_proven
        assert taken == [False, True, False]
        pair.have_bob_lie(keep)
        assert not (await pair.ask(closed_port())).is_proven
        assert not await deliver(bearer, pair.alice, nonces[1]), "too late"
        assert nonces[0] != nonces[1]


# ---------------------------------------------------------------- whoever breaks off


async def test_who_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(stream: PeerStream, question: DialBack) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(defaults, "REACH_TIMEOUT_S", 0.2)
    async with open_pair() as pair:
        pair.have_bob_lie(say_nothing)
        with pytest.raises(DonorSilent):
            await pair.ask(pair.alice_port)


async def test_half_an_answer_and_nonsense_are_told_apart() -> None:
    async def half(stream: PeerStream, question: DialBack) -> None:
        await stream.send_all(encode(Answer(Outcome.PROVED, "127.0.0.1"))[:-1])

    async def nonsense(stream: PeerStream, question: DialBack) -> None:
        await stream.send_all(LENGTH.pack(3) + b"abc")

    async with open_pair() as pair:
        pair.have_bob_lie(half)
        with pytest.raises(ConnectionLost):
            await pair.ask(pair.alice_port)
        pair.have_bob_lie(nonsense)
        with pytest.raises(RemoteProtocolError):
            await pair.ask(pair.alice_port)


async def test_who_cannot_be_asked_is_not_waited_for() -> None:
    async with open_pair() as pair:
        with pytest.raises(ConnectFailed):
            await pair.ask(None)
        pair.bob.remove_stream_handler(PROTOCOL_ID)
        with pytest.raises(ConnectFailed):
            await pair.ask(pair.alice_port)


async def test_who_asks_nothing_sensible_in_time_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "REACH_READ_TIMEOUT_S", 0.1)
    async with open_pair() as pair:
        for opening in (b"", b"\x00", LENGTH.pack(300), LENGTH.pack(2) + b"ab"):
            stream = await pair.alice.open_stream(pair.bob.peer_id, PROTOCOL_ID)
            if opening:
                await stream.send_all(opening)
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(stream)


# ---------------------------------------------------------------- what it may cost


@pytest.mark.parametrize("ip", ["224.0.0.1", "0.0.0.0", "fe80::1"])
async def test_what_is_no_address_of_one_machine_is_not_dialled(ip: str) -> None:
    async with open_host(throwaway_identity()) as bob:
        assert await answer_to(ReachService(bob), ip) == encode(Answer(Outcome.REFUSED, ip))


async def test_who_has_no_address_gets_no_answer() -> None:
    async with open_host(throwaway_identity()) as bob:
        with pytest.raises(trio.BrokenResourceError):
            await answer_to(ReachService(bob), "")


async def answer_to(service: ReachService, remote_ip: str) -> bytes:
    """What an asker with that address is told."""
    asker, answerer = stream_pair(remote_ip=remote_ip)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.handle, answerer)
        await asker.send_all(encode(DialBack(bytes(16), 4010)))
    return await receive_all(asker)


async def test_one_address_is_dialled_a_few_times_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach, "is_loopback", lambda ip: False)
    async with open_pair() as pair:
        for _ in range(defaults.REACH_DIAL_BURST):
            assert (await pair.ask(pair.alice_port)).outcome is Outcome.PROVED
            await wait_until(lambda: not pair.answerer.n_dialling)  # the dialling host has closed
        result = await pair.ask(pair.alice_port)
    assert (result.is_proven, result.outcome) == (False, Outcome.BUSY)


async def test_only_so_many_are_dialled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "REACH_DIALS", 1)
    async with open_pair() as pair, open_silent_port() as silent, trio.open_nursery() as nursery:
        nursery.start_soon(pair.ask, silent)
        await wait_until(lambda: pair.answerer.n_dialling)
        assert (await pair.ask(pair.alice_port)).outcome is Outcome.BUSY
        nursery.cancel_scope.cancel()


async def test_a_peer_holds_only_so_many_streams() -> None:
    async with open_pair() as pair:
        idle = [
            await pair.alice.open_stream(pair.bob.peer_id, PROTOCOL_ID)
            for _ in range(defaults.REACH_STREAMS_PER_PEER)
        ]
        with pytest.raises((ConnectFailed, ConnectionLost)):
            await pair.ask(pair.alice_port)
        for stream in idle:
            await stream.reset()
        with trio.fail_after(5):
            while not await can_ask(pair):  # noqa: ASYNC110  # a reset takes a moment to arrive
                await trio.sleep(0.01)


async def can_ask(pair: Pair) -> bool:
    try:
        return (await pair.ask(pair.alice_port)).is_proven
    except (ConnectFailed, ConnectionLost):
        return False


# ---------------------------------------------------------------- libp2p's own, for comparison


async def test_stock_autonat_believes_who_cannot_be_reached_and_ours_does_not() -> None:
    """`host/autonat/autonat.py:396`: dialling whoever is connected already succeeds at once."""
    nowhere = closed_port()
    addr = Multiaddr(f"/ip4/127.0.0.1/tcp/{nowhere}").to_bytes()
    client = libp2p.new_host()
    async with open_stock_host() as server, client.run([]):
        assert isinstance(server, BasicHost)
        assert isinstance(client, BasicHost)
        AutoNATService(server)
        await client.connect(info_from_p2p_addr(Multiaddr(stock_addrs(server)[0])))
        asker = AutoNATService(client, serve=False)
        status, _ = await asker.query_server(server.get_id(), [addr])
        await client.close()
    assert status == Message.OK
    async with open_host(throwaway_identity()) as alice, open_pair() as others:
        asker_of_ours = ReachService(alice)
        asker_of_ours.serve()
        others.asker.serve()
        await alice.connect(others.alice.peer_id, others.alice.addrs())
        result = await asker_of_ours.ask(others.alice.peer_id, lambda ip: nowhere)
    assert (result.is_proven, result.outcome) == (False, Outcome.UNREACHABLE)
