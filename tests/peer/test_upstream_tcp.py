"""Faults mended in `upstream_tcp`, and floods, beside libp2p's own transport."""

from __future__ import annotations

import errno
import socket
import statistics
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import Any, Never

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from tests.peer.flood import SOURCE, open_flood
from tests.peer.hosts import (
    LOOPBACK,
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    port_of,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tests.peer.muxers import muxer_of
from tokenplace import defaults
from tokenplace.errors import ConfigError, ConnectFailed
from tokenplace.peer.gate import Gate
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.upstream_tcp import _RTO_MAX_MS, MendedTCP, require_free_port

SERVED_WITHIN_S = 1.0


def has_ipv6() -> bool:
    try:
        require_free_port("::1", 0)
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6, even to itself")


@pytest.fixture
def loopback_as_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count each loopback address as one of the internet."""
    monkeypatch.setattr(defaults, "MAX_LOOPBACK_CONNECTIONS", defaults.MAX_CONNECTIONS_PER_IP)
    monkeypatch.setattr(defaults, "LOOPBACK_CONNECT_BURST", defaults.CONNECT_BURST)
    monkeypatch.setattr(defaults, "LOOPBACK_CONNECTS_PER_S", defaults.CONNECTS_PER_S)


@contextmanager
def silent_connections(port: int, n: int, source: str = SOURCE) -> Iterator[list[socket.socket]]:
    """Connections that never say a word."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5, (source, 0)))
            for _ in range(n)
        ]


def last_words(connection: socket.socket) -> bytes | None:
    """What the other side said before it hung up; None: it has not hung up."""
    connection.setblocking(False)
    words = b""
    try:
        while part := connection.recv(4096):
            words += part
    except BlockingIOError:
        return None
    except ConnectionResetError:
        pass
    return words


def is_closed(connection: socket.socket) -> bool:
    return last_words(connection) is not None


# ---------------------------------------------------------------- floods


@pytest.mark.usefixtures("loopback_as_internet")
@pytest.mark.parametrize("is_held", [True, False], ids=["held", "reconnecting"])
async def test_900_connections_of_one_address_leave_another_served(is_held: bool) -> None:
    seconds = []
    async with (
        open_echo_host() as host,
        open_flood(port_of(host.addrs()[0]), is_held=is_held),
    ):
        for _ in range(10):
            async with open_asking_host() as asker:
                start = trio.current_time()
                with trio.fail_after(defaults.CONNECT_TIMEOUT_S):
                    assert await can_echo(asker, host.peer_id, host.addrs())
                seconds.append(trio.current_time() - start)
            await trio.sleep(0.1)
        gate = host._swarm.gate
        assert gate.n_greeting + gate.n_open <= 2 * defaults.MAX_CONNECTIONS_PER_IP
    assert statistics.median(seconds) < SERVED_WITHIN_S


@pytest.mark.usefixtures("loopback_as_internet")
async def test_peers_behind_one_router_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "IDLE_BEFORE_LEAVING_S", 0.0)
    async with open_echo_host() as host, AsyncExitStack() as stack:
        for _ in range(2 * defaults.MAX_CONNECTIONS_PER_IP):
            asker = await stack.enter_async_context(open_asking_host())
            assert await can_echo(asker, host.peer_id, host.addrs())
            await wait_until(lambda: not host._swarm.gate.n_greeting)
            assert host._swarm.gate.n_open <= defaults.MAX_CONNECTIONS_PER_IP


async def test_stock_serves_nobody_beside_a_few_silent_connections() -> None:
    async with open_stock_host(max_connections=4) as host, open_asking_host() as asker:
        with silent_connections(port_of(stock_addrs(host)[0]), 5):
            await wait_until(lambda: stock_swarm(host)._inbound_limiter.available_tokens == 0)
            with pytest.raises(ConnectFailed):
                await asker.connect(str(host.get_id()), stock_addrs(host))


@pytest.mark.usefixtures("loopback_as_internet")
async def test_a_refused_connection_is_closed_at_once_and_unanswered() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        port = port_of(host.addrs()[0])
        with silent_connections(port, defaults.MAX_CONNECTIONS_PER_IP) as taken:
            await wait_until(lambda: host._swarm.gate.n_greeting == len(taken))
            n_tasks = trio.lowlevel.current_statistics().tasks_living
            with silent_connections(port, 3) as refused:
                await wait_until(lambda: all(last_words(one) == b"" for one in refused))
            assert trio.lowlevel.current_statistics().tasks_living <= n_tasks
            assert not any(map(is_closed, taken))
            assert await can_echo(asker, host.peer_id, host.addrs())
        await wait_until(lambda: host._swarm.gate.n_greeting == 0)


async def test_silent_connections_make_room_in_the_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_GREETING", 4)
    async with open_echo_host() as host, open_asking_host() as asker:
        with silent_connections(port_of(host.addrs()[0]), 4) as silent:
            await wait_until(lambda: host._swarm.gate.n_greeting == 4)
            assert await can_echo(asker, host.peer_id, host.addrs())
            await wait_until(lambda: is_closed(silent[0]))
            assert not is_closed(silent[-1])


