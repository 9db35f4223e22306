"""Listening, ending, and the faults of Hypercorn that are worked around."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from hypercorn.trio.tcp_server import TCPServer

from tests.api_shim.serving import (
    CHAT,
    FakeCatalog,
    http_client,
    port_of,
    post,
    serving,
    wait_until,
)
from tests.fakes import EchoEngine
from tokenplace.api_shim import server
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.listen import addresses_with, listen_on, unix_listener
from tokenplace.api_shim.server import serve_api, serve_unix
from tokenplace.errors import ConfigError
from tokenplace.generation import Accepted, Event, GenerateRequest, Tokens

PATH = "/v1/chat/completions"
STREAM = json.dumps({**CHAT, "stream": True}).encode()


@dataclass
class EndlessEngine:
    """Writes large tokens for ever."""

    n_sent: int = 0
    n_running: int = 0

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.n_running += 1
        try:
            yield Accepted(bytes(32), 1, 0, 4096, 100, "tp/1", 10, 0)
            while True:
                yield Tokens(0, self.n_sent, (1,), (b"x" * 100_000,))
                self.n_sent += 1
        finally:
            self.n_running -= 1


async def open_stalled_reader(address: str, engine: EndlessEngine) -> trio.SocketStream:
    """Ask for a stream and read nothing, until that has stopped the engine."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
    await stream.send_all(post(PATH, STREAM, port_of(address)))
    n_before = -1
    with trio.fail_after(10):
        while engine.n_sent != n_before or engine.n_sent == 0:
            n_before = engine.n_sent
            await trio.sleep(0.1)
    return stream


async def test_stalled_reader_does_not_delay_the_end() -> None:
    engine = EndlessEngine()
    async with trio.open_nursery() as nursery:
        app = create_app(engine, FakeCatalog())
        port = await nursery.start(partial(serve_api, app, port=0))
        stream = await open_stalled_reader(f"http://127.0.0.1:{port}", engine)
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 3
    assert engine.n_running == 0
    await stream.aclose()


async def test_stalled_reader_is_cut_off_and_others_are_served() -> None:
    engine = EndlessEngine()
    async with serving(engine, write_timeout_s=0.5) as address:
        stream = await open_stalled_reader(address, engine)
        async with http_client(address) as client:
            assert (await client.get("/v1/health")).status_code == 200
        await wait_until(lambda: engine.n_running == 0)
        await stream.aclose()


async def test_slow_reader_is_not_cut_off() -> None:
    engine = EndlessEngine()
    async with serving(engine, write_timeout_s=1) as address:
        stream = await open_stalled_reader(address, engine)
        async with stream:
            n_stalled = engine.n_sent
            for _ in range(60):  # three seconds, three times the timeout
                await stream.receive_some(1 << 20)
                await trio.sleep(0.05)
            assert engine.n_running == 1
            assert engine.n_sent > n_stalled


async def test_connection_closes_after_a_stream_when_asked_to() -> None:
    """After Starlette's StreamingResponse, Hypercorn would keep it open for ever."""
    async with serving() as address:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        async with stream:
            await stream.send_all(post(PATH, STREAM, port_of(address), "Connection: close"))
            with trio.fail_after(5):
                data = b"".join([chunk async for chunk in stream])
    assert data.endswith(b"0\r\n\r\n")


async def test_idle_timer_runs_after_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "API_IDLE_TIMEOUT_S", 0.3)
    async with serving() as address:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        async with stream:
            for _ in range(2):  # the connection is used again before it is idle for too long
                await stream.send_all(post(PATH, STREAM, port_of(address)))
                data = b""
                while not data.endswith(b"0\r\n\r\n"):
                    data += await stream.receive_some()
            with trio.fail_after(5):
                assert await stream.receive_some() == b""


async def test_silent_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "API_IDLE_TIMEOUT_S", 0.2)
    async with serving() as address:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        async with stream:
            with trio.fail_after(5):
                assert await stream.receive_some() == b""


async def test_a_connection_too_many_gets_a_429_and_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "API_MAX_CONNECTIONS", 2)
    async with serving() as address, http_client(address) as client:
        port = port_of(address)
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        with trio.fail_after(5):
            while (answer := await client.get("/v1/health")).status_code == 200:
                pass  # until both were seen
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) > 0
        await streams[0].aclose()
        with trio.fail_after(5):
            while (await client.get("/v1/health")).status_code != 200:
                pass  # until the server has noticed
        await streams[1].aclose()


