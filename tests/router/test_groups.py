"""Which donors are counted as one hoster's."""

from __future__ import annotations

from tokenplace.router.groups import UNKNOWN, groups_of


def test_a_network_is_a_group_and_so_is_a_machine_of_a_private_one() -> None:
    groups = groups_of(
        {
            "alice": ["/ip4/20.30.113.5/tcp/4001"],
            "bob": ["/ip4/20.30.200.9/tcp/4001"],
            "carol": ["/ip4/20.31.100.7/tcp/4001"],
            "dave": ["/ip4/192.168.1.5/tcp/1"],
            "erin": ["/ip4/192.168.1.5/tcp/2"],
            "faye": ["/ip4/192.168.1.6/tcp/1"],
            "gina": ["/ip4/127.0.0.1/tcp/1"],
            "hugo": ["/ip4/127.0.0.1/tcp/2"],
            "iris": ["/ip6/2a00:1450:1::1/tcp/1"],
            "jack": ["/ip6/2a00:1450:2::1/tcp/1"],
            "kate": [],
            "liam": [],
        }
    )
    together = {frozenset(d for d in groups if groups[d] == group) for group in groups.values()}
    assert frozenset({"alice", "bob"}) in together
    assert frozenset({"dave", "erin"}) in together
    assert frozenset({"iris", "jack"}) in together
    assert frozenset({"kate", "liam"}) in together
    assert {frozenset({each}) for each in ("carol", "faye", "gina", "hugo")} <= together
    assert groups["kate"] == UNKNOWN


def test_addresses_that_do_not_work_do_not_part_a_farm() -> None:
    farm = {
        f"sybil-{n}": [f"/ip4/{20 + n}.7.0.1/tcp/4001", f"/ip4/9.9.0.{n}/tcp/4001"]
        for n in range(50)
    }
    honest = {f"honest-{n}": [f"/ip4/{20 + n}.7.3.3/tcp/4001"] for n in range(10)}
    groups = groups_of({**farm, **honest})
    assert {groups[donor] for donor in farm} == {"9.9.0.0/16"}
    assert len({groups[donor] for donor in honest}) == 10
