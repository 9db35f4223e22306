"""Keeps web pages, strangers and malformed requests away from the API. Start at `Guard`.

ASGI middleware, outside of everything else. Who may call is `access`; here it is asked, before a
byte of the body is read. Bodies are read whole, under a limit, before the app runs. The origins
that may call get CORS headers, on refusals too; to all others no header says anything, hence no
page of theirs may read an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import trio
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenplace.api_shim.access import Access, cors_headers, is_preflight, preflight_headers
from tokenplace.api_shim.refusal import Refusal, Refused, too_many
from tokenplace.defaults import (
    API_BODY_TIMEOUT_S,
    API_LINGER_S,
    API_MAX_BODIES_BYTES,
    API_MAX_BODY_BYTES,
)

# Whose body must be JSON. No route takes another method with a body: that gets a 405.
METHODS_WITH_BODY: Final = frozenset({"POST"})
# The name in a scope's `state` under which the server leaves what says "100 Continue" to an app
# that waits for it.
SAY_CONTINUE: Final = "tokenplace.say_continue"
TOO_LARGE_TOGETHER: Final = "All requests at once have larger bodies than this peer takes."
# One that comes twice may be read one way here and another way elsewhere. Lengths and Host are
# looked after by h11.
SINGLE_HEADERS: Final = frozenset(
    {"origin", "sec-fetch-site", "authorization", "content-type", "content-encoding"}
)


class Guard:
    """Lets pass whom `access` lets, with a body that can be read.

    body_timeout_s: seconds until the whole body must have arrived.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access | None = None,
        body_timeout_s: float = API_BODY_TIMEOUT_S,
    ) -> None:
        self._app = app
        self._access = access or Access()
        self._body_timeout_s = body_timeout_s
        self._room = _Room(API_MAX_BODIES_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        if (origin := self._access.foreign_origin(headers)) is not None:
            send = _adding(cors_headers(origin), send)
        if (refusal := refuse_by_head(scope, headers, self._access)) is not None:
            return await _close_with(_saying(refusal), scope, receive, send)
        if (refusal := _refuse_kind(headers, scope["method"])) is not None:
            return await _close_with(self._without_body(refusal), scope, receive, send)
        app = self._app
        if origin is not None and is_preflight(headers, scope["method"]):
            app = Response(status_code=204, headers=preflight_headers(headers))
        elif scope["method"] == "HEAD":  # RFC 9110, section 9.3.2: as GET; the server cuts the body
            scope = {**scope, "method": "GET"}
        share = _Share(self._room)
        try:
            await self._pass_on(app, scope, receive, send, share)
        finally:
            share.release()

    async def _pass_on(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, share: _Share
    ) -> None:
        say_continue = scope.get("state", {}).get(SAY_CONTINUE)
        if say_continue is not None:
            await say_continue()
        body = await self._read_body(receive, share)
        if isinstance(body, Refusal):
            await _close_with(_saying(body), scope, receive, send)
        elif body is not None:  # None: the app is gone
            await app(scope, _replay(body, receive), send)

    def _without_body(self, refusal: Refusal) -> ASGIApp:
        """The app, refused its body: it says first if there is no such path or method."""

        async def refuse() -> Message:
            raise Refused(refusal)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, refuse, _adding({"connection": "close"}, send))

        return app

    async def _read_body(self, receive: Receive, share: _Share) -> bytes | Refusal | None:
        body = bytearray()
        with trio.move_on_after(self._body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                body += piece
                if len(body) > API_MAX_BODY_BYTES:
                    return _too_large()
                if not share.take(len(piece)):
                    return too_many(TOO_LARGE_TOGETHER)
                if not message.get("more_body", False):
                    return bytes(body)
        return Refusal(408, "The body did not arrive in time.", "request_timeout")


@dataclass
class _Room:
    """For the bodies of all requests together."""

    n_free_bytes: int


@dataclass
class _Share:
    """What one request's body takes of the room, until the request is over."""

    room: _Room
    n_bytes: int = 0

    def take(self, n_bytes: int) -> bool:
        """Is there room for so much more? If so, it is taken."""
        if n_bytes > self.room.n_free_bytes:
            return False
        self.room.n_free_bytes -= n_bytes
        self.n_bytes += n_bytes
        return True

    def release(self) -> None:
        """Give all of it back."""
        self.room.n_free_bytes += self.n_bytes
        self.n_bytes = 0


def headers_of(scope: Scope) -> dict[str, str]:
    """Names in lower case; of one that came twice, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def refuse_by_head(scope: Scope, headers: Mapping[str, str], access: Access) -> Refusal | None:
    """What is wrong with a request before its body is read; None if nothing is.

    headers: from `headers_of`.
    """
    if scope["http_version"] not in {"1.0", "1.1"}:
        return Refusal(505, "Only HTTP/1.1 is spoken here.", "http_version_not_supported")
    if twice := _first_twice(scope):
        return Refusal(400, f"The header {twice} came twice.", "duplicate_header")
    if "transfer-encoding" in headers:
        # RFC 9112, section 6.1: two lengths, or one that the version does not know, are how
        # requests are smuggled.
        if "content-length" in headers:
            message = "Transfer-Encoding and Content-Length exclude each other."
            return Refusal(400, message, "bad_length")
        if scope["http_version"] == "1.0":
            return Refusal(400, "HTTP/1.0 has no Transfer-Encoding.", "bad_length")
    if scope["server"] is not None:
        refusal = access.refuse(headers, scope["method"], scope["path"], *scope["server"])
        if refusal is not None:
            return refusal
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > API_MAX_BODY_BYTES:
        return _too_large()
    return None


def _first_twice(scope: Scope) -> str | None:
    seen = set()
    for raw_name, _ in scope["headers"]:
        name: str = raw_name.decode("latin-1")
        if name in seen:
            return name
        if name in SINGLE_HEADERS:
            seen.add(name)
    return None


def _refuse_kind(headers: Mapping[str, str], method: str) -> Refusal | None:
    """What is wrong with the kind of a body."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        return Refusal(415, "Compressed bodies are not read.", "unsupported_media_type")
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    is_json = kind.strip().lower() == "application/json" and charset in {"", "charset=utf-8"}
    if method in METHODS_WITH_BODY and not is_json:
        message = "The Content-Type must be application/json."
        return Refusal(415, message, "unsupported_media_type")
    return None


def _too_large() -> Refusal:
    message = f"The body is larger than {API_MAX_BODY_BYTES} bytes."
    return Refusal(413, message, "request_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then goes on with the real one."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _adding(headers: Mapping[str, str], send: Send) -> Send:
    """A `send` that puts these headers on the answer."""
    added = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def send_adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_adding


def _saying(refusal: Refusal) -> ASGIApp:
    headers = {**refusal.headers, "connection": "close"}
    return JSONResponse(refusal.body, refusal.status, headers)


async def _close_with(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer and close. What the app still sends is read and dropped meanwhile.

    Closing under an app that is sending resets the connection, and it may never read why. And
    Hypercorn waits for ever to hand a disconnect to a handler that has left ten messages unread.
    """
    body_ended = trio.Event()
    is_waiting = "expect" in headers_of(scope)  # for this very answer, before it sends anything

    async def discard() -> None:
        while (message := await receive())["type"] != "http.disconnect":
            if not message.get("more_body", False):
                body_ended.set()
        body_ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(discard)
        if not is_waiting:
            with trio.move_on_after(API_LINGER_S):
                await body_ended.wait()
        await answer(scope, receive, send)
        nursery.cancel_scope.cancel()
