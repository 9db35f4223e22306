"""The one wrapper of the libp2p host. Start at `open_host`.

Everything above sees peer ids as base58 text, addresses as text, streams as `PeerStream` and
failures as `ConnectFailed`; what libp2p gets wrong is mended below, in `upstream_host`,
`upstream_swarm` and `upstream_yamux`.

Differs from libp2p's host: addresses are handed to `connect` by who knows them, not gathered in a
store that forgets them after two minutes and never replaces one.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.errors import ConfigError, ConnectFailed
from tokenplace.peer.background import open_background
from tokenplace.peer.identity import Identity
from tokenplace.peer.machine import watch_machine
from tokenplace.peer.net_stream import Libp2pStream
from tokenplace.peer.stream_counts import StreamCounts
from tokenplace.peer.streams import PeerStream, StreamHandler
from tokenplace.peer.upstream_host import MendedHost, build_host
from tokenplace.peer.upstream_swarm import MendedSwarm
from tokenplace.peer.upstream_tcp import require_free_port
from tokenplace.peer.upstream_yamux import MendedYamux

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One open connection. `direction` is "in" or "out"; `opened_at` is in unix seconds.

    silent_s: since when nothing has come, in seconds.
    """

    peer_id: str
    remote_addr: str
    direction: str
    opened_at: float
    n_streams: int
    silent_s: float = 0.0


@asynccontextmanager
async def open_host(
    identity: Identity,
    *,
    listen: Sequence[str] = (),
    max_connections: int = defaults.MAX_CONNECTIONS,
) -> AsyncIterator[PeerHost]:
    """Run a host until the block exits; inside it, the host already listens.

    listen: multiaddrs such as "/ip4/0.0.0.0/tcp/4010"; none for a host that only dials.

    Raises `ConfigError` naming an address that cannot be listened on. An error inside the block
    leaves it bare. Leaving takes `CLOSE_TIMEOUT_S` at most.
    """
    listen_addrs = [_listen_addr(text) for text in listen]
    upstream, swarm = build_host(identity, max_connections)
    async with _run(upstream, listen_addrs), open_background() as nursery:
        for text, addr in zip(listen, listen_addrs, strict=True):
            if str(addr) not in swarm.listeners:
                raise ConfigError(f"{text}: cannot be listened on.")
        nursery.start_soon(watch_machine, swarm.doubt)
        yield PeerHost(identity, upstream, swarm, nursery)


@asynccontextmanager
async def _run(upstream: MendedHost, listen_addrs: Sequence[Multiaddr]) -> AsyncIterator[None]:
    """Run libp2p's host, and close it.

    Upstream fault: leaving libp2p's own block keeps the port open, and peers connected to nobody.
    An error raised in the block leaves it bare, although libp2p's nurseries would wrap it.
    """
    failure: Exception | None = None
    async with upstream.run(listen_addrs):
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            with trio.move_on_after(defaults.CLOSE_TIMEOUT_S, shield=True):
                await upstream.close()
    if failure is not None:
        raise failure


def _listen_addr(text: str) -> Multiaddr:
    """Parse an address to listen on, and see that it can be."""
    try:
        addr = Multiaddr(text)
        kind, *rest = [protocol.name for protocol in addr.protocols()]
        if kind not in ("ip4", "ip6") or rest != ["tcp"]:
            raise ValueError(text)
    except Exception as error:  # multiaddr raises errors of its own, ValueError, KeyError and more
        raise ConfigError(
            f"{text!r} is not an address to listen on.", hint="Such as /ip4/0.0.0.0/tcp/4010."
        ) from error
    try:
        require_free_port(str(addr.value_for_protocol(kind)), int(addr.value_for_protocol("tcp")))
    except OSError as error:
        raise ConfigError(
            f"{text}: cannot be listened on: {error.strerror}.",
            hint="Choose another address with --listen; port 0 takes any free one.",
        ) from error
    return addr


