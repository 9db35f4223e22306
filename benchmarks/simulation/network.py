"""Hosts, and what connects them. Start at `SimNetwork`; a `SimHost` is to those above it what a
`PeerHost` is.

Connections are made by the first stream and stay until a side is gone. A host can crash (its
connections end, one way or another, and dialling it fails), be away (nothing arrives, in either
direction, and after a while both sides give its connections up, or never do) and come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from benchmarks.simulation.links import MemoryStream, Path, stream_pair
from benchmarks.simulation.trace import Trace
from tokenplace import defaults
from tokenplace.errors import ConnectFailed
from tokenplace.peer.host import ConnectionInfo
from tokenplace.peer.identity import Identity
from tokenplace.peer.stream_counts import StreamCounts
from tokenplace.peer.streams import PeerStream, StreamHandler

# After which a host gives up a connection on which nothing is answered.
NOTICED_S: Final = defaults.KEEPALIVE_INTERVAL_S + defaults.KEEPALIVE_TIMEOUT_S
UNIX_S: Final = 1_790_000_000.0  # of every world's beginning


@dataclass(frozen=True, slots=True)
class Line:
    """How a host is connected. latency_s: its part of one way. Others: as of `Path`."""

    latency_s: float = 0.01
    jitter_s: float = 0.0
    bytes_per_s: float = math.inf
    is_choppy: bool = False
    window_bytes: int = 256 << 10


@dataclass(frozen=True, slots=True)
class Outage:
    """When something was away last, or is. Times are trio's."""

    since: float = 0.0
    until: float = 0.0

    @property
    def silent_s(self) -> float:
        """Since when nothing has come; 0 if it is there."""
        now = trio.current_time()
        return now - self.since if now < self.until else 0.0

    def prolonged(self, until: float) -> Outage:
        """From now, or since it began, until then at least."""
        now = trio.current_time()
        since = self.since if now < self.until else now
        return Outage(since, max(self.until, until))


@dataclass(eq=False, slots=True)
class _Connection:
    """Between two hosts: the dialler's side first."""

    ends: tuple[SimHost, SimHost]
    paths: tuple[Path, Path]  # from the first, and back
    opened_at: float
    streams: list[MemoryStream] = field(default_factory=list)

    def close(self, when: float, dice: Random, *, is_clean: bool | None = None) -> None:
        """Both ends of every stream notice by `when`. is_clean: how it looks; None: either way."""
        for stream in self.streams:
            looks_clean = dice.random() < 0.5 if is_clean is None else is_clean
            stream.break_at(when, is_clean=looks_clean)
        self.streams.clear()


class SimNetwork:
    """All hosts of one world."""

    def __init__(self, dice: Random, trace: Trace) -> None:
        self.dice = dice
        self.trace = trace
        self.hosts: dict[str, SimHost] = {}
        self._cuts: dict[frozenset[str], Outage] = {}

    def add_host(self, name: str, identity: Identity, ip: str, line: Line) -> SimHost:
        """A new host. name: as the trace has it."""
        host = self.hosts[identity.peer_id] = SimHost(self, name, identity, ip, line)
        return host

    # ------------------------------------------------------------ faults

    def crash(self, host: SimHost, *, is_clean: bool | None = None) -> None:
        """The host's process is gone. is_clean: its streams seem to have ended; None: some do."""
        host.is_up = False
        host.handlers.clear()
        for connection in list(host.by_peer.values()):
            latency_s = connection.paths[0].latency_s
            connection.close(trio.current_time() + latency_s, self.dice, is_clean=is_clean)
            self._drop(connection)

    def take_away(self, host: SimHost, until: float) -> None:
        """Nothing that the host sends, or is sent, arrives before `until`."""
        host.outage = host.outage.prolonged(until)

    def cut(self, one: SimHost, other: SimHost, until: float) -> None:
        """The same between two hosts."""
        key = frozenset((one.peer_id, other.peer_id))
        self._cuts[key] = self._cuts.get(key, Outage()).prolonged(until)

    def give_up(self, host: SimHost) -> None:
        """Both sides of its connections have noticed that nothing is answered."""
        for connection in list(host.by_peer.values()):
            connection.close(trio.current_time(), self.dice, is_clean=False)
            self._drop(connection)

    # ------------------------------------------------------------ connections

    def connections_of(self, host: SimHost) -> list[ConnectionInfo]:
        """As `PeerHost.connections`."""
        infos = []
        for connection in host.by_peer.values():
            is_dialler = connection.ends[0] is host
            other = connection.ends[is_dialler]
            addr = f"/ip4/{other.ip}/tcp/4010"
            direction = "out" if is_dialler else "in"
            n_streams = sum(not stream.is_closed for stream in connection.streams)
            silent_s = max(outage.silent_s for outage in self._outages(host, other))
            info = ConnectionInfo(
                other.peer_id, addr, direction, connection.opened_at, n_streams, silent_s
            )
            infos.append(info)
        return infos

    async def connect(self, host: SimHost, peer_id: str) -> _Connection:
        """The connection to a peer, dialled when there is none. Raises `ConnectFailed`."""
        other = self.hosts.get(peer_id)
        if other is None:
            raise ConnectFailed("nobody is there.")
        round_trip_s = 2 * (host.line.latency_s + other.line.latency_s)
        with trio.move_on_after(defaults.CONNECT_TIMEOUT_S):
            if (connection := host.by_peer.get(peer_id)) is not None:
                return connection
            await self._pass(host, other, round_trip_s)
            if not other.is_up:
                raise ConnectFailed("it refuses connections.")
            await self._pass(host, other, 2 * round_trip_s)  # Noise and yamux
            if other.is_up and host.is_up:
                return host.by_peer.get(peer_id) or self._join(host, other)
        raise ConnectFailed("it does not answer.")

    def _join(self, host: SimHost, other: SimHost) -> _Connection:
        def away_until() -> float:
            return self._away_until(host, other)

        def path() -> Path:
            lines = host.line, other.line
            return Path(
                Random(self.dice.random()),
                latency_s=sum(line.latency_s for line in lines),
                jitter_s=sum(line.jitter_s for line in lines),
                bytes_per_s=min(line.bytes_per_s for line in lines),
                is_choppy=any(line.is_choppy for line in lines),
                window_bytes=min(line.window_bytes for line in lines),
                away_until=away_until,
            )

        self.trace.note(host.name, "connects to", other.name)
        connection = _Connection((host, other), (path(), path()), UNIX_S + trio.current_time())
        host.by_peer[other.peer_id] = other.by_peer[host.peer_id] = connection
        return connection

    async def open_stream(self, host: SimHost, peer_id: str, protocol: str) -> MemoryStream:
        """As `PeerHost.open_stream`."""
        connection = await self.connect(host, peer_id)
        other = self.hosts[peer_id]
        with trio.move_on_after(defaults.CONNECT_TIMEOUT_S):
            await self._pass(host, other, 2 * connection.paths[0].latency_s)
            if connection is not host.by_peer.get(peer_id):
                raise ConnectFailed("the connection broke.")
            handler = other.handlers.get(protocol)
            if handler is None:
                raise ConnectFailed(f"no {protocol} there.")
            paths = connection.paths if connection.ends[0] is host else connection.paths[::-1]
            mine, theirs = stream_pair(
                *paths,
                opener=(host.peer_id, host.ip),
                target=(peer_id, other.ip),
                on_close=lambda stream: _forget(connection, stream),
                protocol=protocol,
            )
            connection.streams += (mine, theirs)
            other.accept(handler, theirs)
            return mine
        raise ConnectFailed("it does not answer.")

    async def _pass(self, one: SimHost, other: SimHost, seconds: float) -> None:
        """Wait until a message has gone to and fro."""
        while True:
            away_until = self._away_until(one, other)
            if away_until <= trio.current_time():
                break
            await trio.sleep_until(away_until)
        await trio.sleep(seconds)

    def _away_until(self, one: SimHost, other: SimHost) -> float:
        return max(outage.until for outage in self._outages(one, other))

    def _outages(self, one: SimHost, other: SimHost) -> tuple[Outage, ...]:
        cut = self._cuts.get(frozenset((one.peer_id, other.peer_id)), Outage())
        return one.outage, other.outage, cut

    @staticmethod
    def _drop(connection: _Connection) -> None:
        one, other = connection.ends
        del one.by_peer[other.peer_id], other.by_peer[one.peer_id]


