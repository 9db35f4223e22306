"""A name for every answer. Start at `RequestId`."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: Final = b"x-request-id"
ID_BYTES: Final = 12  # unique among what one peer answers


class RequestId:
    """ASGI middleware, outside of all other: puts a header `x-request-id` on every answer, as
    OpenAI does and SDKs show. It stands in no log and says nothing about the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = f"req_{secrets.token_hex(ID_BYTES)}".encode()
                message = {**message, "headers": [*message["headers"], (REQUEST_ID, name)]}
            await send(message)

        await self._app(scope, receive, send_named)