@dataclass(frozen=True, slots=True)
class PeerHost:
    """A running libp2p host. Make one with `open_host`."""

    identity: Identity
    upstream: MendedHost
    _swarm: MendedSwarm
    _nursery: trio.Nursery

    @property
    def peer_id(self) -> str:
        """This host's own peer id, in base58."""
        return self.identity.peer_id

    def addrs(self) -> list[str]:
        """Where others may reach this host, with its id: public ones first, loopback last."""
        return [str(addr) for addr in self.upstream.get_addrs()]

    async def connect(
        self, peer_id: str, addrs: Sequence[str], *, is_trusted: bool = False
    ) -> None:
        """Connect to `peer_id` through the first of `addrs` that answers, unless connected.

        is_trusted: a person named `addrs`. A public address that strangers name is given up for a
        while after `FAILED_DIALS` failures, so that nobody can aim this peer at a third party.

        Raises `ConnectFailed` after `CONNECT_TIMEOUT_S` at the latest.
        """
        try:
            peer = parse_peer_id(peer_id)
            await self._swarm.dial(peer, _parse_addrs(addrs), is_trusted=is_trusted)
        except SwarmException as error:
            raise ConnectFailed(f"{peer_id}: {error}") from error

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        """A new stream to `peer_id`, connecting first when needed.

        Raises `ConnectFailed` when that fails, or the peer does not speak `protocol`; within twice
        `CONNECT_TIMEOUT_S`.
        """
        await self.connect(peer_id, addrs)
        # Upstream forgets a stream whose opening is cancelled, and a connection has only 256 of
        # them: the opening runs to its end in a task of its own, and a stream that nobody waits for
        # any more is reset there.
        opening = _Opening()
        self._nursery.start_soon(self._open, parse_peer_id(peer_id), protocol, opening)
        try:
            await opening.done.wait()
        except trio.Cancelled:
            opening.is_abandoned = True
            if opening.stream is not None:
                await opening.stream.reset()
            raise
        if opening.stream is None:
            raise ConnectFailed(f"{peer_id}: no {protocol} stream: {opening.reason}")
        return opening.stream

    async def _open(self, peer_id: ID, protocol: str, opening: _Opening) -> None:
        try:
            with trio.fail_after(defaults.CONNECT_TIMEOUT_S):
                stream = Libp2pStream(
                    await self.upstream.new_stream(peer_id, [TProtocol(protocol)])
                )
        except Exception as error:  # StreamFailure, SwarmException, UnicodeDecodeError and more
            opening.reason = type(error).__name__
        else:
            if opening.is_abandoned:
                await stream.reset()
            else:
                opening.stream = stream
        finally:  # also when the host closes: else who waits shielded would wait on
            opening.done.set()

    def set_stream_handler(
        self,
        protocol: str,
        handler: StreamHandler,
        *,
        max_streams_per_peer: int | None = None,
        max_streams: int | None = None,
    ) -> None:
        """Have `handler` answer inbound streams of `protocol`, each in a task of its own.

        The stream is closed when the handler returns, and reset when it raises; the host does not
        suffer. A stream above a limit is reset at once; what counts as one peer: `StreamCounts`.
        """
        counts = StreamCounts(max_streams_per_peer, max_streams)

        async def handle(net_stream: INetStream) -> None:
            stream = Libp2pStream(net_stream)
            peer_id, remote_ip = stream.peer_id, stream.remote_ip
            if not counts.enter(peer_id, remote_ip):
                log.debug("%s: too many streams of %s", protocol, peer_id)
                await stream.reset()
                return
            try:
                await handler(stream)
                await stream.aclose()
            except trio.BrokenResourceError:
                log.debug("%s: %s went away", protocol, stream.peer_id)
            except Exception as error:
                log.warning("%s handler: %s", protocol, type(error).__name__)
            finally:
                counts.leave(peer_id, remote_ip)
                await stream.reset()  # does nothing after aclose

        self.upstream.set_stream_handler(TProtocol(protocol), handle)

    def remove_stream_handler(self, protocol: str) -> None:
        """Answer no more inbound streams of `protocol`; those open go on."""
        self.upstream.remove_stream_handler(TProtocol(protocol))

    def connections(self) -> list[ConnectionInfo]:
        """All open connections."""
        return [
            _info(connection)
            for connection in self._swarm.get_connections()
            if isinstance(connection, SwarmConn) and not connection.is_closed
        ]

    def is_connected(self, peer_id: str) -> bool:
        """Whether there is an open connection to `peer_id`."""
        try:
            return self._swarm.live_connection(parse_peer_id(peer_id)) is not None
        except ConnectFailed:
            return False

    async def disconnect(self, peer_id: str) -> None:
        """Close all connections to `peer_id`."""
        await self._swarm.close_peer(parse_peer_id(peer_id))


@dataclass(slots=True)
class _Opening:
    """One `open_stream` under way, shared by who waits and who opens."""

    done: trio.Event = field(default_factory=trio.Event)
    stream: Libp2pStream | None = None
    reason: str = "the host closes"
    is_abandoned: bool = False


@lru_cache(defaults.MAX_PARSED)
def parse_peer_id(text: str) -> ID:
    """libp2p's form of a peer id. Raises `ConnectFailed` for text that is none: it names nobody."""
    try:
        return ID.from_base58(text)
    except Exception as error:  # base58 and multihash raise errors of their own
        raise ConnectFailed(f"{text[:64]!r} is not a peer id") from error


def _parse_addrs(texts: Sequence[str]) -> list[Multiaddr]:
    """What of `texts` is a multiaddr; a stranger's record may hold anything."""
    addrs = []
    for text in texts:
        try:
            addrs.append(Multiaddr(text))
        except Exception:
            log.debug("skipped an address that is none")
    return addrs


def _info(connection: SwarmConn) -> ConnectionInfo:
    muxed = cast(MendedYamux, connection.muxed_conn)
    ip, port = muxed.get_remote_address() or ("0.0.0.0", 0)
    version = ipaddress.ip_address(ip).version
    return ConnectionInfo(
        peer_id=muxed.peer_id.to_base58(),
        remote_addr=f"/ip{version}/{ip}/tcp/{port}",
        direction="in" if connection.direction is Direction.INBOUND else "out",
        opened_at=connection._created_at,
        n_streams=len(connection.get_streams()),
        silent_s=muxed.liveness.silent_s(trio.current_time()),
    )
