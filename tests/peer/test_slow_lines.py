"""Lines that are slow, and lines that take nothing: what lives on, and who waits for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.peer.hosts import open_asking_host, open_echo_host, open_wire, port_of, wait_until
from tests.peer.muxers import IDLE, muxer_of, receive_all_of
from tokenplace import defaults
from tokenplace.peer.host import PeerHost
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.upstream_yamux import MendedYamux

N_STREAMS = 12
N_BYTES = 16 << 10  # of each stream: less than what a reader gives credit for
BYTES_PER_S = 64 << 10


@asynccontextmanager
async def open_slow_line(target_addr: str) -> AsyncIterator[str]:
    """The address of a line to `target_addr` that carries `BYTES_PER_S` from there."""

    async def forward(source: trio.SocketStream, target: trio.SocketStream, pause_s: float) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(1024):
                await trio.sleep(len(data) * pause_s)
                await target.send_all(data)
        await trio.aclose_forcefully(target)

    async def splice(client: trio.SocketStream) -> None:
        # Loopback's buffers would take all at once.
        connection = trio.socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        await connection.connect(("127.0.0.1", port_of(target_addr)))
        async with trio.SocketStream(connection) as server, trio.open_nursery() as both:
            both.start_soon(forward, server, client, 1 / BYTES_PER_S)
            both.start_soon(forward, client, server, 0)

    async with trio.open_nursery() as lines:
        listeners = await lines.start(trio.serve_tcp, splice, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"/ip4/127.0.0.1/tcp/{port}/p2p/{target_addr.split('/p2p/')[1]}"
        lines.cancel_scope.cancel()


async def test_a_connection_whose_bytes_flow_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds of data: twice the silence that ends a connection, thrice a stall."""
    monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0.5)
    monkeypatch.setattr(defaults, "KEEPALIVE_IN_USE_S", 0.25)
    monkeypatch.setattr(defaults, "KEEPALIVE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(defaults, "WRITE_STALL_S", 1.0)

    async def give(stream: PeerStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(bytes(N_BYTES))

    n_taken = [0]

    async def take() -> None:
        stream = await asker.open_stream(host.peer_id, IDLE, [addr])
        await stream.send_all(b"x")
        while data := await stream.receive_some(65536):
            n_taken[0] += len(data)

    async with (
        open_echo_host() as host,
        open_slow_line(host.addrs()[0]) as addr,
        open_asking_host() as asker,
    ):
        host.set_stream_handler(IDLE, give)
        await asker.connect(host.peer_id, [addr])
        with trio.fail_after(20):
            async with trio.open_nursery() as takers:
                for _ in range(N_STREAMS):
                    takers.start_soon(take)
        assert n_taken == [N_STREAMS * N_BYTES]


async def fill(stream: PeerStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(bytes(defaults.STREAM_WINDOW_BYTES))


@asynccontextmanager
async def open_stuck() -> AsyncIterator[tuple[PeerHost, list[PeerStream]]]:
    """A host whose only connection takes no byte, and streams that wait for it."""
    async with open_echo_host() as host, open_wire(host.addrs()[0]) as (wire, addr):
        host.set_stream_handler(IDLE, receive_all_of)
        async with open_asking_host() as asker:
            streams = [await asker.open_stream(host.peer_id, IDLE, [addr]) for _ in range(40)]
            wire.freeze()
            for stream in streams:
                asker._nursery.start_soon(fill, stream)
            muxer = muxer_of(asker._swarm)
            assert isinstance(muxer, MendedYamux)
            await wait_until(lambda: len(muxer._writer._data) > 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert muxer._writer._data, "the kernel has taken all"
            yield asker, streams


SOON_S = defaults.RESET_TIMEOUT_S + 1  # what a busy machine may add


async def test_no_reset_waits_for_a_stuck_connection() -> None:
    async with open_stuck() as (asker, streams):
        began_at = trio.current_time()
        for stream in streams:
            await stream.reset()
        assert trio.current_time() - began_at < SOON_S
        muxer = muxer_of(asker._swarm)
        assert not muxer.streams
        assert muxer.stream_backlog_semaphore.value == 256


async def test_a_cancelled_writer_does_not_wait_for_a_stuck_connection() -> None:
    async with open_stuck() as (_, streams):
        began_at = trio.current_time()
        with trio.move_on_after(0.1):
            async with trio.open_nursery() as writers:
                for stream in streams:
                    writers.start_soon(fill, stream)
        assert trio.current_time() - began_at < SOON_S


async def test_leaving_does_not_wait_for_a_stuck_connection() -> None:
    async with open_stuck() as (asker, _):
        muxer = muxer_of(asker._swarm)
        began_at = trio.current_time()
        await asker.disconnect(muxer.peer_id.to_base58())
        assert trio.current_time() - began_at < SOON_S
        assert not asker.connections()


async def test_a_host_with_a_stuck_connection_is_closed_in_time() -> None:
    with trio.CancelScope() as test:
        async with open_stuck():
            test.deadline = trio.current_time() + defaults.CLOSE_TIMEOUT_S + 1
    assert not test.cancelled_caught
