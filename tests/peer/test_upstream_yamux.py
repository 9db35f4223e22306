"""Faults mended in `upstream_yamux`. Where it is cheap, the stock muxer is shown to have them."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import cast

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_DATA,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
)
from multiaddr import Multiaddr

from tests.peer.hosts import (
    ECHO,
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    open_wire,
    receive_all,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tokenplace import defaults
from tokenplace.errors import ConnectFailed
from tokenplace.peer.host import PeerHost
from tokenplace.peer.net_stream import Libp2pStream
from tokenplace.peer.streams import PeerStream

IDLE = "/test/idle/1.0.0"
FRAME_BYTES = 32 << 10


def muxer_of(swarm: Swarm) -> Yamux:
    [connection] = swarm.get_connections()
    return cast(Yamux, connection.muxed_conn)


async def wait_for_end(stream: PeerStream) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)


async def read_nothing(_stream: object) -> None:
    await trio.sleep_forever()


async def push(attacker: PeerHost, peer_id: str, addrs: list[str], n_bytes: int) -> None:
    """Send `n_bytes` on one stream without a look at the window."""
    stream = await attacker.open_stream(peer_id, IDLE, addrs)
    stream_id = cast(Libp2pStream, stream)._stream.muxed_stream.stream_id  # type: ignore[attr-defined]
    muxer = muxer_of(attacker._swarm)
    header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream_id, FRAME_BYTES)
    for _ in range(n_bytes // FRAME_BYTES):
        await muxer._write_frame(header + bytes(FRAME_BYTES))


async def test_a_peer_that_ignores_the_window_is_cut_off() -> None:
    async with open_echo_host() as host, open_asking_host() as attacker, open_asking_host() as bob:
        host.set_stream_handler(IDLE, read_nothing)
        assert await can_echo(bob, host.peer_id, host.addrs())
        with suppress(Exception):  # whatever a connection that is cut off raises
            await push(attacker, host.peer_id, host.addrs(), 4 * defaults.STREAM_WINDOW_BYTES)
        await wait_until(lambda: not host.is_connected(attacker.peer_id))
        assert await can_echo(bob, host.peer_id)


async def test_stock_takes_whatever_it_is_sent() -> None:
    n_bytes = 4 * defaults.STREAM_WINDOW_BYTES
    async with open_stock_host() as host, open_asking_host() as attacker:
        host.set_stream_handler(TProtocol(IDLE), read_nothing)
        await push(attacker, str(host.get_id()), stock_addrs(host), n_bytes)
        buffers = muxer_of(stock_swarm(host)).stream_buffers
        await wait_until(lambda: sum(map(len, buffers.values())) == n_bytes)


async def test_many_half_full_windows_are_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_UNREAD_BYTES", 4 * FRAME_BYTES)
    async with open_echo_host() as host, open_asking_host() as attacker:
        host.set_stream_handler(IDLE, read_nothing)
        for _ in range(5):
            with suppress(Exception):
                await push(attacker, host.peer_id, host.addrs(), FRAME_BYTES)
        await wait_until(lambda: not host.is_connected(attacker.peer_id))


async def test_an_honest_peer_may_fill_the_window_and_go_on() -> None:
    n_bytes = 5 * defaults.STREAM_WINDOW_BYTES + 1
    received = bytearray()

    async with open_echo_host() as host, open_asking_host() as asker:
        is_full = trio.Event()

        async def read_late(stream: PeerStream) -> None:
            await is_full.wait()
            received.extend(await receive_all(stream))

        async def send(stream: PeerStream) -> None:
            await stream.send_all(bytes(n_bytes))
            await stream.aclose()

        host.set_stream_handler(IDLE, read_late)
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream)
            buffers = muxer_of(host._swarm).stream_buffers
            nearly_full = defaults.STREAM_WINDOW_BYTES - 200  # the choice of the protocol took some
            await wait_until(lambda: max(map(len, buffers.values())) > nearly_full)
            is_full.set()
        await wait_until(lambda: len(received) == n_bytes)


async def test_a_frozen_peer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0.05)
    monkeypatch.setattr(defaults, "KEEPALIVE_TIMEOUT_S", 0.2)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        stream = await asker.open_stream(host.peer_id, ECHO, [addr])
        await trio.sleep(0.5)  # several pings, all answered
        assert asker.is_connected(host.peer_id)
        wire.freeze()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        await wait_until(lambda: not asker.connections() and not host.connections())


async def fill(stream: PeerStream, n_begun: list[int]) -> None:
    n_begun[0] += 1
    with suppress(trio.BrokenResourceError):
        await stream.send_all(bytes(defaults.STREAM_WINDOW_BYTES))


async def write_into_a_frozen_wire(asker: PeerHost, streams: list[PeerStream]) -> None:
    """Begin writes until the kernel takes no more, and cancel them all."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            n_begun = [0]
            for stream in streams:
                nursery.start_soon(fill, stream, n_begun)
            lock = muxer_of(asker._swarm)._write_lock
            await wait_until(lambda: n_begun[0] == len(streams))
            await wait_until(lambda: lock.statistics().tasks_waiting > 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()


async def test_cancelled_writes_do_not_tear_the_connection() -> None:
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        host.set_stream_handler(IDLE, receive_all_of)
        streams = [await asker.open_stream(host.peer_id, IDLE, [addr]) for _ in range(40)]
        wire.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_into_a_frozen_wire, asker, streams)
            await trio.sleep(0.5)
            wire.thaw()
        for stream in streams:
            await stream.reset()
        with trio.fail_after(5):
            assert await can_echo(asker, host.peer_id)


