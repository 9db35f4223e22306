"""Who and what is kept out: web pages, wrong bodies, malformed HTTP. Always with a JSON error."""

from __future__ import annotations

import json

import pytest
import trio
from fastapi.routing import iter_route_contexts
from starlette.types import Message, Receive, Scope, Send

from tests.api_shim.serving import (
    CHAT,
    FakeCatalog,
    http_client,
    port_of,
    post,
    raw_exchange,
    serving,
)
from tests.fakes import EchoEngine
from tokenplace.api_shim import guard
from tokenplace.api_shim.access import Access
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.guard import METHODS_WITH_BODY, Guard, headers_of, refuse_by_head
from tokenplace.defaults import API_MAX_BODY_BYTES

PATH = "/v1/chat/completions"
BODY = json.dumps(CHAT).encode()
HEAD_OF_POST: Scope = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": PATH,
    "headers": [(b"host", b"localhost:5010"), (b"content-type", b"application/json")],
    "server": ("127.0.0.1", 5010),
}


def parse(answer: bytes) -> tuple[int, str | None]:
    """Status and error code."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    return status, json.loads(body)["error"]["code"] if status >= 400 else None


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("Host: evil.example:{port}", 403, "host_not_allowed"),
        ("Host: evil.example", 403, "host_not_allowed"),
        ("Host: 127.0.0.1", 403, "host_not_allowed"),
        ("Host: 127.0.0.1:1", 403, "host_not_allowed"),
        ("Host: 0.0.0.0:{port}", 403, "host_not_allowed"),
        ("Host: localhost.:{port}", 403, "host_not_allowed"),
        ("Host: localhost:{port}@evil.example", 403, "host_not_allowed"),
        ("Host: ", 403, "host_not_allowed"),
        ("Origin: https://evil.example", 403, "origin_not_allowed"),
        ("Origin: null", 403, "origin_not_allowed"),
        ("Origin: http://127.0.0.1:1", 403, "origin_not_allowed"),
        ("Origin: https://127.0.0.1:{port}", 403, "origin_not_allowed"),
        ("Sec-Fetch-Site: cross-site", 403, "origin_not_allowed"),
        ("Sec-Fetch-Site: same-site", 403, "origin_not_allowed"),
        ("Content-Type: text/plain", 415, "unsupported_media_type"),
        ("Content-Type: application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        ("Content-Type: text/plain; application/json", 415, "unsupported_media_type"),
        ("Content-Type: application/json; charset=utf-16", 415, "unsupported_media_type"),
        ("Content-Type: ", 415, "unsupported_media_type"),
        ("Content-Encoding: gzip", 415, "unsupported_media_type"),
        ("Content-Length: 99999999999", 413, "request_too_large"),
        ("Transfer-Encoding: chunked", 400, "bad_length"),
    ],
)
async def test_request_is_refused_before_any_engine(header: str, status: int, code: str) -> None:
    engine = EchoEngine()
    async with serving(engine) as address:
        port = port_of(address)
        answer = await raw_exchange(address, post(PATH, BODY, port, header.format(port=port)))
    assert parse(answer) == (status, code)
    assert b"connection: close" in answer
    assert b"access-control" not in answer.lower()
    assert engine.requests == []


@pytest.mark.parametrize(
    "header",
    [
        "Host: localhost:{port}",
        "Host: LOCALHOST:{port}",
        "Host: [::1]:{port}",
        "Origin: http://127.0.0.1:{port}",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Site: none",
        "Content-Type: Application/JSON; charset=UTF-8",
    ],
)
async def test_own_page_and_local_programs_pass(header: str) -> None:
    async with serving() as address:
        port = port_of(address)
        request = post(PATH, BODY, port, header.format(port=port), "Connection: close")
        assert parse(await raw_exchange(address, request)) == (200, None)


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE", "HEAD"])
async def test_other_sites_are_refused_on_every_method(method: str) -> None:
    async with serving() as address, http_client(address) as client:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = await client.request(method, "/v1/models", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_guard_knows_every_method_with_a_body() -> None:
    routes = iter_route_contexts(create_app(EchoEngine(), FakeCatalog()).routes)
    methods = {method for route in routes for method in route.methods or ()}
    assert methods - METHODS_WITH_BODY <= {"GET", "HEAD"}


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
async def test_no_path_and_wrong_method_are_said_whatever_the_body(headers: dict[str, str]) -> None:
    async with serving() as address, http_client(address) as client:
        for method in ("PUT", "PATCH", "DELETE"):
            answer = await client.request(method, PATH, headers=headers, content=b"x")
            assert answer.status_code == 405
        wrong = await client.post("/v1/models", headers=headers, content=b"x")
        missing = await client.post("/v1/nothing", headers=headers, content=b"x")
    assert (wrong.status_code, missing.status_code) == (405, 404)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_only_json_is_read(path: str) -> None:
    engine = EchoEngine()
    async with serving(engine, embedder=engine) as address, http_client(address) as client:
        answer = await client.post(path, headers={"content-type": "text/plain"}, content=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert engine.requests == []


async def test_no_path_and_wrong_method_are_json() -> None:
    async with serving() as address, http_client(address) as client:
        missing = await client.get("/v1/nothing")
        wrong = await client.get(PATH)
        docs = await client.get("/docs")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert docs.status_code == 404


async def test_malformed_json_says_where() -> None:
    async with serving() as address, http_client(address) as client:
        headers = {"content-type": "application/json"}
        broken = await client.post(PATH, content=b'{"model":\n  nope}', headers=headers)
        deep = await client.post(PATH, content=b"[" * 100_000, headers=headers)
        not_utf8 = await client.post(PATH, content=b'{"model": "\xff"}', headers=headers)
    assert broken.status_code == 400
    assert broken.json()["error"]["code"] == "invalid_json"
    assert "line 2, column 3" in broken.json()["error"]["message"]
    for answer in (deep, not_utf8):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_large_body_is_refused_and_the_app_reads_why() -> None:
    engine = EchoEngine()
    too_large = b" " * (API_MAX_BODY_BYTES + 1)
    chunked = b"".join(b"%x\r\n%b\r\n" % (65536, b" " * 65536) for _ in range(80)) + b"0\r\n\r\n"
    async with serving(engine) as address:
        port = port_of(address)
        whole = await raw_exchange(address, post(PATH, too_large, port))
        request = post(PATH, b"", port, "Transfer-Encoding: chunked")
        pieces = await raw_exchange(
            address, request.replace(b"Content-Length: 0\r\n", b"") + chunked
        )
    assert parse(whole) == parse(pieces) == (413, "request_too_large")
    assert engine.requests == []


async def test_refused_upload_is_not_kept_for_ever() -> None:
    """Hypercorn would wait for ever to hand over a disconnect behind ten unread messages."""
    async with serving() as address:
        port = port_of(address)
        head = post(PATH, b"", port, "Content-Type: text/plain", "Content-Length: 1000000")
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(head)
            answer = b""
            async with trio.open_nursery() as nursery:

                async def upload() -> None:
                    try:
                        while True:
                            await stream.send_all(b"x" * 100)
                            await trio.sleep(0.01)
                    except trio.BrokenResourceError:
                        pass

                nursery.start_soon(upload)
                with trio.fail_after(5):
                    while b'"}}' not in answer:
                        answer += await stream.receive_some()
                nursery.cancel_scope.cancel()
    assert parse(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1\r\n"
        "Content-Length: 2\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused(request_head: str) -> None:
    async with serving() as address:
        request = request_head.format(port=port_of(address), path=PATH).encode()
        answer = await raw_exchange(address, request)
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("after", [b"", bytes(9), b"\xff" * 500])
async def test_http_2_is_refused_and_the_connection_ends(after: bytes) -> None:
    async with serving() as address:
        answer = await raw_exchange(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + after)
    assert parse(answer) == (505, "http_version_not_supported")


@pytest.mark.parametrize(
    "upgrade",
    [
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
        "Upgrade: websocket",
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ],
)
@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:{port}", 200), ("https://evil.example", 403)]
)
async def test_upgrades_are_ignored(upgrade: str, origin: str, status: int) -> None:
    head = (
        f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{{port}}\r\nOrigin: {origin}\r\n"
        f"Connection: upgrade, close\r\n{upgrade}\r\n\r\n"
    )
    async with serving() as address:
        answer = await raw_exchange(address, head.format(port=port_of(address)).encode())
    assert parse(answer)[0] == status


async def test_http_2_never_reaches_the_app(autojump_clock: trio.testing.MockClock) -> None:
    scope: Scope = {
        "type": "http",
        "http_version": "2",
        "method": "GET",
        "path": "/v1/models",
        "headers": [],
        "server": None,
    }
    status = await status_of(scope, BodyNever())
    assert status == 505


async def test_body_that_does_not_arrive_times_out(autojump_clock: trio.testing.MockClock) -> None:
    assert await status_of(HEAD_OF_POST, BodyNever()) == 408
    assert trio.current_time() >= 30


async def test_app_that_leaves_before_its_body_is_whole_reaches_nothing() -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    sent = await sent_by_guard({**HEAD_OF_POST, "http_version": "1.0"}, receive)
    assert sent == []


def test_port_80_needs_no_number_in_the_host() -> None:
    scope = {**HEAD_OF_POST, "server": ("127.0.0.1", 80)}
    hosts = ("localhost", "127.0.0.1:80", "localhost:5010", "evil.example")
    statuses = []
    for host in hosts:
        headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
        asked = {**scope, "headers": headers}
        refusal = refuse_by_head(asked, headers_of(asked), Access())
        statuses.append(refusal.status if refusal else None)
    assert statuses == [None, None, 403, 403]


async def test_bodies_of_all_requests_together_have_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "API_MAX_BODIES_BYTES", 1000)
    engine = EchoEngine()
    async with serving(engine) as address, http_client(address) as client:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        async with stream:
            head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port_of(address)}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 999\r\n\r\n"
            await stream.send_all(head.encode() + b" " * 990)
            with trio.fail_after(5):
                while (answer := await client.post(PATH, json=CHAT)).status_code == 200:
                    pass  # until that body has been read
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) > 0
        with trio.fail_after(5):
            while (await client.post(PATH, json=CHAT)).status_code == 429:
                pass  # until it is seen that the app is gone
        n_before = len(engine.requests)
        assert (await client.post(PATH, json=CHAT)).status_code == 200
    assert len(engine.requests) == n_before + 1


class BodyNever:
    """A `receive` that gives one byte and then nothing."""

    def __init__(self) -> None:
        self._messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def __call__(self) -> Message:
        if not self._messages:
            await trio.sleep_forever()
        return self._messages.pop()


async def status_of(scope: Scope, receive: Receive) -> int:
    return int((await sent_by_guard(scope, receive))[0]["status"])


async def sent_by_guard(scope: Scope, receive: Receive) -> list[Message]:
    """What the guard itself answers; the app behind it must not be reached."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the guard let it pass")

    await Guard(app)(scope, receive, send)
    return sent
