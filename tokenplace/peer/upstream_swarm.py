"""Upstream faults in the swarm: slots that never return, dials that fail, an endless close.

Start at `MendedSwarm`. Mended against libp2p 0.8.1's `network/swarm.py`, each with a test
(tests/peer/test_upstream_swarm.py):

- **inbound slots** `:2060` The task of an inbound connection waited for the swarm's end instead of
  the connection's, holding one of `max_connections` slots: connection 251 was refused for ever.
- **newcomers** `:1982` Whoever came first kept the places, without using them. Now somebody idle
  goes, see `gate`; libp2p's own limit and its pruner (`:2758`) are set out of the way.
- **dial** `:882` One address was tried, the first ever learnt, four times over (`:999`), without a
  deadline (`:1064`); a success took 250 ms longer than the handshake (`:936`), and a failure shut
  the peer out for a minute (`:752`). Now all addresses are tried, one after the other and side by
  side, and the first that answers wins.
- **cannon** `:936` Whatever strangers named was dialled, as often as they liked.
- **close** `:2306` Connections were closed one by one, 0.2 s each.
- **auto-connect** `network/auto_connector.py:296` A task dialled everybody ever heard of.

Not used: libp2p's resource manager (`rcmgr`), whose limit of streams makes the next one wait on a
semaphore for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, cast

import trio
from libp2p.abc import INetConn, IPeerStore
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmDialAllFailedError, SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.peer.dials import DialBudget, dial_target
from tokenplace.peer.gate import Gate, Seat
from tokenplace.peer.upstream_tcp import MendedTCP, SeatedStream
from tokenplace.peer.upstream_yamux import MendedUpgrader, MendedYamux

log = logging.getLogger(__name__)

# Libp2p's own services: who keeps a stream of theirs open does nothing here.
_SERVICES: Final = {None, PING, IDENTIFY}


class MendedSwarm(Swarm):
    """The connections of one host: `max_connections` in each direction."""

    _is_leaving = False

    def __init__(
        self, peer_id: ID, peerstore: IPeerStore, upgrader: MendedUpgrader, max_connections: int
    ) -> None:
        self.gate = Gate(max_connections)
        self._max_connections = max_connections
        self._dial_budget = DialBudget()
        self._dial_ended = trio.Event()
        super().__init__(
            peer_id,
            peerstore,
            upgrader,
            transports=[MendedTCP(self.gate)],
            connection_config=_out_of_the_way(max_connections),
        )

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _NoAutoConnector(self)
        self._global_dial_limiter = trio.CapacityLimiter(defaults.MAX_CONCURRENT_DIALS)

    # ------------------------------------------------------------ inbound

    async def _handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser, maddr: Multiaddr
    ) -> None:
        """Run one connection that has a seat, until it is closed, whoever closes it."""
        assert isinstance(read_write_closer, SeatedStream), "the listener makes no others"
        seat = read_write_closer.seat
        try:
            if self._is_leaving:
                return
            muxed = await self.upgrade_inbound_raw_conn(
                RawConnection(read_write_closer, False), maddr
            )
            assert isinstance(muxed, MendedYamux), "the upgrader knows no other muxer"
            if not self.gate.settle(seat, self._idle_inbound(), trio.current_time()):
                log.debug("all connections are in use")
                return
            muxed.seat = seat
            await muxed.event_closed.wait()
        except Exception as error:  # whatever a stranger's handshake raises ends this one alone
            log.debug("inbound connection: %s", type(error).__name__)
        finally:
            with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
                await read_write_closer.close()

    def _idle_inbound(self) -> dict[Seat, float]:
        """The seats of inbound connections that nobody uses, and since when."""
        return {
            muxed.seat: muxed.idle_since
            for muxed in self._idle(Direction.INBOUND)
            if muxed.seat is not None
        }

    def _idle(self, direction: Direction) -> list[MendedYamux]:
        """Connections of `direction` without a stream in use."""
        return [
            cast(MendedYamux, connection.muxed_conn)
            for connection in self._open_connections(direction)
            if all(stream.get_protocol() in _SERVICES for stream in connection.get_streams())
        ]

    def _open_connections(self, direction: Direction) -> list[SwarmConn]:
        return [
            connection
            for connection in self.get_connections()
            if isinstance(connection, SwarmConn)
            and connection.direction is direction
            and not cast(MendedYamux, connection.muxed_conn).is_dropped
        ]

    def doubt(self) -> None:
        """Ask everybody at once for a sign of life."""
        for connection in self.get_connections():
            if isinstance(connection, SwarmConn):
                cast(MendedYamux, connection.muxed_conn).doubt()

    # ------------------------------------------------------------ outbound

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """For libp2p's own services, which know a peer by what it told about itself."""
        try:
            addrs = self.peerstore.addrs(peer_id)
        except PeerStoreError:
            addrs = []
        return [await self.dial(peer_id, addrs)]

    async def dial(
        self, peer_id: ID, addrs: Sequence[Multiaddr], *, is_trusted: bool = False
    ) -> INetConn:
        """The open connection to `peer_id`, or a new one through the first of `addrs` that answers.

        is_trusted: a person named `addrs`; others are dialled only within the budget of `dials`.

        Raises `SwarmDialAllFailedError` when none does within `CONNECT_TIMEOUT_S`.
        """
        while True:
            if live := self.live_connection(peer_id):
                return live
            ongoing = self._ongoing_dials.get(peer_id)
            if ongoing is None:
                break
            await ongoing.wait()
        done = self._ongoing_dials[peer_id] = trio.Event()
        try:
            await self._make_room_for_dial(peer_id)
            return await self._dial_first(peer_id, self._dialable(peer_id, addrs), is_trusted)
        finally:
            del self._ongoing_dials[peer_id]
            done.set()

    def live_connection(self, peer_id: ID) -> INetConn | None:
        """An open connection to `peer_id`, if there is one."""
        return next((c for c in self.get_connections(peer_id) if not c.is_closed), None)

    def _dialable(self, peer_id: ID, addrs: Sequence[Multiaddr]) -> list[Multiaddr]:
        """Of `addrs`, each once, those that this host can dial and that name no other peer."""
        known = dict.fromkeys(addrs)
        return [
            addr
            for addr in known
            if self.transport_manager.transport_for_dialing(addr) is not None
            and addr.get_peer_id() in (None, peer_id.to_base58())
        ][: defaults.MAX_DIAL_ADDRS]

    async def _make_room_for_dial(self, peer_id: ID) -> None:
        """Hang up on whoever was dialled and is idle for longest, when there are too many."""
        if len(self._open_connections(Direction.OUTBOUND)) < self._max_connections:
            return
        idle = self._idle(Direction.OUTBOUND)
        if not idle:
            raise SwarmDialAllFailedError(
                "all connections are in use", peer_id=peer_id, num_addrs_tried=0
            )
        await min(idle, key=lambda muxed: muxed.idle_since).drop()

    async def _dial_first(
        self, peer_id: ID, addrs: Sequence[Multiaddr], is_trusted: bool
    ) -> INetConn:
        """Try `addrs` in their order, the next after a failure or `DIAL_STAGGER_S`."""
        winners: list[INetConn] = []
        failures: list[str] = []

        async def dial_one(addr: Multiaddr, failed: trio.Event) -> None:
            try:
                winners.append(await self._dial_one(addr, peer_id, is_trusted))
                nursery.cancel_scope.cancel()
            except Exception as error:  # refused, unreachable, another peer: the next may do better
                failures.append(f"{addr}: {_reason(error)}")
                failed.set()

        with trio.move_on_after(defaults.CONNECT_TIMEOUT_S) as deadline:
            async with trio.open_nursery() as nursery:
                for addr in addrs:
                    failed = trio.Event()
                    nursery.start_soon(dial_one, addr, failed)
                    with trio.move_on_after(defaults.DIAL_STAGGER_S):
                        await failed.wait()
        for late in winners[1:]:
            self.manager.run_task(self._close_connection_async, late)
        if winners:
            return winners[0]
        if deadline.cancelled_caught:
            failures.append("no answer in time")
        reason = "; ".join(failures) or "no address that can be dialled"
        raise SwarmDialAllFailedError(reason, peer_id=peer_id, num_addrs_tried=len(addrs))

    async def _dial_one(self, addr: Multiaddr, peer_id: ID, is_trusted: bool) -> INetConn:
        target = None if is_trusted else dial_target(addr)
        if target is None:
            async with self._global_dial_limiter:
                return await self._dial_addr_single_attempt(addr, peer_id)
        while not self._dial_budget.begin(target, trio.current_time()):
            if not self._dial_budget.is_under_way(target):
                raise SwarmException("dialled too often within a minute")
            await self._dial_ended.wait()
        was_reached = False
        try:
            async with self._global_dial_limiter:
                connection = await self._dial_addr_single_attempt(addr, peer_id)
            was_reached = True
            return connection
        finally:
            self._dial_budget.end(target, was_reached=was_reached, now=trio.current_time())
            ended, self._dial_ended = self._dial_ended, trio.Event()
            ended.set()

    async def close(self) -> None:
        """Say goodbye on all connections at once, then close the listeners and stop."""
        self._is_leaving = True
        async with trio.open_nursery() as nursery:
            for connection in self.get_connections():
                nursery.start_soon(self._close_connection_async, connection)
        await super().close()


class _NoAutoConnector(AutoConnector):
    """Connects to nobody: who is worth a connection is known above."""

    async def start(self) -> None:
        """Stay stopped; all other methods look at that first."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Remember nothing: upstream keeps every peer id it ever saw leave."""


def _out_of_the_way(max_connections: int) -> ConnectionConfig:
    """libp2p's own limits so high that ours come first, and its timeouts."""
    unreachable = 4 * (max_connections + defaults.MAX_GREETING)
    return ConnectionConfig(
        min_connections=0,
        low_watermark=unreachable,
        high_watermark=unreachable,
        max_connections=unreachable,
        inbound_upgrade_timeout=defaults.UPGRADE_TIMEOUT_S,
        outbound_upgrade_timeout=defaults.CONNECT_TIMEOUT_S,
        inbound_stream_protocol_negotiation_timeout=defaults.NEGOTIATE_TIMEOUT_S,
        outbound_stream_protocol_negotiation_timeout=defaults.NEGOTIATE_TIMEOUT_S,
    )


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # trio's, of all addresses that a name stands for
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else ""
    return text[:100] or type(error).__name__
