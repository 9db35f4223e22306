"""Faults of connections mended in `upstream_yamux`, and what they do in libp2p's own muxer."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import libp2p
import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
)
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from tests.peer.hosts import (
    ECHO,
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    open_wire,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tests.peer.muxers import (
    IDLE,
    hurry,
    muxer_of,
    read_nothing,
    receive_all_of,
    reset_at_once,
)
from tokenplace import defaults
from tokenplace.errors import ConnectFailed
from tokenplace.peer.upstream_yamux import YAMUX, MendedUpgrader, MendedYamux


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


async def test_a_frozen_peer_is_noticed_though_nobody_uses_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0.2)
    monkeypatch.setattr(defaults, "KEEPALIVE_TIMEOUT_S", 0.3)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        await asker.connect(host.peer_id, [addr])
        await wait_until(lambda: asker.connections()[0].silent_s > 0.1)
        await wait_until(lambda: asker.connections()[0].silent_s < 0.1)  # a ping or its answer
        wire.freeze()
        await wait_until(lambda: not asker.connections() and not host.connections())


async def test_a_peer_that_takes_no_byte_holds_up_no_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "WRITE_STALL_S", 100)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        host.set_stream_handler(IDLE, receive_all_of)
        streams = [await asker.open_stream(host.peer_id, IDLE, [addr]) for _ in range(40)]
        wire.freeze()
        monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0.2)
        monkeypatch.setattr(defaults, "KEEPALIVE_TIMEOUT_S", 0.3)
        cast(MendedYamux, muxer_of(asker._swarm)).doubt()  # its next look would be too far away
        n_begun = [0]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(fill, stream.send_all, n_begun)
            await wait_until(lambda: not asker.connections())


async def test_who_is_busy_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 1.0)
    pings: list[MendedYamux] = []

    async def note(muxed: MendedYamux) -> None:
        pings.append(muxed)

    monkeypatch.setattr(MendedYamux, "_ping", note)
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        for _ in range(30):
            await stream.send_all(b"a word")
            await stream.receive_some(100)
            await trio.sleep(0.05)
        assert not pings


async def test_stock_keeps_a_frozen_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux, "RTT_MEASURE_INTERVAL", 0.05)
    async with (
        open_echo_host() as host,
        open_stock_host() as stock,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        await stock.connect(info_from_p2p_addr(Multiaddr(addr)))
        muxer = muxer_of(stock_swarm(stock))
        wire.freeze()
        n_pings = muxer._ping_id
        with hurry():
            await wait_until(lambda: muxer._ping_id > n_pings + 3)  # none of them answered
        assert not muxer.is_closed


Write = Callable[[bytes], Awaitable[None]]


async def fill(write: Write, n_begun: list[int]) -> None:
    n_begun[0] += 1
    with suppress(trio.BrokenResourceError):
        await write(bytes(defaults.STREAM_WINDOW_BYTES))


def is_stuck(muxer: Yamux) -> bool:
    """Do frames wait until another has left?"""
    if isinstance(muxer, MendedYamux):
        return bool(muxer._writer._data)
    return muxer._write_lock.statistics().tasks_waiting > 0


async def write_into_a_frozen_wire(muxer: Yamux, writes: list[Write]) -> None:
    """Begin writes until the kernel takes no more, and cancel them all."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            n_begun = [0]
            for write in writes:
                nursery.start_soon(fill, write, n_begun)
            await wait_until(lambda: n_begun[0] == len(writes))
            await wait_until(lambda: is_stuck(muxer))
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
            writes = [stream.send_all for stream in streams]
            nursery.start_soon(write_into_a_frozen_wire, muxer_of(asker._swarm), writes)
            await trio.sleep(0.5)
            wire.thaw()
        for stream in streams:
            await stream.reset()
        with trio.fail_after(5):
            assert await can_echo(asker, host.peer_id)


