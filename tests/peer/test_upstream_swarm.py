"""Faults mended in `upstream_swarm`, and what they do in libp2p's own swarm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import libp2p
import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.rcmgr import new_resource_manager
from libp2p.rcmgr.manager import ResourceLimits
from multiaddr import Multiaddr

from tests.peer.hosts import (
    ECHO,
    LOOPBACK,
    can_echo,
    closed_port,
    echo,
    open_asking_host,
    open_echo_host,
    open_silent_port,
    open_stock_host,
    port_of,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tokenplace import defaults
from tokenplace.errors import ConnectFailed
from tokenplace.peer import upstream_swarm
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity

MAX_CONNECTIONS = 4  # so that a leaked slot shows after four connections, not after 250


async def count_accepted(peer_id: str, addrs: list[str], is_gone: Callable[[], bool]) -> int:
    """How many of twice `MAX_CONNECTIONS` connections, one after the other, a host accepts."""
    for n_accepted in range(2 * MAX_CONNECTIONS):
        async with open_asking_host() as asker:
            try:
                await asker.connect(peer_id, addrs)
            except ConnectFailed:
                return n_accepted
        await wait_until(is_gone)
    return 2 * MAX_CONNECTIONS


async def test_a_closed_connection_gives_its_slot_back() -> None:
    identity = throwaway_identity()
    async with open_host(identity, listen=[LOOPBACK], max_connections=MAX_CONNECTIONS) as host:
        accepted = await count_accepted(host.peer_id, host.addrs(), lambda: not host.connections())
        assert accepted == 2 * MAX_CONNECTIONS
        await wait_until(lambda: host._swarm.gate.n_open == 0)


async def test_stock_loses_a_slot_with_each_connection() -> None:
    async with open_stock_host(max_connections=MAX_CONNECTIONS) as host:
        swarm = stock_swarm(host)
        accepted = await count_accepted(
            str(host.get_id()), stock_addrs(host), lambda: not swarm.get_connections()
        )
    assert accepted == MAX_CONNECTIONS


async def test_a_newcomer_takes_the_place_of_who_is_idle_not_of_who_is_busy() -> None:
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK], max_connections=1) as host,
        open_asking_host() as alice,
        open_asking_host() as bob,
        open_asking_host() as carol,
    ):
        host.set_stream_handler(ECHO, echo)
        assert await can_echo(alice, host.peer_id, host.addrs())
        stream = await bob.open_stream(host.peer_id, ECHO, host.addrs())
        await wait_until(lambda: not alice.connections())
        with suppress(ConnectFailed):  # it learns of it after the handshake
            await carol.connect(host.peer_id, host.addrs())
        await wait_until(lambda: not carol.connections())
        await stream.send_all(b"still here")
        assert await stream.receive_some(100) == b"still here"


async def test_stock_refuses_whoever_comes_after_an_idle_one() -> None:
    async with (
        open_stock_host(max_connections=1) as host,
        open_asking_host() as alice,
        open_asking_host() as bob,
    ):
        await alice.connect(str(host.get_id()), stock_addrs(host))
        with pytest.raises(ConnectFailed):
            await bob.connect(str(host.get_id()), stock_addrs(host))


async def test_who_was_dialled_and_is_idle_makes_room_for_another_dial() -> None:
    async with (
        open_echo_host() as alice,
        open_echo_host() as bob,
        open_host(throwaway_identity(), max_connections=1) as asker,
    ):
        await asker.connect(alice.peer_id, alice.addrs())
        stream = await asker.open_stream(bob.peer_id, ECHO, bob.addrs())
        await wait_until(lambda: not asker.is_connected(alice.peer_id))
        with pytest.raises(ConnectFailed, match="all connections are in use"):
            await asker.connect(alice.peer_id, alice.addrs())
        await stream.reset()
        await asker.connect(alice.peer_id, alice.addrs())


async def test_wrong_addresses_do_not_hide_the_right_one() -> None:
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_silent_port() as silent_port,
    ):
        wrong = [f"/ip4/127.0.0.1/tcp/{port}" for port in (closed_port(), silent_port)]
        with trio.fail_after(defaults.CONNECT_TIMEOUT_S):
            await asker.connect(host.peer_id, [*wrong, "no address", *host.addrs()])
        assert asker.is_connected(host.peer_id)


async def test_stock_tries_the_first_address_only() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        addrs = [f"/ip4/127.0.0.1/tcp/{closed_port()}", *host.addrs()]
        info = PeerInfo(ID.from_base58(host.peer_id), [Multiaddr(addr) for addr in addrs])
        with pytest.raises(SwarmException):
            await stock.connect(info)


async def test_stock_shuts_a_peer_out_after_a_failed_dial() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        peer_id = ID.from_base58(host.peer_id)
        wrong = Multiaddr(f"/ip4/127.0.0.1/tcp/{closed_port()}")
        with pytest.raises(SwarmException):
            await stock.connect(PeerInfo(peer_id, [wrong]))
        stock.get_peerstore().clear_addrs(peer_id)
        with pytest.raises(SwarmException, match="negative cache"):
            await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))


async def test_a_failed_dial_does_not_shut_the_peer_out() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        with pytest.raises(ConnectFailed):
            await asker.connect(host.peer_id, [f"/ip4/127.0.0.1/tcp/{closed_port()}"])
        await asker.connect(host.peer_id, host.addrs())


Act = Callable[[], Awaitable[None]]


async def fastest(dial: Act, hang_up: Act) -> float:
    """The seconds of the fastest of three dials: a busy machine slows some, not all."""
    seconds = []
    for _ in range(3):
        start = trio.current_time()
        await dial()
        seconds.append(trio.current_time() - start)
        await hang_up()
    return min(seconds)


async def test_a_dial_takes_no_longer_than_its_handshake() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        seconds = await fastest(
            lambda: asker.connect(host.peer_id, host.addrs()),
            lambda: asker.disconnect(host.peer_id),
        )
    assert seconds < 0.2


async def test_stock_waits_a_quarter_of_a_second_after_success() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        info = info_from_p2p_addr(Multiaddr(host.addrs()[0]))
        seconds = await fastest(lambda: stock.connect(info), lambda: stock.disconnect(info.peer_id))
    assert seconds >= 0.25


async def test_a_silent_address_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "CONNECT_TIMEOUT_S", 0.3)
    peer_id = throwaway_identity().peer_id
    async with open_asking_host() as asker, open_silent_port() as port:
        with trio.fail_after(2), pytest.raises(ConnectFailed, match="no answer in time"):
            await asker.connect(peer_id, [f"/ip4/127.0.0.1/tcp/{port}"])


async def test_stock_gives_no_silent_address_up_in_time() -> None:
    in_no_time = ConnectionConfig(
        min_connections=0, low_watermark=0, dial_timeout=0.1, outbound_upgrade_timeout=0.1
    )
    host = libp2p.new_host(connection_config=in_no_time)
    async with host.run([]), open_silent_port() as port:
        peer_id = ID.from_base58(throwaway_identity().peer_id)
        with trio.move_on_after(1) as scope:
            await host.connect(PeerInfo(peer_id, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]))
        assert scope.cancelled_caught
        await host.close()


# ---------------------------------------------------------------- what strangers have dialled


@pytest.fixture
def loopback_as_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count dials to loopback addresses as if they were public."""
    monkeypatch.setattr(upstream_swarm, "dial_target", lambda addr: str(addr).split("/")[2])


