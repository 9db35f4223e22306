"""A name for every request, by which an app and the peer's journal mean the same. Start at
`RequestId`."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: Final = b"x-request-id"
JOURNAL_ID: Final = b"x-tokenplace-request-id"
ID_BYTES: Final = 12  # of an answer's id: unique wherever apps keep it, not secret
JOURNAL_ID_CHARS: Final = 12  # of its hex digits: unique among what a peer remembers, and in logs
_KEY: Final = "tokenplace.request_id"


class RequestId:
    """ASGI middleware, outside of all other: draws the id, and puts it on every answer. In
    `x-request-id` as OpenAI does and SDKs show, and its beginning in `x-tokenplace-request-id`, as
    the journal has it. It says nothing about the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = secrets.token_hex(ID_BYTES)
        headers = (
            (REQUEST_ID, f"req_{name}".encode()),
            (JOURNAL_ID, journal_id(name).encode()),
        )

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        scope[_KEY] = name  # in place: what handles faults stands outside and has this scope
        await self._app(scope, receive, send_named)


def id_of(scope: Scope) -> str:
    """The id of a request that came through `RequestId`, in hex digits."""
    name = scope[_KEY]
    assert isinstance(name, str)
    return name


def journal_id(name: str) -> str:
    """What the journal calls it."""
    return name[:JOURNAL_ID_CHARS]
