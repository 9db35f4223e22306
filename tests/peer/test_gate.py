"""Who may connect, who makes room, what is dialled, and how many streams one may have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.peer.buckets import TokenBuckets
from tokenplace.peer.dials import DialBudget, dial_target
from tokenplace.peer.gate import Gate, Seat, who_goes
from tokenplace.peer.ranges import block_of, crowd_of, is_loopback
from tokenplace.peer.stream_counts import PEERS_PER_ADDRESS, StreamCounts

ALICE_IP, BOB_IP = "203.0.113.7", "198.51.100.1"
MAX_OPEN = 3


@pytest.mark.parametrize(
    ("ip", "block", "crowd"),
    [
        (ALICE_IP, "203.0.113.7/32", "203.0.0.0/16"),
        ("::ffff:203.0.113.7", "203.0.113.7/32", "203.0.0.0/16"),
        ("2606:4700:1:2345::7", "2606:4700:1:2300::/56", "2606:4700::/32"),
        ("fe80::1%eth0", "fe80::/56", "fe80::/32"),
        ("127.0.0.2", "127.0.0.2/32", "loopback"),
        ("127.9.0.2", "127.9.0.2/32", "loopback"),
        ("::1", "::/56", "loopback"),
    ],
)
def test_an_address_counts_as_its_customer_and_its_neighbourhood(
    ip: str, block: str, crowd: str
) -> None:
    assert (block_of(ip), crowd_of(ip)) == (block, crowd)
    assert is_loopback(ip) == (crowd == "loopback")


# ---------------------------------------------------------------- connections


@dataclass
class Door:
    """A gate, and who was sent away."""

    gate: Gate = field(default_factory=lambda: Gate(MAX_OPEN))
    gone: list[str] = field(default_factory=list)
    idle_since: dict[Seat, float] = field(default_factory=dict)

    def enter(self, ip: str, now: float = 0.0) -> Seat | None:
        return self.gate.enter(ip, now, lambda: self.gone.append(ip))

    def open(self, ip: str, now: float = 0.0) -> Seat | None:
        """Enter and shake hands; idle from then on."""
        seat = self.enter(ip, now)
        if seat is None or not self.gate.settle(seat, self.idle_since, now):
            return None
        self.idle_since[seat] = now
        return seat


def test_one_address_has_so_many_connections_and_others_more() -> None:
    door = Door(Gate(100))
    seats = [door.open(ALICE_IP) for _ in range(defaults.MAX_CONNECTIONS_PER_IP)]
    assert all(seats)
    assert door.open(ALICE_IP) is None
    assert door.open(f"::ffff:{ALICE_IP}") is None
    assert door.open(BOB_IP) is not None
    assert seats[0] is not None
    door.gate.release(seats[0])
    assert door.open(ALICE_IP) is not None


def test_one_address_has_so_many_handshakes() -> None:
    door = Door()
    n_places = defaults.MAX_CONNECTIONS_PER_IP
    assert [door.enter(ALICE_IP) is not None for _ in range(n_places + 1)] == [
        *[True] * n_places,
        False,
    ]
    assert door.enter(BOB_IP)


def test_the_next_peer_behind_a_router_gets_the_place_of_whoever_rests_there() -> None:
    door = Door(Gate(100))
    assert door.open(BOB_IP, now=0)
    seats = [door.open(ALICE_IP, now=n) for n in range(1, defaults.MAX_CONNECTIONS_PER_IP + 1)]
    soon = 1 + defaults.IDLE_BEFORE_LEAVING_S
    assert seats[0] is not None
    refused = door.enter(ALICE_IP, now=soon)
    assert refused is not None
    assert not door.gate.settle(refused, door.idle_since, soon - 0.1), (
        "all are in use, or just were"
    )
    door.gate.release(refused)
    assert door.open(ALICE_IP, now=soon)
    assert door.gone == [ALICE_IP], "not Bob, who rests for longer"
    assert door.gate.n_open == 1 + defaults.MAX_CONNECTIONS_PER_IP


def test_loopback_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_LOOPBACK_CONNECTIONS", 20)
    door = Door(Gate(100))
    assert [door.open("127.0.0.1") is not None for _ in range(21)] == [True] * 20 + [False]


def test_who_connects_and_hangs_up_again_and_again_is_refused_for_a_while() -> None:
    door = Door()
    n_accepted = 0
    while seat := door.enter(ALICE_IP, now=0.0):
        door.gate.release(seat)
        n_accepted += 1
    assert n_accepted == defaults.CONNECT_BURST
    assert door.enter(BOB_IP, now=0.0)
    assert door.enter(ALICE_IP, now=1.1 / defaults.CONNECTS_PER_S)


def test_handshakes_that_do_not_end_make_room_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_GREETING", 3)
    door = Door()
    for now, ip in enumerate(["198.51.0.1", "203.0.0.1", "203.0.0.2", "192.0.2.1", "100.1.0.1"]):
        assert door.enter(ip, now)
    assert door.gone == ["203.0.0.1", "198.51.0.1"]  # the most crowded first, then the oldest
    assert door.gate.n_greeting == 3


def test_silent_ones_push_out_nobody_who_has_shaken_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_GREETING", 2)
    door = Door()
    friends = [door.open(f"192.{n}.2.1") for n in range(MAX_OPEN)]
    for n in range(50):
        assert door.enter(f"198.{n}.0.1")
    assert not {f"192.{n}.2.1" for n in range(MAX_OPEN)} & set(door.gone)
    assert all(friends)
    assert door.gate.n_open == MAX_OPEN


def test_a_newcomer_gets_the_place_of_whoever_is_idle_longest_in_the_largest_crowd() -> None:
    door = Door()
    for now, ip in enumerate([BOB_IP, "203.0.0.1", "203.0.0.2"]):
        assert door.open(ip, now)
    assert door.open("192.0.2.1", now=10)
    assert door.gone == ["203.0.0.1"]
    assert door.gate.n_open == MAX_OPEN


def test_who_was_sent_away_and_is_not_gone_yet_makes_no_more_room() -> None:
    door = Door()
    for ip in [BOB_IP, "203.0.0.1", "203.0.0.2"]:
        assert door.open(ip)
    for n in range(3):
        assert door.open(f"192.{n}.2.1", now=1)
    assert len(set(door.gone)) == len(door.gone) == 3


def test_who_is_in_use_stays_and_the_newcomer_goes() -> None:
    door = Door()
    for ip in [BOB_IP, "203.0.0.1", "203.0.0.2"]:
        assert door.open(ip)
    door.idle_since.clear()
    assert door.open("192.0.2.1") is None
    assert door.gone == []


def test_a_newcomer_of_the_crowd_takes_a_neighbours_place() -> None:
    bob, alice = (Seat(ip, crowd_of(ip), False, 0.0, lambda: None) for ip in (BOB_IP, ALICE_IP))
    newcomer = Seat("203.0.0.9", crowd_of("203.0.0.9"), False, 0.0, lambda: None)
    assert who_goes([bob, alice], {bob: 0.0, alice: 5.0}, newcomer) is alice
    assert who_goes([], {}, newcomer) is None


class GateMachine(RuleBasedStateMachine):
    """Whatever happens, the books are right and no limit is exceeded."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(MAX_OPEN)
        self.now = 0.0
        self.greeting: set[Seat] = set()
        self.open: set[Seat] = set()
        self.leaving: set[Seat] = set()

    def seats(self) -> list[Seat]:
        return sorted(self.greeting | self.open | self.leaving, key=lambda seat: seat.entered_at)

    @rule(
        ip=st.sampled_from(["203.0.0.1", "203.0.0.2", "198.51.0.1", "127.0.0.1"]),
        seconds=st.floats(0.001, 2),
    )
    def enter(self, ip: str, seconds: float) -> None:
        self.now += seconds
        box: list[Seat] = []
        if seat := self.gate.enter(ip, self.now, lambda: self.leave(box[0])):
            box.append(seat)
            self.greeting.add(seat)

    def leave(self, seat: Seat) -> None:
        self.greeting.discard(seat)
        self.open.discard(seat)
        self.leaving.add(seat)

    @rule(which=st.integers(0, 99), n_idle=st.integers(0, 3))
    def settle(self, which: int, n_idle: int) -> None:
        if waiting := sorted(self.greeting, key=lambda seat: seat.entered_at):
            seat = waiting[which % len(waiting)]
            idle = dict.fromkeys(sorted(self.open, key=lambda s: s.entered_at)[:n_idle], 0.0)
            self.greeting.remove(seat)
            self.now += 100
            (self.open if self.gate.settle(seat, idle, self.now) else self.leaving).add(seat)

    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        if seats := self.seats():
            seat = seats[which % len(seats)]
            self.gate.release(seat)
            for group in (self.greeting, self.open, self.leaving):
                group.discard(seat)

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.gate.n_greeting == len(self.greeting) <= defaults.MAX_GREETING
        assert self.gate.n_open == len(self.open) <= MAX_OPEN
        at_one = Counter(seat.block for seat in self.open if not seat.is_local)
        assert max(at_one.values(), default=0) <= defaults.MAX_CONNECTIONS_PER_IP
        assert self.gate._n_in_block == Counter(seat.block for seat in self.seats())


