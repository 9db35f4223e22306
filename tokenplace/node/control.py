"""The control socket: how `tokenplace peer status` looks into a running peer. Only this user can
open it (mode 0600).

Start at `create_control_app`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def create_control_app(status: Callable[[], dict[str, Any]]) -> Starlette:
    """GET /status answers with what `status` returns, as JSON."""

    async def get_status(request: Request) -> JSONResponse:
        return JSONResponse(status())

    return Starlette(routes=[Route("/status", get_status)])
