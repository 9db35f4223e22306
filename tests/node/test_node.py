"""A real peer in this process, seen through its API and its status; requests that come early."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from tests.dht.donating import identity_of
from tests.router.test_router import FixedRoutes
from tokenplace.cli.processes import LOOPBACK
from tokenplace.dht.bootstrap import BootstrapList
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import ConfigError, ConnectionLost, SearchIncomplete, first_error
from tokenplace.node.donating import Donations
from tokenplace.node.donation import Donation
from tokenplace.node.network import may_dial_private, reach_policy, why_nobody
from tokenplace.node.node import START_WAIT_S, LateRoutes, Node, open_node
from tokenplace.node.proving import ReachPolicy
from tokenplace.node.status import status_of
from tokenplace.node.trust_file import TrustFile
from tokenplace.peer.adverts import DonorState
from tokenplace.router.demand import Demand
from tokenplace.router.policy import Candidate
from tokenplace.settings import Settings

NOW = 1_800_000_000.0
FRIEND_ID = identity_of("friend").peer_id
ALICE = Candidate("alice", "a" * 64, "", 0, 0, 1.0, 1.0, 0.1, True)
STATUS_KEYS = {
    *("version", "pid", "home", "network", "uptime_s", "is_serving", "peer_id", "addresses"),
    *("reachability", "api", "join", "connections", "routing_table", "announced", "exchanges"),
    *("models", "donors", "requests", "trust"),
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tp-"))
    (folder / "bootstrap_nodes.txt").write_text("")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home, network="test", listen=(LOOPBACK,), api_port=0)


# ---------------------------------------------------------------- requests that come early


async def test_a_request_waits_for_a_starting_peer_but_not_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    routes = LateRoutes()
    with pytest.raises(SearchIncomplete, match="still starting") as caught:
        await routes.find("tiny", Demand())
    assert trio.current_time() == START_WAIT_S
    assert caught.value.retry_after_s


async def test_a_request_goes_on_as_soon_as_the_routes_are_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    routes, real = LateRoutes(), FixedRoutes()
    routes.failed(ALICE, ConnectionLost())  # of nothing yet, and nobody minds
    async with trio.open_nursery() as nursery:
        nursery.start_soon(routes.find, "tiny", Demand())
        await trio.sleep(1)
        routes.arrive(real)
    assert trio.current_time() == 1
    routes.failed(ALICE, ConnectionLost())
    assert [donor for donor, _ in real.failures] == ["alice"]


# ---------------------------------------------------------------- a running peer


async def test_a_peer_that_serves_says_what_it_is(settings: Settings) -> None:
    said: list[str] = []
    async with open_node(settings, said.append) as node:
        status = status_of(node, node.started_at + 5)
        async with httpx.AsyncClient() as client:
            health = await client.get(f"{node.api_url}/health")
        transport = httpx.AsyncHTTPTransport(uds=str(settings.control_socket))
        async with httpx.AsyncClient(transport=transport) as client:
            seen = (await client.get("http://peer/status")).json()
    assert health.status_code == 200
    assert set(status) == STATUS_KEYS == set(seen)
    assert json.loads(json.dumps(status)) == status
    assert status["uptime_s"] == 5
    assert status["addresses"][0].endswith(f"/p2p/{status['peer_id']}")
    assert status["join"]["state"] == "alone", "its own two halves are no network"
    assert status["connections"] == []
    assert "no peer is connected" in status["reachability"]["text"]
    assert status["announced"] is None
    assert any("no peer known" in line for line in said)
    assert not settings.control_socket.exists()


async def test_a_running_peer_heeds_a_change_of_trust_at_once(settings: Settings) -> None:
    file = TrustFile(settings.home)
    async with open_node(settings, lambda line: None) as node:
        assert status_of(node, NOW)["trust"]["peers"] == {}
        file.add(FRIEND_ID, "laptop")
        assert status_of(node, NOW)["trust"]["peers"] == {FRIEND_ID: "laptop"}
        file.path.write_text("{")
        trust = status_of(node, NOW)["trust"]
    assert (trust["tools_from"], trust["peers"]) == ("trusted", {})
    assert "is damaged" in trust["problem"]
    with pytest.raises((ConfigError, ExceptionGroup)) as caught:
        async with open_node(settings, lambda line: None):
            pass
    assert str(file.path) in str(first_error(caught.value))


async def test_the_same_home_is_the_same_peer(settings: Settings) -> None:
    ids = []
    for _ in range(2):
        async with open_node(settings, lambda line: None) as node:
            ids.append(status_of(node, NOW)["peer_id"])
    assert ids[0] == ids[1]
    assert (settings.home / "identity.key").stat().st_mode & 0o777 == 0o600


async def test_peers_see_each_other(settings: Settings, home: Path) -> None:
    other_home = home / "other"
    other_home.mkdir()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_node(settings, lambda line: None))
        addr = status_of(node, NOW)["addresses"][0]
        other = await stack.enter_async_context(
            open_node(replace(settings, home=other_home, bootstrap=(addr,)), lambda line: None)
        )
        with trio.fail_after(30):
            for peer in (node, other):  # each has the other dial it back, and serves then
                assert peer.joiner is not None
                await peer.joiner.wait_joined()
        status, peer_id = status_of(node, NOW), status_of(other, NOW)["peer_id"]
    assert peer_id in {c["peer_id"] for c in status["connections"]}
    assert status["reachability"]["state"] == "this_machine"
    assert status["reachability"]["addresses"] == [addr]
    assert status["join"]["state"] == "joined"


async def test_a_peer_that_only_asks_needs_nobody_to_reach_it(settings: Settings) -> None:
    async with open_node(replace(settings, listen=()), lambda line: None) as node:
        status = status_of(node, NOW)
    assert status["peer_id"] is None
    assert status["reachability"]["text"].startswith("asks only")
    assert not (settings.home / "identity.key").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bootstrap": ("nonsense",)}, "nonsense"),
        ({"listen": ("/ip4/127.0.0.1/udp/1",)}, "not an address"),
        ({"listen": (), "has_api": False}, "nothing to do"),
    ],
)
async def test_what_cannot_work_ends_the_start_with_its_reason(
    settings: Settings, change: dict[str, object], problem: str
) -> None:
    with pytest.raises((ConfigError, ExceptionGroup)) as caught:
        async with open_node(replace(settings, **change), lambda line: None):  # type: ignore[arg-type]
            pass
    error = first_error(caught.value)
    assert isinstance(error, ConfigError)
    assert problem in error.detail
    assert not settings.control_socket.exists()


async def test_a_peer_that_stops_says_so_to_donors_and_apps(settings: Settings) -> None:
    async with open_node(settings, lambda line: None) as node:
        assert node.all_donations is not None
        assert node.all_donations.load().state is DonorState.ACCEPTING
        await node.stop()
        assert node.all_donations.load().state is DonorState.FINISHING
        async with httpx.AsyncClient() as client:
            question = {"model": "tiny", "prompt": "One,"}
            answer = await client.post(f"{node.api_url}/completions", json=question)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "stopping"


# ---------------------------------------------------------------- words


FRIEND = PeerAddrs("alice", ("/ip4/1.1.1.1/tcp/4010",))
NEIGHBOUR = PeerAddrs("alice", ("/ip4/192.168.1.7/tcp/4010",))
MYSELF = PeerAddrs("me", ("/ip4/1.1.1.1/tcp/4010",))


@pytest.mark.parametrize(
    ("peers", "serve", "always", "does_local_count", "trusted"),
    [
        ([], False, "", True, set()),
        ([FRIEND], False, "", False, {"alice"}),
        ([NEIGHBOUR], False, "", True, {"alice"}),
        ([FRIEND], True, "of --serve", False, {"alice"}),
        ([FRIEND, MYSELF], False, "a file names it", False, {"alice"}),
        ([MYSELF], False, "a file names it", True, set()),
    ],
)
def test_what_a_peer_takes_for_being_reached(
    settings: Settings,
    peers: list[PeerAddrs],
    serve: bool,
    always: str,
    does_local_count: bool,
    trusted: set[str],
) -> None:
    policy = reach_policy(
        replace(settings, serve=serve), BootstrapList(tuple(peers), "a file"), "me", "asker"
    )
    assert policy == ReachPolicy(
        always, does_local_count, frozenset(trusted), frozenset({"me", "asker"}), False
    )


def test_a_peer_that_is_starting_says_so(settings: Settings) -> None:
    node = Node(settings, NOW)
    status = status_of(node, NOW)
    assert set(status) == STATUS_KEYS
    assert status["join"]["state"] == "starting"
    assert status["is_serving"]
    assert why_nobody(node) == ""
    node.all_donations = Donations([Donation("tiny-model")])
    assert why_nobody(node) == "This peer is still loading tiny-model."


@pytest.mark.parametrize(
    ("addr", "may"),
    [("/ip4/192.168.1.7/tcp/4010", True), ("/ip4/1.1.1.1/tcp/4010", False)],
)
def test_who_joins_through_a_private_address_is_in_that_network(
    settings: Settings, addr: str, may: bool
) -> None:
    bootstrap = BootstrapList((PeerAddrs("alice", (addr,)),), "test")
    assert may_dial_private(settings, bootstrap) is may
    assert may_dial_private(replace(settings, allow_private=True), bootstrap)
