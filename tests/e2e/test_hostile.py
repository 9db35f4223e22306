"""Attackers and bad luck against running peers. Each test leaves them as it found them."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.e2e.attacks import (
    GARBAGE,
    MULTISTREAM,
    NOISE,
    Forge,
    Target,
    connect_and_leave,
    events_in,
    exchange,
    framed,
    open_attacker,
    refusal_in,
    requests_abandoned,
    requests_left_open,
    sockets_left_open,
    streams_without_protocol,
    wrong_frames,
    wrong_protocols,
    wrong_queries,
    wrong_questions,
)
from tests.e2e.bad_http import LARGEST_BODY, bad_requests, body_with, raw_post
from tests.e2e.bystanders import TIMEOUT_S, ask, bystander, nobody_notices
from tests.e2e.liars import (
    Liar,
    Lie,
    flood,
    garbage,
    huge_refusal,
    open_liar,
    replayed,
    tampered,
    truncated,
)
from tests.e2e.network import MODEL, Network, open_network, wait_for, workers_of
from tokenplace.cli.processes import PeerProcess
from tokenplace.errors import ErrorCode
from tokenplace.generation import Finished
from tokenplace.peer.host import PeerHost
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.wire import FRAME_LENGTH, GENERATE_PROTOCOL
from tokenplace.sealing.keys import KeyRing

pytestmark = pytest.mark.slow

RSS_SLACK_BYTES = 24 << 20  # allocators keep some of what a burst needed
FDS_SLACK = 2  # the peers' own business: a status being asked, a connection being renewed


@dataclass(frozen=True)
class Calm:
    """How much a process held before anybody attacked it."""

    peer: PeerProcess
    pid: int
    rss_bytes: int
    n_fds: int
    worker_pids: frozenset[int]

    @classmethod
    def of(cls, peer: PeerProcess) -> Calm:
        process = psutil.Process(peer.process.pid)
        workers = frozenset(worker.pid for worker in workers_of(peer))
        return cls(peer, process.pid, process.memory_info().rss, process.num_fds(), workers)

    def has_returned(self) -> bool:
        process = psutil.Process(self.pid)
        is_small: bool = process.memory_info().rss <= self.rss_bytes + RSS_SLACK_BYTES
        has_closed: bool = process.num_fds() <= self.n_fds + FDS_SLACK
        return is_small and has_closed


@pytest.fixture(scope="module")
def network(short_folder: Path, tiny_model: Path) -> Iterator[Network]:
    """A network of its own: who attacks must not slow other tests."""
    folder = short_folder / "hostile"
    folder.mkdir()
    with open_network(folder, n_donors=1) as network:
        ask(network.api)
        yield network


@pytest.fixture(scope="module")
def calm(network: Network) -> list[Calm]:
    """What everybody holds after the largest request that an honest app may send."""
    for _ in range(3):
        assert status_of(network.api_port, raw_post(network.api_port, LARGEST_BODY)) == 400
    return [Calm.of(peer) for peer in network.group.peers]


@pytest.fixture
def donor(network: Network) -> Target:
    return Target.of(network, network.donors[0])


@pytest.fixture(scope="module")
def regulars(network: Network) -> set[str]:
    """The peers that have a connection to the donor anyway."""
    status = network.status(network.donors[0])
    return {connection["peer_id"] for connection in status["connections"]}


@pytest.fixture(autouse=True)
def unharmed(network: Network, calm: list[Calm], regulars: set[str]) -> Iterator[None]:
    """After every attack: all live on, hold no more than before, and printed no traceback."""
    yield
    ask(network.api)
    # The attackers have left, so nothing may wait for a deadline of its own.
    let_go = "the donor has let go of everything"
    wait_for(lambda: is_done_with(network, regulars), let_go, within_s=20)
    for before in calm:
        wait_for(before.has_returned, f"{before.peer.name} is as small as before")
        before.peer.check()
        assert before.peer.process.pid == before.pid
        assert "Traceback" not in before.peer.output
        workers = frozenset(worker.pid for worker in workers_of(before.peer))
        assert workers == before.worker_pids, "a worker died"


def is_done_with(network: Network, regulars: set[str]) -> bool:
    """Has the donor neither a request nor a connection left but those it always has?"""
    status = network.status(network.donors[0])
    connected = {connection["peer_id"] for connection in status["connections"]}
    return connected <= regulars and not status["exchanges"]["open"]


Attack = Callable[[PeerHost, Target], Awaitable[None]]
Ask = Callable[[str], None]


def attack(network: Network, target: Target, *attacks: Attack) -> None:
    """Attack from a host of its own; while it stays connected, nobody else may notice."""

    async def run() -> None:
        async with open_attacker(target) as host:
            for begin in attacks:
                await begin(host, target)
            await trio.to_thread.run_sync(nobody_notices, network, reader)

    with bystander(network) as reader:
        trio.run(run)


# ---------------------------------------------------------------- the port


def test_garbage_on_the_port(network: Network, donor: Target) -> None:
    openings = [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\xff" * 4096,
        os.urandom(8192),
        MULTISTREAM + b"\x03\xff\xfe\n",
        MULTISTREAM + b"\xff" * 9 + b"\x7f",
        NOISE,
        NOISE + b"\x00\x20" + bytes(10),  # half of its first message
        NOISE + b"\x00\x20" + bytes(32),  # a key of zeros
        NOISE + b"\xff\xff" + bytes(65535),
    ]
    with bystander(network) as reader, sockets_left_open(donor.port, openings, n_each=6):
        connect_and_leave(donor.port, openings * 6)
        nobody_notices(network, reader)


def test_garbage_below_the_streams(network: Network, donor: Target) -> None:
    attack(network, donor, wrong_protocols, wrong_frames, streams_without_protocol)


# ---------------------------------------------------------------- requests


def test_every_bad_request_is_refused_with_its_code(donor: Target) -> None:
    async def run() -> dict[str, ErrorCode]:
        async with open_attacker(donor) as host:
            forge = await Forge.of(host, donor)
            return {
                name: refusal_in(await exchange(host, donor, GENERATE_PROTOCOL, frame))
                for name, frame in bad_frames(forge).items()
            }

    assert trio.run(run) == {
        "huge length": ErrorCode.TOO_BIG,
        "garbage": ErrorCode.BAD_FORMAT,
        "tampered": ErrorCode.BAD_FORMAT,
        "another key": ErrorCode.BAD_FORMAT,
        "another key's id": ErrorCode.UNKNOWN_KEY,
        "another donor": ErrorCode.BAD_FORMAT,
        "another network": ErrorCode.BAD_FORMAT,
        "an old epoch": ErrorCode.STALE_EPOCH,
    }


def bad_frames(forge: Forge) -> dict[str, bytes]:
    good = forge.seal_target
    [strange_key] = KeyRing.generate().public_keys()
    strange_id = (good.key.id + 1) % 256
    frame, _ = forge.frame()
    return {
        "huge length": FRAME_LENGTH.pack(0xFFFFFFFF),
        "garbage": framed(GARBAGE),
        "tampered": frame[:-100] + bytes([frame[-100] ^ 1]) + frame[-99:],
        "another key": forge.frame(to=replace(good, key=replace(strange_key, id=good.key.id)))[0],
        "another key's id": forge.frame(to=replace(good, key=replace(good.key, id=strange_id)))[0],
        "another donor": forge.frame(donor_id=throwaway_identity().peer_id_bytes)[0],
        "another network": forge.frame(network="other")[0],
        "an old epoch": forge.frame(to=replace(good, epoch=bytes(8)))[0],
    }


def test_a_replayed_request_is_answered_once(donor: Target) -> None:
    async def run() -> None:
        async with open_attacker(donor) as alice, open_attacker(donor) as thief:
            forge = await Forge.of(alice, donor)
            frame, opener = forge.frame(max_tokens=3)
            answer = await exchange(alice, donor, GENERATE_PROTOCOL, frame)
            assert isinstance(events_in(answer, opener)[-1], Finished)
            for host in (alice, thief):
                stolen = await exchange(host, donor, GENERATE_PROTOCOL, frame)
                assert refusal_in(stolen) is ErrorCode.STALE_EPOCH

    trio.run(run)


def test_requests_left_open_or_abandoned_keep_nobody_waiting(
    network: Network, donor: Target
) -> None:
    attack(network, donor, requests_left_open, requests_abandoned)


# ---------------------------------------------------------------- directory and DHT


def test_wrong_questions_to_a_donors_directory_and_dht(network: Network, donor: Target) -> None:
    attack(network, donor, wrong_questions, wrong_queries)


def test_wrong_questions_to_a_bootstrap_peer(network: Network) -> None:
    bootstrap = Target.of(network, network.group.peers[0])
    attack(network, bootstrap, wrong_protocols, wrong_questions, wrong_queries)


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
    """Ask from a peer that prefers the liars to the honest donor; how often each was asked."""

    def ask_anew(liars: Sequence[Liar]) -> None:
        with new_asker(network, liars) as api:
            ask(api)

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


@pytest.mark.parametrize(
    "lies", [(garbage, huge_refusal), (tampered, truncated), (replayed, flood)]
)
def test_who_asks_two_liars_gets_the_honest_donors_answer(
    network: Network, donor: Target, lies: tuple[Lie, Lie]
) -> None:
    assert among_liars(network, donor, lies, ask) == [1, 1]


def test_a_lie_in_mid_stream_is_an_error_event_and_an_aborted_stream(
    network: Network, donor: Target
) -> None:
    lines: list[str] = []

    def read_stream(api: str) -> None:
        asked = {"model": MODEL, "prompt": "One, two, three, four.", "stream": True}
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
    assert statuses.pop("HTTP/2") == statuses.pop("HTTP/9") == 505  # of the 5xx, the app's fault
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
