"""Finds out how others reach this peer, and has it serve when they do. Start at `open_prober`.

Connected peers are asked to dial back (`tokenplace.peer.reach`); what that proves is kept in
`Reachability`. Until enough is proven the peer is a client of the DHT and announces nothing, so
that nobody is sent to a closed door.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.errors import TokenplaceError
from tokenplace.node.addresses import Reach, reach_of
from tokenplace.node.reach_report import NOTHING_YET, Gist, Problem, ReachReport
from tokenplace.node.reachability import AskTimes, Proof, Reachability, kind_of, port_for
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost
from tokenplace.peer.ranges import crowd_of
from tokenplace.peer.reach import DialBackResult, ReachService

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReachPolicy:
    """What this peer takes for being reached.

    always: why it serves whatever is proven, e.g. "of --serve"; empty if it does not.
    does_local_count: whether peers of this machine and the local network are those it is there for;
    they are if it joined through such an address, or is the first of a network.
    trusted: peers of its own bootstrap list: who joins through one lets it name others anyway.
    own_peers: peer ids of this process, whose proofs prove nothing.
    """

    always: str
    does_local_count: bool
    trusted: frozenset[str]
    own_peers: frozenset[str]
    is_donating: bool


@asynccontextmanager
async def open_prober(
    host: PeerHost,
    network: str,
    policy: ReachPolicy,
    say: Callable[[str], None],
    *,
    allow_private: bool,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[tuple[Prober, Kad]]:
    """Take part in the DHT, as a server while others reach `host`, until the block exits.

    clock: seconds, by which proofs and records grow old; better one that counts the machine's
    sleep.
    """
    prober = Prober(host, policy, say, clock)
    async with (
        open_kad(
            host,
            network=network,
            server=bool(policy.always),
            allow_private=allow_private,
            addrs=prober.announced,
            clock=clock,
        ) as kad,
        open_background() as background,
    ):
        service = ReachService(host, on_proved=kad.reconsider)
        service.serve()
        background.start_soon(prober.prove, service, kad)
        yield prober, kad


@dataclass
class Prober:
    """Keeps proofs, and asks for more.

    say: called with a line for the person at the terminal when things change. clock: see
    `open_prober`.
    """

    host: PeerHost
    policy: ReachPolicy
    say: Callable[[str], None]
    clock: Callable[[], float] = trio.current_time
    _state: Reachability = field(default_factory=Reachability)
    _times: AskTimes = field(default_factory=AskTimes)
    _asking: set[str] = field(default_factory=set)
    _problem: Problem | None = None
    _looked_at: float = -math.inf
    _said: Gist = NOTHING_YET
    _news: trio.Event = field(default_factory=trio.Event)

    # ------------------------------------------------------------ how things stand

    def announced(self) -> list[str]:
        """The addresses to tell others, with this peer's id; none while nobody reaches it."""
        addrs = self._counting()
        if self.policy.always:
            addrs = [addr for addr in addrs if reach_of(addr) is Reach.INTERNET]
            addrs += [addr for addr in self._listening() if addr not in addrs]
        return [f"{addr}/p2p/{self.host.peer_id}" for addr in addrs]

    def report(self) -> ReachReport:
        """What to tell a person."""
        return self._report(len(self._peers()))

    def _report(self, n_peers: int) -> ReachReport:
        now = self.clock()
        return ReachReport(
            always=self.policy.always,
            confirmed=self._state.confirmed(now),
            half_confirmed=self._state.unconfirmed(now),
            problem=self._problem,
            n_peers=n_peers,
            does_local_count=self.policy.does_local_count,
            is_donating=self.policy.is_donating,
        )

    def _counting(self) -> list[str]:
        """Proven addresses at which those reach this peer for whom it is there."""
        return [
            addr
            for addr in self._state.confirmed(self.clock())
            if self.policy.does_local_count or reach_of(addr) is Reach.INTERNET
        ]

    def _listening(self) -> list[str]:
        return [addr.partition("/p2p/")[0] for addr in self.host.addrs()]

    def _peers(self) -> dict[str, str]:
        """Who could be asked, by peer id, and from where it is connected."""
        listening = self._listening()
        return {
            info.peer_id: info.remote_addr
            for info in self.host.connections()
            if info.peer_id not in self.policy.own_peers
            and port_for(listening, info.remote_addr) is not None
        }

    # ------------------------------------------------------------ the loop

    async def prove(self, service: ReachService, kad: Kad) -> None:
        """Ask through `service`, and have `kad` serve while it is reached. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = self.clock()
                self._look_at_interfaces(now)
                self._state.drop_expired(now)
                self._serve_or_not(kad, nursery)
                peers = self._peers()
                self._tell(len(peers))
                self._ask_some(peers, service, nursery, now)
                # Looked at, because the host tells nobody of new connections; seldom once reached.
                is_reached = bool(self._counting())
                pause_s = defaults.REACH_CALM_POLL_S if is_reached else defaults.REACH_POLL_S
                with trio.move_on_after(pause_s):
                    await self._news.wait()

    def _look_at_interfaces(self, now: float) -> None:
        if now < self._looked_at + defaults.REACH_INTERFACES_S:
            return
        self._looked_at = now
        if self._state.note_interfaces(self._listening(), now):
            self._times.forget()

    def _serve_or_not(self, kad: Kad, nursery: trio.Nursery) -> None:
        has_to = bool(self.policy.always or self._counting())
        if has_to and not kad.is_server:
            kad.serve()
            nursery.start_soon(kad.refresh)  # who met a client before meets a server now
        elif not has_to:
            kad.stop_serving()

    def _tell(self, n_peers: int) -> None:
        report = self._report(n_peers)
        news = report.gist
        if news != self._said:
            self._said = news
            self.say(report.text)

    # ------------------------------------------------------------ asking

    def _ask_some(
        self, peers: Mapping[str, str], service: ReachService, nursery: trio.Nursery, now: float
    ) -> None:
        due = [peer_id for peer_id in peers if self._is_due(peer_id, peers[peer_id], now)]
        due.sort(key=lambda p: (p not in self.policy.trusted, self._times.n_failures(p)))
        for peer_id in due[: defaults.REACH_ASKED_AT_ONCE - len(self._asking)]:
            self._asking.add(peer_id)
            nursery.start_soon(self._ask, service, peer_id, peers[peer_id])

    def _is_due(self, peer_id: str, remote: str, now: float) -> bool:
        return (
            peer_id not in self._asking
            and self._times.may_ask(peer_id, now)
            and self._is_wanted(peer_id, remote, now)
        )

    def _is_wanted(self, peer_id: str, remote: str, now: float) -> bool:
        return self._state.is_wanted(
            kind_of(remote),
            crowd_of(remote.split("/")[2]),
            is_trusted=peer_id in self.policy.trusted,
            now=now,
        )

    async def _ask(self, service: ReachService, peer_id: str, remote: str) -> None:
        problem: Problem | None = Problem(peer_id, None)
        try:
            result = await service.ask(
                peer_id, lambda ip: port_for(self._listening(), _addr(ip, 0))
            )
            problem = self._take(peer_id, result)
        except TokenplaceError as error:
            log.debug("%s was not asked to dial back: %s", peer_id, type(error).__name__)
        self._asking.discard(peer_id)
        if problem is not None and (not self._problem or problem.worth >= self._problem.worth):
            self._problem = problem
        now = self.clock()
        # A proof of another kind than was wanted (through a router and back) must not be asked for
        # again at once.
        has_helped = problem is None and not self._is_wanted(peer_id, remote, now)
        jitter = random.uniform(0.5, 1.5)
        self._times.note(peer_id, now, has_helped=has_helped, jitter=jitter)
        self._news.set()
        self._news = trio.Event()

    def _take(self, peer_id: str, result: DialBackResult) -> Problem | None:
        """Enter what asking has proven, or say why it has proven nothing."""
        addr = _addr(result.observed, result.port)
        seen_from = _addr(result.asked_over, 0)
        # A stranger may claim to have seen any address. One of the internet takes two to count; one
        # of a private network means something only to who is in it.
        is_plausible = reach_of(addr) in (Reach.INTERNET, reach_of(seen_from))
        if not result.is_proven or not is_plausible:
            return Problem(peer_id, result.outcome, addr)
        if self._problem is not None and not self._problem.is_farther_than(addr):
            self._problem = None
        self._state.add(
            Proof(addr, crowd_of(result.asked_over), peer_id in self.policy.trusted),
            self.clock(),
            renew_s=defaults.REACH_RENEW_S * random.uniform(0.75, 1.0),
        )
        return None


def _addr(ip: str, port: int) -> str:
    return f"/ip{ipaddress.ip_address(ip).version}/{ip}/tcp/{port}"
