"""Keeps web pages and malformed requests away from the API. Start at `Guard`.

ASGI middleware, outside of everything else. A page in the user's browser can reach localhost: by
plain forms and images, or by DNS rebinding under a name of its own. So the Host must be this very
address and port, and no header may say that another site asked. There are no CORS headers, hence
no page of another origin may read an answer. Bodies are read whole, under a limit, before the app
runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenplace.api_shim.refusal import Refusal
from tokenplace.defaults import API_BODY_TIMEOUT_S, API_LINGER_S, API_MAX_BODY_BYTES

METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
SAME_SITE = frozenset({"none", "same-origin"})  # typed by the user, or our own page


class Guard:
    """Lets pass what comes from a program on this machine or from this API's own page.

    body_timeout_s: seconds until the whole body must have arrived.
    """

    def __init__(self, app: ASGIApp, body_timeout_s: float = API_BODY_TIMEOUT_S) -> None:
        self._app = app
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = refuse_by_head(scope)
        if refusal is None:
            body = await self._read_body(receive)
            if isinstance(body, bytes):
                return await self._app(scope, _replay(body, receive), send)
            if body is None:  # the app is gone
                return None
            refusal = body
        return await _refuse(refusal, scope, receive, send)

    async def _read_body(self, receive: Receive) -> bytes | Refusal | None:
        body = bytearray()
        with trio.move_on_after(self._body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > API_MAX_BODY_BYTES:
                    return _too_large()
                if not message.get("more_body", False):
                    return bytes(body)
        return Refusal(408, "The body did not arrive in time.", "request_timeout")


def refuse_by_head(scope: Scope) -> Refusal | None:
    """What is wrong with a request before its body is read; None if nothing is."""
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    ]
    named = dict(headers)
    if scope["http_version"] not in {"1.0", "1.1"}:
        return Refusal(505, "Only HTTP/1.1 is spoken here.", "http_version_not_supported")
    if "transfer-encoding" in named and "content-length" in named:
        # RFC 9112, section 6.3: two lengths are how requests are smuggled.
        return Refusal(
            400, "Transfer-Encoding and Content-Length exclude each other.", "bad_length"
        )
    if scope["server"] is not None and (refusal := _refuse_origin(named, scope["server"][1])):
        return refusal
    return _refuse_body_kind(named, scope["method"])


def _refuse_origin(headers: Mapping[str, str], port: int) -> Refusal | None:
    """A Unix socket has no port and needs none of this: no browser can reach it."""
    host = headers.get("host", "").lower()
    own_hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if port == 80:
        own_hosts |= {"127.0.0.1", "localhost", "[::1]"}
    if host not in own_hosts:
        message = (
            f"This API answers only to the Host 127.0.0.1:{port}, localhost:{port}, [::1]:{port}."
        )
        return Refusal(403, message, "host_not_allowed")
    origin = headers.get("origin", "")
    site = headers.get("sec-fetch-site", "none")
    if (origin and origin.lower() != f"http://{host}") or site not in SAME_SITE:
        return Refusal(403, "Web pages of other sites may not use this API.", "origin_not_allowed")
    return None


def _refuse_body_kind(headers: Mapping[str, str], method: str) -> Refusal | None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > API_MAX_BODY_BYTES:
        return _too_large()
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


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer and close. What the app still sends is read and dropped meanwhile.

    Closing under an app that is sending resets the connection, and it may never read why. And
    Hypercorn waits for ever to hand a disconnect to a handler that has left ten messages unread.
    """
    headers = {**refusal.headers, "connection": "close"}
    response = JSONResponse(refusal.body, refusal.status, headers)
    body_ended = trio.Event()

    async def discard() -> None:
        while (message := await receive())["type"] != "http.disconnect":
            if not message.get("more_body", False):
                body_ended.set()
        body_ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(discard)
        with trio.move_on_after(API_LINGER_S):
            await body_ended.wait()
        await response(scope, receive, send)
        nursery.cancel_scope.cancel()
