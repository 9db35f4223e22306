"""Malformed and unusual HTTP, byte by byte: each request has one right answer, always in JSON.

Start at `CASES`. `{port}` stands for the server's port, `{host}` for a Host header that is right,
`|` for CR LF. An answer is its statuses, one for each request that was read; `closed` says whether
the server ended the connection afterwards.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass

import pytest
import trio

from tests.api_shim.serving import port_of, serving
from tests.fakes import EchoEngine
from tokenplace.defaults import API_MAX_HEADERS

BODY = '{"model":"tiny-model","messages":[{"role":"user","content":"Hello"}]}'
LENGTH = len(BODY)
JSON = "Content-Type: application/json|"
POST = "POST /v1/chat/completions HTTP/1.1|{host}" + JSON
GET = "GET /v1/models HTTP/1.1|{host}"
CHUNKED = POST + "Transfer-Encoding: chunked||"
IN_CHUNKS = f"{LENGTH:x}|{BODY}|0||"


@dataclass(frozen=True)
class Case:
    """name: of the test. sent: see above. statuses, code: of the last answer's error."""

    name: str
    sent: str
    statuses: tuple[int, ...]
    code: str | None
    closed: bool = True
    reaches_engine: int = 0


def refused(name: str, sent: str, status: int, code: str) -> Case:
    return Case(name, sent, (status,), code)


def fine(name: str, sent: str, *statuses: int, closed: bool = False, engine: int = 0) -> Case:
    return Case(name, sent, statuses or (200,), None, closed, engine)


def bad(name: str, sent: str) -> Case:
    return refused(name, sent, 400, "malformed_request")