@asynccontextmanager
async def open_victim() -> AsyncIterator[tuple[str, list[int]]]:
    """The address of somebody who hangs up on whoever calls, and how often that happened."""
    n_calls = [0]

    async def hang_up(stream: trio.SocketStream) -> None:
        n_calls[0] += 1
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}", n_calls
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("loopback_as_internet")
async def test_strangers_cannot_aim_dials_at_an_address() -> None:
    async with open_victim() as (addr, n_calls), open_asking_host() as asker:
        for _ in range(defaults.FAILED_DIALS):
            with pytest.raises(ConnectFailed):
                await asker.connect(throwaway_identity().peer_id, [addr])
        with pytest.raises(ConnectFailed, match="dialled too often"):
            await asker.connect(throwaway_identity().peer_id, [addr])
        with pytest.raises(ConnectFailed, match="dialled too often"):
            await asker.open_stream(throwaway_identity().peer_id, ECHO, [addr])
        assert n_calls == [defaults.FAILED_DIALS]
        with pytest.raises(ConnectFailed):  # a person named it
            await asker.connect(throwaway_identity().peer_id, [addr], is_trusted=True)
        assert n_calls == [defaults.FAILED_DIALS + 1]


async def test_stock_dials_an_address_as_often_as_strangers_like() -> None:
    async with open_victim() as (addr, n_calls), open_stock_host() as stock:
        for _ in range(2):
            peer_id = ID.from_base58(throwaway_identity().peer_id)
            with pytest.raises(SwarmException):
                await stock.connect(PeerInfo(peer_id, [Multiaddr(addr)]))
        assert n_calls[0] > 2 * defaults.FAILED_DIALS


