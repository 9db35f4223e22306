"""Faults mended in `upstream_tcp`."""

from __future__ import annotations

import socket

import pytest
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from tests.peer.hosts import (
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    stock_swarm,
)
from tokenplace.peer.upstream_tcp import require_free_port


def has_ipv6() -> bool:
    try:
        require_free_port("::1", 0)
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6, even to itself")


@needs_ipv6
async def test_the_other_side_is_known_over_ipv6() -> None:
    async with open_echo_host(["/ip6/::1/tcp/0"]) as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
        assert asker.connections()[0].remote_addr == host.addrs()[0].split("/p2p/")[0]
        assert host.connections()[0].remote_addr.startswith("/ip6/::1/tcp/")


@needs_ipv6
async def test_stock_does_not_know_it() -> None:
    async with open_echo_host(["/ip6/::1/tcp/0"]) as host, open_stock_host() as stock:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        [connection] = stock_swarm(stock).get_connections(ID.from_base58(host.peer_id))
        assert isinstance(connection.muxed_conn, Yamux)
        assert connection.muxed_conn.get_remote_address() is None


@needs_ipv6
async def test_an_ipv4_address_stays_one_when_reached_over_ipv6() -> None:
    async with open_echo_host(["/ip6/::/tcp/0"]) as host, open_asking_host() as asker:
        port = host.addrs()[0].split("/tcp/")[1].split("/")[0]
        await asker.connect(host.peer_id, [f"/ip4/127.0.0.1/tcp/{port}"])
        assert host.connections()[0].remote_addr.startswith("/ip4/127.0.0.1/tcp/")


async def test_a_port_that_is_shared_is_not_free() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            require_free_port("127.0.0.1", other.getsockname()[1])
