"""Faults mended in `upstream_swarm`. Where it is cheap, the stock swarm is shown to have them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import libp2p
import pytest
import trio
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from multiaddr import Multiaddr

from tests.peer.hosts import (
    LOOPBACK,
    can_echo,
    closed_port,
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
        await wait_until(lambda: host._swarm._inbound_limiter.borrowed_tokens == 0)


async def test_stock_loses_a_slot_with_each_connection() -> None:
    async with open_stock_host(MAX_CONNECTIONS) as host:
        swarm = stock_swarm(host)
        accepted = await count_accepted(
            str(host.get_id()), stock_addrs(host), lambda: not swarm.get_connections()
        )
    assert accepted == MAX_CONNECTIONS


async def test_no_more_than_max_connections_at_once() -> None:
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK], max_connections=1) as host,
        open_asking_host() as alice,
        open_asking_host() as bob,
    ):
        await alice.connect(host.peer_id, host.addrs())
        with pytest.raises(ConnectFailed):
            await bob.connect(host.peer_id, host.addrs())
        assert [info.peer_id for info in host.connections()] == [alice.peer_id]


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
