"""What proofs are worth, how long, and whom to ask for more."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokenplace import defaults
from tokenplace.node.addresses import Reach, reach_of
from tokenplace.node.reachability import (
    MAX_PROOFS_PER_ADDR,
    AskTimes,
    Proof,
    Reachability,
    kind_of,
    port_for,
)

PUBLIC = "/ip4/1.1.1.1/tcp/4010"
OTHER_PUBLIC = "/ip4/8.8.8.8/tcp/4010"
PUBLIC6 = "/ip6/2606:4700::1111/tcp/4010"
LAN = "/ip4/192.168.1.7/tcp/4010"
LOOPBACK = "/ip4/127.0.0.1/tcp/4010"
ALICE_NET, BOB_NET, CAROL_NET = "9.9.0.0/16", "4.4.0.0/16", "2620::/32"
NOW = 1000.0
PUBLIC_KIND = (Reach.INTERNET, "ip4")


def proven(*proofs: Proof, now: float = NOW) -> Reachability:
    reachability = Reachability()
    for proof in proofs:
        reachability.add(proof, now)
    return reachability


# ---------------------------------------------------------------- what is enough


@pytest.mark.parametrize("addr", [LAN, LOOPBACK, "/ip6/::1/tcp/1", "/ip4/100.64.0.9/tcp/1"])
def test_one_proof_confirms_an_address_nearby(addr: str) -> None:
    assert proven(Proof(addr, ALICE_NET, False)).confirmed(NOW) == (addr,)


def test_a_public_address_takes_peers_of_two_networks() -> None:
    reachability = proven(Proof(PUBLIC, ALICE_NET, False), Proof(PUBLIC, ALICE_NET, False))
    assert reachability.confirmed(NOW) == ()
    assert reachability.unconfirmed(NOW) == (PUBLIC,)
    reachability.add(Proof(PUBLIC, BOB_NET, False), NOW)
    assert reachability.confirmed(NOW) == (PUBLIC,)
    assert reachability.unconfirmed(NOW) == ()


def test_two_networks_must_name_the_same_address() -> None:
    reachability = proven(Proof(PUBLIC, ALICE_NET, False), Proof(OTHER_PUBLIC, BOB_NET, False))
    assert reachability.confirmed(NOW) == ()


def test_one_peer_of_the_own_bootstrap_list_is_enough() -> None:
    assert proven(Proof(PUBLIC, ALICE_NET, True)).confirmed(NOW) == (PUBLIC,)


def test_the_farthest_address_comes_first() -> None:
    reachability = proven(
        Proof(LOOPBACK, ALICE_NET, False),
        Proof(LAN, ALICE_NET, False),
        Proof(PUBLIC, ALICE_NET, True),
    )
    assert reachability.confirmed(NOW) == (PUBLIC, LAN, LOOPBACK)


# ---------------------------------------------------------------- how long


def test_a_proof_ends_unless_it_is_renewed() -> None:
    reachability = proven(Proof(LAN, ALICE_NET, False))
    end = NOW + defaults.REACH_PROOF_LIFETIME_S
    assert reachability.confirmed(end - 1) == (LAN,)
    reachability.add(Proof(LAN, ALICE_NET, False), end - 1)
    assert reachability.confirmed(end) == (LAN,)
    assert reachability.confirmed(end + defaults.REACH_PROOF_LIFETIME_S) == ()


def test_an_address_that_went_is_void_at_once_and_a_routers_is_in_doubt() -> None:
    reachability = Reachability()
    assert not reachability.note_interfaces([LAN, LOOPBACK], NOW)
    for addr in (LAN, LOOPBACK, PUBLIC):
        reachability.add(Proof(addr, ALICE_NET, True), NOW)
    assert not reachability.note_interfaces([LOOPBACK, LAN], NOW), "the same, in another order"
    assert reachability.note_interfaces([LOOPBACK, "/ip4/10.0.0.2/tcp/4010"], NOW)
    assert reachability.confirmed(NOW) == (PUBLIC, LOOPBACK)
    assert reachability.is_wanted(PUBLIC_KIND, ALICE_NET, is_trusted=True, now=NOW)
    assert reachability.confirmed(NOW + defaults.REACH_DOUBT_S) == (LOOPBACK,)


def test_a_routers_new_address_puts_its_old_one_in_doubt() -> None:
    reachability = proven(Proof(PUBLIC, ALICE_NET, True), Proof(PUBLIC6, ALICE_NET, True))
    reachability.add(Proof(OTHER_PUBLIC, ALICE_NET, False), NOW)
    later = NOW + defaults.REACH_DOUBT_S
    assert PUBLIC in reachability.confirmed(later), "one stranger's word changes nothing"
    reachability.add(Proof(OTHER_PUBLIC, BOB_NET, False), NOW)
    assert reachability.confirmed(later) == (OTHER_PUBLIC, PUBLIC6)


def test_addresses_of_network_cards_stand_side_by_side() -> None:
    reachability = Reachability()
    reachability.note_interfaces([PUBLIC, OTHER_PUBLIC], NOW)
    for addr in (PUBLIC, OTHER_PUBLIC):
        reachability.add(Proof(addr, ALICE_NET, True), NOW)
    assert reachability.confirmed(NOW + defaults.REACH_DOUBT_S) == (PUBLIC, OTHER_PUBLIC)


def test_of_many_proofs_the_latest_are_kept() -> None:
    reachability = Reachability()
    for number in range(MAX_PROOFS_PER_ADDR + 1):
        reachability.add(Proof(PUBLIC, f"{number}.0.0.0/16", False), NOW + number)
    assert len(reachability._proofs[PUBLIC]) == MAX_PROOFS_PER_ADDR
    assert "0.0.0.0/16" not in reachability._proofs[PUBLIC]


# ---------------------------------------------------------------- whom to ask


def test_only_who_can_tell_something_new_is_wanted() -> None:
    reachability = Reachability()

    def is_wanted(network: str, *, is_trusted: bool = False, now: float = NOW) -> bool:
        return reachability.is_wanted(PUBLIC_KIND, network, is_trusted=is_trusted, now=now)

    assert is_wanted(ALICE_NET)
    reachability.add(Proof(PUBLIC, ALICE_NET, False), NOW)
    assert not is_wanted(ALICE_NET), "its word is there"
    assert is_wanted(BOB_NET)
    assert is_wanted(ALICE_NET, is_trusted=True), "its word alone would do"
    reachability.add(Proof(PUBLIC, BOB_NET, False), NOW)
    assert not is_wanted(CAROL_NET, is_trusted=True)
    renew_at = NOW + defaults.REACH_RENEW_S
    assert is_wanted(ALICE_NET, now=renew_at)
    assert reachability.confirmed(renew_at) == (PUBLIC,), "there is time left to renew it"


def test_kinds_are_asked_for_apart() -> None:
    reachability = proven(Proof(LOOPBACK, ALICE_NET, False), Proof(PUBLIC, ALICE_NET, True))
    for addr, wanted in ((LOOPBACK, False), (PUBLIC, False), (LAN, True), (PUBLIC6, True)):
        assert reachability.is_wanted(kind_of(addr), BOB_NET, is_trusted=False, now=NOW) is wanted


@pytest.mark.parametrize(
    ("listening", "remote", "port"),
    [
        ([LOOPBACK], "/ip4/127.0.0.1/tcp/9", 4010),
        ([LAN, LOOPBACK], "/ip4/1.2.3.4/tcp/9", 4010),
        ([LOOPBACK], "/ip4/1.2.3.4/tcp/9", None),
        (["/ip4/192.168.1.7/tcp/1", "/ip4/127.0.0.1/tcp/2"], "/ip4/127.0.0.1/tcp/9", 2),
        (["/ip4/127.0.0.1/tcp/2", "/ip4/192.168.1.7/tcp/1"], "/ip4/192.168.1.9/tcp/9", 1),
        (["/ip4/1.1.1.1/tcp/1", "/ip6/::1/tcp/2"], "/ip6/::1/tcp/9", 2),
        ([LAN], "/ip6/2606::1/tcp/9", None),
        ([], "/ip4/1.2.3.4/tcp/9", None),
    ],
)
def test_the_port_to_dial_back(listening: list[str], remote: str, port: int | None) -> None:
    assert port_for(listening, remote) == port


def test_who_does_not_help_is_asked_ever_more_seldom() -> None:
    times, now, pauses = AskTimes(), NOW, []
    for _ in range(12):
        assert times.may_ask("ALICE", now)
        times.note("ALICE", now, has_helped=False, jitter=1.0)
        pause = defaults.REACH_RETRY_S
        while not times.may_ask("ALICE", now + pause):
            pause *= 2
        pauses.append(pause)
        now += pause
    assert pauses[:3] == [defaults.REACH_RETRY_S * factor for factor in (1, 2, 4)]
    assert times.may_ask("ALICE", now + defaults.REACH_RETRY_MAX_S)
    assert times.n_failures("ALICE") == 12
    times.note("ALICE", now, has_helped=True, jitter=1.0)
    assert times.n_failures("ALICE") == 0
    assert times.may_ask("BOB", now)
    times.forget()
    assert times.may_ask("ALICE", now)


def test_only_so_many_peers_are_remembered() -> None:
    times = AskTimes()
    for number in range(defaults.REACH_MAX_ASKED + 1):
        times.note(f"peer {number}", NOW, has_helped=False, jitter=1.0)
    assert times.may_ask("peer 0", NOW), "forgotten"
    assert not times.may_ask("peer 1", NOW)


# ---------------------------------------------------------------- whatever happens

ADDRS = [
    PUBLIC,
    OTHER_PUBLIC,
    PUBLIC6,
    LAN,
    LOOPBACK,
    *(f"/ip4/1.1.2.{n}/tcp/1" for n in range(9)),
]
NETWORKS = [f"{n}.0.0.0/16" for n in range(12)]


class ReachabilityMachine(RuleBasedStateMachine):
    """No address is ever confirmed that was not proven enough, lately; nothing grows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.reachability = Reachability()
        self.proofs: dict[str, list[tuple[Proof, float]]] = defaultdict(list)

    @rule(addr=st.sampled_from(ADDRS), network=st.sampled_from(NETWORKS), is_trusted=st.booleans())
    def add(self, addr: str, network: str, is_trusted: bool) -> None:
        proof = Proof(addr, network, is_trusted)
        self.proofs[addr].append((proof, self.now))
        self.reachability.add(proof, self.now)

    @rule(listening=st.sets(st.sampled_from(ADDRS)))
    def change_interfaces(self, listening: set[str]) -> None:
        self.reachability.note_interfaces(listening, self.now)

    @rule(seconds=st.floats(0, defaults.REACH_PROOF_LIFETIME_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def clean_up(self) -> None:
        before = self.reachability.confirmed(self.now)
        self.reachability.drop_expired(self.now)
        assert self.reachability.confirmed(self.now) == before

    @invariant()
    def what_is_confirmed_was_proven(self) -> None:
        for addr in self.reachability.confirmed(self.now):
            living = [
                proof
                for proof, at in self.proofs[addr]
                if self.now < at + defaults.REACH_PROOF_LIFETIME_S
            ]
            networks = {proof.network for proof in living}
            if reach_of(addr) is Reach.INTERNET:
                assert len(networks) >= 2 or any(proof.is_trusted for proof in living)
            else:
                assert networks

    @invariant()
    def what_is_not_wanted_is_known(self) -> None:
        for kind in {kind_of(addr) for addr in ADDRS}:
            if not self.reachability.is_wanted(kind, "new", is_trusted=True, now=self.now):
                assert kind in {kind_of(addr) for addr in self.reachability.confirmed(self.now)}

    @invariant()
    def little_is_kept(self) -> None:
        held = self.reachability._proofs
        assert len(held) <= defaults.MAX_ADDRS
        assert all(len(proofs) <= MAX_PROOFS_PER_ADDR for proofs in held.values())


TestReachability = ReachabilityMachine.TestCase


@given(addr=st.sampled_from(ADDRS), late=st.floats(0, defaults.REACH_PROOF_LIFETIME_S / 2))
def test_renewing_never_shortens(addr: str, late: float) -> None:
    reachability = proven(Proof(addr, ALICE_NET, True))
    reachability.add(Proof(addr, ALICE_NET, True), NOW + late)
    assert reachability.confirmed(NOW + late + defaults.REACH_PROOF_LIFETIME_S - 1) == (addr,)
