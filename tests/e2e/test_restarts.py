"""Peers that come back to a network which has lost its bootstrap peers meanwhile."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.network import MODEL
from tokenplace import defaults
from tokenplace.cli.processes import PeerGroup, PeerProcess, Status, is_offering, open_peers
from tokenplace.dht.kad import open_kad
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity

pytestmark = pytest.mark.slow
QUESTION = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3}
ANSWER_WITHIN_S = 5.0  # of the requester's start, with its API up


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def start_donor(peers: PeerGroup, bootstrap: str, port: int) -> PeerProcess:
    """A donor that is found at the same address whenever it runs."""
    listen = ("--listen", f"/ip4/127.0.0.1/tcp/{port}", "--no-api", "--threads", "1")
    return await peers.start("donor", "--donate", MODEL, *listen, "--bootstrap", bootstrap)


async def end(peer: PeerProcess) -> None:
    peer.process.terminate()
    assert await peer.process.wait() == 0


def knows_a_donor(status: Status) -> bool:
    return any(not donor["is_failed"] for donor in status["donors"])


def is_announced(status: Status) -> bool:
    return bool(status["announced"]) and status["announced"]["n_confirmed"] > 0


def is_remembered(peer: PeerProcess, peer_id: str) -> bool:
    content = json.loads((peer.home / "known_peers.json").read_text("utf-8"))
    return peer_id in {known["peer"] for known in content["peers"]}


async def announced_donors(bootstrap: str) -> set[str]:
    """Whom the DHT names today."""
    named: set[str] = set()
    async with (
        open_host(throwaway_identity()) as host,
        open_kad(host, network=defaults.NETWORK, server=False) as kad,
    ):
        peer_id = bootstrap.rpartition("/")[2]
        assert await kad.join([(peer_id, [bootstrap])]) == 1
        for key in keys_to_search(defaults.NETWORK, Kind.DONORS, "", time.time()):
            named |= {provider.peer_id for provider in (await kad.find_providers(key)).providers}
    return named


async def test_without_any_bootstrap_peer_those_who_met_before_find_each_other(
    short_folder: Path, tiny_model: Path
) -> None:
    folder = short_folder / "restarts"
    folder.mkdir()
    async with open_peers(folder) as peers, httpx.AsyncClient(timeout=60) as client:
        bootstrap = await peers.start_bootstrap()
        port = free_port()
        donor = await start_donor(peers, bootstrap, port)
        donor_id = (await donor.wait(is_offering))["peer_id"]
        asker, api = await peers.start_asker("asker", bootstrap, 0)
        await asker.wait(knows_a_donor)
        assert (await client.post(f"{api}/completions", json=QUESTION)).status_code == 200

        await donor.wait(is_announced)
        assert await announced_donors(bootstrap) == {donor_id}
        await end(donor)
        assert await announced_donors(bootstrap) == set(), "it took its records back"
        await asker.wait(lambda status: not knows_a_donor(status))
        await end(asker)
        peers.peers[0].process.kill()
        await peers.peers[0].process.wait()
        assert is_remembered(asker, donor_id)

        donor = await start_donor(peers, bootstrap, port)
        await donor.wait(is_offering)
        asker, api = await peers.start_asker("asker", bootstrap, 0)
        asked_at = time.monotonic()
        answer = await client.post(f"{api}/completions", json=QUESTION)
        took_s = time.monotonic() - asked_at
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tokenplace-accepted-by"] == donor_id
        assert took_s < ANSWER_WITHIN_S, "promised; usually well under one second"
        print(f"an answer {took_s:.2f} s after the restarted peer's API was up")