CASES = [
    # ---------------------------------------------------------- request lines
    bad("garbage", "GARBAGE||"),
    bad("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03||"),
    bad("binary without a line end", "\x00\x01\x02\x03" * 8),
    bad("HTTP/0.9", "GET /v1/models||"),
    bad("no target", "GET HTTP/1.1|{host}|"),
    bad("empty target", "GET  HTTP/1.1|{host}|"),
    bad("space in the target", "GET /v1/mod els HTTP/1.1|{host}|"),
    bad("tab for a space", "GET\t/v1/models HTTP/1.1|{host}|"),
    bad("two spaces", "GET  /v1/models HTTP/1.1|{host}|"),
    bad("space before the line", " GET /v1/models HTTP/1.1|{host}|"),
    bad("space after the line", "GET /v1/models HTTP/1.1 |{host}|"),
    bad("lower-case protocol", "GET /v1/models http/1.1|{host}|"),
    bad("no minor version", "GET /v1/models HTTP/1|{host}|"),
    bad("long version", "GET /v1/models HTTP/1.10|{host}|"),
    bad("letters outside ASCII", "GET /v1/mod\xe9ls HTTP/1.1|{host}|"),
    bad("relative target", "GET v1/models HTTP/1.1|{host}|"),
    bad("asterisk for a GET", "GET * HTTP/1.1|{host}|"),
    bad("fragment in the target", "GET /v1/models#top HTTP/1.1|{host}|"),
    bad("absolute target of TLS", "GET https://127.0.0.1:{port}/v1/models HTTP/1.1|{host}|"),
    bad("absolute target without host", "GET http:///v1/models HTTP/1.1|{host}|"),
    bad("absolute target with a user", "GET http://a@127.0.0.1:{port}/ HTTP/1.1|{host}|"),
    refused("HTTP/2.0", "GET /v1/models HTTP/2.0|{host}|", 505, "http_version_not_supported"),
    refused("HTTP/1.2", "GET /v1/models HTTP/1.2|{host}|", 505, "http_version_not_supported"),
    refused("HTTP/2's opening", "PRI * HTTP/2.0||SM||", 505, "http_version_not_supported"),
    refused("method with a digit", "GET2 /v1/models HTTP/1.1|{host}|", 501, "not_implemented"),
    refused("lower-case method", "get /v1/models HTTP/1.1|{host}|", 501, "not_implemented"),
    refused("CONNECT", "CONNECT evil.example:443 HTTP/1.1|{host}|", 501, "not_implemented"),
    refused("long target", "GET /{8001} HTTP/1.1|{host}|", 414, "uri_too_long"),
    refused("endless target", "GET /{20000}", 431, "headers_too_large"),
    refused("long target of HEAD", "HEAD /{8001} HTTP/1.1|{host}|", 414, "uri_too_long"),
    # ---------------------------------------------------------- headers
    bad("bare LF after the line", "GET /v1/models HTTP/1.1\n{host}|"),
    bad("bare LFs throughout", "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:{port}\n\n"),
    bad("bare LF in a header", GET + "A: b\nTransfer-Encoding: chunked||"),
    bad("bare CR in a header", GET + "A: b\rTransfer-Encoding: chunked||"),
    bad("bare CR after the line", "GET /v1/models HTTP/1.1\r{host}|"),
    bad("NUL in a header", GET + "A: b\x00c||"),
    bad("control character in a header", GET + "A: b\x01c||"),
    bad("DEL in a header", GET + "A: b\x7fc||"),
    bad("NUL in a header's name", GET + "A\x00: b||"),
    bad("space before the colon", GET + "Content-Length : 3||"),
    bad("tab before the colon", GET + "Transfer-Encoding\t: chunked||"),
    bad("folded header", GET + "A: b| c||"),
    bad("folded with a tab", GET + "A: b|\tc||"),
    bad("fold before the first header", "GET /v1/models HTTP/1.1| A: b|{host}|"),
    bad("no colon", GET + "Content-Length||"),
    bad("no name", GET + ": chunked||"),
    bad("letter outside ASCII in a name", GET + "\xc3\xa9: b||"),
    bad("two Hosts", GET + "Host: evil.example||"),
    bad("the same Host twice", GET + "Host: 127.0.0.1:{port}||"),
    bad("no Host", "GET /v1/models HTTP/1.1||"),
    refused("empty Host", "GET /v1/models HTTP/1.1|Host:||", 403, "host_not_allowed"),
    refused("HTTP/1.0 without Host", "GET /v1/models HTTP/1.0||", 403, "host_not_allowed"),
    refused(
        "a foreign host in the target",
        "GET http://evil.example:{port}/v1/models HTTP/1.1|{host}|",
        403,
        "host_not_allowed",
    ),
    refused(
        "two Origins",
        GET + "Origin: http://127.0.0.1:{port}|Origin: https://evil.example||",
        400,
        "duplicate_header",
    ),
    refused("two keys", GET + "Authorization: a|Authorization: b||", 400, "duplicate_header"),
    refused("two kinds of body", POST + "Content-Type: text/plain||", 400, "duplicate_header"),
    refused("too many headers", GET + "A: b|" * API_MAX_HEADERS + "|", 431, "headers_too_large"),
    refused("one long header", GET + "A: {20000}||", 431, "headers_too_large"),
    refused("endless header", GET + "A: {20000}", 431, "headers_too_large"),
    refused("many long headers", GET + "A: {1000}|" * 20 + "|", 431, "headers_too_large"),
    # ---------------------------------------------------------- lengths
    bad("two lengths", POST + f"Content-Length: {LENGTH}|Content-Length: 3||" + BODY),
    bad("two lengths in one", POST + f"Content-Length: {LENGTH}, 3||" + BODY),
    bad("negative length", POST + "Content-Length: -1||" + BODY),
    bad("length with a sign", POST + f"Content-Length: +{LENGTH}||" + BODY),
    bad("hexadecimal length", POST + "Content-Length: 0x45||" + BODY),
    bad("empty length", POST + "Content-Length:||" + BODY),
    bad("length with an underscore", POST + "Content-Length: 6_9||" + BODY),
    bad("length of 30 digits", POST + "Content-Length: " + "9" * 30 + "||" + BODY),
    refused("large length", POST + "Content-Length: 99999999||", 413, "request_too_large"),
    refused(
        "length and chunks",
        POST + "Content-Length: 4|Transfer-Encoding: chunked||0||",
        400,
        "bad_length",
    ),
    refused(
        "chunks and length",
        POST + f"Transfer-Encoding: chunked|Content-Length: {LENGTH}||" + IN_CHUNKS,
        400,
        "bad_length",
    ),
    refused(
        "chunks in HTTP/1.0",
        POST.replace("HTTP/1.1", "HTTP/1.0") + "Transfer-Encoding: chunked||" + IN_CHUNKS,
        400,
        "bad_length",
    ),
    refused(
        "chunked twice",
        POST + "Transfer-Encoding: chunked|Transfer-Encoding: chunked||" + IN_CHUNKS,
        501,
        "not_implemented",
    ),
    *(
        refused(
            f"transfer coding {coding!r}",
            POST + f"Transfer-Encoding: {coding}||" + IN_CHUNKS,
            501,
            "not_implemented",
        )
        for coding in ("xchunked", "chunked, identity", "identity", "gzip, chunked", '"chunked"')
    ),
    bad("transfer coding after a control character", POST + "Transfer-Encoding: \x0bchunked||"),
    # ---------------------------------------------------------- chunks
    bad("chunk size that is no number", CHUNKED + "zz|{{}}|0||"),
    bad("negative chunk size", CHUNKED + "-1|{{}}|0||"),
    bad("chunk size with 0x", CHUNKED + "0x2|{{}}|0||"),
    bad("chunk size of 21 digits", CHUNKED + "0" * 20 + "2|{{}}|0||"),
    bad("space before a chunk size", CHUNKED + " 2|{{}}|0||"),
    bad("chunk longer than it says", CHUNKED + "2|{{}}}}|0||"),
    bad("bare LF after a chunk size", CHUNKED + "2\n{{}}|0||"),
    bad("bare LF after a chunk", CHUNKED + "2|{{}}\n0||"),
    bad("bare LF in a chunk's extension", CHUNKED + "2;a\nb|{{}}|0||"),
    bad("bad trailer", CHUNKED + "2|{{}}|0|no colon||"),
    refused("endless extension", CHUNKED + "2;{20000}", 431, "headers_too_large"),
    refused("huge chunk", CHUNKED + "ffffffff|" + "x" * 5_000_000, 413, "request_too_large"),
    # ---------------------------------------------------------- right, if unusual
    fine("plain GET", GET + "|"),
    fine("empty lines first", "||" + GET + "|"),
    fine("no space after the colon", "GET /v1/models HTTP/1.1|Host:127.0.0.1:{port}||"),
    fine("percent-encoded path", "GET /%761/%6d%6fdels HTTP/1.1|{host}|"),
    fine("query", "GET /v1/models?limit=20&after=x HTTP/1.1|{host}|"),
    fine("absolute target", "GET http://127.0.0.1:{port}/v1/models HTTP/1.1|{host}|"),
    fine("absolute target in capitals", "GET HTTP://LOCALHOST:{port}/v1/models HTTP/1.1|{host}|"),
    fine("absolute target without path", "GET http://127.0.0.1:{port} HTTP/1.1|{host}|"),
    fine("HEAD", "HEAD /v1/models HTTP/1.1|{host}|"),
    fine("HEAD of the page", "HEAD / HTTP/1.1|{host}|"),
    fine("HTTP/1.0", "GET /v1/models HTTP/1.0|{host}|", closed=True),
    fine("Connection: close", GET + "Connection: close||", closed=True),
    fine("data after the last request", GET + "Connection: close||GARBAGE||", closed=True),
    fine("two pipelined", GET + "|" + GET + "|", 200, 200),
    fine("unknown upgrade", GET + "Connection: upgrade|Upgrade: tomorrow||"),
    fine("letters outside ASCII in a value", GET + "A: b\xe9||"),
    fine("a POST", POST + f"Content-Length: {LENGTH}||" + BODY, engine=1),
    fine("the same length twice", POST + f"Content-Length: {LENGTH}|" * 2 + "|" + BODY, engine=1),
    fine("chunks", CHUNKED + IN_CHUNKS, engine=1),
    fine(
        "chunks with extension and trailer", CHUNKED + f"{LENGTH:X};a=b|{BODY}|0|A: b||", engine=1
    ),
    fine("a GET with a body", GET + "Content-Length: 3||abc" + GET + "|", 200, 200),
    fine(
        "a POST and another pipelined",
        (POST + f"Content-Length: {LENGTH}||" + BODY) * 2,
        200,
        200,
        engine=2,
    ),
    fine("an empty line after a body", POST + f"Content-Length: {LENGTH}||{BODY}|", engine=1),
    Case("no such path", "GET /v1/nothing HTTP/1.1|{host}|", (404,), "unknown_url", False),
    Case("path of NULs", "GET /v1/models/%00 HTTP/1.1|{host}|", (404,), "model_not_found", False),
    Case("up and away", "GET /v1/../models HTTP/1.1|{host}|", (404,), "unknown_url", False),
    Case("broken percent", "GET /v1/%zz HTTP/1.1|{host}|", (404,), "unknown_url", False),
    Case("bytes that are no UTF-8", "GET /%ff HTTP/1.1|{host}|", (404,), "unknown_url", False),
    Case("wrong method", "DELETE /v1/models HTTP/1.1|{host}|", (405,), "method_not_allowed", False),
    Case("strange", "BREW /v1/models HTTP/1.1|{host}|", (405,), "method_not_allowed", False),
    Case("TRACE", "TRACE /v1/models HTTP/1.1|{host}|", (405,), "method_not_allowed", False),
    Case("OPTIONS", "OPTIONS /v1/models HTTP/1.1|{host}|", (405,), "method_not_allowed", False),
    Case("OPTIONS of all", "OPTIONS * HTTP/1.1|{host}|", (404,), "unknown_url", False),
    Case("second is garbage", GET + "|GARBAGE||", (200, 400), "malformed_request"),
]


