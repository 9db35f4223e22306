"""Faults of streams mended in `upstream_yamux`, and what they do in libp2p's own muxer."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux.yamux import (
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
)
from multiaddr import Multiaddr

from tests.peer.hosts import (
    ECHO,
    can_echo,
    open_asking_host,
    open_echo_host,
    open_stock_host,
    receive_all,
    stock_addrs,
    stock_swarm,
    wait_until,
)
from tests.peer.muxers import (
    IDLE,
    hurry,
    muxed_of,
    muxer_of,
    read_nothing,
    reset_at_once,
)
from tokenplace import defaults
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream

FRAME_BYTES = 32 << 10


async def push(attacker: PeerHost, peer_id: str, addrs: list[str], n_bytes: int) -> None:
    """Send `n_bytes` on one stream without a look at the window."""
    stream = await attacker.open_stream(peer_id, IDLE, addrs)
    stream_id = muxed_of(stream).stream_id
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


def read_when(may_read: trio.Event, received: bytearray) -> Callable[[PeerStream], Any]:
    """A handler that reads everything, but not at once."""

    async def read_late(stream: PeerStream) -> None:
        await may_read.wait()
        received.extend(await receive_all(stream))

    return read_late


TWO_WINDOWS = 2 * defaults.STREAM_WINDOW_BYTES


async def test_a_writer_waits_for_its_reader_as_long_as_it_takes() -> None:
    may_read, received = trio.Event(), bytearray()
    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler(IDLE, read_when(may_read, received))
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        with hurry():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(TWO_WINDOWS))
                await trio.sleep(0.6)
                may_read.set()
        await stream.aclose()
        await wait_until(lambda: len(received) == TWO_WINDOWS)


async def test_stock_gives_a_slow_reader_up() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        host.set_stream_handler(IDLE, read_when(trio.Event(), bytearray()))
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        stream = await stock.new_stream(ID.from_base58(host.peer_id), [TProtocol(IDLE)])
        with trio.fail_after(5), hurry(), pytest.raises(StreamError):
            await stream.write(bytes(TWO_WINDOWS))


@pytest.mark.parametrize("end", ["reset here", "reset there", "connection lost", "deadline"])
async def test_a_writer_that_waits_is_told_of_the_end(end: str) -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        inbound: list[PeerStream] = []

        async def hold(stream: PeerStream) -> None:
            inbound.append(stream)
            await trio.sleep_forever()

        host.set_stream_handler(IDLE, hold)
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        with trio.fail_after(5), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_until_told, stream)
                await wait_until(lambda: muxed_of(stream).send_window == 0 and bool(inbound))
                if end == "reset here":
                    await stream.reset()
                elif end == "reset there":
                    await inbound[0].reset()
                elif end == "connection lost":
                    await asker.disconnect(host.peer_id)
                else:
                    scope.cancel()


async def write_until_told(stream: PeerStream) -> None:
    with pytest.raises(
        (trio.BrokenResourceError, trio.ClosedResourceError, trio.Cancelled)
    ) as told:
        await stream.send_all(bytes(TWO_WINDOWS))
    if told.errisinstance(trio.Cancelled):
        raise told.value


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


async def test_a_reset_wakes_ones_own_reader() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_any_end, stream.receive_some)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await stream.reset()


async def test_stock_leaves_the_reader_of_a_stream_that_it_reset_waiting() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        stream = await stock.new_stream(ID.from_base58(host.peer_id), [TProtocol(ECHO)])
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_any_end, stream.read)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await stream.reset()
        assert scope.cancelled_caught


async def wait_for_any_end(read: Callable[[int], Awaitable[bytes]]) -> None:
    with suppress(trio.ClosedResourceError, StreamError):
        await read(1)


async def send_and_leave(host: PeerHost, stream: PeerStream) -> None:
    await stream.send_all(b"the last words")
    await stream.send_eof()
    await host.disconnect(stream.peer_id)


async def test_what_arrived_before_the_connection_ended_can_be_read() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler(IDLE, lambda stream: send_and_leave(host, stream))
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        await wait_until(lambda: not asker.connections())
        await trio.sleep(0.3)  # libp2p's own cleaning up is over, too
        assert await stream.receive_some(4) == b"the "
        assert await receive_all(stream) == b"last words"


async def test_what_was_cut_off_has_no_end() -> None:
    async def send_half(stream: PeerStream) -> None:
        await stream.send_all(b"half a ")
        await host.disconnect(stream.peer_id)

    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler(IDLE, send_half)
        stream = await asker.open_stream(host.peer_id, IDLE, host.addrs())
        await wait_until(lambda: not asker.connections())
        assert await stream.receive_some(100) == b"half a "
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(100)


async def test_stock_loses_what_arrived_before_the_connection_ended() -> None:
    async with open_echo_host() as host, open_stock_host() as stock:
        host.set_stream_handler(IDLE, lambda stream: send_and_leave(host, stream))
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addrs()[0])))
        stream = await stock.new_stream(ID.from_base58(host.peer_id), [TProtocol(IDLE)])
        await wait_until(lambda: not stock_swarm(stock).get_connections())
        with pytest.raises(StreamError):
            await stream.read(100)


async def test_a_lost_connection_is_not_an_end() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        await host.disconnect(asker.peer_id)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