async def test_beyond_those_who_are_told_connections_are_just_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "API_MAX_CONNECTIONS", 1)
    monkeypatch.setattr(server, "API_MAX_TURNED_AWAY", 1)
    monkeypatch.setattr(server, "API_LINGER_S", 60)
    async with serving() as address:
        port = port_of(address)
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(5):
            assert (await streams[1].receive_some()).startswith(b"HTTP/1.1 429 ")
            assert await streams[2].receive_some() == b""
        for stream in streams:
            await stream.aclose()


async def test_answer_that_is_about_to_end_arrives_after_the_end_was_asked_for() -> None:
    engine = EchoEngine(piece_bytes=100, token_interval_s=0.3)
    answers: list[httpx.Response] = []
    async with trio.open_nursery() as apps, trio.open_nursery() as nursery:
        app = create_app(engine, FakeCatalog())
        port = await nursery.start(partial(serve_api, app, port=0))

        async def ask() -> None:
            async with http_client(f"http://127.0.0.1:{port}") as client:
                answers.append(await client.post(PATH, json=CHAT))

        apps.start_soon(ask)
        await wait_until(lambda: engine.n_running == 1)
        nursery.cancel_scope.cancel()
    assert [answer.status_code for answer in answers] == [200]


async def test_fault_in_one_connection_is_logged_by_type_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as address, http_client(address) as client:
        assert (await client.get("/v1/health")).status_code == 200

        async def fail(self: TCPServer) -> None:
            raise ExceptionGroup("", [ValueError("CANARY")])

        with monkeypatch.context() as patch:
            patch.setattr(TCPServer, "run", fail)
            async with http_client(address) as other:
                with pytest.raises(httpx.TransportError):
                    await other.get("/v1/health")
        assert (await client.get("/v1/health")).status_code == 200
    assert "connection dropped: ValueError" in caplog.text
    assert "CANARY" not in caplog.text


async def test_both_loopback_addresses_answer() -> None:
    async with serving() as address:
        port = port_of(address)
        for host in ("127.0.0.1", "[::1]") if has_ipv6() else ("127.0.0.1",):
            async with http_client(f"http://{host}:{port}") as client:
                assert (await client.get("/api/v1/health")).json()["status"] == "ok"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_taken_port_is_named_with_the_flag_that_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} .*--api-port"):
            listen_on(port)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_port_taken_on_ipv6_alone_is_refused_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} on ::1"):
            listen_on(port)


@pytest.mark.parametrize(
    ("address", "listened_on"),
    [
        (None, ("127.0.0.1", "::1")),
        ("127.0.0.1", ("127.0.0.1", "::1")),
        ("192.168.1.7", ("127.0.0.1", "::1", "192.168.1.7")),
        ("fd00::7", ("127.0.0.1", "::1", "fd00::7")),
        ("0.0.0.0", ("0.0.0.0", "::1")),
        ("::", ("0.0.0.0", "::")),
    ],
)
def test_loopback_is_always_listened_on(address: str | None, listened_on: tuple[str, ...]) -> None:
    assert addresses_with(address) == listened_on


def test_an_address_that_is_not_this_machines_is_named() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 cannot be opened"):
        listen_on(0, "192.0.2.1")


def test_impossible_port_is_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        listen_on(70_000)


async def test_unix_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with trio.open_nursery() as nursery:
        app = create_app(EchoEngine(), FakeCatalog())
        await nursery.start(serve_unix, app, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.get("http://peer/v1/health")
        assert answer.json()["status"] == "ok"
        with pytest.raises(ConfigError, match="in use"), unix_listener(path):
            pass
        assert path.exists()
        nursery.cancel_scope.cancel()
    assert not os.listdir(tmp_path)


def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_listener(path) as listener, socket.socket(socket.AF_UNIX) as app:
        app.connect(str(path))
        assert listener.getsockname()


@pytest.mark.parametrize("name", ["control.sock", "control.sock.new"])
def test_other_files_are_not_replaced(name: str, tmp_path: Path) -> None:
    other = tmp_path / name
    other.write_text("precious")
    refused = pytest.raises(ConfigError, match=f"{name} exists and is not a socket")
    with refused, unix_listener(tmp_path / "control.sock"):
        pass
    assert other.read_text() == "precious"
    assert os.listdir(tmp_path) == [name]


def test_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"), unix_listener(tmp_path / ("x" * 200)):
        pass
