"""Real hosts on loopback for tests: ours, libp2p's as it comes, and a TCP proxy that can freeze the
wire.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import libp2p
import trio
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1.0.0"


@asynccontextmanager
async def open_echo_host(listen: Sequence[str] = (LOOPBACK,)) -> AsyncIterator[PeerHost]:
    """A host of ours that sends back what it gets on `ECHO`."""
    async with open_host(throwaway_identity(), listen=listen) as host:
        host.set_stream_handler(ECHO, echo)
        yield host


@asynccontextmanager
async def open_asking_host() -> AsyncIterator[PeerHost]:
    """A host of ours that only dials."""
    async with open_host(throwaway_identity()) as host:
        yield host


async def echo(stream: PeerStream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def can_echo(host: PeerHost, peer_id: str, addrs: Sequence[str] = ()) -> bool:
    """Whether a new stream to an echo host works."""
    stream = await host.open_stream(peer_id, ECHO, addrs)
    await stream.send_all(b"hello")
    await stream.send_eof()
    answer = await receive_all(stream)
    await stream.aclose()
    return answer == b"hello"


async def receive_all(stream: PeerStream) -> bytes:
    data = bytearray()
    while part := await stream.receive_some(65536):
        data += part
    return bytes(data)


@asynccontextmanager
async def open_stock_host(
    listen: str = LOOPBACK, max_connections: int = 256, **changes: Any
) -> AsyncIterator[libp2p.IHost]:
    """libp2p's host as it comes, but for its limit and `changes`; closed by hand at the end."""
    host = libp2p.new_host(
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=max_connections,
            max_connections=max_connections,
        ),
        **changes,
    )
    async with host.run([Multiaddr(listen)]):
        try:
            yield host
        finally:
            with trio.move_on_after(5, shield=True):
                await host.close()


def stock_swarm(host: libp2p.IHost) -> Swarm:
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    return swarm


def stock_addrs(host: libp2p.IHost) -> list[str]:
    return [str(addr) for addr in host.get_addrs()]


def port_of(addr: str) -> int:
    return int(addr.split("/tcp/")[1].split("/")[0])


@asynccontextmanager
async def open_silent_port() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def wait_until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait until `condition()` is true; the test fails when it does not become so."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110  # libp2p has no event for most of what is waited for
            await trio.sleep(0.01)


@dataclass
class Wire:
    """A TCP proxy in front of one port. Frozen, it neither forwards nor reads, as a partition
    would.
    """

    port: int
    _thawed: trio.Event = field(default_factory=trio.Event)

    def freeze(self) -> None:
        self._thawed = trio.Event()

    def thaw(self) -> None:
        self._thawed.set()

    async def forward(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(65536):
                await self._thawed.wait()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(target)


@asynccontextmanager
async def open_wire(target_addr: str) -> AsyncIterator[tuple[Wire, str]]:
    """A wire to the host at `target_addr`, and the address that leads through it."""
    target_port = port_of(target_addr)

    async def splice(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", target_port)
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(wire.forward, client, server)
            nursery.start_soon(wire.forward, server, client)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, splice, 0)
        wire = Wire(listeners[0].socket.getsockname()[1])
        wire.thaw()
        peer = target_addr.split("/p2p/")[1]
        yield wire, f"/ip4/127.0.0.1/tcp/{wire.port}/p2p/{peer}"
        nursery.cancel_scope.cancel()
