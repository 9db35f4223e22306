"""HTTP requests that no honest app sends. Start at `bad_requests`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.e2e.network import MODEL

CHAT = "/v1/chat/completions"
GOOD = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
GOOD_BODY = json.dumps(GOOD).encode()


def raw_post(
    port: int, body: bytes = GOOD_BODY, *, drop: str = "", add: tuple[str, ...] = ()
) -> bytes:
    """A POST without the header `drop` and with those in `add`."""
    headers = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if name != drop]
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", *lines, *add, "", ""]).encode() + body


def body_with(field: str, value: str) -> bytes:
    """A good body in which one field has this value, as JSON text."""
    fields = {name: json.dumps(known) for name, known in GOOD.items()} | {field: value}
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


def bad_requests(port: int) -> Iterator[tuple[str, bytes]]:
    """What each is, and its bytes."""
    host = f"Host: 127.0.0.1:{port}"
    get = f"GET /v1/models HTTP/1.1\r\n{host}\r\n"
    yield from (
        ("another host", raw_post(port, drop="Host", add=("Host: evil.example",))),
        ("two hosts", raw_post(port, add=("Host: evil.example",))),
        ("no host", raw_post(port, drop="Host")),
        ("two lengths", raw_post(port, add=("Content-Length: 1",))),
        ("negative length", raw_post(port, drop="Content-Length", add=("Content-Length: -1",))),
        ("length and chunks", raw_post(port, add=("Transfer-Encoding: chunked",))),
        ("huge header", raw_post(port, add=("X-Long: " + "x" * (1 << 20),))),
        ("many headers", raw_post(port, add=("X-Many: x",) * 50_000)),
        ("huge chunk", chunked(port, b"FFFFFFFFFFFFFFFFFF\r\n" + bytes(5 << 20))),
        ("chunk that is none", chunked(port, b"zz\r\nx\r\n")),
        ("foreign origin", raw_post(port, add=("Origin: https://evil.example",))),
        ("text", raw_post(port, drop="Content-Type", add=("Content-Type: text/plain",))),
        ("gzip", raw_post(port, b"\x1f\x8b" + bytes(99), add=("Content-Encoding: gzip",))),
        ("null in the path", get.replace("models", "mod\0els").encode() + b"\r\n"),
        ("null in a header", get.encode() + b"X-Null: a\0b\r\n\r\n"),
        ("escaped path", get.replace("models", "models/%ff%00%2e%2e%2f").encode() + b"\r\n"),
        ("path out of it", get.replace("models", "../../etc/passwd").encode() + b"\r\n"),
        ("no HTTP", b"\x16\x03\x01\x02\x00" + bytes(range(256)) * 8),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        ("HTTP/9", get.replace("/1.1", "/9.9").encode() + b"\r\n"),
        ("proxy", f"CONNECT evil.example:443 HTTP/1.1\r\n{host}\r\n\r\n".encode()),
    )
    yield from ((name, raw_post(port, body)) for name, body in bad_bodies())


def chunked(port: int, chunks: bytes) -> bytes:
    """A body in chunks, which may be none."""
    add = ("Transfer-Encoding: chunked",)
    return raw_post(port, b"", drop="Content-Length", add=add) + chunks


def bad_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies of otherwise good requests."""
    yield from (
        ("empty", b""),
        ("null bytes", bytes(1000)),
        ("truncated JSON", GOOD_BODY[:-10]),
        ("two values", GOOD_BODY * 2),
        ("no object", b"[]"),
        ("not UTF-8", body_with("model", '"\xff"')[:-1] + b"\xff}"),
        ("deep list", b"[" * 200_000),
        ("deep map", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        ("deep content", body_with("messages", "[" * 5000 + "]" * 5000)),
        ("not a number", body_with("temperature", "NaN")),
        ("infinite", body_with("temperature", "1e999")),
        ("long integer", body_with("max_tokens", "9" * 5000)),
        ("longer integer", body_with("max_tokens", "9" * 300)),
        ("half a surrogate", body_with("messages", r'[{"role":"user","content":"\ud800"}]')),
        ("half a name", body_with("model", r'"\udfff"')),
        ("unknown role", body_with("messages", '[{"role":"root","content":"x"}]')),
        ("100,000 messages", body_with("messages", "[" + "{}," * 100_000 + "{}]")),
        ("3 MiB for a donor", LARGEST_BODY),
        ("over 3 MiB", body_with("messages", content_of(3 << 20))),
        ("over 4 MiB", body_with("messages", content_of(4 << 20))),
    )


def content_of(n_chars: int) -> str:
    return json.dumps([{"role": "user", "content": "x " * (n_chars // 2)}])


LARGEST_BODY = body_with("messages", content_of((3 << 20) - 1000))
"""Far too long for the model, which only the donor knows."""