TestGateMachine = GateMachine.TestCase


# ---------------------------------------------------------------- token buckets, dials


def test_a_bucket_refills_with_time_and_not_beyond_its_capacity() -> None:
    buckets = TokenBuckets(capacity=2, tokens_per_s=0.5)
    assert [buckets.take("ALICE", 0) for _ in range(3)] == [True, True, False]
    assert not buckets.take("ALICE", 1.9)
    assert buckets.take("ALICE", 2.0)
    assert [buckets.take("ALICE", 1000) for _ in range(3)] == [True, True, False]
    buckets.give_back("ALICE", 1000)
    assert buckets.take("ALICE", 1000)


def test_buckets_of_strangers_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_TOKEN_BUCKETS", 10)
    buckets = TokenBuckets(capacity=1, tokens_per_s=1)
    for n in range(100):
        assert buckets.take(str(n), 0)
    assert len(buckets) == 10
    assert not buckets.take("99", 0)
    buckets.give_back("99", 0)
    assert len(buckets) == 9  # a full one is as good as unknown


@pytest.mark.parametrize(
    ("addr", "target"),
    [
        ("/ip4/8.8.4.4/tcp/4010", "8.8.4.4/32"),
        ("/ip6/2606:4700::7/tcp/4010", "2606:4700::/56"),
        ("/ip6/::ffff:8.8.4.4/tcp/4010", "8.8.4.4/32"),
        ("/dns4/Alice.Example/tcp/4010", "alice.example"),
        ("/ip4/127.0.0.1/tcp/4010", None),
        ("/ip4/192.168.1.7/tcp/4010", None),
        ("/ip6/fe80::1/tcp/4010", None),
    ],
)
def test_public_addresses_and_names_are_counted(addr: str, target: str | None) -> None:
    assert dial_target(Multiaddr(addr)) == target


