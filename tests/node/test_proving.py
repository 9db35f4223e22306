"""When a peer serves: real hosts and a real DHT on loopback, some of them with a closed door."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from multiaddr import Multiaddr

from tests.peer.hosts import LOOPBACK, port_of, wait_until
from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.node.proving import Prober, ReachPolicy, open_prober
from tokenplace.node.reach_report import ReachState
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.reach import DialBackResult, ReachService
from tokenplace.peer.reach_wire import LENGTH, PROTOCOL_ID, Answer, Outcome, encode
from tokenplace.peer.streams import PeerStream, receive_exactly

NETWORK = "test"
WAIT_S = 20.0
PUBLIC_IP, ALICE_IP, BOB_IP = "1.1.1.1", "9.9.9.9", "4.4.4.4"


def policy(
    *,
    always: str = "",
    does_local_count: bool = True,
    trusted: frozenset[str] = frozenset(),
    own_peers: frozenset[str] = frozenset(),
) -> ReachPolicy:
    return ReachPolicy(always, does_local_count, trusted, own_peers, is_donating=True)


@dataclass
class Newcomer:
    """A peer that finds out how it is reached."""

    host: PeerHost
    prober: Prober
    kad: Kad
    said: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.prober.report().text

    async def wait(self, *, is_server: bool) -> None:
        await wait_until(lambda: self.kad.is_server is is_server, WAIT_S)


@asynccontextmanager
async def open_newcomer(reach: ReachPolicy) -> AsyncIterator[Newcomer]:
    said: list[str] = []
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK]) as host,
        open_prober(host, NETWORK, reach, said.append, allow_private=True) as (prober, kad),
    ):
        yield Newcomer(host, prober, kad, said)


@asynccontextmanager
async def open_neighbour() -> AsyncIterator[tuple[PeerHost, Kad]]:
    """A server of the DHT that dials back whoever asks."""
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK]) as host,
        open_kad(host, network=NETWORK, server=True) as kad,
    ):
        ReachService(host, on_proved=kad.reconsider).serve()
        yield host, kad


# ---------------------------------------------------------------- being reached


async def test_who_is_dialled_back_serves_from_then_on() -> None:
    async with open_neighbour() as (bob, bobs_kad), open_newcomer(policy()) as alice:
        assert not alice.kad.is_server
        assert alice.prober.announced() == []
        assert "no peer is connected" in alice.text
        await alice.host.connect(bob.peer_id, bob.addrs())
        await alice.wait(is_server=True)
        assert alice.prober.announced() == alice.host.addrs()
        assert alice.prober.report().state is ReachState.THIS_MACHINE
        await wait_until(lambda: alice.said, WAIT_S)
        assert alice.said == [alice.text]
        assert await alice.kad.join([(bob.peer_id, bob.addrs())]) == 1
        await wait_until(lambda: bobs_kad.peers() == [alice.host.peer_id], WAIT_S)


async def test_after_a_long_sleep_everything_is_proven_anew() -> None:
    slept_s = 0.0
    async with (
        open_neighbour() as (bob, _),
        open_host(throwaway_identity(), listen=[LOOPBACK]) as host,
        open_prober(
            host,
            NETWORK,
            policy(),
            lambda line: None,
            allow_private=True,
            clock=lambda: trio.current_time() + slept_s,
        ) as (prober, kad),
    ):
        await host.connect(bob.peer_id, bob.addrs())
        await wait_until(lambda: kad.is_server, WAIT_S)
        await host.disconnect(bob.peer_id)
        slept_s = 8 * 3600.0
        assert prober.announced() == []
        await wait_until(lambda: not kad.is_server, WAIT_S)
        await host.connect(bob.peer_id, bob.addrs())
        await wait_until(lambda: kad.is_server and prober.announced() == host.addrs(), WAIT_S)


async def test_who_was_met_as_a_client_is_known_as_a_server_at_once() -> None:
    async with open_neighbour() as (bob, bobs_kad), open_newcomer(policy()) as alice:
        assert await alice.kad.join([(bob.peer_id, bob.addrs())]) == 1
        # Not after CLIENT_MEMORY_S: having dialled it back, Bob has it probed again.
        await wait_until(lambda: bobs_kad.peers() == [alice.host.peer_id], WAIT_S)


async def test_who_is_called_asks_the_caller() -> None:
    """So two machines joined by an invitation need no third one."""
    async with open_newcomer(policy()) as alice, open_host(throwaway_identity()) as dial_only:
        ReachService(dial_only).serve()
        await dial_only.connect(alice.host.peer_id, alice.host.addrs())
        await alice.wait(is_server=True)


async def test_who_has_to_serve_serves_at_once_and_says_whether_it_is_reached() -> None:
    async with (
        open_neighbour() as (bob, _),
        open_newcomer(policy(always="of --serve")) as alice,
    ):
        assert alice.kad.is_server
        assert alice.prober.announced() == alice.host.addrs()
        assert alice.text.startswith("serves because of --serve; nobody has reached it")
        await alice.host.connect(bob.peer_id, bob.addrs())
        await wait_until(lambda: "reachable on this machine" in alice.text, WAIT_S)
        assert alice.text.startswith("serves because of --serve; ")


# ---------------------------------------------------------------- not being reached


@dataclass
class Door:
    """A port that is taken but refuses connections until it is opened: a router's."""

    leads_to: int
    _socket: socket.socket

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    async def open(self, nursery: trio.Nursery) -> None:
        async def splice(client: trio.SocketStream) -> None:
            server = await trio.open_tcp_stream("127.0.0.1", self.leads_to)
            async with client, server, open_background() as both:
                both.start_soon(copy, client, server)
                await copy(server, client)

        self._socket.listen()
        self._socket.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        await nursery.start(trio.serve_listeners, splice, [listener])


