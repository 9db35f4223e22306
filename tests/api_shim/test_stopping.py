"""A process with clients of every bad kind serves the others, and ends within 5 s when told to."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.api_shim.serving import CHAT, post
from tests.conftest import ROOT
from tokenplace.cli.processes import open_peers
from tokenplace.defaults import API_MAX_CONNECTIONS

PATH = "/v1/chat/completions"
STREAM = json.dumps({**CHAT, "stream": True}).encode()
N_STALLED = 50
END_WITHIN_S = 5.0


@contextmanager
def endless_server() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, and its port."""
    command = [sys.executable, "-m", "tests.api_shim.endless"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def bad_clients(port: int, stack: ExitStack) -> None:
    """Connections that stay as they are until the stack is closed."""

    def open_one(*pieces: bytes) -> socket.socket:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for piece in pieces:
            client.sendall(piece)
        return client

    whole = post(PATH, STREAM, port)
    for _ in range(N_STALLED):
        open_one(whole)  # and reads nothing
    for _ in range(10):
        open_one()
        open_one(whole[:30])  # half a head
        open_one(whole[:-10])  # half a body
        open_one(post(PATH, b"", port, "Content-Length: 99999999"))  # refused, and stays
        open_one(b"GARBAGE\r\n\r\n")
        open_one(whole, whole, b"GET / HTTP/1.1\r\n")  # pipelined behind an endless answer
        half_closed = open_one(whole)
        half_closed.shutdown(socket.SHUT_WR)
    trickling = open_one(whole)
    trickling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    trickling.recv(100)


def test_bad_clients_are_served_beside_and_delay_no_end() -> None:
    with endless_server() as (process, port), ExitStack() as stack:
        bad_clients(port, stack)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(20):
                assert client.get("/v1/models").status_code == 200
            with client.stream("POST", PATH, json={**CHAT, "stream": True}) as answer:
                n_bytes = 0
                for piece in answer.iter_raw():
                    n_bytes += len(piece)
                    if n_bytes > 1_000_000:
                        break
            assert n_bytes > 1_000_000
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_WITHIN_S) == 0


def test_connections_without_end_delay_no_end() -> None:
    with endless_server() as (process, port), ExitStack() as stack:
        for _ in range(API_MAX_CONNECTIONS + 50):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.setblocking(False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_WITHIN_S) == 0


@asynccontextmanager
async def running_peer(folder: Path) -> AsyncIterator[tuple[trio.Process, int]]:
    """`tokenplace up`, alone in its network, and the port of its API."""
    async with open_peers(folder) as group:
        peer = await group.start("alice", "--api-port", "0", "--bootstrap", NOBODY)
        url = httpx.URL((await peer.wait(lambda status: status["api"]))["api"]["url"])
        assert url.port is not None
        yield peer.process, url.port


NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


async def test_a_peer_ends_whatever_its_apps_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("p")
    async with running_peer(folder) as (process, port):
        with ExitStack() as stack:
            await trio.to_thread.run_sync(bad_clients, port, stack)
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(END_WITHIN_S):
                assert await process.wait() == 0
    assert "Traceback" not in (folder / "alice" / "output.log").read_text("utf-8")
