"""What is proven about how others reach this peer, and what is still to be asked. Pure.

Start at `Reachability`. An address counts once enough peers have delivered a nonce there (see
`tokenplace.peer.reach`): one for an address of this machine or a private network; for a public one
peers of two networks, or one that this peer's own bootstrap list names. `now` is in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tokenplace import defaults
from tokenplace.node.addresses import Reach, reach_of

Kind = tuple[Reach, str]
"""Addresses that stand for each other: equally far away, of one IP version ("ip4" or "ip6")."""

MAX_PROOFS_PER_ADDR: Final = 8  # networks remembered; two are enough


def kind_of(addr: str) -> Kind:
    """The kind of a multiaddr that begins with an IP address."""
    return reach_of(addr), addr.split("/")[1]


def port_for(listening: Sequence[str], remote: str) -> int | None:
    """Where a peer at the multiaddr `remote` should dial back: a port of `listening`.

    Of the same IP version, and if there is one, of an address as far away. None if there is none;
    what listens on loopback alone hears nobody from elsewhere.
    """
    reach, version = kind_of(remote)
    heard = [
        addr
        for addr in listening
        if kind_of(addr)[1] == version
        and (reach is Reach.THIS_MACHINE or reach_of(addr) is not Reach.THIS_MACHINE)
    ]
    heard.sort(key=lambda addr: reach_of(addr) is not reach)
    return int(heard[0].split("/")[4]) if heard else None


@dataclass(frozen=True, slots=True)
class Proof:
    """A nonce arrived at `addr` (a multiaddr without peer id).

    network: whose peer delivered it. is_trusted: that peer is in the own bootstrap list.
    """

    addr: str
    network: str
    is_trusted: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """A proof in its time: it is renewed from `renew_at` on, and void from `ends_at` on."""

    is_trusted: bool
    renew_at: float
    ends_at: float


class Reachability:
    """The proofs of one peer. Addresses are at most `MAX_ADDRS`, proofs of each a few."""

    def __init__(self) -> None:
        self._proofs: dict[str, dict[str, _Held]] = {}
        self._interfaces: frozenset[str] = frozenset()

    # ------------------------------------------------------------ what comes in

    def add(self, proof: Proof, now: float, renew_s: float = defaults.REACH_RENEW_S) -> None:
        """Note a proof. renew_s: after which it should be renewed; jittered by the caller.

        When there are too many addresses, unconfirmed ones go first, and this may be one.
        """
        self.drop_expired(now)
        held = self._proofs.setdefault(proof.addr, {})
        held[proof.network] = _Held(
            proof.is_trusted, now + renew_s, now + defaults.REACH_PROOF_LIFETIME_S
        )
        while len(held) > MAX_PROOFS_PER_ADDR:
            del held[min(held, key=lambda network: held[network].ends_at)]
        while len(self._proofs) > defaults.MAX_ADDRS:
            del self._proofs[min(self._proofs, key=lambda addr: self._worth(addr, now))]
        if self._is_confirmed(proof.addr, now):
            self._doubt_predecessors(proof.addr, now)

    def note_interfaces(self, listening: Iterable[str], now: float) -> bool:
        """Tell the addresses of this machine's network cards; whether they have changed.

        What was proven of an address that went is void then; of one that no card ever had it is in
        doubt: a router's may have been the old network's.
        """
        before, self._interfaces = self._interfaces, frozenset(listening)
        if not before or before == self._interfaces:
            return False
        for addr in self._proofs.keys() - self._interfaces:
            if addr in before:
                del self._proofs[addr]
            else:
                self._doubt(addr, now)
        return True

    def drop_expired(self, now: float) -> None:
        """Forget what is void."""
        for addr, held in list(self._proofs.items()):
            living = {network: one for network, one in held.items() if now < one.ends_at}
            if living:
                self._proofs[addr] = living
            else:
                del self._proofs[addr]

    def _doubt_predecessors(self, addr: str, now: float) -> None:
        """A router has one address: another that was found there before may be gone."""
        if addr in self._interfaces:
            return
        for other in self._proofs.keys() - self._interfaces - {addr}:
            if kind_of(other) == kind_of(addr):
                self._doubt(other, now)

    def _doubt(self, addr: str, now: float) -> None:
        ends_at = now + defaults.REACH_DOUBT_S
        self._proofs[addr] = {
            network: replace(
                one, renew_at=min(one.renew_at, now), ends_at=min(one.ends_at, ends_at)
            )
            for network, one in self._proofs[addr].items()
        }

    def _worth(self, addr: str, now: float) -> tuple[bool, float]:
        """What to keep when there is no room for all: higher is better."""
        newest = max(one.ends_at for one in self._proofs[addr].values())
        return self._is_confirmed(addr, now), newest

    # ------------------------------------------------------------ what follows

    def confirmed(self, now: float) -> tuple[str, ...]:
        """Addresses at which this peer is reached, those reached from farthest away first."""
        addrs = [addr for addr in self._proofs if self._is_confirmed(addr, now)]
        return tuple(sorted(addrs, key=lambda addr: (reach_of(addr), addr)))

    def unconfirmed(self, now: float) -> tuple[str, ...]:
        """Addresses that somebody reached, but not enough of them."""
        living = (
            a for a, held in self._proofs.items() if any(now < h.ends_at for h in held.values())
        )
        return tuple(sorted(addr for addr in living if not self._is_confirmed(addr, now)))

    def is_wanted(self, kind: Kind, network: str, *, is_trusted: bool, now: float) -> bool:
        """Would a proof by a peer of this kind and network tell anything new?"""
        alike = [held for addr, held in self._proofs.items() if kind_of(addr) == kind]
        fresh = [
            {name: one for name, one in held.items() if now < min(one.renew_at, one.ends_at)}
            for held in alike
        ]
        if any(_is_enough(kind[0], held) for held in fresh):
            return False
        return is_trusted or not any(network in held for held in fresh)

    def _is_confirmed(self, addr: str, now: float) -> bool:
        held = self._proofs.get(addr, {})
        living = {network: one for network, one in held.items() if now < one.ends_at}
        return _is_enough(reach_of(addr), living)


def _is_enough(reach: Reach, held: dict[str, _Held]) -> bool:
    """Do these proofs of one address, by network, confirm it?"""
    if reach is not Reach.INTERNET:
        return bool(held)
    is_trusted = any(one.is_trusted for one in held.values())
    return is_trusted or len(held) >= defaults.REACH_NETWORKS


class AskTimes:
    """When a peer may be asked again: after a failure later each time."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[int, float]] = {}

    def n_failures(self, peer_id: str) -> int:
        """How often in a row the peer did not help."""
        return self._asked.get(peer_id, (0, 0.0))[0]

    def may_ask(self, peer_id: str, now: float) -> bool:
        """May it be asked now?"""
        return now >= self._asked.get(peer_id, (0, now))[1]

    def note(self, peer_id: str, now: float, *, has_helped: bool, jitter: float) -> None:
        """The peer was asked. jitter: a factor around 1, so that peers do not ask in step."""
        n_failures = 0 if has_helped else self.n_failures(peer_id) + 1
        doubled = defaults.REACH_RETRY_S * 2.0 ** min(max(n_failures - 1, 0), 20)
        pause_s = min(doubled, defaults.REACH_RETRY_MAX_S) * jitter
        self._asked.pop(peer_id, None)
        self._asked[peer_id] = n_failures, now + pause_s
        while len(self._asked) > defaults.REACH_MAX_ASKED:
            del self._asked[next(iter(self._asked))]

    def forget(self) -> None:
        """Things have changed: everybody may be asked at once."""
        self._asked.clear()