def _forget(connection: _Connection, stream: MemoryStream) -> None:
    if stream in connection.streams and stream.other is not None and stream.other.is_closed:
        connection.streams.remove(stream)
        if stream.other in connection.streams:
            connection.streams.remove(stream.other)


@dataclass(eq=False, slots=True)
class _Handler:
    handle: StreamHandler
    counts: StreamCounts


class SimHost:
    """One host. nursery: where its inbound streams are served."""

    def __init__(
        self, network: SimNetwork, name: str, identity: Identity, ip: str, line: Line
    ) -> None:
        self.network = network
        self.name = name
        self.identity = identity
        self.peer_id = identity.peer_id
        self.ip = ip
        self.line = line
        self.is_up = True
        self.outage = Outage()
        self.handlers: dict[str, _Handler] = {}
        self.by_peer: dict[str, _Connection] = {}
        self.nursery: trio.Nursery | None = None

    def addrs(self) -> list[str]:
        """As `PeerHost.addrs`."""
        return [f"/ip4/{self.ip}/tcp/4010/p2p/{self.peer_id}"]

    def connections(self) -> list[ConnectionInfo]:
        """As `PeerHost.connections`."""
        return self.network.connections_of(self)

    def is_connected(self, peer_id: str) -> bool:
        """As `PeerHost.is_connected`."""
        return peer_id in self.by_peer

    def open_streams(self) -> list[MemoryStream]:
        """This side's ends of those that it has not closed."""
        return [
            stream
            for peer_id, connection in self.by_peer.items()
            for stream in connection.streams
            if stream.peer_id == peer_id and not stream.is_closed
        ]

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        """As `PeerHost.open_stream`. Addresses are not needed here: a peer is where it is."""
        return await self.network.open_stream(self, peer_id, protocol)

    def set_stream_handler(
        self,
        protocol: str,
        handler: StreamHandler,
        *,
        max_streams_per_peer: int | None = None,
        max_streams: int | None = None,
    ) -> None:
        """As `PeerHost.set_stream_handler`, but that what a handler raises ends the world."""
        self.handlers[protocol] = _Handler(handler, StreamCounts(max_streams_per_peer, max_streams))

    def accept(self, handler: _Handler, stream: MemoryStream) -> None:
        """Serve an inbound stream."""
        assert self.nursery is not None, "a host that is not run has no handlers"
        self.nursery.start_soon(_serve, handler, stream)


async def _serve(handler: _Handler, stream: MemoryStream) -> None:
    if not handler.counts.enter(stream.peer_id, stream.remote_ip):
        await stream.reset()
        return
    try:
        await handler.handle(stream)
        await stream.aclose()
    except trio.BrokenResourceError:
        pass  # the other side went away
    finally:
        handler.counts.leave(stream.peer_id, stream.remote_ip)
        await stream.reset()
