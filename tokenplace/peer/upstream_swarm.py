"""Upstream faults in the swarm: slots that never return, dials that fail, an endless close.

Start at `MendedSwarm`. Mended, each with a test:

- **inbound slots** The task of an inbound connection waited for the swarm's end instead of the
  connection's, holding one of `max_connections` slots: connection 251 was refused for ever.
- **dial** One address was tried, the first ever learnt, four times over, without a deadline; a
  success took 250 ms longer than the handshake, and a failure shut the peer out for a minute. Now
  all addresses are tried, one after the other and side by side, and the first that answers wins.
- **close** Connections were closed one by one, 0.2 s each.
- **auto-connect** A background task dialled everybody ever heard of.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio
from libp2p.abc import INetConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.metrics.swarm import SwarmEvent
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmDialAllFailedError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.peer.upstream_yamux import MendedYamux

log = logging.getLogger(__name__)


class MendedSwarm(Swarm):
    """The connections of one host."""

    _is_leaving = False

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _NoAutoConnector(self)
        self._global_dial_limiter = trio.CapacityLimiter(defaults.MAX_CONCURRENT_DIALS)

    async def _do_handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser, maddr: Multiaddr, failure_event: SwarmEvent
    ) -> None:
        """Hold the inbound slot until the connection is closed, whoever closes it."""
        try:
            if self._is_leaving:
                return
            muxed = await self.upgrade_inbound_raw_conn(
                RawConnection(read_write_closer, False), maddr
            )
            assert isinstance(muxed, MendedYamux), "the upgrader knows no other muxer"
            await muxed.event_closed.wait()
        except Exception as error:  # whatever a stranger's handshake raises ends this one alone
            log.debug("inbound connection: %s", type(error).__name__)
        finally:
            with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
                await read_write_closer.close()

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """For libp2p's own services, which know a peer by what it told about itself."""
        try:
            addrs = self.peerstore.addrs(peer_id)
        except PeerStoreError:
            addrs = []
        return [await self.dial(peer_id, addrs)]

    async def dial(self, peer_id: ID, addrs: Sequence[Multiaddr]) -> INetConn:
        """The open connection to `peer_id`, or a new one through the first of `addrs` that answers.

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
            return await self._dial_first(peer_id, self._dialable(peer_id, addrs))
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

    async def _dial_first(self, peer_id: ID, addrs: Sequence[Multiaddr]) -> INetConn:
        """Try `addrs` in their order, the next after a failure or `DIAL_STAGGER_S`."""
        winners: list[INetConn] = []
        failures: list[str] = []

        async def dial_one(addr: Multiaddr, failed: trio.Event) -> None:
            try:
                async with self._global_dial_limiter:
                    winners.append(await self._dial_addr_single_attempt(addr, peer_id))
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


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).splitlines()[0] if str(error) else ""
    return text[:100] or type(error).__name__
