"""How a status reads, and which address is handed to friends."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rich.console import Console

from tokenplace.cli.status import farthest, print_status
from tokenplace.node.addresses import short

ALICE = "12D3KooWSPpe5mwtL8KmqMWKucAp9YL7JkwvFSn3FrbDnL1bLGD2"
BOB = "12D3KooWMvrQ1xxSLrqjdvugEBADAhgW4tT2VmaVpjcBAWPiTpER"
LOOPBACK = f"/ip4/127.0.0.1/tcp/4010/p2p/{ALICE}"
LAN = f"/ip4/192.168.1.7/tcp/4010/p2p/{ALICE}"
PUBLIC = f"/ip4/1.1.1.1/tcp/4010/p2p/{ALICE}"

FULL: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 7,
    "home": "/home/[alice]/tokenplace",
    "network": "main",
    "uptime_s": 18_600.0,
    "is_serving": True,
    "peer_id": ALICE,
    "addresses": [PUBLIC, LAN],
    "reachability": {"state": "internet", "addresses": [PUBLIC], "text": "reachable"},
    "api": {"url": "http://127.0.0.1:5010/v1"},
    "join": {
        "state": "joining",
        "text": "joining: no answer yet from 1 peer in --bootstrap",
        "peers": [{"addr": "/ip4/1.2.3.4/tcp/1", "problem": "The donor could not be reached."}],
    },
    "connections": [{"peer_id": BOB, "remote_addr": "/ip4/9.9.9.9/tcp/5", "direction": "in"}],
    "routing_table": {"n_peers": 12},
    "announced": {"n_keys": 5, "n_confirmed": 4},
    "exchanges": {
        "open": 3,
        "running": 2,
        "queued": 1,
        "ranges": 2,
        "refused": 5,
        "shed": 4,
        "served": 41,
        "failed": 2,
        "cancelled": 3,
        "tokens": 9001,
    },
    "models": [
        {
            "name": "tiny-model",
            "artifact": "a" * 64,
            "architecture": "llama",
            "quantization": "Q4_K_M",
            "n_params": 134_515_008,
            "state": "offered",
            "progress": 1.0,
            "reason": "",
            "memory_bytes": 2_480_000_000,
            "n_ctx": 4096,
            "n_slots": 8,
            "n_running": 2,
            "n_queued": 7,
            "prefill_tps": 900.0,
            "decode_tps": 81.6,
            "restarts": 1,
            "unconfined": ["network", "files"],
        },
        {
            "name": "broken.gguf",
            "artifact": None,
            "architecture": None,
            "quantization": None,
            "n_params": None,
            "state": "failed",
            "progress": 0.0,
            "reason": "it is not a [GGUF] file.",
            "memory_bytes": None,
            "n_ctx": None,
            "n_slots": None,
            "n_running": 0,
            "n_queued": 0,
            "prefill_tps": 0.0,
            "decode_tps": 0.0,
            "restarts": 0,
            "unconfined": [],
        },
    ],
    "donors": [
        {
            "peer_id": BOB,
            "models": ["tiny-model", "big-model"],
            "rtt_ms": 31.7,
            "state": "accepting",
            "queue": 4,
            "prefill_tps": 10.0,
            "decode_tps": 22.0,
            "live_age_s": 4.0,
            "is_failed": False,
            "standing": "cooling",
            "ready_in_s": 12.4,
            "n_asked": 0,
            "measured_tps": 18.7,
        },
        {
            "peer_id": ALICE,
            "models": ["tiny-model"],
            "rtt_ms": None,
            "state": None,
            "queue": None,
            "prefill_tps": None,
            "decode_tps": None,
            "live_age_s": None,
            "is_failed": True,
            "standing": "ready",
            "ready_in_s": 0.0,
            "n_asked": 2,
            "measured_tps": None,
        },
    ],
    "requests": [],
    "trust": {"tools_from": "trusted", "peers": {ALICE: "laptop", BOB: ""}, "problem": ""},
}


def rendered(status: dict[str, Any], *, with_requests: bool = False) -> list[str]:
    """The words of each line."""
    screen = Console(highlight=False, soft_wrap=True, width=240)
    with screen.capture() as capture:
        print_status(screen, status, with_requests=with_requests)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_everything_is_shown() -> None:
    lines = rendered(FULL)
    for line in (
        f"peer {ALICE}",
        "home /home/[alice]/tokenplace",
        "network main: joining: no answer yet from 1 peer in --bootstrap",
        "/ip4/1.2.3.4/tcp/1: The donor could not be reached.",
        "up 5 h 10 min",
        "API http://127.0.0.1:5010/v1",
        f"addresses {PUBLIC}",
        LAN,
        "reachability reachable",
        "routing table 12 peers",
        "connections 1",
        f"from {short(BOB)} /ip4/9.9.9.9/tcp/5",
        "tool calls from this peer's own models and trusted donors only",
        f"{ALICE} laptop",
        BOB,
        "announced 5 keys in the DHT, 4 confirmed by others",
        "served 41 answers, 9001 tokens; 3 open, 2 failed, 3 cancelled",
        "load 2 running and 1 queued, from 2 address ranges; since the start 5 refused as busy, "
        "4 shed from the queue",
        "tiny-model Q4_K_M offered, 1 restart 2.5 GB 4096 82 2 of 8 7",
        "broken.gguf ? failed ? ? ? 0 of ? 0",
        "tiny-model: its process may make connections, open files: "
        "this system cannot prevent it, or its GPU needs it",
        "broken.gguf: it is not a [GGUF] file.",
        f"{short(BOB)} tiny-model, big-model 32 ms 4 22 19 4 s ago busy, rests 12 s",
        f"{short(ALICE)} tiny-model ? ? ? ? did not answer ready; 2 asked",
    ):
        assert line in lines
    assert "latest requests" not in lines


def test_hashing_shows_how_far_it_is() -> None:
    status = copy.deepcopy(FULL)
    status["models"][0] |= {"state": "hashing", "progress": 0.437, "restarts": 0}
    assert [line for line in rendered(status) if line.startswith("tiny-model Q4_K_M hashing 44%")]


def test_requests_are_shown_when_asked_for() -> None:
    assert "no requests yet" in rendered(FULL, with_requests=True)
    assert "no requests yet" not in rendered(FULL)


def test_a_peer_that_has_nothing_yet_says_so() -> None:
    empty = copy.deepcopy(FULL) | {
        "peer_id": None,
        "addresses": [],
        "api": None,
        "join": {"state": "starting", "text": "starting", "peers": []},
        "connections": [],
        "announced": None,
        "exchanges": {},
        "models": [],
        "donors": [],
        "requests": [],
    }
    lines = rendered(empty, with_requests=True)
    assert "peer starting" in lines
    assert "network main: starting" in lines
    assert "API none" in lines
    assert "donors known none yet" in lines
    assert not [line for line in lines if line.startswith(("announced", "served", "models"))]
    asks_only = rendered(empty | {"is_serving": False})
    assert "peer asks only, under a throw-away identity" in asks_only


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        ([LOOPBACK, LAN, PUBLIC], PUBLIC),
        ([LOOPBACK, LAN], LAN),
        ([LOOPBACK], LOOPBACK),
        (
            [f"/dns4/peer.example/tcp/1/p2p/{ALICE}", PUBLIC],
            f"/dns4/peer.example/tcp/1/p2p/{ALICE}",
        ),
    ],
)
def test_friends_get_the_address_that_reaches_farthest(addresses: list[str], best: str) -> None:
    assert farthest(addresses) == best


def test_ids_are_told_apart_by_their_ends() -> None:
    assert short(BOB) == f"…{BOB[-10:]}"
    assert short("self") == "self"
