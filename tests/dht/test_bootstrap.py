"""The list of bootstrap peers, and joining through them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.dht.donating import NETWORK, identity_of, open_joiner, open_serving_peer
from tests.peer.hosts import closed_port, open_silent_port, wait_until
from tokenplace.dht.bootstrap import (
    FILE_NAME,
    Joiner,
    JoinState,
    load_bootstrap,
    parse_bootstrap,
)
from tokenplace.dht.kad import open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import ConfigError
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity

ALICE = identity_of("alice").peer_id
BOB = identity_of("bob").peer_id
ROOT = Path(__file__).parent.parent.parent


# ---------------------------------------------------------------- the list


def test_comments_and_empty_lines_are_skipped_and_a_peers_addresses_gathered() -> None:
    text = f"""
    # our peers
    /ip4/203.0.113.7/tcp/4010/p2p/{ALICE}   # Alice's

    /dns4/peer.example.org/tcp/4010/p2p/{BOB}
    /ip6/2001:db8::1/tcp/04010/p2p/{ALICE}
    /ip4/203.0.113.7/tcp/4010/p2p/{ALICE}
    """
    assert parse_bootstrap(text, "test") == (
        PeerAddrs(ALICE, ("/ip4/203.0.113.7/tcp/4010", "/ip6/2001:db8::1/tcp/4010")),
        PeerAddrs(BOB, ("/dns4/peer.example.org/tcp/4010",)),
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/ip4/203.0.113.7/tcp/4010", "no /p2p/ peer id"),
        ("203.0.113.7:4010", "no /p2p/ peer id"),
        ("/ip4/203.0.113.7/tcp/4010/p2p/", "not a peer id"),
        ("/ip4/203.0.113.7/tcp/4010/p2p/12D3KooW...", "not a peer id"),
        ("/ip4/203.0.113.7/tcp/4010/p2p/" + ALICE[:-1], "not a peer id"),
        ("/ip4/203.0.113.7/udp/4010/quic-v1/p2p/" + ALICE, "can be dialled"),
        ("/ip4/203.0.113.7/udp/4010/p2p/" + ALICE, "can be dialled"),
        ("/ip4/203.0.113/tcp/4010/p2p/" + ALICE, "not a valid ip4 address"),
        ("/ip6/203.0.113.7/tcp/4010/p2p/" + ALICE, "not a valid ip6 address"),
        ("/onion/x/tcp/4010/p2p/" + ALICE, "not a valid onion address"),
        ("/dns4/a b/tcp/4010/p2p/" + ALICE, "not a valid dns4 address"),
        ("/ip4/203.0.113.7/tcp/0/p2p/" + ALICE, "not a TCP port"),
        ("/ip4/203.0.113.7/tcp/65536/p2p/" + ALICE, "not a TCP port"),
    ],
)
def test_an_error_names_file_and_line_and_says_what_to_do(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_bootstrap(f"# comment\n\n{line}\n", "peers.txt")
    assert caught.value.detail.startswith("peers.txt:3: ")
    assert "tokenplace peer invite" in caught.value.hint


@given(text=st.text(max_size=100) | st.text("/ip4tcdns62:.#\n1", max_size=60))
def test_any_text_is_a_list_or_an_error(text: str) -> None:
    try:
        assert isinstance(parse_bootstrap(text, "test"), tuple)
    except ConfigError as error:
        refusal = error.detail
        assert refusal.startswith("test:")


def test_flags_come_before_the_homes_file_and_that_before_the_packaged_one(tmp_path: Path) -> None:
    packaged = load_bootstrap([], tmp_path)
    assert packaged.source == FILE_NAME
    assert packaged.peers == ()  # nobody runs public peers yet

    own = tmp_path / FILE_NAME
    own.write_text(f"/ip4/203.0.113.7/tcp/4010/p2p/{ALICE}")
    assert load_bootstrap([], tmp_path).source == str(own)
    assert [peer.peer_id for peer in load_bootstrap([], tmp_path).peers] == [ALICE]

    flagged = load_bootstrap([f"/ip4/203.0.113.7/tcp/4010/p2p/{BOB}"], tmp_path)
    assert (flagged.source, flagged.peers[0].peer_id) == ("--bootstrap", BOB)

    own.write_text("# my own network\n")
    assert load_bootstrap([], tmp_path).peers == ()
    assert load_bootstrap([], tmp_path).source == str(own)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_bootstrap([], tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match=FILE_NAME):
        load_bootstrap([], tmp_path)


def test_the_packaged_list_is_the_one_at_the_top() -> None:
    assert (ROOT / "tokenplace" / FILE_NAME).resolve() == ROOT / FILE_NAME


# ---------------------------------------------------------------- joining


@asynccontextmanager
async def open_newcomer(*addrs: str) -> AsyncIterator[Joiner]:
    async with (
        open_host(throwaway_identity()) as host,
        open_kad(host, network=NETWORK, server=False) as kad,
        open_joiner(host, kad, addrs) as joiner,
    ):
        yield joiner


async def test_a_peer_that_knows_nobody_is_alone_and_says_so() -> None:
    async with open_newcomer() as joiner:
        status = joiner.status()
        assert status.state is JoinState.ALONE
        assert "names no other peer" in status.text


async def test_the_first_peer_is_joined_by_the_second() -> None:
    async with open_serving_peer() as first:
        assert first.joiner.status().state is JoinState.ALONE
        async with open_serving_peer([first.addr]):
            await wait_until(lambda: first.joiner.status().state is JoinState.JOINED)


async def test_a_dead_and_a_silent_peer_hold_nobody_up_and_are_named() -> None:
    async with open_silent_port() as silent, open_serving_peer() as alive:
        dead_addr = f"/ip4/127.0.0.1/tcp/{closed_port()}/p2p/{ALICE}"
        silent_addr = f"/ip4/127.0.0.1/tcp/{silent}/p2p/{BOB}"
        async with open_newcomer(dead_addr, silent_addr, alive.addr) as joiner:
            with trio.fail_after(3):
                await joiner.wait_joined()
            assert joiner.status().state is JoinState.JOINED
            assert joiner.status().text == "joined, 1 peer known"


async def test_joining_goes_on_until_somebody_answers() -> None:
    port = closed_port()
    identity = throwaway_identity()
    addr = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"
    async with open_newcomer(addr) as joiner:
        assert joiner.status().state is JoinState.JOINING
        await wait_until(lambda: identity.peer_id in joiner.status().reasons)
        assert "no answer yet from 1 peer in test" in joiner.status().text
        (reason,) = joiner.status().reasons.values()
        assert reason.endswith("Connection refused")
        assert "donor" not in reason
        async with (
            open_host(identity, listen=[f"/ip4/127.0.0.1/tcp/{port}"]) as host,
            open_kad(host, network=NETWORK, server=True),
        ):
            with trio.fail_after(10):
                await joiner.wait_joined()
            assert joiner.status().reasons == {}
