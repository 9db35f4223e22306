"""Peers remembered over restarts: what is kept, whatever the file looks like, and finding back."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.dht.donating import (
    NETWORK,
    NOW,
    TINY_MODEL,
    identity_of,
    open_asking_peer,
    open_serving_peer,
)
from tests.peer.hosts import closed_port, wait_until
from tokenplace import defaults
from tokenplace.dht.bootstrap import FILE_NAME as BOOTSTRAP_FILE
from tokenplace.dht.bootstrap import BootstrapList, JoinState
from tokenplace.dht.known_peers import (
    FILE_NAME,
    KnownPeers,
    open_known_peers,
    open_remembering,
)
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import ConnectFailed
from tokenplace.models.names import NamedModel
from tokenplace.peer.host import PeerHost

PUBLIC, PRIVATE = "/ip4/1.1.1.1/tcp/4010", "/ip4/192.168.1.7/tcp/4010"


def peer(name: str, *addrs: str) -> PeerAddrs:
    return PeerAddrs(identity_of(name).peer_id, addrs or (PUBLIC,))


ALICE, BOB, CAROL = peer("alice"), peer("bob"), peer("carol")


def known_of(*peers: PeerAddrs, allow_private: bool = True) -> KnownPeers:
    """Peers met one second after the other."""
    known = KnownPeers(NETWORK, allow_private=allow_private)
    for number, one in enumerate(peers):
        known.note([one], NOW + number)
    return known


def reread(known: KnownPeers, network: str = NETWORK, now: float = NOW + 10) -> KnownPeers:
    read = KnownPeers(network, allow_private=True)
    read.decode(known.encode(), now)
    return read


# ---------------------------------------------------------------- what is kept


def test_the_peer_met_last_comes_first_also_after_a_restart() -> None:
    known = known_of(ALICE, BOB, CAROL)
    assert known.peers() == [CAROL, BOB, ALICE]
    assert reread(known).peers() == [CAROL, BOB, ALICE]


def test_a_peer_that_moved_is_known_where_it_is_now() -> None:
    moved = peer("alice", "/ip4/8.8.8.8/tcp/4010")
    known = known_of(ALICE, BOB, moved)
    assert known.peers() == [moved, BOB]


def test_what_was_heard_earlier_does_not_undo_what_was_heard_later() -> None:
    known = known_of(BOB, ALICE)
    known.note([peer("alice", "/ip4/8.8.8.8/tcp/4010")], NOW - 60)
    assert known.peers() == [ALICE, BOB]


def test_only_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_KNOWN_PEERS", 2)
    assert known_of(ALICE, BOB, CAROL).peers() == [CAROL, BOB]


def test_the_largest_file_can_be_read_again() -> None:
    known = KnownPeers(NETWORK, allow_private=True)
    addrs = tuple(f"/ip6/2a00:1234:1234:1234:1234:1234:1234:{n:04x}/tcp/40100" for n in range(9))
    everybody = [peer(f"peer {n}", *addrs) for n in range(defaults.MAX_KNOWN_PEERS + 1)]
    known.note(everybody, NOW)
    assert len(known.encode()) <= defaults.MAX_KNOWN_PEERS_BYTES
    assert len(reread(known).peers()) == defaults.MAX_KNOWN_PEERS
    assert all(len(one.addrs) == defaults.MAX_ADDRS for one in reread(known).peers())


def test_there_is_news_when_somebody_is_new_moved_or_was_seen_long_ago() -> None:
    known = known_of(ALICE)
    for one, after_s, is_news in (
        (ALICE, 5.0, False),
        (BOB, 6.0, True),
        (peer("alice", "/ip4/8.8.8.8/tcp/4010"), 7.0, True),
        (BOB, 6.0 + defaults.KNOWN_PEER_RENEW_S, True),
    ):
        known.is_changed = False
        known.note([one], NOW + after_s)
        assert known.is_changed is is_news


def test_this_very_peer_is_not_among_them() -> None:
    known = known_of(ALICE)
    known.leave_out(ALICE.peer_id)
    known.note([ALICE, BOB], NOW + 1)
    assert known.peers() == [BOB]


def test_private_addresses_are_kept_but_told_only_where_they_may_be_dialled() -> None:
    both = peer("bob", PUBLIC, PRIVATE)
    known = known_of(peer("alice", PRIVATE), both, allow_private=False)
    assert known.peers() == [BOB]
    assert reread(known).peers() == [both, peer("alice", PRIVATE)]


def test_names_are_not_resolved_and_nothing_undialable_is_kept() -> None:
    known = known_of(peer("alice", "/dns4/peer.example.org/tcp/4010"), peer("bob", "nonsense"))
    assert known.peers() == []


def test_nothing_but_peers_addresses_and_times_is_written() -> None:
    content = json.loads(known_of(ALICE).encode())
    assert content == {
        "version": 1,
        "network": NETWORK,
        "peers": [{"peer": ALICE.peer_id, "addrs": [PUBLIC], "seen_at": int(NOW)}],
    }


# ---------------------------------------------------------------- damage


def test_what_another_network_knows_is_left_aside() -> None:
    assert reread(known_of(ALICE), network="elsewhere").peers() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
DAMAGED_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "peer": JSON | st.just(BOB.peer_id),
        "addrs": JSON | st.just([PUBLIC]) | st.just([PUBLIC, 1, PRIVATE]),
        "seen_at": JSON | st.just(NOW) | st.just(10**400),
    },
)


@given(entries=st.lists(DAMAGED_ENTRIES | JSON, max_size=5))
def test_damaged_entries_do_not_spoil_the_whole_ones(entries: list[object]) -> None:
    content = json.loads(known_of(ALICE).encode())
    content["peers"] = [*entries, *content["peers"]]
    known = KnownPeers(NETWORK, allow_private=True)
    known.decode(json.dumps(content).encode(), NOW)
    assert ALICE in known.peers()
    assert {one.peer_id for one in known.peers()} <= {ALICE.peer_id, BOB.peer_id}
    assert all(record.seen_at <= NOW for record in known._known.values())
    reread(known)


@given(data=st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_file_holds_is_read_or_refused(data: bytes) -> None:
    known = KnownPeers(NETWORK, allow_private=True)
    with suppress(ValueError):
        known.decode(data, NOW)
    assert known.peers() == []


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\x00", b"[" * 100_000, b"{}", b"1" * 10_000, b" " * (1 << 21)],
    ids=["empty", "no text", "deep", "nothing", "number", "huge"],
)
async def test_a_damaged_file_is_said_once_and_written_anew(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    said: list[str] = []
    async with open_known(tmp_path, said) as known:
        assert known.peers() == []
        known.note([ALICE], NOW)
    [line] = said
    assert FILE_NAME in line
    assert "damaged" in line
    async with open_known(tmp_path, said) as known:
        assert known.peers() == [ALICE]
    assert len(said) == 1


def open_known(
    home: Path, said: list[str], *, from_scratch: bool = False
) -> AbstractAsyncContextManager[KnownPeers]:
    return open_known_peers(
        home,
        NETWORK,
        allow_private=True,
        from_scratch=from_scratch,
        say=said.append,
        now=lambda: NOW + 10,
    )


async def test_what_cannot_be_read_nor_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    said: list[str] = []
    async with open_known(tmp_path, said) as known:
        known.note([ALICE], NOW)
    assert len(said) == 1
    assert "cannot be written" in caplog.text


async def test_news_is_written_while_the_peer_runs_and_nothing_without_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "KNOWN_PEERS_WRITE_S", 0.02)
    path = tmp_path / FILE_NAME
    async with open_known(tmp_path, []) as known:
        known.note([ALICE], NOW)
        await wait_until(path.exists)
        path.unlink()
        await trio.sleep(0.1)
        assert not path.exists()
        known.note([BOB], NOW)
        await wait_until(path.exists)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_from_scratch_means_that_nobody_is_known(tmp_path: Path) -> None:
    async with open_known(tmp_path, []) as known:
        known.note([ALICE], NOW)
    async with open_known(tmp_path, [], from_scratch=True) as known:
        assert known.peers() == []


def test_a_list_of_ones_own_that_names_nobody_starts_a_network() -> None:
    assert BootstrapList((), "home/" + BOOTSTRAP_FILE).starts_network
    assert not BootstrapList((), BOOTSTRAP_FILE).starts_network, "nobody runs public peers yet"
    assert not BootstrapList((ALICE,), "home/" + BOOTSTRAP_FILE).starts_network


# ---------------------------------------------------------------- finding back


async def test_servers_and_donors_that_were_talked_to_are_remembered() -> None:
    known = KnownPeers(NETWORK, allow_private=True)
    async with (
        open_serving_peer([], [TINY_MODEL]) as donor,
        open_serving_peer([donor.addr]) as server,
        open_asking_peer([server.addr]) as asker,
        open_remembering(known, asker.kad, asker.finder),
    ):
        await asker.finder.find([NamedModel(TINY_MODEL.name)])
        await wait_until(lambda: asker.kad.n_peers() == 2)
        await wait_until(lambda: asker.finder.known())
    assert {one.peer_id for one in known.peers()} == {donor.host.peer_id, server.host.peer_id}


async def test_a_donor_that_left_right_after_it_was_met_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "KNOWN_PEERS_NOTE_S", 3600)
    known = KnownPeers(NETWORK, allow_private=True)
    async with (
        open_serving_peer() as server,
        open_asking_peer([server.addr]) as asker,
        open_remembering(known, asker.kad, asker.finder),
    ):
        async with open_serving_peer([server.addr], [TINY_MODEL]) as donor:
            await wait_until(lambda: asker.finder.met(), timeout_s=10)
        await wait_until(lambda: not asker.finder.known())
    assert donor.host.peer_id in {one.peer_id for one in known.peers()}


async def test_without_any_bootstrap_peer_a_remembered_one_is_joined_and_asked() -> None:
    dead = f"/ip4/127.0.0.1/tcp/{closed_port()}/p2p/{ALICE.peer_id}"
    async with AsyncExitStack() as stack:
        donor = await stack.enter_async_context(open_serving_peer([], [TINY_MODEL]))
        plain = tuple(addr.partition("/p2p/")[0] for addr in donor.host.addrs())
        remembered = [
            *(peer(f"gone {n}", f"/ip4/127.0.0.1/tcp/{closed_port()}") for n in range(20)),
            PeerAddrs(donor.host.peer_id, plain),
        ]
        for bootstrap in ([], [dead]):
            known = known_of(*remembered)
            async with open_asking_peer(bootstrap, known.peers) as asker:
                assert asker.joiner.status().state is JoinState.JOINING
                with trio.fail_after(5):
                    found = await asker.finder.find([NamedModel(TINY_MODEL.name)])
                assert [record.peer_id for record in found.donors] == [donor.host.peer_id]
                await asker.joiner.wait_joined()
                assert asker.joiner.status().state is JoinState.JOINED


async def test_the_status_says_who_was_asked_and_blames_bootstrap_peers_alone() -> None:
    nowhere = f"/ip4/127.0.0.1/tcp/{closed_port()}"
    gone = [peer(f"gone {n}", nowhere) for n in range(3)]
    async with open_asking_peer([], known_of(*gone).peers) as asker:
        assert asker.joiner.status().text == "joining through peers known from before"
        await wait_until(lambda: asker.joiner._n_rounds)
        status = asker.joiner.status()
        assert status.text == "joining: no answer yet from 3 peers known from before"
        assert (status.state, status.reasons) == (JoinState.JOINING, {})
    addr = f"{nowhere}/p2p/{ALICE.peer_id}"
    async with open_asking_peer([addr], known_of(ALICE, *gone).peers) as asker:
        await wait_until(lambda: asker.joiner._n_rounds)
        status = asker.joiner.status()
        assert "1 peer in test and 3 peers known from before" in status.text
        assert set(status.reasons) == {ALICE.peer_id}


async def test_each_round_asks_the_latest_and_some_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def connect(self: object, peer_id: str, addrs: object, **how: object) -> None:
        asked.append(peer_id)
        raise ConnectFailed

    monkeypatch.setattr(PeerHost, "connect", connect)
    gone = [peer(f"gone {n}") for n in range(100)]
    async with open_asking_peer([], known_of(*gone).peers) as asker:
        await wait_until(lambda: asker.joiner._n_rounds)
    latest = [one.peer_id for one in reversed(gone)][: defaults.JOIN_REMEMBERED // 2]
    assert set(latest) <= set(asked)
    assert len(set(asked)) == defaults.JOIN_REMEMBERED
