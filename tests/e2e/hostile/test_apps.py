"""Attacks that apps could notice, or that come from apps. Each test leaves all peers as it found
them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress

import httpx
import pytest
import trio

from tests.e2e.hostile.attacks import (
    Forge,
    Target,
    connect_and_leave,
    open_attacker,
    requests_abandoned,
    requests_left_open,
    sockets_left_open,
)
from tests.e2e.hostile.bad_http import LARGEST_BODY, bad_requests, body_with, raw_post
from tests.e2e.hostile.bystanders import TIMEOUT_S, ask, bystander, nobody_notices
from tests.e2e.hostile.calm import Calm
from tests.e2e.hostile.liars import (
    Liar,
    Lie,
    flood,
    garbage,
    open_liar,
    tampered,
)
from tests.e2e.network import MODEL, Network
from tokenplace.peer.host import PeerHost

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def calm(network: Network) -> list[Calm]:
    """What everybody holds after the largest request that an honest app may send."""
    for _ in range(3):
        assert status_of(network.api_port, raw_post(network.api_port, LARGEST_BODY)) == 400
    return Calm.of_all(network)


@pytest.fixture
def donor(network: Network) -> Target:
    return Target.of(network, network.donors[0])


@pytest.fixture(autouse=True)
def unharmed(network: Network, calm: list[Calm]) -> Iterator[None]:
    """After every attack: all live on, hold no more than before, and printed no traceback."""
    yield
    ask(network.api)
    for before in calm:
        before.check_unharmed()


Attack = Callable[[PeerHost, Target], Awaitable[None]]
Ask = Callable[..., None]  # with the API, and whom to ask first


def attack(network: Network, target: Target, *attacks: Attack) -> None:
    """Attack from a host of its own; while it stays connected, nobody else may notice."""

    async def run() -> None:
        async with open_attacker(target) as host:
            for begin in attacks:
                await begin(host, target)
            await trio.to_thread.run_sync(nobody_notices, network, reader)

    with bystander(network) as reader:
        trio.run(run)


# ---------------------------------------------------------------- requests


def test_requests_left_open_or_abandoned_keep_nobody_waiting(
    network: Network, donor: Target
) -> None:
    attack(network, donor, requests_left_open, requests_abandoned)


# ---------------------------------------------------------------- donors that lie


@contextmanager
def new_asker(network: Network, liars: Sequence[Liar]) -> Iterator[str]:
    """The API of a peer that has just started, and knows the liars and the honest donor."""
    name = f"asker-{len(network.group.peers)}"
    peer, api = network.run(network.group.start_asker, name, network.bootstrap, 0)
    try:
        # Who has told nothing of its speed yet is not preferred.
        liar_ids = {liar.host.peer_id for liar in liars}
        network.run(
            peer.wait, lambda s: liar_ids <= {d["peer_id"] for d in s["donors"] if d["decode_tps"]}
        )
        network.run(peer.wait, lambda s: len(s["donors"]) > len(liars))
        yield api
    finally:
        peer.process.kill()
        assert "Traceback" not in peer.output


def among_liars(network: Network, donor: Target, lies: Sequence[Lie], ask: Ask) -> list[int]:
    """Ask from a peer that is to ask the liars before the honest donor; how often each was."""

    def ask_anew(liars: Sequence[Liar]) -> None:
        with new_asker(network, liars) as api:
            ask(api, *(liar.host.peer_id for liar in liars))

    async def run() -> list[int]:
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(open_attacker(donor))
            [model] = (await Forge.of(host, donor)).record.offer.models
            liars = [
                await stack.enter_async_context(open_liar(network.bootstrap, model, lie))
                for lie in lies
            ]
            await trio.to_thread.run_sync(ask_anew, liars)
            return [liar.n_asked for liar in liars]

    return trio.run(run)


def test_who_asks_two_liars_gets_an_honest_donors_answer(network: Network, donor: Target) -> None:
    assert among_liars(network, donor, [garbage, flood], ask) == [1, 1]


def test_a_lie_in_mid_stream_is_an_error_event_and_an_aborted_stream(
    network: Network, donor: Target
) -> None:
    lines: list[str] = []

    def read_stream(api: str, liar: str) -> None:
        asked: dict[str, object] = {"model": MODEL, "prompt": "One, two, three, four."}
        asked |= {"stream": True, "provider": {"order": [liar]}}
        with (
            httpx.Client(timeout=TIMEOUT_S) as client,
            client.stream("POST", f"{api}/completions", json=asked) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            lines.extend(response.iter_lines())

    among_liars(network, donor, [tampered], read_stream)
    assert '"text"' in lines[0]
    assert '"protocol_error"' in lines[-2]
    assert "data: [DONE]" not in lines


# ---------------------------------------------------------------- the local API


def test_malformed_http_is_refused_and_the_next_request_is_served(network: Network) -> None:
    port = network.api_port
    statuses = {name: status_of(port, request) for name, request in bad_requests(port)}
    # Of the 5xx, the app's fault.
    assert statuses.pop("HTTP/2") == statuses.pop("HTTP/9") == 505
    assert statuses.pop("proxy") == 501
    wrong = {name: s for name, s in statuses.items() if s is not None and not 400 <= s < 500}
    assert not wrong, "neither 4xx nor a closed connection"
    assert len(statuses) > 35


def status_of(port: int, request: bytes) -> int | None:
    """The status of the answer to these bytes; None if the connection just ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        answer = b""
        with suppress(ConnectionError):  # refused before it was read
            connection.sendall(request)
        with suppress(ConnectionError):
            while b"\r\n" not in answer and (data := connection.recv(4096)):
                answer += data
    return int(answer.split()[1]) if answer else None


def test_apps_that_dawdle_or_leave_keep_nobody_waiting(network: Network) -> None:
    port = network.api_port
    openings = [
        b"",
        b"POST /v1/chat/comp",
        raw_post(port)[:-5],
        raw_post(port, b"", add=("Content-Length: 4000000",)),
        raw_post(port, body_with("max_tokens", "3000")),  # and the answer is never read
    ]
    with bystander(network) as reader, sockets_left_open(port, openings[:4], n_each=20):
        connect_and_leave(port, openings * 20)
        nobody_notices(network, reader)
