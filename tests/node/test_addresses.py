"""From how far away an address works."""

from __future__ import annotations

import pytest

from tokenplace.node.addresses import Reach, reach_of


@pytest.mark.parametrize(
    ("addr", "reach"),
    [
        ("/ip4/127.0.0.1/tcp/4010", Reach.THIS_MACHINE),
        ("/ip6/::1/tcp/4010/p2p/12D3KooW", Reach.THIS_MACHINE),
        ("/ip4/192.168.1.7/tcp/4010", Reach.LOCAL_NETWORK),
        ("/ip6/fe80::1/tcp/4010", Reach.LOCAL_NETWORK),
        ("/ip4/100.64.0.9/tcp/4010", Reach.LOCAL_NETWORK),  # behind a carrier's NAT, or in a VPN
        ("/ip4/1.1.1.1/tcp/4010", Reach.INTERNET),
        ("/ip6/2606:4700::1111/tcp/4010", Reach.INTERNET),
        ("/dns4/peer.example/tcp/4010", Reach.INTERNET),
    ],
)
def test_reach(addr: str, reach: Reach) -> None:
    assert reach_of(addr) is reach