async def test_a_handshake_has_a_deadline_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "UPGRADE_TIMEOUT_S", 0.3)
    async with open_echo_host() as host:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(host.addrs()[0]))
        start = trio.current_time()
        message = [b"\x01\x00", *[b"\x00"] * 256]  # of Noise, byte by byte
        async with stream:
            with trio.fail_after(5), suppress(trio.BrokenResourceError):
                for part in [b"\x13/multistream/1.0.0\n", b"\x07/noise\n", *message]:
                    await stream.send_all(part)
                    await trio.sleep(0.05)  # each step in good time
        assert trio.current_time() - start >= 0.3


async def test_without_descriptors_it_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = socket.socket.accept

    def fail(_listening: socket.socket) -> Never:
        raise OSError(errno.EMFILE, "Too many open files")

    async with open_echo_host() as host, open_asking_host() as asker:
        monkeypatch.setattr(socket.socket, "accept", fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.connect, host.peer_id, host.addrs())
            await wait_until(lambda: "Too many open files" in caplog.text)
            monkeypatch.setattr(socket.socket, "accept", accept)
        assert await can_echo(asker, host.peer_id)


# ---------------------------------------------------------------- addresses


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
async def test_both_wildcards_can_have_one_port() -> None:
    async with open_echo_host() as probe:
        port = port_of(probe.addrs()[0])
    both = [f"/ip6/::/tcp/{port}", f"/ip4/0.0.0.0/tcp/{port}"]
    async with open_echo_host(both) as host, open_asking_host() as asker:
        for addr in (f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}"):
            await asker.connect(host.peer_id, [addr])
            assert host.connections()[-1].remote_addr.startswith(addr.split("/tcp/")[0])
            await asker.disconnect(host.peer_id)
            await wait_until(lambda: not host.connections())


async def test_a_port_that_is_shared_is_not_free() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            require_free_port("127.0.0.1", other.getsockname()[1])


async def two_listeners_on_one_port(transport: TCP) -> None:
    async def ignore(_stream: object) -> None:
        """Take the connection and do nothing."""

    first, second = transport.create_listener(ignore), transport.create_listener(ignore)
    try:
        await first.listen(Multiaddr(LOOPBACK))
        await second.listen(first.get_addrs()[0])
    finally:
        await first.close()
        await second.close()


async def test_a_port_is_not_shared() -> None:
    with pytest.raises(Exception, match="in use"):
        await two_listeners_on_one_port(MendedTCP(Gate(1)))


async def test_stock_shares_a_port() -> None:
    await two_listeners_on_one_port(TCP())


NOT_PLAIN_TCP = [
    "/ip4/127.0.0.1/udp/4010/quic-v1",
    "/ip4/127.0.0.1/tcp/4010/ws",
    "/ip4/127.0.0.1/tcp/4010/tls/ws",
    "/ip4/127.0.0.1/udp/4010/quic-v1/webtransport",
    "/ip4/127.0.0.1/tcp/4010/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit",
]


@pytest.mark.parametrize("addr", NOT_PLAIN_TCP)
async def test_nothing_but_plain_tcp_is_listened_on_or_dialled(addr: str) -> None:
    with pytest.raises(ConfigError):
        async with open_host(throwaway_identity(), listen=[addr]):
            pass
    async with open_asking_host() as asker:
        with pytest.raises(ConnectFailed, match="no address that can be dialled"):
            await asker.connect(throwaway_identity().peer_id, [addr])


async def test_stock_takes_a_relays_address_for_plain_tcp() -> None:
    assert TCP().can_dial(Multiaddr(NOT_PLAIN_TCP[-1]))
    assert not MendedTCP(Gate(1)).can_dial(Multiaddr(NOT_PLAIN_TCP[-1]))


# ---------------------------------------------------------------- newcomers


async def open_idle(host: PeerHost, nursery: trio.Nursery) -> PeerHost:
    """A host that is connected to `host` and does nothing."""

    async def stay(*, task_status: trio.TaskStatus[PeerHost]) -> None:
        async with open_asking_host() as asker:
            await asker.connect(host.peer_id, host.addrs())
            task_status.started(asker)
            await trio.sleep_forever()

    asker: PeerHost = await nursery.start(stay)
    return asker


async def test_idle_connections_do_not_shut_newcomers_out() -> None:
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK], max_connections=2) as host,
        open_asking_host() as newcomer,
        trio.open_nursery() as nursery,
    ):
        alice, bob = [await open_idle(host, nursery) for _ in range(2)]
        await newcomer.connect(host.peer_id, host.addrs())
        await wait_until(lambda: not alice.connections())
        assert host._swarm.gate.n_open == 2
        assert newcomer.is_connected(host.peer_id)
        assert bob.is_connected(host.peer_id)
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told so")
async def test_the_kernel_tries_again_soon_after_an_outage_and_not_for_ever() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
        for one in (host, asker):
            connection = socket_of(one)
            user_timeout_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert user_timeout_ms == defaults.TCP_USER_TIMEOUT_S * 1000
            try:
                rto_max_ms = connection.getsockopt(socket.IPPROTO_TCP, _RTO_MAX_MS)
            except OSError:
                continue  # before Linux 6.15
            assert rto_max_ms == defaults.TCP_RTO_MAX_S * 1000


def socket_of(host: PeerHost) -> trio.socket.SocketType:
    """The socket of a host's only connection."""
    part: Any = muxer_of(host._swarm).secured_conn
    while not hasattr(part, "socket"):
        names = ("_conn", "conn", "read_writer", "read_write_closer", "stream")
        part = next(getattr(part, name) for name in names if name in vars(part))
    found: trio.socket.SocketType = part.socket
    return found