@pytest.mark.usefixtures("loopback_as_internet")
async def test_peers_behind_one_address_are_reached_all_at_once() -> None:
    async with AsyncExitStack() as stack:
        asker = await stack.enter_async_context(open_asking_host())
        hosts = [
            await stack.enter_async_context(open_echo_host())
            for _ in range(2 * defaults.FAILED_DIALS)
        ]
        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(asker.connect, host.peer_id, host.addrs())
        assert len(asker.connections()) == len(hosts)


# ---------------------------------------------------------------- other dials


async def test_another_peer_at_the_address_is_not_accepted() -> None:
    peer_id = throwaway_identity().peer_id
    async with open_echo_host() as impostor, open_asking_host() as asker:
        addr = impostor.addrs()[0].split("/p2p/")[0]
        with pytest.raises(ConnectFailed):
            await asker.connect(peer_id, [addr])
        with pytest.raises(ConnectFailed, match="no address that can be dialled"):
            await asker.connect(peer_id, impostor.addrs())
        assert not asker.is_connected(impostor.peer_id)


async def test_dials_to_one_peer_at_once_share_one_connection() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(asker.connect, host.peer_id, host.addrs())
        assert len(asker.connections()) == 1


async def test_a_cancelled_dial_does_not_take_the_others_with_it() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                scope.cancel()
                await asker.connect(host.peer_id, host.addrs())
            nursery.start_soon(asker.connect, host.peer_id, host.addrs())
        assert await can_echo(asker, host.peer_id)


async def refuses(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return True
    await stream.aclose()
    return False


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_leaving_closes_port_and_connections(is_cancelled: bool) -> None:
    async with open_asking_host() as alice, open_asking_host() as bob:
        with trio.CancelScope() as scope:
            async with open_echo_host() as host:
                port = port_of(host.addrs()[0])
                for asker in (alice, bob):
                    await asker.connect(host.peer_id, host.addrs())
                if is_cancelled:
                    scope.cancel()
        assert await refuses(port)
        await wait_until(lambda: not alice.connections() and not bob.connections())


async def test_stock_keeps_the_port_after_leaving() -> None:
    host = libp2p.new_host()
    async with host.run([Multiaddr(LOOPBACK)]):
        port = port_of(stock_addrs(host)[0])
    is_refused = await refuses(port)
    for listener in stock_swarm(host).listeners.values():
        await listener.close()
    assert not is_refused


async def test_leaving_with_many_connections_is_quick() -> None:
    async with open_asking_host() as asker, trio.open_nursery() as nursery:
        stop = trio.Event()

        async def stay(*, task_status: trio.TaskStatus[None]) -> None:
            async with open_echo_host() as host:
                await asker.connect(host.peer_id, host.addrs())
                task_status.started()
                await stop.wait()

        for _ in range(12):
            await nursery.start(stay)
        start = trio.current_time()
        await asker._swarm.close()
        seconds = trio.current_time() - start
        stop.set()
    assert seconds < 12 * 0.2 / 2  # one after the other they take 0.2 s each


async def test_stock_takes_its_time_to_leave() -> None:
    async with open_stock_host() as stock, AsyncExitStack() as stack:
        for _ in range(4):
            host = await stack.enter_async_context(open_echo_host())
            await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        start = trio.current_time()
        await stock_swarm(stock).close()
        assert trio.current_time() - start >= 4 * 0.2


async def test_nobody_is_dialled_unasked() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        info = info_from_p2p_addr(Multiaddr(host.addrs()[0]))
        asker.upstream.get_peerstore().add_addrs(info.peer_id, info.addrs, 600)
        await asker._swarm.auto_connector.maybe_connect()
        assert asker.connections() == []


async def test_stock_dials_whom_it_knows() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        info = info_from_p2p_addr(Multiaddr(host.addrs()[0]))
        stock.get_peerstore().add_addrs(info.peer_id, info.addrs, 600)
        await stock_swarm(stock).auto_connector.maybe_connect()
        assert stock.get_connected_peers() == [info.peer_id]


async def test_streams_wait_for_no_resource_manager() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        assert host._swarm._resource_manager is None
        streams = [await asker.open_stream(host.peer_id, ECHO, host.addrs()) for _ in range(3)]
        for stream in streams:
            await stream.send_all(b"hello")
            assert await stream.receive_some(100) == b"hello"


async def test_stock_lets_a_stream_too_many_wait_for_ever() -> None:
    one_stream = new_resource_manager(limits=ResourceLimits(max_streams=1))
    async with open_echo_host() as host, open_stock_host(resource_manager=one_stream) as stock:
        peer_id = ID.from_base58(host.peer_id)
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        with trio.move_on_after(1) as scope:  # who it is takes a stream as well, for a moment
            for _ in range(3):
                await stock.new_stream(peer_id, [TProtocol(ECHO)])
        assert scope.cancelled_caught
