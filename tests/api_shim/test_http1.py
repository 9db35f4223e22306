"""HTTP/1.1 as it goes on: 100 Continue, slow heads, pipelining, hang-ups, any pieces of bytes."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.serving import port_of, serving, wait_until
from tests.api_shim.test_malformed import BODY, GET, LENGTH, POST, bytes_of, parse
from tests.fakes import EchoEngine
from tokenplace.api_shim import guard, server
from tokenplace.api_shim.head import StrictConnection


async def test_100_continue_is_said_to_who_is_let_in() -> None:
    engine = EchoEngine()
    head = POST + f"Expect: 100-continue|Content-Length: {LENGTH}||"
    async with serving(engine) as address, await open_stream(address) as stream:
        port = port_of(address)
        await stream.send_all(bytes_of(head, port))
        with trio.fail_after(10):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
            await stream.send_all(BODY.encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("header", "status"),
    [("Origin: https://evil.example", 403), ("Content-Length: 99999999", 413)],
)
async def test_who_is_refused_is_not_told_to_go_on(
    header: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "API_LINGER_S", 60)  # it is not waited for
    length = "" if "Length" in header else f"Content-Length: {LENGTH}|"
    head = POST + f"Expect: 100-continue|{length}{header}||"
    async with serving() as address, await open_stream(address) as stream:
        await stream.send_all(bytes_of(head, port_of(address)))
        with trio.fail_after(10):
            got = b"".join([data async for data in stream])
    assert got.startswith(f"HTTP/1.1 {status}".encode())
    assert b" 100 " not in got


async def test_a_head_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "API_IDLE_TIMEOUT_S", 0.3)
    async with serving() as address, await open_stream(address) as stream:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drip, stream, bytes_of(GET, port_of(address)))
                got = b"".join([data async for data in stream])
                nursery.cancel_scope.cancel()
    assert got.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in got


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        for byte in data:
            await stream.send_all(bytes((byte,)))
            await trio.sleep(0.02)


async def test_pipelined_requests_are_answered_in_order() -> None:
    engine = EchoEngine(token_interval_s=0.005)
    requests = "".join(
        POST + f"Content-Length: {LENGTH}||{BODY}" + f"GET /v1/models/{n} HTTP/1.1|{{host}}|"
        for n in range(3)
    )
    async with serving(engine) as address, await open_stream(address) as stream:
        await stream.send_all(bytes_of(requests + GET + "Connection: close||", port_of(address)))
        with trio.fail_after(10):
            got = bytearray(b"".join([data async for data in stream]))
    statuses = [int(head.split()[1]) for head, _ in parse(got, is_head=False)]
    assert statuses == [200, 404, 200, 404, 200, 404, 200]
    assert len(engine.requests) == 3


async def test_hang_up_is_seen_behind_a_pipelined_request() -> None:
    engine = EchoEngine(token_interval_s=60)
    async with serving(engine) as address:
        stream = await open_stream(address)
        request = POST + f"Content-Length: {LENGTH}||{BODY}" + GET + "|"
        await stream.send_all(bytes_of(request, port_of(address)))
        await wait_until(lambda: engine.n_running == 1)
        await stream.aclose()
        await wait_until(lambda: engine.n_running == 0)


def test_what_comes_behind_the_last_request_is_not_kept() -> None:
    connection = StrictConnection()
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    while isinstance(connection.next_event(), h11.Event):
        pass
    for _ in range(100):
        connection.receive_data(bytes(10_000))
        assert connection.next_event() is h11.NEED_DATA
    assert connection.trailing_data == (b"", False)


async def open_stream(address: str) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port_of(address))


@given(
    st.lists(
        st.sampled_from(
            [
                b"GET ",
                b"/v1/models ",
                b"HTTP/1.1",
                b"\r\n",
                b"\r",
                b"\n",
                b" ",
                b":",
                b"\0",
                b"Host: a",
                b"Content-Length: 3",
                b"Transfer-Encoding: chunked",
                b"abc",
                b"0",
                b"\xff",
            ]
        ),
        min_size=1,  # no data would be the end
        max_size=30,
    ),
    st.integers(1, 64),
)
def test_any_bytes_in_any_pieces_are_a_request_or_an_error_of_the_client(
    parts: list[bytes], n_bytes: int
) -> None:
    """And the pieces change nothing: it says the same of the same bytes."""
    data = b"".join(parts)
    assert set(read_all([data])) <= {"Request", "EndOfMessage", "400", "501", "505"}
    assert read_all([data]) == read_all(
        [data[i : i + n_bytes] for i in range(0, len(data), n_bytes)]
    )


def read_all(pieces: list[bytes]) -> list[str]:
    """What a connection says of the first request: its target and whether it ends, or a status."""
    connection = StrictConnection()
    said: list[str] = []
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while isinstance(event := connection.next_event(), h11.Event):
                if not isinstance(event, h11.Data):
                    said.append(type(event).__name__)
    except h11.RemoteProtocolError as error:
        said.append(str(error.error_status_hint))
    return said