def bytes_of(sent: str, port: int) -> bytes:
    text = sent.replace("|", "\r\n").replace("{host}", f"Host: 127.0.0.1:{port}\r\n")
    text = text.replace("{port}", str(port)).replace("{{", "{").replace("}}", "}")
    return re.sub(r"\{(\d+)\}", lambda match: "x" * int(match[1]), text).encode("latin-1")


def test_there_are_many_and_each_is_named_once() -> None:
    assert len([case for case in CASES if case.code is not None]) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_request_gets_its_right_answer(case: Case) -> None:
    engine = EchoEngine()
    async with serving(engine) as address:
        answers, was_closed = await exchange(address, case)
    statuses = [int(head.split()[1]) for head, _ in answers]
    assert tuple(statuses) == case.statuses
    head, body = answers[-1]
    assert was_closed == case.closed
    if case.code and not case.sent.startswith("HEAD"):
        assert "\r\ncontent-type: application/json" in head.lower()
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
        assert json.loads(body)["error"]["code"] == case.code
    assert len(engine.requests) == case.reaches_engine


async def exchange(address: str, case: Case) -> tuple[list[tuple[str, str]], bool]:
    """The answers as head and body, and whether the server closed after the last."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
    got = bytearray()
    was_closed = False

    def answers() -> list[tuple[str, str]]:
        return parse(got, is_head=case.sent.startswith("HEAD"))

    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):  # refused before it had read all
                await stream.send_all(bytes_of(case.sent, port_of(address)))

        nursery.start_soon(send)
        with trio.fail_after(10):
            while not was_closed and (case.closed or len(answers()) < len(case.statuses)):
                data = await stream.receive_some()
                got += data
                was_closed = not data
            if not was_closed:  # then it goes on to serve
                await stream.send_all(bytes_of(GET + "|", port_of(address)))
                while len(answers()) == len(case.statuses):
                    data = await stream.receive_some()
                    assert data, bytes(got[-300:])
                    got += data
        nursery.cancel_scope.cancel()
    return answers()[: len(case.statuses)] if not was_closed else answers(), was_closed


def parse(got: bytearray, *, is_head: bool) -> list[tuple[str, str]]:
    """The answers that have come whole. is_head: the first was asked for by HEAD."""
    answers: list[tuple[str, str]] = []
    rest = bytes(got)
    while b"\r\n\r\n" in rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None, head
        n_bytes = 0 if is_head and not answers else int(length[1])
        if len(rest) < n_bytes:
            break
        answers.append((head.decode("latin-1"), rest[:n_bytes].decode()))
        rest = rest[n_bytes:]
    return answers
