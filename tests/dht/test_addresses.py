"""Which addresses of strangers may be dialled."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dht.donating import identity_of
from tokenplace import defaults
from tokenplace.dht.addresses import usable_addrs

ALICE = identity_of("alice").peer_id
BOB = identity_of("bob").peer_id

PUBLIC = ["/ip4/1.1.1.1/tcp/4010", "/ip6/2606:4700::1111/tcp/1"]
PRIVATE = [
    "/ip4/127.0.0.1/tcp/4010",
    "/ip4/10.1.2.3/tcp/4010",
    "/ip4/192.168.0.1/tcp/22",
    "/ip4/169.254.169.254/tcp/80",
    "/ip4/100.64.0.1/tcp/4010",
    "/ip6/::1/tcp/4010",
    "/ip6/fe80::1/tcp/4010",
    "/ip6/fd00::1/tcp/4010",
]
NEVER = [
    "",
    "/",
    "garbage",
    "/ip4/1.1.1.1",
    "/ip4/1.1.1.1/udp/4010",
    "/ip4/1.1.1.1/tcp/4010/ws",
    "/dns4/localhost/tcp/4010",
    "/ip4/0.0.0.0/tcp/4010",
    "/ip4/255.255.255.255/tcp/4010",
    "/ip4/224.0.0.1/tcp/4010",
    "/ip4/1.1.1.1/tcp/0",
    "/ip4/1.1.1.1/tcp/65536",
    "/ip4/1.1.1.1/tcp/-1",
    "/ip4/1.1.1.1/tcp/٤٠",
    "/ip4/1.1.1.1/tcp/" + "9" * 5000,
    "/ip4/2606:4700::1111/tcp/1",
    "/ip6/1.1.1.1/tcp/1",
    "/ip6/::/tcp/4010",
    "/ip6/ff02::1/tcp/4010",
    "/ip6/::ffff:1.1.1.1/tcp/4010",
    "/ip6/::ffff:127.0.0.1/tcp/4010",
    "/ip6/fe80::1%eth0/tcp/4010",
    "ip4/1.1.1.1/tcp/4010/p2p",
    f"/ip4/1.1.1.1/tcp/4010/p2p/{BOB}",
    f"/ip4/1.1.1.1/tcp/4010/p2p/{BOB}/p2p-circuit/p2p/{ALICE}",
]


@pytest.mark.parametrize("addr", PUBLIC)
def test_public_addresses_may_be_dialled(addr: str) -> None:
    for written in (addr, f"{addr}/p2p/{ALICE}"):
        assert usable_addrs([written], ALICE, allow_private=False) == (addr,)


@pytest.mark.parametrize("addr", PRIVATE)
def test_private_addresses_only_when_allowed(addr: str) -> None:
    assert usable_addrs([addr], ALICE, allow_private=False) == ()
    assert usable_addrs([addr], ALICE, allow_private=True) == (addr,)


@pytest.mark.parametrize("addr", NEVER)
def test_others_never(addr: str) -> None:
    assert usable_addrs([addr], ALICE, allow_private=True) == ()


def test_at_most_eight_and_each_once() -> None:
    many = [f"/ip4/1.1.1.1/tcp/{1 + n // 2}" for n in range(100)]
    usable = usable_addrs(["garbage", *many], ALICE, allow_private=False)
    assert usable == tuple(dict.fromkeys(many))[: defaults.MAX_ADDRS]


@given(addrs=st.lists(st.text(max_size=60), max_size=20), allow_private=st.booleans())
def test_any_text_is_taken(addrs: list[str], allow_private: bool) -> None:
    usable_addrs(addrs, ALICE, allow_private=allow_private)


@given(ip=st.ip_addresses(), port=st.integers(1, 65535))
def test_nothing_but_public_unicast_gets_through(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    addr = f"/ip{ip.version}/{ip}/tcp/{port}"
    usable = usable_addrs([addr], ALICE, allow_private=False)
    assert usable in ((), (addr,))
    if usable:
        assert ip.is_global
        assert not ip.is_multicast
