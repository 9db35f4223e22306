"""Faults mended in `upstream_host`. Each attack runs against libp2p's host too: there it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.identity.identify_push.identify_push import push_identify_to_peer
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from tests.peer.hosts import (
    ECHO,
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    port_of,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tokenplace.peer import upstream_host
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.upstream_host import expand_wildcards

MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOT_UTF8 = b"\x03\xff\xfe\n"


async def select_security(addr: str, protocol: bytes) -> bytes:
    """The answer of a host to one security protocol, in multistream-select."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(addr))
    async with stream:
        await stream.send_all(MULTISTREAM + bytes([len(protocol) + 1]) + protocol + b"\n")
        answer = b""
        with trio.fail_after(5):
            while not answer.endswith((protocol + b"\n", b"\x03na\n")):
                answer += await stream.receive_some(100)
    return answer.removeprefix(MULTISTREAM)[1:-1]


@pytest.mark.parametrize("protocol", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"])
async def test_only_noise_is_spoken(protocol: bytes) -> None:
    async with open_echo_host() as host:
        assert await select_security(host.addrs()[0], b"/noise") == b"/noise"
        assert await select_security(host.addrs()[0], protocol) == b"na"


async def test_stock_speaks_plaintext() -> None:
    async with open_stock_host() as host:
        answer = await select_security(stock_addrs(host)[0], b"/plaintext/2.0.0")
    assert answer == b"/plaintext/2.0.0"


async def causes_of_death(attack: Callable[[IHost, PeerHost], Awaitable[None]]) -> set[type]:
    """What libp2p's host dies of after an attack; empty when it lives."""
    causes: set[type] = set()

    def note(errors: BaseExceptionGroup[BaseException]) -> None:
        for error in errors.exceptions:
            if isinstance(error, BaseExceptionGroup):
                note(error)
            else:
                causes.add(type(error))

    try:
        async with open_asking_host() as attacker, open_stock_host() as host:
            await attack(host, attacker)
            with trio.fail_after(5):
                await trio.sleep_forever()
    except BaseExceptionGroup as errors:
        note(errors)
    return causes


async def send_raw(asker: PeerHost, peer_id: str, addrs: list[str], data: bytes) -> None:
    """Send bytes on a new stream on which no protocol was chosen."""
    await asker.connect(peer_id, addrs)
    connection = asker._swarm.live_connection(ID.from_base58(peer_id))
    assert connection is not None
    stream = await connection.new_stream()
    await stream.write(data)
    with suppress(StreamError):
        while await stream.read(100):  # until the other side has dealt with it
            pass


async def test_a_protocol_that_is_not_utf8_harms_nobody() -> None:
    async with open_echo_host() as host, open_asking_host() as attacker, open_asking_host() as bob:
        assert await can_echo(bob, host.peer_id, host.addrs())
        await send_raw(attacker, host.peer_id, host.addrs(), NOT_UTF8)
        assert await can_echo(bob, host.peer_id)
        assert await can_echo(attacker, host.peer_id)


async def test_stock_dies_of_a_protocol_that_is_not_utf8() -> None:
    async def attack(host: IHost, attacker: PeerHost) -> None:
        await send_raw(attacker, str(host.get_id()), stock_addrs(host), NOT_UTF8)

    assert UnicodeDecodeError in await causes_of_death(attack)


async def test_a_handler_that_raises_harms_its_own_stream_only() -> None:
    async def fail(stream: PeerStream) -> None:
        await stream.receive_some(1)
        raise KeyError("planned")

    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler("/test/fail/1", fail)
        other = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        stream = await asker.open_stream(host.peer_id, "/test/fail/1")
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        await other.send_all(b"still here")
        assert await other.receive_some(100) == b"still here"


async def test_stock_dies_of_a_handler_that_raises() -> None:
    async def fail(_stream: INetStream) -> None:
        raise KeyError("planned")

    async def attack(host: IHost, attacker: PeerHost) -> None:
        host.set_stream_handler(TProtocol("/test/fail/1"), fail)
        await attacker.open_stream(str(host.get_id()), "/test/fail/1", stock_addrs(host))

    assert KeyError in await causes_of_death(attack)


async def test_nobody_who_connects_is_remembered() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        # A stock host asks who we are, which is answered, and tells who it is, which is not taken.
        await wait_until(lambda: ID.from_base58(host.peer_id) in stock.get_peerstore().peer_ids())
        assert not await push_identify_to_peer(stock, ID.from_base58(host.peer_id))
        assert host.upstream.get_peerstore().peer_ids() == [host.upstream.get_id()]


async def test_stock_remembers_who_has_left() -> None:
    async with open_stock_host() as stock:
        async with open_stock_host() as other:
            await other.connect(info_from_p2p_addr(Multiaddr(stock_addrs(stock)[0])))
            peers = stock.get_peerstore()
            await wait_until(lambda: other.get_id() in peers.peer_ids())
        await wait_until(lambda: not stock_swarm(stock).get_connections())
        assert other.get_id() in peers.peer_ids()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\xff" * 4096,
        b"\x13/multistream/1.0.0\n" + NOT_UTF8,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 300,
        b"",
    ],
)
async def test_garbage_on_the_port_harms_nobody(garbage: bytes) -> None:
    async with open_echo_host() as host, open_asking_host() as bob:
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(host.addrs()[0]))
            await stream.send_all(garbage)
            await trio.aclose_forcefully(stream)
        assert await can_echo(bob, host.peer_id, host.addrs())


def test_wildcards_become_this_machines_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    ips = {4: ["192.168.1.7", "203.0.113.7", "8.8.4.4"], 6: ["2606:4700::1", "fd00::1"]}
    monkeypatch.setattr(upstream_host, "get_network_addrs", ips.__getitem__)
    listen = ["/ip4/0.0.0.0/tcp/4010", "/ip6/::/tcp/4010", "/dns4/alice.example/tcp/4010"]
    assert [str(addr) for addr in expand_wildcards(Multiaddr(addr) for addr in listen)] == [
        "/ip4/8.8.4.4/tcp/4010",
        "/ip6/2606:4700::1/tcp/4010",
        "/dns4/alice.example/tcp/4010",
        "/ip4/192.168.1.7/tcp/4010",
        "/ip4/203.0.113.7/tcp/4010",
        "/ip6/fd00::1/tcp/4010",
        "/ip4/127.0.0.1/tcp/4010",
        "/ip6/::1/tcp/4010",
    ]


async def test_a_host_on_all_addresses_names_each() -> None:
    async with open_echo_host(["/ip4/0.0.0.0/tcp/0"]) as host, open_asking_host() as asker:
        assert host.addrs()
        assert all(addr.endswith(f"/p2p/{host.peer_id}") for addr in host.addrs())
        assert host.addrs()[-1].startswith("/ip4/127.0.0.1/")
        assert not any("0.0.0.0" in addr for addr in host.addrs())
        assert await can_echo(asker, host.peer_id, host.addrs())


async def test_stock_tells_others_the_wildcard() -> None:
    async with open_stock_host("/ip4/0.0.0.0/tcp/0") as stock:
        assert "/ip4/0.0.0.0/" in stock_addrs(stock)[0]