async def test_stock_tears_the_connection_with_a_cancelled_write() -> None:
    async with (
        open_echo_host() as host,
        open_stock_host() as stock,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        host.set_stream_handler(IDLE, receive_all_of)
        await stock.connect(info_from_p2p_addr(Multiaddr(addr)))
        peer_id = ID.from_base58(host.peer_id)
        streams = [await stock.new_stream(peer_id, [TProtocol(IDLE)]) for _ in range(40)]
        wire.freeze()
        muxer = muxer_of(stock_swarm(stock))
        await write_into_a_frozen_wire(muxer, [stream.write for stream in streams])
        wire.thaw()
        assert not await stock_can_echo(stock, peer_id)


async def stock_can_echo(stock: libp2p.IHost, peer_id: ID) -> bool:
    with trio.move_on_after(2), suppress(Exception):  # whatever a torn connection raises
        stream = await stock.new_stream(peer_id, [TProtocol(ECHO)])
        await stream.write(b"hello")
        return await stream.read(100) == b"hello"
    return False


async def test_a_connection_that_takes_no_bytes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "WRITE_STALL_S", 1.5)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        host.set_stream_handler(IDLE, receive_all_of)
        streams = [await asker.open_stream(host.peer_id, IDLE, [addr]) for _ in range(40)]
        wire.freeze()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(fill, stream.send_all, [0])
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
        assert socket_of(muxer).fileno() == -1


async def test_stock_keeps_the_socket_of_a_closing_that_is_cancelled() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        muxer = muxer_of(stock_swarm(stock))
        async with muxer.streams_lock:
            await cancel_when_blocked(muxer.close)
        assert socket_of(muxer).fileno() != -1


async def cancel_when_blocked(act: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


def socket_of(muxer: Yamux) -> trio.socket.SocketType:
    stream: trio.SocketStream = muxer.secured_conn.conn.conn.stream.stream  # type: ignore[attr-defined]
    return stream.socket


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


async def test_stock_takes_any_number_of_streams_on_one_connection() -> None:
    n_streams = defaults.MAX_INBOUND_STREAMS + 2
    async with open_stock_host() as stock, open_asking_host() as asker:
        stock.set_stream_handler(TProtocol(IDLE), read_nothing)
        for _ in range(n_streams):
            await asker.open_stream(str(stock.get_id()), IDLE, stock_addrs(stock))
        assert len(muxer_of(stock_swarm(stock)).streams) >= n_streams


async def test_a_flood_of_streams_stops_its_own_connection_at_most() -> None:
    syns = b"".join(
        struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_WINDOW_UPDATE, FLAG_SYN, stream_id, 0)
        for stream_id in range(1001, 3001, 2)
    )
    async with open_echo_host() as host, open_asking_host() as attacker, open_asking_host() as bob:
        stream = await bob.open_stream(host.peer_id, ECHO, host.addrs())
        await attacker.connect(host.peer_id, host.addrs())
        with suppress(Exception):  # whatever a connection that is cut off raises
            await muxer_of(attacker._swarm).secured_conn.write(syns)
        await stream.send_all(b"hello")
        assert await stream.receive_some(100) == b"hello"
        muxers = [cast(Yamux, c.muxed_conn) for c in host._swarm.get_connections()]
        assert all(len(muxer.streams) <= defaults.MAX_INBOUND_STREAMS + 12 for muxer in muxers)


async def test_slots_for_outbound_streams_come_back_however_they_end() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler(IDLE, reset_at_once)
        await asker.connect(host.peer_id, host.addrs())
        slots = muxer_of(asker._swarm).stream_backlog_semaphore
        for protocol, end in [(ECHO, "aclose"), (ECHO, "reset"), (IDLE, "aclose"), (IDLE, "reset")]:
            for _ in range(5):
                stream = await asker.open_stream(host.peer_id, protocol)
                await stream.send_all(b"x")
                await getattr(stream, end)()
        await wait_until(lambda: slots.value == 256)


async def test_stock_loses_a_slot_with_each_opening_that_is_cancelled() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        muxer = muxer_of(stock_swarm(stock))
        await wait_until(lambda: muxer.stream_backlog_semaphore.value == 256)
        async with muxer._write_lock:
            await cancel_when_blocked(muxer.open_stream)
        await trio.sleep(0.1)
        assert muxer.stream_backlog_semaphore.value == 255


async def muxer_class_of(upgrader: TransportUpgrader) -> type[object]:
    """Which class the upgrader makes of a connection."""

    class _Agreed:
        async def select(self, *_args: object) -> tuple[TProtocol, type[Yamux]]:
            return YAMUX, MendedYamux

    class _Secured:
        is_initiator = True

    muxers = upgrader.muxer_multistream
    muxers._selector = cast(Any, _Agreed())
    return type(await muxers.new_conn(cast(Any, _Secured()), ID(b"ALICE")))


async def test_the_muxer_that_was_asked_for_is_made() -> None:
    assert await muxer_class_of(MendedUpgrader({})) is MendedYamux


async def test_stock_makes_another_muxer_than_asked_for() -> None:
    assert await muxer_class_of(TransportUpgrader({}, {YAMUX: MendedYamux})) is Yamux
