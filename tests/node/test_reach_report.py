"""How being reached, or not, is put to people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenplace.node.reach_report import NOTHING_YET, Problem, ReachReport, ReachState
from tokenplace.peer.reach_wire import Outcome

BOB = "12D3KooWMvrQ1xxSLrqjdvugEBADAhgW4tT2VmaVpjcBAWPiTpER"
PUBLIC = "/ip4/1.1.1.1/tcp/4010"
LAN = "/ip4/192.168.1.7/tcp/4010"
LOOPBACK = "/ip4/127.0.0.1/tcp/4010"
NOBODY = ReachReport(
    always="",
    confirmed=(),
    half_confirmed=(),
    problem=None,
    n_peers=0,
    does_local_count=True,
    is_donating=True,
)
BLOCKED = Problem(BOB, Outcome.UNREACHABLE, PUBLIC)


@pytest.mark.parametrize(
    ("confirmed", "state", "text"),
    [
        ((PUBLIC, LAN), ReachState.INTERNET, f"reachable from the internet at {PUBLIC}"),
        (
            (LAN, LOOPBACK),
            ReachState.LOCAL_NETWORK,
            f"reachable in the local network at {LAN}, from the internet not so far",
        ),
        (
            (LOOPBACK,),
            ReachState.THIS_MACHINE,
            f"reachable on this machine at {LOOPBACK}, from elsewhere not so far",
        ),
    ],
)
def test_a_reached_peer(confirmed: tuple[str, ...], state: ReachState, text: str) -> None:
    report = replace(NOBODY, confirmed=confirmed, problem=BLOCKED)
    assert (report.state, report.text, report.is_enough) == (state, text, True)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (NOBODY, "no peer is connected that could try"),
        (replace(NOBODY, n_peers=1), "nobody has tried yet"),
        (
            replace(NOBODY, problem=BLOCKED),
            "peer …cBAWPiTpER could not connect to 1.1.1.1, port 4010: a firewall or router blocks "
            "it; let TCP port 4010 in, and have a router forward it to this machine",
        ),
        (
            replace(NOBODY, problem=Problem(BOB, Outcome.PROVED, PUBLIC)),
            "peer …cBAWPiTpER says that it connected, but nothing of that arrived here",
        ),
        (
            replace(NOBODY, problem=Problem(BOB, Outcome.BUSY)),
            "peer …cBAWPiTpER has no time to try; it will be asked again",
        ),
        (
            replace(NOBODY, problem=Problem(BOB, Outcome.REFUSED)),
            "peer …cBAWPiTpER does not want to try",
        ),
        (
            replace(NOBODY, problem=Problem(BOB, None)),
            "peer …cBAWPiTpER did not answer when it was asked to try",
        ),
        (
            replace(NOBODY, half_confirmed=(PUBLIC,), problem=BLOCKED),
            f"only peers of one network have reached {PUBLIC} so far: 2 networks must, or a peer "
            "of your bootstrap list",
        ),
    ],
)
def test_an_unreached_peer_says_why_and_what_follows(report: ReachReport, why: str) -> None:
    assert report.state is ReachState.UNREACHED
    assert report.text == f"nobody can reach you, because {why}; so your donation does nothing yet"
    helper = replace(report, is_donating=False)
    assert helper.text == f"nobody can reach you, because {why}; so you help nobody yet"
    serving = replace(report, always="of --serve")
    assert serving.text == f"serves because of --serve; nobody has reached it: {why}"


def test_neighbours_do_not_do_for_a_network_of_strangers() -> None:
    report = replace(NOBODY, confirmed=(LAN,), does_local_count=False, problem=BLOCKED)
    assert not report.is_enough
    assert report.text.startswith("nobody on the internet can reach you, because peer …cBAWPiTpER")
    assert report.text.endswith(
        f"does nothing yet (reachable in the local network at {LAN}, from the internet not so far)"
    )
    assert replace(report, confirmed=(PUBLIC, LAN)).is_enough


def test_a_peer_that_serves_whatever_happens_says_the_truth_too() -> None:
    report = replace(NOBODY, always="of --serve", confirmed=(PUBLIC,))
    assert report.text == f"serves because of --serve; reachable from the internet at {PUBLIC}"


def test_what_explains_most_is_told() -> None:
    silent, busy = Problem(BOB, None), Problem(BOB, Outcome.BUSY, PUBLIC)
    assert silent.worth < busy.worth < BLOCKED.worth
    assert BLOCKED.is_farther_than(LAN)
    assert not BLOCKED.is_farther_than(PUBLIC)
    assert not silent.is_farther_than(LOOPBACK)


def test_a_line_is_printed_when_something_has_changed() -> None:
    assert NOBODY.gist == replace(NOBODY, n_peers=3).gist == NOTHING_YET
    gists = [
        NOBODY.gist,
        replace(NOBODY, problem=BLOCKED).gist,
        replace(NOBODY, half_confirmed=(PUBLIC,)).gist,
        replace(NOBODY, confirmed=(LAN,)).gist,
        replace(NOBODY, confirmed=(LAN,), does_local_count=False).gist,
        replace(NOBODY, confirmed=(PUBLIC,)).gist,
    ]
    assert len(set(gists)) == len(gists)
    reached = replace(NOBODY, confirmed=(PUBLIC,), problem=BLOCKED)
    assert reached.gist == gists[-1], "a reached peer's problems are not news"
