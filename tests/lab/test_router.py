"""What links do to packets, without any network. Start at `test_every_packet_is_accounted_for`."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lab.router import (
    HELD_BACK_S,
    MAX_IN_FLIGHT,
    MAX_QUEUE_S,
    Link,
    Router,
    Rule,
    address,
    destination,
)

N_HOSTS = 3
SLACK_S = 1e-9  # sums of floats

shares = st.floats(0, 1)
rules = st.builds(
    Rule,
    delay_s=st.floats(0, 2),
    jitter_s=st.floats(0, 1),
    loss=shares,
    duplicate=shares,
    reorder=shares,
    bits_per_s=st.one_of(st.just(0.0), st.floats(1e4, 1e8)),
    is_up=st.booleans(),
)
hosts = st.integers(0, N_HOSTS - 1)
# Who sends to whom, how much, and how long after the packet before.
sendings = st.lists(st.tuples(hosts, hosts, st.integers(20, 1500), st.floats(0, 0.1)), max_size=50)


def link(seed: int = 0, **rule: Any) -> Link:
    made = Link(Random(seed))
    made.rule = Rule(**rule)
    return made


def packet(target: int, n_bytes: int = 100, mark: int = 0) -> bytes:
    """An IPv4 packet to this host."""
    header = bytes([0x45]) + bytes(15) + bytes(int(part) for part in address(target).split("."))
    return header + bytes([mark % 256]) * (n_bytes - len(header))


# ---------------------------------------------------------------- one link


@given(rules, st.integers(20, 1500), st.integers())
def test_a_packet_comes_at_most_twice_and_never_before_its_delay(
    rule: Rule, n_bytes: int, seed: int
) -> None:
    made = Link(Random(seed))
    made.rule = rule
    arrivals = made.arrivals(n_bytes, now=100.0)
    assert len(arrivals) <= (2 if rule.duplicate else 1)
    leaving_s = 8 * n_bytes / rule.bits_per_s if rule.bits_per_s else 0.0
    for at in arrivals:
        assert at >= 100.0 + leaving_s + max(0.0, rule.delay_s - rule.jitter_s) - SLACK_S
        held_s = HELD_BACK_S if rule.reorder else 0.0
        assert at <= 100.0 + leaving_s + rule.delay_s + rule.jitter_s + held_s + SLACK_S


def test_a_link_without_a_rule_does_nothing() -> None:
    assert link().arrivals(1500, now=7.0) == [7.0]


def test_a_cut_link_carries_nothing() -> None:
    assert link(is_up=False).arrivals(100, now=0.0) == []


@pytest.mark.parametrize("field", ["loss", "duplicate", "reorder"])
def test_a_share_is_that_share_of_the_packets(field: str) -> None:
    made = link(**{field: 0.1})
    answers = [made.arrivals(100, now=0.0) for _ in range(10_000)]
    touched = sum(answer != [0.0] for answer in answers)
    assert 900 < touched < 1100, "four standard deviations are 120"


@given(
    st.floats(1e4, 1e7),
    st.lists(st.tuples(st.integers(20, 1500), st.floats(0, 0.2)), min_size=1, max_size=100),
)
def test_a_throttled_link_is_never_faster_and_its_queue_is_bounded(
    bits_per_s: float, packets: list[tuple[int, float]]
) -> None:
    made = link(bits_per_s=bits_per_s)
    now, busy_since, n_bits = 0.0, 0.0, 0
    for n_bytes, pause_s in packets:
        now += pause_s
        if now > busy_since + n_bits / bits_per_s:
            busy_since, n_bits = now, 0
        for at in made.arrivals(n_bytes, now):
            n_bits += 8 * n_bytes
            assert at == pytest.approx(busy_since + n_bits / bits_per_s)
            assert at - now <= MAX_QUEUE_S + 8 * n_bytes / bits_per_s + SLACK_S


def test_what_a_throttled_link_cannot_queue_is_lost() -> None:
    made = link(bits_per_s=80_000)  # ten packets of 1000 bytes a second: five wait, one leaves
    assert [bool(made.arrivals(1000, now=0.0)) for _ in range(8)] == [True] * 6 + [False] * 2
    assert made.arrivals(1000, now=0.6) == [pytest.approx(0.7)]


def test_a_reordered_packet_is_overtaken() -> None:
    made = link(reorder=0.5)
    arrivals = [made.arrivals(100, now=number / 1000)[0] for number in range(20)]
    assert arrivals != sorted(arrivals)


# ---------------------------------------------------------------- all of them


@given(st.lists(st.tuples(hosts, hosts, rules), max_size=6), sendings, st.integers())
def test_every_packet_is_accounted_for(
    links: list[tuple[int, int, Rule]],
    sent: list[tuple[int, int, int, float]],
    seed: int,
) -> None:
    router = Router(N_HOSTS, seed)
    for source, target, rule in links:
        if source != target:
            router.set_rule(source, target, rule)
    now, asked = 0.0, []
    for mark, (source, target, n_bytes, pause_s) in enumerate(sent):
        now += pause_s
        router.take(source, packet(target, n_bytes, mark), now)
        if source != target:
            asked.append((target, packet(target, n_bytes, mark)))
    came = list(router.arrived(math.inf))
    traffic = router.traffic
    assert traffic.n_carried + traffic.n_lost + traffic.n_cut == len(asked)
    assert len(came) == traffic.n_carried + traffic.n_doubled
    assert set(came) <= set(asked), "a packet is changed by nobody, and reaches its host alone"
    assert router.next_at() == math.inf


@given(sendings, st.floats(0, 1))
def test_links_that_only_delay_keep_the_order(
    sent: list[tuple[int, int, int, float]], delay_s: float
) -> None:
    router = Router(N_HOSTS, seed=0)
    for source in range(N_HOSTS):
        for target in range(N_HOSTS):
            if source != target:
                router.set_rule(source, target, Rule(delay_s=delay_s))
    now = 0.0
    asked: dict[int, list[bytes]] = {host: [] for host in range(N_HOSTS)}
    for mark, (source, target, n_bytes, pause_s) in enumerate(sent):
        now += pause_s
        router.take(source, packet(target, n_bytes, mark), now)
        if source != target:
            asked[target].append(packet(target, n_bytes, mark))
    came: dict[int, list[bytes]] = {host: [] for host in range(N_HOSTS)}
    for target, data in router.arrived(now + delay_s):
        came[target].append(data)
    assert came == asked


def test_nothing_arrives_before_its_time() -> None:
    router = Router(2, seed=0)
    router.set_rule(0, 1, Rule(delay_s=0.05))
    router.take(0, packet(1), now=1.0)
    assert list(router.arrived(1.049)) == []
    assert router.next_at() == pytest.approx(1.05)
    assert list(router.arrived(1.05)) == [(1, packet(1))]


def test_what_is_under_way_when_a_link_is_cut_still_arrives() -> None:
    router = Router(2, seed=0)
    router.set_rule(0, 1, Rule(delay_s=0.05))
    router.take(0, packet(1, mark=1), now=0.0)
    router.set_rule(0, 1, Rule(is_up=False))
    router.take(0, packet(1, mark=2), now=0.01)
    assert list(router.arrived(1.0)) == [(1, packet(1, mark=1))]
    assert router.traffic.n_cut == 1


def test_the_same_seed_decides_alike_whatever_others_carry() -> None:
    def carried(seed: int, *, is_other_busy: bool) -> list[tuple[int, bytes]]:
        router = Router(N_HOSTS, seed)
        for source in (0, 2):
            router.set_rule(source, 1, Rule(loss=0.5))
        for mark in range(100):
            router.take(0, packet(1, mark=mark), now=0.0)
            if is_other_busy:
                router.take(2, packet(1, 1000), now=0.0)
        return [came for came in router.arrived(math.inf) if len(came[1]) < 1000]

    assert carried(1, is_other_busy=True) == carried(1, is_other_busy=False)
    assert carried(1, is_other_busy=False) != carried(2, is_other_busy=False)


def test_what_is_under_way_is_bounded() -> None:
    router = Router(2, seed=0)
    router.set_rule(0, 1, Rule(delay_s=60.0))
    for _ in range(MAX_IN_FLIGHT + 5):
        router.take(0, packet(1), now=0.0)
    assert router.traffic.n_carried == MAX_IN_FLIGHT
    assert router.traffic.n_lost == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45" + bytes(10),
        b"\x60" + bytes(39),
        packet(0)[:16] + bytes([10, 77, 1, 1]),
        packet(0)[:16] + bytes([10, 77, 0, 0]),
        packet(0)[:16] + bytes([10, 77, 0, 9]),
        packet(0)[:16] + bytes([224, 0, 0, 22]),
    ],
    ids=["empty", "short", "IPv6", "other network", "the network", "no such host", "multicast"],
)
def test_packets_for_nobody_are_dropped(data: bytes) -> None:
    router = Router(2, seed=0)
    router.take(0, data, now=0.0)
    assert list(router.arrived(math.inf)) == []


@given(st.binary(max_size=64))
def test_any_bytes_are_read(data: bytes) -> None:
    target = destination(data)
    assert target is None or 0 <= target < 255