async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@asynccontextmanager
async def open_door(host: PeerHost, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    """From now on `host` is reached through the door, as if that were its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        door = Door(port_of(host.addrs()[0]), taken)
        addr = Multiaddr(f"/ip4/127.0.0.1/tcp/{door.port}/p2p/{host.peer_id}")
        monkeypatch.setattr(host.upstream, "get_addrs", lambda: [addr])
        yield door


async def test_behind_a_closed_door_nobody_is_a_server_and_behind_an_open_one_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "REACH_RETRY_S", 0.1)
    monkeypatch.setattr(defaults, "REACH_RETRY_MAX_S", 0.1)
    async with (
        open_neighbour() as (bob, bobs_kad),
        open_newcomer(policy()) as alice,
        open_door(alice.host, monkeypatch) as door,
        open_background() as nursery,
    ):
        assert await alice.kad.join([(bob.peer_id, bob.addrs())]) == 1
        blocked = f"could not connect to 127.0.0.1, port {door.port}: a firewall"
        await wait_until(lambda: blocked in alice.text, WAIT_S)
        await alice.kad.refresh()
        assert not alice.kad.is_server
        assert alice.prober.announced() == []
        assert bobs_kad.peers() == []
        assert alice.text.endswith("so your donation does nothing yet")
        await door.open(nursery)
        await alice.wait(is_server=True)
        assert alice.prober.announced() == alice.host.addrs()
        await wait_until(lambda: bobs_kad.peers() == [alice.host.peer_id], WAIT_S)
        assert [line.split(",")[0] for line in alice.said] == [
            "nobody can reach you",
            f"reachable on this machine at /ip4/127.0.0.1/tcp/{door.port}",
        ]


async def test_the_own_other_half_is_nobody_to_ask() -> None:
    asked: list[str] = []

    async def note(stream: PeerStream) -> None:
        asked.append(stream.peer_id)

    async with open_host(throwaway_identity()) as own, open_neighbour() as (bob, _):
        own.set_stream_handler(PROTOCOL_ID, note)
        async with open_newcomer(policy(own_peers=frozenset({own.peer_id}))) as alice:
            await own.connect(alice.host.peer_id, alice.host.addrs())
            await wait_until(lambda: alice.host.is_connected(own.peer_id), WAIT_S)
            assert alice.prober.report().n_peers == 0
            # Whoever is due is asked in the same turn: when Bob was, the other half would be too.
            await alice.host.connect(bob.peer_id, bob.addrs())
            await alice.wait(is_server=True)
    assert asked == []


async def test_the_word_of_a_liar_makes_no_server() -> None:
    async def lie(stream: PeerStream) -> None:
        (length,) = LENGTH.unpack(await receive_exactly(stream, LENGTH.size))
        await receive_exactly(stream, length)
        await stream.send_all(encode(Answer(Outcome.PROVED, PUBLIC_IP)))

    async with open_neighbour() as (bob, _), open_newcomer(policy()) as alice:
        bob.set_stream_handler(PROTOCOL_ID, lie)
        await alice.host.connect(bob.peer_id, bob.addrs())
        await wait_until(lambda: "nothing of that arrived here" in alice.text, WAIT_S)
        assert not alice.kad.is_server
        assert alice.prober.announced() == []


async def test_neighbours_alone_make_no_server_of_a_network_of_strangers() -> None:
    async with (
        open_neighbour() as (bob, _),
        open_newcomer(policy(does_local_count=False)) as alice,
    ):
        await alice.host.connect(bob.peer_id, bob.addrs())
        await wait_until(lambda: alice.prober.report().confirmed, WAIT_S)
        assert not alice.kad.is_server
        assert alice.prober.announced() == []
        assert alice.text.startswith("nobody on the internet can reach you")


async def test_who_is_reached_no_more_stops_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "REACH_PROOF_LIFETIME_S", 1.0)
    monkeypatch.setattr(defaults, "REACH_RENEW_S", 0.5)
    monkeypatch.setattr(defaults, "REACH_CALM_POLL_S", 0.05)
    monkeypatch.setattr(defaults, "REACH_RETRY_S", 0.1)
    async with open_neighbour() as (bob, _), open_newcomer(policy()) as alice:
        await alice.host.connect(bob.peer_id, bob.addrs())
        await alice.wait(is_server=True)
        bob.remove_stream_handler(PROTOCOL_ID)
        await alice.wait(is_server=False)
        assert alice.prober.announced() == []
        ReachService(bob).serve()
        await alice.wait(is_server=True)


async def test_a_new_address_is_proven_anew_and_the_old_one_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "REACH_INTERFACES_S", 0.05)
    monkeypatch.setattr(defaults, "REACH_CALM_POLL_S", 0.05)
    async with open_neighbour() as (bob, _), open_newcomer(policy()) as alice:
        await alice.host.connect(bob.peer_id, bob.addrs())
        await alice.wait(is_server=True)
        async with open_door(alice.host, monkeypatch) as door, open_background() as nursery:
            await door.open(nursery)
            new = f"/ip4/127.0.0.1/tcp/{door.port}/p2p/{alice.host.peer_id}"
            await wait_until(lambda: alice.prober.announced() == [new], WAIT_S)
            await alice.wait(is_server=True)


# ---------------------------------------------------------------- on the internet


@dataclass
class FromAfar(ReachService):
    """Asking that goes as if everybody were on the internet. answers: by peer id."""

    answers: Mapping[str, DialBackResult] = field(default_factory=dict)

    async def ask(self, peer_id: str, port_for: Callable[[str], int | None]) -> DialBackResult:
        await trio.lowlevel.checkpoint()
        return self.answers[peer_id]


def seen_by(peer_ip: str, *, observed: str = PUBLIC_IP) -> DialBackResult:
    return DialBackResult(True, Outcome.PROVED, observed, peer_ip, 4010)


@asynccontextmanager
async def open_far(
    answers_of: Callable[[str, str], Mapping[str, DialBackResult]],
    trusted_of: Callable[[str, str], frozenset[str]] = lambda bob, carol: frozenset(),
) -> AsyncIterator[Newcomer]:
    """A newcomer connected to Bob and Carol; `answers_of` and `trusted_of` get their ids."""
    async with AsyncExitStack() as stack:
        bob, _ = await stack.enter_async_context(open_neighbour())
        carol, _ = await stack.enter_async_context(open_neighbour())
        host = await stack.enter_async_context(open_host(throwaway_identity(), listen=[LOOPBACK]))
        for peer in (bob, carol):
            await host.connect(peer.peer_id, peer.addrs())
        trusted = trusted_of(bob.peer_id, carol.peer_id)
        prober = Prober(host, policy(does_local_count=False, trusted=trusted), lambda line: None)
        kad = await stack.enter_async_context(
            open_kad(host, network=NETWORK, server=False, addrs=prober.announced)
        )
        service = FromAfar(host, answers=answers_of(bob.peer_id, carol.peer_id))
        nursery = await stack.enter_async_context(open_background())
        nursery.start_soon(prober.prove, service, kad)
        yield Newcomer(host, prober, kad)


async def test_peers_of_two_networks_confirm_a_routers_address() -> None:
    async with open_far(lambda bob, carol: {bob: seen_by(ALICE_IP), carol: seen_by(BOB_IP)}) as a:
        await a.wait(is_server=True)
        assert a.prober.announced() == [f"/ip4/{PUBLIC_IP}/tcp/4010/p2p/{a.host.peer_id}"]
        assert a.prober.report().state is ReachState.INTERNET


async def test_two_peers_of_one_network_do_not() -> None:
    async with open_far(
        lambda bob, carol: {bob: seen_by(ALICE_IP), carol: seen_by("9.9.1.1")}
    ) as a:
        await wait_until(lambda: "only peers of one network" in a.text, WAIT_S)
        assert not a.kad.is_server
        assert a.prober.announced() == []


async def test_a_peer_of_the_own_bootstrap_list_does() -> None:
    answers = {"bob": seen_by(ALICE_IP), "carol": seen_by(ALICE_IP, observed="8.8.8.8")}
    async with open_far(
        lambda bob, carol: {bob: answers["bob"], carol: answers["carol"]},
        lambda bob, carol: frozenset({bob}),
    ) as a:
        await a.wait(is_server=True)
        assert a.prober.announced() == [f"/ip4/{PUBLIC_IP}/tcp/4010/p2p/{a.host.peer_id}"]


async def test_a_stranger_cannot_make_a_private_address_count() -> None:
    lie = seen_by(ALICE_IP, observed="192.168.1.7")
    async with open_far(lambda bob, carol: {bob: lie, carol: lie}) as a:
        await wait_until(lambda: "nothing of that arrived" in a.text, WAIT_S)
        assert a.prober.report().confirmed == ()