def test_two_failed_dials_a_minute_and_no_more() -> None:
    budget = DialBudget()
    for _ in range(defaults.FAILED_DIALS):
        assert budget.begin("8.8.4.4/32", now=0)
        budget.end("8.8.4.4/32", was_reached=False, now=5)
    assert not budget.begin("8.8.4.4/32", now=6)
    assert budget.begin("8.8.8.8/32", now=6)
    assert budget.begin("8.8.4.4/32", now=defaults.FAILED_DIALS_WINDOW_S)


def test_a_dial_that_reaches_the_peer_costs_nothing() -> None:
    budget = DialBudget()
    for _ in range(10 * defaults.FAILED_DIALS):
        assert budget.begin("8.8.4.4/32", now=0)
        assert budget.is_under_way("8.8.4.4/32")
        budget.end("8.8.4.4/32", was_reached=True, now=0)
        assert not budget.is_under_way("8.8.4.4/32")


# ---------------------------------------------------------------- streams


def test_streams_are_counted_by_peer() -> None:
    counts = StreamCounts(max_per_peer=2, max_in_all=None)
    assert [counts.enter("ALICE", ALICE_IP) for _ in range(3)] == [True, True, False]
    assert counts.enter("BOB", BOB_IP)
    counts.leave("ALICE", ALICE_IP)
    assert counts.enter("ALICE", ALICE_IP)


def test_free_peer_ids_do_not_multiply_streams() -> None:
    counts = StreamCounts(max_per_peer=2, max_in_all=None)
    accepted = [counts.enter(f"SYBIL {n}", ALICE_IP) for n in range(20)]
    assert sum(accepted) == PEERS_PER_ADDRESS * 2
    assert counts.enter("BOB", BOB_IP)


def test_peers_of_one_machine_share_its_loopback_address() -> None:
    counts = StreamCounts(max_per_peer=1, max_in_all=None)
    assert all(counts.enter(f"PEER {n}", "127.0.0.1") for n in range(20))


def test_all_streams_together_are_limited_and_given_back() -> None:
    counts = StreamCounts(max_per_peer=None, max_in_all=2)
    assert [counts.enter("ALICE", ALICE_IP) for _ in range(3)] == [True, True, False]
    counts.leave("ALICE", ALICE_IP)
    assert counts.enter("BOB", BOB_IP)
    limited = StreamCounts(max_per_peer=1, max_in_all=1)
    for n in range(100):
        assert limited.enter(f"PEER {n}", ALICE_IP)
        limited.leave(f"PEER {n}", ALICE_IP)
    assert not limited._n_open