async def receive_all_of(stream: PeerStream) -> None:
    await receive_all(stream)


async def test_a_connection_that_takes_no_bytes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "WRITE_STALL_S", 0.3)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        host.set_stream_handler(IDLE, receive_all_of)
        streams = [await asker.open_stream(host.peer_id, IDLE, [addr]) for _ in range(40)]
        wire.freeze()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(fill, stream, [0])
        await wait_until(lambda: not asker.connections())


async def test_a_connection_whose_closing_is_cancelled_closes_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "CLOSE_TIMEOUT_S", 0.1)
    async with open_echo_host() as host:
        async with open_asking_host() as asker:
            await asker.connect(host.peer_id, host.addrs())
            muxer = muxer_of(asker._swarm)
            await muxer.streams_lock.acquire()  # what closing needs before it comes to the socket
        assert muxer.is_closed
        socket_stream = muxer.secured_conn.conn.conn.stream.stream  # type: ignore[attr-defined]
        assert socket_stream.socket.fileno() == -1


async def reset_at_once(stream: PeerStream) -> None:
    await stream.receive_some(1)
    await stream.reset()


PINGS = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, 7) * 5000


async def test_who_leaves_behind_many_pings_is_gone_at_once() -> None:
    async with open_echo_host() as host:
        async with open_asking_host() as attacker:
            await attacker.connect(host.peer_id, host.addrs())
            await muxer_of(attacker._swarm).secured_conn.write(PINGS)
        await wait_until(lambda: not host.connections())


async def test_stock_keeps_who_leaves_behind_many_pings() -> None:
    async with open_stock_host() as host:
        async with open_asking_host() as attacker:
            await attacker.connect(str(host.get_id()), stock_addrs(host))
            await muxer_of(attacker._swarm).secured_conn.write(PINGS)
        await trio.sleep(1)
        assert stock_swarm(host).get_connections()


async def test_a_reset_is_not_an_end() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler(IDLE, reset_at_once)
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


async def test_stock_takes_a_reset_for_an_end() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        host.set_stream_handler(IDLE, reset_at_once)
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        stream = await stock.new_stream(ID.from_base58(host.peer_id), [TProtocol(IDLE)])
        await stream.write(b"x")
        with pytest.raises(StreamEOF):
            await stream.read(1)


async def test_a_lost_connection_is_not_an_end() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        await host.disconnect(asker.peer_id)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


async def test_streams_of_one_connection_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
        [connection] = host._swarm.get_connections()
        await wait_until(lambda: not connection.get_streams())
        monkeypatch.setattr(defaults, "MAX_INBOUND_STREAMS", 2)
        streams = [await asker.open_stream(host.peer_id, ECHO) for _ in range(2)]
        with pytest.raises(ConnectFailed):
            await asker.open_stream(host.peer_id, ECHO)
        await streams[0].reset()
        await wait_until(lambda: len(connection.get_streams()) == 1)
        assert await can_echo(asker, host.peer_id)
